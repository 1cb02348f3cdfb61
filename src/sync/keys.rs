//! Keys of documents: reading, showing, and their order across BSON types.

use bson::{Bson, Document, RawBsonRef, RawDocument, doc, oid::ObjectId};

use crate::api::truncate_to;

/// Longest key shown, in bytes.
const MAX_SHOWN: usize = 128;

/// BSON types in the order in which MongoDB sorts them
/// (<https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/>), as `$type` names.
/// A range query finds values of one of these brackets only.
const BRACKETS: [&[&str]; 16] = [
    &["minKey"],
    &["undefined", "null"],
    &["int", "long", "double", "decimal"],
    &["symbol", "string"],
    &["object"],
    &["array"],
    &["binData"],
    &["objectId"],
    &["bool"],
    &["date"],
    &["timestamp"],
    &["regex"],
    &["dbPointer"],
    &["javascript"],
    &["javascriptWithScope"],
    &["maxKey"],
];

/// Position of a value's type in the sort order.
fn bracket(key: &Bson) -> usize {
    match key {
        Bson::MinKey => 0,
        Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_) | Bson::Decimal128(_) => 2,
        Bson::Symbol(_) | Bson::String(_) => 3,
        Bson::Document(_) => 4,
        Bson::Array(_) => 5,
        Bson::Binary(_) => 6,
        Bson::ObjectId(_) => 7,
        Bson::Boolean(_) => 8,
        Bson::DateTime(_) => 9,
        Bson::Timestamp(_) => 10,
        Bson::RegularExpression(_) => 11,
        Bson::DbPointer(_) => 12,
        Bson::JavaScriptCode(_) => 13,
        Bson::JavaScriptCodeWithScope(_) => 14,
        Bson::MaxKey => 15,
        _ => 1,
    }
}

fn is_nan(key: &Bson) -> bool {
    match key {
        Bson::Double(number) => number.is_nan(),
        Bson::Decimal128(number) => number.to_string().contains("NaN"),
        _ => false,
    }
}

/// True when a query for the range from one key to the other finds every key between them.
pub(super) fn is_range(first: &Bson, last: &Bson) -> bool {
    bracket(first) == bracket(last) && !is_nan(first)
}

/// The query for every key that sorts after `key`.
pub(super) fn after(field: &str, key: &Bson) -> Document {
    let later: Vec<&str> = BRACKETS[bracket(key) + 1..].iter().flat_map(|names| names.iter().copied()).collect();
    // NaN sorts before every number, but no range that starts or ends at it finds one.
    let same_type = if is_nan(key) {
        doc! {field: {"$gte": f64::NEG_INFINITY}}
    } else {
        doc! {field: {"$gt": key.clone()}}
    };
    if later.is_empty() {
        same_type
    } else {
        doc! {"$or": [same_type, {field: {"$type": later}}]}
    }
}

/// Reads a dotted path. `None` when the document has no such field.
pub(super) fn at_path<'a>(document: &'a RawDocument, path: &str) -> Option<RawBsonRef<'a>> {
    match path.split_once('.') {
        None => document.get(path).ok()?,
        Some((head, rest)) => at_path(document.get_document(head).ok()?, rest),
    }
}

/// The key at a dotted path. `None` when the document has no such field.
pub(super) fn key_at(document: &RawDocument, path: &str) -> Option<Bson> {
    Bson::try_from(at_path(document, path)?).ok()
}

/// A key as people write it: hex for an ObjectId, the text itself for a string, extended JSON otherwise.
pub(super) fn text(key: &Bson) -> String {
    match key {
        Bson::ObjectId(id) => id.to_hex(),
        Bson::String(text) => text.clone(),
        other => other.clone().into_relaxed_extjson().to_string(),
    }
}

/// The keys that people write like this: the text itself, an ObjectId in hex, a whole number.
pub(super) fn spellings(text: &str) -> Vec<Bson> {
    let mut keys = vec![Bson::from(text)];
    keys.extend(ObjectId::parse_str(text).ok().map(Bson::from));
    keys.extend(text.parse::<i64>().ok().map(Bson::from));
    keys
}

/// The first characters of a key, as people write it.
pub(super) fn show(key: &Bson) -> String {
    truncate_to(&text(key), MAX_SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn keys_after_a_number_include_every_later_type() {
        let query = after("_id", &Bson::Int32(5));
        let clauses = query.get_array("$or").unwrap();
        assert_eq!(clauses[0], Bson::Document(doc! {"_id": {"$gt": 5}}));
        let later = clauses[1].as_document().unwrap().get_document("_id").unwrap().get_array("$type").unwrap();
        assert!(
            later.contains(&"string".into()) && later.contains(&"objectId".into()) && !later.contains(&"int".into())
        );
        assert_eq!(after("_id", &Bson::MaxKey), doc! {"_id": {"$gt": Bson::MaxKey}});
    }

    #[test]
    fn dotted_paths_are_followed() {
        let document = rawdoc! {"account": {"id": 7}};
        assert_eq!(key_at(&document, "account.id"), Some(Bson::Int32(7)));
        assert_eq!(key_at(&document, "account.name"), None);
        assert_eq!(key_at(&document, "nothing.id"), None);
    }

    #[test]
    fn a_text_stands_for_each_key_that_is_written_so() {
        let id = ObjectId::parse_str("65920080706565720000002a").unwrap();
        for (text, keys) in [
            ("ann", vec![Bson::from("ann")]),
            ("42", vec![Bson::from("42"), Bson::Int64(42)]),
            ("65920080706565720000002a", vec![Bson::from("65920080706565720000002a"), Bson::ObjectId(id)]),
        ] {
            assert_eq!(spellings(text), keys, "{text}");
        }
    }

    #[test]
    fn keys_are_shown_as_people_write_them() {
        let id = ObjectId::parse_str("65920080706565720000002a").unwrap();
        assert_eq!(show(&Bson::ObjectId(id)), "65920080706565720000002a");
        assert_eq!(show(&Bson::String("ann".into())), "ann");
        assert_eq!(show(&Bson::Int32(42)), "42");
    }
}
