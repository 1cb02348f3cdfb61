//! Walking and stamping on a real MongoDB.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use bson::{
    Binary, Bson, DateTime, Document, JavaScriptCodeWithScope, RawDocumentBuf, Regex, Uuid, doc, oid::ObjectId,
    spec::BinarySubtype,
};
use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::jiff::Timestamp;
use mongodb::{Database, IndexModel, options::IndexOptions};
use serde_json::{Value, json};
use sync_operator::{
    domain::run::{RunSpec, Warning},
    sync::{Batch, BatchResult, Deployment, Error, Found, RemovalCandidates, SourcePage, TargetCollection},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};

use crate::{
    servers::address_in,
    support::{eventually, unique, variable},
};

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

fn parse(spec: Value) -> RunSpec {
    RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap()
}

async fn target(database: &Database, spec: Value, started: i64) -> Result<TargetCollection, Error> {
    let spec = parse(spec);
    let deployment = Deployment::new(&variable("MONGODB_URI"), database.name(), &[], None).await.unwrap();
    deployment.target(&spec, "test", Timestamp::from_millisecond(started).unwrap(), Timestamp::UNIX_EPOCH)
}

async fn run(target: &TargetCollection, cursor: Option<&Value>) -> Result<Sums, Error> {
    let mut sums = Sums { processed: 0, updated: 0, unchanged: 0, failures: Vec::new(), cursors: Vec::new() };
    let batches = target.batches(cursor);
    pin_mut!(batches);
    while let Some(batch) = batches.next().await {
        let outcome: BatchResult = target.write(batch?).await?;
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

async fn read(target: &TargetCollection) -> Vec<Batch> {
    target.batches(None).try_collect().await.unwrap()
}

async fn insert(database: &Database, users: Vec<Document>) {
    database.collection::<Document>("users").insert_many(users).await.unwrap();
}

/// Ends the cursors on the users, as MongoDB ends cursors that are idle for too long.
async fn kill_cursors(database: &Database) -> usize {
    let admin = database.client().database("admin");
    let users = format!("{}.users", database.name());
    let idle = admin.aggregate([
        doc! {"$currentOp": {"allUsers": true, "idleCursors": true}},
        doc! {"$match": {"type": "idleCursor", "ns": &users}},
    ]);
    let idle: Vec<Document> = idle.await.unwrap().try_collect().await.unwrap();
    let ids: Vec<i64> =
        idle.iter().map(|idle| idle.get_document("cursor").unwrap().get_i64("cursorId").unwrap()).collect();
    let killed = database.run_command(doc! {"killCursors": "users", "cursors": &ids}).await.unwrap();
    killed.get_array("cursorsKilled").unwrap().len()
}

#[tokio::test]
async fn a_lost_cursor_is_opened_again() {
    let database = database().await;
    insert(&database, (0..3000).map(|id| doc! {"_id": id}).collect()).await;
    let target = target(&database, json!({}), 5000).await.unwrap();
    let batches = target.batches(None);
    pin_mut!(batches);
    let (mut processed, mut killed) = (0, 0);
    while let Some(batch) = batches.next().await {
        processed += target.write(batch.unwrap()).await.unwrap().processed();
        if killed == 0 {
            killed = kill_cursors(&database).await;
        }
    }
    assert_eq!((processed, killed, stamped(&database, 5000).await), (3000, 1, 3000));
}

/// Starts a proxy before MongoDB that records all that clients send. Returns the address of the proxy.
async fn recorder() -> (String, Arc<Mutex<Vec<u8>>>) {
    let (listener, sent) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Arc::new(Mutex::new(Vec::new())));
    let (address, record) = (listener.local_addr().unwrap(), Arc::clone(&sent));
    let server = address_in(&variable("MONGODB_URI"), "mongodb://");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let record = Arc::clone(&record);
            tokio::spawn(async move {
                let (mut from, mut to) = client.into_split();
                let (mut answers, mut requests) = TcpStream::connect(server).await.unwrap().into_split();
                tokio::spawn(async move { copy(&mut answers, &mut to).await.ok() });
                let mut piece = vec![0; 1 << 16];
                while let Ok(length @ 1..) = from.read(&mut piece).await {
                    record.lock().unwrap().extend_from_slice(&piece[..length]);
                    requests.write_all(&piece[..length]).await.unwrap();
                }
            });
        }
    });
    (format!("mongodb://{address}/?directConnection=true"), sent)
}

#[tokio::test]
async fn mongodb_gets_the_time_limit_of_each_write() {
    let (database, (uri, sent)) = (database().await, recorder().await);
    insert(&database, (0..3).map(|id| doc! {"_id": id, "name": "old"}).collect()).await;
    let deployment = Deployment::new(&uri, database.name(), &[], None).await.unwrap();
    let limit = [b"\x12maxTimeMS\0".as_slice(), &29_000_i64.to_le_bytes()].concat();
    for spec in [json!({}), fetching(), whole()] {
        sent.lock().unwrap().clear();
        let spec = parse(spec);
        let at = Timestamp::from_millisecond(1000).unwrap();
        let target = deployment.target(&spec, "test", at, Timestamp::UNIX_EPOCH).unwrap();
        let batch = read(&target).await.remove(0);
        let found = source(&batch, "new");
        let written =
            if spec.source.is_some() { target.apply(batch, found, at).await } else { target.write(batch).await };
        assert_eq!(written.unwrap().updated, 3);
        assert!(sent.lock().unwrap().windows(limit.len()).any(|bytes| bytes == limit));
        let reset = doc! {"$set": {"name": "old"}, "$unset": {"_sync": ""}};
        database.collection::<Document>("users").update_many(doc! {}, reset).await.unwrap();
    }
    database.drop().await.unwrap();
}

async fn stamped(database: &Database, millis: i64) -> u64 {
    let stamp = DateTime::from_millis(millis);
    database.collection::<Document>("users").count_documents(doc! {"lastSynced": stamp}).await.unwrap()
}

async fn unstamp(database: &Database) {
    let users = database.collection::<Document>("users");
    users.update_many(doc! {}, doc! {"$unset": {"lastSynced": 1}}).await.unwrap();
}

