//! Runs that fetch the content of documents from a REST server.

use bson::{Document, doc};
use kube::api::PostParams;
use mongodb::Collection;
use serde_json::{Value, json};
use sync_operator::api::{SyncJob, SyncSchedule, syncjob::SyncJobStatus};

use crate::{
    sources::without_its_worker,
    support::{ALLOWED, TestEnv, confirmed, counts, ended, failures, finished, run, secret, source},
    upstream::{Instead, PRIVATE, Peculiar, Upstream},
};

/// A spec of a full run with a source at this path.
fn spec(upstream: &Upstream, path: &str, part: &Value) -> Value {
    let mut fields = json!({"endpoint": upstream.rest(path)});
    fields.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    json!({
        "syncType": "Full",
        "batchSize": 100,
        "backoff": {"initial": "100ms", "jitter": 0},
        "source": source("rest", &fields),
        "mapping": [{"from": "/name", "to": "profile.name", "type": "String"}],
    })
}

/// A spec of a full run over all pages of people, which inserts new documents.
fn walk(upstream: &Upstream, path: &str, part: &Value) -> Value {
    let mut fields = json!({"name": "people", "batching": "Pages", "upsert": true, "onMissing": "Mark"});
    fields.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    let mut spec = spec(upstream, path, &fields);
    spec["batchSize"] = 10.into();
    spec["target"] = json!({"collection": "people"});
    spec
}

fn linked(upstream: &Upstream, part: &Value) -> Value {
    let mut spec = walk(upstream, "/linked?n={first}", part);
    spec["source"]["pagination"] = json!({"by": "Link"});
    spec
}

/// People that the source listed before.
async fn people(env: &TestEnv, ids: &[i32]) -> Collection<Document> {
    let people = env.database.collection::<Document>("people");
    let person = |id: &i32| doc! {"_id": id, "team": "blue", "_sync": confirmed(&env.name, "people")};
    people.insert_many(ids.iter().map(person)).await.unwrap();
    people
}

fn reasons(status: &SyncJobStatus) -> Vec<(&str, &str)> {
    status.attempt_history.iter().map(|attempt| (&*attempt.reason, &*attempt.message)).collect()
}

#[tokio::test]
async fn a_user_whose_address_answers_404_is_missing() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(40, 0).await;
    let (operator, _) = env.all(&ALLOWED);
    let all = json!({"name": "users", "batching": "PerUser"});
    run(&env, "all", spec(&upstream, "/users/{id}", &all)).await;
    upstream.change();
    upstream.state().addresses.clear();
    upstream.state().users.insert("3".to_owned(), Peculiar::Gone);
    let gone = doc! {"missingSince": {"$exists": true}};
    for (on_missing, expected, marked, left) in [
        ("Fail", (39, 0, 1), 0, 40),
        ("Ignore", (0, 40, 0), 0, 40),
        ("Mark", (1, 39, 0), 1, 40),
        ("Delete", (1, 39, 0), 0, 39),
    ] {
        // One more request checks that the source has any results.
        let asked = if expected.0 == 1 { 41 } else { 40 };
        let each = json!({"name": "users", "batching": "PerUser", "onMissing": on_missing});
        let status = run(&env, &on_missing.to_lowercase(), spec(&upstream, "/users/{id}", &each)).await;
        assert_eq!(counts(&status), expected, "{on_missing}: {:?}", ended(&status));
        assert_eq!((env.count(gone.clone()).await, env.count(doc! {}).await), (marked, left), "{on_missing}");
        assert_eq!(std::mem::take(&mut upstream.state().addresses).len(), asked, "{on_missing}");
        let failed = if on_missing == "Fail" { vec![("3", "NotReturned")] } else { vec![] };
        assert_eq!(failures(&status), failed);
    }
    assert_eq!(upstream.state().headers["accept"], "application/json");
    assert!(!operator.log().contains(PRIVATE) && !operator.log().contains("/users/"));
}

