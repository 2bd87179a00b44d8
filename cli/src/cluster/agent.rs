//! The node agent as this program runs it: kubelet, embedded runtime, pod network and service proxy.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use clap::Args;
use decapod_client::ObjectKey;
use decapod_client::clock::{Clock, SystemClock};
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_kubelet::{Dependencies, Drain, Kubelet, ServerOptions};
use decapod_network::pod::{HostPort, PodNetwork};
use decapod_network::policy::{self, Policies};
use decapod_network::proxy::{self, ServiceProxy, Traffic};
use decapod_network::{Protocol, pod};
use decapod_proto::cri;
use decapod_runtime::{Attachment, Embedded, ImageConfig, ImageFile, Network, Runtime, Source};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use rustls::server::ResolvesServerCert;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::addons::SELF_IMAGE;
use super::control;
use super::join::{self, Cluster, Held, Member};
use super::lock::Lock;
use super::settings::{Place, Settings, Which};
use super::{policies, ranges, runtime};
use crate::failure::{Failure, chain};

/// How long the server may take to say which pod addresses the node has, before it starts with those that it had.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Where the binary is in its own image.
const BINARY: &str = "/decapod";

/// `decapod agent`: a node of a cluster whose control plane is elsewhere.
#[derive(Args, Debug)]
pub(crate) struct Agent {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    settings: Settings,
    /// The API server, https://HOST:6443; several by commas or by saying it again. The agent goes on with another one when
    /// its own does not answer, and learns of those that come later.
    #[arg(long, required = true, value_delimiter = ',', value_name = "URL")]
    server: Vec<String>,
    /// A bootstrap token (`decapod token create`), by which this node gets its certificate at the first start;
    /// or a token by which it authenticates as system:node:NAME in the group system:nodes.
    #[arg(long, env = "DECAPOD_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The certificate of the cluster's authority.
    #[arg(long, conflicts_with = "ca_cert_hash")]
    ca_file: Option<PathBuf>,
    /// The hash of its public key, sha256:HEX, by which it is recognized.
    #[arg(long)]
    ca_cert_hash: Option<String>,
    /// The certificate of the node's server, signed by the authority; without it the node asks for one.
    #[arg(long, requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Its private key.
    #[arg(long, requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Leave the terminal's session (`decapod up` starts agents so).
    #[arg(long, hide = true)]
    background: bool,
}

impl Agent {
    /// Runs until it is told to stop.
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        super::require_root("agent")?;
        if self.background {
            nix::unistd::setsid().map_err(std::io::Error::from)?;
        }
        self.settings.check()?;
        let place = self.which.place()?;
        ranges::check(&place, &self.settings)?;
        let _lock = Lock::take(&place)?;
        place.save(&self.settings)?;
        let supervisor = Supervisor::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (file, hash) = (self.ca_file.as_deref(), self.ca_cert_hash.as_deref());
        let cluster = Cluster::find(&self.server, file, hash, &place).await?;
        let node = self.settings.node()?;
        let token = self.token.as_deref();
        let servers = match token.filter(|token| !join::is_bootstrap(token)) {
            Some(token) => cluster.with_token(token, clock.clone())?,
            None => {
                if let Some(token) = token.filter(|_| !join::has_joined(&place)) {
                    cluster.agrees(token, &self.settings, &clock).await?;
                }
                let identity = (node.as_str(), self.settings.address());
                let member = Member::join(cluster.clone(), token, identity, &place, clock.clone()).await?;
                let servers = member.servers().clone();
                supervisor.spawn_until_shutdown("node-certificate", member.keep());
                servers
            }
        };
        let client = servers.client();
        supervisor.spawn_until_shutdown("servers", servers.clone().keep());
        let services = Informers::new(client.clone(), supervisor.clone(), clock.clone());
        supervisor.spawn_until_shutdown("servers-told", join::follow(services.of(), servers, &place));
        let (server, held) = self.node_server(&cluster)?;
        let parts = Parts {
            node: node.clone(),
            settings: self.settings.clone(),
            services,
            client: client.clone(),
            server: Some(server),
            supervisor: supervisor.clone(),
            clock: clock.clone(),
            place,
        };
        let drain = start(parts).await?;
        if let Some(held) = held {
            let serving = join::keep_serving(client, held, node, self.settings.address(), clock);
            supervisor.spawn_until_shutdown("serving-certificate", serving);
        }
        let told = super::run_until_told(&supervisor).await;
        super::shutdown::pods(&drain, self.settings.resources.shutdown()?).await;
        told
    }

    /// The node's server, and where its certificate is to be put if none was given.
    fn node_server(&self, cluster: &Cluster) -> Result<(ServerOptions, Option<Arc<Held>>), Failure> {
        let mut held = None;
        let certificate: Arc<dyn ResolvesServerCert> = match (&self.tls_cert_file, &self.tls_private_key_file)
        {
            (Some(certificate), Some(key)) => {
                let unusable = |e| Failure::new(format!("{} holds no private key: {e}", key.display()));
                let key_der = PrivateKeyDer::from_pem_file(key).map_err(unusable)?;
                decapod_kubelet::fixed(vec![read_certificate(certificate)?], key_der)
                    .map_err(|e| Failure::new(format!("{}: {}", key.display(), chain(&e))))?
            }
            _ => held.insert(Arc::<Held>::default()).clone(),
        };
        let options = ServerOptions {
            listen: ([0, 0, 0, 0], self.settings.kubelet_port).into(),
            certificate,
            client_ca: cluster.authority.clone(),
            allowed_users: vec![KUBELET_CLIENT.to_owned()],
        };
        Ok((options, held))
    }
}

