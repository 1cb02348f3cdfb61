//! Servers that are missing at the start, or go away in the middle of a run: really stopped, for 20 s.

use std::{process::Command, time::Duration};

use serde_json::json;
use sync_operator::{api::SyncJob, domain::job::is_complete};
use tokio::time::sleep;

use crate::{
    operator::{apply_job, apply_schedule, finished, get, slow, under_way},
    support::{Servers, World, eventually, unique},
};

const OUTAGE: Duration = Duration::from_secs(20);
const USERS: i32 = 15_000;

/// Servers of a test's own, stopped when dropped.
pub struct Own {
    name: String,
    part: &'static str,
}

impl Own {
    pub fn up(part: &'static str) -> (Self, Servers) {
        let own = Self { name: unique("outage"), part };
        own.script(&["up", part]);
        let mut servers = Servers::shared();
        for line in own.script(&["env"]).lines() {
            // Ports are given for servers that are not up, too.
            match (part, line.trim_start_matches("export ").split_once('=')) {
                ("kube", Some(("KUBECONFIG", value))) => value.clone_into(&mut servers.kubeconfig),
                ("redis", Some(("REDIS_URL", value))) => value.clone_into(&mut servers.redis),
                ("mongodb", Some(("MONGODB_URI", value))) => value.clone_into(&mut servers.mongodb),
                _ => {}
            }
        }
        (own, servers)
    }

    fn script(&self, args: &[&str]) -> String {
        let output = Command::new("tests/cluster/cluster.sh").args(["--name", &self.name]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn server(&self) -> &'static str {
        if self.part == "kube" { "apiserver" } else { self.part }
    }

    pub fn stop(&self) {
        self.script(&["kill", self.server()]);
    }

    pub fn start(&self) {
        self.script(&["start", self.server()]);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        Command::new("tests/cluster/cluster.sh").args(["--name", &self.name, "down"]).output().ok();
    }
}

fn assert_complete(job: &SyncJob) {
    let status = job.status.as_ref().unwrap();
    assert!(is_complete(job), "{status:?}");
    let counts = status.counts.unwrap();
    assert_eq!((counts.processed, counts.updated), (i64::from(USERS), i64::from(USERS)));
}

/// How often a line stands in a log.
fn lines(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[tokio::test]
async fn redis_away_in_mid_run() {
    let (redis, servers) = Own::up("redis");
    let world = World::on(servers).await;
    world.seed(USERS, 0).await;
    let (mut operator, port) = world.all(&[]);
    apply_schedule(&world, "hourly", json!({"interval": "1h"})).await;
    apply_job(&world, "run", slow()).await;
    under_way(&world, "run").await;
    redis.stop();

    eventually("/health names redis", async || {
        get(port, "/health").await.filter(|(code, body)| *code == 503 && body.contains(r#""missing":["redis"]"#))
    })
    .await;
    let (code, body) = get(port, "/jobs/status").await.unwrap();
    assert!(code == 200 && body.contains(r#""active":null"#), "{code} {body}");
    let schedules = world.schedules();
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

    assert_complete(&finished(&world, "run").await);
    let log = operator.log();
    assert!(lines(&log, "Redis is away") <= 2, "one line for each part that uses Redis:\n{log}");
    assert!(lines(&log, "Redis is back") >= 1, "{log}");
}

#[tokio::test]
async fn mongodb_away_in_mid_run() {
    let (mongodb, servers) = Own::up("mongodb");
    let world = World::on(servers).await;
    world.seed(USERS, 0).await;
    let (mut operator, _) = world.all(&[]);
    let mut spec = slow();
    spec["backoff"] = json!({"initial": "5s", "jitter": 0.0});
    apply_job(&world, "run", spec).await;
    under_way(&world, "run").await;
    mongodb.stop();
    let jobs = world.jobs();
    eventually("the run waits for its next attempt, and says why", async || {
        let conditions = jobs.get("run").await.ok()?.status?.conditions;
        conditions.into_iter().find(|c| c.reason == "Retrying" && c.message.contains("MongoDB"))
    })
    .await;
    sleep(OUTAGE).await;
    assert!(operator.is_running());
    mongodb.start();

    let job = finished(&world, "run").await;
    assert_complete(&job);
    let status = job.status.unwrap();
    assert!(status.attempts >= Some(1));
    assert_eq!(status.attempt_history.len() as i32, status.attempts.unwrap());
    assert_eq!(lines(&operator.log(), "attempt failed"), status.attempt_history.len());
}

#[tokio::test]
async fn the_api_server_away_in_mid_run() {
    let (kube, servers) = Own::up("kube");
    install_crds(&kube);
    let world = World::on(servers).await;
    world.seed(USERS, 0).await;
    let (mut operator, port) = world.all(&[]);
    apply_job(&world, "run", slow()).await;
    under_way(&world, "run").await;
    // A CRD's storage may still be starting when the operator does: that is not the outage meant here.
    let earlier = lines(&operator.log(), "the Kubernetes API is");
    kube.stop();
    eventually("/health names kubernetes", async || {
        get(port, "/health").await.filter(|(code, body)| *code == 503 && body.contains(r#""missing":["kubernetes"]"#))
    })
    .await;
    sleep(OUTAGE).await;
    assert!(operator.is_running());
    kube.start();

    assert_complete(&finished(&world, "run").await);
    let log = operator.log();
    assert_eq!(lines(&log, "the Kubernetes API is") - earlier, 2, "one line for away, one for back: {log}");
}

#[tokio::test]
async fn everything_missing_at_the_start() {
    let (own, servers) = Own::up("kube");
    install_crds(&own);
    let world = World::on(servers).await;
    own.stop();
    let (redis, with_redis) = Own::up("redis");
    redis.stop();
    let (mongodb, with_mongodb) = Own::up("mongodb");
    let servers = Servers { redis: with_redis.redis, mongodb: with_mongodb.mongodb, ..world.servers.clone() };
    let database = mongodb::Client::with_uri_str(&servers.mongodb).await.unwrap().database(&world.name);
    let world = World { servers, database, ..world };
    world.seed(USERS, 0).await;
    mongodb.stop();

    let (mut operator, port) = world.all(&[]);
    eventually("/livez answers", async || get(port, "/livez").await.filter(|(code, _)| *code == 200)).await;
    let (code, _) = get(port, "/readyz").await.unwrap();
    assert_eq!(code, 503);
    sleep(Duration::from_secs(5)).await;
    assert!(operator.is_running());
    redis.start();
    own.start();
    eventually("/readyz answers", async || get(port, "/readyz").await.filter(|(code, _)| *code == 200)).await;
    let spec = json!({"syncType": "Full", "backoff": {"initial": "5s", "jitter": 0.0}});
    apply_job(&world, "run", spec).await;
    sleep(Duration::from_secs(2)).await;
    mongodb.start();
    assert_complete(&finished(&world, "run").await);
}

pub fn install_crds(own: &Own) {
    own.script(&["kubectl", "apply", "-f", "crds"]);
    own.script(&[
        "kubectl",
        "wait",
        "--for=condition=Established",
        "crd/syncschedules.sync.codex.dev",
        "crd/syncjobs.sync.codex.dev",
    ]);
}
