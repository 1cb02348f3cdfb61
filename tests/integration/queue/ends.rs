//! The ends of runs: releases, rollbacks and removals.

use std::collections::HashMap;

use k8s_openapi::jiff::Timestamp;
use redis::AsyncCommands;
use sync_operator::{
    domain::run::{LeaseState, State},
    queue::{Candidates, Control, Disposition, FencedWrite, NewRun},
};

use super::support::{
    CONTINUE, LEASE, NOTHING, Progress, Raw, ReleaseOne, an_hour_ago, build_release, claim, enqueue, entry,
    named_queue, queue,
};
use crate::support::{claim_one, unique};

#[tokio::test]
async fn ended_runs_stay_until_a_controller_forgets_them() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    for uid in ["old", "young"] {
        enqueue(&queue, uid, 0).await;
        let run = claim(&queue, "w").await;
        assert_eq!(
            queue.finish(uid, run.entry.epoch, Disposition::Completed, NOTHING).await.unwrap(),
            FencedWrite::Applied
        );
        let key = raw.key(&format!("run:{uid}"));
        assert_eq!(raw.connection.pttl::<_, i64>(key).await.unwrap(), -1, "the run does not expire");
        if uid == "old" {
            raw.set_score("completed", "old", 1).await;
        }
    }
    let long_ago = Timestamp::from_millisecond(an_hour_ago()).unwrap();
    let old = queue.finished_before(long_ago).await.unwrap();
    assert_eq!(old, ["old"]);
    assert_eq!(queue.remove_unfinished(&old).await.unwrap(), 0, "the run has ended");
    assert_eq!(queue.remove_finished(&old).await.unwrap(), 1);
    assert_eq!(queue.finished().await.unwrap(), ["young"]);
    assert!(raw.run("old").await.is_empty());
}

#[tokio::test]
async fn a_rolled_back_run_ends_when_its_worker_reports_it_twice() {
    let name = unique("rollback");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    for (uid, end) in [("failed", Disposition::Failed("why".to_owned())), ("cancelled", Disposition::Released)] {
        queue.enqueue(&NewRun { rollback: true, ..NewRun::new(uid, "{}") }).await.unwrap();
        let first = claim(&queue, "w").await;
        assert_eq!(first.entry.outcome, None);
        if uid == "cancelled" {
            let control = Control { suspended: true, cancelled: Some("why"), ..CONTINUE };
            assert!(queue.control(uid, control).await.unwrap());
        }
        assert_eq!(queue.finish(uid, first.entry.epoch, end, NOTHING).await.unwrap(), FencedWrite::Applied);
        let waiting = entry(&queue, uid).await;
        assert_eq!((waiting.state, waiting.outcome.as_deref()), (State::Waiting, Some("why")));
        // Neither a cancellation nor a lost worker ends the rollback.
        let control = Control { suspended: true, cancelled: Some("else"), ..CONTINUE };
        assert!(queue.control(uid, control).await.unwrap());
        for lost in 1..=7 {
            let again = claim(&queue, "w").await;
            assert_eq!((again.entry.outcome.as_deref(), again.entry.recoveries), (Some("why"), lost - 1));
            assert_eq!(queue.checkpoint(uid, again.entry.epoch, "c").await.unwrap(), LeaseState::Held);
            raw.set(uid, "stalls", i64::from(lost)).await;
            raw.set_score("active", uid, 1).await;
            assert_eq!(queue.reap("stalled").await.unwrap(), 1);
            let state = entry(&queue, uid).await.state;
            assert_eq!(state, if lost > 4 { State::Delayed } else { State::Waiting });
            if state == State::Delayed {
                raw.set_score("delayed", uid, 1).await;
            }
        }
        let last = claim(&queue, "w").await;
        let disposition = Disposition::Failed("why, and restored".to_owned());
        assert_eq!(queue.finish(uid, last.entry.epoch, disposition, NOTHING).await.unwrap(), FencedWrite::Applied);
        let ended = entry(&queue, uid).await;
        assert_eq!((ended.state, ended.outcome.as_deref()), (State::Failed, Some("why, and restored")));
    }
}

