//! The policy file of an installation: reading and validation, with the positions of mistakes.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive, sync::LazyLock, time::Duration};

use ipnet::IpNet;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    finding::{Finding, Report},
    schema::{self, join},
    yaml::{self, Content, Node, Position},
};
use crate::{
    api::GoDuration,
    domain::{
        egress::AddressRule,
        policy::{AddressEntry, MongoRights, Policy, Scope, TenantEntry, database_name},
        source::RequestRate,
    },
};

const MAX_LABEL: usize = 63;
/// Allowed values of `tenants[].runs`.
const RUNS: RangeInclusive<u32> = 1..=10_000;

/// Allowed values of `rates[].requests` and `rates[].per`, as for `source.rateLimit`.
const REQUESTS: RangeInclusive<u32> = 1..=100_000;
const PERIODS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);

/// The file as its author writes it. An absent list differs from an empty list.
#[derive(Deserialize, JsonSchema)]
struct PolicyDocument {
    tenants: Option<Vec<TenantItem>>,
    addresses: Option<Vec<AddressItem>>,
    rates: Option<Vec<RateItem>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct TenantItem {
    name: String,
    namespaces: Vec<String>,
    mongodb: Option<MongoItem>,
    runs: Option<u32>,
    mongodb_hosts: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct MongoItem {
    databases: Option<Vec<String>>,
    collections: Vec<String>,
    key_fields: Option<Vec<String>>,
    stamp_fields: Option<Vec<String>>,
    mapped_fields: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema)]
struct AddressItem {
    name: String,
    namespaces: Option<Vec<String>>,
    hosts: Option<Vec<String>>,
    networks: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema)]
struct RateItem {
    host: String,
    requests: u32,
    per: Option<String>,
}

/// Reads and validates a policy. `file` is its name in findings.
///
/// # Errors
/// The mistakes, in the order of their positions.
pub fn parse_policy(file: &str, text: &str) -> Result<Policy, Vec<Finding>> {
    let mut report = Report::new(file, Position { line: 1, column: 1 });
    let policy = read_root(text, &mut report).and_then(|root| read_policy(&root, &mut report));
    match policy {
        Some(policy) if !report.has_errors() => Ok(policy),
        _ => Err(report.into_findings()),
    }
}

/// Reads the only document of the file.
fn read_root(text: &str, report: &mut Report<'_>) -> Option<Node> {
    let (chunks, mut errors) = yaml::split(text);
    let mut roots = Vec::new();
    for chunk in chunks {
        let (root, more) = yaml::parse(chunk);
        roots.extend(root);
        errors.extend(more);
    }
    for error in errors {
        report.error_at(error.at, error.message);
    }
    if let Some(second) = roots.get(1) {
        report.error_at(second.first_position(), "a policy is one document: move its lists into the first one");
    }
    if roots.is_empty() && !report.has_errors() {
        report.error("", "the file is empty: write {} for a policy without entries");
    }
    roots.into_iter().next()
}

fn read_policy(root: &Node, report: &mut Report<'_>) -> Option<Policy> {
    let schema = policy_schema();
    let value = schema::check(schema, root, "", report);
    schema::report_unknown_fields(schema, root, "", report);
    report_nulls(root, "", report);
    if report.has_errors() {
        return None;
    }
    match serde_json::from_value::<PolicyDocument>(value) {
        Ok(document) => Some(convert(document, report)),
        Err(error) => {
            report.error("", format!("not a valid policy: {error}: correct it"));
            None
        }
    }
}

fn policy_schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
        json!(settings.into_generator().into_root_schema_for::<PolicyDocument>())
    });
    &SCHEMA
}

