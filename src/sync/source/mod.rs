//! Fetches what documents should be, from an API over HTTP.

mod answer;
pub(crate) mod egress;
mod links;

use std::{mem, time::Duration};

use bson::Bson;
use jiff::{Timestamp, fmt::rfc2822};
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::{Map, Value};

use super::{Error, keys};
use crate::{
    domain::{
        source::{Asking, By, Pages, Request, SourceSpec},
        template,
    },
    network,
};
pub use answer::Page;
use answer::unusable;
pub use egress::Egress;
use egress::{Denied, NotAllowed};

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// Longest address that keys are put into, in bytes. Many servers take half of it.
const MAX_ADDRESS: usize = 16 << 10;
/// Longest rest a server can ask for.
const MAX_REST: Duration = Duration::from_hours(1);

/// What was read from Secrets for a source. Not to be shown.
#[derive(Default)]
pub struct Secrets {
    /// Values of headers, by name.
    pub headers: Vec<(String, String)>,
    /// Authorities, as PEM.
    pub ca: Option<Vec<u8>>,
}

/// An API that says what documents should be.
#[derive(Clone)]
pub struct Source {
    client: Client,
    endpoint: Url,
    spec: SourceSpec,
}

/// What the source has for one document.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// This.
    Result(Value),
    /// Nothing.
    Missing,
    /// An error: a word, and a sentence.
    Failed(&'static str, String),
}

/// An answer, or its absence.
#[derive(Debug)]
pub struct Reply<T> {
    /// What there is. `None`: nothing, since there were too many requests.
    pub found: Option<T>,
    /// For how long the server wants no more requests.
    pub rest: Option<Duration>,
}

pub(super) fn rejected(message: &str) -> Error {
    Error::InvalidSource(message.to_owned())
}

fn attempt(reason: &'static str, message: impl Into<String>) -> Error {
    Error::Attempt { reason, message: message.into() }
}

impl Source {
    /// Where an endpoint's requests go: the host that must be allowed to receive secrets.
    ///
    /// # Errors
    /// When the endpoint is no URL.
    pub fn host(spec: &SourceSpec) -> Result<String, Error> {
        endpoint(spec).map(|(_, host)| host)
    }

    /// A source that is asked at addresses `egress` allows.
    ///
    /// # Errors
    /// When the endpoint is not allowed, or a secret cannot be used.
    pub fn new(spec: &SourceSpec, secrets: &Secrets, egress: &Egress) -> Result<Self, Error> {
        let (endpoint, _) = endpoint(spec)?;
        egress.admit(&endpoint).map_err(|denied| match denied {
            Denied::Address => not_allowed(spec),
            Denied::PlainText => {
                let field = spec.field("endpoint");
                rejected(&format!(
                    "{field} must be https, or its host be named by the operator's --source-allowed-hosts"
                ))
            }
        })?;
        let unusable = |what| rejected(&format!("{} holds no {what}", spec.field("caSecretRef")));
        let client = egress
            .client(secrets.ca.as_deref())
            .ok_or_else(|| unusable("certificate in PEM"))?
            .timeout(spec.timeout)
            .default_headers(headers(&secrets.headers)?);
        let client = client.build().map_err(|_| unusable("usable certificate"))?;
        Ok(Self { client, endpoint, spec: spec.clone() })
    }

