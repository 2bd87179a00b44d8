//! Cluster DNS: names of Services, of endpoints of headless Services and of pods; everything else is
//! asked of the node's own name servers.
//!
//! What always holds: an answer comes from one version of the [`index`], which is immutable; a change of
//! the cluster makes the next version at the cost of what changed.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use decapod_client::ObjectKey;
use decapod_client::clock::Clock;
use decapod_client::informer::{Change, Changes, Informers};
use decapod_client::task::Supervisor;
use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::Namespace;
use tokio::net::{TcpListener, UdpSocket};

use self::forward::Forwarder;
use self::index::Index;
use self::server::{Context, Shared};
use crate::health;
use crate::world::{Feed, World};

mod batch;
mod cache;
mod forward;
mod index;
mod message;
mod prepared;
mod records;
mod server;

#[cfg(test)]
mod tests;

/// How many ports that are free for UDP are tried for TCP: each is taken once in a few hundred times.
const FREE_PORTS: u32 = 16;

/// How cluster DNS works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where questions are answered, by UDP and TCP.
    pub listen: SocketAddr,
    /// The cluster's domain.
    pub domain: String,
    /// Who answers for other names.
    pub upstreams: Upstreams,
    /// Where `/health` is served, if at all.
    pub health: Option<SocketAddr>,
    /// Where `/ready` is served, if at all.
    pub ready: Option<SocketAddr>,
    /// How many UDP sockets share the work; by default one per core.
    pub workers: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            listen: any(53),
            domain: "cluster.local".into(),
            upstreams: Upstreams::default(),
            health: Some(any(8080)),
            ready: Some(any(8181)),
            workers: None,
        }
    }
}

/// Who answers for names outside of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// The servers that this `resolv.conf` names.
    ResolvConf(PathBuf),
    /// These servers.
    Servers(Vec<SocketAddr>),
}

impl Default for Upstreams {
    fn default() -> Self {
        Self::ResolvConf("/etc/resolv.conf".into())
    }
}

/// Why cluster DNS could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The domain is no domain name.
    #[error("{domain:?} cannot be the cluster's domain")]
    Domain {
        /// What was given.
        domain: String,
        /// What is wrong with it.
        source: hickory_proto::ProtoError,
    },
    /// An address is in use or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// The list of name servers could not be read.
    #[error("cannot read the name servers in {}", path.display())]
    ResolvConf {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Runs cluster DNS until the supervisor shuts down.
///
/// # Errors
/// An address that is in use, an unreadable `resolv.conf`, a bad domain: all found before anything runs.
pub async fn run(
    options: Options,
    informers: Informers,
    supervisor: Supervisor,
    clock: Arc<dyn Clock>,
) -> Result<(), Error> {
    Server::bind(options).await?.run(informers, supervisor, clock).await;
    Ok(())
}

/// Cluster DNS that holds its sockets and does not answer yet.
#[derive(Debug)]
pub struct Server {
    index: Index,
    udp: Vec<UdpSocket>,
    tcp: TcpListener,
    probes: Vec<(TcpListener, Probe)>,
    upstreams: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Health,
    Ready,
}

impl Server {
    /// Opens all sockets.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let upstreams = match options.upstreams {
            Upstreams::Servers(servers) => servers,
            Upstreams::ResolvConf(path) => {
                forward::servers_read(&path).map_err(|source| Error::ResolvConf { path, source })?
            }
        };
        let bad_domain = |source| Error::Domain { domain: options.domain.clone(), source };
        let mut domain = Name::from_str(&options.domain).map_err(bad_domain)?;
        domain.set_fqdn(true);
        let index = Index::new(&domain).map_err(bad_domain)?;
        let workers = options.workers.unwrap_or_else(cores);
        let (udp, tcp) = sockets_bind(options.listen, workers)
            .await
            .map_err(|source| Error::Listen { address: options.listen, source })?;
        let failed = |address| move |source| Error::Listen { address, source };
        let mut probes = Vec::new();
        for (address, probe) in [(options.health, Probe::Health), (options.ready, Probe::Ready)] {
            if let Some(address) = address {
                probes.push((TcpListener::bind(address).await.map_err(failed(address))?, probe));
            }
        }
        Ok(Self { index, udp, tcp, probes, upstreams })
    }

    /// Where questions are answered.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Where `/ready` is served, if at all.
    pub fn ready_address(&self) -> Option<SocketAddr> {
        let found = self.probes.iter().find(|(_, probe)| *probe == Probe::Ready);
        found.and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Answers until the supervisor shuts down. Names of the cluster are answered with a failure until
    /// the cluster's state is known.
    pub async fn run(self, informers: Informers, supervisor: Supervisor, clock: Arc<dyn Clock>) {
        let shared = Arc::new(Shared::new(self.index));
        let forwarder = Forwarder::new(&self.upstreams, clock.clone());
        let context = Context::new(shared.clone(), forwarder, supervisor.clone(), clock);
        let ready = Arc::new(AtomicBool::new(false));
        for (listener, probe) in self.probes {
            let (path, ready) = match probe {
                Probe::Health => ("/health", Arc::new(AtomicBool::new(true))),
                Probe::Ready => ("/ready", ready.clone()),
            };
            let healthy = move || ready.load(Ordering::Acquire);
            let served = health::serve(listener, health::probe(path, healthy), supervisor.clone());
            supervisor.spawn_until_shutdown("dns-probe", served);
        }
        for socket in self.udp {
            let served = server::udp_serve(Arc::new(socket), context.clone());
            supervisor.spawn_until_shutdown("dns-udp", served);
        }
        supervisor.spawn_until_shutdown("dns-tcp", server::tcp_serve(self.tcp, context));
        let shutdown = supervisor.shutdown_token();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow(&shared, &informers, &ready) => {}
        }
    }
}

