//! Search index over all SyncJobs, kept up to date with the cache. No search reads every object.
//!
//! Names are found by any part, errors by the beginnings of their words, documents by the beginning of their key. Of a
//! run that has ended the cache keeps no errors; what is known of them is here.

mod trigram_index;
mod word_index;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use jiff::Timestamp;
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use crate::{
    api::{
        SCHEDULE_LABEL, SyncJob,
        conditions::{FAILED, STALLED},
        syncjob::{Phase, SyncType},
    },
    domain::conditions,
};
use trigram_index::TrigramIndex;
use word_index::WordIndex;

/// Largest number of candidates that are checked and sorted. With more, the newest runs are checked until a page is
/// full.
const MANY: usize = 4096;
/// Largest number of words of the errors of a run.
const WORDS: usize = 64;

/// Names a run within the index.
type Id = u32;

/// Sort key of a run in lists: the newest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SortKey {
    /// Creation time, in seconds since 1970.
    pub created: Reverse<i64>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl SortKey {
    /// Returns the key that sorts before each SyncJob.
    pub fn first() -> Self {
        Self { created: Reverse(i64::MAX), namespace: "".into(), name: "".into() }
    }

    /// Sort key of a SyncJob.
    pub fn from_job(job: &SyncJob) -> Self {
        let created = job.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |created| created.0);
        let (namespace, name) = (job.metadata.namespace.as_deref(), job.metadata.name.as_deref());
        Self {
            created: Reverse(created.as_second()),
            namespace: namespace.unwrap_or_default().into(),
            name: name.unwrap_or_default().into(),
        }
    }

    /// Reference to the SyncJob.
    pub fn reference(&self) -> ObjectRef<SyncJob> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

/// Query for runs. A field without a value matches all runs.
#[derive(Clone, Debug, Default)]
pub(super) struct RunQuery<'a> {
    /// Namespaces of the runs.
    pub namespaces: Option<&'a BTreeSet<String>>,
    pub namespace: Option<&'a str>,
    pub schedule: Option<&'a str>,
    /// Phases of the runs.
    pub phases: Option<&'a [Phase]>,
    pub type_: Option<SyncType>,
    /// Part of the name.
    pub text: Option<&'a str>,
    /// Words of an error, or their beginnings.
    pub error: Option<&'a str>,
    /// The key of a document that failed, or its beginning.
    pub key: Option<&'a str>,
}

/// The runs, in several orders.
#[derive(Debug, Default)]
pub(super) struct RunIndex {
    runs: Vec<Option<Run>>,
    free: Vec<Id>,
    newest: BTreeMap<SortKey, Id>,
    namespaces: HashMap<Arc<str>, Vec<Id>>,
    schedules: HashMap<Arc<str>, Vec<Id>>,
    phases: HashMap<u8, Vec<Id>>,
    names: TrigramIndex,
    errors: WordIndex,
    keys: WordIndex,
}

#[derive(Debug)]
struct Run {
    sort_key: SortKey,
    schedule: Option<Arc<str>>,
    phase: Phase,
    type_: SyncType,
    words: Vec<Arc<str>>,
    keys: Vec<Arc<str>>,
}

/// Runs that may fit.
enum Candidates<'a> {
    Listed(&'a [Id]),
    Collected(Bits),
}

/// A set of runs.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
    count: usize,
}

impl RunIndex {
    /// Adds a SyncJob, or its changes, to the index.
    pub fn apply(&mut self, job: &SyncJob) {
        let sort_key = SortKey::from_job(job);
        let sort_key = SortKey { namespace: shared(&self.namespaces, &sort_key.namespace), ..sort_key };
        let known = self.newest.get(&sort_key).copied();
        let (words, keys) = (words_of(job), keys_of(job));
        let id = known.unwrap_or_else(|| self.free.pop().unwrap_or(self.runs.len() as Id));
        let before = self.runs.get_mut(id as usize).and_then(Option::take);
        let schedule = job.labels().get(SCHEDULE_LABEL);
        let schedule = schedule.map(|name| shared(&self.schedules, name));
        let phase = phase_of(job);
        if before.is_none() {
            self.newest.insert(sort_key.clone(), id);
            add(self.namespaces.entry(Arc::clone(&sort_key.namespace)).or_default(), id);
            self.names.add(&sort_key.name, id);
        }
        let (had, had_words, had_keys) =
            before.map_or_else(Default::default, |run| (Some((run.phase, run.schedule)), run.words, run.keys));
        if let Some((had_phase, had_schedule)) = had {
            take(&mut self.phases, &(had_phase as u8), id);
            if let Some(name) = &had_schedule {
                take(&mut self.schedules, name, id);
            }
        }
        add(self.phases.entry(phase as u8).or_default(), id);
        if let Some(name) = &schedule {
            add(self.schedules.entry(Arc::clone(name)).or_default(), id);
        }
        let words = self.errors.replace_texts(had_words, words, id);
        let keys = self.keys.replace_texts(had_keys, keys, id);
        let run = Run { sort_key, schedule, phase, type_: job.spec.type_, words, keys };
        if let Some(entry) = self.runs.get_mut(id as usize) {
            *entry = Some(run);
        } else {
            self.runs.push(Some(run));
        }
    }

