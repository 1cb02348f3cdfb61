//! HTTP client of the sinks: sends POST requests, and checks the answers.

use std::error::Error;

use jiff::Timestamp;
use reqwest::{
    StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};

use super::{Notifier, configuration_error, no_answer, unavailable};
use crate::{
    connection_error,
    domain::{alert::Refusal, destination::Destination, egress::Denied},
    sync::source::{egress, limits},
};

/// POST request to a sink.
pub(super) struct PostRequest {
    pub url: Url,
    pub content_type: &'static str,
    /// Further headers, with values that are never shown.
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
    /// CA bundle, as PEM.
    pub ca: Option<Vec<u8>>,
}

/// Parses a URL, and returns it with the destination for which the Secrets must be allowed. `what` names the URL in
/// errors, which do not show the URL.
pub(super) fn parse_url(text: &str, what: &str) -> Result<(Url, Destination), Refusal> {
    let url = Url::parse(text.trim()).ok();
    let found = url.and_then(|url| Destination::of_url(&url).map(|to| (url, to)));
    found.ok_or_else(|| configuration_error(format!("{what} is no http or https URL: correct it")))
}

/// Refusal of an address of a sink.
pub(super) fn not_allowed(denied: Denied) -> Refusal {
    let subject = match denied {
        Denied::Address(_) => "it",
        Denied::PlainText => "its URL",
    };
    configuration_error(format!("{subject} {denied}"))
}

impl Notifier {
    pub(super) async fn post(&self, namespace: &str, post: PostRequest) -> Result<(), Refusal> {
        let egress = self.policy.egress(namespace);
        egress::admit(&egress.get(), &post.url).map_err(not_allowed)?;
        let unusable = || configuration_error("caSecretRef holds no usable certificate in PEM");
        let client = egress::client(egress, &post.url, post.ca.as_deref()).ok_or_else(unusable)?;
        let client = client.build().map_err(|_| unusable())?;
        let request = client.post(post.url).headers(headers(&post.headers)?).header(CONTENT_TYPE, post.content_type);
        // Only the status counts, so the body is not read.
        let response = request.body(post.body).send().await.map_err(|error| unreachable(&error))?;
        check_answer(response.status(), response.headers())
    }
}

fn headers(given: &[(&'static str, String)]) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let unusable =
            |_| configuration_error(format!("the Secret's value for the header {name} cannot be sent in a header"));
        let mut value = HeaderValue::from_str(value).map_err(unusable)?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(headers)
}

fn check_answer(status: StatusCode, headers: &HeaderMap) -> Result<(), Refusal> {
    let code = status.as_u16();
    let rest = limits::pause(headers, Timestamp::now());
    match code {
        200..=299 => Ok(()),
        429 => Err(Refusal { rest, ..unavailable("it limits messages (429)") }),
        408 | 500..=599 => Err(Refusal { rest, ..unavailable(format!("it answered with {code}")) }),
        300..=399 => Err(configuration_error(format!(
            "it answered with {code}, a redirect, which is not followed: set its URL to the destination"
        ))),
        401 | 403 => Err(configuration_error(format!("it refuses with {code}: check its Secret, and its rights"))),
        _ => Err(configuration_error(format!(
            "it refuses messages with {code}: check its URL, and the messages that it accepts"
        ))),
    }
}

fn unreachable(error: &reqwest::Error) -> Refusal {
    let mut causes = String::new();
    let mut cause = Error::source(error);
    while let Some(inner) = cause {
        if let Some(denied) = inner.downcast_ref::<Denied>() {
            return not_allowed(*denied);
        }
        causes += &format!("{inner}; ");
        cause = inner.source();
    }
    match connection_error::known_cause(&causes) {
        Some(cause) => unavailable(format!("it could not be reached: {cause}")),
        None if error.is_timeout() => unavailable("it could not be reached: no answer in time"),
        None => no_answer("the connection to it was lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn mistakes_are_distinguished_from_outages() {
        let waiting = HeaderMap::from_iter([(reqwest::header::RETRY_AFTER, HeaderValue::from_static("7"))]);
        for (code, expected) in [
            (200, None),
            (204, None),
            (302, Some((true, None))),
            (400, Some((true, None))),
            (403, Some((true, None))),
            (404, Some((true, None))),
            (408, Some((false, Some(7)))),
            (429, Some((false, Some(7)))),
            (500, Some((false, Some(7)))),
            (503, Some((false, Some(7)))),
        ] {
            let refusal = check_answer(StatusCode::from_u16(code).unwrap(), &waiting).err();
            let found = refusal.map(|refusal| (refusal.is_mistake, refusal.rest.as_ref().map(Duration::as_secs)));
            assert_eq!(found, expected, "{code}");
        }
    }

    #[test]
    fn a_url_that_is_wrong_is_not_shown() {
        for text in ["", "hooks.slack.com/services/T0/B0/secret", "ftp://h/secret", "https:///secret"] {
            let error = parse_url(text, "the Secret's value");
            let shown = error.as_ref().map_or_else(ToString::to_string, |(url, _)| url.to_string());
            assert!(error.is_err() || text == "https:///secret", "{text}: {shown}");
            assert!(error.is_ok() || !shown.contains("secret"), "{shown}");
        }
    }
}
