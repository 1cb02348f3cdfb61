//! Start of the parts of a command, and their stop in order.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    time::Duration,
};

use kube::{Client, CustomResourceExt};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    adopt,
    api::{SyncAlert, SyncJob, SyncSchedule},
    cli::{self, Cli, Command, CrdKind},
    cluster::{self, Cluster},
    controller::{self, ElectionSettings, Leadership},
    domain::{installation::Owner, needs::Level, policy::Policy},
    engine::{SecretReader, Sources, Targets},
    http, installation, lint,
    local::{self, Ended},
    policy::CurrentPolicy,
    policy_file,
    queue::Queue,
    sync::{Deployment, SourceBudgets},
    telemetry::{MONGODB, logs, traces},
    verify,
    watched_files::{self, WatchedFiles},
    worker::{self, WorkerHealth},
};

/// Exit code for wrong configuration, as clap's own.
const USAGE: u8 = 2;
/// Exit code of local runs of which one waits for an approval, and none has failed.
const HELD: u8 = 3;
/// Exit code of a process that its user interrupted: that of SIGINT in shells.
const INTERRUPTED: u8 = 130;
/// Default log filter.
const LOG_LEVEL: &str = "warn,sync_operator=info";
/// Longest wait for the requests and batches in progress after SIGTERM.
const DRAIN: Duration = Duration::from_secs(25);

/// Variable with a field of a SyncJob's spec that the program treats as a field of a newer release. For tests with
/// programs of two releases.
const LACKS: &str = "SYNC_OPERATOR_LACKS";
/// Interval between pings of a MongoDB that has not answered yet.
const MONGODB_PING_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between requests for the settings of Redis.
const EVICTION_POLICY_INTERVAL: Duration = Duration::from_secs(5);

/// Error for which the program did not start, or stopped.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Configuration(String),
    #[error("{0}")]
    Failed(String),
}

impl From<watched_files::Error> for Error {
    fn from(error: watched_files::Error) -> Self {
        Self::Configuration(error.to_string())
    }
}

