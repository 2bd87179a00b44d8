//! Volumes that are devices (`volumeMode: Block`).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);

/// A file as a device of the machine, until it is dropped.
struct Loop(String);

impl Loop {
    fn of(file: &Path) -> Result<Self> {
        let made =
            Command::new("losetup").args(["--find", "--show"]).arg(file).output().context("losetup")?;
        ensure!(made.status.success(), "losetup: {}", String::from_utf8_lossy(&made.stderr));
        Ok(Loop(String::from_utf8(made.stdout)?.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let ended = Command::new("losetup").args(["--detach", &self.0]).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("{} is still there", self.0);
        }
    }
}

/// A local volume that is a device: bound to a claim of its mode, given to a pod at any path, with what the pod may do
/// with it; whoever would mount it is told.
pub(crate) fn a_volume_is_a_device(cluster: &Cluster) -> Result<()> {
    let file = cluster.scratch().join("device");
    std::fs::File::create(&file)?.set_len(1 << 20)?;
    let device = Loop::of(&file)?;
    let nodes = cluster.get(&["nodes"])?;
    let node = nodes["items"][0]["metadata"]["name"].as_str().context("no node")?.to_owned();
    let result = cluster.in_namespace("devices", |ns| {
        let write = "printf device | dd of=/dev/xvda 2>/dev/null && dd if=/dev/xvda bs=6 count=1 2>/dev/null && echo; \
            dd if=/mnt/disk bs=6 count=1 2>/dev/null && echo; sleep 3600";
        let read = "dd if=/dev/xvda bs=6 count=1 2>/dev/null && echo; \
            printf x 2>/dev/null | dd of=/dev/xvda 2>/dev/null || echo refused; sleep 3600";
        let devices = json!([{"name": "disk", "devicePath": "/dev/xvda"}]);
        let elsewhere = json!([{"name": "disk", "devicePath": "/dev/xvda"}, {"name": "again", "devicePath": "/mnt/disk"}]);
        let mounts = json!([{"name": "disk", "mountPath": "/mnt"}]);
        let objects = [
            volume(&device.0, &node, ns),
            claim(ns),
            pod(ns, "writer", write, &json!({"volumeDevices": elsewhere}), false),
            pod(ns, "reader", read, &json!({"volumeDevices": devices}), true),
            pod(ns, "mounter", "true", &json!({"volumeMounts": mounts}), false),
        ];
        cluster.apply(&objects.map(|object| object.to_string()).join("\n---\n"))?;
        let said = |name: &'static str, wanted: &'static str| {
            let logs = move || Ok(cluster.k(&["logs", name, "-n", ns]).unwrap_or_else(|error| format!("{error:#}")));
            poll::text(name, PATIENCE, logs, move |said| said == wanted).map(drop)
        };
        said("writer", "device\ndevice\n")?;
        let seen = cluster.k(&["exec", "writer", "-n", ns, "--", "sh", "-c", "test -b /dev/xvda && dd if=/dev/xvda bs=6 count=1 2>/dev/null"])?;
        ensure!(seen == "device", "{seen:?}");
        let events = || cluster.k(&["get", "events", "-n", ns]);
        let wanted = "volume disk has volumeMode Block, but is specified in volumeMounts";
        poll::text("why it is not mounted", PATIENCE, events, |told| told.contains(wanted))?;
        // Who may only read came before or after the writer: what it reads is one or the other.
        cluster.k(&["wait", "--for=condition=Ready", "--timeout=180s", "pod/reader", "-n", ns])?;
        let refused = || Ok(cluster.k(&["logs", "reader", "-n", ns]).unwrap_or_default());
        poll::text("the refusal", PATIENCE, refused, |said| said.ends_with("refused\n")).map(drop)
    });
    let removed = cluster.k(&["delete", "pv", "disk", "--ignore-not-found", "--wait=true", "--timeout=180s"]);
    let content = std::fs::read(&file)?;
    drop(device);
    result.and(removed.map(drop))?;
    ensure!(content.starts_with(b"device"), "nothing reached the disk");
    Ok(())
}

fn volume(device: &str, node: &str, ns: &str) -> Value {
    let here = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]);
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
        "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
            "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "by-hand",
            "claimRef": {"namespace": ns, "name": "disk"},
            "local": {"path": device}, "nodeAffinity": {"required": {"nodeSelectorTerms": here}}}})
}

fn claim(ns: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "disk", "namespace": ns},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": "by-hand",
            "resources": {"requests": {"storage": "1Mi"}}}})
}

fn pod(ns: &str, name: &str, script: &str, uses: &Value, read_only: bool) -> Value {
    let mut container = json!({"name": "c", "image": "busybox:1", "command": ["sh", "-c", script]});
    for (field, value) in uses.as_object().into_iter().flatten() {
        container[field] = value.clone();
    }
    let volume = |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": "disk", "readOnly": read_only}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ns},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], "volumes": [volume("disk"), volume("again")]}})
}
