//! Metrics, as OpenMetrics text. Those of the process count up in statics; the rest is read at the time of a scrape.

use std::{sync::LazyLock, time::Duration};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// The content type of OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, &'static str)>;
type RouteLabels = Vec<(&'static str, String)>;

static SKIPPED: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);

/// Seconds from the time of a slot, jitter included, until its SyncJob was created.
pub static SCHEDULE_SKEW: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]));

static HTTP_REQUESTS: LazyLock<Family<RouteLabels, Counter>> = LazyLock::new(Family::default);
static HTTP_DURATION: LazyLock<Family<RouteLabels, Histogram>> =
    LazyLock::new(|| Family::new_with_constructor(|| Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0])));

/// Counts a call that was answered. `route` is the path with its parameters unnamed, so there are few of them.
pub fn http(route: &str, code: u16, took: Duration) {
    let of_route = vec![("route", route.to_owned())];
    HTTP_DURATION.get_or_create(&of_route).observe(took.as_secs_f64());
    let labels = of_route.into_iter().chain([("code", code.to_string())]).collect();
    HTTP_REQUESTS.get_or_create(&labels).inc();
}

/// Counts slots for which no run was made. `reason` is one of [`crate::domain::schedule::skips`].
pub fn skipped(reason: &'static str, count: u64) {
    SKIPPED.get_or_create(&vec![("reason", reason)]).inc_by(count);
}

/// What is read at the time of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Metrics {
    /// Whether this process reconciles. `None` in one without controllers.
    pub leading: Option<bool>,
    /// Whether this process serves the calls.
    pub serving: bool,
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
        if self.serving {
            let help = "Calls that were answered, by route and status code";
            registry.register("sync_http_requests", help, HTTP_REQUESTS.clone());
            let help = "Time until the answer of a call began, by route";
            registry.register_with_unit("sync_http_request_duration", help, Unit::Seconds, HTTP_DURATION.clone());
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
        assert_eq!(Metrics::default().encode(), "# EOF\n");
        let text = Metrics { leading: Some(true), serving: true }.encode();
        assert!(text.contains("sync_leader 1\n"), "{text}");
    }

    #[test]
    fn names_are_those_of_the_documentation() {
        skipped("Deadline", 2);
        SCHEDULE_SKEW.observe(0.2);
        http("/jobs", 200, Duration::from_millis(3));
        let text = Metrics { leading: Some(true), serving: true }.encode();
        for line in [
            "sync_schedule_skipped_total{reason=\"Deadline\"} 2\n",
            "sync_schedule_skew_seconds_count 1\n",
            "sync_http_requests_total{route=\"/jobs\",code=\"200\"} 1\n",
            "sync_http_request_duration_seconds_count{route=\"/jobs\"} 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
