//! Limits of the calls: rate, number of concurrent calls, duration, and the headers of all answers.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State},
    http::{
        HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use governor::{Quota, RateLimiter, clock::Clock, clock::DefaultClock, state::keyed::HashMapStateStore};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer, timeout::RequestBodyTimeoutLayer};

use super::{
    App,
    auth::ProxyIdentity,
    extract::MAX_BODY,
    problem::{Problem, ProblemKind},
};
use crate::telemetry::metrics;

/// Longest time for an answer to begin. Cleaning up may take as long.
const ANSWER: Duration = Duration::from_mins(1);
/// Longest pause of a client in the middle of its body.
const BODY_PAUSE: Duration = Duration::from_secs(10);
/// Number of calls after which callers with a low rate are forgotten.
const FORGET_EVERY: u64 = 4096;

/// Open pages of the dashboard for each listener to events: they cost little.
const PAGES: usize = 4;

/// Limits of the requests of one caller and of all.
pub(super) struct Limits {
    rates: RateLimiter<String, HashMapStateStore<String>, DefaultClock>,
    calls: AtomicU64,
    at_a_time: Semaphore,
    streams: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

impl Limits {
    pub fn new(requests_per_second: NonZeroU32, requests_at_a_time: NonZeroU32) -> Self {
        let at_a_time = requests_at_a_time.get() as usize;
        Self {
            rates: RateLimiter::hashmap(Quota::per_second(requests_per_second)),
            calls: AtomicU64::new(0),
            at_a_time: Semaphore::new(at_a_time),
            streams: Arc::new(Semaphore::new(at_a_time)),
            pages: Arc::new(Semaphore::new(at_a_time * PAGES)),
        }
    }

    /// Acquires a permit for a stream of events.
    pub fn stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| busy())
    }

    /// Acquires a permit for a page of the dashboard that receives updates.
    pub fn page(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.pages).try_acquire_owned().map_err(|_| busy())
    }

    fn check_rate(&self, caller: &String) -> Result<(), Problem> {
        if self.calls.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.rates.retain_recent();
        }
        self.rates.check_key(caller).map_err(|full| {
            let wait = full.wait_time_from(self.rates.clock().now());
            Problem::new(ProblemKind::TooManyRequests, "slow down").retry_after(wait.as_secs() + 1)
        })
    }
}

fn busy() -> Problem {
    Problem::new(ProblemKind::Overloaded, "too many calls are in progress").retry_after(1)
}

/// Adds the limits to the routes. Probes and `/health` are never refused.
pub(super) fn layer(router: Router<App>, app: &App) -> Router<App> {
    let header = |name: HeaderName, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
    };
    router
        .layer(middleware::from_fn_with_state(app.clone(), bounded))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(RequestBodyTimeoutLayer::new(BODY_PAUSE))
        .layer(middleware::from_fn(measured))
        .layer(CatchPanicLayer::custom(|_| {
            tracing::error!("a call panicked");
            Problem::new(ProblemKind::Internal, "the call failed").into_response()
        }))
        .layer(header(CACHE_CONTROL, "no-store"))
        .layer(header(CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"))
        .layer(header(REFERRER_POLICY, "no-referrer"))
        .layer(header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
}

async fn bounded(State(app): State<App>, request: Request, next: Next) -> Response {
    if is_probe(request.uri().path()) {
        return next.run(request).await;
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string());
    // By name when it is known: behind a proxy all callers have one address.
    let caller = match request.extensions().get() {
        Some(ProxyIdentity(caller)) => Some(caller.name.clone()),
        None => app.access.known(request.headers()).await,
    };
    let caller = caller.or(address).unwrap_or_default();
    if let Err(problem) = app.limits.check_rate(&caller) {
        return problem.into_response();
    }
    let Ok(_permit) = app.limits.at_a_time.try_acquire() else { return busy().into_response() };
    timeout(ANSWER, next.run(request)).await.unwrap_or_else(|_| {
        let detail = "the call took too long; its requests may still take effect";
        Problem::new(ProblemKind::Unavailable, detail).into_response()
    })
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/livez" | "/readyz")
}

async fn measured(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let response = next.run(request).await;
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    metrics::http(route, response.status().as_u16(), began.elapsed());
    response
}
