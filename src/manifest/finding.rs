//! Findings, and the positions of fields that they refer to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;

use super::yaml::Position;

/// A position in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// Name of the file as the caller gave it.
    pub file: String,
    /// Line, from 1 on.
    pub line: usize,
    /// Column in characters, from 1 on.
    pub column: usize,
}

impl Origin {
    pub(super) fn new(file: &str, at: Position) -> Self {
        Self { file: file.to_owned(), line: at.line, column: at.column }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The API server or the operator refuses the object.
    Error,
    /// The operator refuses the object unless a setting of its installation allows it.
    Warning,
}

/// A mistake in a manifest, with its position and its fix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Position of the field, or of the nearest field around one that is missing.
    #[serde(flatten)]
    pub origin: Origin,
    /// Severity.
    pub level: Severity,
    /// Path of the field, such as `spec.source.graphQL.endpoint`. Empty for the whole document.
    pub field: String,
    /// Description of the mistake and of its fix.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, level, field, message } = self;
        let level = match level {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match field.as_str() {
            "" => write!(f, "{origin}: {level}: {message}"),
            field => write!(f, "{origin}: {level}: {field}: {}", without_field(message, field)),
        }
    }
}

/// The message without the name of the field that it begins with, unless that is one of several.
fn without_field<'a>(message: &'a str, field: &str) -> &'a str {
    let end = message.find([' ', ':']).unwrap_or(message.len());
    let (name, rest) = message.split_at(end);
    let rest = rest.trim_start_matches([':', ' ']);
    let goes_on = ["and ", "with "].iter().any(|word| rest.starts_with(word));
    if is_named(field, name) && !goes_on { rest } else { message }
}

/// True when `name` is the path, or the last part of it. Messages write list indices as `[]`.
fn is_named(path: &str, name: &str) -> bool {
    let path = without_indices(path);
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.')) && !name.is_empty()
}

/// The path with `[]` for each list index.
pub(super) fn without_indices(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let mut is_index = false;
    for character in path.chars() {
        is_index &= character != ']';
        if !is_index {
            text.push(character);
        }
        is_index |= character == '[';
    }
    text
}

/// The findings of one document, and the positions of its fields.
pub(super) struct Report<'a> {
    file: &'a str,
    document: Position,
    positions: BTreeMap<String, Position>,
    /// Paths without indices of fields with an invalid structure, and of all fields around them.
    invalid: BTreeSet<String>,
    findings: Vec<Finding>,
}

impl<'a> Report<'a> {
    pub fn new(file: &'a str, document: Position) -> Self {
        Self { file, document, positions: BTreeMap::new(), invalid: BTreeSet::new(), findings: Vec::new() }
    }

    /// Records the position of a field.
    pub fn locate(&mut self, path: &str, at: Position) {
        self.positions.insert(path.to_owned(), at);
    }

    /// Reports an error in a field.
    pub fn error(&mut self, path: &str, message: impl Into<String>) {
        self.add(Severity::Error, path, message.into());
    }

    /// Reports an error at a position without a field.
    pub fn error_at(&mut self, at: Position, message: impl Into<String>) {
        let origin = Origin::new(self.file, at);
        self.findings.push(Finding { origin, level: Severity::Error, field: String::new(), message: message.into() });
    }

    /// Reports an error in the structure of a field, which no rule can be applied to.
    pub fn invalid(&mut self, path: &str, message: impl Into<String>) {
        let mut around = without_indices(path);
        loop {
            let parent = parent(&around).to_owned();
            let is_root = around.is_empty();
            self.invalid.insert(std::mem::replace(&mut around, parent));
            if is_root {
                break;
            }
        }
        self.error(path, message);
    }

    /// Reports a setting that the operator needs.
    pub fn warning(&mut self, path: &str, message: impl Into<String>) {
        self.add(Severity::Warning, path, message.into());
    }

    /// Reports an error below `base` in the field that the message begins with.
    pub fn error_naming(&mut self, base: &str, message: impl Into<String>) {
        let message = message.into();
        let path = self.named_field(base, &message).unwrap_or_else(|| base.to_owned());
        self.error(&path, message);
    }

    /// True when the structure of a field, or of one in it, is invalid. The path has no indices.
    pub fn is_invalid(&self, path: &str) -> bool {
        self.invalid.contains(path)
    }

    /// True when there is an error in exactly this field.
    pub fn has_error_in(&self, path: &str) -> bool {
        !path.is_empty() && self.findings.iter().any(|finding| finding.field == path)
    }

    /// True when there is an error.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.level == Severity::Error)
    }

    /// The findings, in the order of their positions.
    pub fn into_findings(mut self) -> Vec<Finding> {
        self.findings.sort_by(|a, b| a.origin.cmp(&b.origin));
        self.findings
    }

    fn add(&mut self, level: Severity, path: &str, message: String) {
        let origin = Origin::new(self.file, self.position(path));
        let finding = Finding { origin, level, field: path.to_owned(), message };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Position of a field, or of the nearest one around it that the document has.
    fn position(&self, path: &str) -> Position {
        let mut path = path;
        while !path.is_empty() {
            if let Some(at) = self.positions.get(path) {
                return *at;
            }
            path = parent(path);
        }
        self.document
    }

    /// The field at or below `base` that a message begins with.
    fn named_field(&self, base: &str, message: &str) -> Option<String> {
        let name = message.split([' ', ':']).next()?;
        let is_below = |path: &&String| {
            path.strip_prefix(base)
                .is_some_and(|rest| base.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let found = self.positions.keys().filter(is_below).filter(|path| is_named(path, name));
        found.min_by_key(|path| path.len()).cloned()
    }
}

/// Path of the enclosing field.
fn parent(path: &str) -> &str {
    &path[..path.rfind(['.', '[']).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_its_field_once() {
        for (field, message, shown) in [
            ("spec.batchSize", "batchSize must be from 1 to 10000", "spec.batchSize: must be from 1 to 10000"),
            ("spec.mapping[3].to", "mapping[].to must be a path", "spec.mapping[3].to: must be a path"),
            ("spec.schedule", "schedule: \"x\" is none", "spec.schedule: \"x\" is none"),
            (
                "spec.interval",
                "interval and schedule exclude each other",
                "spec.interval: interval and schedule exclude each other",
            ),
            ("spec", "timeZone needs schedule", "spec: timeZone needs schedule"),
            ("spec.source", "resource is wrong", "spec.source: resource is wrong"),
            ("", "not valid YAML", "not valid YAML"),
        ] {
            let origin = Origin { file: "job.yaml".to_owned(), line: 12, column: 5 };
            let finding =
                Finding { origin, level: Severity::Error, field: field.to_owned(), message: message.to_owned() };
            assert_eq!(finding.to_string(), format!("job.yaml:12:5: error: {shown}"));
        }
    }

    #[test]
    fn a_missing_field_has_the_position_around_it() {
        let mut report = Report::new("a.yaml", Position { line: 1, column: 1 });
        let at = Position { line: 4, column: 3 };
        report.locate("spec.mapping[0]", at);
        assert_eq!(report.position("spec.mapping[0].to"), at);
        assert_eq!(report.position("spec.target"), Position { line: 1, column: 1 });
    }
}
