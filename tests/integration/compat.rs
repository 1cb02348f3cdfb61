//! The records of other releases in `tests/compat`: objects, and the runs of a queue.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, SyncSchedule},
    domain::{
        job::is_finished,
        needs::Level,
        run::{Payload, RunSpec, State},
    },
    queue::{Candidates, Control, Disposition, FencedWrite, NewRun, Queue, Release},
};

use crate::support::{
    TestEnv, apply_job, apply_schedule, eventually, finished, slow, unique, variable, wait_until_running,
};

/// The objects and the data in Redis that a killed release left behind.
#[derive(Serialize, Deserialize)]
struct Record {
    jobs: Vec<Value>,
    schedules: Vec<Value>,
    /// Hashes of the runs, by uid.
    runs: BTreeMap<String, BTreeMap<String, String>>,
    /// Members of the sets with their scores.
    sets: BTreeMap<String, Vec<(String, f64)>>,
}

const SETS: [&str; 7] = ["waiting", "delayed", "active", "parked", "completed", "failed", "due"];

async fn connection() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(variable("REDIS_URL")).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

impl Record {
    async fn of(env: &TestEnv) -> Self {
        let mut redis = connection().await;
        let prefix = format!("{{sync:{}}}:", env.name);
        let keys: Vec<String> = redis.keys(format!("{prefix}run:*")).await.unwrap();
        let mut runs = BTreeMap::new();
        for key in keys {
            let uid = key.rsplit(':').next().unwrap().to_owned();
            runs.insert(uid, redis.hgetall(&key).await.unwrap());
        }
        let mut sets = BTreeMap::new();
        for set in SETS {
            sets.insert(set.to_owned(), redis.zrange_withscores(format!("{prefix}{set}"), 0, -1).await.unwrap());
        }
        let all = ListParams::default();
        let (jobs, schedules) = (env.jobs().list(&all).await.unwrap(), env.schedules().list(&all).await.unwrap());
        Self {
            jobs: jobs.iter().map(|job| serde_json::to_value(job).unwrap()).collect(),
            schedules: schedules.iter().map(|schedule| serde_json::to_value(schedule).unwrap()).collect(),
            runs,
            sets,
        }
    }

    async fn restore(&self, queue: &str) {
        let mut redis = connection().await;
        let mut pipeline = redis::pipe();
        for (uid, hash) in &self.runs {
            let fields: Vec<_> = hash.iter().collect();
            pipeline.hset_multiple(format!("{{sync:{queue}}}:run:{uid}"), &fields);
        }
        for (set, members) in &self.sets {
            for (uid, score) in members {
                pipeline.zadd(format!("{{sync:{queue}}}:{set}"), uid, score);
            }
        }
        pipeline.exec_async(&mut redis).await.unwrap();
    }
}

/// Records the data that a killed program leaves behind: `tests/compat/README.md`.
#[tokio::test]
#[ignore = "records what a release writes"]
async fn record() {
    let version = variable("COMPAT_VERSION");
    let env = TestEnv::new().await;
    env.seed(20_000, 0).await;
    let mut operator = env.operator("controller", &["--workers", "1", "--resync-interval", "1s"]);
    apply_job(&env, "complete", json!({"syncType": "Full"})).await;
    apply_job(&env, "failed", json!({"target": {"database": "not-allowed"}})).await;
    for name in ["complete", "failed"] {
        finished(&env, name).await;
    }
    apply_schedule(&env, "scheduled", json!({"interval": "24h", "immediate": true, "suspended": false})).await;
    eventually("the schedule has counted its run", async || {
        let status = env.schedules().get("scheduled").await.unwrap().status?;
        (status.runs.succeeded == 1).then_some(())
    })
    .await;
    apply_job(&env, "active", slow()).await;
    wait_until_running(&env, "active").await;
    apply_job(&env, "suspended", json!({"syncType": "Full", "suspended": true})).await;
    apply_job(&env, "waiting", json!({"syncType": "Full", "dryRun": true, "priority": 7})).await;
    eventually("all runs are in the queue", async || {
        let depth = env.queue().depth().await.unwrap();
        (depth.waiting == 1 && depth.parked == 1 && depth.active == 1).then_some(())
    })
    .await;
    operator.kill();
    let folder = Path::new("tests/compat");
    let text = serde_json::to_string_pretty(&Record::of(&env).await).unwrap();
    fs::write(folder.join(format!("{version}.json")), text + "\n").unwrap();
}

