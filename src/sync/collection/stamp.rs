//! Stamps documents where there is no source.

use bson::{Bson, Document, RawDocumentBuf, doc};

use super::{
    Batch, BatchResult, Stamped, TargetCollection, chunks, integer,
    statement::{WriteGuard, raw_size},
    within,
};
use crate::sync::{Error, error::refusal, keys};

impl TargetCollection {
    /// Stamps the documents of a batch. Doing it twice, or late, changes nothing that matters: a stamp only
    /// moves forward.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the whole batch. Documents it refuses one by one are no error.
    pub async fn write(&self, batch: Batch) -> Result<BatchResult, Error> {
        let due = batch.due();
        let by_this_run = batch.documents.iter().filter(|read| read.stamped == Stamped::ByThisRun).count() as i64;
        let mut outcome = batch.outcome();

        let known = batch.documents.len() as i64;
        match (due.first(), due.last()) {
            _ if self.dry_run => {
                outcome.updated = due.len() as i64;
                outcome.changes = due.iter().map(|key| keys::show(key)).collect();
            }
            (Some(first), Some(last)) if keys::is_range(first, last) => {
                match self.stamp_together(&due, first, last).await? {
                    // Documents with the same key, or without a key, are counted with their own batches.
                    Some(stamped) if stamped >= due.len() as i64 && first == last => outcome.updated = due.len() as i64,
                    // Documents that came into the range since it was read count as well.
                    Some(stamped) if stamped >= due.len() as i64 => outcome.updated = stamped,
                    // Some are gone, carry a later stamp, or were stamped by a worker this run had before.
                    Some(stamped) => outcome.updated = stamped.max(self.count_stamped(&due).await?),
                    None => self.stamp_each(&due, &mut outcome).await?,
                }
            }
            (Some(_), _) => self.stamp_each(&due, &mut outcome).await?,
            (None, _) => {}
        }
        outcome.updated += by_this_run;
        outcome.unchanged = (known - outcome.updated - outcome.failures.len() as i64).max(0);
        Ok(outcome)
    }

    /// Writes one statement for keys of one type. `None`: the server refused one of the documents.
    async fn stamp_together(&self, due: &[&Bson], first: &Bson, last: &Bson) -> Result<Option<i64>, Error> {
        let keys = if self.is_short_walk() {
            // Most documents between them are not due.
            self.keys_query(due.iter().map(|key| (*key).clone()).collect())
        } else {
            doc! {&self.key: {"$gte": first.clone(), "$lte": last.clone()}}
        };
        let reply = self.update(&[self.stamp(&self.guard(self.stamp)?, &keys)?], None).await?;
        if reply.get_array("writeErrors").is_ok() {
            return Ok(None);
        }
        Ok(Some(integer(&reply, "nModified")))
    }

    /// Writes one statement for each document, so that each refused document is named and the others are written.
    async fn stamp_each(&self, due: &[&Bson], outcome: &mut BatchResult) -> Result<(), Error> {
        let guard = self.guard(self.stamp)?;
        let statements =
            due.iter().map(|key| self.stamp(&guard, &self.key_query(key))).collect::<Result<Vec<_>, _>>()?;
        let mut rest = due;
        for chunk in chunks(&statements, raw_size) {
            let (these, later) = rest.split_at(chunk.len());
            self.stamp_chunk(these, chunk, outcome).await?;
            rest = later;
        }
        Ok(())
    }

    async fn stamp_chunk(
        &self,
        due: &[&Bson],
        statements: &[RawDocumentBuf],
        outcome: &mut BatchResult,
    ) -> Result<(), Error> {
        let reply = self.update(statements, None).await?;
        for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
            let Some(key) = due.get(integer(error, "index") as usize) else { continue };
            let (reason, message) = refusal(error);
            outcome.fail(key, reason, &message);
        }
        // The failed statement for the range may have stamped some of them before, so the stamps are counted.
        outcome.updated += self.count_stamped(due).await?;
        Ok(())
    }

    /// Number of documents of a batch that carry the stamp. Other documents may share their keys.
    async fn count_stamped(&self, keys: &[&Bson]) -> Result<i64, Error> {
        let mut stamped = self.keys_query(keys.iter().map(|key| (*key).clone()).collect());
        stamped.insert(&self.stamp_field, self.stamp);
        let count = within(async { Ok(self.collection.count_documents(stamped).await? as i64) }).await?;
        Ok(count.min(keys.len() as i64))
    }

    fn stamp(&self, guard: &WriteGuard, keys: &Document) -> Result<RawDocumentBuf, Error> {
        guard.statement(keys, &doc! {"$set": {&self.stamp_field: self.stamp}})
    }
}
