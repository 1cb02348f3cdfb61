//! The documents that an Incremental run takes, and the indexes by which MongoDB finds them.

use bson::{Bson, DateTime, Document, doc};
use mongodb::{IndexModel, options::IndexOptions};

use super::{TargetCollection, both, within};
use crate::{
    domain::run::Warning,
    sync::{Error, keys},
};

/// Field in which an application keeps when it last changed a document.
const CHANGED: &str = "updatedAt";
/// Denominator of the largest share of documents that counts as few: for these, a search and a sort are faster than
/// reading all documents by key.
const SHARE: i64 = 10;
/// A collection without more documents than this is read in no time, index or not.
const SMALL: i64 = 10_000;

/// The documents that an Incremental run takes.
#[derive(Clone, Debug)]
pub(super) struct DueFilter {
    /// Field that holds when a document was last synced.
    pub progress: String,
    /// Documents that were last synced before this time are due.
    pub stale: DateTime,
    /// Times after this one are mistakes, and their documents due.
    pub future: DateTime,
    /// Condition on `progress` for documents that this run has handled, so that a restarted walk counts them.
    pub own: Bson,
    /// Access plan for these documents.
    pub access: AccessPlan,
    /// True when few of the documents are due. `None`: not counted.
    pub are_few: Option<bool>,
}

/// Access plan of MongoDB for the documents that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessPlan {
    /// MongoDB reads all documents.
    Scan,
    /// MongoDB reads all documents, since the index on the progress field is multikey: some document has, or had, an
    /// array there.
    Multikey,
    /// MongoDB uses only indexes.
    Indexes,
}

impl DueFilter {
    /// The query for them.
    pub fn query(&self) -> Document {
        let mut due = self.by_progress();
        due.push(doc! {&self.progress: {"$type": "array"}}.into());
        due.push(self.is_changed().into());
        doc! {"$or": due}
    }

    /// The query for the same documents, where no progress field is an array or in one, of which each part has bounds
    /// in an index.
    ///
    /// Dates from `stale` on remain after the conditions on the progress field. A value that sorts after one of them
    /// is a later date, or has a type that sorts after dates.
    pub fn query_by_indexes(&self) -> Document {
        let mut due = self.by_progress();
        due.push(both(keys::after(CHANGED, &self.stale.into()), self.is_changed()).into());
        doc! {"$or": due}
    }

    fn by_progress(&self) -> Vec<Bson> {
        let progress = &self.progress;
        [
            // Also takes missing, null and wrongly typed values.
            doc! {progress: {"$not": {"$gte": self.stale}}},
            doc! {progress: {"$gt": self.future}},
            doc! {progress: self.own.clone()},
        ]
        .map(Bson::from)
        .into()
    }

    fn is_changed(&self) -> Document {
        doc! {"$expr": {"$gt": [format!("${CHANGED}"), format!("${}", self.progress)]}}
    }

    /// Access plan with these scans.
    fn access(&self, scans: &[&Document]) -> AccessPlan {
        let is_index = |scan: &&Document| scan.get_str("stage").is_ok_and(|stage| stage == "IXSCAN");
        if scans.is_empty() || !scans.iter().all(is_index) {
            return AccessPlan::Scan;
        }
        let is_multikey = |scan: &&Document| match scan.get_document("multiKeyPaths") {
            Ok(paths) => Some(paths.get_array(&self.progress).is_ok_and(|arrays| !arrays.is_empty())),
            Err(_) => scan.get_bool("isMultiKey").ok(),
        };
        match scans.iter().map(is_multikey).collect::<Option<Vec<_>>>() {
            None => AccessPlan::Scan,
            Some(multikey) if multikey.contains(&true) => AccessPlan::Multikey,
            Some(_) => AccessPlan::Indexes,
        }
    }

