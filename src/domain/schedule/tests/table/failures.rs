//! Failures of runs and of requests.

use serde_json::json;

use super::{TOKEN, check};

#[test]
fn consecutive_failures_stall_a_schedule() {
    check([
        (
            "failures: without a threshold",
            json!({"failures": 99, "active": ["@09:50"], "jobs": ["@09:50 failed 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 100, "stalled": null}),
        ),
        (
            "failures: one less than the threshold",
            json!({"spec": {"failureThreshold": 3}, "failures": 1, "active": ["@09:50"], "jobs": ["@09:50 failed 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 2, "ready": "True Scheduled"}),
        ),
        (
            "failures: the threshold",
            json!({"spec": {"failureThreshold": 3}, "failures": 2, "active": ["@09:50"], "jobs": ["@09:50 failed 09:59"], "now": "10:00"}),
            json!({"events": ["ScheduleStalled"], "failures": 3, "failed": 1, "ready": "False FailureThresholdExceeded", "stalled": "True FailureThresholdExceeded", "next": null, "requeue": null, "skipped": 0}),
        ),
        (
            "failures: an approval that is missing",
            json!({"spec": {"failureThreshold": 3}, "failures": 2, "active": ["@09:50"], "jobs": ["@09:50 unapproved 09:59"], "now": "09:59:30"}),
            json!({"events": ["ScheduleStalled"], "failures": 3}),
        ),
        (
            "failures: two runs that ended since the last reconciliation",
            json!({"spec": {"failureThreshold": 2}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 failed 09:59", "@09:50 failed 09:58"], "now": "10:00"}),
            json!({"events": ["ScheduleStalled"], "failures": 2}),
        ),
        (
            "failures: a run that completes resets the count",
            json!({"spec": {"failureThreshold": 3}, "failures": 2, "active": ["@09:50"], "jobs": ["@09:50 complete 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 0}),
        ),
        (
            "failures: before the run that completed",
            json!({"spec": {"failureThreshold": 1}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 complete 09:59", "@09:50 failed 09:58"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 0}),
        ),
        (
            "failures: before the last success, and seen after it",
            json!({"spec": {"failureThreshold": 1}, "success": "09:58", "active": ["@09:40"], "jobs": ["@09:40 failed 09:57"], "now": "09:59"}),
            json!({"failures": 0, "failed": 1}),
        ),
        (
            "failures: after the run that completed",
            json!({"spec": {"failureThreshold": 1}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 failed 09:59", "@09:50 complete 09:58"], "now": "10:00"}),
            json!({"events": ["ScheduleStalled"], "failures": 1}),
        ),
        (
            "failures: a run that a user ended",
            json!({"spec": {"failureThreshold": 3}, "failures": 2, "active": ["@09:30", "@09:40", "@09:50"], "jobs": ["@09:30 cancelled 09:41", "@09:40 replaced 09:51", "@09:50 superseded 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 2}),
        ),
    ]);
}

#[test]
fn a_stalled_schedule_starts_triggers_only() {
    check([
        (
            "stalled: no slots, and no further event",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "now": "11:00"}),
            json!({"ready": "False FailureThresholdExceeded", "skipped": 0, "since": "@09:50", "requeue": null}),
        ),
        (
            "stalled: a trigger starts a run",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "trigger": TOKEN, "now": "11:00"}),
            json!({"create": ["@trigger"], "handled": TOKEN, "stalled": "True FailureThresholdExceeded"}),
        ),
        (
            "stalled: the triggered run failed",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "active": ["@trigger"], "jobs": ["@trigger failed 10:59"], "now": "11:00"}),
            json!({"failures": 4, "stalled": "True FailureThresholdExceeded"}),
        ),
        (
            "stalled: the triggered run completed",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "active": ["@trigger"], "jobs": ["@trigger complete 11:04"], "now": "11:05"}),
            json!({"failures": 0, "ready": "True Scheduled", "stalled": null, "since": "@11:05", "next": "@11:10", "skipped": 0}),
        ),
        (
            "stalled: the spec was changed",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "generation": 0, "now": "11:05"}),
            json!({"failures": 0, "ready": "True Scheduled", "stalled": null, "since": "@11:05", "next": "@11:10"}),
        ),
        (
            "stalled: without Redis",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "redis": false, "now": "11:00"}),
            json!({"ready": "False FailureThresholdExceeded", "reconciling": null}),
        ),
    ]);
}

#[test]
fn a_refused_sync_job_is_tried_again_until_its_deadline() {
    check([
        (
            "refused: reported, and tried again",
            json!({"refused": "create", "active": ["@09:50 waiting"], "now": "09:55"}),
            json!({"create": ["@09:50"], "ready": "False CreateFailed", "reconciling": "True CreateFailed", "requeue": 300}),
        ),
        (
            "refused: reported also after a restart",
            json!({"wasRefused": true, "active": ["@09:50 waiting"], "now": "09:55"}),
            json!({"create": ["@09:50"], "ready": "False CreateFailed"}),
        ),
        (
            "refused: made at last",
            json!({"wasRefused": true, "active": ["@09:50 waiting"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"ready": "True Scheduled", "reconciling": null}),
        ),
        (
            "refused: the next slot takes its place",
            json!({"refused": "create", "active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@10:00"], "events": ["RunSkipped"], "skip": "@09:50 CreateFailed", "counted": {"CreateFailed": 1}, "total": 1, "active": ["@10:00 waiting"], "ready": "False CreateFailed"}),
        ),
        (
            "refused: within the deadline",
            json!({"refused": "create", "spec": {"startingDeadline": "3m"}, "active": ["@09:50 waiting"], "now": "09:52"}),
            json!({"create": ["@09:50"], "requeue": 60}),
        ),
        (
            "refused: at the deadline",
            json!({"refused": "create", "spec": {"startingDeadline": "3m"}, "active": ["@09:50 waiting"], "now": "09:53"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 CreateFailed", "active": [], "total": 0, "ready": "False CreateFailed"}),
        ),
        (
            "refused: a deadline longer than the interval",
            json!({"refused": "create", "spec": {"startingDeadline": "1h"}, "active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@09:50"], "events": ["RunSkipped"], "skip": "@10:00 CreateFailed"}),
        ),
        (
            "refused: Replace",
            json!({"refused": "create", "spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@10:00"], "events": ["RunSkipped"], "skip": "@09:50 CreateFailed"}),
        ),
        (
            "refused: suspended meanwhile",
            json!({"refused": "create", "spec": {"suspended": true}, "active": ["@09:50 waiting"], "now": "09:55"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 Suspended", "ready": "True Scheduled"}),
        ),
    ]);
}

#[test]
fn other_failures_are_reported() {
    check([
        (
            "another request fails",
            json!({"refused": "other", "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"ready": "False ReconciliationFailed", "reconciling": "True ReconciliationFailed"}),
        ),
        (
            "another request fails: slots are run",
            json!({"refused": "other", "now": "10:00"}),
            json!({"create": ["@10:00"], "ready": "False ReconciliationFailed"}),
        ),
        (
            "not allowed: no slots, and one event",
            json!({"not allowed": "why", "now": "10:00"}),
            json!({"requeue": null, "next": null, "ready": "False NotAllowed", "stalled": "True NotAllowed", "events": ["NotAllowed"]}),
        ),
        (
            "not allowed: a waiting entry is skipped, and a run that ends is counted",
            json!({"not allowed": "why", "active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 complete 09:59"], "now": "10:00"}),
            json!({"events": ["RunSkipped", "NotAllowed"], "skip": "@09:50 NotAllowed", "succeeded": 1, "active": []}),
        ),
        (
            "no Redis: SyncJobs are created",
            json!({"redis": false, "now": "10:00"}),
            json!({"create": ["@10:00"], "ready": "False QueueUnavailable", "reconciling": "True QueueUnavailable"}),
        ),
        (
            "no Redis: suspended",
            json!({"spec": {"suspended": true}, "redis": false, "now": "10:00"}),
            json!({"ready": "False QueueUnavailable", "suspended": "True Suspended"}),
        ),
    ]);
}
