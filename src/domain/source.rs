//! A source that was checked: what fetching needs, with every default filled in.

use std::time::Duration;

use serde_json::{Map, Value};

use super::run::{SpecError, duration, range};
use crate::api::{
    SyncJobSpec,
    source::{Batching, HeaderFrom, MappedField, OnMissing, RateLimit, SecretKey},
};

/// Requests are spread over more than the time their limit allows, by one part in so many: they must keep to the limit
/// when they arrive, and some travel faster than others.
const ROOM: u32 = 20;

/// How requests follow each other so that a rate is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Least time from one to the next.
    pub every: Duration,
    /// How much later than its turn one may be sent: half of the room. Many that were held up would arrive together.
    pub slack: Duration,
}

/// Where a run fetches what documents should be.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSpec {
    /// Address of the API.
    pub endpoint: String,
    /// The query.
    pub query: String,
    /// Which operation of the query is meant.
    pub operation_name: Option<String>,
    /// Further variables.
    pub variables: Map<String, Value>,
    /// For a request for each document: how many are in flight within a batch. `None`: one request for each batch.
    pub per_user: Option<usize>,
    /// JSON pointer to the results.
    pub result: String,
    /// JSON pointer from a result to its key.
    pub key: String,
    /// Documents without a result count as failed.
    pub missing_fails: bool,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// How requests of all runs follow each other.
    pub pace: Option<Pace>,
    /// Secret with the token.
    pub token: Option<SecretKey>,
    /// Headers from Secrets.
    pub headers: Vec<HeaderFrom>,
    /// Secret with authorities.
    pub ca: Option<SecretKey>,
}

/// Reads and checks source and mapping.
pub(super) fn parse(spec: &SyncJobSpec) -> Result<Option<SourceSpec>, SpecError> {
    let Some(source) = &spec.source else {
        return if spec.mapping.is_empty() { Ok(None) } else { Err(SpecError::Needs("mapping", "source")) };
    };
    let source = &source.graph_ql;
    let authority = ["https://", "http://"].iter().find_map(|scheme| source.endpoint.strip_prefix(scheme));
    let authority = authority.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return Err(SpecError::Endpoint);
    }
    check_paths(&spec.mapping, [&spec.target.key_field, &spec.target.last_synced_field])?;
    let concurrency = range("source.graphQL.concurrency", source.concurrency, 1, 64)? as usize;
    Ok(Some(SourceSpec {
        endpoint: source.endpoint.clone(),
        query: source.query.clone(),
        operation_name: source.operation_name.clone(),
        variables: source.variables.0.clone(),
        per_user: (source.batching == Batching::PerUser).then_some(concurrency),
        result: pointer("source.graphQL.resultPath", &source.result_path)?,
        key: pointer("source.graphQL.keyPath", &source.key_path)?,
        missing_fails: source.on_missing == OnMissing::Fail,
        timeout: duration("source.graphQL.timeout", &source.timeout)?,
        pace: source.rate_limit.as_ref().map(pace).transpose()?,
        token: source.token_secret_ref.clone(),
        headers: source.headers_from.clone(),
        ca: source.ca_secret_ref.clone(),
    }))
}

fn pace(limit: &RateLimit) -> Result<Pace, SpecError> {
    let requests = range("source.graphQL.rateLimit.requests", limit.requests, 1, 100_000)? as u32;
    let per = duration("source.graphQL.rateLimit.per", &limit.per)?;
    Ok(Pace { every: (per + per / ROOM) / requests, slack: per / ROOM / 2 })
}

fn pointer(field: &'static str, text: &str) -> Result<String, SpecError> {
    if text.is_empty() || text.starts_with('/') { Ok(text.to_owned()) } else { Err(SpecError::Pointer(field)) }
}

/// MongoDB refuses an update that writes a field and a part of it. The key and the stamp are not for the mapping.
fn check_paths(mapping: &[MappedField], reserved: [&str; 2]) -> Result<(), SpecError> {
    let within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    for (at, field) in mapping.iter().enumerate() {
        let to = field.to.as_str();
        if to.is_empty() || to.contains('$') || to.starts_with('.') {
            return Err(SpecError::FieldPath { field: "mapping[].to", example: "name" });
        }
        if field.from.is_some() == field.value.is_some() {
            return Err(SpecError::Constant(to.to_owned()));
        }
        pointer("mapping[].from", field.from.as_deref().unwrap_or_default())?;
        let others = mapping[..at].iter().map(|other| other.to.as_str()).chain(reserved).chain(["_id"]);
        if let Some(other) = others.into_iter().find(|other| *other == to || within(to, other) || within(other, to)) {
            return Err(SpecError::Overlap(to.to_owned(), other.to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(source: &Value, mapping: &Value) -> SyncJobSpec {
        let mut whole = json!({"endpoint": "https://api.example/graphql", "query": "q", "resultPath": "/data/users"});
        whole.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        serde_json::from_value(json!({"source": {"graphQL": whole}, "mapping": mapping})).unwrap()
    }

    fn parsed(source: &Value) -> SourceSpec {
        parse(&spec(source, &json!([]))).unwrap().unwrap()
    }

    #[test]
    fn defaults_are_filled_in() {
        let source = parsed(&json!({}));
        assert_eq!((source.per_user, source.key.as_str(), source.missing_fails), (None, "/id", true));
        assert_eq!((source.timeout, source.pace), (Duration::from_secs(30), None));
        assert_eq!(parsed(&json!({"batching": "PerUser"})).per_user, Some(8));
    }

    #[test]
    fn a_rate_is_kept_with_some_room() {
        let pace = |limit| parsed(&json!({"rateLimit": limit})).pace;
        let every =
            |micros, slack| Some(Pace { every: Duration::from_micros(micros), slack: Duration::from_millis(slack) });
        assert_eq!(pace(json!({"requests": 100})), every(10_500, 25));
        assert_eq!(pace(json!({"requests": 5000, "per": "1h"})), every(756_000, 90_000));
    }

    #[test]
    fn mistakes_are_named_with_field_and_fix() {
        let name = json!({"from": "/name", "to": "name"});
        for (source, mapping, message) in [
            (json!({"endpoint": "ftp://a"}), json!([]), "source.graphQL.endpoint must be"),
            (json!({"endpoint": "https://a:b@c/"}), json!([]), "source.graphQL.endpoint must be"),
            (json!({"resultPath": "data"}), json!([]), "source.graphQL.resultPath must be a JSON pointer"),
            (json!({"concurrency": 65}), json!([]), "source.graphQL.concurrency must be from 1 to 64"),
            (json!({}), json!([{"to": "a"}]), "mapping[].to a needs either from"),
            (json!({}), json!([name, name]), "mapping[].to name and name overlap"),
            (json!({}), json!([name, {"from": "/a", "to": "name.first"}]), "mapping[].to name.first and name overlap"),
            (json!({}), json!([{"from": "/a", "to": "lastSynced"}]), "mapping[].to lastSynced and lastSynced overlap"),
            (json!({}), json!([{"from": "/a", "to": "_id"}]), "mapping[].to _id and _id overlap"),
            (json!({}), json!([{"from": "name", "to": "name"}]), "mapping[].from must be a JSON pointer"),
        ] {
            let error = parse(&spec(&source, &mapping)).unwrap_err().to_string();
            assert!(error.starts_with(message), "{source} {mapping}: {error}");
        }
        let spec = serde_json::from_value(json!({"mapping": [name]})).unwrap();
        assert!(parse(&spec).unwrap_err().to_string().starts_with("mapping needs source"));
    }
}
