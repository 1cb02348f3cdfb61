//! Local runs: `sync-operator run FILE…` executes the runs of manifests in this process, with MongoDB alone.
//!
//! The engine is the one that workers use. Checkpoints and rate limits are kept in memory, and the time is MongoDB's.

mod coordinator;
mod plan;
mod report;
mod resume;
mod run;
mod secrets;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::syncjob::Phase,
    domain::{from_millis, job, policy::Policy, run::Subset},
    engine::{SecretReader, Sources},
    manifest::{
        self, Severity,
        file::{self, STANDARD_INPUT},
    },
    policy::CurrentPolicy,
    sync::{Deployment, SourceBudgets},
};
use coordinator::{MongoClock, RateLimits};
use plan::{LocalPlan, Planned};
use report::Bar;
use resume::Resume;
use run::{Environment, Progress};

pub use report::Output;
pub use secrets::SecretArgument;

/// Settings of local runs.
#[derive(Clone, Debug)]
pub struct LocalRunSettings {
    /// Files with manifests. `-`: standard input.
    pub files: Vec<PathBuf>,
    /// Connection string of MongoDB.
    pub mongodb_uri: String,
    /// Database of targets that name none. `None`: the connection string's.
    pub database: Option<String>,
    /// File with the certificates (PEM) of the authorities of MongoDB's certificate.
    pub ca: Option<PathBuf>,
    /// Entries of Secrets.
    pub secrets: Vec<SecretArgument>,
    /// Write nothing.
    pub dry_run: bool,
    /// The part of the documents that each run is restricted to.
    pub subset: Subset,
    /// Documents that the user has approved each run to mark, delete or change.
    pub approved: Option<u64>,
    /// File that an interrupted process wrote, or is to write.
    pub resume: Option<PathBuf>,
    /// Format of the results.
    pub output: Option<Output>,
}

/// Result of all runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All runs are complete.
    Complete,
    /// At least one run has failed.
    Failed,
    /// No run has failed, and at least one waits for an approval.
    Held,
    /// The user interrupted a run.
    Interrupted,
}

/// Local runs that did not start, or could not be interrupted as they should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line, a manifest or a file cannot be used until a user corrects it.
    #[error("{0}")]
    Usage(String),
    /// Failure of MongoDB or of the machine.
    #[error("{0}")]
    Failed(String),
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn usage(error: impl ToString) -> Error {
    Error::Usage(error.to_string())
}

/// Executes the runs of the manifests, one after the other, and prints the result of each. SIGINT or SIGTERM interrupts
/// them after the batches in flight, and writes a resume file; a second signal ends the process at once.
///
/// # Errors
/// When no run could start, or the resume file could not be written.
pub async fn run(settings: LocalRunSettings) -> Result<Ended, Error> {
    let plan = read_plan(&settings)?;
    let resume = settings.resume.as_deref().filter(|path| {
        if !path.exists() {
            eprintln!("note: {} does not exist, so the runs start from the beginning", path.display());
        }
        path.exists()
    });
    let resumed = resume.map(Resume::load).transpose().map_err(usage)?.unwrap_or_default();
    let environment = connect(&settings, &plan).await?;
    let mut runs = Vec::new();
    for planned in &plan.runs {
        let path = resume.unwrap_or(Path::new(""));
        let progress = resumed.progress_of(&planned.job, &settings.subset, path).map_err(usage)?;
        runs.push((planned, progress));
    }
    let mut signals = InterruptSignals::listen()?;
    let interrupt = environment.interrupt.clone();
    select! {
        result = execute(&settings, runs, &environment) => result,
        () = signals.interrupt_twice(&interrupt) => Ok(Ended::Interrupted),
    }
}

/// Reads and validates the manifests.
fn read_plan(settings: &LocalRunSettings) -> Result<LocalPlan, Error> {
    let mut manifests = Vec::new();
    let mut is_valid = true;
    for path in &settings.files {
        let text = file::read_to_string(path).map_err(usage)?;
        let parsed = manifest::parse(&file::name(path), &text);
        for finding in &parsed.findings {
            eprintln!("{finding}");
            is_valid &= finding.level != Severity::Error;
        }
        manifests.extend(parsed.manifests);
    }
    if !is_valid {
        return Err(usage("the manifests are not valid, so nothing was run: correct the findings above"));
    }
    let plan = plan::plan(manifests, settings.dry_run, &settings.subset, Timestamp::now()).map_err(usage)?;
    for warning in &plan.warnings {
        eprintln!("note: {warning}");
    }
    if plan.runs.is_empty() {
        return Err(usage("no manifest of a SyncJob or a SyncSchedule was found: name a file that has one"));
    }
    for Planned { spec, .. } in &plan.runs {
        spec.source.as_ref().map_or(Ok(()), |source| secrets::check(source, &settings.secrets)).map_err(usage)?;
    }
    Ok(plan)
}

