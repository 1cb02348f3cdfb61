//! A real Prometheus scrapes a real process, which must have every metric of the dashboard and the alerts.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    receiver::Receiver,
    support::{TestEnv, apply_job, apply_schedule, eventually, free_port, get, probe_port, replicas, unique, variable},
};

const RULES: &str = "charts/sync-operator/rules/sync-operator.yaml";
const DASHBOARD: &str = "charts/sync-operator/dashboards/sync-operator.json";

/// A Prometheus, killed when dropped.
struct Prometheus {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes a process, with the labels of a cluster.
    fn scraping(target: u16) -> Self {
        let (port, folder) = (free_port(), std::env::temp_dir().join(unique("prometheus")));
        fs::create_dir(&folder).unwrap();
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [fs::canonicalize(RULES).unwrap()],
            "scrape_configs": [{
                "job_name": "sync-operator-metrics",
                "static_configs": [{"targets": [format!("127.0.0.1:{target}")], "labels": {"namespace": "sync-operator"}}],
            }],
        });
        let file = folder.join("prometheus.yml");
        fs::write(&file, serde_yaml_ng::to_string(&config).unwrap()).unwrap();
        let process = Command::new(Path::new(&variable("PROMETHEUS")).join("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg("--enable-feature=exemplar-storage")
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, port, folder }
    }

    /// The data of an answer. `None` while there is no answer.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let address = format!("http://127.0.0.1:{}/api/v1/{path}", self.port);
        let text = reqwest::get(reqwest::Url::parse_with_params(&address, parameters).unwrap()).await.ok()?.text();
        let mut answer: Value = serde_json::from_str(&text.await.ok()?).ok()?;
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        Some(answer["data"].take())
    }

    /// The present series of an expression.
    async fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.ask("query", &[("query", expression)]).await;
        data.and_then(|mut data| data["result"].as_array_mut().map(std::mem::take)).unwrap_or_default()
    }

    /// Waits until an expression has a series.
    async fn wait_for_series(&self, expression: &str) -> Vec<Value> {
        eventually(&format!("Prometheus finds {expression}"), async || {
            let series = self.query(expression).await;
            (!series.is_empty()).then_some(series)
        })
        .await
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- log of Prometheus ---\n{}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// The metrics in an expression, with the labels of their selectors.
fn selectors(expression: &str) -> BTreeSet<String> {
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(start) = rest.find("sync_") {
        let is_start = !rest[..start].ends_with(is_in_name);
        rest = &rest[start..];
        let mut end = rest.find(|c| !is_in_name(c)).unwrap_or(rest.len());
        if rest[end..].starts_with('{') {
            end += rest[end..].find('}').unwrap() + 1;
        }
        if is_start {
            found.insert(rest[..end].to_owned());
        }
        rest = &rest[end..];
    }
    found
}

/// The expressions of each graph, with values for the variables of Grafana, and the labels of its legend.
fn graphs() -> Vec<(String, Vec<String>)> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let read = |target: &Value| {
        let labels = target["legendFormat"].as_str().unwrap().split("{{").skip(1);
        let labels = labels.map(|rest| rest.split("}}").next().unwrap().to_owned());
        (fill_in(target["expr"].as_str().unwrap()), labels.collect())
    };
    targets.map(read).collect()
}

/// The metric and the label of each list of the dashboard, such as namespaces and jobs.
fn lists() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let queries = dashboard["templating"]["list"].as_array().unwrap().iter().filter_map(|list| list["query"].as_str());
    let lists = queries.filter_map(|query| query.strip_prefix("label_values(")?.strip_suffix(')')?.rsplit_once(", "));
    lists.map(|(selector, label)| (fill_in(selector), label.to_owned())).collect()
}

fn fill_in(expression: &str) -> String {
    let filled = expression
        .replace("$namespace", "sync-operator")
        .replace("$job", "sync-operator-metrics")
        .replace("$__rate_interval", "1m");
    assert!(!filled.contains('$'), "a variable that the test does not know: {filled}");
    filled
}

fn alerts() -> Vec<String> {
    let rules: Value = serde_yaml_ng::from_str(&fs::read_to_string(RULES).unwrap()).unwrap();
    let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules.map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect()
}

