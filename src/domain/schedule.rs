//! Decisions about a SyncSchedule: the runs to create, to count and to delete.
//!
//! **Counting exactly once.** A run is first written into `status.active`, then its SyncJob is created, and it is
//! counted in the same status write that removes it from `active`. Each of these writes carries the resource version
//! it was decided on, so of two controllers that decide on the same state one is refused. A crash between the steps
//! leaves an entry in `active`, and the next reconciliation continues from there.
//!
//! **Waiting entries.** Where runs must not overlap, an entry may wait in `active` for the end of an earlier run before
//! its SyncJob is created. With `Replace`, it waits until the replaced run was cancelled and its worker is fenced.
//!
//! **Held runs** stay in `active` until they are counted, but block no other run: a held run may wait for days.

mod health;
mod job_builder;
mod spec;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{
    ObjectEvent, clock, conditions, elapsed,
    failure::Failure,
    field_conflict::{self, FieldConflict},
    from_seconds, installation, job, names,
    retention::{self, Finished},
    run::SpecError,
};
use crate::api::{
    SLOT_ANNOTATION, SyncJob, SyncJobStatus, SyncSchedule, SyncScheduleStatus, TRIGGER_ANNOTATION,
    conditions::{CLOCK_SKEW, FAILED, FIELD_CONFLICT, READY, RECONCILING, STALLED, SUSPENDED, reasons},
    syncjob::SyncMode,
    syncschedule::{ActiveRun, CatchUp, ConcurrencyPolicy, HeldRun, RunFailure, RunResult, Skip},
    truncate,
};

/// Shortest age of a run whose uid is written into `active`. A run that ends sooner is counted without its uid, which
/// saves a write. The controller that created the SyncJob knows the run without the uid.
const SHORT: Duration = Duration::from_secs(5);
const MAX_FAILURE_HISTORY: usize = 20;
const MAX_HANDLED_TRIGGERS: usize = 20;
/// Longest delay of a slot that does not count as missed with `catchUp: None`. A new leader takes a quarter of that
/// time, and its first starts may have to wait for each other.
const ON_TIME: Duration = Duration::from_mins(1);

pub use health::{HEALTH_STATES, count as count_by_health};
pub use job_builder::build_job;
pub use spec::{Parsed, interval};

/// Reasons for which a slot is skipped.
pub mod skips {
    /// An earlier run was not finished.
    pub const ACTIVE: &str = "Active";
    /// Later than `spec.startingDeadline`.
    pub const DEADLINE: &str = "Deadline";
    /// A newer slot was due too, or `spec.catchUp` is None.
    pub const CATCH_UP: &str = "CatchUp";
    /// A newer slot was due before the run of this slot could replace an earlier run.
    pub const REPLACED: &str = "Replaced";
    /// A SyncJob of that name exists and belongs to another owner.
    pub const NAME_COLLISION: &str = "NameCollision";
    /// With `concurrencyPolicy: Allow`, `spec.maxActive` runs were not finished.
    pub const MAX_ACTIVE: &str = "MaxActive";
    /// The API server refused to create the SyncJob.
    pub const CREATE_FAILED: &str = "CreateFailed";
    /// The schedule was suspended before the SyncJob was created.
    pub const SUSPENDED: &str = "Suspended";
    /// The spec got a mistake before the SyncJob was created.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The policy no longer allowed the runs of the schedule before the SyncJob was created.
    pub const NOT_ALLOWED: &str = "NotAllowed";
    /// The schedule was changed after the slot was due, and before a controller started it.
    pub const SCHEDULE_CHANGED: &str = "ScheduleChanged";
}

/// Input of a decision.
#[derive(Clone, Debug)]
pub struct ObservedSchedule<'a> {
    /// The schedule as stored.
    pub schedule: &'a SyncSchedule,
    /// Every SyncJob that the schedule controls.
    pub jobs: &'a [Arc<SyncJob>],
    /// Names of SyncJobs that this process created, whether or not `status.active` has their uids.
    pub made: &'a [String],
    /// Redis answers.
    pub queue_available: bool,
    /// Another installation, which owns the queue.
    pub queue_owner: Option<&'a str>,
    /// Difference between clocks that the controllers cannot correct.
    pub clock_skew: Option<&'a str>,
    /// Fields that the source of this schedule and another source both map.
    pub conflicts: &'a [FieldConflict],
    /// Reason for which the policy does not allow the runs of the schedule.
    pub not_allowed: Option<&'a str>,
    /// The failure of a request that the schedule shows.
    pub failure: Option<&'a Failure>,
}

