//! Actions of the buttons: an HTTP call, followed by a page.

use std::time::Duration;

use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{Sent, session::local};
use crate::{
    api::{SyncJob, SyncSchedule},
    domain::run::DesiredState,
    http::{
        App, control,
        extract::{Authenticated, ObjectPath, Path},
        job_view::Mode,
        jobs, pause,
        problem::{Problem, ProblemKind},
        trigger::{self, Choice},
    },
};

/// Longest wait until the cache shows a change, so that the next page does too. Usually it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Longest note, in bytes.
const MAX_NOTE: usize = 256;

/// An object and the action on it.
#[derive(Deserialize)]
pub(super) struct ActionPath<A> {
    namespace: String,
    name: String,
    action: A,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnSchedule {
    Suspend,
    Resume,
    Run,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnRun {
    Cancel,
    Suspend,
    Resume,
    Retry,
}

/// Fields of a button's form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fields {
    /// Page to show afterwards.
    #[serde(default)]
    next: String,
    #[serde(default)]
    sync_type: Mode,
    /// A button that is pressed twice starts one run.
    key: Option<String>,
    /// Reason of a suspension.
    #[serde(default)]
    note: String,
}

/// A button of a schedule.
pub(super) async fn on_schedule(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(ActionPath { namespace, name, action }): Path<ActionPath<OnSchedule>>,
    Sent(fields): Sent<Fields>,
) -> Result<Response, Problem> {
    let reference = ObjectRef::<SyncSchedule>::new(&name).within(&namespace);
    let schedules = &app.listed()?.schedules;
    if action == OnSchedule::Run {
        // Checked again below. A caller without this right must not learn which schedules exist.
        app.access.check(&caller, trigger::right(Some(&namespace))).await?;
        let schedule = schedules.get(&reference);
        let schedule =
            schedule.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no SyncSchedule {name}")))?;
        let choice = Choice { namespace: Some(namespace), schedule: Some(name) };
        let type_ = schedule.spec.job_template.spec.type_;
        let key = fields.key.as_deref();
        let (job, _) = trigger::start(&app, &caller, type_, &choice, key, fields.sync_type, None).await?;
        return Ok(to_run(&job));
    }
    let suspended = action == OnSchedule::Suspend;
    let filter = pause::RunFilter { namespace: Some(namespace), schedule: Some(name) };
    let note = parse_note(&fields.note)?.filter(|_| suspended);
    pause::set_with_note(&app, &caller, &filter, suspended, note).await?;
    shown(|| schedules.get(&reference).is_none_or(|schedule| schedule.spec.suspended == suspended)).await;
    Ok(Redirect::to(local(&fields.next)).into_response())
}

/// Parses the reason of a suspension. `None`: the text is empty.
fn parse_note(text: &str) -> Result<Option<&str>, Problem> {
    let text = text.trim();
    if text.len() > MAX_NOTE || text.contains(char::is_control) {
        let detail = format!("the note may be one line of {MAX_NOTE} bytes");
        return Err(Problem::new(ProblemKind::BadRequest, detail));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// A button of a run.
pub(super) async fn on_run(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(ActionPath { namespace, name, action }): Path<ActionPath<OnRun>>,
) -> Result<Response, Problem> {
    let path = ObjectPath { namespace, name };
    if action == OnRun::Retry {
        let (job, _) = control::start_again(&app, &caller, &path).await?;
        return Ok(to_run(&job));
    }
    let shows = |is_so: fn(&SyncJob) -> bool| {
        let (app, path) = (&app, &path);
        shown(move || jobs::find_job(app, path).is_ok_and(|job| is_so(&job)))
    };
    match action {
        OnRun::Cancel => {
            control::end(&app, &caller, &path).await?;
            shows(|job| job.spec.cancelled).await;
        }
        OnRun::Suspend => {
            control::set_suspended(&app, &caller, &path, true).await?;
            shows(|job| job.spec.suspended).await;
        }
        OnRun::Resume | OnRun::Retry => {
            control::set_suspended(&app, &caller, &path, false).await?;
            shows(|job| !job.spec.suspended).await;
        }
    }
    Ok(Redirect::to(&format!("/ui/runs/{}/{}", path.namespace, path.name)).into_response())
}

/// Approval of removals.
#[derive(Deserialize)]
pub(super) struct ApprovalForm {
    removals: i64,
}

/// The button of a held run. It carries the number that its page showed.
pub(super) async fn approve(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(path): Path<ObjectPath>,
    Sent(ApprovalForm { removals }): Sent<ApprovalForm>,
) -> Result<Response, Problem> {
    control::allow(&app, &caller, &path, removals).await?;
    let is_approved = |job: &SyncJob| DesiredState::from(job).approved == Some(removals.unsigned_abs());
    shown(|| jobs::find_job(&app, &path).is_ok_and(|job| is_approved(&job))).await;
    Ok(Redirect::to(&format!("/ui/runs/{}/{}", path.namespace, path.name)).into_response())
}

fn to_run(job: &SyncJob) -> Response {
    Redirect::to(&format!("/ui/runs/{}/{}", job.namespace().unwrap_or_default(), job.name_any())).into_response()
}

pub(super) async fn shown(is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() && Instant::now() < until {
        sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_a_line() {
        let long = "x".repeat(MAX_NOTE);
        for (text, read) in
            [("", None), ("  ", None), (" why ", Some("why")), ("<b>ä", Some("<b>ä")), (&long, Some(&*long))]
        {
            assert_eq!(parse_note(text), Ok(read), "{text}");
        }
        for text in [format!("{long}x"), "a\nb".to_owned(), "a\0".to_owned()] {
            assert_eq!(parse_note(&text).map_err(|problem| problem.kind()), Err(ProblemKind::BadRequest), "{text:?}");
        }
    }
}
