//! Redis loses its data, fails over to a replica with older data, or is full, during runs.

use std::time::Duration;

use bson::{DateTime, doc};
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, syncjob::Phase},
    domain::{conditions::find, job::is_complete},
};

use crate::{
    servers::{Redis, SentinelRedis},
    support::{
        Servers, TestEnv, add_redis_user, apply_job, eventually, finished, lines, slow_on, wait_for_phase,
        wait_until_running,
    },
};

const USERS: i32 = 5_000;
const ARGS: [&str; 4] = ["--lease-duration", "2s", "--resync-interval", "1s"];

async fn env(redis: String) -> TestEnv {
    let env = TestEnv::on(Servers { redis, ..Servers::shared() }).await;
    env.seed(USERS, 0).await;
    env
}

/// A spec of a run that takes some seconds, and stamps this field.
fn spec_on(field: &str) -> Value {
    let mut spec = slow_on(field);
    spec["batchSize"] = json!(2);
    spec
}

/// The run is complete, no attempt was spent, and each document carries its start.
async fn assert_done(env: &TestEnv, job: &SyncJob, field: &str) {
    let status = job.status.as_ref().unwrap();
    assert!(is_complete(job), "{field}: {status:?}");
    let (counts, users) = (status.counts.unwrap(), i64::from(USERS));
    assert_eq!((counts.processed, counts.updated, counts.failed), (users, users, 0), "{field}");
    assert_eq!(status.attempts, Some(0), "{field}");
    let start = DateTime::from_millis(status.start_time.as_ref().unwrap().0.as_millisecond());
    assert_eq!(env.count(doc! {field: start}).await, USERS as u64, "{field}");
}

/// Scenario 7 of the fault list.
#[tokio::test]
async fn redis_loses_all_data_during_a_run() {
    let redis = Redis::start(&[]);
    redis.connect().await;
    let env = env(redis.url()).await;
    let (operator, _) = env.all(&ARGS);
    apply_job(&env, "run", spec_on("lastSynced")).await;
    wait_until_running(&env, "run").await;
    let before = env.jobs().get("run").await.unwrap().status.unwrap();
    redis.ask::<()>("FLUSHALL").await;
    eventually("the worker logs the lost lease", async || operator.log().contains("lease lost").then_some(())).await;
    let job = finished(&env, "run").await;
    assert_done(&env, &job, "lastSynced").await;
    assert_eq!(job.status.unwrap().start_time, before.start_time);
    assert_eq!(lines(&operator.log(), "run enqueued"), 2);
}

/// Scenario 8 of the fault list: writes that Redis acknowledged, and that the replica lacks, are lost in a failover:
/// the claim of one run, the end of another run, and all data of a third run.
#[tokio::test]
async fn a_failover_of_redis_loses_acknowledged_writes() {
    let mut watched = SentinelRedis::start(Duration::from_secs(2)).await;
    let env = env(watched.url()).await;
    let (operator, _) = env.all(&ARGS);
    apply_job(&env, "before", spec_on("before")).await;
    for name in ["claimed", "ended"] {
        let mut spec = if name == "claimed" { spec_on(name) } else { json!({"syncType": "Full"}) };
        spec["suspended"] = json!(true);
        apply_job(&env, name, spec).await;
        wait_for_phase(&env, name, Phase::Suspended).await;
    }
    wait_until_running(&env, "before").await;
    let parked = format!("ZCARD {{sync:{}}}:parked", env.name);
    eventually("the replica has both", async || (watched.replica.ask::<i64>(&parked).await == 2).then_some(())).await;
    for setting in ["masteruser nobody", "masterauth wrong"] {
        watched.replica.ask::<()>(&format!("CONFIG SET {setting}")).await;
    }
    watched.master.ask::<()>("CLIENT KILL TYPE replica").await;
    eventually("the replica falls behind", async || {
        watched.replica.ask::<String>("INFO replication").await.contains("master_link_status:down").then_some(())
    })
    .await;

    for name in ["claimed", "ended"] {
        env.patch_job(name, json!({"suspended": false})).await;
    }
    apply_job(&env, "made", spec_on("made")).await;
    let ended = finished(&env, "ended").await;
    for name in ["claimed", "made"] {
        wait_until_running(&env, name).await;
    }
    watched.master.kill();

    for name in ["before", "claimed", "made"] {
        assert_done(&env, &finished(&env, name).await, name).await;
    }
    assert!(lines(&operator.log(), "lease lost") >= 1, "the worker of a lost claim is notified");
    assert_eq!(env.jobs().get("ended").await.unwrap().status, ended.status, "an end is final");
}

