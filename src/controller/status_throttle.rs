//! Rate limits for status writes: a minimum interval per object and a global limit.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock};
use tokio::time::Instant;

/// Divisor of the limit: this share of the writes is reserved for changes of state.
const RESERVED: u32 = 5;

/// Delay of the first status of a run. A run that was only just seen may be over in a moment, and then needs one write.
const SETTLE: Duration = Duration::from_millis(500);

/// Longest expected watch lag after a write. A write that timed out may never be observed.
const LAG: Duration = Duration::from_secs(5);

/// Rate limiter of status writes. A change of state waits for the limit; a write of progress is delayed, because newer
/// progress replaces it.
pub(super) struct StatusThrottle {
    /// Minimum interval between two writes of one SyncJob that report progress alone.
    interval: Duration,
    /// Last write of each unfinished SyncJob, by uid.
    last_writes: Mutex<HashMap<String, LastWrite>>,
    all: DefaultDirectRateLimiter,
    progress: DefaultDirectRateLimiter,
}

struct LastWrite {
    seen: Instant,
    written: Option<Instant>,
    /// Resource version that the last write replaced, and when.
    replaced: Option<(String, Instant)>,
    /// Time at which an end of the run was first seen that is not in the status yet.
    ended: Option<Instant>,
}

impl LastWrite {
    fn new() -> Self {
        Self { seen: Instant::now(), written: None, replaced: None, ended: None }
    }
}

impl StatusThrottle {
    pub fn new(interval: Duration, per_second: NonZeroU32) -> Self {
        let progress = NonZeroU32::new(per_second.get() - per_second.get() / RESERVED).unwrap_or(per_second);
        Self {
            interval,
            last_writes: Mutex::default(),
            all: RateLimiter::direct(Quota::per_second(per_second)),
            progress: RateLimiter::direct(Quota::per_second(progress)),
        }
    }

    /// Waits until a change of state may be written.
    pub async fn acquire(&self) {
        self.all.until_ready().await;
    }

    /// Delay of the first status of a SyncJob. `None`: a status may be written now, or was written before.
    pub fn initial_delay(&self, uid: &str) -> Option<Duration> {
        let mut last_writes = lock(&self.last_writes);
        let write = last_writes.entry(uid.to_owned()).or_insert_with(LastWrite::new);
        let wait = SETTLE.checked_sub(write.seen.elapsed()).filter(|wait| !wait.is_zero());
        wait.filter(|_| write.written.is_none())
    }

    /// Delay of a status that reports progress alone. `None`: it may be written now.
    pub fn progress_delay(&self, uid: &str) -> Option<Duration> {
        let last = lock(&self.last_writes).get(uid).and_then(|write| write.written);
        let early = last.and_then(|last| self.interval.checked_sub(last.elapsed()));
        if let Some(wait) = early.filter(|wait| !wait.is_zero()) {
            return Some(wait);
        }
        for limit in [&self.progress, &self.all] {
            if let Err(full) = limit.check() {
                return Some(full.wait_time_from(limit.clock().now()).max(Duration::from_millis(1)));
            }
        }
        None
    }

    /// Records that a write is about to replace this resource version. Call it before the request: the watch may report the
    /// write before the response arrives.
    pub fn begin_write(&self, uid: &str, replaced: Option<String>) {
        lock(&self.last_writes).entry(uid.to_owned()).or_insert_with(LastWrite::new).replaced =
            replaced.map(|version| (version, Instant::now()));
    }

    /// Records the result of a write.
    pub fn finish_write(&self, uid: &str, succeeded: bool) {
        // There is no entry when the SyncJob ended with this write and the watch was faster.
        let mut last_writes = lock(&self.last_writes);
        match last_writes.get_mut(uid) {
            Some(write) if succeeded => write.written = Some(Instant::now()),
            Some(write) => write.replaced = None,
            None => {}
        }
    }

