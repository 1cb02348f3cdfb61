//! The Kubernetes API: one client, and one watch of each kind for the whole process.

mod index;

use std::{
    fmt::Debug,
    future::{Future, ready},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use futures::{Stream, StreamExt, future::join3};
use jiff::Timestamp;
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::ObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        utils::Backoff,
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    api::{SCHEDULE_LABEL, SyncAlert, SyncJob, SyncSchedule},
    telemetry::{Outage, Witness},
};
use index::{Index, is_history, schedule_of};

/// Longest wait for one answer of the API server.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests at a time. More would not be answered any faster, and keep the renewal of the Lease waiting.
const REQUESTS: usize = 32;
/// How many of them may be reports. A run that is due must not wait behind reports of earlier ones.
const REPORTS: usize = 8;
/// What `kubectl apply` leaves on an object, which is the whole of it once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How long a watch lasts until it is asked for anew from where it was. When nothing comes for 5 s longer, its
/// connection is taken to be dead: nobody tells when a network forgets it. kube's own 290 s are long to be blind.
const WATCH: u32 = 30;
/// A connection on which nothing comes for so long is dead, too, whatever is waited for.
const SILENCE: Duration = Duration::from_secs(40);
const WATCH_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Code of a watch that asks for changes which are no longer kept.
const EXPIRED: u16 = 410;

/// Codes of a kind that is not installed, or that the operator has no right to: nobody is told of anything then, and all
/// else goes on.
const ABSENT: [u16; 2] = [403, 404];

static API_SERVER: Outage = Outage::new("the Kubernetes API");

static ALERTS: Outage = Outage::new("the kind SyncAlert, or the right to read it,");

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

    /// Its namespace is being deleted, and nothing is created there any more.
    #[must_use]
    pub fn is_in_terminating_namespace(&self) -> bool {
        let details = self.status().and_then(|status| status.details.as_ref());
        details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
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
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // Each caller knows for how long a retry makes sense; the client's own go on for minutes.
    config.default_retry = false;
    Client::try_from(config)
}

/// All kinds, as last seen. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// For requests.
    pub client: Client,
    /// Every SyncSchedule.
    pub schedules: Store<SyncSchedule>,
    /// Every SyncJob that something is still to be done about: all but those that have ended and stay. Without labels, when
    /// it is a schedule's.
    pub jobs: Store<SyncJob>,
    /// Every SyncAlert.
    pub alerts: Store<SyncAlert>,
    index: Arc<RwLock<Index>>,
    requests: Arc<Semaphore>,
    reports: Arc<Semaphore>,
    namespace: Option<String>,
    /// Of SyncSchedules and SyncJobs, the kinds that were listed once. Not `Store::wait_until_ready`: of several waiters it wakes only the last one.
    listed: watch::Receiver<usize>,
}

/// The ends of the watches for those who react to changes. All of them must be read from.
pub struct Feeds {
    /// Changes of SyncSchedules.
    pub schedules: UnboundedReceiverStream<Arc<SyncSchedule>>,
    /// Changes of SyncJobs that something is still to be done about.
    pub jobs: UnboundedReceiverStream<Arc<SyncJob>>,
    /// Changes of SyncAlerts.
    pub alerts: UnboundedReceiverStream<Arc<SyncAlert>>,
    /// SyncAlerts in whose namespace a SyncSchedule was made, changed or deleted.
    pub watching: mpsc::UnboundedReceiver<ObjectRef<SyncAlert>>,
    /// SyncSchedules one of whose SyncJobs was made, has ended or was deleted.
    pub owners: mpsc::UnboundedReceiver<ObjectRef<SyncSchedule>>,
    /// SyncJobs with which it is over. One deleted while the watch was away is not told.
    pub over: mpsc::UnboundedReceiver<Over>,
}

/// Nothing is left to be done about a SyncJob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// Its uid.
    pub uid: String,
    /// It was deleted, as opposed to having ended.
    pub deleted: bool,
}

/// Which requests go ahead of which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Those that a run waits for.
    Starts,
    /// Those that tell how things stand: at most 8 at a time, and each behind the starts that came before its turn.
    Reports,
}

/// The right to send a request, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    _request: Option<SemaphorePermit<'a>>,
    _report: Option<SemaphorePermit<'a>>,
}

