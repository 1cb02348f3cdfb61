//! Faults that need several members of a replica set, and are not random.

use std::time::Duration;

use bson::{Document, doc};
use futures::TryStreamExt;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use sync_operator::{
    domain::run::RunSpec,
    sync::{Batch, Deployment, TargetCollection},
};
use tokio::time::timeout;

use super::environment::{Environment, MEMBERS};
use crate::support::unique;

/// Scenario 12 of the fault list: replication stops. Writes that only the primary has are lost when another member is
/// elected. So neither the worker that stamped documents nor a worker that reads the stamps may count them.
pub async fn a_stamp_that_could_be_rolled_back_does_not_count(environment: &Environment) {
    let uri = &environment.servers.mongodb;
    let name = unique("minority");
    let database = mongodb::Client::with_uri_str(uri).await.unwrap().database(&name);
    database.collection("users").insert_many((0..10).map(|id| doc! {"_id": id})).await.unwrap();
    let spec = RunSpec::parse(&serde_json::from_value(json!({"syncType": "Full"})).unwrap()).unwrap();
    let started = Timestamp::now();
    let worker =
        async || Deployment::new(uri, &name, &[], None).await.unwrap().target(&spec, "test", started, started).unwrap();
    let (first, second) = (worker().await, worker().await);
    let batch = read(&first).await;

    let secondaries = secondaries(environment).await;
    for member in &secondaries {
        member.run_command(doc! {"fsync": 1, "lock": true}).await.unwrap();
    }
    let mut stamps = tokio::spawn(async move { first.write(batch).await });
    assert!(timeout(Duration::from_millis(500), &mut stamps).await.is_err(), "no majority has the stamps");
    let mut finds_them = tokio::spawn(async move { second.write(read(&second).await).await });
    let found = timeout(Duration::from_secs(1), &mut finds_them).await;
    for member in &secondaries {
        member.run_command(doc! {"fsyncUnlock": 1}).await.unwrap();
    }
    assert!(found.is_err(), "no majority has the stamps that were found: {found:?}");
    for worker in [stamps, finds_them] {
        assert_eq!(worker.await.unwrap().unwrap().updated, 10);
    }
    let stamped = doc! {"lastSynced": {"$exists": true}};
    assert_eq!(database.collection::<Document>("users").count_documents(stamped).await.unwrap(), 10);
    database.drop().await.unwrap();
}

async fn read(target: &TargetCollection) -> Batch {
    target.batches(None).try_collect::<Vec<_>>().await.unwrap().pop().unwrap()
}

async fn secondaries(environment: &Environment) -> Vec<mongodb::Database> {
    let mut secondaries = Vec::new();
    for member in MEMBERS {
        let member = environment.member(member).await;
        if member.run_command(doc! {"hello": 1}).await.unwrap().get_bool("secondary").unwrap() {
            secondaries.push(member);
        }
    }
    assert_eq!(secondaries.len(), 2);
    secondaries
}
