//! The slots for requests that a run sends to its source at the same time.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::unconstrained,
};

/// Permit of a batch to send a request. The batch returns it as soon as the answer has arrived: another batch sends its
/// request while this answer is read.
pub(super) struct RequestSlot {
    slots: Arc<Semaphore>,
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl RequestSlot {
    /// Queues for a slot immediately, also while the future is not polled: the tasks of batches start in any order,
    /// and progress waits for the first batch.
    pub fn queue(slots: &Arc<Semaphore>) -> impl Future<Output = Self> + Send + use<> {
        let slots = Arc::clone(slots);
        let mut permit = Box::pin(unconstrained(Arc::clone(&slots).acquire_owned()));
        let at_once = permit.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        async move {
            let permit = match at_once {
                Poll::Ready(permit) => permit,
                Poll::Pending => permit.await,
            };
            Self { slots, held: Mutex::new(permit.ok()) }
        }
    }

    /// Acquires the slot again after [`RequestSlot::release`].
    pub async fn acquire(&self) {
        if self.held().is_none() {
            // Fails only when the semaphore is closed, which never happens.
            let permit = Arc::clone(&self.slots).acquire_owned().await.ok();
            *self.held() = permit;
        }
    }

    /// Returns the slot.
    pub fn release(&self) {
        *self.held() = None;
    }

    fn held(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn slots_are_given_in_the_order_of_the_queue() {
        let slots = Arc::new(Semaphore::new(1));
        let held = RequestSlot::queue(&slots).now_or_never().unwrap();
        let [mut first, mut second] = [0, 1].map(|_| Box::pin(RequestSlot::queue(&slots)));
        held.release();
        assert!(second.as_mut().now_or_never().is_none(), "it queued later");
        let first = first.as_mut().now_or_never().unwrap();
        drop(first);
        assert!(second.now_or_never().is_some());
    }
}
