//! Records of runs and schedules for BullMQ: the fields that bullmq 6.7.0 reads, and the list or set that has the id.

use jiff::Timestamp;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use serde::Serialize;
use serde_json::{json, to_string};

use super::path;
use crate::{
    api::{SyncJob, SyncSchedule, syncjob::Phase},
    http::{job_view::Job, status::Repeatable},
};

/// Score of a schedule that has no next slot. BullMQ converts an infinite score to `null`.
pub const NO_NEXT_SLOT: i64 = i64::MAX;
/// Factor of the scores of delayed jobs: the number of jobs that BullMQ can order within one millisecond.
const PER_MILLISECOND: i64 = 0x1000;
/// Weight of one step of priority: larger than any time in milliseconds, and a thousand steps are still exact in a
/// score.
const PRIORITY: i64 = 4_000_000_000_000;

/// List or sorted set of BullMQ with the ids of the jobs in one state, or of the job schedulers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobSet {
    Wait,
    Active,
    Paused,
    Delayed,
    Completed,
    Failed,
    Repeat,
}

impl JobSet {
    pub const ALL: [Self; 7] =
        [Self::Wait, Self::Active, Self::Paused, Self::Delayed, Self::Completed, Self::Failed, Self::Repeat];

    /// Name of the key.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Delayed => "delayed",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Repeat => "repeat",
        }
    }

    /// True for a list, newest first. False for a sorted set.
    pub fn is_list(self) -> bool {
        matches!(self, Self::Wait | Self::Active | Self::Paused)
    }

    /// True for the sets of ended runs, whose size is bounded.
    pub fn is_bounded(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }

    /// Name of the hash of an id.
    pub fn key(self, id: &str) -> String {
        if self == Self::Repeat { format!("repeat:{id}") } else { id.to_owned() }
    }
}

/// Job or job scheduler of BullMQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    pub id: String,
    pub set: JobSet,
    /// Order in the list or set.
    pub score: i64,
    /// True for a suspended schedule.
    pub is_suspended: bool,
    /// Fields of the hash.
    pub fields: Vec<(&'static str, String)>,
}

/// Id of the job scheduler of a schedule.
pub fn scheduler_id(schedule: &ObjectRef<SyncSchedule>) -> String {
    path(schedule)
}

/// Record of a schedule: a job scheduler, whose data is the entry of `/jobs/status`.
pub fn schedule(schedule: &SyncSchedule) -> JobRecord {
    let shown = Repeatable::from(schedule);
    let runs = schedule.status.as_ref().map_or(0, |status| status.runs.total);
    let mut fields = vec![("name", shown.name.clone()), ("ic", runs.to_string()), ("data", text(&shown))];
    fields.extend(shown.cron.clone().map(|cron| ("pattern", cron)));
    fields.extend(shown.tz.clone().map(|zone| ("tz", zone)));
    fields.extend(shown.every.map(|every| ("every", every.to_string())));
    JobRecord {
        id: scheduler_id(&ObjectRef::from_obj(schedule)),
        set: JobSet::Repeat,
        score: shown.next.map_or(NO_NEXT_SLOT, Timestamp::as_millisecond),
        is_suspended: shown.suspended,
        fields,
    }
}

/// List or set of a run. `None` for a run that is not in the queue yet.
pub fn set_of(job: &SyncJob) -> Option<JobSet> {
    Some(match job.status.as_ref()?.phase? {
        Phase::Pending => return None,
        Phase::Queued => JobSet::Wait,
        Phase::Running | Phase::RollingBack => JobSet::Active,
        Phase::Suspended | Phase::Held => JobSet::Paused,
        Phase::Retrying => JobSet::Delayed,
        Phase::Complete => JobSet::Completed,
        Phase::Failed => JobSet::Failed,
    })
}

