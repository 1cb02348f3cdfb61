//! Measurement of pages with 10,000 schedules and 100,000 runs.

use std::time::{Duration, Instant};

use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::{
    api::{SyncJob, SyncSchedule},
    fixtures,
    http::{HttpSettings, LeaseName, Objects, router},
    queue::Queue,
};

const SCHEDULES: usize = 10_000;
const RUNS: usize = 100_000;

fn schedule(i: usize) -> SyncSchedule {
    fixtures::schedule(json!({
        "metadata": {"name": format!("schedule-{i:05}"), "namespace": format!("team-{}", i % 5), "uid": format!("s{i}")},
        "spec": {"suspended": true},
    }))
}

/// One of ten runs has failed, with twenty documents.
fn job(i: usize) -> SyncJob {
    let (schedule, at) = (i / 10, "2026-11-25T10:00:00Z");
    let failures: Vec<Value> = (0..20)
        .map(|k| json!({"key": format!("user-{i}-{k}"), "reason": "Rejected", "message": format!("Document {i} failed validation")}))
        .collect();
    let condition = |kind, reason| fixtures::condition(kind, reason, "20 of 100 documents failed", at);
    let status = if i.is_multiple_of(10) {
        json!({"phase": "Failed", "conditions": [condition("Failed", "TooManyFailed")], "failures": failures})
    } else {
        json!({"phase": "Complete", "conditions": [condition("Complete", "Completed")]})
    };
    fixtures::job(json!({
        "metadata": {
            "name": format!("schedule-{schedule:05}-{}", 1_795_000_000 + i), "namespace": format!("team-{}", schedule % 5), "uid": format!("j{i}"),
            "creationTimestamp": crate::domain::from_seconds(1_795_000_000 + i as i64),
            "labels": {"sync.codex.dev/schedule": format!("schedule-{schedule:05}")},
        },
        "status": status,
    }))
}

fn client() -> Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut config = Config::new("http://127.0.0.1:1".parse().unwrap());
    config.default_namespace = "default".to_owned();
    Client::try_from(config).unwrap()
}

/// Measurement of pages. `docs/contributing/testing.md` describes how to run it.
#[tokio::test]
#[ignore = "a measurement"]
async fn pages_of_runs() {
    let objects = Objects::from_objects(client(), (0..SCHEDULES).map(schedule).collect(), (0..RUNS).map(job).collect());
    let state = crate::http::HttpState {
        queue: Queue::new("redis://127.0.0.1:1", "speed", Duration::from_secs(30)).unwrap(),
        cluster: None,
        leadership: watch::channel(None).1,
        worker_health: watch::channel(None).1,
        lacks_mongodb: watch::channel(false).1,
        objects: None,
        schedule_health: crate::http::ScheduleHealth::default(),
        depth: crate::http::RecentDepth::default(),
    };
    let many = 1_000_000.try_into().unwrap();
    let dashboard = Some(Sessions::new(None, false).unwrap());
    let settings = HttpSettings {
        reads: None,
        requests_per_second: many,
        requests_at_a_time: many,
        requests_per_caller: many,
        dashboard,
        logs: None,
        proxies: None,
        prefix: None,
        hosts: Vec::new(),
        lease: LeaseName { namespace: None, name: "sync-operator".to_owned() },
    };
    let router = router(state, objects, settings, "speed", CancellationToken::new());
    let send = async |path: &str, form: Option<&str>| {
        let request = if form.is_some() { Request::post(path) } else { Request::get(path) };
        let request =
            request.header("accept", "text/html").header("host", "localhost").header("sec-fetch-site", "same-origin");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let request = request.body(Body::from(form.unwrap_or_default().to_owned())).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes().len())
    };
    let mut slow = Vec::new();
    for (path, form) in [
        ("/ui/runs", None),
        ("/ui/runs?text=schedule-0", None),
        ("/ui/runs?text=le", None),
        ("/ui/runs?text=00-1795099999", None),
        ("/ui/runs?schedule=schedule-05000", None),
        ("/ui/runs?phase=Complete", None),
        ("/ui/runs?phase=Failed&namespace=team-3&type=User", None),
        ("/ui/runs?phase=Complete&type=Issue", None),
        ("/ui/runs?error=valid+fail", None),
        ("/ui/runs?key=user-77770-1", None),
        ("/ui/runs?key=user", None),
        ("/ui/bulk", Some("action=delete&all=true&filter=")),
        ("/ui/bulk", Some("action=retry&all=true&filter=error%3Dvalidation")),
    ] {
        let (mut times, mut size) = (Vec::new(), 0);
        for _ in 0..20 {
            let began = Instant::now();
            let (code, bytes) = send(path, form).await;
            assert_eq!(code, 200, "{path}");
            times.push(began.elapsed());
            size = bytes;
        }
        times.sort();
        let form = form.unwrap_or_default();
        println!("{path} {form}: median {:?}, slowest {:?}, {size} bytes", times[10], times[19]);
        assert!(size < 100_000, "{path}");
        if times[10] >= Duration::from_millis(50) {
            slow.push(path);
        }
    }
    assert_eq!(slow, [""; 0], "slower than 50 ms");
}
