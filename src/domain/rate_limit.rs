//! The rate limit of the requests to one endpoint: evenly spaced requests instead of windows with bursts.

use std::time::Duration;

/// Longest time for which a request can be reserved ahead. A pause does not revoke reservations, so they must not
/// reach far.
const HORIZON: Duration = Duration::from_secs(1);

/// Answer to the reservation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// The request is reserved: send it after this time, at most 1 s.
    After(Duration),
    /// The request is not reserved: ask again after this time.
    RetryAfter(Duration),
}

/// State of a rate limit that one process keeps. Times are durations since any fixed point in the past.
///
/// `queue/scripts/rate_limit.lua` has the same rule for processes that share Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimitState {
    free_at: Duration,
}

impl RateLimitState {
    /// Reserves the next request when one request may pass per `every`.
    #[must_use]
    pub fn reserve(&mut self, now: Duration, every: Duration) -> Reservation {
        let free_at = self.free_at.max(now);
        let wait = free_at.saturating_sub(now);
        if wait > HORIZON {
            return Reservation::RetryAfter(wait);
        }
        self.free_at = free_at + every;
        Reservation::After(wait)
    }

    /// Rejects reservations for `pause`. Requests that are reserved already are not affected.
    pub fn pause(&mut self, now: Duration, pause: Duration) {
        self.free_at = self.free_at.max(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn requests_are_spaced_evenly() {
        let mut limit = RateLimitState::default();
        for (now, reserved) in [
            (0, Reservation::After(millis(0))),
            (0, Reservation::After(millis(400))),
            (100, Reservation::After(millis(700))),
            (100, Reservation::RetryAfter(millis(1100))),
            (200, Reservation::After(millis(1000))),
        ] {
            assert_eq!(limit.reserve(millis(now), millis(400)), reserved, "at {now} ms");
        }
    }

    #[test]
    fn an_idle_limit_saves_nothing_up() {
        let mut limit = RateLimitState::default();
        assert_eq!(limit.reserve(millis(0), millis(400)), Reservation::After(Duration::ZERO));
        assert_eq!(limit.reserve(millis(5000), millis(400)), Reservation::After(Duration::ZERO));
        assert_eq!(limit.reserve(millis(5000), millis(400)), Reservation::After(millis(400)));
    }

    #[test]
    fn a_pause_rejects_requests_until_it_is_over() {
        let mut limit = RateLimitState::default();
        limit.pause(millis(0), millis(3000));
        assert_eq!(limit.reserve(millis(500), Duration::ZERO), Reservation::RetryAfter(millis(2500)));
        assert_eq!(limit.reserve(millis(2500), Duration::ZERO), Reservation::After(millis(500)));
        assert_eq!(limit.reserve(millis(3000), Duration::ZERO), Reservation::After(Duration::ZERO));
    }

    #[test]
    fn a_shorter_pause_does_not_end_a_longer_one() {
        let mut limit = RateLimitState::default();
        limit.pause(millis(0), millis(3000));
        limit.pause(millis(0), millis(1000));
        assert_eq!(limit.reserve(millis(1000), Duration::ZERO), Reservation::RetryAfter(millis(2000)));
    }
}
