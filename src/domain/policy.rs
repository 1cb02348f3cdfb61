//! Policy of the installation: the rights of namespaces. See `docs/design/tenants.md`.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    egress::{AddressRule, Egress},
    run::RunSpec,
    source::{Missing, RequestRate, SourceSpec},
};

/// Rights of the namespaces of an installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Rights on the MongoDB of the installation. `None`: each namespace has all of them.
    pub tenants: Option<Vec<TenantEntry>>,
    /// Addresses that namespaces may use.
    pub addresses: Vec<AddressEntry>,
    /// Rates of the requests of all namespaces to a host.
    pub rates: BTreeMap<String, RequestRate>,
    /// Addresses that every namespace may use, from flags.
    pub everywhere: Vec<AddressRule>,
}

/// Namespaces to which an entry applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Names of namespaces. `None`: every namespace.
    pub namespaces: Option<Vec<String>>,
}

/// Entry of `tenants`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantEntry {
    /// Name, unique in the policy.
    pub name: String,
    /// Namespaces of the entry.
    pub scope: Scope,
    /// Rights on the MongoDB of the installation.
    pub mongodb: Option<MongoRights>,
    /// Largest number of concurrent runs of each namespace. `None`: no limit.
    pub runs: Option<u32>,
    /// Hosts of MongoDBs that the namespaces may bring, in lower case; `*.example.com` matches all subdomains of
    /// `example.com`. `None`: they may bring none.
    pub mongodb_hosts: Option<Vec<String>>,
}

/// Rights on a MongoDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MongoRights {
    /// Databases. `None`: the default database.
    pub databases: Option<Vec<String>>,
    /// Collections, as patterns.
    pub collections: Vec<String>,
    /// Fields that may identify documents, as patterns.
    pub key_fields: Vec<String>,
    /// Fields that may be stamped, as patterns.
    pub stamp_fields: Vec<String>,
    /// Fields that a source may write, as patterns.
    pub mapped_fields: Vec<String>,
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

/// Refusal of a run by the policy. The text names the entry, the field and the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// No entry gives the namespace a right.
    #[error(
        "namespace {namespace} may not use the operator's MongoDB: no entry of tenants with mongodb names it, so add one to the policy"
    )]
    Namespace {
        /// The namespace.
        namespace: String,
    },
    /// No entry lets the namespace bring a MongoDB.
    #[error("target.uriSecretRef is not allowed for namespace {namespace}: add an entry with mongodbHosts to tenants")]
    OwnMongoDb {
        /// The namespace.
        namespace: String,
    },
    /// The entries allow other values of a field.
    #[error("{field} {value} is not allowed for namespace {namespace}: tenants {entry} allows {allowed}")]
    Value {
        /// Path in the spec.
        field: &'static str,
        /// The value found.
        value: String,
        /// The namespace.
        namespace: String,
        /// Entry that allows the most of the spec.
        entry: String,
        /// The values that the entry allows.
        allowed: String,
    },
}

impl Scope {
    fn matches(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|names| names.iter().any(|name| name == namespace))
    }
}

/// True when a pattern names a text, whole or by a prefix with `*` at its end.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => pattern == text,
    }
}

/// Use of one field of the target: its path in the spec, its value, and the values that an entry allows.
type Use<'a> = (&'static str, &'a str, &'a [String]);