/// Reports values that are null. A list that a template left empty must not count as absent, which allows more.
fn report_nulls(node: &Node, path: &str, report: &mut Report<'_>) {
    match &node.content {
        Content::Scalar(Value::Null) if !path.is_empty() => {
            report.error(path, "must not be null: set it, write [] for an empty list, or remove the key");
        }
        Content::Scalar(_) => {}
        Content::List(items) => {
            for (index, item) in items.iter().enumerate() {
                report_nulls(item, &format!("{path}[{index}]"), report);
            }
        }
        Content::Mapping(entries) => {
            for entry in entries {
                report_nulls(&entry.value, &join(path, &entry.key), report);
            }
        }
    }
}

/// Converts a document with the right structure. Reports the values that have no meaning.
fn convert(document: PolicyDocument, report: &mut Report<'_>) -> Policy {
    let mut names = BTreeMap::new();
    let tenants = document.tenants.map(|items| convert_tenants(items, &mut names, report));
    let mut addresses = Vec::new();
    for (index, item) in document.addresses.into_iter().flatten().enumerate() {
        let path = format!("addresses[{index}]");
        check_name(&item.name, &path, &mut names, report);
        let scope = Scope { namespaces: item.namespaces };
        check_labels(scope.namespaces.as_deref(), &format!("{path}.namespaces"), report);
        if item.hosts.is_none() && item.networks.is_none() {
            report.error(&path, "hosts or networks is needed: add one of them");
        }
        let hosts = item.hosts.map(|hosts| convert_hosts(&hosts, &format!("{path}.hosts"), report));
        let networks = item.networks.map(|networks| convert_networks(&networks, &format!("{path}.networks"), report));
        addresses.push(AddressEntry { name: item.name, scope, rule: AddressRule { hosts, networks } });
    }
    let rates = convert_rates(document.rates.unwrap_or_default(), report);
    Policy { tenants, addresses, rates, everywhere: Vec::new() }
}

fn convert_rates(items: Vec<RateItem>, report: &mut Report<'_>) -> BTreeMap<String, RequestRate> {
    let mut rates = BTreeMap::new();
    for (index, RateItem { host, requests, per }) in items.into_iter().enumerate() {
        let path = format!("rates[{index}]");
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if let Err(message) = check_host(&host) {
            report.error(&format!("{path}.host"), message);
        } else if host.starts_with("*.") {
            report.error(&format!("{path}.host"), "a rate belongs to one host: write its whole name");
        }
        if !REQUESTS.contains(&requests) {
            let message = format!("{requests} is out of range: write {} to {}", REQUESTS.start(), REQUESTS.end());
            report.error(&format!("{path}.requests"), message);
            continue;
        }
        let per = per.map_or(Ok(Duration::from_secs(1)), |per| GoDuration::new(per).parse());
        match per.ok().filter(|per| PERIODS.contains(per)) {
            None => report.error(&format!("{path}.per"), "is no duration from 1s to 24h: write 1s, 5m or 1h"),
            Some(per) => match RequestRate::new(requests, per) {
                None => report.error(&path, "less than one request per minute: raise requests, or lower per"),
                Some(rate) if rates.insert(host.clone(), rate).is_some() => {
                    report.error(&format!("{path}.host"), format!("{host} has a rate already: remove one of them"));
                }
                Some(_) => {}
            },
        }
    }
    rates
}

fn convert_tenants(
    items: Vec<TenantItem>,
    names: &mut BTreeMap<String, String>,
    report: &mut Report<'_>,
) -> Vec<TenantEntry> {
    let mut entries = Vec::new();
    for (index, TenantItem { name, namespaces, mongodb, runs, mongodb_hosts }) in items.into_iter().enumerate() {
        let path = format!("tenants[{index}]");
        check_name(&name, &path, names, report);
        check_labels(Some(&namespaces), &format!("{path}.namespaces"), report);
        if let Some(runs) = runs.filter(|runs| !RUNS.contains(runs)) {
            let message = format!("{runs} is out of range: write {} to {}", RUNS.start(), RUNS.end());
            report.error(&format!("{path}.runs"), message);
        }
        let mongodb = mongodb.map(|rights| convert_rights(rights, &format!("{path}.mongodb"), report));
        entries.push(TenantEntry { name, scope: Scope { namespaces: Some(namespaces) }, mongodb, runs, mongodb_hosts });
    }
    entries
}

