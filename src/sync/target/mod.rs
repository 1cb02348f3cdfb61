//! The MongoDB collection a run works on: counting, walking and stamping it.

mod apply;
mod journal;
mod transaction;

use std::{collections::HashSet, future::Future, path::Path, time::Duration};

use bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc};
use futures::{Stream, TryStreamExt, stream};
use jiff::Timestamp;
use mongodb::{
    Client, ClientSession, Collection, Cursor, Database, IndexModel,
    error::ErrorKind,
    options::{ClientOptions, ReadConcern, Tls, TlsOptions, WriteConcern},
};
use serde_json::Value;
use tokio::time::timeout;

use self::journal::Journal;
use super::{Error, Unavailable, error::refusal, keys};
use crate::{
    api::{source::MappedField, syncjob::DocumentFailure, truncate},
    domain::{run::RunSpec, source::Missing},
};

/// Longest wait for one answer of MongoDB.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// An exact count that takes longer is replaced by an estimate.
const COUNT_LIMIT: Duration = Duration::from_secs(5);
const SERVER_SELECTION: Duration = Duration::from_secs(5);
/// Keys fetched in one answer, at least. Small batches share an answer.
const FETCH: usize = 1000;

pub use journal::{FoundJournal, PutBack};

/// Largest update command, below the 16 MiB of a BSON document.
const MAX_COMMAND: usize = 8 << 20;

/// Code of an answer about a collection that does not exist.
const NO_COLLECTION: i32 = 26;

/// The MongoDB deployment, and which of its databases may be worked on.
#[derive(Clone, Debug)]
pub struct Databases {
    client: Client,
    default: String,
    allowed: Vec<String>,
}

/// The documents one run works on.
#[derive(Clone, Debug)]
pub struct Target {
    database: Database,
    collection: Collection<RawDocumentBuf>,
    key: String,
    stamp_field: String,
    /// The documents that the spec is about.
    filter: Document,
    /// Those of them that the run has to handle, those it handled already included.
    selection: Document,
    /// Time the run started: what is stamped.
    stamp: DateTime,
    batch_size: usize,
    /// What of a source's results goes where. `None`: there is no source.
    mapping: Option<Vec<MappedField>>,
    missing: Missing,
    /// Results that have no document get one.
    upsert: bool,
    /// A batch is written as a whole.
    transaction: bool,
    /// What may have to be put back.
    journal: Option<Journal>,
    dry_run: bool,
}

/// Neighbouring documents that are written together.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    documents: Vec<Read>,
}

/// What the walk reads of a document.
#[derive(Clone, Debug, PartialEq)]
struct Read {
    key: Bson,
    stamped: Stamped,
    /// Its mapped fields, when there is a source. `None` then: there is no such document yet.
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
}

/// What came of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Documents that carry this run's stamp; with a source, those that were changed.
    pub updated: i64,
    /// Documents that carry a later stamp, or are gone, or were as they should be.
    pub unchanged: i64,
    /// Documents that could not be brought up to date.
    pub failures: Vec<DocumentFailure>,
    /// Keys of documents that would have been written, were this no dry run.
    pub changes: Vec<String>,
    /// Key of the batch's last document, as extended JSON.
    pub cursor: Option<Value>,
    /// What this page of a walk through pages was.
    pub page: Option<PageEnd>,
}

/// How a page ended.
#[derive(Clone, Debug, PartialEq)]
pub struct PageEnd {
    /// The page after it.
    pub next: Option<Value>,
    /// Its results.
    pub results: usize,
    /// In a dry run: keys of its results, which no stamp tells.
    pub seen: Vec<String>,
}

impl Outcome {
    /// Documents handled.
    #[must_use]
    pub fn processed(&self) -> i64 {
        self.updated + self.unchanged + self.failures.len() as i64
    }

    fn fail(&mut self, key: &Bson, reason: &str, message: &str) {
        let (key, reason, message) = (keys::show(key), reason.to_owned(), truncate(message));
        self.failures.push(DocumentFailure { key, reason, message });
    }
}

