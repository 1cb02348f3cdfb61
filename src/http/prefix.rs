//! Prefix of all paths, such as `/sync`, for a host that serves other services too. The handlers do not know the
//! prefix: it is removed from requests, and added to the addresses in responses.

use std::{str::FromStr, sync::Arc};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Uri,
        header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use super::problem::{Problem, ProblemKind};

/// First segments of the program's own paths. A prefix that begins with one of them would be removed where a proxy
/// has removed it already.
const OURS: [&str; 8] = ["ui", "jobs", "events", "health", "livez", "readyz", "openapi.json", "metrics"];
/// Attributes of our templates that hold an address. What users wrote has no quotes of its own in a page, so it is
/// never taken for one.
const LINKS: [&str; 5] = [" href=\"", " src=\"", " action=\"", " hx-get=\"", " data-events=\""];

/// The path, as browsers see it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(Arc<str>);

/// The text is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The prefix is not a plain path.
    #[error(
        "must be a path like /sync: it begins with /, does not end with it, and has letters, digits, -, _, . and ~"
    )]
    Unreadable,
    /// The prefix is a path of the program.
    #[error("is a path of the program itself: choose another one, such as /sync")]
    Taken,
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let mut segments = text.strip_prefix('/').ok_or(PrefixError::Unreadable)?.split('/');
        let is_plain = |segment: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
            !matches!(segment, "" | "." | "..") && segment.chars().all(plain)
        };
        if !segments.clone().all(is_plain) {
            return Err(PrefixError::Unreadable);
        }
        if segments.next().is_some_and(|first| OURS.contains(&first)) {
            return Err(PrefixError::Taken);
        }
        Ok(Self(text.into()))
    }
}

impl Prefix {
    /// The path itself.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Removes the prefix from a path. `None`: the path does not have it, because a proxy removed it or is not used.
    fn strip(&self, uri: &Uri) -> Option<Uri> {
        let path = match uri.path().strip_prefix(&*self.0)? {
            "" => "/",
            rest if rest.starts_with('/') => rest,
            _ => return None,
        };
        let path = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(path.parse().ok()?);
        Uri::from_parts(parts).ok()
    }

    fn before_links(&self, page: &str) -> String {
        LINKS
            .iter()
            .fold(page.to_owned(), |page, link| page.replace(&format!("{link}/"), &format!("{link}{}/", self.0)))
    }

    fn before_location(&self, headers: &mut HeaderMap) {
        let path = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let path = path.filter(|path| path.starts_with('/')).map(|path| format!("{}{path}", self.0));
        if let Some(location) = path.and_then(|path| HeaderValue::try_from(path).ok()) {
            headers.insert(LOCATION, location);
        }
    }
}

/// Adds the prefix to all routes.
pub(super) fn layer(router: Router, prefix: Prefix) -> Router {
    // A layer of the router itself would come after its choice of a route.
    Router::new().fallback_service(router).layer(middleware::from_fn_with_state(prefix, below))
}

async fn below(State(prefix): State<Prefix>, mut request: Request, next: Next) -> Response {
    if let Some(uri) = prefix.strip(request.uri()) {
        *request.uri_mut() = uri;
    }
    let mut response = next.run(request).await;
    prefix.before_location(response.headers_mut());
    if !is_page(response.headers()) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let page = to_bytes(body, usize::MAX).await.ok().and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
    let Some(page) = page else {
        return Problem::new(ProblemKind::Internal, "the page could not be rendered").into_response();
    };
    head.headers.remove(CONTENT_LENGTH);
    Response::from_parts(head, Body::from(prefix.before_links(&page)))
}

fn is_page(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix() -> Prefix {
        "/sync".parse().unwrap()
    }

    #[test]
    fn a_prefix_is_a_plain_path_that_is_not_ours() {
        for text in ["/sync", "/tools/sync-2.0/a_b~c", "/uis"] {
            assert_eq!(text.parse::<Prefix>().unwrap().as_str(), text);
        }
        for text in
            ["", "/", "sync", "/sync/", "//sync", "/a//b", "/a/../b", "/.", "/a b", "/a\"", "/ä", "/%2e", "/a;b"]
        {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Unreadable), "{text}");
        }
        for text in ["/ui", "/jobs/sync", "/health"] {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Taken), "{text}");
        }
    }

    #[test]
    fn the_prefix_is_taken_off_where_it_stands() {
        for (uri, stripped) in [
            ("/sync", Some("/")),
            ("/sync?a=/sync", Some("/?a=/sync")),
            ("/sync/", Some("/")),
            ("/sync/ui/runs?phase=Failed", Some("/ui/runs?phase=Failed")),
            ("http://a.example/sync/jobs", Some("http://a.example/jobs")),
            ("/sync/sync", Some("/sync")),
            ("/synchro", None),
            ("/ui/runs", None),
            ("/", None),
        ] {
            let found = prefix().strip(&uri.parse().unwrap());
            assert_eq!(found.map(|uri| uri.to_string()).as_deref(), stripped, "{uri}");
        }
    }

    #[test]
    fn links_of_a_page_get_the_prefix_and_what_users_wrote_stays() {
        let page = r#"<a class="a" href="/">x</a><form action="/ui/a"><input value="/ui/b"> href=&#34;/c&#34; <a href="https://a/">"#;
        let links = prefix().before_links(page);
        assert_eq!(
            links,
            r#"<a class="a" href="/sync/">x</a><form action="/sync/ui/a"><input value="/ui/b"> href=&#34;/c&#34; <a href="https://a/">"#
        );
    }

    #[test]
    fn a_location_gets_the_prefix_where_it_is_a_path() {
        for (location, changed) in [("/ui/runs", "/sync/ui/runs"), ("https://a.example/", "https://a.example/")] {
            let mut headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            prefix().before_location(&mut headers);
            assert_eq!(headers[LOCATION], changed);
        }
    }
}
