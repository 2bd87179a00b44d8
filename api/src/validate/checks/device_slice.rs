//! Devices as their drivers offer them (dynamic resource allocation).

use super::super::{At, Errors, form};
use super::device_claim::unique;
use crate::names;
use crate::quantity::Quantity;

/// The most devices of a slice.
const MAX_DEVICES: usize = 128;
/// The most devices of a slice any of which has taints, counters or lists: each takes more room.
const MAX_RICH_DEVICES: usize = 64;
/// The most attributes and capacities of a device, which a scheduler looks through.
const MAX_ATTRIBUTES: usize = 32;
/// The most values of a device's attributes, those in lists each counted.
const MAX_VALUES: usize = 48;
/// The most counters of a set, or of what a device takes of one.
const MAX_COUNTERS: usize = 32;
/// The most bytes of an attribute's value.
const MAX_VALUE: usize = 64;
/// The most bytes of an attribute's name after its domain.
const MAX_NAME: usize = 32;
/// The most bytes of a driver's name, and so of an attribute's domain.
const MAX_DRIVER: usize = 63;
/// The most bytes of a pool's name: those of a node's.
const MAX_POOL: usize = 253;
/// The most amounts that a capacity can be had in.
const MAX_AMOUNTS: usize = 10;
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];
const SINGLES: [&str; 4] = ["bool", "int", "string", "version"];
const IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";

