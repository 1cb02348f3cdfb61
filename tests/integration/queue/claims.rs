//! Claims: the order of runs, and how many a worker gets.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use sync_operator::{
    domain::run::State,
    queue::{Candidates, Disposition, FencedWrite, NewRun},
};

use super::support::{
    LEASE, NOTHING, Progress, Raw, ReleaseOne, claim, claim_many, enqueue, entry, named_queue, queue,
};
use crate::support::{claim_one, eventually, unique};

#[tokio::test]
async fn a_run_is_enqueued_once() {
    let queue = queue(LEASE);
    assert!(enqueue(&queue, "a", 0).await);
    assert!(!enqueue(&queue, "a", 0).await);
    let run = claim(&queue, "w").await;
    assert_eq!(
        queue.finish("a", run.entry.epoch, Disposition::Completed, NOTHING).await.unwrap(),
        FencedWrite::Applied
    );
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
    assert!(claim_one(&queue, "w").await.unwrap().is_err());
}

#[tokio::test]
async fn a_released_run_takes_its_old_place_and_spends_no_attempt() {
    let queue = queue(LEASE);
    enqueue(&queue, "first", 0).await;
    let run = claim(&queue, "w").await;
    enqueue(&queue, "second", 0).await;
    assert_eq!(queue.release_unfinished("first", run.entry.epoch, r#"{"at":1}"#).await.unwrap(), FencedWrite::Applied);
    let again = claim(&queue, "w").await;
    assert_eq!((again.uid.as_str(), again.entry.attempts), ("first", 0));
    assert_eq!(again.entry.checkpoint.as_deref(), Some(r#"{"at":1}"#));
    assert_eq!(again.entry.started, run.entry.started, "the first claim counts");
}

#[tokio::test]
async fn a_claim_raises_the_epoch_and_fixes_the_start_once() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    assert_eq!(entry(&queue, "a").await.started, None);
    let first = claim(&queue, "w1").await;
    assert_eq!(first.entry.started, Some(first.at));
    let progress = Progress { attempts: 1, ..NOTHING };
    assert_eq!(queue.retry("a", first.entry.epoch, Duration::ZERO, progress).await.unwrap(), FencedWrite::Applied);
    let second = eventually("the clock of Redis has moved on", async || {
        let claim = claim(&queue, "w2").await;
        let moved = claim.at > first.at;
        if !moved {
            assert_eq!(queue.release_unfinished("a", claim.entry.epoch, "{}").await.unwrap(), FencedWrite::Applied);
        }
        moved.then_some(claim)
    })
    .await;
    assert!(second.entry.epoch > first.entry.epoch);
    assert_eq!(second.entry.started, first.entry.started);
    assert_eq!((second.entry.state, second.entry.worker.as_deref()), (State::Active, Some("w2")));
    assert_eq!(second.entry, entry(&queue, "a").await, "a claim returns the data in Redis");
}

#[tokio::test]
async fn a_run_restored_after_a_loss_keeps_its_start_and_counters() {
    let queue = queue(LEASE);
    let started = Some(Timestamp::from_millisecond(1_795_477_200_123).unwrap());
    let history = r#"[{"number":1}]"#;
    let run = NewRun { started, attempts: 2, recoveries: 3, history, ..NewRun::new("a", "p") };
    assert!(queue.enqueue(&run).await.unwrap());
    let entry = claim(&queue, "w").await.entry;
    assert_eq!((entry.started, entry.attempts, entry.recoveries), (started, 2, 3));
    assert_eq!((entry.payload.as_str(), entry.history.as_str()), ("p", history));
}

#[tokio::test]
async fn a_delayed_run_is_claimed_when_it_is_due() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let run = claim(&queue, "w").await;
    let progress = Progress { attempts: 1, ..NOTHING };
    assert_eq!(
        queue.retry("a", run.entry.epoch, Duration::from_secs(2), progress).await.unwrap(),
        FencedWrite::Applied
    );
    let due = entry(&queue, "a").await.retry_at.unwrap();
    let wait = claim_one(&queue, "w").await.unwrap().unwrap_err().unwrap();
    assert!(!wait.is_zero() && wait <= Duration::from_secs(2), "{wait:?}");
    let again = eventually("the run is due", async || claim_one(&queue, "w").await.unwrap().ok()).await;
    assert_eq!((again.uid.as_str(), again.entry.attempts, again.entry.retry_at), ("a", 1, None));
    assert!(again.at >= due);
    assert_eq!(claim_one(&queue, "w").await.unwrap(), Err(None), "no run waits, and none will be due");
}

#[tokio::test]
async fn a_run_that_is_due_again_takes_its_old_place() {
    let queue = queue(LEASE);
    enqueue(&queue, "first", 0).await;
    let run = claim(&queue, "w").await;
    enqueue(&queue, "second", 0).await;
    enqueue(&queue, "urgent", 1).await;
    assert_eq!(queue.retry("first", run.entry.epoch, Duration::ZERO, NOTHING).await.unwrap(), FencedWrite::Applied);
    for expected in ["urgent", "first", "second"] {
        assert_eq!(claim(&queue, "w").await.uid, expected);
    }
}

#[tokio::test]
async fn a_claimed_run_has_no_backoff_any_more_wherever_it_waited() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let run = claim(&queue, "w").await;
    assert_eq!(queue.retry("a", run.entry.epoch, Duration::ZERO, NOTHING).await.unwrap(), FencedWrite::Applied);
    assert_eq!(entry(&queue, "a").await.state, State::Waiting);
    let run = claim(&queue, "w").await;
    assert_eq!((run.entry.retry_at, entry(&queue, "a").await), (None, run.entry.clone()));
}

#[tokio::test]
async fn a_run_that_lost_its_epoch_blocks_no_other_run() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    enqueue(&queue, "damaged", 0).await;
    enqueue(&queue, "sound", 0).await;
    raw.unset("damaged", "epoch").await;
    assert_eq!(claim(&queue, "w").await.uid, "damaged");
    assert_eq!(claim(&queue, "w").await.uid, "sound");
}

