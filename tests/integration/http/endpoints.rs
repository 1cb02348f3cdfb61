//! The effects of each call.

use std::num::NonZeroU32;

use axum::{body::Body, http::Request};
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, syncjob::SyncMode},
    domain::job::{is_complete, is_finished},
    http::HttpSettings,
};

use super::{Answer, Sidecar, settings};
use crate::support::{TestEnv, apply_job, apply_schedule, condition, events, eventually, finished, wait_for_events};

/// Waits until the sidecar has seen a SyncJob in a state.
async fn wait_for_phase(sidecar: &Sidecar, env: &TestEnv, name: &str, phase: &str) {
    eventually(&format!("the sidecar has seen {name}"), async || {
        let answer = sidecar.get(&format!("/jobs?namespace={}&phase={phase}&text={name}", env.name)).await;
        (answer.body["items"].as_array()?.iter().any(|item| item["name"] == name)).then_some(())
    })
    .await;
}

/// Waits until the sidecar has seen this number of schedules.
async fn wait_for_schedules(sidecar: &Sidecar, count: usize) {
    eventually("the sidecar has seen the schedules", async || {
        let answer = sidecar.get("/jobs/status").await;
        (answer.body["repeatable"].as_array()?.len() == count).then_some(())
    })
    .await;
}

/// Creates a SyncJob with the status of an ended run.
async fn ended(env: &TestEnv, name: &str, phase: &str, hours_ago: i64) {
    apply_job(env, name, json!({})).await;
    let at = k8s_openapi::jiff::Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_hours(hours_ago);
    let at = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = condition(phase, "Test", "", &at);
    env.patch_job_status(name, json!({"phase": phase, "completionTime": at, "conditions": [condition]})).await;
}

async fn one_schedule(env: &TestEnv, sidecar: &Sidecar) {
    let template = json!({"spec": {"batchSize": 7, "syncType": "Full"}});
    apply_schedule(env, "users", json!({"suspended": true, "jobTemplate": template})).await;
    wait_for_schedules(sidecar, 1).await;
}

async fn get_job(env: &TestEnv, answer: &Answer) -> SyncJob {
    assert_eq!(answer.code, 202, "{}", answer.body);
    let job = env.jobs().get(answer.body["name"].as_str().unwrap()).await.unwrap();
    assert_eq!(answer.body["jobId"], job.uid().unwrap());
    assert_eq!(answer.body["namespace"], env.name);
    assert_eq!(answer.headers["location"], format!("/jobs/{}/{}", env.name, job.name_any()));
    job
}

#[tokio::test]
async fn a_trigger_runs_the_template_and_the_schedule_counts_it() {
    let env = TestEnv::new().await;
    env.seed(30, 0).await;
    let sidecar = Sidecar::open(&env).await;
    one_schedule(&env, &sidecar).await;
    let _operator = env.operator("controller", &[]);

    let answer = sidecar.post("/jobs/trigger/user-sync", Value::Null).await;
    let job = get_job(&env, &answer).await;
    assert_eq!((job.spec.sync_type, job.spec.batch_size), (SyncMode::Incremental, 7));
    assert!(is_complete(&finished(&env, &job.name_any()).await));
    let answer = sidecar.post("/jobs/trigger/user-sync", json!({"syncType": "full"})).await;
    let job = get_job(&env, &answer).await;
    assert_eq!(job.spec.sync_type, SyncMode::Full);
    let ended = finished(&env, &job.name_any()).await;
    assert_eq!(ended.status.unwrap().counts.unwrap().processed, 30);
    for _ in 0..20 {
        let answer = sidecar.post("/jobs/trigger/user-sync", Value::Null).await;
        finished(&env, &get_job(&env, &answer).await.name_any()).await;
    }

    let schedules = env.schedules();
    eventually("all runs are counted", async || {
        let status = schedules.get("users").await.unwrap().status?;
        ((status.runs.succeeded, status.active_count) == (22, Some(0))).then_some(())
    })
    .await;
    wait_for_events(&env, "users", &["TriggeredByCall"]).await;
}

