//! Formats of times, durations and numbers.

use std::fmt;

use askama::filters::HtmlSafe;
use jiff::{Timestamp, tz::TimeZone};

use crate::api::syncjob::Phase;

/// Relative time. Its HTML contains the exact time for programs and as a tooltip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    at: Timestamp,
    now: Timestamp,
}

impl Moment {
    pub fn new(at: Timestamp, now: Timestamp) -> Self {
        Self { at, now }
    }

    /// Time in a time zone.
    pub fn clock(&self, zone: &TimeZone) -> ZonedMoment {
        ZonedMoment { at: *self, zone: zone.clone() }
    }

    /// The time itself.
    pub fn exact(&self) -> String {
        self.at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
    }
}

/// The text contains no input of users.
impl HtmlSafe for Moment {}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.at.strftime("%Y-%m-%dT%H:%M:%SZ");
        write!(f, "<time datetime=\"{machine}\" title=\"{}\">{}</time>", self.exact(), relative(self.at, self.now))
    }
}

/// Time in a time zone. Its HTML has an element for the time in the zone of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ZonedMoment {
    at: Moment,
    zone: TimeZone,
}

impl ZonedMoment {
    /// Relative time.
    pub fn relative(&self) -> String {
        relative(self.at.at, self.at.now)
    }
}

/// Names of zones come from the time-zone database.
impl HtmlSafe for ZonedMoment {}

impl fmt::Display for ZonedMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.at.at.strftime("%Y-%m-%dT%H:%M:%SZ");
        let shown = self.at.at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M %Z").to_string();
        let exact = self.at.exact();
        write!(f, "<time datetime=\"{machine}\" title=\"{exact}\">{shown}</time> <span class=\"yours\"></span>")
    }
}

fn relative(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.as_second() - now.as_second();
    let (number, unit) = match seconds.unsigned_abs() {
        0..=2 => return "now".to_owned(),
        few @ ..60 => (few, "s"),
        few @ ..3600 => (few / 60, "min"),
        few @ ..172_800 => (few / 3600, "h"),
        many => (many / 86_400, "days"),
    };
    if seconds > 0 { format!("in {number} {unit}") } else { format!("{number} {unit} ago") }
}

/// Formats a duration.
pub(super) fn lasted(seconds: i64) -> String {
    match seconds.max(0) {
        few @ ..60 => format!("{few} s"),
        few @ ..3600 if few % 60 == 0 => format!("{} min", few / 60),
        few @ ..3600 => format!("{} min {} s", few / 60, few % 60),
        many => format!("{} h {} min", many / 3600, many % 3600 / 60),
    }
}

/// A phase in the order of a run's life.
pub(super) const PHASES: [Phase; 9] = [
    Phase::Pending,
    Phase::Queued,
    Phase::Running,
    Phase::Retrying,
    Phase::Suspended,
    Phase::Held,
    Phase::RollingBack,
    Phase::Complete,
    Phase::Failed,
];

/// Filters of templates.
pub(super) mod filters {
    #![allow(
        clippy::inline_always,
        clippy::trivially_copy_pass_by_ref,
        clippy::unnecessary_wraps,
        clippy::unused_self,
        clippy::wildcard_imports,
        reason = "the shape that the library gives filters"
    )]

    use std::fmt::{Debug, Display};

    use askama::{Result, Values, filter_fn};

    use crate::api::syncjob::Phase;

    /// Name of a variant, as in the API.
    #[filter_fn]
    pub fn word(value: impl Debug, _: &dyn Values) -> Result<String> {
        Ok(format!("{value:?}"))
    }

    /// Symbol of a phase, for users who cannot distinguish the colours.
    #[filter_fn]
    pub fn sign(phase: &Phase, _: &dyn Values) -> Result<&'static str> {
        Ok(match phase {
            Phase::Pending | Phase::Queued => "·",
            Phase::Running => "▸",
            Phase::Retrying => "↻",
            Phase::RollingBack => "↺",
            Phase::Suspended | Phase::Held => "‖",
            Phase::Complete => "✓",
            Phase::Failed => "✕",
        })
    }

    /// Short name of an account.
    #[filter_fn]
    pub fn account(name: impl Display, _: &dyn Values) -> Result<String> {
        Ok(super::account(&name.to_string()))
    }

    /// Formats a duration in seconds.
    #[filter_fn]
    pub fn lasted(seconds: &i64, _: &dyn Values) -> Result<String> {
        Ok(super::lasted(*seconds))
    }

    /// A number with groups of three digits.
    #[filter_fn]
    pub fn grouped(number: &i64, _: &dyn Values) -> Result<String> {
        Ok(super::grouped(*number))
    }
}

/// Namespace and name of a ServiceAccount. The names of other users stay as they are.
pub(super) fn account(name: &str) -> String {
    match name.strip_prefix("system:serviceaccount:").and_then(|name| name.split_once(':')) {
        Some((namespace, name)) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

pub(super) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = if number < 0 { "-".to_owned() } else { String::new() };
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        for (seconds, said) in [
            (0, "now"),
            (-2, "now"),
            (-3, "3 s ago"),
            (59, "in 59 s"),
            (-60, "1 min ago"),
            (7199, "in 1 h"),
            (-172_799, "47 h ago"),
            (-172_800, "2 days ago"),
        ] {
            let at = Timestamp::from_second(1_795_000_000 + seconds).unwrap();
            assert_eq!(relative(at, now), said);
        }
        assert_eq!(
            Moment::new(now, now).to_string(),
            "<time datetime=\"2026-11-18T11:06:40Z\" title=\"2026-11-18 11:06:40 UTC\">now</time>"
        );
    }

    #[test]
    fn times_that_things_took_are_said_as_people_say_them() {
        for (seconds, said) in
            [(-1, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min 59 s"), (7265, "2 h 1 min")]
        {
            assert_eq!(lasted(seconds), said);
        }
    }

    #[test]
    fn clocks_show_the_time_of_their_zone() {
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        let clock = |zone: &str| Moment::new(now, now).clock(&TimeZone::get(zone).unwrap()).to_string();
        assert!(clock("Europe/Berlin").contains(">2026-11-18 12:06 CET</time>"), "{}", clock("Europe/Berlin"));
        assert!(clock("UTC").contains(">2026-11-18 11:06 UTC</time>"), "{}", clock("UTC"));
    }

    #[test]
    fn accounts_have_a_short_name() {
        for (name, short) in [
            ("system:serviceaccount:team-a:editor", "team-a/editor"),
            ("alice@example.com", "alice@example.com"),
            ("system:serviceaccount:odd", "system:serviceaccount:odd"),
            ("", ""),
        ] {
            assert_eq!(account(name), short);
        }
    }

    #[test]
    fn long_numbers_have_groups() {
        for (number, said) in [(0, "0"), (999, "999"), (1000, "1,000"), (-1_234_567, "-1,234,567")] {
            assert_eq!(grouped(number), said);
        }
    }
}