fn records() -> Vec<(String, Record)> {
    let files = fs::read_dir("tests/compat").unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let read = |path: std::path::PathBuf| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    files.map(|path| (path.display().to_string(), read(path))).collect()
}

#[test]
fn the_objects_of_each_release_are_read() {
    let records = records();
    assert!(!records.is_empty());
    for (file, record) in records {
        let jobs: HashMap<String, SyncJob> = record
            .jobs
            .iter()
            .map(|job| serde_json::from_value::<SyncJob>(job.clone()).unwrap())
            .map(|job| (job.metadata.name.clone().unwrap(), job))
            .collect();
        for (name, is_over) in
            [("complete", true), ("failed", true), ("active", false), ("suspended", false), ("waiting", false)]
        {
            assert_eq!(is_finished(&jobs[name]), is_over, "{file}: {name}");
            RunSpec::parse(&jobs[name].spec).unwrap();
        }
        let schedule: SyncSchedule = serde_json::from_value(record.schedules[0].clone()).unwrap();
        let status = schedule.status.unwrap();
        assert_eq!((status.runs.succeeded, status.active.len(), status.slots_since.is_some()), (1, 0, true), "{file}");
    }
}

#[tokio::test]
async fn the_runs_of_each_release_are_completed() {
    for (file, record) in records() {
        let name = unique("compat");
        record.restore(&name).await;
        let queue = Queue::new(&variable("REDIS_URL"), &name, Duration::from_secs(30)).unwrap();
        let uid_of = |name: &str| {
            let job = record.jobs.iter().find(|job| job["metadata"]["name"] == name).unwrap();
            job["metadata"]["uid"].as_str().unwrap().to_owned()
        };
        let ended = queue.get(&uid_of("complete")).await.unwrap().unwrap();
        assert_eq!(ended.state, State::Completed, "{file}");
        assert!(!queue.enqueue(&NewRun::new(&uid_of("failed"), "{}")).await.unwrap(), "{file}");

        // Its worker does not exist any more.
        eventually("its run is recovered", async || (queue.reap("{}").await.unwrap() == 1).then_some(())).await;
        let resume = Control { suspended: false, cancelled: None, priority: -1, approved: None };
        assert!(queue.control(&uid_of("suspended"), resume).await.unwrap(), "{file}");
        assert!(queue.confirm(&queue.server().await.unwrap().replication_id).await.unwrap(), "{file}");
        let claims = queue.claim("w", 32, &mut Candidates::default()).await.unwrap().unwrap();
        let claimed: Vec<_> = claims.iter().map(|claim| claim.uid.clone()).collect();
        assert_eq!(claimed, ["waiting", "active", "suspended"].map(uid_of), "{file}");
        for claim in claims {
            assert_eq!(
                Level::default()
                    .lacking(&claim.entry.payload, serde_json::from_str(&claim.entry.payload).ok().as_ref()),
                None,
                "{file}"
            );
            let payload: Payload = serde_json::from_str(&claim.entry.payload).unwrap();
            RunSpec::parse(&payload.spec).unwrap();
            let is_recovered = claim.uid == uid_of("active");
            assert_eq!(claim.entry.recoveries, u32::from(is_recovered), "{file}");
            let start = claim.entry.started.unwrap();
            assert!(is_recovered == (start < Timestamp::now() - Duration::from_secs(20)), "{file}: {start}");
            let (uid, epoch, checkpoint) = (claim.uid, claim.entry.epoch, "{}".to_owned());
            let run = Release { uid, epoch, disposition: Disposition::Completed, checkpoint, attempts: None };
            assert_eq!(queue.release([&run]).await.unwrap(), [FencedWrite::Applied], "{file}");
        }
        assert_eq!(queue.unfinished().await.unwrap(), [""; 0], "{file}");
        queue.repair([]).await.unwrap();
    }
}

