//! Connections to endpoints, kept for the next request.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_client::clock::{Clock, timeout};
use decapod_client::task::Supervisor;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Body;

/// How long connecting may take: what is further away than this is gone.
const CONNECT: Duration = Duration::from_secs(5);
/// Connections that are kept per endpoint.
const IDLE_EACH: usize = 32;
/// How long one is kept. Servers close idle connections too: some after five seconds, most after a minute.
const IDLE: Duration = Duration::from_secs(4);

/// Connections that wait for a request, by `address:port`.
#[derive(Clone)]
pub(super) struct Pool {
    idle: Arc<Mutex<HashMap<String, Vec<Idle>>>>,
    supervisor: Supervisor,
    clock: Arc<dyn Clock>,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Duration,
}

/// A connection that serves a request.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Body>,
    pub(super) target: String,
    /// Whether it served one before: then it may have been closed without our noticing.
    pub(super) used: bool,
}

impl Pool {
    pub(super) fn new(supervisor: Supervisor, clock: Arc<dyn Clock>) -> Self {
        Self { idle: Arc::default(), supervisor, clock }
    }

    /// The clock by which connections are judged.
    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// A connection that waits, or a new one.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(super) async fn get(&self, target: &str) -> io::Result<Connection> {
        while let Some(idle) = self.take(target) {
            let mut sender = idle.sender;
            if self.clock.monotonic().saturating_sub(idle.since) < IDLE && sender.ready().await.is_ok() {
                return Ok(Connection { sender, target: target.to_owned(), used: true });
            }
        }
        self.connect(target).await
    }

    /// A new connection.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(super) async fn connect(&self, target: &str) -> io::Result<Connection> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer to the connection's first packet");
        let stream = timeout(&*self.clock, CONNECT, TcpStream::connect(target)).await.ok_or_else(late)??;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        self.supervisor.spawn_until_shutdown("ingress-upstream", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(
                    error = decapod_client::error::chain(&error),
                    "a connection to an endpoint broke"
                );
            }
        });
        Ok(Connection { sender, target: target.to_owned(), used: false })
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn put(&self, connection: Connection) {
        let Connection { sender, target, .. } = connection;
        if sender.is_closed() {
            return;
        }
        let now = self.clock.monotonic();
        let mut idle = self.lock();
        let list = idle.entry(target).or_default();
        list.retain(|one| now.saturating_sub(one.since) < IDLE && !one.sender.is_closed());
        if list.len() < IDLE_EACH {
            list.push(Idle { sender, since: now });
        }
    }

    /// Closes what waits for endpoints that are not among `targets`.
    pub(super) fn keep(&self, targets: impl Fn(&str) -> bool) {
        self.lock().retain(|target, _| targets(target));
    }

    fn take(&self, target: &str) -> Option<Idle> {
        self.lock().get_mut(target)?.pop()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Idle>>> {
        // Nothing panics while the lock is held, so the map is whole even if the lock is poisoned.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
