//! `GET /jobs/status`: the view the Node service gave, from the watch cache and Redis.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use tokio::{sync::Mutex, time::Instant};
use utoipa::ToSchema;

use super::{App, job_view::Mode, problem::Problem};
use crate::{
    api::{SyncJob, SyncSchedule, syncjob::Phase},
    cluster,
    domain::schedule::interval,
    queue::Depth,
};

/// Age after which an answer is renewed. No answer is older than [`OLDEST`].
const FRESH: Duration = Duration::from_millis(500);
const OLDEST: Duration = Duration::from_secs(2);

/// Body of `/jobs/status`. All values may be up to 2 s older than `asOf` says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    /// Schedules. `null` for callers who may not list the SyncJobs of all namespaces.
    #[schema(required = true)]
    repeatable: Option<Vec<Repeatable>>,
    counts: Counts,
    /// Active runs. `null` for the same callers.
    #[schema(required = true)]
    active_jobs: Option<Vec<ActiveJob>>,
    /// True when there are schedules and all of them are suspended.
    paused: bool,
    as_of: AsOf,
}

/// Time of the data. It is in the past when a server does not answer.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct AsOf {
    /// Time of `active`, `waiting`, `delayed` and `paused` in `counts`. `null` when Redis has never answered.
    queue: Option<Timestamp>,
    /// Time of all other values.
    objects: Timestamp,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Repeatable {
    pub name: String,
    namespace: String,
    /// Interval in milliseconds. Absent for a cron schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// Next slot. `null` while suspended.
    pub next: Option<Timestamp>,
    pub suspended: bool,
}

/// Active, waiting, delayed and paused runs in Redis (`null` when Redis has never answered), and the completed and
/// failed runs that are kept.
#[derive(Debug, Serialize, ToSchema)]
struct Counts {
    active: Option<u64>,
    waiting: Option<u64>,
    delayed: Option<u64>,
    paused: Option<u64>,
    completed: usize,
    failed: usize,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ActiveJob {
    name: String,
    namespace: String,
    sync_type: Mode,
    progress: i32,
    processed: i64,
    total: i64,
    attempts_made: i32,
    started_at: Option<Timestamp>,
}

/// Last answer, cached for a moment, so that any number of dashboards cost next to nothing.
#[derive(Default)]
pub(super) struct CachedStatus {
    answer: std::sync::Mutex<Option<(Instant, Answer)>>,
    /// Last answer of Redis, which is kept while Redis is unavailable. The caller that renews the answer holds the
    /// lock.
    depth: Mutex<Option<(Depth, Timestamp)>>,
}

/// Answer with and without the names of objects.
#[derive(Clone)]
struct Answer {
    whole: Bytes,
    counts: Bytes,
}

impl CachedStatus {
    fn answer(&self, younger_than: Duration) -> Option<Answer> {
        let answer = self.answer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        answer.as_ref().filter(|(at, _)| at.elapsed() < younger_than).map(|(_, answer)| answer.clone())
    }

