//! Rollouts over a bad transport: counts are exact in the end, and never out of bounds in between.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Pod, ReplicationController, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::support::{Bounds, World, deployment, guard, image_of, is_available, template};

pub(crate) const BAD: Rates = Rates { refused: 30, conflict: 60, lost: 60, ended: 20, late: 150 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_keeps_its_bounds_whatever_is_lost() {
    for seed in 1..=2 {
        let world = World::start().await;
        let faults = Faults::new(seed, BAD, None);
        let controllers = world.controllers(&faults);
        let strategy = json!({"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}});
        world.create::<Deployment>(deployment(6, "v1", strategy)).await;
        world.rolled_out("v1", 6).await;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let bounds = Bounds { at_most: 8, at_least: 5 };
        let guarding = tokio::spawn(guard(world.client.clone(), bounds, stopped));
        for image in ["v2", "v3", "v1"] {
            let patch = json!({"spec": {"template": template(image)}});
            world.patch::<Deployment>("web", patch).await;
            if image != "v2" {
                world.rolled_out(image, 6).await;
            }
        }
        // It may have ended by a panic, which `await` passes on.
        drop(stop);
        guarding.await.unwrap();
        world.patch::<Deployment>("web", json!({"spec": {"replicas": 9}})).await;
        world.rolled_out("v1", 9).await;
        world.patch::<Deployment>("web", json!({"spec": {"replicas": 2}})).await;
        world.rolled_out("v1", 2).await;
        faults.stop();
        world.end(controllers).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_never_runs_two_versions_at_once() {
    let world = World::start().await;
    let faults = Faults::new(5, BAD, None);
    let controllers = world.controllers(&faults);
    world.create::<Deployment>(deployment(4, "v1", json!({"type": "Recreate"}))).await;
    world.rolled_out("v1", 4).await;
    world.patch::<Deployment>("web", json!({"spec": {"template": template("v2")}})).await;
    world
        .until("the other version", async || {
            let pods: Vec<Pod> = world.list().await;
            let old = pods.iter().filter(|pod| image_of(pod) == "v1").count();
            assert!(old == 0 || old == pods.len(), "both versions exist at once");
            let new = pods.iter().filter(|pod| image_of(pod) == "v2" && is_available(pod)).count();
            if new == 4 && old == 0 { Ok(()) } else { Err(format!("{old} old, {new} new")) }
        })
        .await;
    world.end(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_and_the_endpoints_of_its_pods_come_out_exact() {
    let world = World::start().await;
    let faults = Faults::new(7, BAD, None);
    let controllers = world.controllers(&faults);
    let service = json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    world.create::<Service>(service).await;
    let controller = json!({"metadata": {"name": "web"}, "spec": {
        "replicas": 5, "selector": {"app": "web"}, "template": template("v1")}});
    world.create::<ReplicationController>(controller).await;
    for replicas in [5_usize, 8, 1] {
        world.patch::<ReplicationController>("web", json!({"spec": {"replicas": replicas}})).await;
        world.until("exact counts", async || exact(&world, replicas).await).await;
    }
    world.end(controllers).await;
}

/// Every other answer is lost, and nothing else happens from which a cache would learn how late it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubt_ends_without_a_bookmark() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(3, Rates { lost: 500, ..Rates::default() }, None));
    let controller = json!({"metadata": {"name": "web"}, "spec": {
        "replicas": 8, "selector": {"app": "web"}, "template": template("v1")}});
    world.create::<ReplicationController>(controller).await;
    for replicas in [8, 2] {
        world.patch::<ReplicationController>("web", json!({"spec": {"replicas": replicas}})).await;
        world
            .until("so many pods", async || {
                let pods = world.list::<Pod>().await.len();
                if pods == replicas { Ok(()) } else { Err(format!("{pods} pods")) }
            })
            .await;
    }
    world.end(controllers).await;
}

/// Pods, the status of their ReplicationController, slices and Endpoints all say the same.
async fn exact(world: &World, replicas: usize) -> Result<(), String> {
    let pods: Vec<Pod> = world.list().await;
    let mut expected: Vec<String> =
        pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone()).collect();
    expected.sort();
    let controller = world.of::<ReplicationController>().get("web").await.unwrap();
    let status = controller.status.clone().unwrap_or_default();
    let slices: Vec<EndpointSlice> = world.list().await;
    let mine = slices.iter().filter(|slice| slice.name_any().starts_with("web-"));
    let endpoints = mine.flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|one| one.conditions.as_ref().and_then(|it| it.ready) == Some(true));
    let mut sliced: Vec<String> = ready.flat_map(|one| one.addresses.clone()).collect();
    sliced.sort();
    let legacy = world.of::<Endpoints>().get_opt("web").await.unwrap();
    let subsets = legacy.iter().flat_map(|one| one.subsets.iter().flatten());
    let mut old: Vec<String> =
        subsets.flat_map(|subset| subset.addresses.iter().flatten()).map(|one| one.ip.clone()).collect();
    old.sort();
    let counts = (pods.len(), status.replicas, status.available_replicas);
    let wanted = i32::try_from(replicas).unwrap();
    if counts == (replicas, wanted, Some(wanted)) && sliced == expected && old == expected {
        Ok(())
    } else {
        Err(format!("{counts:?}; pods {expected:?}, slices {sliced:?}, endpoints {old:?}"))
    }
}
