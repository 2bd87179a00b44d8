//! Autoscalers keep to their range, also over a bad network, and say what they lack.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use serde_json::{Value, json};

use crate::faults::{Faults, Rates};
use crate::support::{World, deployment};

const BAD: Rates = Rates { refused: 20, conflict: 40, lost: 40, ended: 10, late: 50 };

fn autoscaler(name: &str, kind: &str, min: i32, max: i32) -> Value {
    let target = json!({"apiVersion": "apps/v1", "kind": kind, "name": "web"});
    json!({"metadata": {"name": name}, "spec": {"minReplicas": min, "maxReplicas": max, "scaleTargetRef": target}})
}

/// Waits until a condition of an autoscaler says this.
async fn says(world: &World, name: &str, type_: &str, reason: &str, message: &str) {
    world
        .until(reason, async || {
            let autoscaler = world.of::<HorizontalPodAutoscaler>().get(name).await.unwrap();
            let conditions = autoscaler.status.and_then(|status| status.conditions).unwrap_or_default();
            let said =
                conditions.iter().find(|one| one.type_ == type_ && one.reason.as_deref() == Some(reason));
            let said = said.and_then(|one| one.message.as_deref());
            let right = said.is_some_and(|said| said.contains(message));
            if right { Ok(()) } else { Err(format!("{conditions:?}")) }
        })
        .await;
}

async fn replicas(world: &World, wanted: i32) {
    world
        .until("the replicas", async || {
            let web = world.of::<Deployment>().get("web").await.unwrap();
            let there = web.spec.and_then(|spec| spec.replicas);
            if there == Some(wanted) { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_stays_in_its_range_and_what_is_missing_is_said() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(41, BAD, None));
    world.create::<Deployment>(deployment(5, "v1", json!({}))).await;
    world.rolled_out("v1", 5).await;
    world.create::<HorizontalPodAutoscaler>(autoscaler("web", "Deployment", 1, 3)).await;
    replicas(&world, 3).await;
    world
        .patch::<HorizontalPodAutoscaler>("web", json!({"spec": {"minReplicas": 6, "maxReplicas": 9}}))
        .await;
    replicas(&world, 6).await;
    // In between it goes by the figures, of which there are none.
    world.patch::<HorizontalPodAutoscaler>("web", json!({"spec": {"minReplicas": 2}})).await;
    let why = "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for \
        resource cpu: ";
    says(&world, "web", "ScalingActive", "FailedGetResourceMetric", why).await;
    says(&world, "web", "AbleToScale", "SucceededGetScale", "").await;
    replicas(&world, 6).await;
    world.patch::<Deployment>("web", json!({"spec": {"replicas": 0}})).await;
    world.patch::<HorizontalPodAutoscaler>("web", json!({"spec": {"minReplicas": 3}})).await;
    says(&world, "web", "ScalingActive", "ScalingDisabled", "the replica count of the target is zero").await;
    replicas(&world, 0).await;
    world.create::<HorizontalPodAutoscaler>(autoscaler("none", "Nothing", 1, 3)).await;
    let why = "unable to get the target's current scale: no matches for kind \"Nothing\" in group \"apps\"";
    says(&world, "none", "AbleToScale", "FailedGetScale", why).await;
    world.end(controllers).await;
}
