//! Several controllers: one leads, and another one takes over when it is killed, stopped or paused.

use std::{collections::HashSet, time::Duration};

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        rbac::v1::{Role, RoleBinding},
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use sync_operator::{api::SLOT_ANNOTATION, domain::job::is_finished};
use tokio::time::Instant;

use crate::support::{
    TestEnv, apply_job, apply_schedule, events, eventually, finished, get, leader_of, leads, probe_port, replicas,
};

const LEASE: Duration = Duration::from_secs(3);
/// The default lease duration, for tests that measure.
const DEFAULT: [&str; 2] = ["--leader-lease-duration", "10s"];

/// Creates a SyncJob, and returns the time until a controller has enqueued it.
async fn measure_enqueue(env: &TestEnv, name: &str) -> Duration {
    let began = Instant::now();
    apply_job(env, name, json!({"syncType": "Full"})).await;
    eventually("a controller enqueues the run", async || env.jobs().get(name).await.ok()?.status).await;
    let took = began.elapsed();
    finished(env, name).await;
    took
}

async fn lease(env: &TestEnv) -> Lease {
    let leases: Api<Lease> = Api::default_namespaced(env.client.clone());
    leases.get(&format!("sync-operator-{}", env.name)).await.unwrap()
}

#[tokio::test]
async fn another_controller_leads_within_15_s_of_a_kill() {
    let env = TestEnv::new().await;
    let mut replicas = replicas(&env, &DEFAULT).await;
    measure_enqueue(&env, "before").await;
    replicas.remove(0).process.signal("KILL");
    let took = measure_enqueue(&env, "after").await;
    println!("a SyncJob was queued {took:?} after the leader was killed");
    assert!(took < Duration::from_secs(15), "{took:?}");
    leader_of(&replicas).await;
    assert_eq!(lease(&env).await.spec.unwrap().lease_transitions, Some(1));
}

#[tokio::test]
async fn a_leader_that_stops_is_replaced_within_2_s() {
    let env = TestEnv::new().await;
    let mut replicas = replicas(&env, &DEFAULT).await;
    let mut took = Vec::new();
    for name in ["first", "second"] {
        let leader = leader_of(&replicas).await;
        let mut leader = replicas.remove(leader).process;
        leader.signal("TERM");
        took.push(measure_enqueue(&env, name).await);
        assert_eq!(leader.stop_and_wait().await, Some(0));
    }
    println!("a SyncJob was queued {took:?} after the leader received SIGTERM");
    // Other tests may delay one of the two changes, but hardly both.
    assert!(took.iter().any(|took| *took < Duration::from_secs(2)), "{took:?}");
    assert!(took.iter().all(|took| *took < Duration::from_secs(6)), "much less than the Lease: {took:?}");
}

/// A Lease that a stopping controller takes would delay the next leader until its end.
#[tokio::test]
async fn controllers_that_stop_together_release_the_lease() {
    let env = TestEnv::new().await;
    let replicas = replicas(&env, &DEFAULT).await;
    for replica in &replicas {
        replica.process.signal("TERM");
    }
    for replica in replicas {
        assert_eq!(replica.process.stop().await, Some(0));
    }
    let spec = lease(&env).await.spec.unwrap();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some(""), Some(0)));
}

#[tokio::test]
async fn a_controller_without_lease_rights_is_unready_with_a_reason() {
    let env = TestEnv::new().await;
    let user = format!("controller-{}", env.name);
    let (groups, verbs) = (["sync.codex.dev", "events.k8s.io"], ["*"]);
    allow(&env, &user, &env.name, json!([{"apiGroups": groups, "resources": ["*"], "verbs": verbs}])).await;
    let controller = env.operator_on(&env.as_user(&user), "controller", &["--workers", "0"]);
    let port = probe_port(&controller).await;
    let readyz = async || {
        let (code, body) = get(port, "/readyz").await?;
        Some((code, serde_json::from_str::<Value>(&body).unwrap()["missing"].clone()))
    };
    eventually("the Lease is missing", async || readyz().await.filter(|seen| *seen == (503, json!(["lease"])))).await;
    let log = controller.log();
    assert!(
        log.lines().any(|line| line.contains("could not read or write the Lease") && line.contains("forbidden")),
        "{log}"
    );

    let leases = json!([{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs}]);
    allow(&env, &user, "default", leases).await;
    eventually("nothing is missing", async || readyz().await.filter(|seen| *seen == (200, Value::Null))).await;
    eventually("it leads", async || leads(port).await.then_some(())).await;
}

