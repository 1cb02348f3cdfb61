//! Which part of an answer belongs to which document.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
};

use bson::Bson;
use serde_json::Value;

use super::{Found, rejected};
use crate::{
    domain::source::{Asking, By, Pages, Request, SourceSpec},
    sync::{Error, keys, mapping},
};

/// Longest code of an error that is shown. Its message is not: it may quote documents.
const MAX_CODE: usize = 64;

/// One page of all that a source has.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// What there is, by key.
    pub results: Vec<(Bson, Found)>,
    /// The page after it.
    pub next: Option<Value>,
}

impl Page {
    /// Keeps the results whose keys are in `only`, unless it is empty, and of these the first `count`.
    pub fn restrict(&mut self, only: &[String], count: usize) {
        if !only.is_empty() {
            self.results.retain(|(key, _)| only.contains(&keys::text(key)));
        }
        self.results.truncate(count);
    }
}

/// Sorts an answer by the keys that were asked for. `Err`: the query was not carried out at all.
pub(super) fn read(spec: &SourceSpec, keys: &[String], mut answer: Value) -> Result<Vec<Found>, Error> {
    let errors = errors_of(spec, &answer)?.to_vec();
    let result = spec.result.resolve_mut(&mut answer).ok().map(Value::take);
    match spec.asking {
        // By HTTP, 404 says that there is nothing. That a part of the answer is not there is more likely a mistake.
        Asking::PerUser(_) if result.is_none() && spec.request == Request::Rest => {
            Err(unusable(&format!("it has nothing at {} {}", spec.field("resultPath"), spec.result)))
        }
        Asking::PerUser(_) => Ok(vec![single(result, &errors)]),
        _ => list(spec, keys, result, &errors),
    }
}

/// Reads a page, `at` which it was asked for. `link` is the one that its headers name.
pub(super) fn page(
    spec: &SourceSpec,
    pages: &Pages,
    at: &Value,
    answer: &Value,
    link: Option<Value>,
) -> Result<Page, Error> {
    let errors = errors_of(spec, answer)?;
    let (items, broken) = items(spec, spec.result.resolve(answer).ok().cloned(), errors)?;
    let is_empty = items.is_empty();
    let mut results: Vec<(Bson, Found)> = Vec::with_capacity(items.len());
    let mut places = HashMap::new();
    for (place, item) in items.into_iter().enumerate() {
        // A result that cannot be told apart may be any document's: nothing could be said to be missing.
        let key = spec.key.resolve(&item).ok().filter(|key| key.is_string() || key.is_number());
        let key = key.and_then(|key| mapping::convert(key, spec.key_type)).ok_or_else(|| {
            unusable(&format!("it has a result without a usable key at {} {}", spec.field("keyPath"), spec.key))
        })?;
        let found = broken.get(&place).map_or_else(|| Found::Result(item), |error| failed(error));
        match places.entry(keys::text(&key)) {
            Entry::Vacant(entry) => {
                entry.insert(results.len());
                results.push((key, found));
            }
            Entry::Occupied(entry) if results[*entry.get()].1 != found => results[*entry.get()].1 = twice(),
            Entry::Occupied(_) => {}
        }
    }
    let next = if pages.by == By::Link { link } else { next(spec, pages, at, answer, is_empty)? };
    Ok(Page { results, next })
}

fn next(spec: &SourceSpec, pages: &Pages, at: &Value, answer: &Value, is_empty: bool) -> Result<Option<Value>, Error> {
    let more = match &pages.more {
        Some(path) => Some(path.resolve(answer).ok().and_then(Value::as_bool).ok_or_else(|| {
            unusable(&format!("it has neither true nor false at {} {path}", spec.field("pagination.morePath")))
        })?),
        None => None,
    };
    let By::Cursor(path) = &pages.by else {
        return Ok(more.unwrap_or(!is_empty).then(|| Value::from(at.as_u64().unwrap_or(0) + 1)));
    };
    // An empty one asks for the first page again.
    let cursor = path.resolve(answer).ok().filter(|cursor| !cursor.is_null() && *cursor != "");
    match (more, cursor) {
        (Some(false), _) | (None, None) => Ok(None),
        (_, Some(cursor)) if cursor != at => Ok(Some(cursor.clone())),
        _ => Err(unusable(&format!("it has no new cursor at {} {path}", spec.field("pagination.nextPath")))),
    }
}

