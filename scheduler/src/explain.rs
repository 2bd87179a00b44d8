//! Why a pod has no node, with the numbers: the scheduler's own core, asked about the cluster's present state by whoever
//! may read it (`decapod why pod/x`). So it never says anything else than the scheduler does.

use std::collections::BTreeMap;
use std::sync::Arc;

use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::core::decide::{self, Scheduler};
use crate::core::node::NodeInfo;
use crate::core::plugin::Plugin;
use crate::core::plugins::{self, Prepared, Rejection};
use crate::core::pod::PodInfo;
use crate::core::profile::Profile;
use crate::core::snapshot::Snapshot;

/// What decisions are made from.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// All nodes.
    pub nodes: Vec<Node>,
    /// The pods of all namespaces.
    pub pods: Vec<Pod>,
    /// All namespaces: their labels are selected by pod affinity.
    pub namespaces: Vec<Namespace>,
    /// The claims of the pod's namespace.
    pub claims: Vec<PersistentVolumeClaim>,
    /// All volumes.
    pub volumes: Vec<PersistentVolume>,
    /// All storage classes.
    pub classes: Vec<StorageClass>,
    /// The disruption budgets of all namespaces.
    pub budgets: Vec<PodDisruptionBudget>,
}

/// Nodes that reject a pod for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The plugin that says so, by Kubernetes' name.
    pub plugin: &'static str,
    /// Its reason, in Kubernetes' words.
    pub reason: String,
    /// The nodes, by name.
    pub nodes: Vec<String>,
    /// What each of them lacks or has too much of, with the numbers: a line each, for the first few.
    pub details: Vec<String>,
    /// What a person can do.
    pub way_out: String,
}

/// What came of the question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Nodes on which the pod would find a place now.
    pub fitting: Vec<String>,
    /// Why no node at all will do, whatever it is like (claims).
    pub refusal: Option<String>,
    /// The nodes that reject it, by reason; the most frequent first.
    pub groups: Vec<Group>,
    /// The node on which removing these pods, by `namespace/name`, would make room.
    pub room: Option<(String, Vec<String>)>,
}

/// Nodes of a group that are shown with their numbers: the rest are alike.
const SHOWN: usize = 5;

/// Asks Kubernetes' default profile about a pod that waits.
pub fn explain(pod: &Pod, cluster: &Cluster) -> Explanation {
    let profile = Profile::new("default-scheduler");
    let info = Arc::new(PodInfo::new(Arc::new(pod.clone())));
    let snapshot = snapshot(cluster, &info);
    let prepared = Prepared::new(&info, &snapshot, &profile);
    if let Some((_, why)) = prepared.refusal() {
        return Explanation { refusal: Some(why.to_owned()), ..Explanation::default() };
    }
    let mut explanation = Explanation::default();
    let mut groups: BTreeMap<String, Vec<(&NodeInfo, Rejection)>> = BTreeMap::new();
    for (position, node) in snapshot.nodes().iter().enumerate().filter(|(_, node)| node.node.is_some()) {
        match decide::check(&info, &snapshot, &prepared, position) {
            Ok(()) => explanation.fitting.push(node.name.clone()),
            Err(rejection) => {
                groups.entry(rejection.reasons.join(", ")).or_default().push((node, rejection));
            }
        }
    }
    explanation.fitting.sort();
    explanation.groups = groups.into_iter().map(|(reason, nodes)| group(&info, reason, nodes)).collect();
    explanation.groups.sort_by_key(|group| std::cmp::Reverse(group.nodes.len()));
    if explanation.fitting.is_empty() {
        // Which of equal nodes it names is of no importance.
        let mut scheduler = Scheduler::new(StdRng::seed_from_u64(0));
        let failure = scheduler.decide(&info, &snapshot, &profile).err();
        explanation.room = failure.and_then(|failure| failure.preemption).map(|candidate| {
            let name = |victim: &Arc<PodInfo>| {
                format!("{}/{}", victim.pod.namespace().unwrap_or_default(), victim.pod.name_any())
            };
            (candidate.node.clone(), candidate.victims.iter().map(name).collect())
        });
    }
    explanation
}