/// The SyncJobs of a schedule, by name.
struct Jobs<'a> {
    all: &'a [Arc<SyncJob>],
    by_name: HashMap<&'a str, &'a Arc<SyncJob>>,
}

impl<'a> Jobs<'a> {
    fn new(all: &'a [Arc<SyncJob>]) -> Self {
        Self { all, by_name: all.iter().map(|job| (name(job), job)).collect() }
    }

    fn get(&self, name: &str) -> Option<&'a Arc<SyncJob>> {
        self.by_name.get(name).copied()
    }
}

fn name(job: &SyncJob) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

/// Input that the steps of a decision share.
struct Pass<'a> {
    schedule: &'a SyncSchedule,
    jobs: Jobs<'a>,
    /// Failure to create the SyncJobs of waiting entries.
    refused: Option<Failure>,
    now: Timestamp,
}

/// Actions of a decision, in this order: write the status, publish, cancel, create, delete.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulePlan {
    /// The next status.
    pub status: SyncScheduleStatus,
    /// Names of SyncJobs to cancel, which a newer run replaces.
    pub cancel: Vec<String>,
    /// Name of the SyncJob of the newer run.
    pub replacement: Option<String>,
    /// Names of held SyncJobs to cancel, each with the name of the later SyncJob that supersedes the held one.
    pub supersede: Vec<(String, String)>,
    /// Runs whose SyncJob is created now.
    pub create: Vec<ActiveRun>,
    /// Names of SyncJobs beyond the history limits.
    pub delete: Vec<String>,
    /// Slots that were skipped, by reason.
    pub skipped: Vec<(&'static str, i64)>,
    /// Events to publish.
    pub events: Vec<ObjectEvent>,
    /// Time until the next reconciliation without a change.
    pub requeue: Option<Duration>,
    /// Parsed spec. `None` when the spec is invalid.
    pub parsed: Option<Parsed>,
}

/// Decides on a schedule.
#[must_use]
pub fn decide(observed: &ObservedSchedule<'_>, now: Timestamp) -> SchedulePlan {
    let schedule = observed.schedule;
    let old = schedule.status.clone().unwrap_or_default();
    let mut plan = SchedulePlan {
        status: old.clone(),
        cancel: Vec::new(),
        replacement: None,
        supersede: superseded(observed.jobs),
        create: Vec::new(),
        delete: Vec::new(),
        skipped: Vec::new(),
        events: Vec::new(),
        requeue: None,
        parsed: None,
    };
    plan.status.observed_generation = schedule.metadata.generation;
    if clamp_times(&mut plan.status, now) {
        let text = "A clock was ahead when the status was written: the schedule continues from the current time";
        plan.events.push(ObjectEvent::warning("ClockSkew", text));
    }

    let jobs = Jobs::new(observed.jobs);
    let requeue_after = account_finished_runs(&mut plan.status, &jobs, observed.made, now);
    plan.status.held = observed
        .jobs
        .iter()
        .filter(|job| job::waits_for_approval(job))
        .filter_map(|job| held(job))
        .max_by_key(|held| held.since.0);
    if old.observed_generation.is_some_and(|seen| Some(seen) != schedule.metadata.generation) {
        plan.status.consecutive_failures = 0;
    }
    let parsed = Parsed::new(&schedule.spec).and_then(|parsed| match observed.not_allowed {
        Some(why) => Err(SpecError::NotAllowed(why.to_owned())),
        None => Ok(parsed),
    });
    let pass = Pass { schedule, refused: refused(&plan.status, &jobs, observed.failure), jobs, now };
    skip_abandoned(&mut plan, &pass, parsed.as_ref());
    let stall = stall(&plan.status, parsed.as_ref());
    let mut waits = None;
    match &parsed {
        Ok(parsed) => {
            waits = start_triggered(&mut plan, &pass, parsed);
            start_due(&mut plan, &pass, &old, parsed);
            if let Some((_, why)) = stall.as_ref().filter(|_| !is_stopped_by_failures(&old)) {
                plan.events.push(ObjectEvent::warning("ScheduleStalled", why.clone()));
            }
            let (delete, later) = history(&plan.status, observed.jobs, parsed.history_limits, now);
            plan.delete = delete;
            let late = next_abandoned(&plan.status, &pass, parsed);
            plan.requeue = plan.requeue.into_iter().chain(late).chain(later).min();
        }
        Err(error) => {
            plan.status.next_schedule_time = None;
            if matches!(error, SpecError::NotAllowed(_)) && !is_stalled_by(&old, reasons::NOT_ALLOWED) {
                plan.events.push(ObjectEvent::warning("NotAllowed", error.to_string()));
            } else if old.observed_generation.is_none_or(|seen| Some(seen) != schedule.metadata.generation) {
                plan.events.push(ObjectEvent::warning("InvalidSchedule", error.to_string()));
            }
        }
    }
    plan.status.active_count = Some(active(&plan.status, &pass.jobs).count() as i32);
    plan.create = missing(&plan.status, &pass);
    plan.requeue = plan.requeue.into_iter().chain(requeue_after).min();
    (plan.cancel, plan.replacement) = replaced(&plan.status, &pass);
    let failure = shown_failure(&plan.status, &pass, observed.failure);
    set_conditions(&mut plan.status, observed, stall, waits.as_deref(), failure.as_ref(), now);
    if let Some(skew) = observed.clock_skew.filter(|_| !conditions::is_true(&old.conditions, CLOCK_SKEW)) {
        plan.events.push(ObjectEvent::warning("ClockSkew", skew));
    }
    plan.parsed = parsed.ok();
    plan
}

