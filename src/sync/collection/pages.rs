//! Reads the documents of a page of results, and checks that results and documents fit.

use std::collections::{HashMap, HashSet};

use bson::{Bson, doc};
use jiff::Timestamp;
use mongodb::IndexModel;

use super::{
    Batch, BatchResult, Listing, PageEnd, ReadDocument, Stamped, TargetCollection, both, within, within_limit,
};
use crate::{
    domain::source::Missing,
    sync::{Error, Found, SourcePage, keys},
};

impl TargetCollection {
    /// Checks that documents can be created without duplicates. `field`: the field of the spec that requests this.
    ///
    /// # Errors
    /// When documents cannot be created.
    pub async fn check_upsert(&self, field: &str) -> Result<(), Error> {
        if !self.upserts() || self.key == "_id" {
            return Ok(());
        }
        let guards = |index: &IndexModel| {
            let unique = index.options.as_ref().is_some_and(|options| options.unique == Some(true));
            unique && index.keys.keys().eq([&self.key])
        };
        let indexes = self.whole_indexes().await?.unwrap_or_default();
        if indexes.iter().any(guards) {
            return Ok(());
        }
        let (key, collection) = (&self.key, self.collection.name());
        Err(Error::InvalidTarget(format!(
            "{field} needs a unique index on target.keyField: db.{collection}.createIndex({{\"{key}\": 1}}, {{unique: true}})"
        )))
    }

    fn upserts(&self) -> bool {
        self.listing == Listing::Pages { upsert: true }
    }

    /// Documents that a walk through pages has not handled: the source does not have them.
    #[must_use]
    pub fn left(&self) -> Self {
        let untouched = doc! {&self.progress: {"$not": {"$gte": self.stamp}}};
        Self { selection: both(self.selection.clone(), untouched), due: None, ..self.clone() }
    }

    /// Filter of all documents that the source should have, including documents that an Incremental run leaves out.
    #[must_use]
    pub fn known(&self) -> Self {
        let selection = match &self.state {
            Some(state) => both(self.filter.clone(), doc! {&state.gone: {"$exists": false}}),
            None => self.filter.clone(),
        };
        Self { selection, due: None, ..self.clone() }
    }

    /// True when documents that are on no page have failed.
    #[must_use]
    pub fn fails_missing(&self) -> bool {
        self.missing == Missing::Fail
    }

    /// Documents of the results of a page, and new ones where the run may create them.
    async fn find_documents(&self, keys: Vec<Bson>) -> Result<Batch, Error> {
        let query = both(self.selection.clone(), doc! {&self.key: {"$in": keys.clone()}});
        let find = self.collection.find(query).projection(self.projection()).batch_size(keys.len().max(1) as u32);
        let mut cursor = within(async { Ok(find.await?) }).await?;
        let mut documents = Vec::with_capacity(keys.len());
        while within(async { Ok(cursor.advance().await?) }).await? {
            documents.push(self.read_document(cursor.current()));
        }
        if self.upserts() {
            documents.extend(self.new_documents(keys, &documents).await?);
        }
        Ok(Batch { documents })
    }

    /// Keys without a document. Where a document has a key in another form, the collection has a collation, and only
    /// MongoDB can compare the other keys.
    async fn new_documents(&self, keys: Vec<Bson>, known: &[ReadDocument]) -> Result<Vec<ReadDocument>, Error> {
        let asked: HashSet<_> = keys.iter().map(keys::text).collect();
        let texts: HashSet<_> = known.iter().map(|read| keys::text(&read.key)).collect();
        let has_other_forms = texts.iter().any(|text| !asked.contains(text));
        let mut new = Vec::new();
        for key in keys.into_iter().filter(|key| !texts.contains(&keys::text(key))) {
            let exists = has_other_forms
                && within(async { Ok(self.collection.find_one(self.key_query(&key)).await?.is_some()) }).await?;
            if !exists {
                new.push(ReadDocument { key, stamped: Stamped::Due, fields: None });
            }
        }
        Ok(new)
    }

    /// Checks a page that matches no document. If the keys of documents and of results have different types, no page
    /// ever matches, and upserts would create a second copy of all documents.
    async fn check_key_type(&self, listed: Option<&Bson>) -> Result<(), Error> {
        let Some(listed) = listed else { return Ok(()) };
        let mut other = None;
        for order in [1, -1] {
            let find = self.collection.find_one(self.selection.clone()).sort(doc! {&self.key: order});
            let find = find.projection(self.projection()).max_time(self.read_limit);
            let read =
                within_limit(self.read_limit, async { Ok(find.await?) }).await?.map(|found| self.read_document(&found));
            match read.map(|read| read.key) {
                None | Some(Bson::Null) => return Ok(()),
                Some(key) if keys::is_range(&key, listed) => return Ok(()),
                Some(key) => other = Some(key),
            }
        }
        let [documents, results] = [other.as_ref().unwrap_or(listed), listed].map(keys::type_name);
        Err(Error::Attempt {
            reason: "KeyMismatch",
            message: format!(
                "target.keyField {} is of type {documents} in documents, and source.keyPath of type {results} in results: set source.keyType {documents}",
                self.key
            ),
        })
    }

    /// Writes a page of results, which was requested at `fetched`, as [`TargetCollection::apply`] does.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the whole page.
    pub async fn apply_page(&self, page: SourcePage, fetched: Timestamp) -> Result<BatchResult, Error> {
        let SourcePage { results, unreadable, next, new, total, doubt, .. } = page;
        let (keys, found): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        let by_key: HashMap<_, _> = keys.iter().map(keys::text).zip(found).collect();
        let results = keys.len() + unreadable;
        let seen = if self.dry_run { keys.iter().map(keys::text).collect() } else { Vec::new() };
        let first = keys.first().cloned();
        let batch = self.find_documents(keys).await?;
        if batch.documents.iter().all(|read| read.fields.is_none()) {
            self.check_key_type(first.as_ref()).await?;
        }
        // Several documents may share a key, and only MongoDB can compare keys under a collation.
        let other_form = || Found::Failed("InvalidKey", "the source lists its key in another form".to_owned());
        let found =
            batch.due().iter().map(|key| by_key.get(&keys::text(key)).cloned().unwrap_or_else(other_form)).collect();
        let mut outcome = self.apply(batch, found, fetched).await?;
        for _ in 0..unreadable {
            outcome.fail(&Bson::from("?"), "InvalidKey", "the source lists a result without a usable key");
        }
        let failed = std::mem::take(&mut outcome.failed);
        let page = PageEnd { next, results, unreadable, new, total, doubt, failed, seen };
        Ok(BatchResult { cursor: None, page: Some(page), ..outcome })
    }
}
