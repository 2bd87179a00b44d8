//! Claims, their volumes and their classes.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, scene};

pub(super) const TESTS: &[Test<Cluster>] = &[
    (
        "[sig-storage] PersistentVolumes CSI Conformance should run through the lifecycle of a PV and a PVC",
        lifecycle,
    ),
    ("[sig-storage] PersistentVolumes CSI Conformance should apply changes to a pv/pvc status", status),
    (
        "[sig-storage] VolumeAttributesClass should run through the lifecycle of a VolumeAttributesClass",
        attributes,
    ),
    ("storage::data_outlives_its_pod_and_goes_with_its_claim", local_path),
    ("storage::what_is_asked_in_vain_is_said", in_vain),
];

fn claim(name: &str, class: Value, more: Value) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
    if !class.is_null() {
        spec["storageClassName"] = class;
    }
    super::merge(&mut spec, &more);
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
}

/// A volume that no claim of another class gets.
fn volume(name: &str, class: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "labels": {"conf": name}},
        "spec": {"capacity": {"storage": "2Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Retain", "csi": {"driver": "csi.example", "volumeHandle": name}}})
}

fn phase(object: &Value) -> &str {
    object["status"]["phase"].as_str().unwrap_or_default()
}

fn labelled(scene: &Scene<'_>, object: &str, value: &str) -> Result<()> {
    let patched = scene.merge(object, &json!({"metadata": {"labels": {"is": value}}}))?;
    ensure!(patched["metadata"]["labels"]["is"] == value, "{patched:#}");
    Ok(())
}

/// Both sides, bound to each other.
fn pair(scene: &Scene<'_>, name: &str) -> Result<()> {
    scene.create(&volume(name, name))?;
    scene.create(&claim("claim", json!(name), json!({})))?;
    scene.until("pvc/claim", "its volume", |claim| phase(claim) == "Bound")?;
    scene.until(&format!("pv/{name}"), "its claim", |volume| phase(volume) == "Bound").map(drop)
}

fn lifecycle(cluster: &Cluster) -> Result<()> {
    scene(cluster, "pv-life", |scene| {
        let name = "conf-pv-life";
        let pv = format!("pv/{name}");
        for round in ["patched", "updated"] {
            pair(scene, name)?;
            ensure!(scene.list(&["pv", "-l", &format!("conf={name}")])?.len() == 1);
            ensure!(scene.list(&["pvc"])?.len() == 1);
            if round == "patched" {
                labelled(scene, &pv, round)?;
                labelled(scene, "pvc/claim", round)?;
                scene.k(&["delete", "pvc/claim"])?;
            } else {
                for one in [&pv, "pvc/claim"] {
                    let mut object = scene.get(&[one])?;
                    object["metadata"]["labels"]["is"] = json!(round);
                    let updated = scene.send(&["replace"], &object)?;
                    ensure!(updated["metadata"]["labels"]["is"] == round, "{updated:#}");
                }
                scene.k(&["delete", "pvc", "-l", &format!("is={round}")])?;
            }
            scene.until_gone("pvc/claim")?;
            scene.until(&pv, "its release", |volume| phase(volume) == "Released")?;
            scene.k(&["delete", &pv])?;
            scene.until_gone(&pv)?;
        }
        Ok(())
    })
}

fn status(cluster: &Cluster) -> Result<()> {
    scene(cluster, "pv-status", |scene| {
        let name = "conf-pv-status";
        let pv = format!("pv/{name}");
        pair(scene, name)?;
        let patch = |object: &str, status: Value| -> Result<Value> {
            let patch = json!({"status": status}).to_string();
            let told = scene.k(&[
                "patch",
                object,
                "--subresource=status",
                "--type=merge",
                "-o",
                "json",
                "-p",
                &patch,
            ])?;
            Ok(serde_json::from_str(&told)?)
        };
        let condition =
            |kind: &str| json!({"conditions": [{"type": kind, "status": "True", "reason": "E2E"}]});
        for kind in ["StatusPatched", "StatusUpdated"] {
            let claim = patch("pvc/claim", condition(kind))?;
            ensure!(claim["status"]["conditions"][0]["type"] == kind, "{claim:#}");
        }
        let told = patch(&pv, json!({"message": "from a test", "reason": "E2E"}))?;
        ensure!(told["status"]["reason"] == "E2E", "{told:#}");
        scene.k(&["delete", "pvc/claim"])?;
        scene.k(&["delete", &pv]).map(drop)
    })
}

