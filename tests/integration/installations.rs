//! Installations with the same queue or the same objects.

use std::process::{Command, Output};

use bson::doc;
use serde_json::{Value, json};
use sync_operator::{api::SyncJob, domain::job::is_complete};

use crate::{
    support::{
        ALLOWED, TestEnv, allow_queue, apply_job, apply_schedule, eventually, finished, get, probe_port, source,
    },
    upstream::Upstream,
};

const QUICK: [&str; 2] = ["--resync-interval", "1s"];

/// The condition of an object.
fn condition(object: &Value, type_: &str) -> Option<Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_).cloned()
}

async fn schedule(env: &TestEnv) -> Value {
    serde_json::to_value(env.schedules().get("users").await.unwrap()).unwrap()
}

async fn job(env: &TestEnv, name: &str) -> Value {
    serde_json::to_value(env.jobs().get(name).await.unwrap()).unwrap()
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
fn adopt(env: &TestEnv, queue: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sync-operator"))
        .arg("adopt")
        .args(args)
        .env("KUBECONFIG", &env.servers.kubeconfig)
        .env("REDIS_URL", &env.servers.redis)
        .env("MONGODB_DATABASE", &env.name)
        .env("WATCH_NAMESPACE", &env.name)
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

async fn uid(env: &TestEnv, name: &str) -> String {
    env.jobs().get(name).await.unwrap().metadata.uid.unwrap()
}

#[tokio::test]
async fn a_worker_of_another_database_leaves_runs_alone() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let _controller = env.operator("controller", &[&QUICK[..], &["--workers", "0"]].concat());
    let stranger = env.operator("worker", &["--mongodb-database", "another"]);
    probe_port(&stranger).await;
    apply_job(&env, "users", json!({"syncType": "Full"})).await;
    eventually("the worker logs the difference", async || {
        stranger.log().contains("difference=\"default database\"").then_some(())
    })
    .await;
    eventually("the run is queued", async || (job(&env, "users").await["status"]["phase"] == "Queued").then_some(()))
        .await;
    let _worker = env.operator("worker", &[]);
    let job = finished(&env, "users").await;
    assert!(is_complete(&job));
    assert_eq!((job.status.unwrap().counts.unwrap().updated, stranger.log().contains("run claimed")), (10, false));
}

#[tokio::test]
async fn objects_of_another_installation_are_left_alone() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let lease = format!("default/sync-operator-{}", env.name);
    let _first = env.operator("controller", &QUICK);
    apply_schedule(&env, "users", json!({"interval": "24h", "immediate": true})).await;
    eventually("the schedule has an owner", async || {
        (schedule(&env).await["status"]["installation"] == lease.as_str()).then_some(())
    })
    .await;

    // Another queue stands for another Redis.
    let (queue, other) = (format!("{}-other", env.name), format!("{}-other", env.name));
    allow_queue(&env.servers.redis, &env.name, &queue).await;
    let second =
        env.operator("controller", &[&QUICK[..], &["--queue-name", &queue, "--leader-lease-name", &other]].concat());
    let message =
        wait_for_condition("the schedule", "InstallationConflict", "OtherInstallation", async || schedule(&env).await)
            .await;
    assert!(message.contains(&lease) && message.contains(&other), "{message}");
    apply_job(&env, "by-hand", json!({"syncType": "Full"})).await;
    assert!(is_complete(&finished(&env, "by-hand").await));
    env.trigger("users", "again").await;
    eventually("two runs are complete", async || {
        (schedule(&env).await["status"]["runs"]["succeeded"] == 2).then_some(())
    })
    .await;
    assert!(!second.log().contains("run enqueued"), "{}", second.log());

    let adopted = adopt(&env, &queue, &["--leader-lease-name", &other]);
    let said = String::from_utf8_lossy(&[adopted.stdout, adopted.stderr].concat()).into_owned();
    assert!(adopted.status.success() && said.contains("SyncSchedule"), "{said}");
    env.trigger("users", "adopted").await;
    eventually("the other installation continues", async || {
        let status = schedule(&env).await["status"].take();
        (status["runs"]["succeeded"] == 3 && second.log().contains("run completed")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_lacks_a_field_leaves_the_run_to_a_newer_one() {
    for old_controller in [false, true] {
        let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
        env.seed(10, 0).await;
        let lacking = [("SYNC_OPERATOR_LACKS", "source")];
        let controller = [&QUICK[..], &["--workers", "0"]].concat();
        let _controller = env.operator_with("controller", &controller, if old_controller { &lacking } else { &[] });
        let old = env.operator_with("worker", &ALLOWED, &lacking);
        let source = source("rest", &json!({"endpoint": upstream.rest("/users/{id}"), "batching": "PerUser"}));
        let mapping = json!([{"from": "/name", "to": "name", "type": "String"}]);
        apply_job(&env, "newer", json!({"syncType": "Full", "source": source, "mapping": mapping})).await;
        apply_job(&env, "plain", json!({"syncType": "Full"})).await;
        assert!(is_complete(&finished(&env, "plain").await), "the old worker completes a run without newer fields");
        let message =
            wait_for_condition("the run", "Reconciling", "NewerWorkerNeeded", async || job(&env, "newer").await).await;
        assert!(message.contains("level 2"), "{message}");
        assert_eq!(old.log().contains("lacking=\"spec.source\""), old_controller, "{}", old.log());
        assert_eq!(upstream.requests(), 0);

        let _newer = env.operator("worker", &ALLOWED);
        let job: SyncJob = finished(&env, "newer").await;
        let status = job.status.clone().unwrap();
        assert!(is_complete(&job) && status.attempts == Some(0) && status.recoveries == Some(0), "{status:?}");
        assert_eq!(env.count(doc! {"name": {"$exists": true}}).await, 10);
    }
}

#[tokio::test]
async fn a_run_of_a_newer_release_can_be_cancelled_and_deleted() {
    let env = TestEnv::new().await;
    let _controller = env.operator("controller", &[&QUICK[..], &["--workers", "0"]].concat());
    for name in ["cancelled", "deleted"] {
        apply_job(&env, name, json!({"syncType": "Full"})).await;
        let uid = uid(&env, name).await;
        eventually("the run is in the queue", async || env.queue().get(&uid).await.unwrap()).await;
        let mut redis =
            redis::Client::open(env.servers.redis.as_str()).unwrap().get_multiplexed_async_connection().await.unwrap();
        let key = format!("{{sync:{}}}:run:{uid}", env.name);
        redis::cmd("HSET").arg(key).arg("format").arg(9).exec_async(&mut redis).await.unwrap();
    }
    let worker = env.operator("worker", &[]);
    wait_for_condition("it", "Reconciling", "NewerWorkerNeeded", async || job(&env, "cancelled").await).await;
    let uid = uid(&env, "deleted").await;
    env.jobs().delete("deleted", &kube::api::DeleteParams::default()).await.unwrap();
    eventually("the run is removed", async || env.queue().get(&uid).await.unwrap().is_none().then_some(())).await;
    env.patch_job("cancelled", json!({"cancelled": true})).await;
    let status = finished(&env, "cancelled").await.status.unwrap();
    assert!(status.conditions.iter().any(|condition| condition.reason == "Cancelled"), "{status:?}");
    assert!(!worker.log().contains("run claimed"));
}
