//! What stands in the mirror, and what has to be written for it to be as it should.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    mem::{replace, take},
};

use super::record::{Place, Record};

/// Runs that have ended and are kept, of each kind: the newest.
pub const HISTORY: usize = 5_000;

/// Something to be written. A `key` is the name of a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A hash, in place of what stood there.
    Hash { key: String, fields: Vec<(&'static str, String)> },
    /// No such hash any more.
    Forget { key: String },
    /// A member of a sorted set.
    Add { place: Place, id: String, score: i64 },
    /// No such member any more.
    Remove { place: Place, id: String },
    /// A whole list or sorted set, lowest score first.
    Replace { place: Place, members: Vec<(i64, String)> },
    /// Whether the queue is paused.
    Paused(bool),
}

/// What stands in the mirror once everything that was taken from here is written. New books are for a mirror that is written
/// as a whole: first the hashes, then the sets.
#[derive(Debug, Default)]
pub struct Books {
    entries: HashMap<String, Entry>,
    sets: [BTreeSet<(i64, String)>; 7],
    suspended: usize,
    /// The sets were taken; what changes in them is written from then on.
    is_whole: bool,
    is_paused: bool,
    /// Lists that are not as they were written.
    changed: [bool; 7],
    writes: Vec<Write>,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    score: i64,
    is_suspended: bool,
    fields: u64,
}

impl Books {
    /// How many there are in each place.
    pub fn sizes(&self) -> [usize; 7] {
        self.sets.each_ref().map(BTreeSet::len)
    }

    /// Only something newer than all that is there is still taken.
    pub fn is_full(&self, place: Place) -> bool {
        place.is_history() && self.sets[place as usize].len() >= HISTORY
    }

    /// Things to be written.
    pub fn pending(&self) -> usize {
        self.writes.len()
    }

    /// Enters something new or changed. One that ended before all those that are kept is left out.
    pub fn put(&mut self, record: Record) {
        let Record { id, place, score, is_suspended, fields } = record;
        if !self.make_room(place, &id, score) {
            return self.remove(&id);
        }
        let mut hasher = DefaultHasher::new();
        fields.hash(&mut hasher);
        let entry = Entry { place, score, is_suspended, fields: hasher.finish() };
        let old = self.entries.get(&id).map(|old| (old.place, old.score, old.is_suspended, old.fields));
        if old.is_none_or(|(.., fields)| fields != entry.fields) {
            self.writes.push(Write::Hash { key: place.key(&id), fields });
        }
        if old.map(|(place, score, ..)| (place, score)) != Some((place, score)) {
            if let Some((old_place, old_score, ..)) = old {
                self.leave(old_place, old_score, &id, old_place != place);
            }
            self.enter(place, score, &id);
        }
        let was_suspended = old.is_some_and(|(_, _, was_suspended, _)| was_suspended);
        self.suspended = self.suspended + usize::from(is_suspended) - usize::from(was_suspended);
        self.entries.insert(id, entry);
    }

    /// Enters that something is gone.
    pub fn remove(&mut self, id: &str) {
        let Some(entry) = self.entries.remove(id) else { return };
        self.suspended -= usize::from(entry.is_suspended);
        self.leave(entry.place, entry.score, id, true);
        self.writes.push(Write::Forget { key: entry.place.key(id) });
    }

    /// What has to be written since it was asked last.
    pub fn take_writes(&mut self) -> Vec<Write> {
        let mut writes = take(&mut self.writes);
        if self.is_whole {
            for place in Place::ALL {
                if take(&mut self.changed[place as usize]) {
                    writes.push(self.whole(place));
                }
            }
            let is_paused = self.paused();
            if replace(&mut self.is_paused, is_paused) != is_paused {
                writes.push(Write::Paused(is_paused));
            }
        }
        writes
    }

    /// All sets, to be written once the hashes are.
    pub fn take_sets(&mut self) -> Vec<Write> {
        (self.is_whole, self.changed) = (true, [false; 7]);
        self.is_paused = self.paused();
        Place::ALL.map(|place| self.whole(place)).into_iter().chain([Write::Paused(self.is_paused)]).collect()
    }

    /// The hashes that are not in other books.
    pub fn without(&self, other: &Self) -> Vec<String> {
        let gone = self.entries.iter().filter(|(id, _)| !other.entries.contains_key(*id));
        gone.map(|(id, entry)| entry.place.key(id)).collect()
    }

    /// The same as `/jobs/status` tells: there are schedules, and all of them are suspended.
    fn paused(&self) -> bool {
        let schedules = self.sets[Place::Repeat as usize].len();
        schedules > 0 && self.suspended == schedules
    }

    fn whole(&self, place: Place) -> Write {
        Write::Replace { place, members: self.sets[place as usize].iter().cloned().collect() }
    }

    /// Drops the oldest when there is no room for one more. False when the new one is older than all of them.
    fn make_room(&mut self, place: Place, id: &str, score: i64) -> bool {
        let is_there = self.entries.get(id).is_some_and(|entry| entry.place == place);
        if is_there || !self.is_full(place) {
            return true;
        }
        let Some((oldest, oldest_id)) = self.sets[place as usize].first().cloned() else { return true };
        let is_newer = (score, id) > (oldest, oldest_id.as_str());
        if is_newer {
            self.remove(&oldest_id);
        }
        is_newer
    }

    fn enter(&mut self, place: Place, score: i64, id: &str) {
        self.sets[place as usize].insert((score, id.to_owned()));
        if place.is_list() {
            self.changed[place as usize] = true;
        } else if self.is_whole {
            self.writes.push(Write::Add { place, id: id.to_owned(), score });
        }
    }

    /// `for_good`: it does not come back there with another score.
    fn leave(&mut self, place: Place, score: i64, id: &str, for_good: bool) {
        self.sets[place as usize].remove(&(score, id.to_owned()));
        if place.is_list() {
            self.changed[place as usize] = true;
        } else if self.is_whole && for_good {
            self.writes.push(Write::Remove { place, id: id.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn record(id: &str, place: Place, score: i64, text: &str) -> Record {
        Record {
            id: id.to_owned(),
            place,
            score,
            is_suspended: place == Place::Repeat && text == "0",
            fields: vec![("data", text.to_owned())],
        }
    }

    /// What is in Redis, as far as it matters.
    #[derive(Debug, Default, PartialEq)]
    struct Redis {
        hashes: BTreeMap<String, Vec<(&'static str, String)>>,
        sets: [BTreeMap<String, i64>; 7],
        paused: bool,
    }

    impl Redis {
        fn write(&mut self, writes: Vec<Write>) {
            for write in writes {
                match write {
                    Write::Hash { key, fields } => drop(self.hashes.insert(key, fields)),
                    Write::Forget { key } => assert!(self.hashes.remove(&key).is_some(), "{key} was there"),
                    Write::Add { place, id, score } => drop(self.sets[place as usize].insert(id, score)),
                    Write::Remove { place, id } => drop(self.sets[place as usize].remove(&id)),
                    Write::Replace { place, members } => {
                        self.sets[place as usize] = members.into_iter().map(|(score, id)| (id, score)).collect();
                    }
                    Write::Paused(paused) => self.paused = paused,
                }
            }
        }

        /// A mirror that is written as a whole.
        fn anew(records: impl IntoIterator<Item = Record>) -> (Self, Books) {
            let (mut redis, mut books) = (Self::default(), Books::default());
            for record in records {
                books.put(record);
            }
            redis.write(books.take_writes());
            assert!(redis.sets.iter().all(BTreeMap::is_empty), "no set names what has no hash yet");
            redis.write(books.take_sets());
            (redis, books)
        }
    }

    proptest! {
        #[test]
        fn after_any_changes_the_same_stands_there_as_if_it_were_written_anew(
            first in 0_usize..6,
            changes in prop::collection::vec((0_usize..6, prop::option::of((0_usize..7, 0_i64..3, 0_i32..2))), 0..40),
            pause in 1_usize..5,
        ) {
            let make = |id: usize, place: usize, score, text: i32| {
                record(&id.to_string(), Place::ALL[place], score, &text.to_string())
            };
            let mut all: BTreeMap<usize, Record> = (0..first).map(|id| (id, make(id, id, 1, 0))).collect();
            let (mut redis, mut books) = Redis::anew(all.values().cloned());
            for (number, (id, change)) in changes.into_iter().enumerate() {
                if let Some((place, score, text)) = change {
                    // A schedule does not become a run.
                    let is_schedule = all.get(&id).map(|record| record.place == Place::Repeat);
                    let place = match is_schedule { Some(true) => 6, Some(false) => place % 6, None => place };
                    let changed = make(id, place, score, text);
                    all.insert(id, changed.clone());
                    books.put(changed);
                } else {
                    all.remove(&id);
                    books.remove(&id.to_string());
                }
                if number % pause == 0 {
                    redis.write(books.take_writes());
                }
            }
            redis.write(books.take_writes());
            let (anew, fresh) = Redis::anew(all.into_values());
            prop_assert_eq!(&redis, &anew);
            prop_assert_eq!(books.sizes(), fresh.sizes());
        }
    }

    #[test]
    fn what_is_as_it_was_is_not_written() {
        let (_, mut books) = Redis::anew([record("a", Place::Active, 1, "x"), record("b", Place::Failed, 1, "x")]);
        books.put(record("a", Place::Active, 1, "x"));
        books.put(record("b", Place::Failed, 1, "x"));
        books.remove("c");
        assert_eq!(books.take_writes(), []);
        books.put(record("a", Place::Active, 1, "y"));
        let fields = vec![("data", "y".to_owned())];
        assert_eq!(books.take_writes(), [Write::Hash { key: "a".to_owned(), fields }]);
    }

    #[test]
    fn of_those_that_have_ended_the_newest_are_kept() {
        let ended = |number: usize| record(&format!("{number}"), Place::Failed, number as i64, "x");
        let (mut redis, mut books) = Redis::anew((1..=HISTORY).map(ended));
        books.put(ended(0));
        assert_eq!(books.take_writes(), [], "it is older than all of them");
        for number in HISTORY + 1..=HISTORY + 3 {
            books.put(ended(number));
        }
        redis.write(books.take_writes());
        let scores: BTreeSet<_> = redis.sets[Place::Failed as usize].values().copied().collect();
        assert_eq!(scores, (4..=HISTORY as i64 + 3).collect());
        assert_eq!(redis.hashes.len(), HISTORY);
        // One that is there may change.
        books.put(record("5", Place::Failed, 5, "y"));
        assert_eq!(books.take_writes().len(), 1);
    }

    #[test]
    fn hashes_that_nobody_names_any_more_are_known() {
        let (_, old) = Redis::anew([record("a", Place::Active, 1, "x"), record("n/s", Place::Repeat, 1, "x")]);
        let (_, new) = Redis::anew([record("a", Place::Failed, 1, "x")]);
        assert_eq!(old.without(&new), ["repeat:n/s"]);
    }
}
