//! Decisions about a SyncJob, from the object and its run in the queue.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::ResourceExt;

use super::{
    ObjectEvent, conditions, elapsed, from_seconds,
    guard::Hold,
    run::{DesiredState, Outcome, Recorded, Run, RunSpec, State, progress},
};
use crate::api::{
    APPROVE_ANNOTATION, GoDuration, REPLACED_BY_ANNOTATION, STARTING_DEADLINE_ANNOTATION, SUPERSEDED_BY_ANNOTATION,
    SyncJob, SyncJobStatus, SyncSchedule,
    conditions::{COMPLETE, FAILED, HELD, RECONCILING, REMOVAL_SKIPPED, STALLED, SUSPENDED, reasons},
    syncjob::Phase,
    truncate,
};

/// Longest delay of an end until the schedule lists the run as active.
const ACCOUNTING_LIMIT: Duration = Duration::from_secs(30);

/// Actions of a decision about a SyncJob.
#[derive(Clone, Debug, PartialEq)]
pub struct JobPlan {
    /// Next status of the SyncJob.
    pub status: SyncJobStatus,
    /// True when the run must be enqueued.
    pub enqueue: bool,
    /// Desired state to write into the queue.
    pub control: Option<DesiredState>,
    /// Outcome with which the run ends as failed, although no user cancelled the run. Set along with `control`.
    pub end: Option<Outcome>,
    /// Events to publish.
    pub events: Vec<ObjectEvent>,
    /// Time until the next reconciliation without a change.
    pub requeue: Option<Duration>,
}

/// True when the run has ended. A finished run never changes.
#[must_use]
pub fn is_finished(job: &SyncJob) -> bool {
    job.status.as_ref().is_some_and(has_ended)
}

/// True for the status of a run that has ended.
#[must_use]
pub fn has_ended(status: &SyncJobStatus) -> bool {
    conditions::is_true(&status.conditions, COMPLETE) || conditions::is_true(&status.conditions, FAILED)
}

/// True when the run is complete.
#[must_use]
pub fn is_complete(job: &SyncJob) -> bool {
    job.status.as_ref().is_some_and(|status| conditions::is_true(&status.conditions, COMPLETE))
}

/// True while the guard holds the run.
#[must_use]
pub fn is_held(job: &SyncJob) -> bool {
    job.status.as_ref().is_some_and(shows_hold)
}

/// True while the guard holds the run, and no approval covers the held documents.
#[must_use]
pub fn waits_for_approval(job: &SyncJob) -> bool {
    job.status.as_ref().is_some_and(|status| shows_hold(status) && !is_approved(job, status))
}

fn shows_hold(status: &SyncJobStatus) -> bool {
    hold_shown(status).is_some()
}

fn hold_shown(status: &SyncJobStatus) -> Option<&Condition> {
    conditions::find(&status.conditions, HELD).filter(|held| held.status == "True")
}

/// Number of documents that the guard holds.
#[must_use]
pub fn held_number(status: &SyncJobStatus) -> i64 {
    status.counts.and_then(|counts| counts.held).unwrap_or_default()
}

/// True when the approval is enough for the documents that the guard holds.
fn is_approved(job: &SyncJob, status: &SyncJobStatus) -> bool {
    let held = status.counts.and_then(|counts| counts.held).and_then(|held| u64::try_from(held).ok());
    DesiredState::from(job).approved.zip(held).is_some_and(|(approved, held)| held <= approved)
}

/// Decides on a SyncJob from its object and its run in the queue (`None` when the queue has none).
#[must_use]
pub fn decide(job: &SyncJob, run: Option<&Run>, now: Timestamp) -> JobPlan {
    let old = job.status.clone().unwrap_or_default();
    if is_finished(job) {
        return JobPlan { status: old, enqueue: false, control: None, end: None, events: Vec::new(), requeue: None };
    }
    let mut status = old.clone();
    status.observed_generation = job.metadata.generation;
    let generation = job.metadata.generation;

    let desired = DesiredState::from(job);
    let parsed = RunSpec::parse(&job.spec);
    let hold_for = parsed.as_ref().ok().map(|spec| spec.guard.hold_for);
    let deadline = parsed.as_ref().ok().map(|spec| spec.active_deadline);
    // Redis may have lost a run that had begun. Such a run is enqueued, cancelled in the queue, and rolled back.
    let has_to_roll_back = parsed.as_ref().is_ok_and(|spec| spec.rollback);
    let enqueue = match (run, parsed) {
        (None, _) if desired.cancelled && !has_to_roll_back => {
            fail(&mut status, &cancelled(job), generation, now);
            false
        }
        (None, Err(error)) => {
            let outcome = Outcome { reason: reasons::INVALID_TARGET.to_owned(), message: error.to_string() };
            fail(&mut status, &outcome, generation, now);
            false
        }
        // Redis lost a held run. The run is enqueued again, parked, only when it is approved or has to end.
        (None, Ok(_)) if is_held(job) => {
            conditions::clear(&mut status.conditions, RECONCILING);
            let is_over = is_over(job, &status, hold_for, now);
            if is_over && !has_to_roll_back {
                let outcome = not_approved(&status, hold_for);
                fail(&mut status, &outcome, generation, now);
            }
            is_approved(job, &old) || has_to_roll_back && (is_over || desired.cancelled)
        }
        (None, Ok(_)) => {
            status.phase = status.phase.or(Some(Phase::Pending));
            true
        }
        (Some(run), _) => {
            project_onto_status(&mut status, job, run, now);
            false
        }
    };
    let under_way = run.filter(|run| !matches!(run.state, State::Completed | State::Failed));
    let deadline = under_way.zip(deadline).and_then(|(run, deadline)| ends_without_worker_at(run, deadline));
    let end = under_way.and_then(|_| {
        let is_over = is_over(job, &status, hold_for, now);
        let is_overdue = deadline.is_some_and(|deadline| deadline <= now);
        if is_over { Some(not_approved(&status, hold_for)) } else { is_overdue.then(Outcome::deadline_exceeded) }
    });
    // The queue may have cancelled the run although no user did, and that cannot be undone.
    let is_known =
        |run: &Run| desired == DesiredState { cancelled: run.desired.cancelled && desired.cancelled, ..run.desired };
    let control = under_way.filter(|run| end.is_some() || !is_known(run)).map(|_| desired);
    let requeue = held_until(&status, hold_for).into_iter().chain(deadline).map(|until| elapsed(now, until));
    let requeue = requeue.filter(|wait| !wait.is_zero()).min();
    let events = approval_event(&old, &status, desired.approved)
        .into_iter()
        .chain(transition_event(&old, &status))
        .chain(skipped_removal_event(&old, &status))
        .chain(run.map(|run| slow_run_events(&old, run)).unwrap_or_default())
        .collect();
    JobPlan { status, enqueue, control, end, events, requeue }
}

/// Outcome of a SyncJob that was restored from a backup without its status: the run may have ended long ago. `None`:
/// the SyncJob is executed. `is_owned`: the SyncSchedule that created the SyncJob exists. A SyncSchedule creates
/// SyncJobs in time, whatever the clocks say.
#[must_use]
pub fn restored_without_status(job: &SyncJob, is_owned: bool) -> Option<Outcome> {
    let deadline: Timestamp = job.annotations().get(STARTING_DEADLINE_ANNOTATION)?.parse().ok()?;
    let created = job.creation_timestamp()?.0;
    let has_started = job.status.as_ref().is_some_and(|status| status.start_time.is_some());
    let is_restored = !is_owned && !has_started && deadline < created;
    let message = format!(
        "the SyncJob was created at {created}, and its slot could start until {deadline}: it was restored without its status, and is not \
         executed. To execute it, create it without the annotation {STARTING_DEADLINE_ANNOTATION}"
    );
    is_restored.then(|| Outcome { reason: reasons::STARTING_DEADLINE_EXCEEDED.to_owned(), message })
}

/// Decides on a SyncJob that ends without a run.
#[must_use]
pub fn end_without_run(job: &SyncJob, outcome: &Outcome, now: Timestamp) -> JobPlan {
    let mut status = job.status.clone().unwrap_or_default();
    status.observed_generation = job.metadata.generation;
    fail(&mut status, outcome, job.metadata.generation, now);
    let events = transition_event(&job.status.clone().unwrap_or_default(), &status).into_iter().collect();
    JobPlan { status, enqueue: false, control: None, end: None, events, requeue: None }
}

