//! Check of the origin of requests without authorization. Every request would be allowed, so a browser on this machine
//! must not send any for a page of another site.
//!
//! Such a page can send a form or a request whose answer it cannot read: the headers name its origin. Its name can also
//! resolve to this machine (DNS rebinding), so that it has the origin of the program: the header Host has its name.

use std::net::IpAddr;

use axum::{
    Router,
    extract::Request,
    http::{
        HeaderMap, Method,
        header::{HOST, ORIGIN},
        uri::Authority,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use super::{
    App,
    problem::{Problem, ProblemKind},
};

pub(super) fn layer(router: Router<App>) -> Router<App> {
    router.layer(middleware::from_fn(check))
}

async fn check(request: Request, next: Next) -> Response {
    // The page of the refusal needs its style sheet. Static files contain no data of the cluster.
    if request.uri().path().starts_with("/ui/static/") {
        return next.run(request).await;
    }
    let advice = if !is_local_host(&request) {
        "without authorization, calls are answered at localhost or a loopback address only: open http://localhost with the same port"
    } else if is_foreign(request.method(), request.headers()) {
        "without authorization, calls of pages of other origins are refused"
    } else {
        return next.run(request).await;
    };
    Problem::new(ProblemKind::Forbidden, advice).into_response()
}

/// True when the request names this machine. HTTP/2 has the name in the address. Browsers always send one.
fn is_local_host(request: &Request) -> bool {
    let header = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    let address = request.uri().authority().map(Authority::as_str);
    header.into_iter().chain(address).all(is_local)
}

fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// True when a page of another origin sent the request. Links of other pages to a page of this program are allowed.
/// Programs send none of the headers.
fn is_foreign(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_foreign = match (text("sec-fetch-site"), text(ORIGIN.as_str()), text(HOST.as_str())) {
        (Some(site), _, _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin), host) => origin.split_once("://").is_none_or(|(_, from)| Some(from) != host),
        (None, None, _) => false,
    };
    let is_link = method == Method::GET && text("sec-fetch-mode") == Some("navigate");
    is_foreign && !is_link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LocalHost:4000", "127.0.0.1:4000", "127.8.8.8", "[::1]:4000", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:4000",
            "10.0.0.1",
            "127.0.0.1.evil.example",
            "a@localhost@b",
            "[fe80::1]",
        ] {
            assert!(!is_local(host), "{host}");
        }
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
