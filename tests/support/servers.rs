//! Servers of the whole test run and of one test, and a proxy whose connections can go dead.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bson::{Document, doc};
use kube::Client;
use mongodb::options::ClientOptions;
use redis::aio::MultiplexedConnection;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
};

use crate::{eventually, free_port, unique, variable};

/// The condition of `kubectl wait` for a new kind. `condition=Established` fails while the object has no status.
pub const ESTABLISHED: &str = r#"--for=jsonpath={.status.conditions[?(@.type=="Established")].status}=True"#;

/// Servers of the whole test run, or of one test.
#[derive(Clone, Debug)]
pub struct Servers {
    pub kubeconfig: String,
    pub redis: String,
    pub mongodb: String,
}

impl Servers {
    pub fn shared() -> Self {
        Self { kubeconfig: variable("KUBECONFIG"), redis: variable("REDIS_URL"), mongodb: variable("MONGODB_URI") }
    }

    pub async fn client(&self) -> Client {
        rustls::crypto::ring::default_provider().install_default().ok();
        let kubeconfig = kube::config::Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
            .await
            .unwrap();
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }
}

/// A Kubernetes control plane, Redis or MongoDB of one test. Stopped when dropped.
pub struct DedicatedServer {
    name: String,
    part: &'static str,
}

impl DedicatedServer {
    pub fn up(part: &'static str) -> (Self, Servers) {
        let own = Self { name: unique("outage"), part };
        own.script(&["up", part]);
        let mut servers = Servers::shared();
        for line in own.script(&["env"]).lines() {
            // The variables also have the ports of servers that do not run.
            match (part, line.trim_start_matches("export ").split_once('=')) {
                ("kube", Some(("KUBECONFIG", value))) => value.clone_into(&mut servers.kubeconfig),
                ("redis", Some(("REDIS_URL", value))) => value.clone_into(&mut servers.redis),
                ("mongodb", Some(("MONGODB_URI", value))) => value.clone_into(&mut servers.mongodb),
                _ => {}
            }
        }
        (own, servers)
    }

    pub fn script(&self, args: &[&str]) -> String {
        let output = Command::new("tests/cluster/cluster.sh").args(["--name", &self.name]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn install_crds(&self) {
        self.script(&["kubectl", "apply", "-f", "crds"]);
        self.script(&[
            "kubectl",
            "wait",
            ESTABLISHED,
            "crd/syncschedules.sync.codex.dev",
            "crd/syncjobs.sync.codex.dev",
            "crd/syncalerts.sync.codex.dev",
        ]);
    }

    fn server(&self) -> &'static str {
        if self.part == "kube" { "apiserver" } else { self.part }
    }

    pub fn stop(&self) {
        self.script(&["kill", self.server()]);
    }

    pub fn start(&self) {
        self.script(&["start", self.server()]);
    }
}

impl Drop for DedicatedServer {
    fn drop(&mut self) {
        Command::new("tests/cluster/cluster.sh").args(["--name", &self.name, "down"]).output().ok();
    }
}

/// A Redis server, killed when dropped.
pub struct Redis {
    process: Child,
    pub port: u16,
    folder: PathBuf,
    args: Vec<String>,
}

impl Redis {
    pub fn start(args: &[&str]) -> Self {
        Self::with_config("", args)
    }

    pub fn with_config(config: &str, args: &[&str]) -> Self {
        let (port, folder) = (free_port(), std::env::temp_dir().join(unique("redis")));
        fs::create_dir(&folder).unwrap();
        let file = folder.join("redis.conf");
        fs::write(&file, format!("port {port}\nbind 127.0.0.1\nsave \"\"\ndir {}\n{config}", folder.display()))
            .unwrap();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { process: Self::spawn(&folder, &args), port, folder, args }
    }

    fn spawn(folder: &Path, args: &[String]) -> Child {
        let mut command = Command::new(variable("REDIS_SERVER"));
        command.arg(folder.join("redis.conf")).args(args).stdout(Stdio::null()).spawn().unwrap()
    }

