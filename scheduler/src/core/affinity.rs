//! Node selectors and node affinity: which nodes a pod must or would rather run on, by their labels.

use std::collections::{BTreeMap, BTreeSet};

use decapod_api::labels::Selector;
use decapod_api::node_selector::Term;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm};

/// What a node must be like: the selector and, if there are terms, at least one of them.
#[derive(Debug, Default)]
pub(crate) struct NodeTerms {
    selector: Option<Selector>,
    terms: Option<Vec<Term>>,
    /// The only nodes that can match, where the terms name them.
    names: Option<BTreeSet<String>>,
}

impl NodeTerms {
    /// The terms of a node selector.
    pub(crate) fn of(selector: Option<&NodeSelector>) -> Self {
        let terms = selector.map(|selector| &selector.node_selector_terms);
        Self {
            selector: None,
            terms: terms.map(|terms| terms.iter().map(Term::new).collect()),
            names: terms.and_then(|terms| {
                let each: Option<Vec<_>> = terms.iter().map(names).collect();
                each.map(|each| each.into_iter().flatten().collect())
            }),
        }
    }

    /// The only nodes that can match; none if the terms name no nodes.
    pub(crate) fn names(&self) -> Option<&BTreeSet<String>> {
        self.names.as_ref()
    }

    /// Whether a node of this name and these labels will do.
    pub(crate) fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.selector.as_ref().is_none_or(|selector| selector.matches(labels))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }
}

/// A preference and what it counts.
#[derive(Debug)]
pub(crate) struct Preference {
    term: Term,
    pub(crate) weight: i32,
}

impl Preference {
    pub(crate) fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.term.matches(name, labels)
    }
}

/// What the pod requires of its node.
pub(crate) fn required(spec: &PodSpec) -> NodeTerms {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    NodeTerms { selector: spec.node_selector.as_ref().map(Selector::from_map), ..NodeTerms::of(required) }
}

/// The nodes that a term names; none if it names no nodes.
fn names(term: &NodeSelectorTerm) -> Option<BTreeSet<String>> {
    let fields = term.match_fields.iter().flatten();
    let named = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
    let sets = named.map(|field| field.values.iter().flatten().cloned().collect::<BTreeSet<_>>());
    sets.reduce(|all, more| &all & &more)
}

/// What the pod prefers of its node.
pub(crate) fn preferred(spec: &PodSpec) -> Vec<Preference> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let preferred =
        affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    preferences(preferred)
}

/// The preferences of a list.
pub(crate) fn preferences(list: Option<&Vec<PreferredSchedulingTerm>>) -> Vec<Preference> {
    let each = list.into_iter().flatten();
    each.map(|one| Preference { term: Term::new(&one.preference), weight: one.weight }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn matches(affinity: Value, labels: &[(&str, &str)]) -> bool {
        let terms = json!({"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": affinity}}});
        let spec: PodSpec = serde_json::from_value(json!({"containers": [], "affinity": terms})).unwrap();
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        required(&spec).matches("n1", &labels)
    }

    fn expression(operator: &str, values: Value) -> Value {
        json!([{"matchExpressions": [{"key": "disk", "operator": operator, "values": values}]}])
    }

    #[test]
    fn operators() {
        assert!(matches(expression("In", json!(["ssd", "nvme"])), &[("disk", "ssd")]));
        assert!(!matches(expression("In", json!(["ssd"])), &[]));
        assert!(matches(expression("NotIn", json!(["hdd"])), &[]));
        assert!(matches(expression("Exists", json!(null)), &[("disk", "x")]));
        assert!(matches(expression("DoesNotExist", json!(null)), &[]));
        assert!(matches(expression("Gt", json!(["4"])), &[("disk", "5")]));
        assert!(!matches(expression("Gt", json!(["4"])), &[("disk", "many")]));
        assert!(!matches(expression("Lt", json!(["4"])), &[("disk", "5")]));
        assert!(!matches(expression("Gt", json!(["x"])), &[("disk", "5")]), "no number: matches nothing");
    }

    #[test]
    fn one_of_the_terms_is_enough_and_an_empty_one_matches_nothing() {
        let name = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        assert!(matches(json!([name("n2"), name("n1")]), &[]));
        assert!(!matches(json!([name("n2")]), &[]));
        assert!(!matches(json!([{}]), &[]));
    }
}
