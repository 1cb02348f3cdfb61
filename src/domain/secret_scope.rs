//! Scope of a Secret: the destinations and the operations for which its owner allows its use.

use reqwest::Url;

use super::{
    destination::{Destination, Protocol},
    graphql::{Operation, annotation},
};
use crate::api::{HOSTS_ANNOTATION, OPERATIONS_ANNOTATION};

/// Largest number of times that a path is decoded. A path that is encoded more often fits into no path prefix.
const MAX_DECODED: usize = 3;

/// Item of the annotation: `[scheme://]host[:port][/path]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AllowedHost {
    /// Protocol of the scheme. `None`: every protocol with encryption.
    protocol: Option<Protocol>,
    host: String,
    /// Port. `None`: the default ports of the protocol.
    port: Option<u16>,
    /// Path prefix without a slash at its end. Empty: every path.
    path: String,
}

impl AllowedHost {
    /// Parses an item. `None`: it is malformed, and allows nothing.
    fn parse(item: &str) -> Option<Self> {
        let (protocol, rest) = match item.split_once("://") {
            Some((scheme, rest)) => (Some(Protocol::of_scheme(scheme)?), rest),
            None => (None, item),
        };
        let url = Url::parse(&format!("https://{rest}")).ok()?;
        if url.username() != "" || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return None;
        }
        // A URL has no port that is the default of its scheme. No port is the default of both schemes.
        let port = url.port().or_else(|| Url::parse(&format!("http://{rest}")).ok()?.port());
        let path = url.path().trim_end_matches('/').to_owned();
        Some(Self { protocol, host: url.host_str()?.to_owned(), port, path })
    }

    fn has_origin(&self, to: &Destination) -> bool {
        let is_protocol = self.protocol.map_or(to.protocol.is_default(), |protocol| protocol == to.protocol);
        let is_port = self.port.map_or(to.has_default_port(), |port| port == to.port);
        is_protocol && is_port && self.host == to.host
    }

    fn has_path(&self, to: &Destination) -> bool {
        let rest = to.path.strip_prefix(&self.path);
        self.path.is_empty()
            || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) && !may_lead_out(&to.path)
    }
}

/// True when a server that decodes the path may find `.` or `..` in it. A URL has them only encoded.
fn may_lead_out(path: &str) -> bool {
    let mut path = path.to_ascii_lowercase();
    for _ in 0..MAX_DECODED {
        // Some servers ignore what follows a semicolon.
        let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
        if path.split(['/', '\\']).any(is_dots) {
            return true;
        }
        let codes = [("%2e", "."), ("%2f", "/"), ("%5c", "\\"), ("%3b", ";"), ("%25", "%")];
        let decoded = codes.iter().fold(path.clone(), |path, (code, character)| path.replace(code, character));
        if decoded == path {
            return false;
        }
        path = decoded;
    }
    true
}

/// Scope of a Secret, as its annotations state it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretScope {
    secret: String,
    is_annotated: bool,
    hosts: Vec<AllowedHost>,
    operations: Vec<Operation>,
}

/// Use of a Secret that its owner does not allow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfScope {
    /// The Secret has no annotation.
    #[error(
        "Secret {secret} may not be used for {to}: allow it with kubectl annotate secret {secret} {HOSTS_ANNOTATION}={to}"
    )]
    NotAnnotated {
        /// Name of the Secret.
        secret: String,
        /// Item that allows the destination.
        to: String,
    },
    /// No item of the annotation has this protocol, host and port.
    #[error("Secret {secret} may not be used for {to}: add {to} to its annotation {HOSTS_ANNOTATION}")]
    Host {
        /// Name of the Secret.
        secret: String,
        /// Item that allows the destination.
        to: String,
    },
    /// The annotation has other paths. The path is not shown, because it may contain a credential.
    #[error(
        "Secret {secret} may not be used for the path of a request to {to}: add the path to its annotation {HOSTS_ANNOTATION}"
    )]
    Path {
        /// Name of the Secret.
        secret: String,
        /// Item that allows the destination.
        to: String,
    },
    /// A Secret does not allow an operation.
    #[error(
        "source.graphQL.query has a {operation}, which Secret {secret} does not allow: annotate it with {OPERATIONS_ANNOTATION}={fix}"
    )]
    Operation {
        /// Name of the Secret.
        secret: String,
        /// The operation.
        operation: Operation,
        /// Annotation that allows it.
        fix: String,
    },
    /// An operation other than a query without a Secret.
    #[error(
        "source.graphQL.query has a {operation}, which needs a Secret that allows it: add tokenSecretRef, and annotate the Secret with {OPERATIONS_ANNOTATION}={fix}"
    )]
    NoSecret {
        /// The operation.
        operation: Operation,
        /// Annotation that allows it.
        fix: String,
    },
}

