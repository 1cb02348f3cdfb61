//! A validated source: the settings of its requests, with all defaults.

use std::time::Duration;

use jiff::tz::TimeZone;
use jsonptr::PointerBuf;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    graphql::{self, Operation},
    run::{SpecError, duration, range},
    url_template,
};
use crate::api::{
    SyncJobSpec,
    source::{
        Batching, FieldType, GraphQl, HeaderFrom, LastPage, MappedField, OnMissing, OnNull, PageBy, Pagination,
        RateLimit, Rest, SecretKey, Source,
    },
    syncjob::SyncMode,
};

const GRAPH_QL: &str = "graphQL";
const REST: &str = "rest";

/// Divisor of the extra time between requests. The limit applies when requests arrive, and requests take different
/// times to arrive, so they are sent more slowly than the limit allows.
const ROOM: u32 = 20;

/// Longest time between two requests of a rate, since a run holds its slot meanwhile.
const MAX_INTERVAL: Duration = Duration::from_mins(1);

/// Spacing of requests that keeps a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestRate {
    /// Least time from one to the next.
    pub every: Duration,
    /// Longest delay of a request beyond its reserved time: half of the margin. Otherwise many delayed requests would
    /// arrive together.
    pub slack: Duration,
}

impl RequestRate {
    /// Spaces `requests` requests evenly in each period. `None`: fewer than one request per minute.
    #[must_use]
    pub fn new(requests: u32, per: Duration) -> Option<Self> {
        // In whole seconds, as the rule of the CRD.
        let is_slow = per.as_secs() > MAX_INTERVAL.as_secs() * u64::from(requests);
        (!is_slow && requests > 0).then(|| Self { every: (per + per / ROOM) / requests, slack: per / ROOM / 2 })
    }
}

/// Field of documents that holds the state of sources.
pub const STATE: &str = "_sync";

/// Name of a source that stores state in the documents of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceName {
    /// The user gave it, or the schedule.
    Given(String),
    /// Name that is derived from a hash of the source and the mapping, when none is given. Such a source removes no
    /// documents.
    Derived(String),
}

impl SourceName {
    /// Path of the object in which the source keeps its state in a document. The path contains the namespace, so that
    /// no tenant can confirm documents for another tenant.
    #[must_use]
    pub fn state_path(&self, namespace: &str) -> String {
        let (Self::Given(name) | Self::Derived(name)) = self;
        // A dot would begin another field, and no name has an underscore.
        format!("{STATE}.{namespace}/{}", name.replace('.', "_"))
    }
}

/// Parsed spec of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSpec {
    /// Name of the source.
    pub name: SourceName,
    /// Address of the API. For REST, with placeholders.
    pub endpoint: String,
    /// Request that is sent to the source.
    pub request: Request,
    /// Way to request documents.
    pub asking: Asking,
    /// Make documents for results that have none.
    pub upsert: bool,
    /// Way to the results.
    pub result: PointerBuf,
    /// Way from a result to its key.
    pub key: PointerBuf,
    /// Type that a key is converted to.
    pub key_type: FieldType,
    /// Mapping of results to fields.
    pub mapping: Vec<Mapped>,
    /// Handling of documents without a result.
    pub missing: Missing,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Number of retries of a request.
    pub retries: u32,
    /// Rate limit of the requests of all runs of the namespace.
    pub rate: Option<RequestRate>,
    /// Secret with the token.
    pub token: Option<SecretKey>,
    /// Headers from Secrets.
    pub headers: Vec<HeaderFrom>,
    /// Secret with authorities.
    pub ca: Option<SecretKey>,
}

impl SourceSpec {
    /// Path of one of the source's fields in the spec, such as `source.timeout`.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        format!("source.{name}")
    }

    /// Path of a field that sources of its kind have for themselves, such as `source.rest.endpoint`.
    #[must_use]
    pub fn own_field(&self, name: &str) -> String {
        let kind = if self.request == Request::Rest { REST } else { GRAPH_QL };
        format!("source.{kind}.{name}")
    }
}

/// Request to a source.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// A query, with POST.
    GraphQl {
        /// The query.
        query: String,
        /// Kinds of its operations.
        operations: Vec<Operation>,
        /// Name of the operation to execute.
        operation_name: Option<String>,
        /// Additional variables.
        variables: Map<String, Value>,
    },
    /// GET request without a body: the address identifies the documents.
    Rest,
}

