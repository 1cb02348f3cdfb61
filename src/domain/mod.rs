//! Pure decisions: no clients, and the clock is an argument.

pub mod alert;
pub mod backoff;
pub mod clock;
pub mod conditions;
pub mod cron;
pub mod destination;
pub mod egress;
pub mod failure;
pub mod field_conflict;
pub mod free_form;
pub mod graphql;
pub mod guard;
pub mod installation;
pub mod job;
pub mod lease;
pub mod merge_patch;
pub mod names;
pub mod needs;
pub mod policy;
pub mod rate_limit;
pub mod retention;
pub mod retry;
pub mod run;
pub mod run_quota;
pub mod schedule;
pub mod secret_scope;
pub mod slots;
pub mod source;
pub mod trace;
pub mod unreadable;
pub mod url_template;

use jiff::Timestamp;

/// Kubernetes event about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEvent {
    /// True for a Warning, false for a Normal event.
    pub warning: bool,
    /// Unique CamelCase reason.
    pub reason: &'static str,
    /// A sentence. Holds no secret and no document content.
    pub text: String,
}

impl ObjectEvent {
    /// A Normal event.
    pub fn normal(reason: &'static str, text: impl Into<String>) -> Self {
        Self { warning: false, reason, text: text.into() }
    }

    /// A Warning event.
    pub fn warning(reason: &'static str, text: impl Into<String>) -> Self {
        Self { warning: true, reason, text: text.into() }
    }
}

/// A hash that is the same in every process and release.
#[must_use]
pub fn stable_hash(text: &str) -> u64 {
    // FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/): std's hasher may change between releases.
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Milliseconds since the Unix epoch as a time; out-of-range values are clamped.
#[must_use]
pub fn from_millis(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// Seconds since the Unix epoch as a time; out-of-range values are clamped.
#[must_use]
pub fn from_seconds(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// The time from `from` to `to`; zero when `to` is earlier.
#[must_use]
pub fn elapsed(from: Timestamp, to: Timestamp) -> std::time::Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}
