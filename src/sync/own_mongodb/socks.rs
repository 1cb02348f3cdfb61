//! Handshake of SOCKS5 (RFC 1928) with user and password (RFC 1929), as its server.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const BY_PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// Answer to the request for a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Connected = 0,
    Failed = 1,
    NotAllowed = 2,
}

fn malformed() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "not a SOCKS5 request that the relay serves")
}

/// Reads the user and the password of a client.
pub(super) async fn read_login<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<(Vec<u8>, Vec<u8>)> {
    if stream.read_u8().await? != VERSION {
        return Err(malformed());
    }
    if !read_field(stream).await?.contains(&BY_PASSWORD) {
        stream.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(malformed());
    }
    stream.write_all(&[VERSION, BY_PASSWORD]).await?;
    if stream.read_u8().await? != LOGIN_VERSION {
        return Err(malformed());
    }
    Ok((read_field(stream).await?, read_field(stream).await?))
}

/// Answers a login.
pub(super) async fn answer_login<S: AsyncWrite + Unpin>(stream: &mut S, is_known: bool) -> io::Result<()> {
    stream.write_all(&[LOGIN_VERSION, u8::from(!is_known)]).await
}

/// Reads the host and the port to which a client wants a connection.
pub(super) async fn read_host<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(String, u16)> {
    let mut start = [0; 4];
    stream.read_exact(&mut start).await?;
    let [VERSION, CONNECT, _, kind] = start else { return Err(malformed()) };
    let host = match kind {
        1 => Ipv4Addr::from(stream.read_u32().await?).to_string(),
        3 => String::from_utf8(read_field(stream).await?).map_err(|_| malformed())?,
        4 => Ipv6Addr::from(stream.read_u128().await?).to_string(),
        _ => return Err(malformed()),
    };
    Ok((host, stream.read_u16().await?))
}

/// Answers the request for a connection.
pub(super) async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, answer: Answer) -> io::Result<()> {
    // The address of the connection, which clients do not use.
    stream.write_all(&[VERSION, answer as u8, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

async fn read_field<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut field = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut field).await?;
    Ok(field)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn a_request_names_its_login_and_its_host() {
        let cases: [(&[u8], &str, u16); 3] = [
            (
                &[5, 1, 0, 3, 10, b'd', b'b', b'.', b'e', b'x', b'a', b'm', b'p', b'l', b'e', 0x69, 0x89],
                "db.example",
                27_017,
            ),
            (&[5, 1, 0, 1, 10, 0, 0, 1, 0, 80], "10.0.0.1", 80),
            (&[5, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80], "::1", 80),
        ];
        for (request, host, port) in cases {
            let (mut client, mut server) = duplex(256);
            client.write_all(&[5, 2, 0, 2, 1, 1, b'u', 2, b'p', b'w']).await.unwrap();
            client.write_all(request).await.unwrap();
            assert_eq!(read_login(&mut server).await.unwrap(), (b"u".to_vec(), b"pw".to_vec()));
            answer_login(&mut server, true).await.unwrap();
            assert_eq!(read_host(&mut server).await.unwrap(), (host.to_owned(), port));
            answer(&mut server, Answer::NotAllowed).await.unwrap();
            let mut answers = [0; 14];
            client.read_exact(&mut answers).await.unwrap();
            assert_eq!(answers, [5, 2, 1, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
    }

    #[tokio::test]
    async fn a_client_without_a_login_is_refused() {
        for request in [&[5, 1, 0][..], &[4, 1, 0], &[5, 1, 2, 2], b"GET / HTTP/1.1\r\n\r\n", &[]] {
            let (mut client, mut server) = duplex(256);
            client.write_all(request).await.unwrap();
            client.shutdown().await.unwrap();
            assert!(read_login(&mut server).await.is_err(), "{request:?}");
        }
    }
}
