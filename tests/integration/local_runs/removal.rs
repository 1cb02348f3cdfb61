//! The conditions for the removal of documents: the cases of docs/design/safe-runs.md, with whole processes.

use super::{
    answers::{earlier, insert, pages},
    *,
};
use crate::{support::confirmed, upstream::Instead};

/// Results with these ids.
fn users(ids: std::ops::Range<i32>) -> Value {
    ids.map(|id| json!({"id": id, "name": format!("User {id}")})).collect()
}

fn by_link(upstream: &Upstream) -> Value {
    let endpoint = upstream.rest("/list?n={first}");
    pages(upstream, &json!({"endpoint": endpoint, "resultPath": "", "pagination": {"by": "Link"}, "onMissing": "Mark"}))
}

fn by_cursor(upstream: &Upstream) -> Value {
    let endpoint = upstream.rest("/list?after={after}&n={first}");
    pages(upstream, &json!({"endpoint": endpoint, "pagination": {"nextPath": "/next"}, "onMissing": "Mark"}))
}

fn by_number(upstream: &Upstream) -> Value {
    pages(upstream, &json!({"endpoint": upstream.rest("/list?page={page}&n={first}"), "onMissing": "Mark"}))
}

/// Answers requests for these paths and queries.
fn answer<const N: usize>(upstream: &Upstream, pages: [(&str, Instead); N]) {
    upstream.state().fixed = pages.into_iter().map(|(path, instead)| (path.to_owned(), instead)).collect();
}

/// Inserts documents with these ids, which the source listed before.
async fn known(local: &Local, ids: std::ops::Range<i32>) {
    insert(local, ids.map(|id| doc! {"gitlabId": id, "active": true, "_sync": earlier()})).await;
}

async fn run(local: &Local, spec: &Value) -> Ended {
    local.run(&job("users", spec), &[]).await
}

fn count(ended: &Ended, name: &str) -> i64 {
    ended.json()["status"]["counts"][name].as_i64().unwrap_or(0)
}

fn marked() -> Document {
    doc! {"missingSince": {"$exists": true}}
}

#[tokio::test]
async fn a_single_full_page_must_state_that_it_is_the_last() {
    let page = |users: Value| Instead::Reply(200, json!({"users": users}));
    let stated = || Instead::Reply(200, json!({"users": users(0..10), "next": null}));
    let (link, cursor) = ("/list?n=10", "/list?after=&n=10");
    let numbers = [("/list?page=1&n=10", page(users(0..10))), ("/list?page=2&n=10", page(users(0..0)))];
    for (name, spec, pages, is_proved) in [
        (
            "Link with rel last",
            by_link as fn(&Upstream) -> Value,
            vec![(link, Instead::Linked(users(0..10), "</list>; rel=\"last\""))],
            true,
        ),
        ("no header Link", by_link, vec![(link, Instead::Reply(200, users(0..10)))], false),
        ("no header Link on a short page", by_link, vec![(link, Instead::Reply(200, users(0..9)))], true),
        ("a cursor that is null", by_cursor, vec![(cursor, stated())], true),
        ("no cursor, such as by a typing error", by_cursor, vec![(cursor, page(users(0..10)))], false),
        ("an empty page after it", by_number, numbers.to_vec(), true),
    ] {
        let (local, upstream) = (Local::new().await, Upstream::start().await);
        known(&local, 0..11).await;
        upstream.state().fixed = pages.into_iter().map(|(path, instead)| (path.to_owned(), instead)).collect();
        let ended = run(&local, &spec(&upstream)).await;
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stdout);
        assert_eq!(
            local.count(doc! {"gitlabId": 10, "missingSince": {"$exists": true}}).await,
            u64::from(is_proved),
            "{name}"
        );
        assert_eq!(ended.stdout.contains("RemovalSkipped"), !is_proved, "{name}: {}", ended.stdout);
        assert_eq!(
            local.count(doc! {"name": {"$exists": true}}).await,
            count(&ended, "processed") as u64 - count(&ended, "marked") as u64,
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_last_of_several_pages_need_not_be_stated() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    known(&local, 0..21).await;
    // As Microsoft Graph, whose last page lacks @odata.nextLink.
    answer(
        &upstream,
        [
            ("/list?after=&n=10", Instead::Reply(200, json!({"users": users(0..10), "next": "b"}))),
            ("/list?after=b&n=10", Instead::Reply(200, json!({"users": users(10..20)}))),
        ],
    );
    let ended = run(&local, &by_cursor(&upstream)).await;
    assert_eq!((ended.code, ended.counts(), count(&ended, "marked")), (Some(0), (21, 21, 0, 0), 1), "{}", ended.stdout);
}

#[tokio::test]
async fn page_numbers_that_are_clamped_prove_nothing() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    known(&local, 0..25).await;
    let page = |ids| Instead::Reply(200, json!({"users": users(ids)}));
    answer(
        &upstream,
        [("/list?page=1&n=10", page(0..10)), ("/list?page=2&n=10", page(10..20)), ("/list?page=3&n=10", page(10..20))],
    );
    let ended = run(&local, &by_number(&upstream)).await;
    assert_eq!((ended.code, upstream.requests(), local.count(marked()).await), (Some(0), 3, 0), "{}", ended.stdout);
    assert!(ended.stdout.contains("WalkUnproved"), "{}", ended.stdout);
}

