//! What is wrong with schedules, or was. Follows from how they stand now.

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

/// Something to tell of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub schedule: String,
    pub type_: AlertType,
    pub occurrence: String,
    pub since: Timestamp,
    pub message: String,
}

pub(super) struct Found {
    pub findings: Vec<Finding>,
    /// When there may be more by the passing of time alone.
    pub next: Option<Timestamp>,
}

/// Looks at schedules. What happened before `created` is no news.
pub(super) fn look(when: &[AlertRule], schedules: &[&Arc<SyncSchedule>], created: Timestamp, now: Timestamp) -> Found {
    let mut found = Found { findings: Vec::new(), next: None };
    for schedule in schedules {
        for rule in when {
            match find(rule, schedule, created, now) {
                Some(Ok((occurrence, since, message))) => found.findings.push(Finding {
                    schedule: schedule.name_any(),
                    type_: rule.type_,
                    occurrence,
                    since,
                    message,
                }),
                Some(Err(later)) => found.next = found.next.into_iter().chain([later]).min(),
                None => {}
            }
        }
    }
    found
}

/// What began it, since when it is so, and how it stands; or when it will be so unless something happens.
type Standing = Result<(String, Timestamp, String), Timestamp>;

fn find(rule: &AlertRule, schedule: &SyncSchedule, created: Timestamp, now: Timestamp) -> Option<Standing> {
    let status = schedule.status.as_ref()?;
    match rule.type_ {
        AlertType::RunFailed => run_failed(status).map(Ok),
        AlertType::RunRecovered => {
            let last = status.last_result.as_ref().filter(|last| last.recoveries > 0 && last.time.0 >= created)?;
            let times = if last.recoveries == 1 { "once".to_owned() } else { format!("{} times", last.recoveries) };
            Some(Ok(of_run(last, format!("SyncJob {} lost its worker {times} and went on elsewhere", last.job))))
        }
        AlertType::RunSkipped => {
            let skip = status.last_skip.as_ref().filter(|skip| skip.time.0 >= created)?;
            let message = format!("The slot {} was skipped: {}", skip.time.0, skip.reason);
            Some(Ok((skip.time.0.to_string(), skip.time.0, message)))
        }
        AlertType::RunHeld => {
            let HeldRun { job, since, removals, message } = status.held.as_ref()?;
            let message = format!("SyncJob {job} waits for an approval of {removals} removals: {message}");
            Some(Ok((job.clone(), since.0, message)))
        }
        AlertType::ScheduleStalled => {
            let stalled = conditions::find(&status.conditions, STALLED).filter(|stalled| stalled.status == "True")?;
            let since = stalled.last_transition_time.0;
            Some(Ok((since.to_string(), since, format!("The schedule starts nothing: {}", stalled.message))))
        }
        AlertType::FailedDocumentsAbove => {
            let (last, percent) = (status.last_result.as_ref()?, i64::from(rule.percent?));
            let RunResult { job, processed, failed, .. } = last;
            let message =
                format!("{failed} of {processed} documents of SyncJob {job} were refused, more than {percent} %");
            (failed * 100 > percent * processed).then(|| Ok(of_run(last, message)))
        }
        AlertType::NoSuccessFor => {
            let limit = rule.duration.as_ref()?.parse().ok()?;
            no_success(schedule, status, limit, now)
        }
        AlertType::Test => None,
    }
}

fn of_run(run: &RunResult, message: String) -> (String, Timestamp, String) {
    (run.job.clone(), run.time.0, message)
}

fn run_failed(status: &SyncScheduleStatus) -> Option<(String, Timestamp, String)> {
    let last = status.last_result.as_ref()?;
    let reason = last.reason.as_ref()?;
    let known = status.failure_history.iter().find(|failure| failure.job == last.job);
    let why = known.map(|failure| format!(": {}", failure.message)).unwrap_or_default();
    Some(of_run(last, format!("SyncJob {} failed, {reason}{why}", last.job)))
}

/// Counts from when slots began to be started, if that was later than the last success.
fn no_success(
    schedule: &SyncSchedule,
    status: &SyncScheduleStatus,
    limit: Duration,
    now: Timestamp,
) -> Option<Standing> {
    if schedule.spec.suspended {
        return None;
    }
    let resumed = conditions::find(&status.conditions, SUSPENDED).map(|found| found.last_transition_time.clone());
    let since = [schedule.creation_timestamp(), status.last_successful_time.clone(), resumed];
    let since = since.into_iter().flatten().max()?.0;
    let until = from_seconds(since.as_second().saturating_add(limit.as_secs() as i64));
    if until > now {
        return Some(Err(until));
    }
    let message = match &status.last_successful_time {
        Some(last) => format!("No run completed since {}", last.0),
        None => "No run has ever completed".to_owned(),
    };
    Some(Ok((since.to_string(), since, message)))
}
