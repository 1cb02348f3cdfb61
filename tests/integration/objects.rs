//! Objects that this release cannot read, and objects that the API server refuses: neither affects other objects, and
//! each has its reason in a condition.

use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{
    Api, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::Request,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, SyncSchedule, SyncScheduleStatus},
    cluster::{self, Kind, ReadResult},
    domain::conditions::find,
};
use tokio::time::Instant;

use crate::{
    servers::DedicatedServer,
    support::{
        TestEnv, apply_job, apply_once, apply_schedule, events, eventually, finished, get, quiet_interval, reason,
        runs_in_redis, slow, wait_for_events,
    },
};

/// A filter with this number of levels.
fn filter(levels: usize) -> String {
    format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels))
}

/// Creates an object, and does not read the answer.
async fn create<K: Kind>(env: &TestEnv, name: &str, spec: &str) {
    let kind = K::kind(&());
    let text = format!(
        r#"{{"apiVersion":"sync.codex.dev/v1alpha1","kind":"{kind}","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
    );
    let url = K::url_path(&(), Some(&env.name));
    let request = Request::new(url).create(&PostParams::default(), text.into_bytes()).unwrap();
    env.client.request::<IgnoredAny>(request).await.unwrap();
}

/// Waits until an unreadable object has this condition, and returns the reason.
async fn wait_until_unreadable<K: Kind>(env: &TestEnv, name: &str, condition: &str) -> String {
    let api: Api<K> = Api::namespaced(env.client.clone(), &env.name);
    eventually("the object is reported as unreadable", async || {
        let Some(ReadResult::Unreadable(unreadable)) = cluster::read_object(&api, name).await.unwrap() else {
            panic!("readable")
        };
        let found = find(unreadable.outline.conditions(), condition)?;
        (found.reason == "Unreadable").then(|| found.message.clone())
    })
    .await
}

#[tokio::test]
async fn an_unreadable_object_does_not_affect_others() {
    let (kube, servers) = DedicatedServer::up("kube");
    kube.install_crds();
    // The kind of a newer release.
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/syncType/enum/-";
    let newer = json!([{"op": "add", "path": path, "value": "Newer"}]).to_string();
    kube.script(&["kubectl", "patch", "crd", "syncjobs.sync.codex.dev", "--type=json", "-p", &newer]);
    let env = TestEnv::on(servers).await;
    env.seed(10, 0).await;
    let (operator, _) = env.all(&[]);
    apply_job(&env, "before", json!({"syncType": "Full"})).await;
    finished(&env, "before").await;

    // The controller watches. The API server accepts a new enum value some time after the change of the kind.
    let deep = format!(r#"{{"suspended":true,"target":{{"filter":{}}}}}"#, filter(140));
    create::<SyncJob>(&env, "deep", &deep).await;
    create::<SyncSchedule>(&env, "deep", &format!(r#"{{"jobTemplate":{{"spec":{deep}}}}}"#)).await;
    eventually("the API server accepts a newer value", async || {
        let request = json!({"apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "metadata": {"name": "newer"},
            "spec": {"syncType": "Newer"}});
        let url = SyncJob::url_path(&(), Some(&env.name));
        let request = Request::new(url).create(&PostParams::default(), request.to_string().into_bytes()).unwrap();
        env.client.request::<IgnoredAny>(request).await.ok()
    })
    .await;
    assert!(
        wait_until_unreadable::<SyncJob>(&env, "deep", "Reconciling")
            .await
            .contains("target.filter may have 32 levels")
    );
    assert!(wait_until_unreadable::<SyncJob>(&env, "newer", "Reconciling").await.contains("unknown variant `Newer`"));
    for condition in ["Ready", "Stalled"] {
        wait_until_unreadable::<SyncSchedule>(&env, "deep", condition).await;
    }
    wait_for_events(&env, "newer", &["Unreadable"]).await;
    apply_job(&env, "healthy", json!({"syncType": "Full"})).await;
    finished(&env, "healthy").await;
    let log = operator.log();
    assert!(log.contains("an object cannot be read") && log.lines().all(|line| line.len() < 2000), "{log}");
    assert_eq!(operator.stop().await, Some(0));

    // After a restart, the first list has them.
    let (operator, port) = env.all(&[]);
    apply_once(&env, "users", json!({})).await;
    eventually("a schedule runs", async || {
        let status = env.schedules().get("users").await.ok()?.status?;
        (status.runs.succeeded == 1).then_some(())
    })
    .await;
    let (code, jobs) = get(port, "/jobs").await.unwrap();
    assert!(code == 200 && jobs.contains("healthy"), "{code} {jobs}");
    let reported = events(&env).await;
    let reported = reported.iter().filter(|event| event.reason.as_deref() == Some("Unreadable")).count();
    assert_eq!(reported, 3, "each object is reported once");
    // An object that can be read, but is too deep.
    let spec: Value = serde_json::from_str(&format!(r#"{{"target":{{"filter":{}}}}}"#, filter(33))).unwrap();
    apply_job(&env, "nested", spec).await;
    let nested = finished(&env, "nested").await;
    let failed = find(&nested.status.as_ref().unwrap().conditions, "Failed").unwrap();
    assert_eq!(failed.message, "target.filter must have at most 32 levels, not 33");
    assert_eq!(reason(&nested, "Failed").as_deref(), Some("InvalidTarget"));
    // An object that can be read again is processed.
    let patch = Patch::Merge(json!({"spec": {"jobTemplate": null, "interval": quiet_interval(60)}}));
    let deep: Api<ReadResult<SyncSchedule>> = Api::namespaced(env.client.clone(), &env.name);
    deep.patch("deep", &PatchParams::default(), &patch).await.unwrap();
    eventually("it is ready", async || {
        let status = env.schedules().get("deep").await.ok()?.status?;
        let is_stalled = find(&status.conditions, "Stalled").is_some();
        (find(&status.conditions, "Ready")?.status == "True" && !is_stalled).then_some(())
    })
    .await;
    let log = operator.log();
    assert!(log.lines().all(|line| line.len() < 2000), "{log}");
}

async fn until<T>(env: &TestEnv, what: &str, found: impl Fn(&SyncScheduleStatus) -> Option<T>) -> T {
    eventually(what, async || found(&env.schedules().get("users").await.ok()?.status?)).await
}

fn ready(status: &SyncScheduleStatus) -> Option<(String, String)> {
    find(&status.conditions, "Ready").map(|ready| (ready.reason.clone(), ready.message.clone()))
}

#[tokio::test]
async fn a_quota_is_reported_and_runs_resume_without_it() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let quotas: Api<ResourceQuota> = Api::namespaced(env.client.clone(), &env.name);
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"count/syncjobs.sync.codex.dev": "0"}}});
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    // The status replaces the controller manager, which need not run.
    let counted = json!({"status": {"hard": {"count/syncjobs.sync.codex.dev": "0"}, "used": {"count/syncjobs.sync.codex.dev": "0"}}});
    quotas.patch_status("none", &PatchParams::default(), &Patch::Merge(counted)).await.unwrap();
    let (operator, _) = env.all(&[]);
    apply_schedule(&env, "users", json!({"interval": "2s"})).await;
    let message = until(&env, "the refusal is reported", |status| {
        ready(status).filter(|(reason, _)| reason == "CreateFailed").map(|(_, message)| message)
    })
    .await;
    assert!(message.contains("Could not create a SyncJob") && message.contains("quota"), "{message}");
    let skip = until(&env, "a slot is skipped", |status| status.last_skip.clone()).await;
    assert_eq!(skip.reason, "CreateFailed");
    wait_for_events(&env, "users", &["CreateFailed", "RunSkipped"]).await;
    let log = operator.log();
    let warned = log.lines().filter(|line| line.contains("WARN") && line.contains("a request for an object failed"));
    assert_eq!(warned.count(), 1, "{log}");
    quotas.delete("none", &DeleteParams::default()).await.unwrap();
    let began = Instant::now();
    until(&env, "a run succeeds", |status| (status.runs.succeeded > 0).then_some(())).await;
    until(&env, "it is ready", |status| ready(status).filter(|(reason, _)| reason == "Scheduled")).await;
    println!("runs resumed {:?} after the quota was deleted", began.elapsed());
}