#[tokio::test]
async fn a_source_without_any_results_removes_nothing() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(20, 0).await;
    let listed = doc! {"$set": {"_sync": confirmed(&env.name, "users")}};
    env.database.collection::<Document>("users").update_many(doc! {}, listed.clone()).await.unwrap();
    let (_operator, _) = env.all(&ALLOWED);
    let users = |path, on_missing: &str, sync_type: &str| {
        let each =
            json!({"name": "users", "batching": "PerUser", "onMissing": on_missing, "missing": {"field": "gone"}});
        let mut spec = spec(&upstream, path, &each);
        spec.as_object_mut()
            .unwrap()
            .extend(json!({"syncType": sync_type, "backoffLimit": 0}).as_object().unwrap().clone());
        spec["guard"] = json!({"maxMissing": 20});
        spec
    };
    for (on_missing, sync_type) in [("Mark", "Full"), ("Delete", "Full"), ("Delete", "Incremental")] {
        let name = format!("{on_missing}-{sync_type}").to_lowercase();
        let status = run(&env, &name, users("/nobody/{id}", on_missing, sync_type)).await;
        assert_eq!(reasons(&status)[0].0, "EmptySource", "{name}: {:?}", ended(&status));
        assert!(reasons(&status)[0].1.contains("for any of 20 documents"), "{:?}", reasons(&status));
        assert_eq!(env.count(doc! {"gone": {"$exists": false}}).await, 20, "{name}");
    }

    // If the source has one document, the others are missing in each run.
    let others = (0..19).map(|id| (id.to_string(), Peculiar::Gone));
    upstream.state().users.extend(others);
    for (name, left, expected) in [("first", 1, (20, 0, 0)), ("second", 1, (0, 20, 0))] {
        let status = run(&env, name, users("/users/{id}", "Mark", "Full")).await;
        assert_eq!(counts(&status), expected, "{name}: {:?}", ended(&status));
        assert_eq!(env.count(doc! {"gone": {"$exists": false}}).await, left, "{name}");
    }
    // An Incremental run with only missing documents requests one of the other documents.
    let users_in = env.database.collection::<Document>("users");
    users_in.update_many(doc! {"_id": {"$ne": 19}}, listed).await.unwrap();
    for (name, sync_type, left) in [("marks", "Incremental", 20), ("deletes", "Full", 1)] {
        let status = run(&env, name, users("/users/{id}", "Delete", sync_type)).await;
        assert_eq!(counts(&status).0, 19, "{:?}", ended(&status));
        assert_eq!(env.count(doc! {}).await, left, "{name}");
    }
}

#[tokio::test]
async fn a_key_cannot_change_the_rest_of_the_address() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    let users = env.database.collection::<Document>("users");
    let keys = ["", ".", "..", "../admin", "a,b", "x?y=1#z", "ü"];
    users.insert_many(keys.map(|key| doc! {"_id": key})).await.unwrap();
    let (operator, _) = env.all(&ALLOWED);

    let each = json!({"batching": "PerUser", "concurrency": 1});
    let mut one_by_one = spec(&upstream, "/users/{id}", &each);
    one_by_one["dryRun"] = true.into();
    let status = run(&env, "each", one_by_one).await;
    assert_eq!(failures(&status), [("", "InvalidKey"), (".", "InvalidKey"), ("..", "InvalidKey")]);
    assert_eq!(counts(&status), (4, 0, 3));
    let asked = ["/users/..%2Fadmin", "/users/a%2Cb", "/users/x%3Fy%3D1%23z", "/users/%C3%BC"];
    assert_eq!(std::mem::take(&mut upstream.state().addresses), asked);

    let status = run(&env, "batch", spec(&upstream, "/users?ids={ids}", &json!({}))).await;
    assert_eq!(failures(&status), [("", "InvalidKey"), ("a,b", "InvalidKey")]);
    assert_eq!(counts(&status), (5, 0, 2));
    assert_eq!(upstream.state().addresses, ["/users?ids=.,..,..%2Fadmin,x%3Fy%3D1%23z,%C3%BC"]);
    assert!(!operator.log().contains("%2F"));
}

