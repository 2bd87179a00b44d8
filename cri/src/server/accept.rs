//! Connections of both listeners: as many at once as there is room for, each a task under the supervisor.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::stream::Host;

/// A client has this long to say what it wants.
const HEADERS: Duration = Duration::from_secs(30);
/// After a failed accept (no descriptors left) the listener rests.
const REST: Duration = Duration::from_millis(100);

/// Where connections come from.
pub(super) trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        let stream = self.accept().await?.0;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Serves connections, `limit` at once, until it is dropped.
pub(super) async fn run<L: Listener>(listener: L, router: Router, host: Host, limit: usize) {
    let slots = Arc::new(Semaphore::new(limit));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.next().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the container runtime cannot be accepted");
                host.clock.sleep(REST).await;
                continue;
            }
        };
        let router = router.clone();
        host.supervisor.spawn_until_shutdown("cri-connection", async move {
            let service = router.map_request(|request: http::Request<hyper::body::Incoming>| {
                request.map(axum::body::Body::new)
            });
            let mut connection = auto::Builder::new(TokioExecutor::new());
            connection.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
            connection.http2().timer(TokioTimer::new());
            let served = connection
                .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service))
                .await;
            if let Err(error) = served {
                tracing::debug!(error, "a connection to the container runtime ended");
            }
            drop(slot);
        });
    }
}
