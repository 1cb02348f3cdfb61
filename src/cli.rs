//! Commands and configuration. Every setting is a flag and an environment variable.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use axum::http::HeaderName;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    api::GoDuration,
    domain::{egress::AddressRule, policy::database_name, run::Subset},
    http::{LogsUrl, Prefix, Proxies, ReadAccess},
    local::{self, Output, SecretArgument},
    telemetry::logs::Format,
    watched_files::{self, WatchedFiles},
};

/// Keeps MongoDB collections in sync on a schedule, in Kubernetes.
#[derive(Parser)]
#[command(name = "sync-operator", version, about, max_term_width = 100)]
pub struct Cli {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,

    /// Format of log lines.
    #[arg(long, global = true, env = "LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: Format,

    /// Log level (error, warn, info, debug or trace) of the program or of single modules. Default:
    /// warn,sync_operator=info; error for run.
    #[arg(long, global = true, env = "RUST_LOG")]
    pub log_level: Option<String>,

    /// File with a log level, which overrides --log-level. The program reads the file again when it changes, and at
    /// once on SIGHUP. An empty or missing file is ignored.
    #[arg(long, global = true, env = "LOG_FILTER_FILE")]
    pub log_filter_file: Option<PathBuf>,
}

/// Command to run.
#[derive(Subcommand)]
pub enum Command {
    /// Runs the controllers, and workers in the same process.
    Controller(Box<Controller>),
    /// Runs workers only.
    Worker(Box<Worker>),
    /// Serves the HTTP calls.
    Api(Box<Api>),
    /// Runs controllers, workers and the HTTP calls in one process.
    All(Box<All>),
    /// Executes the runs of manifests in this process, with MongoDB alone: without Kubernetes and without Redis.
    Run(Box<RunOptions>),
    /// Creates a SyncJob, waits until it is complete, and deletes it, to verify that the installation works.
    Verify(Verify),
    /// Transfers the queue and the objects of another installation to this installation, after a move or a restore.
    /// Needs the settings of the controllers.
    Adopt(Box<Adopt>),
    /// Validates manifests without a server: syntax, fields, rules, and values that the operator refuses.
    Lint(Lint),
    /// Prints the custom resource definitions as YAML.
    Crd(Crd),
    /// Prints the OpenAPI document of the HTTP calls.
    Openapi,
}

/// Options of `controller`.
#[derive(Args)]
pub struct Controller {
    /// Controllers.
    #[command(flatten)]
    pub controllers: Controllers,
    /// Redis.
    #[command(flatten)]
    pub redis: Redis,
    /// MongoDB.
    #[command(flatten)]
    pub mongodb: MongoDb,
    /// Workers in this process.
    #[command(flatten)]
    pub workers: WorkerOptions,
    /// Probes and metrics.
    #[command(flatten)]
    pub probes: Probes,
}

/// Options of `worker`.
#[derive(Args)]
pub struct Worker {
    /// Redis.
    #[command(flatten)]
    pub redis: Redis,
    /// MongoDB.
    #[command(flatten)]
    pub mongodb: MongoDb,
    /// Workers in this process.
    #[command(flatten)]
    pub workers: WorkerOptions,
    /// Probes and metrics.
    #[command(flatten)]
    pub probes: Probes,
}

/// Options of `api`.
#[derive(Args)]
pub struct Api {
    /// Kubernetes.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// Redis.
    #[command(flatten)]
    pub redis: Redis,
    /// HTTP.
    #[command(flatten)]
    pub http: Http,
    /// A copy for BullMQ's tools.
    #[command(flatten)]
    pub mirror: MirrorOptions,
    /// Lease of the leader election.
    #[command(flatten)]
    pub leader_election: LeaderElection,
    /// Probes and metrics.
    #[command(flatten)]
    pub probes: Probes,
}

