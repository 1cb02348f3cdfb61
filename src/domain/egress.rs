//! Addresses that sources and sinks of alerts may have. Users that may create SyncJobs and SyncAlerts choose the
//! addresses, and must not reach through the operator what they cannot reach themselves.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Class of an address. It decides which entries of the policy allow the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressClass {
    /// Address of the public internet.
    Public,
    /// Address of a private network.
    Private,
    /// Address of the own machine.
    Loopback,
    /// Address that is valid on one link only.
    LinkLocal,
    /// Address of a metadata service of a cloud, outside the link-local range.
    Metadata,
    /// Address of this host or network.
    Unspecified,
    /// Address of a group of hosts.
    Multicast,
    /// Any other address that is not of the public internet.
    Reserved,
}

#[allow(clippy::ip_constant, reason = "a network, not an address")]
/// Ranges of IPv4 that are not of the public internet
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry>).
const SPECIAL: [(Ipv4Addr, u32, AddressClass); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, AddressClass::Unspecified),
    (Ipv4Addr::new(10, 0, 0, 0), 8, AddressClass::Private),
    (Ipv4Addr::new(100, 64, 0, 0), 10, AddressClass::Private),
    (Ipv4Addr::new(127, 0, 0, 0), 8, AddressClass::Loopback),
    (Ipv4Addr::new(169, 254, 0, 0), 16, AddressClass::LinkLocal),
    (Ipv4Addr::new(172, 16, 0, 0), 12, AddressClass::Private),
    (Ipv4Addr::new(192, 0, 0, 0), 24, AddressClass::Reserved),
    (Ipv4Addr::new(192, 0, 2, 0), 24, AddressClass::Reserved),
    (Ipv4Addr::new(192, 88, 99, 0), 24, AddressClass::Reserved),
    (Ipv4Addr::new(192, 168, 0, 0), 16, AddressClass::Private),
    (Ipv4Addr::new(198, 18, 0, 0), 15, AddressClass::Reserved),
    (Ipv4Addr::new(198, 51, 100, 0), 24, AddressClass::Reserved),
    (Ipv4Addr::new(203, 0, 113, 0), 24, AddressClass::Reserved),
    (Ipv4Addr::new(224, 0, 0, 0), 4, AddressClass::Multicast),
    (Ipv4Addr::new(240, 0, 0, 0), 4, AddressClass::Reserved),
];

/// Metadata services outside the link-local ranges: Azure, Alibaba Cloud, Oracle Cloud (IPv4, IPv6), Amazon (IPv6),
/// Google (IPv6). They give credentials to each program that can reach them.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

impl AddressClass {
    /// Returns the class of an address. An IPv6 address that contains an IPv4 address has the class of that address.
    #[must_use]
    pub fn classify(address: IpAddr) -> Self {
        let address = address.to_canonical();
        if METADATA.contains(&address) {
            return Self::Metadata;
        }
        match address {
            IpAddr::V4(address) => {
                let is_in = |(network, length, _): &&(Ipv4Addr, u32, Self)| {
                    let mask = u32::MAX << (32 - length);
                    u32::from(address) & mask == u32::from(*network)
                };
                SPECIAL.iter().find(is_in).map_or(Self::Public, |(.., class)| *class)
            }
            IpAddr::V6(address) => Self::classify_v6(address),
        }
    }

    fn classify_v6(address: Ipv6Addr) -> Self {
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => Self::classify(embedded(a, b)),
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Reserved,
            [0xfc00..=0xfdff, ..] => Self::Private,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xff00..=0xffff, ..] => Self::Multicast,
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
        }
    }

    /// True when only an entry with the network allows the address. With such an address, a name could lead to the
    /// operator itself, or to credentials of its machine.
    #[must_use]
    pub fn needs_network(self) -> bool {
        !matches!(self, Self::Public | Self::Private)
    }

    /// Lists that can allow an address of this class.
    fn lists(self) -> &'static str {
        if self.needs_network() {
            "only a network allows it, so name the network in --source-allowed-cidrs, or in networks of an entry in \
             addresses of the policy"
        } else {
            "name its host in --source-allowed-hosts, or its network in --source-allowed-cidrs, or add an entry to \
             addresses of the policy"
        }
    }
}

