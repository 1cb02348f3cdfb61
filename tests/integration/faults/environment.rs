//! The servers of all rounds, and the proxies through which operators reach them.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use mongodb::options::ClientOptions;
use serde_json::{Value, json};
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{
    servers::ESTABLISHED,
    support::{Servers, unique},
};

/// The members of the MongoDB replica set, which are also the names of their proxies.
pub const MEMBERS: [&str; 3] = ["mongodb1", "mongodb2", "mongodb3"];

/// Servers, stopped when dropped.
pub struct Environment {
    name: String,
    /// Addresses for the tests. MongoDB is always behind its proxies.
    pub servers: Servers,
    /// Addresses for each operator.
    proxied: Vec<Servers>,
    toxiproxy: String,
    toxiproxy_is_restarted: Mutex<()>,
    folder: PathBuf,
}

impl Environment {
    pub fn up(operators: usize) -> Self {
        let name = unique("faults");
        let folder = std::env::temp_dir().join(format!("sync-operator-{name}"));
        fs::create_dir(&folder).unwrap();
        let servers = Servers { kubeconfig: String::new(), redis: String::new(), mongodb: String::new() };
        let mut environment = Self {
            name,
            servers,
            proxied: Vec::new(),
            toxiproxy: String::new(),
            toxiproxy_is_restarted: Mutex::default(),
            folder,
        };
        environment.cluster(&["up", "kube", "redis", "mongodb3"]);
        for line in environment.cluster(&["env"]).lines() {
            match line.trim_start_matches("export ").split_once('=') {
                Some(("KUBECONFIG", value)) => value.clone_into(&mut environment.servers.kubeconfig),
                Some(("REDIS_URL", value)) => value.clone_into(&mut environment.servers.redis),
                Some(("MONGODB_URI", value)) => value.clone_into(&mut environment.servers.mongodb),
                Some(("TOXIPROXY_URL", value)) => value.clone_into(&mut environment.toxiproxy),
                _ => {}
            }
        }
        environment.cluster(&["kubectl", "apply", "-f", "crds"]);
        for kind in ["syncschedules", "syncjobs", "syncalerts"] {
            environment.cluster(&["kubectl", "wait", ESTABLISHED, &format!("crd/{kind}.sync.codex.dev")]);
        }
        environment.cluster(&["stop", "controller-manager"]);
        environment.cluster(&["start", "controller-manager"]);
        environment.proxied = (0..operators).map(|operator| environment.proxy_addresses(operator)).collect();
        environment
    }

    /// Folder of the logs and reports, which stays after a failed round.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    pub fn operator_servers(&self, operator: usize) -> &Servers {
        &self.proxied[operator]
    }

    /// Addresses of an operator's own proxies. The API server's certificate is for 127.0.0.1, whatever the port.
    fn proxy_addresses(&self, operator: usize) -> Servers {
        let proxies: Value =
            serde_json::from_str(&curl(&self.toxiproxy, "GET", "/proxies", &Value::Null).unwrap()).unwrap();
        let address = |name: &str, end: &str| proxies[format!("{name}-{operator}")][end].as_str().unwrap().to_owned();
        let direct = fs::read_to_string(&self.servers.kubeconfig).unwrap();
        let kubeconfig = self.folder.join(format!("kubeconfig-{operator}"));
        fs::write(&kubeconfig, direct.replace(&address("apiserver", "upstream"), &address("apiserver", "listen")))
            .unwrap();
        Servers {
            kubeconfig: kubeconfig.to_str().unwrap().to_owned(),
            redis: format!("redis://{}", address("redis", "listen")),
            mongodb: self.servers.mongodb.clone(),
        }
    }

    fn cluster(&self, args: &[&str]) -> String {
        let output = Command::new("tests/cluster/cluster.sh").args(["--name", &self.name]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// `kill` or `start` of a server.
    pub async fn server(&self, command: &'static str, server: &str) {
        let (name, server) = (self.name.clone(), server.to_owned());
        let arguments =
            move || Command::new("tests/cluster/cluster.sh").args(["--name", &name, command, &server]).output();
        let output = spawn_blocking(arguments).await.unwrap().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A member of the replica set, in any role.
    pub async fn member(&self, name: &str) -> mongodb::Database {
        let at = MEMBERS.iter().position(|member| *member == name).unwrap();
        let mut options = ClientOptions::parse(&self.servers.mongodb).await.unwrap();
        options.hosts = vec![options.hosts[at].clone()];
        options.repl_set_name = None;
        options.direct_connection = Some(true);
        options.server_selection_timeout = Some(Duration::from_secs(1));
        mongodb::Client::with_options(options).unwrap().database("admin")
    }

    /// Adds a fault to the present and new connections of a proxy.
    pub async fn add_toxic(&self, proxy: &str, toxic: &Toxic) {
        match toxic {
            Toxic::Down => self.proxy("POST", format!("/proxies/{proxy}"), json!({"enabled": false})).await,
            Toxic::Other { kind, stream, attributes } => {
                let body = json!({"name": "fault", "type": kind, "stream": stream, "attributes": attributes});
                self.proxy("POST", format!("/proxies/{proxy}/toxics"), body).await;
            }
        }
    }

    /// Removes the fault.
    pub async fn remove_toxic(&self, proxy: &str, toxic: &Toxic) {
        match toxic {
            Toxic::Down => self.proxy("POST", format!("/proxies/{proxy}"), json!({"enabled": true})).await,
            Toxic::Other { .. } => self.proxy("DELETE", format!("/proxies/{proxy}/toxics/fault"), Value::Null).await,
        }
    }

    async fn proxy(&self, method: &'static str, path: String, body: Value) {
        let url = self.toxiproxy.clone();
        let asked = spawn_blocking(move || curl(&url, method, &path, &body)).await.unwrap();
        // toxiproxy 2.5.0 can deadlock when it changes a busy connection. After a restart, all its
        // proxies have no faults. Connections break, which is one more fault.
        if asked.is_err() {
            let _guard = self.toxiproxy_is_restarted.lock().await;
            self.server("kill", "toxiproxy").await;
            self.server("start", "toxiproxy").await;
        }
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        Command::new("tests/cluster/cluster.sh").args(["--name", &self.name, "down"]).output().ok();
    }
}

/// A fault of a connection, in the terms of toxiproxy.
#[derive(Clone, Debug)]
pub enum Toxic {
    /// Closed, and new ones refused.
    Down,
    Other {
        kind: &'static str,
        stream: &'static str,
        attributes: Value,
    },
}

/// Sends a request to toxiproxy. The removal of a toxic that does not exist is no error.
fn curl(url: &str, method: &str, path: &str, body: &Value) -> Result<String, String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--max-time", "5", "-w", "\n%{http_code}", "-X", method]);
    curl.arg(format!("{url}{path}"));
    if !body.is_null() {
        curl.args(["-d", &body.to_string()]);
    }
    let output = curl.output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    let (text, code) = answer.rsplit_once('\n').unwrap_or_default();
    match code {
        "200" | "204" => Ok(text.to_owned()),
        "404" if method == "DELETE" => Ok(String::new()),
        "400" | "404" | "409" => panic!("{method} {path} {body}: {answer}"),
        _ => Err(answer),
    }
}