impl MongoRights {
    /// Uses of a run, in the order in which they are checked.
    fn uses<'a>(&'a self, run: &'a RunSpec, database: &'a str, default: &'a [String]) -> Vec<Use<'a>> {
        let databases = self.databases.as_deref().unwrap_or(default);
        let mut uses: Vec<Use<'a>> = vec![
            ("target.database", database, databases),
            ("target.collection", &run.collection, &self.collections),
            ("target.keyField", &run.key_field, &self.key_fields),
            ("target.lastSyncedField", &run.last_synced_field, &self.stamp_fields),
        ];
        if let Some(SourceSpec { mapping, missing, .. }) = &run.source {
            uses.extend(mapping.iter().map(|field| ("mapping[].to", field.to.as_str(), &self.mapped_fields[..])));
            if let Missing::Remove(removal) = missing {
                uses.push(("source.missing.field", &removal.field, &self.mapped_fields));
                let set = removal.set.iter();
                uses.extend(set.map(|(to, _)| ("source.missing.set[].to", to.as_str(), &self.mapped_fields[..])));
            }
        }
        uses
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
        let tenants = self.tenants.iter().flatten().map(|entry| (&entry.name, &entry.scope));
        let addresses = self.addresses.iter().map(|entry| (&entry.name, &entry.scope));
        let matching = tenants.chain(addresses).filter(|(_, scope)| scope.matches(namespace));
        Entries(matching.map(|(name, _)| name.clone()).collect())
    }

    /// Returns the rate of the requests of all namespaces to a host. `None`: no limit.
    #[must_use]
    pub fn rate_of(&self, host: &str) -> Option<RequestRate> {
        self.rates.get(host.trim_end_matches('.')).copied()
    }

    /// Returns the largest number of concurrent runs of a namespace with these entries. `None`: no limit.
    ///
    /// Of several entries the highest number counts, and an entry without one lifts the limit.
    #[must_use]
    pub fn runs(&self, entries: &Entries) -> Option<u32> {
        let tenants = self.tenants.iter().flatten().filter(|entry| entries.0.contains(&entry.name));
        tenants.map(|entry| entry.runs).collect::<Option<Vec<u32>>>()?.into_iter().max()
    }

    /// Returns the addresses that these entries allow.
    #[must_use]
    pub fn egress(&self, entries: &Entries) -> Egress {
        let matching = self.addresses.iter().filter(|entry| entries.0.contains(&entry.name));
        matching.map(|entry| &entry.rule).chain(&self.everywhere).cloned().collect()
    }

    /// Returns the entries of `tenants` among these that let their namespaces bring MongoDBs, with their hosts.
    fn mongodb_hosts(&self, entries: &Entries) -> impl Iterator<Item = (&str, AddressRule)> {
        let matching = self.tenants.iter().flatten().filter(|entry| entries.0.contains(&entry.name));
        matching.filter_map(|entry| Some((entry.name.as_str(), AddressRule::for_hosts(entry.mongodb_hosts.clone()?))))
    }

    /// True when these entries allow a host of a MongoDB that the namespace brings.
    #[must_use]
    pub fn allows_mongodb_host(&self, entries: &Entries, host: &str) -> bool {
        self.mongodb_hosts(entries).any(|(_, rule)| rule.names_host(host))
    }

    /// Returns the addresses of MongoDBs that these entries allow: public and private addresses of the hosts, and the
    /// addresses that requests may have.
    #[must_use]
    pub fn mongodb_egress(&self, entries: &Entries) -> Egress {
        self.egress(entries).with(self.mongodb_hosts(entries).map(|(_, rule)| rule))
    }

    /// Returns the name of the entry to which a host of an own MongoDB can be added.
    #[must_use]
    pub fn mongodb_entry(&self, entries: &Entries) -> Option<&str> {
        self.mongodb_hosts(entries).next().map(|(name, _)| name)
    }

    /// Checks what a run of a namespace would read and write. `default`: database of targets that do not set one.
    ///
    /// # Errors
    /// When no entry allows the database, the collection and all fields together.
    pub fn check(&self, entries: &Entries, namespace: &str, run: &RunSpec, default: &str) -> Result<(), NotAllowed> {
        if run.own_mongodb.is_some() {
            let refused = || NotAllowed::OwnMongoDb { namespace: namespace.to_owned() };
            return self.mongodb_entry(entries).map(drop).ok_or_else(refused);
        }
        let Some(tenants) = &self.tenants else { return Ok(()) };
        let (database, default) = (run.database.as_deref().unwrap_or(default), [default.to_owned()]);
        let mut closest = None;
        for entry in tenants.iter().filter(|entry| entries.0.contains(&entry.name)) {
            let Some(rights) = &entry.mongodb else { continue };
            let uses = rights.uses(run, database, &default);
            let is_refused = |(_, value, allowed): &Use<'_>| !allowed.iter().any(|pattern| matches(pattern, value));
            let Some(at) = uses.iter().position(is_refused) else { return Ok(()) };
            if closest.as_ref().is_none_or(|(best, _)| at > *best) {
                let (field, value, allowed) = uses[at];
                closest = Some((at, refusal(field, value, namespace, entry, allowed)));
            }
        }
        let without_entry = || NotAllowed::Namespace { namespace: namespace.to_owned() };
        Err(closest.map_or_else(without_entry, |(_, refusal)| refusal))
    }
}

fn refusal(field: &'static str, value: &str, namespace: &str, entry: &TenantEntry, allowed: &[String]) -> NotAllowed {
    let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    let (value, namespace, entry) = (value.to_owned(), namespace.to_owned(), entry.name.clone());
    NotAllowed::Value { field, value, namespace, entry, allowed }
}

