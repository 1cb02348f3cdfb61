//! Bound on the open connections of a server, in all and of one address.

use std::{
    future::{Future, Ready, ready},
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum_server::accept::Accept;
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::keyed_semaphore::{KeyedPermit, KeyedSemaphore, NoPermit};

/// Part of the connections that one address may have.
const PART: usize = 4;
/// Connections of the server for probes and metrics. There are few clients, and the kubelet must always get one.
const PROBES: (usize, usize) = (4096, 64);
/// Time for which a client may leave its answers unread.
const PATIENCE: Duration = Duration::from_secs(60);
/// Least time between two log lines about refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Bound on the open connections of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections {
    semaphore: Arc<KeyedSemaphore<IpAddr>>,
    proxies: Arc<[IpNet]>,
    /// Time for which a client may leave its answers unread.
    patience: Duration,
    logged: Arc<Mutex<Option<Instant>>>,
}

impl Connections {
    /// At most `total` connections. One address has at most a quarter of them, unless it is that of a proxy.
    #[must_use]
    pub fn new(total: u32, proxies: &[IpNet]) -> Self {
        let total = total as usize;
        Self::with(KeyedSemaphore::new(total, total.div_ceil(PART)), proxies)
    }

    /// Bound for probes and metrics.
    #[must_use]
    pub fn for_probes() -> Self {
        let (total, each) = PROBES;
        Self::with(KeyedSemaphore::new(total, each), &[])
    }

    fn with(semaphore: Arc<KeyedSemaphore<IpAddr>>, proxies: &[IpNet]) -> Self {
        Self { semaphore, proxies: proxies.into(), patience: PATIENCE, logged: Arc::default() }
    }

    fn admit(&self, stream: TcpStream) -> io::Result<ClientConnection> {
        let peer = stream.peer_addr()?.ip().to_canonical();
        let is_proxy = self.proxies.iter().any(|network| network.contains(&peer));
        let permit =
            if is_proxy { self.semaphore.try_acquire_unlimited(&peer) } else { self.semaphore.try_acquire(&peer) };
        match permit {
            Ok(permit) => Ok(ClientConnection { stream, patience: self.patience, unread: None, _permit: permit }),
            Err(full) => {
                self.log(full, peer);
                Err(io::Error::other("too many connections"))
            }
        }
    }

    fn log(&self, full: NoPermit, peer: IpAddr) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *logged = Some(Instant::now());
            let reason = if full == NoPermit::Key { "its address has" } else { "all clients have" };
            tracing::warn!(%peer, "a connection was refused: {reason} too many connections");
        }
    }
}

impl<S> Accept<TcpStream, S> for Connections {
    type Stream = ClientConnection;
    type Service = S;
    type Future = Ready<io::Result<(ClientConnection, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.admit(stream).map(|connection| (connection, service)))
    }
}

/// Connection with its permit. It ends when the client leaves its answers unread for too long.
#[derive(Debug)]
pub struct ClientConnection {
    stream: TcpStream,
    patience: Duration,
    /// Time until the client must have read a part of its answers.
    unread: Option<Pin<Box<Sleep>>>,
    _permit: KeyedPermit<IpAddr>,
}

impl ClientConnection {
    fn limited<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        unread.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for ClientConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ClientConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limited(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limited(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    /// Both ends of a connection to a server.
    async fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn an_address_has_a_quarter_and_a_proxy_all() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        for (proxies, most) in [(vec![], 2), (vec!["127.0.0.0/8".parse().unwrap()], 8)] {
            let connections = Connections::new(8, &proxies);
            let mut open = Vec::new();
            for number in 0..10 {
                let admitted = connections.admit(connect(&listener).await.1);
                assert_eq!(admitted.is_ok(), number < most, "{number} of {most}");
                open.extend(admitted);
            }
            open.pop();
            assert!(connections.admit(connect(&listener).await.1).is_ok(), "a closed connection returns its permit");
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_disconnected() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (_client, server) = connect(&listener).await;
        let connections = Connections { patience: Duration::from_millis(50), ..Connections::new(8, &[]) };
        let mut connection = connections.admit(server).unwrap();
        let written = connection.write_all(&vec![0; 64 << 20]).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
