//! A local run and the same SyncJob on a cluster leave equal documents, counts, failures and messages.

use std::{env, fs};

use bson::{Bson, Document, doc, oid::ObjectId};
use futures::TryStreamExt;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{ResourceExt, api::PostParams};
use mongodb::{Database, IndexModel, options::IndexOptions};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, SyncSchedule, syncjob::SyncJobStatus, syncschedule::ActiveRun},
    domain::schedule::{Parsed, build_job},
};

use super::Local;
use crate::{
    support::{ALLOWED, TestEnv, confirmed, finished, secret, source, unique},
    upstream::{Peculiar, Upstream},
};

/// Fields whose values are times of the run.
const TIMES: [&str; 2] = ["lastSynced", "missingSince"];

/// The result of a run.
struct Left {
    documents: Vec<Document>,
    status: Value,
}

/// The collection, without the values of times.
async fn documents(database: &Database, collection: &str) -> Vec<Document> {
    let all = database.collection::<Document>(collection).find(doc! {}).sort(doc! {"_id": 1}).await.unwrap();
    let mut all: Vec<Document> = all.try_collect().await.unwrap();
    for document in &mut all {
        for field in TIMES {
            if let Some(time) = document.get_mut(field).filter(|value| matches!(value, Bson::DateTime(_))) {
                *time = "a time".into();
            }
        }
        for (_, state) in document.get_document_mut("_sync").map(Document::iter_mut).into_iter().flatten() {
            let state = state.as_document_mut().unwrap();
            for field in ["at", "none", "failed", "gone"] {
                state.get_mut(field).into_iter().for_each(|time| *time = "a time".into());
            }
        }
        // Documents that a run inserts get their ids from MongoDB.
        if document.get_bool("made").is_err() {
            document.remove("_id");
        }
    }
    all.sort_by_key(ToString::to_string);
    all
}

/// A message without the uid in the name of a journal that is kept.
fn without_uid(message: &str) -> String {
    match message.split_once("sync_journal.") {
        Some((before, after)) => format!("{before}sync_journal.UID{}", &after[36..]),
        None => message.to_owned(),
    }
}

/// The fields of a status that must be equal: all except times, and fields that only a cluster has.
fn comparable(status: &SyncJobStatus) -> Value {
    let mut conditions = status.conditions.clone();
    conditions.retain(|condition| condition.status == "True");
    let conditions = conditions.iter().map(|one| json!([one.type_, one.reason, without_uid(&one.message)]));
    let conditions: Vec<_> = conditions.collect();
    let history = status.attempt_history.iter().map(|one| json!([one.number, one.reason, one.message]));
    json!({
        "phase": status.phase,
        "progress": status.progress,
        "counts": status.counts,
        "attempts": status.attempts,
        "failures": status.failures,
        "changes": status.changes,
        "conditions": conditions,
        "attemptHistory": history.collect::<Vec<_>>(),
    })
}

/// Creates a collection for one of the two runs.
async fn fill(database: &Database, collection: &str, documents: &[Document], key_field: &str) {
    let users = database.collection::<Document>(collection);
    users.insert_many(documents).await.unwrap();
    if key_field != "_id" {
        let unique = IndexOptions::builder().unique(true).build();
        users.create_index(IndexModel::builder().keys(doc! {key_field: 1}).options(unique).build()).await.unwrap();
    }
    let rule = doc! {"$or": [{"email": {"$regex": "@"}}, {"email": {"$exists": false}}]};
    database.run_command(doc! {"collMod": collection, "validator": rule}).await.unwrap();
}

