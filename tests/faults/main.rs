//! Faults at random, against real processes: three controllers and a worker, an API server, Redis and MongoDB, all
//! killed, paused and restarted while twenty runs are under way. After each round everything must have come out
//! right. `make test-faults ROUNDS=200 SEED=1`; a failure prints the seed, and `ROUNDS=1 SEED=that` does it again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unwrap_in_result,
    clippy::too_many_lines,
    dead_code,
    reason = "a round that cannot go on fails; not all that tests share is used here"
)]

#[path = "../integration/support.rs"]
mod support;

use std::{
    collections::HashMap,
    env,
    fmt::Display,
    panic::AssertUnwindSafe,
    process::{Command, ExitCode},
    sync::{Arc, Mutex},
    time::Duration,
};

use bson::{DateTime, Document, doc};
use futures::{FutureExt, StreamExt};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::watcher,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;
use support::{Operator, Servers, World, eventually};
use sync_operator::{
    api::{SyncJob, SyncJobStatus, SyncSchedule},
    domain::{conditions::is_true, job::is_finished},
};
use tokio::time::{Instant, sleep};

const RUNS: usize = 20;
const USERS: i32 = 1500;
const REJECTED: i32 = 3;
const LEASE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let number = |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, seed) = (number("ROUNDS", 200), number("SEED", rand::random::<u32>().into()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ground = Ground::up();
    for round in 0..rounds {
        let began = Instant::now();
        let history = History::default();
        let played = AssertUnwindSafe(play(&ground, seed + round, &history)).catch_unwind();
        if runtime.block_on(played).is_err() {
            eprintln!("\nround {} of {rounds} FAILED, seed {}. What was done:\n{history}", round + 1, seed + round);
            eprintln!("to repeat it: make test-faults ROUNDS=1 SEED={}", seed + round);
            return ExitCode::FAILURE;
        }
        println!(
            "round {}/{rounds}  seed {}  {:.1} s; {}",
            round + 1,
            seed + round,
            began.elapsed().as_secs_f64(),
            history.0.lock().unwrap().last().map_or("", |line| line.as_str().trim_start()),
        );
    }
    ExitCode::SUCCESS
}

/// What was done in a round, with times.
#[derive(Clone)]
struct History(Arc<Mutex<Vec<String>>>, Instant);

impl Default for History {
    fn default() -> Self {
        Self(Arc::default(), Instant::now())
    }
}

impl History {
    fn note(&self, what: impl Display) {
        self.0.lock().unwrap().push(format!("{:7.3} s  {what}", self.1.elapsed().as_secs_f64()));
    }
}

impl Display for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.lock().unwrap().join("\n"))
    }
}

/// Servers for all rounds, stopped when dropped.
struct Ground {
    name: String,
    servers: Servers,
}

impl Ground {
    fn up() -> Self {
        let name = support::unique("faults");
        let servers = Servers { kubeconfig: String::new(), redis: String::new(), mongodb: String::new() };
        let mut ground = Self { name, servers };
        ground.script(&["up"]);
        for line in ground.script(&["env"]).lines() {
            match line.trim_start_matches("export ").split_once('=') {
                Some(("KUBECONFIG", value)) => value.clone_into(&mut ground.servers.kubeconfig),
                Some(("REDIS_URL", value)) => value.clone_into(&mut ground.servers.redis),
                Some(("MONGODB_URI", value)) => value.clone_into(&mut ground.servers.mongodb),
                _ => {}
            }
        }
        ground.script(&["kubectl", "apply", "-f", "crds"]);
        for kind in ["syncschedules", "syncjobs"] {
            ground.script(&["kubectl", "wait", "--for=condition=Established", &format!("crd/{kind}.sync.codex.dev")]);
        }
        ground.script(&["stop", "controller-manager"]);
        ground.script(&["start", "controller-manager"]);
        ground
    }

