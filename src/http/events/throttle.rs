//! Sends each run's newest state at most once a second.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

/// Least time between two events about one run.
const INTERVAL: Duration = Duration::from_secs(1);

/// Throttle of events about runs. The clock is an argument.
pub(super) struct Throttle<K> {
    waiting: HashMap<K, Waiting>,
    /// Runs with an event within the last interval.
    sent: HashMap<K, Instant>,
    /// Newest version seen.
    newest: u64,
}

struct Waiting {
    due: Instant,
    /// First version without an event.
    since: u64,
}

impl<K> Default for Throttle<K> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), sent: HashMap::new(), newest: 0 }
    }
}

impl<K: Clone + Eq + Hash> Throttle<K> {
    /// Enqueues a changed run.
    pub fn enqueue(&mut self, key: K, version: u64, now: Instant) {
        self.observe_version(version);
        let due = self.sent.get(&key).map_or(now, |sent| *sent + INTERVAL);
        self.waiting.entry(key).or_insert(Waiting { due, since: version });
    }

    /// Records a version that needs no event, or whose event was sent at once.
    pub fn observe_version(&mut self, version: u64) {
        self.newest = self.newest.max(version);
    }

    /// Takes the next run whose event is due. The event contains the newest state of the run.
    pub fn take_due(&mut self, now: Instant) -> Option<K> {
        self.sent.retain(|_, sent| now.duration_since(*sent) < INTERVAL);
        let ripe = self.waiting.iter().filter(|(_, waiting)| waiting.due <= now);
        let key = ripe.min_by_key(|(_, waiting)| waiting.since)?.0.clone();
        self.waiting.remove(&key);
        self.sent.insert(key.clone(), now);
        Some(key)
    }

    /// Time of the next due event.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Version up to which all events were sent. A waiting run limits it.
    pub fn sent_version(&self) -> u64 {
        let waiting = self.waiting.values().map(|waiting| waiting.since.saturating_sub(1)).min();
        waiting.unwrap_or(self.newest).min(self.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_at_most_one_event_a_second() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        throttle.enqueue("a", 1, at(0));
        assert_eq!(throttle.take_due(at(0)), Some("a"));
        for version in 2..10 {
            throttle.enqueue("a", version, at(100 * version));
        }
        assert_eq!((throttle.take_due(at(999)), throttle.due()), (None, Some(at(1000))));
        assert_eq!(throttle.take_due(at(1000)), Some("a"));
        assert_eq!((throttle.take_due(at(5000)), throttle.due()), (None, None));
        throttle.enqueue("a", 20, at(6000));
        assert_eq!(throttle.take_due(at(6000)), Some("a"));
    }

    #[test]
    fn runs_do_not_delay_each_other() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        throttle.enqueue("a", 1, now);
        throttle.enqueue("b", 2, now);
        assert_eq!(
            [throttle.take_due(now), throttle.take_due(now), throttle.take_due(now)],
            [Some("a"), Some("b"), None]
        );
    }

    #[test]
    fn waiting_events_limit_the_sent_version() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        throttle.enqueue("a", 5, now);
        throttle.take_due(now);
        assert_eq!(throttle.sent_version(), 5);
        throttle.enqueue("a", 7, now);
        throttle.enqueue("b", 9, now);
        assert_eq!(throttle.take_due(now), Some("b"));
        assert_eq!(throttle.sent_version(), 6, "a client that reconnects receives version 7");
        throttle.take_due(now + INTERVAL);
        assert_eq!(throttle.sent_version(), 9);
    }
}
