//! Runs that restore the documents that they have changed when they fail.

use std::time::Duration;

use bson::{DateTime, Document, RawDocumentBuf, doc};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sync_operator::{
    api::syncjob::{Phase, SyncJobStatus},
    domain::run::RunSpec,
    sync::{Deployment, Found, TargetCollection},
};
use tokio::select;

use crate::{
    sources::with,
    support::{
        ALLOWED, RequestLimit, TestEnv, apply_job, confirmed, counts, ended, eventually, failures, finished,
        start_leader_behind, wait_for_events, wait_for_phase,
    },
    upstream::{Instead, Peculiar, Upstream},
};

/// A spec of a run that fails with its first failed document, and that also removes fields.
fn failing(upstream: &Upstream, source: &Value) -> Value {
    let mut spec = with(upstream, source);
    spec["batchSize"] = json!(5);
    spec["parallelism"] = json!(2);
    spec["transaction"] = json!("Batch");
    spec["onFailure"] = json!("Rollback");
    spec["failurePolicy"] = json!({"maxFailedPercent": 1});
    let mapping = spec["mapping"].as_array_mut().unwrap();
    mapping.push(json!({"from": "/nothing", "to": "padding", "onNull": "Unset"}));
    spec
}

/// A source with pages that inserts some documents and removes some.
fn paged() -> Value {
    json!({
        "query": "query ($first: Int!, $after: String) { people(first: $first, after: $after) { nodes { id name createdAt } pageInfo { hasNextPage endCursor } } }",
        "batching": "Pages",
        "resultPath": "/data/people/nodes",
        "pagination": {"by": "Cursor", "nextPath": "/data/people/pageInfo/endCursor", "morePath": "/data/people/pageInfo/hasNextPage"},
        "name": "people",
        "upsert": true,
        "onMissing": "Delete",
        "keyType": "Int",
    })
}

/// Makes the run of pages fail after it has marked some documents: MongoDB refuses the mark of this one.
async fn refuse_mark(env: &TestEnv, id: i32) {
    let rule = doc! {"$nor": [{"_id": id, "missingSince": {"$exists": true}}]};
    env.database.run_command(doc! {"collMod": "users", "validator": rule}).await.unwrap();
}

/// Inserts users with unusual fields and types.
async fn seed(env: &TestEnv, count: i32) -> Vec<RawDocumentBuf> {
    let users = env.database.collection::<Document>("users");
    let listed = confirmed(&env.name, "people");
    let odd = |id: i32| match id % 4 {
        0 => {
            doc! {"_id": id, "_sync": listed.clone(), "padding": "x", "profile": {"name": "old", "age": id}, "z": f64::NAN}
        }
        1 => doc! {"profile": {}, "_id": id, "padding": [1, {"a": null}], "lastSynced": null},
        2 => doc! {"_id": id, "origin": 7_i64, "_sync": listed.clone(), "joined": "1999"},
        _ => doc! {"_id": id, "lastSynced": "never", "": {"$set": 1}},
    };
    users.insert_many((0..count).map(odd)).await.unwrap();
    all(env).await
}

async fn all(env: &TestEnv) -> Vec<RawDocumentBuf> {
    let users = env.database.collection::<RawDocumentBuf>("users");
    users.find(doc! {}).sort(doc! {"_id": 1}).await.unwrap().try_collect().await.unwrap()
}

/// Answers this number of requests, and delays further ones for a minute.
fn stall_after(upstream: &Upstream, requests: usize) {
    upstream.decide(move |number| (number > requests).then_some(Instead::Silence(Duration::from_secs(60))));
}

async fn journals(env: &TestEnv) -> Vec<String> {
    let names = env.database.list_collection_names().await.unwrap();
    names.into_iter().filter(|name| name.starts_with("sync_journal.")).collect()
}

fn restored_documents(status: &SyncJobStatus) -> Option<i64> {
    status.counts.unwrap().rolled_back
}

