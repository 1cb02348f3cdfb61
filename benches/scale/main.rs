//! Many schedules on a real API server: `make bench-scale`. How to read it: `docs/operations/performance.md`.
//!
//! `SCHEDULES` (10000) are due in one minute, spread by a jitter of 60 s, each with a run over 10 users. Then the operator
//! is started again, with `JOBS` (40000) finished SyncJobs there.

#[path = "../speed/process.rs"]
mod process;

use std::{env, error::Error, process::Command, time::Duration};

use bson::{Document, doc};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    api::core::v1::Namespace,
    jiff::{Timestamp, ToSpan, Unit},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, PostParams},
};
use process::Operator;
use serde_json::json;
use sync_operator::api::{SCHEDULE_LABEL, SyncJob, SyncJobStatus, SyncSchedule};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Requests at a time when objects are made.
const MAKERS: usize = 64;
const PORT: u16 = 19_090;
const USERS: i32 = 10;
const IDLE: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(1200);

#[tokio::main]
async fn main() -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let (schedules, jobs) = (setting("SCHEDULES", 10_000)?, setting("JOBS", 40_000)?);
    let client = Client::try_default().await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": "scale"}}))?).await?;
    let users = mongodb::Client::with_uri_str(env::var("MONGODB_URI")?).await?.database("scale");
    let users = users.collection::<Document>("users");
    users.insert_many((0..USERS).map(|id| doc! {"_id": id})).await?;

    println!("| what | measured |\n| --- | --- |");
    let due = make_schedules(&client, schedules).await?;
    let operator = start_operator()?;
    let began = Instant::now();
    until("every schedule knows its next slot", async || Ok(scheduled(&client).await? == schedules)).await?;
    tell("first pass over new schedules", format!("{:.0} s", began.elapsed().as_secs_f64()));
    if Timestamp::now() > due {
        return Err("the slot came before every schedule was seen: give a longer LEAD".into());
    }
    tell("CPU, schedules waiting", format!("{:.2} % of a core", idle(&operator).await?));
    burst(&client, &operator, due, schedules).await?;
    drop(operator);

    make_jobs(&client, jobs).await?;
    let operator = start_operator()?;
    let began = Instant::now();
    until("the operator is ready", async || Ok(get("/readyz").await.is_ok_and(|answer| answer.contains(" 200 OK"))))
        .await?;
    tell("cold start to ready", format!("{:.1} s", began.elapsed().as_secs_f64()));
    sleep(IDLE).await;
    tell("CPU after a cold start, all at rest", format!("{:.2} % of a core", idle(&operator).await?));
    tell("peak memory after a cold start", format!("{:.0} MiB", operator.rss_mib()?));
    Ok(())
}

fn setting(name: &str, default: usize) -> Result<usize> {
    env::var(name).map_or(Ok(default), |text| text.parse().map_err(|_| format!("{name}={text} is no number").into()))
}

