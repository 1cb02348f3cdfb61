//! The steps of the README and of the chart's notes: installation, a schedule, calls and the Helm test.

use serde_json::{Value, json};

use super::{
    release::{Data, HOME, Helm, LONG, assert_run_ends_without_loss, install_operator},
    support::{Forward, Namespace, apply, call, eventually, get, kubectl, lock_cluster},
};

/// A schedule on its own collection. After the first run, no slot is due for months.
pub fn schedule(collection: &str, template: Value) -> Value {
    let mut spec = template;
    spec["target"] = json!({"collection": collection});
    json!({
        "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncSchedule", "metadata": {"name": "user-sync"},
        "spec": {"interval": "8000h", "immediate": true, "jobTemplate": {"spec": spec}},
    })
}

/// A slow SyncJob on its own collection.
pub fn slow_job(collection: &str) -> Value {
    json!({
        "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "metadata": {"name": "run"},
        "spec": {"syncType": "Full", "batchSize": 1, "parallelism": 1, "target": {"collection": collection}},
    })
}

/// Number of documents that the SyncJob `run` has processed.
pub fn processed(namespace: &str) -> Option<i64> {
    get(&format!("syncjob run --namespace {namespace}"))["status"]["counts"]["processed"].as_i64()
}

/// Waits until the SyncJob `run` has processed documents.
pub fn wait_until_running(namespace: &str) {
    eventually("the run has processed documents", || processed(namespace).filter(|processed| *processed > 0));
}

/// Waits until a SyncJob is complete, and returns it.
pub fn wait_until_complete(namespace: &str, name: &str) -> Value {
    eventually(&format!("{namespace}/{name} is complete"), || {
        let job = get(&format!("syncjob {name} --namespace {namespace}"));
        assert_ne!(job["status"]["phase"], "Failed", "{job}");
        (job["status"]["phase"] == "Complete").then_some(job)
    })
}

#[tokio::test]
async fn a_schedule_runs_and_kubectl_and_the_api_show_it() {
    let _lock = lock_cluster();
    install_operator();
    let namespace = Namespace::new("user");
    let data = Data::open().await;
    data.seed(&namespace.0, 2_500).await;
    apply(&namespace.0, &schedule(&namespace.0, json!({"syncType": "Full"})));

    // kubectl get syncjobs
    let row: Vec<String> = eventually("the run is complete in kubectl's table", || {
        let table = kubectl(&format!("get syncjobs --namespace {namespace}"));
        let mut lines = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let header = lines.next()?;
        assert_eq!(
            header,
            ["NAME", "SCHEDULE", "TYPE", "STATUS", "PROGRESS", "PROCESSED", "FAILED", "ATTEMPTS", "DURATION", "AGE"]
        );
        lines.next().filter(|row| row.contains(&"Complete".to_owned()))
    });
    assert_eq!(row[1..8], ["user-sync", "Full", "Complete", "100", "2500", "0", "0"].map(str::to_owned));
    assert_eq!(data.stamped(&namespace.0).await, 2_500);

    // The HTTP calls, through the Service.
    let api = Forward::new(HOME, "service/sync-operator", 4000);
    let healthy = json!({"status": "OK", "jobs": {"initialized": true}});
    assert_eq!(call(api.port, "GET", "/health", None), (200, healthy));
    let (code, status) = call(api.port, "GET", "/jobs/status", None);
    assert_eq!(code, 200);
    // Without a token, only the counts are shown.
    assert!(status["repeatable"].is_null() && status["counts"]["completed"].as_u64().unwrap() >= 1, "{status}");
    kubectl(&format!("create serviceaccount dev --namespace {namespace}"));
    kubectl(&format!("create serviceaccount nobody --namespace {namespace}"));
    // `aggregateRoles` adds the rights on the kinds to the ClusterRole edit.
    kubectl(&format!(
        "create rolebinding dev --clusterrole=edit --serviceaccount={namespace}:dev --namespace {namespace}"
    ));
    let token = |account: &str| {
        let token = kubectl(&format!("create token {account} --namespace {namespace} --audience sync-operator"));
        token.trim().to_owned()
    };
    let trigger = format!("/jobs/trigger/user-sync?namespace={namespace}&schedule=user-sync");
    let list = format!("/jobs?namespace={namespace}&schedule=user-sync");
    assert_eq!((call(api.port, "GET", &list, None).0, call(api.port, "POST", &trigger, None).0), (401, 401));
    assert_eq!(call(api.port, "POST", &trigger, Some(&token("nobody"))).0, 403);
    let (code, triggered) = eventually("the rights are aggregated into the role edit", || {
        let answer = call(api.port, "POST", &trigger, Some(&token("dev")));
        (answer.0 != 403).then_some(answer)
    });
    assert_eq!(code, 202, "{triggered}");
    wait_until_complete(&namespace.0, triggered["name"].as_str().unwrap());
    let (code, runs) = call(api.port, "GET", &list, Some(&token("dev")));
    assert_eq!((code, runs["items"].as_array().unwrap().len()), (200, 2), "{runs}");

    // Suspension by a patch.
    let suspend = r#"{"spec":{"suspended":true}}"#;
    kubectl(&format!("patch syncschedule user-sync --namespace {namespace} --type merge --patch {suspend}"));
    kubectl(&format!("wait --for=condition=Suspended syncschedule/user-sync --namespace {namespace} --timeout=60s"));

    // helm test
    let output = Helm::V4.run(&["test", HOME, "--namespace", HOME, "--logs"]).unwrap();
    assert!(output.contains("Complete, 0 of 0 documents"), "{output}");

    kubectl(&format!("delete syncschedule user-sync --namespace {namespace}"));
    eventually("the SyncJobs of the schedule are deleted", || {
        get(&format!("syncjobs --namespace {namespace}"))["items"].as_array().unwrap().is_empty().then_some(())
    });
}

#[tokio::test]
async fn a_run_survives_the_deletion_of_a_controller_pod() {
    let _lock = lock_cluster();
    install_operator();
    let namespace = Namespace::new("handover");
    let data = Data::open().await;
    data.seed(&namespace.0, LONG).await;
    apply(&namespace.0, &slow_job(&namespace.0));
    let worker = || {
        let job = get(&format!("syncjob run --namespace {namespace}"));
        assert!(job["status"]["phase"] != "Complete", "the run was too short: {job}");
        let counts = &job["status"]["counts"];
        let worker = job["status"]["worker"].as_str()?.to_owned();
        (counts["processed"].as_i64()? > 0).then_some(worker)
    };
    let first = eventually("the run has a worker", worker);
    let pod = first.rsplit_once('-').unwrap().0;
    kubectl(&format!("delete pod {pod} --namespace {HOME} --wait=false"));
    let second = eventually("another pod has the run", || worker().filter(|worker| *worker != first));
    assert_ne!(second.rsplit_once('-').unwrap().0, pod);
    assert_run_ends_without_loss(&namespace.0, &data.collection(&namespace.0)).await;
}
