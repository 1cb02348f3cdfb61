//! A whole process under bad requests, slow clients and idle connections; TLS; and what an OpenAPI fuzzer finds.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all, stream};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{Sidecar, auth::administrator};
use crate::servers::Redis;
use crate::support::{
    Servers, TestEnv, apply_job, apply_schedule, condition, eventually, finished, free_port, get, quiet_interval,
    unique,
};

const BAD_REQUESTS: u64 = 10_000;
const IDLE: usize = 1_000;
/// Limit of the memory: far above the need, and far below a leak of every bad request.
const MOST_MIB: u64 = 150;

async fn wait_until_served(port: u16) {
    eventually("calls are served", async || get(port, "/readyz").await.filter(|(code, _)| *code == 200)).await;
}

/// A malformed request.
fn bad_request(seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let paths = [
        "/jobs",
        "/jobs/status",
        "/jobs/trigger/user-sync",
        "/jobs/pause",
        "/jobs/cleanup",
        "/events?x=%ff",
        "/jobs/%2e%2e/%00",
        "/jobs/a/b/cancel",
        "/jobs?limit=99999999999999999999",
        "/jobs?cursor=%f0~~",
        "//",
        "/\u{7f}",
        "/jobs/trigger/../../etc",
        "*",
        "http://elsewhere/jobs",
    ];
    let methods = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "PRI", "X"];
    let path = paths.choose(&mut random).unwrap();
    let method = methods.choose(&mut random).unwrap();
    let noise: Vec<u8> = (0..random.random_range(0..400)).map(|_| random.random()).collect();
    let headers = [
        "Content-Length: -1",
        "Content-Length: 99999999999",
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Type: application/json",
        "Authorization: Bearer ",
        "Authorization: \u{1}",
        "Idempotency-Key: a\tb",
        "Last-Event-ID: 18446744073709551616-1",
        "Expect: 100-continue",
        "Connection: Upgrade\r\nUpgrade: h2c",
        "Host: a\r\nHost: b",
        ": nameless",
    ];
    let header = headers.choose(&mut random).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n").into_bytes();
    match random.random_range(0..4) {
        0 => request = noise,
        1 => {
            request
                .extend([b"X-Long: ".as_slice(), &b"a".repeat(random.random_range(0..20_000)), b"\r\n\r\n"].concat());
        }
        2 => request.extend([b"\r\n".as_slice(), &noise].concat()),
        _ => request.extend([b"Connection: close\r\n\r\n{\"gracePeriodHours\":".as_slice(), &noise, b"}"].concat()),
    }
    request
}

#[tokio::test]
async fn bad_slow_and_idle_clients_do_not_block_others() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let (mut operator, port) = env.all(&["--http-requests-per-second", "100000", "--http-connections", "10000"]);
    wait_until_served(port).await;
    apply_schedule(&env, "users", json!({"suspended": true})).await;
    let connect = async || TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut idle = Vec::new();
    for number in 0..IDLE {
        let mut connection = connect().await;
        // Every second connection has begun a request.
        if number % 2 == 0 {
            connection.write_all(b"POST /jobs/pause HTTP/1.1\r\nHost: x\r\nContent-Le").await.unwrap();
        }
        idle.push(connection);
    }
    let bad = stream::iter(0..BAD_REQUESTS).map(async |seed| {
        let mut connection = connect().await;
        // A server may close the connection in the middle.
        connection.write_all(&bad_request(seed)).await.ok();
        connection.shutdown().await.ok();
        let mut answer = Vec::new();
        timeout(Duration::from_secs(30), connection.read_to_end(&mut answer)).await.expect("an answer or an end").ok();
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.starts_with("HTTP/1.1 500"), "{seed}: {text}");
    });
    bad.buffer_unordered(50).collect::<Vec<_>>().await;

    assert_eq!(get(port, "/jobs/status").await.unwrap().0, 200);
    apply_job(&env, "run", json!({})).await;
    finished(&env, "run").await;
    let resident = operator.resident_mib();
    assert!(resident < MOST_MIB, "{resident} MiB");
    eventually("idle connections are closed", async || {
        let mut byte = [0];
        for connection in &mut idle {
            timeout(Duration::from_millis(1), connection.read(&mut byte)).await.ok()?.ok();
        }
        Some(())
    })
    .await;
    assert!(operator.is_running());
    let log = operator.log();
    assert!(!log.contains("panic"), "{log}");
}

const STREAMS: usize = 100;
/// Runs with long messages. Each stream begins with all of them: 1.6 MB.
const RUNS: usize = 100;
const MESSAGE: usize = 16 * 1024;

