//! `POST /jobs/{namespace}/{name}/{cancel,suspend,resume,retry}`.

use std::sync::Arc;

use axum::{Json, extract::State, response::Response};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{
    App,
    audit::{self, Deed},
    auth::{Caller, Right},
    extract::{By, Path, Place},
    jobs::{find, live},
    pause::{self, Change},
    problem::{Kind, Problem},
    trigger::{self, Triggered, accepted, create},
};
use crate::{
    api::{RETRY_OF_ANNOTATION, SyncJob},
    domain::{
        job::{is_complete, is_finished},
        names,
    },
};

/// What became of a run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Controlled {
    namespace: String,
    name: String,
    /// The SyncJob's uid.
    job_id: String,
    /// False when it was so already.
    pub changed: bool,
}

/// Ends a run as Failed, reason Cancelled, at its next batch boundary. Cannot be taken back.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/cancel", tag = "control",
    params(Place), responses((status = 200, body = Controlled)),
)]
pub(super) async fn cancel(
    State(app): State<App>,
    By(caller): By,
    Path(place): Path<Place>,
) -> Result<Json<Controlled>, Problem> {
    end(&app, &caller, &place).await.map(Json)
}

/// Ends a run.
pub(super) async fn end(app: &App, caller: &Caller, place: &Place) -> Result<Controlled, Problem> {
    let job = unfinished(app, caller, place).await?;
    let change = pause::patch(app, &*job, |job| job.spec.cancelled, json!({"cancelled": true})).await?;
    if change == Change::Made {
        audit::note(app, caller, Deed::Cancelled, &*job, "Cancelled").await;
    }
    answer(&job, change)
}

/// Puts a run aside at its next batch boundary. Costs no attempt.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/suspend", tag = "control",
    params(Place), responses((status = 200, body = Controlled)),
)]
pub(super) async fn suspend(
    State(app): State<App>,
    By(caller): By,
    Path(place): Path<Place>,
) -> Result<Json<Controlled>, Problem> {
    set_suspended(&app, &caller, &place, true).await.map(Json)
}

/// Lets a run go on from its last checkpoint.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/resume", tag = "control",
    params(Place), responses((status = 200, body = Controlled)),
)]
pub(super) async fn resume(
    State(app): State<App>,
    By(caller): By,
    Path(place): Path<Place>,
) -> Result<Json<Controlled>, Problem> {
    set_suspended(&app, &caller, &place, false).await.map(Json)
}

/// Makes a new SyncJob like one that failed.
///
/// A run that has ended is never run again. The same call again gives the same new SyncJob.
#[utoipa::path(
    post, path = "/jobs/{namespace}/{name}/retry", tag = "control",
    params(Place), responses((status = 202, body = Triggered, headers(("Location" = String, description = "Where the new run can be read")))),
)]
pub(super) async fn retry(
    State(app): State<App>,
    By(caller): By,
    Path(place): Path<Place>,
) -> Result<Response, Problem> {
    let (job, replayed) = start_again(&app, &caller, &place).await?;
    accepted(&job, replayed)
}

/// Makes a SyncJob like one that failed. True when that was done before.
pub(super) async fn start_again(app: &App, caller: &Caller, place: &Place) -> Result<(SyncJob, bool), Problem> {
    let Place { namespace, name } = place;
    app.access.check(caller, trigger::right(Some(namespace))).await?;
    let cached = find(app, place)?;
    if !is_finished(&cached) || is_complete(&cached) {
        let detail = format!("{name} has not failed; only a run that ended as Failed can be tried again");
        return Err(Problem::new(Kind::Conflict, detail));
    }
    // The cache does not keep everything of a run that has ended.
    let failed = live(app, &cached).await?;
    let (job, replayed) = create(app, &again(&failed)).await?;
    if !replayed {
        let what = format!("Created SyncJob {}", job.name_any());
        audit::note(app, caller, Deed::Retried, &failed, &what).await;
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

/// Puts a run aside, or lets it go on.
pub(super) async fn set_suspended(
    app: &App,
    caller: &Caller,
    place: &Place,
    suspended: bool,
) -> Result<Controlled, Problem> {
    let job = unfinished(app, caller, place).await?;
    let change = pause::suspend(app, caller, &*job, suspended).await?;
    answer(&job, change)
}

/// What changing a run takes.
pub(super) fn right(Place { namespace, name }: &Place) -> Right {
    Right::new("patch", "syncjobs", Some(namespace)).on(name)
}

/// The SyncJob, when the caller may change it and it can be changed still.
async fn unfinished(app: &App, caller: &Caller, place: &Place) -> Result<Arc<SyncJob>, Problem> {
    app.access.check(caller, right(place)).await?;
    let job = find(app, place)?;
    if is_finished(&job) { Err(ended(&job)) } else { Ok(job) }
}

fn ended(job: &SyncJob) -> Problem {
    Problem::new(Kind::Conflict, format!("{} has ended, and is never changed again", job.name_any()))
}

fn answer(job: &SyncJob, change: Change) -> Result<Controlled, Problem> {
    let changed = match change {
        Change::Made => true,
        Change::Needless => false,
        Change::Late => return Err(ended(job)),
    };
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    Ok(Controlled { namespace, name, job_id: job.uid().unwrap_or_default(), changed })
}
