//! `/ui/schedules/{namespace}/{name}/edit`: when a schedule is due.

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    core::Status,
    runtime::reflector::ObjectRef,
};
use serde::Deserialize;
use serde_json::json;

use super::{
    Filled, Frame, Sent, Visitor,
    actions::shown,
    format::ZonedMoment,
    page,
    schedules::{slots, zone_of},
};
use crate::{
    api::{GoDuration, SyncSchedule, SyncScheduleSpec},
    cluster::{self, ReadResult},
    domain::schedule::Parsed,
    http::{
        App,
        audit::{self, AuditedAction},
        auth::Right,
        extract::{ObjectPath, Path},
        problem::{Problem, ProblemKind},
    },
};

/// Tries to change an object whose status is written meanwhile.
const TRIES: usize = 5;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Grid {
    #[default]
    Interval,
    Cron,
}

/// The form's fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct When {
    /// `None`: nothing was filled in yet.
    grid: Option<Grid>,
    interval: String,
    schedule: String,
    time_zone: String,
    /// Generation of the spec that the user saw.
    generation: i64,
}

/// Mistakes, by field and others.
#[derive(Debug, Default, PartialEq)]
struct Wrong {
    interval: Option<String>,
    schedule: Option<String>,
    time_zone: Option<String>,
    rest: Option<String>,
}

#[derive(Template)]
#[template(path = "edit.html")]
struct Edit {
    frame: Frame,
    path: ObjectPath,
    when: When,
    wrong: Wrong,
    description: Option<String>,
    slots: Vec<ZonedMoment>,
}

impl Edit {
    fn is_cron(&self) -> bool {
        self.when.grid == Some(Grid::Cron)
    }
}

impl When {
    fn from_schedule(schedule: &SyncSchedule) -> Self {
        let spec = &schedule.spec;
        Self {
            grid: Some(if spec.schedule.is_some() { Grid::Cron } else { Grid::Interval }),
            interval: spec.interval.as_ref().map_or_else(|| "20m".to_owned(), ToString::to_string),
            schedule: spec.schedule.clone().unwrap_or_default(),
            time_zone: spec.time_zone.clone().unwrap_or_default(),
            generation: schedule.metadata.generation.unwrap_or(0),
        }
    }

    /// A spec with these fields.
    fn put_into(&self, spec: &SyncScheduleSpec) -> SyncScheduleSpec {
        let filled = |text: &str| Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned);
        let mut spec = spec.clone();
        (spec.interval, spec.schedule, spec.time_zone) = match self.grid.unwrap_or_default() {
            Grid::Interval => (filled(&self.interval).map(GoDuration::new), None, None),
            // An empty expression is a wrong one, not none.
            Grid::Cron => (None, Some(self.schedule.trim().to_owned()), filled(&self.time_zone)),
        };
        spec
    }
}

impl Wrong {
    fn at(&mut self, field: &str, message: String) {
        let message_of_field = match field.trim_start_matches("spec.") {
            "interval" => &mut self.interval,
            "schedule" => &mut self.schedule,
            "timeZone" => &mut self.time_zone,
            _ => &mut self.rest,
        };
        message_of_field.get_or_insert(message);
    }

    /// Mistakes that the program itself finds. Their messages begin with the field.
    fn found(spec: &SyncScheduleSpec) -> Self {
        let mut wrong = Self::default();
        if let Err(error) = Parsed::new(spec) {
            let message = error.to_string();
            let field = message.split([':', ' ']).next().unwrap_or_default().to_owned();
            wrong.at(&field, message);
        }
        wrong
    }

    /// Mistakes that the API server reports.
    fn said(status: &Status) -> Self {
        let mut wrong = Self::default();
        for cause in status.details.iter().flat_map(|details| &details.causes) {
            wrong.at(&cause.field, cause.message.clone());
        }
        if wrong == Self::default() {
            wrong.rest = Some(status.message.clone());
        }
        wrong
    }
}

