//! Semaphore whose permits are shared between keys, such as callers. One key has at most a part of the permits, so that
//! it cannot hold all of them.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Semaphore with a limit for each key. The number of keys is at most the number of permits that are held.
#[derive(Debug)]
pub(super) struct KeyedSemaphore<K> {
    total: usize,
    each: usize,
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    all: usize,
    of_key: HashMap<K, usize>,
}

/// Reason for which no permit is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPermit {
    /// All permits are held.
    All,
    /// The key holds all permits that one key may hold.
    Key,
}

/// Permit, which returns to its semaphore when it is dropped.
#[derive(Debug)]
pub(super) struct KeyedPermit<K: Eq + Hash> {
    semaphore: Arc<KeyedSemaphore<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> KeyedSemaphore<K> {
    /// Creates a semaphore with `total` permits, of which each key holds at most `each`.
    pub fn new(total: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { total, each, held: Mutex::new(Held { all: 0, of_key: HashMap::new() }) })
    }

    /// Acquires a permit.
    pub fn try_acquire(self: &Arc<Self>, key: &K) -> Result<KeyedPermit<K>, NoPermit> {
        self.try_acquire_up_to(key, self.each)
    }

    /// Acquires a permit without the limit of the key, for a key that stands for many others.
    pub fn try_acquire_unlimited(self: &Arc<Self>, key: &K) -> Result<KeyedPermit<K>, NoPermit> {
        self.try_acquire_up_to(key, self.total)
    }

    fn try_acquire_up_to(self: &Arc<Self>, key: &K, each: usize) -> Result<KeyedPermit<K>, NoPermit> {
        let mut held = self.lock();
        let of_key = held.of_key.get(key).copied().unwrap_or(0);
        if of_key >= each {
            return Err(NoPermit::Key);
        }
        if held.all >= self.total {
            return Err(NoPermit::All);
        }
        held.all += 1;
        held.of_key.insert(key.clone(), of_key + 1);
        Ok(KeyedPermit { semaphore: Arc::clone(self), key: key.clone() })
    }
}

impl<K> KeyedSemaphore<K> {
    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for KeyedPermit<K> {
    fn drop(&mut self) {
        let mut held = self.semaphore.lock();
        held.all -= 1;
        if let Some(of_key) = held.of_key.get_mut(&self.key) {
            *of_key -= 1;
            if *of_key == 0 {
                held.of_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_holds_a_part_of_the_permits() {
        let semaphore = KeyedSemaphore::new(4, 2);
        let mut permits = vec![semaphore.try_acquire(&"a").unwrap(), semaphore.try_acquire(&"a").unwrap()];
        assert_eq!(semaphore.try_acquire(&"a").err(), Some(NoPermit::Key));
        permits.push(semaphore.try_acquire(&"b").unwrap());
        permits.push(semaphore.try_acquire_unlimited(&"a").unwrap());
        assert_eq!(semaphore.try_acquire(&"c").err(), Some(NoPermit::All));
        assert_eq!(semaphore.try_acquire_unlimited(&"a").err(), Some(NoPermit::All));
        permits.truncate(1);
        assert!(semaphore.try_acquire(&"a").is_ok() && semaphore.try_acquire(&"c").is_ok());
        permits.clear();
        assert!(semaphore.lock().of_key.is_empty(), "unused keys are forgotten");
    }

    proptest! {
        #[test]
        fn no_history_exceeds_the_bounds(steps in prop::collection::vec((0_u8..4, any::<bool>()), 0..200)) {
            let (semaphore, mut permits) = (KeyedSemaphore::new(7, 3), Vec::new());
            for (key, takes) in steps {
                if takes {
                    permits.extend(semaphore.try_acquire(&key));
                } else if let Some(at) = permits.iter().position(|permit| permit.key == key) {
                    permits.swap_remove(at);
                }
                let of_key = permits.iter().filter(|permit| permit.key == key).count();
                prop_assert!(permits.len() <= 7 && of_key <= 3);
                let held = semaphore.lock();
                prop_assert_eq!((held.all, held.of_key.get(&key).copied().unwrap_or(0)), (permits.len(), of_key));
            }
        }
    }
}