/// Runs a command to its end. Exit code 0: stopped when asked to; 1: stopped by an error; 2: wrong configuration.
#[must_use]
pub fn main(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Crd(options) => return finish(print_crds(options.kind).map(|()| ExitCode::SUCCESS)),
        Command::Lint(cli::Lint { files, output }) => {
            return if lint::run(&files, output) { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
        Command::Openapi => {
            println!("{}", http::openapi_document());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    // A local run reports to the terminal itself.
    let log_level = if matches!(cli.command, Command::Run(_)) { "error" } else { LOG_LEVEL };
    let log_level = cli.log_level.unwrap_or_else(|| log_level.to_owned());
    let filter = match logs::init(cli.log_format, log_level, cli.log_filter_file) {
        Ok(filter) => filter,
        Err(error) => return finish(Err(Error::Configuration(error))),
    };
    // kube, redis and mongodb share one TLS implementation; it has to be named before the first connection.
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let id = worker::new_id();
    if let Err(error) = traces::init(&id) {
        return finish(Err(Error::Configuration(error.to_string())));
    }
    let result = match runtime {
        Ok(runtime) => {
            runtime.spawn(filter.follow());
            match cli.command {
                Command::Run(options) => runtime.block_on(run(*options)),
                command => runtime.block_on(start(command, &id)).map(|()| ExitCode::SUCCESS),
            }
        }
        Err(error) => Err(Error::Failed(format!("could not start: {error}"))),
    };
    traces::shutdown();
    finish(result)
}

/// Executes the runs of manifests.
async fn run(options: cli::RunOptions) -> Result<ExitCode, Error> {
    match local::run(options.settings()?).await {
        Ok(Ended::Complete) => Ok(ExitCode::SUCCESS),
        Ok(Ended::Failed) => Ok(ExitCode::FAILURE),
        Ok(Ended::Held) => Ok(ExitCode::from(HELD)),
        Ok(Ended::Interrupted) => Ok(ExitCode::from(INTERRUPTED)),
        Err(local::Error::Usage(error)) => Err(Error::Configuration(error)),
        Err(local::Error::Failed(error)) => Err(Error::Failed(error)),
    }
}

fn finish(result: Result<ExitCode, Error>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(Error::Failed(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(Error::Configuration(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn print_crds(kind: Option<CrdKind>) -> Result<(), Error> {
    let crds = [
        (CrdKind::SyncSchedule, SyncSchedule::definition()),
        (CrdKind::SyncJob, SyncJob::crd()),
        (CrdKind::SyncAlert, SyncAlert::definition()),
    ];
    for (_, crd) in crds.into_iter().filter(|(of, _)| kind.is_none_or(|kind| kind == *of)) {
        let yaml = serde_yaml_ng::to_string(&crd).map_err(|error| Error::Failed(error.to_string()))?;
        print!("---\n{yaml}");
    }
    Ok(())
}

/// The parts of one process. They stop together, and the process with them.
struct Parts {
    tasks: JoinSet<Result<(), Error>>,
    stop: CancellationToken,
    /// Passwords and certificates that the parts go by.
    files: WatchedFiles,
}

impl Parts {
    fn add(&mut self, part: impl Future<Output = Result<(), Error>> + Send + 'static) {
        self.tasks.spawn(part);
    }

    /// Waits for a signal, the end of a part, or a changed password, and then for all parts. A process that stops
    /// releases its runs, so a new process with the new password continues them.
    async fn run(mut self) -> Result<(), Error> {
        let files = std::mem::take(&mut self.files);
        if !files.is_empty() {
            self.add(async move {
                let setting = files.changed().await;
                tracing::warn!(setting, "the file has changed: stopping, so that the next start reads it");
                Ok(())
            });
        }
        let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let mut result = tokio::select! {
            _ = term.recv() => Ok(()),
            _ = int.recv() => Ok(()),
            ended = self.tasks.join_next() => ended.map_or(Ok(()), flatten),
        };
        tracing::info!("stopping");
        self.stop.cancel();
        let drained = tokio::time::timeout(DRAIN, async {
            while let Some(ended) = self.tasks.join_next().await {
                result = std::mem::replace(&mut result, Ok(())).and(flatten(ended));
            }
        });
        if drained.await.is_err() {
            tracing::warn!("some tasks did not end in time; their leases will expire");
        }
        result
    }
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    signal(kind).map_err(|error| Error::Failed(format!("could not listen for signals: {error}")))
}

fn flatten(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|error| Err(Error::Failed(format!("a part of the program ended: {error}"))))
}

/// Checks all of the configuration, then starts the parts.
async fn start(command: Command, id: &str) -> Result<(), Error> {
    let stop = CancellationToken::new();
    let mut parts = Parts { tasks: JoinSet::new(), stop, files: WatchedFiles::default() };
    let view = View::default();
    match command {
        Command::Crd(_) | Command::Lint(_) | Command::Openapi | Command::Run(_) => {}
        Command::Verify(options) => {
            let cli::Verify { namespace, collection, timeout } = options;
            let verified =
                verify::run(connect().await?, verify::VerifySettings { namespace, collection, timeout }).await;
            return verified.map_err(|error| Error::Failed(error.to_string()));
        }
        Command::Adopt(options) => {
            let queue = open_queue(&mut parts, &options.redis)?;
            let client = connect().await?;
            let (scope, database) =
                (options.kubernetes.watch_namespace.as_deref(), options.mongodb_database.as_deref());
            let fingerprint = installation::controller_fingerprint(&client, scope, database).await;
            let lease = lease_name(&options.leader_election, &options.kubernetes).path(&client);
            let adopted = adopt::run(client, &queue, scope, Owner { fingerprint, lease }).await;
            return adopted.map_err(|error| Error::Failed(error.to_string()));
        }
        Command::Controller(options) => {
            let queue = open_queue(&mut parts, &options.redis)?;
            let client = connect().await?;
            identify_controllers(&mut parts, &queue, &client, &options.controllers.kubernetes, &options.mongodb);
            let policy = open_policy(&mut parts, &options.workers, &options.mongodb)?;
            add_probes(&mut parts, options.probes, view.state(&queue)).await?;
            let settings = (options.workers, policy.clone());
            add_workers(&mut parts, settings, id, &queue, &options.mongodb, Some(client.clone()), &view).await?;
            add_controllers(&mut parts, (options.controllers, &options.mongodb, policy), id, client, queue, view);
        }
        Command::Worker(options) => {
            let queue = open_queue(&mut parts, &options.redis)?;
            let policy = open_policy(&mut parts, &options.workers, &options.mongodb)?;
            let state = http::HttpState { cluster: None, ..view.state(&queue) };
            add_probes(&mut parts, options.probes, state).await?;
            let client = cluster::connect().await.ok();
            identify_workers(&mut parts, &queue, client.clone(), &options.mongodb);
            let settings = (options.workers, policy);
            add_workers(&mut parts, settings, id, &queue, &options.mongodb, client, &view).await?;
        }
        Command::Api(options) => {
            let queue = open_queue(&mut parts, &options.redis)?;
            let objects = watch_objects(&mut parts, connect().await?, &options.kubernetes);
            let state = http::HttpState { cluster: None, objects: Some(objects.clone()), ..view.state(&queue) };
            add_probes(&mut parts, options.probes, state.clone()).await?;
            let lease = lease_name(&options.leader_election, &options.kubernetes);
            add_mirror(&mut parts, options.mirror, &objects, &queue, id)?;
            add_http(&mut parts, options.http, state, objects, lease, id).await?;
        }
        Command::All(options) => {
            let queue = open_queue(&mut parts, &options.redis)?;
            let client = connect().await?;
            identify_controllers(&mut parts, &queue, &client, &options.controllers.kubernetes, &options.mongodb);
            let policy = open_policy(&mut parts, &options.workers, &options.mongodb)?;
            let objects = watch_objects(&mut parts, client.clone(), &options.controllers.kubernetes);
            let state = http::HttpState { objects: Some(objects.clone()), ..view.state(&queue) };
            add_probes(&mut parts, options.probes, state.clone()).await?;
            let lease = lease_name(&options.controllers.leader_election, &options.controllers.kubernetes);
            add_mirror(&mut parts, options.mirror, &objects, &queue, id)?;
            add_http(&mut parts, options.http, state, objects, lease, id).await?;
            let settings = (options.workers, policy.clone());
            add_workers(&mut parts, settings, id, &queue, &options.mongodb, Some(client.clone()), &view).await?;
            add_controllers(&mut parts, (options.controllers, &options.mongodb, policy), id, client, queue, view);
        }
    }
    parts.run().await
}

/// Handles to the parts of this process, for the servers of probes and HTTP calls.
struct View {
    cluster: watch::Sender<Option<Cluster>>,
    leadership: watch::Sender<Option<Leadership>>,
    worker_health: watch::Sender<Option<WorkerHealth>>,
    lacks_mongodb: watch::Sender<bool>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            cluster: watch::Sender::new(None),
            leadership: watch::Sender::new(None),
            worker_health: watch::Sender::new(None),
            lacks_mongodb: watch::Sender::new(false),
        }
    }
}

impl View {
    fn state(&self, queue: &Queue) -> http::HttpState {
        http::HttpState {
            queue: queue.clone(),
            cluster: Some(self.cluster.subscribe()),
            leadership: self.leadership.subscribe(),
            worker_health: self.worker_health.subscribe(),
            lacks_mongodb: self.lacks_mongodb.subscribe(),
            objects: None,
            schedule_health: http::ScheduleHealth::default(),
            depth: http::RecentDepth::default(),
        }
    }
}

fn open_queue(parts: &mut Parts, options: &cli::Redis) -> Result<Queue, Error> {
    let (url, ca) = (options.url(&mut parts.files)?, options.ca(&mut parts.files)?);
    let queue = Queue::trusting(ca, &url, &options.queue_name, options.lease_duration)
        .map_err(|error| Error::Configuration(format!("REDIS_URL: {error}")))?;
    let level = std::env::var(LACKS).map_or_else(|_| Level::default(), Level::without);
    let queue = queue.at_level(level);
    let checked = queue.clone();
    tokio::spawn(async move {
        while checked.ping().await.is_err() {
            tokio::time::sleep(EVICTION_POLICY_INTERVAL).await;
        }
        match checked.eviction_policy().await.as_deref() {
            Some("noeviction") => {}
            Some(policy) => {
                tracing::warn!(
                    policy,
                    "Redis may evict runs when its memory is full: set maxmemory-policy to noeviction"
                );
            }
            None => tracing::info!("maxmemory-policy of Redis cannot be read: make sure that it is noeviction"),
        }
    });
    Ok(queue)
}

/// Reads the policy, and follows its file.
fn open_policy(
    parts: &mut Parts,
    options: &cli::WorkerOptions,
    mongodb: &cli::MongoDb,
) -> Result<CurrentPolicy, Error> {
    let everywhere = options.addresses_everywhere();
    let Some(path) = &options.policy_file else {
        return Ok(CurrentPolicy::fixed(Policy { everywhere, ..Policy::default() }));
    };
    let flags = policy_file::Flags { everywhere, has_allowed_databases: !mongodb.allowed_databases.is_empty() };
    let (policy, following) =
        policy_file::open(path, flags).map_err(|error| Error::Configuration(format!("POLICY_FILE: {error}")))?;
    if policy.get().tenants.is_none() {
        tracing::info!("the policy has no tenants: every namespace may use all of the operator's MongoDB");
    }
    let stop = parts.stop.clone();
    parts.add(async move {
        stop.run_until_cancelled(following).await;
        Ok(())
    });
    Ok(policy)
}

/// Determines which installation the queue is used for, while the process starts.
fn identify_controllers(
    parts: &mut Parts,
    queue: &Queue,
    client: &Client,
    kubernetes: &cli::Kubernetes,
    mongodb: &cli::MongoDb,
) {
    let (queue, client, stop) = (queue.clone(), client.clone(), parts.stop.clone());
    let (scope, database) = (kubernetes.watch_namespace.clone(), mongodb.mongodb_database.clone());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        queue.identify(installation::controller_fingerprint(&client, scope.as_deref(), database.as_deref()).await);
    }));
}

/// Identifies the installation of a process that has only workers.
fn identify_workers(parts: &mut Parts, queue: &Queue, client: Option<Client>, mongodb: &cli::MongoDb) {
    let (queue, stop, database) = (queue.clone(), parts.stop.clone(), mongodb.mongodb_database.clone());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        queue.identify(installation::worker_fingerprint(client.as_ref(), database.as_deref()).await);
    }));
}

