//! `decapod status`: components, nodes, processes, memory.

use std::path::Path;

use clap::{Args, ValueEnum};
use decapod_network::Netns;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::dns_probe;
use super::image::size;
use super::lock::Lock;
use super::nodes::Roster;
use super::settings::{Place, Which};
use super::{kubeconfig, renewal};
use crate::failure::{Failure, chain};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    which: Which,
    /// The form of the output.
    #[arg(short, long)]
    output: Option<Output>,
}

impl Status {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        let place = self.which.place()?;
        let report = report(&place).await?;
        match self.output {
            Some(Output::Json) => println!("{}", serde_json::to_string_pretty(&report)?),
            None => print(&report),
        }
        if report["ready"] == true {
            return Ok(());
        }
        Err(Failure::new(format!("the cluster \"{}\" is not ready", place.name()))
            .hint(format!("`decapod up` starts it; the server's log is {}", place.log().display())))
    }
}

async fn report(place: &Place) -> Result<Value, Failure> {
    let server = Lock::holder(place)?;
    let processes = processes(place, server)?;
    let memory: u64 = processes.iter().filter_map(|p| p["memoryBytes"].as_u64()).sum();
    let (api, nodes, pods) = match cluster(place).await {
        Ok((nodes, pods)) => ("ready".to_owned(), nodes, pods),
        Err(why) => (why, Vec::new(), 0),
    };
    let dns = match place.load()? {
        Some(s) if server.is_some() => dns_probe::answers(&Netns::Own, s.dns(), &s.cluster_domain).await,
        _ => false,
    };
    let ready = api == "ready" && dns && !nodes.is_empty() && nodes.iter().all(|n| n["ready"] == true);
    Ok(json!({
        "name": place.name(), "dataDir": place.data(), "kubeconfig": place.kubeconfig(), "ready": ready,
        "api": api, "dns": if dns { "answers" } else { "does not answer" },
        "authorityEnds": authority_ends(place)?.map(|ends| ends.to_string()),
        "nodes": nodes, "pods": pods, "processes": processes, "memoryBytes": memory,
    }))
}

/// When the certificate authority that the kubeconfig names ends; `None` where there is none yet.
fn authority_ends(place: &Place) -> Result<Option<Timestamp>, Failure> {
    let Some(config) = kubeconfig::read(&place.kubeconfig())? else { return Ok(None) };
    Ok(kubeconfig::authority(&config).and_then(|pem| decapod_apiserver::pki::expiry(&pem)))
}

async fn cluster(place: &Place) -> Result<(Vec<Value>, usize), String> {
    let client =
        decapod_client::transport::from_kubeconfig(&place.kubeconfig()).await.map_err(|e| chain(&e))?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.map_err(|e| chain(&e))?;
    let pods = Api::<Pod>::all(client).list(&ListParams::default()).await.map_err(|e| chain(&e))?;
    let rows = nodes.items.iter().map(|node| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == "Ready");
        json!({
            "name": node.metadata.name, "ready": ready.is_some_and(|c| c.status == "True"),
            "message": ready.and_then(|c| c.message.clone()),
        })
    });
    Ok((rows.collect(), pods.items.len()))
}

/// The server, the agents of further nodes and the shims of the pods, with the memory that each holds for itself and its share of the rest (PSS).
fn processes(place: &Place, server: Option<i32>) -> Result<Vec<Value>, Failure> {
    let mut rows = Vec::new();
    rows.extend(server.map(|pid| json!({"role": "server", "pid": pid, "memoryBytes": pss(pid)})));
    for node in Roster::load(place)?.map(|roster| roster.nodes(place)).unwrap_or_default() {
        let agent = Lock::holder(&node.place)?;
        rows.extend(
            agent.map(|pid| json!({"role": "agent", "node": node.name, "pid": pid, "memoryBytes": pss(pid)})),
        );
    }
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|b| *b == 0).collect();
        let ours = words
            .iter()
            .any(|w| Path::new(std::str::from_utf8(w).unwrap_or_default()).starts_with(place.data()));
        if words.get(1) == Some(&b"shim".as_slice()) && ours {
            rows.push(json!({"role": "shim", "pid": pid, "memoryBytes": pss(pid)}));
        }
    }
    Ok(rows)
}

fn pss(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|l| l.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn print(report: &Value) {
    let text = |key: &str| report[key].as_str().unwrap_or_default();
    println!("{:12} {} (data in {})", "cluster", text("name"), text("dataDir"));
    println!("{:12} {}", "api", text("api"));
    println!("{:12} {}", "dns", text("dns"));
    if let Ok(ends) = text("authorityEnds").parse::<Timestamp>() {
        let warning = renewal::warning(ends, Timestamp::now());
        let line = warning.unwrap_or_else(|| format!("ends on {}", ends.strftime("%Y-%m-%d")));
        println!("{:12} {line}", "authority");
    }
    for node in report["nodes"].as_array().into_iter().flatten() {
        let state = if node["ready"] == true { "Ready" } else { "NotReady" };
        println!(
            "{:12} {} {state}: {}",
            "node",
            node["name"].as_str().unwrap_or_default(),
            node["message"].as_str().unwrap_or_default()
        );
    }
    println!("{:12} {}", "pods", report["pods"]);
    for process in report["processes"].as_array().into_iter().flatten() {
        let memory = size(process["memoryBytes"].as_u64().unwrap_or_default());
        let (role, node) = (process["role"].as_str().unwrap_or_default(), process["node"].as_str());
        let of = node.map(|node| format!(" (node {node})")).unwrap_or_default();
        println!("{role:12} {} {memory}{of}", process["pid"]);
    }
    println!("{:12} {}", "memory", size(report["memoryBytes"].as_u64().unwrap_or_default()));
}
