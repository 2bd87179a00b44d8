//! Which nodes will do for a pod by its own wishes and the nodes' taints: what the scheduler would say of it,
//! but for room.

use decapod_api::node_selector::Term;
use k8s_openapi::api::core::v1::{Node, PodSpec, Taint, Toleration};
use kube::ResourceExt;

/// The wishes of a pod, worked out once for many nodes.
#[derive(Debug)]
pub(crate) struct Placement<'a> {
    spec: &'a PodSpec,
    /// The alternatives of its required node affinity; `None` where it has none.
    terms: Option<Vec<Term>>,
}

impl<'a> Placement<'a> {
    pub(crate) fn new(spec: &'a PodSpec) -> Self {
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
        let terms =
            required.map(|selector| selector.node_selector_terms.iter().map(Term::new).collect::<Vec<_>>());
        Self { spec, terms }
    }

    /// Whether the pod wants to be on this node, by name, labels and affinity.
    pub(crate) fn wants(&self, node: &Node) -> bool {
        let (name, labels) = (node.name_any(), node.labels());
        let given = self.spec.node_name.as_deref().unwrap_or_default();
        let mut selector = self.spec.node_selector.iter().flatten();
        (given.is_empty() || given == name)
            && selector.all(|(key, value)| labels.get(key) == Some(value))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(&name, labels)))
    }
}

/// Whether all taints of these effects are tolerated.
pub(crate) fn tolerated(node: &Node, tolerations: &[Toleration], effects: &[&str]) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut taints = taints.filter(|taint| effects.contains(&taint.effect.as_str()));
    taints.all(|taint| tolerations.iter().any(|toleration| covers(toleration, taint)))
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().filter(|key| !key.is_empty());
    let effect = toleration.effect.as_deref().filter(|effect| !effect.is_empty());
    let fits = effect.is_none_or(|effect| effect == taint.effect) && key.is_none_or(|key| key == taint.key);
    let (wanted, value) = (toleration.value.as_deref(), taint.value.as_deref());
    let same = wanted.unwrap_or_default() == value.unwrap_or_default();
    let by_value = matches!(toleration.operator.as_deref(), None | Some("" | "Equal"));
    fits && (toleration.operator.as_deref() == Some("Exists") || (by_value && key.is_some() && same))
}
