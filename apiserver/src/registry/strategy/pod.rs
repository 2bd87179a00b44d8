//! Pods: they start out pending, and are deleted gracefully once they have a node.

use decapod_api::kinds::qos_class;
use k8s_openapi::api::core::v1::PodSpec;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Strategy, label_keys, only_status};
use decapod_api::resource::Resource;

/// What a pod gets that does not say how long its end may take.
const DEFAULT_GRACE: i64 = 30;

pub(super) struct Pod;

/// Clients that do not know of observed generations do not take them away.
fn keep_observed(new: &mut Value, old: &Value) {
    const FIELD: &str = "observedGeneration";
    if !new.is_object() {
        return;
    }
    if new[FIELD].is_null() && old[FIELD].is_i64() {
        new[FIELD] = old[FIELD].clone();
    }
    let before = old["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    for condition in new.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        let known = before.iter().find(|known| known["type"] == condition["type"]);
        if let Some(known) = known.filter(|known| known[FIELD].is_i64() && condition[FIELD].is_null()) {
            condition[FIELD] = known[FIELD].clone();
        }
    }
}

impl Strategy for Pod {
    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        label_keys::merge(object);
        let mut status = json!({"phase": "Pending"});
        if let Ok(spec) = PodSpec::deserialize(&object["spec"]) {
            status["qosClass"] = qos_class(&spec).as_str().into();
        }
        let gated = object["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
        if gated {
            status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
        }
        object["status"] = status;
    }

    fn prepare_status(&self, resource: &Resource, new: &mut Value, old: &Value, _now: &str) {
        only_status(resource, new, old);
        let kept = &old["status"]["qosClass"];
        if kept.is_string() && new["status"].is_object() {
            new["status"]["qosClass"] = kept.clone();
        }
        keep_observed(&mut new["status"], &old["status"]);
    }

    fn grace(&self, object: &Value, asked: Option<i64>) -> i64 {
        let spec = &object["spec"];
        let phase = object["status"]["phase"].as_str().unwrap_or_default();
        // Nothing runs yet, or nothing any more.
        if spec["nodeName"].as_str().unwrap_or_default().is_empty() || matches!(phase, "Succeeded" | "Failed")
        {
            return 0;
        }
        let grace = asked.or(spec["terminationGracePeriodSeconds"].as_i64()).unwrap_or(DEFAULT_GRACE);
        if grace < 0 { 1 } else { grace }
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}
