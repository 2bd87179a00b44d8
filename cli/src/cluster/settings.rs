//! What a cluster is made of: the flags that `up` and `server` share, kept beside the data so that a
//! later `up`, `down` or `status` finds the cluster as it was started.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::datastore::Datastore;
use super::image_flags::ImageFlags;
use super::lifecycle_flags::LifecycleFlags;
use super::limits::LimitFlags;
use super::network_flags::NetworkFlags;
use super::resource_flags::ResourceFlags;
use crate::failure::Failure;

const DEFAULT_NAME: &str = "decapod";

/// Which cluster of this machine is meant.
#[derive(Args, Clone, Debug)]
pub(crate) struct Which {
    /// The name of the cluster.
    #[arg(long, default_value = DEFAULT_NAME)]
    pub(crate) name: String,
    /// Where its data lies.
    #[arg(long, default_value = "/var/lib/decapod")]
    pub(crate) data_dir: PathBuf,
}

/// How service account tokens are issued.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tokens {
    /// Who issues service account tokens (default: the API server's name in the cluster). Of several the first
    /// issues, and tokens of the others stay good.
    #[arg(long)]
    #[serde(default)]
    pub(crate) service_account_issuer: Vec<String>,
    /// What tokens must be for to be taken by the API server (default: the issuers).
    #[arg(long, value_delimiter = ',')]
    #[serde(default)]
    pub(crate) api_audiences: Vec<String>,
    /// The longest life of a service account token, 1h or more (default: a year).
    #[arg(long, value_parser = token_life)]
    pub(crate) service_account_max_token_expiration: Option<String>,
    /// Whether tokens in pods are honoured longer than they say, for clients that do not read them again
    /// (default: true).
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) service_account_extend_token_expiration: Option<bool>,
    /// Where others find the keys that verify service account tokens (default: at the issuer).
    #[arg(long)]
    pub(crate) service_account_jwks_uri: Option<String>,
    /// A token in a Secret that was made for a service account unasked is put out of use when nobody used it for this long,
    /// and removed when nobody missed it for as long again (default: 8760h).
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    #[serde(default)]
    pub(crate) legacy_service_account_token_clean_up_period: Option<String>,
}

/// A duration of an hour or more, kept as it was written.
fn token_life(text: &str) -> Result<String, String> {
    let life = crate::duration::parse(text).map_err(|error| error.to_string())?;
    if life.as_secs() < 3600 { Err("expected 1h or more".to_owned()) } else { Ok(text.to_owned()) }
}

impl Tokens {
    /// The flags that say the same to a server.
    pub(crate) fn flags(&self) -> Vec<String> {
        let issuers = self.service_account_issuer.iter().map(|issuer| ("issuer", issuer.clone()));
        let more = [
            ("max-token-expiration", self.service_account_max_token_expiration.clone()),
            ("extend-token-expiration", self.service_account_extend_token_expiration.map(|e| e.to_string())),
            ("jwks-uri", self.service_account_jwks_uri.clone()),
        ];
        let given = issuers.chain(more.into_iter().filter_map(|(flag, value)| Some((flag, value?))));
        let mut flags: Vec<String> =
            given.map(|(flag, value)| format!("--service-account-{flag}={value}")).collect();
        let period = self.legacy_service_account_token_clean_up_period.iter();
        flags.extend(period.map(|period| format!("--legacy-service-account-token-clean-up-period={period}")));
        if !self.api_audiences.is_empty() {
            flags.push(format!("--api-audiences={}", self.api_audiences.join(",")));
        }
        flags
    }

    /// What the API server is told.
    pub(crate) fn options(&self) -> Result<decapod_apiserver::TokenOptions, Failure> {
        let mut options = decapod_apiserver::TokenOptions {
            issuers: self.service_account_issuer.clone(),
            audiences: self.api_audiences.clone(),
            extend: self.service_account_extend_token_expiration.unwrap_or(true),
            jwks_uri: self.service_account_jwks_uri.clone(),
            ..decapod_apiserver::TokenOptions::default()
        };
        if let Some(life) = &self.service_account_max_token_expiration {
            options.max_lifetime = crate::duration::parse(life)?;
        }
        Ok(options)
    }
}

