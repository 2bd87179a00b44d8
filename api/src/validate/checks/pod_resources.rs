//! Requests and limits of containers and pods.

use super::super::{At, Errors, form};
use super::container::Role;
use crate::names;
use crate::quantity::Quantity;

const STANDARD: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
const POD_LEVEL: [&str; 3] = ["cpu", "hugepages-", "memory"];

/// Whether nodes may promise more of a resource than they have.
fn overcommits(name: &str) -> bool {
    !is_extended(name) && !name.starts_with("hugepages-")
}

/// Whether a resource is no resource of Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.split_once('/').is_some_and(|(domain, _)| domain.ends_with("kubernetes.io"))
}

/// What is wrong with the name of a container's resource.
pub(super) fn name(name: &str) -> Vec<String> {
    let wrong = form::resource(name, &STANDARD, "must be a standard resource for containers");
    if wrong.is_empty() && is_extended(name) {
        let bad = name.starts_with("requests.") || !names::qualified(&format!("requests.{name}")).is_empty();
        if bad {
            return vec!["doesn't follow extended resource name standard".to_owned()];
        }
    }
    wrong
}

/// What a container requests and may use at most.
pub(super) fn requirements(at: &At<'_>, errors: &mut Errors) {
    let (limits, requests) = (at.get("limits"), at.get("requests"));
    let (mut huge, mut plain) = (false, false);
    for list in [&limits, &requests] {
        for (resource, amount) in list.entries() {
            errors.invalid_all_of(&amount, resource, name(resource));
            value(resource, &amount, errors);
            huge |= resource.starts_with("hugepages-");
            plain |= matches!(resource, "cpu" | "memory");
        }
    }
    for (resource, request) in requests.entries() {
        let limit = limits.key(resource);
        let (wanted, most) = (form::quantity(request.value), form::quantity(limit.value));
        if !limit.is_set() {
            if !overcommits(resource) {
                errors.required(&limits, "Limit must be set for non overcommitable resources");
            }
        } else if !overcommits(resource) && wanted != most {
            let why = format!("must be equal to {resource} limit of {most}");
            errors.invalid_value(&requests, request.text(), why);
        } else if overcommits(resource) && wanted > most {
            let why = format!("must be less than or equal to {resource} limit of {most}");
            errors.invalid_value(&requests, request.text(), why);
        }
    }
    if huge && !plain {
        errors.forbidden(at, "HugePages require cpu or memory");
    }
    claims(&at.get("claims"), errors);
}

fn value(name: &str, at: &At<'_>, errors: &mut Errors) {
    let amount = form::quantity(at.value);
    if amount.is_negative() {
        errors.invalid(at, form::NEGATIVE);
    }
    if is_extended(name) && !amount.is_integer() {
        errors.invalid(at, "must be an integer");
    }
    if let Some(size) = name.strip_prefix("hugepages-") {
        let page = size.parse::<Quantity>().map_or(0, |size| size.units());
        if page > 0 && amount.units() % page != 0 {
            errors.invalid(at, format!("{amount} is not positive integer multiple of {name}"));
        }
    }
}

fn claims(at: &At<'_>, errors: &mut Errors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for claim in at.items() {
        let key = (claim.get("name").text(), claim.get("request").text());
        if key.0.is_empty() {
            errors.required(&claim, "");
        } else if seen.contains(&key) {
            errors.duplicate_of(&claim, key.0);
        }
        seen.push(key);
    }
}

/// What the pod as a whole requests and may use at most (KEP-2837).
pub(super) fn pod_level(spec: &At<'_>, errors: &mut Errors) {
    let at = spec.get("resources");
    if !at.is_set() {
        return;
    }
    if at.get("claims").is_set() {
        errors.forbidden(&at.get("claims"), "claims may not be set for Resources at pod-level");
    }
    for field in ["limits", "requests"] {
        for (name, amount) in at.get(field).entries() {
            if !POD_LEVEL.iter().any(|known| name.starts_with(known)) {
                errors.not_supported_value(&amount, name, &POD_LEVEL);
            }
        }
    }
    let containers: Vec<At<'_>> = spec.get(Role::Main.field()).items().collect();
    let total = |field: &str, name: &str| {
        containers
            .iter()
            .fold(Quantity::ZERO, |sum, c| sum + form::quantity(&c.value["resources"][field][name]))
    };
    for (name, amount) in at.get("requests").entries() {
        let sum = total("requests", name);
        if form::quantity(amount.value) < sum {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&amount, why);
        }
    }
    for (name, amount) in at.get("limits").entries() {
        for container in &containers {
            let limit = container.at(&["resources", "limits"]).key(name);
            if limit.is_set() && form::quantity(limit.value) > form::quantity(amount.value) {
                let why = format!("must be less than or equal to pod limits of {}", amount.text());
                errors.invalid(&limit, why);
            }
        }
    }
}