/// The values of a field of the documents that a query finds, sorted by this field.
async fn sorted(database: &Database, field: &str, query: Document) -> Vec<Bson> {
    let users = database.collection::<Document>("users");
    let found: Vec<Document> = users.find(query).sort(doc! {field: 1}).await.unwrap().try_collect().await.unwrap();
    let value = |document: &Document| {
        let mut path = field.split('.');
        let first = document.get(path.next().unwrap()).unwrap().clone();
        path.fold(first, |value, name| value.as_document().unwrap().get(name).unwrap().clone())
    };
    found.iter().map(value).collect()
}

async fn unique_index(database: &Database, keys: Document) {
    let options = IndexOptions::builder().unique(true).sparse(true).build();
    let index = IndexModel::builder().keys(keys).options(options).build();
    database.collection::<Document>("users").create_index(index).await.unwrap();
}

async fn validate(database: &Database, rule: Document) {
    database.run_command(doc! {"collMod": "users", "validator": rule}).await.unwrap();
}

/// Walks the whole collection in batches of several sizes, and in batches of one from every cursor on: each time
/// exactly the documents after the cursor are stamped, each once.
async fn assert_walks_and_resumes(database: &Database, mut spec: Value, key: &str) {
    let keys = sorted(database, key, doc! {}).await;
    let walk = async |spec: &Value, cursor: Option<&Value>, expected: &[Bson]| {
        unstamp(database).await;
        let sums = run(&target(database, spec.clone(), START).await.unwrap(), cursor).await.unwrap();
        let stamped = sorted(database, key, doc! {"lastSynced": DateTime::from_millis(START)}).await;
        assert_eq!(format!("{stamped:?}"), format!("{expected:?}"), "{spec} from {cursor:?}");
        let count = expected.len() as i64;
        assert_eq!((sums.processed, sums.updated), (count, count), "{spec} from {cursor:?}");
        sums.cursors
    };
    for size in [2, 3, 5, 100] {
        spec["batchSize"] = json!(size);
        walk(&spec, None, &keys).await;
    }
    spec["batchSize"] = json!(1);
    let cursors = walk(&spec, None, &keys).await;
    assert_eq!(cursors.len(), keys.len());
    for (done, cursor) in cursors.iter().enumerate() {
        // The cursor as the queue returns it.
        let cursor: Value = serde_json::from_str(&cursor.to_string()).unwrap();
        walk(&spec, Some(&cursor), &keys[done + 1..]).await;
    }
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
}

#[tokio::test]
async fn a_repeated_run_writes_nothing_and_counts_its_own_work() {
    let database = database().await;
    insert(&database, (0..250).map(|i| doc! {"_id": i}).collect()).await;
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    run(&target, None).await.unwrap();
    let everything = async || {
        let users = database.collection::<RawDocumentBuf>("users");
        let documents: Vec<RawDocumentBuf> =
            users.find(doc! {}).sort(doc! {"_id": 1}).await.unwrap().try_collect().await.unwrap();
        let stage = doc! {"$collStats": {"latencyStats": {}}};
        let stats = users.aggregate([stage]).await.unwrap().try_next().await.unwrap().unwrap();
        let writes =
            stats.get_document("latencyStats").unwrap().get_document("writes").unwrap().get_i64("ops").unwrap();
        (documents, writes)
    };
    let before = everything().await;
    let again = run(&target, None).await.unwrap();
    assert_eq!((again.processed, again.updated), (250, 250));
    assert_eq!(everything().await, before);
}

#[tokio::test]
async fn a_stamp_by_another_worker_of_the_run_counts_as_updated() {
    let database = database().await;
    insert(&database, (0..10).map(|id| doc! {"_id": id}).collect()).await;
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    for batch in read(&target).await {
        for _ in 0..2 {
            let outcome = target.write(batch.clone()).await.unwrap();
            assert_eq!((outcome.updated, outcome.unchanged), (10, 0));
        }
    }
}

#[tokio::test]
async fn batches_have_the_requested_size() {
    let database = database().await;
    insert(&database, (0..10).map(|i| doc! {"_id": i}).collect()).await;
    for (size, batches) in [(1, 10), (3, 4), (5, 2), (10, 1), (10_000, 1)] {
        unstamp(&database).await;
        let target = target(&database, json!({"syncType": "Full", "batchSize": size}), START).await.unwrap();
        let sums = run(&target, None).await.unwrap();
        assert_eq!((sums.cursors.len(), sums.updated), (batches, 10), "batchSize {size}");
    }
}

#[tokio::test]
async fn a_nested_field_can_be_stamped() {
    let database = database().await;
    insert(&database, vec![doc! {"_id": 1}, doc! {"_id": 2, "sync": {"by": "hand", "at": Bson::Null}}]).await;
    let spec = json!({"target": {"lastSyncedField": "sync.at"}});
    let target = target(&database, spec, START).await.unwrap();
    assert_eq!(run(&target, None).await.unwrap().updated, 2);
    let at = DateTime::from_millis(START);
    let users = database.collection::<Document>("users");
    let found: Vec<Document> = users.find(doc! {}).sort(doc! {"_id": 1}).await.unwrap().try_collect().await.unwrap();
    assert_eq!(found, [doc! {"_id": 1, "sync": {"at": at}}, doc! {"_id": 2, "sync": {"by": "hand", "at": at}}]);
}

#[tokio::test]
async fn a_rejected_document_is_named_and_its_neighbours_are_stamped() {
    let database = database().await;
    insert(&database, (0..10).map(|i| doc! {"_id": i, "email": if i == 4 { "secret" } else { "a@b" }}).collect()).await;
    validate(&database, doc! {"$jsonSchema": {"properties": {"email": {"pattern": "@"}}}}).await;
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    let sums = run(&target, None).await.unwrap();
    assert_eq!((sums.processed, sums.updated, stamped(&database, START).await), (10, 9, 9));
    let message = "the collection's validator refuses the document: email".to_owned();
    assert_eq!(sums.failures, [("4".to_owned(), "ValidationFailed".to_owned(), message)]);
}