/// Options of `all`.
#[derive(Args)]
pub struct All {
    /// Controllers.
    #[command(flatten)]
    pub controllers: Controllers,
    /// Redis.
    #[command(flatten)]
    pub redis: Redis,
    /// MongoDB.
    #[command(flatten)]
    pub mongodb: MongoDb,
    /// Workers in this process.
    #[command(flatten)]
    pub workers: WorkerOptions,
    /// Probes and metrics.
    #[command(flatten)]
    pub probes: Probes,
    /// HTTP.
    #[command(flatten)]
    pub http: Http,
    /// A copy for BullMQ's tools.
    #[command(flatten)]
    pub mirror: MirrorOptions,
}

/// Options of the controllers.
#[derive(Args)]
#[group(id = "controller_options")]
pub struct Controllers {
    /// Kubernetes.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// Leader election.
    #[command(flatten)]
    pub leader_election: LeaderElection,
    /// Times.
    #[command(flatten)]
    pub times: Times,
}

/// Options of `run`.
#[derive(Args)]
pub struct RunOptions {
    /// File with manifests of SyncJobs, or of SyncSchedules, whose templates are run once. - is standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// MongoDB.
    #[command(flatten)]
    pub mongodb: LocalMongoDb,
    /// Entry of a Secret that a source names: NAME/KEY=env:VARIABLE, NAME/KEY=file:PATH, or NAME/KEY=- for standard
    /// input.
    #[arg(long = "secret", value_name = "NAME/KEY=SOURCE")]
    pub secrets: Vec<SecretArgument>,
    /// Dry run: the runs write nothing, and the result lists the documents that they would change.
    #[arg(long)]
    pub dry_run: bool,
    /// Largest number of documents that each run handles. With this option, runs mark and delete nothing.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Key of the only document that each run handles. May be repeated. With this option, runs mark and delete nothing.
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// Approval for held runs: the number of documents that each run may mark, delete or change beyond the limits of
    /// its guard. The message of a held run has the number.
    #[arg(long, value_name = "N")]
    pub approve: Option<u64>,
    /// Resume file. An interrupted process writes it, and the next process continues from it.
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Format of the results: one line of JSON per run, YAML of the SyncJob with its status, or text. Default: text on
    /// a terminal, otherwise json.
    #[arg(long, short, value_enum)]
    pub output: Option<Output>,
}

/// MongoDB of local runs.
#[derive(Clone, Debug, Args)]
pub struct LocalMongoDb {
    /// Connection string: mongodb://… or mongodb+srv://…
    #[arg(
        long,
        env = "MONGODB_URI",
        help_heading = "MongoDB",
        hide_env_values = true,
        required_unless_present = "mongodb_uri_file"
    )]
    pub mongodb_uri: Option<String>,
    /// File with the connection string.
    #[arg(long, env = "MONGODB_URI_FILE", help_heading = "MongoDB", conflicts_with = "mongodb_uri")]
    pub mongodb_uri_file: Option<PathBuf>,
    /// CA bundle (PEM) that verifies MongoDB; replaces the built-in roots; turns TLS on.
    #[arg(long, env = "MONGODB_CA_FILE", help_heading = "MongoDB")]
    pub mongodb_ca_file: Option<PathBuf>,
    /// Database of targets that do not set one. Default: the database of the connection string.
    #[arg(long, env = "MONGODB_DATABASE", help_heading = "MongoDB", value_parser = database_name)]
    pub mongodb_database: Option<String>,
}

/// Options of `verify`.
#[derive(Args)]
pub struct Verify {
    /// Namespace of the SyncJob. Default: the namespace of the pod, or of the context of the kubeconfig.
    #[arg(long)]
    pub namespace: Option<String>,
    /// Collection to synchronise. In a collection that does not exist, the run writes nothing.
    #[arg(long, default_value = "sync-operator-verify")]
    pub collection: String,
    /// Longest wait for the run.
    #[arg(long, default_value = "2m", value_parser = go_duration)]
    pub timeout: Duration,
}

/// Options of `adopt`.
#[derive(Args)]
pub struct Adopt {
    /// Kubernetes.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// Lease of the controllers.
    #[command(flatten)]
    pub leader_election: LeaderElection,
    /// Redis.
    #[command(flatten)]
    pub redis: Redis,
    /// Database of targets that do not set one, with the value that the controllers have.
    #[arg(long, env = "MONGODB_DATABASE", help_heading = "MongoDB", value_parser = database_name)]
    pub mongodb_database: Option<String>,
}

