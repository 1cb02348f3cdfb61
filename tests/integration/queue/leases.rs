//! Leases of workers: renewals, and runs of lost workers.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use sync_operator::{
    domain::run::{LeaseState, State},
    queue::{FencedWrite, Renewed},
};

use super::support::{LEASE, Raw, ReleaseOne, assert_fenced, claim, enqueue, entry, named_queue, queue, reap};
use crate::support::{eventually, unique};

#[tokio::test]
async fn an_expired_lease_requeues_the_run_and_counts_a_recovery() {
    let queue = queue(Duration::from_millis(200));
    enqueue(&queue, "a", 0).await;
    let lost = claim(&queue, "w1").await.entry.epoch;
    enqueue(&queue, "b", 0).await;
    reap(&queue, 1).await;
    assert_fenced(&queue, "a", lost).await;
    let again = claim(&queue, "w2").await;
    assert_eq!((again.uid.as_str(), again.entry.recoveries, again.entry.attempts), ("a", 1, 0));
    assert_fenced(&queue, "a", lost).await;
}

#[tokio::test]
async fn a_lease_that_has_not_ended_is_left_alone() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    assert_eq!(queue.reap("{}").await.unwrap(), 0);
    assert_eq!(queue.checkpoint("a", epoch, "{}").await.unwrap(), LeaseState::Held);
}

#[tokio::test]
async fn a_run_that_keeps_losing_its_worker_ends_as_failed() {
    let queue = queue(Duration::from_millis(20));
    enqueue(&queue, "a", 0).await;
    for lost in 1..=6 {
        claim(&queue, "w").await;
        reap(&queue, 1).await;
        assert_eq!(entry(&queue, "a").await.state, if lost <= 5 { State::Waiting } else { State::Failed });
    }
    let entry = entry(&queue, "a").await;
    assert_eq!((entry.outcome.as_deref(), entry.recoveries), (Some(r#"{"why":1}"#), 6));
    assert!(entry.finished.is_some() && queue.unfinished().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_run_with_progress_may_lose_any_number_of_workers() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, Duration::from_millis(200)), Raw::of(&name).await);
    enqueue(&queue, "a", 0).await;
    for lost in 1..=8 {
        claim(&queue, "w").await;
        if lost == 4 {
            let six_minutes_ago = Timestamp::now().as_microsecond() - 360_000_000;
            raw.set("a", "epoch", six_minutes_ago).await;
            assert_eq!(queue.checkpoint("a", six_minutes_ago as u64, "{}").await.unwrap(), LeaseState::Held);
        }
        reap(&queue, 1).await;
    }
    let entry = entry(&queue, "a").await;
    assert_eq!((entry.state, entry.recoveries), (State::Waiting, 8));
}

#[tokio::test]
async fn early_checkpoints_reset_no_losses() {
    let queue = queue(Duration::from_millis(200));
    enqueue(&queue, "a", 0).await;
    for _ in 1..=6 {
        let run = claim(&queue, "w").await;
        assert_eq!(queue.checkpoint("a", run.entry.epoch, "{}").await.unwrap(), LeaseState::Held);
        reap(&queue, 1).await;
    }
    assert_eq!(entry(&queue, "a").await.state, State::Failed, "each worker was lost after its first page");
}

#[tokio::test]
async fn a_renewal_extends_held_leases_and_reports_lost_ones() {
    let name = unique("queue");
    let queue = named_queue(&name, LEASE);
    let mut raw = Raw::of(&name).await;
    for uid in ["held", "taken", "released"] {
        enqueue(&queue, uid, 0).await;
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        let run = claim(&queue, "w1").await;
        held.push((run.uid, run.entry.epoch));
    }
    for uid in ["released", "taken"] {
        let epoch = held.iter().find(|(held, _)| held == uid).unwrap().1;
        assert_eq!(queue.release_unfinished(uid, epoch, "{}").await.unwrap(), FencedWrite::Applied);
    }
    assert_eq!(claim(&queue, "w2").await.uid, "taken");
    held.push(("unknown".to_owned(), 1));

    let (own, other) = (raw.score("active", "held").await, raw.score("active", "taken").await);
    let mut lost = eventually("the lease is extended", async || {
        let lost = queue.renew("w1", &held).await.unwrap();
        (raw.score("active", "held").await > own).then_some(lost)
    })
    .await;
    lost.lost.sort();
    assert_eq!(lost.lost, ["released", "taken", "unknown"]);
    assert_eq!(raw.score("active", "taken").await, other, "the lease of another worker does not change");
    assert_eq!(raw.sets("released").await, ["waiting"]);
    assert!(raw.sets("unknown").await.is_empty());
}

#[tokio::test]
async fn workers_are_counted_while_they_renew() {
    let queue = queue(Duration::from_secs(2));
    for worker in ["w1", "w2", "w1"] {
        assert_eq!(queue.renew(worker, &[]).await.unwrap(), Renewed::default());
    }
    assert_eq!(queue.depth().await.unwrap().workers, 2);
    queue.retire("w1").await.unwrap();
    assert_eq!(queue.depth().await.unwrap().workers, 1);
    eventually("a worker without renewals is not counted", async || {
        (queue.depth().await.unwrap().workers == 0).then_some(())
    })
    .await;
}