    /// A dump of its present data.
    pub async fn dump(&self) -> Vec<u8> {
        self.ask::<()>("SAVE").await;
        fs::read(self.folder.join("dump.rdb")).unwrap()
    }

    /// Kills it, and starts it again with the data of a dump, or with none.
    pub async fn restore(&mut self, dump: Option<&[u8]>) {
        self.kill();
        let file = self.folder.join("dump.rdb");
        match dump {
            Some(dump) => fs::write(file, dump).unwrap(),
            None => drop(fs::remove_file(file)),
        }
        self.process = Self::spawn(&self.folder, &self.args);
        eventually("Redis has loaded its data", async || {
            let pong = redis::cmd("PING").query_async::<String>(&mut self.connect().await).await;
            pong.ok()
        })
        .await;
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        eventually("Redis answers", async || client.get_multiplexed_async_connection().await.ok()).await
    }

    pub async fn ask<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut request = redis::cmd(words.next().unwrap());
        for word in words {
            request.arg(word);
        }
        request.query_async(&mut self.connect().await).await.unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// A Redis server, its replica, and a Sentinel that promotes the replica when the server is unavailable for some time.
pub struct SentinelRedis {
    pub master: Redis,
    pub replica: Redis,
    pub sentinel: Redis,
}

impl SentinelRedis {
    pub async fn start(away: Duration) -> Self {
        let master = Redis::start(&[]);
        let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
        eventually("the replica follows", async || {
            replica.ask::<String>("INFO replication").await.contains("master_link_status:up").then_some(())
        })
        .await;
        let config = format!(
            "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main {}\nsentinel failover-timeout main 2000\n",
            master.port,
            away.as_millis(),
        );
        let sentinel = Redis::with_config(&config, &["--sentinel"]);
        eventually("Sentinel knows the replica", async || {
            sentinel.ask::<String>("INFO sentinel").await.contains("slaves=1").then_some(())
        })
        .await;
        Self { master, replica, sentinel }
    }

    pub fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/main", self.sentinel.port)
    }
}

/// A MongoDB server without a replica set, killed when dropped.
pub struct MongoDb {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl MongoDb {
    pub fn start(args: &[&str]) -> Self {
        let (port, folder) = (free_port(), std::env::temp_dir().join(unique("mongodb")));
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new(variable("MONGOD"));
        command.args(["--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--dbpath"]);
        command.arg(&folder).arg("--port").arg(port.to_string()).args(args);
        let process = command.stdout(Stdio::null()).spawn().unwrap();
        Self { process, port, folder }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address of the server. `user` is `name:password@`, or nothing.
    pub fn url(&self, user: &str) -> String {
        format!("mongodb://{user}127.0.0.1:{}/?directConnection=true", self.port)
    }

    /// Runs a command on the database `admin`.
    pub async fn run(&self, user: &str, command: Document) -> Document {
        let client = mongodb::Client::with_options(ClientOptions::parse(self.url(user)).await.unwrap()).unwrap();
        let admin = client.database("admin");
        eventually("MongoDB answers", async || admin.run_command(doc! {"ping": 1}).await.ok()).await;
        admin.run_command(command).await.unwrap()
    }
}

impl Drop for MongoDb {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// A proxy whose connections can go dead: they forward nothing more, and report no error.
pub struct Link {
    pub address: SocketAddr,
    dead: watch::Sender<()>,
}

impl Link {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, dead) = (listener.local_addr().unwrap(), watch::Sender::new(()));
        let ends = dead.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut end = ends.subscribe();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        Ok(()) = end.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { address, dead }
    }

    /// Makes all present connections go dead. New connections work.
    pub fn forget_connections(&self) {
        self.dead.send_replace(());
    }
}

pub fn address_in(text: &str, scheme: &str) -> SocketAddr {
    let rest = text.split_once(scheme).unwrap().1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
    rest[..end].parse().unwrap()
}
