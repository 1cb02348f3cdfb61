//! Whole operator processes on a real API server, Redis and MongoDB.

use std::time::Duration;

use bson::{Bson, DateTime, doc};
use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, SyncSchedule, syncjob::Phase},
    domain::job::{is_complete, is_finished},
};
use tokio::time::sleep;

use crate::{
    servers::DedicatedServer,
    support::{
        TestEnv, apply_job, apply_once, apply_schedule, eventually, finished, get, slow, wait_for_events,
        wait_until_running,
    },
};

/// Waits until `count` runs have completed, and returns the schedule.
async fn wait_for_successes(env: &TestEnv, name: &str, count: i64) -> SyncSchedule {
    let schedules = env.schedules();
    eventually(&format!("{count} runs of {name} succeeded"), async || {
        let schedule = schedules.get(name).await.ok()?;
        let runs = schedule.status.as_ref()?.runs;
        (runs.succeeded >= count).then_some(schedule)
    })
    .await
}

async fn suspend(env: &TestEnv, name: &str, suspended: bool) {
    env.patch_schedule(name, json!({"spec": {"suspended": suspended}})).await;
}

async fn job_names(env: &TestEnv) -> Vec<String> {
    let mut jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
    jobs.sort_by_key(ResourceExt::name_any);
    jobs.into_iter().map(|job| job.name_any()).collect()
}

/// The numbers at the ends of the names.
fn slots(names: &[String]) -> Vec<i64> {
    names.iter().map(|name| name.rsplit('-').next().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn the_sample_schedule_syncs_users_and_names_rejected_ones() {
    let env = TestEnv::new().await;
    env.seed(10_000, 3).await;
    let (operator, port) = env.all(&[]);
    let sample = std::fs::read_to_string("manifests/samples/user-sync.yaml").unwrap();
    let sample: SyncSchedule = serde_yaml_ng::from_str(&sample).unwrap();
    let began = Timestamp::now();
    env.schedules().create(&PostParams::default(), &sample).await.unwrap();

    let schedule = wait_for_successes(&env, "user-sync", 1).await;
    let status = schedule.status.unwrap();
    assert_eq!((status.runs.total, status.runs.failed, status.active_count), (1, 0, Some(0)));
    assert!(status.last_successful_time.is_some() && status.next_schedule_time.is_some());

    let names = job_names(&env).await;
    let job = env.jobs().get(&names[0]).await.unwrap();
    assert_eq!(job.labels()["sync.codex.dev/schedule"], "user-sync");
    let run = job.status.unwrap();
    let counts = run.counts.unwrap();
    assert_eq!((run.progress, counts.total, counts.processed), (Some(100), 10_000, 10_000));
    assert_eq!((counts.updated, counts.unchanged, counts.failed), (9_997, 0, 3));
    let named: Vec<_> = run.failures.iter().map(|failure| (failure.key.as_str(), failure.reason.as_str())).collect();
    assert_eq!(named, [("0", "ValidationFailed"), ("1", "ValidationFailed"), ("2", "ValidationFailed")]);

    let start = DateTime::from_millis(run.start_time.unwrap().0.as_millisecond());
    assert!(start.timestamp_millis() >= began.as_millisecond() - 1000);
    assert_eq!(env.count(doc! {"lastSynced": start}).await, 9_997);

    let (code, body) = get(port, "/jobs/status").await.unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (code, &body["counts"]["completed"], &body["repeatable"][0]["every"]),
        (200, &json!(1), &json!(1_200_000))
    );
    let (code, body) = get(port, "/health").await.unwrap();
    assert_eq!((code, body.as_str()), (200, r#"{"status":"OK","jobs":{"initialized":true}}"#));
    assert_eq!(get(port, "/livez").await.unwrap().0, 200);
    assert_eq!(get(port, "/readyz").await.unwrap().0, 200);

    wait_for_events(&env, "user-sync", &["RunCreated"]).await;
    wait_for_events(&env, &names[0], &["RunCompleted"]).await;
    assert_eq!(operator.stop().await, Some(0));
}

#[tokio::test]
async fn two_operators_run_each_slot_once_and_counters_add_up() {
    let env = TestEnv::new().await;
    env.seed(1_000, 3).await;
    let (first, _) = env.all(&[]);
    let (second, _) = env.all(&[]);
    apply_schedule(&env, "often", json!({"interval": "1s", "jobTemplate": {"spec": {"syncType": "Full"}}})).await;

    wait_for_successes(&env, "often", 6).await;
    suspend(&env, "often", true).await;
    let schedules = env.schedules();
    let schedule = eventually("no run is active", async || {
        let schedule = schedules.get("often").await.ok()?;
        let status = schedule.status.as_ref()?;
        (status.active.is_empty() && status.next_schedule_time.is_none()).then_some(schedule)
    });
    let status = schedule.await.status.unwrap();
    let (runs, skip) = (status.runs, status.last_skip);

    let names = job_names(&env).await;
    let slots = slots(&names);
    assert_eq!(names.len() as i64, runs.total, "a SyncJob for each run");
    assert_eq!(runs.total, runs.succeeded);
    // The last slot may have been skipped, since the schedule was suspended before its SyncJob was made.
    let last = skip.map_or(0, |skip| skip.time.0.as_second()).max(slots[slots.len() - 1]);
    let span = last - slots[0] + 1;
    assert_eq!(runs.total + runs.skipped, span, "each slot was run or skipped, once: {names:?}, {runs:?}");
    for name in &names {
        let job = env.jobs().get(name).await.unwrap();
        assert!(is_complete(&job), "{name}");
        let counts = job.status.unwrap().counts.unwrap();
        assert_eq!((counts.processed, counts.total), (1_000, 1_000));
        assert_eq!(counts.processed, counts.updated + counts.unchanged + counts.failed);
        assert_eq!(counts.failed, 3);
    }
    assert_eq!(first.stop().await, Some(0));
    assert_eq!(second.stop().await, Some(0));
}

#[tokio::test]
async fn suspension_stops_new_runs_until_the_slot_after_resuming() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, port) = env.all(&[]);
    apply_schedule(&env, "often", json!({"interval": "1s"})).await;
    wait_for_successes(&env, "often", 2).await;

    suspend(&env, "often", true).await;
    sleep(Duration::from_secs(2)).await;
    let stopped = job_names(&env).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(job_names(&env).await, stopped, "no new runs 2 s after the patch");
    let (_, body) = get(port, "/jobs/status").await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["paused"], true);

    let resumed = Timestamp::now().as_second();
    suspend(&env, "often", false).await;
    let enough = stopped.len() as i64 + 1;
    wait_for_successes(&env, "often", enough).await;
    let names = job_names(&env).await;
    let newer: Vec<_> = slots(&names).into_iter().filter(|slot| !slots(&stopped).contains(slot)).collect();
    assert!(newer.iter().all(|slot| *slot >= resumed), "slots missed while suspended are not run: {newer:?}");
}

