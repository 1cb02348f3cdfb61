mod table;

use super::*;
use crate::{
    api::{
        APPROVE_ANNOTATION, GoDuration, STARTING_DEADLINE_ANNOTATION, SyncJobStatus, SyncScheduleSpec,
        conditions::COMPLETE, syncschedule::RunCounters,
    },
    fixtures::at,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const CREATED: i64 = 1_000_005;

fn schedule(spec: Value) -> SyncSchedule {
    let spec: SyncScheduleSpec = serde_json::from_value(spec).unwrap();
    let mut schedule = SyncSchedule::new("user-sync", spec);
    schedule.metadata.uid = Some("0d9b8f2e-0000-4000-8000-000000000001".into());
    schedule.metadata.generation = Some(1);
    schedule.metadata.creation_timestamp = Some(Time(at(CREATED)));
    schedule
}

/// A controller whose writes all succeed, driven by a clock of the test's own.
struct World {
    schedule: SyncSchedule,
    last_trigger: Option<String>,
    jobs: Vec<Arc<SyncJob>>,
    /// SyncJobs that the controller remembers to have created.
    made: Vec<String>,
    events: Vec<ObjectEvent>,
}

impl World {
    fn new(spec: Value) -> Self {
        Self { schedule: schedule(spec), last_trigger: None, jobs: Vec::new(), made: Vec::new(), events: Vec::new() }
    }

    fn decide(&self, now: i64) -> SchedulePlan {
        decide(
            &ObservedSchedule {
                schedule: &self.schedule,
                jobs: &self.jobs,
                made: &self.made,
                queue_available: true,
                queue_owner: None,
                clock_skew: None,
                conflicts: &[],
                not_allowed: None,
                failure: None,
            },
            at(now),
        )
    }

    fn pass(&mut self, now: i64) -> SchedulePlan {
        let plan = self.decide(now);
        self.schedule.status = Some(plan.status.clone());
        for run in &plan.create {
            let mut job = SyncJob::new(&run.name, crate::api::SyncJobSpec::default());
            job.metadata.uid = Some(format!("uid-{}", run.name));
            self.jobs.push(Arc::new(job));
            self.made.push(run.name.clone());
        }
        self.jobs.retain(|job| !plan.delete.contains(&job.name_any()));
        for job in self.jobs.iter_mut().filter(|job| plan.cancel.contains(&job.name_any())) {
            Arc::make_mut(job).spec.cancelled = true;
        }
        self.events.extend(plan.events.clone());
        plan
    }

    fn end(&mut self, name: &str, condition: &str, now: i64) {
        for job in &mut self.jobs {
            if job.name_any() == name {
                let mut status = SyncJobStatus { completion_time: Some(Time(at(now))), ..SyncJobStatus::default() };
                conditions::set(&mut status.conditions, condition, true, "Why", "because", Some(1), at(now));
                Arc::make_mut(job).status = Some(status);
            }
        }
    }

    fn status(&self) -> &SyncScheduleStatus {
        self.schedule.status.as_ref().unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.jobs.iter().map(|job| job.name_any()).collect()
    }
}

#[test]
fn the_first_run_waits_for_the_first_slot_after_creation() {
    let mut world = World::new(json!({"interval": "10s"}));
    let plan = world.pass(CREATED + 1);
    assert!(plan.create.is_empty());
    assert_eq!(plan.status.next_schedule_time, Some(Time(at(1_000_010))));
    assert_eq!(plan.requeue, Some(Duration::from_secs(4)));
    assert_eq!(world.pass(1_000_010).create.len(), 1);
    assert_eq!(world.names(), ["user-sync-1000010"]);
    assert!(world.pass(1_000_011).create.is_empty(), "a slot is started once");
}

#[test]
fn immediate_runs_once_at_creation() {
    let mut world = World::new(json!({"interval": "20m", "immediate": true}));
    world.pass(CREATED + 1);
    assert_eq!(world.names(), ["user-sync-1000005"]);
    world.end("user-sync-1000005", COMPLETE, CREATED + 2);
    for now in CREATED + 3..CREATED + 20 {
        world.pass(now);
    }
    assert_eq!(world.names().len(), 1);
    assert_eq!(world.status().runs.succeeded, 1);
}

#[test]
fn a_run_is_counted_once_in_many_reconciliations() {
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(CREATED);
    world.pass(1_000_010);
    world.pass(1_000_011);
    assert_eq!(world.status().active[0].uid.as_deref(), Some("uid-user-sync-1000010"));
    world.end("user-sync-1000010", FAILED, 1_000_012);
    world.pass(1_000_012);
    world.pass(1_000_013);
    let status = world.status();
    assert_eq!((status.runs.total, status.runs.failed, status.active.len()), (1, 1, 0));
    assert_eq!(status.failure_history.len(), 1);
    assert_eq!(status.failure_history[0].reason, "Why");
}

#[test]
fn a_crash_after_the_intent_was_written_creates_the_job_later() {
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(CREATED);
    world.pass(1_000_010);
    world.jobs.clear();
    world.made.clear();
    let plan = world.pass(1_000_012);
    assert_eq!(plan.create.len(), 1);
    assert_eq!((plan.create[0].name.as_str(), plan.status.runs.total), ("user-sync-1000010", 1));
}

#[test]
fn a_job_that_a_user_deleted_is_not_created_again() {
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(CREATED);
    world.pass(1_000_010);
    world.pass(1_000_011);
    world.jobs.clear();
    let plan = world.pass(1_000_012);
    assert!(plan.create.is_empty() && plan.status.active.is_empty());
}

#[test]
fn forbid_skips_the_slot_and_says_so() {
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(CREATED);
    world.pass(1_000_010);
    world.pass(1_000_020);
    assert_eq!(world.names().len(), 1);
    let status = world.status();
    assert_eq!(status.runs.skipped, 1);
    assert_eq!(status.last_skip, Some(Skip { time: Time(at(1_000_020)), reason: "Active".into() }));
    assert_eq!(world.events.last().unwrap().reason, "RunSkipped");
    world.end("user-sync-1000010", COMPLETE, 1_000_021);
    world.pass(1_000_022);
    assert_eq!(world.names().len(), 1, "a skipped slot is not run later");
}

#[test]
fn allow_runs_both() {
    let mut world = World::new(json!({"interval": "10s", "concurrencyPolicy": "Allow"}));
    world.pass(CREATED);
    world.pass(1_000_010);
    world.pass(1_000_020);
    assert_eq!(world.names(), ["user-sync-1000010", "user-sync-1000020"]);
    assert_eq!(world.status().active_count, Some(2));
}

#[test]
fn suspended_starts_nothing_and_slots_missed_meanwhile_are_gone() {
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(CREATED);
    world.schedule.spec.suspended = true;
    let plan = world.pass(1_000_008);
    assert_eq!(plan.status.next_schedule_time, None);
    assert!(conditions::is_true(&plan.status.conditions, READY), "a suspended schedule is ready");
    assert!(conditions::is_true(&plan.status.conditions, SUSPENDED));
    world.pass(1_000_055);
    world.schedule.spec.suspended = false;
    world.pass(1_000_062);
    assert!(world.names().is_empty());
    world.pass(1_000_070);
    assert_eq!(world.names(), ["user-sync-1000070"]);
    assert_eq!(world.status().runs.skipped, 0);
}

#[test]
fn a_changed_interval_starts_no_slot_of_the_past() {
    let mut world = World::new(json!({"interval": "1h"}));
    world.pass(CREATED);
    world.schedule.spec.interval = Some(GoDuration::new("10s"));
    world.pass(1_000_500);
    assert!(world.names().is_empty());
    world.pass(1_000_510);
    assert_eq!(world.names(), ["user-sync-1000510"]);
}

#[test]
fn three_days_away_cost_one_run_and_the_rest_is_counted() {
    let mut world = World::new(json!({"interval": "1m"}));
    world.pass(CREATED);
    world.pass(CREATED + 3 * 86_400);
    assert_eq!(world.names().len(), 1);
    assert_eq!(world.status().runs.skipped, 3 * 1440 - 1);
    assert_eq!(world.status().last_skip.as_ref().unwrap().reason, "CatchUp");
    let published: Vec<_> = world.events.iter().map(|event| event.text.as_str()).collect();
    let text = "4319 slots from 1970-01-12T13:47:00Z to 1970-01-15T13:45:00Z were skipped: \
                passed while no controller was running";
    assert_eq!(published, [text]);
}

#[test]
fn a_trigger_token_is_remembered_for_20_more() {
    let mut world = World::new(json!({"interval": "1h", "concurrencyPolicy": "Allow"}));
    let mut made = |token: String, now| {
        world.schedule.annotations_mut().insert(TRIGGER_ANNOTATION.to_owned(), token);
        let plan = world.pass(CREATED + now);
        // As if every run were pruned at once.
        world.jobs.clear();
        plan.create.len()
    };
    for number in 0..=20 {
        assert_eq!(made(number.to_string(), number), 1);
    }
    for (token, expected) in [(0, 0), (20, 0), (1, 0), (99, 1), (2, 1)] {
        assert_eq!(made(token.to_string(), 100 + token), expected, "{token}");
    }
    assert_eq!(world.status().handled_triggers.len(), 20);
    assert_eq!(world.status().last_handled_trigger.as_deref(), Some("2"));
}

#[test]
fn catch_up_none_and_the_starting_deadline_skip_a_late_slot() {
    for (spec, reason) in [
        (json!({"interval": "1h", "catchUp": "None"}), "CatchUp"),
        (json!({"interval": "1h", "startingDeadline": "30s"}), "Deadline"),
    ] {
        let mut world = World::new(spec);
        world.pass(CREATED);
        world.pass(1_000_800 + 70);
        assert!(world.names().is_empty());
        assert_eq!(
            (world.status().runs.skipped, world.status().last_skip.as_ref().unwrap().reason.as_str()),
            (1, reason)
        );
    }
}

#[test]
fn history_beyond_the_limits_is_deleted_and_the_counters_stay() {
    let mut world = World::new(json!({"interval": "10s", "successfulJobsHistoryLimit": 2}));
    world.pass(CREATED);
    for slot in 1..=5 {
        let now = 1_000_000 + slot * 10;
        world.pass(now);
        world.end(&format!("user-sync-{now}"), COMPLETE, now + 1);
        world.pass(now + 2);
    }
    assert_eq!(world.names(), ["user-sync-1000040", "user-sync-1000050"]);
    assert_eq!(world.status().runs.succeeded, 5);
}

#[test]
fn a_name_that_is_taken_skips_the_slot() {
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(CREATED);
    let mut plan = world.pass(1_000_010);
    skip_on_name_collision(&mut plan.status, &plan.create[0]);
    assert_eq!((plan.status.active.len(), plan.status.runs.total, plan.status.runs.skipped), (0, 0, 1));
    assert_eq!(plan.status.last_skip.unwrap().reason, "NameCollision");
}

#[test]
fn what_cannot_be_scheduled_is_stalled_with_the_reason() {
    for (spec, reason) in [
        (json!({"interval": "banana"}), "InvalidSpec"),
        (json!({"interval": "10s", "schedule": "* * * * *"}), "InvalidSpec"),
        (json!({"schedule": "61 * * * *"}), "InvalidSpec"),
        (json!({"schedule": "0 0 30 2 *"}), "InvalidSpec"),
        (json!({"schedule": "* * * * *", "timeZone": "Mars/Olympus"}), "InvalidSpec"),
        (json!({"interval": "10s", "timeZone": "UTC"}), "InvalidSpec"),
        (json!({"interval": "10s", "failureThreshold": 0}), "InvalidSpec"),
    ] {
        let mut world = World::new(spec);
        let plan = world.pass(CREATED);
        let stalled = conditions::find(&plan.status.conditions, STALLED).unwrap();
        assert_eq!((stalled.status.as_str(), stalled.reason.as_str(), plan.requeue), ("True", reason, None));
        assert!(!conditions::is_true(&plan.status.conditions, READY));
        assert_eq!(world.events[0].reason, "InvalidSchedule");
        world.pass(CREATED + 5);
        assert_eq!(world.events.len(), 1, "published once");
    }
}

#[test]
fn a_stalled_schedule_says_how_many_failed_why_and_what_to_do() {
    let mut world = World::new(json!({"interval": "10s", "failureThreshold": 2}));
    for slot in [1_000_010, 1_000_020, 1_000_030] {
        world.pass(slot);
        world.end(&format!("user-sync-{slot}"), FAILED, slot + 1);
        world.pass(slot + 2);
    }
    assert_eq!(world.names().len(), 2);
    let stalled = conditions::find(&world.status().conditions, STALLED).unwrap();
    let message = "2 runs in a row have failed, the last one with the reason Why, and spec.failureThreshold is 2: no slots are started until a triggered run completes or the spec is changed";
    assert_eq!(stalled.message, message);
    let published: Vec<_> = world.events.iter().map(|event| (event.reason, event.text.as_str())).collect();
    assert_eq!(published, [("ScheduleStalled", message)]);
}

#[test]
fn without_redis_runs_are_made_and_ready_says_why_they_wait() {
    let schedule = schedule(json!({"interval": "10s", "immediate": true}));
    let observed = ObservedSchedule {
        schedule: &schedule,
        jobs: &[],
        made: &[],
        queue_available: false,
        queue_owner: None,
        clock_skew: None,
        conflicts: &[],
        not_allowed: None,
        failure: None,
    };
    let plan = decide(&observed, at(CREATED));
    assert_eq!(plan.create.len(), 1);
    assert_eq!(conditions::find(&plan.status.conditions, READY).unwrap().reason, "QueueUnavailable");
}

#[test]
fn ready_names_the_owner_of_the_queue_and_clocks_that_differ() {
    let schedule = schedule(json!({"interval": "10s"}));
    let decide_with = |status: Option<SyncScheduleStatus>, queue_owner, clock_skew| {
        let schedule = SyncSchedule { status, ..schedule.clone() };
        let (jobs, made, conflicts) = (&[][..], &[][..], &[][..]);
        let observed = ObservedSchedule {
            schedule: &schedule,
            jobs,
            made,
            queue_available: true,
            queue_owner,
            clock_skew,
            conflicts,
            not_allowed: None,
            failure: None,
        };
        decide(&observed, at(CREATED))
    };
    let plan = decide_with(None, Some("ns/other (database a)"), Some("The clock of Redis is 40 s ahead"));
    let ready = conditions::find(&plan.status.conditions, READY).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "InstallationConflict"));
    assert!(ready.message.contains("ns/other (database a)") && ready.message.contains("QUEUE_NAME"));
    assert!(conditions::is_true(&plan.status.conditions, CLOCK_SKEW));
    assert_eq!(plan.events.iter().map(|event| event.reason).collect::<Vec<_>>(), ["ClockSkew"]);
    let later =
        decide_with(Some(plan.status.clone()), Some("ns/other (database a)"), Some("The clock of Redis is 41 s ahead"));
    assert_eq!((&later.status, later.events), (&plan.status, vec![]));
    let over = decide_with(Some(plan.status), None, None).status;
    assert!(conditions::is_true(&over.conditions, READY));
    assert_eq!(conditions::find(&over.conditions, CLOCK_SKEW), None);
}