#[tokio::test]
async fn a_claim_takes_the_best_runs_in_order_up_to_its_limit() {
    let queue = queue(LEASE);
    for (uid, priority) in [("low", -1), ("a", 0), ("b", 0), ("high", 1)] {
        enqueue(&queue, uid, priority).await;
    }
    let mut candidates = Candidates::default();
    assert_eq!(claim_many(&queue, "w", 2, &mut candidates).await, ["high", "a"]);
    enqueue(&queue, "higher", 2).await;
    assert_eq!(claim_many(&queue, "w", 2, &mut candidates).await, ["higher", "b"], "earlier candidates are outdated");
    assert_eq!(claim_many(&queue, "w", 2, &mut candidates).await, ["low"]);
    assert!(claim_many(&queue, "w", 2, &mut candidates).await.is_empty());
}

#[tokio::test]
async fn a_claim_of_several_leaves_runs_for_other_workers() {
    let queue = queue(LEASE);
    for worker in ["w1", "w2", "w3"] {
        queue.renew(worker, &[]).await.unwrap();
    }
    for run in 0..7 {
        enqueue(&queue, &format!("run-{run}"), 0).await;
    }
    let mut taken = Vec::new();
    for worker in ["w1", "w2", "w3"] {
        taken.push(claim_many(&queue, worker, 7, &mut Candidates::default()).await.len());
    }
    assert_eq!(taken, [3, 2, 1], "each a third of the waiting runs, rounded up");
}

#[tokio::test]
async fn many_workers_get_each_run_once() {
    let queue = queue(LEASE);
    for run in 0..200 {
        enqueue(&queue, &format!("run-{run}"), 0).await;
    }
    let workers = (0..8).map(|worker| {
        let queue = queue.clone();
        tokio::spawn(async move {
            let (mut claimed, mut candidates) = (Vec::new(), Candidates::default());
            while queue.depth().await.unwrap().waiting > 0 {
                claimed.extend(claim_many(&queue, &format!("w{worker}"), 1 + worker, &mut candidates).await);
            }
            claimed
        })
    });
    let mut claimed: Vec<String> =
        futures::future::join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    claimed.sort();
    let total = claimed.len();
    claimed.dedup();
    assert_eq!((claimed.len(), total), (200, 200));
}
