//! Work that is done as a whole or not at all, again until nothing is in its way.

use std::time::Duration;

use mongodb::{ClientSession, options::WriteConcern};
use tokio::time::{Instant, sleep};

use super::{TargetCollection, within};
use crate::sync::{Error, error::WRITE_CONFLICT};

/// How long a transaction waits for others that are in its way: longer than MongoDB keeps the one of a worker that was killed,
/// 60 s (<https://www.mongodb.com/docs/manual/reference/parameter/#mongodb-parameter-param.transactionLifetimeLimitSeconds>).
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two tries, more each time.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// One transaction after the other, until one of them is done.
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

    /// Ends it by what came of its work. `None`: it has to be done once more, since something was left out of it, or another
    /// one was in its way.
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
