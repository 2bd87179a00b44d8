//! PodTopologySpread: pods of one kind evenly over nodes, zones and the like.

use std::collections::{BTreeSet, HashMap};

use super::{MAX_SCORE, Rejection, Without, taints};
use crate::core::node::NodeInfo;
use crate::core::pod::PodInfo;
use crate::core::relation::Spread;
use crate::core::snapshot::Snapshot;

pub(super) const NAME: &str = "PodTopologySpread";

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The spreading of a controller's pods that nobody asked for: Kubernetes' default constraints.
const DEFAULTS: [(&str, usize); 2] = [(HOSTNAME, 3), (ZONE, 5)];

/// The hard constraints of a pod, counted.
#[derive(Debug, Default)]
pub(super) struct State {
    constraints: Vec<Counted>,
}

#[derive(Debug)]
struct Counted {
    key: String,
    /// Matching pods per value of the label, over the nodes that count.
    domains: HashMap<String, usize>,
    /// The fewest in any domain; none if there are fewer domains than asked for.
    fewest: usize,
    /// Whether the pod counts itself.
    itself: usize,
    max_skew: usize,
}

impl State {
    pub(super) fn new(pod: &PodInfo, snapshot: &Snapshot, without: Without<'_>) -> Self {
        let hard: Vec<&Spread> = pod.spreads.iter().filter(|spread| spread.hard).collect();
        let constraints = hard.iter().map(|spread| {
            let mut domains = HashMap::new();
            for node in snapshot.nodes().iter().filter(|node| counts(pod, node, spread, &hard)) {
                let here = matching(pod, node, spread, without);
                *domains.entry(node.labels[&spread.topology_key].clone()).or_default() += here;
            }
            let fewest = domains.values().copied().min().filter(|_| domains.len() >= spread.min_domains);
            Counted {
                key: spread.topology_key.clone(),
                domains,
                fewest: fewest.unwrap_or(0),
                itself: usize::from(spread.matches(&pod.pod)),
                max_skew: spread.max_skew,
            }
        });
        Self { constraints: constraints.collect() }
    }

    pub(super) fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for constraint in &self.constraints {
            let Some(value) = node.labels.get(&constraint.key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Rejection::lasting(NAME, reason));
            };
            let here = constraint.domains.get(value).copied().unwrap_or(0);
            if here + constraint.itself > constraint.fewest + constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Rejection { resolvable: true, ..Rejection::lasting(NAME, reason) });
            }
        }
        Ok(())
    }
}

/// Whether the pods of a node are counted for a constraint.
fn counts(pod: &PodInfo, node: &NodeInfo, spread: &Spread, all: &[&Spread]) -> bool {
    node.node.is_some()
        && all.iter().all(|one| node.labels.contains_key(&one.topology_key))
        && (!spread.honors_affinity || pod.required.matches(&node.name, &node.labels))
        && (!spread.honors_taints || taints::filter(pod, node).is_ok())
}

fn matching(pod: &PodInfo, node: &NodeInfo, spread: &Spread, without: Without<'_>) -> usize {
    let counted = node.pods.values().filter(|other| {
        other.pod.metadata.namespace == pod.pod.metadata.namespace
            && other.pod.metadata.deletion_timestamp.is_none()
            && spread.matches(&other.pod)
            && !without(node, other)
    });
    counted.count()
}

/// A soft constraint, counted.
struct Soft<'a> {
    key: &'a str,
    max_skew: usize,
    domains: HashMap<String, usize>,
}

/// More for nodes in places with fewer of the pods that are to be spread. `None` if none are.
pub(super) fn scores(pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Option<Vec<i64>> {
    let softs =
        if pod.spreads.is_empty() { by_family(pod, nodes, snapshot)? } else { asked_for(pod, snapshot) };
    if softs.is_empty() {
        return None;
    }
    let weights: Vec<f64> = softs
        .iter()
        .map(|soft| {
            let values: BTreeSet<_> = nodes.iter().filter_map(|node| node.labels.get(soft.key)).collect();
            (values.len() as f64 + 2.0).ln()
        })
        .collect();
    let costs: Vec<Option<f64>> = nodes
        .iter()
        .map(|node| {
            let each = softs.iter().zip(&weights).map(|(soft, weight)| {
                let here = soft.domains.get(node.labels.get(soft.key)?).copied().unwrap_or(0);
                Some(here as f64 * weight + (soft.max_skew as f64 - 1.0))
            });
            each.sum()
        })
        .collect();
    let known = || costs.iter().flatten().copied();
    let (min, max) = (known().fold(f64::MAX, f64::min), known().fold(0.0, f64::max));
    let best = MAX_SCORE as f64;
    let scores = costs.iter().map(|cost| match cost {
        None => 0,
        Some(_) if max <= 0.0 => MAX_SCORE,
        // Between 0 and 100: no cost is below the least or above the greatest.
        Some(cost) => (best * (max + min - cost) / max) as i64,
    });
    Some(scores.collect())
}

fn asked_for<'a>(pod: &'a PodInfo, snapshot: &Snapshot) -> Vec<Soft<'a>> {
    let soft: Vec<&Spread> = pod.spreads.iter().filter(|spread| !spread.hard).collect();
    let counted = soft.iter().map(|spread| {
        let mut domains = HashMap::new();
        for node in snapshot.nodes().iter().filter(|node| counts(pod, node, spread, &soft)) {
            let here = matching(pod, node, spread, &|_, _| false);
            *domains.entry(node.labels[&spread.topology_key].clone()).or_default() += here;
        }
        Soft { key: &spread.topology_key, max_skew: spread.max_skew, domains }
    });
    counted.collect()
}

/// The default constraints, for the pods of one controller, as far as the nodes have such labels.
fn by_family<'a>(pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Option<Vec<Soft<'a>>> {
    let family = pod.family.as_ref()?;
    let labelled = DEFAULTS.iter().filter(|(key, _)| nodes.iter().all(|node| node.labels.contains_key(*key)));
    let counted = labelled.map(|(key, max_skew)| {
        let mut domains = HashMap::new();
        for (node, count) in snapshot.family(family) {
            if let Some(value) = node.labels.get(*key) {
                *domains.entry(value.clone()).or_default() += count;
            }
        }
        Soft { key, max_skew: *max_skew, domains }
    });
    Some(counted.collect())
}