fn right(path: &ObjectPath) -> Right {
    Right::new("patch", "syncschedules", Some(&path.namespace)).on(&path.name)
}

fn edit(visitor: Visitor, path: ObjectPath, schedule: &SyncSchedule, when: When, wrong: Wrong) -> Edit {
    let changed = SyncSchedule { spec: when.put_into(&schedule.spec), ..schedule.clone() };
    let (now, zone) = (Timestamp::now(), zone_of(&changed.spec));
    let description = Parsed::new(&changed.spec).ok().map(|parsed| parsed.description());
    let slots = slots(&changed, now).iter().map(|slot| slot.clock(&zone)).collect();
    let frame = Frame { path: String::new(), events: None, ..visitor.into_frame("schedules") };
    Edit { frame, path, when, wrong, description, slots }
}

/// Shows the form, with the stored or the submitted values.
pub(super) async fn show(
    State(app): State<App>,
    visitor: Visitor,
    Path(path): Path<ObjectPath>,
    Filled(when): Filled<When>,
) -> Result<Response, Problem> {
    app.access.check(&visitor.caller, right(&path)).await?;
    let schedule = find_schedule(&app, &path)?;
    let filled_in = when.grid.is_some();
    let when = if filled_in { when } else { When::from_schedule(&schedule) };
    let wrong = if filled_in { Wrong::found(&when.put_into(&schedule.spec)) } else { Wrong::default() };
    page(&edit(visitor, path, &schedule, when, wrong))
}

/// Changes the object, or shows the form with the mistakes.
pub(super) async fn save(
    State(app): State<App>,
    visitor: Visitor,
    Path(path): Path<ObjectPath>,
    Sent(when): Sent<When>,
) -> Result<Response, Problem> {
    app.access.check(&visitor.caller, right(&path)).await?;
    let schedule = find_schedule(&app, &path)?;
    let spec = when.put_into(&schedule.spec);
    let mut wrong = Wrong::found(&spec);
    if wrong == Wrong::default() {
        match change(&app, &schedule, &spec, when.generation).await? {
            Ok(changed) => {
                let text =
                    |spec: &SyncScheduleSpec| Parsed::new(spec).map_or_else(|_| "?".to_owned(), |it| it.description());
                let what = format!("Changed from {} to {}", text(&schedule.spec), text(&spec));
                audit::record(&app, &visitor.caller, AuditedAction::Rescheduled, &changed, &what).await;
                let is_shown = |found: &SyncSchedule| found.metadata.generation >= changed.metadata.generation;
                shown(|| find_schedule(&app, &path).is_ok_and(|found| is_shown(&found))).await;
                return Ok(Redirect::to(&format!("/ui/schedules/{}/{}", path.namespace, path.name)).into_response());
            }
            Err(status) => wrong = Wrong::said(&status),
        }
    }
    let form = page(&edit(visitor, path, &schedule, when, wrong))?;
    Ok((StatusCode::UNPROCESSABLE_ENTITY, form).into_response())
}

fn find_schedule(
    app: &App,
    ObjectPath { namespace, name }: &ObjectPath,
) -> Result<std::sync::Arc<SyncSchedule>, Problem> {
    let found = app.listed()?.schedules.get(&ObjectRef::new(name).within(namespace));
    found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no SyncSchedule {namespace}/{name}")))
}

