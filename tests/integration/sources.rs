//! Runs that fetch the content of documents from a GraphQL server.

mod rates;
mod speed;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bson::{Bson, DateTime, Document, doc};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use mongodb::{IndexModel, options::IndexOptions};
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, SyncSchedule, syncjob::SyncJobStatus},
    domain::job::is_complete,
};

use crate::{
    certificates::Authority,
    support::{
        ALLOWED, TestEnv, apply_job, confirmed, counts, ended, eventually, failures, finished, run, secret, source,
    },
    upstream::{Instead, PRIVATE, Peculiar, Upstream},
};

const LIST: &str = "query ($ids: [ID!]!) { users(ids: $ids) { nodes { id name createdAt } } }";
const ONE: &str = "query ($id: UserID!) { user(id: $id) { name createdAt } }";

/// A spec of a full run over the users, with one request for each batch.
fn spec(upstream: &Upstream) -> Value {
    json!({
        "syncType": "Full",
        "batchSize": 100,
        "backoff": {"initial": "100ms", "jitter": 0},
        "source": {"graphQL": {"endpoint": upstream.url, "query": LIST, "resultPath": "/data/users/nodes"}},
        "mapping": [
            {"from": "/name", "to": "profile.name", "type": "String"},
            {"from": "/createdAt", "to": "joined", "type": "Date"},
            {"value": "gitlab", "to": "origin"},
        ],
    })
}

/// The spec with changes of the source.
pub fn with(upstream: &Upstream, changes: &Value) -> Value {
    let mut spec = spec(upstream);
    let mut changes = source("graphQL", changes);
    let own = changes["graphQL"].take();
    spec["source"]["graphQL"].as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    let shared = changes.as_object().unwrap().clone().into_iter().filter(|(name, _)| name != "graphQL");
    spec["source"].as_object_mut().unwrap().extend(shared);
    spec
}

async fn user(env: &TestEnv, id: i32) -> Document {
    env.database.collection::<Document>("users").find_one(doc! {"_id": id}).await.unwrap().unwrap()
}

#[tokio::test]
async fn mapped_fields_are_written_and_nothing_else() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(250, 0).await;
    upstream.state().users.extend([
        ("7".to_owned(), Peculiar::Gone),
        ("8".to_owned(), Peculiar::Broken),
        ("9".to_owned(), Peculiar::Named("Ada".to_owned())),
    ]);
    let before = user(&env, 9).await;
    let (operator, _) = env.all(&ALLOWED);

    let first = run(&env, "first", spec(&upstream)).await;
    assert_eq!((counts(&first), upstream.requests()), ((248, 0, 2), 3));
    assert_eq!(failures(&first), [("7", "NotReturned"), ("8", "SourceError")]);
    let mut after = user(&env, 9).await;
    let stamp = after.remove("lastSynced").unwrap();
    assert!(stamp.as_datetime().unwrap().timestamp_millis() >= first.start_time.as_ref().unwrap().0.as_millisecond());
    assert_eq!(after.remove("profile"), Some(doc! {"name": "Ada"}.into()));
    assert_eq!(after.remove("joined"), Some(DateTime::parse_rfc3339_str("2024-05-06T07:08:09Z").unwrap().into()));
    assert_eq!(after.remove("origin"), Some("gitlab".into()));
    // The confirmation of the source.
    assert_eq!(after.remove("_sync").unwrap().as_document().unwrap().len(), 1);
    assert_eq!(after, before);
    assert_eq!(env.count(doc! {"_id": {"$in": [7, 8]}, "lastSynced": {"$exists": true}}).await, 0);

    upstream.state().users.insert("10".to_owned(), Peculiar::Named("Grace".to_owned()));
    let second = run(&env, "second", spec(&upstream)).await;
    assert_eq!(counts(&second), (1, 247, 2));
    assert_eq!(user(&env, 10).await.get_document("profile").unwrap(), &doc! {"name": "Grace"});
    assert!(user(&env, 9).await.get_datetime("lastSynced").unwrap() > stamp.as_datetime().unwrap());
    assert!(!operator.log().contains(PRIVATE) && !serde_json::to_string(&first).unwrap().contains(PRIVATE));
}

#[tokio::test]
async fn documents_are_requested_one_by_one_and_concurrently() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(40, 0).await;
    upstream.state().delay = Duration::from_millis(50);
    upstream.state().users.extend([("3".to_owned(), Peculiar::Gone), ("4".to_owned(), Peculiar::Broken)]);
    let (_operator, _) = env.all(&ALLOWED);
    let each = json!({"query": ONE, "batching": "PerUser", "concurrency": 5, "resultPath": "/data/user"});
    let status = run(&env, "each", with(&upstream, &each)).await;
    assert_eq!((counts(&status), upstream.requests()), ((38, 0, 2), 40));
    assert_eq!(upstream.state().busy, (0, 5));
    assert_eq!(failures(&status), [("3", "NotReturned"), ("4", "SourceError")]);
}

