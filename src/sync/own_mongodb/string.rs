//! Connection strings of own MongoDBs: the options that a namespace may set.

use std::{fmt, time::Duration};

use mongodb::{
    error::Error as MongoError,
    options::{ClientOptions, ConnectionString, HostInfo, ServerAddress, ServerMonitoringMode, Tls},
};

use crate::{
    connection_error,
    domain::{
        destination::{Destination, MONGODB_PORT},
        policy::database_name,
    },
};

/// URL schemes of a connection string.
const SCHEMES: [&str; 2] = ["mongodb", "mongodb+srv"];
/// Longest wait that an option may set.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Largest number of connections to each server.
const MAX_POOL: u32 = 64;
/// Options that may be set, in lower case.
const ALLOWED: [&str; 17] = [
    "appname",
    "authmechanism",
    "authsource",
    "connecttimeoutms",
    "directconnection",
    "journal",
    "maxpoolsize",
    "minpoolsize",
    "readconcernlevel",
    "replicaset",
    "retryreads",
    "retrywrites",
    "serverselectiontimeoutms",
    "ssl",
    "tls",
    "w",
    "wtimeoutms",
];
/// Refused options that messages name. Others could be a part of a password.
const REFUSED: [&str; 25] = [
    "authMechanismProperties",
    "compressors",
    "heartbeatFrequencyMS",
    "loadBalanced",
    "localThresholdMS",
    "maxConnecting",
    "maxIdleTimeMS",
    "maxStalenessSeconds",
    "proxyHost",
    "proxyPassword",
    "proxyPort",
    "proxyUsername",
    "readPreference",
    "readPreferenceTags",
    "serverMonitoringMode",
    "socketTimeoutMS",
    "srvMaxHosts",
    "srvServiceName",
    "tlsAllowInvalidCertificates",
    "tlsAllowInvalidHostnames",
    "tlsCAFile",
    "tlsCertificateKeyFile",
    "tlsInsecure",
    "waitQueueTimeoutMS",
    "zlibCompressionLevel",
];
const MECHANISMS: [&str; 2] = ["SCRAM-SHA-1", "SCRAM-SHA-256"];
/// Refused mechanisms that messages name.
const REFUSED_MECHANISMS: [&str; 6] = ["GSSAPI", "MONGODB-AWS", "MONGODB-CR", "MONGODB-OIDC", "MONGODB-X509", "PLAIN"];

/// Reason for which a connection string is refused. The text continues "the connection string in Secret mongodb", and
/// contains no part of the string other than a mechanism.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUsable {
    /// An option that is not allowed.
    #[error("has the option {0}, which is not allowed: remove it")]
    Option(&'static str),
    /// An option that the program does not know. Its name could be a part of a password.
    #[error("has an option that is not known: remove it, and write ? in a user or a password as %3F")]
    UnknownOption,
    /// A mechanism that is not allowed.
    #[error("has the option authMechanism={0}, which is not allowed: use SCRAM")]
    Mechanism(&'static str),
    /// A mechanism that the program does not know.
    #[error("has the option authMechanism with a value that is not known: use SCRAM-SHA-256")]
    UnknownMechanism,
    /// `mongodb+srv` without encryption.
    #[error("switches TLS off together with mongodb+srv, which is not allowed: remove tls=false, or use mongodb://")]
    UnencryptedSrv,
    /// A Unix socket.
    #[error("has a socket file as a host, which is not allowed: name a host")]
    SocketFile,
    /// A database that runs may not use.
    #[error("names a database that target.database may not name: set target.database")]
    Database,
    /// A CA bundle without TLS.
    #[error("does not use TLS, so target.caSecretRef has no effect: add tls=true to the string")]
    UnusedCa,
    /// A string that cannot be parsed.
    #[error("is not valid: {0}")]
    Malformed(String),
}

/// Connection string of an own MongoDB, with allowed options only.
#[derive(Clone, PartialEq)]
pub struct OwnString(ConnectionString);

impl fmt::Debug for OwnString {
    /// Shows no part of the string, which has a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnString")
    }
}

impl OwnString {
    /// Parses a connection string, and compares its options with the allowed ones before the driver reads them.
    ///
    /// # Errors
    /// When the string is malformed, or has something that is not allowed.
    pub fn parse(text: &str) -> Result<Self, NotUsable> {
        let checked = check_options(text);
        let parsed = match (checked, ConnectionString::parse(text)) {
            (Ok(()), Ok(parsed)) => parsed,
            (Ok(()) | Err(NotUsable::UnknownOption), Err(_)) => {
                let mistake = connection_error::connection_string_mistake(text, &SCHEMES);
                return Err(NotUsable::Malformed(mistake));
            }
            (Err(refused), _) => return Err(refused),
        };
        match &parsed.host_info {
            HostInfo::DnsRecord(_) if matches!(parsed.tls, Some(Tls::Disabled)) => Err(NotUsable::UnencryptedSrv),
            HostInfo::HostIdentifiers(hosts) if hosts.iter().any(|host| address(host).is_none()) => {
                Err(NotUsable::SocketFile)
            }
            _ => Ok(Self(parsed)),
        }
    }

