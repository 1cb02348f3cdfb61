//! Clients of own MongoDBs, which runs share.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mongodb::{Client, options::ServerAddress};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout},
};

use super::{
    relay::{ConnectionFailure, Registration, Relay, TooMany, tls},
    string::{NotUsable, OwnString},
};
use crate::{
    domain::run::OwnMongoDb,
    policy::CurrentPolicy,
    sync::{Error, collection::with_own_settings},
};

/// Time after which a client without a run is closed.
const IDLE: Duration = Duration::from_mins(5);
/// Interval between searches for such clients.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Time after which a run is claimed again that found too many clients open.
const FULL_PAUSE: Duration = Duration::from_secs(30);
/// Longest wait for the records of a name.
const RECORDS: Duration = Duration::from_secs(30);
/// Largest number of hosts that the records of a name may list: that of the members of a replica set.
const MAX_HOSTS: usize = 50;

/// Name of a client: the namespace, and the entries of its Secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey {
    /// Namespace of the run.
    pub namespace: String,
    /// Entries with the connection string and the CA bundle.
    pub mongodb: OwnMongoDb,
}

/// Client of an own MongoDB. It is closed when the last run that has it ends, and the clients have dropped it.
pub struct OwnClient {
    client: Client,
    database: Option<String>,
    registration: Registration,
}

impl fmt::Debug for OwnClient {
    /// Shows no password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnClient")
    }
}

impl OwnClient {
    pub(in crate::sync) fn client(&self) -> &Client {
        &self.client
    }

    /// Database that the connection string names.
    pub(in crate::sync) fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// Latest failure of a connection, unless it is old.
    #[must_use]
    pub fn failure(&self) -> Option<ConnectionFailure> {
        self.registration.failure()
    }
}

/// Open clients of own MongoDBs. Cheap to clone.
#[derive(Clone)]
pub struct Clients(Arc<Inner>);

struct Inner {
    policy: CurrentPolicy,
    /// Started with the first client.
    relay: OnceCell<Relay>,
    open: Mutex<HashMap<ClientKey, Open>>,
}

struct Open {
    content: (OwnString, Option<Vec<u8>>),
    client: Arc<OwnClient>,
    /// Time at which a run had the client.
    used: Instant,
}

impl Open {
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.client) > 1
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

impl Clients {
    /// Creates the clients of a process.
    #[must_use]
    pub fn new(policy: CurrentPolicy) -> Self {
        Self(Arc::new(Inner { policy, relay: OnceCell::new(), open: Mutex::default() }))
    }

    /// Returns the client for these contents of the Secrets. A client with other contents is closed when its runs end.
    ///
    /// # Errors
    /// When the string cannot be used, the policy does not allow a host, or too many clients are open.
    pub async fn open(&self, key: ClientKey, string: OwnString, ca: Option<Vec<u8>>) -> Result<Arc<OwnClient>, Error> {
        let content = (string, ca);
        if let Some(client) = self.find(&key, &content) {
            return Ok(client);
        }
        let client = Arc::new(self.connect(&key, &content).await?);
        if let Some(other) = self.find(&key, &content) {
            // Another run has opened it in the meantime.
            return Ok(other);
        }
        let open = Open { content, client: Arc::clone(&client), used: Instant::now() };
        self.lock().insert(key, open);
        Ok(client)
    }

    /// Drops a client that does not work, so that the next attempt looks up its hosts again.
    pub fn forget(&self, client: &Arc<OwnClient>) {
        self.lock().retain(|_, open| !Arc::ptr_eq(&open.client, client));
    }

    fn find(&self, key: &ClientKey, content: &(OwnString, Option<Vec<u8>>)) -> Option<Arc<OwnClient>> {
        let open = self.lock();
        open.get(key).filter(|open| open.content == *content).map(|open| Arc::clone(&open.client))
    }

