//! The dashboard as browsers use it: login, visible objects, allowed actions, and protection against other sites.

mod front_page;
mod runs;

use std::{collections::BTreeSet, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use futures::StreamExt;
use http_body_util::BodyExt;
use kube::{
    ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use sync_operator::{
    api::{SCHEDULE_LABEL, SyncJob, SyncJobSpec},
    http::{HttpSettings, ReadAccess, Sessions},
};
use tokio::time::Instant;

use super::{
    Sidecar,
    auth::{administrator, with_rights},
};
use crate::support::{TestEnv, apply_job, apply_schedule, condition, eventually};

/// Markup that a page without escaping would execute.
pub const MARKUP: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>";

/// The answer that a browser gets.
pub struct Seen {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Seen {
    pub fn location(&self) -> &str {
        self.headers["location"].to_str().unwrap()
    }

    /// Name and value of the cookie that was set.
    pub fn cookie(&self) -> String {
        self.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
    }
}

/// A browser with or without a session.
pub struct Browser<'a> {
    pub sidecar: &'a Sidecar,
    pub cookie: Option<String>,
}

impl<'a> Browser<'a> {
    pub fn new(sidecar: &'a Sidecar) -> Self {
        Self { sidecar, cookie: None }
    }

    pub async fn with_token(sidecar: &'a Sidecar, token: &str) -> Self {
        let mut browser = Self::new(sidecar);
        let answer = browser.log_in(token, "/").await;
        assert_eq!((answer.code.as_u16(), answer.location()), (303, "/"), "{}", answer.text);
        browser.cookie = Some(answer.cookie());
        browser
    }

    pub async fn log_in(&self, token: &str, next: &str) -> Seen {
        self.post("/ui/login", &format!("token={token}&next={next}"), &[("sec-fetch-site", "same-origin")]).await
    }

    pub async fn get(&self, path: &str) -> Seen {
        self.send(Request::get(path), Body::empty(), &[]).await
    }

    /// Presses a button of a page.
    pub async fn press(&self, path: &str, form: &str) -> Seen {
        self.post(path, form, &[("sec-fetch-site", "same-origin")]).await
    }

    pub async fn post(&self, path: &str, form: &str, headers: &[(&str, &str)]) -> Seen {
        let request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
        self.send(request, form.to_owned().into(), headers).await
    }

    async fn send(&self, mut request: axum::http::request::Builder, body: Body, headers: &[(&str, &str)]) -> Seen {
        request = request.header("accept", "text/html,application/xhtml+xml").header("host", "localhost");
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, body) = self.sidecar.send(request.body(body).unwrap()).await.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Seen { code: head.status, headers: head.headers, text }
    }
}

/// Starts a sidecar, and creates a suspended schedule `users`, a run `open`, and a failed run `failed`.
pub async fn start_sidecar(env: &TestEnv) -> Sidecar {
    let sidecar = Sidecar::new(env, Some(ReadAccess::Open), 1000).await;
    fill(env, &sidecar).await;
    sidecar
}

pub async fn fill(env: &TestEnv, sidecar: &Sidecar) {
    apply_schedule(env, "users", json!({"suspended": true})).await;
    apply_job(env, "open", json!({})).await;
    apply_job(env, "failed", json!({})).await;
    let at = "2026-11-25T10:00:00Z";
    let condition = condition("Failed", "Test", MARKUP, at);
    let status = json!({
        "phase": "Failed", "completionTime": at, "startTime": "2026-11-25T09:00:00.000000Z", "conditions": [condition],
        "worker": MARKUP, "failures": [{"key": MARKUP, "reason": "Rejected", "message": MARKUP}],
        "attemptHistory": [{"number": 1, "start": at, "end": at, "reason": "Test", "message": MARKUP}],
    });
    env.patch_job_status("failed", status).await;
    eventually("the sidecar has seen all", async || {
        let status = sidecar.get("/jobs/status").await.body;
        let failed = sidecar.get("/jobs?phase=Failed").await.body;
        let open = sidecar.get("/jobs?phase=Pending").await.body;
        let lists = [&status["repeatable"], &failed["items"], &open["items"]];
        lists.iter().all(|list| list.as_array().is_some_and(|list| list.len() == 1)).then_some(())
    })
    .await;
}

pub fn pages(env: &TestEnv) -> [String; 6] {
    let here = &env.name;
    [
        "/".to_owned(),
        "/ui/schedules".to_owned(),
        format!("/ui/schedules/{here}/users"),
        "/ui/runs".to_owned(),
        format!("/ui/runs/{here}/open"),
        format!("/ui/runs/{here}/failed"),
    ]
}

#[tokio::test]
async fn a_user_has_the_rights_of_the_token() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let here = &env.name;
    let suspend = format!("/ui/schedules/{here}/users/suspend");
    let resume = format!("/ui/schedules/{here}/users/resume");
    let run = format!("/ui/schedules/{here}/users/run");
    let retry = format!("/ui/runs/{here}/failed/retry");
    let cancel = format!("/ui/runs/{here}/open/cancel");
    for (name, verbs) in [
        ("nobody", &["get"][..]),
        ("viewer", &["list"]),
        ("starter", &["list", "create"]),
        ("editor", &["list", "create", "patch"]),
    ] {
        let token = with_rights(&env, name, verbs).await;
        let browser = Browser::with_token(&sidecar, &token).await;
        let may = |verb: &str| verbs.contains(&verb);
        let mut text = String::new();
        for path in pages(&env) {
            let page = browser.get(&path).await;
            assert_eq!(page.code.as_u16(), if may("list") { 200 } else { 403 }, "{name} {path}: {}", page.text);
            assert!(page.text.contains(&format!("system:serviceaccount:{here}:{name}")), "{name} {path}");
            text.push_str(&page.text);
        }
        for (action, verb) in [(&resume, "patch"), (&cancel, "patch"), (&run, "create"), (&retry, "create")] {
            let shown = text.contains(&format!("action=\"{action}\""));
            assert_eq!(shown, may("list") && may(verb), "{name} {action}");
        }
        for (action, verb) in
            [(&suspend, "patch"), (&resume, "patch"), (&run, "create"), (&retry, "create"), (&cancel, "patch")]
        {
            let pressed = browser.press(action, "next=/ui/schedules").await;
            assert_eq!(pressed.code.as_u16(), if may(verb) { 303 } else { 403 }, "{name} {action}: {}", pressed.text);
        }
    }
    let schedule = env.schedules().get("users").await.unwrap();
    assert!(!schedule.spec.suspended, "the editor made the last change");
    assert!(env.jobs().get("open").await.unwrap().spec.cancelled);
    assert_eq!(
        env.jobs().list(&ListParams::default()).await.unwrap().items.len(),
        2 + 3,
        "two runs and one retry were made"
    );
}

