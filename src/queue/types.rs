//! Types of the queue's calls and answers.

use std::time::Duration;

use jiff::Timestamp;

use super::Error;
use crate::domain::{from_millis, installation::Fingerprint, needs, run::State};

/// Result of a fenced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum FencedWrite {
    /// The write was applied.
    Applied,
    /// The lease is lost, and nothing was written: another worker may have the run. Stop working on it.
    LeaseLost,
}

impl From<u8> for FencedWrite {
    fn from(answer: u8) -> Self {
        if answer == 1 { Self::Applied } else { Self::LeaseLost }
    }
}

/// A run to be put into the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRun<'a> {
    /// The run's id.
    pub uid: &'a str,
    /// Namespace of the run. Runs of one priority alternate between namespaces.
    pub namespace: &'a str,
    /// Payload for the worker, as JSON.
    pub payload: &'a str,
    /// -1000 to 1000, higher first.
    pub priority: i32,
    /// Time of the first claim, when the run is restored after Redis lost it.
    pub started: Option<Timestamp>,
    /// Number of attempts that failed before Redis lost the run.
    pub attempts: u32,
    /// Recoveries before Redis lost it.
    pub recoveries: u32,
    /// Attempt history, as JSON.
    pub history: &'a str,
    /// Time since which the run is suspended.
    pub suspended: Option<Timestamp>,
    /// Time for which the run was parked before Redis lost it.
    pub parked_for: Duration,
    /// True when a worker must claim the run once more before it fails, to roll it back: see [`Entry::outcome`].
    pub rollback: bool,
    /// Position of the run in a trace.
    pub traceparent: Option<String>,
    /// The level that its worker must have.
    pub needs: u32,
}

impl<'a> NewRun<'a> {
    /// A run that was never in the queue, of no namespace and with priority 0.
    #[must_use]
    pub fn new(uid: &'a str, payload: &'a str) -> Self {
        Self {
            uid,
            namespace: "",
            payload,
            priority: 0,
            started: None,
            attempts: 0,
            recoveries: 0,
            history: "[]",
            suspended: None,
            parked_for: Duration::ZERO,
            rollback: false,
            traceparent: None,
            needs: needs::FIRST,
        }
    }
}

/// Desired state of an unfinished run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control<'a> {
    /// Suspension of the run.
    pub suspended: bool,
    /// Cancellation of the run: its outcome, as JSON. It cannot be undone.
    pub cancelled: Option<&'a str>,
    /// -1000 to 1000, higher first.
    pub priority: i32,
    /// Documents that a person has approved the run to mark, delete or change.
    pub approved: Option<u64>,
}

/// Unfinished run, as its SyncJob describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRun<'a> {
    /// The run's id.
    pub uid: &'a str,
    /// Desired state.
    pub control: Control<'a>,
    /// First claim.
    pub started: Option<Timestamp>,
    /// Attempts that failed.
    pub attempts: u32,
    /// Number of times that the run lost its worker.
    pub recoveries: u32,
    /// Attempts that failed, as JSON.
    pub history: &'a str,
    /// Time for which the run was parked before.
    pub parked_for: Duration,
    /// Time since which the run is parked.
    pub parked_since: Option<Timestamp>,
    /// Documents that its guard holds, when it does.
    pub held: Option<u64>,
}

impl<'a> KnownRun<'a> {
    /// Creates a run of which only the desired state is known.
    #[must_use]
    pub fn new(uid: &'a str, control: Control<'a>) -> Self {
        Self {
            uid,
            control,
            started: None,
            attempts: 0,
            recoveries: 0,
            history: "[]",
            parked_for: Duration::ZERO,
            parked_since: None,
            held: None,
        }
    }
}

/// The Redis server that has the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Identifier of the history of the server's data. It changes with each restart, failover or copy of another
    /// server.
    pub replication_id: String,
    /// A controller has asserted all runs since then, so workers may claim them.
    pub is_asserted: bool,
    /// Workers that showed themselves within a lease.
    pub workers: u64,
}

/// Runs of a worker whose leases were not renewed normally.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Runs whose leases are lost.
    pub lost: Vec<String>,
    /// Runs that the worker has to release.
    pub recalled: Vec<String>,
}

/// Result of a repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Runs that were in another set than their hash says.
    pub mended: u64,
    /// Runs of another format, left alone.
    pub foreign: u64,
}

/// Run in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// State of the run.
    pub state: State,
    /// Raised by each claim; starts at the time of the enqueue in microseconds.
    pub epoch: u64,
    /// Payload for the worker, as JSON.
    pub payload: String,
    /// The worker that has, or last had, it.
    pub worker: Option<String>,
    /// Attempts that failed.
    pub attempts: u32,
    /// Number of times that the run lost its worker.
    pub recoveries: u32,
    /// First claim.
    pub started: Option<Timestamp>,
    /// End of the backoff.
    pub retry_at: Option<Timestamp>,
    /// End of the run.
    pub finished: Option<Timestamp>,
    /// Progress of the run, as JSON.
    pub checkpoint: Option<String>,
    /// Attempts that failed, as JSON.
    pub history: String,
    /// Outcome of the run, as JSON. An unfinished run with an outcome fails with it once the run is rolled back.
    pub outcome: Option<String>,
    /// True when the run is, or has to be, suspended.
    pub suspended: bool,
    /// True when the run was, or has to be, cancelled.
    pub cancelled: bool,
    /// -1000 to 1000, higher first.
    pub priority: i32,
    /// Total time for which the run was parked.
    pub parked_for: Duration,
    /// Position of the run in a trace.
    pub traceparent: Option<String>,
    /// Documents that a person has approved the run to mark, delete or change.
    pub approved: Option<u64>,
    /// Installation that enqueued the run. `None`: a release that does not record it.
    pub installation: Option<Fingerprint>,
    /// The level that its worker must have.
    pub needs: u32,
    /// Level of the controller that enqueued the run, which determined the needs of the run.
    pub level: u32,
}

