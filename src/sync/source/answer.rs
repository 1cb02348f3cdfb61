//! Assignment of the parts of an answer to the requested documents.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
};

use bson::Bson;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::{Doubt, Found, MAX_NEXT, RequestFailure, limits, rejected};
use crate::{
    domain::source::{Asking, By, Pages, Request, SourceSpec},
    sync::{Error, keys, mapping},
};

/// Longest code of an error that is shown. Its message is not: it may quote documents.
const MAX_CODE: usize = 64;
/// Codes of GraphQL errors that another request may not meet, in lower case.
const TRANSIENT: [&str; 12] = [
    "internal_server_error",
    "internal_error",
    "service_unavailable",
    "service_error",
    "bad_gateway",
    "gateway_timeout",
    "timeout",
    "executiontimeout",
    "subrequest_http_error",
    "downstream_service_error",
    "unexpected",
    "postgres-error",
];
/// Codes of GraphQL errors that every request would meet, in lower case.
const PERMANENT: [&str; 16] = [
    "graphql_validation_failed",
    "graphql_parse_failed",
    "operation_resolution_failure",
    "bad_user_input",
    "bad_request",
    "unauthenticated",
    "unauthorized",
    "forbidden",
    "access-denied",
    "validation-failed",
    "validation_failed",
    "parse-failed",
    "undefinedfield",
    "argumentnotaccepted",
    "missingrequiredarguments",
    "variablemismatch",
];

/// Page of the results of a source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourcePage {
    /// Results of the page, by key.
    pub results: Vec<(Bson, Found)>,
    /// Number of further results whose keys cannot be read, so that their documents are unknown.
    pub unreadable: usize,
    /// The page after it.
    pub next: Option<Value>,
    /// Statement of the page about the end of the walk, for a page without a next one.
    pub end: End,
    /// Number of all results, as the source reports it.
    pub total: Option<u64>,
    /// Number of results that were on no earlier page. The walk fills it in.
    pub new: usize,
    /// Reason for which the walk does not prove that the source has no more results. The walk fills it in, for the
    /// last page.
    pub doubt: Option<Doubt>,
}

/// Statement about the end of a walk by a page without a next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// The page reports that it is the last one, or has no results.
    #[default]
    Stated,
    /// The page has no value at the path of the next page.
    Absent,
    /// The page reports more pages, but has no cursor or address for them.
    Stuck,
}

impl SourcePage {
    /// Keeps the results whose keys are in `only`, unless it is empty, and of these the first `count`.
    pub fn restrict(&mut self, only: &[String], count: usize) {
        if !only.is_empty() {
            self.results.retain(|(key, _)| only.contains(&keys::text(key)));
        }
        self.results.truncate(count);
    }
}

/// Sorts an answer by the requested keys. The answer is `None` when it has no content. Also returns whether a part of
/// it failed for a temporary reason.
pub(super) fn parse_answer(
    spec: &SourceSpec,
    keys: &[String],
    answer: Option<Value>,
) -> Result<(Vec<Found>, bool), RequestFailure> {
    let Some(mut answer) = answer else { return Ok((vec![Found::NotReturned; keys.len()], false)) };
    let errors = errors_of(spec, &answer)?.to_vec();
    let is_partial = errors.iter().any(|error| has_code(error, &TRANSIENT));
    let found = match spec.asking {
        Asking::PerUser(_) => vec![single(spec, &mut answer, &errors)?],
        _ => list(spec, keys, spec.result.resolve_mut(&mut answer).ok().map(Value::take), &errors)?,
    };
    Ok((found, is_partial))
}

