//! Redis is restored to an earlier state, loses all data, or gets the data of another installation.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env,
    time::Duration,
};

use bson::{DateTime, Document, doc};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;
use sync_operator::{
    api::{STARTING_DEADLINE_ANNOTATION, SyncJob, SyncJobStatus, syncjob::Phase},
    domain::{
        job::{is_complete, is_finished},
        run::{LeaseState, Payload, State},
    },
    queue::{Control, Disposition, Error, FencedWrite, KnownRun, NewRun, Queue, Release},
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    servers::Redis,
    support::{
        Servers, TestEnv, apply_job, apply_schedule, claim_one, eventually, finished, reason, slow_on, unique,
        wait_for_phase, wait_until_running,
    },
};

const LEASE: Duration = Duration::from_secs(1);
const ARGS: [&str; 4] = ["--lease-duration", "1s", "--resync-interval", "1s"];
const CONTINUE: Control<'static> = Control { suspended: false, cancelled: None, priority: 0, approved: None };

async fn own_redis() -> Redis {
    let redis = Redis::start(&[]);
    redis.connect().await;
    redis
}

#[tokio::test]
async fn a_restored_redis_gives_no_run_before_the_assertion() {
    let mut redis = own_redis().await;
    let queue = Queue::new(&redis.url(), &unique("restore"), LEASE).unwrap();
    for uid in ["a", "b"] {
        assert!(queue.enqueue(&NewRun::new(uid, "{}")).await.unwrap());
    }
    assert_eq!(claim_one(&queue, "w").await.unwrap().unwrap().uid, "a");
    let before = queue.server().await.unwrap();
    assert!(before.is_asserted);
    let dump = redis.dump().await;
    redis.restore(Some(&dump)).await;

    let claimed = eventually("Redis answers", async || match claim_one(&queue, "w").await {
        Err(Error::Unavailable { .. }) => None,
        claimed => Some(claimed),
    })
    .await;
    assert!(matches!(claimed, Err(Error::Unasserted)), "{claimed:?}");
    let now = queue.server().await.unwrap();
    assert!(!now.is_asserted && now.replication_id != before.replication_id);
    assert!(!queue.confirm(&before.replication_id).await.unwrap(), "the runs were asserted on another server");
    assert!(matches!(claim_one(&queue, "w").await, Err(Error::Unasserted)));
    assert!(queue.confirm(&now.replication_id).await.unwrap());
    assert_eq!(claim_one(&queue, "w").await.unwrap().unwrap().uid, "b");

    redis.ask::<()>("FLUSHALL").await;
    assert!(queue.enqueue(&NewRun::new("c", "{}")).await.unwrap());
    assert_eq!(claim_one(&queue, "w").await.unwrap().unwrap().uid, "c", "a queue without runs needs no assertion");
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

#[tokio::test]
async fn data_of_a_run_that_redis_lost_is_asserted() {
    let redis = own_redis().await;
    let queue = Queue::new(&redis.url(), &unique("restore"), LEASE).unwrap();
    assert!(queue.enqueue(&NewRun::new("a", "{}")).await.unwrap());
    let known = KnownRun {
        started: Some(at(1000)),
        attempts: 2,
        recoveries: 3,
        history: r#"[{"number":2}]"#,
        parked_for: Duration::from_secs(60),
        ..KnownRun::new("a", CONTINUE)
    };
    for _ in 0..2 {
        assert_eq!(queue.assert(std::slice::from_ref(&known), false).await.unwrap(), 1);
        let run = queue.get("a").await.unwrap().unwrap();
        assert_eq!((run.started, run.attempts, run.recoveries), (known.started, 2, 3));
        assert_eq!((run.history.as_str(), run.parked_for), (known.history, known.parked_for));
        assert_eq!(run.state, State::Waiting);
    }
    let older = KnownRun { attempts: 1, recoveries: 1, parked_for: Duration::ZERO, ..known.clone() };
    assert_eq!(queue.assert(&[older], false).await.unwrap(), 1);
    let run = queue.get("a").await.unwrap().unwrap();
    assert_eq!((run.attempts, run.recoveries, run.parked_for), (2, 3, known.parked_for), "a status may be old");
    let claimed = claim_one(&queue, "w").await.unwrap().unwrap();
    assert_eq!(claimed.entry.started, known.started);
    assert_eq!(
        queue.assert(&[KnownRun::new("nothing", CONTINUE)], true).await.unwrap(),
        0,
        "it is not put into the queue"
    );
}

/// Each row has the suspension of the run in Redis, the suspension and the hold in its SyncJob, the desired state, and
/// the hours for which the run was suspended afterwards. `None`: the run is still suspended.
#[tokio::test]
async fn a_restored_run_is_suspended_as_its_job_says() {
    let redis = own_redis().await;
    let queue = Queue::new(&redis.url(), &unique("restore"), LEASE).unwrap();
    let (now, hour) = (Timestamp::now(), SignedDuration::from_hours(1));
    let (one, two) = (now - hour, now - hour * 2);
    let suspended = Control { suspended: true, ..CONTINUE };
    let approved = Control { approved: Some(9), ..CONTINUE };
    for (what, redis_since, since, held, control, hours) in [
        ("resumed since", Some(two), None, None, CONTINUE, Some(0)),
        ("suspended since", None, Some(one), None, suspended, None),
        ("to be resumed", Some(two), Some(one), None, CONTINUE, Some(1)),
        ("not known to be suspended, to be resumed", None, Some(one), None, CONTINUE, Some(1)),
        ("held since", None, Some(one), Some(9), CONTINUE, None),
        ("held since, and approved", None, Some(one), Some(9), approved, Some(1)),
        ("as before", None, None, None, CONTINUE, Some(0)),
    ] {
        let run = NewRun { started: Some(two), suspended: redis_since, ..NewRun::new(what, "{}") };
        assert!(queue.enqueue(&run).await.unwrap());
        let known = KnownRun { started: Some(two), parked_since: since, held, ..KnownRun::new(what, control) };
        assert_eq!(queue.assert(&[known], true).await.unwrap(), 1, "{what}");
        let run = queue.get(what).await.unwrap().unwrap();
        assert_eq!(run.state == State::Parked, hours.is_none(), "{what}");
        assert_eq!(run.parked_for.as_secs() / 3600, hours.unwrap_or(0), "{what}");
        queue.remove(what).await.unwrap();
    }
}

#[tokio::test]
async fn time_before_the_start_is_not_suspended_time() {
    let redis = own_redis().await;
    let queue = Queue::new(&redis.url(), &unique("restore"), LEASE).unwrap();
    let long_ago = Some(at(1000));
    assert!(queue.enqueue(&NewRun { suspended: long_ago, ..NewRun::new("a", "{}") }).await.unwrap());
    assert!(queue.control("a", CONTINUE).await.unwrap());
    assert_eq!(claim_one(&queue, "w").await.unwrap().unwrap().entry.parked_for, Duration::ZERO);
}

/// A full Redis loses no run, and starts none.
#[tokio::test]
async fn a_full_redis_keeps_its_runs_and_starts_none() {
    let redis = own_redis().await;
    let queue = Queue::new(&redis.url(), &unique("full"), LEASE).unwrap();
    for uid in ["kept", "cancelled", "failed", "lost", "waiting"] {
        assert!(queue.enqueue(&NewRun::new(uid, "{}")).await.unwrap());
    }
    let mut held = HashMap::new();
    for _ in 0..4 {
        let claim = claim_one(&queue, "w").await.unwrap().unwrap();
        held.insert(claim.uid, claim.entry.epoch);
    }
    redis.ask::<()>("CONFIG SET maxmemory 1").await;
    let refused = |error: Error| error.refusal().map(str::to_owned);
    assert_eq!(claim_one(&queue, "w").await.map_err(refused).err().flatten().as_deref(), Some("OOM"));
    assert!(queue.enqueue(&NewRun::new("new", "{}")).await.is_err());

    let kept: Vec<_> = ["kept", "cancelled", "failed"].map(|uid| (uid.to_owned(), held[uid])).into();
    let cancel = Control { cancelled: Some("{}"), ..CONTINUE };
    assert!(queue.control("cancelled", cancel).await.unwrap());
    let until = Instant::now() + LEASE * 2;
    while Instant::now() < until {
        assert!(queue.renew("w", &kept).await.unwrap().lost.is_empty());
        sleep(LEASE / 4).await;
    }
    assert_eq!(queue.reap("{}").await.unwrap(), 1, "the lease that was not renewed has ended");
    assert_eq!(queue.get("lost").await.unwrap().unwrap().state, State::Waiting);
    let saved = queue.checkpoint("kept", held["kept"], "far").await.unwrap();
    assert_eq!(saved, LeaseState::Held);
    let endings = [
        ("kept", Disposition::Completed),
        ("cancelled", Disposition::Released),
        ("failed", Disposition::Failed("{}".into())),
    ];
    for (uid, disposition) in endings {
        let run = Release { uid: uid.into(), epoch: held[uid], disposition, checkpoint: "{}".into(), attempts: None };
        assert_eq!(queue.release([&run]).await.unwrap(), [FencedWrite::Applied], "{uid}");
    }
    let states = async |uid| queue.get(uid).await.unwrap().unwrap().state;
    assert_eq!(states("kept").await, State::Completed);
    assert_eq!((states("cancelled").await, states("failed").await), (State::Failed, State::Failed));
    redis.ask::<()>("CONFIG SET maxmemory 0").await;
    assert!(claim_one(&queue, "w").await.unwrap().is_ok());
}

/// Redis is restored to a time before the claims of both runs and the end of one of them.
#[tokio::test]
async fn a_restored_redis_runs_nothing_that_was_cancelled() {
    let mut redis = own_redis().await;
    let env = TestEnv::on(Servers { redis: redis.url(), ..Servers::shared() }).await;
    env.seed(1000, 0).await;
    let (_operator, _) = env.all(&ARGS);
    for name in ["cancelled", "claimed"] {
        let mut spec = slow_on(name);
        spec["suspended"] = json!(true);
        apply_job(&env, name, spec).await;
        wait_for_phase(&env, name, Phase::Suspended).await;
    }
    let dump = redis.dump().await;
    for name in ["cancelled", "claimed"] {
        env.patch_job(name, json!({"suspended": false})).await;
        wait_until_running(&env, name).await;
    }
    env.patch_job("cancelled", json!({"cancelled": true})).await;
    let ended = finished(&env, "cancelled").await;
    let before = env.jobs().get("claimed").await.unwrap().status.unwrap();
    redis.restore(Some(&dump)).await;

    let done = finished(&env, "claimed").await;
    assert!(is_complete(&done), "{:?}", done.status);
    let start = done.status.unwrap().start_time.unwrap();
    assert_eq!(Some(&start), before.start_time.as_ref(), "the start does not change");
    let stamp = DateTime::from_millis(start.0.as_millisecond());
    assert_eq!(env.count(doc! {"claimed": stamp}).await, 1000);
    let stamped = env.count(doc! {"cancelled": {"$exists": true}}).await;
    assert!(stamped < 1000, "the run was cancelled before its end");
    sleep(LEASE * 2).await;
    assert_eq!(env.count(doc! {"cancelled": {"$exists": true}}).await, stamped, "the run does not continue");
    assert_eq!(env.jobs().get("cancelled").await.unwrap().status, ended.status);
    assert_eq!(env.queue().get(&ended.uid().unwrap()).await.unwrap(), None, "Redis does not have the run any more");
}

#[tokio::test]
async fn suspended_time_survives_a_loss_of_redis() {
    let redis = own_redis().await;
    let env = TestEnv::on(Servers { redis: redis.url(), ..Servers::shared() }).await;
    env.seed(1000, 0).await;
    let (_operator, _) = env.all(&ARGS);
    let mut spec = slow_on("lastSynced");
    spec["activeDeadline"] = json!("10m");
    spec["suspended"] = json!(true);
    let uid = apply_job(&env, "run", spec).await.uid().unwrap();
    wait_for_phase(&env, "run", Phase::Suspended).await;
    // The run seems to have started 61 minutes ago, and to be suspended since a minute later.
    let ago = |minutes| (Timestamp::now() - SignedDuration::from_mins(minutes)).as_millisecond();
    let key = format!("{{sync:{}}}:run:{uid}", env.name);
    let started = ago(61);
    redis.ask::<()>(&format!("HSET {key} started {started} parked_at {}", ago(60))).await;
    env.patch_job("run", json!({"suspended": false})).await;
    wait_until_running(&env, "run").await;
    let status = env.jobs().get("run").await.unwrap().status.unwrap();
    assert!(status.suspended_for.unwrap().parse().unwrap() >= Duration::from_hours(1));
    redis.ask::<()>("FLUSHALL").await;
    let job = finished(&env, "run").await;
    assert!(is_complete(&job), "{:?}", job.status);
    let status = job.status.unwrap();
    assert_eq!(status.start_time.unwrap().0.as_millisecond(), started, "the start did not change");
}

/// The field that a run stamps.
fn field_of(name: &str) -> String {
    name.replace('-', "_")
}

/// A run that has ended during the rounds of restores.
struct EndedRun {
    ended: SyncJobStatus,
    at: Instant,
    /// True when the stamps were checked and removed.
    is_cleared: bool,
}

struct Storm {
    env: TestEnv,
    redis: Redis,
    dumps: Vec<Vec<u8>>,
    random: StdRng,
    watched: BTreeMap<String, EndedRun>,
    history: Vec<String>,
}

impl Storm {
    async fn jobs(&self) -> Vec<SyncJob> {
        self.env.jobs().list(&ListParams::default()).await.unwrap().items
    }

    /// The fields that any document has.
    async fn fields(&self) -> BTreeSet<String> {
        let users = self.env.database.collection::<Document>("users");
        let mut found = users.find(doc! {}).projection(doc! {"padding": 0, "email": 0}).await.unwrap();
        let mut fields = BTreeSet::new();
        while found.advance().await.unwrap() {
            fields.extend(found.current().iter().map(|element| element.unwrap().0.to_string()));
        }
        fields
    }

    /// Checks all runs: an ended run does not change, and stamps nothing more. True when all have ended.
    async fn check_runs(&mut self) -> bool {
        let mut all_ended = true;
        for job in self.jobs().await {
            let name = job.name_any();
            if !is_finished(&job) {
                assert!(!self.watched.contains_key(&name), "{name} had ended: {:?}", self.history);
                all_ended = false;
                continue;
            }
            let status = job.status.clone().unwrap();
            let watched = self.watched.entry(name.clone());
            let watched =
                watched.or_insert_with(|| EndedRun { ended: status.clone(), at: Instant::now(), is_cleared: false });
            assert_eq!(watched.ended, status, "{name} changed after its end: {:?}", self.history);
            if watched.is_cleared {
                continue;
            }
            // An attempt that lost its lease may not know it yet.
            if watched.at.elapsed() < LEASE.mul_f64(1.5) {
                all_ended = false;
                continue;
            }
            watched.is_cleared = true;
            if is_complete(&job) {
                let stamp = DateTime::from_millis(status.start_time.unwrap().0.as_millisecond());
                let stamped = self.env.count(doc! {field_of(&name): stamp}).await;
                assert_eq!(stamped, 1000, "{name} {:?}", self.history);
            }
            let users = self.env.database.collection::<Document>("users");
            users.update_many(doc! {}, doc! {"$unset": {field_of(&name): ""}}).await.unwrap();
        }
        let fields = self.fields().await;
        for (name, _) in self.watched.iter().filter(|(_, watched)| watched.is_cleared) {
            assert!(!fields.contains(&field_of(name)), "{name} stamps after its end: {:?}", self.history);
        }
        assert!(!fields.contains("foreign"), "{:?}", self.history);
        all_ended
    }

    async fn inject_fault(&mut self, foreign: &[u8]) {
        let kind = self.random.random_range(0..10);
        let what = match kind {
            0..=4 => {
                let at = self.random.random_range(0..self.dumps.len());
                let dump = self.dumps[at].clone();
                self.redis.restore(Some(&dump)).await;
                format!("restored to dump {at} of {}", self.dumps.len())
            }
            5..=6 => {
                self.redis.restore(None).await;
                "killed without data".to_owned()
            }
            7 => {
                self.redis.ask::<()>("FLUSHALL").await;
                "flushed".to_owned()
            }
            _ => {
                self.redis.restore(Some(foreign)).await;
                "given the data of another installation".to_owned()
            }
        };
        self.history.push(what);
    }

    async fn round(&mut self, round: u64, foreign: &[u8]) {
        const RUNS: usize = 5;
        let names: Vec<String> = (0..RUNS).map(|run| format!("r{round}-{run}")).collect();
        let mut cancelled = Vec::new();
        for name in &names {
            let mut spec = slow_on(&field_of(name));
            spec["suspended"] = json!(self.random.random_bool(0.2));
            spec["priority"] = json!(self.random.random_range(-2..3));
            apply_job(&self.env, name, spec).await;
        }
        self.dumps.push(self.redis.dump().await);
        let faults = self.random.random_range(1..3);
        for step in 0..8 {
            sleep(Duration::from_millis(self.random.random_range(100..500))).await;
            let name = names.choose(&mut self.random).unwrap().clone();
            match self.random.random_range(0..5) {
                0 => {
                    self.env.patch_job(&name, json!({"cancelled": true})).await;
                    cancelled.push(name.clone());
                    self.history.push(format!("{name} cancelled"));
                }
                1 => self.env.patch_job(&name, json!({"suspended": self.random.random_bool(0.5)})).await,
                _ => {}
            }
            self.check_runs().await;
            self.dumps.push(self.redis.dump().await);
            if step % 4 == 3 && step / 4 < faults {
                self.inject_fault(foreign).await;
            }
        }
        for name in &names {
            self.env.patch_job(name, json!({"suspended": false})).await;
        }
        let until = Instant::now() + Duration::from_secs(90);
        while !self.check_runs().await {
            assert!(Instant::now() < until, "runs do not end: {:?}", self.history);
            sleep_until(Instant::now() + Duration::from_millis(300)).await;
        }
        for job in self.jobs().await.into_iter().filter(|job| names.contains(&job.name_any()) && !is_complete(job)) {
            let name = job.name_any();
            assert!(cancelled.contains(&name), "{name} failed: {:?} {:?}", job.status, self.history);
            assert_eq!(reason(&job, "Failed").as_deref(), Some("Cancelled"), "{name}");
        }
        // Only some dumps of earlier rounds are kept.
        while self.dumps.len() > 30 {
            let at = self.random.random_range(0..self.dumps.len());
            self.dumps.remove(at);
        }
    }
}

/// The data of another installation, with a run that would stamp the documents of this one.
async fn foreign_dump(env: &TestEnv) -> Vec<u8> {
    let redis = own_redis().await;
    let queue = Queue::new(&redis.url(), &env.name, LEASE).unwrap();
    for (uid, namespace) in [("foreign-1", "elsewhere"), ("foreign-2", env.name.as_str())] {
        let spec = serde_json::from_value(slow_on("foreign")).unwrap();
        let payload = Payload { namespace: namespace.to_owned(), name: uid.to_owned(), spec };
        let payload = serde_json::to_string(&payload).unwrap();
        assert!(queue.enqueue(&NewRun::new(uid, &payload)).await.unwrap());
    }
    redis.dump().await
}

/// Random runs whose Redis is restored, killed, flushed, and given the data of another installation. `ROUNDS` and
/// `SEED` determine their number and the faults.
#[tokio::test]
async fn restore_storms_run_nothing_twice() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let (rounds, seed) =
        (number("ROUNDS").unwrap_or(5), number("SEED").unwrap_or_else(rand::random::<u64>) % 1_000_000);
    eprintln!("{rounds} rounds of restores, SEED={seed}");
    let redis = own_redis().await;
    let env = TestEnv::on(Servers { redis: redis.url(), ..Servers::shared() }).await;
    env.seed(1000, 0).await;
    let foreign = foreign_dump(&env).await;
    let (_operator, _) = env.all(&ARGS);
    let random = StdRng::seed_from_u64(seed);
    let mut storm = Storm { env, redis, dumps: Vec::new(), random, watched: BTreeMap::new(), history: Vec::new() };
    for round in 0..rounds {
        storm.history.clear();
        let began = Instant::now();
        storm.round(round, &foreign).await;
        eprintln!("round {}/{rounds} {:.1} s: {}", round + 1, began.elapsed().as_secs_f64(), storm.history.join(", "));
    }
}

