//! Mapping of the result of a source to the fields of a document.

use std::borrow::Cow;

use bson::{Bson, DateTime, Decimal128, RawBsonRef, RawDocument, Uuid, oid::ObjectId};
use jiff::{Timestamp, civil, fmt::rfc2822, tz::TimeZone};
use serde_json::Value;

use super::{json, keys};
use crate::{
    api::source::{FieldType, OnNull},
    domain::source::{Mapped, ValueOrigin},
};

/// Largest whole number up to which doubles have no gaps.
const EXACT: u64 = 1 << 53;

/// Changes of one document, by path.
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

/// True when the document's value is the wanted one. Numbers of different types are the same when their values are.
fn is_same(current: RawBsonRef<'_>, value: &Bson) -> bool {
    match (current, value) {
        // Most values are texts: they are not copied only to be compared.
        (RawBsonRef::String(current), Bson::String(value)) => current == value,
        _ => Bson::try_from(current).is_ok_and(|current| current == *value || is_same_number(&current, value)),
    }
}

fn is_same_number(a: &Bson, b: &Bson) -> bool {
    match (a, b) {
        (Bson::Double(a), Bson::Double(b)) => a.total_cmp(b).is_eq(),
        (Bson::Double(double), whole) | (whole, Bson::Double(double)) => {
            whole_number(whole).is_some_and(|whole| whole_double(*double) == Some(whole))
        }
        _ => whole_number(a).is_some_and(|a| whole_number(b) == Some(a)),
    }
}

fn whole_number(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        _ => None,
    }
}

/// The whole number that a double is, exactly. `None` also beyond 64 bits.
pub(super) fn whole_double(double: f64) -> Option<i64> {
    // The first double that no longer fits.
    const END: f64 = 9_223_372_036_854_775_808.0;
    (double.fract() == 0.0 && (-END..END).contains(&double)).then_some(double as i64)
}

/// Converts a result into changes. An error names the field, and not its value.
pub(super) fn apply<'a>(mapping: &'a [Mapped], result: &Value) -> Result<Changes<'a>, String> {
    let mut changes = Changes::default();
    for Mapped { to, origin, type_, zone, on_null } in mapping {
        let value = match origin {
            ValueOrigin::Result(path) => path.resolve(result).ok(),
            ValueOrigin::Constant(value) => Some(value),
        };
        match value {
            Some(value) if !value.is_null() => {
                let converted = convert(value, *type_, zone)
                    .ok_or_else(|| format!("the value for {to} cannot be converted to {type_} without loss"))?;
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

/// A constant of the spec.
pub(super) fn constant(value: &Value) -> Bson {
    plain(value).unwrap_or(Bson::Null)
}

/// Converts a value, exactly. `zone` is the time zone of dates without one. Returns `None` where it cannot be
/// converted, or would lose something.
pub(super) fn convert(value: &Value, type_: FieldType, zone: &TimeZone) -> Option<Bson> {
    let text = value.as_str();
    Some(match type_ {
        FieldType::Any => plain(value)?,
        FieldType::String => match (json::too_large(value), value) {
            (Some(digits), _) => Bson::String(digits.to_owned()),
            (None, Value::String(text)) => Bson::String(text.clone()),
            (None, Value::Number(_) | Value::Bool(_)) => Bson::String(value.to_string()),
            _ => return None,
        },
        FieldType::Int => integer(whole(value)?),
        FieldType::Double => Bson::Double(double(value)?),
        FieldType::Decimal => Bson::Decimal128(decimal(value)?),
        FieldType::Bool => Bson::Boolean(value.as_bool().or_else(|| text?.parse().ok())?),
        FieldType::Date => Bson::DateTime(moment(date(text?, zone)?)),
        FieldType::EpochSeconds => Bson::DateTime(moment(since_epoch(value, 1000)?)),
        FieldType::EpochMillis => Bson::DateTime(moment(since_epoch(value, 1)?)),
        FieldType::ObjectId => Bson::ObjectId(ObjectId::parse_str(text?).ok()?),
        FieldType::Uuid => Bson::from(Uuid::parse_str(text?).ok()?),
    })
}

/// A whole number, from a number without a fraction or a text that is one.
fn whole(value: &Value) -> Option<i64> {
    let double = |double: f64| whole_double(double).filter(|whole| whole.unsigned_abs() <= EXACT);
    match value {
        Value::Number(number) if number.is_f64() => double(number.as_f64()?),
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok().or_else(|| double(finite(text)?)),
        _ => None,
    }
}

/// A double, from a number or a text. A whole number that no double is equal to is none.
fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) if number.is_f64() => number.as_f64(),
        Value::Number(number) => {
            let double = number.as_f64()?;
            // Doubles of this size are whole.
            (double as i128 == number.as_i128()?).then_some(double)
        }
        Value::String(text) => finite(text),
        _ => None,
    }
}