/// Checks that the Secrets that are sent with a query allow all its operations. Without a Secret, queries are allowed.
///
/// # Errors
/// When an operation is not allowed.
pub fn check_operations(operations: &[Operation], sent: &[SecretScope]) -> Result<(), OutOfScope> {
    let lacks = |allowed: &[Operation]| {
        let missing = operations.iter().find(|operation| !allowed.contains(operation));
        missing.map(|missing| (*missing, annotation(&[allowed, operations].concat())))
    };
    for SecretScope { secret, operations: allowed, .. } in sent {
        if let Some((operation, fix)) = lacks(allowed) {
            return Err(OutOfScope::Operation { secret: secret.clone(), operation, fix });
        }
    }
    match lacks(&[Operation::Query]).filter(|_| sent.is_empty()) {
        Some((operation, fix)) => Err(OutOfScope::NoSecret { operation, fix }),
        None => Ok(()),
    }
}

impl SecretScope {
    /// Creates the scope of a Secret with these contents of its annotations.
    #[must_use]
    pub fn new(secret: &str, hosts: Option<&str>, operations: Option<&str>) -> Self {
        let hosts = hosts.unwrap_or_default();
        let is_named = |operation: &Operation, names: &str| {
            names.split(',').any(|name| name.trim().eq_ignore_ascii_case(&operation.to_string()))
        };
        Self {
            secret: secret.to_owned(),
            is_annotated: !hosts.trim().is_empty(),
            hosts: hosts.split(',').filter_map(|item| AllowedHost::parse(item.trim())).collect(),
            operations: match operations {
                Some(names) => Operation::ALL.into_iter().filter(|operation| is_named(operation, names)).collect(),
                None => vec![Operation::Query],
            },
        }
    }

