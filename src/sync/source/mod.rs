//! Requests for the desired content of documents, to an API over HTTP.

mod answer;
pub(crate) mod egress;
pub(crate) mod limits;
mod links;
mod memory;
mod proof;

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bson::Bson;
use jiff::Timestamp;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK},
};
use serde_json::{Map, Value};

use super::{Error, json, keys};
use crate::{
    api::conditions::reasons,
    connection_error,
    domain::{
        destination::Destination,
        egress::{Denied, Egress},
        secret_scope::SecretScope,
        source::{Asking, By, Pages, Request, SourceSpec},
        url_template,
    },
    policy::NamespaceEgress,
};
pub use answer::SourcePage;
use answer::{End, unusable};
use memory::RequestMemory;
pub use memory::{BatchMemory, SourceBudget, SourceBudgets};
pub use proof::{Doubt, Walk};

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// Largest cursor, or address of the next page, in bytes: the checkpoint of the run contains it.
const MAX_NEXT: usize = 8 << 10;
/// Longest address that keys are put into, in bytes. Many servers take half of it.
const MAX_ADDRESS: usize = 16 << 10;

/// Secrets of a source. Must not be shown.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Values of headers, by name.
    pub headers: Vec<(String, String)>,
    /// Authorities, as PEM.
    pub ca: Option<Vec<u8>>,
    /// Scopes of the Secrets. Each request must be in all of them.
    pub scopes: Vec<SecretScope>,
}

/// Client of the API of a source.
#[derive(Clone)]
pub struct SourceClient {
    connections: Arc<Mutex<Connections>>,
    secrets: Arc<Secrets>,
    egress: NamespaceEgress,
    endpoint: Url,
    spec: SourceSpec,
}

/// Connections to a source, with the addresses that were allowed when they were made.
struct Connections {
    client: Client,
    allowed: Egress,
}

/// Result of a source for one document.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The source has this result.
    Result(Value),
    /// The source says that it has no such document.
    Missing,
    /// The source returned no result, which may have other reasons.
    NotReturned,
    /// An error: a word, and a sentence.
    Failed(&'static str, String),
}

/// A usable answer.
#[derive(Debug)]
pub struct Reply<T> {
    /// Content of the answer.
    pub found: T,
    /// True when a part of it failed for a reason that another request may not meet.
    pub is_partial: bool,
    /// Time for which the server asks for no more requests.
    pub pause: Option<Duration>,
}

impl<T> Reply<T> {
    /// An answer of which no part failed.
    fn whole(found: T, pause: Option<Duration>) -> Self {
        Self { found, is_partial: false, pause }
    }
}

/// Failure of a request, by its consequences for the run.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestFailure {
    /// A repeated request may succeed: the failure was one of the connection, a timeout, or an error of the server.
    Transient(Error),
    /// The server rejects the request for its rate, with or without a duration.
    Limited(Option<Duration>),
    /// The server rejects this request, and perhaps only this one.
    Rejected(Error),
    /// The answer cannot be used.
    Unusable(Error),
    /// The server does not accept the credentials (401). Others may be accepted.
    Unauthorized(Error),
    /// No request can succeed: the credentials or the address are wrong.
    Fatal(Error),
}

impl RequestFailure {
    /// The error of a request that concerns more than one document.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Transient(error)
            | Self::Rejected(error)
            | Self::Unusable(error)
            | Self::Unauthorized(error)
            | Self::Fatal(error) => error,
            Self::Limited(_) => attempt(reasons::RATE_LIMITED, "the source limits requests"),
        }
    }
}

impl From<Error> for RequestFailure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

fn rejected(message: &str) -> Error {
    Error::InvalidSource(message.to_owned())
}

fn attempt(reason: &'static str, message: impl Into<String>) -> Error {
    Error::Attempt { reason, message: message.into() }
}

impl SourceClient {
    /// Checks the endpoint of a source.
    ///
    /// # Errors
    /// When the endpoint is no URL.
    pub fn check_endpoint(spec: &SourceSpec) -> Result<(), Error> {
        endpoint(spec).map(drop)
    }