#[tokio::test]
async fn the_same_idempotency_key_returns_the_same_job() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    one_schedule(&env, &sidecar).await;
    let trigger = async |key: &str, body: Value| {
        sidecar.post_with("/jobs/trigger/user-sync", body, &[("idempotency-key", key)]).await
    };
    let first = trigger("monday", Value::Null).await;
    let again = trigger("monday", json!({"syncType": "incremental"})).await;
    assert_eq!((again.code.as_u16(), &again.body), (202, &first.body));
    assert!(!first.headers.contains_key("idempotent-replayed"));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(trigger("monday", json!({"syncType": "full"})).await.problem(), (422, "key-reused"));
    assert_ne!(trigger("tuesday", Value::Null).await.body["name"], first.body["name"]);
    for key in ["", "a b", "ä", &"x".repeat(256)] {
        assert_eq!(trigger(key, Value::Null).await.problem(), (400, "bad-request"), "{key}");
    }
    assert_eq!(env.jobs().list(&ListParams::default()).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn several_schedules_of_a_type_are_listed_and_selectable() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let missing = sidecar.post("/jobs/trigger/issue-sync", Value::Null).await;
    assert_eq!(missing.problem(), (404, "not-found"));
    for name in ["b", "a"] {
        let spec = json!({"suspended": true, "jobTemplate": {"spec": {"type": "Issue"}}});
        apply_schedule(&env, name, spec).await;
    }
    wait_for_schedules(&sidecar, 2).await;
    let answer = sidecar.post("/jobs/trigger/issue-sync", Value::Null).await;
    assert_eq!(answer.problem(), (409, "ambiguous"));
    let candidates = json!([{"namespace": env.name, "name": "a"}, {"namespace": env.name, "name": "b"}]);
    assert_eq!(answer.body["candidates"], candidates);
    let path = format!("/jobs/trigger/issue-sync?schedule=b&namespace={}", env.name);
    let job = get_job(&env, &sidecar.post(&path, Value::Null).await).await;
    assert_eq!(job.labels()["sync.codex.dev/schedule"], "b");
    assert_eq!(sidecar.post("/jobs/trigger/user-sync?schedule=b", Value::Null).await.problem().0, 404);
}

#[tokio::test]
async fn pause_and_resume_apply_to_the_filter_and_list_changes() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    apply_schedule(&env, "a", json!({"interval": "1h"})).await;
    apply_schedule(&env, "b", json!({"interval": "1h"})).await;
    apply_job(&env, "open", json!({})).await;
    ended(&env, "done", "Complete", 1).await;
    wait_for_schedules(&sidecar, 2).await;
    wait_for_phase(&sidecar, &env, "done", "Complete").await;

    let named = |name: &str| json!({"namespace": env.name, "name": name});
    let answer = sidecar.post("/jobs/pause?schedule=a", Value::Null).await;
    let one = json!({"paused": true, "schedules": [named("a")], "jobs": [], "unchanged": 0});
    assert_eq!((answer.code.as_u16(), &answer.body), (200, &one));
    let suspended = async || env.schedules().get("a").await.unwrap().spec.suspended;
    assert!(suspended().await);
    let pause = format!("/jobs/pause?namespace={}", env.name);
    let rest = json!({"paused": true, "schedules": [named("b")], "jobs": [named("open")], "unchanged": 1});
    assert_eq!(sidecar.post(&pause, Value::Null).await.body, rest);
    assert!(env.jobs().get("open").await.unwrap().spec.suspended);
    assert!(!env.jobs().get("done").await.unwrap().spec.suspended, "ended runs are not changed");
    let nothing = json!({"paused": true, "schedules": [], "jobs": [], "unchanged": 3});
    assert_eq!(sidecar.post(&pause, Value::Null).await.body, nothing);
    eventually("/jobs/status reports the pause", async || {
        sidecar.get("/jobs/status").await.body["paused"].as_bool().filter(|paused| *paused)
    })
    .await;
    let answer = sidecar.post("/jobs/resume", Value::Null).await;
    let all = json!({"paused": false, "schedules": [named("a"), named("b")], "jobs": [named("open")], "unchanged": 0});
    assert_eq!(answer.body, all);
    assert!(!suspended().await);
    assert_eq!(sidecar.post("/jobs/pause?schedule=c", Value::Null).await.problem(), (404, "not-found"));
    wait_for_events(&env, "open", &["PausedByCall"]).await;
}

