//! The durations for which runs wait.

use std::time::Duration;

use sync_operator::queue::{Control, FencedWrite};

use super::support::{
    CANCEL, CONTINUE, LEASE, NOTHING, Raw, ReleaseOne, SUSPEND, an_hour_ago, assert_hour, claim, enqueue, named_queue,
    oldest,
};
use crate::support::{PATIENCE, unique};

#[tokio::test]
async fn the_longest_wait_is_reported_for_every_priority() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    assert_eq!(oldest(&queue).await, Duration::ZERO, "none waits");
    for (uid, priority) in [("urgent", 5), ("old", -5), ("new", 0)] {
        enqueue(&queue, uid, priority).await;
    }
    raw.set_score("due", "old", an_hour_ago()).await;
    assert_hour(oldest(&queue).await);
    assert!(queue.control("old", Control { priority: -7, ..CONTINUE }).await.unwrap());
    assert_hour(oldest(&queue).await);
    for uid in ["urgent", "new"] {
        let claim = claim(&queue, "w").await;
        assert_eq!(claim.uid, uid);
        assert!(claim.waited < PATIENCE);
    }
    let claim = claim(&queue, "w").await;
    assert_hour(claim.waited);
    assert_eq!(oldest(&queue).await, Duration::ZERO);
    assert_eq!(queue.release_unfinished("old", claim.entry.epoch, "{}").await.unwrap(), FencedWrite::Applied);
    assert!(oldest(&queue).await < PATIENCE, "its wait starts again");
}

#[tokio::test]
async fn a_run_whose_backoff_has_passed_waits_since_then() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    enqueue(&queue, "a", 0).await;
    for settles in [false, true] {
        let epoch = claim(&queue, "w").await.entry.epoch;
        assert_eq!(queue.retry("a", epoch, LEASE, NOTHING).await.unwrap(), FencedWrite::Applied);
        assert_eq!(oldest(&queue).await, Duration::ZERO, "its backoff is not over");
        raw.set_score("delayed", "a", an_hour_ago()).await;
        raw.set("a", "retry_at", an_hour_ago()).await;
        if settles {
            assert!(queue.control("a", Control { priority: 1, ..CONTINUE }).await.unwrap());
            assert_eq!(raw.sets("a").await, ["waiting"]);
        }
        assert_hour(oldest(&queue).await);
        let claim = claim(&queue, "w").await;
        assert_hour(claim.waited);
        assert_eq!(queue.release_unfinished("a", claim.entry.epoch, "{}").await.unwrap(), FencedWrite::Applied);
    }
}

#[tokio::test]
async fn runs_that_cannot_be_claimed_do_not_wait() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    for uid in ["suspended", "cancelled", "removed"] {
        enqueue(&queue, uid, 0).await;
        raw.set_score("due", uid, an_hour_ago()).await;
    }
    assert!(queue.control("suspended", SUSPEND).await.unwrap());
    assert!(queue.control("cancelled", CANCEL).await.unwrap());
    queue.remove("removed").await.unwrap();
    assert_eq!(oldest(&queue).await, Duration::ZERO);
    assert!(queue.control("suspended", CONTINUE).await.unwrap());
    assert!(claim(&queue, "w").await.waited < PATIENCE, "it could not be claimed before");
}
