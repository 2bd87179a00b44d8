//! `[sig-storage]`, what it demands of the API server alone.

use serde_json::{Value, json};

use super::{Operations, names};
use crate::harness::{Client, Cluster};

const GROUP: &str = "storage.k8s.io";

fn driver(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"attachRequired": false, "podInfoOnMount": true,
        "volumeLifecycleModes": ["Ephemeral"], "fsGroupPolicy": "File"}})
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"drivers": [
        {"name": "csi.example", "nodeID": name, "topologyKeys": ["topology.csi.example/zone"]}]}})
}

fn class(name: &str) -> Value {
    json!({"metadata": {"name": name}, "provisioner": "csi.example", "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer", "parameters": {"kind": "fast"}})
}

fn attachment(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"attacher": "csi.example", "nodeName": "n1",
        "source": {"persistentVolumeName": "pv-1"}}})
}

fn capacity(name: &str) -> Value {
    json!({"metadata": {"name": name}, "storageClassName": "fast", "capacity": "10Gi",
        "nodeTopology": {"matchLabels": {"zone": "a"}}})
}

async fn runs_through(plural: &'static str, make: fn(&str) -> Value) -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    Operations { group: GROUP, plural, subresources: &[], make }.all_work(&admin).await;
    (cluster, admin)
}

#[tokio::test]
async fn csi_inline_volumes_should_run_through_the_lifecycle_of_a_csi_driver() {
    runs_through("csidrivers", driver).await;
}

#[tokio::test]
async fn csi_nodes_csi_conformance_should_run_through_the_lifecycle_of_a_csinode() {
    runs_through("csinodes", node).await;
}

#[tokio::test]
async fn storage_classes_csi_conformance_should_run_through_the_lifecycle_of_a_storage_class() {
    runs_through("storageclasses", class).await;
}

#[tokio::test]
async fn volume_attachment_conformance_should_run_through_the_lifecycle_of_a_volume_attachment() {
    runs_through("volumeattachments", attachment).await;
}

#[tokio::test]
async fn csi_storage_capacity_should_support_csi_storage_capacities_api_operations() {
    let (_cluster, admin) = runs_through("namespaces/default/csistoragecapacities", capacity).await;
    let path = format!("/apis/{GROUP}/v1/namespaces/default/csistoragecapacities");
    admin.created(&path, capacity("one")).await;
    let (_, everywhere) = admin.get(&format!("/apis/{GROUP}/v1/csistoragecapacities")).await;
    assert_eq!(names(&everywhere), ["one"]);
}

#[tokio::test]
async fn volume_attachment_conformance_should_apply_changes_to_a_volumeattachment_status() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = format!("/apis/{GROUP}/v1/volumeattachments");
    admin.created(&path, attachment("va")).await;
    let (one, status) = (format!("{path}/va"), format!("{path}/va/status"));
    let (code, patched) =
        admin.patch(&one, "merge-patch", json!({"metadata": {"labels": {"va": "patched"}}})).await;
    assert_eq!((code, &patched["metadata"]["labels"]["va"]), (200, &json!("patched")), "{patched}");
    let (code, read) = admin.get(&status).await;
    assert_eq!((code, read["status"]["attached"] == true), (200, false), "{read}");
    let (code, mut patched) =
        admin.patch(&status, "merge-patch", json!({"status": {"attached": true}})).await;
    assert_eq!((code, &patched["status"]["attached"]), (200, &json!(true)), "{patched}");
    patched["status"]["attached"] = json!(false);
    let (code, updated) = admin.update(&status, patched).await;
    assert_eq!((code, &updated["status"]["attached"]), (200, &json!(false)), "{updated}");
    assert_eq!(admin.delete(&one).await.0, 200);
    assert_eq!(admin.get(&one).await.0, 404);
}