/// Options of `lint`.
#[derive(Args)]
pub struct Lint {
    /// Files with YAML or JSON, with one or more documents each. - is standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Format of the findings: a line for each, or a JSON array.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: LintOutput,
}

/// Format of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LintOutput {
    /// A line for each finding: file, line, column, level, field and message.
    Text,
    /// A JSON array of objects.
    Json,
}

/// Options of `crd`.
#[derive(Args)]
pub struct Crd {
    /// Kind of the only definition to print.
    #[arg(value_enum)]
    pub kind: Option<CrdKind>,
}

/// A custom resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CrdKind {
    /// SyncSchedule.
    #[value(name = "syncschedule")]
    SyncSchedule,
    /// SyncJob.
    #[value(name = "syncjob")]
    SyncJob,
    /// SyncAlert.
    #[value(name = "syncalert")]
    SyncAlert,
}

/// Options of the Kubernetes client. The cluster comes from KUBECONFIG, ~/.kube/config, or the service account of the
/// pod.
#[derive(Clone, Debug, Args)]
pub struct Kubernetes {
    /// Namespace of the watched objects. Default: all namespaces.
    #[arg(long, env = "WATCH_NAMESPACE", help_heading = "Kubernetes")]
    pub watch_namespace: Option<String>,
}

/// Options of the leader election. One controller reconciles; all controllers run their workers.
#[derive(Clone, Debug, Args)]
pub struct LeaderElection {
    /// Lease duration, in whole seconds. Another controller takes over when the leader stops renewing the Lease.
    #[arg(long, env = "LEADER_LEASE_DURATION", help_heading = "Leader election", default_value = "10s", value_parser = whole_seconds)]
    pub leader_lease_duration: Duration,
    /// Name of the Lease. Default: sync-operator, followed by the watched namespace if one is set.
    #[arg(long, env = "LEADER_LEASE_NAME", help_heading = "Leader election")]
    pub leader_lease_name: Option<String>,
    /// Namespace of the Lease. Default: the namespace of the pod, or of the context of the kubeconfig.
    #[arg(long, env = "LEADER_LEASE_NAMESPACE", help_heading = "Leader election")]
    pub leader_lease_namespace: Option<String>,
}

/// Redis of the queue.
#[derive(Clone, Args)]
#[group(id = "redis_options")]
pub struct Redis {
    /// Address as one URL: redis://[user:password@]host[:port][/db]; behind Sentinel
    /// redis+sentinel://[user:password@]host:port,host:port/master[/db]; in a Cluster
    /// redis+cluster://[user:password@]host:port,host:port. rediss for TLS. Replaces the other Redis options.
    #[arg(long, env = "REDIS_URL", help_heading = "Redis", hide_env_values = true)]
    pub redis_url: Option<String>,
    /// File with the URL of Redis. When the file changes, the program exits, so that the next start reads it.
    #[arg(long, env = "REDIS_URL_FILE", help_heading = "Redis", conflicts_with = "redis_url")]
    pub redis_url_file: Option<PathBuf>,
    /// Host of Redis.
    #[arg(long, env = "REDIS_HOST", help_heading = "Redis", default_value = "localhost")]
    pub redis_host: String,
    /// Port of Redis.
    #[arg(long, env = "REDIS_PORT", help_heading = "Redis", default_value_t = 6379)]
    pub redis_port: u16,
    /// User of Redis. Default: the default user of the server.
    #[arg(long, env = "REDIS_USERNAME", help_heading = "Redis", default_value = "")]
    pub redis_username: String,
    /// Password of Redis.
    #[arg(long, env = "REDIS_PASSWORD", help_heading = "Redis", hide_env_values = true)]
    pub redis_password: Option<String>,
    /// File with the password of Redis. When the file changes, the program exits, so that the next start reads it.
    #[arg(long, env = "REDIS_PASSWORD_FILE", help_heading = "Redis", conflicts_with = "redis_password")]
    pub redis_password_file: Option<PathBuf>,
    /// TLS for the connection to Redis.
    #[arg(long, env = "REDIS_TLS", help_heading = "Redis")]
    pub redis_tls: bool,
    /// CA bundle (PEM) that verifies Redis; replaces the system roots. When the file changes, the program exits, so
    /// that the next start reads it.
    #[arg(long, env = "REDIS_CA_FILE", help_heading = "Redis")]
    pub redis_ca_file: Option<PathBuf>,
    /// Number of the Redis database.
    #[arg(long, env = "REDIS_DB", help_heading = "Redis", default_value_t = 0)]
    pub redis_db: u16,
    /// Name of the queue. A queue belongs to one installation, so installations that share a Redis server need
    /// different names.
    #[arg(long, env = "QUEUE_NAME", help_heading = "Redis", default_value = "sync", value_parser = queue_name)]
    pub queue_name: String,
    /// Lease duration of a worker, at least 1s. The run of a lost worker is recovered after at most one and a half
    /// times this duration. Must be equal in all processes.
    #[arg(long, env = "LEASE_DURATION", help_heading = "Redis", default_value = "30s", value_parser = at_least_a_second)]
    pub lease_duration: Duration,
}

