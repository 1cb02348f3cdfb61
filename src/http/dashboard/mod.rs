//! The dashboard: pages for the calls. Each page uses the functions and the rights of a call, for the user who is
//! logged in. This module adds the login and the rendering.

mod actions;
mod assets;
mod bulk;
mod edit;
mod failures;
mod format;
mod hour;
mod live_updates;
mod login;
mod logs;
mod object_events;
mod overview;
mod problem_pages;
mod proxy;
mod run;
mod runs;
mod schedules;
mod session;
mod sparkline;
#[cfg(test)]
mod speed;
mod timeline;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use askama::Template;
use axum::{
    Form, Router,
    extract::{ConnectInfo, FromRequest, FromRequestParts, Query, Request, State},
    http::{HeaderValue, Method, StatusCode, Uri, header::AUTHORIZATION, request::Parts},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::de::DeserializeOwned;

use super::{
    App,
    auth::{Caller, ProxyIdentity, Right},
    extract,
    job_view::Job,
    nowhere,
    objects::Objects,
    problem::{Problem, ProblemKind},
};
use format::Moment;
pub(super) use live_updates::LiveUpdates;
use live_updates::UpdateId;
pub use logs::{LogsUrl, LogsUrlError};
pub(super) use object_events::EventCache;
pub(super) use problem_pages::{ProblemPages, layer as problem_pages};
use problem_pages::{is_ours, wants_html};
pub use proxy::Proxies;
use session::Way;
pub use session::{Sessions, WeakSecret};

/// Returns the routes, inside the limits of the calls, and starts to collect changes for open pages.
pub(super) fn routes(app: &App) -> Router<App> {
    let (live_updates, objects, stop) = (Arc::clone(&app.live_updates), app.objects.clone(), app.stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(live_updates.run(&objects)).await });
    Router::new()
        .route("/", get(overview::show))
        .route("/ui/schedules", get(schedules::list))
        .route("/ui/schedules/{namespace}/{name}", get(schedules::show))
        .route("/ui/schedules/{namespace}/{name}/edit", get(edit::show).post(edit::save))
        .route("/ui/schedules/{namespace}/{name}/{action}", post(actions::on_schedule))
        .route("/ui/runs", get(runs::list))
        .route("/ui/runs/{namespace}/{name}", get(run::show))
        .route("/ui/runs/{namespace}/{name}/failures.csv", get(failures::download))
        .route("/ui/runs/{namespace}/{name}/approve", post(actions::approve))
        .route("/ui/runs/{namespace}/{name}/{action}", post(actions::on_run))
        .route("/ui/bulk", post(bulk::ask))
        .route("/ui/bulk/{action}", post(bulk::carry_out))
        .route("/ui/events", get(live_updates::events))
        .route("/ui/login", get(login::show).post(login::login))
        .route("/ui/logout", post(login::logout))
        .merge(static_files())
}

/// Returns the route of the files that pages need.
pub(super) fn static_files() -> Router<App> {
    Router::new().route("/ui/static/{file}", get(assets::serve))
}

/// Adds the login of the dashboard around the limits, which identify callers by their token.
pub(super) fn layer(router: Router, sessions: Sessions, proxies: Option<Proxies>) -> Router {
    router.layer(middleware::from_fn_with_state(Authenticator { sessions, proxies }, authenticate))
}

/// Authenticator of requests to the dashboard.
#[derive(Clone)]
struct Authenticator {
    sessions: Sessions,
    proxies: Option<Proxies>,
}

impl Authenticator {
    /// Adds the identity to a request: the one that a proxy sets, or else the one of the session. The request may be
    /// anonymous.
    async fn admit(&self, mut request: Request, next: Next) -> Response {
        let way = self.sessions.way(&request);
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let named = self.proxies.as_ref().map(|proxies| proxies.caller(peer, request.headers()));
        match named.transpose() {
            Ok(Some(Some(caller))) => {
                request.extensions_mut().insert(ProxyIdentity(caller));
            }
            Ok(_) => self.apply_session(&mut request, way),
            Err(problem) => return problem.into_response(),
        }
        request.extensions_mut().insert(way);
        request.extensions_mut().insert(self.sessions.clone());
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if !reads && !session::is_same_origin(request.headers()) {
            let detail = "the form was not sent by a page of this dashboard: open the page again; a proxy must forward Host and Origin";
            return Problem::new(ProblemKind::Forbidden, detail).into_response();
        }
        next.run(request).await
    }

    fn apply_session(&self, request: &mut Request, way: Way) {
        let token = self.sessions.token(request.headers(), way, Timestamp::now());
        let bearer = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        if let Some(mut bearer) = bearer
            && !request.headers().contains_key(AUTHORIZATION)
        {
            bearer.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, bearer);
        }
    }
}

/// Authenticates users, and refuses forms of other sites.
async fn authenticate(State(authenticator): State<Authenticator>, request: Request, next: Next) -> Response {
    if is_ours(&request) { authenticator.admit(request, next).await } else { next.run(request).await }
}

/// Frame around each page.
struct Frame {
    /// Name of the user. `None` where no login is required.
    user: Option<String>,
    /// True when users have to log in.
    locked: bool,
    /// True when a proxy logs users in and out.
    is_proxied: bool,
    section: &'static str,
    /// Address of the stream of updates. `None`: the page has no updates.
    events: Option<String>,
    /// Path of the page.
    path: String,
}

