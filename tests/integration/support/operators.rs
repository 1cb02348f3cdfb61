//! Operator processes: starting them, and reading their state.

use std::{fs, sync::Arc};

use serde_json::Value;
use test_support::{Operator, RequestLimit, Servers, eventually, free_port, get};

use super::TestEnv;

/// Arguments that allow sources and sinks on this machine.
pub const ALLOWED: [&str; 2] = ["--source-allowed-cidrs", "127.0.0.0/8"];

/// The port of the probes and metrics, which the kernel chose.
pub async fn probe_port(operator: &Operator) -> u16 {
    eventually("probes are served", async || {
        let log = operator.log();
        let line = log.lines().find(|line| line.contains("METRICS_PORT"))?;
        line.split("address=0.0.0.0:").nth(1)?.split_whitespace().next()?.parse().ok()
    })
    .await
}

/// True when the operator with this port of its probes leads.
pub async fn leads(port: u16) -> bool {
    let Some((_, body)) = get(port, "/readyz").await else { return false };
    serde_json::from_str::<Value>(&body).is_ok_and(|body| body["leading"] == true)
}

/// A controller, and the port of its probes.
pub struct Replica {
    pub process: Operator,
    pub port: u16,
}

/// Three controllers, the leader first.
pub async fn replicas(env: &TestEnv, args: &[&str]) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for _ in 0..3 {
        let process = env.operator("controller", &[&["--resync-interval", "1s"], args].concat());
        let port = probe_port(&process).await;
        replicas.push(Replica { process, port });
    }
    let leader = leader_of(&replicas).await;
    replicas.swap(0, leader);
    replicas
}

/// The index of the leader, of which there is at most one at any time.
pub async fn leader_of(replicas: &[Replica]) -> usize {
    eventually("one leads", async || {
        let mut leading = Vec::new();
        for replica in replicas {
            leading.push(leads(replica.port).await);
        }
        assert!(leading.iter().filter(|leads| **leads).count() <= 1, "{leading:?}");
        leading.iter().position(|leads| *leads)
    })
    .await
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

/// Number of lines of a log that contain a text.
pub fn lines(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}
