//! Triggers.

use serde_json::json;

use super::{TOKEN, check};

#[test]
fn a_token_starts_one_run() {
    check([
        (
            "trigger: a new token",
            json!({"trigger": TOKEN, "now": "09:55"}),
            json!({"create": ["@trigger"], "handled": TOKEN, "last": "@09:50", "total": 1}),
        ),
        ("trigger: the same token", json!({"trigger": TOKEN, "handled": TOKEN, "now": "09:55"}), json!({"total": 0})),
        ("trigger: an empty token", json!({"trigger": "", "now": "09:55"}), json!({"handled": null})),
        (
            "trigger: while suspended",
            json!({"spec": {"suspended": true}, "trigger": TOKEN, "now": "10:00"}),
            json!({"create": ["@trigger"], "handled": TOKEN, "next": null}),
        ),
        (
            "trigger: with a slot",
            json!({"trigger": TOKEN, "now": "10:00"}),
            json!({"create": ["@trigger"], "events": ["RunSkipped"], "skip": "@10:00 Active"}),
        ),
        (
            "trigger: with a slot, allowed",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "trigger": TOKEN, "now": "10:00"}),
            json!({"create": ["@trigger", "@10:00"], "last": "@10:00"}),
        ),
        (
            "trigger: a token of before, whose run is gone",
            json!({"trigger": TOKEN, "handled": "later", "handledBefore": ["@trigger"], "now": "09:55"}),
            json!({"handled": TOKEN, "total": 0}),
        ),
        (
            "trigger: waits for the active run",
            json!({"trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"handled": null, "ready": "True Scheduled"}),
        ),
        (
            "trigger: has waited",
            json!({"trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 complete 09:54"], "now": "09:55"}),
            json!({"create": ["@trigger"], "handled": TOKEN}),
        ),
        (
            "trigger: concurrent with an active run",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"create": ["@trigger"]}),
        ),
        (
            "trigger: replaces an active run",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"cancel": ["@09:50"], "handled": TOKEN, "active": ["@09:50", "@trigger waiting"]}),
        ),
        (
            "trigger: its run was not made yet",
            json!({"trigger": TOKEN, "handled": TOKEN, "active": ["@trigger waiting"], "now": "09:55"}),
            json!({"create": ["@trigger"]}),
        ),
        (
            "trigger: used before another token",
            json!({"trigger": TOKEN, "handled": "other", "jobs": ["@trigger complete 09:20"], "now": "09:55"}),
            json!({"handled": TOKEN, "total": 0}),
        ),
        (
            "trigger: counted as any run",
            json!({"trigger": TOKEN, "handled": TOKEN, "active": ["@trigger"], "jobs": ["@trigger failed 09:54"], "now": "09:55"}),
            json!({"failed": 1, "active": []}),
        ),
    ]);
}
