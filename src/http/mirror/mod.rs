//! A copy of runs and schedules in the keys of BullMQ, for people whose tools read those. One way: nothing of it is ever read
//! but how much there is, to notice that it was lost.
//!
//! One sidecar writes at a time. It writes what the watches tell of every [`TICK`], and all of it anew when it begins, when
//! something is missing, and every [`RENEWAL`]; whatever is not written again ends by itself.

mod books;
mod record;
mod store;

use std::{cmp::Reverse, time::Duration};

use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::objects::{Marks, Objects};
use crate::{
    api::{SyncJob, syncjob::Phase},
    queue::Queue,
    telemetry::Availability,
};
use books::{Books, Write};
use store::{Error, Store};

/// Between two looks at what has changed: progress is shown at most this often.
const TICK: Duration = Duration::from_secs(2);
/// Between two times that all of it is written anew.
const RENEWAL: Duration = Duration::from_secs(15 * 60);
/// Runs and schedules that are prepared before they are written.
const CHUNK: usize = 100;

static MIRROR: Availability = Availability::new("the mirror for BullMQ");

/// The prefix cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("in a Redis Cluster the keys must be in one slot: put the prefix in braces, such as {{bull}}")]
pub struct NoHashTag;

/// Keeps the copy up to date.
pub struct Mirror {
    objects: Objects,
    queue: Queue,
    store: Store,
    /// What stands in Redis. `None` when that is not known, or another one writes it.
    books: Option<Books>,
    written: Instant,
    /// Whether this process writes, as it was logged.
    writes: Option<bool>,
}

impl Mirror {
    /// A mirror below `<prefix>:<name of the queue>:`, where the queue is. `writer` names this process.
    ///
    /// # Errors
    /// When the queue is in a Cluster and the prefix has no hash tag.
    pub fn new(objects: Objects, queue: Queue, prefix: &str, writer: &str) -> Result<Self, NoHashTag> {
        objects.mark();
        let store = Store::new(&queue, prefix, writer).ok_or(NoHashTag)?;
        Ok(Self { objects, queue, store, books: None, written: Instant::now(), writes: None })
    }

    /// Writes for as long as it is polled. Another one takes over 15 s later.
    pub async fn run(mut self) {
        self.objects.listed().await;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let done = self.step().await;
            if done.is_err() {
                // Any part of it may have been written.
                self.books = None;
            }
            MIRROR.note(&done);
        }
    }

    async fn step(&mut self) -> Result<(), Error> {
        let marks = self.objects.take_marks();
        if self.store.is_due() {
            let sizes = self.store.hold().await?;
            self.tell(sizes.is_some());
            let Some(sizes) = sizes else {
                self.books = None;
                return Ok(());
            };
            self.books = self.books.take().filter(|books| books.sizes() == sizes);
        } else if self.books.is_none() {
            return Ok(());
        }
        match &mut self.books {
            Some(books) if !marks.all && self.written.elapsed() < RENEWAL => {
                note(books, &self.objects, &self.queue, marks).await?;
                self.store.write(books.take_writes()).await
            }
            _ => self.write_all().await,
        }
    }

    fn tell(&mut self, writes: bool) {
        if self.writes.replace(writes) != Some(writes) {
            let key = self.store.key("meta");
            if writes {
                tracing::info!(key, "writes the mirror for BullMQ");
            } else {
                tracing::info!(key, "another process writes the mirror for BullMQ: this one stands by");
            }
        }
    }

    async fn write_all(&mut self) -> Result<(), Error> {
        let (old, mut books) = (self.books.take(), Books::default());
        for schedule in self.objects.schedules.state() {
            books.put(record::schedule(&schedule));
            self.flush(&mut books).await?;
        }
        let mut jobs = self.objects.jobs.state();
        // The books have room for so many of those that have ended, and the newest are wanted.
        jobs.sort_by_cached_key(|job| Reverse(job.status.as_ref().and_then(|status| status.completion_time.clone())));
        for job in jobs {
            if record::place(&job).is_some_and(|place| books.is_full(place)) {
                continue;
            }
            if let Some(record) = run(&self.queue, &job).await? {
                books.put(record);
                self.flush(&mut books).await?;
            }
        }
        let left_over = old.iter().flat_map(|old| old.without(&books)).map(|key| Write::Forget { key }).collect();
        self.store.write(books.take_writes()).await?;
        self.store.write(books.take_sets()).await?;
        self.store.write(left_over).await?;
        tracing::debug!(sizes = ?books.sizes(), "the mirror for BullMQ was written anew");
        (self.books, self.written) = (Some(books), Instant::now());
        Ok(())
    }

    async fn flush(&mut self, books: &mut Books) -> Result<(), Error> {
        if books.pending() < CHUNK { Ok(()) } else { self.store.write(books.take_writes()).await }
    }
}

/// Enters what has changed into the books.
async fn note(books: &mut Books, objects: &Objects, queue: &Queue, marks: Marks) -> Result<(), Error> {
    for schedule in marks.schedules {
        match objects.schedules.get(&schedule) {
            Some(schedule) => books.put(record::schedule(&schedule)),
            None => books.remove(&record::place_of(&schedule)),
        }
    }
    for (uid, place) in marks.jobs {
        let job = objects.jobs.get(&place).filter(|job| job.metadata.uid.as_ref() == Some(&uid));
        let record = match job {
            Some(job) => run(queue, &job).await?,
            None => None,
        };
        match record {
            Some(record) => books.put(record),
            None => books.remove(&uid),
        }
    }
    Ok(())
}

/// The record of a run. When the backoff of one ends, only the queue knows.
async fn run(queue: &Queue, job: &SyncJob) -> Result<Option<record::Record>, Error> {
    let waits = job.status.as_ref().and_then(|status| status.phase) == Some(Phase::Retrying);
    let entry = match job.uid().filter(|_| waits) {
        Some(uid) => queue.get(&uid).await?,
        None => None,
    };
    Ok(record::job(job, entry.and_then(|entry| entry.retry_at)))
}

/// `namespace/name` of an object.
fn path<K: kube::Resource>(place: &ObjectRef<K>) -> String {
    format!("{}/{}", place.namespace.as_deref().unwrap_or_default(), place.name)
}
