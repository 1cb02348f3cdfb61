//! The Kubernetes API: one client, and one watch of each kind for the whole process.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::{Stream, StreamExt, future::join};
use jiff::Timestamp;
use kube::{
    Api, Client, Config, Resource,
    api::ObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, ReflectHandle, Store, store::Writer},
        utils::Backoff,
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, watch},
    time::timeout,
};

use crate::{
    api::{SyncJob, SyncSchedule, syncjob::Filter},
    domain::job::is_finished,
    telemetry::Outage,
};

/// Longest wait for one answer of the API server.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests at a time that start runs, and others. More would not be answered any faster, and keep the renewal of the
/// Lease waiting. A run that is due must not wait behind reports of earlier ones.
const REQUESTS: (usize, usize) = (24, 8);
/// Events a reader of a watch may lag behind before the watch waits for it.
const BUFFER: usize = 256;
const WATCH_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

static API_SERVER: Outage = Outage::new("the Kubernetes API");

/// A request the API server did not carry out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It refused.
    #[error("could not {action}: {}", describe(source))]
    Refused {
        /// What was asked, as a verb phrase.
        action: &'static str,
        /// What it said.
        source: kube::Error,
    },
    /// It did not answer in time. What was asked may have been done.
    #[error("could not {0}: the Kubernetes API did not answer in time")]
    Timeout(&'static str),
}

impl Error {
    /// The object was changed since it was read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// The object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// An object of that name is there.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// What the API server said when it refused.
    #[must_use]
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Refused { source: kube::Error::Api(status), .. } => Some(status),
            _ => None,
        }
    }
}

fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.is_empty() => status.reason.clone(),
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::Service(_) | kube::Error::HyperError(_) => "the Kubernetes API cannot be reached".to_owned(),
        other => other.to_string(),
    }
}

/// Waits for an answer of the API server, at most for 10 s.
///
/// # Errors
/// When it refuses, cannot be reached, or does not answer in time.
pub async fn ask<T>(action: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match timeout(LIMIT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Refused { action, source }),
        Err(_) => Err(Error::Timeout(action)),
    }
}

/// A client from `KUBECONFIG`, `~/.kube/config`, or the pod's service account.
///
/// # Errors
/// When none of them is there, or what is there cannot be used.
pub async fn connect() -> kube::Result<Client> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Each caller knows for how long a retry makes sense; the client's own go on for minutes.
    config.default_retry = false;
    Client::try_from(config)
}

/// Both kinds, as last seen. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// For requests.
    pub client: Client,
    /// Every SyncSchedule.
    pub schedules: Store<SyncSchedule>,
    /// Every SyncJob.
    pub jobs: Store<SyncJob>,
    index: Arc<RwLock<Index>>,
    starts: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    namespace: Option<String>,
    /// Kinds that were listed once. Not `Store::wait_until_ready`: of several waiters it wakes only the last one.
    listed: watch::Receiver<usize>,
}

/// The ends of the watches for those who react to changes. All of them must be read from.
pub struct Feeds {
    /// Changes of SyncSchedules.
    pub schedules: ReflectHandle<SyncSchedule>,
    /// Changes of SyncJobs.
    pub jobs: ReflectHandle<SyncJob>,
    /// Changes of SyncJobs, once more.
    pub owned_jobs: ReflectHandle<SyncJob>,
    /// Ids of SyncJobs that were deleted. One deleted while the watch was away is not told.
    pub deleted_jobs: mpsc::UnboundedReceiver<String>,
}

impl Cluster {
    /// Watches both kinds in one namespace, or in all. The future drives the watches and never ends.
    pub fn watch(client: Client, namespace: Option<String>) -> (Self, impl Future<Output = ()> + Send) {
        let (schedules, schedule_writer) = reflector::store();
        let (jobs, job_writer) = reflector::store();
        let (listing, listed) = watch::channel(0);
        let cluster = Self::new(client, schedules, jobs, namespace, listed);
        let driver = cluster.drive(schedule_writer, job_writer, listing, None);
        (cluster, driver)
    }

    /// As [`Cluster::watch`], with feeds for controllers. `None` never happens with stores made here.
    pub fn watch_with_feeds(
        client: Client,
        namespace: Option<String>,
    ) -> Option<(Self, Feeds, impl Future<Output = ()> + Send)> {
        let (schedules, schedule_writer) = reflector::store_shared(BUFFER);
        let (jobs, job_writer) = reflector::store_shared(BUFFER);
        let (deleted, deleted_jobs) = mpsc::unbounded_channel();
        let feeds = Feeds {
            schedules: schedule_writer.subscribe()?,
            jobs: job_writer.subscribe()?,
            owned_jobs: job_writer.subscribe()?,
            deleted_jobs,
        };
        let (listing, listed) = watch::channel(0);
        let cluster = Self::new(client, schedules, jobs, namespace, listed);
        let driver = cluster.drive(schedule_writer, job_writer, listing, Some(deleted));
        Some((cluster, feeds, driver))
    }

    fn new(
        client: Client,
        schedules: Store<SyncSchedule>,
        jobs: Store<SyncJob>,
        namespace: Option<String>,
        listed: watch::Receiver<usize>,
    ) -> Self {
        let (starts, requests) = (Arc::new(Semaphore::new(REQUESTS.0)), Arc::new(Semaphore::new(REQUESTS.1)));
        Self { client, schedules, jobs, index: Arc::default(), starts, requests, namespace, listed }
    }

