//! ConfigMaps, Secrets, namespaces, limits and quotas.

use base64::Engine as _;
use serde_json::Value;

use super::super::{At, Errors, Scope, form};
use super::pod_resources;
use crate::quantity::Quantity;
use crate::{meta, names};

/// The most bytes of all values of a ConfigMap or Secret.
const MAX_SIZE: usize = 1024 * 1024;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

fn bytes(value: &Value) -> Vec<u8> {
    // A normalized object has base64 where it has bytes.
    base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default()
}

fn keys(at: &At<'_>, errors: &mut Errors) {
    for (key, entry) in at.entries() {
        errors.invalid_all_of(&entry, key, names::config_key(key));
    }
}

fn frozen(at: &At<'_>, fields: &[&str], errors: &mut Errors) {
    let flag = at.get("immutable");
    if !flag.before().yes() {
        return;
    }
    if !flag.yes() {
        errors.forbidden(&flag, IMMUTABLE);
    }
    for field in fields {
        if at.get(field).changed() {
            errors.forbidden(&at.get(field), IMMUTABLE);
        }
    }
}

/// A ConfigMap.
pub(super) fn config_map(at: &At<'_>, errors: &mut Errors) {
    let (data, binary) = (at.get("data"), at.get("binaryData"));
    keys(&data, errors);
    keys(&binary, errors);
    let mut size: usize = data.entries().map(|(_, v)| v.text().len()).sum();
    for (key, entry) in binary.entries() {
        size += bytes(entry.value).len();
        if data.key(key).is_set() {
            errors.invalid_value(&data.key(key), key, "duplicate of key present in binaryData");
        }
    }
    if size > MAX_SIZE {
        errors.too_long(at, MAX_SIZE);
    }
    frozen(at, &["data", "binaryData"], errors);
}

/// A Secret.
pub(super) fn secret(at: &At<'_>, errors: &mut Errors) {
    let data = at.get("data");
    keys(&data, errors);
    if data.entries().map(|(_, v)| bytes(v.value).len()).sum::<usize>() > MAX_SIZE {
        errors.too_long(&data, MAX_SIZE);
    }
    let missing = |key: &str| !data.key(key).is_set();
    let required: &[&str] = match at.get("type").text() {
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => &["username", "password"],
        "kubernetes.io/dockercfg" => {
            docker(&data.key(".dockercfg"), errors);
            &[".dockercfg"]
        }
        "kubernetes.io/dockerconfigjson" => {
            docker(&data.key(".dockerconfigjson"), errors);
            &[".dockerconfigjson"]
        }
        "kubernetes.io/service-account-token" => {
            let account = at.at(&["metadata", "annotations"]).key("kubernetes.io/service-account.name");
            errors.require(&account);
            &[]
        }
        _ => &[],
    };
    required.iter().filter(|key| missing(key)).for_each(|key| errors.required(&data.key(key), ""));
    errors.immutable(&at.get("type"));
    frozen(at, &["data"], errors);
}

/// What is said of a secret never shows it.
fn docker(at: &At<'_>, errors: &mut Errors) {
    if at.is_set()
        && let Err(e) = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes(at.value))
    {
        errors.invalid_value(at, "<secret contents redacted>", e.to_string());
    }
}

/// A namespace: what its finalizers are called, and which phase it may be in.
pub(super) fn namespace(at: &At<'_>, scope: Scope, errors: &mut Errors) {
    if scope == Scope::Status {
        let phase = at.at(&["status", "phase"]);
        let deleting = at.at(&["metadata", "deletionTimestamp"]).is_set();
        let spelled = At { path: at.get("status").path.child("Phase"), ..phase.clone() };
        match (deleting, phase.text()) {
            (false, "Active") | (true, "Terminating") => {}
            (false, _) => {
                errors.invalid(&spelled, "may only be 'Active' if `deletionTimestamp` is empty");
            }
            (true, _) => {
                errors.invalid(&spelled, "may only be 'Terminating' if `deletionTimestamp` is not empty");
            }
        }
        return;
    }
    for finalizer in at.at(&["spec", "finalizers"]).items() {
        errors.invalid_all(&finalizer, names::qualified(finalizer.text()));
        if let Some(why) = meta::unknown_finalizer(finalizer.text()) {
            errors.invalid(&finalizer, why);
        }
    }
}

const LIMIT_FIELDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

/// Limits of what is in a namespace.
pub(super) fn limit_range(at: &At<'_>, errors: &mut Errors) {
    let mut seen = Vec::new();
    for item in at.get("limits").items() {
        let ty = item.get("type");
        if seen.contains(&ty.text()) {
            errors.duplicate(&ty);
        }
        seen.push(ty.text());
        if !ty.is_empty() {
            errors.invalid_all(&ty, names::qualified(ty.text()));
            let standard = ["Container", "PersistentVolumeClaim", "Pod"].contains(&ty.text());
            if !standard && !ty.text().contains('/') {
                errors.invalid(&ty, "must be a standard limit type or fully qualified");
            }
        }
        if ty.text() == "Pod" {
            for field in ["default", "defaultRequest"] {
                if !item.get(field).is_empty() {
                    errors.forbidden(&item.get(field), "may not be specified when `type` is 'Pod'");
                }
            }
        }
        let storage = |field: &str| item.get(field).key("storage").is_set();
        if ty.text() == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
            let why = "either minimum or maximum storage value is required, but neither was provided";
            errors.required(&item.get("limits"), why);
        }
        let mut resources: Vec<&str> =
            LIMIT_FIELDS.iter().flat_map(|f| item.get(f).entries()).map(|(name, _)| name).collect();
        resources.sort_unstable();
        resources.dedup();
        if matches!(ty.text(), "Container" | "Pod") {
            for (resource, amount) in LIMIT_FIELDS.map(|f| item.get(f)).iter().flat_map(At::entries) {
                errors.invalid_all_of(&amount, resource, pod_resources::name(resource));
            }
        }
        resources.into_iter().for_each(|resource| limit(&item, resource, errors));
    }
}

