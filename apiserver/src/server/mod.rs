//! The API server as a whole: what it is made of, how it starts, and the handle to it.
//!
//! **Invariant**: the router that answers on the socket and the one that answers in this process
//! are the same; only authentication differs.

mod admit;
mod bootstrap;
mod coalesce;
mod filter;
mod flow;
mod flow_status;
mod health;
mod inprocess;
pub(crate) mod limits;
mod mirror;
mod peers;
mod share;
mod streams;
mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use decapod_storage::Store;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{self, AdmissionError, AdmissionPlugins, Tolerations};
use crate::audit::{self, Audit, AuditError, AuditOptions};
use crate::auth::bootstrap_token::BootstrapTokens;
use crate::auth::node::NodeAuthorizer;
use crate::auth::rbac::Rbac;
use crate::auth::service_account::{Reference, TokenOptions, Tokens};
use crate::auth::token_file::{self, TokenFile};
use crate::auth::{Authenticator, Authorizer, Masters, Union, UserInfo};
use crate::clock::Clock;
use crate::encryption;
use crate::flow::Flow;
use crate::metrics::{Measured, Metrics};
use crate::nodeproxy::Kubelets;
use crate::pki::{self, CertificateRequest, Pki, Renewing};
use crate::registry::Registry;
use crate::registry::allocate::{Cidr, Network};
use crate::usage::{self, Usage};
pub(crate) use filter::{Service, random_uuid};
pub(crate) use health::Health;
pub use inprocess::InProcess;
pub use limits::Limits;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// The address under which clients and pods reach this server: the endpoint of the
    /// `kubernetes` Service. A loopback address is for tests only.
    pub advertise: IpAddr,
    /// Names this server among those that share its store: each then shows that it lives, and the `kubernetes` Service
    /// leads to all. Without, it is the only one.
    pub identity: Option<String>,
    /// Further host names and addresses that the server's certificate is to be good for.
    pub hosts: Vec<String>,
    /// What Services get their cluster addresses from.
    pub service_cidr: Cidr,
    /// What Services get their node ports from.
    pub node_ports: RangeInclusive<u16>,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// How service account tokens are issued.
    pub tokens: TokenOptions,
    /// A file of static bearer tokens.
    pub token_file: Option<PathBuf>,
    /// What is enciphered in the store, by which keys; nothing without.
    pub encryption: Option<Arc<decapod_storage::encryption::Config>>,
    /// What is handed to a server that joins (`pki::share`); nothing without, where the store is not shared.
    pub shared: Option<pki::share::Shared>,
    /// What is recorded of requests, and where; nothing without.
    pub audit: Option<AuditOptions>,
    /// A file that configures plugins of admission (`AdmissionConfiguration`).
    pub admission_config: Option<PathBuf>,
    /// Which plugins of admission run beside, or in spite of, those that do by default.
    pub admission_plugins: AdmissionPlugins,
    /// For how long pods stay on a lost node unless they say so themselves.
    pub tolerations: Tolerations,
    /// How many requests are worked on at once.
    pub limits: Limits,
    /// What the binary was built from.
    pub build: crate::Build,
    /// What other components of this process count, to be shown at `/metrics` too: text in the OpenMetrics format
    /// without its end mark.
    pub components: Option<fn() -> Result<String, std::fmt::Error>>,
    /// Whether the `proxy` subresource of pods and Services may connect to this machine's loopback
    /// addresses: only where pods really have them, as in tests. Whoever may write a pod's status
    /// would otherwise reach what listens here for local users only.
    pub proxy_to_loopback: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 6443)),
            advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
            identity: None,
            hosts: Vec::new(),
            service_cidr: "10.96.0.0/16".parse().expect("a constant range"),
            node_ports: 30000..=32767,
            cluster_domain: "cluster.local".to_owned(),
            tokens: TokenOptions::default(),
            token_file: None,
            encryption: None,
            shared: None,
            audit: None,
            admission_config: None,
            admission_plugins: AdmissionPlugins::default(),
            tolerations: Tolerations::default(),
            limits: Limits::default(),
            build: crate::Build::default(),
            components: None,
            proxy_to_loopback: false,
        }
    }
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where it was tried.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No certificate could be made.
    #[error("cannot set up the certificates")]
    Pki(#[from] pki::Error),
    /// The token file is of no use.
    #[error("cannot use the token file")]
    Tokens(#[from] token_file::Error),
    /// Admission cannot be configured as asked.
    #[error("cannot configure admission")]
    Admission(#[from] AdmissionError),
    /// Requests cannot be recorded as asked.
    #[error("cannot set up the audit log")]
    Audit(#[from] AuditError),
    /// The objects that every cluster has could not be written.
    #[error("cannot write the objects that every cluster has: {0}")]
    Bootstrap(decapod_api::status::Error),
}

/// A service account token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign the token: {0}")]
pub struct TokenError(String);

/// What all requests share.
pub(crate) struct Core {
    pub(crate) registry: Arc<Registry>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) rbac: Rbac,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) kubelets: Kubelets,
    pub(crate) usage: Usage,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) limits: Limits,
    pub(crate) build: crate::Build,
    pub(crate) flow: Flow,
    plain: admit::Plain,
    pub(crate) audit: Option<Arc<Audit>>,
    shared: Option<pki::share::Shared>,
    pub(crate) stopping: CancellationToken,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    /// The user of the client certificate.
    pub(crate) user: Option<Arc<UserInfo>>,
    /// When that certificate ends: the connection may live longer.
    pub(crate) ends: Option<Timestamp>,
    /// The request comes from this very process, as `user`.
    pub(crate) trusted: bool,
    /// The other end of the connection; none where the request comes from this process.
    pub(crate) address: Option<SocketAddr>,
}

