//! Servers that are unavailable at the start, or stopped for 20 s during a run.

use std::{collections::HashSet, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, api::ListParams};
use serde_json::json;
use sync_operator::{
    api::{SLOT_ANNOTATION, SyncJob},
    domain::{
        job::{is_complete, is_finished},
        run::State,
    },
};
use tokio::time::sleep;

use crate::{
    servers::DedicatedServer,
    support::{
        Servers, TestEnv, apply_job, apply_schedule, eventually, finished, get, leader_of, leads, lines,
        quiet_interval, replicas, slow, wait_until_running,
    },
};

const OUTAGE: Duration = Duration::from_secs(20);
const USERS: i32 = 3_000;

fn assert_complete(job: &SyncJob) {
    let status = job.status.as_ref().unwrap();
    assert!(is_complete(job), "{status:?}");
    let counts = status.counts.unwrap();
    assert_eq!((counts.processed, counts.updated), (i64::from(USERS), i64::from(USERS)));
}

/// Scenario 9 of the fault list.
#[tokio::test]
async fn redis_is_unavailable_during_a_run() {
    let (redis, servers) = DedicatedServer::up("redis");
    let env = TestEnv::on(servers).await;
    env.seed(USERS, 0).await;
    let (mut operator, port) = env.all(&[]);
    apply_schedule(&env, "hourly", json!({"interval": quiet_interval(60)})).await;
    apply_job(&env, "run", slow()).await;
    wait_until_running(&env, "run").await;
    redis.stop();

    eventually("/health names redis", async || {
        get(port, "/health").await.filter(|(code, body)| *code == 503 && body.contains(r#""missing":["redis"]"#))
    })
    .await;
    let (code, body) = get(port, "/jobs/status").await.unwrap();
    assert!(code == 200 && body.contains(r#""active":null"#), "{code} {body}");
    let schedules = env.schedules();
    let ready = async |status: &str, reason: &str| {
        eventually(reason, async || {
            let conditions = schedules.get("hourly").await.ok()?.status?.conditions;
            conditions.into_iter().find(|c| c.type_ == "Ready" && c.status == status && c.reason == reason)
        })
        .await
    };
    ready("False", "QueueUnavailable").await;
    sleep(OUTAGE).await;
    assert!(operator.is_running());
    redis.start();
    ready("True", "Scheduled").await;

    assert_complete(&finished(&env, "run").await);
    let log = operator.log();
    assert!(lines(&log, "Redis is unavailable") <= 2, "one line for each part that uses Redis:\n{log}");
    assert!(lines(&log, "Redis is available again") >= 1, "{log}");
}

#[tokio::test]
async fn mongodb_is_unavailable_during_a_run() {
    let (mongodb, servers) = DedicatedServer::up("mongodb");
    let env = TestEnv::on(servers).await;
    env.seed(USERS, 0).await;
    let (mut operator, _) = env.all(&[]);
    let mut spec = slow();
    spec["backoff"] = json!({"initial": "5s", "jitter": 0.0});
    apply_job(&env, "run", spec).await;
    wait_until_running(&env, "run").await;
    mongodb.stop();
    let jobs = env.jobs();
    eventually("the run waits for its next attempt, with the reason", async || {
        let conditions = jobs.get("run").await.ok()?.status?.conditions;
        conditions.into_iter().find(|c| c.reason == "Retrying" && c.message.contains("MongoDB"))
    })
    .await;
    sleep(OUTAGE).await;
    assert!(operator.is_running());
    mongodb.start();

    let job = finished(&env, "run").await;
    assert_complete(&job);
    let status = job.status.unwrap();
    assert!(status.attempts >= Some(1));
    assert_eq!(status.attempt_history.len() as i32, status.attempts.unwrap());
    assert_eq!(lines(&operator.log(), "attempt failed"), status.attempt_history.len());
}

#[tokio::test]
async fn the_api_server_is_unavailable_during_a_run() {
    let (kube, servers) = DedicatedServer::up("kube");
    kube.install_crds();
    let env = TestEnv::on(servers).await;
    env.seed(USERS, 0).await;
    let (mut operator, port) = env.all(&[]);
    apply_job(&env, "run", slow()).await;
    wait_until_running(&env, "run").await;
    // The storage of a CRD may start after the operator. This is not the outage of this test.
    let (away, back) = ("the Kubernetes API is unavailable", "the Kubernetes API is available again");
    let earlier = eventually("no earlier outage is left", async || {
        let log = operator.log();
        (lines(&log, away) == lines(&log, back)).then_some(log)
    })
    .await;
    kube.stop();
    eventually("/health names kubernetes", async || {
        get(port, "/health").await.filter(|(code, body)| *code == 503 && body.contains(r#""missing":["kubernetes"]"#))
    })
    .await;
    sleep(OUTAGE).await;
    assert!(operator.is_running());
    kube.start();

    assert_complete(&finished(&env, "run").await);
    // Watches are retried with a backoff, so they may recover some seconds after requests.
    let count_new = |line| lines(&operator.log(), line) - lines(&earlier, line);
    eventually("the log reports the server as available again", async || (count_new(back) > 0).then_some(())).await;
    assert_eq!((count_new(away), count_new(back)), (1, 1), "{}", operator.log());
}

#[tokio::test]
async fn all_servers_are_unavailable_at_the_start() {
    let (server, servers) = DedicatedServer::up("kube");
    server.install_crds();
    let env = TestEnv::on(servers).await;
    server.stop();
    let (redis, with_redis) = DedicatedServer::up("redis");
    redis.stop();
    let (mongodb, with_mongodb) = DedicatedServer::up("mongodb");
    let servers = Servers { redis: with_redis.redis, mongodb: with_mongodb.mongodb, ..env.servers.clone() };
    let database = mongodb::Client::with_uri_str(&servers.mongodb).await.unwrap().database(&env.name);
    let env = TestEnv { servers, database, ..env };
    env.seed(USERS, 0).await;
    mongodb.stop();

    let (mut operator, port) = env.all(&[]);
    eventually("/livez answers", async || get(port, "/livez").await.filter(|(code, _)| *code == 200)).await;
    let (code, _) = get(port, "/readyz").await.unwrap();
    assert_eq!(code, 503);
    sleep(Duration::from_secs(5)).await;
    assert!(operator.is_running());
    let log = operator.log();
    let counts = ["the Kubernetes API is unavailable", "MongoDB is unavailable"].map(|text| lines(&log, text));
    assert_eq!(counts, [1, 1], "{log}");
    redis.start();
    server.start();
    eventually("only MongoDB is missing", async || {
        let (_, body) = get(port, "/readyz").await?;
        body.contains(r#""missing":["mongodb"]"#).then_some(())
    })
    .await;
    apply_job(&env, "run", json!({"syncType": "Full"})).await;
    sleep(Duration::from_secs(2)).await;
    let log = operator.log();
    assert_eq!(lines(&log, "MongoDB is unavailable"), 1, "{log}");
    // A server may answer some requests and refuse others while it starts, so no lines are counted from here on.
    mongodb.start();
    let job = finished(&env, "run").await;
    assert_complete(&job);
    assert_eq!(job.status.unwrap().attempts, Some(0), "no worker claimed it before MongoDB answered");
    eventually("/readyz answers", async || get(port, "/readyz").await.filter(|(code, _)| *code == 200)).await;
}

/// Three controllers lose the API server together, and runs end while no status can be written.
#[tokio::test]
async fn controllers_agree_on_one_leader_after_an_api_outage() {
    const USERS: i32 = 5_000;
    let (kube, servers) = DedicatedServer::up("kube");
    kube.install_crds();
    let env = TestEnv::on(servers).await;
    env.seed(USERS, 0).await;
    let replicas = replicas(&env, &[]).await;
    let nothing = json!({"target": {"collection": "nothing"}});
    let spec = json!({"interval": "1s", "concurrencyPolicy": "Allow", "jobTemplate": {"spec": nothing}});
    apply_schedule(&env, "often", spec).await;
    let uid = apply_job(&env, "run", slow()).await.uid().unwrap();
    wait_until_running(&env, "run").await;

    kube.stop();
    let queue = env.queue();
    eventually("the run has ended", async || {
        (queue.get(&uid).await.unwrap().unwrap().state == State::Completed).then_some(())
    })
    .await;
    eventually("no controller leads", async || {
        for replica in &replicas {
            if leads(replica.port).await {
                return None;
            }
        }
        Some(())
    })
    .await;
    let back = Timestamp::now();
    kube.start();

    let status = finished(&env, "run").await.status.unwrap();
    assert_eq!(status.counts.unwrap().updated, i64::from(USERS));
    assert_eq!((status.attempts, status.recoveries), (Some(0), Some(0)));
    assert!(status.completion_time.unwrap().0 < back, "it ended while the API server was unavailable");
    leader_of(&replicas).await;
    let jobs = eventually("runs are created again", async || {
        let jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
        (jobs.iter().filter(|job| is_finished(job) && job.creation_timestamp().unwrap().0 > back).count() >= 3)
            .then_some(jobs)
    })
    .await;
    leader_of(&replicas).await;
    let slots: HashSet<_> = jobs.iter().filter_map(|job| job.annotations().get(SLOT_ANNOTATION)).collect();
    assert_eq!(slots.len(), jobs.len() - 1, "one SyncJob for each slot");
    let logs: String = replicas.iter().map(|replica| replica.process.log()).collect();
    for job in jobs.iter().filter(|job| is_finished(job)) {
        let uid = job.uid().unwrap();
        let claims = logs.lines().filter(|line| line.contains("run claimed") && line.contains(&uid));
        assert_eq!(claims.count(), 1, "{} ran once", job.name_any());
    }
}