#[tokio::test]
async fn an_incremental_run_requests_only_due_documents() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(30, 0).await;
    let (_operator, _) = env.all(&ALLOWED);
    run(&env, "all", spec(&upstream)).await;
    let users = env.database.collection::<Document>("users");
    users.update_many(doc! {"_id": {"$lt": 5}}, doc! {"$unset": {"_sync": 1, "lastSynced": 1}}).await.unwrap();
    let mut spec = spec(&upstream);
    spec["syncType"] = "Incremental".into();
    spec["staleAfter"] = "1h".into();
    let status = run(&env, "due", spec).await;
    assert_eq!((counts(&status), upstream.requests()), ((0, 5, 0), 2), "unchanged documents are stamped too");
    assert_eq!(env.count(doc! {"lastSynced": {"$exists": true}}).await, 30);
}

#[tokio::test]
async fn a_dry_run_reports_changes_and_writes_nothing() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(30, 0).await;
    let (_operator, _) = env.all(&ALLOWED);
    run(&env, "real", spec(&upstream)).await;
    let before = env.count(doc! {"profile.name": {"$regex": "^User"}}).await;
    for id in 0..25 {
        upstream.state().users.insert(id.to_string(), Peculiar::Named("New".to_owned()));
    }
    let mut dry = spec(&upstream);
    dry["dryRun"] = true.into();
    let status = run(&env, "dry", dry).await;
    assert_eq!(counts(&status), (25, 5, 0));
    assert_eq!(status.changes, (0..20).map(|id: i32| id.to_string()).collect::<Vec<_>>());
    assert_eq!((before, env.count(doc! {"profile.name": {"$regex": "^User"}}).await), (30, 30));
}

#[tokio::test]
async fn a_token_goes_only_to_hosts_its_secret_names() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(3, 0).await;
    upstream.state().token = Some("glpat-1".to_owned());
    let (here, port) = (upstream.rest(""), upstream.rest("").rsplit_once(':').unwrap().1.to_owned());
    secret(&env, "right", &[("token", "glpat-1\n"), ("team", "blue")], &format!("other.example, {here}/api")).await;
    secret(&env, "elsewhere", &[("token", "glpat-1")], "gitlab.example").await;
    secret(&env, "encrypted", &[("token", "glpat-1")], &format!("127.0.0.1:{port}")).await;
    secret(&env, "default-port", &[("token", "glpat-1")], "http://127.0.0.1").await;
    secret(&env, "other-path", &[("token", "glpat-1")], &format!("{here}/api/graph, {here}/api/v4")).await;
    secret(&env, "nowhere", &[("token", "glpat-1")], "").await;
    secret(&env, "outdated", &[("token", "glpat-0")], &here).await;
    let (operator, _) = env.all(&ALLOWED);
    let with_token = |name: &str, key: &str| json!({"tokenSecretRef": {"name": name, "key": key}});
    for (name, key, message) in [
        ("elsewhere", "token", &*format!("Secret elsewhere may not be used for {here}: add {here} to its annotation")),
        ("encrypted", "token", &format!("Secret encrypted may not be used for {here}: add {here} to its annotation")),
        ("default-port", "token", &format!("Secret default-port may not be used for {here}: add {here} to its")),
        ("other-path", "token", &format!("Secret other-path may not be used for the path of a request to {here}: add")),
        (
            "nowhere",
            "token",
            &format!(
                "Secret nowhere may not be used for {here}: allow it with kubectl annotate secret nowhere sync.codex.dev/hosts={here}"
            ),
        ),
        ("missing", "token", "there is no Secret missing in namespace"),
        ("right", "password", "Secret right has no key password"),
    ] {
        let status = run(&env, &format!("{name}-{key}"), with(&upstream, &with_token(name, key))).await;
        let (reason, shown) = ended(&status);
        assert!(reason == "InvalidSource" && shown.starts_with(message), "{reason}: {shown}");
        assert_eq!(upstream.requests(), 0, "{name}");
    }

    let status = run(&env, "refused", with(&upstream, &with_token("outdated", "token"))).await;
    let (reason, message) = ended(&status);
    assert!(reason == "InvalidSource" && message.starts_with("the source refuses with 401: check"), "{message}");
    assert_eq!(upstream.requests(), 1, "not tried again");

    let mut good = with_token("right", "token");
    good["headersFrom"] = json!([{"name": "X-Team", "secretRef": {"name": "right", "key": "team"}}]);
    let status = run(&env, "let-in", with(&upstream, &good)).await;
    assert_eq!(counts(&status), (3, 0, 0));
    assert_eq!(upstream.state().headers["x-team"], "blue");
    let jobs = env.jobs().list(&kube::api::ListParams::default()).await.unwrap().items;
    let shown = operator.log() + &serde_json::to_string(&jobs).unwrap();
    assert!(!shown.contains("glpat-") && !shown.contains(PRIVATE));
}

