//! Recovery of runs whose worker was lost. Each worker does it, and so does the controller that leads: without any
//! worker left, runs are still recovered, and end when they are cancelled or their deadline has passed.

use crate::{api::conditions::reasons, domain::run::Outcome, queue::Queue, telemetry::metrics};

/// Returns all runs whose lease has expired to the queue. Call it twice in each lease, so that a run is recovered
/// within one and a half leases.
pub async fn recover_expired(queue: &Queue) {
    let stalled = Outcome {
        reason: reasons::STALLED.to_owned(),
        message: "the run lost its worker repeatedly, without progress in between".to_owned(),
    };
    let stalled = serde_json::to_string(&stalled).unwrap_or_default();
    loop {
        match queue.reap(&stalled).await {
            Ok(0) => return,
            Ok(count) => {
                metrics::recovered(count as u64);
                tracing::warn!(count, "runs of lost workers returned to the queue");
            }
            Err(error) => {
                tracing::debug!(%error, "could not check the leases of runs");
                return;
            }
        }
    }
}
