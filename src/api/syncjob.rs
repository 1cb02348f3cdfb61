//! `SyncJob`: one run.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    GoDuration, Unknown,
    guard::Guard,
    rules,
    source::{MappedField, SecretKey, Source},
};

/// One run of a synchronisation.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "sync.codex.dev",
    version = "v1alpha1",
    kind = "SyncJob",
    plural = "syncjobs",
    shortname = "sjob",
    category = "sync",
    namespaced,
    status = "SyncJobStatus",
    derive = "PartialEq",
    doc = "A SyncJob is one run of a synchronisation: it walks a MongoDB collection, and stamps each selected document or updates it from a source. SyncSchedules create SyncJobs; users can create them as well.",
    selectable = ".spec.type",
    printcolumn(name = "Schedule", type_ = "string", json_path = r".metadata.labels.sync\.codex\.dev/schedule", description = "SyncSchedule of the run"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.syncType", description = "Full or Incremental"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase", description = "Phase of the run"),
    printcolumn(name = "Progress", type_ = "integer", json_path = ".status.progress", description = "Progress in per cent"),
    printcolumn(name = "Processed", type_ = "integer", json_path = ".status.counts.processed", description = "Documents processed"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.counts.failed", description = "Documents that could not be synchronised"),
    printcolumn(name = "Attempts", type_ = "integer", json_path = ".status.attempts", description = "Failed attempts"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration", description = "From the first claim to the end"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::immutable("type"),
    validation = rules::immutable("syncType"),
    validation = rules::immutable_optional("staleAfter"),
    validation = rules::immutable("batchSize"),
    validation = rules::immutable("parallelism"),
    validation = rules::immutable("backoffLimit"),
    validation = rules::immutable("backoff"),
    validation = rules::immutable("activeDeadline"),
    validation = rules::immutable("failurePolicy"),
    validation = rules::immutable("target"),
    validation = rules::immutable_optional("source"),
    validation = rules::immutable_optional("mapping"),
    validation = rules::immutable_optional("guard"),
    validation = rules::immutable("transaction"),
    validation = rules::immutable("onFailure"),
    validation = rules::immutable("dryRun"),
    validation = Rule::new("!oldSelf.spec.cancelled || self.spec.cancelled").message("spec.cancelled cannot be set back to false: create a new SyncJob instead")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.source) || !has(self.mapping)").message("mapping needs source: remove it, or set source").field_path(".mapping"),
    validation = Rule::new("has(self.source) || !has(self.guard)").message("guard needs source: remove it, or set source").field_path(".guard"),
    validation = Rule::new("has(self.source) || self.transaction == 'None'").message("transaction Batch needs source: remove it, or set source").field_path(".transaction"),
    validation = Rule::new("self.transaction == 'Batch' || self.onFailure == 'Keep'").message("onFailure Rollback needs transaction Batch: set both, or neither").field_path(".onFailure"),
    validation = rules::full()
)]
pub struct SyncJobSpec {
    /// Type of the records. It presets `target.collection`: User means `users`, Project `projects`, Issue `issues`,
    /// Pipeline `pipelines`.
    #[serde(rename = "type", default)]
    pub type_: SyncType,

    /// Selection of documents. Full handles each document that `target.filter` matches. Incremental handles only
    /// documents that are due: never synced, not synced for `staleAfter`, or changed since the last sync (`updatedAt`
    /// later than `lastSynced`).
    #[serde(default)]
    pub sync_type: SyncMode,

    /// For Incremental: time after its last sync at which a document is due again. Default: half the schedule's
    /// interval; 10m for a SyncJob without a schedule. With the whole
    /// interval, a document that is stamped late in one run would not be due at the next slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration("staleAfter", "0s", "8760h", "10m"))]
    pub stale_after: Option<GoDuration>,

    /// Number of documents per batch, 1 to 10000.
    #[serde(default = "default_batch_size")]
    #[x_kube(validation = rules::range("batchSize", 1, 10_000))]
    pub batch_size: i32,

    /// Number of concurrent batches of this run, 1 to 64. With a source, the run requests up to this number of batches
    /// at the same time, and writes half as many.
    #[serde(default = "default_parallelism")]
    #[x_kube(validation = rules::range("parallelism", 1, 64))]
    pub parallelism: i32,

