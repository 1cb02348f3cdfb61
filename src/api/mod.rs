//! The custom resources `SyncSchedule`, `SyncJob` and `SyncAlert`: types, defaults and validation rules. No I/O.
//!
//! The `///` texts of spec and status fields are the users' reference: they become the
//! descriptions in the CRDs that `kubectl explain` shows.

pub mod conditions;
pub mod duration;
pub mod guard;
mod rules;
pub mod source;
pub mod syncalert;
pub mod syncjob;
pub mod syncschedule;

pub use duration::GoDuration;
pub use syncalert::{SyncAlert, SyncAlertSpec, SyncAlertStatus};
pub use syncjob::{SyncJob, SyncJobSpec, SyncJobStatus};
pub use syncschedule::{SyncSchedule, SyncScheduleSpec, SyncScheduleStatus};

/// Fields that this release of the operator does not know.
pub type Unknown = serde_json::Map<String, serde_json::Value>;

/// API group of all kinds.
pub const GROUP: &str = "sync.codex.dev";
/// Label on a SyncJob that names the SyncSchedule it belongs to.
pub const SCHEDULE_LABEL: &str = "sync.codex.dev/schedule";
/// Annotation on a SyncJob with its slot, as RFC 3339.
pub const SLOT_ANNOTATION: &str = "sync.codex.dev/scheduled-at";
/// Annotation on a SyncJob with the time, as RFC 3339, until which it may be created for its slot. A SyncJob that was
/// created later comes from a backup.
pub const STARTING_DEADLINE_ANNOTATION: &str = "sync.codex.dev/starting-deadline";
/// Annotation on a SyncJob that was cancelled and replaced by another one: the name of that SyncJob.
pub const REPLACED_BY_ANNOTATION: &str = "sync.codex.dev/replaced-by";
/// Annotation on a held SyncJob: the number of documents that a user allows the run to mark, delete or change.
pub const APPROVE_ANNOTATION: &str = "sync.codex.dev/approve";
/// Annotation on a held SyncJob that was superseded: the name of the later SyncJob.
pub const SUPERSEDED_BY_ANNOTATION: &str = "sync.codex.dev/superseded-by";
/// Annotation on a SyncSchedule that triggers a run: any new token, or `<token>:Full`.
pub const TRIGGER_ANNOTATION: &str = "sync.codex.dev/trigger";
/// Annotation on a SyncJob that an HTTP call created: the name of the caller.
pub const TRIGGERED_BY_ANNOTATION: &str = "sync.codex.dev/triggered-by";
/// Annotation on a SyncJob with the position of its creator in a trace, as a `traceparent` of W3C Trace Context.
pub const TRACEPARENT_ANNOTATION: &str = "sync.codex.dev/traceparent";
/// Annotation on a suspended object: the reason that a user of the dashboard gave.
pub const SUSPEND_NOTE_ANNOTATION: &str = "sync.codex.dev/suspend-note";
/// Annotation on a SyncJob that retries a failed one: the name of the failed SyncJob.
pub const RETRY_OF_ANNOTATION: &str = "sync.codex.dev/retry-of";

/// Annotation on a SyncAlert that requests a test message: any new token.
pub const TEST_ANNOTATION: &str = "sync.codex.dev/test";
/// Annotation on a Secret with the destinations, separated by commas, for which it may be used.
pub const HOSTS_ANNOTATION: &str = "sync.codex.dev/hosts";
/// Annotation on a Secret with the operations of GraphQL, separated by commas, for which it may be used.
pub const OPERATIONS_ANNOTATION: &str = "sync.codex.dev/graphql-operations";

/// Longest text in a status field, in bytes of its JSON.
pub const MAX_TEXT: usize = 512;

/// Cuts a text to [`MAX_TEXT`] bytes with [`truncate_to`].
#[must_use]
pub fn truncate(text: &str) -> String {
    truncate_to(text, MAX_TEXT)
}

/// Cuts a text to at most `max` bytes on a character boundary, ending in `…` when something was cut. Control characters
/// become spaces, because each takes six bytes in JSON; quotes and backslashes count as the two that they take.
#[must_use]
pub fn truncate_to(text: &str, max: usize) -> String {
    const END: char = '…';
    let (mut cut, mut size, mut fits) = (String::new(), 0, 0);
    for character in text.chars().map(|character| if character.is_control() { ' ' } else { character }) {
        size += if matches!(character, '"' | '\\') { 2 } else { character.len_utf8() };
        if size > max {
            cut.truncate(fits);
            cut.push(END);
            return cut;
        }
        cut.push(character);
        if size + END.len_utf8() <= max {
            fits = cut.len();
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_on_a_character_boundary() {
        for (text, expected) in [
            ("short", "short"),
            ("exactly 10", "exactly 10"),
            ("more than 10", "more th…"),
            ("ääääääääää", "äää…"),
            ("a\u{0}\nb\u{85}", "a  b "),
            (r#"""""""""""#, r#""""…"#),
        ] {
            assert_eq!(truncate_to(text, 10), expected, "{text:?}");
        }
    }

    #[test]
    fn no_text_takes_more_room_in_json_than_it_may() {
        for character in ["x", "ä", "\u{1}", "\"", "\\", "\u{85}", "😀", "\u{2028}"] {
            let cut = truncate(&character.repeat(600));
            assert!(serde_json::to_string(&cut).unwrap().len() <= MAX_TEXT + 2, "{character:?}");
            assert!(cut.ends_with('…'));
        }
    }
}
