//! The entries on `emptyDir`, `configMap`, `secret`, `downwardAPI`, `projected` volumes and sub-paths.

use anyhow::Result;
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{Entry, Scene, entry, outcome};

/// Every entry: its name and what its container is like. The values of what the node has are `$cpu` and `$memory`.
macro_rules! entries {
    ($($name:literal => $entry:expr;)*) => {
        pub(super) const TESTS: &[Test<Cluster>] = &[$(($name, {
            fn check(cluster: &Cluster) -> Result<()> {
                outcome(cluster, $name)
            }
            check
        })),*];

        /// All entries; `node` is what the node has for pods.
        pub(super) fn all(node: &(String, String)) -> Vec<(&'static str, Entry)> {
            let mut all: Vec<(&'static str, Entry)> = vec![$(($name, $entry)),*];
            for (_, entry) in &mut all {
                entry.script = entry.script.replace("$cpu", &node.0).replace("$memory", &node.1);
            }
            all
        }
    };
}

entries! {
    "[sig-storage] EmptyDir volumes pod should support shared volumes between containers" => shared();
    "[sig-storage] EmptyDir volumes volume on default medium should have the correct mode" =>
        empty_dir("", "stat -c %a /v0", &["disk", "777"]);
    "[sig-storage] EmptyDir volumes volume on tmpfs should have the correct mode" =>
        empty_dir("Memory", "stat -c %a /v0", &["tmpfs", "777"]);
    "[sig-storage] EmptyDir volumes should support (root,0644,default)" => file("", 644);
    "[sig-storage] EmptyDir volumes should support (root,0666,default)" => file("", 666);
    "[sig-storage] EmptyDir volumes should support (root,0777,default)" => file("", 777);
    "[sig-storage] EmptyDir volumes should support (root,0644,tmpfs)" => file("Memory", 644);
    "[sig-storage] EmptyDir volumes should support (root,0666,tmpfs)" => file("Memory", 666);
    "[sig-storage] EmptyDir volumes should support (root,0777,tmpfs)" => file("Memory", 777);
    "[sig-storage] EmptyDir volumes should support (non-root,0644,default)" => file("", 644).run_by(1001);
    "[sig-storage] EmptyDir volumes should support (non-root,0666,default)" => file("", 666).run_by(1001);
    "[sig-storage] EmptyDir volumes should support (non-root,0777,default)" => file("", 777).run_by(1001);
    "[sig-storage] EmptyDir volumes should support (non-root,0644,tmpfs)" => file("Memory", 644).run_by(1001);
    "[sig-storage] EmptyDir volumes should support (non-root,0666,tmpfs)" => file("Memory", 666).run_by(1001);
    "[sig-storage] EmptyDir volumes should support (non-root,0777,tmpfs)" => file("Memory", 777).run_by(1001);
    "[sig-storage] EmptyDir wrapper volumes should not conflict" =>
        entry([of_secret(json!({})), of_map(json!({}))], "cat /v0/data-1 /v1/data-1", &["value-1", "value-1"]);

    "[sig-storage] ConfigMap should be consumable from pods in volume" => entry([of_map(json!({}))], READ, &["644 value-1"]);
    "[sig-storage] ConfigMap should be consumable from pods in volume with defaultMode set" =>
        entry([of_map(json!({"defaultMode": 0o400}))], READ, &["400 value-1"]);
    "[sig-storage] ConfigMap should be consumable from pods in volume as non-root" =>
        entry([of_map(json!({}))], READ, &["644 value-1"]).run_by(1000);
    "[sig-storage] ConfigMap should be consumable from pods in volume with mappings" =>
        entry([of_map(mapped(None))], READ_MAPPED, &["644 value-2"]);
    "[sig-storage] ConfigMap should be consumable from pods in volume with mappings and Item mode set" =>
        entry([of_map(mapped(Some(0o400)))], READ_MAPPED, &["400 value-2"]);
    "[sig-storage] ConfigMap should be consumable from pods in volume with mappings as non-root" =>
        entry([of_map(mapped(None))], READ_MAPPED, &["644 value-2"]).run_by(1000);
    "[sig-storage] ConfigMap should be consumable in multiple volumes in the same pod" =>
        entry([of_map(json!({})), of_map(json!({}))], "cat /v0/data-1 /v1/data-1", &["value-1", "value-1"]);
    "[sig-storage] ConfigMap binary data should be reflected in volume" =>
        entry([of_map(json!({}))], "cat /v0/data-1; od -An -tx1 /v0/dump.bin | tr -d ' '", &["value-1", "defeca7efe"]);
    "[sig-storage] ConfigMap updates should be reflected in volume" =>
        waiting([json!({"configMap": {"name": "changing-1"}})], "[ $(cat /v0/data-1) = value-1 ]", "[ $(cat /v0/data-1) = value-2 ]");
    "[sig-storage] ConfigMap optional updates should be reflected in volume" => optional("configMap", "name", false);

    "[sig-storage] Secrets should be consumable from pods in volume" => entry([of_secret(json!({}))], READ, &["644 value-1"]);
    "[sig-storage] Secrets should be consumable from pods in volume with defaultMode set" =>
        entry([of_secret(json!({"defaultMode": 0o400}))], READ, &["400 value-1"]);
    "[sig-storage] Secrets should be consumable from pods in volume as non-root with defaultMode and fsGroup set" =>
        entry([of_secret(json!({"defaultMode": 0o440}))], READ_GROUP, &["440 1001 value-1"]).in_group();
    "[sig-storage] Secrets should be consumable from pods in volume with mappings" =>
        entry([of_secret(mapped(None))], READ_MAPPED, &["644 value-2"]);
    "[sig-storage] Secrets should be consumable from pods in volume with mappings and Item Mode set" =>
        entry([of_secret(mapped(Some(0o400)))], READ_MAPPED, &["400 value-2"]);
    "[sig-storage] Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace" =>
        entry([of_secret(json!({}))], READ, &["644 value-1"]);
    "[sig-storage] Secrets should be consumable in multiple volumes in a pod" =>
        entry([of_secret(json!({})), of_secret(json!({}))], "cat /v0/data-1 /v1/data-1", &["value-1", "value-1"]);
    "[sig-storage] Secrets optional updates should be reflected in volume" => optional("secret", "secretName", false);

    "[sig-storage] Downward API volume should provide podname only" => entry([downward(name(None), None)], FIELD, &["644 plain"]);
    "[sig-storage] Downward API volume should set DefaultMode on files" =>
        entry([downward(name(None), Some(0o400))], FIELD, &["400 plain"]);
    "[sig-storage] Downward API volume should set mode on item file" =>
        entry([downward(name(Some(0o400)), None)], FIELD, &["400 plain"]);
    "[sig-storage] Downward API volume should provide container's cpu limit" => amount(downward, "limits.cpu", "2");
    "[sig-storage] Downward API volume should provide container's cpu request" => amount(downward, "requests.cpu", "1");
    "[sig-storage] Downward API volume should provide container's memory limit" => amount(downward, "limits.memory", "67108864");
    "[sig-storage] Downward API volume should provide container's memory request" => amount(downward, "requests.memory", "33554432");
    "[sig-storage] Downward API volume should provide node allocatable (cpu) as default cpu limit if the limit is not set" =>
        of_node(downward, "limits.cpu");
    "[sig-storage] Downward API volume should provide node allocatable (memory) as default memory limit if the limit is not set" =>
        of_node(downward, "limits.memory");
    "[sig-storage] Downward API volume should update labels on modification" => changing(downward, "metadata.labels");
    "[sig-storage] Downward API volume should update annotations on modification" => changing(downward, "metadata.annotations");

    "[sig-storage] Projected combined should project all components that make up the projection API" => entry(
        [projected(json!([
            {"secret": {"name": "secret-1", "items": [{"key": "data-1", "path": "secret"}]}},
            {"configMap": {"name": "map-1", "items": [{"key": "data-1", "path": "map"}]}},
            {"downwardAPI": {"items": [name(None)]}},
        ]), None)],
        "cat /v0/secret /v0/map /v0/field; echo", &["value-1", "value-1", "plain"]);
    "[sig-storage] Projected configMap should be consumable from pods in volume" =>
        entry([projected(map_source(json!({})), None)], READ, &["644 value-1"]);
    "[sig-storage] Projected configMap should be consumable from pods in volume with defaultMode set" =>
        entry([projected(map_source(json!({})), Some(0o400))], READ, &["400 value-1"]);
    "[sig-storage] Projected configMap should be consumable from pods in volume as non-root" =>
        entry([projected(map_source(json!({})), None)], READ, &["644 value-1"]).run_by(1000);
    "[sig-storage] Projected configMap should be consumable from pods in volume with mappings" =>
        entry([projected(map_source(mapped(None)), None)], READ_MAPPED, &["644 value-2"]);
    "[sig-storage] Projected configMap should be consumable from pods in volume with mappings and Item mode set" =>
        entry([projected(map_source(mapped(Some(0o400))), None)], READ_MAPPED, &["400 value-2"]);
    "[sig-storage] Projected configMap should be consumable from pods in volume with mappings as non-root" =>
        entry([projected(map_source(mapped(None)), None)], READ_MAPPED, &["644 value-2"]).run_by(1000);
    "[sig-storage] Projected configMap should be consumable in multiple volumes in the same pod" =>
        entry([projected(map_source(json!({})), None), projected(map_source(json!({})), None)],
            "cat /v0/data-1 /v1/data-1", &["value-1", "value-1"]);
    "[sig-storage] Projected configMap updates should be reflected in volume" => waiting(
        [projected(json!([{"configMap": {"name": "changing-1"}}]), None)],
        "[ $(cat /v0/data-1) = value-1 ]", "[ $(cat /v0/data-1) = value-2 ]");
    "[sig-storage] Projected configMap optional updates should be reflected in volume" => optional("configMap", "name", true);
    "[sig-storage] Projected secret should be consumable from pods in volume" =>
        entry([projected(secret_source(json!({})), None)], READ, &["644 value-1"]);
    "[sig-storage] Projected secret should be consumable from pods in volume with defaultMode set" =>
        entry([projected(secret_source(json!({})), Some(0o400))], READ, &["400 value-1"]);
    "[sig-storage] Projected secret should be consumable from pods in volume as non-root with defaultMode and fsGroup set" =>
        entry([projected(secret_source(json!({})), Some(0o440))], READ_GROUP, &["440 1001 value-1"]).in_group();
    "[sig-storage] Projected secret should be consumable from pods in volume with mappings" =>
        entry([projected(secret_source(mapped(None)), None)], READ_MAPPED, &["644 value-2"]);
    "[sig-storage] Projected secret should be consumable from pods in volume with mappings and Item Mode set" =>
        entry([projected(secret_source(mapped(Some(0o400))), None)], READ_MAPPED, &["400 value-2"]);
    "[sig-storage] Projected secret should be consumable in multiple volumes in a pod" =>
        entry([projected(secret_source(json!({})), None), projected(secret_source(json!({})), None)],
            "cat /v0/data-1 /v1/data-1", &["value-1", "value-1"]);
    "[sig-storage] Projected secret optional updates should be reflected in volume" => optional("secret", "name", true);
    "[sig-storage] Projected downwardAPI should provide podname only" =>
        entry([projected_downward(name(None), None)], FIELD, &["644 plain"]);
    "[sig-storage] Projected downwardAPI should set DefaultMode on files" =>
        entry([projected_downward(name(None), Some(0o400))], FIELD, &["400 plain"]);
    "[sig-storage] Projected downwardAPI should set mode on item file" =>
        entry([projected_downward(name(Some(0o400)), None)], FIELD, &["400 plain"]);
    "[sig-storage] Projected downwardAPI should provide container's cpu limit" => amount(projected_downward, "limits.cpu", "2");
    "[sig-storage] Projected downwardAPI should provide container's cpu request" => amount(projected_downward, "requests.cpu", "1");
    "[sig-storage] Projected downwardAPI should provide container's memory limit" =>
        amount(projected_downward, "limits.memory", "67108864");
    "[sig-storage] Projected downwardAPI should provide container's memory request" =>
        amount(projected_downward, "requests.memory", "33554432");
    "[sig-storage] Projected downwardAPI should provide node allocatable (cpu) as default cpu limit if the limit is not set" =>
        of_node(projected_downward, "limits.cpu");
    "[sig-storage] Projected downwardAPI should provide node allocatable (memory) as default memory limit if the limit is not set" =>
        of_node(projected_downward, "limits.memory");
    "[sig-storage] Projected downwardAPI should update labels on modification" => changing(projected_downward, "metadata.labels");
    "[sig-storage] Projected downwardAPI should update annotations on modification" =>
        changing(projected_downward, "metadata.annotations");

    "[sig-storage] Subpath Atomic writer volumes should support subpaths with secret pod" =>
        entry([of_secret(json!({}))], "cat /v0", &["value-1"]).mounted(json!({"subPath": "data-1"}));
    "[sig-storage] Subpath Atomic writer volumes should support subpaths with configmap pod" =>
        entry([of_map(json!({}))], "cat /v0", &["value-1"]).mounted(json!({"subPath": "data-1"}));
    "[sig-storage] Subpath Atomic writer volumes should support subpaths with configmap pod with mountPath of existing file" =>
        entry([of_map(json!({}))], "cat /etc/resolv.conf", &["value-1"])
            .mounted(json!({"subPath": "data-1", "mountPath": "/etc/resolv.conf"}));
    "[sig-storage] Subpath Atomic writer volumes should support subpaths with downward pod" =>
        entry([downward(name(None), None)], "cat /v0; echo", &["plain"]).mounted(json!({"subPath": "field"}));
    "[sig-storage] Subpath Atomic writer volumes should support subpaths with projected pod" =>
        entry([projected(map_source(json!({})), None)], "cat /v0", &["value-1"]).mounted(json!({"subPath": "data-1"}));
}

const READ: &str = "echo $(stat -L -c %a /v0/data-1) $(cat /v0/data-1)";
const READ_GROUP: &str = "echo $(stat -L -c '%a %g' /v0/data-1) $(cat /v0/data-1)";
const READ_MAPPED: &str = "echo $(stat -L -c %a /v0/path/to/data-2) $(cat /v0/path/to/data-2)";
const FIELD: &str = "echo $(stat -L -c %a /v0/field) $(cat /v0/field)";

fn with(mut source: Value, more: &Value) -> Value {
    super::merge(&mut source, more);
    source
}

fn of_map(more: Value) -> Value {
    json!({"configMap": with(json!({"name": "map-1"}), &more)})
}

fn of_secret(more: Value) -> Value {
    json!({"secret": with(json!({"secretName": "secret-1"}), &more)})
}

fn map_source(more: Value) -> Value {
    json!([{"configMap": with(json!({"name": "map-1"}), &more)}])
}

fn secret_source(more: Value) -> Value {
    json!([{"secret": with(json!({"name": "secret-1"}), &more)}])
}

fn mapped(mode: Option<u32>) -> Value {
    let mut item = json!({"key": "data-2", "path": "path/to/data-2"});
    if let Some(mode) = mode {
        item["mode"] = json!(mode);
    }
    json!({"items": [item]})
}

fn projected(sources: Value, mode: Option<u32>) -> Value {
    json!({"projected": {"sources": sources, "defaultMode": mode.unwrap_or(0o644)}})
}

fn downward(item: Value, mode: Option<u32>) -> Value {
    json!({"downwardAPI": {"items": [item], "defaultMode": mode.unwrap_or(0o644)}})
}

fn projected_downward(item: Value, mode: Option<u32>) -> Value {
    projected(json!([{"downwardAPI": {"items": [item]}}]), mode)
}

fn name(mode: Option<u32>) -> Value {
    let mut item = json!({"path": "field", "fieldRef": {"fieldPath": "metadata.name"}});
    if let Some(mode) = mode {
        item["mode"] = json!(mode);
    }
    item
}

type Downward = fn(Value, Option<u32>) -> Value;

/// Of the first entry's container, which is the only one with limits.
fn resource(resource: &str, container: &str) -> Value {
    json!({"path": "field", "resourceFieldRef": {"containerName": container, "resource": resource}})
}

fn amount(of: Downward, what: &str, value: &str) -> Entry {
    entry([of(resource(what, "c0"), None)], "cat /v0/field; echo", &[value])
}

/// What the node has: whole CPUs, and bytes of what it says in some unit.
fn of_node(of: Downward, what: &str) -> Entry {
    let script = if what == "limits.cpu" {
        "n=$cpu; case $n in *m) n=$(( (${n%m} + 999) / 1000 ));; esac; [ $(cat /v0/field) = $n ] && echo same"
    } else {
        "n=$memory; case $n in *Ki) n=$(( ${n%Ki} * 1024 ));; *Mi) n=$(( ${n%Mi} * 1048576 ));; esac; \
         [ $(cat /v0/field) = $n ] && echo same"
    };
    entry([of(resource(what, "c1"), None)], script, &["same"])
}

/// Another container of the pod writes what this one waits for.
fn shared() -> Entry {
    let limits =
        json!({"limits": {"cpu": "1250m", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}});
    let script = "until [ -e /v0/from-other ]; do sleep 0.1; done; cat /v0/from-other";
    entry([json!({"emptyDir": {}})], script, &["hello"]).with(json!({"resources": limits}))
}

/// The other container of [`shared`].
pub(super) fn writer() -> Value {
    json!({"name": "writer", "image": "busybox:1", "volumeMounts": [{"name": "v0-0", "mountPath": "/shared"}],
        "command": ["sh", "-c", "echo hello > /shared/new && mv /shared/new /shared/from-other"]})
}

/// A volume for the pod alone: on what it is, and what else is asked.
fn empty_dir(medium: &str, script: &str, says: &[&str]) -> Entry {
    let kind = "if [ $(stat -f -c %T /v0) = tmpfs ]; then echo tmpfs; else echo disk; fi";
    entry([json!({"emptyDir": {"medium": medium}})], &format!("{kind}; {script}"), says)
}

fn file(medium: &str, mode: u32) -> Entry {
    let script = format!(
        "echo content > /v0/f && chmod {mode} /v0/f && echo $(stat -c '%a %u' /v0/f) $(id -u) | \
         awk '{{print $1, ($2 == $3)}}'; cat /v0/f"
    );
    let medium_is = if medium == "Memory" { "tmpfs" } else { "disk" };
    empty_dir(medium, &script, &[medium_is, &format!("{mode} 1"), "content"])
}

/// Sees the one, says so, and waits for the other.
fn waiting(sources: impl IntoIterator<Item = Value>, before: &str, after: &str) -> Entry {
    let script = format!(
        "{before} || exit 3; echo ready; until {{ {after}; }} 2>/dev/null; do sleep 0.2; done; echo seen"
    );
    entry(sources, &script, &["ready", "seen"])
}

fn changing(of: Downward, field: &str) -> Entry {
    let item = json!({"path": "field", "fieldRef": {"fieldPath": field}});
    let has = |value: &str| format!("grep -q '^is=\"{value}\"$' /v0/field");
    waiting([of(item, None)], &has("old"), &has("new"))
}

/// One object that goes, one that changes, one that comes.
fn optional(kind: &str, field: &str, is_projected: bool) -> Entry {
    let sources = ["going", "changing", "coming"].map(|what| {
        let name = if kind == "secret" { format!("{what}-secret") } else { format!("{what}-1") };
        let source = json!({kind: {field: name, "optional": true}});
        if is_projected { projected(json!([source]), None) } else { source }
    });
    let before = "[ -e /v0/data-1 ] && [ $(cat /v1/data-1) = value-1 ] && [ ! -e /v2/data-1 ]";
    let after = "[ ! -e /v0/data-1 ] && [ $(cat /v1/data-1) = value-2 ] && [ $(cat /v2/data-1) = value-1 ]";
    waiting(sources, before, after)
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

pub(super) fn secret(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

/// What the volumes are made of.
pub(super) fn objects() -> Vec<Value> {
    let (one, line) = (json!({"data-1": "value-1"}), json!({"data-1": "value-1\n", "data-2": "value-2\n"}));
    let mut first = map("map-1", line.clone());
    first["binaryData"] = json!({"dump.bin": "3v7Kfv4="});
    vec![
        first,
        secret("secret-1", line),
        map("going-1", one.clone()),
        map("changing-1", one.clone()),
        secret("going-secret", one.clone()),
        secret("changing-secret", one),
    ]
}

/// What some containers wait for.
pub(super) fn change(scene: &Scene<'_>) -> Result<()> {
    scene.merge("configmap/changing-1", &json!({"data": {"data-1": "value-2"}}))?;
    scene.merge("secret/changing-secret", &json!({"stringData": {"data-1": "value-2"}}))?;
    scene.k(&["delete", "configmap/going-1", "secret/going-secret"])?;
    scene.create(&map("coming-1", json!({"data-1": "value-1"})))?;
    scene.create(&secret("coming-secret", json!({"data-1": "value-1"})))?;
    let new = json!({"labels": {"is": "new"}, "annotations": {"is": "new"}});
    scene.merge("pod/plain", &json!({"metadata": new})).map(drop)
}