#[tokio::test]
async fn a_failed_run_leaves_every_document_as_it_was() {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(30).await);
    let before = seed(&env, 40).await;
    refuse_mark(&env, 34).await;
    let (_operator, _) = env.all(&ALLOWED);
    for (name, source, written, failed) in
        [("batches", json!({}), 39, ("17", "SourceError")), ("pages", paged(), 34, ("34", "ValidationFailed"))]
    {
        let broken = (name == "batches").then(|| ("17".to_owned(), Peculiar::Broken));
        upstream.state().users = broken.into_iter().collect();
        apply_job(&env, name, failing(&upstream, &source)).await;
        let status = finished(&env, name).await.status.unwrap();
        let (reason, message) = ended(&status);
        assert_eq!((reason, restored_documents(&status)), ("TooManyFailed", Some(written)), "{name}: {message}");
        assert!(message.ends_with(&format!("; {written} documents were restored")), "{message}");
        assert_eq!(failures(&status), [failed]);
        assert_eq!((status.attempts, status.attempt_history.len()), (Some(1), 1), "a rollback is no attempt");
        assert!(all(&env).await == before, "{name}");
        assert_eq!(journals(&env).await, [""; 0]);
        wait_for_events(&env, name, &["RunFailed"]).await;
    }
}

#[tokio::test]
async fn a_run_that_completes_keeps_what_it_wrote_and_no_journal() {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(50).await);
    seed(&env, 40).await;
    // Journals of an unknown run: a recent one and an old one.
    for (uid, opened) in [("recent", DateTime::now()), ("old", DateTime::from_millis(0))] {
        let journal = env.database.collection::<Document>(&format!("sync_journal.{uid}"));
        journal.insert_one(doc! {"_id": bson::Bson::MinKey, "opened": opened}).await.unwrap();
    }
    let (_operator, _) = env.all(&ALLOWED);
    apply_job(&env, "all", failing(&upstream, &paged())).await;
    let status = finished(&env, "all").await.status.unwrap();
    assert_eq!((counts(&status), restored_documents(&status)), ((50, 0, 0), None), "{status:?}");
    assert_eq!(env.count(doc! {"origin": "gitlab", "padding": {"$exists": false}}).await, 50);
    eventually("the journal is dropped", async || (journals(&env).await == ["sync_journal.recent"]).then_some(()))
        .await;
}

#[tokio::test]
async fn a_cancelled_run_is_rolled_back_except_later_changes() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    let before = seed(&env, 40).await;
    stall_after(&upstream, 4);
    let (_operator, _) = env.all(&ALLOWED);
    apply_job(&env, "users", failing(&upstream, &json!({}))).await;
    eventually("20 are written", async || (env.count(doc! {"origin": "gitlab"}).await == 20).then_some(())).await;
    env.patch_job("users", json!({"suspended": true})).await;
    wait_for_phase(&env, "users", Phase::Suspended).await;
    let users = env.database.collection::<Document>("users");
    users.update_one(doc! {"_id": 0}, doc! {"$set": {"profile.age": 99, "mine": 1}}).await.unwrap();
    users.update_one(doc! {"_id": 1}, doc! {"$set": {"origin": "mine"}}).await.unwrap();
    users.delete_one(doc! {"_id": 2}).await.unwrap();

    env.patch_job("users", json!({"cancelled": true})).await;
    let status = finished(&env, "users").await.status.unwrap();
    assert_eq!((ended(&status).0, restored_documents(&status)), ("Cancelled", Some(19)));
    let after = all(&env).await;
    assert!(after[2..] == before[3..], "no other client has changed these");
    let mut first: Document = (&*before[0]).try_into().unwrap();
    first.insert("mine", 1);
    first.get_document_mut("profile").unwrap().insert("age", 99);
    let mut second: Document = (&*before[1]).try_into().unwrap();
    second.insert("origin", "mine");
    let found: Vec<Document> = after[..2].iter().map(|found| (&**found).try_into().unwrap()).collect();
    assert_eq!(format!("{found:?}"), format!("{:?}", [first, second]));
}

