//! The documents of Incremental runs, and the cost of their queries, on a real MongoDB.

use std::{collections::BTreeSet, time::Instant};

use bson::{Bson, DateTime, Document, Regex, Timestamp as BsonTimestamp, doc};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use mongodb::{Collection, Database, IndexModel, options::IndexOptions};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use sync_operator::{
    domain::run::{RunSpec, Warning},
    sync::{Batch, Deployment, TargetCollection},
};
use tokio::runtime::Handle;

use crate::{
    servers::MongoDb,
    support::{unique, variable},
};

const START: i64 = 1_795_477_200_123;
const STALE_AFTER: i64 = 3_600_000;
/// Stamps from this time on are wrong: it is later than the start by the longest run and a day.
const FUTURE: i64 = START + 65 * 60_000;

async fn database() -> Database {
    mongodb::Client::with_uri_str(variable("MONGODB_URI")).await.unwrap().database(&unique("incremental"))
}

async fn target(database: &Database, spec: Value) -> TargetCollection {
    target_at(&variable("MONGODB_URI"), database, spec).await
}

async fn target_at(url: &str, database: &Database, spec: Value) -> TargetCollection {
    let spec = RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap();
    let deployment = Deployment::new(url, database.name(), &[], None).await.unwrap();
    deployment.target(&spec, "team", Timestamp::from_millisecond(START).unwrap(), Timestamp::UNIX_EPOCH).unwrap()
}

fn users(database: &Database) -> Collection<Document> {
    database.collection("users")
}

fn at(millis: i64) -> Bson {
    DateTime::from_millis(millis).into()
}

async fn index(database: &Database, keys: Document, options: Document) {
    let options: IndexOptions = bson::deserialize_from_document(options).unwrap();
    users(database).create_index(IndexModel::builder().keys(keys).options(options).build()).await.unwrap();
}

fn stamping() -> Value {
    json!({"staleAfter": "1h"})
}

fn fetching() -> Value {
    json!({
        "staleAfter": "1h",
        "source": {"name": "gitlab", "rest": {"endpoint": "https://gitlab.example.com/users/{id}"}, "batching": "PerUser"},
        "mapping": [{"from": "/name", "to": "name"}],
    })
}

/// The plain query of an Incremental run, which ignores indexes.
fn due(progress: &str, own: Bson) -> Document {
    doc! {"$or": [
        {progress: {"$not": {"$gte": at(START - STALE_AFTER)}}},
        {progress: {"$type": "array"}},
        {progress: {"$gt": at(FUTURE)}},
        {progress: own},
        {"$expr": {"$gt": ["$updatedAt", format!("${progress}")]}},
    ]}
}

/// A value of a field that should have a date. `None`: the document lacks the field.
fn value() -> impl Strategy<Value = Option<Bson>> {
    let around = |millis: i64| millis - 2..=millis + 2;
    let date = prop_oneof![
        around(START - STALE_AFTER),
        START - STALE_AFTER..=START,
        around(START),
        around(FUTURE),
        Just(0),
        Just(i64::MAX),
        Just(i64::MIN),
    ]
    .prop_map(at)
    .boxed();
    let other = prop_oneof![
        Just(Bson::Null),
        Just(Bson::Undefined),
        Just(Bson::MinKey),
        Just(Bson::MaxKey),
        any::<i32>().prop_map(Bson::from),
        Just(Bson::from(START)),
        Just(Bson::from(f64::NAN)),
        "[a-z0-9]{0,3}".prop_map(Bson::from),
        any::<bool>().prop_map(Bson::from),
        date.clone().prop_map(|date| Bson::from(doc! {"at": date})),
        any::<u32>().prop_map(|time| Bson::Timestamp(BsonTimestamp { time, increment: 1 })),
        Just(Bson::from(Regex { pattern: "a".try_into().unwrap(), options: "".try_into().unwrap() })),
        Just(Bson::JavaScriptCode("f".to_owned())),
    ]
    .boxed();
    let one = prop_oneof![4 => date, 1 => other].boxed();
    let list = prop::collection::vec(one.clone(), 0..3).prop_map(Bson::from);
    prop_oneof![1 => Just(None), 8 => one.prop_map(Some), 1 => list.prop_map(Some)]
}

/// A document with these values. `place`: 0 puts a list around the progress, where it is in an object.
fn document(progress: &str, value: Option<Bson>, changed: Option<Bson>, place: u8) -> Document {
    let mut document = Document::new();
    match (progress.split('.').collect::<Vec<_>>().as_slice(), value) {
        (_, None) => {}
        ([field], Some(value)) => drop(document.insert(*field, value)),
        ([all, state, field], Some(value)) => {
            let state = doc! {*state: {*field: value}};
            let state = if place == 0 { Bson::from(vec![state]) } else { state.into() };
            document.insert(*all, state);
        }
        _ => unreachable!(),
    }
    document.extend(changed.map(|changed| ("updatedAt".to_owned(), changed)));
    document
}

