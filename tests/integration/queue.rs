//! The queue on a real Redis.

use std::{collections::HashMap, time::Duration};

use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use redis::{AsyncCommands, AsyncConnectionConfig, aio::MultiplexedConnection};
use sync_operator::{
    domain::{
        installation::{Fingerprint, Owner},
        needs::{LEVEL, Level},
        rate_limit::Reservation,
        run::{LeaseState, State},
    },
    queue::{
        Attempts, Candidates, Claim, Control, Disposition, Entry, Error, FencedWrite, NewRun, Queue, Release, Renewed,
        Repaired, RunChanges,
    },
};
use tokio::{
    runtime::Builder,
    time::{Instant, timeout},
};

use crate::{
    servers::Redis,
    support::{PATIENCE, claim_one, eventually, unique, variable},
};

/// The data that a worker writes when it releases a run.
#[derive(Clone, Copy)]
struct Progress<'a> {
    checkpoint: &'a str,
    history: &'a str,
    attempts: u32,
}

const NOTHING: Progress<'_> = Progress { checkpoint: "{}", history: "[]", attempts: 0 };
const LEASE: Duration = Duration::from_secs(30);
/// More runs than the queue reads in one claim or reap.
const MORE_THAN_A_SCAN: usize = 20;

fn queue(lease: Duration) -> Queue {
    named_queue(&unique("queue"), lease)
}

fn named_queue(name: &str, lease: Duration) -> Queue {
    Queue::new(&variable("REDIS_URL"), name, lease).unwrap()
}

/// The sets a run can be in.
const SETS: [&str; 6] = ["waiting", "delayed", "active", "parked", "completed", "failed"];

/// The data of a queue in Redis, read without the queue.
struct Raw {
    connection: MultiplexedConnection,
    prefix: String,
}

impl Raw {
    async fn of(queue: &str) -> Self {
        let client = redis::Client::open(variable("REDIS_URL")).unwrap();
        // The default timeout is at most a second, which a busy machine exceeds.
        let patient = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE));
        let patient = patient.set_response_timeout(Some(PATIENCE));
        let connection = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        Self { connection, prefix: format!("{{sync:{queue}}}") }
    }

    fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    async fn run(&mut self, uid: &str) -> HashMap<String, String> {
        let key = self.key(&format!("run:{uid}"));
        self.connection.hgetall(key).await.unwrap()
    }

    async fn score(&mut self, set: &str, uid: &str) -> Option<f64> {
        let key = self.key(set);
        self.connection.zscore(key, uid).await.unwrap()
    }

    /// Sets the format of a run to that of another release.
    async fn reformat(&mut self, uid: &str) {
        let key = self.key(&format!("run:{uid}"));
        self.connection.hset::<_, _, _, ()>(key, "format", "9").await.unwrap();
    }

    /// The sets a run is in.
    async fn sets(&mut self, uid: &str) -> Vec<&'static str> {
        self.read_runs(&[uid]).await.remove(0).0
    }

    /// The sets and hashes of runs, read in one transaction.
    async fn read_runs(&mut self, uids: &[&str]) -> Vec<(Vec<&'static str>, HashMap<String, String>)> {
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        for uid in uids {
            for set in SETS {
                pipeline.zscore(self.key(set), *uid);
            }
            pipeline.hgetall(self.key(&format!("run:{uid}")));
        }
        let answers: Vec<redis::Value> = pipeline.query_async(&mut self.connection).await.unwrap();
        let read = |answers: &[redis::Value]| {
            let (hash, scores) = answers.split_last().unwrap();
            let found = SETS.into_iter().zip(scores).filter(|(_, score)| **score != redis::Value::Nil);
            (found.map(|(set, _)| set).collect(), redis::from_redis_value(hash.clone()).unwrap())
        };
        answers.chunks(SETS.len() + 1).map(read).collect()
    }

    /// Removes a run from every set.
    async fn remove_from_sets(&mut self, uid: &str) {
        let mut pipeline = redis::pipe();
        for set in SETS {
            pipeline.zrem(self.key(set), uid);
        }
        pipeline.exec_async(&mut self.connection).await.unwrap();
    }

    async fn lose(&mut self, uid: &str) {
        let key = self.key(&format!("run:{uid}"));
        self.connection.del::<_, ()>(key).await.unwrap();
    }

    async fn set_score(&mut self, set: &str, uid: &str, score: i64) {
        let key = self.key(set);
        self.connection.zadd::<_, _, _, ()>(key, uid, score).await.unwrap();
    }

    async fn remove_from_set(&mut self, set: &str, uid: &str) {
        let key = self.key(set);
        self.connection.zrem::<_, _, ()>(key, uid).await.unwrap();
    }

    async fn unset(&mut self, uid: &str, field: &str) {
        let key = self.key(&format!("run:{uid}"));
        self.connection.hdel::<_, _, ()>(key, field).await.unwrap();
    }

    async fn set(&mut self, uid: &str, field: &str, value: i64) {
        let key = self.key(&format!("run:{uid}"));
        self.connection.hset::<_, _, _, ()>(key, field, value).await.unwrap();
    }

    /// Deletes everything of this queue, and of no other: Redis lost its data.
    async fn lose_everything(&mut self) {
        let keys: Vec<String> = self.connection.keys(format!("{}:*", self.prefix)).await.unwrap();
        self.connection.del::<_, ()>(keys).await.unwrap();
    }
}

