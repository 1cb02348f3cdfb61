//! Relay: a SOCKS5 listener on a loopback address of the process, through which the driver connects to own MongoDBs. It
//! checks each host and address, and makes the TLS connections, so that it sees the messages.

use std::{
    collections::HashMap,
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mongodb::options::Socks5Proxy;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    select,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    forward::{AnswerMemory, ConnectionEnd, forward},
    socks,
};
use crate::{
    connection_error::known_cause,
    domain::policy::{Entries, Policy},
    policy::CurrentPolicy,
    sync::source::egress,
};

/// Largest numbers of clients and connections of the process. A namespace gets at most half of each.
const MAX_CLIENTS: usize = 32;
const MAX_OF_NAMESPACE: usize = MAX_CLIENTS / 2;
const MAX_CONNECTIONS: usize = 512;
/// Longest time for the handshake of a client, which is in the same process.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest time for each step of a connection to a server.
const CONNECT: Duration = Duration::from_secs(5);
/// Pause after an error of the listener, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Age up to which a failure explains an error of the driver, which tries each server at least every 10 s.
const RECENT: Duration = Duration::from_secs(30);

/// Reason for which the relay did not make a connection, or ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionFailure {
    /// The policy does not allow the host or its address. A sentence.
    NotAllowed(String),
    /// The server cannot be reached, or its answer cannot be used. The cause, without an address.
    Unusable(String),
}

/// Listener, with the clients that may use it.
pub(super) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    policy: CurrentPolicy,
    /// Routes by their users.
    routes: Mutex<HashMap<String, Arc<Route>>>,
    memory: Arc<Semaphore>,
}

/// Way of one client to its servers.
struct Route {
    namespace: String,
    password: String,
    /// `None`: connections are not encrypted.
    tls: Option<TlsConnector>,
    connections: AtomicUsize,
    memory: AnswerMemory,
    failure: Mutex<Option<(Instant, ConnectionFailure)>>,
    closed: CancellationToken,
}

/// Registration of a client. Its connections end when the registration is dropped.
pub(super) struct Registration {
    user: String,
    route: Arc<Route>,
    address: SocketAddr,
    shared: Weak<Shared>,
}

/// The largest number of clients is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooMany {
    OfNamespace,
    OfProcess,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Creates the TLS settings of a client. `ca`: PEM bundle in place of the well-known CAs. `None`: it has no certificate.
pub(super) fn tls(ca: Option<&[u8]>) -> Option<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
            roots.add_parsable_certificates(certificates);
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.with_root_certificates(roots.clone()).with_no_client_auth();
    (!roots.is_empty()).then(|| TlsConnector::from(Arc::new(config)))
}

impl Relay {
    /// Starts the listener. It stops when the relay is dropped.
    pub async fn start(policy: CurrentPolicy) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { policy, routes: Mutex::default(), memory: AnswerMemory::of_all() });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&shared))));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Registers a client of a namespace.
    pub fn register(&self, namespace: &str, tls: Option<TlsConnector>) -> Result<Registration, TooMany> {
        let mut routes = lock(&self.shared.routes);
        let others: Vec<_> = routes.values().filter(|route| route.namespace == namespace).collect();
        match (routes.len(), others.len()) {
            (_, MAX_OF_NAMESPACE..) => return Err(TooMany::OfNamespace),
            (MAX_CLIENTS.., _) => return Err(TooMany::OfProcess),
            _ => {}
        }
        let memory = others.first().map(|route| route.memory.clone());
        let [user, password] = [(); 2].map(|()| format!("{:032x}", rand::random::<u128>()));
        let route = Arc::new(Route {
            namespace: namespace.to_owned(),
            password,
            tls,
            connections: AtomicUsize::new(0),
            memory: memory.unwrap_or_else(|| AnswerMemory::of_namespace(Arc::clone(&self.shared.memory))),
            failure: Mutex::new(None),
            closed: CancellationToken::new(),
        });
        routes.insert(user.clone(), Arc::clone(&route));
        Ok(Registration { user, route, address: self.address, shared: Arc::downgrade(&self.shared) })
    }
}

impl Registration {
    /// Proxy setting of the client.
    pub fn proxy(&self) -> Socks5Proxy {
        Socks5Proxy::builder()
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .authentication((self.user.clone(), self.route.password.clone()))
            .build()
    }

