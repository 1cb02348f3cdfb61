//! The walks of an attempt: through the documents, or through the source's pages and then the documents that are on
//! none.

use std::{collections::HashSet, pin::pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;

use super::{AttemptResult, RunAttempt};
use crate::{
    api::{conditions::reasons, syncjob::Counts},
    domain::{
        run::{Checkpoint, MAX_FAILED_KEYS, Outcome, Paging},
        source::Pages,
    },
    engine::{
        batch::{BatchWork, spawn_task, timed},
        fetcher::{CURSOR_EXPIRED, Fetched, SourceFetcher},
        request_slot::RequestSlot,
    },
    sync::{Error, Found, Walk},
};

/// Batches, at most, that are read ahead while they wait for a request slot, for a write, or for an earlier batch: a
/// slow batch must not delay the others.
const READ_AHEAD: usize = 16;
/// Number of documents that are requested before a source counts as empty.
const PROBED: usize = 1000;

impl RunAttempt {
    /// Returns how many documents a restricted run may still handle.
    fn remaining(&self) -> Option<u64> {
        self.spec.subset.limit.map(|limit| limit.saturating_sub(self.checkpoint.counts.processed as u64))
    }

    /// Walks the documents of the run. Returns `None` when the walk is complete.
    pub(super) async fn walk(&mut self) -> Option<AttemptResult> {
        let source = self.source.clone();
        match source.as_ref().and_then(|source| Some((source, source.pages()?))) {
            Some((source, pages)) => self.walk_pages(source, pages).await,
            None => self.walk_documents(source.as_ref()).await,
        }
    }

    /// Walks the documents, and asks the source for each batch.
    async fn walk_documents(&mut self, source: Option<&Arc<SourceFetcher>>) -> Option<AttemptResult> {
        let recalled = self.coordinator.signals().recalled.clone();
        if let Some(source) = source
            && self.target.removes()
        {
            match recalled.run_until_cancelled(self.check_source(source)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => return Some(AttemptResult::from(&error)),
                None => return Some(AttemptResult::Released),
            }
        }
        let parallelism = self.spec.parallelism;
        let slots = Arc::new(Semaphore::new(parallelism));
        let work = BatchWork {
            target: self.target.clone(),
            source: source.cloned(),
            writes: Arc::new(Semaphore::new(parallelism.div_ceil(2))),
            recalled: recalled.clone(),
            type_: self.type_,
            trace: self.trace,
        };
        let batches = self.target.batches(self.checkpoint.cursor.as_ref());
        let batches = at_most(batches, self.remaining(), |batch, count| {
            batch.truncate(count);
            batch.len()
        });
        let written = batches
            .take_until(recalled.cancelled())
            .map(|batch| spawn_task(work.clone().handle(batch, RequestSlot::queue(&slots))))
            .buffered(parallelism + (2 * parallelism).min(READ_AHEAD));
        self.follow(written).await
    }

    /// Checks that the source has at least one of the documents: with a wrong address or a missing right, all documents
    /// would seem to be missing.
    async fn check_source(&self, source: &SourceFetcher) -> Result<(), Error> {
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
        let slots = Arc::new(Semaphore::new(1));
        while !rest.is_empty() {
            let (some, later) = rest.split_at(size.min(rest.len()));
            let Fetched { found, .. } = source.fetch(some.to_vec(), RequestSlot::queue(&slots).await, None).await?;
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
            "the source has no result for any of {} documents, so no document counts as missing",
            keys.len()
        )))
    }

    /// Resets the progress of the run, but not its number of failures.
    fn start_over(&mut self) {
        let Checkpoint { counts: Counts { total, .. }, pauses, furthest, without_progress, warnings, .. } =
            std::mem::take(&mut self.checkpoint);
        let counts = Counts { total, ..Counts::default() };
        self.checkpoint = Checkpoint { counts, pauses, furthest, without_progress, warnings, ..Checkpoint::default() };
    }

    /// Walks the source's pages, and then the documents that were on none of them.
    async fn walk_pages(&mut self, source: &Arc<SourceFetcher>, pages: &Pages) -> Option<AttemptResult> {
        let recalled = self.coordinator.signals().recalled.clone();
        if let Err(error) = self.target.check_upsert(&source.field("upsert")).await {
            return Some(AttemptResult::from(&error));
        }
        if self.spec.dry_run {
            // A dry run stamps nothing, so it cannot continue.
            self.start_over();
        }
        let (target, type_, trace, size) = (self.target.clone(), self.type_, self.trace, self.spec.batch_size);
        let paging = self.checkpoint.paging.clone();
        let walked = paging.as_ref().map_or_else(Walk::default, |paging| Walk::new(paging.distinct, paging.total));
        let next = paging.map_or_else(|| Some(pages.first()), |paging| paging.next);
        let keys = self.spec.subset.keys.clone();
        let fetched = Arc::clone(source).walk(pages.clone(), walked, next, size);
        let fetched = at_most(fetched, self.remaining(), move |page, count| {
            page.found.restrict(&keys, count);
            page.found.results.len()
        });
        let written = fetched.take_until(recalled.cancelled()).map(|page| async {
            match page {
                _ if recalled.is_cancelled() => None,
                Ok(Fetched { found, at, memory: _memory }) => {
                    Some(timed(type_, trace, target.apply_page(found, at)).await)
                }
                Err(error) => Some(Err(error)),
            }
        });
        let result = self.follow(written.buffered(self.spec.parallelism)).await;
        if matches!(&result, Some(AttemptResult::Retry(outcome)) if outcome.reason == CURSOR_EXPIRED) {
            self.start_over();
        }
        if result.is_some() {
            return result;
        }
        let paging = self.checkpoint.paging.clone().unwrap_or_default();
        if paging.results == 0 && (self.target.removes() || self.fails_missing()) {
            let message = "the source lists no results, so no document counts as missing";
            return Some(AttemptResult::from(&empty_source(message.to_owned())));
        }
        self.checkpoint.removal_skipped = why_skipped(&paging);
        if self.fails_missing() && self.checkpoint.removal_skipped.is_none() {
            self.fail_missing(source, &paging).await
        } else {
            None
        }
    }

    /// Counts the documents as failed that were on no page.
    async fn fail_missing(&mut self, source: &Arc<SourceFetcher>, paging: &Paging) -> Option<AttemptResult> {
        let (recalled, type_, trace) = (self.coordinator.signals().recalled.clone(), self.type_, self.trace);
        let listed = self.listed(paging);
        let left = self.target.left();
        let batches = left.batches(self.checkpoint.cursor.as_ref()).take_until(recalled.cancelled());
        let written = batches.map(|batch| async {
            match batch {
                _ if recalled.is_cancelled() => None,
                Ok(batch) => {
                    let batch = batch.without(&listed);
                    let missing = batch.due().iter().map(|_| Found::Missing).collect();
                    Some(timed(type_, trace, left.apply(batch, missing, source.now())).await)
                }
                Err(error) => Some(Err(error)),
            }
        });
        self.follow(written.buffered(self.spec.parallelism)).await
    }

    fn fails_missing(&self) -> bool {
        self.target.fails_missing() && self.spec.subset.is_everything()
    }

    /// Keys, as text, of results whose documents do not show that the source lists them: they failed, or nothing is
    /// written.
    pub(super) fn listed(&mut self, paging: &Paging) -> HashSet<String> {
        self.seen.drain().chain(paging.failed_keys.iter().cloned()).collect()
    }
}

