//! What a kubelet has to be told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::eviction::EvictionOptions;

/// Settings of one node agent. [`Options::new`] has Kubernetes' defaults.
#[derive(Debug)]
pub struct Options {
    /// The name of the Node object, `metadata.name`.
    pub node_name: String,
    /// `status.addresses` of type InternalIP, the first being the primary.
    pub node_ips: Vec<IpAddr>,
    /// Where pods' volumes and logs lie (`pods/`, `logs/`).
    pub data_dir: PathBuf,
    /// Where state lies that need not survive a reboot; secrets lie here, in memory.
    pub run_dir: PathBuf,
    /// The cgroup below which all pods run, such as `/decapod`. It is the kubelet's own: `teardown` removes it.
    pub cgroup_root: String,
    /// Addresses of the cluster's DNS, for pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// The domain of the cluster, `cluster.local` by default.
    pub cluster_domain: String,
    /// The resolv.conf for pods that use the node's DNS.
    pub resolv_conf: PathBuf,
    /// Labels that the node registers with, beside Kubernetes' own.
    pub labels: BTreeMap<String, String>,
    /// Taints that the node registers with.
    pub taints: Vec<Taint>,
    /// `status.capacity.pods`: 110 by default.
    pub max_pods: u32,
    /// Processes and threads of one pod at most (`--pod-max-pids`, `podPidsLimit`): no bound by default.
    pub pod_max_pids: Option<u64>,
    /// Kernel parameters that pods may set beside the safe ones (`--allowed-unsafe-sysctls`): names with dots, where
    /// a `*` at the end stands for anything. None by default.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The folder whose files are pods of this node (`--pod-manifest-path`): they run without any API server. None by
    /// default; it is made if it is not there.
    pub static_pods: Option<PathBuf>,
    /// How often the Lease in `kube-node-lease` is renewed, which holds four times as long: 2 s by default (Kubernetes:
    /// 10 s), so that a dead node is seen within 10 s.
    pub lease_period: Duration,
    /// How often everything is compared although nothing happened: the safety net, 5 min by default.
    pub relist_period: Duration,
    /// When pods are evicted.
    pub eviction: EvictionOptions,
    /// What the operating system and its daemons need of the machine, and so pods do not get
    /// (`--system-reserved` and `--kube-reserved` together).
    pub reserved: Reserved,
    /// How logs of containers are kept.
    pub logs: LogOptions,
    /// Images pulled at once (`maxParallelImagePulls`); 1 is Kubernetes' `serializeImagePulls`. 5 by default, so that a
    /// registry that does not answer does not hold up others.
    pub parallel_pulls: usize,
    /// Files of Docker's (`config.json`) with the node's own credentials for registries; they need not exist.
    pub docker_configs: Vec<PathBuf>,
    /// When images that nobody uses are removed.
    pub image_gc: ImageGc,
    /// The node server (`:10250`), for logs, exec and port forwarding; none if not given.
    pub server: Option<ServerOptions>,
}

/// What is kept from pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of a processor.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes of the file system below the data directory.
    pub storage: u64,
}

/// How logs of containers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// A log that is larger is moved aside and begun anew, in bytes: 10 MiB by default (`containerLogMaxSize`).
    pub max_size: u64,
    /// Files of one container, the one that is written among them: 5 by default (`containerLogMaxFiles`).
    pub max_files: usize,
    /// How often sizes are looked at: 10 s by default.
    pub period: Duration,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5, period: Duration::from_secs(10) }
    }
}

/// When images that nobody uses are removed. [`Default`] is Kubernetes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGc {
    /// So much of the disk has to be in use (`imageGCHighThresholdPercent`): 85.
    pub high_percent: u8,
    /// Then images are removed until so much of it is (`imageGCLowThresholdPercent`): 80.
    pub low_percent: u8,
    /// An image that came less than this ago stays (`imageMinimumGCAge`): 2 min.
    pub min_age: Duration,
    /// An image unused for this long goes, however empty the disk is (`imageMaximumGCAge`): none.
    pub max_age: Option<Duration>,
}

impl Default for ImageGc {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None }
    }
}

/// Settings of the node server.
#[derive(Debug)]
pub struct ServerOptions {
    /// Where it listens, port 10250 by default.
    pub listen: SocketAddr,
    /// Its certificate and key: asked for at each handshake, so that whoever holds them can renew them while
    /// the server runs. [`fixed`] takes one that never changes.
    pub certificate: Arc<dyn ResolvesServerCert>,
    /// The cluster's CA: clients must have a certificate of it.
    pub client_ca: CertificateDer<'static>,
    /// Who may use it beside the group `system:masters`: the API server's identities, by common name.
    pub allowed_users: Vec<String>,
}

/// A node server's certificate (with those up to the CA) that is never renewed.
///
/// # Errors
/// If the key is of no known kind, or another one than the certificate's.
pub fn fixed(
    certificate: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<dyn ResolvesServerCert>, rustls::Error> {
    let provider = rustls::crypto::ring::default_provider();
    Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::from_der(certificate, key, &provider)?)))
}

impl Options {
    /// Defaults for the node `node_name` with the given addresses.
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips,
            data_dir: "/var/lib/decapod".into(),
            run_dir: "/run/decapod".into(),
            cgroup_root: "/decapod".to_owned(),
            cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            max_pods: 110,
            pod_max_pids: None,
            allowed_unsafe_sysctls: Vec::new(),
            static_pods: None,
            lease_period: Duration::from_secs(2),
            relist_period: Duration::from_secs(300),
            eviction: EvictionOptions::default(),
            reserved: Reserved::default(),
            logs: LogOptions::default(),
            parallel_pulls: 5,
            docker_configs: Vec::new(),
            image_gc: ImageGc::default(),
            server: None,
        }
    }
}
