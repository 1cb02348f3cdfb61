use std::collections::HashSet;

use super::*;
use crate::api::syncschedule::{HeldRun, RunResult, Skip};
use proptest::prelude::*;
use serde_json::{Value, json};

const CREATED: i64 = 1_000_000;
const WINDOW: i64 = 30;
const REPEAT: i64 = 300;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(CREATED + seconds).unwrap()
}

fn time(seconds: i64) -> Time {
    Time(at(seconds))
}

/// A SyncAlert with its schedules, and a controller with sinks whose answers a test decides on.
struct World {
    alert: SyncAlert,
    schedules: Vec<Arc<SyncSchedule>>,
    stored: SyncAlertStatus,
    ended: Vec<Delivery>,
    /// Messages that were sent and not answered.
    under_way: Vec<Message>,
    /// Messages that have arrived: time, sink and content.
    arrived: Vec<(i64, String, String)>,
    events: Vec<&'static str>,
}

impl World {
    fn new(spec: &Value) -> Self {
        let mut whole = json!({"sinks": [{"name": "a", "slack": {"urlSecretRef": {"name": "s", "key": "url"}}}],
            "groupWindow": "30s", "repeatInterval": "5m"});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let mut alert = SyncAlert::new("team", serde_json::from_value(whole).unwrap());
        alert.metadata.uid = Some("uid".into());
        alert.metadata.namespace = Some("default".into());
        alert.metadata.generation = Some(1);
        alert.metadata.creation_timestamp = Some(time(0));
        Self {
            alert,
            schedules: Vec::new(),
            stored: SyncAlertStatus::default(),
            ended: Vec::new(),
            under_way: Vec::new(),
            arrived: Vec::new(),
            events: Vec::new(),
        }
    }

    fn on(type_: &str) -> Self {
        Self::new(&json!({"when": [{"type": type_}]}))
    }

    /// Returns the schedule of a name, and creates it on the first call.
    fn schedule(&mut self, name: &str) -> &mut SyncSchedule {
        let index = self.schedules.iter().position(|schedule| schedule.name_any() == name);
        let index = index.unwrap_or_else(|| {
            let mut schedule = SyncSchedule::new(name, serde_json::from_value(json!({})).unwrap());
            schedule.metadata.creation_timestamp = Some(time(0));
            schedule.status = Some(crate::api::SyncScheduleStatus::default());
            self.schedules.push(Arc::new(schedule));
            self.schedules.len() - 1
        });
        Arc::make_mut(&mut self.schedules[index])
    }

    fn status(&mut self, name: &str) -> &mut crate::api::SyncScheduleStatus {
        self.schedule(name).status.get_or_insert_default()
    }

    fn run(&mut self, name: &str, job: &str, now: i64, reason: Option<&str>) {
        let result = RunResult {
            job: job.to_owned(),
            time: time(now),
            reason: reason.map(str::to_owned),
            processed: 100,
            failed: 0,
            recoveries: 0,
        };
        let status = self.status(name);
        if reason.is_none() {
            status.last_successful_time = Some(time(now));
        }
        status.last_result = Some(result);
    }

    fn hold(&mut self, name: &str, job: &str, now: i64) {
        let (job, message) = (job.to_owned(), "guard.maxMissing allows 50".to_owned());
        self.status(name).held = Some(HeldRun { job, since: time(now), removals: 400, message });
    }

    fn pass(&mut self, now: i64) -> AlertPlan {
        let busy: Vec<_> = self.under_way.iter().map(|message| message.sink.clone()).collect();
        let ended = std::mem::take(&mut self.ended);
        // The form in which Redis returns it.
        let stored = serde_json::from_str(&serde_json::to_string(&self.stored).unwrap()).unwrap();
        let plan = decide(
            ObservedAlert {
                alert: &self.alert,
                stored,
                schedules: &self.schedules,
                ended: &ended,
                busy: &busy,
                unusable_template: None,
            },
            at(now),
        );
        self.stored = plan.status.clone();
        self.events.extend(plan.events.iter().map(|event| event.reason));
        self.under_way.extend(plan.messages.clone());
        plan
    }