/// Reason for which a walk does not prove which documents the source lacks.
fn why_skipped(paging: &Paging) -> Option<Outcome> {
    let outcome = |reason: &str, message: String| Some(Outcome { reason: reason.to_owned(), message });
    if paging.is_unsure {
        return outcome(
            reasons::TOO_MANY_UNREADABLE,
            format!("a result has no usable key, or more than {MAX_FAILED_KEYS} results failed"),
        );
    }
    outcome(reasons::WALK_UNPROVED, paging.doubt.clone()?)
}

/// Ends a walk after `left` documents. `restrict` keeps at most that many documents of an item, and returns their
/// number.
fn at_most<T: Send>(
    items: impl Stream<Item = Result<T, Error>> + Send,
    left: Option<u64>,
    restrict: impl Fn(&mut T, usize) -> usize + Send,
) -> impl Stream<Item = Result<T, Error>> + Send {
    stream::unfold((Box::pin(items), left, restrict), |(mut items, mut left, restrict)| async move {
        // Checked before the next item is read, which for a page is a request.
        if left == Some(0) {
            return None;
        }
        let item = items.next().await?.map(|mut item| {
            let count = restrict(&mut item, left.map_or(usize::MAX, |left| left as usize));
            left = left.map(|left| left.saturating_sub(count as u64));
            item
        });
        Some((item, (items, left, restrict)))
    })
}

fn empty_source(message: String) -> Error {
    Error::Attempt { reason: "EmptySource", message }
}
