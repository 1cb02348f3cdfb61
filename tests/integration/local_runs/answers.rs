//! Answers of real servers and documents of real users. Each case has caused a failure.

use std::io::Write as _;

use super::*;
use crate::{support::confirmed, upstream::Instead};

/// The documents of the collection `users`, by key.
pub(super) async fn insert(local: &Local, documents: impl IntoIterator<Item = Document>) {
    local.database.collection::<Document>("users").insert_many(documents).await.unwrap();
}

/// The state of a source in a document that it listed before.
pub(super) fn earlier() -> Document {
    confirmed("default", "people")
}

/// A full run over the pages of people, by number, for documents whose key is `gitlabId`.
pub(super) fn pages(upstream: &Upstream, part: &Value) -> Value {
    let mut rest = json!({
        "endpoint": upstream.rest("/numbered?page={page}&n={first}"), "resultPath": "/users", "batching": "Pages",
        "pagination": {"by": "Number"}, "onMissing": "Delete", "name": "people",
    });
    rest.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    json!({
        "syncType": "Full",
        "batchSize": 10,
        "backoff": {"initial": "100ms", "jitter": 0},
        "target": {"keyField": "gitlabId"},
        "source": source("rest", &rest),
        "mapping": [{"from": "/name", "to": "name", "type": "String"}],
    })
}

/// A full run that asks for each user by GraphQL.
fn graph(upstream: &Upstream, part: &Value) -> Value {
    let mut fields = json!({
        "endpoint": upstream.url, "resultPath": "/data/user", "batching": "PerUser",
        "query": "query ($id: UserID!) { user(id: $id) { name } }",
    });
    fields.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    let mut spec = by_user(upstream, &json!({}));
    spec["source"] = source("graphQL", &fields);
    spec
}

fn failed_keys(ended: &Ended) -> Vec<(String, String)> {
    let status = ended.json()["status"].take();
    let text = |failure: &Value, field: &str| failure[field].as_str().unwrap().to_owned();
    let failures = status["failures"].as_array().cloned().unwrap_or_default();
    failures.iter().map(|failure| (text(failure, "key"), text(failure, "reason"))).collect()
}

#[tokio::test]
async fn numbers_of_equal_value_are_one_key() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(9).await);
    insert(&local, [doc! {"gitlabId": 7.0, "_sync": earlier()}, doc! {"gitlabId": 8, "_sync": earlier()}]).await;
    let ended = local.run(&job("users", &pages(&upstream, &json!({}))), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (2, 2, 0, 0)), "{}", ended.stdout);
    assert_eq!(local.count(doc! {"name": {"$in": ["User 7", "User 8"]}}).await, 2);
}

#[tokio::test]
async fn keys_of_different_types_end_the_attempt() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(3).await);
    insert(&local, (0..3).map(|n| doc! {"gitlabId": n.to_string(), "_sync": earlier()})).await;
    let index = doc! {"createIndexes": "users", "indexes": [{"key": {"gitlabId": 1}, "name": "a", "unique": true}]};
    local.database.run_command(index).await.unwrap();
    let mut spec = pages(&upstream, &json!({"upsert": true}));
    spec["backoffLimit"] = json!(0);
    let ended = local.run(&job("users", &spec), &[]).await;
    let status = ended.json()["status"].take();
    let attempt = &status["attemptHistory"][0];
    assert_eq!((ended.code, &attempt["reason"]), (Some(1), &json!("KeyMismatch")), "{status}");
    assert!(attempt["message"].as_str().unwrap().ends_with("set source.keyType String"), "{attempt}");
    assert_eq!((local.count(doc! {}).await, local.count(doc! {"name": {"$exists": true}}).await), (3, 0));
    spec["source"]["keyType"] = json!("String");
    let ended = local.run(&job("users", &spec), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (3, 3, 0, 0)), "{}", ended.stdout);
}

