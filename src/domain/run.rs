//! Types of a run that the controller and the workers share: its spec, progress and outcome.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{
    backoff::Backoff,
    free_form,
    graphql::InvalidDocument,
    guard::{Guard, Hold},
    source::{self, SourceSpec},
};
use crate::api::{
    APPROVE_ANNOTATION, GoDuration, SyncJob, SyncJobSpec,
    conditions::reasons,
    duration::InvalidDuration,
    source::SecretKey,
    syncjob::{Attempt, Counts, DocumentFailure, OnFailure, SyncMode, Transaction},
};

/// Per-user failures kept in a status.
pub const MAX_FAILURES: usize = 20;
/// Keys of changes that a dry run found, kept in a status.
pub const MAX_CHANGES: usize = 20;
/// Largest number of keys of failed results that a run keeps, to know which documents its source has.
pub const MAX_FAILED_KEYS: usize = 10_000;
/// Text in place of a key that the policy does not allow to show.
const HIDDEN: &str = "(hidden)";
/// Failed attempts kept in a status.
pub const MAX_ATTEMPTS: usize = 10;
/// Prefix of the collections with the former values of documents, for a rollback. The uid of the run follows.
pub const JOURNALS: &str = "sync_journal.";
/// Pauses of a run without any progress in between, after which its attempt fails.
pub const MAX_PAUSES: i64 = 24;
/// Default of `staleAfter` for an Incremental run without a schedule.
const DEFAULT_STALE_AFTER: Duration = Duration::from_mins(10);

/// Share of failed documents with which a run with a source fails.
const DEFAULT_MAX_FAILED_PERCENT: i64 = 50;

/// Payload of a run in the queue. Opaque to the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    /// Namespace of the SyncJob.
    pub namespace: String,
    /// Name of the SyncJob.
    pub name: String,
    /// Snapshot of its spec. What may change in it later (`suspended`, `cancelled`) is not read from here.
    pub spec: SyncJobSpec,
}

/// Progress of a run: all documents before `cursor` are done. Opaque to the queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Key of the last document of the highest contiguous finished batch, as MongoDB extended JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Value>,
    /// Counters up to the cursor.
    #[serde(default)]
    pub counts: Counts,
    /// The first refused documents up to the cursor.
    #[serde(default)]
    pub failures: Vec<DocumentFailure>,
    /// Progress of the walk through the pages of a source. `None`: the walk has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paging: Option<Paging>,
    /// Keys of the first documents that would be written, were this no dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// True while the run waits because the source limits requests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_paused: bool,
    /// Number of pauses since the run last made progress.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pauses: i64,
    /// The most documents that an attempt had handled when it failed, or paused.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub furthest: i64,
    /// Attempts that failed without coming further than the ones before: these count against `backoffLimit`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub without_progress: i64,
    /// Warnings: reasons for a slow run, with their fix, or for a postponed rollback.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "known_warnings")]
    pub warnings: Vec<Warning>,
    /// Documents that the source had confirmed and not marked when the run started. `None`: not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<u64>,
    /// Confirmed documents that the run has changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub changed: i64,
    /// Number of confirmed documents without a result when the run requested each of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absent: i64,
    /// Documents that the run has confirmed for the first time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_confirmed: i64,
    /// Hold for which the run waits, or last waited, for an approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Reason for which the run did not search for documents that the source no longer has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal_skipped: Option<Outcome>,
}

/// Leaves out the warnings of a newer release.
fn known_warnings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Warning>, D::Error> {
    let warnings = Vec::<Value>::deserialize(deserializer)?;
    Ok(warnings.into_iter().filter_map(|warning| serde_json::from_value(warning).ok()).collect())
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &i64) -> bool {
    *count == 0
}

impl Checkpoint {
    /// Counts a failed attempt against `backoffLimit`, unless it brought the run further than any attempt before.
    /// Returns how many count.
    pub fn count_failure(&mut self) -> u32 {
        self.without_progress += i64::from(!self.came_further());
        u32::try_from(self.without_progress).unwrap_or(u32::MAX)
    }

