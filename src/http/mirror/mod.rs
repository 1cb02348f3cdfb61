//! Read-only copy of runs and schedules in the keys of BullMQ, for tools that read BullMQ. The mirror is written and
//! never read, except for the sizes of its sets, which show that keys were lost.
//!
//! One API process writes at a time, under a lease. It writes the changes of the watches every [`TICK`], and the
//! whole mirror at its start, when keys are missing, and every [`RENEWAL`]. Keys that are not written again expire.

mod record;
mod snapshot;
mod store;

use std::{cmp::Reverse, time::Duration};

use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::objects::{ChangedObjects, Objects};
use crate::{
    api::{SyncJob, syncjob::Phase},
    queue::Queue,
    telemetry::Availability,
};
use snapshot::{MirrorWrite, Snapshot};
use store::{Error, Store};

/// Interval between writes of changes, so also of progress.
const TICK: Duration = Duration::from_secs(2);
/// Interval between writes of the whole mirror.
const RENEWAL: Duration = Duration::from_secs(15 * 60);
/// Number of records that are prepared before they are written.
const CHUNK: usize = 100;

static MIRROR: Availability = Availability::new("the mirror for BullMQ");

/// Error of a prefix that cannot be used in a Redis Cluster.
#[derive(Debug, thiserror::Error)]
#[error("in a Redis Cluster the keys must be in one slot: put the prefix in braces, such as {{bull}}")]
pub struct NoHashTag;

/// Writer of the mirror.
pub struct Mirror {
    objects: Objects,
    queue: Queue,
    store: Store,
    /// Content of the mirror in Redis. `None` when that is unknown, or another process writes the mirror.
    snapshot: Option<Snapshot>,
    written: Instant,
    /// Role of this process that was logged last: true for the writer.
    writes: Option<bool>,
}

impl Mirror {
    /// Creates the writer of a mirror below `<prefix>:<name of the queue>:`, on the Redis of the queue. `writer` names
    /// this process.
    ///
    /// # Errors
    /// When the queue is in a Cluster and the prefix has no hash tag.
    pub fn new(objects: Objects, queue: Queue, prefix: &str, writer: &str) -> Result<Self, NoHashTag> {
        objects.track_changes();
        let store = Store::new(&queue, prefix, writer).ok_or(NoHashTag)?;
        Ok(Self { objects, queue, store, snapshot: None, written: Instant::now(), writes: None })
    }

    /// Writes the mirror for as long as the future is polled. Another process takes over 15 s later.
    pub async fn run(mut self) {
        self.objects.listed().await;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let done = self.step().await;
            if done.is_err() {
                // Any part of the writes may have been applied.
                self.snapshot = None;
            }
            MIRROR.record(&done);
        }
    }

    async fn step(&mut self) -> Result<(), Error> {
        let changed = self.objects.take_changed_objects();
        if self.store.is_renewal_due() {
            let sizes = self.store.renew_lease().await?;
            self.log_role(sizes.is_some());
            let Some(sizes) = sizes else {
                self.snapshot = None;
                return Ok(());
            };
            self.snapshot = self.snapshot.take().filter(|snapshot| snapshot.sizes() == sizes);
        } else if self.snapshot.is_none() {
            return Ok(());
        }
        match &mut self.snapshot {
            Some(snapshot) if !changed.all && self.written.elapsed() < RENEWAL => {
                apply_changes(snapshot, &self.objects, &self.queue, changed).await?;
                self.store.write(snapshot.take_writes()).await
            }
            _ => self.write_all().await,
        }
    }

    fn log_role(&mut self, writes: bool) {
        if self.writes.replace(writes) != Some(writes) {
            let key = self.store.key("meta");
            if writes {
                tracing::info!(key, "writes the mirror for BullMQ");
            } else {
                tracing::info!(key, "another process writes the mirror for BullMQ; this process is on standby");
            }
        }
    }

    async fn write_all(&mut self) -> Result<(), Error> {
        let (old, mut snapshot) = (self.snapshot.take(), Snapshot::default());
        for schedule in self.objects.schedules.state() {
            snapshot.put(record::schedule(&schedule));
            self.flush(&mut snapshot).await?;
        }
        let mut jobs = self.objects.jobs.state();
        // The sets of ended runs are bounded, and have the newest runs.
        jobs.sort_by_cached_key(|job| Reverse(job.status.as_ref().and_then(|status| status.completion_time.clone())));
        for job in jobs {
            if record::set_of(&job).is_some_and(|set| snapshot.is_full(set)) {
                continue;
            }
            if let Some(record) = load_record(&self.queue, &job).await? {
                snapshot.put(record);
                self.flush(&mut snapshot).await?;
            }
        }
        let left_over =
            old.iter().flat_map(|old| old.without(&snapshot)).map(|key| MirrorWrite::Forget { key }).collect();
        self.store.write(snapshot.take_writes()).await?;
        self.store.write(snapshot.take_sets()).await?;
        self.store.write(left_over).await?;
        tracing::debug!(sizes = ?snapshot.sizes(), "wrote the whole mirror for BullMQ");
        (self.snapshot, self.written) = (Some(snapshot), Instant::now());
        Ok(())
    }

    async fn flush(&mut self, snapshot: &mut Snapshot) -> Result<(), Error> {
        if snapshot.pending() < CHUNK { Ok(()) } else { self.store.write(snapshot.take_writes()).await }
    }
}

/// Applies the changes of the watches to the snapshot.
async fn apply_changes(
    snapshot: &mut Snapshot,
    objects: &Objects,
    queue: &Queue,
    changed: ChangedObjects,
) -> Result<(), Error> {
    for schedule in changed.schedules {
        match objects.schedules.get(&schedule) {
            Some(schedule) => snapshot.put(record::schedule(&schedule)),
            None => snapshot.remove(&record::scheduler_id(&schedule)),
        }
    }
    for (uid, reference) in changed.jobs {
        let job = objects.jobs.get(&reference).filter(|job| job.metadata.uid.as_ref() == Some(&uid));
        let record = match job {
            Some(job) => load_record(queue, &job).await?,
            None => None,
        };
        match record {
            Some(record) => snapshot.put(record),
            None => snapshot.remove(&uid),
        }
    }
    Ok(())
}

/// Loads the record of a run. Only the queue has the end of its backoff.
async fn load_record(queue: &Queue, job: &SyncJob) -> Result<Option<record::JobRecord>, Error> {
    let waits = job.status.as_ref().and_then(|status| status.phase) == Some(Phase::Retrying);
    let entry = match job.uid().filter(|_| waits) {
        Some(uid) => queue.get(&uid).await?,
        None => None,
    };
    Ok(record::job(job, entry.and_then(|entry| entry.retry_at)))
}

/// `namespace/name` of an object.
fn path<K: kube::Resource>(reference: &ObjectRef<K>) -> String {
    format!("{}/{}", reference.namespace.as_deref().unwrap_or_default(), reference.name)
}
