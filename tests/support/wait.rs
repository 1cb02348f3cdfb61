//! Waiting for conditions.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Limit of a wait. It is long, so that a slow machine does not cause a failure.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Shortest and longest time between two probes. The time grows with the wait, because many tests share two cores.
const PERIOD: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));

/// Waits until `probe` returns a value.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        sleep((start.elapsed() / 20).clamp(PERIOD.0, PERIOD.1)).await;
    }
}