/// What is recorded of requests.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Audit {
    /// The audit policy (audit.k8s.io/v1): what of which request is recorded.
    #[arg(long)]
    pub(crate) audit_policy_file: Option<PathBuf>,
    /// Where requests are recorded; - is the standard output.
    #[arg(long, requires = "audit_policy_file")]
    pub(crate) audit_log_path: Option<PathBuf>,
    /// The audit log is replaced before it grows larger than this many MiB.
    #[arg(long, default_value_t = 100)]
    pub(crate) audit_log_maxsize: u64,
    /// Replaced audit logs are kept for this many days; 0 keeps them for ever.
    #[arg(long, default_value_t = 0)]
    pub(crate) audit_log_maxage: u64,
    /// This many replaced audit logs are kept; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    pub(crate) audit_log_maxbackup: usize,
    /// Requests are told to the server that this file (in the format of a kubeconfig) names.
    #[arg(long, requires = "audit_policy_file")]
    pub(crate) audit_webhook_config_file: Option<PathBuf>,
    /// The most events that the webhook gets at once (default: 400).
    #[arg(long)]
    pub(crate) audit_webhook_batch_max_size: Option<usize>,
    /// How long an event waits for others to go to the webhook with it (default: 30s).
    #[arg(long, value_parser = duration)]
    pub(crate) audit_webhook_batch_max_wait: Option<String>,
    /// The pause before events that the webhook did not take are sent again (default: 10s).
    #[arg(long, value_parser = duration)]
    pub(crate) audit_webhook_initial_backoff: Option<String>,
}

