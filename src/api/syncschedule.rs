//! `SyncSchedule`: a schedule of runs, with a template for their SyncJobs.

use std::collections::BTreeMap;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GoDuration, SyncJobSpec, conditions, rules};

/// Schedule of runs, with a template for their SyncJobs.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "sync.codex.dev",
    version = "v1alpha1",
    kind = "SyncSchedule",
    plural = "syncschedules",
    shortname = "ssched",
    category = "sync",
    namespaced,
    status = "SyncScheduleStatus",
    derive = "PartialEq",
    doc = "A SyncSchedule creates a SyncJob for each slot of a fixed interval or of a cron expression.",
    printcolumn(name = "Schedule", type_ = "string", json_path = ".status.schedule", description = "Interval or cron expression"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspended", description = "No new runs while true"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.activeCount", description = "Unfinished runs"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastScheduleTime", description = "Time since the newest slot that was run"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime", description = "Next slot"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Succeeded", type_ = "integer", json_path = ".status.runs.succeeded", priority = 1),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.runs.failed", priority = 1),
    printcolumn(name = "Skipped", type_ = "integer", json_path = ".status.runs.skipped", priority = 1),
    printcolumn(name = "Time Zone", type_ = "string", json_path = ".spec.timeZone", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name must have at most 52 characters: the names of its SyncJobs append 11 more")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.interval) && has(self.schedule))").message("interval and schedule exclude each other: keep one of them"))]
#[x_kube(validation = Rule::new("!has(self.jobTemplate.spec.source) || !self.jobTemplate.spec.source.adopt").message("source.adopt is for a SyncJob without a schedule: create one, or remove adopt").field_path(".jobTemplate.spec.source.adopt"))]
#[x_kube(validation = Rule::new("!has(self.timeZone) || has(self.schedule)").message("timeZone needs schedule: intervals are the same in every time zone, so remove timeZone"))]
pub struct SyncScheduleSpec {
    /// A fixed interval in whole seconds, such as `20m`. Slots are multiples of it since the Unix epoch, so
    /// they do not drift. Default: 20m when `schedule` is not set either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::whole_seconds("interval", "1s", "8760h", "20m"))]
    pub interval: Option<GoDuration>,

    /// A cron expression of five fields (minute, hour, day of month, month, day of week), such as
    /// `*/20 * * * *`, or one of @hourly, @daily, @weekly, @monthly and @yearly. Replaces `interval`. A time that
    /// the clocks of `timeZone` skip gives no run on that day, and a time that they show twice gives two runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(r"self.matches('^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|[^ ]+( +[^ ]+){4})$') && !self.contains('TZ=')").message("schedule must be a cron expression of five fields, such as */20 * * * *; a time zone goes into timeZone"))]
    #[schemars(length(max = 128))]
    pub schedule: Option<String>,

    /// IANA name of the time zone of `schedule`, such as `Europe/Berlin`. Default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::time_zone("timeZone"))]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,

    /// Suspension of the schedule. True: no new runs start, and active runs continue. Slots that pass meanwhile are not
    /// run afterwards.
    #[serde(default)]
    pub suspended: bool,

    /// Handling of a slot that is due while an earlier run is not finished.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,

    /// With `concurrencyPolicy: Allow`: largest number of active runs, 1 to 1000. While this number of runs is active,
    /// a due slot is skipped, and a triggered run waits.
    #[serde(default = "default_max_active")]
    #[x_kube(validation = rules::range("maxActive", 1, 1000))]
    pub max_active: i32,

    /// Time after which a slot that could not be started is skipped, 1s to 8760h. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration("startingDeadline", "1s", "8760h", "5m"))]
    pub starting_deadline: Option<GoDuration>,

    /// Handling of slots that passed while no controller was running.
    #[serde(default)]
    pub catch_up: CatchUp,

    /// Run at the creation of the schedule. True: one run starts at once.
    #[serde(default)]
    pub immediate: bool,

    /// Upper limit of the delay of each slot. The delay of a schedule is constant and follows from the uid of the
    /// object. Schedules with the same interval therefore do not start their runs at the same time.
    #[serde(default = "default_jitter")]
    #[x_kube(validation = rules::duration("jitter", "0s", "24h", "30s"))]
    pub jitter: GoDuration,

    /// Number of completed SyncJobs that are kept, 0 to 1000. The oldest are deleted first.
    #[serde(default = "default_successful_history")]
    #[x_kube(validation = rules::range("successfulJobsHistoryLimit", 0, 1000))]
    pub successful_jobs_history_limit: i32,

    /// Number of failed SyncJobs that are kept, 0 to 1000. The oldest are deleted first.
    #[serde(default = "default_failed_history")]
    #[x_kube(validation = rules::range("failedJobsHistoryLimit", 0, 1000))]
    pub failed_jobs_history_limit: i32,

    /// Number of failed runs in a row, 1 to 100, after which the schedule is Stalled and starts no run for its slots.
    /// The schedule continues when a triggered run completes, or when its spec is changed. Cancelled, replaced and
    /// superseded runs do not count. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::range("failureThreshold", 1, 100))]
    pub failure_threshold: Option<i32>,

    /// Template of each SyncJob.
    #[serde(default)]
    pub job_template: JobTemplate,
}

impl Default for SyncScheduleSpec {
    fn default() -> Self {
        Self {
            interval: None,
            schedule: None,
            time_zone: None,
            suspended: false,
            concurrency_policy: ConcurrencyPolicy::default(),
            max_active: default_max_active(),
            starting_deadline: None,
            catch_up: CatchUp::default(),
            immediate: false,
            jitter: default_jitter(),
            successful_jobs_history_limit: default_successful_history(),
            failed_jobs_history_limit: default_failed_history(),
            failure_threshold: None,
            job_template: JobTemplate::default(),
        }
    }
}

