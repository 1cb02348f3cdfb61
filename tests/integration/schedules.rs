//! SyncSchedules: concurrency, triggers, cron, edits, mistakes, and clocks that are set. The tests of the decision
//! alone are the tables in `src/domain/schedule/tests`.

use std::{collections::HashSet, fs, path::Path, process::Command, time::Duration};

use bson::doc;
use k8s_openapi::jiff::{Timestamp, ToSpan};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, SyncScheduleStatus, syncjob::SyncMode},
    domain::{
        conditions::{find, is_true},
        job::{is_complete, is_finished},
    },
};
use tokio::time::sleep;

use crate::support::{
    Servers, TestEnv, apply_job, apply_once, apply_schedule, events, eventually, finished, get, quiet_interval, reason,
    slow, wait_for_events,
};

const USERS: i32 = 20_000;

async fn jobs(env: &TestEnv) -> Vec<SyncJob> {
    let mut jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
    jobs.sort_by_key(ResourceExt::creation_timestamp);
    jobs
}

async fn status(env: &TestEnv, name: &str) -> Option<SyncScheduleStatus> {
    env.schedules().get(name).await.ok()?.status
}

async fn until<T>(env: &TestEnv, what: &str, found: impl Fn(&SyncScheduleStatus) -> Option<T>) -> T {
    eventually(what, async || found(&status(env, "users").await?)).await
}

/// Waits until a run is active and its SyncJob exists.
async fn wait_for_active_run(env: &TestEnv) -> SyncJob {
    let name = until(env, "a run is active", |status| Some(status.active.first()?.name.clone())).await;
    eventually("the SyncJob is created", async || env.jobs().get(&name).await.ok()).await
}

#[tokio::test]
async fn allow_runs_slots_concurrently() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    let spec = json!({"interval": "1s", "concurrencyPolicy": "Allow", "jobTemplate": {"spec": slow()}});
    apply_schedule(&env, "users", spec).await;
    until(&env, "two concurrent runs", |status| (status.active.len() >= 2).then_some(())).await;
    assert_eq!(status(&env, "users").await.unwrap().last_skip, None);
}

#[tokio::test]
async fn forbid_skips_slots_during_a_run_and_sends_an_event() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_schedule(&env, "users", json!({"interval": "1s", "jobTemplate": {"spec": slow()}})).await;
    until(&env, "slots were skipped", |status| (status.runs.skipped >= 2).then_some(())).await;
    let status = status(&env, "users").await.unwrap();
    assert_eq!((status.active.len(), status.last_skip.unwrap().reason.as_str()), (1, "Active"));
    assert_eq!(jobs(&env).await.len(), 1);
    wait_for_events(&env, "users", &["RunSkipped"]).await;
}

#[tokio::test]
async fn replace_cancels_the_active_run_and_starts_after_its_end() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    let spec = json!({"interval": "4s", "concurrencyPolicy": "Replace", "jobTemplate": {"spec": slow()}});
    apply_schedule(&env, "users", spec).await;
    until(&env, "two runs were replaced", |status| (status.runs.replaced >= 2).then_some(())).await;
    env.patch_schedule("users", json!({"spec": {"suspended": true}})).await;
    let status = status(&env, "users").await.unwrap();
    assert_eq!((status.runs.failed, status.failure_history.len()), (0, 0), "a replaced run did not fail");
    let jobs = jobs(&env).await;
    for pair in jobs.windows(2).filter(|pair| is_finished(&pair[0])) {
        let earlier = pair[0].status.as_ref().unwrap();
        assert_eq!(reason(&pair[0], "Failed").as_deref(), Some("Replaced"));
        assert_eq!(pair[0].annotations()["sync.codex.dev/replaced-by"], pair[1].name_any());
        if let Some(start) = pair[1].status.as_ref().and_then(|status| status.start_time.clone()) {
            // The end time has whole seconds.
            let ended = earlier.completion_time.as_ref().unwrap().0;
            assert!(start.0 >= ended, "{} started at {} and ended at {ended}", pair[1].name_any(), start.0);
        }
    }
    wait_for_events(&env, "users", &["RunReplaced"]).await;
}