fn build_release(uid: &str, epoch: u64, disposition: Disposition, progress: Progress<'_>) -> Release {
    let attempts = Some(Attempts { count: progress.attempts, history: progress.history.to_owned() });
    Release { uid: uid.to_owned(), epoch, disposition, checkpoint: progress.checkpoint.to_owned(), attempts }
}

/// Releases one run.
trait ReleaseOne {
    async fn release_one(&self, run: Release) -> Result<FencedWrite, Error>;

    async fn finish(
        &self,
        uid: &str,
        epoch: u64,
        disposition: Disposition,
        progress: Progress<'_>,
    ) -> Result<FencedWrite, Error> {
        self.release_one(build_release(uid, epoch, disposition, progress)).await
    }

    async fn retry(
        &self,
        uid: &str,
        epoch: u64,
        delay: Duration,
        progress: Progress<'_>,
    ) -> Result<FencedWrite, Error> {
        self.release_one(build_release(uid, epoch, Disposition::Retry(delay), progress)).await
    }

    async fn hold(&self, uid: &str, epoch: u64, number: u64) -> Result<FencedWrite, Error> {
        let progress = Progress { checkpoint: "held", ..NOTHING };
        self.release_one(Release { attempts: None, ..build_release(uid, epoch, Disposition::Held(number), progress) })
            .await
    }

    async fn release_unfinished(&self, uid: &str, epoch: u64, checkpoint: &str) -> Result<FencedWrite, Error> {
        let progress = Progress { checkpoint, ..NOTHING };
        self.release_one(Release { attempts: None, ..build_release(uid, epoch, Disposition::Released, progress) }).await
    }
}

impl ReleaseOne for Queue {
    async fn release_one(&self, run: Release) -> Result<FencedWrite, Error> {
        let answers = self.release([&run]).await?;
        assert_eq!(answers.len(), 1);
        Ok(answers[0])
    }
}

async fn enqueue(queue: &Queue, uid: &str, priority: i32) -> bool {
    queue.enqueue(&NewRun { priority, ..NewRun::new(uid, "{}") }).await.unwrap()
}

async fn claim(queue: &Queue, worker: &str) -> Claim {
    claim_one(queue, worker).await.unwrap().unwrap()
}

async fn entry(queue: &Queue, uid: &str) -> Entry {
    queue.get(uid).await.unwrap().unwrap()
}

/// Waits until the reaper has found `count` runs.
async fn reap(queue: &Queue, count: usize) {
    let mut reaped = 0;
    eventually("the leases end", async || {
        reaped += queue.reap(r#"{"why":1}"#).await.unwrap();
        (reaped >= count).then_some(())
    })
    .await;
    assert_eq!(reaped, count);
}

async fn assert_fenced(queue: &Queue, uid: &str, epoch: u64) {
    let before = queue.get(uid).await.unwrap();
    assert_eq!(queue.checkpoint(uid, epoch, "x").await.unwrap(), LeaseState::Lost);
    assert_eq!(queue.release_unfinished(uid, epoch, "x").await.unwrap(), FencedWrite::LeaseLost);
    assert_eq!(queue.retry(uid, epoch, Duration::ZERO, NOTHING).await.unwrap(), FencedWrite::LeaseLost);
    assert_eq!(queue.finish(uid, epoch, Disposition::Completed, NOTHING).await.unwrap(), FencedWrite::LeaseLost);
    assert_eq!(
        queue.finish(uid, epoch, Disposition::Failed("x".to_owned()), NOTHING).await.unwrap(),
        FencedWrite::LeaseLost
    );
    assert_eq!(queue.renew("w", &[(uid.to_owned(), epoch)]).await.unwrap().lost, [uid]);
    assert_eq!(queue.get(uid).await.unwrap(), before, "a refused write changes nothing");
}

#[tokio::test]
async fn the_first_key_of_the_dashboard_is_the_key_of_all() {
    let queue = queue(LEASE);
    let proposals: Vec<[u8; 32]> = (0..20).map(|number| [number; 32]).collect();
    let keys = join_all(proposals.iter().map(|proposal| queue.dashboard_key(proposal))).await;
    let keys: Vec<_> = keys.into_iter().map(Result::unwrap).collect();
    assert!(proposals.iter().any(|proposal| keys[0] == proposal) && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let mut raw = Raw::of(queue.name()).await;
    let key = raw.key("dashboard_key");
    raw.connection.del::<_, ()>(key).await.unwrap();
    assert_eq!(queue.dashboard_key(&keys[0]).await.unwrap(), keys[0], "a process that runs stores it again");
}

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
async fn every_way_to_become_claimable_notifies_a_worker() {
    let queue = queue(Duration::from_millis(200));
    for event in ["enqueue", "release", "retry", "lost"] {
        let (mut notifier, start) = (queue.work_notifier(), Instant::now());
        if event != "enqueue" {
            enqueue(&queue, event, 0).await;
            notifier.wait(PATIENCE).await.unwrap();
        }
        let waiter = tokio::spawn(async move { notifier.wait(PATIENCE).await });
        let done = match event {
            "enqueue" => {
                enqueue(&queue, event, 0).await;
                FencedWrite::Applied
            }
            "release" => queue.release_unfinished(event, claim(&queue, "w").await.entry.epoch, "{}").await.unwrap(),
            "retry" => queue.retry(event, claim(&queue, "w").await.entry.epoch, LEASE, NOTHING).await.unwrap(),
            _ => {
                claim(&queue, "w").await;
                reap(&queue, 1).await;
                FencedWrite::Applied
            }
        };
        assert_eq!(done, FencedWrite::Applied);
        waiter.await.unwrap().unwrap();
        assert!(start.elapsed() < PATIENCE / 2, "{event} notifies: {:?}", start.elapsed());
        queue.remove(event).await.unwrap();
    }
}

#[tokio::test]
async fn a_run_that_a_notification_names_is_claimed_in_one_call() {
    let redis = Redis::start(&[]);
    redis.connect().await;
    let queue = Queue::new(&redis.url(), &unique("queue"), LEASE).unwrap();
    let scripts = async || {
        let stats: String = redis.ask("INFO commandstats").await;
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|calls| calls.split(',').next()).map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    let (mut notifier, mut candidates) = (queue.work_notifier(), Candidates::default());
    // The first claim also loads the script.
    for (uid, most) in [("a", None), ("b", Some(1))] {
        enqueue(&queue, uid, 0).await;
        candidates.add(notifier.wait(PATIENCE).await.unwrap().unwrap());
        let before = scripts().await;
        let claims = queue.claim("w", 1, &mut candidates).await.unwrap().unwrap();
        assert_eq!(claims.iter().map(|claim| claim.uid.as_str()).collect::<Vec<_>>(), [uid]);
        let calls = scripts().await - before;
        assert!(most.is_none_or(|most| calls == most), "{calls} calls for {uid}");
    }
}

#[tokio::test]
async fn each_run_wakes_one_waiting_worker() {
    let queue = queue(LEASE);
    let start = Instant::now();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let mut notifier = queue.work_notifier();
            tokio::spawn(async move { notifier.wait(PATIENCE).await })
        })
        .collect();
    for uid in ["a", "b", "c"] {
        enqueue(&queue, uid, 0).await;
    }
    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
    assert!(start.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn a_wait_for_work_ends_after_its_limit() {
    let queue = queue(LEASE);
    timeout(PATIENCE / 2, queue.work_notifier().wait(Duration::from_millis(50))).await.unwrap().unwrap();
}

#[tokio::test]
async fn scripts_are_loaded_again_after_a_script_flush() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    let mut flush = async || redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut raw.connection).await.unwrap();
    flush().await;
    enqueue(&queue, "a", 0).await;
    flush().await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    flush().await;
    assert_eq!(queue.renew("w", &[("a".to_owned(), epoch)]).await.unwrap(), Renewed::default());
    flush().await;
    assert_eq!(queue.checkpoint("a", epoch, "{}").await.unwrap(), LeaseState::Held);
    flush().await;
    assert_eq!(queue.finish("a", epoch, Disposition::Completed, NOTHING).await.unwrap(), FencedWrite::Applied);
    assert_eq!(entry(&queue, "a").await.state, State::Completed);
}

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

