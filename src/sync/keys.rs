//! Keys of documents: reading, showing, and their order across BSON types.

use bson::{Bson, Document, RawBsonRef, RawDocument, doc, oid::ObjectId};

use super::mapping::whole_double;
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

/// Name of a key's type, as `keyType` has it where it can.
pub(super) fn type_name(key: &Bson) -> &'static str {
    match key {
        Bson::Int32(_) | Bson::Int64(_) => "Int",
        Bson::Double(_) => "Double",
        Bson::Decimal128(_) => "Decimal",
        Bson::String(_) => "String",
        Bson::Boolean(_) => "Bool",
        Bson::DateTime(_) => "Date",
        Bson::ObjectId(_) => "ObjectId",
        Bson::Binary(_) => "UUID",
        Bson::Document(_) => "Object",
        Bson::Array(_) => "Array",
        _ => "another kind",
    }
}

/// True when a query for the range from one key to the other finds every key between them.
pub(super) fn is_range(first: &Bson, last: &Bson) -> bool {
    bracket(first) == bracket(last) && !is_nan(first)
}

/// The query for every key that sorts after `key`.
pub(super) fn after(field: &str, key: &Bson) -> Document {
    let later: Vec<&str> = BRACKETS[bracket(key) + 1..].iter().flat_map(|names| names.iter().copied()).collect();
    // NaN sorts before every number, but no range with NaN as a bound finds one.
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

/// Reads a dotted path, in which a number is the index in an array. `None` when the document has no such field.
pub(super) fn at_path<'a>(document: &'a RawDocument, path: &str) -> Option<RawBsonRef<'a>> {
    let mut steps = path.split('.');
    let first = document.get(steps.next()?).ok()??;
    steps.try_fold(first, |value, step| match value {
        RawBsonRef::Document(document) => document.get(step).ok()?,
        RawBsonRef::Array(items) => items.get(step.parse().ok()?).ok()?,
        _ => None,
    })
}

/// The key at a dotted path. `None` when the document has no such field.
pub(super) fn key_at(document: &RawDocument, path: &str) -> Option<Bson> {
    Bson::try_from(at_path(document, path)?).ok()
}

/// Returns the text of a key for users: hex for an ObjectId, the text itself for a string, the digits of a number,
/// extended JSON otherwise. Whole numbers of equal value have one text, whatever their type.
pub(super) fn text(key: &Bson) -> String {
    match key {
        Bson::ObjectId(id) => id.to_hex(),
        Bson::String(text) => text.clone(),
        Bson::Double(number) => match whole_double(*number) {
            Some(whole) => whole.to_string(),
            None => number.to_string(),
        },
        Bson::Decimal128(number) => decimal_text(&number.to_string()),
        Bson::Binary(binary) => binary.to_uuid().map_or_else(|_| extended_json(key), |uuid| uuid.to_string()),
        other => extended_json(other),
    }
}

fn extended_json(key: &Bson) -> String {
    key.clone().into_relaxed_extjson().to_string()
}

/// The digits of a decimal number, without zeros at the end of its fraction.
fn decimal_text(text: &str) -> String {
    match text.split_once('.') {
        Some((whole, fraction)) if !text.contains('E') => {
            let fraction = fraction.trim_end_matches('0');
            if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
        }
        _ => text.to_owned(),
    }
}

/// Returns the keys that have this text for users: the text itself, an ObjectId in hex, a whole number.
pub(super) fn spellings(text: &str) -> Vec<Bson> {
    let mut keys = vec![Bson::from(text)];
    keys.extend(ObjectId::parse_str(text).ok().map(Bson::from));
    keys.extend(text.parse::<i64>().ok().map(Bson::from));
    keys
}

/// Returns the first characters of the text of a key.
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
        let emails = rawdoc! {"emails": [{"address": "a@b"}]};
        assert_eq!(key_at(&emails, "emails.0.address"), Some("a@b".into()));
        assert_eq!(key_at(&emails, "emails.1.address"), None);
        assert_eq!(key_at(&emails, "emails.address"), None);
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
        let uuid = "123e4567-e89b-12d3-a456-426614174000";
        assert_eq!(show(&bson::Uuid::parse_str(uuid).unwrap().into()), uuid);
    }

    #[test]
    fn numbers_of_equal_value_are_one_key() {
        let decimal = |text: &str| Bson::Decimal128(text.parse().unwrap());
        for (text, same) in [
            ("7", vec![Bson::Int32(7), Bson::Int64(7), Bson::Double(7.0), decimal("7"), decimal("7.00"), "7".into()]),
            ("7.5", vec![Bson::Double(7.5), decimal("7.50")]),
            ("9007199254740993", vec![Bson::Int64(9_007_199_254_740_993), decimal("9007199254740993")]),
        ] {
            for key in same {
                assert_eq!(super::text(&key), text, "{key}");
            }
        }
    }
}
