//! `[sig-scheduling] SchedulerPreemption PriorityClass endpoints`.

use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::support::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_preemption_priority_class_endpoints_verify_priority_class_endpoints_can_be_operated_with_different_http_methods()
 {
    let world = World::start().await;
    world.class("p1", 1).await;
    world.class("p2", 2).await;
    let classes = world.all::<PriorityClass>();
    let listed = classes.list(&ListParams::default()).await.unwrap();
    assert!(
        ["p1", "p2"]
            .iter()
            .all(|name| listed.items.iter().any(|one| one.metadata.name.as_deref() == Some(name)))
    );
    let patch = |patch: serde_json::Value| {
        let classes = classes.clone();
        async move { classes.patch("p1", &PatchParams::default(), &Patch::Merge(patch)).await }
    };
    let described = patch(json!({"description": "this is a test"})).await.unwrap();
    assert_eq!(described.description.as_deref(), Some("this is a test"));
    let refused = patch(json!({"value": 9})).await.unwrap_err().to_string();
    assert!(refused.contains("Value: Forbidden: may not be changed in an update"), "{refused}");
    let mut changed = classes.get("p2").await.unwrap();
    changed.description = Some("another".to_owned());
    let mut changed = classes.replace("p2", &PostParams::default(), &changed).await.unwrap();
    changed.value = Some(7);
    assert!(classes.replace("p2", &PostParams::default(), &changed).await.is_err());
    classes.delete("p1", &DeleteParams::default()).await.unwrap();
    assert!(classes.get_opt("p1").await.unwrap().is_none());
    world.end().await;
}
