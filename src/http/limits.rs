//! Limits of the calls: rate, number of concurrent calls, duration, and the headers of all answers.

use std::{
    net::SocketAddr,
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
        Extensions, HeaderMap, HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use governor::{Quota, RateLimiter, clock::Clock, clock::DefaultClock, state::keyed::HashMapStateStore};
use tokio::time::{Instant, timeout};
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer, timeout::RequestBodyTimeoutLayer};

use super::{
    App, HttpSettings,
    auth::ProxyIdentity,
    extract::MAX_BODY,
    keyed_semaphore::{KeyedPermit, KeyedSemaphore, NoPermit},
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
/// Part of the requests of one caller that may be listeners to events.
const STREAMS: usize = 4;
/// Forms of clients without credentials that are read at the same time: in all, and of one address.
const ANONYMOUS_FORMS: (usize, usize) = (8, 2);

/// Identity of a caller for the limits: its name, or its address while the name is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct CallerKey(Arc<str>);

/// Permit of a caller.
pub(super) type CallerPermit = KeyedPermit<CallerKey>;

/// Limits of the requests of one caller and of all.
pub(super) struct Limits {
    rates: RateLimiter<CallerKey, HashMapStateStore<CallerKey>, DefaultClock>,
    calls: AtomicU64,
    requests: Arc<KeyedSemaphore<CallerKey>>,
    streams: Arc<KeyedSemaphore<CallerKey>>,
    pages: Arc<KeyedSemaphore<CallerKey>>,
    anonymous_forms: Arc<KeyedSemaphore<CallerKey>>,
}

impl Limits {
    pub fn new(settings: &HttpSettings) -> Self {
        let all = settings.requests_at_a_time.get() as usize;
        let each = settings.requests_per_caller.get() as usize;
        let (forms, forms_each) = ANONYMOUS_FORMS;
        Self {
            rates: RateLimiter::hashmap(Quota::per_second(settings.requests_per_second)),
            calls: AtomicU64::new(0),
            requests: KeyedSemaphore::new(all, each),
            streams: KeyedSemaphore::new(all, each.div_ceil(STREAMS)),
            pages: KeyedSemaphore::new(all * PAGES, each),
            anonymous_forms: KeyedSemaphore::new(forms, forms_each),
        }
    }

    /// Acquires a permit for a stream of events.
    pub fn stream(&self, caller: &CallerKey) -> Result<CallerPermit, Problem> {
        self.streams.try_acquire(caller).map_err(refused)
    }

    /// Acquires a permit for a page of the dashboard that receives updates.
    pub fn page(&self, caller: &CallerKey) -> Result<CallerPermit, Problem> {
        self.pages.try_acquire(caller).map_err(refused)
    }

    /// Acquires a permit for a form of a client without credentials.
    pub fn anonymous_form(&self, caller: &CallerKey) -> Result<CallerPermit, Problem> {
        self.anonymous_forms.try_acquire(caller).map_err(refused)
    }

    fn check_rate(&self, caller: &CallerKey) -> Result<(), Problem> {
        if self.calls.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.rates.retain_recent();
        }
        self.rates.check_key(caller).map_err(|full| {
            let wait = full.wait_time_from(self.rates.clock().now());
            Problem::new(ProblemKind::TooManyRequests, "slow down").retry_after(wait.as_secs() + 1)
        })
    }
}

fn refused(full: NoPermit) -> Problem {
    let problem = match full {
        NoPermit::All => Problem::new(ProblemKind::Overloaded, "too many calls are in progress"),
        NoPermit::Key => {
            let detail = "the caller has too many calls in progress: wait until one of them has ended";
            Problem::new(ProblemKind::TooManyRequests, detail)
        }
    };
    problem.retry_after(1)
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

async fn bounded(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if is_probe(request.uri().path()) {
        return next.run(request).await;
    }
    let caller = caller_key(&app, request.headers(), request.extensions()).await;
    if let Err(problem) = app.limits.check_rate(&caller) {
        return problem.into_response();
    }
    let _permit = match app.limits.requests.try_acquire(&caller) {
        Ok(permit) => permit,
        Err(full) => return refused(full).into_response(),
    };
    request.extensions_mut().insert(caller);
    timeout(ANSWER, next.run(request)).await.unwrap_or_else(|_| {
        let detail = "the call took too long; its requests may still take effect";
        Problem::new(ProblemKind::Unavailable, detail).into_response()
    })
}

/// By name when it is known: behind a proxy all callers have one address.
async fn caller_key(app: &App, headers: &HeaderMap, extensions: &Extensions) -> CallerKey {
    let name = match extensions.get() {
        Some(ProxyIdentity(caller)) => Some(caller.name.clone()),
        None => app.access.known(headers).await,
    };
    let address = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string());
    CallerKey(name.or(address).unwrap_or_default().into())
}

/// True for paths that are never refused.
pub(super) fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/livez" | "/readyz")
}

async fn measured(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let response = next.run(request).await;
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    metrics::http(route, response.status().as_u16(), began.elapsed());
    response
}
