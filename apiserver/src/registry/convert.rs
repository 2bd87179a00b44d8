//! Two versions of one kind that share their storage: what is kept is the row named by
//! `Storage::SharedWith`; the other row's objects are converted at the edge of the store.

use decapod_api::resource::{Resource, Storage};
use serde_json::{Map, Value, json};

/// Field names of an event: in `v1`, and in `events.k8s.io/v1`.
const EVENT_FIELDS: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];
const EVENT_REPORTER: [(&str, &str); 2] =
    [("reportingComponent", "reportingController"), ("reportingInstance", "reportingInstance")];
/// Where fields of a horizontal pod autoscaler are kept that `autoscaling/v1` has no place for.
const METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/metrics";

/// Whether objects of a row are converted at all.
pub(crate) fn shared(resource: &Resource) -> bool {
    matches!(resource.storage, Storage::SharedWith(..))
}

/// From the version that is kept to the row's own.
pub(crate) fn served(resource: &Resource, mut object: Value) -> Value {
    if !shared(resource) {
        return object;
    }
    object["apiVersion"] = resource.api_version().into();
    match resource.plural {
        "events" => rename(object, EVENT_FIELDS.iter().chain(&EVENT_REPORTER).copied()),
        _ => autoscaler_v1(object),
    }
}

/// From the row's own version to the one that is kept.
pub(crate) fn stored(resource: &Resource, object: &Value) -> Value {
    let mut object = object.clone();
    let Storage::SharedWith(group, version) = resource.storage else { return object };
    object["apiVersion"] = decapod_api::resource::api_version(group, version).into();
    match resource.plural {
        "events" => rename(object, EVENT_FIELDS.iter().chain(&EVENT_REPORTER).map(|&(a, b)| (b, a))),
        _ => autoscaler_v2(object),
    }
}

fn rename<'a>(object: Value, names: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    let Value::Object(mut map) = object else { return object };
    let mut renamed = Map::new();
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            renamed.insert(to.to_owned(), value);
        }
    }
    map.extend(renamed);
    Value::Object(map)
}

/// `autoscaling/v1` knows one metric: the CPU utilization. Others travel in an annotation.
fn autoscaler_v1(mut object: Value) -> Value {
    let metrics =
        object.get_mut("spec").and_then(Value::as_object_mut).and_then(|spec| spec.remove("metrics"));
    let mut others = Vec::new();
    for metric in metrics.iter().flat_map(|m| m.as_array().into_iter().flatten()) {
        let utilization = &metric["resource"]["target"]["averageUtilization"];
        if metric["type"] == "Resource" && metric["resource"]["name"] == "cpu" && utilization.is_number() {
            object["spec"]["targetCPUUtilizationPercentage"] = utilization.clone();
        } else {
            others.push(metric.clone());
        }
    }
    if !others.is_empty() {
        let text = Value::Array(others).to_string();
        object["metadata"]["annotations"][METRICS_ANNOTATION] = text.into();
    }
    object
}

fn autoscaler_v2(mut object: Value) -> Value {
    let mut metrics = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(percent) = spec.remove("targetCPUUtilizationPercentage")
    {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    let annotation = object
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
        .and_then(|a| a.remove(METRICS_ANNOTATION));
    let others = annotation.and_then(|a| serde_json::from_str::<Vec<Value>>(a.as_str()?).ok());
    metrics.extend(others.into_iter().flatten());
    if !metrics.is_empty() {
        object["spec"]["metrics"] = metrics.into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::row;

    #[test]
    fn both_ways_is_the_same() {
        for (resource, object) in [
            (
                row("events.k8s.io", "v1", "events"),
                json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"name": "e"}, "regarding": {"name": "p"}, "note": "n", "reason": "r",
                "reportingController": "c", "reportingInstance": "i"}),
            ),
            (
                row("autoscaling", "v1", "horizontalpodautoscalers"),
                json!({"apiVersion": "autoscaling/v1",
                "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
                "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
            ),
        ] {
            let kept = stored(resource, &object);
            assert_ne!(kept["apiVersion"], object["apiVersion"]);
            assert_eq!(served(resource, kept), object);
        }
    }
}