/// The errors of single results, which GraphQL has beside the data. `Err`: there are others.
fn errors_of<'a>(spec: &SourceSpec, answer: &'a Value) -> Result<&'a [Value], Error> {
    if spec.request == Request::Rest {
        return Ok(&[]);
    }
    let errors = answer.get("errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let has_path = |error: &&Value| error.get("path").and_then(Value::as_array).is_some_and(|path| !path.is_empty());
    // No data, and an error that is no field's: the server did not begin with it. Some leave data out, as
    // https://spec.graphql.org/October2021/#sec-Response-Format wants it, some send null.
    if answer.get("data").is_none_or(Value::is_null) && errors.iter().all(|error| !has_path(&error)) {
        return Err(match errors.first() {
            Some(error) if is_temporary(error) => unusable(&format!("it tells of an error{}", describe(error))),
            Some(error) => rejected(&format!("the source rejects the query{}", describe(error))),
            None => unusable("it is no answer to a GraphQL query"),
        });
    }
    // One error without a place may concern any document.
    if let Some(error) = errors.iter().find(|error| !has_path(error)) {
        return Err(unusable(&format!("it tells of an error{}", describe(error))));
    }
    Ok(errors)
}

fn single(result: Option<Value>, errors: &[Value]) -> Found {
    match (errors.first(), result) {
        (Some(error), _) => failed(error),
        (None, Some(result)) if !result.is_null() => Found::Result(result),
        _ => Found::Missing,
    }
}

/// The list of results, and errors by their places in it.
fn items<'a>(
    spec: &SourceSpec,
    result: Option<Value>,
    errors: &'a [Value],
) -> Result<(Vec<Value>, HashMap<usize, &'a Value>), Error> {
    let depth = spec.result.count().saturating_sub(1);
    // An error's path leads through the list to one of its items, or ends before: then the list itself is broken.
    let item_of = |error: &Value| error.get("path")?.as_array()?.get(depth)?.as_u64();
    let mut broken = HashMap::new();
    for error in errors {
        let Some(item) = item_of(error) else {
            return Err(unusable(&format!("it has no list of results{}", describe(error))));
        };
        broken.entry(item as usize).or_insert(error);
    }
    let Some(Value::Array(items)) = result else {
        return Err(unusable(format!("it has no list at {} {}", spec.field("resultPath"), spec.result).trim_end()));
    };
    Ok((items, broken))
}