async fn connect() -> Result<Client, Error> {
    cluster::connect().await.map_err(|error| {
        Error::Configuration(format!("no Kubernetes cluster is configured: set KUBECONFIG, or run in a pod ({error})"))
    })
}

async fn add_workers(
    parts: &mut Parts,
    (options, policy): (cli::WorkerOptions, CurrentPolicy),
    id: &str,
    queue: &Queue,
    mongodb: &cli::MongoDb,
    client: Option<Client>,
    view: &View,
) -> Result<(), Error> {
    if options.workers == 0 {
        return Ok(());
    }
    let (Some(uri), Some(database)) = (mongodb.uri(&mut parts.files)?, &mongodb.mongodb_database) else {
        let missing = "workers need --mongodb-uri (MONGODB_URI) and --mongodb-database (MONGODB_DATABASE): set both, or --workers 0";
        return Err(Error::Configuration(missing.to_owned()));
    };
    let ca = mongodb.mongodb_ca_file.as_deref();
    if let Some(ca) = ca {
        parts.files.read("MONGODB_CA_FILE", ca)?;
    }
    let deployment = Deployment::new(&uri, database, &mongodb.allowed_databases, ca)
        .await
        .map_err(|error| Error::Configuration(format!("MONGODB_URI: {error}")))?;
    let settings = worker::WorkerSettings { id: id.to_owned(), slots: usize::from(options.workers) };
    let secrets = client.map_or(SecretReader::None, SecretReader::Kubernetes);
    let deployment = deployment.governed_by(policy.clone());
    let targets = Targets::new(deployment.clone(), policy.clone(), secrets.clone());
    let sources = Sources { secrets, policy, budgets: SourceBudgets::default() };
    let (queue, stop) = (queue.clone(), parts.stop.clone());
    view.lacks_mongodb.send_replace(true);
    let (shown, lacks_mongodb) = (view.worker_health.clone(), view.lacks_mongodb.clone());
    parts.add(async move {
        let ready = async { tokio::join!(first_answer(&deployment), queue.identified()) };
        if stop.run_until_cancelled(ready).await.is_none() {
            return Ok(());
        }
        let (reporter, health) = WorkerHealth::new(queue.lease(), settings.slots);
        shown.send_replace(Some(health));
        lacks_mongodb.send_replace(false);
        worker::run(settings, queue, targets, sources, reporter, stop)
            .await
            .map_err(|error| Error::Failed(error.to_string()))
    });
    Ok(())
}

