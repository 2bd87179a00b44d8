//! The plugins: each knows one reason why a pod cannot, or would rather, run on a node. They carry the
//! names that they have in Kubernetes.

mod affinity;
mod images;
mod resources;
mod spread;
mod taints;
mod volumes;

use std::borrow::Cow;
use std::sync::Arc;

use super::node::NodeInfo;
use super::place::Place;
use super::plugin::Plugin;
use super::pod::PodInfo;
use super::profile::Profile;
use super::relation::Spread;
use super::snapshot::Snapshot;

pub(crate) use taints::untolerated;
pub(crate) use volumes::Assignment;

/// Why a node will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// The plugin that says so.
    pub(crate) plugin: Plugin,
    /// Its reasons, in Kubernetes' words.
    pub(crate) reasons: Vec<Cow<'static, str>>,
    /// Whether removing other pods from the node might help.
    pub(crate) resolvable: bool,
}

impl Rejection {
    fn lasting(plugin: Plugin, reason: &'static str) -> Self {
        Self { plugin, reasons: vec![reason.into()], resolvable: false }
    }

    fn curable(plugin: Plugin, reason: &'static str) -> Self {
        Self { resolvable: true, ..Self::lasting(plugin, reason) }
    }
}

/// What the filters need to know of the whole cluster, worked out once per decision. Nearly free for pods
/// that relate to no others.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    profile: &'a Profile,
    affinity: affinity::State<'a>,
    spread: spread::State<'a>,
    volumes: volumes::State,
}

impl<'a> Prepared<'a> {
    pub(crate) fn new(pod: &'a Arc<PodInfo>, snapshot: &'a Snapshot, profile: &'a Profile) -> Self {
        Self {
            profile,
            affinity: affinity::State::new(pod, snapshot, profile),
            spread: spread::State::new(pod, snapshot, profile),
            volumes: volumes::State::new(pod, snapshot, profile),
        }
    }

    /// Why no node at all will do, and the plugin that says so.
    pub(crate) fn refusal(&self) -> Option<(Plugin, &str)> {
        self.volumes.refusal().map(|why| (Plugin::VolumeBinding, why))
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

    /// Whether a pod that came or went anywhere may matter to this one.
    pub(crate) fn concerns(&self, other: &PodInfo) -> bool {
        self.affinity.concerns(other) || self.spread.concerns(other)
    }

    /// Whether nothing but the node itself has a say: no other node, no volume.
    pub(crate) fn is_local(&self) -> bool {
        self.affinity.is_empty() && self.spread.is_empty() && self.volumes.is_empty()
    }
}

/// The plugins whose rejections may be cured by what happens on any node.
pub(crate) const RELATIONAL: [Plugin; 2] = [Plugin::InterPodAffinity, Plugin::PodTopologySpread];

/// Runs all filters on one node, the cheapest and most lasting first; the first that rejects has the word.
pub(crate) fn filter(pod: &PodInfo, place: &Place<'_>, prepared: &Prepared<'_>) -> Result<(), Rejection> {
    local(pod, place, prepared.profile)?;
    beyond(place, prepared)
}

/// What the node and the pods on it alone decide.
pub(crate) fn local(pod: &PodInfo, place: &Place<'_>, profile: &Profile) -> Result<(), Rejection> {
    let node = place.node;
    if profile.filters(Plugin::NodeUnschedulable) {
        node_unschedulable(pod, node)?;
    }
    if profile.filters(Plugin::NodeName) {
        node_name(pod, node)?;
    }
    if profile.filters(Plugin::TaintToleration) {
        taints::filter(pod, node)?;
    }
    if profile.filters(Plugin::NodeAffinity) {
        node_affinity(pod, node, profile)?;
    }
    if profile.filters(Plugin::NodePorts) {
        node_ports(pod, place)?;
    }
    if profile.filters(Plugin::NodeResourcesFit) {
        resources::fit(pod, place, profile)?;
    }
    if profile.filters(Plugin::DynamicResources) {
        devices(pod)?;
    }
    Ok(())
}

/// What volumes and pods anywhere decide.
pub(crate) fn beyond(place: &Place<'_>, prepared: &Prepared<'_>) -> Result<(), Rejection> {
    prepared.volumes.filter(place)?;
    prepared.spread.filter(place)?;
    prepared.affinity.filter(place)
}

/// Whether the pods of a node count when others like `pod` are spread by one of these constraints.
pub(crate) fn spread_counts(pod: &PodInfo, node: &NodeInfo, spread: &Spread, all: &[Spread]) -> bool {
    node.node.is_some()
        && all
            .iter()
            .filter(|one| one.hard == spread.hard)
            .all(|one| node.labels.contains_key(&one.topology_key))
        && (!spread.honors_affinity || pod.required.matches(&node.name, &node.labels))
        && (!spread.honors_taints || taints::filter(pod, node).is_ok())
}

/// What cordons a node, for the toleration of it.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

fn node_unschedulable(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    let tolerated = || taints::tolerates(&pod.tolerations, UNSCHEDULABLE, "", "NoSchedule");
    if node.unschedulable && !tolerated() {
        return Err(Rejection::lasting(Plugin::NodeUnschedulable, "node(s) were unschedulable"));
    }
    Ok(())
}

fn node_name(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    let wanted = pod.node_name();
    if wanted.is_empty() || wanted == node.name {
        return Ok(());
    }
    Err(Rejection::lasting(Plugin::NodeName, "node(s) didn't match the requested node name"))
}

fn node_affinity(pod: &PodInfo, node: &NodeInfo, profile: &Profile) -> Result<(), Rejection> {
    if !profile.affinity.required.matches(&node.name, &node.labels) {
        let reason = "node(s) didn't match scheduler-enforced node affinity";
        return Err(Rejection::lasting(Plugin::NodeAffinity, reason));
    }
    if pod.required.names().is_some_and(|names| !names.contains(&node.name)) {
        return Err(Rejection::lasting(
            Plugin::NodeAffinity,
            "node(s) didn't satisfy plugin(s) [NodeAffinity]",
        ));
    }
    if pod.required.matches(&node.name, &node.labels) {
        return Ok(());
    }
    Err(Rejection::lasting(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector"))
}

fn node_ports(pod: &PodInfo, place: &Place<'_>) -> Result<(), Rejection> {
    let taken = |wanted| place.pods().any(|other| other.ports.iter().any(|port| port.conflicts(wanted)));
    if pod.ports.iter().any(taken) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection::curable(Plugin::NodePorts, reason));
    }
    Ok(())
}

/// No node gives devices: a pod that claims some waits, rather than run without.
fn devices(pod: &PodInfo) -> Result<(), Rejection> {
    let claims = pod.pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_ref());
    if claims.is_none_or(Vec::is_empty) {
        return Ok(());
    }
    Err(Rejection::lasting(Plugin::DynamicResources, "cannot allocate all claims"))
}

