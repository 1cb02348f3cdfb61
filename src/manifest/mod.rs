//! Manifests as users write them: reading, and validation as the API server's and the reconciler's.
//!
//! [`parsed`] needs no server. It validates documents as if each of them were created with strict field validation. The
//! checks run in this order. The last two groups need an object without errors:
//!
//! 1. YAML, and the structure that the CustomResourceDefinition describes: `yaml`, `schema`, `metadata`.
//! 2. The CEL rules of the CustomResourceDefinition: `cel`.
//! 3. The checks of reconcilers and workers: `reconcile`.
//! 4. Settings that the installation must have: `settings`. They are warnings.
//!
//! [`parse_policy`] reads the policy file of an installation in the same way.

mod cel;
pub(crate) mod file;
mod finding;
mod kind;
mod metadata;
mod policy;
mod reconcile;
mod scalar;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
mod yaml;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::{GROUP, SyncAlert, SyncJob, SyncSchedule};
use cel::Evaluator;
use finding::Report;
pub use finding::{Finding, Origin, Severity};
use kind::ObjectKind;
pub use policy::parse_policy;
use yaml::{Chunk, Content, Node, Position, SyntaxError};

/// The version of all kinds.
const API_VERSION: &str = "sync.codex.dev/v1alpha1";
const STATUS: &str = "status";

/// A document without errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Position of the document's first key.
    pub origin: Origin,
    /// The object that the document describes.
    pub object: Object,
}

/// An object of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A SyncJob with all defaults.
    SyncJob(Box<SyncJob>),
    /// A SyncSchedule with all defaults.
    SyncSchedule(Box<SyncSchedule>),
    /// A SyncAlert with all defaults.
    SyncAlert(Box<SyncAlert>),
    /// An object of a kind that is not of this operator. It is not validated.
    Other {
        /// Group and version, such as `v1`.
        api_version: String,
        /// Kind, such as `Secret`.
        kind: String,
        /// Name of the object. Empty when it has none.
        name: String,
    },
}

/// The result of reading a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParsedManifest {
    /// Number of documents that are not empty.
    pub documents: usize,
    /// The documents without errors.
    pub manifests: Vec<Manifest>,
    /// Errors and warnings, in the order of the documents and of their positions.
    pub findings: Vec<Finding>,
}

/// Reads and validates the documents of a file. `file` is its name in findings.
#[must_use]
pub fn parse(file: &str, text: &str) -> ParsedManifest {
    let mut parsed = ParsedManifest::default();
    let (chunks, errors) = yaml::split(text);
    parsed.add_syntax_errors(file, errors);
    let mut evaluator = Evaluator::default();
    for chunk in chunks {
        parsed.add(file, chunk, &mut evaluator);
    }
    parsed
}

impl ParsedManifest {
    fn add(&mut self, file: &str, chunk: Chunk<'_>, evaluator: &mut Evaluator) {
        let (root, errors) = yaml::parse(chunk);
        let Some(root) = root else {
            self.documents += usize::from(!errors.is_empty());
            self.add_syntax_errors(file, errors);
            return;
        };
        let items = match (text(&root, "apiVersion"), text(&root, "kind"), root.get("items")) {
            (Some("v1"), Some("List"), Some(Node { content: Content::List(items), .. })) => items.as_slice(),
            _ => std::slice::from_ref(&root),
        };
        let mut errors = Some(errors);
        for item in items {
            self.documents += 1;
            let mut report = Report::new(file, item.first_position());
            // Duplicate keys are not known by item.
            for SyntaxError { at, message } in errors.take().into_iter().flatten() {
                report.error_at(at, message);
            }
            let object = validate(item, evaluator, &mut report);
            let is_other = matches!(object, Some(Object::Other { .. }));
            if let Some(object) = object.filter(|_| is_other || !report.has_errors()) {
                self.manifests.push(Manifest { origin: Origin::new(file, item.first_position()), object });
            }
            if !is_other {
                self.findings.extend(report.into_findings());
            }
        }
    }

