//! Transaction that is retried after conflicts until it commits.

use std::time::Duration;

use mongodb::{ClientSession, options::WriteConcern};
use tokio::time::{Instant, sleep};

use super::{TargetCollection, within};
use crate::sync::{Error, error::WRITE_CONFLICT};

/// Longest wait of a transaction for conflicting ones: longer than MongoDB keeps the transaction of a killed worker,
/// 60 s
/// (<https://www.mongodb.com/docs/manual/reference/parameter/#mongodb-parameter-param.transactionLifetimeLimitSeconds>).
const PATIENCE: Duration = Duration::from_secs(90);
/// First delay between two attempts. Later delays are longer.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Transactions that are attempted in sequence until one succeeds.
pub(super) struct BatchTransaction {
    session: ClientSession,
    began: Instant,
    conflicts: u32,
}

impl BatchTransaction {
    pub async fn new(target: &TargetCollection) -> Result<Self, Error> {
        let session = within(async { Ok(target.database.client().start_session().await?) }).await?;
        Ok(Self { session, began: Instant::now(), conflicts: 0 })
    }

    pub async fn begin(&mut self) -> Result<&mut ClientSession, Error> {
        let begun = self.session.start_transaction().write_concern(WriteConcern::majority());
        within(async { Ok(begun.await?) }).await?;
        Ok(&mut self.session)
    }

    /// Commits or aborts the transaction by the result of its work. `None`: the transaction has to be repeated, since
    /// a part was left out, or it conflicted with another one.
    pub async fn end<T>(&mut self, done: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
        match done {
            Ok(Some(done)) => {
                within(async { Ok(self.session.commit_transaction().await?) }).await?;
                return Ok(Some(done));
            }
            Ok(None) => {}
            Err(Error::Attempt { reason: WRITE_CONFLICT, .. }) if self.began.elapsed() < PATIENCE => {
                self.conflicts += 1;
            }
            Err(error) => return Err(error),
        }
        // The server may have ended it already.
        within(async { Ok(self.session.abort_transaction().await?) }).await.ok();
        sleep((PAUSE * self.conflicts).min(LONGEST_PAUSE)).await;
        Ok(None)
    }
}
