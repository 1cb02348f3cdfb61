//! One local run: its attempts, its retries and its rollback, until it has ended or is interrupted.

use std::{pin::pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::coordinator::{MemoryCoordinator, MongoClock, RateLimits};
use crate::{
    api::{
        SyncJob, SyncJobStatus,
        conditions::{HELD, reasons},
        syncjob::{Attempt, Phase},
    },
    domain::{
        conditions, elapsed,
        guard::Hold,
        job,
        retry::{self, Retry},
        run::{Checkpoint, DesiredState, Outcome, Run, RunSpec, State},
    },
    engine::{AttemptResult, Opening, RunAttempt, Signals, Sources},
    sync::Deployment,
    telemetry::traces::Parent,
};

/// Dependencies that all local runs of a process share.
pub(super) struct Environment {
    pub deployment: Deployment,
    pub sources: Sources,
    pub limits: RateLimits,
    pub clock: MongoClock,
    /// Documents that the user has approved each run to mark, delete or change.
    pub approved: Option<u64>,
    /// Cancelled when the user interrupts the process.
    pub interrupt: CancellationToken,
}

/// Progress of a local run, as a resume file stores it. Contains no Secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Progress {
    /// Id of the run. Names its journal.
    pub uid: String,
    /// Running, `RollingBack`, Held, Complete or Failed.
    pub phase: Phase,
    /// Start of the first attempt.
    pub started: Timestamp,
    /// End of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// Time at which the run was last interrupted or held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<Timestamp>,
    /// Time that the run was interrupted or held altogether. As with a suspended run, `activeDeadline` does not count it.
    pub paused_for: Duration,
    /// Number of claims of the run: a journal refuses writes of an earlier one.
    pub epoch: u64,
    /// Attempts that failed.
    pub attempts: u32,
    /// The last attempts that failed.
    pub history: Vec<Attempt>,
    /// Checkpoint at which the run continues.
    pub checkpoint: Checkpoint,
    /// Outcome of a failed run, or of a run that fails once it is rolled back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// Reports on a run that is executed.
pub(super) trait Observer {
    /// Reports the progress of the run.
    fn checkpoint(&self, checkpoint: &Checkpoint);
    /// Another attempt follows a failed one after this time.
    fn retry(&self, attempt: u32, outcome: &Outcome, delay: Duration);
    /// The documents that the run has written are restored.
    fn rollback(&self, outcome: &Outcome);
}

impl Progress {
    /// A run that starts now.
    pub fn new(uid: String, now: Timestamp) -> Self {
        Self {
            uid,
            phase: Phase::Running,
            started: now,
            finished: None,
            interrupted: None,
            paused_for: Duration::ZERO,
            epoch: 0,
            attempts: 0,
            history: Vec::new(),
            checkpoint: Checkpoint::default(),
            outcome: None,
        }
    }

    /// True when this process has nothing left to do about the run.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Complete | Phase::Failed | Phase::Held)
    }

    /// Hold for which the run waits for an approval.
    pub fn pending_hold(&self) -> Option<&Hold> {
        self.checkpoint.hold.as_ref().filter(|_| self.phase == Phase::Held)
    }

    /// The status that the SyncJob of this run would have on a cluster, but for how it is approved.
    pub fn status(&self, job: &SyncJob, now: Timestamp) -> SyncJobStatus {
        let run = Run {
            state: match self.phase {
                Phase::Complete => State::Completed,
                Phase::Failed => State::Failed,
                Phase::Held => State::Parked,
                _ => State::Active,
            },
            worker: None,
            attempts: self.attempts,
            recoveries: 0,
            started: Some(self.started),
            parked_for: self.paused_for,
            has_workers: true,
            retry_at: None,
            finished: self.finished,
            checkpoint: self.checkpoint.clone(),
            history: self.history.clone(),
            outcome: self.outcome.clone(),
            desired: DesiredState { suspended: false, approved: None, ..DesiredState::from(job) },
            lacks_level: None,
        };
        let mut status = job::decide(job, Some(&run), now).status;
        if let Some(hold) = self.pending_hold() {
            let (message, generation) = (job::hold_message(hold, &approval(hold)), job.metadata.generation);
            let conditions = &mut status.conditions;
            conditions::set(conditions, HELD, true, reasons::GUARD_EXCEEDED, message, generation, now);
        }
        status
    }

    /// Executes the run until it has ended, is held, or is interrupted, which leaves it in the phase Running or `RollingBack`. A run that
    /// was held continues at its checkpoint.
    pub async fn execute(
        &mut self,
        job: &SyncJob,
        spec: &RunSpec,
        environment: &Environment,
        observer: &impl Observer,
    ) {
        if let Some(interrupted) = self.interrupted.take() {
            self.paused_for += elapsed(interrupted, environment.clock.now());
        }
        if self.phase == Phase::Held {
            self.phase = Phase::Running;
        }
        while !self.has_ended() && !environment.interrupt.is_cancelled() {
            let began = environment.clock.now();
            let rolls_back = self.phase == Phase::RollingBack;
            let result = self.attempt(job, spec, environment, observer).await;
            let next = match result {
                AttemptResult::Completed => {
                    self.end(Phase::Complete, None, environment);
                    Next::End
                }
                AttemptResult::Failed(outcome) if rolls_back => {
                    self.end(Phase::Failed, Some(outcome), environment);
                    Next::End
                }
                AttemptResult::Retry(_) if rolls_back => Next::Wait(retry::ROLLBACK_PAUSE),
                AttemptResult::Failed(outcome) => {
                    self.record_failure(began, &outcome, environment);
                    self.fail(outcome, spec, environment, observer)
                }
                AttemptResult::Retry(outcome) => {
                    self.record_failure(began, &outcome, environment);
                    let without_progress = self.checkpoint.count_failure();
                    match retry::after_failure(spec, self.attempts, without_progress, &outcome, rand::random()) {
                        Retry::After(delay) => {
                            observer.retry(self.attempts, &outcome, delay);
                            Next::Wait(delay)
                        }
                        Retry::GiveUp(outcome) => self.fail(outcome, spec, environment, observer),
                    }
                }
                AttemptResult::Paused(pause) => {
                    self.paused_for += pause;
                    Next::Wait(pause)
                }
                AttemptResult::Held(_) => {
                    self.phase = Phase::Held;
                    Next::End
                }
                AttemptResult::Released | AttemptResult::LeaseLost => Next::End,
            };
            match next {
                Next::End => break,
                Next::Wait(delay) => drop(environment.interrupt.run_until_cancelled(sleep(delay)).await),
            }
        }
        if !matches!(self.phase, Phase::Complete | Phase::Failed) {
            self.interrupted = Some(environment.clock.now());
        }
    }

    async fn attempt(
        &mut self,
        job: &SyncJob,
        spec: &RunSpec,
        environment: &Environment,
        observer: &impl Observer,
    ) -> AttemptResult {
        self.epoch += 1;
        let rolls_back = self.outcome.clone().filter(|_| self.phase == Phase::RollingBack);
        let (checkpoint, saved) = watch::channel(self.checkpoint.clone());
        let coordinator = MemoryCoordinator {
            clock: environment.clock,
            limits: environment.limits.clone(),
            signals: Signals { recalled: environment.interrupt.clone(), lost: CancellationToken::new() },
            checkpoint,
        };
        let opening = Opening {
            uid: self.uid.clone(),
            namespace: namespace(job).to_owned(),
            epoch: self.epoch,
            type_: job.spec.type_,
            spec: spec.clone(),
            started: self.started,
            parked_for: self.paused_for,
            checkpoint: self.checkpoint.clone(),
            approved: environment.approved,
            rolls_back: rolls_back.is_some(),
            trace: Parent::for_run(&self.uid, None),
        };
        let opened =
            RunAttempt::open(opening, &environment.deployment, &environment.sources, Arc::new(coordinator)).await;
        let mut attempt = match (opened, rolls_back.clone()) {
            (Ok(attempt), _) => attempt,
            (Err(error), None) => return AttemptResult::from(&error),
            (Err(error), Some(outcome)) => return AttemptResult::from(&error).without_rollback(outcome),
        };
        let work = async {
            match rolls_back {
                Some(outcome) => attempt.roll_back(outcome).await,
                None => attempt.drive().await,
            }
        };
        let result = observe(work, saved, observer).await;
        let (target, checkpoint) = attempt.into_parts();
        self.checkpoint = checkpoint;
        if result == AttemptResult::Completed
            && let Err(error) = target.drop_journal().await
        {
            tracing::warn!(%error, "could not drop the journal {}{}", crate::domain::run::JOURNALS, self.uid);
        }
        result
    }

    fn record_failure(&mut self, began: Timestamp, outcome: &Outcome, environment: &Environment) {
        self.attempts += 1;
        retry::record(&mut self.history, self.attempts, began, environment.clock.now(), outcome);
    }

    /// The run has failed: its documents are restored first, where the spec asks for that.
    fn fail(&mut self, outcome: Outcome, spec: &RunSpec, environment: &Environment, observer: &impl Observer) -> Next {
        if !spec.rollback {
            self.end(Phase::Failed, Some(outcome), environment);
            return Next::End;
        }
        observer.rollback(&outcome);
        self.phase = Phase::RollingBack;
        self.outcome = Some(outcome);
        Next::Wait(Duration::ZERO)
    }

    fn end(&mut self, phase: Phase, outcome: Option<Outcome>, environment: &Environment) {
        self.phase = phase;
        self.outcome = outcome;
        self.finished = Some(environment.clock.now());
    }
}

/// Instruction to approve a held run.
pub(super) fn approval(hold: &Hold) -> String {
    format!("run the same command with --approve {}", hold.number)
}

/// The namespace that the SyncJob has, or would have.
pub(super) fn namespace(job: &SyncJob) -> &str {
    job.metadata.namespace.as_deref().unwrap_or("default")
}

/// Step after an attempt.
enum Next {
    /// No further attempt: the run has ended, or is interrupted.
    End,
    /// Another attempt, after this time.
    Wait(Duration),
}

/// Drives `work`, and reports each checkpoint that it saves.
async fn observe<T>(
    work: impl Future<Output = T>,
    mut saved: watch::Receiver<Checkpoint>,
    observer: &impl Observer,
) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            result = &mut work => return result,
            changed = saved.changed() => match changed {
                Ok(()) => observer.checkpoint(&saved.borrow_and_update()),
                Err(_) => return work.await,
            },
        }
    }
}
