//! `/ui/schedules` and one schedule.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use askama::Template;
use axum::{extract::State, response::Response};
use jiff::{Timestamp, tz::TimeZone};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use serde::Deserialize;

use super::{
    Filled, Frame, RunRow, Visitor,
    format::{Moment, ZonedMoment, filters},
    page,
};
use crate::{
    api::{
        SCHEDULE_LABEL, SUSPEND_NOTE_ANNOTATION, SyncJob, SyncSchedule, SyncScheduleSpec,
        conditions::{READY, STALLED},
        syncjob::SyncType,
    },
    domain::{conditions, schedule::Parsed},
    http::{
        App,
        extract::{self, Path},
        job_view::{Job, Mode},
        pause::{self, RunFilter},
        problem::{Problem, ProblemKind},
        trigger,
    },
};

/// Schedules on a page.
const PAGE: usize = 25;
/// Number of runs in the strip of a schedule, and of future slots.
const STRIP: usize = 20;
const SLOTS: usize = 5;

/// Selection of the schedules to list.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ScheduleSelection {
    namespace: Option<String>,
    /// Text in the name.
    text: Option<String>,
    suspended: Option<bool>,
    /// The last one of the page before: namespace and name.
    after: Option<String>,
}

#[derive(Template)]
#[template(path = "schedules.html")]
struct List {
    frame: Frame,
    selection: ScheduleSelection,
    rows: Vec<Row>,
    total: usize,
    is_filtered: bool,
    next: Option<String>,
}

/// A schedule in the list.
struct Row {
    namespace: String,
    name: String,
    type_: SyncType,
    mode: Mode,
    description: String,
    suspended: bool,
    /// Reason of the suspension.
    note: Option<String>,
    next: Option<Moment>,
    /// Reason for which the schedule does not work.
    problem: Option<String>,
    /// The last runs, the newest first.
    strip: Vec<RunRow>,
    may: May,
    /// Names the run that a button starts.
    key: String,
}

/// Actions that the visitor may use on the schedule.
struct May {
    pause: bool,
    edit: bool,
    run: bool,
}

impl Row {
    fn path(&self) -> String {
        format!("/ui/schedules/{}/{}", self.namespace, self.name)
    }
}

/// Lists the schedules that match the filters in the address, by name.
pub(super) async fn list(
    State(app): State<App>,
    visitor: Visitor,
    Filled(selection): Filled<ScheduleSelection>,
) -> Result<Response, Problem> {
    let objects = app.listed()?;
    let scope = visitor.scope(&app, "syncschedules", selection.namespace.as_deref()).await?;
    let mut schedules = objects.schedules.state();
    schedules.retain(|schedule| scope.includes(&**schedule) && selection.matches(schedule));
    let total = schedules.len();
    let (schedules, next) = selection.page(schedules);
    let now = Timestamp::now();
    let jobs = objects.jobs.state();
    let mut strips = strips(&schedules, &jobs);
    let mut rows = Vec::new();
    for schedule in &schedules {
        let strip = strips.remove(&key(schedule)).unwrap_or_default();
        rows.push(row(&app, &visitor, schedule, strip, now).await?);
    }
    let is_filtered = selection.is_filtered();
    page(&List { frame: visitor.frame("schedules", &scope), selection, rows, total, is_filtered, next })
}

impl ScheduleSelection {
    fn matches(&self, schedule: &SyncSchedule) -> bool {
        self.suspended.is_none_or(|wanted| wanted == schedule.spec.suspended)
            && self.text.as_ref().is_none_or(|text| key(schedule).1.contains(text.as_str()))
    }

    fn is_filtered(&self) -> bool {
        self.namespace.is_some() || self.text.is_some() || self.suspended.is_some()
    }