#[test]
fn future_times_of_a_wrong_clock_delay_nothing() {
    const YEAR: i64 = 31_536_000;
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(CREATED + YEAR);
    let ahead = world.names();
    assert_eq!(world.status().slots_since.as_ref().unwrap().0, at(1_000_000 + YEAR));
    let plan = world.pass(CREATED + 20);
    assert!(plan.events.iter().any(|event| event.reason == "ClockSkew"));
    assert_eq!(world.status().slots_since.as_ref().unwrap().0, at(CREATED + 20));
    for name in &ahead {
        world.end(name, COMPLETE, CREATED + 25);
    }
    world.pass(CREATED + 30);
    assert!(world.names().contains(&"user-sync-1000030".to_owned()), "{:?}", world.names());
}

#[test]
fn an_edit_by_a_clock_that_is_behind_repeats_no_slot() {
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(1_000_010);
    world.end("user-sync-1000010", COMPLETE, 1_000_011);
    world.schedule.spec.interval = Some(GoDuration::new("20s"));
    world.pass(1_000_008);
    assert_eq!(world.status().slots_since.as_ref().unwrap().0, at(1_000_010));
    world.pass(1_000_012);
    assert_eq!(world.names(), ["user-sync-1000010"]);
}

#[test]
fn a_run_that_just_ended_is_not_deleted_yet() {
    let mut world = World::new(json!({"interval": "10s", "successfulJobsHistoryLimit": 0}));
    world.pass(1_000_010);
    world.end("user-sync-1000010", COMPLETE, 1_000_012);
    let plan = world.pass(1_000_013);
    assert_eq!((plan.delete.len(), plan.requeue), (0, Some(Duration::from_secs(4))));
    assert_eq!(world.pass(1_000_017).delete, ["user-sync-1000010"]);
}

