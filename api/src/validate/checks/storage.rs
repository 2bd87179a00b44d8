//! Volumes, claims, storage classes and what CSI drivers report.

use super::super::{At, Errors, form};
use super::volume::fibre_channel;
use crate::names;

/// Fields of a volume's spec that are no source.
const NOT_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// The secrets that a CSI driver is given for a volume; each says in which namespace it is.
const CSI_SECRETS: [&str; 5] = [
    "controllerExpandSecretRef",
    "controllerPublishSecretRef",
    "nodeExpandSecretRef",
    "nodePublishSecretRef",
    "nodeStageSecretRef",
];

fn sources<'a>(spec: &At<'a>) -> Vec<&'a str> {
    let names = spec.value.as_object().into_iter().flatten().map(|(k, _)| k.as_str());
    names.filter(|k| !NOT_SOURCES.contains(k)).collect()
}

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(modes: &At<'_>, errors: &mut Errors) {
    for mode in modes.items().filter(|m| !MODES.contains(&m.text())) {
        errors.not_supported_value(modes, mode.text(), &MODES);
    }
    if modes.len() > 1 && modes.items().any(|m| m.text() == "ReadWriteOncePod") {
        errors.forbidden(modes, "may not use ReadWriteOncePod with other access modes");
    }
}

/// A volume's spec: one source.
pub(super) fn volume_spec(at: &At<'_>, errors: &mut Errors) {
    access_modes(&at.get("accessModes"), errors);
    let found = sources(at);
    if found.is_empty() {
        errors.required(at, "must specify a volume type");
    }
    for source in found.iter().skip(1) {
        errors.forbidden(&at.get(source), "may not specify more than 1 volume type");
    }
    for (name, amount) in at.get("capacity").entries() {
        if name != "storage" {
            errors.not_supported_value(&at.get("capacity"), name, &["storage"]);
        }
        if form::quantity(amount.value).is_negative() {
            errors.invalid(&amount, form::NEGATIVE);
        } else if form::quantity(amount.value).is_zero() {
            errors.invalid(&amount, form::NOT_POSITIVE);
        }
    }
    if at.get("local").is_set() && !at.at(&["nodeAffinity", "required"]).is_set() {
        errors.required(&at.get("nodeAffinity"), "Local volume requires node affinity");
    }
    let affinity = at.get("nodeAffinity");
    if affinity.is_set() && !affinity.get("required").is_set() {
        errors.required(&affinity.get("required"), "must specify required node constraints");
    }
    let root = at.at(&["hostPath", "path"]).text() == "/";
    if root && at.get("persistentVolumeReclaimPolicy").text() == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        errors.forbidden(&at.get("persistentVolumeReclaimPolicy"), why);
    }
    fibre_channel(&at.get("fc"), errors);
    let class = at.get("volumeAttributesClassName");
    if class.value == "" {
        errors.required(&class, "an empty string is disallowed");
    }
    for secret in CSI_SECRETS.map(|field| at.at(&["csi", field])).iter().filter(|secret| secret.is_set()) {
        errors.require(&secret.get("name"));
        let namespace = secret.get("namespace");
        errors.require(&namespace);
        if !namespace.is_empty() {
            errors.invalid_all(&namespace, names::dns_label(namespace.text()));
        }
    }
}

