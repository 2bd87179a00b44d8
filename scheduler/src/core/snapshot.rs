//! The view of the cluster that decisions are made from, kept up to date change by change: what is bound,
//! and what this scheduler has decided and not yet seen bound.
//!
//! Invariant: at any time it is what a fresh count of the same nodes and pods would give (tested against
//! one).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use super::budget::Budgets;
use super::index::{Counter, Holders, Index, Topology, What};
use super::node::NodeInfo;
use super::place::Place;
use super::pod::PodInfo;
use super::relation::Namespaces;
use super::storage::Storage;

/// All nodes with their pods.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Densely, so that a decision runs over memory in order.
    nodes: Vec<NodeInfo>,
    positions: HashMap<String, usize>,
    /// Where each counted pod is.
    pods: HashMap<String, Placement>,
    /// On how many nodes an image is.
    images: HashMap<String, usize>,
    /// The placed pods that relate to others by affinity, and where they are.
    related: HashMap<String, (Arc<PodInfo>, String)>,
    /// How many pods of each controller are on which nodes.
    families: HashMap<String, HashMap<String, i64>>,
    namespaces: Namespaces,
    storage: Storage,
    budgets: Budgets,
    /// The waiting pods to which a node was promised, and that node.
    nominated: HashMap<String, String>,
    /// The same by node.
    promises: HashMap<String, Vec<Arc<PodInfo>>>,
    /// What was counted for pods that relate to others; filled while decisions are made.
    index: RefCell<Index>,
    /// Grows with every change of a node.
    generations: u64,
    /// Grows when nodes come or go, or change what is compared across nodes.
    epoch: u64,
    /// Nodes that exist, without those of which only pods are known.
    existing: usize,
}

#[derive(Debug)]
struct Placement {
    node: String,
    /// Decided here; the API server has not shown it yet.
    assumed: bool,
}

impl Snapshot {
    /// All places for pods, including nodes that are gone and still have pods.
    pub(crate) fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// How many nodes exist.
    pub(crate) fn existing(&self) -> usize {
        self.existing
    }

