//! One round: its own environment, operators, runs, and the faults of the plan.

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    fmt::Display,
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bson::{Document, doc};
use futures::{FutureExt, future::join_all};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sync_operator::api::{SyncJob, SyncSchedule, source::Batching};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard},
    time::{Instant, sleep},
};

use super::{
    FETCHING, LEASE, LIMIT, OPERATORS, REJECTED, ROLLED_BACK, RUNS, USERS,
    check::Statuses,
    environment::{Environment, MEMBERS},
    plan::{Fault, plan_faults},
};
use crate::{
    support::{Operator, TestEnv, source as manifest},
    upstream::{Instead, Upstream},
};

/// Lines of each operator's log that a report shows.
const TAIL: usize = 15;

/// The faults and checks of a round, with times.
#[derive(Clone)]
pub struct History(Arc<Mutex<Vec<String>>>, Instant);

impl History {
    pub fn note(&self, what: impl Display) {
        self.0.lock().unwrap().push(format!("{:7.3} s  {what}", self.elapsed()));
    }

    pub fn elapsed(&self) -> f64 {
        self.1.elapsed().as_secs_f64()
    }
}

pub struct Round<'a> {
    pub environment: &'a Environment,
    pub env: TestEnv,
    pub history: History,
    pub statuses: Statuses,
    /// By uid.
    pub cancelled: Mutex<HashSet<String>>,
    /// Name and uid.
    pub deleted: Mutex<Vec<(String, String)>>,
    pub upstream: Upstream,
    operators: Vec<AsyncMutex<Operator>>,
    /// Locks of the servers, proxies and runs: only one fault at the same time changes each of them.
    locks: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    logs: PathBuf,
}

/// Plays the round of a seed. Returns a summary, or the report of a failure.
pub async fn play(environment: &Environment, seed: u64) -> Result<String, String> {
    let history = History(Arc::default(), Instant::now());
    let logs = environment.folder().join(format!("seed-{seed}"));
    fs::create_dir_all(&logs).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let env = TestEnv::on(environment.servers.clone()).await;
    env.seed(USERS, REJECTED).await;
    let round = Round {
        environment,
        history: history.clone(),
        statuses: Statuses::follow(&env, history),
        cancelled: Mutex::default(),
        deleted: Mutex::default(),
        upstream: Upstream::with_people(USERS as usize).await,
        operators: (0..OPERATORS).map(|operator| AsyncMutex::new(start(environment, &env, &logs, operator))).collect(),
        locks: Mutex::default(),
        logs,
        env,
    };
    let played = AssertUnwindSafe(round.play(&mut random)).catch_unwind().await;
    match played {
        Ok(summary) => {
            round.env.database.drop().await.ok();
            fs::remove_dir_all(&round.logs).unwrap();
            Ok(summary)
        }
        Err(panic) => Err(round.report(&*panic)),
    }
}

/// Starts an operator with the arguments of all operators.
fn start(environment: &Environment, env: &TestEnv, logs: &Path, operator: usize) -> Operator {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let lease = format!("{}s", LEASE.as_secs());
    let log = "warn,sync_operator=debug";
    let common =
        ["--lease-duration", &lease, "--workers", "2", "--log-level", log, "--source-allowed-cidrs", "127.0.0.0/8"];
    let leader = ["--leader-lease-duration", "2s", "--resync-interval", "1s", "--status-interval", "200ms"];
    let servers = environment.operator_servers(operator);
    let started = if operator + 1 < OPERATORS {
        env.operator_on(servers, "controller", &[&common[..], &leader].concat())
    } else {
        env.operator_on(servers, "worker", &common)
    };
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    started.keep_log(&logs.join(format!("operator-{operator}-{number:04}.log")));
    started
}

/// A document of the run that is rolled back.
pub fn rolled_back(id: i32) -> Document {
    let email = if id < REJECTED { "nobody" } else { "a@b" };
    doc! {"_id": id, "email": email, "profile": {"age": id, "name": "before"}, "fetched": "never"}
}

