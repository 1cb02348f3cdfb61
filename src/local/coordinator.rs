//! Coordinates the attempts of this process in memory.

use std::{
    collections::HashMap,
    future::ready,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use crate::{
    domain::{
        rate_limit::{RateLimitState, Reservation},
        run::{Checkpoint, LeaseState},
    },
    engine::{CoordinationError, Coordinator, Signals},
};

/// Clock of the MongoDB server: its time at the request, and the time that has passed since.
#[derive(Clone, Copy, Debug)]
pub(super) struct MongoClock {
    at: Timestamp,
    since: Instant,
}

impl MongoClock {
    /// A clock that shows `at` now.
    pub fn new(at: Timestamp) -> Self {
        Self { at, since: Instant::now() }
    }

    pub fn now(&self) -> Timestamp {
        self.at.checked_add(self.since.elapsed()).unwrap_or(self.at)
    }
}

/// Rate limits by name. All runs of a process share them.
#[derive(Clone, Debug, Default)]
pub(super) struct RateLimits(Arc<Mutex<HashMap<String, RateLimitState>>>);

impl RateLimits {
    fn update<T>(&self, name: &str, update: impl FnOnce(&mut RateLimitState) -> T) -> T {
        let mut limits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        update(limits.entry(name.to_owned()).or_default())
    }
}

/// Coordinator of an attempt at a local run.
pub(super) struct MemoryCoordinator {
    pub clock: MongoClock,
    pub limits: RateLimits,
    pub signals: Signals,
    /// The last checkpoint.
    pub checkpoint: watch::Sender<Checkpoint>,
}

impl Coordinator for MemoryCoordinator {
    fn save<'a>(&'a self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, LeaseState> {
        self.checkpoint.send_replace(checkpoint.clone());
        ready(LeaseState::Held).boxed()
    }

    fn signals(&self) -> &Signals {
        &self.signals
    }

    fn reserve_request<'a>(
        &'a self,
        limit: &'a str,
        every: Duration,
    ) -> BoxFuture<'a, Result<Reservation, CoordinationError>> {
        let now = self.clock.since.elapsed();
        ready(Ok(self.limits.update(limit, |limit| limit.reserve(now, every)))).boxed()
    }

    fn pause_requests<'a>(&'a self, limit: &'a str, pause: Duration) -> BoxFuture<'a, Result<(), CoordinationError>> {
        let now = self.clock.since.elapsed();
        self.limits.update(limit, |limit| limit.pause(now, pause));
        ready(Ok(())).boxed()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
