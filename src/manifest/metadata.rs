//! Validation of `metadata`: names, labels and annotations, by the rules of the API server.

use serde_json::Value;

use super::{finding::Report, schema::join};

const MAX_SUBDOMAIN: usize = 253;
const MAX_LABEL: usize = 63;
/// Longest annotations of one object together, in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;
/// Length to which `generateName` is truncated before the API server appends characters.
const MAX_GENERATED_BASE: usize = 58;
/// Text with the length of the suffix that the API server appends to `generateName`.
const GENERATED_SUFFIX: &str = "xxxxx";

/// Checks the metadata of an object.
pub(super) fn check(metadata: &Value, report: &mut Report<'_>) {
    let text = |key: &str| metadata[key].as_str().filter(|text| !text.is_empty());
    match (text("name"), text("generateName")) {
        (None, None) => report.invalid("metadata.name", "is required: add a name, or generateName"),
        (Some(name), _) => check_name("metadata.name", name, report),
        (None, Some(prefix)) if prefix.ends_with('-') => {
            check_name("metadata.generateName", &format!("{prefix}x"), report);
        }
        (None, Some(prefix)) => check_name("metadata.generateName", prefix, report),
    }
    if let Some(namespace) = text("namespace").filter(|namespace| !is_dns_label(namespace)) {
        let message =
            format!("{namespace:?} must have at most {MAX_LABEL} characters of a-z, 0-9 and -, such as my-team");
        report.error("metadata.namespace", message);
    }
    // The API server takes what is not a number for no version.
    if text("resourceVersion").and_then(|version| version.parse::<u64>().ok()).is_some_and(|version| version > 0) {
        report.error("metadata.resourceVersion", "must not be set on an object that is created: remove it");
    }
    check_labels("metadata", metadata, report);
    for (index, finalizer) in metadata["finalizers"].as_array().into_iter().flatten().enumerate() {
        if finalizer.as_str().is_some_and(|finalizer| !is_qualified_name(finalizer)) {
            report.error(&format!("metadata.finalizers[{index}]"), qualified_name_advice(finalizer));
        }
    }
}

/// Checks the labels and annotations in `metadata`, which is at `path`.
pub(super) fn check_labels(path: &str, metadata: &Value, report: &mut Report<'_>) {
    let labels = join(path, "labels");
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        let field = join(&labels, key);
        if !is_qualified_name(key) {
            report.error(&field, qualified_name_advice(&Value::from(key.as_str())));
        }
        if value.as_str().is_some_and(|value| !value.is_empty() && !is_label_name(value)) {
            let message = format!(
                "{value} must have at most {MAX_LABEL} letters, digits, -, _ or ., and begin and end with a letter or digit"
            );
            report.error(&field, message);
        }
    }
    let annotations = join(path, "annotations");
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().unwrap_or_default().len();
        if !is_qualified_name(&key.to_lowercase()) {
            report.error(&join(&annotations, key), qualified_name_advice(&Value::from(key.as_str())));
        }
    }
    if size > MAX_ANNOTATIONS {
        report.error(
            &annotations,
            format!("must have at most {MAX_ANNOTATIONS} bytes together, not {size}: shorten them"),
        );
    }
}

/// Name of an object as validation rules see it: a generated name has characters appended.
pub(super) fn name(metadata: &Value) -> Option<String> {
    let text = |key: &str| metadata[key].as_str().filter(|text| !text.is_empty());
    let generated = |prefix: &str| {
        let base: String = prefix.chars().take(MAX_GENERATED_BASE).collect();
        format!("{base}{GENERATED_SUFFIX}")
    };
    text("name").map(str::to_owned).or_else(|| text("generateName").map(generated))
}

fn check_name(field: &str, name: &str, report: &mut Report<'_>) {
    if !is_dns_subdomain(name) {
        let message = format!(
            "{name:?} must have at most {MAX_SUBDOMAIN} characters of a-z, 0-9, - and ., and begin and end with a letter or digit, such as user-sync"
        );
        report.error(field, message);
    }
}

fn qualified_name_advice(key: &Value) -> String {
    format!(
        "{key} must have at most {MAX_LABEL} letters, digits, -, _ or ., and may have a domain and / before them, such as example.com/team"
    )
}

fn is_lower_alphanumeric(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit()
}

fn is_dns_label(text: &str) -> bool {
    text.len() <= MAX_LABEL
        && text.chars().all(|character| is_lower_alphanumeric(character) || character == '-')
        && text.starts_with(is_lower_alphanumeric)
        && text.ends_with(is_lower_alphanumeric)
}

fn is_dns_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        part.chars().all(|character| is_lower_alphanumeric(character) || character == '-')
            && part.starts_with(is_lower_alphanumeric)
            && part.ends_with(is_lower_alphanumeric)
    };
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_part)
}

fn is_label_name(text: &str) -> bool {
    let is_alphanumeric = |character: char| character.is_ascii_alphanumeric();
    text.len() <= MAX_LABEL
        && text.chars().all(|character| is_alphanumeric(character) || "-_.".contains(character))
        && text.starts_with(is_alphanumeric)
        && text.ends_with(is_alphanumeric)
}

fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        None => is_label_name(text),
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_name(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    use crate::manifest::yaml::Position;

    #[test]
    fn metadata_is_checked_as_the_api_server_does() {
        for (metadata, field) in [
            (json!({"name": "a"}), None),
            (json!({"name": "a.b-c"}), None),
            (json!({"generateName": "run-"}), None),
            (json!({"name": "a", "labels": {"example.com/team": "a_b", "x": ""}}), None),
            (json!({"name": "a", "annotations": {"example.com/Team": "any text"}}), None),
            (json!({}), Some("metadata.name")),
            (json!({"name": ""}), Some("metadata.name")),
            (json!({"name": "A"}), Some("metadata.name")),
            (json!({"name": "a..b"}), Some("metadata.name")),
            (json!({"name": "a_b"}), Some("metadata.name")),
            (json!({"name": "a".repeat(254)}), Some("metadata.name")),
            (json!({"generateName": "Run-"}), Some("metadata.generateName")),
            (json!({"name": "a", "namespace": "a.b"}), Some("metadata.namespace")),
            (json!({"name": "a", "resourceVersion": "1"}), Some("metadata.resourceVersion")),
            (json!({"name": "a", "labels": {"a b": ""}}), Some("metadata.labels[a b]")),
            (json!({"name": "a", "labels": {"a": "b c"}}), Some("metadata.labels.a")),
            (json!({"name": "a", "labels": {"a/b/c": ""}}), Some("metadata.labels[a/b/c]")),
            (json!({"name": "a", "annotations": {"a": "x".repeat(300_000)}}), Some("metadata.annotations")),
            (json!({"name": "a", "finalizers": ["a b"]}), Some("metadata.finalizers[0]")),
        ] {
            let mut report = Report::new("a.yaml", Position::default());
            check(&metadata, &mut report);
            let fields: Vec<_> = report.into_findings().into_iter().map(|finding| finding.field).collect();
            assert_eq!(fields, Vec::from_iter(field.map(str::to_owned)));
        }
    }

    #[test]
    fn a_generated_name_has_its_full_length() {
        assert_eq!(name(&json!({"generateName": "run-"})).unwrap().len(), 9);
        assert_eq!(name(&json!({"generateName": "a".repeat(100)})).unwrap().len(), 63);
        assert_eq!(name(&json!({"name": "a", "generateName": "b"})).as_deref(), Some("a"));
    }
}
