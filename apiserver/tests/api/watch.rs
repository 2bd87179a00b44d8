//! Watches as clients read them: ordered, resumable, with selectors and bookmarks.

use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, WatchEvent, WatchParams};
use serde_json::json;
use std::time::Duration;

use crate::conformance::Watch;
use crate::harness::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// What a watch says first, in short.
async fn first(watch: &mut Watch, count: usize) -> Vec<String> {
    let mut said = Vec::new();
    for _ in 0..count {
        let (kind, name, _) = watch.brief().await;
        said.push(format!("{kind} {name}"));
    }
    said
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
    admin.created(MAPS, json!({"metadata": {"name": "end", "labels": {"x": "1"}}})).await;
    let mut all = Watch::open(&admin, MAPS, &format!("resourceVersion={from}")).await;
    let mut revisions: Vec<u64> = Vec::new();
    for wanted in [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b"), ("ADDED", "end")] {
        let (kind, name, revision) = all.brief().await;
        assert_eq!((kind.as_str(), name.as_str()), wanted);
        revisions.push(revision.parse().unwrap());
    }
    assert!(revisions.windows(2).all(|w| w[0] < w[1]), "{revisions:?}");
    let mut rest = Watch::open(&admin, MAPS, &format!("resourceVersion={}", revisions[0])).await;
    assert_eq!(first(&mut rest, 3).await, ["MODIFIED b", "DELETED b", "ADDED end"]);
    // Seen through a selector, a change of labels is a coming and going.
    let query = format!("resourceVersion={from}&labelSelector=x%3D1");
    let mut selected = Watch::open(&admin, MAPS, &query).await;
    assert_eq!(first(&mut selected, 3).await, ["ADDED b", "DELETED b", "ADDED end"]);
}

#[tokio::test]
async fn a_watch_ends_by_itself() {
    let cluster = Cluster::start().await;
    let request = http::Request::get(format!("{MAPS}?watch=1&timeoutSeconds=1"));
    let request = request.body(kube::client::Body::empty()).unwrap();
    let body = cluster.admin().0.send(request).await.unwrap().into_body();
    let end = tokio::time::timeout(Duration::from_secs(120), body.collect()).await.expect("an end in time");
    assert!(end.is_ok());
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for name in ["a", "b"] {
        admin.created(MAPS, json!({"metadata": {"name": name}})).await;
    }
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = Watch::open(&admin, MAPS, query).await;
    assert_eq!(first(&mut watch, 2).await, ["ADDED a", "ADDED b"]);
    let event = watch.next().await;
    assert_eq!(event["type"], "BOOKMARK");
    assert_eq!(event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(event["object"]["kind"], "ConfigMap");
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
        tokio::time::timeout(Duration::from_secs(120), events.try_next()).await.unwrap().unwrap().unwrap();
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
