//! Backoff: the delay before the next attempt.

use std::time::Duration;

/// Delay between attempts: `initial`, then `factor` times as long each time, at most `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Delay before the first retry.
    pub initial: Duration,
    /// Growth from one delay to the next.
    pub factor: u32,
    /// Longest delay, without jitter.
    pub max: Duration,
    /// Share by which a delay is lengthened or shortened, 0 to 1.
    pub jitter: f64,
}

impl Backoff {
    /// The wait after `failed` failed attempts (1 for the first). `random` is uniform in 0..1.
    #[must_use]
    pub fn delay(&self, failed: u32, random: f64) -> Duration {
        let growth = f64::from(self.factor).powi(failed.saturating_sub(1).min(1000) as i32);
        let wait = (self.initial.as_secs_f64() * growth).min(self.max.as_secs_f64());
        Duration::from_secs_f64(wait * (1.0 + self.jitter * (2.0 * random - 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Backoff =
        Backoff { initial: Duration::from_secs(5), factor: 5, max: Duration::from_secs(600), jitter: 0.0 };

    #[test]
    fn the_default_waits_are_5_25_and_125_seconds() {
        let waits: Vec<u64> = (1..=5).map(|failed| DEFAULT.delay(failed, 0.5).as_secs()).collect();
        assert_eq!(waits, [5, 25, 125, 600, 600]);
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let backoff = Backoff { jitter: 0.1, ..DEFAULT };
        assert_eq!(backoff.delay(1, 0.0), Duration::from_millis(4500));
        assert_eq!(backoff.delay(1, 1.0), Duration::from_millis(5500));
    }

    #[test]
    fn many_failures_do_not_overflow() {
        assert_eq!(DEFAULT.delay(u32::MAX, 0.5), Duration::from_secs(600));
    }
}