#[tokio::test]
async fn pages_that_are_capped_are_walked_to_their_end() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    known(&local, 0..7).await;
    let page = |ids| Instead::Reply(200, json!({"users": users(ids), "total": 6}));
    answer(
        &upstream,
        [("/list?page=1&n=10", page(0..3)), ("/list?page=2&n=10", page(3..6)), ("/list?page=3&n=10", page(6..6))],
    );
    let ended = run(&local, &by_number(&upstream)).await;
    assert_eq!((ended.code, count(&ended, "marked"), local.count(marked()).await), (Some(0), 1, 1), "{}", ended.stdout);
    // With `lastPage: Short`, the total shows that the short page is not the last one.
    let mut short = by_number(&upstream);
    short["source"]["pagination"] = json!({"by": "Number", "lastPage": "Short", "totalPath": "/total"});
    known(&local, 50..51).await;
    let ended = run(&local, &short).await;
    assert_eq!((ended.code, count(&ended, "marked")), (Some(0), 0), "{}", ended.stdout);
    assert!(ended.stdout.contains("listed 3 results, and source.pagination.totalPath says 6"), "{}", ended.stdout);
}

#[tokio::test]
async fn a_first_import_keeps_documents_without_a_confirmation() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(5).await);
    // Made by hand, stamped by a schedule without a source, and marked as synced by an earlier release.
    insert(&local, [doc! {"gitlabId": 900, "role": "admin"}, doc! {"gitlabId": 901, "lastSynced": DateTime::now()}])
        .await;
    let index = doc! {"createIndexes": "users", "indexes": [{"key": {"gitlabId": 1}, "name": "a", "unique": true}]};
    local.database.run_command(index).await.unwrap();
    for _ in 0..3 {
        let ended = run(&local, &pages(&upstream, &json!({"upsert": true}))).await;
        assert_eq!((ended.code, count(&ended, "unconfirmed")), (Some(0), 2), "{}", ended.stdout);
        local.run(&job("stamp", &json!({"syncType": "Full"})), &[]).await;
    }
    assert_eq!((local.count(doc! {}).await, local.count(marked()).await), (7, 0));
}

#[tokio::test]
async fn the_mark_of_one_source_survives_the_list_of_another() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(10).await);
    insert(&local, (0..10).map(|id| doc! {"gitlabId": id})).await;
    let of = |name: &str| pages(&upstream, &json!({"name": name, "onMissing": "Mark"}));
    for name in ["gitlab", "hr"] {
        assert_eq!(run(&local, &of(name)).await.code, Some(0));
    }
    for (people, name, left) in [(9, "gitlab", 1), (10, "hr", 1), (9, "hr", 1), (10, "gitlab", 1), (10, "hr", 0)] {
        upstream.state().people = people;
        let ended = run(&local, &of(name)).await;
        assert_eq!(
            (ended.code, local.count(marked()).await),
            (Some(0), left),
            "{name} lists {people}: {}",
            ended.stdout
        );
    }
}