    /// Scheme, host and port of the endpoint.
    #[must_use]
    pub fn origin(&self) -> String {
        self.endpoint.origin().ascii_serialization()
    }

    /// Host of the endpoint.
    #[must_use]
    pub fn host(&self) -> String {
        self.endpoint.host_str().unwrap_or_default().to_owned()
    }

    /// Creates the client of a source at addresses that `egress` allows.
    ///
    /// # Errors
    /// When the endpoint is not allowed, or a secret cannot be used.
    pub fn new(spec: &SourceSpec, secrets: Secrets, egress: NamespaceEgress) -> Result<Self, Error> {
        let endpoint = endpoint(spec)?;
        check_scopes(&secrets.scopes, &endpoint)?;
        let allowed = egress.get();
        egress::admit(&allowed, &endpoint).map_err(|denied| not_allowed(spec, denied))?;
        let client = connect(spec, &secrets, egress.clone(), &endpoint)?;
        let connections = Arc::new(Mutex::new(Connections { client, allowed }));
        Ok(Self { connections, secrets: Arc::new(secrets), egress, endpoint, spec: spec.clone() })
    }

    /// Returns the client for a request to an address. After a change of the policy, the connections from before are
    /// not used again.
    fn client(&self, address: &Url) -> Result<Client, Error> {
        check_scopes(&self.secrets.scopes, address)?;
        let allowed = self.egress.get();
        egress::admit(&allowed, address).map_err(|denied| not_allowed(&self.spec, denied))?;
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.allowed != allowed {
            let client = connect(&self.spec, &self.secrets, self.egress.clone(), &self.endpoint)?;
            *connections = Connections { client, allowed };
        }
        Ok(connections.client.clone())
    }

