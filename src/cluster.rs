//! The Kubernetes API: one client, and one watch of each kind for the whole process.

mod index;
mod read;
mod requests;
mod unreadable;
mod watches;

use std::{
    future::{Future, ready},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use futures::{Stream, StreamExt, future::join3};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    api::{SCHEDULE_LABEL, SyncAlert, SyncJob, SyncSchedule},
    domain::{
        field_conflict::{FieldConflict, Mappings, ScheduleKey},
        job::is_finished,
    },
};
use index::{JobIndex, is_history, schedule_of};
pub use read::{Kind, ReadResult, Unreadable, get_opt, read_object};
use requests::RequestLimiter;
pub use requests::{Error, RequestClass, RequestPermit, call, connect};
pub use unreadable::{UnreadableObject, UnreadableObjects};
use watches::changes_of_alerts;
pub use watches::{changes, drain, readable, stale_since};

/// Watch caches of all kinds. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Client for requests.
    pub client: Client,
    /// Every SyncSchedule.
    pub schedules: Store<SyncSchedule>,
    /// Every SyncJob that is unfinished or expires: ended SyncJobs that stay are left out. SyncJobs of a schedule
    /// have no labels here.
    pub jobs: Store<SyncJob>,
    /// Every SyncAlert.
    pub alerts: Store<SyncAlert>,
    /// Every object that this release cannot read. Such an object is in none of the caches above.
    pub unreadable: UnreadableObjects,
    index: Arc<RwLock<JobIndex>>,
    /// Fields that the sources of SyncSchedules map.
    mappings: Arc<RwLock<Mappings>>,
    limiter: Arc<RequestLimiter>,
    namespace: Option<String>,
    /// Number of kinds, of SyncSchedules and SyncJobs, that were listed once. `Store::wait_until_ready` is not used:
    /// of several waiters, it wakes only the last one.
    listed: watch::Receiver<usize>,
}

/// Streams of the changes that the watches report. Each of them must be read.
pub struct WatchStreams {
    /// Changes of SyncSchedules.
    pub schedules: UnboundedReceiverStream<Arc<SyncSchedule>>,
    /// Changes of SyncJobs that need further actions.
    pub jobs: UnboundedReceiverStream<Arc<SyncJob>>,
    /// Changes of SyncAlerts.
    pub alerts: UnboundedReceiverStream<Arc<SyncAlert>>,
    /// SyncAlerts in whose namespace a SyncSchedule was created, changed or deleted.
    pub watching: mpsc::UnboundedReceiver<ObjectRef<SyncAlert>>,
    /// SyncSchedules one of whose SyncJobs was created, held, approved or deleted, or has ended, and SyncSchedules
    /// whose field conflicts may have changed.
    pub owners: mpsc::UnboundedReceiver<ObjectRef<SyncSchedule>>,
    /// SyncJobs that have ended or were deleted. A SyncJob that was deleted while the watch was interrupted is
    /// missing.
    pub over: mpsc::UnboundedReceiver<JobGone>,
}

/// A SyncJob that has ended or was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobGone {
    /// Uid of the SyncJob.
    pub uid: String,
    /// True when the SyncJob was deleted, false when it has ended.
    pub deleted: bool,
}

/// Senders of [`WatchStreams`]. Not `reflect_shared`: in kube 5.0 its readers stop at an object that was deleted before
/// they read it.
struct ChangeSenders {
    schedules: mpsc::UnboundedSender<Arc<SyncSchedule>>,
    jobs: mpsc::UnboundedSender<Arc<SyncJob>>,
    alerts: mpsc::UnboundedSender<Arc<SyncAlert>>,
    watching: mpsc::UnboundedSender<ObjectRef<SyncAlert>>,
    owners: mpsc::UnboundedSender<ObjectRef<SyncSchedule>>,
    over: mpsc::UnboundedSender<JobGone>,
}

/// Sends the objects of an event that exist to a reader.
fn send_changed<K>(reader: &mpsc::UnboundedSender<Arc<K>>, store: &Store<K>, event: &watcher::Event<K>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let objects = match event {
        watcher::Event::Apply(object) => store.get(&ObjectRef::from_obj(object)).into_iter().collect(),
        watcher::Event::InitDone => store.state(),
        _ => Vec::new(),
    };
    // The reader is gone only when the process ends.
    for object in objects {
        reader.send(object).ok();
    }
}

/// Sends the SyncAlerts that may watch the SyncSchedules of an event to a reader.
fn send_watching_alerts(
    reader: &mpsc::UnboundedSender<ObjectRef<SyncAlert>>,
    alerts: &Store<SyncAlert>,
    event: &watcher::Event<SyncSchedule>,
) {
    let namespace = match event {
        watcher::Event::Apply(schedule) | watcher::Event::Delete(schedule) => Some(&schedule.metadata.namespace),
        watcher::Event::InitDone => None,
        _ => return,
    };
    let alerts = alerts.state();
    let watching =
        alerts.iter().filter(|alert| namespace.is_none_or(|namespace| *namespace == alert.metadata.namespace));
    // The reader is gone only when the process ends.
    for alert in watching {
        reader.send(ObjectRef::from_obj(&**alert)).ok();
    }
}

