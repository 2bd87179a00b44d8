//! The Ingress controller: a proxy for HTTP from outside, by the rules of Ingresses of its class.
//!
//! [`routes`] says which backend answers, [`upstream`] where that is served, [`tls`] with which certificate,
//! [`forward`] takes a request there; this module follows the cluster and listens.
//!
//! What always holds: a request sees one version of all rules, and a change makes the next version; connections
//! that are open go on through any change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use decapod_client::ObjectKey;
use decapod_client::clock::{Clock, timeout};
use decapod_client::error::chain;
use decapod_client::event::Recorder;
use decapod_client::informer::{Changes, Informer, Informers};
use decapod_client::task::Supervisor;
use http::Request;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use self::forward::Client;
use self::pool::Pool;
use self::routes::{Backend, Routes};
use self::tls::{Certificates, Resolver};
use self::upstream::Upstream;
use crate::health;
use crate::world::{Feed, World};

mod forward;
mod pool;
mod routes;
mod status;
mod tls;
mod upstream;

/// By which IngressClasses name this controller.
pub const CONTROLLER: &str = "decapod.dev/ingress";
/// How Ingresses named their class before there were IngressClasses.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// The most connections at a time, each some 50 KiB: a quarter of what a process may open by default.
const CONNECTIONS: usize = 16_384;
/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of its request.
const HEAD: Duration = Duration::from_secs(60);

/// What bodies are made of, both ways.
type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// How the Ingress controller works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where HTTP is answered.
    pub http: SocketAddr,
    /// Where HTTPS is answered.
    pub https: SocketAddr,
    /// Where `/ready` is served, if at all.
    pub ready: Option<SocketAddr>,
    /// The ports under which clients know the two, for the headers of requests.
    pub ports: (u16, u16),
    /// The Service whose addresses Ingresses get, as namespace and name.
    pub service: (String, String),
}

impl Default for Options {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            http: any(8080),
            https: any(8443),
            ready: Some(any(8181)),
            ports: (80, 443),
            service: ("kube-system".into(), "decapod-ingress".into()),
        }
    }
}

/// Why the Ingress controller could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address is in use or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// No certificate for names without one.
    #[error("cannot make a certificate: {0}")]
    Certificate(String),
    /// No TLS.
    #[error("cannot serve TLS")]
    Tls(#[source] rustls::Error),
}

/// One version of all rules.
#[derive(Default)]
struct Current {
    routes: Routes,
    upstreams: HashMap<Arc<Backend>, Upstream>,
}

/// What all connections share.
struct Shared {
    current: RwLock<Arc<Current>>,
    pool: Pool,
    supervisor: Supervisor,
}

impl Shared {
    fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, current: Current) {
        let current = Arc::new(current);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
    }
}

/// An Ingress controller that listens.
#[derive(Debug)]
pub struct Server {
    options: Options,
    http: TcpListener,
    https: TcpListener,
    ready: Option<TcpListener>,
}

impl Server {
    /// Takes its addresses.
    ///
    /// # Errors
    /// One of them is in use, or not ours.
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let bind = async |address| {
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
        };
        let (http, https) = (bind(options.http).await?, bind(options.https).await?);
        let ready = match options.ready {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        Ok(Self { options, http, https, ready })
    }