    async fn connect(&self, key: &ClientKey, (string, ca): &(OwnString, Option<Vec<u8>>)) -> Result<OwnClient, Error> {
        let secret = &key.mongodb.uri.name;
        let tls = match (string.is_encrypted(), ca) {
            (true, ca) => Some(tls(ca.as_deref()).ok_or_else(|| no_certificate(&key.mongodb))?),
            (false, None) => None,
            (false, Some(_)) => return Err(not_usable(secret, &NotUsable::UnusedCa)),
        };
        let database = string.database().map_err(|error| not_usable(secret, &error))?.map(str::to_owned);
        let options = timeout(RECORDS, string.clone().into_options()).await.map_err(|_| Error::timeout())?;
        let mut options = options.map_err(|error| match Error::from(error) {
            error @ Error::Attempt { reason: "Unreachable", .. } => error,
            _ => Error::InvalidTarget(format!("the connection string in Secret {secret} cannot be used: correct it")),
        })?;
        self.check_hosts(key, &options.hosts)?;
        let registration = self.register(&key.namespace, tls).await?;
        options.socks5_proxy = Some(registration.proxy());
        with_own_settings(&mut options);
        let client = Client::with_options(options).map_err(Error::from)?;
        Ok(OwnClient { client, database, registration })
    }

    /// Checks the hosts of the string, or of its records. The relay checks each host again.
    fn check_hosts(&self, key: &ClientKey, hosts: &[ServerAddress]) -> Result<(), Error> {
        if hosts.len() > MAX_HOSTS {
            let secret = &key.mongodb.uri.name;
            let message =
                format!("the connection string in Secret {secret} has more than {MAX_HOSTS} hosts: name fewer");
            return Err(Error::InvalidTarget(message));
        }
        let policy = self.0.policy.get();
        let entries = policy.matching(&key.namespace);
        for (index, host) in hosts.iter().enumerate() {
            let is_allowed =
                matches!(host, ServerAddress::Tcp { host, .. } if policy.allows_mongodb_host(&entries, host));
            if !is_allowed {
                return Err(not_allowed(key, index + 1, policy.mongodb_entry(&entries)));
            }
        }
        Ok(())
    }

    async fn register(&self, namespace: &str, tls: Option<tokio_rustls::TlsConnector>) -> Result<Registration, Error> {
        let relay = self.relay().await?;
        let too_many = match relay.register(namespace, tls.clone()) {
            Ok(registration) => return Ok(registration),
            Err(too_many) => too_many,
        };
        self.close_idlest((too_many == TooMany::OfNamespace).then_some(namespace));
        relay.register(namespace, tls).map_err(|_| {
            tracing::warn!(namespace, "too many clients of own MongoDBs are open: the run waits");
            Error::Paused(FULL_PAUSE)
        })
    }

    async fn relay(&self) -> Result<&Relay, Error> {
        let start = async || {
            let relay = Relay::start(self.0.policy.clone()).await?;
            let inner = Arc::downgrade(&self.0);
            tokio::spawn(async move {
                loop {
                    sleep(SWEEP_INTERVAL).await;
                    let Some(inner) = inner.upgrade() else { return };
                    Self(inner).sweep(Instant::now());
                }
            });
            Ok(relay)
        };
        let unavailable = |error: std::io::Error| Error::Attempt {
            reason: "Unreachable",
            message: format!("the worker could not open the relay for own MongoDBs: {error}"),
        };
        self.0.relay.get_or_try_init(start).await.map_err(unavailable)
    }

    /// Closes the clients that no run has had for some time.
    fn sweep(&self, now: Instant) {
        self.lock().retain(|_, open| {
            if open.is_used() {
                open.used = now;
            }
            now - open.used < IDLE
        });
    }

