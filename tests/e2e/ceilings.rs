//! Ceilings of fields and numbers of objects, which the API server enforces.

use serde_json::{Value, json};

use super::{
    getting_started::wait_until_complete,
    release::{HOME, Helm, install_operator, install_operator_with},
    support::{Namespace, attempt, eventually, kubectl, lock_cluster},
};

const API: &str = "sync.codex.dev/v1alpha1";

/// Spec of a SyncJob above every ceiling.
fn above() -> Value {
    json!({"priority": 500, "parallelism": 20, "activeDeadline": "5h"})
}

fn job(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": API, "kind": "SyncJob", "metadata": {"name": name}, "spec": spec})
}

/// A SyncSchedule that is suspended, so that its runs do not count.
fn schedule(name: &str, spec: &Value) -> Value {
    let spec = json!({"interval": "8000h", "immediate": true, "suspended": true, "jobTemplate": {"spec": spec}});
    json!({"apiVersion": API, "kind": "SyncSchedule", "metadata": {"name": name}, "spec": spec})
}

fn create(namespace: &Namespace, object: &Value) -> Result<String, String> {
    attempt("kubectl", &["create", "--namespace", &namespace.0, "-f", "-"], &object.to_string())
}

fn patch(namespace: &Namespace, object: &str, spec: &Value) -> Result<String, String> {
    let patch = json!({"spec": spec}).to_string();
    attempt("kubectl", &["patch", "--namespace", &namespace.0, object, "--type=merge", "-p", &patch], "")
}

/// Value of the chart that binds a ceiling to one namespace.
fn label(ceiling: usize, namespace: &str) -> String {
    format!("ceilings[{ceiling}].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name={namespace}")
}

fn assert_refused(answer: Result<String, String>, message: &str) {
    let refused = answer.err().unwrap_or_else(|| panic!("accepted, should say {message}"));
    assert!(refused.contains(message), "should say {message}: {refused}");
}

/// Installs ceilings and a quota for a namespace, and a ceiling for the namespace of the operator.
fn install_ceilings(namespace: &Namespace) {
    let values = [
        "ceilings[0].name=teams".to_owned(),
        label(0, &namespace.0),
        "ceilings[0].priority=0".to_owned(),
        "ceilings[0].parallelism=8".to_owned(),
        "ceilings[0].activeDeadline=2h".to_owned(),
        "ceilings[0].interval=5m".to_owned(),
        "ceilings[1].name=home".to_owned(),
        label(1, HOME),
        "ceilings[1].parallelism=1".to_owned(),
        format!("quotas[0].namespace={namespace}"),
        "quotas[0].syncJobs=3".to_owned(),
    ];
    install_operator_with(&values.each_ref().map(String::as_str));
    // The API server applies a policy to new requests after a moment.
    eventually("the policy applies", || {
        let refused = create(namespace, &job("before", &above())).unwrap_err();
        refused.contains("ceiling teams").then_some(())
    });
}

fn assert_refuses_what_is_above(namespace: &Namespace) {
    for (spec, message) in [
        (json!({"priority": 1}), "priority must be at most 0 in this namespace (ceiling teams): lower it"),
        (json!({"parallelism": 9}), "parallelism must be at most 8 in this namespace (ceiling teams): lower it"),
        (
            json!({"activeDeadline": "2h0.5s"}),
            "activeDeadline must be at most 2h in this namespace (ceiling teams): lower it",
        ),
    ] {
        assert_refused(create(namespace, &job("new", &spec)), &format!("request: spec.{message}"));
        let message = format!("request: spec.jobTemplate.spec.{message}");
        assert_refused(create(namespace, &schedule("new", &spec)), &message);
    }
    for (spec, message) in [
        (json!({"interval": "299s"}), "spec.interval must be at least 5m in this namespace (ceiling teams): raise it"),
        (
            json!({"schedule": "*/5 * * * *"}),
            "spec.schedule must have a single number as its minute in this namespace (ceiling teams), because runs must be \
             at least 5m apart: write 0 * * * *, or set interval instead",
        ),
    ] {
        let schedule = json!({"apiVersion": API, "kind": "SyncSchedule", "metadata": {"name": "new"}, "spec": spec});
        assert_refused(create(namespace, &schedule), message);
    }
}

