//! Rate limits that all workers share: requests of a namespace to one server are spaced evenly, whichever worker sends
//! them.

use std::time::Duration;

use super::{Error, Queue, scripts};
use crate::domain::rate_limit::{Reservation, SharedRateLimit};

impl Queue {
    /// Reserves the next request under all of these rate limits, or under none of them. A reservation that is not used is
    /// lost.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn reserve_request(&self, limits: &[SharedRateLimit]) -> Result<Reservation, Error> {
        let limits = limits.iter().map(|SharedRateLimit { name, every }| (name.as_str(), *every));
        self.reserve(limits, Duration::ZERO).await
    }

    /// Rejects reservations under the rate limit `limit` for `pause`. Earlier reservations stay valid.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn pause_requests(&self, limit: &str, pause: Duration) -> Result<(), Error> {
        self.reserve([(limit, Duration::ZERO)], pause).await.map(drop)
    }

    async fn reserve<'a>(
        &self,
        limits: impl IntoIterator<Item = (&'a str, Duration)>,
        pause: Duration,
    ) -> Result<Reservation, Error> {
        let mut call = self.script(&scripts::RATE_LIMIT);
        call.arg(pause.as_micros() as u64);
        for (name, every) in limits {
            call.key(self.keys.rate_limit(name)).arg(every.as_micros() as u64);
        }
        let (is_reserved, wait): (bool, u64) = self.call(&call, "reserve a request").await?;
        let wait = Duration::from_micros(wait);
        Ok(if is_reserved { Reservation::After(wait) } else { Reservation::RetryAfter(wait) })
    }
}
