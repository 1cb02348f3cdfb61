//! `POST /jobs/trigger/user-sync`, and the calls of the other types.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{InvalidHeaderValue, LOCATION},
    },
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt, api::PostParams};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    audit::{self, AuditedAction},
    auth::{Caller, MAX_NAMESPACES, Right},
    extract::{Authenticated, Body, Path, Query},
    job_view::Mode,
    problem::{Candidate, Problem, ProblemKind},
};
use crate::{
    api::{
        SyncJob, SyncSchedule, TRACEPARENT_ANNOTATION, TRIGGER_ANNOTATION, TRIGGERED_BY_ANNOTATION, syncjob::SyncType,
        syncschedule::ActiveRun,
    },
    cluster::{self, controller_of},
    domain::{from_seconds, names, schedule, trace::TraceParent},
};

/// Header with the key of a call that must not start a second run.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Position of the caller in a trace: W3C Trace Context.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const MAX_KEY: usize = 255;

/// The type of the runs, in the words of the Node service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
pub(super) enum Sync {
    #[serde(rename = "user-sync")]
    User,
    #[serde(rename = "project-sync")]
    Project,
    #[serde(rename = "issue-sync")]
    Issue,
    #[serde(rename = "pipeline-sync")]
    Pipeline,
}

impl From<Sync> for SyncType {
    fn from(sync: Sync) -> Self {
        match sync {
            Sync::User => Self::User,
            Sync::Project => Self::Project,
            Sync::Issue => Self::Issue,
            Sync::Pipeline => Self::Pipeline,
        }
    }
}

/// Run to start.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Trigger {
    /// Mode of the run.
    #[schema(inline, default = "incremental")]
    sync_type: Mode,
}

/// Choice of the SyncSchedule whose template is used. Needed when several SyncSchedules have the type.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Choice {
    /// Namespace of the schedule.
    pub namespace: Option<String>,
    /// Name of the SyncSchedule.
    pub schedule: Option<String>,
}

/// Run that was started.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Triggered {
    /// Uid of the SyncJob.
    pub job_id: String,
    /// Name of the SyncJob.
    pub name: String,
    /// Namespace of the run.
    pub namespace: String,
    /// Mode of the run.
    pub sync_type: Mode,
}

/// Starts a run now, from the template of a SyncSchedule.
///
/// The run does not wait for active runs: a document of two runs has the stamp of the later start.
#[utoipa::path(
    post, path = "/jobs/trigger/{sync}", tag = "control",
    params(
        ("sync" = inline(Sync), Path, description = "The type of the run"),
        Choice,
        ("Idempotency-Key" = Option<String>, Header,
            description = "Key of the call. The same key of a caller returns the same SyncJob, while the SyncJob exists",
            min_length = 1, max_length = 255, pattern = "^[!-~]+$"),
        ("traceparent" = Option<String>, Header,
            description = "Position of the caller in a trace (W3C Trace Context), of which the run becomes a part. An invalid value is ignored"),
    ),
    request_body(content = Option<Trigger>),
    responses((status = 202, body = Triggered, description = "The SyncJob exists",
        headers(("Location" = String, description = "Path of the run"),
                ("Idempotent-Replayed" = bool, description = "true when an earlier call created the SyncJob")))),
)]
pub(super) async fn trigger(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(sync): Path<Sync>,
    Query(choice): Query<Choice>,
    headers: HeaderMap,
    Body(Trigger { sync_type }): Body<Trigger>,
) -> Result<Response, Problem> {
    let key = idempotency_key(&headers)?;
    let traceparent = traceparent(&headers);
    let (job, replayed) = start(&app, &caller, sync.into(), &choice, key.as_deref(), sync_type, traceparent).await?;
    accepted(&job, replayed)
}

/// Starts a run. True when the key was used for the run before.
pub(super) async fn start(
    app: &App,
    caller: &Caller,
    type_: SyncType,
    choice: &Choice,
    key: Option<&str>,
    mode: Mode,
    traceparent: Option<&str>,
) -> Result<(SyncJob, bool), Problem> {
    let schedule = choose(app, caller, type_, choice).await?;
    let mut job = build(&schedule, caller, key, mode);
    if let Some(traceparent) = traceparent {
        job.annotations_mut().insert(TRACEPARENT_ANNOTATION.to_owned(), traceparent.to_owned());
    }
    let (job, replayed) = create(app, &job).await?;
    if replayed && !is_same(&job, caller, key, mode) {
        return Err(Problem::new(ProblemKind::KeyReused, "use another Idempotency-Key for another run"));
    }
    if !replayed {
        let what = format!("Created SyncJob {}", job.name_any());
        audit::record(app, caller, AuditedAction::Triggered, &*schedule, &what).await;
    }
    Ok((job, replayed))
}

/// Right to create runs in a namespace, or in all of them.
pub(super) fn right(namespace: Option<&str>) -> Right {
    Right::new("create", "syncjobs", namespace)
}

fn traceparent(headers: &HeaderMap) -> Option<&str> {
    headers.get(TRACEPARENT)?.to_str().ok().filter(|text| TraceParent::parse(text).is_some())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| key.bytes().all(|byte| byte.is_ascii_graphic()));
    match key {
        Some(key) if (1..=MAX_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Problem::new(
            ProblemKind::BadRequest,
            "Idempotency-Key must have 1 to 255 visible ASCII characters without spaces",
        )),
    }
}