/// A volume: what holds its data stays.
pub(super) fn volume(at: &At<'_>, errors: &mut Errors) {
    let spec = at.get("spec");
    if spec.old.is_none() {
        return;
    }
    let before = spec.before();
    let fields = sources(&spec).into_iter().chain(sources(&before));
    if fields.into_iter().any(|source| spec.get(source).changed() && source != "csi") {
        errors.forbidden(
            &spec.get("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    errors.immutable(&spec.get("volumeMode"));
    let affinity = spec.get("nodeAffinity");
    if before.get("nodeAffinity").is_set() && affinity.changed() {
        errors.invalid(&affinity, "field is immutable, except for updating from beta label to GA");
    }
}

/// A claim's spec.
pub(super) fn claim_spec(at: &At<'_>, errors: &mut Errors) {
    access_modes(&at.get("accessModes"), errors);
    let storage = at.at(&["resources", "requests"]);
    let amount = At { path: at.get("resources").path.key("storage"), ..storage.get("storage") };
    if !amount.is_set() {
        errors.required(&amount, "");
    } else if form::quantity(amount.value).is_negative() || form::quantity(amount.value).is_zero() {
        errors.invalid(&amount, form::NOT_POSITIVE);
    }
    for field in ["dataSource", "dataSourceRef"] {
        let source = at.get(field);
        if source.is_set() && source.get("apiGroup").is_empty() {
            let kind = source.get("kind").text();
            if kind != "PersistentVolumeClaim" {
                let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
                errors.invalid_value(&source, kind, why);
            }
        }
    }
    let (source, reference) = (at.get("dataSource"), at.get("dataSourceRef"));
    let differ = ["apiGroup", "kind", "name"].iter().any(|f| source.value[*f] != reference.value[*f]);
    if source.is_set() && reference.is_set() && differ && reference.get("namespace").is_empty() {
        errors.invalid_value(at, source.path.to_string(), "must match dataSourceRef");
    }
}

/// A claim: once bound, it can only grow.
pub(super) fn claim_update(at: &At<'_>, errors: &mut Errors) {
    const MUTABLE: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    let spec = at.get("spec");
    if spec.old.is_none() || spec.unchanged() {
        return;
    }
    let before = spec.before();
    let bound = at.before().at(&["status", "phase"]).text() == "Bound";
    let mut allowed = before.value.clone();
    // Of claims that were stored before both were kept equal, one is not there.
    for (field, other) in [("dataSource", "dataSourceRef"), ("dataSourceRef", "dataSource")] {
        if !before.get(field).is_set() && spec.get(field).is_set() && before.get(other).is_set() {
            allowed[field] = before.value[other].clone();
        }
    }
    if before.get("volumeName").is_empty() && spec.get("volumeName").is_set() {
        allowed["volumeName"] = spec.value["volumeName"].clone();
    }
    if bound {
        allowed["resources"]["requests"] = spec.value["resources"]["requests"].clone();
        let new = form::quantity(spec.at(&["resources", "requests", "storage"]).value);
        let old = form::quantity(before.at(&["resources", "requests", "storage"]).value);
        if new < old {
            let status = form::quantity(at.before().at(&["status", "capacity", "storage"]).value);
            if new < status {
                let why = "field can not be less than status.capacity";
                errors.forbidden(&spec.at(&["resources", "requests", "storage"]), why);
            }
        }
    }
    if before.get("storageClassName").value.is_null() && spec.get("storageClassName").is_set() {
        allowed["storageClassName"] = spec.value["storageClassName"].clone();
    }
    let class = spec.get("volumeAttributesClassName");
    if class.changed() && bound {
        if before.get("volumeAttributesClassName").is_set() && !class.is_set() {
            errors.forbidden(&class, "update from non-nil value to nil is forbidden");
        } else {
            allowed["volumeAttributesClassName"] = class.value.clone();
        }
    }
    if allowed != *spec.value {
        errors.forbidden(&spec, MUTABLE);
    }
}

/// A storage class.
pub(super) fn class(at: &At<'_>, errors: &mut Errors) {
    const MAX_PARAMETERS: usize = 512;
    const MAX_SIZE: usize = 256 * 1024;
    let parameters = at.get("parameters");
    let entries: Vec<(&str, At<'_>)> = parameters.entries().collect();
    if entries.len() > MAX_PARAMETERS {
        errors.too_long(
            &At { path: at.path.child("Provisioner Parameters Length"), ..at.clone() },
            MAX_PARAMETERS,
        );
    }
    if entries.iter().map(|(key, value)| key.len() + value.text().len()).sum::<usize>() > MAX_SIZE {
        errors.too_long(&parameters, MAX_SIZE);
    }
    if entries.iter().any(|(key, _)| key.is_empty()) {
        errors.invalid_value(&parameters, "", "field can not be empty.");
    }
}

/// A CSI driver.
pub(super) fn driver(at: &At<'_>, errors: &mut Errors) {
    const LONGEST: i64 = 1 << 32;
    let mut seen = Vec::new();
    for request in at.get("tokenRequests").items() {
        let (audience, seconds) = (request.get("audience"), request.get("expirationSeconds"));
        if seen.contains(&audience.text()) {
            errors.duplicate_of(&audience, audience.text());
        }
        seen.push(audience.text());
        match seconds.int() {
            Some(n) if n < 600 => errors.invalid(&seconds, "may not specify a duration less than 10 minutes"),
            Some(n) if n > LONGEST => {
                errors.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
            }
            _ => {}
        }
    }
    let period = at.get("nodeAllocatableUpdatePeriodSeconds");
    if period.int().is_some_and(|n| n < 10) {
        errors.invalid(&period, "must be greater than or equal to 10 seconds");
    }
}

/// An attachment names one volume, and stays.
pub(super) fn attachment(at: &At<'_>, errors: &mut Errors) {
    let source = at.at(&["spec", "source"]);
    match source.present(&["inlineVolumeSpec", "persistentVolumeName"]).len() {
        0 => {
            errors.required(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
        }
        1 => {
            let name = source.get("persistentVolumeName");
            if name.is_set() && name.is_empty() {
                errors.required(&name, "must specify non empty persistentVolumeName");
            }
        }
        _ => {
            errors.forbidden(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
        }
    }
    errors.immutable(&at.get("spec"));
}

/// A node's drivers: an entry stays as it is, or goes.
pub(super) fn csi_node(at: &At<'_>, errors: &mut Errors) {
    let drivers = at.at(&["spec", "drivers"]);
    let before = drivers.before();
    let mut seen = Vec::new();
    for driver in drivers.items() {
        let name = driver.get("name");
        if seen.contains(&name.text()) {
            errors.duplicate(&name);
        }
        seen.push(name.text());
        let old = before.items().find(|old| old.get("name").value == name.value);
        let fixed = ["nodeID", "topologyKeys"];
        if old.is_some_and(|old| fixed.iter().any(|f| old.value[*f] != driver.value[*f])) {
            errors.invalid(&driver, "field is immutable");
        }
    }
}