    /// Answers the deliveries in progress. Accepted messages have arrived.
    fn answer(&mut self, now: i64, result: &Result<(), Refusal>) {
        for message in std::mem::take(&mut self.under_way) {
            if result.is_ok() {
                let kinds = message.firing.iter().map(|item| (item, "firing"));
                for (item, what) in kinds.chain(message.resolved.iter().map(|item| (item, "resolved"))) {
                    let text = format!("{what} {} {:?} {}", item.schedule, item.type_, item.occurrence);
                    self.arrived.push((now, message.sink.clone(), text));
                }
            }
            let Message { sink, notified, .. } = message;
            self.ended.push(Delivery { sink, notified, result: result.clone(), at: at(now) });
        }
    }

    /// Lets time pass, with sinks that take everything at once.
    fn until(&mut self, from: i64, to: i64) {
        for now in from..=to {
            self.pass(now);
            self.answer(now, &Ok(()));
        }
    }

    fn notified(&self) -> Vec<(i64, &str)> {
        self.arrived.iter().map(|(now, _, what)| (*now, what.as_str())).collect()
    }
}

fn away() -> Result<(), Refusal> {
    Err(Refusal { is_mistake: false, message: "it answered with 500".to_owned(), rest: None, may_have_arrived: false })
}

#[test]
fn a_failure_is_reported_repeated_and_resolved() {
    let mut world = World::on("RunFailed");
    world.run("s", "s-1", 10, Some("TooManyFailed"));
    world.until(10, 400);
    world.run("s", "s-2", 400, Some("TooManyFailed"));
    world.until(401, 500);
    world.run("s", "s-3", 500, None);
    world.until(501, 1000);
    let expected = [
        (10 + WINDOW, "firing s RunFailed s-1"),
        (10 + WINDOW + REPEAT, "firing s RunFailed s-1"),
        (501 + WINDOW, "resolved s RunFailed s-1"),
    ];
    assert_eq!(world.notified(), expected);
    assert!(world.stored.alerts.is_empty() && world.stored.firing == Some(0));
}

#[test]
fn a_short_problem_is_not_reported() {
    let mut world = World::on("RunFailed");
    world.run("s", "s-1", 10, Some("TooManyFailed"));
    world.until(10, 20);
    world.run("s", "s-2", 21, None);
    world.until(21, 500);
    assert_eq!(world.notified(), []);
}

#[test]
fn what_comes_within_the_window_goes_in_one_message() {
    let mut world = World::on("RunFailed");
    world.run("s", "s-1", 10, Some("TooManyFailed"));
    world.until(10, 20);
    world.run("t", "t-1", 21, Some("TooManyFailed"));
    world.until(21, 39);
    let plan = world.pass(40);
    let firing: Vec<_> = plan.messages[0].firing.iter().map(|item| item.schedule.as_str()).collect();
    assert_eq!((plan.messages.len(), firing.len()), (1, 2), "{firing:?}");
}

#[test]
fn each_condition_begins_and_ends_as_documented() {
    type Change = fn(&mut World);
    type Row = (Value, Change, &'static [&'static str], Change, &'static [&'static str]);
    let rows: [Row; 6] = [
        (
            json!({"type": "RunFailed"}),
            |world| world.run("s", "s-1", 5, Some("Stalled")),
            &["firing s RunFailed s-1"],
            |world| world.run("s", "s-2", 100, None),
            &["resolved s RunFailed s-1"],
        ),
        (
            json!({"type": "FailedDocumentsAbove", "percent": 5}),
            |world| {
                world.run("s", "s-1", 5, None);
                world.status("s").last_result.as_mut().unwrap().failed = 6;
            },
            &["firing s FailedDocumentsAbove s-1"],
            |world| {
                world.run("s", "s-2", 100, None);
                world.status("s").last_result.as_mut().unwrap().failed = 5;
            },
            &["resolved s FailedDocumentsAbove s-1"],
        ),
        (
            json!({"type": "ScheduleStalled"}),
            |world| {
                conditions::set(&mut world.status("s").conditions, STALLED, true, "InvalidSpec", "why", None, at(5));
            },
            &["firing s ScheduleStalled 1970-01-12T13:46:45Z"],
            |world| conditions::clear(&mut world.status("s").conditions, STALLED),
            &["resolved s ScheduleStalled 1970-01-12T13:46:45Z"],
        ),
        (
            json!({"type": "RunSkipped"}),
            |world| world.status("s").last_skip = Some(Skip { time: time(5), reason: "Active".to_owned() }),
            &["firing s RunSkipped 1970-01-12T13:46:45Z"],
            |world| world.status("s").last_skip = Some(Skip { time: time(100), reason: "Active".to_owned() }),
            &["firing s RunSkipped 1970-01-12T13:48:20Z"],
        ),
        (
            json!({"type": "RunHeld"}),
            |world| world.hold("s", "s-1", 5),
            &["firing s RunHeld s-1"],
            |world| world.status("s").held = None,
            &["resolved s RunHeld s-1"],
        ),
        (
            json!({"type": "RunRecovered"}),
            |world| {
                world.run("s", "s-1", 5, None);
                world.status("s").last_result.as_mut().unwrap().recoveries = 1;
            },
            &["firing s RunRecovered s-1"],
            |world| world.run("s", "s-2", 100, None),
            &[],
        ),
    ];
    for (trigger, begin, first, end, second) in rows {
        let mut world = World::new(&json!({"when": [trigger]}));
        world.schedule("s");
        world.until(0, 4);
        begin(&mut world);
        world.until(5, 99);
        let notified: Vec<_> = world.notified().into_iter().map(|(_, what)| what).collect();
        assert_eq!(notified, first, "{trigger}");
        world.arrived.clear();
        end(&mut world);
        world.until(100, 200);
        let notified: Vec<_> = world.notified().into_iter().map(|(_, what)| what).collect();
        assert_eq!(notified, second, "{trigger}");
    }
}