#[tokio::test]
async fn stamps_do_not_go_back_with_the_clock_of_redis() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    let key = raw.key("clock");
    let minutes = |minutes: i64| Timestamp::now().as_millisecond() + minutes * 60_000;
    for (uid, last, ahead) in [("first", 0, false), ("hour", minutes(60), true), ("day", minutes(24 * 60), false)] {
        raw.connection.set::<_, _, ()>(&key, last).await.unwrap();
        enqueue(&queue, uid, 0).await;
        let run = claim(&queue, "w").await;
        let started = run.entry.started.unwrap();
        assert_eq!((started, started.as_millisecond() > last), (run.at, ahead || last == 0), "{uid}");
        assert_eq!(started.as_millisecond() > minutes(50), ahead, "{uid}");
    }
    // The start time in Redis is tomorrow.
    let tomorrow = Timestamp::from_millisecond(minutes(24 * 60)).unwrap();
    queue.enqueue(&NewRun { started: Some(tomorrow), ..NewRun::new("tomorrow", "{}") }).await.unwrap();
    let run = claim(&queue, "w").await;
    assert_eq!(run.entry.started, Some(run.at));
}

async fn claim_many(queue: &Queue, worker: &str, most: usize, candidates: &mut Candidates) -> Vec<String> {
    let claims = queue.claim(worker, most, candidates).await.unwrap().unwrap_or_default();
    claims.into_iter().map(|claim| claim.uid).collect()
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

const CONTINUE: Control<'_> = Control { suspended: false, cancelled: None, priority: 0, approved: None };
const SUSPEND: Control<'_> = Control { suspended: true, ..CONTINUE };
const CANCEL: Control<'_> = Control { cancelled: Some(r#"{"why":2}"#), ..CONTINUE };

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

fn crowd_uids(numbers: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    numbers.map(|number| format!("crowd-{number:05}"))
}

/// Enqueues runs of one namespace.
async fn crowd(queue: &Queue, numbers: std::ops::Range<usize>) {
    let uids: Vec<String> = crowd_uids(numbers).collect();
    let runs: Vec<_> = uids.iter().map(|uid| NewRun { namespace: "crowd", ..NewRun::new(uid, "{}") }).collect();
    for run in join_all(runs.iter().map(|run| queue.enqueue(run))).await {
        assert!(run.unwrap());
    }
}

async fn enqueue_guest(queue: &Queue, uid: &str) {
    assert!(queue.enqueue(&NewRun { namespace: "guest", ..NewRun::new(uid, "{}") }).await.unwrap());
}

/// The number of claims of runs of the crowd before that of the run.
async fn claims_before(queue: &Queue, uid: &str) -> usize {
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

/// Puts a run into the queue, and holds it because of `number` documents.
async fn hold(queue: &Queue, uid: &str, number: u64) {
    enqueue(queue, uid, 0).await;
    let epoch = claim(queue, "w").await.entry.epoch;
    assert_eq!(queue.hold(uid, epoch, number).await.unwrap(), FencedWrite::Applied);
}

const fn approve(number: u64) -> Control<'static> {
    Control { approved: Some(number), ..CONTINUE }
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

const HOUR: Duration = Duration::from_secs(3600);

fn an_hour_ago() -> i64 {
    Timestamp::now().as_millisecond() - HOUR.as_millis() as i64
}

async fn oldest(queue: &Queue) -> Duration {
    queue.depth().await.unwrap().oldest
}

/// Asserts that a time is an hour, and at most the duration of the test longer.
fn assert_hour(time: Duration) {
    assert!(time >= HOUR && time < HOUR + PATIENCE, "{time:?}");
}

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

/// Follows the changes of the queue from now on.
async fn follow(queue: &Queue) -> (Vec<String>, RunChanges) {
    let mut changes = queue.changes();
    let mut first = tokio::spawn(async move {
        let changed = changes.next().await;
        (changed, changes)
    });
    // The first call determines the start of the changes, so runs are enqueued until it returns.
    eventually("the first change is reported", async || {
        enqueue(queue, &unique("run"), -1000).await;
        timeout(Duration::from_millis(200), &mut first).await.ok().map(Result::unwrap)
    })
    .await
}

#[tokio::test]
async fn changes_between_two_calls_are_reported() {
    let queue = queue(LEASE);
    enqueue(&queue, "before", 0).await;
    let (changed, mut changes) = follow(&queue).await;
    assert!(!changed.contains(&"before".to_owned()), "changes before the first call are not reported: {changed:?}");
    let expected: Vec<String> = (0..20).map(|run| format!("between-{run}")).collect();
    for uid in &expected {
        enqueue(&queue, uid, 0).await;
    }
    let mut changed = Vec::new();
    while changed.len() < expected.len() {
        let next = timeout(PATIENCE, changes.next()).await.unwrap();
        changed.extend(next.into_iter().filter(|uid| uid.starts_with("between")));
    }
    assert_eq!(changed, expected, "each once, and in order");
}

#[tokio::test]
async fn every_transition_is_reported() {
    let queue = queue(Duration::from_millis(500));
    let (_, mut changes) = follow(&queue).await;
    let mut await_change = async |what: &str| {
        while !timeout(PATIENCE / 2, changes.next())
            .await
            .unwrap_or_else(|_| panic!("{what} is not reported"))
            .contains(&"a".to_owned())
        {}
    };
    enqueue(&queue, "a", 0).await;
    await_change("enqueue").await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    await_change("claim").await;
    assert_eq!(queue.checkpoint("a", epoch, "{}").await.unwrap(), LeaseState::Held);
    await_change("checkpoint").await;
    assert_eq!(queue.release_unfinished("a", epoch, "{}").await.unwrap(), FencedWrite::Applied);
    await_change("release").await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    await_change("claim").await;
    assert_eq!(queue.retry("a", epoch, Duration::ZERO, NOTHING).await.unwrap(), FencedWrite::Applied);
    await_change("retry").await;
    claim(&queue, "w").await;
    await_change("claim").await;
    reap(&queue, 1).await;
    await_change("a lost worker").await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    await_change("claim").await;
    assert_eq!(queue.finish("a", epoch, Disposition::Completed, NOTHING).await.unwrap(), FencedWrite::Applied);
    await_change("finish").await;
}

/// The uids of the runs in tests of repairs.
fn uids() -> impl Iterator<Item = String> {
    ["a", "b", "c", "waiting", "active", "completed", "parked", "delayed", "failed"].into_iter().map(str::to_owned)
}

const UIDS: [&str; 3] = ["a", "b", "c"];
/// Namespaces of these runs.
const NAMESPACES: [&str; 3] = ["crowd", "crowd", "other"];
const WORKERS: [&str; 2] = ["w1", "w2"];

/// The way in which a worker releases a run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ReleaseKind {
    Completed,
    Failed,
    Retry,
    Release,
    /// Held because of this number of documents.
    Hold(u64),
}

impl ReleaseKind {
    fn costs_no_attempt(self) -> bool {
        matches!(self, Self::Release | Self::Hold(_))
    }
}

/// An operation on a run, by its index. `age` selects the epoch: 0 is the newest claim, 1 the claim before, and so on,
/// including claims before the run was removed and enqueued again.
#[derive(Clone, Debug)]
enum Operation {
    Enqueue {
        run: usize,
        priority: i32,
        rollback: bool,
    },
    Claim {
        worker: usize,
    },
    Checkpoint {
        run: usize,
        age: usize,
    },
    /// A worker releases runs in one call.
    Release {
        runs: Vec<(usize, usize, ReleaseKind)>,
    },
    Renew {
        run: usize,
        age: usize,
    },
    Remove {
        run: usize,
    },
    Control {
        run: usize,
        suspended: bool,
        cancelled: bool,
        priority: i32,
        approved: Option<u64>,
    },
    /// The run is missing in all sets.
    Misplace {
        run: usize,
    },
    Repair,
    /// The lease of the run ends, and it is reaped.
    Expire {
        run: usize,
    },
    /// The run's backoff is over.
    Due {
        run: usize,
    },
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let age = || prop_oneof![4 => Just(0_usize), 1 => 1..4_usize];
    let run = || 0..UIDS.len();
    let how = prop_oneof![
        2 => Just(ReleaseKind::Retry),
        2 => Just(ReleaseKind::Release),
        2 => (1..3_u64).prop_map(ReleaseKind::Hold),
        1 => Just(ReleaseKind::Completed),
        1 => Just(ReleaseKind::Failed),
    ];
    let operation = prop_oneof![
        4 => (run(), -1..=1, any::<bool>())
            .prop_map(|(run, priority, rollback)| Operation::Enqueue { run, priority, rollback }),
        6 => (0..WORKERS.len()).prop_map(|worker| Operation::Claim { worker }),
        2 => (run(), age()).prop_map(|(run, age)| Operation::Checkpoint { run, age }),
        5 => proptest::collection::vec((run(), age(), how), 1..4).prop_map(|runs| Operation::Release { runs }),
        1 => (run(), age()).prop_map(|(run, age)| Operation::Renew { run, age }),
        1 => run().prop_map(|run| Operation::Remove { run }),
        4 => (run(), any::<bool>(), prop::bool::weighted(0.2), -1..=1, prop::option::of(1..3_u64))
            .prop_map(|(run, suspended, cancelled, priority, approved)| Operation::Control {
                run, suspended, cancelled, priority, approved,
            }),
        1 => run().prop_map(|run| Operation::Misplace { run }),
        1 => Just(Operation::Repair),
        2 => run().prop_map(|run| Operation::Expire { run }),
        2 => run().prop_map(|run| Operation::Due { run }),
    ];
    proptest::collection::vec(operation, 0..40)
}

/// The expected state of the queue.
#[derive(Default)]
struct Model {
    runs: [Option<ModelRun>; UIDS.len()],
    /// All epochs of each run.
    epochs: [Vec<u64>; UIDS.len()],
    /// The latest tag that was claimed of each priority.
    virtual_times: HashMap<i32, u64>,
    /// The next tag of each flow: priority, namespace, and whether its runs were claimed before.
    flows: HashMap<(i32, &'static str, bool), u64>,
    tags: u64,
}

#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is one field of the hash")]
struct ModelRun {
    state: State,
    priority: i32,
    /// Negated priority and tag, since the run waited.
    rank: Option<(i32, u64)>,
    attempts: u32,
    recoveries: u32,
    stalls: u32,
    checkpoint: Option<usize>,
    suspended: bool,
    cancelled: bool,
    /// Number of documents of its last hold.
    held: Option<u64>,
    approved: Option<u64>,
    /// Its backoff is not over.
    backing_off: bool,
    /// Before it ends as failed, it is claimed once more to be rolled back.
    rollback: bool,
    /// It has failed, and only its rollback is left.
    rolled_back: bool,
    /// It was claimed.
    started: bool,
    /// It is in the set of its state.
    placed: bool,
}

impl ModelRun {
    /// A run that does not wait yet.
    fn new(priority: i32, rollback: bool) -> Self {
        Self {
            state: State::Parked,
            priority,
            rank: None,
            attempts: 0,
            recoveries: 0,
            stalls: 0,
            checkpoint: None,
            suspended: false,
            cancelled: false,
            held: None,
            approved: None,
            backing_off: false,
            rollback,
            rolled_back: false,
            started: false,
            placed: true,
        }
    }

    /// Its worker must release it.
    fn is_recalled(&self) -> bool {
        (self.suspended || self.cancelled) && !self.rolled_back
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, State::Completed | State::Failed)
    }
}

impl Model {
    /// An epoch to write with, and whether it holds the run.
    fn epoch(&self, run: usize, age: usize) -> (u64, bool) {
        let newest_first = self.epochs[run].iter().rev().nth(age);
        let active = self.runs[run].is_some_and(|run| run.state == State::Active);
        newest_first.map_or((0, false), |epoch| (*epoch, active && age == 0))
    }

    fn run(&mut self, run: usize) -> &mut ModelRun {
        self.runs[run].as_mut().unwrap()
    }

    fn next(&self) -> Option<usize> {
        let runs = self.runs.iter().enumerate().filter_map(|(index, run)| Some((index, (*run)?)));
        let waiting = runs.filter(|(_, run)| run.placed && run.state == State::Waiting);
        waiting.min_by_key(|(index, run)| (run.rank, *index)).map(|(index, _)| index)
    }

    /// Makes the delayed runs wait whose backoff is over.
    fn promote(&mut self) {
        for index in 0..UIDS.len() {
            let run = self.runs[index];
            if run.is_some_and(|run| run.placed && run.state == State::Delayed && !run.backing_off) {
                self.wait(index);
            }
        }
    }

    fn claim(&mut self, index: usize) {
        let run = self.run(index);
        (run.state, run.started) = (State::Active, true);
        if let Some((priority, tag)) = run.rank {
            let latest = self.virtual_times.entry(-priority).or_default();
            *latest = tag.max(*latest);
        }
    }

    fn fail(&mut self, index: usize) {
        let run = self.run(index);
        run.placed = true;
        if run.rollback && run.started && !run.rolled_back {
            run.rolled_back = true;
            run.backing_off = false;
            run.stalls = 0;
            self.settle(index);
        } else {
            self.enter(index, State::Failed);
        }
    }

    /// Sets the state of a run without a worker.
    fn settle(&mut self, index: usize) {
        let run = self.run(index);
        run.placed = true;
        if run.cancelled && !run.rolled_back {
            self.fail(index);
        } else if (run.suspended || run.held > run.approved) && !run.rolled_back {
            self.enter(index, State::Parked);
        } else if run.backing_off {
            self.enter(index, State::Delayed);
        } else {
            self.wait(index);
        }
    }

    /// Puts runs into the sets of their states.
    fn repair(&mut self) {
        for index in 0..UIDS.len() {
            let Some(run) = self.runs[index].as_mut().filter(|run| !run.placed) else { continue };
            run.placed = true;
            if run.state != State::Active && !run.has_ended() {
                self.settle(index);
            }
        }
    }

    /// Sets a state other than waiting and active.
    fn enter(&mut self, index: usize, state: State) {
        if self.run(index).state == State::Waiting {
            self.return_tag(index);
        }
        self.run(index).state = state;
    }

    fn wait(&mut self, index: usize) {
        let run = *self.run(index);
        let keeps = matches!(run.state, State::Waiting | State::Active);
        if !keeps || run.rank.is_none_or(|(priority, _)| priority != -run.priority) {
            if run.state == State::Waiting {
                self.return_tag(index);
            }
            self.run(index).rank = Some(self.next_rank(index, run));
        }
        self.run(index).state = State::Waiting;
    }

    fn next_rank(&mut self, index: usize, run: ModelRun) -> (i32, u64) {
        self.tags += 1;
        let waiting = self.runs.iter().flatten().filter(|other| other.placed && other.state == State::Waiting);
        let ranks = waiting.filter_map(|other| other.rank).filter(|(priority, _)| *priority == -run.priority);
        let first = ranks.map(|(_, tag)| tag).min().unwrap_or(self.tags);
        let virtual_time = *self.virtual_times.entry(run.priority).or_insert(first);
        let next = self.flows.entry((run.priority, NAMESPACES[index], run.started)).or_default();
        let tag = virtual_time.max(*next);
        *next = tag + 1;
        (-run.priority, tag)
    }

    fn return_tag(&mut self, index: usize) {
        let run = *self.run(index);
        let Some((priority, tag)) = run.rank else { return };
        let next = self.flows.get_mut(&(-priority, NAMESPACES[index], run.started));
        if let Some(next) = next.filter(|next| **next == tag + 1) {
            *next = tag;
        }
    }
}

#[allow(clippy::too_many_lines, reason = "one arm for each operation")]
async fn apply(queue: &Queue, raw: &mut Raw, model: &mut Model, step: usize, operation: Operation) {
    let text = step.to_string();
    let progress = Progress { checkpoint: &text, history: "[]", attempts: step as u32 };
    match operation {
        Operation::Enqueue { run, priority, rollback } => {
            let new = NewRun { priority, rollback, namespace: NAMESPACES[run], ..NewRun::new(UIDS[run], "{}") };
            assert_eq!(queue.enqueue(&new).await.unwrap(), model.runs[run].is_none());
            if model.runs[run].is_none() {
                model.runs[run] = Some(ModelRun::new(priority, rollback));
                model.wait(run);
            }
        }
        Operation::Claim { worker } => {
            let claimed = claim_one(queue, WORKERS[worker]).await.unwrap();
            model.promote();
            assert_eq!(claimed.as_ref().ok().map(|run| run.uid.as_str()), model.next().map(|run| UIDS[run]));
            if let (Ok(claim), Some(run)) = (claimed, model.next()) {
                assert!(!model.epochs[run].contains(&claim.entry.epoch), "no epoch is used twice");
                assert_eq!(claim.entry.worker.as_deref(), Some(WORKERS[worker]));
                assert_eq!(claim.entry, entry(queue, UIDS[run]).await, "a claim returns the data in Redis");
                model.epochs[run].push(claim.entry.epoch);
                model.claim(run);
            }
        }
        Operation::Remove { run } => {
            queue.remove(UIDS[run]).await.unwrap();
            if model.runs[run].is_some_and(|run| run.state == State::Waiting) {
                model.return_tag(run);
            }
            model.runs[run] = None;
        }
        Operation::Renew { run, age } => {
            let (epoch, held) = model.epoch(run, age);
            let renewed = queue.renew(WORKERS[0], &[(UIDS[run].to_owned(), epoch)]).await.unwrap();
            let recalled = held && model.runs[run].is_some_and(|run| run.is_recalled());
            assert_eq!((renewed.lost.is_empty(), !renewed.recalled.is_empty()), (held, recalled));
            if let Some(run) = model.runs[run].as_mut().filter(|_| held) {
                run.placed = true;
            }
        }
        Operation::Checkpoint { run, age } => {
            let (epoch, held) = model.epoch(run, age);
            let answer = queue.checkpoint(UIDS[run], epoch, &text).await.unwrap();
            let Some(run) = model.runs[run].as_mut().filter(|_| held) else {
                assert_eq!(answer, LeaseState::Lost);
                return;
            };
            assert_eq!(answer, if run.is_recalled() { LeaseState::Recalled } else { LeaseState::Held });
            // Too early after the claim to be progress.
            run.checkpoint = Some(step);
        }
        Operation::Control { run, suspended, cancelled, priority, approved } => {
            let control = Control { suspended, cancelled: cancelled.then_some("{}"), priority, approved };
            let done = queue.control(UIDS[run], control).await.unwrap();
            let unfinished = model.runs[run].as_mut().filter(|run| !run.has_ended());
            assert_eq!(done, unfinished.is_some());
            if let Some(known) = unfinished {
                let before = (known.suspended, known.approved, known.cancelled, known.priority);
                known.suspended = suspended;
                known.approved = approved;
                known.cancelled |= cancelled;
                known.priority = priority;
                let is_changed = before != (known.suspended, known.approved, known.cancelled, known.priority);
                if known.state != State::Active && (is_changed || !known.placed) {
                    model.settle(run);
                }
            }
        }
        Operation::Misplace { run } => {
            raw.remove_from_sets(UIDS[run]).await;
            if let Some(run) = &mut model.runs[run] {
                run.placed = false;
            }
        }
        Operation::Repair => {
            let lost = model.runs.iter().flatten().filter(|run| !run.placed).count() as u64;
            assert_eq!(queue.repair(uids()).await.unwrap(), Repaired { mended: lost, foreign: 0 });
            model.repair();
        }
        Operation::Expire { run } => {
            let held = model.runs[run].as_mut().filter(|run| run.placed && run.state == State::Active);
            if held.is_some() {
                raw.set_score("active", UIDS[run], 1).await;
            }
            assert_eq!(queue.reap("{}").await.unwrap(), usize::from(held.is_some()));
            if let Some(lost) = held {
                lost.recoveries += 1;
                lost.stalls += 1;
                let is_stalled = lost.stalls > 5;
                lost.backing_off = is_stalled && lost.rolled_back;
                if is_stalled && !lost.rolled_back && !lost.is_recalled() {
                    model.fail(run);
                } else {
                    model.settle(run);
                }
            }
        }
        Operation::Due { run } => {
            if let Some(delayed) = model.runs[run].as_mut().filter(|run| run.placed && run.state == State::Delayed) {
                delayed.backing_off = false;
                raw.set_score("delayed", UIDS[run], 1).await;
                raw.set(UIDS[run], "retry_at", 1).await;
            }
        }
        Operation::Release { runs } => {
            let given: Vec<Release> = runs
                .iter()
                .map(|&(run, age, how)| {
                    let disposition = match how {
                        ReleaseKind::Completed => Disposition::Completed,
                        ReleaseKind::Failed => Disposition::Failed("{}".to_owned()),
                        ReleaseKind::Retry => Disposition::Retry(LEASE),
                        ReleaseKind::Release => Disposition::Released,
                        ReleaseKind::Hold(number) => Disposition::Held(number),
                    };
                    let run = build_release(UIDS[run], model.epoch(run, age).0, disposition, progress);
                    if how.costs_no_attempt() { Release { attempts: None, ..run } } else { run }
                })
                .collect();
            let answers = queue.release(&given).await.unwrap();
            assert_eq!(answers.len(), runs.len());
            for ((run, age, how), answer) in runs.into_iter().zip(answers) {
                let (_, held) = model.epoch(run, age);
                assert_eq!(answer, if held { FencedWrite::Applied } else { FencedWrite::LeaseLost });
                let Some(released) = model.runs[run].as_mut().filter(|_| held) else { continue };
                released.checkpoint = Some(step);
                released.backing_off = how == ReleaseKind::Retry;
                if !how.costs_no_attempt() {
                    released.attempts = step as u32;
                }
                match how {
                    ReleaseKind::Completed => (released.state, released.placed) = (State::Completed, true),
                    ReleaseKind::Failed => model.fail(run),
                    ReleaseKind::Retry | ReleaseKind::Release => model.settle(run),
                    ReleaseKind::Hold(number) => {
                        released.held = Some(number);
                        model.settle(run);
                    }
                }
            }
        }
    }
}

async fn assert_same(raw: &mut Raw, model: &Model) {
    for ((sets, hash), expected) in raw.read_runs(&UIDS).await.into_iter().zip(model.runs) {
        let state = expected.map(|run| match run.state {
            State::Waiting => "waiting",
            State::Delayed => "delayed",
            State::Active => "active",
            State::Parked => "parked",
            State::Completed => "completed",
            State::Failed => "failed",
        });
        let set = state.filter(|_| expected.is_some_and(|run| run.placed));
        assert_eq!(sets, set.into_iter().collect::<Vec<_>>(), "a run is in the set of its state only");
        let text = |name: &str| hash.get(name).map(String::as_str);
        let number = |name: &str| text(name).unwrap().parse().unwrap();
        let found = (!hash.is_empty()).then(|| {
            let (suspended, cancelled) = (text("suspended") == Some("1"), text("cancelled").is_some());
            assert_eq!(text("outcome").is_some(), expected.is_some_and(|run| run.rolled_back || run.has_ended()));
            (
                text("state"),
                number("attempts"),
                number("recoveries"),
                text("checkpoint").map(str::to_owned),
                suspended,
                cancelled,
            )
        });
        let expected = expected.map(|run| {
            let checkpoint = run.checkpoint.map(|step| step.to_string());
            (state, run.attempts, run.recoveries, checkpoint, run.suspended, run.cancelled)
        });
        assert_eq!(found, expected);
    }
    for (uid, expected) in UIDS.into_iter().zip(model.runs) {
        let waits = expected.is_some_and(|run| run.state == State::Waiting);
        assert_eq!(raw.score("due", uid).await.is_some(), waits, "the queue has the age of each waiting run");
    }
}

/// Asserts that the queue returns the state of the model.
async fn assert_readable(queue: &Queue, model: &Model) {
    for (uid, expected) in UIDS.into_iter().zip(model.runs) {
        let found = queue.get(uid).await.unwrap();
        assert_eq!(
            found.map(|run| (run.state, run.attempts, run.recoveries, run.checkpoint, run.suspended, run.cancelled)),
            expected.map(|run| {
                let checkpoint = run.checkpoint.map(|step| step.to_string());
                (run.state, run.attempts, run.recoveries, checkpoint, run.suspended, run.cancelled)
            })
        );
    }
}

/// After any history: enqueues many runs of one namespace, claims some, and enqueues one run of another namespace.
/// Returns the number of runs of the crowd that precede it. Runs of the history may precede it too, each once.
async fn crowd_before_guest(queue: &Queue, claims: usize) -> usize {
    crowd(queue, 0..12).await;
    for _ in 0..claims % 8 {
        claim(queue, WORKERS[0]).await;
    }
    enqueue_guest(queue, "guest").await;
    claims_before(queue, "guest").await
}

async fn play(operations: Vec<Operation>) {
    let name = unique("model");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    let mut model = Model::default();
    for (step, operation) in operations.into_iter().enumerate() {
        apply(&queue, &mut raw, &mut model, step, operation).await;
        assert_same(&mut raw, &model).await;
    }
    assert_readable(&queue, &model).await;
    let before = crowd_before_guest(&queue, model.epochs.iter().map(Vec::len).sum()).await;
    assert!(before <= 1, "{before} runs of the crowd precede the run of another namespace");
    // Repairs read the whole key space.
    let runs = UIDS.into_iter().map(str::to_owned).chain(crowd_uids(0..12)).chain(["guest".to_owned()]);
    let others = ["due", "wake", "events", "seq", "workers", "shares"].into_iter().chain(SETS);
    let keys = runs.map(|uid| format!("run:{uid}")).chain(others.map(str::to_owned));
    let keys: Vec<_> = keys.map(|name| raw.key(&name)).collect();
    raw.connection.unlink::<_, ()>(keys).await.unwrap();
}

#[test]
fn any_sequence_of_operations_behaves_as_the_model_says() {
    const SIDE_BY_SIDE: u32 = 4;
    let cases: u32 = std::env::var("QUEUE_SEQUENCES").map_or(500, |cases| cases.parse().unwrap());
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                let config =
                    Config { cases: cases.div_ceil(SIDE_BY_SIDE), failure_persistence: None, ..Config::default() };
                let played = TestRunner::new(config).run(&operations(), |operations| {
                    runtime.block_on(play(operations));
                    Ok(())
                });
                played.unwrap();
            });
        }
    });
}

