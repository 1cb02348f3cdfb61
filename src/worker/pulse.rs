//! Whether the workers of this process really get answers from the queue.

use std::time::Duration;

use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use crate::queue;

/// What is known of the workers. Read as a whole, so that a slot that becomes free is never taken for one that was
/// free all the time.
#[derive(Clone, Copy, Debug)]
struct Signs {
    free: usize,
    /// The last look for runs that was answered, or since when there is a free slot again.
    looked: Instant,
    /// The last renewal of leases that was answered.
    renewed: Instant,
}

/// Beats at each answer of the queue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Beat(watch::Sender<Signs>);

/// Shows whether the workers of this process are alive. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pulse {
    signs: watch::Receiver<Signs>,
    lease: Duration,
    slots: usize,
}

/// A slot with a run in it, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy {
    beat: Beat,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Pulse {
    /// A pulse of workers that have some slots.
    #[must_use]
    pub fn new(lease: Duration, slots: usize) -> (Beat, Self) {
        let now = Instant::now();
        let (beat, signs) = watch::channel(Signs { free: slots, looked: now, renewed: now });
        (Beat(beat), Self { signs, lease, slots })
    }

    /// Most runs at a time.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Runs that are worked on.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.slots.saturating_sub(self.signs.borrow().free)
    }

    /// True when the queue answered lately: a look for runs within the time of three, unless there is no free slot to
    /// look for, and a renewal of leases within that time or the length of one.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.is_alive_at(Instant::now())
    }

    fn is_alive_at(&self, now: Instant) -> bool {
        const LOOKS: Duration = super::IDLE.saturating_mul(3);
        let Signs { free, looked, renewed } = *self.signs.borrow();
        now - renewed < self.lease.max(LOOKS) && (free == 0 || now - looked < LOOKS)
    }
}

impl Beat {
    /// Takes note of the answer to a look for runs. A worker that has to wait for a controller is alive.
    pub(super) fn looked<T>(&self, answer: &Result<T, queue::Error>) {
        if matches!(answer, Ok(_) | Err(queue::Error::Unasserted)) {
            self.0.send_modify(|signs| signs.looked = Instant::now());
        }
    }

    /// Takes note of the answer to a renewal.
    pub(super) fn renewed<T, E>(&self, answer: &Result<T, E>) {
        if answer.is_ok() {
            self.0.send_modify(|signs| signs.renewed = Instant::now());
        }
    }

    /// Takes note that a slot is not free any more.
    pub(super) fn busy(&self, permit: Option<OwnedSemaphorePermit>) -> Busy {
        self.0.send_modify(|signs| signs.free = signs.free.saturating_sub(1));
        Busy { beat: self.clone(), _permit: permit }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.beat.0.send_modify(|signs| {
            if signs.free == 0 {
                signs.looked = Instant::now();
            }
            signs.free += 1;
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

    /// As if nothing had happened for some time before now.
    fn wait(beat: &Beat, time: Duration) {
        beat.0.send_modify(|signs| {
            signs.looked -= time;
            signs.renewed -= time;
        });
    }

    #[test]
    fn while_there_is_a_free_slot_runs_must_be_looked_for() {
        let (beat, pulse) = Pulse::new(LONG, 2);
        let _run = beat.busy(None);
        assert_eq!(pulse.busy(), 1);
        wait(&beat, 2 * IDLE);
        assert!(pulse.is_alive());
        wait(&beat, IDLE);
        beat.looked(&ERROR);
        assert!(!pulse.is_alive(), "an error is no answer");
        beat.renewed(&OK);
        assert!(!pulse.is_alive(), "a renewal tells nothing of the looks for runs");
        beat.looked(&OK);
        assert!(pulse.is_alive());
    }

    #[test]
    fn without_a_free_slot_nothing_is_looked_for_until_one_is_free() {
        let (beat, pulse) = Pulse::new(LONG, 2);
        let runs = [beat.busy(None), beat.busy(None)];
        wait(&beat, 10 * IDLE);
        assert!(pulse.is_alive());
        drop(runs);
        assert!(pulse.is_alive(), "it was free only now");
        wait(&beat, 3 * IDLE);
        assert!(!pulse.is_alive());
    }

    #[test]
    fn leases_must_be_renewed() {
        let (beat, pulse) = Pulse::new(LONG, 1);
        wait(&beat, LONG);
        beat.looked(&OK);
        beat.renewed(&ERROR);
        assert!(!pulse.is_alive());
        beat.renewed(&OK);
        assert!(pulse.is_alive());
    }
}
