//! Authorisation, with real tokens of real service accounts.

use std::{path::Path, process::Command};

use axum::{body::Body, http::Request};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        core::v1::ServiceAccount,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::PostParams};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};
use sync_operator::{
    api::GROUP,
    http::{AUDIENCE, ReadAccess},
};

use super::{Answer, Sidecar};
use crate::support::{TestEnv, apply_job, apply_schedule, eventually};

async fn account(env: &TestEnv, name: &str) -> ServiceAccount {
    let accounts: Api<ServiceAccount> = Api::namespaced(env.client.clone(), &env.name);
    let account = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap()
}

async fn token(env: &TestEnv, account: &str, audience: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(env.client.clone(), &env.name);
    let request: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": [audience]}})).unwrap();
    accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap().status.unwrap().token
}

fn rules(verbs: &[&str]) -> Value {
    json!([{"apiGroups": [GROUP], "resources": ["syncjobs", "syncschedules"], "verbs": verbs}])
}

/// A service account with rights in its namespace only, and its token.
pub async fn with_rights(env: &TestEnv, name: &str, verbs: &[&str]) -> String {
    account(env, name).await;
    let roles: Api<Role> = Api::namespaced(env.client.clone(), &env.name);
    let role = json!({"metadata": {"name": name}, "rules": rules(verbs)});
    roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(env.client.clone(), &env.name);
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": env.name}],
    });
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    token(env, name, AUDIENCE).await
}

/// Lets an account list events, too.
pub async fn show_events(env: &TestEnv, account: &str) {
    let name = format!("{account}-events");
    let rules = json!([{"apiGroups": [""], "resources": ["events"], "verbs": ["list"]}]);
    let role = serde_json::from_value::<Role>(json!({"metadata": {"name": name}, "rules": rules})).unwrap();
    Api::namespaced(env.client.clone(), &env.name).create(&PostParams::default(), &role).await.unwrap();
    let binding = serde_json::from_value::<RoleBinding>(json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": env.name}],
    }));
    let bindings: Api<RoleBinding> = Api::namespaced(env.client.clone(), &env.name);
    bindings.create(&PostParams::default(), &binding.unwrap()).await.unwrap();
}

/// The token of a service account with rights in all namespaces.
pub async fn administrator(env: &TestEnv) -> String {
    account(env, "admin").await;
    let name = format!("{}-admin", env.name);
    let roles: Api<ClusterRole> = Api::all(env.client.clone());
    let role = json!({"metadata": {"name": name}, "rules": rules(&["*"])});
    roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(env.client.clone());
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "admin", "namespace": env.name}],
    });
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    token(env, "admin", AUDIENCE).await
}

/// A token with the signature of the cluster, and with this expiry.
fn signed(env: &TestEnv, account: &ServiceAccount, end: i64) -> String {
    let pki = Path::new(&env.servers.kubeconfig).with_file_name("pki");
    let key = Command::new("openssl")
        .args(["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in"])
        .arg(pki.join("service-account.key"))
        .output()
        .unwrap();
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.stdout, &random).unwrap();
    let name = account.name_any();
    let claims = json!({
        "iss": "https://kubernetes.default.svc", "aud": [AUDIENCE], "iat": end - 7200, "nbf": end - 7200, "exp": end,
        "sub": format!("system:serviceaccount:{}:{name}", env.name),
        "kubernetes.io": {"namespace": env.name, "serviceaccount": {"name": name, "uid": account.uid()}},
    });
    let encode = |part: &Value| BASE64.encode(part.to_string());
    let text = format!("{}.{}", encode(&json!({"alg": "ES256", "typ": "JWT"})), encode(&claims));
    let signature = key.sign(&random, text.as_bytes()).unwrap();
    format!("{text}.{}", BASE64.encode(signature))
}

async fn post(sidecar: &Sidecar, path: &str, token: Option<&str>) -> Answer {
    let value = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = value.iter().map(|value| ("authorization", value.as_str())).collect();
    sidecar.post_with(path, Value::Null, &headers).await
}

