//! Autoscalers in both of their versions: what the old one has no field for, it has in annotations.

use serde_json::{Value, json};

use crate::harness::{Cluster, message};

const V1: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
const V2: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";

fn autoscaler(spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    object
}

#[tokio::test]
async fn the_old_version_shows_in_annotations_what_it_has_no_field_for() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let memory = json!({"type": "Resource", "resource": {"name": "memory",
        "target": {"type": "AverageValue", "averageValue": "100Mi"}}});
    let made = admin
        .created(
            V2,
            autoscaler(json!({"metrics": [memory], "behavior": {"scaleDown": {"selectPolicy": "Min"}}})),
        )
        .await;
    let status = json!({"currentReplicas": 1, "desiredReplicas": 2, "currentMetrics": [
        {"type": "Resource", "resource": {"name": "memory", "current": {"averageValue": "5Mi"}}}]});
    let (code, answer) =
        admin.patch(&format!("{V2}/h/status"), "merge-patch", json!({"status": status})).await;
    assert_eq!(code, 200, "{answer}");
    let (_, old) = admin.get(&format!("{V1}/h")).await;
    for field in ["/spec/metrics", "/spec/behavior", "/status/currentMetrics"] {
        assert_eq!(old.pointer(field), None, "{field}: {old}");
    }
    let annotations = &old["metadata"]["annotations"];
    assert!(annotations[METRICS].as_str().unwrap().contains("\"targetAverageValue\":\"100Mi\""), "{old}");
    assert!(annotations[BEHAVIOR].as_str().unwrap().contains("\"SelectPolicy\":\"Min\""), "{old}");
    // Written back as it is, it changes nothing.
    let (code, same) = admin.update(&format!("{V1}/h"), old.clone()).await;
    assert_eq!((code, &same["metadata"]["resourceVersion"]), (200, &old["metadata"]["resourceVersion"]));
    let (_, new) = admin.get(&format!("{V2}/h")).await;
    assert_eq!(new["spec"], made["spec"]);
    assert_eq!(new["metadata"]["annotations"], Value::Null);
}

#[tokio::test]
async fn the_old_version_is_held_to_all_that_the_new_one_is() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.created(V1, autoscaler(json!({}))).await;
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 80, "{made}");
    let refused =
        admin.update(&format!("{V1}/h"), autoscaler(json!({"targetCPUUtilizationPercentage": 0}))).await;
    let why = "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0";
    assert!(refused.0 == 422 && message(&refused).contains(why), "{}", refused.1);
    let mut hidden = autoscaler(json!({}));
    hidden["metadata"] = json!({"name": "i", "annotations": {METRICS: "[{\"type\": \"Pods\"}]"}});
    let refused = admin.create(V1, hidden).await;
    let why = "spec.metrics[0].pods: Required value: must populate information for the given metric source";
    assert!(refused.0 == 422 && message(&refused).contains(why), "{}", refused.1);
    let nothing = autoscaler(json!({"behavior": {"scaleUp": {"policies": []}}}));
    let refused = admin.create(V2, nothing).await;
    let why = "spec.behavior.scaleUp.policies: Required value: must specify at least one Policy";
    assert!(refused.0 == 422 && message(&refused).contains(why), "{}", refused.1);
}
