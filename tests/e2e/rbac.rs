//! The rights of the accounts, and the network policies.

use std::{collections::BTreeSet, fs};

use super::{
    release::{CHART, HOME, Helm, NAMESPACED, bundled, install_only_crds, install_operator},
    support::{Namespace, apply, attempt, eventually, get, kubectl, kubectl_may_fail, lock_cluster},
};

const PAGE: &str = "docs/operations/runbook.md";
/// The rights of every account: requests for its own rights, and discovery of the API.
const EVERYONE: [&str; 4] = ["selfsubject", "[/", "clustertrustbundles", "Resources"];

/// `kubectl auth can-i --list` of a ServiceAccount, without the rights of every account.
fn rights(namespace: &str, account: &str) -> BTreeSet<String> {
    let user = format!("--as=system:serviceaccount:{namespace}:{account}");
    let list = kubectl(&format!("auth can-i --list --namespace {namespace} {user}"));
    let lines = list.lines().filter(|line| !EVERYONE.iter().any(|word| line.contains(word)));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The rights that the documentation lists in the block after a heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let page = fs::read_to_string(PAGE).unwrap();
    let (_, rest) = page.split_once(heading).unwrap_or_else(|| panic!("{PAGE} has no {heading}"));
    let block = rest.split("```").nth(1).unwrap();
    block.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn each_account_may_do_what_the_docs_list_and_nothing_else() {
    let _lock = lock_cluster();
    install_operator();
    for (account, heading) in [("sync-operator", "### The controller"), ("sync-operator-api", "### The API")] {
        assert_eq!(rights(HOME, account), documented(heading), "{account}");
    }
}

#[test]
fn an_operator_of_one_namespace_has_no_rights_in_others() {
    let _lock = lock_cluster();
    install_only_crds();
    let (namespace, other) = (Namespace::new("own"), Namespace::new("other"));
    let own = [&NAMESPACED[..], &["worker.enabled=true", "worker.autoscaling.enabled=true"]].concat();
    Helm::V3.install(&namespace.0, "mine", CHART, &bundled(&own)).unwrap();
    let output = Helm::V3.run(&["test", "mine", "--namespace", &namespace.0, "--logs"]).unwrap();
    assert!(output.contains("Complete"), "{output}");

    let token = kubectl(&format!("create token mine-sync-operator-api --namespace {namespace}"));
    let token = token.trim();
    let job = r#"{"apiVersion":"sync.codex.dev/v1alpha1","kind":"SyncJob","metadata":{"name":"theirs"},"spec":{}}"#;
    let create = |namespace: &str| {
        // The certificate of an administrator would have precedence over the token.
        let server = kubectl("config view --minify -o jsonpath={.clusters[0].cluster.server}");
        let args =
            ["--kubeconfig", "/dev/null", "--server", server.as_str(), "--insecure-skip-tls-verify", "--token", token];
        let create = ["create", "--namespace", namespace, "-f", "-"];
        attempt("kubectl", &[&args[..], &create[..]].concat(), job)
    };
    let refused = create(&other.0).unwrap_err();
    assert!(refused.contains("forbidden"), "{refused}");
    create(&namespace.0).unwrap();
    for account in ["mine-sync-operator", "mine-sync-operator-api", "mine-sync-operator-worker"] {
        let user = format!("--as=system:serviceaccount:{namespace}:{account}");
        for verb in ["list syncjobs.sync.codex.dev", "get secrets", "create pods"] {
            let answer = kubectl_may_fail(&format!("auth can-i {verb} --namespace {other} {user}"));
            assert!(answer.unwrap_err().starts_with("no"), "{account} {verb}");
        }
    }
    eventually("the SyncJob ends", || {
        let job = get(&format!("syncjob theirs --namespace {namespace}"));
        (job["status"]["phase"] == "Complete").then_some(())
    });
}

#[test]
fn network_policies_allow_only_the_needed_connections() {
    let _lock = lock_cluster();
    install_only_crds();
    let namespace = Namespace::new("fenced");
    let own = [&NAMESPACED[..], &["networkPolicy.enabled=true"]].concat();
    Helm::V4.install(&namespace.0, "mine", CHART, &bundled(&own)).unwrap();
    let output = Helm::V4.run(&["test", "mine", "--namespace", &namespace.0, "--logs"]).unwrap();
    assert!(output.contains("Complete"), "{output}");

    // Another pod reaches the calls, and the servers only with the label of the release.
    let reach = |name: &str, label: &str, host: &str, port: u16, restart: &str| {
        let spec = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app.kubernetes.io/instance": label}},
            "spec": {
                "restartPolicy": restart,
                // A network policy may drop the packets without an answer.
                "activeDeadlineSeconds": 90,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "cli", "image": "sync-operator-test/redis:7", "imagePullPolicy": "Never",
                    "command": ["redis-cli", "-h", host, "-p", port.to_string(), "ping"],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        });
        apply(&namespace.0, &spec);
        eventually(&format!("{name} has ended"), || {
            let phase = get(&format!("pod {name} --namespace {namespace}"))["status"]["phase"].take();
            (phase == "Succeeded" || phase == "Failed").then_some(())
        });
        kubectl_may_fail(&format!("logs {name} --namespace {namespace}")).unwrap_or_else(|error| error)
    };
    let redis = "mine-sync-operator-bundled-redis";
    // The policies apply to a new pod after a moment.
    let answered = reach("friend", "mine", redis, 6379, "OnFailure");
    assert!(answered.contains("PONG"), "{answered}");
    let refused = reach("stranger", "other", redis, 6379, "Never");
    assert!(!refused.contains("PONG"), "{refused}");
    // redis-cli does not understand HTTP, but it gets an answer.
    let answered = reach("caller", "other", "mine-sync-operator", 4000, "Never");
    assert!(answered.contains("HTTP") || answered.contains("Protocol error"), "{answered}");
}
