//! Coordinates an attempt with other workers by Redis.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    domain::{
        rate_limit::{Reservation, SharedRateLimit},
        run::{Checkpoint, LeaseState},
    },
    engine::{CoordinationError, Coordinator, Signals},
    queue::{self, Queue},
};

/// Estimate of the clock of the Redis server: its time at the claim, plus the time that has passed since then.
#[derive(Clone, Copy)]
pub(super) struct RedisClock {
    pub at: Timestamp,
    pub since: Instant,
}

impl RedisClock {
    fn now(&self) -> Timestamp {
        self.at.checked_add(self.since.elapsed()).unwrap_or(self.at)
    }
}

/// Coordinator of an attempt at a claimed run.
pub(super) struct QueueCoordinator {
    pub queue: Queue,
    pub uid: String,
    pub epoch: u64,
    pub clock: RedisClock,
    pub signals: Signals,
}

impl From<queue::Error> for CoordinationError {
    fn from(error: queue::Error) -> Self {
        Self(error.to_string())
    }
}

impl Coordinator for QueueCoordinator {
    fn save<'a>(&'a self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, LeaseState> {
        async {
            let saved = self.queue.checkpoint(&self.uid, self.epoch, &super::json(checkpoint)).await;
            saved.unwrap_or_else(|error| {
                tracing::debug!(uid = self.uid, epoch = self.epoch, %error, "could not save the checkpoint");
                LeaseState::Held
            })
        }
        .boxed()
    }

    fn signals(&self) -> &Signals {
        &self.signals
    }

    fn reserve_request<'a>(
        &'a self,
        limits: &'a [SharedRateLimit],
    ) -> BoxFuture<'a, Result<Reservation, CoordinationError>> {
        async move { Ok(self.queue.reserve_request(limits).await?) }.boxed()
    }

    fn pause_requests<'a>(&'a self, limit: &'a str, pause: Duration) -> BoxFuture<'a, Result<(), CoordinationError>> {
        async move { Ok(self.queue.pause_requests(limit, pause).await?) }.boxed()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