    fn script(&self, args: &[&str]) -> String {
        let output = Command::new("tests/cluster/cluster.sh").args(["--name", &self.name]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        Command::new("tests/cluster/cluster.sh").args(["--name", &self.name, "down"]).output().ok();
    }
}

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Fault {
    KillOperator,
    PauseOperator,
    StopOperator,
    Kill(&'static str),
    FlushRedis,
    StepDown,
    Suspend,
    Resume,
    Cancel,
    Reorder,
    Delete,
}

const FAULTS: [Fault; 16] = [
    Fault::KillOperator,
    Fault::KillOperator,
    Fault::PauseOperator,
    Fault::PauseOperator,
    Fault::StopOperator,
    Fault::Kill("redis"),
    Fault::Kill("mongodb"),
    Fault::Kill("apiserver"),
    Fault::FlushRedis,
    Fault::StepDown,
    Fault::Suspend,
    Fault::Suspend,
    Fault::Resume,
    Fault::Cancel,
    Fault::Reorder,
    Fault::Delete,
];

struct Round<'a> {
    ground: &'a Ground,
    world: World,
    history: History,
    random: StdRng,
    operators: Vec<Operator>,
    paused: Vec<(usize, Instant)>,
    cancelled: Vec<String>,
    deleted: Vec<(String, String)>,
}

fn start(world: &World, index: usize) -> Operator {
    let lease = format!("{}s", LEASE.as_secs());
    let leader = ["--leader-lease-duration", "2s", "--resync-interval", "1s", "--status-interval", "200ms"];
    let common = ["--lease-duration", &lease, "--workers", "4"];
    match index {
        0..3 => world.operator("controller", &[&common[..], &leader].concat()),
        _ => world.operator("worker", &common),
    }
}

async fn play(ground: &Ground, seed: u64, history: &History) {
    let world = World::on(ground.servers.clone()).await;
    world.seed(USERS, REJECTED).await;
    let statuses = Statuses::follow(&world);
    let operators = (0..4).map(|index| start(&world, index)).collect();
    let mut round = Round {
        ground,
        world,
        history: history.clone(),
        random: StdRng::seed_from_u64(seed),
        operators,
        paused: Vec::new(),
        cancelled: Vec::new(),
        deleted: Vec::new(),
    };
    round.apply().await;
    for _ in 0..round.random.random_range(4..9) {
        sleep(Duration::from_millis(round.random.random_range(50..700))).await;
        let fault = *FAULTS.choose(&mut round.random).unwrap();
        round.inflict(fault).await;
        round.wake(false);
    }
    round.heal().await;
    round.check(&statuses).await;
}

impl Round<'_> {
    async fn apply(&mut self) {
        let scheduled = self.random.random_bool(0.3);
        for run in 0..RUNS {
            let spec = json!({
                "syncType": "Full", "batchSize": self.random.random_range(1..10), "parallelism": self.random.random_range(1..4),
                "backoffLimit": 100, "backoff": {"initial": "200ms", "factor": 1, "jitter": 0.5},
                "target": {"lastSyncedField": format!("f{run}")},
            });
            let job = SyncJob::new(&format!("run-{run}"), serde_json::from_value(spec).unwrap());
            self.world.jobs().create(&PostParams::default(), &job).await.unwrap();
        }
        if scheduled {
            let spec = json!({"interval": "2s", "jobTemplate": {"spec": {"syncType": "Full", "backoffLimit": 100,
                "backoff": {"initial": "200ms", "factor": 1}, "target": {"lastSyncedField": "scheduled"}}}});
            let schedule = SyncSchedule::new("users", serde_json::from_value(spec).unwrap());
            self.world.schedules().create(&PostParams::default(), &schedule).await.unwrap();
        }
    }

