//! A hostile tenant and honest tenants. The hostile tenant may create SyncJobs, SyncSchedules and Secrets in one
//! namespace, and has an HTTP source and a server that pretends to be a MongoDB. The honest runs must not notice.
//!
//! The suite attacks for 30 seconds. `make prove-tenants` attacks for 5 minutes, and also compares the delays of the
//! honest runs with the usual ones.

mod attacks;
mod server;

use std::{
    collections::{BTreeMap, HashMap},
    env::var,
    time::Duration,
};

use bson::{Document, doc};
use futures::{TryStreamExt, future::join_all};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Event, Namespace, Secret},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sync_operator::api::{HOSTS_ANNOTATION, SLOT_ANNOTATION, SyncJob, SyncSchedule, syncschedule::SyncScheduleStatus};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, sleep},
};

use self::{
    attacks::{Addresses, TenantSecret},
    server::{Received, honest_source, hostile_mongodb, hostile_source},
};
use crate::{
    http::auth::administrator,
    servers::DedicatedServer,
    support::{Operator, TestEnv, ended, eventually, free_port, get},
    tenants::PolicyFile,
};

const HONEST: [&str; 2] = ["a", "b"];
/// Number of schedules in each honest namespace.
const SCHEDULES: usize = 10;
const DOCUMENTS: i32 = 20;
/// Duration of a round of attacks, in seconds.
const ROUND: u64 = 15;
/// Content of documents that the hostile tenant may not read.
const PASSWORD_HASH: &str = "hash-of-a-password";
const HONEST_TOKEN: &str = "token-of-honest-tenants";
/// Value of the variables with which clients of clouds authenticate.
const IDENTITY: &str = "identity-of-the-operator";
/// Groups of attacks of which no run may complete.
const MUST_FAIL: [&str; 4] = ["s1", "s2", "s13", "own"];
/// Limit of the memory of each container in the chart.
const MEMORY_LIMIT_MIB: u64 = 256;

/// The parts of a test.
struct Stage {
    env: TestEnv,
    honest_source: String,
    /// Delay of each honest run: from its slot to its start.
    delays: HashMap<String, Duration>,
}

fn policy(hostile: &str) -> String {
    let honest = HONEST.map(|name| {
        let rights = format!("{{collections: [\"honest_{name}_*\"], mappedFields: [name]}}");
        format!("- {{name: honest-{name}, namespaces: [honest-{name}], mongodb: {rights}}}\n")
    });
    let rights = "mongodb: {collections: [scratch], mappedFields: [name]}, mongodbHosts: [localhost], runs: 6";
    format!(
        "tenants:\n{}- {{name: hostile, namespaces: [{hostile}], {rights}}}\n\
         addresses:\n\
         - {{name: honest, namespaces: [honest-a, honest-b], networks: [127.0.0.77/32]}}\n\
         - {{name: hostile-source, namespaces: [{hostile}], networks: [127.0.0.66/32]}}\n\
         - {{name: mongodb, namespaces: [{hostile}], hosts: [localhost], networks: [127.0.0.1/32]}}\n",
        honest.concat()
    )
}

impl Stage {
    fn schedules(&self, name: &str) -> Api<SyncSchedule> {
        Api::namespaced(self.env.client.clone(), &format!("honest-{name}"))
    }

    fn collection(&self, name: &str) -> mongodb::Collection<Document> {
        self.env.database.collection(name)
    }

    async fn add_secret(&self, namespace: &str, secret: TenantSecret) {
        let TenantSecret { name, key, value, hosts } = secret;
        let data = [(key.to_owned(), ByteString(value.into_bytes()))].into();
        let mut secret = Secret { data: Some(data), ..Secret::default() };
        secret.metadata.name = Some(name.to_owned());
        secret.annotations_mut().insert(HOSTS_ANNOTATION.to_owned(), hosts);
        let secrets: Api<Secret> = Api::namespaced(self.env.client.clone(), namespace);
        secrets.create(&PostParams::default(), &secret).await.unwrap();
    }

