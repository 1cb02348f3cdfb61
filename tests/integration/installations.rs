//! Installations with the same queue or the same objects.

use std::process::{Command, Output};

use bson::doc;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use sync_operator::{api::SyncJob, domain::job::is_complete};

use crate::{
    operator::{apply_job, apply_schedule, finished, get},
    replicas::probe_port,
    sources::ALLOWED,
    support::{TestEnv, allow_queue, eventually, source},
    upstream::Upstream,
};

const QUICK: [&str; 2] = ["--resync-interval", "1s"];

/// The condition of an object.
fn condition(object: &Value, type_: &str) -> Option<Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_).cloned()
}

async fn schedule(world: &TestEnv) -> Value {
    serde_json::to_value(world.schedules().get("users").await.unwrap()).unwrap()
}

async fn job(world: &TestEnv, name: &str) -> Value {
    serde_json::to_value(world.jobs().get(name).await.unwrap()).unwrap()
}

/// Waits for a condition with a reason, and returns its message.
async fn wait_for_condition(what: &str, type_: &str, reason: &str, mut read: impl AsyncFnMut() -> Value) -> String {
    eventually(&format!("{what} is {type_}: {reason}"), async || {
        let condition = condition(&read().await, type_)?;
        (condition["reason"] == reason).then(|| condition["message"].as_str().unwrap().to_owned())
    })
    .await
}

/// Runs `sync-operator adopt`.
fn adopt(world: &TestEnv, queue: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sync-operator"))
        .arg("adopt")
        .args(args)
        .env("KUBECONFIG", &world.servers.kubeconfig)
        .env("REDIS_URL", &world.servers.redis)
        .env("MONGODB_DATABASE", &world.name)
        .env("WATCH_NAMESPACE", &world.name)
        .env("QUEUE_NAME", queue)
        .output()
        .unwrap()
}

#[tokio::test]
async fn a_second_installation_on_a_queue_is_refused_until_adopt() {
    let (first, second) = (TestEnv::new().await, TestEnv::new().await);
    first.seed(10, 0).await;
    second.seed(10, 0).await;
    let _first = first.operator("controller", &QUICK);
    apply_job(&first, "one", json!({"syncType": "Full"})).await;
    assert!(is_complete(&finished(&first, "one").await));
    eventually("the first installation owns its queue", async || first.queue().owner().await.unwrap()).await;

    allow_queue(&second.servers.redis, &second.name, &first.name).await;
    let on_queue_of_first = [&QUICK[..], &["--queue-name", &first.name]].concat();
    let refused = second.operator("controller", &on_queue_of_first);
    apply_schedule(&second, "users", json!({"interval": "24h"})).await;
    apply_job(&second, "two", json!({"syncType": "Full"})).await;
    let owner = format!("sync-operator-{} (database {})", first.name, first.name);
    let message =
        wait_for_condition("the schedule", "Ready", "InstallationConflict", async || schedule(&second).await).await;
    assert!(message.contains(&owner), "{message}");
    let message =
        wait_for_condition("the SyncJob", "Reconciling", "InstallationConflict", async || job(&second, "two").await)
            .await;
    assert!(message.contains(&owner), "{message}");
    let (code, body) = get(probe_port(&refused).await, "/readyz").await.unwrap();
    assert!(code == 503 && body.contains("installation"), "{code} {body}");
    assert!(refused.log().contains(&owner), "{}", refused.log());
    assert!(first.queue().get(&uid(&second, "two").await).await.unwrap().is_none());
    apply_job(&first, "three", json!({"syncType": "Full"})).await;
    assert!(is_complete(&finished(&first, "three").await), "the owner continues");

    let adopted = adopt(&second, &first.name, &[]);
    let said = String::from_utf8_lossy(&[adopted.stdout, adopted.stderr].concat()).into_owned();
    assert!(adopted.status.success() && said.contains(&format!("before default/{owner}")), "{said}");
    assert!(is_complete(&finished(&second, "two").await));
    assert_eq!(second.count(doc! {"lastSynced": {"$exists": true}}).await, 10);
}

async fn uid(world: &TestEnv, name: &str) -> String {
    world.jobs().get(name).await.unwrap().metadata.uid.unwrap()
}

#[tokio::test]
async fn a_worker_of_another_database_leaves_runs_alone() {
    let world = TestEnv::new().await;
    world.seed(10, 0).await;
    let _controller = world.operator("controller", &[&QUICK[..], &["--workers", "0"]].concat());
    let stranger = world.operator("worker", &["--mongodb-database", "another"]);
    probe_port(&stranger).await;
    apply_job(&world, "users", json!({"syncType": "Full"})).await;
    eventually("the worker logs the difference", async || {
        stranger.log().contains("difference=\"default database\"").then_some(())
    })
    .await;
    eventually("the run is queued", async || (job(&world, "users").await["status"]["phase"] == "Queued").then_some(()))
        .await;
    let _worker = world.operator("worker", &[]);
    let job = finished(&world, "users").await;
    assert!(is_complete(&job));
    assert_eq!((job.status.unwrap().counts.unwrap().updated, stranger.log().contains("run claimed")), (10, false));
}

