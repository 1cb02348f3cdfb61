//! Clocks: which one to believe, and times that a wrong one left behind.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Difference up to which two clocks count as equal: servers whose time is synchronised differ by much less.
pub const TOLERANCE: SignedDuration = SignedDuration::from_secs(30);

/// The clocks at one moment. `None`: the server did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// Clock of this process.
    pub local: Timestamp,
    /// Clock of the API server.
    pub api_server: Option<Timestamp>,
    /// Clock of Redis, which the start of runs, leases and deadlines use.
    pub redis: Option<Timestamp>,
}

/// Result of a comparison of the clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The time.
    pub now: Timestamp,
    /// A difference that this process cannot make up for: a sentence.
    pub skew: Option<String>,
}

fn is_near(a: Timestamp, b: Timestamp) -> bool {
    a.duration_since(b).abs() <= TOLERANCE
}

/// Compares the clocks, and decides on the current time. A local clock that differs from the API server's is not
/// used: the API server stamps all objects. When Redis and the API server differ, the process does not know which
/// one is right.
#[must_use]
pub fn compare(clocks: &Clocks) -> Reading {
    let Clocks { local, api_server, redis } = *clocks;
    let now = api_server.filter(|api_server| !is_near(local, *api_server)).unwrap_or(local);
    let skew = redis.filter(|redis| !is_near(*redis, now)).map(|redis| {
        let ahead = redis.duration_since(now).as_secs();
        let (seconds, direction) = (ahead.abs(), if ahead > 0 { "ahead of" } else { "behind" });
        let other = if api_server.is_some() { "the API server" } else { "the controller" };
        format!(
            "The clock of Redis is {seconds} s {direction} that of {other}: runs start, and leases and deadlines end, by it. \
             Synchronise the clocks of the nodes"
        )
    });
    Reading { now, skew }
}

/// Sets a time in a status that is later than now to now. A wrong clock wrote such a time. A small difference is kept,
/// because the clocks of two controllers differ.
pub fn clamp(time: &mut Option<Time>, now: Timestamp) -> bool {
    let is_ahead = time.as_ref().is_some_and(|time| time.0.duration_since(now) > TOLERANCE);
    if is_ahead {
        *time = Some(Time(super::from_seconds(now.as_second())));
    }
    is_ahead
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    #[test]
    fn the_local_clock_is_believed_while_the_api_server_agrees() {
        const YEAR: i64 = 31_536_000;
        for (local, api_server, redis, now, skew) in [
            (100, Some(100), Some(100), 100, None),
            (100, Some(129), Some(80), 100, None),
            (100, None, None, 100, None),
            // The local clock is a year ahead, or behind.
            (YEAR, Some(100), Some(101), 100, None),
            (100, Some(YEAR), Some(YEAR), YEAR, None),
            // Redis is.
            (100, Some(100), Some(YEAR), 100, Some("31535900 s ahead of that of the API server")),
            (YEAR, Some(YEAR), Some(100), YEAR, Some("31535900 s behind that of the API server")),
            (100, None, Some(200), 100, Some("100 s ahead of that of the controller")),
            // All three differ.
            (YEAR, Some(100), Some(500), 100, Some("400 s ahead of that of the API server")),
        ] {
            let reading = compare(&Clocks { local: at(local), api_server: api_server.map(at), redis: redis.map(at) });
            assert_eq!(reading.now, at(now), "{local} {api_server:?} {redis:?}");
            match (&reading.skew, skew) {
                (Some(warning), Some(part)) => assert!(warning.contains(part), "{warning}"),
                (warning, part) => assert_eq!(warning.as_deref(), part),
            }
        }
    }

    #[test]
    fn a_time_far_ahead_is_put_back_and_a_small_lead_is_kept() {
        for (time, expected) in [(None, None), (Some(90), Some(90)), (Some(130), Some(130)), (Some(131), Some(100))] {
            let mut clamped = time.map(|time| Time(at(time)));
            assert_eq!(clamp(&mut clamped, at(100)), time != expected);
            assert_eq!(clamped, expected.map(|time| Time(at(time))));
        }
    }
}
