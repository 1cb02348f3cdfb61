//! Journal of a run that may be rolled back: each document that the run writes, before and after the write. An entry
//! is written in the transaction that writes the document, so there is one for every change and none without.
//!
//! A worker that lost its run may still have a transaction open. The journal's fence, its first entry, holds the epoch
//! of the claim that may write, and each transaction reads it first. A rollback raises it, and then drops an index of
//! the journal: MongoDB does that only when no transaction that has read the journal is open any more.

use std::{collections::BTreeMap, time::Duration};

use bson::{Binary, Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc, spec::BinarySubtype};
use futures::TryStreamExt;
use mongodb::{ClientSession, Collection, IndexModel, options::IndexOptions};

use super::{
    MAX_COMMAND, NO_COLLECTION, TargetCollection, chunks, done, first_error, integer, is_command, size,
    transaction::BatchTransaction, within,
};
use crate::{
    api::syncjob::DocumentFailure,
    domain::run::JOURNALS,
    sync::{
        Error,
        error::refusal,
        keys,
        three_way_merge::{Restored, restored},
    },
};

/// Longest time for which an entry is kept: no run may drop it when its SyncJob was deleted.
const KEEP: Duration = Duration::from_hours(30 * 24);
/// The index by which MongoDB forgets entries.
const EXPIRY: &str = "expiry";
/// Code of an answer about an index that does not exist.
const NO_INDEX: i32 = 27;
/// Largest entry, below the 16 MiB of a BSON document.
const MAX_ENTRY: usize = 15 << 20;
/// Number of documents that are restored in one transaction.
const TOGETHER: i64 = 100;

/// A run's journal.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    entries: Collection<RawDocumentBuf>,
    /// Epoch of the claim.
    epoch: i64,
}

/// A document before a batch was written, and after.
#[derive(Default)]
struct Change {
    before: Option<RawDocumentBuf>,
    after: Option<RawDocumentBuf>,
}

/// Documents that were restored in one transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct PutBack {
    /// Number of documents that are restored, those of earlier calls included.
    pub documents: i64,
    /// Documents that MongoDB refuses to restore.
    pub failures: Vec<DocumentFailure>,
    /// The last of their entries.
    pub last: Bson,
}

/// Journal in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundJournal {
    /// Uid of the run.
    pub uid: String,
    /// True when the journal has documents that could not be restored.
    pub is_kept: bool,
    /// True when the journal was not opened for as long as its entries are kept.
    pub is_old: bool,
}

impl Journal {
    /// Fails when another claim has the run, or the run has ended. Returns how many documents were restored.
    pub async fn check(&self, session: Option<&mut ClientSession>) -> Result<i64, Error> {
        let find = self.entries.find_one(doc! {"_id": Bson::MinKey});
        let fence = within(async {
            Ok(match session {
                Some(session) => find.session(session).await?,
                None => find.await?,
            })
        });
        let fence = fence.await?.filter(|fence| fence.get_i64("epoch").ok() == Some(self.epoch)).ok_or_else(fenced)?;
        Ok(fence.get_i64("putBack").unwrap_or(0))
    }
}

fn fenced() -> Error {
    Error::Attempt { reason: "Fenced", message: "another worker has taken over the run".to_owned() }
}

fn binary(document: &RawDocument) -> Bson {
    Binary { subtype: BinarySubtype::Generic, bytes: document.as_bytes().to_vec() }.into()
}

fn document(entry: &RawDocument, field: &str) -> Option<Document> {
    let bytes = entry.get_binary(field).ok()?.bytes;
    bson::deserialize_from_slice(bytes).ok()
}

fn id(document: &RawDocument) -> Option<Bson> {
    keys::key_at(document, "_id")
}

