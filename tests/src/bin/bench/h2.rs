//! A connection as client-go has them: HTTP/2, shared by the watches of a process.

use anyhow::{Context, Result};
use http::Uri;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt};
use rustls_pki_types::ServerName;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Watches of one connection: kube-apiserver admits no more by default, and client-go opens another one then.
pub(crate) const STREAMS: usize = 100;

/// A client that has one connection, for all its requests.
pub(crate) async fn connect(config: &kube::Config) -> Result<kube::Client> {
    let mut tls = config.rustls_client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let base = config.cluster_url.clone();
    let host = base.host().context("the server has no name")?;
    let socket = TcpStream::connect((host, base.port_u16().unwrap_or(443))).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(host.to_owned())?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, socket).await?;
    let (sender, connection) =
        http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (mut sender, request) = (sender.clone(), absolute(&base, request));
        async move { Ok::<_, tower::BoxError>(sender.send_request(request?).await?) }
    });
    Ok(kube::Client::new(service, "default"))
}

/// The request with the server in its URI.
fn absolute(base: &Uri, request: http::Request<Body>) -> Result<http::Request<Body>, http::Error> {
    let (mut head, body) = request.into_parts();
    let mut uri = base.clone().into_parts();
    uri.path_and_query = head.uri.path_and_query().cloned();
    head.uri = Uri::from_parts(uri)?;
    Ok(http::Request::from_parts(head, body))
}