/// Runs over `users`, of which key 4 is refused, and returns its reason and message.
async fn refusal(database: &Database, users: Vec<Document>, spec: Value) -> (String, String) {
    let field = spec["target"]["lastSyncedField"].as_str().unwrap_or("lastSynced").to_owned();
    insert(database, users).await;
    let target = target(database, spec, START).await.unwrap();
    let sums = run(&target, None).await.unwrap();
    let stamped = sorted(database, "_id", doc! {field: DateTime::from_millis(START)}).await;
    assert_eq!(stamped, [1, 2, 3, 5, 6].map(Bson::from), "the other documents are stamped");
    assert_eq!((sums.processed, sums.updated, sums.unchanged), (6, 5, 0));
    let [(key, reason, message)] = <[_; 1]>::try_from(sums.failures).unwrap();
    assert_eq!(key, "4");
    assert!(!message.contains("secret"), "{message}");
    (reason, message)
}

/// Scenario 14 of the fault list, with others here on refused documents.
#[tokio::test]
async fn every_refusal_is_reported_without_document_values() {
    let full = || json!({"syncType": "Full", "batchSize": 6});
    let user = |id: i32, name: &str| doc! {"_id": id, "name": name};
    let users = |bad: &str| (1..=6).map(|id| user(id, if id == 4 { bad } else { "x" })).collect::<Vec<_>>();

    let rules = database().await;
    rules.create_collection("users").await.unwrap();
    validate(&rules, doc! {"$or": [{"name": "x"}, {"lastSynced": Bson::Null}]}).await;
    let (reason, message) = refusal(&rules, users("secret"), full()).await;
    assert_eq!((reason.as_str(), message.contains("validator")), ("ValidationFailed", true), "{message}");

    let nested = database().await;
    let mut path = full();
    path["target"] = json!({"lastSyncedField": "sync.at"});
    let through = |id| {
        if id == 4 {
            doc! {"_id": id, "sync": "secret"}
        } else {
            doc! {"_id": id}
        }
    };
    let (reason, message) = refusal(&nested, (1..=6).map(through).collect(), path).await;
    assert_eq!((reason.as_str(), message.contains("no object")), ("FieldNotWritable", true), "{message}");

    let large = database().await;
    let (reason, message) = refusal(&large, users(&"secret".repeat((16 << 20) / 6 - 6)), full()).await;
    assert_eq!((reason.as_str(), message.contains("16 MiB")), ("DocumentTooLarge", true), "{message}");
}

#[tokio::test]
async fn a_violated_unique_index_is_named_without_values() {
    let database = database().await;
    let earlier = |id: i32, email| doc! {"_id": id, "email": email, "lastSynced": DateTime::from_millis(i64::from(id))};
    let users = (1..=6).map(|id| earlier(id, if id == 3 || id == 4 { "secret".to_owned() } else { id.to_string() }));
    unique_index(&database, doc! {"email": 1, "lastSynced": 1}).await;
    let spec = json!({"syncType": "Full", "batchSize": 6});
    let (reason, message) = refusal(&database, users.collect(), spec).await;
    assert_eq!((reason.as_str(), message.contains("index email_1_lastSynced_1")), ("DuplicateKey", true), "{message}");
}

#[tokio::test]
async fn a_refused_document_is_named_among_keys_of_several_types() {
    let database = database().await;
    let keys = [1.into(), "a".into(), true.into(), Bson::ObjectId(ObjectId::new())];
    insert(&database, keys.into_iter().map(|key| doc! {"_id": key, "name": "x"}).collect()).await;
    let users = database.collection::<Document>("users");
    users.update_one(doc! {"_id": "a"}, doc! {"$set": {"name": "secret"}}).await.unwrap();
    validate(&database, doc! {"name": "x"}).await;
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    let sums = run(&target, None).await.unwrap();
    assert_eq!((sums.updated, sums.failures.len(), sums.failures[0].0.as_str()), (3, 1, "a"));
    assert_eq!(stamped(&database, START).await, 3);
}

// On one thread, the creation of 40 MB of statements would delay the health checks of the driver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_document_is_named_in_the_largest_batch() {
    const USERS: i32 = 10_000;
    let database = database().await;
    insert(&database, (0..USERS).map(|id| doc! {"_id": id, "name": if id == 4 { "secret" } else { "x" }}).collect())
        .await;
    validate(&database, doc! {"name": "x"}).await;
    let names: Vec<String> =
        (0..200).map(|name| format!("some-name-{name}")).chain(["x", "secret"].map(str::to_owned)).collect();
    let filter = json!({"name": {"$in": names}});
    let spec = json!({"syncType": "Full", "batchSize": USERS, "target": {"filter": filter}});
    let target = target(&database, spec, START).await.unwrap();
    let sums = run(&target, None).await.unwrap();
    assert_eq!((sums.processed, sums.updated, sums.failures.len()), (10_000, 9_999, 1));
    assert_eq!(sums.failures[0].0, "4");
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
async fn of_two_overlapping_runs_the_later_start_wins() {
    for order in [[START, START + 1], [START + 1, START]] {
        let database = database().await;
        // Keys of two types are written one by one, those of one type as a range.
        insert(&database, [1.into(), 2.into(), 3.into(), "a".into()].map(|key: Bson| doc! {"_id": key}).to_vec()).await;
        for size in [4, 2] {
            unstamp(&database).await;
            let mut read_before = Vec::new();
            for started in order {
                let spec = json!({"syncType": "Full", "batchSize": size});
                let target = target(&database, spec, started).await.unwrap();
                read_before.push((started, read(&target).await, target));
            }
            for (started, batches, target) in read_before {
                let mut updated = 0;
                for batch in batches {
                    let outcome = target.write(batch).await.unwrap();
                    assert_eq!(outcome.processed(), outcome.updated + outcome.unchanged);
                    updated += outcome.updated;
                }
                let wins = started > START || order[0] == START;
                assert_eq!(updated, if wins { 4 } else { 0 }, "{started} in {order:?}");
            }
            assert_eq!(stamped(&database, START + 1).await, 4, "{order:?}");
        }
    }
}