#[tokio::test]
async fn a_trigger_runs_once_for_each_token_also_while_suspended() {
    let env = TestEnv::new().await;
    env.seed(100, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_schedule(&env, "users", json!({"interval": quiet_interval(60), "suspended": true})).await;
    until(&env, "the schedule is suspended", |status| is_true(&status.conditions, "Suspended").then_some(())).await;

    env.trigger("users", "first").await;
    until(&env, "the first run succeeded", |status| (status.runs.succeeded == 1).then_some(())).await;
    env.trigger("users", "second:Full").await;
    until(&env, "the second run succeeded", |status| (status.runs.succeeded == 2).then_some(())).await;
    env.patch_schedule("users", json!({"metadata": {"labels": {"touched": "yes"}}})).await;
    env.trigger("users", "first").await;
    until(&env, "the old token was seen", |status| {
        (status.last_handled_trigger.as_deref() == Some("first")).then_some(())
    })
    .await;
    let jobs = jobs(&env).await;
    let modes: Vec<_> = jobs.iter().map(|job| (job.spec.sync_type, is_complete(job))).collect();
    assert_eq!(modes, [(SyncMode::Incremental, true), (SyncMode::Full, true)]);
    let tokens: Vec<_> = jobs.iter().map(|job| job.annotations()["sync.codex.dev/trigger"].as_str()).collect();
    assert_eq!(tokens, ["first", "second:Full"]);
    assert_eq!(status(&env, "users").await.unwrap().runs.total, 2);
}

#[tokio::test]
async fn a_trigger_waits_for_the_active_run_and_is_not_lost() {
    let env = TestEnv::new().await;
    env.seed(2_000, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_once(&env, "users", slow()).await;
    until(&env, "the first run is active", |status| (status.active.len() == 1).then_some(())).await;
    env.trigger("users", "now").await;
    until(&env, "both runs succeeded", |status| (status.runs.succeeded == 2).then_some(())).await;
    let jobs = jobs(&env).await;
    let first_end = jobs[0].status.as_ref().unwrap().completion_time.clone().unwrap();
    assert!(jobs[1].creation_timestamp().unwrap().0 >= first_end.0);
}

#[tokio::test]
async fn a_cron_schedule_runs_at_full_minutes_of_its_time_zone() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, port) = env.all(&[]);
    apply_schedule(&env, "users", json!({"schedule": "* * * * *", "timeZone": "Asia/Kathmandu"})).await;
    let next = until(&env, "the schedule has a next slot", |status| status.next_schedule_time.clone()).await;
    assert!(next.0 <= Timestamp::now() + 60.seconds() && next.0.as_second() % 60 == 0);
    until(&env, "a run succeeded", |status| (status.runs.succeeded == 1).then_some(())).await;
    let status = status(&env, "users").await.unwrap();
    assert_eq!(status.schedule.as_deref(), Some("* * * * * Asia/Kathmandu"));
    assert_eq!(status.last_schedule_time, Some(next.clone()));
    assert_eq!(jobs(&env).await[0].name_any(), format!("users-{}", next.0.as_second()));
    let body: Value = serde_json::from_str(&get(port, "/jobs/status").await.unwrap().1).unwrap();
    let shown = (&body["repeatable"][0]["cron"], &body["repeatable"][0]["tz"]);
    assert_eq!(shown, (&json!("* * * * *"), &json!("Asia/Kathmandu")));
}

#[tokio::test]
async fn a_changed_schedule_starts_no_slot_of_the_past() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_schedule(&env, "users", json!({"interval": quiet_interval(60)})).await;
    until(&env, "the schedule has a next slot", |status| status.next_schedule_time.clone()).await;
    sleep(Duration::from_secs(3)).await;
    let changed = Timestamp::now().as_second();
    env.patch_schedule("users", json!({"spec": {"interval": "2s"}})).await;
    until(&env, "a run succeeded", |status| (status.runs.succeeded >= 1).then_some(())).await;
    for job in jobs(&env).await {
        let slot: i64 = job.name_any().rsplit('-').next().unwrap().parse().unwrap();
        assert!(slot >= changed, "{slot} was before {changed}");
    }
    assert_eq!(status(&env, "users").await.unwrap().runs.skipped, 0);
}