#[tokio::test]
async fn history_limits_keep_the_newest_runs_and_the_counters() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_schedule(&env, "often", json!({"interval": "1s", "successfulJobsHistoryLimit": 2})).await;
    wait_for_successes(&env, "often", 5).await;
    suspend(&env, "often", true).await;
    eventually("two runs are kept", async || (job_names(&env).await.len() == 2).then_some(())).await;
    assert!(env.schedules().get("often").await.unwrap().status.unwrap().runs.succeeded >= 5);
}

fn assert_all_done(job: &SyncJob, users: i64) {
    let status = job.status.as_ref().unwrap();
    let counts = status.counts.unwrap();
    assert!(is_complete(job), "{status:?}");
    assert_eq!((counts.processed, counts.updated, status.progress), (users, users, Some(100)));
}

#[tokio::test]
async fn a_stopped_worker_releases_its_run_without_an_attempt() {
    let env = TestEnv::new().await;
    env.seed(3_000, 0).await;
    let (_controller, _) = env.all(&["--workers", "0"]);
    let first = env.operator("worker", &[]);
    apply_job(&env, "run", slow()).await;
    wait_until_running(&env, "run").await;
    let second = env.operator("worker", &[]);
    assert_eq!(first.stop().await, Some(0));

    let job = finished(&env, "run").await;
    assert_all_done(&job, 3_000);
    let status = job.status.unwrap();
    assert_eq!((status.attempts, status.recoveries), (Some(0), Some(0)));
    assert!(second.log().contains("run claimed"));
}

#[tokio::test]
async fn a_killed_worker_loses_its_run_to_another_when_the_lease_ends() {
    let env = TestEnv::new().await;
    env.seed(3_000, 0).await;
    let lease = ["--lease-duration", "2s"];
    let (_controller, _) = env.all(&[&lease[..], &["--workers", "0"]].concat());
    let first = env.operator("worker", &lease);
    apply_job(&env, "run", slow()).await;
    wait_until_running(&env, "run").await;
    first.signal("KILL");
    let _second = env.operator("worker", &lease);

    let job = finished(&env, "run").await;
    assert_all_done(&job, 3_000);
    let status = job.status.unwrap();
    assert_eq!((status.attempts, status.recoveries), (Some(0), Some(1)));
    wait_for_events(&env, "run", &["RunRecovered"]).await;
}