    /// Where HTTP and HTTPS are answered.
    ///
    /// # Errors
    /// The sockets are gone.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.http.local_addr()?, self.https.local_addr()?))
    }

    /// Answers, by what the cluster says, until the supervisor shuts down. Then requests that are under way are
    /// completed, for as long as the supervisor waits.
    ///
    /// # Errors
    /// No certificate could be made for names without one.
    pub async fn run(
        self,
        informers: Informers,
        supervisor: Supervisor,
        clock: Arc<dyn Clock>,
    ) -> Result<(), Error> {
        let resolver = Arc::new(Resolver::new().map_err(|error| Error::Certificate(error.to_string()))?);
        let acceptor = acceptor(resolver.clone())?;
        let pool = Pool::new(supervisor.clone(), clock.clone());
        let shared = Arc::new(Shared { current: RwLock::default(), pool, supervisor: supervisor.clone() });
        let recorder =
            Recorder::new(informers.client().clone(), "decapod-ingress", "", &supervisor, clock.clone());
        let ingresses = status::Selected::new(&informers);
        status::start(&ingresses, &self.options.service, &informers, &supervisor, clock.clone());
        let synced = Arc::new(AtomicBool::new(false));
        if let Some(listener) = self.ready {
            let ready = synced.clone();
            let healthy = move || ready.load(Ordering::Relaxed);
            let probes = health::serve(listener, health::probe("/ready", healthy), supervisor.clone());
            supervisor.spawn_until_shutdown("ingress-ready", probes);
        }
        let follower =
            Follower { ingresses, shared: shared.clone(), resolver, recorder, told: BTreeSet::new() };
        let (http_port, https_port) = self.options.ports;
        let http = Listener { shared: shared.clone(), clock: clock.clone(), tls: None, port: http_port };
        let https = Listener { shared, clock, tls: Some(acceptor), port: https_port };
        let shutdown = supervisor.shutdown_token();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follower.run(&informers, &synced) => {}
            () = http.serve(self.http) => {}
            () = https.serve(self.https) => {}
        }
        Ok(())
    }
}

fn acceptor(resolver: Arc<Resolver>) -> Result<TlsAcceptor, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Whoever turns what the cluster says into rules.
struct Follower {
    ingresses: status::Selected,
    shared: Arc<Shared>,
    resolver: Arc<Resolver>,
    recorder: Recorder,
    /// What was told of which Ingress, so that nothing is told with every change.
    told: BTreeSet<(ObjectKey, String)>,
}

impl Follower {
    async fn run(mut self, informers: &Informers, synced: &AtomicBool) {
        let secrets: Informer<Secret> = informers.filtered("type=kubernetes.io/tls");
        let (ingresses, classes) = (self.ingresses.ingresses.clone(), self.ingresses.classes.clone());
        ingresses.synced().await;
        classes.synced().await;
        secrets.synced().await;
        let mut world = World::default();
        let mut feed = Feed::synced(informers).await;
        feed.pending(&mut world, &mut BTreeSet::new());
        let mut changes = (ingresses.subscribe(), classes.subscribe(), secrets.subscribe());
        loop {
            drain(&mut changes.0);
            drain(&mut changes.1);
            drain(&mut changes.2);
            self.publish(&world, &secrets);
            synced.store(true, Ordering::Relaxed);
            let heard = tokio::select! {
                change = changes.0.next() => change.map(drop),
                change = changes.1.next() => change.map(drop),
                change = changes.2.next() => change.map(drop),
                dirty = self.concerned(&mut feed, &mut world) => dirty,
            };
            if heard.is_none() {
                return;
            }
        }
    }

    /// Waits until a Service changed that a rule names.
    async fn concerned(&self, feed: &mut Feed, world: &mut World) -> Option<()> {
        loop {
            let dirty = feed.changed(world).await?;
            let current = self.shared.current();
            let named = |backend: &Arc<Backend>| match &**backend {
                Backend::Service(key, _) => dirty.contains(key),
                Backend::Resource(_) => false,
            };
            if current.upstreams.keys().any(named) {
                return Some(());
            }
        }
    }

    fn publish(&mut self, world: &World, secrets: &Informer<Secret>) {
        let ingresses = self.ingresses.list();
        let routes = Routes::of(ingresses.iter().map(|ingress| &**ingress));
        let backends: BTreeSet<Arc<Backend>> = routes.backends().cloned().collect();
        let upstreams: HashMap<_, _> = backends
            .into_iter()
            .map(|backend| {
                let upstream = Upstream::of(&backend, world);
                (backend, upstream)
            })
            .collect();
        let targets: BTreeSet<String> = upstreams.values().flat_map(Upstream::targets).collect();
        self.shared.publish(Current { routes, upstreams });
        self.shared.pool.keep(|target| targets.contains(target));
        let (certificates, problems) = certificates(&ingresses, secrets);
        self.resolver.publish(certificates);
        self.tell(&ingresses, problems);
    }