    /// Latest failure of a connection, unless it is old.
    pub fn failure(&self) -> Option<ConnectionFailure> {
        let failure = lock(&self.route.failure);
        failure.as_ref().filter(|(at, _)| at.elapsed() < RECENT).map(|(_, failure)| failure.clone())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.route.closed.cancel();
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.routes).remove(&self.user);
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(Arc::clone(&shared).serve(stream))),
            Err(error) => {
                tracing::debug!(%error, "the relay could not accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Host of a connection, with the address that was checked.
struct Peer {
    host: String,
    address: IpAddr,
}

impl Shared {
    async fn serve(self: Arc<Self>, mut driver: TcpStream) {
        driver.set_nodelay(true).ok();
        let Ok(Ok((route, host, port))) = timeout(HANDSHAKE, self.handshake(&mut driver)).await else { return };
        let Some(_permit) = self.acquire(&route) else {
            route.record(ConnectionFailure::Unusable("too many connections of the namespace are open".to_owned()));
            socks::answer(&mut driver, socks::Answer::Failed).await.ok();
            return;
        };
        let (peer, mut server) = match self.connect(&route, host, port).await {
            Ok(connected) => connected,
            Err(failure) => {
                let answer = match failure {
                    ConnectionFailure::NotAllowed(_) => socks::Answer::NotAllowed,
                    ConnectionFailure::Unusable(_) => socks::Answer::Failed,
                };
                route.record(failure);
                socks::answer(&mut driver, answer).await.ok();
                return;
            }
        };
        if socks::answer(&mut driver, socks::Answer::Connected).await.is_err() {
            return;
        }
        select! {
            ended = forward(&mut driver, &mut server, &route.memory) => match ended {
                ConnectionEnd::Closed(_) => {}
                ConnectionEnd::BadAnswer(bad) => route.record(ConnectionFailure::Unusable(format!("an answer of the server {bad}"))),
            },
            () = route.closed.cancelled() => {}
            refused = self.refused_later(&route, &peer) => route.record(refused),
        }
    }

    /// Reads the login and the request of a client.
    async fn handshake(&self, driver: &mut TcpStream) -> io::Result<(Arc<Route>, String, u16)> {
        let (user, password) = socks::read_login(driver).await?;
        let route = str::from_utf8(&user).ok().and_then(|user| lock(&self.routes).get(user).cloned());
        let route = route.filter(|route| route.password.as_bytes() == password);
        socks::answer_login(driver, route.is_some()).await?;
        let route = route.ok_or(io::ErrorKind::PermissionDenied)?;
        let (host, port) = socks::read_host(driver).await?;
        Ok((route, host, port))
    }

    /// Acquires the permit of a connection. `None`: the process, or the namespace, has too many.
    fn acquire(&self, route: &Arc<Route>) -> Option<ConnectionPermit> {
        let routes = lock(&self.routes);
        let count = |routes: &mut dyn Iterator<Item = &Arc<Route>>| -> usize {
            routes.map(|route| route.connections.load(Ordering::Relaxed)).sum()
        };
        let all = count(&mut routes.values());
        let of_namespace = count(&mut routes.values().filter(|other| other.namespace == route.namespace));
        (all < MAX_CONNECTIONS && of_namespace < MAX_CONNECTIONS / 2).then(|| ConnectionPermit::take(route))
    }

    async fn connect(
        &self,
        route: &Route,
        host: String,
        port: u16,
    ) -> Result<(Peer, Box<dyn Stream>), ConnectionFailure> {
        let policy = self.policy.get();
        let entries = policy.matching(&route.namespace);
        check_host(&policy, &entries, &route.namespace, &host)?;
        let egress = policy.mongodb_egress(&entries);
        let resolved = egress::resolve(&egress, &host, port, route.tls.is_some());
        let addresses =
            within(resolved).await?.map_err(|denied| ConnectionFailure::NotAllowed(format!("host {host} {denied}")))?;
        let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match timeout(CONNECT, TcpStream::connect(address)).await.unwrap_or_else(|late| Err(late.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true).ok();
                    let stream = encrypt(route, &host, stream).await?;
                    return Ok((Peer { host, address: address.ip() }, stream));
                }
                Err(error) => refused = error,
            }
        }
        Err(unusable(&refused))
    }

    /// Waits until a changed policy does not allow a connection any more.
    async fn refused_later(&self, route: &Route, peer: &Peer) -> ConnectionFailure {
        let mut changes = self.policy.changes();
        while changes.changed().await.is_ok() {
            let policy = self.policy.get();
            let entries = policy.matching(&route.namespace);
            let host = check_host(&policy, &entries, &route.namespace, &peer.host);
            let address = policy.mongodb_egress(&entries).check(&peer.host, peer.address, route.tls.is_some());
            let address =
                address.map_err(|denied| ConnectionFailure::NotAllowed(format!("host {} {denied}", peer.host)));
            if let Err(refused) = host.and(address) {
                return refused;
            }
        }
        pending().await
    }
}

async fn encrypt(route: &Route, host: &str, stream: TcpStream) -> Result<Box<dyn Stream>, ConnectionFailure> {
    let Some(tls) = &route.tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ConnectionFailure::Unusable("its host name is not valid".into()))?;
    Ok(Box::new(within(tls.connect(name, stream)).await?))
}

async fn within<T>(step: impl Future<Output = io::Result<T>>) -> Result<T, ConnectionFailure> {
    timeout(CONNECT, step).await.unwrap_or_else(|late| Err(late.into())).map_err(|error| unusable(&error))
}

fn unusable(error: &io::Error) -> ConnectionFailure {
    let timed_out = error.kind() == io::ErrorKind::TimedOut;
    let cause = if timed_out { Some("no answer in time".to_owned()) } else { known_cause(&error.to_string()) };
    ConnectionFailure::Unusable(cause.unwrap_or_else(|| "the connection failed".to_owned()))
}

/// Checks a host that a server names, or the connection string.
fn check_host(policy: &Policy, entries: &Entries, namespace: &str, host: &str) -> Result<(), ConnectionFailure> {
    if policy.allows_mongodb_host(entries, host) {
        return Ok(());
    }
    let is_shown = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    let shown = if host.bytes().all(is_shown) { host } else { "(not a name)" };
    let fix = match (host.parse::<IpAddr>(), policy.mongodb_entry(entries)) {
        (Ok(_), _) => "use host names in the configuration of the replica set".to_owned(),
        (Err(_), Some(entry)) => format!("add it to tenants {entry}, mongodbHosts"),
        (Err(_), None) => "add an entry with mongodbHosts to tenants".to_owned(),
    };
    Err(ConnectionFailure::NotAllowed(format!(
        "host {shown}, which the server names, is not allowed for namespace {namespace}: {fix}"
    )))
}

impl Route {
    fn record(&self, failure: ConnectionFailure) {
        tracing::debug!(namespace = self.namespace, ?failure, "no connection to an own MongoDB");
        *lock(&self.failure) = Some((Instant::now(), failure));
    }
}

/// Permit of a connection.
struct ConnectionPermit(Arc<Route>);

impl ConnectionPermit {
    fn take(route: &Arc<Route>) -> Self {
        route.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(route))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