/// The best score that a plugin gives.
pub(crate) const MAX_SCORE: i64 = 100;

/// What the node alone says when it is compared with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// What needs no comparison, with its weights.
    sum: i64,
    /// How many of the node's soft taints the pod does not tolerate.
    taints: i64,
    /// How much of what the pod prefers the node is.
    preferred: i64,
}

/// What the node itself, and the images of the cluster, say for it.
pub(crate) fn own_score(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot, profile: &Profile) -> Own {
    let mut sum = 0;
    let fit = profile.weight(Plugin::NodeResourcesFit);
    if fit > 0 {
        sum += fit * resources::fit_score(pod, node, &profile.fit);
    }
    let balanced = profile.weight(Plugin::NodeResourcesBalancedAllocation);
    if balanced > 0 {
        sum += balanced * resources::balanced_allocation(pod, node, &profile.balanced);
    }
    let images = profile.weight(Plugin::ImageLocality);
    if images > 0 {
        sum += images * images::score(pod, node, snapshot);
    }
    let preferred = pod.preferred.iter().chain(&profile.affinity.preferred);
    let matching = preferred.filter(|one| one.matches(&node.name, &node.labels));
    Own {
        sum,
        taints: taints::untolerated_preferences(pod, node),
        preferred: matching.map(|one| i64::from(one.weight)).sum(),
    }
}

/// Scores the nodes that passed the filters: more is better, and comparable among these nodes only.
pub(crate) fn score(
    pod: &Arc<PodInfo>,
    nodes: &[(usize, Own)],
    snapshot: &Snapshot,
    profile: &Profile,
) -> Vec<i64> {
    let mut scores: Vec<i64> = nodes.iter().map(|(_, own)| own.sum).collect();
    let untolerated = nodes.iter().map(|(_, own)| own.taints).collect();
    add(&mut scores, normalize(untolerated, true), profile.weight(Plugin::TaintToleration));
    let preferred = nodes.iter().map(|(_, own)| own.preferred).collect();
    add(&mut scores, normalize(preferred, false), profile.weight(Plugin::NodeAffinity));
    let positions: Vec<usize> = nodes.iter().map(|(position, _)| *position).collect();
    let spread = profile.weight(Plugin::PodTopologySpread);
    if spread > 0
        && let Some(more) = spread::scores(pod, &positions, snapshot, profile)
    {
        add(&mut scores, more, spread);
    }
    let related = profile.weight(Plugin::InterPodAffinity);
    if related > 0
        && let Some(more) = affinity::scores(pod, &positions, snapshot, &profile.pod_affinity)
    {
        add(&mut scores, more, related);
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
