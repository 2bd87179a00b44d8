//! The rows of volumes, claims and storage classes.

use decapod_api::meta;
use jiff::Timestamp;
use serde_json::Value;

use super::printers::{age, name, or_text, plain, text};

fn access_modes(modes: &Value) -> Value {
    let short = |mode: &Value| match mode.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO".to_owned(),
        "ReadOnlyMany" => "ROX".to_owned(),
        "ReadWriteMany" => "RWX".to_owned(),
        "ReadWriteOncePod" => "RWOP".to_owned(),
        other => other.to_owned(),
    };
    modes.as_array().into_iter().flatten().map(short).collect::<Vec<_>>().join(",").into()
}

fn phase(object: &Value) -> String {
    if meta::deleting(object) { "Terminating".to_owned() } else { plain(&object["status"]["phase"]) }
}

pub(super) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let claim = &spec["claimRef"];
    let claim = if claim.is_object() {
        format!("{}/{}", plain(&claim["namespace"]), plain(&claim["name"]))
    } else {
        String::new()
    };
    vec![
        name(object),
        text(&spec["capacity"]["storage"]),
        access_modes(&spec["accessModes"]),
        text(&spec["persistentVolumeReclaimPolicy"]),
        phase(object).into(),
        claim.into(),
        text(&spec["storageClassName"]),
        or_text(&spec["volumeAttributesClassName"], "<unset>"),
        text(&object["status"]["reason"]),
        age(object, now),
        or_text(&spec["volumeMode"], "<unset>"),
    ]
}

pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let bound = !plain(&spec["volumeName"]).is_empty();
    let (capacity, modes) = if bound {
        (text(&status["capacity"]["storage"]), access_modes(&status["accessModes"]))
    } else {
        ("".into(), "".into())
    };
    vec![
        name(object),
        phase(object).into(),
        text(&spec["volumeName"]),
        capacity,
        modes,
        text(&spec["storageClassName"]),
        or_text(&spec["volumeAttributesClassName"], "<unset>"),
        age(object, now),
        or_text(&spec["volumeMode"], "<unset>"),
    ]
}

pub(super) fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let default = object["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
    let mut shown = meta::name(object).to_owned();
    if default {
        shown.push_str(" (default)");
    }
    vec![
        shown.into(),
        text(&object["provisioner"]),
        or_text(&object["reclaimPolicy"], "Delete"),
        or_text(&object["volumeBindingMode"], "Immediate"),
        object["allowVolumeExpansion"].as_bool().unwrap_or(false).to_string().into(),
        age(object, now),
    ]
}
