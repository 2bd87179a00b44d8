//! The plugins: each knows one reason why a pod cannot, or would rather, run on a node. They carry the
//! names that they have in Kubernetes.

mod affinity;
mod images;
mod resources;
mod spread;
mod taints;
mod volumes;

use std::borrow::Cow;

use super::node::NodeInfo;
use super::pod::PodInfo;
use super::snapshot::Snapshot;

pub(crate) use volumes::Assignment;

/// Why a node will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// The plugin that says so.
    pub(crate) plugin: &'static str,
    /// Its reasons, in Kubernetes' words.
    pub(crate) reasons: Vec<Cow<'static, str>>,
    /// Whether removing other pods from the node might help.
    pub(crate) resolvable: bool,
}

impl Rejection {
    fn lasting(plugin: &'static str, reason: &'static str) -> Self {
        Self { plugin, reasons: vec![reason.into()], resolvable: false }
    }
}

/// Pods that are counted as if they were gone: the victims of a preemption that is thought through.
pub(crate) type Without<'a> = &'a dyn Fn(&NodeInfo, &PodInfo) -> bool;

/// What the filters need to know of the whole cluster, worked out once per decision. Nearly free for pods
/// that relate to no others.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    affinity: affinity::State,
    spread: spread::State,
    volumes: volumes::State,
}

impl Prepared {
    pub(crate) fn new(pod: &PodInfo, snapshot: &Snapshot, without: Without<'_>) -> Self {
        Self {
            affinity: affinity::State::new(pod, snapshot, without),
            spread: spread::State::new(pod, snapshot, without),
            volumes: volumes::State::new(pod, snapshot),
        }
    }

    /// Why no node at all will do, and the plugin that says so.
    pub(crate) fn refusal(&self) -> Option<(&'static str, &str)> {
        self.volumes.refusal().map(|why| (volumes::NAME, why))
    }

    /// What the pod's claims that wait for a node get on this one; empty where none waits.
    pub(crate) fn assignments(&self, node: &NodeInfo) -> Vec<Assignment> {
        // A node that passed the filters has something for each.
        self.volumes.assignments(node).unwrap_or_default()
    }

    /// Whether no claim of the pod waits for its volume any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.volumes.is_settled()
    }
}

/// The plugins whose rejections may be cured by what happens on any node.
pub(crate) const RELATIONAL: [&str; 2] = [affinity::NAME, spread::NAME];

/// Runs all filters on one node, the cheapest and most lasting first; the first that rejects has the word.
pub(crate) fn filter(pod: &PodInfo, node: &NodeInfo, prepared: &Prepared) -> Result<(), Rejection> {
    node_unschedulable(pod, node)?;
    node_name(pod, node)?;
    taints::filter(pod, node)?;
    node_affinity(pod, node)?;
    node_ports(pod, node)?;
    resources::fit(pod, node)?;
    prepared.volumes.filter(node)?;
    prepared.spread.filter(node)?;
    prepared.affinity.filter(node)
}

/// What cordons a node, for the toleration of it.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

fn node_unschedulable(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    let tolerated = || taints::tolerates(&pod.tolerations, UNSCHEDULABLE, "", "NoSchedule");
    if node.unschedulable && !tolerated() {
        return Err(Rejection::lasting("NodeUnschedulable", "node(s) were unschedulable"));
    }
    Ok(())
}

fn node_name(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    let wanted = pod.node_name();
    if wanted.is_empty() || wanted == node.name {
        return Ok(());
    }
    Err(Rejection::lasting("NodeName", "node(s) didn't match the requested node name"))
}

fn node_affinity(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    if pod.required.matches(&node.name, &node.labels) {
        return Ok(());
    }
    Err(Rejection::lasting("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"))
}

fn node_ports(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    let taken =
        |wanted| node.pods.values().any(|other| other.ports.iter().any(|port| port.conflicts(wanted)));
    if pod.ports.iter().any(taken) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection { resolvable: true, ..Rejection::lasting("NodePorts", reason) });
    }
    Ok(())
}

/// The best score that a plugin gives.
const MAX_SCORE: i64 = 100;

/// Kubernetes' weights of the plugins.
const TAINTS_WEIGHT: i64 = 3;
const AFFINITY_WEIGHT: i64 = 2;
const SPREAD_WEIGHT: i64 = 2;
const POD_AFFINITY_WEIGHT: i64 = 2;

/// Scores the nodes that passed the filters: more is better, and comparable among these nodes only.
pub(crate) fn score(pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Vec<i64> {
    let scores = nodes.iter().map(|node| {
        resources::least_allocated(pod, node)
            + resources::balanced_allocation(pod, node)
            + images::score(pod, node, snapshot)
    });
    let mut scores: Vec<i64> = scores.collect();
    let untolerated = nodes.iter().map(|node| taints::untolerated_preferences(pod, node)).collect();
    add(&mut scores, normalize(untolerated, true), TAINTS_WEIGHT);
    let preferred = nodes.iter().map(|node| {
        let matching = pod.preferred.iter().filter(|one| one.matches(&node.name, &node.labels));
        matching.map(|one| i64::from(one.weight)).sum()
    });
    add(&mut scores, normalize(preferred.collect(), false), AFFINITY_WEIGHT);
    if let Some(spread) = spread::scores(pod, nodes, snapshot) {
        add(&mut scores, spread, SPREAD_WEIGHT);
    }
    if let Some(related) = affinity::scores(pod, nodes, snapshot) {
        add(&mut scores, related, POD_AFFINITY_WEIGHT);
    }
    scores
}

fn add(scores: &mut [i64], more: Vec<i64>, weight: i64) {
    scores.iter_mut().zip(more).for_each(|(score, more)| *score += more * weight);
}

/// Scales scores so that the largest becomes the best (or, reversed, the worst) score.
fn normalize(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in &mut scores {
        let scaled = if max == 0 { 0 } else { *score * MAX_SCORE / max };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
    scores
}
