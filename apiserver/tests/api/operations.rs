//! What operators rely on: metrics, limits, and the objects of API priority and fairness.

use decapod_apiserver::Limits;
use serde_json::json;

use crate::harness::{Cluster, message};

const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

#[tokio::test]
async fn metrics_bear_kubernetes_names() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let map = json!({"metadata": {"name": "a"}});
    admin.created("/api/v1/namespaces/default/configmaps?dryRun=All", map.clone()).await;
    admin.created("/api/v1/namespaces/default/configmaps", map).await;
    let text = admin.get("/metrics").await.1;
    let text = text.as_str().unwrap();
    for line in [
        "# TYPE apiserver_request_total counter",
        "# TYPE apiserver_request_duration_seconds histogram",
        "apiserver_request_total{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"namespace\",component=\"apiserver\",dry_run=\"\",code=\"201\"} 1",
        "apiserver_request_total{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"namespace\",component=\"apiserver\",dry_run=\"All\",code=\"201\"} 1",
        // One is the server's own: it says since when the use of tokens is noted.
        "etcd_requests_total{operation=\"create\",group=\"\",resource=\"configmaps\"} 2",
        "apiserver_storage_objects{resource=\"configmaps\"} 2",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
}

#[tokio::test]
async fn limits_turn_requests_away() {
    let cluster = Cluster::start_with(|options, _| options.limits = Limits { reads: 1, writes: 0 }).await;
    let admin = cluster.admin();
    let refused = admin.create("/api/v1/namespaces", json!({"metadata": {"name": "a"}})).await;
    assert_eq!((refused.0, &refused.1["reason"]), (429, &json!("TooManyRequests")), "{}", refused.1);
    assert_eq!(refused.1["details"]["retryAfterSeconds"], 1);
    assert_eq!(admin.get("/api/v1/namespaces/default?timeout=30s").await.0, 200);
    let wrong = admin.get("/api/v1/namespaces/default?timeout=soon").await;
    assert_eq!(wrong.0, 400);
    assert!(message(&wrong).starts_with("invalid timeout specified in the request URL"), "{}", wrong.1);
}

#[tokio::test]
async fn flow_schemas_are_made_and_put_right() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let count = |list: serde_json::Value| list["items"].as_array().map(Vec::len);
    assert_eq!(count(admin.get(&format!("{FLOW}/prioritylevelconfigurations")).await.1), Some(8));
    assert_eq!(count(admin.get(&format!("{FLOW}/flowschemas")).await.1), Some(11));
    let shares = |n: u32| json!({"spec": {"limited": {"nominalConcurrencyShares": n}}});
    let level = |name: &str| format!("{FLOW}/prioritylevelconfigurations/{name}");
    let theirs = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}}});
    for (name, change) in [("system", shares(7)), ("workload-low", theirs), ("workload-low", shares(7))] {
        let (code, answer) = admin.patch(&level(name), "merge-patch", change).await;
        assert_eq!(code, 200, "{answer}");
    }
    drop(admin);
    let cluster = cluster.restart().await;
    let admin = cluster.admin();
    for (name, wanted) in [("system", 30), ("workload-low", 7)] {
        let now = admin.get(&level(name)).await.1;
        assert_eq!(now["spec"]["limited"]["nominalConcurrencyShares"], wanted, "{name}: {now}");
    }
}
