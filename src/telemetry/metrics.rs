//! Metrics, as OpenMetrics text.

use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};

/// The content type of OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
}
