//! Cache of the number of schedules in each state of health. The count takes long when many schedules wait for their runs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::schedule::HEALTH_STATES;

/// Number of schedules in each state of health.
pub(super) type HealthCounts = [(&'static str, u64); HEALTH_STATES.len()];

/// Lifetime of a count, as a multiple of the time that it took. So counting costs a thousandth of a core.
const LIFETIME_FACTOR: u32 = 1000;
/// Longest lifetime of a count. Alerts wait for longer.
const MAX_LIFETIME: Duration = Duration::from_secs(60);

/// Cache of the last count.
#[derive(Clone, Debug, Default)]
pub struct ScheduleHealth(Arc<Mutex<Option<(HealthCounts, Instant)>>>);

impl ScheduleHealth {
    /// Returns the cached count, or counts again when its lifetime has passed.
    pub(super) fn get(&self, now: Instant, count: impl FnOnce() -> HealthCounts) -> HealthCounts {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((counts, _)) = last.filter(|(_, until)| now < *until) {
            return counts;
        }
        let began = Instant::now();
        let counts = count();
        let took = began.elapsed();
        *last = Some((counts, now + took + (took * LIFETIME_FACTOR).min(MAX_LIFETIME)));
        counts
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    fn one(count: u64) -> HealthCounts {
        [("ok", count), ("overdue", 0), ("suspended", 0), ("invalid", 0)]
    }

    #[test]
    fn a_slow_count_is_cached() {
        let (schedule_health, now) = (ScheduleHealth::default(), Instant::now());
        let slow = || {
            sleep(Duration::from_millis(50));
            one(1)
        };
        assert_eq!(schedule_health.get(now, slow), one(1));
        assert_eq!(schedule_health.clone().get(now + Duration::from_secs(5), || one(2)), one(1));
        let later = now + Duration::from_secs(3600);
        assert_eq!(schedule_health.get(later, || one(3)), one(3));
        assert_eq!(schedule_health.get(later + Duration::from_secs(5), || one(4)), one(4), "that took no time");
    }
}
