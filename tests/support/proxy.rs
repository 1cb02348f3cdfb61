//! A proxy that counts requests, and forwards a limited number of them.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    select,
    sync::Notify,
};

use crate::{
    servers::{Servers, address_in},
    unique,
};

/// Number of requests that the proxies of one process forward.
pub struct RequestLimit {
    /// Requests that may still pass.
    left: AtomicUsize,
    pub cut: Notify,
}

impl RequestLimit {
    pub const OPEN: usize = usize::MAX / 2;

    pub fn new() -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(Self::OPEN), cut: Notify::new() })
    }

    /// Sets the number of further requests.
    pub fn allow(&self, requests: usize) {
        self.left.store(requests, Ordering::SeqCst);
    }

    /// Number of allowed requests that were forwarded.
    pub fn passed(&self, allowed: usize) -> usize {
        allowed - self.left.load(Ordering::SeqCst)
    }

    /// Takes one request of the limit. The caller that takes the last one notifies `cut`.
    fn pass(&self) -> bool {
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if before == Ok(1) {
            self.cut.notify_one();
        }
        before.is_ok()
    }

    /// The address of a proxy before a server.
    async fn proxy(self: &Arc<Self>, server: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&limit).forward(client, server));
            }
        });
        address
    }

    async fn forward(self: Arc<Self>, client: TcpStream, server: SocketAddr) {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let requests = async {
            let mut piece = vec![0; 1 << 20];
            while let Ok(length @ 1..) = from_client.read(&mut piece).await {
                if !self.pass() || to_server.write_all(&piece[..length]).await.is_err() {
                    return;
                }
            }
        };
        select! {
            () = requests => {}
            _ = copy(&mut from_server, &mut to_client) => {}
        }
    }

    /// The servers, as seen through proxies.
    pub async fn before(self: &Arc<Self>, servers: &Servers) -> Servers {
        let kubeconfig = fs::read_to_string(&servers.kubeconfig).unwrap();
        let api = address_in(&kubeconfig, "https://");
        let file = std::env::temp_dir().join(unique("kubeconfig"));
        fs::write(&file, kubeconfig.replace(&api.to_string(), &self.proxy(api).await.to_string())).unwrap();
        let (redis, mongodb) = (address_in(&servers.redis, "redis://"), address_in(&servers.mongodb, "mongodb://"));
        Servers {
            kubeconfig: file.to_str().unwrap().to_owned(),
            redis: format!("redis://{}", self.proxy(redis).await),
            // Without the addresses of the replica set, which would bypass the proxy.
            mongodb: format!("mongodb://{}/?directConnection=true", self.proxy(mongodb).await),
        }
    }
}