#[tokio::test]
async fn a_batch_is_requested_by_one_address() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(250, 0).await;
    upstream.state().users.insert("7".to_owned(), Peculiar::Gone);
    let (_operator, _) = env.all(&ALLOWED);
    let batches = spec(&upstream, "/users?ids={ids}", &json!({}));
    let status = run(&env, "batches", batches.clone()).await;
    assert_eq!((counts(&status), upstream.requests()), ((249, 0, 1), 3));
    assert_eq!(failures(&status), [("7", "NotReturned")]);

    let long = upstream.rest(&format!("/users?x={}&ids={{ids}}", "x".repeat(900)));
    let mut wide = batches;
    wide["source"]["rest"]["endpoint"] = long.into();
    wide["target"] = json!({"collection": "wide"});
    let keys = (0..100).map(|number| doc! {"_id": format!("{number}{}", "y".repeat(200))});
    env.database.collection::<Document>("wide").insert_many(keys).await.unwrap();
    let status = run(&env, "wide", wide).await;
    assert!(
        ended(&status).0 == "InvalidSource" && ended(&status).1.contains("lower batchSize"),
        "{:?}",
        ended(&status)
    );
    assert_eq!(upstream.requests(), 3);
}

#[tokio::test]
async fn pages_are_walked_by_number_by_cursor_and_by_link() {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(25).await);
    let people = people(&env, &[3, 99]).await;
    let (_operator, _) = env.all(&ALLOWED);
    let number = json!({"resultPath": "/users", "pagination": {"by": "Number"}});
    let cursor = json!({"resultPath": "/users", "pagination": {"nextPath": "/next"}});
    for (name, spec, requests, expected) in [
        ("link", linked(&upstream, &json!({})), 3, (26, 0, 0)),
        ("number", walk(&upstream, "/numbered?page={page}&n={first}", &number), 4, (0, 25, 0)),
        ("cursor", walk(&upstream, "/after?after={after}&n={first}", &cursor), 3, (0, 25, 0)),
    ] {
        let status = run(&env, name, spec).await;
        assert_eq!(counts(&status), expected, "{name}: {:?}", ended(&status));
        let addresses = std::mem::take(&mut upstream.state().addresses);
        assert_eq!(addresses.len(), requests, "{name}: {addresses:?}");
    }
    assert_eq!(people.count_documents(doc! {"profile.name": {"$exists": true}}).await.unwrap(), 25);
    let known = people.find_one(doc! {"_id": 3}).await.unwrap().unwrap();
    let profile = known.get_document("profile").unwrap();
    assert_eq!((known.get_str("team").unwrap(), profile.get_str("name").unwrap()), ("blue", "User 3"));
    assert_eq!(people.count_documents(doc! {"missingSince": {"$exists": true}}).await.unwrap(), 1);
}

