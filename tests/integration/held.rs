//! Runs that their guard holds: approval, replacement by later runs, and end.

use bson::doc;
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};
use sync_operator::{
    api::{APPROVE_ANNOTATION, SUPERSEDED_BY_ANNOTATION, SyncJob, SyncSchedule, TRIGGER_ANNOTATION, syncjob::Phase},
    domain::{job::is_complete, run::State},
};

use crate::{
    sinks::HttpSink,
    support::{
        ALLOWED, Operator, TestEnv, apply_alert, apply_job, apply_once, ended, eventually, finished, reason, run,
        signing_key, source, wait_for_events, wait_for_phase, webhook,
    },
    upstream::Upstream,
};

/// A full run over all people of `upstream`, which marks the documents that it does not list.
fn walk(upstream: &Upstream) -> Value {
    json!({
        "syncType": "Full",
        "target": {"collection": "people"},
        "source": source("rest", &json!({
            "name": "people", "batching": "Pages", "upsert": true, "onMissing": "Mark", "pagination": {"by": "Link"},
            "endpoint": upstream.rest("/linked?n={first}"),
        })),
        "mapping": [{"from": "/name", "to": "name", "type": "String"}],
    })
}

/// Starts an operator with twelve confirmed documents, of which the source still has two.
async fn start_with_ten_missing() -> (TestEnv, Upstream, Operator) {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(12).await);
    let (operator, _) = env.all(&ALLOWED);
    let first = run(&env, "first", walk(&upstream)).await;
    assert_eq!((ended(&first).0, first.counts.unwrap().updated), ("Completed", 12));
    upstream.state().people = 2;
    (env, upstream, operator)
}

/// The keys of the documents that are marked.
async fn marked(env: &TestEnv) -> Vec<i64> {
    let people = env.database.collection::<bson::Document>("people");
    let mut found = people.find(doc! {"missingSince": {"$exists": true}}).sort(doc! {"_id": 1}).await.unwrap();
    let mut keys = Vec::new();
    while found.advance().await.unwrap() {
        keys.push(i64::from(found.current().get_i32("_id").unwrap_or(-1)));
    }
    keys
}

