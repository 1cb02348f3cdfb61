//! Runs: waiting for their states, and reading their results.

use std::time::Duration;

use kube::runtime::wait::await_condition;
use serde_json::Value;
use sync_operator::{
    api::{
        SyncJob,
        syncjob::{Phase, SyncJobStatus},
    },
    domain::job::is_finished,
    queue::{Candidates, Claim, Error, Queue},
};
use test_support::{PATIENCE, eventually};
use tokio::time::timeout;

use super::{TestEnv, apply_job};

/// Creates a SyncJob, and waits until its run has ended.
pub async fn run(env: &TestEnv, name: &str, spec: Value) -> SyncJobStatus {
    apply_job(env, name, spec).await;
    finished(env, name).await.status.unwrap()
}

/// Waits until a run has ended.
pub async fn finished(env: &TestEnv, name: &str) -> SyncJob {
    eventually(&format!("{name} has ended"), async || {
        // A watch, because many tests share one API server, and polling would slow it down.
        let ended = await_condition(env.jobs(), name, |job: Option<&SyncJob>| job.is_some_and(is_finished));
        timeout(PATIENCE, ended).await.ok()?.ok()?
    })
    .await
}

/// Waits until a run has processed documents.
pub async fn wait_until_running(env: &TestEnv, name: &str) {
    let jobs = env.jobs();
    eventually("the run has processed documents", async || {
        let job = jobs.get(name).await.ok()?;
        (job.status?.counts?.processed > 0).then_some(())
    })
    .await;
}

/// Waits until a run has this phase.
pub async fn wait_for_phase(env: &TestEnv, name: &str, phase: Phase) -> SyncJob {
    eventually(&format!("{name} is {phase:?}"), async || {
        let job = env.jobs().get(name).await.ok()?;
        (job.status.as_ref()?.phase == Some(phase)).then_some(job)
    })
    .await
}

/// The reason of a condition that is true.
pub fn reason(job: &SyncJob, condition: &str) -> Option<String> {
    let conditions = &job.status.as_ref()?.conditions;
    conditions.iter().find(|found| found.type_ == condition && found.status == "True").map(|found| found.reason.clone())
}

/// Reason and message of the condition with which a run ended.
pub fn ended(status: &SyncJobStatus) -> (&str, &str) {
    let end = status.conditions.iter().find(|condition| matches!(condition.type_.as_str(), "Complete" | "Failed"));
    let end = end.filter(|condition| condition.status == "True").unwrap();
    (&end.reason, &end.message)
}

/// Updated, unchanged and failed documents.
pub fn counts(status: &SyncJobStatus) -> (i64, i64, i64) {
    let counts = status.counts.unwrap();
    (counts.updated, counts.unchanged, counts.failed)
}

/// Key and reason of each failed document that a status names.
pub fn failures(status: &SyncJobStatus) -> Vec<(&str, &str)> {
    status.failures.iter().map(|failure| (failure.key.as_str(), failure.reason.as_str())).collect()
}

/// Waits until no run is left in the queue, ended or not.
pub async fn wait_until_removed(env: &TestEnv) {
    eventually("nothing of the run is in Redis", async || runs_in_redis(env).await.is_empty().then_some(())).await;
}

/// The uids of all runs in the queue, ended or not.
pub async fn runs_in_redis(env: &TestEnv) -> Vec<String> {
    let client = redis::Client::open(env.servers.redis.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let prefix = format!("{{sync:{}}}:run:", env.name);
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}*")).query_async(&mut connection).await.unwrap();
    keys.iter().map(|key| key[prefix.len()..].to_owned()).collect()
}

/// Claims the next run, or returns the time until a run may be due.
pub async fn claim_one(queue: &Queue, worker: &str) -> Result<Result<Claim, Option<Duration>>, Error> {
    let claimed = queue.claim(worker, 1, &mut Candidates::default()).await?;
    Ok(claimed.map(|claims| {
        assert_eq!(claims.len(), 1);
        claims.into_iter().next().unwrap()
    }))
}