/// Parses the page that was requested at `at`. `link`: next page from its headers. Also returns whether a part of it
/// failed for a reason that a retry may avoid.
pub(super) fn page(
    spec: &SourceSpec,
    pages: &Pages,
    at: &Value,
    mut answer: Value,
    link: Result<Value, End>,
) -> Result<(SourcePage, bool), RequestFailure> {
    let errors = errors_of(spec, &answer)?.to_vec();
    let is_partial = errors.iter().any(|error| has_code(error, &TRANSIENT));
    // Read before the list is taken out of the answer: the cursor may be inside it.
    let is_empty = spec.result.resolve(&answer).ok().and_then(Value::as_array).is_some_and(Vec::is_empty);
    let next = if pages.by == By::Link { Ok(link) } else { next(spec, pages, at, &answer, is_empty) };
    let total = pages.total.as_ref().and_then(|path| whole(path.resolve(&answer).ok()?));
    let (items, broken) = items(spec, spec.result.resolve_mut(&mut answer).ok().map(Value::take), &errors)?;
    let mut results: Vec<(Bson, Found)> = Vec::with_capacity(items.len());
    let (mut positions, mut unreadable) = (HashMap::new(), 0);
    for (position, item) in items.into_iter().enumerate() {
        let key = spec.key.resolve(&item).ok().filter(|key| key.is_string() || key.is_number());
        let Some(key) = key.and_then(|key| mapping::convert(key, spec.key_type, &TimeZone::UTC)) else {
            unreadable += 1;
            continue;
        };
        let found = broken.get(&position).map_or_else(|| Found::Result(item), |error| failed(error));
        match positions.entry(keys::text(&key)) {
            Entry::Vacant(entry) => {
                entry.insert(results.len());
                results.push((key, found));
            }
            Entry::Occupied(entry) if results[*entry.get()].1 != found => results[*entry.get()].1 = twice(),
            Entry::Occupied(_) => {}
        }
    }
    if results.is_empty() && unreadable > 0 {
        let field = spec.field("keyPath");
        return Err(unusable(&format!("none of its results has a usable key at {field} {}", spec.key)));
    }
    let (next, end) = match next? {
        Ok(next) => (Some(next), End::default()),
        Err(end) => (None, end),
    };
    Ok((SourcePage { results, unreadable, next, end, total, ..SourcePage::default() }, is_partial))
}

/// A number of results, as servers write it.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Next page, or the statement of this page about the end.
fn next(
    spec: &SourceSpec,
    pages: &Pages,
    at: &Value,
    answer: &Value,
    is_empty: bool,
) -> Result<Result<Value, End>, RequestFailure> {
    let more = match &pages.more {
        Some(path) => Some(path.resolve(answer).ok().and_then(is_more).ok_or_else(|| {
            let field = spec.field("pagination.morePath");
            unusable(&format!("it has no usable value at {field} {path}"))
        })?),
        None => None,
    };
    let By::Cursor(path) = &pages.by else {
        let next = more.unwrap_or(!is_empty).then(|| Value::from(at.as_u64().unwrap_or(0) + 1));
        return Ok(next.ok_or(End::Stated));
    };
    let no_cursor = || unusable(&format!("it has no new cursor at {} {path}", spec.field("pagination.nextPath")));
    let cursor = path.resolve(answer).ok();
    // An empty one asks for the first page again.
    let is_end = |cursor: &Value| matches!(cursor, Value::Null | Value::Bool(false)) || *cursor == "";
    match (more, cursor) {
        (Some(false), _) => Ok(Err(End::Stated)),
        (None, None) => Ok(Err(End::Absent)),
        (Some(true), None) => Ok(Err(End::Stuck)),
        (None, Some(cursor)) if is_end(cursor) => Ok(Err(End::Stated)),
        (Some(true), Some(cursor)) if is_end(cursor) => Ok(Err(End::Stuck)),
        (_, Some(cursor)) if cursor.as_str().is_some_and(|cursor| cursor.len() > MAX_NEXT) => {
            let field = spec.field("pagination.nextPath");
            Err(RequestFailure::Fatal(Error::BudgetExceeded(format!(
                "the cursor at {field} {path} has more than {MAX_NEXT} bytes: use pagination by Number or Link"
            ))))
        }
        (_, Some(cursor)) if cursor != at && (cursor.is_string() || cursor.is_number()) => Ok(Ok(cursor.clone())),
        _ => Err(no_cursor()),
    }
}

