//! One attempt of a run: count, walk, write, checkpoint.

mod removal;
mod rollback;
mod walk;

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};

use super::{Coordinator, Sources, batch::timed, fetcher::SourceFetcher};
use crate::{
    api::{conditions::reasons, guard::GuardAction, syncjob::SyncType},
    domain::{
        elapsed,
        guard::Hold,
        run::{Checkpoint, LeaseState, MAX_CHANGES, MAX_FAILED_KEYS, MAX_PAUSES, Outcome, Paging, RunSpec, Warning},
    },
    sync::{BatchResult as Written, Deployment, Error, PageEnd, TargetCollection},
    telemetry::traces::Parent,
};

/// Shortest time between two checkpoints of a run.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);
/// Longest time for the batches in flight after a recall. Writing them again later does no harm.
const LAST_BATCHES: Duration = Duration::from_secs(5);
/// Number of keys after which a dry run remembers no more: they take about 50 MiB.
const MAX_SEEN: usize = 500_000;

/// Input of an attempt.
pub struct Opening {
    /// Id of the run. Names its journal.
    pub uid: String,
    /// Namespace of the Secrets that the source names.
    pub namespace: String,
    /// Epoch of the claim. A journal refuses writes of an earlier one.
    pub epoch: u64,
    /// Label of the metrics.
    pub type_: SyncType,
    /// The checked spec.
    pub spec: RunSpec,
    /// Start of the run's first attempt: the stamp, and the start of `activeDeadline`.
    pub started: Timestamp,
    /// Time since then in which the run was suspended.
    pub parked_for: Duration,
    /// Checkpoint at which the run continues.
    pub checkpoint: Checkpoint,
    /// Documents that a person has approved the run to mark, delete or change.
    pub approved: Option<u64>,
    /// True when the attempt only rolls the run back, for which it needs no source.
    pub rolls_back: bool,
    /// Parent of the spans of its batches.
    pub trace: Parent,
}

/// One attempt of a run.
pub struct RunAttempt {
    type_: SyncType,
    spec: RunSpec,
    target: TargetCollection,
    source: Option<Arc<SourceFetcher>>,
    checkpoint: Checkpoint,
    trace: Parent,
    /// Keys of the results that a dry run found on the source's pages, as text.
    seen: HashSet<String>,
    /// Documents that a person has approved the run to mark, delete or change.
    approved: Option<u64>,
    /// The most confirmed documents that the run may change.
    max_changed: Option<u64>,
    deadline: Instant,
    coordinator: Arc<dyn Coordinator>,
}

/// Result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// The work is done.
    Completed,
    /// The run has failed, and another attempt would not help.
    Failed(Outcome),
    /// The attempt has failed, and another one may succeed.
    Retry(Outcome),
    /// The source allows no requests for this time. The run continues at its checkpoint after that.
    Paused(Duration),
    /// The guard holds the run; the reason is the hold in the checkpoint. The run continues at its checkpoint when this
    /// number of documents is approved.
    Held(u64),
    /// The run was recalled. It continues at its checkpoint.
    Released,
    /// The lease is lost, and another worker may have the run.
    LeaseLost,
}

impl From<&Error> for AttemptResult {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidTarget(_) | Error::NotAllowed(_) | Error::InvalidSource(_) | Error::BudgetExceeded(_) => {
                Self::Failed(error.outcome())
            }
            Error::Attempt { .. } => Self::Retry(error.outcome()),
            Error::Paused(pause) => Self::Paused(*pause),
        }
    }
}

impl AttemptResult {
    /// Result of a rollback that could not begin. It keeps the failure of the run.
    #[must_use]
    pub fn without_rollback(self, failure: Outcome) -> Self {
        match self {
            Self::Failed(why) => {
                let message = format!("{}; not rolled back: {}", failure.message, why.message);
                Self::Failed(Outcome { message, ..failure })
            }
            result => result,
        }
    }
}

