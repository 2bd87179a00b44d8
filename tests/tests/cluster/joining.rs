//! A second machine joins by a token and the hash of the cluster's authority: a network namespace with a link to the first
//! one, and an agent of its own in it.

use std::time::Duration;

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::images;
use decapod_tests::machine::{Machine, Spec};
use decapod_tests::poll;
use decapod_tests::tools::run;
use serde_json::json;

/// The machine; the addresses are in a range that no other test uses.
const MACHINE: Spec = Spec { name: "dcpjoin", node: NODE, here: "10.119.255.1", there: "10.119.255.2" };
const NODE: &str = "joined";
/// A node is ready within seconds; a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until the node is ready.
fn until_ready(cluster: &Cluster, machine: &Machine) -> Result<()> {
    poll::until("the node to be ready", PATIENCE, || {
        let path = "{.status.conditions[?(@.type==\"Ready\")].status}";
        let told = cluster.k(&["get", "node", NODE, "-o", &format!("jsonpath={path}")]);
        Ok(match told {
            Ok(status) if status == "True" => Ok(()),
            other => Err(format!("{other:?}; {}", machine.log()?)),
        })
    })
}

pub(crate) fn a_second_node_joins_by_token_and_hash(cluster: &Cluster) -> Result<()> {
    let mut machine = Machine::new(MACHINE, cluster.scratch())?;
    let result = joins(cluster, &mut machine);
    if result.is_err() {
        eprintln!("{}", machine.log().unwrap_or_default());
    }
    drop(machine);
    let gone = cluster.k(&["delete", "node", NODE, "--ignore-not-found"]);
    result.and(gone.map(drop))
}

fn joins(cluster: &Cluster, machine: &mut Machine) -> Result<()> {
    let join = run(&mut cluster.decapod(&["token", "create", "--print-join-command"]))?;
    let join: Vec<&str> = join.split_whitespace().collect();
    ensure!(join[..2] == ["decapod", "agent"] && join[4] == "--token", "{join:?}");
    ensure!(join[8..] == ["--pod-cidr", "10.117.0.0/16", "--service-cidr", "10.118.0.0/16"], "{join:?}");
    machine.start(&join[1..])?;
    until_ready(cluster, machine)?;
    machine.import(&images::BUSYBOX)?;
    let result = cluster.in_namespace("joining", |ns| {
        // It stays, however long the agent takes to start again.
        let overrides = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": NODE},
            "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0}})
        .to_string();
        let pod = ["run", "p", "-n", ns, "--image=busybox:1", "--overrides", &overrides, "--command", "--"];
        let shell = ["sh", "-c", "echo from afar; exec sleep 3600"];
        cluster.k(&[&pod[..], &shell].concat())?;
        let pod = cluster.ready(ns, "p")?;
        ensure!(pod["spec"]["nodeName"] == NODE, "{}", pod["spec"]);
        let logs = || -> Result<()> {
            // The node's server gets its certificate a moment after the node is ready.
            poll::until("the logs of a pod on the second node", PATIENCE, || {
                let told = cluster.k(&["logs", "p", "-n", ns]);
                Ok(if told.as_deref().is_ok_and(|t| t == "from afar\n") {
                    Ok(())
                } else {
                    Err(format!("{told:?}"))
                })
            })
        };
        logs()?;
        ensure!(cluster.exec(ns, "p", &["hostname"])?.trim() == "p");
        // It has a certificate of its own now, and needs the token no more.
        machine.stop()?;
        machine.start(&[&join[1..4], &join[6..]].concat())?;
        until_ready(cluster, machine)?;
        logs()?;
        let restarts = &cluster.ready(ns, "p")?["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "{restarts}");
        Ok(())
    });
    let revoked = cluster.decapod(&["token", "revoke", join[5]]).output()?;
    ensure!(revoked.status.success(), "{revoked:?}");
    result
}
