//! Pages for browsers in place of problem documents, whatever the settings of the server.

use askama::Template;
use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method,
        header::{
            ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
            X_FRAME_OPTIONS,
        },
    },
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
};

use super::Frame;
use crate::http::problem::{Problem, ProblemKind};

/// Content security policy: all content is from this host, nothing is inline, and no other page may embed one of
/// these.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// Settings of the server that pages depend on.
#[derive(Clone, Copy)]
pub(in crate::http) struct ProblemPages {
    /// False when the server has no dashboard.
    pub is_on: bool,
    /// True when users have to log in.
    pub locked: bool,
    /// True when a proxy logs users in and out.
    pub is_proxied: bool,
}

/// Adds pages and their headers around all layers, because each of them may refuse a request.
pub(in crate::http) fn layer(router: Router, pages: ProblemPages) -> Router {
    router.layer(middleware::from_fn_with_state(pages, show))
}

async fn show(State(pages): State<ProblemPages>, request: Request, next: Next) -> Response {
    if !is_ours(&request) {
        return next.run(request).await;
    }
    let (uri, is_html) = (request.uri().clone(), wants_html(request.headers()));
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = next.run(request).await;
    if is_html && let Some(problem) = response.extensions().get::<Problem>().cloned() {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let retry_after = response.headers_mut().remove(RETRY_AFTER);
        response = pages.page(&problem, reads.then_some(path));
        response.headers_mut().extend(retry_after.map(|after| (RETRY_AFTER, after)));
    }
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    // With no-referrer, browsers do not send the origin of a form either.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// True for requests to the dashboard.
pub(super) fn is_ours(request: &Request) -> bool {
    let path = request.uri().path();
    path.starts_with("/ui/") || (path == "/" && wants_html(request.headers()))
}

/// Programs ask for `*/*`, and get the answers they always got.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}

impl ProblemPages {
    /// Page of a problem. `path`: the page that the user asked for; `None` after a form.
    fn page(self, problem: &Problem, path: Option<&str>) -> Response {
        if self.is_on && problem.kind() == ProblemKind::Unauthenticated {
            let next = askama::filters::urlencode_strict(path.unwrap_or("/"));
            let next = next.map(|next| next.to_string()).unwrap_or_default();
            return Redirect::to(&format!("/ui/login?next={next}")).into_response();
        }
        let (status, title) = problem.title();
        let Self { is_on, locked, is_proxied } = self;
        // Without logins, only the name of the host is forbidden: other pages would be refused too.
        let has_links = is_on && (locked || problem.kind() != ProblemKind::Forbidden);
        let advice = advice(problem.kind(), locked);
        // The frame of a locked page has no links without a user.
        let locked = locked || !has_links;
        let frame = Frame { user: None, locked, is_proxied, section: "", events: None, path: String::new() };
        let text = if !is_on && problem.kind() == ProblemKind::NotFound {
            Off { frame }.render()
        } else {
            let reload = path.filter(|_| is_temporary(problem.kind()));
            Failure { frame, title, detail: problem.detail(), advice, reload, has_links }.render()
        };
        text.map_or_else(|_| status.into_response(), |text| (status, Html(text)).into_response())
    }
}

/// True when the same request may succeed soon.
fn is_temporary(kind: ProblemKind) -> bool {
    matches!(kind, ProblemKind::TooManyRequests | ProblemKind::Unavailable | ProblemKind::Overloaded)
}

/// Next step of a user, where the message does not name it.
fn advice(kind: ProblemKind, locked: bool) -> &'static str {
    match kind {
        kind if is_temporary(kind) => "Reload the page in a few seconds.",
        ProblemKind::Forbidden if locked => {
            "If the message names a right, an administrator of the namespace can grant it with a \
             Role. A namespace without schedules and runs has its page at /?namespace=NAME."
        }
        ProblemKind::NotFound => "The object may have been deleted. Search for it in the lists of schedules and runs.",
        ProblemKind::Conflict => "Open the page again: it shows the current state.",
        ProblemKind::BadRequest | ProblemKind::InvalidBody => "Go back and correct the value that the message names.",
        ProblemKind::Internal => "Try again. If the error remains, the log of the operator has the details.",
        _ => "",
    }
}

#[derive(Template)]
#[template(path = "failure.html")]
struct Failure<'a> {
    frame: Frame,
    title: &'static str,
    detail: &'a str,
    advice: &'static str,
    /// Path of the page, when it may be available soon.
    reload: Option<&'a str>,
    has_links: bool,
}

#[derive(Template)]
#[template(path = "off.html")]
struct Off {
    frame: Frame,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_have_a_next_step() {
        for (kind, locked, expected) in [
            (ProblemKind::Overloaded, true, "Reload the page"),
            (ProblemKind::Forbidden, true, "a Role"),
            (ProblemKind::Forbidden, false, ""),
            (ProblemKind::NotFound, true, "Search for it"),
            (ProblemKind::Conflict, true, "Open the page again"),
            (ProblemKind::InvalidBody, true, "correct the value"),
        ] {
            let advice = advice(kind, locked);
            assert!(advice.contains(expected) && advice.is_empty() == expected.is_empty(), "{kind:?}: {advice}");
        }
    }

    #[test]
    fn only_temporary_problems_offer_a_reload() {
        for kind in [ProblemKind::TooManyRequests, ProblemKind::Unavailable, ProblemKind::Overloaded] {
            assert!(is_temporary(kind), "{kind:?}");
        }
        for kind in [ProblemKind::Forbidden, ProblemKind::NotFound, ProblemKind::Internal, ProblemKind::BadRequest] {
            assert!(!is_temporary(kind), "{kind:?}");
        }
    }
}
