//! One attempt at a run: count, walk, stamp, checkpoint.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::{
    select,
    sync::Semaphore,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        conditions::reasons,
        syncjob::{Counts, SyncType},
    },
    domain::{
        run::{Checkpoint, MAX_CHANGES, MAX_FAILURES, Outcome, Paging, RunSpec},
        source::Pages,
    },
    queue::{Lease, Queue},
    sync::{Error, Found, Outcome as Stamped, PageEnd, Target},
    telemetry::traces::Parent,
};

use super::{
    batch::{BatchWork, aside, timed},
    fetch::{Fetch, Turn},
    leases::Signals,
};

/// Shortest time between two checkpoints of a run.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);
/// Batches, at most, that wait for their turn to ask, or to be written, or for one before them: a slow one must not keep the
/// others from being followed.
const READ_AHEAD: usize = 16;
/// How long batches in flight may take after a recall. Doing them again later does no harm.
const LAST_BATCHES: Duration = Duration::from_secs(5);
/// Documents that a source is asked about before it is believed that it has nothing for any of them.
const PROBED: usize = 1000;

pub(super) struct Attempt {
    pub uid: String,
    pub epoch: u64,
    pub type_: SyncType,
    pub spec: RunSpec,
    pub target: Target,
    /// Where to fetch what the documents should be.
    pub source: Option<Arc<Fetch>>,
    pub checkpoint: Checkpoint,
    /// Where the spans of its batches belong.
    pub trace: Parent,
    /// Keys of what a dry run found on the pages it walked.
    pub seen: HashSet<String>,
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
    /// The run was recalled; whoever claims it next goes on.
    Released,
    /// Another worker may have the run.
    Lost,
}

impl Attempt {
    /// Works until the run's end, its deadline, or a signal. After a recall the batches in flight are finished;
    /// after the loss of the lease nothing more is written.
    pub async fn drive(&mut self, queue: &Queue, signals: &Signals) -> End {
        let deadline = self.deadline;
        select! {
            biased;
            () = signals.lost.cancelled() => End::Lost,
            () = sleep_until(deadline) => End::Failed(Outcome {
                reason: reasons::DEADLINE_EXCEEDED.to_owned(),
                message: "the run took longer than spec.activeDeadline".to_owned(),
            }),
            end = self.work(queue, signals) => end,
        }
    }

    /// Puts the documents back as they were before the run, which has failed with this outcome. There is no deadline. After
    /// a recall the documents in flight are finished.
    pub async fn roll_back(&mut self, outcome: Outcome, queue: &Queue, signals: &Signals) -> End {
        self.checkpoint.warning = None;
        let rolled_back = signals.lost.run_until_cancelled(self.put_back(outcome, queue, &signals.recalled)).await;
        match rolled_back {
            None => End::Lost,
            Some(Ok(end)) => end,
            Some(Err(error)) => {
                let outcome = error.outcome();
                self.checkpoint.warning = Some(format!("It waits meanwhile: {}", outcome.message));
                End::Retry(outcome)
            }
        }
    }

    async fn put_back(&mut self, outcome: Outcome, queue: &Queue, recalled: &CancellationToken) -> Result<End, Error> {
        // Of both the larger one counts: the one in the checkpoint may be older, and the one in the journal goes with it.
        let before = self.target.open_rollback().await?.max(self.checkpoint.counts.rolled_back.unwrap_or(0));
        self.checkpoint.counts.rolled_back = Some(before);
        let (mut last, mut left) = (None, 0);
        while let Some(put_back) = self.target.put_back(last.as_ref()).await? {
            self.checkpoint.counts.rolled_back = Some(put_back.documents);
            left += put_back.failures.len();
            self.checkpoint.add_failures(put_back.failures);
            last = Some(put_back.last);
            // It cannot be recalled by anybody: what counts is the stop of this process.
            if self.save(queue).await == Lease::Lost {
                return Ok(End::Lost);
            }
            if recalled.is_cancelled() {
                return Ok(End::Released);
            }
        }
        let back =
            format!("{}; {} documents were put back", outcome.message, self.checkpoint.counts.rolled_back.unwrap_or(0));
        let message = if left == 0 {
            self.target.drop_journal().await?;
            back
        } else {
            let journal = self.target.keep_journal().await?;
            format!("{back}, {left} could not be: what they were stays in the collection {journal} for 30 days")
        };
        Ok(End::Failed(Outcome { message, ..outcome }))
    }