    /// Records a pause because the source limits requests. Returns false after too many pauses without progress,
    /// because pauses do not count towards the deadline.
    #[must_use]
    pub fn pause(&mut self) -> bool {
        let pauses = if self.came_further() { 0 } else { self.pauses };
        self.is_paused = pauses < MAX_PAUSES;
        self.pauses = if self.is_paused { pauses + 1 } else { 0 };
        self.is_paused
    }

    /// Records the progress of the run, and returns true when it is higher than in all earlier attempts.
    fn came_further(&mut self) -> bool {
        let came_further = self.counts.processed > self.furthest;
        self.furthest = self.furthest.max(self.counts.processed);
        came_further
    }

    /// Removes the keys of documents.
    pub fn hide_keys(&mut self) {
        for failure in &mut self.failures {
            HIDDEN.clone_into(&mut failure.key);
        }
        for key in &mut self.changes {
            HIDDEN.clone_into(key);
        }
        if let Some(hold) = &mut self.hold {
            hold.keys.clear();
        }
    }

    /// Keeps the first failures of a run, up to [`MAX_FAILURES`].
    pub fn add_failures(&mut self, failures: Vec<DocumentFailure>) {
        let room = MAX_FAILURES.saturating_sub(self.failures.len());
        self.failures.extend(failures.into_iter().take(room));
    }
}

/// Progress of a walk through pages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Paging {
    /// Cursor or number of the next page. `None`: the walk has no next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Value>,
    /// Results of the pages before it.
    pub results: u64,
    /// Number of these results with different keys.
    #[serde(default)]
    pub distinct: u64,
    /// The number of all results, as the first page gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Reason for which the finished walk does not prove that the source has no more results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// Keys, as text, of results that failed: the source has them, although their documents do not show it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_keys: Vec<String>,
    /// True when the documents that the source does not list are unknown: too many results failed, or a result has no
    /// usable key.
    #[serde(default)]
    pub is_unsure: bool,
}

/// Outcome of a run, or of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Reason, in one CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Outcome {
    /// Outcome of a run that has exceeded its deadline.
    #[must_use]
    pub fn deadline_exceeded() -> Self {
        Self {
            reason: reasons::DEADLINE_EXCEEDED.to_owned(),
            message: "the run took longer than spec.activeDeadline".to_owned(),
        }
    }
}

/// Warning about a run in progress: a sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Warning {
    /// The field by which documents are walked has no index.
    KeyNotIndexed(String),
    /// A field by which an Incremental run finds the due documents has no usable index.
    IndexMissing(String),
    /// The documents cannot be restored at this time.
    RollbackWaits(String),
    /// Documents carry stamps in the future.
    StampsAhead(String),
}

impl Warning {
    /// Documents carry stamps in the future.
    #[must_use]
    pub fn stamps_ahead() -> Self {
        Self::StampsAhead(
            "Documents whose stamps are in the future are left as they are: a clock was ahead, or another client writes the field"
                .to_owned(),
        )
    }

    /// The sentence.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::KeyNotIndexed(message)
            | Self::IndexMissing(message)
            | Self::RollbackWaits(message)
            | Self::StampsAhead(message) => message,
        }
    }

    /// Reason of its event. `None`: there is none.
    #[must_use]
    pub fn event(&self) -> Option<&'static str> {
        match self {
            Self::KeyNotIndexed(_) => Some("KeyNotIndexed"),
            Self::IndexMissing(_) => Some("IndexMissing"),
            Self::StampsAhead(_) => Some("StampsAhead"),
            Self::RollbackWaits(_) => None,
        }
    }
}

