//! `decapod server`: the control plane (and, unless told otherwise, this machine's node) in one process.
//!
//! The composition root: the only place that knows all components. Each gets a client with its own
//! identity, which goes through authentication, authorization and admission as over the network.

use std::sync::Arc;

use clap::Args;
use decapod_apiserver::pki::share::Shared;
use decapod_apiserver::pki::{CertificateRequest, Pki, Renewing};
use decapod_apiserver::{Handle, UserInfo};
use decapod_client::clock::{Clock, SystemClock};
use decapod_client::informer::Informers;
use decapod_client::leader::Candidate;
use decapod_client::task::Supervisor;
use decapod_client::transport;
use decapod_kubelet::{Drain, ServerOptions};
use decapod_storage::Store;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::authority::Keys;
use super::join::Further;
use super::lock::Lock;
use super::renewal::{self, Admin};
use super::settings::{Place, Settings, Which};
use super::{addons, agent, authority, leader, ranges, snapshot};
use crate::failure::{Failure, chain};

#[derive(Args, Debug)]
pub(crate) struct Server {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    further: Further,
    /// Do not run this machine's node.
    #[arg(long)]
    no_agent: bool,
    /// Run the API server with its store and nothing else: no scheduler, no controllers, no node, no addons.
    #[arg(long, conflicts_with = "background")]
    api_only: bool,
    /// Serve the cluster in a shared store though its authority is another than this server's: it was replaced.
    #[arg(long)]
    replace_authority: bool,
    /// Leave the terminal's session (`decapod up` starts the server so).
    #[arg(long, hide = true)]
    background: bool,
}

impl Server {
    /// Runs until it is told to stop.
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        if !self.no_agent && !self.api_only {
            super::require_root("server")?;
        }
        if self.background {
            nix::unistd::setsid().map_err(std::io::Error::from)?;
        }
        self.settings.check()?;
        let place = self.which.place()?;
        // Without a node nothing here has addresses of pods.
        if !self.no_agent && !self.api_only {
            ranges::check(&place, &self.settings)?;
        }
        let _lock = Lock::take(&place)?;
        place.save(&self.settings)?;
        let supervisor = Supervisor::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        self.further.join(&place, &self.settings, &clock).await?;
        let store = self.settings.store.open(&place).await?;
        let api = self.api(&place, store.clone()).await?;
        let admin = Admin::new(&place, &api);
        let pair = admin.write(clock.now())?;
        supervisor.spawn_until_shutdown("admin-kubeconfig", admin.keep(pair, clock.clone()));
        self.snapshots(&place, store, &supervisor, &clock)?;
        let started = match self.api_only {
            true => Ok(None),
            false => self.components(&place, &api, &supervisor, &clock).await,
        };
        let result = match started {
            Ok(drain) => {
                let told = super::run_until_told(&supervisor).await;
                // Whoever balances load must hear first: until the delay is over the cluster works on as before.
                api.announce_shutdown().await;
                if let Some(drain) = drain {
                    super::shutdown::pods(&drain, self.settings.resources.shutdown()?).await;
                }
                told
            }
            Err(failure) => Err(failure),
        };
        super::end(&supervisor).await;
        api.shutdown().await;
        result
    }

    async fn api(&self, place: &Place, store: Arc<dyn Store>) -> Result<Handle, Failure> {
        let encryption = self.settings.store.encryption(place)?;
        let pki = Pki::open(&place.data().join("pki"), jiff::Timestamp::now())
            .map_err(|e| Failure::new(chain(&e)))?;
        let settings = &self.settings;
        let shared = settings.store.is_shared();
        if shared {
            let authority = (!self.replace_authority).then_some(pki.ca_pem());
            authority::check(&*store, authority, settings, place).await?;
        }
        let keys =
            Shared { folder: place.data().join("pki"), encryption: settings.store.encryption_file(place) };
        let options = decapod_apiserver::Options {
            listen: settings.listen,
            advertise: settings.address(),
            hosts: settings.tls_san.clone(),
            identity: if shared { Some(leader::identity(place)?) } else { None },
            shared: shared.then_some(keys),
            service_cidr: settings
                .service_cidr
                .to_string()
                .parse()
                .map_err(|_| Failure::new("the service range is no range"))?,
            cluster_domain: settings.cluster_domain.clone(),
            token_file: settings.token_file.clone(),
            tokens: settings.tokens.options()?,
            audit: settings.audit.options()?,
            admission_plugins: settings.admission_plugins(),
            admission_config: settings.admission_control_config_file.clone(),
            limits: settings.limits.limits()?,
            tolerations: settings.lifecycle.tolerations(),
            build: build(),
            components: Some(decapod_client::metrics::text),
            encryption: Some(Arc::new(encryption)),
            ..Default::default()
        };
        let clock = Arc::new(decapod_apiserver::SystemClock);
        let api = decapod_apiserver::Server::start(options, store, Arc::new(pki), clock)
            .await
            .map_err(|e| Failure::new(chain(&e)))?;
        Ok(api)
    }

    /// Takes snapshots when it is asked or planned.
    fn snapshots(
        &self,
        place: &Place,
        store: Arc<dyn Store>,
        supervisor: &Supervisor,
        clock: &Arc<dyn Clock>,
    ) -> Result<(), Failure> {
        let (keeper, kind) = (snapshot::Keeper::open(place)?, self.settings.store.kind());
        let taking = keeper.clone().run(store.clone(), kind, clock.clone());
        supervisor.spawn_until_shutdown("snapshots", taking);
        snapshot::serve(&snapshot::socket(place), store, kind, keeper, supervisor)
    }

    async fn components(
        &self,
        place: &Place,
        api: &Handle,
        supervisor: &Supervisor,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Drain>, Failure> {
        let host = std::net::SocketAddr::new(self.settings.address(), api.address().port()).to_string();
        let client = |user: &str, groups: &[&str]| {
            transport::counted(api.service_as(UserInfo::new(user, groups)), &host)
        };
        let manager = client("system:kube-controller-manager", &[]);
        // One mirror of each kind serves all parts of the control plane that may read everything.
        let informers = Informers::new(manager.clone(), supervisor.clone(), clock.clone());
        let settings = &self.settings;
        let range =
            settings.pod_cidr.to_string().parse().map_err(|_| Failure::new("the pod range is no range"))?;
        let unused = settings.tokens.legacy_service_account_token_clean_up_period.as_deref();
        let defaults = decapod_controllers::Options::default();
        let controllers = decapod_controllers::Options {
            unused_tokens: unused.map_or(Ok(defaults.unused_tokens), crate::duration::parse)?,
            root_ca: Some(api.pki().ca_pem().to_owned()),
            authority: Some(Arc::new(Keys(api.clone()))),
            node_ipam: Some(decapod_controllers::nodeipam::Options {
                cluster_cidr: range,
                ..Default::default()
            }),
            load_balancers: settings.network.load_balancers(settings)?,
            node_lifecycle: settings.lifecycle.nodes()?,
            ..defaults
        };
        let candidate = Candidate {
            identity: leader::identity(place)?,
            terms: settings.lifecycle.election()?.filter(|_| settings.store.is_shared()),
            clock: clock.clone(),
            supervisor: supervisor.clone(),
        };
        let (own, mirrors, time) = (manager.clone(), informers.clone(), clock.clone());
        candidate.lead(leader::CONTROLLERS, manager.clone(), move |term| {
            let (own, mirrors) = (own.clone(), mirrors.clone());
            decapod_controllers::run(&controllers, own, mirrors, term.clone(), time.clone());
        });
        let scheduler = client("system:kube-scheduler", &[]);
        let (own, mirrors, time) = (scheduler.clone(), informers.clone(), clock.clone());
        let options = settings.scheduler()?;
        candidate.lead(leader::SCHEDULER, scheduler, move |term| {
            decapod_scheduler::run(options.clone(), own.clone(), &mirrors, term, time.clone());
        });
        let watch =
            renewal::authority(api.pki().authority_ends(), manager.clone(), supervisor, clock.clone());
        supervisor.spawn_until_shutdown("authority-watch", watch);
        let addons_client = client("system:decapod:addons", &["system:masters"]);
        let info = addons::cluster_info(&format!("https://{host}"), api.pki().ca_pem(), settings);
        let addons = addons::apply(&addons_client, settings, &info, &**clock);
        if self.no_agent {
            return addons.await.map(|()| None);
        }
        let node = settings.node()?;
        let parts = agent::Parts {
            place: place.clone(),
            settings: settings.clone(),
            client: client(&format!("system:node:{node}"), &["system:nodes"]),
            services: informers,
            server: Some(node_server(settings, api.pki(), &node)?),
            supervisor: supervisor.clone(),
            clock: clock.clone(),
            node,
        };
        tokio::try_join!(agent::start(parts), addons).map(|(drain, ())| Some(drain))
    }
}

