//! Small answers over plain HTTP: for the probes of the system's pods, and for load balancers that ask a node whether it
//! has endpoints of a Service.
//!
//! What always holds: a port answers a bounded number of connections at a time, each of which has one answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use decapod_client::task::Supervisor;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The most connections of a port at a time: probes need one, load balancers a few.
const CONNECTIONS: usize = 16;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers every request by its path, until the caller drops this.
pub(crate) async fn serve(
    listener: TcpListener,
    answer: impl Fn(&str) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    supervisor: Supervisor,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("nobody closes it");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                accept_failed(&error).await;
                continue;
            }
        };
        let answer = answer.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answered = answer(request.uri().path());
            async { Ok::<_, Infallible>(answered) }
        });
        supervisor.spawn_until_shutdown("health-connection", async move {
            let _place = place;
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%peer, %error, "the connection of a probe failed");
            }
        });
    }
}

/// Answers `path` with 200 while `healthy`, and 503 otherwise.
pub(crate) fn probe(
    path: &'static str,
    healthy: impl Fn() -> bool + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static {
    move |asked| {
        let (status, text) = match (asked == path, healthy()) {
            (false, _) => (StatusCode::NOT_FOUND, "not found\n"),
            (true, true) => (StatusCode::OK, "OK\n"),
            (true, false) => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    }
}

/// Accepting fails for want of descriptors or memory: that does not get better by asking at once.
pub(crate) async fn accept_failed(error: &std::io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