/// Desired state of a run that its worker does not need. It may change during the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// Suspension of the run.
    pub suspended: bool,
    /// Cancellation of the run, which cannot be undone.
    pub cancelled: bool,
    /// Priority of the run, -1000 to 1000. Higher runs are claimed first.
    pub priority: i32,
    /// Approval: the number of held documents with which the run may continue.
    pub approved: Option<u64>,
}

impl From<&SyncJob> for DesiredState {
    fn from(job: &SyncJob) -> Self {
        let SyncJobSpec { suspended, cancelled, priority, .. } = job.spec;
        let approved = job.annotations().get(APPROVE_ANNOTATION).and_then(|number| number.trim().parse().ok());
        Self { suspended, cancelled, priority, approved }
    }
}

/// State of a run in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for a worker.
    Waiting,
    /// Waits for its backoff to pass.
    Delayed,
    /// A worker holds its lease.
    Active,
    /// Suspended.
    Parked,
    /// Finished.
    Completed,
    /// Ended without finishing.
    Failed,
}

/// State of the lease under which an attempt works, as known after a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum LeaseState {
    /// The lease holds: continue.
    Held,
    /// The run is suspended, cancelled or interrupted: finish the batches in flight and release it.
    Recalled,
    /// The lease is lost, and another worker may have the run: stop at once.
    Lost,
}

/// Run in the queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// State of the run.
    pub state: State,
    /// The worker that has, or last had, it.
    pub worker: Option<String>,
    /// Attempts that failed.
    pub attempts: u32,
    /// Number of times that the run lost its worker.
    pub recoveries: u32,
    /// First claim.
    pub started: Option<Timestamp>,
    /// Time for which the run was parked since then, which does not count towards its deadline.
    pub parked_for: Duration,
    /// False when no worker has shown itself to the queue for the length of a lease.
    pub has_workers: bool,
    /// End of the backoff, for [`State::Delayed`].
    pub retry_at: Option<Timestamp>,
    /// End of the run.
    pub finished: Option<Timestamp>,
    /// Progress of the run.
    pub checkpoint: Checkpoint,
    /// Attempts that failed, oldest first.
    pub history: Vec<Attempt>,
    /// Outcome of the run, for [`State::Failed`]. An unfinished run with an outcome fails with it once the run is
    /// rolled back.
    pub outcome: Option<Outcome>,
    /// Desired state that the queue has.
    pub desired: DesiredState,
    /// The level that the run needs, when none of the workers that live has it.
    pub lacks_level: Option<u32>,
}

/// Record of a run in its SyncJob, for a Redis that knows less.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    /// First claim.
    pub started: Option<Timestamp>,
    /// Attempts that failed.
    pub attempts: u32,
    /// Number of times that the run lost its worker.
    pub recoveries: u32,
    /// Attempts that failed, oldest first.
    pub history: Vec<Attempt>,
    /// Time for which the run was parked before, which does not count towards its deadline.
    pub parked_for: Duration,
    /// Time since which the run is parked.
    pub parked_since: Option<Timestamp>,
    /// Documents that its guard holds, when it does.
    pub held: Option<u64>,
}

/// A validated spec: the settings of a run, with all defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Age from which documents are due, for Incremental runs. `None` for Full.
    pub stale_after: Option<Duration>,
    /// Documents per batch.
    pub batch_size: usize,
    /// Batches in flight.
    pub parallelism: usize,
    /// Retries after the first attempt.
    pub retries: u32,
    /// Wait between attempts.
    pub backoff: Backoff,
    /// Longest time from the first claim to the end.
    pub active_deadline: Duration,
    /// Share of refused documents that fails the run, in per cent.
    pub max_failed_percent: i64,
    /// MongoDB of the namespace. `None`: that of the operator.
    pub own_mongodb: Option<OwnMongoDb>,
    /// Database, when not the default.
    pub database: Option<String>,
    /// Collection.
    pub collection: String,
    /// Field that identifies a document.
    pub key_field: String,
    /// Field that is stamped.
    pub last_synced_field: String,
    /// Query, in extended JSON.
    pub filter: Map<String, Value>,
    /// Source of the documents.
    pub source: Option<SourceSpec>,
    /// Limits of the changes that the run may make without an approval.
    pub guard: Guard,
    /// A batch is written as a whole.
    pub transaction: bool,
    /// True when a failed run restores its documents.
    pub rollback: bool,
    /// True when nothing is written.
    pub dry_run: bool,
    /// The part of the documents that a local run is restricted to.
    pub subset: Subset,
}

