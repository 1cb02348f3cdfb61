//! MongoDBs that namespaces bring, on servers of their own.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bson::{Document, doc};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    certificates::Authority,
    servers::MongoDb,
    sources::with,
    support::{ALLOWED, TestEnv, counts, ended, eventually, run, secret},
    tenants::PolicyFile,
    upstream::{Peculiar, Upstream},
};

/// A policy that lets a namespace bring MongoDBs at `localhost`.
fn localhost(namespace: &str) -> PolicyFile {
    PolicyFile::new(&format!("tenants: [{{name: team, namespaces: [{namespace}], mongodbHosts: [localhost]}}]"))
}

/// A full run without retries on the MongoDB of the Secret `name`, with the collection `users`.
fn full(name: &str) -> Value {
    let target = json!({"uriSecretRef": {"name": name, "key": "uri"}});
    json!({"syncType": "Full", "backoffLimit": 0, "target": target})
}

/// Starts a server that needs a login, and creates users with the password `first`, and documents in `crm.users`.
async fn with_users(args: &[&str], users: &[&str]) -> MongoDb {
    let mongodb = MongoDb::start(&[&["--auth"], args].concat());
    mongodb.run("", doc! {"createUser": "admin", "pwd": "secret", "roles": ["root"]}).await;
    for user in users {
        create_user(&mongodb, user, "first").await;
    }
    documents(&mongodb, "admin:secret@").await.insert_many((0..5).map(|id| doc! {"_id": id})).await.unwrap();
    mongodb
}

async fn create_user(mongodb: &MongoDb, user: &str, password: &str) {
    let roles = [doc! {"role": "readWrite", "db": "crm"}];
    mongodb.run("admin:secret@", doc! {"createUser": user, "pwd": password, "roles": &roles[..]}).await;
}

async fn documents(mongodb: &MongoDb, user: &str) -> mongodb::Collection<Document> {
    let client = mongodb::Client::with_uri_str(mongodb.url(user)).await.unwrap();
    client.database("crm").collection("users")
}

async fn uri_secret(env: &TestEnv, name: &str, uri: &str, hosts: &str) {
    secret(env, name, &[("uri", uri)], hosts).await;
}

#[tokio::test]
async fn a_run_stamps_the_mongodb_of_its_namespace() {
    let (authority, other) = (Authority::new(), Authority::new());
    let certificate = authority.certify().in_one_file();
    let tls = ["--tlsMode", "allowTLS", "--tlsCertificateKeyFile", certificate.to_str().unwrap()];
    let (mongodb, env) = (with_users(&tls, &["sync"]).await, TestEnv::new().await);
    env.seed(3, 0).await;
    let here = format!("localhost:{}", mongodb.port());
    let uri = |login: &str, options: &str| format!("mongodb://{login}@{here}/crm?authSource=admin&{options}");
    let plain = format!("mongodb://{here}");
    uri_secret(&env, "tls", &uri("sync:first", "tls=true&maxPoolSize=3"), &here).await;
    uri_secret(&env, "plain", &uri("sync:first", "directConnection=true&w=majority"), &plain).await;
    uri_secret(&env, "wrong", &uri("sync:second", "tls=true"), &here).await;
    uri_secret(&env, "elsewhere", &uri("sync:first", "tls=true"), &format!("{plain},localhost:1")).await;
    uri_secret(&env, "nowhere", &uri("sync:first", "tls=true"), "").await;
    uri_secret(&env, "bare", &format!("mongodb://{here}/?tls=true"), &here).await;
    secret(&env, "ca", &[("ca.crt", &authority.pem())], &format!("{here},{plain}")).await;
    secret(&env, "other", &[("ca.crt", &other.pem())], &here).await;
    secret(&env, "unbound", &[("ca.crt", &authority.pem())], "").await;
    let file = localhost(&env.name);
    let (operator, _) = env.all(&[&ALLOWED[..], &["--policy-file", file.path()]].concat());
    let stamped = async || {
        let users = documents(&mongodb, "admin:secret@").await;
        users.count_documents(doc! {"lastSynced": {"$type": "date"}}).await.unwrap()
    };

    for (name, authority, reason, message) in [
        ("tls", None, "Unreachable", "its certificate is not trusted"),
        ("tls", Some("other"), "Unreachable", "its certificate is not trusted"),
        (
            "tls",
            Some("unbound"),
            "InvalidTarget",
            "host 1 of the connection string in Secret tls is not in the annotation",
        ),
        ("wrong", Some("ca"), "Un", "the user or the password"),
        ("plain", Some("ca"), "InvalidTarget", "does not use TLS, so target.caSecretRef has no effect"),
        ("elsewhere", Some("ca"), "InvalidTarget", "is not in the annotation sync.codex.dev/hosts of Secret elsewhere"),
        ("nowhere", Some("ca"), "InvalidTarget", "is not in the annotation sync.codex.dev/hosts of Secret nowhere"),
        (
            "bare",
            Some("ca"),
            "InvalidTarget",
            "target.database is not set, and the connection string names none: set it",
        ),
        ("missing", None, "InvalidTarget", "there is no Secret missing"),
    ] {
        let mut spec = full(name);
        if let Some(authority) = authority {
            spec["target"]["caSecretRef"] = json!({"name": authority, "key": "ca.crt"});
        }
        let status = run(&env, &format!("{name}-{}", authority.unwrap_or("none")), spec).await;
        let last = &status.attempt_history[0];
        let is_expected = last.reason.starts_with(reason) && last.message.contains(message);
        assert!(is_expected, "{name} {authority:?}: {}: {}", last.reason, last.message);
    }
    assert_eq!(stamped().await, 0);

    let mut encrypted = full("tls");
    encrypted["target"]["caSecretRef"] = json!({"name": "ca", "key": "ca.crt"});
    for (name, spec, count) in [("encrypted", encrypted, 5), ("unencrypted", full("plain"), 5)] {
        let status = run(&env, name, spec).await;
        assert_eq!((ended(&status).0, counts(&status)), ("Completed", (5, 0, 0)), "{name}: {:?}", ended(&status));
        assert_eq!(stamped().await, count);
    }
    assert_eq!(env.count(doc! {"lastSynced": {"$exists": true}}).await, 0, "the shared MongoDB is unchanged");
    let log = operator.log();
    assert!(!log.contains("sync:first") && !log.contains("@localhost"), "the log has no connection string");
}

