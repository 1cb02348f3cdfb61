//! Location of the queue, and one shared connection to it. All keys of a queue are in one slot, so exactly one server
//! has them in any deployment: behind Sentinel the master, in a Cluster the owner of the slot. That server is looked
//! up for each new connection, so a failover looks like a broken connection.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, RedisResult,
    ServerErrorKind, TlsCertificates, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    from_redis_value,
};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{CONNECT_TIMEOUT, RESPONSE_TIMEOUT};

/// Time after which the next server is asked for the master as well. A failed server does not answer for 2 s.
const STAGGER: Duration = Duration::from_millis(100);

/// URL schemes of an address.
pub(super) const SCHEMES: [&str; 6] =
    ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"];

/// Location of the queue.
#[derive(Clone, Debug)]
pub(super) struct Topology(Arc<Kind>);

enum Kind {
    Single(Client),
    Sentinel { sentinels: Vec<Client>, master: String, node: Node, last: AtomicUsize },
    Cluster { seeds: Vec<(Client, String)>, key: String, node: Node, last: AtomicUsize },
}

impl std::fmt::Debug for Kind {
    /// Formats the topology without addresses, which may contain passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Single(_) => "Single",
            Self::Sentinel { .. } => "Sentinel",
            Self::Cluster { .. } => "Cluster",
        })
    }
}

/// Connection settings for a server that other servers name.
#[derive(Clone)]
struct Node {
    ca: Option<Vec<u8>>,
    scheme: &'static str,
    /// `user:password@`, or nothing.
    credentials: String,
    db: String,
}

impl Node {
    fn open(&self, address: &str) -> RedisResult<Client> {
        client(format!("{}://{}{address}/{}", self.scheme, self.credentials, self.db), self.ca.as_ref())
    }
}

/// Opens a client. `ca`: CA bundle (PEM) that verifies the server, instead of the system roots.
fn client(url: impl IntoConnectionInfo, ca: Option<&Vec<u8>>) -> RedisResult<Client> {
    let server = url.into_connection_info()?;
    // The name of the library would be one right more that the user needs.
    let settings = server.redis_settings().clone().set_skip_set_lib_name();
    let server = server.set_redis_settings(settings);
    match ca {
        Some(ca) => Client::build_with_tls(server, TlsCertificates { client_tls: None, root_cert: Some(ca.clone()) }),
        None => Client::open(server),
    }
}

fn invalid(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, what))
}

impl Topology {
    /// Reads `redis://…`, `rediss://…`, `redis+sentinel://host:port,…/master[/db]` or `redis+cluster://host:port,…`.
    /// `key` is any key of the queue.
    pub fn parse(url: &str, ca: Option<Vec<u8>>, key: &str) -> RedisResult<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (scheme, kind) = match scheme {
            "redis+sentinel" => ("redis", "sentinel"),
            "rediss+sentinel" => ("rediss", "sentinel"),
            "redis+cluster" => ("redis", "cluster"),
            "rediss+cluster" => ("rediss", "cluster"),
            _ => return Ok(Self(Arc::new(Kind::Single(client(url, ca.as_ref())?)))),
        };
        let (credentials, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
        let credentials = if credentials.is_empty() { String::new() } else { format!("{credentials}@") };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let hosts: Vec<&str> = hosts.split(',').filter(|host| !host.is_empty()).collect();
        if hosts.is_empty() {
            return Err(invalid("it names no host"));
        }
        if kind == "cluster" {
            let node = Node { ca, scheme, credentials, db: String::new() };
            let host = |address: &str| address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
            let seeds =
                hosts.iter().map(|address| Ok((node.open(address)?, host(address)))).collect::<RedisResult<_>>()?;
            return Ok(Self(Arc::new(Kind::Cluster { seeds, key: key.to_owned(), node, last: AtomicUsize::new(0) })));
        }
        let (master, db) = path.split_once('/').unwrap_or((path, ""));
        if master.is_empty() {
            return Err(invalid("it names no master: write redis+sentinel://host:port,host:port/master"));
        }
        let open = |credentials: &str, address: &str| client(format!("{scheme}://{credentials}{address}"), ca.as_ref());
        // Sentinels have the servers' password, or none.
        let mut sentinels = Vec::new();
        for address in hosts {
            sentinels.push(open(&credentials, address)?);
            if !credentials.is_empty() {
                sentinels.push(open("", address)?);
            }
        }
        let node = Node { ca, scheme, credentials, db: db.to_owned() };
        Ok(Self(Arc::new(Kind::Sentinel { sentinels, master: master.to_owned(), node, last: AtomicUsize::new(0) })))
    }

