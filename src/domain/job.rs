//! What is to be done about a SyncJob, given what the queue knows of its run.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::ResourceExt;

use super::{
    Note, conditions, elapsed, from_seconds,
    run::{MAX_FAILURES, Outcome, Run, RunSpec, State, Wanted, progress},
};
use crate::api::{
    GoDuration, REPLACED_BY_ANNOTATION, SyncJob, SyncJobStatus, SyncSchedule,
    conditions::{COMPLETE, FAILED, HELD, RECONCILING, STALLED, SUSPENDED, reasons},
    syncjob::Phase,
    truncate,
};

/// How long an end is held back until the schedule's books have the run.
const BOOKS_PATIENCE: Duration = Duration::from_secs(30);

/// What is to be done about a SyncJob.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Its next status.
    pub status: SyncJobStatus,
    /// Put its run into the queue.
    pub enqueue: bool,
    /// Tell the queue what people want of the run now.
    pub control: Option<Wanted>,
    /// What to tell people.
    pub notes: Vec<Note>,
}

/// True when the run has ended. Nothing about it changes any more.
#[must_use]
pub fn is_finished(job: &SyncJob) -> bool {
    job.status.as_ref().is_some_and(has_ended)
}

/// True when this is the status of a run that has ended.
#[must_use]
pub fn has_ended(status: &SyncJobStatus) -> bool {
    conditions::is_true(&status.conditions, COMPLETE) || conditions::is_true(&status.conditions, FAILED)
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
        return Plan { status: old, enqueue: false, control: None, notes: Vec::new() };
    }
    let mut status = old.clone();
    status.observed_generation = job.metadata.generation;
    let generation = job.metadata.generation;

    let wanted = Wanted::from(job);
    let parsed = RunSpec::parse(&job.spec);
    // Redis may have lost a run that had begun: it learns from the queue that it is cancelled, and is rolled back.
    let has_to_roll_back = parsed.as_ref().is_ok_and(|spec| spec.rollback);
    let enqueue = match (run, parsed) {
        (None, _) if wanted.cancelled && !has_to_roll_back => {
            fail(&mut status, &cancelled(job), generation, now);
            false
        }
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
    let under_way = run.filter(|run| !matches!(run.state, State::Completed | State::Failed));
    let control = under_way.filter(|run| run.wanted != wanted).map(|_| wanted);
    let notes =
        transition(&old, &status).into_iter().chain(run.map(|run| slow(&old, run)).unwrap_or_default()).collect();
    Plan { status, enqueue, control, notes }
}

fn with_warnings(message: String, run: &Run) -> String {
    run.checkpoint.warnings.iter().fold(message, |text, warning| format!("{text}. {}", warning.message()))
}

/// Tells once what makes a run slow: the conditions say from then on that it was told.
fn slow(old: &SyncJobStatus, run: &Run) -> Vec<Note> {
    let is_at_work = matches!(run.state, State::Active | State::Completed) && run.outcome.is_none();
    let is_told = |message| old.conditions.iter().any(|condition| condition.message.contains(message));
    let warnings = run.checkpoint.warnings.iter().filter(|warning| is_at_work && !is_told(warning.message()));
    warnings.filter_map(|warning| Some(Note::warning(warning.event()?, warning.message()))).collect()
}

/// How a run ends that is cancelled: by its user, or by its schedule for a newer run.
#[must_use]
pub fn cancelled(job: &SyncJob) -> Outcome {
    match job.annotations().get(REPLACED_BY_ANNOTATION) {
        Some(newer) => {
            Outcome { reason: reasons::REPLACED.to_owned(), message: truncate(&format!("{newer} replaces it")) }
        }
        None => Outcome { reason: reasons::CANCELLED.to_owned(), message: "spec.cancelled was set".to_owned() },
    }
}

/// True when the run was cancelled by its schedule, since a newer run took its place.
#[must_use]
pub fn is_replaced(job: &SyncJob) -> bool {
    let conditions = job.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions::find(conditions, FAILED).is_some_and(|failed| failed.reason == reasons::REPLACED)
}

/// The status while nothing can be learnt from the queue: what was known, and why it may be old.
#[must_use]
pub fn unknown(job: &SyncJob, reason: &str, message: &str, now: Timestamp) -> SyncJobStatus {
    let mut status = job.status.clone().unwrap_or_default();
    status.phase = status.phase.or(Some(Phase::Pending));
    conditions::set(&mut status.conditions, RECONCILING, true, reason, message, job.metadata.generation, now);
    status
}

