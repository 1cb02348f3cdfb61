//! Wiring: one controller for each kind, on one watch of each kind.
//!
//! Each reconciler is a pipeline: observe (reads), decide (pure, in `domain`), act (writes), status.

mod admission;
mod assertion;
mod clock;
mod event_publisher;
mod expectations;
mod failures;
mod leader;
mod ownership;
mod resync;
mod run_quotas;
mod status_throttle;
mod syncalert;
mod syncjob;
mod syncschedule;
mod trace;
mod unreadable;

use std::{collections::HashSet, future::Future, num::NonZeroU32, pin::pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use kube::{
    Client, Resource,
    api::{ObjectMeta, Patch},
    runtime::{
        controller::{Action, Config, Controller},
        reflector::ObjectRef,
    },
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    select,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::{UnboundedReceiverStream, WatchStream};
use tokio_util::sync::CancellationToken;

use crate::{
    alerts::Notifier,
    api::{SyncJob, SyncJobSpec, conditions::reasons},
    cluster::{self, Cluster, RequestClass, RequestPermit},
    domain::{
        ObjectEvent,
        failure::{CREATE, Cause},
        merge_patch,
        run::{Outcome, RunSpec},
    },
    policy::CurrentPolicy,
    queue::{self, Queue},
    recovery::recover_expired,
    telemetry::{REDIS, events::Events, metrics},
};
use admission::{AdmissionQueue, ObjectKey, Permit};
use assertion::RedisView;
use clock::Clock;
use event_publisher::EventPublisher;
use expectations::Expectations;
use failures::Failures;
use leader::Elector;
use ownership::Peers;
use resync::{forget, sweep};
use run_quotas::RunQuotas;
use status_throttle::StatusThrottle;

pub use leader::{ElectionSettings, Leadership};

/// Objects reconciled at a time, for each kind. More than there are permits in both queues ([`AdmissionQueue`]).
const CONCURRENCY: u16 = 256;
/// Interval between pings of Redis.
const PING: Duration = Duration::from_secs(2);
/// Number of failed pings in a row after which Redis counts as unavailable: a single slow answer is no outage.
const MISSES: u32 = 3;
/// Longest time for the delivery of pending events when the process ends.
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// The wait after an error that has no backoff of its own: a server cannot be reached, which is noticed elsewhere.
const AFTER_ERROR: Duration = Duration::from_secs(5);
/// Delay of the next reconciliation of an object whose namespace is being deleted.
const TERMINATING: Duration = Duration::from_mins(1);
/// The action that fails in a namespace that is being deleted.
const ANYTHING: &str = "create anything";

/// Settings of the controllers.
#[derive(Clone, Debug)]
pub struct ControllerSettings {
    /// Namespace to watch. `None`: all namespaces.
    pub namespace: Option<String>,
    /// Interval between comparisons of every unfinished SyncJob with the queue.
    pub resync: Duration,
    /// Least time between two status writes of one SyncJob that report progress only.
    pub status_interval: Duration,
    /// Largest number of status writes per second, of all objects together.
    pub status_writes_per_second: NonZeroU32,
    /// Names this process in events.
    pub instance: String,
    /// Settings of the leader election among several controllers.
    pub election: ElectionSettings,
    /// Rights of namespaces.
    pub policy: CurrentPolicy,
    /// Database of targets that do not set one.
    pub database: String,
}

/// Clients and shared state of the reconcilers.
struct Context {
    cluster: Cluster,
    queue: Queue,
    publisher: EventPublisher,
    queue_available: watch::Receiver<bool>,
    redis: RedisView,
    throttle: StatusThrottle,
    /// Admission of schedules that have a run to start.
    starts: AdmissionQueue,
    /// Admission of objects that have a status to report.
    reports: AdmissionQueue,
    expectations: Expectations,
    failures: Failures,
    deliveries: syncalert::DeliveryTracker,
    notifier: Notifier,
    leadership: Leadership,
    peers: Peers,
    clock: Clock,
    policy: CurrentPolicy,
    quotas: RunQuotas,
    /// Database of targets that do not set one.
    database: String,
}

impl Context {
    /// Largest number of concurrent runs of a namespace. `None`: no limit.
    fn run_limit(&self, namespace: &str) -> Option<u32> {
        let policy = self.policy.get();
        // Most installations have no tenants.
        policy.tenants.as_ref()?;
        policy.runs(&policy.matching(namespace))
    }

    /// Outcome of a run with this spec in a namespace. `None`: the policy allows the run, or the spec is invalid.
    fn refusal(&self, namespace: &str, spec: &SyncJobSpec) -> Option<Outcome> {
        let policy = self.policy.get();
        // Most installations have no tenants, and parsing takes time. An own MongoDB needs an entry in any case.
        if policy.tenants.is_none() && spec.target.uri_secret_ref.is_none() {
            return None;
        }
        let run = RunSpec::parse(spec).ok()?;
        let checked = policy.check(&policy.matching(namespace), namespace, &run, &self.database);
        checked.err().map(|error| Outcome { reason: reasons::NOT_ALLOWED.to_owned(), message: error.to_string() })
    }

    /// Sends a request for an object once it has a permit, while this process leads. An action that was refused is not
    /// sent again before its backoff has passed.
    async fn write<T>(
        &self,
        who: &ObjectKey,
        class: RequestClass,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        self.check(who, action)?;
        let permit = self.cluster.acquire(class).await;
        self.send(who, &permit, action, request).await
    }

    /// Sends a request with a permit that is held already.
    async fn send<T>(
        &self,
        who: &ObjectKey,
        _permit: &RequestPermit<'_>,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        self.check(who, action)?;
        if !self.leadership.is_held() {
            return Err(Error::NotLeading);
        }
        let answer = cluster::call(action, request).await;
        self.record(who, action, &answer);
        Ok(answer?)
    }

    /// Sends a read that the start of a run depends on.
    async fn read<T>(
        &self,
        who: &ObjectKey,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let answer = self.cluster.call(action, request).await;
        self.record(who, action, &answer);
        Ok(answer?)
    }

    fn check(&self, who: &ObjectKey, action: &'static str) -> Result<(), Error> {
        self.failures.remaining_backoff(who, action, Instant::now()).map_or(Ok(()), |wait| Err(Error::HeldBack(wait)))
    }

    /// Records the answer to an action, or its absence.
    fn record<T>(&self, who: &ObjectKey, action: &'static str, answer: &Result<T, cluster::Error>) {
        let error = match answer {
            Err(error) if !error.is_already_exists() && !error.is_not_found() => error,
            _ => return self.failures.record_success(who, action),
        };
        if error.is_in_terminating_namespace() {
            // Not reported: the object is about to be deleted.
            self.failures.record(who, ANYTHING, (Cause::Refused, &error.to_string()), TERMINATING, Instant::now());
            return;
        }
        // An outage is reported once, and not for each object.
        let cause = error.cause().filter(|cause| *cause != Cause::Busy || cluster::stale_since().is_none());
        if let Some(cause) = cause {
            self.fail(who, action, cause, &error.to_string(), error.retry_after());
        }
    }

    /// Records that an action on an object failed. Logs the first failure, and publishes an event when the object shows
    /// the failure in a condition.
    fn fail(&self, who: &ObjectKey, action: &'static str, cause: Cause, error: &str, retry_after: Duration) {
        let recorded = self.failures.record(who, action, (cause, error), retry_after, Instant::now());
        let failures::RecordedFailure { is_first, event } = recorded;
        let object = who.reference();
        if is_first && cause.holds_back() {
            let (kind, namespace, name) = (&object.kind, &object.namespace, &object.name);
            tracing::warn!(kind, namespace, name, error, "a request for an object failed; retrying");
        }
        if let Some(event) = event {
            self.publisher.publish_about(object, event);
        }
    }

    /// Waits for the permit to report a status. The caller must observe again afterwards, so that the write includes
    /// changes that happened during the wait. `None`: other objects are first, and `who` is queued and reconciled
    /// again. `permit`: result of [`AdmissionQueue::take_permit`] in this reconciliation.
    async fn acquire_report(&self, who: ObjectKey, permit: Option<Permit>) -> Option<RequestPermit<'_>> {
        let _permit = match permit {
            Some(permit) => permit,
            None => self.reports.enqueue(who)?,
        };
        self.throttle.acquire().await;
        Some(self.cluster.acquire(RequestClass::ReportStatus).await)
    }

    fn publish_events<K: Resource<DynamicType = ()>>(&self, object: &K, events: Vec<ObjectEvent>) {
        for event in events {
            self.publisher.publish(object, event);
        }
    }
}

/// Merge patch of the status of an object. The patch carries the resource version that the decision was made on, so
/// that the API server refuses a stale one, and contains only the fields that this release knows.
fn status_patch<S: Serialize>(metadata: &ObjectMeta, old: Option<&S>, new: &S) -> Patch<Value> {
    // These are texts, numbers and times.
    let json = |status: &S| serde_json::to_value(status).unwrap_or_default();
    let status = merge_patch::between(&old.map_or_else(|| json!({}), json), &json(new));
    let ObjectMeta { uid, resource_version, .. } = metadata;
    Patch::Merge(json!({"metadata": {"uid": uid, "resourceVersion": resource_version}, "status": status}))
}

/// A reconciliation that has to be tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    #[error(transparent)]
    Queue(#[from] queue::Error),
    #[error("another controller is the leader")]
    NotLeading,
    #[error("the backoff of a failed action has not ended yet")]
    HeldBack(Duration),
    #[error("a SyncJob of the name {0} is about to be deleted")]
    Occupied(String),
    /// One action failed; the others were carried out.
    #[error("{error}")]
    Partly {
        error: Box<Error>,
        /// Time until the object is due in any case.
        next: Option<Duration>,
    },
}

impl Error {
    /// True when the object will be deleted with its namespace, so that no action is needed.
    fn is_in_terminating_namespace(&self) -> bool {
        match self {
            Self::Cluster(error) => error.is_in_terminating_namespace(),
            Self::Partly { error, .. } => error.is_in_terminating_namespace(),
            _ => false,
        }
    }

    /// The wait of an error that is none: an action is not due yet.
    fn held_back(&self) -> Option<Duration> {
        match self {
            Self::HeldBack(wait) => Some(*wait),
            Self::Partly { error, next } => error.held_back().map(|wait| next.map_or(wait, |next| next.min(wait))),
            _ => None,
        }
    }
}

/// Runs `reconcile` while this process holds the Lease, and drops it when leadership is lost.
async fn if_leading<K, F>(
    object: Arc<K>,
    context: Arc<Context>,
    reconcile: impl FnOnce(Arc<K>, Arc<Context>) -> F,
) -> Result<Action, Error>
where
    K: Resource<DynamicType = ()>,
    ObjectKey: for<'a> From<&'a K>,
    F: Future<Output = Result<Action, Error>>,
{
    let (who, began) = (ObjectKey::from(&*object), Instant::now());
    context.failures.begin(&who, object.meta());
    if context.failures.remaining_backoff(&who, ANYTHING, began).is_some() {
        return Ok(Action::await_change());
    }
    let was_shown = context.failures.shown(&who).is_some();
    let result = select! {
        biased;
        () = context.leadership.lost() => return Ok(Action::await_change()),
        result = reconcile(object, Arc::clone(&context)) => result,
    };
    if let Err(Error::NotLeading) = result {
        return Ok(Action::await_change());
    }
    if let Some(wait) = result.as_ref().err().and_then(Error::held_back) {
        return Ok(Action::requeue(wait));
    }
    metrics::reconciled(who.kind(), result.is_ok(), began.elapsed());
    // The status was decided on before the action that had failed succeeded.
    let is_over = was_shown && context.failures.shown(&who).is_none();
    result.map(|action| if is_over { Action::requeue(Duration::ZERO) } else { action })
}

/// Runs the controllers until `stop`, then waits for the reconciliations in progress and releases the Lease. The
/// controllers do nothing while another process is the leader. `run` shares the caches of the cluster, and the
/// leadership, with other parts of the process.
pub async fn run(
    settings: ControllerSettings,
    client: Client,
    queue: Queue,
    stop: CancellationToken,
    share: impl FnOnce(Cluster, Leadership),
) {
    let (cluster, streams, watches) = Cluster::watch(client.clone(), settings.namespace.clone());
    let lease_namespace = settings.election.namespace.as_deref().unwrap_or(client.default_namespace());
    let lease = format!("{lease_namespace}/{}", settings.election.name);
    let (mut elector, leadership) = Elector::new(settings.election, client.clone(), stop.clone());
    share(cluster.clone(), leadership.clone());
    let (availability, queue_available) = watch::channel(true);
    let (publisher, waiting) = event_publisher::channel();
    let mut events =
        pin!(waiting.send(Events::new(client.clone(), &settings.instance), cluster.clone(), leadership.clone()));
    let clock = Clock::new();
    let (deliveries, delivered) = syncalert::DeliveryTracker::new();
    let (starts, start_dispatcher, admitted_starts) = AdmissionQueue::new();
    let (reports, report_dispatcher, admitted_reports) = AdmissionQueue::new();
    let (quotas, admitted_runs) = RunQuotas::new(leadership.changes(), settings.policy.changes());
    let context = Arc::new(Context {
        cluster: cluster.clone(),
        queue: queue.clone(),
        publisher,
        queue_available: queue_available.clone(),
        redis: RedisView::new(queue.lease()),
        throttle: StatusThrottle::new(settings.status_interval, settings.status_writes_per_second),
        starts,
        reports,
        expectations: Expectations::default(),
        failures: Failures::default(),
        deliveries,
        notifier: Notifier::new(client.clone(), settings.policy.clone()),
        leadership: leadership.clone(),
        peers: Peers::new(client.clone(), lease.clone()),
        clock: clock.clone(),
        policy: settings.policy.clone(),
        quotas,
        database: settings.database,
    });
    let config = || Config::default().concurrency(CONCURRENCY);
    // SyncSchedules and SyncAlerts also depend on the clock.
    let changes_of_all = || stream::select(global_changes(&context), clock.changes());

    let schedules = Controller::for_shared_stream(streams.schedules, cluster.schedules.clone())
        .reconcile_on(UnboundedReceiverStream::new(streams.owners))
        .reconcile_on(stream::select(admitted_starts.schedules, admitted_reports.schedules))
        .reconcile_all_on(changes_of_all())
        .with_config(config())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            |object, context| if_leading(object, context, syncschedule::reconcile),
            |object, error, context| after(&ObjectKey::from(&*object), error, &context),
            Arc::clone(&context),
        )
        .for_each(|result| async move { tracing::trace!(?result, "schedule reconciled") });
    let jobs = Controller::for_shared_stream(streams.jobs, cluster.jobs.clone())
        .reconcile_on(changes(&cluster, &queue))
        .reconcile_on(stream::select(admitted_reports.jobs, UnboundedReceiverStream::new(admitted_runs)))
        .reconcile_on(unfinished(&cluster, settings.resync, &context))
        .with_config(config())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            |object, context| if_leading(object, context, syncjob::reconcile),
            |object, error, context| after(&ObjectKey::from(&*object), error, &context),
            Arc::clone(&context),
        )
        .for_each(|result| async move { tracing::trace!(?result, "job reconciled") });

    let alerts = Controller::for_shared_stream(streams.alerts, cluster.alerts.clone())
        .reconcile_on(UnboundedReceiverStream::new(streams.watching))
        .reconcile_on(UnboundedReceiverStream::new(delivered))
        .reconcile_on(admitted_reports.alerts)
        .reconcile_all_on(changes_of_all())
        .with_config(config())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            |object, context| if_leading(object, context, syncalert::reconcile),
            |object, error, context| after(&ObjectKey::from(&*object), error, &context),
            Arc::clone(&context),
        )
        .for_each(|result| async move { tracing::trace!(?result, "alert reconciled") });

    tracing::info!(namespace = settings.namespace.as_deref().unwrap_or("all"), "controllers started");
    select! {
        ((), (), ()) = async { tokio::join!(schedules, jobs, alerts) } => {}
        () = elector.run() => {}
        () = watches => {}
        () = start_dispatcher.dispatch() => {}
        () = report_dispatcher.dispatch() => {}
        () = &mut events => {}
        () = poll_redis(&context, &availability) => {}
        () = recover(&context) => {}
        () = clock.compare_regularly(&client, &queue) => {}
        () = ownership::assert_regularly(&queue, &leadership, &lease, queue_available.clone()) => {}
        () = sweep(&context, settings.resync) => {}
        () = unreadable::report(&context) => {}
        () = forget(streams.over, &queue, &context) => {}
    }
    drop(context);
    timeout(LAST_EVENTS, events).await.ok();
    elector.release().await;
    tracing::info!("controllers stopped");
}

