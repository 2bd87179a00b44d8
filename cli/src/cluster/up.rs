//! `decapod up`: a local cluster in the background.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use decapod_network::Netns;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};

use super::lock::Lock;
use super::nodes::{self, Roster, Started};
use super::settings::{Place, Settings, Which};
use super::{addons, agent, dns_probe, kubeconfig};
use crate::failure::{Failure, chain};

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
    /// How many nodes the cluster has (default: as many as it had, or one). A running cluster grows or shrinks.
    #[arg(long)]
    nodes: Option<u32>,
    /// How long to wait until everything is ready.
    #[arg(long, default_value = "60s")]
    wait: String,
}

impl Up {
    /// Starts the cluster; the kubeconfig is written to that file, or merged into the person's own.
    pub(crate) async fn run(&self, kubeconfig: Option<&Path>) -> Result<(), Failure> {
        super::require_root("up")?;
        let limit = crate::duration::parse(&self.wait)?;
        let place = self.which.place()?;
        self.settings.check()?;
        let (roster, surplus) = self.roster(&place)?;
        let child = match Lock::holder(&place)? {
            Some(pid) => {
                self.same_settings(&place)?;
                println!("the cluster \"{}\" is up (process {pid})", place.name());
                None
            }
            None => Some(self.start(&place)?),
        };
        if let Some(roster) = roster {
            roster.save(&place)?;
        }
        let started = std::time::Instant::now();
        bring_up(&place, &self.settings, child, limit, &self.wait).await?;
        for name in &surplus {
            nodes::remove(&place, &self.settings, name, &client(&place).await?, Some(limit)).await?;
        }
        publish(&place, kubeconfig)?;
        println!("ready after {:.1} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// The further nodes that are to be there, and those that are too many.
    fn roster(&self, place: &Place) -> Result<(Option<Roster>, Vec<String>), Failure> {
        if matches!(self.nodes, None | Some(1)) && Roster::load(place)?.is_none() {
            return Ok((None, Vec::new()));
        }
        let mut roster = Roster::load_or_make(place, &self.settings)?;
        let surplus = self.nodes.map_or(Ok(Vec::new()), |wanted| roster.resize(place, wanted))?;
        Ok((Some(roster), surplus))
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
        super::ranges::check(place, &self.settings)?;
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
        command.args(s.tls_san.iter().map(|name| format!("--tls-san={name}")));
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
        command.args(s.lifecycle.flags());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        Ok(command.spawn()?)
    }
}

/// The administrator's client of a cluster of this machine.
pub(super) async fn client(place: &Place) -> Result<Client, Failure> {
    let client = decapod_client::transport::from_kubeconfig(&place.kubeconfig()).await;
    client.map_err(|e| Failure::new(chain(&e)))
}

/// Starts the agents that do not run, and waits until all nodes are ready and DNS answers on each.
pub(super) async fn bring_up(
    place: &Place,
    settings: &Settings,
    server: Option<Child>,
    limit: Duration,
    wait: &str,
) -> Result<(), Failure> {
    let mut rise = Rise::new(place, settings, server)?;
    match tokio::time::timeout(limit, rise.ready()).await {
        Ok(result) => result,
        Err(_) => {
            let late = format!("the cluster is not ready after {wait}");
            let why: String = rise.in_the_way().await.iter().map(|w| format!("\n  {w}")).collect();
            Err(Failure::new(late + &why).hint(format!(
                "see {} and `decapod status --name {}`",
                place.log().display(),
                place.name()
            )))
        }
    }
}

/// A cluster on its way to being ready.
struct Rise<'a> {
    place: &'a Place,
    settings: &'a Settings,
    /// The machine's own node.
    first: String,
    roster: Option<Roster>,
    /// The server, if this process started it.
    server: Option<Child>,
    /// The further nodes, once the API answered.
    further: Option<Vec<Started>>,
    client: Option<Client>,
}

impl<'a> Rise<'a> {
    fn new(place: &'a Place, settings: &'a Settings, server: Option<Child>) -> Result<Self, Failure> {
        let (first, roster) = (settings.node()?, Roster::load(place)?);
        Ok(Self { place, settings, first, roster, server, further: None, client: None })
    }

