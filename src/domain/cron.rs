//! Slots by the clocks of a time zone: every full minute at which they show a time that a cron expression matches.
//!
//! The semantics are those of a Kubernetes CronJob (`Next` in <https://github.com/robfig/cron>): a time that the
//! clocks skip gives no slot, and a time that occurs twice gives two.

use std::{ops::Range, time::Duration};

use croner::{
    Cron as Pattern,
    parser::{CronParser, Seconds, Year},
    time::Weekday,
};
use jiff::{
    Timestamp, ToSpan,
    civil::{Date, date},
    tz::TimeZone,
};

use super::{from_seconds, slots::Due};

const DAY: i64 = 86_400;
/// Period after which an expression without a match has none: 29 February is on a given weekday at least every 40
/// years.
const HORIZON: i64 = 41 * 366 * DAY;

/// A cron expression in a time zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Cron {
    pattern: Pattern,
    /// Seconds since midnight at which it fires on the days that match, in order.
    times: Vec<i64>,
    zone: TimeZone,
}

/// Mistake of an expression without slots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCron {
    /// The expression cannot be parsed.
    #[error("schedule: {text:?} is not a cron expression such as */20 * * * *: {reason}")]
    Pattern {
        /// The expression.
        text: String,
        /// Description of the mistake.
        reason: String,
    },
    /// There is no such date.
    #[error("schedule: {0:?} never fires: no month it names has such a day")]
    Never(String),
    /// There is no such time zone.
    #[error("timeZone: {0:?} is not known; use an IANA name such as Europe/Berlin")]
    TimeZone(String),
}

impl Cron {
    /// Reads an expression of five fields or a nickname such as `@daily`; `zone` is an IANA name, UTC when `None`.
    ///
    /// # Errors
    /// When the expression or the time zone cannot be parsed, or the expression matches no time.
    pub fn new(text: &str, zone: Option<&str>) -> Result<Self, InvalidCron> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let invalid = |reason: String| InvalidCron::Pattern { text: text.to_owned(), reason };
        // The one nickname of CronJob's that the library does not know.
        let known = if text.eq_ignore_ascii_case("@midnight") { "@daily" } else { text };
        let pattern = parser.parse(known).map_err(|error| invalid(error.to_string()))?;
        let minutes = pattern.pattern.minutes.values();
        let hours = pattern.pattern.hours.values().into_iter();
        let times =
            hours.flat_map(|hour| minutes.iter().map(move |minute| i64::from(hour) * 3600 + i64::from(*minute) * 60));
        let unknown = || InvalidCron::TimeZone(zone.unwrap_or_default().to_owned());
        let cron = Self {
            times: times.collect(),
            pattern,
            zone: zone.map_or(Ok(TimeZone::UTC), TimeZone::get).map_err(|_| unknown())?,
        };
        if cron.zone.is_unknown() {
            return Err(unknown());
        }
        // Any date will do: what fires at all does so within the horizon.
        cron.next(Timestamp::UNIX_EPOCH).ok_or_else(|| InvalidCron::Never(text.to_owned()))?;
        Ok(cron)
    }

    /// Description of the slots, in English.
    #[must_use]
    pub fn description(&self) -> String {
        let zone = self.zone.iana_name().unwrap_or("UTC");
        // The library returns "At every 20 minutes."
        let said = self.pattern.describe().replacen("At every", "Every", 1);
        format!("{}, {zone}", said.trim_end_matches('.'))
    }

    /// The first slot later than `after`. `None` at the end of the calendar.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let from = after.as_second() + 1;
        for span in self.spans(from..from.saturating_add(HORIZON)) {
            if let Some(found) = self.first(&span.clocks()) {
                return Some(from_seconds(found - span.offset));
            }
        }
        None
    }

    /// The slots later than `after`, up to `until`. Takes time for the days between them, not for the slots.
    #[must_use]
    pub fn due(&self, after: Timestamp, until: Timestamp) -> Option<Due> {
        let (mut count, mut newest, mut before) = (0, None, None);
        for span in self.spans(after.as_second() + 1..until.as_second() + 1) {
            let clocks = span.clocks();
            for day in self.days(&clocks) {
                let times = self.times_of(day, &clocks);
                count += times.len() as i64;
                for time in &times[times.len().saturating_sub(2)..] {
                    before = newest.replace(from_seconds(day * DAY + time - span.offset));
                }
            }
        }
        newest.map(|newest| Due { newest, before, count })
    }

    /// The least time between two slots when the clocks are not changed in between, and days next to each other match.
    #[must_use]
    pub fn shortest_gap(&self) -> Duration {
        let overnight = self.times.first().zip(self.times.last()).map(|(first, last)| DAY - last + first);
        let gaps = self.times.windows(2).map(|pair| pair[1] - pair[0]).chain(overnight);
        Duration::from_secs(gaps.min().unwrap_or(DAY) as u64)
    }

    /// Cuts a range of seconds since the epoch where the clocks are changed.
    fn spans(&self, range: Range<i64>) -> impl Iterator<Item = Span> {
        let mut rest = range;
        std::iter::from_fn(move || {
            let start = Timestamp::from_second(rest.start).ok().filter(|_| !rest.is_empty())?;
            let change = self.zone.following(start).next().map_or(i64::MAX, |change| change.timestamp().as_second());
            let span = Span {
                instants: rest.start..rest.end.min(change),
                offset: i64::from(self.zone.to_offset(start).seconds()),
            };
            rest.start = span.instants.end;
            Some(span)
        })
    }

    fn first(&self, clocks: &Range<i64>) -> Option<i64> {
        self.days(clocks).find_map(|day| self.times_of(day, clocks).first().map(|time| day * DAY + time))
    }

    /// Days that match and have a part in the range.
    fn days(&self, clocks: &Range<i64>) -> impl Iterator<Item = i64> {
        let end = (clocks.end - 1).div_euclid(DAY);
        let mut day = clocks.start.div_euclid(DAY);
        std::iter::from_fn(move || {
            while day <= end {
                let (today, date) = (day, civil(day)?);
                let month_matches = self.pattern.pattern.month_match(date.month() as u32).ok()?;
                day += if month_matches { 1 } else { i64::from(date.days_in_month() - date.day()) + 1 };
                if month_matches && self.is_day(date, today) {
                    return Some(today);
                }
            }
            None
        })
    }

    fn is_day(&self, date: Date, day: i64) -> bool {
        // The first day of the epoch was a Thursday.
        let weekday = Weekday::from_days_from_sunday((day + 4).rem_euclid(7) as u32);
        let pattern = &self.pattern.pattern;
        pattern.day_match(date.year().into(), date.month() as u32, date.day() as u32, weekday).unwrap_or(false)
    }

    fn times_of(&self, day: i64, clocks: &Range<i64>) -> &[i64] {
        let position = |end: i64| self.times.partition_point(|time| day * DAY + time < end);
        &self.times[position(clocks.start)..position(clocks.end)]
    }
}

/// A stretch of time in which the clocks are not changed.
struct Span {
    /// Seconds since the epoch.
    instants: Range<i64>,
    /// Offset of local time from UTC.
    offset: i64,
}

impl Span {
    /// Range of local time, in seconds since the epoch in local time.
    fn clocks(&self) -> Range<i64> {
        self.instants.start + self.offset..self.instants.end + self.offset
    }
}

fn civil(day: i64) -> Option<Date> {
    date(1970, 1, 1).checked_add(day.days()).ok()
}

#[cfg(test)]
mod tests;