fn read_certificate(file: &Path) -> Result<CertificateDer<'static>, Failure> {
    CertificateDer::from_pem_file(file)
        .map_err(|e| Failure::new(format!("{} holds no certificate: {e}", file.display())))
}

/// The identity by which the API server reaches kubelets.
pub(super) const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// The socket by which commands reach the agent.
pub(super) fn socket(place: &Place) -> PathBuf {
    place.run().join("agent.sock")
}

/// The embedded runtime of a cluster on this machine.
pub(super) async fn runtime(place: &Place, network: Arc<dyn Network>) -> Result<Embedded, Failure> {
    let mut options =
        decapod_runtime::Options::new(place.data().join("runtime"), place.run().join("runtime"), network)?;
    options.shim_cgroup = Some(format!("{}-shims", place.cgroup()));
    let images = place.load()?.map(|settings| settings.images).unwrap_or_default();
    options.registries = Some(images.registries());
    Embedded::open(options)
        .await
        .map_err(|e| Failure::new(format!("the container runtime cannot be used: {}", chain(&e))))
}

/// For what needs containers and images and attaches nothing.
pub(super) struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    async fn attach(&self, _: &Attachment) -> Result<Vec<IpAddr>, Source> {
        Err("the node's network is not set up here".into())
    }
    async fn detach(&self, _: &Attachment) -> Result<(), Source> {
        Ok(())
    }
    async fn ready(&self) -> Result<(), Source> {
        Err("the node's network is not set up here".into())
    }
}

/// The pod network, from the moment on when the node knows its addresses.
struct NodeNetwork {
    pods: OnceLock<PodNetwork>,
    policies: Policies,
}

impl NodeNetwork {
    fn get(&self) -> Result<&PodNetwork, Source> {
        self.pods.get().ok_or_else(|| "the node has no podCIDR yet".into())
    }
}

#[async_trait]
impl Network for NodeNetwork {
    async fn attach(&self, sandbox: &Attachment) -> Result<Vec<IpAddr>, Source> {
        let ports: Vec<HostPort> = sandbox.config.port_mappings.iter().filter_map(host_port).collect();
        let addresses = self.get()?.attach(&sandbox.sandbox_id, &sandbox.netns, &ports).await?;
        policies::attach(&self.policies, sandbox, &addresses).await?;
        Ok(addresses)
    }
    async fn detach(&self, sandbox: &Attachment) -> Result<(), Source> {
        // An agent that was killed while it made a sandbox takes it away before it has a network again. Setting that up
        // frees what belongs to sandboxes that are not there.
        let Some(network) = self.pods.get() else { return Ok(()) };
        let address = network.address(&sandbox.sandbox_id);
        network.detach(&sandbox.sandbox_id).await?;
        if let Some(IpAddr::V4(address)) = address {
            self.policies.detach(address).await;
        }
        Ok(())
    }
    async fn ready(&self) -> Result<(), Source> {
        Ok(self.get()?.ready().await?)
    }
}

