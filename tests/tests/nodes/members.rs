//! Nodes come and go.

use std::time::Duration;

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::tools::{fails, run};
use decapod_tests::{images, poll};

const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) fn up_makes_three_ready_nodes(cluster: &Cluster) -> Result<()> {
    let text = cluster.up()?;
    println!("{}", text.lines().last().unwrap_or_default());
    let nodes = cluster.nodes()?;
    ensure!(nodes.len() == 3 && !nodes[0].further && nodes[1].further && nodes[2].further, "{nodes:?}");
    let ready = cluster.k(&["get", "nodes", "--no-headers"])?;
    ensure!(ready.lines().all(|line| line.contains(" Ready ")), "{ready}");
    let mut shares = Vec::new();
    for node in &nodes {
        let object = cluster.get(&["node", &node.name])?;
        shares.push(object["spec"]["podCIDR"].to_string());
        ensure!(object["metadata"]["labels"]["kubernetes.io/hostname"] == node.name.as_str(), "{object:#}");
    }
    shares.sort();
    shares.dedup();
    ensure!(shares.len() == 3, "{shares:?}");
    let status = cluster.status()?;
    ensure!(status["ready"] == true, "{status:#}");
    let agents = (cluster.agent(&nodes[1].name)?, cluster.agent(&nodes[2].name)?);
    ensure!(agents.0.is_some() && agents.1.is_some() && agents.0 != agents.1, "{status:#}");
    // Once more: nothing is started anew.
    cluster.up()?;
    ensure!(agents == (cluster.agent(&nodes[1].name)?, cluster.agent(&nodes[2].name)?));
    for recipe in [&images::BUSYBOX, &images::NGINX] {
        cluster.import(recipe)?;
    }
    Ok(())
}

pub(crate) fn a_node_is_added_and_removed(cluster: &Cluster) -> Result<()> {
    let name = "dcptest-extra";
    run(&mut cluster.here(&["node", "add", name, "--wait", "300s"]))?;
    let added = cluster.nodes()?;
    ensure!(added.len() == 4, "{added:?}");
    let again = fails(&mut cluster.here(&["node", "add", name]))?;
    ensure!(again.contains(&format!("there is a node \"{name}\" already")), "{again}");
    cluster.import(&images::BUSYBOX)?;
    cluster.in_namespace("members", |ns| {
        cluster.apply(&format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: moving, namespace: {ns}}}, spec: {{replicas: 1,
              selector: {{matchLabels: {{app: moving}}}}, template: {{metadata: {{labels: {{app: moving}}}}, spec: {{
                terminationGracePeriodSeconds: 0,
                affinity: {{nodeAffinity: {{preferredDuringSchedulingIgnoredDuringExecution: [{{weight: 100, preference: {{
                  matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{name}]}}]}}}}]}}}},
                containers: [{{name: c, image: 'busybox:1', command: [sleep, '3600']}}]}}}}}}}}"
        ))?;
        cluster.k(&["rollout", "status", "deployment/moving", "-n", ns, "--timeout=300s"])?;
        let places = || {
            cluster.k(&["get", "pods", "-n", ns, "-o", "jsonpath={.items[*].spec.nodeName}"])
        };
        let before = places()?;
        let removed = run(&mut cluster.here(&["node", "remove", name, "--wait", "300s"]))?;
        ensure!(removed.contains(&format!("node {name} is removed")), "{removed}");
        cluster.k(&["rollout", "status", "deployment/moving", "-n", ns, "--timeout=300s"])?;
        poll::text("the pod to be elsewhere", PATIENCE, places, |now| !now.is_empty() && !now.contains(name))?;
        println!("the pod was on {before}");
        Ok(())
    })?;
    ensure!(cluster.nodes()?.len() == 3);
    ensure!(!std::path::Path::new("/run/netns").join(name).exists());
    ensure!(!cluster.data().join("nodes").join(name).exists());
    let own = &cluster.nodes()?[0].name;
    let refused = fails(&mut cluster.here(&["node", "remove", own]))?;
    ensure!(refused.contains("decapod down"), "{refused}");
    // The other way to say so.
    cluster.up_with(&["--nodes", "4"])?;
    ensure!(cluster.nodes()?.len() == 4);
    cluster.up()?;
    ensure!(cluster.nodes()?.len() == 3);
    Ok(())
}