#[tokio::test]
async fn keys_that_are_equal_only_by_collation_fail() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    let collation = doc! {"locale": "en", "strength": 2};
    local.database.run_command(doc! {"create": "users", "collation": collation}).await.unwrap();
    insert(&local, ["Ann", "bob"].map(|name| doc! {"gitlabId": name, "_sync": earlier()})).await;
    let list = json!({"users": [{"id": "ann", "name": "a"}, {"id": "bob", "name": "b"}]});
    upstream.state().instead.extend([Instead::Reply(200, list), Instead::Reply(200, json!({"users": []}))]);
    let ended = local.run(&job("users", &pages(&upstream, &json!({}))), &[]).await;
    assert_eq!((ended.code, ended.counts().0, local.count(doc! {}).await), (Some(1), 2, 2), "{}", ended.stdout);
    assert_eq!(failed_keys(&ended), [("Ann".to_owned(), "InvalidKey".to_owned())]);
}

#[tokio::test]
async fn documents_without_a_key_are_left_alone() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(2).await);
    let nameless = (0..3).map(|n| doc! {"n": n, "_sync": earlier()});
    insert(&local, nameless.chain([doc! {"gitlabId": 1}, doc! {"gitlabId": bson::Bson::Null}])).await;
    let mut each = by_user(&upstream, &json!({"onMissing": "Delete"}));
    each["target"] = json!({"keyField": "gitlabId"});
    for spec in [each, pages(&upstream, &json!({})), pages(&upstream, &json!({"onMissing": "Mark"}))] {
        let ended = local.run(&job("users", &spec), &[]).await;
        assert_eq!((ended.code, ended.counts().0), (Some(0), 1), "{}", ended.stdout);
    }
    assert_eq!(local.count(doc! {"gitlabId": bson::Bson::Null, "name": bson::Bson::Null}).await, 4);
    assert!(!upstream.state().addresses.iter().any(|address| address.contains("null")));
}

#[tokio::test]
async fn a_document_whose_key_is_an_array_fails() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(5).await);
    insert(&local, (0..5).map(|n| doc! {"gitlabId": if n == 2 { bson::bson!([2, 9]) } else { n.into() }})).await;
    let mut each = by_user(&upstream, &json!({"onMissing": "Delete"}));
    each["target"] = json!({"keyField": "gitlabId"});
    for spec in [each, pages(&upstream, &json!({}))] {
        let ended = local.run(&job("users", &spec), &[]).await;
        assert_eq!((ended.code, ended.counts().0, ended.counts().3), (Some(0), 5, 1), "{}", ended.stdout);
        assert_eq!(failed_keys(&ended), [("[2,9]".to_owned(), "InvalidKey".to_owned())]);
    }
    assert_eq!(local.count(doc! {}).await, 5);
}

#[tokio::test]
async fn only_what_the_source_listed_before_is_removed() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(3).await);
    insert(&local, (0..3).map(|n| doc! {"gitlabId": n, "_sync": earlier()})).await;
    let other = confirmed("default", "other");
    insert(&local, [doc! {"gitlabId": 5001}, doc! {"gitlabId": 5002, "_sync": earlier()}]).await;
    insert(&local, [doc! {"gitlabId": 5003, "lastSynced": DateTime::now(), "_sync": other}]).await;
    let mut nameless = pages(&upstream, &json!({}));
    nameless["source"].as_object_mut().unwrap().remove("name");
    let ended = local.run(&job("users", &nameless), &[]).await;
    assert_eq!(
        (ended.code, ended.counts(), local.count(doc! {}).await),
        (Some(0), (3, 3, 0, 0), 6),
        "{}",
        ended.stdout
    );
    for removed in ["marked", "deleted"] {
        let ended = local.run(&job("users", &pages(&upstream, &json!({}))), &[]).await;
        assert_eq!((ended.code, ended.counts()), (Some(0), (4, 1, 3, 0)), "{}", ended.stdout);
        let counts = ended.json()["status"]["counts"].take();
        assert_eq!((&counts[removed], &counts["unconfirmed"]), (&json!(1), &json!(2)), "{removed}: {counts}");
    }
    let left = [5001, 5002, 5003].map(|id| local.count(doc! {"gitlabId": id}));
    assert_eq!(futures::future::join_all(left).await, [1, 0, 1]);
}

