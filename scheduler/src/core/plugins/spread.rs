//! PodTopologySpread: pods of one kind evenly over nodes, zones and the like.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{MAX_SCORE, Rejection};
use crate::core::index::{Counter, Topology, What};
use crate::core::place::Place;
use crate::core::plugin::Plugin;
use crate::core::pod::PodInfo;
use crate::core::profile::{Profile, SpreadDefaults};
use crate::core::relation::{Namespaces, Spread};
use crate::core::snapshot::Snapshot;

const NAME: Plugin = Plugin::PodTopologySpread;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The spreading of a controller's pods that nobody asked for: Kubernetes' default constraints.
const DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), (ZONE, 5)];

/// The hard constraints of a pod, counted.
#[derive(Debug)]
pub(super) struct State<'a> {
    namespaces: &'a Namespaces,
    constraints: Vec<Counted>,
}

#[derive(Debug)]
struct Counted {
    counter: Arc<Counter>,
    max_skew: i64,
    min_domains: usize,
    /// Whether the pod counts itself.
    itself: i64,
}

/// The constraints of a pod: its own, or those that the profile has for pods without.
fn constraints(pod: &PodInfo, profile: &Profile) -> Arc<[Spread]> {
    match &profile.spread {
        SpreadDefaults::List(list) if pod.spreads.is_empty() && pod.family.is_some() => {
            list.iter().map(Spread::by_default).collect()
        }
        _ => pod.spreads.clone(),
    }
}

impl<'a> State<'a> {
    pub(super) fn new(pod: &'a Arc<PodInfo>, snapshot: &'a Snapshot, profile: &Profile) -> Self {
        let namespaces = snapshot.namespaces();
        if !profile.filters(NAME) {
            return Self { namespaces, constraints: Vec::new() };
        }
        let all = constraints(pod, profile);
        let hard = all.iter().enumerate().filter(|(_, spread)| spread.hard);
        let counted = hard.map(|(index, spread)| Counted {
            counter: snapshot.counter(pod, What::Spread(all.clone(), index)),
            max_skew: spread.max_skew,
            min_domains: spread.min_domains,
            itself: i64::from(spread.matches(pod, pod)),
        });
        Self { namespaces, constraints: counted.collect() }
    }

    /// Whether nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        self.constraints.is_empty()
    }

    pub(super) fn filter(&self, place: &Place<'_>) -> Result<(), Rejection> {
        for constraint in &self.constraints {
            let Some(here) = constraint.counter.at(place, self.namespaces) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Rejection::lasting(NAME, reason));
            };
            let enough = constraint.counter.domains() >= constraint.min_domains;
            let fewest = if enough { constraint.counter.fewest(place, self.namespaces) } else { 0 };
            if here + constraint.itself > fewest + constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Rejection::curable(NAME, reason));
            }
        }
        Ok(())
    }

    /// Whether a pod that came or went at another place may matter to this one.
    pub(super) fn concerns(&self, other: &PodInfo) -> bool {
        self.constraints.iter().any(|one| one.counter.matches(other, self.namespaces))
    }
}

/// A soft constraint, counted.
struct Soft {
    topology: Arc<Topology>,
    max_skew: i64,
    counts: Counts,
}

enum Counts {
    Kept(Arc<Counter>),
    Own(Vec<i64>),
}

impl Soft {
    fn at(&self, position: usize) -> Option<i64> {
        match &self.counts {
            Counts::Kept(counter) => counter.here(position),
            Counts::Own(counts) => counts.get(self.topology.place(position)?).copied(),
        }
    }
}

/// More for nodes in places with fewer of the pods that are to be spread. `None` if none are.
pub(super) fn scores(
    pod: &Arc<PodInfo>,
    nodes: &[usize],
    snapshot: &Snapshot,
    profile: &Profile,
) -> Option<Vec<i64>> {
    let all = constraints(pod, profile);
    let softs = match &profile.spread {
        SpreadDefaults::System if all.is_empty() => by_family(pod, nodes, snapshot)?,
        _ => asked_for(pod, &all, snapshot),
    };
    if softs.is_empty() {
        return None;
    }
    let weights: Vec<f64> = softs
        .iter()
        .map(|soft| {
            let places: BTreeSet<_> = nodes.iter().filter_map(|node| soft.topology.place(*node)).collect();
            (places.len() as f64 + 2.0).ln()
        })
        .collect();
    let costs: Vec<Option<i64>> = nodes
        .iter()
        .map(|node| {
            let each = softs
                .iter()
                .zip(&weights)
                .map(|(soft, weight)| Some(soft.at(*node)? as f64 * weight + (soft.max_skew as f64 - 1.0)));
            // A sum over the pods of one place, far below what is exact.
            each.sum::<Option<f64>>().map(|cost| cost.round() as i64)
        })
        .collect();
    let known = || costs.iter().flatten().copied();
    let (min, max) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
    let scores = costs.iter().map(|cost| match cost {
        None => 0,
        Some(_) if max <= 0 => MAX_SCORE,
        Some(cost) => MAX_SCORE * (max + min - cost) / max,
    });
    Some(scores.collect())
}

fn asked_for(pod: &Arc<PodInfo>, all: &Arc<[Spread]>, snapshot: &Snapshot) -> Vec<Soft> {
    let soft = all.iter().enumerate().filter(|(_, spread)| !spread.hard);
    let counted = soft.map(|(index, spread)| Soft {
        topology: snapshot.topology(&spread.topology_key),
        max_skew: spread.max_skew,
        counts: Counts::Kept(snapshot.counter(pod, What::Spread(all.clone(), index))),
    });
    counted.collect()
}

/// The default constraints, for the pods of one controller, as far as the nodes have such labels.
fn by_family(pod: &PodInfo, nodes: &[usize], snapshot: &Snapshot) -> Option<Vec<Soft>> {
    let family = pod.family.as_ref()?;
    let labelled = DEFAULTS.iter().filter_map(|(key, max_skew)| {
        let topology = snapshot.topology(key);
        let everywhere = nodes.iter().all(|node| topology.place(*node).is_some());
        everywhere.then_some((topology, *max_skew))
    });
    let counted = labelled.map(|(topology, max_skew)| {
        let mut counts = vec![0; topology.size()];
        for (position, count) in snapshot.family(family) {
            if let Some(place) = topology.place(position) {
                counts[place] += count;
            }
        }
        Soft { topology, max_skew, counts: Counts::Own(counts) }
    });
    Some(counted.collect())
}
