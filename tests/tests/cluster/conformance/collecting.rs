//! `[sig-api-machinery] Garbage collector`.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, deployment, owners, pod, scene, template};

pub(super) const TESTS: &[Test<Cluster>] = &[
    (
        "[sig-api-machinery] Garbage collector should delete RS created by deployment when not orphaning",
        sets_go,
    ),
    ("[sig-api-machinery] Garbage collector should delete pods created by rc when not orphaning", pods_go),
    (
        "[sig-api-machinery] Garbage collector should keep the rc around until all its pods are deleted if the deleteOptions says so",
        owner_waits,
    ),
    ("[sig-api-machinery] Garbage collector should not be blocked by dependency circle", circle),
    (
        "[sig-api-machinery] Garbage collector should not delete dependents that have both valid owner and owner that's waiting for dependents to be deleted",
        two_owners,
    ),
    (
        "[sig-api-machinery] Garbage collector should orphan RS created by deployment when deleteOptions.PropagationPolicy is Orphan",
        sets_stay,
    ),
    (
        "[sig-api-machinery] Garbage collector should orphan pods created by rc if delete options say so",
        pods_stay,
    ),
];

fn controller(name: &str, replicas: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"app": name}, "template": template(name)}})
}

/// Creates a controller and waits until its pods exist; they need not run.
fn populated(scene: &Scene<'_>, name: &str, replicas: usize) -> Result<Value> {
    let made = scene.create(&controller(name, replicas))?;
    scene.until_list("pods", "its pods", |pods| pods.len() >= replicas)?;
    Ok(made)
}

fn sets_go(cluster: &Cluster) -> Result<()> {
    scene(cluster, "gc-sets-go", |scene| {
        scene.create(&deployment("web", 2, json!({})))?;
        scene.until_list("replicasets", "a ReplicaSet", |sets| sets.len() == 1)?;
        scene.k(&["delete", "deployment/web", "--cascade=background", "--wait=false"])?;
        scene.until_list("replicasets", "no ReplicaSet", <[Value]>::is_empty)?;
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

fn pods_go(cluster: &Cluster) -> Result<()> {
    scene(cluster, "gc-pods-go", |scene| {
        populated(scene, "web", 2)?;
        scene.k(&["delete", "rc/web", "--cascade=background", "--wait=false"])?;
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

fn owner_waits(cluster: &Cluster) -> Result<()> {
    scene(cluster, "gc-waits", |scene| {
        populated(scene, "web", 10)?;
        scene.k(&["delete", "rc/web", "--cascade=foreground", "--wait=false"])?;
        poll::until("the controller to go after its pods", PATIENCE, || {
            // In this order: were the controller gone first, pods could still be there.
            let left = scene.k(&["get", "rc", "-o", "name"])?;
            let pods = scene.list(&["pods"])?;
            if left.is_empty() {
                ensure!(pods.is_empty(), "{} pods outlived their controller", pods.len());
                return Ok(Ok(()));
            }
            Ok(Err(format!("{} pods", pods.len())))
        })
    })
}

fn reference(owner: &Value, block: bool) -> Value {
    json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "blockOwnerDeletion": block})
}

fn circle(cluster: &Cluster) -> Result<()> {
    scene(cluster, "gc-circle", |scene| {
        let pods: Vec<Value> = ["one", "two", "three"]
            .iter()
            .map(|name| scene.create(&pod(name, "ring")))
            .collect::<Result<_>>()?;
        for (name, owner) in [("one", &pods[2]), ("two", &pods[0]), ("three", &pods[1])] {
            let patch = json!({"metadata": {"ownerReferences": [reference(owner, true)]}});
            scene.merge(&format!("pod/{name}"), &patch)?;
        }
        scene.k(&["delete", "pod/one", "--cascade=foreground", "--wait=false"])?;
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

fn two_owners(cluster: &Cluster) -> Result<()> {
    scene(cluster, "gc-owners", |scene| {
        populated(scene, "going", 10)?;
        let stays = scene.create(&controller("stays", 0))?;
        let pods = scene.list(&["pods"])?;
        for pod in &pods[..5] {
            let mut references = pod["metadata"]["ownerReferences"].as_array().context("no owner")?.clone();
            references.push(reference(&stays, false));
            let name = format!("pod/{}", pod["metadata"]["name"].as_str().context("no name")?);
            scene.merge(&name, &json!({"metadata": {"ownerReferences": references}}))?;
        }
        scene.k(&["delete", "rc/going", "--cascade=foreground", "--wait=false"])?;
        scene.until_gone("rc/going")?;
        let left = scene.list(&["pods"])?;
        ensure!(left.len() == 5, "{} pods are left", left.len());
        let uid = stays["metadata"]["uid"].as_str().context("no uid")?;
        for pod in left {
            ensure!(owners(&pod) == [uid] && pod["metadata"]["deletionTimestamp"].is_null(), "{pod:#}");
        }
        Ok(())
    })
}

fn sets_stay(cluster: &Cluster) -> Result<()> {
    scene(cluster, "gc-sets-stay", |scene| {
        scene.create(&deployment("web", 2, json!({})))?;
        scene.rolled_out("deployment/web")?;
        scene.k(&["delete", "deployment/web", "--cascade=orphan"])?;
        scene
            .until_list("replicasets", "an orphan", |sets| sets.len() == 1 && owners(&sets[0]).is_empty())?;
        let pods = scene.list(&["pods"])?;
        ensure!(pods.len() == 2 && pods.iter().all(|pod| pod["metadata"]["deletionTimestamp"].is_null()));
        Ok(())
    })
}

fn pods_stay(cluster: &Cluster) -> Result<()> {
    scene(cluster, "gc-pods-stay", |scene| {
        populated(scene, "web", 10)?;
        scene.k(&["delete", "rc/web", "--cascade=orphan"])?;
        let pods = scene.list(&["pods"])?;
        ensure!(pods.len() == 10, "{} pods are left", pods.len());
        for pod in pods {
            ensure!(owners(&pod).is_empty() && pod["metadata"]["deletionTimestamp"].is_null(), "{pod:#}");
        }
        Ok(())
    })
}
