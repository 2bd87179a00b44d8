//! What controllers report: numbers that must go together, and the addresses of load balancers.

use super::super::form;
use super::super::{At, Errors};

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