impl Databases {
    /// A deployment. Connects when first used. `allowed` are databases beside `default` that runs may name. `ca`: file
    /// with the certificates (PEM) of the authorities that vouch for the servers, instead of the well-known ones.
    ///
    /// # Errors
    /// When the URI cannot be used. The text does not hold the URI.
    pub async fn new(uri: &str, default: &str, allowed: &[String], ca: Option<&Path>) -> Result<Self, Unavailable> {
        let unusable = |error: mongodb::error::Error| Unavailable(crate::sync::Error::from(error).to_string());
        let mut options = ClientOptions::parse(uri).await.map_err(|error| match *error.kind {
            mongodb::error::ErrorKind::InvalidArgument { message, .. } if !message.contains('@') => {
                Unavailable(message)
            }
            mongodb::error::ErrorKind::InvalidArgument { .. } => Unavailable("it is no connection string".to_owned()),
            _ => unusable(error),
        })?;
        options.app_name.get_or_insert_with(|| "sync-operator".to_owned());
        options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
        options.connect_timeout.get_or_insert(SERVER_SELECTION);
        if let Some(ca) = ca {
            let mut tls = match options.tls.take() {
                Some(Tls::Enabled(tls)) => tls,
                _ => TlsOptions::default(),
            };
            tls.ca_file_path = Some(ca.to_owned());
            options.tls = Some(Tls::Enabled(tls));
        }
        options.write_concern = Some(WriteConcern::majority());
        // A stamp that another worker wrote counts only once it cannot be rolled back any more.
        options.read_concern = Some(ReadConcern::majority());
        // The checkpoint and the guard make repeating a batch safe; the driver's retries would halve the rate.
        options.retry_writes = Some(false);
        let client = Client::with_options(options).map_err(unusable)?;
        Ok(Self { client, default: default.to_owned(), allowed: allowed.to_vec() })
    }

    /// Asks MongoDB for a sign of life.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ping(&self) -> Result<(), Error> {
        within(async { Ok(self.client.database("admin").run_command(doc! {"ping": 1}).await?) }).await.map(drop)
    }

    /// The documents of a run that started at `started`.
    ///
    /// # Errors
    /// When the spec names a database that is not allowed, or a filter that is no query.
    pub fn target(&self, spec: &RunSpec, started: Timestamp) -> Result<Target, Error> {
        let name = spec.database.as_deref().unwrap_or(&self.default);
        if name != self.default && !self.allowed.iter().any(|allowed| allowed == name) {
            return Err(Error::InvalidTarget(format!(
                "target.database {name:?} is not allowed: use {:?}, or start the operator with --allowed-databases {name}",
                self.default
            )));
        }
        let filter = Document::try_from(spec.filter.clone())
            .map_err(|error| Error::InvalidTarget(format!("target.filter is no extended JSON: {error}")))?;
        let database = self.client.database(name);
        Ok(Target {
            collection: database.collection(&spec.collection),
            database,
            key: spec.key_field.clone(),
            stamp_field: spec.last_synced_field.clone(),
            selection: selection(filter.clone(), spec, DateTime::from_millis(started.as_millisecond())),
            filter,
            stamp: DateTime::from_millis(started.as_millisecond()),
            batch_size: spec.batch_size,
            mapping: spec.source.as_ref().map(|_| spec.mapping.clone()),
            missing: spec.source.as_ref().map_or(Missing::Fail, |source| source.missing.clone()),
            upsert: spec.source.as_ref().is_some_and(|source| source.upsert),
            transaction: spec.transaction,
            journal: None,
            dry_run: spec.dry_run,
        })
    }
}

