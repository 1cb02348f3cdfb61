//! The mirror for BullMQ, as the getters of BullMQ and Bull Board read it, compared with the calls.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use redis::{AsyncCommands, aio::MultiplexedConnection};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    servers::Redis,
    sources::with,
    support::{
        ALLOWED, Servers, TestEnv, apply_job, apply_schedule, eventually, finished, get, quiet_interval, unique,
        variable,
    },
    upstream::{Instead, Upstream},
};

/// Runs a script of `tests/bullmq` on a mirror.
fn script(name: &str, env: &TestEnv, prefix: &str) -> String {
    let folder = variable("BULLMQ_READERS");
    let mut node = Command::new(Path::new(&folder).join("node"));
    node.current_dir(&folder).arg(name).args([&env.servers.redis, prefix, &env.name]);
    let output = node.output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn read_mirror(env: &TestEnv, prefix: &str) -> Value {
    serde_json::from_str(&script("read.mjs", env, prefix)).unwrap()
}

async fn ask(port: u16, path: &str) -> Value {
    let (code, body) = eventually("the call is answered", async || get(port, path).await).await;
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

async fn connect(env: &TestEnv) -> MultiplexedConnection {
    let client = redis::Client::open(env.servers.redis.as_str()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Every key below a prefix, with its time to live in milliseconds and its value.
async fn keys(redis: &mut MultiplexedConnection, prefix: &str) -> BTreeMap<String, (i64, Vec<u8>)> {
    let names: Vec<String> = redis.keys(format!("{prefix}:*")).await.unwrap();
    let mut found = BTreeMap::new();
    for name in names {
        let left = redis.pttl(&name).await.unwrap();
        let held: Option<Vec<u8>> = redis::cmd("DUMP").arg(&name).query_async(redis).await.unwrap();
        if let Some(held) = held {
            found.insert(name, (left, held));
        }
    }
    found
}

fn texts<'a>(items: &'a Value, field: &str) -> Vec<&'a str> {
    items.as_array().unwrap().iter().map(|item| item[field].as_str().unwrap()).collect()
}

fn millis(time: &Value) -> i64 {
    time.as_str().unwrap().parse::<Timestamp>().unwrap().as_millisecond()
}

/// The counts of `/jobs/status` in the terms of BullMQ.
fn counts(status: &Value) -> Value {
    let counts = &status["counts"];
    json!({
        "waiting": counts["waiting"], "active": counts["active"], "delayed": counts["delayed"],
        "completed": counts["completed"], "failed": counts["failed"], "paused": counts["paused"],
    })
}

/// Waits until the mirror and `/jobs/status` have these counts.
async fn wait_for_agreement(env: &TestEnv, prefix: &str, port: u16, wanted: &Value) -> (Value, Value) {
    eventually(&format!("the mirror shows {wanted}"), async || {
        let (status, mirrored) = (ask(port, "/jobs/status").await, read_mirror(env, prefix));
        let schedules = |all: &Value| all.as_array().map(Vec::len);
        let agree = mirrored["counts"] == counts(&status)
            && mirrored["counts"] == *wanted
            && schedules(&mirrored["schedulers"]) == schedules(&status["repeatable"]);
        agree.then_some((status, mirrored))
    })
    .await
}

/// Creates runs in all states: five complete, one failed, one in backoff, one suspended, one active and two waiting, in
/// this order.
async fn create_runs(env: &TestEnv, stuck: &Upstream, broken: &Upstream) {
    let source = |upstream: &Upstream, batch: i32| {
        let mut spec = with(upstream, &json!({"timeout": "10m"}));
        spec["batchSize"] = batch.into();
        spec["parallelism"] = 1.into();
        spec
    };
    broken.state().next_answer = Some(Box::new(|| Some(Instead::Status(500, Vec::new()))));
    for number in 0..5 {
        let name = format!("complete-{number}");
        apply_job(env, &name, json!({"syncType": "Full", "target": {"filter": {"_id": {"$lt": number}}}})).await;
        finished(env, &name).await;
    }
    let mut failing = source(broken, 10);
    failing["backoffLimit"] = 0.into();
    apply_job(env, "failed", failing.clone()).await;
    finished(env, "failed").await;
    failing["backoffLimit"] = 5.into();
    failing["backoff"] = json!({"initial": "1h", "max": "1h"});
    apply_job(env, "delayed", failing).await;
    wait_for_phase(env, "delayed", "Retrying").await;
    apply_job(env, "suspended", json!({"suspended": true})).await;
    wait_for_phase(env, "suspended", "Suspended").await;
    let mut answers = 0;
    stuck.state().next_answer = Some(Box::new(move || {
        answers += 1;
        (answers > 2).then_some(Instead::Silence(Duration::from_secs(3600)))
    }));
    apply_job(env, "active", source(stuck, 10)).await;
    eventually("half of the run is done", async || {
        let job = env.jobs().get("active").await.unwrap();
        (job.status?.progress? > 0).then_some(())
    })
    .await;
    for (name, priority) in [("later", 0), ("sooner", 5)] {
        apply_job(env, name, json!({"priority": priority})).await;
        wait_for_phase(env, name, "Queued").await;
    }
}

async fn wait_for_phase(env: &TestEnv, name: &str, wanted: &str) {
    eventually(&format!("{name} is {wanted}"), async || {
        let status = env.jobs().get(name).await.unwrap().status?;
        (format!("{:?}", status.phase?) == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bullmq_and_bull_board_read_what_the_calls_return() {
    let (env, stuck, broken) = (TestEnv::new().await, Upstream::start().await, Upstream::start().await);
    let (prefix, mut redis) = (unique("bull"), connect(&env).await);
    env.seed(40, 0).await;
    // A board that reads the queue before the operator writes creates a key.
    let before = read_mirror(&env, &prefix);
    assert_eq!((&before["schedulers"], &before["paused"]), (&json!([]), &json!(false)));
    let (operator, port) = env.all(&[&ALLOWED[..], &["--workers", "1", "--bullmq-mirror", &prefix]].concat());
    apply_schedule(&env, "off", json!({"interval": "1h", "suspended": true})).await;
    let paused = json!({"waiting": 0, "active": 0, "delayed": 0, "completed": 0, "failed": 0, "paused": 0});
    eventually("all schedules are suspended, so the queue is paused", async || {
        (read_mirror(&env, &prefix)["paused"] == true).then_some(())
    })
    .await;
    assert_eq!(wait_for_agreement(&env, &prefix, port, &paused).await.0["paused"], true);
    apply_schedule(&env, "every", json!({"interval": quiet_interval(20), "jitter": "0s", "startingDeadline": "1s"}))
        .await;
    apply_schedule(&env, "daily", json!({"schedule": "59 23 31 12 *", "timeZone": "Europe/Berlin"})).await;
    create_runs(&env, &stuck, &broken).await;

    let wanted = json!({"waiting": 2, "active": 1, "delayed": 1, "completed": 5, "failed": 1, "paused": 1});
    let (status, first) = wait_for_agreement(&env, &prefix, port, &wanted).await;
    let jobs = ask(port, "/jobs?limit=500").await;
    check_schedules(&status, &first);
    check_jobs(&env, &status, &jobs, &first).await;
    check_pages(&first);
    assert_eq!(first["taken"], Value::Null, "no worker of BullMQ is given a run");
    let held = keys(&mut redis, &prefix).await;
    let hashes = 11 + 3;
    // Seven sets, and meta.
    assert_eq!(held.len(), hashes + 8, "{:?}", held.keys());
    for (key, (left, held)) in &held {
        assert!((1..=3_600_000).contains(left), "{key} ends by itself: {left} ms");
        assert!(!String::from_utf8_lossy(held).contains("$lt"), "{key} has the target");
    }

    for lost in [format!("{prefix}:{}:completed", env.name), format!("{prefix}:*")] {
        let lost_keys: Vec<String> = redis.keys(&lost).await.unwrap();
        redis.del::<_, ()>(lost_keys).await.unwrap();
        let (_, again) = wait_for_agreement(&env, &prefix, port, &wanted).await;
        assert_eq!(again["jobs"], first["jobs"], "{lost} is written again");
        assert_eq!(again["schedulers"], first["schedulers"]);
        assert_eq!(
            keys(&mut redis, &prefix).await.into_keys().collect::<Vec<_>>(),
            held.keys().cloned().collect::<Vec<_>>()
        );
    }

    let gone = env.jobs().get("complete-0").await.unwrap().uid().unwrap();
    for name in ["complete-0", "failed", "delayed"] {
        env.jobs().delete(name, &DeleteParams::default()).await.unwrap();
    }
    env.schedules().delete("off", &DeleteParams::default()).await.unwrap();
    let wanted = json!({"waiting": 2, "active": 1, "delayed": 0, "completed": 4, "failed": 0, "paused": 1});
    let (status, last) = wait_for_agreement(&env, &prefix, port, &wanted).await;
    check_schedules(&status, &last);
    assert!(!texts(&last["jobs"]["completed"], "id").contains(&gone.as_str()));
    eventually("no key is left of deleted runs", async || {
        (keys(&mut redis, &prefix).await.len() == 8 + 2 + 6).then_some(())
    })
    .await;
    assert!(!operator.log().contains("BullMQ is unavailable"), "{}", operator.log());
}

/// Checks that each scheduler is a repeatable of `/jobs/status`.
fn check_schedules(status: &Value, mirrored: &Value) {
    let ours = status["repeatable"].as_array().unwrap();
    let mut shown: Vec<_> = mirrored["schedulers"].as_array().unwrap().iter().collect();
    assert_eq!(mirrored["oneScheduler"], *shown[0]);
    shown.sort_by_key(|scheduler| scheduler["key"].as_str());
    let by_id = |scheduler: &&Value| scheduler["id"].as_str().unwrap().to_owned();
    let mut boards: Vec<_> = mirrored["boardSchedulers"].as_array().unwrap().iter().collect();
    boards.sort_by_key(by_id);
    assert_eq!((shown.len(), boards.len()), (ours.len(), ours.len()));
    for ((ours, shown), board) in ours.iter().zip(shown).zip(boards) {
        let key = format!("{}/{}", ours["namespace"].as_str().unwrap(), ours["name"].as_str().unwrap());
        assert_eq!((shown["key"].as_str(), board["id"].as_str()), (Some(key.as_str()), Some(key.as_str())));
        let next = if ours["next"].is_null() { Value::Null } else { millis(&ours["next"]).into() };
        for theirs in [shown, board] {
            for (field, their_field) in [("name", "name"), ("every", "every"), ("cron", "pattern"), ("tz", "tz")] {
                assert_eq!(theirs[their_field], ours[field], "{key}: {field}");
            }
            assert_eq!(theirs["next"], next, "{key}");
            assert_eq!(theirs["template"]["data"], *ours, "{key}");
        }
    }
}

async fn check_jobs(env: &TestEnv, status: &Value, jobs: &Value, mirrored: &Value) {
    let ours: BTreeMap<_, _> =
        jobs["items"].as_array().unwrap().iter().map(|job| (job["jobId"].as_str(), job)).collect();
    let in_state = |state: &str| mirrored["jobs"][state].as_array().unwrap();
    for (state, phase, shown_as) in [
        ("waiting", "Queued", "waiting"),
        ("active", "Running", "active"),
        ("delayed", "Retrying", "delayed"),
        ("completed", "Complete", "completed"),
        ("failed", "Failed", "failed"),
        ("paused", "Suspended", "waiting"),
    ] {
        for theirs in in_state(state) {
            let ours = ours[&theirs["id"].as_str()];
            assert_eq!((ours["phase"].as_str(), theirs["state"].as_str()), (Some(phase), Some(shown_as)));
            assert_eq!((&theirs["data"], &theirs["name"]), (ours, &ours["name"]));
            assert_eq!((&theirs["progress"], &theirs["attemptsMade"]), (&ours["progress"], &ours["attemptsMade"]));
            assert_eq!(theirs["timestamp"], millis(&ours["createdAt"]));
            for (field, their_field) in [("startedAt", "processedOn"), ("finishedAt", "finishedOn")] {
                let at = if ours[field].is_null() { Value::Null } else { millis(&ours[field]).into() };
                assert_eq!(theirs[their_field], at, "{field} of {}", ours["name"]);
            }
        }
    }
    let (active, theirs) = (&status["activeJobs"][0], &in_state("active")[0]);
    assert_eq!((&theirs["name"], &theirs["progress"]), (&active["name"], &active["progress"]));
    assert_eq!(theirs["data"]["counts"]["processed"], active["processed"]);
    assert!((1..100).contains(&active["progress"].as_i64().unwrap()), "{active}");
    let reason = |ours: &Value| format!("{}: {}", ours["reason"].as_str().unwrap(), ours["message"].as_str().unwrap());
    let failed = &in_state("failed")[0];
    assert_eq!(failed["failedReason"], reason(&failed["data"]));
    assert!(failed["failedReason"].as_str().unwrap().starts_with("BackoffLimitExceeded: "), "{failed}");
    for completed in in_state("completed") {
        assert_eq!(completed["returnvalue"], completed["data"]["counts"]);
    }
    let delayed = &in_state("delayed")[0];
    let due = delayed["timestamp"].as_i64().unwrap() + delayed["delay"].as_i64().unwrap();
    let entry = env.queue().get(delayed["id"].as_str().unwrap()).await.unwrap().unwrap();
    assert_eq!(due, entry.retry_at.unwrap().as_millisecond());
    assert!(
        delayed["data"]["message"]
            .as_str()
            .unwrap()
            .ends_with(delayed["failedReason"].as_str().unwrap().split_once(": ").unwrap().1),
        "{delayed}"
    );
    assert_eq!(delayed["stacktrace"], json!([delayed["failedReason"]]));
}

/// Checks that pages of two runs list all runs in order, and that Bull Board shows the same.
fn check_pages(mirrored: &Value) {
    let names = |state: &str| texts(&mirrored["jobs"][state], "name");
    // BullMQ lists the newest run first, so the next run is the last one.
    assert_eq!(names("waiting"), ["later", "sooner"]);
    let mut completed: Vec<_> = mirrored["jobs"]["completed"].as_array().unwrap().iter().collect();
    completed.sort_by_key(|job| (job["finishedOn"].as_i64(), job["id"].as_str()));
    let completed: Vec<_> = completed.into_iter().rev().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(texts(&mirrored["jobs"]["completed"], "id"), completed);
    for (state, pages) in mirrored["pages"].as_object().unwrap() {
        let paged: Vec<_> = pages.as_array().unwrap().iter().flat_map(|page| page.as_array().unwrap()).collect();
        assert_eq!(paged, texts(&mirrored["jobs"][state], "id"), "{state}");
    }
    for (state, pages) in mirrored["board"].as_object().unwrap() {
        let pages = pages.as_array().unwrap();
        let shown: Vec<_> = pages.iter().flat_map(|page| texts(&page["jobs"], "id")).collect();
        assert_eq!(shown, texts(&mirrored["jobs"][state], "id"), "{state}");
        for page in pages {
            assert_eq!((&page["readOnlyMode"], &page["isPaused"]), (&json!(true), &json!(false)));
            assert_eq!(page["counts"]["completed"], mirrored["counts"]["completed"]);
            assert_eq!(page["jobSchedulerCount"], 3);
        }
    }
    let failed = &mirrored["board"]["failed"][0]["jobs"][0];
    assert_eq!(
        (&failed["isFailed"], &failed["failedReason"]),
        (&json!(true), &mirrored["jobs"]["failed"][0]["failedReason"])
    );
    assert_eq!(mirrored["boardJob"]["job"]["id"], mirrored["jobs"]["waiting"][0]["id"]);
}

#[tokio::test]
async fn a_queue_in_use_is_left_alone() {
    let (env, prefix) = (TestEnv::new().await, unique("bull"));
    let mut redis = connect(&env).await;
    script("add.mjs", &env, &prefix);
    let theirs = keys(&mut redis, &prefix).await;
    assert!(theirs.contains_key(&format!("{prefix}:{}:wait", env.name)), "{:?}", theirs.keys());
    apply_schedule(&env, "every", json!({"interval": quiet_interval(20)})).await;
    let (operator, port) = env.all(&["--workers", "0", "--bullmq-mirror", &prefix]);
    eventually("the operator logs why it writes nothing", async || {
        operator.log().contains(&format!("{prefix}:{}:id belongs to a queue of BullMQ", env.name)).then_some(())
    })
    .await;
    assert_eq!(keys(&mut redis, &prefix).await, theirs);
    redis.del::<_, ()>(theirs.into_keys().collect::<Vec<_>>()).await.unwrap();
    eventually("the mirror is written when the queue of BullMQ is deleted", async || {
        (read_mirror(&env, &prefix)["schedulers"][0]["name"] == "every").then_some(())
    })
    .await;
    assert_eq!(get(port, "/readyz").await.unwrap().0, 200);

    // A client of BullMQ adds a job to the queue.
    script("add.mjs", &env, &prefix);
    eventually("the operator stops writing", async || {
        (operator.log().matches("belongs to a queue of BullMQ").count() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_sidecar_writes_and_another_one_takes_over() {
    let (env, prefix) = (TestEnv::new().await, unique("bull"));
    let mut redis = connect(&env).await;
    apply_schedule(&env, "every", json!({"interval": quiet_interval(20)})).await;
    let start = || env.operator("api", &["--insecure-no-auth", "--http-port", "0", "--bullmq-mirror", &prefix]);
    let meta = format!("{prefix}:{}:meta", env.name);
    let mut first = start();
    let writer: String =
        eventually("the first sidecar writes", async || redis.hget(&meta, "sync-operator").await.ok()).await;
    let second = start();
    eventually("the second sidecar waits", async || second.log().contains("is on standby").then_some(())).await;
    assert_eq!(redis.hget::<_, _, String>(&meta, "sync-operator").await.unwrap(), writer);
    first.kill();
    apply_schedule(&env, "new", json!({"interval": quiet_interval(60)})).await;
    eventually("the second sidecar writes changes", async || {
        (read_mirror(&env, &prefix)["schedulers"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    assert_ne!(redis.hget::<_, _, String>(&meta, "sync-operator").await.unwrap(), writer);
}

#[tokio::test]
async fn in_a_redis_cluster_the_mirror_needs_a_hash_tag() {
    let owner = Redis::start(&["--cluster-enabled", "yes"]);
    owner.connect().await;
    let slots: Vec<_> = (0..16384).map(|slot| slot.to_string()).collect();
    owner.ask::<()>(&format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
    eventually("the Redis Cluster is complete", async || {
        owner.ask::<String>("CLUSTER INFO").await.contains("cluster_state:ok").then_some(())
    })
    .await;
    let redis = format!("redis+cluster://127.0.0.1:{}", owner.port);
    let env = TestEnv::on(Servers { redis, ..Servers::shared() }).await;
    apply_schedule(&env, "every", json!({"interval": quiet_interval(20)})).await;
    let api =
        |prefix: &str| env.operator("api", &["--insecure-no-auth", "--http-port", "0", "--bullmq-mirror", prefix]);
    let mut refused = api("bull");
    eventually("a prefix without braces is refused", async || (!refused.is_running()).then_some(())).await;
    assert!(refused.log().contains("BULLMQ_MIRROR: in a Redis Cluster"), "{}", refused.log());
    let _operator = api("{bull}");
    let key = format!("{{bull}}:{}:repeat:{}/every", env.name, env.name);
    eventually("the mirror has the schedule", async || {
        (owner.ask::<Option<String>>(&format!("HGET {key} name")).await.as_deref() == Some("every")).then_some(())
    })
    .await;
}

/// Measures the CPU time that the mirror adds to a sidecar: with `SCHEDULES` (10000) at rest, then with `RUNS` (500).
#[tokio::test]
#[ignore = "measures for minutes: docs/operations/performance.md"]
async fn cost() {
    const REST: Duration = Duration::from_secs(60);
    let setting = |name: &str, default: usize| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (schedules, runs) = (setting("SCHEDULES", 10_000), setting("RUNS", 500));
    let (env, prefix) = (TestEnv::new().await, unique("bull"));
    env.seed(10, 0).await;
    let make = |number: usize| {
        let spec = json!({"schedule": "59 23 31 12 *"});
        let env = &env;
        async move { drop(apply_schedule(env, &format!("s{number:05}"), spec).await) }
    };
    stream::iter(0..schedules).map(make).buffer_unordered(32).collect::<()>().await;
    let controller = env.operator("controller", &["--status-writes-per-second", "200"]);
    eventually("every schedule was reconciled", async || {
        let all = env.schedules().list(&ListParams::default()).await.ok()?.items;
        all.iter()
            .all(|schedule| schedule.status.as_ref().is_some_and(|status| status.next_schedule_time.is_some()))
            .then_some(())
    })
    .await;
    let api = |args: &[&str]| env.operator("api", &[&["--insecure-no-auth", "--http-port", "0"], args].concat());
    let (plain, mirror) = (api(&[]), api(&["--bullmq-mirror", &prefix]));
    let mut redis = connect(&env).await;
    let repeat = format!("{prefix}:{}:repeat", env.name);
    eventually("the mirror has all schedules", async || {
        (redis.zcard::<_, usize>(&repeat).await.ok()? == schedules).then_some(())
    })
    .await;
    let spent = || [&controller, &plain, &mirror].map(|operator| operator.cpu().as_secs_f64());
    let report = |what: &str, from: [f64; 3]| {
        let [controller, plain, mirror] = std::array::from_fn(|i| spent()[i] - from[i]);
        println!("{what}: controller {controller:.2} s, sidecar {plain:.2} s, with the mirror {mirror:.2} s");
    };
    report("from the start until it is written", [spent()[0], 0.0, 0.0]);
    let from = spent();
    sleep(REST).await;
    report(&format!("{schedules} schedules at rest for {REST:?}"), from);
    let from = spent();
    let make = |number: usize| {
        let env = &env;
        async move { drop(apply_job(env, &format!("run-{number}"), json!({"syncType": "Full"})).await) }
    };
    stream::iter(0..runs).map(make).buffer_unordered(8).collect::<()>().await;
    let completed = format!("{prefix}:{}:completed", env.name);
    eventually("all runs are shown", async || (redis.zcard::<_, usize>(&completed).await.ok()? == runs).then_some(()))
        .await;
    report(&format!("{runs} runs"), from);
}
