//! What of a source's result goes into which field of a document.

use bson::{Bson, DateTime, RawBsonRef, RawDocument, oid::ObjectId};
use jiff::{Timestamp, civil, tz::TimeZone};
use serde_json::Value;

use super::keys;
use crate::{
    api::source::{FieldType, OnNull},
    domain::source::{Mapped, Origin},
};

/// What is to be written into one document, by path.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes<'a> {
    pub set: Vec<(&'a str, Bson)>,
    pub unset: Vec<&'a str>,
}

impl Changes<'_> {
    /// True when the document is as it should be.
    pub fn are_in(&self, document: &RawDocument) -> bool {
        let is_there =
            |(path, value): &(&str, Bson)| keys::at_path(document, path).is_some_and(|current| is_same(current, value));
        self.set.iter().all(is_there) && self.unset.iter().all(|path| keys::at_path(document, path).is_none())
    }
}

/// Numbers of different types are the same when their values are.
fn is_same(current: RawBsonRef<'_>, value: &Bson) -> bool {
    let number = |value: &Bson| match value {
        Bson::Int32(number) => Some(f64::from(*number)),
        Bson::Int64(number) => Some(*number as f64),
        Bson::Double(number) => Some(*number),
        _ => None,
    };
    match (current, value) {
        // Most values are texts: they are not copied only to be compared.
        (RawBsonRef::String(current), Bson::String(value)) => current == value,
        _ => Bson::try_from(current).is_ok_and(|current| {
            let numbers = number(&current).zip(number(value));
            current == *value || numbers.is_some_and(|(current, value)| current.total_cmp(&value).is_eq())
        }),
    }
}

/// Makes a result into what is to be written. On failure says which field it was, and nothing of the value.
pub(super) fn apply<'a>(mapping: &'a [Mapped], result: &Value) -> Result<Changes<'a>, String> {
    let mut changes = Changes::default();
    for Mapped { to, origin, type_, on_null } in mapping {
        let value = match origin {
            Origin::Result(path) => path.resolve(result).ok(),
            Origin::Constant(value) => Some(value),
        };
        match value {
            Some(value) if !value.is_null() => {
                let converted = convert(value, *type_)
                    .ok_or_else(|| format!("the value for {to} cannot be made into {type_:?}"))?;
                changes.set.push((to, converted));
            }
            _ => match on_null {
                OnNull::Skip => {}
                OnNull::Unset => changes.unset.push(to),
                OnNull::Set => changes.set.push((to, Bson::Null)),
            },
        }
    }
    Ok(changes)
}

/// A value as the type that is wanted. `None`: it cannot be made into that.
pub(super) fn convert(value: &Value, type_: FieldType) -> Option<Bson> {
    let text = value.as_str();
    Some(match type_ {
        FieldType::Any => plain(value),
        FieldType::String => match value {
            Value::String(text) => Bson::String(text.clone()),
            Value::Number(_) | Value::Bool(_) => Bson::String(value.to_string()),
            _ => return None,
        },
        FieldType::Int => integer(value.as_i64().or_else(|| text?.parse().ok())?),
        FieldType::Double => Bson::Double(value.as_f64().or_else(|| text?.parse().ok())?),
        FieldType::Bool => Bson::Boolean(value.as_bool().or_else(|| text?.parse().ok())?),
        FieldType::Date => Bson::DateTime(DateTime::from_millis(date(text?)?.as_millisecond())),
        FieldType::ObjectId => Bson::ObjectId(ObjectId::parse_str(text?).ok()?),
    })
}

fn date(text: &str) -> Option<Timestamp> {
    let day = || text.parse::<civil::Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    text.parse().ok().or_else(day)
}

/// Small numbers as drivers of other languages write them.
fn integer(number: i64) -> Bson {
    i32::try_from(number).map_or(Bson::Int64(number), Bson::Int32)
}

