//! Writes of the results of a source into the documents of a batch.

use std::collections::{HashMap, HashSet};

use bson::{Bson, DateTime, Document, RawBsonRef, RawDocumentBuf, cstr, doc};
use futures::try_join;
use jiff::Timestamp;
use mongodb::ClientSession;
use serde_json::Value;

use super::{
    Batch, BatchResult, Listing, ReadDocument, TargetCollection, both, chunks, done, integer, size,
    statement::{WriteGuard, raw, raw_size},
    transaction::BatchTransaction,
};
use crate::{
    domain::source::Missing,
    sync::{
        Error, Found,
        error::refusal,
        keys,
        mapping::{self, Changes},
    },
};

/// A write that MongoDB refuses.
struct Refused<'a> {
    /// Position among the writes.
    at: usize,
    key: &'a Bson,
    /// A word and a sentence. `None`: there is nothing wrong.
    why: Option<(&'static str, String)>,
}

/// Write of one document.
pub(super) struct Write<'a> {
    pub read: &'a ReadDocument,
    pub changes: Changes<'a>,
    /// The stamp that was read.
    pub stamped: Option<DateTime>,
    /// True when more than the stamp changes.
    pub differs: bool,
    pub kind: WriteKind,
}

/// Reason of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteKind {
    /// The source has it.
    Result,
    /// The source reported that it no longer has the document.
    Absence,
    /// The document is marked, or adopted.
    Removal,
    /// The source lists it, with a result that cannot be written.
    Listing,
}

/// A document of a batch that the source lists with a result that can be written.
struct Listed<'a> {
    read: &'a ReadDocument,
    /// The stamp that was read.
    stamped: Option<DateTime>,
    /// True when more than the stamp changes.
    differs: bool,
}

impl<'a> Listed<'a> {
    fn from_write(write: &Write<'a>) -> Self {
        Self { read: write.read, stamped: write.stamped, differs: write.differs }
    }
}

impl<'a> Write<'a> {
    fn key(&self) -> &'a Bson {
        &self.read.key
    }

    /// True when the write creates the document.
    fn is_new(&self) -> bool {
        self.read.fields.is_none()
    }
}