#[tokio::test]
async fn a_call_sees_the_effect_of_the_call_before_it() {
    let env = TestEnv::new().await;
    let (one, other) = (Sidecar::open(&env).await, Sidecar::open(&env).await);
    one_schedule(&env, &one).await;
    wait_for_schedules(&other, 1).await;
    for round in 0..20 {
        let answer = one.post("/jobs/trigger/user-sync", Value::Null).await;
        let path = format!("/jobs/{}/{}", env.name, answer.body["name"].as_str().unwrap());
        assert_eq!(one.get(&path).await.code, 200, "round {round}");
        let (suspend, resume) = (format!("{path}/suspend"), format!("{path}/resume"));
        assert_eq!(one.post(&suspend, Value::Null).await.body["changed"], true, "round {round}");
        assert_eq!(one.post(&resume, Value::Null).await.body["changed"], true, "round {round}");
        for (sidecar, path) in [(&one, "/jobs/resume"), (&other, "/jobs/pause")] {
            let changed = sidecar.post(path, Value::Null).await.body;
            assert_eq!(changed["schedules"].as_array().unwrap().len(), 1, "round {round}: {changed}");
        }
    }
}

#[tokio::test]
async fn cleanup_deletes_only_runs_that_ended_long_ago() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    for (name, phase, hours) in [("old", "Complete", 30), ("bad", "Failed", 25), ("new", "Complete", 2)] {
        ended(&env, name, phase, hours).await;
        wait_for_phase(&sidecar, &env, name, phase).await;
    }
    apply_job(&env, "open", json!({})).await;
    let names = async || {
        let jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
        jobs.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
    };
    let path = format!("/jobs/cleanup?namespace={}", env.name);
    let both = json!({"completed": 1, "failed": 1, "remaining": 0});
    assert_eq!(sidecar.post(&path, json!({"dryRun": true})).await.body, both);
    assert_eq!(names().await.len(), 4);
    assert_eq!(sidecar.post(&path, Value::Null).await.body, both);
    assert_eq!(names().await, ["new", "open"]);
    for hours in [json!(-1), json!(8760.5), json!("24"), json!(true)] {
        let answer = sidecar.post(&path, json!({"gracePeriodHours": hours})).await;
        assert_eq!(answer.problem(), (422, "invalid-body"), "{hours}");
    }
    let none = json!({"completed": 1, "failed": 0, "remaining": 0});
    eventually("with no grace period, the last run is deleted too", async || {
        let body = sidecar.post(&path, json!({"gracePeriodHours": 0})).await.body;
        (body == none).then_some(())
    })
    .await;
    assert_eq!(names().await, ["open"]);
}

#[tokio::test]
async fn a_run_that_its_schedule_has_not_counted_is_not_cleaned_up() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    one_schedule(&env, &sidecar).await;
    let answer = sidecar.post("/jobs/trigger/user-sync", Value::Null).await;
    let name = get_job(&env, &answer).await.name_any();
    let at = "2026-11-23T12:00:00Z";
    env.patch_schedule_status("users", json!({"active": [{"name": name, "slot": at}]})).await;
    let condition = condition("Failed", "Test", "", at);
    env.patch_job_status(&name, json!({"phase": "Failed", "completionTime": at, "conditions": [condition]})).await;
    wait_for_phase(&sidecar, &env, &name, "Failed").await;
    let cleanup = async || sidecar.post("/jobs/cleanup", Value::Null).await.body;
    assert_eq!(cleanup().await, json!({"completed": 0, "failed": 0, "remaining": 0}));
    env.patch_schedule_status("users", json!({"active": []})).await;
    eventually("the run is deleted when it is counted", async || (cleanup().await["failed"] == 1).then_some(())).await;
}