    async fn work(&mut self, queue: &Queue, Signals { recalled, .. }: &Signals) -> End {
        if let Err(error) = self.target.open_journal().await {
            return ended(&error);
        }
        match recalled.run_until_cancelled(self.target.count()).await {
            Some(Ok(total)) => self.checkpoint.counts.total = total.max(self.checkpoint.counts.processed),
            Some(Err(error)) => return ended(&error),
            None => return End::Released,
        }
        match recalled.run_until_cancelled(self.target.warning()).await {
            Some(warning) => self.checkpoint.warning = warning,
            None => return End::Released,
        }
        let source = self.source.clone();
        let end = match source.as_ref().and_then(|source| Some((source, source.pages()?))) {
            Some((source, pages)) => self.walk_pages(source, pages, queue, recalled).await,
            None => self.walk_documents(source.as_ref(), queue, recalled).await,
        };
        if let Some(end) = end {
            return end;
        }
        let counts = &mut self.checkpoint.counts;
        counts.total = counts.processed;
        if self.spec.too_many_failed(counts) {
            return End::Failed(Outcome {
                reason: reasons::TOO_MANY_FAILED.to_owned(),
                message: format!("{} of {} documents failed", counts.failed, counts.processed),
            });
        }
        End::Completed
    }

    /// Walks the documents, and asks the source for each batch.
    async fn walk_documents(
        &mut self,
        source: Option<&Arc<Fetch>>,
        queue: &Queue,
        recalled: &CancellationToken,
    ) -> Option<End> {
        if let Some(source) = source
            && self.target.removes_missing()
        {
            match recalled.run_until_cancelled(self.check_source(source)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => return Some(ended(&error)),
                None => return Some(End::Released),
            }
        }
        let parallelism = self.spec.parallelism;
        let turns = Arc::new(Semaphore::new(parallelism));
        let work = BatchWork {
            target: self.target.clone(),
            source: source.cloned(),
            writes: Arc::new(Semaphore::new(parallelism.div_ceil(2))),
            recalled: recalled.clone(),
            type_: self.type_,
            trace: self.trace,
        };
        let batches = self.target.batches(self.checkpoint.cursor.as_ref());
        let stamped = batches
            .take_until(recalled.cancelled())
            .map(|batch| aside(work.clone().handle(batch, Turn::in_line(&turns))))
            .buffered(parallelism + (2 * parallelism).min(READ_AHEAD));
        self.follow(stamped, queue, recalled).await
    }

    /// Makes sure that the source has something for one of the documents: at a wrong address, or where a right is missing,
    /// it has nothing for any, and all would be taken for gone.
    async fn check_source(&self, source: &Fetch) -> Result<(), Error> {
        let known = self.target.known();
        let mut batches = pin!(known.batches(None));
        let mut keys = Vec::new();
        while keys.len() < PROBED
            && let Some(batch) = batches.next().await
        {
            keys.extend(batch?.keys().cloned());
        }
        keys.truncate(PROBED);
        let (mut rest, mut size, mut missing) = (keys.as_slice(), 1, 0);
        let turns = Arc::new(Semaphore::new(1));
        while !rest.is_empty() {
            let (some, later) = rest.split_at(size.min(rest.len()));
            let (found, _) = source.fetch(some.to_vec(), Turn::in_line(&turns).await, None).await?;
            if found.iter().any(|found| matches!(found, Found::Result(_))) {
                return Ok(());
            }
            missing += found.iter().filter(|found| **found == Found::Missing).count();
            (rest, size) = (later, size * 2);
        }
        if missing == 0 {
            return Ok(());
        }
        Err(empty_source(format!(
            "the source has nothing for any of {} documents, so none is taken to be missing in it",
            keys.len()
        )))
    }

