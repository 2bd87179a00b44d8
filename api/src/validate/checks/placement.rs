//! Where pods may run: tolerations, affinities, spreading, and the selectors in them.

use super::super::{At, Errors};
use crate::names;

/// A toleration.
pub(super) fn toleration(at: &At<'_>, errors: &mut Errors) {
    let (operator, value) = (at.get("operator"), at.get("value"));
    if at.get("key").is_empty() && operator.text() != "Exists" {
        let why =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.invalid_value(&operator, operator.text(), why);
    }
    if at.get("tolerationSeconds").is_set() && at.get("effect").text() != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.invalid_value(&at.get("effect"), at.get("effect").text(), why);
    }
    match operator.text() {
        "" | "Equal" => {
            let wrong = names::label_value(value.text());
            if !wrong.is_empty() {
                errors.invalid_value(&operator, value.text(), wrong.join(";"));
            }
        }
        "Exists" if !value.is_empty() => {
            errors.invalid_value(&operator, value.text(), "value must be empty when `operator` is 'Exists'");
        }
        "Exists" => {}
        // KEP-5471 is not on by default.
        "Gt" | "Lt" => {
            errors.not_supported_value(&operator, operator.text(), &["Equal", "Exists", "Gt", "Lt"]);
        }
        _ => errors.one_of(&operator, &["Equal", "Exists"]),
    }
}

/// A term of a node selector.
pub(super) fn node_term(at: &At<'_>, errors: &mut Errors) {
    at.get("matchExpressions").items().for_each(|r| requirement(&r, true, errors));
    for requirement in at.get("matchFields").items() {
        let (key, values) = (requirement.get("key"), requirement.get("values"));
        match requirement.get("operator").text() {
            "In" | "NotIn" if values.len() != 1 => {
                errors.required(
                    &values,
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                );
            }
            "In" | "NotIn" => {}
            _ => errors.invalid(&requirement.get("operator"), "not a valid selector operator"),
        }
        if key.text() == "metadata.name" {
            values.items().for_each(|value| errors.invalid_all(&value, names::dns_subdomain(value.text())));
        } else {
            errors.invalid(&key, "not a valid field selector key");
        }
    }
}

/// How much a preference counts.
pub(super) fn weight(at: &At<'_>, errors: &mut Errors) {
    let weight = at.get("weight");
    if !(1..=100).contains(&weight.int().unwrap_or(0)) {
        errors.invalid(&weight, "must be in the range 1-100");
    }
}

/// Pods to be near, or not.
pub(super) fn affinity_term(at: &At<'_>, errors: &mut Errors) {
    let (with, without) = (at.get("matchLabelKeys"), at.get("mismatchLabelKeys"));
    let selector = at.get("labelSelector");
    for keys in [&with, &without] {
        if keys.is_empty() {
            continue;
        }
        if !selector.is_set() {
            errors.forbidden(keys, "must not be specified when labelSelector is not set");
        }
        keys.items().for_each(|key| errors.invalid_all(&key, names::qualified(key.text())));
    }
    for key in with.items().filter(|k| without.items().any(|other| other.value == k.value)) {
        errors.invalid(&key, "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

/// How pods are spread.
pub(super) fn spread(at: &At<'_>, errors: &mut Errors) {
    let (skew, action, domains) = (at.get("maxSkew"), at.get("whenUnsatisfiable"), at.get("minDomains"));
    if skew.int().unwrap_or(0) <= 0 {
        errors.invalid(&skew, "must be greater than zero");
    }
    if action.is_empty() {
        errors.one_of(&action, &["DoNotSchedule", "ScheduleAnyway"]);
    }
    if domains.is_set() && action.text() != "DoNotSchedule" {
        let why =
            format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", action.text());
        errors.invalid(&domains, why);
    }
    let (keys, selector) = (at.get("matchLabelKeys"), at.get("labelSelector"));
    if !keys.is_empty() && !selector.is_set() {
        errors.forbidden(&keys, "must not be specified when labelSelector is not set");
    }
    for key in keys.items() {
        errors.invalid_all(&key, names::qualified(key.text()));
    }
}

/// A label selector, wherever there is one.
pub(super) fn label_selector(at: &At<'_>, errors: &mut Errors) {
    super::super::rules::labels(&at.get("matchLabels"), errors);
    at.get("matchExpressions").items().for_each(|r| requirement(&r, false, errors));
}

fn requirement(at: &At<'_>, compares: bool, errors: &mut Errors) {
    let (key, values) = (at.get("key"), at.get("values"));
    match at.get("operator").text() {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if compares && values.len() != 1 => {
            errors.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        "Gt" | "Lt" if compares => {}
        _ => errors.invalid(&at.get("operator"), "not a valid selector operator"),
    }
    errors.invalid_all(&key, names::qualified(key.text()));
    values.items().for_each(|value| errors.invalid_all(&value, names::label_value(value.text())));
}
