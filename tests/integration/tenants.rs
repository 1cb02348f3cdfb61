//! The policy of an installation: what the entries of its file allow, and to which namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use bson::doc;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use sync_operator::{
    api::{SyncJob, syncjob::Phase},
    domain::job::is_finished,
};

use crate::{
    sources::with,
    support::{
        ALLOWED, Operator, TestEnv, apply_job, apply_schedule, counts, ended, eventually, finished, leads, probe_port,
        reason, run, unique, variable, wait_for_events, wait_for_phase,
    },
    upstream::Upstream,
};

/// A policy file, removed when it is dropped.
pub struct PolicyFile(PathBuf);

impl PolicyFile {
    pub fn new(text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("{}.yaml", unique("policy"))));
        fs::write(&file.0, text).unwrap();
        file
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Replaces the content, as a kubelet does, and waits until the operator has logged `line` once more.
    pub async fn replace(&self, text: &str, operator: &Operator, line: &str) {
        let count = || operator.log().matches(line).count();
        let (before, next) = (count(), self.0.with_extension("next"));
        fs::write(&next, text).unwrap();
        fs::rename(next, &self.0).unwrap();
        eventually(&format!("the log has: {line}"), async || (count() > before).then_some(())).await;
    }
}

impl Drop for PolicyFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

#[tokio::test]
async fn a_host_entry_reaches_no_metadata() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(3, 0).await;
    let file = PolicyFile::new("addresses: [{name: here, hosts: [localhost]}]");
    let hosts = "127.0.0.1,[::1],169.254.169.254,168.63.129.16,100.100.100.200,10.255.255.1";
    let (_operator, _) = env.all(&["--policy-file", file.path(), "--source-allowed-hosts", hosts]);
    let port = upstream.url.rsplit_once(':').unwrap().1.to_owned();
    for (name, host, class) in [
        ("name", "localhost", "loopback"),
        ("loopback", "127.0.0.1", "loopback"),
        ("six", "[::1]", "loopback"),
        ("link-local", "169.254.169.254", "link-local"),
        ("azure", "168.63.129.16", "metadata"),
        ("alibaba", "100.100.100.200", "metadata"),
    ] {
        let status = run(&env, name, with(&upstream, &json!({"endpoint": format!("http://{host}:{port}/")}))).await;
        let (reason, message) = ended(&status);
        let expected = format!("source.graphQL.endpoint is at a {class} address, which the operator does not allow");
        assert!(reason == "InvalidSource" && message.starts_with(&expected), "{host}: {reason}: {message}");
        assert!(message.contains("only a network allows it"), "{message}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn addresses_belong_to_the_namespaces_of_an_entry() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(3, 0).await;
    let entry =
        |namespace: &str| format!("addresses: [{{name: a, namespaces: [{namespace}], networks: [127.0.0.0/8]}}]");
    let file = PolicyFile::new(&entry("another"));
    let (operator, _) = env.all(&["--policy-file", file.path()]);
    let refused = run(&env, "refused", with(&upstream, &json!({}))).await;
    assert_eq!((ended(&refused).0, upstream.requests()), ("InvalidSource", 0));

    file.replace(&entry(&env.name), &operator, "the new policy applies").await;
    let allowed = run(&env, "allowed", with(&upstream, &json!({}))).await;
    assert_eq!(ended(&allowed).0, "Completed");

    file.replace("adresses: []", &operator, "POLICY_FILE is invalid").await;
    assert!(operator.log().contains("did you mean"), "the log has the fix");
    let kept = run(&env, "kept", with(&upstream, &json!({}))).await;
    assert_eq!(ended(&kept).0, "Completed", "the policy before still applies");

    file.replace(&entry("another"), &operator, "the new policy applies").await;
    assert_eq!(ended(&run(&env, "again", with(&upstream, &json!({}))).await).0, "InvalidSource");
}

/// A policy that gives a namespace the collection `users`, with these key fields.
fn users(namespace: &str, key_fields: &str) -> String {
    let rights = format!("{{collections: [users], keyFields: [{key_fields}], mappedFields: [name]}}");
    format!("tenants: [{{name: team, namespaces: [{namespace}], mongodb: {rights}}}]")
}

#[tokio::test]
async fn what_no_entry_allows_is_refused() {
    let env = TestEnv::new().await;
    env.seed(3, 0).await;
    let file = PolicyFile::new(&users(&env.name, "_id"));
    let (operator, _) = env.all(&["--policy-file", file.path()]);
    let allowed = run(&env, "allowed", json!({"syncType": "Full"})).await;
    assert_eq!((ended(&allowed).0, counts(&allowed)), ("Completed", (3, 0, 0)));
    for (name, target, message) in [
        ("key", json!({"keyField": "email"}), "target.keyField email is not allowed for namespace "),
        ("collection", json!({"collection": "secrets"}), "target.collection secrets is not allowed for namespace "),
        (
            "stamp",
            json!({"lastSyncedField": "padding"}),
            "target.lastSyncedField padding is not allowed for namespace ",
        ),
        ("database", json!({"database": "crm"}), "target.database crm is not allowed for namespace "),
    ] {
        let refused = run(&env, name, json!({"syncType": "Full", "dryRun": true, "target": target})).await;
        let (reason, text) = ended(&refused);
        assert!(reason == "NotAllowed" && text.starts_with(message) && text.contains("tenants team allows"), "{text}");
        assert_eq!(refused.start_time, None, "{name}");
        assert!(refused.changes.is_empty());
    }

    let template = json!({"spec": {"target": {"keyField": "email"}}});
    apply_schedule(&env, "refused", json!({"interval": "1h", "immediate": true, "jobTemplate": template})).await;
    wait_for_events(&env, "refused", &["NotAllowed"]).await;
    let is_ready = async |reason: &str| {
        eventually(&format!("the schedule is {reason}"), async || {
            let status = env.schedules().get("refused").await.unwrap().status.unwrap_or_default();
            status.conditions.iter().any(|it| it.type_ == "Ready" && it.reason == reason).then_some(())
        })
        .await;
    };
    is_ready("NotAllowed").await;
    assert_eq!(env.jobs().list(&ListParams::default()).await.unwrap().items.len(), 5, "no SyncJob was created");
    file.replace(&users(&env.name, "_id, email"), &operator, "the new policy applies").await;
    is_ready("Scheduled").await;
}

#[tokio::test]
async fn a_changed_policy_cancels_runs() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(300, 0).await;
    upstream.state().delay = Duration::from_mins(5);
    let file = PolicyFile::new(&users(&env.name, "_id"));
    let (operator, _) = env.all(&[&ALLOWED[..], &["--policy-file", file.path()]].concat());
    let mapping = json!([{"from": "/name", "to": "name", "type": "String"}]);
    let mut spec = with(&upstream, &json!({"timeout": "10m"}));
    spec["mapping"] = mapping;
    apply_job(&env, "active", spec.clone()).await;
    spec["suspended"] = true.into();
    apply_job(&env, "suspended", spec).await;
    for (name, phase) in [("active", Phase::Running), ("suspended", Phase::Suspended)] {
        wait_for_phase(&env, name, phase).await;
    }
    file.replace(&users("another", "_id"), &operator, "the new policy applies").await;
    for name in ["active", "suspended"] {
        let status = finished(&env, name).await.status.unwrap();
        let (reason, message) = ended(&status);
        let expected = format!("namespace {} may not use the operator's MongoDB: no entry of tenants", env.name);
        assert!(reason == "NotAllowed" && message.starts_with(&expected), "{name}: {reason}: {message}");
    }
    assert_eq!(env.count(doc! {"lastSynced": {"$exists": true}}).await, 0);
}

