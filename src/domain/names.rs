//! Names of SyncJobs. The name is the lock: two controllers that start the same slot ask for the same name.

use jiff::Timestamp;

/// Name of the SyncJob for a slot: `<schedule>-<slot in seconds since the epoch>`.
#[must_use]
pub fn job_for_slot(schedule: &str, slot: Timestamp) -> String {
    format!("{schedule}-{}", slot.as_second())
}

/// Name of the SyncJob for a trigger token: `<schedule>-t<hash of the token>`.
#[must_use]
pub fn job_for_trigger(schedule: &str, token: &str) -> String {
    format!("{schedule}-t{:09x}", super::stable_hash(token) >> 28)
}

/// Name of the SyncJob that retries a failed one: `<name>-r<hash of its uid>`. The name may be truncated.
#[must_use]
pub fn job_for_retry(name: &str, uid: &str) -> String {
    let name: String = name.chars().take(240).collect();
    format!("{name}-r{:09x}", super::stable_hash(uid) >> 28)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_after_its_schedule_and_slot() {
        let slot = Timestamp::from_second(1_795_477_200).unwrap();
        assert_eq!(job_for_slot("user-sync", slot), "user-sync-1795477200");
    }

    #[test]
    fn the_longest_schedule_name_gives_a_valid_label_value() {
        let slot = Timestamp::from_second(9_999_999_999).unwrap();
        assert_eq!(job_for_slot(&"a".repeat(52), slot).len(), 63);
        assert_eq!(job_for_trigger(&"a".repeat(52), "2026-11-24").len(), 63);
    }

    #[test]
    fn a_trigger_has_the_same_name_in_every_release() {
        assert_eq!(job_for_trigger("user-sync", "now"), job_for_trigger("user-sync", "now"));
        assert_eq!(job_for_trigger("user-sync", ""), "user-sync-tcbf29ce48");
    }
}
