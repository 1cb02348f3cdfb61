//! Limits of the changes that a run may make without an approval.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{GoDuration, Unknown, rules};

/// Limits of the changes that a run may make to documents without an approval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guard {
    /// Largest number of documents that a run may mark, and that it may delete: a number, or a percentage. The base of
    /// a percentage is the number of documents that the source had confirmed and not marked when the run started.
    /// Default with `onMissing: Mark` or `Delete`: 20%, and always 5 documents. A value that is set has no such
    /// minimum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_missing: Option<Share>,

    /// Largest number of confirmed documents that a run may change: a number, or a percentage of the documents that
    /// the source had confirmed when the run started. New documents and first confirmations do not count. The run
    /// stops after the batch that exceeds it. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_changed: Option<Share>,

    /// Least number of results that the source must list before a run marks or deletes documents. For `batching:
    /// Pages`. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::range("guard.minResults", 0, 1_000_000_000))]
    pub min_results: Option<i64>,

    /// Action when a run exceeds a limit. Hold: the run waits for an approval in the phase Held, with its updates
    /// written. Fail: the run fails with the reason GuardExceeded.
    #[serde(default)]
    pub action: GuardAction,

    /// Time for which a held run waits for an approval before it fails with the reason NotApproved, 1m to 8760h.
    #[serde(default = "default_hold_for")]
    #[x_kube(validation = rules::duration("guard.holdFor", "1m", "8760h", "72h"))]
    pub hold_for: GoDuration,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            max_missing: None,
            max_changed: None,
            min_results: None,
            action: GuardAction::default(),
            hold_for: default_hold_for(),
            unknown: Unknown::new(),
        }
    }
}

/// Action when a run exceeds a limit of its guard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum GuardAction {
    /// The run waits for an approval.
    #[default]
    Hold,
    /// The run fails.
    Fail,
}

/// Greatest number of documents that a limit can name.
pub const MAX_COUNT: i32 = 1_000_000_000;
/// Pattern of a percentage from `0%` to `100%`.
pub const PERCENTAGE: &str = "^(100|[1-9]?[0-9])%$";

/// A number of documents, or a percentage such as `20%`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(pub IntOrString);

impl JsonSchema for Share {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-int-or-string": true, "minimum": 0, "maximum": MAX_COUNT, "pattern": PERCENTAGE})
    }
}

fn default_hold_for() -> GoDuration {
    GoDuration::new("72h")
}