/// A duration, kept as it was written.
fn duration(text: &str) -> Result<String, String> {
    crate::duration::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl Audit {
    /// The flags that say the same to a server, whatever folder it runs in.
    pub(crate) fn flags(&self) -> Vec<String> {
        let Some(policy) = &self.audit_policy_file else { return Vec::new() };
        // Where the current folder is unknown, the path stays as it was given.
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut flags = vec![
            format!("--audit-policy-file={}", absolute(policy).display()),
            format!("--audit-log-maxsize={}", self.audit_log_maxsize),
            format!("--audit-log-maxage={}", self.audit_log_maxage),
            format!("--audit-log-maxbackup={}", self.audit_log_maxbackup),
        ];
        if let Some(log) = &self.audit_log_path {
            let log = if log == Path::new("-") { log.clone() } else { absolute(log) };
            flags.push(format!("--audit-log-path={}", log.display()));
        }
        if let Some(file) = &self.audit_webhook_config_file {
            flags.push(format!("--audit-webhook-config-file={}", absolute(file).display()));
        }
        let more = [
            ("batch-max-size", self.audit_webhook_batch_max_size.map(|size| size.to_string())),
            ("batch-max-wait", self.audit_webhook_batch_max_wait.clone()),
            ("initial-backoff", self.audit_webhook_initial_backoff.clone()),
        ];
        let given = more.into_iter().filter_map(|(flag, value)| Some((flag, value?)));
        flags.extend(given.map(|(flag, value)| format!("--audit-webhook-{flag}={value}")));
        flags
    }

    /// What the API server is told; requests are recorded only with a policy and a place.
    pub(crate) fn options(&self) -> Result<Option<decapod_apiserver::AuditOptions>, Failure> {
        let Some(policy_file) = self.audit_policy_file.clone() else { return Ok(None) };
        let log = self.audit_log_path.clone().map(|path| decapod_apiserver::LogOptions {
            path,
            max_size: self.audit_log_maxsize,
            max_age: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
        });
        let webhook = self.audit_webhook_config_file.clone().map(|file| self.webhook(file)).transpose()?;
        if log.is_none() && webhook.is_none() {
            return Ok(None);
        }
        Ok(Some(decapod_apiserver::AuditOptions { policy_file, log, webhook }))
    }

    fn webhook(&self, file: PathBuf) -> Result<decapod_apiserver::WebhookOptions, Failure> {
        let mut options = decapod_apiserver::WebhookOptions::new(file);
        if let Some(size) = self.audit_webhook_batch_max_size {
            options.batch_max_size = size.max(1);
        }
        if let Some(wait) = &self.audit_webhook_batch_max_wait {
            options.batch_max_wait = crate::duration::parse(wait)?;
        }
        if let Some(pause) = &self.audit_webhook_initial_backoff {
            options.initial_backoff = crate::duration::parse(pause)?;
        }
        Ok(options)
    }
}

/// What a cluster is made of.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Where the API listens.
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub(crate) listen: SocketAddr,
    /// The addresses of all pods.
    #[arg(long, default_value = "10.244.0.0/16")]
    pub(crate) pod_cidr: Ipv4Net,
    /// The addresses of Services; the first is the API's, the tenth cluster DNS.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub(crate) service_cidr: Ipv4Net,
    /// The domain of cluster DNS.
    #[arg(long, default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Where the node's server (logs, exec) listens.
    #[arg(long, default_value_t = 10250)]
    pub(crate) kubelet_port: u16,
    /// The name of this machine's node (default: its host name).
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// The address under which this machine is reached (default: that of the default route).
    #[arg(long)]
    pub(crate) node_ip: Option<IpAddr>,
    /// Further names and addresses by which clients reach this API server: its certificate is good for them.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    #[serde(default)]
    pub(crate) tls_san: Vec<String>,
    /// A foreign container runtime that speaks CRI v1, such as unix:///run/containerd/containerd.sock (default: the
    /// embedded one). It needs a network plugin of its own, and the image of cluster DNS is to be imported into it.
    #[arg(long)]
    #[serde(default)]
    pub(crate) container_runtime_endpoint: Option<String>,
    /// A file of static bearer tokens, as Kubernetes' --token-auth-file.
    #[arg(long)]
    pub(crate) token_file: Option<PathBuf>,
    /// A file that configures plugins of admission (an AdmissionConfiguration; PodSecurity can be configured).
    #[arg(long)]
    pub(crate) admission_control_config_file: Option<PathBuf>,
    /// A file that says which schedulers there are and what each does (a KubeSchedulerConfiguration of
    /// kubescheduler.config.k8s.io/v1).
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub(crate) scheduler_config: Option<PathBuf>,
    /// Plugins of admission that run beside those that do by default, by Kubernetes' names:
    /// AlwaysPullImages, DenyServiceExternalIPs, OwnerReferencesPermissionEnforcement.
    #[arg(long, value_delimiter = ',', value_name = "PLUGINS")]
    #[serde(default)]
    pub(crate) enable_admission_plugins: Vec<String>,
    /// Plugins of admission that do not run though they do by default.
    #[arg(long, value_delimiter = ',', value_name = "PLUGINS")]
    #[serde(default)]
    pub(crate) disable_admission_plugins: Vec<String>,
    #[command(flatten)]
    #[serde(default)]
    pub(crate) tokens: Tokens,
    #[command(flatten)]
    #[serde(default)]
    pub(crate) audit: Audit,
    #[command(flatten)]
    #[serde(default)]
    pub(crate) limits: LimitFlags,
    #[command(flatten)]
    #[serde(default)]
    pub(crate) resources: ResourceFlags,
    #[command(flatten)]
    #[serde(default)]
    pub(crate) images: ImageFlags,
    #[command(flatten)]
    #[serde(default)]
    pub(crate) network: NetworkFlags,
    #[command(flatten)]
    #[serde(default)]
    pub(crate) lifecycle: LifecycleFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) store: Datastore,
}

/// Where everything of a cluster is on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    name: String,
    data: PathBuf,
}

impl Which {
    /// The cluster's place.
    pub(crate) fn place(&self) -> Result<Place, Failure> {
        if let Some(why) = decapod_api::names::dns_label(&self.name).first() {
            return Err(Failure::new(format!("--name \"{}\": {why}", self.name)));
        }
        let data = std::path::absolute(&self.data_dir)?;
        Ok(Place { name: self.name.clone(), data })
    }
}

impl Place {
    /// The cluster's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where its data lies.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Where its runtime state lies: gone after a reboot.
    pub(crate) fn run(&self) -> PathBuf {
        Path::new("/run/decapod").join(&self.name)
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }

    /// What the server in the background prints.
    pub(crate) fn log(&self) -> PathBuf {
        self.data.join("server.log")
    }

