//! Scenarios 1 to 4 of the fault list: the operator is killed after every single request that it sends for one run, to
//! Kubernetes, Redis or MongoDB. A request is what arrives in one piece at a proxy before the server; nothing that the
//! process sends after it gets through.

use bson::{DateTime, doc};
use futures::{StreamExt, stream};
use kube::{ResourceExt, api::ListParams};
use serde_json::json;
use sync_operator::{
    api::{APPROVE_ANNOTATION, SyncSchedule, syncjob::Phase},
    domain::job::{has_ended, is_complete},
};
use tokio::select;

use crate::{
    support::{
        ALLOWED, RequestLimit, TestEnv, apply_job, confirmed, eventually, finished, source, start_leader_behind,
    },
    upstream::Upstream,
};

const USERS: i32 = 25;
/// Concurrent rounds. A round waits most of its time for the end of leases.
const SIDE_BY_SIDE: usize = 6;

async fn wait_for_success(env: &TestEnv) -> SyncSchedule {
    eventually("the run succeeded", async || {
        let schedule = env.schedules().get("users").await.ok()?;
        (schedule.status.as_ref()?.runs.succeeded >= 1).then_some(schedule)
    })
    .await
}

/// Kills the operator after a number of requests, lets another operator continue, and returns the number of requests.
async fn round(requests: usize) -> usize {
    let env = TestEnv::new().await;
    env.seed(USERS, 1).await;
    let limit = RequestLimit::new();
    let mut first = start_leader_behind(&limit, &env, &["--lease-duration", "1s"]).await;

    limit.allow(requests);
    let spec =
        json!({"suspended": true, "jobTemplate": {"spec": {"syncType": "Full", "batchSize": 5, "parallelism": 2}}});
    let mut schedule = SyncSchedule::new("users", serde_json::from_value(spec).unwrap());
    schedule.annotations_mut().insert("sync.codex.dev/trigger".to_owned(), "once".to_owned());
    env.schedules().create(&kube::api::PostParams::default(), &schedule).await.unwrap();
    let used = select! {
        () = limit.cut.notified() => requests,
        _ = wait_for_success(&env) => limit.passed(requests),
    };
    first.kill();

    let (_second, _) = env.all(&["--lease-duration", "1s"]);
    let runs = wait_for_success(&env).await.status.unwrap().runs;
    let at = format!("killed after {used} requests");
    assert_eq!((runs.total, runs.succeeded, runs.failed, runs.skipped), (1, 1, 0, 0), "{at}");
    let jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(jobs.len(), 1, "{at}: {:?}", jobs.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
    assert!(is_complete(&jobs[0]), "{at}");
    let status = jobs[0].status.clone().unwrap();
    let counts = status.counts.unwrap();
    let users = i64::from(USERS);
    let actual = (counts.total, counts.processed, counts.updated, counts.unchanged, counts.failed, status.progress);
    assert_eq!(actual, (users, users, users - 1, 0, 1, Some(100)), "{at}");
    assert_eq!((status.attempts, status.failures.len()), (Some(0), 1), "{at}: a crash costs no attempt");
    let start = DateTime::from_millis(status.start_time.unwrap().0.as_millisecond());
    assert_eq!(env.count(doc! {"lastSynced": start}).await, USERS as u64 - 1, "{at}");
    env.database.drop().await.unwrap();
    used
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_each_request_of_a_run() {
    let all = round(RequestLimit::OPEN).await;
    assert!(all > 20, "only {all} requests were seen");
    eprintln!("{all} requests");
    stream::iter(1..=all).map(round).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<_>>().await;
}

/// Number of documents that the source lists, and of all documents that it listed before.
const LISTED: (usize, i32) = (3, 12);

/// Kills the operator after a number of requests for a run that is held, approved and then marks documents, lets
/// another operator continue, and returns how many requests there were.
async fn held_round(requests: usize) -> usize {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(LISTED.0).await);
    let state = confirmed(&env.name, "people");
    let users = env.database.collection("users");
    users.insert_many((0..LISTED.1).map(|id| doc! {"_id": id, "_sync": state.clone()})).await.unwrap();
    let limit = RequestLimit::new();
    let allowed = [&["--lease-duration", "1s"][..], &ALLOWED].concat();
    let mut first = start_leader_behind(&limit, &env, &allowed).await;

    limit.allow(requests);
    let fields = json!({
        "name": "people", "endpoint": upstream.rest("/numbered?page={page}&n={first}"), "resultPath": "/users",
        "batching": "Pages", "pagination": {"by": "Number"}, "onMissing": "Mark",
    });
    let spec = json!({"syncType": "Full", "batchSize": 2, "source": source("rest", &fields)});
    apply_job(&env, "users", spec).await;
    let used = select! {
        () = limit.cut.notified() => requests,
        () = approve_when_held(&env) => limit.passed(requests),
    };
    first.kill();

    let (_second, _) = env.all(&allowed);
    approve_when_held(&env).await;
    let at = format!("killed after {used} requests");
    let job = env.jobs().get("users").await.unwrap();
    assert!(is_complete(&job), "{at}: {:?}", job.status);
    let left = u64::from(LISTED.1.unsigned_abs()) - LISTED.0 as u64;
    assert_eq!(env.count(doc! {"missingSince": {"$type": "date"}}).await, left, "{at}");
    assert_eq!(job.status.unwrap().counts.unwrap().marked, Some(left as i64), "{at}");
    env.database.drop().await.unwrap();
    used
}

/// Approves the run when it is held, and waits until it has ended.
async fn approve_when_held(env: &TestEnv) {
    let number = eventually("the run is held", async || {
        let status = env.jobs().get("users").await.ok()?.status?;
        let is_held = status.phase == Some(Phase::Held) || has_ended(&status);
        status.counts.filter(|_| is_held).map(|counts| counts.held.unwrap_or(0))
    })
    .await;
    if number > 0 {
        env.annotate_job("users", APPROVE_ANNOTATION, &number.to_string()).await;
    }
    finished(env, "users").await;
}

/// The kill is after every fifth request, from one of the first five on. `EVERY=1` tests each request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_each_request_of_a_held_run() {
    let all = held_round(RequestLimit::OPEN).await;
    assert!(all > 20, "only {all} requests were seen");
    let every = std::env::var("EVERY").map_or(5, |number| number.parse().unwrap());
    let first = rand::random_range(1..=every);
    eprintln!("{all} requests, killed after every {every} from {first} on");
    stream::iter((first..=all).step_by(every)).map(held_round).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<_>>().await;
}
