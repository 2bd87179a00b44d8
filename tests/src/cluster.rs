//! A real cluster of its own for a test run: its own data, name, ports and addresses, so that it stands
//! beside a cluster that somebody uses.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::images::{self, Recipe};
use crate::poll;
use crate::tools::{program, run};

/// A cluster, reached with kubectl and with our own command line.
#[derive(Debug)]
pub struct Cluster {
    folder: tempfile::TempDir,
    decapod: PathBuf,
    kubectl: PathBuf,
    nodes: u32,
}

/// How the test cluster differs from the default one.
const FLAGS: &[&str] = &[
    "--name",
    "dcptest",
    "--listen",
    "0.0.0.0:26443",
    "--pod-cidr",
    "10.117.0.0/16",
    "--service-cidr",
    "10.118.0.0/16",
    "--kubelet-port",
    "20250",
    // A machine that is fully loaded may be silent for long.
    "--node-monitor-grace-period",
    "30s",
];
/// Its name.
pub const NAME: &str = "dcptest";
/// How long it may take to start on a machine that is busy with other things.
const UP_PATIENCE: &str = "300s";
/// The address of cluster DNS in it.
pub const DNS: &str = "10.118.0.10";

impl Cluster {
    /// Prepares a folder for a cluster of one node; starts nothing.
    ///
    /// # Errors
    /// Which program is missing.
    pub fn prepare() -> Result<Self> {
        Self::of_nodes(1)
    }

    /// The same for several nodes, on this machine.
    ///
    /// # Errors
    /// Which program is missing.
    pub fn of_nodes(nodes: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("dcptest").tempdir()?;
        Ok(Self { folder, decapod: program("decapod")?, kubectl: program("kubectl")?, nodes })
    }

    /// `decapod up`.
    ///
    /// # Errors
    /// What it printed.
    pub fn up(&self) -> Result<String> {
        self.up_with(&["--nodes", &self.nodes.to_string()])
    }

    /// `decapod up` with further flags.
    ///
    /// # Errors
    /// What it printed.
    pub fn up_with(&self, flags: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.decapod);
        command.arg("up").args(FLAGS).args(["--wait", UP_PATIENCE]).arg("--data-dir").arg(self.data());
        run(command.arg("--kubeconfig").arg(self.kubeconfig()).args(flags))
    }

    /// A verb of `decapod` on this machine's cluster, such as `node`.
    pub fn here(&self, arguments: &[&str]) -> Command {
        let mut command = self.decapod(arguments);
        command.args(["--name", NAME, "--data-dir"]).arg(self.data());
        command
    }

    /// `decapod down`.
    ///
    /// # Errors
    /// What it printed.
    pub fn down(&self) -> Result<String> {
        run(&mut self.here(&["down"]))
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A folder for a test's files.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// kubectl on this cluster.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", self.folder.path());
        command
    }

    /// Our own command line on this cluster.
    pub fn decapod(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.decapod);
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", self.folder.path());
        command
    }

    /// kubectl, which has to succeed.
    ///
    /// # Errors
    /// What it printed.
    pub fn k(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.kubectl(arguments))
    }

    /// An object as JSON.
    ///
    /// # Errors
    /// What kubectl printed.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.k(&all)?).context("kubectl printed no JSON")
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// What kubectl printed.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let file = tempfile::NamedTempFile::new_in(self.scratch())?;
        std::fs::write(file.path(), manifest)?;
        self.k(&["apply", "-f", &file.path().display().to_string()])
    }

    /// Imports an image into all nodes.
    ///
    /// # Errors
    /// What could not be made or imported.
    pub fn import(&self, recipe: &Recipe) -> Result<()> {
        let archive = images::archive(recipe)?;
        run(self.here(&["image", "import", "--all-nodes"]).arg(archive)).map(drop)
    }

    /// Makes a namespace for a test, and removes it whatever comes of the test.
    ///
    /// # Errors
    /// Those of the test, and of a namespace that does not go.
    pub fn in_namespace(&self, name: &str, test: impl FnOnce(&str) -> Result<()>) -> Result<()> {
        self.k(&["create", "namespace", name])?;
        let result = test(name);
        if result.is_err() {
            for arguments in [
                &["get", "pods,deployments,replicasets,services,endpointslices", "-o", "wide", "-n", name][..],
                &["get", "events", "-n", name],
            ] {
                eprintln!("{}", self.k(arguments).unwrap_or_else(|e| e.to_string()));
            }
        }
        let removed = self.k(&["delete", "namespace", name, "--timeout=180s"]);
        result.and(removed.map(drop))
    }

    /// Waits until a pod is ready.
    ///
    /// # Errors
    /// The pod's last state.
    pub fn ready(&self, namespace: &str, pod: &str) -> Result<Value> {
        poll::until(&format!("pod {pod} to be ready"), Duration::from_secs(180), || {
            let object = self.get(&["pod", pod, "-n", namespace])?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            Ok(if ready { Ok(object) } else { Err(object["status"].to_string()) })
        })
    }

    /// Runs a command in a pod; returns its output.
    ///
    /// # Errors
    /// What it printed.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let mut all = vec!["exec", "-n", namespace, pod, "--"];
        all.extend(command);
        self.k(&all)
    }
}
