//! The figures of this machine: starts, memory, pods, CPU per request, each beside the mark that it is to
//! keep. `make bench` runs it on a control plane and on a cluster of its own. Figures of one run only compare
//! with others of the same run: machines are noisy.
//!
//! `bench --kubeconfig FILE --pid PID…` measures any API server instead: what its requests cost the processes
//! named. `bench --alone` leaves out the cluster; `--watches`, `--placing`, `--pods` and `--network` measure the deliveries
//! of watches, pods placed on a thousand nodes, a node and its pods, what the network carries, and nothing else.

mod alone;
mod api;
mod figures;
mod floor;
mod h2;
mod network;
mod placing;
mod pods;
mod steps;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::images;
use figures::{cpu, percentiles, pss, say, say_time};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

const PODS: usize = 30;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    floor::measure()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--pods"] => return runtime.block_on(pods::measure()),
        ["--placing"] => return runtime.block_on(placing::measure()),
        ["--network"] => return network::measure(),
        ["--watches"] => return runtime.block_on(alone::deliveries()),
        _ => {}
    }
    let alone = arguments == ["--alone"];
    if !alone && let Some((kubeconfig, pids)) = other(arguments.into_iter())? {
        return runtime.block_on(async {
            let target = api::Target::new(&kubeconfig, pids).await?;
            target.measure().await?;
            target.selector().await
        });
    }
    runtime.block_on(alone::measure())?;
    runtime.block_on(placing::measure())?;
    if alone {
        return Ok(());
    }
    runtime.block_on(pods::measure())?;
    println!("\nA cluster:");
    images::archive(&images::BUSYBOX)?;
    let cluster = Cluster::prepare()?;
    let measured = measure(&cluster);
    let down = cluster.down();
    measured?;
    down?;
    network::measure()
}

/// The API server that is to be measured in place of a cluster of our own.
fn other(mut arguments: impl Iterator<Item = String>) -> Result<Option<(PathBuf, Vec<i64>)>> {
    let Some(first) = arguments.next() else { return Ok(None) };
    ensure!(
        first == "--kubeconfig",
        "usage: bench [--alone | --watches | --placing | --pods | --network | --kubeconfig FILE --pid PID…]"
    );
    let kubeconfig = arguments.next().context("--kubeconfig wants a file")?;
    ensure!(arguments.next().as_deref() == Some("--pid"), "--pid names the processes to measure");
    let pids = arguments.map(|pid| pid.parse()).collect::<Result<Vec<_>, _>>()?;
    ensure!(!pids.is_empty(), "--pid names the processes to measure");
    Ok(Some((kubeconfig.into(), pids)))
}

fn measure(cluster: &Cluster) -> Result<()> {
    let start = Instant::now();
    cluster.up()?;
    say_time("up, with nothing there, to Ready and DNS", start.elapsed());
    let start = Instant::now();
    cluster.up()?;
    say_time("up again", start.elapsed());
    cluster.import(&images::BUSYBOX)?;
    // Memory of an idle cluster: after what a start needs was given back.
    std::thread::sleep(Duration::from_secs(20));
    memory(cluster)?;
    idle(cluster)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let kubeconfig = kube::config::Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        let client = kube::Client::try_from(config)?;
        pods(&client).await?;
        // The same requests where a kubelet and a service proxy watch too.
        api::Target::new(&cluster.kubeconfig(), vec![server(cluster)?]).await?.measure().await
    })?;
    memory(cluster)
}

fn status(cluster: &Cluster) -> Result<Value> {
    let mut command = cluster.decapod(&["status", "-o", "json", "--name", "dcptest", "--data-dir"]);
    Ok(serde_json::from_str(&decapod_tests::tools::run(command.arg(cluster.data()))?)?)
}

fn server(cluster: &Cluster) -> Result<i64> {
    let status = status(cluster)?;
    let all = status["processes"].as_array().context("no processes")?;
    all.iter().find(|p| p["role"] == "server").and_then(|p| p["pid"].as_i64()).context("no server")
}

/// The proportional set size of server, shims, and what runs in system pods.
fn memory(cluster: &Cluster) -> Result<()> {
    let mut total = 0;
    for process in status(cluster)?["processes"].as_array().context("no processes")? {
        let pid = process["pid"].as_i64().context("no process id")?;
        let mut own = pss(pid)?;
        if process["role"] == "shim" {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            for child in children.split_whitespace() {
                own += pss(child.parse()?)?;
            }
        }
        let role = process["role"].as_str().unwrap_or_default();
        say(&format!("memory (PSS) of {role}"), own as f64 / 1024.0, "MiB", None);
        total += own;
    }
    say("memory (PSS) of all processes", total as f64 / 1024.0, "MiB", None);
    Ok(())
}

fn idle(cluster: &Cluster) -> Result<()> {
    let pid = server(cluster)?;
    let (before, seconds) = (cpu(pid)?, 20);
    std::thread::sleep(Duration::from_secs(seconds));
    let share = (cpu(pid)? - before).as_secs_f64() / seconds as f64;
    say("idle CPU of the server, of one core", share * 100.0, "%", None);
    Ok(())
}

/// From the request that creates a pod to the watch event that says it runs.
async fn pods(client: &kube::Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut times = Vec::new();
    for i in 0..PODS {
        let name = format!("bench-{i}");
        let pod = serde_json::from_value(
            json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"]}]}}),
        )?;
        let version =
            pods.list(&ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
        let mut events = pods
            .watch(&WatchParams::default().fields(&format!("metadata.name={name}")), &version)
            .await?
            .boxed();
        let start = Instant::now();
        pods.create(&PostParams::default(), &pod).await?;
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Modified(pod) = event
                && pod.status.and_then(|s| s.phase).as_deref() == Some("Running")
            {
                break;
            }
        }
        times.push(start.elapsed());
    }
    percentiles("pod created -> Running seen by a watch", times, None, None);
    for i in 0..PODS {
        pods.delete(&format!("bench-{i}"), &DeleteParams::default().grace_period(0)).await?;
    }
    loop {
        if pods.list(&ListParams::default()).await?.items.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