/// Returns the matching SyncSchedule, of the namespaces where the caller may create SyncJobs.
async fn choose(app: &App, caller: &Caller, type_: SyncType, choice: &Choice) -> Result<Arc<SyncSchedule>, Problem> {
    let mut fitting = app.listed()?.schedules.state();
    fitting.retain(|schedule| choice.fits(schedule, type_));
    let asked = right(choice.namespace.as_deref());
    if !app.access.has(caller, &asked).await? {
        let namespaces: BTreeSet<_> = fitting.iter().filter_map(|schedule| schedule.namespace()).collect();
        let allowed = app.access.among(caller, &asked, namespaces).await?;
        fitting.retain(|schedule| schedule.namespace().is_some_and(|namespace| allowed.contains(&namespace)));
        if fitting.is_empty() {
            app.access.check(caller, asked).await?;
        }
    }
    match <[_; 1]>::try_from(fitting) {
        Ok([schedule]) => Ok(schedule),
        Err(none) if none.is_empty() => {
            let detail =
                format!("no SyncSchedule of type {type_:?} matches: create one, or change ?namespace= and ?schedule=");
            Err(Problem::new(ProblemKind::NotFound, detail))
        }
        Err(several) => {
            let name = |schedule: &Arc<SyncSchedule>| Candidate {
                namespace: schedule.namespace().unwrap_or_default(),
                name: schedule.name_any(),
            };
            let mut candidates: Vec<_> = several.iter().map(name).collect();
            candidates.sort();
            candidates.truncate(MAX_NAMESPACES);
            Err(Problem::new(ProblemKind::Ambiguous, "choose one with ?namespace= and ?schedule=")
                .with_candidates(candidates))
        }
    }
}

impl Choice {
    fn fits(&self, schedule: &SyncSchedule, type_: SyncType) -> bool {
        schedule.spec.job_template.spec.type_ == type_
            && schedule.metadata.deletion_timestamp.is_none()
            && self.namespace.as_ref().is_none_or(|namespace| schedule.metadata.namespace.as_ref() == Some(namespace))
            && self.schedule.as_ref().is_none_or(|name| schedule.metadata.name.as_ref() == Some(name))
    }
}

fn build(schedule: &SyncSchedule, caller: &Caller, key: Option<&str>, mode: Mode) -> SyncJob {
    let key = key.map_or_else(|| format!("{:016x}", rand::random::<u64>()), str::to_owned);
    // Two callers may use the same key.
    let name = names::job_for_trigger(&schedule.name_any(), &format!("{}\n{key}", caller.name));
    let slot = Time(from_seconds(Timestamp::now().as_second()));
    let run = ActiveRun { name, uid: None, slot, trigger: Some(key) };
    let mut job = schedule::build_job(schedule, schedule::Parsed::new(&schedule.spec).ok().as_ref(), &run);
    job.annotations_mut().insert(TRIGGERED_BY_ANNOTATION.to_owned(), caller.name.clone());
    job.spec.sync_type = mode.into();
    job
}

/// Creates the SyncJob, or finds the existing one of this name. Returns true when it existed.
pub(super) async fn create(app: &App, job: &SyncJob) -> Result<(SyncJob, bool), Problem> {
    let objects = app.listed()?;
    let jobs: Api<SyncJob> = objects.namespaced(&job.metadata);
    match objects.call("create a SyncJob", jobs.create(&PostParams::default(), job)).await {
        Ok(created) => {
            objects.wait_until_cached(&created).await;
            Ok((created, false))
        }
        Err(error) if error.is_already_exists() => {
            let found = objects.call("read a SyncJob", cluster::get_opt(&jobs, &job.name_any())).await?;
            let again =
                || Problem::new(ProblemKind::Conflict, format!("SyncJob {} was deleted; try again", job.name_any()));
            let found = found.ok_or_else(again)?;
            if controller_of(&found) != controller_of(job) {
                let detail = format!("another SyncJob has the name {}; try again", job.name_any());
                return Err(Problem::new(ProblemKind::Conflict, detail));
            }
            Ok((found, true))
        }
        Err(error) => Err(error.into()),
    }
}

fn is_same(job: &SyncJob, caller: &Caller, key: Option<&str>, mode: Mode) -> bool {
    let annotation = |name| job.annotations().get(name).map(String::as_str);
    annotation(TRIGGER_ANNOTATION) == key
        && annotation(TRIGGERED_BY_ANNOTATION) == Some(&caller.name)
        && Mode::from(job.spec.sync_type) == mode
}

/// Response with the SyncJob that was created.
pub(super) fn accepted(job: &SyncJob, replayed: bool) -> Result<Response, Problem> {
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    let location: Result<HeaderValue, InvalidHeaderValue> = format!("/jobs/{namespace}/{name}").parse();
    let location = location.map_err(|_| Problem::new(ProblemKind::Internal, "the SyncJob's name fits no header"))?;
    let job_id = job.uid().unwrap_or_default();
    let body = Json(Triggered { job_id, name, namespace, sync_type: job.spec.sync_type.into() });
    let mut response = (StatusCode::ACCEPTED, [(LOCATION, location)], body).into_response();
    if replayed {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}
