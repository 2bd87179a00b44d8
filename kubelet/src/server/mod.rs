//! The node server, `:10250`: what the API server asks a node for on behalf of users.
//!
//! **Invariant**: nothing is answered without a client certificate of the cluster's CA, and nothing but a `401` or a
//! `403` to anyone except the API server and `system:masters`: the API server has authorized the user already, and
//! nobody goes around it.

mod auth;
mod cadvisor;
mod files;
mod folders;
mod forward;
mod logs;
mod metrics;
mod reach;
mod session;
mod summary;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router, middleware};
use decapod_client::ObjectKey;
use decapod_cri::stream::{Host, Refusal};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::pod::mark;
use crate::pod::observed::{self, Observed};
use crate::shared::Shared;

/// Connections that are served at once: each may hold an exec, and the API server pools its own.
const CONNECTIONS: usize = 512;
/// A client has this long to finish the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptors left) the listener rests.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// The node server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate, its key or the CA cannot be used.
    #[error("the node server's certificates cannot be used")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address is taken or not ours.
    #[error("the node server cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A bound node server.
pub(crate) struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    allowed: Arc<Vec<String>>,
}

impl Server {
    /// Binds the listener; `None` where [`crate::Options`] asks for no server.
    pub(crate) async fn bind(shared: &Arc<Shared>) -> Result<Option<Self>, Error> {
        let Some(options) = &shared.options.server else { return Ok(None) };
        let acceptor = auth::acceptor(options).map_err(Error::Tls)?;
        let address = options.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let allowed = Arc::new(options.allowed_users.clone());
        Ok(Some(Self { listener, acceptor, shared: shared.clone(), allowed }))
    }

    /// Serves until it is dropped.
    pub(crate) async fn run(self) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let router = router(self.shared.clone());
        loop {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            // Streams are many small writes: one that waits for the last one's acknowledgement waits 40 ms.
            let accepted = self
                .listener
                .accept()
                .await
                .and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream));
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the node server cannot accept a connection");
                    self.shared.clock.sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let (acceptor, router) = (self.acceptor.clone(), router.clone());
            let (allowed, clock) = (self.allowed.clone(), self.shared.clock.clone());
            self.shared.supervisor.spawn_until_shutdown("node-connection", async move {
                let handshake = acceptor.accept(stream);
                let tls = match decapod_client::clock::timeout(&*clock, HANDSHAKE, handshake).await {
                    Some(Ok(tls)) => tls,
                    Some(Err(error)) => {
                        tracing::debug!(%error, "a TLS handshake with the node server failed");
                        return;
                    }
                    None => return,
                };
                serve(tls, router, &allowed).await;
                drop(slot);
            });
        }
    }
}

async fn serve(tls: tokio_rustls::server::TlsStream<TcpStream>, router: Router, allowed: &[String]) {
    let access = auth::access(tls.get_ref().1.peer_certificates(), allowed);
    let service = router
        .layer(axum::Extension(access))
        .map_request(|request: http::Request<hyper::body::Incoming>| request.map(axum::body::Body::new));
    let connection = auto::Builder::new(TokioExecutor::new());
    let served =
        connection.serve_connection_with_upgrades(TokioIo::new(tls), TowerToHyperService::new(service)).await;
    if let Err(error) = served {
        tracing::debug!(error, "a connection of the node server ended");
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/configz", get(files::configz))
        .route("/stats/summary", get(summary::handle))
        .route("/logs/", get(files::root))
        .route("/logs/{*path}", get(files::below))
        .route("/metrics", get(metrics::kubelet))
        .route("/metrics/cadvisor", get(cadvisor::handle))
        .route("/metrics/probes", get(metrics::probes))
        .route("/metrics/resource", get(metrics::resource))
        .route("/localPath/{name}", put(folders::make).delete(folders::remove))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::handle))
        .route("/exec/{namespace}/{pod}/{container}", get(session::exec).post(session::exec))
        .route("/attach/{namespace}/{pod}/{container}", get(session::attach).post(session::attach))
        .route("/portForward/{namespace}/{pod}", get(forward::handle).post(forward::handle))
        .route("/reach/{namespace}/{pod}", post(reach::handle))
        .layer(middleware::from_fn(negotiate))
        .layer(middleware::from_fn(auth::enforce))
        .with_state(shared)
}

/// Words refusals as the client takes them.
async fn negotiate(request: Request, next: middleware::Next) -> Response {
    let accepts = request.headers().get(header::ACCEPT).and_then(|a| a.to_str().ok());
    let json = accepts.is_some_and(|a| a.contains("application/json"));
    let response = next.run(request).await;
    let Some(refusal) = response.extensions().get::<Refusal>().filter(|_| json) else { return response };
    let reason = match refusal.status() {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::CONFLICT => "Conflict",
        StatusCode::FORBIDDEN => "Forbidden",
        _ => "InternalError",
    };
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": refusal.message(), "reason": reason, "code": refusal.status().as_u16(),
    });
    (refusal.status(), Json(status)).into_response()
}

/// What streams need of this process.
fn host(shared: &Shared) -> Host {
    Host { clock: shared.clock.clone(), supervisor: shared.supervisor.clone() }
}

/// A pod of this node, and what the runtime has of it.
async fn find(shared: &Shared, namespace: &str, name: &str) -> Result<(Arc<Pod>, Observed), Refusal> {
    let key = ObjectKey::new(namespace, name);
    let missing = || Refusal::new(StatusCode::NOT_FOUND, format!("pod \"{namespace}/{name}\" not found"));
    let pod = shared.pods.get(&key).ok_or_else(missing)?;
    let labels = [(mark::POD_UID.to_owned(), shared.uid_here(&pod))];
    let filter = decapod_proto::cri::ContainerFilter { label_selector: labels.into(), ..Default::default() };
    let mut containers = Vec::new();
    for container in shared.runtime.container_list(Some(&filter)).await? {
        let status = shared.runtime.container_status(&container.id).await?;
        containers.push(observed::container(&status, &container.pod_sandbox_id));
    }
    Ok((pod, Observed::new(Vec::new(), containers)))
}

/// The running container that a stream goes to.
async fn running(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<(Arc<Pod>, String), Refusal> {
    let (object, observed) = find(shared, namespace, pod).await?;
    let running = observed.newest(container).filter(|c| c.state == observed::State::Running);
    let missing = || {
        let message = format!("container not found (\"{container}\")");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    };
    let current = running.ok_or_else(missing)?;
    Ok((object, current.id.clone()))
}

async fn pods(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    let items: Vec<serde_json::Value> = shared
        .pods
        .list()
        .iter()
        .map(|pod| serde_json::to_value(&**pod).expect("a typed pod has a JSON form"))
        .collect();
    Json(serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}
