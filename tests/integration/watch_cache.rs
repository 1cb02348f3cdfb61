//! The watches of the controller are delayed, interrupted, or end.

use std::{fs, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    servers::{DedicatedServer, Link, address_in},
    support::{
        Servers, TestEnv, apply_job, apply_once, apply_schedule, eventually, finished, get, lines, quiet_interval,
        runs_in_redis, slow, unique, wait_until_removed, wait_until_running,
    },
};

/// Scenario 6 of the fault list: objects are created and deleted while the controller is paused, so it sees only the
/// last state.
#[tokio::test]
async fn objects_created_and_deleted_unseen_leave_nothing() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (operator, _) = env.all(&["--resync-interval", "1h"]);
    let quiet = quiet_interval(60);
    apply_schedule(&env, "users", json!({"interval": quiet})).await;
    let scheduled = async |generation: i64| {
        eventually("the schedule has a next slot", async || {
            let status = env.schedules().get("users").await.ok()?.status?;
            (status.observed_generation == Some(generation) && status.next_schedule_time.is_some()).then_some(status)
        })
        .await
    };
    let before = scheduled(1).await;

    operator.signal("STOP");
    for interval in ["1s", &quiet] {
        env.patch_schedule("users", json!({"spec": {"interval": interval}})).await;
    }
    let jobs = env.jobs();
    for name in ["gone", "again"] {
        apply_job(&env, name, json!({"syncType": "Full", "target": {"lastSyncedField": name}})).await;
        jobs.delete(name, &DeleteParams::default()).await.unwrap();
    }
    let uid = apply_job(&env, "again", json!({"syncType": "Full"})).await.uid().unwrap();
    operator.signal("CONT");

    let after = scheduled(3).await;
    assert_eq!((after.next_schedule_time, after.runs, after.last_skip), (before.next_schedule_time, before.runs, None));
    assert_eq!(finished(&env, "again").await.uid().unwrap(), uid);
    assert_eq!(env.count(bson::doc! {"again": {"$exists": true}}).await, 0, "the first SyncJob did not run");
    assert_eq!(runs_in_redis(&env).await, [uid]);

    // The same without a pause of the controller.
    for count in 0..30 {
        let name = format!("fleeting-{count}");
        apply_job(&env, &name, json!({"syncType": "Full"})).await;
        jobs.delete(&name, &DeleteParams::default()).await.unwrap();
    }
    jobs.delete("again", &DeleteParams::default()).await.unwrap();
    wait_until_removed(&env).await;
}

/// Scenario 20 of the fault list: a network drops connections, and neither end receives an error.
#[tokio::test]
async fn a_watch_with_a_dead_connection_is_detected() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let kubeconfig = fs::read_to_string(&env.servers.kubeconfig).unwrap();
    let server = address_in(&kubeconfig, "https://");
    let link = Link::to(server).await;
    let file = std::env::temp_dir().join(unique("kubeconfig"));
    fs::write(&file, kubeconfig.replace(&server.to_string(), &link.address.to_string())).unwrap();
    let servers = Servers { kubeconfig: file.to_str().unwrap().to_owned(), ..env.servers.clone() };
    let mut operator = env.operator_on(&servers, "controller", &[]);
    apply_job(&env, "before", json!({"syncType": "Full"})).await;
    finished(&env, "before").await;

    link.forget_connections();
    let began = Instant::now();
    env.jobs().delete("before", &DeleteParams::default()).await.unwrap();
    apply_once(&env, "users", json!({})).await;
    eventually("its first run succeeded", async || {
        let status = env.schedules().get("users").await.ok()?.status?;
        (status.runs.succeeded == 1).then_some(())
    })
    .await;
    let took = began.elapsed();
    println!("a SyncSchedule was seen {took:?} after the connections went dead");
    assert!(took < Duration::from_secs(90), "{took:?}");
    assert!(operator.is_running());
    fs::remove_file(file).ok();
}

/// Scenario 22 of the fault list. Namespaces end only while the controller manager runs, so it is stopped for a while.
#[tokio::test]
async fn the_namespace_and_the_kinds_can_be_deleted() {
    let (kube, servers) = DedicatedServer::up("kube");
    kube.install_crds();
    let env = TestEnv::on(servers).await;
    env.seed(20_000, 0).await;
    let port = crate::support::free_port();
    let http = ["--http-address", "127.0.0.1", "--http-port", &port.to_string()];
    let mut operator = env.operator("all", &[&http[..], &["--log-level", "sync_operator=debug"]].concat());
    let nothing = json!({"target": {"collection": "nothing"}});
    let spec = json!({"interval": "1s", "concurrencyPolicy": "Allow", "jobTemplate": {"spec": nothing}});
    apply_schedule(&env, "users", spec).await;
    apply_job(&env, "run", slow()).await;
    wait_until_running(&env, "run").await;

    kube.script(&["stop", "controller-manager"]);
    let namespaces: Api<Namespace> = Api::all(env.client.clone());
    namespaces.delete(&env.name, &DeleteParams::default()).await.unwrap();
    let refused = |log: &str| lines(log, "is being terminated");
    eventually("a SyncJob is refused", async || (refused(&operator.log()) > 0).then_some(())).await;
    let made = env.jobs().list(&ListParams::default()).await.unwrap().items.len();
    // The test is about the duration: a slot each second, and a retry of errors after 5 s.
    sleep(Duration::from_secs(11)).await;
    let log = operator.log();
    for what in ["could not create a SyncJob", "could not write an event"] {
        let tries = log.lines().filter(|line| line.contains(what) && line.contains("is being terminated")).count();
        assert!(tries <= 2, "{tries} times {what} in a namespace that is being deleted");
    }
    assert_eq!(env.jobs().list(&ListParams::default()).await.unwrap().items.len(), made);
    kube.script(&["start", "controller-manager"]);
    let began = Instant::now();
    eventually("the namespace is deleted", async || {
        namespaces.get_opt(&env.name).await.unwrap().is_none().then_some(())
    })
    .await;
    println!("the namespace was deleted after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    wait_until_removed(&env).await;
    assert!(operator.is_running());

    // The namespace is created again. Then the kinds are deleted while objects exist.
    let namespace = serde_json::from_value(json!({"metadata": {"name": env.name}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    apply_job(&env, "again", json!({"syncType": "Full"})).await;
    finished(&env, "again").await;
    apply_job(&env, "last", slow()).await;
    wait_until_running(&env, "last").await;
    let delete = ["kubectl", "delete", "--timeout", "60s", "-f", "crds"];
    kube.script(&delete);
    wait_until_removed(&env).await;
    assert!(operator.is_running());
    assert_eq!(get(port, "/livez").await.unwrap().0, 200);
    assert_eq!(operator.stop().await, Some(0));
}
