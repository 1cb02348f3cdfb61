//! Snapshot of the mirror, and the writes that bring the mirror up to date.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    mem::{replace, take},
};

use super::record::{JobRecord, JobSet};

/// Largest number of completed runs, and of failed runs, in the mirror: the newest ones.
pub const HISTORY: usize = 5_000;

/// Write to the mirror. A `key` is the name of a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorWrite {
    /// Replaces a hash.
    Hash { key: String, fields: Vec<(&'static str, String)> },
    /// Deletes a hash.
    Forget { key: String },
    /// Adds a member to a sorted set.
    Add { set: JobSet, id: String, score: i64 },
    /// Removes a member from a sorted set.
    Remove { set: JobSet, id: String },
    /// Replaces a list or sorted set. The members are in order, lowest score first.
    Replace { set: JobSet, members: Vec<(i64, String)> },
    /// Pauses or resumes the queue.
    Paused(bool),
}

/// Content of the mirror once all writes that were taken from the snapshot are done. A new snapshot writes the whole
/// mirror: first the hashes, then the sets.
#[derive(Debug, Default)]
pub struct Snapshot {
    entries: HashMap<String, SnapshotEntry>,
    sets: [BTreeSet<(i64, String)>; 7],
    suspended: usize,
    /// True once the sets were taken. From then on, only changes of the sets are written.
    is_whole: bool,
    is_paused: bool,
    /// Lists that have changed since they were written.
    changed: [bool; 7],
    writes: Vec<MirrorWrite>,
}

#[derive(Debug)]
struct SnapshotEntry {
    set: JobSet,
    score: i64,
    is_suspended: bool,
    fields: u64,
}

impl Snapshot {
    /// Number of members of each list or set.
    pub fn sizes(&self) -> [usize; 7] {
        self.sets.each_ref().map(BTreeSet::len)
    }

    /// True when a set accepts only records that are newer than its oldest one.
    pub fn is_full(&self, set: JobSet) -> bool {
        set.is_bounded() && self.sets[set as usize].len() >= HISTORY
    }

    /// Number of pending writes.
    pub fn pending(&self) -> usize {
        self.writes.len()
    }

    /// Adds or updates a record. A run that ended before all runs in a full set is left out.
    pub fn put(&mut self, record: JobRecord) {
        let JobRecord { id, set, score, is_suspended, fields } = record;
        if !self.make_room(set, &id, score) {
            return self.remove(&id);
        }
        let mut hasher = DefaultHasher::new();
        fields.hash(&mut hasher);
        let entry = SnapshotEntry { set, score, is_suspended, fields: hasher.finish() };
        let old = self.entries.get(&id).map(|old| (old.set, old.score, old.is_suspended, old.fields));
        if old.is_none_or(|(.., fields)| fields != entry.fields) {
            self.writes.push(MirrorWrite::Hash { key: set.key(&id), fields });
        }
        if old.map(|(set, score, ..)| (set, score)) != Some((set, score)) {
            if let Some((old_set, old_score, ..)) = old {
                self.remove_member(old_set, old_score, &id, old_set != set);
            }
            self.add_member(set, score, &id);
        }
        let was_suspended = old.is_some_and(|(_, _, was_suspended, _)| was_suspended);
        self.suspended = self.suspended + usize::from(is_suspended) - usize::from(was_suspended);
        self.entries.insert(id, entry);
    }

    /// Removes a record.
    pub fn remove(&mut self, id: &str) {
        let Some(entry) = self.entries.remove(id) else { return };
        self.suspended -= usize::from(entry.is_suspended);
        self.remove_member(entry.set, entry.score, id, true);
        self.writes.push(MirrorWrite::Forget { key: entry.set.key(id) });
    }

    /// Returns the writes since the last call.
    pub fn take_writes(&mut self) -> Vec<MirrorWrite> {
        let mut writes = take(&mut self.writes);
        if self.is_whole {
            for set in JobSet::ALL {
                if take(&mut self.changed[set as usize]) {
                    writes.push(self.replace_set(set));
                }
            }
            let is_paused = self.is_queue_paused();
            if replace(&mut self.is_paused, is_paused) != is_paused {
                writes.push(MirrorWrite::Paused(is_paused));
            }
        }
        writes
    }

    /// Returns writes of all sets, for after the writes of the hashes.
    pub fn take_sets(&mut self) -> Vec<MirrorWrite> {
        (self.is_whole, self.changed) = (true, [false; 7]);
        self.is_paused = self.is_queue_paused();
        JobSet::ALL.map(|set| self.replace_set(set)).into_iter().chain([MirrorWrite::Paused(self.is_paused)]).collect()
    }

    /// Names of the hashes that another snapshot lacks.
    pub fn without(&self, other: &Self) -> Vec<String> {
        let gone = self.entries.iter().filter(|(id, _)| !other.entries.contains_key(*id));
        gone.map(|(id, entry)| entry.set.key(id)).collect()
    }

    /// True when there are schedules and all of them are suspended, as in `/jobs/status`.
    fn is_queue_paused(&self) -> bool {
        let schedules = self.sets[JobSet::Repeat as usize].len();
        schedules > 0 && self.suspended == schedules
    }

    fn replace_set(&self, set: JobSet) -> MirrorWrite {
        MirrorWrite::Replace { set, members: self.sets[set as usize].iter().cloned().collect() }
    }

    /// Removes the oldest record of a full set. False when the new record is older than all of them.
    fn make_room(&mut self, set: JobSet, id: &str, score: i64) -> bool {
        let is_there = self.entries.get(id).is_some_and(|entry| entry.set == set);
        if is_there || !self.is_full(set) {
            return true;
        }
        let Some((oldest, oldest_id)) = self.sets[set as usize].first().cloned() else { return true };
        let is_newer = (score, id) > (oldest, oldest_id.as_str());
        if is_newer {
            self.remove(&oldest_id);
        }
        is_newer
    }

    fn add_member(&mut self, set: JobSet, score: i64, id: &str) {
        self.sets[set as usize].insert((score, id.to_owned()));
        if set.is_list() {
            self.changed[set as usize] = true;
        } else if self.is_whole {
            self.writes.push(MirrorWrite::Add { set, id: id.to_owned(), score });
        }
    }

    /// Removes a member. `for_good`: the member is not added again with another score.
    fn remove_member(&mut self, set: JobSet, score: i64, id: &str, for_good: bool) {
        self.sets[set as usize].remove(&(score, id.to_owned()));
        if set.is_list() {
            self.changed[set as usize] = true;
        } else if self.is_whole && for_good {
            self.writes.push(MirrorWrite::Remove { set, id: id.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn record(id: &str, set: JobSet, score: i64, text: &str) -> JobRecord {
        JobRecord {
            id: id.to_owned(),
            set,
            score,
            is_suspended: set == JobSet::Repeat && text == "0",
            fields: vec![("data", text.to_owned())],
        }
    }

    /// Simulated Redis.
    #[derive(Debug, Default, PartialEq)]
    struct Redis {
        hashes: BTreeMap<String, Vec<(&'static str, String)>>,
        sets: [BTreeMap<String, i64>; 7],
        paused: bool,
    }

    impl Redis {
        fn write(&mut self, writes: Vec<MirrorWrite>) {
            for write in writes {
                match write {
                    MirrorWrite::Hash { key, fields } => drop(self.hashes.insert(key, fields)),
                    MirrorWrite::Forget { key } => assert!(self.hashes.remove(&key).is_some(), "{key} exists"),
                    MirrorWrite::Add { set, id, score } => drop(self.sets[set as usize].insert(id, score)),
                    MirrorWrite::Remove { set, id } => drop(self.sets[set as usize].remove(&id)),
                    MirrorWrite::Replace { set, members } => {
                        self.sets[set as usize] = members.into_iter().map(|(score, id)| (id, score)).collect();
                    }
                    MirrorWrite::Paused(paused) => self.paused = paused,
                }
            }
        }

        /// Writes a whole mirror.
        fn with(records: impl IntoIterator<Item = JobRecord>) -> (Self, Snapshot) {
            let (mut redis, mut snapshot) = (Self::default(), Snapshot::default());
            for record in records {
                snapshot.put(record);
            }
            redis.write(snapshot.take_writes());
            assert!(redis.sets.iter().all(BTreeMap::is_empty), "no set names what has no hash yet");
            redis.write(snapshot.take_sets());
            (redis, snapshot)
        }
    }

    proptest! {
        #[test]
        fn incremental_writes_equal_a_full_write(
            first in 0_usize..6,
            changes in prop::collection::vec((0_usize..6, prop::option::of((0_usize..7, 0_i64..3, 0_i32..2))), 0..40),
            pause in 1_usize..5,
        ) {
            let make = |id: usize, set: usize, score, text: i32| {
                record(&id.to_string(), JobSet::ALL[set], score, &text.to_string())
            };
            let mut all: BTreeMap<usize, JobRecord> = (0..first).map(|id| (id, make(id, id, 1, 0))).collect();
            let (mut redis, mut snapshot) = Redis::with(all.values().cloned());
            for (number, (id, change)) in changes.into_iter().enumerate() {
                if let Some((set, score, text)) = change {
                    // A schedule does not become a run.
                    let is_schedule = all.get(&id).map(|record| record.set == JobSet::Repeat);
                    let set = match is_schedule { Some(true) => 6, Some(false) => set % 6, None => set };
                    let changed = make(id, set, score, text);
                    all.insert(id, changed.clone());
                    snapshot.put(changed);
                } else {
                    all.remove(&id);
                    snapshot.remove(&id.to_string());
                }
                if number % pause == 0 {
                    redis.write(snapshot.take_writes());
                }
            }
            redis.write(snapshot.take_writes());
            let (anew, fresh) = Redis::with(all.into_values());
            prop_assert_eq!(&redis, &anew);
            prop_assert_eq!(snapshot.sizes(), fresh.sizes());
        }
    }

    #[test]
    fn what_is_as_it_was_is_not_written() {
        let (_, mut snapshot) = Redis::with([record("a", JobSet::Active, 1, "x"), record("b", JobSet::Failed, 1, "x")]);
        snapshot.put(record("a", JobSet::Active, 1, "x"));
        snapshot.put(record("b", JobSet::Failed, 1, "x"));
        snapshot.remove("c");
        assert_eq!(snapshot.take_writes(), []);
        snapshot.put(record("a", JobSet::Active, 1, "y"));
        let fields = vec![("data", "y".to_owned())];
        assert_eq!(snapshot.take_writes(), [MirrorWrite::Hash { key: "a".to_owned(), fields }]);
    }

    #[test]
    fn of_those_that_have_ended_the_newest_are_kept() {
        let ended = |number: usize| record(&format!("{number}"), JobSet::Failed, number as i64, "x");
        let (mut redis, mut snapshot) = Redis::with((1..=HISTORY).map(ended));
        snapshot.put(ended(0));
        assert_eq!(snapshot.take_writes(), [], "it is older than all of them");
        for number in HISTORY + 1..=HISTORY + 3 {
            snapshot.put(ended(number));
        }
        redis.write(snapshot.take_writes());
        let scores: BTreeSet<_> = redis.sets[JobSet::Failed as usize].values().copied().collect();
        assert_eq!(scores, (4..=HISTORY as i64 + 3).collect());
        assert_eq!(redis.hashes.len(), HISTORY);
        // A run that is in the set may change.
        snapshot.put(record("5", JobSet::Failed, 5, "y"));
        assert_eq!(snapshot.take_writes().len(), 1);
    }

    #[test]
    fn hashes_without_a_record_are_found() {
        let (_, old) = Redis::with([record("a", JobSet::Active, 1, "x"), record("n/s", JobSet::Repeat, 1, "x")]);
        let (_, new) = Redis::with([record("a", JobSet::Failed, 1, "x")]);
        assert_eq!(old.without(&new), ["repeat:n/s"]);
    }
}