#[tokio::test]
async fn a_mistake_stalls_the_schedule_until_it_is_corrected() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&[]);
    for (mistake, named) in [
        (json!({"schedule": "61 * * * *"}), "schedule"),
        (json!({"schedule": "0 0 30 2 *"}), "never fires"),
        (json!({"schedule": "* * * * *", "timeZone": "Mars/Olympus"}), "timeZone"),
    ] {
        apply_schedule(&env, "users", mistake).await;
        let status =
            until(&env, "it is stalled", |status| is_true(&status.conditions, "Stalled").then(|| status.clone())).await;
        let ready = find(&status.conditions, "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "InvalidSpec"));
        assert_eq!((status.observed_generation, &status.next_schedule_time), (Some(1), &None));
        let message = &find(&status.conditions, "Stalled").unwrap().message;
        assert!(message.contains(named), "{message}");
        let before = env.schedules().get("users").await.unwrap().resource_version();
        sleep(Duration::from_millis(300)).await;
        assert_eq!(env.schedules().get("users").await.unwrap().resource_version(), before, "it does not change");
        env.patch_schedule("users", json!({"spec": {"schedule": null, "timeZone": null, "interval": "1s"}})).await;
        until(&env, "it runs", |status| {
            (is_true(&status.conditions, "Ready") && status.runs.succeeded > 0).then_some(())
        })
        .await;
        wait_for_events(&env, "users", &["InvalidSchedule"]).await;
        env.schedules().delete("users", &DeleteParams::default()).await.unwrap();
        eventually("it is gone", async || env.schedules().get_opt("users").await.unwrap().is_none().then_some(()))
            .await;
    }
}

#[tokio::test]
async fn consecutive_failures_stall_a_schedule_until_it_is_edited() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&[]);
    let template = |filter: Value| json!({"spec": {"target": {"filter": filter}}});
    let broken = template(json!({"age": {"$bigger": 3}}));
    apply_schedule(&env, "users", json!({"interval": "1s", "failureThreshold": 2, "jobTemplate": broken})).await;
    let stalled = |failures| {
        move |status: &SyncScheduleStatus| {
            (is_true(&status.conditions, "Stalled") && status.consecutive_failures == failures).then(|| status.clone())
        }
    };
    let status = until(&env, "the schedule is stalled", stalled(2)).await;
    let condition = find(&status.conditions, "Stalled").unwrap();
    assert_eq!(condition.reason, "FailureThresholdExceeded");
    assert!(condition.message.contains("InvalidTarget"), "{}", condition.message);
    assert!(!is_true(&status.conditions, "Ready") && status.next_schedule_time.is_none());

    env.trigger("users", "again").await;
    until(&env, "the triggered run failed, too", stalled(3)).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(jobs(&env).await.len(), 3, "no slot was started");
    assert_eq!(env.schedules().get("users").await.unwrap().metadata.generation, Some(1), "the spec is the same");
    wait_for_events(&env, "users", &["ScheduleStalled"]).await;
    let of_reason = |event: &k8s_openapi::api::events::v1::Event| event.reason.as_deref() == Some("ScheduleStalled");
    assert_eq!(events(&env).await.iter().filter(|event| of_reason(event)).count(), 1);

    env.patch_schedule("users", json!({"spec": {"jobTemplate": {"spec": {"target": {"filter": null}}}}})).await;
    until(&env, "it runs", |status| {
        let is_well = is_true(&status.conditions, "Ready") && !is_true(&status.conditions, "Stalled");
        (is_well && status.runs.succeeded > 0 && status.consecutive_failures == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_sources_of_one_field_are_reported() {
    let env = TestEnv::new().await;
    let (_operator, _) = env.all(&[]);
    let schedule = |fields: &[&str]| {
        let mapping: Vec<_> = fields.iter().map(|field| json!({"from": "/name", "to": field})).collect();
        let rest = json!({"endpoint": "https://api.example.com/users?ids={ids}"});
        let spec = json!({"source": {"rest": rest}, "mapping": mapping});
        json!({"interval": quiet_interval(60), "jobTemplate": {"spec": spec}})
    };
    let conflict = async |name: &str| {
        let status = status(&env, name).await.filter(|status| is_true(&status.conditions, "Ready"))?;
        Some(find(&status.conditions, "FieldConflict").map(|condition| condition.message.clone()).unwrap_or_default())
    };
    let message = async |name: &str, end: &str| {
        eventually(&format!("{name} ends with {end:?}"), async || {
            conflict(name).await.filter(|message| message.ends_with(end) && message.is_empty() == end.is_empty())
        })
        .await
    };
    apply_schedule(&env, "users", schedule(&["name", "city"])).await;
    message("users", "").await;
    apply_schedule(&env, "hr", schedule(&["name.first", "salary"])).await;
    let namespace = &env.name;
    message("users", &format!("values: name (SyncSchedule {namespace}/hr)")).await;
    message("hr", &format!("values: name.first (SyncSchedule {namespace}/users)")).await;
    env.patch_schedule("users", json!({"spec": schedule(&["city"])})).await;
    message("hr", "").await;
    message("users", "").await;
}

#[tokio::test]
async fn a_deleted_run_is_removed_from_active_and_the_next_slot_runs() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    let spec = json!({"interval": "1s", "jobTemplate": {"spec": slow()}});
    apply_schedule(&env, "users", spec).await;
    let name = wait_for_active_run(&env).await.name_any();
    env.jobs().delete(&name, &DeleteParams::default()).await.unwrap();
    until(&env, "another run is active", |status| status.active.first().filter(|run| run.name != name).map(|_| ()))
        .await;
}

#[tokio::test]
async fn a_run_deleted_right_after_it_was_made_is_not_made_again() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_once(&env, "users", slow()).await;
    let job = eventually("a SyncJob is created", async || jobs(&env).await.pop()).await;
    let created = job.creation_timestamp().unwrap().0;
    env.jobs().delete(&job.name_any(), &DeleteParams::default()).await.unwrap();
    assert!(Timestamp::now() < created + 2.seconds(), "the machine is too slow to show it");
    let runs = until(&env, "no run is active", |status| status.active.is_empty().then_some(status.runs)).await;
    assert_eq!((runs.total, runs.succeeded, runs.failed), (1, 0, 0));
    assert!(jobs(&env).await.is_empty());
}

#[tokio::test]
async fn a_run_that_is_missing_in_active_is_added_again() {
    let env = TestEnv::new().await;
    env.seed(USERS, 0).await;
    let (_operator, _) = env.all(&[]);
    apply_once(&env, "users", slow()).await;
    let run = wait_for_active_run(&env).await;
    // A restore from a backup has no status.
    env.patch_schedule_status("users", Value::Null).await;
    let found = until(&env, "the run is active", |status| status.active.first().cloned()).await;
    assert_eq!((found.name, found.uid), (run.name_any(), run.uid()));
}

#[tokio::test]
async fn a_slot_is_skipped_when_a_foreign_job_has_its_name() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    apply_once(&env, "users", json!({})).await;
    let created = env.schedules().get("users").await.unwrap().creation_timestamp().unwrap();
    let name = format!("users-{}", created.0.as_second());
    apply_job(&env, &name, json!({"priority": 7})).await;
    let (_operator, _) = env.all(&[]);
    let skip = until(&env, "the slot was skipped", |status| status.last_skip.clone()).await;
    assert_eq!(skip.reason, "NameCollision");
    finished(&env, &name).await;
    let status = status(&env, "users").await.unwrap();
    assert_eq!((status.runs.total, status.runs.skipped, status.active.len()), (0, 1, 0));
    assert_eq!(env.jobs().get(&name).await.unwrap().spec.priority, 7);
    wait_for_events(&env, "users", &["NameCollision"]).await;
}

