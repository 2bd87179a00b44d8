//! Taints that drive pods from the only node, on which nothing else may run meanwhile: these tests are the last.
//!
//! The pods bear a finalizer, so that they are there to tell when and why they had to go.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, pod, scene};

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-node] NoExecuteTaintManager Multiple Pods evicts pods with minTolerationSeconds", shortest),
    ("[sig-node] NoExecuteTaintManager Single Pod removing taint cancels eviction", cancelled),
];

/// The node's taints.
const KEYS: [&str; 2] = ["example.com/first", "example.com/second"];
const FINALIZER: &str = "example.com/looked-at";
/// For how long a pod tolerates a taint: for ever, unless it says so; not at all, if it does not.
type Tolerated<'a> = (&'a str, Option<u32>);

/// A pod that tolerates these taints.
fn tolerant(name: &str, tolerated: &[Tolerated<'_>]) -> Value {
    let mut object = pod(name, "tolerant");
    object["metadata"]["finalizers"] = json!([FINALIZER]);
    let toleration = |(key, seconds): &Tolerated<'_>| {
        let mut one = json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            one["tolerationSeconds"] = json!(seconds);
        }
        one
    };
    object["spec"]["tolerations"] = tolerated.iter().map(toleration).collect();
    object
}

fn is_gone(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_string()
}

/// Whether a pod was driven away by a taint.
fn is_driven(pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    is_gone(pod)
        && conditions
            .any(|one| one["type"] == "DisruptionTarget" && one["reason"] == "DeletionByTaintManager")
}

/// Runs a test with ready pods on the node, which afterwards has neither them nor taints.
fn with_pods(
    cluster: &Cluster,
    name: &str,
    pods: &[Value],
    test: impl FnOnce(&Scene<'_>, &str) -> Result<()>,
) -> Result<()> {
    let nodes = cluster.get(&["nodes"])?;
    let node = nodes["items"][0]["metadata"]["name"].as_str().context("no node")?;
    scene(cluster, name, |scene| {
        scene.create_all(pods.to_vec())?;
        let ready = scene.k(&["wait", "--for=condition=Ready", "--timeout=180s", "pods", "--all"]);
        let tested = ready.and_then(|_| test(scene, node));
        let untainted = KEYS.map(|key| untaint(scene, node, key));
        let patch = json!({"metadata": {"finalizers": null}});
        let names = scene.list(&["pods"])?;
        let names = names.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
        let released: Result<Vec<Value>> =
            names.map(|name| scene.merge(&format!("pod/{name}"), &patch)).collect();
        tested?;
        untainted.into_iter().collect::<Result<()>>()?;
        released.map(drop)
    })
}

/// Puts both taints on the node, at once.
fn taint(scene: &Scene<'_>, node: &str) -> Result<()> {
    let taints = KEYS.map(|key| format!("{key}=yes:NoExecute"));
    scene.k(&["taint", "node", node, &taints[0], &taints[1]]).map(drop)
}

/// Takes a taint off the node, if it is there.
fn untaint(scene: &Scene<'_>, node: &str, key: &str) -> Result<()> {
    let object = scene.get(&["node", node])?;
    let mut taints = object["spec"]["taints"].as_array().into_iter().flatten();
    if taints.any(|taint| taint["key"] == key) {
        scene.k(&["taint", "node", node, &format!("{key}:NoExecute-")])?;
    }
    Ok(())
}

/// Waits until a pod has been driven away.
fn driven(scene: &Scene<'_>, name: &str) -> Result<Value> {
    // The longest of the times, and a slow machine.
    poll::until(&format!("the eviction of {name}"), PATIENCE * 2, || {
        let pod = scene.get(&["pod", name])?;
        Ok(if is_driven(&pod) { Ok(pod) } else { Err(pod.to_string()) })
    })
}

/// Who tolerates the node's taints for a time has the shortest of them, from when the node was tainted; who does not
/// goes at once.
fn shortest(cluster: &Cluster) -> Result<()> {
    let [first, second] = KEYS;
    let pods = [
        tolerant("one", &[(second, None)]),
        tolerant("short", &[(first, Some(4)), (second, None)]),
        tolerant("least", &[(first, Some(3600)), (second, Some(8))]),
        tolerant("always", &[(first, None), (second, None)]),
    ];
    with_pods(cluster, "taints", &pods, |scene, node| {
        let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        taint(scene, node)?;
        for (name, seconds) in [("one", 0), ("short", 4), ("least", 8)] {
            let pod = driven(scene, name)?;
            // In whole seconds.
            let gone: Time = serde_json::from_value(pod["metadata"]["deletionTimestamp"].clone())?;
            let after = gone.0.as_second() - i64::try_from(begun)?;
            ensure!(after >= seconds, "{name} went after {after} s: {pod:#}");
        }
        let always = scene.get(&["pod/always"])?;
        ensure!(!is_gone(&always), "{always:#}");
        Ok(())
    })
}

/// A taint that is taken away in time drives nobody away later.
fn cancelled(cluster: &Cluster) -> Result<()> {
    // The machine may be too slow for the first.
    for seconds in [16, 64, 256] {
        let [first, second] = KEYS;
        let pods = [
            tolerant("one", &[(second, None)]),
            tolerant("saved", &[(first, Some(seconds)), (second, None)]),
            tolerant("witness", &[(first, None), (second, Some(seconds + 4))]),
        ];
        let mut in_time = false;
        with_pods(cluster, &format!("untainted-{seconds}"), &pods, |scene, node| {
            let begun = Instant::now();
            taint(scene, node)?;
            driven(scene, "one")?;
            untaint(scene, node, first)?;
            in_time = begun.elapsed() < Duration::from_secs(u64::from(seconds / 2));
            // Once its time is over, so is the other's.
            driven(scene, "witness")?;
            let saved = scene.get(&["pod/saved"])?;
            ensure!(!in_time || !is_gone(&saved), "{saved:#}");
            Ok(())
        })?;
        if in_time {
            return Ok(());
        }
    }
    anyhow::bail!("a taint could not be taken off within two minutes")
}