fn host_port(mapping: &cri::PortMapping) -> Option<HostPort> {
    let protocol = match mapping.protocol() {
        cri::Protocol::Tcp => Protocol::Tcp,
        cri::Protocol::Udp => Protocol::Udp,
        cri::Protocol::Sctp => Protocol::Sctp,
    };
    Some(HostPort {
        host_ip: mapping.host_ip.parse().ok(),
        host_port: u16::try_from(mapping.host_port).ok().filter(|p| *p > 0)?,
        container_port: u16::try_from(mapping.container_port).ok()?,
        protocol,
    })
}

fn pod_options(place: &Place, settings: &Settings, pod_cidr: Ipv4Net) -> pod::Options {
    pod::Options {
        bridge: place.bridge(),
        table: place.pod_table(),
        cluster_cidr: settings.pod_cidr,
        service_cidr: Some(settings.service_cidr),
        node_ip: match settings.address() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        },
        ..pod::Options::new(pod_cidr, place.data().join("network"))
    }
}

fn proxy_options(place: &Place, settings: &Settings, node: &str) -> proxy::Options {
    proxy::Options {
        table: place.service_table(),
        cluster_cidr: settings.pod_cidr,
        service_cidrs: vec![settings.service_cidr],
        node_port_addresses: settings.network.nodeport_addresses.clone(),
        ..proxy::Options::new(node)
    }
}

fn kubelet_options(
    place: &Place,
    settings: &Settings,
    node: &str,
) -> Result<decapod_kubelet::Options, Failure> {
    let defaults = decapod_kubelet::Options::new(node, vec![settings.address()]);
    let data_dir = place.data().join("kubelet");
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker/config.json"));
    Ok(decapod_kubelet::Options {
        eviction: settings.resources.eviction()?,
        reserved: settings.resources.reserved()?,
        logs: settings.resources.logs()?,
        pod_max_pids: settings.resources.pod_max_pids(),
        allowed_unsafe_sysctls: settings.resources.sysctls()?,
        docker_configs: [data_dir.join("config.json")].into_iter().chain(home).collect(),
        parallel_pulls: settings.images.parallel().unwrap_or(defaults.parallel_pulls),
        image_gc: settings.images.gc()?,
        lease_period: settings.lifecycle.lease_period(),
        data_dir,
        run_dir: place.run(),
        static_pods: Some(place.data().join("manifests")),
        cgroup_root: place.cgroup(),
        cluster_dns: vec![IpAddr::V4(settings.dns())],
        cluster_domain: settings.cluster_domain.clone(),
        ..defaults
    })
}

/// This node's service rules, as the kubelet sees them.
struct NodeTraffic(Traffic);

#[async_trait]
impl decapod_kubelet::Traffic for NodeTraffic {
    async fn left(&self, address: IpAddr) {
        // The rules are IPv4's: an IPv6 address is in none of them.
        if let IpAddr::V4(address) = address {
            self.0.left(address).await;
        }
    }
}

/// What an agent runs with.
pub(super) struct Parts {
    pub(super) place: Place,
    pub(super) settings: Settings,
    pub(super) node: String,
    /// Acts as `system:node:<name>`.
    pub(super) client: kube::Client,
    /// Informers that may read Services and EndpointSlices.
    pub(super) services: Informers,
    /// Logs and exec; none without.
    pub(super) server: Option<ServerOptions>,
    pub(super) supervisor: Supervisor,
    pub(super) clock: Arc<dyn Clock>,
}

