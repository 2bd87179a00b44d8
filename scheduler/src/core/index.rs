//! Counts of pods by place, kept change by change: so that a pod that relates to others is decided on without looking
//! at all pods of the cluster.
//!
//! What is counted is found out at the first pod that asks, by one look at everything; from then on each pod that comes
//! or goes changes the counts. Pods of one kind share them. Node labels make the places: should they change, all is
//! counted anew when it is asked for.
//!
//! Invariant: at any time a counter says what a fresh count would (tested against one).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::node::NodeInfo;
use super::place::Place;
use super::plugins;
use super::pod::PodInfo;
use super::relation::{Namespaces, PodTerm, Spread};

/// Counters that are kept: each costs a comparison with every pod that comes or goes. Those that were not asked for the
/// longest go first.
const COUNTERS: usize = 512;

/// A node without the label.
const NOWHERE: u32 = u32::MAX;

/// The values of one node label as numbers, and which node has which: a column over the nodes of the snapshot.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    values: HashMap<String, u32>,
    column: Vec<u32>,
}

impl Topology {
    fn new(nodes: &[NodeInfo], key: &str) -> Self {
        let mut topology = Self::default();
        for node in nodes {
            let place = match node.labels.get(key) {
                None => NOWHERE,
                Some(value) => {
                    // There are fewer places than nodes, and fewer nodes than u32 can count.
                    let next = u32::try_from(topology.values.len()).unwrap_or(NOWHERE);
                    *topology.values.entry(value.clone()).or_insert(next)
                }
            };
            topology.column.push(place);
        }
        topology
    }

    /// The place that a node is in.
    pub(crate) fn place(&self, position: usize) -> Option<usize> {
        let place = self.column.get(position).copied().filter(|place| *place != NOWHERE)?;
        usize::try_from(place).ok()
    }

    /// How many places there are.
    pub(crate) fn size(&self) -> usize {
        self.values.len()
    }
}

/// Which pods are counted, as a pod's relations say.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// Those that meet all its required affinity, in the places of this term of it.
    Affinity(usize),
    /// Those that meet this term of its required anti-affinity.
    AntiAffinity(usize),
    /// Those that meet this term of what it prefers.
    Preferred(usize),
    /// Those that are spread by this one of these constraints, on the nodes that count for it.
    Spread(Arc<[Spread]>, usize),
}

impl What {
    fn term<'a>(&self, pod: &'a PodInfo) -> Option<&'a PodTerm> {
        match self {
            Self::Affinity(index) => pod.relations.affinity.get(*index),
            Self::AntiAffinity(index) => pod.relations.anti_affinity.get(*index),
            Self::Preferred(index) => pod.relations.preferred.get(*index).map(|(term, _)| term),
            Self::Spread(..) => None,
        }
    }

    fn key<'a>(&'a self, pod: &'a PodInfo) -> &'a str {
        match self {
            Self::Spread(spreads, index) => &spreads[*index].topology_key,
            _ => self.term(pod).map(|term| &*term.topology_key).unwrap_or_default(),
        }
    }

    fn name(&self) -> (u8, usize) {
        match self {
            Self::Affinity(index) => (0, *index),
            Self::AntiAffinity(index) => (1, *index),
            Self::Preferred(index) => (2, *index),
            Self::Spread(_, index) => (3, *index),
        }
    }
}

/// What a count goes by: the signature of the relations, and which of them.
type Key = (Arc<str>, u8, usize);

/// How many pods of some sort are in which places.
#[derive(Clone, Debug)]
pub(crate) struct Counter {
    /// A pod whose relations say what is counted.
    example: Arc<PodInfo>,
    what: What,
    topology: Arc<Topology>,
    counts: Vec<i64>,
    total: i64,
    /// For spreading: the nodes that count.
    counting: Vec<bool>,
    /// For spreading: how many places have how many pods, of those that have a node that counts.
    levels: BTreeMap<i64, usize>,
    used: u64,
}

impl Counter {
    fn new(
        example: &Arc<PodInfo>,
        what: What,
        topology: Arc<Topology>,
        nodes: &[NodeInfo],
        namespaces: &Namespaces,
    ) -> Self {
        let counting = match &what {
            What::Spread(spreads, index) => nodes
                .iter()
                .map(|node| plugins::spread_counts(example, node, &spreads[*index], spreads))
                .collect(),
            _ => Vec::new(),
        };
        let counts = vec![0; topology.size()];
        let mut counter = Self {
            example: example.clone(),
            what,
            topology,
            counts,
            total: 0,
            counting,
            levels: BTreeMap::new(),
            used: 0,
        };
        let mut present = vec![false; counter.counts.len()];
        for (position, node) in nodes.iter().enumerate() {
            let Some(place) = counter.topology.place(position).filter(|_| counter.counts_at(position)) else {
                continue;
            };
            present[place] = true;
            let here = node.pods.values().filter(|pod| counter.matches(pod, namespaces)).count();
            let here = i64::try_from(here).unwrap_or(i64::MAX);
            counter.counts[place] += here;
            counter.total += here;
        }
        if counter.is_spread() {
            for (place, _) in present.iter().enumerate().filter(|(_, present)| **present) {
                *counter.levels.entry(counter.counts[place]).or_default() += 1;
            }
        }
        counter
    }