/// The running API server.
#[derive(Clone)]
pub struct Handle {
    service: Service,
    address: SocketAddr,
    pki: Arc<Pki>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The API server.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Starts serving the objects in `store`. Returns once requests are answered and the objects
    /// are there that every cluster has.
    ///
    /// # Errors
    /// If the address is taken, or certificates or the first objects cannot be made.
    pub async fn start(
        options: Options,
        store: Arc<dyn Store>,
        pki: Arc<Pki>,
        clock: Arc<dyn Clock>,
    ) -> Result<Handle, StartError> {
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|source| StartError::Listen { address: options.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: options.listen, source })?;
        let certificate = Renewing::new(pki.clone(), serving_request(&options), clock.clone())?;
        let tls = tls::config(&pki, Arc::new(certificate), clock.clone())?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let store = match &options.encryption {
            None => store,
            Some(config) => {
                let store = encryption::over(store, config);
                tasks.spawn(encryption::refresh(store.clone(), stop.clone()));
                store
            }
        };
        let core = Arc::new(make_core(&options, store, &pki, clock, stop.clone(), &tasks)?);
        let written = bootstrap::objects(&core.registry, &options, address.port()).await;
        if let Some(member) = written.map_err(StartError::Bootstrap)? {
            peers::keep(&core, member, &tasks);
        }
        mirror::policy(&core, &tasks).await.map_err(StartError::Bootstrap)?;
        bootstrap::keep(&core, &tasks);
        flow_status::keep(&core, &tasks);
        usage::keep(&core, &tasks);
        core.health.bootstrapped();
        let service = Service(core);
        tasks.spawn(tls::serve(listener, tls, service.clone(), stop.clone()));
        tracing::info!(%address, "serving the Kubernetes API");
        Ok(Handle { service, address, pki, stop, tasks })
    }
}

