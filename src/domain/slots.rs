//! Slot arithmetic for fixed intervals. A slot is a multiple of the interval since the Unix epoch; its start
//! is the slot plus the schedule's offset (jitter). All values are whole milliseconds or seconds since the epoch.

use std::time::Duration;

use jiff::Timestamp;

use super::from_seconds;

/// Slots of one schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Whole seconds, at least 1.
    interval: i64,
    /// Milliseconds added to each slot to get its start.
    offset: i64,
}

/// The slots that became due in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The newest of them.
    pub newest: Timestamp,
    /// How many there are, the newest included.
    pub count: i64,
}

impl Slots {
    /// Slots every `interval` (rounded down to whole seconds, at least one), started `offset` later.
    #[must_use]
    pub fn new(interval: Duration, offset: Duration) -> Self {
        Self { interval: (interval.as_secs() as i64).max(1), offset: offset.as_millis() as i64 }
    }

    /// The slots later than `after` whose start has come at `now`. Takes the same time for any span.
    #[must_use]
    pub fn due(&self, after: Timestamp, now: Timestamp) -> Option<Due> {
        let first = self.index_after(after);
        let newest = (now.as_millisecond() - self.offset).div_euclid(self.interval * 1000);
        (newest >= first).then(|| Due { newest: from_seconds(newest * self.interval), count: newest - first + 1 })
    }

    /// The first slot later than `after` whose start has not come at `now`.
    #[must_use]
    pub fn next(&self, after: Timestamp, now: Timestamp) -> Timestamp {
        let upcoming = (now.as_millisecond() - self.offset).div_euclid(self.interval * 1000) + 1;
        from_seconds(upcoming.max(self.index_after(after)) * self.interval)
    }

    /// When a slot is started: the slot plus the offset.
    #[must_use]
    pub fn start(&self, slot: Timestamp) -> Timestamp {
        super::from_millis(slot.as_millisecond().saturating_add(self.offset))
    }

    fn index_after(&self, after: Timestamp) -> i64 {
        after.as_millisecond().div_euclid(self.interval * 1000) + 1
    }
}

/// A stable offset below `jitter` for an object, the same in every process and release.
#[must_use]
pub fn stable_offset(uid: &str, jitter: Duration) -> Duration {
    // FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/): std's hasher may change between releases.
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    match jitter.as_millis() as u64 {
        0 => Duration::ZERO,
        millis => Duration::from_millis(hash % millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }
    fn every(seconds: u64) -> Slots {
        Slots::new(Duration::from_secs(seconds), Duration::ZERO)
    }

    #[test]
    fn slots_are_multiples_of_the_interval_since_the_epoch() {
        let slots = every(1200);
        assert_eq!(slots.next(at(0), at(1)), at(1200));
        assert_eq!(slots.due(at(1100), at(1199)), None);
        assert_eq!(slots.due(at(1100), at(1200)), Some(Due { newest: at(1200), count: 1 }));
        assert_eq!(slots.due(at(1200), at(1201)), None, "a handled slot is not due again");
        assert_eq!(slots.due(at(1200), at(6000)), Some(Due { newest: at(6000), count: 4 }));
    }

    #[test]
    fn an_offset_delays_the_start_and_keeps_the_slot() {
        let slots = Slots::new(Duration::from_secs(60), Duration::from_millis(1500));
        assert_eq!(slots.due(at(30), at(61)), None);
        assert_eq!(slots.due(at(30), at(62)), Some(Due { newest: at(60), count: 1 }));
        assert_eq!(slots.start(at(60)), Timestamp::from_millisecond(61_500).unwrap());
    }

    #[test]
    fn three_days_of_missed_minutes_cost_no_loop() {
        let due = every(60).due(at(0), at(3 * 86_400)).unwrap();
        assert_eq!(due.count, 3 * 1440);
    }

    proptest! {
        #[test]
        fn walking_in_any_steps_meets_every_slot_once(interval in 1_u64..5000, offset in 0_u64..9000, start in 0_i64..1_000_000, steps in prop::collection::vec(0_i64..20_000, 1..40)) {
            let slots = Slots::new(Duration::from_secs(interval), Duration::from_millis(offset));
            let mut now = at(start);
            let mut handled = now;
            let mut met = 0;
            for step in steps {
                now += jiff::SignedDuration::from_secs(step);
                if let Some(due) = slots.due(handled, now) {
                    prop_assert!(due.newest > handled && slots.start(due.newest) <= now);
                    met += due.count;
                    handled = due.newest;
                }
                prop_assert!(slots.start(slots.next(handled, now)) > now);
            }
            let all = slots.due(at(start), now).map_or(0, |due| due.count);
            prop_assert_eq!(met, all);
        }

        #[test]
        fn offsets_are_stable_and_below_the_jitter(uid in "[a-f0-9-]{36}", jitter in 1_u64..100_000) {
            let jitter = Duration::from_millis(jitter);
            let offset = stable_offset(&uid, jitter);
            prop_assert!(offset < jitter);
            prop_assert_eq!(offset, stable_offset(&uid, jitter));
        }
    }
}
