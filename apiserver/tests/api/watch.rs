//! Watches as clients read them: ordered, resumable, with selectors and bookmarks.

use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::time::Duration;

use crate::harness::{Client, Cluster};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The lines of a watch that ends by itself.
async fn lines(client: &Client, query: &str) -> Vec<Value> {
    let request =
        http::Request::get(format!("{MAPS}?watch=1&{query}")).body(kube::client::Body::empty()).unwrap();
    let body = client.0.send(request).await.unwrap().into_body();
    let bytes =
        tokio::time::timeout(Duration::from_secs(60), body.collect()).await.unwrap().unwrap().to_bytes();
    bytes
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect()
}

fn summary(lines: &[Value]) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    lines.iter().map(|l| format!("{} {}", text(&l["type"]), text(&l["object"]["metadata"]["name"]))).collect()
}

#[tokio::test]
async fn a_watch_resumes_where_another_ended() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let start = admin.created(MAPS, json!({"metadata": {"name": "a"}})).await;
    let from = start["metadata"]["resourceVersion"].as_str().unwrap();
    admin.created(MAPS, json!({"metadata": {"name": "b", "labels": {"x": "1"}}})).await;
    admin.patch(&format!("{MAPS}/b"), "merge-patch", json!({"metadata": {"labels": {"x": "2"}}})).await;
    admin.delete(&format!("{MAPS}/b")).await;
    let all = lines(&admin, &format!("resourceVersion={from}&timeoutSeconds=1")).await;
    assert_eq!(summary(&all), ["ADDED b", "MODIFIED b", "DELETED b"]);
    let revisions: Vec<u64> = all
        .iter()
        .map(|l| l["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(revisions.is_sorted() && revisions.windows(2).all(|w| w[0] < w[1]), "{revisions:?}");
    let rest = lines(&admin, &format!("resourceVersion={}&timeoutSeconds=1", revisions[0])).await;
    assert_eq!(summary(&rest), ["MODIFIED b", "DELETED b"]);
    // Seen through a selector, a change of labels is a coming and going.
    let selected =
        lines(&admin, &format!("resourceVersion={from}&timeoutSeconds=1&labelSelector=x%3D1")).await;
    assert_eq!(summary(&selected), ["ADDED b", "DELETED b"]);
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for name in ["a", "b"] {
        admin.created(MAPS, json!({"metadata": {"name": name}})).await;
    }
    let query =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let lines = lines(&admin, query).await;
    assert_eq!(summary(&lines), ["ADDED a", "ADDED b", "BOOKMARK "]);
    assert_eq!(lines[2]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(lines[2]["object"]["kind"], "ConfigMap");
}

#[tokio::test]
async fn a_typed_client_watches_live() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let api: Api<ConfigMap> = Api::namespaced(admin.0.clone(), "default");
    let version = api.list(&Default::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    admin.created(MAPS, json!({"metadata": {"name": "live"}})).await;
    let event =
        tokio::time::timeout(Duration::from_secs(60), events.try_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Added(map) if map.metadata.name.as_deref() == Some("live")));
    // The server's end is the watch's end.
    let (stopped, rest) = tokio::join!(cluster.handle.shutdown(), events.try_next());
    let () = stopped;
    assert!(rest.is_ok_and(|event| event.is_none()));
}

#[tokio::test]
async fn revisions_that_never_were_are_refused() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (code, status) = admin.get(&format!("{MAPS}?watch=1&resourceVersion=999999")).await;
    assert_eq!(code, 504, "{status}");
}