#[tokio::test]
async fn a_run_that_never_began_is_not_rolled_back() {
    let queue = queue(LEASE);
    queue.enqueue(&NewRun { rollback: true, ..NewRun::new("a", "{}") }).await.unwrap();
    let control = Control { cancelled: Some("why"), ..CONTINUE };
    assert!(queue.control("a", control).await.unwrap());
    assert_eq!(entry(&queue, "a").await.state, State::Failed);
}

#[tokio::test]
async fn a_run_can_be_removed_in_every_state() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    for set in ["delayed", "active", "completed", "failed", "waiting"] {
        enqueue(&queue, set, 0).await;
        if set != "waiting" {
            let epoch = claim(&queue, "w").await.entry.epoch;
            let done = match set {
                "delayed" => queue.retry(set, epoch, LEASE, NOTHING).await.unwrap(),
                "completed" => queue.finish(set, epoch, Disposition::Completed, NOTHING).await.unwrap(),
                "failed" => queue.finish(set, epoch, Disposition::Failed("{}".to_owned()), NOTHING).await.unwrap(),
                _ => FencedWrite::Applied,
            };
            assert_eq!(done, FencedWrite::Applied);
        }
        assert_eq!(raw.sets(set).await, [set]);
        queue.remove(set).await.unwrap();
        assert!(raw.sets(set).await.is_empty() && raw.run(set).await.is_empty(), "{set}");
    }
    assert!(queue.unfinished().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_finished_run_stays_readable_and_is_not_run_again() {
    let queue = queue(LEASE);
    let progress = Progress { checkpoint: r#"{"at":9}"#, history: r#"[{"number":1}]"#, attempts: 1 };
    for (uid, disposition, state, outcome) in [
        ("a", Disposition::Completed, State::Completed, None),
        ("b", Disposition::Failed(r#"{"why":2}"#.to_owned()), State::Failed, Some(r#"{"why":2}"#)),
    ] {
        enqueue(&queue, uid, 0).await;
        let run = claim(&queue, "w").await;
        assert_eq!(queue.finish(uid, run.entry.epoch, disposition, progress).await.unwrap(), FencedWrite::Applied);
        let ended = entry(&queue, uid).await;
        assert_eq!((ended.state, ended.outcome.as_deref(), ended.attempts), (state, outcome, 1));
        assert_eq!((ended.checkpoint.as_deref(), ended.history.as_str()), (Some(r#"{"at":9}"#), progress.history));
        assert!(ended.finished >= ended.started && ended.worker.as_deref() == Some("w"));
        assert!(!enqueue(&queue, uid, 1000).await);
        assert_eq!(entry(&queue, uid).await, ended);
        assert_eq!(claim_one(&queue, "w").await.unwrap(), Err(None));
    }
}

#[tokio::test]
async fn a_worker_releases_several_runs_in_one_call() {
    let queue = queue(LEASE);
    for uid in ["done", "failed", "later", "back", "removed"] {
        enqueue(&queue, uid, 0).await;
    }
    let claims = queue.claim("w", 5, &mut Candidates::default()).await.unwrap().unwrap();
    let epochs: HashMap<&str, u64> = claims.iter().map(|claim| (claim.uid.as_str(), claim.entry.epoch)).collect();
    queue.remove("removed").await.unwrap();
    let runs = [
        build_release("done", epochs["done"], Disposition::Completed, NOTHING),
        build_release("failed", epochs["failed"] - 1, Disposition::Completed, NOTHING),
        build_release("removed", epochs["removed"], Disposition::Completed, NOTHING),
        build_release("failed", epochs["failed"], Disposition::Failed("{}".to_owned()), NOTHING),
        build_release("later", epochs["later"], Disposition::Retry(LEASE), NOTHING),
        build_release("back", epochs["back"], Disposition::Released, NOTHING),
        build_release("done", epochs["done"], Disposition::Retry(LEASE), NOTHING),
    ];
    let (done, lost) = (FencedWrite::Applied, FencedWrite::LeaseLost);
    assert_eq!(queue.release(&runs).await.unwrap(), [done, lost, lost, done, done, done, lost]);
    for (uid, state) in
        [("done", State::Completed), ("failed", State::Failed), ("later", State::Delayed), ("back", State::Waiting)]
    {
        assert_eq!(entry(&queue, uid).await.state, state, "{uid}");
    }
    assert_eq!(queue.get("removed").await.unwrap(), None);
    assert!(queue.release([]).await.unwrap().is_empty());
}
