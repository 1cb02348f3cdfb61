//! Objects of unit tests.

use jiff::Timestamp;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{SyncJob, SyncSchedule};

/// The time this number of seconds after the epoch.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// A SyncJob with these fields. Without `spec`, it has the defaults.
pub fn job(fields: Value) -> SyncJob {
    object(fields)
}

/// A SyncSchedule with these fields. Without `spec`, it has the defaults.
pub fn schedule(fields: Value) -> SyncSchedule {
    object(fields)
}

/// An entry of `status.conditions`, with the status True.
pub fn condition(type_: &str, reason: &str, message: &str, since: &str) -> Value {
    json!({"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": since})
}

/// An entry of `metadata.ownerReferences` for the SyncSchedule that controls a SyncJob.
pub fn owner(name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": SyncSchedule::api_version(&()), "kind": SyncSchedule::kind(&()), "controller": true,
        "name": name, "uid": uid,
    })
}

fn object<K: Resource<DynamicType = ()> + DeserializeOwned>(mut fields: Value) -> K {
    fields["apiVersion"] = K::api_version(&()).into();
    fields["kind"] = K::kind(&()).into();
    fields.as_object_mut().unwrap().entry("spec").or_insert(json!({}));
    serde_json::from_value(fields).unwrap()
}
