//! Upgrades, uninstallation, and other charts with objects of the two kinds.

use std::fs;

use serde_json::json;

use super::{
    getting_started::{schedule, slow_job, wait_until_complete, wait_until_running},
    release::{
        BUNDLED, CHART, Data, HOME, Helm, LONG, NAMESPACED, assert_run_ends_without_loss, bundled, earlier_chart,
        install_only_crds, install_operator,
    },
    support::{Namespace, apply, eventually, get, kubectl, kubectl_may_fail, lock_cluster},
};

fn has_priority() -> bool {
    kubectl_may_fail("explain syncjob.spec.priority").is_ok()
}

#[tokio::test]
async fn an_upgrade_during_a_run_keeps_the_run_and_adds_new_fields() {
    let _lock = lock_cluster();
    install_operator();
    Helm::V4.run(&["uninstall", HOME, "--namespace", HOME, "--wait"]).unwrap();
    let earlier = earlier_chart();
    Helm::V3.install(HOME, HOME, earlier.to_str().unwrap(), &BUNDLED).unwrap();
    eventually("the kinds are the earlier ones", || (!has_priority()).then_some(()));

    let namespace = Namespace::new("upgrade");
    let data = Data::open().await;
    data.seed(&namespace.0, LONG).await;
    apply(&namespace.0, &slow_job(&namespace.0));
    wait_until_running(&namespace.0);
    Helm::V3.install(HOME, HOME, CHART, &bundled(&["podAnnotations.changed=yes"])).unwrap();
    eventually("the kinds are the new ones", || has_priority().then_some(()));
    assert_run_ends_without_loss(&namespace.0, &data.collection(&namespace.0)).await;
    fs::remove_dir_all(earlier).unwrap();
}

#[tokio::test]
async fn a_reinstallation_continues_with_the_remaining_objects() {
    let _lock = lock_cluster();
    install_operator();
    let namespace = Namespace::new("kept");
    apply(&namespace.0, &schedule("none", json!({})));
    eventually("the first run is complete", || {
        let jobs = get(&format!("syncjobs --namespace {namespace}"));
        (jobs["items"][0]["status"]["phase"] == "Complete").then_some(())
    });
    Helm::V4.run(&["uninstall", HOME, "--namespace", HOME, "--wait"]).unwrap();
    kubectl(&format!("delete namespace {HOME} --timeout=120s"));
    assert!(!get(&format!("syncschedule user-sync --namespace {namespace}")).is_null());
    // The SyncJob is created while no operator runs.
    apply(&namespace.0, &slow_job(&namespace.0));

    install_operator();
    wait_until_complete(&namespace.0, "run");
    kubectl(&format!("wait --for=condition=Ready syncschedule/user-sync --namespace {namespace} --timeout=60s"));
    // A namespace with objects of both kinds can be deleted.
    kubectl(&format!("delete namespace {namespace} --timeout=120s"));
}

#[test]
fn the_plain_manifests_install_the_same_without_helm() {
    let _lock = lock_cluster();
    install_only_crds();
    // The servers are of a release without an operator.
    let namespace = Namespace::new("servers");
    let values = [&NAMESPACED[..], &["redis.queueName=theirs"]].concat();
    Helm::V4.install(&namespace.0, "there", CHART, &bundled(&values)).unwrap();
    kubectl(&format!(
        "scale deployment there-sync-operator there-sync-operator-api --replicas=0 --namespace {namespace}"
    ));
    for (server, key, port) in [("redis", "url", 6379), ("mongodb", "uri", 27017)] {
        let address = format!("{server}://there-sync-operator-bundled-{server}.{namespace}:{port}");
        kubectl(&format!(
            "create secret generic sync-operator-{server} --namespace {HOME} --from-literal={key}={address}"
        ));
    }
    kubectl("apply --server-side --force-conflicts -f manifests/install.yaml");
    for deployment in ["sync-operator", "sync-operator-api"] {
        kubectl(&format!("rollout status deployment/{deployment} --namespace {HOME} --timeout=120s"));
    }
    apply(&namespace.0, &slow_job("none"));
    wait_until_complete(&namespace.0, "run");
    kubectl("delete -f manifests/install.yaml --wait=false");
    kubectl(&format!("delete secret sync-operator-redis sync-operator-mongodb --namespace {HOME}"));
    eventually("no object of the release is left", || get("crd syncjobs.sync.codex.dev").is_null().then_some(()));
}

#[test]
fn helm_waits_for_schedules_of_another_chart() {
    let _lock = lock_cluster();
    install_operator();
    let namespace = Namespace::new("wait");
    let folder = std::env::temp_dir().join(&namespace.0);
    fs::create_dir_all(folder.join("templates")).unwrap();
    fs::write(folder.join("Chart.yaml"), "apiVersion: v2\nname: theirs\nversion: 1.0.0\n").unwrap();
    let mut suspended = schedule("none", json!({}));
    suspended["metadata"]["name"] = json!("suspended");
    suspended["spec"]["suspended"] = json!(true);
    fs::write(folder.join("templates/a.yaml"), schedule("none", json!({})).to_string()).unwrap();
    fs::write(folder.join("templates/b.yaml"), suspended.to_string()).unwrap();
    for helm in [Helm::V4, Helm::V3] {
        helm.install(&namespace.0, "theirs", folder.to_str().unwrap(), &[]).unwrap();
    }
    let mut wrong = schedule("none", json!({}));
    wrong["metadata"]["name"] = json!("wrong");
    wrong["spec"] = json!({"schedule": "0 0 31 2 *", "jobTemplate": {"spec": {}}});
    fs::write(folder.join("templates/c.yaml"), wrong.to_string()).unwrap();
    // Helm 3 does not know the state of objects of unknown kinds.
    let refused = Helm::V4.install_within("20s", &namespace.0, "theirs", folder.to_str().unwrap(), &[]).unwrap_err();
    assert!(refused.contains("wrong"), "{refused}");
    fs::remove_dir_all(folder).unwrap();
}