/// MongoDB of the data.
#[derive(Clone, Args)]
#[group(id = "mongodb_options")]
pub struct MongoDb {
    /// Connection string: mongodb://… or mongodb+srv://… Required for workers.
    #[arg(long, env = "MONGODB_URI", help_heading = "MongoDB", hide_env_values = true)]
    pub mongodb_uri: Option<String>,
    /// File with the connection string. When the file changes, the program exits, so that the next start reads it.
    #[arg(long, env = "MONGODB_URI_FILE", help_heading = "MongoDB", conflicts_with = "mongodb_uri")]
    pub mongodb_uri_file: Option<PathBuf>,
    /// CA bundle (PEM) that verifies MongoDB; replaces the built-in roots; turns TLS on. When the file changes, the
    /// program exits, so that the next start reads it.
    #[arg(long, env = "MONGODB_CA_FILE", help_heading = "MongoDB")]
    pub mongodb_ca_file: Option<PathBuf>,
    /// Database of targets that do not set one. Required for workers.
    #[arg(long, env = "MONGODB_DATABASE", help_heading = "MongoDB", value_parser = database_name)]
    pub mongodb_database: Option<String>,
    /// Additional databases that targets may set, separated by commas.
    #[arg(long, env = "ALLOWED_DATABASES", help_heading = "MongoDB", value_delimiter = ',', value_parser = database_name)]
    pub allowed_databases: Vec<String>,
}

/// Workers in a process.
#[derive(Clone, Debug, Args)]
pub struct WorkerOptions {
    /// Number of worker slots of this process: the largest number of concurrent runs, 0 to 256.
    #[arg(long, env = "WORKERS", help_heading = "Workers", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub workers: u16,
    /// Hosts that sources and sinks of alerts may use at public and private addresses, and without TLS. *.example.com
    /// matches all subdomains.
    #[arg(long, env = "SOURCE_ALLOWED_HOSTS", help_heading = "Workers", value_delimiter = ',')]
    pub source_allowed_hosts: Vec<String>,
    /// Networks that sources and sinks of alerts may use in addition to the public internet, such as 10.0.0.0/8, and
    /// without TLS.
    #[arg(long, env = "SOURCE_ALLOWED_CIDRS", help_heading = "Workers", value_delimiter = ',')]
    pub source_allowed_cidrs: Vec<IpNet>,
    /// File with the policy of the installation (YAML): the rights of namespaces. The program reads the file again when
    /// it changes.
    #[arg(long, env = "POLICY_FILE", help_heading = "Workers")]
    pub policy_file: Option<PathBuf>,
}

impl WorkerOptions {
    /// Returns the addresses that every namespace may use.
    #[must_use]
    pub fn addresses_everywhere(&self) -> Vec<AddressRule> {
        let hosts = self.source_allowed_hosts.iter().map(|host| host.trim().to_ascii_lowercase());
        let hosts = hosts.filter(|host| !host.is_empty()).collect();
        vec![AddressRule::for_hosts(hosts), AddressRule::for_networks(self.source_allowed_cidrs.clone())]
    }
}

