//! The program prints no part of a connection string that is in front of the host.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{Servers, TestEnv, eventually, get, probe_port, variable};

/// Connection strings that the program refuses.
const MALFORMED: [&str; 12] = [
    "u:S3cret@127.0.0.1",
    "mongodb://u:S3cret?x@127.0.0.1/",
    "mongodb://u:S3cret/x@127.0.0.1/",
    "mongodb://u:S3cret@x@127.0.0.1/",
    "mongodb://u:S3cret%zz@127.0.0.1/",
    "mongodb://u:S3cret@",
    "mongodb://u:S3cret",
    "mongodb+srv://u:S3cret#x@127.0.0.1/",
    "redis://u:S3cret?x@127.0.0.1/",
    "rediss://u:S3cret/x@127.0.0.1/",
    "redis+sentinel://u:S3cret?x@127.0.0.1:1/main",
    "redis+cluster://u:S3cret/x@127.0.0.1:1",
];

#[tokio::test]
async fn a_malformed_connection_string_is_refused_and_not_shown() {
    for text in MALFORMED {
        let is_redis = text.starts_with("redis");
        let (redis, mongodb) = if is_redis { (text, "mongodb://127.0.0.1:1") } else { ("redis://127.0.0.1:1", text) };
        let commands = [vec!["worker"], vec!["controller"], vec!["run", "manifests/samples/one-off.yaml"]];
        for args in commands.iter().filter(|args| !is_redis || args[0] != "run") {
            let mut program = Command::new(env!("CARGO_BIN_EXE_sync-operator"));
            program.args(args).env("REDIS_URL", redis).env("MONGODB_URI", mongodb).env("MONGODB_DATABASE", "db");
            program.env("METRICS_PORT", "0").env("KUBECONFIG", variable("KUBECONFIG")).env("RUST_LOG", "trace");
            let ended = program.stdin(Stdio::null()).output().unwrap();
            let printed = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
            assert_eq!(ended.status.code(), Some(2), "{text}: {printed}");
            assert!(!printed.contains("S3cret"), "{args:?}: {text}: {printed}");
        }
    }
}

#[tokio::test]
async fn unavailable_servers_are_reported_without_credentials() {
    let env = TestEnv::new().await;
    let away = |scheme: &str| format!("{scheme}://S3cret:S3cret@127.0.0.1:1");
    let servers =
        Servers { redis: format!("{}/main", away("redis+sentinel")), mongodb: away("mongodb"), ..env.servers.clone() };
    let operator = env.operator_on(&servers, "controller", &[]);
    let port = probe_port(&operator).await;
    env.jobs().create(&kube::api::PostParams::default(), &job()).await.unwrap();
    let job = eventually("the SyncJob reports that Redis is unavailable", async || {
        let job = serde_json::to_string(&env.jobs().get("away").await.unwrap()).unwrap();
        job.contains("QueueUnavailable").then_some(job)
    });
    let log = eventually("both are unavailable", async || {
        let log = operator.log();
        (log.contains("Redis is unavailable") && log.contains("MongoDB is unavailable")).then_some(log)
    });
    for text in [job.await, log.await, get(port, "/readyz").await.unwrap().1, get(port, "/metrics").await.unwrap().1] {
        assert!(!text.contains("S3cret"), "{text}");
    }
}

fn job() -> sync_operator::api::SyncJob {
    let spec =
        json!({"apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "metadata": {"name": "away"}, "spec": {}});
    serde_json::from_value(spec).unwrap()
}