fn finite(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|number| number.is_finite())
}

/// A decimal of at most 34 digits, from a number or a text.
fn decimal(value: &Value) -> Option<Decimal128> {
    let text: Cow<'_, str> = match value {
        Value::Number(number) => number.to_string().into(),
        Value::String(text) => json::too_large(value).unwrap_or(text).into(),
        _ => return None,
    };
    // It would also read infinities, and nothing at all.
    let is_number = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    (is_number && text.parse::<f64>().is_ok()).then(|| text.parse().ok())?
}

/// Parses a date: RFC 3339, also with a blank instead of the T, and RFC 2822. A text without a zone is in `zone`, and a
/// date without a time is midnight in this zone. A time that the clocks show twice is the first of the two. A time that
/// the clocks skip is later by the skipped time.
fn date(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let local = || text.parse::<civil::DateTime>().ok()?.to_zoned(zone.clone()).ok().map(|zoned| zoned.timestamp());
    let mail = || rfc2822::parse(text).ok().map(|zoned| zoned.timestamp());
    text.parse().ok().or_else(local).or_else(mail)
}

/// Converts a number or a text to a time since the epoch, in units of `millis` milliseconds.
fn since_epoch(value: &Value, millis: i64) -> Option<Timestamp> {
    let whole = whole(value).map(|whole| whole.checked_mul(millis));
    let millis = match whole {
        Some(millis) => millis?,
        None => (double(value)? * millis as f64).round() as i64,
    };
    Timestamp::from_millisecond(millis).ok()
}

fn moment(at: Timestamp) -> DateTime {
    DateTime::from_millis(at.as_millisecond())
}

/// Small numbers as drivers of other languages write them.
fn integer(number: i64) -> Bson {
    i32::try_from(number).map_or(Bson::Int64(number), Bson::Int32)
}