/// Intervals and rate limits.
#[derive(Clone, Copy, Debug, Args)]
pub struct Times {
    /// Interval of the comparison of all unfinished SyncJobs with the queue, at least 1s.
    #[arg(long, env = "RESYNC_INTERVAL", help_heading = "Times", default_value = "30s", value_parser = at_least_a_second)]
    pub resync_interval: Duration,
    /// Least time between two status writes of a SyncJob that report only progress.
    #[arg(long, env = "STATUS_INTERVAL", help_heading = "Times", default_value = "2s", value_parser = go_duration)]
    pub status_interval: Duration,
    /// Largest number of status writes per second for all objects. Changes of state take precedence over progress.
    #[arg(long, env = "STATUS_WRITES_PER_SECOND", help_heading = "Times", default_value = "50")]
    pub status_writes_per_second: NonZeroU32,
}

/// Options of the HTTP server and its authorization.
#[derive(Clone, Debug, Args)]
pub struct Http {
    /// Address of the HTTP server. Default: 0.0.0.0; 127.0.0.1 with --insecure-no-auth.
    #[arg(long, env = "HTTP_ADDRESS", help_heading = "HTTP")]
    pub http_address: Option<IpAddr>,
    /// Port of the HTTP server.
    #[arg(long, env = "HTTP_PORT", help_heading = "HTTP", default_value_t = 4000)]
    pub http_port: u16,
    /// Read access: all clients that can reach the port, or only callers with the right to list SyncJobs. Without the
    /// right, /jobs/status has only counts.
    #[arg(long, env = "READ_ACCESS", help_heading = "HTTP", value_enum, default_value = "authorized")]
    pub read_access: ReadAccess,
    /// Names of the program, separated by commas, such as sync.example.com. Requests without a token need one of them,
    /// an address or localhost as their Host, so that pages of other sites cannot read.
    #[arg(long, env = "HTTP_HOSTS", help_heading = "HTTP", value_delimiter = ',', value_parser = host_name)]
    pub http_hosts: Vec<String>,
    /// Disable authentication. Allowed only on a loopback address.
    #[arg(long, env = "INSECURE_NO_AUTH", help_heading = "HTTP")]
    pub insecure_no_auth: bool,
    /// Largest number of requests per second of one caller. Further requests are refused with 429.
    #[arg(long, env = "HTTP_REQUESTS_PER_SECOND", help_heading = "HTTP", default_value = "100")]
    pub http_requests_per_second: NonZeroU32,
    /// Largest number of concurrent requests of all callers. Further requests are refused with 503. The same number of
    /// callers may receive events, and four times as many pages of the dashboard may be open.
    #[arg(long, env = "HTTP_REQUESTS_AT_A_TIME", help_heading = "HTTP", default_value = "256")]
    pub http_requests_at_a_time: NonZeroU32,
    /// Largest number of concurrent requests of one caller, or of one address without credentials. Further requests are
    /// refused with 429. A quarter of this number may receive events.
    #[arg(long, env = "HTTP_REQUESTS_PER_CALLER", help_heading = "HTTP", default_value = "32")]
    pub http_requests_per_caller: NonZeroU32,
    /// Largest number of open connections. One address that is no trusted proxy has at most a quarter. Further
    /// connections are closed at once.
    #[arg(long, env = "HTTP_CONNECTIONS", help_heading = "HTTP", default_value = "1024")]
    pub http_connections: NonZeroU32,
    /// Dashboard for browsers, at the path /.
    #[arg(long, env = "DASHBOARD", help_heading = "HTTP", value_enum, default_value = "on")]
    pub dashboard: Switch,
    /// File with the secret, of at least 32 bytes, that encrypts the sessions of the dashboard. Default: a random secret
    /// in Redis, which all processes of the queue share. When the file changes, the program exits, so that the next
    /// start reads it.
    #[arg(long, env = "DASHBOARD_KEY_FILE", help_heading = "HTTP")]
    pub dashboard_key_file: Option<PathBuf>,
    /// Address of the logs of a run, for a link on the page of the run, with the placeholders {uid}, {namespace},
    /// {name}, {schedule}, {worker}, {pod}, {from} or {to}. Times are in milliseconds since 1970.
    #[arg(long, env = "DASHBOARD_LOGS_URL", help_heading = "HTTP")]
    pub dashboard_logs_url: Option<LogsUrl>,
    /// Path prefix at which a proxy serves the program, such as /sync. Links begin with the prefix; requests are
    /// accepted with and without it.
    #[arg(long, env = "HTTP_PATH_PREFIX", help_heading = "HTTP")]
    pub http_path_prefix: Option<Prefix>,
    /// Networks of the proxies that authenticate users of the dashboard, such as 10.1.2.0/24, separated by commas. Each
    /// client in these networks can use the name of any user, so set only the addresses of the proxies. Default: none.
    #[arg(long, env = "TRUSTED_PROXIES", help_heading = "HTTP", value_delimiter = ',', value_parser = proxy_network)]
    pub trusted_proxies: Vec<IpNet>,
    /// Header with the name of the user that a trusted proxy sends.
    #[arg(long, env = "PROXY_USER_HEADER", help_heading = "HTTP", default_value = "X-Forwarded-User")]
    pub proxy_user_header: HeaderName,
    /// Header with the groups of the user, separated by commas, that a trusted proxy sends.
    #[arg(long, env = "PROXY_GROUPS_HEADER", help_heading = "HTTP", default_value = "X-Forwarded-Groups")]
    pub proxy_groups_header: HeaderName,
    /// File with the certificate (PEM) of the server, which enables HTTPS. The program reads the file again when it
    /// changes.
    #[arg(long, env = "HTTP_TLS_CERT", help_heading = "HTTP", requires = "http_tls_key")]
    pub http_tls_cert: Option<PathBuf>,
    /// File with the private key (PEM) of the certificate.
    #[arg(long, env = "HTTP_TLS_KEY", help_heading = "HTTP", requires = "http_tls_cert")]
    pub http_tls_key: Option<PathBuf>,
}

