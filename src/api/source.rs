//! Types of the source of a run and of the mapping of its results.

use std::fmt;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{GoDuration, Unknown, rules};

/// HTTP API with the desired content of documents, and the way that a run requests it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.graphQL) != has(self.rest)").message("source needs either graphQL or rest: set one of them"),
    validation = Rule::new("(self.batching == 'Pages') == has(self.pagination)").message("source.pagination and batching Pages go together: set both, or remove pagination"),
    validation = Rule::new("!self.upsert || self.batching == 'Pages'").message("source.upsert needs batching Pages: other runs request only documents that exist").field_path(".upsert"),
    validation = Rule::new("!has(self.deleteAfter) || self.onMissing == 'Delete'").message("source.deleteAfter needs onMissing Delete: set it, or remove deleteAfter").field_path(".deleteAfter"),
    validation = Rule::new("!has(self.missing.set) || self.onMissing in ['Mark', 'Delete']").message("source.missing.set needs onMissing Mark or Delete: set it, or remove missing.set").field_path(".missing.set"),
    validation = Rule::new("!self.adopt || (self.batching == 'Pages' && self.onMissing in ['Mark', 'Delete'])").message("source.adopt needs batching Pages and onMissing Mark or Delete: set both, or remove adopt").field_path(".adopt"),
    validation = Rule::new("self.batching != 'PerBatch' || !(self.onMissing in ['Mark', 'Delete'])").message("source.onMissing Mark and Delete need batching PerUser or Pages: a list may have been cut off").field_path(".onMissing"),
    validation = Rule::new("!has(self.pagination) || self.pagination.by != 'Link' || has(self.rest)").message("source.pagination.by Link needs rest: with graphQL, use Cursor or Number").field_path(".pagination.by"),
    validation = rules::placeholder("id", "batching PerUser", "self.batching == 'PerUser'"),
    validation = rules::placeholder("ids", "batching PerBatch", "self.batching == 'PerBatch'"),
    validation = rules::placeholder("page", "pagination.by Number", "has(self.pagination) && self.pagination.by == 'Number'"),
    validation = rules::placeholder("after", "pagination.by Cursor", "has(self.pagination) && self.pagination.by == 'Cursor'"),
    validation = Rule::new("!has(self.rest) || !self.rest.endpoint.contains('{first}') || self.batching == 'Pages'").message("source.rest.endpoint with {first} needs batching Pages: remove it, or set batching Pages").field_path(".rest.endpoint")
)]
pub struct Source {
    /// A GraphQL API over HTTP.
    #[serde(rename = "graphQL", default, skip_serializing_if = "Option::is_none")]
    pub graph_ql: Option<GraphQl>,

    /// An API that answers GET with JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<Rest>,

    /// Name under which documents store the confirmations of this source. It separates the confirmations, marks and
    /// deletions of two sources of one collection. Default: the name of the schedule. A SyncJob without both marks and
    /// deletes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$')").message("source.name must be lower-case letters, digits, - and ., such as gitlab"))]
    #[schemars(length(max = 63))]
    pub name: Option<String>,

    /// Adoption of documents that the source has never listed. True: the run confirms the documents of the selection
    /// that the source does not list, so that later runs mark or delete them. Such a run is always held, and needs an
    /// approval. For a SyncJob without a schedule.
    #[serde(default)]
    pub adopt: bool,

    /// Way to request documents. PerBatch sends one request for each batch, and expects a list. PerUser sends one
    /// request for each document. Pages requests all results of the API, page by page, and needs `syncType: Full`.
    #[serde(default)]
    pub batching: Batching,

    /// For PerUser: number of concurrent requests within one batch, 1 to 64.
    #[serde(default = "default_concurrency")]
    #[x_kube(validation = rules::range("concurrency", 1, 64))]
    pub concurrency: i32,

    /// For Pages: way to request the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pagination: Option<Pagination>,

    /// For Pages: creation of documents. True: the run creates a document for a result without one. `target.keyField`
    /// needs a unique index.
    #[serde(default)]
    pub upsert: bool,

    /// JSON pointer, from one result, to the key of its document, such as `/id`. For PerBatch and Pages.
    #[serde(default = "default_key_path")]
    #[x_kube(validation = rules::pointer("keyPath", "/id"))]
    #[schemars(length(max = 256))]
    pub key_path: String,

    /// For Pages: type that a key is converted to. It has to be the type of the documents' keys.
    #[serde(default)]
    pub key_type: FieldType,

