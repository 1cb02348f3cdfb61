//! Evaluation of the CEL rules in the schema of a CustomResourceDefinition, as when an object is created.
//!
//! Compiling a rule takes longer than all other checks of a document, so only rules that apply to it are compiled.

use kube::core::cel::{ErrorKind, ValidationError, Validator, compile_schema};
use serde_json::{Map, Value};

use super::{finding::Report, schema::join};

const RULES: &str = "x-kubernetes-validations";

/// Reports the rules that an object breaks. Defaults are filled in already. Rules of fields with an invalid structure are
/// left out, and so are those of the fields around them.
pub(super) fn check(schema: &Value, object: &Value, report: &mut Report<'_>) {
    let rules = applicable(schema, &[object], "", report);
    let object = convert(schema, object);
    let Err(errors) = Validator::new().validate_compiled(&compile_schema(&rules), &object, None) else { return };
    for error in &errors {
        report.error_naming(error.field_path.trim_start_matches('.'), message(&rules, error));
    }
}

/// The schema with the rules that apply to these values, and without fields that none of them has.
fn applicable(schema: &Value, values: &[&Value], path: &str, report: &Report<'_>) -> Value {
    let mut kept = Map::new();
    for key in ["type", "format", "additionalProperties", "x-kubernetes-preserve-unknown-fields"] {
        if let Some(value) = schema.get(key) {
            kept.insert(key.to_owned(), value.clone());
        }
    }
    if !report.is_invalid(path) {
        let rules = schema[RULES].as_array().into_iter().flatten();
        kept.insert(RULES.to_owned(), rules.filter(|rule| is_for_creation(rule)).cloned().collect());
    }
    let mut properties = Map::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let found = values.iter().filter_map(|value| value.get(name)).filter(|value| !value.is_null());
        let found: Vec<_> = found.collect();
        if !found.is_empty() {
            properties.insert(name.clone(), applicable(property, &found, &join(path, name), report));
        }
    }
    kept.insert("properties".to_owned(), Value::Object(properties));
    let items: Vec<_> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
    if !items.is_empty() {
        kept.insert("items".to_owned(), applicable(&schema["items"], &items, &format!("{path}[]"), report));
    }
    Value::Object(kept)
}

/// False for a rule that compares an object with its state before an update.
fn is_for_creation(rule: &Value) -> bool {
    rule["optionalOldSelf"] == true || !rule["rule"].as_str().is_some_and(|rule| rule.contains("oldSelf"))
}

/// The value as rules see it: nulls in objects are absent, and numbers are of the type that the schema says.
fn convert(schema: &Value, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields.map(|(name, value)| (name.clone(), convert(&schema["properties"][name], value))).collect()
        }
        Value::Array(items) => items.iter().map(|item| convert(&schema["items"], item)).collect(),
        Value::Number(number) if schema["type"] == "number" => number.as_f64().map_or(Value::Null, Value::from),
        _ => value.clone(),
    }
}

/// The message of the broken rule. A rule that cannot be evaluated, as with a duration out of range, is broken.
fn message(rules: &Value, error: &ValidationError) -> String {
    let own = match error.kind {
        ErrorKind::EvaluationError => message_of(rules, &error.rule),
        _ => None,
    };
    own.unwrap_or(&error.message).to_owned()
}

fn message_of<'a>(schema: &'a Value, rule: &str) -> Option<&'a str> {
    let own = schema[RULES].as_array().into_iter().flatten().find(|found| found["rule"] == rule);
    if let Some(own) = own {
        return own["message"].as_str();
    }
    let properties = schema["properties"].as_object().into_iter().flatten().map(|(_, property)| property);
    properties.chain(schema.get("items")).find_map(|below| message_of(below, rule))
}
