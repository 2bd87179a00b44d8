//! `[sig-scheduling] LimitRange`: what pods ask for where nobody says it.

use k8s_openapi::api::core::v1::{LimitRange, Namespace};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::support::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_range_should_list_patch_and_delete_a_limit_range_by_collection() {
    let world = World::start().await;
    let other = serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap();
    world.all::<Namespace>().create(&PostParams::default(), &other).await.unwrap();
    let elsewhere: Api<LimitRange> = Api::namespaced(world.client.clone(), "other");
    let everywhere: Api<LimitRange> = Api::all(world.client.clone());
    let range = |name: &str| {
        json!({"metadata": {"name": name, "labels": {"e2e": "patched"}}, "spec": {"limits": [{"type": "Container",
            "defaultRequest": {"cpu": "50m"}, "default": {"cpu": "500m"}}]}})
    };
    world.create::<LimitRange>(range("one")).await;
    let second = serde_json::from_value(range("two")).unwrap();
    elsewhere.create(&PostParams::default(), &second).await.unwrap();
    let marked = ListParams::default().labels("e2e=patched");
    assert_eq!(everywhere.list(&marked).await.unwrap().items.len(), 2);
    let patch = json!({"metadata": {"labels": {"one": "patched"}}, "spec": {"limits": [{"type": "Container",
        "defaultRequest": {"cpu": "70m"}, "default": {"cpu": "500m"}}]}});
    let ranges = world.of::<LimitRange>();
    let patched = ranges.patch("one", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let limits = patched.spec.as_ref().unwrap().limits[0].default_request.clone().unwrap();
    assert_eq!((patched.labels()["one"].as_str(), limits["cpu"].0.as_str()), ("patched", "70m"));
    // What the range gives a pod is what the scheduler counts.
    world.node("n1", json!({"cpu": "100m"})).await;
    let bare = json!({"containers": [{"name": "c", "image": "i"}]});
    world.pod("first", "1m", bare.clone()).await;
    world.bound("first").await;
    world.pod("second", "1m", bare).await;
    assert!(world.unschedulable("second").await.starts_with("0/1 nodes are available: 1 Insufficient cpu."));
    ranges.delete_collection(&DeleteParams::default(), &marked).await.unwrap();
    let left = everywhere.list(&marked).await.unwrap().items;
    assert_eq!(left.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["two"]);
    world.end().await;
}