    /// Walks the source's pages, and then the documents that were on none of them.
    async fn walk_pages(
        &mut self,
        source: &Arc<Fetch>,
        pages: &Pages,
        queue: &Queue,
        recalled: &CancellationToken,
    ) -> Option<End> {
        if let Err(error) = self.target.check_upsert(&source.field("upsert")).await {
            return Some(ended(&error));
        }
        if self.spec.dry_run {
            // What it has seen is in no document: it starts over.
            let Checkpoint { counts: Counts { total, .. }, warning, .. } = self.checkpoint.clone();
            self.checkpoint =
                Checkpoint { counts: Counts { total, ..Counts::default() }, warning, ..Checkpoint::default() };
        }
        let (target, type_, trace, size) = (self.target.clone(), self.type_, self.trace, self.spec.batch_size);
        let next = self.checkpoint.paging.as_ref().map_or_else(|| Some(pages.first()), |paging| paging.next.clone());
        let asked = Arc::clone(source).walk(pages.clone(), next, size);
        let written = asked.take_until(recalled.cancelled()).map(|page| async {
            match page {
                _ if recalled.is_cancelled() => None,
                Ok((page, at)) => Some(timed(type_, trace, target.apply_page(page, at)).await),
                Err(error) => Some(Err(error)),
            }
        });
        let end = self.follow(written.buffered(self.spec.parallelism), queue, recalled).await;
        if end.is_some() || self.target.ignores_missing() {
            return end;
        }
        let paging = self.checkpoint.paging.clone().unwrap_or_default();
        if paging.results == 0 {
            let message = "the source lists nothing at all, so nothing is taken to be missing in it";
            return Some(ended(&empty_source(message.to_owned())));
        }
        if paging.failed > MAX_FAILURES as u64 {
            self.checkpoint.paging = Some(Paging { is_unsure: true, ..paging });
            return None;
        }
        // They are not missing, although they do not carry this run's stamp.
        let failed = self.checkpoint.failures.iter().take(paging.failed as usize);
        let mut unstamped: HashSet<String> = failed.map(|failure| failure.key.clone()).collect();
        unstamped.extend(self.seen.drain());
        let left = self.target.left();
        let batches = left.batches(self.checkpoint.cursor.as_ref()).take_until(recalled.cancelled());
        let written = batches.map(|batch| async {
            match batch {
                _ if recalled.is_cancelled() => None,
                Ok(batch) => {
                    let batch = batch.without(&unstamped);
                    let missing = batch.due().iter().map(|_| Found::Missing).collect();
                    Some(timed(type_, trace, left.apply(batch, missing, source.now())).await)
                }
                Err(error) => Some(Err(error)),
            }
        });
        self.follow(written.buffered(self.spec.parallelism), queue, recalled).await
    }

    /// Adds up what comes of batches, and records it. They come in order, so what was added up last is always a contiguous
    /// prefix. `None`: all of them are done.
    async fn follow(
        &mut self,
        batches: impl Stream<Item = Option<Result<Stamped, Error>>>,
        queue: &Queue,
        recalled: &CancellationToken,
    ) -> Option<End> {
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
                () = &mut too_late => return Some(End::Released),
            };
            match outcome {
                Some(Some(Ok(outcome))) => self.add(outcome),
                Some(Some(Err(error))) => return Some(ended(&error)),
                Some(None) | None => break,
            }
            if saved.elapsed() >= CHECKPOINT_EVERY {
                saved = Instant::now();
                match self.save(queue).await {
                    Lease::Held => {}
                    Lease::Recalled => recalled.cancel(),
                    Lease::Lost => return Some(End::Lost),
                }
            }
        }
        recalled.is_cancelled().then_some(End::Released)
    }

    fn add(&mut self, outcome: Stamped) {
        let Checkpoint { cursor, counts, changes, paging, .. } = &mut self.checkpoint;
        let processed = outcome.processed();
        if let Some(PageEnd { next, results, seen }) = outcome.page {
            self.seen.extend(seen);
            let before = paging.take().unwrap_or_default();
            let failed = before.failed + outcome.failures.len() as u64;
            *paging = Some(Paging { next, results: before.results + results as u64, failed, ..before });
        }
        counts.processed += processed;
        counts.updated += outcome.updated;
        counts.unchanged += outcome.unchanged;
        counts.failed += outcome.failures.len() as i64;
        counts.total = counts.total.max(counts.processed);
        changes.extend(outcome.changes.into_iter().take(MAX_CHANGES.saturating_sub(changes.len())));
        *cursor = outcome.cursor.or(cursor.take());
        self.checkpoint.add_failures(outcome.failures);
    }

    /// Records the checkpoint. While Redis is away the work goes on: the lease decides for how long.
    async fn save(&self, queue: &Queue) -> Lease {
        let checkpoint = super::json(&self.checkpoint);
        match queue.checkpoint(&self.uid, self.epoch, &checkpoint).await {
            Ok(lease) => lease,
            Err(error) => {
                tracing::debug!(uid = self.uid, epoch = self.epoch, %error, "checkpoint not recorded");
                Lease::Held
            }
        }
    }
}

fn empty_source(message: String) -> Error {
    Error::Attempt { reason: "EmptySource", message }
}

pub(super) fn ended(error: &Error) -> End {
    match error {
        Error::InvalidTarget(_) | Error::InvalidSource(_) => End::Failed(error.outcome()),
        Error::Attempt { .. } => End::Retry(error.outcome()),
    }
}