    async fn inflict(&mut self, fault: Fault) {
        let operator = self.random.random_range(0..self.operators.len());
        let run = format!("run-{}", self.random.random_range(0..RUNS));
        self.history.note(format!("{fault:?} (operator {operator}, {run})"));
        let is_paused = self.paused.iter().any(|(paused, _)| *paused == operator);
        match fault {
            Fault::KillOperator => {
                self.operators[operator].signal("KILL");
                self.paused.retain(|(paused, _)| *paused != operator);
                self.operators[operator] = start(&self.world, operator);
            }
            Fault::PauseOperator if !is_paused => {
                self.operators[operator].signal("STOP");
                self.paused.push((operator, Instant::now() + 3 * LEASE));
            }
            Fault::StopOperator if !is_paused => {
                let new = start(&self.world, operator);
                let old = std::mem::replace(&mut self.operators[operator], new);
                assert_eq!(old.stop().await, Some(0), "an operator that is told to stop ends well");
            }
            Fault::PauseOperator | Fault::StopOperator => {}
            Fault::Kill(server) => {
                self.ground.script(&["kill", server]);
                sleep(Duration::from_millis(self.random.random_range(0..1500))).await;
                self.ground.script(&["start", server]);
            }
            Fault::FlushRedis => {
                let client = redis::Client::open(self.ground.servers.redis.as_str()).unwrap();
                let mut connection = client.get_multiplexed_async_connection().await.unwrap();
                redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
            }
            Fault::StepDown => {
                let admin = self.world.database.client().database("admin");
                admin.run_command(doc! {"replSetStepDown": 1, "force": true}).await.ok();
            }
            Fault::Suspend => self.patch(&run, json!({"suspended": true})).await,
            Fault::Resume => self.patch(&run, json!({"suspended": false})).await,
            Fault::Cancel => {
                self.patch(&run, json!({"cancelled": true})).await;
                self.cancelled.push(run);
            }
            Fault::Reorder => {
                let priority = self.random.random_range(-10..10);
                self.patch(&run, json!({"priority": priority})).await;
            }
            Fault::Delete => {
                if let Some(job) = self.world.jobs().get_opt(&run).await.unwrap() {
                    self.world.jobs().delete(&run, &DeleteParams::background()).await.unwrap();
                    self.deleted.push((run, job.uid().unwrap()));
                }
            }
        }
    }