fn limit(item: &At<'_>, resource: &str, errors: &mut Errors) {
    let amount = |field: &str| -> Option<Quantity> {
        let entry = item.get(field).key(resource);
        entry.is_set().then(|| form::quantity(entry.value))
    };
    let [most, least, default, request, ratio] = LIMIT_FIELDS.map(amount);
    let mut wrong = |field: &str, value: Quantity, why: String| {
        errors.invalid_value(&item.get(field).key(resource), value.to_string(), why);
    };
    if let (Some(least), Some(most)) = (least, most)
        && least > most
    {
        wrong("min", least, format!("min value {least} is greater than max value {most}"));
    }
    if let (Some(least), Some(request)) = (least, request)
        && least > request
    {
        let why = format!("min value {least} is greater than default request value {request}");
        wrong("defaultRequest", request, why);
    }
    if let (Some(request), Some(most)) = (request, most)
        && request > most
    {
        let why = format!("default request value {request} is greater than max value {most}");
        wrong("defaultRequest", request, why);
    }
    if let (Some(request), Some(default)) = (request, default)
        && request > default
    {
        let why = format!("default request value {request} is greater than default limit value {default}");
        wrong("defaultRequest", request, why);
    }
    if let (Some(least), Some(default)) = (least, default)
        && least > default
    {
        wrong("default", least, format!("min value {least} is greater than default value {default}"));
    }
    if let (Some(default), Some(most)) = (default, most)
        && default > most
    {
        wrong("default", most, format!("default value {default} is greater than max value {most}"));
    }
    if let Some(ratio) = ratio
        && ratio < Quantity::from_units(1)
    {
        wrong("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
    }
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const COUNTED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
const QUOTA: [&str; 12] = [
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "services.loadbalancers",
    "services.nodeports",
];

/// A quota: what it counts, and which pods.
pub(super) fn quota(at: &At<'_>, errors: &mut Errors) {
    counted(&at.get("hard"), errors);
    scopes(at, errors);
}

/// What a quota reports of what it counts.
pub(super) fn quota_status(at: &At<'_>, errors: &mut Errors) {
    counted(&at.get("hard"), errors);
    counted(&at.get("used"), errors);
}

/// Amounts of what a quota can count; objects are counted whole.
fn counted(amounts: &At<'_>, errors: &mut Errors) {
    for (name, amount) in amounts.entries() {
        let extended = name.contains('/') || name.starts_with("requests.hugepages-");
        let wrong = names::qualified(name);
        let known =
            QUOTA.contains(&name) || COUNTED.contains(&name) || extended || name.starts_with("hugepages-");
        if wrong.is_empty() && !known {
            errors.invalid_value(&amount, name, "must be a standard resource for quota");
        }
        errors.invalid_all_of(&amount, name, wrong);
        let whole = COUNTED.contains(&name) || name.starts_with("count/") || name.starts_with("services.");
        if whole && !form::quantity(amount.value).is_integer() {
            errors.invalid(&amount, "must be an integer");
        }
    }
}

fn scopes(at: &At<'_>, errors: &mut Errors) {
    let scopes = at.get("scopes");
    if at.get("scopes").changed() {
        errors.invalid(&scopes, "field is immutable");
    }
    let named: Vec<&str> = scopes.items().map(|s| s.text()).collect();
    if named.iter().any(|s| !SCOPES.contains(s)) {
        errors.invalid(&scopes, "unsupported scope");
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|s| named.contains(s)) {
            errors.invalid(&scopes, "conflicting scopes");
        }
    }
    const UNSUPPORTED: &str = "unsupported scope applied to resource";
    let counted: Vec<&str> = at.get("hard").entries().map(|(name, _)| name).collect();
    let cannot = |scope: &str| counted.iter().any(|resource| !counts(scope, resource));
    if named.iter().any(|scope| cannot(scope)) {
        errors.invalid(&scopes, UNSUPPORTED);
    }
    let requirements = at.at(&["scopeSelector", "matchExpressions"]);
    if requirements.items().any(|one| cannot(one.get("scopeName").text())) {
        errors.invalid(&requirements, UNSUPPORTED);
    }
    requirements.items().for_each(|r| scope_requirement(&r, errors));
}

/// Whether a quota of this scope can count this resource; what Kubernetes does not know, any scope may count.
fn counts(scope: &str, resource: &str) -> bool {
    const COMPUTE: [&str; 6] =
        ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let standard = QUOTA.contains(&resource) || COUNTED.contains(&resource);
    match scope {
        _ if !standard || !SCOPES.contains(&scope) => true,
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => resource == "pods" || COMPUTE.contains(&resource),
    }
}

fn scope_requirement(at: &At<'_>, errors: &mut Errors) {
    let (name, operator, values) = (at.get("scopeName"), at.get("operator"), at.get("values"));
    if !SCOPES.contains(&name.text()) {
        errors.invalid(&name, "unsupported scope");
    }
    let exists_only = !matches!(name.text(), "PriorityClass" | "VolumeAttributesClass");
    if exists_only && operator.text() != "Exists" {
        errors.invalid(&operator, "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
    }
    match operator.text() {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(
                &values,
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            );
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.invalid(
                &values,
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => errors.invalid(&operator, "not a valid selector operator"),
    }
}