#[tokio::test]
async fn a_run_can_be_suspended_resumed_cancelled_and_tried_again() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let filter = json!({"target": {"filter": {"age": {"$bigger": 3}}, "lastSyncedField": "seen"}});
    let uid = apply_job(&env, "run", filter).await.uid().unwrap();
    wait_for_phase(&sidecar, &env, "run", "Pending").await;
    let path = |action: &str| format!("/jobs/{}/run/{action}", env.name);
    let answer = sidecar.post(&path("suspend"), Value::Null).await;
    let changed = json!({"namespace": env.name, "name": "run", "jobId": uid, "changed": true});
    assert_eq!((answer.code.as_u16(), &answer.body), (200, &changed));
    assert_eq!(sidecar.post(&path("suspend"), Value::Null).await.body["changed"], false);
    assert_eq!(sidecar.post(&path("retry"), Value::Null).await.problem(), (409, "conflict"));
    assert_eq!(sidecar.post(&path("resume"), Value::Null).await.body["changed"], true);
    assert_eq!(sidecar.post(&path("cancel"), Value::Null).await.body["changed"], true);
    assert!(env.jobs().get("run").await.unwrap().spec.cancelled);

    let _operator = env.operator("controller", &[]);
    assert!(is_finished(&finished(&env, "run").await));
    wait_for_phase(&sidecar, &env, "run", "Failed").await;
    for action in ["cancel", "suspend", "resume"] {
        assert_eq!(sidecar.post(&path(action), Value::Null).await.problem(), (409, "conflict"), "{action}");
    }
    let answer = sidecar.post(&path("retry"), Value::Null).await;
    let again = get_job(&env, &answer).await;
    assert_eq!(again.spec.target.last_synced_field, "seen", "the cache has less of a run that ended");
    assert!(!again.spec.target.filter.is_empty() && !again.spec.cancelled && !again.spec.suspended);
    let replayed = sidecar.post(&path("retry"), Value::Null).await;
    assert_eq!((&replayed.body, &replayed.headers["idempotent-replayed"]), (&answer.body, &"true".parse().unwrap()));

    let failed = finished(&env, &again.name_any()).await;
    wait_for_phase(&sidecar, &env, &failed.name_any(), "Failed").await;
    let details = sidecar.get(&format!("/jobs/{}/{}", env.name, failed.name_any())).await.body;
    assert_eq!(details["reason"], "InvalidTarget");
    assert_eq!(details["attempts"][0]["number"], 1);
    assert!(details["message"].as_str().unwrap().contains("$bigger"), "{details}");
}

/// Creates a SyncJob with the status of a run whose guard holds 400 removals.
async fn hold(env: &TestEnv, name: &str) {
    let condition = json!({"type": "Held", "status": "True", "reason": "GuardExceeded",
        "message": "the run would mark 400 of 1000 documents: a1, a2", "lastTransitionTime": "2026-11-25T10:00:00Z"});
    env.patch_job_status(name, json!({"phase": "Held", "counts": {"held": 400}, "conditions": [condition]})).await;
}

#[tokio::test]
async fn a_held_run_is_approved_with_the_number_that_was_seen() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let uid = apply_job(&env, "run", json!({})).await.uid().unwrap();
    wait_for_phase(&sidecar, &env, "run", "Pending").await;
    let path = format!("/jobs/{}/run/approve", env.name);
    let approve = async |removals: Value| sidecar.post(&path, json!({"removals": removals})).await;
    assert_eq!(approve(json!(400)).await.problem(), (409, "conflict"), "the run is not held");
    hold(&env, "run").await;
    for removals in [json!(0), json!(-1), json!(1.5), json!(1e10), json!("400"), json!(null)] {
        assert_eq!(approve(removals.clone()).await.problem(), (422, "invalid-body"), "{removals}");
    }
    assert_eq!(sidecar.post(&path, Value::Null).await.problem(), (422, "invalid-body"));
    let fewer = approve(json!(399)).await;
    assert_eq!(fewer.problem(), (409, "conflict"));
    assert!(fewer.body["detail"].as_str().unwrap().contains("held for 400"), "{}", fewer.body);
    assert!(!env.jobs().get("run").await.unwrap().annotations().contains_key("sync.codex.dev/approve"));

    let changed = json!({"namespace": env.name, "name": "run", "jobId": uid, "changed": true});
    let answer = approve(json!(400)).await;
    assert_eq!((answer.code.as_u16(), &answer.body), (200, &changed));
    assert_eq!(env.jobs().get("run").await.unwrap().annotations()["sync.codex.dev/approve"], "400");
    assert_eq!(approve(json!(400.0)).await.body["changed"], false);
    wait_for_events(&env, "run", &["ApprovedByCall"]).await;
    let events = events(&env).await;
    let approvals: Vec<_> = events.iter().filter(|event| event.reason.as_deref() == Some("ApprovedByCall")).collect();
    assert_eq!(approvals.len(), 1);
    assert_eq!(approvals[0].note.as_deref(), Some("Approved 400 removals, by anonymous over HTTP"));

    wait_for_phase(&sidecar, &env, "run", "Held").await;
    let details = sidecar.get(&format!("/jobs/{}/run", env.name)).await.body;
    assert_eq!((&details["reason"], &details["counts"]["held"]), (&json!("GuardExceeded"), &json!(400)));
    assert!(details["message"].as_str().unwrap().ends_with("a1, a2"), "{details}");
    ended(&env, "over", "Complete", 1).await;
    wait_for_phase(&sidecar, &env, "over", "Complete").await;
    let over = format!("/jobs/{}/over/approve", env.name);
    assert_eq!(sidecar.post(&over, json!({"removals": 400})).await.problem(), (409, "conflict"));
}

