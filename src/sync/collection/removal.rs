//! Marks and deletes documents that the source does not have any more.
//!
//! A document can be removed under four conditions. This source confirmed it before the run began, the run did not find
//! it in the source, no other document has its key, and it has not changed. The first run marks the document, and a
//! later run, which began after the mark, deletes it.

use std::{collections::HashSet, time::Duration};

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use futures::{Stream, TryStreamExt};
use jiff::Timestamp;
use mongodb::Cursor;

use super::{
    BatchResult, Listing, ReadDocument, Stamped, TargetCollection,
    apply::{Write, WriteKind},
    both, integer, within_limit,
};
use crate::{
    domain::{
        guard::{MAX_KEYS, Removals},
        source::STATE,
    },
    sync::{
        Error, keys,
        mapping::{self, Changes},
    },
};

/// Candidates that are read together.
const TOGETHER: usize = 1000;

/// Documents to remove, and the result for each of them.
#[derive(Clone, Debug, Default)]
pub struct RemovalCandidates {
    reads: Vec<(ReadDocument, Fate)>,
}

/// Documents of the selection of a run, by the answers of its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// Confirmed ones that were not marked when the run started, those included that it has confirmed.
    pub confirmed: i64,
    /// Documents that no run of this source has confirmed.
    pub unconfirmed: i64,
    /// Documents that were marked since the run started.
    pub marked: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Marked,
    Deleted,
    Adopted,
}

impl RemovalCandidates {
    /// Number of documents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.reads.len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// Keeps the first `count` documents.
    pub fn truncate(&mut self, count: usize) {
        self.reads.truncate(count);
    }

    /// Adds their numbers to `removals`, and the keys of the first ones to `keys`.
    pub fn count(&self, removals: &mut Removals, keys: &mut Vec<String>) {
        for (read, fate) in &self.reads {
            *match fate {
                Fate::Marked => &mut removals.marks,
                Fate::Deleted => &mut removals.deletions,
                Fate::Adopted => &mut removals.adoptions,
            } += 1;
            if keys.len() < MAX_KEYS {
                keys.push(keys::show(&read.key));
            }
        }
    }
}

impl TargetCollection {
    /// True when the run may mark and delete documents.
    #[must_use]
    pub fn removes(&self) -> bool {
        self.removal.is_some()
    }

    /// True when a dry run has counted the documents to remove during the walk.
    #[must_use]
    pub fn has_tried_removal(&self) -> bool {
        self.dry_run && self.listing == Listing::Documents
    }

    /// Counts the documents of the selection by the answers of the source.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the query.
    pub async fn count_states(&self) -> Result<States, Error> {
        let Some(state) = &self.state else { return Ok(States::default()) };
        let is_date = |path: &str| doc! {"$eq": [{"$type": format!("${path}")}, "date"]};
        let (is_confirmed, is_marked) = (is_date(&state.at), is_date(&state.gone));
        let by_this_run = doc! {"$and": [is_marked.clone(), {"$gte": [format!("${}", state.gone), self.stamp]}]};
        let sum = |condition: Document| doc! {"$sum": {"$cond": [condition, 1_i64, 0_i64]}};
        let unmarked = doc! {"$or": [{"$not": [is_marked]}, by_this_run.clone()]};
        let pipeline = [
            doc! {"$match": self.filter.clone()},
            doc! {"$group": {
                "_id": Bson::Null,
                "confirmed": sum(doc! {"$and": [is_confirmed.clone(), unmarked]}),
                "unconfirmed": sum(doc! {"$not": [is_confirmed]}),
                "marked": sum(by_this_run),
            }},
        ];
        let counted = async {
            Ok(self.collection.aggregate(pipeline).max_time(self.read_limit).await?.try_collect::<Vec<_>>().await?)
        };
        let groups = within_limit(self.read_limit, counted).await?;
        let count = |field| groups.first().map_or(0, |group| integer(group, field));
        Ok(States { confirmed: count("confirmed"), unconfirmed: count("unconfirmed"), marked: count("marked") })
    }