/// True when there are more pages: the value is a boolean, the address of the next page, or null.
fn is_more(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(is_more) => Some(*is_more),
        Value::Null => Some(false),
        Value::String(address) => Some(!address.is_empty()),
        _ => None,
    }
}

/// Returns the errors of single results, which are next to the data in an answer of GraphQL. `Err`: the answer has
/// other errors.
fn errors_of<'a>(spec: &SourceSpec, answer: &'a Value) -> Result<&'a [Value], RequestFailure> {
    if spec.request == Request::Rest {
        return Ok(&[]);
    }
    let errors = answer.get("errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let has_path = |error: &&Value| error.get("path").and_then(Value::as_array).is_some_and(|path| !path.is_empty());
    // No data, and an error that is no field's: the server did not begin with it. Some leave data out, as
    // https://spec.graphql.org/October2021/#sec-Response-Format wants it, some send null.
    let has_no_data = answer.get("data").is_none_or(Value::is_null);
    let Some(error) = errors.iter().find(|error| !has_path(error)) else {
        return if has_no_data && errors.is_empty() {
            Err(unusable("it is no answer to a GraphQL query"))
        } else {
            Ok(errors)
        };
    };
    let is_invalid = has_code(error, &PERMANENT) || (!has_code(error, &TRANSIENT) && error.get("locations").is_some());
    // One error without a path may concern any document.
    Err(if limits::is_rate_limit(answer) {
        RequestFailure::Limited(None)
    } else if has_no_data && is_invalid {
        RequestFailure::Fatal(rejected(&format!("the source rejects the query{}", describe(error))))
    } else {
        RequestFailure::Transient(unusable(&format!("it reports an error{}", describe(error))).into_error())
    })
}

/// Result for the one requested document. Only null at the path of the result means that the source does not have the
/// document. A missing part of the path is more likely a mistake, or a lack of rights.
fn single(spec: &SourceSpec, answer: &mut Value, errors: &[Value]) -> Result<Found, RequestFailure> {
    if let Some(error) = errors.iter().find(|error| concerns(spec, error)) {
        return Ok(failed(error));
    }
    let parent = spec.result.parent().and_then(|parent| parent.resolve(answer).ok());
    let is_empty_list = parent.and_then(Value::as_array).is_some_and(Vec::is_empty);
    let nothing = || unusable(&format!("it has no value at {} {}", spec.own_field("resultPath"), spec.result));
    match spec.result.resolve_mut(answer).map(Value::take) {
        Ok(Value::Null) => Ok(Found::Missing),
        Ok(Value::Array(items)) if items.is_empty() => {
            let field = spec.own_field("resultPath");
            Err(unusable(&format!("it has an empty list where one result should be: let {field} end in /0")))
        }
        Ok(result) => Ok(Found::Result(result)),
        // Such as the answer of a search by name.
        Err(_) if is_empty_list && spec.result.last().is_some_and(|token| token.encoded() == "0") => Ok(Found::Missing),
        Err(_) => Err(nothing()),
    }
}

/// The part of an error's path that follows the way to the results. `None`: it leads elsewhere.
fn path_in_results<'a>(spec: &SourceSpec, error: &'a Value) -> Option<&'a [Value]> {
    let path = error.get("path")?.as_array()?;
    // Paths of errors begin below the data.
    let way: Vec<_> = spec.result.tokens().skip(1).map(|token| token.decoded().into_owned()).collect();
    let is_same = |(step, token): (&Value, &String)| text(step).is_some_and(|step| step == *token);
    path.iter().zip(&way).all(is_same).then(|| path.get(way.len()..).unwrap_or_default())
}

/// True when an error is on the way to the results, or in them.
fn concerns(spec: &SourceSpec, error: &Value) -> bool {
    path_in_results(spec, error).is_some()
}

