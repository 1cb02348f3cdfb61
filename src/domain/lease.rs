//! Leader election: decisions about the Lease, by the rules of client-go
//! (<https://pkg.go.dev/k8s.io/client-go/tools/leaderelection>). A standby acquires a Lease that has not changed for
//! its whole duration by the clock of the standby, so the clocks of the pods do not have to agree.

use std::time::Duration;

use jiff::Timestamp;

/// Content of the Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Identity of the leader. `None`: the Lease was released.
    pub holder: Option<String>,
    /// Time for which a renewal holds.
    pub duration: Duration,
    /// Time at which the holder became the leader.
    pub acquired: Option<Timestamp>,
    /// Time of the last renewal. Each renewal has another time, which is compared with no clock.
    pub renewed: Option<Timestamp>,
    /// Number of changes of the leader.
    pub transitions: i32,
}

/// Record to write to become or stay the leader. `None`: another process leads. `seen`: current record (`None`: no
/// Lease). `unchanged`: time for which the record has not changed, by the clock of this process.
#[must_use]
pub fn claim(
    me: &str,
    duration: Duration,
    seen: Option<&LeaseRecord>,
    unchanged: Duration,
    now: Timestamp,
) -> Option<LeaseRecord> {
    let mine = |acquired, transitions| LeaseRecord {
        holder: Some(me.to_owned()),
        duration,
        acquired: Some(acquired),
        renewed: Some(now),
        transitions,
    };
    let Some(seen) = seen else { return Some(mine(now, 0)) };
    match seen.holder.as_deref().filter(|holder| !holder.is_empty()) {
        Some(holder) if holder == me => Some(mine(seen.acquired.unwrap_or(now), seen.transitions)),
        Some(_) if unchanged < seen.duration => None,
        _ => Some(mine(now, seen.transitions.saturating_add(1))),
    }
}

/// Record that releases the Lease. `None`: another process holds the Lease.
#[must_use]
pub fn release(me: &str, seen: &LeaseRecord, now: Timestamp) -> Option<LeaseRecord> {
    let is_held = seen.holder.as_deref() == Some(me);
    is_held.then(|| LeaseRecord { holder: None, duration: Duration::from_secs(1), renewed: Some(now), ..seen.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    const LENGTH: Duration = Duration::from_secs(10);

    fn record(holder: Option<&str>, acquired: i64, renewed: i64, transitions: i32) -> LeaseRecord {
        LeaseRecord {
            holder: holder.map(str::to_owned),
            duration: LENGTH,
            acquired: Some(at(acquired)),
            renewed: Some(at(renewed)),
            transitions,
        }
    }

    #[test]
    fn a_free_lease_is_acquired_and_an_own_one_renewed() {
        let (short, long) = (Duration::from_secs(9), LENGTH);
        for (seen, unchanged, written) in [
            (None, short, Some(record(Some("me"), 50, 50, 0))),
            (Some(record(None, 10, 20, 3)), Duration::ZERO, Some(record(Some("me"), 50, 50, 4))),
            (Some(record(Some(""), 10, 20, 3)), Duration::ZERO, Some(record(Some("me"), 50, 50, 4))),
            (Some(record(Some("me"), 10, 20, 3)), Duration::ZERO, Some(record(Some("me"), 10, 50, 3))),
            (Some(record(Some("me"), 10, 20, 3)), long, Some(record(Some("me"), 10, 50, 3))),
            (Some(record(Some("other"), 10, 20, 3)), short, None),
            (Some(record(Some("other"), 10, 20, 3)), long, Some(record(Some("me"), 50, 50, 4))),
            // The clock of the other process does not matter.
            (Some(record(Some("other"), 10, -1_000_000, 3)), short, None),
            (Some(record(Some("other"), 10, 1_000_000, 3)), long, Some(record(Some("me"), 50, 50, 4))),
        ] {
            assert_eq!(claim("me", LENGTH, seen.as_ref(), unchanged, at(50)), written, "{seen:?} {unchanged:?}");
        }
    }

    #[test]
    fn only_the_holder_gives_the_lease_up() {
        let given_up = release("me", &record(Some("me"), 10, 20, 3), at(50)).unwrap();
        assert_eq!((given_up.holder, given_up.transitions), (None, 3));
        assert_eq!(release("me", &record(Some("other"), 10, 20, 3), at(50)), None);
        assert_eq!(release("me", &record(None, 10, 20, 3), at(50)), None);
    }
}
