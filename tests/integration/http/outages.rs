//! Answers of the sidecar while Redis or the API server is unavailable.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    http::Sidecar,
    servers::DedicatedServer,
    support::{TestEnv, apply_schedule, eventually},
};

/// Time for which Prometheus or a load balancer waits for an answer.
const SOON: Duration = Duration::from_secs(2);

async fn wait_for_health(sidecar: &Sidecar, missing: &str) {
    eventually(&format!("/health names {missing}"), async || {
        let asked = Instant::now();
        let answer = sidecar.get("/health").await;
        let took = asked.elapsed();
        assert!(took < SOON, "{took:?}");
        let named = answer.body["missing"].as_array()?.iter().any(|what| what == missing);
        (answer.code == 503 && named).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_redis_the_last_counts_are_shown_with_their_time() {
    let (redis, servers) = DedicatedServer::up("redis");
    let env = TestEnv::on(servers).await;
    let sidecar = Sidecar::open(&env).await;
    let before = sidecar.get("/jobs/status").await.body;
    assert_eq!(before["counts"]["active"], 0);
    redis.stop();
    wait_for_health(&sidecar, "redis").await;
    eventually("the time of the queue does not change", async || {
        let status = sidecar.get("/jobs/status").await;
        assert_eq!(status.code, 200);
        assert_eq!(status.body["counts"]["active"], 0);
        (status.body["asOf"]["queue"].as_str()? < status.body["asOf"]["objects"].as_str()?).then_some(())
    })
    .await;
    redis.start();
    eventually("Redis is available again", async || {
        let status = sidecar.get("/jobs/status").await.body;
        (status["asOf"]["queue"] == status["asOf"]["objects"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_the_api_server_reads_work_and_writes_are_refused() {
    let (kube, servers) = DedicatedServer::up("kube");
    kube.install_crds();
    let env = TestEnv::on(servers).await;
    let sidecar = Sidecar::open(&env).await;
    apply_schedule(&env, "users", json!({"suspended": true})).await;
    eventually("the sidecar has seen the schedule", async || {
        let status = sidecar.get("/jobs/status").await.body;
        (status["repeatable"].as_array()?.len() == 1).then_some(())
    })
    .await;
    kube.stop();
    wait_for_health(&sidecar, "kubernetes").await;
    let status = sidecar.get("/jobs/status").await;
    assert_eq!((status.code.as_u16(), &status.body["repeatable"][0]["name"]), (200, &json!("users")));
    for path in ["/jobs/trigger/user-sync", "/jobs/pause", "/jobs/resume"] {
        let answer = sidecar.post_with(path, Value::Null, &[("idempotency-key", "once")]).await;
        assert_eq!(answer.problem(), (503, "unavailable"), "{path}");
        assert_eq!(answer.headers["retry-after"], "5");
    }
    eventually("the answer is marked as stale", async || {
        let status = sidecar.get("/jobs/status").await.body;
        (status["asOf"]["objects"].as_str()? < status["asOf"]["queue"].as_str()?).then_some(())
    })
    .await;
    kube.start();
    let answer = eventually("a call with the same key creates the run", async || {
        let answer = sidecar.post_with("/jobs/trigger/user-sync", Value::Null, &[("idempotency-key", "once")]).await;
        (answer.code == 202).then_some(answer)
    })
    .await;
    let jobs = env.jobs().list(&kube::api::ListParams::default()).await.unwrap().items;
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].metadata.name.as_deref(), answer.body["name"].as_str());
}
