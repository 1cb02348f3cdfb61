//! The messages that a user gets for wrong values and unusable servers.

use std::thread;

use serde_json::Value;

use super::{
    release::{CHART, Helm, install_only_crds},
    servers::{Authority, mongodb, redis},
    support::{Forward, Namespace, eventually, get, kubectl, lock_cluster, try_call},
};

#[test]
fn helm_refuses_wrong_values_with_advice() {
    let _lock = lock_cluster();
    install_only_crds();
    let namespace = Namespace::new("refused");
    kubectl(&format!("create secret generic there --namespace {namespace} --from-literal=password=x"));
    let own = ["namespaced=true", "crds.enabled=false", "bundled.mongodb.enabled=true"];
    for (values, said) in [
        (&["controler.replicas=1"][..], "controler"),
        (&["controller.replica=1"], "replica"),
        (&["controller.replicas=x"], "replicas"),
        (&[], "redis: no address is set"),
        (&["redis.host=r", "redis.url=redis://r"], "Set only one of"),
        (&["redis.existingSecret=gone", "redis.urlKey=url"], "kubectl create secret generic gone"),
        (
            &["redis.existingSecret=there", "redis.urlKey=url"],
            r#"Secret there has no key "url". Its keys are: password"#,
        ),
        (&["redis.host=r", "redis.tls.caSecret=gone"], "redis.tls.caSecret: Secret gone not found"),
    ] {
        for helm in [Helm::V3, Helm::V4] {
            let refused = helm.install(&namespace.0, "mine", CHART, &[&own[..], values].concat()).unwrap_err();
            assert!(refused.contains(said), "{values:?}: {refused}");
        }
    }
}

/// Installs the chart with values that keep the controller unready. Waits until its readiness names `server` as missing
/// and its log has `reason`, and returns the log. No container may have restarted.
fn not_ready(namespace: &Namespace, release: &str, values: &[String], server: &str, reason: &str) -> String {
    let own = ["namespaced=true", "crds.enabled=false", "log.format=text", "controller.replicas=1"];
    let values: Vec<_> = own.into_iter().chain(values.iter().map(String::as_str)).collect();
    let refused = Helm::V4.install_within("10s", &namespace.0, release, CHART, &values);
    assert!(refused.is_err(), "helm --wait does not wait for readiness");
    let labels = format!("app.kubernetes.io/instance={release},app.kubernetes.io/component=controller");
    let pods = get(&format!("pods --namespace {namespace} -l {labels}"));
    let pod = pods["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let missing = server.to_lowercase();
    eventually(&format!("readiness names {missing}"), || {
        // A forward to a container that does not listen yet fails permanently.
        let metrics = Forward::new(&namespace.0, &format!("pod/{pod}"), 9090);
        let (code, readiness) = try_call(metrics.port, "GET", "/readyz", None).ok()?;
        (code == 503 && readiness["missing"][0] == missing).then_some(())
    });
    // On a busy node, the first reason may be a timeout. The log has a line for each further reason.
    let log = eventually(&format!("the log says {reason} of {server}"), || {
        let log = kubectl(&format!("logs --namespace {namespace} pod/{pod} --container controller"));
        let says = log.lines().any(|line| line.contains(&format!("{server} is")) && line.contains(reason));
        says.then_some(log)
    });
    let pod: Value = get(&format!("pod {pod} --namespace {namespace}"));
    for container in pod["status"]["containerStatuses"].as_array().unwrap() {
        assert_eq!(container["restartCount"], 0, "{container}");
    }
    Helm::V4.run(&["uninstall", release, "--namespace", &namespace.0]).unwrap();
    log
}

#[test]
fn an_unusable_server_is_reported_in_log_and_readiness() {
    let _lock = lock_cluster();
    install_only_crds();
    let namespace = Namespace::new("unusable");
    let (authority, stranger) = (Authority::new("ours"), Authority::new("theirs"));
    redis(&namespace, &authority, "right");
    mongodb(&namespace, &authority);
    let ca = stranger.path("ca.crt");
    kubectl(&format!("create secret generic stranger --namespace {namespace} --from-file=ca.crt={ca}"));
    let with = |name: &str, key: &str, value: &str| {
        kubectl(&format!("create secret generic {name} --namespace {namespace} --from-literal={key}={value}"));
    };
    with("redis-wrong", "url", "rediss://:wrong@redis:6379");
    with("redis-right", "url", "rediss://:right@redis:6379");
    // No server listens on this port.
    let address = kubectl(&format!("get pod redis --namespace {namespace} -o jsonpath={{.status.podIP}}"));
    with("redis-nowhere", "url", &format!("redis://{address}:6380"));
    with("mongodb-wrong", "uri", "mongodb://nobody:wrong@mongodb:27017/?tls=true");

    let redis_secret = |name: &str, ca: &str| {
        let tls = format!("redis.tls.caSecret={ca}");
        let values = [format!("redis.existingSecret={name}"), "redis.urlKey=url".to_owned(), tls];
        values.into_iter().filter(|value| !value.ends_with('=')).collect::<Vec<_>>()
    };
    let mongodb_secret = |ca: &str| {
        let tls = format!("mongodb.tls.caSecret={ca}");
        vec!["mongodb.existingSecret=mongodb-wrong".to_owned(), "mongodb.database=sync".to_owned(), tls]
    };
    let mistakes = [
        ("Redis", "connection refused", redis_secret("redis-nowhere", ""), mongodb_secret("mongodb-ca")),
        ("Redis", "password", redis_secret("redis-wrong", "redis-ca"), mongodb_secret("mongodb-ca")),
        ("Redis", "certificate", redis_secret("redis-right", "stranger"), mongodb_secret("mongodb-ca")),
        ("MongoDB", "the user or the password", redis_secret("redis-right", "redis-ca"), mongodb_secret("mongodb-ca")),
        ("MongoDB", "certificate", redis_secret("redis-right", "redis-ca"), mongodb_secret("stranger")),
    ];
    let namespace = &namespace;
    // The installations run concurrently, because they wait most of the time.
    thread::scope(|scope| {
        for (at, (server, reason, redis, mongodb)) in mistakes.into_iter().enumerate() {
            scope.spawn(move || {
                let log = not_ready(namespace, &format!("mine-{at}"), &[redis, mongodb].concat(), server, reason);
                assert!(!log.contains("right") && !log.contains(":wrong"), "{log}");
            });
        }
    });
}
