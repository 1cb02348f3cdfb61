//! Levels: the fields of a run that its worker must know. See `docs/design/installations-and-versions.md`.

use serde_json::Value;

use super::run::Payload;
use crate::api::{SyncJobSpec, Unknown};

/// Level of release 0.1.0, which does not know levels.
pub const FIRST: u32 = 1;
/// Level of this release. Raised by a field, or a value of a field, of a SyncJob's spec that a worker must not ignore.
pub const LEVEL: u32 = 3;

/// Level of a program: the fields of a run that it supports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The number.
    pub number: u32,
    /// Field of a SyncJob's spec that this program treats as unknown. Only for tests, which also run a program that
    /// knows the field.
    pub lacks: Option<String>,
}

impl Default for Level {
    fn default() -> Self {
        Self { number: LEVEL, lacks: None }
    }
}

impl Level {
    /// Level of a program of the release before, which lacks a field.
    #[must_use]
    pub fn without(field: String) -> Self {
        Self { number: FIRST, lacks: Some(field) }
    }

    /// Level that a worker needs for a run, by the fields that this program knows. `has_tenants`: the policy has
    /// `tenants`, which workers of earlier releases do not check. They would also write to the MongoDB of the
    /// installation in place of an own one.
    #[must_use]
    pub fn needed_for(&self, spec: &SyncJobSpec, has_tenants: bool) -> u32 {
        // Release 0.1.0 reads the fields of a source from other paths, and has no guard: it would send requests
        // without a token, and remove documents without a limit.
        let has_own_mongodb = spec.target.uri_secret_ref.is_some() || spec.target.ca_secret_ref.is_some();
        let needed = match (has_tenants || has_own_mongodb, spec.source.is_some() || spec.guard.is_some()) {
            (true, _) => 3,
            (false, true) => 2,
            (false, false) => FIRST,
        };
        needed.min(self.number)
    }

    /// Unknown part of the payload of a run. `None`: the program knows all of the payload, or the payload is damaged.
    /// `parsed`: the payload, unless it could not be parsed.
    #[must_use]
    pub fn lacking(&self, payload: &str, parsed: Option<&Payload>) -> Option<String> {
        if let (Some(parsed), None) = (parsed, &self.lacks) {
            return unknown_fields(&parsed.spec).into_iter().next();
        }
        let value: Value = serde_json::from_str(payload).ok()?;
        let spec = value.get("spec").filter(|spec| spec.is_object())?;
        if let Some(field) = self.lacks.as_deref().filter(|field| spec.get(field).is_some_and(|value| !value.is_null()))
        {
            return Some(format!("spec.{field}"));
        }
        match parsed {
            Some(parsed) => unknown_fields(&parsed.spec).into_iter().next(),
            // The error of the parser may quote a value.
            None => Some("the value of a field".to_owned()),
        }
    }
}

/// Paths of the fields of a spec that this release does not know.
#[must_use]
pub fn unknown_fields(spec: &SyncJobSpec) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |path: &str, unknown: &Unknown| {
        found.extend(unknown.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| format!("{path}.{name}")));
    };
    add("spec", &spec.unknown);
    add("spec.target", &spec.target.unknown);
    if let Some(guard) = &spec.guard {
        add("spec.guard", &guard.unknown);
    }
    if let Some(source) = &spec.source {
        add("spec.source", &source.unknown);
        for (path, unknown) in [
            ("spec.source.graphQL", source.graph_ql.as_ref().map(|graph_ql| &graph_ql.unknown)),
            ("spec.source.rest", source.rest.as_ref().map(|rest| &rest.unknown)),
            ("spec.source.pagination", source.pagination.as_ref().map(|pagination| &pagination.unknown)),
            ("spec.source.missing", Some(&source.missing.unknown)),
        ] {
            if let Some(unknown) = unknown {
                add(path, unknown);
            }
        }
    }
    for field in &spec.mapping {
        add("spec.mapping[]", &field.unknown);
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn payload(spec: &Value) -> String {
        json!({"namespace": "ns", "name": "job", "spec": spec}).to_string()
    }

    fn lacking(level: &Level, payload: &str) -> Option<String> {
        level.lacking(payload, serde_json::from_str(payload).ok().as_ref())
    }

    #[test]
    fn what_a_program_does_not_know_of_a_run_is_found() {
        let source = |more: &Value| {
            let mut source = json!({"rest": {"endpoint": "https://x/{ids}"}});
            source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"source": source})
        };
        let (all, before) = (Level::default(), Level::without("guard".to_owned()));
        for (spec, by_all, by_before) in [
            (json!({}), None, None),
            (json!({"dryRun": true}), None, None),
            (json!({"guard": {"minResults": 1}}), None, Some("spec.guard")),
            (json!({"newer": true}), Some("spec.newer"), Some("spec.newer")),
            (json!({"newer": null}), None, None),
            (json!({"target": {"newer": 1}}), Some("spec.target.newer"), Some("spec.target.newer")),
            (json!({"guard": {"newer": 1}}), Some("spec.guard.newer"), Some("spec.guard")),
            (source(&json!({"newer": {}})), Some("spec.source.newer"), Some("spec.source.newer")),
            (
                source(&json!({"missing": {"newer": 1}})),
                Some("spec.source.missing.newer"),
                Some("spec.source.missing.newer"),
            ),
            (json!({"syncType": "Newer"}), Some("the value of a field"), Some("the value of a field")),
        ] {
            assert_eq!(lacking(&all, &payload(&spec)).as_deref(), by_all, "{spec}");
            assert_eq!(lacking(&before, &payload(&spec)).as_deref(), by_before, "{spec}");
        }
        for damaged in ["", "{", "{}", "[]", r#"{"spec": 1}"#] {
            assert_eq!(lacking(&all, damaged), None, "{damaged}");
        }
    }

    #[test]
    fn unknown_fields_travel_with_the_spec() {
        let spec = json!({"newer": [1], "target": {"newer": {"a": 1}}, "guard": {"newer": "x"}});
        let read: SyncJobSpec = serde_json::from_value(spec.clone()).unwrap();
        let written = serde_json::to_value(&read).unwrap();
        for path in ["/newer", "/target/newer", "/guard/newer"] {
            assert_eq!(written.pointer(path), spec.pointer(path), "{path}");
        }
    }

    #[test]
    fn a_run_needs_the_level_of_its_newest_field() {
        for (spec, all, before) in [
            (json!({}), 1, 1),
            (json!({"dryRun": true, "target": {"collection": "c"}}), 1, 1),
            (json!({"guard": {}}), 2, 1),
            (json!({"source": {"rest": {"endpoint": "https://x/{ids}"}}}), 2, 1),
            (json!({"target": {"uriSecretRef": {"name": "s", "key": "k"}}}), 3, 1),
        ] {
            let spec: SyncJobSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(Level::default().needed_for(&spec, false), all, "{spec:?}");
            assert_eq!(Level::default().needed_for(&spec, true), 3, "{spec:?}");
            assert_eq!(Level::without("guard".to_owned()).needed_for(&spec, false), before, "{spec:?}");
        }
    }
}
