//! Destinations of Secrets.

use std::fmt;

use reqwest::Url;

use crate::api::syncalert::{Smtp, SmtpTls};

/// Protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Https,
    Http,
    /// Mail with encryption: TLS from the start, or STARTTLS.
    Smtps,
    /// Mail without encryption.
    Smtp,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Https, Self::Http, Self::Smtps, Self::Smtp];

    pub(super) fn of_scheme(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.scheme().eq_ignore_ascii_case(scheme))
    }

    fn scheme(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Smtps => "smtps",
            Self::Smtp => "smtp",
        }
    }

    pub(super) fn is_encrypted(self) -> bool {
        matches!(self, Self::Https | Self::Smtps)
    }

    fn default_ports(self) -> &'static [u16] {
        match self {
            Self::Https => &[443],
            Self::Http => &[80],
            Self::Smtps | Self::Smtp => &[465, 587],
        }
    }
}

/// Destination of a Secret: the address of a request, or a mail server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub(super) protocol: Protocol,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
}

impl Destination {
    /// Destination of a request. `None`: the URL has no host, or is neither http nor https.
    #[must_use]
    pub fn of_url(url: &Url) -> Option<Self> {
        let protocol = match url.scheme() {
            "https" => Protocol::Https,
            "http" => Protocol::Http,
            _ => return None,
        };
        Some(Self {
            protocol,
            host: url.host_str()?.to_owned(),
            port: url.port_or_known_default()?,
            path: url.path().to_owned(),
        })
    }

    /// Destination of a mail.
    #[must_use]
    pub fn of_mail(smtp: &Smtp) -> Self {
        let url = Url::parse(&format!("https://{}", smtp.host)).ok();
        let host = url.as_ref().and_then(Url::host_str).map_or_else(|| smtp.host.clone(), str::to_owned);
        let protocol = if smtp.tls == SmtpTls::None { Protocol::Smtp } else { Protocol::Smtps };
        Self { protocol, host, port: smtp.port_or_default(), path: String::new() }
    }

    pub(super) fn has_default_port(&self) -> bool {
        self.protocol.default_ports().contains(&self.port)
    }
}

impl fmt::Display for Destination {
    /// Writes the shortest item of the annotation that allows this destination with all its paths.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.protocol.is_encrypted() {
            write!(f, "{}://", self.protocol.scheme())?;
        }
        f.write_str(&self.host)?;
        if self.has_default_port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}
