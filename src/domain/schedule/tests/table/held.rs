//! Runs that wait for an approval.

use serde_json::json;

use super::{TOKEN, check};

#[test]
fn a_held_run_blocks_no_other_run() {
    check([
        (
            "held: it does not keep the next slot from starting",
            json!({"active": ["@09:50"], "jobs": ["@09:50 held"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@09:50", "@10:00 waiting"], "activeCount": 1, "total": 2}),
        ),
        (
            "held: it is not replaced",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50"], "jobs": ["@09:50 held"], "now": "10:00"}),
            json!({"create": ["@10:00"], "activeCount": 1}),
        ),
        (
            "held: another run is concurrent with Allow",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "active": ["@09:50"], "jobs": ["@09:50 held"], "now": "10:00"}),
            json!({"create": ["@10:00"], "activeCount": 1}),
        ),
        (
            "held: it does not keep a trigger from starting",
            json!({"trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 held"], "now": "09:55"}),
            json!({"create": ["@trigger"], "handled": TOKEN}),
        ),
        (
            "held: another run is active",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 held", "@09:50 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Active", "activeCount": 1}),
        ),
        (
            "held: the active run is replaced",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:40", "@09:50"],
                   "jobs": ["@09:40 held", "@09:50 running"], "now": "10:00"}),
            json!({"cancel": ["@09:50"], "activeCount": 2}),
        ),
        (
            "held: an approved run is active",
            json!({"active": ["@09:50"], "jobs": ["@09:50 approved"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Active", "activeCount": 1}),
        ),
        (
            "held: it is not history",
            json!({"spec": {"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0}, "active": ["@09:50"],
                   "jobs": ["@09:50 held"], "now": "09:55"}),
            json!({"active": ["@09:50"], "activeCount": 0}),
        ),
        (
            "held: an unknown run is added to active, and blocks no other run",
            json!({"jobs": ["@09:50 held"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@09:50", "@10:00 waiting"], "total": 2}),
        ),
    ]);
}

#[test]
fn a_later_run_supersedes_a_held_one() {
    check([
        (
            "held: a later active run does not supersede it",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 held", "@09:50 running"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: a later run that has failed leaves it",
            json!({"active": ["@09:40"], "jobs": ["@09:40 held", "@09:50 failed 09:51"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: a later run that is complete supersedes it, and may be deleted",
            json!({"spec": {"successfulJobsHistoryLimit": 0}, "active": ["@09:40", "@09:50"],
                   "jobs": ["@09:40 held", "@09:50 complete 09:51"], "now": "09:55"}),
            json!({"supersede": ["@09:40 by @09:50"], "delete": ["@09:50"], "succeeded": 1}),
        ),
        (
            "held: an earlier run that is complete leaves it",
            json!({"active": ["@09:50"], "jobs": ["@09:40 complete 09:54", "@09:50 held"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: the newest supersedes all others",
            json!({"active": ["@09:30", "@09:40", "@09:50"], "jobs": ["@09:40 held", "@09:30 held", "@09:50 held"], "now": "09:55"}),
            json!({"supersede": ["@09:40 by @09:50", "@09:30 by @09:50"], "activeCount": 0}),
        ),
        (
            "held: one that is being ended is not ended again",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 ending", "@09:50 held"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: one that is being ended supersedes none",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 held", "@09:50 ending"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: one that was approved is not superseded",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 approved", "@09:50 held"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: superseded while the schedule is suspended",
            json!({"spec": {"suspended": true}, "active": ["@09:40"], "jobs": ["@09:40 held", "@09:50 complete 09:51"], "now": "09:55"}),
            json!({"supersede": ["@09:40 by @09:50"]}),
        ),
        (
            "held: a superseded run is no failed one",
            json!({"active": ["@09:40"], "jobs": ["@09:40 superseded 09:51"], "now": "09:55"}),
            json!({"active": [], "failed": 0, "replaced": 1}),
        ),
    ]);
}

#[test]
fn the_status_names_the_run_that_was_held_last() {
    check([
        (
            "held: a run waits for an approval",
            json!({"active": ["@09:50"], "jobs": ["@09:50 held 09:58"], "now": "09:59"}),
            json!({"held": "@09:50 400 guard.maxMissing allows 50"}),
        ),
        (
            "held: the one that was held last",
            json!({"held": "@09:40", "active": ["@09:40", "@09:50"], "jobs": ["@09:40 held 09:58", "@09:50 held 09:59"], "now": "09:59:30"}),
            json!({"supersede": ["@09:40 by @09:50"], "held": "@09:50 400 guard.maxMissing allows 50"}),
        ),
        (
            "held: it continues after an approval",
            json!({"held": "@09:50", "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:59"}),
            json!({"held": null}),
        ),
        (
            "held: not approved",
            json!({"held": "@09:50", "active": ["@09:50"], "jobs": ["@09:50 unapproved 09:58"], "now": "09:59"}),
            json!({"held": null, "failed": 1}),
        ),
    ]);
}
