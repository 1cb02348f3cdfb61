//! What is to be done about a SyncSchedule: which runs to make, which to count, which to delete.
//!
//! **Counting exactly once.** A run is first written into `status.active`, then its SyncJob is created, and
//! it is counted in the same status write that takes it out of `active`. Each of these writes carries the
//! resource version it was decided on, so of two controllers that decide on the same state one is refused.
//! A crash between the steps leaves an entry in `active`, and the next pass goes on from there.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{
    Note, conditions, elapsed, from_seconds, job, names,
    retention::{self, Finished},
    run::{SpecError, duration, range},
    slots::{Slots, stable_offset},
};
use crate::api::{
    GoDuration, SyncJob, SyncSchedule, SyncScheduleSpec, SyncScheduleStatus, TRIGGER_ANNOTATION,
    conditions::{FAILED, READY, RECONCILING, STALLED, SUSPENDED, reasons},
    syncschedule::{ActiveRun, CatchUp, ConcurrencyPolicy, RunFailure, Skip},
    truncate,
};

const DEFAULT_INTERVAL: &str = "20m";
const MAX_FAILURE_HISTORY: usize = 20;
/// With `catchUp: None`, a slot that is later than this counts as missed.
const ON_TIME: Duration = Duration::from_secs(10);

/// Why a slot was skipped.
pub mod skips {
    /// An earlier run was not finished.
    pub const ACTIVE: &str = "Active";
    /// Later than `spec.startingDeadline`.
    pub const DEADLINE: &str = "Deadline";
    /// A newer slot was due too, or `spec.catchUp` is None.
    pub const CATCH_UP: &str = "CatchUp";
    /// A SyncJob of that name exists and is not this schedule's.
    pub const NAME_COLLISION: &str = "NameCollision";
}

/// What a decision is made from.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The schedule as stored.
    pub schedule: &'a SyncSchedule,
    /// Every SyncJob it controls.
    pub jobs: &'a [Arc<SyncJob>],
    /// Redis answers.
    pub queue_available: bool,
}

/// What is to be done, in this order: write the status, create, delete, publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The next status.
    pub status: SyncScheduleStatus,
    /// Runs whose SyncJob does not exist yet.
    pub create: Vec<ActiveRun>,
    /// Names of SyncJobs beyond the history limits.
    pub delete: Vec<String>,
    /// What to tell people.
    pub notes: Vec<Note>,
    /// When to look again without being asked.
    pub requeue: Option<Duration>,
}

/// A spec that was checked, with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// Text for `status.schedule`.
    text: String,
    interval: Duration,
    jitter: Duration,
    starting_deadline: Option<Duration>,
    keep: (usize, usize),
}

/// Why no slots can be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A mistake in the spec.
    #[error(transparent)]
    Invalid(#[from] SpecError),
    /// Right, but not in this release.
    #[error("spec.schedule (cron) has no effect in this release: use spec.interval, such as 20m")]
    Cron,
}

impl Parsed {
    /// Checks a spec. The CRD's rules check the same; an object stored under an older CRD did not pass them.
    ///
    /// # Errors
    /// The first thing found that stops the schedule.
    pub fn new(spec: &SyncScheduleSpec) -> Result<Self, Unusable> {
        if spec.interval.is_some() && spec.schedule.is_some() {
            return Err(SpecError::Exclusive("interval", "schedule").into());
        }
        if spec.schedule.is_some() {
            return Err(Unusable::Cron);
        }
        let interval = spec.interval.clone().unwrap_or_else(|| GoDuration::new(DEFAULT_INTERVAL));
        let parsed = duration("interval", &interval)?;
        if parsed < Duration::from_secs(1) {
            return Err(SpecError::Range { field: "interval", min: 1, max: 8760 * 3600, value: 0 }.into());
        }
        let limit = |field, value| range(field, value, 0, 1000).map(|limit| limit as usize);
        Ok(Self {
            text: interval.to_string(),
            interval: parsed,
            jitter: duration("jitter", &spec.jitter)?,
            starting_deadline: spec
                .starting_deadline
                .as_ref()
                .map(|value| duration("startingDeadline", value))
                .transpose()?,
            keep: (
                limit("successfulJobsHistoryLimit", spec.successful_jobs_history_limit)?,
                limit("failedJobsHistoryLimit", spec.failed_jobs_history_limit)?,
            ),
        })
    }

    /// Time from one slot to the next.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// `staleAfter` of SyncJobs whose template has none: half the interval.
    #[must_use]
    pub fn stale_after(&self) -> GoDuration {
        GoDuration::from(self.interval / 2)
    }
}