#[tokio::test]
async fn a_rotated_token_is_read_again() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(100, 0).await;
    secret(&env, "gitlab", &[("token", "glpat-first")], &upstream.rest("")).await;
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.name);
    let (operator, _) = env.all(&ALLOWED);
    upstream.state().delay = Duration::from_millis(50);
    let each = json!({"query": ONE, "batching": "PerUser", "concurrency": 5, "resultPath": "/data/user",
        "tokenSecretRef": {"name": "gitlab", "key": "token"}});
    for (name, former, accepted, rotated) in [
        ("rotated", "glpat-first", "glpat-second", Some("glpat-second")),
        ("wrong", "glpat-second", "glpat-third", Some("glpat-other")),
        ("unchanged", "glpat-other", "glpat-fourth", None),
    ] {
        upstream.state().token = Some(former.to_owned());
        let before = upstream.requests();
        apply_job(&env, name, with(&upstream, &each)).await;
        eventually("some documents were requested", async || (upstream.requests() > before + 20).then_some(())).await;
        if let Some(token) = rotated {
            let patch = json!({"stringData": {"token": token}});
            secrets.patch("gitlab", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        }
        upstream.state().token = Some(accepted.to_owned());
        let status = finished(&env, name).await.status.unwrap();
        let requests = upstream.requests() - before;
        if name == "rotated" {
            assert_eq!((counts(&status), status.attempts), ((100, 0, 0), Some(0)), "{:?}", ended(&status));
            assert!((101..=105).contains(&requests), "only requests in flight are repeated: {requests}");
        } else {
            let (reason, message) = ended(&status);
            let is_refused = reason == "InvalidSource" && message.starts_with("the source refuses with 401: check");
            assert!(is_refused && requests < 100, "{name}: {reason}: {message}: {requests}");
        }
    }
    assert!(!operator.log().contains("glpat-"));
}

#[tokio::test]
async fn mutations_need_an_annotation() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(1, 0).await;
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.name);
    for name in ["reads", "writes"] {
        secret(&env, name, &[("token", "glpat-1")], &upstream.rest("")).await;
    }
    let annotated = json!({"metadata": {"annotations": {"sync.codex.dev/graphql-operations": "query,mutation"}}});
    secrets.patch("writes", &PatchParams::default(), &Patch::Merge(annotated)).await.unwrap();
    let (_operator, _) = env.all(&ALLOWED);
    let entry = |name: &str| json!({"name": name, "key": "token"});
    let mutation = |part: Value| {
        let mut spec = with(&upstream, &part);
        spec["source"]["graphQL"]["query"] = LIST.replacen("query", "mutation", 1).into();
        spec
    };
    let header = json!([{"name": "X-Team", "secretRef": entry("reads")}]);
    for (name, part, end) in [
        ("bare", json!({}), "which needs a Secret that allows it: add tokenSecretRef"),
        ("reads", json!({"tokenSecretRef": entry("reads")}), "which Secret reads does not allow: annotate it with"),
        (
            "both",
            json!({"tokenSecretRef": entry("writes"), "headersFrom": header}),
            "which Secret reads does not allow: annotate it with",
        ),
    ] {
        let status = run(&env, name, mutation(part)).await;
        let (reason, message) = ended(&status);
        let expected = format!("source.graphQL.query has a mutation, {end}");
        assert!(reason == "InvalidSource" && message.starts_with(&expected), "{name}: {reason}: {message}");
    }
    assert_eq!(upstream.requests(), 0);
    let node = json!({"id": "0", "name": "Ada", "createdAt": "2024-01-01"});
    upstream.state().instead.push_back(Instead::Body(json!({"data": {"users": {"nodes": [node]}}}).to_string()));
    let status = run(&env, "writes", mutation(json!({"tokenSecretRef": entry("writes")}))).await;
    assert_eq!((counts(&status), upstream.requests()), ((1, 0, 0), 1), "{:?}", ended(&status));
}

#[tokio::test]
async fn a_query_the_server_rejects_ends_the_run_at_once() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(3, 0).await;
    let (_operator, _) = env.all(&ALLOWED);
    let wrong = json!({"query": "query ($ids: [ID!]!) { users(ids: $ids) { nodes { id nme } } }"});
    let status = run(&env, "wrong", with(&upstream, &wrong)).await;
    let (reason, message) = ended(&status);
    assert_eq!(
        (reason, message),
        ("InvalidSource", "the source rejects the query at line 1, column 54 of source.graphQL.query")
    );
    assert_eq!((upstream.requests(), status.attempts), (1, Some(1)));
}

