//! `POST /jobs/{namespace}/{name}/{cancel,suspend,resume,approve,retry}`.

use std::sync::Arc;

use axum::{Json, extract::State, response::Response};
use kube::ResourceExt;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::json;
use utoipa::ToSchema;

use super::{
    App,
    audit::{self, AuditedAction},
    auth::{Caller, Right},
    extract::{Authenticated, Body, ObjectPath, Path},
    jobs::{find_job, load_live},
    pause::{self, PatchResult},
    problem::{Problem, ProblemKind},
    trigger::{self, Triggered, accepted, create},
};
use crate::{
    api::{APPROVE_ANNOTATION, RETRY_OF_ANNOTATION, SyncJob},
    domain::{
        job::{held, held_number, is_complete, is_finished},
        names,
    },
};

/// Largest number of removals that one call approves.
const MAX_REMOVALS: i64 = 1_000_000_000;

/// Result of a change of a run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Controlled {
    namespace: String,
    name: String,
    /// Uid of the SyncJob.
    job_id: String,
    /// False when the run already had the requested state.
    pub changed: bool,
}

/// Cancels a run: it fails with the reason Cancelled at its next batch boundary. This cannot be undone.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/cancel", tag = "control",
    params(ObjectPath), responses((status = 200, body = Controlled)),
)]
pub(super) async fn cancel(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(path): Path<ObjectPath>,
) -> Result<Json<Controlled>, Problem> {
    end(&app, &caller, &path).await.map(Json)
}

/// Ends a run.
pub(super) async fn end(app: &App, caller: &Caller, path: &ObjectPath) -> Result<Controlled, Problem> {
    let job = unfinished(app, caller, path).await?;
    let change = pause::patch(app, &*job, |job| job.spec.cancelled, json!({"cancelled": true})).await?;
    if change == PatchResult::Applied {
        audit::record(app, caller, AuditedAction::Cancelled, &*job, "Cancelled").await;
    }
    answer(&job, change)
}

/// Suspends a run at its next batch boundary. A suspension does not count as an attempt.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/suspend", tag = "control",
    params(ObjectPath), responses((status = 200, body = Controlled)),
)]
pub(super) async fn suspend(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(path): Path<ObjectPath>,
) -> Result<Json<Controlled>, Problem> {
    set_suspended(&app, &caller, &path, true).await.map(Json)
}

/// Resumes a run from its last checkpoint.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/resume", tag = "control",
    params(ObjectPath), responses((status = 200, body = Controlled)),
)]
pub(super) async fn resume(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(path): Path<ObjectPath>,
) -> Result<Json<Controlled>, Problem> {
    set_suspended(&app, &caller, &path, false).await.map(Json)
}

/// Approval of removals.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Approval {
    /// Number of documents that the run may remove: `counts.held` of the run, or more.
    #[serde(deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    removals: i64,
}

/// Reads a whole number. For JSON Schema, `400.0` is one, too.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = f64::deserialize(deserializer)?;
    if number.fract() == 0.0 { Ok(number as i64) } else { Err(D::Error::custom("removals must be a whole number")) }
}

/// Approves the removals that the guard of a run holds.
///
/// The run counts the removals again. If the number is larger than the approval, the run is held again with the new
/// number.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/approve", tag = "control",
    params(ObjectPath), request_body = Approval, responses((status = 200, body = Controlled)),
)]
pub(super) async fn approve(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(path): Path<ObjectPath>,
    Body(Approval { removals }): Body<Approval>,
) -> Result<Json<Controlled>, Problem> {
    allow(&app, &caller, &path, removals).await.map(Json)
}