fn has_array(document: &Document) -> bool {
    document.iter().any(|(name, value)| name != "updatedAt" && holds_array(value))
}

fn holds_array(value: &Bson) -> bool {
    match value {
        Bson::Array(_) => true,
        Bson::Document(document) => document.values().any(holds_array),
        _ => false,
    }
}

async fn keys(cursor: mongodb::Cursor<Document>) -> BTreeSet<i32> {
    let found: Vec<Document> = cursor.try_collect().await.unwrap();
    found.iter().map(|document| document.get_i32("_id").unwrap()).collect()
}

async fn read(target: &TargetCollection) -> BTreeSet<i32> {
    let batches: Vec<_> = target.batches(None).try_collect().await.unwrap();
    batches.iter().flat_map(Batch::keys).map(|key| key.as_i32().unwrap()).collect()
}

/// Compares the documents of a run on a collection with both indexes with the result of the plain query.
async fn assert_same(database: &Database, spec: &Value, progress: &str, documents: Vec<Document>) {
    users(database).drop().await.unwrap();
    index(database, doc! {progress: 1}, doc! {}).await;
    index(database, doc! {"updatedAt": 1}, doc! {}).await;
    let numbered = documents.into_iter().enumerate().map(|(i, mut document)| {
        document.insert("_id", i as i32);
        document
    });
    users(database).insert_many(numbered).await.unwrap();
    let mut target = target(database, spec.clone()).await;
    let own = if spec.get("source").is_some() { doc! {"$gte": at(START)}.into() } else { at(START) };
    let expected = keys(users(database).find(due(progress, own)).await.unwrap()).await;
    assert_eq!(read(&target).await, expected, "before the indexes are read");
    assert_eq!(target.plan_walk().await.unwrap(), expected.len() as i64);
    assert_eq!(read(&target).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_with_and_without_indexes_return_the_same() {
    for (spec, progress) in [(stamping(), "lastSynced"), (fetching(), "_sync.team/gitlab.at")] {
        let database = database().await;
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let one = (value(), value(), 0..8_u8);
            let documents = prop::collection::vec(one, 1..60);
            let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
            let result = runner.run(&(documents, any::<bool>()), |(values, with_arrays)| {
                let documents =
                    values.into_iter().map(|(value, changed, place)| document(progress, value, changed, place));
                let documents: Vec<_> = documents.filter(|document| with_arrays || !has_array(document)).collect();
                if !documents.is_empty() {
                    handle.block_on(assert_same(&database, &spec, progress, documents));
                }
                Ok(())
            });
            result.unwrap_or_else(|error| panic!("{error}"));
        })
        .await
        .unwrap();
    }
}

/// Fills the collection with documents that were synced a minute before the run, and changed years before it.
async fn fill(database: &Database, count: i32) {
    let users = users(database);
    let users = &users;
    stream::iter((0..count).step_by(10_000))
        .for_each_concurrent(2, |from| async move {
            let fresh = (from..count.min(from + 10_000)).map(|i| {
                doc! {"_id": i, "name": format!("user-{i}"), "lastSynced": at(START - 60_000), "updatedAt": at(START - 1000 * 86_400_000)}
            });
            users.insert_many(fresh).ordered(false).await.unwrap();
        })
        .await;
}

/// Switches the profiler of MongoDB on or off.
async fn profile(database: &Database, is_on: bool) {
    database.run_command(doc! {"profile": if is_on { 2 } else { 0 }}).await.unwrap();
}

/// The number of keys and documents that were examined since the start of the profiler, and the commands.
async fn examined(database: &Database) -> (i64, Vec<String>) {
    profile(database, false).await;
    let operations = database.collection::<Document>("system.profile");
    let of_users = doc! {"ns": format!("{}.users", database.name())};
    let operations: Vec<Document> = operations.find(of_users).await.unwrap().try_collect().await.unwrap();
    let number = |operation: &Document, field: &str| match operation.get(field) {
        Some(Bson::Int64(number)) => *number,
        Some(Bson::Int32(number)) => i64::from(*number),
        _ => 0,
    };
    let cost = |operation: &Document| number(operation, "keysExamined") + number(operation, "docsExamined");
    let operations_read = operations.iter().map(|operation| {
        let plan = operation.get_str("planSummary").unwrap_or_default();
        format!("{} {} {plan}", operation.get_str("op").unwrap(), cost(operation))
    });
    (operations.iter().map(cost).sum(), operations_read.collect())
}