#[tokio::test]
async fn only_valid_tokens_for_this_audience_are_accepted() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::new(&env, Some(ReadAccess::Open), 1000).await;
    let nobody = account(&env, "nobody").await;
    let soon = Timestamp::now().as_second() + 3600;
    let elsewhere = token(&env, "nobody", "https://kubernetes.default.svc").await;
    for (what, token) in [
        ("none", None),
        ("garbage", Some("garbage".to_owned())),
        ("three parts", Some("a.b.c".to_owned())),
        ("another audience", Some(elsewhere)),
        ("expired", Some(signed(&env, &nobody, soon - 7200))),
        ("tampered with", Some(signed(&env, &nobody, soon).replacen('.', ".e", 1))),
        ("too long", Some("x".repeat(20_000))),
    ] {
        let answer = post(&sidecar, "/jobs/pause", token.as_deref()).await;
        assert_eq!(answer.problem(), (401, "unauthenticated"), "{what}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(!answer.body.to_string().contains("garbage"));
    }
    // The signature of the expired token was right.
    let answer = post(&sidecar, "/jobs/pause", Some(&signed(&env, &nobody, soon))).await;
    assert_eq!(answer.problem(), (403, "forbidden"));
    assert!(answer.body["detail"].as_str().unwrap().contains("nobody may not patch syncschedules"), "{}", answer.body);
    assert_eq!(sidecar.get("/jobs").await.code, 200, "reads require no token");
}

