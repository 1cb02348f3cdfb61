//! The dashboard behind a proxy: below a path, and with users that the proxy authenticates.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
};

use axum::{
    body::Body,
    http::{HeaderName, Request},
};
use http_body_util::BodyExt;
use kube::{Api, api::PostParams};
use serde_json::json;
use sync_operator::{
    api::GROUP,
    http::{HttpSettings, Proxies, ReadAccess, Sessions},
};

use super::{
    Sidecar,
    auth::administrator,
    browser::Chromium,
    dashboard::{Browser, fill, pages},
    settings,
};
use crate::support::{TestEnv, apply_schedule, eventually, free_port, variable, wait_for_events};

const PROXY: [u8; 4] = [10, 1, 2, 3];

async fn sidecar(env: &TestEnv, prefix: Option<&str>) -> Sidecar {
    let [user, groups] = ["x-forwarded-user", "x-forwarded-groups"].map(HeaderName::from_static);
    let proxies = Proxies::new(&["10.1.0.0/16".parse().unwrap()], user, groups);
    let dashboard = Some(Sessions::new(None, false).unwrap());
    let prefix = prefix.map(|prefix| prefix.parse().unwrap());
    let settings = settings(Some(ReadAccess::Open), 1000.try_into().unwrap());
    Sidecar::with(env, HttpSettings { dashboard, proxies: Some(proxies), prefix, ..settings }).await
}

/// Gives a user or a group rights in the namespace of the test.
async fn allow(env: &TestEnv, kind: &str, subject: &str, verbs: &[&str]) {
    let create = PostParams::default();
    let rules = json!([{"apiGroups": [GROUP], "resources": ["syncjobs", "syncschedules"], "verbs": verbs}]);
    let role = json!({"metadata": {"name": subject}, "rules": rules});
    let roles: Api<k8s_openapi::api::rbac::v1::Role> = Api::namespaced(env.client.clone(), &env.name);
    roles.create(&create, &serde_json::from_value(role).unwrap()).await.unwrap();
    let binding = json!({
        "metadata": {"name": subject},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": subject},
        "subjects": [{"kind": kind, "name": subject, "apiGroup": "rbac.authorization.k8s.io"}],
    });
    let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> = Api::namespaced(env.client.clone(), &env.name);
    bindings.create(&create, &serde_json::from_value(binding).unwrap()).await.unwrap();
}

/// Sends a request of a browser through a proxy. Returns the code, and the page or the location of a redirect.
async fn send(sidecar: &Sidecar, peer: [u8; 4], method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(path).header("accept", "text/html");
    request = request.header("host", "sync.example").header("content-type", "application/x-www-form-urlencoded");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (head, body) = sidecar.send_from(peer, request.body(Body::empty()).unwrap()).await.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let location = head.headers.get("location").map(|location| location.to_str().unwrap().to_owned());
    (head.status.as_u16(), location.unwrap_or(text))
}

#[tokio::test]
async fn a_user_of_the_proxy_has_the_rights_of_kubernetes() {
    let env = TestEnv::new().await;
    let sidecar = sidecar(&env, None).await;
    apply_schedule(&env, "users", json!({"suspended": true})).await;
    allow(&env, "User", "alice@example.com", &["list"]).await;
    allow(&env, "Group", "team-a", &["list", "patch"]).await;
    let page = format!("/ui/schedules/{}/users", env.name);
    let resume = format!("{page}/resume");
    let alice = ("x-forwarded-user", "alice@example.com");
    let team = ("x-forwarded-groups", "others,team-a");
    let form = ("sec-fetch-site", "same-origin");
    eventually("the sidecar has seen the schedule", async || {
        (send(&sidecar, PROXY, "GET", &page, &[alice]).await.0 == 200).then_some(())
    })
    .await;

    let (_, seen) = send(&sidecar, PROXY, "GET", &page, &[alice]).await;
    assert!(seen.contains("alice@example.com") && !seen.contains("Log out") && !seen.contains(&resume), "{seen}");
    assert_eq!(send(&sidecar, PROXY, "POST", &resume, &[alice, form]).await.0, 403);
    assert_eq!(send(&sidecar, PROXY, "GET", &page, &[("x-forwarded-user", "bob")]).await.0, 403);
    assert_eq!(
        send(&sidecar, PROXY, "GET", "/ui/login", &[alice]).await,
        (303, "/".to_owned()),
        "nothing to log in to"
    );

    let (_, seen) = send(&sidecar, PROXY, "GET", &page, &[alice, team]).await;
    assert!(seen.contains(&resume), "{seen}");
    for other in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")] {
        assert_eq!(send(&sidecar, PROXY, "POST", &resume, &[alice, team, other]).await.0, 403, "{other:?}");
    }
    assert!(env.schedules().get("users").await.unwrap().spec.suspended);
    assert_eq!(send(&sidecar, PROXY, "POST", &resume, &[alice, team, form]).await.0, 303);
    assert!(!env.schedules().get("users").await.unwrap().spec.suspended);
    wait_for_events(&env, "users", &["ResumedByCall"]).await;
}

