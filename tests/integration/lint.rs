//! `lint` and the API server have the same verdicts: on samples, on broken rules and on random
//! mutations.

mod mutation;

use std::{fs, path::Path, process::Command};

use futures::{StreamExt, stream};
use kube::core::Selector;
use lettre::message::Mailbox;
use rand::{SeedableRng, rngs::StdRng};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sync_operator::{
    alerts::check_template,
    api::{SyncAlert, SyncJob, SyncJobSpec, SyncSchedule},
    domain::{run::RunSpec, schedule::Parsed},
    manifest::{Finding, Manifest, Object, Severity, parse},
};

use crate::support::TestEnv;

fn plural(kind: &str) -> &'static str {
    match kind {
        "SyncJob" => "syncjobs",
        "SyncSchedule" => "syncschedules",
        "SyncAlert" => "syncalerts",
        _ => panic!("{kind}"),
    }
}

/// The answer of the API server to a dry run of the creation of a manifest.
async fn created(env: &TestEnv, kind: &str, text: &str) -> Result<Value, String> {
    post(env, kind, text, "dryRun=All&fieldValidation=Strict").await
}

/// True when the API server refuses to store an object for its resourceVersion, which a dry run does not check.
async fn is_refused_when_stored(env: &TestEnv, kind: &str, text: &str) -> bool {
    post(env, kind, text, "fieldValidation=Strict").await.is_err_and(|error| error.contains("resourceVersion"))
}

async fn post(env: &TestEnv, kind: &str, text: &str, query: &str) -> Result<Value, String> {
    let path = format!("/apis/sync.codex.dev/v1alpha1/namespaces/{}/{}?{query}", env.name, plural(kind));
    let request = http::Request::post(path).header("content-type", "application/yaml").body(text.as_bytes().to_vec());
    env.client.request::<Value>(request.unwrap()).await.map_err(|error| error.to_string())
}

fn errors(text: &str) -> Vec<Finding> {
    let findings = parse("a.yaml", text).findings.into_iter();
    findings.filter(|finding| finding.level == Severity::Error).collect()
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{object}: {error}"))
}

fn is_refused_by_a_worker(spec: &SyncJobSpec) -> bool {
    RunSpec::parse(spec).map_or(true, |run| {
        run.source.is_some_and(|source| sync_operator::sync::SourceClient::check_endpoint(&source).is_err())
    })
}

