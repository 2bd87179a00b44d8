//! Horizontal pod autoscalers between `autoscaling/v2`, which is kept, and `autoscaling/v1`, which knows
//! the CPU utilization alone: all else travels in annotations, in the form that Kubernetes gives them.
//!
//! Annotations that cannot be read say nothing, as in Kubernetes; they are never kept.

use decapod_api::resource::{self, Resource};
use serde_json::{Map, Value, json};

use super::super::object::map_mut;

/// The metrics besides the CPU utilization.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
/// The metrics as they were measured.
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
/// How fast to scale.
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// What the controller says.
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
/// All annotations that `v2` never shows.
const TRAVELLING: [&str; 6] = [
    METRICS,
    CURRENT,
    BEHAVIOR,
    CONDITIONS,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];
/// What is aimed at where nobody says so, in percent of what was requested.
const DEFAULT_UTILIZATION: i64 = 80;

/// Where the fields of a metric are: in `v2`, and in `v1`.
type Names = [(&'static str, &'static str)];
/// The sources of metrics by their field, and the names in each.
type Sources = [(&'static str, &'static Names)];

const WANTED: &Sources = &[
    (
        "object",
        &[
            ("/describedObject", "target"),
            ("/metric/name", "metricName"),
            ("/metric/selector", "selector"),
            ("/target/value", "targetValue"),
            ("/target/averageValue", "averageValue"),
        ],
    ),
    (
        "pods",
        &[
            ("/metric/name", "metricName"),
            ("/metric/selector", "selector"),
            ("/target/averageValue", "targetAverageValue"),
        ],
    ),
    (
        "resource",
        &[
            ("/name", "name"),
            ("/target/averageUtilization", "targetAverageUtilization"),
            ("/target/averageValue", "targetAverageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("/name", "name"),
            ("/container", "container"),
            ("/target/averageUtilization", "targetAverageUtilization"),
            ("/target/averageValue", "targetAverageValue"),
        ],
    ),
    (
        "external",
        &[
            ("/metric/name", "metricName"),
            ("/metric/selector", "metricSelector"),
            ("/target/value", "targetValue"),
            ("/target/averageValue", "targetAverageValue"),
        ],
    ),
];
const MEASURED: &Sources = &[
    (
        "object",
        &[
            ("/describedObject", "target"),
            ("/metric/name", "metricName"),
            ("/metric/selector", "selector"),
            ("/current/value", "currentValue"),
            ("/current/averageValue", "averageValue"),
        ],
    ),
    (
        "pods",
        &[
            ("/metric/name", "metricName"),
            ("/metric/selector", "selector"),
            ("/current/averageValue", "currentAverageValue"),
        ],
    ),
    (
        "resource",
        &[
            ("/name", "name"),
            ("/current/averageUtilization", "currentAverageUtilization"),
            ("/current/averageValue", "currentAverageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("/name", "name"),
            ("/container", "container"),
            ("/current/averageUtilization", "currentAverageUtilization"),
            ("/current/averageValue", "currentAverageValue"),
        ],
    ),
    (
        "external",
        &[
            ("/metric/name", "metricName"),
            ("/metric/selector", "metricSelector"),
            ("/current/value", "currentValue"),
            ("/current/averageValue", "currentAverageValue"),
        ],
    ),
];

/// From `v2`, as it is kept, to `v1`.
pub(super) fn to_v1(mut object: Value) -> Value {
    let mut take = |section: &str, field: &str| {
        let section = object.get_mut(section).and_then(Value::as_object_mut);
        section.and_then(|section| section.remove(field)).unwrap_or_default()
    };
    let (metrics, behavior) = (take("spec", "metrics"), take("spec", "behavior"));
    let (current, conditions) = (take("status", "currentMetrics"), take("status", "conditions"));
    let (cpu, others): (Vec<&Value>, Vec<&Value>) = items(&metrics).partition(|m| is_cpu(m));
    if let Some(cpu) = cpu.first() {
        let percent = cpu["resource"]["target"]["averageUtilization"].clone();
        map_mut(&mut object, "spec").insert("targetCPUUtilizationPercentage".to_owned(), percent);
    }
    let measured = items(&current).rfind(|m| m["resource"]["name"] == "cpu" && m["type"] == "Resource");
    let percent = measured.map(|m| &m["resource"]["current"]["averageUtilization"]);
    if let Some(percent) = percent.filter(|percent| percent.is_number()) {
        let status = map_mut(&mut object, "status");
        status.insert("currentCPUUtilizationPercentage".to_owned(), percent.clone());
    }
    forget(&mut object);
    let texts = [
        (METRICS, others.into_iter().map(|metric| flat(metric, WANTED)).collect()),
        (CURRENT, items(&current).map(|metric| flat(metric, MEASURED)).collect()),
        (CONDITIONS, items(&conditions).cloned().collect()),
    ];
    for (annotation, list) in texts {
        let list: Vec<Value> = list;
        if !list.is_empty() {
            annotate(&mut object, annotation, &Value::Array(list));
        }
    }
    if behavior.is_object() {
        annotate(&mut object, BEHAVIOR, &rules_named(&behavior));
    }
    object
}

/// From `v1` to `v2` as it is kept: with its defaults.
pub(super) fn to_v2(object: Value) -> Value {
    let kept = resource::find("autoscaling", "v2", "horizontalpodautoscalers");
    let kept: &Resource = kept.expect("autoscaling/v2 is a row of its own");
    let plain = spread(object.clone(), false);
    let whole = (kept.ops.normalize)(spread(object, true)).map(|whole| whole.object);
    // Annotations of a wrong form do not say anything.
    whole.or_else(|_| (kept.ops.normalize)(plain.clone()).map(|plain| plain.object)).unwrap_or(plain)
}

/// The object in the form of `v2`, with or without what its annotations say.
fn spread(mut object: Value, annotations: bool) -> Value {
    let read = |object: &Value, annotation: &str| -> Value {
        let text = object["metadata"]["annotations"][annotation].as_str().filter(|_| annotations);
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    };
    let (others, current) = (read(&object, METRICS), read(&object, CURRENT));
    let (behavior, conditions) = (read(&object, BEHAVIOR), read(&object, CONDITIONS));
    forget(&mut object);
    let mut metrics: Vec<Value> = items(&others).map(|metric| aimed(deep(metric, WANTED))).collect();
    let spec = map_mut(&mut object, "spec");
    let percent = spec.remove("targetCPUUtilizationPercentage");
    if percent.is_some() || metrics.is_empty() {
        let target = json!({"type": "Utilization", "averageUtilization": percent.unwrap_or(DEFAULT_UTILIZATION.into())});
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    spec.insert("metrics".to_owned(), metrics.into());
    if behavior.as_object().is_some_and(|rules| rules.values().any(|rules| !rules.is_null())) {
        spec.insert("behavior".to_owned(), recased(&behavior, char::to_ascii_lowercase));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let percent = status.remove("currentCPUUtilizationPercentage");
        let measured: Vec<Value> = match (current.as_array(), percent) {
            (Some(current), _) => current.iter().map(|metric| deep(metric, MEASURED)).collect(),
            (None, Some(percent)) => {
                let current = json!({"averageUtilization": percent});
                vec![json!({"type": "Resource", "resource": {"name": "cpu", "current": current}})]
            }
            (None, None) => Vec::new(),
        };
        status.insert("currentMetrics".to_owned(), measured.into());
        if conditions.is_array() {
            status.insert("conditions".to_owned(), conditions);
        }
    }
    object
}

fn items(list: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Whether `v1` has a field for a metric.
fn is_cpu(metric: &Value) -> bool {
    let resource = &metric["resource"];
    metric["type"] == "Resource"
        && resource["name"] == "cpu"
        && resource["target"]["averageUtilization"].is_number()
}

/// A metric of `v2` in the form of `v1`.
fn flat(metric: &Value, sources: &Sources) -> Value {
    let mut flat = json!({"type": metric["type"]});
    for (source, names) in sources.iter().filter(|(source, _)| metric[source].is_object()) {
        let fields = names.iter().filter_map(|(deep, name)| {
            metric[source].pointer(deep).map(|value| ((*name).to_owned(), value.clone()))
        });
        flat[source] = Value::Object(fields.collect());
    }
    flat
}

/// A metric of `v1` in the form of `v2`.
fn deep(metric: &Value, sources: &Sources) -> Value {
    let mut deep = json!({"type": metric["type"]});
    for (source, names) in sources.iter().filter(|(source, _)| metric[source].is_object()) {
        let mut made = Map::new();
        for (path, name) in names.iter() {
            let Some(value) = metric[source].get(name).filter(|value| !value.is_null()) else { continue };
            let path = path.trim_start_matches('/');
            match path.split_once('/') {
                None => drop(made.insert(path.to_owned(), value.clone())),
                Some((parent, field)) => {
                    let parent = made.entry(parent).or_insert_with(|| json!({}));
                    parent[field] = value.clone();
                }
            }
        }
        deep[source] = Value::Object(made);
    }
    deep
}

/// A metric with the type of its target, which `v1` leaves to be seen from what is there.
fn aimed(mut metric: Value) -> Value {
    for (source, _) in WANTED {
        let Some(target) = metric.get_mut(source).and_then(|source| source.get_mut("target")) else {
            continue;
        };
        // `v1` cannot leave out the value of an object's metric: zero stands for none.
        if let Some(target) = target.as_object_mut().filter(|t| t.contains_key("averageValue")) {
            target.retain(|field, value| field != "value" || *value != "0");
        }
        let ty = if !target["averageUtilization"].is_null() {
            "Utilization"
        } else if *source == "object" && !target["averageValue"].is_null() {
            "AverageValue"
        } else if !target["value"].is_null() {
            "Value"
        } else {
            "AverageValue"
        };
        target["type"] = ty.into();
    }
    metric
}

/// The behavior as its annotation has it: by the names that Go gives the fields, absent ones as null.
fn rules_named(behavior: &Value) -> Value {
    let mut named = recased(behavior, char::to_ascii_uppercase);
    for direction in ["ScaleUp", "ScaleDown"] {
        let rules = map_mut(&mut named, direction);
        for field in ["StabilizationWindowSeconds", "SelectPolicy", "Policies", "Tolerance"] {
            rules.entry(field).or_insert(Value::Null);
        }
    }
    named
}

/// With the first letter of each field in another case; nulls are dropped.
fn recased(value: &Value, case: fn(&char) -> char) -> Value {
    match value {
        Value::Object(map) => {
            let fields = map.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| {
                let mut letters = name.chars();
                let first = letters.next().map(|first| case(&first));
                (first.into_iter().chain(letters).collect::<String>(), recased(value, case))
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => items.iter().map(|item| recased(item, case)).collect(),
        other => other.clone(),
    }
}

fn annotate(object: &mut Value, annotation: &str, value: &Value) {
    let metadata = map_mut(object, "metadata");
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    annotations[annotation] = value.to_string().into();
}

/// Takes out the annotations that travel.
fn forget(object: &mut Value) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    annotations.retain(|name, _| !TRAVELLING.contains(&name.as_str()));
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2() -> Value {
        let object = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "namespace": "n", "annotations": {"mine": "kept"}},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "A", "name": "b"},
                "metrics": [
                    {"type": "Object", "object": {"describedObject": {"kind": "S", "name": "s"},
                        "metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "m", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "AverageValue", "averageValue": "1k"}}},
                    {"type": "External", "external": {"metric": {"name": "q"},
                        "target": {"type": "Value", "value": "30"}}},
                    {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c",
                        "target": {"type": "Utilization", "averageUtilization": 60}}},
                    {"type": "Resource", "resource": {"name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 50}}}],
                "behavior": {"scaleUp": {"stabilizationWindowSeconds": 0}}},
            "status": {"currentReplicas": 1, "desiredReplicas": 2,
                "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 12, "averageValue": "40m"}}}]}});
        let row = resource::find("autoscaling", "v2", "horizontalpodautoscalers").unwrap();
        (row.ops.normalize)(object).unwrap().object
    }

    #[test]
    fn nothing_is_lost_on_the_way_to_the_old_version_and_back() {
        let old = to_v1(v2());
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(old["status"]["currentCPUUtilizationPercentage"], 12);
        for field in ["/spec/metrics", "/spec/behavior", "/status/currentMetrics", "/status/conditions"] {
            assert_eq!(old.pointer(field), None, "{field}");
        }
        let annotations = &old["metadata"]["annotations"];
        let behavior = annotations[BEHAVIOR].as_str().unwrap();
        assert!(
            behavior.contains("\"ScaleUp\":{") && behavior.contains("\"PeriodSeconds\":15"),
            "{behavior}"
        );
        assert!(annotations[METRICS].as_str().unwrap().contains("\"targetAverageValue\":\"1k\""));
        assert_eq!(to_v2(old), v2());
    }

    #[test]
    fn annotations_that_nobody_understands_say_nothing() {
        for text in ["{", "[{\"type\": 5}]", "[{\"type\": \"Pods\", \"pods\": {\"metricName\": {}}}]"] {
            let object = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "h", "annotations": {METRICS: text, BEHAVIOR: text}},
                "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "A", "name": "b"}}});
            let kept = to_v2(object);
            assert_eq!(kept["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80, "{text}");
            assert_eq!(kept["spec"]["metrics"].as_array().unwrap().len(), 1, "{text}");
            assert_eq!(kept["metadata"]["annotations"], Value::Null, "{text}");
        }
    }
}
