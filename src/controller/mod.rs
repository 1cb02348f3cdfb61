//! Wiring: one controller for each kind, on one watch of each kind.
//!
//! Each reconciler is a pipeline: observe (reads), decide (pure, in `domain`), act (writes), status.

mod clock;
mod leader;
mod line;
mod news;
mod ownership;
mod pace;
mod sweep;
mod syncalert;
mod syncjob;
mod syncschedule;
mod trace;

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
    alerts::Courier,
    api::SyncJob,
    cluster::{self, Cluster, Lane, Turn},
    domain::{Note, merge_patch},
    queue::{self, Queue},
    sync::Egress,
    telemetry::{REDIS, events::Events, metrics},
};
use clock::Clock;
use leader::Elector;
use line::{Line, Place, Writer};
use news::News;
use ownership::Peers;
use pace::Pace;
use sweep::{forget, sweep};

pub use leader::{Leadership, Settings as Election};

/// Objects reconciled at a time, for each kind. More than there are places in both lines ([`Line`]).
const CONCURRENCY: u16 = 256;
/// How often Redis is asked for a sign of life.
const PING: Duration = Duration::from_secs(2);
/// How long events may take that wait when the process ends.
const LAST_EVENTS: Duration = Duration::from_secs(2);
const AFTER_ERROR: Duration = Duration::from_secs(5);
const AFTER_CONFLICT: Duration = Duration::from_millis(250);

/// Settings of the controllers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Only this namespace; all when `None`.
    pub namespace: Option<String>,
    /// Every unfinished SyncJob is compared with the queue this often.
    pub resync: Duration,
    /// Least time between two status writes of one SyncJob that tell of progress only.
    pub status_interval: Duration,
    /// Most status writes a second, of all objects together.
    pub status_writes_per_second: NonZeroU32,
    /// Names this process in events.
    pub instance: String,
    /// How the one that reconciles is found among several controllers.
    pub election: Election,
    /// Which addresses sinks of alerts may be at.
    pub egress: Egress,
}

/// What reconcilers work with.
struct Context {
    cluster: Cluster,
    queue: Queue,
    news: News,
    queue_available: watch::Receiver<bool>,
    pace: Pace,
    /// Schedules that have a run to start.
    starts: Line,
    /// All that have something to report.
    reports: Line,
    made: syncschedule::Made,
    outbox: syncalert::Outbox,
    courier: Courier,
    leadership: Leadership,
    peers: Peers,
    clock: Clock,
}

impl Context {
    /// Asks the API server to change something when it is its turn, as long as this process leads.
    async fn write<T>(
        &self,
        lane: Lane,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let turn = self.cluster.turn(lane).await;
        self.write_now(&turn, action, request).await
    }

    /// The same for one whose turn it is.
    async fn write_now<T>(
        &self,
        _turn: &Turn<'_>,
        action: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        if !self.leadership.is_held() {
            return Err(Error::NotLeading);
        }
        Ok(cluster::ask(action, request).await?)
    }

    /// Waits until a status may be written that starts no run. Look again after it: what happened meanwhile can be told
    /// in the same write. `None` when others come first: `who` is reconciled again when it is its turn. `place`: what
    /// [`Line::kept`] said in this reconciliation.
    async fn report_turn(&self, who: Writer, place: Option<Place>) -> Option<Turn<'_>> {
        let _place = match place {
            Some(place) => place,
            None => self.reports.enter(who)?,
        };
        self.pace.turn().await;
        Some(self.cluster.turn(Lane::Reports).await)
    }

    fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, notes: Vec<Note>) {
        for note in notes {
            self.news.tell(object, note);
        }
    }
}

/// The patch that gives an object another status. It carries the resource version that the status was decided on, so that an old
/// decision is refused, and changes what this release knows alone.
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
    #[error("another controller leads")]
    NotLeading,
}

/// Reconciles while this process leads. Another one does it otherwise.
async fn led(
    kind: &'static str,
    context: Arc<Context>,
    reconcile: impl Future<Output = Result<Action, Error>>,
) -> Result<Action, Error> {
    let began = Instant::now();
    select! {
        biased;
        () = context.leadership.lost() => Ok(Action::await_change()),
        result = reconcile => match result {
            Err(Error::NotLeading) => Ok(Action::await_change()),
            result => {
                metrics::reconciled(kind, result.is_ok(), began.elapsed());
                result
            }
        },
    }
}