impl TargetCollection {
    /// Writes the results of a source for [`Batch::due`], in the same order, which were requested at `fetched`. A
    /// document that another run fetched later stays as it is. A repeated or late call does no harm.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the whole batch. Documents that cannot be written are no error.
    pub async fn apply(&self, batch: Batch, found: Vec<Found>, fetched: Timestamp) -> Result<BatchResult, Error> {
        let mut outcome = batch.outcome();
        let stamp = DateTime::from_millis(fetched.as_millisecond());
        let (mut writes, mut absent, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
        for (read, found) in batch.due_documents().zip(found) {
            let is_listed = self.listing != Listing::Documents || matches!(found, Found::Result(_));
            let changes = match found {
                Found::Result(result) => self.changes(read, &result).map_err(|message| ("MappingFailed", message)),
                Found::Missing | Found::NotReturned if self.missing == Missing::Fail => {
                    Err(("NotReturned", "the source has no result for it".to_owned()))
                }
                Found::Missing if self.removal.is_some() && self.is_confirmed(read) => {
                    outcome.absent += 1;
                    absent.push(read);
                    continue;
                }
                Found::Missing => {
                    outcome.unconfirmed += i64::from(!self.is_confirmed(read));
                    continue;
                }
                Found::NotReturned => continue,
                Found::Failed(reason, message) => Err((reason, message)),
            };
            match changes {
                Ok(changes) => writes.push(Write {
                    read,
                    stamped: self.stamp_of(read),
                    differs: !read.fields.as_ref().is_some_and(|fields| changes.are_in(fields)),
                    kind: WriteKind::Result,
                    changes,
                }),
                Err((reason, message)) => {
                    outcome.fail(&read.key, reason, &message);
                    unusable.extend(is_listed.then_some(read));
                }
            }
        }
        let listed: Vec<Listed> = writes.iter().map(Listed::from_write).collect();
        if self.dry_run {
            outcome.changes = writes.iter().filter(|write| write.differs).map(Write::key).map(keys::show).collect();
            outcome.updated = outcome.changes.len() as i64;
            self.try_removal(&absent, stamp, &mut outcome);
        } else {
            writes.extend(absent.iter().map(|read| self.absence(read, stamp)));
            self.write_batch(writes, &[], stamp, &mut outcome).await?;
            self.end_absence(&listed, unusable, stamp, &mut outcome).await?;
        }
        self.count_listed(&listed, &mut outcome);
        outcome.unchanged = (batch.documents.len() as i64 - outcome.updated - outcome.failures.len() as i64).max(0);
        Ok(outcome)
    }

    /// Records that the source lists documents, although their results cannot be used, or MongoDB refuses them, and
    /// removes their marks. Otherwise an overlapping run would mark them, or a later run delete them.
    async fn end_absence(
        &self,
        listed: &[Listed<'_>],
        unusable: Vec<&ReadDocument>,
        stamp: DateTime,
        outcome: &mut BatchResult,
    ) -> Result<(), Error> {
        let failed: HashSet<&String> = outcome.failed.iter().collect();
        if self.removal.is_none() || failed.is_empty() {
            return Ok(());
        }
        let is_failed = |read: &&ReadDocument| failed.contains(&keys::text(&read.key));
        let refused = listed.iter().map(|listed| listed.read).filter(is_failed);
        let may_be_marked = |read: &&ReadDocument| match self.listing {
            Listing::Pages { .. } => self.stamp_of(read).is_some(),
            Listing::Documents => self.marked_at(read).is_some(),
        };
        let reads = refused.chain(unusable).filter(may_be_marked);
        let ends: Vec<Write> = reads.map(|read| self.end_of_absence(read, stamp)).collect();
        if ends.is_empty() {
            return Ok(());
        }
        // They have failed already.
        let mut written = BatchResult::default();
        self.write_batch(ends, &[], stamp, &mut written).await?;
        outcome.unmarked += written.updated;
        Ok(())
    }

    /// Counts the absences and confirmations of listed documents that were written.
    fn count_listed(&self, listed: &[Listed<'_>], outcome: &mut BatchResult) {
        let failed: HashSet<&String> = outcome.failed.iter().collect();
        let is_written = |read: &ReadDocument| failed.is_empty() || !failed.contains(&keys::text(&read.key));
        let (mut first_confirmed, mut changed, mut unmarked) = (0, 0, 0);
        for Listed { read, stamped, differs } in listed.iter().filter(|listed| is_written(listed.read)) {
            first_confirmed += i64::from(stamped.is_none());
            changed += i64::from(*differs && stamped.is_some_and(|at| at < self.stamp));
            unmarked += i64::from(self.removal.is_some() && self.marked_at(read).is_some());
        }
        (outcome.first_confirmed, outcome.changed) = (first_confirmed, changed);
        outcome.unmarked += unmarked;
    }

    /// Writes a batch, and adds the result to `outcome`.
    pub(super) async fn write_batch<'a>(
        &self,
        writes: Vec<Write<'a>>,
        deletes: &[&'a ReadDocument],
        stamp: DateTime,
        outcome: &mut BatchResult,
    ) -> Result<(), Error> {
        let (updated, refused) = if self.transaction {
            self.write_as_a_whole(writes, deletes, stamp).await?
        } else {
            self.write_apart(writes, deletes, stamp).await?
        };
        outcome.updated += updated;
        for Refused { key, why, .. } in refused {
            if let Some((reason, message)) = why {
                outcome.fail(key, reason, &message);
            }
        }
        Ok(())
    }

    /// Writes documents that differ one by one, and the others together.
    async fn write_apart<'a>(
        &self,
        writes: Vec<Write<'a>>,
        deletes: &[&ReadDocument],
        stamp: DateTime,
    ) -> Result<(i64, Vec<Refused<'a>>), Error> {
        let is_same = |write: &Write| {
            let is_plain = write.kind == WriteKind::Result && !self.is_marked_elsewhere(write.read);
            !write.differs && write.stamped.is_some() && is_plain
        };
        let (same, other): (Vec<_>, Vec<_>) = writes.into_iter().partition(is_same);
        let (refused, (updated, more)) =
            try_join!(self.stamp_same(&same, stamp), self.write_all(&other, deletes, stamp, None))?;
        Ok((updated, refused.into_iter().chain(more).collect()))
    }

    /// Stamps documents that are as they should be, with one statement for all that carry the same stamp. A document
    /// with another stamp than the one that was read may have been changed by another run, and is written by itself.
    async fn stamp_same<'a>(&self, same: &[Write<'a>], stamp: DateTime) -> Result<Vec<Refused<'a>>, Error> {
        let (mut refused, guard) = (Vec::new(), self.guard(stamp)?);
        let update = self.listed(self.stamps(stamp), Document::new(), false);
        for chunk in chunks(same, |write| write.read.size()) {
            let mut by_stamp: HashMap<_, Vec<_>> = HashMap::new();
            for write in chunk {
                by_stamp.entry(write.stamped).or_default().push(write.key().clone());
            }
            let together = |(stamped, keys): (Option<DateTime>, Vec<Bson>)| {
                let these = both(self.keys_query(keys), doc! {&self.progress: stamped});
                guard.statement(&these, &update)
            };
            let statements = by_stamp.into_iter().map(together).collect::<Result<Vec<_>, _>>()?;
            let mut stamped = 0;
            for some in chunks(&statements, raw_size) {
                stamped += integer(&self.update(some, None).await?, "n");
            }
            if stamped < chunk.len() as i64 {
                refused.extend(self.write_all(chunk, &[], stamp, None).await?.1);
            }
        }
        Ok(refused)
    }

    /// Writes in one transaction. What MongoDB refuses ends it, and is left out of the next try.
    async fn write_as_a_whole<'a>(
        &self,
        mut writes: Vec<Write<'a>>,
        deletes: &[&ReadDocument],
        stamp: DateTime,
    ) -> Result<(i64, Vec<Refused<'a>>), Error> {
        let mut left_out = Vec::new();
        let mut transaction = BatchTransaction::new(self).await?;
        loop {
            let written = self.write_journalled(&writes, deletes, stamp, transaction.begin().await?).await;
            let written = written.map(|(updated, refused)| match refused.into_iter().next() {
                None => Some(updated),
                Some(refused) => {
                    writes.remove(refused.at);
                    left_out.push(refused);
                    None
                }
            });
            if let Some(updated) = transaction.end(written).await? {
                return Ok((updated, left_out));
            }
        }
    }

    /// Writes in a transaction, and records the changes in the journal if the run has one.
    async fn write_journalled<'a>(
        &self,
        writes: &[Write<'a>],
        deletes: &[&ReadDocument],
        stamp: DateTime,
        session: &mut ClientSession,
    ) -> Result<(i64, Vec<Refused<'a>>), Error> {
        let Some(journal) = &self.journal else { return self.write_all(writes, deletes, stamp, Some(session)).await };
        journal.check(Some(&mut *session)).await?;
        let keys: Vec<Bson> =
            writes.iter().map(Write::key).chain(deletes.iter().map(|read| &read.key)).cloned().collect();
        let these = self.keys_query(keys);
        let before = self.whole(these.clone(), session).await?;
        let (updated, mut refused) = self.write_all(writes, deletes, stamp, Some(&mut *session)).await?;
        if refused.is_empty() {
            let after = self.whole(these, session).await?;
            if let Some(key) = self.append_entry(journal, before, after, session).await? {
                let why = ("DocumentTooLarge", "the document is too large for the journal".to_owned());
                let Some(at) = writes.iter().position(|write| *write.key() == key) else {
                    return Err(Error::Attempt { reason: why.0, message: why.1 });
                };
                refused.push(Refused { at, key: writes[at].key(), why: Some(why) });
            }
        }
        Ok((updated, refused))
    }

    /// Returns the number of changed documents, and the documents that MongoDB refuses. The first refused document ends
    /// a transaction.
    async fn write_all<'a>(
        &self,
        writes: &[Write<'a>],
        deletes: &[&ReadDocument],
        stamp: DateTime,
        mut session: Option<&mut ClientSession>,
    ) -> Result<(i64, Vec<Refused<'a>>), Error> {
        let (mut updated, mut refused, guard) = (0, Vec::new(), self.guard(stamp)?);
        let statements = writes.iter().map(|write| self.change(write, stamp, &guard)).collect::<Result<Vec<_>, _>>()?;
        let mut before = 0;
        for chunk in chunks(&statements, raw_size) {
            let (changed, failed) = self.write_chunk(writes, before, chunk, session.as_deref_mut()).await?;
            updated += changed;
            refused.extend(failed);
            before += chunk.len();
            if session.is_some() && !refused.is_empty() {
                return Ok((updated, refused));
            }
        }
        for chunk in chunks(deletes, |read| size(&self.as_read(read))) {
            updated += self.delete(chunk, session.as_deref_mut()).await?;
        }
        Ok((updated, refused))
    }

    async fn write_chunk<'a>(
        &self,
        writes: &[Write<'a>],
        before: usize,
        statements: &[RawDocumentBuf],
        session: Option<&mut ClientSession>,
    ) -> Result<(i64, Vec<Refused<'a>>), Error> {
        let writes = &writes[before..before + statements.len()];
        let reply = self.update(statements, session).await?;
        let mut differing = writes.iter().filter(|write| write.differs).count() as i64;
        let mut refused = Vec::new();
        for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
            let at = integer(error, "index") as usize;
            let Some(write) = writes.get(at) else { continue };
            // Another client has created the document meanwhile, or the filter excludes it.
            let exists =
                write.is_new() && error.get_document("keyPattern").is_ok_and(|keys| keys.keys().eq([&self.key]));
            let why = (!exists).then(|| refusal(error));
            refused.push(Refused { at: before + at, key: write.key(), why });
            differing -= i64::from(write.differs);
        }
        // The other documents do not exist, or another run fetched them later.
        let absent = (writes.len() as i64 - refused.len() as i64 - integer(&reply, "n")).max(0);
        Ok(((differing - absent).max(0), refused))
    }

    /// The update of a listed document. It ends the absence of the document, also where another run marked it after it
    /// was read.
    fn listed(&self, set: Document, mut unset: Document, is_marked_elsewhere: bool) -> Document {
        if let (Some(state), Some(removal)) = (&self.state, &self.removal) {
            let mark = Some(&removal.field).filter(|_| !is_marked_elsewhere);
            let paths = [&state.gone, &state.none, &state.failed].into_iter().chain(mark);
            let paths = paths.filter(|path| !set.contains_key(*path));
            unset.extend(paths.map(|path| (path.clone(), Bson::from(""))));
        }
        updated(set, unset)
    }

    /// Returns the stamp for users, and the confirmation.
    fn stamps(&self, stamp: DateTime) -> Document {
        doc! {&self.stamp_field: stamp, &self.progress: stamp}
    }

    /// True when this source listed the document before this run.
    pub(super) fn is_confirmed(&self, read: &ReadDocument) -> bool {
        self.stamp_of(read).is_some_and(|at| at < self.stamp)
    }

    fn stamp_of(&self, read: &ReadDocument) -> Option<DateTime> {
        read.date(&self.progress)
    }

    /// Changes that a result makes to its document.
    fn changes(&self, read: &ReadDocument, result: &Value) -> Result<Changes<'_>, String> {
        let mut changes = mapping::apply(self.mapping.as_deref().unwrap_or_default(), result)?;
        self.unmark(read, &mut changes);
        Ok(changes)
    }

    /// Deletes documents that are as they were read. Returns how many.
    async fn delete(&self, reads: &[&ReadDocument], session: Option<&mut ClientSession>) -> Result<i64, Error> {
        let deletes: Vec<_> = reads.iter().map(|read| doc! {"q": self.as_read(read), "limit": 0}).collect();
        let command = doc! {"delete": self.collection.name(), "deletes": deletes, "ordered": false};
        let reply = self.command(command, session).await?;
        done(&reply)?;
        Ok(integer(&reply, "n"))
    }

    /// Statement that applies the changes to one document, and stamps it.
    fn change(&self, write: &Write, stamp: DateTime, guard: &WriteGuard) -> Result<RawDocumentBuf, Error> {
        let Changes { set, unset } = &write.changes;
        let mut set: Document = set.iter().map(|(path, value)| ((*path).to_owned(), value.clone())).collect();
        match write.kind {
            WriteKind::Result => set.extend(self.stamps(stamp)),
            WriteKind::Absence => drop(set.insert(&self.progress, stamp)),
            WriteKind::Removal => return raw(&doc! {"q": self.as_read(write.read), "u": self.mark(set)}),
            WriteKind::Listing => {}
        }
        let unset: Document = unset.iter().map(|path| ((*path).to_owned(), Bson::from(""))).collect();
        let update = match write.kind {
            WriteKind::Result | WriteKind::Listing => self.listed(set, unset, self.is_marked_elsewhere(write.read)),
            WriteKind::Absence | WriteKind::Removal => updated(set, unset),
        };
        let mut statement = guard.statement(&self.key_query(write.key()), &update)?;
        if write.is_new() {
            statement.append(cstr!("upsert"), true);
        }
        Ok(statement)
    }
}

fn updated(set: Document, unset: Document) -> Document {
    let parts = [("$set", set), ("$unset", unset)].into_iter().filter(|(_, fields)| !fields.is_empty());
    parts.map(|(operator, fields)| (operator.to_owned(), fields.into())).collect()
}

impl ReadDocument {
    /// Bytes that were read, its key among them.
    fn size(&self) -> usize {
        self.fields.as_ref().map_or(0, |fields| fields.as_bytes().len())
    }

    /// A date that was read.
    pub(super) fn date(&self, path: &str) -> Option<DateTime> {
        match keys::at_path(self.fields.as_ref()?, path) {
            Some(RawBsonRef::DateTime(at)) => Some(at),
            _ => None,
        }
    }
}