#[tokio::test]
async fn other_namespaces_are_not_visible() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let browser = Browser::with_token(&sidecar, &with_rights(&env, "viewer", &["list"]).await).await;
    for path in
        ["/?namespace=elsewhere", "/ui/runs?namespace=elsewhere", "/ui/schedules/elsewhere/a", "/ui/runs/elsewhere/a"]
    {
        assert_eq!(browser.get(path).await.code, 403, "{path}");
    }
    assert_eq!(browser.get(&format!("/ui/runs/{}/none", env.name)).await.code, 404);
    let overview = browser.get("/").await.text;
    assert!(overview.contains("failed"), "permitted objects are shown");
    let admin = Browser::with_token(&sidecar, &administrator(&env).await).await;
    for (text, of_all) in [(overview, false), (admin.get("/").await.text, true)] {
        assert_eq!(text.contains("Waiting for a retry"), of_all, "the queue has runs of all namespaces");
    }
}

#[tokio::test]
async fn a_session_requires_a_valid_token() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let token = administrator(&env).await;
    let other = Sidecar::new(&env, Some(ReadAccess::Open), 1000).await;
    let foreign = Browser::with_token(&other, &token).await.cookie;
    for cookie in [None, foreign, Some("sync-operator=AAAA".to_owned()), Some("sync-operator=".to_owned())] {
        let browser = Browser { sidecar: &sidecar, cookie };
        for path in pages(&env) {
            let answer = browser.get(&path).await;
            let back = path.replace('/', "%2F");
            assert_eq!((answer.code.as_u16(), answer.location()), (303, &*format!("/ui/login?next={back}")), "{path}");
        }
        let pressed = browser.press(&format!("/ui/runs/{}/open/cancel", env.name), "").await;
        assert_eq!((pressed.code.as_u16(), pressed.location()), (303, "/ui/login?next=%2F"));
    }
    let browser = Browser::new(&sidecar);
    for wrong in ["garbage", "", "a%0ab", &"x".repeat(20_000)] {
        let answer = browser.log_in(wrong, "/").await;
        assert_eq!(answer.code, 401, "{wrong}");
        assert!(!answer.headers.contains_key("set-cookie") && !answer.text.contains("garbage"));
    }
    assert!(!env.jobs().get("open").await.unwrap().spec.cancelled);
}

