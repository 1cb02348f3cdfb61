//! Coordinates the attempts of this process in memory.

use std::{
    collections::HashMap,
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use crate::{
    domain::{
        rate_limit::{self, RateLimitState, Reservation, SharedRateLimit},
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
    fn reserve(&self, limits: &[SharedRateLimit], now: Duration) -> Reservation {
        let mut states = self.lock();
        let mut found: Vec<_> =
            limits.iter().map(|limit| states.get(&limit.name).copied().unwrap_or_default()).collect();
        let mut reserved: Vec<_> = found.iter_mut().zip(limits).map(|(state, limit)| (state, limit.every)).collect();
        let reservation = rate_limit::reserve(&mut reserved, now);
        states.extend(limits.iter().map(|limit| limit.name.clone()).zip(found));
        reservation
    }

    fn pause(&self, name: &str, now: Duration, pause: Duration) {
        self.lock().entry(name.to_owned()).or_default().pause(now, pause);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, RateLimitState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        limits: &'a [SharedRateLimit],
    ) -> BoxFuture<'a, Result<Reservation, CoordinationError>> {
        ready(Ok(self.limits.reserve(limits, self.clock.since.elapsed()))).boxed()
    }

    fn pause_requests<'a>(&'a self, limit: &'a str, pause: Duration) -> BoxFuture<'a, Result<(), CoordinationError>> {
        let now = self.clock.since.elapsed();
        self.limits.pause(limit, now, pause);
        ready(Ok(())).boxed()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
