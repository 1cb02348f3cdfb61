//! `POST /jobs/pause` and `POST /jobs/resume`.

use std::sync::Arc;

use axum::{Json, extract::State};
use futures::{TryStreamExt, stream};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    audit::{self, AuditedAction},
    auth::{Caller, Right},
    extract::{Authenticated, Query},
    problem::{Candidate as Named, Problem, ProblemKind},
};
use crate::{
    api::{SCHEDULE_LABEL, SUSPEND_NOTE_ANNOTATION, SyncJob, SyncSchedule},
    cluster::{self, ReadResult},
    domain::job::is_finished,
};

/// Number of concurrent requests to Kubernetes for one call.
pub(super) const CONCURRENT_REQUESTS: usize = 8;

/// Filter of a call by namespace and schedule. An empty filter selects all objects that the operator watches.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RunFilter {
    /// Namespace of the objects.
    pub namespace: Option<String>,
    /// The SyncSchedule of this name, and its SyncJobs.
    pub schedule: Option<String>,
}

impl RunFilter {
    fn matches_schedule(&self, schedule: &SyncSchedule) -> bool {
        self.matches(schedule.metadata.namespace.as_ref(), schedule.metadata.name.as_ref())
    }

    pub fn matches_job(&self, job: &SyncJob) -> bool {
        self.matches(job.metadata.namespace.as_ref(), job.labels().get(SCHEDULE_LABEL))
    }

    pub fn matches(&self, namespace: Option<&String>, schedule: Option<&String>) -> bool {
        let fits = |wanted: &Option<String>, found: Option<&String>| wanted.is_none() || wanted.as_ref() == found;
        fits(&self.namespace, namespace) && fits(&self.schedule, schedule)
    }
}

/// Result of a suspension or resumption.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Changed {
    /// True when the objects are suspended after the call.
    paused: bool,
    /// SyncSchedules that were changed.
    schedules: Vec<Named>,
    /// Unfinished SyncJobs that were changed.
    jobs: Vec<Named>,
    /// Number of objects that already had the requested state.
    unchanged: usize,
}

/// Suspends SyncSchedules and their unfinished SyncJobs.
///
/// An active run is suspended at its next batch boundary. The suspension does not count as an attempt.
#[utoipa::path(post, path = "/jobs/pause", tag = "control", params(RunFilter), responses((status = 200, body = Changed)))]
pub(super) async fn pause(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(filter): Query<RunFilter>,
) -> Result<Json<Changed>, Problem> {
    set(&app, &caller, &filter, true).await.map(Json)
}

/// Resumes SyncSchedules and SyncJobs, also when another user suspended them.
///
/// Slots that passed meanwhile are not run.
#[utoipa::path(post, path = "/jobs/resume", tag = "control", params(RunFilter), responses((status = 200, body = Changed)))]
pub(super) async fn resume(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(filter): Query<RunFilter>,
) -> Result<Json<Changed>, Problem> {
    set(&app, &caller, &filter, false).await.map(Json)
}

/// Suspends or resumes the selected objects.
async fn set(app: &App, caller: &Caller, filter: &RunFilter, suspended: bool) -> Result<Changed, Problem> {
    set_with_note(app, caller, filter, suspended, None).await
}

/// Suspends or resumes the selected objects. Suspended objects show the note.
pub(super) async fn set_with_note(
    app: &App,
    caller: &Caller,
    filter: &RunFilter,
    suspended: bool,
    note: Option<&str>,
) -> Result<Changed, Problem> {
    for right in rights(filter) {
        app.access.check(caller, right).await?;
    }
    let objects = app.listed()?;
    let mut schedules = objects.schedules.state();
    schedules.retain(|schedule| filter.matches_schedule(schedule));
    if let (Some(name), true) = (&filter.schedule, schedules.is_empty()) {
        return Err(Problem::new(ProblemKind::NotFound, format!("no SyncSchedule {name} matches")));
    }
    let schedules = suspend_all(app, caller, schedules, suspended, note).await?;
    // The SyncJobs are read after the schedules, so that runs that a schedule created meanwhile are included.
    let mut jobs = objects.jobs.state();
    jobs.retain(|job| filter.matches_job(job) && !is_finished(job));
    let jobs = suspend_all(app, caller, jobs, suspended, note).await?;
    let unchanged = schedules.unchanged + jobs.unchanged;
    Ok(Changed { paused: suspended, schedules: schedules.changed, jobs: jobs.changed, unchanged })
}

/// Rights to suspend the selected objects.
pub(super) fn rights(filter: &RunFilter) -> [Right; 2] {
    let patch = |resource| Right::new("patch", resource, filter.namespace.as_deref());
    [Right { name: filter.schedule.clone(), ..patch("syncschedules") }, patch("syncjobs")]
}