/// Action after an error: when the object is reconciled again.
fn after(who: &ObjectKey, error: &Error, context: &Context) -> Action {
    tracing::debug!(%error, "reconciliation failed");
    if error.is_in_terminating_namespace() {
        Action::await_change()
    } else {
        Action::requeue(retry_after(who, error, context))
    }
}

fn retry_after(who: &ObjectKey, error: &Error, context: &Context) -> Duration {
    let wait = |action| context.failures.retry_delay(who, action, Instant::now());
    let wait = match error {
        Error::Cluster(error) => wait(error.action()),
        Error::Occupied(_) => wait(CREATE),
        Error::HeldBack(wait) => Some(*wait),
        Error::Partly { error, next } => {
            let wait = retry_after(who, error, context);
            Some(next.map_or(wait, |next| next.min(wait)))
        }
        Error::Queue(_) | Error::NotLeading => None,
    };
    wait.unwrap_or(AFTER_ERROR)
}

/// Returns the SyncJobs whose run has changed in the queue.
fn changes(cluster: &Cluster, queue: &Queue) -> impl Stream<Item = ObjectRef<SyncJob>> + Send + use<> {
    let cluster = cluster.clone();
    stream::unfold(queue.changes(), |mut changes| async {
        let uids: HashSet<String> = changes.next().await.into_iter().collect();
        Some((uids, changes))
    })
    .flat_map(move |uids| {
        let jobs: Vec<_> =
            uids.iter().filter_map(|uid| cluster.job(uid)).map(|job| ObjectRef::from_obj(&*job)).collect();
        stream::iter(jobs)
    })
}

