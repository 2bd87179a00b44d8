//! Workloads and their places where there are several: daemons on each node, pods apart, together and evenly spread,
//! room made by preemption, and a node drained under a disruption budget.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(300);

/// The label by which nodes are told apart.
const HOST: &str = "kubernetes.io/hostname";
/// A resource that only these tests know.
const THING: &str = "example.com/thing";

/// A workload of pods that do nothing, with more of its spec and of the pods' spec.
fn workload(kind: &str, name: &str, more: Value, pods: Value) -> Value {
    let mut template = json!({"metadata": {"labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"]}]}});
    merge(&mut template["spec"], pods);
    let mut object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}}, "template": template}});
    merge(&mut object["spec"], more);
    object
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

/// A required term: with, or apart from, the pods that have this label, by node.
fn term(kind: &str, label: &str, value: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {label: value}}, "topologyKey": HOST}]}}})
}

/// The tests' namespace.
struct Scene<'a> {
    cluster: &'a Cluster,
    ns: &'a str,
}

impl Scene<'_> {
    fn k(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.k(&[&["-n", self.ns], arguments].concat())
    }

    fn apply(&self, mut objects: Vec<Value>) -> Result<()> {
        objects.iter_mut().for_each(|object| object["metadata"]["namespace"] = json!(self.ns));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(&list.to_string()).map(drop)
    }

    fn rolled_out(&self, workloads: &[&str]) -> Result<()> {
        let wait = |one: &&str| self.k(&["rollout", "status", one, "--timeout=300s"]).map(drop);
        workloads.iter().try_for_each(wait)
    }

    /// The nodes of a workload's pods that are not on their way out: the names of the pods by node.
    fn places(&self, app: &str) -> Result<BTreeMap<String, Vec<String>>> {
        let pods = self.cluster.get(&["pods", "-n", self.ns, "-l", &format!("app={app}")])?;
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            if pod["metadata"]["deletionTimestamp"].is_null() {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                places
                    .entry(text(&pod["spec"]["nodeName"]))
                    .or_default()
                    .push(text(&pod["metadata"]["name"]));
            }
        }
        Ok(places)
    }

    /// Waits until a workload has so many pods on these nodes.
    fn settles(&self, app: &str, wanted: &[(&str, usize)]) -> Result<()> {
        let wanted: BTreeMap<String, usize> =
            wanted.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect();
        poll::until(&format!("{app} on {wanted:?}"), PATIENCE, || {
            let places = self.places(app)?;
            let counts: BTreeMap<String, usize> =
                places.iter().map(|(node, pods)| (node.clone(), pods.len())).collect();
            Ok(if counts == wanted { Ok(()) } else { Err(format!("{places:?}")) })
        })
    }
}

/// [sig-apps] Daemon set: run and stop simple and complex daemons, and update them, on three nodes; StatefulSets and
/// Deployments whose pods are kept apart, together or even.
pub(crate) fn pods_are_where_they_are_to_be(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes()?;
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let all = |count: usize| names.iter().map(|name| (*name, count)).collect::<Vec<_>>();
    cluster.in_namespace("placed", |ns| {
        let scene = Scene { cluster, ns };
        let rolling = json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}}});
        let even = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": HOST,
            "whenUnsatisfiable": "DoNotSchedule", "nodeTaintsPolicy": "Honor",
            "labelSelector": {"matchLabels": {"app": "even"}}}]});
        let near = term("podAffinity", "statefulset.kubernetes.io/pod-name", "apart-0");
        scene.apply(vec![
            workload("DaemonSet", "each", rolling, json!({})),
            workload("DaemonSet", "blue", json!({}), json!({"nodeSelector": {"color": "blue"}})),
            workload("StatefulSet", "apart", json!({"replicas": 3}), term("podAntiAffinity", "app", "apart")),
            workload("Deployment", "even", json!({"replicas": 6}), even),
            workload("Deployment", "near", json!({"replicas": 2}), near),
        ])?;
        scene.rolled_out(&["ds/each", "sts/apart", "deployment/even", "deployment/near"])?;
        scene.settles("each", &all(1))?;
        scene.settles("apart", &all(1))?;
        scene.settles("even", &all(2))?;
        let first = cluster.get(&["pod", "apart-0", "-n", ns])?;
        let with = first["spec"]["nodeName"].as_str().context("no node")?;
        scene.settles("near", &[(with, 2)])?;
        scene.settles("blue", &[])?;
        cluster.k(&["label", "node", names[1], names[2], "color=blue"])?;
        let labelled = coloured(&scene, &names);
        cluster.k(&["label", "node", names[1], names[2], "color-"])?;
        labelled?;
        scene.settles("blue", &[])?;
        // One for whom there is no node is told so, node by node; and is no obstacle to becoming fewer.
        scene.k(&["scale", "sts/apart", "--replicas=4"])?;
        poll::until("why the fourth waits", PATIENCE, || {
            let told = scene.k(&[
                "get",
                "pod",
                "apart-3",
                "--ignore-not-found",
                "-o",
                "jsonpath={.status.conditions[?(@.type=='PodScheduled')].message}",
            ])?;
            let right =
                told.starts_with("0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules");
            Ok(if right { Ok(()) } else { Err(told) })
        })?;
        scene.k(&["scale", "sts/apart", "--replicas=3"])?;
        scene.k(&["set", "env", "ds/each", "VERSION=2"])?;
        scene.rolled_out(&["ds/each"])?;
        scene.settles("each", &all(1))?;
        scene.settles("apart", &all(1))?;
        drained(&scene, &names)
    })
}

