//! The rollback of a run: restores the documents that a failed run has written.

use super::{AttemptResult, RunAttempt};
use crate::{
    domain::run::{LeaseState, Outcome, Warning},
    sync::Error,
};

impl RunAttempt {
    /// Restores the documents as they were before the run, which has failed with `outcome`. There is no deadline. After
    /// a recall the documents in flight are finished.
    pub async fn roll_back(&mut self, outcome: Outcome) -> AttemptResult {
        self.checkpoint.warnings.clear();
        let lost = self.coordinator.signals().lost.clone();
        let rolled_back = lost.run_until_cancelled(self.restore(outcome)).await;
        match rolled_back {
            None => AttemptResult::LeaseLost,
            Some(Ok(result)) => result,
            Some(Err(error)) => {
                let outcome = error.outcome();
                let message = format!("It waits meanwhile: {}", outcome.message);
                self.checkpoint.warnings = vec![Warning::RollbackWaits(message)];
                AttemptResult::Retry(outcome)
            }
        }
    }

    async fn restore(&mut self, outcome: Outcome) -> Result<AttemptResult, Error> {
        let recalled = self.coordinator.signals().recalled.clone();
        // The larger count is right: the checkpoint's may be older, and the journal's is deleted with the journal.
        let before = self.target.open_rollback().await?.max(self.checkpoint.counts.rolled_back.unwrap_or(0));
        self.checkpoint.counts.rolled_back = Some(before);
        let (mut last, mut left) = (None, 0);
        while let Some(put_back) = self.target.put_back(last.as_ref()).await? {
            self.checkpoint.counts.rolled_back = Some(put_back.documents);
            left += put_back.failures.len();
            self.checkpoint.add_failures(put_back.failures);
            last = Some(put_back.last);
            // Nothing recalls a rollback but the stop of this process.
            if self.save().await == LeaseState::Lost {
                return Ok(AttemptResult::LeaseLost);
            }
            if recalled.is_cancelled() {
                return Ok(AttemptResult::Released);
            }
        }
        let back =
            format!("{}; {} documents were restored", outcome.message, self.checkpoint.counts.rolled_back.unwrap_or(0));
        let message = if left == 0 {
            self.target.drop_journal().await?;
            back
        } else {
            let journal = self.target.retain_journal().await?;
            format!("{back}, {left} could not be restored: {journal} has their former values for 30 days")
        };
        Ok(AttemptResult::Failed(Outcome { message, ..outcome }))
    }
}