#[tokio::test]
async fn deleting_a_schedule_stops_its_run_and_empties_the_queue() {
    let env = TestEnv::new().await;
    env.seed(20_000, 0).await;
    let (_operator, _) = env.all(&["--resync-interval", "1s"]);
    apply_once(&env, "slow", slow()).await;
    let names = eventually("the run exists", async || {
        let names = job_names(&env).await;
        (!names.is_empty()).then_some(names)
    });
    wait_until_running(&env, &names.await[0]).await;
    env.schedules().delete("slow", &DeleteParams::background()).await.unwrap();
    eventually("the SyncJob is deleted", async || job_names(&env).await.is_empty().then_some(())).await;
    let queue = env.queue();
    eventually("the queue is empty", async || queue.unfinished().await.unwrap().is_empty().then_some(())).await;
    let unsynced = env.count(doc! {"lastSynced": Bson::Null}).await;
    assert!(unsynced > 0, "the run did not continue to its end");
}

#[tokio::test]
async fn a_run_whose_attempts_all_fail_ends_with_its_history() {
    let (mongodb, mut servers) = DedicatedServer::up("mongodb");
    servers.mongodb += "&serverSelectionTimeoutMS=200";
    let env = TestEnv::on(servers).await;
    env.seed(10, 0).await;
    let (_operator, port) = env.all(&[]);
    eventually("workers have started", async || get(port, "/readyz").await.filter(|(code, _)| *code == 200)).await;
    mongodb.stop();
    let spec = json!({"backoffLimit": 2, "backoff": {"initial": "200ms", "factor": 1}});
    apply_job(&env, "run", spec).await;

    let status = finished(&env, "run").await.status.unwrap();
    assert_eq!((status.phase, status.attempts), (Some(Phase::Failed), Some(3)));
    let failed = status.conditions.iter().find(|condition| condition.type_ == "Failed").unwrap();
    assert_eq!(failed.reason, "BackoffLimitExceeded");
    assert!(failed.message.contains("no MongoDB primary could be reached"), "{}", failed.message);
    let history: Vec<_> =
        status.attempt_history.iter().map(|attempt| (attempt.number, attempt.reason.as_str())).collect();
    assert_eq!(history, [(1, "Unreachable"), (2, "Unreachable"), (3, "Unreachable")]);
}

#[tokio::test]
async fn a_failure_caused_by_the_spec_is_not_retried() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_job(&env, "operator", json!({"target": {"filter": {"age": {"$bigger": 3}}}})).await;
    apply_job(&env, "database", json!({"target": {"database": "elsewhere"}})).await;
    apply_job(&env, "code", json!({"target": {"filter": {"$expr": {"$function": {}}}}})).await;
    for (name, message) in [
        ("operator", "unknown operator: $bigger"),
        ("database", "--allowed-databases"),
        ("code", "$function runs code"),
    ] {
        let status = finished(&env, name).await.status.unwrap();
        let failed = status.conditions.iter().find(|condition| condition.type_ == "Failed").unwrap();
        assert_eq!(failed.reason, "InvalidTarget", "{name}");
        assert!(failed.message.contains(message), "{name}: {}", failed.message);
    }
}

/// Scenario 23 of the fault list: long texts and lists in a status are cut, and the counts stay.
#[tokio::test]
async fn long_errors_and_many_failures_keep_the_status_small() {
    const LIMIT: usize = 32 << 10;
    let env = TestEnv::new().await;
    let users = env.database.collection::<bson::Document>("users");
    let nasty = "\u{1}\"\\ä\n".repeat(400);
    users.insert_many((0..200).map(|id| doc! {"_id": format!("{id:03}{nasty}")})).await.unwrap();
    users.insert_one(doc! {"_id": "good", &nasty: 1}).await.unwrap();
    let rule = doc! {"$jsonSchema": {"required": [&nasty]}};
    env.database.run_command(doc! {"collMod": "users", "validator": rule}).await.unwrap();
    let (_operator, _) = env.all(&[]);
    apply_job(&env, "refused", json!({"syncType": "Full"})).await;
    let unknown = format!("${}", nasty.repeat(20));
    apply_job(&env, "invalid", json!({"target": {"filter": {"age": {unknown: 3}}}})).await;
    for (name, expected) in [("refused", "Completed"), ("invalid", "InvalidTarget")] {
        let status = finished(&env, name).await.status.unwrap();
        let size = serde_json::to_vec(&status).unwrap().len();
        assert!(size < LIMIT, "{name}: {size} bytes");
        let end =
            status.conditions.iter().find(|found| ["Complete", "Failed"].contains(&found.type_.as_str())).unwrap();
        assert_eq!(end.reason, expected, "{name}: {}", end.message);
        if name == "refused" {
            let counts = status.counts.unwrap();
            assert_eq!((counts.processed, counts.updated, counts.failed), (201, 1, 200));
            assert_eq!(status.failures.len(), 20);
            assert!(size > LIMIT / 4, "the texts are long: {size} bytes");
        }
    }
}