/// Runs `job` on the cluster and `manifest` locally, over equal documents, and compares what they leave.
async fn compare(env: &TestEnv, job: &SyncJob, manifest: &str, documents_before: &[Document], what: &str) -> Value {
    let collection = job.spec.target.collection.clone().unwrap();
    let local = Local::new().await;
    for database in [&env.database, &local.database] {
        fill(database, &collection, documents_before, &job.spec.target.key_field).await;
    }
    env.jobs().create(&PostParams::default(), job).await.unwrap();
    let on_cluster = finished(env, &job.name_any()).await.status.unwrap();
    let on_cluster = Left { documents: documents(&env.database, &collection).await, status: comparable(&on_cluster) };

    let mut command = local.command(&["-", "--secret", "gitlab/token=env:TOKEN"]);
    command.env("TOKEN", "glpat-x");
    let ended = local.finish(command, manifest).await;
    assert!(matches!(ended.code, Some(0 | 1)), "{what}: {}\n{manifest}", ended.stderr);
    let status: SyncJobStatus = serde_json::from_value(ended.json()["status"].clone()).unwrap();
    let on_its_own = Left { documents: documents(&local.database, &collection).await, status: comparable(&status) };
    assert_eq!(ended.code == Some(0), status.progress == Some(100), "{what}");
    assert_eq!(on_its_own.status, on_cluster.status, "{what}: left is local, right is the cluster\n{manifest}");
    for (local, cluster) in on_its_own.documents.iter().zip(&on_cluster.documents) {
        assert_eq!(local, cluster, "{what}: left is local, right is the cluster\n{manifest}");
    }
    assert_eq!(on_its_own.documents.len(), on_cluster.documents.len(), "{what}\n{manifest}");
    on_cluster.status["phase"].clone()
}

/// Documents with numbers as keys, some with old, new or odd stamps, and some that the validator refuses.
fn random_documents(random: &mut StdRng, namespace: &str) -> Vec<Document> {
    let now = Timestamp::now().as_millisecond();
    let count = random.random_range(0..120);
    let document = |id: i32, random: &mut StdRng| {
        let mut document = doc! {
            "_id": if random.random_bool(0.5) { Bson::from(id) } else { Bson::from(ObjectId::from_bytes([id as u8; 12])) },
            "made": false,
            "userId": id,
            "n": random.random_range(0..10),
            "state": pick(random, &["active", "invited"]),
            "email": if random.random_bool(0.1) { "nobody" } else { "a@b" },
            "name": format!("User {}", if random.random_bool(0.5) { id } else { -1 }),
        };
        match random.random_range(0..6) {
            0 => drop(document.insert("lastSynced", bson::DateTime::from_millis(now - 86_400_000))),
            1 => drop(document.insert("lastSynced", bson::DateTime::from_millis(now - 60_000))),
            2 => drop(document.insert("lastSynced", "never")),
            3 => drop(document.insert("missingSince", bson::DateTime::from_millis(now - 86_400_000))),
            _ => {}
        }
        if random.random_bool(0.7) {
            document.insert("_sync", confirmed(namespace, "upstream"));
        }
        document
    };
    (0..count).map(|id| document(id, random)).collect()
}

fn pick<T: Clone>(random: &mut StdRng, from: &[T]) -> T {
    from[random.random_range(0..from.len())].clone()
}