/// Decides on a schedule.
#[must_use]
pub fn decide(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let schedule = observed.schedule;
    let old = schedule.status.clone().unwrap_or_default();
    let mut plan =
        Plan { status: old.clone(), create: Vec::new(), delete: Vec::new(), notes: not_yet(schedule), requeue: None };
    plan.status.observed_generation = schedule.metadata.generation;

    settle(&mut plan.status, observed.jobs);
    let parsed = Parsed::new(&schedule.spec);
    if let Ok(parsed) = &parsed {
        start_due(&mut plan, schedule, &old, parsed, now);
        plan.delete = history(&plan.status, observed.jobs, parsed.keep);
    } else {
        plan.status.next_schedule_time = None;
    }
    plan.status.active_count = Some(plan.status.active.len() as i32);
    plan.create = missing(&plan.status, observed.jobs);
    set_conditions(&mut plan.status, observed, parsed.as_ref().err(), now);
    plan
}

/// Notes that the slot of `entry` cannot be run since a SyncJob of its name is not ours.
pub fn collided(status: &mut SyncScheduleStatus, entry: &ActiveRun) {
    status.active.retain(|run| run.name != entry.name);
    status.active_count = Some(status.active.len() as i32);
    status.runs.total -= 1;
    skip(status, entry.slot.0, 1, skips::NAME_COLLISION);
}

/// Counts the runs that ended, and learns the uid of those that were created.
fn settle(status: &mut SyncScheduleStatus, jobs: &[Arc<SyncJob>]) {
    let mut active = Vec::new();
    for mut entry in std::mem::take(&mut status.active) {
        let job = jobs.iter().find(|job| job.name_any() == entry.name);
        match job {
            Some(job) if job::is_finished(job) => count(status, job),
            Some(job) => {
                entry.uid = job.uid();
                active.push(entry);
            }
            // Never created: the plan creates it. Seen before and now gone: somebody deleted it.
            None if entry.uid.is_none() => active.push(entry),
            None => {}
        }
    }
    status.active = active;
}

fn count(status: &mut SyncScheduleStatus, finished: &SyncJob) {
    let Some(result) = &finished.status else { return };
    status.last_duration.clone_from(&result.duration);
    if job::is_complete(finished) {
        status.runs.succeeded += 1;
        if result.completion_time > status.last_successful_time {
            status.last_successful_time.clone_from(&result.completion_time);
        }
        return;
    }
    status.runs.failed += 1;
    let condition = conditions::find(&result.conditions, FAILED);
    let failure = RunFailure {
        job: finished.name_any(),
        time: result.completion_time.clone().unwrap_or(Time(Timestamp::UNIX_EPOCH)),
        reason: condition.map(|condition| condition.reason.clone()).unwrap_or_default(),
        message: condition.map(|condition| truncate(&condition.message)).unwrap_or_default(),
    };
    status.failure_history.insert(0, failure);
    status.failure_history.sort_by(|a, b| b.time.cmp(&a.time));
    status.failure_history.truncate(MAX_FAILURE_HISTORY);
}

fn start_due(plan: &mut Plan, schedule: &SyncSchedule, old: &SyncScheduleStatus, parsed: &Parsed, now: Timestamp) {
    let status = &mut plan.status;
    let slots = Slots::new(parsed.interval, stable_offset(&schedule.uid().unwrap_or_default(), parsed.jitter));
    let created = schedule.creation_timestamp().map_or(now, |created| created.0);
    let first_visit = old.slots_since.is_none();
    let resumed = conditions::is_true(&old.conditions, SUSPENDED) && !schedule.spec.suspended;
    let edited = old.schedule.as_deref().is_some_and(|text| text != parsed.text);

    status.schedule = Some(parsed.text.clone());
    if first_visit {
        status.slots_since = Some(Time(from_seconds(created.as_second())));
    }
    if resumed || edited {
        status.slots_since = Some(Time(from_seconds(now.as_second())));
    }
    if schedule.spec.suspended {
        status.next_schedule_time = None;
        return;
    }
    if first_visit && schedule.spec.immediate {
        start(status, schedule, from_seconds(created.as_second()));
    }
    if let Some(due) = slots.due(handled(status), now) {
        let late = elapsed(slots.start(due.newest), now);
        if due.count > 1 {
            skip(
                status,
                from_seconds(due.newest.as_second() - parsed.interval.as_secs() as i64),
                due.count - 1,
                skips::CATCH_UP,
            );
            plan.notes.push(skipped(due.count - 1, "they passed while no controller was at work"));
        }
        let refusal = if schedule.spec.catch_up == CatchUp::None && late > ON_TIME {
            Some((skips::CATCH_UP, "it was missed, and spec.catchUp is None"))
        } else if parsed.starting_deadline.is_some_and(|deadline| late > deadline) {
            Some((skips::DEADLINE, "it is later than spec.startingDeadline"))
        } else if schedule.spec.concurrency_policy != ConcurrencyPolicy::Allow && !status.active.is_empty() {
            Some((skips::ACTIVE, "an earlier run is not finished"))
        } else {
            None
        };
        match refusal {
            Some((reason, why)) => {
                skip(status, due.newest, 1, reason);
                plan.notes.push(skipped(1, why));
            }
            None => start(status, schedule, due.newest),
        }
    }
    let next = slots.next(handled(status), now);
    let start = slots.start(next);
    status.next_schedule_time = Some(Time(from_seconds(start.as_second())));
    plan.requeue = Some(elapsed(now, start).max(Duration::from_millis(1)));
}