/// Records which fields the source of a schedule maps, and requeues the other schedules whose conflicts begin or end
/// by that.
fn requeue_conflicts(
    reader: &mpsc::UnboundedSender<ObjectRef<SyncSchedule>>,
    mappings: &RwLock<Mappings>,
    schedules: &Store<SyncSchedule>,
    event: &watcher::Event<SyncSchedule>,
) {
    let mut mappings = mappings.write().unwrap_or_else(PoisonError::into_inner);
    let others = match event {
        watcher::Event::Apply(schedule) => mappings.apply(schedule),
        watcher::Event::Delete(schedule) => mappings.delete(schedule),
        // A list requeues all schedules.
        watcher::Event::InitDone => {
            *mappings = Mappings::new(schedules.state().iter().map(|schedule| &**schedule));
            Vec::new()
        }
        _ => Vec::new(),
    };
    // The reader is gone only when the process ends.
    for ScheduleKey { namespace, name } in others {
        reader.send(ObjectRef::new(&name).within(&namespace)).ok();
    }
}

impl Cluster {
    /// Watches all kinds in one namespace, or in all. The future drives the watches and never ends.
    pub fn watch(client: Client, namespace: Option<String>) -> (Self, WatchStreams, impl Future<Output = ()> + Send) {
        let (schedules, schedule_writer) = reflector::store();
        let (jobs, job_writer) = reflector::store();
        let (alerts, alert_writer) = reflector::store();
        let ((alert_sender, changed_alerts), (watching_sender, watching)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (schedule_sender, changed_schedules) = mpsc::unbounded_channel();
        let (job_sender, changed_jobs) = mpsc::unbounded_channel();
        let ((owner_sender, owners), (over_sender, over)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let senders = ChangeSenders {
            schedules: schedule_sender,
            jobs: job_sender,
            alerts: alert_sender,
            watching: watching_sender,
            owners: owner_sender,
            over: over_sender,
        };
        let streams = WatchStreams {
            schedules: changed_schedules.into(),
            jobs: changed_jobs.into(),
            alerts: changed_alerts.into(),
            watching,
            owners,
            over,
        };
        let (listing, listed) = watch::channel(0);
        let cluster = Self::new(client, schedules, jobs, alerts, namespace, listed);
        let driver = cluster.drive(schedule_writer, job_writer, alert_writer, listing, senders);
        (cluster, streams, driver)
    }

    fn new(
        client: Client,
        schedules: Store<SyncSchedule>,
        jobs: Store<SyncJob>,
        alerts: Store<SyncAlert>,
        namespace: Option<String>,
        listed: watch::Receiver<usize>,
    ) -> Self {
        let limiter = Arc::new(RequestLimiter::new());
        let (index, mappings, unreadable) = (Arc::default(), Arc::default(), UnreadableObjects::new());
        Self { client, schedules, jobs, alerts, unreadable, index, mappings, limiter, namespace, listed }
    }

    fn drive(
        &self,
        schedules: Writer<SyncSchedule>,
        jobs: Writer<SyncJob>,
        alerts: Writer<SyncAlert>,
        listing: watch::Sender<usize>,
        senders: ChangeSenders,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (index, senders) = (Arc::clone(&self.index), Arc::new(senders));
        let (schedule_store, job_store, shared) = (self.schedules.clone(), self.jobs.clone(), Arc::clone(&senders));
        let (alert_store, mappings) = (self.alerts.clone(), Arc::clone(&self.mappings));
        let schedules = with_readable(changes(self.api()), self.unreadable.clone(), readable).reflect(schedules);
        let route =
            move |event: watcher::Event<ReadResult<SyncJob>>| route_event(event.modify(drop_labels), &index, &senders);
        let jobs = with_readable(changes(self.api()), self.unreadable.clone(), route).reflect(jobs);
        let alerts = with_readable(changes_of_alerts(self.api()), self.unreadable.clone(), readable).reflect(alerts);
        async move {
            let schedules = drain(schedules, &listing, |event| {
                requeue_conflicts(&shared.owners, &mappings, &schedule_store, event);
                send_changed(&shared.schedules, &schedule_store, event);
                send_watching_alerts(&shared.watching, &alert_store, event);
            });
            let jobs = drain(jobs, &listing, |event| send_changed(&shared.jobs, &job_store, event));
            // No task waits for the list of SyncAlerts.
            let unheard = watch::Sender::new(0);
            let alerts = drain(alerts, &unheard, |event| send_changed(&shared.alerts, &alert_store, event));
            join3(schedules, jobs, alerts).await;
        }
    }

    /// Waits for a permit to send a request.
    pub async fn acquire(&self, class: RequestClass) -> RequestPermit<'_> {
        self.limiter.acquire(class).await
    }

    /// Sends a request as [`call`] does, with the request class of run starts.
    ///
    /// # Errors
    /// As [`ask`]. The time before the request is sent is not counted.
    pub async fn call<T>(
        &self,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let _permit = self.acquire(RequestClass::StartRun).await;
        call(action, request).await
    }

    /// Waits until SyncSchedules and SyncJobs were listed once.
    pub async fn ready(&self) {
        // Fails only when the watches were dropped, and then the process ends anyway.
        self.listed.clone().wait_for(|kinds| *kinds >= 2).await.ok();
    }

    /// True when SyncSchedules and SyncJobs were listed once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.listed.borrow() >= 2
    }

