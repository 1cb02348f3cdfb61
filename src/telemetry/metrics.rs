//! Metrics, as OpenMetrics text. Those of the process count up in statics; the rest is read at the time of a scrape.

use std::sync::LazyLock;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// The content type of OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, &'static str)>;

static SKIPPED: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);

/// Seconds from the time of a slot, jitter included, until its SyncJob was created.
pub static SCHEDULE_SKEW: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]));

/// Counts slots for which no run was made. `reason` is one of [`crate::domain::schedule::skips`].
pub fn skipped(reason: &'static str, count: u64) {
    SKIPPED.get_or_create(&vec![("reason", reason)]).inc_by(count);
}

/// What is read at the time of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Metrics {
    /// Whether this process reconciles. `None` in one without controllers.
    pub leading: Option<bool>,
}

impl Metrics {
    /// The text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut registry = Registry::default();
        if let Some(leading) = self.leading {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::from(leading));
            registry.register("sync_leader", "1 when this process reconciles, 0 when another one does", gauge);
            registry.register("sync_schedule_skipped", "Slots for which no run was made, by reason", SKIPPED.clone());
            registry.register_with_unit(
                "sync_schedule_skew",
                "Time from a slot, jitter included, until its SyncJob was created",
                Unit::Seconds,
                SCHEDULE_SKEW.clone(),
            );
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        encode(&mut text, &registry).ok();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_controllers_says_nothing_about_the_leader() {
        assert_eq!(Metrics { leading: None }.encode(), "# EOF\n");
        let text = Metrics { leading: Some(true) }.encode();
        assert!(text.contains("sync_leader 1\n"), "{text}");
    }

    #[test]
    fn names_are_those_of_the_documentation() {
        skipped("Deadline", 2);
        SCHEDULE_SKEW.observe(0.2);
        let text = Metrics { leading: Some(true) }.encode();
        for line in ["sync_schedule_skipped_total{reason=\"Deadline\"} 2\n", "sync_schedule_skew_seconds_count 1\n"] {
            assert!(text.contains(line), "{text}");
        }
    }
}
