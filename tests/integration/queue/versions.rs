//! Processes of other releases and installations.

use std::time::Duration;

use sync_operator::{
    domain::{
        installation::{Fingerprint, Owner},
        needs::{LEVEL, Level},
        run::State,
    },
    queue::{Control, Disposition, Error, FencedWrite, NewRun, Release},
};
use tokio::time::Instant;

use super::support::{
    CONTINUE, LEASE, NOTHING, Raw, ReleaseOne, build_release, claim, enqueue, entry, named_queue, queue,
};
use crate::support::{claim_one, eventually, unique};

/// More runs than the queue reads in one claim or reap.
const MORE_THAN_A_SCAN: usize = 20;

#[tokio::test]
async fn runs_of_another_release_are_skipped_and_block_no_others() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    let foreign: Vec<String> = (0..MORE_THAN_A_SCAN).map(|run| format!("foreign-{run}")).collect();
    for uid in &foreign {
        enqueue(&queue, uid, 0).await;
        raw.reformat(uid).await;
    }
    let before = raw.run(&foreign[0]).await;
    assert!(!enqueue(&queue, &foreign[0], 0).await, "the run is in the queue");
    assert!(claim_one(&queue, "w").await.unwrap().is_err());
    enqueue(&queue, "own", 0).await;
    let claimed = claim_one(&queue, "w").await.unwrap().map(|run| run.uid);
    assert_eq!(claimed, Ok("own".to_owned()), "{MORE_THAN_A_SCAN} runs of another release are in front of it");
    assert_eq!(raw.run(&foreign[0]).await, before);
    for uid in &foreign {
        assert_eq!(raw.sets(uid).await, ["waiting"]);
    }
}

#[tokio::test]
async fn lost_workers_of_another_release_keep_no_run() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, Duration::from_millis(20)), Raw::of(&name).await);
    for run in 0..MORE_THAN_A_SCAN {
        let uid = format!("foreign-{run}");
        enqueue(&queue, &uid, 0).await;
        claim(&queue, "w").await;
        raw.reformat(&uid).await;
    }
    enqueue(&queue, "own", 0).await;
    claim(&queue, "w").await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while raw.sets("own").await != ["waiting"] {
        assert!(Instant::now() < deadline, "{MORE_THAN_A_SCAN} runs of another release are in front of it");
        queue.reap("{}").await.unwrap();
    }
    eventually("all runs are recovered", async || {
        queue.reap("{}").await.unwrap();
        (queue.depth().await.unwrap().active == 0).then_some(())
    })
    .await;
    assert_eq!(raw.sets("foreign-0").await, ["waiting"]);
}

#[tokio::test]
async fn runs_of_another_release_are_cancelled_suspended_and_removed() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    for uid in ["cancelled", "suspended", "removed"] {
        enqueue(&queue, uid, 0).await;
        raw.reformat(uid).await;
        assert_eq!(entry(&queue, uid).await.needs, LEVEL + 1);
    }
    assert!(queue.control("cancelled", Control { cancelled: Some("{}"), ..CONTINUE }).await.unwrap());
    assert!(queue.control("suspended", Control { suspended: true, ..CONTINUE }).await.unwrap());
    queue.remove("removed").await.unwrap();
    for (uid, sets) in [("cancelled", &["failed"][..]), ("suspended", &["parked"]), ("removed", &[])] {
        assert_eq!(raw.sets(uid).await, sets, "{uid}");
    }
}

#[tokio::test]
async fn a_worker_claims_what_its_level_and_installation_allow() {
    let fingerprint = Fingerprint::parse;
    let name = unique("queue");
    let queue = named_queue(&name, LEASE);
    queue.identify(fingerprint("c1 * codex"));
    queue.enqueue(&NewRun { needs: 2, ..NewRun::new("newer", "{}") }).await.unwrap();
    enqueue(&queue, "plain", 0).await;
    for (level, installation, expected) in [
        (Level::without("guard".to_owned()), "c2 * codex", None),
        (Level::default(), "c1 * other", None),
        (Level::default(), "- n1 codex", None),
        (Level::without("guard".to_owned()), "c1 - codex", Some("plain")),
        (Level::without("guard".to_owned()), "- - codex", None),
        (Level::default(), "- - codex", Some("newer")),
    ] {
        let worker = named_queue(&name, LEASE).at_level(level);
        worker.identify(fingerprint(installation));
        let claimed = claim_one(&worker, "w").await.unwrap().ok();
        assert_eq!(claimed.as_ref().map(|claim| claim.uid.as_str()), expected, "{installation}");
        if let Some(claim) = claimed {
            let release = worker.finish(&claim.uid, claim.entry.epoch, Disposition::Completed, NOTHING).await;
            assert_eq!(release.unwrap(), FencedWrite::Applied);
        }
    }
}

#[tokio::test]
async fn an_unsupported_run_waits_for_the_level_that_it_needs() {
    let name = unique("queue");
    let queue = named_queue(&name, LEASE);
    enqueue(&queue, "a", 0).await;
    let run = claim(&queue, "w").await;
    let unsupported = build_release("a", run.entry.epoch, Disposition::Unsupported(LEVEL + 1), NOTHING);
    assert_eq!(queue.release_one(Release { attempts: None, ..unsupported }).await.unwrap(), FencedWrite::Applied);
    let entry = entry(&queue, "a").await;
    assert_eq!((entry.state, entry.needs, entry.attempts), (State::Waiting, LEVEL + 1, 0));
    assert!(claim_one(&queue, "w").await.unwrap().is_err());
    let newer = named_queue(&name, LEASE).at_level(Level { number: LEVEL + 1, lacks: None });
    assert_eq!(claim(&newer, "w").await.uid, "a");
    newer.renew("w", &[]).await.unwrap();
    queue.renew("old", &[]).await.unwrap();
    assert_eq!(queue.highest_level().await.unwrap(), Some(LEVEL + 1));
    newer.retire("w").await.unwrap();
    assert_eq!(queue.highest_level().await.unwrap(), Some(LEVEL));
}

#[tokio::test]
async fn a_queue_belongs_to_one_installation() {
    let owner = |lease: &str, print: &str| Owner { fingerprint: Fingerprint::parse(print), lease: lease.to_owned() };
    let (queue, other) = (queue(LEASE), owner("ns/two", "c2 * codex"));
    let mine = owner("ns/op", "c1 * codex");
    queue.identify(other.fingerprint.clone());
    assert_eq!(queue.owner().await.unwrap(), None);
    assert!(queue.own(&mine, None).await.unwrap());
    assert_eq!(queue.owner().await.unwrap(), Some(mine.clone()));
    assert!(!queue.own(&other, None).await.unwrap(), "the owner was recorded in the meantime");
    assert!(matches!(queue.enqueue(&NewRun::new("a", "{}")).await, Err(Error::Owned)));
    assert!(queue.own(&other, Some(&mine)).await.unwrap(), "adopted");
    assert!(enqueue(&queue, "a", 0).await);
}
