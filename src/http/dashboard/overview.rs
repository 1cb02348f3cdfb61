//! `/`: overview page.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use askama::Template;
use axum::{extract::State, response::Response};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Deserialize;

use super::{
    Filled, Frame, FromBrowser, RunRow, Visitor,
    format::{Moment, PHASES, filters},
    hour::{self, Hour},
    page,
};
use crate::{
    api::{SyncJob, SyncSchedule, syncjob::Phase},
    cluster,
    domain::job::is_replaced,
    http::{App, leader::Leads, problem::Problem},
    queue::Depth,
};

/// Largest number of entries in each list.
const SHOWN: usize = 8;
/// Reasons of attempts to which MongoDB gave no answer that could be used.
const MONGODB_AWAY: [&str; 4] = ["Unreachable", "Timeout", "Unauthorized", "ServerError"];

/// Namespace to show.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Where {
    namespace: Option<String>,
}

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Frame,
    facts: Facts,
    hour: Hour,
    leader: Leader,
    redis: Option<Depth>,
    /// Depth of the queue, for users who see all namespaces.
    queue: Option<Depth>,
    stale: Option<Moment>,
}

/// Leader, as shown.
enum Leader {
    Process(String, Option<Moment>),
    Nobody(Option<Moment>),
    Unknown,
}

impl Leader {
    fn new(leads: Leads, now: Timestamp) -> Self {
        let moment = |at: Option<Timestamp>| at.map(|at| Moment::new(at, now));
        match leads {
            Leads::Process(name, since) => Self::Process(name, moment(since)),
            Leads::Nobody(last) => Self::Nobody(moment(last)),
            Leads::Unknown => Self::Unknown,
        }
    }
}

/// Facts derived from the objects.
struct Facts {
    counts: Vec<(Phase, i64)>,
    schedules: usize,
    suspended: usize,
    oldest: Option<RunRow>,
    slots: Vec<Slot>,
    failures: Vec<RunRow>,
    workers: Vec<(String, Vec<RunRow>)>,
    mongodb: MongoDb,
}

/// State of MongoDB, as the runs report it. The API process has no access to MongoDB.
#[derive(Debug, PartialEq)]
enum MongoDb {
    /// Number of runs that wait since MongoDB did not answer, and the reason of one of them.
    Away(usize, String),
    /// A run ended well at that time.
    There(Moment),
    Unknown,
}

/// Next slot of a schedule.
struct Slot {
    namespace: String,
    name: String,
    at: Moment,
}

/// The page.
pub(super) async fn show(
    State(app): State<App>,
    _: FromBrowser,
    visitor: Visitor,
    Filled(Where { namespace }): Filled<Where>,
) -> Result<Response, Problem> {
    let objects = app.listed()?;
    let scope = visitor.scope(&app, "syncjobs", namespace.as_deref()).await?;
    let mut jobs = objects.jobs.state();
    jobs.retain(|job| scope.includes(&**job));
    let mut schedules = objects.schedules.state();
    match visitor.scope(&app, "syncschedules", namespace.as_deref()).await {
        Ok(scope) => schedules.retain(|schedule| scope.includes(&**schedule)),
        Err(_) => schedules.clear(),
    }
    let now = Timestamp::now();
    let (redis, leads) = tokio::join!(app.state.depth(), app.leader.load(objects, now));
    let leader = Leader::new(leads, now);
    let hour = Hour::new(&objects.last_hour(scope.0.as_ref(), now), now);
    let stale = cluster::stale_since().map(|at| Moment::new(at, now));
    let facts = facts(&schedules, &jobs, now);
    let queue = redis.filter(|_| scope.0.is_none());
    page(&Overview { frame: visitor.frame("overview", &scope), facts, hour, leader, redis, queue, stale })
}

fn phase(job: &SyncJob) -> Phase {
    job.status.as_ref().and_then(|status| status.phase).unwrap_or(Phase::Pending)
}