/// Counts, reads and stamps the due documents, and returns their number and the cost.
async fn run(database: &Database, spec: Value) -> (i64, i64, Vec<String>) {
    let mut target = target(database, spec).await;
    profile(database, true).await;
    let count = target.plan_walk().await.unwrap();
    let batches: Vec<_> = target.batches(None).try_collect().await.unwrap();
    let mut updated = 0;
    for batch in batches {
        updated += target.write(batch).await.unwrap().updated;
    }
    assert_eq!(updated, count);
    let (cost, operations_read) = examined(database).await;
    database.collection::<Document>("system.profile").drop().await.unwrap();
    (count, cost, operations_read)
}

async fn warnings(database: &Database, spec: Value) -> Vec<String> {
    let mut target = target(database, spec).await;
    target.plan_walk().await.unwrap();
    let warnings = target.warnings().await;
    assert!(warnings.iter().all(|warning| matches!(warning, Warning::IndexMissing(_))), "{warnings:?}");
    warnings.iter().map(|warning| warning.message().to_owned()).collect()
}

#[tokio::test]
async fn an_incremental_run_examines_only_due_documents() {
    let database = database().await;
    let all = 20_000;
    fill(&database, all).await;
    let [progress, changed] =
        ["lastSynced", "updatedAt"].map(|field| format!("db.users.createIndex({{\"{field}\": 1}})"));
    let warning = "the run reads all documents to find the due ones:";
    assert_eq!(warnings(&database, stamping()).await, [format!("{warning} {progress}, {changed}")]);
    let (_, cost, _) = run(&database, stamping()).await;
    assert!(cost >= 2 * i64::from(all), "the count and the walk read all documents: {cost}");

    index(&database, doc! {"lastSynced": 1}, doc! {"name": "sparse", "sparse": true}).await;
    let partial = doc! {"name": "partial", "partialFilterExpression": {"lastSynced": {"$exists": true}}};
    index(&database, doc! {"lastSynced": 1, "name": 1}, partial).await;
    index(&database, doc! {"lastSynced": "hashed"}, doc! {"name": "hashed"}).await;
    index(&database, doc! {"updatedAt": 1}, doc! {"sparse": true}).await;
    assert_eq!(warnings(&database, stamping()).await, [format!("{warning} {progress}")]);

    index(&database, doc! {"lastSynced": 1}, doc! {}).await;
    assert_eq!(warnings(&database, stamping()).await, Vec::<String>::new());
    let (count, cost, operations_read) = run(&database, stamping()).await;
    assert!(count == 0 && cost < 20, "{cost}: {operations_read:?}");

    // The keys are far apart, so a range of keys would have nearly all documents.
    let some = doc! {"_id": {"$mod": [200, 7]}};
    for (what, update) in [
        ("never synced", doc! {"$unset": {"lastSynced": 1}}),
        ("stale", doc! {"$set": {"lastSynced": at(START - 2 * STALE_AFTER)}}),
        ("changed", doc! {"$set": {"lastSynced": at(START - 60_000), "updatedAt": at(START - 30_000)}}),
        ("of this run", doc! {"$set": {"lastSynced": at(START)}}),
    ] {
        users(&database).update_many(some.clone(), update).await.unwrap();
        let (count, cost, operations_read) = run(&database, json!({"staleAfter": "1h", "batchSize": 10})).await;
        assert!(count == 100 && cost < 2000, "{what}: {count}, {cost}: {operations_read:#?}");
    }

    users(&database).drop_index("hashed").await.unwrap();
    users(&database).update_one(doc! {"_id": 3}, doc! {"$set": {"lastSynced": [at(START - 60_000)]}}).await.unwrap();
    let (count, ..) = run(&database, stamping()).await;
    assert_eq!(count, 101, "a list is a wrongly typed stamp");
    let warnings = warnings(&database, stamping()).await;
    assert!(warnings[0].contains("a document has, or had, an array at lastSynced"), "{warnings:?}");
}

#[tokio::test]
async fn a_short_walk_goes_in_the_order_of_the_key_and_resumes() {
    let database = database().await;
    fill(&database, 20_000).await;
    index(&database, doc! {"lastSynced": 1}, doc! {}).await;
    index(&database, doc! {"updatedAt": 1}, doc! {}).await;
    users(&database).update_many(doc! {"_id": {"$mod": [1000, 0]}}, doc! {"$unset": {"lastSynced": 1}}).await.unwrap();
    let stale = doc! {"$set": {"lastSynced": at(0)}};
    users(&database).update_many(doc! {"_id": {"$mod": [1000, 500]}}, stale).await.unwrap();
    let mut target = target(&database, json!({"staleAfter": "1h", "batchSize": 7})).await;
    assert_eq!(target.plan_walk().await.unwrap(), 40);
    let all: Vec<i32> = (0..40).map(|i| i * 500).collect();
    for from in [None, Some(json!({"$numberInt": "9500"})), Some(json!({"$numberInt": "19500"}))] {
        let batches: Vec<_> = target.batches(from.as_ref()).try_collect().await.unwrap();
        let read: Vec<i32> = batches.iter().flat_map(Batch::keys).map(|key| key.as_i32().unwrap()).collect();
        let after = match &from {
            Some(key) => key["$numberInt"].as_str().unwrap().parse().unwrap(),
            None => -1,
        };
        assert_eq!(read, all.iter().copied().filter(|key| *key > after).collect::<Vec<_>>(), "{from:?}");
    }
}