#[test]
fn an_edit_after_a_due_slot_skips_it_with_an_event() {
    let mut world = World::new(json!({"interval": "10s"}));
    world.pass(CREATED);
    world.schedule.spec.interval = Some(GoDuration::new("20s"));
    let plan = world.pass(1_000_011);
    assert_eq!(plan.skipped, [(skips::SCHEDULE_CHANGED, 1)]);
    assert_eq!(world.status().runs.skipped, 1);
    assert_eq!(world.pass(1_000_012).skipped, []);
    world.pass(1_000_020);
    assert_eq!(world.names(), ["user-sync-1000020"]);
}

#[test]
fn an_edit_keeps_the_slot_whose_jitter_is_not_over() {
    let mut world = World::new(json!({"interval": "1h", "jitter": "5m"}));
    world.pass(CREATED);
    let slot = 1_000_800;
    let uid = world.schedule.uid().unwrap();
    world.schedule.spec.interval = Some(GoDuration::new("30m"));
    let start = Parsed::new(&world.schedule.spec).unwrap().slots(&uid).start(at(slot)).as_second();
    assert!(start > slot + 1, "the uid gives no jitter");
    world.pass(start - 1);
    assert_eq!(world.names(), Vec::<String>::new());
    world.pass(start + 1);
    assert_eq!(world.names(), [format!("user-sync-{slot}")]);
}