/// True when the API server takes an object that the operator refuses.
async fn is_refused_later(env: &TestEnv, kind: &str, object: &Value) -> bool {
    match kind {
        "SyncJob" => is_refused_by_a_worker(&typed::<SyncJob>(object).spec),
        "SyncSchedule" => {
            let schedule: SyncSchedule = typed(object);
            let template = &object["spec"]["jobTemplate"];
            let mut metadata = template["metadata"].clone();
            metadata["name"] = json!("run");
            let job = json!({"apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "metadata": metadata, "spec": template["spec"]});
            Parsed::new(&schedule.spec).is_err()
                || is_refused_by_a_worker(&schedule.spec.job_template.spec)
                || created(env, "SyncJob", &job.to_string()).await.is_err()
        }
        _ => {
            let alert: SyncAlert = typed(object);
            let smtp = alert.spec.sinks.iter().filter_map(|sink| sink.smtp.as_ref());
            let mut addresses = smtp.flat_map(|smtp| smtp.to.iter().chain([&smtp.from]));
            Selector::try_from(alert.spec.selector.clone()).is_err()
                || alert.spec.template.as_ref().and_then(check_template).is_some()
                || addresses.any(|address| address.parse::<Mailbox>().is_err())
        }
    }
}

/// A manifest with both verdicts.
struct Compared {
    is_valid: bool,
    /// A description, when the verdicts differ.
    difference: Option<String>,
}

async fn compare(env: &TestEnv, kind: &str, text: &str) -> Compared {
    let parsed = parse("a.yaml", text);
    let is_valid = parsed.findings.iter().all(|finding| finding.level == Severity::Warning);
    // kubectl sends nothing for an empty document, and sends an object of another kind elsewhere.
    if parsed.documents == 0 || matches!(parsed.manifests.first(), Some(Manifest { object: Object::Other { .. }, .. }))
    {
        return Compared { is_valid, difference: None };
    }
    let created = created(env, kind, text).await;
    let agrees = match &created {
        Err(_) => !is_valid,
        Ok(_) if is_valid => true,
        Ok(object) => is_refused_later(env, kind, object).await || is_refused_when_stored(env, kind, text).await,
    };
    let describe = || format!("{text}\nthe API server: {created:?}\nlint: {:#?}\n", parsed.findings);
    Compared { is_valid, difference: (!agrees).then(describe) }
}

fn samples() -> Vec<(String, String)> {
    let mut folders = vec![Path::new("manifests/samples").to_owned()];
    let mut samples = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let kind = text.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap().to_owned();
            samples.push((kind, text));
        }
    }
    samples.sort();
    samples
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

/// Objects with their kinds.
type Objects = Vec<(String, Value)>;

/// Objects of which each breaks a rule, and the valid ones that they were made from.
struct RuleCases {
    broken: Objects,
    valid: Objects,
}

fn rule_cases() -> RuleCases {
    let file: Value = serde_yaml_ng::from_str(include_str!("lint/broken_rules.yaml")).unwrap();
    let (mut broken, mut valid) = (Vec::new(), Vec::new());
    for case in file["cases"].as_array().unwrap() {
        let base = &file["bases"][case["base"].as_str().unwrap()];
        let mut spec = base.clone();
        merge(&mut spec, &case["spec"]);
        let kind = case["kind"].as_str().unwrap();
        let object = |name: &str, spec: &Value| json!({"apiVersion": "sync.codex.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        broken.push((kind.to_owned(), object(case["name"].as_str().unwrap_or("broken"), &spec)));
        valid.push((kind.to_owned(), object("valid", base)));
    }
    valid.dedup();
    RuleCases { broken, valid }
}

#[tokio::test]
async fn samples_are_valid_for_both() {
    let env = TestEnv::new().await;
    for (kind, text) in samples() {
        created(&env, &kind, &text).await.unwrap();
        assert_eq!(errors(&text), [], "{text}");
    }
}

#[tokio::test]
async fn each_broken_rule_has_the_message_of_the_api_server() {
    let env = TestEnv::new().await;
    let RuleCases { broken, valid } = rule_cases();
    for (kind, object) in valid {
        let text = object.to_string();
        created(&env, &kind, &text).await.unwrap();
        assert_eq!(errors(&text), [], "{text}");
    }
    for (kind, object) in broken {
        let text = object.to_string();
        let refusal = created(&env, &kind, &text).await.unwrap_err();
        let found = errors(&text);
        assert!(!found.is_empty(), "{text}: {refusal}");
        for finding in found {
            assert!(refusal.contains(&finding.message), "{text}\n{finding}\n{refusal}");
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[tokio::test]
async fn verdicts_on_mutations_are_those_of_the_api_server() {
    let env = TestEnv::new().await;
    let seed = number("SEED", rand::random());
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut sources = samples();
    let valid = rule_cases().valid.into_iter();
    sources.extend(valid.map(|(kind, object)| (kind, serde_yaml_ng::to_string(&object).unwrap())));
    let mutations: Vec<_> = (0..number("MUTATIONS", 500)).map(|_| mutation::any(&sources, &mut random)).collect();
    let compared: Vec<Compared> =
        stream::iter(&mutations).map(|(kind, text)| compare(&env, kind, text)).buffer_unordered(8).collect().await;
    let invalid = compared.iter().filter(|compared| !compared.is_valid).count();
    println!("{invalid} of {} mutations are invalid", mutations.len());
    assert!(invalid * 2 > mutations.len() && invalid < mutations.len(), "{invalid}");
    let different: Vec<String> = compared.into_iter().filter_map(|compared| compared.difference).collect();
    assert!(different.is_empty(), "SEED={seed}: {} differ:\n{}", different.len(), different.join("\n----\n"));
}

#[tokio::test]
async fn the_command_prints_findings_and_fails_on_errors() {
    let folder = std::env::temp_dir().join(format!("lint-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (good, bad) = (folder.join("good.yaml"), folder.join("bad.yaml"));
    let head = "apiVersion: sync.codex.dev/v1alpha1\nkind: SyncJob\nmetadata: {name: a}\n";
    fs::write(&good, format!("apiVersion: v1\nkind: Secret\n---\n{head}spec: {{}}\n")).unwrap();
    fs::write(&bad, format!("{head}spec: {{batchSize: 0}}\n")).unwrap();
    let lint = |args: &[&Path]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sync-operator")).arg("lint").args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = lint(&[&good]);
    assert_eq!((code, out.as_str()), (Some(0), ""));
    assert!(
        err.contains("skipped: v1 Secret") && err.ends_with("1 file, 2 documents: 0 errors, 0 warnings\n"),
        "{err}"
    );
    let (code, out, err) = lint(&[&good, &bad]);
    assert_eq!(code, Some(2));
    assert_eq!(out, format!("{}:4:8: error: spec.batchSize: must be from 1 to 10000\n", bad.display()));
    assert!(err.ends_with("2 files, 3 documents: 1 error, 0 warnings\n"), "{err}");
    let (code, out, _) = lint(&[Path::new("-o"), Path::new("json"), &bad]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &found[0]["field"], &found[0]["line"]), (Some(2), &json!("spec.batchSize"), &json!(4)));
    let (code, _, err) = lint(&[&folder.join("none.yaml")]);
    assert!(code == Some(2) && err.contains("could not read"), "{err}");
    fs::remove_dir_all(&folder).unwrap();
}
