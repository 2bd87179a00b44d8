//! What controllers report: numbers that must go together, and the addresses of load balancers.

use super::super::form;
use super::super::{At, Errors};
use crate::names;

/// The numbers of pods of a workload: all others are part of `replicas`.
pub(super) fn replicas(at: &At<'_>, errors: &mut Errors) {
    const PARTS: [&str; 5] =
        ["fullyLabeledReplicas", "updatedReplicas", "currentReplicas", "readyReplicas", "availableReplicas"];
    let count = |field: &str| at.get(field).int().unwrap_or(0);
    for field in PARTS.into_iter().filter(|field| count(field) > count("replicas")) {
        errors.invalid(&at.get(field), "cannot be greater than status.replicas");
    }
    if count("availableReplicas") > count("readyReplicas") {
        errors.invalid(&at.get("availableReplicas"), "cannot be greater than readyReplicas");
    }
    collisions(at, errors);
}

/// How often a name was taken only grows, or the next one would be an old one.
pub(super) fn collisions(at: &At<'_>, errors: &mut Errors) {
    let count = at.get("collisionCount");
    let now = count.int().unwrap_or(0);
    if count.before().int().is_some_and(|before| now < before) {
        errors.invalid_value(&count, now, "cannot be decremented");
    }
}

/// Only services of one type are balanced from outside.
pub(super) fn service(at: &At<'_>, errors: &mut Errors) {
    let ingress = at.at(&["status", "loadBalancer", "ingress"]);
    if !ingress.is_empty() && at.at(&["spec", "type"]).text() != "LoadBalancer" {
        errors.forbidden(&ingress, "may only be used when `spec.type` is 'LoadBalancer'");
    }
}

/// A load balancer has a name or an address, each in its own field.
pub(super) fn ingress(at: &At<'_>, errors: &mut Errors) {
    let host = at.get("hostname");
    if form::address(host.text()).is_some() {
        errors.invalid(&host, "must be a DNS name, not an IP address");
    }
}

/// Of these a node has whole ones only.
const WHOLE: [&str; 1] = ["pods"];

/// What a node reports: addresses that differ, features by name, whole pods.
pub(super) fn node(at: &At<'_>, errors: &mut Errors) {
    let mut seen = Vec::new();
    for address in at.get("addresses").items() {
        let key = (address.get("type").text(), address.get("address").text());
        if seen.contains(&key) {
            errors.duplicate(&address);
        }
        seen.push(key);
    }
    for amounts in ["capacity", "allocatable"] {
        for (name, amount) in at.get(amounts).entries() {
            if (WHOLE.contains(&name) || name.contains('/')) && !form::quantity(amount.value).is_integer() {
                errors.invalid(&amount, "must be an integer");
            }
        }
    }
    let features: Vec<At<'_>> = at.get("declaredFeatures").items().collect();
    for pair in features.windows(2) {
        match pair[0].text().cmp(pair[1].text()) {
            std::cmp::Ordering::Equal => errors.duplicate(&pair[1]),
            std::cmp::Ordering::Greater => errors.invalid(&pair[1], "list must be sorted alphabetically"),
            std::cmp::Ordering::Less => {}
        }
    }
}

/// How far the growth of a claim may be.
const RESIZES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizePending",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
];

/// What is reported of a claim: of what is Kubernetes' own only storage is resized.
pub(super) fn claim(at: &At<'_>, errors: &mut Errors) {
    for field in ["allocatedResourceStatuses", "allocatedResources"] {
        for (name, entry) in at.get(field).entries() {
            let own = !name.contains('/') || name.contains("kubernetes.io/");
            let wrong = names::qualified(name);
            if wrong.is_empty() && own && name != "storage" {
                errors.not_supported_value(&at.get(field), name, &["storage"]);
            }
            errors.invalid_all_of(&at.get(field), name, wrong);
            if field == "allocatedResourceStatuses" && !RESIZES.contains(&entry.text()) {
                errors.not_supported_value(&at.get(field), entry.text(), &RESIZES);
            }
        }
    }
}