#[test]
fn a_second_pass_on_the_same_state_changes_nothing() {
    let mut world = World::new(json!({"interval": "10s", "immediate": true}));
    world.pass(CREATED);
    world.pass(CREATED);
    let before = world.status().clone();
    let plan = world.pass(CREATED + 1);
    assert_eq!(plan.status, before);
    assert!(plan.events.is_empty() && plan.create.is_empty() && plan.delete.is_empty());
}

#[test]
fn stale_after_defaults_to_half_the_least_time_between_slots() {
    for (spec, expected) in [
        (json!({}), "10m"),
        (json!({"interval": "90s"}), "45s"),
        (json!({"schedule": "*/20 * * * *"}), "10m"),
        (json!({"schedule": "0 9-17 * * *"}), "30m"),
        (json!({"schedule": "@monthly"}), "12h"),
    ] {
        let parsed = Parsed::new(&serde_json::from_value(spec).unwrap()).unwrap();
        let expected: Duration = GoDuration::new(expected).parse().unwrap();
        assert_eq!(parsed.stale_after().parse(), Ok(expected));
    }
}

#[test]
fn a_token_may_ask_for_the_kind_of_run() {
    for (token, expected) in [
        ("now:Full", Some(SyncMode::Full)),
        ("2026-11-24T10:00:00Z:Incremental", Some(SyncMode::Incremental)),
        ("2026-11-24T10:00:00Z", None),
        ("Full", None),
        ("now:full", None),
    ] {
        assert_eq!(triggered_mode(token), expected, "{token}");
    }
}

