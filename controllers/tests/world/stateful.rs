//! StatefulSets over a bad transport, and with controllers that die: names, claims and order hold all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::faults::{Faults, Rates};
use crate::rollouts::BAD;
use crate::support::{Bounds, World, guard, image_of, is_available, template};

fn set(replicas: i32, image: &str, more: Value) -> Value {
    let mut spec = json!({"replicas": replicas, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
        "template": template(image), "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": "web"}, "spec": spec})
}

impl World {
    /// Waits until `web` has these pods, all of this image, and says so; and claims of these ordinals exactly.
    async fn settled(&self, image: &str, ordinals: std::ops::Range<i32>, claims: std::ops::Range<i32>) {
        let names = |prefix: &str, ordinals: std::ops::Range<i32>| -> BTreeSet<String> {
            ordinals.map(|ordinal| format!("{prefix}web-{ordinal}")).collect()
        };
        let (pod_names, claim_names) = (names("", ordinals.clone()), names("data-", claims));
        let wanted = i32::try_from(ordinals.len()).unwrap();
        self.until("the set", async || {
            let pods: Vec<Pod> = self.list().await;
            let right = pods.iter().filter(|pod| image_of(pod) == image && is_available(pod));
            let right: BTreeSet<_> = right.map(ResourceExt::name_any).collect();
            let set = self.of::<StatefulSet>().get("web").await.unwrap();
            let status = set.status.clone().unwrap_or_default();
            let told = status.observed_generation == set.metadata.generation
                && status.replicas == wanted
                && [status.updated_replicas, status.available_replicas].map(|one| one.unwrap_or(0))
                    == [wanted; 2]
                && status.current_revision == status.update_revision;
            let claims: Vec<PersistentVolumeClaim> = self.list().await;
            let claims: BTreeSet<_> = claims.iter().map(ResourceExt::name_any).collect();
            if right == pod_names && pods.len() == pod_names.len() && told && claims == claim_names {
                return Ok(());
            }
            let pods: Vec<_> = pods.iter().map(|pod| (pod.name_any(), image_of(pod).to_owned())).collect();
            Err(format!("{pods:?}, {claims:?}, {status:?}"))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_keeps_order_and_claims_whatever_is_lost() {
    let world = World::start().await;
    let faults = Faults::new(21, BAD, None);
    let controllers = world.controllers(&faults);
    let policy =
        json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}});
    world.create::<StatefulSet>(set(4, "v1", policy)).await;
    world.settled("v1", 0..4, 0..4).await;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let guarding = tokio::spawn(guard(world.client.clone(), Bounds { at_most: 4, at_least: 3 }, stopped));
    for image in ["v2", "v1"] {
        world.patch::<StatefulSet>("web", json!({"spec": {"template": template(image)}})).await;
        world.settled(image, 0..4, 0..4).await;
    }
    // It may have ended by a panic, which `await` passes on.
    drop(stop);
    guarding.await.unwrap();
    let revisions: Vec<ControllerRevision> = world.list().await;
    let mut numbers: Vec<_> = revisions.iter().map(|revision| revision.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "a template that came back got its revision back");
    world.patch::<StatefulSet>("web", json!({"spec": {"replicas": 2}})).await;
    world.settled("v1", 0..2, 0..2).await;
    world.patch::<StatefulSet>("web", json!({"spec": {"replicas": 3}})).await;
    world.settled("v1", 0..3, 0..3).await;
    world.of::<StatefulSet>().delete("web", &Default::default()).await.unwrap();
    world
        .until("everything to go", async || {
            let left = (world.list::<Pod>().await.len(), world.list::<PersistentVolumeClaim>().await.len());
            let history = world.list::<ControllerRevision>().await.len();
            if left == (0, 0) && history == 0 { Ok(()) } else { Err(format!("{left:?}, {history}")) }
        })
        .await;
    faults.stop();
    world.end(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_survives_a_crash_at_every_write() {
    let world = World::start().await;
    let none = Faults::new(1, Rates::default(), None);
    world.create::<StatefulSet>(set(2, "v1", json!({}))).await;
    let mut image = "v1".to_owned();
    for life in 1..=18_i64 {
        if life % 6 == 4 {
            image = format!("v{life}");
            world.patch::<StatefulSet>("web", json!({"spec": {"template": template(&image)}})).await;
        }
        let faults = Faults::new(life.unsigned_abs(), Rates::default(), Some(life % 5 + 1));
        let doomed = world.controllers(&faults);
        // A life that has nothing to write ends all the same.
        tokio::select! {
            () = faults.death() => {}
            () = world.settled(&image, 0..2, 0..2) => {}
        }
        doomed.shutdown(Duration::ZERO).await;
        faults.quiet().await;
    }
    let healthy = world.controllers(&none);
    world.settled(&image, 0..2, 0..2).await;
    world.end(healthy).await;
}