fn tell(what: &str, measured: impl std::fmt::Display) {
    println!("| {what} | {measured} |");
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds().await? {
        if began.elapsed() > LIMIT {
            return Err(format!("waited {LIMIT:?} in vain: {what}").into());
        }
        sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Makes the schedules, all for one full minute, which is returned.
async fn make_schedules(client: &Client, count: usize) -> Result<Timestamp> {
    let lead = setting("LEAD", 60 + count / 60)?;
    let due = (Timestamp::now() + (lead as i64).seconds()).round(Unit::Minute)?;
    let clock = due.strftime("%M %H * * *").to_string();
    let spec = json!({
        "schedule": clock, "jitter": "60s", "jobTemplate": {"spec": {"syncType": "Full", "target": {"database": "scale"}}}
    });
    let began = Instant::now();
    let api: Api<SyncSchedule> = Api::namespaced(client.clone(), "scale");
    stream::iter(0..count)
        .map(|number| {
            let (api, spec) = (api.clone(), spec.clone());
            async move {
                let schedule = SyncSchedule::new(&format!("s{number:05}"), serde_json::from_value(spec)?);
                Ok::<_, Box<dyn Error + Send + Sync>>(api.create(&PostParams::default(), &schedule).await.map(drop)?)
            }
        })
        .buffer_unordered(MAKERS)
        .try_collect::<()>()
        .await?;
    tell("schedules", format!("{count}, made at {:.0}/s", count as f64 / began.elapsed().as_secs_f64()));
    Ok(due)
}

/// Makes finished SyncJobs, spread over the schedules.
async fn make_jobs(client: &Client, count: usize) -> Result<()> {
    let schedules: Api<SyncSchedule> = Api::namespaced(client.clone(), "scale");
    let jobs: Api<SyncJob> = Api::namespaced(client.clone(), "scale");
    let owners = schedules.list(&ListParams::default()).await?.items;
    let now = Timestamp::now().round(Unit::Second)?;
    let ended = json!({"type": "Complete", "status": "True", "reason": "Completed", "message": "10 of 10 documents updated, 0 failed", "lastTransitionTime": now});
    let status: SyncJobStatus = serde_json::from_value(json!({
        "phase": "Complete", "progress": 100, "completionTime": now, "startTime": now, "duration": "12ms", "conditions": [ended],
        "counts": {"total": 10, "processed": 10, "updated": 10, "unchanged": 0, "failed": 0}, "attempts": 0, "recoveries": 0,
    }))?;
    let began = Instant::now();
    stream::iter(0..count)
        .map(|number| {
            let (jobs, owner, status) = (jobs.clone(), &owners[number % owners.len()], status.clone());
            async move {
                let mut job =
                    SyncJob::new(&format!("{}-{number}", owner.name_any()), owner.spec.job_template.spec.clone());
                job.metadata.owner_references = Some(owner.controller_owner_ref(&()).into_iter().collect());
                job.labels_mut().insert(SCHEDULE_LABEL.to_owned(), owner.name_any());
                let mut job = jobs.create(&PostParams::default(), &job).await?;
                job.status = Some(status);
                jobs.replace_status(&job.name_any(), &PostParams::default(), &job).await?;
                Ok::<_, Box<dyn Error + Send + Sync>>(())
            }
        })
        .buffer_unordered(MAKERS)
        .try_collect::<()>()
        .await?;
    tell(
        "finished SyncJobs besides",
        format!("{count}, made at {:.0}/s", count as f64 / began.elapsed().as_secs_f64()),
    );
    Ok(())
}

async fn scheduled(client: &Client) -> Result<usize> {
    sleep(Duration::from_secs(4)).await;
    let api: Api<SyncSchedule> = Api::namespaced(client.clone(), "scale");
    let known =
        |schedule: &SyncSchedule| schedule.status.as_ref().is_some_and(|status| status.next_schedule_time.is_some());
    Ok(api.list(&ListParams::default()).await?.items.iter().filter(|schedule| known(schedule)).count())
}

async fn idle(operator: &Operator) -> Result<f64> {
    let before = operator.cpu_s()?;
    sleep(IDLE).await;
    Ok((operator.cpu_s()? - before) / IDLE.as_secs_f64() * 100.0)
}

async fn burst(client: &Client, operator: &Operator, due: Timestamp, count: usize) -> Result<()> {
    let (writes, cpu) = (api_writes(client).await?, operator.cpu_s()?);
    until("every run was made", async || Ok(metric("sync_schedule_skew_seconds_count").await? as usize >= count))
        .await?;
    let made = Timestamp::now().duration_since(due).as_secs_f64();
    let api: Api<SyncSchedule> = Api::namespaced(client.clone(), "scale");
    until("every run was counted", async || {
        sleep(Duration::from_secs(4)).await;
        let all = api.list(&ListParams::default()).await?.items;
        let counted = |schedule: &SyncSchedule| schedule.status.as_ref().map_or(0, |status| status.runs.succeeded);
        Ok(all.iter().map(counted).sum::<i64>() >= count as i64)
    })
    .await?;
    let done = Timestamp::now().duration_since(due).as_secs_f64();
    sleep(Duration::from_secs(5)).await;
    let (p50, p99) = (quantile(0.5).await?, quantile(0.99).await?);
    tell("all runs made, after the first start", format!("{made:.0} s (jitter 60 s)"));
    tell("all runs counted", format!("{done:.0} s"));
    tell("skew, from slot and jitter to the SyncJob", format!("p50 {p50}, p99 {p99}"));
    tell("API writes a run", format!("{:.1}", (api_writes(client).await? - writes) / count as f64));
    tell("CPU of the operator, a run", format!("{:.1} ms", (operator.cpu_s()? - cpu) * 1000.0 / count as f64));
    tell("peak memory so far", format!("{:.0} MiB", operator.rss_mib()?));
    tell("leads still", metric("sync_leader").await?);
    Ok(())
}

/// Writes of the operator's kinds and of events that the API server has carried out.
async fn api_writes(client: &Client) -> Result<f64> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    let ours = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && ["POST", "PUT", "PATCH", "DELETE"].iter().any(|verb| line.contains(&format!("verb=\"{verb}\"")))
            && ["syncjobs", "syncschedules", "events"].iter().any(|kind| line.contains(&format!("resource=\"{kind}\"")))
    };
    Ok(text.lines().filter(ours).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

async fn get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", PORT)).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn metric(name: &str) -> Result<f64> {
    let text = get("/metrics").await?;
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0))
}

/// The bucket of the histogram in which a quantile falls.
async fn quantile(share: f64) -> Result<String> {
    let text = get("/metrics").await?;
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("sync_schedule_skew_seconds_bucket{le=\"")) {
        let (limit, count) = line.split_once("\"} ").ok_or("odd histogram")?;
        buckets.push((limit.parse().unwrap_or(f64::INFINITY), count.parse()?));
    }
    let all = buckets.last().map_or(0.0, |bucket| bucket.1);
    let reached = buckets.iter().find(|bucket| bucket.1 >= all * share);
    Ok(reached.map_or("?".to_owned(), |bucket| format!("≤ {} s", bucket.0)))
}

fn start_operator() -> Result<Operator> {
    let mut process = Command::new(env!("CARGO_BIN_EXE_sync-operator"));
    process.args(["controller", "--status-writes-per-second", "200", "--metrics-address", "127.0.0.1"]);
    process.args(["--metrics-port", &PORT.to_string()]);
    process.env("MONGODB_DATABASE", "scale").env("WATCH_NAMESPACE", "scale").env("RUST_LOG", "warn");
    Operator::start(&mut process)
}