/// Way to request documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asking {
    /// One request for each batch.
    PerBatch,
    /// One request for each document, with this number of concurrent requests.
    PerUser(usize),
    /// One request for each page.
    Pages(Pages),
}

/// Value of one field of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapped {
    /// Path of the field.
    pub to: String,
    /// Origin of the value.
    pub origin: ValueOrigin,
    /// Type that the value is converted to.
    pub type_: FieldType,
    /// Time zone of dates that name none.
    pub zone: TimeZone,
    /// Handling of a missing value.
    pub on_null: OnNull,
}

/// Origin of the value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueOrigin {
    /// The result has it here.
    Result(PointerBuf),
    /// Constant for every document.
    Constant(Value),
}

/// Handling of documents without a result.
#[derive(Clone, Debug, PartialEq)]
pub enum Missing {
    /// The documents have failed.
    Fail,
    /// The documents stay as they are.
    Ignore,
    /// The documents are marked, and may be deleted later.
    Remove(Removal),
}

/// Removal of documents that the source no longer has.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// Field that receives the time of the mark, for users.
    pub field: String,
    /// Fields that are set with the mark, and their values.
    pub set: Vec<(String, Value)>,
    /// Time after the mark at which a document may be deleted. `None`: the document stays.
    pub delete_after: Option<Duration>,
    /// Confirm documents that no run of this source has found.
    pub adopt: bool,
}

/// A walk through pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Identification of a page.
    pub by: By,
    /// Way to whether there are more.
    pub more: Option<PointerBuf>,
    /// Way to the number of all results.
    pub total: Option<PointerBuf>,
    /// True when a page with fewer results than requested is the last one. Used with page numbers.
    pub ends_short: bool,
    /// The source knows how many results a page should have.
    pub is_sized: bool,
}

/// Identification of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Cursor, with its path in the previous page.
    Cursor(PointerBuf),
    /// Page number, from 1 on.
    Number,
    /// Address of the page, from the header `Link` of the previous page.
    Link,
}

impl Pages {
    /// Identification of the first page.
    #[must_use]
    pub fn first(&self) -> Value {
        if self.by == By::Number { Value::from(1) } else { Value::Null }
    }
}

/// Reads and checks source and mapping.
pub(super) fn parse(spec: &SyncJobSpec) -> Result<Option<SourceSpec>, SpecError> {
    let Some(source) = &spec.source else {
        return if spec.mapping.is_empty() { Ok(None) } else { Err(SpecError::Needs("mapping", "source")) };
    };
    let of_kind = |kind, error| SpecError::OfKind(kind, Box::new(error));
    let (endpoint, request, result) = match (&source.graph_ql, &source.rest) {
        (Some(of), None) => graph_ql(of).map_err(|error| of_kind(GRAPH_QL, error)),
        (None, Some(of)) => rest(of, source).map_err(|error| of_kind(REST, error)),
        _ => return Err(SpecError::OneSource),
    }
    .map_err(|error| SpecError::Source(Box::new(error)))?;
    let parsed = shared(source, spec, endpoint, request, result).map_err(|error| SpecError::Source(Box::new(error)))?;
    let marks = mark_fields(source);
    let reserved = [&*spec.target.key_field, &*spec.target.last_synced_field];
    let reserved: Vec<&str> = reserved.into_iter().chain(marks).chain([STATE]).collect();
    Ok(Some(SourceSpec { mapping: mapping(&spec.mapping, &reserved)?, ..parsed }))
}

/// Fields that only one kind of source has: the address, the request, and the path of the results.
type OwnFields = (String, Request, PointerBuf);

fn graph_ql(source: &GraphQl) -> Result<OwnFields, SpecError> {
    let request = Request::GraphQl {
        query: source.query.clone(),
        operations: graphql::operations(&source.query).map_err(SpecError::Document)?,
        operation_name: source.operation_name.clone(),
        variables: source.variables.0.clone(),
    };
    Ok((endpoint(&source.endpoint)?, request, pointer("resultPath", &source.result_path)?))
}