/// Answers of which about one in ten is faulty, in various ways.
fn random_answers(mut random: StdRng) -> Box<dyn FnMut() -> Option<Instead> + Send> {
    Box::new(move || match random.random_range(0..100) {
        0..=1 => Some(Instead::Status(500, vec![])),
        2 => Some(Instead::Status(429, vec![("retry-after", "1".to_owned())])),
        3 => Some(Instead::Status(429, vec![])),
        4 => Some(Instead::Body(r#"{"data": {"users": {"nodes": [{"id": "1","#.to_owned())),
        5 => Some(Instead::Body(r#"{"data": {"users": {"nodes": 5}, "user": null}}"#.to_owned())),
        6 => Some(Instead::Silence(Duration::from_secs(2))),
        7 => Some(Instead::Huge(200)),
        8..=9 => Some(Instead::Twice),
        10 if random.random_bool(0.1) => {
            Some(Instead::Status(302, vec![("location", "http://169.254.169.254/latest/meta-data/".to_owned())]))
        }
        _ => None,
    })
}

impl Round<'_> {
    async fn play(&self, random: &mut StdRng) -> String {
        self.upstream.change();
        self.make_runs(random).await;
        self.history.note("runs are made");
        let (scheduled, faults) = (random.random_bool(0.3), plan_faults(random));
        if scheduled {
            self.make_schedule().await;
        }
        let began = Instant::now();
        let count = faults.len();
        self.upstream.state().next_answer = Some(random_answers(StdRng::seed_from_u64(random.random())));
        let changes = async {
            loop {
                self.upstream.change();
                sleep(Duration::from_millis(300)).await;
            }
        };
        let injected = faults.into_iter().map(|(at, fault)| async move {
            tokio::time::sleep_until(began + at).await;
            self.inject(fault).await;
        });
        tokio::select! {
            _ = join_all(injected) => {}
            () = changes => {}
        }
        self.upstream.state().next_answer = None;
        self.end_faults(scheduled).await;
        let unfinished = self.check().await;
        format!("{count} faults; {unfinished} runs had not ended when they were over")
    }

    async fn make_runs(&self, random: &mut StdRng) {
        for run in 0..RUNS {
            // The last two stamp the same field: of each document, the later one wins.
            let field = if run < RUNS - 2 { format!("f{run}") } else { "shared".to_owned() };
            let some = run < RUNS - 2 && random.random_bool(0.3);
            let filter = if some { json!({"_id": {"$lt": random.random_range(USERS / 2..USERS)}}) } else { json!({}) };
            let kind = if run < RUNS - 2 && random.random_bool(0.3) { "Incremental" } else { "Full" };
            let spec = if let Some(how) = FETCHING.get(run) {
                self.fetching(*how)
            } else {
                json!({
                    "syncType": kind, "batchSize": random.random_range(20..200), "parallelism": random.random_range(1..4),
                    "backoffLimit": 100, "backoff": {"initial": "200ms", "factor": 1, "jitter": 0.5},
                    "target": {"lastSyncedField": field, "filter": filter},
                })
            };
            self.make_run(&format!("run-{run}"), &spec).await;
        }
        self.make_rolled_back().await;
    }

    /// A spec of a run that fetches the names of users: by batch, one by one for some of them, or by pages of all.
    pub fn fetching(&self, how: Batching) -> Value {
        let mut source = match how {
            Batching::PerBatch => json!({
                "query": "query ($ids: [ID!]!) { users(ids: $ids) { nodes { id name } } }",
                "resultPath": "/data/users/nodes",
            }),
            Batching::PerUser => json!({
                "query": "query ($id: UserID!) { user(id: $id) { name } }",
                "resultPath": "/data/user",
            }),
            Batching::Pages => json!({
                "query": "query ($first: Int!, $after: String) { people(first: $first, after: $after) {
                    nodes { id name } pageInfo { hasNextPage endCursor } } }",
                "resultPath": "/data/people/nodes",
                "keyType": "Int",
                "pagination": {"nextPath": "/data/people/pageInfo/endCursor", "morePath": "/data/people/pageInfo/hasNextPage"},
            }),
        };
        // The runs share one source. Of two answers, the later one stays in a document.
        source["name"] = "users".into();
        source["batching"] = serde_json::to_value(how).unwrap();
        source["endpoint"] = self.upstream.url.clone().into();
        source["timeout"] = "1s".into();
        let filter = if how == Batching::PerUser { json!({"_id": {"$lt": 300}}) } else { json!({}) };
        json!({
            "syncType": "Full", "batchSize": 50, "parallelism": 3,
            "transaction": if how == Batching::Pages { "Batch" } else { "None" },
            "backoffLimit": 100, "backoff": {"initial": "200ms", "factor": 1, "jitter": 0.5},
            "target": {"lastSyncedField": "fetched", "filter": filter},
            "source": manifest("graphQL", &source),
            "mapping": [{"from": "/name", "to": "profile.name", "type": "String"}],
        })
    }

    /// Creates a run that always fails in the end, and leaves its collection unchanged.
    async fn make_rolled_back(&self) {
        let database = &self.env.database;
        let documents = (0..ROLLED_BACK).map(rolled_back);
        self.env.database.collection("rolled").insert_many(documents).await.unwrap();
        let rule = doc! {"email": {"$regex": "@"}};
        database.run_command(doc! {"collMod": "rolled", "validator": rule}).await.unwrap();
        let mut spec = self.fetching(Batching::PerBatch);
        spec["batchSize"] = json!(10);
        spec["transaction"] = json!("Batch");
        spec["onFailure"] = json!("Rollback");
        spec["failurePolicy"] = json!({"maxFailedPercent": 1});
        spec["target"]["collection"] = json!("rolled");
        self.make_run("rolled-back", &spec).await;
    }

    pub async fn make_run(&self, name: &str, spec: &Value) {
        let job = SyncJob::new(name, serde_json::from_value(spec.clone()).unwrap());
        match retry_request(async || self.env.jobs().create(&PostParams::default(), &job).await).await {
            // An earlier request has created it, and its answer was lost.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            made => drop(made.unwrap()),
        }
    }

    async fn make_schedule(&self) {
        let spec = json!({"interval": "2s", "jobTemplate": {"spec": {"syncType": "Full", "backoffLimit": 100,
            "backoff": {"initial": "200ms", "factor": 1}, "target": {"lastSyncedField": "scheduled"}}}});
        let schedule = SyncSchedule::new("users", serde_json::from_value(spec).unwrap());
        self.env.schedules().create(&PostParams::default(), &schedule).await.unwrap();
    }

    async fn inject(&self, fault: Fault) {
        let text = format!("{fault:?}");
        self.history.note(&text);
        match fault {
            Fault::KillOperator(operator, gone) => {
                let mut process = self.operators[operator].lock().await;
                process.signal("KILL");
                sleep(gone).await;
                *process = self.start(operator);
            }
            Fault::PauseOperator(operator, pause) => {
                let process = self.operators[operator].lock().await;
                process.signal("STOP");
                sleep(pause).await;
                process.signal("CONT");
            }
            Fault::StopOperator(operator, gone) => {
                let mut process = self.operators[operator].lock().await;
                assert!(process.is_running(), "operator {operator} ended by itself");
                // Before the process handles signals, SIGTERM kills it.
                let listens = process.log().contains("started");
                let code = process.stop_and_wait().await;
                assert!(code == Some(0) || !listens, "operator {operator} received SIGTERM, and ended with {code:?}");
                sleep(gone).await;
                *process = self.start(operator);
            }
            Fault::KillServer(server, gone) => {
                let lock = self.lock_of(server);
                let _guard = lock.lock().await;
                self.environment.server("kill", server).await;
                sleep(gone).await;
                self.environment.server("start", server).await;
            }
            Fault::FlushRedis => {
                let lock = self.lock_of("redis");
                let _guard = lock.lock().await;
                let mut connection = self.redis().await;
                redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
            }
            Fault::StepDown => join_all(MEMBERS.map(|member| self.step_down(member))).await.into_iter().collect(),
            Fault::AddToxic(proxies, toxic, lasts) => {
                let locks: Vec<_> = proxies.iter().map(|proxy| self.lock_of(proxy)).collect();
                // All faults lock in the same order.
                let mut guards: Vec<MutexGuard<()>> = Vec::new();
                for lock in &locks {
                    guards.push(lock.lock().await);
                }
                join_all(proxies.iter().map(|proxy| self.environment.add_toxic(proxy, &toxic))).await;
                sleep(lasts).await;
                join_all(proxies.iter().map(|proxy| self.environment.remove_toxic(proxy, &toxic))).await;
            }
            Fault::PatchSpec(run, spec) => self.patch_spec(run, &spec).await,
            Fault::Delete(run) => self.delete(run).await.map_or((), drop),
            Fault::Replace(run) => {
                if let Some(mut job) = self.delete(run).await {
                    job.spec.suspended = false;
                    job.spec.cancelled = false;
                    let mut spec = serde_json::to_value(&job.spec).unwrap();
                    // An Incremental run would leave out the documents that the first run stamped.
                    spec["syncType"] = json!("Full");
                    self.make_run(&format!("run-{run}"), &spec).await;
                }
            }
        }
        self.history.note(format_args!("over: {text}"));
    }

    fn start(&self, operator: usize) -> Operator {
        start(self.environment, &self.env, &self.logs, operator)
    }

    fn lock_of(&self, of: &str) -> Arc<AsyncMutex<()>> {
        Arc::clone(self.locks.lock().unwrap().entry(of.to_owned()).or_default())
    }

    pub async fn redis(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.environment.servers.redis.as_str()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// Asks a member to step down. Only the primary does.
    async fn step_down(&self, member: &str) {
        let lock = self.lock_of(member);
        // A member that is killed or disconnected cannot answer.
        let Ok(_guard) = lock.try_lock() else { return };
        let admin = self.environment.member(member).await;
        admin.run_command(doc! {"replSetStepDown": 1, "force": true}).await.ok();
    }

    async fn patch_spec(&self, run: usize, spec: &Value) {
        let name = format!("run-{run}");
        let lock = self.lock_of(&name);
        let _guard = lock.lock().await;
        let patch = Patch::Merge(json!({ "spec": spec }));
        match retry_request(async || self.env.jobs().patch(&name, &PatchParams::default(), &patch).await).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            patched => {
                if let (Some(uid), true) = (patched.unwrap().uid(), spec["cancelled"] == true) {
                    self.cancelled.lock().unwrap().insert(uid);
                }
            }
        }
    }

    /// Deletes a SyncJob. Returns it as it was.
    async fn delete(&self, run: usize) -> Option<SyncJob> {
        let name = format!("run-{run}");
        let lock = self.lock_of(&name);
        let _guard = lock.lock().await;
        let job = retry_request(async || self.env.jobs().get_opt(&name).await).await.unwrap()?;
        let preconditions = Preconditions { uid: job.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match retry_request(async || self.env.jobs().delete(&name, &params).await).await {
            // An earlier request has deleted it, and its answer was lost.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            deleted => drop(deleted.unwrap()),
        }
        self.deleted.lock().unwrap().push((name, job.uid().unwrap()));
        Some(job)
    }

    /// Resumes the suspended runs after the faults, so that all runs can end.
    async fn end_faults(&self, scheduled: bool) {
        for run in 0..RUNS {
            self.patch_spec(run, &json!({"suspended": false})).await;
        }
        if scheduled {
            let patch = Patch::Merge(json!({"spec": {"suspended": true}}));
            retry_request(async || self.env.schedules().patch("users", &PatchParams::default(), &patch).await)
                .await
                .unwrap();
        }
        for (index, operator) in self.operators.iter().enumerate() {
            assert!(operator.lock().await.is_running(), "operator {index} ended by itself");
        }
        self.history.note("healed");
    }

    pub async fn jobs(&self) -> Vec<SyncJob> {
        retry_request(async || self.env.jobs().list(&ListParams::default()).await).await.unwrap().items
    }

    pub fn users(&self) -> mongodb::Collection<Document> {
        self.env.database.collection("users")
    }

    /// Report of a failure: the failed check, the faults, the statuses of the SyncJobs that it names, and
    /// the ends of the logs.
    fn report(&self, panic: &(dyn Any + Send)) -> String {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
        let mut report = format!("{text}\n\nWhat was done:\n{}\n", self.history.0.lock().unwrap().join("\n"));
        let words: HashSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
        report += &self.statuses.describe(&words);
        let mut logs: Vec<_> = fs::read_dir(&self.logs).unwrap().map(|entry| entry.unwrap().path()).collect();
        logs.sort();
        for log in logs {
            let text = fs::read_to_string(&log).unwrap();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
            report += &format!("\nThe end of {}:\n{tail}\n", log.display());
        }
        report
    }
}

/// Repeats a request until the API server answers.
pub async fn retry_request<T>(mut request: impl AsyncFnMut() -> kube::Result<T>) -> kube::Result<T> {
    let began = Instant::now();
    loop {
        match request().await {
            Err(kube::Error::Api(status))
                if (400..500).contains(&status.code) && ![403, 429].contains(&status.code) =>
            {
                return Err(kube::Error::Api(status));
            }
            Err(error) if began.elapsed() > LIMIT => return Err(error),
            Err(_) => sleep(Duration::from_millis(50)).await,
            answer => return answer,
        }
    }
}
