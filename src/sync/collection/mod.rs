//! The MongoDB collection a run works on: counting, walking and stamping it.

mod apply;
mod deployment;
mod due;
mod journal;
mod pages;
mod removal;
mod stamp;
mod statement;
mod transaction;
mod walk;

use std::{collections::HashSet, future::Future, time::Duration};

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use mongodb::{Collection, Database, error::ErrorKind};
use serde_json::Value;
use tokio::time::timeout;

use self::{due::DueFilter, journal::Journal};
use super::{Doubt, Error, keys};
use crate::{
    api::{syncjob::DocumentFailure, truncate},
    domain::source::{Mapped, Missing, Removal},
};

pub use deployment::Deployment;
pub(super) use deployment::with_own_settings;
pub use journal::{FoundJournal, PutBack};
pub use removal::{RemovalCandidates, States};

/// Longest wait for one answer of MongoDB.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Time after which MongoDB ends a write. Otherwise it would continue after the run has given up.
const WRITE_LIMIT: Duration = Duration::from_secs(29);
/// Largest update command, below the 16 MiB of a BSON document.
const MAX_COMMAND: usize = 8 << 20;
/// Code of an answer about a collection that does not exist.
const NO_COLLECTION: i32 = 26;

/// The documents one run works on.
#[derive(Clone, Debug)]
pub struct TargetCollection {
    database: Database,
    collection: Collection<RawDocumentBuf>,
    key: String,
    /// Field that receives the time of the sync, for users.
    stamp_field: String,
    /// Field that shows the progress of the run: the stamp, or with a source its confirmation. Other sources, and runs
    /// without a source, do not change the confirmation.
    progress: String,
    /// The documents that the spec is about.
    filter: Document,
    /// Documents that the run has to handle, those it handled already included.
    selection: Document,
    /// Filter of the documents that are due, for an Incremental run.
    due: Option<DueFilter>,
    /// Start of the run, which is the stamp.
    stamp: DateTime,
    /// Stamps from this time on are in the future.
    ahead: DateTime,
    /// Stamps from this time on are mistakes, and count as none.
    future: DateTime,
    batch_size: usize,
    /// Longest wait for the first documents of a walk, or for more of them: the server may have to read all documents.
    read_limit: Duration,
    /// Mapping of results to fields. `None`: the run has no source.
    mapping: Option<Vec<Mapped>>,
    /// Paths of the state of the source in documents.
    state: Option<State>,
    missing: Missing,
    /// Marks and deletions of documents. `None`: the run removes none.
    removal: Option<Removal>,
    listing: Listing,
    /// A batch is written as a whole.
    transaction: bool,
    /// Journal of the run.
    journal: Option<Journal>,
    dry_run: bool,
}

/// Meaning of the answers of a source for documents that the source lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    /// The run requests single documents, so the absence of other documents has no meaning.
    Documents,
    /// The source lists all its documents, page by page. With `upsert`, results without a document create one.
    Pages { upsert: bool },
}

/// Paths of the state of a source in the documents.
#[derive(Clone, Debug)]
struct State {
    /// The object that holds all of it.
    all: String,
    /// Path of the confirmation: the time of the request whose answer listed the document. For a source with a request
    /// for each document, the time of the last request for this document.
    at: String,
    /// Path of the time of the request whose answer did not have the document. For a source with a request for each
    /// document.
    none: String,
    /// Path of the time of the request whose answer listed the document with a result that could not be written. For a
    /// source with pages: an overlapping run then does not mark the document.
    failed: String,
    /// Mark: since when it does not have the document.
    gone: String,
    /// Values that the mark replaced.
    was: String,
}

impl State {
    fn new(all: String) -> Self {
        let [at, none, failed, gone, was] =
            ["at", "none", "failed", "gone", "was"].map(|field| format!("{all}.{field}"));
        Self { all, at, none, failed, gone, was }
    }
}

/// Neighbouring documents that are written together.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    documents: Vec<ReadDocument>,
}

/// Fields of a document that the walk reads.
#[derive(Clone, Debug, PartialEq)]
struct ReadDocument {
    key: Bson,
    stamped: Stamped,
    /// Mapped fields of the document, when there is a source. `None` then: the document does not exist yet.
    fields: Option<RawDocumentBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamped {
    /// Has to be stamped.
    Due,
    /// Was stamped by this run before.
    ByThisRun,
    /// Carries a later stamp.
    Later,
    /// Carries a stamp that no clock shows yet, and which another run may write before this one ends.
    Ahead,
    /// The key is an array, which does not identify a document.
    InvalidKey,
}

/// Result of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchResult {
    /// Number of documents with the stamp of this run; with a source, of changed, marked and deleted documents.
    pub updated: i64,
    /// Number of documents that were marked.
    pub marked: i64,
    /// Documents that were deleted.
    pub deleted: i64,
    /// Marked documents that the source has again.
    pub unmarked: i64,
    /// Documents that the source does not have, and never had.
    pub unconfirmed: i64,
    /// Number of confirmed documents that the source does not have any more.
    pub absent: i64,
    /// Confirmed documents that were changed.
    pub changed: i64,
    /// Documents that were confirmed for the first time.
    pub first_confirmed: i64,
    /// Number of documents that have a later stamp, do not exist any more, or needed no change.
    pub unchanged: i64,
    /// Documents that could not be brought up to date.
    pub failures: Vec<DocumentFailure>,
    /// Keys of the failed documents, as text.
    pub failed: Vec<String>,
    /// Keys of documents that would have been written, were this no dry run.
    pub changes: Vec<String>,
    /// Key of the batch's last document, as extended JSON.
    pub cursor: Option<Value>,
    /// Documents are left as they are because their stamps are in the future.
    pub has_stamps_ahead: bool,
    /// End of the page, in a walk through pages.
    pub page: Option<PageEnd>,
}