    fn is_spread(&self) -> bool {
        matches!(self.what, What::Spread(..))
    }

    fn counts_at(&self, position: usize) -> bool {
        !self.is_spread() || self.counting.get(position).copied().unwrap_or(false)
    }

    /// Whether a pod is one of those that are counted.
    pub(crate) fn matches(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        match &self.what {
            What::Affinity(_) => {
                let terms = &self.example.relations.affinity;
                !terms.is_empty() && terms.iter().all(|term| term.matches(&pod.pod, namespaces))
            }
            What::Spread(spreads, index) => spreads[*index].matches(&self.example, pod),
            _ => self.what.term(&self.example).is_some_and(|term| term.matches(&pod.pod, namespaces)),
        }
    }

    /// All that are counted.
    pub(crate) fn total(&self) -> i64 {
        self.total
    }

    /// How many are in a node's place, as a thought has it; none if the node is in no place.
    pub(crate) fn at(&self, place: &Place<'_>, namespaces: &Namespaces) -> Option<i64> {
        let here = self.counts[self.topology.place(place.position)?];
        Some(here + self.difference(place, namespaces))
    }

    fn difference(&self, place: &Place<'_>, namespaces: &Namespaces) -> i64 {
        if place.is_unchanged() || !self.counts_at(place.position) {
            return 0;
        }
        place.difference(|pod| self.matches(pod, namespaces))
    }

    /// How many are in a node's place as it is; none if the node is in no place.
    pub(crate) fn here(&self, position: usize) -> Option<i64> {
        Some(self.counts[self.topology.place(position)?])
    }

    /// The fewest in any place that counts, as a thought has it.
    pub(crate) fn fewest(&self, place: &Place<'_>, namespaces: &Namespaces) -> i64 {
        let mut levels = self.levels.iter();
        let Some((fewest, places)) = levels.next() else { return 0 };
        let difference = self.difference(place, namespaces);
        let Some(here) = self.here(place.position).filter(|_| difference != 0) else { return *fewest };
        let elsewhere = if here == *fewest && *places == 1 {
            levels.next().map(|(level, _)| *level)
        } else {
            Some(*fewest)
        };
        elsewhere.map_or(here + difference, |elsewhere| elsewhere.min(here + difference))
    }

    /// How many places have a node that counts.
    pub(crate) fn domains(&self) -> usize {
        self.levels.values().sum()
    }

    fn change(&mut self, pod: &PodInfo, position: usize, by: i64, namespaces: &Namespaces) {
        let Some(place) = self.topology.place(position).filter(|_| self.counts_at(position)) else { return };
        if !self.matches(pod, namespaces) {
            return;
        }
        let before = self.counts[place];
        self.counts[place] += by;
        self.total += by;
        if self.is_spread() {
            if let Some(places) = self.levels.get_mut(&before) {
                *places -= 1;
                if *places == 0 {
                    self.levels.remove(&before);
                }
            }
            *self.levels.entry(before + by).or_default() += 1;
        }
    }
}

/// Pods with the same relation to others, by place.
#[derive(Clone, Debug)]
pub(crate) struct Holders {
    example: Arc<PodInfo>,
    signature: Arc<str>,
    what: What,
    topology: Arc<Topology>,
    counts: Vec<i64>,
    total: i64,
}

impl Holders {
    /// Whether their relation means this pod.
    pub(crate) fn mean(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        self.what.term(&self.example).is_some_and(|term| term.matches(&pod.pod, namespaces))
    }

    /// Their relation.
    pub(crate) fn what(&self) -> &What {
        &self.what
    }

    /// How much they prefer it; 0 for what is required.
    pub(crate) fn preference(&self) -> i64 {
        match self.what {
            What::Preferred(index) => {
                self.example.relations.preferred.get(index).map_or(0, |(_, weight)| *weight)
            }
            _ => 0,
        }
    }

    /// How many are in a node's place, as a thought has it.
    pub(crate) fn at(&self, place: &Place<'_>) -> i64 {
        let here = self.topology.place(place.position).map(|place| self.counts[place]);
        here.map_or(0, |here| {
            here + place.difference(|pod| pod.signature.as_ref().is_some_and(|own| *own == self.signature))
        })
    }

