//! Destinations of Secrets.

use std::fmt;

use reqwest::Url;

use crate::api::syncalert::{Smtp, SmtpTls};

/// Default port of MongoDB.
pub const MONGODB_PORT: u16 = 27_017;

/// Protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Https,
    Http,
    /// Mail with encryption: TLS from the start, or STARTTLS.
    Smtps,
    /// Mail without encryption.
    Smtp,
    /// MongoDB with TLS. It has no scheme in the annotation.
    MongoDbTls,
    /// MongoDB without encryption.
    MongoDb,
    /// MongoDB servers with TLS that the records of a name list.
    MongoDbRecords,
}

impl Protocol {
    const WITH_SCHEME: [Self; 6] =
        [Self::Https, Self::Http, Self::Smtps, Self::Smtp, Self::MongoDb, Self::MongoDbRecords];

    pub(super) fn of_scheme(scheme: &str) -> Option<Self> {
        Self::WITH_SCHEME.into_iter().find(|protocol| protocol.scheme().eq_ignore_ascii_case(scheme))
    }

    fn scheme(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Smtps => "smtps",
            Self::Smtp => "smtp",
            Self::MongoDbTls | Self::MongoDb => "mongodb",
            Self::MongoDbRecords => "mongodb+srv",
        }
    }

    /// True when an item without a scheme means the protocol. The records of a name may list hosts of others, so they
    /// need the scheme.
    pub(super) fn is_default(self) -> bool {
        matches!(self, Self::Https | Self::Smtps | Self::MongoDbTls)
    }

    fn default_ports(self) -> &'static [u16] {
        match self {
            Self::Https => &[443],
            Self::Http => &[80],
            Self::Smtps | Self::Smtp => &[465, 587],
            Self::MongoDbTls | Self::MongoDb | Self::MongoDbRecords => &[MONGODB_PORT],
        }
    }
}

/// Destination of a Secret: the address of a request, a mail server, or a MongoDB server.
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
        let host = normal_host(&smtp.host);
        let protocol = if smtp.tls == SmtpTls::None { Protocol::Smtp } else { Protocol::Smtps };
        Self { protocol, host, port: smtp.port_or_default(), path: String::new() }
    }

    /// Destination of a MongoDB server.
    #[must_use]
    pub fn of_mongodb(host: &str, port: u16, is_encrypted: bool) -> Self {
        let protocol = if is_encrypted { Protocol::MongoDbTls } else { Protocol::MongoDb };
        Self { protocol, host: normal_host(host), port, path: String::new() }
    }

    /// Destination of MongoDB servers that the records of a name list.
    #[must_use]
    pub fn of_srv(name: &str) -> Self {
        let (protocol, host) = (Protocol::MongoDbRecords, normal_host(name));
        Self { protocol, host, port: MONGODB_PORT, path: String::new() }
    }

    /// Host, as it is in a URL.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn has_default_port(&self) -> bool {
        self.protocol.default_ports().contains(&self.port)
    }
}

/// Host as the parser of URLs writes it, as the hosts of items are.
fn normal_host(host: &str) -> String {
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    let url = Url::parse(&format!("https://{host}")).ok();
    url.as_ref().and_then(Url::host_str).map_or(host, str::to_owned)
}

impl fmt::Display for Destination {
    /// Writes the shortest item of the annotation that allows this destination with all its paths.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.protocol.is_default() {
            write!(f, "{}://", self.protocol.scheme())?;
        }
        f.write_str(&self.host)?;
        if self.has_default_port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}