/// Stream of the changes that concern all objects: Redis is available again or not, another process leads or owns the
/// queue, or the policy has changed.
fn global_changes(context: &Context) -> impl Stream<Item = ()> + Send + use<> {
    let leader = stream::select(
        WatchStream::from_changes(context.leadership.changes()).map(drop),
        WatchStream::from_changes(context.leadership.ownership_changes()).map(drop),
    );
    let available = WatchStream::from_changes(context.queue_available.clone()).map(drop);
    let policy = WatchStream::from_changes(context.policy.changes()).map(drop);
    stream::select(stream::select(available, policy), leader)
}

/// Stream of all unfinished SyncJobs, in each resync, when Redis is available again, and when the policy, the leader or
/// the owner of the queue changes.
fn unfinished(
    cluster: &Cluster,
    resync: Duration,
    context: &Context,
) -> impl Stream<Item = ObjectRef<SyncJob>> + Send + use<> {
    let cluster = cluster.clone();
    let mut ticks = interval(resync);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = stream::unfold(ticks, |mut ticks| async {
        ticks.tick().await;
        Some(((), ticks))
    });
    stream::select(ticks, global_changes(context)).flat_map(move |()| {
        let jobs: Vec<_> = cluster.jobs.state().iter().map(|job| ObjectRef::from_obj(&**job)).collect();
        stream::iter(jobs)
    })
}