fn reserved(reservation: Reservation) -> Duration {
    match reservation {
        Reservation::After(wait) => wait,
        Reservation::RetryAfter(wait) => panic!("rejected for {wait:?}"),
    }
}

#[tokio::test]
async fn all_processes_share_a_rate_limit() {
    let (name, every) = (unique("rate"), Duration::from_millis(10));
    let queues = [(); 3].map(|()| named_queue(&name, Duration::from_secs(30)));
    let began = Instant::now();
    let requests = (0..60).map(|number| {
        let queue = &queues[number % 3];
        async move {
            let wait = reserved(queue.reserve_request("a", every).await.unwrap());
            began.elapsed() + wait
        }
    });
    let last = join_all(requests).await.into_iter().max().unwrap();
    assert!(last >= every * 59, "the last request is sent after {last:?}");
    let other = queues[0].reserve_request("b", every).await.unwrap();
    assert_eq!(other, Reservation::After(Duration::ZERO), "another rate limit");
}

#[tokio::test]
async fn a_request_is_reserved_at_most_a_second_ahead() {
    let (queue, every) = (queue(Duration::from_secs(30)), Duration::from_millis(600));
    let reserve = async || queue.reserve_request("a", every).await.unwrap();
    assert_eq!(reserve().await, Reservation::After(Duration::ZERO));
    reserved(reserve().await);
    // This request is reserved or not, by the duration of the calls. Later requests are not reserved.
    let _ = reserve().await;
    let waits = [reserve().await, reserve().await];
    let Reservation::RetryAfter(wait) = waits[1] else { panic!("{waits:?}") };
    assert!(wait <= Duration::from_millis(2400), "a rejected reservation takes no time from others: {wait:?}");
}

#[tokio::test]
async fn a_pause_rejects_requests_until_it_is_over() {
    let queue = queue(Duration::from_secs(30));
    queue.pause_requests("a", Duration::from_secs(60)).await.unwrap();
    queue.pause_requests("a", Duration::from_secs(5)).await.unwrap();
    let reservation = queue.reserve_request("a", Duration::ZERO).await.unwrap();
    let Reservation::RetryAfter(wait) = reservation else { panic!("{reservation:?}") };
    assert!(wait > Duration::from_secs(50), "a shorter pause does not end a longer one: {wait:?}");
    queue.pause_requests("b", Duration::from_millis(300)).await.unwrap();
    eventually("the pause is over", async || {
        let reservation = queue.reserve_request("b", Duration::ZERO).await.unwrap();
        (reservation == Reservation::After(Duration::ZERO)).then_some(())
    })
    .await;
}