    /// Number of retries after the first attempt, 0 to 100. Only attempts that could not continue count, for reasons
    /// such as an unavailable database or a timeout. Documents that MongoDB refuses never end an attempt.
    #[serde(default = "default_backoff_limit")]
    #[x_kube(validation = rules::range("backoffLimit", 0, 100))]
    pub backoff_limit: i32,

    /// Delay before each retry: `initial` before the first, then `factor` times as long each time, at most `max`.
    #[serde(default)]
    pub backoff: Backoff,

    /// Longest duration of the run, with the delays between its attempts. A run that takes longer fails with the reason
    /// DeadlineExceeded.
    #[serde(default = "default_active_deadline")]
    #[x_kube(validation = rules::duration("activeDeadline", "1s", "8760h", "1h"))]
    pub active_deadline: GoDuration,

    /// Time after its end at which the SyncJob is deleted. For SyncJobs without a schedule: the SyncJobs of a schedule
    /// follow its history limits. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration("ttlAfterFinished", "0s", "8760h", "24h"))]
    pub ttl_after_finished: Option<GoDuration>,

    /// Priority of the run in the queue, -1000 to 1000. Runs with a higher priority start first. Within a priority the
    /// runs of different namespaces alternate, and runs of one namespace start in the order of their arrival.
    #[serde(default)]
    #[x_kube(validation = rules::range("priority", -1000, 1000))]
    pub priority: i32,

    /// Suspension of the run. True: the run stops at its next batch boundary. False: the run continues from there. A
    /// suspension does not count as an attempt.
    #[serde(default)]
    pub suspended: bool,

    /// Cancellation of the run. True: the run fails with the reason Cancelled. A cancellation cannot be undone.
    #[serde(default)]
    pub cancelled: bool,

    /// Limits of refused documents above which the whole run fails.
    #[serde(default)]
    pub failure_policy: FailurePolicy,

    /// Documents that the run synchronises.
    #[serde(default)]
    pub target: Target,

    /// Source of the desired content of documents. Without a source, a run only stamps `target.lastSyncedField`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Box<Source>>,

    /// Mapping of results of the source to fields of their documents. A run writes only these fields and
    /// `target.lastSyncedField`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["to".into()]))]
    #[schemars(length(max = 64))]
    pub mapping: Vec<MappedField>,

    /// Limits of the changes that the run may make to documents without an approval. Needs `source`. Default: a run
    /// with `onMissing: Mark` or `Delete` waits in the phase Held when it would mark or delete more than 20 % of the
    /// documents and more than 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,

    /// Scope of a transaction. Batch writes each batch in one transaction, so that clients see all changes of a batch
    /// or none. Documents that MongoDB refuses are left out, and each of them needs another try of the batch. Batch
    /// needs `source`, and a replica set or a sharded cluster.
    #[serde(default)]
    pub transaction: Transaction,

    /// Handling of the documents of a failed or cancelled run. Rollback restores each document, except for changes that
    /// other clients made meanwhile. The collection `sync_journal.<uid of the SyncJob>` has the former values until the
    /// run has ended, for 30 days at most. Rollback needs `transaction: Batch`. The deletion of a SyncJob that has not
    /// ended restores nothing: cancel the SyncJob first.
    #[serde(default)]
    pub on_failure: OnFailure,

    /// Dry run. True: the run writes nothing. `status.counts.updated` is the number of documents that would be written,
    /// and `status.changes` has their keys.
    #[serde(default)]
    pub dry_run: bool,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl Default for SyncJobSpec {
    fn default() -> Self {
        Self {
            type_: SyncType::default(),
            sync_type: SyncMode::default(),
            stale_after: None,
            batch_size: default_batch_size(),
            parallelism: default_parallelism(),
            backoff_limit: default_backoff_limit(),
            backoff: Backoff::default(),
            active_deadline: default_active_deadline(),
            ttl_after_finished: None,
            priority: 0,
            suspended: false,
            cancelled: false,
            failure_policy: FailurePolicy::default(),
            target: Target::default(),
            source: None,
            mapping: Vec::new(),
            guard: None,
            transaction: Transaction::default(),
            on_failure: OnFailure::default(),
            dry_run: false,
            unknown: Unknown::new(),
        }
    }
}

/// Type of the records that a run synchronises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[schemars(inline)]
pub enum SyncType {
    /// Collection `users`.
    #[default]
    User,
    /// Collection `projects`.
    Project,
    /// Collection `issues`.
    Issue,
    /// Collection `pipelines`.
    Pipeline,
}

impl SyncType {
    /// Returns the default of `target.collection`.
    #[must_use]
    pub fn collection(self) -> &'static str {
        match self {
            Self::User => "users",
            Self::Project => "projects",
            Self::Issue => "issues",
            Self::Pipeline => "pipelines",
        }
    }
}