/// Starts the agent. Returns once the node is registered; its network comes with its addresses.
pub(super) async fn start(parts: Parts) -> Result<Drain, Failure> {
    let Parts { place, settings, node, client, services, server, supervisor, clock } = parts;
    let (limits, orders) = Policies::new(clock.clone());
    let network = Arc::new(NodeNetwork { pods: OnceLock::new(), policies: limits });
    let opened = runtime::open(&place, &settings, network.clone(), clock.clone(), supervisor.clone()).await?;
    let images = opened.images(&supervisor);
    let runtime = opened.runtime;
    // A foreign runtime attaches its pods by itself.
    let ours = settings.container_runtime_endpoint.is_none();
    let pods = |pod_cidr| pod_options(&place, &settings, pod_cidr);
    // A node that was there before has its addresses: it must not report that it has no network.
    let known = known_pod_cidr(&client, &node, &place, &*clock).await;
    if let Some(pod_cidr) = known.filter(|_| ours) {
        remember(&place, pod_cidr)?;
        let failed = |e: Source| Failure::new(format!("the pod network cannot be set up: {}", chain(&*e)));
        set_up_network(&network, &runtime, pods(pod_cidr)).await.map_err(failed)?;
    }
    if ours {
        let policies = policies::options(&place, &node);
        let kept = policy::run(policies, orders, services.clone(), supervisor.clone(), clock.clone());
        supervisor.spawn_until_shutdown("network-policies", kept);
    }
    let traffic = Traffic::default();
    let informers = Informers::new(client.clone(), supervisor.clone(), clock.clone());
    let nodes = informers.filtered::<Node>(&format!("metadata.name={node}"));
    let dependencies = Dependencies {
        client,
        informers,
        runtime: runtime.clone(),
        traffic: Arc::new(NodeTraffic(traffic.clone())),
        supervisor: supervisor.clone(),
        clock: clock.clone(),
    };
    let mut options = kubelet_options(&place, &settings, &node)?;
    options.server = server;
    let kubelet = Kubelet::new(options, dependencies)
        .await
        .map_err(|e| Failure::new(format!("the kubelet cannot start: {}", chain(&e))))?;
    let drain = kubelet.drain();
    kubelet.run();
    // Last: who can connect knows that the agent runs.
    control::serve(&socket(&place), runtime.clone(), images, &supervisor)?;

    let proxy = proxy_options(&place, &settings, &node);
    let proxying = ServiceProxy::run(proxy, traffic, services.clone(), supervisor.clone(), clock.clone());
    supervisor.spawn_until_shutdown("service-proxy", proxying);
    if ours {
        supervisor.spawn_until_shutdown("pod-network", async move {
            if known.is_none() {
                let pod_cidr = pod_cidr(&nodes, &node).await;
                remember(&place, pod_cidr)?;
                set_up_network(&network, &runtime, pod_options(&place, &settings, pod_cidr)).await?;
            }
            network.get()?.clone().peers_follow(node, services, clock).await;
            Ok::<_, Source>(())
        });
    }
    Ok(drain)
}

fn pod_cidr_of(node: &Node) -> Option<Ipv4Net> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

fn remember(place: &Place, pod_cidr: Ipv4Net) -> std::io::Result<()> {
    std::fs::write(share_file(place), pod_cidr.to_string())
}

/// Where the node's share of the pod addresses is kept, for a start while no server answers.
fn share_file(place: &Place) -> PathBuf {
    place.data().join("pod-cidr")
}

/// The addresses that the node has from an earlier start.
async fn known_pod_cidr(
    client: &kube::Client,
    node: &str,
    place: &Place,
    clock: &dyn Clock,
) -> Option<Ipv4Net> {
    let nodes = kube::Api::<Node>::all(client.clone());
    match decapod_client::clock::timeout(clock, LOOK_UP, nodes.get_opt(node)).await {
        Some(Ok(object)) => pod_cidr_of(&object?),
        told => {
            // Pods go on with what they have; the kubelet goes on trying.
            let error = told.and_then(Result::err).map(|e| chain(&e));
            tracing::warn!(error, "the node cannot be looked up yet");
            // A first start has none.
            std::fs::read_to_string(share_file(place)).ok()?.trim().parse().ok()
        }
    }
}

