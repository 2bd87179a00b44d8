//! The figures of this machine: starts, memory, pods, CPU per request. `make bench` runs it on a cluster of
//! its own. Figures of one run only compare with others of the same run: machines are noisy.
//!
//! `bench --kubeconfig FILE --pid PID…` measures any API server instead: what its requests cost the processes
//! named.

mod api;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::images;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

const PODS: usize = 30;
const LISTED: usize = 2000;
const WATCHERS: usize = 100;
const CHANGES: usize = 200;

fn main() -> Result<()> {
    if let Some((kubeconfig, pids)) = other(std::env::args().skip(1))? {
        let runtime = tokio::runtime::Runtime::new()?;
        return runtime.block_on(async { api::Target::new(&kubeconfig, pids).await?.measure().await });
    }
    images::archive(&images::BUSYBOX)?;
    let cluster = Cluster::prepare()?;
    let measured = measure(&cluster);
    let down = cluster.down();
    measured?;
    down.map(drop)
}

/// The API server that is to be measured in place of a cluster of our own.
fn other(mut arguments: impl Iterator<Item = String>) -> Result<Option<(PathBuf, Vec<i64>)>> {
    let Some(first) = arguments.next() else { return Ok(None) };
    ensure!(first == "--kubeconfig", "usage: bench [--kubeconfig FILE --pid PID…]");
    let kubeconfig = arguments.next().context("--kubeconfig wants a file")?;
    ensure!(arguments.next().as_deref() == Some("--pid"), "--pid names the processes to measure");
    let pids = arguments.map(|pid| pid.parse()).collect::<Result<Vec<_>, _>>()?;
    ensure!(!pids.is_empty(), "--pid names the processes to measure");
    Ok(Some((kubeconfig.into(), pids)))
}

fn measure(cluster: &Cluster) -> Result<()> {
    let start = Instant::now();
    cluster.up()?;
    say("up, with nothing there, to Ready and DNS", start.elapsed());
    let start = Instant::now();
    cluster.up()?;
    say("up again", start.elapsed());
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
        requests(cluster, &client).await?;
        watches(cluster, &client).await
    })?;
    memory(cluster)
}

fn say(what: &str, took: Duration) {
    println!("{what:55} {:>9.1} ms", took.as_secs_f64() * 1000.0);
}

fn percentiles(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    say(&format!("{what}, p50"), at(0.5));
    say(&format!("{what}, p99"), at(0.99));
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
        println!(
            "{:55} {:>9.1} MiB",
            format!("memory (PSS) of {}", process["role"].as_str().unwrap_or_default()),
            own as f64 / 1024.0
        );
        total += own;
    }
    println!("{:55} {:>9.1} MiB", "memory (PSS) of all processes", total as f64 / 1024.0);
    Ok(())
}

/// In KiB.
fn pss(pid: i64) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|l| l.starts_with("Pss:")).context("no Pss")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
}

/// CPU time that a process has used so far.
fn cpu(pid: i64) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no stat")?.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on Linux.
    Ok(Duration::from_millis(ticks * 10))
}

fn idle(cluster: &Cluster) -> Result<()> {
    let pid = server(cluster)?;
    let (before, seconds) = (cpu(pid)?, 20);
    std::thread::sleep(Duration::from_secs(seconds));
    let share = (cpu(pid)? - before).as_secs_f64() / seconds as f64;
    println!("{:55} {:>9.2} %", "idle CPU of the server, of one core", share * 100.0);
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
    percentiles("pod created -> Running seen by a watch", times);
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

/// CPU of the server process for each request of a kind.
async fn requests(cluster: &Cluster, client: &kube::Client) -> Result<()> {
    let pid = server(cluster)?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let per = |what: &str, before: Duration, n: usize| -> Result<()> {
        let each = (cpu(pid)? - before).as_secs_f64() * 1e6 / n as f64;
        println!("{:55} {each:>9.1} us", format!("CPU per {what}"));
        Ok(())
    };
    let before = cpu(pid)?;
    for i in 0..LISTED {
        // Nobody schedules it: only the API server works.
        let pod = serde_json::from_value(
            json!({"metadata": {"name": format!("listed-{i}"), "labels": {"n": format!("{}", i % 10)}},
            "spec": {"schedulerName": "nobody", "containers": [{"name": "c", "image": "busybox:1", "env": [{"name": "A", "value": "b"}]}]}}),
        )?;
        pods.create(&PostParams::default(), &pod).await?;
    }
    per("create of a pod", before, LISTED)?;
    let before = cpu(pid)?;
    for i in 0..LISTED {
        pods.get(&format!("listed-{i}")).await?;
    }
    per("get", before, LISTED)?;
    let before = cpu(pid)?;
    let lists = 50;
    for _ in 0..lists {
        let request = http::Request::get("/api/v1/namespaces/default/pods").body(Vec::new())?;
        let text = client.request_text(request).await?;
        ensure!(text.len() > LISTED * 500, "a short list: {} bytes", text.len());
    }
    per(&format!("list of {LISTED} pods"), before, lists)?;
    let before = cpu(pid)?;
    for i in 0..LISTED {
        pods.delete(&format!("listed-{i}"), &DeleteParams::default()).await?;
    }
    per("delete", before, LISTED)
}

async fn watches(cluster: &Cluster, client: &kube::Client) -> Result<()> {
    let pid = server(cluster)?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let map = serde_json::from_value(json!({"metadata": {"name": "watched"}, "data": {"n": "0"}}))?;
    let version =
        maps.create(&PostParams::default(), &map).await?.metadata.resource_version.unwrap_or_default();
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let mut events =
            maps.watch(&WatchParams::default().fields("metadata.name=watched"), &version).await?.boxed();
        watchers.push(tokio::spawn(async move {
            for _ in 0..CHANGES {
                events.try_next().await?.context("the watch ended")?;
            }
            Ok::<_, anyhow::Error>(())
        }));
    }
    let before = cpu(pid)?;
    for i in 1..=CHANGES {
        let patch = json!({"data": {"n": i.to_string()}});
        maps.patch("watched", &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    for watcher in watchers {
        watcher.await??;
    }
    let each = (cpu(pid)? - before).as_secs_f64() * 1e6 / (WATCHERS * CHANGES) as f64;
    println!(
        "{:55} {each:>9.1} us",
        format!("CPU per watch delivery ({WATCHERS} watchers, patches included)")
    );
    maps.delete("watched", &DeleteParams::default()).await?;
    Ok(())
}