fn attributes(cluster: &Cluster) -> Result<()> {
    scene(cluster, "vac", |scene| {
        let object = |name: &str| {
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": name},
                "driverName": "csi.example", "parameters": {"iops": "100"}})
        };
        scene.create(&object("conf-vac"))?;
        labelled(scene, "volumeattributesclass/conf-vac", "patched")?;
        scene.k(&["delete", "volumeattributesclass/conf-vac"])?;
        scene.until_gone("volumeattributesclass/conf-vac")?;
        let mut again = scene.create(&object("conf-vac"))?;
        again["metadata"]["labels"] = json!({"is": "updated"});
        let updated = scene.send(&["replace"], &again)?;
        ensure!(updated["metadata"]["labels"]["is"] == "updated", "{updated:#}");
        scene.k(&["delete", "volumeattributesclasses", "-l", "is=updated"])?;
        scene.until_gone("volumeattributesclass/conf-vac")
    })
}

/// A pod with a claim at `/data` that runs a script and ends.
fn pod(name: &str, script: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0, "securityContext": {"runAsUser": 1000, "fsGroup": 1001},
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}})
}

fn ends_well(scene: &Scene<'_>, name: &str) -> Result<()> {
    let end = |pod: &Value| matches!(phase(pod), "Succeeded" | "Failed");
    let ended = scene.until(&format!("pod/{name}"), "its end", end)?;
    ensure!(phase(&ended) == "Succeeded", "{:#}; {}", ended["status"], scene.k(&["logs", name])?);
    Ok(())
}

/// The default class: the claim waits for its pod, its data outlives it, and goes with the claim.
fn local_path(cluster: &Cluster) -> Result<()> {
    scene(cluster, "local-path", |scene| {
        scene.create(&claim("data", Value::Null, json!({})))?;
        scene.until("pvc/data", "its class", |claim| claim["spec"]["storageClassName"] == "local-path")?;
        scene.create(&pod("writer", "echo kept > /data/file"))?;
        ends_well(scene, "writer")?;
        let bound = scene.get(&["pvc/data"])?;
        ensure!(phase(&bound) == "Bound" && bound["status"]["capacity"]["storage"] == "1Mi", "{bound:#}");
        let name = bound["spec"]["volumeName"].as_str().context("no volume")?.to_owned();
        let path = scene.get(&[&format!("pv/{name}")])?["spec"]["local"]["path"].clone();
        let path = std::path::PathBuf::from(path.as_str().context("no path")?);
        ensure!(path.join("file").exists(), "{}", path.display());
        scene.k(&["delete", "pod/writer"])?;
        scene
            .create(&pod("reader", "[ $(cat /data/file) = kept ] && [ $(stat -c %g /data/file) = 1001 ]"))?;
        ends_well(scene, "reader")?;
        // As long as the pod is there, so is the claim.
        scene.k(&["delete", "pvc/data", "--wait=false"])?;
        let held = scene.get(&["pvc/data"])?;
        ensure!(held["metadata"]["deletionTimestamp"].is_string(), "{held:#}");
        scene.k(&["delete", "pod/reader"])?;
        scene.until_gone("pvc/data")?;
        scene.until_gone(&format!("pv/{name}"))?;
        ensure!(!path.exists(), "{} is still there", path.display());
        Ok(())
    })
}

/// Each reason is in the events, in words that help.
fn in_vain(cluster: &Cluster) -> Result<()> {
    scene(cluster, "in-vain", |scene| {
        scene.create(&claim("many", json!("local-path"), json!({"accessModes": ["ReadWriteMany"]})))?;
        scene.create(&claim("none", json!("no-such-class"), json!({})))?;
        scene.create(&claim("alone", json!(""), json!({})))?;
        let mut wants = pod("wants", "true");
        wants["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!("many");
        scene.create(&wants)?;
        let mut lost = pod("lost", "true");
        lost["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!("missing");
        scene.create(&lost)?;
        let told = [
            ("many", "ProvisioningFailed", "spec.accessModes: ReadWriteMany is not possible"),
            ("none", "ProvisioningFailed", "storageclass.storage.k8s.io \"no-such-class\" not found"),
            (
                "alone",
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            ),
            ("lost", "FailedScheduling", "persistentvolumeclaim \"missing\" not found"),
        ];
        poll::until("all reasons to be told", PATIENCE, || {
            let events = scene.list(&["events"])?;
            let is_told = |(name, reason, words): &(&str, &str, &str)| {
                events.iter().any(|event| {
                    event["involvedObject"]["name"] == *name
                        && event["reason"] == *reason
                        && event["message"].as_str().is_some_and(|message| message.contains(words))
                })
            };
            let missing: Vec<_> = told.iter().filter(|one| !is_told(one)).collect();
            Ok(if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) })
        })
    })
}
