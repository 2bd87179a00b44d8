//! `decapod up`: a local cluster in the background.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};

use super::agent;
use super::dns_probe;
use super::kubeconfig;
use super::lock::Lock;
use super::settings::{Place, Settings, Which};
use crate::failure::Failure;

/// How often readiness is looked at: a fraction of what a start takes.
const STEP: Duration = Duration::from_millis(25);
/// What is shown of the server's log when it does not start.
const LOG_LINES: usize = 15;

#[derive(Args, Debug)]
pub(crate) struct Up {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    settings: Settings,
    /// How many nodes the cluster has.
    #[arg(long, default_value_t = 1)]
    nodes: u32,
    /// How long to wait until everything is ready.
    #[arg(long, default_value = "60s")]
    wait: String,
}

impl Up {
    /// Starts the cluster; the kubeconfig is written to that file, or merged into the person's own.
    pub(crate) async fn run(&self, kubeconfig: Option<&Path>) -> Result<(), Failure> {
        super::require_root("up")?;
        if self.nodes != 1 {
            return Err(Failure::new(format!(
                "--nodes {}: this version makes clusters of one node",
                self.nodes
            )));
        }
        let limit = crate::duration::parse(&self.wait)?;
        let place = self.which.place()?;
        self.settings.check()?;
        let child = match Lock::holder(&place)? {
            Some(pid) => {
                self.same_settings(&place)?;
                println!("the cluster \"{}\" is up (process {pid})", place.name());
                None
            }
            None => Some(self.start(&place)?),
        };
        let started = std::time::Instant::now();
        match tokio::time::timeout(limit, self.ready(&place, child)).await {
            Ok(result) => result?,
            Err(_) => {
                let late = format!("the cluster is not ready after {}", self.wait);
                let why: String = self.in_the_way(&place).await.iter().map(|w| format!("\n  {w}")).collect();
                return Err(Failure::new(late + &why).hint(format!(
                    "see {} and `decapod status --name {}`",
                    place.log().display(),
                    place.name()
                )));
            }
        }
        publish(&place, kubeconfig)?;
        println!("ready after {:.1} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// A running cluster cannot change what it is made of.
    fn same_settings(&self, place: &Place) -> Result<(), Failure> {
        match place.load()? {
            Some(running) if running != self.settings => Err(Failure::new(format!("the cluster \"{}\" runs with other settings", place.name()))
                .hint(format!("leave the flags as they were, or stop it first: `decapod down --keep-data --name {} --data-dir {}`", place.name(), place.data().display()))),
            _ => Ok(()),
        }
    }

    fn start(&self, place: &Place) -> Result<Child, Failure> {
        port_free(self.settings.listen, "--listen")?;
        port_free(([0, 0, 0, 0], self.settings.kubelet_port).into(), "--kubelet-port")?;
        place.save(&self.settings)?;
        println!("starting the cluster \"{}\" (data in {})", place.name(), place.data().display());
        let log = File::options().create(true).append(true).open(place.log())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["server", "--background", "--name", place.name(), "--data-dir"]).arg(place.data());
        let s = &self.settings;
        // The server runs in another folder.
        let file = |file: &Option<PathBuf>| file.as_ref().map(std::path::absolute).transpose();
        command.args([
            format!("--listen={}", s.listen),
            format!("--pod-cidr={}", s.pod_cidr),
            format!("--service-cidr={}", s.service_cidr),
            format!("--cluster-domain={}", s.cluster_domain),
            format!("--kubelet-port={}", s.kubelet_port),
        ]);
        command.args(s.node_name.iter().map(|n| format!("--node-name={n}")));
        command.args(s.node_ip.iter().map(|ip| format!("--node-ip={ip}")));
        command.args(file(&s.token_file)?.map(|f| format!("--token-file={}", f.display())));
        let schedulers = file(&s.scheduler_config)?;
        command.args(schedulers.map(|f| format!("--scheduler-config={}", f.display())));
        let config = file(&s.admission_control_config_file)?;
        command.args(s.enable_admission_plugins.iter().map(|p| format!("--enable-admission-plugins={p}")));
        command.args(s.disable_admission_plugins.iter().map(|p| format!("--disable-admission-plugins={p}")));
        command.args(config.map(|f| format!("--admission-control-config-file={}", f.display())));
        command
            .args(s.container_runtime_endpoint.iter().map(|e| format!("--container-runtime-endpoint={e}")));
        command.args(s.store.flags());
        command.args(s.tokens.flags());
        command.args(s.audit.flags());
        command.args(s.limits.flags());
        command.args(s.resources.flags());
        command.args(s.images.flags());
        command.args(s.network.flags());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        Ok(command.spawn()?)
    }

    async fn ready(&self, place: &Place, mut child: Option<Child>) -> Result<(), Failure> {
        let mut stage = "";
        loop {
            if let Some(child) = &mut child
                && let Some(status) = child.try_wait()?
            {
                return Err(Failure::new(format!("the server ended ({status}):\n{}", last_lines(place)))
                    .hint(format!("its log is {}", place.log().display())));
            }
            let next = self.stage(place).await;
            if next != stage && !next.is_empty() {
                println!("{next}");
            }
            stage = next;
            if stage == DONE {
                return Ok(());
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// How far the cluster has come.
    async fn stage(&self, place: &Place) -> &'static str {
        let Ok(client) = decapod_client::transport::from_kubeconfig(&place.kubeconfig()).await else {
            return "";
        };
        let nodes: Api<Node> = Api::all(client);
        let Ok(list) = nodes.list(&ListParams::default()).await else { return "" };
        let ready = |node: &Node| {
            let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        // After a crash the node's last word may still be that it is ready: its agent must run, too.
        let agent = tokio::net::UnixStream::connect(agent::socket(place)).await;
        if list.items.is_empty() || !list.items.iter().all(ready) || agent.is_err() {
            return "the API is ready; waiting for the node";
        }
        if !dns_probe::answers(self.settings.dns(), &self.settings.cluster_domain).await {
            return "the node is ready; waiting for cluster DNS";
        }
        DONE
    }

    /// What the nodes and the system pods say of why they are not ready.
    async fn in_the_way(&self, place: &Place) -> Vec<String> {
        let Ok(client) = decapod_client::transport::from_kubeconfig(&place.kubeconfig()).await else {
            return vec!["the API does not answer".to_owned()];
        };
        let everything = ListParams::default();
        let nodes = Api::<Node>::all(client.clone()).list(&everything).await;
        let pods = Api::<Pod>::namespaced(client, "kube-system").list(&everything).await;
        let (Ok(nodes), Ok(pods)) = (nodes, pods) else { return vec!["the API does not answer".to_owned()] };
        let nodes = nodes.items.iter().flat_map(|node| {
            let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            let bad = conditions.iter().filter(|c| (c.status == "True") != (c.type_ == "Ready"));
            bad.map(|c| format!("node {}: {}", node.name_any(), c.message.as_deref().unwrap_or(&c.type_)))
        });
        let pods = pods.items.iter().flat_map(|pod| {
            let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            let bad = conditions.iter().filter(|c| c.status == "False").filter_map(|c| c.message.as_deref());
            bad.map(|message| format!("pod {}: {message}", pod.name_any()))
        });
        nodes.chain(pods).collect()
    }
}

/// Writes the kubeconfig where it was asked for, or adds its context to those that the person has.
fn publish(place: &Place, file: Option<&Path>) -> Result<(), Failure> {
    let ours = kubeconfig::read(&place.kubeconfig())?
        .ok_or_else(|| Failure::new("the server wrote no kubeconfig"))?;
    match (file, kubeconfig::users_file()) {
        (Some(file), _) => {
            kubeconfig::write(file, &ours)?;
            println!("kubeconfig: {}", file.display());
        }
        (None, Some(file)) => {
            let merged = kubeconfig::merge(kubeconfig::read(&file)?, &ours);
            kubeconfig::write(&file, &merged)?;
            println!("kubeconfig: {} (context \"{}\")", file.display(), place.name());
        }
        (None, None) => println!("kubeconfig: {}", place.kubeconfig().display()),
    }
    Ok(())
}

const DONE: &str = "cluster DNS answers";

/// Whether something else listens there already.
fn port_free(address: std::net::SocketAddr, flag: &str) -> Result<(), Failure> {
    match std::net::TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(e) => Err(Failure::new(format!("cannot listen on {address}: {e}"))
            .hint(format!("another program, or another cluster, may use the port; {flag} chooses another"))),
    }
}

fn last_lines(place: &Place) -> String {
    let text =
        std::fs::read_to_string(place.log()).unwrap_or_else(|e| format!("(its log cannot be read: {e})"));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