    /// Spec of the source.
    pub fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    /// Requests the desired content of documents. With PerUser, one document. `received` is called when the answer has
    /// arrived and before it is parsed, which may take milliseconds. The answer takes memory of `memory`.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn request_documents(
        &self,
        keys: &[Bson],
        memory: &BatchMemory,
        received: impl FnOnce(),
    ) -> Result<Reply<Vec<Found>>, RequestFailure> {
        let keys: Vec<String> = keys.iter().map(keys::text).collect();
        let Request::GraphQl { variables, .. } = &self.spec.request else {
            return self.request_by_url(&keys, memory, received).await;
        };
        let mut variables = variables.clone();
        match (&self.spec.asking, keys.as_slice()) {
            (Asking::PerUser(_), [key]) => variables.insert("id".to_owned(), Value::from(key.as_str())),
            _ => variables.insert("ids".to_owned(), Value::from(keys.as_slice())),
        };
        let decode = |_: &HeaderMap, answer: Option<Value>| answer::parse_answer(&self.spec, &keys, answer);
        Ok(self.send(self.post(variables)?, memory, received, decode).await?)
    }

    /// Requests documents with their keys in the address. Keys that cannot be part of an address have failed: the
    /// address would identify another resource.
    async fn request_by_url(
        &self,
        keys: &[String],
        memory: &BatchMemory,
        received: impl FnOnce(),
    ) -> Result<Reply<Vec<Found>>, RequestFailure> {
        let is_one = matches!(self.spec.asking, Asking::PerUser(_));
        let fits = |key: &String| !key.is_empty() && (is_one || !key.contains(','));
        let misfit = || Found::Failed("InvalidKey", "its key cannot be part of the address of a request".to_owned());
        let encoded: Vec<String> = keys.iter().filter(|key| fits(key)).map(|key| url_template::encode(key)).collect();
        let placeholder = if is_one { "id" } else { "ids" };
        let filled = url_template::fill(&self.spec.endpoint, &[(placeholder, &encoded.join(","))]);
        let Some(address) = filled.filter(|_| !encoded.is_empty()) else {
            return Ok(Reply::whole(vec![misfit(); keys.len()], None));
        };
        if address.len() > MAX_ADDRESS {
            return Err(too_long().into());
        }
        let decode = |_: &HeaderMap, answer: Option<Value>| {
            let (found, is_partial) = answer::parse_answer(&self.spec, keys, answer)?;
            let fitting = |(key, found)| if fits(key) { found } else { misfit() };
            Ok((keys.iter().zip(found).map(fitting).collect(), is_partial))
        };
        match self.send(self.get(self.parsed(&address)?)?, memory, received, decode).await {
            Err(Unanswered::NothingThere(pause, _)) if is_one => Ok(Reply::whole(vec![Found::Missing], pause)),
            reply => Ok(reply?),
        }
    }

    /// Requests a page of about `size` results. By number, a missing page (404) after the first one counts as an empty
    /// page, as with Django REST framework. The answer takes memory of `memory`.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn page(
        &self,
        pages: &Pages,
        at: &Value,
        size: usize,
        memory: &BatchMemory,
    ) -> Result<Reply<SourcePage>, RequestFailure> {
        let Request::GraphQl { variables, .. } = &self.spec.request else {
            let asked = self.page_address(pages, at, size)?;
            let decode = |headers: &HeaderMap, answer: Option<Value>| {
                let link = if pages.by == By::Link { links::next(headers, &asked)? } else { None };
                let end = if headers.contains_key(LINK) { End::Stated } else { End::Absent };
                let link = link.map(|link| Value::from(link.as_str())).ok_or(end);
                answer::page(&self.spec, pages, at, answer.unwrap_or_default(), link)
            };
            return match self.send(self.get(asked.clone())?, memory, || (), decode).await {
                Err(Unanswered::NothingThere(pause, _)) if pages.by == By::Number && *at != pages.first() => {
                    Ok(Reply::whole(SourcePage::default(), pause))
                }
                reply => Ok(reply?),
            };
        };
        let mut variables = variables.clone();
        variables.insert("first".to_owned(), Value::from(size));
        variables.insert(if pages.by == By::Number { "page" } else { "after" }.to_owned(), at.clone());
        let decode = |_: &HeaderMap, answer: Option<Value>| {
            answer::page(&self.spec, pages, at, answer.unwrap_or_default(), Err(End::Absent))
        };
        Ok(self.send(self.post(variables)?, memory, || (), decode).await?)
    }

    fn page_address(&self, pages: &Pages, at: &Value, size: usize) -> Result<Url, RequestFailure> {
        if let (By::Link, Value::String(link)) = (&pages.by, at) {
            return links::follow(&self.endpoint, link);
        }
        let nowhere = || unusable("its cursor cannot be part of an address");
        let at = if at.is_null() { "".into() } else { answer::text(at).ok_or_else(nowhere)? };
        let (at, size) = (url_template::encode(&at), size.to_string());
        let filled = url_template::fill(&self.spec.endpoint, &[("first", &size), ("page", &at), ("after", &at)]);
        Ok(self.parsed(&filled.ok_or_else(nowhere)?)?)
    }

    fn parsed(&self, address: &str) -> Result<Url, Error> {
        Url::parse(address).map_err(|_| no_url(&self.spec))
    }

    /// A request for an address, which a key or the server may have determined.
    fn get(&self, address: Url) -> Result<RequestBuilder, Error> {
        Ok(self.client(&address)?.get(address).header(ACCEPT, "application/json"))
    }

    /// The query with these variables.
    fn post(&self, variables: Map<String, Value>) -> Result<RequestBuilder, Error> {
        let mut body = Map::new();
        if let Request::GraphQl { query, operation_name, .. } = &self.spec.request {
            body.insert("query".to_owned(), Value::from(query.as_str()));
            body.insert("variables".to_owned(), Value::Object(variables));
            if let Some(name) = operation_name {
                body.insert("operationName".to_owned(), Value::from(name.as_str()));
            }
        }
        let client = self.client(&self.endpoint)?;
        let request = client.post(self.endpoint.clone()).header(CONTENT_TYPE, "application/json");
        Ok(request.body(Value::Object(body).to_string()))
    }

    /// Sends a request, and reads headers and body of the answer.
    async fn send<T>(
        &self,
        request: RequestBuilder,
        memory: &BatchMemory,
        received: impl FnOnce(),
        decode: impl FnOnce(&HeaderMap, Option<Value>) -> Result<(T, bool), RequestFailure>,
    ) -> Result<Reply<T>, Unanswered> {
        let mut response = request.send().await.map_err(|error| self.unreached(&error))?;
        let pause = limits::pause(response.headers(), Timestamp::now());
        let status = response.status();
        let mut memory = memory.of_request();
        if !status.is_success() {
            return Err(self.refused(status, pause, &mut response, memory).await);
        }
        let headers = mem::take(response.headers_mut());
        let body = self.receive(&mut response, &mut memory).await?;
        received();
        let answer = self.parse(&body, &mut memory).await?;
        match decode(&headers, answer) {
            Ok((found, is_partial)) => {
                memory.keep();
                Ok(Reply { found, is_partial, pause })
            }
            // The body reports a limit, and the headers its duration.
            Err(RequestFailure::Limited(None)) => Err(RequestFailure::Limited(pause).into()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Classifies an answer by its status, and where that is ambiguous, by its body.
    async fn refused(
        &self,
        status: StatusCode,
        pause: Option<Duration>,
        response: &mut Response,
        mut memory: RequestMemory<'_>,
    ) -> Unanswered {
        let error = refusal(&self.spec, status);
        match status.as_u16() {
            404 | 410 => Unanswered::NothingThere(pause, error),
            429 => RequestFailure::Limited(pause).into(),
            // GitHub limits with 403, and GraphQL servers do with 400.
            400 | 403 | 503 if pause.is_some() => RequestFailure::Limited(pause).into(),
            408 | 425 | 500..=599 => RequestFailure::Transient(error).into(),
            401 => RequestFailure::Unauthorized(error).into(),
            414 | 300..=399 => RequestFailure::Fatal(error).into(),
            400 if self.is_rate_limit(response, &mut memory).await => RequestFailure::Limited(None).into(),
            403 if self.is_rate_limit(response, &mut memory).await => {
                RequestFailure::Limited(Some(limits::SECONDARY_PAUSE)).into()
            }
            _ => RequestFailure::Rejected(error).into(),
        }
    }

    /// Failure of the run, which would receive the same answer again.
    fn over_budget(&self, has: &str) -> RequestFailure {
        let fix = match self.spec.asking {
            Asking::PerUser(_) => "request less of each document",
            _ => "lower batchSize",
        };
        RequestFailure::Fatal(Error::BudgetExceeded(format!("the source's answer has {has}: {fix}")))
    }

    async fn is_rate_limit(&self, response: &mut Response, memory: &mut RequestMemory<'_>) -> bool {
        let Ok(body) = self.receive(response, memory).await else { return false };
        let answer = self.parse(&body, memory).await.ok().flatten();
        answer.is_some_and(|answer| limits::is_rate_limit(&answer))
    }

    /// Parses a body, when its values may take their memory.
    async fn parse(&self, body: &[u8], memory: &mut RequestMemory<'_>) -> Result<Option<Value>, RequestFailure> {
        let is_rejected = |rejection: json::Rejection| match rejection {
            json::Rejection::NoJson(_) => unusable("it is no JSON"),
            json::Rejection::TooManyValues => self.over_budget(&rejection.to_string()),
        };
        let text = json::Text::new(body).map_err(is_rejected)?;
        memory.grow(text.memory()).await.map_err(|error| self.over_budget(&error.to_string()))?;
        text.parse().map_err(is_rejected)
    }

    fn unreached(&self, error: &reqwest::Error) -> RequestFailure {
        let mut causes = String::new();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if let Some(denied) = inner.downcast_ref::<Denied>() {
                return RequestFailure::Fatal(not_allowed(&self.spec, *denied));
            }
            causes += &format!("{inner}; ");
            cause = inner.source();
        }
        RequestFailure::Transient(match connection_error::known_cause(&causes) {
            _ if error.is_timeout() => {
                let field = self.spec.field("timeout");
                attempt("SourceTimeout", format!("the source did not answer within {field}"))
            }
            Some(cause) => attempt("SourceUnreachable", format!("the source could not be reached: {cause}")),
            None => attempt("SourceUnreachable", "the connection to the source was lost"),
        })
    }

    async fn receive(
        &self,
        response: &mut Response,
        memory: &mut RequestMemory<'_>,
    ) -> Result<Vec<u8>, RequestFailure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreached(&error))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(self.over_budget(&format!("more than {} MiB", MAX_ANSWER >> 20)));
            }
            memory.grow(chunk.len()).await.map_err(|error| self.over_budget(&error.to_string()))?;
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn endpoint(spec: &SourceSpec) -> Result<Url, Error> {
    Url::parse(&spec.endpoint).ok().filter(Url::has_host).ok_or_else(|| no_url(spec))
}

