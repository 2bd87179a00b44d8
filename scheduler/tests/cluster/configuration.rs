//! Two schedulers of one process, as a `KubeSchedulerConfiguration` has them.

use decapod_scheduler::config::Configuration;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use serde_json::json;

use crate::support::{World, pod};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pod_is_placed_by_the_profile_that_it_names() {
    let configuration = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "profiles": [{"schedulerName": "default-scheduler"}, {"schedulerName": "packer",
            "plugins": {"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit"}]}},
            "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated"}}}]}]});
    let world = World::with(Configuration::read(configuration).unwrap()).await;
    world.node("n1", json!({})).await;
    world.node("n2", json!({})).await;
    world.pod("first", "1", json!({})).await;
    let full = world.bound("first").await;
    let mut packed = Vec::new();
    for number in 0..3 {
        let name = format!("packed{number}");
        world.create::<Pod>(pod(&name, "500m", json!({"schedulerName": "packer"}))).await;
        packed.push(world.bound(&name).await);
    }
    assert!(packed.iter().all(|node| *node == full), "{packed:?}");
    world.pod("spread", "500m", json!({})).await;
    assert_ne!(world.bound("spread").await, full);
    assert_eq!(
        world.event("packed0", "Scheduled").await,
        format!("Successfully assigned default/packed0 to {full}")
    );
    let events = world.of::<Event>().list(&ListParams::default()).await.unwrap();
    let of_it = events.items.iter().find(|event| event.involved_object.name.as_deref() == Some("packed0"));
    let source = of_it.and_then(|event| event.source.as_ref()?.component.clone());
    assert_eq!(source.as_deref(), Some("packer"));
    // Nobody is there for this one.
    world.create::<Pod>(pod("foreign", "1m", json!({"schedulerName": "someone-else"}))).await;
    world.pod("after", "1m", json!({})).await;
    world.bound("after").await;
    let foreign = world.get("foreign").await.unwrap();
    assert!(foreign.spec.unwrap().node_name.is_none() && foreign.status.unwrap().conditions.is_none());
    world.end().await;
}