/// The value as it is. Not as extended JSON: what a source sends must not become another type by looking like one.
fn plain(value: &Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(*value),
        Value::Number(number) => {
            number.as_i64().map_or_else(|| Bson::Double(number.as_f64().unwrap_or(f64::NAN)), integer)
        }
        Value::String(text) => Bson::String(text.clone()),
        Value::Array(items) => Bson::Array(items.iter().map(plain).collect()),
        Value::Object(fields) => {
            Bson::Document(fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::run::RunSpec;
    use bson::{doc, rawdoc};
    use serde_json::json;

    fn mapping(mapping: &Value) -> Vec<Mapped> {
        let spec = json!({"source": {"rest": {"endpoint": "https://a/{ids}"}}, "mapping": mapping});
        RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap().source.unwrap().mapping
    }

    #[test]
    fn each_type_is_made_from_what_apis_send() {
        let id = "65920080706565720000002a";
        let day = Timestamp::from_second(1_769_817_600).unwrap().as_millisecond();
        for (type_, value, expected) in [
            ("Any", json!({"a": [1, null, {"$oid": "x"}]}), Some(Bson::from(doc! {"a": [1, null, {"$oid": "x"}]}))),
            ("Any", json!(5_000_000_000_i64), Some(Bson::Int64(5_000_000_000))),
            ("String", json!(42), Some("42".into())),
            ("String", json!([]), None),
            ("Int", json!("42"), Some(Bson::Int32(42))),
            ("Int", json!(4.2), None),
            ("Double", json!("4.5"), Some(Bson::Double(4.5))),
            ("Bool", json!("true"), Some(Bson::Boolean(true))),
            ("Bool", json!("yes"), None),
            ("Date", json!("2026-01-31T01:00:00+01:00"), Some(Bson::DateTime(DateTime::from_millis(day)))),
            ("Date", json!("2026-01-31"), Some(Bson::DateTime(DateTime::from_millis(day)))),
            ("Date", json!(5), None),
            ("ObjectId", json!(id), Some(Bson::ObjectId(ObjectId::parse_str(id).unwrap()))),
            ("ObjectId", json!("short"), None),
        ] {
            let mapping = mapping(&json!([{"from": "/v", "to": "f", "type": type_}]));
            let got = apply(&mapping, &json!({"v": value})).ok().map(|changes| changes.set);
            assert_eq!(got, expected.map(|expected| vec![("f", expected)]), "{type_} {value}");
        }
    }

    #[test]
    fn a_failure_names_the_field_and_not_the_value() {
        let mapping = mapping(&json!([{"from": "/v", "to": "age", "type": "Int"}]));
        let error = apply(&mapping, &json!({"v": "secret"})).unwrap_err();
        assert_eq!(error, "the value for age cannot be made into Int");
    }

    #[test]
    fn a_value_that_is_not_there_is_skipped_unset_or_null() {
        for result in [json!({}), json!({"v": null})] {
            for (on_null, expected) in [
                ("Skip", Changes::default()),
                ("Unset", Changes { unset: vec!["f"], ..Changes::default() }),
                ("Set", Changes { set: vec![("f", Bson::Null)], ..Changes::default() }),
            ] {
                let mapping = mapping(&json!([{"from": "/v", "to": "f", "onNull": on_null}]));
                assert_eq!(apply(&mapping, &result).unwrap(), expected, "{on_null}");
            }
        }
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let changes = Changes { set: vec![("a", Bson::Int32(1)), ("b.c", "x".into())], unset: vec!["d"] };
        for (document, same) in [
            (rawdoc! {"a": 1.0, "b": {"c": "x"}}, true),
            (rawdoc! {"a": 1_i64, "b": {"c": "x"}, "other": 1}, true),
            (rawdoc! {"a": 2, "b": {"c": "x"}}, false),
            (rawdoc! {"a": 1, "b": "x"}, false),
            (rawdoc! {"a": 1, "b": {"c": "x"}, "d": null}, false),
        ] {
            assert_eq!(changes.are_in(&document), same, "{document:?}");
        }
    }
}