/// Checks that all Secrets of a source may be used for a request.
fn check_scopes(scopes: &[SecretScope], address: &Url) -> Result<(), Error> {
    let Some(to) = Destination::of_url(address) else { return Err(rejected("its address is neither http nor https")) };
    scopes.iter().try_for_each(|scope| scope.check(&to)).map_err(|error| rejected(&error.to_string()))
}

fn no_url(spec: &SourceSpec) -> Error {
    rejected(&format!("{} is no URL with a host: correct it", spec.own_field("endpoint")))
}

fn too_long() -> Error {
    rejected("the keys of a batch make the address of a request too long: lower batchSize, or use PerUser")
}

fn headers(given: &[(String, String)]) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let unusable = || rejected(&format!("the Secret's value for the header {name} cannot be sent in a header"));
        let name = name.parse::<HeaderName>().map_err(|_| unusable())?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| unusable())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

fn not_allowed(spec: &SourceSpec, denied: Denied) -> Error {
    rejected(&format!("{} {denied}", spec.own_field("endpoint")))
}

/// Opens a client for requests to `endpoint`, with the headers of the source.
fn connect(spec: &SourceSpec, secrets: &Secrets, egress: NamespaceEgress, endpoint: &Url) -> Result<Client, Error> {
    let unusable = |what| rejected(&format!("{} holds no {what}", spec.field("caSecretRef")));
    let client = egress::client(egress, endpoint, secrets.ca.as_deref())
        .ok_or_else(|| unusable("certificate in PEM"))?
        .timeout(spec.timeout)
        .default_headers(headers(&secrets.headers)?);
    client.build().map_err(|_| unusable("usable certificate"))
}