#[tokio::test]
async fn two_sources_of_one_collection_both_write_all_they_have() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(20).await);
    insert(&local, (0..20).map(|n| doc! {"gitlabId": n})).await;
    for (source, field) in [("gitlab", "name"), ("hr", "title"), ("gitlab", "name")] {
        let mut spec = pages(&upstream, &json!({"name": source}));
        spec["syncType"] = json!("Full");
        spec["mapping"] = json!([{"from": "/name", "to": field}]);
        let ended = local.run(&job("users", &spec), &[]).await;
        assert_eq!((ended.code, ended.counts().0), (Some(0), 20), "{}", ended.stdout);
    }
    let both = doc! {"name": {"$exists": true}, "title": {"$exists": true}, "_sync.default/gitlab.at": {"$type": "date"},
    "_sync.default/hr.at": {"$type": "date"}};
    assert_eq!(local.count(both).await, 20);
    // A document that one source does not list any more is kept if the other source lists it.
    upstream.state().people = 19;
    let ended = local.run(&job("users", &pages(&upstream, &json!({"name": "other"}))), &[]).await;
    assert_eq!((ended.code, local.count(doc! {}).await), (Some(0), 20), "{}", ended.stdout);
    let mut incremental = by_user(&upstream, &json!({"name": "incremental"}));
    incremental["syncType"] = json!("Incremental");
    incremental["target"] = json!({"keyField": "gitlabId"});
    let ended = local.run(&job("users", &incremental), &[]).await;
    assert_eq!(ended.counts().0, 20, "documents that another source has stamped are due: {}", ended.stdout);
}

#[tokio::test]
async fn a_document_inserted_during_the_walk_is_kept() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(40).await);
    insert(&local, (0..40).map(|n| doc! {"gitlabId": n, "_sync": earlier()})).await;
    upstream.state().delay = Duration::from_millis(100);
    let (manifest, spec) = (local.folder.join("job.yaml"), pages(&upstream, &json!({})));
    fs::write(&manifest, job("users", &spec)).unwrap();
    let run = local.finish(local.command(&["job.yaml"]), "");
    let come = async {
        eventually("the second page is requested", async || (upstream.requests() >= 2).then_some(())).await;
        insert(&local, [doc! {"gitlabId": 900}]).await;
    };
    let (ended, ()) = tokio::join!(run, come);
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert_eq!(local.count(doc! {"gitlabId": 900}).await, 1);
}

#[tokio::test]
async fn the_end_of_the_pages_may_be_404() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(20).await);
    insert(&local, (0..20).map(|n| doc! {"gitlabId": n})).await;
    upstream.state().fixed.insert("/numbered?page=3&n=10".to_owned(), Instead::Status(404, vec![]));
    let ended = local.run(&job("users", &pages(&upstream, &json!({}))), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (20, 20, 0, 0)), "{}", ended.stdout);
    upstream.state().fixed.insert("/numbered?page=1&n=10".to_owned(), Instead::Status(404, vec![]));
    let ended = local.run(&job("users", &pages(&upstream, &json!({}))), &[]).await;
    assert_eq!((ended.code, local.count(doc! {}).await), (Some(1), 20));
}

#[tokio::test]
async fn a_walk_whose_cursor_is_invalid_starts_over() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(25).await);
    insert(&local, (0..25).map(|n| doc! {"gitlabId": n})).await;
    upstream.decide(|number| (number == 2).then(|| Instead::Status(410, vec![])));
    let cursor =
        json!({"endpoint": upstream.rest("/after?after={after}&n={first}"), "pagination": {"nextPath": "/next"}});
    let ended = local.run(&job("users", &pages(&upstream, &cursor)), &[]).await;
    assert_eq!((ended.code, ended.counts().0, upstream.requests()), (Some(0), 25, 5), "{}", ended.stdout);
    assert_eq!(ended.json()["status"]["attemptHistory"][0]["reason"], "CursorExpired");
}

#[tokio::test]
async fn links_may_be_quoted_with_apostrophes() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(2).await);
    insert(&local, (0..2).map(|n| doc! {"gitlabId": n, "_sync": earlier()})).await;
    upstream.state().instead.push_back(Instead::Link("<?page=2&n=1>; rel='next'"));
    let linked =
        json!({"endpoint": upstream.rest("/linked?n={first}"), "resultPath": "", "pagination": {"by": "Link"}});
    let mut spec = pages(&upstream, &linked);
    spec["batchSize"] = json!(1);
    let ended = local.run(&job("users", &spec), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (2, 2, 0, 0)), "{}", ended.stdout);
}

