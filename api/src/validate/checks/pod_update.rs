//! What of a pod can be set at creation only, what can change later, and by which subresource.

use serde_json::Value;

use super::super::{At, Errors, Scope, difference};
use super::container::Role;
use crate::kinds::{QosClass, qos_class_of};

/// What an update of a pod may change, in the words of Kubernetes.
const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n";
const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A pod, by what its request changes.
pub(super) fn pod(at: &At<'_>, scope: Scope, errors: &mut Errors) {
    if !at.get("spec").is_set() {
        return errors.required(&at.at(&["spec", "containers"]), "");
    }
    match (scope, at.old) {
        (Scope::Main, None) => created(at, errors),
        (Scope::Main, Some(_)) => {
            annotations(at, errors);
            updated(&at.get("spec"), errors);
        }
        (Scope::Status, _) => status(at, errors),
        (Scope::Ephemeral, _) => ephemeral_containers(&at.get("spec"), errors),
        (Scope::Resize, _) => resized(at, errors),
        (Scope::Whole, _) => {}
    }
}

fn created(at: &At<'_>, errors: &mut Errors) {
    let spec = at.get("spec");
    if !spec.get("ephemeralContainers").is_empty() {
        errors.forbidden(&spec.get("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.get("schedulingGates").is_empty() && !spec.get("nodeName").is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden(&spec.get("nodeName"), why);
    }
    let annotations = at.at(&["metadata", "annotations"]);
    let mirror = annotations.key(MIRROR);
    if mirror.is_set() && spec.get("nodeName").is_empty() {
        errors.invalid(&mirror, "must set spec.nodeName if mirror pod annotation is set");
    }
    deletion_cost(&annotations.key(DELETION_COST), errors);
}

fn deletion_cost(at: &At<'_>, errors: &mut Errors) {
    let text = at.text();
    let canonical = text.parse::<i32>().is_ok_and(|n| n.to_string() == text);
    if at.is_set() && !canonical {
        errors.invalid(at, "must be a 32bit integer");
    }
}

fn annotations(at: &At<'_>, errors: &mut Errors) {
    let annotations = at.at(&["metadata", "annotations"]);
    deletion_cost(&annotations.key(DELETION_COST), errors);
    let mirror = annotations.key(MIRROR);
    if mirror.changed() {
        let what = if mirror.before().is_set() { "remove or update" } else { "add" };
        errors.forbidden(&mirror, format!("may not {what} mirror pod annotation"));
    }
}

fn updated(spec: &At<'_>, errors: &mut Errors) {
    if spec.unchanged() {
        return;
    }
    let old = spec.before();
    for role in [Role::Main, Role::Init] {
        let list = spec.get(role.field());
        if list.len() != old.get(role.field()).len() {
            return errors.forbidden(&list, "pod updates may not add or remove containers");
        }
    }
    deadline(&spec.get("activeDeadlineSeconds"), errors);
    tolerations(&spec.get("tolerations"), errors);
    gates(&spec.get("schedulingGates"), errors);
    let mut allowed = old.value.clone();
    for role in [Role::Main, Role::Init] {
        let images: Vec<Value> = spec.get(role.field()).items().map(|c| c.value["image"].clone()).collect();
        // Not by index, which would put a null where there is no list.
        let containers = allowed.get_mut(role.field()).and_then(Value::as_array_mut);
        for (container, image) in containers.into_iter().flatten().zip(images) {
            set(container, "image", &image);
        }
    }
    let mut take = |field: &str| set(&mut allowed, field, spec.get(field).value);
    ["activeDeadlineSeconds", "schedulingGates", "tolerations"].into_iter().for_each(&mut take);
    let negative = old.get("terminationGracePeriodSeconds").int().is_some_and(|n| n < 0);
    if negative && spec.get("terminationGracePeriodSeconds").int() == Some(1) {
        take("terminationGracePeriodSeconds");
    }
    if !old.get("schedulingGates").is_empty() {
        take("nodeSelector");
        gated_selector(&spec.get("nodeSelector"), errors);
        let affinity = spec.at(&["affinity", "nodeAffinity"]);
        if gated_affinity(&affinity, errors) && affinity.is_set() {
            allowed["affinity"]["nodeAffinity"] = affinity.value.clone();
        }
    }
    if allowed != *spec.value {
        errors.forbidden(spec, format!("{MUTABLE}{}", difference::of(&allowed, spec.value)));
    }
}

/// Sets a field, or takes it out.
fn set(object: &mut Value, field: &str, value: &Value) {
    if value.is_null() {
        if let Some(map) = object.as_object_mut() {
            map.remove(field);
        }
    } else {
        object[field] = value.clone();
    }
}

fn deadline(at: &At<'_>, errors: &mut Errors) {
    match (at.before().int(), at.int()) {
        (Some(_), None) => errors.invalid(at, "must not update from a positive integer to nil value"),
        (Some(old), Some(new)) if old < new => {
            errors.invalid(at, "must be less than or equal to previous value");
        }
        _ => {}
    }
}

fn tolerations(at: &At<'_>, errors: &mut Errors) {
    let same = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"]
            .iter()
            .all(|f| a[*f].as_str().unwrap_or_default() == b[*f].as_str().unwrap_or_default())
    };
    let kept = at.before().items().all(|old| at.items().any(|new| same(old.value, new.value)));
    if !kept {
        errors.forbidden(at, "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn gates(at: &At<'_>, errors: &mut Errors) {
    let before = at.before();
    for gate in at.items().map(|g| g.get("name")) {
        if !before.items().any(|old| old.get("name").value == gate.value) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.text());
            errors.forbidden(&gate, why);
        }
    }
}

fn gated_selector(at: &At<'_>, errors: &mut Errors) {
    let before = at.before();
    if before.entries().any(|(key, old)| &at.value[key] != old.value) {
        errors.invalid(at, "only additions to spec.nodeSelector are allowed (no mutations or deletions)");
    }
}

/// Of a gated pod's node affinity, requirements may be added to the terms that are there.
fn gated_affinity(at: &At<'_>, errors: &mut Errors) -> bool {
    let terms = at.at(&["requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"]);
    let before: Vec<At<'_>> = terms.before().items().collect();
    if before.is_empty() {
        return true;
    }
    if before.len() != terms.len() {
        errors.invalid(&terms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
        return false;
    }
    let mut good = true;
    for (new, old) in terms.items().zip(before) {
        let kept = ["matchExpressions", "matchFields"].into_iter().all(|field| {
            let (new, old) = (new.get(field), old.get(field));
            new.len() >= old.len() && new.items().zip(old.items()).all(|(n, o)| n.value == o.value)
        });
        if !kept {
            errors.invalid(&new, "only additions are allowed (no mutations or deletions)");
            good = false;
        }
    }
    good
}

fn status(at: &At<'_>, errors: &mut Errors) {
    let status = at.get("status");
    let nominated = status.get("nominatedNodeName");
    if !nominated.is_empty() {
        errors.invalid_all(&nominated, crate::names::dns_subdomain(nominated.text()));
    }
    for condition in status.get("conditions").items() {
        let ty = condition.get("type");
        errors.invalid_all(&ty, crate::names::qualified(ty.text()));
    }
    errors.immutable(&status.get("qosClass"));
}

fn ephemeral_containers(spec: &At<'_>, errors: &mut Errors) {
    let list = spec.get("ephemeralContainers");
    for old in list.before().items() {
        let name = old.get("name").text();
        match list.items().find(|new| new.get("name").text() == name) {
            None => {
                errors
                    .forbidden(spec, format!("existing ephemeral containers {name:?} may not be removed\n"));
            }
            Some(new) if new.value != old.value => {
                errors
                    .forbidden(spec, format!("existing ephemeral containers {name:?} may not be changed\n"));
            }
            Some(_) => {}
        }
    }
}

fn resized(at: &At<'_>, errors: &mut Errors) {
    let spec = at.get("spec");
    let old = spec.before();
    let class = |spec: &At<'_>| -> QosClass { qos_class_of(spec.value) };
    if class(&spec) != class(&old) {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.invalid_value(&spec, class(&spec).as_str(), why);
    }
    for role in [Role::Main, Role::Init] {
        let (new, old) = (spec.get(role.field()), old.get(role.field()));
        for (new, old) in new.items().zip(old.items()) {
            container_resized(&new, &old, role, &spec, errors);
        }
    }
}

fn container_resized(new: &At<'_>, old: &At<'_>, role: Role, spec: &At<'_>, errors: &mut Errors) {
    let (now, before) = (new.get("resources"), old.get("resources"));
    if now.value == before.value {
        return;
    }
    if role == Role::Init && new.get("restartPolicy").text() != "Always" {
        let why = "resources for non-sidecar init containers are immutable";
        return errors.forbidden(spec, why);
    }
    for (field, why) in
        [("requests", "resource requests cannot be removed"), ("limits", "resource limits cannot be removed")]
    {
        let (now, before) = (now.get(field), before.get(field));
        if before.entries().any(|(name, _)| now.value[name].is_null()) {
            errors.forbidden(&now, why);
        }
        let others = |list: &At<'_>| -> Vec<(String, Value)> {
            let entries = list.entries().filter(|(name, _)| !matches!(*name, "cpu" | "memory"));
            entries.map(|(name, amount)| (name.to_owned(), amount.value.clone())).collect()
        };
        if others(&now) != others(&before) {
            errors.forbidden(spec, "only cpu and memory resources are mutable");
        }
    }
}
