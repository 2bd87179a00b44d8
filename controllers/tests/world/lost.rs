//! Answers are lost: what must not be done twice is not, because the controllers ask what became of it.

use std::collections::BTreeSet;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::support::World;

/// Of the writes a good third is carried out without an answer, and the caches lag.
const LOSING: Rates = Rates { refused: 0, conflict: 0, lost: 350, ended: 0, late: 500 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_nodes_get_the_same_block() {
    const NODES: usize = 20;
    let world = World::start().await;
    let faults = Faults::new(11, LOSING, None);
    let controllers = world.controllers_with(&faults, |options| options.node_ipam = Some(Default::default()));
    let api: Api<Node> = Api::all(world.client.clone());
    // One of the world's own is there already.
    for n in 1..NODES {
        let node = serde_json::from_value(json!({"metadata": {"name": format!("lost-{n}")}})).unwrap();
        api.create(&PostParams::default(), &node).await.unwrap();
    }
    world
        .until("a block for each node", async || {
            let nodes = api.list(&ListParams::default()).await.unwrap().items;
            let blocks: Vec<_> =
                nodes.iter().filter_map(|node| node.spec.as_ref()?.pod_cidr.as_deref()).collect();
            let different: BTreeSet<_> = blocks.iter().collect();
            assert_eq!(different.len(), blocks.len(), "two nodes have the same block: {blocks:?}");
            if blocks.len() == NODES { Ok(()) } else { Err(format!("{} blocks", blocks.len())) }
        })
        .await;
    world.end(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_service_gets_a_second_slice() {
    const SERVICES: usize = 20;
    let world = World::start().await;
    let slices: Api<EndpointSlice> = world.of();
    let begin = slices.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let faults = Faults::new(13, LOSING, None);
    let controllers = world.controllers(&faults);
    for n in 0..SERVICES {
        let service = json!({"metadata": {"name": format!("lost-{n}")}, "spec": {
            "selector": {"app": "none"}, "ports": [{"port": 80}]}});
        world.create::<Service>(service).await;
    }
    world
        .until("a slice for each Service", async || {
            let present = world.list::<EndpointSlice>().await.len();
            if present >= SERVICES { Ok(()) } else { Err(format!("{present} slices")) }
        })
        .await;
    faults.quiet().await;
    // The watch tells all that ever were, up to this one, which nobody manages.
    let mark = json!({"metadata": {"name": "mark"}, "addressType": "IPv4", "endpoints": []});
    world.create::<EndpointSlice>(mark).await;
    let mut events = slices.watch(&WatchParams::default(), &begin).await.unwrap().boxed();
    let mut made = Vec::new();
    while let Some(event) = events.next().await {
        match event.unwrap() {
            WatchEvent::Added(slice) if slice.name_any() == "mark" => break,
            WatchEvent::Added(slice) => made.push(slice.labels()["kubernetes.io/service-name"].clone()),
            _ => {}
        }
    }
    let different: BTreeSet<_> = made.iter().filter(|service| service.starts_with("lost-")).collect();
    assert_eq!(different.len(), SERVICES);
    let lost = made.iter().filter(|service| service.starts_with("lost-")).count();
    assert_eq!(lost, SERVICES, "a Service got two slices: {made:?}");
    world.end(controllers).await;
}
