//! Deployments, ReplicaSets, StatefulSets, DaemonSets and ReplicationControllers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::super::{At, Errors, form};
use crate::labels::Selector;

/// A selector that chooses something, and the template's labels among it.
pub(super) fn selected(spec: &At<'_>, kind: &str, errors: &mut Errors) {
    let selector = spec.get("selector");
    let labels = spec.at(&["template", "metadata", "labels"]);
    let parsed = LabelSelector::deserialize(selector.value).ok().and_then(|s| Selector::try_from(&s).ok());
    match parsed {
        // What is wrong with its form is said by the check of the selector itself.
        None => {}
        Some(s) if s.is_everything() => {
            errors.invalid(&selector, format!("empty selector is invalid for {kind}"));
        }
        Some(s) if spec.get("template").is_set() && !s.matches_with(|key| labels.value[key].as_str()) => {
            errors.invalid(&labels, "`selector` does not match template `labels`");
        }
        Some(_) => {}
    }
    let noun = if spec.value.get("updateStrategy").is_none() { "ReplicaSet" } else { kind_noun(kind) };
    forever(spec, noun, errors);
}

fn kind_noun(kind: &str) -> &'static str {
    if kind == "statefulset" { "StatefulSet" } else { "DaemonSet" }
}

/// Pods of these run for ever.
fn forever(spec: &At<'_>, noun: &str, errors: &mut Errors) {
    let template = spec.at(&["template", "spec"]);
    let policy = template.get("restartPolicy");
    if policy.is_set() && policy.text() != "Always" {
        errors.one_of(&policy, &["Always"]);
    }
    let deadline = template.get("activeDeadlineSeconds");
    errors.forbid(&deadline, &format!("activeDeadlineSeconds in {noun} is not Supported"));
}

fn at_most_all(at: &At<'_>, errors: &mut Errors) {
    if form::percent(at.value).is_some_and(|n| n > 100) {
        errors.invalid(at, "must not be greater than 100%");
    }
}

/// Whether an amount is given, and nothing.
fn zero(at: &At<'_>) -> bool {
    form::number_or_percent(at.value).unwrap_or(0) == 0
}

/// Kubernetes names the whole strategy where its type is unknown.
fn one_type(strategy: &At<'_>, types: &[&str], errors: &mut Errors) {
    if !types.contains(&strategy.get("type").text()) {
        errors.one_of(strategy, types);
    }
}

/// A Deployment's spec.
pub(super) fn deployment(at: &At<'_>, errors: &mut Errors) {
    selected(at, "deployment", errors);
    let deadline = at.get("progressDeadlineSeconds");
    if deadline.int().is_some_and(|n| n <= at.get("minReadySeconds").int().unwrap_or(0)) {
        errors.invalid(&deadline, "must be greater than minReadySeconds");
    }
    let strategy = at.get("strategy");
    one_type(&strategy, &["Recreate", "RollingUpdate"], errors);
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "Recreate" => {
            errors.forbid(&rolling, "may not be specified when strategy `type` is 'Recreate'");
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            if zero(&unavailable) && zero(&surge) {
                errors.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
            }
            at_most_all(&unavailable, errors);
        }
        _ => {}
    }
}

/// A DaemonSet's spec.
pub(super) fn daemon_set(at: &At<'_>, errors: &mut Errors) {
    selected(at, "daemonset", errors);
    let strategy = at.get("updateStrategy");
    one_type(&strategy, &["OnDelete", "RollingUpdate"], errors);
    let rolling = strategy.get("rollingUpdate");
    if strategy.get("type").text() != "RollingUpdate" {
        return;
    }
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    at_most_all(&unavailable, errors);
    at_most_all(&surge, errors);
    match (zero(&unavailable), zero(&surge)) {
        (false, false) => errors.invalid(&surge, "may not be set when maxUnavailable is non-zero"),
        (true, true) => errors.required(&unavailable, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

/// A StatefulSet's spec.
pub(super) fn stateful_set(at: &At<'_>, errors: &mut Errors) {
    selected(at, "statefulset", errors);
    let management = at.get("podManagementPolicy");
    if !matches!(management.text(), "" | "OrderedReady" | "Parallel") {
        errors.invalid(&management, "must be 'OrderedReady' or 'Parallel'");
    }
    let strategy = at.get("updateStrategy");
    if !matches!(strategy.get("type").text(), "OnDelete" | "RollingUpdate") {
        errors.invalid(&strategy, "must be 'RollingUpdate' or 'OnDelete'");
    }
    let rolling = strategy.get("rollingUpdate");
    if strategy.get("type").text() == "OnDelete" && rolling.is_set() {
        errors.invalid(&rolling, "only allowed for updateStrategy 'RollingUpdate'");
    }
    let unavailable = rolling.get("maxUnavailable");
    if unavailable.is_set() {
        if zero(&unavailable) {
            errors.invalid(&unavailable, "cannot be 0");
        }
        at_most_all(&unavailable, errors);
    }
    let service = at.get("serviceName");
    if !service.is_empty() && at.old.is_none() {
        errors.invalid_all(&service, crate::names::dns_subdomain(service.text()));
    }
}

/// A ControllerRevision: what it keeps is a patch.
pub(super) fn controller_revision(at: &At<'_>, errors: &mut Errors) {
    let data = at.get("data");
    if at.old.is_none() && data.is_set() && !data.value.is_object() {
        errors.required(&data, "data must be a valid JSON object");
    }
}

/// What of a StatefulSet's spec can change.
const STATEFUL_MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// An update of a StatefulSet.
pub(super) fn stateful_set_update(at: &At<'_>, errors: &mut Errors) {
    let spec = at.get("spec");
    let Some(old) = spec.old.and_then(Value::as_object) else { return };
    let new = spec.value.as_object();
    let fixed = |name: &&String| !STATEFUL_MUTABLE.contains(&name.as_str());
    let fields = old.keys().chain(new.into_iter().flat_map(|m| m.keys())).filter(fixed);
    if fields.into_iter().any(|name| spec.get(name).changed()) {
        errors.forbidden(&spec, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
    }
}

/// The StatefulSet with volumes for its claims, as its pods will have them.
pub(super) fn with_claims(set: &Value) -> Option<Value> {
    let templates = set["spec"]["volumeClaimTemplates"].as_array().filter(|t| !t.is_empty())?;
    let names: Vec<&str> = templates.iter().filter_map(|t| t["metadata"]["name"].as_str()).collect();
    let mut set = set.clone();
    let template = set["spec"]["template"]["spec"].as_object_mut()?;
    let volumes = template.entry("volumes").or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?;
    volumes.retain(|v| !v["name"].as_str().is_some_and(|name| names.contains(&name)));
    for name in names {
        volumes.push(serde_json::json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    }
    drop_empty(&mut set);
    Some(set)
}

fn drop_empty(set: &mut Value) {
    if set["spec"]["template"]["spec"]["volumes"].as_array().is_some_and(Vec::is_empty)
        && let Some(spec) = set["spec"]["template"]["spec"].as_object_mut()
    {
        spec.remove("volumes");
    }
}

/// A ReplicationController's spec.
pub(super) fn replication_controller(at: &At<'_>, errors: &mut Errors) {
    let (selector, labels) = (at.get("selector"), at.at(&["template", "metadata", "labels"]));
    if at.get("template").is_set() && selector.entries().any(|(key, value)| &labels.value[key] != value.value)
    {
        errors.invalid(&labels, "`selector` does not match template `labels`");
    }
    forever(at, "ReplicationController", errors);
}
