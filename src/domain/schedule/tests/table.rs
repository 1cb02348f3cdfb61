//! Tables of decisions. Each row has the state and the time, and the expected actions.
//!
//! All rows are on one day. The schedule `s` was created at 9:00 and has a slot every ten minutes, of which the one
//! of 9:50 was handled last. A run is named by its slot, `@10:00`, or `@trigger`. In `jobs`, `running`, `cancelling`,
//! `held`, `approved` and `ending` (held ones), `complete` and `failed` are SyncJobs; in `active`, `waiting` is an
//! entry whose SyncJob was not created yet. A row lists all actions, and of the status only the part that it tests.

mod changes;
mod concurrency;
mod entries;
mod failures;
mod held;
mod slots;
mod triggers;

use std::collections::BTreeMap;

use super::*;
use crate::api::{
    conditions::HELD,
    syncjob::{Counts, Phase},
};

const DAY: &str = "2026-11-24T";
const TOKEN: &str = "now";

fn time(text: &str) -> Timestamp {
    let text = if text.len() == 5 { format!("{text}:00") } else { text.to_owned() };
    format!("{DAY}{text}Z").parse().unwrap()
}

fn show(time: Timestamp) -> String {
    time.strftime(if time.as_second() % 60 == 0 { "@%H:%M" } else { "@%H:%M:%S" }).to_string()
}

fn name_of(run: &str) -> String {
    match run {
        "@trigger" => names::job_for_trigger("s", TOKEN),
        slot => names::job_for_slot("s", time(&slot[1..])),
    }
}

fn run_of(name: &str) -> String {
    let suffix = name.strip_prefix("s-").unwrap();
    suffix.parse().map_or("@trigger".to_owned(), |seconds| show(at(seconds)))
}

/// `@10:00 running`, or `@10:00 complete 10:02`.
fn job(text: &str) -> SyncJob {
    let mut words = text.split(' ');
    let mut job = SyncJob::new(&name_of(words.next().unwrap()), crate::api::SyncJobSpec::default());
    job.metadata.uid = Some(format!("uid-{}", job.name_any()));
    job.metadata.creation_timestamp = Some(Time(time("09:00")));
    if let Some(slot) = job.name_any().strip_prefix("s-").and_then(|seconds| seconds.parse().ok()) {
        job.annotations_mut().insert(SLOT_ANNOTATION.to_owned(), at(slot).to_string());
    }
    let state = words.next().unwrap();
    let (condition, reason) = match state {
        "complete" => (COMPLETE, "Why"),
        "failed" => (FAILED, "Why"),
        "replaced" => (FAILED, reasons::REPLACED),
        "cancelled" => (FAILED, reasons::CANCELLED),
        "superseded" => (FAILED, reasons::SUPERSEDED),
        "unapproved" => (FAILED, reasons::NOT_APPROVED),
        "held" | "approved" | "ending" => {
            job.spec.cancelled = state == "ending";
            let mut status = SyncJobStatus { phase: Some(Phase::Held), ..SyncJobStatus::default() };
            status.counts = Some(Counts { held: Some(400), ..Counts::default() });
            let since = words.next().map_or_else(|| time("09:00"), time);
            let message = "guard.maxMissing allows 50";
            conditions::set(&mut status.conditions, HELD, true, reasons::GUARD_EXCEEDED, message, None, since);
            job.status = Some(status);
            if state == "approved" {
                job.annotations_mut().insert(APPROVE_ANNOTATION.to_owned(), "400".to_owned());
            }
            return job;
        }
        "terminating" => {
            job.metadata.deletion_timestamp = Some(Time(time("09:55")));
            return job;
        }
        "cancelling" | "running" => {
            job.spec.cancelled = state == "cancelling";
            return job;
        }
        other => panic!("{other}"),
    };
    let ended = time(words.next().unwrap());
    let mut status = SyncJobStatus { completion_time: Some(Time(ended)), ..SyncJobStatus::default() };
    conditions::set(&mut status.conditions, condition, true, reason, "because", Some(1), ended);
    job.status = Some(status);
    job
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().map(|items| items.iter().map(|item| item.as_str().unwrap()).collect()).unwrap_or_default()
}