    fn store(&self, answer: &Answer) {
        let stored = Some((Instant::now(), answer.clone()));
        *self.answer.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = stored;
    }
}

/// Returns schedules, counts and active runs, in the format of the Node service.
///
/// Callers who may not list the SyncJobs of all namespaces receive the counts only.
#[utoipa::path(get, path = "/jobs/status", tag = "jobs", responses((status = 200, body = Status)))]
pub(super) async fn status(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let reads_all = app.access.reads_all(&headers).await?;
    let Answer { whole, counts } = match app.status.answer(FRESH) {
        Some(fresh) => fresh,
        None => renewed(&app).await?,
    };
    let body = if reads_all { whole } else { counts };
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// Returns a new answer, or a recent one while another caller renews it. That may take as long as Redis does not
/// answer.
async fn renewed(app: &App) -> Result<Answer, Problem> {
    if let Ok(mut depth) = app.status.depth.try_lock() {
        return make(app, &mut depth).await;
    }
    if let Some(recent) = app.status.answer(OLDEST) {
        return Ok(recent);
    }
    let mut depth = app.status.depth.lock().await;
    match app.status.answer(FRESH) {
        Some(fresh) => Ok(fresh),
        None => make(app, &mut depth).await,
    }
}

async fn make(app: &App, last: &mut Option<(Depth, Timestamp)>) -> Result<Answer, Problem> {
    let objects = app.listed()?;
    let depth = app.state.read_depth().await;
    let now = Timestamp::now();
    *last = depth.map(|depth| (depth, now)).or(*last);
    let as_of = AsOf { queue: last.map(|(_, at)| at), objects: cluster::stale_since().unwrap_or(now) };
    let status = build(&objects.schedules.state(), &objects.jobs.state(), last.map(|(depth, _)| depth), as_of);
    let bytes = |status: &Status| Bytes::from(serde_json::to_vec(status).unwrap_or_default());
    let whole = bytes(&status);
    let answer = Answer { whole, counts: bytes(&Status { repeatable: None, active_jobs: None, ..status }) };
    app.status.store(&answer);
    Ok(answer)
}

fn build(schedules: &[Arc<SyncSchedule>], jobs: &[Arc<SyncJob>], depth: Option<Depth>, as_of: AsOf) -> Status {
    let in_phase =
        |phase| jobs.iter().filter(move |job| job.status.as_ref().and_then(|status| status.phase) == Some(phase));
    let mut repeatable: Vec<_> = schedules.iter().map(|schedule| Repeatable::from(&**schedule)).collect();
    repeatable.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut active_jobs: Vec<_> = in_phase(Phase::Running).map(|job| active_job(job)).collect();
    active_jobs.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Status {
        paused: !repeatable.is_empty() && repeatable.iter().all(|schedule| schedule.suspended),
        repeatable: Some(repeatable),
        counts: Counts {
            active: depth.map(|depth| depth.active),
            waiting: depth.map(|depth| depth.waiting),
            delayed: depth.map(|depth| depth.delayed),
            paused: depth.map(|depth| depth.parked),
            completed: in_phase(Phase::Complete).count(),
            failed: in_phase(Phase::Failed).count(),
        },
        active_jobs: Some(active_jobs),
        as_of,
    }
}

impl From<&SyncSchedule> for Repeatable {
    fn from(schedule: &SyncSchedule) -> Self {
        let interval = schedule.spec.schedule.is_none().then(|| interval(&schedule.spec).ok()).flatten();
        Self {
            name: schedule.name_any(),
            namespace: schedule.namespace().unwrap_or_default(),
            every: interval.map(|interval| interval.as_millis() as u64),
            cron: schedule.spec.schedule.clone(),
            tz: schedule.spec.time_zone.clone(),
            next: schedule.status.as_ref().and_then(|status| status.next_schedule_time.as_ref()).map(|time| time.0),
            suspended: schedule.spec.suspended,
        }
    }
}

fn active_job(job: &SyncJob) -> ActiveJob {
    let status = job.status.clone().unwrap_or_default();
    let counts = status.counts.unwrap_or_default();
    ActiveJob {
        name: job.name_any(),
        namespace: job.namespace().unwrap_or_default(),
        sync_type: job.spec.sync_type.into(),
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
    use crate::fixtures;
    use serde_json::{json, to_value};

    #[test]
    fn the_body_has_the_fields_scripts_rely_on() {
        let schedule = fixtures::schedule(json!({
            "metadata": {"name": "user-sync", "namespace": "default"},
            "spec": {"interval": "20m"},
            "status": {"nextScheduleTime": "2026-11-23T12:20:00Z"},
        }));
        let job = |name: &str, phase: &str| {
            Arc::new(fixtures::job(json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"syncType": "Full"},
                "status": {"phase": phase, "progress": 40, "attempts": 1, "startTime": "2026-11-23T12:00:00.250000Z",
                           "counts": {"total": 10, "processed": 4, "updated": 4, "unchanged": 0, "failed": 0}},
            })))
        };
        let jobs = [job("b", "Running"), job("a", "Complete"), job("c", "Failed")];
        let depth = Depth { active: 1, waiting: 2, delayed: 3, parked: 4, workers: 5, oldest: Duration::ZERO };
        let at = Timestamp::from_second(1_795_477_200).unwrap();
        let as_of = AsOf { queue: None, objects: at };
        let body = to_value(build(&[Arc::new(schedule)], &jobs, Some(depth), as_of)).unwrap();
        assert_eq!(
            body,
            json!({
                "repeatable": [{"name": "user-sync", "namespace": "default", "every": 1_200_000, "next": "2026-11-23T12:20:00Z", "suspended": false}],
                "counts": {"active": 1, "waiting": 2, "delayed": 3, "paused": 4, "completed": 1, "failed": 1},
                "activeJobs": [{"name": "b", "namespace": "default", "syncType": "full", "progress": 40, "processed": 4,
                                "total": 10, "attemptsMade": 1, "startedAt": "2026-11-23T12:00:00.25Z"}],
                "paused": false,
                "asOf": {"queue": null, "objects": "2026-11-23T23:40:00Z"},
            })
        );
    }
}
