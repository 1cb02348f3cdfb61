//! Budget for the memory that the answers of sources take in this process.
//!
//! The answers of a batch keep their memory until the batch is written. A batch that needs memory which other batches of
//! the namespace have waits for them. They may wait too, while they hold a part of what they need. So one batch at a
//! time may continue beyond the budget, up to a limit of its own.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{
    select,
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore},
};

/// Memory of all batches of a namespace together, in bytes.
const SHARED: usize = 32 << 20;
/// Memory of one batch, in bytes: the longest answer, and the largest number of its values.
const MAX_OF_BATCH: usize = 48 << 20;

/// Budgets of the namespaces with open sources.
#[derive(Clone, Default)]
pub struct SourceBudgets(Arc<Mutex<HashMap<String, Weak<SourceBudget>>>>);

impl fmt::Debug for SourceBudgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceBudgets")
    }
}

impl SourceBudgets {
    /// Budget that all runs of a namespace share.
    #[must_use]
    pub fn of_namespace(&self, namespace: &str) -> Arc<SourceBudget> {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.retain(|_, budget| budget.strong_count() > 0);
        if let Some(budget) = budgets.get(namespace).and_then(Weak::upgrade) {
            return budget;
        }
        let budget = Arc::new(SourceBudget::new(SHARED));
        budgets.insert(namespace.to_owned(), Arc::downgrade(&budget));
        budget
    }
}

/// Budget of one namespace.
#[derive(Debug)]
pub struct SourceBudget {
    /// Free bytes.
    shared: Arc<Semaphore>,
    /// Permit of the batch that may continue beyond the budget.
    beyond: Arc<Semaphore>,
}

impl SourceBudget {
    fn new(shared: usize) -> Self {
        Self { shared: Arc::new(Semaphore::new(shared)), beyond: Arc::new(Semaphore::new(1)) }
    }
}

/// The answers of one batch take more memory than a batch may have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {} MiB in memory for one batch", MAX_OF_BATCH >> 20)]
pub(super) struct TooMuchMemory;

/// Memory of the answers of one batch. Dropping it releases the memory.
#[derive(Debug)]
pub struct BatchMemory {
    budget: Arc<SourceBudget>,
    /// Held while a request of the batch waits for memory: the others then find what it received.
    waiting: AsyncMutex<()>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// Bytes of the budget, of which each has a permit.
    shared: Option<OwnedSemaphorePermit>,
    /// Permit to continue beyond the budget.
    beyond: Option<OwnedSemaphorePermit>,
}

impl BatchMemory {
    /// Memory of a batch without answers.
    #[must_use]
    pub fn new(budget: Arc<SourceBudget>) -> Self {
        Self { budget, waiting: AsyncMutex::default(), held: Mutex::default() }
    }