/// Options of the copy of the queue that BullMQ tools can read.
#[derive(Clone, Debug, Args)]
#[group(id = "mirror_options")]
pub struct MirrorOptions {
    /// Prefix of the keys of a read-only copy of the queue in the format of BullMQ, for tools such as Bull Board. The
    /// copy has the name of the queue, and the operator ignores all changes of it. For a Redis Cluster, the prefix
    /// needs braces: {bull}.
    #[arg(long, env = "BULLMQ_MIRROR", help_heading = "BullMQ", value_name = "PREFIX", value_parser = key_prefix)]
    pub bullmq_mirror: Option<String>,
}

/// Switch of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// The feature is enabled.
    On,
    /// The feature is disabled.
    Off,
}

/// Options of the server for probes and metrics: `/livez`, `/readyz`, `/metrics`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Probes {
    /// Address of the server for probes and metrics.
    #[arg(long, env = "METRICS_ADDRESS", help_heading = "Probes and metrics", default_value = "0.0.0.0")]
    pub metrics_address: IpAddr,
    /// Port of the server for /livez, /readyz and /metrics. 0: any free port, which the log names.
    #[arg(long, env = "METRICS_PORT", help_heading = "Probes and metrics", default_value_t = 9090)]
    pub metrics_port: u16,
}

