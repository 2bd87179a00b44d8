//! How a pod relates to other pods: affinity, anti-affinity and spreading, as its spec asks for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use decapod_api::labels::{Operator, Requirement, Selector};
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint};

use super::pod::PodInfo;

/// The labels of the namespaces, for terms that select namespaces.
pub(crate) type Namespaces = HashMap<String, BTreeMap<String, String>>;

type Labels = BTreeMap<String, String>;

/// Other pods, and the node label whose value makes the place that a pod wants to share with them, or not.
#[derive(Debug)]
pub(crate) struct PodTerm {
    selector: Selector,
    /// What the others must have in common with this pod besides (`matchLabelKeys`), and what not
    /// (`mismatchLabelKeys`).
    common: Vec<Requirement>,
    namespaces: BTreeSet<String>,
    namespace_selector: Selector,
    pub(crate) topology_key: String,
}

impl PodTerm {
    fn new(term: &PodAffinityTerm, own_namespace: &str, labels: Option<&Labels>) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(own_namespace.to_owned());
        }
        // A selector that makes no sense was refused by the API server; it selects nothing.
        let parse = |selector| Selector::try_from(selector).unwrap_or_else(|_| Selector::nothing());
        let alike = shared(term.match_label_keys.as_ref(), labels, |value| Operator::In(vec![value]));
        let unlike = shared(term.mismatch_label_keys.as_ref(), labels, |value| Operator::NotIn(vec![value]));
        Self {
            selector: parse(term.label_selector.as_ref()),
            common: alike.chain(unlike).collect(),
            namespaces,
            namespace_selector: parse(term.namespace_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term means this pod.
    pub(crate) fn matches(&self, pod: &Pod, namespaces: &Namespaces) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let in_namespace = self.namespaces.contains(namespace)
            || self.namespace_selector.is_everything()
            || self.namespace_selector.matches_optional(namespaces.get(namespace));
        in_namespace && selects(&self.selector, &self.common, pod)
    }
}

/// Requirements on the pod's own values of these label keys; keys that it does not have demand nothing.
fn shared<'a>(
    keys: Option<&'a Vec<String>>,
    labels: Option<&'a Labels>,
    operator: impl Fn(String) -> Operator + 'a,
) -> impl Iterator<Item = Requirement> + 'a {
    let own = keys.into_iter().flatten().filter_map(move |key| Some((key, labels?.get(key)?)));
    own.map(move |(key, value)| Requirement { key: key.clone(), operator: operator(value.clone()) })
}

fn selects(selector: &Selector, common: &[Requirement], pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let value = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    selector.matches_optional(labels) && common.iter().all(|one| one.matches(value(&one.key)))
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
    pub(crate) fn new(spec: &PodSpec, namespace: &str, labels: Option<&Labels>) -> Self {
        let Some(affinity) = &spec.affinity else { return Self::default() };
        let with = affinity.pod_affinity.as_ref();
        let without = affinity.pod_anti_affinity.as_ref();
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|term| PodTerm::new(term, namespace, labels)).collect()
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
                .map(|(one, weight)| (PodTerm::new(&one.pod_affinity_term, namespace, labels), weight))
                .collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred.is_empty()
    }
}

/// Which pods are to be spread.
#[derive(Debug)]
enum Who {
    /// Those of the same namespace that a selector matches, and that have these labels in common.
    Selected(Selector, Vec<Requirement>),
    /// Those of the same controller.
    Family,
}

/// How evenly pods are to be spread over the values of a node label.
#[derive(Debug)]
pub(crate) struct Spread {
    pub(crate) topology_key: String,
    who: Who,
    pub(crate) max_skew: i64,
    pub(crate) min_domains: usize,
    /// `DoNotSchedule`; otherwise it is only preferred.
    pub(crate) hard: bool,
    /// Whether only nodes that the pod's node affinity allows are counted.
    pub(crate) honors_affinity: bool,
    /// Whether only nodes whose taints the pod tolerates are counted.
    pub(crate) honors_taints: bool,
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, who: Who) -> Self {
        Self {
            topology_key: constraint.topology_key.clone(),
            who,
            max_skew: i64::from(constraint.max_skew),
            min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(0),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// As a pod of these labels asks for it.
    fn asked_for(constraint: &TopologySpreadConstraint, labels: Option<&Labels>) -> Self {
        let selector = constraint.label_selector.as_ref();
        let selector = Selector::try_from(selector).unwrap_or_else(|_| Selector::nothing());
        let common = shared(constraint.match_label_keys.as_ref(), labels, |value| Operator::In(vec![value]));
        Self::new(constraint, Who::Selected(selector, common.collect()))
    }

    /// As a profile has it for pods that ask for none: the pods of one controller are spread.
    pub(crate) fn by_default(constraint: &TopologySpreadConstraint) -> Self {
        Self::new(constraint, Who::Family)
    }

    /// Whether `other` is one of those among which `pod` is to be spread. Pods that are on their way out are not.
    pub(crate) fn matches(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        let (meta, others) = (&pod.pod.metadata, &other.pod.metadata);
        if others.deletion_timestamp.is_some() || meta.namespace != others.namespace {
            return false;
        }
        match &self.who {
            Who::Selected(selector, common) => selects(selector, common, &other.pod),
            Who::Family => pod.family.is_some() && pod.family == other.family,
        }
    }
}

/// The spreading that a pod asks for.
pub(crate) fn spreads(spec: &PodSpec, labels: Option<&Labels>) -> Vec<Spread> {
    let constraints = spec.topology_spread_constraints.iter().flatten();
    constraints.map(|constraint| Spread::asked_for(constraint, labels)).collect()
}

/// A text that is the same for pods whose relations are the same: they share what was counted for one of them. None
/// for pods without relations.
pub(crate) fn signature(spec: &PodSpec, namespace: &str, labels: Option<&Labels>) -> Option<String> {
    let affinity = spec.affinity.as_ref();
    let relates = affinity.is_some_and(|one| one.pod_affinity.is_some() || one.pod_anti_affinity.is_some());
    let constraints = spec.topology_spread_constraints.as_ref().filter(|list| !list.is_empty());
    if !relates && constraints.is_none() {
        return None;
    }
    let with = affinity.and_then(|one| one.pod_affinity.as_ref());
    let terms = |required: Option<&Vec<PodAffinityTerm>>| {
        required
            .into_iter()
            .flatten()
            .any(|term| term.match_label_keys.is_some() || term.mismatch_label_keys.is_some())
    };
    let without = affinity.and_then(|one| one.pod_anti_affinity.as_ref());
    let preferred = with
        .and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(without.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref()))
        .flatten();
    // Its own labels matter only where terms name their keys.
    let own = terms(with.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref()))
        || terms(without.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref()))
        || preferred
            .map(|one| &one.pod_affinity_term)
            .any(|term| term.match_label_keys.is_some() || term.mismatch_label_keys.is_some())
        || constraints.into_iter().flatten().any(|one| one.match_label_keys.is_some());
    // Which nodes count for spreading depends on where the pod may run.
    let nodes = constraints.map(|_| {
        (&spec.node_selector, affinity.and_then(|one| one.node_affinity.as_ref()), &spec.tolerations)
    });
    let all = (namespace, with, without, constraints, nodes, own.then_some(labels));
    // Texts and numbers: nothing in there cannot be written.
    serde_json::to_string(&all).ok()
}
