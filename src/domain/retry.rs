//! The decision after a failed attempt: another attempt, or the end of the run.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::run::{MAX_ATTEMPTS, Outcome, RunSpec};
use crate::api::{conditions::reasons, syncjob::Attempt, truncate};

/// Pause between two attempts to roll a run back, whose number is not limited.
pub const ROLLBACK_PAUSE: Duration = Duration::from_secs(5);

/// Decision after a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Another attempt, after this time.
    After(Duration),
    /// The run has failed, and is not attempted again.
    GiveUp(Outcome),
}

/// Decides between a retry and a failure of the run after attempt number `attempts` (1 for the first) failed.
/// `without_progress` of them count against the backoff limit: an attempt that brought the run further does not, unless
/// there are no retries at all. `random` is uniform in 0..1 and spreads the retries of runs that failed together.
#[must_use]
pub fn after_failure(spec: &RunSpec, attempts: u32, without_progress: u32, last: &Outcome, random: f64) -> Retry {
    if spec.retries > 0 && without_progress <= spec.retries {
        return Retry::After(spec.backoff.delay(without_progress.max(1), random));
    }
    Retry::GiveUp(Outcome {
        reason: reasons::BACKOFF_LIMIT_EXCEEDED.to_owned(),
        message: format!("{attempts} attempts failed, the last one with {}: {}", last.reason, last.message),
    })
}

/// Appends a failed attempt to the history of a run, which keeps the last [`MAX_ATTEMPTS`].
pub fn record(history: &mut Vec<Attempt>, number: u32, start: Timestamp, end: Timestamp, outcome: &Outcome) {
    history.push(Attempt {
        number: number as i32,
        start: Time(start),
        end: Time(end),
        reason: outcome.reason.clone(),
        message: truncate(&outcome.message),
    });
    let excess = history.len().saturating_sub(MAX_ATTEMPTS);
    history.drain(..excess);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::SyncJobSpec, domain::run::Checkpoint};

    fn outcome() -> Outcome {
        Outcome { reason: "Unreachable".to_owned(), message: "the connection to MongoDB was lost".to_owned() }
    }

    #[test]
    fn an_attempt_is_retried_up_to_the_backoff_limit() {
        let spec = RunSpec::parse(&SyncJobSpec::default()).unwrap();
        for (attempts, without_progress, seconds) in
            [(1, 1, Some(5)), (2, 2, Some(25)), (3, 3, Some(125)), (4, 4, None), (1, 0, Some(5)), (9, 2, Some(25))]
        {
            let retry = after_failure(&spec, attempts, without_progress, &outcome(), 0.5);
            match (retry, seconds) {
                (Retry::After(delay), Some(seconds)) => assert_eq!(delay.as_secs(), seconds),
                (Retry::GiveUp(end), None) => {
                    assert_eq!(end.reason, reasons::BACKOFF_LIMIT_EXCEEDED);
                    assert_eq!(
                        end.message,
                        "4 attempts failed, the last one with Unreachable: the connection to MongoDB was lost"
                    );
                }
                (retry, _) => panic!("attempt {attempts}: {retry:?}"),
            }
        }
    }

    #[test]
    fn attempts_that_come_further_do_not_count() {
        let mut checkpoint = Checkpoint::default();
        let mut fail_at = |processed| {
            checkpoint.counts.processed = processed;
            checkpoint.count_failure()
        };
        assert_eq!([0, 10, 10, 5, 20, 20].map(&mut fail_at), [1, 1, 2, 3, 3, 4]);
        let spec = serde_json::from_value(serde_json::json!({"backoffLimit": 0})).unwrap();
        let none = after_failure(&RunSpec::parse(&spec).unwrap(), 1, 0, &outcome(), 0.5);
        assert!(matches!(none, Retry::GiveUp(_)), "no retries are no retries");
    }

    #[test]
    fn the_history_keeps_the_last_attempts() {
        let mut history = Vec::new();
        let at = Timestamp::UNIX_EPOCH;
        for number in 1..=12 {
            record(&mut history, number, at, at, &outcome());
        }
        let numbers: Vec<_> = history.iter().map(|attempt| attempt.number).collect();
        assert_eq!(numbers, (3..=12).collect::<Vec<_>>());
    }
}
