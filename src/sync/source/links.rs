//! Next page, from the header `Link` of an answer (RFC 8288).

use reqwest::{
    Url,
    header::{HeaderMap, LINK},
};

use super::{MAX_NEXT, RequestFailure, answer::unusable};
use crate::sync::Error;

const BLANK: [char; 2] = [' ', '\t'];

/// The address of the first link with `rel="next"`. `None`: this is the last page.
///
/// # Errors
/// When a header is malformed: pages after this one would be taken for not there. When the link leads elsewhere.
pub(super) fn next(headers: &HeaderMap, asked: &Url) -> Result<Option<Url>, RequestFailure> {
    for header in headers.get_all(LINK) {
        let links =
            header.to_str().ok().and_then(parse_links).ok_or_else(|| unusable("its header Link cannot be read"))?;
        if let Some(link) = links.iter().find(|link| link.is_next()) {
            let next = follow(asked, link.target)?;
            return if next == *asked { Err(unusable("its header Link leads to itself")) } else { Ok(Some(next)) };
        }
    }
    Ok(None)
}

/// Resolves an address relative to another one.
///
/// # Errors
/// When the address has another scheme, host or port: the requests carry secrets.
pub(super) fn follow(from: &Url, address: &str) -> Result<Url, RequestFailure> {
    let stays = |url: &Url| url.origin() == from.origin() && url.username().is_empty() && url.password().is_none();
    let mut url = from.join(address).ok().filter(stays).ok_or_else(|| {
        unusable("its header Link leads to another scheme, host or port than source.rest.endpoint, or to none")
    })?;
    url.set_fragment(None);
    if url.as_str().len() > MAX_NEXT {
        return Err(RequestFailure::Fatal(Error::BudgetExceeded(format!(
            "the address in the header Link has more than {MAX_NEXT} bytes: use pagination by Number"
        ))));
    }
    Ok(url)
}

#[derive(Debug, PartialEq)]
struct Link<'a> {
    target: &'a str,
    /// Relations of the link, separated by blanks.
    rel: String,
    /// True when the link has another context than the page.
    is_anchored: bool,
}

impl Link<'_> {
    fn is_next(&self) -> bool {
        !self.is_anchored && self.rel.split_ascii_whitespace().any(|rel| rel.eq_ignore_ascii_case("next"))
    }
}

/// The links in a header. `None`: it is malformed.
fn parse_links(mut text: &str) -> Option<Vec<Link<'_>>> {
    let mut links = Vec::new();
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        if text.is_empty() {
            return Some(links);
        }
        let (target, mut rest) = text.strip_prefix('<')?.split_once('>')?;
        let (mut rel, mut is_anchored) = (None, false);
        while let Some(text) = rest.trim_start_matches(BLANK).strip_prefix(';') {
            let (name, value, after) = parameter(text)?;
            if name.eq_ignore_ascii_case("rel") {
                // Of several the first counts.
                rel.get_or_insert(value);
            } else if name.eq_ignore_ascii_case("anchor") {
                is_anchored = true;
            }
            rest = after;
        }
        text = rest.trim_start_matches(BLANK);
        if !text.is_empty() && !text.starts_with(',') {
            return None;
        }
        links.push(Link { target, rel: rel.unwrap_or_default(), is_anchored });
    }
}