/// An interval whose newest slot is 1 to 60 minutes ago.
fn missed() -> String {
    let now = Timestamp::now().as_second() / 60;
    let minutes = (62..1000).find(|minutes| (1..60).contains(&(now % minutes))).unwrap();
    format!("{minutes}m")
}

#[tokio::test]
async fn the_starting_deadline_decides_about_a_slot_that_was_missed() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let before = Timestamp::now() - 3.hours();
    for (name, deadline) in [("short", "30s"), ("long", "61m")] {
        let interval = missed();
        apply_schedule(&env, name, json!({"interval": interval, "startingDeadline": deadline})).await;
        // The status of a schedule whose controller was stopped three hours ago.
        let left = json!({"slotsSince": before, "schedule": interval, "runs": {}});
        env.patch_schedule_status(name, left).await;
    }
    let (_operator, _) = env.all(&[]);
    let long = eventually("the late slot was run", async || {
        status(&env, "long").await.filter(|status| status.runs.succeeded == 1)
    })
    .await;
    let short = eventually("the late slot was skipped", async || {
        status(&env, "short").await.filter(|status| status.runs.skipped >= 2)
    })
    .await;
    assert_eq!((long.runs.total, long.last_skip.unwrap().reason.as_str()), (1, "CatchUp"), "older slots");
    assert_eq!((short.runs.total, short.last_skip.unwrap().reason.as_str()), (0, "Deadline"));
    assert_eq!(short.runs.skipped, long.runs.skipped + 1);
    wait_for_events(&env, "short", &["RunSkipped"]).await;
    let names: Vec<_> = jobs(&env).await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, [format!("long-{}", long.last_schedule_time.unwrap().0.as_second())]);
}

