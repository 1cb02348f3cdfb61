//! Sparkline of the speed of a run.

use std::fmt::Write;

use crate::http::progress_history::ProgressSample;

/// Width of the sparkline, in its own units: the style sheet sets the size on the page.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 100.0;

/// Documents per second over the time of a run. Between two samples it is the mean.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sparkline {
    /// The `d` of an SVG path, in a box of 600 by 100.
    pub line: String,
    /// The path, closed at the bottom.
    pub area: String,
    /// Documents per second where it was fastest.
    pub most: i64,
    /// Documents per second over the whole time.
    pub mean: i64,
    /// Seconds from the first sample to the last.
    pub seconds: i64,
    /// Number of samples.
    pub samples: usize,
}

/// `None` when there are too few samples for one.
pub(super) fn sparkline(samples: &[ProgressSample]) -> Option<Sparkline> {
    let (first, last) = (samples.first()?, samples.last()?);
    let since = |sample: &ProgressSample| sample.at.duration_since(first.at).as_secs_f64();
    let (whole, done) = (since(last), last.processed - first.processed);
    if samples.len() < 3 || whole <= 0.0 || done <= 0 {
        return None;
    }
    let steps: Vec<_> =
        samples.windows(2).map(|pair| (since(&pair[0]), since(&pair[1]), rate(&pair[0], &pair[1]))).collect();
    let most = steps.iter().map(|(_, _, rate)| *rate).fold(0.0, f64::max);
    let (x, y) = (|seconds: f64| seconds / whole * WIDTH, |rate: f64| HEIGHT - rate / most * HEIGHT);
    let mut line = String::new();
    for (from, to, rate) in steps {
        let command = if line.is_empty() { 'M' } else { 'L' };
        // Writing to a text does not fail.
        write!(line, "{command}{:.1} {:.1}H{:.1}", x(from), y(rate), x(to)).ok();
    }
    let area = format!("{line}V{HEIGHT}H0Z");
    let mean = (done as f64 / whole).round() as i64;
    Some(Sparkline {
        line,
        area,
        most: most.round() as i64,
        mean,
        seconds: whole.round() as i64,
        samples: samples.len(),
    })
}

/// Documents per second. A new worker may go back a little, to the last checkpoint: that is no work.
fn rate(from: &ProgressSample, to: &ProgressSample) -> f64 {
    (to.processed - from.processed).max(0) as f64 / to.at.duration_since(from.at).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::from_seconds;

    fn samples(pairs: &[(i64, i64)]) -> Vec<ProgressSample> {
        pairs
            .iter()
            .map(|(second, processed)| ProgressSample { at: from_seconds(*second), processed: *processed })
            .collect()
    }

    #[test]
    fn a_curve_has_the_mean_between_two_samples() {
        let sparkline = sparkline(&samples(&[(0, 0), (10, 1000), (20, 1500), (30, 1500)])).unwrap();
        assert_eq!(sparkline.line, "M0.0 0.0H200.0L200.0 50.0H400.0L400.0 100.0H600.0");
        assert_eq!(sparkline.area, format!("{}V100H0Z", sparkline.line));
        assert_eq!((sparkline.most, sparkline.mean, sparkline.seconds, sparkline.samples), (100, 50, 30, 4));
    }

    #[test]
    fn going_back_to_a_checkpoint_is_no_speed() {
        let sparkline = sparkline(&samples(&[(0, 0), (10, 100), (20, 50), (30, 150)])).unwrap();
        assert_eq!(sparkline.line, "M0.0 0.0H200.0L200.0 100.0H400.0L400.0 0.0H600.0");
    }

    #[test]
    fn of_too_little_no_curve_is_made() {
        for few in [&[][..], &[(0, 0)], &[(0, 0), (10, 100)], &[(0, 0), (10, 0), (20, 0)], &[(0, 0), (0, 5), (0, 9)]] {
            assert_eq!(sparkline(&samples(few)), None, "{few:?}");
        }
    }
}
