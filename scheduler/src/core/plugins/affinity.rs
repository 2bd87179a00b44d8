//! InterPodAffinity: pods that want to be, or not to be, where certain others are.

use std::collections::HashMap;

use super::{MAX_SCORE, Rejection, Without};
use crate::core::node::NodeInfo;
use crate::core::pod::PodInfo;
use crate::core::relation::PodTerm;
use crate::core::snapshot::Snapshot;

pub(super) const NAME: &str = "InterPodAffinity";

/// What the required affinity of a pod that is placed counts for a pod that it likes.
const HARD_WEIGHT: i64 = 1;

/// Numbers per place: the key of a node label and its value.
type Places = HashMap<(String, String), i64>;

/// Where pods are that matter to a pod.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The keys of the pod's required affinity, and where pods are that meet all of it.
    affinity_keys: Vec<String>,
    affinity: Places,
    /// Whether the pod itself meets its affinity: then it may be the first of its kind.
    meets_itself: bool,
    anti_affinity_keys: Vec<String>,
    anti_affinity: Places,
    /// Where pods are that do not want this one.
    unwanted: Places,
}

impl State {
    pub(super) fn new(pod: &PodInfo, snapshot: &Snapshot, without: Without<'_>) -> Self {
        let namespaces = snapshot.namespaces();
        let keys = |terms: &[PodTerm]| terms.iter().map(|term| term.topology_key.clone()).collect();
        let (wanted, avoided) = (&pod.relations.affinity, &pod.relations.anti_affinity);
        let mut state = Self {
            affinity_keys: keys(wanted),
            anti_affinity_keys: keys(avoided),
            meets_itself: wanted.iter().all(|term| term.matches(&pod.pod, namespaces)),
            ..Self::default()
        };
        for (other, node) in snapshot.related().filter(|(other, node)| !without(node, other)) {
            let terms = other.relations.anti_affinity.iter();
            for term in terms.filter(|term| term.matches(&pod.pod, namespaces)) {
                count(&mut state.unwanted, node, &term.topology_key, 1);
            }
        }
        if wanted.is_empty() && avoided.is_empty() {
            return state;
        }
        for node in snapshot.nodes() {
            for other in node.pods.values().filter(|other| !without(node, other)) {
                let matches = |term: &&PodTerm| term.matches(&other.pod, namespaces);
                if !wanted.is_empty() && wanted.iter().all(|term| matches(&term)) {
                    wanted.iter().for_each(|term| count(&mut state.affinity, node, &term.topology_key, 1));
                }
                for term in avoided.iter().filter(matches) {
                    count(&mut state.anti_affinity, node, &term.topology_key, 1);
                }
            }
        }
        state
    }

    pub(super) fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if !self.is_wanted_here(node) {
            return Err(Rejection::lasting(NAME, "node(s) didn't match pod affinity rules"));
        }
        let curable = |reason| Err(Rejection { resolvable: true, ..Rejection::lasting(NAME, reason) });
        if self.anti_affinity_keys.iter().any(|key| at(&self.anti_affinity, node, key) > 0) {
            return curable("node(s) didn't match pod anti-affinity rules");
        }
        let here = |((key, value), count): (&(String, String), &i64)| {
            *count > 0 && node.labels.get(key) == Some(value)
        };
        if self.unwanted.iter().any(here) {
            return curable("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Ok(())
    }

    fn is_wanted_here(&self, node: &NodeInfo) -> bool {
        let has_keys = self.affinity_keys.iter().all(|key| node.labels.contains_key(key));
        let is_first = self.affinity.is_empty() && self.meets_itself;
        has_keys && (is_first || self.affinity_keys.iter().all(|key| at(&self.affinity, node, key) > 0))
    }
}

fn count(places: &mut Places, node: &NodeInfo, key: &str, by: i64) {
    if let Some(value) = node.labels.get(key) {
        *places.entry((key.to_owned(), value.clone())).or_default() += by;
    }
}

fn at(places: &Places, node: &NodeInfo, key: &str) -> i64 {
    let value = node.labels.get(key);
    value.and_then(|value| places.get(&(key.to_owned(), value.clone()))).copied().unwrap_or(0)
}

/// More for nodes where pods are that this one likes, and that like this one. `None` if none of that
/// matters to it.
pub(super) fn scores(pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Option<Vec<i64>> {
    let namespaces = snapshot.namespaces();
    let mut places = Places::new();
    for (other, node) in snapshot.related() {
        let relations = &other.relations;
        let hard = relations.affinity.iter().map(|term| (term, HARD_WEIGHT));
        let soft = relations.preferred.iter().map(|(term, weight)| (term, *weight));
        for (term, weight) in hard.chain(soft).filter(|(term, _)| term.matches(&pod.pod, namespaces)) {
            count(&mut places, node, &term.topology_key, weight);
        }
    }
    if !pod.relations.preferred.is_empty() {
        for node in snapshot.nodes() {
            for other in node.pods.values() {
                let terms = pod.relations.preferred.iter();
                for (term, weight) in terms.filter(|(term, _)| term.matches(&other.pod, namespaces)) {
                    count(&mut places, node, &term.topology_key, *weight);
                }
            }
        }
    }
    if places.is_empty() {
        return None;
    }
    let sum = |node: &&NodeInfo| -> i64 {
        let here = places.iter().filter(|((key, value), _)| node.labels.get(key) == Some(value));
        here.map(|(_, weight)| weight).sum()
    };
    let mut scores: Vec<i64> = nodes.iter().map(sum).collect();
    let (min, max) = (scores.iter().copied().min()?, scores.iter().copied().max()?);
    let range = max - min;
    scores
        .iter_mut()
        .for_each(|score| *score = if range == 0 { 0 } else { (*score - min) * MAX_SCORE / range });
    Some(scores)
}