#[test]
fn a_later_held_run_is_the_same_problem_with_its_number() {
    let mut world = World::on("RunHeld");
    world.hold("s", "s-1", 5);
    world.until(5, 50);
    let sent = "SyncJob s-1 waits for an approval of 400 removals: guard.maxMissing allows 50";
    assert_eq!(world.stored.alerts[0].message, sent);
    world.hold("s", "s-2", 60);
    world.until(60, 100);
    assert_eq!(world.notified(), [(5 + WINDOW, "firing s RunHeld s-1")]);
    assert!(world.stored.alerts[0].message.starts_with("SyncJob s-2"), "{:?}", world.stored.alerts);
}

#[test]
fn no_success_for_a_time_is_noticed_without_being_asked() {
    let mut world = World::new(&json!({"when": [{"type": "NoSuccessFor", "duration": "10m"}], "groupWindow": "0s"}));
    world.run("s", "s-1", 50, None);
    let plan = world.pass(60);
    assert_eq!((plan.status.firing, plan.requeue), (Some(0), Some(Duration::from_secs(590))));
    assert_eq!(world.pass(650).messages[0].firing[0].type_, AlertType::NoSuccessFor);
    world.answer(650, &Ok(()));
    world.schedule("s").spec.suspended = true;
    world.until(651, 652);
    assert!(world.notified()[1].1.starts_with("resolved s NoSuccessFor"), "{:?}", world.notified());
}

#[test]
fn a_failing_sink_has_a_backoff_and_delays_no_other() {
    let sink = |name: &str| json!({"name": name, "slack": {"urlSecretRef": {"name": "s", "key": "url"}}});
    let mut world = World::new(&json!({"when": [{"type": "RunFailed"}], "sinks": [sink("a"), sink("b")]}));
    world.run("s", "s-1", 0, Some("Stalled"));
    let mut tries = Vec::new();
    for now in 0..600 {
        world.pass(now);
        for message in std::mem::take(&mut world.under_way) {
            let result = if message.sink == "a" { away() } else { Ok(()) };
            if message.sink == "a" {
                tries.push(now);
            } else {
                assert_eq!((now - WINDOW) % REPEAT, 0, "b is notified, and notified again");
            }
            world.ended.push(Delivery { sink: message.sink, notified: message.notified, result, at: at(now) });
        }
    }
    let waits: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits.len() >= 5 && waits.is_sorted() && (4..=7).contains(&waits[0]), "{waits:?}");
    let ready = conditions::find(&world.stored.conditions, READY).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "SinkUnavailable"));
    assert_eq!(world.events, ["SinkFailing"]);
    world.run("s", "s-2", 600, None);
    world.until(600, 1000);
    assert!(world.arrived.iter().all(|(_, sink, _)| sink == "b"), "a never heard of it: {:?}", world.arrived);
}

