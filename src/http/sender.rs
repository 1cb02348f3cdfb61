//! Page that sent a request, by the headers of browsers.

use axum::http::{
    HeaderMap,
    header::{HOST, ORIGIN},
};

/// Sender of a request. Old browsers, and all browsers on plain HTTP, send the header `Origin` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// Page of this host.
    SameOrigin,
    /// User of a browser, such as by an entered address or a bookmark.
    User,
    /// Page of another origin.
    OtherOrigin,
    /// Client that sends none of the headers, such as a program.
    Unknown,
}

impl Sender {
    /// Returns the sender that the headers name. A header that is no text names another origin.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        match (text("sec-fetch-site"), text(ORIGIN.as_str()), text(HOST.as_str())) {
            (Some("same-origin"), _, _) => Self::SameOrigin,
            (Some("none"), _, _) => Self::User,
            (None, Some(origin), Some(host)) if origin.split_once("://").is_some_and(|(_, from)| from == host) => {
                Self::SameOrigin
            }
            (Some(_), _, _) | (None, Some(_), _) => Self::OtherOrigin,
            (None, None, _) => Self::Unknown,
        }
    }
}
