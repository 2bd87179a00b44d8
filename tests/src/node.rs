//! A node of its own: a control plane in one process and an agent in another, which can be killed and started again,
//! and so that what the agent takes is told apart from what the API server does.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::images;
use crate::server::{CALM, Server};
use crate::tools::{program, run};

/// How the node differs from that of a cluster that somebody uses.
const NETWORK: [&str; 4] = ["--pod-cidr", "10.254.0.0/16", "--service-cidr", "10.209.0.0/16"];
/// How its pods' links begin: with those addresses.
const LINKS: &str = "dcp0afe";
/// Where the agent reaches the server: an address of this machine, and not the node's, for which the server's
/// controllers would sign no certificate then.
const SERVER: &str = "--node-ip=127.0.0.1";
const KUBELET_PORT: &str = "37278";
/// The node's name in the cluster.
pub const NAME: &str = "bench";
/// A node is ready within seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(100);

/// Control plane and agent. Dropping it takes both away, with the pods.
#[derive(Debug)]
pub struct Node {
    server: Server,
    agent: Option<Child>,
    folder: tempfile::TempDir,
    name: String,
    /// The verb and flags by which the agent joins.
    join: Vec<String>,
}

impl Node {
    /// Starts both, waits until the node is ready, and imports busybox.
    ///
    /// # Errors
    /// What does not start, and why.
    pub async fn start() -> Result<Self> {
        let flags = NETWORK.into_iter().chain(CALM).chain([SERVER]).map(str::to_owned).collect();
        let mut server = Server::prepare("dcpbench", flags)?;
        server.start().await?;
        let folder = tempfile::Builder::new().prefix("dcpbench").tempdir()?;
        let name = format!("dcpbench-node-{}", std::process::id());
        let join = join_command(&server)?;
        let mut node = Self { server, agent: None, folder, name, join };
        node.launch()?;
        let client = node.client().await?;
        tokio::time::timeout(PATIENCE, ready(&client)).await.context("the node does not get ready")??;
        tokio::time::timeout(PATIENCE, alone(&client)).await.context("system pods do not go")??;
        let mut import = Command::new(program("decapod")?);
        import.args(["image", "import", "--name", &node.name, "--data-dir"]).arg(node.data());
        run(import.arg(images::archive(&images::BUSYBOX)?))?;
        Ok(node)
    }

    /// Starts the agent, which was killed or never ran.
    ///
    /// # Errors
    /// That it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("agent.log"))?;
        let mut agent = Command::new(program("decapod")?);
        agent.args(&self.join).args(["--name", &self.name, "--data-dir"]).arg(self.data());
        agent.args(["--node-name", NAME, "--kubelet-port", KUBELET_PORT]);
        agent.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.agent = Some(agent.spawn().context("starting the agent")?);
        Ok(())
    }

    /// Kills the agent (`SIGKILL`); its pods run on.
    ///
    /// # Errors
    /// That it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
            agent.wait()?;
        }
        Ok(())
    }

    /// The end of what the agent logged, for who looks into a failure.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_else(|e| e.to_string());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// What the machine has of this node's pods: processes, mounts, cgroups, links and folders, as lines of text.
    ///
    /// # Errors
    /// What could not be read.
    pub fn holds(&self) -> Result<BTreeSet<String>> {
        let (data, state) = (self.data(), PathBuf::from("/run/decapod").join(&self.name));
        let mut held: BTreeSet<String> =
            self.shims()?.into_iter().map(|pid| format!("process {pid} of a shim")).collect();
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let target = Path::new(line.split(' ').nth(4).unwrap_or_default());
            if target.starts_with(&data) || target.starts_with(&state) {
                held.insert(format!("mount {}", target.display()));
            }
        }
        for link in names_in(Path::new("/sys/class/net"))?.into_iter().filter(|name| name.starts_with(LINKS))
        {
            held.insert(format!("link {link}"));
        }
        for folder in ["runtime/pods", "kubelet/pods", "kubelet/logs/pods", "network/pods"] {
            let folder = data.join(folder);
            held.extend(names_in(&folder)?.iter().map(|name| format!("{}/{name}", folder.display())));
        }
        held.extend(names_in(&state.join("runtime"))?.iter().map(|name| format!("running {name}")));
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = names_in(root)?.into_iter().map(|name| root.join(name));
        for hierarchy in hierarchies.chain([root.to_owned()]) {
            let pods = hierarchy.join(format!("decapod-{}", self.name)).join("kubepods");
            for class in [pods.clone(), pods.join("burstable"), pods.join("besteffort")] {
                let groups = names_in(&class)?.into_iter().filter(|name| name.starts_with("pod"));
                held.extend(groups.map(|name| format!("cgroup {}/{name}", class.display())));
            }
        }
        Ok(held)
    }

    /// How many descriptors the agent has open.
    ///
    /// # Errors
    /// That it does not run.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.agent()?))?.count())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A client that may do everything.
    ///
    /// # Errors
    /// That the server is not there.
    pub async fn client(&self) -> Result<kube::Client> {
        self.server.client().await
    }

    /// The agent's process.
    ///
    /// # Errors
    /// That it does not run.
    pub fn agent(&self) -> Result<i64> {
        Ok(self.agent.as_ref().context("the agent does not run")?.id().into())
    }

    /// The processes of the node's shims.
    ///
    /// # Errors
    /// What could not be read.
    pub fn shims(&self) -> Result<Vec<i64>> {
        let data = self.data();
        let mut shims = Vec::new();
        for process in fs::read_dir("/proc")? {
            let process = process?;
            let Ok(pid) = process.file_name().to_string_lossy().parse() else { continue };
            // One that has just ended is none.
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).skip(1).map(String::from_utf8_lossy);
            if words.next().is_some_and(|word| word == "shim")
                && words.any(|word| std::path::Path::new(&*word).starts_with(&data))
            {
                shims.push(pid);
            }
        }
        Ok(shims)
    }

    fn remove(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM)?;
            agent.wait()?;
        }
        let mut down = Command::new(program("decapod")?);
        run(down.args(["down", "--name", &self.name, "--data-dir"]).arg(self.data())).map(drop)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the node was not taken away: {error:?}");
        }
    }
}

/// The words of `decapod token create --print-join-command`, but for the program.
fn join_command(server: &Server) -> Result<Vec<String>> {
    let mut token = Command::new(program("decapod")?);
    token.args(["token", "create", "--print-join-command"]);
    let join = run(token.env("KUBECONFIG", server.data().join("kubeconfig")))?;
    let mut words = join.split_whitespace().map(str::to_owned);
    ensure!(words.next().as_deref() == Some("decapod"), "{join}");
    Ok(words.collect())
}

/// Names in a folder that need not be there.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Pods of the system are more that nobody asks here.
async fn alone(client: &kube::Client) -> kube::Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kube-system");
    sets.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "kube-system");
    let of_a_set = |pod: &Pod| pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet");
    while pods.list(&ListParams::default()).await?.iter().any(of_a_set) {
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}

async fn ready(client: &kube::Client) -> Result<()> {
    let nodes: Api<NodeObject> = Api::all(client.clone());
    loop {
        let node = nodes.get_opt(NAME).await?;
        let conditions = node.and_then(|node| node.status?.conditions).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            return Ok(());
        }
        tokio::time::sleep(STEP).await;
    }
}