/// A stream whose client does not read.
async fn unread_stream(port: u16) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    // The kernel takes little for the client.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.ok()?;
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.ok()?;
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.ok()?;
    (&head == b"HTTP/1.1 200 OK").then_some(stream)
}

#[tokio::test]
async fn streams_are_lazy() {
    let env = TestEnv::new().await;
    let message = "x".repeat(MESSAGE);
    for run in 0..RUNS {
        let name = format!("run-{run}");
        apply_job(&env, &name, json!({})).await;
        let at = "2026-11-25T10:00:00Z";
        let condition = condition("Held", "Test", &message, at);
        env.patch_job_status(&name, json!({"phase": "Held", "conditions": [condition]})).await;
    }
    let port = free_port();
    let per_caller = (4 * STREAMS).to_string();
    let limits = ["--http-requests-per-caller", &per_caller, "--http-requests-per-second", "100000"];
    let operator =
        env.operator("api", &[&["--insecure-no-auth", "--http-port", &port.to_string()], &limits[..]].concat());
    let last = format!("/jobs?text=run-{}", RUNS - 1);
    eventually("all runs are listed", async || {
        get(port, &last).await.filter(|(code, body)| *code == 200 && body.contains("Held"))
    })
    .await;
    let before = operator.resident_mib();
    let streams =
        join_all((0..STREAMS).map(|_| eventually("a stream is open", async || unread_stream(port).await))).await;
    assert_eq!(get(port, "/jobs/status").await.unwrap().0, 200);
    let grown = operator.resident_mib().saturating_sub(before);
    assert!(grown < 60, "{grown} MiB for {STREAMS} streams");
    drop(streams);
}

/// Clients that send a login form slowly: more than all callers may have.
const SLOW: usize = 300;

/// Logs in from an address of this machine.
async fn log_in(port: u16, from: [u8; 4], token: &str) -> reqwest::Response {
    let client = reqwest::Client::builder().local_address(std::net::IpAddr::from(from));
    let client = client.redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let login = client.post(format!("http://127.0.0.1:{port}/ui/login")).header("sec-fetch-site", "same-origin");
    let form = "application/x-www-form-urlencoded";
    login.header("content-type", form).body(format!("token={token}")).send().await.unwrap()
}

#[tokio::test]
async fn slow_bodies_block_no_caller() {
    let env = TestEnv::new().await;
    let port = free_port();
    let limits = ["--http-requests-per-second", "100000", "--http-connections", "4000"];
    let http = ["--http-address", "127.0.0.1", "--http-port", &port.to_string()];
    let _operator = env.operator("api", &[&http, &limits[..]].concat());
    wait_until_served(port).await;
    let token = administrator(&env).await;
    let login = "POST /ui/login HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\ntoken=";
    let slow = async || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        client.write_all(login.as_bytes()).await.unwrap();
        client
    };
    let slow = join_all((0..SLOW).map(|_| slow())).await;
    let client = reqwest::Client::new();
    let list = client.get(format!("http://127.0.0.1:{port}/jobs")).bearer_auth(&token);
    assert_eq!(list.send().await.unwrap().status(), 200);
    assert_eq!(log_in(port, [127, 0, 0, 2], &token).await.status(), 303);
    // A form of which a part arrives each second ends too.
    let answered = slow.into_iter().map(async |mut client| {
        let mut answer = [0; 12];
        let mut drip = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                biased;
                // A refused client may find its connection closed.
                read = client.read_exact(&mut answer) => break read.map(|_| answer).ok(),
                _ = drip.tick() => drop(client.write_all(b"x").await),
            }
        }
    });
    let answers = join_all(answered).await;
    assert!(answers.contains(&Some(*b"HTTP/1.1 400")), "forms that are read have a limit: {answers:?}");
    assert_eq!(log_in(port, [127, 0, 0, 1], &token).await.status(), 303);
}

#[tokio::test]
async fn an_address_has_a_part_of_the_connections() {
    let env = TestEnv::new().await;
    let port = free_port();
    let http = ["--insecure-no-auth", "--http-port", &port.to_string(), "--http-connections", "8"];
    let operator = env.operator("api", &http);
    wait_until_served(port).await;
    let served = async |from: [u8; 4]| {
        let client = reqwest::Client::builder().local_address(std::net::IpAddr::from(from)).build().unwrap();
        client.get(format!("http://127.0.0.1:{port}/livez")).send().await.ok().filter(|answer| answer.status() == 200)
    };
    let mut idle = Vec::new();
    eventually("the address has its connections", async || {
        idle.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        served([127, 0, 0, 1]).await.is_none().then_some(())
    })
    .await;
    assert!(served([127, 0, 0, 2]).await.is_some());
    drop(idle);
    eventually("closed connections leave their places", async || served([127, 0, 0, 1]).await.map(drop)).await;
    assert!(operator.log().contains("a connection was refused"));
}

