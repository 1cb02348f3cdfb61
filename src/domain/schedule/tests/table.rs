//! Table of decisions. Each row has the state and the time, and the expected actions.
//!
//! All rows are on one day. The schedule `s` was created at 9:00 and has a slot every ten minutes, of which the one
//! of 9:50 was handled last. A run is named by its slot, `@10:00`, or `@trigger`. In `jobs`, `running`, `cancelling`,
//! `held`, `approved` and `ending` (held ones), `complete` and `failed` are SyncJobs; in `active`, `waiting` is an
//! entry whose SyncJob was not created yet. A row lists all actions, and of the status only the part that it tests.

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

#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn decisions() {
    let rows = vec![
        // When a slot is due.
        ("a second before the slot", json!({"now": "09:59:59"}), json!({"requeue": 1, "next": "@10:00"})),
        (
            "at the slot",
            json!({"now": "10:00"}),
            json!({"create": ["@10:00"], "last": "@10:00", "next": "@10:10", "requeue": 600, "total": 1}),
        ),
        ("a little late", json!({"now": "10:00:03"}), json!({"create": ["@10:00"], "requeue": 597})),
        (
            "nearly at the next one",
            json!({"now": "10:09:59"}),
            json!({"create": ["@10:00"], "requeue": 1, "skipped": 0}),
        ),
        ("handled already", json!({"now": "10:00:03", "last": "10:00"}), json!({"requeue": 597})),
        (
            "two are due",
            json!({"now": "10:10"}),
            json!({"create": ["@10:10"], "events": ["RunSkipped"], "skip": "@10:00 CatchUp", "counted": {"CatchUp": 1}}),
        ),
        (
            "six are due",
            json!({"now": "10:50:01"}),
            json!({"create": ["@10:50"], "events": ["RunSkipped"], "skip": "@10:40 CatchUp", "skipped": 5}),
        ),
        (
            "the clock was set forward by an hour",
            json!({"now": "10:59:30", "last": "09:50"}),
            json!({"create": ["@10:50"], "events": ["RunSkipped"], "skipped": 5}),
        ),
        (
            "the clock was set back by an hour",
            json!({"now": "09:00:30", "last": "10:00"}),
            json!({"next": "@09:10", "requeue": 570, "events": ["ClockSkew"]}),
        ),
        (
            "the clock is behind that of the leader before",
            json!({"now": "09:59:35", "last": "10:00"}),
            json!({"next": "@10:10", "requeue": 625}),
        ),
        (
            "the clock was set back to before the creation",
            json!({"now": "08:00", "last": "09:50"}),
            json!({"next": "@08:10", "requeue": 600, "events": ["ClockSkew"]}),
        ),
        // With a cron expression.
        (
            "cron: before the slot",
            json!({"spec": {"schedule": "*/10 * * * *"}, "now": "09:59:59"}),
            json!({"requeue": 1, "next": "@10:00"}),
        ),
        (
            "cron: at the slot",
            json!({"spec": {"schedule": "*/10 * * * *"}, "now": "10:00"}),
            json!({"create": ["@10:00"], "next": "@10:10"}),
        ),
        (
            "cron: three are due",
            json!({"spec": {"schedule": "*/10 * * * *"}, "now": "10:20"}),
            json!({"create": ["@10:20"], "events": ["RunSkipped"], "skip": "@10:10 CatchUp", "skipped": 2}),
        ),
        (
            "cron: by the clocks of a zone",
            json!({"spec": {"schedule": "0 11 * * *", "timeZone": "Europe/Berlin"}, "now": "10:00"}),
            json!({"create": ["@10:00"], "requeue": 86400}),
        ),
        ("cron: not today", json!({"spec": {"schedule": "0 10 1 * *"}, "now": "10:00"}), json!({"requeue": 604_800})),
        (
            "cron: a nickname",
            json!({"spec": {"schedule": "@hourly"}, "now": "10:00"}),
            json!({"create": ["@10:00"], "next": "@11:00"}),
        ),
        // startingDeadline.
        (
            "deadline: in time",
            json!({"spec": {"startingDeadline": "1m"}, "now": "10:00:59"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "deadline: just in time",
            json!({"spec": {"startingDeadline": "1m"}, "now": "10:01"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "deadline: too late",
            json!({"spec": {"startingDeadline": "1m"}, "now": "10:01:01"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Deadline", "counted": {"Deadline": 1}, "next": "@10:10"}),
        ),
        (
            "deadline: reported once",
            json!({"spec": {"startingDeadline": "1m"}, "now": "10:01:02", "last": "10:00"}),
            json!({}),
        ),
        (
            "deadline: longer than the interval",
            json!({"spec": {"startingDeadline": "1h"}, "now": "10:25"}),
            json!({"create": ["@10:20"], "events": ["RunSkipped"], "skipped": 2}),
        ),
        (
            "deadline: several missed, and the newest too late",
            json!({"spec": {"startingDeadline": "1s"}, "now": "10:25"}),
            json!({"events": ["RunSkipped", "RunSkipped"], "counted": {"CatchUp": 2, "Deadline": 1}, "skip": "@10:20 Deadline"}),
        ),
        // catchUp: None.
        (
            "no catching up: on time",
            json!({"spec": {"catchUp": "None"}, "now": "10:01"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "no catching up: missed",
            json!({"spec": {"catchUp": "None"}, "now": "10:01:01"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 CatchUp"}),
        ),
        (
            "no catching up: back on time for the newest",
            json!({"spec": {"catchUp": "None"}, "now": "10:20:05"}),
            json!({"create": ["@10:20"], "events": ["RunSkipped"], "skipped": 2}),
        ),
        (
            "no catching up: all missed",
            json!({"spec": {"catchUp": "None"}, "now": "10:25"}),
            json!({"events": ["RunSkipped", "RunSkipped"], "skipped": 3, "skip": "@10:20 CatchUp"}),
        ),
        // jitter: a run of this uid starts 201 s after its slot.
        ("jitter: at the slot", json!({"spec": {"jitter": "5m"}, "now": "10:00"}), json!({"next": "@10:03:21"})),
        (
            "jitter: at its start",
            json!({"spec": {"jitter": "5m"}, "now": "10:05"}),
            json!({"create": ["@10:00"], "last": "@10:00"}),
        ),
        (
            "jitter: the deadline counts from the start",
            json!({"spec": {"jitter": "5m", "startingDeadline": "4m"}, "now": "10:05"}),
            json!({"create": ["@10:00"]}),
        ),
        // An earlier run is not finished.
        (
            "forbid: not due",
            json!({"active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"active": ["@09:50"]}),
        ),
        (
            "forbid: due",
            json!({"active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Active", "active": ["@09:50"], "counted": {"Active": 1}}),
        ),
        (
            "forbid: it has just ended",
            json!({"active": ["@09:50"], "jobs": ["@09:50 complete 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@10:00 waiting"], "succeeded": 1}),
        ),
        (
            "forbid: it has just failed",
            json!({"active": ["@09:50"], "jobs": ["@09:50 failed 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failed": 1}),
        ),
        (
            "forbid: a user deleted the SyncJob",
            json!({"active": ["@09:50"], "now": "10:00"}),
            json!({"create": ["@10:00"], "succeeded": 0, "failed": 0}),
        ),
        (
            "forbid: it was not made yet",
            json!({"active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@09:50"], "events": ["RunSkipped"], "active": ["@09:50 waiting"]}),
        ),
        (
            "forbid: of two that were not made yet, the first",
            json!({"active": ["@09:40 waiting", "@09:50 waiting"], "now": "09:55"}),
            json!({"create": ["@09:40"]}),
        ),
        (
            "forbid: one waits since it was Replace",
            json!({"active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 running"], "now": "09:55"}),
            json!({}),
        ),
        (
            "forbid: an unknown one runs",
            json!({"jobs": ["@09:40 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "active": ["@09:40"], "total": 1}),
        ),
        (
            "allow: due",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@09:50", "@10:00 waiting"]}),
        ),
        (
            "allow: one was not made yet",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@09:50", "@10:00"]}),
        ),
        (
            "replace: not due",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:59"}),
            json!({}),
        ),
        (
            "replace: nothing to replace",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "now": "10:00"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "replace: due",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"cancel": ["@09:50"], "active": ["@09:50", "@10:00 waiting"], "skipped": 0}),
        ),
        (
            "replace: the cancellation is in progress",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 cancelling"], "now": "10:00:01"}),
            json!({"active": ["@09:50", "@10:00 waiting"]}),
        ),
        (
            "replace: it is gone",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 failed 10:00:01"], "now": "10:00:02"}),
            json!({"create": ["@10:00"], "active": ["@10:00 waiting"], "failed": 1}),
        ),
        (
            "replace: a replaced run did not fail",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 replaced 10:00:01"], "now": "10:00:02"}),
            json!({"create": ["@10:00"], "replaced": 1, "failed": 0, "total": 2}),
        ),
        (
            "replace: it made it to its end",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 complete 10:00:01"], "now": "10:00:02"}),
            json!({"create": ["@10:00"], "succeeded": 1}),
        ),
        (
            "replace: another slot before it is gone",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50", "@10:00 waiting"], "last": "10:00", "jobs": ["@09:50 cancelling"], "now": "10:10"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Replaced", "active": ["@09:50", "@10:10 waiting"], "total": 2}),
        ),
        (
            "replace: several ran side by side before",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 running", "@09:50 running"], "now": "10:00"}),
            json!({"cancel": ["@09:40", "@09:50"]}),
        ),
        (
            "replace: they may end side by side when none waits",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 running", "@09:50 running"], "now": "09:55"}),
            json!({}),
        ),
        // Suspended.
        (
            "suspended: due",
            json!({"spec": {"suspended": true}, "now": "10:00"}),
            json!({"next": null, "requeue": null, "ready": "True Scheduled", "suspended": "True Suspended", "skipped": 0}),
        ),
        (
            "suspended: an active run continues",
            json!({"spec": {"suspended": true}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"active": ["@09:50"]}),
        ),
        (
            "suspended: a run that ends is counted",
            json!({"spec": {"suspended": true}, "active": ["@09:50"], "jobs": ["@09:50 complete 09:59"], "now": "10:00"}),
            json!({"active": [], "succeeded": 1}),
        ),
        (
            "resumed: what was missed stays undone",
            json!({"wasSuspended": true, "now": "10:35"}),
            json!({"since": "@10:35", "next": "@10:40", "skipped": 0, "suspended": "False Active"}),
        ),
        ("resumed: in the second of a slot", json!({"wasSuspended": true, "now": "10:00"}), json!({"next": "@10:10"})),
        // Changed.
        (
            "changed: no slot of the past",
            json!({"was": "1h", "last": "09:00", "now": "09:55"}),
            json!({"since": "@09:55", "next": "@10:00"}),
        ),
        (
            "changed: from cron to an interval",
            json!({"was": "0 * * * *", "last": "09:00", "now": "10:05"}),
            json!({"since": "@10:05", "next": "@10:10"}),
        ),
        (
            "changed: the time zone",
            json!({"spec": {"schedule": "0 11 * * *", "timeZone": "Europe/Berlin"}, "was": "0 11 * * *", "now": "10:05"}),
            json!({"since": "@10:05"}),
        ),
        (
            "changed: nothing that moves slots",
            json!({"spec": {"startingDeadline": "2m", "failedJobsHistoryLimit": 3}, "now": "10:00"}),
            json!({"create": ["@10:00"], "since": "@10:00"}),
        ),
        // Seen for the first time.
        (
            "new: the first slot after the creation",
            json!({"status": "none", "created": "09:55:30", "now": "09:55:31"}),
            json!({"since": "@09:55:30", "next": "@10:00", "last": null}),
        ),
        (
            "new: created in the second of a slot",
            json!({"status": "none", "created": "10:00", "now": "10:00:01"}),
            json!({"next": "@10:10"}),
        ),
        (
            "new: no controller was running",
            json!({"status": "none", "created": "09:55:30", "now": "10:15"}),
            json!({"create": ["@10:10"], "events": ["RunSkipped"], "skipped": 1}),
        ),
        (
            "new: immediate",
            json!({"spec": {"immediate": true}, "status": "none", "created": "09:55:30", "now": "09:55:31"}),
            json!({"create": ["@09:55:30"], "last": "@09:55:30", "next": "@10:00"}),
        ),
        (
            "new: immediate, and a slot is due",
            json!({"spec": {"immediate": true}, "status": "none", "created": "09:55:30", "now": "10:00"}),
            json!({"create": ["@09:55:30"], "events": ["RunSkipped"], "skip": "@10:00 Active"}),
        ),
        (
            "new: immediate and suspended",
            json!({"spec": {"immediate": true, "suspended": true}, "status": "none", "created": "09:55:30", "now": "09:55:31"}),
            json!({"suspended": "True Suspended"}),
        ),
        ("immediate, long after", json!({"spec": {"immediate": true}, "now": "09:55"}), json!({})),
        (
            "the status was lost while a run is active",
            json!({"status": "none", "created": "09:00", "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"events": ["RunSkipped", "RunSkipped"], "active": ["@09:50"], "total": 1, "skip": "@09:50 Active"}),
        ),
        // Triggered.
        (
            "trigger: a new token",
            json!({"trigger": TOKEN, "now": "09:55"}),
            json!({"create": ["@trigger"], "handled": TOKEN, "last": "@09:50", "total": 1}),
        ),
        ("trigger: the same token", json!({"trigger": TOKEN, "handled": TOKEN, "now": "09:55"}), json!({"total": 0})),
        ("trigger: an empty token", json!({"trigger": "", "now": "09:55"}), json!({"handled": null})),
        (
            "trigger: while suspended",
            json!({"spec": {"suspended": true}, "trigger": TOKEN, "now": "10:00"}),
            json!({"create": ["@trigger"], "handled": TOKEN, "next": null}),
        ),
        (
            "trigger: with a slot",
            json!({"trigger": TOKEN, "now": "10:00"}),
            json!({"create": ["@trigger"], "events": ["RunSkipped"], "skip": "@10:00 Active"}),
        ),
        (
            "trigger: with a slot, allowed",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "trigger": TOKEN, "now": "10:00"}),
            json!({"create": ["@trigger", "@10:00"], "last": "@10:00"}),
        ),
        (
            "trigger: a token of before, whose run is gone",
            json!({"trigger": TOKEN, "handled": "later", "handledBefore": ["@trigger"], "now": "09:55"}),
            json!({"handled": TOKEN, "total": 0}),
        ),
        (
            "trigger: waits for the active run",
            json!({"trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"handled": null, "ready": "True Scheduled"}),
        ),
        (
            "trigger: has waited",
            json!({"trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 complete 09:54"], "now": "09:55"}),
            json!({"create": ["@trigger"], "handled": TOKEN}),
        ),
        (
            "trigger: concurrent with an active run",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"create": ["@trigger"]}),
        ),
        (
            "trigger: replaces an active run",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"cancel": ["@09:50"], "handled": TOKEN, "active": ["@09:50", "@trigger waiting"]}),
        ),
        (
            "trigger: its run was not made yet",
            json!({"trigger": TOKEN, "handled": TOKEN, "active": ["@trigger waiting"], "now": "09:55"}),
            json!({"create": ["@trigger"]}),
        ),
        (
            "trigger: used before another token",
            json!({"trigger": TOKEN, "handled": "other", "jobs": ["@trigger complete 09:20"], "now": "09:55"}),
            json!({"handled": TOKEN, "total": 0}),
        ),
        (
            "trigger: counted as any run",
            json!({"trigger": TOKEN, "handled": TOKEN, "active": ["@trigger"], "jobs": ["@trigger failed 09:54"], "now": "09:55"}),
            json!({"failed": 1, "active": []}),
        ),
        // Held runs.
        (
            "held: it does not keep the next slot from starting",
            json!({"active": ["@09:50"], "jobs": ["@09:50 held"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@09:50", "@10:00 waiting"], "activeCount": 1, "total": 2}),
        ),
        (
            "held: it is not replaced",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50"], "jobs": ["@09:50 held"], "now": "10:00"}),
            json!({"create": ["@10:00"], "activeCount": 1}),
        ),
        (
            "held: another run is concurrent with Allow",
            json!({"spec": {"concurrencyPolicy": "Allow"}, "active": ["@09:50"], "jobs": ["@09:50 held"], "now": "10:00"}),
            json!({"create": ["@10:00"], "activeCount": 1}),
        ),
        (
            "held: it does not keep a trigger from starting",
            json!({"trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 held"], "now": "09:55"}),
            json!({"create": ["@trigger"], "handled": TOKEN}),
        ),
        (
            "held: another run is active",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 held", "@09:50 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Active", "activeCount": 1}),
        ),
        (
            "held: the active run is replaced",
            json!({"spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:40", "@09:50"],
                   "jobs": ["@09:40 held", "@09:50 running"], "now": "10:00"}),
            json!({"cancel": ["@09:50"], "activeCount": 2}),
        ),
        (
            "held: an approved run is active",
            json!({"active": ["@09:50"], "jobs": ["@09:50 approved"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Active", "activeCount": 1}),
        ),
        (
            "held: it is not history",
            json!({"spec": {"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0}, "active": ["@09:50"],
                   "jobs": ["@09:50 held"], "now": "09:55"}),
            json!({"active": ["@09:50"], "activeCount": 0}),
        ),
        (
            "held: an unknown run is added to active, and blocks no other run",
            json!({"jobs": ["@09:50 held"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@09:50", "@10:00 waiting"], "total": 2}),
        ),
        (
            "held: a later active run does not supersede it",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 held", "@09:50 running"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: a later run that has failed leaves it",
            json!({"active": ["@09:40"], "jobs": ["@09:40 held", "@09:50 failed 09:51"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: a later run that is complete supersedes it, and may be deleted",
            json!({"spec": {"successfulJobsHistoryLimit": 0}, "active": ["@09:40", "@09:50"],
                   "jobs": ["@09:40 held", "@09:50 complete 09:51"], "now": "09:55"}),
            json!({"supersede": ["@09:40 by @09:50"], "delete": ["@09:50"], "succeeded": 1}),
        ),
        (
            "held: an earlier run that is complete leaves it",
            json!({"active": ["@09:50"], "jobs": ["@09:40 complete 09:54", "@09:50 held"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: the newest supersedes all others",
            json!({"active": ["@09:30", "@09:40", "@09:50"], "jobs": ["@09:40 held", "@09:30 held", "@09:50 held"], "now": "09:55"}),
            json!({"supersede": ["@09:40 by @09:50", "@09:30 by @09:50"], "activeCount": 0}),
        ),
        (
            "held: one that is being ended is not ended again",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 ending", "@09:50 held"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: one that is being ended supersedes none",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 held", "@09:50 ending"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: one that was approved is not superseded",
            json!({"active": ["@09:40", "@09:50"], "jobs": ["@09:40 approved", "@09:50 held"], "now": "09:55"}),
            json!({}),
        ),
        (
            "held: superseded while the schedule is suspended",
            json!({"spec": {"suspended": true}, "active": ["@09:40"], "jobs": ["@09:40 held", "@09:50 complete 09:51"], "now": "09:55"}),
            json!({"supersede": ["@09:40 by @09:50"]}),
        ),
        (
            "held: a superseded run is no failed one",
            json!({"active": ["@09:40"], "jobs": ["@09:40 superseded 09:51"], "now": "09:55"}),
            json!({"active": [], "failed": 0, "replaced": 1}),
        ),
        // Mistakes.
        (
            "invalid: no slots, no retry",
            json!({"spec": {"interval": "banana"}, "now": "10:00"}),
            json!({"requeue": null, "next": null, "ready": "False InvalidSpec", "stalled": "True InvalidSpec"}),
        ),
        (
            "invalid: a run that ends is counted",
            json!({"spec": {"interval": "banana"}, "active": ["@09:50"], "jobs": ["@09:50 complete 09:59"], "now": "10:00"}),
            json!({"succeeded": 1}),
        ),
        (
            "invalid: reported when first seen",
            json!({"spec": {"interval": "banana"}, "status": "none", "now": "10:00"}),
            json!({"events": ["InvalidSchedule"]}),
        ),
        (
            "mended: no slot of the past",
            json!({"was": "?", "now": "10:05"}),
            json!({"ready": "True Scheduled", "stalled": null, "since": "@10:05"}),
        ),
        (
            "edited: by a controller whose clock is behind",
            json!({"was": "?", "last": "10:00", "now": "09:59:58"}),
            json!({"since": "@10:00", "next": "@10:10"}),
        ),
        // Failures in a row.
        (
            "failures: without a threshold",
            json!({"failures": 99, "active": ["@09:50"], "jobs": ["@09:50 failed 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 100, "stalled": null}),
        ),
        (
            "failures: one less than the threshold",
            json!({"spec": {"failureThreshold": 3}, "failures": 1, "active": ["@09:50"], "jobs": ["@09:50 failed 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 2, "ready": "True Scheduled"}),
        ),
        (
            "failures: the threshold",
            json!({"spec": {"failureThreshold": 3}, "failures": 2, "active": ["@09:50"], "jobs": ["@09:50 failed 09:59"], "now": "10:00"}),
            json!({"events": ["ScheduleStalled"], "failures": 3, "failed": 1, "ready": "False FailureThresholdExceeded", "stalled": "True FailureThresholdExceeded", "next": null, "requeue": null, "skipped": 0}),
        ),
        (
            "failures: an approval that is missing",
            json!({"spec": {"failureThreshold": 3}, "failures": 2, "active": ["@09:50"], "jobs": ["@09:50 unapproved 09:59"], "now": "09:59:30"}),
            json!({"events": ["ScheduleStalled"], "failures": 3}),
        ),
        (
            "failures: two runs that ended since the last look",
            json!({"spec": {"failureThreshold": 2}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 failed 09:59", "@09:50 failed 09:58"], "now": "10:00"}),
            json!({"events": ["ScheduleStalled"], "failures": 2}),
        ),
        (
            "failures: a run that completes resets the count",
            json!({"spec": {"failureThreshold": 3}, "failures": 2, "active": ["@09:50"], "jobs": ["@09:50 complete 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 0}),
        ),
        (
            "failures: before the run that completed",
            json!({"spec": {"failureThreshold": 1}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 complete 09:59", "@09:50 failed 09:58"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 0}),
        ),
        (
            "failures: before the last success, and seen after it",
            json!({"spec": {"failureThreshold": 1}, "success": "09:58", "active": ["@09:40"], "jobs": ["@09:40 failed 09:57"], "now": "09:59"}),
            json!({"failures": 0, "failed": 1}),
        ),
        (
            "failures: after the run that completed",
            json!({"spec": {"failureThreshold": 1}, "active": ["@09:40", "@09:50"], "jobs": ["@09:40 failed 09:59", "@09:50 complete 09:58"], "now": "10:00"}),
            json!({"events": ["ScheduleStalled"], "failures": 1}),
        ),
        (
            "failures: a run that a user ended",
            json!({"spec": {"failureThreshold": 3}, "failures": 2, "active": ["@09:30", "@09:40", "@09:50"], "jobs": ["@09:30 cancelled 09:41", "@09:40 replaced 09:51", "@09:50 superseded 09:59"], "now": "10:00"}),
            json!({"create": ["@10:00"], "failures": 2}),
        ),
        (
            "stalled: no slots, and no further event",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "now": "11:00"}),
            json!({"ready": "False FailureThresholdExceeded", "skipped": 0, "since": "@09:50", "requeue": null}),
        ),
        (
            "stalled: a trigger starts a run",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "trigger": TOKEN, "now": "11:00"}),
            json!({"create": ["@trigger"], "handled": TOKEN, "stalled": "True FailureThresholdExceeded"}),
        ),
        (
            "stalled: the triggered run failed",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "active": ["@trigger"], "jobs": ["@trigger failed 10:59"], "now": "11:00"}),
            json!({"failures": 4, "stalled": "True FailureThresholdExceeded"}),
        ),
        (
            "stalled: the triggered run completed",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "active": ["@trigger"], "jobs": ["@trigger complete 11:04"], "now": "11:05"}),
            json!({"failures": 0, "ready": "True Scheduled", "stalled": null, "since": "@11:05", "next": "@11:10", "skipped": 0}),
        ),
        (
            "stalled: the spec was changed",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "generation": 0, "now": "11:05"}),
            json!({"failures": 0, "ready": "True Scheduled", "stalled": null, "since": "@11:05", "next": "@11:10"}),
        ),
        (
            "stalled: without Redis",
            json!({"spec": {"failureThreshold": 3}, "failures": 3, "wasStalled": true, "redis": false, "now": "11:00"}),
            json!({"ready": "False FailureThresholdExceeded", "reconciling": null}),
        ),
        // Held.
        (
            "held: a run waits for an approval",
            json!({"active": ["@09:50"], "jobs": ["@09:50 held 09:58"], "now": "09:59"}),
            json!({"held": "@09:50 400 guard.maxMissing allows 50"}),
        ),
        (
            "held: the one that was held last",
            json!({"held": "@09:40", "active": ["@09:40", "@09:50"], "jobs": ["@09:40 held 09:58", "@09:50 held 09:59"], "now": "09:59:30"}),
            json!({"supersede": ["@09:40 by @09:50"], "held": "@09:50 400 guard.maxMissing allows 50"}),
        ),
        (
            "held: it continues after an approval",
            json!({"held": "@09:50", "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:59"}),
            json!({"held": null}),
        ),
        (
            "held: not approved",
            json!({"held": "@09:50", "active": ["@09:50"], "jobs": ["@09:50 unapproved 09:58"], "now": "09:59"}),
            json!({"held": null, "failed": 1}),
        ),
        // History.
        (
            "active: created by this controller and gone before its uid was recorded: a user deleted it",
            json!({"active": ["@09:50 waiting"], "made": ["@09:50"], "now": "09:55"}),
            json!({"active": []}),
        ),
        (
            "active: not created by this controller: a crash came between",
            json!({"active": ["@09:50 waiting"], "made": ["@09:40"], "now": "09:55"}),
            json!({"create": ["@09:50"], "active": ["@09:50 waiting"]}),
        ),
        (
            "history: the oldest go",
            json!({"spec": {"successfulJobsHistoryLimit": 1}, "jobs": ["@09:30 complete 09:31", "@09:50 complete 09:51", "@09:40 complete 09:41"], "now": "09:55"}),
            json!({"delete": ["@09:30", "@09:40"]}),
        ),
        (
            "history: failed ones have a limit of their own",
            json!({"spec": {"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 1}, "jobs": ["@09:30 failed 09:31", "@09:40 complete 09:41"], "now": "09:55"}),
            json!({"delete": ["@09:40"]}),
        ),
        (
            "history: nothing is kept, and what runs stays",
            json!({"spec": {"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0}, "active": ["@09:50"], "jobs": ["@09:40 failed 09:41", "@09:50 running"], "now": "09:55"}),
            json!({"delete": ["@09:40"], "active": ["@09:50"]}),
        ),
        (
            "history: counted before it goes",
            json!({"spec": {"successfulJobsHistoryLimit": 0}, "active": ["@09:50"], "jobs": ["@09:50 complete 09:51"], "now": "09:55"}),
            json!({"delete": ["@09:50"], "succeeded": 1}),
        ),
        // The API server refuses the SyncJob.
        (
            "refused: reported, and tried again",
            json!({"refused": "create", "active": ["@09:50 waiting"], "now": "09:55"}),
            json!({"create": ["@09:50"], "ready": "False CreateFailed", "reconciling": "True CreateFailed", "requeue": 300}),
        ),
        (
            "refused: reported also after a restart",
            json!({"wasRefused": true, "active": ["@09:50 waiting"], "now": "09:55"}),
            json!({"create": ["@09:50"], "ready": "False CreateFailed"}),
        ),
        (
            "refused: made at last",
            json!({"wasRefused": true, "active": ["@09:50 waiting"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"ready": "True Scheduled", "reconciling": null}),
        ),
        (
            "refused: the next slot takes its place",
            json!({"refused": "create", "active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@10:00"], "events": ["RunSkipped"], "skip": "@09:50 CreateFailed", "counted": {"CreateFailed": 1}, "total": 1, "active": ["@10:00 waiting"], "ready": "False CreateFailed"}),
        ),
        (
            "refused: within the deadline",
            json!({"refused": "create", "spec": {"startingDeadline": "3m"}, "active": ["@09:50 waiting"], "now": "09:52"}),
            json!({"create": ["@09:50"], "requeue": 60}),
        ),
        (
            "refused: at the deadline",
            json!({"refused": "create", "spec": {"startingDeadline": "3m"}, "active": ["@09:50 waiting"], "now": "09:53"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 CreateFailed", "active": [], "total": 0, "ready": "False CreateFailed"}),
        ),
        (
            "refused: a deadline longer than the interval",
            json!({"refused": "create", "spec": {"startingDeadline": "1h"}, "active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@09:50"], "events": ["RunSkipped"], "skip": "@10:00 CreateFailed"}),
        ),
        (
            "refused: Replace",
            json!({"refused": "create", "spec": {"concurrencyPolicy": "Replace"}, "active": ["@09:50 waiting"], "now": "10:00"}),
            json!({"create": ["@10:00"], "events": ["RunSkipped"], "skip": "@09:50 CreateFailed"}),
        ),
        (
            "refused: suspended meanwhile",
            json!({"refused": "create", "spec": {"suspended": true}, "active": ["@09:50 waiting"], "now": "09:55"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 Suspended", "ready": "True Scheduled"}),
        ),
        (
            "another request fails",
            json!({"refused": "other", "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"ready": "False ReconciliationFailed", "reconciling": "True ReconciliationFailed"}),
        ),
        (
            "another request fails: slots are run",
            json!({"refused": "other", "now": "10:00"}),
            json!({"create": ["@10:00"], "ready": "False ReconciliationFailed"}),
        ),
        (
            "not allowed: no slots, and one event",
            json!({"not allowed": "why", "now": "10:00"}),
            json!({"requeue": null, "next": null, "ready": "False NotAllowed", "stalled": "True NotAllowed", "events": ["NotAllowed"]}),
        ),
        (
            "not allowed: a waiting entry is skipped, and a run that ends is counted",
            json!({"not allowed": "why", "active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 complete 09:59"], "now": "10:00"}),
            json!({"events": ["RunSkipped", "NotAllowed"], "skip": "@09:50 NotAllowed", "succeeded": 1, "active": []}),
        ),
        // Entries that wait for their SyncJob.
        (
            "waiting: suspended, and nothing is cancelled",
            json!({"spec": {"concurrencyPolicy": "Replace", "suspended": true}, "active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 running"], "now": "09:55"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 Suspended", "counted": {"Suspended": 1}, "active": ["@09:40"], "total": 1}),
        ),
        (
            "waiting: suspended, and triggered",
            json!({"spec": {"suspended": true}, "active": ["@trigger waiting"], "now": "09:56"}),
            json!({"create": ["@trigger"], "skipped": 0}),
        ),
        (
            "waiting: the spec got a mistake, and nothing is cancelled",
            json!({"spec": {"concurrencyPolicy": "Replace", "schedule": "0 0 31 2 *"}, "active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 running"], "now": "09:55"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 InvalidSpec", "active": ["@09:40"], "ready": "False InvalidSpec"}),
        ),
        (
            "waiting: later than the deadline",
            json!({"spec": {"concurrencyPolicy": "Replace", "startingDeadline": "4m"}, "active": ["@09:40", "@09:50 waiting"], "jobs": ["@09:40 cancelling"], "now": "09:55"}),
            json!({"events": ["RunSkipped"], "skip": "@09:50 Deadline", "active": ["@09:40"]}),
        ),
        (
            "terminating: it is as one that is gone",
            json!({"active": ["@09:50"], "jobs": ["@09:50 terminating"], "now": "10:00"}),
            json!({"create": ["@10:00"], "active": ["@10:00 waiting"]}),
        ),
        // maxActive.
        (
            "Allow: fewer than the bound",
            json!({"spec": {"concurrencyPolicy": "Allow", "maxActive": 3}, "active": ["@09:30", "@09:40"], "jobs": ["@09:30 running", "@09:40 running"], "now": "10:00"}),
            json!({"create": ["@10:00"], "activeCount": 3}),
        ),
        (
            "Allow: as many as the bound",
            json!({"spec": {"concurrencyPolicy": "Allow", "maxActive": 2}, "active": ["@09:30", "@09:40"], "jobs": ["@09:30 running", "@09:40 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 MaxActive", "counted": {"MaxActive": 1}, "activeCount": 2}),
        ),
        (
            "Allow: held runs do not count",
            json!({"spec": {"concurrencyPolicy": "Allow", "maxActive": 1}, "active": ["@09:40"], "jobs": ["@09:40 held"], "now": "10:00"}),
            json!({"create": ["@10:00"]}),
        ),
        (
            "Allow: a trigger waits at the bound",
            json!({"spec": {"concurrencyPolicy": "Allow", "maxActive": 1}, "trigger": TOKEN, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "09:55"}),
            json!({"handled": null, "ready": "True Scheduled"}),
        ),
        (
            "Forbid: the bound is of no use",
            json!({"spec": {"maxActive": 2}, "active": ["@09:50"], "jobs": ["@09:50 running"], "now": "10:00"}),
            json!({"events": ["RunSkipped"], "skip": "@10:00 Active"}),
        ),
        // Redis is unavailable.
        (
            "no Redis: SyncJobs are created",
            json!({"redis": false, "now": "10:00"}),
            json!({"create": ["@10:00"], "ready": "False QueueUnavailable", "reconciling": "True QueueUnavailable"}),
        ),
        (
            "no Redis: suspended",
            json!({"spec": {"suspended": true}, "redis": false, "now": "10:00"}),
            json!({"ready": "False QueueUnavailable", "suspended": "True Suspended"}),
        ),
    ];
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
