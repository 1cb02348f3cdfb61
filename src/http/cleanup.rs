//! `POST /jobs/cleanup`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use kube::{
    ResourceExt,
    api::{DeleteParams, Preconditions},
    runtime::reflector::ObjectRef,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    audit::{self, AuditedAction},
    auth::{Caller, Right},
    extract::{Authenticated, Body, Query},
    objects::Objects,
    pause::{CONCURRENT_REQUESTS, RunFilter},
    problem::{Problem, ProblemKind},
};
use crate::{
    api::{SCHEDULE_LABEL, SyncJob, SyncSchedule},
    domain::job::{is_complete, is_finished},
};

const MAX_HOURS: f64 = 8760.0;
/// Largest number of SyncJobs that one call deletes: some ten seconds of work.
const MOST: usize = 2000;

/// Selection of runs to delete.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Cleanup {
    /// Age in hours up to which ended runs are kept.
    #[schema(minimum = 0, maximum = 8760)]
    grace_period_hours: f64,
    /// Dry run. True: the call counts the runs, and does not delete them.
    dry_run: bool,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self { grace_period_hours: 24.0, dry_run: false }
    }
}

/// Result of a cleanup, or of its dry run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Cleaned {
    /// Number of completed runs.
    completed: usize,
    /// Number of failed runs.
    failed: usize,
    /// Number of remaining runs. A call deletes at most 2,000 runs: repeat it for these.
    remaining: usize,
}

/// Deletes finished SyncJobs. Unfinished SyncJobs are never deleted.
#[utoipa::path(
    post, path = "/jobs/cleanup", tag = "control", params(RunFilter),
    request_body(content = Option<Cleanup>), responses((status = 200, body = Cleaned)),
)]
pub(super) async fn cleanup(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(filter): Query<RunFilter>,
    Body(Cleanup { grace_period_hours, dry_run }): Body<Cleanup>,
) -> Result<Json<Cleaned>, Problem> {
    if !(0.0..=MAX_HOURS).contains(&grace_period_hours) {
        return Err(Problem::new(ProblemKind::InvalidBody, format!("gracePeriodHours must be from 0 to {MAX_HOURS}")));
    }
    app.access.check(&caller, Right::new("delete", "syncjobs", filter.namespace.as_deref())).await?;
    let objects = app.listed()?;
    let before = Timestamp::now() - SignedDuration::from_secs_f64(grace_period_hours * 3600.0);
    let mut old: Vec<_> = objects.jobs.state();
    old.retain(|job| filter.matches_job(job) && ended_before(job, before) && !awaits_accounting(job, objects));
    let remaining = old.len().saturating_sub(MOST);
    old.truncate(MOST);
    if !dry_run {
        old = delete_all(&app, &caller, objects, old).await?;
    }
    let completed = old.iter().filter(|job| is_complete(job)).count();
    Ok(Json(Cleaned { completed, failed: old.len() - completed, remaining }))
}

fn ended_before(job: &SyncJob, time: Timestamp) -> bool {
    let ended = job.status.as_ref().and_then(|status| status.completion_time.as_ref());
    is_finished(job) && ended.is_some_and(|ended| ended.0 <= time)
}

/// True until the schedule of a run has counted the run.
pub(super) fn awaits_accounting(job: &SyncJob, objects: &Objects) -> bool {
    let schedule = schedule_of(job, objects);
    let status = schedule.as_ref().and_then(|schedule| schedule.status.as_ref());
    status.is_some_and(|status| status.active.iter().any(|run| run.name == job.name_any()))
}

fn schedule_of(job: &SyncJob, objects: &Objects) -> Option<Arc<SyncSchedule>> {
    let name = job.labels().get(SCHEDULE_LABEL)?;
    objects.schedules.get(&ObjectRef::new(name).within(job.metadata.namespace.as_deref()?))
}

/// Deletes SyncJobs until one deletion fails. Records the deleted SyncJobs in any case.
async fn delete_all(
    app: &App,
    caller: &Caller,
    objects: &Objects,
    jobs: Vec<Arc<SyncJob>>,
) -> Result<Vec<Arc<SyncJob>>, Problem> {
    let mut deletions = stream::iter(jobs).map(|job| delete(objects, job)).buffer_unordered(CONCURRENT_REQUESTS);
    let (mut deleted, mut result) = (Vec::new(), Ok(()));
    while let (Some(deletion), Ok(())) = (deletions.next().await, &result) {
        result = deletion.map(|job| deleted.extend(job));
    }
    record_cleanup(app, caller, &deleted).await;
    result.map(|()| deleted)
}

/// Deletes a SyncJob. `None` when the SyncJob did not exist any more.
pub(super) async fn delete(objects: &Objects, job: Arc<SyncJob>) -> Result<Option<Arc<SyncJob>>, Problem> {
    let preconditions = Preconditions { uid: job.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    let jobs = objects.namespaced::<SyncJob>(&job.metadata);
    match objects.call("delete a SyncJob", jobs.delete(&job.name_any(), &params)).await {
        Ok(_) => Ok(Some(job)),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Publishes one event on each schedule, and one on each SyncJob without a schedule.
pub(super) async fn record_cleanup(app: &App, caller: &Caller, deleted: &[Arc<SyncJob>]) {
    let mut by_schedule: BTreeMap<(String, String), (Arc<SyncSchedule>, usize)> = BTreeMap::new();
    for job in deleted {
        match schedule_of(job, &app.objects) {
            Some(schedule) => {
                let key = (schedule.namespace().unwrap_or_default(), schedule.name_any());
                by_schedule.entry(key).or_insert((schedule, 0)).1 += 1;
            }
            None => audit::record(app, caller, AuditedAction::CleanedUp, &**job, "Deleted").await,
        }
    }
    for (schedule, count) in by_schedule.into_values() {
        let what = format!("Deleted {count} finished SyncJobs");
        audit::record(app, caller, AuditedAction::CleanedUp, &*schedule, &what).await;
    }
}