    /// Forgets a SyncJob that was deleted.
    pub fn remove(&mut self, job: &SyncJob) {
        let sort_key = SortKey::from_job(job);
        let Some(id) = self.newest.remove(&sort_key) else { return };
        let Some(run) = self.runs.get_mut(id as usize).and_then(Option::take) else { return };
        take(&mut self.namespaces, &sort_key.namespace, id);
        self.names.remove(&sort_key.name, id);
        take(&mut self.phases, &(run.phase as u8), id);
        if let Some(name) = run.schedule {
            take(&mut self.schedules, &name, id);
        }
        self.errors.replace_texts(run.words, BTreeSet::new(), id);
        self.keys.replace_texts(run.keys, BTreeSet::new(), id);
        self.free.push(id);
    }

    /// The namespaces that have runs.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(|name| &**name)
    }

    /// True when no error or key was left out for lack of room.
    pub fn is_whole(&self) -> bool {
        self.errors.is_whole() && self.keys.is_whole()
    }

    /// Returns the newest matching runs after a rank, at most `limit`.
    pub fn page(&self, query: &RunQuery<'_>, after: Option<&SortKey>, limit: usize) -> Vec<SortKey> {
        let Some(plan) = self.plan(query) else { return Vec::new() };
        let comes_after = |run: &Run| after.is_none_or(|after| run.sort_key > *after);
        if let Some(few) = plan.least().filter(|least| least.len() <= MANY) {
            let fitting = |id| self.run(id).filter(|run| comes_after(run) && plan.fits(id, run));
            let mut found: Vec<_> = few.ids().filter_map(fitting).map(|run| &run.sort_key).collect();
            if found.len() > limit {
                found.select_nth_unstable(limit);
                found.truncate(limit);
            }
            found.sort_unstable();
            return found.into_iter().cloned().collect();
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let newest = self.newest.range::<SortKey, _>((from, Bound::Unbounded));
        let fitting = newest.filter(|(_, id)| self.run(**id).is_some_and(|run| plan.fits(**id, run)));
        fitting.take(limit).map(|(sort_key, _)| sort_key.clone()).collect()
    }

    /// Number of runs that match and sort after a key.
    pub fn count(&self, query: &RunQuery<'_>, after: Option<&SortKey>) -> usize {
        let Some(plan) = self.plan(query) else { return 0 };
        let fits = |id: Id| {
            self.run(id).is_some_and(|run| after.is_none_or(|after| run.sort_key > *after) && plan.fits(id, run))
        };
        match plan.least() {
            Some(least) => least.ids().filter(|id| fits(*id)).count(),
            None if after.is_none() && plan.takes_all() => self.newest.len(),
            None => self.newest.values().filter(|id| fits(**id)).count(),
        }
    }

    fn run(&self, id: Id) -> Option<&Run> {
        self.runs.get(id as usize)?.as_ref()
    }

    /// Plan of a query. `None` when no run matches.
    fn plan<'a>(&'a self, query: &RunQuery<'a>) -> Option<Plan<'a>> {
        let mut sets = Vec::new();
        for (list, name) in [(&self.namespaces, query.namespace), (&self.schedules, query.schedule)] {
            if let Some(name) = name {
                sets.push(Candidates::Listed(list.get(name)?));
            }
        }
        if let Some(phases) = query.phases {
            let lists = phases.iter().filter_map(|phase| self.phases.get(&(*phase as u8)));
            sets.push(union(lists)?);
        }
        let text = query.text.map(str::to_lowercase).filter(|text| !text.is_empty());
        if let Some(text) = &text {
            sets.push(self.names.candidates(text)?);
        }
        for word in query.error.map(word_index::split_words).unwrap_or_default() {
            sets.push(union(self.errors.with_prefix(&word))?);
        }
        if let Some(key) = query.key {
            sets.push(union(self.keys.with_prefix(&word_index::normalize(key)))?);
        }
        Some(Plan { sets, text, namespaces: query.namespaces, type_: query.type_ })
    }
}