impl Http {
    /// Returns the address to listen on.
    ///
    /// # Errors
    /// When other machines could reach the address, and authentication is disabled.
    pub fn address(&self) -> Result<SocketAddr, String> {
        let default = if self.insecure_no_auth { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let address = self.http_address.unwrap_or(default.into());
        if self.insecure_no_auth && !address.is_loopback() {
            return Err(format!(
                "--insecure-no-auth serves on a loopback address only, not on {address}: set HTTP_ADDRESS=127.0.0.1, or leave it out"
            ));
        }
        Ok(SocketAddr::new(address, self.http_port))
    }

    /// Proxies that may authenticate users of the dashboard.
    #[must_use]
    pub fn proxies(&self) -> Option<Proxies> {
        let Self { trusted_proxies, proxy_user_header: user, proxy_groups_header: groups, .. } = self;
        (!trusted_proxies.is_empty()).then(|| Proxies::new(trusted_proxies, user.clone(), groups.clone()))
    }
}

impl Redis {
    /// Returns the address as one URL.
    ///
    /// # Errors
    /// When a file with a part of the URL cannot be read.
    pub fn url(&self, files: &mut WatchedFiles) -> Result<String, watched_files::Error> {
        let url = files.read_line_or("REDIS_URL_FILE", self.redis_url_file.as_deref(), self.redis_url.as_deref())?;
        if let Some(url) = url {
            return Ok(url);
        }
        let (file, given) = (self.redis_password_file.as_deref(), self.redis_password.as_deref());
        let password = files.read_line_or("REDIS_PASSWORD_FILE", file, given)?;
        let password = password.filter(|password| !password.is_empty());
        let Self { redis_host, redis_port, redis_db, redis_username, .. } = self;
        let user = percent_encode(redis_username);
        let credentials =
            password.map_or_else(String::new, |password| format!("{user}:{}@", percent_encode(&password)));
        let scheme = if self.redis_tls { "rediss" } else { "redis" };
        Ok(format!("{scheme}://{credentials}{redis_host}:{redis_port}/{redis_db}"))
    }

    /// Returns the CA bundle (PEM) that verifies the server.
    ///
    /// # Errors
    /// When their file cannot be read.
    pub fn ca(&self, files: &mut WatchedFiles) -> Result<Option<Vec<u8>>, watched_files::Error> {
        self.redis_ca_file.as_ref().map(|path| files.read("REDIS_CA_FILE", path)).transpose()
    }
}

impl MongoDb {
    /// Returns the connection string.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn uri(&self, files: &mut WatchedFiles) -> Result<Option<String>, watched_files::Error> {
        files.read_line_or("MONGODB_URI_FILE", self.mongodb_uri_file.as_deref(), self.mongodb_uri.as_deref())
    }
}