/// Gives a user rights in a namespace.
async fn allow(env: &TestEnv, user: &str, namespace: &str, rules: Value) {
    let metadata = json!({"name": user});
    let role = json!({"metadata": metadata, "rules": rules});
    let of = |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user});
    let binding = json!({"metadata": metadata, "roleRef": of("Role"), "subjects": [of("User")]});
    let params = PostParams::default();
    let roles: Api<Role> = Api::namespaced(env.client.clone(), namespace);
    roles.create(&params, &serde_json::from_value(role).unwrap()).await.unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(env.client.clone(), namespace);
    bindings.create(&params, &serde_json::from_value(binding).unwrap()).await.unwrap();
}

/// Scenario 15 of the fault list.
#[tokio::test]
async fn a_leader_paused_beyond_its_lease_writes_no_more() {
    let env = TestEnv::new().await;
    let replicas = replicas(&env, &[]).await;
    apply_schedule(&env, "users", json!({"interval": "1s", "concurrencyPolicy": "Allow"})).await;
    let jobs = env.jobs();
    let made = async || jobs.list(&ListParams::default()).await.unwrap().items;
    eventually("a run is created", async || (!made().await.is_empty()).then_some(())).await;

    let paused = &replicas[0];
    paused.process.signal("STOP");
    let holder = lease(&env).await.spec.unwrap().holder_identity;
    eventually("another leader", async || (lease(&env).await.spec?.holder_identity != holder).then_some(())).await;
    let since = Timestamp::now();
    paused.process.signal("CONT");
    eventually("the old leader has stopped leading", async || (!leads(paused.port).await).then_some(())).await;
    eventually("the new leader creates runs", async || {
        let newer = made().await.into_iter().filter(|job| job.creation_timestamp().unwrap().0 > since);
        (newer.count() >= 2).then_some(())
    })
    .await;
    assert!(paused.process.log().contains("lost leadership"));
    let events_by = async |by: bool| {
        let events = events(&env).await;
        let later = events.iter().filter(|event| event.event_time.as_ref().is_some_and(|time| time.0 > since));
        later.filter(|event| (event.reporting_instance == holder) == by).count()
    };
    eventually("the new leader sends events", async || (events_by(false).await > 0).then_some(())).await;
    assert_eq!(events_by(true).await, 0, "the old leader sends no more events");

    let jobs = made().await;
    let slots: HashSet<_> = jobs.iter().map(|job| job.annotations()[SLOT_ANNOTATION].clone()).collect();
    assert_eq!(slots.len(), jobs.len(), "one SyncJob for each slot");
    let conditions = |job: &sync_operator::api::SyncJob| {
        let conditions = job.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        conditions.iter().filter(|found| ["Complete", "Failed"].contains(&found.type_.as_str())).count()
    };
    assert!(jobs.iter().filter(|job| is_finished(job)).all(|job| conditions(job) == 1));
}

#[tokio::test]
async fn a_single_controller_leads_again_after_a_long_pause() {
    let env = TestEnv::new().await;
    let controller = env.operator("controller", &[]);
    apply_schedule(&env, "users", json!({"interval": "5s"})).await;
    let schedules = env.schedules();
    // No run is active then: only the next slot is left to do.
    let settled = async |runs: i64| {
        let status = schedules.get("users").await.ok()?.status?;
        (status.runs.succeeded >= runs && status.active.is_empty()).then_some(status.runs.succeeded)
    };
    let before = eventually("a run has ended", async || settled(1).await).await;

    controller.signal("STOP");
    // The test is about the length of the pause. No other controller can take the Lease.
    tokio::time::sleep(2 * LEASE).await;
    controller.signal("CONT");
    let resumed = Instant::now();
    eventually("runs are created again", async || settled(before + 1).await).await;
    println!("a run was made and done {:?} after the pause (interval 5s, lease {LEASE:?})", resumed.elapsed());
    drop(controller);
}

#[tokio::test]
async fn probes_report_the_leader_and_the_state_of_workers() {
    let env = TestEnv::new().await;
    let replicas = replicas(&env, &[]).await;
    let identity = lease(&env).await.spec.unwrap().holder_identity.unwrap();
    for (index, replica) in replicas.iter().enumerate() {
        let body = eventually("the probe reports the leader", async || {
            let (code, body) = get(replica.port, "/readyz").await?;
            (code == 200 && body.contains(&identity)).then_some(body)
        })
        .await;
        let expected = json!({"ready": true, "leading": index == 0, "leader": identity});
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
        let (_, metrics) = get(replica.port, "/metrics").await.unwrap();
        assert!(metrics.contains(&format!("sync_leader {}\n", u8::from(index == 0))), "{metrics}");
    }
    let worker = env.operator("worker", &[]);
    let port = probe_port(&worker).await;
    let ready = async || get(port, "/readyz").await.filter(|(code, _)| *code == 200);
    let (_, body) = eventually("the worker is ready", ready).await;
    assert_eq!(body, r#"{"ready":true}"#);
}