#[tokio::test]
async fn an_incremental_run_reads_only_due_documents() {
    let database = database().await;
    let at = |millis: i64| Bson::DateTime(DateTime::from_millis(START + millis));
    insert(
        &database,
        vec![
            doc! {"_id": "missing"},
            doc! {"_id": "null", "lastSynced": Bson::Null},
            doc! {"_id": "text", "lastSynced": "yesterday"},
            doc! {"_id": "number", "lastSynced": START + 1},
            doc! {"_id": "bool", "lastSynced": true},
            doc! {"_id": "object", "lastSynced": {"at": at(1)}},
            doc! {"_id": "stale", "lastSynced": at(-60_001)},
            doc! {"_id": "changed", "lastSynced": at(-1_000), "updatedAt": at(-500)},
            doc! {"_id": "fresh", "lastSynced": at(-1_000), "updatedAt": at(-2_000)},
            doc! {"_id": "at the limit", "lastSynced": at(-60_000), "updatedAt": at(-60_000)},
            doc! {"_id": "later", "lastSynced": at(1)},
        ],
    )
    .await;
    let target = target(&database, json!({"staleAfter": "1m"}), START).await.unwrap();
    assert_eq!(target.count().await.unwrap(), 8);
    let sums = run(&target, None).await.unwrap();
    assert_eq!((sums.processed, sums.updated, stamped(&database, START).await), (8, 8, 8));
    let left = sorted(&database, "_id", doc! {"lastSynced": {"$ne": at(0)}}).await;
    assert_eq!(left, ["at the limit", "fresh", "later"].map(Bson::from));
    assert_eq!(stamped(&database, START - 1_000).await, 1, "a fresh document keeps its stamp");
    let again = run(&target, None).await.unwrap();
    assert_eq!((again.processed, again.updated), (8, 8), "a run that starts over finds its own work");
}

#[tokio::test]
async fn keys_of_every_type_are_walked_and_resumed() {
    let database = database().await;
    let binary = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let keys = vec![
        Bson::MinKey,
        Bson::Null,
        Bson::Int32(1),
        Bson::Double(-2.5),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Int64(1 << 60),
        Bson::Int64((1 << 60) + 1),
        Bson::Decimal128("0.1".parse().unwrap()),
        "".into(),
        "a".into(),
        "$b.c".into(),
        "ä".repeat(300).into(),
        doc! {}.into(),
        doc! {"tenant": 1, "id": 2}.into(),
        doc! {"tenant": 1, "id": 3}.into(),
        doc! {"tenant": "b", "id": {"z": 1, "a": 2}}.into(),
        binary(BinarySubtype::Generic, &[0, 255]),
        binary(BinarySubtype::Md5, &[7; 16]),
        Uuid::from_bytes([9; 16]).into(),
        Bson::ObjectId(ObjectId::new()),
        Bson::ObjectId(ObjectId::new()),
        false.into(),
        true.into(),
        DateTime::from_millis(-1).into(),
        DateTime::from_millis(1 << 50).into(),
        Bson::Timestamp(bson::Timestamp { time: 1, increment: 2 }),
        Bson::MaxKey,
    ];
    insert(&database, keys.into_iter().map(|key| doc! {"_id": key}).collect()).await;
    assert_walks_and_resumes(&database, json!({"syncType": "Full"}), "_id").await;
}

#[tokio::test]
async fn a_key_that_is_no_number_is_walked_and_resumed() {
    let database = database().await;
    let keys = [Bson::Double(f64::NAN), Bson::Int32(1), Bson::Int32(2), "a".into()];
    insert(&database, keys.into_iter().map(|key| doc! {"_id": key}).collect()).await;
    assert_walks_and_resumes(&database, json!({"syncType": "Full"}), "_id").await;
}

#[tokio::test]
async fn keys_of_code_are_walked_and_resumed() {
    let database = database().await;
    let scoped = JavaScriptCodeWithScope { code: "f()".to_owned(), scope: doc! {"a": 1} };
    let keys = [Bson::Null, Bson::Int32(1), Bson::JavaScriptCode("f()".to_owned()), scoped.into(), Bson::MaxKey];
    insert(&database, keys.into_iter().map(|key| doc! {"_id": key}).collect()).await;
    assert_walks_and_resumes(&database, json!({"syncType": "Full"}), "_id").await;
}

#[tokio::test]
async fn another_key_field_is_walked_in_its_own_order() {
    let database = database().await;
    unique_index(&database, doc! {"account.id": 1}).await;
    let users = (0..10).map(|i| doc! {"_id": i, "account": {"id": format!("user-{}", (i * 7) % 10)}});
    insert(&database, users.chain([doc! {"_id": 10, "account": {"id": 5}}]).collect()).await;
    let spec = json!({"syncType": "Full", "target": {"keyField": "account.id"}});
    assert_walks_and_resumes(&database, spec, "account.id").await;
}

#[tokio::test]
async fn a_key_without_an_index_causes_a_warning() {
    let database = database().await;
    insert(&database, vec![doc! {"email": "a", "name": "b"}]).await;
    let warnings = async |spec: Value| target(&database, spec, START).await.unwrap().warnings().await;
    let by = |field: &str| json!({"syncType": "Full", "target": {"keyField": field}});
    assert_eq!(warnings(json!({"syncType": "Full"})).await, []);
    let email = warnings(by("email")).await;
    let [Warning::KeyNotIndexed(message)] = email.as_slice() else { panic!("{email:?}") };
    assert!(message.contains("db.users.createIndex({\"email\": 1})"), "{message}");
    unique_index(&database, doc! {"email": 1, "name": 1}).await;
    assert_eq!(warnings(by("email")).await, []);
    assert_eq!(warnings(by("name")).await.len(), 1, "an index that starts with another field does not help");
    let index = IndexModel::builder().keys(doc! {"name": "hashed"}).build();
    database.collection::<Document>("users").create_index(index).await.unwrap();
    assert_eq!(warnings(by("name")).await.len(), 1, "nothing is sorted by hashes");
    let nothing = json!({"target": {"keyField": "email", "collection": "nothing"}});
    assert_eq!(warnings(nothing).await, []);
}