/// Approves a number of removals of a held run.
pub(super) async fn allow(app: &App, caller: &Caller, path: &ObjectPath, removals: i64) -> Result<Controlled, Problem> {
    let job = unfinished(app, caller, path).await?;
    // The cache may not show yet that it is held, or for how many documents.
    let job = load_live(app, &job).await?;
    let name = job.name_any();
    let Some(number) = held(&job).and(job.status.as_ref()).map(held_number) else {
        return Err(Problem::new(ProblemKind::Conflict, format!("{name} is not held, so no approval is needed")));
    };
    if !(1..=MAX_REMOVALS).contains(&removals) {
        let detail = format!("removals must be from 1 to {MAX_REMOVALS}; {name} is held for {number}");
        return Err(Problem::new(ProblemKind::InvalidBody, detail));
    }
    if removals < number {
        let detail = format!("{name} is held for {number} removals, more than {removals}; check the run again");
        return Err(Problem::new(ProblemKind::Conflict, detail));
    }
    let text = removals.to_string();
    let is_so = |job: &SyncJob| job.annotations().get(APPROVE_ANNOTATION) == Some(&text);
    let change = json!({"metadata": {"annotations": {APPROVE_ANNOTATION: text}}});
    let change = pause::apply(app, &job, is_so, change).await?;
    if change == PatchResult::Applied {
        audit::record(app, caller, AuditedAction::Approved, &job, &format!("Approved {removals} removals")).await;
    }
    answer(&job, change)
}

/// Creates a new SyncJob with the spec of a failed one.
///
/// An ended run never starts again. A repeated call returns the same new SyncJob.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/retry", tag = "control",
    params(ObjectPath), responses((status = 202, body = Triggered, headers(("Location" = String, description = "Path of the new run")))),
)]
pub(super) async fn retry(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(path): Path<ObjectPath>,
) -> Result<Response, Problem> {
    let (job, replayed) = start_again(&app, &caller, &path).await?;
    accepted(&job, replayed)
}

/// Creates a SyncJob like one that failed. True when an earlier call has created it.
pub(super) async fn start_again(app: &App, caller: &Caller, path: &ObjectPath) -> Result<(SyncJob, bool), Problem> {
    let ObjectPath { namespace, name } = path;
    app.access.check(caller, trigger::right(Some(namespace))).await?;
    let cached = find_job(app, path)?;
    if !is_finished(&cached) || is_complete(&cached) {
        let detail = format!("{name} has not failed; only a failed run can be retried");
        return Err(Problem::new(ProblemKind::Conflict, detail));
    }
    // The cache does not keep everything of a run that has ended.
    let failed = load_live(app, &cached).await?;
    let (job, replayed) = create(app, &again(&failed)).await?;
    if !replayed {
        let what = format!("Created SyncJob {}", job.name_any());
        audit::record(app, caller, AuditedAction::Retried, &failed, &what).await;
    }
    Ok((job, replayed))
}

/// A SyncJob like one that failed.
fn again(failed: &SyncJob) -> SyncJob {
    let name = names::job_for_retry(&failed.name_any(), &failed.uid().unwrap_or_default());
    let mut job = SyncJob::new(&name, failed.spec.clone());
    job.spec.cancelled = false;
    job.spec.suspended = false;
    job.metadata.namespace = failed.namespace();
    job.metadata.labels.clone_from(&failed.metadata.labels);
    job.metadata.owner_references.clone_from(&failed.metadata.owner_references);
    job.annotations_mut().insert(RETRY_OF_ANNOTATION.to_owned(), failed.name_any());
    job
}

/// Suspends or resumes a run.
pub(super) async fn set_suspended(
    app: &App,
    caller: &Caller,
    path: &ObjectPath,
    suspended: bool,
) -> Result<Controlled, Problem> {
    let job = unfinished(app, caller, path).await?;
    let change = pause::suspend(app, caller, &*job, suspended).await?;
    answer(&job, change)
}

/// Right to change a run.
pub(super) fn right(ObjectPath { namespace, name }: &ObjectPath) -> Right {
    Right::new("patch", "syncjobs", Some(namespace)).on(name)
}

/// The SyncJob, when the caller may change it and it can be changed still.
async fn unfinished(app: &App, caller: &Caller, path: &ObjectPath) -> Result<Arc<SyncJob>, Problem> {
    app.access.check(caller, right(path)).await?;
    let job = find_job(app, path)?;
    if is_finished(&job) { Err(ended(&job)) } else { Ok(job) }
}

fn ended(job: &SyncJob) -> Problem {
    Problem::new(ProblemKind::Conflict, format!("{} has ended and cannot be changed", job.name_any()))
}

fn answer(job: &SyncJob, change: PatchResult) -> Result<Controlled, Problem> {
    let changed = match change {
        PatchResult::Applied => true,
        PatchResult::Unchanged => false,
        PatchResult::TooLate => return Err(ended(job)),
    };
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    Ok(Controlled { namespace, name, job_id: job.uid().unwrap_or_default(), changed })
}
