//! Suspension, cancellation and priority.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use sync_operator::{
    domain::run::{LeaseState, State},
    queue::{Control, Disposition, FencedWrite, NewRun},
};

use super::support::{CANCEL, CONTINUE, LEASE, NOTHING, ReleaseOne, SUSPEND, claim, enqueue, entry, queue, reap};

#[tokio::test]
async fn a_suspended_run_is_parked_and_waits_again() {
    let queue = queue(LEASE);
    for uid in ["a", "b"] {
        enqueue(&queue, uid, 0).await;
    }
    assert!(queue.control("a", SUSPEND).await.unwrap());
    assert_eq!(entry(&queue, "a").await.state, State::Parked);
    assert_eq!(queue.depth().await.unwrap().parked, 1);
    assert!(queue.control("a", CONTINUE).await.unwrap());
    for expected in ["b", "a"] {
        assert_eq!(claim(&queue, "w").await.uid, expected);
    }
}

#[tokio::test]
async fn a_suspended_run_is_recalled_without_spending_an_attempt() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    assert!(queue.control("a", SUSPEND).await.unwrap());
    assert_eq!(entry(&queue, "a").await.state, State::Active);
    assert_eq!(queue.renew("w", &[("a".to_owned(), epoch)]).await.unwrap().recalled, ["a"]);
    assert_eq!(queue.checkpoint("a", epoch, "1").await.unwrap(), LeaseState::Recalled);
    assert_eq!(queue.release_unfinished("a", epoch, "2").await.unwrap(), FencedWrite::Applied);
    let parked = entry(&queue, "a").await;
    assert_eq!((parked.state, parked.attempts, parked.checkpoint.as_deref()), (State::Parked, 0, Some("2")));
}

#[tokio::test]
async fn the_next_worker_gets_the_suspended_time_of_a_run() {
    let queue = queue(LEASE);
    let since = Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_hours(2);
    let run = NewRun { started: Some(since), suspended: Some(since), ..NewRun::new("a", "{}") };
    assert!(queue.enqueue(&run).await.unwrap());
    assert_eq!(entry(&queue, "a").await.state, State::Parked);
    assert!(queue.control("a", CONTINUE).await.unwrap());
    let parked_for = claim(&queue, "w").await.entry.parked_for;
    assert!(parked_for >= Duration::from_hours(2) && parked_for < Duration::from_hours(3), "{parked_for:?}");
}

#[tokio::test]
async fn a_resumed_run_waits_for_the_rest_of_its_backoff() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    assert!(queue.control("a", SUSPEND).await.unwrap());
    assert_eq!(queue.retry("a", epoch, LEASE, NOTHING).await.unwrap(), FencedWrite::Applied);
    assert_eq!(entry(&queue, "a").await.state, State::Parked);
    assert!(queue.control("a", CONTINUE).await.unwrap());
    assert_eq!(entry(&queue, "a").await.state, State::Delayed);
}

#[tokio::test]
async fn a_cancelled_run_ends_in_every_state() {
    let queue = queue(LEASE);
    for uid in ["waiting", "parked", "delayed", "active", "lost"] {
        enqueue(&queue, uid, 0).await;
    }
    assert!(queue.control("parked", SUSPEND).await.unwrap());
    let mut claims = HashMap::new();
    for _ in 0..4 {
        let claim = claim(&queue, "w").await;
        claims.insert(claim.uid, claim.entry.epoch);
    }
    assert_eq!(queue.release_unfinished("waiting", claims["waiting"], "{}").await.unwrap(), FencedWrite::Applied);
    assert_eq!(queue.retry("delayed", claims["delayed"], LEASE, NOTHING).await.unwrap(), FencedWrite::Applied);
    for uid in ["waiting", "parked", "delayed", "active", "lost"] {
        assert!(queue.control(uid, CANCEL).await.unwrap());
    }
    assert_eq!(queue.checkpoint("active", claims["active"], "1").await.unwrap(), LeaseState::Recalled);
    assert_eq!(queue.release_unfinished("active", claims["active"], "2").await.unwrap(), FencedWrite::Applied);
    for uid in ["waiting", "parked", "delayed", "active"] {
        let run = entry(&queue, uid).await;
        assert_eq!((run.state, run.outcome.as_deref()), (State::Failed, Some(r#"{"why":2}"#)), "{uid}");
        assert!(!queue.control(uid, CONTINUE).await.unwrap(), "an ended run does not continue");
    }
    assert_eq!(entry(&queue, "lost").await.state, State::Active);
}

#[tokio::test]
async fn a_run_that_completes_before_its_cancellation_is_complete() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    assert!(queue.control("a", CANCEL).await.unwrap());
    assert_eq!(queue.finish("a", epoch, Disposition::Completed, NOTHING).await.unwrap(), FencedWrite::Applied);
    assert_eq!(entry(&queue, "a").await.state, State::Completed);
}

#[tokio::test]
async fn a_cancelled_run_whose_worker_is_lost_ends() {
    let queue = queue(Duration::from_millis(50));
    enqueue(&queue, "a", 0).await;
    claim(&queue, "w").await;
    assert!(queue.control("a", CANCEL).await.unwrap());
    reap(&queue, 1).await;
    assert_eq!(entry(&queue, "a").await.state, State::Failed);
}

#[tokio::test]
async fn a_changed_priority_reorders_runs_that_wait() {
    let queue = queue(LEASE);
    for uid in ["a", "b", "c"] {
        enqueue(&queue, uid, 0).await;
    }
    assert!(queue.control("c", Control { priority: 5, ..CONTINUE }).await.unwrap());
    assert!(queue.control("a", Control { priority: -5, ..CONTINUE }).await.unwrap());
    for uid in ["c", "b", "a"] {
        assert_eq!(claim(&queue, "w").await.uid, uid);
    }
}