/// Failure to create the SyncJobs of waiting entries. After a restart, the failure is taken from the status.
fn refused(status: &SyncScheduleStatus, jobs: &Jobs<'_>, failure: Option<&Failure>) -> Option<Failure> {
    let waits = status.active.iter().any(|run| waits_for_job(run, jobs));
    let failure = failure.filter(|failure| failure.reason == reasons::CREATE_FAILED).cloned();
    let shown = || {
        let ready = conditions::find(&status.conditions, READY)?;
        let message = ready.message.clone();
        (ready.reason == reasons::CREATE_FAILED).then_some(Failure { reason: reasons::CREATE_FAILED, message })
    };
    waits.then(|| failure.or_else(shown)).flatten()
}

/// Failure that the conditions show. A suspended schedule creates no SyncJobs, so a failure to create them is hidden.
fn shown_failure(status: &SyncScheduleStatus, pass: &Pass<'_>, failure: Option<&Failure>) -> Option<Failure> {
    let waits = status.active.iter().any(|run| waits_for_job(run, &pass.jobs));
    let still_refused = pass.refused.clone().filter(|_| waits);
    let is_hidden =
        |failure: &Failure| pass.schedule.spec.suspended && !waits && failure.reason == reasons::CREATE_FAILED;
    failure.cloned().or(still_refused).filter(|failure| !is_hidden(failure))
}

/// Skips waiting entries whose SyncJob must not be created any more.
fn skip_abandoned(plan: &mut SchedulePlan, pass: &Pass<'_>, parsed: Result<&Parsed, &SpecError>) {
    let is_suspended = pass.schedule.spec.suspended;
    let refused = pass.refused.as_ref().map(|failure| (skips::CREATE_FAILED, failure.message.as_str()));
    let why = |run: &ActiveRun| match parsed {
        Err(SpecError::NotAllowed(_)) => Some((skips::NOT_ALLOWED, "the policy does not allow the runs")),
        Err(_) => Some((skips::INVALID_SPEC, "the spec is invalid")),
        Ok(_) if is_suspended && run.trigger.is_none() => Some((skips::SUSPENDED, "the schedule was suspended")),
        Ok(parsed) => {
            let is_late = abandoned_at(run, pass, parsed).is_some_and(|at| at <= pass.now);
            let late = (skips::DEADLINE, "it could not be started within spec.startingDeadline");
            is_late.then(|| refused.unwrap_or(late))
        }
    };
    skip_waiting(plan, pass, why);
}

/// Time at which a waiting entry misses its starting deadline. A triggered run has a deadline only when its SyncJob was
/// refused.
fn abandoned_at(run: &ActiveRun, pass: &Pass<'_>, parsed: &Parsed) -> Option<Timestamp> {
    let deadline = parsed.starting_deadline.filter(|_| run.trigger.is_none() || pass.refused.is_some())?;
    parsed.start_of(run, pass.schedule.metadata.uid.as_deref().unwrap_or_default()).checked_add(deadline).ok()
}

fn next_abandoned(status: &SyncScheduleStatus, pass: &Pass<'_>, parsed: &Parsed) -> Option<Duration> {
    let waiting = status.active.iter().filter(|run| waits_for_job(run, &pass.jobs));
    let next = waiting.filter_map(|run| abandoned_at(run, pass, parsed)).min()?;
    Some(elapsed(pass.now, next).max(Duration::from_millis(1)))
}