/// Scenario 10 of the fault list.
#[tokio::test]
async fn a_full_redis_is_reported() {
    let redis = Redis::start(&["--maxmemory-policy", "allkeys-lru"]);
    redis.connect().await;
    let env = env(redis.url()).await;
    let (operator, _) = env.all(&ARGS);
    eventually("the policy is reported", async || operator.log().contains("noeviction").then_some(())).await;
    for setting in ["maxmemory-policy noeviction", "maxmemory 1"] {
        redis.ask::<()>(&format!("CONFIG SET {setting}")).await;
    }
    apply_job(&env, "run", json!({"syncType": "Full"})).await;
    let condition = eventually("the SyncJob reports the error", async || {
        let status = env.jobs().get("run").await.ok()?.status?;
        find(&status.conditions, "Reconciling").filter(|found| found.reason == "QueueUnavailable").cloned()
    })
    .await;
    assert!(condition.message.contains("OOM: its memory is full"), "{}", condition.message);
    eventually("the log reports failed writes", async || {
        (lines(&operator.log(), "writing to Redis is unavailable") == 1).then_some(())
    })
    .await;
    redis.ask::<()>("CONFIG SET maxmemory 0").await;
    assert!(is_complete(&finished(&env, "run").await));
    let log = operator.log();
    let counts =
        ["writing to Redis is unavailable", "writing to Redis is available again", "WARN Redis is unavailable"]
            .map(|text| lines(&log, text));
    assert_eq!(counts, [1, 1, 0], "{log}");
}

/// The documented rights are enough, also for the end of a run. A missing right is reported.
#[tokio::test]
async fn a_missing_right_in_redis_is_reported() {
    let redis = Redis::start(&[]);
    redis.connect().await;
    let mut env = env(redis.url()).await;
    add_redis_user(&redis.url(), &env.name).await;
    let port = redis.port;
    env.servers.redis = format!("redis://{}:password@127.0.0.1:{port}", env.name);
    let (operator, _) = env.all(&ARGS);
    apply_job(&env, "before", json!({"syncType": "Full"})).await;
    assert!(is_complete(&finished(&env, "before").await));
    let refused: Vec<redis::Value> = redis.ask("ACL LOG").await;
    assert!(refused.is_empty(), "{refused:?}");

    redis.ask::<()>(&format!("ACL SETUSER {} -hset", env.name)).await;
    apply_job(&env, "run", json!({"syncType": "Full"})).await;
    let condition = eventually("the SyncJob reports the error", async || {
        let status = env.jobs().get("run").await.ok()?.status?;
        find(&status.conditions, "Reconciling").filter(|found| found.reason == "QueueUnavailable").cloned()
    })
    .await;
    assert!(condition.message.contains("NOPERM: its user lacks a right"), "{}", condition.message);
    eventually("it is logged", async || operator.log().contains("NOPERM: its user lacks a right").then_some(())).await;
    redis.ask::<()>(&format!("ACL SETUSER {} +hset", env.name)).await;
    assert!(is_complete(&finished(&env, "run").await));
}

/// A replica refuses writes. The log distinguishes it from a Redis that does not answer.
#[tokio::test]
async fn a_read_only_redis_is_reported() {
    let redis = Redis::start(&[]);
    redis.connect().await;
    let env = env(redis.url()).await;
    let (operator, _) = env.all(&ARGS);
    apply_job(&env, "before", json!({"syncType": "Full"})).await;
    assert!(is_complete(&finished(&env, "before").await));
    redis.ask::<()>("REPLICAOF 127.0.0.1 1").await;
    eventually("it is logged", async || {
        operator.log().contains("READONLY: it is a replica, which accepts no writes").then_some(())
    })
    .await;
    redis.ask::<()>("REPLICAOF NO ONE").await;
    apply_job(&env, "run", json!({"syncType": "Full"})).await;
    assert!(is_complete(&finished(&env, "run").await));
}