#[tokio::test]
async fn documents_that_cannot_be_restored_are_reported_and_kept() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    seed(&env, 40).await;
    upstream.state().users.insert("17".to_owned(), Peculiar::Gone);
    // The previous content of document 8 does not pass the new validator.
    let rule = doc! {"$or": [{"_id": {"$ne": 8}}, {"origin": "gitlab"}]};
    env.database.run_command(doc! {"collMod": "users", "validator": rule}).await.unwrap();
    let (_operator, _) = env.all(&ALLOWED);
    let job = apply_job(&env, "users", failing(&upstream, &json!({}))).await;
    let status = finished(&env, "users").await.status.unwrap();
    let journal = format!("sync_journal.{}", job.metadata.uid.unwrap());
    let (reason, message) = ended(&status);
    assert_eq!((reason, restored_documents(&status)), ("TooManyFailed", Some(38)), "{message}");
    let expected =
        format!("; 38 documents were restored, 1 could not be restored: {journal} has their former values for 30 days");
    assert!(message.ends_with(&expected), "{message}");
    assert_eq!(failures(&status), [("17", "NotReturned"), ("8", "ValidationFailed")]);
    assert_eq!(env.count(doc! {"origin": "gitlab"}).await, 1);
    let entries = env.database.collection::<Document>(&journal);
    assert_eq!(entries.count_documents(doc! {"_id": 8, "before": {"$exists": true}}).await.unwrap(), 1);
    assert!(entries.list_index_names().await.unwrap().contains(&"expiry".to_owned()));
}

#[tokio::test]
async fn a_rollback_continues_after_redis_lost_the_run() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    let before = seed(&env, 40).await;
    stall_after(&upstream, 4);
    let (mut operator, _) = env.all(&ALLOWED);
    let job = apply_job(&env, "users", failing(&upstream, &json!({}))).await;
    eventually("some are written", async || (env.count(doc! {"origin": "gitlab"}).await >= 10).then_some(())).await;
    wait_for_phase(&env, "users", Phase::Running).await;
    operator.kill();
    assert!(all(&env).await != before);
    env.patch_job("users", json!({"cancelled": true})).await;
    env.queue().remove(&job.metadata.uid.unwrap()).await.unwrap();
    let (_second, _) = env.all(&ALLOWED);
    let status = finished(&env, "users").await.status.unwrap();
    assert_eq!(ended(&status).0, "Cancelled");
    assert!(all(&env).await == before);
    assert_eq!(journals(&env).await, [""; 0]);
}