/// Returns name and value of a parameter, and the rest of the text. `None`: its quotation has no end.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.split_at(text.find(['=', ';', ',']).unwrap_or(text.len()));
    let name = name.trim_matches(BLANK);
    let Some(value) = rest.strip_prefix('=') else { return Some((name, String::new(), rest)) };
    let value = value.trim_start_matches(BLANK);
    // Some servers quote with apostrophes, which RFC 8288 does not know.
    let Some((quote, quoted)) = ['"', '\''].iter().find_map(|quote| Some((*quote, value.strip_prefix(*quote)?))) else {
        let (value, rest) = value.split_at(value.find([';', ',']).unwrap_or(value.len()));
        return Some((name, value.trim_end_matches(BLANK).to_owned(), rest));
    };
    let (mut value, mut characters) = (String::new(), quoted.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            _ if character == quote => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn asked() -> Url {
        Url::parse("https://a.example/v4/users?page=1").unwrap()
    }

    fn headers(given: &[&str]) -> HeaderMap {
        given.iter().map(|header| (LINK, HeaderValue::from_str(header).unwrap())).collect()
    }

    fn found(given: &[&str]) -> Result<Option<String>, String> {
        let next = next(&headers(given), &asked()).map_err(|failure| failure.into_error().to_string())?;
        Ok(next.map(|url| url.as_str().trim_start_matches("https://a.example").to_owned()))
    }

    #[test]
    fn the_next_page_is_found_in_all_ways_to_write_it() {
        for (given, expected) in [
            (&[][..], None),
            (&[""], None),
            (&[r#"<https://a.example/v4/users?page=2>; rel="next""#], Some("/v4/users?page=2")),
            (&[r#"<https://A.example:443/2>; rel="next""#], Some("/2")),
            (
                &[
                    r#"<https://a.example/1>; rel="prev", <https://a.example/3>; rel="next", <https://a.example/9>; rel="last""#,
                ],
                Some("/3"),
            ),
            (&[r#"<https://a.example/1>; rel="first""#, r#"<https://a.example/2>; rel="next""#], Some("/2")),
            (&[r#"<https://a.example/1>; rel="first", <https://a.example/9>; rel="last""#], None),
            (&["<?page=2>;rel=next"], Some("/v4/users?page=2")),
            (&["</2>;rel=next"], Some("/2")),
            (&["<2#top> ; rel = next , <3>;rel=last"], Some("/v4/2")),
            (&[r#"</2>; title="a, b; c=\"d\" <e>; rel=last"; rel="last NEXT""#], Some("/2")),
            (&["</2?a=1,2;3>; REL=Next; title=x"], Some("/2?a=1,2;3")),
            (&["<?page=2>; rel='next'"], Some("/v4/users?page=2")),
            (&["<1>; rel='prev first', <3> ; title='a; rel=last, \"b' ; rel='next'"], Some("/v4/3")),
            (&["</2>; rel=prev; rel=next"], None),
            (&["</2>; rel=nextish"], None),
            (&["</2>; anchor=\"/other\"; rel=next, </3>; rel=next"], Some("/3")),
            (&[", ,</2>; flag; ; rel=next,"], Some("/2")),
        ] {
            assert_eq!(found(given), Ok(expected.map(str::to_owned)), "{given:?}");
        }
    }

    #[test]
    fn a_malformed_or_foreign_link_does_not_end_the_walk() {
        let long = format!("</{}>; rel=next", "x".repeat(8 << 10));
        for (given, why) in [
            ("https://a.example/2; rel=next", "cannot be read"),
            ("<https://a.example/2; rel=next", "cannot be read"),
            ("</2> rel=next", "cannot be read"),
            (r#"</2>; rel="next"#, "cannot be read"),
            ("</2>; rel='next", "cannot be read"),
            ("</2>; rel=next, junk", "cannot be read"),
            ("<https://b.example/2>; rel=next", "leads to another scheme, host or port than source.rest.endpoint"),
            ("<//b.example/2>; rel=next", "leads to another scheme"),
            ("<http://a.example/2>; rel=next", "leads to another scheme"),
            ("<https://a.example:8443/2>; rel=next", "leads to another scheme"),
            ("<https://me:pw@a.example/2>; rel=next", "leads to another scheme"),
            ("<file:///etc/passwd>; rel=next", "leads to another scheme"),
            ("<https://a.example/v4/users?page=1>; rel=next", "leads to itself"),
            (&long, "has more than 8192 bytes"),
        ] {
            let error = found(&[given]).unwrap_err();
            assert!(error.contains(why) && !error.contains("b.example"), "{given}: {error}");
        }
    }
}