    /// The API of the kind, in the namespace that is watched or in all.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        api(&self.client, self.namespace.as_deref())
    }

    /// The API of the kind in an object's namespace.
    #[must_use]
    pub fn namespaced<K>(&self, object: &ObjectMeta) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), object.namespace.as_deref().unwrap_or_default())
    }

    /// True when the namespace is one of those watched.
    #[must_use]
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|watched| watched == namespace)
    }

    /// Returns the SyncJob with a uid, when it needs further actions.
    #[must_use]
    pub fn job(&self, uid: &str) -> Option<Arc<SyncJob>> {
        let reference = self.index().under_way(uid).cloned()?;
        self.jobs.get(&reference).filter(|job| job.metadata.uid.as_deref() == Some(uid))
    }

    /// True when there is a SyncJob with this uid.
    #[must_use]
    pub fn has_job(&self, uid: &str) -> bool {
        self.index().has(uid)
    }

    /// True when the SyncJob with this uid has ended.
    #[must_use]
    pub fn has_ended(&self, uid: &str) -> bool {
        let is_history = {
            let index = self.index();
            index.has(uid) && index.under_way(uid).is_none()
        };
        is_history || self.job(uid).is_some_and(|job| is_finished(&job))
    }

    /// The namespace that is watched; all when `None`.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Returns the SyncJobs that an object controls. A SyncJob that was created a moment ago may be missing. Ended
    /// SyncJobs have only their name, uid and outcome.
    #[must_use]
    pub fn jobs_of(&self, owner: &SyncSchedule) -> Vec<Arc<SyncJob>> {
        self.index().jobs_of(owner.metadata.uid.as_deref().unwrap_or_default(), &self.jobs)
    }

    /// The SyncSchedule that controls a SyncJob, as last seen.
    #[must_use]
    pub fn schedule_of(&self, job: &SyncJob) -> Option<Arc<SyncSchedule>> {
        let schedule = self.schedules.get(&index::schedule_of(job)?)?;
        (schedule.metadata.uid.as_deref() == controller_of(job)).then_some(schedule)
    }

    /// Fields that the source of a SyncSchedule and another source both map.
    #[must_use]
    pub fn field_conflicts(&self, schedule: &SyncSchedule) -> Vec<FieldConflict> {
        self.mappings.read().unwrap_or_else(PoisonError::into_inner).conflicts(schedule)
    }

    fn index(&self) -> RwLockReadGuard<'_, JobIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Maps each change with `filter`, and records the objects that cannot be read.