/// The other ends of the feeds. Not `reflect_shared`: in kube 5.0 its readers go to sleep for ever over an object that
/// was deleted before they came to it.
struct News {
    schedules: mpsc::UnboundedSender<Arc<SyncSchedule>>,
    jobs: mpsc::UnboundedSender<Arc<SyncJob>>,
    alerts: mpsc::UnboundedSender<Arc<SyncAlert>>,
    watching: mpsc::UnboundedSender<ObjectRef<SyncAlert>>,
    owners: mpsc::UnboundedSender<ObjectRef<SyncSchedule>>,
    over: mpsc::UnboundedSender<Over>,
}

/// Tells a reader which objects there are, or changed. Those that are gone are not told of.
fn tell<K>(reader: &mpsc::UnboundedSender<Arc<K>>, store: &Store<K>, event: &watcher::Event<K>)
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

/// Tells which SyncAlerts may watch the SyncSchedules that a change is about.
fn tell_watching(
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

impl Cluster {
    /// Watches all kinds in one namespace, or in all. The future drives the watches and never ends.
    pub fn watch(client: Client, namespace: Option<String>) -> (Self, Feeds, impl Future<Output = ()> + Send) {
        let (schedules, schedule_writer) = reflector::store();
        let (jobs, job_writer) = reflector::store();
        let (alerts, alert_writer) = reflector::store();
        let ((tell_alerts, changed_alerts), (tell_watching, watching)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (tell_schedules, changed_schedules) = mpsc::unbounded_channel();
        let (tell_jobs, changed_jobs) = mpsc::unbounded_channel();
        let ((tell_owners, owners), (tell_over, over)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let news = News {
            schedules: tell_schedules,
            jobs: tell_jobs,
            alerts: tell_alerts,
            watching: tell_watching,
            owners: tell_owners,
            over: tell_over,
        };
        let feeds = Feeds {
            schedules: changed_schedules.into(),
            jobs: changed_jobs.into(),
            alerts: changed_alerts.into(),
            watching,
            owners,
            over,
        };
        let (listing, listed) = watch::channel(0);
        let cluster = Self::new(client, schedules, jobs, alerts, namespace, listed);
        let driver = cluster.drive(schedule_writer, job_writer, alert_writer, listing, news);
        (cluster, feeds, driver)
    }

    fn new(
        client: Client,
        schedules: Store<SyncSchedule>,
        jobs: Store<SyncJob>,
        alerts: Store<SyncAlert>,
        namespace: Option<String>,
        listed: watch::Receiver<usize>,
    ) -> Self {
        let (requests, reports) = (Arc::new(Semaphore::new(REQUESTS)), Arc::new(Semaphore::new(REPORTS)));
        Self { client, schedules, jobs, alerts, index: Arc::default(), requests, reports, namespace, listed }
    }

    fn drive(
        &self,
        schedules: Writer<SyncSchedule>,
        jobs: Writer<SyncJob>,
        alerts: Writer<SyncAlert>,
        listing: watch::Sender<usize>,
        news: News,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (index, news) = (Arc::clone(&self.index), Arc::new(news));
        let (schedule_store, job_store, telling) = (self.schedules.clone(), self.jobs.clone(), Arc::clone(&news));
        let alert_store = self.alerts.clone();
        let schedules = changes(self.api()).reflect(schedules);
        let jobs = changes(self.api())
            .modify(drop_labels)
            .filter_map(move |event| ready(event.map(|event| sort(event, &index, &news)).transpose()))
            .reflect(jobs);
        let alerts = changes_of_alerts(self.api()).reflect(alerts);
        async move {
            let schedules = drain(schedules, &listing, |event| {
                tell(&telling.schedules, &schedule_store, event);
                tell_watching(&telling.watching, &alert_store, event);
            });
            let jobs = drain(jobs, &listing, |event| tell(&telling.jobs, &job_store, event));
            // Nobody waits for them.
            let unheard = watch::Sender::new(0);
            let alerts = drain(alerts, &unheard, |event| tell(&telling.alerts, &alert_store, event));
            join3(schedules, jobs, alerts).await;
        }
    }

    /// Waits for a turn to send a request.
    pub async fn turn(&self, lane: Lane) -> Turn<'_> {
        // These fail only when the semaphore was closed, and nobody does that.
        let report = match lane {
            Lane::Starts => None,
            Lane::Reports => self.reports.acquire().await.ok(),
        };
        Turn { _request: self.requests.acquire().await.ok(), _report: report }
    }

    /// As [`ask`], for what has to be known to start a run.
    ///
    /// # Errors
    /// As [`ask`]. The time before the request is sent is not counted.
    pub async fn ask<T>(
        &self,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let _turn = self.turn(Lane::Starts).await;
        ask(action, request).await
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

    /// The SyncJob with a uid, when something is still to be done about it.
    #[must_use]
    pub fn job(&self, uid: &str) -> Option<Arc<SyncJob>> {
        let place = self.index().under_way(uid).cloned()?;
        self.jobs.get(&place).filter(|job| job.metadata.uid.as_deref() == Some(uid))
    }

    /// True when there is a SyncJob with this uid.
    #[must_use]
    pub fn has_job(&self, uid: &str) -> bool {
        self.index().has(uid)
    }

    /// The SyncJobs that an object controls. One that was made a moment ago may be missing. Those that have ended have
    /// their name, uid and outcome only.
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

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A schedule's runs are found by their owner here, and their labels take a sixth of their memory.
fn drop_labels(job: &mut SyncJob) {
    if index::controller(job).is_some() {
        job.metadata.labels = None;
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

/// Enters a change into the index and tells the news of it. Returns what the cache has to know: of those that have
/// ended, nothing.
fn sort(event: watcher::Event<SyncJob>, index: &RwLock<Index>, news: &News) -> Option<watcher::Event<SyncJob>> {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    let index = || -> RwLockWriteGuard<'_, Index> { index.write().unwrap_or_else(PoisonError::into_inner) };
    // The readers are gone only when the process ends.
    let tell = |schedule: Option<ObjectRef<SyncSchedule>>| {
        schedule.and_then(|schedule| news.owners.send(schedule).ok());
    };
    let over = |job: &SyncJob, deleted| {
        tell(schedule_of(job));
        let uid = job.metadata.uid.clone();
        uid.and_then(|uid| news.over.send(Over { uid, deleted }).ok());
    };
    match event {
        Init => {
            index().begin();
            Some(Init)
        }
        InitApply(job) => {
            index().list(&job);
            (!is_history(&job)).then_some(InitApply(job))
        }
        InitDone => {
            index().listed().into_iter().for_each(|schedule| tell(Some(schedule)));
            Some(InitDone)
        }
        Apply(job) => {
            let is_news = index().apply(&job);
            if !is_history(&job) {
                if is_news {
                    tell(schedule_of(&job));
                }
                return Some(Apply(job));
            }
            if is_news {
                over(&job, false);
            }
            Some(Delete(job))
        }
        Delete(job) => {
            index().delete(job.metadata.uid.as_deref().unwrap_or_default());
            over(&job, true);
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

/// The changes of SyncAlerts. A cluster that has no such kind yet, as in the middle of an upgrade, is no outage.
fn changes_of_alerts(api: Api<SyncAlert>) -> impl Stream<Item = watcher::Result<watcher::Event<SyncAlert>>> + Send {
    let is_absent = |event: &watcher::Result<watcher::Event<SyncAlert>>| match event {
        Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) => ABSENT.contains(&status.code),
        _ => false,
    };
    let witness = API_SERVER.witness();
    bare(watcher(api, watcher::Config::default().timeout(WATCH)).backoff(Retry(WATCH_RETRY.0)).inspect(move |event| {
        let is_absent = is_absent(event);
        if is_absent || matches!(event, Ok(watcher::Event::InitDone)) {
            ALERTS.note(event);
        }
        if is_absent {
            witness.note(&Ok::<_, watcher::Error>(()));
        } else {
            note_answer(&witness, event);
        }
    }))
}

/// The changes of a kind, without what nobody asks.
pub fn changes<K>(api: Api<K>) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let witness = API_SERVER.witness();
    let watch = watcher(api, watcher::Config::default().timeout(WATCH)).backoff(Retry(WATCH_RETRY.0));
    bare(watch.inspect(move |event| note_answer(&witness, event)))
}

fn note_answer<K>(witness: &Witness, event: &watcher::Result<watcher::Event<K>>) {
    match event {
        // They say that a list is about to be asked for: the API server answered, and that is all.
        Ok(watcher::Event::Init) => {}
        Err(watcher::Error::WatchError(status)) if status.code == EXPIRED => {}
        _ => witness.note(event),
    }
}

fn bare<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource<DynamicType = ()>,
{
    events.modify(|object: &mut K| {
        let meta = object.meta_mut();
        meta.managed_fields = None;
        if let Some(annotations) = &mut meta.annotations {
            annotations.remove(LAST_APPLIED);
        }
    })
}

/// Since when the API server has not answered a watch. `None` while it answers all: the caches are up to date.
#[must_use]
pub fn stale_since() -> Option<Timestamp> {
    API_SERVER.since()
}

/// Takes note of each event of a watch that has shown in its cache, and counts the watch once it has listed.
pub async fn drain<K: Resource>(
    watch: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    listing: &watch::Sender<usize>,
    note: impl Fn(&watcher::Event<K>),
) {
    let mut watch = std::pin::pin!(watch);
    let mut listed = false;
    while let Some(event) = watch.next().await {
        let Ok(event) = event else { continue };
        note(&event);
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn job(status: &Value) -> SyncJob {
        let owner = json!({"apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncSchedule", "name": "s", "uid": "uid-s", "controller": true});
        from_value(json!({
            "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "spec": {}, "status": status,
            "metadata": {"name": "job", "namespace": "default", "uid": "uid-job", "ownerReferences": [owner]},
        }))
        .unwrap()
    }

    fn complete() -> SyncJob {
        job(&json!({"conditions": [
            {"type": "Complete", "status": "True", "reason": "Completed", "message": "", "lastTransitionTime": "2026-11-24T10:00:00Z"},
        ]}))
    }

    #[test]
    fn the_cache_keeps_no_job_that_has_ended_and_its_schedule_is_told() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let index = RwLock::default();
        let ((owners, mut told), (over, mut ended)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (schedules, jobs) = (mpsc::unbounded_channel().0, mpsc::unbounded_channel().0);
        let (alerts, watching) = (mpsc::unbounded_channel().0, mpsc::unbounded_channel().0);
        let news = News { schedules, jobs, alerts, watching, owners, over };
        let over = |deleted| Ok(Over { uid: "uid-job".to_owned(), deleted });
        let mut pass = |event, expected_news: bool, expected_over| {
            let kept = sort(event, &index, &news);
            assert_eq!(told.try_recv().map(|schedule| schedule.name).ok(), expected_news.then(|| "s".to_owned()));
            assert_eq!(ended.try_recv().map_err(|_| ()), expected_over);
            kept
        };
        assert!(matches!(pass(Init, false, Err(())), Some(Init)));
        assert!(pass(InitApply(complete()), false, Err(())).is_none());
        assert!(matches!(pass(InitDone, true, Err(())), Some(InitDone)));
        assert!(matches!(pass(Delete(complete()), true, over(true)), Some(Delete(_))));
        assert!(matches!(pass(Apply(job(&json!({}))), true, Err(())), Some(Apply(_))));
        assert!(matches!(pass(Apply(job(&json!({"progress": 9}))), false, Err(())), Some(Apply(_))));
        assert!(matches!(pass(Apply(complete()), true, over(false)), Some(Delete(_))));
        assert!(matches!(pass(Apply(complete()), false, Err(())), Some(Delete(_))));
    }

    #[tokio::test]
    async fn reports_leave_room_for_starts() {
        let mut config = Config::new("http://127.0.0.1:1".parse().unwrap());
        config.default_namespace = "default".to_owned();
        rustls::crypto::ring::default_provider().install_default().ok();
        let (cluster, _feeds, _watches) = Cluster::watch(Client::try_from(config).unwrap(), None);
        let mut turns = Vec::new();
        for _ in 0..REPORTS {
            turns.push(cluster.turn(Lane::Reports).await);
        }
        let now = Duration::from_millis(1);
        assert!(timeout(now, cluster.turn(Lane::Reports)).await.is_err(), "no more reports");
        for _ in REPORTS..REQUESTS {
            turns.push(cluster.turn(Lane::Starts).await);
        }
        assert!(timeout(now, cluster.turn(Lane::Starts)).await.is_err(), "no more at all");
        turns.pop();
        assert!(timeout(now, cluster.turn(Lane::Starts)).await.is_ok());
    }
}
