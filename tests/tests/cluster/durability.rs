//! Every process may be killed at any moment: containers run on, what was acknowledged is there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::application;
use crate::lifecycle::processes;

/// The processes of all containers: children of the shims, with their start times.
fn containers(cluster: &Cluster) -> Result<BTreeMap<i64, String>> {
    let mut found = BTreeMap::new();
    for shim in processes(cluster, "shim")? {
        let tasks = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
        for child in tasks.split_whitespace() {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat"))?;
            let start =
                stat.rsplit(')').next().and_then(|s| s.split_whitespace().nth(19)).unwrap_or_default();
            found.insert(child.parse()?, start.to_owned());
        }
    }
    Ok(found)
}

fn kill_server(cluster: &Cluster) -> Result<()> {
    let server = *processes(cluster, "server")?.first().context("no server runs")?;
    kill(Pid::from_raw(i32::try_from(server)?), Signal::SIGKILL)?;
    poll::until("the server to be gone", Duration::from_secs(60), || {
        Ok(if std::path::Path::new(&format!("/proc/{server}/cmdline")).exists() {
            Err("alive".to_owned())
        } else {
            Ok(())
        })
    })
}

pub(crate) fn containers_outlive_the_server(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("outlive", |ns| {
        application::sample(cluster, ns)?;
        let before = containers(cluster)?;
        ensure!(before.len() >= 4, "too few containers: {before:?}");
        let objects = cluster.k(&["get", "all,configmaps,secrets", "-n", ns, "-o", "name"])?;
        let service = cluster.get(&["service", "web", "-n", ns])?;
        let address = format!("{}:80", service["spec"]["clusterIP"].as_str().context("no clusterIP")?);
        kill_server(cluster)?;
        // The data path and the containers need no server.
        application::http_get(&address, "/")?;
        cluster.up()?;
        ensure!(
            cluster.k(&["get", "all,configmaps,secrets", "-n", ns, "-o", "name"])? == objects,
            "objects differ"
        );
        ensure!(containers(cluster)? == before, "before {before:?}, after {:?}", containers(cluster)?);
        application::http_get(&address, "/")?;
        // And it converges again.
        cluster.k(&["scale", "deployment/web", "--replicas=4", "-n", ns])?;
        cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=60s"])?;
        let pods = cluster.get(&["pods", "-n", ns, "-l", "app=web"])?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 0, "{}", pod["status"]);
        }
        ensure!(
            before.iter().all(|p| containers(cluster).is_ok_and(|c| c.contains_key(p.0))),
            "a container was restarted"
        );
        Ok(())
    })
}

pub(crate) fn repeated_kills_lose_nothing_acknowledged(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("kills", |ns| {
        let mut acknowledged = Vec::new();
        for round in 0..5 {
            for i in 0..10 {
                let name = format!("c-{round}-{i}");
                cluster.k(&[
                    "create",
                    "configmap",
                    &name,
                    "-n",
                    ns,
                    &format!("--from-literal=round={round}"),
                ])?;
                acknowledged.push(name);
            }
            kill_server(cluster)?;
            cluster.up()?;
            let list = cluster.k(&["get", "configmaps", "-n", ns, "-o", "name"])?;
            for name in &acknowledged {
                ensure!(list.contains(&format!("configmap/{name}\n")), "{name} is gone after round {round}");
            }
        }
        Ok(())
    })
}
