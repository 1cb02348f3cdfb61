//! Policy of the installation: the rights of namespaces. See `docs/design/tenants.md`.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::egress::{AddressRule, Egress};

/// Rights of the namespaces of an installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Addresses that namespaces may use.
    pub addresses: Vec<AddressEntry>,
    /// Addresses that every namespace may use, from flags.
    pub everywhere: Vec<AddressRule>,
}

/// Namespaces to which an entry applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Names of namespaces. `None`: every namespace.
    pub namespaces: Option<Vec<String>>,
}

/// Entry of `addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressEntry {
    /// Name, unique in the policy.
    pub name: String,
    /// Namespaces of the entry.
    pub scope: Scope,
    /// Hosts and networks.
    pub rule: AddressRule,
}

/// Names of the entries that match a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries(BTreeSet<String>);

impl Scope {
    fn matches(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|names| names.iter().any(|name| name == namespace))
    }
}

impl Policy {
    /// Policy of local runs, whose user names the source: every host and address, with and without TLS.
    #[must_use]
    pub fn anywhere() -> Self {
        let all = vec![IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())];
        Self { everywhere: vec![AddressRule::for_networks(all)], ..Self::default() }
    }

    /// Returns the entries that match a namespace.
    #[must_use]
    pub fn matching(&self, namespace: &str) -> Entries {
        let matching = self.addresses.iter().filter(|entry| entry.scope.matches(namespace));
        Entries(matching.map(|entry| entry.name.clone()).collect())
    }

    /// Returns the addresses that these entries allow.
    #[must_use]
    pub fn egress(&self, entries: &Entries) -> Egress {
        let matching = self.addresses.iter().filter(|entry| entries.0.contains(&entry.name));
        matching.map(|entry| &entry.rule).chain(&self.everywhere).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_run_may_use_any_address() {
        let policy = Policy::anywhere();
        let egress = policy.egress(&policy.matching("default"));
        for host in ["10.0.0.1", "[::1]", "169.254.169.254", "gitlab.example"] {
            assert!(egress.check_host(host, false).is_ok(), "{host}");
        }
    }

    #[test]
    fn addresses_belong_to_the_namespaces_of_their_entries() {
        let entry = |name: &str, namespaces: Option<&[&str]>| {
            let namespaces = namespaces.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            let rule = AddressRule::for_hosts(vec![format!("{name}.example")]);
            AddressEntry { name: name.to_owned(), scope: Scope { namespaces }, rule }
        };
        let policy = Policy {
            addresses: vec![
                entry("all", None),
                entry("none", Some(&[])),
                entry("a", Some(&["team-a", "team-x"])),
                entry("b", Some(&["team-b"])),
            ],
            everywhere: vec![AddressRule::for_hosts(vec!["flag.example".to_owned()])],
        };
        for (namespace, names) in
            [("team-a", &["all", "a", "flag"][..]), ("team-b", &["all", "b", "flag"]), ("team-c", &["all", "flag"])]
        {
            let egress = policy.egress(&policy.matching(namespace));
            for name in ["all", "none", "a", "b", "flag"] {
                let is_allowed = egress.check_host(&format!("{name}.example"), false).is_ok();
                assert_eq!(is_allowed, names.contains(&name), "{namespace}: {name}");
            }
        }
    }
}
