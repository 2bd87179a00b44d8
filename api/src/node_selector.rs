//! Node selectors: which nodes something must or would rather be on, by their labels and their name. Pods and
//! persistent volumes have them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::labels::{Operator, Requirement};

/// Requirements on labels and on fields (of which there is only the name), all of which must hold. A term
/// without any, or with one that makes no sense, matches no node.
#[derive(Debug)]
pub struct Term {
    labels: Vec<Requirement>,
    names: Vec<Requirement>,
    valid: bool,
}

impl Term {
    /// The term, worked out once for many nodes.
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let labels = term.match_expressions.iter().flatten();
        let names = term.match_fields.iter().flatten();
        let count = labels.clone().count() + names.clone().count();
        let names_valid = names.clone().all(|field| field.key == "metadata.name");
        let labels: Vec<_> = labels.filter_map(requirement).collect();
        let names: Vec<_> = names.filter_map(requirement).collect();
        let valid = count > 0 && names_valid && labels.len() + names.len() == count;
        Self { labels, names, valid }
    }

    /// Whether a node of this name and these labels will do.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.valid
            && self.labels.iter().all(|one| one.matches(labels.get(&one.key).map(String::as_str)))
            && self.names.iter().all(|one| one.matches(Some(name)))
    }
}

fn requirement(requirement: &NodeSelectorRequirement) -> Option<Requirement> {
    let values = requirement.values.clone().unwrap_or_default();
    let number = || values.first().filter(|_| values.len() == 1)?.parse().ok();
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan(number()?),
        "Lt" => Operator::LessThan(number()?),
        _ => return None,
    };
    Some(Requirement { key: requirement.key.clone(), operator })
}
