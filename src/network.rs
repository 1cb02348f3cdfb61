//! Why a server cannot be reached, in words that hold neither its address nor a password.

use crate::api::truncate_to;

const MAX_TEXT: usize = 120;
/// The cause when a server refuses the login.
pub const LOGIN: &str = "the user or the password is wrong";

/// The cause in a driver's error text, which has no kind of its own for it. Up to 120 bytes.
#[must_use]
pub fn cause(text: &str) -> Option<String> {
    const CERTIFICATE: &str = "invalid peer certificate";
    if let Some(at) = text.find(CERTIFICATE) {
        // UnknownIssuer, Expired, NotValidForName …: a word, and then what may name hosts.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_told_without_the_address() {
        for (text, told) in [
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
            assert_eq!(cause(text).as_deref(), Some(told), "{text}");
        }
        assert_eq!(cause("something else at db.example"), None);
    }
}