/// Runs the controllers until `stop`, then lets reconciliations under way end and gives the Lease up. They do
/// nothing while another process leads. The cluster's caches, and who leads, are handed out for others to read.
pub async fn run(
    settings: Settings,
    client: Client,
    queue: Queue,
    stop: CancellationToken,
    share: impl FnOnce(Cluster, Leadership),
) {
    let (cluster, feeds, watches) = Cluster::watch(client.clone(), settings.namespace.clone());
    let lease_namespace = settings.election.namespace.as_deref().unwrap_or(client.default_namespace());
    let lease = format!("{lease_namespace}/{}", settings.election.name);
    let (mut elector, leadership) = Elector::new(settings.election, client.clone(), stop.clone());
    share(cluster.clone(), leadership.clone());
    let (availability, queue_available) = watch::channel(true);
    let (news, waiting) = news::channel();
    let mut events =
        pin!(waiting.send(Events::new(client.clone(), &settings.instance), cluster.clone(), leadership.clone()));
    let clock = Clock::new();
    let (outbox, delivered) = syncalert::Outbox::new();
    let (starts, call_starts, due) = Line::new();
    let (reports, call_reports, heard) = Line::new();
    let context = Arc::new(Context {
        cluster: cluster.clone(),
        queue: queue.clone(),
        news,
        queue_available: queue_available.clone(),
        pace: Pace::new(settings.status_interval, settings.status_writes_per_second),
        starts,
        reports,
        made: syncschedule::Made::default(),
        outbox,
        courier: Courier::new(client.clone(), settings.egress),
        leadership: leadership.clone(),
        peers: Peers::new(client.clone(), lease.clone()),
        clock: clock.clone(),
    });
    let config = || Config::default().concurrency(CONCURRENCY);
    let upset = || {
        let recovered = stream::select(
            WatchStream::from_changes(queue_available.clone()).map(drop),
            stream::select(
                WatchStream::from_changes(leadership.changes()).map(drop),
                WatchStream::from_changes(leadership.ownership_changes()).map(drop),
            ),
        );
        stream::select(recovered, clock.changes())
    };

    let schedules = Controller::for_shared_stream(feeds.schedules, cluster.schedules.clone())
        .reconcile_on(UnboundedReceiverStream::new(feeds.owners))
        .reconcile_on(stream::select(due.schedules, heard.schedules))
        .reconcile_all_on(upset())
        .with_config(config())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            |object, context| led("SyncSchedule", Arc::clone(&context), syncschedule::reconcile(object, context)),
            |_, error, _| after(error),
            Arc::clone(&context),
        )
        .for_each(|result| async move { tracing::trace!(?result, "schedule reconciled") });
    let jobs = Controller::for_shared_stream(feeds.jobs, cluster.jobs.clone())
        .reconcile_on(changes(&cluster, &queue))
        .reconcile_on(heard.jobs)
        .reconcile_on(unfinished(&cluster, settings.resync, &context))
        .with_config(config())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            |object, context| led("SyncJob", Arc::clone(&context), syncjob::reconcile(object, context)),
            |_, error, _| after(error),
            Arc::clone(&context),
        )
        .for_each(|result| async move { tracing::trace!(?result, "job reconciled") });

    let alerts = Controller::for_shared_stream(feeds.alerts, cluster.alerts.clone())
        .reconcile_on(UnboundedReceiverStream::new(feeds.watching))
        .reconcile_on(UnboundedReceiverStream::new(delivered))
        .reconcile_on(heard.alerts)
        .reconcile_all_on(upset())
        .with_config(config())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            |object, context| led("SyncAlert", Arc::clone(&context), syncalert::reconcile(object, context)),
            |_, error, _| after(error),
            Arc::clone(&context),
        )
        .for_each(|result| async move { tracing::trace!(?result, "alert reconciled") });

    tracing::info!(namespace = settings.namespace.as_deref().unwrap_or("all"), "controllers started");
    select! {
        ((), (), ()) = async { tokio::join!(schedules, jobs, alerts) } => {}
        () = elector.run() => {}
        () = watches => {}
        () = call_starts.call() => {}
        () = call_reports.call() => {}
        () = &mut events => {}
        () = ask_for_signs_of_life(&queue, &availability) => {}
        () = clock.compare_regularly(&client, &queue) => {}
        () = ownership::assert_regularly(&queue, &leadership, &lease, queue_available.clone()) => {}
        () = sweep(&context, settings.resync) => {}
        () = forget(feeds.over, &queue, &context) => {}
    }
    drop(context);
    timeout(LAST_EVENTS, events).await.ok();
    elector.give_up().await;
    tracing::info!("controllers stopped");
}

fn after(error: &Error) -> Action {
    match error {
        Error::Cluster(error) if error.is_conflict() => {
            tracing::debug!(%error, "decided on an old state; trying again");
            Action::requeue(AFTER_CONFLICT)
        }
        Error::Cluster(error) if error.is_in_terminating_namespace() => {
            tracing::debug!(%error, "the object will be deleted, too");
            Action::await_change()
        }
        error => {
            tracing::debug!(%error, "reconciliation failed; trying again");
            Action::requeue(AFTER_ERROR)
        }
    }
}

/// SyncJobs whose run something happened to in the queue.
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

/// Every SyncJob that has something to wait for, in each resync, when Redis is back, and when the leader changes.
fn unfinished(
    cluster: &Cluster,
    resync: Duration,
    context: &Context,
) -> impl Stream<Item = ObjectRef<SyncJob>> + Send + use<> {
    let available = WatchStream::from_changes(context.queue_available.clone()).map(drop);
    let leader = stream::select(
        WatchStream::from_changes(context.leadership.changes()).map(drop),
        WatchStream::from_changes(context.leadership.ownership_changes()).map(drop),
    );
    let cluster = cluster.clone();
    let mut ticks = interval(resync);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = stream::unfold(ticks, |mut ticks| async {
        ticks.tick().await;
        Some(((), ticks))
    });
    stream::select(ticks, stream::select(available, leader)).flat_map(move |()| {
        let jobs: Vec<_> = cluster.jobs.state().iter().map(|job| ObjectRef::from_obj(&**job)).collect();
        stream::iter(jobs)
    })
}

async fn ask_for_signs_of_life(queue: &Queue, availability: &watch::Sender<bool>) {
    let mut ticks = interval(PING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let alive = timeout(PING, queue.ping()).await.unwrap_or(Err(queue::Error::Silent));
        REDIS.note(&alive);
        availability.send_if_modified(|available| std::mem::replace(available, alive.is_ok()) != alive.is_ok());
    }
}
