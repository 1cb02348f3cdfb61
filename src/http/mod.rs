//! HTTP API: the calls of the Node service that it replaces, and more. Answers come from Redis and the watch
//! cache. Changes are changes of Kubernetes objects, and need the caller's right to make them.

mod audit;
mod auth;
mod cleanup;
mod connections;
mod control;
mod dashboard;
mod events;
mod extract;
mod health;
mod host_check;
mod job_view;
mod jobs;
mod keyed_semaphore;
mod leader;
mod limits;
mod mirror;
mod objects;
mod openapi;
mod pause;
mod prefix;
mod probes;
mod problem;
mod progress_history;
mod recent;
mod schedule_health;
mod search;
mod sender;
mod server;
mod status;
mod throughput;
mod trigger;

use std::{num::NonZeroU32, ops::Deref, sync::Arc, time::Duration};

use axum::{Router, extract::FromRef, http::Uri, routing::get};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    cluster::Cluster,
    controller::Leadership,
    domain::schedule::count_by_health,
    queue::{Depth, Queue},
    telemetry::events::Events,
    worker::WorkerHealth,
};
use auth::Access;
use leader::Leader;
use limits::Limits;
use problem::{Problem, ProblemKind};
use recent::Recent;

pub use auth::{AUDIENCE, ReadAccess};
pub use connections::Connections;
pub use dashboard::{LogsUrl, LogsUrlError, Proxies, Sessions, WeakSecret};
pub use leader::LeaseName;
pub use mirror::{Mirror, NoHashTag};
pub use objects::Objects;
pub use prefix::{Prefix, PrefixError};
use schedule_health::HealthCounts;
pub use schedule_health::ScheduleHealth;
pub use server::{Certificate, CertificateError, serve};

/// Longest wait for Redis or the API server within one request.
const LIMIT: Duration = Duration::from_millis(1500);

/// State that the handlers share.
#[derive(Clone)]
pub struct HttpState {
    /// The queue.
    pub queue: Queue,
    /// The controllers' caches; absent until the watches were set up. `None` in a process without controllers.
    pub cluster: Option<watch::Receiver<Option<Cluster>>>,
    /// Leadership. Absent in a process without controllers.
    pub leadership: watch::Receiver<Option<Leadership>>,
    /// The workers. Absent in a process without any.
    pub worker_health: watch::Receiver<Option<WorkerHealth>>,
    /// True until MongoDB has answered the workers of this process. The workers start then.
    pub lacks_mongodb: watch::Receiver<bool>,
    /// Cache for the HTTP calls. Absent in a process that serves none.
    pub objects: Option<Objects>,
    /// Cached number of schedules in each state of health.
    pub schedule_health: ScheduleHealth,
    /// Cached depth of the queue.
    pub depth: RecentDepth,
}

/// Depth of the queue, cached for a second. `None` when Redis did not answer in time.
pub type RecentDepth = Recent<Option<Depth>>;

impl HttpState {
    /// Waits until the objects of the cluster were listed, where this process watches them.
    async fn listed(&self) {
        if let Some(mut cluster) = self.cluster.clone() {
            // Fails only when the process ends.
            let cluster = cluster.wait_for(Option::is_some).await.ok().and_then(|cluster| cluster.clone());
            if let Some(cluster) = cluster {
                cluster.ready().await;
            }
        }
        if let Some(objects) = &self.objects {
            objects.listed().await;
        }
    }

    /// Number of schedules in each state of health. `None` until the controllers have listed the schedules.
    fn schedule_health(&self) -> Option<HealthCounts> {
        let cluster = self.cluster.as_ref()?.borrow().clone().filter(Cluster::is_ready)?;
        let count = || count_by_health(cluster.schedules.state().iter().map(AsRef::as_ref), Timestamp::now());
        Some(self.schedule_health.get(Instant::now(), count))
    }

    /// Depth of the queue, at most a second old. `None` when Redis does not answer in time.
    async fn depth(&self) -> Option<Depth> {
        self.depth.get(self.read_depth()).await
    }

    /// Depth of the queue now.
    async fn read_depth(&self) -> Option<Depth> {
        timeout(LIMIT, self.queue.depth()).await.ok()?.ok()
    }
}

