//! Walking and stamping on a real MongoDB.

use bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use futures::{StreamExt, pin_mut};
use k8s_openapi::jiff::Timestamp;
use mongodb::Database;
use serde_json::{Value, json};
use sync_operator::{
    domain::run::RunSpec,
    sync::{Databases, Error, Outcome, Target},
};

use crate::support::{unique, variable};

struct Sums {
    processed: i64,
    updated: i64,
    unchanged: i64,
    failures: Vec<(String, String, String)>,
    cursors: Vec<Value>,
}

async fn database() -> Database {
    mongodb::Client::with_uri_str(variable("MONGODB_URI")).await.unwrap().database(&unique("target"))
}

async fn target(database: &Database, spec: Value, started: i64) -> Result<Target, Error> {
    let spec = RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap();
    let databases = Databases::new(&variable("MONGODB_URI"), database.name(), &[]).await.unwrap();
    databases.target(&spec, Timestamp::from_millisecond(started).unwrap())
}

async fn run(target: &Target, cursor: Option<&Value>) -> Result<Sums, Error> {
    let mut sums = Sums { processed: 0, updated: 0, unchanged: 0, failures: Vec::new(), cursors: Vec::new() };
    let batches = target.batches(cursor);
    pin_mut!(batches);
    while let Some(batch) = batches.next().await {
        let outcome: Outcome = target.write(batch?).await?;
        sums.processed += outcome.processed();
        sums.updated += outcome.updated;
        sums.unchanged += outcome.unchanged;
        sums.cursors.extend(outcome.cursor);
        sums.failures
            .extend(outcome.failures.into_iter().map(|failure| (failure.key, failure.reason, failure.message)));
    }
    assert_eq!(sums.processed, sums.updated + sums.unchanged + sums.failures.len() as i64);
    Ok(sums)
}

async fn insert(database: &Database, users: Vec<Document>) {
    database.collection::<Document>("users").insert_many(users).await.unwrap();
}

async fn stamped(database: &Database, millis: i64) -> u64 {
    let stamp = DateTime::from_millis(millis);
    database.collection::<Document>("users").count_documents(doc! {"lastSynced": stamp}).await.unwrap()
}

const START: i64 = 1_795_477_200_123;

#[tokio::test]
async fn a_full_run_stamps_every_document_with_its_start() {
    let database = database().await;
    insert(&database, (0..250).map(|i| doc! {"_id": i}).collect()).await;
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    assert_eq!(target.count().await.unwrap(), 250);
    let sums = run(&target, None).await.unwrap();
    assert_eq!((sums.processed, sums.updated, sums.cursors.len()), (250, 250, 3));
    assert_eq!(stamped(&database, START).await, 250);
    let again = run(&target, None).await.unwrap();
    assert_eq!((again.processed, again.updated), (250, 250), "its own work counts as updated");
}

#[tokio::test]
async fn a_rejected_document_is_named_and_its_neighbours_are_stamped() {
    let database = database().await;
    insert(&database, (0..10).map(|i| doc! {"_id": i, "email": if i == 4 { "secret" } else { "a@b" }}).collect()).await;
    let rule = doc! {"$jsonSchema": {"properties": {"email": {"pattern": "@"}}}};
    database.run_command(doc! {"collMod": "users", "validator": rule}).await.unwrap();
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    let sums = run(&target, None).await.unwrap();
    assert_eq!((sums.processed, sums.updated, stamped(&database, START).await), (10, 9, 9));
    let message = "the collection's validator refuses the document: email".to_owned();
    assert_eq!(sums.failures, [("4".to_owned(), "ValidationFailed".to_owned(), message)]);
}

#[tokio::test]
async fn a_stamp_never_moves_back() {
    let database = database().await;
    insert(&database, vec![doc! {"_id": 1, "lastSynced": DateTime::from_millis(START + 1)}, doc! {"_id": 2}]).await;
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    let sums = run(&target, None).await.unwrap();
    assert_eq!((sums.updated, sums.unchanged, stamped(&database, START + 1).await), (1, 1, 1));
}