/// Waits until MongoDB has answered once. Without this wait, a process with a wrong address or password would claim
/// runs that other processes can execute.
async fn first_answer(deployment: &Deployment) {
    loop {
        let answer = deployment.ping().await;
        MONGODB.record(&answer);
        if answer.is_ok() {
            return;
        }
        tokio::time::sleep(MONGODB_PING_INTERVAL).await;
    }
}

fn add_controllers(
    parts: &mut Parts,
    (options, mongodb, policy): (cli::Controllers, &cli::MongoDb, CurrentPolicy),
    id: &str,
    client: Client,
    queue: Queue,
    view: View,
) {
    let cli::Controllers { kubernetes, leader_election: election, times } = options;
    let http::LeaseName { namespace, name } = lease_name(&election, &kubernetes);
    let settings = controller::ControllerSettings {
        resync: times.resync_interval,
        status_interval: times.status_interval,
        status_writes_per_second: times.status_writes_per_second,
        instance: id.to_owned(),
        policy,
        database: mongodb.mongodb_database.clone().unwrap_or_default(),
        election: ElectionSettings {
            identity: id.to_owned(),
            namespace,
            name,
            duration: election.leader_lease_duration,
        },
        namespace: kubernetes.watch_namespace,
    };
    let stop = parts.stop.clone();
    parts.add(async move {
        // Workers of any installation would claim a run without an installation.
        if stop.run_until_cancelled(queue.identified()).await.is_none() {
            return Ok(());
        }
        let share = |cluster, leadership| {
            view.cluster.send_replace(Some(cluster));
            view.leadership.send_replace(Some(leadership));
        };
        controller::run(settings, client, queue, stop, share).await;
        Ok(())
    });
}

