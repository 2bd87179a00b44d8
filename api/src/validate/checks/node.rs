//! Nodes, events and priority classes.

use super::super::{At, Errors, form};
use crate::names;

/// A node: its taints differ, its networks are networks and stay.
pub(super) fn node(at: &At<'_>, errors: &mut Errors) {
    let spec = at.get("spec");
    let mut seen = Vec::new();
    for taint in spec.get("taints").items() {
        let key = (taint.get("key").text(), taint.get("effect").text());
        if seen.contains(&key) {
            errors.duplicate(&taint);
        }
        seen.push(key);
    }
    let cidrs = spec.get("podCIDRs");
    cidrs.items().for_each(|cidr| errors.invalid_all(&cidr, form::cidr(cidr.text())));
    if !cidrs.before().is_empty() && cidrs.changed() {
        errors.forbidden(&cidrs, "node updates may not change podCIDR except from \"\" to valid");
    }
    let provider = spec.get("providerID");
    if !provider.before().is_empty() && provider.changed() {
        errors.forbidden(&provider, "node updates may not change providerID except from \"\" to valid");
    }
}

/// An event in its old form: it is where its object is.
pub(super) fn event(at: &At<'_>, errors: &mut Errors) {
    let involved = at.at(&["involvedObject", "namespace"]);
    let namespace = at.at(&["metadata", "namespace"]);
    if at.old.is_some() {
        return;
    }
    if involved.is_empty() {
        if !matches!(namespace.text(), "default" | "kube-system") {
            errors.invalid_value(&involved, involved.text(), "does not match event.namespace");
        }
    } else if involved.text() != namespace.text() {
        errors.invalid(&involved, "does not match event.namespace");
    }
    // One that has an event time is in the new form.
    if at.get("eventTime").is_set() {
        reported(at, "reportingComponent", "message", errors);
    }
}

/// An event in its new form: who says what was done why.
pub(super) fn new_event(at: &At<'_>, errors: &mut Errors) {
    if at.old.is_some() {
        for field in [
            "regarding",
            "related",
            "note",
            "reason",
            "action",
            "type",
            "reportingController",
            "reportingInstance",
            "eventTime",
        ] {
            errors.immutable(&at.get(field));
        }
        return;
    }
    if !at.get("eventTime").is_set() {
        return errors.required(&at.get("eventTime"), "");
    }
    reported(at, "reportingController", "note", errors);
    let kind = at.get("type");
    errors.one_of(&kind, &["Normal", "Warning"]);
}

fn reported(at: &At<'_>, controller: &str, note: &str, errors: &mut Errors) {
    const MAX_NAME: usize = 128;
    const MAX_NOTE: usize = 1024;
    let reporter = at.get(controller);
    let spelled = At { path: at.path.child("reportingController"), ..reporter.clone() };
    if reporter.is_empty() {
        errors.required(&spelled, "");
    } else {
        errors.invalid_all(&spelled, names::qualified(reporter.text()));
    }
    for field in ["reportingInstance", "action", "reason"] {
        let field = at.get(field);
        errors.require(&field);
        if field.text().len() > MAX_NAME {
            errors.invalid_value(&field, "", format!("can have at most {MAX_NAME} characters"));
        }
    }
    if at.get(note).text().len() > MAX_NOTE {
        errors.invalid_value(&at.get(note), "", format!("can have at most {MAX_NOTE} characters"));
    }
}

/// The names that only the system gives, and their values.
const SYSTEM: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
const HIGHEST: i64 = 1_000_000_000;

/// A priority class: what it says of a pod does not change.
pub(super) fn priority_class(at: &At<'_>, errors: &mut Errors) {
    let (name, value) = (at.at(&["metadata", "name"]), at.get("value"));
    if name.text().starts_with("system-") {
        let known = SYSTEM.iter().any(|(n, v)| *n == name.text() && value.int() == Some(*v));
        if !known && at.old.is_none() {
            let why = "priority class names with 'system-' prefix are reserved for system use only";
            errors.forbidden(&name, why);
        }
    } else if value.int().unwrap_or(0) > HIGHEST {
        let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
        errors.forbidden(&value, why);
    }
    let number = |at: &At<'_>| at.int().unwrap_or(0);
    if at.old.is_some() && number(&value) != number(&value.before()) {
        errors.forbidden(
            &At { path: at.path.child("Value"), ..value.clone() },
            "may not be changed in an update.",
        );
    }
    errors.immutable(&at.get("preemptionPolicy"));
}
