//! Clients and name resolution that reach allowed addresses only.

use std::{io, net::SocketAddr, time::Duration};

use reqwest::{
    Certificate, ClientBuilder, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

use crate::{
    domain::egress::{Denied, Egress},
    policy::NamespaceEgress,
};

const CONNECT: Duration = Duration::from_secs(5);

/// Checks the scheme and the host of a URL. The addresses of the host are checked when they are resolved.
pub(crate) fn admit(egress: &Egress, url: &Url) -> Result<(), Denied> {
    egress.check_host(url.host_str().unwrap_or_default(), is_encrypted(url))
}

fn is_encrypted(url: &Url) -> bool {
    url.scheme() == "https"
}

/// Builds a client that reaches allowed addresses only, for URLs with the scheme of `url`. The client trusts the CA
/// bundle `ca` (PEM) instead of the well-known CAs. `None`: the bundle has no certificate.
pub(crate) fn client(egress: NamespaceEgress, url: &Url, ca: Option<&[u8]>) -> Option<ClientBuilder> {
    let client = ClientBuilder::new()
        .tls_backend_rustls()
        .dns_resolver(CheckedResolver { egress, is_encrypted: is_encrypted(url) })
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT)
        .user_agent(concat!("sync-operator/", env!("CARGO_PKG_VERSION")));
    let Some(pem) = ca else { return Some(client) };
    let authorities = Certificate::from_pem_bundle(pem).ok().filter(|found| !found.is_empty());
    authorities.map(|authorities| client.tls_certs_only(authorities))
}

/// Resolves a host, and returns its allowed addresses. The inner error is the refusal of the first address, when none
/// is allowed.
pub(crate) async fn resolve(
    egress: &Egress,
    host: &str,
    port: u16,
    is_encrypted: bool,
) -> io::Result<Result<Vec<SocketAddr>, Denied>> {
    let (mut allowed, mut refusal) = (Vec::new(), None);
    for address in tokio::net::lookup_host((host, port)).await? {
        match egress.check(host, address.ip(), is_encrypted) {
            Ok(()) => allowed.push(address),
            Err(denied) => refusal = refusal.or(Some(denied)),
        }
    }
    Ok(match refusal {
        Some(denied) if allowed.is_empty() => Err(denied),
        _ => Ok(allowed),
    })
}

/// Resolver that returns only allowed addresses. The client connects to the addresses that were checked.
struct CheckedResolver {
    egress: NamespaceEgress,
    is_encrypted: bool,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (egress, is_encrypted) = (self.egress.get(), self.is_encrypted);
        Box::pin(async move {
            let allowed = resolve(&egress, name.as_str(), 0, is_encrypted).await??;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}