fn lease_name(election: &cli::LeaderElection, kubernetes: &cli::Kubernetes) -> http::LeaseName {
    // Controllers of different namespaces do not replace each other.
    let name = election.leader_lease_name.clone().unwrap_or_else(|| match &kubernetes.watch_namespace {
        Some(namespace) => format!("sync-operator-{namespace}"),
        None => "sync-operator".to_owned(),
    });
    http::LeaseName { namespace: election.leader_lease_namespace.clone(), name }
}

/// Starts the watches of the HTTP API, which shows all SyncJobs, and controllers keep few fields of ended
/// SyncJobs.
fn watch_objects(parts: &mut Parts, client: Client, options: &cli::Kubernetes) -> http::Objects {
    let (objects, watches) = http::Objects::watch(client, options.watch_namespace.as_deref());
    let stop = parts.stop.clone();
    parts.add(async move {
        stop.run_until_cancelled(watches).await;
        Ok(())
    });
    objects
}

fn add_mirror(
    parts: &mut Parts,
    options: cli::MirrorOptions,
    objects: &http::Objects,
    queue: &Queue,
    id: &str,
) -> Result<(), Error> {
    let Some(prefix) = options.bullmq_mirror else { return Ok(()) };
    let mirror = http::Mirror::new(objects.clone(), queue.clone(), &prefix, id)
        .map_err(|error| Error::Configuration(format!("BULLMQ_MIRROR: {error}")))?;
    let stop = parts.stop.clone();
    parts.add(async move {
        stop.run_until_cancelled(mirror.run()).await;
        Ok(())
    });
    Ok(())
}