impl RunOptions {
    /// Returns the settings of the runs.
    ///
    /// # Errors
    /// When a file that the settings name cannot be read.
    pub fn settings(self) -> Result<local::LocalRunSettings, watched_files::Error> {
        let Self { files, mongodb, secrets, dry_run, limit, keys, approve, resume, output } = self;
        let (file, given) = (mongodb.mongodb_uri_file.as_deref(), mongodb.mongodb_uri.as_deref());
        let mut credentials = WatchedFiles::default();
        let uri = credentials.read_line_or("MONGODB_URI_FILE", file, given)?;
        if let Some(ca) = &mongodb.mongodb_ca_file {
            credentials.read("MONGODB_CA_FILE", ca)?;
        }
        Ok(local::LocalRunSettings {
            files,
            mongodb_uri: uri.unwrap_or_default(),
            database: mongodb.mongodb_database,
            ca: mongodb.mongodb_ca_file,
            secrets,
            dry_run,
            subset: Subset { keys, limit },
            approved: approve,
            resume,
            output,
        })
    }
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn go_duration(text: &str) -> Result<Duration, String> {
    GoDuration::new(text).parse().map_err(|error| error.to_string())
}

fn at_least_a_second(text: &str) -> Result<Duration, String> {
    let duration = go_duration(text)?;
    if duration < Duration::from_secs(1) { Err("must be at least 1s".to_owned()) } else { Ok(duration) }
}

fn whole_seconds(text: &str) -> Result<Duration, String> {
    let duration = at_least_a_second(text)?;
    if duration.subsec_nanos() > 0 { Err("must be whole seconds".to_owned()) } else { Ok(duration) }
}

fn queue_name(text: &str) -> Result<String, String> {
    let valid = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if valid { Ok(text.to_owned()) } else { Err("must consist of letters, digits, -, _ and .".to_owned()) }
}

fn host_name(text: &str) -> Result<String, String> {
    let valid = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if valid { Ok(text.to_owned()) } else { Err("is no name of a host: leave out scheme, port and path".to_owned()) }
}

fn proxy_network(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text.parse().map_err(|_| "is no network: write it as 10.1.2.0/24".to_owned())?;
    if network.prefix_len() == 0 {
        return Err("contains all addresses, so that every client could use any name: set the proxies only".to_owned());
    }
    Ok(network)
}

fn key_prefix(text: &str) -> Result<String, String> {
    let valid = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:{}".contains(c));
    if valid { Ok(text.to_owned()) } else { Err("must consist of letters, digits, -, _, ., : and braces".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, String> {
        Cli::try_parse_from([&["sync-operator"], args].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_setting_is_named_with_its_fix() {
        let mongodb = ["--mongodb-uri", "mongodb://x", "--mongodb-database", "codex"];
        for (args, message) in [
            ([&["worker", "--lease-duration", "5"], &mongodb[..]].concat(), "write a number and a unit"),
            ([&["worker", "--lease-duration", "10ms"], &mongodb[..]].concat(), "must be at least 1s"),
            ([&["worker", "--workers", "1000"], &mongodb[..]].concat(), "1000 is not in 0..=256"),
            (vec!["worker", "--mongodb-uri", "mongodb://x", "--mongodb-database", "admin"], "reserved by MongoDB"),
            ([&["worker", "--queue-name", "a b"], &mongodb[..]].concat(), "letters, digits"),
            (vec!["api", "--bullmq-mirror", ""], "letters, digits"),
            (vec!["api", "--http-hosts", "a.example,https://b.example"], "leave out scheme, port and path"),
            (vec!["api", "--trusted-proxies", "10.0.0.0/8,0.0.0.0/0"], "contains all addresses"),
            (vec!["api", "--trusted-proxies", "::/0"], "contains all addresses"),
            (vec!["api", "--trusted-proxies", "10.0.0.1"], "write it as 10.1.2.0/24"),
        ] {
            let error = parse(&args).err().unwrap();
            assert!(error.contains(message), "{args:?}: {error}");
        }
    }

    #[test]
    fn without_authorisation_only_this_machine_is_served() {
        let address = |args: &[&str]| {
            let args = [&["sync-operator", "api"], args].concat();
            let Command::Api(api) = Cli::try_parse_from(args).ok().unwrap().command else { unreachable!() };
            api.http.address().map(|address| address.to_string())
        };
        assert_eq!(address(&[]).as_deref(), Ok("0.0.0.0:4000"));
        assert_eq!(address(&["--insecure-no-auth"]).as_deref(), Ok("127.0.0.1:4000"));
        assert_eq!(address(&["--insecure-no-auth", "--http-address", "::1"]).as_deref(), Ok("[::1]:4000"));
        let error = address(&["--insecure-no-auth", "--http-address", "10.0.0.1"]).unwrap_err();
        assert!(error.contains("HTTP_ADDRESS=127.0.0.1"), "{error}");
    }

    #[test]
    fn the_redis_url_is_built_from_its_parts() {
        let parts = Redis {
            redis_url: None,
            redis_url_file: None,
            redis_username: String::new(),
            redis_password_file: None,
            redis_tls: false,
            redis_ca_file: None,
            redis_host: "cache".to_owned(),
            redis_port: 6379,
            redis_password: Some("p@ss/1".to_owned()),
            redis_db: 3,
            queue_name: "sync".to_owned(),
            lease_duration: Duration::from_secs(30),
        };
        let url = |redis: &Redis| redis.url(&mut WatchedFiles::default()).unwrap();
        assert_eq!(url(&parts), "redis://:p%40ss%2F1@cache:6379/3");
        let parts = Redis { redis_tls: true, redis_username: "a:b".to_owned(), ..parts };
        assert_eq!(url(&parts), "rediss://a%3Ab:p%40ss%2F1@cache:6379/3");
        let parts = Redis { redis_url: Some("rediss://h".to_owned()), ..parts };
        assert_eq!(url(&parts), "rediss://h");
        let file = Redis { redis_url: None, redis_password_file: Some("/no/such/file".into()), ..parts };
        let error = file.url(&mut WatchedFiles::default()).unwrap_err().to_string();
        assert!(error.starts_with("REDIS_PASSWORD_FILE: could not read /no/such/file"), "{error}");
    }
}
