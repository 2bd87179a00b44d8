//! Clusters of several nodes on this machine: their names and addresses, and what can happen to them.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, NAME};
use crate::poll;
use crate::tools::run;

/// A change that is a matter of seconds; a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// A node, as tests see it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its InternalIP.
    pub address: Ipv4Addr,
    /// Whether it is a namespace beside the machine's own node.
    pub further: bool,
}

impl Cluster {
    /// All nodes, the machine's own first, then those of this machine by their numbers.
    ///
    /// # Errors
    /// What kubectl printed.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        let list = self.get(&["nodes"])?;
        let mut nodes = Vec::new();
        for item in list["items"].as_array().into_iter().flatten() {
            let name = item["metadata"]["name"].as_str().context("a node has a name")?.to_owned();
            let addresses = item["status"]["addresses"].as_array().into_iter().flatten();
            let internal =
                addresses.filter(|a| a["type"] == "InternalIP").find_map(|a| a["address"].as_str());
            let address = internal.with_context(|| format!("{name} has no address"))?.parse()?;
            let further = name.starts_with(&format!("{NAME}-"));
            nodes.push(Node { name, address, further });
        }
        nodes.sort_by_key(|node| (node.further, node.address));
        Ok(nodes)
    }

    /// Waits until a node's `Ready` has this status: `True`, `False` or `Unknown`.
    ///
    /// # Errors
    /// The last state.
    pub fn node_becomes(&self, node: &str, status: &str) -> Result<()> {
        poll::until(&format!("{node} to be Ready={status}"), PATIENCE, || {
            let object = self.get(&["node", node])?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == status);
            Ok(if found { Ok(()) } else { Err(object["status"]["conditions"].to_string()) })
        })
    }

    /// What `decapod status` says, ready or not.
    ///
    /// # Errors
    /// That it printed no JSON.
    pub fn status(&self) -> Result<Value> {
        let output = self.here(&["status", "-o", "json"]).output()?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    }

    /// The process of a further node's agent; `None` where none runs.
    ///
    /// # Errors
    /// As [`Cluster::status`].
    pub fn agent(&self, node: &str) -> Result<Option<i32>> {
        let status = self.status()?;
        let mut all = status["processes"].as_array().into_iter().flatten();
        let agent = all.find(|p| p["role"] == "agent" && p["node"] == node);
        Ok(agent.and_then(|p| p["pid"].as_i64()).and_then(|pid| i32::try_from(pid).ok()))
    }

    /// The process of the server.
    ///
    /// # Errors
    /// That none runs.
    pub fn server(&self) -> Result<i32> {
        let status = self.status()?;
        let mut all = status["processes"].as_array().into_iter().flatten();
        let server = all.find(|p| p["role"] == "server").and_then(|p| p["pid"].as_i64());
        Ok(i32::try_from(server.context("no server runs")?)?)
    }

    /// Kills the agent of a further node; its containers run on. `up` starts it again.
    ///
    /// # Errors
    /// That none runs.
    pub fn agent_kill(&self, node: &str) -> Result<()> {
        kill_and_wait(self.agent(node)?.with_context(|| format!("no agent runs on {node}"))?)
    }

    /// Pulls the cable of a further node, or puts it in again. Its own routes stay, as with a real cable.
    ///
    /// # Errors
    /// What `ip` printed.
    pub fn cable(&self, node: &Node, plugged: bool) -> Result<()> {
        ensure!(node.further, "{} is the machine itself", node.name);
        let port = format!("dcl{:08x}", u32::from(node.address));
        let state = if plugged { "up" } else { "down" };
        run(Command::new("ip").args(["link", "set", &port, state])).map(drop)
    }
}

/// Kills a process and waits until it is gone.
///
/// # Errors
/// That it is not there, or does not go.
pub fn kill_and_wait(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    poll::until(&format!("process {pid} to be gone"), PATIENCE, || {
        // One that nobody waits for has no command line any more.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Ok(if command.is_empty() { Ok(()) } else { Err("alive".to_owned()) })
    })
}
