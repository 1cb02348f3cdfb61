//! Suspending, resuming, cancelling, reordering and deleting active SyncJobs.

use std::time::Duration;

use bson::doc;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use sync_operator::{
    api::{SyncJob, syncjob::Phase},
    domain::job::{is_complete, is_finished},
};
use tokio::time::Instant;

use crate::support::{
    TestEnv, apply_job, apply_once, eventually, finished, reason, runs_in_redis, slow, slow_on, wait_for_events,
    wait_for_phase, wait_until_removed,
};

const USERS: i32 = 2_500;

/// Waits until documents are stamped.
async fn wait_for_stamps(env: &TestEnv) {
    eventually("documents are stamped", async || (stamped(env).await > 0).then_some(())).await;
}

async fn stamped(env: &TestEnv) -> u64 {
    env.count(doc! {"lastSynced": {"$type": "date"}}).await + env.count(doc! {"again": {"$type": "date"}}).await
}

/// Waits until no more documents are stamped, and returns the number of stamped documents.
async fn wait_until_idle(env: &TestEnv) -> u64 {
    let mut last = (stamped(env).await, Instant::now());
    eventually("no more documents are stamped", async || {
        let now = stamped(env).await;
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(now)
    })
    .await
}

#[tokio::test]
async fn a_suspended_run_keeps_its_progress_and_resumes() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_job(&env, "run", slow()).await;
    wait_for_stamps(&env).await;
    env.patch_job("run", json!({"suspended": true})).await;
    let parked = wait_for_phase(&env, "run", Phase::Suspended).await;
    let done = wait_until_idle(&env).await;
    assert!(done < USERS as u64, "the run was stopped before its end");
    assert_eq!(reason(&parked, "Suspended").as_deref(), Some("Suspended"));
    assert_eq!(reason(&parked, "Reconciling"), None);
    assert_eq!(parked.status.unwrap().counts.unwrap().processed as u64, done);

    env.patch_job("run", json!({"suspended": false})).await;
    let job = finished(&env, "run").await;
    assert!(is_complete(&job));
    assert_eq!(reason(&job, "Suspended"), None);
    let status = job.status.unwrap();
    assert_eq!((status.attempts, status.recoveries), (Some(0), Some(0)));
    assert_eq!(status.counts.unwrap().updated, i64::from(USERS));
    assert_eq!(stamped(&env).await, USERS as u64);
    wait_for_events(&env, "run", &["RunSuspended", "RunResumed", "RunCompleted"]).await;
}

#[tokio::test]
async fn a_job_made_suspended_waits_until_it_is_resumed() {
    let env = TestEnv::new().await;
    env.seed(100, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_job(&env, "run", json!({"syncType": "Full", "suspended": true})).await;
    wait_for_phase(&env, "run", Phase::Suspended).await;
    assert_eq!(wait_until_idle(&env).await, 0);
    env.patch_job("run", json!({"suspended": false})).await;
    assert!(is_complete(&finished(&env, "run").await));
}

#[tokio::test]
async fn a_cancelled_run_ends_as_failed_and_writes_no_more() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_job(&env, "run", slow()).await;
    wait_for_stamps(&env).await;
    env.patch_job("run", json!({"cancelled": true})).await;
    let job = finished(&env, "run").await;
    assert_eq!(reason(&job, "Failed").as_deref(), Some("Cancelled"));
    let done = wait_until_idle(&env).await;
    assert!(done < USERS as u64);
    assert_eq!(job.status.unwrap().counts.unwrap().processed as u64, done);
    wait_for_events(&env, "run", &["RunCancelled"]).await;
}

#[tokio::test]
async fn a_suspended_run_can_be_cancelled() {
    let env = TestEnv::new().await;
    let (_operator, _) = env.all(&[]);
    apply_job(&env, "run", json!({"suspended": true})).await;
    wait_for_phase(&env, "run", Phase::Suspended).await;
    env.patch_job("run", json!({"cancelled": true})).await;
    let job = finished(&env, "run").await;
    assert_eq!((reason(&job, "Failed").as_deref(), reason(&job, "Suspended")), (Some("Cancelled"), None));
}

#[tokio::test]
async fn changes_during_operator_downtime_are_applied() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (operator, _) = env.all(&["--lease-duration", "2s"]);
    for name in ["suspended", "cancelled"] {
        apply_job(&env, name, slow_on(name)).await;
        wait_for_phase(&env, name, Phase::Running).await;
    }
    operator.signal("KILL");
    drop(operator);
    env.patch_job("suspended", json!({"suspended": true})).await;
    env.patch_job("cancelled", json!({"cancelled": true})).await;
    let (_operator, _) = env.all(&["--lease-duration", "2s"]);
    let job = finished(&env, "cancelled").await;
    assert_eq!(reason(&job, "Failed").as_deref(), Some("Cancelled"));
    wait_for_phase(&env, "suspended", Phase::Suspended).await;
}

