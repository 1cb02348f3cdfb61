//! Entries in `status.active`, and the history of runs.

use serde_json::json;

use super::check;

#[test]
fn an_entry_without_its_sync_job_is_decided_by_who_made_it() {
    check([
        (
            "active: created by this controller and gone before its uid was recorded: a user deleted it",
            json!({"active": ["@09:50 waiting"], "made": ["@09:50"], "now": "09:55"}),
            json!({"active": []}),
        ),
        (
            "active: not created by this controller: a crash came between",
            json!({"active": ["@09:50 waiting"], "made": ["@09:40"], "now": "09:55"}),
            json!({"create": ["@09:50"], "active": ["@09:50 waiting"]}),
        ),
    ]);
}

#[test]
fn ended_runs_are_kept_up_to_their_limits() {
    check([
        (
            "history: the oldest go",
            json!({"spec": {"successfulJobsHistoryLimit": 1}, "jobs": ["@09:30 complete 09:31", "@09:50 complete 09:51", "@09:40 complete 09:41"], "now": "09:55"}),
            json!({"delete": ["@09:30", "@09:40"]}),
        ),
        (
            "history: failed ones have a limit of their own",
            json!({"spec": {"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 1}, "jobs": ["@09:30 failed 09:31", "@09:40 complete 09:41"], "now": "09:55"}),
            json!({"delete": ["@09:40"]}),
        ),
        (
            "history: nothing is kept, and what runs stays",
            json!({"spec": {"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0}, "active": ["@09:50"], "jobs": ["@09:40 failed 09:41", "@09:50 running"], "now": "09:55"}),
            json!({"delete": ["@09:40"], "active": ["@09:50"]}),
        ),
        (
            "history: counted before it goes",
            json!({"spec": {"successfulJobsHistoryLimit": 0}, "active": ["@09:50"], "jobs": ["@09:50 complete 09:51"], "now": "09:55"}),
            json!({"delete": ["@09:50"], "succeeded": 1}),
        ),
    ]);
}

#[test]
fn an_entry_waits_for_its_sync_job_or_is_skipped() {
    check([
        (
            "waiting: suspended, and nothing is cancelled",
            json!({"spec": {"concurrencyPolicy": "Replace", "suspended": true}, "active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 running"], "now": "09:55"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 Suspended", "counted": {"Suspended": 1}, "active": ["@09:40"], "total": 1}),
        ),
        (
            "waiting: suspended, and triggered",
            json!({"spec": {"suspended": true}, "active": ["@trigger waiting"], "now": "09:56"}),
            json!({"create": ["@trigger"], "skipped": 0}),
        ),
        (
            "waiting: the spec got a mistake, and nothing is cancelled",
            json!({"spec": {"concurrencyPolicy": "Replace", "schedule": "0 0 31 2 *"}, "active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 running"], "now": "09:55"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 InvalidSpec", "active": ["@09:40"], "ready": "False InvalidSpec"}),
        ),
        (
            "waiting: later than the deadline",
            json!({"spec": {"concurrencyPolicy": "Replace", "startingDeadline": "4m"}, "active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 cancelling"], "now": "09:55"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 Deadline", "active": ["@09:40"]}),
        ),
        (
            "terminating: it is as one that is gone",
            json!({"active": ["@09:50"], "jobs": ["@09:50 terminating"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@10:00 waiting"]}),
        ),
    ]);
}