/// What a driver offers, and where.
pub(super) fn slice(at: &At<'_>, errors: &mut Errors) {
    let mut places =
        node_name(&at.get("nodeName"), "must be either unset or set to a non-empty string", errors);
    let selector = at.get("nodeSelector");
    if selector.is_set() {
        places.push("`nodeSelector`");
        let terms = selector.get("nodeSelectorTerms");
        if terms.len() != 1 {
            errors.invalid(&terms, "must have exactly one node selector term");
        }
    }
    places.extend(flag(&at.get("allNodes"), "`allNodes`", errors));
    places.extend(flag(&at.get("perDeviceNodeSelection"), "`perDeviceNodeSelection`", errors));
    let why = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match places.len() {
        0 => errors.required(at, why),
        1 => {}
        _ => {
            let set = format!("{{{}}}", places.join(", "));
            errors.invalid_value(at, set, format!("{why}, but multiple fields are set"));
        }
    }
    let (devices, counters) = (at.get("devices"), at.get("sharedCounters"));
    if devices.is_set() && counters.is_set() {
        errors.invalid_value(at, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let lists = |device: &At<'_>| {
        device.get("attributes").entries().any(|(_, attribute)| !attribute.present(&LISTS).is_empty())
    };
    let rich = devices.items().any(|device| {
        !device.get("taints").is_empty() || !device.get("consumesCounters").is_empty() || lists(&device)
    });
    let most = if rich { MAX_RICH_DEVICES } else { MAX_DEVICES };
    if devices.len() > most {
        errors.too_many(&devices, most);
    }
    unique(&devices, "name", errors);
    unique(&counters, "name", errors);
    let each = at.get("perDeviceNodeSelection").yes();
    devices.items().for_each(|device| place(&device, each, errors));
}

/// A name of a node, if there is one.
fn node_name(at: &At<'_>, empty: &str, errors: &mut Errors) -> Vec<&'static str> {
    if !at.is_set() {
        return Vec::new();
    }
    if at.text().is_empty() {
        errors.invalid(at, empty);
        return Vec::new();
    }
    errors.invalid_all(at, names::dns_subdomain(at.text()));
    vec!["`nodeName`"]
}

/// Something that is there and true, or not there.
fn flag(at: &At<'_>, name: &'static str, errors: &mut Errors) -> Option<&'static str> {
    if at.is_set() && !at.yes() {
        errors.invalid(at, "must be either unset or set to true");
    }
    at.yes().then_some(name)
}

/// Where a device is, if that is said of each.
fn place(device: &At<'_>, each: bool, errors: &mut Errors) {
    let fields = ["nodeName", "nodeSelector", "allNodes"];
    if !each {
        if !device.present(&fields).is_empty() {
            errors.invalid_whole(device, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec");
        }
        return;
    }
    let mut places = node_name(&device.get("nodeName"), "must not be empty", errors);
    places.extend(device.get("nodeSelector").is_set().then_some("`nodeSelector`"));
    places.extend(flag(&device.get("allNodes"), "`allNodes`", errors));
    let why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    match places.len() {
        0 => errors.required(device, why),
        1 => {}
        _ => errors.invalid_value(device, format!("{{{}}}", places.join(", ")), why),
    }
}

/// The pool that a slice is part of.
pub(super) fn pool(at: &At<'_>, errors: &mut Errors) {
    let (name, slices, generation) = (at.get("name"), at.get("resourceSliceCount"), at.get("generation"));
    pool_name(&name, errors);
    errors.immutable(&name);
    if slices.int().unwrap_or(0) <= 0 {
        errors.invalid(&slices, form::NOT_POSITIVE);
    }
    if generation.int().is_some_and(|n| n < 0) {
        errors.invalid(&generation, "must be greater than or equal to zero");
    }
}

/// Names of nodes, or the like, with slashes between them.
pub(super) fn pool_name(at: &At<'_>, errors: &mut Errors) {
    if at.is_empty() {
        return errors.required(at, "");
    }
    if at.text().len() > MAX_POOL {
        errors.too_long(at, MAX_POOL);
    }
    at.text().split('/').for_each(|part| errors.invalid_all_of(at, part, names::dns_subdomain(part)));
}

/// One device.
pub(super) fn device(at: &At<'_>, errors: &mut Errors) {
    let (attributes, capacity) = (at.get("attributes"), at.get("capacity"));
    let many = attributes.entries().count() + capacity.entries().count();
    if many > MAX_ATTRIBUTES {
        let why = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errors.invalid_value(at, many, why);
    }
    let values =
        |attribute: &At<'_>| LISTS.iter().map(|list| attribute.get(list).len()).sum::<usize>().max(1);
    let many: usize = attributes.entries().map(|(_, attribute)| values(&attribute)).sum();
    if many > MAX_VALUES {
        let why = format!("the total number of attribute values must not exceed {MAX_VALUES}");
        errors.invalid_value(at, many, why);
    }
    for map in [&attributes, &capacity] {
        map.entries().for_each(|(name, _)| attribute_name(map, name, errors));
    }
    let shared = at.get("allowMultipleAllocations").yes();
    for (_, amount) in capacity.entries().filter(|_| !shared) {
        errors.forbid(&amount.get("requestPolicy"), "allowMultipleAllocations must be true");
    }
    unique(&at.get("consumesCounters"), "counterSet", errors);
    bindings(at, errors);
}

/// Conditions that say whether a device is ready for what was allocated.
pub(super) fn bindings(at: &At<'_>, errors: &mut Errors) {
    let (good, bad) = (at.get("bindingConditions"), at.get("bindingFailureConditions"));
    unique(&good, "", errors);
    unique(&bad, "", errors);
    for condition in bad.items().filter(|bad| good.items().any(|good| good.value == bad.value)) {
        errors.invalid(&condition, "bindingFailureConditions must not overlap with bindingConditions");
    }
    if good.is_empty() && !bad.is_empty() {
        errors.invalid(&good, "bindingConditions are required to use bindingFailureConditions");
    }
    if bad.is_empty() && !good.is_empty() {
        errors.invalid(&bad, "bindingFailureConditions are required to use bindingConditions");
    }
}

/// The name of an attribute or of a capacity: an identifier, maybe of a domain.
pub(super) fn attribute_name(at: &At<'_>, name: &str, errors: &mut Errors) {
    let (domain, id) = name.split_once('/').map_or((None, name), |(domain, id)| (Some(domain), id));
    match domain {
        Some("") => errors.invalid_value(at, "", "the domain must not be empty"),
        Some(domain) => {
            if domain.len() > MAX_DRIVER {
                errors.too_long(at, MAX_DRIVER);
            }
            errors.invalid_all_of(at, domain, names::dns_subdomain(&domain.to_ascii_lowercase()));
        }
        None => {}
    }
    if domain.is_some() && id.is_empty() {
        return errors.invalid_value(at, "", "the name must not be empty");
    }
    if id.len() > MAX_NAME {
        errors.too_long(at, MAX_NAME);
    }
    let good = id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !good {
        errors.invalid_value(at, id, IDENTIFIER);
    }
}

/// What a device is like: one value, or one list.
pub(super) fn attribute(at: &At<'_>, errors: &mut Errors) {
    let texts = [at.get("string")].into_iter().chain(at.get("strings").items());
    let versions = || [at.get("version")].into_iter().chain(at.get("versions").items());
    for value in texts.chain(versions()).filter(|value| value.text().len() > MAX_VALUE) {
        errors.too_long(&value, MAX_VALUE);
    }
    for version in versions().filter(|version| version.is_set() && !is_version(version.text())) {
        errors.invalid(&version, "must be a string compatible with semver.org spec 2.0.0");
    }
    match at.present(&SINGLES).len() + at.present(&LISTS).len() {
        0 => errors.invalid_value(at, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(at, "exactly one value must be specified"),
    }
}

/// Whether a text is a semantic version, `1.2.3-rc.1+build`.
fn is_version(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, early) = rest.split_once('-').map_or((rest, None), |(core, early)| (core, Some(early)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && early.is_none_or(|early| early.split('.').all(|p| word(p) && (!digits(p) || number(p))))
        && build.is_none_or(|build| build.split('.').all(word))
}

/// Amounts that devices share.
pub(super) fn counters(at: &At<'_>, errors: &mut Errors) {
    let counters = at.get("counters");
    let many = counters.entries().count();
    if many > MAX_COUNTERS {
        errors.invalid_value(&counters, many, format!("must have at most {MAX_COUNTERS} items"));
    }
    for (name, _) in counters.entries() {
        errors.invalid_all_of(&counters, name, names::dns_label(name));
    }
}

/// How much of something a device has, and in which amounts it can be had.
pub(super) fn capacity(at: &At<'_>, errors: &mut Errors) {
    let (most, policy) = (form::quantity(at.get("value").value), at.get("requestPolicy"));
    let (values, range) = (policy.get("validValues"), policy.get("validRange"));
    let default = policy.get("default");
    if !values.is_empty() && range.is_set() {
        let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return errors.forbidden(&policy, why);
    }
    let set = if !values.is_empty() {
        "validValues"
    } else if range.is_set() {
        "validRange"
    } else {
        return;
    };
    if !default.is_set() {
        return errors.required(&default, &format!("required when {set} is defined"));
    }
    let default = form::quantity(default.value);
    if range.is_set() { within(&range, default, most, errors) } else { among(&values, default, most, errors) }
}

/// Amounts one by one.
fn among(values: &At<'_>, default: Quantity, most: Quantity, errors: &mut Errors) {
    if values.len() > MAX_AMOUNTS {
        errors.too_many(values, MAX_AMOUNTS);
    }
    let mut before: Option<Quantity> = None;
    for value in values.items() {
        let amount = form::quantity(value.value);
        if before.is_some_and(|before| before > amount) {
            errors.invalid(&value, "values must be sorted in ascending order");
        }
        if before == Some(amount) {
            errors.duplicate(&value);
        }
        if amount > most {
            errors.invalid(&value, format!("option is larger than capacity value: {most}"));
        }
        before = Some(amount);
    }
    if !values.items().any(|value| form::quantity(value.value) == default) {
        let why = "default value is not valid according to the requestPolicy";
        errors.invalid_value(values, default.to_string(), why);
    }
}

/// Amounts from one to another, in steps.
fn within(range: &At<'_>, default: Quantity, most: Quantity, errors: &mut Errors) {
    let at = |field: &str| {
        let at = range.get(field);
        let amount = at.is_set().then(|| form::quantity(at.value));
        (at, amount)
    };
    let ((min_at, min), (max_at, max), (step_at, step)) = (at("min"), at("max"), at("step"));
    let Some(min) = min else { return errors.required(&min_at, "required when validRange is defined") };
    let refuse = |errors: &mut Errors, at: &At<'_>, value: Quantity, why: String| {
        errors.invalid_value(at, value.to_string(), why);
    };
    if min > most {
        refuse(errors, &min_at, min, format!("min is larger than capacity value: {most}"));
    }
    if default < min {
        refuse(errors, &min_at, default, format!("default is less than min: {min}"));
    }
    if let Some(max) = max {
        if min > max {
            refuse(errors, &max_at, min, format!("min is larger than max: {max}"));
        }
        if max > most {
            refuse(errors, &max_at, max, format!("max is larger than capacity value: {most}"));
        }
        if default > max {
            refuse(errors, &max_at, default, format!("default is more than max: {max}"));
        }
    }
    let Some(step) = step else { return };
    if min + step > most {
        refuse(
            errors,
            &step_at,
            step,
            format!("one step {} is larger than capacity value: {most}", min + step),
        );
    }
    let whole = |amount: Quantity| i128::from(amount.units());
    for value in [Some(default), max].into_iter().flatten() {
        let even = (whole(value) - whole(min)).checked_rem(whole(step)) == Some(0);
        if !even {
            let why = format!("value is not a multiple of a given step ({step}) from ({min})");
            refuse(errors, &step_at, value, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_version;

    #[test]
    fn semantic_versions() {
        for good in ["1.2.3", "0.0.0", "1.2.3-rc.1+build.5", "1.0.0-0a", "1.0.0+001"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "1.2", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "v1.2.3", "1.2.3.4"] {
            assert!(!is_version(bad), "{bad}");
        }
    }
}