#[tokio::test]
async fn a_refused_slot_ends_with_its_deadline() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&[]);
    let labels = |team: &str| json!({"metadata": {"labels": {"team": team}}});
    let spec = json!({"interval": quiet_interval(60), "immediate": true, "startingDeadline": "4s", "jobTemplate": labels("a b")});
    apply_schedule(&env, "users", spec).await;
    let status = until(&env, "the slot is skipped", |status| status.last_skip.is_some().then(|| status.clone())).await;
    assert_eq!(status.last_skip.as_ref().unwrap().reason, "CreateFailed");
    assert_eq!((status.active.len(), status.runs.total, status.runs.skipped), (0, 0, 1));
    let (reason, message) = ready(&status).unwrap();
    assert!(reason == "CreateFailed" && message.contains("a b"), "{reason} {message}");
    let annotations = json!({"sync.codex.dev/trigger": "now"});
    let patch = json!({"metadata": {"annotations": annotations}, "spec": {"jobTemplate": labels("ab")}});
    env.patch_schedule("users", patch).await;
    let began = Instant::now();
    until(&env, "the triggered run succeeds", |status| (status.runs.succeeded == 1).then_some(())).await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    until(&env, "it is ready", |status| ready(status).filter(|(reason, _)| reason == "Scheduled")).await;
}

#[tokio::test]
async fn a_job_that_waits_for_a_finalizer_blocks_no_other() {
    let env = TestEnv::new().await;
    env.seed(20_000, 0).await;
    let (_operator, _) = env.all(&[]);
    let spec = json!({"interval": "1s", "immediate": true, "jobTemplate": {"spec": slow()}});
    apply_schedule(&env, "users", spec).await;
    let first =
        until(&env, "a run is active", |status| status.active.iter().find(|run| run.uid.is_some()).cloned()).await;
    let finalizers = |names: Value| Patch::Merge(json!({"metadata": {"finalizers": names}}));
    let jobs = env.jobs();
    jobs.patch(&first.name, &PatchParams::default(), &finalizers(json!(["example.com/keep"]))).await.unwrap();
    jobs.delete(&first.name, &DeleteParams::default()).await.unwrap();
    until(&env, "the next run is created", |status| {
        status.active.iter().any(|run| run.name != first.name && run.uid.is_some()).then_some(())
    })
    .await;
    let uid = first.uid.unwrap();
    eventually("the run is removed", async || (!runs_in_redis(&env).await.contains(&uid)).then_some(())).await;
    assert!(jobs.get(&first.name).await.unwrap().metadata.deletion_timestamp.is_some());
    jobs.patch(&first.name, &PatchParams::default(), &finalizers(json!(null))).await.unwrap();
}