    /// How many are in a node's place.
    pub(crate) fn here(&self, position: usize) -> i64 {
        self.topology.place(position).map_or(0, |place| self.counts[place])
    }
}

/// All counts.
#[derive(Debug, Default)]
pub(crate) struct Index {
    topologies: HashMap<String, Arc<Topology>>,
    counters: HashMap<Key, Arc<Counter>>,
    holders: Option<HashMap<Key, Arc<Holders>>>,
    tick: u64,
}

impl Index {
    /// The places have changed: all is counted anew when it is asked for.
    pub(crate) fn clear(&mut self) {
        self.topologies.clear();
        self.counters.clear();
        self.holders = None;
    }

    /// The values of a node label.
    pub(crate) fn topology(&mut self, key: &str, nodes: &[NodeInfo]) -> Arc<Topology> {
        if let Some(known) = self.topologies.get(key) {
            return known.clone();
        }
        let topology = Arc::new(Topology::new(nodes, key));
        self.topologies.insert(key.to_owned(), topology.clone());
        topology
    }

    /// What the relations of `pod` ask to be counted.
    pub(crate) fn counter(
        &mut self,
        pod: &Arc<PodInfo>,
        what: What,
        nodes: &[NodeInfo],
        namespaces: &Namespaces,
    ) -> Arc<Counter> {
        self.tick += 1;
        let topology = self.topology(what.key(pod), nodes);
        let Some(signature) = &pod.signature else {
            // Spread by default: there is nothing to go by, and seldom anything to count.
            return Arc::new(Counter::new(pod, what, topology, nodes, namespaces));
        };
        let (kind, index) = what.name();
        let key = (signature.clone(), kind, index);
        if let Some(known) = self.counters.get_mut(&key) {
            // Nobody holds a counter between two decisions: this copies nothing.
            Arc::make_mut(known).used = self.tick;
            return known.clone();
        }
        if self.counters.len() >= COUNTERS {
            let oldest =
                self.counters.iter().min_by_key(|(_, counter)| counter.used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.counters.remove(&key));
        }
        let mut counter = Counter::new(pod, what, topology, nodes, namespaces);
        counter.used = self.tick;
        let counter = Arc::new(counter);
        self.counters.insert(key, counter.clone());
        counter
    }

    /// The pods that are placed and relate to others, by what they have in common.
    pub(crate) fn holders<'a>(
        &mut self,
        nodes: &[NodeInfo],
        related: impl Iterator<Item = (&'a Arc<PodInfo>, usize)>,
    ) -> impl Iterator<Item = &Arc<Holders>> {
        if self.holders.is_none() {
            self.holders = Some(HashMap::new());
            for (pod, position) in related {
                self.hold(pod, position, 1, nodes);
            }
        }
        self.holders.iter().flat_map(HashMap::values)
    }

    /// A pod came to a node (`by` is 1) or left it (-1).
    pub(crate) fn change(
        &mut self,
        pod: &Arc<PodInfo>,
        position: usize,
        by: i64,
        nodes: &[NodeInfo],
        namespaces: &Namespaces,
    ) {
        for counter in self.counters.values_mut() {
            Arc::make_mut(counter).change(pod, position, by, namespaces);
        }
        if self.holders.is_some() && !pod.relations.is_empty() {
            self.hold(pod, position, by, nodes);
        }
    }

    fn hold(&mut self, pod: &Arc<PodInfo>, position: usize, by: i64, nodes: &[NodeInfo]) {
        let Some(signature) = &pod.signature else { return };
        let relations = &pod.relations;
        let affinity = (0..relations.affinity.len()).map(What::Affinity);
        let anti_affinity = (0..relations.anti_affinity.len()).map(What::AntiAffinity);
        let preferred = (0..relations.preferred.len()).map(What::Preferred);
        for what in affinity.chain(anti_affinity).chain(preferred) {
            let topology = self.topology(what.key(pod), nodes);
            let Some(place) = topology.place(position) else { continue };
            let (kind, index) = what.name();
            let key = (signature.clone(), kind, index);
            let Some(all) = &mut self.holders else { return };
            let new = || {
                let counts = vec![0; topology.size()];
                Arc::new(Holders {
                    example: pod.clone(),
                    signature: signature.clone(),
                    what,
                    topology: topology.clone(),
                    counts,
                    total: 0,
                })
            };
            let holders = Arc::make_mut(all.entry(key.clone()).or_insert_with(new));
            holders.counts[place] += by;
            holders.total += by;
            if holders.total == 0 {
                all.remove(&key);
            }
        }
    }
}