/// A SyncJob as in an export, without its status.
fn exported(job: &SyncJob) -> SyncJob {
    let mut job = SyncJob { status: None, ..job.clone() };
    let metadata = std::mem::take(&mut job.metadata);
    job.metadata.name = metadata.name;
    job.metadata.labels = metadata.labels;
    job.metadata.annotations = metadata.annotations;
    job
}

#[tokio::test]
async fn a_restored_export_executes_no_slot_that_is_over() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&ARGS);
    apply_schedule(&env, "users", json!({"interval": "24h", "startingDeadline": "1s", "immediate": true})).await;
    let run = eventually("the run is complete", async || {
        let jobs = env.jobs().list(&ListParams::default()).await.unwrap();
        jobs.items.into_iter().find(is_complete)
    })
    .await;
    env.schedules().delete("users", &DeleteParams::default()).await.unwrap();
    env.jobs().delete(&run.name_any(), &DeleteParams::default()).await.ok();
    eventually("the objects are deleted", async || {
        env.jobs().get_opt(&run.name_any()).await.unwrap().is_none().then_some(())
    })
    .await;
    let deadline: Timestamp = run.annotations()[STARTING_DEADLINE_ANNOTATION].parse().unwrap();
    let later = deadline + SignedDuration::from_secs(1);
    eventually("the slot is over", async || (Timestamp::now() > later).then_some(())).await;
    let stamped = async || env.count(doc! {"lastSynced": {"$gt": DateTime::from_millis(later.as_millisecond())}}).await;
    env.jobs().create(&PostParams::default(), &exported(&run)).await.unwrap();
    let restored = finished(&env, &run.name_any()).await;
    assert_eq!(reason(&restored, "Failed").as_deref(), Some("StartingDeadlineExceeded"));
    assert_eq!(stamped().await, 0);
    apply_job(&env, "by-hand", json!({"syncType": "Full"})).await;
    assert!(is_complete(&finished(&env, "by-hand").await));
    assert_eq!(stamped().await, 10);
}