    /// Warning about a slow search for due documents, and its fix. There is none where most documents are due, or
    /// there are not many.
    fn warning(&self, collection: &str, indexes: &[IndexModel]) -> Option<Warning> {
        if self.are_few == Some(false) {
            return None;
        }
        let has_all = |index: &&IndexModel| options(index).is_none_or(|options| options.sparse != Some(true));
        let of_progress = indexes.iter().filter(has_all).any(|index| leads(index, &self.progress));
        let of_changed = indexes.iter().any(|index| leads(index, CHANGED));
        let missing = [(self.progress.as_str(), of_progress), (CHANGED, of_changed)].into_iter();
        let missing: Vec<_> =
            missing.filter(|(_, exists)| !exists).map(|(field, _)| create_index(collection, field)).collect();
        let message = match self.access {
            AccessPlan::Indexes => return None,
            AccessPlan::Multikey => format!(
                "a document has, or had, an array at {}, so the run reads all documents to find the due ones: unset the array, and drop and create the index on this field",
                self.progress
            ),
            AccessPlan::Scan if missing.is_empty() => return None,
            AccessPlan::Scan => {
                format!("the run reads all documents to find the due ones: {}", missing.join(", "))
            }
        };
        Some(Warning::IndexMissing(message))
    }
}

impl TargetCollection {
    /// Counts the documents that the run has to handle, as [`TargetCollection::count`] does, and chooses how to find
    /// them.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the query.
    pub async fn plan_walk(&mut self) -> Result<i64, Error> {
        let Some(mut due) = self.due.take() else { return self.count().await };
        due.access = self.access(&due).await;
        let query = if due.access == AccessPlan::Indexes { due.query_by_indexes() } else { due.query() };
        self.selection = both(self.filter.clone(), query);
        let count = self.count_exactly().await?;
        due.are_few = match count {
            Some(count) => {
                let all = self.estimate().await?;
                Some(all > SMALL && count.saturating_mul(SHARE) <= all)
            }
            None => None,
        };
        self.due = Some(due);
        match count {
            Some(count) => Ok(count),
            None => self.estimate().await,
        }
    }

    /// True when the documents of the walk are few, and MongoDB finds them by indexes.
    pub(super) fn is_short_walk(&self) -> bool {
        self.due.as_ref().is_some_and(|due| due.access == AccessPlan::Indexes && due.are_few == Some(true))
    }

    /// Requests the query plan for due documents from MongoDB. A server that does not return one reads all documents.
    async fn access(&self, due: &DueFilter) -> AccessPlan {
        let find = doc! {"find": self.collection.name(), "filter": due.query_by_indexes()};
        let explain = doc! {"explain": find, "verbosity": "queryPlanner"};
        match within(async { Ok(self.database.run_command(explain).await?) }).await {
            Ok(plan) => due.access(&scans(&plan)),
            Err(_) => AccessPlan::Scan,
        }
    }

    /// Warnings about a slow walk, and their fixes. Empty also when the server returns no query plan.
    pub async fn warnings(&self) -> Vec<Warning> {
        if self.key == "_id" && self.due.is_none() {
            return Vec::new();
        }
        let Ok(Some(indexes)) = self.whole_indexes().await else { return Vec::new() };
        let collection = self.collection.name();
        let is_sorted = self.key == "_id" || indexes.iter().any(|index| leads(index, &self.key));
        let of_key = (!is_sorted).then(|| {
            let command = create_index(collection, &self.key);
            Warning::KeyNotIndexed(format!(
                "target.keyField {} has no index, which makes the run slow: {command}",
                self.key
            ))
        });
        let of_due = self.due.as_ref().and_then(|due| due.warning(collection, &indexes));
        of_key.into_iter().chain(of_due).collect()
    }
}

/// The scans of a plan that a server explains, of all its shards.
fn scans(explained: &Document) -> Vec<&Document> {
    let mut scans = Vec::new();
    collect_scans(explained, false, &mut scans);
    scans
}

fn collect_scans<'a>(part: &'a Document, is_chosen: bool, scans: &mut Vec<&'a Document>) {
    if is_chosen && part.get_str("stage").is_ok_and(|stage| stage.ends_with("SCAN")) {
        scans.push(part);
    }
    for (name, value) in part.iter().filter(|(name, _)| *name != "rejectedPlans") {
        let is_chosen = is_chosen || name == "winningPlan";
        let parts = value.as_array().into_iter().flatten().chain([value]).filter_map(Bson::as_document);
        parts.for_each(|part| collect_scans(part, is_chosen, scans));
    }
}

fn options(index: &IndexModel) -> Option<&IndexOptions> {
    index.options.as_ref()
}

/// True when MongoDB can sort by the field with the index, and find ranges of its values.
pub(super) fn leads(index: &IndexModel, field: &str) -> bool {
    let is_hidden = options(index).is_some_and(|options| options.hidden == Some(true));
    let is_ordered = |order: &Bson| matches!(order, Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_));
    !is_hidden && index.keys.iter().next().is_some_and(|(first, order)| first == field && is_ordered(order))
}

