//! One attempt at a run: count, walk, stamp, checkpoint.

use std::{pin::pin, time::Duration};

use futures::StreamExt;
use tokio::{
    select,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::conditions::reasons,
    domain::run::{Checkpoint, MAX_FAILURES, Outcome, RunSpec},
    queue::{Fenced, Queue},
    sync::{Error, Outcome as Stamped, Target},
};

/// Shortest time between two checkpoints of a run.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);

pub(super) struct Attempt {
    pub uid: String,
    pub epoch: u64,
    pub spec: RunSpec,
    pub target: Target,
    pub checkpoint: Checkpoint,
    /// The run is over by then.
    pub deadline: Instant,
}

/// How an attempt, or a run, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The work is done.
    Completed,
    /// Another attempt would not help.
    Failed(Outcome),
    /// Another attempt may help.
    Retry(Outcome),
    /// The process stops; another one goes on.
    Released,
    /// Another worker may have the run.
    Lost,
}

impl Attempt {
    /// Works until the run's end, its deadline, `stop` or `lost`. After `stop` the batches in flight are
    /// finished; after `lost` nothing more is written.
    pub async fn drive(&mut self, queue: &Queue, stop: &CancellationToken, lost: &CancellationToken) -> End {
        let deadline = self.deadline;
        select! {
            biased;
            () = lost.cancelled() => End::Lost,
            () = sleep_until(deadline) => End::Failed(Outcome {
                reason: reasons::DEADLINE_EXCEEDED.to_owned(),
                message: "the run took longer than spec.activeDeadline".to_owned(),
            }),
            end = self.work(queue, stop) => end,
        }
    }

    async fn work(&mut self, queue: &Queue, stop: &CancellationToken) -> End {
        match self.target.count().await {
            Ok(total) => self.checkpoint.counts.total = total.max(self.checkpoint.counts.processed),
            Err(error) => return ended(&error),
        }
        let target = self.target.clone();
        let batches = self.target.batches(self.checkpoint.cursor.as_ref());
        // Results come in the order of the batches, so what was added up last is always a contiguous prefix.
        let stamped = batches
            .take_until(stop.cancelled())
            .map(|batch| {
                let target = &target;
                async move { target.write(batch?).await }
            })
            .buffered(self.spec.parallelism);
        let mut stamped = pin!(stamped);

        let mut saved = Instant::now() - CHECKPOINT_EVERY;
        while let Some(outcome) = stamped.next().await {
            match outcome {
                Ok(outcome) => self.add(outcome),
                Err(error) => return ended(&error),
            }
            if saved.elapsed() >= CHECKPOINT_EVERY {
                saved = Instant::now();
                if self.save(queue).await == Fenced::Lost {
                    return End::Lost;
                }
            }
        }
        if stop.is_cancelled() {
            return End::Released;
        }
        let counts = &mut self.checkpoint.counts;
        counts.total = counts.processed;
        if self.spec.too_many_failed(counts) {
            return End::Failed(Outcome {
                reason: reasons::TOO_MANY_FAILED.to_owned(),
                message: format!("MongoDB refused {} of {} documents", counts.failed, counts.processed),
            });
        }
        End::Completed
    }

    fn add(&mut self, outcome: Stamped) {
        let Checkpoint { cursor, counts, failures } = &mut self.checkpoint;
        counts.processed += outcome.processed();
        counts.updated += outcome.updated;
        counts.unchanged += outcome.unchanged;
        counts.failed += outcome.failures.len() as i64;
        counts.total = counts.total.max(counts.processed);
        let room = MAX_FAILURES.saturating_sub(failures.len());
        failures.extend(outcome.failures.into_iter().take(room));
        *cursor = outcome.cursor.or(cursor.take());
    }

    /// Records the checkpoint. While Redis is away the work goes on: the lease decides for how long.
    async fn save(&self, queue: &Queue) -> Fenced {
        let checkpoint = super::json(&self.checkpoint);
        match queue.checkpoint(&self.uid, self.epoch, &checkpoint).await {
            Ok(fenced) => fenced,
            Err(error) => {
                tracing::debug!(uid = self.uid, epoch = self.epoch, %error, "checkpoint not recorded");
                Fenced::Done
            }
        }
    }
}

fn ended(error: &Error) -> End {
    match error {
        Error::InvalidTarget(_) => End::Failed(error.outcome()),
        Error::Attempt { .. } => End::Retry(error.outcome()),
    }
}