    /// Creates the documents of all tenants.
    async fn seed(&self) {
        let user = |id: i32| doc! {"_id": id, "team": "x", "email": format!("{id}@example.com")};
        let hidden = (0..DOCUMENTS).map(|id| doc! {"_id": id, "passwordHash": format!("{PASSWORD_HASH}-{id}")});
        self.collection("secrets").insert_many(hidden).await.unwrap();
        let own = HONEST.into_iter().flat_map(|name| (0..SCHEDULES).map(move |at| format!("honest_{name}_{at}")));
        for collection in own.chain(["scratch".to_owned()]) {
            self.collection(&collection).insert_many((0..DOCUMENTS).map(user)).await.unwrap();
        }
    }

    /// Creates the honest schedules. Every second one has a source with a token.
    async fn start_honest_schedules(&self) {
        for name in HONEST {
            let namespace = format!("honest-{name}");
            let object: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
            Api::all(self.env.client.clone()).create(&PostParams::default(), &object).await.unwrap();
            let (value, hosts) = (HONEST_TOKEN.to_owned(), self.honest_source.clone());
            self.add_secret(&namespace, TenantSecret { name: "honest", key: "token", value, hosts }).await;
            for at in 0..SCHEDULES {
                let mut spec = json!({"syncType": "Full", "target": {"collection": format!("honest_{name}_{at}")}});
                if at % 2 == 1 {
                    spec["source"] = json!({
                        "batching": "PerUser",
                        "tokenSecretRef": {"name": "honest", "key": "token"},
                        "rest": {"endpoint": format!("{}/users/{{id}}", self.honest_source)},
                    });
                    spec["mapping"] = json!([{"from": "/name", "to": "name", "type": "String"}]);
                }
                let history = json!({"successfulJobsHistoryLimit": 100, "jobTemplate": {"spec": spec}});
                let mut spec = json!({"interval": "10s"});
                spec.as_object_mut().unwrap().extend(history.as_object().unwrap().clone());
                let schedule = SyncSchedule::new(&format!("s{at}"), serde_json::from_value(spec).unwrap());
                self.schedules(name).create(&PostParams::default(), &schedule).await.unwrap();
            }
        }
    }

