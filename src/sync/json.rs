//! Parser for the JSON of servers. It accepts texts that a strict parser rejects, and does not round numbers.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde_json::Value;

/// First character of the text that represents a number which neither 64 bits nor a double can hold. It is a
/// noncharacter, which texts should not contain (<https://www.unicode.org/faq/private_use.html#nonchar1>); a text
/// that does is treated as such a number.
const TOO_LARGE: char = '\u{fdd0}';
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Replacement for half of a surrogate pair, as in other readers.
const REPLACEMENT: &[u8] = b"\\ufffd";

/// Largest number of values in an answer.
const MAX_VALUES: usize = 250_000;
/// Memory of a value, in bytes, without its text. In the answer, it can have as little as two bytes.
const VALUE: usize = 128;

/// Body that is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    /// The text is not JSON, or nested deeper than 128 levels.
    #[error(transparent)]
    NoJson(#[from] serde_json::Error),
    /// The text has more values than an answer may have.
    #[error("more than {max} JSON values", max = MAX_VALUES)]
    TooManyValues,
}

/// JSON of a body, in a form that `serde_json` reads, before it is parsed.
pub(super) struct Text<'a> {
    readable: Cow<'a, [u8]>,
    values: usize,
}

impl<'a> Text<'a> {
    /// Checks the text of a body. A byte order mark is left out, half of a surrogate pair becomes U+FFFD, and a number
    /// beyond 64 bits keeps its digits: see [`too_large`].
    ///
    /// # Errors
    /// When the text has too many values.
    pub fn new(body: &'a [u8]) -> Result<Self, Rejection> {
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
        if body.trim_ascii().is_empty() {
            return Ok(Self { readable: Cow::Borrowed(b""), values: 0 });
        }
        let (readable, values) = readable(body)?;
        Ok(Self { readable, values })
    }

    /// Memory that the values take, in bytes, without their texts.
    pub fn memory(&self) -> usize {
        self.values * VALUE
    }

    /// Parses the text. Of several members of one name the last counts. Returns `None` for a body without content.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub fn parse(&self) -> Result<Option<Value>, Rejection> {
        Ok(if self.values == 0 { None } else { serde_json::from_slice(&self.readable).map(Some)? })
    }
}

/// Reads JSON as [`Text`] does.
///
/// # Errors
/// When the text is not JSON, or has too many values.
#[cfg(test)]
pub(super) fn parse(body: &[u8]) -> Result<Option<Value>, Rejection> {
    Text::new(body)?.parse()
}

/// Returns the digits of a number that is too large for a number.
pub(super) fn too_large(value: &Value) -> Option<&str> {
    value.as_str()?.strip_prefix(TOO_LARGE)
}

/// Returns the same JSON with the parts that `serde_json` rejects or rounds in another form, and the number of values.
/// Counts them before they take memory: each follows a bracket, a brace or a comma, apart from the outermost one.
fn readable(body: &[u8]) -> Result<(Cow<'_, [u8]>, usize), Rejection> {
    let mut readable = Vec::new();
    let (mut copied, mut at, mut values) = (0, 0, 1);
    while at < body.len() {
        let (length, replacement) = match body[at] {
            b'"' => {
                at = string(body, at + 1, &mut copied, &mut readable);
                continue;
            }
            b'-' | b'0'..=b'9' => {
                let length = body[at..].iter().take_while(|byte| is_numeric(**byte)).count();
                (length, quoted(&body[at..at + length]))
            }
            b'[' | b'{' | b',' if values == MAX_VALUES => return Err(Rejection::TooManyValues),
            b'[' | b'{' | b',' => {
                values += 1;
                (1, None)
            }
            _ => (1, None),
        };
        if let Some(replacement) = replacement {
            readable.extend_from_slice(&body[copied..at]);
            readable.extend_from_slice(replacement.as_bytes());
            copied = at + length;
        }
        at += length;
    }
    if copied == 0 {
        return Ok((Cow::Borrowed(body), values));
    }
    readable.extend_from_slice(&body[copied..]);
    Ok((Cow::Owned(readable), values))
}

/// Reads a string from after its quotation mark on, and returns where it ends.
fn string(body: &[u8], mut at: usize, copied: &mut usize, readable: &mut Vec<u8>) -> usize {
    while let Some(byte) = body.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => match (surrogate(body, at), surrogate(body, at + 6)) {
                (Some(Surrogate::High), Some(Surrogate::Low)) => at += 12,
                (Some(_), _) => {
                    readable.extend_from_slice(&body[*copied..at]);
                    readable.extend_from_slice(REPLACEMENT);
                    at += 6;
                    *copied = at;
                }
                (None, _) => at += 2,
            },
            _ => at += 1,
        }
    }
    body.len()
}

