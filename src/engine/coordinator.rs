//! Interface between an attempt and its coordination with other processes.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::domain::{
    rate_limit::{Reservation, SharedRateLimit},
    run::{Checkpoint, LeaseState},
};

/// A call to a coordinator that failed. The attempt repeats it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CoordinationError(pub String);

/// Signals that end an attempt before its work is done.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Finish the batches in flight and release the run: it is suspended, cancelled or interrupted, or the process stops.
    pub recalled: CancellationToken,
    /// Stop at once: another worker may have the run.
    pub lost: CancellationToken,
}

/// Coordination of one attempt with other processes. All calls can be cancelled at any point.
pub trait Coordinator: Send + Sync {
    /// Saves the progress of the run, and returns whether the attempt may continue. Where the checkpoint cannot be
    /// saved the answer is [`LeaseState::Held`]: the lease decides for how long the attempt continues without it.
    fn save<'a>(&'a self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, LeaseState>;

    /// Returns the signals that end this attempt.
    fn signals(&self) -> &Signals;

    /// Reserves the next request under all of these rate limits, or under none of them.
    ///
    /// # Errors
    /// When the state of the rate limits cannot be reached.
    fn reserve_request<'a>(
        &'a self,
        limits: &'a [SharedRateLimit],
    ) -> BoxFuture<'a, Result<Reservation, CoordinationError>>;

    /// Rejects reservations under the rate limit `limit` for `pause`.
    ///
    /// # Errors
    /// When the state of the rate limit cannot be reached.
    fn pause_requests<'a>(&'a self, limit: &'a str, pause: Duration) -> BoxFuture<'a, Result<(), CoordinationError>>;

    /// Returns the current time of the clock that all attempts at runs of this installation share.
    fn now(&self) -> Timestamp;
}