#[tokio::test]
async fn objects_of_another_installation_are_left_alone() {
    let world = TestEnv::new().await;
    world.seed(10, 0).await;
    let lease = format!("default/sync-operator-{}", world.name);
    let _first = world.operator("controller", &QUICK);
    apply_schedule(&world, "users", json!({"interval": "24h", "immediate": true})).await;
    eventually("the schedule has an owner", async || {
        (schedule(&world).await["status"]["installation"] == lease.as_str()).then_some(())
    })
    .await;

    // Another queue stands for another Redis.
    let (queue, other) = (format!("{}-other", world.name), format!("{}-other", world.name));
    allow_queue(&world.servers.redis, &world.name, &queue).await;
    let second =
        world.operator("controller", &[&QUICK[..], &["--queue-name", &queue, "--leader-lease-name", &other]].concat());
    let message =
        wait_for_condition("the schedule", "InstallationConflict", "OtherInstallation", async || schedule(&world).await)
            .await;
    assert!(message.contains(&lease) && message.contains(&other), "{message}");
    apply_job(&world, "by-hand", json!({"syncType": "Full"})).await;
    assert!(is_complete(&finished(&world, "by-hand").await));
    trigger(&world, "again").await;
    eventually("two runs are complete", async || {
        (schedule(&world).await["status"]["runs"]["succeeded"] == 2).then_some(())
    })
    .await;
    assert!(!second.log().contains("run enqueued"), "{}", second.log());

    let adopted = adopt(&world, &queue, &["--leader-lease-name", &other]);
    let said = String::from_utf8_lossy(&[adopted.stdout, adopted.stderr].concat()).into_owned();
    assert!(adopted.status.success() && said.contains("SyncSchedule"), "{said}");
    trigger(&world, "adopted").await;
    eventually("the other installation continues", async || {
        let status = schedule(&world).await["status"].take();
        (status["runs"]["succeeded"] == 3 && second.log().contains("run completed")).then_some(())
    })
    .await;
}

async fn trigger(world: &TestEnv, token: &str) {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"sync.codex.dev/trigger": token}}}));
    world.schedules().patch("users", &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_lacks_a_field_leaves_the_run_to_a_newer_one() {
    for old_controller in [false, true] {
        let (world, upstream) = (TestEnv::new().await, Upstream::start().await);
        world.seed(10, 0).await;
        let lacking = [("SYNC_OPERATOR_LACKS", "source")];
        let controller = [&QUICK[..], &["--workers", "0"]].concat();
        let _controller = world.operator_with("controller", &controller, if old_controller { &lacking } else { &[] });
        let old = world.operator_with("worker", &ALLOWED, &lacking);
        let source = source("rest", &json!({"endpoint": upstream.rest("/users/{id}"), "batching": "PerUser"}));
        let mapping = json!([{"from": "/name", "to": "name", "type": "String"}]);
        apply_job(&world, "newer", json!({"syncType": "Full", "source": source, "mapping": mapping})).await;
        apply_job(&world, "plain", json!({"syncType": "Full"})).await;
        assert!(is_complete(&finished(&world, "plain").await), "the old worker completes a run without newer fields");
        let message =
            wait_for_condition("the run", "Reconciling", "NewerWorkerNeeded", async || job(&world, "newer").await)
                .await;
        assert!(message.contains("level 2"), "{message}");
        assert_eq!(old.log().contains("lacking=\"spec.source\""), old_controller, "{}", old.log());
        assert_eq!(upstream.requests(), 0);

        let _newer = world.operator("worker", &ALLOWED);
        let job: SyncJob = finished(&world, "newer").await;
        let status = job.status.clone().unwrap();
        assert!(is_complete(&job) && status.attempts == Some(0) && status.recoveries == Some(0), "{status:?}");
        assert_eq!(world.count(doc! {"name": {"$exists": true}}).await, 10);
    }
}

#[tokio::test]
async fn a_run_of_a_newer_release_can_be_cancelled_and_deleted() {
    let world = TestEnv::new().await;
    let _controller = world.operator("controller", &[&QUICK[..], &["--workers", "0"]].concat());
    for name in ["cancelled", "deleted"] {
        apply_job(&world, name, json!({"syncType": "Full"})).await;
        let uid = uid(&world, name).await;
        eventually("the run is in the queue", async || world.queue().get(&uid).await.unwrap()).await;
        let mut redis = redis::Client::open(world.servers.redis.as_str())
            .unwrap()
            .get_multiplexed_async_connection()
            .await
            .unwrap();
        let key = format!("{{sync:{}}}:run:{uid}", world.name);
        redis::cmd("HSET").arg(key).arg("format").arg(9).exec_async(&mut redis).await.unwrap();
    }
    let worker = world.operator("worker", &[]);
    wait_for_condition("it", "Reconciling", "NewerWorkerNeeded", async || job(&world, "cancelled").await).await;
    let uid = uid(&world, "deleted").await;
    world.jobs().delete("deleted", &kube::api::DeleteParams::default()).await.unwrap();
    eventually("the run is removed", async || world.queue().get(&uid).await.unwrap().is_none().then_some(())).await;
    let patch = Patch::Merge(json!({"spec": {"cancelled": true}}));
    world.jobs().patch("cancelled", &PatchParams::default(), &patch).await.unwrap();
    let status = finished(&world, "cancelled").await.status.unwrap();
    assert!(status.conditions.iter().any(|condition| condition.reason == "Cancelled"), "{status:?}");
    assert!(!worker.log().contains("run claimed"));
}
