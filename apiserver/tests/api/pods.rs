//! Pods: admission, binding, and their graceful end.

use serde_json::json;

use crate::harness::{Cluster, message, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn a_pod_gets_its_account_and_tolerations() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let early = admin.create(PODS, pod("p")).await;
    assert_eq!(early.0, 403);
    assert!(message(&early).contains("error looking up service account default/default"), "{early:?}");
    admin.service_account("default").await;
    let made = admin.created(PODS, pod("p")).await;
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(
        (spec["priority"].as_i64(), spec["preemptionPolicy"].as_str()),
        (Some(0), Some("PreemptLowerPriority"))
    );
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-"));
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);
    assert!(spec.as_object().unwrap().values().all(|v| !v.is_null()), "{spec}");
    assert_eq!(
        (made["status"]["phase"].as_str(), made["status"]["qosClass"].as_str()),
        (Some("Pending"), Some("BestEffort"))
    );
    let mut critical = pod("q");
    critical["spec"]["priorityClassName"] = "system-node-critical".into();
    assert_eq!(admin.created(PODS, critical).await["spec"]["priority"], 2_000_001_000);
    let mut unknown = pod("r");
    unknown["spec"]["priorityClassName"] = "nope".into();
    assert_eq!(
        message(&admin.create(PODS, unknown).await),
        "pods \"r\" is forbidden: no PriorityClass with name nope was found"
    );
}

#[tokio::test]
async fn a_pod_is_bound_and_ends_gracefully() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    admin.created(PODS, pod("p")).await;
    let one = format!("{PODS}/p");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let (code, status) = admin.create(&format!("{one}/binding"), binding.clone()).await;
    assert_eq!((code, status["status"].as_str()), (201, Some("Success")));
    let twice = admin.create(&format!("{one}/binding"), binding).await;
    assert_eq!(twice.0, 409);
    let (_, bound) = admin.get(&one).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let moved = admin.patch(&one, "merge-patch", json!({"spec": {"nodeName": "n2"}})).await;
    assert_eq!(moved.0, 422);
    let (_, on_node) = admin.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await;
    assert_eq!(on_node["items"].as_array().unwrap().len(), 1);

    let (code, ending) = admin.delete(&one).await;
    assert_eq!((code, ending["metadata"]["deletionGracePeriodSeconds"].as_i64()), (200, Some(30)));
    assert!(ending["metadata"]["deletionTimestamp"].is_string());
    let (_, status) =
        admin.patch(&format!("{one}/status"), "merge-patch", json!({"status": {"phase": "Running"}})).await;
    assert_eq!(status["status"]["phase"], "Running");
    assert_eq!(admin.get(&one).await.0, 200, "the kubelet has the last word");
    let (code, gone) = admin.delete(&format!("{one}?gracePeriodSeconds=0")).await;
    assert_eq!((code, gone["kind"].as_str()), (200, Some("Pod")));
    assert_eq!(admin.get(&one).await.0, 404);
}

#[tokio::test]
async fn an_unbound_pod_goes_at_once_also_by_eviction() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    admin.created(PODS, pod("p")).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(admin.create(&format!("{PODS}/p/eviction"), eviction).await.0, 201);
    assert_eq!(admin.get(&format!("{PODS}/p")).await.0, 404);
}

#[tokio::test]
async fn a_pod_without_a_node_has_an_empty_log() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    admin.created(PODS, pod("p")).await;
    let log = admin.get(&format!("{PODS}/p/log")).await;
    assert_eq!((log.0, log.1.as_str()), (200, Some("")));
    assert_eq!(admin.get(&format!("{PODS}/nope/log")).await.0, 404);
}