#[tokio::test]
async fn a_request_that_is_rejected_for_one_document_fails_it() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(5, 0).await;
    for code in [403, 422, 451, 500] {
        upstream.state().fixed.insert("/users/3".to_owned(), Instead::Status(code, vec![]));
        let spec = by_user(&upstream, &json!({"name": "people", "requestRetries": 1, "onMissing": "Delete"}));
        let before = upstream.requests();
        let ended = local.run(&job("users", &spec), &[]).await;
        let counts = ended.counts();
        assert_eq!((ended.code, counts.0, counts.3), (Some(0), 5, 1), "{code}: {}", ended.stdout);
        assert_eq!(failed_keys(&ended), [("3".to_owned(), "SourceError".to_owned())], "{code}");
        // The run requests one of them before it may remove documents.
        assert_eq!(upstream.requests() - before, 6 + usize::from(code == 500), "{code}");
    }
    upstream.state().fixed.clear();
    upstream.decide(|_| Some(Instead::Status(403, vec![])));
    let ended = local.run(&job("users", &by_user(&upstream, &json!({}))), &[]).await;
    assert!(ended.code == Some(1) && ended.stdout.contains("InvalidSource"), "{}", ended.stdout);
    assert_eq!(local.count(doc! {}).await, 5);
}

#[tokio::test]
async fn an_outage_fails_the_attempt_and_not_the_documents() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(60, 0).await;
    upstream.decide(|number| (number > 10).then(|| Instead::Status(500, vec![])));
    let mut spec = by_user(&upstream, &json!({"requestRetries": 0, "concurrency": 1}));
    spec["backoffLimit"] = json!(0);
    let ended = local.run(&job("users", &spec), &[]).await;
    let status = ended.json()["status"].take();
    assert_eq!((ended.code, &status["attemptHistory"][0]["reason"]), (Some(1), &json!("SourceError")), "{status}");
}

#[tokio::test]
async fn attempts_with_progress_do_not_use_up_the_backoff_limit() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(100, 0).await;
    upstream.decide(|number| (number % 5 == 0).then(|| Instead::Status(500, vec![])));
    let mut spec = by_user(&upstream, &json!({"requestRetries": 0, "batching": "PerBatch"}));
    spec["source"]["rest"]["endpoint"] = upstream.rest("/users?ids={ids}").into();
    spec["batchSize"] = json!(3);
    spec["parallelism"] = json!(1);
    // A batch that was requested when the attempt failed may make the next attempt fail at once.
    spec["backoffLimit"] = json!(3);
    let ended = local.run(&job("users", &spec), &[]).await;
    let (processed, .., failed) = ended.counts();
    assert_eq!((ended.code, processed, failed), (Some(0), 100, 0), "{}", ended.stdout);
    assert!(ended.json()["status"]["attempts"].as_i64() >= Some(5), "{}", ended.stdout);
}

#[tokio::test]
async fn a_rate_limit_without_a_time_delays_the_run() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(3, 0).await;
    let limit = json!({"message": "You have exceeded a secondary rate limit."});
    upstream.state().instead.push_back(Instead::Reply(403, limit));
    let mut child =
        process::Command::from(local.command(&["-", "--resume", "file"])).kill_on_drop(true).spawn().unwrap();
    child.stdin.take().unwrap().write_all(job("users", &by_user(&upstream, &json!({}))).as_bytes()).await.unwrap();
    eventually("the source received a request", async || (upstream.requests() > 0).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(Command::new("kill").args(["-INT", &child.id().unwrap().to_string()]).status().unwrap().success());
    let ended: Ended = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap().into();
    assert_eq!((ended.code, &ended.json()["status"]["attempts"]), (Some(130), &json!(0)), "{}", ended.stdout);
}

#[tokio::test]
async fn an_error_of_graphql_without_a_code_is_tried_again() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(2, 0).await;
    let hiccup = json!({"data": null, "errors": [{"message": "Something went wrong while executing your query"}]});
    upstream.state().instead.push_back(Instead::Body(hiccup.to_string()));
    let ended = local.run(&job("users", &graph(&upstream, &json!({}))), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (2, 2, 0, 0)), "{}", ended.stdout);
    assert_eq!(ended.json()["status"]["attempts"], 0);
}

