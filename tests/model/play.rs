//! Plays a case: creates its collection, and drives attempts of the engine in this process.

use std::{
    collections::{BTreeMap, HashMap},
    future::{Future, poll_fn, ready},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bson::{Bson, Document, doc};
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use jiff::Timestamp;
use mongodb::{Database, IndexModel, options::IndexOptions};
use sync_operator::{
    api::SyncJobSpec,
    domain::{
        policy::Policy,
        rate_limit::{Reservation, SharedRateLimit},
        run::{Checkpoint, LeaseState, RunSpec},
    },
    engine::{
        AttemptResult, CoordinationError, Coordinator, GivenSecrets, Opening, RunAttempt, SecretReader, Signals,
        Sources,
    },
    policy::CurrentPolicy,
    sync::{Deployment, SourceBudgets},
    telemetry::traces::Parent,
};
use tokio::sync::watch;

use crate::{
    case::{Case, Kill, NAMESPACE, RunCase, Start, Step},
    oracle::{Oracle, Sums},
    stage::{ActiveRun, Stage, Stages, id_of},
};

/// Limit of the attempts of one run. More attempts are an error.
const MOST_ATTEMPTS: u32 = 30;
/// Limit of the failed attempts of one run. With one more, the run has failed.
const RETRIES: u32 = 2;

/// An unused certificate authority. Without one, each attempt would read the authorities of the machine, which takes
/// longer than the attempt.
const AUTHORITY: &[u8] = include_bytes!("authority.pem");

/// The sources that runs may use.
pub fn sources() -> Sources {
    let mut secrets = GivenSecrets::default();
    secrets.insert("authority".to_owned(), "pem".to_owned(), AUTHORITY.to_owned());
    let policy = CurrentPolicy::fixed(Policy::anywhere());
    Sources { policy, secrets: SecretReader::Given(secrets), budgets: SourceBudgets::default() }
}

/// The environment of all cases.
pub struct Environment {
    pub deployment: Deployment,
    pub sources: Sources,
    pub database: Database,
    pub stages: Stages,
    /// Address of the sources.
    pub address: String,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Completed,
    Failed(String),
    /// The run waits for an approval that never comes.
    Held,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct RunResult {
    pub number: usize,
    pub case: RunCase,
    pub started: i64,
    pub ended: i64,
    pub attempts: u32,
    /// Attempts that used all their answers.
    pub whole: Vec<u32>,
    /// True when an attempt was killed.
    pub was_killed: bool,
    pub end: End,
    pub checkpoint: Checkpoint,
    /// Number of approved removals.
    pub approved: Option<u64>,
    /// Number of holds.
    pub holds: u32,
    /// Number of removals of the last hold.
    pub held: Option<u64>,
}

pub type Snapshot = BTreeMap<String, Document>;

/// Coordinates the attempts of one run.
struct TestCoordinator {
    stage: Arc<Stage>,
    signals: Signals,
    saved: watch::Sender<Checkpoint>,
    saves: AtomicU32,
    kill: Option<Kill>,
}

impl Coordinator for TestCoordinator {
    fn save<'a>(&'a self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, LeaseState> {
        let number = self.saves.fetch_add(1, Ordering::SeqCst);
        let state = match self.kill {
            // The worker does not know whether the queue has saved the checkpoint.
            Some(Kill::Save(at)) if number >= at / 2 => {
                if at % 2 == 0 {
                    self.saved.send_replace(checkpoint.clone());
                }
                self.signals.lost.cancel();
                LeaseState::Lost
            }
            _ => {
                self.saved.send_replace(checkpoint.clone());
                LeaseState::Held
            }
        };
        ready(state).boxed()
    }

    fn signals(&self) -> &Signals {
        &self.signals
    }

    fn reserve_request<'a>(
        &'a self,
        _: &'a [SharedRateLimit],
    ) -> BoxFuture<'a, Result<Reservation, CoordinationError>> {
        ready(Ok(Reservation::After(Duration::ZERO))).boxed()
    }

    fn pause_requests<'a>(&'a self, _: &'a str, pause: Duration) -> BoxFuture<'a, Result<(), CoordinationError>> {
        self.stage.clock.advance(pause.as_millis() as i64);
        ready(Ok(())).boxed()
    }

    fn now(&self) -> Timestamp {
        self.stage.clock.now()
    }
}

