//! The MongoDB collection a run works on: counting, walking and stamping it.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    path::Path,
    time::Duration,
};

use bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc};
use futures::{Stream, TryStreamExt, stream};
use jiff::Timestamp;
use mongodb::{
    Client, ClientSession, Collection, Cursor, Database, IndexModel,
    options::{ClientOptions, ReadConcern, Tls, TlsOptions, WriteConcern},
};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{
    Error, Found, Page, Unavailable,
    error::{WRITE_CONFLICT, refusal},
    keys,
    mapping::{self, Changes},
};
use crate::{
    api::{
        source::{MappedField, OnMissing},
        syncjob::DocumentFailure,
        truncate,
    },
    domain::{run::RunSpec, source::SourceSpec},
};

/// Longest wait for one answer of MongoDB.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// An exact count that takes longer is replaced by an estimate.
const COUNT_LIMIT: Duration = Duration::from_secs(5);
const SERVER_SELECTION: Duration = Duration::from_secs(5);
/// Keys fetched in one answer, at least. Small batches share an answer.
const FETCH: usize = 1000;

/// How often a transaction that met another one is tried again, and after which time, more each time.
const MAX_CONFLICTS: u32 = 5;
const CONFLICT_PAUSE: Duration = Duration::from_millis(20);

/// Largest update command, below the 16 MiB of a BSON document.
const MAX_COMMAND: usize = 8 << 20;

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
    /// Documents the run has to handle, those it handled already included.
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
    dry_run: bool,
}