impl TargetCollection {
    /// Returns the journals in the database, of active and of ended runs.
    ///
    /// # Errors
    /// When MongoDB does not answer.
    pub async fn journals(&self) -> Result<Vec<FoundJournal>, Error> {
        let ours = doc! {"name": {"$regex": format!("^{}", JOURNALS.replace('.', "\\."))}};
        let names = async { Ok(self.database.list_collection_names().filter(ours).await?) };
        let mut found = Vec::new();
        for name in within(names).await? {
            let entries: Collection<RawDocumentBuf> = self.database.collection(&name);
            let fence = within(async { Ok(entries.find_one(doc! {"_id": Bson::MinKey}).await?) }).await?;
            let opened = fence.as_ref().and_then(|fence| fence.get_datetime("opened").ok());
            let age = DateTime::now().timestamp_millis() - opened.map_or(0, DateTime::timestamp_millis);
            found.push(FoundJournal {
                uid: name[JOURNALS.len()..].to_owned(),
                is_kept: fence.is_some_and(|fence| fence.get_bool("kept").unwrap_or(false)),
                is_old: age > KEEP.as_millis() as i64,
            });
        }
        Ok(found)
    }

    /// Returns the same collection, with a journal of the changes of a claim of a run.
    #[must_use]
    pub fn journalled(self, uid: &str, epoch: u64) -> Self {
        let entries = self.database.collection(&format!("{JOURNALS}{uid}"));
        Self { journal: Some(Journal { entries, epoch: epoch as i64 }), ..self }
    }

    /// Opens the journal, and keeps earlier claims of the run from writing. Nothing to do without a journal.
    ///
    /// # Errors
    /// When MongoDB does not answer, or a later claim has the run.
    pub async fn open_journal(&self) -> Result<(), Error> {
        let Some(journal) = &self.journal else { return Ok(()) };
        self.expire(journal).await?;
        self.raise_fence(journal, doc! {"putBack": 0_i64}).await
    }

    async fn expire(&self, journal: &Journal) -> Result<(), Error> {
        let options = IndexOptions::builder().name(EXPIRY.to_owned()).expire_after(KEEP).build();
        let index = IndexModel::builder().keys(doc! {"at": 1}).options(options).build();
        within(async { Ok(journal.entries.create_index(index).await?) }).await.map(drop)
    }

    async fn raise_fence(&self, journal: &Journal, more: Document) -> Result<(), Error> {
        let mut set = doc! {"epoch": journal.epoch, "opened": DateTime::now()};
        set.extend(more);
        let earlier = doc! {"_id": Bson::MinKey, "epoch": {"$not": {"$gt": journal.epoch}}};
        let update = doc! {"q": earlier, "u": {"$set": set}, "upsert": true};
        let reply = self.command(doc! {"update": journal.entries.name(), "updates": [update]}, None).await?;
        // A fence with a later epoch is in the way of a new one.
        if reply.get_array("writeErrors").is_ok() { Err(fenced()) } else { Ok(()) }
    }

    /// Keeps earlier claims of the run from writing, waits until none of them has a transaction open, and keeps the
    /// entries from expiring. Call it before [`TargetCollection::put_back`]. Returns the number of documents that are
    /// already restored.
    ///
    /// # Errors
    /// When MongoDB does not answer, such a transaction is open for too long, or a later claim has the run.
    pub async fn open_rollback(&self) -> Result<i64, Error> {
        let Some(journal) = &self.journal else { return Ok(0) };
        self.raise_fence(journal, doc! {}).await?;
        let dropped = async {
            match journal.entries.drop_index(EXPIRY).await {
                Err(error) if is_command(&error, &[NO_INDEX, NO_COLLECTION]) => Ok(()),
                dropped => Ok(dropped?),
            }
        };
        within(dropped).await?;
        journal.check(None).await
    }

    /// Drops the former values of the documents of the run.
    ///
    /// # Errors
    /// When MongoDB does not answer.
    pub async fn drop_journal(&self) -> Result<(), Error> {
        let Some(journal) = &self.journal else { return Ok(()) };
        within(async { Ok(journal.entries.drop().await?) }).await
    }

    /// Keeps the entries of documents that could not be restored for 30 days, and returns their collection.
    ///
    /// # Errors
    /// When MongoDB does not answer, or a later claim has the run.
    pub async fn retain_journal(&self) -> Result<&str, Error> {
        let Some(journal) = &self.journal else { return Ok("") };
        self.raise_fence(journal, doc! {"kept": true}).await?;
        self.expire(journal).await?;
        Ok(journal.entries.name())
    }