/// Events that may happen to a schedule, its controller and its clock.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes, and then the controller reconciles.
    Wait(i64),
    /// The clock is set, and then the controller reconciles.
    Set(i64),
    /// The controller writes the status and dies before it does anything else.
    Crash(i64),
    /// A run ends.
    End(prop::sample::Index, bool),
    /// A user deletes a SyncJob.
    Delete(prop::sample::Index),
    /// A user triggers a run.
    Trigger(u8),
    /// A user changes the concurrency policy.
    Policy(ConcurrencyPolicy),
}

fn steps() -> impl Strategy<Value = Step> {
    let policies = [ConcurrencyPolicy::Forbid, ConcurrencyPolicy::Allow, ConcurrencyPolicy::Replace];
    prop_oneof![
        6 => (0_i64..400).prop_map(Step::Wait),
        1 => (0_i64..400_000).prop_map(Step::Wait),
        1 => (-4000_i64..4000).prop_map(Step::Set),
        2 => (0_i64..400).prop_map(Step::Crash),
        4 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, well)| Step::End(which, well)),
        1 => any::<prop::sample::Index>().prop_map(Step::Delete),
        1 => (0_u8..4).prop_map(Step::Trigger),
        1 => prop::sample::select(policies.to_vec()).prop_map(Step::Policy),
    ]
}

