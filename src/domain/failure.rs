//! Failed actions on an object: their backoff, and the time after which the object shows the failure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{backoff::Backoff, conditions};
use crate::api::conditions::{READY, RECONCILING, STALLED, reasons};

/// Backoff after a refusal, whose cause a user must correct.
pub const REFUSED: Backoff =
    Backoff { initial: Duration::from_secs(1), factor: 2, max: Duration::from_secs(300), jitter: 0.25 };
/// Backoff after a failure that a retry may avoid: a timeout, or a server that is busy.
pub const BUSY: Backoff = Backoff { max: Duration::from_secs(30), ..REFUSED };
/// Backoff after a conflict with another writer.
pub const CONFLICT: Backoff = Backoff { initial: Duration::from_millis(250), ..REFUSED };

/// Action that creates the SyncJob of a run of a schedule.
pub const CREATE: &str = "create a SyncJob";

/// Cause of a failed action, as far as retries depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The server refuses the request.
    Refused,
    /// The server could not answer now, or did not in time.
    Busy,
    /// Another client has changed the object meanwhile.
    Conflict,
}

impl Cause {
    /// The wait after `failures` failures in a row. The server may ask for a longer one. `random` is uniform in 0..1.
    #[must_use]
    pub fn delay(self, failures: u32, asked: Duration, random: f64) -> Duration {
        let backoff = match self {
            Self::Refused => REFUSED,
            Self::Busy => BUSY,
            Self::Conflict => CONFLICT,
        };
        backoff.delay(failures, random).max(asked)
    }

    /// True when an action that failed must not be tried before its wait is over, whatever else happens to the object.
    #[must_use]
    pub fn holds_back(self) -> bool {
        matches!(self, Self::Refused | Self::Busy)
    }

    /// True when the object shows the failure, which is the one of this number in a row.
    #[must_use]
    pub fn is_shown(self, failures: u32) -> bool {
        match self {
            Self::Refused => true,
            Self::Busy => failures >= 3,
            Self::Conflict => failures >= 10,
        }
    }
}

/// A failure that its object shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Reason of the condition and of the event.
    pub reason: &'static str,
    /// A sentence without a full stop.
    pub message: String,
}

impl Failure {
    /// Creates the failure of an action from the error of the server.
    #[must_use]
    pub fn new(action: &str, error: &str) -> Self {
        let reason = if action == CREATE { reasons::CREATE_FAILED } else { reasons::RECONCILIATION_FAILED };
        let mut characters = error.chars();
        let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
        Self { reason, message: first + characters.as_str() }
    }
}

/// Shows a failure in the conditions of an object that has the condition Ready, unless it is stalled for a reason of
/// its own.
pub fn mark_ready(conditions: &mut Vec<Condition>, failure: &Failure, generation: Option<i64>, now: Timestamp) {
    if !conditions::is_true(conditions, STALLED) {
        conditions::set(conditions, READY, false, failure.reason, &failure.message, generation, now);
    }
}

/// Shows a failure in the conditions of a run that has not ended.
pub fn mark_run(conditions: &mut Vec<Condition>, failure: &Failure, generation: Option<i64>, now: Timestamp) {
    conditions::set(conditions, RECONCILING, true, failure.reason, &failure.message, generation, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_keep_to_what_the_server_asks_for() {
        let millis = |cause: Cause, asked: u64| {
            let asked = Duration::from_secs(asked);
            [1, 2, 3, 6, 20].map(|failures| cause.delay(failures, asked, 0.5).as_millis())
        };
        assert_eq!(millis(Cause::Refused, 0), [1000, 2000, 4000, 32_000, 300_000]);
        assert_eq!(millis(Cause::Busy, 0), [1000, 2000, 4000, 30_000, 30_000]);
        assert_eq!(millis(Cause::Busy, 7), [7000, 7000, 7000, 30_000, 30_000]);
        assert_eq!(millis(Cause::Conflict, 0), [250, 500, 1000, 8000, 300_000]);
        assert_ne!(Cause::Refused.delay(5, Duration::ZERO, 0.0), Cause::Refused.delay(5, Duration::ZERO, 1.0));
    }

    #[test]
    fn a_refusal_is_shown_at_once_and_what_may_pass_when_it_repeats() {
        let shown_from = |cause: Cause| (1..=20).find(|failures| cause.is_shown(*failures));
        assert_eq!(shown_from(Cause::Refused), Some(1));
        assert_eq!(shown_from(Cause::Busy), Some(3));
        assert_eq!(shown_from(Cause::Conflict), Some(10));
    }

    #[test]
    fn an_object_with_a_mistake_of_its_own_shows_that() {
        let failure = Failure::new(CREATE, "could not create a SyncJob: no");
        assert_eq!((failure.reason, failure.message.as_str()), ("CreateFailed", "Could not create a SyncJob: no"));
        let mut conditions = Vec::new();
        mark_ready(&mut conditions, &failure, None, Timestamp::UNIX_EPOCH);
        assert_eq!(conditions[0].reason, "CreateFailed");
        conditions::set(&mut conditions, READY, false, "InvalidSpec", "", None, Timestamp::UNIX_EPOCH);
        conditions::set(&mut conditions, STALLED, true, "InvalidSpec", "", None, Timestamp::UNIX_EPOCH);
        mark_ready(&mut conditions, &failure, None, Timestamp::UNIX_EPOCH);
        assert_eq!(conditions[0].reason, "InvalidSpec");
    }
}