fn convert_rights(item: MongoItem, path: &str, report: &mut Report<'_>) -> MongoRights {
    let or = |fields: Option<Vec<String>>, default: &str| fields.unwrap_or_else(|| vec![default.to_owned()]);
    let rights = MongoRights {
        databases: item.databases,
        collections: item.collections,
        key_fields: or(item.key_fields, "_id"),
        stamp_fields: or(item.stamp_fields, "lastSynced"),
        mapped_fields: item.mapped_fields.unwrap_or_default(),
    };
    for (index, database) in rights.databases.iter().flatten().enumerate() {
        if let Err(message) = database_name(database) {
            report.error(&format!("{path}.databases[{index}]"), format!("{database:?} {message}"));
        }
    }
    for (field, patterns) in [
        ("collections", &rights.collections),
        ("keyFields", &rights.key_fields),
        ("stampFields", &rights.stamp_fields),
        ("mappedFields", &rights.mapped_fields),
    ] {
        for (index, pattern) in patterns.iter().enumerate().filter(|(_, pattern)| !is_pattern(pattern)) {
            let message = format!("{pattern:?} is no name: write a name, or a prefix with * at its end");
            report.error(&format!("{path}.{field}[{index}]"), message);
        }
    }
    rights
}

fn is_pattern(text: &str) -> bool {
    !text.is_empty() && !text.strip_suffix('*').unwrap_or(text).contains('*')
}

/// Checks the name of an entry, which is unique in the file.
fn check_name(name: &str, path: &str, names: &mut BTreeMap<String, String>, report: &mut Report<'_>) {
    let field = format!("{path}.name");
    if !is_label(name) {
        report.error(&field, not_a_label(name));
    }
    if let Some(first) = names.insert(name.to_owned(), path.to_owned()) {
        report.error(&field, format!("{first} has the name {name} already: choose another name"));
    }
}

fn check_labels(labels: Option<&[String]>, path: &str, report: &mut Report<'_>) {
    for (index, label) in labels.unwrap_or_default().iter().enumerate().filter(|(_, label)| !is_label(label)) {
        report.error(&format!("{path}[{index}]"), not_a_label(label));
    }
}

fn not_a_label(text: &str) -> String {
    format!("{text:?} is no name: write lower-case letters, digits and -, at most {MAX_LABEL} characters")
}

/// True for a DNS label (RFC 1123), as names of namespaces are.
fn is_label(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let has_ends = text.bytes().next().is_some_and(is_letter) && text.bytes().next_back().is_some_and(is_letter);
    has_ends && text.len() <= MAX_LABEL && text.bytes().all(|byte| is_letter(byte) || byte == b'-')
}

fn convert_hosts(hosts: &[String], path: &str, report: &mut Report<'_>) -> Vec<String> {
    for (index, host) in hosts.iter().enumerate() {
        if let Err(message) = check_host(host) {
            report.error(&format!("{path}[{index}]"), message);
        }
    }
    hosts.iter().map(|host| host.trim_end_matches('.').to_ascii_lowercase()).collect()
}

fn check_host(host: &str) -> Result<(), String> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(format!("{host} is an address: move it to networks, such as {host}/32"));
    }
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if name.trim_end_matches('.').split('.').all(is_part) {
        return Ok(());
    }
    Err(format!("{host:?} is no host: write a name such as api.example.com, or *.example.com, without scheme and port"))
}