/// Waits until Kubernetes has counted the objects for the quota, before which it refuses new ones. It looks for new kinds
/// each 30 s, and counts again after 5 minutes, or a change of the quota.
fn wait_until_counted(namespace: &Namespace) {
    let mut change = 0;
    eventually("the quota is counted", || {
        change += 1;
        let spec = json!({"hard": {"count/syncalerts.sync.codex.dev": change.to_string()}});
        patch(namespace, "resourcequota/sync-operator", &spec).unwrap();
        let used =
            kubectl(&format!("get resourcequota sync-operator --namespace {namespace} -o jsonpath={{.status.used}}"));
        used.contains("syncjobs").then_some(())
    });
}

/// Creates a SyncJob and SyncSchedules with the highest values. Returns the spec of the SyncJob.
fn create_highest(namespace: &Namespace) -> Value {
    let highest = json!({"priority": 0, "parallelism": 8, "activeDeadline": "120m", "target": {"collection": "none"}});
    create(namespace, &job("highest", &highest)).unwrap();
    for (name, spec) in [
        ("every-5m", json!({"interval": "5m"})),
        ("default", json!({})),
        ("hourly", json!({"schedule": "15 * * * 1-5"})),
        ("daily", json!({"schedule": "@daily"})),
    ] {
        let mut schedule = schedule(name, &highest);
        let fields = schedule["spec"].as_object_mut().unwrap();
        fields.remove("interval");
        fields.extend(spec.as_object().unwrap().clone());
        create(namespace, &schedule).unwrap();
    }
    wait_until_complete(&namespace.0, "highest");
    highest
}

#[test]
fn what_is_above_a_ceiling_is_refused() {
    let _lock = lock_cluster();
    install_operator();
    let (namespace, other) = (Namespace::new("ceilings"), Namespace::new("no-ceilings"));
    let mut waiting = above();
    waiting["suspended"] = json!(true);
    create(&namespace, &job("before", &waiting)).unwrap();
    let mut old = schedule("before", &above());
    old["spec"]["interval"] = json!("1m");
    create(&namespace, &old).unwrap();
    install_ceilings(&namespace);
    assert_refuses_what_is_above(&namespace);
    create(&other, &job("above", &above())).unwrap();
    wait_until_counted(&namespace);
    let highest = create_highest(&namespace);

    // Objects from before the ceiling can be changed, but not in their limited fields.
    assert_refused(patch(&namespace, "syncjob/before", &json!({"priority": 400})), "spec.priority must be at most 0");
    patch(&namespace, "syncjob/before", &json!({"cancelled": true})).unwrap();
    let parallelism = json!({"jobTemplate": {"spec": {"parallelism": 19}}});
    assert_refused(patch(&namespace, "syncschedule/before", &parallelism), "spec.jobTemplate.spec.parallelism must be");
    patch(&namespace, "syncschedule/before", &json!({"suspended": false})).unwrap();
    kubectl(&format!("annotate syncschedule before --namespace {namespace} sync.codex.dev/trigger=now"));
    eventually("an event has the refusal of the schedule's run", || {
        let events =
            kubectl(&format!("get events --namespace {namespace} --field-selector involvedObject.name=before"));
        events.contains("spec.priority must be at most 0 in this namespace (ceiling teams): lower it").then_some(())
    });

    // The quota counts ended SyncJobs too.
    create(&namespace, &job("third", &highest)).unwrap();
    assert_refused(create(&namespace, &job("fourth", &highest)), "exceeded quota: sync-operator, requested");

    // The run of helm test has the default parallelism of 4.
    let home = attempt("kubectl", &["create", "--namespace", HOME, "-f", "-"], &job("above", &json!({})).to_string());
    assert_refused(home, "spec.parallelism must be at most 1 in this namespace (ceiling home): lower it");
    let output = Helm::V4.run(&["test", HOME, "--namespace", HOME, "--logs"]).unwrap();
    assert!(output.contains("Complete"), "{output}");
    let policies = format!("get validatingadmissionpolicies -l app.kubernetes.io/instance={HOME} -o");
    let warnings = kubectl(&format!("{policies} jsonpath={{.items[*].status.typeChecking.expressionWarnings}}"));
    assert_eq!(warnings.trim(), "");

    install_operator();
    assert_eq!(kubectl(&format!("{policies} name")), "");
}