#[tokio::test]
async fn a_null_on_a_page_fails_and_other_results_are_written() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    insert(&local, (1..=4).map(|n| doc! {"gitlabId": n.to_string(), "_sync": earlier()})).await;
    let page = json!({
        "data": {"people": {"nodes": [{"id": "1", "name": "a"}, null, {"id": "3", "name": "c"}], "pageInfo": {"endCursor": null}}},
        "errors": [{"message": "hidden", "path": ["people", "nodes", 1]}],
    });
    upstream.state().instead.push_back(Instead::Body(page.to_string()));
    let walk = json!({"name": "people", "resultPath": "/data/people/nodes", "batching": "Pages", "onMissing": "Delete", "query": "{a}",
        "pagination": {"nextPath": "/data/people/pageInfo/endCursor"}});
    let mut spec = graph(&upstream, &walk);
    spec["target"] = json!({"keyField": "gitlabId"});
    let ended = local.run(&job("users", &spec), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (3, 2, 0, 1)), "{}", ended.stdout);
    assert_eq!(local.count(doc! {}).await, 4, "the document of the null is unknown");
}

#[tokio::test]
async fn a_missing_path_to_the_result_removes_nothing() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(3, 0).await;
    let found = |user: &Value| Instead::Body(json!({"data": {"project": {"user": user}}}).to_string());
    let lost = Instead::Body(json!({"data": {"project": null}}).to_string());
    let one = json!({"name": "a"});
    // The first answer is for the check that the source has any results.
    upstream.state().instead.extend([found(&one), found(&one), lost.clone(), lost]);
    let part = json!({"name": "people", "resultPath": "/data/project/user", "onMissing": "Delete", "concurrency": 1});
    let mut spec = graph(&upstream, &part);
    spec["failurePolicy"] = json!({"maxFailedPercent": 100});
    let ended = local.run(&job("users", &spec), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (3, 1, 0, 2)), "{}", ended.stdout);
    assert_eq!(local.count(doc! {}).await, 3);
}

#[tokio::test]
async fn an_empty_search_result_means_a_missing_document() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    insert(&local, (0..3).map(|n| doc! {"_id": n, "_sync": earlier()})).await;
    for id in 0..3 {
        let list = if id == 1 { json!([]) } else { json!([{"id": id, "name": format!("User {id}")}]) };
        upstream.state().fixed.insert(format!("/search?username={id}"), Instead::Reply(200, list));
    }
    let mut spec = by_user(&upstream, &json!({"onMissing": "Mark", "name": "people"}));
    spec["source"]["rest"] = json!({"endpoint": upstream.rest("/search?username={id}"), "resultPath": "/0"});
    let ended = local.run(&job("users", &spec), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (3, 3, 0, 0)), "{}", ended.stdout);
    assert_eq!(local.count(doc! {"_id": 1, "missingSince": {"$type": "date"}}).await, 1);
    assert_eq!(local.count(doc! {"name": {"$exists": true}}).await, 2);
}

#[tokio::test]
async fn an_answer_without_content_removes_nothing() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(3, 0).await;
    upstream.state().fixed.insert("/users/1".to_owned(), Instead::Status(204, vec![]));
    upstream.state().fixed.insert("/users/2".to_owned(), Instead::Body(String::new()));
    let ended = local.run(&job("users", &by_user(&upstream, &json!({"onMissing": "Delete"}))), &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (3, 1, 2, 0)), "{}", ended.stdout);
    assert_eq!(local.count(doc! {}).await, 3);
}

#[tokio::test]
async fn compressed_answers_are_read() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(1, 0).await;
    let mut gzip = Command::new("gzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    gzip.stdin.take().unwrap().write_all(br#"{"name": "Ann"}"#).unwrap();
    let body = gzip.wait_with_output().unwrap().stdout;
    upstream.state().fixed.insert("/users/0".to_owned(), Instead::Encoded("gzip", body));
    let ended = local.run(&job("users", &by_user(&upstream, &json!({}))), &[]).await;
    assert_eq!((ended.code, local.count(doc! {"name": "Ann"}).await), (Some(0), 1), "{}", ended.stdout);
    let accepted = upstream.state().headers["accept-encoding"].to_str().unwrap().to_owned();
    for encoding in ["gzip", "br", "zstd", "deflate"] {
        assert!(accepted.contains(encoding), "{encoding}: {accepted}");
    }
}