fn specs() -> impl Strategy<Value = Value> {
    let grids = [json!({"interval": "1m"}), json!({"interval": "7s"}), json!({"schedule": "*/3 * * * *"})];
    let others = [
        json!({}),
        json!({"startingDeadline": "20s"}),
        json!({"catchUp": "None"}),
        json!({"jitter": "90s"}),
        json!({"concurrencyPolicy": "Allow"}),
        json!({"concurrencyPolicy": "Replace"}),
    ];
    let both = (prop::sample::select(grids.to_vec()), prop::sample::select(others.to_vec()));
    both.prop_map(|(mut grid, other)| {
        grid.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        grid
    })
}

proptest! {
    #[test]
    fn every_slot_is_run_or_skipped_once_whatever_happens(spec in specs(), steps in prop::collection::vec(steps(), 1..60)) {
        let mut world = World::new(spec);
        let (mut now, mut latest, mut triggered, mut made) = (CREATED, CREATED, 0, Vec::new());
        let parsed = Parsed::new(&world.schedule.spec).unwrap();
        let slots = parsed.slots(&world.schedule.uid().unwrap());
        for step in steps {
            let unfinished = |world: &World| -> Vec<String> {
                world.jobs.iter().filter(|job| !job::is_finished(job)).map(|job| job.name_any()).collect()
            };
            let mut crash = false;
            match step {
                // After a clock that was ahead by more than that, slots come again.
                Step::Wait(seconds) | Step::Set(seconds) => now = (now + seconds).max(CREATED).max(latest - 30),
                Step::Crash(seconds) => {
                    now += seconds;
                    crash = true;
                }
                Step::End(which, well) => {
                    let names = unfinished(&world);
                    if !names.is_empty() {
                        world.end(&names[which.index(names.len())], if well { COMPLETE } else { FAILED }, now);
                    }
                }
                Step::Delete(which) => {
                    // A SyncJob that is deleted before a new controller has seen it is created again.
                    let unseen = |job: &SyncJob| {
                        if world.made.contains(&job.name_any()) {
                            return false;
                        }
                        let active = world.schedule.status.as_ref().map(|status| status.active.as_slice()).unwrap_or_default();
                        active.iter().any(|run| run.name == job.name_any() && run.uid.is_none())
                    };
                    let seen: Vec<_> = (0..world.jobs.len()).filter(|index| !unseen(&world.jobs[*index])).collect();
                    if !seen.is_empty() {
                        world.jobs.remove(seen[which.index(seen.len())]);
                    }
                }
                Step::Trigger(token) => {
                    world.schedule.annotations_mut().insert(TRIGGER_ANNOTATION.to_owned(), token.to_string());
                }
                Step::Policy(policy) => world.schedule.spec.concurrency_policy = policy,
            }
            latest = latest.max(now);
            let before = unfinished(&world);
            let plan = if crash { world.decide(now) } else { world.pass(now) };
            if crash {
                world.schedule.status = Some(plan.status.clone());
                world.made.clear();
            } else {
                made.extend(plan.create.iter().filter(|run| run.trigger.is_none()).map(|run| run.name.clone()));
                if world.schedule.spec.concurrency_policy != ConcurrencyPolicy::Allow {
                    prop_assert!(plan.create.is_empty() || before.is_empty(), "overlap: {before:?} and {:?}", plan.create);
                }
            }
            triggered += i64::from(plan.status.last_handled_trigger != world.last_trigger);
            world.last_trigger.clone_from(&plan.status.last_handled_trigger);
            let status = world.status();
            let passed = slots.due(at(CREATED), at(CREATED).max(slots.start(handled_until(status)))).map_or(0, |due| due.count);
            let RunCounters { total, succeeded, failed, replaced, deleted, .. } = status.runs;
            prop_assert_eq!(total, succeeded + failed + replaced + deleted + status.active.len() as i64);
            let counted = status.runs.total + status.runs.skipped;
            prop_assert!((passed..=passed + triggered).contains(&counted), "{passed} slots and {triggered} triggers, but {:?}", status.runs);
            prop_assert_eq!(plan.skipped.iter().map(|(_, count)| count).sum::<i64>() > 0, plan.events.iter().any(|event| event.reason == "RunSkipped"));
        }
        let times = made.len();
        made.sort();
        made.dedup();
        prop_assert_eq!(made.len(), times, "no slot is made twice");
    }
}