fn random_source(random: &mut StdRng, upstream: &Upstream, batch_size: i32) -> Value {
    let missing = |random: &mut StdRng| pick(random, &["Fail", "Ignore", "Mark", "Delete"]);
    let some = |random: &mut StdRng| pick(random, &["Fail", "Ignore"]);
    match random.random_range(0..7) {
        0 => source(
            "graphQL",
            &json!({
                "endpoint": upstream.url, "onMissing": some(random), "resultPath": "/data/users/nodes",
                "query": "query ($ids: [ID!]!) { users(ids: $ids) { nodes { id name createdAt } } }",
            }),
        ),
        1 => source(
            "graphQL",
            &json!({
                "endpoint": upstream.url, "batching": "PerUser", "onMissing": missing(random), "resultPath": "/data/user",
                "query": "query ($id: UserID!) { user(id: $id) { name createdAt } }",
            }),
        ),
        2 => source(
            "rest",
            &json!({
                "endpoint": upstream.rest("/users/{id}"), "batching": "PerUser", "onMissing": missing(random),
            }),
        ),
        3 => source("rest", &json!({"endpoint": upstream.rest("/users?ids={ids}"), "onMissing": some(random)})),
        4 => source(
            "rest",
            &json!({
                "endpoint": upstream.rest("/numbered?page={page}&n={first}"), "batching": "Pages", "onMissing": missing(random),
                "pagination": {"by": "Number"}, "resultPath": "/users", "upsert": random.random_bool(0.5),
            }),
        ),
        5 => source(
            "rest",
            &json!({
                "endpoint": upstream.rest("/after?after={after}&n={first}"), "batching": "Pages", "onMissing": missing(random),
                "pagination": {"nextPath": "/next"}, "resultPath": "/users", "upsert": random.random_bool(0.5),
            }),
        ),
        _ => source(
            "rest",
            &json!({
                "endpoint": upstream.rest(&format!("/linked?n={batch_size}")), "batching": "Pages", "onMissing": missing(random),
                "pagination": {"by": "Link"}, "upsert": random.random_bool(0.5),
            }),
        ),
    }
}

fn random_spec(random: &mut StdRng, upstream: &Upstream) -> Value {
    let batch_size = random.random_range(1..60);
    let mut spec = json!({
        "syncType": pick(random, &["Full", "Incremental"]),
        "batchSize": batch_size,
        "parallelism": random.random_range(1..9),
        "backoffLimit": random.random_range(0..3),
        "backoff": {"initial": "100ms", "max": "200ms", "jitter": 0},
        "failurePolicy": {"maxFailedPercent": pick(random, &[1, 10, 50, 100])},
        "dryRun": random.random_bool(0.2),
        "target": {"collection": unique("users"), "keyField": "userId", "filter": pick(random, &[
            json!({}), json!({"state": "active"}), json!({"n": {"$gt": 3}}), json!({"$or": [{"n": 1}, {"state": "invited"}]}),
        ])},
    });
    if spec["syncType"] == "Incremental" && random.random_bool(0.5) {
        spec["staleAfter"] = "1h".into();
    }
    if random.random_bool(0.35) {
        return spec;
    }
    let source = random_source(random, upstream, batch_size);
    spec["guard"] = json!({"maxMissing": pick(random, &[json!(3), json!("20%"), json!(1000)]), "action": "Fail"});
    if source.get("batching") == Some(&json!("Pages")) {
        spec["syncType"] = "Full".into();
        spec.as_object_mut().unwrap().remove("staleAfter");
    }
    spec["source"] = source;
    if random.random_bool(0.8) {
        spec["source"]["name"] = "upstream".into();
    }
    spec["mapping"] = json!([
        {"from": "/name", "to": "name", "type": "String"},
        {"from": "/absent", "to": "n", "onNull": pick(random, &["Skip", "Unset", "Set"])},
        {"value": "upstream", "to": "origin"},
        // The validator requires this field, so some runs cannot insert documents without it.
        {"value": pick(random, &["c@d", "nobody"]), "to": "email"},
    ]);
    if random.random_bool(0.4) {
        spec["transaction"] = "Batch".into();
        spec["onFailure"] = pick(random, &["Keep", "Rollback"]).into();
    }
    spec
}

fn peculiar(random: &mut StdRng, upstream: &Upstream) {
    let mut state = upstream.state();
    state.people = random.random_range(0..150);
    state.users = (0..150)
        .filter_map(|id: i32| {
            let user = match random.random_range(0..20) {
                0 | 1 => Peculiar::Gone,
                2 => Peculiar::Named("Ada".to_owned()),
                _ => return None,
            };
            Some((id.to_string(), user))
        })
        .collect();
}