/// Ends a run that the policy does not allow. A cancelled run ends anyway, and a rollback restores what an allowed run
/// has changed.
pub fn refuse(plan: &mut JobPlan, job: &SyncJob, run: Option<&Run>, (outcome, now): (Outcome, Timestamp)) {
    let Some(run) = run else {
        if !has_ended(&plan.status) && !job.spec.cancelled {
            *plan = end_without_run(job, &outcome, now);
        }
        return;
    };
    let is_over = matches!(run.state, State::Completed | State::Failed) || run.outcome.is_some();
    if !is_over && !run.desired.cancelled {
        plan.control = Some(DesiredState::from(job));
        plan.end = Some(outcome);
    }
}

/// Relation of a run to the queue, as far as the quota of its namespace is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueUse {
    /// The run is not in the queue, or is suspended or held, and stays so.
    None,
    /// The run is waiting, delayed or active in the queue, or must be, because it has to end.
    Present,
    /// The plan lets workers claim the run.
    Entering,
}

/// Returns the relation of a run to the queue after its plan is carried out.
#[must_use]
pub fn queue_use(job: &SyncJob, run: Option<&Run>, plan: &JobPlan, now: Timestamp) -> QueueUse {
    let has_to_end = plan.end.is_some() || job.spec.cancelled;
    match run.map(|run| (run, run.state)) {
        Some((_, State::Waiting | State::Delayed | State::Active)) => QueueUse::Present,
        Some((_, State::Completed | State::Failed)) => QueueUse::None,
        Some((run, State::Parked)) => match plan.control {
            Some(_) if has_to_end => QueueUse::Present,
            Some(desired) if resumes(run, desired) => QueueUse::Entering,
            _ => QueueUse::None,
        },
        None if !plan.enqueue || parked_since(job, now).is_some() => QueueUse::None,
        None if has_to_end => QueueUse::Present,
        None => QueueUse::Entering,
    }
}

/// True when a parked run would continue in a desired state.
fn resumes(run: &Run, desired: DesiredState) -> bool {
    !desired.suspended && hold_of(&Run { desired, ..run.clone() }).is_none()
}

/// Lets a run wait until its namespace has fewer than `limit` runs in the queue. A suspended or held run stays so.
pub fn wait_for_quota(plan: &mut JobPlan, job: &SyncJob, run: Option<&Run>, (limit, now): (u32, Timestamp)) {
    plan.enqueue = false;
    let status = &mut plan.status;
    if let Some(run) = run {
        let DesiredState { suspended, approved, .. } = run.desired;
        let next = DesiredState { suspended, approved, ..DesiredState::from(job) };
        plan.control = (next != run.desired).then_some(next);
        // The condition keeps its time.
        let old = job.status.as_ref().and_then(|status| conditions::find(&status.conditions, RECONCILING));
        if let Some(old) = old.filter(|_| conditions::find(&status.conditions, RECONCILING).is_none()) {
            status.conditions.push(old.clone());
        }
    } else {
        status.phase = Some(Phase::Pending);
    }
    let message = format!(
        "The policy allows {limit} concurrent runs in the namespace; the run is queued when one of them has ended"
    );
    let generation = job.metadata.generation;
    conditions::set(&mut status.conditions, RECONCILING, true, reasons::TENANT_LIMIT, message, generation, now);
}

/// Desired state that is asserted in Redis. A suspended or held run that waits for the quota stays so. `waits`: this
/// process lets the run wait, although the status may not say so yet.
#[must_use]
pub fn asserted_state(job: &SyncJob, waits: bool) -> DesiredState {
    let conditions = job.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let has_reason = conditions::find(conditions, RECONCILING).is_some_and(|it| it.reason == reasons::TENANT_LIMIT);
    let desired = DesiredState::from(job);
    if !waits && !has_reason {
        return desired;
    }
    let suspended = desired.suspended || conditions::is_true(conditions, SUSPENDED);
    DesiredState { suspended, approved: desired.approved.filter(|_| !is_held(job)), ..desired }
}

/// Deadline of a run that no worker holds: without workers, the controller has to end the run. `None`: the run has no
/// deadline now. A rollback has no deadline.
fn ends_without_worker_at(run: &Run, deadline: Duration) -> Option<Timestamp> {
    let waits = matches!(run.state, State::Waiting | State::Delayed) && run.outcome.is_none();
    run.started.filter(|_| waits)?.checked_add(deadline.saturating_add(run.parked_for)).ok()
}

/// Time at which a held run ends unless it is approved.
fn held_until(status: &SyncJobStatus, hold_for: Option<Duration>) -> Option<Timestamp> {
    let held = hold_shown(status)?;
    held.last_transition_time.0.checked_add(hold_for?).ok()
}

/// True when a held run was not approved in time.
fn is_over(job: &SyncJob, status: &SyncJobStatus, hold_for: Option<Duration>, now: Timestamp) -> bool {
    let is_late = held_until(status, hold_for).is_some_and(|until| until <= now);
    is_late && !job.spec.cancelled && !is_approved(job, status)
}

/// Outcome of a held run that was not approved in time.
fn not_approved(status: &SyncJobStatus, hold_for: Option<Duration>) -> Outcome {
    let held = held_number(status);
    let hold_for = hold_for.map_or_else(String::new, |hold_for| GoDuration::from(hold_for).to_string());
    let message = format!("no approval for {held} documents within spec.guard.holdFor ({hold_for})");
    Outcome { reason: reasons::NOT_APPROVED.to_owned(), message }
}

/// Time since which the run is parked: suspended, or held until the queue has its approval. The next write to the queue
/// resumes the run. `None`: the run is not parked.
fn parked_since(job: &SyncJob, now: Timestamp) -> Option<Timestamp> {
    let conditions = job.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let since = |type_| conditions::find(conditions, type_).filter(|found| found.status == "True");
    let parked = since(HELD).or_else(|| since(SUSPENDED)).map(|parked| parked.last_transition_time.0);
    parked.or_else(|| job.spec.suspended.then_some(now))
}

/// Record of the run in the status of an unfinished SyncJob.
#[must_use]
pub fn recorded(job: &SyncJob, now: Timestamp) -> Recorded {
    let status = job.status.clone().unwrap_or_default();
    let count = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default();
    Recorded {
        started: status.start_time.as_ref().map(|start| start.0),
        attempts: count(status.attempts),
        recoveries: count(status.recoveries),
        parked_for: suspended_for(&status),
        parked_since: parked_since(job, now),
        held: shows_hold(&status).then(|| held_number(&status)).and_then(|held| u64::try_from(held).ok()),
        history: status.attempt_history,
    }
}

fn suspended_for(status: &SyncJobStatus) -> Duration {
    status.suspended_for.as_ref().and_then(|time| time.parse().ok()).unwrap_or_default()
}

/// Hold for which the queue has parked the run. `None`: the run is not parked, or is suspended.
fn hold_of(run: &Run) -> Option<&Hold> {
    let DesiredState { suspended, approved, .. } = run.desired;
    let hold = run.checkpoint.hold.as_ref().filter(|_| run.state == State::Parked && !suspended);
    hold.filter(|hold| approved.is_none_or(|approved| approved < hold.number))
}

/// Message about held documents, with the command that approves them. The command comes before the keys, because a
/// condition is too short for all keys.
#[must_use]
pub fn hold_message(hold: &Hold, approval: &str) -> String {
    let Hold { message, keys, .. } = hold;
    let keys = if keys.is_empty() { String::new() } else { format!(". The first keys: {}", keys.join(", ")) };
    format!("{message}. To approve: {approval}{keys}")
}

fn with_warnings(message: String, run: &Run) -> String {
    run.checkpoint.warnings.iter().fold(message, |text, warning| format!("{text}. {}", warning.message()))
}

/// Events about warnings that make a run slow. Each warning is published once: the conditions contain the published
/// ones.
fn slow_run_events(old: &SyncJobStatus, run: &Run) -> Vec<ObjectEvent> {
    let is_at_work = matches!(run.state, State::Active | State::Completed) && run.outcome.is_none();
    let is_published = |message| old.conditions.iter().any(|condition| condition.message.contains(message));
    let warnings = run.checkpoint.warnings.iter().filter(|warning| is_at_work && !is_published(warning.message()));
    warnings.filter_map(|warning| Some(ObjectEvent::warning(warning.event()?, warning.message()))).collect()
}

/// Outcome of a cancelled run: cancelled by a user, or by its schedule for a newer run.
#[must_use]
pub fn cancelled(job: &SyncJob) -> Outcome {
    let newer = |annotation| job.annotations().get(annotation);
    let (reason, message) = match (newer(REPLACED_BY_ANNOTATION), newer(SUPERSEDED_BY_ANNOTATION)) {
        (Some(newer), _) => (reasons::REPLACED, truncate(&format!("{newer} replaces it"))),
        (None, Some(newer)) => (reasons::SUPERSEDED, truncate(&format!("{newer} supersedes it"))),
        (None, None) => (reasons::CANCELLED, "spec.cancelled was set".to_owned()),
    };
    Outcome { reason: reason.to_owned(), message }
}