fn with_readable<K: Kind>(
    changes: impl Stream<Item = watcher::Result<watcher::Event<ReadResult<K>>>> + Send,
    unreadable: UnreadableObjects,
    mut filter: impl FnMut(watcher::Event<ReadResult<K>>) -> Option<watcher::Event<K>> + Send,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send {
    changes.filter_map(move |event| {
        ready(
            event
                .map(|event| {
                    unreadable.record(&event);
                    filter(event)
                })
                .transpose(),
        )
    })
}

/// A schedule's runs are found by their owner here, and their labels take a sixth of their memory.
fn drop_labels(job: &mut ReadResult<SyncJob>) {
    let meta = job.meta_mut();
    if index::controlling(meta).is_some() {
        meta.labels = None;
    }
}

/// The uid of the object that controls this one.
#[must_use]
pub fn controller_of(job: &SyncJob) -> Option<&str> {
    index::controller(job).map(|owner| owner.uid.as_str())
}

/// The name of the SyncSchedule that a SyncJob is a run of.
#[must_use]
pub fn schedule_name(job: &SyncJob) -> Option<&str> {
    let owner = index::controller(job).map(|owner| owner.name.as_str());
    owner.or_else(|| job.labels().get(SCHEDULE_LABEL).map(String::as_str))
}

/// Applies a change to the index and sends it to the streams. Returns the change for the cache, which has no SyncJob that has ended or
/// cannot be read.
fn route_event(
    event: watcher::Event<ReadResult<SyncJob>>,
    index: &RwLock<JobIndex>,
    senders: &ChangeSenders,
) -> Option<watcher::Event<SyncJob>> {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    let index = || -> RwLockWriteGuard<'_, JobIndex> { index.write().unwrap_or_else(PoisonError::into_inner) };
    // The readers are gone only when the process ends.
    let send_owner = |schedule: Option<ObjectRef<SyncSchedule>>| {
        schedule.and_then(|schedule| senders.owners.send(schedule).ok());
    };
    let send_gone = |job: &SyncJob, deleted| {
        send_owner(schedule_of(job));
        let uid = job.metadata.uid.clone();
        uid.and_then(|uid| senders.over.send(JobGone { uid, deleted }).ok());
    };
    match event {
        Init => {
            index().begin();
            Some(Init)
        }
        InitApply(job) => {
            index().list(&job);
            match job {
                ReadResult::Object(job) if !is_history(&job) => Some(InitApply(job)),
                _ => None,
            }
        }
        InitDone => {
            index().listed().into_iter().for_each(|schedule| send_owner(Some(schedule)));
            Some(InitDone)
        }
        Apply(read) => {
            let is_relevant = index().apply(&read);
            let is_readable = matches!(read, ReadResult::Object(_));
            let job = read.into_outline();
            if !is_history(&job) {
                if is_relevant {
                    send_owner(schedule_of(&job));
                }
                return Some(if is_readable { Apply(job) } else { Delete(job) });
            }
            if is_relevant {
                send_gone(&job, false);
            }
            Some(Delete(job))
        }
        Delete(job) => {
            let job = job.into_outline();
            index().delete(job.metadata.uid.as_deref().unwrap_or_default());
            send_gone(&job, true);
            Some(Delete(job))
        }
    }
}

/// The API of a kind, in one namespace or in all.
pub fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use serde_json::{Value, json};

    fn job(status: &Value) -> SyncJob {
        fixtures::job(json!({
            "metadata": {"name": "job", "namespace": "default", "uid": "uid-job", "ownerReferences": [fixtures::owner("s", "uid-s")]},
            "status": status,
        }))
    }

    fn complete() -> SyncJob {
        let complete = fixtures::condition("Complete", "Completed", "", "2026-11-24T10:00:00Z");
        job(&json!({"conditions": [complete]}))
    }

    #[test]
    fn an_ended_job_leaves_the_cache_and_requeues_its_schedule() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let index = RwLock::default();
        let ((owners, mut requeued), (over, mut ended)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (schedules, jobs) = (mpsc::unbounded_channel().0, mpsc::unbounded_channel().0);
        let (alerts, watching) = (mpsc::unbounded_channel().0, mpsc::unbounded_channel().0);
        let senders = ChangeSenders { schedules, jobs, alerts, watching, owners, over };
        let over = |deleted| Ok(JobGone { uid: "uid-job".to_owned(), deleted });
        let mut pass = |event, is_requeued: bool, expected_over| {
            let kept = route_event(event, &index, &senders);
            assert_eq!(requeued.try_recv().map(|schedule| schedule.name).ok(), is_requeued.then(|| "s".to_owned()));
            assert_eq!(ended.try_recv().map_err(|_| ()), expected_over);
            kept
        };
        let complete = || ReadResult::Object(complete());
        let under_way = |status: &Value| ReadResult::Object(job(status));
        let unreadable = || {
            let reason = String::new();
            ReadResult::Unreadable(Box::new(Unreadable { outline: job(&json!({})), reason }))
        };
        assert!(matches!(pass(Init, false, Err(())), Some(Init)));
        assert!(pass(InitApply(complete()), false, Err(())).is_none());
        assert!(matches!(pass(InitDone, true, Err(())), Some(InitDone)));
        assert!(matches!(pass(Delete(complete()), true, over(true)), Some(Delete(_))));
        assert!(matches!(pass(Apply(under_way(&json!({}))), true, Err(())), Some(Apply(_))));
        assert!(matches!(pass(Apply(under_way(&json!({"progress": 9}))), false, Err(())), Some(Apply(_))));
        assert!(matches!(pass(Apply(unreadable()), false, Err(())), Some(Delete(_))), "it leaves the cache");
        assert!(matches!(pass(Apply(under_way(&json!({}))), false, Err(())), Some(Apply(_))));
        assert!(matches!(pass(Apply(complete()), true, over(false)), Some(Delete(_))));
        assert!(matches!(pass(Apply(complete()), false, Err(())), Some(Delete(_))));
        assert!(pass(InitApply(unreadable()), false, Err(())).is_none());
    }
}