#[tokio::test]
async fn the_attempt_after_a_bad_answer_resumes_at_the_checkpoint() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(20, 0).await;
    let (operator, _) = env.all(&ALLOWED);
    let users = |users: Value| Instead::Body(json!({"data": {"users": {"nodes": users}}}).to_string());
    let cases = [
        ("down", Instead::Status(500, vec![]), "SourceError", "the source answered with 500"),
        (
            "cut",
            Instead::Body(r#"{"data": {"users": {"no"#.to_owned()),
            "BadAnswer",
            "the source's answer cannot be used: it is no JSON",
        ),
        ("type", users(json!("none")), "BadAnswer", "the source's answer cannot be used: it has no list at"),
        ("slow", Instead::Silence(Duration::from_secs(5)), "SourceTimeout", "the source did not answer within"),
    ];
    for (name, instead, reason, message) in cases {
        upstream.state().instead.push_back(instead);
        let status = run(&env, name, with(&upstream, &json!({"timeout": "1s", "requestRetries": 0}))).await;
        let history: Vec<_> = status.attempt_history.iter().map(|attempt| attempt.reason.as_str()).collect();
        assert_eq!((history, counts(&status).2), (vec![reason], 0), "{name}");
        let shown = &status.attempt_history[0].message;
        assert!(shown.starts_with(message) && !shown.contains(PRIVATE), "{name}: {shown}");
    }
    assert!(!operator.log().contains(PRIVATE));
}

#[tokio::test]
async fn an_answer_over_a_budget_ends_the_run_at_once() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(20, 0).await;
    let (operator, _) = env.all(&ALLOWED);
    let zeros = |count: usize| Instead::Body(format!("[{}0]", "0,".repeat(count)));
    assert_eq!(counts(&run(&env, "usual", spec(&upstream)).await), (20, 0, 0));
    for (name, instead, message) in [
        ("huge", Instead::Huge(200), "the source's answer has more than 16 MiB: lower batchSize"),
        ("bomb", zeros(8_000_000), "the source's answer has more than 250000 JSON values: lower batchSize"),
    ] {
        let before = operator.resident_mib();
        upstream.state().instead.push_back(instead);
        let status = run(&env, name, spec(&upstream)).await;
        assert_eq!((ended(&status), status.attempts), (("BudgetExceeded", message), Some(1)));
        let after = operator.resident_mib();
        assert!(after < before + 64, "{name}: {before} MiB before, {after} MiB after");
    }
}

#[tokio::test]
async fn a_wrong_answer_for_one_document_fails_only_it() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(5, 0).await;
    let (_operator, _) = env.all(&ALLOWED);
    let nodes = json!([
        {"id": "0", "name": "Zoe", "createdAt": "2024-01-01"},
        {"id": "1", "name": ["?"], "createdAt": "2024-01-01"},
        {"id": "2", "name": "Bo", "createdAt": "yesterday"},
        {"id": "3", "name": "Cy", "createdAt": "2024-01-01"},
        {"id": "3", "name": "Di", "createdAt": "2024-01-01"},
        {"id": "99", "name": "Who", "createdAt": "2024-01-01"},
    ]);
    upstream.state().instead.push_back(Instead::Body(json!({"data": {"users": {"nodes": nodes}}}).to_string()));
    let status = run(&env, "wrong", spec(&upstream)).await;
    assert_eq!(
        failures(&status),
        [("1", "MappingFailed"), ("2", "MappingFailed"), ("3", "DuplicateResult"), ("4", "NotReturned")]
    );
    assert_eq!(counts(&status), (1, 0, 4));
    assert_eq!(env.count(doc! {"lastSynced": {"$exists": true}}).await, 1);
}

#[tokio::test]
async fn a_pause_that_the_server_requests_costs_no_attempt() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(300, 0).await;
    let (_operator, _) = env.all(&ALLOWED);
    let rest = || Instead::Status(429, vec![("retry-after", "2".to_owned())]);
    upstream.state().instead.push_back(rest());
    let mut one_by_one = spec(&upstream);
    one_by_one["parallelism"] = 1.into();
    let status = run(&env, "rests", one_by_one).await;
    assert_eq!((counts(&status), status.attempts), ((300, 0, 0), Some(0)));
    let seen = upstream.state().seen.clone();
    assert_eq!(seen.len(), 4);
    let gap = seen[1] - seen[0];
    assert!(gap >= Duration::from_secs(2), "requested again after {gap:?}");

    let used_up = vec![("ratelimit-remaining", "0".to_owned()), ("ratelimit-reset", "+2".to_owned())];
    upstream.state().instead.push_back(Instead::Status(429, used_up));
    let status = run(&env, "waits", spec(&upstream)).await;
    assert_eq!((counts(&status), status.attempts), ((0, 300, 0), Some(0)));
}

