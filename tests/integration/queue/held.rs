//! Runs that wait for an approval.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use sync_operator::{
    domain::run::{LeaseState, State},
    queue::{Control, Disposition, FencedWrite, NewRun, Queue, Repaired},
};

use super::support::{
    CANCEL, CONTINUE, LEASE, NOTHING, Raw, ReleaseOne, an_hour_ago, approve, assert_hour, claim, enqueue, entry,
    named_queue, queue, reap, uids,
};
use crate::support::{claim_one, unique};

/// Puts a run into the queue, and holds it because of `number` documents.
async fn hold(queue: &Queue, uid: &str, number: u64) {
    enqueue(queue, uid, 0).await;
    let epoch = claim(queue, "w").await.entry.epoch;
    assert_eq!(queue.hold(uid, epoch, number).await.unwrap(), FencedWrite::Applied);
}

#[tokio::test]
async fn a_held_run_continues_when_as_many_documents_are_approved() {
    let queue = queue(LEASE);
    hold(&queue, "a", 10).await;
    let held = entry(&queue, "a").await;
    assert_eq!((held.state, held.attempts, held.checkpoint.as_deref()), (State::Parked, 0, Some("held")));
    assert!(claim_one(&queue, "w").await.unwrap().is_err());
    for (control, state, approved) in [
        (CONTINUE, State::Parked, None),
        (approve(9), State::Parked, Some(9)),
        (Control { suspended: true, ..approve(10) }, State::Parked, Some(10)),
        (approve(10), State::Waiting, Some(10)),
    ] {
        assert!(queue.control("a", control).await.unwrap());
        let run = entry(&queue, "a").await;
        assert_eq!((run.state, run.approved), (state, approved), "{control:?}");
    }
    let claimed = claim(&queue, "w").await.entry;
    assert_eq!((claimed.approved, claimed.attempts), (Some(10), 0));
    assert_eq!(queue.hold("a", claimed.epoch, 11).await.unwrap(), FencedWrite::Applied);
    assert_eq!(entry(&queue, "a").await.state, State::Parked, "the run found more documents");
    assert!(queue.control("a", approve(11)).await.unwrap());
    let epoch = claim(&queue, "w").await.entry.epoch;
    assert_eq!(queue.finish("a", epoch, Disposition::Completed, NOTHING).await.unwrap(), FencedWrite::Applied);
}

#[tokio::test]
async fn an_approval_before_the_hold_is_applied() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let claimed = claim(&queue, "w").await.entry;
    assert!(queue.control("a", approve(10)).await.unwrap());
    assert_eq!(queue.checkpoint("a", claimed.epoch, "{}").await.unwrap(), LeaseState::Held, "the run is not recalled");
    assert_eq!(queue.hold("a", claimed.epoch, 10).await.unwrap(), FencedWrite::Applied);
    assert_eq!(claim(&queue, "w").await.entry.approved, Some(10));
}

#[tokio::test]
async fn the_next_worker_gets_the_held_time_of_a_run() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    hold(&queue, "a", 10).await;
    raw.set("a", "parked_at", an_hour_ago()).await;
    assert!(queue.control("a", approve(9)).await.unwrap());
    assert_eq!(entry(&queue, "a").await.parked_for, Duration::ZERO);
    assert!(queue.control("a", approve(10)).await.unwrap());
    assert_hour(claim(&queue, "w").await.entry.parked_for);
}

/// The controller restores a held run that Redis lost.
#[tokio::test]
async fn a_restored_held_run_is_claimed_only_when_approved() {
    let queue = queue(LEASE);
    let since = Timestamp::from_millisecond(an_hour_ago()).unwrap();
    let run = NewRun { started: Some(since), suspended: Some(since), ..NewRun::new("a", "{}") };
    assert!(queue.enqueue(&run).await.unwrap());
    assert!(claim_one(&queue, "w").await.unwrap().is_err());
    assert!(queue.control("a", approve(10)).await.unwrap());
    let claimed = claim(&queue, "w").await.entry;
    assert_eq!(claimed.approved, Some(10));
    assert_hour(claimed.parked_for);
}

#[tokio::test]
async fn a_held_run_can_be_cancelled() {
    let queue = queue(LEASE);
    hold(&queue, "a", 10).await;
    assert!(queue.control("a", CANCEL).await.unwrap());
    let run = entry(&queue, "a").await;
    assert_eq!((run.state, run.outcome.as_deref()), (State::Failed, Some(r#"{"why":2}"#)));
    assert!(!queue.control("a", approve(10)).await.unwrap());
}

#[tokio::test]
async fn a_held_run_survives_lost_workers_and_repairs() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, Duration::from_millis(50)), Raw::of(&name).await);
    hold(&queue, "a", 10).await;
    let held = entry(&queue, "a").await;
    enqueue(&queue, "b", 0).await;
    claim(&queue, "w").await;
    reap(&queue, 1).await;
    assert_eq!(entry(&queue, "a").await, held, "only the other run had a worker");
    queue.remove("b").await.unwrap();
    assert_eq!(queue.repair(uids()).await.unwrap(), Repaired { mended: 0, foreign: 0 });
    raw.remove_from_sets("a").await;
    assert_eq!(queue.repair(uids()).await.unwrap(), Repaired { mended: 1, foreign: 0 });
    assert_eq!((entry(&queue, "a").await, raw.sets("a").await), (held, vec!["parked"]));
    assert!(queue.control("a", approve(10)).await.unwrap());
    claim(&queue, "w").await;
    reap(&queue, 1).await;
    let again = claim(&queue, "w").await.entry;
    assert_eq!((again.approved, again.recoveries), (Some(10), 1), "the run stays approved");
}