    /// Returns whole documents by their ids, in the snapshot of a transaction.
    pub(super) async fn whole(&self, query: Document, session: &mut ClientSession) -> Result<Whole, Error> {
        let mut cursor = within(async { Ok(self.collection.find(query).session(&mut *session).await?) }).await?;
        let mut whole = BTreeMap::new();
        while within(async { Ok(cursor.advance(session).await?) }).await? {
            let found = cursor.current();
            let Some(id) = id(found) else { continue };
            whole.insert(identity(&id), (id, found.to_owned()));
        }
        Ok(Whole(whole))
    }

    /// Adds the changes of a transaction to the journal. Returns the key of one whose entry would be too large.
    pub(super) async fn append_entry(
        &self,
        journal: &Journal,
        before: Whole,
        after: Whole,
        session: &mut ClientSession,
    ) -> Result<Option<Bson>, Error> {
        let now = DateTime::now();
        let mut statements = Vec::new();
        for (id, Change { before, after }) in before.changes(after) {
            let length =
                |document: &Option<RawDocumentBuf>| document.as_ref().map_or(0, |whole| whole.as_bytes().len());
            if length(&before) + length(&after) > MAX_ENTRY {
                return Ok(before.or(after).map(|whole| keys::key_at(&whole, &self.key).unwrap_or(Bson::Null)));
            }
            let mut update = doc! {"$set": {"at": now}};
            if let Some(before) = &before {
                // The run may have written it before, when others took its stamp away.
                update.insert("$setOnInsert", doc! {"before": binary(before)});
            }
            match &after {
                Some(after) => update.insert("$set", doc! {"at": now, "after": binary(after)}),
                None => update.insert("$unset", doc! {"after": ""}),
            };
            statements.push(doc! {"q": {"_id": id}, "u": update, "upsert": true});
        }
        for chunk in chunks(&statements, size) {
            let command = doc! {"update": journal.entries.name(), "updates": chunk.to_vec()};
            done(&self.command(command, Some(&mut *session)).await?)?;
        }
        Ok(None)
    }

    /// Restores the next documents, whose entries come after `last`: at most 100, all of them or none. `None`: there
    /// are no more entries.
    ///
    /// # Errors
    /// When MongoDB does not answer, or another claim has the run. A document that MongoDB refuses to restore is
    /// no error.
    pub async fn put_back(&self, last: Option<&Bson>) -> Result<Option<PutBack>, Error> {
        let Some(journal) = &self.journal else { return Ok(None) };
        let mut entries = self.entries(journal, last.unwrap_or(&Bson::MinKey)).await?;
        let Some(last) = entries.last().and_then(|entry| id(entry)) else { return Ok(None) };
        let mut failures = Vec::new();
        let mut transaction = BatchTransaction::new(self).await?;
        loop {
            let done = self.put_all_back(journal, &entries, transaction.begin().await?).await;
            let done = done.map(|done| match done {
                Ok(documents) => Some(documents),
                Err((at, failure)) => {
                    entries.remove(at);
                    failures.push(failure);
                    None
                }
            });
            if let Some(documents) = transaction.end(done).await? {
                return Ok(Some(PutBack { documents, failures, last }));
            }
        }
    }

