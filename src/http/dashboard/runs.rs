//! `/ui/runs` and one run.

use askama::Template;
use axum::{extract::State, response::Response};
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::timeout;

use super::{
    Filled, Frame, Line, Visitor, page,
    words::{Moment, PHASES, filters},
};
use crate::{
    api::{
        RETRY_OF_ANNOTATION, SyncJob, TRIGGERED_BY_ANNOTATION,
        syncjob::{Attempt, DocumentFailure, Phase, SyncType},
    },
    domain::{
        job::{is_complete, is_finished},
        run::Checkpoint,
    },
    http::{
        App, LIMIT, control,
        extract::{Path, Place},
        jobs::{self, Selection},
        problem::Problem,
        trigger,
        view::JobDetails,
    },
};

const TYPES: [SyncType; 4] = [SyncType::User, SyncType::Project, SyncType::Issue, SyncType::Pipeline];
/// Runs on a page, unless the address says otherwise.
const PAGE: usize = 50;

#[derive(Template)]
#[template(path = "runs.html")]
struct List {
    frame: Frame,
    selection: Selection,
    lines: Vec<Line>,
    next: Option<String>,
}

/// Runs that fit the filters in the address.
pub(super) async fn list(
    State(app): State<App>,
    visitor: Visitor,
    Filled(mut selection): Filled<Selection>,
) -> Result<Response, Problem> {
    let scope = visitor.scope(&app, "syncjobs", selection.namespace.as_deref()).await?;
    let mut jobs = app.listed()?.jobs.state();
    jobs.retain(|job| scope.takes(&**job));
    selection.limit.get_or_insert(PAGE);
    let found = jobs::page(&jobs, &selection)?;
    let now = Timestamp::now();
    let lines = found.items.into_iter().map(|job| Line::new(job, now)).collect();
    page(&List { frame: visitor.frame("runs", &scope), selection, lines, next: found.next_cursor })
}

#[derive(Template)]
#[template(path = "run.html")]
struct Run {
    frame: Frame,
    line: Line,
    worker: Option<String>,
    attempts: Vec<(Attempt, Moment)>,
    failures: Vec<DocumentFailure>,
    started: Option<Moment>,
    triggered_by: Option<String>,
    retry_of: Option<String>,
    queued: Option<Queued>,
    spec: String,
    is_being_cancelled: bool,
    may_change: bool,
    may_retry: bool,
}

/// What the queue knows of a run.
struct Queued {
    epoch: u64,
    checkpoint: Option<i64>,
    retry_at: Option<Moment>,
}

/// One run.
pub(super) async fn read(
    State(app): State<App>,
    visitor: Visitor,
    Path(place): Path<Place>,
) -> Result<Response, Problem> {
    let scope = visitor.scope(&app, "syncjobs", Some(&place.namespace)).await?;
    let job = jobs::whole(&app, &place).await?;
    let now = Timestamp::now();
    let queued = queued(&app, &job, now).await;
    let is_open = !is_finished(&job);
    let is_rolled_back = job.status.as_ref().is_some_and(|status| status.phase == Some(Phase::RollingBack));
    let is_being_cancelled = is_open && job.spec.cancelled && !is_rolled_back;
    let is_changeable = is_open && !job.spec.cancelled && !is_rolled_back;
    let may_change = is_changeable && visitor.may(&app, &[control::right(&place)]).await?;
    let may_retry =
        !is_open && !is_complete(&job) && visitor.may(&app, &[trigger::right(Some(&place.namespace))]).await?;
    let details = JobDetails::from(&*job);
    let annotation = |name: &str| job.annotations().get(name).cloned();
    let attempt = |attempt: Attempt| {
        let end = Moment::new(attempt.end.0, now);
        (attempt, end)
    };
    page(&Run {
        frame: visitor.frame("runs", &scope),
        started: details.job.started_at.map(|at| Moment::new(at, now)),
        line: Line::new(details.job, now),
        worker: details.worker,
        attempts: details.attempts.into_iter().rev().map(attempt).collect(),
        failures: details.failures,
        triggered_by: annotation(TRIGGERED_BY_ANNOTATION),
        retry_of: annotation(RETRY_OF_ANNOTATION),
        queued,
        spec: serde_yaml_ng::to_string(&job.spec).unwrap_or_default(),
        is_being_cancelled,
        may_change,
        may_retry,
    })
}

/// `None` when Redis does not have the run, or does not answer.
async fn queued(app: &App, job: &SyncJob, now: Timestamp) -> Option<Queued> {
    let uid = job.metadata.uid.as_deref()?;
    let entry = timeout(LIMIT, app.state.queue.get(uid)).await.ok()?.ok()??;
    let checkpoint: Option<Checkpoint> = entry.checkpoint.and_then(|text| serde_json::from_str(&text).ok());
    Some(Queued {
        epoch: entry.epoch,
        checkpoint: checkpoint.map(|checkpoint| checkpoint.counts.processed),
        retry_at: entry.retry_at.map(|at| Moment::new(at, now)),
    })
}