/// What becomes of documents that the source has nothing for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Missing {
    Fail,
    Ignore,
    /// The time goes into this field.
    Mark(String),
    Delete,
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
            selection: selection(filter, spec, DateTime::from_millis(started.as_millisecond())),
            stamp: DateTime::from_millis(started.as_millisecond()),
            batch_size: spec.batch_size,
            mapping: spec.source.as_ref().map(|_| spec.mapping.clone()),
            missing: match &spec.source {
                Some(SourceSpec { missing: OnMissing::Mark, missing_field, .. }) => {
                    Missing::Mark(missing_field.clone())
                }
                Some(SourceSpec { missing: OnMissing::Delete, .. }) => Missing::Delete,
                Some(SourceSpec { missing: OnMissing::Ignore, .. }) => Missing::Ignore,
                Some(_) | None => Missing::Fail,
            },
            upsert: spec.source.as_ref().is_some_and(|source| source.upsert),
            transaction: spec.transaction,
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
        let indexes = within(async { Ok(self.collection.list_indexes().await?) }).await.ok()?;
        let indexes: Vec<_> = timeout(OPERATION_TIMEOUT, indexes.try_collect()).await.ok()?.ok()?;
        let leads = |index: &IndexModel| {
            let partial = index.options.as_ref().is_some_and(|options| options.partial_filter_expression.is_some());
            !partial && index.keys.keys().next() == Some(&self.key)
        };
        let (key, collection) = (&self.key, self.collection.name());
        (!indexes.iter().any(leads)).then(|| {
            format!("target.keyField {key} has no index, which makes the run slow: db.{collection}.createIndex({{\"{key}\": 1}})")
        })
    }

    /// Checks that documents can be made without ever making one twice.
    ///
    /// # Errors
    /// When they cannot.
    pub async fn check_upsert(&self) -> Result<(), Error> {
        if !self.upsert || self.key == "_id" {
            return Ok(());
        }
        let guards = |index: &IndexModel| {
            let options = index.options.as_ref();
            let partial = options.is_some_and(|options| options.partial_filter_expression.is_some());
            let unique = options.is_some_and(|options| options.unique == Some(true));
            unique && !partial && index.keys.keys().eq([&self.key])
        };
        // A collection that does not exist has none.
        let indexes = match within(async { Ok(self.collection.list_indexes().await?) }).await {
            Ok(indexes) => within(async { Ok(indexes.try_collect::<Vec<_>>().await?) }).await?,
            Err(error @ Error::Attempt { reason: "Unreachable" | "Timeout", .. }) => return Err(error),
            Err(_) => Vec::new(),
        };
        if indexes.iter().any(guards) {
            return Ok(());
        }
        let (key, collection) = (&self.key, self.collection.name());
        Err(Error::InvalidTarget(format!(
            "source.graphQL.upsert needs a unique index on target.keyField: db.{collection}.createIndex({{\"{key}\": 1}}, {{unique: true}})"
        )))
    }

    /// What is left of the documents once a walk through pages has dealt with those that the source has.
    #[must_use]
    pub fn left(&self) -> Self {
        let untouched = doc! {&self.stamp_field: {"$not": {"$gte": self.stamp}}};
        Self { selection: both(self.selection.clone(), untouched), ..self.clone() }
    }

    /// True when nothing becomes of documents that the source has nothing for.
    pub fn ignores_missing(&self) -> bool {
        self.missing == Missing::Ignore
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

    /// The documents of a page's results, and new ones where they may be made.
    async fn find(&self, keys: Vec<Bson>) -> Result<Batch, Error> {
        let query = both(self.selection.clone(), doc! {&self.key: {"$in": keys.clone()}});
        let find = self.collection.find(query).projection(self.projection()).batch_size(keys.len().max(1) as u32);
        let mut cursor = within(async { Ok(find.await?) }).await?;
        let mut documents = Vec::with_capacity(keys.len());
        while within(async { Ok(cursor.advance().await?) }).await? {
            documents.push(self.look_at(cursor.current()));
        }
        if self.upsert {
            let known: HashSet<_> = documents.iter().map(|read| keys::text(&read.key)).collect();
            let new = keys.into_iter().filter(|key| !known.contains(&keys::text(key)));
            documents.extend(new.map(|key| Read { key, stamped: Stamped::Due, fields: None }));
        }
        Ok(Batch { documents })
    }

    /// Writes a page of what a source has, which was asked for at `fetched`, as [`Target::apply`] does.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the whole page.
    pub async fn apply_page(&self, page: Page, fetched: Timestamp) -> Result<Outcome, Error> {
        let (next, results) = (page.next, page.results.len());
        let (keys, found): (Vec<_>, Vec<_>) = page.results.into_iter().unzip();
        let mut by_key: HashMap<_, _> = keys.iter().map(keys::text).zip(found).collect();
        let seen = if self.dry_run { keys.iter().map(keys::show).collect() } else { Vec::new() };
        let batch = self.find(keys).await?;
        let found = batch.due().iter().map(|key| by_key.remove(&keys::text(key)).unwrap_or(Found::Missing)).collect();
        let outcome = self.apply(batch, found, fetched).await?;
        Ok(Outcome { cursor: None, page: Some(PageEnd { next, results, seen }), ..outcome })
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

    /// Writes what a source had for [`Batch::due`], in the same order, when it was asked at `fetched`. A document that was
    /// fetched later by somebody else stays as it is. Doing it twice, or late, changes nothing that matters.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the whole batch. Documents that cannot be written are no error.
    pub async fn apply(&self, batch: Batch, found: Vec<Found>, fetched: Timestamp) -> Result<Outcome, Error> {
        let mut outcome = Outcome { cursor: batch.cursor(), ..Outcome::default() };
        let stamp = DateTime::from_millis(fetched.as_millisecond());
        let (mut writes, mut deletes) = (Vec::new(), Vec::new());
        for (read, found) in batch.due_documents().zip(found) {
            let changes = match found {
                Found::Result(result) => self.changes(&result).map_err(|message| ("MappingFailed", message)),
                Found::Missing => match &self.missing {
                    Missing::Fail => Err(("NotReturned", "the source has nothing for it".to_owned())),
                    Missing::Ignore => continue,
                    Missing::Mark(field) => Ok(read.mark(field, stamp)),
                    Missing::Delete => {
                        deletes.push(&read.key);
                        continue;
                    }
                },
                Found::Failed(reason, message) => Err((reason, message)),
            };
            match changes {
                Ok(changes) => writes.push(Write {
                    key: &read.key,
                    is_new: read.fields.is_none(),
                    differs: !read.fields.as_ref().is_some_and(|fields| changes.are_in(fields)),
                    statement: self.change(read, changes, stamp),
                }),
                Err((reason, message)) => outcome.fail(&read.key, reason, &message),
            }
        }
        if self.dry_run {
            let differing = writes.iter().filter(|write| write.differs).map(|write| write.key);
            outcome.changes = differing.chain(deletes).map(keys::show).collect();
            outcome.updated = outcome.changes.len() as i64;
        } else {
            let (updated, refused) = if self.transaction {
                self.write_as_a_whole(writes, &deletes, stamp).await?
            } else {
                self.write_all(&writes, &deletes, stamp, None).await?
            };
            outcome.updated = updated;
            for Refused { key, why, .. } in refused {
                if let Some((reason, message)) = why {
                    outcome.fail(key, reason, &message);
                }
            }
        }
        outcome.unchanged = (batch.documents.len() as i64 - outcome.updated - outcome.failures.len() as i64).max(0);
        Ok(outcome)
    }

    /// Writes in one transaction. What MongoDB refuses ends it, and is left out of the next try.
    async fn write_as_a_whole<'a>(
        &self,
        mut writes: Vec<Write<'a>>,
        deletes: &[&Bson],
        stamp: DateTime,
    ) -> Result<(i64, Vec<Refused<'a>>), Error> {
        let mut session = within(async { Ok(self.database.client().start_session().await?) }).await?;
        let (mut left_out, mut conflicts) = (Vec::new(), 0);
        loop {
            let begun = session.start_transaction().write_concern(WriteConcern::majority());
            within(async { Ok(begun.await?) }).await?;
            match self.write_all(&writes, deletes, stamp, Some(&mut session)).await {
                Ok((updated, refused)) => match refused.into_iter().next() {
                    None => {
                        within(async { Ok(session.commit_transaction().await?) }).await?;
                        return Ok((updated, left_out));
                    }
                    Some(refused) => {
                        writes.remove(refused.at);
                        left_out.push(refused);
                    }
                },
                Err(Error::Attempt { reason: WRITE_CONFLICT, .. }) if conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                    sleep(CONFLICT_PAUSE * conflicts).await;
                }
                Err(error) => return Err(error),
            }
            // The server may have ended it already.
            within(async { Ok(session.abort_transaction().await?) }).await.ok();
        }
    }

    /// Returns how many documents were changed, and those that MongoDB refuses. In a transaction the first of these ends it.
    async fn write_all<'a>(
        &self,
        writes: &[Write<'a>],
        deletes: &[&Bson],
        stamp: DateTime,
        mut session: Option<&mut ClientSession>,
    ) -> Result<(i64, Vec<Refused<'a>>), Error> {
        let (mut updated, mut refused) = (0, Vec::new());
        let mut before = 0;
        for chunk in chunks(writes, |write| size(&write.statement)) {
            let (changed, failed) = self.write_chunk(chunk, before, session.as_deref_mut()).await?;
            updated += changed;
            refused.extend(failed);
            before += chunk.len();
            if session.is_some() && !refused.is_empty() {
                return Ok((updated, refused));
            }
        }
        for chunk in chunks(deletes, |key| size(&self.guarded(doc! {&self.key: (*key).clone()}, stamp))) {
            updated += self.delete(chunk, stamp, session.as_deref_mut()).await?;
        }
        Ok((updated, refused))
    }

    async fn write_chunk<'a>(
        &self,
        writes: &[Write<'a>],
        before: usize,
        session: Option<&mut ClientSession>,
    ) -> Result<(i64, Vec<Refused<'a>>), Error> {
        let statements = writes.iter().map(|write| write.statement.clone()).collect();
        let reply = self.update(statements, session).await?;
        let mut differing = writes.iter().filter(|write| write.differs).count() as i64;
        let mut refused = Vec::new();
        for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
            let at = integer(error, "index") as usize;
            let Some(write) = writes.get(at) else { continue };
            // Somebody else has made it meanwhile, or the filter leaves it out.
            let exists = write.is_new && error.get_document("keyPattern").is_ok_and(|keys| keys.keys().eq([&self.key]));
            let why = (!exists).then(|| refusal(error));
            refused.push(Refused { at: before + at, key: write.key, why });
            differing -= i64::from(write.differs);
        }
        // The others are gone, or were fetched later by somebody else.
        let absent = writes.len() as i64 - refused.len() as i64 - integer(&reply, "n");
        Ok(((differing - absent).max(0), refused))
    }

    /// What a result makes of its document.
    fn changes(&self, result: &Value) -> Result<Changes, String> {
        let mut changes = mapping::apply(self.mapping.as_deref().unwrap_or_default(), result)?;
        if let Missing::Mark(field) = &self.missing {
            changes.unset.push(field.clone());
        }
        Ok(changes)
    }

    /// Removes documents that nobody has fetched later. Returns how many.
    async fn delete(&self, keys: &[&Bson], stamp: DateTime, session: Option<&mut ClientSession>) -> Result<i64, Error> {
        let deletes: Vec<_> = keys
            .iter()
            .map(|key| doc! {"q": self.guarded(doc! {&self.key: (*key).clone()}, stamp), "limit": 1})
            .collect();
        let command = doc! {"delete": self.collection.name(), "deletes": deletes, "ordered": false};
        Ok(integer(&self.command(command, session).await?, "n"))
    }

    /// A statement that makes one document what it should be, and stamps it.
    fn change(&self, read: &Read, changes: Changes, stamp: DateTime) -> Document {
        let mut set = changes.set;
        set.insert(&self.stamp_field, stamp);
        let mut update = doc! {"$set": set};
        if !changes.unset.is_empty() {
            let unset: Document = changes.unset.into_iter().map(|path| (path, Bson::from(""))).collect();
            update.insert("$unset", unset);
        }
        let mut statement = self.statement(doc! {&self.key: read.key.clone()}, update, stamp, false);
        if read.fields.is_none() {
            statement.insert("upsert", true);
        }
        statement
    }

    /// One statement for a range of keys. `None` when the server refused a document in it.
    async fn stamp_range(&self, first: &Bson, last: &Bson) -> Result<Option<i64>, Error> {
        let range = doc! {&self.key: {"$gte": first.clone(), "$lte": last.clone()}};
        let reply = self.update(vec![self.stamp(range, true)], None).await?;
        if reply.get_array("writeErrors").is_ok() {
            return Ok(None);
        }
        Ok(Some(integer(&reply, "nModified")))
    }

    /// One statement for each document, so that each one that is refused is named and the others are written.
    async fn stamp_each(&self, due: &[&Bson], outcome: &mut Outcome) -> Result<(), Error> {
        let chunks = chunks(due, |key| size(&self.stamp(doc! {&self.key: (*key).clone()}, false)));
        for chunk in chunks {
            self.stamp_chunk(chunk, outcome).await?;
        }
        Ok(())
    }

    async fn stamp_chunk(&self, due: &[&Bson], outcome: &mut Outcome) -> Result<(), Error> {
        let statements = due.iter().map(|key| self.stamp(doc! {&self.key: (*key).clone()}, false)).collect();
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

    fn stamp(&self, keys: Document, multi: bool) -> Document {
        self.statement(keys, doc! {"$set": {&self.stamp_field: self.stamp}}, self.stamp, multi)
    }

    fn statement(&self, keys: Document, update: Document, stamp: DateTime, multi: bool) -> Document {
        doc! {"q": self.guarded(keys, stamp), "u": update, "multi": multi}
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

/// A write that MongoDB refuses.
struct Refused<'a> {
    /// Its place among the writes.
    at: usize,
    key: &'a Bson,
    /// A word and a sentence. `None`: there is nothing wrong.
    why: Option<(&'static str, String)>,
}

/// One document's write.
struct Write<'a> {
    key: &'a Bson,
    /// It makes the document.
    is_new: bool,
    /// Something else than the stamp changes.
    differs: bool,
    statement: Document,
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

impl Read {
    /// Since when the source has nothing for it: what is there, or now.
    fn mark(&self, field: &str, now: DateTime) -> Changes {
        let is_marked = self.fields.as_ref().is_some_and(|fields| keys::at_path(fields, field).is_some());
        let set = if is_marked {
            Document::new()
        } else {
            doc! {field: now}
        };
        Changes { set, unset: Vec::new() }
    }
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

    fn cursor(&self) -> Option<Value> {
        self.documents.last().map(|read| read.key.clone().into_canonical_extjson())
    }
}

fn integer(document: &Document, field: &str) -> i64 {
    match document.get(field) {
        Some(Bson::Int32(value)) => i64::from(*value),
        Some(Bson::Int64(value)) => *value,
        Some(Bson::Double(value)) => *value as i64,
        _ => 0,
    }
}
