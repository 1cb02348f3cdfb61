//! Benchmarks on real servers: `make bench`, and `make bench-peers` for a comparison with other software.
//! `docs/operations/performance.md` describes the measurements.
//!
//! `speed measure SET` runs a set of cases in alternation, each in a process of its own that prints what it measured
//! as JSON, and appends that to `$BENCH_RESULTS`; `speed table` makes the tables. `speed case …` is one case.

mod floor;
mod measure;
mod runs;
mod table;
mod users;

use std::{env, error::Error, process::ExitCode};

use serde::{Deserialize, Serialize};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Measurements of a case. The Node scripts print the same fields.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Figures {
    /// Runs or users per second.
    #[serde(default)]
    per_s: f64,
    /// Median from enqueue to start, in milliseconds.
    #[serde(default)]
    p50_ms: f64,
    /// 99th percentile from enqueue to start, in milliseconds.
    #[serde(default)]
    p99_ms: f64,
    /// CPU time of the process that does the work, in seconds.
    cpu_s: f64,
    /// Peak resident memory of this process, in MiB.
    rss_mib: f64,
}

fn main() -> ExitCode {
    // `cargo bench` adds --bench.
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[&str]) -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    // As many threads as the operator has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let figures = match *args {
        ["measure", set] => return runtime.block_on(measure::measure(set)),
        ["table"] => return table::print(),
        ["case", "runs", slots, count] => runtime.block_on(runs::throughput(slots.parse()?, count.parse()?))?,
        ["case", "latency", slots, count, rate] => {
            runtime.block_on(runs::latency(slots.parse()?, count.parse()?, rate.parse()?))?
        }
        ["case", "users", batch, parallelism] => {
            runtime.block_on(users::full_run(batch.parse()?, parallelism.parse()?))?
        }
        ["case", "floor", mode, batch, connections] => {
            runtime.block_on(floor::run(mode, batch.parse()?, connections.parse()?))?
        }
        _ => return Err("run `make bench` or `make bench-peers`".into()),
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    env::var(name).map_err(|_| format!("{name} is not set: run `make bench`").into())
}

/// A number from the environment, or a default.
fn setting(name: &str, default: u32) -> Result<u32> {
    env::var(name).map_or(Ok(default), |text| text.parse().map_err(|_| format!("{name}={text} is no number").into()))
}