/// Result for the objects of one kind.
#[derive(Default)]
struct Outcome {
    changed: Vec<Named>,
    unchanged: usize,
}

async fn suspend_all<K: Pausable>(
    app: &App,
    caller: &Caller,
    objects: Vec<Arc<K>>,
    suspended: bool,
    note: Option<&str>,
) -> Result<Outcome, Problem> {
    let objects = stream::iter(objects.into_iter().map(Ok::<_, Problem>));
    let changes = objects.map_ok(|object| async move {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        Ok((Named { namespace, name }, suspend_with_note(app, caller, &*object, suspended, note).await?))
    });
    let mut outcome = Outcome::default();
    let mut changes = changes.try_buffer_unordered(CONCURRENT_REQUESTS);
    while let Some((object, change)) = changes.try_next().await? {
        match change {
            PatchResult::Applied => outcome.changed.push(object),
            PatchResult::Unchanged => outcome.unchanged += 1,
            PatchResult::TooLate => {}
        }
    }
    outcome.changed.sort();
    Ok(outcome)
}

/// A kind that has `spec.suspended`.
pub(super) trait Pausable: cluster::Kind {
    /// `spec.suspended`.
    fn is_suspended(&self) -> bool;
    /// True when it is never changed again.
    fn is_over(&self) -> bool;
}

impl Pausable for SyncSchedule {
    fn is_suspended(&self) -> bool {
        self.spec.suspended
    }

    fn is_over(&self) -> bool {
        false
    }
}

impl Pausable for SyncJob {
    fn is_suspended(&self) -> bool {
        self.spec.suspended
    }

    fn is_over(&self) -> bool {
        is_finished(self)
    }
}

/// Result of a patch of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatchResult {
    /// The object was changed.
    Applied,
    /// The object had that state already.
    Unchanged,
    /// The object had ended, or did not exist any more.
    TooLate,
}

/// Sets `spec.suspended`.
pub(super) async fn suspend<K: Pausable>(
    app: &App,
    caller: &Caller,
    object: &K,
    suspended: bool,
) -> Result<PatchResult, Problem> {
    suspend_with_note(app, caller, object, suspended, None).await
}

async fn suspend_with_note<K: Pausable>(
    app: &App,
    caller: &Caller,
    object: &K,
    suspended: bool,
    note: Option<&str>,
) -> Result<PatchResult, Problem> {
    let is_so = |object: &K| {
        let noted = object.annotations().get(SUSPEND_NOTE_ANNOTATION).map(String::as_str);
        object.is_suspended() == suspended && (note.is_none() || noted == note)
    };
    // Without a note, an earlier one goes.
    let annotations = json!({SUSPEND_NOTE_ANNOTATION: note});
    let change = json!({"metadata": {"annotations": annotations}, "spec": {"suspended": suspended}});
    let change = apply(app, object, is_so, change).await?;
    if change == PatchResult::Applied {
        let (action, what) =
            if suspended { (AuditedAction::Paused, "Suspended") } else { (AuditedAction::Resumed, "Resumed") };
        let what = note.map_or_else(|| what.to_owned(), |note| format!("{what}: {note}"));
        audit::record(app, caller, action, object, &what).await;
    }
    Ok(change)
}

/// Changes the spec of an object, unless it already has the values.
///
/// Reads the object first, because the cache may not show the changes of an earlier call yet.
pub(super) async fn patch<K: Pausable>(
    app: &App,
    object: &K,
    is_so: impl FnOnce(&K) -> bool,
    spec: Value,
) -> Result<PatchResult, Problem> {
    apply(app, object, is_so, json!({"spec": spec})).await
}

/// Changes an object, unless it is so already. Reads it first, as [`patch`] does.
pub(super) async fn apply<K: Pausable>(
    app: &App,
    object: &K,
    is_so: impl FnOnce(&K) -> bool,
    mut change: Value,
) -> Result<PatchResult, Problem> {
    let objects = app.listed()?;
    let (api, name) = (objects.namespaced::<K>(object.meta()), object.name_any());
    let live = objects.call("read an object", cluster::get_opt(&api, &name)).await?;
    let Some(live) = live.filter(|live| live.meta().uid == object.meta().uid && !live.is_over()) else {
        return Ok(PatchResult::TooLate);
    };
    if is_so(&live) {
        return Ok(PatchResult::Unchanged);
    }
    // The uid causes a conflict for another object of the same name.
    change["metadata"]["uid"] = object.uid().into();
    let api = objects.namespaced::<ReadResult<K>>(object.meta());
    match objects.call("change an object", api.patch(&name, &PatchParams::default(), &Patch::Merge(&change))).await {
        Ok(_) => Ok(PatchResult::Applied),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(PatchResult::TooLate),
        Err(error) => Err(error.into()),
    }
}