fn list(spec: &SourceSpec, keys: &[String], result: Option<Value>, errors: &[Value]) -> Result<Vec<Found>, Error> {
    let (items, broken) = items(spec, result, errors)?;
    let wanted: HashMap<&str, usize> = keys.iter().enumerate().map(|(at, key)| (key.as_str(), at)).collect();
    let mut found = vec![Found::Missing; keys.len()];
    let count = items.len();
    for (place, item) in items.into_iter().enumerate() {
        // An item that an error made null has no key; where the list has one item for each key, its place tells.
        let by_place = (item.is_null() && count == keys.len()).then_some(place);
        let by_key = spec.key.resolve(&item).ok().and_then(text).and_then(|key| wanted.get(&*key).copied());
        let Some(at) = by_key.or(by_place) else { continue };
        found[at] = match (broken.get(&place), &found[at]) {
            (Some(error), _) => failed(error),
            (None, Found::Missing) if !item.is_null() => Found::Result(item),
            (None, Found::Missing) => Found::Missing,
            (None, Found::Result(first)) if *first == item => Found::Result(item),
            (None, _) => twice(),
        };
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

/// True for an error that is not about the query, by the codes that servers have in common.
fn is_temporary(error: &Value) -> bool {
    let codes = ["INTERNAL_SERVER_ERROR", "SERVICE_UNAVAILABLE", "TIMEOUT", "RATE_LIMITED", "THROTTLED"];
    [error.pointer("/extensions/code"), error.get("type")]
        .into_iter()
        .flatten()
        .any(|code| code.as_str().is_some_and(|code| codes.iter().any(|known| code.eq_ignore_ascii_case(known))))
}

/// Two results for one document: which one is right, nobody can tell.
fn twice() -> Found {
    Found::Failed("DuplicateResult", "the source gave two different results for it".to_owned())
}

fn failed(error: &Value) -> Found {
    Found::Failed("SourceError", format!("the source has an error for it{}", describe(error)))
}

pub(super) fn unusable(why: &str) -> Error {
    Error::Attempt { reason: "BadAnswer", message: format!("the source's answer cannot be used: {why}") }
}

/// What can be said of an error without repeating what it says: its code, and where in the query it is.
fn describe(error: &Value) -> String {
    let is_word = |code: &&str| {
        code.len() <= MAX_CODE && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    let code = error.pointer("/extensions/code").and_then(Value::as_str).filter(is_word);
    let place = |name| error.pointer("/locations/0").and_then(|place| place.get(name)).and_then(Value::as_u64);
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    match (place("line"), place("column")) {
        (Some(line), Some(column)) => format!("{code} at line {line}, column {column} of source.graphQL.query"),
        _ => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::run::RunSpec;
    use serde_json::json;

    fn spec(batching: &str, result: &str) -> SourceSpec {
        let source = json!({"endpoint": "https://a", "query": "q", "resultPath": result, "batching": batching});
        let spec = serde_json::from_value(json!({"source": {"graphQL": source}})).unwrap();
        RunSpec::parse(&spec).unwrap().source.unwrap()
    }

    fn rest(part: &Value) -> SourceSpec {
        let spec = serde_json::from_value(json!({"syncType": "Full", "source": {"rest": part}})).unwrap();
        RunSpec::parse(&spec).unwrap().source.unwrap()
    }

    fn shown(answer: &Value) -> Result<Vec<&'static str>, String> {
        let keys = ["1", "2", "3"].map(str::to_owned);
        let found = read(&spec("PerBatch", "/data/users"), &keys, answer.clone()).map_err(|error| error.to_string())?;
        Ok(found
            .iter()
            .map(|found| match found {
                Found::Result(_) => "result",
                Found::Missing => "missing",
                Found::Failed(reason, _) => *reason,
            })
            .collect())
    }

    #[test]
    fn results_are_sorted_by_key_and_errors_by_place() {
        let user = |id: i32| json!({"id": id.to_string()});
        for (answer, expected) in [
            (json!({"data": {"users": [user(3), user(1)]}}), ["result", "missing", "result"]),
            (json!({"data": {"users": [{"id": 2}, user(9), "?"]}}), ["missing", "result", "missing"]),
            (json!({"data": {"users": [user(1), user(1), user(2)]}}), ["result", "result", "missing"]),
            (
                json!({"data": {"users": [user(1), {"id": "1", "name": "b"}]}}),
                ["DuplicateResult", "missing", "missing"],
            ),
            (
                json!({"data": {"users": [user(1), null, user(3)]}, "errors": [{"path": ["users", 1, "name"]}]}),
                ["result", "SourceError", "result"],
            ),
            (
                json!({"data": {"users": [user(2), user(3)]}, "errors": [{"path": ["users", 0, "name"]}]}),
                ["missing", "SourceError", "result"],
            ),
        ] {
            assert_eq!(shown(&answer).unwrap(), expected, "{answer}");
        }
    }

    #[test]
    fn what_concerns_every_document_is_the_attempts_or_the_querys_failure() {
        for (answer, message) in [
            (
                json!({"errors": [{"message": "secret", "locations": [{"line": 1, "column": 9}],
                    "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}}]}),
                "the source rejects the query (GRAPHQL_VALIDATION_FAILED) at line 1, column 9 of source.graphQL.query",
            ),
            (json!({"data": null, "errors": [{"message": "secret"}]}), "the source rejects the query"),
            (
                json!({"data": null, "errors": [{"extensions": {"code": "INTERNAL_SERVER_ERROR"}}]}),
                "the source's answer cannot be used: it tells of an error (INTERNAL_SERVER_ERROR)",
            ),
            (
                json!({"errors": [{"type": "RATE_LIMITED", "message": "secret"}]}),
                "the source's answer cannot be used: it tells of an error",
            ),
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
                "the source's answer cannot be used: it tells of an error",
            ),
        ] {
            let error = shown(&answer).unwrap_err();
            assert!(error.starts_with(message) && !error.contains("secret"), "{answer}: {error}");
        }
    }

    #[test]
    fn of_one_document_null_is_no_result() {
        let spec = spec("PerUser", "/data/user");
        for (answer, expected) in [
            (json!({"data": {"user": {"id": 1}}}), Found::Result(json!({"id": 1}))),
            (json!({"data": {"user": null}}), Found::Missing),
            (json!({"data": null, "errors": [{"path": ["user"]}]}), failed(&json!({}))),
        ] {
            assert_eq!(read(&spec, &["1".to_owned()], answer.clone()).unwrap(), [expected], "{answer}");
        }
    }

    #[test]
    fn a_page_says_which_one_comes_next() {
        let spec = spec("PerBatch", "/data/users");
        let cursor = Pages { by: By::Cursor("/next".parse().unwrap()), more: None };
        let flagged = Pages { more: Some("/more".parse().unwrap()), ..cursor.clone() };
        let numbered = Pages { by: By::Number, more: None };
        let unusable = Err(());
        for (pages, at, answer, is_empty, expected) in [
            (&cursor, json!(null), json!({"next": "b"}), false, Ok(Some(json!("b")))),
            (&cursor, json!("b"), json!({"next": null}), false, Ok(None)),
            (&cursor, json!("b"), json!({}), false, Ok(None)),
            (&cursor, json!("b"), json!({"next": ""}), false, Ok(None)),
            (&cursor, json!("b"), json!({"next": "b"}), false, unusable.clone()),
            (&flagged, json!("b"), json!({"next": "c", "more": true}), true, Ok(Some(json!("c")))),
            (&flagged, json!("b"), json!({"next": "b", "more": false}), false, Ok(None)),
            (&flagged, json!("b"), json!({"next": null, "more": true}), false, unusable.clone()),
            (&flagged, json!("b"), json!({"next": "c"}), false, unusable.clone()),
            (&numbered, json!(1), json!({}), false, Ok(Some(json!(2)))),
            (&numbered, json!(2), json!({}), true, Ok(None)),
        ] {
            assert_eq!(next(&spec, pages, &at, &answer, is_empty).map_err(drop), expected, "{pages:?} {at} {answer}");
        }
    }

    #[test]
    fn a_page_has_each_document_once_and_none_that_cannot_be_told() {
        let spec = spec("PerBatch", "/data/users");
        let pages = Pages { by: By::Number, more: None };
        let read = |users: Value, errors: Value| {
            let answer = json!({"data": {"users": users}, "errors": errors});
            page(&spec, &pages, &json!(1), &answer, None).map(|page| page.results).map_err(|error| error.to_string())
        };
        let (one, other) = (json!({"id": "1"}), json!({"id": "1", "name": "x"}));
        let results = read(json!([one, one, {"id": "2"}]), json!([{"path": ["users", 2, "name"]}])).unwrap();
        assert_eq!(results, [("1".into(), Found::Result(one.clone())), ("2".into(), failed(&json!({})))]);
        assert_eq!(read(json!([one, other]), json!([])).unwrap(), [("1".into(), twice())]);
        for unusable in [json!([null]), json!([{"name": "x"}]), json!([{"id": null}])] {
            assert!(read(unusable, json!([])).unwrap_err().contains("without a usable key"));
        }
    }

    #[test]
    fn a_plain_answer_has_results_and_no_errors() {
        let (one, all) =
            (rest(&json!({"endpoint": "https://a/{id}", "batching": "PerUser"})), json!({"errors": ["x"]}));
        assert_eq!(read(&one, &["1".to_owned()], all.clone()).unwrap(), [Found::Result(all)]);
        assert_eq!(read(&one, &["1".to_owned()], Value::Null).unwrap(), [Found::Missing]);
        let below = rest(&json!({"endpoint": "https://a/{id}", "batching": "PerUser", "resultPath": "/user"}));
        let error = read(&below, &["1".to_owned()], json!({"User": 1})).unwrap_err().to_string();
        assert!(error.ends_with("it has nothing at source.rest.resultPath /user"), "{error}");

        let list = rest(&json!({"endpoint": "https://a/?ids={ids}"}));
        let keys = ["1", "2"].map(str::to_owned);
        let found = read(&list, &keys, json!([{"id": 2}])).unwrap();
        assert_eq!(found, [Found::Missing, Found::Result(json!({"id": 2}))]);
        let error = read(&list, &keys, json!({"users": []})).unwrap_err().to_string();
        assert!(error.ends_with("it has no list at source.rest.resultPath"), "{error}");

        let walk = json!({"endpoint": "https://a/", "batching": "Pages", "pagination": {"by": "Link"}});
        let pages = Pages { by: By::Link, more: None };
        for link in [Some(json!("https://a/?page=2")), None] {
            let page = page(&rest(&walk), &pages, &Value::Null, &json!([{"id": 1}]), link.clone()).unwrap();
            assert_eq!((page.results.len(), page.next), (1, link));
        }
    }
}
