//! The ways to reach an API server: the router of this very process, or HTTPS by a kubeconfig.

use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::retry::RetryLayer;
use tower::{BoxError, Service, ServiceBuilder};

use crate::counted::Counted;

/// How long a server may take to take a connection: a SYN that is lost is sent again after 1, 3 and 7 s.
const CONNECT: Duration = Duration::from_secs(10);
/// After so much silence a connection is asked whether it lives, and again in such steps.
const SILENCE: Duration = Duration::from_secs(10);
/// A connection that nothing comes back on for so long is given up.
const BROKEN: Duration = Duration::from_secs(30);

/// Why no client could be made from a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or understood, or what it names does not exist.
    #[error("cannot use the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// The settings in the file do not make a connection (certificates, keys, proxy).
    #[error("cannot connect as the kubeconfig {path} says")]
    Client {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: Box<kube::Error>,
    },
}

/// A client that calls `service`, the API server's own router, without socket and TLS.
///
/// `identity` is put into each request's extensions; the router's authentication accepts it in place of
/// a certificate, and everything after that (authorization, admission, audit) is as for any client.
/// Anyone who holds the service can claim any identity: it must not leave the process.
pub fn in_process<S, B, I>(service: S, identity: I) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    I: Clone + Send + Sync + 'static,
{
    kube::Client::new(Identified { service, identity }, "default")
}

/// A client that sends by `service` and counts its requests as sent to `host` (an authority such as `10.0.0.1:6443`), as
/// client-go does: `rest_client_*`.
pub fn counted<S, B>(service: S, host: &str) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    kube::Client::new(Counted::new(service, host), "default")
}

/// As [`counted`], for what is a client already.
pub fn counted_client(client: kube::Client, host: &str) -> kube::Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let client = client.clone();
        async move { client.send(request).await }
    });
    counted(service, host)
}

/// A client for the current context of the kubeconfig at `path`.
///
/// # Errors
/// When the file is unreadable or malformed, or its certificates cannot be used.
pub async fn from_kubeconfig(path: &Path) -> Result<kube::Client, Error> {
    let unusable = |source| Error::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unusable)?;
    kube::Client::try_from(config)
        .map_err(|source| Error::Client { path: path.to_owned(), source: Box::new(source) })
}

/// A client for a server behind a link that may break: a connection whose other end does not answer any more is given up
/// after 30 s, and what waits on it fails then. Otherwise a watch would hear nothing for minutes after the link is mended,
/// and a request whose answer was lost would wait for ever.
///
/// # Errors
/// When the certificates or tokens of the configuration cannot be used.
pub fn over_link(config: &Config) -> kube::Result<kube::Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(SILENCE));
    tcp.set_keepalive_interval(Some(SILENCE));
    // What was sent and is not acknowledged counts, too; then nobody asks.
    tcp.set_tcp_user_timeout(Some(BROKEN));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let connections = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(connections);
    Ok(kube::Client::new(service, "default"))
}

/// Marks every request with the identity of the component that sends it.
struct Identified<S, I> {
    service: S,
    identity: I,
}

impl<S, I, B> Service<Request<Body>> for Identified<S, I>
where
    S: Service<Request<Body>, Response = Response<B>>,
    I: Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.extensions_mut().insert(self.identity.clone());
        self.service.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Whoami(&'static str);

    #[tokio::test]
    async fn requests_carry_the_identity_of_the_component() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            let identity = request.extensions().get::<Whoami>().cloned();
            assert_eq!(identity, Some(Whoami("system:kube-scheduler")));
            Ok::<_, BoxError>(Response::new(Body::from(b"answered".to_vec())))
        });
        let client = in_process(service, Whoami("system:kube-scheduler"));
        let request = Request::get("/version").body(Vec::new()).unwrap();
        assert_eq!(client.request_text(request).await.unwrap(), "answered");
    }

    #[tokio::test]
    async fn a_server_behind_a_link_is_asked_with_the_token() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nanswered").await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        let mut config = Config::new(format!("http://{address}/below").parse().unwrap());
        config.auth_info.token = Some("secret".to_owned().into());
        let client = over_link(&config).unwrap();
        let request = Request::get("/version").body(Vec::new()).unwrap();
        assert_eq!(client.request_text(request).await.unwrap(), "answered");
        let asked = server.await.unwrap();
        assert!(asked.starts_with("GET /below/version HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("authorization: Bearer secret\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named() {
        let error = from_kubeconfig(Path::new("/nonexistent/kubeconfig")).await.err().unwrap();
        assert_eq!(error.to_string(), "cannot use the kubeconfig /nonexistent/kubeconfig");
    }
}