    /// The node of this name.
    pub(crate) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.positions.get(name).map(|position| &self.nodes[*position])
    }

    /// A pod that is counted on a node.
    pub(crate) fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        let placement = self.pods.get(uid)?;
        self.node(&placement.node)?.pods.get(uid)
    }

    /// On which share of the nodes an image is.
    pub(crate) fn image_spread(&self, image: &str) -> f64 {
        let nodes = self.images.get(image).copied().unwrap_or(0);
        nodes as f64 / self.existing.max(1) as f64
    }

    /// Grows when nodes come or go, or what they say of themselves changes.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The places that a node label makes.
    pub(crate) fn topology(&self, key: &str) -> Arc<Topology> {
        self.index.borrow_mut().topology(key, &self.nodes)
    }

    /// What the relations of a pod ask to be counted.
    pub(crate) fn counter(&self, pod: &Arc<PodInfo>, what: What) -> Arc<Counter> {
        self.index.borrow_mut().counter(pod, what, &self.nodes, &self.namespaces)
    }

    /// The placed pods that relate to others, by what they have in common, as far as they mean `pod`.
    pub(crate) fn holders_meaning(&self, pod: &PodInfo) -> Vec<Arc<Holders>> {
        let related = self.related.values();
        let related = related.filter_map(|(pod, node)| Some((pod, *self.positions.get(node)?)));
        let mut index = self.index.borrow_mut();
        let holders = index.holders(&self.nodes, related);
        holders.filter(|one| one.mean(pod, &self.namespaces)).cloned().collect()
    }

    /// Where the node of this name is among the nodes.
    pub(crate) fn position_of(&self, name: &str) -> Option<usize> {
        self.positions.get(name).copied()
    }

    /// The node at a position with the pods that are nominated for it and come before `pod`; none if there are none.
    pub(crate) fn with_nominated(&self, position: usize, pod: &PodInfo) -> Option<Place<'_>> {
        // Asked for each node of a decision, and most of the time none is promised.
        if self.promises.is_empty() {
            return None;
        }
        let node = self.nodes.get(position)?;
        let mut place = Place::new(node, position);
        self.nominated_for(&node.name, pod).for_each(|other| place.add(other));
        (!place.is_unchanged()).then_some(place)
    }

    /// The pods that are nominated for a node and come before `pod`.
    pub(crate) fn nominated_for(&self, node: &str, pod: &PodInfo) -> impl Iterator<Item = &Arc<PodInfo>> {
        // Most of the time there are none at all.
        let promised = if self.promises.is_empty() { None } else { self.promises.get(node) };
        let (priority, uid) = (pod.priority, pod.uid.clone());
        promised.into_iter().flatten().filter(move |other| other.priority >= priority && other.uid != uid)
    }

    /// The pods that are nominated for a node and come after `pod`.
    pub(crate) fn outranked(&self, node: &str, pod: &PodInfo) -> Vec<Arc<PodInfo>> {
        let promised = self.promises.get(node).into_iter().flatten();
        promised.filter(|other| other.priority < pod.priority && other.uid != pod.uid).cloned().collect()
    }

    /// The node that was promised to a pod.
    pub(crate) fn nomination(&self, uid: &str) -> Option<&str> {
        self.nominated.get(uid).map(String::as_str)
    }

    /// A node is promised to a waiting pod, or (if `node` is empty) no longer.
    pub(crate) fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.unnominate(&pod.uid);
        if !node.is_empty() {
            self.nominated.insert(pod.uid.clone(), node.to_owned());
            self.promises.entry(node.to_owned()).or_default().push(pod.clone());
            self.touch(node);
        }
    }

    /// No node is promised to the pod any more; which one was.
    pub(crate) fn unnominate(&mut self, uid: &str) -> Option<String> {
        let node = self.nominated.remove(uid)?;
        if let Some(promised) = self.promises.get_mut(&node) {
            promised.retain(|other| other.uid != uid);
            if promised.is_empty() {
                self.promises.remove(&node);
            }
        }
        self.touch(&node);
        Some(node)
    }

    fn touch(&mut self, node: &str) {
        let generation = self.next_generation();
        if let Some(position) = self.positions.get(node) {
            self.nodes[*position].generation = generation;
        }
    }

    /// The disruption budgets.
    pub(crate) fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// The disruption budgets, to take over a change.
    pub(crate) fn budgets_mut(&mut self) -> &mut Budgets {
        &mut self.budgets
    }

    /// On which nodes, by their positions, how many pods of a controller are.
    pub(crate) fn family(&self, controller: &str) -> impl Iterator<Item = (usize, i64)> {
        let nodes = self.families.get(controller).into_iter().flatten();
        nodes.filter_map(|(node, count)| Some((self.position_of(node)?, *count)))
    }

    /// Claims, volumes and classes.
    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Claims, volumes and classes, to take over a change.
    pub(crate) fn storage_mut(&mut self) -> &mut Storage {
        &mut self.storage
    }

    /// The labels of the namespaces.
    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The namespace has these labels now, or is gone.
    pub(crate) fn namespace_set(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
        self.index.get_mut().clear();
    }

    fn next_generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }

    /// The node exists in this state now.
    pub(crate) fn node_put(&mut self, node: Arc<Node>) {
        self.node_set(&node.name_any(), Some(node.clone()));
    }

    /// The node is gone.
    pub(crate) fn node_remove(&mut self, name: &str) {
        if self.positions.contains_key(name) {
            self.node_set(name, None);
            self.forget_if_empty(name);
        }
    }

    fn node_set(&mut self, name: &str, node: Option<Arc<Node>>) {
        let (position, generation) = (self.position(name), self.next_generation());
        let info = &mut self.nodes[position];
        if info.node.is_some() == node.is_some() && info.is_same(node.as_deref()) {
            info.node = node;
            return;
        }
        info.generation = generation;
        self.epoch += 1;
        let before = (info.node.is_some(), info.labels.clone(), info.taints.clone(), info.unschedulable);
        for image in info.images.keys() {
            if let Some(count) = self.images.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(image);
                }
            }
        }
        self.existing -= usize::from(info.node.is_some());
        info.set_node(node);
        self.existing += usize::from(info.node.is_some());
        for image in info.images.keys() {
            *self.images.entry(image.clone()).or_default() += 1;
        }
        // Only these make places and say which nodes count.
        if before != (info.node.is_some(), info.labels.clone(), info.taints.clone(), info.unschedulable) {
            self.index.get_mut().clear();
        }
    }

    /// The pod exists in this state now. It counts if it is bound and has not ended; a pod that was
    /// assumed here stays where it was assumed until it is seen bound.
    pub(crate) fn pod_put(&mut self, pod: &Arc<PodInfo>) {
        let bound = !pod.node_name().is_empty();
        if is_terminal(&pod.pod) {
            self.pod_remove(&pod.uid);
        } else if bound {
            self.place(pod.node_name().to_owned(), pod.clone(), false);
        } else if !self.is_assumed(&pod.uid) {
            self.pod_remove(&pod.uid);
        }
    }

    /// The pod is gone or has ended; returns the node that it was on.
    pub(crate) fn pod_remove(&mut self, uid: &str) -> Option<String> {
        let placement = self.pods.remove(uid)?;
        let (position, generation) = (self.positions[&placement.node], self.next_generation());
        let pod = self.nodes[position].remove(uid);
        self.nodes[position].generation = generation;
        self.related.remove(uid);
        if let Some(pod) = &pod {
            self.index.get_mut().change(pod, position, -1, &self.nodes, &self.namespaces);
        }
        if let Some(family) = pod.as_ref().and_then(|pod| pod.family.as_ref())
            && let Some(nodes) = self.families.get_mut(family)
        {
            if let Some(count) = nodes.get_mut(&placement.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&placement.node);
                }
            }
            if nodes.is_empty() {
                self.families.remove(family);
            }
        }
        self.forget_if_empty(&placement.node);
        Some(placement.node)
    }

    /// This scheduler has decided for `node`: count the pod there before the API server shows it.
    pub(crate) fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(node.to_owned(), pod, true);
    }

    /// The decision could not be carried out; returns the node that is free again.
    pub(crate) fn forget(&mut self, uid: &str) -> Option<String> {
        if self.is_assumed(uid) { self.pod_remove(uid) } else { None }
    }

    pub(crate) fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placement| placement.assumed)
    }

    fn place(&mut self, node: String, pod: Arc<PodInfo>, assumed: bool) {
        self.pod_remove(&pod.uid);
        let (position, generation) = (self.position(&node), self.next_generation());
        if !pod.relations.is_empty() {
            self.related.insert(pod.uid.clone(), (pod.clone(), node.clone()));
        }
        if let Some(family) = &pod.family {
            *self.families.entry(family.clone()).or_default().entry(node.clone()).or_default() += 1;
        }
        self.pods.insert(pod.uid.clone(), Placement { node, assumed });
        self.index.get_mut().change(&pod, position, 1, &self.nodes, &self.namespaces);
        self.nodes[position].generation = generation;
        self.nodes[position].add(pod);
    }

    fn position(&mut self, name: &str) -> usize {
        if let Some(position) = self.positions.get(name) {
            return *position;
        }
        self.index.get_mut().clear();
        self.nodes.push(NodeInfo::new(name));
        self.positions.insert(name.to_owned(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn forget_if_empty(&mut self, name: &str) {
        let position = self.positions[name];
        if self.nodes[position].is_forgotten() {
            self.positions.remove(name);
            self.index.get_mut().clear();
            self.epoch += 1;
            self.nodes.swap_remove(position);
            if let Some(moved) = self.nodes.get(position) {
                self.positions.insert(moved.name.clone(), position);
            }
        }
    }
}

/// Whether all containers have ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::core::resources::Resources;

    fn node(index: usize) -> Arc<Node> {
        let node = json!({"metadata": {"name": format!("n{index}")},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
                "images": [{"names": [format!("image{}", index % 2)], "sizeBytes": 10}]}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn pod(index: usize, node: Option<usize>, cpu: i64, phase: &str) -> Arc<PodInfo> {
        let owner = json!([{"uid": format!("rs{}", index % 2), "controller": true, "apiVersion": "apps/v1",
            "kind": "ReplicaSet", "name": "rs"}]);
        let pod = json!({"metadata": {"name": format!("p{index}"), "uid": format!("u{index}"), "ownerReferences": owner},
            "spec": {"nodeName": node.map(|node| format!("n{node}")),
                "containers": [{"name": "c", "resources": {"requests": {"cpu": format!("{cpu}m"), "x/y": cpu.to_string()}}}]},
            "status": {"phase": phase}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
    }

    #[derive(Clone, Debug)]
    enum Step {
        NodePut(usize),
        NodeRemove(usize),
        PodPut(usize, Option<usize>, i64, bool),
        PodRemove(usize),
        Assume(usize, usize, i64),
        Forget(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_usize).prop_map(Step::NodePut),
            (0..4_usize).prop_map(Step::NodeRemove),
            (0..6_usize, proptest::option::of(0..4_usize), 1..9_i64, any::<bool>())
                .prop_map(|(pod, node, cpu, ended)| Step::PodPut(pod, node, cpu, ended)),
            (0..6_usize).prop_map(Step::PodRemove),
            (0..6_usize, 0..4_usize, 1..9_i64).prop_map(|(pod, node, cpu)| Step::Assume(pod, node, cpu)),
            (0..6_usize).prop_map(Step::Forget),
        ]
    }

    /// What a fresh count would say: the existing nodes, and where each pod counts with how much.
    #[derive(Default)]
    struct Naive {
        nodes: BTreeMap<usize, ()>,
        pods: BTreeMap<usize, (usize, i64, bool)>,
    }

    impl Naive {
        fn apply(&mut self, step: &Step) {
            match *step {
                Step::NodePut(node) => drop(self.nodes.insert(node, ())),
                Step::NodeRemove(node) => drop(self.nodes.remove(&node)),
                Step::PodPut(pod, _, _, true) => drop(self.pods.remove(&pod)),
                Step::PodPut(pod, Some(node), cpu, false) => drop(self.pods.insert(pod, (node, cpu, false))),
                Step::PodPut(pod, None, _, false) => {
                    if self.pods.get(&pod).is_some_and(|(_, _, assumed)| !assumed) {
                        self.pods.remove(&pod);
                    }
                }
                Step::PodRemove(pod) => drop(self.pods.remove(&pod)),
                Step::Assume(pod, node, cpu) => drop(self.pods.insert(pod, (node, cpu, true))),
                Step::Forget(pod) => {
                    if self.pods.get(&pod).is_some_and(|(_, _, assumed)| *assumed) {
                        self.pods.remove(&pod);
                    }
                }
            }
        }

        fn check(&self, snapshot: &Snapshot) {
            assert_eq!(snapshot.existing(), self.nodes.len());
            for index in 0..4 {
                let mut expected = Resources::default();
                let here: Vec<_> = self.pods.values().filter(|(node, ..)| *node == index).collect();
                for (_, cpu, _) in &here {
                    let scalar = [("x/y".to_owned(), *cpu)].into();
                    expected += &Resources { cpu: *cpu, scalar, ..Resources::default() };
                }
                let info = snapshot.node(&format!("n{index}"));
                let exists = info.is_some_and(|info| info.node.is_some());
                assert_eq!(exists, self.nodes.contains_key(&index));
                let counted = info.map_or_else(Resources::default, |info| info.requested.clone());
                assert_eq!(counted, expected, "n{index}");
                assert_eq!(info.map_or(0, |info| info.pods.len()), here.len());
                assert_eq!(info.is_some(), exists || !here.is_empty(), "nothing is kept for nothing");
            }
            for family in 0..2 {
                let mut expected: BTreeMap<String, i64> = BTreeMap::new();
                for (node, ..) in
                    self.pods.iter().filter(|(pod, _)| *pod % 2 == family).map(|(_, place)| place)
                {
                    *expected.entry(format!("n{node}")).or_default() += 1;
                }
                let controller = format!("rs{family}");
                let counted = snapshot.family(&controller);
                let counted: BTreeMap<_, _> =
                    counted.map(|(node, count)| (snapshot.nodes()[node].name.clone(), count)).collect();
                assert_eq!(counted, expected);
            }
            for image in 0..2 {
                let count = self.nodes.keys().filter(|node| *node % 2 == image).count();
                let spread = snapshot.image_spread(&format!("image{image}:latest"));
                assert!((spread - count as f64 / self.nodes.len().max(1) as f64).abs() < 1e-9);
            }
        }
    }

    proptest! {
        #[test]
        fn change_by_change_equals_a_fresh_count(steps in proptest::collection::vec(step(), 1..60)) {
            let (mut snapshot, mut naive) = (Snapshot::default(), Naive::default());
            for step in steps {
                match step.clone() {
                    Step::NodePut(index) => snapshot.node_put(node(index)),
                    Step::NodeRemove(index) => snapshot.node_remove(&format!("n{index}")),
                    Step::PodPut(index, node, cpu, ended) => {
                        snapshot.pod_put(&pod(index, node, cpu, if ended { "Failed" } else { "Running" }));
                    }
                    Step::PodRemove(index) => drop(snapshot.pod_remove(&format!("u{index}"))),
                    Step::Assume(index, node, cpu) => {
                        snapshot.assume(pod(index, None, cpu, "Pending"), &format!("n{node}"));
                    }
                    Step::Forget(index) => drop(snapshot.forget(&format!("u{index}"))),
                }
                naive.apply(&step);
                naive.check(&snapshot);
            }
        }
    }
}