/// Plan of a query: sets of runs and further conditions.
struct Plan<'a> {
    sets: Vec<Candidates<'a>>,
    text: Option<String>,
    namespaces: Option<&'a BTreeSet<String>>,
    type_: Option<SyncType>,
}

impl Plan<'_> {
    fn least(&self) -> Option<&Candidates<'_>> {
        self.sets.iter().min_by_key(|set| set.len())
    }

    fn takes_all(&self) -> bool {
        self.sets.is_empty() && self.namespaces.is_none() && self.type_.is_none()
    }

    fn fits(&self, id: Id, run: &Run) -> bool {
        self.type_.is_none_or(|wanted| wanted == run.type_)
            && self.sets.iter().all(|set| set.has(id))
            && self.namespaces.is_none_or(|namespaces| namespaces.contains(&*run.sort_key.namespace))
            && self.text.as_ref().is_none_or(|text| run.sort_key.name.contains(text.as_str()))
    }
}

impl Candidates<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Listed(ids) => ids.len(),
            Self::Collected(bits) => bits.count,
        }
    }

    fn has(&self, id: Id) -> bool {
        match self {
            Self::Listed(ids) => ids.binary_search(&id).is_ok(),
            Self::Collected(bits) => bits.has(id),
        }
    }

    fn ids(&self) -> Box<dyn Iterator<Item = Id> + '_> {
        match self {
            Self::Listed(ids) => Box::new(ids.iter().copied()),
            Self::Collected(bits) => Box::new(bits.ids()),
        }
    }
}

impl Bits {
    fn add(&mut self, id: Id) {
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if self.words[word] & bit == 0 {
            self.words[word] |= bit;
            self.count += 1;
        }
    }

    fn has(&self, id: Id) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }

    fn ids(&self) -> impl Iterator<Item = Id> {
        let bits = |(index, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| index as Id * 64 + bit)
        };
        self.words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(bits)
    }
}

/// The runs of several lists together. `None` when there are none.
fn union<'a>(lists: impl Iterator<Item = &'a Vec<Id>>) -> Option<Candidates<'a>> {
    let mut lists = lists.peekable();
    let first = lists.next()?;
    if lists.peek().is_none() {
        return Some(Candidates::Listed(first));
    }
    let mut bits = Bits::default();
    for list in std::iter::once(first).chain(lists) {
        for id in list {
            bits.add(*id);
        }
    }
    Some(Candidates::Collected(bits))
}

/// Adds a run to a list in the order of ids.
fn add(list: &mut Vec<Id>, id: Id) {
    if let Err(index) = list.binary_search(&id) {
        list.insert(index, id);
    }
}

/// Removes a run from a list, and the list if it is empty.
fn take<K: std::hash::Hash + Eq>(lists: &mut HashMap<K, Vec<Id>>, key: &K, id: Id) {
    let Some(list) = lists.get_mut(key) else { return };
    if let Ok(index) = list.binary_search(&id) {
        list.remove(index);
    }
    if list.is_empty() {
        lists.remove(key);
    }
}

/// Existing text of a key, or a new one.
fn shared(lists: &HashMap<Arc<str>, Vec<Id>>, text: &str) -> Arc<str> {
    lists.get_key_value(text).map_or_else(|| text.into(), |(key, _)| Arc::clone(key))
}

fn phase_of(job: &SyncJob) -> Phase {
    job.status.as_ref().and_then(|status| status.phase).unwrap_or(Phase::Pending)
}

/// Words of the errors of a run: of its result, its attempts and its documents.
fn words_of(job: &SyncJob) -> BTreeSet<String> {
    let Some(status) = &job.status else { return BTreeSet::new() };
    let ends = [FAILED, STALLED].into_iter().filter_map(|kind| conditions::find(&status.conditions, kind));
    let ends = ends.filter(|end| end.status == "True").map(|end| (&end.reason, &end.message));
    let attempts = status.attempt_history.iter().map(|attempt| (&attempt.reason, &attempt.message));
    let documents = status.failures.iter().map(|failure| (&failure.reason, &failure.message));
    let mut found = BTreeSet::new();
    for (reason, message) in ends.chain(attempts).chain(documents) {
        for word in word_index::split_words(reason).into_iter().chain(word_index::split_words(message)) {
            if found.len() < WORDS {
                found.insert(word);
            }
        }
    }
    found
}

fn keys_of(job: &SyncJob) -> BTreeSet<String> {
    let failures = job.status.as_ref().map(|status| status.failures.as_slice()).unwrap_or_default();
    failures.iter().map(|failure| word_index::normalize(&failure.key)).collect()
}

#[cfg(test)]
mod tests;
