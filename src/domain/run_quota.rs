//! Quotas of runs: the policy limits how many runs of a namespace are in the queue, and so on workers, at a time.

use std::collections::{BTreeSet, HashMap};

/// Runs that count toward the quotas of their namespaces, and runs that wait until one of those has ended.
///
/// A run counts while it is waiting, delayed or active in the queue. A suspended or held run does not count.
#[derive(Debug, Default)]
pub struct RunQuota {
    /// Namespaces of the runs that count, by uid.
    counted: HashMap<String, String>,
    /// Numbers of the runs that count, by namespace.
    numbers: HashMap<String, usize>,
    waiting: BTreeSet<WaitingRun>,
    waiting_by_uid: HashMap<String, WaitingRun>,
}

/// Run that waits until its namespace has fewer runs than its quota. The first in order is the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaitingRun {
    /// Namespace of the run.
    pub namespace: String,
    /// Negative priority, so that a run of a higher priority is earlier.
    pub rank: i32,
    /// Time of the creation of its SyncJob, in seconds since 1970.
    pub created: i64,
    /// Name of its SyncJob.
    pub name: String,
    /// Id of the run.
    pub uid: String,
}

impl RunQuota {
    /// Counts a run that is in the queue, whatever its quota is.
    pub fn count(&mut self, namespace: &str, uid: &str) {
        self.stop_waiting(uid);
        if self.counted.insert(uid.to_owned(), namespace.to_owned()).is_none() {
            *self.numbers.entry(namespace.to_owned()).or_default() += 1;
        }
    }

    /// Counts a run that is about to enter the queue. False when `limit` runs of its namespace count, or are first: the
    /// run then waits.
    pub fn request(&mut self, run: &WaitingRun, limit: u32) -> bool {
        if self.counted.contains_key(&run.uid) {
            return true;
        }
        self.stop_waiting(&run.uid);
        let free = (limit as usize).saturating_sub(self.number(&run.namespace));
        if self.waiting_in(&run.namespace).take(free).take_while(|other| *other < run).count() < free {
            self.count(&run.namespace, &run.uid);
            return true;
        }
        self.waiting.insert(run.clone());
        self.waiting_by_uid.insert(run.uid.clone(), run.clone());
        false
    }

    /// Forgets a run that has left the queue, or does not have to enter the queue. Returns the next run of its
    /// namespace, which has to request again.
    pub fn release(&mut self, uid: &str) -> Option<WaitingRun> {
        let was_waiting = self.stop_waiting(uid).map(|run| run.namespace);
        let counted = self.counted.remove(uid);
        if let Some(namespace) = &counted {
            match self.number(namespace) {
                0 | 1 => self.numbers.remove(namespace),
                number => self.numbers.insert(namespace.clone(), number - 1),
            };
        }
        let namespace = counted.or(was_waiting)?;
        self.waiting_in(&namespace).next().cloned()
    }

    /// True while a run waits for the quota.
    #[must_use]
    pub fn is_waiting(&self, uid: &str) -> bool {
        self.waiting_by_uid.contains_key(uid)
    }

    /// Ids of the runs that count or wait.
    pub fn uids(&self) -> Vec<String> {
        self.counted.keys().chain(self.waiting_by_uid.keys()).cloned().collect()
    }

    fn number(&self, namespace: &str) -> usize {
        self.numbers.get(namespace).copied().unwrap_or_default()
    }

    fn waiting_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a WaitingRun> {
        let first = WaitingRun {
            namespace: namespace.to_owned(),
            rank: i32::MIN,
            created: i64::MIN,
            name: String::new(),
            uid: String::new(),
        };
        self.waiting.range(first..).take_while(move |run| run.namespace == namespace)
    }