fn rest(rest: &Rest, source: &Source) -> Result<OwnFields, SpecError> {
    let endpoint = endpoint(&rest.endpoint)?;
    if !url_template::is_usable(&endpoint) {
        return Err(SpecError::InvalidPlaceholders);
    }
    let by = source.pagination.as_ref().filter(|_| source.batching == Batching::Pages).map(|pagination| pagination.by);
    for (name, setting, is_set) in [
        ("id", "batching PerUser", source.batching == Batching::PerUser),
        ("ids", "batching PerBatch", source.batching == Batching::PerBatch),
        ("page", "pagination.by Number", by == Some(PageBy::Number)),
        ("after", "pagination.by Cursor", by == Some(PageBy::Cursor)),
    ] {
        if url_template::has_placeholder(&endpoint, name) != is_set {
            return Err(SpecError::MissingPlaceholder(name, setting));
        }
    }
    if url_template::has_placeholder(&endpoint, "first") && source.batching != Batching::Pages {
        return Err(SpecError::Needs("endpoint with {first}", "batching Pages"));
    }
    Ok((endpoint, Request::Rest, pointer("resultPath", &rest.result_path)?))
}

fn endpoint(text: &str) -> Result<String, SpecError> {
    let authority = url_template::authority(text);
    if authority.is_empty() || authority.contains('@') { Err(SpecError::Endpoint) } else { Ok(text.to_owned()) }
}

fn shared(
    source: &Source,
    spec: &SyncJobSpec,
    endpoint: String,
    request: Request,
    result: PointerBuf,
) -> Result<SourceSpec, SpecError> {
    let mut reserved = vec![&*spec.target.key_field, &*spec.target.last_synced_field, STATE];
    for field in mark_fields(source) {
        if let Some(other) = reserved.iter().find(|other| overlap(field, other)) {
            return Err(SpecError::Mark(field.to_owned(), (*other).to_owned()));
        }
        reserved.push(field);
    }
    let removes = matches!(source.on_missing, OnMissing::Mark | OnMissing::Delete);
    if source.delete_after.is_some() && source.on_missing != OnMissing::Delete {
        return Err(SpecError::Needs("deleteAfter", "onMissing Delete"));
    }
    if !source.missing.set.is_empty() && !removes {
        return Err(SpecError::Needs("missing.set", "onMissing Mark or Delete"));
    }
    if source.adopt && !(removes && source.batching == Batching::Pages) {
        return Err(SpecError::Needs("adopt", "batching Pages and onMissing Mark or Delete"));
    }
    let concurrency = range("concurrency", source.concurrency, 1, 64)? as usize;
    let asking = match source.batching {
        Batching::PerBatch if matches!(source.on_missing, OnMissing::Mark | OnMissing::Delete) => {
            return Err(SpecError::Needs("onMissing Mark or Delete", "batching PerUser or Pages"));
        }
        Batching::PerBatch => Asking::PerBatch,
        Batching::PerUser => Asking::PerUser(concurrency),
        Batching::Pages if spec.sync_type != SyncMode::Full => {
            return Err(SpecError::Needs("batching Pages", "syncType Full"));
        }
        Batching::Pages => Asking::Pages(pages(source.pagination.as_ref(), &endpoint, &request)?),
    };
    if request != Request::Rest && matches!(asking, Asking::Pages(Pages { by: By::Link, .. })) {
        return Err(SpecError::Link);
    }
    Ok(SourceSpec {
        name: source.name.clone().map_or_else(|| derived_name(source, &spec.mapping), SourceName::Given),
        endpoint,
        request,
        asking,
        upsert: source.upsert && source.batching == Batching::Pages,
        result,
        key: pointer("keyPath", &source.key_path)?,
        key_type: source.key_type,
        mapping: Vec::new(),
        missing: match source.on_missing {
            OnMissing::Fail => Missing::Fail,
            OnMissing::Ignore => Missing::Ignore,
            OnMissing::Mark => Missing::Remove(removal(source, None)),
            OnMissing::Delete => {
                let after = source.delete_after.as_ref().map(|after| duration("deleteAfter", after)).transpose()?;
                Missing::Remove(removal(source, Some(after.unwrap_or_default())))
            }
        },
        timeout: duration("timeout", &source.timeout)?,
        retries: range("requestRetries", source.request_retries, 0, 10)? as u32,
        rate: source.rate_limit.as_ref().map(parse_rate).transpose()?,
        token: source.token_secret_ref.clone(),
        headers: source.headers_from.clone(),
        ca: source.ca_secret_ref.clone(),
    })
}