#[tokio::test]
async fn a_volume_says_since_when_it_is_in_its_phase() {
    const SINCE: &str = "lastPhaseTransitionTime";
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = "/api/v1/persistentvolumes";
    let spec =
        json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/v"}});
    let volume = admin.created(path, json!({"metadata": {"name": "pv"}, "spec": spec})).await;
    assert_eq!(volume["status"][SINCE], volume["metadata"]["creationTimestamp"], "{volume}");
    let status = format!("{path}/pv/status");
    let put = async |change: Value| {
        let (code, volume) = admin.patch(&status, "merge-patch", json!({"status": change})).await;
        assert_eq!(code, 200, "{volume}");
        volume["status"][SINCE].clone()
    };
    let old = json!("2020-01-01T00:00:00Z");
    assert_eq!(put(json!({SINCE: old})).await, old, "what its writer says");
    assert_eq!(put(json!({SINCE: null})).await, old, "the phase is the same");
    assert_ne!(put(json!({"phase": "Available"})).await, old);
    assert_eq!(put(json!({"phase": "Bound", SINCE: old})).await, old);
}

/// What is immutable keeps its data and stays immutable; it may be deleted.
async fn is_immutable_once_it_says_so(plural: &str, new: Value, changed: Value) {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = format!("/api/v1/namespaces/default/{plural}");
    let one = format!("{path}/fixed");
    admin.created(&path, new).await;
    let patch = async |change: Value| admin.patch(&one, "merge-patch", change).await;
    assert_eq!(patch(json!({"data": changed})).await.0, 200, "as long as it does not say so");
    assert_eq!(patch(json!({"immutable": true})).await.0, 200);
    for refused in
        [json!({"data": {"more": "eA=="}}), json!({"data": {"a": null}}), json!({"immutable": false})]
    {
        let (code, answer) = patch(refused.clone()).await;
        assert_eq!(code, 422, "{refused}: {answer}");
    }
    let (code, labelled) = patch(json!({"metadata": {"labels": {"still": "free"}}})).await;
    assert_eq!((code, &labelled["metadata"]["labels"]["still"]), (200, &json!("free")));
    assert_eq!(admin.delete(&one).await.0, 200);
}

#[tokio::test]
async fn config_map_should_be_immutable_if_immutable_field_is_set() {
    let map = json!({"metadata": {"name": "fixed"}, "data": {"a": "1"}});
    is_immutable_once_it_says_so("configmaps", map, json!({"a": "2"})).await;
}

#[tokio::test]
async fn secrets_should_be_immutable_if_immutable_field_is_set() {
    let secret = json!({"metadata": {"name": "fixed"}, "data": {"a": "MQ=="}});
    is_immutable_once_it_says_so("secrets", secret, json!({"a": "Mg=="})).await;
}

#[tokio::test]
async fn csi_inline_volumes_should_support_csi_volume_source_in_pod_api() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    cluster.admin().service_account("default").await;
    let path = "/api/v1/namespaces/default/pods";
    let volume = json!({"name": "inline", "csi": {"driver": "csi.example", "readOnly": true, "fsType": "ext4",
        "volumeAttributes": {"size": "1Gi"}, "nodePublishSecretRef": {"name": "key"}}});
    let container =
        json!({"name": "c", "image": "i", "volumeMounts": [{"name": "inline", "mountPath": "/v"}]});
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [container], "volumes": [volume]}});
    admin.created(path, pod).await;
    let (code, read) = admin.get(&format!("{path}/p")).await;
    let volumes = read["spec"]["volumes"].as_array().unwrap();
    assert_eq!((code, volumes.iter().find(|one| one["name"] == "inline")), (200, Some(&volume)), "{read}");
    let (_, list) = admin.get(path).await;
    assert_eq!(names(&list), ["p"]);
    assert_eq!(admin.delete(&format!("{path}/p?gracePeriodSeconds=0")).await.0, 200);
    assert_eq!(admin.get(&format!("{path}/p")).await.0, 404);
}
