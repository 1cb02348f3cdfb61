//! What goes into the queue's calls, and what comes out of them.

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
    /// What the worker needs to know.
    pub payload: &'a str,
    /// -1000 to 1000, higher first.
    pub priority: i32,
    /// First claim, when the run is put back after Redis lost it.
    pub started: Option<Timestamp>,
    /// Attempts that failed before Redis lost it.
    pub attempts: u32,
    /// Recoveries before Redis lost it.
    pub recoveries: u32,
    /// Attempt history, as JSON.
    pub history: &'a str,
    /// Since when it is suspended, when it is.
    pub suspended: Option<Timestamp>,
    /// How long it was put aside before Redis lost it.
    pub parked_for: Duration,
    /// Before it ends as failed, for whatever reason, a worker claims it once more to roll it back: see [`Entry::outcome`].
    pub rollback: bool,
    /// Its place in a trace, for those who work on it.
    pub traceparent: Option<String>,
    /// The level that its worker must have.
    pub needs: u32,
}

impl<'a> NewRun<'a> {
    /// A run that was never in the queue, with priority 0.
    #[must_use]
    pub fn new(uid: &'a str, payload: &'a str) -> Self {
        Self {
            uid,
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

/// What people want of a run that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control<'a> {
    /// Put it aside until this is false again.
    pub suspended: bool,
    /// End it as failed; holds why, as JSON. Cannot be taken back.
    pub cancelled: Option<&'a str>,
    /// -1000 to 1000, higher first.
    pub priority: i32,
    /// Documents that a person has approved the run to mark, delete or change.
    pub approved: Option<u64>,
}

/// A run that has not ended, as its SyncJob says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRun<'a> {
    /// The run's id.
    pub uid: &'a str,
    /// What people want of it.
    pub control: Control<'a>,
    /// First claim.
    pub started: Option<Timestamp>,
    /// Attempts that failed.
    pub attempts: u32,
    /// How often it lost its worker.
    pub recoveries: u32,
    /// Attempts that failed, as JSON.
    pub history: &'a str,
    /// How long it was put aside before.
    pub parked_for: Duration,
    /// Since when it is put aside, when it is.
    pub parked_since: Option<Timestamp>,
    /// Documents that its guard holds, when it does.
    pub held: Option<u64>,
}

impl<'a> KnownRun<'a> {
    /// A run of which only that is known what people want of it.
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
    /// Names the history of its data. Another one after each restart, failover or copy of another server.
    pub replication_id: String,
    /// A controller has asserted all runs since then, so workers may claim them.
    pub is_asserted: bool,
    /// Workers that showed themselves within a lease.
    pub workers: u64,
}

/// Runs of a worker that it cannot simply go on with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Their leases are lost.
    pub lost: Vec<String>,
    /// They are to be released.
    pub recalled: Vec<String>,
}

/// What a repair found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Runs whose hash and place did not agree.
    pub mended: u64,
    /// Runs of another format, left alone.
    pub foreign: u64,
}

/// A run as it stands in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub state: State,
    /// Raised by each claim; starts at the time of the enqueue in microseconds.
    pub epoch: u64,
    /// What the worker needs to know.
    pub payload: String,
    /// The worker that has, or last had, it.
    pub worker: Option<String>,
    /// Attempts that failed.
    pub attempts: u32,
    /// How often it lost its worker.
    pub recoveries: u32,
    /// First claim.
    pub started: Option<Timestamp>,
    /// End of the backoff.
    pub retry_at: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// How far it has come, as JSON.
    pub checkpoint: Option<String>,
    /// Attempts that failed, as JSON.
    pub history: String,
    /// Why it ended, as JSON. Of a run that has not ended: why it will end as failed, once it is rolled back.
    pub outcome: Option<String>,
    /// It is to be, or is, put aside.
    pub suspended: bool,
    /// It is to be, or was, ended as failed.
    pub cancelled: bool,
    /// -1000 to 1000, higher first.
    pub priority: i32,
    /// How long it was put aside altogether.
    pub parked_for: Duration,
    /// Its place in a trace.
    pub traceparent: Option<String>,
    /// Documents that a person has approved the run to mark, delete or change.
    pub approved: Option<u64>,
    /// The installation that enqueued it. `None`: a release that did not say so.
    pub installation: Option<Fingerprint>,
    /// The level that its worker must have.
    pub needs: u32,
    /// The level of the controller that enqueued it, and thus knew what it needs.
    pub level: u32,
}

/// Runs that could be claimed when Redis was last asked.
#[derive(Debug, Default)]
pub struct Candidates(pub(super) Vec<String>);

/// A run a worker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The run's id.
    pub uid: String,
    /// Time of the claim.
    pub at: Timestamp,
    /// How long it could have been claimed before that.
    pub waited: Duration,
    /// The run.
    pub entry: Entry,
}

/// Release of a run by its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The run's id.
    pub uid: String,
    /// Of the claim.
    pub epoch: u64,
    /// What becomes of the run.
    pub disposition: Disposition,
    /// How far it has come, as JSON.
    pub checkpoint: String,
    /// Its attempts, when one more of them failed.
    pub attempts: Option<Attempts>,
}

/// Disposition of a released run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Its work is done.
    Completed,
    /// It ends without; holds why, as JSON. One that is to be rolled back is claimed once more, and ends when it is let go
    /// of like this again.
    Failed(String),
    /// It is put aside until its backoff has passed. One that is suspended or cancelled meanwhile is that instead.
    Retry(Duration),
    /// The run is delayed by this duration, which does not count towards its deadline. Costs no attempt.
    Paused(Duration),
    /// Its guard holds it until so many documents are approved. Costs no attempt, and no time of its deadline.
    Held(u64),
    /// It is given back, since its worker does not know all of it, and waits for one of this level. Costs no attempt.
    Unsupported(u32),
    /// It is given back: it is parked when it is suspended, ends when it is cancelled, and otherwise another worker can
    /// go on with it at once. Costs no attempt.
    Released,
}

/// Attempts at a run that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// How many.
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
    /// How long the run could have been claimed that waits for a worker the longest. Zero when none does.
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
