//! Spans of a claim: the wait of the run in the queue, and the work on the run.

use crate::{
    api::syncjob::Counts,
    domain::run::Outcome,
    engine::AttemptResult,
    queue::Claim,
    telemetry::traces::{Parent, Span},
};

/// Sends the span of the wait that the claim ended, and begins that of the attempt, or the rollback.
pub(super) fn claimed(root: Parent, claim: &Claim, worker: &str) -> Span {
    let waiting = root.begin("sync.queue");
    if let Ok(since) = claim.at.checked_sub(claim.waited) {
        waiting.since(since).end_at(claim.at);
    }
    let is_rollback = claim.entry.outcome.is_some();
    let mut span = root.begin(if is_rollback { "sync.rollback" } else { "sync.attempt" });
    if span.is_nothing() {
        return span;
    }
    span.set("uid", claim.uid.clone());
    span.set("worker", worker.to_owned());
    span.set("attempt", i64::from(claim.entry.attempts) + 1);
    span.set("recoveries", i64::from(claim.entry.recoveries));
    span.set("epoch", claim.entry.epoch as i64);
    span
}

/// Sends the span of the attempt, or the rollback, with its result and the progress of the run.
pub(super) fn end(mut span: Span, end: &AttemptResult, counts: &Counts) {
    let Counts { processed, updated, failed, rolled_back, .. } = *counts;
    for (key, count) in [("processed", processed), ("updated", updated), ("failed", failed)] {
        span.set(key, count);
    }
    if let Some(rolled_back) = rolled_back {
        span.set("rolled_back", rolled_back);
    }
    match end {
        AttemptResult::Completed => span.set("end", "Completed"),
        AttemptResult::Released => span.set("end", "Released"),
        AttemptResult::Paused(_) => span.set("end", "Paused"),
        AttemptResult::Held(_) => span.set("end", "Held"),
        AttemptResult::LeaseLost => span.fail("LeaseLost"),
        AttemptResult::Failed(Outcome { reason, .. }) | AttemptResult::Retry(Outcome { reason, .. }) => {
            span.fail(reason);
        }
    }
    span.end();
}