#[tokio::test]
async fn a_link_that_cannot_be_followed_is_not_the_last_page() {
    let (env, upstream, elsewhere) = (TestEnv::new().await, Upstream::with_people(25).await, Upstream::start().await);
    let people = people(&env, &(0..30).collect::<Vec<_>>()).await;
    let (operator, _) = env.all(&ALLOWED);
    let mut deleting = linked(&upstream, &json!({"onMissing": "Delete"}));
    deleting["backoffLimit"] = 0.into();
    let other: &'static str = format!("<{}>; rel=\"next\"", elsewhere.rest("/linked?page=2")).leak();
    for (name, link, why) in [
        ("elsewhere", other, "leads to another scheme, host or port than source.rest.endpoint"),
        ("broken", "<https://a.example/2; rel=next", "its header Link cannot be read"),
    ] {
        upstream.state().instead.push_back(Instead::Link(link));
        let status = run(&env, name, deleting.clone()).await;
        let [(reason, message)] = reasons(&status)[..] else { panic!("{:?}", reasons(&status)) };
        assert!(reason == "BadAnswer" && message.contains(why) && !message.contains("page=2"), "{reason}: {message}");
        assert_eq!(people.count_documents(doc! {}).await.unwrap(), 30, "{name}");
    }
    assert_eq!(elsewhere.requests(), 0);
    assert!(!operator.log().contains("page=2"));
    for (name, expected, left) in [("marks", (30, 0, 0), 30), ("deletes", (5, 25, 0), 25)] {
        let status = run(&env, name, deleting.clone()).await;
        assert_eq!(counts(&status), expected, "{:?}", ended(&status));
        assert_eq!(people.count_documents(doc! {}).await.unwrap(), left, "{name}");
    }
}