    /// Handling of a document without a result in the API. Fail counts it as failed: a list may be shorter than
    /// requested, as where the API splits it into pages. Ignore leaves the document as it is, unstamped. Mark writes
    /// the time into `missing.field`, and `missing.set`. Delete marks the document too, and a later run deletes it
    /// when the document still has no result. Mark and Delete are not available for PerBatch, and both affect only
    /// documents that an earlier run of this source has confirmed.
    #[serde(default)]
    pub on_missing: OnMissing,

    /// For `onMissing: Mark` and `Delete`: fields that are written into a document without a result in the API.
    #[serde(default)]
    pub missing: Mark,

    /// For `onMissing: Delete`: time for which a document stays marked before a run may delete it, 0s to 8760h.
    /// Default: the next run may delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration("deleteAfter", "0s", "8760h", "720h"))]
    pub delete_after: Option<GoDuration>,

    /// Secret of the same namespace with the token that is sent as `Authorization: Bearer`. An annotation of the Secret
    /// must name the destinations that may receive the token, as `[scheme://]host[:port][/path]`: `kubectl annotate
    /// secret NAME sync.codex.dev/hosts=gitlab.example.com/api`. Without a scheme, an item means https at port 443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,

    /// Headers of each request, with values from Secrets of the same namespace. Each Secret needs the annotation that
    /// `tokenSecretRef` describes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers_from: Vec<HeaderFrom>,

    /// Secret of the same namespace with the CA certificates (PEM) that verify the endpoint's certificate. The Secret
    /// needs the annotation that `tokenSecretRef` describes. Default: the well-known CAs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,

    /// Longest wait for one answer, 1s to 10m.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = rules::duration("timeout", "1s", "10m", "30s"))]
    pub timeout: GoDuration,

    /// Retries of a request that failed for a reason that a retry may avoid, such as a timeout or a status of 5xx, 0
    /// to 10.
    #[serde(default = "default_request_retries")]
    #[x_kube(validation = rules::range("requestRetries", 0, 10))]
    pub request_retries: i32,

