//! `healthCheckNodePort`: load balancers outside of the cluster ask each node whether it has endpoints of a Service
//! whose traffic stays on the node.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use bytes::Bytes;
use decapod_client::ObjectKey;
use decapod_client::task::Supervisor;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::health;
use crate::netns::Netns;

/// By port: whose it is, and how many endpoints are on this node.
pub(super) type Ports = BTreeMap<u16, (ObjectKey, usize)>;

/// Serves whatever ports are sent, until the supervisor shuts down.
pub(super) fn start(netns: &Netns, supervisor: &Supervisor) -> watch::Sender<Ports> {
    let (sender, mut ports) = watch::channel(Ports::new());
    let (netns, tasks) = (netns.clone(), supervisor.clone());
    supervisor.spawn_until_shutdown("health-check-ports", async move {
        let mut served: BTreeMap<u16, DropGuard> = BTreeMap::new();
        loop {
            let wanted = ports.borrow_and_update().clone();
            served.retain(|port, _| wanted.contains_key(port));
            for port in wanted.keys() {
                if !served.contains_key(port) {
                    match listen(&netns, *port) {
                        Ok(listener) => _ = served.insert(*port, serve(listener, *port, &ports, &tasks)),
                        Err(error) => tracing::warn!(port, %error, "a healthCheckNodePort cannot be served"),
                    }
                }
            }
            if ports.changed().await.is_err() {
                return;
            }
        }
    });
    sender
}

fn listen(netns: &Netns, port: u16) -> io::Result<TcpListener> {
    let bound = netns.run(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    let listener = bound.map_err(io::Error::other)??;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Answers at one port until the guard is dropped.
fn serve(
    listener: TcpListener,
    port: u16,
    ports: &watch::Receiver<Ports>,
    supervisor: &Supervisor,
) -> DropGuard {
    let (over, tasks, ports) = (CancellationToken::new(), supervisor.clone(), ports.clone());
    let guard = over.clone().drop_guard();
    supervisor.spawn_until_shutdown("health-check-port", async move {
        let answers = move |_: &str| answer(ports.borrow().get(&port));
        // Nothing is left when nobody waits any more.
        let _served = over.run_until_cancelled(health::serve(listener, answers, tasks)).await;
    });
    guard
}

fn answer(found: Option<&(ObjectKey, usize)>) -> Response<Full<Bytes>> {
    let (key, count) = found.cloned().unwrap_or_default();
    let body = json!({"service": {"namespace": key.namespace, "name": key.name},
        "localEndpoints": count, "serviceProxyHealthy": true});
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = if count > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(count));
    response
}
