//! A node of its own: a control plane in one process and an agent in another, so that what the agent takes is told
//! apart from what the API server does.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::images;
use decapod_tests::server::Server;
use decapod_tests::tools::{program, run};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Api, DeleteParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How the node differs from that of a cluster that somebody uses.
const NETWORK: [&str; 4] = ["--pod-cidr", "10.254.0.0/16", "--service-cidr", "10.209.0.0/16"];
const KUBELET_PORT: &str = "37278";
/// A node is ready within seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(100);

/// Control plane and agent. Dropping it takes both away, with the pods.
pub(crate) struct Node {
    server: Server,
    agent: Option<Child>,
    folder: tempfile::TempDir,
    name: String,
}

impl Node {
    pub(crate) async fn start() -> Result<Self> {
        let mut server = Server::prepare("dcpbench", NETWORK.map(str::to_owned).to_vec())?;
        server.start().await?;
        let folder = tempfile::Builder::new().prefix("dcpbench").tempdir()?;
        let name = format!("dcpbench-node-{}", std::process::id());
        let mut node = Self { server, agent: None, folder, name };
        node.join()?;
        let client = node.client().await?;
        tokio::time::timeout(PATIENCE, ready(&client)).await.context("the node does not get ready")??;
        // Cluster DNS is a pod more that nobody asks here.
        Api::<DaemonSet>::namespaced(client, "kube-system")
            .delete("kube-dns", &DeleteParams::default())
            .await?;
        let mut import = Command::new(program("decapod")?);
        import.args(["image", "import", "--name", &node.name, "--data-dir"]).arg(node.data());
        run(import.arg(images::archive(&images::BUSYBOX)?))?;
        Ok(node)
    }

    fn join(&mut self) -> Result<()> {
        let mut token = Command::new(program("decapod")?);
        token.args(["token", "create", "--print-join-command"]);
        let join = run(token.env("KUBECONFIG", self.server.data().join("kubeconfig")))?;
        let mut words = join.split_whitespace();
        ensure!(words.next() == Some("decapod"), "{join}");
        let log = File::create(self.folder.path().join("agent.log"))?;
        let mut agent = Command::new(program("decapod")?);
        agent.args(words).args(["--name", &self.name, "--data-dir"]).arg(self.data());
        agent.args(["--node-name", "bench", "--kubelet-port", KUBELET_PORT]);
        agent.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.agent = Some(agent.spawn().context("starting the agent")?);
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) async fn client(&self) -> Result<kube::Client> {
        self.server.client().await
    }

    /// The agent's process.
    pub(crate) fn agent(&self) -> Result<i64> {
        Ok(self.agent.as_ref().context("the agent does not run")?.id().into())
    }

    /// The processes of the node's shims.
    pub(crate) fn shims(&self) -> Result<Vec<i64>> {
        let data = self.data();
        let mut shims = Vec::new();
        for process in std::fs::read_dir("/proc")? {
            let process = process?;
            let Ok(pid) = process.file_name().to_string_lossy().parse() else { continue };
            // One that has just ended is none.
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
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

async fn ready(client: &kube::Client) -> Result<()> {
    let nodes: Api<NodeObject> = Api::all(client.clone());
    loop {
        let node = nodes.get_opt("bench").await?;
        let conditions = node.and_then(|node| node.status?.conditions).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            return Ok(());
        }
        tokio::time::sleep(STEP).await;
    }
}
