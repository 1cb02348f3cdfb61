//! Slots while other runs are active.

use serde_json::json;

use super::{TOKEN, check};

#[test]
fn forbid_skips_a_slot_while_a_run_is_active() {
    check([
        (
            "forbid: not due",
            json!({"active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"active": ["@09:50"]}),
        ),
        (
            "forbid: due",
            json!({"active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Active", "active": ["@09:50"], "counted": {"Active": 1}}),
        ),
        (
            "forbid: it has just ended",
            json!({"active": ["@09:50"], "jobs": ["@09:50 complete 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@10:00 waiting"], "succeeded": 1}),
        ),
        (
            "forbid: it has just failed",
            json!({"active": ["@09:50"], "jobs": ["@09:50 failed 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failed": 1}),
        ),
        (
            "forbid: a user deleted the SyncJob",
            json!({"active": ["@09:50"], "now": "10:00"}),
            json!({"create": ["@10:00"], "succeeded": 0, "failed": 0}),
        ),
        (
            "forbid: it was not made yet",
            json!({"active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@09:50"], "events": ["RunSkipped"], "active": ["@09:50 waiting"]}),
        ),
        (
            "forbid: of two that were not made yet, the first",
            json!({"active": ["@09:40 waiting", "@09:50 waiting"], "now": "09:55"}),
            json!({"create": ["@09:40"]}),
        ),
        (
            "forbid: one waits since it was Replace",
            json!({"active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 running"], "now": "09:55"}),
            json!({}),
        ),
        (
            "forbid: an unknown one runs",
            json!({"jobs": ["@09:40 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "active": ["@09:40"], "total": 1}),
        ),
    ]);
}

#[test]
fn allow_starts_runs_side_by_side() {
    check([
        (
            "allow: due",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@09:50", "@10:00 waiting"]}),
        ),
        (
            "allow: one was not made yet",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@09:50", "@10:00"]}),
        ),
    ]);
}

#[test]
fn replace_cancels_the_active_run_first() {
    check([
        (
            "replace: not due",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:59"}),
            json!({}),
        ),
        (
            "replace: nothing to replace",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "now": "10:00"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "replace: due",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"cancel": ["@09:50"], "active": ["@09:50", "@10:00 waiting"], "skipped": 0}),
        ),
        (
            "replace: the cancellation is in progress",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 cancelling"], "now": "10:00:01"}),
            json!({"active": ["@09:50", "@10:00 waiting"]}),
        ),
        (
            "replace: it is gone",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 failed 10:00:01"], "now": "10:00:02"}),
            json!({"create": ["@10:00"], "active": ["@10:00 waiting"], "failed": 1}),
        ),
        (
            "replace: a replaced run did not fail",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 replaced 10:00:01"], "now": "10:00:02"}),
            json!({"create": ["@10:00"], "replaced": 1, "failed": 0, "total": 2}),
        ),
        (
            "replace: it made it to its end",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 complete 10:00:01"], "now": "10:00:02"}),
            json!({"create": ["@10:00"], "succeeded": 1}),
        ),
        (
            "replace: another slot before it is gone",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 cancelling"], "now": "10:10"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Replaced", "active": ["@09:50", "@10:10 waiting"], "total": 2}),
        ),
        (
            "replace: several ran side by side before",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 running", "@09:50 running"], "now": "10:00"}),
            json!({"cancel": ["@09:40", "@09:50"]}),
        ),
        (
            "replace: they may end side by side when none waits",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 running", "@09:50 running"], "now": "09:55"}),
            json!({}),
        ),
    ]);
}

#[test]
fn max_active_bounds_the_runs_of_allow() {
    check([
        (
            "Allow: fewer than the bound",
            json!({"spec": {"concurrencyPolicy": "Allow", "maxActive": 3}, "active": ["@09:30", "@09:40"], "jobs": ["@09:30 running", "@09:40 running"], "now": "10:00"}),
            json!({"create": ["@10:00"], "activeCount": 3}),
        ),
        (
            "Allow: as many as the bound",
            json!({"spec": {"concurrencyPolicy": "Allow", "maxActive": 2}, "active": ["@09:30", "@09:40"], "jobs": ["@09:30 running", "@09:40 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 MaxActive", "counted": {"MaxActive": 1}, "activeCount": 2}),
        ),
        (
            "Allow: held runs do not count",
            json!({"spec": {"concurrencyPolicy": "Allow", "maxActive": 1}, "active": ["@09:40"], "jobs": ["@09:40 held"], "now": "10:00"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "Allow: a trigger waits at the bound",
            json!({"spec": {"concurrencyPolicy": "Allow", "maxActive": 1}, "trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"handled": null, "ready": "True Scheduled"}),
        ),
        (
            "Forbid: the bound is of no use",
            json!({"spec": {"maxActive": 2}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Active"}),
        ),
    ]);
}
