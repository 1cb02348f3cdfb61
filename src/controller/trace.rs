//! The root span of a run: from its slot to its end. Sent by who writes the end into the status, which happens once; were it
//! to happen twice, it is the same span.

use jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    api::{SLOT_ANNOTATION, SyncJob, SyncJobStatus, TRACEPARENT_ANNOTATION},
    cluster,
    domain::trace::Root,
    telemetry::traces::{self, Parent, Span},
};

/// `None` while traces are off.
pub(super) fn root_of(job: &SyncJob) -> Option<Root> {
    let caller = job.annotations().get(TRACEPARENT_ANNOTATION).map(String::as_str);
    traces::root_of(job.metadata.uid.as_deref()?, caller)
}

/// The trace's id, where the run is recorded.
pub(super) fn id(root: Option<Root>) -> Option<String> {
    Parent::from(root.map(|root| root.span)).trace_id()
}

/// Sends the root span of a run whose end is in its status. `failed`: reason of a failed run.
pub(super) fn send(root: Option<Root>, job: &SyncJob, status: &SyncJobStatus, failed: Option<&str>) {
    let mut span = Span::root(root);
    if span.is_nothing() {
        return;
    }
    span.set("namespace", job.namespace().unwrap_or_default());
    span.set("name", job.name_any());
    span.set("uid", job.uid().unwrap_or_default());
    if let Some(schedule) = cluster::schedule_name(job) {
        span.set("schedule", schedule.to_owned());
    }
    span.set("attempts", i64::from(status.attempts.unwrap_or(0)));
    span.set("recoveries", i64::from(status.recoveries.unwrap_or(0)));
    let counts = status.counts.unwrap_or_default();
    for (key, count) in [("processed", counts.processed), ("updated", counts.updated), ("failed", counts.failed)] {
        span.set(key, count);
    }
    if let Some(reason) = failed {
        span.fail(reason);
    }
    let (began, ended) = times(job, status);
    span.since(began).end_at(ended);
}

/// Start and end of a run. The start is the slot, or the creation where that was earlier: a call has a resolution of
/// one second.
fn times(job: &SyncJob, status: &SyncJobStatus) -> (Timestamp, Timestamp) {
    let slot = job.annotations().get(SLOT_ANNOTATION).and_then(|slot| slot.parse::<Timestamp>().ok());
    let created = job.metadata.creation_timestamp.as_ref().map(|time| time.0);
    // To the millisecond, where the run was begun at all.
    let took = status.duration.as_ref().and_then(|duration| duration.parse().ok());
    let measured = status.start_time.as_ref().zip(took).and_then(|(start, took)| start.0.checked_add(took).ok());
    let ended = measured.or_else(|| status.completion_time.as_ref().map(|time| time.0)).unwrap_or_else(Timestamp::now);
    (slot.into_iter().chain(created).min().unwrap_or(ended), ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_lasts_from_its_slot_to_its_end() {
        let made = |annotations: serde_json::Value, status: serde_json::Value| {
            let job = crate::fixtures::job(serde_json::json!({
                "metadata": {"name": "users", "creationTimestamp": "2026-11-25T10:00:02Z", "annotations": annotations},
                "spec": {"type": "User", "target": {"collection": "users"}}, "status": status,
            }));
            let (began, ended) = times(&job, job.status.as_ref().unwrap());
            format!("{began} {ended}")
        };
        let slot = serde_json::json!({SLOT_ANNOTATION: "2026-11-25T10:00:00Z"});
        let ran = serde_json::json!({
            "startTime": "2026-11-25T10:00:03.250000Z", "duration": "1m0.5s", "completionTime": "2026-11-25T10:01:03Z",
        });
        let never_ran = serde_json::json!({"completionTime": "2026-11-25T10:00:09Z"});
        assert_eq!(made(slot, ran.clone()), "2026-11-25T10:00:00Z 2026-11-25T10:01:03.75Z");
        assert_eq!(made(serde_json::json!({}), ran), "2026-11-25T10:00:02Z 2026-11-25T10:01:03.75Z");
        assert_eq!(made(serde_json::json!({}), never_ran), "2026-11-25T10:00:02Z 2026-11-25T10:00:09Z");
    }
}
