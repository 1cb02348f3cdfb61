//! Durations as Kubernetes users write them.

use std::{fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Longest accepted text. Long enough for every sensible duration, and short enough
/// that no number in it can overflow [`Duration`].
const MAX_LEN: usize = 16;

/// A Go-style duration such as `20m`, `1h30m` or `500ms`, kept as the user wrote it.
///
/// [`GoDuration::parse`] parses the text, and not the deserialisation: an object that was stored under an older and
/// laxer CRD is still read, and its status reports the invalid duration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GoDuration(String);

/// Error of a text that is no positive Go-style duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration: write a number and a unit (ms, s, m, h), such as 20m or 1h30m")]
pub struct InvalidDuration(String);

impl GoDuration {
    /// Creates a duration from a text, without a check.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text as the user wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses the text, to the nanosecond.
    ///
    /// # Errors
    /// When the text is longer than 16 bytes, is no Go duration, or is negative.
    pub fn parse(&self) -> Result<Duration, InvalidDuration> {
        let invalid = || InvalidDuration(self.0.chars().take(MAX_LEN).collect());
        if self.0.is_empty() || self.0.len() > MAX_LEN {
            return Err(invalid());
        }
        match self.0.parse::<kube::core::Duration>() {
            Ok(parsed) if !parsed.is_negative() => Ok(parsed.into()),
            _ => Err(invalid()),
        }
    }
}

impl From<Duration> for GoDuration {
    /// Writes the shortest exact form down to milliseconds: `1h30m`, `20m`, `1.5s`, `0s`.
    fn from(duration: Duration) -> Self {
        let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
        let seconds = duration.as_secs() % 60;
        let millis = duration.subsec_millis();
        let mut text = String::new();
        if hours > 0 {
            text += &format!("{hours}h");
        }
        if minutes > 0 {
            text += &format!("{minutes}m");
        }
        match (seconds, millis) {
            (0, 0) if !text.is_empty() => {}
            (_, 0) => text += &format!("{seconds}s"),
            (0, _) if text.is_empty() => text += &format!("{millis}ms"),
            _ => text += format!("{seconds}.{millis:03}").trim_end_matches('0').to_owned().as_str(),
        }
        if text.ends_with(|c: char| c.is_ascii_digit()) {
            text.push('s');
        }
        Self(text)
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for GoDuration {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GoDuration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": MAX_LEN})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_durations_and_refuses_everything_else() {
        for (text, millis) in [("20m", 1_200_000), ("1h30m", 5_400_000), ("5s", 5_000), ("1.5s", 1_500), ("0s", 0)] {
            assert_eq!(GoDuration::new(text).parse(), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "banana", "-5s", "5", "5d", "9999999999999999999h", "1e9h", "infs"] {
            assert!(GoDuration::new(text).parse().is_err(), "{text}");
        }
    }

    #[test]
    fn writes_the_shortest_form_that_reads_back_the_same() {
        for (millis, text) in [
            (0, "0s"),
            (500, "500ms"),
            (1_500, "1.5s"),
            (5_000, "5s"),
            (61_000, "1m1s"),
            (61_250, "1m1.25s"),
            (60_500, "1m0.5s"),
            (1_200_000, "20m"),
            (3_600_000, "1h"),
            (5_400_000, "1h30m"),
        ] {
            let written = GoDuration::from(Duration::from_millis(millis));
            assert_eq!(written.as_str(), text);
            assert_eq!(written.parse(), Ok(Duration::from_millis(millis)));
        }
    }
}
