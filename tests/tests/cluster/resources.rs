//! What nodes and pods use, as people see it.

use std::time::Duration;

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;

use crate::healing::pod;

const PATIENCE: Duration = Duration::from_secs(180);

/// `kubectl top`, and the APIs and metrics below it.
pub(crate) fn what_is_used_is_shown(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("used", |ns| {
        pod(
            cluster,
            ns,
            "busy",
            "command: [sh, -c, 'while true; do :; done'], resources: {limits: {cpu: 100m}}",
        )?;
        pod(cluster, ns, "idle", "command: [sleep, '3600']")?;
        cluster.ready(ns, "busy")?;
        cluster.ready(ns, "idle")?;
        // The first figures of a new pod are there when its node was asked once more.
        let top = |arguments: &[&str], start: &str| {
            let all = [&["top"], arguments].concat();
            poll::text(
                "figures of both pods",
                PATIENCE,
                || Ok(cluster.k(&all).unwrap_or_else(|error| format!("{error:#}"))),
                |text| text.contains("busy") && text.contains("idle") && text.starts_with(start),
            )
        };
        top(&["pods", "-n", ns, "--sort-by=cpu", "--no-headers"], "busy ")?;
        top(&["pods", "-n", ns, "--containers"], "POD ")?;
        top(&["pods", "-A"], "NAMESPACE ")?;
        let nodes = cluster.k(&["top", "nodes"])?;
        ensure!(nodes.contains("CPU(cores)") && nodes.lines().count() == 2, "{nodes}");
        ensure!(nodes.lines().nth(1).is_some_and(|line| line.matches('%').count() == 2), "{nodes}");
        let table = cluster.k(&["get", "pods.metrics.k8s.io", "-n", ns])?;
        ensure!(table.starts_with("NAME") && table.contains("WINDOW"), "{table}");
        let name = cluster.k(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
        let metrics =
            cluster.k(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/metrics/cadvisor", name.trim())])?;
        let network = "container_network_receive_bytes_total{container=\"\"";
        ensure!(
            metrics.lines().any(|line| line.starts_with(network) && line.contains("pod=\"busy\"")),
            "no network of the pod in {metrics}"
        );
        Ok(())
    })
}