#[tokio::test]
async fn an_own_mongodb_needs_an_entry_of_the_policy() {
    let (env, port) = (TestEnv::new().await, "27017");
    uri_secret(&env, "own", &format!("mongodb://u:S3cret@localhost:{port}/crm"), "mongodb://localhost").await;
    let mentions = |text: &str| format!("tenants: [{{name: team, namespaces: [{}]{text}}}]", env.name);
    let file = PolicyFile::new("{}");
    let (operator, _) = env.all(&["--policy-file", file.path()]);
    let missing =
        format!("target.uriSecretRef is not allowed for namespace {}: add an entry with mongodbHosts", env.name);
    let other = format!(
        "host 1 of the connection string in Secret own is not allowed for namespace {}: add it to tenants team, mongodbHosts",
        env.name
    );
    for (name, policy, reason, message) in [
        ("none", None, "NotAllowed", &*missing),
        ("rights", Some(mentions(", mongodb: {collections: [\"*\"]}")), "NotAllowed", &missing),
        ("other", Some(mentions(", mongodbHosts: [\"*.localhost\", db.example]")), "NotAllowed", &other),
        (
            "address",
            Some(mentions(", mongodbHosts: [localhost]")),
            "InvalidTarget",
            "host localhost is at a loopback address",
        ),
    ] {
        if let Some(policy) = policy {
            file.replace(&policy, &operator, "the new policy applies").await;
        }
        let status = run(&env, name, full("own")).await;
        let (found, text) = ended(&status);
        assert!(found == reason && text.starts_with(message), "{name}: {found}: {text}");
    }
    assert!(!operator.log().contains("S3cret"));
}