#[tokio::test]
async fn a_worker_with_an_older_policy_leaves_the_run_to_others() {
    let env = TestEnv::new().await;
    env.seed(3, 0).await;
    let (old, new) = (PolicyFile::new(&users("another", "_id")), PolicyFile::new(&users(&env.name, "_id")));
    let worker = env.operator("worker", &["--policy-file", old.path()]);
    let _controller = env.operator("controller", &["--workers", "0", "--policy-file", new.path()]);
    apply_job(&env, "waits", json!({"syncType": "Full"})).await;
    eventually("the worker has released the run", async || {
        worker.log().contains("the policy of this worker does not allow the run: released").then_some(())
    })
    .await;
    eventually("the SyncJob has the reason", async || {
        let status = env.jobs().get("waits").await.unwrap().status?;
        let has_reason = status.conditions.iter().any(|it| it.message.contains("copy of the policy allows the run"));
        (has_reason && status.attempts.unwrap_or(0) == 0).then_some(())
    })
    .await;
    old.replace(&users(&env.name, "_id"), &worker, "the new policy applies").await;
    let status = finished(&env, "waits").await.status.unwrap();
    assert_eq!((ended(&status).0, counts(&status)), ("Completed", (3, 0, 0)));
}

/// A policy that gives a namespace at most this number of concurrent runs.
fn limited(namespace: &str, runs: u32) -> String {
    let rights = r#"{collections: ["*"], mappedFields: ["*"]}"#;
    format!("tenants: [{{name: team, namespaces: [{namespace}], runs: {runs}, mongodb: {rights}}}]")
}