#[test]
fn a_rest_that_a_sink_asks_for_is_heeded() {
    let mut world = World::on("RunFailed");
    world.run("s", "s-1", 0, Some("Stalled"));
    world.pass(0);
    world.pass(WINDOW);
    let rest = Some(Duration::from_secs(120));
    world.answer(WINDOW, &Err(Refusal { is_mistake: false, message: "429".to_owned(), rest, may_have_arrived: false }));
    let plan = world.pass(WINDOW);
    assert_eq!(plan.requeue, Some(Duration::from_secs(120)));
    assert!(world.pass(WINDOW + 119).messages.is_empty());
    assert_eq!(world.pass(WINDOW + 120).messages.len(), 1);
}

#[test]
fn a_mistake_has_a_long_backoff_until_a_change_or_a_test() {
    let mut world = World::on("RunFailed");
    world.run("s", "s-1", 0, Some("Stalled"));
    world.pass(0);
    world.pass(WINDOW);
    let mistake = Err(Refusal {
        is_mistake: true,
        message: "it refuses with 404".to_owned(),
        rest: None,
        may_have_arrived: false,
    });
    world.answer(WINDOW, &mistake);
    assert!(world.pass(WINDOW + 50).messages.is_empty());
    world.alert.metadata.generation = Some(2);
    assert_eq!(world.pass(WINDOW + 51).messages.len(), 1);
    world.answer(WINDOW + 51, &mistake);
    assert!(world.pass(WINDOW + 52).messages.is_empty());
    world.alert.annotations_mut().insert(TEST_ANNOTATION.to_owned(), "1".to_owned());
    let plan = world.pass(WINDOW + 53);
    assert_eq!(plan.messages[0].firing.len(), 2, "the test and what waits");
    world.answer(WINDOW + 53, &Ok(()));
    world.until(WINDOW + 54, WINDOW + 200);
    assert_eq!(world.arrived.len(), 2, "the same token sends one test: {:?}", world.arrived);
    assert_eq!(world.events, ["SinkFailing", "SinkRecovered", "TestDelivered"]);
    assert_eq!(world.stored.last_handled_test.as_deref(), Some("1"));
}

#[test]
fn a_waiting_incident_is_replaced_by_the_newest() {
    let mut world = World::on("RunSkipped");
    for slot in 1..=50 {
        world.status("s").last_skip = Some(Skip { time: time(slot * 10), reason: "Active".to_owned() });
        world.pass(slot * 10);
        world.answer(slot * 10, &away());
    }
    assert_eq!(world.stored.alerts.len(), 1);
    world.until(501, 900);
    assert_eq!(world.arrived.len(), 1);
    assert!(world.arrived[0].2.ends_with("1970-01-12T13:55:00Z"), "{:?}", world.arrived);
}

#[test]
fn only_selected_schedules_are_evaluated() {
    let mut world = World::new(&json!({"when": [{"type": "RunFailed"}], "selector": {"matchLabels": {"team": "a"}}}));
    world.run("s", "s-1", 0, Some("Stalled"));
    world.until(0, 100);
    assert_eq!(world.notified(), []);
    world.schedule("s").labels_mut().insert("team".to_owned(), "a".to_owned());
    world.until(101, 200);
    assert_eq!(world.notified(), [(101 + WINDOW, "firing s RunFailed s-1")]);
    world.schedules.clear();
    world.until(201, 300);
    assert_eq!(world.notified()[1], (201 + WINDOW, "resolved s RunFailed s-1"));
}

