//! Repairs of the sets from the hashes of the runs.

use sync_operator::queue::Repaired;

use super::support::{LEASE, Raw, an_hour_ago, assert_hour, claim, enqueue, named_queue, oldest, uids};
use crate::support::{PATIENCE, unique};

#[tokio::test]
async fn a_repair_moves_each_run_to_the_set_of_its_hash() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    for uid in ["waiting", "foreign", "gone"] {
        enqueue(&queue, uid, 0).await;
        raw.remove_from_sets(uid).await;
    }
    // A state of a newer release.
    raw.set("foreign", "state", 9).await;
    raw.lose("gone").await;
    raw.set_score("delayed", "gone", 1).await;
    assert_eq!(queue.repair(uids()).await.unwrap(), Repaired { mended: 2, foreign: 1 });
    assert_eq!(queue.repair(uids()).await.unwrap(), Repaired { mended: 0, foreign: 1 });
    assert_eq!(raw.sets("gone").await, [""; 0]);
    assert_eq!(raw.sets("foreign").await, [""; 0]);
    assert_eq!(claim(&queue, "w").await.uid, "waiting");
}

/// An update from a release without ages has this effect.
#[tokio::test]
async fn a_repair_finds_the_waiting_runs() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    enqueue(&queue, "claimed", 0).await;
    claim(&queue, "w").await;
    raw.set_score("due", "claimed", an_hour_ago()).await;
    enqueue(&queue, "waiting", 0).await;
    raw.remove_from_set("due", "waiting").await;
    assert_hour(oldest(&queue).await);
    assert_eq!(queue.repair(uids()).await.unwrap(), Repaired::default());
    assert_eq!(raw.score("due", "claimed").await, None);
    assert!(raw.score("due", "waiting").await.is_some());
    assert!(oldest(&queue).await < PATIENCE);
}