    /// Limit of the requests to this server by all runs of the namespace with the same Secrets, on all workers.
    /// Independently of it, the operator always follows `Retry-After` and the rate limit headers of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// A GraphQL API over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GraphQl {
    /// Address of the API, such as `https://gitlab.example.com/api/graphql`. Addresses of private networks, and
    /// `http://`, are allowed only by the operator's `--source-allowed-hosts`, `--source-allowed-cidrs` or policy.
    /// Redirects are not followed.
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@ ]+([/?][^# ]*)?$')").message("endpoint must be an http or https URL without user, password and fragment, such as https://gitlab.example.com/api/graphql: tokens belong into tokenSecretRef"))]
    #[schemars(length(max = 1024))]
    pub endpoint: String,

    /// GraphQL query. The keys of the documents are its variable `$ids` (PerBatch), or `$id` (PerUser). For Pages,
    /// `$first` is `batchSize`, and `$after` or `$page` identifies the page. Mutations and subscriptions need an
    /// annotation of the Secrets: `kubectl annotate secret NAME sync.codex.dev/graphql-operations=query,mutation`. At
    /// most 64 brackets within each other.
    #[schemars(length(min = 1, max = 16384))]
    pub query: String,

    /// Name of the operation to execute. Needed when the query has several operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub operation_name: Option<String>,

    /// Additional variables of the query. `ids`, `id`, `first`, `after` and `page` are set for each request. At most
    /// 64 KiB of JSON and 32 levels.
    #[serde(default, skip_serializing_if = "Variables::is_empty")]
    pub variables: Variables,

    /// JSON pointer, from the answer's root, to the list of results (PerBatch, Pages) or to the one result (PerUser),
    /// such as `/data/users/nodes`.
    #[x_kube(validation = rules::pointer("resultPath", "/data/users/nodes"))]
    #[schemars(length(max = 256))]
    pub result_path: String,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// An API that answers GET with JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rest {
    /// Address of the resource. In its path or query, `{id}` is the key of the document (PerUser), and `{ids}` are
    /// the keys of a batch, separated by commas (PerBatch). For Pages, `{page}` or `{after}` identifies the page, and
    /// `{first}` is `batchSize`. Addresses of private networks, and `http://`, are allowed only by the operator's
    /// `--source-allowed-hosts`, `--source-allowed-cidrs` or policy. Redirects are not followed.
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@ {}]+([/?]([^# {}]|[{](id|ids|page|after|first)[}])*)?$')").message("endpoint must be an http or https URL without user, password and fragment, such as https://api.example.com/users/{id}: tokens belong into tokenSecretRef. The URL may have no other braces than {id}, {ids}, {page}, {after} and {first}, after its host"))]
    #[schemars(length(max = 1024))]
    pub endpoint: String,

    /// JSON pointer, from the answer's root, to the list of results (PerBatch, Pages) or to the one result (PerUser),
    /// such as `/users`. Default: the root of the answer.
    #[serde(default)]
    #[x_kube(validation = rules::pointer("resultPath", "/users"))]
    #[schemars(length(max = 256))]
    pub result_path: String,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Way to request documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Batching {
    /// One request for each batch.
    #[default]
    PerBatch,
    /// One request for each document.
    PerUser,
    /// One request for each page of all results.
    Pages,
}

/// Way to request the next page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.by == 'Cursor') == has(self.nextPath)").message("pagination.nextPath and by Cursor go together: set both, or remove nextPath"),
    validation = Rule::new("self.by == 'Number' || self.lastPage == 'Empty'").message("pagination.lastPage Short needs by Number: set it, or remove lastPage"),
    validation = Rule::new("self.by != 'Link' || !has(self.morePath)").message("pagination.morePath and by Link exclude each other: keep one of them")
)]
pub struct Pagination {
    /// Identification of a page. Cursor sets `after`, which is null or empty in the first request. Number sets `page`,
    /// from 1 on. Link requests the address with `rel="next"` in the header `Link` of the previous answer, and is for
    /// `rest` only.
    #[serde(default)]
    pub by: PageBy,
    /// For Cursor: JSON pointer to the cursor of the next page, such as `/data/users/pageInfo/endCursor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::pointer("pagination.nextPath", "/data/users/pageInfo/endCursor"))]
    #[schemars(length(max = 256))]
    pub next_path: Option<String>,
    /// JSON pointer to a boolean that is true when there are more pages, such as `/data/users/pageInfo/hasNextPage`.
    /// Default: the last page is a page without a cursor, or with Number a page without results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::pointer("pagination.morePath", "/data/users/pageInfo/hasNextPage"))]
    #[schemars(length(max = 256))]
    pub more_path: Option<String>,
    /// JSON pointer to the number of all results, such as `/total`. A run whose walk found fewer results marks and
    /// deletes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::pointer("pagination.totalPath", "/total"))]
    #[schemars(length(max = 256))]
    pub total_path: Option<String>,
    /// For Number: last page of the walk. Empty: a page without results, since servers shorten pages. Short: also a
    /// page with fewer results than `batchSize`, which saves a request where the server never shortens pages.
    #[serde(default)]
    pub last_page: LastPage,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Last page of a walk by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum LastPage {
    /// A page without results.
    #[default]
    Empty,
    /// A page with fewer results than requested.
    Short,
}

/// Identification of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum PageBy {
    /// Cursor in the previous page.
    #[default]
    Cursor,
    /// Page number.
    Number,
    /// Address in the header `Link` of the previous page.
    Link,
}

/// Handling of a document that the source does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OnMissing {
    /// The document is counted as failed.
    #[default]
    Fail,
    /// The document stays as it is, and is counted as unchanged.
    Ignore,
    /// The run writes the time since which the document is missing.
    Mark,
    /// The run marks the document, and a later run deletes it.
    Delete,
}

/// Mark of a document that the source does not have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// Field with the time since which the source does not have the document. The run removes the field when the source
    /// has the document again.
    #[serde(default = "default_missing_field")]
    #[x_kube(validation = Rule::new("self.matches('^[^$.][^$]{0,127}$') && self != '_id' && !self.startsWith('_id.')").message("missing.field must be a field path without $, such as missingSince, and not _id"))]
    #[schemars(length(max = 128))]
    pub field: String,

    /// Fields that are set with the mark. They are restored when the source has the document again, unless another
    /// client changed them since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["to".into()]))]
    #[schemars(length(max = 16))]
    pub set: Vec<SetField>,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl Default for Mark {
    fn default() -> Self {
        Self { field: default_missing_field(), set: Vec::new(), unknown: Unknown::new() }
    }
}

/// A field that is set in a document that the source does not have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetField {
    /// Field of the document, such as `active`. The mapping must not have the same field.
    #[x_kube(validation = Rule::new("self.matches('^[^$.][^$]{0,127}$') && self != '_id' && !self.startsWith('_id.')").message("missing.set[].to must be a field path without $, such as active, and not _id"))]
    #[schemars(length(max = 128))]
    pub to: String,

    /// Value of the field: a boolean, a number or a string.
    #[schemars(schema_with = "scalar")]
    pub value: Value,
}

fn scalar(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// An entry of a Secret of the SyncJob's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A header with a value from a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderFrom {
    /// Name of the header.
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9-]{1,64}$') && !(self.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection'])").message("headersFrom[].name must be letters, digits and -, such as PRIVATE-TOKEN, and none of Host, Content-Length, Transfer-Encoding, Connection"))]
    #[schemars(length(max = 64))]
    pub name: String,
    /// Reference to the entry of a Secret with the value.
    pub secret_ref: SecretKey,
}