    /// Closes the client that no run has had for the longest time. `namespace`: only of this namespace.
    fn close_idlest(&self, namespace: Option<&str>) {
        let mut open = self.lock();
        let candidates = open
            .iter()
            .filter(|(key, open)| !open.is_used() && namespace.is_none_or(|namespace| namespace == key.namespace));
        if let Some(key) = candidates.min_by_key(|(_, open)| open.used).map(|(key, _)| key.clone()) {
            open.remove(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientKey, Open>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_usable(secret: &str, error: &NotUsable) -> Error {
    Error::InvalidTarget(format!("the connection string in Secret {secret} {error}"))
}

fn no_certificate(mongodb: &OwnMongoDb) -> Error {
    let secret = mongodb.ca.as_ref().map_or("", |ca| &ca.name);
    Error::InvalidTarget(format!("Secret {secret} of target.caSecretRef has no certificate: add a PEM bundle"))
}

/// Error for a host of a connection string. It does not show the host, which could be a part of a password.
fn not_allowed(key: &ClientKey, number: usize, entry: Option<&str>) -> Error {
    let (secret, namespace) = (&key.mongodb.uri.name, &key.namespace);
    let fix = entry.map_or_else(
        || "add an entry with mongodbHosts to tenants".to_owned(),
        |entry| format!("add it to tenants {entry}, mongodbHosts"),
    );
    Error::NotAllowed(format!(
        "host {number} of the connection string in Secret {secret} is not allowed for namespace {namespace}: {fix}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::source::SecretKey,
        domain::policy::{Policy, Scope, TenantEntry},
    };

    fn clients() -> Clients {
        let mongodb_hosts = Some(vec!["db.invalid".to_owned()]);
        let entry =
            TenantEntry { name: "all".to_owned(), scope: Scope::default(), mongodb: None, runs: None, mongodb_hosts };
        Clients::new(CurrentPolicy::fixed(Policy { tenants: Some(vec![entry]), ..Policy::default() }))
    }

    async fn open(clients: &Clients, namespace: &str, secret: &str, password: &str) -> Result<Arc<OwnClient>, Error> {
        let uri = SecretKey { name: secret.to_owned(), key: "uri".to_owned() };
        let key = ClientKey { namespace: namespace.to_owned(), mongodb: OwnMongoDb { uri, ca: None } };
        let string = OwnString::parse(&format!("mongodb://u:{password}@db.invalid/crm")).unwrap();
        clients.open(key, string, None).await
    }

    #[tokio::test]
    async fn runs_share_a_client_of_their_namespace_and_secret() {
        let clients = clients();
        let first = open(&clients, "team-a", "one", "x").await.unwrap();
        let same = open(&clients, "team-a", "one", "x").await.unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        for (namespace, secret, password) in [("team-b", "one", "x"), ("team-a", "two", "x"), ("team-a", "one", "y")] {
            let other = open(&clients, namespace, secret, password).await.unwrap();
            assert!(!Arc::ptr_eq(&first, &other), "{namespace} {secret}");
            assert_ne!(format!("{:?}", first.registration.proxy()), format!("{:?}", other.registration.proxy()));
        }
        let changed = open(&clients, "team-a", "one", "y").await.unwrap();
        drop(same);
        assert_eq!(Arc::strong_count(&first), 1, "a client with a former content ends with its runs");
        clients.forget(&changed);
        let again = open(&clients, "team-a", "one", "y").await.unwrap();
        assert!(!Arc::ptr_eq(&changed, &again), "a client that does not work is not used again");
    }

    #[tokio::test]
    async fn a_namespace_gets_half_of_the_clients_and_unused_ones_are_closed() {
        let clients = clients();
        let mut held = Vec::new();
        for number in 0..16 {
            held.push(open(&clients, "team-a", &number.to_string(), "x").await.unwrap());
        }
        let refused = open(&clients, "team-a", "more", "x").await.unwrap_err();
        assert_eq!(refused, Error::Paused(FULL_PAUSE));
        let other = open(&clients, "team-b", "0", "x").await.unwrap();
        held.remove(3);
        held.push(open(&clients, "team-a", "more", "x").await.unwrap());
        let is_open = |secret: &str| clients.lock().keys().any(|key| key.mongodb.uri.name == secret);
        assert!(!is_open("3") && is_open("4") && is_open("more"));

        drop((held, other));
        clients.sweep(Instant::now() + IDLE / 2);
        assert_eq!(clients.lock().len(), 17);
        clients.sweep(Instant::now() + IDLE);
        assert_eq!(clients.lock().len(), 0);
    }

    #[tokio::test]
    async fn a_host_that_the_policy_lacks_is_refused_by_its_number() {
        let key = |namespace: &str| ClientKey {
            namespace: namespace.to_owned(),
            mongodb: OwnMongoDb { uri: SecretKey { name: "own".to_owned(), key: "uri".to_owned() }, ca: None },
        };
        let string = OwnString::parse("mongodb://u:p@db.invalid,S3cret/crm").unwrap();
        let error = clients().open(key("team-a"), string, None).await.unwrap_err();
        let expected = "host 2 of the connection string in Secret own is not allowed for namespace team-a: add it to tenants all, mongodbHosts";
        assert_eq!(error, Error::NotAllowed(expected.to_owned()));
    }
}