    /// Memory of the answer to one request of the batch.
    pub(super) fn of_request(&self) -> RequestMemory<'_> {
        RequestMemory { batch: self, bytes: 0 }
    }

    /// Waits for more memory.
    async fn grow(&self, bytes: usize) -> Result<(), TooMuchMemory> {
        let _waiting = self.waiting.lock().await;
        {
            let mut held = self.held();
            if held.bytes + bytes > MAX_OF_BATCH {
                return Err(TooMuchMemory);
            }
            if held.beyond.is_some() {
                held.bytes += bytes;
                return Ok(());
            }
        }
        let permits = bytes.min(SHARED) as u32;
        // Both fail only when a semaphore is closed, which never happens.
        let (shared, beyond) = select! {
            biased;
            permit = Arc::clone(&self.budget.shared).acquire_many_owned(permits) => (permit.ok(), None),
            permit = Arc::clone(&self.budget.beyond).acquire_owned() => (None, permit.ok()),
        };
        let mut held = self.held();
        held.bytes += bytes;
        held.beyond = beyond;
        match (&mut held.shared, shared) {
            (Some(before), Some(more)) => before.merge(more),
            (none @ None, more) => *none = more,
            (Some(_), None) => {}
        }
        Ok(())
    }

    /// Releases memory.
    fn shrink(&self, bytes: usize) {
        let mut held = self.held();
        held.bytes = held.bytes.saturating_sub(bytes);
        let excess = held.shared.as_ref().map_or(0, |shared| shared.num_permits().saturating_sub(held.bytes));
        drop(held.shared.as_mut().and_then(|shared| shared.split(excess)));
        if held.bytes == 0 {
            // Another batch may continue while this one waits before a retry.
            held.beyond = None;
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of the answer to one request. Dropping it releases the memory, unless the batch keeps the answer.
pub(super) struct RequestMemory<'a> {
    batch: &'a BatchMemory,
    bytes: usize,
}

impl RequestMemory<'_> {
    /// Waits for more memory.
    ///
    /// # Errors
    /// When the batch has too much.
    pub async fn grow(&mut self, bytes: usize) -> Result<(), TooMuchMemory> {
        self.batch.grow(bytes).await?;
        self.bytes += bytes;
        Ok(())
    }

    /// Keeps the memory until the batch is written.
    pub fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for RequestMemory<'_> {
    fn drop(&mut self) {
        self.batch.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn batches<const N: usize>(shared: usize) -> [BatchMemory; N] {
        let budget = Arc::new(SourceBudget::new(shared));
        std::array::from_fn(|_| BatchMemory::new(Arc::clone(&budget)))
    }

    #[test]
    fn a_batch_waits_for_memory_and_one_continues_beyond() {
        let [first, second, third] = batches(100);
        assert_eq!(first.grow(60).now_or_never(), Some(Ok(())));
        assert_eq!(second.grow(40).now_or_never(), Some(Ok(())));
        assert_eq!(first.grow(60).now_or_never(), Some(Ok(())), "the first one continues beyond the budget");
        let mut waiting = Box::pin(second.grow(30));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        assert_eq!(third.grow(1).now_or_never(), None, "no byte is free");
        drop(first);
        assert_eq!(waiting.now_or_never(), Some(Ok(())));
    }

    #[test]
    fn requests_of_a_batch_share_its_permit_to_continue() {
        let [first, other] = batches(100);
        assert_eq!(other.grow(100).now_or_never(), Some(Ok(())));
        let (mut one, mut two) = (first.of_request(), first.of_request());
        assert_eq!(one.grow(10).now_or_never(), Some(Ok(())));
        assert_eq!(two.grow(10).now_or_never(), Some(Ok(())));
        one.keep();
        drop(two);
        assert_eq!(first.held().bytes, 10);
    }

    #[test]
    fn a_failed_request_releases_its_memory() {
        let [first, second] = batches(100);
        let mut failed = first.of_request();
        assert_eq!(failed.grow(80).now_or_never(), Some(Ok(())));
        let mut kept = first.of_request();
        assert_eq!(kept.grow(20).now_or_never(), Some(Ok(())));
        kept.keep();
        drop(failed);
        assert_eq!(second.grow(80).now_or_never(), Some(Ok(())));
        assert!(second.held().beyond.is_none());
        drop(first);
        assert_eq!(second.grow(20).now_or_never(), Some(Ok(())));
        assert!(second.held().beyond.is_none());
    }

    #[test]
    fn a_batch_without_memory_lets_another_one_continue() {
        let [first, second, third] = batches(10);
        assert_eq!(third.grow(10).now_or_never(), Some(Ok(())));
        let mut failed = first.of_request();
        assert_eq!(failed.grow(5).now_or_never(), Some(Ok(())));
        assert_eq!(second.grow(5).now_or_never(), None);
        drop(failed);
        assert_eq!(second.grow(5).now_or_never(), Some(Ok(())));
    }

    #[test]
    fn a_batch_above_its_limit_fails() {
        let [first] = batches(SHARED);
        assert_eq!(first.grow(MAX_OF_BATCH).now_or_never(), Some(Ok(())));
        assert_eq!(first.grow(1).now_or_never(), Some(Err(TooMuchMemory)));
    }

    #[test]
    fn runs_of_a_namespace_share_a_budget() {
        let budgets = SourceBudgets::default();
        let one = budgets.of_namespace("a");
        assert!(Arc::ptr_eq(&one, &budgets.of_namespace("a")));
        assert!(!Arc::ptr_eq(&one, &budgets.of_namespace("b")));
        drop(one);
        assert_eq!(budgets.of_namespace("c").shared.available_permits(), SHARED);
        assert_eq!(budgets.0.lock().unwrap().len(), 1, "unused budgets are removed");
    }
}