#[tokio::test]
async fn a_run_costs_few_writes_and_its_progress_never_goes_back() {
    let env = TestEnv::new().await;
    env.seed(3_000, 0).await;
    let (_operator, _) = env.all(&["--status-interval", "1s"]);
    let first = apply_job(&env, "run", slow()).await;
    let params = WatchParams::default().fields("metadata.name=run").timeout(200).disable_bookmarks();
    let versions = env.jobs().watch(&params, &first.resource_version().unwrap()).await.unwrap();
    let mut versions = std::pin::pin!(versions);
    let mut statuses = Vec::new();
    while let Some(Ok(WatchEvent::Modified(job))) = versions.next().await {
        let ended = is_finished(&job);
        statuses.push(job.status.unwrap());
        if ended {
            break;
        }
    }
    let last = statuses.last().unwrap();
    let seconds = last.duration.as_ref().unwrap().parse().unwrap().as_secs();
    assert!(statuses.len() as u64 <= 4 + seconds, "{} writes in {seconds} s", statuses.len());
    assert!(statuses.is_sorted_by_key(|status| (status.progress, status.counts.map(|counts| counts.processed))));
    let unfinished = &statuses[..statuses.len() - 1];
    assert!(unfinished.iter().all(|status| status.progress < Some(100)));
    assert!(unfinished.iter().any(|status| status.progress > Some(0)), "progress is reported during the run");
}

#[tokio::test]
async fn a_run_over_its_deadline_ends_as_failed() {
    let env = TestEnv::new().await;
    env.seed(20_000, 0).await;
    let (_operator, _) = env.all(&[]);
    let mut spec = slow();
    spec["activeDeadline"] = json!("1s");
    apply_job(&env, "run", spec).await;
    let status = finished(&env, "run").await.status.unwrap();
    let failed = status.conditions.iter().find(|condition| condition.type_ == "Failed").unwrap();
    assert_eq!(failed.reason, "DeadlineExceeded");
}

#[tokio::test]
async fn a_finished_standalone_job_is_deleted_after_its_ttl() {
    let env = TestEnv::new().await;
    let (_operator, _) = env.all(&[]);
    apply_job(&env, "run", json!({"ttlAfterFinished": "1s"})).await;
    eventually("the SyncJob is deleted", async || job_names(&env).await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn wrong_configuration_is_one_clear_error_and_exit_code_2() {
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sync-operator"));
        command.args(args).env("MONGODB_DATABASE", "codex").env_remove("MONGODB_URI").env_remove("REDIS_URL");
        command.env_remove("KUBECONFIG").env("HOME", "/nowhere").output().unwrap()
    };
    assert!(String::from_utf8(run(&["controller", "--workers", "0"]).stderr).unwrap().contains("KUBECONFIG"));
    for (args, message) in [
        (vec!["worker"], "--mongodb-uri"),
        (vec!["worker", "--mongodb-uri", "http://x"], "MONGODB_URI"),
        (vec!["worker", "--mongodb-uri", "mongodb://x", "--redis-url", "http://x"], "REDIS_URL"),
        (vec!["api"], "KUBECONFIG"),
        (vec!["all", "--mongodb-uri", "mongodb://x", "--workers", "many"], "--workers"),
        (vec!["controller", "--log-level", "sync=loud"], "--log-level"),
    ] {
        let output = run(&args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(message), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{args:?}: {error}");
    }
}

/// No controller sees the deletion. The run has ended, so no worker notices it either.
#[tokio::test]
async fn an_ended_run_is_removed_when_its_job_was_deleted_offline() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (operator, _) = env.all(&[]);
    let uid = apply_job(&env, "gone", json!({})).await.uid().unwrap();
    finished(&env, "gone").await;
    assert!(env.queue().get(&uid).await.unwrap().is_some());
    assert_eq!(operator.stop().await, Some(0));
    env.jobs().delete("gone", &DeleteParams::default()).await.unwrap();

    let (_operator, _) = env.all(&["--resync-interval", "1s"]);
    eventually("the run is removed", async || env.queue().get(&uid).await.unwrap().is_none().then_some(())).await;
}
