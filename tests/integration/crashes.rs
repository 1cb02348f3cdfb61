//! Scenarios 1 to 4 of the fault list: the operator is killed after every single request that it sends for one run, to
//! Kubernetes, Redis or MongoDB. A request is what arrives in one piece at a proxy before the server; nothing that the
//! process sends after it gets through.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bson::{DateTime, doc};
use futures::{StreamExt, stream};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use sync_operator::{
    api::{APPROVE_ANNOTATION, SyncSchedule, syncjob::Phase},
    domain::job::{has_ended, is_complete},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    select,
    sync::Notify,
};

use crate::{
    operator::{apply_job, finished, get},
    servers::address_in,
    sources::ALLOWED,
    support::{Operator, Servers, TestEnv, confirmed, eventually, free_port, source, unique},
    upstream::Upstream,
};

const USERS: i32 = 25;
/// Concurrent rounds. A round waits most of its time for the end of leases.
const SIDE_BY_SIDE: usize = 6;

/// Number of requests that the proxies of one process forward.
pub struct RequestLimit {
    /// Requests that may still pass.
    left: AtomicUsize,
    pub cut: Notify,
}

impl RequestLimit {
    pub const OPEN: usize = usize::MAX / 2;

    pub fn new() -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(Self::OPEN), cut: Notify::new() })
    }

    /// Sets the number of further requests.
    pub fn allow(&self, requests: usize) {
        self.left.store(requests, Ordering::SeqCst);
    }

    /// Number of allowed requests that were forwarded.
    pub fn passed(&self, allowed: usize) -> usize {
        allowed - self.left.load(Ordering::SeqCst)
    }

    /// Takes one request of the limit. The caller that takes the last one notifies `cut`.
    fn pass(&self) -> bool {
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if before == Ok(1) {
            self.cut.notify_one();
        }
        before.is_ok()
    }

    /// The address of a proxy before a server.
    async fn proxy(self: &Arc<Self>, server: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&limit).forward(client, server));
            }
        });
        address
    }

    async fn forward(self: Arc<Self>, client: TcpStream, server: SocketAddr) {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let requests = async {
            let mut piece = vec![0; 1 << 20];
            while let Ok(length @ 1..) = from_client.read(&mut piece).await {
                if !self.pass() || to_server.write_all(&piece[..length]).await.is_err() {
                    return;
                }
            }
        };
        select! {
            () = requests => {}
            _ = copy(&mut from_server, &mut to_client) => {}
        }
    }

    /// The servers, seen through proxies.
    pub async fn before(self: &Arc<Self>, servers: &Servers) -> Servers {
        let kubeconfig = fs::read_to_string(&servers.kubeconfig).unwrap();
        let api = address_in(&kubeconfig, "https://");
        let file = std::env::temp_dir().join(unique("kubeconfig"));
        fs::write(&file, kubeconfig.replace(&api.to_string(), &self.proxy(api).await.to_string())).unwrap();
        let (redis, mongodb) = (address_in(&servers.redis, "redis://"), address_in(&servers.mongodb, "mongodb://"));
        Servers {
            kubeconfig: file.to_str().unwrap().to_owned(),
            redis: format!("redis://{}", self.proxy(redis).await),
            // Without the addresses of the replica set, which would bypass the proxy.
            mongodb: format!("mongodb://{}/?directConnection=true", self.proxy(mongodb).await),
        }
    }
}

/// Starts an operator with proxies before all its servers, and waits until it leads.
pub async fn start_leader_behind(limit: &Arc<RequestLimit>, env: &TestEnv, args: &[&str]) -> Operator {
    let servers = limit.before(&Servers::shared()).await;
    let port = free_port();
    let http = ["--http-address", "127.0.0.1", "--http-port", &port.to_string()];
    let operator = env.operator_on(&servers, "all", &[&http, args].concat());
    eventually("the operator leads", async || {
        let (_, body) = get(port, "/readyz").await?;
        let readiness: Value = serde_json::from_str(&body).ok()?;
        (readiness["ready"] == true && readiness["leading"] == true).then_some(())
    })
    .await;
    fs::remove_file(&servers.kubeconfig).ok();
    operator
}

async fn wait_for_success(env: &TestEnv) -> SyncSchedule {
    eventually("the run succeeded", async || {
        let schedule = env.schedules().get("users").await.ok()?;
        (schedule.status.as_ref()?.runs.succeeded >= 1).then_some(schedule)
    })
    .await
}

