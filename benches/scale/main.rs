//! Benchmark of many schedules on a real API server: `make bench-scale`. `docs/operations/performance.md` describes it.
//!
//! `SCHEDULES` (10000) are due in one minute, spread by a jitter of 60 s, each with a run over 10 users. Then the
//! operator is started again, with `JOBS` (40000) finished SyncJobs in the namespace; 0 disables this part.

mod sidecar;

use std::{collections::BTreeMap, env, error::Error, fs, path::Path, process::Command, time::Duration};

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
use serde_json::json;
use sync_operator::api::{SCHEDULE_LABEL, SyncJob, SyncJobStatus, SyncSchedule};
use test_support::{
    get,
    process::{PEAK, Process, RESIDENT},
};
use tokio::time::{Instant, sleep};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Number of concurrent requests that create objects.
const MAKERS: usize = 64;
const PORT: u16 = 19_090;
const USERS: i32 = 10;
/// Number of schedules for the measurement of `/jobs/status`, which lists all of them: a number that users read.
const FEW: usize = 100;
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

    println!("load average {}", fs::read_to_string("/proc/loadavg")?.trim());
    println!("| what | measured |\n| --- | --- |");
    let due = make_schedules(&client, schedules).await?;
    let log = env::temp_dir().join(format!("sync-operator-scale-{}.log", std::process::id()));
    let operator = start_operator(&log)?;
    let began = Instant::now();
    until("every schedule knows its next slot", async || Ok(scheduled(&client).await? == schedules)).await?;
    tell("first pass over new schedules", format!("{:.0} s", began.elapsed().as_secs_f64()));
    if Timestamp::now() > due {
        return Err("the slot came before every schedule was seen: give a longer LEAD".into());
    }
    tell("CPU, schedules waiting", format!("{:.2} % of a core", idle(&operator).await?));
    tell("CPU of a scrape", format!("{:.2} ms", scrape(&operator).await?));
    tell("memory, schedules waiting", memory(&operator));
    burst(&client, &operator, due, schedules, &log).await?;
    drop(operator);
    if jobs == 0 {
        return Ok(());
    }

    make_jobs(&client, jobs).await?;
    let operator = start_operator(&log)?;
    let began = Instant::now();
    until("the operator is ready", async || Ok(get(PORT, "/readyz").await.is_some_and(|(code, _)| code == 200)))
        .await?;
    tell("cold start to ready", format!("{:.1} s", began.elapsed().as_secs_f64()));
    sleep(IDLE).await;
    tell("CPU after a cold start, all at rest", format!("{:.2} % of a core", idle(&operator).await?));
    tell("memory after a cold start", memory(&operator));
    fs::remove_file(log).ok();
    drop(operator);
    if schedules <= FEW { sidecar::measure().await } else { Ok(()) }
}

