//! `[sig-scheduling] SchedulerPredicates`: where a pod may be.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::support::{World, condition};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_predicates_validates_resource_limits_of_pods_that_are_allowed_to_run() {
    let world = World::start().await;
    for name in ["n1", "n2", "n3"] {
        world.node(name, json!({"cpu": "1"})).await;
    }
    // As much of each node as leaves less than half of it.
    for name in ["a", "b", "c"] {
        world.pod(name, "600m", json!({})).await;
    }
    let mut nodes = vec![world.bound("a").await, world.bound("b").await, world.bound("c").await];
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
    world.pod("more", "500m", json!({})).await;
    let told = world.unschedulable("more").await;
    assert_eq!(
        told,
        "0/3 nodes are available: 3 Insufficient cpu. no new claims to deallocate, preemption: \
         0/3 nodes are available: 3 No preemption victims found for incoming pod."
    );
    assert_eq!(world.event("more", "FailedScheduling").await, told);
    // What leaves makes room.
    world.of::<Pod>().delete("b", &DeleteParams::default()).await.unwrap();
    world.bound("more").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_predicates_validates_that_node_selector_is_respected_if_matching() {
    let world = World::start().await;
    world.node("n1", json!({})).await;
    world.node("n2", json!({})).await;
    let label = json!({"metadata": {"labels": {"example.com/pool": "42"}}});
    world.all::<Node>().patch("n2", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    world.pod("p", "1m", json!({"nodeSelector": {"example.com/pool": "42"}})).await;
    assert_eq!(world.bound("p").await, "n2");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_predicates_validates_that_node_selector_is_respected_if_not_matching() {
    let world = World::start().await;
    world.node("n1", json!({})).await;
    world.pod("p", "1m", json!({"nodeSelector": {"label": "nonempty"}})).await;
    let told = world.unschedulable("p").await;
    assert!(
        told.starts_with("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
        "{told}"
    );
    // The label comes later.
    let label = json!({"metadata": {"labels": {"label": "nonempty"}}});
    world.all::<Node>().patch("n1", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    assert_eq!(world.bound("p").await, "n1");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_predicates_validates_that_there_exists_conflict_between_pods_with_same_host_port_and_protocol_but_one_using_0_0_0_0_host_ip()
 {
    let world = World::start().await;
    world.node("n1", json!({})).await;
    let port = |address: &str, protocol: &str| {
        json!({"containers": [{"name": "c", "image": "i", "ports":
            [{"containerPort": 80, "hostPort": 54322, "hostIP": address, "protocol": protocol}]}]})
    };
    world.pod("all", "1m", port("0.0.0.0", "TCP")).await;
    world.bound("all").await;
    world.pod("one", "1m", port("192.0.2.1", "TCP")).await;
    let told = world.unschedulable("one").await;
    assert!(told.contains("1 node(s) didn't have free ports for the requested pod ports"), "{told}");
    world.pod("other", "1m", port("0.0.0.0", "UDP")).await;
    assert_eq!(world.bound("other").await, "n1", "another protocol is no conflict");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_hold_a_pod_and_company_is_waited_for() {
    let world = World::start().await;
    world.node("n1", json!({})).await;
    world.pod("gated", "1m", json!({"schedulingGates": [{"name": "example.com/wait"}]})).await;
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "gated"}}, "topologyKey": "kubernetes.io/hostname"}]}}});
    world.pod("follower", "1m", near).await;
    let told = world.unschedulable("follower").await;
    assert!(told.contains("1 node(s) didn't match pod affinity rules"), "{told}");
    world
        .until("the gate to be told", async || {
            let pod = world.get("gated").await.unwrap();
            condition(&pod, "PodScheduled", "SchedulingGated").ok_or_else(|| format!("{:?}", pod.status))
        })
        .await;
    let open = json!({"spec": {"schedulingGates": []}});
    world.of::<Pod>().patch("gated", &PatchParams::default(), &Patch::Merge(open)).await.unwrap();
    assert_eq!((world.bound("gated").await, world.bound("follower").await), ("n1".into(), "n1".into()));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_claims_devices_waits_and_who_has_an_image_is_preferred() {
    let world = World::start().await;
    for name in ["n1", "n2", "n3"] {
        world.node(name, json!({})).await;
    }
    let claims = json!({"resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}]});
    world.pod("claiming", "1m", claims).await;
    let told = world.unschedulable("claiming").await;
    assert!(told.starts_with("0/3 nodes are available: 3 cannot allocate all claims."), "{told}");
    // A large image on one node of three is worth more than the room that its other pods take.
    let image =
        json!({"status": {"images": [{"names": ["example.com/large:1"], "sizeBytes": 2_000_000_000}]}});
    world.all::<Node>().patch_status("n2", &PatchParams::default(), &Patch::Merge(image)).await.unwrap();
    let label = json!({"metadata": {"labels": {"later": "yes"}}});
    world.all::<Node>().patch("n2", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    // Once the scheduler has seen the label it has seen the image.
    world.pod("other", "100m", json!({"nodeSelector": {"later": "yes"}})).await;
    assert_eq!(world.bound("other").await, "n2");
    let container = json!([{"name": "c", "image": "example.com/large:1"}]);
    world.pod("large", "0", json!({"containers": container})).await;
    assert_eq!(world.bound("large").await, "n2");
    world.end().await;
}