/// The changed object, or why the API server refuses it.
async fn change(
    app: &App,
    schedule: &SyncSchedule,
    spec: &SyncScheduleSpec,
    generation: i64,
) -> Result<Result<SyncSchedule, Status>, Problem> {
    let objects = app.listed()?;
    let (api, name): (Api<SyncSchedule>, _) = (objects.namespaced(&schedule.metadata), schedule.name_any());
    let fields = json!({"interval": spec.interval, "schedule": spec.schedule, "timeZone": spec.time_zone});
    let meanwhile = || {
        let detail = "the schedule was changed since you opened this page; open the page again to see the changes";
        Problem::new(ProblemKind::Conflict, detail)
    };
    for _ in 0..TRIES {
        let live = objects.call("read a SyncSchedule", cluster::get_opt(&api, &name)).await?.ok_or_else(meanwhile)?;
        if live.metadata.generation != Some(generation) || live.uid() != schedule.uid() {
            return Err(meanwhile());
        }
        let metadata = json!({"resourceVersion": live.resource_version()});
        let patch = Patch::Merge(json!({"metadata": metadata, "spec": fields}));
        let any: Api<ReadResult<SyncSchedule>> = objects.namespaced(&schedule.metadata);
        match objects.call("change a SyncSchedule", any.patch(&name, &PatchParams::default(), &patch)).await {
            Ok(changed) => return Ok(Ok(changed.into_outline())),
            // A controller has written its status.
            Err(error) if error.is_conflict() => {}
            Err(error) => match error.status().filter(|status| status.code == 422) {
                Some(status) => return Ok(Err(status.clone())),
                None => return Err(error.into()),
            },
        }
    }
    Err(meanwhile())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> SyncScheduleSpec {
        serde_json::from_str(text).unwrap()
    }

    fn when(grid: Grid, interval: &str, schedule: &str, time_zone: &str) -> When {
        let [interval, schedule, time_zone] = [interval, schedule, time_zone].map(str::to_owned);
        When { grid: Some(grid), interval, schedule, time_zone, generation: 3 }
    }

    #[test]
    fn a_form_gives_back_the_spec_it_was_made_from() {
        for text in
            ["{}", r#"{"interval":"5m","jitter":"3s"}"#, r#"{"schedule":"0 3 * * *","timeZone":"Europe/Berlin"}"#]
        {
            let schedule = SyncSchedule::new("users", spec(text));
            let mut back = When::from_schedule(&schedule).put_into(&schedule.spec);
            if schedule.spec.interval.is_none() && schedule.spec.schedule.is_none() {
                assert_eq!(back.interval.take(), Some(GoDuration::new("20m")), "the default is shown");
            }
            assert_eq!(back, schedule.spec);
        }
    }

    #[test]
    fn a_mistake_stands_at_its_field() {
        let field = |when: &When| {
            let Wrong { interval, schedule, time_zone, rest } = Wrong::found(&when.put_into(&spec("{}")));
            [interval, schedule, time_zone, rest].map(|wrong| wrong.is_some())
        };
        for (when, wrong) in [
            (when(Grid::Interval, " 5m ", "ignored", "ignored"), [false; 4]),
            (when(Grid::Interval, "5", "", ""), [true, false, false, false]),
            (when(Grid::Interval, "0s", "", ""), [true, false, false, false]),
            (when(Grid::Cron, "ignored", "0 3 * * *", ""), [false; 4]),
            (when(Grid::Cron, "", "", ""), [false, true, false, false]),
            (when(Grid::Cron, "", "0 0 31 2 *", ""), [false, true, false, false]),
            (when(Grid::Cron, "", "@daily", "Mars/Olympus"), [false, false, true, false]),
        ] {
            assert_eq!(field(&when), wrong, "{when:?}");
        }
    }

    #[test]
    fn what_the_api_server_says_stands_at_its_field() {
        let status = |causes: serde_json::Value| -> Status {
            let status = json!({"code": 422, "message": "whole", "details": {"causes": causes}});
            serde_json::from_value(status).unwrap()
        };
        let wrong = Wrong::said(&status(json!([
            {"reason": "FieldValueInvalid", "message": "first", "field": "spec.timeZone"},
            {"reason": "FieldValueInvalid", "message": "second", "field": "spec.timeZone"},
            {"reason": "FieldValueInvalid", "message": "both", "field": "spec"},
        ])));
        let expected = Wrong { time_zone: Some("first".into()), rest: Some("both".into()), ..Wrong::default() };
        assert_eq!(wrong, expected);
        assert_eq!(Wrong::said(&status(json!([]))).rest.as_deref(), Some("whole"));
    }
}
