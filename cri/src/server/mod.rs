//! CRI v1 on a Unix socket, for any runtime behind the trait: what `crictl` and other tools of a node speak.
//!
//! **Invariant**: only root reaches the socket, and the URLs of streams are of no use to anybody else: each is good for
//! one connection, once, for a minute.

mod accept;
mod images;
mod metrics;
mod runtime;
mod urls;

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use decapod_proto::cri::image_service_server::ImageServiceServer;
use decapod_proto::cri::runtime_service_server::RuntimeServiceServer;
use decapod_runtime::Runtime;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::net::{TcpListener, UnixListener};
use tonic::Status;
use tonic::service::Routes;

use crate::stream::Host;
use urls::Urls;

/// The largest request: CRI's clients and runtimes have agreed on it.
const REQUEST_MAX: usize = 16 << 20;
/// Items in one message of a list that is streamed: some KiB each, far from the largest message.
const PAGE: usize = 100;
/// Connections at once to the socket: tools of an administrator, each with one or two.
const CALLERS: usize = 128;
/// Streams at once by URL, each with a connection.
const STREAMS: usize = 512;

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the Container Runtime Interface on {address}")]
pub struct Error {
    /// The socket's path, or the address for streams.
    pub address: String,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// A bound server.
pub struct Server {
    calls: UnixListener,
    streams: TcpListener,
    service: Service,
}

/// Both services.
#[derive(Clone)]
struct Service {
    runtime: Arc<dyn Runtime>,
    urls: Arc<Urls>,
    host: Host,
}

impl Server {
    /// Binds the socket, in place of one that an earlier process has left, and a port on the loopback for streams. Must
    /// be called inside a tokio runtime.
    ///
    /// # Errors
    /// If one of them cannot be bound: the path may be too long for a socket (107 bytes).
    pub async fn bind(runtime: Arc<dyn Runtime>, socket: &Path, host: Host) -> Result<Self, Error> {
        let failed = |address: String| |source| Error { address, source };
        let calls = listen(socket).map_err(failed(socket.display().to_string()))?;
        let bound = TcpListener::bind(("127.0.0.1", 0)).await;
        let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, streams) = bound.map_err(failed("127.0.0.1".to_owned()))?;
        let urls = Arc::new(Urls::new(address, host.clock.clone()));
        Ok(Self { calls, streams, service: Service { runtime, urls, host } })
    }

    /// Serves as tasks of the host's supervisor, until it shuts down.
    pub fn run(self) {
        let Self { calls, streams, service } = self;
        let host = service.host.clone();
        let router = service.clone().router();
        host.supervisor.spawn_until_shutdown("cri-socket", accept::run(calls, router, host.clone(), CALLERS));
        let router = urls::router(service);
        host.supervisor
            .spawn_until_shutdown("cri-streams", accept::run(streams, router, host.clone(), STREAMS));
    }
}

impl Service {
    fn router(self) -> Router {
        let runtime = RuntimeServiceServer::new(self.clone()).max_decoding_message_size(REQUEST_MAX);
        let images = ImageServiceServer::new(self).max_decoding_message_size(REQUEST_MAX);
        Routes::new(runtime).add_service(images).prepare().into_axum_router()
    }
}

/// Binds a socket that was never open to anyone but us: in a folder of its own first, and then moved into place.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let mut nursery = path.as_os_str().to_owned();
    nursery.push(".new");
    let nursery = PathBuf::from(nursery);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_dir_all(&nursery) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(&nursery)?;
    let born = nursery.join("s");
    let listener = UnixListener::bind(&born)?;
    std::fs::set_permissions(&born, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&born, path)?;
    std::fs::remove_dir(&nursery)?;
    Ok(listener)
}

/// The error of a runtime, for gRPC.
fn failed(error: decapod_runtime::Error) -> Status {
    crate::status::status(&error)
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// A list as messages of some items each; no message if there is nothing.
fn pages<T: Clone + Send + 'static, R: Send + 'static>(
    items: Vec<T>,
    page: impl Fn(Vec<T>) -> R + Send + 'static,
) -> Answers<R> {
    let pages: Vec<Vec<T>> = items.chunks(PAGE).map(<[T]>::to_vec).collect();
    stream::iter(pages).map(move |items| Ok(page(items))).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_roots_alone_and_replaces_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/cri.sock");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 1);
        tokio::net::UnixStream::connect(&path).await.unwrap();
        let long = dir.path().join("x".repeat(120));
        assert!(listen(&long).is_err());
    }

    #[tokio::test]
    async fn long_lists_are_several_messages() {
        let sizes: Vec<usize> =
            pages((0..PAGE + 1).collect(), |p| p.len()).map(Result::unwrap).collect().await;
        assert_eq!(sizes, [PAGE, 1]);
    }
}