/// Connects to MongoDB, and checks that each run has a target that can be used.
async fn connect(settings: &LocalRunSettings, plan: &LocalPlan) -> Result<Environment, Error> {
    let stdin_is_free = !settings.files.iter().any(|file| file == Path::new(STANDARD_INPUT));
    let secrets = secrets::load_given(&settings.secrets, stdin_is_free).map_err(usage)?;
    let deployment =
        Deployment::for_local_run(&settings.mongodb_uri, settings.database.as_deref(), settings.ca.as_deref())
            .await
            .map_err(|error| usage(format!("MONGODB_URI: {error}")))?;
    for Planned { job, spec } in &plan.runs {
        deployment
            .target(spec, run::namespace(job), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH)
            .map_err(|error| usage(format!("{}: {error}", job.name_any())))?;
    }
    let now = deployment.time().await.map_err(|error| Error::Failed(format!("MONGODB_URI: {error}")))?;
    Ok(Environment {
        deployment,
        sources: Sources {
            secrets: SecretReader::Given(secrets),
            policy: CurrentPolicy::fixed(Policy::anywhere()),
            budgets: SourceBudgets::default(),
        },
        limits: RateLimits::default(),
        approved: settings.approved,
        clock: MongoClock::new(now),
        interrupt: CancellationToken::new(),
    })
}

async fn execute(
    settings: &LocalRunSettings,
    runs: Vec<(&Planned, Option<Progress>)>,
    environment: &Environment,
) -> Result<Ended, Error> {
    let output = settings.output.unwrap_or_else(Output::detect);
    let mut resume = Resume::default();
    let (mut has_failed, mut is_held, mut unfinished) = (false, false, None);
    for (Planned { job, spec }, resumed) in runs {
        let now = from_millis(environment.clock.now().as_millisecond());
        let is_new = resumed.is_none();
        let mut progress = resumed.unwrap_or_else(|| Progress::new(bson::Uuid::new().to_string(), now));
        if unfinished.is_none() {
            let bar = Bar::new(job.name_any(), &progress.checkpoint);
            progress.execute(job, spec, environment, &bar).await;
            bar.remove();
            println!("{}", report::result(output, job, &progress.status(job, environment.clock.now())));
            // The text summary contains the command already.
            if let Some(hold) = progress.pending_hold().filter(|_| output != Output::Text) {
                let name = job.name_any();
                eprintln!("{name} waits for an approval: {}", job::hold_message(hold, &run::approval(hold)));
            }
        } else if is_new {
            continue;
        }
        has_failed |= progress.phase == Phase::Failed;
        is_held |= progress.phase == Phase::Held;
        if !progress.has_ended() && unfinished.is_none() {
            unfinished = Some(job.name_any());
        }
        resume.add(job, &settings.subset, &progress);
    }
    match (unfinished, &settings.resume) {
        (None, Some(file)) => drop(std::fs::remove_file(file)),
        (None, None) => {}
        (Some(name), file) => {
            let file = file.clone().unwrap_or_else(|| format!("{name}.resume.json").into());
            resume.write(&file).map_err(|error| Error::Failed(error.to_string()))?;
            eprintln!("Interrupted. To continue, run the same command with --resume {}", file.display());
            return Ok(Ended::Interrupted);
        }
    }
    Ok(match (has_failed, is_held) {
        (true, _) => Ended::Failed,
        (false, true) => Ended::Held,
        (false, false) => Ended::Complete,
    })
}

/// The signals by which a user interrupts the process.
struct InterruptSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl InterruptSignals {
    fn listen() -> Result<Self, Error> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::Failed(format!("could not listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Cancels `interrupt` at the first signal, and returns at the second one.
    async fn interrupt_twice(&mut self, interrupt: &CancellationToken) {
        self.next().await;
        interrupt.cancel();
        eprintln!("\nFinishing the batches in flight. Press Ctrl-C again to stop at once.");
        self.next().await;
    }
}