/// Waits until the node has its share of the pod addresses.
async fn pod_cidr(nodes: &decapod_client::informer::Informer<Node>, node: &str) -> Ipv4Net {
    let mut changes = nodes.subscribe();
    loop {
        let object = nodes.get(&ObjectKey { namespace: String::new(), name: node.to_owned() });
        if let Some(cidr) = object.and_then(|n| pod_cidr_of(&n)) {
            return cidr;
        }
        if changes.next().await.is_none() {
            // The informer ended with the process.
            return std::future::pending().await;
        }
    }
}

async fn set_up_network(
    network: &NodeNetwork,
    runtime: &Arc<dyn Runtime>,
    options: pod::Options,
) -> Result<(), Source> {
    let cidr = options.pod_cidr;
    let made = tokio::task::spawn_blocking(|| PodNetwork::new(options)).await??;
    let live: BTreeSet<String> = runtime.sandbox_list(None).await?.into_iter().map(|s| s.id).collect();
    made.reconcile(live).await?;
    network.pods.set(made).map_err(|_| "the network is set up once")?;
    tracing::info!(%cidr, "the pod network is ready");
    Ok(())
}

/// System pods run from an image that is made of this very program: nothing is pulled to start a cluster.
pub(super) async fn image_of_itself(runtime: &Embedded) -> Result<(), Failure> {
    // The link is this process's program also after its file was replaced.
    let source = std::fs::canonicalize("/proc/self/exe").unwrap_or_else(|_| "/proc/self/exe".into());
    let binary = ImageFile { source, target: BINARY.into(), mode: 0o755 };
    let config = ImageConfig { entrypoint: vec![BINARY.to_owned()], ..Default::default() };
    runtime
        .image_from_files(SELF_IMAGE, vec![binary], config)
        .await
        .map(drop)
        .map_err(|e| Failure::new(format!("the image of system pods cannot be made: {}", chain(&e))))
}

/// Removes links, routes and rules of a cluster from this machine.
pub(super) fn remove_network(place: &Place) -> Result<(), Failure> {
    let Some(settings) = place.load()? else { return Ok(()) };
    let proxy = ServiceProxy::remove(&proxy_options(place, &settings, ""));
    let policies = policy::remove(&policies::options(place, ""));
    let pods = PodNetwork::remove(&pod_options(place, &settings, settings.pod_cidr));
    policies.map_err(|e| Failure::new(format!("the rules of policies cannot be removed: {}", chain(&e))))?;
    proxy.map_err(|e| Failure::new(format!("the rules of Services cannot be removed: {}", chain(&e))))?;
    pods.map_err(|e| Failure::new(format!("the pod network cannot be removed: {}", chain(&e))))
}

/// Removes pods with all that belongs to them: containers, volumes, mounts, logs, cgroups.
pub(super) async fn remove_pods(place: &Place) -> Result<(), Failure> {
    let failed = |what: &str, e: &(dyn std::error::Error + 'static)| {
        Failure::new(format!("{what} cannot be removed: {}", chain(e)))
    };
    let settings = place.load()?;
    let endpoint = settings.as_ref().and_then(|settings| settings.container_runtime_endpoint.clone());
    if let (Some(settings), Some(endpoint)) = (&settings, endpoint) {
        let options = kubelet_options(place, settings, "")?;
        let foreign = runtime::for_a_moment(&endpoint)?;
        decapod_kubelet::teardown(&options, &*foreign).await.map_err(|e| failed("pods", &e))?;
    }
    let runtime = runtime(place, Arc::new(NoNetwork)).await?;
    if let Some(settings) = &settings {
        let options = kubelet_options(place, settings, "")?;
        decapod_kubelet::teardown(&options, &runtime).await.map_err(|e| failed("pods", &e))?;
    }
    let removed = runtime.remove_all().await.map_err(|e| failed("containers", &e));
    runtime.close().await;
    removed
}