/// The fields that a mark writes.
fn mark_fields(source: &Source) -> Vec<&str> {
    if !matches!(source.on_missing, OnMissing::Mark | OnMissing::Delete) {
        return Vec::new();
    }
    [source.missing.field.as_str()].into_iter().chain(source.missing.set.iter().map(|set| set.to.as_str())).collect()
}

fn removal(source: &Source, delete_after: Option<Duration>) -> Removal {
    Removal {
        field: source.missing.field.clone(),
        set: source.missing.set.iter().map(|set| (set.to.clone(), set.value.clone())).collect(),
        delete_after,
        adopt: source.adopt,
    }
}

fn derived_name(source: &Source, mapping: &[MappedField]) -> SourceName {
    let spec = serde_json::to_vec(&(source, mapping)).unwrap_or_default();
    let hash: [u8; 32] = Sha256::digest(spec).into();
    let name = hash.first_chunk().map(|first| format!("{:016x}", u64::from_be_bytes(*first)));
    SourceName::Derived(name.unwrap_or_default())
}

fn pages(pagination: Option<&Pagination>, endpoint: &str, request: &Request) -> Result<Pages, SpecError> {
    let needs = |what| SpecError::Needs("batching Pages", what);
    let pagination = pagination.ok_or_else(|| needs("pagination"))?;
    let read = |field, path: &Option<String>| path.as_deref().map(|path| pointer(field, path)).transpose();
    let by = match pagination.by {
        PageBy::Cursor => {
            let next = read("pagination.nextPath", &pagination.next_path)?;
            By::Cursor(next.ok_or_else(|| needs("pagination.nextPath"))?)
        }
        PageBy::Number => By::Number,
        PageBy::Link if pagination.more_path.is_some() => {
            return Err(SpecError::Exclusive("pagination.morePath", "by Link"));
        }
        PageBy::Link => By::Link,
    };
    let ends_short = pagination.last_page == LastPage::Short;
    if ends_short && by != By::Number {
        return Err(SpecError::Needs("pagination.lastPage Short", "by Number"));
    }
    Ok(Pages {
        by,
        more: read("pagination.morePath", &pagination.more_path)?,
        total: read("pagination.totalPath", &pagination.total_path)?,
        ends_short,
        is_sized: match request {
            Request::GraphQl { query, .. } => query.contains("$first"),
            Request::Rest => url_template::has_placeholder(endpoint, "first"),
        },
    })
}

fn parse_rate(limit: &RateLimit) -> Result<RequestRate, SpecError> {
    let requests = range("rateLimit.requests", limit.requests, 1, 100_000)? as u32;
    let per = duration("rateLimit.per", &limit.per)?;
    RequestRate::new(requests, per).ok_or(SpecError::SlowRate)
}

fn pointer(field: &'static str, text: &str) -> Result<PointerBuf, SpecError> {
    text.parse().map_err(|_| SpecError::Pointer(field))
}

/// Reads and checks the mapping. MongoDB refuses an update that writes a field and a part of it; the key, the stamp and
/// the mark are not for the mapping.
fn mapping(fields: &[MappedField], reserved: &[&str]) -> Result<Vec<Mapped>, SpecError> {
    let mut mapping = Vec::with_capacity(fields.len());
    for (at, MappedField { to, from, value, type_, time_zone, on_null, .. }) in fields.iter().enumerate() {
        if to.is_empty() || to.contains('$') || to.starts_with('.') {
            return Err(SpecError::FieldPath { field: "mapping[].to", example: "name" });
        }
        let origin = match (from, value) {
            (Some(from), None) => ValueOrigin::Result(pointer("mapping[].from", from)?),
            (None, Some(text)) => ValueOrigin::Constant(Value::from(text.as_str())),
            _ => return Err(SpecError::Constant(to.clone())),
        };
        let others = fields[..at].iter().map(|other| other.to.as_str()).chain(reserved.iter().copied()).chain(["_id"]);
        if let Some(other) = others.into_iter().find(|other| overlap(to, other)) {
            return Err(SpecError::Overlap(to.clone(), other.to_owned()));
        }
        let zone = zone(*type_, time_zone.as_deref())?;
        mapping.push(Mapped { to: to.clone(), origin, type_: *type_, zone, on_null: *on_null });
    }
    Ok(mapping)
}