/// Daemons follow the labels of nodes.
fn coloured(scene: &Scene<'_>, names: &[&str]) -> Result<()> {
    scene.settles("blue", &[(names[1], 1), (names[2], 1)])?;
    scene.cluster.k(&["label", "--overwrite", "node", names[2], "color=green"])?;
    scene.settles("blue", &[(names[1], 1)])
}

/// A node is drained, which the budget lets happen one by one; then it takes pods again.
fn drained(scene: &Scene<'_>, names: &[&str]) -> Result<()> {
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "even"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "even"}}}});
    scene.apply(vec![budget])?;
    let drain = scene.cluster.k(&[
        "drain",
        names[2],
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=300s",
    ]);
    let moved = drain.and_then(|told| {
        ensure!(told.contains("drained"), "{told}");
        scene.rolled_out(&["deployment/even"])?;
        scene.settles("even", &[(names[0], 3), (names[1], 3)])?;
        scene.settles("each", &names.iter().map(|name| (*name, 1)).collect::<Vec<_>>())
    });
    scene.cluster.k(&["uncordon", names[2]])?;
    moved?;
    // Its third pod finds its place again.
    scene.rolled_out(&["sts/apart"])?;
    scene.settles("apart", &names.iter().map(|name| (*name, 1)).collect::<Vec<_>>())
}

/// [sig-scheduling] SchedulerPreemption validates basic preemption works, by a resource that the nodes were given.
pub(crate) fn room_is_made_on_the_cheapest_node(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes()?;
    let capacity = |amount: Value| -> Result<()> {
        let patch =
            json!({"status": {"capacity": {THING: amount}, "allocatable": {THING: amount}}}).to_string();
        for node in &nodes {
            let arguments =
                ["patch", "node", &node.name, "--subresource=status", "--type=merge", "-p", &patch];
            cluster.k(&arguments)?;
        }
        Ok(())
    };
    let classes: Vec<Value> = [("nodes-low", 1), ("nodes-medium", 100), ("nodes-high", 1000)]
        .iter()
        .map(|(name, value)| {
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                "value": value})
        })
        .collect();
    let classes = json!({"apiVersion": "v1", "kind": "List", "items": classes}).to_string();
    cluster.apply(&classes)?;
    capacity(json!("2"))?;
    let tried = cluster.in_namespace("preempted", |ns| preempted(&Scene { cluster, ns }));
    capacity(Value::Null)?;
    cluster.k(&["delete", "priorityclass", "nodes-low", "nodes-medium", "nodes-high"])?;
    tried
}

fn preempted(scene: &Scene<'_>) -> Result<()> {
    let wanting = |name: &str, class: &str, replicas: u32| {
        let container = json!({"name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
            "resources": {"requests": {THING: "2"}, "limits": {THING: "2"}}});
        let pods = json!({"priorityClassName": class, "containers": [container]});
        workload("Deployment", name, json!({"replicas": replicas}), pods)
    };
    scene.apply(vec![wanting("medium", "nodes-medium", 2)])?;
    scene.rolled_out(&["deployment/medium"])?;
    scene.apply(vec![wanting("low", "nodes-low", 1)])?;
    scene.rolled_out(&["deployment/low"])?;
    let place = scene.places("low")?;
    let (node, victim) = place.first_key_value().context("no pod")?;
    scene.apply(vec![wanting("high", "nodes-high", 1)])?;
    scene.rolled_out(&["deployment/high"])?;
    scene.settles("high", &[(node, 1)])?;
    ensure!(scene.places("medium")?.len() == 2, "{:?}", scene.places("medium")?);
    let events = || scene.k(&["get", "events", "--field-selector=reason=Preempted", "-o", "json"]);
    poll::text("the event of the one that had to go", PATIENCE, events, |text| text.contains(&victim[0]))?;
    // Its successor waits, and is promised nothing.
    scene.settles("low", &[("", 1)])
}