#[tokio::test]
async fn users_named_by_other_clients_are_refused() {
    let env = TestEnv::new().await;
    let sidecar = sidecar(&env, None).await;
    allow(&env, "User", "alice", &["*"]).await;
    let alice = [("x-forwarded-user", "alice"), ("x-forwarded-groups", "system:masters")];
    for peer in [[10, 2, 0, 1], [127, 0, 0, 1]] {
        let (code, location) = send(&sidecar, peer, "GET", "/ui/runs", &alice).await;
        assert_eq!((code, location.as_str()), (303, "/ui/login?next=%2Fui%2Fruns"), "{peer:?}");
        let forwarded = [("x-forwarded-for", "10.1.2.3"), alice[0]];
        assert_eq!(send(&sidecar, peer, "GET", "/ui/runs", &forwarded).await.0, 303, "a forwarded address");
    }
    // Reserved users and groups are refused, in case that a proxy forwards headers of a client.
    for headers in [&alice[..], &[("x-forwarded-user", "system:admin")]] {
        let (code, page) = send(&sidecar, PROXY, "GET", "/ui/runs", headers).await;
        assert!(code == 403 && page.contains("reserved for Kubernetes"), "{page}");
    }
    let twice = [("x-forwarded-user", "alice"), ("x-forwarded-user", "bob")];
    assert_eq!(send(&sidecar, PROXY, "GET", "/ui/runs", &twice).await.0, 400);
    // The calls do not check the origin of a form, so they accept tokens only.
    assert_eq!(send(&sidecar, PROXY, "POST", "/jobs/pause", &alice[..1]).await.0, 401);
}

#[tokio::test]
async fn links_below_a_path_have_the_path() {
    let env = TestEnv::new().await;
    let sidecar = sidecar(&env, Some("/sync")).await;
    let token = administrator(&env).await;
    fill(&env, &sidecar).await;
    let browser = Browser::new(&sidecar);
    let answer = browser.get("/sync/ui/runs?phase=Failed").await;
    assert_eq!(answer.location(), "/sync/ui/login?next=%2Fui%2Fruns%3Fphase%3DFailed");
    let login = format!("token={token}&next=%2Fui%2Fruns%3Fphase%3DFailed");
    let answer = browser.press("/sync/ui/login", &login).await;
    assert_eq!(answer.location(), "/sync/ui/runs?phase=Failed");
    assert!(answer.headers["set-cookie"].to_str().unwrap().contains("; Path=/sync; "));
    let browser = Browser { cookie: Some(answer.cookie()), ..browser };
    for path in pages(&env) {
        // A proxy may remove the path.
        for path in [format!("/sync{path}"), path] {
            let page = browser.get(&path).await;
            assert_eq!(page.code, 200, "{path}");
            // Values of form fields are no links.
            let page = page.text.replace("value=\"/", "");
            let addresses: Vec<_> = page.split("=\"/").skip(1).collect();
            assert!(addresses.len() > 5 && addresses.iter().all(|address| address.starts_with("sync/")), "{page}");
        }
    }
    for next in ["//evil.example", "/%5Cevil.example", "https://evil.example"] {
        let answer = browser.press("/sync/ui/login", &format!("token={token}&next={next}")).await;
        assert_eq!(answer.location(), "/sync/", "{next}");
    }
    assert_eq!(browser.get("/sync//evil.example").await.code, 404);
    let answer = browser.press("/sync/ui/logout", "").await;
    assert_eq!(answer.location(), "/sync/ui/login");
    assert!(answer.headers["set-cookie"].to_str().unwrap().contains("; Path=/sync; Max-Age=0"));
    let document = sidecar.get("/sync/openapi.json").await.body;
    assert_eq!(document["servers"], json!([{"url": "/sync"}]));
}

/// The nginx of Debian with TLS. It serves the dashboard below a path, and sets a user on one of its ports.
struct Nginx {
    process: Child,
    folder: String,
}

