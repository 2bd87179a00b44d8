//! Many volumes in many pods at once.

use anyhow::Result;
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, scene};

pub(super) const TESTS: &[Test<Cluster>] = &[(
    "[sig-storage] EmptyDir wrapper volumes should not cause race condition when used for configmaps",
    fifty_maps_in_five_pods,
)];

const MAPS: usize = 50;
const PODS: usize = 5;

fn fifty_maps_in_five_pods(cluster: &Cluster) -> Result<()> {
    scene(cluster, "storage-many", |scene| {
        let name = |index: usize| format!("racy-{index}");
        let maps = (0..MAPS).map(|index| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(index)},
                "data": {"data-1": "value-1"}})
        });
        let volumes: Vec<Value> =
            (0..MAPS).map(|index| json!({"name": name(index), "configMap": {"name": name(index)}})).collect();
        let mounts: Vec<Value> = (0..MAPS)
            .map(|index| json!({"name": name(index), "mountPath": format!("/etc/config-{index}")}))
            .collect();
        let script = format!("[ $(cat /etc/config-*/data-1 | grep -o value-1 | wc -l) = {MAPS} ]");
        let pods = (0..PODS).map(|index| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("reader-{index}")}, "spec": {
                "restartPolicy": "Never", "volumes": volumes, "containers": [{"name": "c", "image": "busybox:1",
                    "command": ["sh", "-c", script], "volumeMounts": mounts}]}})
        });
        scene.create_all(maps.chain(pods).collect())?;
        poll::until("all pods to have read all", PATIENCE, || {
            let pods = scene.list(&["pods"])?;
            let phases: Vec<_> = pods.iter().map(|pod| pod["status"]["phase"].clone()).collect();
            Ok(if phases.iter().all(|phase| phase == "Succeeded") {
                Ok(())
            } else {
                Err(format!("{phases:?}"))
            })
        })
    })
}
