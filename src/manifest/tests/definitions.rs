//! Tests of whether all of the CustomResourceDefinitions is checked.

use std::collections::BTreeSet;

use kube::core::cel::{Validator, compile_schema};
use serde_json::{Value, json};

use crate::manifest::{API_VERSION, cel, finding, kind::ObjectKind, parse, schema};

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

/// Objects of which each breaks a rule of its kind's CustomResourceDefinition.
fn broken() -> Vec<(ObjectKind, Value)> {
    let file: Value =
        serde_yaml_ng::from_str(include_str!("../../../tests/integration/lint/broken_rules.yaml")).unwrap();
    let mut objects = Vec::new();
    for case in file["cases"].as_array().unwrap() {
        let mut spec = file["bases"][case["base"].as_str().unwrap()].clone();
        merge(&mut spec, &case["spec"]);
        let kind = ObjectKind::named(case["kind"].as_str().unwrap()).unwrap();
        let object = |kind: ObjectKind, spec: Value| {
            let name = case["name"].as_str().unwrap_or("broken");
            (kind, json!({"apiVersion": API_VERSION, "kind": kind.name(), "metadata": {"name": name}, "spec": spec}))
        };
        objects.push(object(kind, spec.clone()));
        if kind == ObjectKind::SyncJob {
            objects.push(object(ObjectKind::SyncSchedule, json!({"jobTemplate": {"spec": spec}})));
        }
    }
    objects
}

/// Paths of the errors that the rules of a schema can give, each with its rule.
fn rules(schema: &Value, path: &str, found: &mut BTreeSet<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        assert!(rule["messageExpression"].is_null(), "cel.rs knows no messageExpression: {rule}");
        let (text, field) = (rule["rule"].as_str().unwrap(), rule["fieldPath"].as_str().unwrap_or_default());
        if cel::is_for_creation(rule) {
            found.insert((format!("{path}{field}"), text.to_owned()));
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        rules(property, &schema::join(path, name), found);
    }
    if schema["items"].is_object() {
        rules(&schema["items"], &format!("{path}[]"), found);
    }
}

#[test]
fn each_rule_of_the_definitions_is_found_broken() {
    let broken = broken();
    for kind in ObjectKind::ALL {
        let mut missing = BTreeSet::new();
        rules(kind.schema(), "", &mut missing);
        assert!(missing.len() > 10, "{kind:?}");
        let (validator, compiled) = (Validator::new(), compile_schema(kind.schema()));
        let objects: Vec<_> = broken.iter().filter(|(of, _)| *of == kind).map(|(_, object)| object).collect();
        let documents = objects.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n---\n");
        let parsed = parse("a.yaml", &documents);
        assert_eq!((parsed.documents, parsed.manifests.len()), (objects.len(), 0));
        for (index, object) in objects.into_iter().enumerate() {
            for error in &validator.validate_compiled(&compiled, object, None).unwrap_err() {
                missing.remove(&(finding::without_indices(&error.field_path), error.rule.clone()));
                let mut found = parsed.findings.iter().filter(|finding| finding.origin.line == 2 * index + 1);
                assert!(found.any(|finding| finding.message == error.message), "{object} {error}");
            }
        }
        assert!(missing.is_empty(), "{kind:?}: no case breaks {missing:#?}");
    }
}

/// Collects every keyword of a schema, with its parents.
fn keywords(schema: &Value, found: &mut BTreeSet<String>) {
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        found.insert(keyword.clone());
        match keyword.as_str() {
            "properties" => value.as_object().unwrap().values().for_each(|property| keywords(property, found)),
            "items" | "additionalProperties" => keywords(value, found),
            _ => {}
        }
    }
}

#[test]
fn no_keyword_of_the_schemas_is_ignored() {
    let known = [
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        // maximum, minimum and pattern are supported only together with x-kubernetes-int-or-string.
        "maximum",
        "maxItems",
        "maxLength",
        "minimum",
        "minItems",
        "minLength",
        "nullable",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
        // Of metadata's schema, which is not a CustomResourceDefinition's.
        "$schema",
        "x-kubernetes-patch-strategy",
        "x-kubernetes-patch-merge-key",
        "x-kubernetes-map-type",
    ];
    for kind in ObjectKind::ALL {
        let mut found = BTreeSet::new();
        keywords(kind.schema(), &mut found);
        for keyword in found {
            assert!(known.contains(&keyword.as_str()), "{kind:?}: check {keyword} in schema.rs");
        }
    }
}