#[tokio::test]
async fn an_incremental_run_takes_what_is_due_and_nothing_else() {
    let database = database().await;
    let at = |millis: i64| Bson::DateTime(DateTime::from_millis(START + millis));
    insert(
        &database,
        vec![
            doc! {"_id": "missing"},
            doc! {"_id": "null", "lastSynced": Bson::Null},
            doc! {"_id": "text", "lastSynced": "yesterday"},
            doc! {"_id": "stale", "lastSynced": at(-60_001)},
            doc! {"_id": "changed", "lastSynced": at(-1_000), "updatedAt": at(-500)},
            doc! {"_id": "fresh", "lastSynced": at(-1_000), "updatedAt": at(-2_000)},
        ],
    )
    .await;
    let target = target(&database, json!({"staleAfter": "1m"}), START).await.unwrap();
    assert_eq!(run(&target, None).await.unwrap().updated, 5);
    let fresh = doc! {"_id": "fresh", "lastSynced": at(-1_000)};
    assert_eq!(database.collection::<Document>("users").count_documents(fresh).await.unwrap(), 1);
    assert_eq!(run(&target, None).await.unwrap().updated, 5, "a run that starts over finds its own work");
}

#[tokio::test]
async fn keys_of_every_type_are_walked_and_resumed() {
    let database = database().await;
    let keys = vec![
        Bson::Int32(1),
        Bson::Double(2.5),
        Bson::Int64(1 << 40),
        "a".into(),
        doc! {"a": 1}.into(),
        Bson::ObjectId(ObjectId::new()),
        true.into(),
        DateTime::from_millis(1).into(),
    ];
    let all = keys.len() as i64;
    insert(&database, keys.into_iter().map(|key| doc! {"_id": key}).collect()).await;
    let target = target(&database, json!({"syncType": "Full", "batchSize": 1}), START).await.unwrap();
    let cursors = run(&target, None).await.unwrap().cursors;
    assert_eq!(stamped(&database, START).await as i64, all);
    for (done, cursor) in cursors.iter().enumerate() {
        assert_eq!(run(&target, Some(cursor)).await.unwrap().processed, all - done as i64 - 1, "after {cursor}");
    }
}

#[tokio::test]
async fn what_cannot_be_cured_by_waiting_is_an_invalid_target() {
    let database = database().await;
    insert(&database, vec![doc! {"_id": 1}]).await;
    let filter = target(&database, json!({"target": {"filter": {"a": {"$bigger": 1}}}}), START).await.unwrap();
    assert!(matches!(filter.count().await, Err(Error::InvalidTarget(text)) if text.contains("$bigger")));
    let elsewhere = target(&database, json!({"target": {"database": "elsewhere"}}), START).await;
    assert!(matches!(elsewhere, Err(Error::InvalidTarget(text)) if text.contains("--allowed-databases")));
    let missing = target(&database, json!({"type": "Issue"}), START).await.unwrap();
    assert_eq!((missing.count().await.unwrap(), run(&missing, None).await.unwrap().processed), (0, 0));
}

#[tokio::test]
async fn a_filter_in_extended_json_selects_documents() {
    let database = database().await;
    insert(&database, vec![doc! {"_id": 1, "born": DateTime::from_millis(0)}, doc! {"_id": 2}]).await;
    let filter = json!({"born": {"$date": "1970-01-01T00:00:00Z"}});
    let target = target(&database, json!({"syncType": "Full", "target": {"filter": filter}}), START).await.unwrap();
    assert_eq!(run(&target, None).await.unwrap().updated, 1);
}

#[tokio::test]
async fn documents_that_come_and_go_do_not_break_the_counts() {
    let database = database().await;
    insert(&database, (0..10).map(|i| doc! {"_id": i * 10}).collect()).await;
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    let batches = target.batches(None);
    pin_mut!(batches);
    let batch = batches.next().await.unwrap().unwrap();
    insert(&database, vec![doc! {"_id": 15}]).await;
    database.collection::<Document>("users").delete_many(doc! {"_id": {"$in": [20, 30, 40]}}).await.unwrap();
    let outcome = target.write(batch).await.unwrap();
    assert_eq!((outcome.updated, outcome.unchanged, outcome.processed()), (8, 2, 10));
    assert_eq!(stamped(&database, START).await, 8);
}
