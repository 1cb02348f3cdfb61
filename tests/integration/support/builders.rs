//! Objects of tests, and parts of their manifests.

use std::collections::BTreeMap;

use bson::{Document, doc};
use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::{Api, ResourceExt, api::PostParams};
use serde_json::{Map, Value, json};
use sync_operator::api::{SyncAlert, SyncJob, SyncSchedule};
use test_support::sinks::HttpSink;

use super::TestEnv;

pub async fn apply_schedule(env: &TestEnv, name: &str, spec: Value) -> SyncSchedule {
    let schedule = SyncSchedule::new(name, serde_json::from_value(spec).unwrap());
    env.schedules().create(&PostParams::default(), &schedule).await.unwrap()
}

/// An interval of at least this number of minutes (15 or more), without a slot during a test: the next slot is at least
/// five minutes later.
pub fn quiet_interval(minutes: i64) -> String {
    let now = Timestamp::now().as_second() / 60;
    let minutes = (minutes..2 * minutes).find(|minutes| now % minutes < minutes - 5).unwrap();
    format!("{minutes}m")
}

/// Creates a schedule that is due at once, and not again during a test.
pub async fn apply_once(env: &TestEnv, name: &str, spec: Value) -> SyncSchedule {
    let template = json!({"spec": spec});
    apply_schedule(env, name, json!({"interval": quiet_interval(60), "immediate": true, "jobTemplate": template})).await
}

pub async fn apply_job(env: &TestEnv, name: &str, spec: Value) -> SyncJob {
    let job = SyncJob::new(name, serde_json::from_value(spec).unwrap());
    env.jobs().create(&PostParams::default(), &job).await.unwrap()
}

/// An entry of `status.conditions`, with the status True.
pub fn condition(type_: &str, reason: &str, message: &str, since: &str) -> Value {
    json!({"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": since})
}

/// A spec whose run over `seed` users takes many seconds: one user in each batch, and one batch after the other.
pub fn slow() -> Value {
    json!({"syncType": "Full", "batchSize": 1, "parallelism": 1, "backoff": {"initial": "1s", "jitter": 0.0}})
}

/// A slow spec whose run stamps this field.
pub fn slow_on(field: &str) -> Value {
    let mut spec = slow();
    spec["target"] = json!({"lastSyncedField": field});
    spec
}

/// The value of `_sync` of a document that a source of this name listed long ago.
pub fn confirmed(namespace: &str, source: &str) -> Document {
    doc! {format!("{namespace}/{source}"): {"at": bson::DateTime::from_millis(1)}}
}

/// A source in a manifest, from the fields of its kind and the shared fields.
pub fn source(kind: &str, fields: &Value) -> Value {
    let is_own = |name: &str| ["endpoint", "query", "operationName", "variables", "resultPath"].contains(&name);
    let fields = fields.as_object().unwrap().clone();
    let (own, mut shared): (Map<_, _>, Map<_, _>) = fields.into_iter().partition(|(name, _)| is_own(name));
    shared.insert(kind.to_owned(), own.into());
    shared.into()
}

/// Creates a Secret that may be used for these destinations.
pub async fn secret(env: &TestEnv, name: &str, entries: &[(&str, &str)], hosts: &str) {
    let data: BTreeMap<_, _> =
        entries.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect();
    let mut secret = Secret { data: Some(data), ..Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    if !hosts.is_empty() {
        secret.annotations_mut().insert("sync.codex.dev/hosts".to_owned(), hosts.to_owned());
    }
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.name);
    secrets.create(&PostParams::default(), &secret).await.unwrap();
}

/// The key that signs the messages of webhooks.
pub const SIGNING_KEY: &str = "a key to sign with";

/// Creates the Secret with the signing key of webhooks at a server.
pub async fn signing_key(env: &TestEnv, http: &HttpSink) {
    secret(env, "hmac", &[("key", SIGNING_KEY)], &http.url).await;
}

/// A webhook sink at a path of the server. The path is also its name.
pub fn webhook(http: &HttpSink, path: &str) -> Value {
    let hook = json!({"url": format!("{}{path}", http.url), "hmacSecretRef": {"name": "hmac", "key": "key"}});
    json!({"name": path.trim_matches('/'), "webhook": hook})
}

/// Applies a SyncAlert that reports failed runs at once.
pub async fn apply_alert(env: &TestEnv, sinks: &Value, further: &Value) {
    let mut spec = json!({"when": [{"type": "RunFailed"}], "sinks": sinks, "groupWindow": "0s"});
    spec.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
    let alert = SyncAlert::new("team", serde_json::from_value(spec).unwrap());
    let alerts: Api<SyncAlert> = Api::namespaced(env.client.clone(), &env.name);
    alerts.create(&PostParams::default(), &alert).await.unwrap();
}