/// Checks names, help texts and units with promtool. It reads the older text format, in which a counter's
/// name has its suffix in the comments, too.
fn lint(text: &str) {
    let counters: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let older = text.lines().map(|line| {
        // promtool does not support exemplars.
        let line = line.split(" # {").next().unwrap_or_default();
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind @ ("HELP" | "TYPE")), Some(name), Some(rest)) if counters.contains(&name) => {
                format!("# {kind} {name}_total {rest}\n")
            }
            _ => format!("{line}\n"),
        }
    });
    let older: String = older.collect();
    let mut promtool = Command::new(Path::new(&variable("PROMETHEUS")).join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(older.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{older}");
}

#[test]
fn the_metrics_that_an_expression_names_are_recognised() {
    let expression = r#"sum(rate(sync_a_total{job="sync-operator", x=~"a|b"}[1h])) / sum(sync_b) > 0 and no_sync_c"#;
    let expected = [r#"sync_a_total{job="sync-operator", x=~"a|b"}"#, "sync_b"];
    assert_eq!(selectors(expression).iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn prometheus_finds_all_metrics_of_the_dashboard_and_the_alerts() {
    let env = TestEnv::new().await;
    env.seed(100, 0).await;
    let (operator, port) = env.all(&[]);
    let metrics = probe_port(&operator).await;
    let prometheus = Prometheus::scraping(metrics);
    apply_schedule(&env, "users", json!({"interval": "5s", "immediate": true})).await;
    eventually("a call is answered", async || get(port, "/jobs/status").await).await;

    for (expression, labels) in graphs() {
        for selector in selectors(&expression) {
            prometheus.wait_for_series(&selector).await;
        }
        let series = prometheus.wait_for_series(&expression).await;
        for label in labels {
            assert!(series.iter().all(|one| one["metric"][&label].is_string()), "{label} of {expression}: {series:?}");
        }
    }
    for (selector, label) in lists() {
        assert!(prometheus.wait_for_series(&selector).await[0]["metric"][&label].is_string(), "{label} of {selector}");
    }
    for expression in alerts() {
        for selector in selectors(&expression) {
            prometheus.wait_for_series(&selector).await;
        }
    }
    let rules = eventually("the alerts are evaluated", async || {
        let rules = prometheus.ask("rules", &[]).await?["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    let rules = rules.await;
    assert_eq!(rules.len(), alerts().len());
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
    assert!(prometheus.query("sync_no_such_metric").await.is_empty(), "an unknown metric is not found");

    lint(&get(metrics, "/metrics").await.unwrap().1);
}

#[tokio::test]
async fn exemplars_link_histograms_to_the_trace_of_a_run() {
    let env = TestEnv::new().await;
    env.seed(10, 0).await;
    let receiver = Receiver::start().await;
    let operator = env.operator_with("controller", &[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.url)]);
    let port = probe_port(&operator).await;
    let prometheus = Prometheus::scraping(port);
    let job = apply_job(&env, "run", json!({"syncType": "Full"})).await;
    let trace = job.metadata.uid.unwrap().replace('-', "");
    for metric in ["sync_run_duration_seconds", "sync_batch_duration_seconds", "sync_queue_claim_latency_seconds"] {
        let query = format!("{metric}_bucket");
        eventually(&format!("{metric} has the trace as an exemplar"), async || {
            let found = prometheus.ask("query_exemplars", &[("query", &query), ("start", "0"), ("end", "4e9")]).await?;
            let exemplar = &found.as_array()?.first()?["exemplars"][0];
            (exemplar["labels"]["trace_id"] == trace.as_str()).then_some(())
        })
        .await;
    }
    lint(&get(port, "/metrics").await.unwrap().1);
}

/// The value of a metric without labels, or with the given labels.
fn value(text: &str, metric: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn a_schedule_is_overdue_while_there_is_no_worker() {
    let env = TestEnv::new().await;
    let replicas = replicas(&env, &["--workers", "0"]).await;
    apply_schedule(&env, "users", json!({"interval": "2s", "immediate": true})).await;
    let leader = replicas[0].port;
    let overdue = r#"sync_schedules{state="overdue"}"#;
    let waits = eventually("the schedule is overdue, and its run waits", async || {
        let text = get(leader, "/metrics").await?.1;
        let waits = value(&text, "sync_queue_oldest_waiting_seconds")?;
        (value(&text, overdue)? > 0.5 && waits > 3.0).then_some(waits)
    })
    .await;
    let standby = get(replicas[1].port, "/metrics").await.unwrap().1;
    assert!(!standby.contains("sync_schedules") && standby.contains("sync_queue_oldest"), "{standby}");

    let worker = env.operator("worker", &[]);
    let port = probe_port(&worker).await;
    eventually("the schedule is not overdue any more", async || {
        (value(&get(leader, "/metrics").await?.1, overdue)? < 0.5).then_some(())
    })
    .await;
    let text = get(port, "/metrics").await.unwrap().1;
    assert!(value(&text, "sync_queue_claim_latency_seconds_sum").unwrap() > waits, "{text}");
    assert_eq!(value(&text, "sync_worker_slots"), Some(4.0));
}