/// Limit of the rate of requests, of at least one request per minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::at_least_each_minute("source.rateLimit"))]
pub struct RateLimit {
    /// Number of requests in the period, 1 to 100000.
    #[x_kube(validation = rules::range("rateLimit.requests", 1, 100_000))]
    pub requests: i32,
    /// Length of the period, 1s to 24h.
    #[serde(default = "default_per")]
    #[x_kube(validation = rules::duration("rateLimit.per", "1s", "24h", "1s"))]
    pub per: GoDuration,
}

/// Variables of a query.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variables(pub Map<String, Value>);

impl Variables {
    /// True when there are no variables.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl JsonSchema for Variables {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Variables".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
    }
}

/// Value of one field of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.from) != has(self.value)").message("mapping[] needs either from, a JSON pointer into the result, or value, a constant"),
    validation = Rule::new("!has(self.timeZone) || self.type == 'Date'").message("mapping[].timeZone needs type Date: set it, or remove timeZone").field_path(".timeZone")
)]
pub struct MappedField {
    /// Field of the document that is written, such as `name` or `profile.email`.
    #[x_kube(validation = Rule::new("self.matches('^[^$.][^$]{0,127}$') && self != '_id' && !self.startsWith('_id.')").message("mapping[].to must be a field path without $, such as name or profile.email, and not _id"))]
    #[schemars(length(max = 128))]
    pub to: String,

    /// JSON pointer, from one result, to the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::pointer("mapping[].from", "/name"))]
    #[schemars(length(max = 256))]
    pub from: Option<String>,

    /// Constant text for every document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,

    /// Type that the value is converted to. Any keeps the value as it is.
    #[serde(rename = "type", default)]
    pub type_: FieldType,

    /// For Date: IANA name of the time zone of values without one, such as `Europe/Berlin`. Default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::time_zone("mapping[].timeZone"))]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,

    /// Handling of a value that is null or missing. Skip leaves the field as it is, Unset removes it, Set makes it
    /// null.
    #[serde(default)]
    pub on_null: OnNull,

    /// Fields of a newer release. They are kept, so that a newer release finds them.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Type that a value is converted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum FieldType {
    /// The value is kept as it is.
    #[default]
    Any,
    /// A text. Numbers and booleans are written out.
    String,
    /// A whole number, from a number or a text.
    Int,
    /// A number, from a number or a text.
    Double,
    /// True or false, also as texts.
    Bool,
    /// A decimal number (Decimal128), from a number or a text.
    Decimal,
    /// A date, from a text such as `2026-01-31T10:00:00Z`, `2026-01-31 10:00` or `2026-01-31`. A text without a zone is
    /// in `timeZone`, and a text without a time is at midnight.
    Date,
    /// A date, from the seconds since 1970 in UTC.
    EpochSeconds,
    /// A date, from the milliseconds since 1970 in UTC.
    EpochMillis,
    /// An ObjectId, from its 24 hexadecimal digits.
    ObjectId,
    /// A UUID (binary, subtype 4), from a text such as `123e4567-e89b-12d3-a456-426614174000`.
    #[serde(rename = "UUID")]
    Uuid,
}

impl fmt::Display for FieldType {
    /// Formats the type as in a manifest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid => f.write_str("UUID"),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

/// Handling of a missing value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OnNull {
    /// The field stays as it is.
    #[default]
    Skip,
    /// The field is removed.
    Unset,
    /// The field becomes null.
    Set,
}

fn default_concurrency() -> i32 {
    8
}
fn default_key_path() -> String {
    "/id".to_owned()
}
fn default_missing_field() -> String {
    "missingSince".to_owned()
}
fn default_request_retries() -> i32 {
    5
}
fn default_timeout() -> GoDuration {
    GoDuration::new("30s")
}
fn default_per() -> GoDuration {
    GoDuration::new("1s")
}

/// Source of this kind in a manifest: the fields of the kind, and the fields that all sources share.
#[cfg(test)]
pub(crate) fn manifest(kind: &str, fields: &Value) -> Value {
    const OWN: [&str; 5] = ["endpoint", "query", "operationName", "variables", "resultPath"];
    let fields = fields.as_object().cloned().unwrap_or_default();
    let (own, mut shared): (Map<_, _>, Map<_, _>) =
        fields.into_iter().partition(|(name, _)| OWN.contains(&name.as_str()));
    shared.insert(kind.to_owned(), own.into());
    shared.into()
}
