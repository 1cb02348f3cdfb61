//! Types of YAML scalars, as kubectl and the API server resolve them.
//!
//! Both read YAML by <https://github.com/yaml/go-yaml/blob/v2.4.4/resolve.go> and convert it to JSON. That is YAML 1.1
//! without sexagesimal numbers and with `0o` for octal ones. JSON knows one type of number, so `1.0` becomes an integer.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Number, Value};

/// Least floating-point number that is written with an exponent in JSON, so that it is not an integer.
const EXPONENT: f64 = 1e21;

/// A tag of a scalar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// A tag of YAML's own types, such as `int` for `!!int`.
    Core(String),
    /// Any other tag: the scalar is a string.
    Custom,
}

/// Resolves a scalar. `is_plain`: it is written without quotes, and not as a block.
///
/// # Errors
/// When the text does not have the type of the tag, or JSON has no such value.
pub(super) fn resolve(text: &str, is_plain: bool, tag: Option<&Tag>) -> Result<Value, String> {
    match tag {
        None if is_plain => untagged(text),
        None | Some(Tag::Custom) => Ok(Value::from(text)),
        Some(Tag::Core(name)) => tagged(text, name),
    }
}

fn tagged(text: &str, tag: &str) -> Result<Value, String> {
    let mismatch = || format!("{text:?} is not of the type that its tag !!{tag} names: remove the tag");
    match tag {
        "binary" => {
            let decoded = BASE64_STANDARD.decode(text).map_err(|_| mismatch())?;
            String::from_utf8(decoded).map(Value::from).map_err(|_| mismatch())
        }
        "null" | "bool" | "int" | "float" => {
            let value = untagged(text)?;
            let is_of_type = match tag {
                "null" => value.is_null(),
                "bool" => value.is_boolean(),
                "int" => value.is_i64() || value.is_u64(),
                _ => value.is_number(),
            };
            if is_of_type { Ok(value) } else { Err(mismatch()) }
        }
        _ => Ok(Value::from(text)),
    }
}

fn untagged(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Ok(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Ok(Value::from(true)),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Ok(Value::from(false)),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => Err(format!("{text} is a number that JSON does not have: quote it, or write another number")),
        _ => Ok(number(text).map_or_else(|| Value::from(text), Value::Number)),
    }
}

fn number(text: &str) -> Option<Number> {
    match text.as_bytes().first()? {
        b'.' => float(text),
        b'+' | b'-' | b'0'..=b'9' => {
            let digits = text.replace('_', "");
            integer(&digits).or_else(|| float(&digits))
        }
        _ => None,
    }
}

/// An integer as Go's `strconv.ParseInt` reads it with base 0: a leading `0` means octal.
fn integer(text: &str) -> Option<Number> {
    let (is_negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = |prefix| lower.strip_prefix(prefix).filter(|rest| !rest.is_empty());
    let (digits, radix) = if let Some(rest) = prefixed("0x") {
        (rest, 16)
    } else if let Some(rest) = prefixed("0o") {
        (rest, 8)
    } else if let Some(rest) = prefixed("0b") {
        (rest, 2)
    } else if let Some(rest) = prefixed("0") {
        (rest, 8)
    } else {
        (lower.as_str(), 10)
    };
    // Rust takes a second sign.
    if !digits.bytes().all(|digit| digit.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let value = if is_negative { -magnitude } else { magnitude };
    match i64::try_from(value) {
        Ok(value) => Some(Number::from(value)),
        // Unsigned ones have no sign in Go, and the API server keeps only integers of 64 bits with a sign.
        Err(_) if text.starts_with(|first: char| first.is_ascii_digit()) => Number::from_f64(magnitude as f64),
        Err(_) => None,
    }
}

fn float(text: &str) -> Option<Number> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let value = text.parse::<f64>().ok().filter(|value| is_decimal && value.is_finite())?;
    let whole = (value.fract() == 0.0 && value.abs() < EXPONENT).then(|| format!("{value}").parse::<i64>().ok());
    whole.flatten().map(Number::from).or_else(|| Number::from_f64(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain(text: &str) -> Value {
        resolve(text, true, None).unwrap()
    }

    #[test]
    fn plain_scalars_are_read_as_yaml_1_1() {
        for (text, value) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("NULL", json!(null)),
            ("nULL", json!("nULL")),
            ("y", json!(true)),
            ("On", json!(true)),
            ("oN", json!("oN")),
            ("no", json!(false)),
            ("OFF", json!(false)),
            ("5", json!(5)),
            ("+5", json!(5)),
            ("-5", json!(-5)),
            ("--5", json!("--5")),
            ("+-5", json!("+-5")),
            ("0777", json!(511)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("0b11", json!(3)),
            ("-0b11", json!(-3)),
            ("08", json!(8)),
            ("0", json!(0)),
            ("00", json!(0)),
            ("0x", json!("0x")),
            ("1_000", json!(1000)),
            ("1:30", json!("1:30")),
            ("1.0", json!(1)),
            ("1e2", json!(100)),
            ("1e21", json!(1e21)),
            ("1e400", json!("1e400")),
            (".5", json!(0.5)),
            ("5.", json!(5)),
            ("-.5", json!(-0.5)),
            (".", json!(".")),
            ("-", json!("-")),
            ("1.5.2", json!("1.5.2")),
            ("inf", json!("inf")),
            ("9223372036854775807", json!(i64::MAX)),
            ("18446744073709551615", json!(18_446_744_073_709_551_615_f64)),
            ("2026-11-30", json!("2026-11-30")),
            ("20m", json!("20m")),
            ("<<", json!("<<")),
        ] {
            assert_eq!(plain(text), value, "{text:?}");
        }
        assert!(resolve(".nan", true, None).unwrap_err().contains("quote it"));
    }

    #[test]
    fn quotes_and_tags_decide_the_type() {
        let core = |name: &str| Some(Tag::Core(name.to_owned()));
        for (text, is_plain, tag, value) in [
            ("5", false, None, Some(json!("5"))),
            ("yes", false, None, Some(json!("yes"))),
            ("5", true, core("str"), Some(json!("5"))),
            ("5", false, core("int"), Some(json!(5))),
            ("x", true, core("int"), None),
            ("yes", true, core("bool"), Some(json!(true))),
            ("1", true, core("bool"), None),
            ("aGk=", true, core("binary"), Some(json!("hi"))),
            ("5", true, Some(Tag::Custom), Some(json!("5"))),
        ] {
            assert_eq!(resolve(text, is_plain, tag.as_ref()).ok(), value, "{text:?} {tag:?}");
        }
    }
}