/// Skips the waiting entries for which `why` returns a reason.
fn skip_waiting<'a>(
    plan: &mut SchedulePlan,
    pass: &Pass<'_>,
    why: impl Fn(&ActiveRun) -> Option<(&'static str, &'a str)>,
) {
    let dropped: Vec<_> =
        plan.status.active.extract_if(.., |run| waits_for_job(run, &pass.jobs) && why(run).is_some()).collect();
    for run in dropped {
        if let Some((reason, text)) = why(&run) {
            plan.status.runs.total -= 1;
            skip(plan, (run.slot.0, run.slot.0), 1, reason, text);
        }
    }
}

/// Sets times of the status that are in the future to now. A clock that was ahead wrote such times, and later slots,
/// results and failures would not count until then. SyncJobs are named by their slots, so no slot runs twice.
fn clamp_times(status: &mut SyncScheduleStatus, now: Timestamp) -> bool {
    let slots = clock::clamp(&mut status.slots_since, now);
    clock::clamp(&mut status.last_schedule_time, now);
    clock::clamp(&mut status.last_successful_time, now);
    if let Some(last) = &mut status.last_result {
        let mut time = Some(last.time.clone());
        clock::clamp(&mut time, now);
        last.time = time.unwrap_or(Time(now));
    }
    slots
}

/// Reason and message of a schedule that starts no runs for its slots until a user changes something.
fn stall(status: &SyncScheduleStatus, parsed: Result<&Parsed, &SpecError>) -> Option<(&'static str, String)> {
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error @ SpecError::NotAllowed(_)) => return Some((reasons::NOT_ALLOWED, error.to_string())),
        Err(error) => return Some((reasons::INVALID_SPEC, error.to_string())),
    };
    let threshold = parsed.failure_threshold.filter(|threshold| status.consecutive_failures >= *threshold)?;
    let failures = status.consecutive_failures;
    let last = status.last_result.as_ref().and_then(|last| last.reason.as_deref()).unwrap_or("Failed");
    let message = format!(
        "{failures} runs in a row have failed, the last one with the reason {last}, and spec.failureThreshold is {threshold}: no slots are started until a triggered run completes or the spec is changed"
    );
    Some((reasons::FAILURE_THRESHOLD_EXCEEDED, message))
}

/// True when the status reports that the schedule starts no runs because too many runs in a row have failed.
fn is_stopped_by_failures(status: &SyncScheduleStatus) -> bool {
    is_stalled_by(status, reasons::FAILURE_THRESHOLD_EXCEEDED)
}

fn is_stalled_by(status: &SyncScheduleStatus, reason: &str) -> bool {
    conditions::find(&status.conditions, STALLED).is_some_and(|stalled| stalled.reason == reason)
}

/// Skips the slot of `entry`: a SyncJob of its name exists that another owner controls.
pub fn skip_on_name_collision(status: &mut SyncScheduleStatus, entry: &ActiveRun) {
    status.active.retain(|run| run.name != entry.name);
    status.active_count = status.active_count.map(|count| count - 1);
    status.runs.total -= 1;
    record_skip(status, entry.slot.0, 1, skips::NAME_COLLISION);
}

/// Counts the runs that ended, and records the uids of created SyncJobs: a SyncJob with a recorded uid that does not
/// exist was deleted by a user. An unfinished SyncJob that is not in `active` is added: the status was lost, or another
/// controller created the SyncJob from an older state. Returns the time after which another uid can be recorded.
fn account_finished_runs(
    status: &mut SyncScheduleStatus,
    jobs: &Jobs<'_>,
    made: &[String],
    now: Timestamp,
) -> Option<Duration> {
    let made: HashSet<&str> = made.iter().map(String::as_str).collect();
    let (mut active, mut ended, mut requeue_after) = (Vec::new(), Vec::new(), None);
    let known: HashSet<String> = status.active.iter().map(|entry| entry.name.clone()).collect();
    for mut entry in std::mem::take(&mut status.active) {
        match jobs.get(&entry.name) {
            Some(job) if job::is_finished(job) => ended.push(job),
            // Counts as deleted: a finalizer of a user may keep the SyncJob for long.
            Some(job) if job.metadata.deletion_timestamp.is_some() => status.runs.deleted += 1,
            Some(job) => {
                let age = job.creation_timestamp().map_or(SHORT, |created| elapsed(created.0, now));
                if age >= SHORT {
                    entry.uid = job.uid();
                }
                requeue_after = SHORT.checked_sub(age).filter(|wait| !wait.is_zero()).or(requeue_after);
                active.push(entry);
            }
            // A SyncJob that was never created is created by the plan. A SyncJob that was created before was deleted by
            // a user.
            None if entry.uid.is_none() && !made.contains(entry.name.as_str()) => active.push(entry),
            None => status.runs.deleted += 1,
        }
    }
    ended.sort_by_key(|job| job.status.as_ref().and_then(|status| status.completion_time.clone()));
    for job in ended {
        count(status, job);
    }
    let stray = jobs.all.iter().filter(|job| !job::is_finished(job) && job.metadata.deletion_timestamp.is_none());
    for job in stray.filter(|job| !known.contains(name(job))) {
        status.runs.total += 1;
        active.push(ActiveRun { name: job.name_any(), uid: job.uid(), slot: slot_of(job), trigger: None });
    }
    status.active = active;
    requeue_after
}