/// The list of results, and errors by their positions in it.
fn items<'a>(
    spec: &SourceSpec,
    result: Option<Value>,
    errors: &'a [Value],
) -> Result<(Vec<Value>, HashMap<usize, &'a Value>), RequestFailure> {
    let mut broken = HashMap::new();
    for error in errors {
        match path_in_results(spec, error).map(|path| path.first().and_then(Value::as_u64)) {
            Some(Some(item)) => drop(broken.entry(item as usize).or_insert(error)),
            // It ends before the list: then the list itself is broken.
            Some(None) => {
                let failure = unusable(&format!("it has no list of results{}", describe(error)));
                let is_transient = has_code(error, &TRANSIENT);
                return Err(if is_transient { RequestFailure::Transient(failure.into_error()) } else { failure });
            }
            None => {}
        }
    }
    let Some(Value::Array(items)) = result else {
        return Err(unusable(format!("it has no list at {} {}", spec.own_field("resultPath"), spec.result).trim_end()));
    };
    Ok((items, broken))
}

fn list(
    spec: &SourceSpec,
    keys: &[String],
    result: Option<Value>,
    errors: &[Value],
) -> Result<Vec<Found>, RequestFailure> {
    let (items, broken) = items(spec, result, errors)?;
    let mut wanted: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, key) in keys.iter().enumerate() {
        wanted.entry(key).or_default().push(at);
    }
    let mut found = vec![Found::NotReturned; keys.len()];
    let count = items.len();
    for (position, item) in items.into_iter().enumerate() {
        // An item that an error made null has no key. Where the list has one item for each key, its position
        // identifies the key.
        let by_position = || if item.is_null() && count == keys.len() { vec![position] } else { Vec::new() };
        let by_key = spec.key.resolve(&item).ok().and_then(text).and_then(|key| wanted.get(&*key).cloned());
        for at in by_key.unwrap_or_else(by_position) {
            found[at] = match (broken.get(&position), &found[at]) {
                (Some(error), _) => failed(error),
                (None, Found::NotReturned) if !item.is_null() => Found::Result(item.clone()),
                (None, Found::NotReturned) => Found::NotReturned,
                (None, Found::Result(first)) if *first == item => continue,
                (None, _) => twice(),
            };
        }
    }
    Ok(found)
}

/// A key as text, as documents' keys are compared with it.
pub(super) fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Number(number) => Some(number.to_string().into()),
        _ => None,
    }
}

/// True when an error has one of these codes, at one of the paths where servers write them.
fn has_code(error: &Value, codes: &[&str]) -> bool {
    let paths = ["/extensions/code", "/extensions/errorType", "/type", "/errorType"];
    let found = paths.into_iter().filter_map(|path| error.pointer(path)?.as_str());
    found.into_iter().any(|code| codes.contains(&code.to_ascii_lowercase().as_str()))
}

/// Result of a document with two results, of which either may be wrong.
fn twice() -> Found {
    Found::Failed("DuplicateResult", "the source gave two different results for it".to_owned())
}

fn failed(error: &Value) -> Found {
    Found::Failed("SourceError", format!("the source has an error for it{}", describe(error)))
}

pub(super) fn unusable(why: &str) -> RequestFailure {
    RequestFailure::Unusable(Error::Attempt {
        reason: "BadAnswer",
        message: format!("the source's answer cannot be used: {why}"),
    })
}