#[test]
fn a_schedule_says_in_plain_words_when_it_is_due() {
    for (spec, words) in [
        (json!({}), "Every 20 minutes"),
        (json!({"interval": "1h"}), "Every hour"),
        (json!({"interval": "90s"}), "Every 90 seconds"),
        (json!({"interval": "48h"}), "Every 2 days"),
        (json!({"schedule": "0 3 * * *"}), "At 03:00, UTC"),
        (json!({"schedule": "*/20 * * * *", "timeZone": "Europe/Berlin"}), "Every 20 minutes, Europe/Berlin"),
        (json!({"schedule": "@daily"}), "At 00:00, UTC"),
        (json!({"schedule": "30 6 * * 1"}), "At 06:30, on Monday, UTC"),
    ] {
        let spec = serde_json::from_value(spec).unwrap();
        assert_eq!(Parsed::new(&spec).unwrap().description(), words);
    }
}

#[test]
fn a_job_says_until_when_it_may_be_created() {
    let trigger = Some("now".to_owned());
    for (spec, trigger, expected) in [
        (json!({"interval": "20m", "jobTemplate": {"spec": {}}}), None, 1_201_200),
        (json!({"interval": "20m", "startingDeadline": "5m", "jobTemplate": {"spec": {}}}), None, 1_200_300),
        (json!({"interval": "20m", "jobTemplate": {"spec": {}}}), trigger.clone(), 1_201_200),
        (json!({"interval": "20m", "startingDeadline": "5m", "jobTemplate": {"spec": {}}}), trigger, 1_200_300),
    ] {
        let schedule = schedule(spec);
        let parsed = Parsed::new(&schedule.spec).unwrap();
        let run = ActiveRun { name: "run".to_owned(), uid: None, slot: Time(at(1_200_000)), trigger };
        let job = build_job(&schedule, Some(&parsed), &run);
        assert_eq!(job.annotations()[STARTING_DEADLINE_ANNOTATION], at(expected).to_string());
    }
}