/// The query for a run's documents. An Incremental run also finds those it stamped itself, so that a run that
/// starts over counts them.
fn selection(filter: Document, spec: &RunSpec, stamp: DateTime) -> Document {
    let Some(stale_after) = spec.stale_after else { return filter };
    let field = spec.last_synced_field.as_str();
    let stale = DateTime::from_millis(stamp.timestamp_millis().saturating_sub(stale_after.as_millis() as i64));
    let due = doc! {"$or": [
        {field: {"$not": {"$gte": stale}}},
        {field: {"$type": "array"}},
        // With a source, the stamp is the time of the fetch.
        {field: if spec.source.is_some() { Bson::from(doc! {"$gte": stamp}) } else { stamp.into() }},
        {"$expr": {"$gt": ["$updatedAt", format!("${field}")]}},
    ]};
    both(filter, due)
}

fn both(a: Document, b: Document) -> Document {
    if a.is_empty() {
        b
    } else {
        doc! {"$and": [a, b]}
    }
}

async fn within<T>(operation: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(OPERATION_TIMEOUT, operation).await.unwrap_or_else(|_| Err(Error::timeout()))
}

impl Target {
    /// How many documents the run has to handle: exact when that is known within 5 s, otherwise an estimate.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the query.
    pub async fn count(&self) -> Result<i64, Error> {
        let exact = self.collection.count_documents(self.selection.clone()).max_time(COUNT_LIMIT);
        match within(async { Ok(exact.await?) }).await {
            Ok(count) => Ok(count as i64),
            Err(error) if error == Error::timeout() => {
                within(async { Ok(self.collection.estimated_document_count().await? as i64) }).await
            }
            Err(error) => Err(error),
        }
    }

    /// What makes the walk slow: a key without an index, by which the server sorts all documents first. `None` also
    /// when the server does not tell.
    pub async fn warning(&self) -> Option<String> {
        if self.key == "_id" {
            return None;
        }
        let indexes = self.whole_indexes().await.ok()??;
        let leads = |index: &IndexModel| index.keys.keys().next() == Some(&self.key);
        let (key, collection) = (&self.key, self.collection.name());
        (!indexes.iter().any(leads)).then(|| {
            format!("target.keyField {key} has no index, which makes the run slow: db.{collection}.createIndex({{\"{key}\": 1}})")
        })
    }