    /// Locked by the running server, and holding its process id.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run().join("server.pid")
    }

    fn settings_file(&self) -> PathBuf {
        self.data.join("settings.json")
    }

    /// A name for something of which the machine has one namespace: bare for the default cluster.
    fn own(&self, bare: &str) -> String {
        if self.name == DEFAULT_NAME { bare.to_owned() } else { format!("{bare}-{}", self.name) }
    }

    /// A further node of this cluster: it is on this machine with all that is its own.
    pub(crate) fn of_node(&self, node: &str) -> Self {
        Self { name: node.to_owned(), data: self.data.join("nodes").join(node) }
    }

    /// A link's name has at most 15 bytes.
    fn link(&self, kind: &str) -> String {
        if self.name == DEFAULT_NAME {
            return format!("{kind}0");
        }
        let hash = Sha256::digest(self.name.as_bytes());
        format!("{kind}{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
    }

    /// The bridge of the node's pods.
    pub(crate) fn bridge(&self) -> String {
        self.link("dcp")
    }

    /// The bridge between this machine and the further nodes on it.
    pub(crate) fn wire(&self) -> String {
        self.link("dcn")
    }

    /// The nf_tables table of that bridge.
    pub(crate) fn wire_table(&self) -> String {
        self.own("decapod-nodes")
    }

    /// The nf_tables table of the service proxy.
    pub(crate) fn service_table(&self) -> String {
        self.own("decapod")
    }

    /// The nf_tables table of the pod network.
    pub(crate) fn pod_table(&self) -> String {
        self.own("decapod-pods")
    }

    /// The nf_tables table of network policies.
    pub(crate) fn policy_table(&self) -> String {
        self.own("decapod-policies")
    }

    /// The cgroup below which all pods are.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}", self.own("decapod"))
    }

    /// The settings with which the cluster was started; `None` if it never was.
    pub(crate) fn load(&self) -> Result<Option<Settings>, Failure> {
        let file = self.settings_file();
        match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                Failure::new(format!("{} is damaged: {e}", file.display()))
                    .hint("remove it: the next start writes it anew")
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::new(format!("{} cannot be read: {e}", file.display()))),
        }
    }

    /// Keeps the settings, whole or not at all.
    pub(crate) fn save(&self, settings: &Settings) -> Result<(), Failure> {
        std::fs::create_dir_all(&self.data)?;
        let file = self.settings_file();
        write_whole(&file, serde_json::to_string_pretty(settings)?.as_bytes(), 0o644)
    }
}

/// Writes a file so that a reader, or a crash, sees the old content or the new and nothing between.
pub(crate) fn write_whole(file: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |e: std::io::Error| Failure::new(format!("{} cannot be written: {e}", file.display()));
    let partial = file.with_extension(format!("partial{}", std::process::id()));
    let mut out = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(&partial)
        .map_err(failed)?;
    out.write_all(content).and_then(|()| out.sync_all()).map_err(failed)?;
    std::fs::rename(&partial, file).map_err(failed)
}

impl Settings {
    /// The address of cluster DNS: the tenth of the Services'.
    pub(crate) fn dns(&self) -> std::net::Ipv4Addr {
        self.service_cidr.hosts().nth(9).unwrap_or(self.service_cidr.network())
    }

