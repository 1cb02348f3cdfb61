//! One batch of a walk: requests the desired content of its documents, and writes them.

use std::{
    future::{Future, pending},
    panic::resume_unwind,
    sync::Arc,
};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    fetcher::{Fetched, SourceFetcher},
    request_slot::RequestSlot,
};
use crate::{
    api::syncjob::SyncType,
    sync::{Batch, BatchResult as Stamped, Error, TargetCollection},
    telemetry::{
        metrics,
        traces::{Parent, Span},
    },
};

/// Parameters that all batches of a walk share.
#[derive(Clone)]
pub(super) struct BatchWork {
    pub target: TargetCollection,
    pub source: Option<Arc<SourceFetcher>>,
    /// Slots for writes. Fewer than request slots: a source takes longer than MongoDB, and writes that delay each other
    /// delay the next requests too.
    pub writes: Arc<Semaphore>,
    pub recalled: CancellationToken,
    pub type_: SyncType,
    pub trace: Parent,
}

impl BatchWork {
    /// Fetches and writes one batch. Returns `None` when the run was recalled before this batch had a request slot.
    pub async fn handle(
        self,
        batch: Result<Batch, Error>,
        slot: impl Future<Output = RequestSlot>,
    ) -> Option<Result<Stamped, Error>> {
        let Self { target, source, writes, recalled, type_, trace } = self;
        let due: Vec<_> = batch.iter().flat_map(Batch::due).cloned().collect();
        let passed = match &source {
            Some(source) if !due.is_empty() => recalled.run_until_cancelled(source.wait_ahead()).await.flatten(),
            _ => None,
        };
        let slot = slot.await;
        let batch = match batch {
            _ if recalled.is_cancelled() => return None,
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        let Some(source) = source else { return Some(timed(type_, trace, target.write(batch)).await) };
        // The next batch sends its request while this one is read and written.
        let fetched = source.fetch(due, slot, passed).await;
        let _write = writes.acquire().await;
        Some(match fetched {
            Ok(Fetched { found, at, memory: _memory }) => timed(type_, trace, target.apply(batch, found, at)).await,
            Err(error) => Err(error),
        })
    }
}

/// Runs `work` in a separate task, which ends with this future. Work that takes milliseconds of a processor, such as
/// the parsing of a long answer, then delays no other batch.
pub(super) fn spawn_task<T: Send + 'static>(
    work: impl Future<Output = Option<T>> + Send + 'static,
) -> impl Future<Output = Option<T>> {
    let task = AbortOnDropHandle::new(tokio::spawn(work));
    async {
        match task.await {
            Ok(outcome) => outcome,
            Err(ended) if ended.is_panic() => resume_unwind(ended.into_panic()),
            // The process ends. That the batch was not handled must not look like the end of the walk.
            Err(_) => pending().await,
        }
    }
}

/// Writes a batch, and records its metrics and its span.
pub(super) async fn timed(
    type_: SyncType,
    trace: Parent,
    write: impl Future<Output = Result<Stamped, Error>>,
) -> Result<Stamped, Error> {
    let (began, span) = (Instant::now(), trace.begin("sync.batch").asking());
    let written = write.await;
    end_batch(span, &written);
    if let Ok(Stamped { updated, unchanged, failures, .. }) = &written {
        let outcomes =
            [("updated", *updated as u64), ("unchanged", *unchanged as u64), ("failed", failures.len() as u64)];
        metrics::batch(type_, outcomes, began.elapsed(), trace.trace_id());
    }
    written
}

fn end_batch(mut span: Span, written: &Result<Stamped, Error>) {
    span.set("db.system.name", "mongodb");
    match written {
        Ok(Stamped { updated, unchanged, failures, .. }) => {
            let counts = [("updated", *updated), ("unchanged", *unchanged), ("failed", failures.len() as i64)];
            for (key, count) in counts {
                span.set(key, count);
            }
        }
        Err(error) => span.fail(&error.outcome().reason),
    }
    span.end();
}
