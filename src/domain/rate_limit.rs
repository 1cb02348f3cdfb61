//! The rate limit of the requests of a namespace to one server: evenly spaced requests instead of windows with bursts.

use std::{collections::BTreeSet, time::Duration};

use sha2::{Digest, Sha256};

use super::source::SourceSpec;

/// Name of the rate limit of a source: a hash of its namespace, its scheme, host and port (`origin`), and the entries of
/// Secrets that its requests carry. Other namespaces have limits of their own, because a limit of an API belongs to a
/// token, and one namespace must not delay another.
#[must_use]
pub fn name(namespace: &str, origin: &str, source: &SourceSpec) -> String {
    let headers = source.headers.iter().map(|header| &header.secret_ref);
    let entries: BTreeSet<String> =
        source.token.iter().chain(headers).map(|entry| format!("{}/{}", entry.name, entry.key)).collect();
    let parts: Vec<&str> = [namespace, origin].into_iter().chain(entries.iter().map(String::as_str)).collect();
    let hash: [u8; 32] = Sha256::digest(parts.join("\n")).into();
    hash.first_chunk().map(|first| format!("{:032x}", u128::from_be_bytes(*first))).unwrap_or_default()
}

/// Name of the rate limit of an installation for a host, which the requests of all namespaces share.
#[must_use]
pub fn name_of_host(host: &str) -> String {
    format!("host/{host}")
}

/// Rate limit that a request needs. All requests with its name share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRateLimit {
    /// Name, unique in the queue.
    pub name: String,
    /// Least time from one request to the next.
    pub every: Duration,
}

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

/// Reserves the next request under all of these limits, or under none of them. `every`: least time from one request to the
/// next under each limit.
#[must_use]
pub fn reserve(limits: &mut [(&mut RateLimitState, Duration)], now: Duration) -> Reservation {
    let free_at = limits.iter().map(|(limit, _)| limit.free_at).fold(now, Duration::max);
    let wait = free_at.saturating_sub(now);
    if wait > HORIZON {
        return Reservation::RetryAfter(wait);
    }
    for (limit, every) in limits {
        limit.free_at = free_at + *every;
    }
    Reservation::After(wait)
}

impl RateLimitState {
    /// Rejects reservations for `pause`. Requests that are reserved already are not affected.
    pub fn pause(&mut self, now: Duration, pause: Duration) {
        self.free_at = self.free_at.max(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{api::SyncJobSpec, domain::run::RunSpec};

    fn name_of(namespace: &str, origin: &str, secrets: &serde_json::Value) -> String {
        let mut source = json!({"rest": {"endpoint": "https://api.example.com/users?ids={ids}"}});
        source.as_object_mut().unwrap().extend(secrets.as_object().unwrap().clone());
        let spec: SyncJobSpec = serde_json::from_value(json!({"source": source})).unwrap();
        name(namespace, origin, RunSpec::parse(&spec).unwrap().source.as_ref().unwrap())
    }

    #[test]
    fn rates_belong_to_namespace_server_and_secrets() {
        let entry = |name: &str| json!({"name": name, "key": "token"});
        let header = |name: &str| json!([{"name": "X-Key", "secretRef": entry(name)}]);
        let origin = "https://api.example.com";
        let names = [
            name_of("a", origin, &json!({})),
            name_of("b", origin, &json!({})),
            name_of("a", "http://api.example.com", &json!({})),
            name_of("a", "https://api.example.com:8443", &json!({})),
            name_of("a", origin, &json!({"tokenSecretRef": entry("one")})),
            name_of("a", origin, &json!({"tokenSecretRef": entry("two")})),
            name_of("a", origin, &json!({"tokenSecretRef": entry("one"), "headersFrom": header("two")})),
        ];
        assert_eq!(BTreeSet::from(names.clone()).len(), names.len());
        let other_header = json!({"headersFrom": header("one"), "caSecretRef": entry("ca"), "timeout": "9s"});
        assert_eq!(name_of("a", origin, &other_header), names[4], "the entry counts, wherever it is used");
    }

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
            assert_eq!(reserve(&mut [(&mut limit, millis(400))], millis(now)), reserved, "at {now} ms");
        }
    }

    #[test]
    fn an_idle_limit_saves_nothing_up() {
        let mut limit = RateLimitState::default();
        assert_eq!(reserve(&mut [(&mut limit, millis(400))], millis(0)), Reservation::After(Duration::ZERO));
        assert_eq!(reserve(&mut [(&mut limit, millis(400))], millis(5000)), Reservation::After(Duration::ZERO));
        assert_eq!(reserve(&mut [(&mut limit, millis(400))], millis(5000)), Reservation::After(millis(400)));
    }

    #[test]
    fn a_pause_rejects_requests_until_it_is_over() {
        let mut limit = RateLimitState::default();
        limit.pause(millis(0), millis(3000));
        assert_eq!(reserve(&mut [(&mut limit, Duration::ZERO)], millis(500)), Reservation::RetryAfter(millis(2500)));
        assert_eq!(reserve(&mut [(&mut limit, Duration::ZERO)], millis(2500)), Reservation::After(millis(500)));
        assert_eq!(reserve(&mut [(&mut limit, Duration::ZERO)], millis(3000)), Reservation::After(Duration::ZERO));
    }

    #[test]
    fn a_shorter_pause_does_not_end_a_longer_one() {
        let mut limit = RateLimitState::default();
        limit.pause(millis(0), millis(3000));
        limit.pause(millis(0), millis(1000));
        assert_eq!(reserve(&mut [(&mut limit, Duration::ZERO)], millis(1000)), Reservation::RetryAfter(millis(2000)));
    }

    #[test]
    fn a_request_is_reserved_under_all_limits_or_none() {
        let (mut own, mut shared) = (RateLimitState::default(), RateLimitState::default());
        shared.pause(millis(0), millis(2000));
        let mut both = |now| reserve(&mut [(&mut own, millis(100)), (&mut shared, millis(400))], millis(now));
        assert_eq!(both(0), Reservation::RetryAfter(millis(2000)));
        assert_eq!(both(1500), Reservation::After(millis(500)));
        assert_eq!(both(1500), Reservation::After(millis(900)), "the slower limit counts");
        assert_eq!(own, RateLimitState { free_at: millis(2500) }, "100 ms after the request at 2400 ms");
        assert_eq!(shared, RateLimitState { free_at: millis(2800) });
    }
}
