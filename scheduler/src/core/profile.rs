//! What a scheduler of one name does: which plugins it asks, how much each counts, and what they are told.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use super::affinity::{NodeTerms, Preference};
use super::plugin::{Plugin, Set};

/// A profile of `KubeSchedulerConfiguration`.
#[derive(Debug)]
pub(crate) struct Profile {
    /// The pods with this `spec.schedulerName` are its.
    pub(crate) name: String,
    /// The plugins that may hold a pod back before it is tried.
    pub(crate) gates: Set,
    /// The plugins that may reject a node.
    pub(crate) filters: Set,
    /// The plugins that may make room where there is none.
    pub(crate) post_filters: Set,
    /// The plugins that compare nodes, and how much each counts.
    pub(crate) weights: BTreeMap<Plugin, i64>,
    /// How many of the nodes are looked at until enough were found, in percent; by the size of the cluster if none.
    pub(crate) percentage: Option<usize>,
    pub(crate) fit: Fit,
    /// The resources whose use is to be balanced.
    pub(crate) balanced: Vec<(String, i64)>,
    pub(crate) affinity: AddedAffinity,
    pub(crate) pod_affinity: PodAffinity,
    pub(crate) spread: SpreadDefaults,
    pub(crate) preemption: Candidates,
}

/// `NodeResourcesFitArgs`.
#[derive(Debug)]
pub(crate) struct Fit {
    pub(crate) strategy: Strategy,
    /// The resources that count when nodes are compared, and how much each.
    pub(crate) resources: Vec<(String, i64)>,
    /// Extended resources that nobody checks here.
    pub(crate) ignored: BTreeSet<String>,
    /// Groups of such resources: what stands before the slash.
    pub(crate) ignored_groups: BTreeSet<String>,
}

/// Which nodes are better: those with more left, with less left, or as a curve says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    LeastAllocated,
    MostAllocated,
    /// Points of use in percent and the score there, of 100; by use.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// `NodeAffinityArgs`: what all pods of the profile require and prefer of their nodes besides.
#[derive(Debug, Default)]
pub(crate) struct AddedAffinity {
    pub(crate) required: NodeTerms,
    pub(crate) preferred: Vec<Preference>,
}

/// `InterPodAffinityArgs`.
#[derive(Debug)]
pub(crate) struct PodAffinity {
    /// What the required affinity of a pod that is placed counts for a pod that it likes.
    pub(crate) hard_weight: i64,
    /// Whether preferences of pods that are placed count only for pods that have such themselves.
    pub(crate) ignores_preferences_of_placed: bool,
}

/// `PodTopologySpreadArgs`: the spreading of pods that ask for none.
#[derive(Debug)]
pub(crate) enum SpreadDefaults {
    /// Kubernetes' own: softly over nodes and zones.
    System,
    List(Vec<TopologySpreadConstraint>),
}

/// `DefaultPreemptionArgs`: how many nodes are thought through for victims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates {
    pub(crate) percentage: usize,
    pub(crate) at_least: usize,
}

/// CPU and memory, which count alike.
pub(crate) fn usual_resources() -> Vec<(String, i64)> {
    vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)]
}

/// What each plugin that compares nodes counts if nobody says otherwise.
pub(crate) const DEFAULT_WEIGHTS: [(Plugin, i64); 7] = [
    (Plugin::TaintToleration, 3),
    (Plugin::NodeAffinity, 2),
    (Plugin::NodeResourcesFit, 1),
    (Plugin::PodTopologySpread, 2),
    (Plugin::InterPodAffinity, 2),
    (Plugin::NodeResourcesBalancedAllocation, 1),
    (Plugin::ImageLocality, 1),
];

/// The plugins that have a say in which nodes will do.
pub(crate) const FILTERS: [Plugin; 13] = [
    Plugin::NodeUnschedulable,
    Plugin::NodeName,
    Plugin::TaintToleration,
    Plugin::NodeAffinity,
    Plugin::NodePorts,
    Plugin::NodeResourcesFit,
    Plugin::VolumeRestrictions,
    Plugin::NodeVolumeLimits,
    Plugin::VolumeBinding,
    Plugin::VolumeZone,
    Plugin::PodTopologySpread,
    Plugin::InterPodAffinity,
    Plugin::DynamicResources,
];

impl Profile {
    /// Kubernetes' default, under this name.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            gates: [Plugin::SchedulingGates].into_iter().collect(),
            filters: FILTERS.into_iter().collect(),
            post_filters: [Plugin::DefaultPreemption].into_iter().collect(),
            weights: DEFAULT_WEIGHTS.into_iter().collect(),
            percentage: None,
            fit: Fit {
                strategy: Strategy::LeastAllocated,
                resources: usual_resources(),
                ignored: BTreeSet::new(),
                ignored_groups: BTreeSet::new(),
            },
            balanced: usual_resources(),
            affinity: AddedAffinity::default(),
            pod_affinity: PodAffinity { hard_weight: 1, ignores_preferences_of_placed: false },
            spread: SpreadDefaults::System,
            preemption: Candidates { percentage: 10, at_least: 100 },
        }
    }

    /// How much a plugin counts when nodes are compared; 0 if it is not asked.
    pub(crate) fn weight(&self, plugin: Plugin) -> i64 {
        self.weights.get(&plugin).copied().unwrap_or(0)
    }

    /// Whether the plugin may reject nodes.
    pub(crate) fn filters(&self, plugin: Plugin) -> bool {
        self.filters.contains(plugin)
    }

    /// Whether pods may be removed for others.
    pub(crate) fn preempts(&self) -> bool {
        self.post_filters.contains(Plugin::DefaultPreemption)
    }
}