    /// Tells of what is wrong with Ingresses, once.
    fn tell(&mut self, ingresses: &[Arc<Ingress>], problems: Vec<(usize, String)>) {
        let resources = ingresses.iter().enumerate().filter_map(|(number, ingress)| {
            let routes = Routes::of([&**ingress].into_iter());
            let what = routes.backends().find_map(|backend| match &**backend {
                Backend::Resource(what) => Some(what.clone()),
                Backend::Service(..) => None,
            })?;
            Some((number, format!("{what} is no Service: this Ingress controller serves Services only")))
        });
        let all: BTreeMap<(ObjectKey, String), usize> = resources
            .chain(problems)
            .map(|(number, why)| ((ObjectKey::of(&*ingresses[number]), why), number))
            .collect();
        for ((key, why), number) in &all {
            if !self.told.contains(&(key.clone(), why.clone())) {
                self.recorder.warning(&*ingresses[*number], "Rejected", why.clone());
            }
        }
        self.told = all.into_keys().collect();
    }
}

fn drain<K>(changes: &mut Changes<K>) {
    while changes.try_next().is_some() {}
}

/// The certificates that Ingresses name, and what is wrong with them by the Ingress' number.
fn certificates(
    ingresses: &[Arc<Ingress>],
    secrets: &Informer<Secret>,
) -> (Certificates, Vec<(usize, String)>) {
    let (mut certificates, mut problems) = (Certificates::default(), Vec::new());
    let mut order: Vec<_> = ingresses.iter().enumerate().collect();
    order.sort_by_key(|(_, ingress)| ingress.metadata.creation_timestamp.as_ref().map(|time| time.0));
    for (number, ingress) in order {
        let namespace = ingress.metadata.namespace.clone().unwrap_or_default();
        for tls in ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten()) {
            let Some(name) = tls.secret_name.as_ref().filter(|name| !name.is_empty()) else { continue };
            let Some(secret) = secrets.get(&ObjectKey::new(namespace.clone(), name)) else {
                problems.push((number, format!("there is no Secret \"{name}\" of type kubernetes.io/tls")));
                continue;
            };
            match tls::read(&secret) {
                Ok(key) => {
                    let key = Arc::new(key);
                    let hosts = tls.hosts.as_deref().unwrap_or_default();
                    hosts.iter().for_each(|host| certificates.add(host, &key));
                    if hosts.is_empty() {
                        certificates.any.get_or_insert(key);
                    }
                }
                Err(why) => problems.push((number, format!("the Secret \"{name}\" cannot be used: {why}"))),
            }
        }
    }
    (certificates, problems)
}

/// What answers at one port.
struct Listener {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    tls: Option<TlsAcceptor>,
    port: u16,
}

impl Listener {
    async fn serve(self, listener: TcpListener) {
        let this = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await.expect("nobody closes it");
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    health::accept_failed(&error).await;
                    continue;
                }
            };
            let this = this.clone();
            // Not until the shutdown alone: what is under way is completed.
            this.shared.supervisor.clone().spawn("ingress-connection", async move {
                let _place = place;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%address, %error, "a client is gone");
                }
                let client = Client { address, tls: this.tls.is_some(), port: this.port };
                match &this.tls {
                    None => this.connection(stream, client).await,
                    Some(acceptor) => match timeout(&*this.clock, HANDSHAKE, acceptor.accept(stream)).await {
                        Some(Ok(stream)) => this.connection(stream, client).await,
                        Some(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
                        None => tracing::debug!(%address, "a TLS handshake took too long"),
                    },
                }
            });
        }
    }

    async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, client: Client) {
        let shared = self.shared.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(forward::answer(&shared, client, request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
        builder.http2().timer(TokioTimer::new());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let shutdown = self.shared.supervisor.shutdown_token();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(address = %client.address, error = chain(&*error), "a connection broke");
        }
    }
}
