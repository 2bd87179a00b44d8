//! A database keeps its data through the loss of its node, and where a snapshot is restored elsewhere.
//!
//! Its volume is a folder of one node: the pod waits for that node, and comes back with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::images;
use decapod_tests::poll;
use decapod_tests::redis::{self, Redis};
use decapod_tests::tools::{program, run};
use serde_json::{Value, json};

/// Longer than a node may be silent and its pods are tolerated, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(300);

fn address(pod: &Value) -> Result<String> {
    Ok(pod["status"]["podIP"].as_str().context("no address")?.to_owned())
}

pub(crate) fn redis_waits_for_its_node(cluster: &Cluster) -> Result<()> {
    cluster.import(&images::REDIS)?;
    cluster.in_namespace("lost-redis", |ns| {
        let nodes = cluster.nodes()?;
        let node = &nodes[1];
        let mut list = redis::set(ns, "Delete");
        let template = &mut list["items"][1]["spec"]["template"]["spec"];
        template["terminationGracePeriodSeconds"] = 5.into();
        // Only its first pod is told where to go: the volume says it then.
        template["nodeSelector"] = json!({"kubernetes.io/hostname": node.name});
        template["tolerations"] = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": 1}]);
        cluster.apply(&list.to_string())?;
        let pod = || cluster.get(&["pod", "redis-0", "-n", ns]);
        let of = || Redis::of("redis-0", || address(&pod()?));
        of()?.fill()?;
        let before = cluster.ready(ns, "redis-0")?;
        let result = lost_and_back(cluster, ns, &node.name, &before, &of);
        cluster.up()?;
        cluster.node_becomes(&node.name, "True")?;
        result
    })
}

fn lost_and_back(
    cluster: &Cluster,
    ns: &str,
    node: &str,
    before: &Value,
    of: &dyn Fn() -> Result<Redis>,
) -> Result<()> {
    // The pod stays as it was made. The next one is told nothing of a node, and outlasts what its node still has of having
    // been lost.
    let anywhere = r#"[{"op": "replace", "path": "/spec/updateStrategy", "value": {"type": "OnDelete"}},
        {"op": "replace", "path": "/spec/template/spec/tolerations/0/tolerationSeconds", "value": 600},
        {"op": "remove", "path": "/spec/template/spec/nodeSelector"}]"#;
    cluster.k(&["patch", "sts", "redis", "-n", ns, "--type=json", "-p", anywhere])?;
    cluster.agent_kill(node)?;
    cluster.node_becomes(node, "Unknown")?;
    poll::until("the pod to be wanted gone", PATIENCE, || {
        let pod = cluster.get(&["pod", "redis-0", "-n", ns])?;
        ensure!(pod["metadata"]["uid"] == before["metadata"]["uid"], "it was replaced: {pod:#}");
        Ok(if pod["metadata"]["deletionTimestamp"].is_null() {
            Err(pod["status"].to_string())
        } else {
            Ok(())
        })
    })?;
    // The container runs on, and what it is told now counts, too.
    ensure!(of()?.ask("SET late yes")? == "+OK");
    cluster.up()?;
    let after = poll::until("the pod to be made anew", PATIENCE, || {
        let pod = cluster.get(&["pod", "redis-0", "-n", ns]);
        let anew = |pod: &Value| pod["metadata"]["uid"] != before["metadata"]["uid"];
        Ok(match pod {
            Ok(pod) if anew(&pod) => Ok(pod),
            other => Err(format!("{other:?}")),
        })
    })?;
    ensure!(after["spec"]["nodeSelector"].is_null(), "{}", after["spec"]);
    let after = cluster.ready(ns, "redis-0")?;
    ensure!(after["spec"]["nodeName"] == node, "its volume is on {node}: {}", after["spec"]["nodeName"]);
    let mut redis = of()?;
    redis.is_whole("after its node was lost")?;
    ensure!(redis.ask("GET late")? == "yes");
    Ok(())
}

/// A cluster beside the one of the other tests.
struct Moved<'a> {
    scratch: &'a Path,
    name: &'static str,
}

impl Moved<'_> {
    const RANGES: [&'static str; 4] = [
        "--listen=0.0.0.0:26543",
        "--kubelet-port=20350",
        "--pod-cidr=10.123.0.0/16",
        "--service-cidr=10.124.0.0/16",
    ];

    fn data(&self) -> PathBuf {
        self.scratch.join(self.name)
    }

    fn decapod(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(program("decapod")?);
        command.args(words).args(["--name", self.name, "--data-dir"]).arg(self.data());
        run(command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.scratch))
    }

    fn kubeconfig(&self) -> PathBuf {
        self.scratch.join(format!("{}.kubeconfig", self.name))
    }

    fn up(&self) -> Result<()> {
        self.decapod(&[&["up", "--wait=300s"], &Self::RANGES[..]].concat())?;
        let archive = images::archive(&images::REDIS)?;
        self.decapod(&["image", "import", &archive.display().to_string()]).map(drop)
    }

    fn k(&self, words: &[&str]) -> Result<String> {
        run(Command::new(program("kubectl")?).args(words).env("KUBECONFIG", self.kubeconfig()))
    }

    fn redis(&self) -> Result<Redis> {
        Redis::of("redis-0", || {
            let pod = self.k(&["get", "pod", "redis-0", "-o", "json"])?;
            let pod: Value = serde_json::from_str(&pod)?;
            let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
            ensure!(ready, "{}", pod["status"]);
            address(&pod)
        })
    }

    fn claim(&self) -> Result<String> {
        self.k(&[
            "get",
            "pvc",
            "data-redis-0",
            "-o",
            "jsonpath={.metadata.uid} {.spec.volumeName} {.status.phase}",
        ])
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.decapod(&["down"]) {
            eprintln!("the cluster {} was not taken away: {error:?}", self.name);
        }
    }
}

pub(crate) fn redis_moves_with_a_snapshot(cluster: &Cluster) -> Result<()> {
    let scratch = cluster.scratch();
    let (here, there) = (Moved { scratch, name: "dcphere" }, Moved { scratch, name: "dcpthere" });
    here.up()?;
    let manifest = scratch.join("redis.json");
    std::fs::write(&manifest, redis::set("default", "Retain").to_string())?;
    here.k(&["apply", "-f", &manifest.display().to_string()])?;
    here.redis()?.fill()?;
    let claim = here.claim()?;
    ensure!(claim.ends_with(" Bound"), "{claim}");
    let snapshot = scratch.join("redis.snapshot").display().to_string();
    here.decapod(&["snapshot", "save", &snapshot])?;
    // What the database is told after it is in its volume all the same: a snapshot is of the objects.
    ensure!(here.redis()?.ask("SET late yes")? == "+OK");
    here.decapod(&["down", "--keep-data"])?;
    // Elsewhere: another name and data folder, with the keys of the first. Its volumes stay where they are.
    std::fs::create_dir_all(there.data())?;
    run(Command::new("cp").arg("-a").arg(here.data().join("pki")).arg(there.data()))?;
    there.decapod(&["snapshot", "restore", &snapshot])?;
    there.up()?;
    let mut redis = there.redis()?;
    redis.is_whole("after the cluster moved")?;
    ensure!(redis.ask("GET late")? == "yes");
    ensure!(there.claim()? == claim, "before {claim}, now {}", there.claim()?);
    Ok(())
}
