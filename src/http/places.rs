//! Places for a number of concurrent holders. One key, such as a caller, has at most a part of the places, so that it
//! cannot occupy all of them.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Places. The number of keys is at most the number of places that are taken.
#[derive(Debug)]
pub(super) struct Places<K> {
    total: usize,
    each: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    of_key: HashMap<K, usize>,
}

/// Reason for which no place is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All places are taken.
    All,
    /// The key has all places that one key may have.
    Key,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<K: Eq + Hash> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> Places<K> {
    /// Creates `total` places, of which each key has at most `each`.
    pub fn new(total: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { total, each, taken: Mutex::new(Taken { all: 0, of_key: HashMap::new() }) })
    }

    /// Takes a place.
    pub fn take(self: &Arc<Self>, key: &K) -> Result<Place<K>, Full> {
        self.take_of(key, self.each)
    }

    /// Takes a place of any number, for a key that stands for many others.
    pub fn take_unlimited(self: &Arc<Self>, key: &K) -> Result<Place<K>, Full> {
        self.take_of(key, self.total)
    }

    fn take_of(self: &Arc<Self>, key: &K, each: usize) -> Result<Place<K>, Full> {
        let mut taken = self.lock();
        let of_key = taken.of_key.get(key).copied().unwrap_or(0);
        if of_key >= each {
            return Err(Full::Key);
        }
        if taken.all >= self.total {
            return Err(Full::All);
        }
        taken.all += 1;
        taken.of_key.insert(key.clone(), of_key + 1);
        Ok(Place { places: Arc::clone(self), key: key.clone() })
    }
}

impl<K> Places<K> {
    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        if let Some(of_key) = taken.of_key.get_mut(&self.key) {
            *of_key -= 1;
            if *of_key == 0 {
                taken.of_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_has_a_part_of_the_places() {
        let places = Places::new(4, 2);
        let mut held = vec![places.take(&"a").unwrap(), places.take(&"a").unwrap()];
        assert_eq!(places.take(&"a").err(), Some(Full::Key));
        held.push(places.take(&"b").unwrap());
        held.push(places.take_unlimited(&"a").unwrap());
        assert_eq!(places.take(&"c").err(), Some(Full::All));
        assert_eq!(places.take_unlimited(&"a").err(), Some(Full::All));
        held.truncate(1);
        assert!(places.take(&"a").is_ok() && places.take(&"c").is_ok());
        held.clear();
        assert!(places.lock().of_key.is_empty(), "unused keys are forgotten");
    }

    proptest! {
        #[test]
        fn no_history_exceeds_the_bounds(steps in prop::collection::vec((0_u8..4, any::<bool>()), 0..200)) {
            let (places, mut held) = (Places::new(7, 3), Vec::new());
            for (key, takes) in steps {
                if takes {
                    held.extend(places.take(&key));
                } else if let Some(at) = held.iter().position(|place| place.key == key) {
                    held.swap_remove(at);
                }
                let of_key = held.iter().filter(|place| place.key == key).count();
                prop_assert!(held.len() <= 7 && of_key <= 3);
                let taken = places.lock();
                prop_assert_eq!((taken.all, taken.of_key.get(&key).copied().unwrap_or(0)), (held.len(), of_key));
            }
        }
    }
}
