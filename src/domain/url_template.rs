//! URL templates: addresses with placeholders, such as `https://api.example.com/users/{id}`.

use std::fmt::Write as _;

/// Names of the placeholders.
const NAMES: [&str; 5] = ["id", "ids", "page", "after", "first"];

/// Host and port of a URL, with the user information before them. Empty when the scheme is neither `https` nor
/// `http`.
pub(super) fn authority(url: &str) -> &str {
    let rest = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    rest.and_then(|rest| rest.split(['/', '\\', '?', '#']).next()).unwrap_or_default()
}

/// True when the template has a placeholder of this name.
pub(super) fn has_placeholder(template: &str, name: &str) -> bool {
    template.contains(&placeholder(name))
}

/// True when each placeholder has a known name and is after the host.
pub(super) fn is_usable(template: &str) -> bool {
    let filled = NAMES.iter().fold(template.to_owned(), |text, name| text.replace(&placeholder(name), "0"));
    let is_odd = |character: char| character.is_control() || "{}# ".contains(character);
    let authority = authority(template);
    !authority.is_empty() && !authority.contains(['{', '}']) && !filled.contains(is_odd) && fill(&filled, &[]).is_some()
}

/// The address with these values, which must be encoded. `None`: a value would change the path around its placeholder, as `..` does.
#[must_use]
pub fn fill(template: &str, values: &[(&str, &str)]) -> Option<String> {
    let filled = values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&placeholder(name), value));
    let leads_out = |part: &str| matches!(part.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    let path = filled.split('?').next().unwrap_or_default();
    (!path.split(['/', '\\']).any(leads_out)).then_some(filled)
}

/// Percent-encodes a text for a path or a query: every byte except letters, digits and `-._~`.
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

fn placeholder(name: &str) -> String {
    format!("{{{name}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_in_their_placeholders() {
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
    fn placeholders_are_known_and_after_the_host() {
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