#[tokio::test]
async fn each_login_is_a_new_session_and_a_logout_ends_it() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let token = administrator(&env).await;
    let planted = Browser { sidecar: &sidecar, cookie: Some("sync-operator=planted".to_owned()) };
    let answer = planted.log_in(&token, "/ui/runs").await;
    let first = answer.cookie();
    let set = answer.headers["set-cookie"].to_str().unwrap();
    assert!(set.contains("; Path=/; Max-Age=28800; HttpOnly; SameSite=Strict") && !set.contains("Secure"), "{set}");
    assert_ne!(first, "sync-operator=planted");
    assert_ne!(first, planted.log_in(&token, "/").await.cookie());
    assert!(!first.contains(&token) && !first.contains(token.split('.').nth(1).unwrap()));

    let browser = Browser { sidecar: &sidecar, cookie: Some(first) };
    let answer = browser.press("/ui/logout", "").await;
    assert_eq!((answer.location(), answer.cookie().as_str()), ("/ui/login", "sync-operator="));
    assert!(answer.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));

    let form = format!("token={token}");
    let own = ("sec-fetch-site", "same-origin");
    let secure = Browser::new(&sidecar).post("/ui/login", &form, &[own, ("x-forwarded-proto", "https")]).await;
    let set = secure.headers["set-cookie"].to_str().unwrap();
    assert!(set.starts_with("__Host-sync-operator=") && set.ends_with("; Secure"), "{set}");
    let open = Browser::new(&sidecar).post("/ui/login", &form, &[own, ("x-forwarded-proto", "http")]).await;
    assert_eq!((open.code.as_u16(), open.headers.get("set-cookie")), (403, None));
}

#[tokio::test]
async fn a_session_works_only_over_the_transport_of_its_login() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let token = administrator(&env).await;
    let cookie = Browser::with_token(&sidecar, &token).await.cookie.unwrap();
    let value = cookie.split_once('=').unwrap().1;
    let sent = async |peer: [u8; 4], cookie: &str, headers: &[(&str, &str)]| {
        let mut request = Request::get("/ui/runs").header("accept", "text/html").header("cookie", cookie);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sidecar.send_from(peer, request.body(Body::empty()).unwrap()).await.status().as_u16()
    };
    let (here, elsewhere) = ([127, 0, 0, 1], [10, 0, 0, 1]);
    assert_eq!(sent(here, &cookie, &[]).await, 200);
    // A server on another port of localhost receives the cookie too. Its owner sends it from another machine.
    assert_eq!(sent(elsewhere, &cookie, &[]).await, 303);
    for name in ["sync-operator", "__Host-sync-operator"] {
        let headers = [("x-forwarded-proto", "https")];
        assert_eq!(sent(elsewhere, &format!("{name}={value}"), &headers).await, 303, "{name}");
    }
}