#[tokio::test]
async fn addresses_that_are_not_allowed_get_no_request() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(3, 0).await;
    let (_operator, _) = env.all(&["--source-allowed-hosts", "127.0.0.2"]);
    let port = upstream.url.rsplit_once(':').unwrap().1.to_owned();
    for (name, host, class) in [
        ("loopback", "127.0.0.1", "loopback"),
        ("name", "localhost", "loopback"),
        ("six", "[::1]", "loopback"),
        ("mapped", "[::ffff:127.0.0.1]", "loopback"),
        ("number", "2130706433", "loopback"),
        ("metadata", "169.254.169.254", "link-local"),
        ("private", "10.255.255.1", "private"),
    ] {
        let status = run(&env, name, with(&upstream, &json!({"endpoint": format!("https://{host}:{port}")}))).await;
        let (reason, message) = ended(&status);
        let expected = format!("source.graphQL.endpoint is at a {class} address, which the operator does not allow: ");
        let is_refused = message.starts_with(&expected);
        assert!(reason == "InvalidSource" && is_refused, "{host}: {reason}: {message}");
    }
    let plain = run(&env, "plain", with(&upstream, &json!({"endpoint": "http://gitlab.example/"}))).await;
    assert!(ended(&plain).1.starts_with("source.graphQL.endpoint must be https"), "{:?}", ended(&plain));
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn the_server_must_have_a_trusted_certificate() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let tls = trusted.certify();
    let upstream = Upstream::start_tls(&tls.certificate, &tls.key).await;
    let env = TestEnv::new().await;
    env.seed(3, 0).await;
    let here = upstream.rest("");
    for (name, authority, hosts) in [("ca", &trusted, &*here), ("other", &other, &here), ("unbound", &trusted, "")] {
        secret(&env, name, &[("ca.crt", &authority.pem())], hosts).await;
    }
    let (_operator, _) = env.all(&ALLOWED);
    let mut one_try = spec(&upstream);
    one_try["backoffLimit"] = 0.into();
    one_try["source"]["requestRetries"] = 0.into();
    for (name, authority) in [("well-known", None), ("wrong", Some("other"))] {
        let mut spec = one_try.clone();
        if let Some(authority) = authority {
            spec["source"]["caSecretRef"] = json!({"name": authority, "key": "ca.crt"});
        }
        let status = run(&env, name, spec).await;
        let last = &status.attempt_history[0];
        assert!(last.reason == "SourceUnreachable" && last.message.contains("certificate"), "{name}: {}", last.message);
    }
    one_try["source"]["caSecretRef"] = json!({"name": "unbound", "key": "ca.crt"});
    let status = run(&env, "unbound", one_try.clone()).await;
    let (reason, message) = ended(&status);
    let expected = format!("Secret unbound may not be used for {}: allow it", here.trim_start_matches("https://"));
    assert!(reason == "InvalidSource" && message.starts_with(&expected), "{reason}: {message}");
    assert_eq!(upstream.requests(), 0);
    one_try["source"]["caSecretRef"] = json!({"name": "ca", "key": "ca.crt"});
    let status = run(&env, "right", one_try).await;
    assert_eq!((counts(&status), upstream.requests()), ((3, 0, 0), 1));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (env, upstream, elsewhere) = (TestEnv::new().await, Upstream::start().await, Upstream::start().await);
    env.seed(3, 0).await;
    let (_operator, _) = env.all(&ALLOWED);
    upstream.state().instead.push_back(Instead::Status(307, vec![("location", elsewhere.url.clone())]));
    let status = run(&env, "redirected", spec(&upstream)).await;
    let (reason, message) = ended(&status);
    assert!(reason == "InvalidSource" && message.starts_with("the source answers with 307, a redirect"), "{message}");
    assert_eq!((upstream.requests(), elsewhere.requests()), (1, 0));
}

/// Starts 4 runs of 200 requests on three processes, with a limit of 100 per second. Returns the times of the requests.
async fn limited_runs() -> Vec<Instant> {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(200, 0).await;
    let (_controller, _) = env.all(&[&ALLOWED[..], &["--workers", "2"]].concat());
    let _workers = [(); 2].map(|()| env.operator("worker", &ALLOWED));
    let limited = json!({"query": ONE, "batching": "PerUser", "concurrency": 16, "resultPath": "/data/user",
        "rateLimit": {"requests": 100}});
    for run in 0..4 {
        apply_job(&env, &format!("run-{run}"), with(&upstream, &limited)).await;
    }
    for run in 0..4 {
        assert!(is_complete(&finished(&env, &format!("run-{run}")).await));
    }
    let seen = upstream.state().seen.clone();
    // A document that another run has fetched since the start of this run is not requested again.
    assert!(seen.len() > 700, "{}", seen.len());
    seen
}

