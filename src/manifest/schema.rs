//! Validation against the schema of a CustomResourceDefinition, except for its CEL rules.
//!
//! The order is the one of the API server. It refuses unknown fields, treats nulls that the schema does not allow as
//! absent, and sets defaults. Then it checks types, enums, required fields, lengths and list keys.

use serde_json::{Map, Value};

use crate::api::guard::MAX_COUNT;

use super::{
    finding::Report,
    yaml::{Content, KeyValue, Node},
};

/// Greatest number of changed characters in a name that is suggested for an unknown one.
const MAX_DISTANCE: usize = 2;

/// Reports fields that the schema does not have, except in fields that are reported already.
pub(super) fn report_unknown_fields(schema: &Value, node: &Node, path: &str, report: &mut Report<'_>) {
    if report.has_error_in(path) {
        return;
    }
    match &node.content {
        Content::Scalar(_) => {}
        Content::List(items) => {
            for (index, item) in items.iter().enumerate() {
                report_unknown_fields(&schema["items"], item, &format!("{path}[{index}]"), report);
            }
        }
        Content::Mapping(entries) => {
            let properties = schema["properties"].as_object();
            for entry in entries {
                let below = join(path, &entry.key);
                if let Some(schema) = properties.and_then(|properties| properties.get(&entry.key)) {
                    report_unknown_fields(schema, &entry.value, &below, report);
                } else if schema["additionalProperties"].is_object() {
                    report_unknown_fields(&schema["additionalProperties"], &entry.value, &below, report);
                } else if !preserves_unknown_fields(schema) {
                    let names = properties.into_iter().flat_map(Map::keys);
                    let advice = advice(entry, names);
                    report.locate(&below, entry.at);
                    report.error(&below, format!("unknown field {below:?}: {advice}"));
                }
            }
        }
    }
}

fn preserves_unknown_fields(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

fn advice<'a>(entry: &KeyValue, names: impl Iterator<Item = &'a String>) -> String {
    if let Some(written) = &entry.written {
        return format!("YAML reads the key {written} as {}, so quote it", entry.key);
    }
    match similar(&entry.key, names.map(String::as_str)) {
        Some(name) => format!("did you mean {name:?}?"),
        None => "remove it".to_owned(),
    }
}

/// The name that is most like a misspelt one.
pub(super) fn similar<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_lowercase();
    let distances = names.map(|name| (strsim::osa_distance(&lower, &name.to_lowercase()), name));
    // Of short names, most are like each other.
    let near = distances.filter(|(distance, name)| *distance <= MAX_DISTANCE.min(name.chars().count() / 3));
    near.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Path of a field of a mapping. Keys that are no plain names are put into brackets, as the API server does for maps.
pub(super) fn join(path: &str, key: &str) -> String {
    let is_name =
        !key.is_empty() && key.chars().all(|character| character.is_alphanumeric() || "_$-".contains(character));
    match (path, is_name) {
        ("", _) => key.to_owned(),
        (_, true) => format!("{path}.{key}"),
        (_, false) => format!("{path}[{key}]"),
    }
}

/// Checks the structure of a value and returns it with defaults filled in. Unknown fields are kept.
pub(super) fn check(schema: &Value, node: &Node, path: &str, report: &mut Report<'_>) -> Value {
    let type_ = schema["type"].as_str().unwrap_or_default();
    if let Content::Scalar(Value::Null) = node.content {
        if schema["nullable"] != true && !type_.is_empty() {
            report.invalid(path, format!("must be of type {type_}, not null: set it, or remove it"));
        }
        return Value::Null;
    }
    if let Some(message) = unsupported(schema, node) {
        report.invalid(path, message);
        return node.to_json();
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return share(node, path, report);
    }
    match &node.content {
        Content::Mapping(entries) if matches!(type_, "object" | "") => object(schema, entries, path, report),
        Content::List(items) if matches!(type_, "array" | "") => array(schema, items, path, report),
        Content::Scalar(value) if is_scalar_of(type_, value) => {
            if let Value::String(text) = value {
                check_length(schema, text, path, report);
            }
            value.clone()
        }
        content => {
            report.invalid(path, mismatch(type_, content));
            node.to_json()
        }
    }
}

/// Checks a value that is a number or a percentage.
fn share(node: &Node, path: &str, report: &mut Report<'_>) -> Value {
    let value = node.to_json();
    let is_number = is_scalar_of("integer", &value)
        && value.as_f64().is_some_and(|number| (0.0..=f64::from(MAX_COUNT)).contains(&number));
    let is_percentage = || {
        let digits = value.as_str().and_then(|text| text.strip_suffix('%'));
        digits.is_some_and(|digits| (0..=100).any(|percent: u8| percent.to_string() == digits))
    };
    if !is_number && !is_percentage() {
        report.invalid(path, format!("must be a number from 0 to {MAX_COUNT}, or a percentage such as 20%"));
    }
    value
}

fn is_scalar_of(type_: &str, value: &Value) -> bool {
    match type_ {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| value.is_i64() || number.fract() == 0.0),
        _ => type_.is_empty(),
    }
}