/// Kills the operator after a number of requests, lets another operator continue, and returns the number of requests.
async fn round(requests: usize) -> usize {
    let env = TestEnv::new().await;
    env.seed(USERS, 1).await;
    let limit = RequestLimit::new();
    let mut first = start_leader_behind(&limit, &env, &["--lease-duration", "1s"]).await;

    limit.allow(requests);
    let spec =
        json!({"suspended": true, "jobTemplate": {"spec": {"syncType": "Full", "batchSize": 5, "parallelism": 2}}});
    let mut schedule = SyncSchedule::new("users", serde_json::from_value(spec).unwrap());
    schedule.annotations_mut().insert("sync.codex.dev/trigger".to_owned(), "once".to_owned());
    env.schedules().create(&kube::api::PostParams::default(), &schedule).await.unwrap();
    let used = select! {
        () = limit.cut.notified() => requests,
        _ = wait_for_success(&env) => limit.passed(requests),
    };
    first.kill();

    let (_second, _) = env.all(&["--lease-duration", "1s"]);
    let runs = wait_for_success(&env).await.status.unwrap().runs;
    let at = format!("killed after {used} requests");
    assert_eq!((runs.total, runs.succeeded, runs.failed, runs.skipped), (1, 1, 0, 0), "{at}");
    let jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(jobs.len(), 1, "{at}: {:?}", jobs.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
    assert!(is_complete(&jobs[0]), "{at}");
    let status = jobs[0].status.clone().unwrap();
    let counts = status.counts.unwrap();
    let users = i64::from(USERS);
    let actual = (counts.total, counts.processed, counts.updated, counts.unchanged, counts.failed, status.progress);
    assert_eq!(actual, (users, users, users - 1, 0, 1, Some(100)), "{at}");
    assert_eq!((status.attempts, status.failures.len()), (Some(0), 1), "{at}: a crash costs no attempt");
    let start = DateTime::from_millis(status.start_time.unwrap().0.as_millisecond());
    assert_eq!(env.count(doc! {"lastSynced": start}).await, USERS as u64 - 1, "{at}");
    env.database.drop().await.unwrap();
    used
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_each_request_of_a_run() {
    let all = round(RequestLimit::OPEN).await;
    assert!(all > 20, "only {all} requests were seen");
    eprintln!("{all} requests");
    stream::iter(1..=all).map(round).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<_>>().await;
}

/// Number of documents that the source lists, and of all documents that it listed before.
const LISTED: (usize, i32) = (3, 12);

/// Kills the operator after a number of requests for a run that is held, approved and then marks documents, lets
/// another operator continue, and returns how many requests there were.
async fn held_round(requests: usize) -> usize {
    let (env, upstream) = (TestEnv::new().await, Upstream::with_people(LISTED.0).await);
    let state = confirmed(&env.name, "people");
    let users = env.database.collection("users");
    users.insert_many((0..LISTED.1).map(|id| doc! {"_id": id, "_sync": state.clone()})).await.unwrap();
    let limit = RequestLimit::new();
    let allowed = [&["--lease-duration", "1s"][..], &ALLOWED].concat();
    let mut first = start_leader_behind(&limit, &env, &allowed).await;

    limit.allow(requests);
    let fields = json!({
        "name": "people", "endpoint": upstream.rest("/numbered?page={page}&n={first}"), "resultPath": "/users",
        "batching": "Pages", "pagination": {"by": "Number"}, "onMissing": "Mark",
    });
    let spec = json!({"syncType": "Full", "batchSize": 2, "source": source("rest", &fields)});
    apply_job(&env, "users", spec).await;
    let used = select! {
        () = limit.cut.notified() => requests,
        () = approve_when_held(&env) => limit.passed(requests),
    };
    first.kill();

    let (_second, _) = env.all(&allowed);
    approve_when_held(&env).await;
    let at = format!("killed after {used} requests");
    let job = env.jobs().get("users").await.unwrap();
    assert!(is_complete(&job), "{at}: {:?}", job.status);
    let left = u64::from(LISTED.1.unsigned_abs()) - LISTED.0 as u64;
    assert_eq!(env.count(doc! {"missingSince": {"$type": "date"}}).await, left, "{at}");
    assert_eq!(job.status.unwrap().counts.unwrap().marked, Some(left as i64), "{at}");
    env.database.drop().await.unwrap();
    used
}

/// Approves the run when it is held, and waits until it has ended.
async fn approve_when_held(env: &TestEnv) {
    let number = eventually("the run is held", async || {
        let status = env.jobs().get("users").await.ok()?.status?;
        let is_held = status.phase == Some(Phase::Held) || has_ended(&status);
        status.counts.filter(|_| is_held).map(|counts| counts.held.unwrap_or(0))
    })
    .await;
    let approval = json!({"metadata": {"annotations": {APPROVE_ANNOTATION: number.to_string()}}});
    if number > 0 {
        env.jobs().patch("users", &PatchParams::default(), &Patch::Merge(approval)).await.unwrap();
    }
    finished(env, "users").await;
}

/// The kill is after every fifth request, from one of the first five on. `EVERY=1` tests each request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_each_request_of_a_held_run() {
    let all = held_round(RequestLimit::OPEN).await;
    assert!(all > 20, "only {all} requests were seen");
    let every = std::env::var("EVERY").map_or(5, |number| number.parse().unwrap());
    let first = rand::random_range(1..=every);
    eprintln!("{all} requests, killed after every {every} from {first} on");
    stream::iter((first..=all).step_by(every)).map(held_round).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<_>>().await;
}
