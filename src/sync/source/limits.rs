//! The limits that servers declare in their answers.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822};
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use serde_json::Value;

/// Longest pause that a server can ask for.
const MAX_PAUSE: Duration = Duration::from_hours(1);
/// Pause after GitHub's secondary limit, which comes without a header
/// (<https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api>).
pub(super) const SECONDARY_PAUSE: Duration = Duration::from_mins(1);
/// Numbers from this one on are seconds since the epoch (September 2001); lower ones are seconds from now.
const FIRST_EPOCH_SECOND: f64 = 1e9;
/// Numbers from this one on are milliseconds since the epoch.
const FIRST_EPOCH_MILLISECOND: f64 = 1e11;
/// Prefixes of the pair of headers `…-Remaining` and `…-Reset`: of the IETF drafts and GitLab, of GitHub and most others, of Okta
/// and Twitter.
const FAMILIES: [&str; 3] = ["ratelimit", "x-ratelimit", "x-rate-limit"];
/// Codes by which GraphQL servers reject a request for its rate.
const GRAPH_QL_CODES: [&str; 4] = ["RATE_LIMITED", "RATE_LIMIT", "THROTTLED", "TOO_MANY_REQUESTS"];

/// Returns for how long the server wants no more requests: `Retry-After` (RFC 9110, section 10.2.3), or, once no more
/// requests are left, the time until the limit is reset. It comes in the headers `…-Remaining` and `…-Reset`, or in the
/// field `RateLimit` of the IETF drafts (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>). `now` counts where the answer has no
/// `Date` of its own. From 1 s to 1 h.
pub(crate) fn pause(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let now = text(headers, DATE.as_str()).and_then(http_date).unwrap_or(now);
    let pause = retry_after(headers, now)
        .or_else(|| FAMILIES.iter().find_map(|family| until_reset(headers, family, now)))
        .or_else(|| text(headers, "ratelimit").and_then(rate_limit_field))?;
    Some(pause.clamp(Duration::from_secs(1), MAX_PAUSE))
}

/// True when the body says that the request was rejected for its rate: GitHub's secondary limit comes as 403 without a
/// header, and GraphQL servers answer with 200 or 400.
pub(super) fn is_rate_limit(body: &Value) -> bool {
    let message = body.get("message").and_then(Value::as_str).unwrap_or_default();
    let errors = body.get("errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    message.to_ascii_lowercase().contains("rate limit") || errors.iter().any(is_rate_limit_error)
}

fn is_rate_limit_error(error: &Value) -> bool {
    let codes = ["/extensions/code", "/type", "/errorType", "/code"].into_iter().filter_map(|path| error.pointer(path));
    codes.filter_map(Value::as_str).any(|code| GRAPH_QL_CODES.iter().any(|known| code.eq_ignore_ascii_case(known)))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = text(headers, RETRY_AFTER.as_str())?;
    number(value).map(seconds).or_else(|| Some(between(now, http_date(value)?)))
}

fn until_reset(headers: &HeaderMap, family: &str, now: Timestamp) -> Option<Duration> {
    let remaining = text(headers, &format!("{family}-remaining")).and_then(number)?;
    if remaining > 0.0 {
        return None;
    }
    let after = text(headers, &format!("{family}-reset-after")).and_then(number).map(seconds);
    after.or_else(|| reset(text(headers, &format!("{family}-reset"))?, now))
}

/// The time until a reset, which servers write as seconds from now, as seconds or milliseconds since the epoch, or as a date.
fn reset(value: &str, now: Timestamp) -> Option<Duration> {
    let Some(number) = number(value) else {
        return Some(between(now, value.parse().ok().or_else(|| http_date(value))?));
    };
    let since_epoch = match number {
        _ if number >= FIRST_EPOCH_MILLISECOND => number / 1000.0,
        _ if number >= FIRST_EPOCH_SECOND => number,
        _ => return Some(seconds(number)),
    };
    Some(seconds(since_epoch - now.as_second() as f64))
}

/// Reads the field `RateLimit`: `"default";r=0;t=30`, or `limit=10, remaining=0, reset=30` of the earlier drafts. Of several
/// limits that are used up, the longest counts.
fn rate_limit_field(value: &str) -> Option<Duration> {
    let parameter = |part: &str, names: &[&str]| {
        let (name, value) = part.split_once('=')?;
        names.iter().any(|known| name.trim().eq_ignore_ascii_case(known)).then(|| number(value.trim()))?
    };
    let used_up = |limit: &str, separator: char| {
        let find = |names: &[&str]| limit.split(separator).find_map(|part| parameter(part, names));
        let (remaining, reset) = (find(&["r", "remaining"])?, find(&["t", "reset"])?);
        (remaining <= 0.0).then_some(seconds(reset))
    };
    if value.contains(';') {
        value.split(',').filter_map(|limit| used_up(limit, ';')).max()
    } else {
        used_up(value, ',')
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|number| number.is_finite())
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, MAX_PAUSE.as_secs_f64()).ceil())
}