    /// Checks that the Secret may be used for a destination.
    ///
    /// # Errors
    /// When the annotation does not allow the destination.
    pub fn check(&self, to: &Destination) -> Result<(), OutOfScope> {
        let mut of_origin = self.hosts.iter().filter(|host| host.has_origin(to)).peekable();
        let (secret, item) = (self.secret.clone(), to.to_string());
        if !self.is_annotated {
            Err(OutOfScope::NotAnnotated { secret, to: item })
        } else if of_origin.peek().is_none() {
            Err(OutOfScope::Host { secret, to: item })
        } else if !of_origin.any(|host| host.has_path(to)) {
            Err(OutOfScope::Path { secret, to: item })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{from_value, json};

    fn allows(annotation: &str, url: &str) -> bool {
        let to = Destination::of_url(&Url::parse(url).unwrap()).unwrap();
        SecretScope::new("s", Some(annotation), None).check(&to).is_ok()
    }

    #[test]
    fn an_item_is_bound_to_scheme_host_and_port() {
        for (annotation, allowed, refused) in [
            (
                "api.example",
                &["https://api.example/", "https://API.example:443/x?y"][..],
                &[
                    "http://api.example/",
                    "https://api.example:8443/",
                    "https://x.api.example/",
                    "https://api.example./",
                ][..],
            ),
            ("API.example:443", &["https://api.example/"], &["http://api.example:443/"]),
            ("api.example:8443", &["https://api.example:8443/"], &["https://api.example/", "http://api.example:8443/"]),
            ("https://api.example", &["https://api.example/"], &["http://api.example/", "https://api.example:80/"]),
            ("HTTP://api.example", &["http://api.example/"], &["https://api.example/", "http://api.example:8080/"]),
            ("http://api.example:80", &["http://api.example/"], &["https://api.example:80/"]),
            ("http://[::1]:8080", &["http://[::1]:8080/"], &["http://[::1]/", "http://127.0.0.1:8080/"]),
            ("other, api.example ,", &["https://api.example/", "https://other/"], &["https://api/"]),
            ("bücher.example", &["https://bücher.example/", "https://xn--bcher-kva.example/"], &["https://b.example/"]),
        ] {
            assert!(allowed.iter().all(|url| allows(annotation, url)), "{annotation}");
            assert!(refused.iter().all(|url| !allows(annotation, url)), "{annotation}");
        }
    }

    #[test]
    fn a_malformed_item_allows_nothing() {
        for item in [
            "",
            " ",
            "*",
            "*.example",
            "https://",
            "ftp://api.example",
            "smtp://api.example",
            "https://a:b@api.example",
            "api.example?x",
            "api.example#x",
            "api.example:x",
            "https:api.example",
            "://api.example",
            "/v1",
        ] {
            assert!(!allows(item, "https://api.example/") && !allows(item, "http://api.example/"), "{item}");
        }
    }

    #[test]
    fn a_path_is_matched_by_whole_segments() {
        for (path, allowed, refused) in [
            ("/", &["/", "/x", "/..%2Fx"][..], &[][..]),
            (
                "/v1/users",
                &[
                    "/v1/users",
                    "/v1/users/",
                    "/v1/users/7",
                    "/v1/users?x=/v2",
                    "/v2/../v1/users/a%2Fb",
                    "/v1/users/...x",
                ],
                &[
                    "/",
                    "/v1",
                    "/v1/users2",
                    "/V1/users",
                    "/v1/users/../groups",
                    "//v1/users",
                    "/v1//users",
                    "/v1%2Fusers",
                ],
            ),
            (
                "/v1/",
                &["/v1", "/v1/x"],
                &[
                    "/v1/..%2fx",
                    "/v1/%2e%2e/x",
                    "/v1/x%2F..%2F..%2Fx",
                    "/v1/%252e%252e%252fx",
                    "/v1/..%5cx",
                    "/v1/..;a/x",
                    "/v1/..%3Ba/x",
                    "/v1/%25252e%25252e/x",
                    "/v1/%2525252525",
                ],
            ),
        ] {
            let annotation = format!("other.example/v9, api.example{path}");
            let is_allowed = |tried: &str| allows(&annotation, &format!("https://api.example{tried}"));
            assert_eq!(allowed.iter().find(|tried| !is_allowed(tried)), None, "{path}");
            assert_eq!(refused.iter().find(|tried| is_allowed(tried)), None, "{path}");
        }
    }

    #[test]
    fn mail_needs_encryption_unless_its_scheme_is_written() {
        let mail = |tls: &str, port: Option<i32>| {
            let smtp = json!({"host": "Mail.example", "port": port, "tls": tls, "from": "a@b.c", "to": ["a@b.c"]});
            Destination::of_mail(&from_value(smtp).unwrap())
        };
        let (start, tls, plain) = (mail("StartTls", None), mail("Tls", None), mail("None", Some(25)));
        for (annotation, allowed) in [
            ("mail.example", [true, true, false]),
            ("smtps://mail.example", [true, true, false]),
            ("mail.example:465", [false, true, false]),
            ("smtp://mail.example", [false, false, false]),
            ("smtp://mail.example:25", [false, false, true]),
            ("https://mail.example", [false, false, false]),
            ("mail.example:25", [false, false, false]),
        ] {
            let scope = SecretScope::new("s", Some(annotation), None);
            assert_eq!([&start, &tls, &plain].map(|to| scope.check(to).is_ok()), allowed, "{annotation}");
        }
        assert_eq!(
            [start, tls, plain].map(|to| to.to_string()),
            ["mail.example", "mail.example", "smtp://mail.example:25"]
        );
    }

    #[test]
    fn mongodb_without_encryption_and_records_need_their_scheme() {
        let (tls, plain) = (|port| Destination::of_mongodb("DB.example", port, true), Destination::of_mongodb);
        let destinations =
            [tls(27_017), tls(27_018), plain("db.example", 27_017, false), Destination::of_srv("db.example")];
        for (annotation, allowed) in [
            ("db.example", [true, false, false, false]),
            ("db.example:27018", [false, true, false, false]),
            ("mongodb://db.example", [false, false, true, false]),
            ("mongodb://db.example:27018", [false, false, false, false]),
            ("mongodb+srv://db.example", [false, false, false, true]),
            ("mongodb+srv://other.example,https://db.example", [false, false, false, false]),
        ] {
            let scope = SecretScope::new("s", Some(annotation), None);
            assert_eq!(destinations.each_ref().map(|to| scope.check(to).is_ok()), allowed, "{annotation}");
        }
        let ipv6 = Destination::of_mongodb("::1", 27_018, true);
        assert_eq!(ipv6.to_string(), "[::1]:27018");
        assert!(SecretScope::new("s", Some("[::1]:27018"), None).check(&ipv6).is_ok());
    }

    #[test]
    fn a_refusal_has_the_item_to_add_and_no_path() {
        let to = Destination::of_url(&Url::parse("http://api.example:8080/token/x?y").unwrap()).unwrap();
        for (annotation, message) in [
            (
                None,
                "Secret s may not be used for http://api.example:8080: allow it with kubectl annotate secret s sync.codex.dev/hosts=http://api.example:8080",
            ),
            (
                Some("api.example"),
                "Secret s may not be used for http://api.example:8080: add http://api.example:8080 to its annotation sync.codex.dev/hosts",
            ),
            (
                Some("http://api.example:8080/v1"),
                "Secret s may not be used for the path of a request to http://api.example:8080: add the path to its annotation sync.codex.dev/hosts",
            ),
        ] {
            let error = SecretScope::new("s", annotation, None).check(&to).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn operations_need_the_annotation_of_each_secret() {
        use Operation::{Mutation, Query, Subscription};
        let scope = |(secret, operations)| SecretScope::new(secret, Some("api.example"), operations);
        for (operations, secrets, refused) in [
            (&[Query][..], &[][..], None),
            (&[Query], &[("t", None)], None),
            (&[Query], &[("t", Some("mutation"))], Some(("a query, which Secret t does not allow", "query,mutation"))),
            (&[Mutation], &[], Some(("a mutation, which needs a Secret that allows it: add", "query,mutation"))),
            (&[Mutation], &[("t", None)], Some(("a mutation, which Secret t does not allow", "query,mutation"))),
            (&[Mutation], &[("t", Some("mutation"))], None),
            (&[Query, Mutation], &[("t", Some(" Query , MUTATION,x"))], None),
            (
                &[Mutation],
                &[("t", Some("mutation")), ("u", Some("query,subscription"))],
                Some(("a mutation, which Secret u does not allow", "query,mutation,subscription")),
            ),
            (&[Subscription], &[("t", Some("query,x"))], Some(("a subscription, which", "query,subscription"))),
        ] {
            let sent: Vec<_> = secrets.iter().copied().map(scope).collect();
            let found = check_operations(operations, &sent).map_err(|error| error.to_string());
            let is_expected = match (&found, refused) {
                (Ok(()), None) => true,
                (Err(message), Some((start, fix))) => {
                    message.starts_with(&format!("source.graphQL.query has {start}"))
                        && message.ends_with(&format!(" sync.codex.dev/graphql-operations={fix}"))
                }
                _ => false,
            };
            assert!(is_expected, "{operations:?} {secrets:?}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn the_shown_item_allows_the_destination_and_no_other(
            secure in any::<bool>(), port in 1_u16.., other in 1_u16.., path in "(/[a-z%.2ef]{0,4}){0,4}"
        ) {
            let url = |secure, port| {
                let scheme = if secure { "https" } else { "http" };
                Url::parse(&format!("{scheme}://api.example:{port}{path}")).unwrap()
            };
            let to = Destination::of_url(&url(secure, port)).unwrap();
            prop_assert!(allows(&to.to_string(), url(secure, port).as_str()));
            prop_assert!(!allows(&to.to_string(), url(!secure, port).as_str()));
            prop_assert_eq!(allows(&to.to_string(), url(secure, other).as_str()), port == other);
        }
    }
}
