//! The smallest strategic merge patch from one status to another.
//!
//! A patch instead of an update, so that the kubelet never overwrites what others wrote into the status (scheduler,
//! readiness gates, disruption budget); with the uid as precondition, so that it never hits a namesake.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// The patch body, or `None` where nothing is to be written.
pub(crate) fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let old = serde_json::to_value(old).expect("a typed status has a JSON form");
    let new = serde_json::to_value(new).expect("a typed status has a JSON form");
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return None;
    };
    let mut changes = Map::new();
    for (field, value) in &new {
        let before = old.get(field);
        if before == Some(value) {
            continue;
        }
        let change = match field.as_str() {
            "conditions" => conditions(before, value),
            // Lists merged by key would keep what is gone.
            "podIPs" | "hostIPs" | "resourceClaimStatuses" => replace(before, value),
            _ => value.clone(),
        };
        changes.insert(field.clone(), change);
    }
    for field in old.keys().filter(|f| !new.contains_key(*f)) {
        changes.insert(field.clone(), Value::Null);
    }
    (!changes.is_empty()).then(|| json!({ "metadata": { "uid": uid }, "status": changes }))
}

/// Only the conditions that changed; a field that went away is nulled, since lists of conditions merge by type.
fn conditions(old: Option<&Value>, new: &Value) -> Value {
    let empty = Vec::new();
    let old = old.and_then(Value::as_array).unwrap_or(&empty);
    let changed = new.as_array().unwrap_or(&empty).iter().filter(|c| !old.contains(c)).map(|condition| {
        let mut condition = condition.clone();
        let before = old.iter().find(|o| o["type"] == condition["type"]).and_then(Value::as_object);
        if let (Some(before), Some(fields)) = (before, condition.as_object_mut()) {
            for field in before.keys() {
                fields.entry(field.clone()).or_insert(Value::Null);
            }
        }
        condition
    });
    Value::Array(changed.collect())
}

fn replace(old: Option<&Value>, new: &Value) -> Value {
    let mut items = new.as_array().cloned().unwrap_or_default();
    if old.and_then(Value::as_array).is_some_and(|o| !o.is_empty()) {
        items.push(json!({ "$patch": "replace" }));
    }
    Value::Array(items)
}