/// True when the schedule of the run cancelled the run for a newer run.
#[must_use]
pub fn is_replaced(job: &SyncJob) -> bool {
    let conditions = job.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let replaced = [reasons::REPLACED, reasons::SUPERSEDED];
    conditions::find(conditions, FAILED).is_some_and(|failed| replaced.contains(&failed.reason.as_str()))
}

/// Status while the queue cannot be read: the last known status, with the reason for which it may be stale.
#[must_use]
pub fn unknown(job: &SyncJob, reason: &str, message: &str, now: Timestamp) -> SyncJobStatus {
    let mut status = job.status.clone().unwrap_or_default();
    status.phase = status.phase.or(Some(Phase::Pending));
    conditions::set(&mut status.conditions, RECONCILING, true, reason, message, job.metadata.generation, now);
    status
}

/// True while the end of a run waits until its SyncSchedule lists the run as active. Without this wait, a short run
/// that a call created would never be counted. The wait takes 30 s at most, because an error of the schedule must not
/// hide the result of a run. `waited` is the time since this process observed the end, by the clock of this process.
#[must_use]
pub fn awaits_accounting(job: &SyncJob, next: &SyncJobStatus, schedule: &SyncSchedule, waited: Duration) -> bool {
    if !has_ended(next) || schedule.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let active = schedule.status.as_ref().map(|status| status.active.as_slice()).unwrap_or_default();
    waited <= ACCOUNTING_LIMIT && !active.iter().any(|run| run.name == job.name_any())
}

/// Copies attempts, recoveries and times into the status. A Redis that was restored to an earlier state may know less
/// than the status, so these values never decrease. They are asserted in Redis.
fn record_attempts(status: &mut SyncJobStatus, run: &Run) {
    if status.attempts <= Some(run.attempts as i32) {
        status.attempts = Some(run.attempts as i32);
        status.attempt_history.clone_from(&run.history);
    }
    status.recoveries = status.recoveries.max(Some(run.recoveries as i32));
    // Stamped documents carry the time of the first claim.
    status.start_time = status.start_time.take().or(run.started.map(MicroTime));
    let suspended_for = suspended_for(status).max(run.parked_for);
    status.suspended_for = (!suspended_for.is_zero()).then(|| suspended_for.into());
}

/// Projects the run in the queue onto the status.
fn project_onto_status(status: &mut SyncJobStatus, job: &SyncJob, run: &Run, now: Timestamp) {
    let was_put_back = run.state == State::Parked && run.checkpoint.hold.is_none();
    if shows_hold(status) && was_put_back && !job.spec.suspended {
        // Redis had lost the held run. The next call resumes or ends the run.
        return;
    }
    let generation = job.metadata.generation;
    let held_before = status.counts.and_then(|counts| counts.held);
    let complete = run.state == State::Completed;
    status.worker.clone_from(&run.worker);
    record_attempts(status, run);

    // A run that was lost with Redis starts over. The progress in the status must not decrease meanwhile.
    let known = status.counts.unwrap_or_default();
    if run.finished.is_some() || run.checkpoint.counts.processed >= known.processed {
        status.counts = Some(run.checkpoint.counts);
        status.failures.clone_from(&run.checkpoint.failures);
        status.changes.clone_from(&run.checkpoint.changes);
        let reached = status.progress.unwrap_or(0);
        status.progress = Some(progress(&run.checkpoint.counts, complete).max(reached));
    }

    if let Some(outcome) = run.outcome.as_ref().filter(|_| run.finished.is_none()) {
        status.phase = Some(Phase::RollingBack);
        conditions::clear(&mut status.conditions, SUSPENDED);
        conditions::clear(&mut status.conditions, HELD);
        let message = format!("Restoring the documents, because the run has failed: {}", outcome.message);
        let message = with_warnings(message, run);
        conditions::set(&mut status.conditions, RECONCILING, true, reasons::ROLLING_BACK, message, generation, now);
        return;
    }
    if let Some(hold) = hold_of(run) {
        let number = i64::try_from(hold.number).unwrap_or(i64::MAX);
        if held_before != Some(number) {
            // Another number needs another approval.
            conditions::clear(&mut status.conditions, HELD);
        }
        let command = format!("kubectl annotate syncjob {} {APPROVE_ANNOTATION}={number} --overwrite", job.name_any());
        let message = hold_message(hold, &command);
        status.phase = Some(Phase::Held);
        status.counts.get_or_insert_default().held = Some(number);
        conditions::clear(&mut status.conditions, RECONCILING);
        conditions::clear(&mut status.conditions, SUSPENDED);
        conditions::set(&mut status.conditions, HELD, true, reasons::GUARD_EXCEEDED, message, generation, now);
        return;
    }
    conditions::clear(&mut status.conditions, HELD);
    if run.state == State::Parked {
        let message = "Suspended with its progress kept; resumes when spec.suspended is false";
        status.phase = Some(Phase::Suspended);
        conditions::clear(&mut status.conditions, RECONCILING);
        conditions::set(&mut status.conditions, SUSPENDED, true, reasons::SUSPENDED, message, generation, now);
        return;
    }
    conditions::clear(&mut status.conditions, SUSPENDED);
    let mut reconciling = |reason, message: String| {
        conditions::set(&mut status.conditions, RECONCILING, true, reason, message, generation, now);
    };
    match run.state {
        State::Waiting => {
            status.phase = Some(Phase::Queued);
            let (reason, message) = queued_reason(run);
            reconciling(reason, message);
        }
        State::Active => {
            status.phase = Some(Phase::Running);
            reconciling(reasons::RUNNING, with_warnings("Running on a worker".to_owned(), run));
        }
        State::Parked => {}
        State::Delayed if run.checkpoint.is_paused => {
            status.phase = Some(Phase::Queued);
            let when = run.retry_at.map_or_else(String::new, |at| format!(" at {}", from_seconds(at.as_second())));
            reconciling(reasons::RATE_LIMITED, format!("The source limits requests; the run continues{when}"));
        }
        State::Delayed if run.attempts == 0 => {
            status.phase = Some(Phase::Queued);
            let message = "Waiting for a worker whose copy of the policy allows the run, and which can open a client of its MongoDB";
            reconciling(reasons::QUEUED, message.to_owned());
        }
        State::Delayed => {
            status.phase = Some(Phase::Retrying);
            let why = run.history.last().map_or("the attempt failed", |attempt| attempt.message.as_str());
            let when = run.retry_at.map_or_else(String::new, |at| format!(" at {}", from_seconds(at.as_second())));
            reconciling(reasons::RETRYING, format!("Attempt {} failed, next one{when}: {why}", run.attempts));
        }
        State::Completed => {
            let counts = run.checkpoint.counts;
            let message =
                format!("{} of {} documents updated, {} failed", counts.updated, counts.processed, counts.failed);
            let message = with_warnings(message, run);
            status.phase = Some(Phase::Complete);
            if let Some(Outcome { reason, message }) = &run.checkpoint.removal_skipped {
                let at = run.finished.unwrap_or(now);
                conditions::set(&mut status.conditions, REMOVAL_SKIPPED, true, reason, message, generation, at);
            }
            finish(status, run.finished.unwrap_or(now));
            conditions::set(&mut status.conditions, COMPLETE, true, reasons::COMPLETED, message, generation, now);
        }
        State::Failed => {
            let unknown = || Outcome { reason: reasons::BACKOFF_LIMIT_EXCEEDED.to_owned(), message: String::new() };
            let outcome = run.outcome.clone().unwrap_or_else(unknown);
            fail(status, &outcome, generation, run.finished.unwrap_or(now));
        }
    }
}

/// Reason and message of a run that waits for a claim.
fn queued_reason(run: &Run) -> (&'static str, String) {
    match run.lacks_level {
        Some(level) => {
            let message = format!("Waiting for a worker of a newer release: no connected worker has level {level}");
            (reasons::NEWER_WORKER_NEEDED, message)
        }
        None if run.has_workers => (reasons::QUEUED, "Waiting for a worker".to_owned()),
        None => (reasons::NO_WORKERS, "Waiting for a worker: none is connected to Redis".to_owned()),
    }
}

fn fail(status: &mut SyncJobStatus, outcome: &Outcome, generation: Option<i64>, at: Timestamp) {
    status.phase = Some(Phase::Failed);
    finish(status, at);
    for condition in [FAILED, STALLED] {
        conditions::set(&mut status.conditions, condition, true, &outcome.reason, &outcome.message, generation, at);
    }
}

