//! The kinds of this operator, with their schemas.

use std::sync::LazyLock;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::CustomResourceExt;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::api::{SyncAlert, SyncJob, SyncSchedule};

/// A kind of this operator.
#[allow(clippy::enum_variant_names, reason = "these are the names of the kinds")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ObjectKind {
    SyncJob,
    SyncSchedule,
    SyncAlert,
}

impl ObjectKind {
    pub const ALL: [Self; 3] = [Self::SyncJob, Self::SyncSchedule, Self::SyncAlert];

    pub fn name(self) -> &'static str {
        match self {
            Self::SyncJob => "SyncJob",
            Self::SyncSchedule => "SyncSchedule",
            Self::SyncAlert => "SyncAlert",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The schema of whole objects, metadata included.
    pub fn schema(self) -> &'static Value {
        static SYNC_JOB: LazyLock<Value> = LazyLock::new(|| schema(SyncJob::crd()));
        static SYNC_SCHEDULE: LazyLock<Value> = LazyLock::new(|| schema(SyncSchedule::definition()));
        static SYNC_ALERT: LazyLock<Value> = LazyLock::new(|| schema(SyncAlert::definition()));
        match self {
            Self::SyncJob => &SYNC_JOB,
            Self::SyncSchedule => &SYNC_SCHEDULE,
            Self::SyncAlert => &SYNC_ALERT,
        }
    }
}

fn schema(definition: CustomResourceDefinition) -> Value {
    let version = definition.spec.versions.into_iter().next();
    let schema = version.and_then(|version| version.schema?.open_api_v3_schema);
    let mut schema = schema.map(|schema| json!(schema)).unwrap_or_default();
    for key in ["apiVersion", "kind"] {
        schema["properties"][key] = json!({"type": "string"});
    }
    schema["properties"]["metadata"] = metadata();
    schema
}

/// The schema of `metadata`, which CustomResourceDefinitions leave out.
fn metadata() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = json!(settings.into_generator().into_root_schema_for::<ObjectMeta>());
    let managed = &mut schema["properties"]["managedFields"];
    // The contents of this field are not described.
    if let Some(properties) = managed.pointer_mut("/items/properties").and_then(Value::as_object_mut) {
        properties.insert("fieldsV1".to_owned(), json!({"x-kubernetes-preserve-unknown-fields": true}));
    }
    schema
}
