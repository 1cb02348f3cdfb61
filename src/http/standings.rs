//! How many schedules stand how, which takes long to count when there are many that wait for their runs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::schedule::STANDINGS;

/// Schedules by state.
pub(super) type Counts = [(&'static str, u64); STANDINGS.len()];

/// For so many times as long as it took to count, that is not done again: it costs a thousandth of a core.
const HOLDS: u32 = 1000;
/// But for no longer than this. Alerts wait for longer.
const MOST: Duration = Duration::from_secs(60);

/// What was counted last.
#[derive(Clone, Debug, Default)]
pub struct Standings(Arc<Mutex<Option<(Counts, Instant)>>>);

impl Standings {
    /// What is counted, or was lately.
    pub(super) fn get(&self, now: Instant, count: impl FnOnce() -> Counts) -> Counts {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((counts, _)) = last.filter(|(_, until)| now < *until) {
            return counts;
        }
        let began = Instant::now();
        let counts = count();
        let took = began.elapsed();
        *last = Some((counts, now + took + (took * HOLDS).min(MOST)));
        counts
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    fn one(count: u64) -> Counts {
        [("ok", count), ("overdue", 0), ("suspended", 0), ("invalid", 0)]
    }

    #[test]
    fn what_took_long_to_count_holds_for_a_while() {
        let (standings, now) = (Standings::default(), Instant::now());
        let slow = || {
            sleep(Duration::from_millis(50));
            one(1)
        };
        assert_eq!(standings.get(now, slow), one(1));
        assert_eq!(standings.clone().get(now + Duration::from_secs(5), || one(2)), one(1));
        let later = now + Duration::from_secs(3600);
        assert_eq!(standings.get(later, || one(3)), one(3));
        assert_eq!(standings.get(later + Duration::from_secs(5), || one(4)), one(4), "that took no time");
    }
}