impl SyncSchedule {
    /// The CustomResourceDefinition.
    #[must_use]
    pub fn definition() -> CustomResourceDefinition {
        conditions::with_unknown_ready(Self::crd())
    }
}

/// Handling of a slot that is due while an earlier run is not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ConcurrencyPolicy {
    /// The slot is skipped.
    #[default]
    Forbid,
    /// Both runs are active, up to `maxActive`.
    Allow,
    /// The earlier run is cancelled. The new run starts when no worker can write for the earlier run any more.
    Replace,
}

/// Handling of slots that passed while no controller was running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum CatchUp {
    /// One run starts for the newest slot.
    #[default]
    Latest,
    /// The slots are skipped.
    None,
}

/// Template of each SyncJob of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobTemplate {
    /// Labels and annotations of the SyncJobs.
    #[serde(default)]
    pub metadata: TemplateMeta,
    /// Spec of the SyncJobs.
    #[serde(default)]
    pub spec: SyncJobSpec,
}

/// Labels and annotations that a template adds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMeta {
    /// Labels. Labels under `sync.codex.dev/` are reserved for the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations. Annotations under `sync.codex.dev/` are reserved for the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Status of a schedule: its past and next runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SyncScheduleStatus {
    /// Value of `metadata.generation` for which this status was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready and Suspended, and Reconciling, Stalled, FieldConflict, InstallationConflict and ClockSkew
    /// while they are true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Lease of the controllers that reconcile this SyncSchedule, as `<namespace>/<name>`. Controllers of other Leases
    /// do not change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<String>,
    /// The current interval, or the cron expression and its time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Time up to which no more runs are started for slots. It is the newest slot that was run or skipped, the end of a
    /// suspension, or the time of a change of the schedule, whichever is the latest. At first, it is the creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_since: Option<Time>,
    /// Active runs, whose end is not counted yet. An entry is written before its SyncJob is created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub active: Vec<ActiveRun>,
    /// Number of entries in `active` whose run is not held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_count: Option<i32>,
    /// Newest slot for which a run was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// Next slot, with its jitter. Absent while the schedule is suspended or stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// Time at which a run last completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,
    /// Duration of the run that finished last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_duration: Option<GoDuration>,
    /// Counters since the schedule was created. They do not go down when SyncJobs are deleted.
    #[serde(default)]
    pub runs: RunCounters,
    /// Number of runs that failed since a run last completed, or since the spec was changed. Cancelled, replaced and
    /// superseded runs do not count.
    #[serde(default)]
    pub consecutive_failures: i32,
    /// Newest slot that was skipped, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_skip: Option<Skip>,
    /// Runs that failed, newest first: the last 20 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failure_history: Vec<RunFailure>,
    /// Newest run that waits for an approval. Absent when no run waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldRun>,
    /// Result of the run that ended last. Cancelled, replaced and superseded runs do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_result: Option<RunResult>,
    /// Trigger token that was handled last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_trigger: Option<String>,
    /// SyncJobs of the trigger tokens before `lastHandledTrigger`, oldest first: the last 20 of them. Such a token does
    /// not start another run, even after its SyncJob was deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handled_triggers: Vec<String>,
}

/// An active run, whose end is not counted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActiveRun {
    /// Name of the SyncJob.
    pub name: String,
    /// Uid of the SyncJob. Absent until the controller has observed the SyncJob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Slot of the run, or time of its trigger.
    pub slot: Time,
    /// Trigger token of a triggered run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
}

/// Counters of a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunCounters {
    /// Number of started runs.
    pub total: i64,
    /// Number of runs that completed.
    pub succeeded: i64,
    /// Number of runs that failed.
    pub failed: i64,
    /// Number of slots for which no run was started.
    pub skipped: i64,
    /// Number of runs that a newer run replaced or superseded.
    pub replaced: i64,
    /// Number of runs whose SyncJob was deleted before their end was counted.
    pub deleted: i64,
}

/// Slot for which no run was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Skip {
    /// Time of the slot.
    pub time: Time,
    /// Reason: Active (an earlier run was not finished), CatchUp, CreateFailed, Deadline, InvalidSpec, MaxActive,
    /// NameCollision, NotAllowed, Replaced or Suspended.
    pub reason: String,
}

/// A run that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunFailure {
    /// Name of the SyncJob.
    pub job: String,
    /// End of the run.
    pub time: Time,
    /// Reason, in one CamelCase word.
    pub reason: String,
    /// Reason, as a sentence.
    pub message: String,
}

/// A run that waits for an approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeldRun {
    /// Name of the SyncJob.
    pub job: String,
    /// Time at which the run was held.
    pub since: Time,
    /// Number of documents that an approval must have.
    pub removals: i64,
    /// Reason of the hold, as a sentence.
    pub message: String,
}

/// Result of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// Name of the SyncJob.
    pub job: String,
    /// End of the run.
    pub time: Time,
    /// Reason of the failure, in one CamelCase word. Absent when the run completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of documents that the run handled.
    pub processed: i64,
    /// Number of documents that failed.
    pub failed: i64,
    /// Number of times that the run was recovered from a lost worker.
    pub recoveries: i32,
}

fn default_max_active() -> i32 {
    10
}
fn default_jitter() -> GoDuration {
    GoDuration::new("0s")
}
fn default_successful_history() -> i32 {
    10
}
fn default_failed_history() -> i32 {
    20
}