/// Drops `work` after this number of polls, and then returns `None`.
async fn polled<T>(work: impl Future<Output = T>, most: Option<u32>) -> Option<T> {
    let (mut work, mut polls) = (pin!(work), 0);
    poll_fn(|context| {
        polls += 1;
        if most.is_some_and(|most| polls > most) {
            return Poll::Ready(None);
        }
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// Plays a case. `Err` has the report of a failure.
pub async fn play(environment: &Environment, case: Case) -> Result<Sums, String> {
    let seed = case.seed;
    let name = format!("case_{seed}");
    environment.prepare(&case, &name).await;
    let stage = Arc::new(Stage::new(case, environment.database.collection(&name)));
    environment.stages.lock().unwrap().insert(seed, Arc::clone(&stage));
    let played = Player { environment, stage: &stage, collection: &name }.play().await;
    environment.stages.lock().unwrap().remove(&seed);
    played
}

impl Environment {
    async fn prepare(&self, case: &Case, name: &str) {
        let refused = doc! {"$nor": [{"a.name": {"$regex": "^refused"}}, {"b.name": {"$regex": "^refused"}}]};
        let mut create = doc! {"create": name, "validator": refused};
        if case.collation {
            create.insert("collation", doc! {"locale": "en", "strength": 2});
        }
        self.database.run_command(create).await.unwrap();
        let collection = self.database.collection::<Document>(name);
        if let Some(is_unique) = case.index {
            let options = IndexOptions::builder().unique(is_unique).sparse(is_unique).build();
            let index = IndexModel::builder().keys(doc! {case.key_field: 1}).options(options).build();
            collection.create_index(index).await.unwrap();
        }
        let documents: Vec<Document> =
            case.documents.iter().zip(0..).map(|(start, id)| first_document(case, start, id)).collect();
        if !documents.is_empty() {
            collection.insert_many(documents).await.unwrap();
        }
    }
}

fn first_document(case: &Case, start: &Start, id: i32) -> Document {
    match start {
        Start::Keyed { number, form, team, stamped } => {
            let mut document = case.document(id, Some(case.keys.bson(*number, *form)), team);
            if *stamped {
                document.insert("lastSynced", bson::DateTime::from_millis(1_600_000_000_000));
                document.insert("a", doc! {"name": "of old"});
            }
            document
        }
        Start::Keyless => case.document(id, None, "x"),
        Start::NullKey => case.document(id, Some(Bson::Null), "x"),
        Start::ArrayKey => {
            let keys = vec![case.keys.bson(200, 0), case.keys.bson(201, 0)];
            case.document(id, Some(keys.into()), "x")
        }
    }
}

struct Player<'a> {
    environment: &'a Environment,
    stage: &'a Arc<Stage>,
    collection: &'a str,
}

impl Player<'_> {
    async fn play(&self) -> Result<Sums, String> {
        let mut oracle = Oracle::new(self.stage);
        for (number, step) in self.stage.case.steps.iter().enumerate() {
            match step {
                Step::Changes(changes) => {
                    for change in changes {
                        self.stage.apply(*change).await;
                    }
                    oracle.forget_done();
                }
                Step::Wait(millis) => self.stage.clock.advance(*millis),
                Step::Run(run) => {
                    let before = self.snapshot().await;
                    let active = self.add_run(run);
                    let played = vec![self.run(active).await?];
                    let after = self.snapshot().await;
                    oracle.check(before, &after, &played).map_err(|violations| report(number, &played, &violations))?;
                }
                Step::Both(first, second, request) => {
                    let before = self.snapshot().await;
                    let (one, other) = (self.add_run(first), self.add_run(second));
                    let later = async {
                        self.reached(one, *request).await;
                        self.run(other).await
                    };
                    let both = async {
                        let first = self.run(one).await;
                        // The first run may have ended before the start of the second run.
                        self.stage.record().active_runs[one].requests = u32::MAX / 2;
                        self.stage.requested.notify_waiters();
                        first
                    };
                    let (first, second) = tokio::join!(both, later);
                    let played = vec![first?, second?];
                    let after = self.snapshot().await;
                    oracle.check(before, &after, &played).map_err(|violations| report(number, &played, &violations))?;
                }
            }
        }
        Ok(oracle.sums)
    }

    async fn snapshot(&self) -> Snapshot {
        let _no_changes = self.stage.busy.write().await;
        let documents: Vec<Document> = self.stage.collection.find(doc! {}).await.unwrap().try_collect().await.unwrap();
        documents.into_iter().map(|document| (id_of(&document), document)).collect()
    }

    fn add_run(&self, case: &RunCase) -> usize {
        let mut record = self.stage.record();
        record.active_runs.push(ActiveRun {
            case: case.clone(),
            attempt: 0,
            requests: 0,
            kill: None,
            killed: Default::default(),
            recalled: Default::default(),
        });
        record.active_runs.len() - 1
    }

    /// Waits until a run has sent this number of requests.
    async fn reached(&self, run: usize, requests: u32) {
        loop {
            let mut requested = pin!(self.stage.requested.notified());
            requested.as_mut().enable();
            if self.stage.record().active_runs[run].requests >= requests {
                return;
            }
            requested.await;
        }
    }

    /// Executes a run as a worker would, attempt by attempt.
    async fn run(&self, number: usize) -> Result<RunResult, String> {
        let case = self.stage.record().active_runs[number].case.clone();
        let base = format!("{}/{}/{number}", self.environment.address, self.stage.case.seed);
        let spec = self.stage.case.spec(&case, self.collection, &base);
        let spec: SyncJobSpec = serde_json::from_value(spec).map_err(|error| format!("the spec: {error}"))?;
        let spec = RunSpec::parse(&spec).map_err(|error| format!("the spec: {error}"))?;
        let started = self.stage.clock.tick();
        let mut run = RunResult {
            number,
            case,
            started,
            ended: 0,
            attempts: 0,
            whole: Vec::new(),
            was_killed: false,
            end: End::Completed,
            checkpoint: Checkpoint::default(),
            approved: None,
            holds: 0,
            held: None,
        };
        let (mut failed, mut approved, mut kills, mut approvals) =
            (0, None, run.case.kills.clone(), run.case.approvals.clone());
        kills.reverse();
        approvals.reverse();
        let mut rolls_back = None;
        loop {
            run.attempts += 1;
            if run.attempts > MOST_ATTEMPTS {
                return Err(format!("run {number} has no end: {run:?}"));
            }
            let result = self.attempt(&mut run, &spec, approved, kills.pop(), rolls_back.clone()).await;
            match result {
                None | Some(AttemptResult::LeaseLost) => run.was_killed = true,
                Some(AttemptResult::Completed) => {
                    run.whole.push(run.attempts);
                    run.end = End::Completed;
                    break;
                }
                Some(AttemptResult::Failed(outcome)) => {
                    if spec.rollback && rolls_back.is_none() {
                        rolls_back = Some(outcome);
                        continue;
                    }
                    run.end = End::Failed(format!("{}: {}", outcome.reason, outcome.message));
                    break;
                }
                Some(AttemptResult::Retry(outcome)) => {
                    failed += 1;
                    if failed > RETRIES {
                        if spec.rollback && rolls_back.is_none() {
                            rolls_back = Some(outcome);
                            continue;
                        }
                        run.end = End::Failed(format!("{}: {}", outcome.reason, outcome.message));
                        break;
                    }
                }
                Some(AttemptResult::Paused(pause)) => self.stage.clock.advance(pause.as_millis() as i64),
                Some(AttemptResult::Released) => {}
                Some(AttemptResult::Held(most)) => {
                    run.whole.push(run.attempts);
                    run.holds += 1;
                    let is_of_removals = run.checkpoint.hold.as_ref().is_some_and(|hold| !hold.keys.is_empty());
                    run.held = is_of_removals.then_some(most);
                    let Some(more) = approvals.pop() else {
                        run.end = End::Held;
                        break;
                    };
                    let number = most.saturating_add_signed(more);
                    approved = Some(number);
                    if is_of_removals {
                        run.approved = run.approved.max(Some(number));
                    }
                }
            }
        }
        run.ended = self.stage.clock.tick();
        Ok(run)
    }

    /// One attempt. `None`: it was killed, and the run continues at its last saved checkpoint.
    async fn attempt(
        &self,
        run: &mut RunResult,
        spec: &RunSpec,
        approved: Option<u64>,
        kill: Option<Kill>,
        rolls_back: Option<sync_operator::domain::run::Outcome>,
    ) -> Option<AttemptResult> {
        let signals = Signals::default();
        {
            let mut record = self.stage.record();
            let active = &mut record.active_runs[run.number];
            active.attempt = run.attempts;
            let requests = active.requests;
            active.kill = match kill {
                Some(Kill::Request(after)) => Some(Kill::Request(requests + after)),
                Some(Kill::Recall(after)) => Some(Kill::Recall(requests + after)),
                _ => None,
            };
            active.killed = Default::default();
            active.recalled = signals.recalled.clone();
        }
        let killed = self.stage.record().active_runs[run.number].killed.clone();
        let (saved, last_saved) = watch::channel(run.checkpoint.clone());
        let coordinator =
            TestCoordinator { stage: Arc::clone(self.stage), signals, saved, saves: AtomicU32::new(0), kill };
        let uid = format!("{}-{}", self.stage.case.seed, run.number);
        let opening = Opening {
            uid,
            namespace: NAMESPACE.to_owned(),
            epoch: run.attempts.into(),
            type_: sync_operator::api::syncjob::SyncType::User,
            spec: spec.clone(),
            started: Timestamp::from_millisecond(run.started).unwrap(),
            parked_for: Duration::ZERO,
            checkpoint: run.checkpoint.clone(),
            approved,
            rolls_back: rolls_back.is_some(),
            trace: Parent::default(),
        };
        let polls = match kill {
            Some(Kill::Polls(most)) => Some(most),
            _ => None,
        };
        let work = async {
            let mut attempt = match RunAttempt::open(
                opening,
                &self.environment.deployment,
                &self.environment.sources,
                Arc::new(coordinator),
            )
            .await
            {
                Ok(attempt) => attempt,
                Err(error) => return (AttemptResult::from(&error), None),
            };
            let result = match rolls_back {
                Some(outcome) => attempt.roll_back(outcome).await,
                None => attempt.drive().await,
            };
            let (target, checkpoint) = attempt.into_parts();
            if result == AttemptResult::Completed {
                target.drop_journal().await.unwrap();
            }
            (result, Some(checkpoint))
        };
        let done = killed.run_until_cancelled(polled(work, polls)).await.flatten();
        match done {
            Some((AttemptResult::LeaseLost, _)) | None => {
                run.checkpoint = last_saved.borrow().clone();
                None
            }
            Some((result, checkpoint)) => {
                run.checkpoint = checkpoint.unwrap_or_else(|| run.checkpoint.clone());
                Some(result)
            }
        }
    }
}

fn report(step: usize, played: &[RunResult], violations: &[String]) -> String {
    let mut text = format!("step {step}: {}\n", violations.join("\n  "));
    for run in played {
        text += &format!(
            "  run {} of source {:?}: {:?} from {} to {}, {} attempts, killed {}, approved {:?}, {:?}\n    {:?}\n",
            run.number,
            run.case.source,
            run.end,
            run.started % 1_000_000,
            run.ended % 1_000_000,
            run.attempts,
            run.was_killed,
            run.approved,
            run.checkpoint,
            run.case
        );
    }
    text
}

/// Adds the numbers of events.
pub fn add(all: &mut HashMap<&'static str, u64>, more: &Sums) {
    for (name, number) in more.iter() {
        *all.entry(name).or_default() += number;
    }
}
