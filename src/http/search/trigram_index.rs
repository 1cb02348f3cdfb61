//! Names by any part of them.

use std::collections::BTreeMap;

use super::{Bits, Candidates, Id, add};

/// Three bytes that follow each other. At the end of a name zeros follow, so each position in a name begins one.
type Gram = [u8; 3];

#[derive(Debug, Default)]
pub(super) struct TrigramIndex(BTreeMap<Gram, Vec<Id>>);

impl TrigramIndex {
    pub fn add(&mut self, name: &str, id: Id) {
        for gram in grams(name) {
            add(self.0.entry(gram).or_default(), id);
        }
    }

    pub fn remove(&mut self, name: &str, id: Id) {
        for gram in grams(name) {
            let Some(list) = self.0.get_mut(&gram) else { continue };
            if let Ok(index) = list.binary_search(&id) {
                list.remove(index);
            }
            if list.is_empty() {
                self.0.remove(&gram);
            }
        }
    }

    /// Runs that may have a text in their name, and all that do. `None` when there are none.
    pub fn candidates(&self, text: &str) -> Option<Candidates<'_>> {
        match text.as_bytes() {
            short @ ([] | [_] | [_, _]) => {
                let mut bits = Bits::default();
                let from = [short.first().copied().unwrap_or(0), short.get(1).copied().unwrap_or(0), 0];
                let lists = self.0.range(from..).take_while(|(gram, _)| gram.starts_with(short));
                for id in lists.flat_map(|(_, list)| list) {
                    bits.add(*id);
                }
                (bits.count > 0).then_some(Candidates::Collected(bits))
            }
            long => {
                let mut least: Option<&Vec<Id>> = None;
                for gram in long.windows(3) {
                    let list = self.0.get(gram)?;
                    least = Some(least.filter(|least| least.len() <= list.len()).unwrap_or(list));
                }
                least.map(|list| Candidates::Listed(list))
            }
        }
    }
}

fn grams(name: &str) -> impl Iterator<Item = Gram> {
    let bytes = name.as_bytes();
    let byte = |index: usize| bytes.get(index).copied().unwrap_or(0);
    (0..bytes.len()).map(move |index| [byte(index), byte(index + 1), byte(index + 2)])
}
