//! Condition types and reasons of all kinds. `kstatus` (Flux, `helm --wait`) reads the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSON};
use serde_json::json;

/// Sets Ready=Unknown on new objects of a kind until a controller has reconciled them: without a status, kstatus
/// takes an object for ready, and `helm --wait` would not wait.
pub(super) fn with_unknown_ready(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let with_unknown_ready = json!({"conditions": [{
        "type": READY, "status": "Unknown", "reason": reasons::PENDING,
        "message": "Not reconciled yet", "lastTransitionTime": "1970-01-01T00:00:00Z",
    }]});
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let status = schema.and_then(|schema| schema.properties.as_mut()?.get_mut("status"));
        if let Some(status) = status {
            status.default = Some(JSON(with_unknown_ready.clone()));
        }
    }
    definition
}

/// Present on a SyncSchedule and a SyncAlert always. True: runs are started as scheduled, or would be were it not suspended;
/// sinks take messages.
pub const READY: &str = "Ready";
/// True while the controller is not yet done with the object: a run under way, or a dependency that is away.
pub const RECONCILING: &str = "Reconciling";
/// True when no run starts until a user changes the object, or triggers a run of the schedule.
pub const STALLED: &str = "Stalled";
/// True while `spec.suspended` holds the object back.
pub const SUSPENDED: &str = "Suspended";
/// True on a SyncJob that finished, with or without users that failed.
pub const COMPLETE: &str = "Complete";
/// True on a SyncJob that ended without finishing its work.
pub const FAILED: &str = "Failed";

/// True while a run waits for an approval of what its guard holds.
pub const HELD: &str = "Held";
/// True on a SyncJob that ended without a search for documents that its source no longer has.
pub const REMOVAL_SKIPPED: &str = "RemovalSkipped";

/// True on a SyncSchedule while its source maps a field that another source maps too.
pub const FIELD_CONFLICT: &str = "FieldConflict";

/// True while the controllers of another Lease work on the object.
pub const INSTALLATION_CONFLICT: &str = "InstallationConflict";

/// True on a SyncSchedule while clocks differ so much that times are wrong.
pub const CLOCK_SKEW: &str = "ClockSkew";

/// Reasons, the machine-readable half of a condition.
pub mod reasons {
    /// This release of the operator cannot read the object.
    pub const UNREADABLE: &str = "Unreadable";
    /// The API server refuses to create a run of the schedule.
    pub const CREATE_FAILED: &str = "CreateFailed";
    /// A request that the object needs keeps failing.
    pub const RECONCILIATION_FAILED: &str = "ReconciliationFailed";
    /// The schedule is not reconciled yet.
    pub const PENDING: &str = "Pending";
    /// The schedule starts its runs as written.
    pub const SCHEDULED: &str = "Scheduled";
    /// `spec.suspended` is true.
    pub const SUSPENDED: &str = "Suspended";
    /// `spec.suspended` is false.
    pub const ACTIVE: &str = "Active";
    /// `spec.failureThreshold` runs in a row have failed.
    pub const FAILURE_THRESHOLD_EXCEEDED: &str = "FailureThresholdExceeded";
    /// The spec has an error only its owner can mend.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// A field has two sources.
    pub const MAPPED_TWICE: &str = "MappedTwice";
    /// Redis does not answer.
    pub const QUEUE_UNAVAILABLE: &str = "QueueUnavailable";
    /// The clocks of servers differ by more than 30 s.
    pub const CLOCKS_DIFFER: &str = "ClocksDiffer";
    /// The queue belongs to another installation.
    pub const INSTALLATION_CONFLICT: &str = "InstallationConflict";
    /// The controllers of another Lease work on the object.
    pub const OTHER_INSTALLATION: &str = "OtherInstallation";
    /// The run waits for a worker of a newer release.
    pub const NEWER_WORKER_NEEDED: &str = "NewerWorkerNeeded";
    /// The run waits for a worker.
    pub const QUEUED: &str = "Queued";
    /// The run waits, and no worker is connected to Redis.
    pub const NO_WORKERS: &str = "NoWorkers";
    /// Running on a worker.
    pub const RUNNING: &str = "Running";
    /// An attempt failed; the next one is due after the backoff.
    pub const RETRYING: &str = "Retrying";
    /// The source limits requests; the run continues after the pause that it asked for.
    pub const RATE_LIMITED: &str = "RateLimited";
    /// The run has failed; its documents are put back as they were.
    pub const ROLLING_BACK: &str = "RollingBack";
    /// The run would exceed a limit of its guard, and waits for an approval.
    pub const GUARD_EXCEEDED: &str = "GuardExceeded";
    /// No user approved the run within `spec.guard.holdFor`.
    pub const NOT_APPROVED: &str = "NotApproved";
    /// A later run of the schedule took the place of the held one.
    pub const SUPERSEDED: &str = "Superseded";
    /// The walk did not prove that it listed all that the source has.
    pub const WALK_UNPROVED: &str = "WalkUnproved";
    /// More results failed than the run can leave out by their keys, or one has no usable key.
    pub const TOO_MANY_UNREADABLE: &str = "TooManyUnreadable";
    /// The source has no name: set `source.name`.
    pub const SOURCE_UNNAMED: &str = "SourceUnnamed";
    /// The run did all its work.
    pub const COMPLETED: &str = "Completed";
    /// The last allowed attempt failed too.
    pub const BACKOFF_LIMIT_EXCEEDED: &str = "BackoffLimitExceeded";
    /// The run was active for longer than `spec.activeDeadline`.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The SyncJob was restored without its status after the deadline of its slot, and was not executed.
    pub const STARTING_DEADLINE_EXCEEDED: &str = "StartingDeadlineExceeded";
    /// The target cannot be worked on as written (filter, database, rights).
    pub const INVALID_TARGET: &str = "InvalidTarget";
    /// The source cannot be asked as written (endpoint, query, token, Secret).
    pub const INVALID_SOURCE: &str = "InvalidSource";
    /// More users failed than `spec.failurePolicy.maxFailedPercent` allows.
    pub const TOO_MANY_FAILED: &str = "TooManyFailed";
    /// `spec.cancelled` was set.
    pub const CANCELLED: &str = "Cancelled";
    /// A newer run of the schedule took its place.
    pub const REPLACED: &str = "Replaced";
    /// The run in Redis was written by another release of the operator.
    pub const UNKNOWN_FORMAT: &str = "UnknownFormat";
    /// The run lost its worker again and again without getting any further.
    pub const STALLED: &str = "Stalled";

    /// Every sink of the alert accepts messages, as far as is known.
    pub const DELIVERING: &str = "Delivering";
    /// The sink took a message.
    pub const DELIVERED: &str = "Delivered";
    /// The sink refuses messages as the spec or a Secret has it.
    pub const INVALID_SINK: &str = "InvalidSink";
    /// The sink does not answer, or reports that it cannot accept messages now.
    pub const SINK_UNAVAILABLE: &str = "SinkUnavailable";
    /// The template cannot be used; messages are worded as without one.
    pub const INVALID_TEMPLATE: &str = "InvalidTemplate";

    /// Reasons of failed runs that no user ended.
    pub const FAILURES: [&str; 9] = [
        BACKOFF_LIMIT_EXCEEDED,
        DEADLINE_EXCEEDED,
        INVALID_TARGET,
        INVALID_SOURCE,
        TOO_MANY_FAILED,
        UNKNOWN_FORMAT,
        STALLED,
        GUARD_EXCEEDED,
        NOT_APPROVED,
    ];
}