/// Runs that could be claimed at the last request to Redis.
#[derive(Debug, Default)]
pub struct Candidates(pub(super) Vec<String>);

impl Candidates {
    /// Adds a run that a notification names, which saves the call that lists the runs that wait.
    pub fn add(&mut self, uid: String) {
        self.0.push(uid);
    }
}

/// A run a worker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The run's id.
    pub uid: String,
    /// Time of the claim.
    pub at: Timestamp,
    /// Time for which the run could have been claimed before that.
    pub waited: Duration,
    /// The run.
    pub entry: Entry,
}

/// Release of a run by its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The run's id.
    pub uid: String,
    /// Epoch of the claim.
    pub epoch: u64,
    /// Disposition of the run.
    pub disposition: Disposition,
    /// Progress of the run, as JSON.
    pub checkpoint: String,
    /// Attempts of the run, when one more of them has failed.
    pub attempts: Option<Attempts>,
}

/// Disposition of a released run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The work of the run is done.
    Completed,
    /// The run ends as failed, with the outcome as JSON. A run to be rolled back is claimed once more, and ends with
    /// its next release of this kind.
    Failed(String),
    /// The run is delayed until its backoff has passed. A run that was suspended or cancelled meanwhile is suspended
    /// or ends instead.
    Retry(Duration),
    /// The run is delayed by this duration, which does not count towards its deadline. Costs no attempt.
    Paused(Duration),
    /// The guard holds the run until this number of documents is approved. A hold does not count as an attempt, or
    /// towards the deadline.
    Held(u64),
    /// The run is released, since its worker does not support all of it, and waits for a worker of this level. Costs
    /// no attempt.
    Unsupported(u32),
    /// The run is released: a suspended run is parked, a cancelled run ends, and any other run can be claimed at
    /// once. Costs no attempt.
    Released,
}

/// Attempts at a run that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// Number of failed attempts.
    pub count: u32,
    /// The last of them, as JSON.
    pub history: String,
}

/// Runs by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Claimed.
    pub active: u64,
    /// Ready to be claimed.
    pub waiting: u64,
    /// Waiting for their backoff to pass.
    pub delayed: u64,
    /// Suspended.
    pub parked: u64,
    /// Workers that showed themselves within a lease.
    pub workers: u64,
    /// Waiting time of the run that has waited the longest for a worker. Zero when no run waits.
    pub oldest: Duration,
}

/// Newest format of a run's hash that this release knows.
const NEWEST_FORMAT: i64 = 2;

/// The fields of a run's hash that make an [`Entry`], in the order in which `scripts/claim.lua` answers with them.
pub(super) const FIELDS: [&str; 22] = [
    "format",
    "state",
    "epoch",
    "worker",
    "started",
    "retry_at",
    "finished",
    "payload",
    "priority",
    "attempts",
    "recoveries",
    "checkpoint",
    "history",
    "outcome",
    "suspended",
    "cancelled",
    "parked_for",
    "traceparent",
    "approved",
    "installation",
    "needs",
    "level",
];

impl Entry {
    /// Reads the values of [`FIELDS`].
    pub(super) fn parse(uid: &str, values: &[Option<String>]) -> Result<Self, Error> {
        let unreadable = |what| Error::Unreadable { uid: uid.to_owned(), what };
        let text = |name: &str| {
            let at = FIELDS.iter().position(|field| *field == name)?;
            values.get(at)?.clone().filter(|value| !value.is_empty())
        };
        let number = |name: &'static str| text(name).and_then(|value| value.parse::<i64>().ok());
        let state = match text("state").as_deref() {
            Some("waiting") => State::Waiting,
            Some("delayed") => State::Delayed,
            Some("active") => State::Active,
            Some("parked") => State::Parked,
            Some("completed") => State::Completed,
            Some("failed") => State::Failed,
            _ => return Err(unreadable("its state is not known")),
        };
        Ok(Self {
            state,
            epoch: number("epoch").ok_or_else(|| unreadable("it has no epoch"))? as u64,
            payload: text("payload").ok_or_else(|| unreadable("it has no payload"))?,
            worker: text("worker"),
            attempts: number("attempts").unwrap_or(0) as u32,
            recoveries: number("recoveries").unwrap_or(0) as u32,
            started: number("started").map(from_millis),
            retry_at: number("retry_at").map(from_millis),
            finished: number("finished").map(from_millis),
            checkpoint: text("checkpoint"),
            history: text("history").unwrap_or_else(|| "[]".to_owned()),
            outcome: text("outcome"),
            suspended: text("suspended").as_deref() == Some("1"),
            cancelled: text("cancelled").is_some(),
            priority: number("priority").unwrap_or(0) as i32,
            parked_for: Duration::from_millis(number("parked_for").unwrap_or(0) as u64),
            traceparent: text("traceparent"),
            approved: number("approved").and_then(|number| u64::try_from(number).ok()),
            installation: text("installation").map(|text| Fingerprint::parse(&text)),
            level: number("level").and_then(|level| u32::try_from(level).ok()).unwrap_or(needs::FIRST),
            // A format of a newer release is one that no worker of this release claims.
            needs: if number("format").is_some_and(|format| format > NEWEST_FORMAT) {
                needs::LEVEL + 1
            } else {
                number("needs").and_then(|level| u32::try_from(level).ok()).unwrap_or(needs::FIRST)
            },
        })
    }
}