/// Waits until the SyncJobs of these names, and no others, are in the queue.
async fn wait_for_queue(env: &TestEnv, expected: &[&str]) {
    eventually(&format!("the queue has {expected:?}"), async || {
        let jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
        let is_waiting = |job: &SyncJob| reason(job, "Reconciling").as_deref() == Some("TenantLimit");
        let is_known = |job: &SyncJob| job.status.as_ref().is_some_and(|status| status.phase.is_some());
        if !jobs.iter().all(is_known) {
            return None;
        }
        let others = jobs.iter().filter(|job| !is_finished(job) && !job.spec.suspended && !is_waiting(job));
        let mut found: Vec<_> = others.map(ResourceExt::name_any).collect();
        found.sort();
        (found == expected).then_some(())
    })
    .await;
    // The queue never has more runs than the policy allows, whatever the statuses say.
    let active = env.queue().depth().await.unwrap();
    assert!(active.waiting + active.delayed + active.active <= expected.len() as u64, "{active:?}");
}

async fn set(env: &TestEnv, name: &str, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    env.jobs().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn a_namespace_has_at_most_its_number_of_runs() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(3, 0).await;
    upstream.state().delay = Duration::from_mins(5);
    let file = PolicyFile::new(&limited(&env.name, 2));
    let args = [&ALLOWED[..], &["--policy-file", file.path()]].concat();
    let (operator, _) = env.all(&args);
    let job = async |name: &str, priority: i32| {
        let mut spec = with(&upstream, &json!({"timeout": "10m"}));
        spec["priority"] = priority.into();
        apply_job(&env, name, spec).await;
    };
    job("a", 0).await;
    job("b", 0).await;
    wait_for_queue(&env, &["a", "b"]).await;
    for (name, priority) in [("c", 0), ("d", 0), ("e", 9)] {
        job(name, priority).await;
    }
    wait_for_queue(&env, &["a", "b"]).await;
    for name in ["c", "d", "e"] {
        wait_for_phase(&env, name, Phase::Pending).await;
    }
    // An end lets the run of the highest priority in.
    set(&env, "a", json!({"cancelled": true})).await;
    wait_for_queue(&env, &["b", "e"]).await;
    // A suspended run does not count, and waits when it is resumed.
    set(&env, "b", json!({"suspended": true})).await;
    wait_for_queue(&env, &["c", "e"]).await;
    set(&env, "b", json!({"suspended": false})).await;
    eventually("the suspended run waits", async || {
        let job = env.jobs().get("b").await.unwrap();
        let waits = reason(&job, "Reconciling").as_deref() == Some("TenantLimit");
        (waits && job.status.unwrap().phase == Some(Phase::Suspended)).then_some(())
    })
    .await;
    // Another leader knows the runs in the queue.
    drop(operator);
    let (operator, _) = env.all(&args);
    let port = probe_port(&operator).await;
    eventually("the new operator leads", async || leads(port).await.then_some(())).await;
    wait_for_queue(&env, &["c", "e"]).await;
    env.jobs().delete("c", &DeleteParams::default()).await.unwrap();
    wait_for_queue(&env, &["b", "e"]).await;
    file.replace(&limited(&env.name, 9), &operator, "the new policy applies").await;
    wait_for_queue(&env, &["b", "d", "e"]).await;
}

#[tokio::test]
async fn an_invalid_policy_stops_the_start() {
    let file = PolicyFile::new("addresses:\n- name: a\n  hosts: [https://api.example]\n");
    for (path, message) in [
        (file.0.as_path(), format!("POLICY_FILE: {}:3:11: error: addresses[0].hosts[0]: ", file.path())),
        (Path::new("/no/such/policy.yaml"), "POLICY_FILE: could not read /no/such/policy.yaml".to_owned()),
    ] {
        for command in ["worker", "controller"] {
            let mut program = Command::new(env!("CARGO_BIN_EXE_sync-operator"));
            program.arg(command).arg("--policy-file").arg(path).env("KUBECONFIG", variable("KUBECONFIG"));
            program.env("REDIS_URL", "redis://127.0.0.1:1").env("METRICS_PORT", "0");
            let ended = program.stdin(Stdio::null()).output().unwrap();
            let printed = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert_eq!(ended.status.code(), Some(2), "{printed}");
            assert!(printed.contains(&message), "{command}: {printed}");
        }
    }
}
