//! Merging conditions: a transition time moves only when the status flips.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::truncate;

/// Sets a condition. Its transition time moves only when its status changes.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: bool,
    reason: &str,
    message: impl AsRef<str>,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let old = conditions.iter().position(|condition| condition.type_ == type_);
    let transition = old
        .map(|index| &conditions[index])
        .filter(|condition| condition.status == status)
        .map_or(Time(seconds(now)), |condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: truncate(message.as_ref()),
        observed_generation: generation,
        last_transition_time: transition,
    };
    match old {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
}

/// Removes a condition that is only present while it holds.
pub fn clear(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|condition| condition.type_ != type_);
}

/// True when the condition exists and its status is True.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Cuts to whole seconds: the API server keeps no finer times in conditions, and a status that reads back
/// differently would be written again and again.
fn seconds(time: Timestamp) -> Timestamp {
    super::from_seconds(time.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_only_when_the_status_flips() {
        let (t1, t2) = (Timestamp::from_second(100).unwrap(), Timestamp::from_second(200).unwrap());
        let mut conditions = Vec::new();
        set(&mut conditions, "Ready", true, "A", "a", Some(1), t1);
        set(&mut conditions, "Ready", true, "B", "b", Some(2), t2);
        assert_eq!((conditions[0].last_transition_time.0, conditions[0].reason.as_str()), (t1, "B"));
        set(&mut conditions, "Ready", false, "C", "c", Some(3), t2);
        assert_eq!((conditions[0].last_transition_time.0, conditions.len()), (t2, 1));
        assert!(!is_true(&conditions, "Ready"));
        clear(&mut conditions, "Ready");
        assert!(conditions.is_empty());
    }
}
