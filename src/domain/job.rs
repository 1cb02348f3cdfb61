//! What is to be done about a SyncJob, given what the queue knows of its run.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::ResourceExt;

use super::{
    Note, conditions, elapsed, from_seconds,
    run::{Outcome, Run, RunSpec, State, progress},
};
use crate::api::{
    GoDuration, SyncJob, SyncJobSpec, SyncJobStatus,
    conditions::{COMPLETE, FAILED, RECONCILING, STALLED, reasons},
    syncjob::Phase,
    truncate,
};

/// What is to be done about a SyncJob.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Its next status.
    pub status: SyncJobStatus,
    /// Put its run into the queue.
    pub enqueue: bool,
    /// What to tell people.
    pub notes: Vec<Note>,
}

/// True when the run has ended. Nothing about it changes any more.
#[must_use]
pub fn is_finished(job: &SyncJob) -> bool {
    job.status.as_ref().is_some_and(|status| {
        conditions::is_true(&status.conditions, COMPLETE) || conditions::is_true(&status.conditions, FAILED)
    })
}

/// True when the run has ended well.
#[must_use]
pub fn is_complete(job: &SyncJob) -> bool {
    job.status.as_ref().is_some_and(|status| conditions::is_true(&status.conditions, COMPLETE))
}

/// Decides on a SyncJob from its object and its run in the queue (`None` when the queue has none).
#[must_use]
pub fn decide(job: &SyncJob, run: Option<&Run>, now: Timestamp) -> Plan {
    let old = job.status.clone().unwrap_or_default();
    if is_finished(job) {
        return Plan { status: old, enqueue: false, notes: Vec::new() };
    }
    let mut notes = not_yet(job);
    let mut status = old.clone();
    status.observed_generation = job.metadata.generation;
    let generation = job.metadata.generation;

    let enqueue = match (run, RunSpec::parse(&job.spec)) {
        (None, Err(error)) => {
            let outcome = Outcome { reason: reasons::INVALID_TARGET.to_owned(), message: error.to_string() };
            fail(&mut status, &outcome, generation, now);
            false
        }
        (None, Ok(_)) => {
            status.phase = status.phase.or(Some(Phase::Pending));
            true
        }
        (Some(run), _) => {
            mirror(&mut status, run, generation, now);
            false
        }
    };
    notes.extend(transition(&old, &status));
    Plan { status, enqueue, notes }
}

/// The status while the queue does not answer: what was known, and why it may be old.
#[must_use]
pub fn queue_unavailable(job: &SyncJob, now: Timestamp) -> SyncJobStatus {
    // The observed generation stays: what has to be told about this one was not told yet.
    let mut status = job.status.clone().unwrap_or_default();
    status.phase = status.phase.or(Some(Phase::Pending));
    conditions::set(
        &mut status.conditions,
        RECONCILING,
        true,
        reasons::QUEUE_UNAVAILABLE,
        "Redis does not answer; the run goes on, or is queued again, when it is back",
        job.metadata.generation,
        now,
    );
    status
}

