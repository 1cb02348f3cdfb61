//! Commands of a user, waiting, and the output of failed tests.

use std::{
    env,
    fmt::Write as _,
    io::{BufRead, BufReader, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError, mpsc},
    thread::sleep,
    time::{Duration, Instant},
};

use kube::Client;
use serde_json::Value;
use test_support::unique;
use tokio::runtime::Runtime;

/// Limit of a wait. It is long, so that a slow machine does not cause a failure.
const PATIENCE: Duration = Duration::from_secs(240);

/// Locks the cluster for one test.
pub fn lock_cluster() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program. Returns its output, or all output of a failure.
pub fn attempt(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}: run `make test-e2e`"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.into_owned()) } else { Err(format!("{out}{error}")) }
}

pub fn run(program: &str, args: &[&str], input: &str) -> String {
    attempt(program, args, input).unwrap_or_else(|error| panic!("{program} {}: {error}", args.join(" ")))
}

pub fn kubectl(args: &str) -> String {
    run("kubectl", &args.split_whitespace().collect::<Vec<_>>(), "")
}

pub fn kubectl_may_fail(args: &str) -> Result<String, String> {
    attempt("kubectl", &args.split_whitespace().collect::<Vec<_>>(), "")
}

pub fn apply(namespace: &str, object: &Value) {
    run("kubectl", &["apply", "--namespace", namespace, "-f", "-"], &object.to_string());
}

/// An object or a list as JSON; null when there is none. `what` is as for `kubectl get`. The request uses one
/// connection: a kubectl that starts for each request uses one CPU while a test waits.
pub fn get(what: &str) -> Value {
    static CLIENT: LazyLock<(Runtime, Client)> = LazyLock::new(|| {
        rustls::crypto::ring::default_provider().install_default().ok();
        let runtime = Runtime::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        runtime.spawn(async move { sender.send(Client::try_default().await) });
        (runtime, receiver.recv().unwrap().unwrap())
    });
    // A test may run in its own runtime, which must not block on another runtime.
    let (runtime, client) = &*CLIENT;
    let request = http::Request::get(path(what)).body(Vec::new()).unwrap();
    let (client, (sender, receiver)) = (client.clone(), mpsc::channel());
    runtime.spawn(async move { sender.send(client.request::<Value>(request).await) });
    receiver.recv().unwrap().unwrap_or_default()
}

/// The path for arguments of `kubectl get`: a kind, optionally a name, `--namespace` and `-l`.
fn path(what: &str) -> String {
    let mut words = what.split(' ');
    let (group, plural) = match words.next().unwrap() {
        "crd" => ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
        "namespace" => ("api/v1", "namespaces"),
        "pod" | "pods" => ("api/v1", "pods"),
        "syncjob" | "syncjobs" => ("apis/sync.codex.dev/v1alpha1", "syncjobs"),
        "syncschedule" => ("apis/sync.codex.dev/v1alpha1", "syncschedules"),
        kind => panic!("{kind}: add it here"),
    };
    let (mut namespace, mut name, mut labels) = (String::new(), String::new(), String::new());
    while let Some(word) = words.next() {
        match word {
            "--namespace" => namespace = format!("namespaces/{}/", words.next().unwrap()),
            "-l" => labels = format!("?labelSelector={}", words.next().unwrap()),
            given => name = format!("/{given}"),
        }
    }
    format!("/{group}/{namespace}{plural}{name}{labels}")
}

/// Waits until `probe` returns a value.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        sleep(Duration::from_millis(200));
    }
}

/// A namespace that accepts only restricted pods. Deleted with its objects when dropped. After a failed test, they are
/// printed first.
pub struct Namespace(pub String);

impl Namespace {
    pub fn new(what: &str) -> Self {
        let name = unique(what);
        make_restricted_namespace(&name);
        Self(name)
    }
}

pub fn make_restricted_namespace(name: &str) {
    kubectl(&format!("create namespace {name}"));
    kubectl(&format!("label namespace {name} pod-security.kubernetes.io/enforce=restricted"));
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", everything_in(&self.0));
        }
        kubectl_may_fail(&format!("delete namespace {self} --ignore-not-found --timeout=120s")).ok();
    }
}

fn everything_in(namespace: &str) -> String {
    let mut report = String::new();
    let mut add = |args: &str| {
        let text = kubectl_may_fail(args).unwrap_or_else(|error| error);
        writeln!(report, "--- kubectl {args}\n{text}").unwrap();
    };
    add(&format!("get all --namespace {namespace} -o wide"));
    add(&format!("get events --namespace {namespace} --sort-by=.lastTimestamp"));
    add(&format!("get syncschedules,syncjobs,syncalerts --namespace {namespace} -o yaml"));
    let pods = get(&format!("pods --namespace {namespace}"));
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap();
        add(&format!("logs --namespace {namespace} {name} --all-containers --prefix --tail=60"));
        add(&format!("describe pod --namespace {namespace} {name}"));
    }
    report
}

/// A port on this machine that forwards to a port in the cluster, until it is dropped.
pub struct Forward {
    child: Child,
    /// Keeps the pipe open: kubectl ends when no process reads its output.
    _said: BufReader<ChildStdout>,
    pub port: u16,
}

impl Forward {
    /// `to`: `service/NAME` or `pod/NAME`.
    pub fn new(namespace: &str, to: &str, port: u16) -> Self {
        eventually(&format!("kubectl port-forward {to}"), || Self::attempt(namespace, to, port))
    }

    fn attempt(namespace: &str, to: &str, port: u16) -> Option<Self> {
        let mut command = Command::new("kubectl");
        command.args(["port-forward", "--namespace", namespace, to, &format!(":{port}")]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (mut line, mut said) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
        said.read_line(&mut line).unwrap();
        // Forwarding from 127.0.0.1:40001 -> 4000
        let port = line.split(" -> ").next().and_then(|from| from.rsplit(':').next()?.parse().ok());
        // Without a port, kubectl has ended.
        let forward = Self { child, _said: said, port: port.unwrap_or_default() };
        (forward.port > 0).then_some(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Calls the HTTP API: the code and the body.
pub fn call(port: u16, method: &str, path: &str, token: Option<&str>) -> (u16, Value) {
    try_call(port, method, path, token).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// Calls the HTTP API, which may not answer: the code and the body, or the error.
pub fn try_call(port: u16, method: &str, path: &str, token: Option<&str>) -> Result<(u16, Value), String> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let header = format!("Authorization: Bearer {}", token.unwrap_or_default());
    let mut args = vec!["-sS", "--noproxy", "*", "--max-time", "20", "-X", method, "-w", "\n%{http_code}", &url];
    if token.is_some() {
        args.extend(["-H", &header]);
    }
    let text = attempt("curl", &args, "")?;
    let (body, code) = text.rsplit_once('\n').unwrap();
    Ok((code.parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// An environment variable that `make test-e2e` sets.
pub fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test-e2e`"))
}
