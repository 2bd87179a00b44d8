//! `matchLabelKeys` and `mismatchLabelKeys` of a pod's affinity and spreading (KEP-3633, KEP-3243): the pod's own values
//! of these labels become requirements of the label selector, once, when it is created. So a label that changes later
//! changes nothing, and whoever reads the pod sees what is meant.

use serde_json::{Value, json};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Takes them over into the selectors of a new pod.
pub(super) fn merge(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let Some(spec) = pod.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(rules) = spec.pointer_mut(&format!("/affinity/{kind}")) else { continue };
        for term in items(rules.get_mut(REQUIRED)) {
            merge_into(term, &labels);
        }
        for preference in items(rules.get_mut(PREFERRED)) {
            if let Some(term) = preference.get_mut("podAffinityTerm") {
                merge_into(term, &labels);
            }
        }
    }
    for constraint in items(spec.get_mut("topologySpreadConstraints")) {
        merge_into(constraint, &labels);
    }
}

fn items(list: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    list.and_then(Value::as_array_mut).into_iter().flatten()
}

fn merge_into(term: &mut Value, labels: &Value) {
    // Without a selector nothing is selected, and validation says so.
    if !term["labelSelector"].is_object() {
        return;
    }
    let wanted = |field: &str, operator: &str| -> Vec<Value> {
        let keys = term[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        let own = keys.filter_map(|key| Some((key, labels.get(key)?.as_str()?)));
        own.map(|(key, value)| json!({"key": key, "operator": operator, "values": [value]})).collect()
    };
    let more = [wanted("matchLabelKeys", "In"), wanted("mismatchLabelKeys", "NotIn")].concat();
    if more.is_empty() {
        return;
    }
    let expressions = &mut term["labelSelector"]["matchExpressions"];
    match expressions.as_array_mut() {
        Some(known) => known.extend(more),
        None => *expressions = Value::Array(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_values_become_requirements() {
        let term = json!({"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone",
            "matchLabelKeys": ["version", "absent"], "mismatchLabelKeys": ["tenant"]});
        let mut pod = json!({"metadata": {"labels": {"version": "2", "tenant": "a"}}, "spec": {
            "affinity": {"podAffinity": {REQUIRED: [term]},
                "podAntiAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": term}]}},
            "topologySpreadConstraints": [{"labelSelector": {}, "matchLabelKeys": ["version"]}, {"matchLabelKeys": ["version"]}]}});
        merge(&mut pod);
        let version = json!({"key": "version", "operator": "In", "values": ["2"]});
        let tenant = json!({"key": "tenant", "operator": "NotIn", "values": ["a"]});
        let spec = &pod["spec"];
        let of = |term: &Value| term["labelSelector"]["matchExpressions"].clone();
        let both = json!([version, tenant]);
        assert_eq!(of(&spec["affinity"]["podAffinity"][REQUIRED][0]), both);
        assert_eq!(of(&spec["affinity"]["podAntiAffinity"][PREFERRED][0]["podAffinityTerm"]), both);
        assert_eq!(of(&spec["topologySpreadConstraints"][0]), json!([version]));
        assert_eq!(spec["topologySpreadConstraints"][1], json!({"matchLabelKeys": ["version"]}));
        let mut bare = json!({"metadata": {"name": "a"}, "spec": {"containers": []}});
        let before = bare.clone();
        merge(&mut bare);
        assert_eq!(bare, before);
    }
}
