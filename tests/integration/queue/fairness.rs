//! The shares of namespaces.

use futures::future::join_all;
use redis::AsyncCommands;
use sync_operator::queue::{Candidates, Claim, Disposition, FencedWrite, NewRun, Queue, Release};

use super::support::{
    CANCEL, LEASE, NOTHING, Raw, ReleaseOne, SUSPEND, approve, build_release, claim, claim_many, named_queue, queue,
};
use crate::support::unique;

pub fn crowd_uids(numbers: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    numbers.map(|number| format!("crowd-{number:05}"))
}

/// Enqueues runs of one namespace.
pub async fn crowd(queue: &Queue, numbers: std::ops::Range<usize>) {
    let uids: Vec<String> = crowd_uids(numbers).collect();
    let runs: Vec<_> = uids.iter().map(|uid| NewRun { namespace: "crowd", ..NewRun::new(uid, "{}") }).collect();
    for run in join_all(runs.iter().map(|run| queue.enqueue(run))).await {
        assert!(run.unwrap());
    }
}

pub async fn enqueue_guest(queue: &Queue, uid: &str) {
    assert!(queue.enqueue(&NewRun { namespace: "guest", ..NewRun::new(uid, "{}") }).await.unwrap());
}

/// The number of claims of runs of the crowd before that of the run.
pub async fn claims_before(queue: &Queue, uid: &str) -> usize {
    for before in 0.. {
        loop {
            let next = claim(queue, "w").await.uid;
            if next == uid {
                return before;
            }
            if next.starts_with("crowd") {
                break;
            }
        }
    }
    0
}

#[tokio::test]
async fn another_namespace_is_claimed_next() {
    let queue = queue(LEASE);
    crowd(&queue, 0..1000).await;
    enqueue_guest(&queue, "first").await;
    let before = claims_before(&queue, "first").await;
    assert!(before <= 1, "{before} claims before the first one");
    for uid in ["second", "third"] {
        claim_many(&queue, "w", 4, &mut Candidates::default()).await;
        enqueue_guest(&queue, uid).await;
        assert_eq!(claim(&queue, "w").await.uid, uid);
    }
    for uid in ["fourth", "fifth", "sixth"] {
        enqueue_guest(&queue, uid).await;
    }
    for uid in ["fourth", "fifth", "sixth"] {
        let before = claims_before(&queue, uid).await;
        assert!(before <= 2, "{before} claims before the {uid} one, which waits together with others");
    }
}

#[tokio::test]
async fn due_runs_of_one_namespace_do_not_delay_another() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    enqueue_guest(&queue, "guest").await;
    crowd(&queue, 0..300).await;
    let mut releases = Vec::new();
    while let Ok(claims) = queue.claim("w", 32, &mut Candidates::default()).await.unwrap() {
        let retry = |claim: &Claim| build_release(&claim.uid, claim.entry.epoch, Disposition::Retry(LEASE), NOTHING);
        releases.extend(claims.iter().map(retry));
    }
    assert!(queue.release(&releases).await.unwrap().iter().all(|done| *done == FencedWrite::Applied));
    for Release { uid, .. } in &releases {
        raw.set_score("delayed", uid, if uid == "guest" { 2 } else { 1 }).await;
    }
    crowd(&queue, 300..310).await;
    let before = claims_before(&queue, "guest").await;
    assert!(before <= 2, "{before} claims before the run of another namespace");
    assert_eq!(queue.depth().await.unwrap().delayed, 0, "all runs that are due wait");
}

#[tokio::test]
async fn a_replaced_run_keeps_the_share_of_its_namespace() {
    let queue = queue(LEASE);
    crowd(&queue, 0..40).await;
    for number in 0..20 {
        let uid = format!("guest-{number}");
        enqueue_guest(&queue, &uid).await;
        match number % 4 {
            0 => queue.remove(&uid).await.unwrap(),
            1 => assert!(queue.control(&uid, SUSPEND).await.unwrap()),
            _ => assert!(queue.control(&uid, CANCEL).await.unwrap()),
        }
    }
    enqueue_guest(&queue, "guest").await;
    let before = claims_before(&queue, "guest").await;
    assert!(before <= 1, "{before} claims before the last run");
}

#[tokio::test]
async fn a_claimed_run_waits_for_no_new_run_of_its_namespace() {
    let queue = queue(LEASE);
    crowd(&queue, 0..20).await;
    let run = claim(&queue, "w").await;
    assert_eq!(queue.hold(&run.uid, run.entry.epoch, 1).await.unwrap(), FencedWrite::Applied);
    claim_many(&queue, "w", 3, &mut Candidates::default()).await;
    assert!(queue.control(&run.uid, approve(1)).await.unwrap());
    assert_eq!(claim(&queue, "w").await.uid, run.uid);
}

#[tokio::test]
async fn flows_behind_the_virtual_time_are_removed() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    let namespaces: Vec<String> = (0..100).map(|number| format!("team-{number}")).collect();
    for namespace in &namespaces {
        assert!(queue.enqueue(&NewRun { namespace, ..NewRun::new(namespace, "{}") }).await.unwrap());
    }
    crowd(&queue, 0..5).await;
    for _ in 0..105 {
        claim(&queue, "w").await;
    }
    let shares: Vec<String> = raw.connection.zrange(raw.key("shares"), 0, -1).await.unwrap();
    assert_eq!(shares, ["0", "0/crowd"]);
}