#[tokio::test]
async fn a_refusal_ends_the_run_and_a_transient_error_does_not() {
    let (env, upstream, elsewhere) = (TestEnv::new().await, Upstream::start().await, Upstream::start().await);
    env.seed(3, 0).await;
    secret(&env, "right", &[("token", "t-1")], &upstream.rest("")).await;
    let (operator, _) = env.all(&ALLOWED);
    let batch = spec(&upstream, "/users?ids={ids}", &json!({}));
    for (name, instead, message) in [
        ("none", Instead::Status(404, vec![]), "the source refuses the request with 404: check source.rest.endpoint"),
        (
            "redirect",
            Instead::Status(302, vec![("location", elsewhere.rest("/users"))]),
            "the source answers with 302, a redirect, which is not followed: set source.rest.endpoint",
        ),
        (
            "refused",
            Instead::Status(401, vec![]),
            "the source refuses with 401: check the token in source.tokenSecretRef",
        ),
        ("long", Instead::Status(414, vec![]), "the keys of a batch make the address of a request too long"),
    ] {
        upstream.state().instead.push_back(instead);
        let status = run(&env, name, batch.clone()).await;
        let (reason, shown) = ended(&status);
        assert!(reason == "InvalidSource" && shown.starts_with(message), "{name}: {reason}: {shown}");
    }
    assert_eq!((upstream.requests(), elsewhere.requests()), (4, 0));

    upstream.state().instead.push_back(Instead::Body(r#"[{"id": 0, "na"#.to_owned()));
    upstream.state().instead.push_back(Instead::Body(r#"{"users": []}"#.to_owned()));
    let status = run(&env, "cut", batch.clone()).await;
    let expected = [
        ("BadAnswer", "the source's answer cannot be used: it is no JSON"),
        ("BadAnswer", "the source's answer cannot be used: it has no list at source.rest.resultPath"),
    ];
    assert_eq!((reasons(&status), counts(&status)), (expected.to_vec(), (3, 0, 0)));

    for code in [429, 403] {
        upstream.state().instead.push_back(Instead::Status(code, vec![("retry-after", "1".to_owned())]));
        let status = run(&env, &format!("rests-{code}"), batch.clone()).await;
        assert_eq!((counts(&status), status.attempts), ((0, 3, 0), Some(0)));
    }

    upstream.state().token = Some("t-1".to_owned());
    let mut with_token = batch;
    with_token["source"]["tokenSecretRef"] = json!({"name": "right", "key": "token"});
    let status = run(&env, "let-in", with_token).await;
    assert_eq!(counts(&status), (0, 3, 0), "{:?}", ended(&status));
    assert!(!operator.log().contains(PRIVATE) && !operator.log().contains("ids="));
}

#[tokio::test]
async fn a_secret_stays_in_its_path() {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(26).await);
    people(&env, &[1]).await;
    upstream.state().token = Some("t-1".to_owned());
    secret(&env, "people", &[("token", "t-1")], &upstream.rest("/linked")).await;
    let (_operator, _) = env.all(&ALLOWED);
    let linked = linked(&upstream, &json!({"tokenSecretRef": {"name": "people", "key": "token"}}));
    let status = run(&env, "inside", linked.clone()).await;
    assert_eq!((counts(&status), upstream.requests()), ((26, 0, 0), 3), "{:?}", ended(&status));

    upstream.state().instead.push_back(Instead::Link("</users?ids=1,2>; rel=\"next\""));
    let status = run(&env, "outside", linked).await;
    let (reason, message) = ended(&status);
    let expected = format!("Secret people may not be used for the path of a request to {}: add", upstream.rest(""));
    assert!(reason == "InvalidSource" && message.starts_with(&expected), "{reason}: {message}");
    assert_eq!(upstream.requests(), 4);
}

#[tokio::test]
async fn a_walk_by_links_resumes_after_its_worker_was_killed() {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(1000).await);
    let people = people(&env, &[5000, 5001]).await;
    let status = without_its_worker(&env, &upstream, linked(&upstream, &json!({})), || {}).await;
    assert_eq!(people.count_documents(doc! {"profile.name": {"$exists": true}}).await.unwrap(), 1000);
    assert_eq!(people.count_documents(doc! {"missingSince": {"$exists": true}}).await.unwrap(), 2);
    let (updated, unchanged, failed) = counts(&status);
    assert_eq!((updated + unchanged, failed), (1002, 0));
    assert!(upstream.requests() < 130, "the walk started again: {} requests for 100 pages", upstream.requests());
}

#[tokio::test]
async fn the_sample_and_the_guide_fetch_what_the_server_has() {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(3).await);
    upstream.state().token = Some("glpat-1".to_owned());
    secret(&env, "gitlab", &[("token", "glpat-1")], &upstream.rest("")).await;
    let users = env.database.collection::<Document>("users");
    let (_operator, _) = env.all(&ALLOWED);
    let guide = std::fs::read_to_string("docs/guides/rest.md").unwrap();
    let blocks = guide.split("```yaml").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let sample = std::fs::read_to_string("manifests/samples/rest/users.yaml").unwrap();
    let schedules = blocks.chain([sample]).filter_map(|text| serde_yaml_ng::from_str::<SyncSchedule>(&text).ok());
    let schedules: Vec<_> = schedules.filter(|schedule| schedule.spec.job_template.spec.source.is_some()).collect();
    assert_eq!(schedules.len(), 3);
    for (at, schedule) in schedules.into_iter().enumerate() {
        users.delete_many(doc! {}).await.unwrap();
        users.insert_one(doc! {"_id": 7, "gitlabId": 1, "team": "blue"}).await.unwrap();
        let mut spec = schedule.spec.job_template.spec;
        if spec.target.key_field != "_id" {
            let index =
                doc! {"createIndexes": "users", "indexes": [{"key": {"gitlabId": 1}, "name": "a", "unique": true}]};
            env.database.run_command(index).await.unwrap();
        }
        let source = spec.source.as_mut().unwrap();
        let is_walk = source.pagination.is_some();
        let source = source.rest.as_mut().unwrap();
        assert!(source.endpoint.starts_with("https://gitlab.com/api/v4/"), "{}", source.endpoint);
        source.endpoint = upstream.rest(if is_walk { "/linked?n={first}" } else { "/users/{id}" });
        let name = format!("run-{at}");
        env.jobs().create(&PostParams::default(), &SyncJob::new(&name, spec)).await.unwrap();
        let status = finished(&env, &name).await.status.unwrap();
        assert_eq!(counts(&status), (if is_walk { 3 } else { 1 }, 0, 0), "{name}: {:?}", ended(&status));
        let found = users.find_one(doc! {"gitlabId": 1}).await.unwrap().unwrap();
        let of = |field| found.get_str(field).unwrap();
        assert_eq!((of("username"), of("team")), ("user1", "blue"), "{name}");
    }
}
