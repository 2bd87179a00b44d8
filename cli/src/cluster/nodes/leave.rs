//! Taking further nodes away: one from a running cluster, or all with the cluster.

use std::time::Duration;

use decapod_network::{Netns, link};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, EvictParams, ListParams};

use super::{LocalNode, Roster, wire};
use crate::cluster::lock::Lock;
use crate::cluster::settings::{Place, Settings};
use crate::cluster::{agent, down};
use crate::failure::{Failure, chain};

/// How often a node that is being emptied is looked at.
const STEP: Duration = Duration::from_millis(100);
/// Pods that are not to be moved: others of their kind run on every node, or files of the node make them.
const STAY: [&str; 2] = ["DaemonSet", "Node"];
/// The annotation of a pod that a file of the node makes.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Empties a node of a running cluster and takes it away; its pods have `grace` to end elsewhere.
pub(in crate::cluster) async fn remove(
    place: &Place,
    settings: &Settings,
    name: &str,
    client: &kube::Client,
    grace: Option<Duration>,
) -> Result<(), Failure> {
    let Some(mut roster) = Roster::load(place)? else {
        return Err(Failure::new(format!(
            "the cluster \"{}\" has no node \"{name}\" to remove",
            place.name()
        )));
    };
    let node = roster.nodes(place).into_iter().find(|node| node.name == name).ok_or_else(|| {
        Failure::new(format!("\"{name}\" is no node that can be removed"))
            .hint("`decapod node list` shows them; the machine's own node goes with `decapod down`")
    })?;
    if let Some(grace) = grace {
        drain(client, name, grace).await?;
    }
    end(&node).await?;
    match Api::<Node>::all(client.clone()).delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => other.map(drop)?,
    }
    link::leave(&wire(place, settings, &roster), node.address).map_err(|e| Failure::new(chain(&e)))?;
    Netns::unmake(&node.namespace()).map_err(|e| Failure::new(chain(&e)))?;
    down::remove_tree(node.place.data())?;
    down::remove_tree(&node.place.run())?;
    roster.nodes.remove(name);
    roster.save(place)?;
    println!("node {name} is removed");
    Ok(())
}

/// Ends the agent of a node, and all its pods.
pub(in crate::cluster) async fn end(node: &LocalNode) -> Result<(), Failure> {
    if let Some(pid) = Lock::holder(&node.place)? {
        down::end("the agent", nix::unistd::Pid::from_raw(pid)).await?;
    }
    if !node.place.data().exists() {
        return Ok(());
    }
    let lock = Lock::take(&node.place)?;
    let removed = agent::remove_pods(&node.place).await;
    drop(lock);
    removed.map_err(|e| e.within(format!("node {}", node.name)))
}

/// Lets no new pods come, and evicts those that are there.
async fn drain(client: &kube::Client, name: &str, grace: Duration) -> Result<(), Failure> {
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.cordon(name).await {
        // It has never joined, or was deleted already.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        other => other.map(drop)?,
    }
    let there = ListParams::default().fields(&format!("spec.nodeName={name}"));
    let all: Api<Pod> = Api::all(client.clone());
    let mut why = String::new();
    let emptied = tokio::time::timeout(grace, async {
        loop {
            let pods = all.list(&there).await?.items;
            let leaving: Vec<&Pod> = pods.iter().filter(|pod| must_leave(pod)).collect();
            if leaving.is_empty() {
                return Ok::<_, Failure>(());
            }
            why = leaving
                .iter()
                .map(|pod| format!("\n  {}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
                .collect();
            for pod in leaving.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
                let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
                match api.evict(&pod.name_any(), &EvictParams::default()).await {
                    Ok(_) => {}
                    // Gone already, or a budget does not allow it yet.
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(kube::Error::Api(status)) if status.code == 429 => {
                        why += &format!(": {}", status.message)
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            tokio::time::sleep(STEP).await;
        }
    });
    match emptied.await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(format!("pods on node {name} have not ended:{why}"))
            .hint(format!("`decapod node remove --force {name}` ends them at once"))),
    }
}

fn must_leave(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    let stays = owners
        .filter(|owner| owner.controller == Some(true))
        .any(|owner| STAY.contains(&owner.kind.as_str()));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let over = matches!(phase, Some("Succeeded" | "Failed"));
    !stays && !over && !pod.annotations().contains_key(MIRROR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_belongs_to_the_node_stays() {
        let pod = |value| serde_json::from_value::<Pod>(value).unwrap();
        assert!(must_leave(&pod(json!({"metadata": {"name": "p"}}))));
        let owned = |kind: &str| {
            json!({"metadata": {"name": "p", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "1", "controller": true}]}})
        };
        assert!(must_leave(&pod(owned("ReplicaSet"))));
        assert!(!must_leave(&pod(owned("DaemonSet"))));
        assert!(!must_leave(&pod(json!({"metadata": {"name": "p", "annotations": {MIRROR: "x"}}}))));
        assert!(!must_leave(&pod(json!({"metadata": {"name": "p"}, "status": {"phase": "Succeeded"}}))));
    }
}