fn zone(type_: FieldType, name: Option<&str>) -> Result<TimeZone, SpecError> {
    match name {
        None => Ok(TimeZone::UTC),
        Some(_) if type_ != FieldType::Date => Err(SpecError::Needs("mapping[].timeZone", "type Date")),
        Some(name) => {
            TimeZone::get(name).map_err(|_| SpecError::TimeZone { field: "mapping[].timeZone", name: name.to_owned() })
        }
    }
}

/// True when one of these paths is the other, or a part of it.
pub(super) fn overlap(a: &str, b: &str) -> bool {
    let within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    a == b || within(a, b) || within(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::source::manifest;
    use serde_json::json;

    fn spec(source: &Value, mapping: &Value) -> SyncJobSpec {
        let mut whole = json!({"endpoint": "https://api.example/graphql", "query": "{a}", "resultPath": "/data/users"});
        whole.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        serde_json::from_value(json!({"source": manifest("graphQL", &whole), "mapping": mapping})).unwrap()
    }

    fn parsed(source: &Value) -> SourceSpec {
        parse(&spec(source, &json!([]))).unwrap().unwrap()
    }

    #[test]
    fn defaults_are_filled_in() {
        let source = parsed(&json!({}));
        assert_eq!((source.asking, source.key.as_str(), source.missing), (Asking::PerBatch, "/id", Missing::Fail));
        assert_eq!((source.timeout, source.rate), (Duration::from_secs(30), None));
        assert_eq!(parsed(&json!({"batching": "PerUser"})).asking, Asking::PerUser(8));
    }

    #[test]
    fn a_source_has_a_name_of_its_own() {
        let named = parsed(&json!({"name": "hr.example"})).name;
        assert_eq!(named.state_path("team-a"), "_sync.team-a/hr_example");
        let (one, same, other) = (parsed(&json!({})), parsed(&json!({})), parsed(&json!({"timeout": "9s"})));
        assert!(matches!(one.name, SourceName::Derived(_)) && one.name == same.name && one.name != other.name);
    }

    #[test]
    fn a_rate_is_kept_with_some_room() {
        let rate = |limit| parsed(&json!({"rateLimit": limit})).rate;
        let every = |micros, slack| {
            Some(RequestRate { every: Duration::from_micros(micros), slack: Duration::from_millis(slack) })
        };
        assert_eq!(rate(json!({"requests": 100})), every(10_500, 25));
        assert_eq!(rate(json!({"requests": 5000, "per": "1h"})), every(756_000, 90_000));
        assert_eq!(rate(json!({"requests": 60, "per": "1h"})), every(63_000_000, 90_000));
    }

    fn rest(endpoint: &str, part: &Value) -> SyncJobSpec {
        let mut source = json!({"endpoint": endpoint});
        source.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        serde_json::from_value(json!({"syncType": "Full", "source": manifest("rest", &source)})).unwrap()
    }

    #[test]
    fn an_endpoint_has_the_placeholders_of_its_requests() {
        let each = json!({"batching": "PerUser"});
        let batch = json!({});
        let paged = |by: Value| json!({"batching": "Pages", "pagination": by});
        let (numbered, linked) = (paged(json!({"by": "Number"})), paged(json!({"by": "Link"})));
        let cursor = paged(json!({"nextPath": "/next"}));
        for (endpoint, part) in [
            ("https://a/users/{id}", &each),
            ("https://a/users?ids={ids}", &batch),
            ("https://a/users?page={page}&n={first}", &numbered),
            ("https://a/users?after={after}", &cursor),
            ("https://a/users?n={first}", &linked),
            ("https://a/users", &linked),
        ] {
            let spec = parse(&rest(endpoint, part)).unwrap().unwrap();
            assert_eq!(
                (spec.result.as_str(), spec.key.as_str(), spec.request),
                ("", "/id", Request::Rest),
                "{endpoint}"
            );
        }
        for (endpoint, part, message) in [
            ("https://a/users", &each, "endpoint with {id} and batching PerUser go together"),
            ("https://a/users/{id}", &batch, "endpoint with {id} and batching PerUser go together"),
            ("https://a/users", &batch, "endpoint with {ids} and batching PerBatch go together"),
            ("https://a/users", &numbered, "endpoint with {page} and pagination.by Number go together"),
            ("https://a/users?page={page}", &linked, "endpoint with {page} and pagination.by Number go together"),
            ("https://a/users", &cursor, "endpoint with {after} and pagination.by Cursor go together"),
            ("https://a/users/{id}?n={first}", &each, "endpoint with {first} needs batching Pages"),
            ("https://{id}.a/users", &each, "endpoint must be a URL such as https://api.example.com/users/{id}, with"),
            (
                "https://a/users/{user}",
                &each,
                "endpoint must be a URL such as https://api.example.com/users/{id}, with",
            ),
            ("https://a/users/{id", &each, "endpoint must be a URL such as https://api.example.com/users/{id}, with"),
            ("ftp://a/{id}", &each, "endpoint must be an http or https URL"),
            (
                "https://a/users",
                &paged(json!({"by": "Link", "morePath": "/more"})),
                "pagination.morePath and by Link exclude each other",
            ),
        ] {
            let error = parse(&rest(endpoint, part)).unwrap_err().to_string();
            let base = if message.starts_with("endpoint") { "source.rest" } else { "source" };
            assert!(error.starts_with(&format!("{base}.{message}")), "{endpoint} {part}: {error}");
        }
    }

    #[test]
    fn there_is_one_source() {
        let graph_ql = json!({"endpoint": "https://a/", "query": "{a}", "resultPath": ""});
        let rest = json!({"endpoint": "https://a/{ids}"});
        for source in [json!({}), json!({"graphQL": graph_ql, "rest": rest})] {
            let spec = serde_json::from_value(json!({"source": source})).unwrap();
            assert!(parse(&spec).unwrap_err().to_string().starts_with("source needs either graphQL or rest"));
        }
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
                "source.batching Pages needs syncType Full",
            ),
            (
                json!({"onMissing": "Delete"}),
                json!([]),
                "source.onMissing Mark or Delete needs batching PerUser or Pages",
            ),
            (
                json!({"onMissing": "Mark", "batching": "PerUser"}),
                json!([{"from": "/a", "to": "missingSince"}]),
                "mapping[].to missingSince and missingSince overlap",
            ),
            (
                json!({"onMissing": "Mark", "batching": "PerUser", "missing": {"field": "_id.gone"}}),
                json!([]),
                "source.missing: _id.gone must not be a part of _id",
            ),
            (json!({"timeout": "soon"}), json!([]), "source.timeout: "),
            (json!({"rateLimit": {"requests": 0}}), json!([]), "source.rateLimit.requests must be"),
            (
                json!({"rateLimit": {"requests": 59, "per": "1h"}}),
                json!([]),
                "source.rateLimit allows less than one request per minute: raise requests, or lower per",
            ),
            (json!({"concurrency": 65}), json!([]), "source.concurrency must be from 1 to 64"),
            (json!({}), json!([{"to": "a"}]), "mapping[].to a needs either from"),
            (json!({}), json!([name, name]), "mapping[].to name and name overlap"),
            (json!({}), json!([name, {"from": "/a", "to": "name.first"}]), "mapping[].to name.first and name overlap"),
            (json!({}), json!([{"from": "/a", "to": "lastSynced"}]), "mapping[].to lastSynced and lastSynced overlap"),
            (json!({}), json!([{"from": "/a", "to": "_id"}]), "mapping[].to _id and _id overlap"),
            (json!({}), json!([{"from": "/a", "to": "_sync.x"}]), "mapping[].to _sync.x and _sync overlap"),
            (json!({}), json!([{"from": "name", "to": "name"}]), "mapping[].from must be a JSON pointer"),
            (json!({}), json!([{"from": "/a~2", "to": "name"}]), "mapping[].from must be a JSON pointer"),
        ] {
            let error = parse(&spec(&source, &mapping)).unwrap_err().to_string();
            assert!(error.starts_with(message), "{source} {mapping}: {error}");
        }
        let mut linked = spec(&json!({"batching": "Pages", "pagination": {"by": "Link"}}), &json!([]));
        linked.sync_type = SyncMode::Full;
        assert!(parse(&linked).unwrap_err().to_string().starts_with("source.pagination.by Link needs rest"));
        let spec = serde_json::from_value(json!({"mapping": [name]})).unwrap();
        assert!(parse(&spec).unwrap_err().to_string().starts_with("mapping needs source"));
    }
}