    /// Longest wait for the watch to report the last write, when the cache has the SyncJob from before it: another write would be
    /// refused. `None`: the cache is not stale.
    pub fn stale_cache_delay(&self, uid: &str, version: Option<&str>, now: Instant) -> Option<Duration> {
        let last_writes = lock(&self.last_writes);
        let (replaced, since) = last_writes.get(uid)?.replaced.as_ref()?;
        LAG.checked_sub(now.saturating_duration_since(*since))
            .filter(|wait| !wait.is_zero() && version == Some(replaced))
    }

    /// Time since the end of a run was first seen.
    pub fn since_end(&self, uid: &str, now: Instant) -> Duration {
        let mut last_writes = lock(&self.last_writes);
        let write = last_writes.entry(uid.to_owned()).or_insert_with(LastWrite::new);
        now.saturating_duration_since(*write.ended.get_or_insert(now))
    }

    /// Removes the entry of a SyncJob.
    pub fn forget(&self, uid: &str) {
        lock(&self.last_writes).remove(uid);
    }

    /// Removes the entries of SyncJobs that do not exist.
    pub fn forget_gone(&self, exists: impl Fn(&str) -> bool) {
        lock(&self.last_writes).retain(|uid, _| exists(uid));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(interval: Duration, per_second: u32) -> StatusThrottle {
        StatusThrottle::new(interval, NonZeroU32::new(per_second).unwrap())
    }

    #[test]
    fn progress_of_one_job_waits_for_the_interval() {
        let throttle = throttle(Duration::from_secs(60), 1000);
        assert_eq!(throttle.progress_delay("a"), None);
        throttle.begin_write("a", None);
        throttle.finish_write("a", true);
        assert!(throttle.progress_delay("a").unwrap() > Duration::from_secs(50));
        assert_eq!(throttle.progress_delay("b"), None);
        throttle.forget("a");
        assert_eq!(throttle.progress_delay("a"), None);
    }

    #[tokio::test]
    async fn the_first_status_waits_for_a_moment_and_later_ones_do_not() {
        let throttle = throttle(Duration::ZERO, 10);
        let wait = throttle.initial_delay("a").unwrap();
        assert!(wait <= SETTLE);
        tokio::time::sleep(wait).await;
        assert_eq!(throttle.initial_delay("a"), None);
        throttle.begin_write("b", None);
        throttle.finish_write("b", true);
        assert_eq!(throttle.initial_delay("b"), None, "another reason was found to write it");
    }

    #[test]
    fn the_cache_is_stale_until_the_watch_reports_the_write() {
        let throttle = throttle(Duration::ZERO, 10);
        let now = Instant::now();
        let stale_cache_delay = |uid, version| throttle.stale_cache_delay(uid, version, now).is_some();
        assert!(!stale_cache_delay("a", Some("7")));
        throttle.begin_write("a", Some("7".to_owned()));
        throttle.finish_write("a", true);
        assert!(stale_cache_delay("a", Some("7")));
        assert!(
            !stale_cache_delay("a", Some("8")) && !stale_cache_delay("b", Some("7")) && !stale_cache_delay("a", None)
        );
        let later = Instant::now() + LAG;
        assert!(throttle.stale_cache_delay("a", Some("7"), later).is_none(), "the watch may never report it");
        throttle.begin_write("a", Some("8".to_owned()));
        throttle.finish_write("a", false);
        assert!(!stale_cache_delay("a", Some("8")), "a write that failed replaced nothing");
        throttle.begin_write("b", Some("7".to_owned()));
        throttle.forget("b");
        throttle.finish_write("b", true);
        assert!(lock(&throttle.last_writes).get("b").is_none(), "nothing stays of one that has ended");
    }

    #[tokio::test]
    async fn progress_leaves_room_for_changes_of_state() {
        let throttle = throttle(Duration::ZERO, 10);
        let written = (0..20).filter(|_| throttle.progress_delay("a").is_none()).count();
        assert_eq!(written, 8);
        for _ in 0..2 {
            assert!(throttle.all.check().is_ok(), "a fifth of the limit is left");
        }
    }
}
