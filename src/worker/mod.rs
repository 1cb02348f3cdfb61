//! Claims runs, keeps their leases, and drives them.

mod completer;
mod coordinator;
mod health;
mod leases;
mod spans;

use std::{borrow::Cow, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    select,
    sync::Semaphore,
    task::{JoinError, yield_now},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{conditions::reasons, syncjob::Counts},
    domain::{
        needs::Level,
        retry::{self, Retry},
        run::{Checkpoint, Outcome, Payload, RunSpec, State},
    },
    engine::{AttemptResult, Opening, RunAttempt, Signals, Sources, Targets},
    queue::{self, Attempts, Candidates, Claim, Disposition, Entry, FencedWrite, Queue, Release},
    recovery::recover_expired,
    sync::{Deployment, Error, TargetCollection},
    telemetry::{REDIS, metrics, record_write, traces::Parent},
};
use completer::BatchCompleter;
use coordinator::{QueueCoordinator, RedisClock};
use leases::Leases;

use health::SlotGuard;
pub use health::{HealthReporter, WorkerHealth};

/// Longest wait for a notification before the worker tries to claim anyway.
const IDLE: Duration = Duration::from_secs(5);
/// Interval between checks of the owner of the queue.
const OWNER_POLL_INTERVAL: Duration = Duration::from_secs(30);
/// Time after which a run is claimed again that the worker's copy of the policy does not allow. A kubelet writes a
/// changed ConfigMap within about a minute.
const POLICY_PAUSE: Duration = Duration::from_secs(10);
/// Pause after an error of Redis.
const PAUSE: Duration = Duration::from_millis(500);

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Names this worker. New at every process start, so that a restarted process never takes itself for the
    /// one that held a lease before.
    pub id: String,
    /// Largest number of concurrent runs.
    pub slots: usize,
}

/// An id for a worker of this process.
#[must_use]
pub fn new_id() -> String {
    let host = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    format!("{}-{:08x}", host.as_deref().unwrap_or("worker"), rand::random::<u32>())
}

/// The renewal of leases ended by itself: without it, no lease holds.
#[derive(Debug, thiserror::Error)]
#[error("the renewal of leases ended: {0}")]
pub struct NotRenewed(JoinError);

/// Runs the worker until `stop`. Then the worker claims no more runs, waits for the batches in flight, releases its
/// runs and returns.
///
/// # Errors
/// When a required part of the worker has ended.
pub async fn run(
    settings: WorkerSettings,
    queue: Queue,
    targets: Targets,
    sources: Sources,
    reporter: HealthReporter,
    stop: CancellationToken,
) -> Result<(), NotRenewed> {
    let leases = Leases::new(settings.id.clone(), queue.clone());
    let (completer, completions) = BatchCompleter::new();
    let worker = Arc::new(Worker { leases, completer, id: settings.id, queue, targets, sources, reporter });
    let runs = TaskTracker::new();
    let background_stop = CancellationToken::new();
    let mut background = tokio::spawn(background_stop.clone().run_until_cancelled_owned({
        let worker = Arc::clone(&worker);
        async move {
            let (leases, recording) = (worker.leases.renew_regularly(&worker.reporter), completions.run(&worker.queue));
            tokio::join!(leases, recording, worker.recover(), worker.compare_installations())
        }
    }));
    tracing::info!(worker = worker.id, slots = settings.slots, "worker started");
    let working = async {
        worker.claim(settings.slots, &runs, &stop).await;
        runs.close();
        runs.wait().await;
    };
    select! {
        () = working => {}
        ended = &mut background => return ended.map(drop).map_err(NotRenewed),
    }
    background_stop.cancel();
    background.await.ok();
    if let Err(error) = worker.queue.retire(&worker.id).await {
        tracing::debug!(%error, "could not retire the worker");
    }
    tracing::info!(worker = worker.id, "worker stopped");
    Ok(())
}

struct Worker {
    id: String,
    queue: Queue,
    targets: Targets,
    sources: Sources,
    leases: Leases,
    completer: BatchCompleter,
    reporter: HealthReporter,
}