#[tokio::test]
async fn a_part_of_the_id_can_be_the_key() {
    let database = database().await;
    unique_index(&database, doc! {"_id.user": 1}).await;
    insert(&database, (0..5).map(|i| doc! {"_id": {"tenant": 9 - i, "user": i}}).collect()).await;
    let spec = json!({"syncType": "Full", "target": {"keyField": "_id.user"}});
    assert_walks_and_resumes(&database, spec, "_id.user").await;
}

#[tokio::test]
async fn the_collections_collation_decides_the_order() {
    let database = database().await;
    database.run_command(doc! {"create": "users", "collation": {"locale": "en", "strength": 2}}).await.unwrap();
    insert(&database, ["b", "A", "C", "d", "ä"].map(|key| doc! {"_id": key}).to_vec()).await;
    assert_walks_and_resumes(&database, json!({"syncType": "Full"}), "_id").await;
}

#[tokio::test]
async fn a_list_is_a_wrongly_typed_stamp_whatever_it_holds() {
    let database = database().await;
    let later = DateTime::from_millis(START + 1);
    insert(&database, vec![doc! {"_id": 1, "lastSynced": [later]}, doc! {"_id": 2, "lastSynced": []}]).await;
    for spec in [json!({"syncType": "Full"}), json!({"staleAfter": "1m"})] {
        let users = database.collection::<Document>("users");
        users.update_one(doc! {"_id": 1}, doc! {"$set": {"lastSynced": [later]}}).await.unwrap();
        let target = target(&database, spec, START).await.unwrap();
        assert_eq!(run(&target, None).await.unwrap().updated, 2);
        assert_eq!(stamped(&database, START).await, 2);
    }
}

#[tokio::test]
async fn an_unknown_operator_is_an_invalid_target_with_a_reason() {
    let database = database().await;
    insert(&database, vec![doc! {"_id": 1}]).await;
    for filter in [json!({"a": {"$bigger": 1}}), json!({"$bigger": 1}), json!({"a": {"$in": 1}})] {
        let operator = if filter.to_string().contains("$bigger") { "$bigger" } else { "$in" };
        let target = target(&database, json!({"target": {"filter": filter}}), START).await.unwrap();
        for error in [target.count().await.unwrap_err(), run(&target, None).await.err().unwrap()] {
            assert!(matches!(&error, Error::InvalidTarget(text) if text.contains(operator)), "{filter}: {error}");
        }
    }
}

#[tokio::test]
async fn a_query_the_collection_cannot_answer_is_an_invalid_target() {
    let database = database().await;
    insert(&database, vec![doc! {"_id": 1, "name": "Ann"}]).await;
    for (filter, reason) in [
        (json!({"$text": {"$search": "Ann"}}), "text index required"),
        (json!({"place": {"$near": [0, 0]}}), "$near"),
        (json!({"$expr": {"$strcasecmp": ["$name"]}}), "takes exactly 2 arguments"),
        (json!({"name": {"$regex": "("}}), "Regular expression is invalid"),
    ] {
        let target = target(&database, json!({"target": {"filter": filter}}), START).await.unwrap();
        let error = target.count().await.unwrap_err();
        assert!(matches!(&error, Error::InvalidTarget(text) if text.contains(reason)), "{filter}: {error}");
    }
}

#[tokio::test]
async fn a_filter_that_is_no_extended_json_is_an_invalid_target() {
    let database = database().await;
    let spec = json!({"target": {"filter": {"_id": {"$oid": "17"}}}});
    let error = target(&database, spec, START).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidTarget(text) if text.contains("target.filter")), "{error}");
}

#[tokio::test]
async fn only_databases_that_are_allowed_can_be_named() {
    let (own, other) = (database().await, database().await);
    insert(&other, vec![doc! {"_id": 1}]).await;
    let spec = parse(json!({"syncType": "Full", "target": {"database": other.name()}}));
    let started = Timestamp::from_millisecond(START).unwrap();
    let deployment = Deployment::new(&variable("MONGODB_URI"), own.name(), &[], None).await.unwrap();
    let error = deployment.target(&spec, "test", started, started).unwrap_err();
    let hint = format!("--allowed-databases {}", other.name());
    assert!(matches!(&error, Error::InvalidTarget(text) if text.contains(&hint)), "{error}");

    let allowed = [other.name().to_owned()];
    let deployment = Deployment::new(&variable("MONGODB_URI"), own.name(), &allowed, None).await.unwrap();
    let target = deployment.target(&spec, "test", started, started).unwrap();
    assert_eq!((run(&target, None).await.unwrap().updated, stamped(&other, START).await), (1, 1));
}

#[tokio::test]
async fn a_view_is_an_invalid_target() {
    let database = database().await;
    insert(&database, vec![doc! {"_id": 1}]).await;
    database.run_command(doc! {"create": "active", "viewOn": "users", "pipeline": []}).await.unwrap();
    let target = target(&database, json!({"target": {"collection": "active"}}), START).await.unwrap();
    let error = run(&target, None).await.err().unwrap();
    assert!(matches!(&error, Error::InvalidTarget(text) if text.contains("is a view")), "{error}");
}

#[tokio::test]
async fn a_missing_collection_holds_no_documents() {
    let database = database().await;
    let target = target(&database, json!({"type": "Issue"}), START).await.unwrap();
    assert_eq!((target.count().await.unwrap(), run(&target, None).await.unwrap().processed), (0, 0));
    assert!(database.list_collection_names().await.unwrap().is_empty(), "and is not created");
}

#[tokio::test]
async fn an_outage_fails_the_attempt_and_hides_the_address() {
    let uri = "mongodb://user:secret@127.0.0.1:1/?serverSelectionTimeoutMS=100";
    let deployment = Deployment::new(uri, "db", &[], None).await.unwrap();
    let target = deployment
        .target(&parse(json!({})), "test", Timestamp::from_millisecond(START).unwrap(), Timestamp::UNIX_EPOCH)
        .unwrap();
    for error in [target.count().await.unwrap_err(), run(&target, None).await.err().unwrap()] {
        let outcome = error.outcome();
        assert_eq!((outcome.reason.as_str(), outcome.message.contains("secret")), ("Unreachable", false), "{error}");
        assert!(matches!(error, Error::Attempt { .. }));
    }
    for uri in ["mongodb://user:secret@", "secret://a:b@c", "mongodb://user:secret@host/?w=a&w=b&nonsense=%zz"] {
        let unusable = Deployment::new(uri, "db", &[], None).await.err().map(|error| error.to_string());
        assert!(!unusable.is_some_and(|text| text.contains("user:secret")), "{uri}");
    }
}