async fn target(env: &TestEnv, epoch: u64) -> TargetCollection {
    let spec = json!({
        "syncType": "Full", "transaction": "Batch", "onFailure": "Rollback",
        "source": {"graphQL": {"endpoint": "https://api.example/graphql", "query": "{a}", "resultPath": "/data/users"}},
        "mapping": [{"from": "/name", "to": "name"}],
    });
    let spec = RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap();
    let deployment = Deployment::new(&env.servers.mongodb, &env.name, &[], None).await.unwrap();
    deployment
        .target(&spec, "test", Timestamp::from_millisecond(1000).unwrap(), Timestamp::UNIX_EPOCH)
        .unwrap()
        .journalled("run", epoch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_lost_its_run_writes_nothing_after_a_rollback() {
    let env = TestEnv::new().await;
    let before = seed(&env, 20).await;
    let (lost, newer) = (target(&env, 1).await, target(&env, 2).await);
    lost.open_journal().await.unwrap();
    let write = async || {
        let batch = lost.batches(None).boxed().try_next().await.unwrap().unwrap();
        let found = batch.due().iter().map(|_| Found::Result(json!({"name": "new"}))).collect();
        lost.apply(batch, found, Timestamp::from_millisecond(2000).unwrap()).await
    };
    assert_eq!(write().await.unwrap().updated, 20);

    // A worker that stopped in the middle of a transaction.
    let journal = env.database.collection::<Document>("sync_journal.run");
    let mut open = env.database.client().start_session().await.unwrap();
    open.start_transaction().await.unwrap();
    journal.find_one(doc! {"_id": bson::Bson::MinKey}).session(&mut open).await.unwrap().unwrap();
    let rollback = tokio::spawn({
        let newer = newer.clone();
        async move { newer.open_rollback().await }
    });
    eventually("the fence is raised", async || {
        let fence = journal.find_one(doc! {"_id": bson::Bson::MinKey}).await.unwrap().unwrap();
        (fence.get_i64("epoch").unwrap() == 2).then_some(())
    })
    .await;
    let waits = doc! {"aggregate": 1, "cursor": {}, "pipeline": [
    {"$currentOp": {}}, {"$match": {"command.dropIndexes": "sync_journal.run", "command.$db": env.name.as_str(), "waitingForLock": true}}]};
    eventually("the rollback waits for the transaction", async || {
        let answer = env.database.client().database("admin").run_command(waits.clone()).await.unwrap();
        (!answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap().is_empty()).then_some(())
    })
    .await;
    assert!(!rollback.is_finished());
    open.abort_transaction().await.unwrap();
    rollback.await.unwrap().unwrap();

    let users = env.database.collection::<Document>("users");
    users.update_many(doc! {}, doc! {"$unset": {"_sync": 1}}).await.unwrap();
    assert_eq!(write().await.unwrap_err().outcome().reason, "Fenced");
    assert_eq!(lost.open_rollback().await.unwrap_err().outcome().reason, "Fenced");
    assert_eq!(lost.put_back(None).await.unwrap_err().outcome().reason, "Fenced");
    let put_back = newer.put_back(None).await.unwrap().unwrap();
    assert_eq!((put_back.documents, put_back.failures.len()), (20, 0));
    assert_eq!(newer.put_back(Some(&put_back.last)).await.unwrap(), None);
    assert_eq!(env.count(doc! {"name": "new"}).await, 0);
    newer.drop_journal().await.unwrap();
    assert_eq!(write().await.unwrap_err().outcome().reason, "Fenced", "also after the rollback");
    assert_eq!(all(&env).await.len(), before.len());
}

const USERS: i32 = 20;
/// Concurrent rounds. A round waits most of its time for the end of leases.
const SIDE_BY_SIDE: usize = 8;

/// Kills the operator after a number of requests, lets another operator continue, and returns the number of requests.
async fn round(requests: usize) -> usize {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(15).await);
    let before = seed(&env, USERS).await;
    refuse_mark(&env, 18).await;
    let limit = RequestLimit::new();
    let args = [&["--lease-duration", "1s"], &ALLOWED[..]].concat();
    let mut first = start_leader_behind(&limit, &env, &args).await;

    limit.allow(requests);
    apply_job(&env, "users", failing(&upstream, &paged())).await;
    let used = select! {
        () = limit.cut.notified() => requests,
        _ = finished(&env, "users") => limit.passed(requests),
    };
    first.kill();

    let (_second, _) = env.all(&args);
    let status = finished(&env, "users").await.status.unwrap();
    let at = format!("killed after {used} requests");
    assert_eq!((ended(&status).0, restored_documents(&status)), ("TooManyFailed", Some(16)), "{at}");
    assert!(all(&env).await == before, "{at}");
    assert_eq!(journals(&env).await, [""; 0], "{at}");
    env.database.drop().await.unwrap();
    used
}

/// The kill is after each sixth request, or with `KILL_EVERY=1` after each one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_and_rolled_back_run_leaves_documents_unchanged() {
    let all = round(RequestLimit::OPEN).await;
    assert!(all > 20, "only {all} requests were seen");
    eprintln!("{all} requests");
    let step = std::env::var("KILL_EVERY").map_or(6, |every| every.parse().unwrap());
    stream::iter((1..=all).step_by(step)).map(round).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<_>>().await;
}
