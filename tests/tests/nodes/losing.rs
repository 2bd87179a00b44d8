//! Agents and the server are killed; containers run on, and are taken over again.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::nodes::kill_and_wait;
use serde_json::Value;

use crate::reaching;

/// When each container of the namespace started, and how often it was restarted.
fn containers(cluster: &Cluster, ns: &str) -> Result<BTreeMap<String, Value>> {
    let pods = cluster.get(&["pods", "-n", ns])?;
    let one = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned();
        let status = &pod["status"]["containerStatuses"][0];
        Ok((name, serde_json::json!([status["state"]["running"]["startedAt"], status["restartCount"]])))
    };
    pods["items"].as_array().into_iter().flatten().map(one).collect()
}

pub(crate) fn containers_outlive_agents_and_server(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("losing", |ns| {
        let nodes = cluster.nodes()?;
        reaching::everywhere(cluster, ns, &nodes)?;
        let before = containers(cluster, ns)?;
        ensure!(before.len() == 6 && before.values().all(|c| c[0].is_string() && c[1] == 0), "{before:?}");
        for node in nodes.iter().filter(|node| node.further) {
            cluster.agent_kill(&node.name)?;
        }
        kill_and_wait(cluster.server()?)?;
        let status = cluster.status()?;
        let running =
            status["processes"].as_array().into_iter().flatten().filter(|p| p["role"] == "shim").count();
        ensure!(running >= 6, "{status:#}");
        cluster.up()?;
        for node in &nodes {
            cluster.node_becomes(&node.name, "True")?;
        }
        for pod in before.keys() {
            cluster.ready(ns, pod)?;
        }
        let after = containers(cluster, ns)?;
        ensure!(after == before, "before {before:?}, after {after:?}");
        // They are in the agents' hands again.
        for number in 0..nodes.len() {
            ensure!(
                cluster.exec(ns, &format!("web-{number}"), &["hostname"])?.trim() == format!("web-{number}")
            );
        }
        Ok(())
    })
}