/// `SPECS=200 SEED=1` compares more of them.
#[tokio::test]
async fn random_specs_have_the_same_result_on_a_cluster() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("SEED").unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    let (_operator, _) = env.all(&ALLOWED);
    for number in 0..number("SPECS").unwrap_or(20) {
        peculiar(&mut random, &upstream);
        let documents = random_documents(&mut random, &env.name);
        if documents.is_empty() {
            continue;
        }
        let spec = random_spec(&mut random, &upstream);
        let job = SyncJob::new(&format!("random-{number}"), serde_json::from_value(spec.clone()).unwrap());
        let manifest = json!({"apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "spec": spec,
            "metadata": {"name": job.name_any(), "namespace": env.name}});
        let manifest = manifest.to_string();
        compare(&env, &job, &manifest, &documents, &format!("SEED={seed}, spec {number}")).await;
    }
}

/// The SyncJob of a sample, and the sample, for a collection and a source of the test's own.
fn sample(path: &str, upstream: &Upstream, env: &TestEnv, collection: &str) -> (SyncJob, String) {
    let text = fs::read_to_string(format!("manifests/samples/{path}")).unwrap();
    let text = text
        .replace("https://gitlab.com/api/graphql", &upstream.url)
        .replace("https://gitlab.com/api/v4/users/{id}", &upstream.rest("/users/{id}"))
        // The same number of requests in a shorter time.
        .replace("per: 10m", "per: 10s");
    let mut object: Value = serde_yaml_ng::from_str(&text).unwrap();
    let is_job = object["kind"] == "SyncJob";
    let spec = if is_job { &mut object["spec"] } else { &mut object["spec"]["jobTemplate"]["spec"] };
    if spec.get("target").is_none() {
        spec["target"] = json!({});
    }
    spec["target"]["collection"] = collection.into();
    spec["backoff"] = json!({"initial": "100ms", "max": "100ms", "jitter": 0});
    object["metadata"]["namespace"] = env.name.as_str().into();
    let manifest = object.to_string();
    if is_job {
        return (serde_json::from_value(object).unwrap(), manifest);
    }
    let schedule: SyncSchedule = serde_json::from_value(object).unwrap();
    let run = ActiveRun { name: schedule.name_any(), uid: None, slot: Time(Timestamp::now()), trigger: None };
    (build_job(&schedule, Parsed::new(&schedule.spec).ok().as_ref(), &run), manifest)
}

#[tokio::test]
async fn samples_have_the_same_result_on_a_cluster() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    secret(&env, "gitlab", &[("token", "glpat-x")], &upstream.rest("")).await;
    let (_operator, _) = env.all(&ALLOWED);
    upstream.state().token = Some("glpat-x".to_owned());
    upstream.state().users.insert("3".to_owned(), Peculiar::Gone);
    upstream.state().projects = vec![2, 3, 9];
    let id = |kind: &str, number: i32| match kind {
        "" => Bson::from(number),
        kind => Bson::from(format!("gid://gitlab/{kind}/{number}")),
    };
    for (path, kind) in [
        ("user-sync.yaml", ""),
        ("incremental.yaml", ""),
        ("one-off.yaml", ""),
        ("gitlab/users.yaml", "User"),
        ("gitlab/projects.yaml", "Project"),
        ("gitlab/issues.yaml", "Issue"),
        ("gitlab/pipelines.yaml", "Ci::Pipeline"),
        ("gitlab/group-projects.yaml", "Project"),
        ("rest/users.yaml", ""),
    ] {
        let collection = unique("samples");
        let (job, manifest) = sample(path, &upstream, &env, &collection);
        let document = |number: i32| {
            let email = if number == 5 { "nobody" } else { "a@b" };
            doc! {"_id": number, "made": false, "gitlabId": id(kind, number), "state": "active", "email": email}
        };
        let documents: Vec<Document> = (2..6).map(document).collect();
        let phase = compare(&env, &job, &manifest, &documents, path).await;
        assert_eq!(phase, "Complete", "{path}");
    }
}