#[tokio::test]
async fn a_waiting_run_with_a_higher_priority_runs_first() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&["--workers", "1"]);
    apply_job(&env, "first", slow()).await;
    wait_for_phase(&env, "first", Phase::Running).await;
    for name in ["second", "third"] {
        apply_job(&env, name, json!({"syncType": "Full", "target": {"collection": "nothing"}})).await;
        wait_for_phase(&env, name, Phase::Queued).await;
    }
    env.patch_job("third", json!({"priority": 10})).await;
    // The first run must not end before the event of the change, which says that the worker is still busy.
    let (second, third) = tokio::join!(finished(&env, "second"), finished(&env, "third"));
    let started = |job: &SyncJob| job.status.as_ref().unwrap().start_time.as_ref().unwrap().0;
    assert!(started(&third) < started(&second));
}

/// Scenario 21 of the fault list, with the next two.
#[tokio::test]
async fn deletion_stops_the_work_and_leaves_nothing_in_redis() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&["--resync-interval", "1h"]);
    let mut spec = slow();
    apply_job(&env, "run", spec.clone()).await;
    wait_for_stamps(&env).await;
    env.jobs().delete("run", &DeleteParams::background()).await.unwrap();
    let done = wait_until_idle(&env).await;
    assert!(done < USERS as u64, "the run was stopped before its end");
    wait_until_removed(&env).await;

    spec["target"] = json!({"lastSyncedField": "again"});
    apply_once(&env, "users", spec).await;
    let name = eventually("its run has a status", async || {
        let jobs = env.jobs().list(&ListParams::default()).await.ok()?.items;
        jobs.iter().find(|job| job.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Running))).cloned()
    })
    .await
    .name_any();
    env.schedules().delete("users", &DeleteParams::background()).await.unwrap();
    eventually("its SyncJob is deleted", async || env.jobs().get_opt(&name).await.unwrap().is_none().then_some(()))
        .await;
    wait_until_removed(&env).await;
    assert!(wait_until_idle(&env).await < done + USERS as u64, "its run was stopped before its end");
}

#[tokio::test]
async fn a_finished_run_ignores_changes_of_its_spec() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_job(&env, "run", json!({"syncType": "Full"})).await;
    let before = finished(&env, "run").await.status;
    env.patch_job("run", json!({"cancelled": true, "suspended": true, "priority": 3})).await;
    apply_job(&env, "next", json!({"syncType": "Full"})).await;
    finished(&env, "next").await;
    let jobs: Api<SyncJob> = env.jobs();
    let after = jobs.get("run").await.unwrap();
    assert!(is_finished(&after));
    assert_eq!(after.status, before);
}

#[tokio::test]
async fn foreground_deletion_ends_the_run_and_orphaning_does_not() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    let schedules = env.schedules();
    for (name, params) in [("foreground", DeleteParams::foreground()), ("orphan", DeleteParams::orphan())] {
        let mut spec = slow_on(name);
        if name == "orphan" {
            spec["batchSize"] = json!(5);
        }
        apply_once(&env, name, spec).await;
        let job = eventually("its run has a status", async || {
            let jobs = env.jobs().list(&ListParams::default()).await.ok()?.items;
            jobs.into_iter().find(|job| job.name_any().starts_with(name) && job.status.is_some())
        })
        .await
        .name_any();
        schedules.delete(name, &params).await.unwrap();
        eventually("it is gone", async || schedules.get_opt(name).await.unwrap().is_none().then_some(())).await;
        if name == "orphan" {
            let job = finished(&env, &job).await;
            assert!(is_complete(&job));
            assert_eq!(job.status.unwrap().counts.unwrap().updated, i64::from(USERS));
        } else {
            assert!(env.jobs().get_opt(&job).await.unwrap().is_none());
            wait_until_removed(&env).await;
            let users = env.count(doc! {"foreground": {"$type": "date"}}).await;
            assert!(users < USERS as u64, "the run was stopped before its end");
        }
    }
}

#[tokio::test]
async fn a_new_job_of_the_same_name_has_nothing_of_the_old_one() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&["--status-interval", "100ms"]);
    apply_job(&env, "run", slow()).await;
    wait_for_stamps(&env).await;
    env.jobs().delete("run", &DeleteParams::background()).await.unwrap();
    let spec = json!({"syncType": "Full", "target": {"filter": {"_id": {"$lt": 100}}, "lastSyncedField": "again"}});
    let uid = apply_job(&env, "run", spec).await.uid();
    let job = finished(&env, "run").await;
    wait_until_idle(&env).await;
    let after = env.jobs().get("run").await.unwrap();
    assert_eq!((&after.uid(), &after.status), (&uid, &job.status), "it gets nothing of the old run");
    let status = job.status.unwrap();
    let counts = status.counts.unwrap();
    assert_eq!((counts.total, counts.processed, counts.updated), (100, 100, 100));
    assert!(status.start_time.unwrap().0.as_second() >= job.metadata.creation_timestamp.unwrap().0.as_second());
    let old = env.count(doc! {"lastSynced": {"$type": "date"}}).await;
    assert!(old < USERS as u64, "the old run was stopped before its end");
    eventually("only the new run is known", async || (runs_in_redis(&env).await.len() == 1).then_some(())).await;
}
