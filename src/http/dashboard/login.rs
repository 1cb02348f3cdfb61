//! Logging in with a Kubernetes token, and out.

use std::time::Duration;

use askama::Template;
use axum::{
    Extension,
    extract::{FromRequest, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header::AUTHORIZATION, header::SET_COOKIE},
    response::{IntoResponse, Redirect, Response},
};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    Filled, Frame, Sent, page,
    session::{Sessions, Way, local},
};
use crate::http::{
    App,
    auth::{AUDIENCE, ProxyIdentity},
    limits::{CallerKey, CallerPermit},
    problem::{Problem, ProblemKind},
};

/// Longest time for the form of a client without credentials to arrive.
const FORM: Duration = Duration::from_secs(10);

/// Parameters of the login page.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct LoginQuery {
    next: String,
}

/// Fields of the login form.
#[derive(Deserialize)]
pub(super) struct Credentials {
    token: String,
    #[serde(default)]
    next: String,
}

/// Login form of a client without credentials, with its permit. Few of them are read and reviewed at the same time.
pub(super) struct LoginForm(Credentials, CallerPermit);

impl FromRequest<App> for LoginForm {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let (way, caller) = (request.extensions().get::<Way>(), request.extensions().get::<CallerKey>());
        if way.is_none_or(|way| *way == Way::Open) {
            return Err(Problem::new(ProblemKind::Forbidden, "the connection would not encrypt the token: use HTTPS"));
        }
        let permit = app.limits.anonymous_form(&caller.cloned().unwrap_or_default())?;
        let form = timeout(FORM, Sent::from_request(request, app)).await;
        let late = |_| Problem::new(ProblemKind::BadRequest, format!("the form did not arrive within {FORM:?}"));
        let Sent(credentials) = form.map_err(late)??;
        Ok(Self(credentials, permit))
    }
}

#[derive(Template)]
#[template(path = "login.html")]
struct Page<'a> {
    frame: Frame,
    next: &'a str,
    audience: &'static str,
    /// True when the connection would not encrypt the token.
    open: bool,
    wrong: Option<&'a str>,
}

/// The form.
pub(super) async fn show(
    State(app): State<App>,
    Extension(way): Extension<Way>,
    is_proxied: Option<Extension<ProxyIdentity>>,
    Filled(target): Filled<LoginQuery>,
) -> Result<Response, Problem> {
    let may_log_in = app.access.is_locked() && is_proxied.is_none();
    if may_log_in { form(way, &target.next, None) } else { Ok(Redirect::to("/").into_response()) }
}

fn form(way: Way, next: &str, wrong: Option<&str>) -> Result<Response, Problem> {
    let frame =
        Frame { user: None, locked: true, is_proxied: false, section: "login", events: None, path: String::new() };
    let open = way == Way::Open;
    page(&Page { frame, next: local(next), audience: AUDIENCE, open, wrong })
}

/// Begins a session, with a new cookie each time.
pub(super) async fn login(
    State(app): State<App>,
    Extension(way): Extension<Way>,
    Extension(sessions): Extension<Sessions>,
    LoginForm(Credentials { token, next }, _permit): LoginForm,
) -> Result<Response, Problem> {
    let token = token.trim();
    let refused = |why| form(way, &next, Some(why)).map(|page| (StatusCode::UNAUTHORIZED, page).into_response());
    let Ok(bearer) = HeaderValue::try_from(format!("Bearer {token}")) else {
        return refused("This is not a token.");
    };
    match app.access.caller(&HeaderMap::from_iter([(AUTHORIZATION, bearer)])).await {
        Ok(caller) => tracing::info!(caller = caller.name, "logged in to the dashboard"),
        Err(problem) if problem.kind() == ProblemKind::Unauthenticated => {
            return refused("Kubernetes does not accept this token. It may have expired, or be for another audience.");
        }
        Err(problem) => return Err(problem),
    }
    let Some(cookie) = sessions.begin(token, way, Timestamp::now()) else {
        return refused("The token is too long for a cookie: use one of a service account.");
    };
    Ok(([(SET_COOKIE, cookie)], Redirect::to(local(&next))).into_response())
}

/// Ends the session in this browser.
pub(super) async fn logout(Extension(way): Extension<Way>, Extension(sessions): Extension<Sessions>) -> Response {
    ([(SET_COOKIE, sessions.end(way))], Redirect::to("/ui/login")).into_response()
}
