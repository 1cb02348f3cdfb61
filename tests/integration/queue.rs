//! The queue on a real Redis.

use std::time::Duration;

use sync_operator::{
    domain::run::State,
    queue::{Claim, Ending, Fenced, NewRun, Progress, Queue},
};

use crate::support::{eventually, unique, variable};

const NOTHING: Progress<'_> = Progress { checkpoint: "{}", history: "[]", attempts: 0 };
const LEASE: Duration = Duration::from_secs(30);

fn queue(lease: Duration) -> Queue {
    Queue::new(&variable("REDIS_URL"), &unique("queue"), lease).unwrap()
}

async fn enqueue(queue: &Queue, uid: &str, priority: i32) -> bool {
    let run = NewRun { uid, payload: "{}", priority, started: None, attempts: 0, recoveries: 0, history: "[]" };
    queue.enqueue(&run).await.unwrap()
}

async fn claim(queue: &Queue, worker: &str) -> Claim {
    queue.claim(worker).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_run_is_enqueued_once() {
    let queue = queue(LEASE);
    assert!(enqueue(&queue, "a", 0).await);
    assert!(!enqueue(&queue, "a", 0).await);
    let run = claim(&queue, "w").await;
    assert_eq!(queue.finish("a", run.entry.epoch, Ending::Completed, NOTHING).await.unwrap(), Fenced::Done);
    assert!(!enqueue(&queue, "a", 0).await, "a finished run is not run again");
    assert_eq!(queue.get("a").await.unwrap().unwrap().state, State::Completed);
}

#[tokio::test]
async fn runs_are_claimed_by_priority_and_then_in_order_of_arrival() {
    let queue = queue(LEASE);
    for (uid, priority) in [("a", 0), ("b", 0), ("urgent", 1000), ("late", -1000)] {
        enqueue(&queue, uid, priority).await;
    }
    for expected in ["urgent", "a", "b", "late"] {
        assert_eq!(claim(&queue, "w").await.uid, expected);
    }
    assert!(queue.claim("w").await.unwrap().is_err());
}

#[tokio::test]
async fn a_released_run_takes_its_old_place_and_spends_no_attempt() {
    let queue = queue(LEASE);
    enqueue(&queue, "first", 0).await;
    let run = claim(&queue, "w").await;
    enqueue(&queue, "second", 0).await;
    assert_eq!(queue.release("first", run.entry.epoch, r#"{"at":1}"#).await.unwrap(), Fenced::Done);
    let again = claim(&queue, "w").await;
    assert_eq!((again.uid.as_str(), again.entry.attempts, again.entry.epoch), ("first", 0, 2));
    assert_eq!(again.entry.checkpoint.as_deref(), Some(r#"{"at":1}"#));
    assert_eq!(again.entry.started, run.entry.started, "the first claim counts");
}

#[tokio::test]
async fn a_write_with_an_old_epoch_is_refused_and_changes_nothing() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let old = claim(&queue, "w1").await.entry.epoch;
    assert_eq!(queue.release("a", old, "{}").await.unwrap(), Fenced::Done);
    claim(&queue, "w2").await;
    let before = queue.get("a").await.unwrap();
    assert_eq!(queue.checkpoint("a", old, "x").await.unwrap(), Fenced::Lost);
    assert_eq!(queue.release("a", old, "x").await.unwrap(), Fenced::Lost);
    assert_eq!(queue.retry("a", old, Duration::ZERO, NOTHING).await.unwrap(), Fenced::Lost);
    assert_eq!(queue.finish("a", old, Ending::Completed, NOTHING).await.unwrap(), Fenced::Lost);
    assert_eq!(queue.renew("w1", &[("a".to_owned(), old)]).await.unwrap(), ["a"]);
    assert_eq!(queue.get("a").await.unwrap(), before);
}

#[tokio::test]
async fn a_delayed_run_is_claimed_when_it_is_due() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let run = claim(&queue, "w").await;
    let progress = Progress { attempts: 1, ..NOTHING };
    assert_eq!(queue.retry("a", run.entry.epoch, Duration::from_millis(700), progress).await.unwrap(), Fenced::Done);
    let wait = queue.claim("w").await.unwrap().unwrap_err().unwrap();
    assert!(wait <= Duration::from_millis(700));
    let again = eventually("the run is due", async || queue.claim("w").await.unwrap().ok()).await;
    assert_eq!((again.uid.as_str(), again.entry.attempts), ("a", 1));
}

#[tokio::test]
async fn an_expired_lease_returns_the_run_to_the_head_and_counts_a_recovery() {
    let queue = queue(Duration::from_millis(200));
    enqueue(&queue, "a", 0).await;
    let lost = claim(&queue, "w1").await.entry.epoch;
    enqueue(&queue, "b", 0).await;
    eventually("the lease ends", async || (queue.reap("{}").await.unwrap() == 1).then_some(())).await;
    let again = claim(&queue, "w2").await;
    assert_eq!((again.uid.as_str(), again.entry.recoveries, again.entry.attempts), ("a", 1, 0));
    assert_eq!(queue.checkpoint("a", lost, "x").await.unwrap(), Fenced::Lost);
}

#[tokio::test]
async fn a_run_that_keeps_losing_its_worker_ends_as_failed() {
    let queue = queue(Duration::from_millis(20));
    enqueue(&queue, "a", 0).await;
    for lost in 1..=6 {
        claim(&queue, "w").await;
        eventually("the lease ends", async || (queue.reap(r#"{"why":1}"#).await.unwrap() == 1).then_some(())).await;
        let state = queue.get("a").await.unwrap().unwrap().state;
        assert_eq!(state, if lost <= 5 { State::Waiting } else { State::Failed });
    }
    assert_eq!(queue.get("a").await.unwrap().unwrap().outcome.as_deref(), Some(r#"{"why":1}"#));
}

#[tokio::test]
async fn removing_a_run_takes_it_from_its_worker() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    queue.remove("a").await.unwrap();
    assert_eq!(queue.checkpoint("a", epoch, "{}").await.unwrap(), Fenced::Lost);
    assert!(queue.unfinished().await.unwrap().is_empty() && queue.get("a").await.unwrap().is_none());
}

#[tokio::test]
async fn many_workers_get_each_run_once() {
    let queue = queue(LEASE);
    for run in 0..100 {
        enqueue(&queue, &format!("run-{run}"), 0).await;
    }
    let workers = (0..8).map(|worker| {
        let queue = queue.clone();
        tokio::spawn(async move {
            let mut claimed = Vec::new();
            while queue.depth().await.unwrap().waiting > 0 {
                claimed.extend(queue.claim(&format!("w{worker}")).await.unwrap().ok().map(|claim| claim.uid));
            }
            claimed
        })
    });
    let mut claimed: Vec<String> =
        futures::future::join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    claimed.sort();
    let total = claimed.len();
    claimed.dedup();
    assert_eq!((claimed.len(), total), (100, 100));
}

#[tokio::test]
async fn changes_between_two_calls_are_told() {
    let queue = queue(LEASE);
    enqueue(&queue, "before", 0).await;
    let mut changes = queue.changes();
    let mut first = tokio::spawn(async move {
        let told = changes.next().await;
        (told, changes)
    });
    let (told, mut changes) = eventually("the first change is told", async || {
        enqueue(&queue, &unique("run"), 0).await;
        let limit = Duration::from_millis(200);
        tokio::time::timeout(limit, &mut first).await.ok().map(Result::unwrap)
    })
    .await;
    assert!(!told.contains(&"before".to_owned()), "what was before the first call is not told: {told:?}");
    enqueue(&queue, "between", 0).await;
    assert!(changes.next().await.contains(&"between".to_owned()));
}