impl Nginx {
    fn start(env: &TestEnv, tokens: u16, users: u16, to: u16) -> Self {
        let folder = format!("{}/{}", env!("CARGO_TARGET_TMPDIR"), env.name);
        fs::create_dir_all(&folder).unwrap();
        let subject = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"];
        let mut certificate = Command::new("openssl");
        certificate.args(subject).args(["-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"]);
        assert!(certificate.current_dir(&folder).output().unwrap().status.success());
        let server = |port: u16, user: &str| {
            format!(
                "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem;
                   location /sync {{ proxy_pass http://127.0.0.1:{to}; proxy_http_version 1.1;
                     proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;
                     proxy_set_header X-Forwarded-User '{user}'; proxy_set_header X-Forwarded-Groups ''; }}
                   location / {{ return 418; }} }}"
            )
        };
        let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path tmp;"));
        let configuration = format!(
            "daemon off; pid nginx.pid; error_log stderr; events {{}}
             http {{ access_log off; {} {} {} }}",
            places.concat(),
            server(tokens, ""),
            server(users, "alice"),
        );
        fs::write(format!("{folder}/nginx.conf"), configuration).unwrap();
        let program = variable("NGINX");
        assert!(Path::new(&program).exists(), "nginx is not installed: run tests/cluster/install.sh nginx");
        let mut command = Command::new(program);
        command.args(["-p", &folder, "-c", "nginx.conf", "-e", "stderr"]);
        Self { process: command.spawn().unwrap(), folder }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        Command::new("kill").arg(self.process.id().to_string()).status().ok();
        self.process.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

#[tokio::test]
async fn a_user_works_below_a_path_of_a_proxy() {
    let env = TestEnv::new().await;
    env.seed(30_000, 3).await;
    let slow = json!({"spec": {"batchSize": 1, "parallelism": 1}});
    apply_schedule(&env, "users", json!({"schedule": "0 3 * * *", "jobTemplate": slow})).await;
    allow(&env, "User", "alice", &["list"]).await;
    let [port, tokens, users] = [free_port(), free_port(), free_port()];
    let arguments =
        ["--http-path-prefix", "/sync", "--trusted-proxies", "127.0.0.0/8", "--http-port", &port.to_string()];
    let _operator = env.operator("all", &arguments);
    let _nginx = Nginx::start(&env, tokens, users, port);
    let token = administrator(&env).await;
    let browser = Chromium::start().await;
    let site = format!("https://localhost:{tokens}/sync");
    eventually("the operator serves", async || {
        reqwest::get(format!("http://127.0.0.1:{port}/sync/ui/login")).await.ok()
    })
    .await;

    browser.open(&format!("{site}/ui/schedules?text=user")).await;
    browser.shows("h1", "Log in").await;
    browser.type_into("#token", &token).await;
    browser.click("main button").await;
    browser.shows("h1", "Schedules").await;
    assert_eq!(browser.path().await, "/sync/ui/schedules?text=user");
    browser.click("button[aria-label='Run full: users']").await;
    browser.shows("#phase", "Running").await;
    browser.shows("#live", "live").await;
    browser.script("window.same = true").await;
    let seen = browser.text("#processed").await;
    eventually("progress moves", async || (browser.text("#processed").await != seen).then_some(())).await;
    assert_eq!(browser.script("return window.same").await, json!(true));
    browser.click("#cancel summary").await;
    browser.click("form[action$='/cancel'] button").await;
    browser.shows("#phase", "Cancelled").await;
    browser.open(&format!("{site}/ui/runs")).await;
    browser.type_into("#text", "nothing").await;
    browser.shows("main", "No runs match.").await;
    assert!(browser.path().await.starts_with("/sync/ui/runs?text=nothing"), "{}", browser.path().await);
    browser.click(".brand").await;
    browser.shows("h1", "Overview").await;
    assert_eq!(browser.path().await, "/sync/");
    browser.click(".who form button").await;
    browser.shows("h1", "Log in").await;
    assert_eq!(browser.path().await, "/sync/ui/login");

    // A user that the proxy authenticates needs no login, and has the rights of Kubernetes.
    browser.open(&format!("https://localhost:{users}/sync")).await;
    browser.shows("h1", "Overview").await;
    browser.shows(".user", "alice").await;
    browser.open(&format!("https://localhost:{users}/sync/ui/schedules/{}/users", env.name)).await;
    browser.shows("h1", "users").await;
    assert_eq!(browser.script("return document.querySelectorAll('form').length").await, json!(0));
    assert_eq!(browser.complaints().await, [""; 0]);
}