    /// The node's name.
    pub(crate) fn node(&self) -> Result<String, Failure> {
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => {
                nix::unistd::gethostname().map_err(std::io::Error::from)?.to_string_lossy().to_lowercase()
            }
        };
        match decapod_api::names::dns_subdomain(&name).first() {
            Some(why) => Err(Failure::new(format!("the node cannot be called \"{name}\": {why}"))
                .hint("--node-name gives it another name")),
            None => Ok(name),
        }
    }

    /// The address under which this machine is reached by its pods and by other machines: as told, or
    /// that of the default route, or (without any) the pods' gateway, which is on this machine too.
    pub(crate) fn address(&self) -> IpAddr {
        self.node_ip.or_else(default_route_address).unwrap_or_else(|| {
            let first = Ipv4Net::new(self.pod_cidr.network(), 24).unwrap_or(self.pod_cidr);
            IpAddr::V4(first.hosts().next().unwrap_or(first.network()))
        })
    }

    /// The plugins of admission that are asked for, or not.
    pub(crate) fn admission_plugins(&self) -> decapod_apiserver::AdmissionPlugins {
        decapod_apiserver::AdmissionPlugins {
            enable: self.enable_admission_plugins.clone(),
            disable: self.disable_admission_plugins.clone(),
        }
    }

    /// What the schedulers are told.
    pub(crate) fn scheduler(&self) -> Result<decapod_scheduler::Options, Failure> {
        let Some(file) = &self.scheduler_config else { return Ok(decapod_scheduler::Options::default()) };
        let flag = format!("--scheduler-config {}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| Failure::new(format!("{flag}: {error}")))?;
        let object: serde_json::Value =
            serde_saphyr::from_str(&text).map_err(|error| Failure::new(format!("{flag}: {error}")))?;
        let configuration = decapod_scheduler::config::Configuration::read(object)
            .map_err(|error| Failure::new(format!("{flag}: {error}")))?;
        Ok(decapod_scheduler::Options {
            configuration: std::sync::Arc::new(configuration),
            ..decapod_scheduler::Options::default()
        })
    }

    /// Whether the ranges and ports make a cluster.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.store.check()?;
        self.limits.limits()?;
        self.resources.eviction()?;
        self.resources.reserved()?;
        self.resources.logs()?;
        self.resources.shutdown()?;
        self.admission_plugins().check().map_err(|error| Failure::new(format!("--{error}")))?;
        self.images.gc()?;
        self.network.load_balancers(self)?;
        self.scheduler()?;
        self.lifecycle.nodes()?;
        self.lifecycle.election()?;
        let overlap =
            self.pod_cidr.contains(&self.service_cidr) || self.service_cidr.contains(&self.pod_cidr);
        if overlap {
            return Err(Failure::new(format!(
                "--pod-cidr {} and --service-cidr {} overlap",
                self.pod_cidr, self.service_cidr
            )));
        }
        if self.listen.ip().is_loopback() {
            return Err(Failure::new(format!(
                "--listen {}: pods and other nodes cannot reach a loopback address",
                self.listen
            ))
            .hint(format!(
                "--listen 0.0.0.0:{} listens on all addresses of this machine",
                self.listen.port()
            )));
        }
        for (flag, range, longest) in
            [("--pod-cidr", self.pod_cidr, 24), ("--service-cidr", self.service_cidr, 28)]
        {
            if range.prefix_len() > longest {
                return Err(Failure::new(format!(
                    "{flag} {range} is too small: expected /{longest} or larger"
                )));
            }
        }
        Ok(())
    }
}

/// The source address of the default route. Connecting a datagram socket sends nothing.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // A documentation address: only the route to it is asked for.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    /// Settings from flags, as a user gives them.
    pub(in crate::cluster) fn settings(flags: &[&str]) -> Settings {
        Flags::parse_from([&["x"], flags].concat()).settings
    }

    #[test]
    fn defaults_make_a_cluster() {
        let s = settings(&[]);
        s.check().unwrap();
        assert_eq!(s.dns().to_string(), "10.96.0.10");
    }

    #[test]
    fn a_server_in_the_background_is_told_the_same() {
        let flags = [
            "--service-account-issuer=https://a",
            "--service-account-issuer=https://b",
            "--service-account-max-token-expiration=2h",
            "--service-account-extend-token-expiration=false",
            "--api-audiences=x,y",
        ];
        let s = settings(&flags);
        let again: Vec<String> = s.tokens.flags();
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        assert_eq!(settings(&again).tokens, s.tokens);
        let options = s.tokens.options().unwrap();
        assert_eq!((options.issuers.len(), options.extend, options.max_lifetime.as_secs()), (2, false, 7200));
    }

    #[test]
    fn clashing_ranges_are_refused() {
        let error = settings(&["--service-cidr", "10.244.3.0/24"]).check().unwrap_err().to_string();
        assert!(error.contains("overlap"), "{error}");
        assert!(settings(&["--pod-cidr", "10.1.0.0/28"]).check().is_err());
        let error = settings(&["--listen", "127.0.0.1:6443"]).check().unwrap_err().to_string();
        assert!(error.contains("--listen 0.0.0.0:6443"), "{error}");
    }

    #[test]
    fn clusters_have_names_of_their_own() {
        let place = |name: &str| Which { name: name.into(), data_dir: "/x".into() }.place().unwrap();
        assert_eq!(place("decapod").bridge(), "dcp0");
        assert_eq!(place("decapod").cgroup(), "/decapod");
        assert_eq!(place("other").service_table(), "decapod-other");
        assert!(place("other").bridge().len() <= 15);
        assert!(Which { name: "Bad/".into(), data_dir: "/x".into() }.place().is_err());
    }
}
