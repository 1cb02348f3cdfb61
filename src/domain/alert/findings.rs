//! Problems of schedules that a SyncAlert reports, derived from the current statuses.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    api::{
        SyncSchedule, SyncScheduleStatus,
        conditions::{STALLED, SUSPENDED},
        syncalert::{AlertRule, AlertType},
        syncschedule::{HeldRun, RunResult},
    },
    domain::{conditions, from_seconds},
};

/// Problem or incident of a schedule that an alert reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AlertFinding {
    pub schedule: String,
    pub type_: AlertType,
    pub occurrence: String,
    pub since: Timestamp,
    pub message: String,
}

/// Result of an evaluation of all rules for all schedules.
pub(super) struct Evaluation {
    pub findings: Vec<AlertFinding>,
    /// Time at which another finding is due if no status changes.
    pub next: Option<Timestamp>,
}

/// Evaluates the rules for the schedules. Incidents before `created` are not reported.
pub(super) fn evaluate(
    when: &[AlertRule],
    schedules: &[&Arc<SyncSchedule>],
    created: Timestamp,
    now: Timestamp,
) -> Evaluation {
    let mut evaluation = Evaluation { findings: Vec::new(), next: None };
    for schedule in schedules {
        for rule in when {
            match evaluate_rule(rule, schedule, created, now) {
                Some(Evaluated::Now(Occurrence { name, since, message })) => evaluation.findings.push(AlertFinding {
                    schedule: schedule.name_any(),
                    type_: rule.type_,
                    occurrence: name,
                    since,
                    message,
                }),
                Some(Evaluated::Due(due)) => evaluation.next = evaluation.next.into_iter().chain([due]).min(),
                None => {}
            }
        }
    }
    evaluation
}

/// Occurrence of a problem or incident.
struct Occurrence {
    /// Name of the run or time that began the occurrence.
    name: String,
    since: Timestamp,
    message: String,
}

/// Result of a rule for one schedule.
enum Evaluated {
    Now(Occurrence),
    /// Time at which the problem begins if no status changes.
    Due(Timestamp),
}

fn evaluate_rule(rule: &AlertRule, schedule: &SyncSchedule, created: Timestamp, now: Timestamp) -> Option<Evaluated> {
    let status = schedule.status.as_ref()?;
    let occurrence =
        |name: String, since: Timestamp, message: String| Some(Evaluated::Now(Occurrence { name, since, message }));
    match rule.type_ {
        AlertType::RunFailed => run_failed(status).map(Evaluated::Now),
        AlertType::RunRecovered => {
            let last = status.last_result.as_ref().filter(|last| last.recoveries > 0 && last.time.0 >= created)?;
            let times = if last.recoveries == 1 { "once".to_owned() } else { format!("{} times", last.recoveries) };
            let message = format!("SyncJob {} lost its worker {times} and continued on another worker", last.job);
            Some(Evaluated::Now(run_occurrence(last, message)))
        }
        AlertType::RunSkipped => {
            let skip = status.last_skip.as_ref().filter(|skip| skip.time.0 >= created)?;
            let message = format!("The slot {} was skipped: {}", skip.time.0, skip.reason);
            occurrence(skip.time.0.to_string(), skip.time.0, message)
        }
        AlertType::RunHeld => {
            let HeldRun { job, since, removals, message } = status.held.as_ref()?;
            let message = format!("SyncJob {job} waits for an approval of {removals} removals: {message}");
            occurrence(job.clone(), since.0, message)
        }
        AlertType::ScheduleStalled => {
            let stalled = conditions::find(&status.conditions, STALLED).filter(|stalled| stalled.status == "True")?;
            let since = stalled.last_transition_time.0;
            occurrence(since.to_string(), since, format!("The schedule starts no runs: {}", stalled.message))
        }
        AlertType::FailedDocumentsAbove => {
            let (last, percent) = (status.last_result.as_ref()?, i64::from(rule.percent?));
            let RunResult { job, processed, failed, .. } = last;
            let message =
                format!("{failed} of {processed} documents of SyncJob {job} were refused, more than {percent} %");
            (failed * 100 > percent * processed).then(|| Evaluated::Now(run_occurrence(last, message)))
        }
        AlertType::NoSuccessFor => {
            let limit = rule.duration.as_ref()?.parse().ok()?;
            no_success(schedule, status, limit, now)
        }
        AlertType::Test => None,
    }
}

fn run_occurrence(run: &RunResult, message: String) -> Occurrence {
    Occurrence { name: run.job.clone(), since: run.time.0, message }
}

fn run_failed(status: &SyncScheduleStatus) -> Option<Occurrence> {
    let last = status.last_result.as_ref()?;
    let reason = last.reason.as_ref()?;
    let known = status.failure_history.iter().find(|failure| failure.job == last.job);
    let why = known.map(|failure| format!(": {}", failure.message)).unwrap_or_default();
    Some(run_occurrence(last, format!("SyncJob {} failed, {reason}{why}", last.job)))
}

/// Evaluates `NoSuccessFor`. The time counts from when slots began to be started, if that was later than the last
/// success.
fn no_success(
    schedule: &SyncSchedule,
    status: &SyncScheduleStatus,
    limit: Duration,
    now: Timestamp,
) -> Option<Evaluated> {
    if schedule.spec.suspended {
        return None;
    }
    let resumed = conditions::find(&status.conditions, SUSPENDED).map(|found| found.last_transition_time.clone());
    let since = [schedule.creation_timestamp(), status.last_successful_time.clone(), resumed];
    let since = since.into_iter().flatten().max()?.0;
    let until = from_seconds(since.as_second().saturating_add(limit.as_secs() as i64));
    if until > now {
        return Some(Evaluated::Due(until));
    }
    let message = match &status.last_successful_time {
        Some(last) => format!("No run completed since {}", last.0),
        None => "No run has ever completed".to_owned(),
    };
    Some(Evaluated::Now(Occurrence { name: since.to_string(), since, message }))
}