/// Error of a value that an enum does not contain.
fn unsupported(schema: &Value, node: &Node) -> Option<String> {
    let supported = schema["enum"].as_array()?;
    let value = node.to_json();
    if supported.contains(&value) {
        return None;
    }
    let names = || supported.iter().filter_map(Value::as_str);
    // An enum of one value that begins with "none: " is how the schema refuses a field, with the reason as its value.
    if let Some(reason) = names().find_map(|name| name.strip_prefix("none: ")) {
        return Some(reason.to_owned());
    }
    let list = supported.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
    let near = value.as_str().and_then(|text| similar(text, names()));
    let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    Some(format!("unsupported value {value}: supported values are {list}{near}"))
}

fn mismatch(type_: &str, content: &Content) -> String {
    let (found, advice) = match (type_, content) {
        ("string", Content::Scalar(Value::Number(_))) => ("a number", "quote it"),
        ("string", Content::Scalar(Value::Bool(_))) => {
            ("a boolean", "quote it, since YAML reads yes, no, on, off, y and n as booleans")
        }
        ("integer" | "number" | "boolean", Content::Scalar(Value::String(text))) => {
            let is_quoted_value = text.parse::<f64>().is_ok() || matches!(text.as_str(), "true" | "false");
            ("a string", if is_quoted_value { "remove the quotes" } else { "correct it" })
        }
        ("integer", Content::Scalar(Value::Number(_))) => ("a number with a fraction", "round it"),
        ("boolean", Content::Scalar(_)) => ("a number", "write true or false"),
        ("array", _) => ("a single value", "write a list, with - before each item"),
        ("object", Content::List(_)) => ("a list", "write a mapping of keys and values, without -"),
        ("object", _) => ("a single value", "write a mapping of keys and values"),
        (_, Content::Scalar(Value::Bool(_))) => ("a boolean", "correct it"),
        (_, Content::Scalar(Value::Number(_))) => ("a number", "correct it"),
        (_, Content::Scalar(_)) => ("a string", "correct it"),
        (_, Content::List(_)) => ("a list", "write a single value"),
        (_, Content::Mapping(_)) => ("a mapping", "write a single value"),
    };
    format!("must be of type {type_}, not {found}: {advice}")
}

fn check_length(schema: &Value, text: &str, path: &str, report: &mut Report<'_>) {
    let length = text.chars().count() as u64;
    if let Some(max) = schema["maxLength"].as_u64().filter(|max| length > *max) {
        report.invalid(path, format!("must have at most {max} characters, not {length}: shorten it"));
    }
    if let Some(min) = schema["minLength"].as_u64().filter(|min| length < *min) {
        report.invalid(path, format!("must have at least {min} characters, not {length}: complete it"));
    }
}

fn object(schema: &Value, entries: &[KeyValue], path: &str, report: &mut Report<'_>) -> Value {
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let mut object = Map::new();
    for KeyValue { key, at, value, .. } in entries {
        let below = join(path, key);
        report.locate(&below, *at);
        let known = properties.get(key).or_else(|| Some(&schema["additionalProperties"]).filter(|it| it.is_object()));
        let Some(known) = known else {
            object.insert(key.clone(), value.to_json());
            continue;
        };
        let is_absent = value.content == Content::Scalar(Value::Null) && known["nullable"] != true;
        if !is_absent {
            object.insert(key.clone(), check(known, value, &below, report));
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let has_default = !properties.get(name).is_none_or(|property| property["default"].is_null());
        if !object.contains_key(name) && !has_default {
            report.invalid(&join(path, name), "is required: add it");
        }
    }
    fill_defaults(schema, &mut object);
    Value::Object(object)
}

/// Adds the defaults of absent fields, and the defaults of the fields in these.
fn fill_defaults(schema: &Value, object: &mut Map<String, Value>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let default = &property["default"];
        if default.is_null() || object.contains_key(name) {
            continue;
        }
        let mut value = default.clone();
        if let Some(object) = value.as_object_mut() {
            fill_defaults(property, object);
        }
        object.insert(name.clone(), value);
    }
}

fn array(schema: &Value, items: &[Node], path: &str, report: &mut Report<'_>) -> Value {
    let count = items.len() as u64;
    if let Some(max) = schema["maxItems"].as_u64().filter(|max| count > *max) {
        report.invalid(path, format!("must have at most {max} items, not {count}: remove some"));
    }
    if let Some(min) = schema["minItems"].as_u64().filter(|min| count < *min) {
        report.invalid(path, format!("must have at least {min} items, not {count}: add one"));
    }
    let mut values = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let below = format!("{path}[{index}]");
        report.locate(&below, item.at);
        values.push(check(&schema["items"], item, &below, report));
    }
    if schema["x-kubernetes-list-type"] == "map" {
        check_list_keys(schema, &values, path, report);
    }
    Value::Array(values)
}

/// Checks that no two items of a list have the same keys. An absent key is a value of its own.
fn check_list_keys(schema: &Value, values: &[Value], path: &str, report: &mut Report<'_>) {
    let names: Vec<&str> =
        schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let keys: Vec<Vec<Option<&Value>>> =
        values.iter().map(|value| names.iter().map(|name| value.get(name)).collect()).collect();
    for (index, key) in keys.iter().enumerate() {
        if let Some(first) = keys[..index].iter().position(|other| other == key) {
            let described = names.iter().zip(key).map(|(name, value)| match value {
                Some(value) => format!("{name} {value}"),
                None => format!("no {name}"),
            });
            let described = described.collect::<Vec<_>>().join(" and ");
            report.error(
                &format!("{path}[{index}]"),
                format!("duplicate item: {path}[{first}] has {described} already, so remove one of them"),
            );
        }
    }
}
