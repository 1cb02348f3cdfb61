//! Operations on a queue and its model, compared after each operation.

use proptest::test_runner::{Config, TestRunner};
use redis::AsyncCommands;
use sync_operator::{
    domain::run::{LeaseState, State},
    queue::{Control, Disposition, FencedWrite, NewRun, Queue, Release, Repaired},
};
use tokio::runtime::Builder;

use super::{
    fairness::{claims_before, crowd, crowd_uids, enqueue_guest},
    model::{Model, ModelRun, NAMESPACES, Operation, ReleaseKind, UIDS, WORKERS, operations},
    support::{LEASE, Progress, Raw, SETS, build_release, claim, entry, named_queue, uids},
};
use crate::support::{claim_one, unique};

/// A queue with its model, and the number of the current operation.
struct Game {
    queue: Queue,
    raw: Raw,
    model: Model,
    step: usize,
}

impl Game {
    async fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Enqueue { run, priority, rollback } => self.enqueue(run, priority, rollback).await,
            Operation::Claim { worker } => self.claim(WORKERS[worker]).await,
            Operation::Remove { run } => self.remove(run).await,
            Operation::Renew { run, age } => self.renew(run, age).await,
            Operation::Checkpoint { run, age } => self.checkpoint(run, age).await,
            Operation::Control { run, suspended, cancelled, priority, approved } => {
                let cancelled = cancelled.then_some("{}");
                self.control(run, Control { suspended, cancelled, priority, approved }).await;
            }
            Operation::Misplace { run } => self.misplace(run).await,
            Operation::Repair => self.repair().await,
            Operation::Expire { run } => self.expire(run).await,
            Operation::Due { run } => self.end_backoff(run).await,
            Operation::Release { runs } => self.release(runs).await,
        }
    }

    async fn enqueue(&mut self, run: usize, priority: i32, rollback: bool) {
        let new = NewRun { priority, rollback, namespace: NAMESPACES[run], ..NewRun::new(UIDS[run], "{}") };
        let is_new = self.model.runs[run].is_none();
        assert_eq!(self.queue.enqueue(&new).await.unwrap(), is_new);
        if is_new {
            self.model.runs[run] = Some(ModelRun::new(priority, rollback));
            self.model.wait(run);
        }
    }

    async fn claim(&mut self, worker: &str) {
        let claimed = claim_one(&self.queue, worker).await.unwrap();
        self.model.promote();
        let next = self.model.next();
        assert_eq!(claimed.as_ref().ok().map(|run| run.uid.as_str()), next.map(|run| UIDS[run]));
        let (Ok(claim), Some(run)) = (claimed, next) else { return };
        assert!(!self.model.epochs[run].contains(&claim.entry.epoch), "no epoch is used twice");
        assert_eq!(claim.entry.worker.as_deref(), Some(worker));
        assert_eq!(claim.entry, entry(&self.queue, UIDS[run]).await, "a claim returns the data in Redis");
        self.model.epochs[run].push(claim.entry.epoch);
        self.model.claim(run);
    }

    async fn remove(&mut self, run: usize) {
        self.queue.remove(UIDS[run]).await.unwrap();
        if self.model.runs[run].is_some_and(|run| run.state == State::Waiting) {
            self.model.return_tag(run);
        }
        self.model.runs[run] = None;
    }

    async fn renew(&mut self, run: usize, age: usize) {
        let (epoch, held) = self.model.epoch(run, age);
        let renewed = self.queue.renew(WORKERS[0], &[(UIDS[run].to_owned(), epoch)]).await.unwrap();
        let recalled = held && self.model.runs[run].is_some_and(|run| run.is_recalled());
        assert_eq!((renewed.lost.is_empty(), !renewed.recalled.is_empty()), (held, recalled));
        if let Some(run) = self.model.runs[run].as_mut().filter(|_| held) {
            run.placed = true;
        }
    }

    async fn checkpoint(&mut self, run: usize, age: usize) {
        let (epoch, held) = self.model.epoch(run, age);
        let answer = self.queue.checkpoint(UIDS[run], epoch, &self.step.to_string()).await.unwrap();
        let Some(run) = self.model.runs[run].as_mut().filter(|_| held) else {
            assert_eq!(answer, LeaseState::Lost);
            return;
        };
        assert_eq!(answer, if run.is_recalled() { LeaseState::Recalled } else { LeaseState::Held });
        // A checkpoint this soon after the claim does not count as progress.
        run.checkpoint = Some(self.step);
    }

    async fn control(&mut self, run: usize, control: Control<'_>) {
        let done = self.queue.control(UIDS[run], control).await.unwrap();
        let unfinished = self.model.runs[run].is_some_and(|run| !run.has_ended());
        assert_eq!(done, unfinished);
        if unfinished {
            self.model.control(run, control);
        }
    }

    async fn misplace(&mut self, run: usize) {
        self.raw.remove_from_sets(UIDS[run]).await;
        if let Some(run) = &mut self.model.runs[run] {
            run.placed = false;
        }
    }

    async fn repair(&mut self) {
        let lost = self.model.runs.iter().flatten().filter(|run| !run.placed).count() as u64;
        assert_eq!(self.queue.repair(uids()).await.unwrap(), Repaired { mended: lost, foreign: 0 });
        self.model.repair();
    }

    async fn expire(&mut self, run: usize) {
        let held = self.model.runs[run].is_some_and(|run| run.placed && run.state == State::Active);
        if held {
            self.raw.set_score("active", UIDS[run], 1).await;
        }
        assert_eq!(self.queue.reap("{}").await.unwrap(), usize::from(held));
        if held {
            self.model.lose_worker(run);
        }
    }

    async fn end_backoff(&mut self, run: usize) {
        let delayed = self.model.runs[run].as_mut().filter(|run| run.placed && run.state == State::Delayed);
        if let Some(delayed) = delayed {
            delayed.backing_off = false;
            self.raw.set_score("delayed", UIDS[run], 1).await;
            self.raw.set(UIDS[run], "retry_at", 1).await;
        }
    }

    async fn release(&mut self, runs: Vec<(usize, usize, ReleaseKind)>) {
        let given: Vec<Release> = runs.iter().map(|&(run, age, how)| self.build_release(run, age, how)).collect();
        let answers = self.queue.release(&given).await.unwrap();
        assert_eq!(answers.len(), runs.len());
        for ((run, age, how), answer) in runs.into_iter().zip(answers) {
            let (_, held) = self.model.epoch(run, age);
            assert_eq!(answer, if held { FencedWrite::Applied } else { FencedWrite::LeaseLost });
            if held {
                self.model.release(run, how, self.step);
            }
        }
    }

    fn build_release(&self, run: usize, age: usize, how: ReleaseKind) -> Release {
        let disposition = match how {
            ReleaseKind::Completed => Disposition::Completed,
            ReleaseKind::Failed => Disposition::Failed("{}".to_owned()),
            ReleaseKind::Retry => Disposition::Retry(LEASE),
            ReleaseKind::Release => Disposition::Released,
            ReleaseKind::Hold(number) => Disposition::Held(number),
        };
        let checkpoint = self.step.to_string();
        let progress = Progress { checkpoint: &checkpoint, history: "[]", attempts: self.step as u32 };
        let run = build_release(UIDS[run], self.model.epoch(run, age).0, disposition, progress);
        if how.costs_no_attempt() { Release { attempts: None, ..run } } else { run }
    }

    /// Asserts that Redis has the state of the model.
    async fn assert_same(&mut self) {
        for ((sets, hash), expected) in self.raw.read_runs(&UIDS).await.into_iter().zip(self.model.runs) {
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
        for (uid, expected) in UIDS.into_iter().zip(self.model.runs) {
            let waits = expected.is_some_and(|run| run.state == State::Waiting);
            assert_eq!(self.raw.score("due", uid).await.is_some(), waits, "the queue has the age of each waiting run");
        }
    }

    /// Asserts that the queue returns the state of the model.
    async fn assert_readable(&self) {
        for (uid, expected) in UIDS.into_iter().zip(self.model.runs) {
            let found = self.queue.get(uid).await.unwrap();
            assert_eq!(
                found.map(|run| (
                    run.state,
                    run.attempts,
                    run.recoveries,
                    run.checkpoint,
                    run.suspended,
                    run.cancelled
                )),
                expected.map(|run| {
                    let checkpoint = run.checkpoint.map(|step| step.to_string());
                    (run.state, run.attempts, run.recoveries, checkpoint, run.suspended, run.cancelled)
                })
            );
        }
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
    let mut game =
        Game { queue: named_queue(&name, LEASE), raw: Raw::of(&name).await, model: Model::default(), step: 0 };
    for (step, operation) in operations.into_iter().enumerate() {
        game.step = step;
        game.apply(operation).await;
        game.assert_same().await;
    }
    game.assert_readable().await;
    let before = crowd_before_guest(&game.queue, game.model.epochs.iter().map(Vec::len).sum()).await;
    assert!(before <= 1, "{before} runs of the crowd precede the run of another namespace");
    // Repairs read the whole key space.
    let runs = UIDS.into_iter().map(str::to_owned).chain(crowd_uids(0..12)).chain(["guest".to_owned()]);
    let others = ["due", "wake", "events", "seq", "workers", "shares"].into_iter().chain(SETS);
    let keys = runs.map(|uid| format!("run:{uid}")).chain(others.map(str::to_owned));
    let keys: Vec<_> = keys.map(|name| game.raw.key(&name)).collect();
    game.raw.connection.unlink::<_, ()>(keys).await.unwrap();
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
