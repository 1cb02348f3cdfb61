//! Whether the workers of this process really get answers from the queue.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

/// Beats at each answer of the queue.
#[derive(Debug)]
pub struct Beat(watch::Sender<Instant>);

/// Shows whether the workers of this process are alive. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pulse {
    last: watch::Receiver<Instant>,
    limit: Duration,
}

impl Pulse {
    /// A pulse that takes the workers to be dead when nothing was heard for three looks for runs, or one lease:
    /// a worker with no free slot only renews its leases.
    #[must_use]
    pub fn new(lease: Duration) -> (Beat, Self) {
        let (beat, last) = watch::channel(Instant::now());
        (Beat(beat), Self { last, limit: lease.max(3 * super::IDLE) })
    }

    /// True when the queue answered lately.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.last.borrow().elapsed() < self.limit
    }
}

impl Beat {
    pub(super) fn note<T, E>(&self, answer: &Result<T, E>) {
        if answer.is_ok() {
            self.0.send_replace(Instant::now());
        }
    }
}