#[tokio::test]
async fn each_call_requires_the_right_on_its_object() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::new(&env, Some(ReadAccess::Open), 1000).await;
    apply_schedule(&env, "users", json!({"suspended": true})).await;
    apply_job(&env, "run", json!({})).await;
    eventually("the sidecar has seen both", async || {
        let status = sidecar.get("/jobs/status").await.body;
        let jobs = sidecar.get("/jobs").await.body;
        (status["repeatable"].as_array()?.len() + jobs["items"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let here = format!("?namespace={}", env.name);
    let run = |action: &str| format!("/jobs/{}/run/{action}", env.name);
    let calls = [
        ("/jobs/trigger/user-sync".to_owned(), "create"),
        (format!("/jobs/trigger/user-sync{here}"), "create"),
        (format!("/jobs/pause{here}"), "patch"),
        (format!("/jobs/resume{here}"), "patch"),
        (format!("/jobs/cleanup{here}"), "delete"),
        (run("suspend"), "patch"),
        (run("resume"), "patch"),
        (run("approve"), "patch"),
        (run("retry"), "create"),
        (run("cancel"), "patch"),
    ];
    let admin = administrator(&env).await;
    let editor = with_rights(&env, "editor", &["get", "list", "watch", "create", "patch", "delete"]).await;
    let viewer = with_rights(&env, "viewer", &["get", "list", "watch"]).await;
    for verb in ["create", "patch", "delete"] {
        let token = with_rights(&env, verb, &[verb]).await;
        for (path, needed) in &calls {
            let code = post(&sidecar, path, Some(&token)).await.code.as_u16();
            assert_eq!(code == 403, verb != *needed, "{verb} {path}: {code}");
        }
    }
    for (path, _) in &calls {
        assert_eq!(post(&sidecar, path, Some(&viewer)).await.problem(), (403, "forbidden"), "{path}");
        // Retrying a run that has not failed, approving one that is not held, and cancelling one twice, are conflicts.
        for token in [&editor, &admin] {
            let code = post(&sidecar, path, Some(token)).await.code.as_u16();
            assert!([200, 202, 409].contains(&code), "{path}: {code}");
        }
    }
    // Only the administrator may do everything in all namespaces.
    for path in ["/jobs/pause", "/jobs/resume", "/jobs/cleanup"] {
        assert_eq!(post(&sidecar, path, Some(&editor)).await.problem(), (403, "forbidden"), "{path}");
        assert_eq!(post(&sidecar, path, Some(&admin)).await.code, 200, "{path}");
    }
}

async fn get(sidecar: &Sidecar, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sidecar.call(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn reading_needs_a_right() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::new(&env, Some(ReadAccess::default()), 1000).await;
    let viewer = format!("bearer {}", with_rights(&env, "viewer", &["list"]).await);
    let admin = format!("bearer {}", administrator(&env).await);
    let here = format!("/jobs?namespace={}", env.name);
    for path in ["/jobs", &here, "/events", "/jobs/a/b"] {
        assert_eq!(sidecar.get(path).await.problem(), (401, "unauthenticated"), "{path}");
    }
    for path in ["/jobs", "/jobs/elsewhere/b", "/events"] {
        assert_eq!(get(&sidecar, path, &[("authorization", &viewer)]).await.problem(), (403, "forbidden"), "{path}");
    }
    assert_eq!(get(&sidecar, &here, &[("authorization", &viewer)]).await.code, 200);
    assert_eq!(get(&sidecar, "/jobs", &[("authorization", &admin)]).await.code, 200);
    for path in ["/health", "/livez", "/readyz", "/openapi.json"] {
        assert_ne!(sidecar.get(path).await.code, 401, "{path} is always open");
    }
}

#[tokio::test]
async fn status_without_rights_has_only_counts() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::new(&env, Some(ReadAccess::default()), 1000).await;
    apply_schedule(&env, "users", json!({"suspended": true})).await;
    let admin = format!("bearer {}", administrator(&env).await);
    let viewer = format!("bearer {}", with_rights(&env, "viewer", &["list"]).await);
    let whole = eventually("the sidecar has seen the schedule", async || {
        let answer = get(&sidecar, "/jobs/status", &[("authorization", &admin)]).await;
        (answer.body["repeatable"].as_array()?.len() == 1).then_some(answer.body)
    })
    .await;
    assert_eq!(whole["activeJobs"], json!([]));
    let mut answers = vec![sidecar.get("/jobs/status").await];
    answers.push(get(&sidecar, "/jobs/status", &[("authorization", &viewer)]).await);
    for answer in answers {
        assert_eq!((answer.code.as_u16(), &answer.body["counts"]), (200, &whole["counts"]));
        assert_eq!((&answer.body["repeatable"], &answer.body["activeJobs"]), (&Value::Null, &Value::Null));
        assert_eq!(answer.body["paused"], true);
        let keys = |body: &Value| body.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&answer.body), keys(&whole));
    }
    let garbage = get(&sidecar, "/jobs/status", &[("authorization", "bearer garbage")]).await;
    assert_eq!(garbage.problem(), (401, "unauthenticated"));
}

#[tokio::test]
async fn a_host_of_another_site_needs_a_token() {
    let env = TestEnv::new().await;
    let admin = format!("bearer {}", administrator(&env).await);
    let foreign = ("host", "evil.example:4000");
    for reads in [ReadAccess::Open, ReadAccess::Authorized] {
        let sidecar = Sidecar::new(&env, Some(reads), 1000).await;
        for path in ["/jobs", "/jobs/status", "/events", "/openapi.json", "/", "/ui/login"] {
            let answer = get(&sidecar, path, &[foreign]).await;
            assert_eq!(answer.problem(), (403, "forbidden"), "{path}");
            assert!(answer.body["detail"].as_str().unwrap().contains("HTTP_HOSTS"), "{}", answer.body);
            // A page can send any header to its own origin.
            let answer = get(&sidecar, path, &[foreign, ("authorization", "bearer garbage")]).await;
            assert_eq!(answer.problem(), (401, "unauthenticated"), "{path}");
        }
        assert_eq!(get(&sidecar, "/jobs", &[foreign, ("authorization", &admin)]).await.code, 200);
        for host in ["localhost", "10.0.0.1:4000", "sync.example"] {
            assert_eq!(get(&sidecar, "/jobs/status", &[("host", host)]).await.code, 200, "{host}");
        }
        assert_eq!(get(&sidecar, "/livez", &[foreign]).await.code, 200);
    }
    let sidecar = Sidecar::open(&env).await;
    for headers in [&[foreign][..], &[foreign, ("authorization", &admin)]] {
        assert_eq!(get(&sidecar, "/jobs", headers).await.problem(), (403, "forbidden"), "{headers:?}");
    }
}