    /// True when connections use TLS.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.0.tls, Some(Tls::Enabled(_)))
    }

    /// Destinations of the string: its hosts, or the name of the records that list them.
    pub fn destinations(&self) -> Vec<Destination> {
        match &self.0.host_info {
            HostInfo::DnsRecord(name) => vec![Destination::of_srv(name)],
            HostInfo::HostIdentifiers(hosts) => {
                let hosts = hosts.iter().filter_map(address);
                hosts.map(|(host, port)| Destination::of_mongodb(host, port, self.is_encrypted())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Database that the string names.
    ///
    /// # Errors
    /// When runs may not use the database.
    pub fn database(&self) -> Result<Option<&str>, NotUsable> {
        match self.0.default_database.as_deref() {
            Some(name) if database_name(name).is_err() => Err(NotUsable::Database),
            name => Ok(name),
        }
    }

    /// Options for the driver: those of the string that have an effect. Looks up the records of `mongodb+srv`. The
    /// options do not have TLS, which the relay makes.
    pub(super) async fn into_options(self) -> Result<ClientOptions, MongoError> {
        let given = ClientOptions::parse(self.0).await?;
        // Only copied fields have an effect. The driver therefore does not look up the records again.
        let mut options = ClientOptions::default();
        options.hosts = given.hosts;
        options.app_name = given.app_name;
        options.credential = given.credential;
        options.repl_set_name = given.repl_set_name;
        options.direct_connection = given.direct_connection;
        options.load_balanced = given.load_balanced;
        options.retry_reads = given.retry_reads;
        options.connect_timeout = wait(given.connect_timeout);
        options.server_selection_timeout = wait(given.server_selection_timeout);
        options.max_pool_size = Some(given.max_pool_size.unwrap_or(MAX_POOL).min(MAX_POOL));
        // Each answer has a request, which the relay requires.
        options.server_monitoring_mode = Some(ServerMonitoringMode::Poll);
        Ok(options)
    }
}

/// Wait that an option sets. 0 means no limit.
fn wait(given: Option<Duration>) -> Option<Duration> {
    given.map(|wait| if wait.is_zero() { MAX_WAIT } else { wait.min(MAX_WAIT) })
}

fn address(host: &ServerAddress) -> Option<(&str, u16)> {
    match host {
        ServerAddress::Tcp { host, port } => Some((host, port.unwrap_or(MONGODB_PORT))),
        _ => None,
    }
}

/// Checks the names of the options, and the mechanism, in the text that the driver reads.
fn check_options(text: &str) -> Result<(), NotUsable> {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let options = rest.split_once('?').map_or("", |(_, options)| options);
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let name = name.to_lowercase();
        if !ALLOWED.contains(&name.as_str()) {
            let known = REFUSED.into_iter().find(|refused| refused.eq_ignore_ascii_case(&name));
            return Err(known.map_or(NotUsable::UnknownOption, NotUsable::Option));
        }
        if name == "authmechanism" && !MECHANISMS.contains(&value) {
            let known = REFUSED_MECHANISMS.into_iter().find(|refused| refused.eq_ignore_ascii_case(value));
            return Err(known.map_or(NotUsable::UnknownMechanism, NotUsable::Mechanism));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWORD: &str = "S3cret";

    fn refusal(rest: &str) -> Option<String> {
        let refused =
            OwnString::parse(&rest.replace("u@", &format!("u:{PASSWORD}@"))).err().map(|error| error.to_string());
        assert!(
            !refused.as_ref().is_some_and(|text| text.contains(PASSWORD) || text.contains("db.example")),
            "{refused:?}"
        );
        refused
    }

    #[test]
    fn options_that_are_allowed_are_accepted() {
        for text in [
            "mongodb://db.example",
            "mongodb://u@db.example:27018,db-2.example/crm?replicaSet=rs0&authSource=admin",
            "mongodb+srv://u@db.example/crm?retryWrites=true&w=majority&appName=crm",
            "mongodb://u@db.example/?TLS=true&directConnection=true",
            "mongodb://u@db.example/?ssl=false&authMechanism=SCRAM-SHA-1",
            "mongodb://u@db.example/?authMechanism=SCRAM-SHA-256&journal=true&readConcernLevel=local&retryReads=false",
            "mongodb://u@db.example/?wTimeoutMS=1&connectTimeoutMS=1&serverSelectionTimeoutMS=1&maxPoolSize=1&minPoolSize=9",
        ] {
            assert_eq!(refusal(text), None, "{text}");
        }
    }

    #[test]
    fn other_options_are_refused_without_a_value() {
        let not = |what: &str| format!("has the option {what}, which is not allowed:");
        for (options, expected) in [
            ("tlsCAFile=/S3cret", not("tlsCAFile")),
            ("tlsCertificateKeyFile=/S3cret", not("tlsCertificateKeyFile")),
            ("tls=true&tlsinsecure=true", not("tlsInsecure")),
            ("tlsAllowInvalidCertificates=true", not("tlsAllowInvalidCertificates")),
            ("PROXYHOST=S3cret", not("proxyHost")),
            ("compressors=zlib", not("compressors")),
            ("readPreference=secondary", not("readPreference")),
            ("loadBalanced=true", not("loadBalanced")),
            ("authMechanismProperties=ENVIRONMENT:k8s", not("authMechanismProperties")),
            ("authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:k8s", not("authMechanism=MONGODB-OIDC")),
            ("authMechanism=mongodb-oidc", not("authMechanism=MONGODB-OIDC")),
            ("authMechanism=MONGODB-AWS", not("authMechanism=MONGODB-AWS")),
            ("authMechanism=MONGODB-X509", not("authMechanism=MONGODB-X509")),
            ("authMechanism=PLAIN", not("authMechanism=PLAIN")),
            ("authMechanism=GSSAPI", not("authMechanism=GSSAPI")),
            ("authMechanism=MONGODB%2DOIDC", "has the option authMechanism with a value that is not known".to_owned()),
            ("authMechanism=S3cret", "has the option authMechanism with a value that is not known".to_owned()),
            ("S3cret=1", "is not valid: ".to_owned()),
            ("tls=S3cret", "is not valid: ".to_owned()),
            ("S3cret", "is not valid: ".to_owned()),
            ("tls=true&tls=true", "is not valid: ".to_owned()),
            ("uuidRepresentation=javaLegacy", "has an option that is not known".to_owned()),
        ] {
            let text = format!("mongodb://u@db.example/?{options}");
            let refused = refusal(&text).unwrap_or_default();
            assert!(refused.starts_with(&expected), "{text}: {refused}");
        }
    }

    #[test]
    fn malformed_strings_and_other_addresses_are_refused() {
        for (text, expected) in [
            ("", "must begin with mongodb:// or mongodb+srv://"),
            ("redis://u@db.example", "must begin with mongodb://"),
            ("mongodb://u:S3cret?x@db.example/", "not percent-encoded"),
            ("mongodb://u:S3cret?x=1@db.example/", "not percent-encoded"),
            ("mongodb://u@", "names no host"),
            ("mongodb://u@%2Ftmp%2Fmongodb.sock", "has a socket file as a host"),
            ("mongodb://db.example,%2Ftmp%2Fmongodb.sock/", "has a socket file as a host"),
            ("mongodb+srv://u@db.example/?tls=false", "switches TLS off"),
            ("mongodb+srv://u@db.example:27017/", "is not valid"),
        ] {
            let refused = refusal(text).unwrap_or_default();
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }

    #[test]
    fn destinations_have_the_form_of_the_annotation() {
        for (text, expected) in [
            ("mongodb://u@DB.example", &["mongodb://db.example"][..]),
            ("mongodb://u@db.example/?tls=true", &["db.example"]),
            ("mongodb://u@a:1,[::1]/?ssl=true", &["a:1", "[::1]"]),
            ("mongodb://u@a:1,b/?tls=false", &["mongodb://a:1", "mongodb://b"]),
            ("mongodb+srv://u@db.example/crm", &["mongodb+srv://db.example"]),
        ] {
            let destinations = OwnString::parse(text).unwrap().destinations();
            assert_eq!(destinations.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn the_driver_gets_limited_options_without_tls() {
        let options = async |options: &str| {
            let text = format!("mongodb://u:p%40@db.example/crm?tls=true&{options}");
            OwnString::parse(&text).unwrap().into_options().await.unwrap()
        };
        let limited =
            options("maxPoolSize=999&minPoolSize=5&connectTimeoutMS=0&serverSelectionTimeoutMS=99999&w=0").await;
        assert_eq!((limited.max_pool_size, limited.min_pool_size), (Some(64), None));
        assert_eq!((limited.connect_timeout, limited.server_selection_timeout), (Some(MAX_WAIT), Some(MAX_WAIT)));
        assert!(limited.tls.is_none() && limited.write_concern.is_none() && limited.socks5_proxy.is_none());
        let credential = limited.credential.unwrap();
        assert_eq!((credential.username.as_deref(), credential.password.as_deref()), (Some("u"), Some("p@")));
        assert_eq!(credential.source.as_deref(), Some("crm"));
        let small = options("maxPoolSize=3&connectTimeoutMS=7").await;
        assert_eq!((small.max_pool_size, small.connect_timeout), (Some(3), Some(Duration::from_millis(7))));
        assert_eq!(small.server_selection_timeout, None);
    }

    #[test]
    fn the_database_of_the_string_must_be_one_that_runs_may_use() {
        for (text, expected) in [
            ("mongodb://a/crm", Ok(Some("crm"))),
            ("mongodb://a", Ok(None)),
            ("mongodb://a/admin", Err(NotUsable::Database)),
            ("mongodb://a/a.b", Err(NotUsable::Database)),
        ] {
            assert_eq!(OwnString::parse(text).unwrap().database(), expected, "{text}");
        }
    }
}
