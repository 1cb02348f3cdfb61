//! Texts by their beginning, with the runs that have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use super::{Id, add};

/// Largest number of texts of all runs, each counted once for each run. Bounds the memory.
const MOST: usize = 1_000_000;
/// Characters of a text that count.
const LONGEST: usize = 48;

#[derive(Debug)]
pub(super) struct WordIndex {
    runs: BTreeMap<Arc<str>, Vec<Id>>,
    count: usize,
    room: usize,
    /// Texts for which there was no room.
    left_out: bool,
}

impl Default for WordIndex {
    fn default() -> Self {
        Self::with_room(MOST)
    }
}

impl WordIndex {
    /// Creates an index with a capacity of `room` texts.
    pub fn with_room(room: usize) -> Self {
        Self { runs: BTreeMap::new(), count: 0, room, left_out: false }
    }

    /// Replaces the texts of a run, and returns its texts now: fewer when there is no more room.
    pub fn replace_texts(&mut self, before: Vec<Arc<str>>, now: BTreeSet<String>, id: Id) -> Vec<Arc<str>> {
        if before.len() == now.len() && before.iter().zip(&now).all(|(before, now)| **before == **now) {
            return before;
        }
        for text in before.iter().filter(|text| !now.contains(&***text)) {
            self.take(text, id);
        }
        let had: BTreeSet<_> = before.into_iter().collect();
        let mut has = Vec::with_capacity(now.len());
        for text in now {
            if let Some(text) = had.get(text.as_str()) {
                has.push(Arc::clone(text));
            } else if self.count < self.room {
                has.push(self.add_text(&text, id));
            } else {
                self.left_out = true;
            }
        }
        has
    }

    pub fn is_whole(&self) -> bool {
        !self.left_out
    }

    /// The runs of each text that begins so.
    pub fn with_prefix<'a>(&'a self, beginning: &str) -> impl Iterator<Item = &'a Vec<Id>> {
        let from = (Bound::Included(beginning), Bound::Unbounded);
        let texts = self.runs.range::<str, _>(from).take_while(move |(text, _)| text.starts_with(beginning));
        texts.map(|(_, runs)| runs)
    }

    fn add_text(&mut self, text: &str, id: Id) -> Arc<str> {
        self.count += 1;
        let key = self.runs.get_key_value(text).map_or_else(|| text.into(), |(key, _)| Arc::clone(key));
        add(self.runs.entry(Arc::clone(&key)).or_default(), id);
        key
    }

    fn take(&mut self, text: &str, id: Id) {
        let Some(runs) = self.runs.get_mut(text) else { return };
        if let Ok(index) = runs.binary_search(&id) {
            runs.remove(index);
            self.count -= 1;
        }
        if runs.is_empty() {
            self.runs.remove(text);
        }
    }
}

/// The words of a text, in small letters.
pub(super) fn split_words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(normalize).collect()
}

/// Normalizes a word or a key: lower case, of limited length.
pub(super) fn normalize(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).take(LONGEST).collect()
}