fn memory(operator: &Process) -> String {
    format!("{:.0} MiB, peak {:.0} MiB", operator.memory_mib(RESIDENT), operator.memory_mib(PEAK))
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

/// Creates the schedules, all for one full minute, and returns this minute.
async fn make_schedules(client: &Client, count: usize) -> Result<Timestamp> {
    let lead = setting("LEAD", 60 + count / 60)?;
    let due = (Timestamp::now() + (lead as i64).seconds()).round(Unit::Minute)?;
    let clock = due.strftime("%M %H * * *").to_string();
    let spec = json!({
        "schedule": clock, "jitter": "60s", "successfulJobsHistoryLimit": 1000, "jobTemplate": {"spec": {"syncType": "Full", "target": {"database": "scale"}}}
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

/// Creates finished SyncJobs, spread over the schedules.
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

async fn idle(operator: &Process) -> Result<f64> {
    let before = operator.cpu_s();
    sleep(IDLE).await;
    Ok((operator.cpu_s() - before) / IDLE.as_secs_f64() * 100.0)
}

/// Milliseconds of CPU that one takes.
async fn scrape(operator: &Process) -> Result<f64> {
    const SCRAPES: u32 = 200;
    let before = operator.cpu_s();
    for _ in 0..SCRAPES {
        get(PORT, "/metrics").await.ok_or("the operator does not answer")?;
    }
    Ok((operator.cpu_s() - before) * 1000.0 / f64::from(SCRAPES))
}

async fn burst(client: &Client, operator: &Process, due: Timestamp, count: usize, log: &Path) -> Result<()> {
    let (writes, cpu) = (api_writes(client).await?, operator.cpu_s());
    let reaches = async |name: &str| Ok(metric(name).await? as usize >= count);
    until("every run was made", async || reaches("sync_schedule_skew_seconds_count").await).await?;
    let made = Timestamp::now().duration_since(due).as_secs_f64();
    let api: Api<SyncSchedule> = Api::namespaced(client.clone(), "scale");
    // A list of all schedules is asked for only when most of them have counted theirs: it costs the API server much.
    until("the metrics have every run", async || reaches("sync_run_duration_seconds_count").await).await?;
    until("every run was counted", async || {
        sleep(Duration::from_secs(4)).await;
        let all = api.list(&ListParams::default()).await?.items;
        let counted = |schedule: &SyncSchedule| schedule.status.as_ref().map_or(0, |status| status.runs.succeeded);
        Ok(all.iter().map(counted).sum::<i64>() >= count as i64)
    })
    .await?;
    let done = Timestamp::now().duration_since(due).as_secs_f64();
    sleep(Duration::from_secs(5)).await;
    tell("all runs made, after the first start", format!("{made:.0} s (jitter 60 s)"));
    tell("all runs counted", format!("{done:.0} s"));
    let skews = skews(log)?;
    let at = |share: f64| skews.get((share * (skews.len() - 1) as f64) as usize).copied().unwrap_or(f64::NAN);
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    tell("skew, from slot and jitter to the SyncJob", format!("p50 {p50:.3} s, p99 {p99:.3} s, most {max:.3} s"));
    let after = api_writes(client).await?;
    let mut all = 0.0;
    for (what, total) in after {
        let each = (total - writes.get(&what).unwrap_or(&0.0)) / count as f64;
        all += each;
        if each >= 0.005 {
            tell(&format!("- {what}, a run"), format!("{each:.2}"));
        }
    }
    tell("API writes a run", format!("{all:.2}"));
    tell("CPU of the operator, a run", format!("{:.1} ms", (operator.cpu_s() - cpu) * 1000.0 / count as f64));
    tell("memory, all runs counted", memory(operator));
    tell("leads still", metric("sync_leader").await?);
    Ok(())
}

/// Seconds from the time of each slot until its SyncJob was made, in order, from the operator's log.
fn skews(log: &Path) -> Result<Vec<f64>> {
    let text = fs::read_to_string(log)?;
    let of = |line: &str| line.split_once("\"skew\":")?.1.split([',', '}']).next()?.parse::<f64>().ok();
    let mut skews: Vec<f64> = text.lines().filter_map(of).collect();
    skews.sort_by(f64::total_cmp);
    if skews.is_empty() { Err("the operator's log has no skew".into()) } else { Ok(skews) }
}

/// Writes of the operator's kinds and of events that the API server was asked for, by verb and resource.
async fn api_writes(client: &Client) -> Result<BTreeMap<String, f64>> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    let mut writes = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
        let label = |name: &str| line.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split('"').next());
        let (verb, resource) = (label(",verb").unwrap_or_default(), label(",resource").unwrap_or_default());
        if ["POST", "PUT", "PATCH", "DELETE"].contains(&verb)
            && ["syncjobs", "syncschedules", "events"].contains(&resource)
        {
            let (code, part) = (label("code").unwrap_or_default(), label("subresource").unwrap_or_default());
            let what = format!("{verb} {resource} {part} {code}").replace("  ", " ");
            *writes.entry(what).or_default() += line.rsplit(' ').next().ok_or("odd metric")?.parse::<f64>()?;
        }
    }
    Ok(writes)
}

async fn metric(name: &str) -> Result<f64> {
    let (_, text) = get(PORT, "/metrics").await.ok_or("the operator does not answer")?;
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0))
}

fn start_operator(log: &Path) -> Result<Process> {
    let mut process = Command::new(env!("CARGO_BIN_EXE_sync-operator"));
    process.args(["controller", "--status-writes-per-second", "200", "--metrics-address", "127.0.0.1"]);
    process.args(["--metrics-port", &PORT.to_string(), "--log-format", "json"]);
    process.env("MONGODB_DATABASE", "scale").env("WATCH_NAMESPACE", "scale");
    process.env("RUST_LOG", "warn,sync_operator::controller::syncschedule=debug");
    process.stderr(fs::OpenOptions::new().create(true).append(true).open(log)?);
    Ok(Process::start(&mut process))
}
