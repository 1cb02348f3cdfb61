//! MongoDB steps down, does not answer in time, or refuses the operator during runs.

use std::time::Duration;

use bson::{DateTime, Document, doc};
use serde_json::json;
use sync_operator::domain::job::{is_complete, is_finished};
use tokio::time::Instant;

use crate::{
    servers::{DedicatedServer, MongoDb},
    support::{Servers, TestEnv, apply_job, eventually, finished, reason, slow_on, wait_until_running},
};

/// Scenario 11 of the fault list.
#[tokio::test]
async fn the_primary_steps_down_during_a_run() {
    const USERS: i32 = 10_000;
    let (_mongodb, servers) = DedicatedServer::up("mongodb");
    let env = TestEnv::on(servers).await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    let backoff = json!({"initial": "200ms", "factor": 1});
    let spec = json!({"syncType": "Full", "batchSize": 250, "parallelism": 2, "backoffLimit": 20, "backoff": backoff});
    apply_job(&env, "run", spec).await;
    let admin = env.database.client().database("admin");
    let users = env.database.collection::<Document>("users");
    let mut last = 0;
    // The primary steps down each time after some more documents, until the run has ended.
    let job = eventually("the run has ended", async || {
        let stamped = users.count_documents(doc! {"lastSynced": {"$type": "date"}}).await;
        if let Ok(now) = stamped.map(|now| now as i32)
            && now >= last + 2_000
            && now < USERS
        {
            last = now;
            admin.run_command(doc! {"replSetStepDown": 1, "force": true}).await.ok();
        }
        env.jobs().get("run").await.ok().filter(is_finished)
    })
    .await;
    let status = job.status.as_ref().unwrap();
    assert!(is_complete(&job), "{status:?}");
    assert!(status.attempts >= Some(1), "no step-down hit the run");
    let (counts, users) = (status.counts.unwrap(), i64::from(USERS));
    assert_eq!((counts.total, counts.processed, counts.updated, counts.failed), (users, users, users, 0));
    let start = DateTime::from_millis(status.start_time.as_ref().unwrap().0.as_millisecond());
    assert_eq!(env.count(doc! {"lastSynced": start}).await, USERS as u64);
}

/// Scenario 13 of the fault list: each operation takes 30 s.
#[tokio::test]
async fn mongodb_is_slow_during_a_run() {
    const USERS: i32 = 20_000;
    let mongodb = MongoDb::start(&["--setParameter", "enableTestCommands=1"]);
    mongodb.run("", doc! {"ping": 1}).await;
    let env = TestEnv::on(Servers { mongodb: mongodb.url(""), ..Servers::shared() }).await;
    env.seed(USERS, 0).await;
    let (operator, _) = env.all(&["--lease-duration", "2s"]);
    for (name, deadline) in [("cancelled", "1h"), ("late", "8s")] {
        let mut spec = slow_on(name);
        spec["activeDeadline"] = json!(deadline);
        apply_job(&env, name, spec).await;
        wait_until_running(&env, name).await;
    }
    let commands = ["find", "getMore", "aggregate", "update", "listIndexes", "count"];
    let slowly = doc! {"failCommands": &commands[..], "blockConnection": true, "blockTimeMS": 30_000, "appName": "sync-operator"};
    mongodb.run("", doc! {"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": slowly}).await;
    // This run waits for its first operation.
    let spec = json!({"target": {"keyField": "email", "lastSyncedField": "begun"}});
    apply_job(&env, "begun", spec).await;
    eventually("the run is claimed", async || (operator.log().matches("run claimed").count() == 3).then_some(())).await;

    let began = Instant::now();
    let late = finished(&env, "late").await;
    assert_eq!(reason(&late, "Failed").as_deref(), Some("DeadlineExceeded"));
    for name in ["cancelled", "begun"] {
        env.patch_job(name, json!({"cancelled": true})).await;
    }
    for name in ["cancelled", "begun"] {
        assert_eq!(reason(&finished(&env, name).await, "Failed").as_deref(), Some("Cancelled"), "{name}");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(25), "no run waited for MongoDB: {took:?}");
    for name in ["late", "cancelled", "begun"] {
        let status = env.jobs().get(name).await.unwrap().status.unwrap();
        assert_eq!(status.recoveries, Some(0), "{name}: a worker that waits for MongoDB keeps its lease");
    }
}

/// The MongoDB user of the operator has no rights, or may only read.
#[tokio::test]
async fn missing_collection_rights_are_reported_without_a_retry() {
    let mongodb = MongoDb::start(&["--auth"]);
    mongodb.run("", doc! {"createUser": "admin", "pwd": "secret", "roles": ["root"]}).await;
    let admin = "admin:secret@";
    let env = TestEnv::on(Servers { mongodb: mongodb.url(admin), ..Servers::shared() }).await;
    env.seed(10, 0).await;
    let (_controller, _) = env.all(&["--workers", "0"]);
    for (user, roles) in [("nobody", vec![]), ("reader", vec![doc! {"role": "read", "db": &env.name}])] {
        mongodb.run(admin, doc! {"createUser": user, "pwd": "secret", "roles": roles}).await;
        let servers = Servers { mongodb: mongodb.url(&format!("{user}:secret@")), ..env.servers.clone() };
        let worker = env.operator_on(&servers, "worker", &[]);
        apply_job(&env, user, json!({"syncType": "Full"})).await;
        let job = finished(&env, user).await;
        assert_eq!(reason(&job, "Failed").as_deref(), Some("InvalidTarget"), "{user}");
        let history = job.status.unwrap().attempt_history;
        assert_eq!(history.len(), 1, "{user}: {history:?}");
        assert_eq!(history[0].reason, "InvalidTarget");
        let message = &history[0].message;
        assert!(message.contains("Unauthorized") && message.contains("grant it find and update"), "{user}: {message}");
        assert_eq!(worker.stop().await, Some(0));
    }
}
