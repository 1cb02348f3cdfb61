//! Addresses with places to be filled in, such as `https://api.example.com/users/{id}`.

use std::fmt::Write as _;

/// What can be filled in.
const NAMES: [&str; 5] = ["id", "ids", "page", "after", "first"];

/// Host and port of a URL, with what may stand before them. Empty when it is neither `https` nor `http`.
pub(super) fn authority(url: &str) -> &str {
    let rest = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    rest.and_then(|rest| rest.split(['/', '\\', '?', '#']).next()).unwrap_or_default()
}

/// True when there is a place of this name.
pub(super) fn has(template: &str, name: &str) -> bool {
    template.contains(&place(name))
}

/// True when all places are after the host, and of names that are known.
pub(super) fn is_usable(template: &str) -> bool {
    let filled = NAMES.iter().fold(template.to_owned(), |text, name| text.replace(&place(name), "0"));
    let is_odd = |character: char| character.is_control() || "{}# ".contains(character);
    let authority = authority(template);
    !authority.is_empty() && !authority.contains(['{', '}']) && !filled.contains(is_odd) && fill(&filled, &[]).is_some()
}

/// The address with these values, which must be encoded. `None`: one of them would lead out of its place, as `..` does
/// in a path.
#[must_use]
pub fn fill(template: &str, values: &[(&str, &str)]) -> Option<String> {
    let filled = values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&place(name), value));
    let leads_out = |part: &str| matches!(part.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    let path = filled.split('?').next().unwrap_or_default();
    (!path.split(['/', '\\']).any(leads_out)).then_some(filled)
}

/// A text as it can stand in a path or a query: all but letters, digits and `-._~` is encoded.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn place(name: &str) -> String {
    format!("{{{name}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_in_their_place() {
        for (template, key, expected) in [
            ("https://a/users/{id}", "7", Some("https://a/users/7")),
            ("https://a/users/{id}/x?u={id}", "a b", Some("https://a/users/a%20b/x?u=a%20b")),
            ("https://a/users/{id}", "../admin?x=1#y", Some("https://a/users/..%2Fadmin%3Fx%3D1%23y")),
            ("https://a/users/{id}", "gid://gitlab/User/7", Some("https://a/users/gid%3A%2F%2Fgitlab%2FUser%2F7")),
            ("https://a/users/{id}", "%2e%2e", Some("https://a/users/%252e%252e")),
            ("https://a/users/{id}", "ü{id}", Some("https://a/users/%C3%BC%7Bid%7D")),
            ("https://a/users/{id}", "...", Some("https://a/users/...")),
            ("https://a/users/{id}", ".", None),
            ("https://a/users/{id}", "..", None),
            ("https://a/users/%2e{id}?x", ".", None),
            ("https://a/users/{id}.json", "..", Some("https://a/users/...json")),
            ("https://a/users?id={id}", "..", Some("https://a/users?id=..")),
        ] {
            let filled = fill(template, &[("id", &encode(key))]);
            assert_eq!(filled.as_deref(), expected, "{template} {key}");
        }
    }

    #[test]
    fn places_are_known_and_after_the_host() {
        for (template, usable) in [
            ("https://a.example/users", true),
            ("https://a.example:8443/users/{id}?x={id}", true),
            ("https://a.example?page={page}&n={first}", true),
            ("https://{id}.example/users", false),
            ("https://a.example:{id}/users", false),
            ("{id}://a.example/users", false),
            ("https://a.example/users/{name}", false),
            ("https://a.example/users/{ID}", false),
            ("https://a.example/users/{p{id}age}", false),
            ("https://a.example/users/{id", false),
            ("https://a.example/users/id}", false),
            ("https://a.example/users/{}", false),
            ("https://a.example/x/../{id}", false),
            ("https://a.example/\t{id}", false),
            ("https://a.example/#{id}", false),
        ] {
            assert_eq!(is_usable(template), usable, "{template}");
        }
    }
}