fn convert_networks(networks: &[String], path: &str, report: &mut Report<'_>) -> Vec<IpNet> {
    let mut parsed = Vec::new();
    for (index, text) in networks.iter().enumerate() {
        if let Ok(network) = text.parse() {
            parsed.push(network);
        } else {
            let message = format!("{text:?} is no network: write an address and a length, such as 10.0.0.0/8");
            report.error(&format!("{path}[{index}]"), message);
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_have_the_defaults_of_the_design() {
        let text = "tenants:\n- {name: a, namespaces: [team-a], mongodb: {collections: [users, \"team_*\"]}}\n- {name: b, \
                    namespaces: []}\n";
        let tenants = parse_policy("p.yaml", text).unwrap().tenants.unwrap();
        let rights = tenants[0].mongodb.clone().unwrap();
        assert_eq!((rights.databases, rights.collections), (None, vec!["users".to_owned(), "team_*".to_owned()]));
        assert_eq!((rights.key_fields, rights.stamp_fields), (vec!["_id".to_owned()], vec!["lastSynced".to_owned()]));
        assert_eq!((rights.mapped_fields, tenants[1].mongodb.clone()), (Vec::new(), None));
        assert_eq!(parse_policy("p.yaml", "tenants: []").unwrap().tenants, Some(Vec::new()));
        assert_eq!(parse_policy("p.yaml", "addresses: []").unwrap().tenants, None);
    }

    fn lines(text: &str) -> Vec<String> {
        let findings = parse_policy("p.yaml", text).err().unwrap_or_default();
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rate_belongs_to_a_host() {
        let text = "rates: [{host: API.example., requests: 600, per: 1m}, {host: b.example, requests: 10}]";
        let policy = parse_policy("p.yaml", text).unwrap();
        assert_eq!(policy.rate_of("api.example"), RequestRate::new(600, Duration::from_mins(1)));
        assert_eq!(policy.rate_of("b.example."), RequestRate::new(10, Duration::from_secs(1)));
        assert_eq!(policy.rate_of("x.b.example"), None);
    }

    #[test]
    fn a_policy_has_the_entries_of_its_file() {
        let text = "addresses:\n- name: api\n  namespaces: [team-a]\n  hosts: [API.example., \"*.svc\"]\n  networks: \
                    [10.96.0.0/12]\n- {name: lab, networks: [\"fd12::/16\"], namespaces: []}\n";
        let policy = parse_policy("p.yaml", text).unwrap();
        let rules: Vec<_> = policy.addresses.iter().map(|entry| (entry.name.as_str(), &entry.rule)).collect();
        let network = |text: &str| Some(vec![text.parse().unwrap()]);
        let hosts = Some(vec!["api.example".to_owned(), "*.svc".to_owned()]);
        assert_eq!(
            rules,
            [
                ("api", &AddressRule { hosts, networks: network("10.96.0.0/12") }),
                ("lab", &AddressRule { hosts: None, networks: network("fd12::/16") }),
            ]
        );
        let namespaces: Vec<_> = policy.addresses.iter().map(|entry| entry.scope.namespaces.clone()).collect();
        assert_eq!(namespaces, [Some(vec!["team-a".to_owned()]), Some(Vec::new())]);
        for empty in ["{}", "addresses: []", "# none\n---\n{}\n"] {
            assert_eq!(parse_policy("p.yaml", empty), Ok(Policy::default()), "{empty}");
        }
    }

    #[test]
    fn each_mistake_has_its_position_and_its_fix() {
        let entry = |text: &str| format!("addresses:\n- name: a\n  hosts: [x]\n{text}");
        for (text, expected) in [
            ("", "p.yaml:1:1: error: the file is empty: write {}"),
            ("[]", "p.yaml:1:1: error: must be of type object, not a list"),
            ("a: [", "p.yaml:2:1: error: not valid YAML"),
            ("{}\n---\n{}", "p.yaml:3:1: error: a policy is one document"),
            ("adresses: []", "p.yaml:1:1: error: adresses: unknown field \"adresses\": did you mean \"addresses\"?"),
            ("addresses: []\naddresses: []", "p.yaml:2:1: error: duplicate key \"addresses\": line 1 has it already"),
            ("addresses:", "p.yaml:1:1: error: addresses: must not be null: set it, write [] for an empty list"),
            ("addresses:\n- hosts: [x]", "p.yaml:2:3: error: addresses[0].name: is required: add it"),
            ("addresses: [{name: a}]", "p.yaml:1:13: error: addresses[0]: hosts or networks is needed: add one"),
            ("tenants:", "p.yaml:1:1: error: tenants: must not be null: set it, write [] for an empty list"),
            (
                "rates: [{host: a.example, requests: 1, per: 2m}]",
                "p.yaml:1:9: error: rates[0]: less than one request per minute: raise requests, or lower per",
            ),
            ("rates: [{host: a.example, requests: 0}]", "p.yaml:1:27: error: rates[0].requests: 0 is out of range"),
            (
                "rates: [{host: a.example, requests: 9, per: 25h}]",
                "p.yaml:1:40: error: rates[0].per: is no duration from 1s to 24h",
            ),
            ("rates: [{host: \"*.a.example\", requests: 9}]", "p.yaml:1:10: error: rates[0].host: a rate belongs to"),
            (
                "rates: [{host: a.example, requests: 9}, {host: A.example., requests: 8}]",
                "p.yaml:1:42: error: rates[1].host: a.example has a rate already",
            ),
            (
                "tenants: [{name: a, namespaces: [x], runs: 0}]",
                "p.yaml:1:38: error: tenants[0].runs: 0 is out of range: write 1 to 10000",
            ),
            ("tenants: [{name: a}]", "p.yaml:1:11: error: tenants[0].namespaces: is required: add it"),
            (
                "tenants:\n- name: a\n  namespaces: [x]\n  mongodb: {colections: [u], collections: [u]}",
                "p.yaml:4:13: error: tenants[0].mongodb.colections: unknown field \"tenants[0].mongodb.colections\": did",
            ),
            (
                "tenants: [{name: a, namespaces: [x], mongodb: {collections: [\"a*b\"]}}]",
                "p.yaml:1:62: error: tenants[0].mongodb.collections[0]: \"a*b\" is no name",
            ),
            (
                "tenants: [{name: a, namespaces: [x], mongodb: {collections: [], databases: [admin]}}]",
                "p.yaml:1:77: error: tenants[0].mongodb.databases[0]: \"admin\" is reserved by MongoDB",
            ),
            (
                "tenants: [{name: a, namespaces: []}]\naddresses: [{name: a, hosts: [x]}]",
                "p.yaml:2:14: error: addresses[0].name: tenants[0] has the name a already",
            ),
            (
                &entry("  host: []"),
                "p.yaml:4:3: error: addresses[0].host: unknown field \"addresses[0].host\": did you",
            ),
            (&entry("  networks: 10.0.0.0/8"), "p.yaml:4:3: error: addresses[0].networks: must be of type array"),
            (
                &entry("  networks: [10.0.0.1]"),
                "p.yaml:4:14: error: addresses[0].networks[0]: \"10.0.0.1\" is no network",
            ),
            (&entry("  namespaces: [Team]"), "p.yaml:4:16: error: addresses[0].namespaces[0]: \"Team\" is no name"),
            (&entry("- {name: a, hosts: [h]}"), "p.yaml:4:4: error: addresses[1].name: addresses[0] has the name a"),
            (&entry("- {name: -b, hosts: [h]}"), "p.yaml:4:4: error: addresses[1].name: \"-b\" is no name"),
            (
                &entry("- {name: b, hosts: [\"https://h\"]}"),
                "p.yaml:4:21: error: addresses[1].hosts[0]: \"https://h\" is",
            ),
            (&entry("- {name: b, hosts: [h:80]}"), "p.yaml:4:21: error: addresses[1].hosts[0]: \"h:80\" is no host"),
            (&entry("- {name: b, hosts: [\"*\"]}"), "p.yaml:4:21: error: addresses[1].hosts[0]: \"*\" is no host"),
            (&entry("- {name: b, hosts: [127.0.0.1]}"), "p.yaml:4:21: error: addresses[1].hosts[0]: 127.0.0.1 is an"),
        ] {
            let found = lines(text);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{text}\n{found:#?}");
        }
    }
}
