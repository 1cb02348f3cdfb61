//! Writes of workers that lost their lease.

use sync_operator::{
    domain::run::LeaseState,
    queue::{Disposition, FencedWrite},
};

use super::support::{LEASE, NOTHING, Raw, ReleaseOne, assert_fenced, claim, enqueue, entry, named_queue, queue};
use crate::support::{eventually, unique};

#[tokio::test]
async fn a_write_with_an_old_epoch_is_refused_and_changes_nothing() {
    let queue = queue(LEASE);
    enqueue(&queue, "a", 0).await;
    let old = claim(&queue, "w1").await.entry.epoch;
    assert_eq!(queue.release_unfinished("a", old, "{}").await.unwrap(), FencedWrite::Applied);
    assert_fenced(&queue, "a", old).await;
    let current = claim(&queue, "w2").await.entry.epoch;
    assert_fenced(&queue, "a", old).await;
    assert_eq!(queue.checkpoint("a", current, "y").await.unwrap(), LeaseState::Held);
    assert_eq!(entry(&queue, "a").await.checkpoint.as_deref(), Some("y"));
}

#[tokio::test]
async fn a_worker_cannot_write_to_a_run_that_it_released() {
    let queue = queue(LEASE);
    for uid in ["delayed", "completed", "failed", "removed"] {
        enqueue(&queue, uid, 0).await;
        let epoch = claim(&queue, "w").await.entry.epoch;
        let done = match uid {
            "delayed" => queue.retry(uid, epoch, LEASE, NOTHING).await.unwrap(),
            "completed" => queue.finish(uid, epoch, Disposition::Completed, NOTHING).await.unwrap(),
            "failed" => queue.finish(uid, epoch, Disposition::Failed("{}".to_owned()), NOTHING).await.unwrap(),
            _ => {
                queue.remove(uid).await.unwrap();
                FencedWrite::Applied
            }
        };
        assert_eq!(done, FencedWrite::Applied);
        assert_fenced(&queue, uid, epoch).await;
    }
}

#[tokio::test]
async fn a_worker_from_before_a_loss_of_redis_is_fenced_off() {
    let name = unique("queue");
    let queue = named_queue(&name, LEASE);
    enqueue(&queue, "a", 0).await;
    let old = claim(&queue, "w1").await.entry.epoch;
    Raw::of(&name).await.lose_everything().await;
    assert!(enqueue(&queue, "a", 0).await);
    let new = claim(&queue, "w2").await.entry.epoch;
    assert_ne!(old, new, "no epoch is used twice");
    assert_fenced(&queue, "a", old).await;
    assert_eq!(queue.checkpoint("a", new, "y").await.unwrap(), LeaseState::Held);
}

/// A failover to a replica without the claim has this effect.
#[tokio::test]
async fn a_worker_whose_claim_was_lost_is_fenced_off() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    enqueue(&queue, "a", 0).await;
    let before = entry(&queue, "a").await.epoch;
    let lost = claim(&queue, "w1").await.entry.epoch;
    assert_eq!(queue.release_unfinished("a", lost, "{}").await.unwrap(), FencedWrite::Applied);
    raw.set("a", "epoch", before as i64).await;
    let new = eventually("the clock is a millisecond later", async || {
        let claim = claim(&queue, "w2").await.entry;
        assert!(claim.epoch > before);
        if claim.epoch == lost {
            assert_eq!(queue.release_unfinished("a", claim.epoch, "{}").await.unwrap(), FencedWrite::Applied);
            raw.set("a", "epoch", before as i64).await;
        }
        (claim.epoch != lost).then_some(claim.epoch)
    })
    .await;
    assert_fenced(&queue, "a", lost).await;
    assert_eq!(queue.checkpoint("a", new, "y").await.unwrap(), LeaseState::Held);
}
