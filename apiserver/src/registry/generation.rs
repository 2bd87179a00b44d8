//! `metadata.generation`: counts the changes of what a user asks for, not those of status.

use decapod_api::resource::Resource;
use serde_json::Value;

use super::object::set_meta;

/// Whether Kubernetes counts generations of a kind.
fn counted(resource: &Resource) -> bool {
    match resource.group {
        "" => matches!(resource.plural, "pods" | "replicationcontrollers"),
        "apps" => resource.plural != "controllerrevisions",
        "batch" | "networking.k8s.io" => matches!(
            resource.plural,
            "jobs" | "cronjobs" | "ingresses" | "networkpolicies" | "ingressclasses"
        ),
        "policy" | "admissionregistration.k8s.io" | "apiextensions.k8s.io" | "discovery.k8s.io" => true,
        "flowcontrol.apiserver.k8s.io" | "resource.k8s.io" => resource.plural != "resourceclaimtemplates",
        "scheduling.k8s.io" => true,
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
        Some(n) if counted(resource) && changed(new, old) => Value::from(n + 1),
        Some(n) => Value::from(n),
        None => Value::Null,
    };
    set_meta(new, "generation", generation);
}

fn changed(new: &Value, old: &Value) -> bool {
    let relevant = |object: &Value| {
        let fields = object.as_object().into_iter().flatten();
        fields
            .filter(|(k, _)| *k != "metadata" && *k != "status")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<Vec<_>>()
    };
    relevant(new) != relevant(old)
}

/// A started deletion counts as a change of what is asked for.
pub(crate) fn bump(object: &mut Value) {
    if let Some(n) = object["metadata"]["generation"].as_i64() {
        set_meta(object, "generation", (n + 1).into());
    }
}