/// Copies what the queue knows into the status.
fn mirror(status: &mut SyncJobStatus, run: &Run, generation: Option<i64>, now: Timestamp) {
    let complete = run.state == State::Completed;
    status.worker.clone_from(&run.worker);
    status.attempts = Some(run.attempts as i32);
    status.recoveries = Some(run.recoveries as i32);
    status.attempt_history.clone_from(&run.history);
    status.start_time = run.started.map(MicroTime);

    // A run that was lost with Redis starts over. What it shows must not go back meanwhile.
    let known = status.counts.unwrap_or_default();
    if run.finished.is_some() || run.checkpoint.counts.processed >= known.processed {
        status.counts = Some(run.checkpoint.counts);
        status.failures.clone_from(&run.checkpoint.failures);
        let reached = status.progress.unwrap_or(0);
        status.progress = Some(progress(&run.checkpoint.counts, complete).max(reached));
    }

    let mut reconciling = |reason, message: String| {
        conditions::set(&mut status.conditions, RECONCILING, true, reason, message, generation, now);
    };
    match run.state {
        State::Waiting => {
            status.phase = Some(Phase::Queued);
            reconciling(reasons::QUEUED, "Waiting for a worker".to_owned());
        }
        State::Active => {
            status.phase = Some(Phase::Running);
            reconciling(reasons::RUNNING, "A worker is at it".to_owned());
        }
        State::Parked => {
            status.phase = Some(Phase::Suspended);
            reconciling(reasons::SUSPENDED, "Parked".to_owned());
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
            status.phase = Some(Phase::Complete);
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

fn fail(status: &mut SyncJobStatus, outcome: &Outcome, generation: Option<i64>, at: Timestamp) {
    status.phase = Some(Phase::Failed);
    finish(status, at);
    for condition in [FAILED, STALLED] {
        conditions::set(&mut status.conditions, condition, true, &outcome.reason, &outcome.message, generation, at);
    }
}

fn finish(status: &mut SyncJobStatus, at: Timestamp) {
    conditions::clear(&mut status.conditions, RECONCILING);
    status.completion_time = Some(Time(from_seconds(at.as_second())));
    let millis = status.start_time.as_ref().map(|start| elapsed(start.0, at).as_millis() as u64);
    status.duration = millis.map(|millis| GoDuration::from(std::time::Duration::from_millis(millis)));
}

/// Fields whose behaviour this release does not have yet, told once per generation.
fn not_yet(job: &SyncJob) -> Vec<Note> {
    let seen = job.status.as_ref().and_then(|status| status.observed_generation);
    if seen.is_some() && seen == job.metadata.generation {
        return Vec::new();
    }
    let SyncJobSpec { suspended, cancelled, .. } = job.spec;
    [("suspended", suspended), ("cancelled", cancelled)]
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(field, _)| {
            Note::warning(
                reasons::NOT_IMPLEMENTED,
                format!("spec.{field} has no effect on SyncJobs in this release; the run goes on"),
            )
        })
        .collect()
}

fn transition(old: &SyncJobStatus, new: &SyncJobStatus) -> Option<Note> {
    let message = |type_| conditions::find(&new.conditions, type_).map(|c| c.message.clone()).unwrap_or_default();
    let recovered = new.recoveries > old.recoveries && new.recoveries > Some(0);
    if recovered && new.phase == Some(Phase::Running) {
        return Some(Note::warning("RunRecovered", "The run lost its worker and goes on from its last checkpoint"));
    }
    if old.phase == new.phase {
        return None;
    }
    Some(match new.phase? {
        Phase::Pending => return None,
        Phase::Queued => Note::normal("RunQueued", "Waiting for a worker"),
        Phase::Running => {
            Note::normal("RunStarted", format!("Started by worker {}", new.worker.as_deref().unwrap_or("?")))
        }
        Phase::Retrying => Note::warning("RunRetrying", message(RECONCILING)),
        Phase::Suspended => Note::normal("RunSuspended", "Parked"),
        Phase::Complete => Note::normal("RunCompleted", message(COMPLETE)),
        Phase::Failed => Note::warning("RunFailed", truncate(&message(FAILED))),
    })
}

/// When a finished SyncJob without a schedule is to be deleted.
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
    use crate::{api::syncjob::Counts, domain::run::Checkpoint};
    use std::time::Duration;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }
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
            retry_at: None,
            finished: matches!(state, State::Completed | State::Failed).then(|| at(160)),
            checkpoint: Checkpoint { counts, ..Checkpoint::default() },
            history: Vec::new(),
            outcome: None,
        }
    }
    fn reasons_of(plan: &Plan) -> Vec<&str> {
        plan.notes.iter().map(|note| note.reason).collect()
    }

    #[test]
    fn a_job_unknown_to_the_queue_is_enqueued() {
        let plan = decide(&job(serde_json::json!({})), None, at(1));
        assert!(plan.enqueue);
        assert_eq!(plan.status.phase, Some(Phase::Pending));
    }

    #[test]
    fn warnings_wait_until_redis_is_back() {
        let mut job = job(serde_json::json!({"suspended": true}));
        job.status = Some(queue_unavailable(&job, at(1)));
        assert!(reasons_of(&decide(&job, Some(&run(State::Active, 1)), at(2))).contains(&reasons::NOT_IMPLEMENTED));
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
            let plan = decide(&job(serde_json::json!({})), Some(&run(state, 100)), at(200));
            assert_eq!((plan.status.phase, reasons_of(&plan)), (Some(phase), vec![event]));
            assert!(!plan.enqueue);
        }
    }

    #[test]
    fn a_finished_job_is_never_touched_again() {
        let mut job = job(serde_json::json!({}));
        job.status = Some(decide(&job, Some(&run(State::Completed, 200)), at(200)).status);
        for view in [None, Some(run(State::Active, 3)), Some(run(State::Failed, 3))] {
            let plan = decide(&job, view.as_ref(), at(300));
            assert_eq!((Some(&plan.status), plan.enqueue, plan.notes.len()), (job.status.as_ref(), false, 0));
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