/// What this binary was built from: the Makefile says so to the compiler. The date is the commit's, unless
/// `SOURCE_DATE_EPOCH` said otherwise, so that the same sources give the same binary.
fn build() -> decapod_apiserver::Build {
    let said = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let epoch = option_env!("DECAPOD_BUILD_EPOCH").and_then(|seconds| seconds.parse().ok());
    let date = epoch.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    decapod_apiserver::Build {
        git_commit: said(option_env!("DECAPOD_GIT_COMMIT")),
        git_tree_state: said(option_env!("DECAPOD_GIT_TREE_STATE")),
        date: date.map(|date| date.to_string()).unwrap_or_default(),
    }
}

/// The node server's certificate, and who may speak to it.
fn node_server(settings: &Settings, pki: &Arc<Pki>, node: &str) -> Result<ServerOptions, Failure> {
    let bad = |e: &(dyn std::error::Error + 'static)| {
        Failure::new(format!("the node's certificate cannot be made: {}", chain(e)))
    };
    let hosts =
        vec![node.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned(), settings.address().to_string()];
    let request = CertificateRequest::server(format!("system:node:{node}"), hosts);
    let clock = Arc::new(decapod_apiserver::SystemClock);
    let certificate = Renewing::new(pki.clone(), request, clock).map_err(|e| bad(&e))?;
    Ok(ServerOptions {
        listen: ([0, 0, 0, 0], settings.kubelet_port).into(),
        certificate: Arc::new(certificate),
        client_ca: CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).map_err(|e| bad(&e))?,
        allowed_users: vec![agent::KUBELET_CLIENT.to_owned()],
    })
}
