//! How a pod relates to other pods: affinity, anti-affinity and spreading, as its spec asks for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use decapod_api::labels::{Operator, Requirement, Selector};
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint};

/// The labels of the namespaces, for terms that select namespaces.
pub(crate) type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// Other pods, and the node label whose value makes the place that a pod wants to share with them, or not.
#[derive(Debug)]
pub(crate) struct PodTerm {
    selector: Selector,
    namespaces: BTreeSet<String>,
    namespace_selector: Selector,
    pub(crate) topology_key: String,
}

impl PodTerm {
    fn new(term: &PodAffinityTerm, own_namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(own_namespace.to_owned());
        }
        // A selector that makes no sense was refused by the API server; it selects nothing.
        let parse = |selector| Selector::try_from(selector).unwrap_or_else(|_| Selector::nothing());
        Self {
            selector: parse(term.label_selector.as_ref()),
            namespaces,
            namespace_selector: parse(term.namespace_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term means this pod.
    pub(crate) fn matches(&self, pod: &Pod, namespaces: &Namespaces) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let in_namespace = self.namespaces.contains(namespace)
            || self.namespace_selector.matches_optional(namespaces.get(namespace));
        in_namespace && self.selector.matches_optional(pod.metadata.labels.as_ref())
    }
}

/// All relations of a pod to other pods.
#[derive(Debug, Default)]
pub(crate) struct Relations {
    /// Each must be met by pods in the same place.
    pub(crate) affinity: Vec<PodTerm>,
    /// None may be met by pods in the same place.
    pub(crate) anti_affinity: Vec<PodTerm>,
    /// What is preferred, and how much; avoided if negative.
    pub(crate) preferred: Vec<(PodTerm, i64)>,
}

impl Relations {
    pub(crate) fn new(spec: &PodSpec, namespace: &str) -> Self {
        let Some(affinity) = &spec.affinity else { return Self::default() };
        let with = affinity.pod_affinity.as_ref();
        let without = affinity.pod_anti_affinity.as_ref();
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|term| PodTerm::new(term, namespace)).collect()
        };
        let liked = with.and_then(|with| with.preferred_during_scheduling_ignored_during_execution.as_ref());
        let disliked =
            without.and_then(|without| without.preferred_during_scheduling_ignored_during_execution.as_ref());
        let liked = liked.into_iter().flatten().map(|one| (one, i64::from(one.weight)));
        let disliked = disliked.into_iter().flatten().map(|one| (one, -i64::from(one.weight)));
        let preferred = liked.chain(disliked);
        Self {
            affinity: terms(
                with.and_then(|with| with.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: terms(
                without.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred: preferred
                .map(|(one, weight)| (PodTerm::new(&one.pod_affinity_term, namespace), weight))
                .collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred.is_empty()
    }
}

/// How evenly pods are to be spread over the values of a node label.
#[derive(Debug)]
pub(crate) struct Spread {
    pub(crate) topology_key: String,
    selector: Selector,
    /// What pods must have in common with this one besides (`matchLabelKeys`).
    common: Vec<Requirement>,
    pub(crate) max_skew: usize,
    pub(crate) min_domains: usize,
    /// `DoNotSchedule`; otherwise it is only preferred.
    pub(crate) hard: bool,
    /// Whether only nodes that the pod's node affinity allows are counted.
    pub(crate) honors_affinity: bool,
    /// Whether only nodes whose taints the pod tolerates are counted.
    pub(crate) honors_taints: bool,
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, labels: Option<&BTreeMap<String, String>>) -> Self {
        let selector = constraint.label_selector.as_ref();
        let selector = Selector::try_from(selector).unwrap_or_else(|_| Selector::nothing());
        let keys = constraint.match_label_keys.iter().flatten();
        let common = keys.filter_map(|key| Some((key, labels?.get(key)?))).map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In(vec![value.clone()]),
        });
        let number = |number: i32| usize::try_from(number).unwrap_or(0);
        Self {
            topology_key: constraint.topology_key.clone(),
            selector,
            common: common.collect(),
            max_skew: number(constraint.max_skew),
            min_domains: number(constraint.min_domains.unwrap_or(1)),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

impl Spread {
    /// Whether a pod of the same namespace is one of those that are to be spread.
    pub(crate) fn matches(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        let value = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        self.selector.matches_optional(labels) && self.common.iter().all(|one| one.matches(value(&one.key)))
    }
}

/// The spreading that a pod asks for.
pub(crate) fn spreads(spec: &PodSpec, labels: Option<&BTreeMap<String, String>>) -> Vec<Spread> {
    let constraints = spec.topology_spread_constraints.iter().flatten();
    constraints.map(|constraint| Spread::new(constraint, labels)).collect()
}
