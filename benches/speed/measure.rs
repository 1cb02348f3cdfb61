//! Execution of cases in alternation, so that other load of the machine affects all of them.

use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

use bson::{DateTime, Document, doc};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::{Figures, Result, floor, setting, variable};

/// One case of a set, and how to run it.
struct Case {
    name: String,
    command: Vec<String>,
}

/// Stored result of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// The set: `queue`, `queue-aof`, `users-100000`, …
    pub set: String,
    /// The case.
    pub case: String,
    /// Cases of one round ran close together.
    pub round: u32,
    /// Load average of the machine when it started.
    pub load: f64,
    /// Measurements of the case.
    #[serde(flatten)]
    pub figures: Figures,
}

fn ours(args: &[&str]) -> Result<Vec<String>> {
    let program = std::env::current_exe()?.into_os_string().into_string().map_err(|_| "an odd path")?;
    Ok([&[program.as_str(), "case"], args].concat().iter().map(ToString::to_string).collect())
}

fn peer(args: &[&str]) -> Result<Vec<String>> {
    let script = format!("{}/{}", variable("BENCH_PEERS")?, args[0]);
    Ok([&["node", &script], &args[1..]].concat().iter().map(ToString::to_string).collect())
}

/// Slots, and how many runs they drain.
const CONCURRENCY: [(&str, &str); 4] = [("1", "10000"), ("10", "30000"), ("50", "30000"), ("200", "30000")];

fn cases(set: &str) -> Result<Vec<Case>> {
    let (work, peers) = set.strip_prefix("peers-").map_or((set, false), |work| (work, true));
    let mut cases = Vec::new();
    let mut add = |name: String, command: Result<Vec<String>>| -> Result<()> {
        cases.push(Case { name, command: command? });
        Ok(())
    };
    match work {
        "queue" => {
            for (slots, count) in CONCURRENCY {
                add(format!("runs {slots}"), ours(&["runs", slots, count]))?;
                if peers {
                    add(format!("BullMQ runs {slots}"), peer(&["bullmq-runs.mjs", slots, count]))?;
                }
            }
            add("latency".to_owned(), ours(&["latency", "10", "2000", "200"]))?;
            if peers {
                add("BullMQ latency".to_owned(), peer(&["bullmq-latency.mjs", "10", "2000", "200"]))?;
            }
        }
        "users" => {
            for batch in ["100", "1000"] {
                for parallelism in if peers { &["4"][..] } else { &["4", "1"] } {
                    add(format!("sync {batch} x {parallelism}"), ours(&["users", batch, parallelism]))?;
                    add(format!("range {batch} x {parallelism}"), ours(&["floor", "range", batch, parallelism]))?;
                }
                if peers {
                    add(format!("bulk {batch} x 4"), ours(&["floor", "bulk", batch, "4"]))?;
                    add(format!("BullMQ {batch}"), peer(&["bullmq-users.mjs", batch]))?;
                }
            }
            if peers {
                add("Bull 100".to_owned(), peer(&["bull-users.mjs", "100"]))?;
            }
        }
        _ => return Err(format!("no set {set}").into()),
    }
    Ok(cases)
}

/// Runs a set `$ROUNDS` times (3) and keeps the samples.
pub async fn measure(set: &str) -> Result<()> {
    let client = redis::Client::open(variable("REDIS_URL")?)?;
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let mut redis = client.get_multiplexed_async_connection_with_config(&patient).await?;
    let full: u64 = redis::cmd("DBSIZE").query_async(&mut redis).await?;
    let path = variable("BENCH_RESULTS")?;
    if full > 0 {
        return Err("this Redis holds data, and benchmarks empty it: give them one of their own".into());
    }
    let mut results = OpenOptions::new().create(true).append(true).open(path)?;
    let rounds = setting("ROUNDS", 3)?;
    let mut modes = vec![set.to_owned()];
    if set.ends_with("queue") {
        modes.push(format!("{set}-aof"));
    } else {
        modes = vec![format!("{set}-{}", prepare_users().await?)];
    }
    for name in modes {
        append_only(&mut redis, !name.ends_with("queue")).await?;
        for round in 1..=rounds {
            for case in cases(set)? {
                redis::cmd("FLUSHALL").exec_async(&mut redis).await?;
                let load = load()?;
                let figures = run(&case.command)?;
                let sample = Sample { set: name.clone(), case: case.name, round, load, figures };
                writeln!(results, "{}", serde_json::to_string(&sample)?)?;
                let Figures { per_s, p50_ms, p99_ms, cpu_s, rss_mib } = sample.figures;
                let rate = if per_s > 0.0 {
                    format!("{per_s:.0}/s")
                } else {
                    format!("p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms")
                };
                eprintln!(
                    "{name} {round}/{rounds}  {}: {rate}, CPU {cpu_s:.1} s, {rss_mib:.0} MiB (load {load:.1})",
                    sample.case
                );
            }
        }
    }
    redis::cmd("FLUSHALL").exec_async(&mut redis).await?;
    Ok(())
}

fn load() -> Result<f64> {
    Ok(std::fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or_default().parse()?)
}

/// Runs a case. What it prints last is what it measured.
fn run(command: &[String]) -> Result<Figures> {
    let mut child = Command::new(&command[0]).args(&command[1..]).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let last = BufReader::new(output).lines().last().transpose()?;
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("{}: {status}", command.join(" ")).into());
    }
    Ok(serde_json::from_str(&last.unwrap_or_default())?)
}

/// Redis with or without an append-only file, written to disk every second.
async fn append_only(redis: &mut redis::aio::MultiplexedConnection, on: bool) -> Result<()> {
    let value = if on { "yes" } else { "no" };
    redis::cmd("CONFIG").arg("SET").arg("appendonly").arg(value).exec_async(redis).await?;
    loop {
        let info: String = redis::cmd("INFO").arg("persistence").query_async(redis).await?;
        if info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0") {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Gives MongoDB a cache that holds the users, and every user a stamp, so that all runs replace one. Returns how
/// many users there are.
async fn prepare_users() -> Result<u64> {
    let client = floor::client(1).await?;
    let cache = doc! {"setParameter": 1, "wiredTigerEngineRuntimeConfig": "cache_size=2G"};
    client.database("admin").run_command(cache).await?;
    let users = client.database(floor::DATABASE).collection::<Document>("users");
    users.update_many(doc! {}, doc! {"$set": {"lastSynced": DateTime::from_millis(0)}}).await?;
    Ok(users.count_documents(doc! {}).await?)
}