/// The newest slot that was dealt with, one way or another.
fn handled(status: &SyncScheduleStatus) -> Timestamp {
    let skip = status.last_skip.as_ref().map(|skip| &skip.time);
    [status.slots_since.as_ref(), status.last_schedule_time.as_ref(), skip]
        .into_iter()
        .flatten()
        .map(|time| time.0)
        .max()
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

fn start(status: &mut SyncScheduleStatus, schedule: &SyncSchedule, slot: Timestamp) {
    let name = names::job_for_slot(&schedule.name_any(), slot);
    if status.active.iter().any(|run| run.name == name) {
        return;
    }
    status.active.push(ActiveRun { name, uid: None, slot: Time(slot) });
    status.last_schedule_time = Some(Time(slot));
    status.runs.total += 1;
}

fn skip(status: &mut SyncScheduleStatus, slot: Timestamp, count: i64, reason: &str) {
    status.runs.skipped += count;
    status.last_skip = Some(Skip { time: Time(slot), reason: reason.to_owned() });
}

fn skipped(count: i64, why: &str) -> Note {
    let what = if count == 1 { "A slot was".to_owned() } else { format!("{count} slots were") };
    Note::warning("RunSkipped", format!("{what} skipped: {why}"))
}

fn missing(status: &SyncScheduleStatus, jobs: &[Arc<SyncJob>]) -> Vec<ActiveRun> {
    let exists = |run: &ActiveRun| jobs.iter().any(|job| job.name_any() == run.name);
    status.active.iter().filter(|run| run.uid.is_none() && !exists(run)).cloned().collect()
}

/// Finished runs beyond the limits. Runs still in `active` are not counted yet and stay.
fn history(status: &SyncScheduleStatus, jobs: &[Arc<SyncJob>], keep: (usize, usize)) -> Vec<String> {
    let counted = |job: &SyncJob| !status.active.iter().any(|run| run.name == job.name_any());
    let finished = jobs.iter().filter(|job| job::is_finished(job) && counted(job)).map(|job| Finished {
        name: job.name_any(),
        succeeded: job::is_complete(job),
        at: job
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref())
            .map_or(Timestamp::MIN, |time| time.0),
    });
    retention::beyond(finished.collect(), keep.0, keep.1)
}

fn set_conditions(
    status: &mut SyncScheduleStatus,
    observed: &Observed<'_>,
    unusable: Option<&Unusable>,
    now: Timestamp,
) {
    let generation = observed.schedule.metadata.generation;
    let mut set = |type_, value, reason, message: &str| {
        conditions::set(&mut status.conditions, type_, value, reason, message, generation, now);
    };
    let suspended = observed.schedule.spec.suspended;
    if suspended {
        set(SUSPENDED, true, reasons::SUSPENDED, "spec.suspended is true: no new runs");
    } else {
        set(SUSPENDED, false, reasons::ACTIVE, "Runs are started as scheduled");
    }
    if let Some(error) = unusable {
        let reason = if *error == Unusable::Cron { reasons::NOT_IMPLEMENTED } else { reasons::INVALID_SPEC };
        set(READY, false, reason, &error.to_string());
        set(STALLED, true, reason, &error.to_string());
        conditions::clear(&mut status.conditions, RECONCILING);
    } else if observed.queue_available {
        let message = if suspended { "Suspended: no new runs" } else { "Runs are started as scheduled" };
        set(READY, true, reasons::SCHEDULED, message);
        conditions::clear(&mut status.conditions, STALLED);
        conditions::clear(&mut status.conditions, RECONCILING);
    } else {
        let message = "Redis does not answer: runs are made and start when it is back";
        set(READY, false, reasons::QUEUE_UNAVAILABLE, message);
        set(RECONCILING, true, reasons::QUEUE_UNAVAILABLE, message);
        conditions::clear(&mut status.conditions, STALLED);
    }
}

/// Fields whose behaviour this release does not have yet, and mistakes; told once per generation.
fn not_yet(schedule: &SyncSchedule) -> Vec<Note> {
    let seen = schedule.status.as_ref().and_then(|status| status.observed_generation);
    if seen.is_some() && seen == schedule.metadata.generation {
        return Vec::new();
    }
    let mut notes = Vec::new();
    if let Err(error) = Parsed::new(&schedule.spec) {
        notes.push(Note::warning("InvalidSchedule", error.to_string()));
    }
    let mut tell = |text: &str| notes.push(Note::warning(reasons::NOT_IMPLEMENTED, text));
    if schedule.spec.concurrency_policy == ConcurrencyPolicy::Replace {
        tell("spec.concurrencyPolicy Replace has no effect in this release: slots are handled as with Forbid");
    }
    if schedule.annotations().contains_key(TRIGGER_ANNOTATION) {
        tell("the annotation sync.codex.dev/trigger has no effect in this release");
    }
    notes
}

#[cfg(test)]
mod tests;
