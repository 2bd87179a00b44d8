//! Autoscalers and disruption budgets.

use super::super::{At, Errors, form};

/// The longest that an amount of change may be spread over, in seconds.
const MAX_PERIOD: i64 = 1800;
/// The longest that past recommendations may be looked at, in seconds.
const MAX_WINDOW: i64 = 3600;

/// An autoscaler's spec, of either version.
pub(super) fn autoscaler(at: &At<'_>, errors: &mut Errors) {
    let (least, most) = (at.get("minReplicas"), at.get("maxReplicas"));
    // Zero stays where it came in while that was allowed (KEP-2021, off by default).
    let lowest = i64::from(least.before().int() != Some(0));
    if least.int().is_some_and(|n| n < lowest) {
        errors.invalid(&least, format!("must be greater than or equal to {lowest}"));
    }
    let external = at.get("metrics").items().any(|m| matches!(m.get("type").text(), "Object" | "External"));
    if least.int() == Some(0) && !external {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(&at.get("metrics"), why);
    }
    let target = at.get("scaleTargetRef");
    if target.get("apiVersion").changed() || target.get("kind").changed() || target.old.is_none() {
        let in_core = target.get("kind").text() == "ReplicationController";
        api_version(&target.get("apiVersion"), in_core, errors);
    }
    match (least.int(), most.int()) {
        (_, Some(0) | None) => errors.required(&most, "must be set and greater than 0"),
        (_, Some(n)) if n < 0 => errors.invalid(&most, "must be greater than or equal to 1"),
        (Some(least), Some(n)) if least > n => {
            errors.invalid(&most, "must be greater than or equal to `minReplicas`");
        }
        _ => {}
    }
    at.get("metrics").items().for_each(|metric| source(&metric, errors));
}

/// The API version of an object that is referred to; of most, one without a group is a mistake.
fn api_version(at: &At<'_>, core: bool, errors: &mut Errors) {
    let text = at.text();
    let shown = |errors: &mut Errors, why: String| errors.invalid_value(at, text, why);
    if text.matches('/').count() > 1 {
        shown(errors, format!("unexpected GroupVersion string: {text}"));
    } else if !core && text.split_once('/').is_none_or(|(group, _)| group.is_empty()) {
        shown(errors, "apiVersion must specify API group".to_owned());
    }
}

const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("External", "external"),
];

/// A metric has the source that its type says, and no other.
fn source(at: &At<'_>, errors: &mut Errors) {
    let Some((_, wanted)) = SOURCES.iter().find(|(ty, _)| *ty == at.get("type").text()) else { return };
    for (_, field) in SOURCES {
        let is_set = at.get(field).is_set();
        if field == *wanted && !is_set {
            errors.required(&at.get(field), "must populate information for the given metric source");
        } else if field != *wanted && is_set {
            errors.forbidden(&at.get(field), "must populate the given metric source only");
        }
    }
    if *wanted == "object" && at.get(wanted).is_set() {
        api_version(&at.at(&["object", "describedObject", "apiVersion"]), true, errors);
    }
    let resource = at.at(&["containerResource", "name"]);
    if !resource.is_empty() {
        errors.invalid_all(&resource, super::pod_resources::name(resource.text()));
    }
    let target = at.get(wanted).get("target");
    if !target.is_set() {
        return;
    }
    let (value, average) = (target.get("value"), target.get("averageValue"));
    let utilization = target.get("averageUtilization");
    if !matches!(target.get("type").text(), "" | "Utilization" | "Value" | "AverageValue") {
        errors.invalid(&target.get("type"), "must be either Utilization, Value, or AverageValue");
    }
    for amount in [&value, &average].into_iter().filter(|a| a.is_set()) {
        let number = form::quantity(amount.value);
        if number.is_zero() || number.is_negative() {
            errors.invalid(amount, "must be positive");
        }
    }
    match *wanted {
        "object" if !value.is_set() && !average.is_set() => {
            errors.required(&average, "must set either a target value or averageValue");
        }
        "external" if !value.is_set() && !average.is_set() => {
            errors.required(&average, "must set either a target value for metric or a per-pod target");
        }
        "external" if value.is_set() && average.is_set() => {
            errors.forbidden(&value, "may not set both a target value for metric and a per-pod target");
        }
        "pods" if !average.is_set() => {
            errors.required(&average, "must specify a positive target averageValue");
        }
        "resource" | "containerResource" => match (utilization.is_set(), average.is_set()) {
            (false, false) => {
                errors.required(&utilization, "must set either a target raw value or a target utilization");
            }
            (true, true) => {
                errors.forbidden(&average, "may not set both a target raw value and a target utilization")
            }
            _ => {}
        },
        _ => {}
    }
}

/// How fast to scale.
pub(super) fn scaling_rules(at: &At<'_>, errors: &mut Errors) {
    if at.get("policies").is_empty() {
        errors.required(&at.get("policies"), "must specify at least one Policy");
    }
    let window = at.get("stabilizationWindowSeconds");
    match window.int() {
        Some(seconds) if seconds < 0 => errors.invalid(&window, "must be greater than or equal to zero"),
        Some(seconds) if seconds > MAX_WINDOW => {
            errors.invalid(&window, format!("must be less than or equal to {MAX_WINDOW}"));
        }
        _ => {}
    }
    for policy in at.get("policies").items() {
        for field in [policy.get("value"), policy.get("periodSeconds")] {
            if field.int().unwrap_or(0) <= 0 {
                errors.invalid(&field, form::NOT_POSITIVE);
            }
        }
        let period = policy.get("periodSeconds");
        if period.int().is_some_and(|n| n > MAX_PERIOD) {
            errors.invalid(&period, format!("must be less than or equal to {MAX_PERIOD}"));
        }
    }
}

/// A disruption budget says one of two things.
pub(super) fn disruption_budget(at: &At<'_>, errors: &mut Errors) {
    if at.get("minAvailable").is_set() && at.get("maxUnavailable").is_set() {
        errors.invalid(at, "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if form::percent(at.get(field).value).is_some_and(|n| n > 100) {
            errors.invalid(&at.get(field), "must not be greater than 100%");
        }
    }
}