/// Describes an answer that is no success, and its fix.
fn refusal(spec: &SourceSpec, status: StatusCode) -> Error {
    let code = status.as_u16();
    match code {
        401 | 403 => {
            let field = spec.field("tokenSecretRef");
            rejected(&format!(
                "the source refuses with {code}: check the token in {field} or headersFrom, and its rights"
            ))
        }
        300..=399 => {
            let field = spec.own_field("endpoint");
            rejected(&format!(
                "the source answers with {code}, a redirect, which is not followed: set {field} to its destination"
            ))
        }
        408 | 425 | 500..=599 => attempt("SourceError", format!("the source answered with {code}")),
        414 => too_long(),
        _ => {
            let field = spec.own_field("endpoint");
            let query = if spec.request == Request::Rest { "" } else { " and query" };
            rejected(&format!("the source refuses the request with {code}: check {field}{query}"))
        }
    }
}

/// A request without a usable answer.
enum Unanswered {
    /// The address does not exist. The meaning depends on the request.
    NothingThere(Option<Duration>, Error),
    /// The request failed.
    Failed(RequestFailure),
}

impl From<RequestFailure> for Unanswered {
    fn from(failure: RequestFailure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Unanswered> for RequestFailure {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::NothingThere(_, error) => Self::Rejected(error),
            Unanswered::Failed(failure) => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::run::RunSpec;
    use serde_json::json;

    #[test]
    fn only_what_another_try_may_cure_is_tried_again() {
        let spec = json!({"source": {"rest": {"endpoint": "https://a/{ids}"}}});
        let spec = RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap().source.unwrap();
        for (code, again) in
            [(400, false), (401, false), (302, false), (404, false), (414, false), (425, true), (500, true)]
        {
            let error = refusal(&spec, StatusCode::from_u16(code).unwrap());
            assert_eq!(matches!(error, Error::Attempt { .. }), again, "{code}");
        }
    }
}
