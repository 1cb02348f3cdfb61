//! Worker processes that cannot claim runs, or are paused for a while.

use serde_json::json;
use sync_operator::domain::job::is_complete;

use crate::{
    servers::Redis,
    support::{Servers, TestEnv, apply_job, eventually, finished, get, probe_port, slow, wait_until_running},
};

/// Redis answers all commands of a worker except its claims.
#[tokio::test]
async fn a_worker_whose_claims_are_not_answered_is_not_ready() {
    let redis = Redis::start(&[]);
    redis.connect().await;
    let env = TestEnv::on(Servers { redis: redis.url(), ..Servers::shared() }).await;
    let mut worker = env.operator("worker", &[]);
    let port = probe_port(&worker).await;
    let readyz = async |code: u16, body: &str| {
        eventually(body, async || get(port, "/readyz").await.filter(|answer| *answer == (code, body.to_owned()))).await
    };
    readyz(200, r#"{"ready":true}"#).await;
    // Only claims use this command.
    redis.ask::<()>("ACL SETUSER default -zrange").await;
    readyz(503, r#"{"ready":false,"missing":["workers"]}"#).await;
    assert_eq!(env.queue().depth().await.unwrap().workers, 1, "the renewals are answered");
    assert_eq!(get(port, "/livez").await.unwrap().0, 200);
    redis.ask::<()>("ACL SETUSER default +zrange").await;
    readyz(200, r#"{"ready":true}"#).await;
    assert!(worker.is_running());
}

/// Scenario 16 of the fault list: a worker is paused for longer than its lease, and continues when another worker has
/// its run.
#[tokio::test]
async fn a_worker_paused_beyond_its_lease_writes_no_more() {
    const USERS: i32 = 3_000;
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let lease = ["--lease-duration", "2s"];
    let (_controller, _) = env.all(&[&lease[..], &["--workers", "0"]].concat());
    let first = env.operator("worker", &lease);
    let mut spec = slow();
    spec["target"] = json!({"filter": {"_id": {"$gte": 0}}});
    apply_job(&env, "run", spec).await;
    wait_until_running(&env, "run").await;
    first.signal("STOP");
    let second = env.operator("worker", &lease);
    eventually("the other worker has the run", async || second.log().contains("run claimed").then_some(())).await;
    first.signal("CONT");
    eventually("the first worker has lost its lease", async || first.log().contains("lease lost").then_some(())).await;

    let job = finished(&env, "run").await;
    let status = job.status.as_ref().unwrap();
    assert!(is_complete(&job), "{status:?}");
    let counts = status.counts.unwrap();
    let users = i64::from(USERS);
    assert_eq!((counts.processed, counts.updated, status.progress), (users, users, Some(100)));
    assert_eq!((status.attempts, status.recoveries), (Some(0), Some(1)));
    assert!(!first.log().contains("run completed"), "one worker ends a run");
}
