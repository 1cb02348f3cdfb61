//! Queues of one test, and their data in Redis.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use redis::{AsyncCommands, AsyncConnectionConfig, aio::MultiplexedConnection};
use sync_operator::{
    domain::run::LeaseState,
    queue::{Attempts, Candidates, Claim, Control, Disposition, Entry, Error, FencedWrite, NewRun, Queue, Release},
};

use crate::support::{PATIENCE, claim_one, eventually, unique, variable};

/// The data that a worker writes when it releases a run.
#[derive(Clone, Copy)]
pub struct Progress<'a> {
    pub checkpoint: &'a str,
    pub history: &'a str,
    pub attempts: u32,
}

pub const NOTHING: Progress<'_> = Progress { checkpoint: "{}", history: "[]", attempts: 0 };
pub const LEASE: Duration = Duration::from_secs(30);

pub fn queue(lease: Duration) -> Queue {
    named_queue(&unique("queue"), lease)
}

pub fn named_queue(name: &str, lease: Duration) -> Queue {
    Queue::new(&variable("REDIS_URL"), name, lease).unwrap()
}

/// The sets a run can be in.
pub const SETS: [&str; 6] = ["waiting", "delayed", "active", "parked", "completed", "failed"];

/// The data of a queue in Redis, read without the queue.
pub struct Raw {
    pub connection: MultiplexedConnection,
    prefix: String,
}

impl Raw {
    pub async fn of(queue: &str) -> Self {
        let client = redis::Client::open(variable("REDIS_URL")).unwrap();
        // The default timeout is at most a second, which a busy machine exceeds.
        let patient = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE));
        let patient = patient.set_response_timeout(Some(PATIENCE));
        let connection = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        Self { connection, prefix: format!("{{sync:{queue}}}") }
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    pub async fn run(&mut self, uid: &str) -> HashMap<String, String> {
        let key = self.key(&format!("run:{uid}"));
        self.connection.hgetall(key).await.unwrap()
    }

    pub async fn score(&mut self, set: &str, uid: &str) -> Option<f64> {
        let key = self.key(set);
        self.connection.zscore(key, uid).await.unwrap()
    }

    /// Sets the format of a run to that of another release.
    pub async fn reformat(&mut self, uid: &str) {
        let key = self.key(&format!("run:{uid}"));
        self.connection.hset::<_, _, _, ()>(key, "format", "9").await.unwrap();
    }

    /// The sets a run is in.
    pub async fn sets(&mut self, uid: &str) -> Vec<&'static str> {
        self.read_runs(&[uid]).await.remove(0).0
    }

    /// The sets and hashes of runs, read in one transaction.
    pub async fn read_runs(&mut self, uids: &[&str]) -> Vec<(Vec<&'static str>, HashMap<String, String>)> {
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
    pub async fn remove_from_sets(&mut self, uid: &str) {
        let mut pipeline = redis::pipe();
        for set in SETS {
            pipeline.zrem(self.key(set), uid);
        }
        pipeline.exec_async(&mut self.connection).await.unwrap();
    }

    pub async fn lose(&mut self, uid: &str) {
        let key = self.key(&format!("run:{uid}"));
        self.connection.del::<_, ()>(key).await.unwrap();
    }

    pub async fn set_score(&mut self, set: &str, uid: &str, score: i64) {
        let key = self.key(set);
        self.connection.zadd::<_, _, _, ()>(key, uid, score).await.unwrap();
    }

    pub async fn remove_from_set(&mut self, set: &str, uid: &str) {
        let key = self.key(set);
        self.connection.zrem::<_, _, ()>(key, uid).await.unwrap();
    }

    pub async fn unset(&mut self, uid: &str, field: &str) {
        let key = self.key(&format!("run:{uid}"));
        self.connection.hdel::<_, _, ()>(key, field).await.unwrap();
    }

    pub async fn set(&mut self, uid: &str, field: &str, value: i64) {
        let key = self.key(&format!("run:{uid}"));
        self.connection.hset::<_, _, _, ()>(key, field, value).await.unwrap();
    }

    /// Deletes everything of this queue, and of no other: Redis lost its data.
    pub async fn lose_everything(&mut self) {
        let keys: Vec<String> = self.connection.keys(format!("{}:*", self.prefix)).await.unwrap();
        self.connection.del::<_, ()>(keys).await.unwrap();
    }
}

pub fn build_release(uid: &str, epoch: u64, disposition: Disposition, progress: Progress<'_>) -> Release {
    let attempts = Some(Attempts { count: progress.attempts, history: progress.history.to_owned() });
    Release { uid: uid.to_owned(), epoch, disposition, checkpoint: progress.checkpoint.to_owned(), attempts }
}

/// Releases one run.
pub trait ReleaseOne {
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

pub async fn enqueue(queue: &Queue, uid: &str, priority: i32) -> bool {
    queue.enqueue(&NewRun { priority, ..NewRun::new(uid, "{}") }).await.unwrap()
}

pub async fn claim(queue: &Queue, worker: &str) -> Claim {
    claim_one(queue, worker).await.unwrap().unwrap()
}

pub async fn entry(queue: &Queue, uid: &str) -> Entry {
    queue.get(uid).await.unwrap().unwrap()
}

/// Waits until the reaper has found `count` runs.
pub async fn reap(queue: &Queue, count: usize) {
    let mut reaped = 0;
    eventually("the leases end", async || {
        reaped += queue.reap(r#"{"why":1}"#).await.unwrap();
        (reaped >= count).then_some(())
    })
    .await;
    assert_eq!(reaped, count);
}

pub async fn assert_fenced(queue: &Queue, uid: &str, epoch: u64) {
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

pub async fn claim_many(queue: &Queue, worker: &str, most: usize, candidates: &mut Candidates) -> Vec<String> {
    let claims = queue.claim(worker, most, candidates).await.unwrap().unwrap_or_default();
    claims.into_iter().map(|claim| claim.uid).collect()
}

pub const CONTINUE: Control<'_> = Control { suspended: false, cancelled: None, priority: 0, approved: None };
pub const SUSPEND: Control<'_> = Control { suspended: true, ..CONTINUE };
pub const CANCEL: Control<'_> = Control { cancelled: Some(r#"{"why":2}"#), ..CONTINUE };

pub const fn approve(number: u64) -> Control<'static> {
    Control { approved: Some(number), ..CONTINUE }
}

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn an_hour_ago() -> i64 {
    Timestamp::now().as_millisecond() - HOUR.as_millis() as i64
}

pub async fn oldest(queue: &Queue) -> Duration {
    queue.depth().await.unwrap().oldest
}

/// Asserts that a time is an hour, and at most the duration of the test longer.
pub fn assert_hour(time: Duration) {
    assert!(time >= HOUR && time < HOUR + PATIENCE, "{time:?}");
}

/// The uids of the runs in tests of repairs.
pub fn uids() -> impl Iterator<Item = String> {
    ["a", "b", "c", "waiting", "active", "completed", "parked", "delayed", "failed"].into_iter().map(str::to_owned)
}