impl Worker {
    /// Claims runs, at most `slots` at a time, and starts them.
    async fn claim(self: &Arc<Self>, slots: usize, runs: &TaskTracker, stop: &CancellationToken) {
        let free = Arc::new(Semaphore::new(slots));
        let mut notifier = self.queue.work_notifier();
        let mut candidates = Candidates::default();
        let mut was_unasserted = false;
        loop {
            let Some(Ok(mut permits)) = stop.run_until_cancelled(Arc::clone(&free).acquire_owned()).await else {
                return;
            };
            // Runs that are over in a moment free their slots now, and one call claims for all of them.
            yield_now().await;
            if let Ok(more) = Arc::clone(&free).try_acquire_many_owned(free.available_permits() as u32) {
                permits.merge(more);
            }
            // Never dropped half-way: a claim that Redis carried out must not be lost.
            let claimed = self.queue.claim(&self.id, permits.num_permits(), &mut candidates).await;
            let is_unasserted = matches!(claimed, Err(queue::Error::Unasserted));
            match &claimed {
                // Redis answers.
                Err(queue::Error::Unasserted) => REDIS.record(&Ok::<_, queue::Error>(())),
                // Without runs to claim, nothing is written.
                Ok(Err(_)) => REDIS.record(&claimed),
                Ok(Ok(_)) => record_write(&claimed, false),
                Err(error) => record_write(&claimed, error.refusal().is_some()),
            }
            if is_unasserted && !was_unasserted {
                tracing::warn!(
                    "Redis was restarted or failed over: runs can be claimed when a controller has compared them with the SyncJobs"
                );
            }
            was_unasserted = is_unasserted;
            self.reporter.claim_answered(&claimed);
            match claimed {
                Ok(Ok(claims)) => {
                    for claim in claims {
                        let (worker, stop, slot) =
                            (Arc::clone(self), stop.clone(), self.reporter.busy(permits.split(1)));
                        runs.spawn(async move { worker.handle(claim, slot, &stop).await });
                    }
                }
                Ok(Err(next_due)) => {
                    let wait = notifier.wait(next_due.unwrap_or(IDLE).min(IDLE));
                    match stop.run_until_cancelled(wait).await {
                        None => return,
                        Some(Ok(uid)) => uid.into_iter().for_each(|uid| candidates.add(uid)),
                        Some(Err(_)) => sleep(PAUSE).await,
                    }
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Returns the runs of lost workers to the queue.
    async fn recover(&self) {
        let mut ticks = interval(self.queue.lease() / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            recover_expired(&self.queue).await;
        }
    }

    /// Logs when the queue belongs to another installation than this worker, which then does not claim its runs.
    async fn compare_installations(&self) {
        let (mine, mut known) = (self.queue.identified().await, None);
        let mut ticks = interval(OWNER_POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Ok(owner) = self.queue.owner().await else { continue };
            let difference = owner.as_ref().and_then(|owner| mine.difference(&owner.fingerprint));
            if let (Some(difference), Some(owner)) = (difference.filter(|_| difference != known), owner) {
                let queue = self.queue.name();
                tracing::error!(
                    queue, %owner, difference, "the queue belongs to another installation: this worker does not claim its runs"
                );
            }
            known = difference;
        }
    }

    /// Drives a claimed run to the end of this claim. Its slot is free when the work is done: the next run need not
    /// wait until the end of this one is recorded.
    async fn handle(&self, claim: Claim, slot: SlotGuard, stop: &CancellationToken) {
        let claimed = Instant::now();
        let (signals, _lease) = self.leases.add(&claim.uid, claim.entry.epoch, stop);
        let epoch = claim.entry.epoch;
        let payload = serde_json::from_str::<Payload>(&claim.entry.payload);
        let (namespace, name) =
            payload.as_ref().map_or(("?", "?"), |payload| (payload.namespace.as_str(), payload.name.as_str()));
        let attempt = claim.entry.attempts + 1;
        let root = Parent::for_run(&claim.uid, claim.entry.traceparent.as_deref());
        let trace_id = root.trace_id();
        metrics::claimed(claim.waited, trace_id.clone());
        tracing::info!(namespace, name, uid = claim.uid, attempt, epoch, worker = self.id, trace_id, "run claimed");
        if let Some(lacking) = lacking(&claim, payload.as_ref().ok(), self.queue.level()) {
            drop(slot);
            self.release_to_newer_worker(&claim, &lacking, &signals).await;
            return;
        }
        let span = spans::claimed(root, &claim, &self.id);

        let begun = select! {
            biased;
            () = signals.lost.cancelled() => Err(AttemptResult::LeaseLost),
            () = signals.recalled.cancelled() => Err(AttemptResult::Released),
            begun = self.begin(&claim, payload.as_ref().ok(), signals.clone(), span.parent()) => begun,
        };
        let (end, checkpoint, target) = self.work(&claim, begun).await;
        drop(slot);
        spans::end(span, &end, &checkpoint.counts);
        log_end(&claim, (namespace, name), trace_id.as_deref(), &end, &checkpoint);
        // By the clock of Redis, as its start is.
        let now = claim.at.checked_add(claimed.elapsed()).unwrap_or(claim.at);
        if let Some(run) = release_of(&claim, &end, &checkpoint, payload.as_ref().ok(), now) {
            let recorded = signals.lost.run_until_cancelled(self.completer.record(run)).await;
            if recorded == Some(FencedWrite::Applied) {
                self.drop_journal(target.filter(|_| end == AttemptResult::Completed)).await;
            } else {
                metrics::lease_lost();
                tracing::warn!(
                    namespace,
                    name,
                    uid = claim.uid,
                    epoch,
                    trace_id,
                    "lease lost before the end of the run was recorded"
                );
            }
        }
    }

    /// Drives an attempt, or rolls a failed run back. Returns the end, the progress, and the documents of the attempt.
    async fn work(
        &self,
        claim: &Claim,
        begun: Result<(RunAttempt, Deployment), AttemptResult>,
    ) -> (AttemptResult, Checkpoint, Option<(TargetCollection, Deployment)>) {
        match (begun, failed_with(claim)) {
            (Ok((mut attempt, deployment)), None) => {
                let end = self.targets.explain(&deployment, attempt.drive().await);
                let (target, checkpoint) = attempt.into_parts();
                // The deployment keeps the client of an own MongoDB open.
                (end, checkpoint, Some((target, deployment)))
            }
            (Ok((mut attempt, deployment)), Some(outcome)) => {
                let end = attempt.roll_back(outcome).await;
                // A rollback waits until the server can be reached.
                self.targets.forget_unreachable(&deployment, &end);
                (end, attempt.into_parts().1, None)
            }
            (Err(end), None) => (end, parse_checkpoint(claim), None),
            (Err(end), Some(outcome)) => (end.without_rollback(outcome), parse_checkpoint(claim), None),
        }
    }

    /// Releases a run with fields that this worker does not know, for workers of a newer release.
    async fn release_to_newer_worker(&self, claim: &Claim, lacking: &str, signals: &Signals) {
        let (uid, epoch, needs) = (claim.uid.clone(), claim.entry.epoch, self.queue.level().number + 1);
        tracing::warn!(uid, lacking, needs, "the run needs a worker of a newer release: released");
        let checkpoint = claim.entry.checkpoint.clone().unwrap_or_default();
        let run = Release { uid, epoch, disposition: Disposition::Unsupported(needs), checkpoint, attempts: None };
        // A run whose lease is lost is elsewhere.
        signals.lost.run_until_cancelled(self.completer.record(run)).await;
    }

    /// A journal that outlives its run is dropped by a later run.
    async fn drop_journal(&self, completed: Option<(TargetCollection, Deployment)>) {
        let Some((target, _deployment)) = completed else { return };
        if let Err(error) = target.drop_journal().await {
            tracing::debug!(%error, "could not drop the journal yet");
        }
    }

    /// Drops journals whose runs have ended or are unknown.
    async fn sweep_journals(&self, target: &TargetCollection) -> Result<(), Error> {
        for journal in target.journals().await? {
            let has_ended = match self.queue.get(&journal.uid).await {
                Ok(Some(Entry { state, .. })) => matches!(state, State::Completed | State::Failed),
                Ok(None) => journal.is_old,
                Err(_) => false,
            };
            if has_ended && (journal.is_old || !journal.is_kept) {
                target.clone().journalled(&journal.uid, 0).drop_journal().await?;
            }
        }
        Ok(())
    }

    async fn begin(
        &self,
        claim: &Claim,
        payload: Option<&Payload>,
        signals: Signals,
        trace: Parent,
    ) -> Result<(RunAttempt, Deployment), AttemptResult> {
        let started = claim.entry.started.unwrap_or(claim.at);
        // After a failover, the clock of another Redis may be behind. What is fetched now is not from before the run.
        let clock = RedisClock { at: claim.at.max(started), since: Instant::now() };
        let invalid =
            |message: String| AttemptResult::Failed(Outcome { reason: reasons::INVALID_TARGET.to_owned(), message });
        let payload = payload.ok_or_else(|| invalid("the payload of the run in Redis cannot be read".to_owned()))?;
        let spec = RunSpec::parse(&payload.spec).map_err(|error| invalid(error.to_string()))?;
        let refused = |error| AttemptResult::from(&error);
        // A rollback restores what an allowed run has changed.
        if failed_with(claim).is_none()
            && let Err(error) = self.targets.shared().check(&spec, &payload.namespace)
        {
            // The leader decides, and may have read a newer policy.
            tracing::warn!(uid = claim.uid, %error, "the policy of this worker does not allow the run: released");
            return Err(AttemptResult::Paused(POLICY_PAUSE));
        }
        let deployment = self.targets.open(&payload.namespace, &spec).await.map_err(refused)?;
        if spec.rollback && claim.entry.checkpoint.is_none() {
            let target = deployment.target(&spec, &payload.namespace, started, clock.at).map_err(refused)?;
            self.sweep_journals(&target).await.map_err(refused)?;
        }
        let coordinator = QueueCoordinator {
            queue: self.queue.clone(),
            uid: claim.uid.clone(),
            epoch: claim.entry.epoch,
            clock,
            signals,
        };
        let opening = Opening {
            uid: claim.uid.clone(),
            namespace: payload.namespace.clone(),
            epoch: claim.entry.epoch,
            type_: payload.spec.type_,
            spec,
            started,
            parked_for: claim.entry.parked_for,
            checkpoint: parse_checkpoint(claim),
            approved: claim.entry.approved,
            rolls_back: failed_with(claim).is_some(),
            trace,
        };
        let opened = RunAttempt::open(opening, &deployment, &self.sources, Arc::new(coordinator)).await;
        Ok((opened.map_err(refused)?, deployment))
    }
}

fn log_end(
    claim: &Claim,
    (namespace, name): (&str, &str),
    trace_id: Option<&str>,
    end: &AttemptResult,
    checkpoint: &Checkpoint,
) {
    let (uid, epoch, attempt, counts) = (&claim.uid, claim.entry.epoch, claim.entry.attempts + 1, checkpoint.counts);
    let is_rollback = claim.entry.outcome.is_some();
    match end {
        AttemptResult::Completed => {
            let Counts { processed, failed, .. } = counts;
            tracing::info!(namespace, name, uid, epoch, trace_id, processed, failed, "run completed");
        }
        AttemptResult::Failed(Outcome { reason, message }) if is_rollback => {
            let rolled_back = counts.rolled_back.unwrap_or(0);
            tracing::info!(
                namespace,
                name,
                uid,
                epoch,
                trace_id,
                reason,
                error = message,
                rolled_back,
                "rollback ended"
            );
        }
        AttemptResult::Retry(Outcome { reason, message }) if is_rollback => {
            tracing::warn!(namespace, name, uid, epoch, trace_id, reason, error = message, "rollback postponed");
        }
        AttemptResult::Failed(Outcome { reason, message }) | AttemptResult::Retry(Outcome { reason, message }) => {
            let again = matches!(end, AttemptResult::Retry(_));
            tracing::warn!(
                namespace,
                name,
                uid,
                attempt,
                epoch,
                trace_id,
                reason,
                error = message,
                again,
                "attempt failed"
            );
        }
        AttemptResult::Released => tracing::info!(namespace, name, uid, epoch, trace_id, "run released"),
        AttemptResult::Paused(pause) => {
            let seconds = pause.as_secs();
            tracing::info!(namespace, name, uid, epoch, trace_id, seconds, "run paused");
        }
        AttemptResult::Held(documents) => {
            tracing::info!(namespace, name, uid, epoch, trace_id, documents, "run held: it waits for an approval");
        }
        AttemptResult::LeaseLost => {
            metrics::lease_lost();
            tracing::warn!(
                namespace,
                name,
                uid,
                epoch,
                trace_id,
                "lease lost; this worker stops the run, and another claim continues it"
            );
        }
    }
}

/// Part of a run that this worker does not support and must not ignore. A controller of a newer release has set the
/// level that the run needs.
fn lacking(claim: &Claim, payload: Option<&Payload>, level: &Level) -> Option<String> {
    if claim.entry.level > level.number { None } else { level.lacking(&claim.entry.payload, payload) }
}

/// Release to record at the end of a claim.
fn release_of(
    claim: &Claim,
    end: &AttemptResult,
    checkpoint: &Checkpoint,
    payload: Option<&Payload>,
    now: Timestamp,
) -> Option<Release> {
    let rolling_back = failed_with(claim).is_some();
    let mut checkpoint = Cow::Borrowed(checkpoint);
    let (disposition, attempts) = match end {
        AttemptResult::LeaseLost => return None,
        AttemptResult::Failed(outcome) if rolling_back => (Disposition::Failed(json(outcome)), None),
        AttemptResult::Retry(_) if rolling_back => (Disposition::Retry(retry::ROLLBACK_PAUSE), None),
        AttemptResult::Released => (Disposition::Released, None),
        AttemptResult::Paused(pause) => (Disposition::Paused(*pause), None),
        AttemptResult::Held(documents) => (Disposition::Held(*documents), None),
        AttemptResult::Completed => (Disposition::Completed, None),
        AttemptResult::Failed(outcome) | AttemptResult::Retry(outcome) => {
            let count = claim.entry.attempts + 1;
            let mut history = serde_json::from_str(&claim.entry.history).unwrap_or_default();
            retry::record(&mut history, count, claim.at, now, outcome);
            let without_progress = checkpoint.to_mut().count_failure();
            let disposition = match after_failure(end, payload, (count, without_progress), outcome) {
                Retry::After(delay) => Disposition::Retry(delay),
                Retry::GiveUp(outcome) => Disposition::Failed(json(&outcome)),
            };
            (disposition, Some(Attempts { count, history: json(&history) }))
        }
    };
    Some(Release {
        uid: claim.uid.clone(),
        epoch: claim.entry.epoch,
        disposition,
        checkpoint: json(&*checkpoint),
        attempts,
    })
}

/// Outcome of a failed run that must be rolled back.
fn failed_with(claim: &Claim) -> Option<Outcome> {
    let outcome = claim.entry.outcome.as_deref()?;
    let unreadable = |_| Outcome { reason: reasons::STALLED.to_owned(), message: String::new() };
    Some(serde_json::from_str(outcome).unwrap_or_else(unreadable))
}

/// Decides between a retry and a failure of the run after a failed attempt.
fn after_failure(
    end: &AttemptResult,
    payload: Option<&Payload>,
    (attempts, without_progress): (u32, u32),
    outcome: &Outcome,
) -> Retry {
    let spec = payload.and_then(|payload| RunSpec::parse(&payload.spec).ok());
    match (end, spec) {
        (AttemptResult::Retry(_), Some(spec)) => {
            retry::after_failure(&spec, attempts, without_progress, outcome, rand::random())
        }
        _ => Retry::GiveUp(outcome.clone()),
    }
}

fn parse_checkpoint(claim: &Claim) -> Checkpoint {
    claim.entry.checkpoint.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