    fn page(&self, mut found: Vec<Arc<SyncSchedule>>) -> (Vec<Arc<SyncSchedule>>, Option<String>) {
        if let Some(after) = self.after.as_ref().and_then(|after| after.split_once('/')) {
            found.retain(|schedule| key(schedule) > after);
        }
        let by_key = |a: &Arc<SyncSchedule>, b: &Arc<SyncSchedule>| key(a).cmp(&key(b));
        let more = found.len() > PAGE;
        if more {
            found.select_nth_unstable_by(PAGE, by_key);
            found.truncate(PAGE);
        }
        found.sort_unstable_by(by_key);
        let next = found.last().filter(|_| more).map(|last| key(last));
        let next = next.map(|(namespace, name)| format!("{namespace}/{name}"));
        (found, next)
    }
}

/// Namespace and name.
type ScheduleKey<'a> = (&'a str, &'a str);

fn key(schedule: &SyncSchedule) -> ScheduleKey<'_> {
    let metadata = &schedule.metadata;
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// The last runs of some schedules, the newest first.
fn strips<'a>(schedules: &'a [Arc<SyncSchedule>], jobs: &'a [Arc<SyncJob>]) -> HashMap<ScheduleKey<'a>, Vec<Job>> {
    let mut found: HashMap<ScheduleKey<'a>, Vec<&SyncJob>> = schedules.iter().map(|it| (key(it), Vec::new())).collect();
    for job in jobs {
        let key = (job.metadata.namespace.as_deref(), job.labels().get(SCHEDULE_LABEL));
        if let (Some(namespace), Some(schedule)) = key
            && let Some(jobs) = found.get_mut(&(namespace, schedule.as_str()))
        {
            jobs.push(job);
        }
    }
    let newest = |mut jobs: Vec<&SyncJob>| {
        jobs.sort_by_cached_key(|job| (Reverse(job.creation_timestamp().map(|time| time.0)), job.name_any()));
        jobs.into_iter().take(STRIP).map(Job::from).collect()
    };
    found.into_iter().map(|(key, jobs)| (key, newest(jobs))).collect()
}

async fn row(
    app: &App,
    visitor: &Visitor,
    schedule: &SyncSchedule,
    strip: Vec<Job>,
    now: Timestamp,
) -> Result<Row, Problem> {
    let (namespace, name) = key(schedule);
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let filter = RunFilter { namespace: Some(namespace.clone()), schedule: Some(name.clone()) };
    let rights = pause::rights(&filter);
    let may = May {
        pause: visitor.may(app, &rights).await?,
        edit: visitor.may(app, &rights[..1]).await?,
        run: visitor.may(app, &[trigger::right(Some(&namespace))]).await?,
    };
    // Runs are another right.
    let sees_runs = visitor.scope(app, "syncjobs", Some(&namespace)).await.is_ok();
    let strip = strip.into_iter().filter(|_| sees_runs).map(|job| RunRow::new(job, now)).collect();
    let status = schedule.status.as_ref();
    let next = status.and_then(|status| status.next_schedule_time.as_ref());
    let ready = status.and_then(|status| conditions::find(&status.conditions, READY));
    let problem = ready.filter(|ready| ready.status == "False" && !schedule.spec.suspended);
    let template = &schedule.spec.job_template.spec;
    Ok(Row {
        description: Parsed::new(&schedule.spec).map_or_else(|error| error.to_string(), |parsed| parsed.description()),
        type_: template.type_,
        mode: template.sync_type.into(),
        suspended: schedule.spec.suspended,
        note: schedule.annotations().get(SUSPEND_NOTE_ANNOTATION).filter(|_| schedule.spec.suspended).cloned(),
        next: next.map(|next| Moment::new(next.0, now)),
        problem: problem.map(|ready| ready.message.clone()),
        strip,
        may,
        key: format!("dashboard-{:016x}", rand::random::<u64>()),
        namespace,
        name,
    })
}

#[derive(Template)]
#[template(path = "schedule.html")]
struct One {
    frame: Frame,
    row: Row,
    slots: Vec<ZonedMoment>,
    runs: crate::api::syncschedule::RunCounters,
    skip: Option<(String, Moment)>,
    spec: String,
}

