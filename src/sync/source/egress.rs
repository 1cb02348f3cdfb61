//! Policy for the addresses of sources and of sinks of alerts. Users that may create SyncJobs and SyncAlerts choose
//! the addresses, and must not reach through the operator what they cannot reach themselves.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use reqwest::{
    Certificate, ClientBuilder, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

const CONNECT: Duration = Duration::from_secs(5);

#[allow(clippy::ip_constant)] // a network, not an address
/// Networks that are not the public internet's
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry>): this host, private, link-local with the metadata
/// services of clouds, documentation, multicast, reserved.
const SPECIAL: [(Ipv4Addr, u8); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Addresses that the operator allows in addition to public addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// Host names, in lower case; `*.example.com` matches all subdomains of `example.com`.
    pub hosts: Vec<String>,
    /// Networks.
    pub networks: Vec<IpNet>,
}

/// The host is at an address that is not allowed.
#[derive(Debug, thiserror::Error)]
#[error("its address is not allowed")]
pub(crate) struct NotAllowed;

/// Reason for which a URL is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The address is not allowed.
    Address,
    /// The URL is not https, and the operator does not name its host.
    PlainText,
}

impl Egress {
    /// Allows every host and address, with and without TLS: for local runs, whose user is who names the source.
    #[must_use]
    pub fn anywhere() -> Self {
        Self { hosts: vec!["*".to_owned()], networks: Vec::new() }
    }

    /// Checks the scheme and the host of a URL. The addresses of the host are checked when they are resolved.
    pub(crate) fn admit(&self, url: &Url) -> Result<(), Denied> {
        let host = url.host_str().unwrap_or_default();
        let address = literal(host);
        if address.is_some_and(|address| !self.allows(address) && !self.allows_host(host)) {
            return Err(Denied::Address);
        }
        let is_named = self.allows_host(host) || address.is_some_and(|address| self.names(address));
        if url.scheme() != "https" && !is_named { Err(Denied::PlainText) } else { Ok(()) }
    }

    /// A client that reaches allowed addresses only, and trusts the authorities of these certificates (PEM) instead of
    /// the well-known ones. `None`: they are none.
    pub(crate) fn client(&self, ca: Option<&[u8]>) -> Option<ClientBuilder> {
        let client = ClientBuilder::new()
            .tls_backend_rustls()
            .dns_resolver(self.clone())
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .user_agent(concat!("sync-operator/", env!("CARGO_PKG_VERSION")));
        let Some(pem) = ca else { return Some(client) };
        let authorities = Certificate::from_pem_bundle(pem).ok().filter(|found| !found.is_empty());
        authorities.map(|authorities| client.tls_certs_only(authorities))
    }

    /// The allowed addresses of a host. Empty when it has others only.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let any = self.allows_host(host);
        let found = tokio::net::lookup_host((host, port)).await?;
        Ok(found.filter(|address| any || self.allows(address.ip())).collect())
    }

    pub(crate) fn allows_host(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.hosts.iter().any(|allowed| match allowed.strip_prefix('*') {
            Some(below) => host.ends_with(below) && host.len() > below.len(),
            None => *allowed == host,
        })
    }

    pub(crate) fn names(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address.to_canonical()))
    }

    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        self.names(address) || is_public(address)
    }
}

/// True for an address of the public internet. IPv6 addresses must be in a range that is assigned to it. An IPv6
/// address that contains an IPv4 address is public when the IPv4 address is.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => SPECIAL.iter().all(|(network, length)| {
            let mask = u32::MAX << (32 - length);
            u32::from(address) & mask != u32::from(*network)
        }),
        IpAddr::V6(address) => match address.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => is_public(embedded(a, b)),
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
            [first, ..] => first & 0xe000 == 0x2000,
        },
    }
}

fn embedded(high: u16, low: u16) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

/// Resolver that returns only allowed addresses. The client connects to the addresses that were checked.
impl Resolve for Egress {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = self.clone();
        Box::pin(async move {
            let allowed = egress.resolve(name.as_str(), 0).await?;
            if allowed.is_empty() { Err(NotAllowed.into()) } else { Ok(Box::new(allowed.into_iter()) as Addrs) }
        })
    }
}

/// The address a URL names itself.
fn literal(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.map_or_else(|| host.parse().ok(), |inner| inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_reached_unless_others_are_named() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("100.128.0.1", true),
            ("172.32.0.1", true),
            ("2a00:1450:4001:830::200e", true),
            ("2002:808:808::1", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("172.31.255.255", false),
            ("192.168.0.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:7f00:1::", false),
            ("fe80::1", false),
            ("fd00:ec2::254", false),
            ("ff02::1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
        let egress = Egress { networks: vec!["10.0.0.0/8".parse().unwrap()], ..Egress::default() };
        assert!(egress.allows("10.1.2.3".parse().unwrap()) && egress.allows("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!egress.allows("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn hosts_are_named_whole_or_by_their_domain() {
        let egress = Egress { hosts: vec!["api.example".into(), "*.svc.cluster.local".into()], ..Egress::default() };
        for (host, allowed) in [
            ("api.example", true),
            ("API.example.", true),
            ("x.api.example", false),
            ("users.default.svc.cluster.local", true),
            ("svc.cluster.local", false),
            ("evilsvc.cluster.local", false),
        ] {
            assert_eq!(egress.allows_host(host), allowed, "{host}");
        }
    }

    #[test]
    fn a_literal_address_is_seen_as_one() {
        assert_eq!(literal("127.0.0.1"), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(literal("[::1]"), Some("::1".parse().unwrap()));
        assert_eq!(literal("api.example"), None);
    }
}