fn finish(status: &mut SyncJobStatus, at: Timestamp) {
    conditions::clear(&mut status.conditions, RECONCILING);
    conditions::clear(&mut status.conditions, HELD);
    status.completion_time = Some(Time(from_seconds(at.as_second())));
    let millis = status.start_time.as_ref().map(|start| elapsed(start.0, at).as_millis() as u64);
    status.duration = millis.map(|millis| GoDuration::from(Duration::from_millis(millis)));
}

/// Event about a held run that continues.
fn approval_event(old: &SyncJobStatus, new: &SyncJobStatus, approved: Option<u64>) -> Option<ObjectEvent> {
    let continues = matches!(new.phase, Some(Phase::Queued | Phase::Running | Phase::Retrying | Phase::Complete));
    let approved = approved.filter(|_| shows_hold(old) && !shows_hold(new) && continues)?;
    let text = format!("The annotation {APPROVE_ANNOTATION} approves {approved} documents: continues");
    Some(ObjectEvent::normal("RunApproved", text))
}

/// Event about a complete run that has removed no documents.
fn skipped_removal_event(old: &SyncJobStatus, new: &SyncJobStatus) -> Option<ObjectEvent> {
    let skipped = conditions::find(&new.conditions, REMOVAL_SKIPPED)?;
    let is_new = conditions::find(&old.conditions, REMOVAL_SKIPPED).is_none();
    is_new.then(|| ObjectEvent::warning("RemovalSkipped", skipped.message.clone()))
}

/// Event about a change of the phase, a recovery or another hold.
fn transition_event(old: &SyncJobStatus, new: &SyncJobStatus) -> Option<ObjectEvent> {
    let message = |type_| conditions::find(&new.conditions, type_).map(|c| c.message.clone()).unwrap_or_default();
    let reason = conditions::find(&new.conditions, FAILED).map(|c| c.reason.as_str()).unwrap_or_default();
    let is_wanted = matches!(reason, reasons::CANCELLED | reasons::REPLACED | reasons::SUPERSEDED);
    let recovered = new.recoveries > old.recoveries && new.recoveries > Some(0);
    if recovered && matches!(new.phase, Some(Phase::Queued | Phase::Running)) {
        return Some(ObjectEvent::warning(
            "RunRecovered",
            "The run lost its worker and continues from its last checkpoint",
        ));
    }
    let held = |status: &SyncJobStatus| status.counts.and_then(|counts| counts.held);
    if old.phase == new.phase && (new.phase != Some(Phase::Held) || held(old) == held(new)) {
        return None;
    }
    if new.phase == Some(Phase::RollingBack) {
        return Some(ObjectEvent::normal("RunRollingBack", truncate(&message(RECONCILING))));
    }
    if old.phase == Some(Phase::Held) && conditions::is_true(&new.conditions, RECONCILING) {
        return None;
    }
    if old.phase == Some(Phase::Suspended) && conditions::is_true(&new.conditions, RECONCILING) {
        return Some(ObjectEvent::normal("RunResumed", "Resumed from the last checkpoint"));
    }
    Some(match new.phase? {
        Phase::Pending | Phase::RollingBack => return None,
        Phase::Queued => ObjectEvent::normal("RunQueued", message(RECONCILING)),
        Phase::Running => {
            ObjectEvent::normal("RunStarted", format!("Started by worker {}", new.worker.as_deref().unwrap_or("?")))
        }
        Phase::Retrying => ObjectEvent::warning("RunRetrying", message(RECONCILING)),
        Phase::Held => ObjectEvent::warning("RunHeld", message(HELD)),
        Phase::Suspended => ObjectEvent::normal("RunSuspended", message(SUSPENDED)),
        Phase::Complete => ObjectEvent::normal("RunCompleted", message(COMPLETE)),
        Phase::Failed if is_wanted => ObjectEvent::normal("RunCancelled", message(FAILED)),
        Phase::Failed if reason == reasons::STARTING_DEADLINE_EXCEEDED => {
            ObjectEvent::normal("RunSkipped", message(FAILED))
        }
        Phase::Failed => ObjectEvent::warning("RunFailed", truncate(&message(FAILED))),
    })
}

/// Condition of a run that waits for an approval.
#[must_use]
pub fn held(job: &SyncJob) -> Option<&Condition> {
    hold_shown(job.status.as_ref().filter(|_| !is_finished(job))?)
}

