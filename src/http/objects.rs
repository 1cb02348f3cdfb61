//! Cache of the HTTP API with all SyncSchedules and SyncJobs, including ended SyncJobs, and their changes.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    future::{Future, ready},
    mem::take,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use futures::{Stream, StreamExt, future::join};
use jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ObjectMeta,
    core::NamespaceResourceScope,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event},
    },
};
use tokio::{
    sync::{Semaphore, broadcast, watch},
    time::timeout,
};

use super::{
    progress_history::{ProgressHistory, ProgressSample},
    search::RunIndex,
    throughput::{LastHour, Throughput},
};
use crate::{
    api::{SCHEDULE_LABEL, SyncJob, SyncSchedule},
    cluster::{self, ReadResult, api, drain},
};

/// Largest number of concurrent requests. The API server would not answer more requests any faster.
const REQUESTS: usize = 16;
/// Changes a listener may lag behind, and deletions that are remembered.
const MAX_DELETIONS: usize = 1024;
/// Longest wait for a watch to report the result of a request. Usually it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Both kinds, as last seen. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    /// Client for requests.
    pub(super) client: Client,
    /// Every SyncSchedule.
    pub(super) schedules: Store<SyncSchedule>,
    /// Every SyncJob.
    pub(super) jobs: Store<SyncJob>,
    deletions: Arc<RwLock<DeletionLog>>,
    progress: Arc<RwLock<ProgressHistory>>,
    index: Arc<RwLock<RunIndex>>,
    throughput: Arc<RwLock<Throughput>>,
    changes: broadcast::Sender<ObjectChange>,
    /// Objects that changed since the last call of [`Objects::take_changed_objects`]. `None`: changes are not
    /// tracked.
    untaken_changes: Arc<Mutex<Option<ChangedObjects>>>,
    requests: Arc<Semaphore>,
    /// Kinds that were listed once.
    listed: watch::Receiver<usize>,
}

/// Change that the cache shows.
#[derive(Clone, Debug)]
pub(super) enum ObjectChange {
    /// A SyncJob was created or changed; with its version.
    Job(ObjectRef<SyncJob>, u64),
    /// A SyncJob was deleted.
    Deleted(Arc<DeletedJob>),
    /// All SyncJobs were listed again: single changes may have been missed.
    Listed,
    /// A SyncSchedule of this namespace was created, changed or deleted.
    Schedule(String),
}

/// Objects that changed since the last call, with each object once.
#[derive(Debug, Default)]
pub(super) struct ChangedObjects {
    /// True when all objects of a kind were listed again: any of them may have changed or been deleted.
    pub all: bool,
    pub schedules: HashSet<ObjectRef<SyncSchedule>>,
    /// SyncJobs by uid: another SyncJob may have the same name.
    pub jobs: HashMap<String, ObjectRef<SyncJob>>,
}

/// A SyncJob that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeletedJob {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The SyncSchedule it belonged to.
    pub schedule: Option<String>,
    /// The version at which it was deleted.
    pub version: u64,
}

/// Log of deletions since all SyncJobs were listed last.
#[derive(Default)]
struct DeletionLog {
    /// Names that time.
    listing: u64,
    /// The last deletions.
    gone: VecDeque<Arc<DeletedJob>>,
    /// Version up to which deletions may be missing in `gone`.
    forgotten: u64,
}

