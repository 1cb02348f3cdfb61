//! The conditions of an object that this release cannot read.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::conditions;
use crate::api::conditions::{COMPLETE, FAILED, READY, RECONCILING, STALLED, reasons::UNREADABLE};

/// Next conditions of an object that cannot be read. `None`: the conditions do not change. The conditions of a run
/// that has ended stay, and an active run may continue.
#[must_use]
pub fn mark(
    old: &[Condition],
    kind: &str,
    reason: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    if [COMPLETE, FAILED].into_iter().any(|type_| conditions::is_true(old, type_)) {
        return None;
    }
    let mut next = old.to_vec();
    // Reconcilers set or clear each of these when they can read the object again.
    let types: &[(&str, bool)] =
        if kind == "SyncJob" { &[(RECONCILING, true)] } else { &[(READY, false), (STALLED, true)] };
    for (type_, status) in types {
        conditions::set(&mut next, type_, *status, UNREADABLE, reason, generation, now);
    }
    (next != old).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(old: &[Condition], kind: &str) -> Option<Vec<Condition>> {
        super::mark(old, kind, "why", Some(2), Timestamp::UNIX_EPOCH)
    }

    fn shown(conditions: &[Condition]) -> Vec<(&str, &str, &str)> {
        conditions.iter().map(|found| (found.type_.as_str(), found.status.as_str(), found.reason.as_str())).collect()
    }

    #[test]
    fn the_conditions_say_once_that_an_object_is_unreadable() {
        for (kind, expected) in [
            ("SyncJob", vec![("Suspended", "False", "Active"), ("Reconciling", "True", "Unreadable")]),
            (
                "SyncSchedule",
                vec![
                    ("Suspended", "False", "Active"),
                    ("Ready", "False", "Unreadable"),
                    ("Stalled", "True", "Unreadable"),
                ],
            ),
        ] {
            let mut old = Vec::new();
            conditions::set(&mut old, "Suspended", false, "Active", "", None, Timestamp::UNIX_EPOCH);
            let next = mark(&old, kind).unwrap();
            assert_eq!(shown(&next), expected);
            assert_eq!(mark(&next, kind), None, "they say so already");
        }
    }

    #[test]
    fn the_status_of_a_run_that_has_ended_stays() {
        for type_ in [COMPLETE, FAILED] {
            let mut old = Vec::new();
            conditions::set(&mut old, type_, true, "R", "", None, Timestamp::UNIX_EPOCH);
            assert_eq!(mark(&old, "SyncJob"), None);
        }
    }
}
