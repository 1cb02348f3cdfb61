//! SyncJobs as the calls show them.

use jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    api::{
        SCHEDULE_LABEL, SyncJob,
        conditions::{COMPLETE, FAILED, HELD, RECONCILING, SUSPENDED},
        syncjob::{Attempt, Counts, DocumentFailure, Phase, SyncMode, SyncType},
    },
    domain::conditions,
};

/// Mode of a run, in the terms of the Node service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// Only the documents that are due.
    #[default]
    Incremental,
    /// All documents.
    Full,
}

impl From<SyncMode> for Mode {
    fn from(mode: SyncMode) -> Self {
        match mode {
            SyncMode::Full => Self::Full,
            SyncMode::Incremental => Self::Incremental,
        }
    }
}

impl From<Mode> for SyncMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Full => Self::Full,
            Mode::Incremental => Self::Incremental,
        }
    }
}

/// A run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Job {
    pub namespace: String,
    pub name: String,
    /// Uid of the SyncJob.
    #[serde(rename = "jobId")]
    pub uid: String,
    /// SyncSchedule of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    #[serde(rename = "type")]
    pub type_: SyncType,
    pub sync_type: Mode,
    pub phase: Phase,
    /// Progress in per cent.
    #[schema(minimum = 0, maximum = 100)]
    pub progress: i32,
    pub counts: Counts,
    /// Number of failed attempts.
    pub attempts_made: i32,
    /// Number of times that the run was recovered from a lost worker.
    pub recoveries: i32,
    pub priority: i32,
    pub suspended: bool,
    /// Reason for which the run waits or ended, in one CamelCase word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The reason, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub created_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// Time from the start to the end, such as `1m30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
}

impl From<&SyncJob> for Job {
    fn from(job: &SyncJob) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let kinds = [FAILED, COMPLETE, HELD, SUSPENDED, RECONCILING];
        let shown = kinds.into_iter().filter_map(|kind| conditions::find(&status.conditions, kind));
        let shown = shown.into_iter().find(|condition| condition.status == "True");
        Self {
            namespace: job.namespace().unwrap_or_default(),
            name: job.name_any(),
            uid: job.uid().unwrap_or_default(),
            schedule: job.labels().get(SCHEDULE_LABEL).cloned(),
            type_: job.spec.type_,
            sync_type: job.spec.sync_type.into(),
            phase: status.phase.unwrap_or(Phase::Pending),
            progress: status.progress.unwrap_or(0),
            counts: status.counts.unwrap_or_default(),
            attempts_made: status.attempts.unwrap_or(0),
            recoveries: status.recoveries.unwrap_or(0),
            priority: job.spec.priority,
            suspended: job.spec.suspended,
            reason: shown.map(|condition| condition.reason.clone()),
            message: shown.map(|condition| condition.message.clone()).filter(|message| !message.is_empty()),
            created_at: job.creation_timestamp().map(|time| time.0),
            started_at: status.start_time.map(|time| time.0),
            finished_at: status.completion_time.map(|time| time.0),
            duration: status.duration.map(|duration| duration.to_string()),
        }
    }
}

/// A run with all that is known of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct JobDetails {
    #[serde(flatten)]
    pub job: Job,
    /// Worker that claimed the run last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Attempts that failed, the last 10, oldest first.
    pub attempts: Vec<Attempt>,
    /// Documents that MongoDB refused, the first 20.
    pub failures: Vec<DocumentFailure>,
}

impl From<&SyncJob> for JobDetails {
    fn from(job: &SyncJob) -> Self {
        let status = job.status.clone().unwrap_or_default();
        Self { job: job.into(), worker: status.worker, attempts: status.attempt_history, failures: status.failures }
    }
}
