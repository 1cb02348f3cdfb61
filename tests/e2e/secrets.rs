//! Redis and MongoDB with TLS and passwords, and passwords that change.

use bson::doc;
use redis::{Client, IntoConnectionInfo, TlsCertificates};
use serde_json::json;

use super::{
    getting_started::{slow_job, wait_until_running},
    release::{CHART, Helm, LONG, assert_run_ends_without_loss, install_only_crds},
    servers::{Authority, mongodb, redis},
    support::{Forward, Namespace, apply, eventually, get, kubectl, lock_cluster, run},
};

/// Changes a value of a Secret.
fn change(namespace: &Namespace, secret: &str, key: &str, value: &str) {
    let patch = json!({"stringData": {key: value}}).to_string();
    run("kubectl", &["patch", "secret", secret, "--namespace", &namespace.0, "--patch", &patch], "");
}

/// Selects the pods of the release.
const PODS: &str = "-l app.kubernetes.io/instance=mine";

fn trigger_sync(namespace: &Namespace) {
    kubectl(&format!("annotate pods --namespace {namespace} {PODS} --overwrite nudged={}", rand::random::<u32>()));
}

/// Number of restarts of the containers of the controllers and the API.
fn restarts(namespace: &Namespace) -> i64 {
    let pods = get(&format!("pods --namespace {namespace} {PODS}"));
    let pods = pods["items"].as_array().unwrap().clone();
    let containers = pods.iter().flat_map(|pod| pod["status"]["containerStatuses"].as_array().unwrap().clone());
    containers.map(|container| container["restartCount"].as_i64().unwrap()).sum()
}

#[tokio::test]
async fn passwords_can_change_during_a_run_and_own_cas_are_trusted() {
    let _lock = lock_cluster();
    install_only_crds();
    rustls::crypto::ring::default_provider().install_default().ok();
    let namespace = Namespace::new("secrets");
    let authority = Authority::new("sync-operator-test");
    redis(&namespace, &authority, "first");
    mongodb(&namespace, &authority);

    // MongoDB allows the first administrator from localhost only.
    let to_mongodb = Forward::new(&namespace.0, "pod/mongodb", 27017);
    let uri = |user: &str, host: &str, more: &str| format!("mongodb://{user}{host}/?tls=true&authSource=admin{more}");
    let local = format!("localhost:{}", to_mongodb.port);
    let local_options = format!("&directConnection=true&tlsCAFile={}", authority.path("ca.crt"));
    let admin = async |uri: String, command: bson::Document| {
        let client = mongodb::Client::with_uri_str(uri).await.unwrap();
        client.database("admin").run_command(command).await.unwrap();
        client
    };
    let root = doc! {"createUser": "root", "pwd": "r", "roles": ["root"]};
    admin(uri("", &local, &local_options), root).await;
    let as_root = uri("root:r@", &local, &local_options);
    let user = |name: &str| doc! {"createUser": name, "pwd": "p", "roles": [{"role": "readWrite", "db": "sync"}]};
    let client = admin(as_root.clone(), user("old")).await;
    let users = client.database("sync").collection::<bson::Document>("users");
    users.insert_many((0..LONG).map(|id| doc! {"_id": id})).await.unwrap();

    kubectl(&format!("create secret generic redis --namespace {namespace} --from-literal=password=first"));
    let old = uri("old:p@", "mongodb:27017", "");
    kubectl(&format!("create secret generic mongodb --namespace {namespace} --from-literal=uri={old}"));
    let values = [
        "namespaced=true",
        "crds.enabled=false",
        "log.format=text",
        "redis.host=redis",
        "redis.tls.enabled=true",
        "redis.tls.caSecret=redis-ca",
        "redis.existingSecret=redis",
        "redis.passwordKey=password",
        "mongodb.existingSecret=mongodb",
        "mongodb.database=sync",
        "mongodb.tls.caSecret=mongodb-ca",
    ];
    Helm::V4.install(&namespace.0, "mine", CHART, &values).unwrap();
    assert_eq!(restarts(&namespace), 0);
    apply(&namespace.0, &slow_job("users"));
    wait_until_running(&namespace.0);

    // Redis accepts both passwords, and then only the new one.
    let to_redis = Forward::new(&namespace.0, "pod/redis", 6379);
    let connect = |password: &str| {
        let url = format!("rediss://:{password}@localhost:{}", to_redis.port).into_connection_info().unwrap();
        let root_cert = Some(std::fs::read(authority.path("ca.crt")).unwrap());
        let client = Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert }).unwrap();
        async move { client.get_multiplexed_async_connection().await.unwrap() }
    };
    let acl = |rule: &str| redis::cmd("ACL").arg("SETUSER").arg("default").arg(rule).to_owned();
    acl(">second").exec_async(&mut connect("first").await).await.unwrap();
    admin(as_root.clone(), user("new")).await;
    change(&namespace, "redis", "password", "second");
    change(&namespace, "mongodb", "uri", &uri("new:p@", "mongodb:27017", ""));
    // Two pods each: the controllers have both Secrets, and the API the Secret of Redis.
    eventually("the containers have restarted", || {
        trigger_sync(&namespace);
        (restarts(&namespace) >= 4).then_some(())
    });
    let mut connection = connect("second").await;
    acl("<first").exec_async(&mut connection).await.unwrap();
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("normal").exec_async(&mut connection).await.unwrap();
    admin(as_root, doc! {"dropUser": "old"}).await;

    assert_run_ends_without_loss(&namespace.0, &users).await;
    kubectl(&format!("rollout status deployment/mine-sync-operator --namespace {namespace} --timeout=120s"));
}
