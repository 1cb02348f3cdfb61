//! `/` in a browser, for each setting of the server.

use super::*;

/// A server: who may read, whether it has a dashboard, and its path.
type Server = (Option<ReadAccess>, bool, Option<&'static str>);

/// A browser: its address, and the host in the address of the page.
type Client = ([u8; 4], &'static str);

async fn sidecar(env: &TestEnv, (reads, is_on, prefix): Server) -> Sidecar {
    let dashboard = is_on.then(|| Sessions::new(None, false).unwrap());
    let prefix = prefix.map(|prefix| prefix.parse().unwrap());
    let settings = super::super::settings(reads, 1000.try_into().unwrap());
    Sidecar::with(env, HttpSettings { dashboard, prefix, ..settings }).await
}

async fn visit(sidecar: &Sidecar, (peer, host): Client, path: &str) -> Seen {
    let request = Request::get(path).header("accept", "text/html").header("host", host);
    let (head, body) = sidecar.send_from(peer, request.body(Body::empty()).unwrap()).await.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Seen { code: head.status, headers: head.headers, text }
}

/// Visits a page, and the page that it redirects to.
async fn follow(sidecar: &Sidecar, client: Client, path: &str) -> Seen {
    let seen = visit(sidecar, client, path).await;
    if seen.code.is_redirection() { visit(sidecar, client, seen.location()).await } else { seen }
}

#[tokio::test]
async fn a_browser_at_the_root_gets_a_page_by_setting() {
    let env = TestEnv::new().await;
    let (open, closed) = (Some(ReadAccess::Open), Some(ReadAccess::Authorized));
    let (here, there): (Client, Client) = (([127, 0, 0, 1], "localhost"), ([10, 1, 2, 3], "10.4.5.6:4000"));
    let rebound: Client = (here.0, "evil.example");
    let unknown = "add the name to HTTP_HOSTS";
    let (login, off) = ("kubectl create token", "set <code>api.dashboard=true</code>");
    for (server, client, path, code, expected) in [
        ((open, true, None), here, "/", 200, login),
        ((closed, true, None), here, "/", 200, login),
        ((closed, true, Some("/sync")), here, "/", 200, login),
        ((closed, true, Some("/sync")), here, "/sync", 200, login),
        ((open, true, None), there, "/", 200, "kubectl port-forward"),
        ((None, true, None), here, "/", 200, "kubectl explain syncschedule.spec"),
        ((None, true, None), rebound, "/", 403, unknown),
        ((None, true, Some("/sync")), rebound, "/sync/", 403, unknown),
        ((closed, true, None), rebound, "/", 403, unknown),
        ((open, false, None), there, "/", 404, off),
        ((closed, false, None), there, "/ui/runs", 404, off),
        ((closed, false, Some("/sync")), there, "/sync/", 404, "href=\"/sync/openapi.json\""),
        ((None, false, None), here, "/", 404, off),
        ((None, false, None), rebound, "/", 403, unknown),
    ] {
        let sidecar = sidecar(&env, server).await;
        let case = format!("{server:?} {client:?} {path}");
        let seen = follow(&sidecar, client, path).await;
        assert_eq!(seen.headers["content-type"], "text/html; charset=utf-8", "{case}");
        assert!(seen.code.as_u16() == code && seen.text.contains(expected), "{case}: {} {}", seen.code, seen.text);
        assert_eq!(seen.headers["x-frame-options"], "DENY", "{case}");
        // The page has its style sheet, whatever refused the request.
        let style = seen.text.split("href=\"").find(|part| part.contains("/ui/static/style")).unwrap();
        let style = visit(&sidecar, client, style.split('"').next().unwrap()).await;
        assert_eq!(
            (style.code.as_u16(), style.headers["content-type"].as_bytes()),
            (200, &b"text/css; charset=utf-8"[..])
        );
    }
}