    /// The indexes that hold every document. `None`: there is no such collection.
    async fn whole_indexes(&self) -> Result<Option<Vec<IndexModel>>, Error> {
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

    /// Walks the documents in key order, from after `cursor` on. The stream ends after the first error.
    pub fn batches(&self, cursor: Option<&Value>) -> impl Stream<Item = Result<Batch, Error>> + use<> {
        enum Walk {
            Start(Target, Result<Option<Bson>, Error>),
            Read(Target, Box<Cursor<RawDocumentBuf>>),
            End,
        }
        let resume = cursor.cloned().map(Bson::try_from).transpose();
        let resume = resume.map_err(|error| Error::InvalidTarget(format!("the checkpoint is not readable: {error}")));
        stream::unfold(Walk::Start(self.clone(), resume), |walk| async {
            let (target, mut cursor) = match walk {
                Walk::End => return None,
                Walk::Read(target, cursor) => (target, cursor),
                Walk::Start(target, resume) => {
                    let opened = match resume {
                        Ok(after) => target.open(after.as_ref()).await,
                        Err(error) => Err(error),
                    };
                    match opened {
                        Ok(cursor) => (target, Box::new(cursor)),
                        Err(error) => return Some((Err(error), Walk::End)),
                    }
                }
            };
            match target.read(&mut cursor).await {
                Ok(batch) if batch.documents.is_empty() => None,
                Ok(batch) => Some((Ok(batch), Walk::Read(target, cursor))),
                Err(error) => Some((Err(error), Walk::End)),
            }
        })
    }

    async fn open(&self, after: Option<&Bson>) -> Result<Cursor<RawDocumentBuf>, Error> {
        let query = match after {
            Some(key) => both(self.selection.clone(), keys::after(&self.key, key)),
            None => self.selection.clone(),
        };
        let find = self
            .collection
            .find(query)
            .sort(doc! {&self.key: 1})
            .projection(self.projection())
            .batch_size(self.batch_size.max(FETCH) as u32);
        within(async { Ok(find.await?) }).await
    }

    fn projection(&self) -> Document {
        let mut projection = doc! {&self.key: 1, &self.stamp_field: 1};
        projection.extend(self.mapping.iter().flatten().map(|field| (field.to.clone(), Bson::from(1))));
        if let Missing::Mark(field) = &self.missing {
            projection.insert(field, 1);
        }
        if self.key != "_id" && !self.key.starts_with("_id.") {
            projection.insert("_id", 0);
        }
        projection
    }

    async fn read(&self, cursor: &mut Cursor<RawDocumentBuf>) -> Result<Batch, Error> {
        let mut documents = Vec::with_capacity(self.batch_size);
        while documents.len() < self.batch_size && within(async { Ok(cursor.advance().await?) }).await? {
            documents.push(self.look_at(cursor.current()));
        }
        Ok(Batch { documents })
    }

    fn look_at(&self, document: &RawDocument) -> Read {
        let stamped = match keys::at_path(document, &self.stamp_field) {
            Some(Bson::DateTime(at)) if at == self.stamp => Stamped::ByThisRun,
            Some(Bson::DateTime(at)) if at > self.stamp => Stamped::Later,
            _ => Stamped::Due,
        };
        let key = keys::at_path(document, &self.key).unwrap_or(Bson::Null);
        Read { key, stamped, fields: self.mapping.as_ref().map(|_| document.to_owned()) }
    }

    /// Stamps the documents of a batch. Doing it twice, or late, changes nothing that matters: a stamp only
    /// moves forward.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the whole batch. Documents it refuses one by one are no error.
    pub async fn write(&self, batch: Batch) -> Result<Outcome, Error> {
        let due = batch.due();
        let by_this_run = batch.documents.iter().filter(|read| read.stamped == Stamped::ByThisRun).count() as i64;
        let mut outcome = Outcome { cursor: batch.cursor(), ..Outcome::default() };

        let known = batch.documents.len() as i64;
        match (due.first(), due.last()) {
            _ if self.dry_run => {
                outcome.updated = due.len() as i64;
                outcome.changes = due.iter().map(|key| keys::show(key)).collect();
            }
            (Some(first), Some(last)) if keys::is_range(first, last) => {
                match self.stamp_range(first, last).await? {
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

    /// One statement for a range of keys. `None` when the server refused a document in it.
    async fn stamp_range(&self, first: &Bson, last: &Bson) -> Result<Option<i64>, Error> {
        let range = doc! {&self.key: {"$gte": first.clone(), "$lte": last.clone()}};
        let reply = self.update(vec![self.stamp(range)], None).await?;
        if reply.get_array("writeErrors").is_ok() {
            return Ok(None);
        }
        Ok(Some(integer(&reply, "nModified")))
    }

    /// One statement for each document, so that each one that is refused is named and the others are written.
    async fn stamp_each(&self, due: &[&Bson], outcome: &mut Outcome) -> Result<(), Error> {
        let chunks = chunks(due, |key| size(&self.stamp(doc! {&self.key: (*key).clone()})));
        for chunk in chunks {
            self.stamp_chunk(chunk, outcome).await?;
        }
        Ok(())
    }

    async fn stamp_chunk(&self, due: &[&Bson], outcome: &mut Outcome) -> Result<(), Error> {
        let statements = due.iter().map(|key| self.stamp(doc! {&self.key: (*key).clone()})).collect();
        let reply = self.update(statements, None).await?;
        for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
            let Some(key) = due.get(integer(error, "index") as usize) else { continue };
            let (reason, message) = refusal(error);
            outcome.fail(key, reason, &message);
        }
        // The failed statement for the range may have stamped some of them before: count by what stands there.
        outcome.updated += self.count_stamped(due).await?;
        Ok(())
    }

    async fn count_stamped(&self, keys: &[&Bson]) -> Result<i64, Error> {
        let keys: Vec<Bson> = keys.iter().map(|key| (*key).clone()).collect();
        let stamped = doc! {&self.key: {"$in": keys}, &self.stamp_field: self.stamp};
        within(async { Ok(self.collection.count_documents(stamped).await? as i64) }).await
    }

    fn stamp(&self, keys: Document) -> Document {
        self.statement(keys, doc! {"$set": {&self.stamp_field: self.stamp}}, self.stamp)
    }

    /// For many documents even where there is one: of a sharded collection, MongoDB updates a single one only by its `_id`
    /// or the shard key.
    fn statement(&self, keys: Document, update: Document, stamp: DateTime) -> Document {
        doc! {"q": self.guarded(keys, stamp), "u": update, "multi": true}
    }

    /// The query for documents of the run that carry no such stamp and no later one: `$not $gte` also takes missing, null
    /// and wrongly typed values.
    fn guarded(&self, keys: Document, stamp: DateTime) -> Document {
        let guard = doc! {"$or": [
            {&self.stamp_field: {"$not": {"$gte": stamp}}},
            {&self.stamp_field: {"$type": "array"}},
        ]};
        let mut clauses = vec![keys, guard];
        if !self.selection.is_empty() {
            clauses.push(self.selection.clone());
        }
        doc! {"$and": clauses}
    }

    async fn update(&self, statements: Vec<Document>, session: Option<&mut ClientSession>) -> Result<Document, Error> {
        let command = doc! {"update": self.collection.name(), "updates": statements, "ordered": false};
        self.command(command, session).await
    }

    async fn command(&self, mut command: Document, session: Option<&mut ClientSession>) -> Result<Document, Error> {
        let reply = if let Some(session) = session {
            within(async { Ok(self.database.run_command(command).session(session).await?) }).await?
        } else {
            command.insert("writeConcern", doc! {"w": "majority"});
            within(async { Ok(self.database.run_command(command).await?) }).await?
        };
        if let Ok(concern) = reply.get_document("writeConcernError") {
            return Err(Error::server(integer(concern, "code") as i32, concern.get_str("codeName").unwrap_or(""), ""));
        }
        // A primary that steps down says so for each statement, not for the command.
        let retryable =
            |error: &&Document| matches!(integer(error, "code"), 91 | 112 | 189 | 10_107 | 11_600 | 11_602 | 13_435);
        let errors = || reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document);
        let all = || errors();
        if let Some(error) = all().find(retryable) {
            return Err(Error::server(integer(error, "code") as i32, "", ""));
        }
        if let Some(error) = all().find(|error| integer(error, "code") == 166) {
            return Err(Error::server(166, "CommandNotSupportedOnView", error.get_str("errmsg").unwrap_or_default()));
        }
        Ok(reply)
    }
}

fn size(statement: &Document) -> usize {
    bson::serialize_to_vec(statement).map_or(0, |bytes| bytes.len() + 16)
}

/// Splits what goes into update commands so that none of them is too large.
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
    /// The batch without the documents of these keys, as they are shown.
    #[must_use]
    pub fn without(mut self, shown: &HashSet<String>) -> Self {
        self.documents.retain(|read| !shown.contains(&keys::show(&read.key)));
        self
    }

    fn due_documents(&self) -> impl Iterator<Item = &Read> {
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

    fn cursor(&self) -> Option<Value> {
        self.documents.last().map(|read| read.key.clone().into_canonical_extjson())
    }
}

fn is_command(error: &mongodb::error::Error, codes: &[i32]) -> bool {
    matches!(&*error.kind, ErrorKind::Command(command) if codes.contains(&command.code))
}

fn first_error(reply: &Document) -> Option<&Document> {
    reply.get_array("writeErrors").ok()?.first()?.as_document()
}

/// For what is no document's own mistake.
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
