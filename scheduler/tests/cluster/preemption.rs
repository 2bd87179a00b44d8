//! `[sig-scheduling] SchedulerPreemption`: pods of lower priority leave for those of higher.

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::support::{World, condition, pod};

/// A world with nodes of ten of something each, and classes of low, medium and high priority.
async fn world(nodes: &[&str]) -> World {
    let world = World::start().await;
    for name in nodes {
        world.node(name, json!({"example.com/thing": "10"})).await;
    }
    for (name, value) in [("low", 1), ("medium", 100), ("high", 1000)] {
        world.class(name, value).await;
    }
    world
}

/// A pod of a class that wants so many of it.
async fn wanting(world: &World, name: &str, class: &str, things: u32) -> Pod {
    world.create(with(name, class, things)).await
}

fn with(name: &str, class: &str, things: u32) -> Value {
    let mut pod = pod(name, "1m", json!({"priorityClassName": class}));
    let amount = json!({"example.com/thing": things.to_string()});
    pod["spec"]["containers"][0]["resources"] = json!({"requests": amount, "limits": amount});
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_preemption_validates_basic_preemption_works() {
    let world = world(&["n1", "n2"]).await;
    wanting(&world, "victim", "low", 10).await;
    let at = world.bound("victim").await;
    wanting(&world, "stays", "medium", 10).await;
    world.bound("stays").await;
    let preemptor = wanting(&world, "preemptor", "high", 10).await;
    assert_eq!(world.bound("preemptor").await, at, "where less is lost");
    world.gone("victim").await;
    let said = world.event("victim", "Preempted").await;
    assert_eq!(said, format!("Preempted by pod {} on node {at}", preemptor.uid().unwrap()));
    assert_eq!(
        world.event("preemptor", "FailedScheduling").await,
        "0/2 nodes are available: 2 Insufficient example.com/thing."
    );
    assert!(world.get("stays").await.is_some());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_preemption_validates_lower_priority_pod_preemption_by_critical_pod() {
    let world = world(&["n1"]).await;
    wanting(&world, "victim", "high", 10).await;
    world.bound("victim").await;
    let mut critical = with("critical", "system-cluster-critical", 10);
    critical["metadata"]["namespace"] = json!("kube-system");
    critical["spec"]["serviceAccountName"] = json!("default");
    // The namespaces of the system are made with the server; their accounts are not.
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), "kube-system");
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "kube-system");
    pods.create(&PostParams::default(), &serde_json::from_value(critical).unwrap()).await.unwrap();
    world
        .until("the critical pod", async || {
            let pod = pods.get("critical").await.unwrap();
            let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            if bound { Ok(()) } else { Err(format!("{:?}", pod.status)) }
        })
        .await;
    world.gone("victim").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_preemption_validates_pod_disruption_condition_is_added_to_the_preempted_pod() {
    let world = world(&["n1"]).await;
    let mut victim = with("victim", "low", 10);
    victim["metadata"]["finalizers"] = json!(["example.com/test"]);
    world.create::<Pod>(victim).await;
    world.bound("victim").await;
    wanting(&world, "preemptor", "high", 10).await;
    let told = world
        .until("the condition", async || {
            let pod = world.get("victim").await.unwrap();
            let told = condition(&pod, "DisruptionTarget", "PreemptionByScheduler");
            let leaves = pod.metadata.deletion_timestamp.is_some();
            told.filter(|_| leaves).ok_or_else(|| format!("{:?}", pod.status))
        })
        .await;
    assert_eq!(told, "default-scheduler: preempting to accommodate a higher priority pod");
    // The room is promised and waited for: nobody else has to go, and nobody less important takes it.
    world
        .until("the promise", async || {
            let pod = world.get("preemptor").await.unwrap();
            let node = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
            if node == Some("n1") { Ok(()) } else { Err(format!("{:?}", pod.status)) }
        })
        .await;
    let finalizers = json!({"metadata": {"finalizers": null}});
    world.of::<Pod>().patch("victim", &PatchParams::default(), &Patch::Merge(finalizers)).await.unwrap();
    world.gone("victim").await;
    assert_eq!(world.bound("preemptor").await, "n1");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduler_preemption_preemption_execution_path_runs_replica_sets_to_verify_preemption_running_path()
{
    let world = world(&["n1"]).await;
    for value in 1..=4 {
        world.class(&format!("p{value}"), value).await;
    }
    // Nine of ten are taken by pods of the priorities 1 to 3; the one of priority 4 wants five.
    let mut pods = Vec::new();
    for (class, count, things) in [("p1", 5, 1), ("p2", 1, 2), ("p3", 1, 2)] {
        for number in 0..count {
            let name = format!("{class}-{number}");
            wanting(&world, &name, class, things).await;
            pods.push(name);
        }
    }
    for name in &pods {
        world.bound(name).await;
    }
    wanting(&world, "p4-0", "p4", 5).await;
    world.bound("p4-0").await;
    let left = world.of::<Pod>().list(&ListParams::default()).await.unwrap();
    let left = |class: &str| left.items.iter().filter(|pod| pod.name_any().starts_with(class)).count();
    assert_eq!(
        [left("p1"), left("p2"), left("p3")],
        [1, 1, 1],
        "the least important go, and no more than have to"
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_preempts_waits_until_there_is_room() {
    let world = world(&["n1"]).await;
    wanting(&world, "other", "low", 10).await;
    world.bound("other").await;
    let class = json!({"metadata": {"name": "patient"}, "value": 1000, "preemptionPolicy": "Never"});
    let classes = world.all::<PriorityClass>();
    classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    wanting(&world, "patient", "patient", 10).await;
    let told = world.unschedulable("patient").await;
    assert!(told.ends_with("preemption: not eligible due to preemptionPolicy=Never."), "{told}");
    world.of::<Pod>().delete("other", &DeleteParams::default()).await.unwrap();
    world.bound("patient").await;
    world.end().await;
}