fn between(now: Timestamp, then: Timestamp) -> Duration {
    then.duration_since(now).try_into().unwrap_or_default()
}

fn http_date(text: &str) -> Option<Timestamp> {
    rfc2822::parse(text).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;
    use serde_json::json;

    #[test]
    fn limits_are_read_as_servers_send_them() {
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        let pause = |given: &[(&'static str, &str)]| {
            let header =
                |(name, value): &(&'static str, &str)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap());
            pause(&given.iter().map(header).collect(), now).map(|pause| pause.as_secs())
        };
        for (given, expected) in [
            (&[("retry-after", "7")][..], Some(7)),
            (&[("retry-after", "0.4")], Some(1)),
            (&[("retry-after", "999999")], Some(3600)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "-5")], Some(1)),
            (&[("retry-after", "Mon, 21 Sep 2026 14:13:30 GMT")], Some(10)),
            // By the server's clock, which is an hour ahead.
            (&[("retry-after", "Mon, 21 Sep 2026 15:13:30 GMT"), ("date", "Mon, 21 Sep 2026 15:13:20 GMT")], Some(10)),
            (&[("ratelimit-remaining", "0"), ("ratelimit-reset", "1790000030")], Some(30)),
            (&[("ratelimit-remaining", "0"), ("ratelimit-reset", "30")], Some(30)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1790000005")], Some(5)),
            (&[("x-ratelimit-remaining", "0.0"), ("x-ratelimit-reset", "1790000005000")], Some(5)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "2026-09-21T14:13:40Z")], Some(20)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset-after", "2.5")], Some(3)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1789999990")], Some(1)),
            (&[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "1790000005")], None),
            (&[("x-rate-limit-remaining", "0"), ("x-rate-limit-reset", "1790000060")], Some(60)),
            (&[("ratelimit", "\"default\";r=0;t=30")], Some(30)),
            (&[("ratelimit", "\"burst\";r=0;t=5, \"daily\";r=0;t=90")], Some(90)),
            (&[("ratelimit", "\"burst\";r=1;t=5, \"daily\";r=20;t=90")], None),
            (&[("ratelimit", "limit=10, remaining=0, reset=12")], Some(12)),
            (&[("ratelimit", "limit=10, remaining=2, reset=12")], None),
            (&[("ratelimit", "nonsense")], None),
            (&[], None),
        ] {
            assert_eq!(pause(given), expected, "{given:?}");
        }
    }

    #[test]
    fn a_body_can_report_a_limit() {
        for (body, expected) in [
            (json!({"message": "You have exceeded a secondary rate limit. Please wait"}), true),
            (json!({"message": "API rate limit exceeded for 1.2.3.4"}), true),
            (json!({"message": "Must have admin rights"}), false),
            (json!({"errors": [{"type": "RATE_LIMITED"}]}), true),
            (json!({"errors": [{"extensions": {"code": "THROTTLED"}}]}), true),
            (json!({"errors": [{"message": "no"}]}), false),
            (json!([]), false),
        ] {
            assert_eq!(is_rate_limit(&body), expected, "{body}");
        }
    }
}