/// True while a run has ended that its schedule does not have in its books yet, and would never count: one that a call
/// made, and that was short. For 30 s at most, since a schedule's trouble must not hide how a run ended.
#[must_use]
pub fn waits_for_books(job: &SyncJob, next: &SyncJobStatus, schedule: &SyncSchedule, now: Timestamp) -> bool {
    if !has_ended(next) || schedule.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let books = schedule.status.as_ref().map(|status| status.active.as_slice()).unwrap_or_default();
    // One that was never started ends at the time of each look.
    let since = match &next.start_time {
        Some(_) => next.completion_time.as_ref().map(|time| time.0),
        None => job.metadata.creation_timestamp.as_ref().map(|time| time.0),
    };
    let is_late = since.is_none_or(|since| elapsed(since, now) > BOOKS_PATIENCE);
    !is_late && !books.iter().any(|run| run.name == job.name_any())
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
        status.changes.clone_from(&run.checkpoint.changes);
        let reached = status.progress.unwrap_or(0);
        status.progress = Some(progress(&run.checkpoint.counts, complete).max(reached));
    }

    if let Some(outcome) = run.outcome.as_ref().filter(|_| run.finished.is_none()) {
        status.phase = Some(Phase::RollingBack);
        conditions::clear(&mut status.conditions, SUSPENDED);
        let message = format!("Puts the documents back, since the run has failed: {}", outcome.message);
        let message = with_warnings(message, run);
        conditions::set(&mut status.conditions, RECONCILING, true, reasons::ROLLING_BACK, message, generation, now);
        return;
    }
    if run.state == State::Parked {
        let message = "Put aside with its progress kept; goes on when spec.suspended is false";
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
            reconciling(reasons::QUEUED, "Waiting for a worker".to_owned());
        }
        State::Active => {
            status.phase = Some(Phase::Running);
            reconciling(reasons::RUNNING, with_warnings("A worker is at it".to_owned(), run));
        }
        State::Parked => {}
        State::Delayed if run.checkpoint.is_paused => {
            status.phase = Some(Phase::Queued);
            let when = run.retry_at.map_or_else(String::new, |at| format!(" at {}", from_seconds(at.as_second())));
            reconciling(reasons::RATE_LIMITED, format!("The source limits requests; the run continues{when}"));
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
            let message = match &run.checkpoint.paging {
                Some(paging) if paging.is_unsure => format!(
                    "{message}. More than {MAX_FAILURES} of the source's results failed, or one has no usable key, so no document was taken to be missing there"
                ),
                _ => message,
            };
            let message = with_warnings(message, run);
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
    status.duration = millis.map(|millis| GoDuration::from(Duration::from_millis(millis)));
}