/// MongoDB that a namespace brings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnMongoDb {
    /// Entry of a Secret with the connection string.
    pub uri: SecretKey,
    /// Entry of a Secret with a CA bundle. `None`: the well-known CAs.
    pub ca: Option<SecretKey>,
}

/// Subset of the documents to which a run is restricted. Empty: all documents. A restricted run neither marks nor
/// deletes documents, because it does not read all results of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subset {
    /// Keys of the documents, in the format of users. Empty: documents of any key.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Largest number of documents. `None`: any number.
    #[serde(default)]
    pub limit: Option<u64>,
}

impl Subset {
    /// True when the run is not restricted.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.keys.is_empty() && self.limit.is_none()
    }
}

/// A mistake in a spec that only its author can mend. The text names the field and the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A duration that cannot be read.
    #[error("{field}: {source}")]
    Duration {
        /// Path in the spec.
        field: &'static str,
        /// Description of the mistake.
        source: InvalidDuration,
    },
    /// A number outside its range.
    #[error("{field} must be from {min} to {max}, not {value}")]
    Range {
        /// Path in the spec.
        field: &'static str,
        /// Smallest allowed value.
        min: i64,
        /// Largest allowed value.
        max: i64,
        /// The value found.
        value: i64,
    },
    /// A free-form field that is nested too deep.
    #[error("{field} must have at most {max} levels, not {levels}", max = free_form::MAX_LEVELS)]
    Deep {
        /// Path in the spec.
        field: &'static str,
        /// The levels found.
        levels: usize,
    },
    /// A free-form field that is too large.
    #[error("{field} must have at most {max} bytes of JSON, not {bytes}", max = free_form::MAX_BYTES)]
    Large {
        /// Path in the spec.
        field: &'static str,
        /// The size found.
        bytes: usize,
    },
    /// A mistake in a schedule's template, whose text begins with the field.
    #[error("jobTemplate.spec.{0}")]
    Template(Box<SpecError>),
    /// A spec that the policy does not allow.
    #[error("{0}")]
    NotAllowed(String),
    /// A cron expression or time zone without slots.
    #[error(transparent)]
    Cron(#[from] super::cron::InvalidCron),
    /// A limit that is neither a number nor a percentage.
    #[error("{0} must be a number of documents, or a percentage from 0% to 100%")]
    Share(&'static str),
    /// A time zone that is not in the database of time zones.
    #[error("{field}: {name:?} is not known; use an IANA name such as Europe/Berlin")]
    TimeZone {
        /// Path in the spec.
        field: &'static str,
        /// The name found.
        name: String,
    },
    /// A field that has no effect without another field.
    #[error("{0} needs {1}: remove it, or set {1}")]
    Needs(&'static str, &'static str),
    /// Two fields that exclude each other.
    #[error("{0} and {1} exclude each other: keep one of them")]
    Exclusive(&'static str, &'static str),
    /// An operator that would run code on the database server.
    #[error("target.filter: {0} runs code on the server and is not allowed; use query operators such as $eq, $in, $gt")]
    ServerCode(&'static str),
    /// A database or collection that must not be touched.
    #[error("{field}: {name:?} is reserved: name another one")]
    Reserved {
        /// Path in the spec.
        field: &'static str,
        /// The name found.
        name: String,
    },
    /// A field path the stamp cannot be written to.
    #[error("{field} must be a field path without $, such as {example}")]
    FieldPath {
        /// Path in the spec.
        field: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// A spec without a source, or with two sources.
    #[error("source needs either graphQL or rest: set one of them")]
    OneSource,
    /// A mistake in the source, whose text begins with the field.
    #[error("source.{0}")]
    Source(Box<SpecError>),
    /// A mistake in a field that only sources of this kind have. The text begins with the field.
    #[error("{0}.{1}")]
    OfKind(&'static str, Box<SpecError>),
    /// A query that is no GraphQL document.
    #[error("query {0}")]
    Document(InvalidDocument),
    /// An endpoint that is no URL, or holds a password.
    #[error(
        "endpoint must be an http or https URL without user and password, such as https://gitlab.example.com/api/graphql"
    )]
    Endpoint,
    /// An endpoint with unknown or misplaced placeholders.
    #[error(
        "endpoint must be a URL such as https://api.example.com/users/{{id}}, with no other braces than {{id}}, {{ids}}, {{page}}, {{after}} and {{first}}, after its host, and without .. in its path"
    )]
    InvalidPlaceholders,
    /// An endpoint that lacks a placeholder, or has one without its setting.
    #[error("endpoint with {{{0}}} and {1} go together: set both, or remove {{{0}}}")]
    MissingPlaceholder(&'static str, &'static str),
    /// Pages that only the header of an answer identifies.
    #[error("pagination.by Link needs rest: with graphQL, use Cursor or Number")]
    Link,
    /// A rate at which a run would hold its worker between two requests.
    #[error("rateLimit allows less than one request per minute: raise requests, or lower per")]
    SlowRate,
    /// A text that is no JSON pointer.
    #[error("{0} must be a JSON pointer, which starts with / and has ~ only as ~0 or ~1, such as /data/users")]
    Pointer(&'static str),
    /// A mapped field with two values, or none.
    #[error("mapping[].to {0} needs either from, a JSON pointer into the result, or value, a constant")]
    Constant(String),
    /// Two fields of which one is the other, or a part of it.
    #[error(
        "mapping[].to {0} and {1} overlap: map one of them, and neither target.keyField nor target.lastSyncedField"
    )]
    Overlap(String, String),
    /// A stamp that would overwrite the key of documents.
    #[error(
        "target.lastSyncedField must not be target.keyField, nor a part of it, nor the reverse: name a field of its own"
    )]
    Stamp,
    /// A mark that would overwrite the key of documents.
    #[error("missing: {0} must not be a part of {1}, nor the reverse: name a field of its own")]
    Mark(String, String),
}