    async fn patch(&self, run: &str, spec: serde_json::Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        match self.world.jobs().patch(run, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Lets operators go on that were paused for long enough, or all of them.
    fn wake(&mut self, all: bool) {
        let now = Instant::now();
        let (due, rest): (Vec<_>, Vec<_>) = self.paused.drain(..).partition(|(_, until)| all || *until <= now);
        self.paused = rest;
        for (operator, _) in due {
            self.history.note(format!("operator {operator} goes on"));
            self.operators[operator].signal("CONT");
        }
    }

    /// Ends every fault and wish, but those that cannot be taken back.
    async fn heal(&mut self) {
        if let Some((_, until)) = self.paused.last() {
            tokio::time::sleep_until(*until).await;
        }
        self.wake(true);
        for run in 0..RUNS {
            self.patch(&format!("run-{run}"), json!({"suspended": false})).await;
        }
        if self.world.schedules().get_opt("users").await.unwrap().is_some() {
            let patch = Patch::Merge(json!({"spec": {"suspended": true}}));
            self.world.schedules().patch("users", &PatchParams::default(), &patch).await.unwrap();
        }
        for (index, operator) in self.operators.iter_mut().enumerate() {
            assert!(operator.is_running(), "operator {index} ended by itself: {}", operator.log());
        }
        let unfinished = self.jobs().await.iter().filter(|job| !is_finished(job)).count();
        self.history.note(format!("healed; {unfinished} runs have not ended yet"));
    }

    async fn jobs(&self) -> Vec<SyncJob> {
        self.world.jobs().list(&ListParams::default()).await.unwrap().items
    }

    async fn check(&self, seen: &Statuses) {
        let jobs = eventually("every run has ended", async || {
            let jobs = self.jobs().await;
            jobs.iter().all(is_finished).then_some(jobs)
        })
        .await;
        let users = self.world.database.collection::<Document>("users");
        for job in &jobs {
            let (name, status) = (job.name_any(), job.status.clone().unwrap());
            let field = job.spec.target.last_synced_field.clone();
            let counts = status.counts.unwrap_or_default();
            assert_eq!(counts.processed, counts.updated + counts.unchanged + counts.failed, "{name}: {status:?}");
            let cancelled = is_true(&status.conditions, "Failed");
            if cancelled {
                let reason = &status.conditions.iter().find(|found| found.type_ == "Failed").unwrap().reason;
                assert!(reason == "Cancelled" && self.cancelled.contains(&name), "{name}: {status:?}");
                continue;
            }
            let good = i64::from(USERS - REJECTED);
            let start = DateTime::from_millis(status.start_time.as_ref().unwrap().0.as_millisecond());
            let stamped = self.world.count(doc! {&field: {"$gte": start}}).await as i64;
            assert_eq!((stamped, counts.failed), (good, i64::from(REJECTED)), "{name}: {status:?}");
            assert_eq!((status.progress, counts.processed), (Some(100), i64::from(USERS)), "{name}: {status:?}");
            assert_eq!(counts.updated + counts.unchanged, good, "{name}: {status:?}");
            if name.starts_with("run-") {
                assert_eq!(self.world.count(doc! {&field: start}).await as i64, good, "{name}: one stamp");
                assert_eq!(counts.updated, good, "{name}: {status:?}");
            }
        }
        let mut slots: Vec<_> =
            jobs.iter().filter_map(|job| job.annotations().get("sync.codex.dev/scheduled-at")).collect();
        let made = slots.len();
        slots.sort();
        slots.dedup();
        assert_eq!(slots.len(), made, "one SyncJob for each slot");
        seen.check(&jobs);

        // Whoever still wrote would stamp these again.
        let clear: Document = (0..RUNS).map(|run| (format!("f{run}"), bson::Bson::from(""))).collect();
        let some = doc! {"_id": {"$gte": USERS / 2}};
        users.update_many(some.clone(), doc! {"$unset": clear}).await.unwrap();
        self.nothing_of_the_deleted_in_redis().await;
        sleep(2 * LEASE).await;
        let again = (0..RUNS).map(|run| doc! {format!("f{run}"): {"$exists": true}}).collect::<Vec<_>>();
        let again = self.world.count(doc! {"$and": [some, {"$or": again}]}).await;
        assert_eq!(again, 0, "documents were stamped after the end of the runs");
        let after = self.jobs().await;
        for (before, after) in jobs.iter().zip(&after) {
            assert_eq!(before.status, after.status, "{} changed after its end", before.name_any());
        }
    }

    async fn nothing_of_the_deleted_in_redis(&self) {
        let client = redis::Client::open(self.ground.servers.redis.as_str()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let key = |uid: &str| format!("{{sync:{}}}:run:{uid}", self.world.name);
        for (name, uid) in &self.deleted {
            eventually(&format!("nothing of {name} is in Redis"), async || {
                let found: u8 = redis::cmd("EXISTS").arg(key(uid)).query_async(&mut connection).await.unwrap();
                (found == 0).then_some(())
            })
            .await;
        }
    }
}

/// Every status a SyncJob was seen with, by uid.
struct Statuses {
    seen: Arc<Mutex<HashMap<String, Vec<SyncJobStatus>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Statuses {
    fn follow(world: &World) -> Self {
        let seen: Arc<Mutex<HashMap<String, Vec<SyncJobStatus>>>> = Arc::default();
        let (jobs, kept) = (world.jobs(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(jobs, watcher::Config::default()));
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(job) | watcher::Event::InitApply(job)) => {
                        let (Some(uid), Some(status)) = (job.uid(), job.status) else { continue };
                        kept.lock().unwrap().entry(uid).or_default().push(status);
                    }
                    Ok(_) => {}
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Self { seen, task }
    }

    fn check(&self, jobs: &[SyncJob]) {
        let seen = self.seen.lock().unwrap();
        for job in jobs {
            let name = job.name_any();
            let statuses = seen.get(&job.uid().unwrap()).map(Vec::as_slice).unwrap_or_default();
            let terminal = |status: &SyncJobStatus| {
                (is_true(&status.conditions, "Complete"), is_true(&status.conditions, "Failed"))
            };
            for pair in statuses.windows(2) {
                assert!(pair[0].progress <= pair[1].progress, "{name}: progress went back: {pair:?}");
                if terminal(&pair[0]) != (false, false) {
                    assert_eq!(pair[0], pair[1], "{name} changed after its end");
                }
                let starts = (&pair[0].start_time, &pair[1].start_time);
                assert!(starts.0.is_none() || starts.0 == starts.1, "{name}: its start changed: {pair:?}");
            }
            let last = job.status.as_ref().map(terminal);
            assert!(matches!(last, Some((true, false) | (false, true))), "{name}: {last:?}");
        }
    }
}

impl Drop for Statuses {
    fn drop(&mut self) {
        self.task.abort();
    }
}
