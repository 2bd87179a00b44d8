//! The listener: TLS with optional client certificates, HTTP/1.1 and HTTP/2 on one port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::coalesce::Coalesce;
use super::streams::{self, Together};
use super::{Peer, Service};
use crate::auth::UserInfo;
use crate::clock::Clock;
use crate::pki::{self, Hands, Pki, Renewing};

/// A peer that has not finished the handshake by then is cut off: it holds a connection slot.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; each costs some 30 KiB. 5,000 nodes with a few clients each fit.
const MAX_CONNECTIONS: usize = 16_384;
/// A request's head must be there by then (HTTP/1.1).
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Dead peers are found by HTTP/2 pings this often.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// What rustls needs to serve with the cluster's certificate and to ask clients for theirs.
pub(super) fn config(
    pki: &Pki,
    certificate: Arc<Renewing>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, pki::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pki.ca_pem().as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(Hands(clock)))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts connections until told to stop, then lets open requests end.
pub(super) async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    service: Service,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let drain = service.0.limits.drain;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((socket, address, slot)) = accepted else { continue };
        let (acceptor, service, watcher) = (acceptor.clone(), service.clone(), graceful.watcher());
        connections.spawn(async move {
            let _slot = slot;
            if let Err(error) = connection(socket, address, acceptor, service, watcher).await {
                tracing::debug!(%address, error = &*error as &dyn std::error::Error, "connection ended");
            }
        });
    }
    drop(listener);
    connections.close();
    let drained = async {
        graceful.shutdown().await;
        connections.wait().await;
    };
    if tokio::time::timeout(drain, drained).await.is_err() {
        tracing::info!(open = connections.len(), "connections still open after draining");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, address)) => Some((socket, address, slot)),
        Err(error) => {
            // Out of descriptors, mostly: give connections time to end instead of spinning.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(
    socket: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    service: Service,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    socket.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await??;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let user = certificate.and_then(|der| UserInfo::from_certificate(der)).map(Arc::new);
    let ends = certificate.and_then(|der| pki::ends(der));
    let session_is_http2 = session.alpn_protocol() == Some(b"h2");
    let peer = Peer { user, ends, trusted: false, address: Some(address) };
    let streams = service.0.limits.streams;
    let handler = move |request: hyper::Request<hyper::body::Incoming>| {
        let (service, peer) = (service.clone(), peer.clone());
        async move { service.handle(request, peer).await }
    };
    if session_is_http2 {
        // Which has no upgrades.
        let new = streams::New::default();
        let mut builder = http2::Builder::new(new.clone());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).max_concurrent_streams(streams);
        let handler = service_fn(move |request| AbortOnDropHandle::new(tokio::spawn(handler(request))));
        let connection = builder.serve_connection(TokioIo::new(Coalesce::new(stream)), handler);
        return Ok(Together::new(watcher.watch(connection), new).await?);
    }
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let handler = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), handler);
    watcher.watch(connection.into_owned()).await
}