/// Selection of the documents that a run handles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SyncMode {
    /// All documents that match the filter.
    Full,
    /// Only documents that are due.
    #[default]
    Incremental,
}

/// Delay before each retry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// Delay before the first retry, 100ms to 24h.
    #[serde(default = "default_backoff_initial")]
    #[x_kube(validation = rules::duration("backoff.initial", "100ms", "24h", "5s"))]
    pub initial: GoDuration,
    /// Factor of each further delay, 1 to 100.
    #[serde(default = "default_backoff_factor")]
    #[x_kube(validation = rules::range("backoff.factor", 1, 100))]
    pub factor: i32,
    /// Longest delay, 100ms to 24h.
    #[serde(default = "default_backoff_max")]
    #[x_kube(validation = rules::duration("backoff.max", "100ms", "24h", "10m"))]
    pub max: GoDuration,
    /// Share by which each delay is randomly longer or shorter, 0 to 1, so that runs that failed at the same time do
    /// not retry at the same time.
    #[serde(default = "default_backoff_jitter")]
    #[x_kube(validation = Rule::new("self >= 0.0 && self <= 1.0").message("backoff.jitter must be from 0 to 1"))]
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: default_backoff_initial(),
            factor: default_backoff_factor(),
            max: default_backoff_max(),
            jitter: default_backoff_jitter(),
        }
    }
}

/// Limits of refused documents above which a run fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailurePolicy {
    /// Percentage of failed documents among the processed documents at which the run fails, 1 to 100. 100: the run
    /// fails only when all documents failed. Default: 50 with `source`, 100 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::range("failurePolicy.maxFailedPercent", 1, 100))]
    pub max_failed_percent: Option<i32>,
}

/// Documents that a run synchronises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.caSecretRef) || has(self.uriSecretRef)").message("target.caSecretRef needs target.uriSecretRef: set it, or remove caSecretRef").field_path(".caSecretRef"))]
#[x_kube(validation = Rule::new("self.lastSyncedField != self.keyField && !self.lastSyncedField.startsWith(self.keyField + '.') && !self.keyField.startsWith(self.lastSyncedField + '.')").message("target.lastSyncedField must not be target.keyField, nor a part of it, nor the reverse: name a field of its own").field_path(".lastSyncedField"))]
pub struct Target {
    /// Entry of a Secret with the connection string of a MongoDB, in place of the operator's. The Secret needs the
    /// annotation `sync.codex.dev/hosts` with the hosts, and the policy of the installation must allow the hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri_secret_ref: Option<SecretKey>,

    /// Entry of a Secret with a CA bundle (PEM) that the servers of `uriSecretRef` must have a certificate of. The Secret
    /// needs the annotation `sync.codex.dev/hosts` too. Default: the well-known CAs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,

    /// Database of the documents. Default: the operator's `MONGODB_DATABASE`, or with `uriSecretRef` the database of the
    /// connection string. Without `uriSecretRef`, other databases must be listed in the operator's
    /// `--allowed-databases`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(r"self.matches('^[^/\\\\. $*<>:|?]{1,63}$') && !(self in ['admin', 'config', 'local'])").message("target.database must be a database name without spaces or any of /\\.$*<>:|? and none of admin, config, local"))]
    #[schemars(length(max = 63))]
    pub database: Option<String>,

    /// Collection of the documents. Default: the collection of `type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[^$]{1,200}$') && !self.startsWith('system.') && !self.startsWith('sync_journal.')").message("target.collection must be a collection name without $ that starts neither with system. nor with sync_journal."))]
    #[schemars(length(max = 200))]
    pub collection: Option<String>,

    /// Field that identifies a document. It must have a unique index. A run reads the documents in the order of this
    /// field.
    #[serde(default = "default_key_field")]
    #[x_kube(validation = Rule::new("self.matches('^[^$.][^$]{0,127}$')").message("target.keyField must be a field path without $, such as _id or account.id"))]
    #[schemars(length(max = 128))]
    pub key_field: String,

    /// MongoDB query that selects the documents, in MongoDB's extended JSON: `{"$oid": "…"}` and
    /// `{"$date": "…"}` work. Operators that run code on the server (`$where`, `$function`,
    /// `$accumulator`) are refused. At most 64 KiB of JSON and 32 levels. Default: all documents.
    #[serde(default, skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,