#[tokio::test]
async fn all_processes_share_one_rate_limit() {
    let seen = limited_runs().await;
    let taken = *seen.last().unwrap() - seen[0];
    let least = Duration::from_millis(10) * (seen.len() - 1) as u32;
    assert!(taken >= least, "{} requests in {taken:?}", seen.len());
}

/// The sample that walks the pages of a group's projects, on this server.
async fn group(env: &TestEnv, upstream: &Upstream) -> Value {
    secret(env, "gitlab", &[("token", "glpat-1")], &upstream.rest("")).await;
    let text = std::fs::read_to_string("manifests/samples/gitlab/group-projects.yaml").unwrap();
    let schedule: SyncSchedule = serde_yaml_ng::from_str(&text).unwrap();
    let mut spec = serde_json::to_value(&schedule.spec.job_template.spec).unwrap();
    let source = &mut spec["source"];
    source["name"] = "projects".into();
    source["graphQL"]["endpoint"] = upstream.url.clone().into();
    source.as_object_mut().unwrap().remove("rateLimit");
    spec["backoff"] = json!({"initial": "100ms", "jitter": 0});
    spec
}

async fn projects(env: &TestEnv, numbers: &[u32]) -> mongodb::Collection<Document> {
    let projects = env.database.collection::<Document>("projects");
    let options = IndexOptions::builder().unique(true).build();
    projects.create_index(IndexModel::builder().keys(doc! {"gitlabId": 1}).options(options).build()).await.unwrap();
    projects.insert_many(numbers.iter().map(|number| known_project(env, *number))).await.unwrap();
    projects
}

/// A project that the source listed before.
fn known_project(env: &TestEnv, number: u32) -> Document {
    doc! {"gitlabId": project(number), "team": "blue", "_sync": confirmed(&env.name, "projects")}
}

fn project(number: u32) -> String {
    format!("gid://gitlab/Project/{number}")
}

#[tokio::test]
async fn pages_insert_new_documents_and_mark_missing_ones() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    let projects = projects(&env, &[1, 2, 300]).await;
    upstream.state().projects = (1..=250).collect();
    let (_operator, _) = env.all(&ALLOWED);
    let group = group(&env, &upstream).await;

    let first = run(&env, "first", group.clone()).await;
    assert_eq!((counts(&first), upstream.requests()), ((251, 0, 0), 3), "{:?}", ended(&first));
    assert_eq!(projects.count_documents(doc! {}).await.unwrap(), 251);
    let known = projects.find_one(doc! {"gitlabId": project(2)}).await.unwrap().unwrap();
    assert_eq!((known.get_str("name").unwrap(), known.get_str("team").unwrap()), ("Project 2", "blue"));
    let gone = projects.find_one(doc! {"gitlabId": project(300)}).await.unwrap().unwrap();
    let since = *gone.get_datetime("missingSince").unwrap();
    let state = gone.get_document("_sync").unwrap().get_document(format!("{}/projects", env.name)).unwrap();
    assert_eq!(state.get_datetime("gone").unwrap(), &since);
    assert_eq!(projects.count_documents(doc! {"missingSince": {"$exists": true}}).await.unwrap(), 1);

    let second = run(&env, "second", group.clone()).await;
    assert_eq!(counts(&second), (0, 250, 0));
    let still = projects.find_one(doc! {"gitlabId": project(300)}).await.unwrap().unwrap();
    assert_eq!(still.get_datetime("missingSince").unwrap(), &since);

    upstream.state().projects.push(300);
    let third = run(&env, "third", group).await;
    assert_eq!(counts(&third), (1, 250, 0));
    assert_eq!(projects.count_documents(doc! {"missingSince": {"$exists": true}}).await.unwrap(), 0);
}