/// Record of a run: a job whose id is the uid, and whose data is the entry of `/jobs`. `retry_at`: end of the backoff.
/// `None` for a run that is not in the queue yet.
pub fn job(job: &SyncJob, retry_at: Option<Timestamp>) -> Option<JobRecord> {
    let set = set_of(job)?;
    let shown = Job::from(job);
    let status = job.status.as_ref();
    let millis = |at: Option<Timestamp>| at.map_or(0, Timestamp::as_millisecond);
    let created = millis(shown.created_at);
    let failures = status.map(|status| status.attempt_history.as_slice()).unwrap_or_default();
    let retry = millis(retry_at.or(failures.last().map(|attempt| attempt.end.0))).max(created);
    let score = match set {
        JobSet::Wait => created - i64::from(shown.priority) * PRIORITY,
        JobSet::Active => millis(shown.started_at),
        JobSet::Paused | JobSet::Repeat => created,
        JobSet::Delayed => retry * PER_MILLISECOND,
        JobSet::Completed | JobSet::Failed => millis(shown.finished_at),
    };
    let delay = if set == JobSet::Delayed { retry - created } else { 0 };
    let mut fields = vec![
        ("name", shown.name.clone()),
        ("data", text(&shown)),
        ("opts", json!({"jobId": shown.uid, "attempts": job.spec.backoff_limit + 1}).to_string()),
        ("timestamp", created.to_string()),
        ("delay", delay.to_string()),
        // The order of waiting jobs includes the priority already, and for BullMQ a lower number goes first.
        ("priority", "0".to_owned()),
        ("progress", shown.progress.to_string()),
        ("atm", shown.attempts_made.to_string()),
        ("stc", shown.recoveries.to_string()),
    ];
    let because = |reason: &str, message: &str| format!("{reason}: {message}");
    let time = |at: Option<Timestamp>| at.map(|at| at.as_millisecond().to_string());
    fields.extend(time(shown.started_at).map(|at| ("processedOn", at)));
    fields.extend(time(shown.finished_at).map(|at| ("finishedOn", at)));
    fields.extend(status.and_then(|status| status.worker.clone()).map(|worker| ("pb", worker)));
    fields.extend(shown.schedule.as_ref().map(|schedule| ("rjk", format!("{}/{schedule}", shown.namespace))));
    let traces: Vec<_> = failures.iter().map(|attempt| because(&attempt.reason, &attempt.message)).collect();
    match set {
        JobSet::Completed => fields.push(("returnvalue", text(&shown.counts))),
        JobSet::Failed => {
            let (reason, message) = (shown.reason.as_deref(), shown.message.as_deref());
            fields.push(("failedReason", because(reason.unwrap_or_default(), message.unwrap_or_default())));
        }
        _ => {
            fields.extend(traces.last().map(|last| ("failedReason", last.clone())));
            fields.push(("stacktrace", text(&traces)));
        }
    }
    Some(JobRecord { id: job.uid()?, set, score, is_suspended: false, fields })
}