#[tokio::test]
async fn a_login_leads_to_pages_of_the_dashboard_only() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let token = administrator(&env).await;
    let browser = Browser::new(&sidecar);
    for (next, location) in [
        ("%2Fui%2Fruns%3Fphase%3DFailed", "/ui/runs?phase=Failed"),
        ("%2F%2Fevil.example", "/"),
        ("%2F%5Cevil.example", "/"),
        ("https%3A%2F%2Fevil.example", "/"),
        ("javascript%3Aalert(1)", "/"),
        ("%2Fui%2F%0d%0aset-cookie%3A%20a", "/"),
    ] {
        assert_eq!(browser.log_in(&token, next).await.location(), location, "{next}");
        assert!(!browser.get(&format!("/ui/login?next={next}")).await.text.contains("evil"), "{next}");
    }
}

#[tokio::test]
async fn forms_of_other_sites_are_refused() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let token = administrator(&env).await;
    let browser = Browser::with_token(&sidecar, &token).await;
    let cancel = format!("/ui/runs/{}/open/cancel", env.name);
    let resume = format!("/ui/schedules/{}/users/resume", env.name);
    let login = format!("token={token}");
    for headers in [
        &[][..],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("origin", "https://localhost")],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
    ] {
        for (path, form) in [(&*cancel, ""), (&resume, ""), ("/ui/logout", ""), ("/ui/login", &login)] {
            let answer = browser.post(path, form, headers).await;
            assert_eq!((answer.code.as_u16(), answer.headers.get("set-cookie")), (403, None), "{path} {headers:?}");
        }
    }
    assert!(!env.jobs().get("open").await.unwrap().spec.cancelled);
    assert!(env.schedules().get("users").await.unwrap().spec.suspended);
    let answer = browser.post(&cancel, "", &[("origin", "https://localhost")]).await;
    assert_eq!(answer.code, 303, "an old browser, on its own host");
    // The calls accept no sessions, so they need no such check.
    let pause = browser.post("/jobs/pause", "", &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!(pause.code, 401);
}

#[tokio::test]
async fn no_page_can_be_framed_or_run_foreign_scripts() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let browser = Browser::with_token(&sidecar, &administrator(&env).await).await;
    let style = browser.get("/").await.text;
    let style = style.split("href=\"").find(|part| part.starts_with("/ui/static/style")).unwrap();
    let style = style.split('"').next().unwrap().to_owned();
    let mut paths = pages(&env).to_vec();
    paths.extend(["/ui/login", "/ui/nothing", "/ui/static/nothing.js", &style].map(str::to_owned));
    for path in paths {
        let answer = browser.get(&path).await;
        let header = |name: &str| answer.headers[name].to_str().unwrap();
        let policy = header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(header("x-frame-options"), "DENY");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "same-origin");
        let kept = header("cache-control");
        assert_eq!(kept, if path == style { "public, max-age=31536000, immutable" } else { "no-store" }, "{path}");
        assert!(!answer.text.contains(" style=") && !answer.text.contains(" onclick="), "{path}");
    }
}

#[tokio::test]
async fn user_input_is_shown_as_text() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let browser = Browser::with_token(&sidecar, &administrator(&env).await).await;
    let quoted = "%3Cscript%3Ealert(1)%3C%2Fscript%3E%22'%3E%3Cimg%20src%3Dx%20onerror%3Dalert(2)%3E";
    let mut paths = pages(&env).to_vec();
    for path in
        ["/ui/runs?text=", "/ui/runs?schedule=", "/ui/runs?namespace=", "/ui/schedules?text=", "/ui/login?next="]
    {
        paths.push(format!("{path}{quoted}"));
    }
    paths.push(format!("/ui/runs?phase={quoted}"));
    paths.push(format!("/ui/{quoted}"));
    let mut escaped = 0;
    for path in paths {
        let Seen { headers, text: page, .. } = browser.get(&path).await;
        assert_eq!(headers["content-type"], "text/html; charset=utf-8", "{path}");
        assert!(page.contains("<!doctype html>"), "{path}: {page}");
        assert!(!page.contains("<script>") && !page.contains("<img"), "{path}: {page}");
        escaped += page.matches("&#60;script&#62;alert(1)&#60;/script&#62;&#34;&#39;&#62;").count();
    }
    // The page of the failed run has the markup in its end, worker and attempt, and in the key and message of a
    // document.
    assert!(escaped >= 8, "{escaped}");
}