#[tokio::test]
async fn an_oidc_string_makes_no_connection() {
    let (env, listener) = (TestEnv::new().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let here = format!("localhost:{}", listener.local_addr().unwrap().port());
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    for (name, options) in [
        ("oidc", "authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:k8s,TOKEN_RESOURCE:x"),
        ("files", "tlsCAFile=/var/run/secrets/kubernetes.io/serviceaccount/token"),
        ("proxy", "proxyHost=localhost"),
    ] {
        uri_secret(&env, name, &format!("mongodb://{here}/crm?{options}"), &format!("mongodb://{here}")).await;
    }
    let file = localhost(&env.name);
    let (_operator, _) = env.all(&[&ALLOWED[..], &["--policy-file", file.path()]].concat());
    for (name, option, fix) in [
        ("oidc", "authMechanism=MONGODB-OIDC", "use SCRAM"),
        ("files", "tlsCAFile", "remove it"),
        ("proxy", "proxyHost", "remove it"),
    ] {
        let status = run(&env, name, full(name)).await;
        let expected =
            format!("the connection string in Secret {name} has the option {option}, which is not allowed: {fix}");
        assert_eq!(ended(&status), ("InvalidTarget", expected.as_str()));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 0);
}

/// A replica set of one member, which calls itself by `host`.
async fn replica_set(host: &str) -> MongoDb {
    let mongodb = MongoDb::start(&["--replSet", "own"]);
    let members = [doc! {"_id": 0, "host": format!("{host}:{}", mongodb.port())}];
    mongodb.run("", doc! {"replSetInitiate": {"_id": "own", "members": &members[..]}}).await;
    eventually("the member is the primary", async || {
        let hello = mongodb.run("", doc! {"hello": 1}).await;
        hello.get_bool("isWritablePrimary").unwrap().then_some(())
    })
    .await;
    mongodb
}

#[tokio::test]
async fn a_host_that_a_server_names_is_refused() {
    let (env, mongodb) = (TestEnv::new().await, replica_set("127.0.0.1").await);
    let here = format!("localhost:{}", mongodb.port());
    uri_secret(&env, "own", &format!("mongodb://{here}/crm?replicaSet=own"), &format!("mongodb://{here}")).await;
    let file = localhost(&env.name);
    let (_operator, _) = env.all(&[&ALLOWED[..], &["--policy-file", file.path()]].concat());
    let status = run(&env, "run", full("own")).await;
    let (reason, message) = ended(&status);
    let expected = format!("host 127.0.0.1, which the server names, is not allowed for namespace {}: ", env.name);
    assert!(reason == "InvalidTarget" && message.starts_with(&expected), "{reason}: {message}");
}

#[tokio::test]
async fn a_rotated_connection_string_is_read_again() {
    let (env, mongodb) = (TestEnv::new().await, with_users(&[], &["sync"]).await);
    let here = format!("localhost:{}", mongodb.port());
    let uri = |login: &str| format!("mongodb://{login}@{here}/crm?authSource=admin");
    uri_secret(&env, "own", &uri("sync:first"), &format!("mongodb://{here}")).await;
    let file = localhost(&env.name);
    let (_operator, _) = env.all(&[&ALLOWED[..], &["--policy-file", file.path()]].concat());
    assert_eq!(counts(&run(&env, "first", full("own")).await), (5, 0, 0));

    mongodb.run("admin:secret@", doc! {"dropUser": "sync"}).await;
    create_user(&mongodb, "sync2", "second").await;
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.name);
    let patch = Patch::Merge(json!({"stringData": {"uri": uri("sync2:second")}}));
    secrets.patch("own", &PatchParams::default(), &patch).await.unwrap();
    let status = run(&env, "second", full("own")).await;
    assert_eq!((ended(&status).0, counts(&status)), ("Completed", (5, 0, 0)), "{:?}", ended(&status));
}

#[tokio::test]
async fn a_rollback_restores_the_own_mongodb() {
    let (env, mongodb) = (TestEnv::new().await, replica_set("localhost").await);
    let upstream = Upstream::with_people(20).await;
    upstream.state().users = [("17".to_owned(), Peculiar::Broken)].into();
    let users = documents(&mongodb, "").await;
    users.insert_many((0..20).map(|id| doc! {"_id": id, "name": "old"})).await.unwrap();
    let here = format!("localhost:{}", mongodb.port());
    uri_secret(&env, "own", &format!("mongodb://{here}/crm?replicaSet=own"), &format!("mongodb://{here}")).await;
    let file = localhost(&env.name);
    let (_operator, _) = env.all(&[&ALLOWED[..], &["--policy-file", file.path()]].concat());
    let mut spec = with(&upstream, &json!({}));
    for (field, value) in full("own").as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec["transaction"] = json!("Batch");
    spec["batchSize"] = json!(5);
    spec["onFailure"] = json!("Rollback");
    spec["failurePolicy"] = json!({"maxFailedPercent": 1});
    let status = run(&env, "run", spec).await;
    let (reason, message) = ended(&status);
    assert!(reason == "TooManyFailed" && message.ends_with("; 19 documents were restored"), "{reason}: {message}");
    assert_eq!(users.count_documents(doc! {"name": "old", "_sync": {"$exists": false}}).await.unwrap(), 20);
    for database in [mongodb_database(&users).await, env.database.list_collection_names().await.unwrap()] {
        assert!(!database.iter().any(|name| name.starts_with("sync_journal.")), "{database:?}");
    }
}

async fn mongodb_database(users: &mongodb::Collection<Document>) -> Vec<String> {
    users.client().database("crm").list_collection_names().await.unwrap()
}