#[tokio::test]
async fn failed_runs_are_kept_up_to_their_limit_and_counted_beyond_it() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (_operator, _) = env.all(&[]);
    let template = json!({"spec": {"target": {"database": "not-allowed"}}});
    apply_schedule(&env, "users", json!({"interval": "1s", "failedJobsHistoryLimit": 2, "jobTemplate": template}))
        .await;
    until(&env, "four runs failed", |status| (status.runs.failed >= 4).then_some(())).await;
    env.patch_schedule("users", json!({"spec": {"suspended": true}})).await;
    eventually("two runs are kept", async || {
        let idle = status(&env, "users").await?.active.is_empty();
        (idle && jobs(&env).await.len() == 2).then_some(())
    })
    .await;
    let status = status(&env, "users").await.unwrap();
    assert_eq!((status.runs.succeeded, status.runs.failed), (0, status.runs.total));
    assert_eq!(status.failure_history.len() as i64, status.runs.failed.min(20));
    assert!(status.failure_history.iter().all(|failure| failure.reason == "InvalidTarget"));
    let newest: Vec<_> = status.failure_history[..2].iter().map(|failure| failure.job.clone()).collect();
    let kept: HashSet<_> = jobs(&env).await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(kept, newest.into_iter().collect());
}

/// Runs a program on the cluster and the namespace of the test. Returns whether it succeeded, and its output.
async fn run(env: &TestEnv, program: &str, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(["--kubeconfig", &env.servers.kubeconfig, "--namespace", &env.name]).args(args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn kubectl_waits_for_a_schedule() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    for (name, spec) in [
        ("good", json!({"interval": quiet_interval(60)})),
        ("suspended", json!({"interval": quiet_interval(60), "suspended": true})),
        ("bad", json!({"schedule": "61 * * * *"})),
    ] {
        apply_schedule(&env, name, spec).await;
    }
    let wait = async |what: &str, name: &str, limit: &str| {
        let (what, object) = (format!("--for=condition={what}"), format!("syncschedule/{name}"));
        run(&env, "kubectl", &["wait", &what, &object, "--timeout", limit]).await
    };
    let (ready, output) = wait("Ready", "good", "1s").await;
    assert!(!ready, "no operator reconciled it: {output}");
    // Without this condition, kstatus would consider it ready.
    let unseen = status(&env, "good").await.unwrap();
    assert_eq!(find(&unseen.conditions, "Ready").map(|ready| ready.status.as_str()), Some("Unknown"));
    let (_operator, _) = env.all(&[]);
    for (what, name) in [("Ready", "good"), ("Ready", "suspended"), ("Suspended", "suspended"), ("Stalled", "bad")] {
        let (holds, output) = wait(what, name, "60s").await;
        assert!(holds, "{what} {name}: {output}");
    }
    let (ready, output) = wait("Ready", "bad", "1s").await;
    assert!(!ready, "{output}");
}

/// Kubernetes has a similar test, which restarts the CronJob controller at random.
#[tokio::test]
async fn controllers_stopped_at_random_run_a_slot_at_most_once() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let spec = json!({"interval": "1s", "concurrencyPolicy": "Allow", "successfulJobsHistoryLimit": 1000});
    let schedule = apply_schedule(&env, "users", spec).await;
    for life in 0..5 {
        let before = status(&env, "users").await.map_or(0, |status| status.runs.total);
        let mut operator = env.operator("controller", &[]);
        until(&env, "the controllers create runs", |status| (status.runs.total > before).then_some(())).await;
        sleep(Duration::from_millis(rand::random_range(0..1500))).await;
        if life % 2 == 0 {
            operator.kill();
        } else {
            operator.stop_and_wait().await;
        }
    }
    let _operator = env.operator("controller", &[]);
    env.patch_schedule("users", json!({"spec": {"suspended": true}})).await;
    let status = until(&env, "all runs have ended", |status| {
        (status.active.is_empty() && status.next_schedule_time.is_none()).then(|| status.clone())
    })
    .await;
    let created = schedule.creation_timestamp().unwrap().0.as_second();
    let passed = status.slots_since.unwrap().0.as_second() - created;
    assert_eq!(status.runs.total + status.runs.skipped, passed, "{:?}", status.runs);
    assert_eq!((status.runs.succeeded, status.runs.failed), (status.runs.total, 0));
    assert_eq!(jobs(&env).await.len() as i64, status.runs.total, "a SyncJob for each");
}