    async fn entries(&self, journal: &Journal, last: &Bson) -> Result<Vec<RawDocumentBuf>, Error> {
        let find = journal.entries.find(keys::after("_id", last)).sort(doc! {"_id": 1}).limit(TOGETHER);
        let mut cursor = within(async { Ok(find.await?) }).await?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < MAX_COMMAND
            && let Some(entry) = within(async { Ok(cursor.try_next().await?) }).await?
        {
            bytes += entry.as_bytes().len();
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Returns the number of restored documents, or the first entry whose document MongoDB refuses to restore.
    async fn put_all_back(
        &self,
        journal: &Journal,
        entries: &[RawDocumentBuf],
        session: &mut ClientSession,
    ) -> Result<Result<i64, (usize, DocumentFailure)>, Error> {
        let before = journal.check(Some(&mut *session)).await?;
        let ids: Vec<Bson> = entries.iter().filter_map(|entry| id(entry)).collect();
        let now = self.whole(doc! {"_id": {"$in": ids.clone()}}, session).await?;
        // Upserts are not used: in a sharded collection, MongoDB creates a document only where the query has the
        // shard key.
        let (mut updates, mut inserts, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (entry, id)) in entries.iter().zip(&ids).enumerate() {
            let (before, after, now) = (document(entry, "before"), document(entry, "after"), now.document(id));
            match restored(before.as_ref(), after.as_ref(), now.as_ref(), &self.progress) {
                Restored::AsIs => {}
                Restored::Is(document) if now.is_none() => inserts.push((at, document)),
                Restored::Is(document) => updates.push((at, doc! {"q": {"_id": id}, "u": document})),
                Restored::Gone => gone.push(id.clone()),
            }
        }
        let name = self.collection.name();
        for (kind, list, statements) in [("update", "updates", &updates), ("insert", "documents", &inserts)] {
            for chunk in chunks(statements, |(_, statement)| size(statement)) {
                let documents: Vec<_> = chunk.iter().map(|(_, statement)| statement.clone()).collect();
                let reply = self.command(doc! {kind: name, list: documents}, Some(&mut *session)).await?;
                if let Some(error) = first_error(&reply) {
                    let at = chunk.get(integer(error, "index") as usize).map_or(0, |(at, _)| *at);
                    return Ok(Err((at, self.not_put_back(&entries[at], error))));
                }
            }
        }
        if !gone.is_empty() {
            done(&self.command(removal(name, &gone), Some(&mut *session)).await?)?;
        }
        done(&self.command(removal(journal.entries.name(), &ids), Some(&mut *session)).await?)?;
        let documents = before + (updates.len() + inserts.len() + gone.len()) as i64;
        let counted = doc! {"q": {"_id": Bson::MinKey}, "u": {"$set": {"putBack": documents}}};
        let command = doc! {"update": journal.entries.name(), "updates": [counted]};
        done(&self.command(command, Some(session)).await?)?;
        Ok(Ok(documents))
    }

    fn not_put_back(&self, entry: &RawDocument, error: &Document) -> DocumentFailure {
        let (reason, message) = refusal(error);
        let whole = document(entry, "before").unwrap_or_default();
        let key = whole.get(&self.key).map(keys::show).unwrap_or_default();
        DocumentFailure { key, reason: reason.to_owned(), message: format!("could not be restored: {message}") }
    }
}

/// Documents by their ids.
pub(super) struct Whole(BTreeMap<Vec<u8>, (Bson, RawDocumentBuf)>);

impl Whole {
    fn changes(self, after: Self) -> impl Iterator<Item = (Bson, Change)> {
        let mut changes: BTreeMap<Vec<u8>, (Bson, Change)> = BTreeMap::new();
        for (identity, (id, whole)) in self.0 {
            changes.insert(identity, (id, Change { before: Some(whole), after: None }));
        }
        for (identity, (id, whole)) in after.0 {
            changes.entry(identity).or_insert_with(|| (id, Change::default())).1.after = Some(whole);
        }
        changes.into_values().filter(|(_, change)| change.before != change.after)
    }

    fn document(&self, id: &Bson) -> Option<Document> {
        let (_, whole) = self.0.get(&identity(id))?;
        Document::try_from(&**whole).ok()
    }
}

/// Binary form of a key. In contrast to the text of a key, it distinguishes 1 from "1".
fn identity(id: &Bson) -> Vec<u8> {
    bson::serialize_to_vec(&doc! {"": id.clone()}).unwrap_or_default()
}

fn removal(collection: &str, ids: &[Bson]) -> Document {
    doc! {"delete": collection, "deletes": [{"q": {"_id": {"$in": ids}}, "limit": 0}]}
}
