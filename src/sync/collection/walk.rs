//! Counts a run's documents, and reads them batch by batch.

use std::time::Duration;

use bson::{Bson, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use futures::{Stream, TryStreamExt, stream};
use mongodb::{Cursor, IndexModel};
use serde_json::Value;

use super::{Batch, NO_COLLECTION, ReadDocument, Stamped, TargetCollection, both, is_command, within, within_limit};
use crate::{
    domain::source::{Missing, STATE},
    sync::{Error, error::CURSOR_LOST, keys},
};

/// An exact count that takes longer is replaced by an estimate.
const COUNT_LIMIT: Duration = Duration::from_secs(5);
/// Keys fetched in one answer, at least. Small batches share an answer.
const FETCH: usize = 1000;
/// Code of a server that sorts in memory only, as MongoDB 5 does, when there is too much to sort.
const SORT_TOO_LARGE: i32 = 292;
/// Cursors, one after the other, that may be lost before they gave a batch.
const MAX_REOPENED: u32 = 3;

/// A walk through the documents.
struct Walk {
    target: TargetCollection,
    /// Key of the last document that was read.
    after: Option<Bson>,
    cursor: Option<Box<Cursor<RawDocumentBuf>>>,
    /// Cursors that were lost since the last batch.
    reopened: u32,
}

impl Walk {
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            match self.read_batch().await {
                Ok(batch) => {
                    self.reopened = 0;
                    self.after = batch.last_key().cloned().or(self.after.take());
                    return Ok(batch);
                }
                Err(Error::Attempt { reason: CURSOR_LOST, .. }) if self.reopened < MAX_REOPENED => {
                    self.reopened += 1;
                    self.cursor = None;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn read_batch(&mut self) -> Result<Batch, Error> {
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            none => none.insert(Box::new(self.target.open(self.after.as_ref()).await?)),
        };
        self.target.read_batch(cursor).await
    }
}

impl TargetCollection {
    /// Number of documents that the run has to handle: exact when it is known within 5 s, otherwise an estimate.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the query.
    pub async fn count(&self) -> Result<i64, Error> {
        match self.count_exactly().await? {
            Some(count) => Ok(count),
            None => self.estimate().await,
        }
    }

    /// `None`: it would take longer than 5 s.
    pub(super) async fn count_exactly(&self) -> Result<Option<i64>, Error> {
        let exact = self.collection.count_documents(self.selection.clone()).max_time(COUNT_LIMIT);
        match within(async { Ok(exact.await?) }).await {
            Ok(count) => Ok(Some(count as i64)),
            Err(error) if error == Error::timeout() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Approximate number of documents in the collection.
    pub(super) async fn estimate(&self) -> Result<i64, Error> {
        within(async { Ok(self.collection.estimated_document_count().await? as i64) }).await
    }

    /// The indexes that hold every document. `None`: there is no such collection.
    pub(super) async fn whole_indexes(&self) -> Result<Option<Vec<IndexModel>>, Error> {
        let listed = async {
            match self.collection.list_indexes().await {
                Ok(indexes) => Ok(Some(indexes.try_collect::<Vec<_>>().await?)),
                Err(error) if is_command(&error, &[NO_COLLECTION]) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        let is_partial = |index: &IndexModel| {
            index.options.as_ref().is_some_and(|options| options.partial_filter_expression.is_some())
        };
        let indexes = within(listed).await?;
        Ok(indexes.map(|indexes| indexes.into_iter().filter(|index| !is_partial(index)).collect()))
    }

    /// Walks the documents in key order, starting after `cursor`. The stream ends after the first error. Where the
    /// server no longer has the cursor, as after 30 minutes without a call, a new one is opened after the last
    /// document.
    pub fn batches(&self, cursor: Option<&Value>) -> impl Stream<Item = Result<Batch, Error>> + use<> {
        let resume = cursor.cloned().map(Bson::try_from).transpose();
        let resume = resume.map_err(|error| Error::InvalidTarget(format!("the checkpoint is not readable: {error}")));
        let target = self.clone();
        let start = resume.map(|after| Walk { target, after, cursor: None, reopened: 0 });
        stream::try_unfold(start, |walk| async {
            let mut walk = walk?;
            let batch = walk.next().await?;
            Ok((!batch.is_empty()).then_some((batch, Ok(walk))))
        })
    }

    async fn open(&self, after: Option<&Bson>) -> Result<Cursor<RawDocumentBuf>, Error> {
        let query = match after {
            Some(key) => both(self.selection.clone(), keys::after(&self.key, key)),
            None => self.selection.clone(),
        };
        if self.is_short_walk()
            && let Some(cursor) = self.find_and_sort(&query).await?
        {
            return Ok(cursor);
        }
        let find = self.collection.find(query).sort(doc! {&self.key: 1}).projection(self.projection());
        let find = find.batch_size(self.fetched());
        within_limit(self.read_limit, async { Ok(find.await?) }).await
    }

    /// Documents in one answer.
    fn fetched(&self) -> u32 {
        self.batch_size.max(FETCH) as u32
    }

    /// Has the server find the documents first, and then sort them. `None`: they are too many for it.
    async fn find_and_sort(&self, query: &Document) -> Result<Option<Cursor<RawDocumentBuf>>, Error> {
        let stages = [
            doc! {"$match": query.clone()},
            // Which is none, but keeps the server from reading all documents in the order of the key.
            doc! {"$limit": i64::MAX},
            doc! {"$project": self.projection()},
            doc! {"$sort": {&self.key: 1}},
        ];
        let find = self.collection.aggregate(stages).batch_size(self.fetched()).with_type();
        let found = async {
            match find.await {
                Err(error) if is_command(&error, &[SORT_TOO_LARGE]) => Ok(None),
                found => Ok(Some(found?)),
            }
        };
        within_limit(self.read_limit, found).await
    }

    pub(super) fn projection(&self) -> Document {
        let mut projection = doc! {&self.key: 1};
        // The mark for people is removed when no source has one of its own any more.
        projection.insert(if self.state.is_some() { STATE } else { &self.progress }, 1);
        projection.extend(self.mapping.iter().flatten().map(|field| (field.to.clone(), Bson::from(1))));
        if let Missing::Remove(removal) = &self.missing {
            projection.insert(&removal.field, 1);
            projection.extend(removal.set.iter().map(|(field, _)| (field.clone(), Bson::from(1))));
        }
        if self.key != "_id" && !self.key.starts_with("_id.") {
            projection.insert("_id", 0);
        }
        projection
    }

    async fn read_batch(&self, cursor: &mut Cursor<RawDocumentBuf>) -> Result<Batch, Error> {
        let mut documents = Vec::with_capacity(self.batch_size);
        let more = async |cursor: &mut Cursor<RawDocumentBuf>| {
            within_limit(self.read_limit, async { Ok(cursor.advance().await?) }).await
        };
        while documents.len() < self.batch_size && more(cursor).await? {
            documents.push(self.read_document(cursor.current()));
        }
        Ok(Batch { documents })
    }

    pub(super) fn read_document(&self, document: &RawDocument) -> ReadDocument {
        let key = keys::key_at(document, &self.key).unwrap_or(Bson::Null);
        let stamped = match keys::at_path(document, &self.progress) {
            _ if matches!(key, Bson::Array(_)) => Stamped::InvalidKey,
            Some(RawBsonRef::DateTime(at)) if at == self.stamp => Stamped::ByThisRun,
            Some(RawBsonRef::DateTime(at)) if at > self.stamp && at <= self.future => {
                if at > self.ahead {
                    Stamped::Ahead
                } else {
                    Stamped::Later
                }
            }
            _ => Stamped::Due,
        };
        ReadDocument { key, stamped, fields: self.mapping.as_ref().map(|_| document.to_owned()) }
    }
}