/// Checks the name of a database that an installation allows.
///
/// # Errors
/// When MongoDB does not accept the name, or reserves it. The text continues the name.
pub fn database_name(text: &str) -> Result<String, String> {
    let valid = !text.is_empty()
        && text.len() < 64
        && !text.contains(['/', '\\', '.', ' ', '"', '$', '*', '<', '>', ':', '|', '?']);
    match text {
        "admin" | "config" | "local" => Err("is reserved by MongoDB: name another database".to_owned()),
        _ if valid => Ok(text.to_owned()),
        _ => Err(r#"is no database name: no spaces and none of /\."$*<>:|?"#.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn scope(namespaces: &[&str]) -> Scope {
        Scope { namespaces: Some(namespaces.iter().map(|name| (*name).to_owned()).collect()) }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn entry(name: &str, namespaces: &[&str], collections: &[&str], mapped_fields: &[&str]) -> TenantEntry {
        let rights = MongoRights {
            databases: None,
            collections: texts(collections),
            key_fields: texts(&["_id", "gitlabId"]),
            stamp_fields: texts(&["lastSynced"]),
            mapped_fields: texts(mapped_fields),
        };
        TenantEntry {
            name: name.to_owned(),
            scope: scope(namespaces),
            mongodb: Some(rights),
            runs: None,
            mongodb_hosts: None,
        }
    }

    fn refusal(policy: &Policy, namespace: &str, spec: Value) -> Option<String> {
        let run = RunSpec::parse(&serde_json::from_value(spec).unwrap()).unwrap();
        let checked = policy.check(&policy.matching(namespace), namespace, &run, "codex");
        checked.err().map(|error| error.to_string())
    }

    #[test]
    fn what_no_entry_allows_is_refused() {
        let mut scratch = entry("scratch", &["team-a"], &["*"], &["*"]);
        scratch.mongodb.as_mut().unwrap().databases = Some(texts(&["scratch"]));
        let policy = Policy {
            tenants: Some(vec![
                entry("a", &["team-a"], &["users", "team_a_*"], &["name", "profile.*", "missingSince"]),
                scratch,
                TenantEntry {
                    name: "x".to_owned(),
                    scope: scope(&["team-x"]),
                    mongodb: None,
                    runs: None,
                    mongodb_hosts: None,
                },
            ]),
            ..Policy::default()
        };
        let target = |fields: Value| json!({"target": fields});
        let mapped = |to: &str| {
            json!({"source": {"name": "s", "rest": {"endpoint": "https://a/{id}"}, "batching": "PerUser", "onMissing": "Mark"},
                "mapping": [{"from": "/a", "to": to, "type": "String"}]})
        };
        let not = |field: &str, allowed: &str| {
            Some(format!("{field} is not allowed for namespace team-a: tenants a allows {allowed}"))
        };
        for (spec, expected) in [
            (target(json!({"collection": "users"})), None),
            (target(json!({"collection": "team_a_x", "keyField": "gitlabId"})), None),
            (target(json!({"database": "codex", "collection": "users"})), None),
            (target(json!({"database": "scratch", "collection": "any"})), None),
            (target(json!({"collection": "secrets"})), not("target.collection secrets", "users, team_a_*")),
            (target(json!({"keyField": "passwordHash"})), not("target.keyField passwordHash", "_id, gitlabId")),
            (target(json!({"lastSyncedField": "email"})), not("target.lastSyncedField email", "lastSynced")),
            (target(json!({"database": "crm", "collection": "users"})), not("target.database crm", "codex")),
            // The entries do not combine.
            (
                target(json!({"database": "scratch", "collection": "users", "keyField": "x"})),
                Some(
                    "target.keyField x is not allowed for namespace team-a: tenants scratch allows _id, gitlabId"
                        .to_owned(),
                ),
            ),
            (mapped("name"), None),
            (mapped("profile.name"), None),
            (mapped("profile"), not("mapping[].to profile", "name, profile.*, missingSince")),
            (mapped("isAdmin"), not("mapping[].to isAdmin", "name, profile.*, missingSince")),
        ] {
            assert_eq!(refusal(&policy, "team-a", spec.clone()), expected, "{spec}");
        }
        for namespace in ["team-b", "team-x"] {
            let error = refusal(&policy, namespace, json!({})).unwrap();
            let expected = format!("namespace {namespace} may not use the operator's MongoDB: no entry of tenants");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn the_highest_number_of_runs_counts() {
        for (numbers, expected) in
            [(&[][..], None), (&[Some(4)], Some(4)), (&[Some(4), Some(9), Some(2)], Some(9)), (&[Some(4), None], None)]
        {
            let entry = |(index, runs): (usize, &Option<u32>)| TenantEntry {
                runs: *runs,
                ..entry(&format!("e{index}"), &["team-a"], &["*"], &[])
            };
            let policy = Policy { tenants: Some(numbers.iter().enumerate().map(entry).collect()), ..Policy::default() };
            assert_eq!(policy.runs(&policy.matching("team-a")), expected, "{numbers:?}");
            assert_eq!(policy.runs(&policy.matching("team-b")), None);
        }
    }

    #[test]
    fn without_the_list_each_namespace_has_all_rights() {
        assert_eq!(refusal(&Policy::default(), "team-a", json!({"target": {"keyField": "any"}})), None);
        let empty = Policy { tenants: Some(Vec::new()), ..Policy::default() };
        assert!(refusal(&empty, "team-a", json!({})).is_some());
    }

    #[test]
    fn an_entry_without_fields_allows_no_mapping() {
        let policy = Policy { tenants: Some(vec![entry("a", &["team-a"], &["*"], &[])]), ..Policy::default() };
        let spec = json!({"source": {"rest": {"endpoint": "https://a/{ids}"}},
            "mapping": [{"from": "/a", "to": "name", "type": "String"}]});
        let error = refusal(&policy, "team-a", spec).unwrap();
        assert_eq!(error, "mapping[].to name is not allowed for namespace team-a: tenants a allows none");
        assert_eq!(refusal(&policy, "team-a", json!({"target": {"collection": "any"}})), None);
    }

    #[test]
    fn an_own_mongodb_needs_an_entry_with_its_host() {
        let brings = |name: &str, namespace: &str, hosts: Option<&[&str]>| {
            let mongodb_hosts = hosts.map(texts);
            TenantEntry { name: name.to_owned(), scope: scope(&[namespace]), mongodb: None, runs: None, mongodb_hosts }
        };
        let policy = Policy {
            tenants: Some(vec![
                entry("a", &["team-a", "team-b"], &["*"], &[]),
                brings("b", "team-b", Some(&["db.example"])),
                brings("b2", "team-b", Some(&["*.b.example"])),
                brings("c", "team-c", Some(&[])),
            ]),
            ..Policy::default()
        };
        let own = json!({"target": {"uriSecretRef": {"name": "s", "key": "k"}, "keyField": "any"}});
        for (namespace, is_allowed) in [("team-a", false), ("team-b", true), ("team-c", true), ("team-d", false)] {
            let refused = format!(
                "target.uriSecretRef is not allowed for namespace {namespace}: add an entry with mongodbHosts to tenants"
            );
            assert_eq!(refusal(&policy, namespace, own.clone()), (!is_allowed).then_some(refused), "{namespace}");
        }
        assert!(refusal(&Policy::default(), "team-b", own).is_some(), "without the list too");
        for (namespace, host, is_allowed) in [
            ("team-b", "db.example", true),
            ("team-b", "DB.example.", true),
            ("team-b", "x.b.example", true),
            ("team-b", "b.example", false),
            ("team-b", "x.db.example", false),
            ("team-a", "db.example", false),
            ("team-c", "db.example", false),
        ] {
            let entries = policy.matching(namespace);
            assert_eq!(policy.allows_mongodb_host(&entries, host), is_allowed, "{namespace} {host}");
        }
        let egress = policy.mongodb_egress(&policy.matching("team-b"));
        for (host, address, is_allowed) in [
            ("db.example", "10.0.0.1", true),
            ("db.example", "93.184.216.34", true),
            ("db.example", "127.0.0.1", false),
            ("db.example", "169.254.169.254", false),
            ("other.example", "10.0.0.1", false),
        ] {
            assert_eq!(egress.check(host, address.parse().unwrap(), false).is_ok(), is_allowed, "{host} {address}");
        }
    }

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
        let entry = |name: &str, scope: Scope| {
            let rule = AddressRule::for_hosts(vec![format!("{name}.example")]);
            AddressEntry { name: name.to_owned(), scope, rule }
        };
        let policy = Policy {
            addresses: vec![
                entry("all", Scope::default()),
                entry("none", scope(&[])),
                entry("a", scope(&["team-a", "team-x"])),
                entry("b", scope(&["team-b"])),
            ],
            everywhere: vec![AddressRule::for_hosts(vec!["flag.example".to_owned()])],
            ..Policy::default()
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