/// End of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct PageEnd {
    /// The page after it.
    pub next: Option<Value>,
    /// Number of results.
    pub results: usize,
    /// Number of results whose keys cannot be read.
    pub unreadable: usize,
    /// Number of results that were on no earlier page.
    pub new: usize,
    /// Number of all results, as the source reports it.
    pub total: Option<u64>,
    /// Reason for which the walk does not prove that the source has no more results. For the last page.
    pub doubt: Option<Doubt>,
    /// Keys of its results that failed.
    pub failed: Vec<String>,
    /// Keys of the results in a dry run, which writes no stamps.
    pub seen: Vec<String>,
}

impl BatchResult {
    /// Documents handled.
    #[must_use]
    pub fn processed(&self) -> i64 {
        self.updated + self.unchanged + self.failures.len() as i64
    }

    fn fail(&mut self, key: &Bson, reason: &str, message: &str) {
        self.failed.push(keys::text(key));
        let (key, reason, message) = (keys::show(key), reason.to_owned(), truncate(message));
        self.failures.push(DocumentFailure { key, reason, message });
    }
}

fn both(a: Document, b: Document) -> Document {
    if a.is_empty() {
        b
    } else {
        doc! {"$and": [a, b]}
    }
}

async fn within<T>(operation: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    within_limit(OPERATION_TIMEOUT, operation).await
}

async fn within_limit<T>(limit: Duration, operation: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(limit, operation).await.unwrap_or_else(|_| Err(Error::timeout()))
}

impl TargetCollection {
    /// The query for documents with this key. A bare value could be read as an operator.
    fn key_query(&self, key: &Bson) -> Document {
        doc! {&self.key: {"$eq": key.clone()}}
    }

    /// Query for documents with one of these keys. A regular expression among the values of `$in` would match other
    /// keys.
    fn keys_query(&self, keys: Vec<Bson>) -> Document {
        if keys.iter().any(|key| matches!(key, Bson::RegularExpression(_))) {
            doc! {"$or": keys.iter().map(|key| self.key_query(key)).collect::<Vec<_>>()}
        } else {
            doc! {&self.key: {"$in": keys}}
        }
    }
}

fn size(statement: &Document) -> usize {
    bson::serialize_to_vec(statement).map_or(0, |bytes| bytes.len() + 16)
}

/// Splits the statements of update commands, so that no command is too large.
fn chunks<T>(items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = rest.iter().take_while(|item| {
            sum += size(item);
            sum <= MAX_COMMAND
        });
        let (chunk, later) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = later;
        (!chunk.is_empty()).then_some(chunk)
    })
}

impl Batch {
    /// Number of its documents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// True when it has no documents.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// Keeps the first `count` documents.
    pub fn truncate(&mut self, count: usize) {
        self.documents.truncate(count);
    }

    /// The batch without the documents of these keys, as text.
    #[must_use]
    pub fn without(mut self, texts: &HashSet<String>) -> Self {
        self.documents.retain(|read| !texts.contains(&keys::text(&read.key)));
        self
    }

    fn due_documents(&self) -> impl Iterator<Item = &ReadDocument> {
        self.documents.iter().filter(|read| read.stamped == Stamped::Due)
    }

    /// Keys of the documents that have to be written.
    #[must_use]
    pub fn due(&self) -> Vec<&Bson> {
        self.due_documents().map(|read| &read.key).collect()
    }

    /// Keys of all its documents.
    pub fn keys(&self) -> impl Iterator<Item = &Bson> {
        self.documents.iter().map(|read| &read.key)
    }

    /// Last key from which a walk can continue.
    fn last_key(&self) -> Option<&Bson> {
        self.documents.iter().rev().find(|read| read.stamped != Stamped::InvalidKey).map(|read| &read.key)
    }

    fn cursor(&self) -> Option<Value> {
        self.last_key().map(|key| key.clone().into_canonical_extjson())
    }

    /// Result of the batch before any write.
    fn outcome(&self) -> BatchResult {
        let has_stamps_ahead = self.documents.iter().any(|read| read.stamped == Stamped::Ahead);
        let mut outcome = BatchResult { cursor: self.cursor(), has_stamps_ahead, ..BatchResult::default() };
        for read in self.documents.iter().filter(|read| read.stamped == Stamped::InvalidKey) {
            outcome.fail(&read.key, "InvalidKey", "its key is an array");
        }
        outcome
    }
}

fn is_command(error: &mongodb::error::Error, codes: &[i32]) -> bool {
    matches!(&*error.kind, ErrorKind::Command(command) if codes.contains(&command.code))
}

fn first_error(reply: &Document) -> Option<&Document> {
    reply.get_array("writeErrors").ok()?.first()?.as_document()
}

/// Checks for an error of the command that no single document causes.
fn done(reply: &Document) -> Result<(), Error> {
    first_error(reply).map_or(Ok(()), |error| Err(Error::server(integer(error, "code") as i32, "", "")))
}

fn integer(document: &Document, field: &str) -> i64 {
    match document.get(field) {
        Some(Bson::Int32(value)) => i64::from(*value),
        Some(Bson::Int64(value)) => *value,
        Some(Bson::Double(value)) => *value as i64,
        _ => 0,
    }
}