/// Settings of the HTTP API.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Read access. `None`: no authorization.
    pub reads: Option<ReadAccess>,
    /// Largest number of requests per second of one caller, and the size of a burst.
    pub requests_per_second: NonZeroU32,
    /// Largest number of concurrent requests of all callers. The limit of event streams is the same, and the limit of
    /// open pages is four times as high.
    pub requests_at_a_time: NonZeroU32,
    /// Largest number of concurrent requests of one caller, and of its open pages. The limit of its event streams is a
    /// quarter.
    pub requests_per_caller: NonZeroU32,
    /// Sessions of the dashboard. `None`: no dashboard.
    pub dashboard: Option<Sessions>,
    /// Address of the logs of a run, for links in the dashboard.
    pub logs: Option<LogsUrl>,
    /// Proxies that may authenticate users of the dashboard.
    pub proxies: Option<Proxies>,
    /// Path below which a proxy serves the HTTP API.
    pub prefix: Option<Prefix>,
    /// Names that requests without a token may have as their Host, in addition to addresses and localhost.
    pub hosts: Vec<String>,
    /// Lease of the leader election.
    pub lease: LeaseName,
}

/// State that the handlers of HTTP requests share. Cheap to clone.
#[derive(Clone)]
struct App(Arc<Parts>);

struct Parts {
    state: Arc<HttpState>,
    objects: Objects,
    access: Access,
    events: Events,
    limits: Limits,
    live_updates: Arc<dashboard::LiveUpdates>,
    leader: Leader,
    status: status::CachedStatus,
    /// Result of the last request to the API server: true when it answered.
    kubernetes: Recent<bool>,
    object_events: dashboard::EventCache,
    logs: Option<LogsUrl>,
    stop: CancellationToken,
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl FromRef<App> for Arc<HttpState> {
    fn from_ref(app: &App) -> Self {
        Arc::clone(&app.state)
    }
}

impl App {
    /// The caches, once they are filled.
    fn listed(&self) -> Result<&Objects, Problem> {
        Some(&self.objects).filter(|objects| objects.is_listed()).ok_or_else(Problem::not_listed)
    }
}

/// Router with every route of the HTTP API. Streams of events end at `stop`.
pub fn router(
    state: HttpState,
    objects: Objects,
    settings: HttpSettings,
    instance: &str,
    stop: CancellationToken,
) -> Router {
    let client = objects.client.clone();
    let limits = Limits::new(&settings);
    let leader = Leader::new(client.clone(), settings.lease);
    let app = App(Arc::new(Parts {
        state: Arc::new(HttpState { objects: Some(objects.clone()), ..state }),
        objects,
        access: settings.reads.map_or_else(Access::anyone, |reads| Access::reviewed(client.clone(), reads)),
        events: Events::new(client, instance),
        limits,
        live_updates: Arc::default(),
        leader,
        status: status::CachedStatus::default(),
        kubernetes: Recent::default(),
        object_events: dashboard::EventCache::default(),
        logs: settings.logs,
        stop,
    }));
    let HttpSettings { dashboard, proxies, prefix, hosts, .. } = settings;
    let (router, document) = documented().split_for_parts();
    let document = openapi::finish(document, prefix.as_ref());
    let router = if dashboard.is_some() {
        router.merge(dashboard::routes(&app))
    } else {
        router.merge(dashboard::static_files())
    };
    let router = router
        .route("/openapi.json", get(async || openapi::answer(document)))
        .fallback(async |uri: Uri| nowhere(&uri))
        .method_not_allowed_fallback(async || {
            Problem::new(ProblemKind::MethodNotAllowed, "the header Allow lists its methods")
        });
    let router = host_check::layer(router, &app, hosts);
    let router = limits::layer(router, &app).with_state(app.clone());
    let pages = dashboard::ProblemPages {
        is_on: dashboard.is_some(),
        locked: app.access.is_locked(),
        is_proxied: proxies.is_some(),
    };
    let router = match dashboard {
        Some(sessions) => dashboard::layer(router, sessions.below(prefix.as_ref()), proxies),
        None => router,
    };
    let router = dashboard::problem_pages(router, pages);
    match prefix {
        Some(prefix) => prefix::layer(router, prefix),
        None => router,
    }
}

/// Problem of a path that does not exist.
fn nowhere(uri: &Uri) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no {}", uri.path()))
}

/// Routes in the OpenAPI document.
fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::health))
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(status::status))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::read))
        .routes(routes!(events::events))
        .routes(routes!(trigger::trigger))
        .routes(routes!(pause::pause))
        .routes(routes!(pause::resume))
        .routes(routes!(cleanup::cleanup))
        .routes(routes!(control::cancel))
        .routes(routes!(control::suspend))
        .routes(routes!(control::resume))
        .routes(routes!(control::approve))
        .routes(routes!(control::retry))
}

/// Returns the OpenAPI document, which `/openapi.json` serves.
#[must_use]
pub fn openapi_document() -> String {
    openapi::finish(documented().into_openapi(), None)
}

/// Router of every process for its cluster: probes and metrics.
pub fn probes(state: HttpState) -> Router {
    Router::new()
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .with_state(Arc::new(state))
}
