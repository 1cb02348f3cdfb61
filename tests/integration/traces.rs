//! Traces of runs, which whole processes send to a receiver of OTLP.

use std::collections::BTreeSet;

use kube::ResourceExt;
use serde_json::json;
use sync_operator::{
    api::{SLOT_ANNOTATION, SyncJob},
    domain::job::is_complete,
};

use crate::{
    receiver::{Receiver, Span},
    support::{
        Operator, TestEnv, apply_job, apply_once, apply_schedule, eventually, finished, free_port, get, probe_port,
        quiet_interval, slow, wait_until_running,
    },
};

fn traced(env: &TestEnv, command: &str, args: &[&str], receiver: &str) -> Operator {
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret"),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ];
    env.operator_with(command, args, &variables)
}

fn trace_of(job: &SyncJob) -> String {
    job.uid().unwrap().replace('-', "")
}

fn only(spans: Vec<Span>) -> Span {
    assert_eq!(spans.len(), 1, "{spans:?}");
    spans.into_iter().next().unwrap()
}

#[tokio::test]
async fn a_run_is_one_trace_from_its_slot_to_its_last_batch() {
    let env = TestEnv::new().await;
    env.seed(2_000, 0).await;
    let receiver = Receiver::start().await;
    let controller = traced(&env, "controller", &["--workers", "0"], &receiver.url);
    let worker = traced(&env, "worker", &[], &receiver.url);
    apply_once(&env, "users", json!({"syncType": "Full", "batchSize": 500})).await;

    let root = only(receiver.await_spans("sync.run", 1).await);
    let job = finished(&env, &root.attributes["name"]).await;
    assert_eq!((root.trace.clone(), root.parent.as_str(), root.is_error), (trace_of(&job), "", false));
    let slot: jiff::Timestamp = job.annotations()[SLOT_ANNOTATION].parse().unwrap();
    assert_eq!(i128::from(root.start), slot.as_nanosecond());
    assert_eq!((root.number("updated"), root.attributes["schedule"].as_str()), (2_000, "users"));

    let queue = only(receiver.await_spans("sync.queue", 1).await);
    let attempt = only(receiver.await_spans("sync.attempt", 1).await);
    assert_eq!((&queue.parent, &attempt.parent), (&root.id, &root.id));
    assert_eq!((attempt.number("attempt"), attempt.attributes["end"].as_str()), (1, "Completed"));
    assert_eq!(attempt.attributes["worker"], attempt.process);
    let batches = receiver.await_spans("sync.batch", 4).await;
    assert!(batches.iter().all(|batch| batch.parent == attempt.id), "{batches:?}");
    assert_eq!(batches.iter().map(|batch| batch.number("updated")).sum::<i64>(), 2_000);
    // The end of a run has milliseconds.
    assert!(batches.iter().all(|batch| batch.start >= root.start && batch.end / 1_000_000 <= root.end / 1_000_000));

    let spans = receiver.received().spans.clone();
    assert_eq!(spans.iter().map(|span| &span.trace).collect::<BTreeSet<_>>(), BTreeSet::from([&root.trace]));
    assert_eq!(spans.iter().map(|span| &span.process).collect::<BTreeSet<_>>().len(), 2, "controller and worker");
    assert_eq!(receiver.received().tokens[0], "Bearer s3cret");
    let id = format!("trace_id=\"{}\"", root.trace);
    for (process, message) in [(controller, "run enqueued"), (worker, "run completed")] {
        let log = process.log();
        let line = log.lines().find(|line| line.contains(message)).unwrap();
        assert!(line.contains(&id) && !log.contains("s3cret"), "{log}");
        assert_eq!(process.stop().await, Some(0));
    }
}

#[tokio::test]
async fn a_run_that_lost_its_worker_continues_its_trace() {
    let env = TestEnv::new().await;
    env.seed(3_000, 0).await;
    let receiver = Receiver::start().await;
    let lease = ["--lease-duration", "2s"];
    let _controller = traced(&env, "controller", &[&lease[..], &["--workers", "0"]].concat(), &receiver.url);
    let first = traced(&env, "worker", &lease, &receiver.url);
    apply_job(&env, "run", slow()).await;
    wait_until_running(&env, "run").await;
    receiver.await_spans("sync.batch", 1).await;
    first.signal("KILL");
    let _second = traced(&env, "worker", &lease, &receiver.url);

    let job = finished(&env, "run").await;
    assert!(is_complete(&job));
    let root = only(receiver.await_spans("sync.run", 1).await);
    let attempt = only(receiver.await_spans("sync.attempt", 1).await);
    assert_eq!((attempt.parent.as_str(), attempt.number("recoveries")), (root.id.as_str(), 1));
    let queue = receiver.await_spans("sync.queue", 2).await;
    assert!(queue.iter().all(|wait| wait.parent == root.id), "{queue:?}");
    let received = receiver.received();
    assert!(received.spans.iter().all(|span| span.trace == trace_of(&job)));
    let at_work = received.spans.iter().filter(|span| span.name == "sync.batch").map(|span| &span.process);
    assert_eq!(at_work.collect::<BTreeSet<_>>().len(), 2, "batches of both workers");
}