    /// Records the delays of honest runs until this time has passed.
    async fn record_delays(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            for name in HONEST {
                let jobs: Api<SyncJob> = Api::namespaced(self.env.client.clone(), &format!("honest-{name}"));
                // The API server may answer 429 in the first seconds after the creation of its kinds.
                for job in jobs.list(&ListParams::default()).await.into_iter().flatten() {
                    let slot: Option<Timestamp> = job.annotations().get(SLOT_ANNOTATION).map(|at| at.parse().unwrap());
                    let start = job.status.as_ref().and_then(|status| status.start_time.as_ref());
                    if let (Some(slot), Some(start)) = (slot, start) {
                        let delay = start.0.duration_since(slot).unsigned_abs();
                        self.delays.insert(job.uid().unwrap(), delay);
                    }
                }
            }
            if Instant::now() > end {
                return;
            }
            sleep(Duration::from_secs(2)).await;
        }
    }

    /// Creates the objects of one round of attacks. The API server may refuse objects.
    async fn attack(&self, addresses: &Addresses, round: u64, is_last: bool) {
        let create = async |name: String, spec: Value| {
            let object = json!({
                "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob",
                "metadata": {"name": format!("{name}-{round}")}, "spec": spec,
            });
            let job = serde_json::from_value::<SyncJob>(object).unwrap();
            match self.env.jobs().create(&PostParams::default(), &job).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 422 => {}
                Err(error) => panic!("{name}: {error}"),
            }
        };
        for (name, spec) in attacks::jobs(addresses, is_last) {
            create(name, spec).await;
        }
        let endless = json!({"spec": {"syncType": "Full", "target": {"collection": "scratch"}}});
        let often = json!({"interval": "1s", "concurrencyPolicy": "Allow", "jobTemplate": endless});
        let often = SyncSchedule::new(&format!("often-{round}"), serde_json::from_value(often).unwrap());
        self.env.schedules().create(&PostParams::default(), &often).await.unwrap();
    }

    /// Waits until each honest schedule has no active run. No run may have failed or be lost.
    async fn check_honest_runs(&self, may_skip: bool) {
        for name in HONEST {
            for at in 0..SCHEDULES {
                let schedule = format!("s{at}");
                let patch = Patch::Merge(json!({"spec": {"suspended": true}}));
                self.schedules(name).patch(&schedule, &PatchParams::default(), &patch).await.unwrap();
            }
            for at in 0..SCHEDULES {
                let what = format!("schedule s{at} of honest-{name} has no active run");
                let SyncScheduleStatus { runs, .. } = eventually(&what, async || {
                    let status = self.schedules(name).get(&format!("s{at}")).await.unwrap().status?;
                    status.active.is_empty().then_some(status)
                })
                .await;
                let is_complete = runs.total == runs.succeeded && runs.succeeded >= 2;
                assert!(is_complete && (may_skip || runs.skipped == 0), "s{at} of honest-{name}: {runs:?}");
            }
        }
    }

    /// The documents of others are as their own runs left them.
    async fn check_documents(&self) {
        let hidden: Vec<Document> =
            self.collection("secrets").find(doc! {}).await.unwrap().try_collect().await.unwrap();
        assert_eq!(hidden.len() as i32, DOCUMENTS);
        assert!(hidden.iter().all(|document| document.len() == 2), "{hidden:?}");
        for name in HONEST {
            for at in 0..SCHEDULES {
                let collection = self.collection(&format!("honest_{name}_{at}"));
                let users: Vec<Document> = collection.find(doc! {}).await.unwrap().try_collect().await.unwrap();
                assert_eq!(users.len() as i32, DOCUMENTS, "honest_{name}_{at}");
                for user in users {
                    let id = user.get_i32("_id").unwrap();
                    let named = user.get_str("name").ok().map(str::to_owned);
                    assert_eq!(named, (at % 2 == 1).then(|| format!("user {id}")), "{user}");
                    assert!(user.get_datetime("lastSynced").is_ok(), "{user}");
                    assert_eq!(user.get_str("team").unwrap(), "x", "{user}");
                    assert_eq!(user.get_str("email").unwrap(), format!("{id}@example.com"), "{user}");
                }
            }
        }
    }

    /// Nothing of others is in the tenant's objects, nor did the tenant's servers receive it.
    async fn check_secrecy(&self, received: &Received, honest_paths: &Received) {
        let jobs = self.env.jobs().list(&ListParams::default()).await.unwrap();
        let events: Api<Event> = Api::namespaced(self.env.client.clone(), &self.env.name);
        let events = events.list(&ListParams::default()).await.unwrap();
        let seen = serde_json::to_string(&(&jobs.items, &events.items)).unwrap();
        let received = received.text();
        let password = format!("{}:password", self.env.name);
        for hidden in [PASSWORD_HASH, HONEST_TOKEN, IDENTITY, &password, "password-of-tenant"] {
            assert!(!seen.contains(hidden), "an object has {hidden}");
            assert!(!received.contains(hidden), "a server of the tenant received {hidden}");
        }
        assert!(!honest_paths.text().contains("stolen"), "the tenant reached the source of others");
        let mut ends: BTreeMap<(String, String), usize> = BTreeMap::new();
        for job in jobs.items {
            let name = job.name_any();
            let group = name.split('-').next().unwrap().to_owned();
            let status = job.status.filter(|status| status.completion_time.is_some());
            let end = status.as_ref().map_or(("active", ""), ended);
            assert!(end.0 != "Completed" || !MUST_FAIL.contains(&&*group), "{name}: {}", end.1);
            *ends.entry((group, end.0.to_owned())).or_default() += 1;
        }
        println!("attacks: {ends:?}");
        let received = received.to_lowercase();
        assert!(["/bomb", "ismaster"].iter().all(|text| received.contains(text)), "the attacks were executed");
    }
}

