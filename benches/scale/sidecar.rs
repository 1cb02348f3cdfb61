//! `/jobs/status` under load: requests come at a fixed rate, whether or not the earlier ones were answered.

use std::{process::Command, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use test_support::process::{PEAK, Process};

use crate::{Result, tell};

const PORT: u16 = 19_091;
const CONNECTIONS: u32 = 16;
const RATE: u32 = 1_000;
const TIME: Duration = Duration::from_secs(20);

/// Starts the sidecar, and sends it 1,000 requests per second.
pub async fn measure() -> Result<()> {
    let mut process = Command::new(env!("CARGO_BIN_EXE_sync-operator"));
    process.args(["api", "--insecure-no-auth", "--http-requests-per-second", "1000000"]);
    process.args(["--http-port", &PORT.to_string(), "--metrics-port", "0", "--log-level", "warn"]);
    process.env("WATCH_NAMESPACE", "scale");
    let operator = Process::start(&mut process);
    let began = Instant::now();
    while get(&mut connect().await.ok(), "/readyz").await.is_err() {
        sleep(Duration::from_millis(100)).await;
    }
    tell("sidecar, start to ready", format!("{:.1} s", began.elapsed().as_secs_f64()));

    let counted = get(&mut connect().await.ok(), "/jobs/status").await?;
    let completed = counted.split_once("\"completed\":").and_then(|(_, rest)| rest.split(',').next());
    tell("- ended SyncJobs in its answer", completed.unwrap_or("none"));
    let cpu = operator.cpu_s();
    let start = Instant::now() + Duration::from_millis(100);
    let mut clients = JoinSet::new();
    for client in 0..CONNECTIONS {
        clients.spawn(ask(start + client * Duration::from_secs(1) / RATE));
    }
    let mut waits = Vec::new();
    for answered in clients.join_all().await {
        waits.extend(answered?);
    }
    let cpu = (operator.cpu_s() - cpu) / TIME.as_secs_f64() * 100.0;
    waits.sort();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    let rate = waits.len() as f64 / TIME.as_secs_f64();
    tell("/jobs/status", format!("{rate:.0}/s, p50 {:.2} ms, p99 {:.2} ms, most {:.1} ms", at(0.5), at(0.99), at(1.0)));
    tell("CPU of the sidecar meanwhile", format!("{cpu:.0} % of a core"));
    tell("memory of the sidecar, peak", format!("{:.0} MiB", operator.memory_mib(PEAK)));
    Ok(())
}

/// The requests of one connection. Each wait counts from the time when the request was due.
async fn ask(first: Instant) -> Result<Vec<Duration>> {
    let mut connection = Some(connect().await?);
    let mut waits = Vec::new();
    for number in 0..RATE / CONNECTIONS * TIME.as_secs() as u32 {
        let due = first + number * Duration::from_secs(1) * CONNECTIONS / RATE;
        sleep_until(due).await;
        get(&mut connection, "/jobs/status").await?;
        waits.push(due.elapsed());
    }
    Ok(waits)
}

async fn connect() -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", PORT)).await?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// The body of `GET path`, which must be answered with 200.
async fn get(connection: &mut Option<BufReader<TcpStream>>, path: &str) -> Result<String> {
    let connection = connection.as_mut().ok_or("not connected")?;
    connection.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
    let (mut line, mut length, mut code) = (String::new(), 0, String::new());
    loop {
        line.clear();
        connection.read_line(&mut line).await?;
        let text = line.trim_end().to_ascii_lowercase();
        if let Some(rest) = text.strip_prefix("http/1.1 ") {
            rest[..3].clone_into(&mut code);
        } else if let Some(value) = text.strip_prefix("content-length: ") {
            length = value.parse()?;
        } else if text.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    if code == "200" { Ok(String::from_utf8(body)?) } else { Err(format!("{path} was answered with {code}").into()) }
}