    fn add_syntax_errors(&mut self, file: &str, errors: Vec<SyntaxError>) {
        let mut report = Report::new(file, Position::default());
        for SyntaxError { at, message } in errors {
            report.error_at(at, message);
        }
        self.findings.extend(report.into_findings());
    }
}

fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.get(key).and_then(Node::as_str).filter(|text| !text.is_empty())
}

/// Validates a document. `None`: the document contains no object. Otherwise the report says whether the object is
/// valid.
fn validate(root: &Node, evaluator: &mut Evaluator, report: &mut Report<'_>) -> Option<Object> {
    let Content::Mapping(entries) = &root.content else {
        report.error("", "a manifest must be a mapping with apiVersion, kind, metadata and spec");
        return None;
    };
    for entry in entries {
        report.locate(&entry.key, entry.at);
    }
    let (api_version, kind) = (text(root, "apiVersion"), text(root, "kind"));
    let (Some(api_version), Some(kind)) = (api_version, kind) else {
        let missing = if api_version.is_none() { "apiVersion" } else { "kind" };
        report.error(missing, format!("is required: add it, such as apiVersion: {API_VERSION} and kind: SyncJob"));
        return None;
    };
    let is_own_group = api_version.split('/').next() == Some(GROUP);
    let found = ObjectKind::named(kind);
    match found {
        Some(found) if api_version == API_VERSION => return validate_own(found, root, evaluator, report),
        // A kind without a group would be Kubernetes' own.
        Some(_) if is_own_group || !api_version.contains('/') => {
            report.error("apiVersion", format!("must be {API_VERSION}, not {api_version}: correct it"));
            return None;
        }
        None if is_own_group => {
            let names = || ObjectKind::ALL.into_iter().map(ObjectKind::name);
            let near = schema::similar(kind, names()).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            let list = names().collect::<Vec<_>>().join(", ");
            report.error("kind", format!("unsupported value {kind:?}: supported values are {list}{near}"));
            return None;
        }
        _ => {}
    }
    let name = root.get("metadata").and_then(|metadata| text(metadata, "name")).unwrap_or_default();
    Some(Object::Other { api_version: api_version.to_owned(), kind: kind.to_owned(), name: name.to_owned() })
}

/// Validates a document of a kind of this operator.
fn validate_own(kind: ObjectKind, root: &Node, evaluator: &mut Evaluator, report: &mut Report<'_>) -> Option<Object> {
    let schema = kind.schema();
    // The API server drops the status of an object that is created, but refuses unknown fields in it.
    let mut object = schema::check(schema, &root.without(STATUS), "", report);
    schema::report_unknown_fields(schema, root, "", report);
    if let Some(fields) = object.as_object_mut() {
        fields.remove(STATUS);
    }
    metadata::check(&object["metadata"], report);
    evaluator.check(schema, &with_name(&object), "", report);
    if report.has_errors() {
        return None;
    }
    let object = match kind {
        ObjectKind::SyncJob => typed(object, report).map(Object::SyncJob),
        ObjectKind::SyncSchedule => typed(object, report).map(Object::SyncSchedule),
        ObjectKind::SyncAlert => typed(object, report).map(Object::SyncAlert),
    }?;
    reconcile::check(&object, report);
    if !report.has_errors() {
        settings::check(&object, report);
    }
    Some(object)
}

/// The object with the name that the API server would give it.
fn with_name(object: &Value) -> Value {
    let mut named = object.clone();
    if let Some(name) = metadata::name(&object["metadata"]) {
        named["metadata"]["name"] = Value::from(name);
    }
    named
}

fn typed<T: DeserializeOwned>(object: Value, report: &mut Report<'_>) -> Option<Box<T>> {
    match serde_json::from_value(object) {
        Ok(object) => Some(Box::new(object)),
        Err(error) => {
            report.error("", format!("not a valid object: {error}: correct it"));
            None
        }
    }
}
