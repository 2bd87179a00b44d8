//! The volume binder over a network that fails, and through its own death.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::support::World;

const COUNT: usize = 8;

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_claim_gets_a_volume_of_its_own_whatever_fails() {
    let world = World::start().await;
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    for index in 0..COUNT {
        let volume = json!({"metadata": {"name": format!("v{index}")}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "hostPath": {"path": "/tmp/x"},
            "persistentVolumeReclaimPolicy": "Retain"}});
        volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
        let claim = json!({"metadata": {"name": format!("c{index}")}, "spec": {"storageClassName": "",
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        world.create::<PersistentVolumeClaim>(claim).await;
    }
    // The first lives for a few writes only.
    let dying = Faults::new(3, Rates::default(), Some(9));
    let first = world.controllers(&dying);
    dying.death().await;
    first.shutdown(std::time::Duration::ZERO).await;
    dying.quiet().await;
    let rates = Rates { refused: 40, conflict: 60, lost: 40, ended: 20, late: 50 };
    let faults = Faults::new(5, rates, None);
    let controllers = world.controllers(&faults);
    world
        .until("all claims to be bound", async || {
            let claims: Vec<PersistentVolumeClaim> = world.list().await;
            let bound = claims.iter().filter(|claim| {
                claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
            });
            let names: BTreeSet<_> =
                bound.clone().map(|claim| &claim.spec.as_ref().unwrap().volume_name).collect();
            let count = bound.count();
            assert_eq!(names.len(), count, "a volume has two claims: {names:?}");
            if count == COUNT { Ok(()) } else { Err(format!("{count} of {COUNT}")) }
        })
        .await;
    let claims: Api<PersistentVolumeClaim> = world.of();
    for index in 0..COUNT {
        claims.delete(&format!("c{index}"), &DeleteParams::default()).await.unwrap();
    }
    world
        .until("all volumes to be released", async || {
            let volumes = volumes.list(&ListParams::default()).await.unwrap().items;
            let released = volumes.iter().filter(|volume| phase(volume) == "Released").count();
            if released == COUNT { Ok(()) } else { Err(format!("{released} of {COUNT}")) }
        })
        .await;
    faults.stop();
    world.end(controllers).await;
}