fn embedded(high: u16, low: u16) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

/// Refusal of an address. The text continues a sentence whose subject is the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The address is of a class that needs an entry.
    #[error("is at a {} address, which the operator does not allow: {}", .0.name(), .0.lists())]
    Address(AddressClass),
    /// The address is public, and the request to it is not encrypted.
    #[error(
        "must be https, or its host be named by the operator's --source-allowed-hosts, or by addresses of the policy"
    )]
    PlainText,
}

/// Hosts and networks that an entry allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressRule {
    /// Host names, in lower case; `*.example.com` matches all subdomains of `example.com`. `None`: any host in
    /// `networks`.
    pub hosts: Option<Vec<String>>,
    /// Networks. `None`: public and private addresses of `hosts`.
    pub networks: Option<Vec<IpNet>>,
}

impl AddressRule {
    /// Rule that allows hosts, at public and private addresses.
    #[must_use]
    pub fn for_hosts(hosts: Vec<String>) -> Self {
        Self { hosts: Some(hosts), networks: None }
    }

    /// Rule that allows networks, for any host.
    #[must_use]
    pub fn for_networks(networks: Vec<IpNet>) -> Self {
        Self { hosts: None, networks: Some(networks) }
    }

    pub(super) fn names_host(&self, host: &str) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|pattern| matches_host(pattern, host)))
    }

    /// True when the rule allows the host at some address.
    fn may_allow(&self, host: &str) -> bool {
        self.networks.as_ref().is_none_or(|networks| !networks.is_empty()) && self.names_host(host)
    }

    fn allows(&self, host: &str, address: IpAddr) -> bool {
        let is_allowed = match &self.networks {
            Some(networks) => networks.iter().any(|network| network.contains(&address.to_canonical())),
            None => self.hosts.is_some() && !AddressClass::classify(address).needs_network(),
        };
        is_allowed && self.names_host(host)
    }
}

/// True when a pattern names a host, whole or by its domain.
fn matches_host(pattern: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match pattern.strip_prefix('*') {
        Some(below) => host.ends_with(below) && host.len() > below.len(),
        None => *pattern == host,
    }
}

/// Addresses that are allowed in addition to public addresses with TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress(Vec<AddressRule>);

impl FromIterator<AddressRule> for Egress {
    fn from_iter<I: IntoIterator<Item = AddressRule>>(rules: I) -> Self {
        Self(rules.into_iter().collect())
    }
}

impl Egress {
    /// Returns the addresses with those of more rules.
    #[must_use]
    pub fn with(mut self, rules: impl IntoIterator<Item = AddressRule>) -> Self {
        self.0.extend(rules);
        self
    }

    /// Checks a host before its name is resolved.
    ///
    /// # Errors
    /// When no address that the host may have is allowed.
    pub fn check_host(&self, host: &str, is_encrypted: bool) -> Result<(), Denied> {
        match literal(host) {
            Some(address) => self.check(host, address, is_encrypted),
            None if is_encrypted || self.0.iter().any(|rule| rule.may_allow(host)) => Ok(()),
            None => Err(Denied::PlainText),
        }
    }

    /// Checks an address of a host.
    ///
    /// # Errors
    /// When the address is not allowed for that host.
    pub fn check(&self, host: &str, address: IpAddr, is_encrypted: bool) -> Result<(), Denied> {
        let class = AddressClass::classify(address);
        match class {
            _ if self.0.iter().any(|rule| rule.allows(host, address)) => Ok(()),
            AddressClass::Public if is_encrypted => Ok(()),
            AddressClass::Public => Err(Denied::PlainText),
            _ => Err(Denied::Address(class)),
        }
    }
}

/// Address that a URL names itself.
fn literal(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.map_or_else(|| host.parse().ok(), |inner| inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}