#[tokio::test]
async fn a_caller_finds_its_run_in_its_own_trace() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let receiver = Receiver::start().await;
    let port = free_port().to_string();
    let args = ["--insecure-no-auth", "--http-port", &port];
    let _operator = traced(&env, "all", &args, &receiver.url);
    apply_schedule(&env, "users", json!({"interval": quiet_interval(60)})).await;
    let trigger = format!("http://127.0.0.1:{port}/jobs/trigger/user-sync");
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let call = async |traceparent: String| {
        let call = reqwest::Client::new().post(&trigger).header("traceparent", traceparent);
        eventually("the call is answered", async || {
            let answer = call.try_clone().unwrap().send().await.ok()?;
            (answer.status() == 202).then_some(())
        })
        .await;
    };
    call(format!("00-{trace}-{span}-01")).await;
    let root = only(receiver.await_spans("sync.run", 1).await);
    assert_eq!((root.trace.as_str(), root.parent.as_str()), (trace, span));
    let attempt = only(receiver.await_spans("sync.attempt", 1).await);
    assert_eq!((attempt.trace.as_str(), &attempt.parent), (trace, &root.id));

    // A traceparent that is not sampled, and invalid ones.
    call("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".to_owned()).await;
    call("nonsense".to_owned()).await;
    let own = receiver.await_spans("sync.run", 2).await.pop().unwrap();
    let job = finished(&env, &own.attributes["name"]).await;
    assert_eq!((own.trace, own.parent.as_str()), (trace_of(&job), ""));
    assert!(!receiver.received().spans.iter().any(|span| span.trace.starts_with("0af7")));
}

#[tokio::test]
async fn an_unavailable_or_silent_receiver_blocks_nothing() {
    let env = TestEnv::new().await;
    env.seed(3_000, 0).await;
    let stalling = Receiver::stalling().await;
    let port = free_port();
    let controller = traced(&env, "controller", &["--workers", "0"], &format!("http://127.0.0.1:{port}"));
    let worker = traced(&env, "worker", &[], &stalling.url);
    // More spans than the queue of 2,048 spans can store.
    apply_job(&env, "run", slow()).await;
    let job = finished(&env, "run").await;
    assert!(is_complete(&job));
    let complaints = |log: &str| log.lines().filter(|line| line.contains("the receiver of traces is")).count();
    eventually("the outage is logged", async || controller.log().contains("traces is unavailable").then_some(())).await;
    assert_eq!(complaints(&controller.log()), 1, "{}", controller.log());
    assert!(stalling.received().requests > 0 && complaints(&worker.log()) <= 1);
    assert_eq!(worker.stop().await, Some(0));

    let receiver = Receiver::answering_on(port).await;
    apply_job(&env, "cancelled", json!({"cancelled": true})).await;
    let is_cancelled = |span: &Span| span.is_error && span.attributes["error.type"] == "Cancelled";
    eventually("it is sent", async || receiver.named("sync.run").into_iter().find(is_cancelled)).await;
    eventually("its return is logged", async || controller.log().contains("traces is available again").then_some(()))
        .await;
}

#[tokio::test]
async fn without_a_receiver_no_log_line_has_a_trace() {
    let env = TestEnv::new().await;
    let (operator, port) = env.all(&[]);
    apply_job(&env, "run", json!({"syncType": "Full"})).await;
    finished(&env, "run").await;
    assert!(operator.log().contains("run completed") && !operator.log().contains("trace"), "{}", operator.log());
    let metrics = probe_port(&operator).await;
    let text = get(metrics, "/metrics").await.unwrap().1;
    assert!(text.contains("sync_run_duration_seconds_bucket") && !text.contains("trace_id"), "{text}");
    assert!(get(port, "/jobs/status").await.is_some());
}
