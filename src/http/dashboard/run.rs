//! `/ui/runs/{namespace}/{name}`: one run.

use askama::Template;
use axum::{extract::State, response::Response};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    Filled, Frame, RunRow, Visitor,
    bulk::BulkAction,
    failures::Part,
    format::{Moment, filters},
    object_events::{self, ObjectEvents},
    page,
    sparkline::{Sparkline, sparkline},
    timeline::{Step, timeline},
};
use crate::{
    api::{RETRY_OF_ANNOTATION, SyncJob, TRIGGERED_BY_ANNOTATION, syncjob::Phase},
    domain::{
        job::{held, held_number, is_complete, is_finished, waits_for_approval},
        run::Checkpoint,
    },
    http::{
        App, LIMIT, control,
        extract::{ObjectPath, Path},
        job_view::JobDetails,
        jobs,
        problem::Problem,
        trigger,
    },
};

/// Parameters of the page of a run.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct PageQuery {
    /// The page of its failures, from 1.
    failures: usize,
}

#[derive(Template)]
#[template(path = "run.html")]
struct Run {
    frame: Frame,
    line: RunRow,
    worker: Option<String>,
    steps: Vec<Step>,
    failures: Part,
    sparkline: Option<Sparkline>,
    events: ObjectEvents,
    started: Option<Moment>,
    triggered_by: Option<String>,
    retry_of: Option<String>,
    queued: Option<Queued>,
    logs: Option<String>,
    spec: String,
    is_being_cancelled: bool,
    held: Option<Held>,
    may: May,
    now: Timestamp,
}

/// A run that waits for an approval.
struct Held {
    /// Documents that the approval has to cover.
    removals: i64,
    /// True when an approval covers these documents.
    is_approved: bool,
}

impl Held {
    fn new(job: &SyncJob) -> Option<Self> {
        held(job)?;
        let removals = job.status.as_ref().map(held_number)?;
        Some(Self { removals, is_approved: !waits_for_approval(job) })
    }
}

/// Actions on the run that the visitor may use in its current state.
struct May {
    change: bool,
    retry: bool,
    delete: bool,
}

/// Run in the queue.
struct Queued {
    epoch: u64,
    checkpoint: Option<i64>,
    retry_at: Option<Timestamp>,
}

/// The page.
pub(super) async fn show(
    State(app): State<App>,
    visitor: Visitor,
    Path(path): Path<ObjectPath>,
    Filled(query): Filled<PageQuery>,
) -> Result<Response, Problem> {
    let scope = visitor.scope(&app, "syncjobs", Some(&path.namespace)).await?;
    let job = jobs::load_whole(&app, &path).await?;
    let now = Timestamp::now();
    let (queued, events) = tokio::join!(queued(&app, &job), object_events::load_events(&app, &visitor, &job));
    let is_open = !is_finished(&job);
    let is_rolled_back = job.status.as_ref().is_some_and(|status| status.phase == Some(Phase::RollingBack));
    let is_being_cancelled = is_open && job.spec.cancelled && !is_rolled_back;
    let is_changeable = is_open && !job.spec.cancelled && !is_rolled_back;
    let delete = BulkAction::Delete.right(Some(&path.namespace)).on(&path.name);
    let may = May {
        change: is_changeable && visitor.may(&app, &[control::right(&path)]).await?,
        retry: !is_open && !is_complete(&job) && visitor.may(&app, &[trigger::right(Some(&path.namespace))]).await?,
        delete: !is_open && visitor.may(&app, &[delete]).await?,
    };
    let details = JobDetails::from(&*job);
    let annotation = |name: &str| job.annotations().get(name).cloned();
    page(&Run {
        frame: visitor.frame("runs", &scope),
        started: details.job.started_at.map(|at| Moment::new(at, now)),
        steps: timeline(&details, queued.as_ref().and_then(|queued| queued.retry_at), now),
        logs: app.logs.as_ref().map(|logs| logs.url_for(&details, now)),
        failures: Part::new(details.failures, details.job.counts.failed, query.failures),
        sparkline: sparkline(&app.objects.progress_of(&job)),
        line: RunRow::new(details.job, now),
        worker: details.worker,
        events: events?,
        triggered_by: annotation(TRIGGERED_BY_ANNOTATION),
        retry_of: annotation(RETRY_OF_ANNOTATION),
        queued,
        spec: serde_yaml_ng::to_string(&job.spec).unwrap_or_default(),
        is_being_cancelled,
        held: Held::new(&job),
        may,
        now,
    })
}

/// `None` when Redis does not have the run, or does not answer.
async fn queued(app: &App, job: &SyncJob) -> Option<Queued> {
    let uid = job.metadata.uid.as_deref()?;
    let entry = timeout(LIMIT, app.state.queue.get(uid)).await.ok()?.ok()??;
    let checkpoint: Option<Checkpoint> = entry.checkpoint.and_then(|text| serde_json::from_str(&text).ok());
    Some(Queued {
        epoch: entry.epoch,
        checkpoint: checkpoint.map(|checkpoint| checkpoint.counts.processed),
        retry_at: entry.retry_at,
    })
}