#[tokio::test]
async fn a_filter_in_extended_json_selects_documents() {
    let database = database().await;
    let id = ObjectId::new();
    insert(
        &database,
        vec![
            doc! {"_id": 1, "born": DateTime::from_millis(0)},
            doc! {"_id": 2, "team": id, "tags": ["a", "b"]},
            doc! {"_id": 3, "size": 7_i64, "name": "Ann"},
            doc! {"_id": 4},
        ],
    )
    .await;
    for (filter, expected) in [
        (json!({"born": {"$date": "1970-01-01T00:00:00Z"}}), 1),
        (json!({"born": {"$gte": {"$date": "1969-01-01T00:00:00Z"}}}), 1),
        (json!({"team": {"$oid": id.to_hex()}}), 2),
        (json!({"team": {"$in": [{"$oid": id.to_hex()}]}, "tags": "b"}), 2),
        (json!({"size": {"$numberLong": "7"}}), 3),
        (json!({"$or": [{"name": {"$regex": "^a", "$options": "i"}}, {"nothing": 1}]}), 3),
        (json!({"_id": {"$gt": 3}}), 4),
    ] {
        unstamp(&database).await;
        let spec = json!({"syncType": "Full", "target": {"filter": filter}});
        let target = target(&database, spec, START).await.unwrap();
        assert_eq!(target.count().await.unwrap(), 1, "{filter}");
        run(&target, None).await.unwrap();
        let found = sorted(&database, "_id", doc! {"lastSynced": DateTime::from_millis(START)}).await;
        assert_eq!(found, [Bson::from(expected)], "{filter}");
    }
}

#[tokio::test]
async fn a_document_that_left_the_filter_is_not_stamped() {
    let database = database().await;
    insert(&database, (0..10).map(|id| doc! {"_id": id, "state": "active"}).collect()).await;
    let spec = json!({"syncType": "Full", "target": {"filter": {"state": "active"}}});
    let target = target(&database, spec, START).await.unwrap();
    let batches = read(&target).await;
    let users = database.collection::<Document>("users");
    users.update_one(doc! {"_id": 5}, doc! {"$set": {"state": "gone"}}).await.unwrap();
    for batch in batches {
        let outcome = target.write(batch).await.unwrap();
        assert_eq!((outcome.updated, outcome.unchanged, outcome.failures.len()), (9, 1, 0));
    }
    assert_eq!(users.count_documents(doc! {"_id": 5, "lastSynced": Bson::Null}).await.unwrap(), 1);
}

#[tokio::test]
async fn inserted_and_deleted_documents_do_not_break_the_counts() {
    let database = database().await;
    insert(&database, (0..10).map(|i| doc! {"_id": i * 10}).collect()).await;
    let target = target(&database, json!({"syncType": "Full"}), START).await.unwrap();
    let batch = read(&target).await.remove(0);
    insert(&database, vec![doc! {"_id": 15}, doc! {"_id": 1000}]).await;
    database.collection::<Document>("users").delete_many(doc! {"_id": {"$in": [20, 30, 40]}}).await.unwrap();
    let outcome = target.write(batch).await.unwrap();
    assert_eq!((outcome.updated, outcome.unchanged, outcome.processed()), (8, 2, 10));
    assert_eq!(stamped(&database, START).await, 8);
}

#[tokio::test]
async fn documents_that_share_a_key_are_counted_once() {
    let database = database().await;
    let users = (0..250).map(|i| {
        if i % 5 == 0 {
            doc! {"_id": i, "email": "a"}
        } else {
            doc! {"_id": i}
        }
    });
    insert(&database, users.collect()).await;
    let spec = json!({"syncType": "Full", "target": {"keyField": "email"}, "batchSize": 30});
    let sums = run(&target(&database, spec, START).await.unwrap(), None).await.unwrap();
    assert_eq!((sums.updated, sums.unchanged, stamped(&database, START).await), (250, 0, 250));
}

#[tokio::test]
async fn a_regular_expression_as_a_key_matches_only_itself() {
    let database = database().await;
    let pattern = |text: &str| {
        Bson::RegularExpression(Regex { pattern: text.try_into().unwrap(), options: "".try_into().unwrap() })
    };
    insert(&database, vec![doc! {"_id": 1, "name": pattern("a")}, doc! {"_id": 2, "name": pattern("b")}]).await;
    let spec = json!({"syncType": "Full", "target": {"keyField": "name", "filter": {"refused": null}}});
    let target = target(&database, spec, START).await.unwrap();
    let batch = read(&target).await.remove(0);
    // Not selected, so not stamped by the run; it only matches.
    insert(&database, vec![doc! {"_id": 3, "name": "ab", "refused": true, "lastSynced": DateTime::from_millis(START)}])
        .await;
    database.collection::<Document>("users").delete_one(doc! {"_id": 2}).await.unwrap();
    let outcome = target.write(batch).await.unwrap();
    assert_eq!((outcome.updated, outcome.unchanged), (1, 1));
}

#[tokio::test]
async fn resuming_after_a_key_of_several_fields_skips_nothing() {
    let database = database().await;
    insert(&database, (0..10).map(|i| doc! {"_id": {"tenant": 1, "id": format!("user-{i}")}}).collect()).await;
    assert_walks_and_resumes(&database, json!({"syncType": "Full"}), "_id").await;
}

fn source(batch: &Batch, name: &str) -> Vec<Found> {
    batch.due().iter().map(|_| Found::Result(json!({"name": name}))).collect()
}

fn fetching() -> Value {
    json!({
        "syncType": "Full",
        "batchSize": 10,
        "source": {"name": "s", "graphQL": {"endpoint": "https://a.example/", "query": "{a}", "resultPath": "/data"}},
        "mapping": [{"from": "/name", "to": "name"}],
    })
}