    fn drive(
        &self,
        schedules: Writer<SyncSchedule>,
        jobs: Writer<SyncJob>,
        listing: watch::Sender<usize>,
        deleted: Option<mpsc::UnboundedSender<String>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let schedules = changes(self.api()).reflect_shared(schedules);
        let jobs = changes(self.api()).modify(slim).reflect_shared(jobs);
        let index = Arc::clone(&self.index);
        async move {
            let note = |event: &watcher::Event<SyncJob>| {
                index.write().unwrap_or_else(PoisonError::into_inner).note(event);
                if let (watcher::Event::Delete(job), Some(deleted)) = (event, &deleted) {
                    job.metadata.uid.clone().and_then(|uid| deleted.send(uid).ok());
                }
            };
            join(drain(schedules, &listing, |_| {}), drain(jobs, &listing, note)).await;
        }
    }

    /// Waits until less than 24 others that start a run, or less than 8 that do not, hold this.
    pub async fn turn(&self, starts_a_run: bool) -> Option<SemaphorePermit<'_>> {
        let lane = if starts_a_run { &self.starts } else { &self.requests };
        // Fails only when it was closed, and nobody does that.
        lane.acquire().await.ok()
    }

    /// As [`ask`], when it is this one's turn.
    ///
    /// # Errors
    /// As [`ask`]. The time before the request is sent is not counted.
    pub async fn ask<T>(
        &self,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let _turn = self.turn(false).await;
        ask(action, request).await
    }

    /// Waits until both kinds were listed once.
    pub async fn ready(&self) {
        // Fails only when the watches were dropped, and then the process ends anyway.
        self.listed.clone().wait_for(|kinds| *kinds >= 2).await.ok();
    }

    /// The API of the kind, in the namespace that is watched or in all.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// The API of the kind in an object's namespace.
    #[must_use]
    pub fn beside<K>(&self, object: &ObjectMeta) -> Api<K>
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

    /// The SyncJob with a uid.
    #[must_use]
    pub fn job(&self, uid: &str) -> Option<Arc<SyncJob>> {
        let place = self.index.read().unwrap_or_else(PoisonError::into_inner).places.get(uid).cloned()?;
        self.jobs.get(&place).filter(|job| job.metadata.uid.as_deref() == Some(uid))
    }

    /// The SyncJobs that an object controls. One that was made a moment ago may be missing.
    #[must_use]
    pub fn jobs_of(&self, owner: &SyncSchedule) -> Vec<Arc<SyncJob>> {
        let uid = owner.metadata.uid.as_deref().unwrap_or_default();
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let jobs = index.owned.get(uid).into_iter().flatten();
        let mut jobs: Vec<_> = jobs.filter_map(|place| self.jobs.get(place)).collect();
        drop(index);
        jobs.retain(|job| controller_of(job) == Some(uid));
        jobs
    }
}

/// The uid of the object that controls this one.
#[must_use]
pub fn controller_of(job: &SyncJob) -> Option<&str> {
    let owners = job.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

/// Where SyncJobs are in the cache, which itself finds them by name only.
#[derive(Default)]
struct Index {
    /// By their uid.
    places: HashMap<String, ObjectRef<SyncJob>>,
    /// By the uid of the object that controls them.
    owned: HashMap<String, HashSet<ObjectRef<SyncJob>>>,
}

impl Index {
    fn note(&mut self, event: &watcher::Event<SyncJob>) {
        match event {
            watcher::Event::Init => *self = Self::default(),
            watcher::Event::InitApply(job) | watcher::Event::Apply(job) => {
                let place = ObjectRef::from_obj(job);
                if let Some(owner) = controller_of(job) {
                    self.owned.entry(owner.to_owned()).or_default().insert(place.clone());
                }
                job.metadata.uid.clone().and_then(|uid| self.places.insert(uid, place));
            }
            watcher::Event::Delete(job) => {
                self.places.remove(job.metadata.uid.as_deref().unwrap_or_default());
                let owner = controller_of(job).unwrap_or_default();
                if let Some(owned) = self.owned.get_mut(owner) {
                    owned.remove(&ObjectRef::from_obj(job));
                    if owned.is_empty() {
                        self.owned.remove(owner);
                    }
                }
            }
            watcher::Event::InitDone => {}
        }
    }
}

/// Drops what nobody asks of a run that has ended: there may be many of them.
pub fn slim(job: &mut SyncJob) {
    if is_finished(job) {
        job.spec.target.filter = Filter::default();
        job.metadata.annotations = None;
        if let Some(status) = &mut job.status {
            status.failures = Vec::new();
            status.attempt_history = Vec::new();
        }
    }
}

/// The changes of a kind, without what nobody asks.
pub fn changes<K>(api: Api<K>) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    watcher(api, watcher::Config::default())
        .backoff(Retry(WATCH_RETRY.0))
        .inspect(|event| API_SERVER.note(event))
        .modify(|object: &mut K| object.meta_mut().managed_fields = None)
}

/// Since when the API server has not answered the watches. `None` while it does: the caches are up to date.
#[must_use]
pub fn stale_since() -> Option<Timestamp> {
    API_SERVER.since()
}

async fn drain<K: Resource>(
    watch: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    listing: &watch::Sender<usize>,
    note: impl Fn(&watcher::Event<K>),
) {
    let mut watch = std::pin::pin!(watch);
    let mut listed = false;
    while let Some(event) = watch.next().await {
        let Ok(event) = &event else { continue };
        note(event);
        if matches!(event, watcher::Event::InitDone) && !std::mem::replace(&mut listed, true) {
            listing.send_modify(|kinds| *kinds += 1);
        }
    }
}

/// Doubling waits. The watcher's own go up to 30 s, which a short outage would be made longer by.
struct Retry(Duration);

impl Iterator for Retry {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(WATCH_RETRY.1);
        Some(wait.mul_f64(1.0 + rand::random::<f64>() / 4.0))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = WATCH_RETRY.0;
    }
}