#[test]
fn the_last_result_omits_runs_that_a_user_ended() {
    let mut world = World::new(json!({"interval": "10s"}));
    for (slot, condition, reason, expected) in [
        (1_000_010, FAILED, "TooManyFailed", ("user-sync-1000010", Some("TooManyFailed"))),
        (1_000_020, FAILED, reasons::CANCELLED, ("user-sync-1000010", Some("TooManyFailed"))),
        (1_000_030, FAILED, reasons::REPLACED, ("user-sync-1000010", Some("TooManyFailed"))),
        (1_000_040, FAILED, reasons::SUPERSEDED, ("user-sync-1000010", Some("TooManyFailed"))),
        (1_000_050, COMPLETE, "Completed", ("user-sync-1000050", None)),
    ] {
        world.pass(slot);
        let name = format!("user-sync-{slot}");
        let job = world.jobs.iter_mut().find(|job| job.name_any() == name).unwrap();
        let mut status = SyncJobStatus { completion_time: Some(Time(at(slot + 2))), ..SyncJobStatus::default() };
        status.recoveries = Some(2);
        conditions::set(&mut status.conditions, condition, true, reason, "because", Some(1), at(slot + 2));
        Arc::make_mut(job).status = Some(status);
        world.pass(slot + 2);
        let last = world.status().last_result.as_ref().unwrap();
        assert_eq!((last.job.as_str(), last.reason.as_deref(), last.recoveries), (expected.0, expected.1, 2));
    }
}

#[test]
fn a_field_conflict_is_shown_while_it_lasts() {
    let mut schedule = schedule(json!({}));
    let conflicts = [FieldConflict { field: "name".to_owned(), other: field_conflict::Other::Elsewhere }];
    for (conflicts, is_shown) in [(conflicts.as_slice(), true), (&[], false)] {
        let observed = ObservedSchedule {
            schedule: &schedule,
            jobs: &[],
            made: &[],
            queue_available: true,
            queue_owner: None,
            clock_skew: None,
            conflicts,
            not_allowed: None,
            failure: None,
        };
        let status = decide(&observed, at(CREATED)).status;
        assert_eq!(conditions::is_true(&status.conditions, FIELD_CONFLICT), is_shown);
        assert!(conditions::is_true(&status.conditions, READY));
        schedule.status = Some(status);
    }
}

#[test]
fn the_account_of_many_runs_costs_no_more_than_each() {
    const RUNS: i64 = 20_000;
    let mut world = World::new(json!({"interval": "1m", "concurrencyPolicy": "Allow"}));
    world.pass(CREATED);
    let runs = (0..RUNS).map(|number| ActiveRun {
        name: format!("user-sync-{number}"),
        uid: Some(format!("uid-{number}")),
        slot: Time(at(number)),
        trigger: None,
    });
    world.schedule.status.as_mut().unwrap().active = runs.collect();
    world.jobs = (0..RUNS)
        .map(|number| {
            let mut job = SyncJob::new(&format!("user-sync-{number}"), crate::api::SyncJobSpec::default());
            job.metadata.uid = Some(format!("uid-{number}"));
            Arc::new(job)
        })
        .collect();
    let began = std::time::Instant::now();
    let plan = world.decide(CREATED + 60);
    assert_eq!((plan.status.active_count, plan.status.runs.skipped), (Some(RUNS as i32), 1));
    // Their square takes minutes.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