fn facts(schedules: &[Arc<SyncSchedule>], jobs: &[Arc<SyncJob>], now: Timestamp) -> Facts {
    let row = |job: &Arc<SyncJob>| RunRow::new((&**job).into(), now);
    let in_phase = |wanted: Phase| jobs.iter().filter(move |job| phase(job) == wanted);
    let waiting = in_phase(Phase::Pending).chain(in_phase(Phase::Queued));
    let oldest = waiting.min_by_key(|job| job.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let mut failures: Vec<_> = in_phase(Phase::Failed).filter(|job| !is_replaced(job)).collect();
    let ended = |job: &SyncJob| job.status.as_ref()?.completion_time.as_ref().map(|time| time.0);
    failures.sort_by_cached_key(|job| Reverse(ended(job)));
    let mut workers: BTreeMap<String, Vec<RunRow>> = BTreeMap::new();
    for job in in_phase(Phase::Running).chain(in_phase(Phase::RollingBack)) {
        let worker = job.status.as_ref().and_then(|status| status.worker.clone()).unwrap_or_default();
        workers.entry(worker).or_default().push(row(job));
    }
    let next = |schedule: &SyncSchedule| Some(schedule.status.as_ref()?.next_schedule_time.as_ref()?.0);
    let mut slots: Vec<_> = schedules.iter().filter_map(|schedule| Some((next(schedule)?, schedule))).collect();
    slots.sort_unstable_by_key(|(at, _)| *at);
    let slot = |(at, schedule): &(Timestamp, &Arc<SyncSchedule>)| Slot {
        namespace: schedule.namespace().unwrap_or_default(),
        name: schedule.name_any(),
        at: Moment::new(*at, now),
    };
    Facts {
        counts: PHASES.into_iter().map(|phase| (phase, in_phase(phase).count() as i64)).collect(),
        schedules: schedules.len(),
        suspended: schedules.iter().filter(|schedule| schedule.spec.suspended).count(),
        oldest: oldest.map(row),
        slots: slots.iter().take(SHOWN).map(slot).collect(),
        failures: failures.into_iter().take(SHOWN).map(row).collect(),
        workers: workers.into_iter().take(SHOWN).collect(),
        mongodb: mongodb(jobs, now),
    }
}

fn mongodb(jobs: &[Arc<SyncJob>], now: Timestamp) -> MongoDb {
    let last = |job: &SyncJob| job.status.as_ref()?.attempt_history.last().cloned();
    let waiting = jobs.iter().filter(|job| phase(job) == Phase::Retrying).filter_map(|job| last(job));
    let mut waiting = waiting.filter(|attempt| MONGODB_AWAY.contains(&attempt.reason.as_str())).peekable();
    if let Some(first) = waiting.peek() {
        let why = first.message.clone();
        return MongoDb::Away(waiting.count(), why);
    }
    let ended = jobs.iter().filter(|job| phase(job) == Phase::Complete);
    let ended = ended.filter_map(|job| job.status.as_ref()?.completion_time.as_ref().map(|time| time.0));
    ended.max().map_or(MongoDb::Unknown, |at| MongoDb::There(Moment::new(at, now)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use serde_json::{Value, json};

    fn job(name: &str, created: &str, status: &Value) -> Arc<SyncJob> {
        let metadata = json!({"name": name, "namespace": "a", "creationTimestamp": created});
        Arc::new(fixtures::job(json!({"metadata": metadata, "status": status})))
    }

    fn schedule(name: &str, next: Option<&str>) -> Arc<SyncSchedule> {
        Arc::new(fixtures::schedule(json!({
            "metadata": {"name": name, "namespace": "a"},
            "spec": {"suspended": next.is_none()}, "status": {"nextScheduleTime": next},
        })))
    }

    fn failed(at: &str, reason: &str) -> Value {
        json!({"phase": "Failed", "completionTime": at, "conditions": [fixtures::condition("Failed", reason, "", at)]})
    }

    fn names(rows: &[RunRow]) -> Vec<&str> {
        rows.iter().map(|row| row.job.name.as_str()).collect()
    }

    #[test]
    fn the_state_of_mongodb_follows_from_runs() {
        let now = "2026-11-25T10:05:00Z".parse().unwrap();
        let at = "2026-11-25T10:01:00Z";
        let retrying = |reason: &str| {
            let attempt = json!({"number": 1, "start": at, "end": at, "reason": reason, "message": "why"});
            job("one", at, &json!({"phase": "Retrying", "attemptHistory": [attempt]}))
        };
        let complete = job("two", at, &json!({"phase": "Complete", "completionTime": at}));
        let there = || MongoDb::There(Moment::new(at.parse().unwrap(), now));
        for (jobs, expected) in [
            (vec![], MongoDb::Unknown),
            (vec![job("new", at, &json!({}))], MongoDb::Unknown),
            (vec![complete.clone()], there()),
            (vec![retrying("SourceUnreachable"), complete.clone()], there()),
            (vec![retrying("Unreachable"), complete, retrying("Timeout")], MongoDb::Away(2, "why".to_owned())),
        ] {
            assert_eq!(mongodb(&jobs, now), expected);
        }
    }

    #[test]
    fn the_overview_shows_waiting_running_failed_and_due_runs() {
        let jobs = [
            job("new", "2026-11-25T10:03:00Z", &json!({"phase": "Queued"})),
            job("old", "2026-11-25T10:01:00Z", &json!({"phase": "Queued"})),
            job("unseen", "2026-11-25T10:02:00Z", &json!({})),
            job("one", "2026-11-25T10:00:00Z", &json!({"phase": "Running", "worker": "w2"})),
            job("two", "2026-11-25T10:00:00Z", &json!({"phase": "Running", "worker": "w1"})),
            job("three", "2026-11-25T10:00:00Z", &json!({"phase": "Running", "worker": "w2"})),
            job("first", "2026-11-25T10:00:00Z", &failed("2026-11-25T10:01:00Z", "Test")),
            job("last", "2026-11-25T10:00:00Z", &failed("2026-11-25T10:02:00Z", "Test")),
            job("replaced", "2026-11-25T10:00:00Z", &failed("2026-11-25T10:03:00Z", "Replaced")),
        ];
        let schedules = [
            schedule("b", Some("2026-11-25T10:20:00Z")),
            schedule("a", Some("2026-11-25T10:10:00Z")),
            schedule("c", None),
        ];
        let facts = facts(&schedules, &jobs, "2026-11-25T10:05:00Z".parse().unwrap());
        assert_eq!(facts.oldest.unwrap().job.name, "old");
        assert_eq!(names(&facts.failures), ["last", "first"], "a run that gave way has not failed");
        let workers: Vec<_> = facts.workers.iter().map(|(worker, lines)| (worker.as_str(), names(lines))).collect();
        assert_eq!(workers, [("w1", vec!["two"]), ("w2", vec!["one", "three"])]);
        let slots: Vec<_> = facts.slots.iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!((slots, facts.schedules, facts.suspended), (vec!["a", "b"], 3, 1));
        let counts: Vec<_> = facts.counts.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 2, 3, 0, 0, 0, 0, 0, 3]);
    }
}