    /// Finds the documents that can be removed at `now`, in batches, in key order. `listed` are keys, as text, that the
    /// source listed although their documents do not show it.
    pub fn candidates<'a>(
        &'a self,
        now: Timestamp,
        listed: &'a HashSet<String>,
    ) -> impl Stream<Item = Result<RemovalCandidates, Error>> + 'a {
        let query = both(self.filter.clone(), self.removable(now));
        let opened = async move {
            let find = self.collection.find(query).sort(doc! {&self.key: 1}).projection(self.whole_state());
            let find = find.batch_size(TOGETHER as u32);
            within_limit(self.read_limit, async { Ok(find.await?) }).await
        };
        futures::stream::once(opened)
            .map_ok(|cursor| futures::stream::try_unfold(cursor, |cursor| self.next_documents(cursor)))
            .try_flatten()
            .and_then(move |documents| self.as_candidates(documents, listed))
    }

    async fn next_documents(
        &self,
        mut cursor: Cursor<RawDocumentBuf>,
    ) -> Result<Option<(Vec<RawDocumentBuf>, Cursor<RawDocumentBuf>)>, Error> {
        let mut documents = Vec::new();
        while documents.len() < self.batch_size.min(TOGETHER)
            && within_limit(self.read_limit, async { Ok(cursor.advance().await?) }).await?
        {
            documents.push(cursor.current().to_owned());
        }
        Ok((!documents.is_empty()).then_some((documents, cursor)))
    }

    /// Returns the query for documents that this run did not find in the source, and may mark, delete or adopt.
    fn removable(&self, now: Timestamp) -> Document {
        let (Some(state), Some(removal)) = (&self.state, &self.removal) else { return doc! {"_id": {"$in": []}} };
        let mut missing = match self.listing {
            Listing::Pages { .. } => doc! {
                &state.at: {"$lt": self.stamp, "$type": "date"},
                &state.failed: {"$not": {"$gte": self.stamp}},
            },
            Listing::Documents => doc! {&state.none: {"$gte": self.stamp}},
        };
        let unmarked = doc! {&state.gone: {"$exists": false}};
        match removal.delete_after {
            None => missing.extend(unmarked),
            Some(after) => drop(missing.insert("$or", [unmarked, doc! {&state.gone: self.deletable(now, after)}])),
        }
        if removal.adopt {
            doc! {"$or": [missing, {&state.at: {"$not": {"$type": "date"}}}]}
        } else {
            missing
        }
    }

    /// The condition on the mark of documents that can be deleted at `now`: it is from before this run, and `after` has
    /// passed since.
    fn deletable(&self, now: Timestamp, after: Duration) -> Document {
        let latest = now.as_millisecond().saturating_sub(after.as_millis() as i64);
        doc! {"$lt": self.stamp, "$lte": DateTime::from_millis(latest), "$type": "date"}
    }

    fn whole_state(&self) -> Document {
        let mut projection = doc! {"_id": 1, &self.key: 1, STATE: 1};
        if let Some(removal) = &self.removal {
            projection.extend(removal.set.iter().map(|(field, _)| (field.clone(), Bson::from(1))));
        }
        projection
    }

    async fn as_candidates(
        &self,
        documents: Vec<RawDocumentBuf>,
        listed: &HashSet<String>,
    ) -> Result<RemovalCandidates, Error> {
        let shared = self.shared_keys(&documents).await?;
        let mut reads = Vec::with_capacity(documents.len());
        for document in documents {
            let is_shared = keys::key_at(&document, "_id").is_none_or(|id| shared.contains(&id));
            let read = self.read_document(&document);
            if is_shared || read.stamped == Stamped::InvalidKey || listed.contains(&keys::text(&read.key)) {
                continue;
            }
            let fate = match self.state.as_ref() {
                Some(state) if read.date(&state.at).is_none() => Fate::Adopted,
                _ if self.marked_at(&read).is_some() => Fate::Deleted,
                _ => Fate::Marked,
            };
            reads.push((read, fate));
        }
        Ok(RemovalCandidates { reads })
    }

    /// The `_id`s of those documents whose key another document has too. Which keys are equal, MongoDB decides: the
    /// collection may have a collation.
    async fn shared_keys(&self, documents: &[RawDocumentBuf]) -> Result<Vec<Bson>, Error> {
        if self.key == "_id" {
            return Ok(Vec::new());
        }
        let these: Vec<Bson> = documents.iter().filter_map(|document| keys::key_at(document, &self.key)).collect();
        let pipeline = [
            doc! {"$match": self.keys_query(these)},
            doc! {"$group": {"_id": format!("${}", self.key), "ids": {"$push": "$_id"}}},
            doc! {"$match": {"ids.1": {"$exists": true}}},
        ];
        let found = async {
            Ok(self.collection.aggregate(pipeline).max_time(self.read_limit).await?.try_collect::<Vec<_>>().await?)
        };
        let groups = within_limit(self.read_limit, found).await?;
        Ok(groups.iter().filter_map(|group| group.get_array("ids").ok()).flatten().cloned().collect())
    }

    /// Removes documents, as far as they are as they were read.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the whole batch. Documents that cannot be written are no error.
    pub async fn remove(&self, candidates: &RemovalCandidates, now: Timestamp) -> Result<BatchResult, Error> {
        let of = |wanted: Fate| candidates.reads.iter().filter(move |(_, fate)| *fate == wanted).map(|(read, _)| read);
        let (mut outcome, now) = (BatchResult::default(), DateTime::from_millis(now.as_millisecond()));
        if self.dry_run {
            outcome.changes = candidates.reads.iter().map(|(read, _)| keys::show(&read.key)).collect();
            outcome.marked = of(Fate::Marked).count() as i64;
            outcome.deleted = of(Fate::Deleted).count() as i64;
            outcome.updated = candidates.len() as i64;
            return Ok(outcome);
        }
        let adopted = of(Fate::Adopted).map(|read| self.adoption(read, now)).collect();
        self.write_batch(adopted, &[], now, &mut outcome).await?;
        let before = outcome.updated;
        let marks = of(Fate::Marked).map(|read| self.removal_mark(read, now)).collect();
        self.write_batch(marks, &[], now, &mut outcome).await?;
        outcome.marked = outcome.updated - before;
        let before = outcome.updated;
        let deletes: Vec<&ReadDocument> = of(Fate::Deleted).collect();
        self.write_batch(Vec::new(), &deletes, now, &mut outcome).await?;
        outcome.deleted = outcome.updated - before;
        let written = outcome.updated + outcome.failures.len() as i64;
        outcome.unchanged = match self.listing {
            Listing::Pages { .. } => (candidates.len() as i64 - written).max(0),
            // The walk has counted them as unchanged.
            Listing::Documents => -written,
        };
        Ok(outcome)
    }

    /// Counts, in a dry run, the documents that a run would remove because the source does not have them.
    pub(super) fn try_removal(&self, absent: &[&ReadDocument], now: DateTime, outcome: &mut BatchResult) {
        let Some(removal) = &self.removal else { return };
        for read in absent {
            let latest = removal.delete_after.map(|after| now.timestamp_millis() - after.as_millis() as i64);
            match (self.marked_at(read), latest) {
                (None, _) => outcome.marked += 1,
                (Some(at), Some(latest)) if at < self.stamp && at.timestamp_millis() <= latest => outcome.deleted += 1,
                _ => continue,
            }
            outcome.updated += 1;
            outcome.changes.push(keys::show(&read.key));
        }
    }

    /// Time at which this source marked the document.
    pub(super) fn marked_at(&self, read: &ReadDocument) -> Option<DateTime> {
        read.date(&self.state.as_ref()?.gone)
    }

    /// Returns the write that records the absence of the document in the source.
    pub(super) fn absence<'a>(&'a self, read: &'a ReadDocument, at: DateTime) -> Write<'a> {
        let set = self.state.iter().map(|state| (state.none.as_str(), at.into())).collect();
        let changes = Changes { set, ..Changes::default() };
        Write { read, changes, stamped: None, differs: false, kind: WriteKind::Absence }
    }

    /// The write that ends the absence of a document which the source listed at this time, with a result that cannot be
    /// written.
    pub(super) fn end_of_absence<'a>(&'a self, read: &'a ReadDocument, at: DateTime) -> Write<'a> {
        let mut changes = Changes::default();
        self.unmark(read, &mut changes);
        if let (Some(state), Listing::Pages { .. }) = (&self.state, self.listing) {
            changes.set.push((&state.failed, at.into()));
        }
        Write { read, changes, stamped: None, differs: self.marked_at(read).is_some(), kind: WriteKind::Listing }
    }

    fn removal_mark<'a>(&'a self, read: &'a ReadDocument, at: DateTime) -> Write<'a> {
        let mut changes = Changes::default();
        if let (Some(state), Some(removal)) = (&self.state, &self.removal) {
            changes.set = vec![(&state.gone, at.into()), (&removal.field, at.into())];
        }
        Write { read, changes, stamped: None, differs: true, kind: WriteKind::Removal }
    }

    fn adoption<'a>(&'a self, read: &'a ReadDocument, at: DateTime) -> Write<'a> {
        let set = self.state.iter().map(|state| (state.at.as_str(), at.into())).collect();
        let changes = Changes { set, ..Changes::default() };
        Write { read, changes, stamped: None, differs: true, kind: WriteKind::Removal }
    }

    /// The update that sets `set`, and for a mark also the fields of `missing.set`, whose values it keeps.
    pub(super) fn mark(&self, set: Document) -> Vec<Document> {
        let mut stage: Document =
            set.into_iter().map(|(path, value)| (path, doc! {"$literal": value}.into())).collect();
        if let (Some(state), Some(removal)) = (&self.state, &self.removal)
            && stage.contains_key(&state.gone)
            && !removal.set.is_empty()
        {
            let entry = |(field, value): &(String, serde_json::Value)| {
                let set = mapping::constant(value);
                // Absent fields stay absent in the entry.
                doc! {"f": {"$literal": field}, "s": {"$literal": set}, "v": format!("${field}")}
            };
            stage.insert(&state.was, removal.set.iter().map(entry).collect::<Vec<_>>());
            stage.extend(
                removal
                    .set
                    .iter()
                    .map(|(field, value)| (field.clone(), doc! {"$literal": mapping::constant(value)}.into())),
            );
        }
        vec![doc! {"$set": stage}]
    }

    /// The query for a document as it was read: the times in the state of the source are the same.
    pub(super) fn as_read(&self, read: &ReadDocument) -> Document {
        let id = read.fields.as_ref().and_then(|fields| keys::key_at(fields, "_id"));
        let mut query = match id {
            Some(id) => doc! {"_id": {"$eq": id}},
            None => self.key_query(&read.key),
        };
        for path in self.state.iter().flat_map(|state| [&state.at, &state.none, &state.failed, &state.gone]) {
            let value = read.date(path).map_or_else(|| doc! {"$not": {"$type": "date"}}.into(), Bson::from);
            query.insert(path, value);
        }
        both(self.filter.clone(), query)
    }

    /// True when another source has marked the document: the mark for users then stays.
    pub(super) fn is_marked_elsewhere(&self, read: &ReadDocument) -> bool {
        let (Some(state), Some(removal), Some(fields)) = (&self.state, &self.removal, &read.fields) else {
            return false;
        };
        keys::at_path(fields, &removal.field).is_some() && is_marked_by_another(fields, &state.all)
    }

    /// Adds the end of an absence to the changes of a listed document. The mark of this source is removed, and the mark
    /// for users where no other source has one. The values that the mark replaced are restored unless another client
    /// changed them.
    pub(super) fn unmark<'a>(&'a self, read: &ReadDocument, changes: &mut Changes<'a>) {
        let (Some(state), Some(fields)) = (&self.state, &read.fields) else { return };
        if read.date(&state.none).is_some() {
            changes.unset.push(&state.none);
        }
        let Some(removal) = &self.removal else { return };
        if read.date(&state.gone).is_some() {
            changes.unset.push(&state.gone);
        }
        if !self.is_marked_elsewhere(read) {
            changes.unset.push(&removal.field);
        }
        let Some(was) = keys::key_at(fields, &state.was) else { return };
        changes.unset.push(&state.was);
        for entry in was.as_array().into_iter().flatten().filter_map(Bson::as_document) {
            let field = removal.set.iter().find(|(field, _)| entry.get_str("f").is_ok_and(|name| name == field));
            let Some((field, _)) = field.filter(|(field, _)| keys::key_at(fields, field).as_ref() == entry.get("s"))
            else {
                continue;
            };
            match entry.get("v") {
                Some(value) => changes.set.push((field, value.clone())),
                None => changes.unset.push(field),
            }
        }
    }
}

fn is_marked_by_another(fields: &RawDocumentBuf, own: &str) -> bool {
    let Some(Bson::Document(sources)) = keys::key_at(fields, STATE) else { return false };
    let own = own.split_once('.').map_or(own, |(_, name)| name);
    let others = sources.iter().filter(|(name, _)| name.as_str() != own);
    others.filter_map(|(_, state)| state.as_document()).any(|state| state.get_datetime("gone").is_ok())
}