#[tokio::test]
async fn a_copy_of_a_document_is_confirmed_like_it() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(5).await);
    insert(&local, (0..5).map(|id| doc! {"gitlabId": id})).await;
    assert_eq!(run(&local, &pages(&upstream, &json!({}))).await.code, Some(0));
    let users = local.database.collection::<Document>("users");
    let mut copy = users.find_one(doc! {"gitlabId": 3}).await.unwrap().unwrap();
    copy.remove("_id");
    copy.insert("gitlabId", 700);
    insert(&local, [copy]).await;
    let ended = run(&local, &pages(&upstream, &json!({}))).await;
    assert_eq!((ended.code, count(&ended, "marked")), (Some(0), 1), "{}", ended.stdout);
}

#[tokio::test]
async fn documents_marked_before_do_not_count_for_the_guard() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(70).await);
    known(&local, 0..70).await;
    let state = doc! {"default/people": {"at": DateTime::from_millis(1), "gone": DateTime::from_millis(2)}};
    insert(&local, (100..130).map(|id| doc! {"gitlabId": id, "missingSince": DateTime::now(), "_sync": state.clone()}))
        .await;
    let ended = run(&local, &pages(&upstream, &json!({"onMissing": "Mark"}))).await;
    assert_eq!((ended.code, ended.counts(), count(&ended, "marked")), (Some(0), (70, 70, 0, 0), 0), "{}", ended.stdout);
}

#[tokio::test]
async fn a_run_that_would_remove_too_much_is_held() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(6).await);
    known(&local, 0..25).await;
    for (spec, code) in
        [(json!({}), 3), (json!({"action": "Fail"}), 1), (json!({"minResults": 7, "maxMissing": 100}), 3)]
    {
        let mut held = pages(&upstream, &json!({"onMissing": "Mark"}));
        held["guard"] = spec;
        let ended = run(&local, &held).await;
        assert_eq!((ended.code, local.count(marked()).await), (Some(code), 0), "{}", ended.stdout);
        assert_eq!(
            (count(&ended, "held"), local.count(doc! {"name": {"$exists": true}}).await),
            (19, 6),
            "updates are written"
        );
    }
    let spec = pages(&upstream, &json!({"onMissing": "Mark"}));
    let approve = async |number: &str| local.run(&job("users", &spec), &["--approve", number]).await;
    assert_eq!((approve("18").await.code, local.count(marked()).await), (Some(3), 0));
    let ended = approve("19").await;
    assert_eq!(
        (ended.code, count(&ended, "marked"), local.count(marked()).await),
        (Some(0), 19, 19),
        "{}",
        ended.stdout
    );
}

#[tokio::test]
async fn a_run_stops_after_the_batch_with_too_many_changes() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(30).await);
    known(&local, 0..30).await;
    let mut spec = pages(&upstream, &json!({}));
    (spec["guard"], spec["parallelism"]) = (json!({"maxChanged": "40%"}), json!(1));
    let ended = run(&local, &spec).await;
    assert_eq!((ended.code, count(&ended, "held"), ended.counts().0), (Some(3), 20, 20), "{}", ended.stdout);
    let ended = local.run(&job("users", &spec), &["--approve", "30"]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (30, 10, 20, 0)), "{}", ended.stdout);
}

#[tokio::test]
async fn fields_that_a_mark_sets_are_restored() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(10).await);
    known(&local, 0..13).await;
    let set = json!([{"to": "active", "value": false}, {"to": "note", "value": "left"}]);
    let spec = pages(&upstream, &json!({"onMissing": "Mark", "missing": {"set": set}}));
    assert_eq!(run(&local, &spec).await.code, Some(0));
    assert_eq!(local.count(doc! {"active": false, "note": "left", "missingSince": {"$type": "date"}}).await, 3);
    let users = local.database.collection::<Document>("users");
    users.update_one(doc! {"gitlabId": 11}, doc! {"$set": {"note": "on leave"}}).await.unwrap();
    upstream.state().people = 13;
    let ended = run(&local, &spec).await;
    assert_eq!((ended.code, count(&ended, "unmarked")), (Some(0), 3), "{}", ended.stdout);
    assert_eq!(local.count(doc! {"active": true}).await, 13);
    assert_eq!(local.count(doc! {"note": {"$exists": true}}).await, 1, "a field that another client changed stays");
    assert_eq!(local.count(doc! {"_sync.default/people.was": {"$exists": true}}).await, 0);
}

