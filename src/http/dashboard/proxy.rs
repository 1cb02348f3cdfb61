//! Users that a proxy has logged in, such as oauth2-proxy. The proxy sends their identity in headers.
//!
//! This is for the dashboard only. A browser sends the cookies of the proxy with forms of other sites too; the
//! dashboard refuses these, and the HTTP calls could not.

use std::{net::IpAddr, sync::Arc};

use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::http::{
    auth::Caller,
    problem::{Problem, ProblemKind},
};

/// Names that Kubernetes keeps for itself begin so.
const RESERVED: &str = "system:";
/// Group that Kubernetes adds to all authenticated users.
const AUTHENTICATED: &str = "system:authenticated";

/// Trusted proxies and their headers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Proxies {
    networks: Arc<[IpNet]>,
    user: HeaderName,
    groups: HeaderName,
}

impl Proxies {
    /// Creates the proxies of these networks. The header `user` has the name of a user, and the header `groups` the
    /// groups, separated by commas.
    #[must_use]
    pub fn new(networks: &[IpNet], user: HeaderName, groups: HeaderName) -> Self {
        Self { networks: networks.into(), user, groups }
    }

    /// Identity of a request. `None` without a header of a trusted proxy.
    ///
    /// A header that occurs twice is refused: the proxy may have passed one of the client on. Names that Kubernetes
    /// reserves are refused too: otherwise a client that chooses the name of a group could become an administrator by
    /// `system:masters`.
    pub(super) fn caller(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Result<Option<Arc<Caller>>, Problem> {
        let is_trusted = |peer: IpAddr| self.networks.iter().any(|network| network.contains(&peer.to_canonical()));
        if !peer.is_some_and(is_trusted) {
            return Ok(None);
        }
        let Some(user) = only(headers, &self.user)? else { return Ok(None) };
        let groups = only(headers, &self.groups)?.unwrap_or_default();
        let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty());
        if let Some(name) = groups.clone().chain([user]).find(|name| name.starts_with(RESERVED)) {
            let detail = format!("the proxy says {name}: names with {RESERVED} are reserved for Kubernetes");
            return Err(Problem::new(ProblemKind::Forbidden, detail));
        }
        let groups = groups.chain([AUTHENTICATED]).map(str::to_owned).collect();
        Ok(Some(Arc::new(Caller::from_proxy(user, groups))))
    }
}

/// The text of a header. `None` where it is missing or empty.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Problem::new(ProblemKind::BadRequest, format!("the proxy sends {name} more than once")));
    }
    let text = first.map(|value| std::str::from_utf8(value.as_bytes())).transpose();
    let text = text.map_err(|_| Problem::new(ProblemKind::BadRequest, format!("the proxy's {name} is no text")))?;
    Ok(text.map(str::trim).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn said(
        peer: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Option<(String, Vec<String>)>, ProblemKind> {
        let networks = ["10.1.0.0/16", "fd00::/8"].map(|network| network.parse().unwrap());
        let [user, groups] = ["x-forwarded-user", "x-forwarded-groups"].map(HeaderName::from_static);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let caller = Proxies::new(&networks, user, groups).caller(peer.parse().ok(), &map);
        let caller = caller.map_err(|problem| problem.kind())?;
        Ok(caller.map(|caller| (caller.name.clone(), caller.groups().to_vec())))
    }

    #[test]
    fn only_a_trusted_address_is_believed() {
        let alice = [("x-forwarded-user", "alice"), ("x-forwarded-groups", "a, b,,ops team")];
        for peer in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
            let groups = ["a", "b", "ops team", "system:authenticated"].map(str::to_owned).to_vec();
            assert_eq!(said(peer, &alice), Ok(Some(("alice".to_owned(), groups))), "{peer}");
        }
        for peer in ["10.2.0.1", "127.0.0.1", "::1", "::ffff:10.2.0.1", "unknown"] {
            assert_eq!(said(peer, &alice), Ok(None), "{peer}");
        }
    }

    #[test]
    fn a_request_without_identity_is_anonymous() {
        for headers in [&[][..], &[("x-forwarded-user", " ")], &[("x-forwarded-groups", "a")]] {
            assert_eq!(said("10.1.2.3", headers), Ok(None), "{headers:?}");
        }
        let groups = vec!["system:authenticated".to_owned()];
        assert_eq!(said("10.1.2.3", &[("x-forwarded-user", "bob")]), Ok(Some(("bob".to_owned(), groups))));
    }

    #[test]
    fn reserved_and_repeated_names_are_refused() {
        for (headers, kind) in [
            (&[("x-forwarded-user", "system:admin")][..], ProblemKind::Forbidden),
            (&[("x-forwarded-user", "a"), ("x-forwarded-groups", "b,system:masters")], ProblemKind::Forbidden),
            (&[("x-forwarded-user", "a"), ("x-forwarded-user", "b")], ProblemKind::BadRequest),
            (
                &[("x-forwarded-user", "a"), ("x-forwarded-groups", "b"), ("x-forwarded-groups", "c")],
                ProblemKind::BadRequest,
            ),
        ] {
            assert_eq!(said("10.1.2.3", headers), Err(kind), "{headers:?}");
        }
    }
}