/// Scenario 17 of the fault list: the clock of the controller's machine is set.
#[tokio::test]
async fn a_clock_that_is_set_starts_no_slot_twice_and_no_burst() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let offset = std::env::temp_dir().join(format!("{}.clock", env.name));
    let set = |to: &str| {
        fs::write(offset.with_extension("new"), to).unwrap();
        fs::rename(offset.with_extension("new"), &offset).unwrap();
    };
    set("+0");
    let operator = env.operator_with_clock(&Servers::shared(), "controller", &[], &offset);
    let interval = quiet_interval(15);
    apply_schedule(&env, "users", json!({"interval": interval, "immediate": true})).await;
    until(&env, "the first run succeeded", |status| (status.runs.succeeded == 1).then_some(())).await;

    // The clock of the API server is right, so the clock of the controller is ignored.
    for (steps, to, token) in [(1, "+86400", "a day ahead"), (2, "+0", "right")] {
        set(to);
        eventually("the change of the clock was noticed", async || {
            (operator.log().matches("the clock was set").count() >= steps).then_some(())
        })
        .await;
        env.trigger("users", token).await;
        let done = 1 + steps as i64;
        until(&env, "the triggered run succeeded", |status| (status.runs.succeeded == done).then_some(())).await;
        let status = status(&env, "users").await.unwrap();
        assert_eq!((status.runs.total, status.runs.skipped, jobs(&env).await.len() as i64), (done, 0, done));
        let next = status.next_schedule_time.unwrap().0;
        assert!(next > Timestamp::now() && next < Timestamp::now() + 60.minutes(), "{token}: {next}");
    }
    fs::remove_file(Path::new(&offset)).ok();
}

/// The status of a schedule has times of a controller whose clock was a year ahead.
#[tokio::test]
async fn slots_continue_after_a_clock_that_was_ahead() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    apply_schedule(&env, "users", json!({"interval": "2s"})).await;
    let ahead = (Timestamp::now() + 8760.hours()).to_string();
    let last = json!({"job": "users-0", "time": ahead, "processed": 1, "failed": 0, "recoveries": 0});
    let left_behind = json!({"slotsSince": ahead, "lastSuccessfulTime": ahead, "lastResult": last});
    env.patch_schedule_status("users", left_behind).await;
    let _operator = env.operator("controller", &[]);
    until(&env, "two slots were run", |status| (status.runs.succeeded >= 2).then_some(())).await;
    let after = Timestamp::now() + 1.minutes();
    let status = status(&env, "users").await.unwrap();
    for time in
        [status.slots_since.unwrap().0, status.last_successful_time.unwrap().0, status.last_result.unwrap().time.0]
    {
        assert!(time < after, "{time}");
    }
    wait_for_events(&env, "users", &["ClockSkew"]).await;
}

/// Documents have stamps of a Redis whose clock was ahead, or of an application that stores local times.
#[tokio::test]
async fn stamps_in_the_future_are_replaced_or_reported() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let users = env.database.collection::<bson::Document>("users");
    let later = |minutes: i64| bson::DateTime::from_millis(Timestamp::now().as_millisecond() + minutes * 60_000);
    for (ids, minutes) in [(doc! {"$lt": 5}, 24 * 60), (doc! {"$gte": 5}, 30)] {
        users.update_many(doc! {"_id": ids}, doc! {"$set": {"lastSynced": later(minutes)}}).await.unwrap();
    }
    let _operator = env.operator("controller", &[]);
    apply_job(&env, "users", json!({"syncType": "Full"})).await;
    let status = finished(&env, "users").await.status.unwrap();
    let counts = status.counts.unwrap();
    assert_eq!((counts.updated, counts.unchanged), (5, 5));
    assert!(find(&status.conditions, "Complete").unwrap().message.contains("stamps are in the future"), "{status:?}");
    assert_eq!(env.count(doc! {"lastSynced": {"$gt": later(60)}}).await, 0);
    wait_for_events(&env, "users", &["StampsAhead"]).await;
}