    /// Topology of another key, when another server may have that key.
    pub fn for_key(&self, key: &str) -> Option<Self> {
        let Kind::Cluster { seeds, node, .. } = &*self.0 else { return None };
        let (seeds, key, node) = (seeds.clone(), key.to_owned(), node.clone());
        Some(Self(Arc::new(Kind::Cluster { seeds, key, node, last: AtomicUsize::new(0) })))
    }

    /// A new connection to the server that has the queue now. `limit`: longest wait for an answer.
    pub async fn connect(&self, limit: Option<Duration>) -> RedisResult<MultiplexedConnection> {
        match &*self.0 {
            Kind::Single(client) => open(client, limit).await,
            Kind::Sentinel { sentinels, master, node, last } => {
                let unknown = || invalid("no Sentinel knows the master");
                race(sentinels, last, unknown, |sentinel| async move {
                    let address = query_sentinel(sentinel, master).await?.ok_or_else(unknown)?;
                    open_master(&node.open(&address)?, limit).await
                })
                .await
            }
            Kind::Cluster { seeds, key, node, last } => {
                let unknown = || invalid("no server knows the server of the queue's slot");
                race(seeds, last, unknown, |(seed, host)| async move {
                    let address = query_cluster(seed, host, key).await?.ok_or_else(unknown)?;
                    open_master(&node.open(&address)?, limit).await
                })
                .await
            }
        }
    }
}

/// Queries several servers, and returns the first success: the server that answered correctly the last time is
/// queried first, each of the others a moment later.
async fn race<'a, S, T, F>(
    servers: &'a [S],
    last: &AtomicUsize,
    unknown: impl Fn() -> RedisError,
    ask: impl Fn(&'a S) -> F,
) -> RedisResult<T>
where
    F: Future<Output = RedisResult<T>>,
{
    let first = last.load(Ordering::Relaxed);
    let order = (0..servers.len()).map(|topology| (topology, (first + topology) % servers.len()));
    let mut answers: FuturesUnordered<_> = order
        .map(|(topology, index)| {
            let (delay, answer) = (STAGGER * topology as u32, ask(&servers[index]));
            async move {
                sleep(delay).await;
                (index, answer.await)
            }
        })
        .collect();
    let mut error = unknown();
    while let Some((index, answer)) = answers.next().await {
        match answer {
            Ok(found) => {
                last.store(index, Ordering::Relaxed);
                return Ok(found);
            }
            Err(other) => error = other,
        }
    }
    Err(error)
}

/// Connects to a server that others name, unless it is a replica: after a failover, some of them know only the server
/// before.
async fn open_master(client: &Client, limit: Option<Duration>) -> RedisResult<MultiplexedConnection> {
    let mut connection = open(client, limit).await?;
    let role = timeout(CONNECT_TIMEOUT, redis::cmd("ROLE").query_async::<Vec<Value>>(&mut connection))
        .await
        .map_err(|_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))??;
    let role: Option<String> = role.into_iter().next().and_then(|role| from_redis_value(role).ok());
    if role.as_deref() == Some("master") {
        Ok(connection)
    } else {
        Err(RedisError::from((ErrorKind::Server(ServerErrorKind::ReadOnly), "the named server is a replica")))
    }
}

async fn open(client: &Client, limit: Option<Duration>) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(limit);
    client.get_multiplexed_async_connection_with_config(&config).await
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn query_sentinel(sentinel: &Client, master: &str) -> RedisResult<Option<String>> {
    let mut connection = open(sentinel, Some(CONNECT_TIMEOUT)).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(master);
    let found: Option<(String, u16)> = command.query_async(&mut connection).await?;
    Ok(found.map(|(host, port)| address(&host, port)))
}

