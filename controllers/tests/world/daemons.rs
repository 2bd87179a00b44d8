//! DaemonSets over a bad transport, and with controllers that die: each node has its one pod in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::rollouts::BAD;
use crate::support::{World, image_of, is_available, template};

impl World {
    async fn node(&self, name: &str) {
        let node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let nodes = Api::<Node>::all(self.client.clone());
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
    }

    async fn daemons(&self) {
        let set = json!({"metadata": {"name": "web"}, "spec": {
            "selector": {"matchLabels": {"app": "web"}}, "template": template("v1")}});
        self.create::<DaemonSet>(set).await;
    }

    /// Waits until these nodes, and no others, have one available pod of this image, and the set says so.
    async fn spread(&self, image: &str, nodes: &[&str]) {
        let wanted: BTreeMap<_, _> = nodes.iter().map(|node| ((*node).to_owned(), 1)).collect();
        let count = i32::try_from(nodes.len()).unwrap();
        self.until("the daemons", async || {
            let pods: Vec<Pod> = self.list().await;
            let mut there = BTreeMap::<String, usize>::new();
            for pod in pods.iter().filter(|pod| image_of(pod) == image && is_available(pod)) {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                *there.entry(node).or_default() += 1;
            }
            let set = self.of::<DaemonSet>().get("web").await.unwrap();
            let status = set.status.clone().unwrap_or_default();
            let told = status.observed_generation == set.metadata.generation
                && [status.desired_number_scheduled, status.current_number_scheduled, status.number_ready]
                    == [count; 3]
                && status.updated_number_scheduled == Some(count)
                && status.number_misscheduled == 0;
            if there == wanted && pods.len() == nodes.len() && told {
                return Ok(());
            }
            let nodes =
                Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await.unwrap().items;
            let nodes: Vec<_> = nodes
                .iter()
                .map(|node| (node.name_any(), node.spec.as_ref().and_then(|spec| spec.taints.clone())))
                .collect();
            Err(format!("{there:?} of {} pods, {status:?}, {nodes:?}", pods.len()))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_has_one_daemon_whatever_is_lost() {
    let world = World::start().await;
    let faults = Faults::new(31, BAD, None);
    let controllers = world.controllers(&faults);
    world.daemons().await;
    for node in ["n2", "n3", "n4"] {
        world.node(node).await;
    }
    world.spread("v1", &["n1", "n2", "n3", "n4"]).await;
    for image in ["v2", "v1"] {
        world.patch::<DaemonSet>("web", json!({"spec": {"template": template(image)}})).await;
        world.spread(image, &["n1", "n2", "n3", "n4"]).await;
    }
    let revisions: Vec<ControllerRevision> = world.list().await;
    let mut numbers: Vec<_> = revisions.iter().map(|revision| revision.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "a template that came back got its revision back");
    // A label decides where they are.
    let nodes: Api<Node> = Api::all(world.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"role": "edge"}}}));
    for node in ["n2", "n3"] {
        nodes.patch(node, &PatchParams::default(), &label).await.unwrap();
    }
    let selector = json!({"spec": {"template": {"spec": {"nodeSelector": {"role": "edge"}}}}});
    world.patch::<DaemonSet>("web", selector).await;
    world.spread("v1", &["n2", "n3"]).await;
    let none = Patch::Merge(json!({"metadata": {"labels": {"role": null}}}));
    nodes.patch("n2", &PatchParams::default(), &none).await.unwrap();
    world.spread("v1", &["n3"]).await;
    world.of::<DaemonSet>().delete("web", &DeleteParams::default()).await.unwrap();
    world
        .until("everything to go", async || {
            let left = (world.list::<Pod>().await.len(), world.list::<ControllerRevision>().await.len());
            if left == (0, 0) { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    faults.stop();
    world.end(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_survive_a_crash_at_every_write() {
    let world = World::start().await;
    let none = Faults::new(1, Rates::default(), None);
    world.daemons().await;
    for node in ["n2", "n3"] {
        world.node(node).await;
    }
    let nodes = ["n1", "n2", "n3"];
    let mut image = "v1".to_owned();
    for life in 1..=18_i64 {
        if life % 6 == 4 {
            image = format!("v{life}");
            world.patch::<DaemonSet>("web", json!({"spec": {"template": template(&image)}})).await;
        }
        let faults = Faults::new(life.unsigned_abs(), Rates::default(), Some(life % 5 + 1));
        let doomed = world.controllers(&faults);
        // A life that has nothing to write ends all the same.
        tokio::select! {
            () = faults.death() => {}
            () = world.spread(&image, &nodes) => {}
        }
        doomed.shutdown(Duration::ZERO).await;
        faults.quiet().await;
    }
    let healthy = world.controllers(&none);
    world.spread(&image, &nodes).await;
    world.end(healthy).await;
}