/// Shows one schedule.
pub(super) async fn show(
    State(app): State<App>,
    visitor: Visitor,
    Path(extract::ObjectPath { namespace, name }): Path<extract::ObjectPath>,
) -> Result<Response, Problem> {
    let objects = app.listed()?;
    let scope = visitor.scope(&app, "syncschedules", Some(&namespace)).await?;
    let schedule = objects.schedules.get(&ObjectRef::new(&name).within(&namespace));
    let schedule = schedule
        .ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no SyncSchedule {namespace}/{name}")))?;
    let now = Timestamp::now();
    let strip =
        strips(std::slice::from_ref(&schedule), &objects.jobs.state()).remove(&key(&schedule)).unwrap_or_default();
    let row = row(&app, &visitor, &schedule, strip, now).await?;
    let status = schedule.status.clone().unwrap_or_default();
    let zone = zone_of(&schedule.spec);
    let clocks = slots(&schedule, now).iter().map(|slot| slot.clock(&zone)).collect();
    page(&One {
        frame: visitor.frame("schedules", &scope),
        slots: if row.suspended || conditions::is_true(&status.conditions, STALLED) { Vec::new() } else { clocks },
        row,
        runs: status.runs,
        skip: status.last_skip.map(|skip| (skip.reason, Moment::new(skip.time.0, now))),
        spec: serde_yaml_ng::to_string(&schedule.spec).unwrap_or_default(),
    })
}

/// The next slots, when the schedule can be read.
pub(super) fn slots(schedule: &SyncSchedule, now: Timestamp) -> Vec<Moment> {
    let Ok(parsed) = Parsed::new(&schedule.spec) else { return Vec::new() };
    let slots = parsed.slots(schedule.metadata.uid.as_deref().unwrap_or_default());
    let following = std::iter::successors(slots.next(now, now), |slot| slots.next(*slot, now));
    following.take(SLOTS).map(|slot| Moment::new(slots.start(slot), now)).collect()
}

/// Time zone of a schedule.
pub(super) fn zone_of(spec: &SyncScheduleSpec) -> TimeZone {
    spec.time_zone.as_deref().and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SyncJobSpec;

    fn schedule(namespace: &str, name: &str) -> Arc<SyncSchedule> {
        let mut schedule = SyncSchedule::new(name, serde_json::from_str("{}").unwrap());
        schedule.metadata.namespace = Some(namespace.to_owned());
        Arc::new(schedule)
    }

    fn job(namespace: &str, schedule: &str, number: i64) -> Arc<SyncJob> {
        let mut job = SyncJob::new(&format!("{schedule}-{number:03}"), SyncJobSpec::default());
        job.metadata.namespace = Some(namespace.to_owned());
        job.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(crate::domain::from_seconds(number)));
        job.labels_mut().insert(SCHEDULE_LABEL.to_owned(), schedule.to_owned());
        Arc::new(job)
    }

    #[test]
    fn a_strip_has_the_last_runs_of_its_schedule_the_newest_first() {
        let mut jobs: Vec<_> = (0..100).map(|i| job("a", "users", i * 37 % 100)).collect();
        jobs.push(job("b", "users", 1000));
        jobs.push(job("a", "others", 1000));
        let schedules = [schedule("a", "users")];
        let strips = strips(&schedules, &jobs);
        let names: Vec<_> = strips[&("a", "users")].iter().map(|job| job.name.as_str()).collect();
        assert_eq!((strips.len(), names.len()), (1, STRIP));
        assert_eq!(names[..3], ["users-099", "users-098", "users-097"]);
    }

    #[test]
    fn pages_of_schedules_follow_each_other() {
        let all: Vec<_> = (0..60).map(|i| schedule(["b", "a"][i % 2], &format!("s{:02}", i * 7 % 60))).collect();
        let (mut seen, mut selection) = (Vec::new(), ScheduleSelection::default());
        loop {
            let (page, next) = selection.page(all.clone());
            seen.extend(page);
            selection.after = next;
            if selection.after.is_none() {
                break;
            }
        }
        let keys = |schedules: &[Arc<SyncSchedule>]| -> Vec<String> {
            schedules.iter().map(|schedule| format!("{:?}", key(schedule))).collect()
        };
        let mut expected = keys(&all);
        expected.sort();
        assert_eq!(keys(&seen), expected);
    }
}