fn make_core(
    options: &Options,
    store: Arc<dyn Store>,
    pki: &Arc<Pki>,
    clock: Arc<dyn Clock>,
    stopping: CancellationToken,
    tasks: &TaskTracker,
) -> Result<Core, StartError> {
    let network = Network { services: options.service_cidr, node_ports: options.node_ports.clone() };
    let store = Arc::new(Measured::new(store));
    let limits = options.limits;
    let flow = Flow::new(limits.reads + limits.writes);
    let mut metrics = Metrics::new(&store, &flow, options.components);
    let rbac = Rbac::default();
    let admission = options.admission_config.as_deref().map(admission::Config::read).transpose()?;
    options.admission_plugins.check()?;
    let plugins = admission::Chosen::of(&options.admission_plugins);
    let admission =
        admission::Config { plugins, tolerations: options.tolerations, ..admission.unwrap_or_default() };
    let registry = Arc::new(Registry::new(store, clock.clone(), network, rbac.clone(), admission));
    let tokens = options.tokens.completed(&options.cluster_domain);
    let tokens = Arc::new(Tokens::new(pki, tokens, registry.clone()));
    let counts = audit::Counts::default();
    metrics.audit(&counts);
    metrics.build(&options.build);
    let health = Health::default();
    metrics.health(&health);
    let audit = match &options.audit {
        Some(audit) => Some(Audit::open(audit, counts, clock.clone(), tasks, &stopping)?),
        None => None,
    };
    let file = options.token_file.as_deref().map(TokenFile::read).transpose()?.unwrap_or_default();
    let authorizers: Vec<Arc<dyn Authorizer>> =
        vec![Arc::new(Masters), Arc::new(NodeAuthorizer::new(registry.clone())), Arc::new(rbac.clone())];
    Ok(Core {
        kubelets: Kubelets::new(pki, clock.clone(), options.proxy_to_loopback)?,
        usage: Usage::default(),
        authenticator: Authenticator {
            tokens: tokens.clone(),
            file,
            bootstrap: BootstrapTokens(registry.clone()),
        },
        authorizer: Arc::new(Union(authorizers)),
        health,
        build: options.build.clone(),
        plain: admit::Plain::new(&limits),
        limits,
        flow,
        audit,
        shared: options.shared.clone(),
        metrics,
        registry,
        clock,
        rbac,
        tokens,
        stopping,
    })
}

/// The certificate that clients meet: good for all names and addresses of the API server.
fn serving_request(options: &Options) -> CertificateRequest {
    let domain = &options.cluster_domain;
    let mut hosts: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    hosts.push(format!("kubernetes.default.svc.{domain}"));
    hosts.extend(["127.0.0.1".to_owned(), "::1".to_owned(), options.advertise.to_string()]);
    hosts.extend(options.service_cidr.nth(1).map(|ip| ip.to_string()));
    if !options.listen.ip().is_unspecified() {
        hosts.push(options.listen.ip().to_string());
    }
    hosts.extend(options.hosts.iter().cloned());
    hosts.sort();
    hosts.dedup();
    CertificateRequest::server("kube-apiserver", hosts)
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The keys and certificates of the cluster.
    pub fn pki(&self) -> &Arc<Pki> {
        &self.pki
    }

    /// The router as a service in this process, every request being `user`'s. Authorization and
    /// admission apply as to any request. Hand it to `kube::Client::new`.
    pub fn service_as(&self, user: UserInfo) -> InProcess {
        InProcess::new(self.service.clone(), user)
    }

    /// The token that a Secret of type `kubernetes.io/service-account-token` is to hold: it does not
    /// expire, and is good while the Secret holds it and the account has this uid.
    ///
    /// # Errors
    /// If the key of the tokens cannot sign.
    pub fn secret_token(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> Result<String, TokenError> {
        let account = Reference { name: account.to_owned(), uid: account_uid.to_owned() };
        self.service.0.tokens.sign_legacy(namespace, &account, secret).map_err(|e| TokenError(e.to_string()))
    }

    /// Whether `/readyz` says ok.
    pub async fn ready(&self) -> bool {
        self.service.0.health.ready(&self.service.0.registry).await.is_ok()
    }

    /// The first step of a stop: `/readyz` fails from now on, so that whoever balances load sends nothing more.
    /// All is served as before; returns after [`Limits::shutdown_delay`], or at once where it was announced before.
    pub async fn announce_shutdown(&self) {
        let core = &self.service.0;
        if core.health.stopping() {
            tokio::time::sleep(core.limits.shutdown_delay).await;
        }
    }

    /// Stops: announces it, unless that was done; then watches end and no more connections are taken; open requests
    /// get the time that [`Limits::drain`] says.
    pub async fn shutdown(&self) {
        self.announce_shutdown().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