/// The version of an object. Later ones are higher, for all objects of one kind.
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>
pub(super) fn version_of(job: &SyncJob) -> u64 {
    job.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl Objects {
    /// Watches both kinds in one namespace, or in all. The future drives the watches and never ends.
    pub fn watch(client: Client, namespace: Option<&str>) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (schedules, schedule_writer) = reflector::store();
        let (jobs, job_writer) = reflector::store();
        let (listing, listed) = watch::channel(0);
        let schedule_changes = readable(cluster::changes(api(&client, namespace))).reflect(schedule_writer);
        let index: Arc<RwLock<RunIndex>> = Arc::default();
        // Before what lists do not show is dropped: searches ask for it.
        let job_changes =
            readable(cluster::changes(api(&client, namespace))).inspect(index_updater(Arc::clone(&index)));
        let job_changes = job_changes.modify(slim).reflect(job_writer);
        let objects = Self {
            client,
            schedules,
            jobs,
            deletions: Arc::default(),
            progress: Arc::default(),
            index: Arc::clone(&index),
            throughput: Arc::new(RwLock::new(Throughput::new(Timestamp::now()))),
            changes: broadcast::channel(MAX_DELETIONS).0,
            untaken_changes: Arc::default(),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            listed,
        };
        let recorder = objects.clone();
        let driver = async move {
            let record_schedule_event = |event: &Event<SyncSchedule>| recorder.record_schedule_event(event);
            let record_job_event = |event: &Event<SyncJob>| recorder.record_job_event(event);
            join(
                drain(schedule_changes, &listing, record_schedule_event),
                drain(job_changes, &listing, record_job_event),
            )
            .await;
        };
        (objects, driver)
    }

    /// Creates a cache of these objects, without a watch.
    #[cfg(test)]
    pub(super) fn from_objects(client: Client, schedules: Vec<SyncSchedule>, jobs: Vec<SyncJob>) -> Self {
        fn events<K>(objects: Vec<K>) -> impl Iterator<Item = Event<K>> {
            let objects = objects.into_iter().map(Event::InitApply);
            std::iter::once(Event::Init).chain(objects).chain(std::iter::once(Event::InitDone))
        }
        let (schedule_store, mut schedule_writer) = reflector::store();
        let (job_store, mut job_writer) = reflector::store();
        let index: Arc<RwLock<RunIndex>> = Arc::default();
        let mut updater = index_updater(Arc::clone(&index));
        for event in events(schedules) {
            schedule_writer.apply_watcher_event(&event);
        }
        for event in events(jobs) {
            let event = Ok(event);
            updater(&event);
            event.map(|event| job_writer.apply_watcher_event(&event.modify(slim))).unwrap();
        }
        Self {
            client,
            schedules: schedule_store,
            jobs: job_store,
            deletions: Arc::default(),
            progress: Arc::default(),
            throughput: Arc::new(RwLock::new(Throughput::new(Timestamp::now()))),
            index,
            changes: broadcast::channel(MAX_DELETIONS).0,
            untaken_changes: Arc::default(),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            listed: watch::channel(2).1,
        }
    }

    /// True when both kinds were listed once.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        *self.listed.borrow() >= 2
    }

    /// Waits until both kinds were listed once.
    pub async fn listed(&self) {
        // Fails only when the watches were dropped, and then the process ends anyway.
        self.listed.clone().wait_for(|kinds| *kinds >= 2).await.ok();
    }

    /// Sends a request to the API server within the limit of concurrent requests.
    pub(super) async fn call<T>(
        &self,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, cluster::Error> {
        // Fails only when the semaphore is closed, which never happens.
        let _permit = self.requests.acquire().await.ok();
        cluster::call(action, request).await
    }

    /// The API of the kind in an object's namespace.
    pub(super) fn namespaced<K>(&self, object: &ObjectMeta) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        api(&self.client, Some(object.namespace.as_deref().unwrap_or_default()))
    }

    /// Waits until the cache shows a SyncJob that was just created, so that the next call finds it. At most
    /// [`PATIENCE`].
    pub(super) async fn wait_until_cached(&self, job: &SyncJob) {
        let mut changes = self.changes();
        let shown = async {
            while self.jobs.get(&ObjectRef::from_obj(job)).is_none() {
                // After an error, changes were missed, so the cache is checked again.
                changes.recv().await.ok();
            }
        };
        timeout(PATIENCE, shown).await.ok();
    }

    /// Changes from now on.
    pub(super) fn changes(&self) -> broadcast::Receiver<ObjectChange> {
        self.changes.subscribe()
    }

    /// Starts to track changed objects.
    pub(super) fn track_changes(&self) {
        *self.lock_changed_objects() = Some(ChangedObjects::default());
    }

    /// Returns the objects that changed since the last call.
    pub(super) fn take_changed_objects(&self) -> ChangedObjects {
        self.lock_changed_objects().as_mut().map(take).unwrap_or_default()
    }

    /// Names the last time that all SyncJobs were listed.
    pub(super) fn listing(&self) -> u64 {
        self.read_deletions().listing
    }

    /// SyncJobs that were deleted after a version. `None` when not all of them are known any more.
    pub(super) fn deletions_since(&self, version: u64) -> Option<Vec<Arc<DeletedJob>>> {
        let deletions = self.read_deletions();
        let known = version >= deletions.forgotten;
        known.then(|| deletions.gone.iter().filter(|gone| gone.version > version).cloned().collect())
    }

    fn record_schedule_event(&self, event: &Event<SyncSchedule>) {
        if let Some(untaken_changes) = self.lock_changed_objects().as_mut() {
            match event {
                Event::Apply(schedule) | Event::Delete(schedule) => {
                    untaken_changes.schedules.insert(ObjectRef::from_obj(schedule));
                }
                Event::InitDone => untaken_changes.all = true,
                Event::Init | Event::InitApply(_) => {}
            }
        }
        if let Event::Apply(schedule) | Event::Delete(schedule) = event {
            self.changes.send(ObjectChange::Schedule(schedule.namespace().unwrap_or_default())).ok();
        }
    }

    /// Finds SyncJobs. It may be a moment ahead of `jobs`.
    pub(super) fn index(&self) -> RwLockReadGuard<'_, RunIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Throughput of the last hour, in some namespaces or in all.
    pub(super) fn last_hour(&self, namespaces: Option<&BTreeSet<String>>, now: Timestamp) -> LastHour {
        self.throughput.read().unwrap_or_else(PoisonError::into_inner).last_hour(namespaces, now)
    }

    /// Progress of a run over time, as far as this process has observed it.
    pub(super) fn progress_of(&self, job: &SyncJob) -> Vec<ProgressSample> {
        let progress = self.progress.read().unwrap_or_else(PoisonError::into_inner);
        job.metadata.uid.as_deref().map(|uid| progress.of_run(uid)).unwrap_or_default()
    }

    fn record_progress(&self, event: &Event<SyncJob>) {
        let mut progress = self.progress.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(job) | Event::InitApply(job) => progress.record(job, Timestamp::now()),
            Event::Delete(job) => progress.forget(job),
            Event::Init | Event::InitDone => {}
        }
    }

    fn record_job_event(&self, event: &Event<SyncJob>) {
        if let Some(untaken_changes) = self.lock_changed_objects().as_mut() {
            match event {
                Event::Apply(job) | Event::Delete(job) => {
                    untaken_changes.jobs.insert(job.uid().unwrap_or_default(), ObjectRef::from_obj(job));
                }
                Event::InitDone => untaken_changes.all = true,
                Event::Init | Event::InitApply(_) => {}
            }
        }
        self.record_progress(event);
        self.throughput.write().unwrap_or_else(PoisonError::into_inner).record(event, Timestamp::now());
        let change = match event {
            Event::Init => {
                *self.write_deletions() = DeletionLog { listing: rand::random(), ..DeletionLog::default() };
                return;
            }
            Event::InitApply(_) => return,
            Event::InitDone => ObjectChange::Listed,
            Event::Apply(job) => ObjectChange::Job(ObjectRef::from_obj(job), version_of(job)),
            Event::Delete(job) => ObjectChange::Deleted(self.write_deletions().record(job)),
        };
        // Fails when there is no receiver.
        self.changes.send(change).ok();
    }

    fn lock_changed_objects(&self) -> MutexGuard<'_, Option<ChangedObjects>> {
        self.untaken_changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_deletions(&self) -> RwLockReadGuard<'_, DeletionLog> {
        self.deletions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_deletions(&self) -> RwLockWriteGuard<'_, DeletionLog> {
        self.deletions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeletionLog {
    fn record(&mut self, job: &SyncJob) -> Arc<DeletedJob> {
        let gone = Arc::new(DeletedJob {
            namespace: job.namespace().unwrap_or_default(),
            name: job.name_any(),
            uid: job.uid().unwrap_or_default(),
            schedule: job.labels().get(SCHEDULE_LABEL).cloned(),
            version: version_of(job),
        });
        self.gone.push_back(Arc::clone(&gone));
        if self.gone.len() > MAX_DELETIONS {
            self.forgotten = self.gone.pop_front().map_or(self.forgotten, |oldest| oldest.version);
        }
        gone
    }
}