fn transition(old: &SyncJobStatus, new: &SyncJobStatus) -> Option<Note> {
    let message = |type_| conditions::find(&new.conditions, type_).map(|c| c.message.clone()).unwrap_or_default();
    let reason = conditions::find(&new.conditions, FAILED).map(|c| c.reason.as_str()).unwrap_or_default();
    let is_wanted = matches!(reason, reasons::CANCELLED | reasons::REPLACED);
    let recovered = new.recoveries > old.recoveries && new.recoveries > Some(0);
    if recovered && matches!(new.phase, Some(Phase::Queued | Phase::Running)) {
        return Some(Note::warning("RunRecovered", "The run lost its worker and goes on from its last checkpoint"));
    }
    if old.phase == new.phase {
        return None;
    }
    if new.phase == Some(Phase::RollingBack) {
        return Some(Note::normal("RunRollingBack", truncate(&message(RECONCILING))));
    }
    if old.phase == Some(Phase::Suspended) && conditions::is_true(&new.conditions, RECONCILING) {
        return Some(Note::normal("RunResumed", "Goes on from its last checkpoint"));
    }
    Some(match new.phase? {
        Phase::Pending | Phase::RollingBack => return None,
        Phase::Queued => Note::normal("RunQueued", message(RECONCILING)),
        Phase::Running => {
            Note::normal("RunStarted", format!("Started by worker {}", new.worker.as_deref().unwrap_or("?")))
        }
        Phase::Retrying => Note::warning("RunRetrying", message(RECONCILING)),
        Phase::Held => Note::warning("RunHeld", message(HELD)),
        Phase::Suspended => Note::normal("RunSuspended", message(SUSPENDED)),
        Phase::Complete => Note::normal("RunCompleted", message(COMPLETE)),
        Phase::Failed if is_wanted => Note::normal("RunCancelled", message(FAILED)),
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
    use crate::{
        api::syncjob::Counts,
        domain::run::{Checkpoint, Warning},
    };
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
            wanted: Wanted::default(),
        }
    }
    fn reasons_of(plan: &Plan) -> Vec<&str> {
        plan.notes.iter().map(|note| note.reason).collect()
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
    fn an_end_is_told_when_the_books_have_the_run_or_it_is_late() {
        let mut job = job(serde_json::json!({}));
        job.metadata.creation_timestamp = Some(Time(at(90)));
        let schedule = |books: &[&str]| {
            let spec = serde_json::from_value(serde_json::json!({"jobTemplate": {"spec": {}}})).unwrap();
            let mut schedule = SyncSchedule::new("user-sync", spec);
            let entry = |name: &&str| serde_json::json!({"name": name, "slot": "2026-11-25T00:00:00Z"});
            let active: Vec<_> = books.iter().map(entry).collect();
            schedule.status = serde_json::from_value(serde_json::json!({"active": active})).unwrap();
            schedule
        };
        let (without, with) = (schedule(&["another"]), schedule(&["another", "user-sync-1"]));
        let ended = decide(&job, Some(&run(State::Completed, 200)), at(161)).status;
        let never_started = decide(&self::job(serde_json::json!({"cancelled": true})), None, at(100)).status;
        let running = decide(&job, Some(&run(State::Active, 1)), at(161)).status;
        let mut deleted = without.clone();
        deleted.metadata.deletion_timestamp = Some(Time(at(161)));
        for (what, next, schedule, now, waits) in [
            ("not in the books", &ended, &without, 161, true),
            ("in the books", &ended, &with, 161, false),
            ("late", &ended, &without, 191, false),
            ("under way", &running, &without, 161, false),
            ("the schedule goes", &ended, &deleted, 161, false),
            ("never started", &never_started, &without, 100, true),
            ("never started, late", &never_started, &without, 121, false),
        ] {
            assert_eq!(waits_for_books(&job, next, schedule, at(now)), waits, "{what}");
        }
    }

    #[test]
    fn a_job_unknown_to_the_queue_is_enqueued() {
        let plan = decide(&job(serde_json::json!({})), None, at(1));
        assert!(plan.enqueue);
        assert_eq!(plan.status.phase, Some(Phase::Pending));
    }

    #[test]
    fn the_queue_is_told_what_is_wanted_of_a_run_until_it_knows() {
        let wanted = Wanted { suspended: true, priority: 7, ..Wanted::default() };
        let job = job(serde_json::json!({"suspended": true, "priority": 7}));
        for state in [State::Waiting, State::Active, State::Delayed, State::Parked] {
            let run = run(state, 1);
            assert_eq!(decide(&job, Some(&run), at(2)).control, Some(wanted), "{state:?}");
            assert_eq!(decide(&job, Some(&Run { wanted, ..run }), at(2)).control, None, "{state:?}");
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
            let plan = decide(&job(serde_json::json!({})), Some(&run(state, 100)), at(200));
            assert_eq!((plan.status.phase, reasons_of(&plan)), (Some(phase), vec![event]));
            assert!(!plan.enqueue);
        }
    }

    #[test]
    fn a_lost_worker_is_told_wherever_the_run_is_seen_next() {
        let mut job = job(serde_json::json!({}));
        job.status = Some(decide(&job, Some(&run(State::Active, 10)), at(120)).status);
        for state in [State::Waiting, State::Active] {
            let plan = decide(&job, Some(&Run { recoveries: 1, ..run(state, 10) }), at(140));
            assert_eq!(reasons_of(&plan), ["RunRecovered"], "{state:?}");
        }
    }

    #[test]
    fn what_makes_a_run_slow_is_told_once() {
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
            let told = conditions::find(&plan.status.conditions, RECONCILING).unwrap();
            assert!(told.message.ends_with("spec.cancelled was set") && !has_ended(&plan.status), "{told:?}");
            assert!(!conditions::is_true(&plan.status.conditions, SUSPENDED));
        }
    }

    #[test]
    fn a_cancelled_run_that_redis_lost_is_enqueued_when_it_has_to_be_rolled_back() {
        let spec = |on_failure| {
            serde_json::json!({"cancelled": true, "transaction": "Batch", "onFailure": on_failure,
                "source": {"graphQL": {"endpoint": "https://api.example/", "query": "q", "resultPath": ""}}})
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
