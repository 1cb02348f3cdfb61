//! Health of schedules, as a number of schedules in each state: a metric must not have their names.

use jiff::Timestamp;
use kube::ResourceExt;

use super::Parsed;
use crate::{
    api::{self, SyncSchedule},
    domain::{conditions, elapsed},
};

/// States of health of a schedule.
pub const HEALTH_STATES: [&str; 4] = [OK, OVERDUE, SUSPENDED, INVALID];
/// State of a schedule of which a run completed lately, or none was due.
const OK: &str = "ok";
/// State of a schedule of which no run completed for twice the time between its slots.
const OVERDUE: &str = "overdue";
/// State of a schedule whose `spec.suspended` is true.
const SUSPENDED: &str = "suspended";
/// State of a schedule that starts no runs, because its spec is invalid.
const INVALID: &str = "invalid";

/// Counts the schedules in each state, in the order of [`HEALTH_STATES`].
#[must_use]
pub fn count<'a>(schedules: impl IntoIterator<Item = &'a SyncSchedule>, now: Timestamp) -> [(&'static str, u64); 4] {
    let mut counts = HEALTH_STATES.map(|health| (health, 0));
    for schedule in schedules {
        let health = health(schedule, now);
        counts.iter_mut().filter(|(known, _)| *known == health).for_each(|(_, count)| *count += 1);
    }
    counts
}

/// Returns the state of a schedule. A schedule is overdue when two slots have been due since a run last completed, and
/// that was longer ago than twice the least time between slots. The first condition alone would be true too early where
/// a run takes nearly as long as the interval. The second alone would be true on Sunday where slots are on working
/// days. The time counts from the creation or the last resumption, if that was later.
fn health(schedule: &SyncSchedule, now: Timestamp) -> &'static str {
    if schedule.spec.suspended {
        return SUSPENDED;
    }
    let status = schedule.status.as_ref();
    let resumed = status.and_then(|status| conditions::find(&status.conditions, api::conditions::SUSPENDED));
    let since = [
        schedule.creation_timestamp(),
        status.and_then(|status| status.last_successful_time.clone()),
        resumed.map(|condition| condition.last_transition_time.clone()),
    ];
    let since = since.into_iter().flatten().max().map_or(now, |time| time.0);
    // This is the case for most schedules, and to parse a cron expression takes longer than all other steps.
    let no_slot_came = status.is_some_and(|status| {
        let is_past = status.slots_since.as_ref().is_some_and(|slot| slot.0 <= since);
        is_past && status.next_schedule_time.as_ref().is_some_and(|next| next.0 > now)
    });
    if no_slot_came {
        return OK;
    }
    let Ok(parsed) = Parsed::new(&schedule.spec) else { return INVALID };
    let slots = parsed.slots(schedule.metadata.uid.as_deref().unwrap_or_default());
    let is_long = elapsed(since, now) > 2 * parsed.shortest_gap();
    if is_long && slots.due(since, now).is_some_and(|due| due.count >= 2) { OVERDUE } else { OK }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A schedule that was created on Monday, 23 November 2026, at 00:00.
    fn schedule(spec: &Value, status: &Value) -> SyncSchedule {
        let metadata = json!({"name": "s", "uid": "u", "creationTimestamp": "2026-11-23T00:00:00Z"});
        crate::fixtures::schedule(json!({"metadata": metadata, "spec": spec, "status": status}))
    }

    fn health_at(spec: &Value, status: &Value, now: &str) -> &'static str {
        health(&schedule(spec, status), format!("2026-11-{now}:00Z").parse().unwrap())
    }

    fn success(at: &str) -> Value {
        json!({"lastSuccessfulTime": format!("2026-11-{at}:00Z")})
    }

    #[test]
    fn a_schedule_is_overdue_after_twice_its_interval() {
        let spec = json!({"interval": "20m"});
        assert_eq!(health_at(&spec, &success("23T10:01"), "23T10:40"), OK, "the run of 10:40 has just begun");
        assert_eq!(health_at(&spec, &success("23T10:01"), "23T10:41"), OK);
        assert_eq!(health_at(&spec, &success("23T10:01"), "23T10:42"), OVERDUE);
        assert_eq!(health_at(&spec, &json!({}), "23T00:40"), OK, "none was to complete yet");
        assert_eq!(health_at(&spec, &json!({}), "23T00:41"), OVERDUE, "none ever completed");
    }

    #[test]
    fn what_the_status_says_of_slots_changes_nothing() {
        let status = |slots_since: &str, next: &str| {
            json!({"lastSuccessfulTime": "2026-11-23T10:01:00Z", "slotsSince": format!("2026-11-23T{slots_since}:00Z"),
                   "nextScheduleTime": format!("2026-11-23T{next}:00Z")})
        };
        let spec = json!({"interval": "20m"});
        assert_eq!(health_at(&spec, &status("10:00", "10:20"), "23T10:10"), OK);
        assert_eq!(health_at(&spec, &status("10:40", "11:00"), "23T10:42"), OVERDUE, "both slots were skipped");
        assert_eq!(health_at(&spec, &status("10:00", "10:20"), "23T10:42"), OVERDUE, "no controller was running");
    }

    #[test]
    fn where_slots_are_not_evenly_spread_two_of_them_must_have_come() {
        let spec = json!({"schedule": "0 9 * * 1-5"});
        assert_eq!(health_at(&spec, &success("27T09:05"), "29T23:00"), OK, "Sunday");
        assert_eq!(health_at(&spec, &success("27T09:05"), "30T10:00"), OK, "Monday's run may not have ended");
        assert_eq!(health_at(&spec, &success("26T09:05"), "30T09:01"), OVERDUE, "Friday's run failed");
    }

    #[test]
    fn a_suspended_or_just_resumed_schedule_is_not_overdue() {
        let condition = json!({"type": "Suspended", "status": "False", "reason": "Active", "message": "",
            "lastTransitionTime": "2026-11-25T10:00:00Z"});
        let status = json!({"lastSuccessfulTime": "2026-11-23T10:00:00Z", "conditions": [condition]});
        assert_eq!(
            health_at(&json!({"interval": "20m", "suspended": true}), &success("23T10:00"), "25T10:00"),
            SUSPENDED
        );
        assert_eq!(health_at(&json!({"interval": "20m"}), &status, "25T10:40"), OK);
        assert_eq!(health_at(&json!({"interval": "20m"}), &status, "25T10:41"), OVERDUE);
    }

    #[test]
    fn each_schedule_is_counted_once() {
        let specs = [json!({"interval": "20m"}), json!({"interval": "soon"}), json!({"suspended": true}), json!({})];
        let schedules = specs.map(|spec| schedule(&spec, &json!({})));
        let counts = count(&schedules, "2026-11-23T00:30:00Z".parse().unwrap());
        assert_eq!(counts, [("ok", 2), ("overdue", 0), ("suspended", 1), ("invalid", 1)]);
    }
}