#[tokio::test]
async fn only_documents_that_are_certainly_missing_are_deleted() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    let projects = projects(&env, &[1, 2, 3, 4]).await;
    let (_operator, _) = env.all(&ALLOWED);
    let mut deleting = group(&env, &upstream).await;
    deleting["source"]["onMissing"] = "Delete".into();
    deleting["source"]["upsert"] = false.into();
    deleting["backoffLimit"] = 1.into();
    deleting["failurePolicy"] = json!({"maxFailedPercent": 100});

    let empty = run(&env, "empty", deleting.clone()).await;
    assert_eq!(ended(&empty).0, "BackoffLimitExceeded");
    assert!(empty.attempt_history.iter().all(|attempt| attempt.reason == "EmptySource"), "{:?}", empty.attempt_history);
    assert_eq!(projects.count_documents(doc! {}).await.unwrap(), 4);

    upstream.state().projects = vec![1, 2, 9];
    upstream.state().users.insert("2".to_owned(), Peculiar::Broken);
    let mut dry = deleting.clone();
    dry["dryRun"] = true.into();
    let result = run(&env, "dry", dry).await;
    assert_eq!((counts(&result), result.changes.clone()), ((3, 0, 1), [1, 3, 4].map(project).to_vec()));

    let status = run(&env, "marks", deleting.clone()).await;
    assert_eq!(counts(&status), (3, 0, 1), "one document is updated, two are marked, one has failed");
    assert_eq!(projects.count_documents(doc! {"missingSince": {"$exists": true}}).await.unwrap(), 2);
    let status = run(&env, "deletes", deleting.clone()).await;
    assert_eq!(counts(&status), (2, 1, 1), "two documents are deleted");
    let mut left = projects.find(doc! {}).sort(doc! {"gitlabId": 1}).await.unwrap();
    let mut ids = Vec::new();
    while left.advance().await.unwrap() {
        ids.push(left.current().get_str("gitlabId").unwrap().to_owned());
    }
    assert_eq!(ids, [project(1), project(2)], "9 is new, and new documents are not inserted");

    upstream.state().projects = (1..=30).collect();
    upstream.state().users.extend((2..=22).map(|number| (number.to_string(), Peculiar::Broken)));
    projects.insert_many((3..=31).map(|number| known_project(&env, number))).await.unwrap();
    let many = run(&env, "many", deleting).await;
    assert_eq!(counts(&many), (9, 1, 21), "31 is not listed, and the failed ones are");
    let marked = projects.find_one(doc! {"missingSince": {"$exists": true}}).await.unwrap().unwrap();
    assert_eq!(marked.get_str("gitlabId").unwrap(), project(31));
}

#[tokio::test]
async fn an_upsert_requires_a_unique_index() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    upstream.state().projects = vec![1];
    let (_operator, _) = env.all(&ALLOWED);
    let status = run(&env, "run", group(&env, &upstream).await).await;
    let (reason, message) = ended(&status);
    assert_eq!(
        (reason, message),
        (
            "InvalidTarget",
            "source.upsert needs a unique index on target.keyField: db.projects.createIndex({\"gitlabId\": 1}, {unique: true})"
        )
    );
    assert_eq!(upstream.requests(), 0);
}

/// Kills the worker of a run when some of it is done, and calls `meanwhile`. Returns the run after another worker has
/// completed it.
pub async fn without_its_worker(
    env: &TestEnv,
    upstream: &Upstream,
    spec: Value,
    meanwhile: impl FnOnce(),
) -> SyncJobStatus {
    upstream.state().delay = Duration::from_millis(50);
    let lease = ["--lease-duration", "1s"];
    let _controller = env.operator("controller", &[&lease[..], &["--workers", "0"]].concat());
    let mut first = env.operator("worker", &[&lease[..], &ALLOWED].concat());
    apply_job(env, "run", spec).await;
    eventually("the run has processed some documents", async || (upstream.requests() > 30).then_some(())).await;
    first.kill();
    meanwhile();
    let _second = env.operator("worker", &[&lease[..], &ALLOWED].concat());
    let job = finished(env, "run").await;
    assert!(is_complete(&job));
    job.status.unwrap()
}

#[tokio::test]
async fn a_walk_of_pages_resumes_after_its_worker_was_killed() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    let projects = projects(&env, &[5000, 5001]).await;
    upstream.state().projects = (1..=1000).collect();
    let mut slow = group(&env, &upstream).await;
    slow["batchSize"] = 10.into();
    let status = without_its_worker(&env, &upstream, slow, || {}).await;
    assert_eq!(projects.count_documents(doc! {"name": {"$exists": true}}).await.unwrap(), 1000);
    assert_eq!(projects.count_documents(doc! {"missingSince": {"$exists": true}}).await.unwrap(), 2);
    let (updated, unchanged, failed) = counts(&status);
    assert_eq!((updated + unchanged, failed), (1002, 0));
    assert!(upstream.requests() < 130, "the walk started again: {} requests for 100 pages", upstream.requests());
}

#[tokio::test]
async fn a_killed_workers_run_resumes_elsewhere_and_ends_correct() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(1000, 0).await;
    let mut slow = spec(&upstream);
    slow["batchSize"] = 10.into();
    slow["parallelism"] = 2.into();
    let rename = || drop(upstream.state().users.insert("999".to_owned(), Peculiar::Named("Last".to_owned())));
    let status = without_its_worker(&env, &upstream, slow, rename).await;
    let (updated, unchanged, failed) = counts(&status);
    assert_eq!((updated + unchanged, failed, status.attempts), (1000, 0, Some(0)));
    assert_eq!(env.count(doc! {"origin": "gitlab", "lastSynced": {"$exists": true}}).await, 1000);
    assert_eq!(user(&env, 999).await.get_document("profile").unwrap(), &doc! {"name": "Last"});
}