impl RunAttempt {
    /// Opens the target and the source of a run. Reads the Secrets that the source names.
    ///
    /// # Errors
    /// When the target or the source cannot be used as the spec describes them.
    pub async fn open(
        opening: Opening,
        deployment: &Deployment,
        sources: &Sources,
        coordinator: Arc<dyn Coordinator>,
    ) -> Result<Self, Error> {
        let Opening {
            uid,
            namespace,
            epoch,
            type_,
            spec,
            started,
            parked_for,
            checkpoint,
            approved,
            rolls_back,
            trace,
        } = opening;
        let mut target = deployment.target(&spec, &namespace, started, coordinator.now())?;
        if spec.rollback {
            target = target.journalled(&uid, epoch);
        }
        let source = match &spec.source {
            Some(source) if !rolls_back => {
                let source = sources.open(&namespace, source).await?;
                let coordinator = Arc::clone(&coordinator);
                Some(Arc::new(SourceFetcher::new(&namespace, source, coordinator, trace, checkpoint.pauses)))
            }
            _ => None,
        };
        let age = elapsed(started, coordinator.now()).saturating_sub(parked_for);
        let deadline = Instant::now() + spec.active_deadline.saturating_sub(age);
        let checkpoint = Checkpoint { is_paused: false, ..checkpoint };
        Ok(Self {
            type_,
            spec,
            target,
            source,
            checkpoint,
            trace,
            seen: HashSet::new(),
            approved,
            max_changed: None,
            deadline,
            coordinator,
        })
    }

    /// Ends the attempt, and returns its target and the progress of the run.
    #[must_use]
    pub fn into_parts(self) -> (TargetCollection, Checkpoint) {
        (self.target, self.checkpoint)
    }

    /// Works until the run's end, its deadline, or a signal. After a recall the batches in flight are finished; after
    /// the loss of the lease nothing more is written.
    pub async fn drive(&mut self) -> AttemptResult {
        let (deadline, signals) = (self.deadline, self.coordinator.signals().clone());
        select! {
            biased;
            () = signals.lost.cancelled() => AttemptResult::LeaseLost,
            () = sleep_until(deadline) => AttemptResult::Failed(Outcome::deadline_exceeded()),
            result = self.work() => match result {
                AttemptResult::Paused(_) if !self.checkpoint.pause() => AttemptResult::Retry(Outcome {
                    reason: reasons::RATE_LIMITED.to_owned(),
                    message: format!("the source limited requests {MAX_PAUSES} times without an answer in between"),
                }),
                result => result,
            },
        }
    }

    async fn work(&mut self) -> AttemptResult {
        let recalled = self.coordinator.signals().recalled.clone();
        if let Err(error) = self.target.open_journal().await {
            return AttemptResult::from(&error);
        }
        match recalled.run_until_cancelled(self.target.plan_walk()).await {
            Some(Ok(total)) => {
                let limit = self.spec.subset.limit.map_or(i64::MAX, |limit| limit as i64);
                self.checkpoint.counts.total = total.min(limit).max(self.checkpoint.counts.processed);
            }
            Some(Err(error)) => return AttemptResult::from(&error),
            None => return AttemptResult::Released,
        }
        match recalled.run_until_cancelled(self.limit_changes()).await {
            Some(Ok(())) => {}
            Some(Err(error)) => return AttemptResult::from(&error),
            None => return AttemptResult::Released,
        }
        match recalled.run_until_cancelled(self.target.warnings()).await {
            Some(warnings) => self.checkpoint.warnings = warnings,
            None => return AttemptResult::Released,
        }
        if let Some(result) = self.walk().await {
            return result;
        }
        if let Some(result) = self.fail_too_many() {
            return result;
        }
        if let Some(result) = self.remove().await {
            return result;
        }
        let counts = &mut self.checkpoint.counts;
        counts.total = counts.processed;
        self.fail_too_many().unwrap_or(AttemptResult::Completed)
    }

    /// Fails the run when too many of its documents have failed.
    fn fail_too_many(&self) -> Option<AttemptResult> {
        let counts = &self.checkpoint.counts;
        self.spec.too_many_failed(counts).then(|| {
            AttemptResult::Failed(Outcome {
                reason: reasons::TOO_MANY_FAILED.to_owned(),
                message: format!("{} of {} documents failed", counts.failed, counts.processed),
            })
        })
    }

