//! The custom resources `SyncSchedule` and `SyncJob`: types, defaults and validation rules. No I/O.
//!
//! The `///` texts of spec and status fields are the users' reference: they become the
//! descriptions in the CRDs that `kubectl explain` shows.

pub mod conditions;
pub mod duration;
mod rules;
pub mod syncjob;
pub mod syncschedule;

pub use duration::GoDuration;
pub use syncjob::{SyncJob, SyncJobSpec, SyncJobStatus};
pub use syncschedule::{SyncSchedule, SyncScheduleSpec, SyncScheduleStatus};

/// API group of both kinds.
pub const GROUP: &str = "sync.codex.dev";
/// Label on a SyncJob that names the SyncSchedule it belongs to.
pub const SCHEDULE_LABEL: &str = "sync.codex.dev/schedule";
/// Annotation on a SyncJob with the slot it was made for, as RFC 3339.
pub const SLOT_ANNOTATION: &str = "sync.codex.dev/scheduled-at";
/// Annotation on a SyncSchedule that asks for a run now: any new token, or `<token>:Full`.
pub const TRIGGER_ANNOTATION: &str = "sync.codex.dev/trigger";
/// Annotation on a SyncJob that a call made: who called.
pub const TRIGGERED_BY_ANNOTATION: &str = "sync.codex.dev/triggered-by";
/// Annotation on a SyncJob that was made like one that failed: the name of that one.
pub const RETRY_OF_ANNOTATION: &str = "sync.codex.dev/retry-of";

/// Longest text in a status field, in bytes.
pub const MAX_TEXT: usize = 512;

/// Cuts a text to [`MAX_TEXT`] bytes on a character boundary.
#[must_use]
pub fn truncate(text: &str) -> String {
    truncate_to(text, MAX_TEXT)
}

/// Cuts a text to at most `max` bytes on a character boundary, ending in `…` when something was cut.
#[must_use]
pub fn truncate_to(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_on_a_character_boundary() {
        assert_eq!(truncate("short"), "short");
        let cut = truncate(&"ä".repeat(600));
        assert!(cut.len() <= MAX_TEXT);
        assert!(cut.ends_with('…'));
    }
}