/// JSON of a value that can always be serialized.
fn text(value: &impl Serialize) -> String {
    to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use serde_json::Value;

    /// 2026-11-23T12:00:00Z
    const NOON: i64 = 1_795_435_200_000;

    fn run(spec: &Value, status: &Value) -> SyncJob {
        fixtures::job(json!({
            "metadata": {"name": "users-1", "namespace": "team", "uid": "u-1", "creationTimestamp": "2026-11-23T12:00:00Z",
                         "labels": {"sync.codex.dev/schedule": "users"}},
            "spec": spec, "status": status,
        }))
    }

    fn field<'a>(record: &'a JobRecord, name: &str) -> Option<&'a str> {
        record.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn each_phase_has_a_set_and_a_score() {
        let retry = Timestamp::from_millisecond(NOON + 90_000).unwrap();
        for (phase, priority, set, score) in [
            ("Queued", 0, JobSet::Wait, NOON),
            ("Queued", 1, JobSet::Wait, NOON - PRIORITY),
            ("Queued", -1000, JobSet::Wait, NOON + 1000 * PRIORITY),
            ("Running", 5, JobSet::Active, NOON + 10_250),
            ("RollingBack", 0, JobSet::Active, NOON + 10_250),
            ("Suspended", 5, JobSet::Paused, NOON),
            ("Retrying", 5, JobSet::Delayed, (NOON + 90_000) * 4096),
            ("Complete", 5, JobSet::Completed, NOON + 60_000),
            ("Failed", 5, JobSet::Failed, NOON + 60_000),
        ] {
            let status = json!({
                "phase": phase, "startTime": "2026-11-23T12:00:10.250000Z", "completionTime": "2026-11-23T12:01:00Z"
            });
            let found = job(&run(&json!({"priority": priority}), &status), Some(retry)).unwrap();
            assert_eq!((found.set, found.score), (set, score), "{phase} {priority}");
            // A score is a float to Redis.
            assert_eq!((score as f64) as i64, score);
        }
        assert_eq!(job(&run(&json!({}), &json!({"phase": "Pending"})), None), None, "it is not in the queue");
        assert_eq!(job(&run(&json!({}), &json!({})), None), None);
    }

    #[test]
    fn a_failed_run_has_the_fields_of_bullmq_and_no_target() {
        let spec = json!({"backoffLimit": 2, "target": {"filter": {"secret": "42"}}});
        let failed = fixtures::condition("Failed", "TooManyFailed", "7 of 9 failed", "2026-11-23T12:01:00Z");
        let status = json!({
            "phase": "Failed", "startTime": "2026-11-23T12:00:10.250000Z", "completionTime": "2026-11-23T12:01:00Z", "progress": 90,
            "attempts": 1, "recoveries": 3, "worker": "w-1", "conditions": [failed],
        });
        let job = run(&spec, &status);
        let found = super::job(&job, None).unwrap();
        assert_eq!(found.id, "u-1");
        for (name, value) in [
            ("name", "users-1"),
            ("opts", r#"{"jobId":"u-1","attempts":3}"#),
            ("timestamp", "1795435200000"),
            ("delay", "0"),
            ("priority", "0"),
            ("progress", "90"),
            ("atm", "1"),
            ("stc", "3"),
            ("processedOn", "1795435210250"),
            ("finishedOn", "1795435260000"),
            ("pb", "w-1"),
            ("rjk", "team/users"),
            ("failedReason", "TooManyFailed: 7 of 9 failed"),
            ("data", &serde_json::to_string(&Job::from(&job)).unwrap()),
        ] {
            assert_eq!(field(&found, name), Some(value), "{name}");
        }
        assert_eq!(found.fields.len(), 14);
        assert!(!format!("{found:?}").contains("42"));
    }

    #[test]
    fn a_delayed_run_has_its_time_and_reason() {
        let attempt = |number: i32| {
            json!({"number": number, "start": "2026-11-23T12:00:00Z", "end": "2026-11-23T12:00:30Z", "reason": "SourceUnavailable",
                   "message": format!("no answer, {number}")})
        };
        let job =
            run(&json!({}), &json!({"phase": "Retrying", "attempts": 2, "attemptHistory": [attempt(1), attempt(2)]}));
        let later = Timestamp::from_millisecond(NOON + 75_000).unwrap();
        for (retry_at, delay) in [(Some(later), "75000"), (None, "30000")] {
            let found = super::job(&job, retry_at).unwrap();
            assert_eq!(field(&found, "delay"), Some(delay), "{retry_at:?}");
            assert_eq!(field(&found, "failedReason"), Some("SourceUnavailable: no answer, 2"));
            let trace = r#"["SourceUnavailable: no answer, 1","SourceUnavailable: no answer, 2"]"#;
            assert_eq!(field(&found, "stacktrace"), Some(trace));
        }
    }

    #[test]
    fn a_schedule_is_a_job_scheduler() {
        for (spec, next, score, expected) in [
            (json!({"interval": "20m"}), Some("2026-11-23T12:20:00Z"), NOON + 1_200_000, [Some("1200000"), None, None]),
            (json!({}), None, NO_NEXT_SLOT, [Some("1200000"), None, None]),
            (
                json!({"schedule": "0 3 * * *", "timeZone": "Europe/Berlin", "suspended": true}),
                None,
                NO_NEXT_SLOT,
                [None, Some("0 3 * * *"), Some("Europe/Berlin")],
            ),
        ] {
            let schedule = fixtures::schedule(json!({
                "metadata": {"name": "users", "namespace": "team"},
                "spec": spec, "status": {"nextScheduleTime": next, "runs": {"total": 7}},
            }));
            let found = super::schedule(&schedule);
            assert_eq!((found.id.as_str(), found.set, found.score), ("team/users", JobSet::Repeat, score));
            assert_eq!(["every", "pattern", "tz"].map(|name| field(&found, name)), expected);
            assert_eq!((field(&found, "name"), field(&found, "ic")), (Some("users"), Some("7")));
            assert_eq!(found.is_suspended, schedule.spec.suspended);
        }
    }
}
