//! Slots that are due.

use serde_json::json;

use super::check;

#[test]
fn a_slot_that_is_due_starts_a_run() {
    check([
        ("a second before the slot", json!({"now": "09:59:59"}), json!({"requeue": 1, "next": "@10:00"})),
        (
            "at the slot",
            json!({"now": "10:00"}),
            json!({"create": ["@10:00"], "last": "@10:00", "next": "@10:10", "requeue": 600, "total": 1}),
        ),
        ("a little late", json!({"now": "10:00:03"}), json!({"create": ["@10:00"], "requeue": 597})),
        (
            "nearly at the next one",
            json!({"now": "10:09:59"}),
            json!({"create": ["@10:00"], "requeue": 1, "skipped": 0}),
        ),
        ("handled already", json!({"now": "10:00:03", "last": "10:00"}), json!({"requeue": 597})),
        (
            "two are due",
            json!({"now": "10:10"}),
            json!({"create": ["@10:10"], "events": ["RunSkipped"], "skip": "@10:00 CatchUp", "counted": {"CatchUp": 1}}),
        ),
        (
            "six are due",
            json!({"now": "10:50:01"}),
            json!({"create": ["@10:50"], "events": ["RunSkipped"], "skip": "@10:40 CatchUp", "skipped": 5}),
        ),
        (
            "the clock was set forward by an hour",
            json!({"now": "10:59:30", "last": "09:50"}),
            json!({"create": ["@10:50"], "events": ["RunSkipped"], "skipped": 5}),
        ),
        (
            "the clock was set back by an hour",
            json!({"now": "09:00:30", "last": "10:00"}),
            json!({"next": "@09:10", "requeue": 570, "events": ["ClockSkew"]}),
        ),
        (
            "the clock is behind that of the leader before",
            json!({"now": "09:59:35", "last": "10:00"}),
            json!({"next": "@10:10", "requeue": 625}),
        ),
        (
            "the clock was set back to before the creation",
            json!({"now": "08:00", "last": "09:50"}),
            json!({"next": "@08:10", "requeue": 600, "events": ["ClockSkew"]}),
        ),
    ]);
}

#[test]
fn a_slot_of_a_cron_expression_starts_a_run() {
    check([
        (
            "cron: before the slot",
            json!({"spec": {"schedule": "*/10 * * * *"}, "now": "09:59:59"}),
            json!({"requeue": 1, "next": "@10:00"}),
        ),
        (
            "cron: at the slot",
            json!({"spec": {"schedule": "*/10 * * * *"}, "now": "10:00"}),
            json!({"create": ["@10:00"], "next": "@10:10"}),
        ),
        (
            "cron: three are due",
            json!({"spec": {"schedule": "*/10 * * * *"}, "now": "10:20"}),
            json!({"create": ["@10:20"], "events": ["RunSkipped"], "skip": "@10:10 CatchUp", "skipped": 2}),
        ),
        (
            "cron: by the clocks of a zone",
            json!({"spec": {"schedule": "0 11 * * *", "timeZone": "Europe/Berlin"}, "now": "10:00"}),
            json!({"create": ["@10:00"], "requeue": 86400}),
        ),
        ("cron: not today", json!({"spec": {"schedule": "0 10 1 * *"}, "now": "10:00"}), json!({"requeue": 604_800})),
        (
            "cron: a nickname",
            json!({"spec": {"schedule": "@hourly"}, "now": "10:00"}),
            json!({"create": ["@10:00"], "next": "@11:00"}),
        ),
    ]);
}

#[test]
fn a_slot_is_skipped_after_its_starting_deadline() {
    check([
        (
            "deadline: in time",
            json!({"spec": {"startingDeadline": "1m"}, "now": "10:00:59"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "deadline: just in time",
            json!({"spec": {"startingDeadline": "1m"}, "now": "10:01"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "deadline: too late",
            json!({"spec": {"startingDeadline": "1m"}, "now": "10:01:01"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Deadline", "counted": {"Deadline": 1}, "next": "@10:10"}),
        ),
        (
            "deadline: reported once",
            json!({"spec": {"startingDeadline": "1m"}, "now": "10:01:02", "last": "10:00"}),
            json!({}),
        ),
        (
            "deadline: longer than the interval",
            json!({"spec": {"startingDeadline": "1h"}, "now": "10:25"}),
            json!({"create": ["@10:20"], "events": ["RunSkipped"], "skipped": 2}),
        ),
        (
            "deadline: several missed, and the newest too late",
            json!({"spec": {"startingDeadline": "1s"}, "now": "10:25"}),
            json!({"events": ["RunSkipped", "RunSkipped"], "counted": {"CatchUp": 2, "Deadline": 1}, "skip": "@10:20 Deadline"}),
        ),
    ]);
}

#[test]
fn catch_up_none_skips_slots_that_were_missed() {
    check([
        (
            "no catching up: on time",
            json!({"spec": {"catchUp": "None"}, "now": "10:01"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "no catching up: missed",
            json!({"spec": {"catchUp": "None"}, "now": "10:01:01"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 CatchUp"}),
        ),
        (
            "no catching up: back on time for the newest",
            json!({"spec": {"catchUp": "None"}, "now": "10:20:05"}),
            json!({"create": ["@10:20"], "events": ["RunSkipped"], "skipped": 2}),
        ),
        (
            "no catching up: all missed",
            json!({"spec": {"catchUp": "None"}, "now": "10:25"}),
            json!({"events": ["RunSkipped", "RunSkipped"], "skipped": 3, "skip": "@10:20 CatchUp"}),
        ),
    ]);
}

#[test]
fn a_jitter_delays_the_start_of_a_slot() {
    // A run of this uid starts 201 s after its slot.
    check([
        ("jitter: at the slot", json!({"spec": {"jitter": "5m"}, "now": "10:00"}), json!({"next": "@10:03:21"})),
        (
            "jitter: at its start",
            json!({"spec": {"jitter": "5m"}, "now": "10:05"}),
            json!({"create": ["@10:00"], "last": "@10:00"}),
        ),
        (
            "jitter: the deadline counts from the start",
            json!({"spec": {"jitter": "5m", "startingDeadline": "4m"}, "now": "10:05"}),
            json!({"create": ["@10:00"]}),
        ),
    ]);
}
