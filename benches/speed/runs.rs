//! Runs without work, through the real worker in this process: claim, lease, payload, log events, end.
//!
//! Each names a database that the operator does not allow, so the worker ends it without asking MongoDB. That is no
//! less work for the queue than a run that completes: it also writes an attempt into the run's history.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use sync_operator::{
    api::SyncJobSpec,
    domain::run::Payload,
    engine::{SecretReader, Sources, Targets},
    policy::CurrentPolicy,
    queue::{NewRun, Queue},
    sync::Deployment,
    worker::{self, WorkerHealth, WorkerSettings},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Event, Subscriber, field::Field};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use test_support::process;

use crate::{Figures, Result, variable};

const LEASE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(300);

/// Drains `count` runs that wait.
pub async fn throughput(slots: usize, count: usize) -> Result<Figures> {
    let queue = Queue::new(&variable("REDIS_URL")?, "bench", LEASE)?;
    let payload = payload()?;
    let enqueued = stream::iter(0..count).map(|number| enqueue(&queue, &payload, number));
    enqueued.buffer_unordered(64).try_collect::<()>().await?;

    let cpu = process::cpu_s(std::process::id());
    let began = Instant::now();
    let working = work(&queue, slots).await?;
    timeout(LIMIT, drained(&queue)).await??;
    let elapsed = began.elapsed();
    let cpu_s = process::cpu_s(std::process::id()) - cpu;
    working.stop().await?;
    Ok(Figures {
        per_s: count as f64 / elapsed.as_secs_f64(),
        cpu_s,
        rss_mib: process::memory_mib(std::process::id(), process::PEAK),
        ..Figures::default()
    })
}

/// Enqueues `rate` runs per second, whether or not the earlier ones have started, and measures the time from each
/// enqueue to the claim of the run by the worker.
pub async fn latency(slots: usize, count: usize, rate: u32) -> Result<Figures> {
    let queue = Queue::new(&variable("REDIS_URL")?, "bench", LEASE)?;
    let starts = Starts::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(starts.clone()))?;
    let payload: Arc<str> = payload()?.into();
    let working = work(&queue, slots).await?;
    sleep(Duration::from_secs(1)).await; // The worker waits at the notifier.

    let cpu = process::cpu_s(std::process::id());
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut calls = Vec::with_capacity(count);
    for number in 0..count {
        ticks.tick().await;
        let (queue, payload, sent) = (queue.clone(), Arc::clone(&payload), Instant::now());
        calls.push(tokio::spawn(async move { enqueue(&queue, &payload, number).await.map(|()| sent) }));
    }
    let mut sent = Vec::with_capacity(count);
    for call in calls {
        sent.push(call.await??);
    }
    timeout(LIMIT, drained(&queue)).await??;
    let cpu_s = process::cpu_s(std::process::id()) - cpu;
    working.stop().await?;

    let started = starts.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut waits = Vec::with_capacity(count);
    for (number, sent) in sent.iter().enumerate() {
        let at = started.get(&uid(number)).ok_or("a run has not started")?;
        waits.push(at.duration_since(*sent).as_secs_f64() * 1000.0);
    }
    waits.sort_by(f64::total_cmp);
    let rank = |share: f64| waits[((waits.len() as f64 * share).ceil() as usize).clamp(1, waits.len()) - 1];
    let rss_mib = process::memory_mib(std::process::id(), process::PEAK);
    Ok(Figures { p50_ms: rank(0.5), p99_ms: rank(0.99), cpu_s, rss_mib, ..Figures::default() })
}

fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

fn payload() -> Result<String> {
    let spec: SyncJobSpec = serde_json::from_str(r#"{"target": {"database": "not-allowed"}}"#)?;
    let name = "user-sync-28935360".to_owned();
    Ok(serde_json::to_string(&Payload { namespace: "default".to_owned(), name, spec })?)
}

async fn enqueue(queue: &Queue, payload: &str, number: usize) -> Result<()> {
    let uid = uid(number);
    if queue.enqueue(&NewRun::new(&uid, payload)).await? { Ok(()) } else { Err("the queue is not empty".into()) }
}

async fn drained(queue: &Queue) -> Result<()> {
    loop {
        let depth = queue.depth().await?;
        if depth.waiting + depth.active == 0 {
            return Ok(());
        }
        sleep(Duration::from_millis(5)).await;
    }
}

struct Working {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::result::Result<(), worker::NotRenewed>>,
}

impl Working {
    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        Ok(self.task.await??)
    }
}

async fn work(queue: &Queue, slots: usize) -> Result<Working> {
    let shared = Deployment::new(&variable("MONGODB_URI")?, "bench", &[], None).await?;
    let (reporter, _health) = WorkerHealth::new(LEASE, slots);
    let stop = CancellationToken::new();
    let settings = WorkerSettings { id: worker::new_id(), slots };
    let targets = Targets::new(shared, CurrentPolicy::default(), SecretReader::None);
    let task = tokio::spawn(worker::run(settings, queue.clone(), targets, Sources::default(), reporter, stop.clone()));
    Ok(Working { stop, task })
}

/// Notes when the worker says that it has claimed a run.
#[derive(Clone, Default)]
struct Starts(Arc<Mutex<HashMap<String, Instant>>>);

impl<S: Subscriber> Layer<S> for Starts {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut claimed = Claimed::default();
        event.record(&mut claimed);
        if claimed.is {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(claimed.uid, Instant::now());
        }
    }
}

#[derive(Default)]
struct Claimed {
    is: bool,
    uid: String,
}

impl tracing::field::Visit for Claimed {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.is |= field.name() == "message" && format!("{value:?}") == "run claimed";
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "uid" {
            value.clone_into(&mut self.uid);
        }
    }
}
