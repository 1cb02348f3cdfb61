//! A Full run of all users by a real `sync-operator worker` process, from its claim to its end.

use std::{process::Command, time::Duration};

use bson::{Document, doc};
use sync_operator::{
    api::SyncJobSpec,
    domain::run::{Checkpoint, Payload, State},
    queue::{NewRun, Queue},
};
use tokio::time::{Instant, sleep};

use test_support::process::{PEAK, Process};

use crate::{Figures, Result, floor, variable};

const LEASE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(1800);
const UID: &str = "full-run";

/// Stamps every user of the collection.
pub async fn full_run(batch: i32, parallelism: i32) -> Result<Figures> {
    let redis = variable("REDIS_URL")?;
    let queue = Queue::new(&redis, "bench", LEASE)?;
    let mut process = Command::new(env!("CARGO_BIN_EXE_sync-operator"));
    process.arg("worker").env("MONGODB_DATABASE", floor::DATABASE).env("QUEUE_NAME", "bench").env("METRICS_PORT", "0");
    let worker = Process::start(process.env("RUST_LOG", "warn"));
    let began = Instant::now();
    while queue.depth().await?.workers == 0 {
        expect(began)?;
    }

    let spec = serde_json::json!({"syncType": "Full", "batchSize": batch, "parallelism": parallelism});
    let spec: SyncJobSpec = serde_json::from_value(spec)?;
    let payload = Payload { namespace: "default".to_owned(), name: "users".to_owned(), spec };
    let payload = serde_json::to_string(&payload)?;
    let cpu = worker.cpu_s();
    queue.enqueue(&NewRun::new(UID, &payload)).await?;
    let ended = loop {
        let entry = queue.get(UID).await?.ok_or("the run is gone")?;
        if matches!(entry.state, State::Completed | State::Failed) {
            break entry;
        }
        expect(began)?;
        sleep(Duration::from_millis(20)).await;
    };
    let (cpu_s, rss_mib) = (worker.cpu_s() - cpu, worker.memory_mib(PEAK));
    let (Some(start), Some(end)) = (ended.started, ended.finished) else { return Err("the run has no times".into()) };

    let checkpoint: Checkpoint = serde_json::from_str(ended.checkpoint.as_deref().unwrap_or("{}"))?;
    let users = floor::client(1).await?.database(floor::DATABASE).collection::<Document>("users");
    let stamp = bson::DateTime::from_millis(start.as_millisecond());
    let (all, stamped) =
        (users.count_documents(doc! {}).await?, users.count_documents(doc! {"lastSynced": stamp}).await?);
    if ended.state != State::Completed || stamped != all || checkpoint.counts.updated != all as i64 {
        return Err(format!("{stamped} of {all} users are stamped: {ended:?}").into());
    }
    let seconds = (end.as_millisecond() - start.as_millisecond()) as f64 / 1000.0;
    Ok(Figures { per_s: all as f64 / seconds, cpu_s, rss_mib, ..Figures::default() })
}

fn expect(began: Instant) -> Result<()> {
    if began.elapsed() < LIMIT { Ok(()) } else { Err("the run does not end".into()) }
}
