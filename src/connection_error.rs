//! Descriptions of connection errors and of mistakes in connection strings, without addresses and passwords.

use crate::api::truncate_to;

const MAX_TEXT: usize = 120;
/// Cause of a refused login.
pub const LOGIN: &str = "the user or the password is wrong";

/// Known cause in the error text of a driver, for causes that have the same error type in the driver. Up to 120 bytes.
#[must_use]
pub fn known_cause(text: &str) -> Option<String> {
    const CERTIFICATE: &str = "invalid peer certificate";
    if let Some(at) = text.find(CERTIFICATE) {
        // UnknownIssuer, Expired, NotValidForName …: one word, followed by text that may name hosts.
        let rest = text[at + CERTIFICATE.len()..].trim_start_matches([':', ' ']);
        let word: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        return Some(truncate_to(&format!("its certificate is not trusted ({word})"), MAX_TEXT));
    }
    let known = [
        ("lookup address", "its host name is not known"),
        ("onnection refused", "connection refused"),
        ("uthentication failed", LOGIN),
        ("SCRAM failure", LOGIN),
        ("timed out", "no answer in time"),
    ];
    known.iter().find(|(sign, _)| text.contains(sign)).map(|(_, cause)| (*cause).to_owned())
}

/// Mistake in a refused connection string. The description quotes no part of the string. A driver may read
/// a part of a password as a host, a port or an option, when a character of the password is not percent-encoded.
#[must_use]
pub fn connection_string_mistake(connection_string: &str, schemes: &[&str]) -> String {
    let known = connection_string.split_once("://").filter(|(scheme, _)| schemes.contains(scheme));
    let Some((_, rest)) = known else {
        let schemes: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        return format!("it must begin with {}", schemes.join(" or "));
    };
    let (login, hosts) = rest.rsplit_once('@').unwrap_or(("", rest));
    if !is_encoded(login) {
        return "a character of the user or the password is not percent-encoded: write % as %25, : as %3A, / as %2F, ? as %3F, # as \
                %23, [ as %5B, ] as %5D and @ as %40"
            .to_owned();
    }
    if hosts.is_empty() || hosts.starts_with(['/', '?', ',', ':']) {
        return "it names no host".to_owned();
    }
    if connection_string.contains("+sentinel://") && !hosts.trim_end_matches('/').contains('/') {
        return "it names no master: write redis+sentinel://host:port,host:port/master".to_owned();
    }
    "its hosts, ports, database or options are not valid, or it lacks the @ between password and host".to_owned()
}

/// True when a user and a password are percent-encoded.
fn is_encoded(login: &str) -> bool {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    [user, password].iter().all(|part| {
        let is_plain = !part.contains([':', '/', '?', '#', '[', ']', '@']) && !part.contains(char::is_whitespace);
        is_plain && part.split('%').skip(1).all(is_escape)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_in_a_connection_string_quotes_no_part_of_it() {
        let (encode, scheme) = ("not percent-encoded", "must begin with mongodb:// or redis://");
        for (text, expected) in [
            ("", scheme),
            ("S3cret", scheme),
            ("u:S3cret@host", scheme),
            ("S3cret://u:S3cret@host", scheme),
            ("mongodb:u:S3cret@host", scheme),
            ("mongodb://u:S3cret?x@host/", encode),
            ("mongodb://u:S3cret/x@host/", encode),
            ("mongodb://u:S3cret#x@host/", encode),
            ("mongodb://u:S3cret:x@host/", encode),
            ("mongodb://u:S3cret@x@host/", encode),
            ("mongodb://u:S3cret%@host/", encode),
            ("mongodb://u:S3cret%2@host/", encode),
            ("mongodb://u:S3cret%zz@host/", encode),
            ("mongodb://u:S3cret x@host/", encode),
            ("mongodb://S3cret[@host", encode),
            ("redis://u:S3cret\u{e9}%\u{e9}@host", encode),
            ("mongodb://u:S3cret@", "names no host"),
            ("mongodb://u:S3cret@/db", "names no host"),
            ("mongodb://u:S3cret@:27017", "names no host"),
            ("mongodb://u:S3cret", "lacks the @"),
            ("mongodb://u:S3cret/host", "lacks the @"),
            ("mongodb://u:p@host:S3cret", "lacks the @"),
            ("mongodb://u:p@host/?S3cret=1", "lacks the @"),
        ] {
            let mistake = connection_string_mistake(text, &["mongodb", "redis"]);
            assert!(mistake.contains(expected) && !mistake.contains("S3cret"), "{text}: {mistake}");
        }
        assert!(
            connection_string_mistake("redis+sentinel://u:S3cret@a,b/", &["redis+sentinel"])
                .contains("names no master")
        );
    }

    #[test]
    fn a_known_cause_contains_no_address() {
        for (text, cause) in [
            (
                "I/O error: invalid peer certificate: UnknownIssuer, host db.example",
                "its certificate is not trusted (UnknownIssuer)",
            ),
            ("failed to lookup address information: Name does not resolve", "its host name is not known"),
            (
                "Servers: [ { Address: 10.0.0.1:27017, Error: Kind: I/O error: Connection refused (os error 111)",
                "connection refused",
            ),
            ("Kind: SCRAM failure: Authentication failed. user secret", "the user or the password is wrong"),
        ] {
            assert_eq!(known_cause(text).as_deref(), Some(cause), "{text}");
        }
        assert_eq!(known_cause("something else at db.example"), None);
    }
}