fn snapshot(cluster: &Cluster, info: &PodInfo) -> Snapshot {
    let mut snapshot = Snapshot::default();
    cluster.nodes.iter().for_each(|node| snapshot.node_put(Arc::new(node.clone())));
    for namespace in &cluster.namespaces {
        snapshot.namespace_set(&namespace.name_any(), Some(namespace.labels().clone()));
    }
    let storage = snapshot.storage_mut();
    for claim in &cluster.claims {
        let namespace = claim.namespace().unwrap_or_default();
        storage.claim_set(&namespace, &claim.name_any(), Some(Arc::new(claim.clone())));
    }
    for volume in &cluster.volumes {
        storage.volume_set(&volume.name_any(), Some(Arc::new(volume.clone())));
    }
    for class in &cluster.classes {
        storage.class_set(&class.name_any(), Some(Arc::new(class.clone())));
    }
    for budget in &cluster.budgets {
        let namespace = budget.namespace().unwrap_or_default();
        snapshot.budgets_mut().set(&namespace, &budget.name_any(), Some(Arc::new(budget.clone())));
    }
    for pod in &cluster.pods {
        let other = Arc::new(PodInfo::new(Arc::new(pod.clone())));
        snapshot.pod_put(&other);
        if other.uid != info.uid && other.node_name().is_empty() && !other.nominated_node().is_empty() {
            snapshot.nominate(&other, other.nominated_node());
        }
    }
    snapshot
}

fn group(pod: &PodInfo, reason: String, mut nodes: Vec<(&NodeInfo, Rejection)>) -> Group {
    nodes.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    // All of a group were rejected in the same words.
    let plugin = nodes.first().map_or(Plugin::NodeName, |(_, rejection)| rejection.plugin);
    let details = nodes.iter().take(SHOWN).flat_map(|(node, _)| details(pod, node, plugin));
    let hopeless = nodes.iter().all(|(_, rejection)| !rejection.resolvable);
    let first = nodes.first().map(|(node, _)| node.name.as_str()).unwrap_or_default();
    Group {
        plugin: plugin.name(),
        details: details.collect(),
        way_out: way_out(plugin, first, hopeless),
        nodes: nodes.iter().map(|(node, _)| node.name.clone()).collect(),
        reason,
    }
}

/// What one node lacks, or has too much of.
fn details(pod: &PodInfo, node: &NodeInfo, plugin: Plugin) -> Vec<String> {
    let name = &node.name;
    match plugin {
        Plugin::NodeResourcesFit => amounts(pod, node),
        Plugin::TaintToleration => plugins::untolerated(pod, node)
            .map(|taint| {
                let value = taint.value.as_deref().filter(|value| !value.is_empty());
                let value = value.map(|value| format!("={value}")).unwrap_or_default();
                format!("{name}: has the taint {}{value}:{}", taint.key, taint.effect)
            })
            .collect(),
        Plugin::NodePorts => {
            let wanted = pod.ports.iter();
            let taken = wanted.filter_map(|port| {
                let mut others = node.pods.values();
                let holder = others.find(|other| other.ports.iter().any(|one| one.conflicts(port)))?;
                let holder =
                    format!("{}/{}", holder.pod.namespace().unwrap_or_default(), holder.pod.name_any());
                Some(format!("{name}: port {}/{} is taken by pod {holder}", port.port, port.protocol))
            });
            taken.collect()
        }
        Plugin::NodeAffinity => {
            let labels: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            vec![format!("{name}: has the labels {}", labels.join(","))]
        }
        _ => Vec::new(),
    }
}

/// What the pod asks for and the node has not free.
fn amounts(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    let (wanted, all, taken) = (&pod.requests, &node.allocatable, &node.requested);
    let bytes = |amount: i64| Quantity::from_bytes(amount).to_string();
    let units = |amount: i64| Quantity::from_units(amount).to_string();
    let mut lines = Vec::new();
    let mut line = |what: &str, wanted: i64, all: i64, taken: i64, text: &dyn Fn(i64) -> String| {
        let free = (all - taken).max(0);
        if wanted > 0 && wanted > all - taken {
            let (wanted, free, all) = (text(wanted), text(free), text(all));
            lines.push(format!("{}: asks for {wanted} {what}, {free} of {all} is free", node.name));
        }
    };
    let cpu = |amount: i64| Quantity::from_millis(amount).to_string();
    line("cpu", wanted.cpu, all.cpu, taken.cpu, &cpu);
    line("memory", wanted.memory, all.memory, taken.memory, &bytes);
    line("ephemeral-storage", wanted.ephemeral, all.ephemeral, taken.ephemeral, &bytes);
    for (name, amount) in &wanted.scalar {
        line(name, *amount, all.scalar(name), taken.scalar(name), &units);
    }
    let count = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
    if count >= node.capacity {
        lines.push(format!("{}: has {count} pods and takes {}", node.name, node.capacity));
    }
    lines
}

