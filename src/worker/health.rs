//! Health of the workers of this process: whether the queue answers them.

use std::time::Duration;

use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use crate::queue;

/// Times of the last answers of the queue. They are read as a whole, so that a slot that has just become free does
/// not count as free all the time.
#[derive(Clone, Copy, Debug)]
struct LastAnswers {
    free: usize,
    /// Time of the last answered claim, or since which there is a free slot again.
    claim_answered: Instant,
    /// The last renewal of leases that was answered.
    renewal_answered: Instant,
}

/// Reporter of answers of the queue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HealthReporter(watch::Sender<LastAnswers>);

/// Health of the workers of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerHealth {
    answers: watch::Receiver<LastAnswers>,
    lease: Duration,
    slots: usize,
}

/// Guard of an occupied slot. The slot is free when the guard is dropped.
#[derive(Debug)]
pub(super) struct SlotGuard {
    reporter: HealthReporter,
    _permit: Option<OwnedSemaphorePermit>,
}

impl WorkerHealth {
    /// Health of workers with this number of slots.
    #[must_use]
    pub fn new(lease: Duration, slots: usize) -> (HealthReporter, Self) {
        let now = Instant::now();
        let (reporter, answers) =
            watch::channel(LastAnswers { free: slots, claim_answered: now, renewal_answered: now });
        (HealthReporter(reporter), Self { answers, lease, slots })
    }

    /// Largest number of concurrent runs.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Runs that are worked on.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.slots.saturating_sub(self.answers.borrow().free)
    }

    /// True when the queue answered recently. A claim must have succeeded within the time of three claims, unless no
    /// slot is free. A renewal of leases must have succeeded within the same time or the lease duration.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.is_alive_at(Instant::now())
    }

    fn is_alive_at(&self, now: Instant) -> bool {
        const CLAIM_TIMEOUT: Duration = super::IDLE.saturating_mul(3);
        let LastAnswers { free, claim_answered, renewal_answered } = *self.answers.borrow();
        now - renewal_answered < self.lease.max(CLAIM_TIMEOUT) && (free == 0 || now - claim_answered < CLAIM_TIMEOUT)
    }
}

impl HealthReporter {
    /// Records the answer to a claim. A worker that waits for a controller is alive.
    pub(super) fn claim_answered<T>(&self, answer: &Result<T, queue::Error>) {
        if matches!(answer, Ok(_) | Err(queue::Error::Unasserted)) {
            self.0.send_modify(|answers| answers.claim_answered = Instant::now());
        }
    }

    /// Records the answer to a renewal.
    pub(super) fn renewal_answered<T, E>(&self, answer: &Result<T, E>) {
        if answer.is_ok() {
            self.0.send_modify(|answers| answers.renewal_answered = Instant::now());
        }
    }

    /// Records that a slot is occupied.
    pub(super) fn busy(&self, permit: Option<OwnedSemaphorePermit>) -> SlotGuard {
        self.0.send_modify(|answers| answers.free = answers.free.saturating_sub(1));
        SlotGuard { reporter: self.clone(), _permit: permit }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.reporter.0.send_modify(|answers| {
            if answers.free == 0 {
                answers.claim_answered = Instant::now();
            }
            answers.free += 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::IDLE;

    const OK: Result<(), queue::Error> = Ok(());
    const ERROR: Result<(), queue::Error> = Err(queue::Error::Silent);
    const LONG: Duration = Duration::from_secs(1000);

    /// Simulates that nothing has happened for some time before now.
    fn wait(reporter: &HealthReporter, time: Duration) {
        reporter.0.send_modify(|answers| {
            answers.claim_answered -= time;
            answers.renewal_answered -= time;
        });
    }

    #[test]
    fn a_free_slot_needs_answered_claims() {
        let (reporter, health) = WorkerHealth::new(LONG, 2);
        let _run = reporter.busy(None);
        assert_eq!(health.busy(), 1);
        wait(&reporter, 2 * IDLE);
        assert!(health.is_alive());
        wait(&reporter, IDLE);
        reporter.claim_answered(&ERROR);
        assert!(!health.is_alive(), "an error is no answer");
        reporter.renewal_answered(&OK);
        assert!(!health.is_alive(), "a renewal is no sign of successful claims");
        reporter.claim_answered(&OK);
        assert!(health.is_alive());
    }

    #[test]
    fn full_slots_need_no_claims() {
        let (reporter, health) = WorkerHealth::new(LONG, 2);
        let runs = [reporter.busy(None), reporter.busy(None)];
        wait(&reporter, 10 * IDLE);
        assert!(health.is_alive());
        drop(runs);
        assert!(health.is_alive(), "it was free only now");
        wait(&reporter, 3 * IDLE);
        assert!(!health.is_alive());
    }

    #[test]
    fn leases_must_be_renewed() {
        let (reporter, health) = WorkerHealth::new(LONG, 1);
        wait(&reporter, LONG);
        reporter.claim_answered(&OK);
        reporter.renewal_answered(&ERROR);
        assert!(!health.is_alive());
        reporter.renewal_answered(&OK);
        assert!(health.is_alive());
    }
}