#[tokio::test]
async fn a_held_run_removes_only_what_was_approved() {
    let (env, upstream, _operator) = start_with_ten_missing().await;
    let uid = apply_job(&env, "few", walk(&upstream)).await.uid().unwrap();
    let held = wait_for_phase(&env, "few", Phase::Held).await;
    assert_eq!((reason(&held, "Held").as_deref(), reason(&held, "Reconciling")), (Some("GuardExceeded"), None));
    let status = held.status.unwrap();
    assert_eq!(status.counts.unwrap().held, Some(10));
    let held = status.conditions.iter().find(|condition| condition.type_ == "Held").unwrap();
    assert!(held.message.contains("would mark 10 of 12 confirmed documents"), "{}", held.message);
    assert!(held.message.contains("kubectl annotate syncjob few sync.codex.dev/approve=10"), "{}", held.message);
    wait_for_events(&env, "few", &["RunHeld"]).await;
    assert!(marked(&env).await.is_empty());

    env.annotate_job("few", APPROVE_ANNOTATION, "9").await;
    let heard = async || env.queue().get(&uid).await.unwrap().filter(|run| run.approved == Some(9));
    assert_eq!(eventually("the queue has the hold", heard).await.state, State::Parked);
    env.annotate_job("few", APPROVE_ANNOTATION, "10").await;
    let job = finished(&env, "few").await;
    assert!(is_complete(&job), "{:?}", job.status);
    assert_eq!(reason(&job, "Held"), None);
    wait_for_events(&env, "few", &["RunApproved", "RunCompleted"]).await;
    let counts = job.status.unwrap().counts.unwrap();
    assert_eq!((counts.marked, counts.held), (Some(10), None));
    assert_eq!(marked(&env).await, (2..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn later_runs_of_a_schedule_supersede_a_held_one() {
    let (env, upstream, http) = (TestEnv::new().await, Upstream::with_people(12).await, HttpSink::start().await);
    signing_key(&env, &http).await;
    apply_alert(&env, &json!([webhook(&http, "/hook")]), &json!({"when": [{"type": "RunHeld"}]})).await;
    let (_operator, _) = env.all(&ALLOWED);
    apply_once(&env, "people", walk(&upstream)).await;
    let status = async |what: &str, is: fn(&SyncSchedule) -> bool| {
        eventually(what, async || env.schedules().get("people").await.ok().filter(is)).await.status.unwrap()
    };
    status("the first run has listed all", |schedule| {
        schedule.status.as_ref().is_some_and(|status| status.runs.succeeded == 1)
    })
    .await;
    let trigger = async |token: &str| {
        env.trigger("people", token).await;
        eventually("the SyncJob is created", async || {
            let jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
            let is_it = |job: &SyncJob| job.annotations().get(TRIGGER_ANNOTATION).is_some_and(|found| found == token);
            jobs.into_iter().find(is_it)
        })
        .await
        .name_any()
    };
    upstream.state().people = 2;
    let older = trigger("a").await;
    wait_for_phase(&env, &older, Phase::Held).await;
    let held = status("a held run is not active", |schedule| {
        schedule.status.as_ref().is_some_and(|status| status.active_count == Some(0))
    })
    .await;
    assert_eq!(held.active[0].name, older, "the held run is active");
    http.wait_for_deliveries("/hook", 1).await;
    assert_eq!(http.notifications("/hook"), ["firing RunHeld people"]);

    let newer = trigger("b").await;
    wait_for_phase(&env, &newer, Phase::Held).await;
    let superseded = finished(&env, &older).await;
    assert_eq!(reason(&superseded, "Failed").as_deref(), Some("Superseded"));
    assert_eq!(superseded.annotations()[SUPERSEDED_BY_ANNOTATION], newer);
    wait_for_events(&env, &older, &["RunHeld", "RunCancelled"]).await;
    wait_for_events(&env, "people", &["RunSuperseded"]).await;

    upstream.state().people = 12;
    let last = trigger("c").await;
    assert!(is_complete(&finished(&env, &last).await));
    let superseded = finished(&env, &newer).await;
    assert_eq!(ended(superseded.status.as_ref().unwrap()), ("Superseded", format!("{last} supersedes it").as_str()));
    let counted = status("all are counted", |schedule| schedule.status.as_ref().unwrap().active.is_empty()).await;
    let runs = counted.runs;
    assert_eq!((runs.total, runs.succeeded, runs.failed, runs.replaced), (4, 2, 0, 2));
    let resolved =
        async || http.notifications("/hook").last().filter(|last| *last == "resolved RunHeld people").cloned();
    eventually("the sink is notified that no run is held", resolved).await;
    assert!(marked(&env).await.is_empty());
}

#[tokio::test]
async fn a_held_run_that_redis_lost_waits_for_its_approval() {
    let (env, upstream, _operator) = start_with_ten_missing().await;
    for name in ["approved", "cancelled"] {
        let uid = apply_job(&env, name, walk(&upstream)).await.uid().unwrap();
        let started = wait_for_phase(&env, name, Phase::Held).await.status.unwrap().start_time;
        env.queue().remove(&uid).await.unwrap();
        env.patch_job(name, json!({"priority": 1})).await;
        let job = eventually("the schedule was reconciled", async || {
            let job = env.jobs().get(name).await.ok()?;
            (job.status.as_ref()?.observed_generation == job.metadata.generation).then_some(job)
        })
        .await;
        assert_eq!(job.status.unwrap().phase, Some(Phase::Held), "{name}");
        assert_eq!(env.queue().get(&uid).await.unwrap(), None, "{name}");
        if name == "cancelled" {
            env.patch_job(name, json!({"cancelled": true})).await;
            let job = finished(&env, name).await;
            assert_eq!((reason(&job, "Failed").as_deref(), reason(&job, "Held")), (Some("Cancelled"), None));
        } else {
            env.annotate_job(name, APPROVE_ANNOTATION, "10").await;
            let job = finished(&env, name).await;
            assert!(is_complete(&job), "{:?}", job.status);
            wait_for_events(&env, name, &["RunApproved"]).await;
            let status = job.status.unwrap();
            assert_eq!((status.counts.unwrap().marked, status.start_time), (Some(10), started));
            assert_eq!(marked(&env).await, (2..12).collect::<Vec<_>>());
            // All documents are listed again, and then ten of them are missing again.
            upstream.state().people = 12;
            run(&env, "all", walk(&upstream)).await;
            assert!(marked(&env).await.is_empty());
            upstream.state().people = 2;
        }
    }
}

#[tokio::test]
async fn a_restarted_operator_keeps_held_runs() {
    let (env, upstream, operator) = start_with_ten_missing().await;
    let uid = apply_job(&env, "few", walk(&upstream)).await.uid().unwrap();
    let before = wait_for_phase(&env, "few", Phase::Held).await.status;
    assert_eq!(operator.stop().await, Some(0));
    let (_operator, _) = env.all(&ALLOWED);
    env.patch_job("few", json!({"priority": 1})).await;
    let heard = async || env.queue().get(&uid).await.unwrap().filter(|run| run.priority == 1);
    assert_eq!(eventually("the queue has the hold", heard).await.state, State::Parked);
    let after = env.jobs().get("few").await.unwrap().status;
    let conditions = |status: &Option<sync_operator::api::SyncJobStatus>| status.clone().unwrap().conditions;
    assert_eq!(conditions(&after)[0].last_transition_time, conditions(&before)[0].last_transition_time);
    env.annotate_job("few", APPROVE_ANNOTATION, "10").await;
    assert!(is_complete(&finished(&env, "few").await));
    assert_eq!(marked(&env).await.len(), 10);
}