#[tokio::test]
async fn a_document_is_deleted_when_delete_after_has_passed() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(10).await);
    known(&local, 0..11).await;
    for _ in 0..3 {
        let ended = run(&local, &pages(&upstream, &json!({"deleteAfter": "1h"}))).await;
        assert_eq!((ended.code, count(&ended, "deleted")), (Some(0), 0), "{}", ended.stdout);
    }
    assert_eq!(local.count(marked()).await, 1);
    let ended = run(&local, &pages(&upstream, &json!({}))).await;
    assert_eq!(
        (ended.code, count(&ended, "deleted"), local.count(doc! {}).await),
        (Some(0), 1, 10),
        "{}",
        ended.stdout
    );
}

#[tokio::test]
async fn a_key_that_several_documents_have_removes_none_of_them() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(10).await);
    known(&local, 0..10).await;
    insert(&local, [doc! {"gitlabId": 50, "n": 1, "_sync": earlier()}, doc! {"gitlabId": 50, "n": 2}]).await;
    insert(&local, [doc! {"gitlabId": 3, "n": 2}]).await;
    for _ in 0..2 {
        let ended = run(&local, &pages(&upstream, &json!({}))).await;
        assert_eq!((ended.code, count(&ended, "marked")), (Some(0), 0), "{}", ended.stdout);
    }
    assert_eq!(local.count(doc! {"gitlabId": 3, "name": "User 3"}).await, 2, "both documents are written");
}

#[tokio::test]
async fn adoption_confirms_what_was_never_listed() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(10).await);
    insert(&local, (0..12).map(|id| doc! {"gitlabId": id})).await;
    let adopting = pages(&upstream, &json!({"onMissing": "Mark", "adopt": true}));
    let ended = run(&local, &adopting).await;
    assert_eq!((ended.code, count(&ended, "held"), count(&ended, "unconfirmed")), (Some(3), 2, 2), "{}", ended.stdout);
    let ended = local.run(&job("users", &adopting), &["--approve", "2"]).await;
    assert_eq!((ended.code, local.count(marked()).await), (Some(0), 0), "{}", ended.stdout);
    let ended = run(&local, &pages(&upstream, &json!({"onMissing": "Mark"}))).await;
    assert_eq!((ended.code, count(&ended, "marked")), (Some(0), 2), "{}", ended.stdout);
}

#[tokio::test]
async fn walks_that_overlap_delete_nothing_that_one_of_them_lists() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(20).await);
    known(&local, 0..21).await;
    let spec = pages(&upstream, &json!({}));
    assert_eq!(run(&local, &spec).await.code, Some(0));
    // The fast walk lists 20 during the slow walk, which does not list it.
    fs::write(local.folder.join("job.yaml"), job("users", &spec)).unwrap();
    upstream.state().delay = Duration::from_millis(700);
    let slow = local.finish(local.command(&["job.yaml"]), "");
    let fast = async {
        eventually("the last page is requested", async || (upstream.requests() >= 6).then_some(())).await;
        upstream.state().delay = Duration::ZERO;
        upstream.state().people = 21;
        run(&local, &spec).await
    };
    let (slow, fast) = tokio::join!(slow, fast);
    assert_eq!((slow.code, fast.code), (Some(0), Some(0)), "{}\n{}", slow.stdout, fast.stdout);
    assert_eq!((local.count(doc! {"gitlabId": 20}).await, local.count(marked()).await), (1, 0));
}

#[tokio::test]
async fn a_dry_run_counts_what_the_guard_would_hold() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(3).await);
    known(&local, 0..25).await;
    insert(&local, [doc! {"gitlabId": 90, "_sync": confirmed("default", "hr")}]).await;
    let mut dry = pages(&upstream, &json!({}));
    dry["dryRun"] = json!(true);
    let ended = run(&local, &dry).await;
    assert_eq!((ended.code, count(&ended, "marked"), count(&ended, "held")), (Some(0), 22, 22), "{}", ended.stdout);
    assert_eq!((local.count(marked()).await, local.count(doc! {"name": {"$exists": true}}).await), (0, 0));
}
