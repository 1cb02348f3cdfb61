//! Bounds of the fields of a spec whose content is free: the API server bounds neither their size nor their depth.

use std::io;

use serde_json::{Map, Value};

use super::run::SpecError;
use crate::api::SyncJobSpec;

/// Largest size of a free-form field, in bytes of its JSON.
pub const MAX_BYTES: usize = 64 * 1024;
/// Largest number of levels of a free-form field. An object within another object is the second level.
pub const MAX_LEVELS: usize = 32;

/// Checks the free-form fields of a spec.
pub(super) fn check(spec: &SyncJobSpec) -> Result<(), SpecError> {
    check_field("target.filter", &spec.target.filter.0)?;
    let graph_ql = spec.source.as_ref().and_then(|source| source.graph_ql.as_ref());
    graph_ql.map_or(Ok(()), |graph_ql| check_field("source.graphQL.variables", &graph_ql.variables.0))
}

fn check_field(field: &'static str, value: &Map<String, Value>) -> Result<(), SpecError> {
    let levels = 1 + value.values().map(levels).max().unwrap_or_default();
    if levels > MAX_LEVELS {
        return Err(SpecError::Deep { field, levels });
    }
    let mut size = Size(0);
    // Counting cannot fail.
    serde_json::to_writer(&mut size, value).ok();
    if size.0 > MAX_BYTES { Err(SpecError::Large { field, bytes: size.0 }) } else { Ok(()) }
}

fn levels(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(levels).max().unwrap_or_default(),
        Value::Array(items) => 1 + items.iter().map(levels).max().unwrap_or_default(),
        _ => 0,
    }
}

/// Counter of bytes that are written.
struct Size(usize);

impl io::Write for Size {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn nested(levels: usize, is_list: bool) -> Value {
        (0..levels)
            .fold(json!(1), |inner, level| if is_list && level > 0 { json!([inner]) } else { json!({"a": inner}) })
    }

    #[test]
    fn free_form_fields_are_bounded() {
        let large = |bytes: usize| json!({"a": "x".repeat(bytes - r#"{"a":""}"#.len())});
        for (value, error) in [
            (json!({}), None),
            (nested(32, false), None),
            (nested(33, false), Some("must have at most 32 levels, not 33")),
            (json!({"a": nested(32, true)}), Some("must have at most 32 levels, not 33")),
            (large(65_536), None),
            (large(65_537), Some("must have at most 65536 bytes of JSON, not 65537")),
        ] {
            let source =
                json!({"graphQL": {"endpoint": "https://a", "query": "{a}", "resultPath": "/a", "variables": value}});
            for (field, spec) in [
                ("target.filter", json!({"target": {"filter": value}})),
                ("source.graphQL.variables", json!({"source": source})),
            ] {
                let spec: SyncJobSpec = from_value(spec).unwrap();
                let found = check(&spec).err().map(|error| error.to_string());
                assert_eq!(found, error.map(|error| format!("{field} {error}")), "{field}");
            }
        }
    }
}