/// Returns the value without a conversion. Not as extended JSON: what a source sends must not become another type by
/// looking like one. `None` for a number beyond 64 bits, and for a name with NUL, which MongoDB does not store.
fn plain(value: &Value) -> Option<Bson> {
    Some(match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(*value),
        Value::Number(number) if number.is_f64() => Bson::Double(number.as_f64()?),
        Value::Number(number) => integer(number.as_i64()?),
        Value::String(_) if json::too_large(value).is_some() => return None,
        Value::String(text) => Bson::String(text.clone()),
        Value::Array(items) => Bson::Array(items.iter().map(plain).collect::<Option<_>>()?),
        Value::Object(fields) if fields.keys().any(|name| name.contains('\0')) => return None,
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| Some((name.clone(), plain(value)?));
            Bson::Document(fields.iter().map(field).collect::<Option<_>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::run::RunSpec;
    use bson::{RawDocumentBuf, doc, rawdoc};
    use serde_json::json;

    fn mapping(mapping: &Value) -> Vec<Mapped> {
        let spec = json!({"source": {"rest": {"endpoint": "https://a/{ids}"}}, "mapping": mapping});
        RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap().source.unwrap().mapping
    }

    fn converted(type_: &str, zone: &str, value: &Value) -> Option<Bson> {
        let mut field = json!({"from": "/v", "to": "f", "type": type_});
        if type_ == "Date" {
            field["timeZone"] = json!(zone);
        }
        let mapping = mapping(&json!([field]));
        let changes = apply(&mapping, &json!({"v": value})).ok()?;
        changes.set.into_iter().map(|(_, value)| value).next()
    }

    #[test]
    fn values_are_converted_exactly_or_not_at_all() {
        let (id, uuid) = ("65920080706565720000002a", "123e4567-e89b-12d3-a456-426614174000");
        let too_large = |number: &str| json::parse(number.as_bytes()).unwrap().unwrap();
        let decimal = |text: &str| Some(Bson::Decimal128(text.parse().unwrap()));
        for (type_, value, expected) in [
            ("Any", json!({"a": [1, null, {"$oid": "x"}]}), Some(Bson::from(doc! {"a": [1, null, {"$oid": "x"}]}))),
            ("Any", json!(5_000_000_000_i64), Some(Bson::Int64(5_000_000_000))),
            ("Any", json!(1.0), Some(Bson::Double(1.0))),
            ("Any", json!(u64::MAX), None),
            ("Any", json!([{"a": u64::MAX}]), None),
            ("Any", too_large("1e400"), None),
            ("Any", json!({"a\u{0}b": 1}), None),
            ("String", json!(42), Some("42".into())),
            ("String", json!(u64::MAX), Some("18446744073709551615".into())),
            ("String", too_large("18446744073709551616"), Some("18446744073709551616".into())),
            ("String", json!([]), None),
            ("Int", json!("42"), Some(Bson::Int32(42))),
            ("Int", json!(12.0), Some(Bson::Int32(12))),
            ("Int", json!("12.0"), Some(Bson::Int32(12))),
            ("Int", json!(i64::MIN), Some(Bson::Int64(i64::MIN))),
            ("Int", json!(u64::MAX), None),
            ("Int", json!(1e17), None),
            ("Int", json!(4.2), None),
            ("Double", json!("4.5"), Some(Bson::Double(4.5))),
            ("Double", json!(9_007_199_254_740_992_i64), Some(Bson::Double(9_007_199_254_740_992.0))),
            ("Double", json!(9_007_199_254_740_993_i64), None),
            ("Double", json!("inf"), None),
            ("Double", json!("nan"), None),
            ("Double", too_large("1e400"), None),
            ("Decimal", json!("19.990"), decimal("19.990")),
            ("Decimal", json!(19.99), decimal("19.99")),
            ("Decimal", json!(u64::MAX), decimal("18446744073709551615")),
            ("Decimal", too_large("123456789012345678901234567890"), decimal("123456789012345678901234567890")),
            ("Decimal", json!("1.23456789012345678901234567890123456"), None),
            ("Decimal", json!("NaN"), None),
            ("Decimal", json!(""), None),
            ("Bool", json!("true"), Some(Bson::Boolean(true))),
            ("Bool", json!("yes"), None),
            ("ObjectId", json!(id), Some(Bson::ObjectId(ObjectId::parse_str(id).unwrap()))),
            ("ObjectId", json!("short"), None),
            ("UUID", json!(uuid), Some(Uuid::parse_str(uuid).unwrap().into())),
            ("UUID", json!(uuid.replace('-', "")), Some(Uuid::parse_str(uuid).unwrap().into())),
            ("UUID", json!("short"), None),
        ] {
            assert_eq!(converted(type_, "UTC", &value), expected, "{type_} {value}");
        }
    }

    #[test]
    fn dates_without_a_zone_are_in_that_of_the_mapping() {
        for (type_, zone, value, expected) in [
            ("Date", "UTC", json!("2026-01-31T01:00:00+01:00"), Some("2026-01-31T00:00:00Z")),
            ("Date", "UTC", json!("2026-01-31 01:00:00Z"), Some("2026-01-31T01:00:00Z")),
            ("Date", "UTC", json!("2023-01-31T18:30:30"), Some("2023-01-31T18:30:30Z")),
            ("Date", "UTC", json!("2023-01-31 18:30:30.1239"), Some("2023-01-31T18:30:30.123Z")),
            ("Date", "UTC", json!("2026-01-31"), Some("2026-01-31T00:00:00Z")),
            ("Date", "UTC", json!("Sat, 31 Jan 2026 10:00:00 +0100"), Some("2026-01-31T09:00:00Z")),
            ("Date", "Europe/Berlin", json!("2026-01-31T18:30:30"), Some("2026-01-31T17:30:30Z")),
            ("Date", "Europe/Berlin", json!("2026-07-31"), Some("2026-07-30T22:00:00Z")),
            ("Date", "Europe/Berlin", json!("2026-07-31T10:00:00Z"), Some("2026-07-31T10:00:00Z")),
            // Shown twice, and skipped.
            ("Date", "Europe/Berlin", json!("2026-10-25T02:30:00"), Some("2026-10-25T00:30:00Z")),
            ("Date", "Europe/Berlin", json!("2026-03-29T02:30:00"), Some("2026-03-29T01:30:00Z")),
            ("Date", "UTC", json!("31.01.2026"), None),
            ("Date", "UTC", json!("2026-01-31T25:00:00"), None),
            ("Date", "UTC", json!(1_769_817_600), None),
            ("EpochSeconds", "UTC", json!(1_769_817_600), Some("2026-01-31T00:00:00Z")),
            ("EpochSeconds", "UTC", json!(1_769_817_600.25), Some("2026-01-31T00:00:00.25Z")),
            ("EpochSeconds", "UTC", json!("1769817600"), Some("2026-01-31T00:00:00Z")),
            ("EpochSeconds", "UTC", json!(-1), Some("1969-12-31T23:59:59Z")),
            ("EpochSeconds", "UTC", json!(i64::MAX), None),
            ("EpochMillis", "UTC", json!(1_769_817_600_001_i64), Some("2026-01-31T00:00:00.001Z")),
            ("EpochMillis", "UTC", json!("soon"), None),
        ] {
            let expected = expected.map(|text| Bson::DateTime(moment(text.parse().unwrap())));
            assert_eq!(converted(type_, zone, &value), expected, "{type_} {zone} {value}");
        }
    }

    #[test]
    fn a_failure_names_the_field_and_not_the_value() {
        let mapping = mapping(&json!([{"from": "/v", "to": "age", "type": "Int"}]));
        let error = apply(&mapping, &json!({"v": "secret"})).unwrap_err();
        assert_eq!(error, "the value for age cannot be converted to Int without loss");
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

    #[test]
    fn numbers_are_the_same_when_their_values_are() {
        let large = 9_007_199_254_740_993_i64;
        for (current, value, same) in [
            (Bson::Int32(7), Bson::Int64(7), true),
            (Bson::Double(7.0), Bson::Int32(7), true),
            (Bson::Double(7.5), Bson::Int32(7), false),
            (Bson::Int64(large), Bson::Int64(large - 1), false),
            (Bson::Double((large - 1) as f64), Bson::Int64(large), false),
            (Bson::Double((large - 1) as f64), Bson::Int64(large - 1), true),
            (Bson::Double(f64::NAN), Bson::Double(f64::NAN), true),
            (Bson::Double(1e300), Bson::Int64(i64::MAX), false),
            (Bson::String("7".into()), Bson::Int32(7), false),
        ] {
            let document = RawDocumentBuf::try_from(&doc! {"v": current.clone()}).unwrap();
            let read = document.get("v").unwrap().unwrap();
            assert_eq!(is_same(read, &value), same, "{current} {value}");
        }
    }
}
