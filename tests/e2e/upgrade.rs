//! Upgrades from an earlier release with its chart and its image: `make prove-upgrade`.

use serde_json::{Value, json};

use super::{
    getting_started::{schedule, wait_until_complete},
    release::{BUNDLED, CHART, Data, HOME, Helm, bundled},
    support::{Namespace, apply, eventually, get, kubectl, lock_cluster, make_restricted_namespace, variable},
};

const DOCUMENTS: i32 = 5_000;

/// A slow SyncJob.
fn job(name: &str, collection: &str) -> Value {
    json!({
        "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "metadata": {"name": name},
        "spec": {
            "syncType": "Full", "batchSize": 1, "parallelism": 1,
            "target": {"collection": collection, "lastSyncedField": format!("{name}At")},
        },
    })
}

/// Waits until a run has processed documents.
fn wait_until_running(namespace: &Namespace, name: &str) {
    eventually(&format!("{name} has processed documents"), || {
        let job = get(&format!("syncjob {name} --namespace {namespace}"));
        job["status"]["counts"]["processed"].as_i64().filter(|processed| *processed > 0)
    });
}

fn install(chart: &str, values: &[&str]) {
    Helm::V4.install(HOME, HOME, chart, values).unwrap();
}

/// Waits until runs are complete. Each must have no failed attempt, and have stamped each document.
async fn finished(namespace: &Namespace, data: &Data, names: &[&str]) {
    for name in names {
        let status = wait_until_complete(&namespace.0, name)["status"].take();
        assert_eq!((&status["counts"]["processed"], &status["attempts"]), (&json!(DOCUMENTS), &json!(0)), "{status}");
        let field = format!("{name}At");
        let stamped = bson::doc! {field: {"$type": "date"}};
        let documents = data.database.collection::<bson::Document>(&namespace.0);
        assert_eq!(documents.count_documents(stamped).await.unwrap(), DOCUMENTS as u64, "{name}");
    }
}

#[tokio::test]
#[ignore = "needs the image of an earlier release: make prove-upgrade"]
async fn runs_survive_an_upgrade_and_a_downgrade() {
    let _lock = lock_cluster();
    let (chart, tag) = (variable("EARLIER_CHART"), format!("image.tag={}", variable("EARLIER_TAG")));
    let earlier = [&BUNDLED[..], &[tag.as_str()]].concat();
    if get(&format!("namespace {HOME}")).is_null() {
        make_restricted_namespace(HOME);
    }
    install(&chart, &earlier);
    let namespace = Namespace::new("upgrade");
    let data = Data::open().await;
    data.seed(&namespace.0, DOCUMENTS).await;
    apply(&namespace.0, &schedule(&namespace.0, json!({"syncType": "Full"})));
    eventually("the scheduled run is complete", || {
        let status = get(&format!("syncschedule user-sync --namespace {namespace}"))["status"].take();
        (status["runs"]["succeeded"] == 1).then_some(())
    });
    for name in ["first", "second", "suspended"] {
        apply(&namespace.0, &job(name, &namespace.0));
    }
    wait_until_running(&namespace, "suspended");
    kubectl(&format!(
        "patch syncjob suspended --namespace {namespace} --type=merge -p {{\"spec\":{{\"suspended\":true}}}}"
    ));
    eventually("the run is suspended", || {
        (get(&format!("syncjob suspended --namespace {namespace}"))["status"]["phase"] == "Suspended").then_some(())
    });
    wait_until_running(&namespace, "first");

    install(CHART, &bundled(&[]));
    apply(&namespace.0, &job("third", &namespace.0));
    finished(&namespace, &data, &["first", "second", "third"]).await;
    kubectl(&format!(
        "patch syncjob suspended --namespace {namespace} --type=merge -p {{\"spec\":{{\"suspended\":false}}}}"
    ));
    finished(&namespace, &data, &["suspended"]).await;
    kubectl(&format!("annotate syncschedule user-sync --namespace {namespace} sync.codex.dev/trigger=again"));
    eventually("the schedule's second run is complete", || {
        let status = get(&format!("syncschedule user-sync --namespace {namespace}"))["status"].take();
        (status["runs"]["succeeded"] == 2 && status["runs"]["failed"] == 0).then_some(())
    });

    apply(&namespace.0, &job("back", &namespace.0));
    wait_until_running(&namespace, "back");
    install(&chart, &earlier);
    finished(&namespace, &data, &["back"]).await;
    let schedule = get(&format!("syncschedule user-sync --namespace {namespace}"));
    assert_eq!(schedule["status"]["runs"]["total"], 2, "{schedule}");
    Helm::V4.run(&["uninstall", HOME, "--namespace", HOME, "--wait"]).unwrap();
}