/// Time at which a finished SyncJob without a schedule is deleted.
#[must_use]
pub fn expires_at(job: &SyncJob) -> Option<Timestamp> {
    let ttl = job.spec.ttl_after_finished.as_ref()?.parse().ok()?;
    let ended = job.status.as_ref()?.completion_time.as_ref()?.0;
    let owned = job.owner_references().iter().any(|owner| owner.controller == Some(true));
    if owned { None } else { ended.checked_add(ttl).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::syncjob::Counts,
        domain::run::{Checkpoint, Warning},
        fixtures::at,
    };

    fn job(spec: serde_json::Value) -> SyncJob {
        let mut job = SyncJob::new("user-sync-1", serde_json::from_value(spec).unwrap());
        job.metadata.generation = Some(1);
        job
    }
    fn run(state: State, processed: i64) -> Run {
        let counts = Counts { total: 200, processed, updated: processed, ..Counts::default() };
        Run {
            state,
            worker: Some("w1".into()),
            attempts: 0,
            recoveries: 0,
            started: Some(at(100)),
            parked_for: Duration::ZERO,
            has_workers: true,
            retry_at: None,
            finished: matches!(state, State::Completed | State::Failed).then(|| at(160)),
            checkpoint: Checkpoint { counts, ..Checkpoint::default() },
            history: Vec::new(),
            outcome: None,
            desired: DesiredState::default(),
            lacks_level: None,
        }
    }
    #[test]
    fn only_a_run_that_would_be_claimed_uses_the_quota() {
        let job = |spec: serde_json::Value| self::job(spec);
        let suspended = || job(serde_json::json!({"suspended": true}));
        let cancelled = || job(serde_json::json!({"cancelled": true}));
        let of = |job: &SyncJob, run: Option<&Run>| queue_use(job, run, &decide(job, run, at(160)), at(160));
        let parked = |suspended: bool, held: Option<u64>, approved: Option<u64>| {
            let mut run = run(State::Parked, 5);
            run.checkpoint.hold = held.map(|number| Hold { number, keys: Vec::new(), message: String::new() });
            run.desired = DesiredState { suspended, approved, ..DesiredState::default() };
            run
        };
        let approving = |number: &str| {
            let mut job = job(serde_json::json!({}));
            job.annotations_mut().insert(APPROVE_ANNOTATION.to_owned(), number.to_owned());
            job
        };
        for (job, run, expected) in vec![
            (job(serde_json::json!({})), None, QueueUse::Entering),
            (suspended(), None, QueueUse::None),
            (cancelled(), None, QueueUse::None),
            (suspended(), Some(run(State::Waiting, 0)), QueueUse::Present),
            (cancelled(), Some(run(State::Active, 0)), QueueUse::Present),
            (job(serde_json::json!({})), Some(run(State::Delayed, 0)), QueueUse::Present),
            (job(serde_json::json!({})), Some(run(State::Completed, 0)), QueueUse::None),
            (suspended(), Some(parked(true, None, None)), QueueUse::None),
            (job(serde_json::json!({})), Some(parked(true, None, None)), QueueUse::Entering),
            (cancelled(), Some(parked(true, None, None)), QueueUse::Present),
            (job(serde_json::json!({})), Some(parked(false, Some(9), None)), QueueUse::None),
            (approving("8"), Some(parked(false, Some(9), None)), QueueUse::None),
            (approving("9"), Some(parked(false, Some(9), None)), QueueUse::Entering),
        ] {
            assert_eq!(of(&job, run.as_ref()), expected, "{:?} {run:?}", job.spec);
        }
    }

    #[test]
    fn a_run_that_waits_for_the_quota_stays_as_it_is() {
        let decide_at = |job: &SyncJob, run: Option<&Run>, seconds: i64| {
            let mut plan = decide(job, run, at(seconds));
            wait_for_quota(&mut plan, job, run, (2, at(seconds)));
            plan
        };
        let mut waiting = job(serde_json::json!({}));
        let plan = decide_at(&waiting, None, 160);
        assert!(!plan.enqueue && plan.status.phase == Some(Phase::Pending), "{plan:?}");
        waiting.status = Some(plan.status.clone());
        assert_eq!(decide_at(&waiting, None, 170).status, plan.status, "nothing changes while the run waits");

        let mut resumed = job(serde_json::json!({"priority": 7}));
        let mut run = run(State::Parked, 5);
        run.desired.suspended = true;
        let plan = decide_at(&resumed, Some(&run), 160);
        assert_eq!(plan.control, Some(DesiredState { suspended: true, priority: 7, ..DesiredState::default() }));
        assert_eq!(plan.status.phase, Some(Phase::Suspended));
        let reason = conditions::find(&plan.status.conditions, RECONCILING).unwrap().reason.clone();
        assert_eq!(reason, "TenantLimit");
        resumed.status = Some(plan.status.clone());
        run.desired.priority = 7;
        let next = decide_at(&resumed, Some(&run), 170);
        assert_eq!((next.control, next.status), (None, plan.status), "nothing changes while the run waits");
        assert!(asserted_state(&resumed, false).suspended, "a resync does not resume the run");
        let suspended = decide(&job(serde_json::json!({"suspended": true})), Some(&run), at(150)).status;
        let before_the_report = SyncJob { status: Some(suspended), ..resumed.clone() };
        for waits in [false, true] {
            assert_eq!(asserted_state(&before_the_report, waits).suspended, waits);
        }
        let plan = decide(&resumed, Some(&run), at(180));
        assert_eq!(plan.control, Some(DesiredState { priority: 7, ..DesiredState::default() }));
    }

    #[test]
    fn a_run_that_is_not_allowed_ends_once_and_shows_no_keys() {
        let refused = || Outcome { reason: reasons::NOT_ALLOWED.to_owned(), message: "why".to_owned() };
        let job = |cancelled: bool| self::job(serde_json::json!({"cancelled": cancelled}));
        let decide = |job: &SyncJob, run: Option<&Run>| {
            let mut plan = super::decide(job, run, at(160));
            refuse(&mut plan, job, run, (refused(), at(160)));
            plan
        };
        let plan = decide(&job(false), None);
        assert!(!plan.enqueue && has_ended(&plan.status), "{plan:?}");
        assert_eq!(conditions::find(&plan.status.conditions, FAILED).unwrap().reason, "NotAllowed");
        let plan = decide(&job(true), None);
        assert_eq!(conditions::find(&plan.status.conditions, FAILED).unwrap().reason, "Cancelled");

        for (state, is_cancelled, is_rolled_back, ends) in [
            (State::Waiting, false, false, true),
            (State::Delayed, false, false, true),
            (State::Active, false, false, true),
            (State::Parked, false, false, true),
            (State::Active, true, false, false),
            (State::Active, false, true, false),
            (State::Completed, false, false, false),
        ] {
            let mut run = run(state, 5);
            run.desired.cancelled = is_cancelled;
            run.outcome = is_rolled_back.then(refused);
            let plan = decide(&job(false), Some(&run));
            assert_eq!(plan.end, ends.then(refused), "{state:?}");
            assert!(plan.control.is_some() || !ends);
        }

        let mut run = run(State::Active, 5);
        let failure = crate::api::syncjob::DocumentFailure {
            key: "secret".to_owned(),
            reason: "ValidationFailed".to_owned(),
            message: String::new(),
        };
        run.checkpoint.failures = vec![failure];
        run.checkpoint.changes = vec!["secret".to_owned()];
        run.checkpoint.hide_keys();
        let status = decide(&job(false), Some(&run)).status;
        assert_eq!((status.failures[0].key.as_str(), status.changes), ("(hidden)", vec!["(hidden)".to_owned()]));
    }

    fn reasons_of(plan: &JobPlan) -> Vec<&str> {
        plan.events.iter().map(|event| event.reason).collect()
    }

    #[test]
    fn the_longest_status_is_below_32_kib() {
        use crate::{
            api::syncjob::{Attempt, DocumentFailure},
            domain::run::{MAX_ATTEMPTS, MAX_FAILURES},
        };
        let long = "\"\\".repeat(1000);
        let failure =
            DocumentFailure { key: truncate(&long), reason: "ValidationFailed".to_owned(), message: truncate(&long) };
        let attempt = Attempt {
            number: 1000,
            start: Time(at(1_795_477_200)),
            end: Time(at(1_795_477_200)),
            reason: "Unreachable".to_owned(),
            message: truncate(&long),
        };
        let mut run = run(State::Failed, 100);
        run.checkpoint.failures = vec![failure; MAX_FAILURES];
        run.history = vec![attempt; MAX_ATTEMPTS];
        run.outcome = Some(Outcome { reason: reasons::BACKOFF_LIMIT_EXCEEDED.to_owned(), message: long });
        let status = decide(&job(serde_json::json!({})), Some(&run), at(200)).status;
        let size = serde_json::to_vec(&status).unwrap().len();
        assert!(size < 32 << 10 && size > 24 << 10, "{size}");
    }

    #[test]
    fn an_end_waits_until_the_schedule_lists_the_run_or_30_s() {
        let mut job = job(serde_json::json!({}));
        job.metadata.creation_timestamp = Some(Time(at(90)));
        let schedule = |active: &[&str]| {
            let spec = serde_json::from_value(serde_json::json!({"jobTemplate": {"spec": {}}})).unwrap();
            let mut schedule = SyncSchedule::new("user-sync", spec);
            let entry = |name: &&str| serde_json::json!({"name": name, "slot": "2026-11-25T00:00:00Z"});
            let active: Vec<_> = active.iter().map(entry).collect();
            schedule.status = serde_json::from_value(serde_json::json!({"active": active})).unwrap();
            schedule
        };
        let (without, with) = (schedule(&["another"]), schedule(&["another", "user-sync-1"]));
        let ended = decide(&job, Some(&run(State::Completed, 200)), at(161)).status;
        let never_started = decide(&self::job(serde_json::json!({"cancelled": true})), None, at(100)).status;
        let running = decide(&job, Some(&run(State::Active, 1)), at(161)).status;
        let mut deleted = without.clone();
        deleted.metadata.deletion_timestamp = Some(Time(at(161)));
        for (what, next, schedule, waited, waits) in [
            ("not active", &ended, &without, 1, true),
            ("active", &ended, &with, 1, false),
            ("late", &ended, &without, 31, false),
            ("running", &running, &without, 1, false),
            ("the schedule was deleted", &ended, &deleted, 1, false),
            ("never started", &never_started, &without, 0, true),
            ("never started, late", &never_started, &without, 31, false),
        ] {
            assert_eq!(awaits_accounting(&job, next, schedule, Duration::from_secs(waited)), waits, "{what}");
        }
    }

    #[test]
    fn a_job_unknown_to_the_queue_is_enqueued() {
        let plan = decide(&job(serde_json::json!({})), None, at(1));
        assert!(plan.enqueue);
        assert_eq!(plan.status.phase, Some(Phase::Pending));
    }

    #[test]
    fn the_desired_state_is_written_until_the_queue_has_it() {
        let desired = DesiredState { suspended: true, priority: 7, ..DesiredState::default() };
        let job = job(serde_json::json!({"suspended": true, "priority": 7}));
        for state in [State::Waiting, State::Active, State::Delayed, State::Parked] {
            let run = run(state, 1);
            assert_eq!(decide(&job, Some(&run), at(2)).control, Some(desired), "{state:?}");
            assert_eq!(decide(&job, Some(&Run { desired, ..run }), at(2)).control, None, "{state:?}");
        }
        for state in [State::Completed, State::Failed] {
            assert_eq!(decide(&job, Some(&run(state, 1)), at(200)).control, None, "{state:?}");
        }
    }

    #[test]
    fn a_cancelled_job_without_a_run_fails_without_being_enqueued() {
        let plan = decide(&job(serde_json::json!({"cancelled": true})), None, at(1));
        assert_eq!((plan.enqueue, reasons_of(&plan)), (false, vec!["RunCancelled"]));
        assert_eq!(conditions::find(&plan.status.conditions, FAILED).unwrap().reason, reasons::CANCELLED);
    }

    #[test]
    fn a_run_that_a_newer_one_replaces_says_which() {
        let mut job = job(serde_json::json!({"cancelled": true}));
        job.annotations_mut().insert(REPLACED_BY_ANNOTATION.to_owned(), "user-sync-2".to_owned());
        let plan = decide(&job, None, at(1));
        assert_eq!(reasons_of(&plan), ["RunCancelled"]);
        job.status = Some(plan.status);
        assert!(is_replaced(&job));
        let failed = conditions::find(&job.status.as_ref().unwrap().conditions, FAILED).unwrap();
        assert_eq!(failed.message, "user-sync-2 replaces it");
        assert_eq!(reasons_of(&decide(&job, None, at(2))), Vec::<&str>::new());
    }

    #[test]
    fn a_restored_job_whose_slot_is_over_is_not_executed() {
        let started = SyncJobStatus { start_time: Some(MicroTime(at(50))), ..SyncJobStatus::default() };
        let waiting = SyncJobStatus { phase: Some(Phase::Pending), ..SyncJobStatus::default() };
        for (what, deadline, created, is_owned, status, expected) in [
            ("restored", Some(100), 101, false, None, true),
            ("restored while Redis was unavailable", Some(100), 101, false, Some(waiting), true),
            ("restored in time", Some(100), 100, false, None, false),
            ("created by a schedule whose clock is behind", Some(100), 9000, true, None, false),
            ("started before its schedule was deleted", Some(100), 101, false, Some(started), false),
            ("created by hand", None, 101, false, None, false),
        ] {
            let mut job = job(serde_json::json!({}));
            job.metadata.creation_timestamp = Some(Time(at(created)));
            job.status = status;
            let deadline = deadline.map(|deadline| (STARTING_DEADLINE_ANNOTATION.to_owned(), at(deadline).to_string()));
            job.annotations_mut().extend(deadline);
            let outcome = restored_without_status(&job, is_owned);
            assert_eq!(outcome.is_some(), expected, "{what}");
            let Some(outcome) = outcome else { continue };
            let plan = end_without_run(&job, &outcome, at(200));
            assert_eq!((plan.enqueue, reasons_of(&plan)), (false, vec!["RunSkipped"]));
            job.status = Some(plan.status);
            assert!(is_finished(&job) && !is_complete(&job), "{what}");
        }
    }

    const HELD_AT: i64 = 1000;

    /// A run that its guard holds, or held last, because of `number` documents.
    fn guarded(state: State, number: u64, approved: Option<u64>) -> Run {
        let mut run = run(state, 100);
        let keys = vec!["a1".to_owned(), "a2".to_owned()];
        run.checkpoint.counts.held = Some(number as i64);
        run.checkpoint.hold = Some(Hold { number, message: "too many".to_owned(), keys });
        run.desired.approved = approved;
        run
    }

    fn approve(mut job: SyncJob, number: &str) -> SyncJob {
        job.annotations_mut().insert(APPROVE_ANNOTATION.to_owned(), number.to_owned());
        job
    }

    /// A SyncJob that is held because of 10 documents since [`HELD_AT`].
    fn held_job(part: &serde_json::Value) -> SyncJob {
        let mut spec = serde_json::json!({"transaction": "Batch", "guard": {"holdFor": "1m"},
            "source": {"graphQL": {"endpoint": "https://api.example/", "query": "{a}", "resultPath": ""}}});
        spec.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        let mut job = job(spec);
        job.status = Some(decide(&job, Some(&guarded(State::Parked, 10, None)), at(HELD_AT)).status);
        job
    }

    fn reason<'a>(status: &'a SyncJobStatus, type_: &str) -> Option<&'a str> {
        conditions::find(&status.conditions, type_).map(|condition| condition.reason.as_str())
    }

    #[test]
    fn a_held_run_says_what_is_held_and_how_it_is_approved() {
        let mut job = job(serde_json::json!({}));
        job.status = Some(decide(&job, Some(&run(State::Active, 10)), at(120)).status);
        let plan = decide(&job, Some(&guarded(State::Parked, 10, Some(9))), at(140));
        assert_eq!((plan.status.phase, reasons_of(&plan)), (Some(Phase::Held), vec!["RunHeld"]));
        let held = conditions::find(&plan.status.conditions, HELD).unwrap();
        assert_eq!((held.status.as_str(), held.reason.as_str()), ("True", reasons::GUARD_EXCEEDED));
        let message = "too many. To approve: kubectl annotate syncjob user-sync-1 sync.codex.dev/approve=10 --overwrite. \
                       The first keys: a1, a2";
        assert_eq!(held.message, message);
        assert_eq!(plan.events[0].text, message);
        assert!(plan.events[0].warning);
        assert_eq!(plan.status.counts.unwrap().held, Some(10));
        assert_eq!(reason(&plan.status, RECONCILING), None);
        job.status = Some(plan.status);
        assert!(is_held(&job) && waits_for_approval(&job));
        let again = decide(&job, Some(&guarded(State::Parked, 10, Some(9))), at(150));
        assert_eq!((Some(&again.status), again.events.len()), (job.status.as_ref(), 0));
        let more = decide(&job, Some(&guarded(State::Parked, 12, Some(10))), at(160));
        assert_eq!((more.status.counts.unwrap().held, reasons_of(&more)), (Some(12), vec!["RunHeld"]));
        let since = conditions::find(&more.status.conditions, HELD).unwrap().last_transition_time.0;
        assert_eq!(since, at(160), "another number is held for as long as the first");
    }

    #[test]
    fn a_parked_run_is_held_unless_it_is_suspended() {
        let suspended = |run: Run| Run { desired: DesiredState { suspended: true, ..run.desired }, ..run };
        for (what, run, phase) in [
            ("held", guarded(State::Parked, 10, None), Phase::Held),
            ("fewer are approved", guarded(State::Parked, 10, Some(9)), Phase::Held),
            ("as many are approved", guarded(State::Waiting, 10, Some(10)), Phase::Queued),
            ("suspended, too", suspended(guarded(State::Parked, 10, None)), Phase::Suspended),
            ("suspended", suspended(run(State::Parked, 100)), Phase::Suspended),
        ] {
            let status = decide(&job(serde_json::json!({})), Some(&run), at(140)).status;
            assert_eq!((status.phase, shows_hold(&status)), (Some(phase), phase == Phase::Held), "{what}");
        }
    }

    #[test]
    fn a_held_run_that_continues_or_ends_is_held_no_more() {
        let suspended = DesiredState { suspended: true, ..DesiredState::default() };
        for (what, run, events) in [
            ("waits", guarded(State::Waiting, 10, Some(10)), vec!["RunApproved"]),
            ("runs", guarded(State::Active, 10, Some(10)), vec!["RunApproved"]),
            ("is retried", guarded(State::Delayed, 10, Some(10)), vec!["RunApproved"]),
            ("has completed", guarded(State::Completed, 10, Some(10)), vec!["RunApproved", "RunCompleted"]),
            ("has failed", guarded(State::Failed, 10, Some(10)), vec!["RunFailed"]),
            ("is suspended", Run { desired: suspended, ..guarded(State::Parked, 10, None) }, vec!["RunSuspended"]),
        ] {
            let job = approve(held_job(&serde_json::json!({})), "10");
            assert!(is_held(&job) && !waits_for_approval(&job));
            let plan = decide(&job, Some(&run), at(HELD_AT + 10));
            assert_eq!((shows_hold(&plan.status), reasons_of(&plan)), (false, events), "{what}");
        }
    }

    /// Each row has the annotation, the part of the spec and the seconds of the hold. Then come the expectations: the
    /// plan ends the run, the requeue, and the plan writes the desired state.
    #[test]
    fn a_held_run_fails_without_an_approval_in_time() {
        let none = || serde_json::json!({});
        for (approved, part, seconds, ends, requeue, controls) in [
            (None, none(), 0, false, Some(60), false),
            (None, none(), 59, false, Some(1), false),
            (None, none(), 60, true, None, true),
            (None, none(), 3600, true, None, true),
            (Some("9"), none(), 60, true, None, true),
            (Some("9"), none(), 59, false, Some(1), true),
            (Some("10"), none(), 60, false, None, true),
            (Some("ten"), none(), 60, true, None, true),
            (None, serde_json::json!({"cancelled": true}), 60, false, None, true),
            (None, serde_json::json!({"priority": 5}), 59, false, Some(1), true),
        ] {
            let mut job = held_job(&none());
            job.spec.cancelled = part.get("cancelled").is_some();
            job.spec.priority = part["priority"].as_i64().unwrap_or_default() as i32;
            let job = approved.map_or(job.clone(), |number| approve(job, number));
            let plan = decide(&job, Some(&guarded(State::Parked, 10, None)), at(HELD_AT + seconds));
            let row = format!("{approved:?} {part} {seconds}");
            assert_eq!(
                plan.end.as_ref().map(|end| end.reason.as_str()),
                ends.then_some(reasons::NOT_APPROVED),
                "{row}"
            );
            assert_eq!(plan.requeue, requeue.map(Duration::from_secs), "{row}");
            assert_eq!(plan.control.is_some(), controls, "{row}");
            assert_eq!(plan.status.phase, Some(Phase::Held), "{row}");
        }
        let end = decide(&held_job(&none()), Some(&guarded(State::Parked, 10, None)), at(HELD_AT + 60)).end.unwrap();
        assert_eq!(end.message, "no approval for 10 documents within spec.guard.holdFor (1m)");
        let ended = Run { outcome: Some(end), ..guarded(State::Failed, 10, None) };
        let plan = decide(&held_job(&none()), Some(&ended), at(HELD_AT + 61));
        assert_eq!(reason(&plan.status, FAILED), Some(reasons::NOT_APPROVED));
        assert_eq!((reasons_of(&plan), plan.requeue, shows_hold(&plan.status)), (vec!["RunFailed"], None, false));
    }

    #[test]
    fn a_run_that_the_queue_ended_is_not_cancelled_again() {
        let outcome = Outcome { reason: reasons::NOT_APPROVED.to_owned(), message: String::new() };
        let mut run = Run { outcome: Some(outcome), ..guarded(State::Waiting, 10, None) };
        run.desired.cancelled = true;
        let plan = decide(&held_job(&serde_json::json!({"onFailure": "Rollback"})), Some(&run), at(HELD_AT + 61));
        assert_eq!((plan.control, plan.end, plan.status.phase), (None, None, Some(Phase::RollingBack)));
    }

    /// Each row: the annotation, the part of the spec, the seconds for which it is held, whether it is enqueued, and
    /// the reason for which it fails.
    #[test]
    fn a_held_run_that_redis_lost_waits_for_its_approval() {
        let rollback = serde_json::json!({"onFailure": "Rollback"});
        let cancelled = serde_json::json!({"cancelled": true});
        let both = serde_json::json!({"onFailure": "Rollback", "cancelled": true});
        let none = serde_json::json!({});
        for (approved, part, seconds, enqueue, failed) in [
            (None, &none, 59, false, None),
            (Some("9"), &none, 59, false, None),
            (Some("10"), &none, 59, true, None),
            (Some("10"), &none, 61, true, None),
            (None, &serde_json::json!({"suspended": true}), 59, false, None),
            (None, &none, 60, false, Some(reasons::NOT_APPROVED)),
            (None, &cancelled, 59, false, Some(reasons::CANCELLED)),
            (None, &rollback, 59, false, None),
            (None, &rollback, 60, true, None),
            (None, &both, 59, true, None),
        ] {
            let mut job = held_job(part);
            if job.spec.suspended {
                job.status = held_job(&none).status;
            }
            let job = approved.map_or(job.clone(), |number| approve(job, number));
            let plan = decide(&job, None, at(HELD_AT + seconds));
            let row = format!("{approved:?} {part} {seconds}");
            assert_eq!((plan.enqueue, reason(&plan.status, FAILED)), (enqueue, failed), "{row}");
            assert_eq!(plan.requeue.is_some(), failed.is_none() && seconds < 60, "{row}");
            assert_eq!(shows_hold(&plan.status), failed.is_none(), "{row}");
            assert_eq!(parked_since(&job, at(2000)), Some(at(HELD_AT)), "{row}");
        }
    }

    #[test]
    fn a_held_run_that_was_put_back_is_held_until_the_queue_knows() {
        let put_back = DesiredState { suspended: true, ..DesiredState::default() };
        let run = Run { desired: put_back, checkpoint: Checkpoint::default(), ..run(State::Parked, 0) };
        let job = approve(held_job(&serde_json::json!({})), "10");
        let plan = decide(&job, Some(&run), at(HELD_AT + 61));
        assert_eq!((Some(&plan.status), plan.events.len()), (job.status.as_ref(), 0));
        let desired = DesiredState { approved: Some(10), ..DesiredState::default() };
        assert_eq!((plan.control, plan.end), (Some(desired), None));
        let late = decide(&held_job(&serde_json::json!({"onFailure": "Rollback"})), Some(&run), at(HELD_AT + 60));
        assert_eq!(late.end.unwrap().reason, reasons::NOT_APPROVED);
    }

    #[test]
    fn a_held_run_without_a_queue_shows_so_only_while_it_is_away() {
        let mut job = held_job(&serde_json::json!({}));
        job.status = Some(unknown(&job, reasons::QUEUE_UNAVAILABLE, "Redis does not answer", at(HELD_AT + 1)));
        assert_eq!(job.status.as_ref().unwrap().phase, Some(Phase::Held));
        for run in [None, Some(guarded(State::Parked, 10, None))] {
            let plan = decide(&job, run.as_ref(), at(HELD_AT + 2));
            assert_eq!((reason(&plan.status, RECONCILING), reasons_of(&plan)), (None, vec![]));
            assert_eq!(plan.requeue, Some(Duration::from_secs(58)));
        }
    }

    #[test]
    fn a_run_is_put_into_the_queue_as_suspended_since_it_was() {
        assert_eq!(parked_since(&job(serde_json::json!({})), at(200)), None);
        let mut job = job(serde_json::json!({"suspended": true}));
        assert_eq!(parked_since(&job, at(200)), Some(at(200)));
        job.status = Some(decide(&job, Some(&run(State::Parked, 100)), at(120)).status);
        assert_eq!(parked_since(&job, at(200)), Some(at(120)));
    }

    #[test]
    fn what_redis_lost_of_a_run_stays_recorded() {
        let mut job = job(serde_json::json!({}));
        let hour = Duration::from_hours(1);
        let known = Run { parked_for: hour, attempts: 2, recoveries: 3, ..run(State::Active, 10) };
        job.status = Some(decide(&job, Some(&known), at(120)).status);
        let recorded_now = recorded(&job, at(200));
        assert_eq!((recorded_now.started, recorded_now.parked_for), (Some(at(100)), hour));
        assert_eq!((recorded_now.attempts, recorded_now.recoveries, recorded_now.held), (2, 3, None));
        for started in [None, Some(at(90)), Some(at(130))] {
            let lost = Run { started, parked_for: Duration::ZERO, ..run(State::Waiting, 0) };
            let status = decide(&job, Some(&lost), at(140)).status;
            assert_eq!((status.attempts, status.recoveries), (Some(2), Some(3)), "{started:?}");
            assert_eq!(status.start_time, Some(MicroTime(at(100))), "{started:?}");
            assert_eq!(status.suspended_for, Some(hour.into()), "{started:?}");
        }
        assert_eq!(recorded(&held_job(&serde_json::json!({})), at(2000)).held, Some(10));
    }

    #[test]
    fn a_resumed_run_is_parked_until_the_queue_resumes_it() {
        let mut job = job(serde_json::json!({"suspended": true}));
        job.status = Some(decide(&job, Some(&run(State::Parked, 100)), at(120)).status);
        job.spec.suspended = false;
        assert_eq!(recorded(&job, at(200)).parked_since, Some(at(120)));
    }

    /// Each row: the state, the time for which the run was parked, whether it is rolled back, the time, whether it
    /// ends, and the seconds until the next reconciliation.
    #[test]
    fn a_run_that_no_worker_holds_ends_at_its_deadline() {
        for (state, parked_for, rolled_back, now, ends, requeue) in [
            (State::Waiting, 0, false, 3699, false, Some(1)),
            (State::Waiting, 0, false, 3700, true, None),
            (State::Delayed, 0, false, 3700, true, None),
            (State::Waiting, 100, false, 3700, false, Some(100)),
            (State::Waiting, 100, false, 3800, true, None),
            (State::Waiting, 0, true, 3700, false, None),
            (State::Active, 0, false, 3700, false, None),
            (State::Parked, 0, false, 3700, false, None),
        ] {
            let mut run = Run { parked_for: Duration::from_secs(parked_for), ..run(state, 10) };
            run.desired.suspended = state == State::Parked;
            run.outcome = rolled_back.then(Outcome::deadline_exceeded);
            let plan = decide(&job(serde_json::json!({"suspended": state == State::Parked})), Some(&run), at(now));
            let row = format!("{state:?} {parked_for} {rolled_back} {now}");
            assert_eq!(plan.end, ends.then(Outcome::deadline_exceeded), "{row}");
            assert_eq!((plan.control.is_some(), plan.requeue), (ends, requeue.map(Duration::from_secs)), "{row}");
        }
        let never_started = Run { started: None, ..run(State::Waiting, 0) };
        let plan = decide(&job(serde_json::json!({})), Some(&never_started), at(9999));
        assert_eq!((plan.end, plan.requeue), (None, None));
    }

    #[test]
    fn a_run_that_waits_without_a_worker_says_so() {
        for (has_workers, state, expected) in [
            (true, State::Waiting, reasons::QUEUED),
            (false, State::Waiting, reasons::NO_WORKERS),
            (false, State::Active, reasons::RUNNING),
        ] {
            let status =
                decide(&job(serde_json::json!({})), Some(&Run { has_workers, ..run(state, 10) }), at(140)).status;
            assert_eq!(reason(&status, RECONCILING), Some(expected), "{has_workers} {state:?}");
        }
    }

    #[test]
    fn a_complete_run_that_removed_nothing_says_why() {
        let mut run = run(State::Completed, 200);
        let why = Outcome { reason: reasons::WALK_UNPROVED.to_owned(), message: "no page was empty".to_owned() };
        run.checkpoint.removal_skipped = Some(why.clone());
        let plan = decide(&job(serde_json::json!({})), Some(&run), at(200));
        assert_eq!(reasons_of(&plan), ["RunCompleted", "RemovalSkipped"]);
        assert_eq!((plan.events[1].warning, &plan.events[1].text), (true, &why.message));
        let skipped = conditions::find(&plan.status.conditions, REMOVAL_SKIPPED).unwrap();
        assert_eq!(
            (&*skipped.status, &*skipped.reason, &skipped.message),
            ("True", reasons::WALK_UNPROVED, &why.message)
        );
        let failed = Run { state: State::Failed, ..run };
        let plan = decide(&job(serde_json::json!({})), Some(&failed), at(200));
        assert_eq!(reason(&plan.status, REMOVAL_SKIPPED), None);
    }

    #[test]
    fn a_held_run_that_a_later_one_supersedes_says_which() {
        let mut job = held_job(&serde_json::json!({"cancelled": true}));
        job.annotations_mut().insert(SUPERSEDED_BY_ANNOTATION.to_owned(), "user-sync-2".to_owned());
        let plan = decide(&job, None, at(HELD_AT + 1));
        assert_eq!(reasons_of(&plan), ["RunCancelled"]);
        let failed = conditions::find(&plan.status.conditions, FAILED).unwrap();
        assert_eq!((&*failed.reason, &*failed.message), (reasons::SUPERSEDED, "user-sync-2 supersedes it"));
        job.status = Some(plan.status);
        assert!(is_replaced(&job) && !is_held(&job));
    }

    #[test]
    fn a_resumed_run_says_so_and_is_suspended_no_more() {
        let mut job = job(serde_json::json!({}));
        job.status = Some(decide(&job, Some(&run(State::Parked, 100)), at(120)).status);
        assert!(conditions::is_true(&job.status.as_ref().unwrap().conditions, SUSPENDED));
        for (state, event) in [
            (State::Waiting, "RunResumed"),
            (State::Active, "RunResumed"),
            (State::Delayed, "RunResumed"),
            (State::Completed, "RunCompleted"),
        ] {
            let plan = decide(&job, Some(&run(state, 100)), at(140));
            assert_eq!(reasons_of(&plan), [event]);
            assert!(!conditions::is_true(&plan.status.conditions, SUSPENDED));
        }
    }

    #[test]
    fn a_job_with_a_mistake_fails_without_being_enqueued() {
        let plan = decide(&job(serde_json::json!({"batchSize": 0})), None, at(1));
        assert!(!plan.enqueue);
        assert!(conditions::is_true(&plan.status.conditions, FAILED));
        assert_eq!(reasons_of(&plan), ["RunFailed"]);
    }

    #[test]
    fn each_state_of_the_run_has_its_phase_and_event() {
        for (state, phase, event) in [
            (State::Waiting, Phase::Queued, "RunQueued"),
            (State::Active, Phase::Running, "RunStarted"),
            (State::Delayed, Phase::Retrying, "RunRetrying"),
            (State::Parked, Phase::Suspended, "RunSuspended"),
            (State::Completed, Phase::Complete, "RunCompleted"),
            (State::Failed, Phase::Failed, "RunFailed"),
        ] {
            let run = Run { attempts: 1, ..run(state, 100) };
            let plan = decide(&job(serde_json::json!({})), Some(&run), at(200));
            assert_eq!((plan.status.phase, reasons_of(&plan)), (Some(phase), vec![event]));
            assert!(!plan.enqueue);
        }
    }

    #[test]
    fn a_recovery_has_an_event_in_every_state() {
        let mut job = job(serde_json::json!({}));
        job.status = Some(decide(&job, Some(&run(State::Active, 10)), at(120)).status);
        for state in [State::Waiting, State::Active] {
            let plan = decide(&job, Some(&Run { recoveries: 1, ..run(state, 10) }), at(140));
            assert_eq!(reasons_of(&plan), ["RunRecovered"], "{state:?}");
        }
    }

    #[test]
    fn a_slow_run_has_one_event_per_warning() {
        let mut job = job(serde_json::json!({}));
        let slow = |state| {
            let mut run = run(state, 100);
            run.checkpoint.warnings = vec![
                Warning::KeyNotIndexed("target.keyField email has no index".to_owned()),
                Warning::IndexMissing("the run reads all documents".to_owned()),
            ];
            run
        };
        let plan = decide(&job, Some(&slow(State::Active)), at(120));
        assert_eq!(reasons_of(&plan), ["RunStarted", "KeyNotIndexed", "IndexMissing"]);
        job.status = Some(plan.status);
        let plan = decide(&job, Some(&slow(State::Completed)), at(160));
        assert_eq!(reasons_of(&plan), ["RunCompleted"]);
        let message = &conditions::find(&plan.status.conditions, COMPLETE).unwrap().message;
        assert!(message.ends_with(". target.keyField email has no index. the run reads all documents"), "{message}");
    }

    #[test]
    fn a_run_that_is_rolled_back_shows_why_wherever_it_is() {
        let mut job = job(serde_json::json!({}));
        job.status = Some(decide(&job, Some(&run(State::Parked, 10)), at(120)).status);
        let outcome =
            Some(Outcome { reason: reasons::CANCELLED.to_owned(), message: "spec.cancelled was set".to_owned() });
        for state in [State::Waiting, State::Delayed, State::Active] {
            let plan = decide(&job, Some(&Run { outcome: outcome.clone(), ..run(state, 10) }), at(140));
            assert_eq!((plan.status.phase, reasons_of(&plan)), (Some(Phase::RollingBack), vec!["RunRollingBack"]));
            let reconciling = conditions::find(&plan.status.conditions, RECONCILING).unwrap();
            assert!(
                reconciling.message.ends_with("spec.cancelled was set") && !has_ended(&plan.status),
                "{reconciling:?}"
            );
            assert!(!conditions::is_true(&plan.status.conditions, SUSPENDED));
        }
    }

    #[test]
    fn a_cancelled_lost_run_is_enqueued_for_its_rollback() {
        let spec = |on_failure| {
            serde_json::json!({"cancelled": true, "transaction": "Batch", "onFailure": on_failure,
                "source": {"graphQL": {"endpoint": "https://api.example/", "query": "{a}", "resultPath": ""}}})
        };
        for (on_failure, enqueue) in [("Rollback", true), ("Keep", false)] {
            assert_eq!(decide(&job(spec(on_failure)), None, at(140)).enqueue, enqueue, "{on_failure}");
        }
    }

    #[test]
    fn a_finished_job_is_never_touched_again() {
        let mut job = job(serde_json::json!({}));
        job.status = Some(decide(&job, Some(&run(State::Completed, 200)), at(200)).status);
        for view in [None, Some(run(State::Active, 3)), Some(run(State::Failed, 3))] {
            let plan = decide(&job, view.as_ref(), at(300));
            assert_eq!((Some(&plan.status), plan.enqueue, plan.events.len()), (job.status.as_ref(), false, 0));
        }
    }

    #[test]
    fn a_complete_run_has_its_times_and_100_per_cent() {
        let status = decide(&job(serde_json::json!({})), Some(&run(State::Completed, 200)), at(200)).status;
        assert_eq!(status.progress, Some(100));
        assert_eq!(status.duration, Some(GoDuration::from(Duration::from_secs(60))));
        assert_eq!(status.completion_time, Some(Time(at(160))));
        assert!(!conditions::is_true(&status.conditions, RECONCILING));
    }

    #[test]
    fn progress_does_not_go_back_when_a_lost_run_starts_over() {
        let mut job = job(serde_json::json!({}));
        job.status = Some(decide(&job, Some(&run(State::Active, 150)), at(120)).status);
        let status = decide(&job, Some(&run(State::Active, 10)), at(140)).status;
        assert_eq!((status.progress, status.counts.unwrap().processed), (Some(75), 150));
        let done = decide(&job, Some(&run(State::Completed, 120)), at(200)).status;
        assert_eq!((done.progress, done.counts.unwrap().processed), (Some(100), 120));
    }

    #[test]
    fn only_a_finished_job_without_schedule_expires() {
        let mut job = job(serde_json::json!({"ttlAfterFinished": "1m"}));
        assert_eq!(expires_at(&job), None);
        job.status = Some(decide(&job, Some(&run(State::Completed, 200)), at(200)).status);
        assert_eq!(expires_at(&job), Some(at(220)));
    }
}
