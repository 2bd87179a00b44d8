//! Devices as they are asked for (dynamic resource allocation): classes, claims and what was allocated.
//!
//! CEL expressions are held to their size; they are compiled by whoever evaluates them.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::super::{At, Errors, form};
use crate::names;

/// The most bytes of a driver's parameters.
const MAX_PARAMETERS: usize = 10 * 1024;
const REFERENCE: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// Each item of a list has a key of its own.
pub(super) fn unique(list: &At<'_>, key: &str, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for item in list.items() {
        let name = if key.is_empty() { item.text() } else { item.get(key).text() };
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate_of(&item, name);
        }
    }
}

/// A class of devices.
pub(super) fn class(at: &At<'_>, errors: &mut Errors) {
    let name = at.get("extendedResourceName");
    let text = name.text();
    let is_extended = text.contains('/')
        && !text.contains("kubernetes.io/")
        && !text.starts_with("requests.")
        && names::qualified(&format!("requests.{text}")).is_empty();
    if name.is_set() && !is_extended {
        errors.invalid(&name, "must be a valid extended resource name");
    }
}

/// What a claim asks for: what refers to requests names some that are there.
pub(super) fn claim(at: &At<'_>, errors: &mut Errors) {
    unique(&at.get("requests"), "name", errors);
    let requests = Requests::of(at);
    for field in ["constraints", "config"] {
        for item in at.get(field).items() {
            requests.hold(&item.get("requests"), errors);
        }
    }
}

/// The requests of a claim by name, each with the names of its alternatives.
struct Requests<'a>(HashMap<&'a str, Vec<&'a str>>);

impl<'a> Requests<'a> {
    fn of(claim: &At<'a>) -> Self {
        let request = |request: At<'a>| {
            let names = request.get("firstAvailable").items().map(|one| one.get("name").text());
            (request.get("name").text(), names.collect())
        };
        Self(claim.get("requests").items().map(request).collect())
    }

    fn has(&self, name: &str) -> bool {
        match name.split_once('/') {
            None => self.0.contains_key(name),
            Some((request, one)) => self.0.get(request).is_some_and(|all| all.contains(&one)),
        }
    }

    /// A list of references.
    fn hold(&self, list: &At<'_>, errors: &mut Errors) {
        unique(list, "", errors);
        list.items().for_each(|name| self.hold_one(&name, errors));
    }

    fn hold_one(&self, name: &At<'_>, errors: &mut Errors) {
        let parts: Vec<&str> = name.text().split('/').collect();
        if parts.len() > 2 {
            return errors.invalid(name, REFERENCE);
        }
        parts.into_iter().for_each(|part| errors.invalid_all_of(name, part, names::dns_label(part)));
        if !self.has(name.text()) {
            errors.invalid(name, REFERENCE);
        }
    }
}

/// One request: for a device, or for the first of several that there is.
pub(super) fn request(at: &At<'_>, errors: &mut Errors) {
    let alternatives = at.get("firstAvailable");
    unique(&alternatives, "name", errors);
    match (at.get("exactly").is_set(), !alternatives.is_empty()) {
        (false, false) => {
            errors.required(at, "exactly one of `exactly` or `firstAvailable` is required");
        }
        (true, true) => errors.invalid_whole(
            at,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        _ => {}
    }
}

/// How many devices.
pub(super) fn count(at: &At<'_>, errors: &mut Errors) {
    let (mode, count) = (at.get("allocationMode"), at.get("count"));
    let number = count.int().unwrap_or(0);
    match mode.text() {
        "All" if number != 0 => {
            errors.invalid(&count, "must not be specified when allocationMode is 'All'");
        }
        "ExactCount" if number <= 0 => errors.invalid_value(&count, number, form::NOT_POSITIVE),
        _ => {}
    }
}

/// A toleration of a device's taints.
pub(super) fn toleration(at: &At<'_>, errors: &mut Errors) {
    let value = at.get("value");
    match at.get("operator").text() {
        "Exists" if !value.is_empty() => errors.invalid(&value, "must be empty for operator `Exists`"),
        "Equal" => errors.invalid_all(&value, names::label_value(value.text())),
        _ => {}
    }
}

/// What several devices must have in common, or not.
pub(super) fn constraint(at: &At<'_>, errors: &mut Errors) {
    let (same, other) = (at.get("matchAttribute"), at.get("distinctAttribute"));
    match (same.is_set(), other.is_set()) {
        (true, _) => attribute_name(&same, errors),
        (false, true) => attribute_name(&other, errors),
        (false, false) => errors.required(
            at,
            "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
        ),
    }
}

fn attribute_name(at: &At<'_>, errors: &mut Errors) {
    super::device_slice::attribute_name(at, at.text(), errors);
    if !at.text().contains('/') {
        errors.invalid(at, "a fully qualified name must be a domain and a name separated by a slash");
    }
}

/// What only a driver understands.
pub(super) fn opaque(at: &At<'_>, errors: &mut Errors) {
    let parameters = at.get("parameters");
    match parameters.value {
        Value::Null => errors.required(&parameters, ""),
        Value::Object(_) if parameters.value.to_string().len() > MAX_PARAMETERS => {
            errors.too_long(&parameters, MAX_PARAMETERS);
        }
        Value::Object(_) => {}
        _ => errors.invalid_value(&parameters, "<value omitted>", "must be a valid JSON object"),
    }
}

/// A device that is allocated: its pool has a name, and a share of it an identity.
pub(super) fn allocated(at: &At<'_>, errors: &mut Errors) {
    super::device_slice::pool_name(&at.get("pool"), errors);
    super::device_slice::bindings(at, errors);
    let share = at.get("shareID");
    let is_uuid = share.text().len() == 36
        && share.text().bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
        });
    if share.is_set() && !is_uuid {
        errors.invalid(&share, "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters");
    }
}

/// An update of a claim's status.
pub(super) fn status(at: &At<'_>, errors: &mut Errors) {
    let (new, old) = (at.get("status"), at.before().get("status"));
    let (allocation, reserved) = (new.get("allocation"), new.get("reservedFor"));
    if !reserved.is_empty() && !allocation.is_set() {
        errors.forbidden(&reserved, "may not be specified when `allocated` is not set");
    } else if at.at(&["metadata", "deletionTimestamp"]).is_set() {
        let before: Vec<&Value> = old.get("reservedFor").items().map(|one| one.value).collect();
        if reserved.items().any(|one| !before.contains(&one.value)) {
            let why =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.forbidden(&reserved, why);
        }
    }
    if old.get("allocation").is_set() && allocation.is_set() {
        errors.immutable(&allocation);
    } else {
        let requests = Requests::of(&at.at(&["spec", "devices"]));
        for result in allocation.at(&["devices", "results"]).items() {
            requests.hold_one(&result.get("request"), errors);
        }
        for config in allocation.at(&["devices", "config"]).items() {
            requests.hold(&config.get("requests"), errors);
        }
    }
    let id = |at: &At<'_>| ["driver", "pool", "device", "shareID"].map(|part| at.value[part].clone());
    let allocated: Vec<[Value; 4]> =
        allocation.at(&["devices", "results"]).items().map(|result| id(&result)).collect();
    for device in new.get("devices").items().filter(|device| !allocated.contains(&id(device))) {
        let name = ["driver", "pool", "device"].map(|part| device.value[part].as_str().unwrap_or_default());
        errors.invalid_value(&device, name.join("/"), "must be an allocated device in the claim");
    }
}