    /// What it was made from.
    pub fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    /// Asks what documents should be. In a batch of PerUser, one at a time. `received` is called when the answer has come,
    /// before it is read, which may take milliseconds.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn ask(&self, keys: &[Bson], received: impl FnOnce()) -> Result<Reply<Vec<Found>>, Error> {
        let keys: Vec<String> = keys.iter().map(keys::text).collect();
        let Request::GraphQl { variables, .. } = &self.spec.request else {
            return self.ask_by_address(&keys, received).await;
        };
        let mut variables = variables.clone();
        match (&self.spec.asking, keys.as_slice()) {
            (Asking::PerUser(_), [key]) => variables.insert("id".to_owned(), Value::from(key.as_str())),
            _ => variables.insert("ids".to_owned(), Value::from(keys.as_slice())),
        };
        let read = |_: &HeaderMap, answer: Value| answer::read(&self.spec, &keys, answer);
        self.send(self.post(variables), None, received, read).await
    }

    /// The same, with the keys in the address. Those that cannot stand there have failed: the address would be another
    /// resource's.
    async fn ask_by_address(&self, keys: &[String], received: impl FnOnce()) -> Result<Reply<Vec<Found>>, Error> {
        let is_one = matches!(self.spec.asking, Asking::PerUser(_));
        let fits = |key: &String| !key.is_empty() && (is_one || !key.contains(','));
        let misfit = || Found::Failed("InvalidKey", "its key cannot stand in the address of a request".to_owned());
        let encoded: Vec<String> = keys.iter().filter(|key| fits(key)).map(|key| template::encode(key)).collect();
        let place = if is_one { "id" } else { "ids" };
        let filled = template::fill(&self.spec.endpoint, &[(place, &encoded.join(","))]);
        let Some(address) = filled.filter(|_| !encoded.is_empty()) else {
            return Ok(Reply { found: Some(vec![misfit(); keys.len()]), rest: None });
        };
        if address.len() > MAX_ADDRESS {
            return Err(too_long());
        }
        let gone = is_one.then(|| vec![Found::Missing]);
        let read = |_: &HeaderMap, answer: Value| {
            let found = answer::read(&self.spec, keys, answer)?;
            Ok(keys.iter().zip(found).map(|(key, found)| if fits(key) { found } else { misfit() }).collect())
        };
        self.send(self.get(self.parsed(&address)?), gone, received, read).await
    }

    /// Asks for a page of about `size` results.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn page(&self, pages: &Pages, at: &Value, size: usize) -> Result<Reply<Page>, Error> {
        let Request::GraphQl { variables, .. } = &self.spec.request else {
            let asked = self.page_address(pages, at, size)?;
            let read = |headers: &HeaderMap, answer: Value| {
                let link = if pages.by == By::Link { links::next(headers, &asked)? } else { None };
                answer::page(&self.spec, pages, at, &answer, link.map(|link| Value::from(link.as_str())))
            };
            return self.send(self.get(asked.clone()), None, || (), read).await;
        };
        let mut variables = variables.clone();
        variables.insert("first".to_owned(), Value::from(size));
        variables.insert(if pages.by == By::Number { "page" } else { "after" }.to_owned(), at.clone());
        let read = |_: &HeaderMap, answer: Value| answer::page(&self.spec, pages, at, &answer, None);
        self.send(self.post(variables), None, || (), read).await
    }

    fn page_address(&self, pages: &Pages, at: &Value, size: usize) -> Result<Url, Error> {
        if let (By::Link, Value::String(link)) = (&pages.by, at) {
            return links::follow(&self.endpoint, link);
        }
        let nowhere = || unusable("its cursor cannot stand in an address");
        let at = if at.is_null() { "".into() } else { answer::text(at).ok_or_else(nowhere)? };
        let (at, size) = (template::encode(&at), size.to_string());
        let filled = template::fill(&self.spec.endpoint, &[("first", &size), ("page", &at), ("after", &at)]);
        self.parsed(&filled.ok_or_else(nowhere)?)
    }

    fn parsed(&self, address: &str) -> Result<Url, Error> {
        Url::parse(address).map_err(|_| no_url(&self.spec))
    }

    fn get(&self, address: Url) -> RequestBuilder {
        self.client.get(address).header(ACCEPT, "application/json")
    }

    /// The query with these variables.
    fn post(&self, variables: Map<String, Value>) -> RequestBuilder {
        let mut body = Map::new();
        if let Request::GraphQl { query, operation_name, .. } = &self.spec.request {
            body.insert("query".to_owned(), Value::from(query.as_str()));
            body.insert("variables".to_owned(), Value::Object(variables));
            if let Some(name) = operation_name {
                body.insert("operationName".to_owned(), Value::from(name.as_str()));
            }
        }
        let request = self.client.post(self.endpoint.clone()).header(CONTENT_TYPE, "application/json");
        request.body(Value::Object(body).to_string())
    }

    /// Sends a request, and reads headers and body of the answer. `gone`: what it means that there is nothing at the
    /// address. `None`: that it is wrong.
    async fn send<T>(
        &self,
        request: RequestBuilder,
        gone: Option<T>,
        received: impl FnOnce(),
        read: impl FnOnce(&HeaderMap, Value) -> Result<T, Error>,
    ) -> Result<Reply<T>, Error> {
        let mut response = request.send().await.map_err(|error| self.unreached(&error))?;
        let rest = rest(response.headers(), Timestamp::now());
        match (response.status(), rest, gone) {
            // GitHub says so with 403 too.
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::FORBIDDEN, Some(_), _) => {
                return Ok(Reply { found: None, rest });
            }
            (StatusCode::NOT_FOUND | StatusCode::GONE, _, Some(gone)) => return Ok(Reply { found: Some(gone), rest }),
            (status, ..) => check(&self.spec, status)?,
        }
        let headers = mem::take(response.headers_mut());
        let body = self.receive(response).await?;
        received();
        let answer =
            serde_json::from_slice(&body).map_err(|_| attempt("BadAnswer", "the source's answer is no JSON"))?;
        match (read(&headers, answer), rest) {
            (Ok(found), rest) => Ok(Reply { found: Some(found), rest }),
            // GitHub says so with status 200.
            (Err(_), Some(_)) => Ok(Reply { found: None, rest }),
            (Err(error), None) => Err(error),
        }
    }

    fn unreached(&self, error: &reqwest::Error) -> Error {
        let mut causes = String::new();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if inner.is::<NotAllowed>() {
                return not_allowed(&self.spec);
            }
            causes += &format!("{inner}; ");
            cause = inner.source();
        }
        match network::cause(&causes) {
            _ if error.is_timeout() => {
                let field = self.spec.field("timeout");
                attempt("SourceTimeout", format!("the source did not answer within {field}"))
            }
            Some(cause) => attempt("SourceUnreachable", format!("the source could not be reached: {cause}")),
            None => attempt("SourceUnreachable", "the connection to the source broke"),
        }
    }

    async fn receive(&self, mut response: Response) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreached(&error))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                let limit = MAX_ANSWER >> 20;
                return Err(attempt(
                    "BadAnswer",
                    format!("the source's answer is longer than {limit} MiB: lower batchSize"),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn endpoint(spec: &SourceSpec) -> Result<(Url, String), Error> {
    let url = Url::parse(&spec.endpoint).ok();
    let found = url.and_then(|url| url.host_str().map(str::to_owned).map(|host| (url, host)));
    found.ok_or_else(|| no_url(spec))
}

fn no_url(spec: &SourceSpec) -> Error {
    rejected(&format!("{} is no URL with a host: correct it", spec.field("endpoint")))
}

fn too_long() -> Error {
    rejected("the keys of a batch make the address of a request too long: lower batchSize, or ask PerUser")
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

fn not_allowed(spec: &SourceSpec) -> Error {
    rejected(&format!(
        "{} is at an address the operator does not allow: name its host in --source-allowed-hosts, or its network in --source-allowed-cidrs",
        spec.field("endpoint")
    ))
}

/// What a status says. 400 and the like mean the request, which stays the same.
fn check(spec: &SourceSpec, status: StatusCode) -> Result<(), Error> {
    let code = status.as_u16();
    match code {
        200..=299 => Ok(()),
        401 | 403 => {
            let field = spec.field("tokenSecretRef");
            Err(rejected(&format!(
                "the source refuses with {code}: check the token in {field} or headersFrom, and its rights"
            )))
        }
        300..=399 => {
            let field = spec.field("endpoint");
            Err(rejected(&format!(
                "the source answers with {code}, a redirect, which is not followed: set {field} to its destination"
            )))
        }
        429 => {
            let field = spec.field("rateLimit");
            Err(attempt("RateLimited", format!("the source wants fewer requests (429): set {field}")))
        }
        408 | 500..=599 => Err(attempt("SourceError", format!("the source answered with {code}"))),
        414 => Err(too_long()),
        _ => {
            let field = spec.field("endpoint");
            let query = if spec.request == Request::Rest { "" } else { " and query" };
            Err(rejected(&format!("the source refuses the request with {code}: check {field}{query}")))
        }
    }
}

/// For how long a server wants no more requests: `Retry-After`, in seconds or as a date, or, once no more are left,
/// until the time in the headers of GitLab (`RateLimit-…`) and GitHub (`X-RateLimit-…`), which are seconds since the
/// epoch.
pub(crate) fn rest(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<i64>().ok();
    let date = |name: &str| Some(rfc2822::parse(text(name)?).ok()?.timestamp().as_second() - now.as_second());
    let after = number(RETRY_AFTER.as_str()).or_else(|| date(RETRY_AFTER.as_str()));
    let until = ["ratelimit", "x-ratelimit"].iter().find_map(|family| {
        let is_used_up = number(&format!("{family}-remaining")) == Some(0);
        number(&format!("{family}-reset")).filter(|_| is_used_up).map(|reset| reset - now.as_second())
    });
    // By our clock the time may have come already.
    let seconds = after.or(until)?.max(1);
    Some(Duration::from_secs(seconds as u64).min(MAX_REST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::run::RunSpec;
    use serde_json::json;

    #[test]
    fn what_servers_say_of_their_limits_is_understood() {
        let now = Timestamp::from_second(1000).unwrap();
        for (given, expected) in [
            (vec![("retry-after", "7")], Some(7)),
            (vec![("retry-after", "Thu, 01 Jan 1970 00:16:50 GMT")], Some(10)),
            (vec![("retry-after", "soon")], None),
            (vec![("retry-after", "999999")], Some(3600)),
            (vec![("ratelimit-remaining", "0"), ("ratelimit-reset", "1030")], Some(30)),
            (vec![("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1005")], Some(5)),
            (vec![("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "1005")], None),
            (vec![("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "990")], Some(1)),
            (vec![], None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in &given {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            assert_eq!(rest(&headers, now), expected.map(Duration::from_secs), "{given:?}");
        }
    }

    #[test]
    fn only_what_another_try_may_cure_is_tried_again() {
        let spec = json!({"source": {"rest": {"endpoint": "https://a/{ids}"}}});
        let spec = RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap().source.unwrap();
        for (code, again) in [
            (400, false),
            (401, false),
            (302, false),
            (404, false),
            (414, false),
            (429, true),
            (500, true),
            (503, true),
        ] {
            let error = check(&spec, StatusCode::from_u16(code).unwrap()).unwrap_err();
            assert_eq!(matches!(error, Error::Attempt { .. }), again, "{code}");
        }
    }
}