#[test]
fn an_invalid_selector_stalls_the_alert() {
    let mut world = World::on("RunFailed");
    world.run("s", "s-1", 0, Some("Stalled"));
    world.until(0, 100);
    let wrong = json!({"matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]});
    world.alert.spec.selector = serde_json::from_value(wrong).unwrap();
    world.until(101, 300);
    assert_eq!(world.notified().len(), 1);
    assert!(conditions::is_true(&world.stored.conditions, STALLED));
    assert!(!conditions::is_true(&world.stored.conditions, READY));
}

#[test]
fn the_status_stays_small_with_a_thousand_problems() {
    let mut world = World::on("RunFailed");
    for number in 0..1000 {
        world.run(&format!("{}{number}", "s".repeat(40)), &"j".repeat(63), 0, Some("Stalled"));
        let name = format!("{}{number}", "s".repeat(40));
        let failure = json!({"job": "j".repeat(63), "time": time(0), "reason": "Stalled", "message": "\"".repeat(500)});
        world.status(&name).failure_history.push(serde_json::from_value(failure).unwrap());
    }
    world.pass(0);
    world.until(WINDOW, WINDOW + 20);
    assert_eq!((world.arrived.len(), world.stored.alerts.len()), (1000, 1000));
    let status = bounded(world.stored.clone());
    assert_eq!((status.alerts.len(), status.firing), (MAX_ALERTS, Some(1000)));
    let size = serde_json::to_vec(&status).unwrap().len();
    assert!(size < 32 << 10, "{size} bytes");
}

/// Events that may happen within a second.
#[derive(Clone, Debug)]
enum Step {
    Fails(u8),
    Completes(u8),
    /// End of the deliveries in progress: accepted, or not.
    Answer(bool),
    /// Kill of the process: results that were not processed, and deliveries in progress, are lost. Some of these
    /// deliveries had arrived.
    Killed {
        arrived: bool,
    },
    Wait(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..3u8).prop_map(Step::Fails),
        (0..3u8).prop_map(Step::Completes),
        any::<bool>().prop_map(Step::Answer),
        any::<bool>().prop_map(|arrived| Step::Killed { arrived }),
        (1..100u8).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn each_problem_arrives_once_but_for_crashes(steps in steps()) {
        let mut world = World::on("RunFailed");
        let (mut now, mut crashes, mut run) = (0, 0, 0);
        for step in steps {
            now += 1;
            run += 1;
            let name = |number: u8| format!("s{number}");
            match step {
                Step::Fails(number) => world.run(&name(number), &format!("job-{run}"), now, Some("Stalled")),
                Step::Completes(number) => world.run(&name(number), &format!("job-{run}"), now, None),
                Step::Answer(true) => world.answer(now, &Ok(())),
                Step::Answer(false) => world.answer(now, &away()),
                Step::Killed { arrived } => {
                    if arrived {
                        world.answer(now, &Ok(()));
                    }
                    world.under_way.clear();
                    world.ended.clear();
                    crashes += 1;
                }
                Step::Wait(seconds) => now += i64::from(seconds),
            }
            world.pass(now);
        }
        // In the end all is well but for one, the sink takes messages, and time passes.
        for number in 0..3 {
            let reason = (number == 0).then_some("Stalled");
            world.run(&format!("s{number}"), &format!("last-{number}"), now, reason);
        }
        world.answer(now, &away());
        for later in (0..1000).step_by(20) {
            world.until(now + later, now + later);
        }
        let is_notified = |alert: &Alert| alert.notified.iter().any(|notified| notified.sink == "a" && !notified.resolved);
        let open: Vec<_> = world.stored.alerts.iter().filter(|alert| alert.resolved.is_none()).collect();
        prop_assert!(open.len() == 1 && is_notified(open[0]), "lost: {:?}", world.stored.alerts);
        prop_assert_eq!(world.stored.alerts.len(), 1, "nothing is left over");

        let mut notified: HashMap<String, (Option<i64>, bool)> = HashMap::new();
        let (mut doubles, mut doubled) = (HashMap::<&str, usize>::new(), HashSet::new());
        for (now, _, what) in &world.arrived {
            let (kind, alert) = what.split_once(' ').unwrap();
            let (last, is_over) = notified.entry(alert.to_owned()).or_default();
            let is_double = if kind == "firing" {
                prop_assert!(!*is_over, "notified again after it was over: {what}");
                last.replace(*now).is_some_and(|last| now - last < REPEAT)
            } else {
                prop_assert!(last.is_some() || crashes > 0, "over before it was notified: {what}");
                std::mem::replace(is_over, true)
            };
            if is_double {
                *doubles.entry(what).or_default() += 1;
                doubled.insert(*now);
            }
        }
        let open = format!("s0 RunFailed {}", world.stored.alerts[0].occurrence);
        let unended: Vec<_> = notified.iter().filter(|(alert, (_, is_over))| !is_over && **alert != open).collect();
        prop_assert!(unended.is_empty(), "never heard that it is over: {unended:?}");
        // A message that a crash repeats may contain several alerts.
        prop_assert!(doubled.len() <= crashes, "doubled at {doubled:?} after {crashes} crashes: {:?}", world.arrived);
        let too_often: Vec<_> = doubles.iter().filter(|(_, doubles)| **doubles > crashes).collect();
        prop_assert!(too_often.is_empty(), "{too_often:?} doubles after {crashes} crashes: {:?}", world.arrived);
    }
}
