//! `metrics.k8s.io`: what nodes and pods use, as their kubelets tell it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, pod};
use crate::proxy::kubelet;

const ROOT: &str = "/apis/metrics.k8s.io/v1beta1";

/// A tenth of a processor, by the times that the kubelet gives; of the node, by the server's clock.
fn metrics(reading: u64) -> String {
    let base = 1_790_000_000;
    let millis = (base + reading * 10) * 1000;
    let labels = "{container=\"c\",namespace=\"default\",pod=\"p\"}";
    format!(
        "node_cpu_usage_seconds_total {reading}\nnode_memory_working_set_bytes 1048576\n\
         container_cpu_usage_seconds_total{labels} {reading} {millis}\n\
         container_memory_working_set_bytes{labels} 4096 {millis}\n\
         container_start_time_seconds{labels} {base}\n"
    )
}

async fn cluster_with_node() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let readings = Arc::new(AtomicU64::new(0));
    let answer = move || {
        let reading = readings.fetch_add(1, Ordering::Relaxed) + 1;
        async move { metrics(reading) }
    };
    let port = kubelet(&cluster.pki, Router::new().route("/metrics/resource", get(answer))).await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let status = json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
    let labels = json!({"kubernetes.io/hostname": "n1"});
    let node = json!({"metadata": {"name": "n1", "labels": labels}, "status": status});
    admin.created("/api/v1/nodes", node).await;
    for name in ["p", "silent"] {
        admin.created("/api/v1/namespaces/default/pods", pod(name)).await;
        let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
        admin.create(&format!("/api/v1/namespaces/default/pods/{name}/binding"), binding).await;
    }
    (cluster, admin)
}

/// The first figures come when the kubelet was asked twice.
async fn eventually(client: &Client, path: &str) -> Value {
    for _ in 0..600 {
        let (code, found) = client.get(path).await;
        if code == 200 && found["items"].as_array().is_none_or(|items| !items.is_empty()) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{path} has no figures: {:?}", client.get(path).await);
}

#[tokio::test]
async fn what_is_used_is_told() {
    let (cluster, admin) = cluster_with_node().await;
    let node = eventually(&admin, &format!("{ROOT}/nodes/n1")).await;
    assert_eq!(
        (&node["kind"], &node["apiVersion"]),
        (&json!("NodeMetrics"), &json!("metrics.k8s.io/v1beta1"))
    );
    assert_eq!(node["usage"]["memory"], "1Mi");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    let pods = eventually(&admin, &format!("{ROOT}/namespaces/default/pods")).await;
    assert_eq!(pods["kind"], "PodMetricsList");
    let names: Vec<&Value> =
        pods["items"].as_array().unwrap().iter().map(|p| &p["metadata"]["name"]).collect();
    assert_eq!(names, ["p"], "what has no figures is left out");
    let containers = &pods["items"][0]["containers"];
    assert_eq!(*containers, json!([{"name": "c", "usage": {"cpu": "100m", "memory": "4Ki"}}]));
    let none = admin.get(&format!("{ROOT}/pods?labelSelector=app%3Dnope")).await.1;
    assert_eq!(none["items"], json!([]));
    let missing = admin.get(&format!("{ROOT}/namespaces/default/pods/silent")).await;
    assert_eq!(missing.0, 404);
    assert_eq!(missing.1["message"], "pods.metrics.k8s.io \"default/silent\" not found");
    assert_eq!(admin.get(&format!("{ROOT}/nodes/other")).await.0, 404);
    assert_eq!(admin.get(&format!("{ROOT}/nodes?watch=1")).await.0, 405);
    assert_eq!(admin.get(&format!("{ROOT}/nope")).await.0, 404);
    assert_eq!(cluster.as_user("jane", &[]).get(&format!("{ROOT}/pods")).await.0, 403);
}

#[tokio::test]
async fn the_api_is_discovered_and_its_reader_has_a_role() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (code, list) = admin.get(ROOT).await;
    assert_eq!((code, &list["groupVersion"]), (200, &json!("metrics.k8s.io/v1beta1")));
    let names: Vec<&Value> = list["resources"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["nodes", "pods"]);
    let groups = admin.get("/apis").await.1;
    let mut groups = groups["groups"].as_array().unwrap().iter();
    let group = groups.find(|group| group["name"] == "metrics.k8s.io").unwrap();
    assert_eq!(group["preferredVersion"]["version"], "v1beta1");
    let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:aggregated-metrics-reader";
    let labels = &admin.get(role).await.1["metadata"]["labels"];
    assert_eq!(labels["rbac.authorization.k8s.io/aggregate-to-view"], "true");
    assert_eq!(admin.get(&format!("{ROOT}/nodes")).await.1["items"], json!([]), "no node, no figures");
}
