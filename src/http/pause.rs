//! `POST /jobs/pause` and `POST /jobs/resume`.

use axum::{Json, extract::State};
use futures::{TryStreamExt, stream};
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    audit::{self, Deed},
    auth::{Caller, Right},
    extract::{By, Query},
    problem::{Candidate as Named, Kind, Problem},
};
use crate::{
    api::{SCHEDULE_LABEL, SyncJob, SyncSchedule},
    domain::job::is_finished,
};

/// Requests to Kubernetes at a time for one call.
pub(super) const AT_A_TIME: usize = 8;

/// What a call is about. Without anything: all that the operator watches.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Cover {
    /// This namespace.
    pub namespace: Option<String>,
    /// The SyncSchedule of this name, and its SyncJobs.
    pub schedule: Option<String>,
}

impl Cover {
    fn takes_schedule(&self, schedule: &SyncSchedule) -> bool {
        self.takes(schedule.metadata.namespace.as_ref(), schedule.metadata.name.as_ref())
    }

    pub fn takes_job(&self, job: &SyncJob) -> bool {
        self.takes(job.metadata.namespace.as_ref(), job.labels().get(SCHEDULE_LABEL))
    }

    pub fn takes(&self, namespace: Option<&String>, schedule: Option<&String>) -> bool {
        let fits = |wanted: &Option<String>, found: Option<&String>| wanted.is_none() || wanted.as_ref() == found;
        fits(&self.namespace, namespace) && fits(&self.schedule, schedule)
    }
}

/// What was changed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Changed {
    /// Whether they are suspended now.
    paused: bool,
    /// SyncSchedules that were changed.
    schedules: Vec<Named>,
    /// Unfinished SyncJobs that were changed.
    jobs: Vec<Named>,
    /// Objects that were so already.
    unchanged: usize,
}

/// Suspends SyncSchedules and their unfinished SyncJobs.
///
/// A run under way is put aside at its next batch boundary and costs no attempt.
#[utoipa::path(post, path = "/jobs/pause", tag = "control", params(Cover), responses((status = 200, body = Changed)))]
pub(super) async fn pause(
    State(app): State<App>,
    By(caller): By,
    Query(cover): Query<Cover>,
) -> Result<Json<Changed>, Problem> {
    set(&app, &caller, &cover, true).await.map(Json)
}

/// Lets SyncSchedules and SyncJobs go on, whoever suspended them.
///
/// Slots that passed meanwhile are not run.
#[utoipa::path(post, path = "/jobs/resume", tag = "control", params(Cover), responses((status = 200, body = Changed)))]
pub(super) async fn resume(
    State(app): State<App>,
    By(caller): By,
    Query(cover): Query<Cover>,
) -> Result<Json<Changed>, Problem> {
    set(&app, &caller, &cover, false).await.map(Json)
}

async fn set(app: &App, caller: &Caller, cover: &Cover, suspended: bool) -> Result<Changed, Problem> {
    let patch = |resource| Right::new("patch", resource, cover.namespace.as_deref());
    let schedules = patch("syncschedules");
    app.access.check(caller, Right { name: cover.schedule.clone(), ..schedules }).await?;
    app.access.check(caller, patch("syncjobs")).await?;
    let objects = app.listed()?;
    let mut schedules = objects.schedules.state();
    schedules.retain(|schedule| cover.takes_schedule(schedule));
    if let (Some(name), true) = (&cover.schedule, schedules.is_empty()) {
        return Err(Problem::new(Kind::NotFound, format!("there is no SyncSchedule {name} that fits")));
    }
    let covered = schedules.len();
    schedules.retain(|schedule| schedule.spec.suspended != suspended);
    let schedules_changed = suspend_all(app, caller, &schedules, suspended).await?;
    // Afterwards, so that those are seen that a schedule made meanwhile.
    let mut jobs = objects.jobs.state();
    jobs.retain(|job| cover.takes_job(job) && !is_finished(job));
    let covered = covered + jobs.len();
    jobs.retain(|job| job.spec.suspended != suspended);
    let unchanged = covered - schedules.len() - jobs.len();
    let jobs = suspend_all(app, caller, &jobs, suspended).await?;
    Ok(Changed { paused: suspended, schedules: schedules_changed, jobs, unchanged })
}

async fn suspend_all<K>(
    app: &App,
    caller: &Caller,
    objects: &[std::sync::Arc<K>],
    suspended: bool,
) -> Result<Vec<Named>, Problem>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let changed = stream::iter(objects.iter().cloned().map(Ok::<_, Problem>));
    let changed = changed.map_ok(|object| async move { suspend(app, caller, &*object, suspended).await });
    let changed: Vec<Option<Named>> = changed.try_buffer_unordered(AT_A_TIME).try_collect().await?;
    let mut changed: Vec<Named> = changed.into_iter().flatten().collect();
    changed.sort();
    Ok(changed)
}

/// Sets `spec.suspended`. `None` when the object is gone.
pub(super) async fn suspend<K>(
    app: &App,
    caller: &Caller,
    object: &K,
    suspended: bool,
) -> Result<Option<Named>, Problem>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let changed = patch(app, object, json!({"suspended": suspended})).await?;
    if changed {
        let (deed, what) = if suspended { (Deed::Paused, "Suspended") } else { (Deed::Resumed, "Resumed") };
        audit::note(app, caller, deed, object, what).await;
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    Ok(changed.then_some(Named { namespace, name }))
}

/// Changes the spec of an object. False when it is gone.
pub(super) async fn patch<K>(app: &App, object: &K, spec: serde_json::Value) -> Result<bool, Problem>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let objects = app.listed()?;
    // The uid makes this a conflict for another object of the same name.
    let patch = Patch::Merge(json!({"metadata": {"uid": object.uid()}, "spec": spec}));
    let api = objects.beside::<K>(object.meta());
    let asked = objects.ask("change an object", api.patch(&object.name_any(), &PatchParams::default(), &patch)).await;
    match asked {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(false),
        Err(error) => Err(error.into()),
    }
}