    /// Adds up the results of batches, and saves checkpoints. The results arrive in order, so the checkpoint always
    /// covers a contiguous prefix. Returns `None` when all batches are done.
    async fn follow(&mut self, batches: impl Stream<Item = Option<Result<Written, Error>>>) -> Option<AttemptResult> {
        let recalled = self.coordinator.signals().recalled.clone();
        let mut batches = pin!(batches);
        let mut too_late = pin!(async {
            recalled.cancelled().await;
            sleep(LAST_BATCHES).await;
        });
        let mut saved = Instant::now() - CHECKPOINT_EVERY;
        loop {
            let outcome = select! {
                biased;
                outcome = batches.next() => outcome,
                () = &mut too_late => return Some(AttemptResult::Released),
            };
            match outcome {
                Some(Some(Ok(outcome))) => {
                    self.add(outcome);
                    if let Some(hold) = self.exceeds_changes() {
                        return Some(self.hold_run(hold));
                    }
                }
                Some(Some(Err(error))) => return Some(AttemptResult::from(&error)),
                Some(None) | None => break,
            }
            if saved.elapsed() >= CHECKPOINT_EVERY {
                saved = Instant::now();
                match self.save().await {
                    LeaseState::Held => {}
                    LeaseState::Recalled => recalled.cancel(),
                    LeaseState::Lost => return Some(AttemptResult::LeaseLost),
                }
            }
        }
        recalled.is_cancelled().then_some(AttemptResult::Released)
    }

    fn add(&mut self, outcome: Written) {
        let Checkpoint { cursor, counts, changes, paging, warnings, changed, absent, first_confirmed, .. } =
            &mut self.checkpoint;
        let processed = outcome.processed();
        if let Some(PageEnd { next, results, unreadable, new, total, doubt, failed, seen }) = outcome.page {
            if self.seen.len() <= MAX_SEEN {
                self.seen.extend(seen);
            }
            let is_full = self.seen.len() > MAX_SEEN;
            let too_many = is_full.then(|| format!("a dry run remembers the keys of at most {MAX_SEEN} results"));
            let mut before = paging.take().unwrap_or_default();
            before.failed_keys.extend(failed);
            let is_unsure = before.is_unsure || unreadable > 0 || before.failed_keys.len() > MAX_FAILED_KEYS;
            if is_unsure {
                before.failed_keys.clear();
            }
            *paging = Some(Paging {
                next,
                results: before.results + results as u64,
                distinct: before.distinct + new as u64,
                total: before.total.or(total),
                doubt: too_many.or(doubt.map(|doubt| doubt.to_string())),
                failed_keys: before.failed_keys,
                is_unsure,
            });
        }
        counts.processed += processed;
        counts.updated += outcome.updated;
        counts.unchanged += outcome.unchanged;
        counts.failed += outcome.failures.len() as i64;
        if self.target.removes() {
            for (count, more) in [
                (&mut counts.marked, outcome.marked),
                (&mut counts.deleted, outcome.deleted),
                (&mut counts.unmarked, outcome.unmarked),
                (&mut counts.unconfirmed, outcome.unconfirmed),
            ] {
                *count.get_or_insert(0) += more;
            }
        }
        if outcome.has_stamps_ahead && !warnings.contains(&Warning::stamps_ahead()) {
            warnings.push(Warning::stamps_ahead());
        }
        *changed += outcome.changed;
        *absent += outcome.absent;
        *first_confirmed += outcome.first_confirmed;
        counts.total = counts.total.max(counts.processed);
        changes.extend(outcome.changes.into_iter().take(MAX_CHANGES.saturating_sub(changes.len())));
        *cursor = outcome.cursor.or(cursor.take());
        self.checkpoint.add_failures(outcome.failures);
    }

    /// Ends the attempt at a limit of the guard.
    fn hold_run(&mut self, hold: Hold) -> AttemptResult {
        self.checkpoint.counts.held = Some(hold.number as i64);
        let (number, message) = (hold.number, hold.message.clone());
        self.checkpoint.hold = Some(hold);
        match self.spec.guard.action {
            GuardAction::Hold => AttemptResult::Held(number),
            GuardAction::Fail => AttemptResult::Failed(Outcome { reason: reasons::GUARD_EXCEEDED.to_owned(), message }),
        }
    }

    async fn save(&self) -> LeaseState {
        self.coordinator.save(&self.checkpoint).await
    }
}
