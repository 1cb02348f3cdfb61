//! Condition types and reasons of all kinds. `kstatus` (Flux, `helm --wait`) reads the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSON};
use serde_json::json;

/// Adds a default status to a kind: new objects have Ready=Unknown until a controller has reconciled them. Without a
/// status, kstatus reports an object as ready, and `helm --wait` would not wait.
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

/// Type that each SyncSchedule and SyncAlert has. True: the schedule starts its runs, or would start them without its
/// suspension; the sinks of the alert accept messages.
pub const READY: &str = "Ready";
/// Type that is True while the work on the object has not ended: a run is in progress, or a dependency is unavailable.
pub const RECONCILING: &str = "Reconciling";
/// Type that is True when no run starts until a user changes the object, or triggers a run of the schedule.
pub const STALLED: &str = "Stalled";
/// Type that is True while `spec.suspended` is true.
pub const SUSPENDED: &str = "Suspended";
/// Type that is True on a SyncJob that completed, with or without refused documents.
pub const COMPLETE: &str = "Complete";
/// Type that is True on a SyncJob that ended without completing.
pub const FAILED: &str = "Failed";

/// Type that is True while a run waits for an approval of the changes that its guard holds.
pub const HELD: &str = "Held";
/// Type that is True on a SyncJob that ended without a search for documents that its source no longer has.
pub const REMOVAL_SKIPPED: &str = "RemovalSkipped";

/// Type that is True on a SyncSchedule while its source maps a field that another source maps too.
pub const FIELD_CONFLICT: &str = "FieldConflict";

/// Type that is True while the controllers of another Lease reconcile the object.
pub const INSTALLATION_CONFLICT: &str = "InstallationConflict";

/// Type that is True on a SyncSchedule while clocks differ so much that times are wrong.
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
    /// The schedule starts a run for each slot.
    pub const SCHEDULED: &str = "Scheduled";
    /// `spec.suspended` is true.
    pub const SUSPENDED: &str = "Suspended";
    /// `spec.suspended` is false.
    pub const ACTIVE: &str = "Active";
    /// `spec.failureThreshold` runs in a row have failed.
    pub const FAILURE_THRESHOLD_EXCEEDED: &str = "FailureThresholdExceeded";
    /// The spec has an error that a user must correct.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// Two sources map the same field.
    pub const MAPPED_TWICE: &str = "MappedTwice";
    /// Redis does not answer.
    pub const QUEUE_UNAVAILABLE: &str = "QueueUnavailable";
    /// The clocks of servers differ by more than 30 s.
    pub const CLOCKS_DIFFER: &str = "ClocksDiffer";
    /// The queue belongs to another installation.
    pub const INSTALLATION_CONFLICT: &str = "InstallationConflict";
    /// The controllers of another Lease reconcile the object.
    pub const OTHER_INSTALLATION: &str = "OtherInstallation";
    /// The run waits for a worker of a newer release.
    pub const NEWER_WORKER_NEEDED: &str = "NewerWorkerNeeded";
    /// The namespace has as many runs in the queue as the policy of the installation allows.
    pub const TENANT_LIMIT: &str = "TenantLimit";
    /// The run waits for a worker.
    pub const QUEUED: &str = "Queued";
    /// The run waits, and no worker is connected to Redis.
    pub const NO_WORKERS: &str = "NoWorkers";
    /// The run is active on a worker.
    pub const RUNNING: &str = "Running";
    /// An attempt failed; the next one is due after the backoff.
    pub const RETRYING: &str = "Retrying";
    /// The source limits requests; the run continues after the pause that the source requested.
    pub const RATE_LIMITED: &str = "RateLimited";
    /// The run has failed; a worker restores its documents.
    pub const ROLLING_BACK: &str = "RollingBack";
    /// The run would exceed a limit of its guard, and waits for an approval.
    pub const GUARD_EXCEEDED: &str = "GuardExceeded";
    /// No user approved the run within `spec.guard.holdFor`.
    pub const NOT_APPROVED: &str = "NotApproved";
    /// A later run of the schedule superseded the held run.
    pub const SUPERSEDED: &str = "Superseded";
    /// The walk did not prove that it listed all results of the source.
    pub const WALK_UNPROVED: &str = "WalkUnproved";
    /// More results failed than the run can exclude by their keys, or a result has no usable key.
    pub const TOO_MANY_UNREADABLE: &str = "TooManyUnreadable";
    /// The source has no name: set `source.name`.
    pub const SOURCE_UNNAMED: &str = "SourceUnnamed";
    /// The run handled all its documents.
    pub const COMPLETED: &str = "Completed";
    /// The last allowed attempt failed too.
    pub const BACKOFF_LIMIT_EXCEEDED: &str = "BackoffLimitExceeded";
    /// The run was active for longer than `spec.activeDeadline`.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The SyncJob was restored without its status after the deadline of its slot, and was not executed.
    pub const STARTING_DEADLINE_EXCEEDED: &str = "StartingDeadlineExceeded";
    /// The target cannot be used as specified (filter, database, rights).
    pub const INVALID_TARGET: &str = "InvalidTarget";
    /// The source cannot be used as specified (endpoint, query, token, Secret).
    pub const INVALID_SOURCE: &str = "InvalidSource";
    /// An answer of the source exceeds a limit that protects the workers and Redis.
    pub const BUDGET_EXCEEDED: &str = "BudgetExceeded";
    /// The share of failed documents reached `spec.failurePolicy.maxFailedPercent`.
    pub const TOO_MANY_FAILED: &str = "TooManyFailed";
    /// The policy of the installation does not allow the run.
    pub const NOT_ALLOWED: &str = "NotAllowed";
    /// `spec.cancelled` was set.
    pub const CANCELLED: &str = "Cancelled";
    /// A newer run of the schedule replaced the run.
    pub const REPLACED: &str = "Replaced";
    /// The run in Redis was written by another release of the operator.
    pub const UNKNOWN_FORMAT: &str = "UnknownFormat";
    /// The run lost its worker repeatedly, without progress in between.
    pub const STALLED: &str = "Stalled";

    /// No sink of the alert has refused its last message.
    pub const DELIVERING: &str = "Delivering";
    /// The sink accepted a message.
    pub const DELIVERED: &str = "Delivered";
    /// The sink refuses messages with the settings of the spec or of a Secret.
    pub const INVALID_SINK: &str = "InvalidSink";
    /// The sink does not answer, or reports that it cannot accept messages now.
    pub const SINK_UNAVAILABLE: &str = "SinkUnavailable";
    /// The template cannot be used; messages have the default text.
    pub const INVALID_TEMPLATE: &str = "InvalidTemplate";

    /// Reasons of runs that failed, except for runs that a user ended.
    pub const FAILURES: [&str; 10] = [
        BACKOFF_LIMIT_EXCEEDED,
        DEADLINE_EXCEEDED,
        INVALID_TARGET,
        INVALID_SOURCE,
        TOO_MANY_FAILED,
        UNKNOWN_FORMAT,
        STALLED,
        GUARD_EXCEEDED,
        NOT_APPROVED,
        NOT_ALLOWED,
    ];
}
