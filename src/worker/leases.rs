//! The leases a worker holds, renewed by one task.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::health::HealthReporter;
use crate::{
    engine::Signals,
    queue::{Queue, Renewed},
};

pub(super) struct Leases {
    worker: String,
    queue: Queue,
    held: Mutex<HashMap<String, HeldLease>>,
}

struct HeldLease {
    epoch: u64,
    /// The lease holds at least until then, by this process's clock.
    until: Instant,
    signals: Signals,
}

/// A lease that is kept. Also when the work on the run panics, it is kept no longer.
pub(super) struct LeaseGuard<'a> {
    leases: &'a Leases,
    uid: String,
    epoch: u64,
}

impl Drop for LeaseGuard<'_> {
    fn drop(&mut self) {
        let mut leases = self.leases.lock();
        // The run may have been lost, and claimed again by this worker.
        if leases.get(&self.uid).is_some_and(|held| held.epoch == self.epoch) {
            leases.remove(&self.uid);
        }
    }
}

impl Leases {
    pub fn new(worker: String, queue: Queue) -> Self {
        Self { worker, queue, held: Mutex::default() }
    }

    /// Renews the lease of a claimed run until the returned value is dropped.
    pub fn add(&self, uid: &str, epoch: u64, stop: &CancellationToken) -> (Signals, LeaseGuard<'_>) {
        let signals = Signals { recalled: stop.child_token(), lost: CancellationToken::new() };
        let until = Instant::now() + self.queue.lease();
        let replaced = self.lock().insert(uid.to_owned(), HeldLease { epoch, until, signals: signals.clone() });
        // The process was paused, and the run recovered and claimed again here before the lease was known to be lost.
        if let Some(replaced) = replaced {
            replaced.signals.lost.cancel();
        }
        (signals, LeaseGuard { leases: self, uid: uid.to_owned(), epoch })
    }

    /// Renews every lease three times in its length, and shows that the worker lives.
    pub async fn renew_regularly(&self, reporter: &HealthReporter) {
        let every = self.queue.lease() / 3;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.renew(every, reporter).await;
        }
    }

    async fn renew(&self, limit: Duration, reporter: &HealthReporter) {
        let sent = Instant::now();
        let held: Vec<(String, u64)> = self.lock().iter().map(|(uid, held)| (uid.clone(), held.epoch)).collect();
        let renewed = timeout(limit, self.queue.renew(&self.worker, &held)).await;
        if let Ok(answer) = &renewed {
            reporter.renewal_answered(answer);
        }
        let mut leases = self.lock();
        if let Ok(Ok(Renewed { lost, recalled })) = renewed {
            for (uid, epoch) in held {
                match leases.get_mut(&uid) {
                    Some(lease) if lease.epoch != epoch => {}
                    Some(lease) if lost.contains(&uid) => lease.signals.lost.cancel(),
                    Some(lease) => {
                        lease.until = sent + self.queue.lease();
                        if recalled.contains(&uid) {
                            lease.signals.recalled.cancel();
                        }
                    }
                    None => {}
                }
            }
        }
        // Redis did not answer in time: nothing is known, but a lease that may have ended is not relied upon.
        let now = Instant::now();
        leases.values().filter(|lease| lease.until <= now).for_each(|lease| lease.signals.lost.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, HeldLease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_claimed_again_is_lost_to_its_attempt_before() {
        let queue = Queue::new("redis://127.0.0.1:1", "leases", Duration::from_secs(30)).unwrap();
        let (leases, stop) = (Leases::new("worker".to_owned(), queue), CancellationToken::new());
        let (older, guard) = leases.add("run", 1, &stop);
        let (newer, _guard) = leases.add("run", 2, &stop);
        assert_eq!((older.lost.is_cancelled(), newer.lost.is_cancelled()), (true, false));
        drop(guard);
        assert_eq!(leases.lock().get("run").map(|held| held.epoch), Some(2));
    }
}