#[tokio::test]
async fn api_clients_get_the_same_answers_as_without_the_dashboard() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let answer = sidecar.get("/").await;
    assert_eq!((answer.problem(), &answer.body["detail"]), ((404, "not-found"), &Value::from("there is no /")));
    for path in ["/nothing", "/jobs?limit=0"] {
        let answer = Browser::new(&sidecar).get(path).await;
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{path}");
    }
    // A sidecar without authentication has no login.
    let open = Sidecar::open(&env).await;
    let browser = Browser::new(&open);
    let page = browser.get("/").await;
    assert!(page.code == 200 && !page.text.contains("Log out"), "{}", page.text);
    assert_eq!(browser.get("/ui/login").await.location(), "/");
    let rebound = Request::get("/jobs").header("host", "evil.example").body(Body::empty()).unwrap();
    assert_eq!(open.call(rebound).await.problem(), (403, "forbidden"), "the host of another site");
    let answer = browser.press(&format!("/ui/schedules/{}/users/resume", env.name), "next=/ui/schedules").await;
    assert_eq!((answer.code.as_u16(), answer.location()), (303, "/ui/schedules"));
    let answer = browser.post(&format!("/ui/runs/{}/open/cancel", env.name), "", &[]).await;
    assert_eq!(answer.code, 403, "other sites are refused without authentication too");
}

#[tokio::test]
async fn events_require_the_right_to_list_runs() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::new(&env, Some(ReadAccess::Authorized), 1000).await;
    let here = format!("/ui/events?namespace={}", env.name);
    let listen = async |browser: &Browser<'_>, path: &str| {
        let mut request = Request::get(path).header("accept", "text/event-stream");
        if let Some(cookie) = &browser.cookie {
            request = request.header("cookie", cookie);
        }
        sidecar.send(request.body(Body::empty()).unwrap()).await.status().as_u16()
    };
    let viewer = Browser::with_token(&sidecar, &with_rights(&env, "viewer", &["list"]).await).await;
    let nobody = Browser::with_token(&sidecar, &with_rights(&env, "nobody", &["get"]).await).await;
    assert_eq!(listen(&Browser::new(&sidecar), &here).await, 401);
    assert_eq!(listen(&nobody, &here).await, 403);
    assert_eq!((listen(&viewer, &here).await, listen(&viewer, "/ui/events").await), (200, 403));
}

#[tokio::test]
async fn sidecars_with_the_same_secret_accept_the_same_sessions() {
    let env = TestEnv::new().await;
    let token = administrator(&env).await;
    let sidecar = async |secret: &[u8]| {
        let sessions = Sessions::new(Some(secret), false).unwrap();
        Sidecar::with(&env, settings(Some(sessions))).await
    };
    let (one, same, other) = (sidecar(&[1; 32]).await, sidecar(&[1; 32]).await, sidecar(&[2; 32]).await);
    let Browser { cookie, .. } = Browser::with_token(&one, &token).await;
    let code = async |sidecar| Browser { sidecar, cookie: cookie.clone() }.get("/").await.code.as_u16();
    assert_eq!((code(&one).await, code(&same).await, code(&other).await), (200, 200, 303));
}

#[tokio::test]
async fn sidecars_share_their_sessions_by_redis() {
    let env = TestEnv::new().await;
    let token = administrator(&env).await;
    let start = async || {
        let sessions = Sessions::new(None, false).unwrap();
        let share = tokio::spawn(sessions.clone().share(env.queue()));
        (Sidecar::with(&env, settings(Some(sessions))).await, share)
    };
    let ((one, first), (other, second)) = (start().await, start().await);
    eventually("the other sidecar accepts a session", async || {
        let Browser { cookie, .. } = Browser::with_token(&one, &token).await;
        let code = Browser { sidecar: &other, cookie }.get("/").await.code;
        (code == 200).then_some(())
    })
    .await;
    first.abort();
    second.abort();
}

#[tokio::test]
async fn the_dashboard_can_be_left_out() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::with(&env, settings(None)).await;
    let browser = Browser::new(&sidecar);
    for path in ["/", "/ui/login", "/ui/runs", "/ui/events"] {
        assert_eq!(browser.get(path).await.code, 404, "{path}");
    }
    assert_eq!(browser.get("/livez").await.code, 200);
}