fn given(given: &Value) -> (SyncSchedule, Vec<Arc<SyncJob>>) {
    let mut spec = json!({"interval": "10m"});
    for (field, value) in given["spec"].as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    if spec.get("schedule").is_some() {
        spec.as_object_mut().unwrap().remove("interval");
    }
    let mut schedule = SyncSchedule::new("s", serde_json::from_value(spec).unwrap());
    schedule.metadata.uid = Some("0d9b8f2e-0000-4000-8000-000000000001".into());
    schedule.metadata.generation = Some(1);
    let created = given["created"].as_str().unwrap_or("09:00");
    schedule.metadata.creation_timestamp = Some(Time(time(created)));
    if let Some(token) = given["trigger"].as_str() {
        schedule.annotations_mut().insert(TRIGGER_ANNOTATION.to_owned(), token.to_owned());
    }
    if given["status"] != json!("none") {
        let text = Parsed::new(&schedule.spec).map_or("?".to_owned(), |parsed| parsed.text);
        let seen = |text: &Value| text.as_str().map(|text| Time(time(text)));
        let mut status = SyncScheduleStatus {
            observed_generation: Some(given["generation"].as_i64().unwrap_or(1)),
            consecutive_failures: given["failures"].as_i64().unwrap_or_default() as i32,
            schedule: Some(given["was"].as_str().map_or(text, str::to_owned)),
            slots_since: seen(&given["last"]).or(Some(Time(time("09:50")))),
            last_schedule_time: seen(&given["last"]).or(Some(Time(time("09:50")))),
            last_handled_trigger: given["handled"].as_str().map(str::to_owned),
            handled_triggers: strings(&given["handledBefore"]).into_iter().map(name_of).collect(),
            ..SyncScheduleStatus::default()
        };
        if given["wasSuspended"] == json!(true) {
            conditions::set(&mut status.conditions, SUSPENDED, true, "Suspended", "", Some(1), time("09:30"));
        }
        if given["wasStalled"] == json!(true) {
            let reason = reasons::FAILURE_THRESHOLD_EXCEEDED;
            conditions::set(&mut status.conditions, STALLED, true, reason, "", Some(1), time("09:30"));
        }
        if given["wasRefused"] == json!(true) {
            conditions::set(&mut status.conditions, READY, false, reasons::CREATE_FAILED, "No", Some(1), time("09:30"));
        }
        if let Some(run) = given["held"].as_str() {
            let (job, message) = (name_of(run), "before".to_owned());
            status.held = Some(HeldRun { job, since: Time(time("09:30")), removals: 1, message });
        }
        if let Some(text) = given["success"].as_str() {
            status.last_successful_time = Some(Time(time(text)));
        }
        for entry in strings(&given["active"]) {
            let (run, waiting) = entry.strip_suffix(" waiting").map_or((entry, false), |run| (run, true));
            let name = name_of(run);
            let trigger = (run == "@trigger").then(|| TOKEN.to_owned());
            let slot = Time(if trigger.is_some() { time("09:55") } else { time(&run[1..]) });
            let uid = (!waiting).then(|| format!("uid-{name}"));
            status.active.push(ActiveRun { name, uid, slot, trigger });
            status.runs.total += 1;
        }
        schedule.status = Some(status);
    }
    (schedule, strings(&given["jobs"]).into_iter().map(|text| Arc::new(job(text))).collect())
}

/// Returns the decision in the terms of the table. Of the status, only the keys of `asked`.
fn outcome_of(plan: &SchedulePlan, asked: &Value) -> Value {
    let shown = |time: &Option<Time>| time.as_ref().map(|time| show(time.0));
    let names = |names: &[String]| names.iter().map(|name| run_of(name)).collect::<Vec<_>>();
    let status = &plan.status;
    let condition =
        |type_: &str| conditions::find(&status.conditions, type_).map(|it| format!("{} {}", it.status, it.reason));
    let active: Vec<_> =
        status.active.iter().map(|run| run_of(&run.name) + if run.uid.is_none() { " waiting" } else { "" }).collect();
    let all = json!({
        "active": active,
        "last": shown(&status.last_schedule_time),
        "next": shown(&status.next_schedule_time),
        "since": shown(&status.slots_since),
        "skip": status.last_skip.as_ref().map(|skip| format!("{} {}", show(skip.time.0), skip.reason)),
        "activeCount": status.active_count,
        "total": status.runs.total,
        "succeeded": status.runs.succeeded,
        "failed": status.runs.failed,
        "skipped": status.runs.skipped,
        "replaced": status.runs.replaced,
        "handled": status.last_handled_trigger,
        "failures": status.consecutive_failures,
        "held": status.held.as_ref().map(|held| format!("{} {} {}", run_of(&held.job), held.removals, held.message)),
        "ready": condition(READY),
        "suspended": condition(SUSPENDED),
        "stalled": condition(STALLED),
        "reconciling": condition(RECONCILING),
    });
    let mut outcome = json!({});
    let supersede: Vec<_> = plan.supersede.iter().map(|(held, later)| run_of(held) + " by " + &run_of(later)).collect();
    for (key, list) in [
        ("supersede", supersede),
        ("create", plan.create.iter().map(|run| run_of(&run.name)).collect()),
        ("cancel", names(&plan.cancel)),
        ("delete", names(&plan.delete)),
        ("events", plan.events.iter().map(|event| event.reason.to_owned()).collect()),
    ] {
        if !list.is_empty() {
            outcome[key] = json!(list);
        }
    }
    for key in asked.as_object().unwrap().keys() {
        match key.as_str() {
            "requeue" => outcome[key] = json!(plan.requeue.map(|wait| wait.as_secs())),
            "counted" => outcome[key] = json!(plan.skipped.iter().copied().collect::<BTreeMap<_, _>>()),
            key if all.get(key).is_some() => outcome[key] = all[key].clone(),
            _ => {}
        }
    }
    outcome
}

/// Asserts the decision of each row: its name, the state and the time, and the expected actions.
fn check(rows: impl IntoIterator<Item = (&'static str, Value, Value)>) {
    let mut wrong = Vec::new();
    for (name, row, expected) in rows {
        let (schedule, jobs) = given(&row);
        let made: Vec<_> = strings(&row["made"]).into_iter().map(name_of).collect();
        let queue_available = row["redis"] != json!(false);
        let failure = row["refused"].as_str().map(|reason| {
            let reason = if reason == "create" { reasons::CREATE_FAILED } else { reasons::RECONCILIATION_FAILED };
            Failure { reason, message: "No".to_owned() }
        });
        let observed = ObservedSchedule {
            schedule: &schedule,
            jobs: &jobs,
            made: &made,
            queue_available,
            queue_owner: None,
            clock_skew: None,
            conflicts: &[],
            not_allowed: row["not allowed"].as_str(),
            failure: failure.as_ref(),
        };
        let decided = outcome_of(&decide(&observed, time(row["now"].as_str().unwrap())), &expected);
        if decided != expected {
            wrong.push(format!("{name}\n  expected {expected}\n  decided  {decided}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