fn create_index(collection: &str, field: &str) -> String {
    format!("db.{collection}.createIndex({{\"{field}\": 1}})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due() -> DueFilter {
        DueFilter {
            progress: "sync.at".to_owned(),
            stale: DateTime::from_millis(1),
            future: DateTime::from_millis(3),
            own: DateTime::from_millis(2).into(),
            access: AccessPlan::Scan,
            are_few: Some(true),
        }
    }

    #[test]
    fn the_query_plan_gives_the_access_plan() {
        let index = |field: &str, arrays: &[&str]| {
            doc! {"stage": "IXSCAN", "isMultiKey": !arrays.is_empty(), "multiKeyPaths": {field: arrays}}
        };
        let (progress, changed) = (index("sync.at", &[]), index("updatedAt", &["updatedAt"]));
        for (scans, access) in [
            (vec![progress.clone(), changed.clone()], AccessPlan::Indexes),
            (vec![index("sync.at", &["sync"]), changed], AccessPlan::Multikey),
            (vec![progress, doc! {"stage": "COLLSCAN"}], AccessPlan::Scan),
            (vec![doc! {"stage": "IXSCAN", "isMultiKey": false}], AccessPlan::Indexes),
            (vec![doc! {"stage": "IXSCAN"}], AccessPlan::Scan),
            (vec![], AccessPlan::Scan),
        ] {
            let plan = doc! {"stage": "FETCH", "inputStage": {"stage": "OR", "inputStages": scans.clone()}};
            let rejected = vec![doc! {"stage": "COLLSCAN"}];
            let one = doc! {"queryPlanner": {"winningPlan": plan.clone(), "rejectedPlans": rejected.clone()}};
            let shards = vec![doc! {"winningPlan": {"queryPlan": plan}, "rejectedPlans": rejected}];
            let sharded = doc! {"queryPlanner": {"winningPlan": {"stage": "SHARD_MERGE", "shards": shards}}};
            for explained in [one, sharded] {
                assert_eq!(due().access(&super::scans(&explained)), access, "{explained}");
            }
        }
    }

    #[test]
    fn an_index_is_asked_for_only_where_it_would_help() {
        let index = |keys: Document, options: Document| {
            IndexModel::builder()
                .keys(keys)
                .options(bson::deserialize_from_document::<IndexOptions>(options).unwrap())
                .build()
        };
        let (progress, changed) =
            (index(doc! {"sync.at": 1}, doc! {}), index(doc! {"updatedAt": -1}, doc! {"sparse": true}));
        let (all, few) = (["sync.at", "updatedAt"], Some(true));
        for (access, are_few, indexes, asked) in [
            (AccessPlan::Scan, few, vec![], all.to_vec()),
            (AccessPlan::Scan, None, vec![], all.to_vec()),
            (AccessPlan::Scan, Some(false), vec![], vec![]),
            (AccessPlan::Scan, few, vec![changed.clone()], vec!["sync.at"]),
            (
                AccessPlan::Scan,
                few,
                vec![index(doc! {"sync.at": 1}, doc! {"sparse": true}), changed.clone()],
                vec!["sync.at"],
            ),
            (AccessPlan::Scan, few, vec![index(doc! {"sync.at": "hashed"}, doc! {})], all.to_vec()),
            (AccessPlan::Scan, few, vec![index(doc! {"sync.at": 1}, doc! {"hidden": true})], all.to_vec()),
            (AccessPlan::Scan, few, vec![index(doc! {"a": 1, "sync.at": 1}, doc! {})], all.to_vec()),
            (AccessPlan::Scan, few, vec![progress.clone(), changed.clone()], vec![]),
            (AccessPlan::Indexes, few, vec![progress, changed], vec![]),
        ] {
            let warning = DueFilter { access, are_few, ..due() }.warning("users", &indexes);
            let commands = warning.map(|warning| warning.message().split(": db.").nth(1).unwrap().to_owned());
            let expected = asked.iter().map(|field| create_index("users", field)).collect::<Vec<_>>().join(", ");
            assert_eq!(commands.map_or_else(String::new, |commands| format!("db.{commands}")), expected, "{indexes:?}");
        }
        let multikey = DueFilter { access: AccessPlan::Multikey, ..due() }.warning("users", &[]).unwrap();
        assert!(multikey.message().contains("an array at sync.at"), "{multikey:?}");
    }
}
