//! The environment of one test, and the users of the shared Redis.

use std::{env, fs, path::Path, process::Command, time::Duration};

use bson::{Document, doc};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::PostParams};
use mongodb::Database;
use sync_operator::{
    api::{SyncJob, SyncSchedule},
    queue::Queue,
};
use test_support::{Operator, Servers, free_port, unique};

/// A namespace, a queue and a database of one test.
pub struct TestEnv {
    pub servers: Servers,
    pub name: String,
    pub client: Client,
    pub database: Database,
}

impl TestEnv {
    pub async fn new() -> Self {
        Self::on(Servers::shared()).await
    }

    pub async fn on(servers: Servers) -> Self {
        let name = unique("test");
        let client = servers.client().await;
        let namespace = serde_json::from_value(serde_json::json!({"metadata": {"name": name}})).unwrap();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        let database = mongodb::Client::with_uri_str(&servers.mongodb).await.unwrap().database(&name);
        if Some(servers.redis.as_str()) == env::var("REDIS_URL").ok().as_deref() {
            add_redis_user(&servers.redis, &name).await;
        }
        Self { servers, name, client, database }
    }

    /// Address of Redis for operators. On the shared Redis, they log in as a user with the documented rights.
    fn redis_for_operators(&self, servers: &Servers) -> String {
        match servers.redis.strip_prefix("redis://") {
            Some(host) if env::var("REDIS_URL").is_ok_and(|shared| shared == servers.redis) => {
                format!("redis://{}:password@{host}", self.name)
            }
            _ => servers.redis.clone(),
        }
    }

    /// The servers, with a kubeconfig that impersonates a user without any rights.
    pub fn as_user(&self, user: &str) -> Servers {
        let kubeconfig = fs::read_to_string(&self.servers.kubeconfig).unwrap();
        let file = env::temp_dir().join(format!("{user}.kubeconfig"));
        let admin = "    user:\n      client-certificate-data";
        assert!(kubeconfig.contains(admin));
        fs::write(
            &file,
            kubeconfig.replace(admin, &format!("    user:\n      as: {user}\n      client-certificate-data")),
        )
        .unwrap();
        Servers { kubeconfig: file.to_str().unwrap().to_owned(), ..self.servers.clone() }
    }

    pub fn schedules(&self) -> Api<SyncSchedule> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn jobs(&self) -> Api<SyncJob> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn queue(&self) -> Queue {
        Queue::new(&self.servers.redis, &self.name, Duration::from_secs(30)).unwrap()
    }

    /// `count` users of 1 KB, of which the first `rejected` are refused by a validator when they are updated.
    pub async fn seed(&self, count: i32, rejected: i32) {
        let users = self.database.collection::<Document>("users");
        let padding = "x".repeat(900);
        for from in (0..count).step_by(5000) {
            let chunk = (from..count.min(from + 5000))
                .map(|i| doc! {"_id": i, "email": if i < rejected { "nobody" } else { "a@b" }, "padding": &padding});
            users.insert_many(chunk).await.unwrap();
        }
        let rule = doc! {"email": {"$regex": "@"}};
        self.database.run_command(doc! {"collMod": "users", "validator": rule}).await.unwrap();
    }

    pub async fn count(&self, filter: Document) -> u64 {
        self.database.collection::<Document>("users").count_documents(filter).await.unwrap()
    }

    /// Starts `sync-operator COMMAND` in this environment.
    pub fn operator(&self, command: &str, args: &[&str]) -> Operator {
        self.operator_on(&self.servers, command, args)
    }

    /// Starts `sync-operator COMMAND` with other addresses of the servers.
    pub fn operator_on(&self, servers: &Servers, command: &str, args: &[&str]) -> Operator {
        Operator::start(self.process(servers, command, args), &self.name)
    }

    /// Starts `sync-operator COMMAND` with more environment variables.
    pub fn operator_with(&self, command: &str, args: &[&str], variables: &[(&str, &str)]) -> Operator {
        let mut process = self.process(&self.servers, command, args);
        process.envs(variables.iter().copied());
        Operator::start(process, &self.name)
    }

    /// Starts `sync-operator COMMAND` for all namespaces of the cluster, with more environment variables. The servers of
    /// the whole test run have the objects of other tests, so the environment needs an API server of its own.
    pub fn operator_of_all_namespaces(&self, command: &str, args: &[&str], variables: &[(&str, &str)]) -> Operator {
        assert_ne!(self.servers.kubeconfig, Servers::shared().kubeconfig);
        let mut process = self.process(&self.servers, command, args);
        process.env_remove("WATCH_NAMESPACE").envs(variables.iter().copied());
        Operator::start(process, &self.name)
    }

    /// Starts `sync-operator COMMAND` with a clock that is off by the seconds in a file.
    pub fn operator_with_clock(&self, servers: &Servers, command: &str, args: &[&str], offset: &Path) -> Operator {
        let library = Path::new("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1");
        assert!(library.exists(), "libfaketime is not installed: run tests/cluster/install.sh");
        let mut process = self.process(servers, command, args);
        process
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", offset)
            .env("FAKETIME_CACHE_DURATION", "1")
            // Timers use the monotonic clock, which the offset does not change.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
        Operator::start(process, &self.name)
    }

    fn process(&self, servers: &Servers, command: &str, args: &[&str]) -> Command {
        // The program of another release, to record its data.
        let program = env::var("OPERATOR_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sync-operator").to_owned());
        let mut process = Command::new(program);
        process
            .arg(command)
            .args(args)
            .env("KUBECONFIG", &servers.kubeconfig)
            .env("REDIS_URL", self.redis_for_operators(servers))
            .env("MONGODB_URI", &servers.mongodb)
            .env("MONGODB_DATABASE", &self.name)
            .env("QUEUE_NAME", &self.name)
            .env("WATCH_NAMESPACE", &self.name)
            .env("LEADER_LEASE_DURATION", "3s")
            .env("METRICS_PORT", "0")
            .env("RUST_LOG", env::var("RUST_LOG").unwrap_or_else(|_| "warn,sync_operator=info".to_owned()));
        process
    }

    /// Starts `sync-operator all` with HTTP without authentication. Returns it with its port.
    pub fn all(&self, args: &[&str]) -> (Operator, u16) {
        let port = free_port();
        let http = ["--insecure-no-auth", "--http-port", &port.to_string()];
        (self.operator("all", &[&http, args].concat()), port)
    }
}

/// Adds a user of this name with the documented rights on the queue of the same name.
pub async fn add_redis_user(url: &str, name: &str) {
    let page = include_str!("../../../docs/operations/redis.md");
    let lines = page.lines().filter(|line| line.starts_with("ACL SETUSER sync-operator"));
    let mut connection = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut documented = 0;
    for line in lines {
        let line = line.replace("PASSWORD", "password").replace("{sync:sync}", &format!("{{sync:{name}}}"));
        let line = line.replace("PREFIX:sync:", &format!("*bull*:{name}:")).replace("sync-operator", name);
        let mut words = line.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.exec_async(&mut connection).await.unwrap();
        documented += 1;
    }
    assert_eq!(documented, 2);
}

/// Lets the user of this name also use another queue.
pub async fn allow_queue(url: &str, name: &str, queue: &str) {
    let mut connection = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let keys = format!("~{{sync:{queue}}}:*");
    redis::cmd("ACL").arg("SETUSER").arg(name).arg(keys).exec_async(&mut connection).await.unwrap();
}