async fn poll_redis(context: &Context, availability: &watch::Sender<bool>) {
    let mut ticks = interval(PING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut misses = 0;
    loop {
        ticks.tick().await;
        let server = timeout(PING, context.queue.server()).await.unwrap_or(Err(queue::Error::Silent));
        REDIS.record(&server);
        misses = misses_after(misses, server.is_ok());
        let is_available = misses < MISSES;
        if let Ok(server) = server {
            context.redis.record(&server);
        }
        availability.send_if_modified(|available| std::mem::replace(available, is_available) != is_available);
    }
}

/// Returns the runs of lost workers to the queue while this process leads.
async fn recover(context: &Context) {
    let mut ticks = interval(context.queue.lease() / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if context.leadership.is_held() {
            recover_expired(&context.queue).await;
        }
    }
}

fn misses_after(misses: u32, answered: bool) -> u32 {
    if answered { 0 } else { misses.saturating_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_answer_of_redis_is_no_outage() {
        let answers = [true, false, false, true, false, false, false, false, true];
        let available = answers.iter().scan(0, |misses, answered| {
            *misses = misses_after(*misses, *answered);
            Some(*misses < MISSES)
        });
        let expected = [true, true, true, true, true, true, false, false, true];
        assert_eq!(available.collect::<Vec<_>>(), expected);
    }
}
