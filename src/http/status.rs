//! `GET /jobs/status`: the view the Node service gave, from the watch cache and Redis.

use std::sync::Arc;

use axum::{Json, extract};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use super::State;
use crate::{
    api::{
        SyncJob, SyncSchedule,
        syncjob::{Phase, SyncMode},
    },
    domain::schedule::interval,
    queue::Depth,
};

/// The body of `/jobs/status`. Everything in it may be up to 2 s old.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    repeatable: Vec<Repeatable>,
    counts: Counts,
    active_jobs: Vec<ActiveJob>,
    /// True when there are schedules and all of them are suspended.
    paused: bool,
}

#[derive(Debug, Serialize)]
struct Repeatable {
    name: String,
    namespace: String,
    /// Interval in milliseconds. Absent for a cron schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    every: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tz: Option<String>,
    /// Next slot. `null` while suspended.
    next: Option<Timestamp>,
    suspended: bool,
}

/// Active, waiting, delayed and paused runs as Redis has them (`null` when it does not answer), and the
/// completed and failed ones that are kept.
#[derive(Debug, Serialize)]
struct Counts {
    active: Option<u64>,
    waiting: Option<u64>,
    delayed: Option<u64>,
    paused: Option<u64>,
    completed: usize,
    failed: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ActiveJob {
    name: String,
    namespace: String,
    sync_type: &'static str,
    progress: i32,
    processed: i64,
    total: i64,
    attempts_made: i32,
    started_at: Option<Timestamp>,
}

pub(super) async fn status(extract::State(state): extract::State<Arc<State>>) -> Json<Status> {
    let depth = state.depth().await;
    let (schedules, jobs, ended) = state.cluster().map_or_else(Default::default, |cluster| {
        (cluster.schedules.state(), cluster.jobs.state(), cluster.ended_jobs())
    });
    Json(build(&schedules, &jobs, ended, depth))
}

/// `ended`: SyncJobs beside `jobs` that completed, and that failed.
fn build(
    schedules: &[Arc<SyncSchedule>],
    jobs: &[Arc<SyncJob>],
    ended: (usize, usize),
    depth: Option<Depth>,
) -> Status {
    let in_phase =
        |phase| jobs.iter().filter(move |job| job.status.as_ref().and_then(|status| status.phase) == Some(phase));
    let mut repeatable: Vec<_> = schedules.iter().map(|schedule| repeatable(schedule)).collect();
    repeatable.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut active_jobs: Vec<_> = in_phase(Phase::Running).map(|job| active_job(job)).collect();
    active_jobs.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Status {
        paused: !repeatable.is_empty() && repeatable.iter().all(|schedule| schedule.suspended),
        repeatable,
        counts: Counts {
            active: depth.map(|depth| depth.active),
            waiting: depth.map(|depth| depth.waiting),
            delayed: depth.map(|depth| depth.delayed),
            paused: depth.map(|depth| depth.parked),
            completed: in_phase(Phase::Complete).count() + ended.0,
            failed: in_phase(Phase::Failed).count() + ended.1,
        },
        active_jobs,
    }
}

fn repeatable(schedule: &SyncSchedule) -> Repeatable {
    let interval = schedule.spec.schedule.is_none().then(|| interval(&schedule.spec).ok()).flatten();
    Repeatable {
        name: schedule.name_any(),
        namespace: schedule.namespace().unwrap_or_default(),
        every: interval.map(|interval| interval.as_millis() as u64),
        cron: schedule.spec.schedule.clone(),
        tz: schedule.spec.time_zone.clone(),
        next: schedule.status.as_ref().and_then(|status| status.next_schedule_time.as_ref()).map(|time| time.0),
        suspended: schedule.spec.suspended,
    }
}

fn active_job(job: &SyncJob) -> ActiveJob {
    let status = job.status.clone().unwrap_or_default();
    let counts = status.counts.unwrap_or_default();
    ActiveJob {
        name: job.name_any(),
        namespace: job.namespace().unwrap_or_default(),
        sync_type: match job.spec.sync_type {
            SyncMode::Full => "full",
            SyncMode::Incremental => "incremental",
        },
        progress: status.progress.unwrap_or(0),
        processed: counts.processed,
        total: counts.total,
        attempts_made: status.attempts.unwrap_or(0),
        started_at: status.start_time.map(|start| start.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json, to_value};

    #[test]
    fn the_body_has_the_fields_scripts_rely_on() {
        let schedule: SyncSchedule = from_value(json!({
            "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncSchedule",
            "metadata": {"name": "user-sync", "namespace": "default"},
            "spec": {"interval": "20m"},
            "status": {"nextScheduleTime": "2026-11-23T12:20:00Z"},
        }))
        .unwrap();
        let job = |name: &str, phase: &str| -> Arc<SyncJob> {
            Arc::new(
                from_value(json!({
                    "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob",
                    "metadata": {"name": name, "namespace": "default"},
                    "spec": {"syncType": "Full"},
                    "status": {"phase": phase, "progress": 40, "attempts": 1, "startTime": "2026-11-23T12:00:00.250000Z",
                               "counts": {"total": 10, "processed": 4, "updated": 4, "unchanged": 0, "failed": 0}},
                }))
                .unwrap(),
            )
        };
        let jobs = [job("b", "Running"), job("a", "Complete"), job("c", "Failed")];
        let depth = Depth { active: 1, waiting: 2, delayed: 3, parked: 4, workers: 5 };
        let body = to_value(build(&[Arc::new(schedule)], &jobs, (10, 20), Some(depth))).unwrap();
        assert_eq!(
            body,
            json!({
                "repeatable": [{"name": "user-sync", "namespace": "default", "every": 1_200_000, "next": "2026-11-23T12:20:00Z", "suspended": false}],
                "counts": {"active": 1, "waiting": 2, "delayed": 3, "paused": 4, "completed": 11, "failed": 21},
                "activeJobs": [{"name": "b", "namespace": "default", "syncType": "full", "progress": 40, "processed": 4,
                                "total": 10, "attemptsMade": 1, "startedAt": "2026-11-23T12:00:00.25Z"}],
                "paused": false,
            })
        );
    }

    #[test]
    fn without_redis_what_is_known_is_still_told() {
        let body = to_value(build(&[], &[], (0, 0), None)).unwrap();
        assert_eq!((&body["counts"]["active"], &body["counts"]["completed"]), (&json!(null), &json!(0)));
    }
}