/// Reads a duration field.
pub(super) fn duration(field: &'static str, value: &GoDuration) -> Result<Duration, SpecError> {
    value.parse().map_err(|source| SpecError::Duration { field, source })
}

/// Checks an integer field.
pub(super) fn range(field: &'static str, value: i32, min: i64, max: i64) -> Result<i64, SpecError> {
    let value = i64::from(value);
    if (min..=max).contains(&value) { Ok(value) } else { Err(SpecError::Range { field, min, max, value }) }
}

impl RunSpec {
    /// Checks a spec and fills in its defaults. The CRD's rules check the same; an object stored under an
    /// older CRD did not pass them.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn parse(spec: &SyncJobSpec) -> Result<Self, SpecError> {
        free_form::check(spec)?;
        let target = &spec.target;
        if let Some(operator) = target.filter.forbidden_operator() {
            return Err(SpecError::ServerCode(operator));
        }
        let collection = target.collection.clone().unwrap_or_else(|| spec.type_.collection().to_owned());
        if collection.starts_with("system.") || collection.starts_with(JOURNALS) {
            return Err(SpecError::Reserved { field: "target.collection", name: collection });
        }
        if let Some(name @ ("admin" | "config" | "local")) = target.database.as_deref() {
            return Err(SpecError::Reserved { field: "target.database", name: name.to_owned() });
        }
        let field_path = |field, path: &str, example| match path {
            "" => Err(SpecError::FieldPath { field, example }),
            _ if path.contains('$') || path.starts_with('.') => Err(SpecError::FieldPath { field, example }),
            _ => Ok(path.to_owned()),
        };
        if source::overlap(&target.key_field, &target.last_synced_field) {
            return Err(SpecError::Stamp);
        }
        let stale_after = spec.stale_after.as_ref().map(|value| duration("staleAfter", value)).transpose()?;
        Ok(Self {
            stale_after: match spec.sync_type {
                SyncMode::Full => None,
                SyncMode::Incremental => Some(stale_after.unwrap_or(DEFAULT_STALE_AFTER)),
            },
            batch_size: range("batchSize", spec.batch_size, 1, 10_000)? as usize,
            parallelism: range("parallelism", spec.parallelism, 1, 64)? as usize,
            retries: range("backoffLimit", spec.backoff_limit, 0, 100)? as u32,
            backoff: Backoff {
                initial: duration("backoff.initial", &spec.backoff.initial)?,
                factor: range("backoff.factor", spec.backoff.factor, 1, 100)? as u32,
                max: duration("backoff.max", &spec.backoff.max)?,
                jitter: spec.backoff.jitter.clamp(0.0, 1.0),
            },
            active_deadline: duration("activeDeadline", &spec.active_deadline)?,
            max_failed_percent: match (spec.failure_policy.max_failed_percent, &spec.source) {
                (Some(percent), _) => range("failurePolicy.maxFailedPercent", percent, 1, 100)?,
                (None, Some(_)) => DEFAULT_MAX_FAILED_PERCENT,
                (None, None) => 100,
            },
            own_mongodb: match (&target.uri_secret_ref, &target.ca_secret_ref) {
                (None, Some(_)) => return Err(SpecError::Needs("target.caSecretRef", "target.uriSecretRef")),
                (uri, ca) => uri.clone().map(|uri| OwnMongoDb { uri, ca: ca.clone() }),
            },
            database: target.database.clone(),
            collection,
            key_field: field_path("target.keyField", &target.key_field, "_id")?,
            last_synced_field: field_path("target.lastSyncedField", &target.last_synced_field, "lastSynced")?,
            filter: target.filter.0.clone(),
            source: source::parse(spec)?,
            guard: match (&spec.guard, &spec.source) {
                (Some(_), None) => return Err(SpecError::Needs("guard", "source")),
                (guard, _) => Guard::parse(&guard.clone().unwrap_or_default())?,
            },
            transaction: match (spec.transaction, &spec.source) {
                (Transaction::None, _) => false,
                (Transaction::Batch, Some(_)) => true,
                (Transaction::Batch, None) => return Err(SpecError::Needs("transaction Batch", "source")),
            },
            rollback: match (spec.on_failure, spec.transaction) {
                (OnFailure::Keep, _) => false,
                (OnFailure::Rollback, Transaction::Batch) => !spec.dry_run,
                (OnFailure::Rollback, Transaction::None) => {
                    return Err(SpecError::Needs("onFailure Rollback", "transaction Batch"));
                }
            },
            dry_run: spec.dry_run,
            subset: Subset::default(),
        })
    }

    /// True when the share of failed documents makes the run fail.
    #[must_use]
    pub fn too_many_failed(&self, counts: &Counts) -> bool {
        counts.failed > 0 && counts.failed * 100 >= counts.processed * self.max_failed_percent
    }
}

