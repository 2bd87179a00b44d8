//! The rows of autoscalers: each metric as it is and as it should be.

use jiff::Timestamp;
use serde_json::Value;

use super::printers::{NONE, age, list, name, or_text, plain};

/// How many metrics of an autoscaler are shown before the rest is counted.
const METRICS_SHOWN: usize = 2;

/// The cells of an autoscaler as `autoscaling/v2` has it.
pub(super) fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    let metrics = metrics(spec, status);
    let more = metrics.len().saturating_sub(METRICS_SHOWN);
    let shown = metrics.iter().take(METRICS_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let metrics = match (shown.is_empty(), more) {
        (true, _) => NONE.to_owned(),
        (false, 0) => shown,
        (false, more) => format!("{shown} + {more} more..."),
    };
    vec![
        name(object),
        format!("{}/{}", plain(&target["kind"]), plain(&target["name"])).into(),
        metrics.into(),
        or_text(&spec["minReplicas"], "<unset>"),
        spec["maxReplicas"].as_i64().unwrap_or(0).into(),
        status["currentReplicas"].as_i64().unwrap_or(0).into(),
        age(object, now),
    ]
}

/// Each metric: `CURRENT/WANTED`, by its name if it is a resource.
fn metrics(spec: &Value, status: &Value) -> Vec<String> {
    let current = |index: usize, source: &str| &status["currentMetrics"][index][source]["current"];
    let metric = |(index, metric): (usize, &Value)| {
        let source = match metric["type"].as_str().unwrap_or_default() {
            "External" => "external",
            "Pods" => "pods",
            "Object" => "object",
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            _ => return "<unknown type>".to_owned(),
        };
        let (target, now) = (&metric[source]["target"], current(index, source));
        let average = target["averageValue"].is_string();
        let value = |field: &str| plain(&or_text(&now[field], "<unknown>"));
        let named = matches!(source, "resource" | "containerResource");
        let text = if named && !average {
            let current = match now["averageUtilization"].as_i64() {
                Some(percent) => format!("{percent}%"),
                None => "<unknown>".to_owned(),
            };
            let wanted = match target["averageUtilization"].as_i64() {
                Some(percent) => format!("{percent}%"),
                None => "<auto>".to_owned(),
            };
            format!("{current}/{wanted}")
        } else if average {
            let suffix = if matches!(source, "external" | "object") { " (avg)" } else { "" };
            format!("{}/{}{suffix}", value("averageValue"), plain(&target["averageValue"]))
        } else {
            format!("{}/{}", value("value"), plain(&target["value"]))
        };
        if named { format!("{}: {text}", plain(&metric[source]["name"])) } else { text }
    };
    list(&spec["metrics"]).enumerate().map(metric).collect()
}

#[cfg(test)]
mod tests {
    use super::super::printers::line;
    use serde_json::{Value, json};

    #[test]
    fn autoscalers() {
        let hpa = |spec: Value, status: Value| {
            line(
                "autoscaling",
                "v2",
                "horizontalpodautoscalers",
                "h",
                json!({"spec": spec, "status": status}),
            )
        };
        let cpu =
            json!({"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}});
        let spec = json!({"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 5, "metrics": [cpu]});
        assert_eq!(hpa(spec.clone(), json!({})), "h | Deployment/d | cpu: <unknown>/80% | 1 | 5 | 0 | 60s");
        let status = json!({"currentReplicas": 2, "currentMetrics": [{"resource": {"current": {"averageUtilization": 7}}}]});
        assert_eq!(hpa(spec.clone(), status), "h | Deployment/d | cpu: 7%/80% | 1 | 5 | 2 | 60s");
        let mut many = spec;
        let pods = json!({"type": "Pods", "pods": {"target": {"averageValue": "5"}}});
        let external = json!({"type": "External", "external": {"target": {"averageValue": "3"}}});
        many["metrics"] = json!([pods, external, pods, pods]);
        assert_eq!(
            hpa(many, json!({})),
            "h | Deployment/d | <unknown>/5, <unknown>/3 (avg) + 2 more... | 1 | 5 | 0 | 60s"
        );
        let first = json!({"spec": {"scaleTargetRef": {"kind": "ReplicaSet", "name": "r"}, "maxReplicas": 3,
            "targetCPUUtilizationPercentage": 50}});
        assert_eq!(
            line("autoscaling", "v1", "horizontalpodautoscalers", "h", first),
            "h | ReplicaSet/r | cpu: <unknown>/50% | 1 | 3 | 0 | 60s"
        );
    }
}