#[tokio::test]
async fn results_beyond_the_sort_limit_are_walked_by_key() {
    let mongodb = MongoDb::start(&["--setParameter", "enableTestCommands=1"]);
    mongodb.run("", doc! {"ping": 1}).await;
    let database = mongodb::Client::with_uri_str(mongodb.url("")).await.unwrap().database("users");
    fill(&database, 10_500).await;
    index(&database, doc! {"lastSynced": 1}, doc! {}).await;
    index(&database, doc! {"updatedAt": 1}, doc! {}).await;
    users(&database).update_many(doc! {"_id": {"$mod": [1000, 7]}}, doc! {"$unset": {"lastSynced": 1}}).await.unwrap();
    let mut target = target_at(&mongodb.url(""), &database, stamping()).await;
    assert_eq!(target.plan_walk().await.unwrap(), 11);
    let refused = doc! {"failCommands": ["aggregate"], "errorCode": 292, "appName": "sync-operator"};
    mongodb.run("", doc! {"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": refused}).await;
    assert_eq!(read(&target).await, (0..11).map(|i| i * 1000 + 7).collect());
}

/// `make prove-incremental`.
#[tokio::test]
#[ignore = "takes a minute"]
async fn proof() {
    let all: i32 = std::env::var("DOCUMENTS").map_or(1_000_000, |number| number.parse().unwrap());
    let database = database().await;
    fill(&database, all).await;
    let show = |what: &str, began: Instant, (count, cost, operations_read): (i64, i64, Vec<String>)| {
        let share = 100.0 * cost as f64 / f64::from(all);
        println!(
            "{what}: {count} due, {cost} examined ({share:.4} %), {:.3} s: {operations_read:?}",
            began.elapsed().as_secs_f64()
        );
        cost
    };
    let measured = async |what: &str| {
        let began = Instant::now();
        let result = run(&database, json!({"staleAfter": "1h", "batchSize": 1000})).await;
        (began.elapsed(), show(what, began, result))
    };
    measured("without indexes").await;
    let began = Instant::now();
    index(&database, doc! {"lastSynced": 1}, doc! {}).await;
    index(&database, doc! {"updatedAt": 1}, doc! {}).await;
    println!("indexes: {:.1} s", began.elapsed().as_secs_f64());
    let (took, cost) = measured("none due").await;
    assert!(cost < i64::from(all) / 100 && took.as_secs() < 2, "{cost} in {took:?}");
    for share in [10_000, 1_000, 100] {
        let some = doc! {"_id": {"$mod": [share, 7]}};
        let update = doc! {"$set": {"updatedAt": at(START - 30_000), "lastSynced": at(START - 60_000)}};
        users(&database).update_many(some.clone(), update).await.unwrap();
        let (_, cost) = measured(&format!("one in {share} changed")).await;
        assert!(cost < 20 * i64::from(all / share), "{cost}");
        users(&database)
            .update_many(
                doc! {"_id": {"$mod": [share, 7]}},
                doc! {"$set": {"lastSynced": at(START - 60_000), "updatedAt": at(START - 1000 * 86_400_000)}},
            )
            .await
            .unwrap();
    }
    let (_, cost) = measured("none due again").await;
    assert!(cost < i64::from(all) / 100, "{cost}");

    // In a whole process, by whose clock the documents are some days old.
    let job = json!({
        "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "metadata": {"name": "proof"},
        "spec": {"staleAfter": "8760h"},
    });
    let manifest = std::env::temp_dir().join(database.name());
    std::fs::write(&manifest, job.to_string()).unwrap();
    let mut process = tokio::process::Command::new(env!("CARGO_BIN_EXE_sync-operator"));
    process
        .arg("run")
        .arg(&manifest)
        .env("MONGODB_URI", variable("MONGODB_URI"))
        .env("MONGODB_DATABASE", database.name());
    profile(&database, true).await;
    let began = Instant::now();
    let output = process.output().await.unwrap();
    let took = began.elapsed();
    let (cost, _) = examined(&database).await;
    std::fs::remove_file(&manifest).unwrap();
    database.drop().await.unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    println!("sync-operator run: {cost} examined, {:.3} s: {output}", took.as_secs_f64());
    assert!(output.contains("Complete") && cost < i64::from(all) / 100 && took.as_secs() < 2, "{cost} in {took:?}");
}