    /// Field that receives the time of the sync: the start of the run, as a date.
    #[serde(default = "default_last_synced_field")]
    #[x_kube(validation = Rule::new("self.matches('^[^$.][^$]{0,127}$') && self != '_id'").message("target.lastSyncedField must be a field path without $, such as lastSynced, and not _id"))]
    #[schemars(length(max = 128))]
    pub last_synced_field: String,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            uri_secret_ref: None,
            ca_secret_ref: None,
            database: None,
            collection: None,
            key_field: default_key_field(),
            filter: Filter::default(),
            last_synced_field: default_last_synced_field(),
            unknown: Unknown::new(),
        }
    }
}

/// A MongoDB query object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Filter(pub Map<String, Value>);

/// Operators that make the server run code, which are forbidden at any depth.
pub const FORBIDDEN_OPERATORS: [&str; 3] = ["$where", "$function", "$accumulator"];

impl Filter {
    /// True when the filter selects all documents.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the first operator in the filter that runs code on the server, at any depth.
    #[must_use]
    pub fn forbidden_operator(&self) -> Option<&'static str> {
        self.0.iter().find_map(forbidden_in)
    }
}

fn forbidden_in((key, value): (&String, &Value)) -> Option<&'static str> {
    FORBIDDEN_OPERATORS.into_iter().find(|op| op == key).or_else(|| forbidden_below(value))
}

fn forbidden_below(value: &Value) -> Option<&'static str> {
    match value {
        Value::Object(fields) => fields.iter().find_map(forbidden_in),
        Value::Array(items) => items.iter().find_map(forbidden_below),
        _ => None,
    }
}

impl JsonSchema for Filter {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Filter".into()
    }
    /// Schema of a filter. CEL cannot read the fields of a free-form object. The API server therefore refuses a
    /// forbidden operator by a property whose only allowed value is the advice. The schema has two levels of `$and`,
    /// `$or` and `$nor`; [`Filter::forbidden_operator`] checks deeper levels and `$expr`.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let innermost = free_object(&Map::new());
        let clauses = json_schema!({"type": "array", "items": free_object(&logical(&json_schema!({"type": "array", "items": innermost})))});
        free_object(&logical(&clauses))
    }
}

fn logical(clauses: &Schema) -> Map<String, Value> {
    ["$and", "$or", "$nor"].into_iter().map(|op| (op.to_owned(), clauses.clone().to_value())).collect()
}

fn free_object(more: &Map<String, Value>) -> Schema {
    let mut properties = more.clone();
    for op in FORBIDDEN_OPERATORS {
        let advice = format!(
            "none: {op} runs code on the server and is not allowed in target.filter; write the condition with query operators such as $eq, $in, $gt instead"
        );
        properties.insert(op.to_owned(), serde_json::json!({"type": "string", "enum": [advice]}));
    }
    json_schema!({"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": true})
}

/// Status of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SyncJobStatus {
    /// Value of `metadata.generation` for which this status was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Summary of the conditions for users. Programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Conditions. Complete or Failed becomes True at the end of the run, and then never changes. Reconciling is True
    /// until the run ends; Stalled is True on a failed run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Lease of the controllers that reconcile this SyncJob, as `<namespace>/<name>`. Controllers of other Leases do
    /// not change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<String>,
    /// Progress in per cent, 0 to 100. It never decreases within a run, and is 100 only for a complete run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<i32>,
    /// Numbers of documents by outcome. `processed = updated + unchanged + failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// Number of failed attempts. `attemptHistory` has the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    /// Number of times that the run was recovered from a lost worker. A recovery does not count as an attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recoveries: Option<i32>,
    /// Time at which a worker first claimed the run. Documents are stamped with this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// Time since `startTime` that does not count towards `spec.activeDeadline`: the run was suspended, held, or paused
    /// because its source limits requests. A pause that has not ended yet is not included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_for: Option<GoDuration>,
    /// End of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Time from `startTime` to `completionTime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<GoDuration>,
    /// Worker that claimed the run last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Documents that could not be synchronised, the first 20 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<DocumentFailure>,
    /// With `spec.dryRun`: keys of documents that would be written, the first 20 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// Attempts that failed, oldest first: the last 10 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempt_history: Vec<Attempt>,
}

/// Phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[schemars(inline)]
pub enum Phase {
    /// The run is not in the queue yet.
    Pending,
    /// The run waits for a worker.
    Queued,
    /// The run is active on a worker.
    Running,
    /// The run waits for its next attempt.
    Retrying,
    /// The run is suspended by `spec.suspended`.
    Suspended,
    /// The run has written all changes except for the changes that its guard holds, and waits for an approval.
    Held,
    /// The run has failed, and a worker restores its documents.
    RollingBack,
    /// The run has completed.
    Complete,
    /// The run has ended without completing.
    Failed,
}

/// Scope of a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Transaction {
    /// Each document is written separately.
    #[default]
    None,
    /// Each batch is written in one transaction.
    Batch,
}

/// Handling of the documents of a failed run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OnFailure {
    /// The documents keep the changes of the run.
    #[default]
    Keep,
    /// The documents are restored as they were before the run.
    Rollback,
}

/// Numbers of documents by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Number of documents that the run must handle. It may be an estimate until the run ends.
    pub total: i64,
    /// Number of documents that the run handled.
    pub processed: i64,
    /// Number of documents that the run stamped, or with a source, changed.
    pub updated: i64,
    /// Number of documents that needed no change: they had a later stamp, or did not exist any more. With a source, the
    /// number includes documents in which the run wrote only the stamp.
    pub unchanged: i64,
    /// Number of documents that MongoDB refused to update, or for which the source had no usable result.
    pub failed: i64,
    /// With `onFailure: Rollback`: number of documents that were restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<i64>,
    /// With `onMissing: Mark` or `Delete`: number of documents that the run marked, because the source no longer has
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marked: Option<i64>,
    /// With `onMissing: Delete`: number of documents that the run deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<i64>,
    /// With `onMissing: Mark` or `Delete`: number of marked documents that the source has again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmarked: Option<i64>,
    /// With `onMissing: Mark` or `Delete`: number of documents that the source does not have and that no run has
    /// confirmed. No run changes them. See `source.adopt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<i64>,
    /// Number of documents that wait for an approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<i64>,
}

/// A document that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DocumentFailure {
    /// Key of the document.
    pub key: String,
    /// Reason, in one CamelCase word.
    pub reason: String,
    /// Reason, as a sentence.
    pub message: String,
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Number of the attempt, from 1 on.
    pub number: i32,
    /// Start of the attempt.
    #[schema(value_type = jiff::Timestamp)]
    pub start: Time,
    /// End of the attempt.
    #[schema(value_type = jiff::Timestamp)]
    pub end: Time,
    /// Reason, in one CamelCase word.
    pub reason: String,
    /// Reason, as a sentence.
    pub message: String,
}

fn default_batch_size() -> i32 {
    100
}
fn default_parallelism() -> i32 {
    4
}
fn default_backoff_limit() -> i32 {
    3
}
fn default_backoff_initial() -> GoDuration {
    GoDuration::new("5s")
}
fn default_backoff_factor() -> i32 {
    5
}
fn default_backoff_max() -> GoDuration {
    GoDuration::new("10m")
}
fn default_backoff_jitter() -> f64 {
    0.1
}
fn default_active_deadline() -> GoDuration {
    GoDuration::new("1h")
}
fn default_key_field() -> String {
    "_id".to_owned()
}
fn default_last_synced_field() -> String {
    "lastSynced".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filter(value: Value) -> Filter {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn server_side_code_is_found_at_any_depth() {
        for (value, found) in [
            (json!({}), None),
            (json!({"state": "active", "age": {"$gt": 3}}), None),
            (json!({"$where": "1"}), Some("$where")),
            (json!({"$or": [{"a": 1}, {"$and": [{"$where": "1"}]}]}), Some("$where")),
            (json!({"$expr": {"$eq": [{"$function": {"body": "f"}}, 1]}}), Some("$function")),
        ] {
            assert_eq!(filter(value.clone()).forbidden_operator(), found, "{value}");
        }
    }

    #[test]
    fn an_empty_spec_has_the_documented_defaults() {
        let spec: SyncJobSpec = serde_json::from_value(json!({})).unwrap();
        assert_eq!((spec.batch_size, spec.parallelism, spec.backoff_limit, spec.priority), (100, 4, 3, 0));
        assert_eq!(spec.sync_type, SyncMode::Incremental);
        assert_eq!(spec.active_deadline.as_str(), "1h");
        assert_eq!(spec.target.key_field, "_id");
        assert_eq!(spec.failure_policy.max_failed_percent, None);
    }
}
