//! Check of the header Host. Without authorization, calls are answered only under the names of this machine. A
//! browser on this machine may show a page of another site whose name resolves to this machine (DNS rebinding). The
//! calls of such a page come from this machine too, but with the name of the other site.

use std::net::IpAddr;

use axum::{
    Router,
    extract::Request,
    http::{header::HOST, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use super::problem::{Problem, ProblemKind};

pub(super) fn layer(router: Router) -> Router {
    router.layer(middleware::from_fn(check))
}

async fn check(request: Request, next: Next) -> Response {
    // Browsers always send the header Host.
    let host = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    // The page of the refusal needs its style sheet. Static files contain no data of the cluster.
    if host.is_none_or(is_local) || request.uri().path().starts_with("/ui/static/") {
        return next.run(request).await;
    }
    let advice = "without authorization, calls are answered at localhost or a loopback address only: open http://localhost with the same port";
    Problem::new(ProblemKind::Forbidden, advice).into_response()
}

fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
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
}
