//! Check of the header Host, and of the origin of requests.
//!
//! A page of another site can send requests to this program, and its name can resolve to the address of this program
//! (DNS rebinding), so that it can read the answers. The header Host then has the name of the other site. Requests with
//! a valid token are answered under any name, because such a page has no token.
//!
//! Without authorization, every request would be allowed. A page must then not even send requests whose answers it
//! cannot read, and headers name its origin.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderMap, Method,
        header::{AUTHORIZATION, HOST},
        uri::Authority,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use super::{
    App,
    auth::ProxyIdentity,
    limits::is_probe,
    problem::{Problem, ProblemKind},
    sender::Sender,
};

/// Check with the names of the program.
#[derive(Clone)]
struct HostCheck {
    app: App,
    names: Arc<[String]>,
}

/// Adds the check inside the limits, because a token may have to be reviewed. Probes have no check: they report nothing
/// but the health.
pub(super) fn layer(router: Router<App>, app: &App, names: Vec<String>) -> Router<App> {
    router.layer(middleware::from_fn_with_state(HostCheck { app: app.clone(), names: names.into() }, check))
}

async fn check(State(check): State<HostCheck>, request: Request, next: Next) -> Response {
    let checked = match check.decide(&request) {
        Decision::Allowed => Ok(()),
        Decision::AllowedWithToken => check.app.access.caller(request.headers()).await.map(drop),
        Decision::Refused(detail) => Err(Problem::new(ProblemKind::Forbidden, detail)),
    };
    match checked {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Decision on a request.
enum Decision {
    Allowed,
    /// Allowed when the token is valid. A page of another site can send any text as a token.
    AllowedWithToken,
    Refused(&'static str),
}

impl HostCheck {
    fn decide(&self, request: &Request) -> Decision {
        let is_locked = self.app.access.is_locked();
        if !is_locked && is_foreign(request.method(), request.headers()) {
            return Decision::Refused("without authorization, calls of pages of other origins are refused");
        }
        let is_proxied = request.extensions().get::<ProxyIdentity>().is_some();
        // The page of a refusal needs its style sheet. Static files contain no data of the cluster.
        let path = request.uri().path();
        let is_public = is_probe(path) || path.starts_with("/ui/static/");
        if is_public || self.is_known(request) || (is_locked && is_proxied) {
            return Decision::Allowed;
        }
        if is_locked && request.headers().contains_key(AUTHORIZATION) {
            return Decision::AllowedWithToken;
        }
        Decision::Refused(
            "requests without a token need localhost, an address or a name of HTTP_HOSTS as their Host: \
             add the name to HTTP_HOSTS",
        )
    }

    /// True when the request names this program. HTTP/2 has the name in the address. Browsers always send one.
    fn is_known(&self, request: &Request) -> bool {
        let header = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
        let address = request.uri().authority().map(Authority::as_str);
        header.into_iter().chain(address).all(|host| is_known(host, &self.names))
    }
}

/// True for addresses, which no other site can have, for localhost, and for the names of the program.
fn is_known(host: &str, names: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_one_of_ours = |other: &str| name.eq_ignore_ascii_case(other);
    name.parse::<IpAddr>().is_ok() || is_one_of_ours("localhost") || names.iter().any(|other| is_one_of_ours(other))
}

/// True when a page of another origin sent the request. Links of other pages to a page of this program are allowed.
/// Programs send none of the headers.
fn is_foreign(method: &Method, headers: &HeaderMap) -> bool {
    let is_link = method == Method::GET && headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
    Sender::from_headers(headers) == Sender::OtherOrigin && !is_link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_the_given_names_are_known() {
        let names = ["sync.example.com".to_owned(), "sync-operator".to_owned()];
        for host in [
            "localhost",
            "LocalHost:4000",
            "127.0.0.1:4000",
            "10.0.0.1",
            "[::1]:4000",
            "[fe80::1]",
            "sync-operator:4000",
            "Sync.Example.com",
            "sync.example.com.:443",
        ] {
            assert!(is_known(host, &names), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:4000",
            "127.0.0.1.evil.example",
            "a@localhost@b",
            "example.com",
            "www.sync.example.com",
            "sync.example.com.evil.example",
        ] {
            assert!(!is_known(host, &names), "{host}");
        }
        assert!(!is_known("sync-operator", &[]));
    }

    #[test]
    fn requests_of_other_origins_are_known_by_their_headers() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        let host = ("host", "localhost:4000");
        let (cross, same) = (("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-origin"));
        for (method, pairs) in [
            (Method::POST, &[host][..]),
            (Method::POST, &[host, same, ("origin", "http://localhost:4000")]),
            (Method::POST, &[host, ("origin", "http://localhost:4000")]),
            (Method::GET, &[host, ("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")]),
            (Method::GET, &[host, cross, ("sec-fetch-mode", "navigate")]),
        ] {
            assert!(!is_foreign(&method, &headers(pairs)), "{method} {pairs:?}");
        }
        for (method, pairs) in [
            (Method::POST, &[host, cross, ("sec-fetch-mode", "no-cors")][..]),
            (Method::POST, &[host, cross, ("sec-fetch-mode", "navigate")]),
            (Method::POST, &[host, ("sec-fetch-site", "same-site"), ("origin", "http://localhost:4000")]),
            (Method::POST, &[host, ("origin", "http://localhost:3000")]),
            (Method::POST, &[host, ("origin", "null")]),
            (Method::POST, &[("origin", "http://localhost:4000")]),
            (Method::GET, &[host, cross, ("sec-fetch-mode", "no-cors")]),
            (Method::GET, &[host, ("origin", "https://evil.example")]),
        ] {
            assert!(is_foreign(&method, &headers(pairs)), "{method} {pairs:?}");
        }
    }
}