/// A schedule of the documentation or of the samples, and a document before and after its run.
struct Sample {
    path: &'static str,
    collection: &'static str,
    kind: &'static str,
    before: Document,
    after: Document,
}

impl Sample {
    /// The schedule in a sample, or the last example of a schedule in a page.
    fn schedule(&self) -> SyncSchedule {
        let text = std::fs::read_to_string(self.path).unwrap();
        if self.path.starts_with("manifests/") {
            return serde_yaml_ng::from_str(&text).unwrap();
        }
        let blocks = text.split("```yaml").skip(1).map(|rest| rest.split("```").next().unwrap());
        let mut schedules = blocks.filter_map(|block| serde_yaml_ng::from_str::<SyncSchedule>(block).ok());
        schedules.find(|found| found.spec.interval.is_some()).unwrap()
    }

    /// Executes a run of the schedule with the endpoint of the test.
    async fn check(self, env: &TestEnv, endpoint: &str) {
        let id = format!("gid://gitlab/{}/7", self.kind);
        let mut spec = self.schedule().spec.job_template.spec;
        let (path, mut document, mut whole) =
            (self.path, doc! {"_id": 1, "gitlabId": &id}, doc! {"_id": 1, "gitlabId": &id});
        document.extend(self.before);
        let documents = env.database.collection::<Document>(self.collection);
        documents.delete_many(doc! {}).await.unwrap();
        documents.insert_one(document).await.unwrap();

        let source = spec.source.as_mut().unwrap().graph_ql.as_mut().unwrap();
        assert_eq!(source.endpoint, "https://gitlab.com/api/graphql");
        endpoint.clone_into(&mut source.endpoint);
        let name = path.replace(['/', '.'], "-");
        env.jobs().create(&PostParams::default(), &SyncJob::new(&name, spec)).await.unwrap();
        let status = finished(env, &name).await.status.unwrap();
        assert_eq!(counts(&status), (1, 0, 0), "{path}: {:?}", ended(&status));

        let mut found = documents.find_one(doc! {"_id": 1}).await.unwrap().unwrap();
        assert!(found.remove("lastSynced").is_some() && found.remove("_sync").is_some());
        whole.extend(self.after);
        let sorted = |document: Document| document.into_iter().collect::<BTreeMap<_, _>>();
        assert_eq!(sorted(found), sorted(whole), "{path}");
    }
}

#[tokio::test]
async fn the_samples_and_the_guide_fetch_what_gitlab_has() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    upstream.state().token = Some("glpat-1".to_owned());
    secret(&env, "gitlab", &[("token", "glpat-1")], &upstream.rest("")).await;
    let (_operator, _) = env.all(&ALLOWED);
    let at = |text: &str| Bson::from(DateTime::parse_rfc3339_str(text).unwrap());
    for sample in [
        Sample {
            path: "docs/guides/sources.md",
            collection: "users",
            kind: "User",
            before: doc! {},
            after: doc! {"profile": {"name": "User 7"}, "registeredAt": at("2024-05-06T07:08:09Z")},
        },
        Sample {
            path: "docs/guides/graphql.md",
            collection: "users",
            kind: "User",
            before: doc! {"team": "blue"},
            after: doc! {"team": "blue", "username": "user7", "profile": {"name": "User 7"}, "state": "active"},
        },
        Sample {
            path: "manifests/samples/gitlab/users.yaml",
            collection: "users",
            kind: "User",
            before: doc! {"email": "old@example.com", "note": "kept"},
            after: doc! {"note": "kept", "username": "user7", "name": "User 7", "state": "active",
            "registeredAt": at("2024-05-06T07:08:09Z"), "origin": "gitlab"},
        },
        Sample {
            path: "manifests/samples/gitlab/projects.yaml",
            collection: "projects",
            kind: "Project",
            before: doc! {},
            after: doc! {"name": "Project 7", "path": "example/project7", "archived": false, "stars": 7,
            "lastActivityAt": at("2026-02-03T04:05:06Z")},
        },
        Sample {
            path: "manifests/samples/gitlab/issues.yaml",
            collection: "issues",
            kind: "Issue",
            before: doc! {},
            after: doc! {"title": "Issue 7", "state": "opened", "dueDate": at("2026-03-01T00:00:00Z"),
            "changedAt": at("2026-02-03T04:05:06Z"), "closedAt": null},
        },
        Sample {
            path: "manifests/samples/gitlab/pipelines.yaml",
            collection: "pipelines",
            kind: "Ci::Pipeline",
            before: doc! {"status": "RUNNING"},
            after: doc! {"status": "SUCCESS", "sha": "0123456789abcdef0123456789abcdef01234567", "seconds": 61,
            "finishedAt": at("2026-02-03T04:05:06Z")},
        },
    ] {
        sample.check(&env, &upstream.url).await;
    }
}
