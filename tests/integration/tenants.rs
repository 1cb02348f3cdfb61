//! The policy of an installation: what the entries of its file allow, and to which namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::json;

use crate::{
    sources::with,
    support::{Operator, TestEnv, ended, eventually, run, unique, variable},
    upstream::Upstream,
};

/// A policy file, removed when it is dropped.
struct PolicyFile(PathBuf);

impl PolicyFile {
    fn new(text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("{}.yaml", unique("policy"))));
        fs::write(&file.0, text).unwrap();
        file
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Replaces the content, as a kubelet does, and waits until the operator has logged `line` once more.
    async fn replace(&self, text: &str, operator: &Operator, line: &str) {
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