#[tokio::test]
async fn an_unreadable_request_gets_a_problem_with_a_reason() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let body = |content: &str, body: String| {
        Request::post("/jobs/cleanup").header("content-type", content).body(Body::from(body)).unwrap()
    };
    let json = "application/json";
    let long = format!(r#"{{"dryRun": true, "x": "{}"}}"#, "x".repeat(64 * 1024));
    for (request, problem, words) in [
        (body(json, r#"{"dryrun": true}"#.into()), (422, "invalid-body"), "unknown field `dryrun`"),
        (body(json, r#"{"dryRun": 1}"#.into()), (422, "invalid-body"), "invalid type"),
        (body(json, "{".into()), (400, "bad-request"), "the body"),
        (body(json, "\u{0}".into()), (400, "bad-request"), "the body"),
        (body("text/plain", "{}".into()), (415, "unsupported-media-type"), "application/json"),
        (body(json, long), (413, "too-large"), "64 KiB"),
        (Request::get("/jobs?limit=0").body(Body::empty()).unwrap(), (400, "bad-request"), "limit"),
        (Request::get("/jobs?limit=x").body(Body::empty()).unwrap(), (400, "bad-request"), "limit"),
        (Request::get("/jobs?fase=Failed").body(Body::empty()).unwrap(), (400, "bad-request"), "fase"),
        (Request::get("/jobs?phase=Gone").body(Body::empty()).unwrap(), (400, "bad-request"), "Gone"),
        (Request::get("/jobs/a/b").body(Body::empty()).unwrap(), (404, "not-found"), "a/b"),
        (Request::get("/nowhere").body(Body::empty()).unwrap(), (404, "not-found"), "/nowhere"),
        (Request::post("/jobs/trigger/cat-sync").body(Body::empty()).unwrap(), (404, "not-found"), "path"),
        (Request::put("/jobs/pause").body(Body::empty()).unwrap(), (405, "method-not-allowed"), "Allow"),
    ] {
        let what = format!("{request:?}");
        let answer = sidecar.call(request).await;
        assert_eq!(answer.problem(), problem, "{what}");
        assert!(answer.body["detail"].as_str().unwrap().contains(words), "{what}: {}", answer.body);
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        if problem.0 == 405 {
            assert_eq!(answer.headers["allow"], "POST");
        }
    }
}

#[tokio::test]
async fn a_body_must_be_an_object() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    apply_job(&env, "run", json!({})).await;
    wait_for_phase(&sidecar, &env, "run", "Pending").await;
    one_schedule(&env, &sidecar).await;
    let approve = format!("/jobs/{}/run/approve", env.name);
    for path in ["/jobs/trigger/user-sync", "/jobs/cleanup", &approve] {
        for body in [json!([]), json!([true]), json!(["full"]), json!([1, 2]), json!(1), json!("{}"), json!(true)] {
            let answer = sidecar.post(path, body.clone()).await;
            assert_eq!(answer.problem(), (422, "invalid-body"), "{path} {body}");
            let detail = answer.body["detail"].as_str().unwrap();
            assert!(detail.contains("expected an object"), "{path} {body}: {detail}");
        }
        let unended = Request::post(path).header("content-type", "application/json").body(Body::from("[")).unwrap();
        assert_eq!(sidecar.call(unended).await.code, 422, "{path}");
    }
    assert_eq!(env.jobs().list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn a_client_over_the_rate_limit_gets_a_retry_after() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::new(&env, None, 5).await;
    let mut refused = 0;
    for _ in 0..20 {
        let answer = sidecar.get("/jobs").await;
        if answer.code != 200 {
            assert_eq!(answer.problem(), (429, "too-many-requests"));
            assert_eq!(answer.headers["retry-after"], "1");
            refused += 1;
        }
    }
    assert!(refused >= 10, "{refused} of 20");
    assert_eq!(sidecar.get("/livez").await.code, 200, "probes are never refused");
}

#[tokio::test]
async fn calls_over_the_concurrency_limit_are_refused() {
    let env = TestEnv::new().await;
    let one = NonZeroU32::MIN;
    let many = NonZeroU32::new(1000).unwrap();
    let settings = HttpSettings { requests_at_a_time: one, ..settings(None, many) };
    let sidecar = Sidecar::with(&env, settings).await;
    let (mut sender, body) = futures::channel::mpsc::channel::<Result<&str, std::io::Error>>(1);
    let slow = Request::post("/jobs/cleanup").header("content-type", "application/json");
    let slow = sidecar.call(slow.body(Body::from_stream(body)).unwrap());
    let others = async {
        eventually("the slow call is open", async || (sidecar.get("/jobs").await.code != 200).then_some(())).await;
        let refused = sidecar.get("/jobs").await;
        assert_eq!((refused.problem(), &refused.headers["retry-after"]), ((503, "overloaded"), &"1".parse().unwrap()));
        assert_eq!(sidecar.get("/livez").await.code, 200, "probes are never refused");
        sender.try_send(Ok(r#"{"dryRun": true}"#)).unwrap();
        drop(sender);
    };
    let (slow, ()) = tokio::join!(slow, others);
    assert_eq!(slow.code, 200);
    assert_eq!(sidecar.get("/jobs").await.code, 200);
}

/// A request without a body.
fn plain(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn one_caller_cannot_take_the_places_of_others() {
    let env = TestEnv::new().await;
    let [one, four, many] = [1, 4, 1000].map(|count: u32| NonZeroU32::new(count).unwrap());
    let settings = HttpSettings { requests_at_a_time: four, requests_per_caller: one, ..settings(None, many) };
    let sidecar = Sidecar::with(&env, settings).await;
    let (greedy, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
    let code = async |peer, path: &str| sidecar.send_from(peer, plain(path)).await.status().as_u16();
    let (mut sender, body) = futures::channel::mpsc::channel::<Result<&str, std::io::Error>>(1);
    let slow = Request::post("/jobs/cleanup").header("content-type", "application/json");
    let slow = sidecar.send_from(greedy, slow.body(Body::from_stream(body)).unwrap());
    let others = async {
        eventually("the slow call is open", async || (code(greedy, "/jobs").await == 429).then_some(())).await;
        let refused = sidecar.get("/jobs").await;
        assert_eq!(
            (refused.problem().1, &refused.headers["retry-after"]),
            ("too-many-requests", &"1".parse().unwrap())
        );
        assert_eq!(code(other, "/jobs").await, 200);
        sender.try_send(Ok(r#"{"dryRun": true}"#)).unwrap();
        drop(sender);
    };
    let (slow, ()) = tokio::join!(slow, others);
    assert_eq!((slow.status().as_u16(), code(greedy, "/jobs").await), (200, 200));

    let stream = sidecar.send_from(greedy, plain("/events")).await;
    assert_eq!((stream.status().as_u16(), code(greedy, "/events").await), (200, 429));
    assert_eq!(code(other, "/events").await, 200);
    drop(stream);
    assert_eq!(code(greedy, "/events").await, 200);
}

#[tokio::test]
async fn the_openapi_document_describes_every_call() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let document = sidecar.get("/openapi.json").await.body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    for (path, method) in [
        ("/health", "get"),
        ("/jobs/status", "get"),
        ("/jobs/trigger/{sync}", "post"),
        ("/jobs/pause", "post"),
        ("/jobs/resume", "post"),
        ("/jobs/cleanup", "post"),
        ("/jobs", "get"),
        ("/jobs/{namespace}/{name}", "get"),
        ("/jobs/{namespace}/{name}/cancel", "post"),
        ("/jobs/{namespace}/{name}/approve", "post"),
        ("/jobs/{namespace}/{name}/retry", "post"),
        ("/jobs/{namespace}/{name}/suspend", "post"),
        ("/jobs/{namespace}/{name}/resume", "post"),
        ("/events", "get"),
        ("/livez", "get"),
        ("/readyz", "get"),
    ] {
        let call = &document["paths"][path][method];
        assert!(call["description"].as_str().or(call["summary"].as_str()).is_some(), "{method} {path}: {call}");
        assert_eq!(call["security"].is_array(), method == "post", "{method} {path}");
    }
}