fn way_out(plugin: Plugin, node: &str, hopeless: bool) -> String {
    match plugin {
        Plugin::NodeResourcesFit if hopeless => {
            "no node of these is large enough even if it were empty: ask for less, or add a larger node".into()
        }
        Plugin::NodeResourcesFit => {
            "ask for less, scale other workloads down, give the pod a higher priority class, or add a node".into()
        }
        Plugin::TaintToleration => format!(
            "add a toleration to the pod, or remove the taint: `kubectl taint nodes {node} KEY:EFFECT-`"
        ),
        Plugin::NodeUnschedulable => format!("`kubectl uncordon {node}`"),
        Plugin::NodeAffinity => format!(
            "change the pod's nodeSelector or node affinity, or label a node: `kubectl label node {node} KEY=VALUE`"
        ),
        Plugin::NodePorts => "use another hostPort, or a Service instead of one".into(),
        Plugin::PodTopologySpread => {
            "raise maxSkew, make the constraint ScheduleAnyway, or add nodes where there are few of these pods".into()
        }
        Plugin::InterPodAffinity => {
            "change the rules of this pod (or of those that do not want it), or add nodes".into()
        }
        Plugin::VolumeBinding | Plugin::VolumeZone => {
            "the pod's volumes tie it to other nodes: make room there, or use other volumes".into()
        }
        Plugin::VolumeRestrictions => "one pod at a time may use the claim: remove the other".into(),
        _ => "see the pod's spec.nodeName and spec.schedulerName".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, cpu: &str, spec: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"pool": name}}, "spec": spec,
            "status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "10"}}}))
        .unwrap()
    }

    fn pod(name: &str, cpu: &str, more: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        for (key, value) in more.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn each_node_says_what_it_lacks_in_numbers() {
        let cluster = Cluster {
            nodes: vec![
                node("a", "1", json!({})),
                node("b", "2", json!({})),
                node("c", "8", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]})),
                node("d", "8", json!({"unschedulable": true})),
            ],
            pods: vec![pod("low", "1500m", json!({"nodeName": "b", "priority": -1}))],
            ..Cluster::default()
        };
        let said = explain(&pod("p", "1500m", json!({})), &cluster);
        let find = |plugin: &str| {
            let mut of_it = said.groups.iter().filter(|group| group.plugin == plugin);
            of_it.next().map(|group| (group.nodes.join(","), group.details.join("; "), group.way_out.clone()))
        };
        let (nodes, lacks, _) = find("NodeResourcesFit").unwrap();
        assert_eq!(nodes, "a,b");
        assert_eq!(lacks, "a: asks for 1500m cpu, 1 of 1 is free; b: asks for 1500m cpu, 500m of 2 is free");
        assert_eq!(find("TaintToleration").unwrap().1, "c: has the taint k=v:NoSchedule");
        assert_eq!(find("NodeUnschedulable").unwrap().2, "`kubectl uncordon d`");
        assert_eq!(said.room, Some(("b".into(), vec!["n/low".into()])));
        assert!(said.fitting.is_empty());
        assert_eq!(explain(&pod("q", "1", json!({})), &cluster).fitting, ["a"]);
    }

    #[test]
    fn a_missing_claim_is_named() {
        let volumes = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
        let cluster = Cluster { nodes: vec![node("a", "1", json!({}))], ..Cluster::default() };
        let said = explain(&pod("p", "1m", volumes), &cluster);
        assert_eq!(said.refusal.as_deref(), Some("persistentvolumeclaim \"data\" not found"));
    }
}
