//! How fast statuses are written: each object's at a calm pace, and all of them together within a limit.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock};
use tokio::time::Instant;

/// Writes of progress leave this share of the limit, one in so many, to changes of state.
const RESERVED: u32 = 5;

/// A run that was only just seen may be over in a moment: its first status waits so long, and then has more to tell.
const SETTLE: Duration = Duration::from_millis(500);

/// How long the watch may take to tell of a write. A write that was given up on its way may never be told of.
const LAG: Duration = Duration::from_secs(5);

/// Decides when a status may be written. A change of state waits for its turn; progress is put off, because a
/// newer one replaces it.
pub(super) struct Pace {
    /// Least time between two writes of one SyncJob that tell of progress only.
    interval: Duration,
    /// Each unfinished SyncJob.
    marks: Mutex<HashMap<String, Mark>>,
    all: DefaultDirectRateLimiter,
    progress: DefaultDirectRateLimiter,
}

struct Mark {
    seen: Instant,
    written: Option<Instant>,
    /// The resource version that the last write replaced, and since when.
    replaced: Option<(String, Instant)>,
    /// Since when the end of its run is known, which is not told yet.
    ended: Option<Instant>,
}

impl Mark {
    fn new() -> Self {
        Self { seen: Instant::now(), written: None, replaced: None, ended: None }
    }
}

impl Pace {
    pub fn new(interval: Duration, per_second: NonZeroU32) -> Self {
        let progress = NonZeroU32::new(per_second.get() - per_second.get() / RESERVED).unwrap_or(per_second);
        Self {
            interval,
            marks: Mutex::default(),
            all: RateLimiter::direct(Quota::per_second(per_second)),
            progress: RateLimiter::direct(Quota::per_second(progress)),
        }
    }

    /// Waits until a change of state may be written.
    pub async fn turn(&self) {
        self.all.until_ready().await;
    }

    /// How long the first status of a SyncJob has to wait. `None`: it may be written now, or was already.
    pub fn first(&self, uid: &str) -> Option<Duration> {
        let mut marks = lock(&self.marks);
        let mark = marks.entry(uid.to_owned()).or_insert_with(Mark::new);
        let wait = SETTLE.checked_sub(mark.seen.elapsed()).filter(|wait| !wait.is_zero());
        wait.filter(|_| mark.written.is_none())
    }

    /// How long the progress of a SyncJob has to wait. `None`: it may be written now.
    pub fn progress(&self, uid: &str) -> Option<Duration> {
        let last = lock(&self.marks).get(uid).and_then(|mark| mark.written);
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

    /// Notes that a write is about to replace this resource version. To be told before it is sent: the watch may tell of it
    /// before its answer comes.
    pub fn writes(&self, uid: &str, replaced: Option<String>) {
        lock(&self.marks).entry(uid.to_owned()).or_insert_with(Mark::new).replaced =
            replaced.map(|version| (version, Instant::now()));
    }

    /// Notes what became of it.
    pub fn wrote(&self, uid: &str, succeeded: bool) {
        // There is none when the SyncJob has ended with this write, and the watch was faster.
        let mut marks = lock(&self.marks);
        match marks.get_mut(uid) {
            Some(mark) if succeeded => mark.written = Some(Instant::now()),
            Some(mark) => mark.replaced = None,
            None => {}
        }
    }

    /// How long to wait at most for the watch to tell of the last write, when this is the SyncJob as it was before: a write on
    /// top of it would be refused. `None`: it is not.
    pub fn behind(&self, uid: &str, version: Option<&str>, now: Instant) -> Option<Duration> {
        let marks = lock(&self.marks);
        let (replaced, since) = marks.get(uid)?.replaced.as_ref()?;
        LAG.checked_sub(now.saturating_duration_since(*since))
            .filter(|wait| !wait.is_zero() && version == Some(replaced))
    }

    /// How long the end of a run is known already.
    pub fn since_end(&self, uid: &str, now: Instant) -> Duration {
        let mut marks = lock(&self.marks);
        let mark = marks.entry(uid.to_owned()).or_insert_with(Mark::new);
        now.saturating_duration_since(*mark.ended.get_or_insert(now))
    }

    pub fn forget(&self, uid: &str) {
        lock(&self.marks).remove(uid);
    }

    /// Forgets the SyncJobs that do not exist.
    pub fn forget_gone(&self, exists: impl Fn(&str) -> bool) {
        lock(&self.marks).retain(|uid, _| exists(uid));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(interval: Duration, per_second: u32) -> Pace {
        Pace::new(interval, NonZeroU32::new(per_second).unwrap())
    }

    #[test]
    fn progress_of_one_job_waits_for_the_interval() {
        let pace = pace(Duration::from_secs(60), 1000);
        assert_eq!(pace.progress("a"), None);
        pace.writes("a", None);
        pace.wrote("a", true);
        assert!(pace.progress("a").unwrap() > Duration::from_secs(50));
        assert_eq!(pace.progress("b"), None);
        pace.forget("a");
        assert_eq!(pace.progress("a"), None);
    }

    #[tokio::test]
    async fn the_first_status_waits_for_a_moment_and_later_ones_do_not() {
        let pace = pace(Duration::ZERO, 10);
        let wait = pace.first("a").unwrap();
        assert!(wait <= SETTLE);
        tokio::time::sleep(wait).await;
        assert_eq!(pace.first("a"), None);
        pace.writes("b", None);
        pace.wrote("b", true);
        assert_eq!(pace.first("b"), None, "another reason was found to write it");
    }

    #[test]
    fn a_job_is_behind_until_the_watch_tells_of_the_last_write() {
        let pace = pace(Duration::ZERO, 10);
        let now = Instant::now();
        let behind = |uid, version| pace.behind(uid, version, now).is_some();
        assert!(!behind("a", Some("7")));
        pace.writes("a", Some("7".to_owned()));
        pace.wrote("a", true);
        assert!(behind("a", Some("7")));
        assert!(!behind("a", Some("8")) && !behind("b", Some("7")) && !behind("a", None));
        let later = Instant::now() + LAG;
        assert!(pace.behind("a", Some("7"), later).is_none(), "it may never be told of");
        pace.writes("a", Some("8".to_owned()));
        pace.wrote("a", false);
        assert!(!behind("a", Some("8")), "a write that failed replaced nothing");
        pace.writes("b", Some("7".to_owned()));
        pace.forget("b");
        pace.wrote("b", true);
        assert!(lock(&pace.marks).get("b").is_none(), "nothing stays of one that has ended");
    }

    #[tokio::test]
    async fn progress_leaves_room_for_changes_of_state() {
        let pace = pace(Duration::ZERO, 10);
        let written = (0..20).filter(|_| pace.progress("a").is_none()).count();
        assert_eq!(written, 8);
        for _ in 0..2 {
            assert!(pace.all.check().is_ok(), "a fifth of the limit is left");
        }
    }
}
