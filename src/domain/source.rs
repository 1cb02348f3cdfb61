//! A source that was checked: what fetching needs, with every default filled in.

use std::time::Duration;

use serde_json::{Map, Value};

use super::run::{SpecError, duration, range};
use crate::api::{
    SyncJobSpec,
    source::{Batching, FieldType, HeaderFrom, MappedField, OnMissing, PageBy, Pagination, RateLimit, SecretKey},
    syncjob::SyncMode,
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
    /// How documents are asked for.
    pub asking: Asking,
    /// Make documents for results that have none.
    pub upsert: bool,
    /// JSON pointer to the results.
    pub result: String,
    /// JSON pointer from a result to its key.
    pub key: String,
    /// What a key is made into.
    pub key_type: FieldType,
    /// What becomes of documents without a result.
    pub missing: Missing,
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

/// How documents are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asking {
    /// One request for each batch.
    PerBatch,
    /// One request for each document, so many at a time.
    PerUser(usize),
    /// One request for each page.
    Pages(Pages),
}

/// What becomes of documents that the source has nothing for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// They have failed.
    Fail,
    /// Nothing.
    Ignore,
    /// The time goes into this field.
    Mark(String),
    /// They are removed.
    Delete,
}

/// What tells pages apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// JSON pointer to the next one's cursor. `None`: they are numbered from 1 on.
    pub next: Option<String>,
    /// JSON pointer to whether there are more.
    pub more: Option<String>,
}

impl Pages {
    /// What the first one is asked for with.
    #[must_use]
    pub fn first(&self) -> Value {
        if self.next.is_some() { Value::Null } else { Value::from(1) }
    }
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
    let missing_field = (source.on_missing == OnMissing::Mark).then_some(source.missing_field.as_str());
    let reserved = [&*spec.target.key_field, &*spec.target.last_synced_field];
    if let Some(other) = missing_field.and_then(|field| reserved.into_iter().find(|other| overlap(field, other))) {
        return Err(SpecError::Mark(other.to_owned()));
    }
    let reserved: Vec<&str> = reserved.into_iter().chain(missing_field).collect();
    check_paths(&spec.mapping, &reserved)?;
    let concurrency = range("source.graphQL.concurrency", source.concurrency, 1, 64)? as usize;
    Ok(Some(SourceSpec {
        endpoint: source.endpoint.clone(),
        query: source.query.clone(),
        operation_name: source.operation_name.clone(),
        variables: source.variables.0.clone(),
        asking: match source.batching {
            Batching::PerBatch if matches!(source.on_missing, OnMissing::Mark | OnMissing::Delete) => {
                return Err(SpecError::Needs("source.graphQL.onMissing Mark or Delete", "batching PerUser or Pages"));
            }
            Batching::PerBatch => Asking::PerBatch,
            Batching::PerUser => Asking::PerUser(concurrency),
            Batching::Pages if spec.sync_type != SyncMode::Full => {
                return Err(SpecError::Needs("source.graphQL.batching Pages", "syncType Full"));
            }
            Batching::Pages => Asking::Pages(pages(source.pagination.as_ref())?),
        },
        upsert: source.upsert && source.batching == Batching::Pages,
        result: pointer("source.graphQL.resultPath", &source.result_path)?,
        key: pointer("source.graphQL.keyPath", &source.key_path)?,
        key_type: source.key_type,
        missing: match source.on_missing {
            OnMissing::Fail => Missing::Fail,
            OnMissing::Ignore => Missing::Ignore,
            OnMissing::Mark => Missing::Mark(source.missing_field.clone()),
            OnMissing::Delete => Missing::Delete,
        },
        timeout: duration("source.graphQL.timeout", &source.timeout)?,
        pace: source.rate_limit.as_ref().map(pace).transpose()?,
        token: source.token_secret_ref.clone(),
        headers: source.headers_from.clone(),
        ca: source.ca_secret_ref.clone(),
    }))
}

fn pages(pagination: Option<&Pagination>) -> Result<Pages, SpecError> {
    let needs = |what| SpecError::Needs("source.graphQL.batching Pages", what);
    let pagination = pagination.ok_or_else(|| needs("pagination"))?;
    if pagination.by == PageBy::Cursor && pagination.next_path.is_none() {
        return Err(needs("pagination.nextPath"));
    }
    let read = |field, path: &Option<String>| path.as_deref().map(|path| pointer(field, path)).transpose();
    let next = read("source.graphQL.pagination.nextPath", &pagination.next_path)?;
    Ok(Pages {
        next: next.filter(|_| pagination.by == PageBy::Cursor),
        more: read("source.graphQL.pagination.morePath", &pagination.more_path)?,
    })
}

fn pace(limit: &RateLimit) -> Result<Pace, SpecError> {
    let requests = range("source.graphQL.rateLimit.requests", limit.requests, 1, 100_000)? as u32;
    let per = duration("source.graphQL.rateLimit.per", &limit.per)?;
    Ok(Pace { every: (per + per / ROOM) / requests, slack: per / ROOM / 2 })
}

fn pointer(field: &'static str, text: &str) -> Result<String, SpecError> {
    if text.is_empty() || text.starts_with('/') { Ok(text.to_owned()) } else { Err(SpecError::Pointer(field)) }
}

/// MongoDB refuses an update that writes a field and a part of it. The key, the stamp and the mark are not for the mapping.
fn check_paths(mapping: &[MappedField], reserved: &[&str]) -> Result<(), SpecError> {
    for (at, field) in mapping.iter().enumerate() {
        let to = field.to.as_str();
        if to.is_empty() || to.contains('$') || to.starts_with('.') {
            return Err(SpecError::FieldPath { field: "mapping[].to", example: "name" });
        }
        if field.from.is_some() == field.value.is_some() {
            return Err(SpecError::Constant(to.to_owned()));
        }
        pointer("mapping[].from", field.from.as_deref().unwrap_or_default())?;
        let others = mapping[..at].iter().map(|other| other.to.as_str()).chain(reserved.iter().copied()).chain(["_id"]);
        if let Some(other) = others.into_iter().find(|other| overlap(to, other)) {
            return Err(SpecError::Overlap(to.to_owned(), other.to_owned()));
        }
    }
    Ok(())
}

/// True when one of these paths is the other, or a part of it.
fn overlap(a: &str, b: &str) -> bool {
    let within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    a == b || within(a, b) || within(b, a)
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
        assert_eq!((source.asking, source.key.as_str(), source.missing), (Asking::PerBatch, "/id", Missing::Fail));
        assert_eq!((source.timeout, source.pace), (Duration::from_secs(30), None));
        assert_eq!(parsed(&json!({"batching": "PerUser"})).asking, Asking::PerUser(8));
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
            (
                json!({"batching": "Pages", "pagination": {"nextPath": "/a"}}),
                json!([]),
                "source.graphQL.batching Pages needs syncType Full",
            ),
            (
                json!({"onMissing": "Delete"}),
                json!([]),
                "source.graphQL.onMissing Mark or Delete needs batching PerUser or Pages",
            ),
            (
                json!({"onMissing": "Mark", "batching": "PerUser"}),
                json!([{"from": "/a", "to": "missingSince"}]),
                "mapping[].to missingSince and missingSince overlap",
            ),
            (
                json!({"onMissing": "Mark", "batching": "PerUser", "missingField": "_id.gone"}),
                json!([]),
                "source.graphQL.missingField must not be a part of _id",
            ),
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
