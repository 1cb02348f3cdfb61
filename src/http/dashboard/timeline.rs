//! Timeline of a run.

use jiff::Timestamp;

use super::format::{Moment, lasted};
use crate::{api::syncjob::Phase, http::job_view::JobDetails};

/// Step in the timeline, in the past or the future.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Appearance: `good`, `bad`, `busy` or `wait`.
    pub kind: &'static str,
    pub what: String,
    pub at: Option<Moment>,
    /// Duration of the step.
    pub took: Option<String>,
    /// Reason, as a sentence.
    pub why: Option<String>,
}

/// Timeline of a run from its creation to its end, or to the reason of its wait.
pub(super) fn timeline(run: &JobDetails, retry_at: Option<Timestamp>, now: Timestamp) -> Vec<Step> {
    let job = &run.job;
    let step = |kind, what: &str, at: Option<Timestamp>| Step {
        kind,
        what: what.to_owned(),
        at: at.map(|at| Moment::new(at, now)),
        took: None,
        why: None,
    };
    let mut steps = vec![step("wait", "Created", job.created_at)];
    let mut waiting_since = job.created_at;
    if let Some(first) = run.attempts.first().filter(|attempt| attempt.number > 1) {
        let count = first.number - 1;
        steps.push(Step {
            why: Some(format!("The details of {count} earlier attempts are not kept.")),
            ..step("bad", "Attempts", job.started_at)
        });
        waiting_since = None;
    }
    for attempt in &run.attempts {
        let waited = waiting_since.map(|since| attempt.start.0.duration_since(since).as_secs());
        if let Some(seconds) = waited.filter(|seconds| *seconds > 0) {
            steps.push(step("wait", &format!("Waited {}", lasted(seconds)), None));
        }
        let took = attempt.end.0.duration_since(attempt.start.0).as_secs();
        steps.push(Step {
            took: Some(lasted(took)),
            why: Some(attempt.message.clone()).filter(|why| !why.is_empty()),
            ..step("bad", &format!("Attempt {} failed: {}", attempt.number, attempt.reason), Some(attempt.start.0))
        });
        waiting_since = Some(attempt.end.0);
    }
    steps.push(last(run, retry_at, step));
    steps
}

/// Current step.
fn last(
    run: &JobDetails,
    retry_at: Option<Timestamp>,
    step: impl Fn(&'static str, &str, Option<Timestamp>) -> Step,
) -> Step {
    let job = &run.job;
    let why = job.message.clone();
    let began = if run.attempts.is_empty() { job.started_at } else { None };
    let last = match job.phase {
        Phase::Pending => step("wait", "Not queued yet", None),
        Phase::Queued => step("wait", "Waiting for a worker", None),
        Phase::Running => step("busy", &format!("Attempt {} in progress", job.attempts_made + 1), began),
        Phase::Retrying => step("wait", &format!("Attempt {} is next", job.attempts_made + 1), retry_at),
        Phase::Suspended => step("wait", "Suspended", None),
        Phase::Held => step("wait", "Waiting for an approval", None),
        Phase::RollingBack => step("busy", "Documents are being restored", None),
        Phase::Complete => step("good", "Complete", job.finished_at),
        Phase::Failed => {
            let reason = job.reason.as_deref().unwrap_or("Failed");
            step("bad", &format!("Ended as failed: {reason}"), job.finished_at)
        }
    };
    Step { took: job.finished_at.and(job.duration.clone()), why, ..last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use serde_json::{Value, json};

    fn described(status: &Value, retry_at: Option<&str>) -> Vec<String> {
        let metadata = json!({"name": "a", "creationTimestamp": "2026-11-25T10:00:00Z"});
        let details = JobDetails::from(&fixtures::job(json!({"metadata": metadata, "status": status})));
        let now = "2026-11-25T10:10:00Z".parse().unwrap();
        let steps = timeline(&details, retry_at.map(|at| at.parse().unwrap()), now);
        let text = |step: Step| {
            let at = step.at.map(|at| at.exact()[11..19].to_owned());
            [Some(step.kind.to_owned()), Some(step.what), at, step.took, step.why]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" | ")
        };
        steps.into_iter().map(text).collect()
    }

    fn attempt(number: i32, start: &str, end: &str) -> Value {
        let at = |time| format!("2026-11-25T10:{time}Z");
        json!({"number": number, "start": at(start), "end": at(end), "reason": "TargetUnavailable", "message": "away"})
    }

    #[test]
    fn a_timeline_reaches_from_creation_to_the_next_step() {
        let at = "2026-11-25T10:00:01.000000Z";
        let attempts = [attempt(1, "00:01", "00:04"), attempt(2, "00:09", "01:19")];
        for (status, retry_at, expected) in [
            (json!({}), None, &["wait | Not queued yet"][..]),
            (json!({"phase": "Queued"}), None, &["wait | Waiting for a worker"]),
            (json!({"phase": "Running", "startTime": at}), None, &["busy | Attempt 1 in progress | 10:00:01"]),
            (
                json!({"phase": "Running", "startTime": at, "attempts": 2, "attemptHistory": attempts}),
                None,
                &[
                    "wait | Waited 1 s",
                    "bad | Attempt 1 failed: TargetUnavailable | 10:00:01 | 3 s | away",
                    "wait | Waited 5 s",
                    "bad | Attempt 2 failed: TargetUnavailable | 10:00:09 | 1 min 10 s | away",
                    "busy | Attempt 3 in progress",
                ],
            ),
            (
                json!({"phase": "Retrying", "startTime": at, "attempts": 1, "attemptHistory": [attempts[0]]}),
                Some("2026-11-25T10:11:00Z"),
                &[
                    "wait | Waited 1 s",
                    "bad | Attempt 1 failed: TargetUnavailable | 10:00:01 | 3 s | away",
                    "wait | Attempt 2 is next | 10:11:00",
                ],
            ),
            (
                json!({"phase": "Complete", "startTime": at, "completionTime": "2026-11-25T10:02:00Z", "duration": "1m59s"}),
                None,
                &["good | Complete | 10:02:00 | 1m59s"],
            ),
        ] {
            let described = described(&status, retry_at);
            assert_eq!(described[0], "wait | Created | 10:00:00");
            assert_eq!(&described[1..], expected, "{status}");
        }
    }

    #[test]
    fn dropped_attempts_are_mentioned() {
        let status = json!({"phase": "Running", "startTime": "2026-11-25T10:00:01.000000Z", "attempts": 12,
                            "attemptHistory": [attempt(3, "01:00", "01:05")]});
        let described = described(&status, None);
        assert_eq!(described[1], "bad | Attempts | 10:00:01 | The details of 2 earlier attempts are not kept.");
        assert_eq!(described[2], "bad | Attempt 3 failed: TargetUnavailable | 10:01:00 | 5 s | away");
        assert_eq!(described[3], "busy | Attempt 13 in progress");
    }
}