/// Description of an error that does not repeat its message: its code, and its position in the query.
fn describe(error: &Value) -> String {
    let is_word = |code: &&str| {
        code.len() <= MAX_CODE && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    let code = error.pointer("/extensions/code").and_then(Value::as_str).filter(is_word);
    let location = |name| error.pointer("/locations/0").and_then(|location| location.get(name)).and_then(Value::as_u64);
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    match (location("line"), location("column")) {
        (Some(line), Some(column)) => format!("{code} at line {line}, column {column} of source.graphQL.query"),
        _ => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::source::manifest, domain::run::RunSpec};
    use serde_json::json;

    fn spec(batching: &str, result: &str) -> SourceSpec {
        let source = json!({"endpoint": "https://a", "query": "{a}", "resultPath": result, "batching": batching});
        let spec = serde_json::from_value(json!({"source": manifest("graphQL", &source)})).unwrap();
        RunSpec::parse(&spec).unwrap().source.unwrap()
    }

    fn rest(part: &Value) -> SourceSpec {
        let spec = serde_json::from_value(json!({"syncType": "Full", "source": manifest("rest", part)})).unwrap();
        RunSpec::parse(&spec).unwrap().source.unwrap()
    }

    fn shown(answer: &Value) -> Result<Vec<&'static str>, String> {
        let keys = ["1", "2", "3"].map(str::to_owned);
        let parsed = parse_answer(&spec("PerBatch", "/data/users"), &keys, Some(answer.clone()));
        let (found, _) = parsed.map_err(|failure| failure.into_error().to_string())?;
        Ok(found
            .iter()
            .map(|found| match found {
                Found::Result(_) => "result",
                Found::Missing => "missing",
                Found::NotReturned => "not",
                Found::Failed(reason, _) => *reason,
            })
            .collect())
    }

    #[test]
    fn results_are_matched_by_key_and_errors_by_position() {
        let user = |id: i32| json!({"id": id.to_string()});
        for (answer, expected) in [
            (json!({"data": {"users": [user(3), user(1)]}}), ["result", "not", "result"]),
            (json!({"data": {"users": [{"id": 2}, user(9), "?"]}}), ["not", "result", "not"]),
            (json!({"data": {"users": [user(1), user(1), user(2)]}}), ["result", "result", "not"]),
            (json!({"data": {"users": [user(1), {"id": "1", "name": "b"}]}}), ["DuplicateResult", "not", "not"]),
            (
                json!({"data": {"users": [user(1), user(2), user(3)]}, "errors": [{"path": ["groups", 1]}]}),
                ["result", "result", "result"],
            ),
            (
                json!({"data": {"users": [user(1), null, user(3)]}, "errors": [{"path": ["users", 1, "name"]}]}),
                ["result", "SourceError", "result"],
            ),
            (
                json!({"data": {"users": [user(2), user(3)]}, "errors": [{"path": ["users", 0, "name"]}]}),
                ["not", "SourceError", "result"],
            ),
        ] {
            assert_eq!(shown(&answer).unwrap(), expected, "{answer}");
        }
    }

    #[test]
    fn an_error_of_all_documents_fails_the_attempt() {
        for (answer, message) in [
            (
                json!({"errors": [{"message": "secret", "locations": [{"line": 1, "column": 9}],
                    "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}}]}),
                "the source rejects the query (GRAPHQL_VALIDATION_FAILED) at line 1, column 9 of source.graphQL.query",
            ),
            (
                json!({"data": null, "errors": [{"message": "secret", "locations": [{"line": 1, "column": 9}]}]}),
                "the source rejects the query at line 1, column 9",
            ),
            (
                json!({"data": null, "errors": [{"message": "secret"}]}),
                "the source's answer cannot be used: it reports an error",
            ),
            (
                json!({"data": null, "errors": [{"extensions": {"code": "INTERNAL_SERVER_ERROR"}}]}),
                "the source's answer cannot be used: it reports an error (INTERNAL_SERVER_ERROR)",
            ),
            (json!({"errors": [{"type": "RATE_LIMITED", "message": "secret"}]}), "the source limits requests"),
            (json!([]), "the source's answer cannot be used: it is no answer to a GraphQL query"),
            (
                json!({"data": {"users": 5}}),
                "the source's answer cannot be used: it has no list at source.graphQL.resultPath /data/users",
            ),
            (
                json!({"data": {"users": null}, "errors": [{"path": ["users"], "message": "secret"}]}),
                "the source's answer cannot be used: it has no list of results",
            ),
            (
                json!({"data": {"users": []}, "errors": [{"message": "secret"}]}),
                "the source's answer cannot be used: it reports an error",
            ),
        ] {
            let error = shown(&answer).unwrap_err();
            assert!(error.starts_with(message) && !error.contains("secret"), "{answer}: {error}");
        }
    }

    /// Result for one document, or the message of the failure.
    fn one(spec: &SourceSpec, answer: Value) -> Result<Found, String> {
        let parsed =
            parse_answer(spec, &["1".to_owned()], Some(answer)).map_err(|failure| failure.into_error().to_string())?;
        Ok(parsed.0.into_iter().next().unwrap())
    }

    #[test]
    fn only_null_at_the_result_path_means_missing() {
        let spec = spec("PerUser", "/data/project/user");
        let nothing =
            "the source's answer cannot be used: it has no value at source.graphQL.resultPath /data/project/user";
        for (answer, expected) in [
            (json!({"data": {"project": {"user": {"id": 1}}}}), Ok(Found::Result(json!({"id": 1})))),
            (json!({"data": {"project": {"user": null}}}), Ok(Found::Missing)),
            (json!({"data": {"project": null}}), Err(nothing)),
            (json!({"data": {"project": {}}}), Err(nothing)),
            (json!({"data": {}}), Err(nothing)),
            (json!({"data": null, "errors": [{"path": ["project", "user"]}]}), Ok(failed(&json!({})))),
            (json!({"data": {"project": null}, "errors": [{"path": ["project"]}]}), Ok(failed(&json!({})))),
            (json!({"data": {"project": {"user": null}}, "errors": [{"path": ["group"]}]}), Ok(Found::Missing)),
        ] {
            assert_eq!(one(&spec, answer.clone()), expected.map_err(str::to_owned), "{answer}");
        }
        let search =
            rest(&json!({"endpoint": "https://a/?name={id}", "batching": "PerUser", "resultPath": "/users/0"}));
        for (answer, expected) in [
            (json!({"users": [{"id": 1}]}), Some(Found::Result(json!({"id": 1})))),
            (json!({"users": []}), Some(Found::Missing)),
            (json!({"users": null}), None),
            (json!({}), None),
        ] {
            assert_eq!(one(&search, answer.clone()).ok(), expected, "{answer}");
        }
        assert_eq!(parse_answer(&search, &["1".to_owned()], None).unwrap().0, [Found::NotReturned]);
    }

    fn pages(by: By) -> Pages {
        Pages { by, more: None, total: None, ends_short: false, is_sized: true }
    }

    #[test]
    fn a_page_says_which_one_comes_next() {
        let spec = spec("PerBatch", "/data/users");
        let cursor = pages(By::Cursor("/next".parse().unwrap()));
        let flagged = Pages { more: Some("/more".parse().unwrap()), ..cursor.clone() };
        let numbered = pages(By::Number);
        let unusable = Err(());
        for (pages, at, answer, is_empty, expected) in [
            (&cursor, json!(null), json!({"next": "b"}), false, Ok(Ok(json!("b")))),
            (&cursor, json!("b"), json!({"next": null}), false, Ok(Err(End::Stated))),
            (&cursor, json!("b"), json!({}), false, Ok(Err(End::Absent))),
            (&cursor, json!("b"), json!({"next": ""}), false, Ok(Err(End::Stated))),
            (&cursor, json!("b"), json!({"next": "b"}), false, unusable.clone()),
            (&cursor, json!("b"), json!({"next": false}), false, Ok(Err(End::Stated))),
            (&cursor, json!("b"), json!({"next": {"page": 2}}), false, unusable.clone()),
            (&flagged, json!("b"), json!({"next": "c", "more": "https://a/?page=3"}), false, Ok(Ok(json!("c")))),
            (&flagged, json!("b"), json!({"next": null, "more": null}), false, Ok(Err(End::Stated))),
            (&flagged, json!("b"), json!({"next": "c", "more": true}), true, Ok(Ok(json!("c")))),
            (&flagged, json!("b"), json!({"next": "b", "more": false}), false, Ok(Err(End::Stated))),
            (&flagged, json!("b"), json!({"next": null, "more": true}), false, Ok(Err(End::Stuck))),
            (&flagged, json!("b"), json!({"next": "c"}), false, unusable.clone()),
            (&numbered, json!(1), json!({}), false, Ok(Ok(json!(2)))),
            (&numbered, json!(2), json!({}), true, Ok(Err(End::Stated))),
        ] {
            let next = next(&spec, pages, &at, &answer, is_empty);
            assert_eq!(next.map_err(drop), expected, "{pages:?} {at} {answer}");
        }
        for (length, fits) in [(MAX_NEXT, true), (MAX_NEXT + 1, false)] {
            let next = next(&spec, &cursor, &json!(null), &json!({"next": "x".repeat(length)}), false);
            let error = next.err().map(RequestFailure::into_error);
            assert!(fits == error.is_none() && error.is_none_or(|error| error.to_string().contains("8192 bytes")));
        }
    }

    #[test]
    fn a_page_has_each_identifiable_document_once() {
        let spec = spec("PerBatch", "/data/users");
        let pages = pages(By::Number);
        let read = |users: Value, errors: Value| {
            let answer = json!({"data": {"users": users}, "errors": errors});
            let page = page(&spec, &pages, &json!(1), answer, Err(End::Absent))
                .map_err(|failure| failure.into_error().to_string());
            page.map(|(page, _)| (page.results, page.unreadable))
        };
        let (one, other) = (json!({"id": "1"}), json!({"id": "1", "name": "x"}));
        let results = read(json!([one, one, {"id": "2"}]), json!([{"path": ["users", 2, "name"]}])).unwrap();
        assert_eq!(results, (vec![("1".into(), Found::Result(one.clone())), ("2".into(), failed(&json!({})))], 0));
        assert_eq!(read(json!([one, other]), json!([])).unwrap(), (vec![("1".into(), twice())], 0));
        for unusable in [json!(null), json!({"name": "x"}), json!({"id": null})] {
            assert!(read(json!([unusable]), json!([])).unwrap_err().contains("none of its results has a usable key"));
            let (results, unreadable) = read(json!([one, unusable]), json!([])).unwrap();
            assert_eq!((results.len(), unreadable), (1, 1));
        }
    }

    #[test]
    fn a_plain_answer_has_results_and_no_errors() {
        let each = rest(&json!({"endpoint": "https://a/{id}", "batching": "PerUser"}));
        let all = json!({"errors": ["x"]});
        assert_eq!(one(&each, all.clone()), Ok(Found::Result(all)));
        assert_eq!(one(&each, Value::Null), Ok(Found::Missing));
        assert!(one(&each, json!([])).unwrap_err().ends_with("let source.rest.resultPath end in /0"));
        let below = rest(&json!({"endpoint": "https://a/{id}", "batching": "PerUser", "resultPath": "/user"}));
        let error = one(&below, json!({"User": 1})).unwrap_err();
        assert!(error.ends_with("it has no value at source.rest.resultPath /user"), "{error}");

        let list = rest(&json!({"endpoint": "https://a/?ids={ids}"}));
        let read = |keys: &[&str], answer| {
            let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
            parse_answer(&list, &keys, Some(answer))
                .map(|(found, _)| found)
                .map_err(|failure| failure.into_error().to_string())
        };
        let two = Found::Result(json!({"id": 2}));
        assert_eq!(read(&["1", "2"], json!([{"id": 2}])).unwrap(), [Found::NotReturned, two.clone()]);
        assert_eq!(read(&["2", "2"], json!([{"id": 2}])).unwrap(), [two.clone(), two]);
        let error = read(&["1"], json!({"users": []})).unwrap_err();
        assert!(error.ends_with("it has no list at source.rest.resultPath"), "{error}");

        let walk = json!({"endpoint": "https://a/", "batching": "Pages", "pagination": {"by": "Link"}});
        let pages = pages(By::Link);
        for link in [Ok(json!("https://a/?page=2")), Err(End::Absent)] {
            let (page, _) = page(&rest(&walk), &pages, &Value::Null, json!([{"id": 1}]), link.clone()).unwrap();
            assert_eq!((page.results.len(), page.next.ok_or(page.end)), (1, link));
        }
    }
}