/// Value of `_sync` of a document that the source of [`fetching`] listed at this time.
fn listed(millis: i64) -> Document {
    doc! {"test/s": {"at": DateTime::from_millis(millis)}}
}

#[tokio::test]
async fn a_late_answer_never_replaces_a_newer_one() {
    let database = database().await;
    insert(&database, (0..4).map(|id| doc! {"_id": id, "name": "first"}).collect()).await;
    let target = target(&database, fetching(), 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    let at = |millis| Timestamp::from_millisecond(millis).unwrap();
    let newer = target.apply(batch.clone(), source(&batch, "newer"), at(3000)).await.unwrap();
    assert_eq!((newer.updated, newer.unchanged), (4, 0));
    let late = target.apply(batch.clone(), source(&batch, "late"), at(2000)).await.unwrap();
    assert_eq!((late.updated, late.unchanged), (0, 4));
    let again = target.apply(batch.clone(), source(&batch, "again"), at(3000)).await.unwrap();
    assert_eq!((again.updated, again.unchanged), (0, 4));
    let users = database.collection::<Document>("users");
    let newer = doc! {"name": "newer", "lastSynced": DateTime::from_millis(3000)};
    assert_eq!(users.count_documents(newer).await.unwrap(), 4);
    database.drop().await.unwrap();
}

/// Inserts ten users with their final name, as two batches of an earlier run wrote them.
async fn unchanged(database: &Database) {
    let before = |id: i32| listed(if id < 6 { 500 } else { 600 });
    insert(database, (0..10).map(|id| doc! {"_id": id, "name": "same", "_sync": before(id)}).collect()).await;
}

async fn apply_same(target: &TargetCollection, batch: &Batch) -> sync_operator::sync::BatchResult {
    target.apply(batch.clone(), source(batch, "same"), Timestamp::from_millisecond(3000).unwrap()).await.unwrap()
}

#[tokio::test]
async fn unchanged_documents_are_stamped_with_one_command() {
    let database = database().await;
    unchanged(&database).await;
    let target = target(&database, fetching(), 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    database.run_command(doc! {"profile": 2}).await.unwrap();
    let outcome = apply_same(&target, &batch).await;
    database.run_command(doc! {"profile": 0}).await.unwrap();
    assert_eq!((outcome.updated, outcome.unchanged, outcome.failures.len()), (0, 10, 0));
    assert_eq!(stamped(&database, 3000).await, 10);
    let profile = database.collection::<Document>("system.profile");
    let statements = profile.count_documents(doc! {"op": "update"}).await.unwrap();
    assert_eq!(statements, 2, "one for each stamp that was read");
    database.drop().await.unwrap();
}

#[tokio::test]
async fn an_unchanged_document_that_another_run_wrote_is_written() {
    let database = database().await;
    unchanged(&database).await;
    let target = target(&database, fetching(), 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    let users = database.collection::<Document>("users");
    let other = doc! {"$set": {"name": "older", "_sync": listed(2000)}};
    users.update_one(doc! {"_id": 4}, other).await.unwrap();
    let outcome = apply_same(&target, &batch).await;
    assert_eq!(outcome.failures.len(), 0);
    let same = doc! {"name": "same", "lastSynced": DateTime::from_millis(3000)};
    assert_eq!(users.count_documents(same).await.unwrap(), 10);
    database.drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_batch_with_a_long_filter_is_stamped() {
    const USERS: i32 = 10_000;
    let database = database().await;
    let before = |id: i32| listed(i64::from(id) - 20_000);
    insert(&database, (0..USERS).map(|id| doc! {"_id": id, "name": "same", "_sync": before(id)}).collect()).await;
    let names: Vec<String> = (0..200).map(|name| format!("some-name-{name}")).chain(["same".to_owned()]).collect();
    let mut spec = fetching();
    spec["batchSize"] = USERS.into();
    spec["target"] = json!({"filter": {"name": {"$in": names}}});
    let target = target(&database, spec, 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    let outcome = apply_same(&target, &batch).await;
    assert_eq!((outcome.unchanged, outcome.failures.len()), (10_000, 0));
    assert_eq!(stamped(&database, 3000).await, 10_000);
    database.drop().await.unwrap();
}

#[tokio::test]
async fn a_refused_document_is_named_among_unchanged_ones() {
    let database = database().await;
    unchanged(&database).await;
    validate(&database, doc! {"_id": {"$ne": 4}}).await;
    let target = target(&database, fetching(), 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    let outcome = apply_same(&target, &batch).await;
    let failed: Vec<_> = outcome.failures.iter().map(|failure| failure.key.as_str()).collect();
    assert_eq!((outcome.unchanged, failed), (9, vec!["4"]));
    assert_eq!(stamped(&database, 3000).await, 9);
    database.drop().await.unwrap();
}

#[tokio::test]
async fn deleted_and_unmatched_documents_are_not_written() {
    let database = database().await;
    insert(&database, (0..4).map(|id| doc! {"_id": id, "state": "active"}).collect()).await;
    let mut spec = fetching();
    spec["target"] = json!({"filter": {"state": "active"}});
    let target = target(&database, spec, 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    let users = database.collection::<Document>("users");
    users.delete_one(doc! {"_id": 0}).await.unwrap();
    users.update_one(doc! {"_id": 1}, doc! {"$set": {"state": "left"}}).await.unwrap();
    let at = Timestamp::from_millisecond(2000).unwrap();
    let outcome = target.apply(batch.clone(), source(&batch, "new"), at).await.unwrap();
    assert_eq!((outcome.updated, outcome.unchanged, outcome.failures.len()), (2, 2, 0));
    assert_eq!(users.count_documents(doc! {"name": "new"}).await.unwrap(), 2);
    database.drop().await.unwrap();
}

/// The documents that a run without any result would mark or delete at 3000.
async fn candidates(target: &TargetCollection) -> Vec<RemovalCandidates> {
    let listed = HashSet::new();
    target.candidates(Timestamp::from_millisecond(3000).unwrap(), &listed).try_collect().await.unwrap()
}

#[tokio::test]
async fn a_failed_result_protects_from_overlapping_runs() {
    let database = database().await;
    insert(&database, (0..2).map(|id| doc! {"_id": id, "name": "old", "_sync": listed(500)}).collect()).await;
    validate(&database, doc! {"name": {"$ne": "refused"}}).await;
    let mut spec = fetching();
    spec["source"]["batching"] = "Pages".into();
    spec["source"]["onMissing"] = "Mark".into();
    spec["source"]["pagination"] = json!({"nextPath": "/next"});
    let failing = target(&database, spec.clone(), 1000).await.unwrap();
    let list = async |millis: i64| {
        let refused = Found::Result(json!({"name": "refused"}));
        let unusable = Found::Failed("SourceError", "no".to_owned());
        let results = vec![(Bson::from(0), refused), (Bson::from(1), unusable)];
        let page = SourcePage { results, ..SourcePage::default() };
        failing.apply_page(page, Timestamp::from_millisecond(millis).unwrap()).await.unwrap()
    };
    let marked = doc! {"_sync.test/s.gone": {"$exists": true}};
    let users = database.collection::<Document>("users");
    let count_marked = async || users.count_documents(marked.clone()).await.unwrap();
    let now = Timestamp::from_millisecond(3000).unwrap();

    let overlapping = target(&database, spec.clone(), 1200).await.unwrap();
    let before = candidates(&overlapping).await;
    assert_eq!(before.iter().map(RemovalCandidates::len).sum::<usize>(), 2);
    let outcome = list(1500).await;
    assert_eq!((outcome.updated, outcome.unmarked, outcome.failures.len()), (0, 0, 2));
    assert_eq!(overlapping.remove(&before[0], now).await.unwrap().marked, 0, "the documents are not as they were read");
    assert!(candidates(&overlapping).await.is_empty());

    let later = target(&database, spec, 2000).await.unwrap();
    assert_eq!(later.remove(&candidates(&later).await[0], now).await.unwrap().marked, 2);
    assert_eq!((count_marked().await, list(2500).await.unmarked, count_marked().await), (2, 2, 0));
    database.drop().await.unwrap();
}

fn whole() -> Value {
    let mut spec = fetching();
    spec["transaction"] = "Batch".into();
    spec["batchSize"] = 500.into();
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_in_a_transaction_is_never_partly_visible() {
    let database = database().await;
    insert(&database, (0..500).map(|id| doc! {"_id": id, "padding": "x".repeat(20_000)}).collect()).await;
    let mut spec = whole();
    // These documents need more than one command.
    let padding = "y".repeat(20_000);
    spec["mapping"] = json!([{"from": "/name", "to": "name"}, {"from": "/padding", "to": "padding"}]);
    let target = target(&database, spec, 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    let found = batch.due().iter().map(|_| Found::Result(json!({"name": "new", "padding": padding}))).collect();
    let writing =
        tokio::spawn(async move { target.apply(batch, found, Timestamp::from_millisecond(2000).unwrap()).await });
    let mut seen = HashSet::new();
    while !writing.is_finished() {
        let command = doc! {"aggregate": "users", "cursor": {}, "readConcern": {"level": "snapshot"},
        "pipeline": [{"$match": {"name": "new"}}, {"$count": "count"}]};
        let answer = database.run_command(command).await.unwrap();
        let counted = answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap().first().cloned();
        seen.insert(counted.map_or(0, |counted| counted.as_document().unwrap().get_i32("count").unwrap()));
    }
    assert_eq!(writing.await.unwrap().unwrap().updated, 500);
    assert!(seen.iter().all(|count| [0, 500].contains(count)), "{seen:?}");
    assert!(seen.contains(&0), "it was read during the write");
    database.drop().await.unwrap();
}

#[tokio::test]
async fn refused_documents_are_left_out_of_a_transaction() {
    let database = database().await;
    insert(
        &database,
        (0..20).map(|id| doc! {"_id": id, "email": if id % 7 == 3 { "nobody" } else { "a@b" }}).collect(),
    )
    .await;
    validate(&database, doc! {"email": {"$regex": "@"}}).await;
    let target = target(&database, whole(), 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    let at = Timestamp::from_millisecond(2000).unwrap();
    let outcome = target.apply(batch.clone(), source(&batch, "new"), at).await.unwrap();
    let refused: Vec<_> = outcome.failures.iter().map(|failure| (&*failure.key, &*failure.reason)).collect();
    assert_eq!((outcome.updated, refused), (17, ["3", "10", "17"].map(|id| (id, "ValidationFailed")).to_vec()));
    let users = database.collection::<Document>("users");
    assert_eq!(users.count_documents(doc! {"name": "new"}).await.unwrap(), 17);
    database.drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_waits_for_a_conflicting_transaction() {
    let database = database().await;
    insert(&database, (0..20).map(|id| doc! {"_id": id}).collect()).await;
    let target = target(&database, whole(), 1000).await.unwrap();
    let batch = read(&target).await.remove(0);
    let users = database.collection::<Document>("users");
    let mut other = database.client().start_session().await.unwrap();
    other.start_transaction().await.unwrap();
    users.update_one(doc! {"_id": 15}, doc! {"$set": {"mine": true}}).session(&mut other).await.unwrap();
    let at = Timestamp::from_millisecond(2000).unwrap();
    let found = source(&batch, "new");
    let writing = tokio::spawn(async move { target.apply(batch, found, at).await });
    // Transactions of other tests on this server end. Only this test aborts more and more transactions.
    let aborted = async || {
        let status = database.client().database("admin").run_command(doc! {"serverStatus": 1}).await.unwrap();
        status.get_document("transactions").unwrap().get_i64("totalAborted").unwrap()
    };
    let before = aborted().await;
    eventually("the transaction was retried", async || (aborted().await >= before + 3).then_some(())).await;
    assert_eq!(users.count_documents(doc! {"name": "new"}).await.unwrap(), 0);
    assert!(!writing.is_finished());
    other.commit_transaction().await.unwrap();
    let outcome = writing.await.unwrap().unwrap();
    assert_eq!((outcome.updated, outcome.failures.len()), (20, 0));
    database.drop().await.unwrap();
}
