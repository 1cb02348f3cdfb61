//! View of the last hour.

use jiff::Timestamp;

use super::format::Moment;
use crate::http::throughput::{LastHour, ThroughputCounts};

/// Height of the chart, in its own units.
pub(super) const HEIGHT: f64 = 20.0;
/// A bar that is lower could not be seen.
const LEAST: f64 = 0.5;

/// Counts, and a bar for each minute.
pub(super) struct Hour {
    /// Start of the data, where that is less than an hour ago.
    pub since: Option<Moment>,
    pub counts: ThroughputCounts,
    /// Documents in the last whole minute, for each second of it.
    pub per_second: String,
    /// Heights, the newest last.
    pub bars: Vec<f64>,
    /// Documents in the minute with the most.
    pub most: i64,
}

impl Hour {
    pub fn new(hour: &LastHour, now: Timestamp) -> Self {
        let most = hour.minutes.iter().copied().max().unwrap_or(0);
        let bar = |documents: &i64| match documents {
            0 => 0.0,
            documents => (HEIGHT * *documents as f64 / most as f64).max(LEAST),
        };
        Self {
            since: hour.since.map(|since| Moment::new(since, now)),
            counts: hour.counts,
            per_second: rate(hour.per_second),
            bars: hour.minutes.iter().map(bar).map(|height| (height * 10.0).round() / 10.0).collect(),
            most,
        }
    }
}

/// Formats a rate with only significant digits.
fn rate(per_second: f64) -> String {
    match per_second {
        none if none <= 0.0 => "0".to_owned(),
        slow if slow < 0.1 => "< 0.1".to_owned(),
        slow if slow < 10.0 => format!("{slow:.1}"),
        fast => super::format::grouped(fast.round() as i64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_significant_digits_only() {
        for (number, said) in [(0.0, "0"), (0.01, "< 0.1"), (0.25, "0.2"), (9.5, "9.5"), (1234.4, "1,234")] {
            assert_eq!(rate(number), said);
        }
    }

    #[test]
    fn the_highest_bar_is_as_high_as_the_chart() {
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        let hour = |minutes: Vec<i64>| {
            let hour = LastHour { since: None, counts: ThroughputCounts::default(), per_second: 0.0, minutes };
            Hour::new(&hour, now).bars
        };
        assert_eq!(hour(vec![0, 1, 500, 1000]), [0.0, 0.5, 10.0, 20.0]);
        assert_eq!(hour(vec![0, 0]), [0.0, 0.0]);
    }
}
