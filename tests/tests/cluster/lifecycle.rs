//! `up`, `status`, and what they say when they cannot.

use std::net::TcpListener;
use std::process::Command;

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::images;
use decapod_tests::tools::{fails, run};
use serde_json::Value;

fn at<'a>(cluster: &Cluster, command: &'a mut Command) -> &'a mut Command {
    command.args(["--name", "dcptest", "--data-dir"]).arg(cluster.data())
}

/// The status as JSON.
pub(crate) fn status(cluster: &Cluster) -> Result<Value> {
    Ok(serde_json::from_str(&run(at(cluster, &mut cluster.decapod(&["status", "-o", "json"])))?)?)
}

/// The process ids of a role, `server` or `shim`.
pub(crate) fn processes(cluster: &Cluster, role: &str) -> Result<Vec<i64>> {
    let status = status(cluster)?;
    let all = status["processes"].as_array().cloned().unwrap_or_default();
    Ok(all.iter().filter(|p| p["role"] == role).filter_map(|p| p["pid"].as_i64()).collect())
}

pub(crate) fn no_cluster_is_said_plainly(cluster: &Cluster) -> Result<()> {
    let text = fails(at(cluster, &mut cluster.decapod(&["status"])))?;
    ensure!(text.contains("is not ready") && text.contains("decapod up"), "{text}");
    let text = fails(&mut cluster.decapod(&["get", "pods"]))?;
    ensure!(text.contains("kubeconfig") && text.contains("hint:"), "{text}");
    Ok(())
}

pub(crate) fn a_taken_port_is_said_plainly(cluster: &Cluster) -> Result<()> {
    let taken = TcpListener::bind("0.0.0.0:0")?;
    let listen = taken.local_addr()?.to_string();
    let text = fails(at(cluster, &mut cluster.decapod(&["up", "--listen", &listen])))?;
    ensure!(text.contains(&format!("cannot listen on {listen}")) && text.contains("--listen"), "{text}");
    Ok(())
}

pub(crate) fn up_makes_a_ready_node_and_dns(cluster: &Cluster) -> Result<()> {
    let text = cluster.up()?;
    ensure!(text.contains("ready after"), "{text}");
    println!("{}", text.lines().last().unwrap_or_default());
    let nodes = cluster.k(&["get", "nodes", "--no-headers"])?;
    ensure!(nodes.lines().count() == 1 && nodes.contains(" Ready "), "{nodes}");
    let status = status(cluster)?;
    ensure!(status["ready"] == true && status["dns"] == "answers", "{status:#}");
    ensure!(cluster.k(&["get", "--raw", "/readyz"])? == "ok");
    let node = ["auth", "can-i", "list", "endpointslices", "--as=system:node:x", "--as-group=system:nodes"];
    ensure!(cluster.k(&node)?.trim() == "yes", "a node cannot run the service proxy");
    for recipe in [&images::BUSYBOX, &images::NGINX, &images::NGINX_2] {
        cluster.import(recipe)?;
    }
    let list = run(at(cluster, &mut cluster.decapod(&["image", "ls"])))?;
    ensure!(list.contains("busybox:1") && list.contains("nginx:2"), "{list}");
    Ok(())
}

pub(crate) fn up_again_restarts_nothing(cluster: &Cluster) -> Result<()> {
    let before = (processes(cluster, "server")?, processes(cluster, "shim")?);
    cluster.up()?;
    let after = (processes(cluster, "server")?, processes(cluster, "shim")?);
    ensure!(before == after && before.0.len() == 1, "before {before:?}, after {after:?}");
    Ok(())
}

pub(crate) fn other_settings_are_refused(cluster: &Cluster) -> Result<()> {
    let text = fails(at(cluster, &mut cluster.decapod(&["up", "--listen", "0.0.0.0:26555"])))?;
    ensure!(text.contains("runs with other settings") && text.contains("decapod down"), "{text}");
    Ok(())
}
