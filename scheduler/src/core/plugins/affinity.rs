//! InterPodAffinity: pods that want to be, or not to be, where certain others are.

use std::sync::Arc;

use super::{MAX_SCORE, Rejection};
use crate::core::index::{Counter, Holders, What};
use crate::core::place::Place;
use crate::core::plugin::Plugin;
use crate::core::pod::PodInfo;
use crate::core::profile::{PodAffinity, Profile};
use crate::core::relation::Namespaces;
use crate::core::snapshot::Snapshot;

const NAME: Plugin = Plugin::InterPodAffinity;

/// Where pods are that matter to a pod.
#[derive(Debug)]
pub(super) struct State<'a> {
    pod: &'a PodInfo,
    namespaces: &'a Namespaces,
    /// Pods that meet all of the required affinity, by the places of each of its terms.
    wanted: Vec<Arc<Counter>>,
    /// Whether the pod itself meets its affinity: then it may be the first of its kind.
    meets_itself: bool,
    avoided: Vec<Arc<Counter>>,
    /// Pods that do not want this one.
    unwanted: Vec<Arc<Holders>>,
}

impl<'a> State<'a> {
    pub(super) fn new(pod: &'a Arc<PodInfo>, snapshot: &'a Snapshot, profile: &Profile) -> Self {
        let namespaces = snapshot.namespaces();
        let relations = &pod.relations;
        let mut state = Self {
            pod,
            namespaces,
            wanted: Vec::new(),
            meets_itself: relations.affinity.iter().all(|term| term.matches(&pod.pod, namespaces)),
            avoided: Vec::new(),
            unwanted: Vec::new(),
        };
        if !profile.filters(NAME) {
            return state;
        }
        let counter = |what| snapshot.counter(pod, what);
        state.wanted = (0..relations.affinity.len()).map(|term| counter(What::Affinity(term))).collect();
        state.avoided =
            (0..relations.anti_affinity.len()).map(|term| counter(What::AntiAffinity(term))).collect();
        state.unwanted = snapshot.holders_meaning(pod);
        state.unwanted.retain(|holders| matches!(holders.what(), What::AntiAffinity(_)));
        state
    }

    /// Whether no other pod matters.
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.avoided.is_empty() && self.unwanted.is_empty()
    }

    pub(super) fn filter(&self, place: &Place<'_>) -> Result<(), Rejection> {
        if !self.is_wanted_at(place) {
            return Err(Rejection::lasting(NAME, "node(s) didn't match pod affinity rules"));
        }
        if self.avoided.iter().any(|counter| counter.at(place, self.namespaces).is_some_and(|here| here > 0))
        {
            return Err(Rejection::curable(NAME, "node(s) didn't match pod anti-affinity rules"));
        }
        if self.unwanted.iter().any(|holders| holders.at(place) > 0) {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Rejection::curable(NAME, reason));
        }
        Ok(())
    }

    fn is_wanted_at(&self, place: &Place<'_>) -> bool {
        if self.wanted.is_empty() {
            return true;
        }
        let here = || self.wanted.iter().map(|counter| counter.at(place, self.namespaces));
        if here().any(|here| here.is_none()) {
            return false;
        }
        let nowhere = |counter: &Arc<Counter>| {
            let thought = place.difference(|pod| counter.matches(pod, self.namespaces));
            counter.total() + thought <= 0
        };
        let is_first = self.meets_itself && self.wanted.iter().all(nowhere);
        is_first || here().flatten().all(|here| here > 0)
    }
}

impl State<'_> {
    /// Whether a pod that came or went at another place may matter to this one.
    pub(super) fn concerns(&self, other: &PodInfo) -> bool {
        let relates = |counter: &Arc<Counter>| counter.matches(other, self.namespaces);
        self.wanted.iter().chain(&self.avoided).any(relates)
            || other.relations.anti_affinity.iter().any(|term| term.matches(&self.pod.pod, self.namespaces))
    }
}

/// What is liked at the places of a label: by place, and how much it counts.
enum Liking {
    Others(Arc<Counter>, i64),
    Holders(Arc<Holders>, i64),
}

impl Liking {
    fn at(&self, position: usize) -> i64 {
        match self {
            Self::Others(counter, weight) => counter.here(position).unwrap_or(0) * weight,
            Self::Holders(holders, weight) => holders.here(position) * weight,
        }
    }
}

/// More for nodes where pods are that this one likes, and that like this one. `None` if none of that
/// matters to it.
pub(super) fn scores(
    pod: &Arc<PodInfo>,
    nodes: &[usize],
    snapshot: &Snapshot,
    profile: &PodAffinity,
) -> Option<Vec<i64>> {
    let preferred = &pod.relations.preferred;
    let own = preferred.iter().enumerate();
    let own =
        own.map(|(term, (_, weight))| Liking::Others(snapshot.counter(pod, What::Preferred(term)), *weight));
    let mut likings: Vec<Liking> = own.collect();
    if !(profile.ignores_preferences_of_placed && preferred.is_empty()) {
        let of_others = snapshot.holders_meaning(pod).into_iter().filter_map(|holders| {
            let weight = match holders.what() {
                What::Affinity(_) => profile.hard_weight,
                _ => holders.preference(),
            };
            (weight != 0).then_some(Liking::Holders(holders, weight))
        });
        likings.extend(of_others);
    }
    if likings.is_empty() {
        return None;
    }
    let sum = |position: &usize| -> i64 { likings.iter().map(|liking| liking.at(*position)).sum() };
    let mut scores: Vec<i64> = nodes.iter().map(sum).collect();
    let (min, max) = (scores.iter().copied().min()?, scores.iter().copied().max()?);
    let range = max - min;
    scores
        .iter_mut()
        .for_each(|score| *score = if range == 0 { 0 } else { (*score - min) * MAX_SCORE / range });
    Some(scores)
}