#[derive(Clone, Copy)]
enum Surrogate {
    High,
    Low,
}

/// The half of a surrogate pair that is escaped at this position.
fn surrogate(body: &[u8], at: usize) -> Option<Surrogate> {
    let digits = body.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let digits =
        std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    match u16::from_str_radix(digits, 16).ok()? {
        0xd800..=0xdbff => Some(Surrogate::High),
        0xdc00..=0xdfff => Some(Surrogate::Low),
        _ => None,
    }
}

fn is_numeric(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

/// Text that represents a number, when no number type can hold it.
fn quoted(number: &[u8]) -> Option<String> {
    let is_integer = number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-');
    let has_exponent = || number.iter().any(|byte| matches!(byte, b'e' | b'E'));
    // Shorter ones fit, and most numbers are short.
    if (is_integer && number.len() < 19) || (!is_integer && number.len() < 300 && !has_exponent()) {
        return None;
    }
    let text = std::str::from_utf8(number).ok()?;
    let fits = if is_integer {
        text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok()
    } else {
        text.parse::<f64>().is_ok_and(f64::is_finite)
    };
    // What is no number stays, to be rejected.
    let is_number = || serde_json::from_str::<IgnoredAny>(text).is_ok();
    (!fits && is_number()).then(|| format!("\"{TOO_LARGE}{text}\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_from_the_wild_is_read() {
        for (body, expected) in [
            ("\u{feff}{\"a\": 1}", json!({"a": 1})),
            ("null", Value::Null),
            (r#"["\ud83d\ude00"]"#, json!(["\u{1f600}"])),
            (
                r#"["\ud83d", "a\ude00b", "\ud83dx", "\ud83d\ud83d\ude00"]"#,
                json!(["\u{fffd}", "a\u{fffd}b", "\u{fffd}x", "\u{fffd}\u{1f600}"]),
            ),
            (r#"["\\ud83d", "\"1e400\""]"#, json!(["\\ud83d", "\"1e400\""])),
            (r#"{"a": 1, "b": 2, "a": 3}"#, json!({"a": 3, "b": 2})),
            ("[18446744073709551615, -9223372036854775808, 1.5e300]", json!([u64::MAX, i64::MIN, 1.5e300])),
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap(), Some(expected), "{body}");
        }
        for body in ["", " \n", "\u{feff}"] {
            assert_eq!(parse(body.as_bytes()).unwrap(), None, "{body:?}");
        }
    }

    #[test]
    fn numbers_that_fit_nowhere_keep_their_digits() {
        for number in
            ["18446744073709551616", "-9223372036854775809", "1e400", "-1E+999", "123456789012345678901234567890"]
        {
            let value = parse(format!("{{\"n\": {number}, \"m\": 1}}").as_bytes()).unwrap().unwrap();
            assert_eq!((too_large(&value["n"]), &value["m"]), (Some(number), &json!(1)), "{number}");
        }
        assert_eq!(too_large(&json!("1e400")), None);
    }

    #[test]
    fn an_answer_with_too_many_values_is_rejected() {
        let list = |item: &str, count: usize| format!("[{}]", vec![item; count].join(","));
        for (body, fits) in [
            (list("0", MAX_VALUES - 1), true),
            (list("0", MAX_VALUES), false),
            (list(r#"{"a":1}"#, 124_999), true),
            (list(r#"{"a":1}"#, 125_000), false),
            (list("[", 250_000), false),
            (format!("[\"{}\"]", ",[{".repeat(MAX_VALUES)), true),
        ] {
            let parsed = parse(body.as_bytes());
            assert_eq!(parsed.is_ok(), fits, "{body:.20}");
            assert!(fits || matches!(parsed, Err(Rejection::TooManyValues)), "{body:.20}");
        }
    }

    #[test]
    fn what_is_no_json_is_rejected() {
        let deep = "[".repeat(129) + &"]".repeat(129);
        for body in [
            "{",
            "{'a': 1}",
            "[1e]",
            "[--18446744073709551616]",
            "[018446744073709551616]",
            "\"\\ud83d",
            "\"a\\",
            &deep,
        ] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
        assert!(parse(b"\"\xff\"").is_err());
    }
}