    fn stop_waiting(&mut self, uid: &str) -> Option<WaitingRun> {
        let run = self.waiting_by_uid.remove(uid)?;
        self.waiting.remove(&run);
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(namespace: &str, rank: i32, name: &str) -> WaitingRun {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        WaitingRun { namespace, rank, created: 0, uid: name.clone(), name }
    }

    #[test]
    fn the_first_waiting_run_of_a_namespace_is_next() {
        let mut quota = RunQuota::default();
        quota.count("a", "x");
        quota.count("b", "y");
        assert!(!quota.request(&run("a", 0, "late"), 1) && !quota.request(&run("a", -5, "urgent"), 1));
        assert!(!quota.request(&run("b", -9, "other"), 1) && quota.request(&run("c", 0, "alone"), 1));
        assert_eq!(quota.release("unknown"), None);
        assert_eq!(quota.release("x").map(|run| run.name), Some("urgent".to_owned()));
        assert!(!quota.request(&run("a", 0, "late"), 1), "another run is first");
        assert!(quota.request(&run("a", -5, "urgent"), 1) && !quota.request(&run("a", 0, "late"), 1));
        assert!(quota.request(&run("a", 0, "late"), 2), "the quota was raised");
        assert!(quota.request(&run("a", 0, "late"), 1), "a run that counts stays when the quota is lowered");
    }

    #[test]
    fn a_deleted_run_delays_no_other() {
        let mut quota = RunQuota::default();
        quota.count("a", "x");
        assert!(!quota.request(&run("a", 0, "1"), 1) && !quota.request(&run("a", 0, "2"), 1));
        assert_eq!(quota.release("x").unwrap().name, "1");
        assert_eq!(quota.release("1").unwrap().name, "2", "the next run requests again");
        assert!(quota.request(&run("a", 0, "2"), 1));
        assert!(quota.release("2").is_none() && quota.uids().is_empty());
    }

    #[test]
    fn a_changed_priority_moves_a_waiting_run() {
        let mut quota = RunQuota::default();
        quota.count("a", "x");
        for waiting in [run("a", 0, "1"), run("a", 0, "2"), run("a", -7, "2")] {
            assert!(!quota.request(&waiting, 1));
        }
        assert_eq!(quota.release("x").unwrap().name, "2");
        assert_eq!(quota.uids().len(), 2);
    }

    proptest! {
        #[test]
        fn a_namespace_has_at_most_its_quota_and_all_run(
            steps in prop::collection::vec((0..3_u8, 0..2_u8, 0..9_u8, -2..2_i32), 0..200),
        ) {
            let (mut quota, limits) = (RunQuota::default(), [2_u32, 3]);
            let mut left: Vec<WaitingRun> = Vec::new();
            for (step, namespace, uid, rank) in steps {
                let (of, limit) = (format!("n{namespace}"), limits[usize::from(namespace)]);
                let run = run(&of, rank, &format!("{namespace}-{uid}"));
                if step == 0 {
                    quota.release(&run.uid);
                    left.retain(|other| other.uid != run.uid);
                } else {
                    left.retain(|other| other.uid != run.uid);
                    if !quota.request(&run, limit) {
                        left.push(run);
                    }
                }
                prop_assert!(quota.number(&of) <= limit as usize);
                prop_assert_eq!(quota.waiting.len(), quota.waiting_by_uid.len());
                prop_assert_eq!(quota.waiting.len(), left.len());
            }
            // Each end lets the next run in, until no run is left.
            for (namespace, limit) in [("n0", 2), ("n1", 3)] {
                for run in quota.waiting_in(namespace).cloned().collect::<Vec<_>>() {
                    quota.request(&run, limit);
                }
                while let Some(uid) = quota.counted.iter().find(|(_, of)| *of == namespace).map(|(uid, _)| uid.clone()) {
                    if let Some(next) = quota.release(&uid) {
                        prop_assert!(quota.request(&next, limit));
                    }
                }
                prop_assert_eq!(quota.waiting_in(namespace).count(), 0);
            }
        }
    }
}