/// Opens logins and streams of events that never end.
async fn occupy_connections(port: u16) -> Vec<TcpStream> {
    let login = "POST /ui/login HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\ntoken=";
    let events = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let open = async |request: &str| {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        client
    };
    join_all((0..100).map(|at| open(if at % 2 == 0 { login } else { events }))).await
}

fn start_operators(env: &TestEnv, policy: &PolicyFile, ports: [u16; 2]) -> Vec<Operator> {
    let identity = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"].map(|name| (name, IDENTITY));
    let start = |port: u16| {
        let port = port.to_string();
        let http = ["--http-address", "127.0.0.1", "--http-port", &port];
        env.operator_of_all_namespaces("all", &[&http[..], &["--policy-file", policy.path()]].concat(), &identity)
    };
    ports.map(start).into()
}

fn median(delays: &[Duration]) -> Duration {
    let mut sorted = delays.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_tenant_harms_nobody() {
    let seconds: u64 = var("HOSTILE_SECONDS").map_or(30, |text| text.parse().unwrap());
    let is_proof = seconds >= 300;
    let (kube, servers) = DedicatedServer::up("kube");
    kube.install_crds();
    let env = TestEnv::on(servers).await;
    let (honest, honest_paths) = honest_source("127.0.0.77").await;
    let received = Received::default();
    let shared = crate::servers::address_in(&env.servers.mongodb, "mongodb://").to_string();
    let others = vec![shared, "127.0.0.77:27017".to_owned(), "/tmp/mongodb.sock".to_owned()];
    let addresses = Addresses {
        source: hostile_source("127.0.0.66", received.clone(), honest.clone()).await,
        honest: honest.clone(),
        mongodb: hostile_mongodb(received.clone(), others).await,
        shared_mongodb: env.servers.mongodb.trim_end_matches('/').to_owned(),
    };
    let mut stage = Stage { env, honest_source: honest, delays: HashMap::new() };
    stage.seed().await;
    let file = PolicyFile::new(&policy(&stage.env.name));
    let ports = [free_port(), free_port()];
    let mut operators = start_operators(&stage.env, &file, ports);
    stage.start_honest_schedules().await;
    stage.record_delays(Duration::from_secs(if is_proof { 60 } else { 10 })).await;
    let usual: Vec<Duration> = std::mem::take(&mut stage.delays).into_values().collect();

    for secret in attacks::secrets(&addresses) {
        stage.add_secret(&stage.env.name, secret).await;
    }
    let token = administrator(&stage.env).await;
    let _connections = occupy_connections(ports[0]).await;
    let rounds = seconds.div_ceil(ROUND);
    for round in 1..=rounds {
        stage.attack(&addresses, round, round == rounds).await;
        stage.record_delays(Duration::from_secs(ROUND)).await;
    }

    let worst = stage.delays.values().max().copied().unwrap_or_default();
    let during: Vec<Duration> = stage.delays.values().copied().collect();
    let peaks: Vec<u64> = operators.iter().map(Operator::peak_mib).collect();
    println!(
        "{} honest runs before: median {:?}, worst {:?}; {} during: median {:?}, worst {worst:?}; peaks {peaks:?} MiB",
        usual.len(),
        median(&usual),
        usual.iter().max(),
        during.len(),
        median(&during),
    );
    assert!(operators.iter_mut().all(Operator::is_running));
    assert!(peaks.iter().all(|peak| *peak < MEMORY_LIMIT_MIB), "{peaks:?} MiB");
    for port in ports {
        let list = reqwest::Client::new().get(format!("http://127.0.0.1:{port}/jobs")).bearer_auth(&token);
        assert_eq!(list.send().await.unwrap().status(), 200);
        assert_eq!(get(port, "/health").await.map(|(code, _)| code), Some(200));
    }
    stage.check_honest_runs(!is_proof).await;
    stage.check_documents().await;
    stage.check_secrecy(&received, &honest_paths).await;
    if is_proof {
        let limit = 2 * usual.iter().max().copied().unwrap_or_default();
        assert!(worst <= limit, "worst {worst:?}, and usually at most {:?}", limit / 2);
    }
}