/// Changes of the objects that can be read. Pages and calls do not show the others.
fn readable<K: cluster::Kind>(
    changes: impl Stream<Item = watcher::Result<Event<ReadResult<K>>>> + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send {
    changes.filter_map(|event| ready(event.map(cluster::readable).transpose()))
}

/// Returns a function that updates an index. While all SyncJobs are listed again, searches use the old index.
fn index_updater(index: Arc<RwLock<RunIndex>>) -> impl FnMut(&watcher::Result<Event<SyncJob>>) + Send {
    let mut fresh = RunIndex::default();
    let write =
        move |change: &mut dyn FnMut(&mut RunIndex)| change(&mut index.write().unwrap_or_else(PoisonError::into_inner));
    move |event| match event {
        Ok(Event::Init) => fresh = RunIndex::default(),
        Ok(Event::InitApply(job)) => fresh.apply(job),
        Ok(Event::InitDone) => {
            write(&mut |index| std::mem::swap(index, &mut fresh));
            fresh = RunIndex::default();
        }
        Ok(Event::Apply(job)) => write(&mut |index| index.apply(job)),
        Ok(Event::Delete(job)) => write(&mut |index| index.remove(job)),
        Err(_) => {}
    }
}

/// Drops the fields of an ended run that lists do not show, because there may be many ended runs.
fn slim(job: &mut SyncJob) {
    if crate::domain::job::is_finished(job) {
        job.spec.target = crate::api::syncjob::Target::default();
        job.spec.source = None;
        job.spec.mapping = Vec::new();
        job.metadata.annotations = None;
        if let Some(status) = &mut job.status {
            status.failures = Vec::new();
            status.attempt_history = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deleted(version: usize) -> SyncJob {
        let mut job = SyncJob::new(&format!("job-{version}"), crate::api::SyncJobSpec::default());
        job.metadata.resource_version = Some(version.to_string());
        job
    }

    #[test]
    fn the_deletion_log_keeps_the_last_deletions() {
        let mut deletions = DeletionLog::default();
        for version in 1..=MAX_DELETIONS + 5 {
            deletions.record(&deleted(version));
        }
        assert_eq!((deletions.gone.len(), deletions.forgotten), (MAX_DELETIONS, 5));
        assert_eq!(deletions.gone[0].version, 6);
    }
}