async fn add_http(
    parts: &mut Parts,
    options: cli::Http,
    state: http::HttpState,
    objects: http::Objects,
    lease: http::LeaseName,
    id: &str,
) -> Result<(), Error> {
    let address = options.address().map_err(Error::Configuration)?;
    let secret = options.dashboard_key_file.as_deref();
    let secret = secret.map(|path| parts.files.read("DASHBOARD_KEY_FILE", path)).transpose()?;
    let sessions = http::Sessions::new(secret.as_deref(), options.http_tls_cert.is_some());
    let sessions = sessions.map_err(|error| Error::Configuration(format!("DASHBOARD_KEY_FILE: {error}")))?;
    let dashboard = (options.dashboard == cli::Switch::On).then_some(sessions);
    if let (Some(sessions), None) = (&dashboard, &secret) {
        let share = sessions.clone().share(state.queue.clone());
        tokio::spawn(parts.stop.clone().run_until_cancelled_owned(share));
    }
    let settings = http::HttpSettings {
        reads: (!options.insecure_no_auth).then_some(options.read_access),
        requests_per_second: options.http_requests_per_second,
        requests_at_a_time: options.http_requests_at_a_time,
        requests_per_caller: options.http_requests_per_caller,
        dashboard,
        proxies: options.proxies(),
        logs: options.dashboard_logs_url,
        prefix: options.http_path_prefix,
        hosts: options.http_hosts,
        lease,
    };
    if options.insecure_no_auth && settings.proxies.is_some() {
        let advice = "TRUSTED_PROXIES: with --insecure-no-auth, no login is required: remove one of the two options";
        return Err(Error::Configuration(advice.to_owned()));
    }
    if options.insecure_no_auth {
        tracing::warn!("--insecure-no-auth: every user of this machine has all rights");
    }
    let files = options.http_tls_cert.zip(options.http_tls_key);
    let certificate = files.map(|(certificate, key)| http::Certificate { certificate, key });
    let connections = http::Connections::new(options.http_connections.get(), &options.trusted_proxies);
    let router = http::router(state, objects, settings, id, parts.stop.clone());
    serve(parts, ("HTTP_PORT", address), router, certificate, connections).await
}

async fn add_probes(parts: &mut Parts, options: cli::Probes, state: http::HttpState) -> Result<(), Error> {
    let address = SocketAddr::new(options.metrics_address, options.metrics_port);
    let connections = http::Connections::for_probes();
    serve(parts, ("METRICS_PORT", address), http::probes(state), None, connections).await
}

async fn serve(
    parts: &mut Parts,
    (setting, address): (&str, SocketAddr),
    router: axum::Router,
    certificate: Option<http::Certificate>,
    connections: http::Connections,
) -> Result<(), Error> {
    let unusable = |error| Error::Configuration(format!("{setting}: could not listen on {address}: {error}"));
    let listener = TcpListener::bind(address).map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    let serving = http::serve(listener, router, certificate, connections, parts.stop.clone());
    let serving = serving.await.map_err(|error| Error::Configuration(format!("HTTP_TLS_CERT: {error}")))?;
    tracing::info!(%address, setting, "serving HTTP");
    parts.add(async move { serving.await.map_err(|error| Error::Failed(format!("HTTP stopped: {error}"))) });
    Ok(())
}