async fn query_cluster(seed: &Client, seed_host: &str, key: &str) -> RedisResult<Option<String>> {
    let mut connection = open(seed, Some(CONNECT_TIMEOUT)).await?;
    let slot: i64 = redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query_async(&mut connection).await?;
    let ranges: Vec<Vec<Value>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
    for range in ranges {
        let [first, last, master, ..] = range.as_slice() else { continue };
        let (first, last): (i64, i64) = (from_redis_value(first.clone())?, from_redis_value(last.clone())?);
        if !(first..=last).contains(&slot) {
            continue;
        }
        let master: Vec<Value> = from_redis_value(master.clone())?;
        let [host, port, ..] = master.as_slice() else { continue };
        // A server that does not know its own address leaves it empty: it is the one that was asked.
        let host: Option<String> = from_redis_value(host.clone())?;
        let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| seed_host.to_owned());
        return Ok(Some(address(&host, from_redis_value(port.clone())?)));
    }
    Ok(None)
}

/// Shared connection. It is opened when first used, and again after it broke or its server is no longer the right
/// one. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection {
    topology: Topology,
    current: Arc<Mutex<Current>>,
}

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that an error of an old one does not close its successor.
    number: u64,
}

impl Connection {
    pub(super) fn new(topology: Topology) -> Self {
        Self { topology, current: Arc::default() }
    }

    async fn get(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok((connection.clone(), current.number));
        }
        let connection = self.topology.connect(Some(RESPONSE_TIMEOUT)).await?;
        current.number += 1;
        current.connection = Some(connection.clone());
        Ok((connection, current.number))
    }

    /// Drops a connection whose answer shows that a new connection, possibly to another server, may succeed.
    async fn judge(&self, number: u64, answer: Result<&[Value], &RedisError>) {
        let is_wrong = match answer {
            // What the server refuses is an answer like any other here.
            Ok(values) => values
                .iter()
                .any(|value| matches!(value, Value::ServerError(error) if WRONG_SERVER.contains(&error.code()))),
            Err(_) => true,
        };
        if is_wrong {
            let mut current = self.current.lock().await;
            if current.number == number {
                current.connection = None;
            }
        }
    }
}

/// Error codes of a server that does not have the queue, or cannot serve it now.
pub(super) const WRONG_SERVER: [&str; 7] =
    ["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING"];

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let (mut connection, number) = self.get().await?;
            let answer = connection.req_packed_command(command).await;
            self.judge(number, answer.as_ref().map(std::slice::from_ref)).await;
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let (mut connection, number) = self.get().await?;
            let answer = connection.req_packed_commands(pipeline, offset, count).await;
            self.judge(number, answer.as_deref()).await;
            answer
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test]
    async fn a_server_that_answers_nothing_holds_up_no_other() {
        let (servers, last) = ([0_u64, 20, 21], AtomicUsize::new(0));
        let ask = |server: &u64| {
            let server = *server;
            async move {
                sleep(if server == 0 { Duration::from_secs(60) } else { Duration::from_millis(server) }).await;
                if server == 21 { Err(invalid("refused")) } else { Ok(server) }
            }
        };
        for _ in 0..2 {
            let began = Instant::now();
            assert_eq!(race(&servers, &last, || invalid("none"), ask).await.unwrap(), 20);
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            assert_eq!(last.load(Ordering::Relaxed), 1, "it is asked first the next time");
        }
        assert!(race(&servers[2..], &last, || invalid("none"), ask).await.is_err());
        assert!(race(&[], &last, || invalid("none"), ask).await.is_err());
    }

    #[test]
    fn each_kind_of_address_is_understood() {
        for (url, kind) in [
            ("redis://h", "Single"),
            ("rediss://:p@h:1/2", "Single"),
            ("redis+sentinel://a:26379,b:26379/main", "Sentinel"),
            ("rediss+sentinel://user:p%40ss@a:26379/main/3", "Sentinel"),
            ("redis+cluster://a:7000,b:7000", "Cluster"),
            ("rediss+cluster://:p@a:7000", "Cluster"),
        ] {
            assert_eq!(format!("{:?}", Topology::parse(url, None, "k").unwrap()), format!("Topology({kind})"), "{url}");
        }
        for url in ["", "http://h", "redis+sentinel://a:26379", "redis+sentinel:///main", "redis+cluster://", "h:6379"]
        {
            assert!(Topology::parse(url, None, "k").is_err(), "{url}");
        }
    }
}