/// The UDP sockets and the TCP socket of one address. If the port is zero, it is one that is free for both.
async fn sockets_bind(listen: SocketAddr, workers: usize) -> io::Result<(Vec<UdpSocket>, TcpListener)> {
    let mut attempts = if listen.port() == 0 { FREE_PORTS } else { 1 };
    loop {
        attempts -= 1;
        let first = server::udp_bind(listen)?;
        let address = first.local_addr()?;
        let tcp = match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => continue,
            bound => bound?,
        };
        let mut udp = vec![first];
        for _ in 1..workers {
            udp.push(server::udp_bind(address)?);
        }
        return Ok((udp, tcp));
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Keeps the index in step with the cluster until the informers end.
async fn follow(shared: &Shared, informers: &Informers, ready: &AtomicBool) {
    let namespaces = informers.of::<Namespace>();
    let mut feed = Feed::synced(informers).await;
    namespaces.synced().await;
    let mut namespaces = namespaces.subscribe();
    let (mut world, mut dirty) = (World::default(), std::collections::BTreeSet::new());
    feed.pending(&mut world, &mut dirty);
    let mut index = Index::clone(&shared.newest());
    index.synced = true;
    loop {
        for key in std::mem::take(&mut dirty) {
            service_take(&mut index, &world, &key);
        }
        namespaces_take(&mut index, &mut namespaces, None);
        shared.publish(index.clone());
        ready.store(true, Ordering::Release);
        tokio::select! {
            changed = feed.changed(&mut world) => match changed {
                Some(changed) => dirty = changed,
                None => return,
            },
            change = namespaces.next() => match change {
                Some(change) => namespaces_take(&mut index, &mut namespaces, Some(change)),
                None => return,
            },
        }
    }
}

fn service_take(index: &mut Index, world: &World, key: &ObjectKey) {
    if let Err(error) = index.service_set(world, key) {
        tracing::warn!(service = %key, %error, "the Service has a name that does not fit DNS");
    }
}

fn namespaces_take(index: &mut Index, changes: &mut Changes<Namespace>, first: Option<Change<Namespace>>) {
    let mut next = first.or_else(|| changes.try_next());
    while let Some(change) = next {
        // One that was deleted and made anew in between existed and exists.
        let (existed, exists) = (change.old.is_some(), change.new.is_some());
        if existed != exists
            && let Err(error) = index.namespace_set(&change.key.name, exists)
        {
            tracing::warn!(namespace = %change.key, %error, "the namespace has a name that does not fit DNS");
        }
        next = changes.try_next();
    }
}
