//! A proxy before MongoDB that delays some messages, so that another run can write between a read and a write of an
//! overlapping run.

use std::time::Duration;

use rand::Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    time::sleep,
};

/// Percentage of delayed messages.
const SLOW: u32 = 8;
/// Longest delay in milliseconds.
const MILLIS: u64 = 6;

/// Starts a proxy before the only member of a replica set, and returns its address.
pub async fn proxy(uri: &str) -> String {
    let host = uri.trim_start_matches("mongodb://").split(['/', '?']).next().unwrap().to_owned();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(&host).await else { continue };
            client.set_nodelay(true).ok();
            server.set_nodelay(true).ok();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(pass(from_client, to_server));
            tokio::spawn(pass(from_server, to_client));
        }
    });
    format!("mongodb://{address}/?directConnection=true")
}

async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer).await
        && count > 0
    {
        let wait = {
            let mut random = rand::rng();
            (random.random_range(0..100) < SLOW).then(|| random.random_range(1..=MILLIS))
        };
        if let Some(millis) = wait {
            sleep(Duration::from_millis(millis)).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