/// Progress in percent. Stays below 100 until the run is complete.
#[must_use]
pub fn progress(counts: &Counts, complete: bool) -> i32 {
    if complete {
        return 100;
    }
    match counts.total {
        0 => 0,
        total => (counts.processed.saturating_mul(100) / total).clamp(0, 99) as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(spec: Value) -> Result<RunSpec, String> {
        let spec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
        RunSpec::parse(&spec).map_err(|error| error.to_string())
    }

    #[test]
    fn a_parsed_spec_has_every_default() {
        let run = parse(json!({"type": "Issue"})).unwrap();
        assert_eq!(run.collection, "issues");
        assert_eq!(run.stale_after, Some(Duration::from_secs(600)));
        assert_eq!(run.backoff.delay(3, 0.5), Duration::from_secs(125));
        assert_eq!(parse(json!({"syncType": "Full"})).unwrap().stale_after, None);
    }

    #[test]
    fn mistakes_are_named_with_field_and_fix() {
        for (spec, message) in [
            (json!({"batchSize": 0}), "batchSize must be from 1 to 10000, not 0"),
            (json!({"parallelism": 1000}), "parallelism must be from 1 to 64, not 1000"),
            (json!({"activeDeadline": "soon"}), "activeDeadline: \"soon\" is no duration"),
            (json!({"target": {"database": "admin"}}), "target.database: \"admin\" is reserved"),
            (json!({"target": {"collection": "system.users"}}), "target.collection: \"system.users\" is reserved"),
            (json!({"target": {"collection": "sync_journal.a"}}), "target.collection: \"sync_journal.a\" is reserved"),
            (json!({"onFailure": "Rollback"}), "onFailure Rollback needs transaction Batch"),
            (
                json!({"target": {"caSecretRef": {"name": "s", "key": "k"}}}),
                "target.caSecretRef needs target.uriSecretRef: remove it, or set target.uriSecretRef",
            ),
            (json!({"target": {"keyField": "$a"}}), "target.keyField must be a field path without $"),
            (
                json!({"target": {"keyField": "account.id", "lastSyncedField": "account"}}),
                "target.lastSyncedField must not be target.keyField",
            ),
            (json!({"target": {"filter": {"$and": [{"$where": "1"}]}}}), "target.filter: $where runs code"),
        ] {
            let error = parse(spec.clone()).unwrap_err();
            assert!(error.starts_with(message), "{spec}: {error}");
        }
    }

    #[test]
    fn a_run_waits_only_so_often_without_coming_further() {
        let mut checkpoint = Checkpoint::default();
        let waits = (0..=MAX_PAUSES).filter(|_| checkpoint.pause()).count();
        assert_eq!((waits, checkpoint.is_paused, checkpoint.pauses), (MAX_PAUSES as usize, false, 0));
        assert!(checkpoint.pause());
        // A dry run starts over after each pause, and comes no further.
        checkpoint.counts.processed = 10;
        let waits = (0..=MAX_PAUSES).filter(|_| checkpoint.pause()).count();
        assert_eq!(waits, MAX_PAUSES as usize);
    }

    #[test]
    fn progress_reaches_100_only_when_complete() {
        let counts = |processed, total| Counts { total, processed, ..Counts::default() };
        for (processed, total, complete, expected) in [
            (0, 0, false, 0),
            (0, 10, false, 0),
            (5, 10, false, 50),
            (10, 10, false, 99),
            (12, 10, false, 99),
            (0, 0, true, 100),
        ] {
            assert_eq!(progress(&counts(processed, total), complete), expected);
        }
    }

    #[test]
    fn refused_documents_fail_the_run_from_the_given_share_on() {
        let run = |percent| parse(json!({"failurePolicy": {"maxFailedPercent": percent}})).unwrap();
        let counts = |failed, processed| Counts { processed, failed, ..Counts::default() };
        assert!(!run(100).too_many_failed(&counts(0, 0)));
        assert!(!run(100).too_many_failed(&counts(9, 10)));
        assert!(run(100).too_many_failed(&counts(10, 10)));
        assert!(run(10).too_many_failed(&counts(1, 10)));
        assert!(!run(11).too_many_failed(&counts(1, 10)));
        let source = json!({"source": {"rest": {"endpoint": "https://a/{ids}"}}});
        for (spec, percent) in [(json!({}), 100), (source, 50)] {
            assert_eq!(parse(spec.clone()).unwrap().max_failed_percent, percent, "{spec}");
        }
    }
}
