//! Slot arithmetic. With an interval, a slot is a multiple of it since the Unix epoch; with a cron expression see
//! [`super::cron`]. The start of a slot is the slot plus the schedule's offset (jitter).

use std::time::Duration;

use jiff::Timestamp;

use super::{cron::Cron, from_seconds};

/// Grid of the slots of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum Grid {
    /// Multiples of this number of seconds since the epoch, at least 1.
    Every(i64),
    /// Times at which the clocks match.
    Cron(Box<Cron>),
}

/// Slots of one schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slots<'a> {
    grid: &'a Grid,
    /// Milliseconds added to each slot to get its start.
    offset: i64,
}

/// The slots that became due in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The newest of them.
    pub newest: Timestamp,
    /// Slot before the newest one, when several slots are due.
    pub before: Option<Timestamp>,
    /// Number of due slots, the newest included.
    pub count: i64,
}

impl Grid {
    /// Slots every `interval`, rounded down to whole seconds, at least one.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self::Every((interval.as_secs() as i64).max(1))
    }

    /// The least time from one slot to the next.
    #[must_use]
    pub fn shortest_gap(&self) -> Duration {
        match self {
            Self::Every(seconds) => Duration::from_secs(*seconds as u64),
            Self::Cron(cron) => cron.shortest_gap(),
        }
    }
}

impl<'a> Slots<'a> {
    /// Slots of a grid, started `offset` later.
    #[must_use]
    pub fn new(grid: &'a Grid, offset: Duration) -> Self {
        Self { grid, offset: offset.as_millis() as i64 }
    }

    /// Returns the slots later than `after` that are due at `now`. This takes constant time with an interval, and about
    /// 0.1 ms for a year with a cron expression.
    #[must_use]
    pub fn due(&self, after: Timestamp, now: Timestamp) -> Option<Due> {
        let reached = self.reached(now);
        match self.grid {
            Grid::Cron(cron) => cron.due(after, reached),
            Grid::Every(interval) => {
                let (first, newest) = (index(after, *interval) + 1, index(reached, *interval));
                let before = (newest > first).then(|| from_seconds((newest - 1) * interval));
                (newest >= first).then(|| Due {
                    newest: from_seconds(newest * interval),
                    before,
                    count: newest - first + 1,
                })
            }
        }
    }

    /// Returns the first slot later than `after` that is not due at `now`. `None` at the end of the calendar.
    #[must_use]
    pub fn next(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let after = after.max(self.reached(now));
        match self.grid {
            Grid::Cron(cron) => cron.next(after),
            Grid::Every(interval) => Some(from_seconds((index(after, *interval) + 1) * interval)),
        }
    }

    /// Start of a slot: the slot plus the offset.
    #[must_use]
    pub fn start(&self, slot: Timestamp) -> Timestamp {
        super::from_millis(slot.as_millisecond().saturating_add(self.offset))
    }

    /// Slots up to this time have started at `now`.
    #[must_use]
    pub fn reached(&self, now: Timestamp) -> Timestamp {
        super::from_millis(now.as_millisecond().saturating_sub(self.offset))
    }
}

fn index(time: Timestamp, interval: i64) -> i64 {
    time.as_millisecond().div_euclid(interval * 1000)
}

/// A stable offset below `jitter` for an object, the same in every process and release.
#[must_use]
pub fn stable_offset(uid: &str, jitter: Duration) -> Duration {
    match jitter.as_millis() as u64 {
        0 => Duration::ZERO,
        millis => Duration::from_millis(super::stable_hash(uid) % millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;
    use proptest::prelude::*;

    fn every(seconds: u64) -> Grid {
        Grid::every(Duration::from_secs(seconds))
    }

    #[test]
    fn slots_are_multiples_of_the_interval_since_the_epoch() {
        let grid = every(1200);
        let slots = Slots::new(&grid, Duration::ZERO);
        assert_eq!(slots.next(at(0), at(1)), Some(at(1200)));
        assert_eq!(slots.due(at(1100), at(1199)), None);
        assert_eq!(slots.due(at(1100), at(1200)), Some(Due { newest: at(1200), before: None, count: 1 }));
        assert_eq!(slots.due(at(1200), at(1201)), None, "a handled slot is not due again");
        assert_eq!(slots.due(at(1200), at(6000)), Some(Due { newest: at(6000), before: Some(at(4800)), count: 4 }));
    }

    #[test]
    fn an_offset_delays_the_start_and_keeps_the_slot() {
        let grid = every(60);
        let slots = Slots::new(&grid, Duration::from_millis(1500));
        assert_eq!(slots.due(at(30), at(61)), None);
        assert_eq!(slots.due(at(30), at(62)), Some(Due { newest: at(60), before: None, count: 1 }));
        assert_eq!(slots.start(at(60)), Timestamp::from_millisecond(61_500).unwrap());
    }

    #[test]
    fn three_days_of_missed_minutes_cost_no_loop() {
        let due = Slots::new(&every(60), Duration::ZERO).due(at(0), at(3 * 86_400)).unwrap();
        assert_eq!(due.count, 3 * 1440);
    }

    fn grids() -> impl Strategy<Value = Grid> {
        let expressions = ["* * * * *", "*/7 * * * *", "30 1-3 * * *", "0 0 1 * *"];
        prop_oneof![
            (1_u64..5000).prop_map(|seconds| Grid::every(Duration::from_secs(seconds))),
            prop::sample::select(expressions.to_vec())
                .prop_map(|text| Grid::Cron(Box::new(Cron::new(text, Some("Europe/Berlin")).unwrap()))),
        ]
    }

    proptest! {
        #[test]
        fn walking_in_any_steps_meets_every_slot_once(grid in grids(), offset in 0_u64..9000, start in 0_i64..1_000_000, steps in prop::collection::vec(0_i64..20_000, 1..40)) {
            let slots = Slots::new(&grid, Duration::from_millis(offset));
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
                prop_assert!(slots.start(slots.next(handled, now).unwrap()) > now);
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