    async fn ready(&mut self) -> Result<(), Failure> {
        let mut stage = String::new();
        loop {
            self.all_live()?;
            let next = self.stage().await?;
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

    /// What this process started must run until all is ready.
    fn all_live(&mut self) -> Result<(), Failure> {
        let ended = |what: &str, status, log: &Path| {
            Failure::new(format!("{what} ended ({status}):\n{}", last_lines(log)))
                .hint(format!("its log is {}", log.display()))
        };
        if let Some(server) = &mut self.server
            && let Some(status) = server.try_wait()?
        {
            return Err(ended("the server", status, &self.place.log()));
        }
        for started in self.further.iter_mut().flatten() {
            if let Some(agent) = &mut started.agent
                && let Some(status) = agent.try_wait()?
            {
                return Err(ended(
                    &format!("the agent of node {}", started.node.name),
                    status,
                    &started.node.log(),
                ));
            }
        }
        Ok(())
    }

    /// How far the cluster has come.
    async fn stage(&mut self) -> Result<String, Failure> {
        let client = match &self.client {
            Some(client) => client.clone(),
            // It is there once the server has written it.
            None => match client(self.place).await {
                Ok(client) => client,
                Err(_) => return Ok(String::new()),
            },
        };
        let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await;
        let Ok(nodes) = nodes else {
            self.client = None;
            return Ok(String::new());
        };
        self.client = Some(client.clone());
        if let (None, Some(roster)) = (&self.further, &self.roster) {
            if !addons::nodes_may_join(&client).await {
                return Ok("the API is ready".to_owned());
            }
            self.further = Some(nodes::start(self.place, self.settings, roster, &client).await?);
        }
        let places = self.nodes();
        let mut ready = 0;
        for (name, place, _) in &places {
            let node = nodes.items.iter().find(|node| node.name_any() == *name);
            // After a crash the node's last word may still be that it is ready: its agent must run, too.
            let agent = tokio::net::UnixStream::connect(agent::socket(place)).await;
            ready += usize::from(node.is_some_and(is_ready) && agent.is_ok());
        }
        if ready < places.len() {
            return Ok(match places.len() {
                1 => "the API is ready; waiting for the node".to_owned(),
                all => format!("the API is ready; {ready} of {all} nodes are"),
            });
        }
        for (name, _, _) in places.iter().skip(1) {
            if !is_reached(&client, name).await {
                return Ok(format!("the nodes are ready; waiting for the server of {name}"));
            }
        }
        for (name, _, netns) in &places {
            if !dns_probe::answers(netns, self.settings.dns(), &self.settings.cluster_domain).await {
                return Ok(match places.len() {
                    1 => "the node is ready; waiting for cluster DNS".to_owned(),
                    _ => format!("the nodes are ready; waiting for cluster DNS on {name}"),
                });
            }
        }
        Ok(DONE.to_owned())
    }

    /// All nodes of this machine: name, place, and network namespace.
    fn nodes(&self) -> Vec<(String, Place, Netns)> {
        let own = (self.first.clone(), self.place.clone(), Netns::Own);
        let further = self.further.iter().flatten().map(|started| &started.node);
        let further = further.map(|node| (node.name.clone(), node.place.clone(), node.netns()));
        std::iter::once(own).chain(further).collect()
    }

    /// What the nodes and the system pods say of why they are not ready.
    async fn in_the_way(&self) -> Vec<String> {
        let silent = || vec!["the API does not answer".to_owned()];
        let Some(client) = self.client.clone() else { return silent() };
        let everything = ListParams::default();
        let nodes = Api::<Node>::all(client.clone()).list(&everything).await;
        let pods = Api::<Pod>::namespaced(client, "kube-system").list(&everything).await;
        let (Ok(nodes), Ok(pods)) = (nodes, pods) else { return silent() };
        let missing = self.further.iter().flatten().map(|started| &started.node);
        let missing = missing.filter(|node| nodes.items.iter().all(|found| found.name_any() != node.name));
        let missing =
            missing.map(|node| format!("node {} has not joined: see {}", node.name, node.log().display()));
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
        missing.chain(nodes).chain(pods).collect()
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether the API server reaches a node's own server, for logs and exec: that gets its certificate a moment after
/// the node is registered.
async fn is_reached(client: &Client, node: &str) -> bool {
    let path = format!("/api/v1/nodes/{node}/proxy/healthz");
    let Ok(request) = http::Request::get(path).body(Vec::new()) else { return false };
    client.request_text(request).await.is_ok()
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

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_else(|e| format!("(its log cannot be read: {e})"));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
