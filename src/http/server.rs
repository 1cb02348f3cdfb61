//! HTTP server with or without TLS. When the process stops, the server waits for the calls in progress.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    http::{
        HeaderValue,
        header::{HOST, STRICT_TRANSPORT_SECURITY},
        uri::Authority,
    },
    middleware::{self, Next},
    response::Response,
};
use axum_server::{Handle, Server, tls_rustls::RustlsConfig};
use tokio::{fs, time::sleep};
use tokio_util::sync::CancellationToken;

use super::connections::Connections;

/// Longest time for a client to send the head of a request, and for a connection to do nothing.
const HEAD: Duration = Duration::from_secs(15);
/// Largest buffer of a connection. A stream of events fills it when its client does not read.
const BUFFER: usize = 64 * 1024;
/// Longest wait for the calls in progress after a stop.
const DRAIN: Duration = Duration::from_secs(20);
/// Time for which browsers use only HTTPS for the host, in seconds: a year.
const HTTPS_ONLY: HeaderValue = HeaderValue::from_static("max-age=31536000");
/// Interval between reads of the files of the certificate.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Files of a certificate and its key, in PEM. A mounted Secret changes them when it is renewed.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
}

/// The files of a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("could not use the certificate {certificate} with the key {key}: {source}", certificate = .files.certificate.display(), key = .files.key.display())]
pub struct CertificateError {
    files: Certificate,
    source: io::Error,
}

impl Certificate {
    async fn load_certificate(&self) -> Result<(Vec<u8>, Vec<u8>), CertificateError> {
        let read = async { Ok((fs::read(&self.certificate).await?, fs::read(&self.key).await?)) };
        read.await.map_err(|source| self.unusable(source))
    }

    fn unusable(&self, source: io::Error) -> CertificateError {
        CertificateError { files: self.clone(), source }
    }
}

/// Serves the routes until `stop`, then waits for the calls in progress, at most 20 s.
///
/// # Errors
/// [`CertificateError`] at once when the certificate cannot be used; an I/O error when the listener fails later. The
/// outer future is done when serving has begun.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    certificate: Option<Certificate>,
    connections: Connections,
    stop: CancellationToken,
) -> Result<impl Future<Output = io::Result<()>> + Send, CertificateError> {
    let tls = match certificate {
        None => None,
        Some(files) => {
            let (certificate, key) = files.load_certificate().await?;
            let config = RustlsConfig::from_pem(certificate.clone(), key.clone()).await;
            let config = config.map_err(|source| files.unusable(source))?;
            Some((config, files, (certificate, key)))
        }
    };
    Ok(async move {
        let router = if tls.is_some() { router.layer(middleware::from_fn(https_only)) } else { router };
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        match tls {
            None => bounded(axum_server::from_tcp(listener)?.acceptor(connections), stop).serve(service).await,
            Some((config, files, read)) => {
                let server = axum_server::from_tcp_rustls(listener, config.clone())?;
                let server = bounded(server.map(|tls| tls.acceptor(connections)), stop);
                tokio::select! {
                    result = server.serve(service) => result,
                    () = reload(config, files, read) => Ok(()),
                }
            }
        }
    })
}

/// Limits the resources of a slow client, and ends the server some time after `stop`.
fn bounded<A>(mut server: Server<SocketAddr, A>, stop: CancellationToken) -> Server<SocketAddr, A> {
    server.http_builder().http1().header_read_timeout(HEAD).max_buf_size(BUFFER);
    server.http_builder().http2().keep_alive_interval(HEAD).max_send_buf_size(BUFFER);
    let handle = Handle::new();
    let draining = handle.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        draining.graceful_shutdown(Some(DRAIN));
    });
    server.first_request_timeout(HEAD).handle(handle)
}

/// Lets browsers use only HTTPS for the host. For localhost, that would affect all programs of the machine.
async fn https_only(request: Request, next: Next) -> Response {
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let host = request.uri().authority().cloned().or(header);
    let mut response = next.run(request).await;
    if host.is_some_and(|host| !host.host().eq_ignore_ascii_case("localhost")) {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, HTTPS_ONLY);
    }
    response
}

/// Loads a new certificate when its files change. A certificate that cannot be used is ignored.
async fn reload(config: RustlsConfig, files: Certificate, mut last: (Vec<u8>, Vec<u8>)) {
    loop {
        sleep(POLL_INTERVAL).await;
        let changed = match files.load_certificate().await {
            Ok(read) if read == last => continue,
            Ok(read) => {
                last = read.clone();
                config.reload_from_pem(read.0, read.1).await.map_err(|source| files.unusable(source))
            }
            Err(error) => Err(error),
        };
        match changed {
            Ok(()) => tracing::info!("the certificate was renewed"),
            Err(error) => {
                tracing::warn!(%error, "could not load the changed certificate; the previous one stays in use");
            }
        }
    }
}