#[tokio::test]
async fn health_is_cached() {
    let redis = Redis::start(&[]);
    let env = TestEnv::on(Servers { redis: redis.url(), ..Servers::shared() }).await;
    let sidecar = Sidecar::open(&env).await;
    let scripts = async || {
        let statistics: String = redis.ask("INFO commandstats").await;
        let calls =
            statistics.lines().filter_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next());
        calls.filter_map(|calls| calls.parse::<u64>().ok()).sum::<u64>()
    };
    eventually("Redis answers", async || {
        (sidecar.get("/health").await.body["missing"] != json!(["redis"])).then_some(())
    })
    .await;
    let (before, began) = (scripts().await, Instant::now());
    join_all((0..500).flat_map(|_| [sidecar.get("/health"), sidecar.get("/readyz")])).await;
    let (asked, most) = (scripts().await - before, began.elapsed().as_secs() + 1);
    assert!(asked <= most, "{asked} requests to Redis in {most} s");
}

#[tokio::test]
async fn an_open_call_is_answered_when_the_process_stops() {
    let env = TestEnv::new().await;
    let (mut operator, port) = env.all(&[]);
    wait_until_served(port).await;
    let mut call = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let head = "POST /jobs/cleanup HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 15\r\nExpect: 100-continue\r\n\r\n";
    call.write_all(format!("{head}{{\"dryRun\":").as_bytes()).await.unwrap();
    // Otherwise the process may stop before it has seen the call.
    let expected = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut begun = vec![0; expected.len()];
    call.read_exact(&mut begun).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&begun), String::from_utf8_lossy(expected));
    operator.signal("TERM");
    eventually("the process stops", async || operator.log().contains("stopping").then_some(())).await;
    eventually("no further connection is accepted", async || TcpStream::connect(("127.0.0.1", port)).await.err()).await;
    call.write_all(b"true}").await.unwrap();
    let mut answer = String::new();
    call.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(r#""remaining":0}"#), "{answer}");
    assert_eq!(operator.stop_and_wait().await, Some(0));
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let env = TestEnv::new().await;
    let folder: PathBuf = std::env::temp_dir().join(unique("tls"));
    fs::create_dir(&folder).unwrap();
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let make = |name: &str| {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "1", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-subj", &format!("/CN={name}"), "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .unwrap();
        assert!(made.status.success());
    };
    make("first");
    let files = ["--http-tls-cert", certificate.to_str().unwrap(), "--http-tls-key", key.to_str().unwrap()];
    let (_operator, port) = env.all(&files);
    let served = |name: &str| {
        let curl = Command::new("curl")
            .args(["--silent", "--insecure", "--verbose", "--noproxy", "*", "--max-time", "5"])
            .arg(format!("https://127.0.0.1:{port}/livez"))
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&curl.stderr).into_owned();
        (curl.status.success() && output.contains(&format!("CN={name}"))).then_some(())
    };
    eventually("the first certificate is served", async || served("first")).await;
    let is_https_only = |host: &str| {
        let resolve = format!("{host}:{port}:127.0.0.1");
        let curl = Command::new("curl")
            .args(["--silent", "--insecure", "--include", "--noproxy", "*", "--max-time", "5", "--resolve", &resolve])
            .arg(format!("https://{host}:{port}/livez"))
            .output()
            .unwrap();
        String::from_utf8_lossy(&curl.stdout).to_lowercase().contains("strict-transport-security: max-age=31536000")
    };
    assert!(is_https_only("sync.example") && !is_https_only("localhost"));
    make("second");
    eventually("the second certificate is served", async || served("second")).await;
    fs::remove_dir_all(folder).unwrap();
}

/// The answers to random requests are as in the OpenAPI document.
#[tokio::test]
async fn an_openapi_fuzzer_finds_nothing() {
    let env = TestEnv::new().await;
    let port = free_port().to_string();
    let http = ["--http-address", "127.0.0.1", "--http-port", &port, "--http-requests-per-second", "100000"];
    let _operator = env.operator("all", &http);
    wait_until_served(port.parse().unwrap()).await;
    apply_schedule(&env, "users", json!({"interval": quiet_interval(60)})).await;
    apply_job(&env, "run", json!({"suspended": true})).await;
    let token = administrator(&env).await;
    let fuzz = move || Command::new("tests/openapi/fuzz.sh").args([format!("http://127.0.0.1:{port}"), token]).output();
    let report = tokio::task::spawn_blocking(fuzz).await.unwrap().unwrap();
    let output = String::from_utf8_lossy(&report.stdout);
    assert!(report.status.success(), "{output}\n{}", String::from_utf8_lossy(&report.stderr));
}