/// A page.
fn page(template: &impl Template) -> Result<Response, Problem> {
    let text = template.render().map_err(|error| {
        tracing::error!(%error, "a page could not be rendered");
        Problem::new(ProblemKind::Internal, "the page could not be rendered")
    })?;
    Ok((StatusCode::OK, Html(text)).into_response())
}

/// A request of a browser. For programs there is no page.
struct FromBrowser;

impl FromRequestParts<App> for FromBrowser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        if wants_html(&parts.headers) { Ok(Self) } else { Err(nowhere(&parts.uri)) }
    }
}

/// User of a page.
struct Visitor {
    caller: Arc<Caller>,
    path: String,
    locked: bool,
    is_proxied: bool,
    /// Update that the page contains.
    update_id: UpdateId,
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let is_proxied = parts.extensions.get::<ProxyIdentity>().is_some();
        let (locked, update_id) = (app.access.is_locked(), app.live_updates.update_id());
        Ok(Self { caller: extract::caller(parts, app).await?, path, locked, is_proxied, update_id })
    }
}

impl Visitor {
    /// Namespaces in which a visitor may list the objects of a kind: all of them, or some. A requested namespace must
    /// be among them.
    async fn scope(&self, app: &App, resource: &'static str, namespace: Option<&str>) -> Result<Scope, Problem> {
        let right = Right::new("list", resource, namespace);
        if app.access.has(&self.caller, &right).await? {
            return Ok(Scope(namespace.map(|namespace| BTreeSet::from([namespace.to_owned()]))));
        }
        let allowed = match namespace {
            Some(_) => BTreeSet::new(),
            None => app.access.among(&self.caller, &right, namespaces(app.listed()?)).await?,
        };
        if allowed.is_empty() {
            app.access.check(&self.caller, right).await?;
        }
        Ok(Scope(Some(allowed)))
    }

    /// Returns whether a visitor has all of some rights. Actions without a right are not shown.
    async fn may(&self, app: &App, rights: &[Right]) -> Result<bool, Problem> {
        for right in rights {
            // One answer for a whole list, where the right is not one on single objects.
            let everywhere = Right { name: None, ..right.clone() };
            if !app.access.has(&self.caller, &everywhere).await? && !app.access.has(&self.caller, right).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn frame(self, section: &'static str, scope: &Scope) -> Frame {
        let events = Some(scope.events(self.update_id));
        Frame { events, ..self.into_frame(section) }
    }

    fn into_frame(self, section: &'static str) -> Frame {
        let user = self.locked.then(|| self.caller.name.clone());
        let Self { locked, is_proxied, path, .. } = self;
        Frame { user, locked, is_proxied, section, events: None, path }
    }
}

fn namespaces(objects: &Objects) -> BTreeSet<String> {
    let schedules = objects.schedules.state();
    let schedules = schedules.iter().filter_map(|schedule| schedule.namespace());
    schedules.chain(objects.index().namespaces().map(str::to_owned)).collect()
}

/// Namespaces whose objects are shown. `None`: all of them.
struct Scope(Option<BTreeSet<String>>);

impl Scope {
    fn includes(&self, object: &impl ResourceExt) -> bool {
        let Some(namespaces) = &self.0 else { return true };
        object.meta().namespace.as_ref().is_some_and(|namespace| namespaces.contains(namespace))
    }

    /// Address of the stream of changes in these namespaces.
    fn events(&self, update_id: UpdateId) -> String {
        match self.0.as_ref().filter(|some| some.len() == 1).and_then(BTreeSet::first) {
            Some(only) => format!("/ui/events?namespace={only}&since={update_id}"),
            None => format!("/ui/events?since={update_id}"),
        }
    }
}

/// Parameters after the `?`. Fields that were left empty in a form do not count.
struct Filled<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Filled<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        read_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

fn read_query<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    let filled: Vec<_> = query.split('&').filter(|pair| !pair.ends_with('=')).collect();
    let unreadable = |error: String| Problem::new(ProblemKind::BadRequest, format!("the query: {error}"));
    let uri: Uri = format!("/?{}", filled.join("&")).parse().map_err(|_| unreadable("it is not text".to_owned()))?;
    Query::try_from_uri(&uri).map(|Query(query)| query).map_err(|error| unreadable(error.body_text()))
}

/// Fields of a form.
struct Sent<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Form::from_request(request, state).await {
            Ok(Form(fields)) => Ok(Self(fields)),
            Err(error) => Err(Problem::new(ProblemKind::BadRequest, format!("the form: {}", error.body_text()))),
        }
    }
}

/// A run in a list.
struct RunRow {
    job: Job,
    created: Option<Moment>,
    finished: Option<Moment>,
}

impl RunRow {
    fn new(job: Job, now: Timestamp) -> Self {
        let moment = |at: Option<Timestamp>| at.map(|at| Moment::new(at, now));
        Self { created: moment(job.created_at), finished: moment(job.finished_at), job }
    }

    /// Reason for which the run waits or ended, where it says more than the phase.
    fn reason(&self) -> Option<&str> {
        let phase = format!("{:?}", self.job.phase);
        self.job.reason.as_deref().filter(|reason| !reason.starts_with(&phase))
    }

    /// Path of the page of the run.
    fn path(&self) -> String {
        format!("/ui/runs/{}/{}", self.job.namespace, self.job.name)
    }

    fn schedule_path(&self) -> Option<String> {
        let schedule = self.job.schedule.as_ref()?;
        Some(format!("/ui/schedules/{}/{schedule}", self.job.namespace))
    }
}
