//! Starting the agents of further nodes.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use decapod_network::link;
use nix::sched::{CloneFlags, unshare};

use super::{LocalNode, Roster, near, wire};
use crate::cluster::kubeconfig;
use crate::cluster::lock::Lock;
use crate::cluster::settings::{Place, Settings};
use crate::failure::{Failure, chain};
use crate::verbs::token;

/// A node whose agent runs, or was just started.
pub(in crate::cluster) struct Started {
    pub(in crate::cluster) node: LocalNode,
    /// The agent, if this process started it.
    pub(in crate::cluster) agent: Option<Child>,
}

/// Lays the wire and starts the agents that do not run. The API server must answer.
pub(in crate::cluster) async fn start(
    place: &Place,
    settings: &Settings,
    roster: &Roster,
    client: &kube::Client,
) -> Result<Vec<Started>, Failure> {
    if roster.nodes.is_empty() {
        return Ok(Vec::new());
    }
    if settings.container_runtime_endpoint.is_some() {
        return Err(Failure::new(
            "--container-runtime-endpoint: a foreign runtime serves the machine's own node only, not --nodes 2 and more",
        ));
    }
    let failed = |e: link::Error| Failure::new(chain(&e));
    let wire = wire(place, settings, roster);
    link::set_up(&wire).map_err(failed)?;
    let mut started = Vec::new();
    let mut invitation = None;
    for node in roster.nodes(place) {
        let netns = decapod_network::Netns::make(&node.namespace()).map_err(|e| Failure::new(chain(&e)))?;
        link::join(&wire, &netns, node.address, &near(settings)).map_err(failed)?;
        let agent = match Lock::holder(&node.place)? {
            Some(_) => None,
            None => {
                let invitation = match &mut invitation {
                    Some(made) => made,
                    none => none.insert(Invitation::new(place, settings, client).await?),
                };
                Some(
                    invitation
                        .accept(&node, settings)
                        .map_err(|e| e.within(format!("node {}", node.name)))?,
                )
            }
        };
        started.push(Started { node, agent });
    }
    Ok(started)
}

/// By what nodes come in.
struct Invitation {
    server: String,
    hash: String,
    token: String,
}

impl Invitation {
    async fn new(place: &Place, settings: &Settings, client: &kube::Client) -> Result<Self, Failure> {
        let admin = kubeconfig::read(&place.kubeconfig())?;
        let hash = admin.as_ref().and_then(kubeconfig::authority);
        let hash = hash.and_then(|pem| decapod_apiserver::pki::pin(&pem));
        let hash = hash.ok_or_else(|| Failure::new("the kubeconfig of the cluster names no authority"))?;
        let listen = settings.listen;
        let host = if listen.ip().is_unspecified() { settings.address() } else { listen.ip() };
        let server = format!("https://{}", std::net::SocketAddr::new(host, listen.port()));
        let (token, secret) = token::for_a_node("nodes of this machine")?;
        crate::cluster::addons::one(client, &secret).await?;
        Ok(Self { server, hash, token })
    }

    /// Starts the agent in the node's namespaces.
    fn accept(&self, node: &LocalNode, settings: &Settings) -> Result<Child, Failure> {
        std::fs::create_dir_all(node.place.data())?;
        let log = File::options().create(true).append(true).open(node.log())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["agent", "--background", "--name", &node.name, "--data-dir"]).arg(node.place.data());
        command.args(["--server", &self.server, "--ca-cert-hash", &self.hash, "--node-name", &node.name]);
        command.args([
            format!("--node-ip={}", node.address),
            format!("--pod-cidr={}", settings.pod_cidr),
            format!("--service-cidr={}", settings.service_cidr),
            format!("--cluster-domain={}", settings.cluster_domain),
            format!("--kubelet-port={}", settings.kubelet_port),
        ]);
        command.args(settings.resources.flags()).args(settings.images.flags()).args(settings.network.flags());
        command.args(settings.lifecycle.flags());
        command.env("DECAPOD_TOKEN", &self.token);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        // A process is in the namespaces of the thread that started it.
        let inside = || -> std::io::Result<Child> {
            unshare(CloneFlags::CLONE_NEWUTS)?;
            nix::unistd::sethostname(&node.name)?;
            command.spawn()
        };
        Ok(node.netns().run(inside).map_err(|e| Failure::new(chain(&e)))??)
    }
}
