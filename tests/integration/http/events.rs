//! `GET /events`.

use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream},
    http::Request,
};
use futures::StreamExt;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::Sidecar;
use crate::support::{PATIENCE, TestEnv, apply_job, eventually};

/// An open stream of events.
pub struct Stream {
    body: BodyDataStream,
    text: String,
}

#[derive(Debug)]
pub struct Event {
    pub kind: String,
    pub id: String,
    data: Value,
    at: Instant,
}

impl Stream {
    pub async fn open(sidecar: &Sidecar, path: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = sidecar.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    pub async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.read()).await.unwrap().unwrap()
    }

    /// `None` when the stream has ended.
    pub async fn read(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                let block = std::mem::replace(&mut self.text, rest);
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
                };
                let event = field("event").map(|kind| Event {
                    kind,
                    id: field("id").unwrap_or_default(),
                    data: serde_json::from_str(&field("data").unwrap()).unwrap(),
                    at: Instant::now(),
                });
                if event.is_some() {
                    return event;
                }
            }
            let chunk = self.body.next().await?.unwrap();
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    /// The next event about a run.
    async fn about(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await;
            if event.data["name"] == name {
                return event;
            }
        }
    }
}

async fn progress(env: &TestEnv, name: &str, progress: i32) {
    env.patch_job_status(name, json!({"phase": "Running", "progress": progress})).await;
}

#[tokio::test]
async fn a_stream_sends_a_run_at_once_then_at_most_once_a_second() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let mut stream = Stream::open(&sidecar, "/events", None).await;
    apply_job(&env, "run", json!({})).await;
    let first = stream.about("run").await;
    assert_eq!((first.kind.as_str(), &first.data["phase"]), ("job", &json!("Pending")));
    for percent in 1..=20 {
        progress(&env, "run", percent).await;
    }
    let mut received = vec![first];
    while received.last().unwrap().data["progress"] != 20 {
        received.push(stream.about("run").await);
    }
    for pair in received.windows(2) {
        assert!(pair[1].at - pair[0].at > Duration::from_millis(900), "{received:?}");
    }
}

#[tokio::test]
async fn a_client_that_reconnects_gets_only_missed_events() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    for name in ["gone", "same", "moved"] {
        apply_job(&env, name, json!({})).await;
    }
    let mut stream = Stream::open(&sidecar, "/events", None).await;
    for _ in 0..3 {
        assert_eq!(stream.next().await.kind, "job");
    }
    apply_job(&env, "last", json!({})).await;
    let id = stream.about("last").await.id;
    drop(stream);
    progress(&env, "moved", 40).await;
    env.jobs().delete("gone", &DeleteParams::default()).await.unwrap();
    eventually("the sidecar has seen the change", async || {
        let jobs = sidecar.get("/jobs").await.body;
        (jobs["items"].as_array()?.len() == 3).then_some(())
    })
    .await;
    let mut stream = Stream::open(&sidecar, "/events", Some(&id)).await;
    let (moved, gone) = (stream.next().await, stream.next().await);
    assert_eq!(
        (moved.kind.as_str(), &moved.data["name"], &moved.data["progress"]),
        ("job", &json!("moved"), &json!(40))
    );
    assert_eq!((gone.kind.as_str(), &gone.data["name"]), ("deleted", &json!("gone")));

    let mut stream = Stream::open(&sidecar, "/events", Some("12-3")).await;
    assert_eq!(stream.next().await.kind, "reset", "an id of another process is ignored");
    let mut names: Vec<_> = Vec::new();
    for _ in 0..3 {
        names.push(stream.next().await.data["name"].as_str().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["last", "moved", "same"]);
}

#[tokio::test]
async fn a_stream_has_the_filtered_runs_and_ends_with_the_process() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let mut stream = Stream::open(&sidecar, "/events?namespace=elsewhere", None).await;
    apply_job(&env, "run", json!({})).await;
    let mut all = Stream::open(&sidecar, "/events", None).await;
    all.about("run").await;
    sidecar.stop.cancel();
    assert!(timeout(PATIENCE, stream.read()).await.unwrap().is_none(), "no event is about another namespace");
}