/// Measures the assertion of 10,000 runs.
#[tokio::test]
#[ignore = "a measurement"]
async fn ten_thousand_runs_are_asserted() {
    const RUNS: usize = 10_000;
    let redis = own_redis().await;
    let queue = Queue::new(&redis.url(), &unique("many"), LEASE).unwrap();
    let payload = format!("\"{}\"", "x".repeat(1500));
    let uids: Vec<String> = (0..RUNS).map(|run| format!("{run:036}")).collect();
    for uid in &uids {
        queue.enqueue(&NewRun::new(uid, &payload)).await.unwrap();
    }
    let known =
        |started| uids.iter().map(move |uid| KnownRun { started, ..KnownRun::new(uid, CONTINUE) }).collect::<Vec<_>>();
    for (what, started, is_restored) in [
        ("nothing to change", None, false),
        ("each run's start to restore", Some(at(1000)), true),
        ("nothing to change after a restore", Some(at(1000)), true),
    ] {
        let runs = known(started);
        let began = Instant::now();
        assert_eq!(queue.unfinished().await.unwrap().len(), RUNS);
        assert_eq!(queue.assert(&runs, is_restored).await.unwrap(), RUNS);
        eprintln!("{what}: {:.0} ms", began.elapsed().as_secs_f64() * 1000.0);
    }
    let began = Instant::now();
    assert_eq!(queue.remove_unfinished(&uids).await.unwrap(), RUNS);
    eprintln!("all removed: {:.0} ms", began.elapsed().as_secs_f64() * 1000.0);
}
