//! Schedules that are new, suspended, changed or wrong.

use serde_json::json;

use super::check;

#[test]
fn a_suspended_schedule_starts_no_slots() {
    check([
        (
            "suspended: due",
            json!({"spec": {"suspended": true}, "now": "10:00"}),
            json!({"next": null, "requeue": null, "ready": "True Scheduled", "suspended": "True Suspended", "skipped": 0}),
        ),
        (
            "suspended: an active run continues",
            json!({"spec": {"suspended": true}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"active": ["@09:50"]}),
        ),
        (
            "suspended: a run that ends is counted",
            json!({"spec": {"suspended": true}, "active": ["@09:50"], "jobs": ["@09:50 complete 09:59"], "now": "10:00"}),
            json!({"active": [], "succeeded": 1}),
        ),
        (
            "resumed: what was missed stays undone",
            json!({"wasSuspended": true, "now": "10:35"}),
            json!({"since": "@10:35", "next": "@10:40", "skipped": 0, "suspended": "False Active"}),
        ),
        ("resumed: in the second of a slot", json!({"wasSuspended": true, "now": "10:00"}), json!({"next": "@10:10"})),
    ]);
}

#[test]
fn a_changed_schedule_starts_no_slot_of_the_past() {
    check([
        (
            "changed: no slot of the past",
            json!({"was": "1h", "last": "09:00", "now": "09:55"}),
            json!({"since": "@09:55", "next": "@10:00"}),
        ),
        (
            "changed: from cron to an interval",
            json!({"was": "0 * * * *", "last": "09:00", "now": "10:05"}),
            json!({"since": "@10:05", "next": "@10:10"}),
        ),
        (
            "changed: the time zone",
            json!({"spec": {"schedule": "0 11 * * *", "timeZone": "Europe/Berlin"}, "was": "0 11 * * *", "now": "10:05"}),
            json!({"since": "@10:05"}),
        ),
        (
            "changed: nothing that moves slots",
            json!({"spec": {"startingDeadline": "2m", "failedJobsHistoryLimit": 3}, "now": "10:00"}),
            json!({"create": ["@10:00"], "since": "@10:00"}),
        ),
    ]);
}

#[test]
fn a_new_schedule_starts_after_its_creation() {
    check([
        (
            "new: the first slot after the creation",
            json!({"status": "none", "created": "09:55:30", "now": "09:55:31"}),
            json!({"since": "@09:55:30", "next": "@10:00", "last": null}),
        ),
        (
            "new: created in the second of a slot",
            json!({"status": "none", "created": "10:00", "now": "10:00:01"}),
            json!({"next": "@10:10"}),
        ),
        (
            "new: no controller was running",
            json!({"status": "none", "created": "09:55:30", "now": "10:15"}),
            json!({"create": ["@10:10"], "events": ["RunSkipped"], "skipped": 1}),
        ),
        (
            "new: immediate",
            json!({"spec": {"immediate": true}, "status": "none", "created": "09:55:30", "now": "09:55:31"}),
            json!({"create": ["@09:55:30"], "last": "@09:55:30", "next": "@10:00"}),
        ),
        (
            "new: immediate, and a slot is due",
            json!({"spec": {"immediate": true}, "status": "none", "created": "09:55:30", "now": "10:00"}),
            json!({"create": ["@09:55:30"], "events": ["RunSkipped"], "skip": "@10:00 Active"}),
        ),
        (
            "new: immediate and suspended",
            json!({"spec": {"immediate": true, "suspended": true}, "status": "none", "created": "09:55:30", "now": "09:55:31"}),
            json!({"suspended": "True Suspended"}),
        ),
        ("immediate, long after", json!({"spec": {"immediate": true}, "now": "09:55"}), json!({})),
        (
            "the status was lost while a run is active",
            json!({"status": "none", "created": "09:00", "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"events": ["RunSkipped", "RunSkipped"], "active": ["@09:50"], "total": 1, "skip": "@09:50 Active"}),
        ),
    ]);
}

#[test]
fn a_mistake_stalls_a_schedule_until_its_correction() {
    check([
        (
            "invalid: no slots, no retry",
            json!({"spec": {"interval": "banana"}, "now": "10:00"}),
            json!({"requeue": null, "next": null, "ready": "False InvalidSpec", "stalled": "True InvalidSpec"}),
        ),
        (
            "invalid: a run that ends is counted",
            json!({"spec": {"interval": "banana"}, "active": ["@09:50"], "jobs": ["@09:50 complete 09:59"], "now": "10:00"}),
            json!({"succeeded": 1}),
        ),
        (
            "invalid: reported when first seen",
            json!({"spec": {"interval": "banana"}, "status": "none", "now": "10:00"}),
            json!({"events": ["InvalidSchedule"]}),
        ),
        (
            "mended: no slot of the past",
            json!({"was": "?", "now": "10:05"}),
            json!({"ready": "True Scheduled", "stalled": null, "since": "@10:05"}),
        ),
        (
            "edited: by a controller whose clock is behind",
            json!({"was": "?", "last": "10:00", "now": "09:59:58"}),
            json!({"since": "@10:00", "next": "@10:10"}),
        ),
    ]);
}
