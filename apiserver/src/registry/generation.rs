//! `metadata.generation`: counts the changes of what a user asks for, not those of status.

use decapod_api::resource::Resource;
use serde_json::Value;

use super::object::set_meta;

/// Whether Kubernetes counts generations of a kind.
fn counted(resource: &Resource) -> bool {
    match resource.group {
        "" => matches!(resource.plural, "pods" | "podtemplates" | "replicationcontrollers"),
        "apps" => resource.plural != "controllerrevisions",
        "batch" | "networking.k8s.io" => matches!(
            resource.plural,
            "jobs" | "cronjobs" | "ingresses" | "networkpolicies" | "ingressclasses"
        ),
        "policy" | "admissionregistration.k8s.io" | "apiextensions.k8s.io" | "discovery.k8s.io" => true,
        "resource.k8s.io" => matches!(resource.plural, "deviceclasses" | "resourceslices"),
        "flowcontrol.apiserver.k8s.io" | "scheduling.k8s.io" => true,
        _ => false,
    }
}

/// The generation of a new object.
pub(crate) fn start(resource: &Resource, object: &mut Value) {
    let generation = if counted(resource) { Value::from(1) } else { Value::Null };
    set_meta(object, "generation", generation);
}

/// Carries the generation over, one higher if anything but status and metadata changed.
pub(crate) fn carry(resource: &Resource, new: &mut Value, old: &Value) {
    let before = old["metadata"]["generation"].as_i64();
    let generation = match before {
        Some(n) if counted(resource) && changed(resource, new, old) => Value::from(n + 1),
        Some(n) => Value::from(n),
        None => Value::Null,
    };
    set_meta(new, "generation", generation);
}

fn changed(resource: &Resource, new: &Value, old: &Value) -> bool {
    if resource.group.is_empty() && resource.plural == "pods" {
        return pod_changed(new, old);
    }
    // Who watches slices by their generation looks at their labels too.
    if resource.plural == "endpointslices" && new["metadata"]["labels"] != old["metadata"]["labels"] {
        return true;
    }
    let relevant = |object: &Value| {
        let fields = object.as_object().into_iter().flatten();
        fields
            .filter(|(k, _)| *k != "metadata" && *k != "status")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<Vec<_>>()
    };
    relevant(new) != relevant(old)
}

/// A binding is no change of what the user asks for.
fn pod_changed(new: &Value, old: &Value) -> bool {
    let (new, old) = (new["spec"].as_object(), old["spec"].as_object());
    let (Some(new), Some(old)) = (new, old) else { return new != old };
    if old.contains_key("nodeName") {
        return new != old;
    }
    let fields = |map: &serde_json::Map<String, Value>| map.len() - usize::from(map.contains_key("nodeName"));
    fields(new) != fields(old) || old.iter().any(|(field, value)| new.get(field) != Some(value))
}

/// A started deletion counts as a change of what is asked for.
pub(crate) fn bump(object: &mut Value) {
    if let Some(n) = object["metadata"]["generation"].as_i64() {
        set_meta(object, "generation", (n + 1).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{core, row};
    use serde_json::json;

    fn carried(resource: &Resource, old: Value, new: Value) -> Value {
        let (mut old, mut new) = (old, new);
        start(resource, &mut old);
        carry(resource, &mut new, &old);
        new["metadata"]["generation"].clone()
    }

    #[test]
    fn what_counts() {
        let pods = core("pods");
        let pod = |spec: Value| json!({"metadata": {}, "spec": spec, "status": {}});
        assert_eq!(carried(pods, pod(json!({"a": 1})), pod(json!({"a": 1, "nodeName": "n"}))), 1);
        assert_eq!(carried(pods, pod(json!({"a": 1})), pod(json!({"a": 2, "nodeName": "n"}))), 2);
        assert_eq!(carried(pods, pod(json!({"nodeName": "n"})), pod(json!({"nodeName": "n", "b": 1}))), 2);
        let slices = row("discovery.k8s.io", "v1", "endpointslices");
        let slice = |label: &str| json!({"metadata": {"labels": {"a": label}}, "endpoints": []});
        assert_eq!(carried(slices, slice("x"), slice("y")), 2);
        assert_eq!(carried(slices, slice("x"), slice("x")), 1);
        assert_eq!(
            carried(core("configmaps"), json!({"data": {}}), json!({"data": {"a": "b"}})),
            Value::Null
        );
    }
}