/// True for a waiting entry: a run in `active` whose SyncJob was not created yet.
fn waits_for_job(run: &ActiveRun, jobs: &Jobs<'_>) -> bool {
    run.uid.is_none() && jobs.get(&run.name).is_none()
}

/// Active runs that are not held.
fn active<'a>(status: &'a SyncScheduleStatus, jobs: &'a Jobs<'_>) -> impl Iterator<Item = &'a ActiveRun> {
    let is_held = |run: &ActiveRun| jobs.get(&run.name).is_some_and(|job| job::waits_for_approval(job));
    status.active.iter().filter(move |run| !is_held(run))
}

/// Slot of a SyncJob. A SyncJob without a slot has its creation time instead.
#[must_use]
pub fn slot_of(job: &SyncJob) -> Time {
    let slot = job.annotations().get(SLOT_ANNOTATION).and_then(|text| text.parse().ok()).map(Time);
    slot.or_else(|| job.creation_timestamp()).unwrap_or(Time(Timestamp::UNIX_EPOCH))
}

fn count(status: &mut SyncScheduleStatus, finished: &SyncJob) {
    let Some(result) = &finished.status else { return };
    status.last_duration.clone_from(&result.duration);
    record_result(status, finished, result);
    if job::is_complete(finished) {
        status.runs.succeeded += 1;
        status.consecutive_failures = 0;
        if result.completion_time > status.last_successful_time {
            status.last_successful_time.clone_from(&result.completion_time);
        }
        return;
    }
    if job::is_replaced(finished) {
        status.runs.replaced += 1;
        return;
    }
    status.runs.failed += 1;
    let condition = conditions::find(&result.conditions, FAILED);
    // One that ended before the last success is no failure since then.
    if !is_ended_on_request(condition.map(|condition| condition.reason.as_str()))
        && result.completion_time >= status.last_successful_time
    {
        status.consecutive_failures = status.consecutive_failures.saturating_add(1);
    }
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

/// True when a user or a later run ended a run with this reason.
fn is_ended_on_request(reason: Option<&str>) -> bool {
    matches!(reason, Some(reasons::CANCELLED | reasons::REPLACED | reasons::SUPERSEDED))
}

/// Records the outcome of a run, unless a user or the schedule ended it, or the outcome of a later run is recorded.
fn record_result(status: &mut SyncScheduleStatus, finished: &SyncJob, result: &SyncJobStatus) {
    let reason = conditions::find(&result.conditions, FAILED).map(|condition| condition.reason.clone());
    let reason = reason.filter(|_| !job::is_complete(finished));
    let time = result.completion_time.clone().unwrap_or(Time(Timestamp::UNIX_EPOCH));
    if is_ended_on_request(reason.as_deref()) || status.last_result.as_ref().is_some_and(|last| last.time > time) {
        return;
    }
    let counts = result.counts.unwrap_or_default();
    status.last_result = Some(RunResult {
        job: finished.name_any(),
        time,
        reason,
        processed: counts.processed,
        failed: counts.failed,
        recoveries: result.recoveries.unwrap_or_default(),
    });
}

/// Run that waits for an approval, for `status.held`.
fn held(job: &SyncJob) -> Option<HeldRun> {
    let condition = job::held(job)?;
    Some(HeldRun {
        job: job.name_any(),
        since: condition.last_transition_time.clone(),
        removals: job.status.as_ref().map(job::held_number).unwrap_or_default(),
        message: truncate(&condition.message),
    })
}

/// Starts the run that the trigger annotation requests, once for each token. Returns the condition that the run waits
/// for, as a part of a message.
fn start_triggered(plan: &mut SchedulePlan, pass: &Pass<'_>, parsed: &Parsed) -> Option<String> {
    let Pass { schedule, jobs, now, .. } = pass;
    let token = truncate(schedule.annotations().get(TRIGGER_ANNOTATION)?);
    if token.is_empty() || plan.status.last_handled_trigger.as_ref() == Some(&token) {
        return None;
    }
    let under_way = active(&plan.status, jobs).count();
    match schedule.spec.concurrency_policy {
        ConcurrencyPolicy::Forbid if under_way > 0 => {
            return Some("; the triggered run starts when the active run has ended".to_owned());
        }
        ConcurrencyPolicy::Allow if under_way >= parsed.max_active => {
            return Some(format!("; the triggered run starts when one of the {under_way} active runs has ended"));
        }
        _ => {}
    }
    let name = names::job_for_trigger(&schedule.name_any(), &token);
    let handled = &mut plan.status.handled_triggers;
    let is_old = handled.contains(&name) || jobs.get(&name).is_some();
    if let Some(last) = plan.status.last_handled_trigger.replace(token.clone()) {
        let last = names::job_for_trigger(&schedule.name_any(), &last);
        handled.retain(|known| *known != name && *known != last);
        handled.push(last);
        handled.drain(..handled.len().saturating_sub(MAX_HANDLED_TRIGGERS));
    }
    if !is_old {
        let slot = Time(from_seconds(now.as_second()));
        start(plan, pass, ActiveRun { name, uid: None, slot, trigger: Some(token) });
    }
    None
}

/// Mode that a trigger token requests: `<token>:Full` or `<token>:Incremental`.
#[must_use]
pub fn triggered_mode(token: &str) -> Option<SyncMode> {
    match token.rsplit_once(':')?.1 {
        "Full" => Some(SyncMode::Full),
        "Incremental" => Some(SyncMode::Incremental),
        _ => None,
    }
}

fn start_due(plan: &mut SchedulePlan, pass: &Pass<'_>, old: &SyncScheduleStatus, parsed: &Parsed) {
    let Pass { schedule, now, .. } = *pass;
    let slots = parsed.slots(&schedule.uid().unwrap_or_default());
    let created = from_seconds(schedule.creation_timestamp().map_or(now, |created| created.0).as_second());
    let first_visit = old.slots_since.is_none();
    let stopped = stall(&plan.status, Ok(parsed)).is_some();
    let resumed = (conditions::is_true(&old.conditions, SUSPENDED) && !schedule.spec.suspended)
        || (is_stopped_by_failures(old) && !stopped);
    let edited = old.schedule.as_deref().is_some_and(|text| text != parsed.text);

    plan.status.schedule = Some(parsed.text.clone());
    if first_visit {
        plan.status.slots_since = Some(Time(created));
    }
    if resumed || edited {
        // With jitter, a slot of a moment ago may start later. The clock of this controller may be a little behind the
        // clock of the controller that started the last slot.
        let started = Time(from_seconds(slots.reached(now).as_second()));
        plan.status.slots_since = plan.status.slots_since.take().max(Some(started));
    }
    let is_halted = schedule.spec.suspended || stopped;
    if let Some(due) = old.next_schedule_time.as_ref().filter(|due| edited && !is_halted && due.0 <= now) {
        skip(plan, (due.0, due.0), 1, skips::SCHEDULE_CHANGED, "due before the schedule was changed");
    }
    if is_halted {
        plan.status.next_schedule_time = None;
        return;
    }
    if first_visit && schedule.spec.immediate {
        start(plan, pass, slot_run(schedule, created));
    }
    if let Some(due) = slots.due(handled_until(&plan.status), now) {
        if let Some(before) = due.before {
            let since = handled_until(&plan.status);
            let first = slots.next(since, since).unwrap_or(before);
            skip(plan, (first, before), due.count - 1, skips::CATCH_UP, "passed while no controller was running");
        }
        if let Some(failure) = pass.refused.as_ref().filter(|_| parsed.starting_deadline.is_none()) {
            skip_waiting(plan, pass, |_| Some((skips::CREATE_FAILED, failure.message.as_str())));
        }
        match refusal(plan, pass, parsed, elapsed(slots.start(due.newest), now)) {
            Some((reason, why)) => skip(plan, (due.newest, due.newest), 1, reason, why),
            None => start(plan, pass, slot_run(schedule, due.newest)),
        }
        plan.status.slots_since = Some(Time(due.newest));
    }
    let next = slots.next(handled_until(&plan.status), now).map(|next| slots.start(next));
    plan.status.next_schedule_time = next.map(|start| Time(from_seconds(start.as_second())));
    plan.requeue = next.map(|start| elapsed(now, start).max(Duration::from_millis(1)));
}

/// Reason for which the newest due slot is skipped.
fn refusal(
    plan: &SchedulePlan,
    pass: &Pass<'_>,
    parsed: &Parsed,
    late: Duration,
) -> Option<(&'static str, &'static str)> {
    let Pass { schedule, jobs, refused, .. } = pass;
    let policy = schedule.spec.concurrency_policy;
    let under_way = active(&plan.status, jobs).count();
    let waiting = active(&plan.status, jobs).filter(|run| waits_for_job(run, jobs)).count();
    if schedule.spec.catch_up == CatchUp::None && late > ON_TIME {
        Some((skips::CATCH_UP, "missed, and spec.catchUp is None"))
    } else if parsed.starting_deadline.is_some_and(|deadline| late > deadline) {
        Some((skips::DEADLINE, "later than spec.startingDeadline"))
    } else if policy == ConcurrencyPolicy::Forbid && under_way > 0 && waiting == under_way && refused.is_some() {
        Some((skips::CREATE_FAILED, "the SyncJob of an earlier slot could not be created yet"))
    } else if policy == ConcurrencyPolicy::Forbid && under_way > 0 {
        Some((skips::ACTIVE, "an earlier run is not finished"))
    } else if policy == ConcurrencyPolicy::Allow && under_way >= parsed.max_active {
        Some((skips::MAX_ACTIVE, "the limit spec.maxActive of active runs is reached"))
    } else {
        None
    }
}

/// Time up to which all slots were started or skipped.
fn handled_until(status: &SyncScheduleStatus) -> Timestamp {
    status.slots_since.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

fn slot_run(schedule: &SyncSchedule, slot: Timestamp) -> ActiveRun {
    ActiveRun { name: names::job_for_slot(&schedule.name_any(), slot), uid: None, slot: Time(slot), trigger: None }
}

/// Adds a run to `active`. With `Replace`, the run replaces a waiting entry.
fn start(plan: &mut SchedulePlan, pass: &Pass<'_>, run: ActiveRun) {
    if run.trigger.is_none() {
        plan.status.last_schedule_time = Some(run.slot.clone());
    }
    // A slot is due again after a clock that was ahead was corrected.
    let is_made = pass.jobs.get(&run.name).is_some();
    if is_made || plan.status.active.iter().any(|known| known.name == run.name) {
        return;
    }
    if pass.schedule.spec.concurrency_policy == ConcurrencyPolicy::Replace {
        let refused = pass.refused.as_ref().map(|failure| (skips::CREATE_FAILED, failure.message.as_str()));
        let replaced = (skips::REPLACED, "a newer run replaces it before it could start");
        skip_waiting(plan, pass, |_| Some(refused.unwrap_or(replaced)));
    }
    plan.status.active.push(run);
    plan.status.runs.total += 1;
}

/// Counts slots as skipped, from the first to the last. One event reports all of them: there may be thousands.
fn skip(plan: &mut SchedulePlan, slots: (Timestamp, Timestamp), count: i64, reason: &'static str, why: &str) {
    let (first, last) = slots;
    record_skip(&mut plan.status, last, count, reason);
    plan.skipped.push((reason, count));
    let what = match count {
        1 => format!("The slot {last} was"),
        _ => format!("{count} slots from {first} to {last} were"),
    };
    plan.events.push(ObjectEvent::warning("RunSkipped", format!("{what} skipped: {why}")));
}

fn record_skip(status: &mut SyncScheduleStatus, slot: Timestamp, count: i64, reason: &str) {
    status.runs.skipped += count;
    status.last_skip = Some(Skip { time: Time(slot), reason: reason.to_owned() });
}

/// Runs whose SyncJob is created now: all waiting entries, or where runs must not overlap, the first one when no other
/// run is active.
fn missing(status: &SyncScheduleStatus, pass: &Pass<'_>) -> Vec<ActiveRun> {
    let jobs = &pass.jobs;
    let missing = status.active.iter().filter(|run| waits_for_job(run, jobs));
    match pass.schedule.spec.concurrency_policy {
        ConcurrencyPolicy::Allow => missing.cloned().collect(),
        _ if active(status, jobs).any(|run| !waits_for_job(run, jobs)) => Vec::new(),
        _ => missing.take(1).cloned().collect(),
    }
}

/// Names of the runs that a waiting run replaces, and the name of the waiting run.
fn replaced(status: &SyncScheduleStatus, pass: &Pass<'_>) -> (Vec<String>, Option<String>) {
    let (jobs, policy) = (&pass.jobs, pass.schedule.spec.concurrency_policy);
    let waiting =
        status.active.iter().find(|run| waits_for_job(run, jobs)).filter(|_| policy == ConcurrencyPolicy::Replace);
    let Some(waiting) = waiting else { return (Vec::new(), None) };
    let in_the_way = active(status, jobs).filter_map(|run| jobs.get(&run.name));
    let cancel = in_the_way.filter(|job| !job.spec.cancelled && !job::is_finished(job)).map(|job| job.name_any());
    (cancel.collect(), Some(waiting.name.clone()))
}

/// Held runs, each with the newest later run that is complete or held and supersedes the earlier run.
fn superseded(jobs: &[Arc<SyncJob>]) -> Vec<(String, String)> {
    let supersedes = |job: &SyncJob| job::is_complete(job) || (job::is_held(job) && !job.spec.cancelled);
    let Some(newest) = jobs.iter().filter(|job| supersedes(job)).max_by_key(|job| slot_of(job)) else {
        return Vec::new();
    };
    let is_earlier = |job: &SyncJob| slot_of(job) < slot_of(newest) && !job.spec.cancelled;
    let held = jobs.iter().filter(|job| job::waits_for_approval(job) && is_earlier(job));
    held.map(|job| (job.name_any(), newest.name_any())).collect()
}

/// Finished runs beyond the history limits, and the time until more are due. Runs that are still in `active` are not
/// counted yet and stay. Runs that ended a moment ago stay too: the cache may have a status from before they were in
/// `active`.
fn history(
    status: &SyncScheduleStatus,
    jobs: &[Arc<SyncJob>],
    history_limits: (usize, usize),
    now: Timestamp,
) -> (Vec<String>, Option<Duration>) {
    let active: HashSet<&str> = status.active.iter().map(|run| run.name.as_str()).collect();
    let counted = |job: &SyncJob| !active.contains(name(job));
    let finished = jobs.iter().filter(|job| job::is_finished(job) && counted(job)).map(|job| Finished {
        name: job.name_any(),
        succeeded: job::is_complete(job),
        replaced: job::is_replaced(job),
        at: job
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref())
            .map_or(Timestamp::MIN, |time| time.0),
    });
    let wait = |run: &Finished| SHORT.checked_sub(elapsed(run.at, now)).filter(|wait| !wait.is_zero());
    let beyond = retention::beyond(finished.collect(), history_limits.0, history_limits.1);
    let requeue_after = beyond.iter().filter_map(wait).min();
    (beyond.into_iter().filter(|run| wait(run).is_none()).map(|run| run.name).collect(), requeue_after)
}

fn set_conditions(
    status: &mut SyncScheduleStatus,
    observed: &ObservedSchedule<'_>,
    stall: Option<(&'static str, String)>,
    waits: Option<&str>,
    failure: Option<&Failure>,
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
    if !observed.conflicts.is_empty() {
        set(FIELD_CONFLICT, true, reasons::MAPPED_TWICE, &field_conflict::message(observed.conflicts));
    }
    if let Some((reason, message)) = stall {
        set(READY, false, reason, &format!("{message}{}", waits.unwrap_or_default()));
        set(STALLED, true, reason, &message);
        conditions::clear(&mut status.conditions, RECONCILING);
    } else if let Some(owner) = observed.queue_owner {
        let message = installation::queue_is_owned(owner);
        set(READY, false, reasons::INSTALLATION_CONFLICT, &message);
        set(RECONCILING, true, reasons::INSTALLATION_CONFLICT, &message);
    } else if let Some(Failure { reason, message }) = failure {
        set(READY, false, reason, message);
        set(RECONCILING, true, reason, message);
        conditions::clear(&mut status.conditions, STALLED);
    } else if observed.queue_available {
        let message = if suspended { "Suspended: no new runs" } else { "Runs are started as scheduled" };
        set(READY, true, reasons::SCHEDULED, &format!("{message}{}", waits.unwrap_or_default()));
        conditions::clear(&mut status.conditions, STALLED);
        conditions::clear(&mut status.conditions, RECONCILING);
    } else {
        let message = "Redis does not answer: SyncJobs are created, and start when Redis is available again";
        set(READY, false, reasons::QUEUE_UNAVAILABLE, message);
        set(RECONCILING, true, reasons::QUEUE_UNAVAILABLE, message);
        conditions::clear(&mut status.conditions, STALLED);
    }
    if observed.conflicts.is_empty() {
        conditions::clear(&mut status.conditions, FIELD_CONFLICT);
    }
    match observed.clock_skew {
        // A change of the seconds alone is not worth a write.
        Some(_) if conditions::is_true(&status.conditions, CLOCK_SKEW) => {}
        Some(skew) => {
            conditions::set(&mut status.conditions, CLOCK_SKEW, true, reasons::CLOCKS_DIFFER, skew, generation, now);
        }
        None => conditions::clear(&mut status.conditions, CLOCK_SKEW),
    }
}

#[cfg(test)]
mod tests;
