//! `GET /ui/events`, which keeps open pages up to date, and its cost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::{Sidecar, events::Stream};
use crate::support::{PATIENCE, TestEnv, apply_job, apply_schedule, eventually, free_port};

const PAGES: usize = 500;
const RUNS: usize = 50;
const TIME: Duration = Duration::from_secs(60);

async fn next_event(stream: &mut Stream) -> String {
    let event = stream.next().await;
    assert_eq!(event.kind, "changed");
    event.id
}

/// The last event of a series: no further event comes for longer than an interval of the sidecar.
async fn last_event(stream: &mut Stream) -> String {
    let mut last = next_event(stream).await;
    while let Ok(event) = timeout(Duration::from_secs(3), stream.next()).await {
        last = event.id;
    }
    last
}

#[tokio::test]
async fn an_open_page_is_notified_of_changes_in_its_namespace() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let here = format!("/ui/events?namespace={}", env.name);
    let mut all = Stream::open(&sidecar, "/ui/events", None).await;
    let mut page = Stream::open(&sidecar, &here, None).await;
    let mut elsewhere = Stream::open(&sidecar, "/ui/events?namespace=elsewhere", None).await;
    apply_job(&env, "run", json!({})).await;
    last_event(&mut page).await;
    last_event(&mut all).await;
    apply_schedule(&env, "users", json!({"suspended": true})).await;
    let old = last_event(&mut page).await;
    assert_eq!(last_event(&mut all).await, old);

    // A stream resumes after the last event of the client, or of a page that was just loaded.
    let mut last = old.clone();
    for comes_back in [true, false] {
        let made = format!("{here}&since={last}");
        let (path, id) = if comes_back { (&here, Some(last.as_str())) } else { (&made, None) };
        let mut page = Stream::open(&sidecar, path, id).await;
        timeout(Duration::from_millis(1500), page.next()).await.unwrap_err();
        apply_job(&env, &format!("run-{comes_back}"), json!({})).await;
        last = last_event(&mut page).await;
    }
    for path in [format!("{here}&since={old}"), format!("{here}&since=ff-1"), format!("{here}&since=x")] {
        next_event(&mut Stream::open(&sidecar, &path, None).await).await;
    }
    timeout(Duration::from_millis(10), elsewhere.next()).await.unwrap_err();
    sidecar.stop.cancel();
    assert!(timeout(PATIENCE, elsewhere.read()).await.unwrap().is_none());
}

/// CPU and memory of a sidecar with many open pages, while runs progress. docs/contributing/testing.md says how to run
/// it.
#[tokio::test]
#[ignore = "takes a minute"]
async fn load() {
    let env = TestEnv::new().await;
    let port = free_port();
    let http = ["--insecure-no-auth", "--http-requests-per-second", "100000", "--http-port", &port.to_string()];
    let operator = env.operator("api", &http);
    eventually("the sidecar serves", async || reqwest::get(format!("http://127.0.0.1:{port}/livez")).await.ok()).await;
    for run in 0..RUNS {
        apply_job(&env, &format!("run-{run}"), json!({})).await;
    }
    let (events, client) = (Arc::new(AtomicUsize::new(0)), reqwest::Client::new());
    let mut pages = Vec::new();
    for _ in 0..PAGES {
        let request = client.get(format!("http://127.0.0.1:{port}/ui/events")).header("accept", "text/event-stream");
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let events = Arc::clone(&events);
        pages.push(tokio::spawn(async move {
            while let Ok(Some(bytes)) = answer.chunk().await {
                let found = String::from_utf8_lossy(&bytes).matches("event: changed").count();
                events.fetch_add(found, Ordering::Relaxed);
            }
        }));
    }
    let progressing = async {
        for step in 1.. {
            let status = json!({"phase": "Running", "progress": step / RUNS % 100});
            let name = format!("run-{}", step % RUNS);
            env.patch_job_status(&name, status).await;
        }
    };
    let measuring = async {
        sleep(Duration::from_secs(5)).await;
        let (cpu, resident, received) = (operator.cpu(), operator.resident_mib(), events.load(Ordering::Relaxed));
        let began = Instant::now();
        sleep(TIME).await;
        let share = operator.cpu().saturating_sub(cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        let per_page = (events.load(Ordering::Relaxed) - received) as f64 / PAGES as f64;
        let after = operator.resident_mib();
        println!("{:.1} % of a core, {resident} to {after} MiB, {per_page:.1} events a page", share * 100.0);
        assert!(share < 0.2 && after <= resident + 3 && per_page > 5.0);
    };
    tokio::select! { () = progressing => {}, () = measuring => {} }
    assert!(pages.iter().all(|page| !page.is_finished()));
}