#[tokio::test]
async fn a_secret_that_is_too_short_is_refused_at_the_start() {
    let env = TestEnv::new().await;
    let file = std::env::temp_dir().join(&env.name);
    std::fs::write(&file, "short").unwrap();
    let mut operator = env.operator("api", &["--dashboard-key-file", file.to_str().unwrap()]);
    eventually("the operator ends", async || (!operator.is_running()).then_some(())).await;
    assert!(operator.log().contains("DASHBOARD_KEY_FILE: the secret of sessions must have at least 32 bytes"));
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn older_runs_are_on_the_next_page_with_the_same_filters() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    for i in 0..55 {
        apply_job(&env, &format!("run-{i:02}"), json!({})).await;
    }
    eventually("the sidecar has seen all", async || {
        let runs = sidecar.get("/jobs").await.body;
        (runs["items"].as_array()?.len() == 55).then_some(())
    })
    .await;
    let browser = Browser::new(&sidecar);
    let runs = |text: &str| -> BTreeSet<String> {
        let links = text.split("href=\"/ui/runs/").skip(1);
        links.map(|link| link.split('"').next().unwrap().to_owned()).collect()
    };
    let first = browser.get("/ui/runs?phase=Pending&type=&text=run").await.text;
    let next =
        first.split("class=\"pages\"").nth(1).unwrap().split("href=\"").nth(1).unwrap().split('"').next().unwrap();
    let next = next.replace("&amp;", "&").replace("&#38;", "&");
    assert!(next.contains("text=run&phase=Pending&cursor="), "{next}");
    let second = browser.get(&next).await.text;
    assert_eq!((runs(&first).len(), runs(&second).len()), (50, 5));
    assert!(runs(&first).is_disjoint(&runs(&second)) && !second.contains("Older runs"));
}

fn settings(dashboard: Option<Sessions>) -> HttpSettings {
    let many = 1000.try_into().unwrap();
    HttpSettings { dashboard, ..super::settings(Some(ReadAccess::Open), many) }
}

/// Times and sizes with many objects. docs/contributing/testing.md says how to run it.
#[tokio::test]
#[ignore = "takes minutes"]
async fn speed() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let named = |i: usize| format!("schedule-{i:05}");
    let schedules = futures::stream::iter(0..10_000).for_each_concurrent(32, async |i| {
        apply_schedule(&env, &named(i), json!({"suspended": true})).await;
    });
    schedules.await;
    let jobs = futures::stream::iter(0..20_000).for_each_concurrent(32, async |i| {
        let mut job = SyncJob::new(&format!("job-{i:05}"), SyncJobSpec::default());
        job.labels_mut().insert(SCHEDULE_LABEL.to_owned(), named(i / 2));
        env.jobs().create(&PostParams::default(), &job).await.unwrap();
    });
    jobs.await;
    eventually("the sidecar has seen all", async || {
        let last = sidecar.get("/jobs?text=job-19999").await.body;
        let schedules = sidecar.get("/jobs/status").await.body;
        (last["items"].as_array()?.len() + schedules["repeatable"].as_array()?.len() == 10_001).then_some(())
    })
    .await;
    let browser = Browser::new(&sidecar);
    let page = browser.get("/").await.text;
    let mut assets = 0;
    for asset in page.split('"').filter(|part| part.starts_with("/ui/static/")) {
        assets += browser.get(asset).await.text.len();
    }
    for path in ["/", "/ui/schedules", "/ui/runs"] {
        let mut times = Vec::new();
        let mut size = 0;
        for _ in 0..50 {
            let began = Instant::now();
            size = browser.get(path).await.text.len();
            times.push(began.elapsed());
        }
        times.sort();
        println!("{path}: median {:?}, slowest {:?}, {size} bytes and {assets} of assets", times[25], times[49]);
        assert!(size + assets < 100_000, "{path}");
        assert!(times[25] < Duration::from_millis(50), "{path}");
    }
}