/// Enqueues a run as the releases without flows do: its rank is its arrival.
async fn enqueue_by_arrival(queue: &str, uid: &str, priority: i64) {
    let mut redis = connection().await;
    let key = |name: &str| format!("{{sync:{queue}}}:{name}");
    let arrival: i64 = redis.incr(key("seq"), 1).await.unwrap();
    let rank = (1000 - priority) * (1 << 40) + arrival;
    let mut pipeline = redis::pipe();
    let now = Timestamp::now();
    let numbers = [("priority", priority), ("rank", rank), ("epoch", now.as_microsecond()), ("stalls", 0)];
    pipeline.hset_multiple(key(&format!("run:{uid}")), &numbers);
    let texts = [("format", "1"), ("payload", "{}"), ("history", "[]"), ("state", "waiting")];
    pipeline.hset_multiple(key(&format!("run:{uid}")), &texts);
    pipeline.zadd(key("waiting"), uid, rank).zadd(key("due"), uid, now.as_millisecond());
    pipeline.exec_async(&mut redis).await.unwrap();
}

#[tokio::test]
async fn runs_without_flows_alternate_with_the_others() {
    let name = unique("compat");
    let queue = Queue::new(&variable("REDIS_URL"), &name, Duration::from_secs(30)).unwrap();
    for number in 0..30 {
        enqueue_by_arrival(&name, &format!("old-{number:02}"), 0).await;
    }
    assert!(queue.confirm(&queue.server().await.unwrap().replication_id).await.unwrap());
    let enqueue = async |namespace: &str, uid: &str| {
        assert!(queue.enqueue(&NewRun { namespace, ..NewRun::new(uid, "{}") }).await.unwrap());
    };
    let claim = async |most: usize| -> Vec<String> {
        let claims = queue.claim("w", most, &mut Candidates::default()).await.unwrap().unwrap();
        claims.into_iter().map(|claim| claim.uid).collect()
    };
    enqueue("a", "a").await;
    let claimed = claim(2).await;
    assert!(claimed.contains(&"a".to_owned()), "{claimed:?}");
    // An older controller enqueues during the upgrade, or after a downgrade.
    enqueue_by_arrival(&name, "late", 0).await;
    enqueue("b", "b").await;
    enqueue("b", "c").await;
    let claimed = claim(4).await;
    assert!(["b", "c"].iter().all(|uid| claimed.contains(&(*uid).to_owned())), "{claimed:?}");
    let rest: Vec<String> = [claim(16).await, claim(16).await].concat();
    assert_eq!(rest.last().map(String::as_str), Some("late"), "{rest:?}");
}

/// A release without flows needs the rank of each run, and gives its own runs ranks from the counter of arrivals.
#[tokio::test]
async fn a_downgrade_finds_a_rank_for_every_run() {
    let name = unique("compat");
    let queue = Queue::new(&variable("REDIS_URL"), &name, Duration::from_secs(30)).unwrap();
    let uids = ["parked", "active", "delayed", "waiting", "next", "moved"];
    for uid in uids {
        let suspended = (uid == "parked").then(Timestamp::now);
        let run = NewRun { suspended, namespace: "a", ..NewRun::new(uid, "{}") };
        assert!(queue.enqueue(&run).await.unwrap());
    }
    let claims = queue.claim("w", 2, &mut Candidates::default()).await.unwrap().unwrap();
    let (uid, epoch, checkpoint) = (claims[1].uid.clone(), claims[1].entry.epoch, "{}".to_owned());
    let disposition = Disposition::Retry(Duration::from_secs(60));
    let delayed = Release { uid, epoch, disposition, checkpoint, attempts: None };
    assert_eq!(queue.release([&delayed]).await.unwrap(), [FencedWrite::Applied]);
    let lower = Control { suspended: false, cancelled: None, priority: -5, approved: None };
    assert!(queue.control("moved", lower).await.unwrap());
    let mut redis = connection().await;
    let key = |part: &str| format!("{{sync:{name}}}:{part}");
    let seq: i64 = redis.get(key("seq")).await.unwrap();
    for uid in uids {
        let rank: i64 = redis.hget(key(&format!("run:{uid}")), "rank").await.unwrap();
        let priority = if uid == "moved" { -5 } else { 0 };
        let tag = rank - (1000 - priority) * (1 << 40);
        assert!(tag > 0 && tag <= seq, "{uid}: the tag is {tag}, and the counter {seq}");
        let score: Option<f64> = redis.zscore(key("waiting"), uid).await.unwrap();
        assert!(score.is_none_or(|score| score as i64 == rank), "{uid}");
    }
    assert_eq!(queue.depth().await.unwrap().waiting, 3);
}
