//! `[sig-apps] Daemon set` and `[sig-apps] ControllerRevision`, as far as one node shows them.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{Scene, owners, scene, template};

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-apps] Daemon set should list and delete a collection of DaemonSets", collection),
    ("[sig-apps] Daemon set should retry creating failed daemon pods", failed),
    ("[sig-apps] Daemon set should rollback without unnecessary restarts", rollback),
    ("[sig-apps] Daemon set should run and stop complex daemon", complex),
    ("[sig-apps] Daemon set should run and stop simple daemon", simple),
    (
        "[sig-apps] Daemon set should update pod when spec was updated and update strategy is RollingUpdate",
        rolling,
    ),
    ("[sig-apps] Daemon set should verify changes to a daemon set status", status),
    ("[sig-apps] ControllerRevision should manage the lifecycle of a ControllerRevision", revisions),
];

/// Named `web`.
fn set(more: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "web", "labels": {"daemon": "web"}},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template("web")}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

impl Scene<'_> {
    /// Waits until so many nodes have their daemon, ready and of the present template.
    fn spread(&self, nodes: u32) -> Result<Vec<Value>> {
        self.until("ds/web", &format!("daemons on {nodes} nodes"), |one| {
            let status = &one["status"];
            let number = |field: &str| status[field].as_u64().unwrap_or(0);
            let all =
                ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled"];
            status["observedGeneration"] == one["metadata"]["generation"]
                && all.iter().all(|field| number(field) == u64::from(nodes))
                && number("numberMisscheduled") == 0
        })?;
        self.until_list("pods", &format!("{nodes} pods"), |pods| pods.len() == nodes as usize)
    }

    /// Waits until there are so many revisions; from old to new.
    fn revisions(&self, count: usize) -> Result<Vec<Value>> {
        let what = format!("{count} revisions");
        let mut found = self.until_list("controllerrevisions", &what, |all| all.len() == count)?;
        found.sort_by_key(|one| one["revision"].as_i64());
        Ok(found)
    }
}

fn collection(cluster: &Cluster) -> Result<()> {
    scene(cluster, "ds-list", |scene| {
        scene.create(&set(json!({})))?;
        scene.spread(1)?;
        let found = cluster.get(&["daemonsets", "--all-namespaces", "-l", "daemon=web"])?;
        ensure!(found["items"].as_array().map(Vec::len) == Some(1), "{found:#}");
        scene.k(&["delete", "daemonsets", "-l", "daemon=web"])?;
        ensure!(scene.list(&["daemonsets"])?.is_empty());
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

fn failed(cluster: &Cluster) -> Result<()> {
    scene(cluster, "ds-failed", |scene| {
        scene.create(&set(json!({})))?;
        let pods = scene.spread(1)?;
        let name = pods[0]["metadata"]["name"].as_str().context("no name")?;
        let patch = json!({"status": {"phase": "Failed"}}).to_string();
        scene.k(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &patch])?;
        scene.until_gone(&format!("pod/{name}"))?;
        scene.spread(1).map(drop)
    })
}

fn rollback(cluster: &Cluster) -> Result<()> {
    scene(cluster, "ds-rollback", |scene| {
        scene.create(&set(json!({})))?;
        scene.spread(1)?;
        scene.k(&["set", "image", "ds/web", "c=missing:404"])?;
        scene.until_list("pods", "the pod that does not start", |pods| {
            pods.iter().any(|pod| pod["spec"]["containers"][0]["image"] == "missing:404")
        })?;
        scene.k(&["rollout", "undo", "ds/web"])?;
        scene.k(&["rollout", "status", "ds/web", "--timeout=90s"])?;
        let before = scene.spread(1)?;
        // A roll-back before anything was rolled out restarts nothing.
        scene.merge(
            "ds/web",
            &json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}),
        )?;
        scene.k(&["set", "image", "ds/web", "c=missing:405"])?;
        scene.revisions(3)?;
        scene.k(&["rollout", "undo", "ds/web"])?;
        scene.merge("ds/web", &json!({"spec": {"updateStrategy": {"type": "RollingUpdate"}}}))?;
        let after = scene.spread(1)?;
        ensure!(after[0]["metadata"]["uid"] == before[0]["metadata"]["uid"], "it was restarted: {after:#?}");
        Ok(())
    })
}

fn complex(cluster: &Cluster) -> Result<()> {
    scene(cluster, "ds-complex", |scene| {
        let node = scene.list(&["nodes"])?;
        let node = node[0]["metadata"]["name"].as_str().context("no node")?.to_owned();
        let label = |value: &str| scene.k(&["label", "--overwrite", "node", &node, value]).map(drop);
        let mut wanted = set(json!({}));
        wanted["spec"]["template"]["spec"]["nodeSelector"] = json!({"daemon-color": "blue"});
        scene.create(&wanted)?;
        scene.spread(0)?;
        label("daemon-color=blue")?;
        scene.spread(1)?;
        label("daemon-color=green")?;
        scene.spread(0)?;
        let selector = json!({"nodeSelector": {"daemon-color": "green"}});
        scene.merge("ds/web", &json!({"spec": {"template": {"spec": selector}}}))?;
        scene.spread(1)?;
        label("daemon-color-")
    })
}

fn simple(cluster: &Cluster) -> Result<()> {
    scene(cluster, "ds-simple", |scene| {
        scene.create(&set(json!({})))?;
        let pods = scene.spread(1)?;
        let name = pods[0]["metadata"]["name"].as_str().context("no name")?;
        scene.k(&["delete", "pod", name])?;
        let revived = scene.spread(1)?;
        ensure!(revived[0]["metadata"]["uid"] != pods[0]["metadata"]["uid"]);
        Ok(())
    })
}

fn rolling(cluster: &Cluster) -> Result<()> {
    scene(cluster, "ds-rolling", |scene| {
        scene.create(&set(json!({"updateStrategy": {"type": "RollingUpdate"}})))?;
        let hash = |pod: &Value| pod["metadata"]["labels"]["controller-revision-hash"].clone();
        let before = scene.spread(1)?;
        let first = scene.revisions(1)?;
        ensure!(hash(&before[0]) == hash(&first[0]), "{before:#?}");
        scene.k(&["set", "env", "ds/web", "VERSION=2"])?;
        scene.k(&["rollout", "status", "ds/web", "--timeout=90s"])?;
        let after = scene.spread(1)?;
        let both = scene.revisions(2)?;
        ensure!(hash(&after[0]) == hash(&both[1]) && both[1]["revision"] == 2, "{after:#?}");
        ensure!(hash(&both[0]) == hash(&first[0]), "{both:#?}");
        Ok(())
    })
}

fn status(cluster: &Cluster) -> Result<()> {
    scene(cluster, "ds-status", |scene| {
        scene.create(&set(json!({})))?;
        scene.spread(1)?;
        super::sets::status_subresource(scene, "ds/web")
    })
}

fn revisions(cluster: &Cluster) -> Result<()> {
    scene(cluster, "revisions", |scene| {
        let made = scene.create(&set(json!({})))?;
        scene.spread(1)?;
        let initial = scene.revisions(1)?.remove(0);
        ensure!(owners(&initial) == [made["metadata"]["uid"].as_str().unwrap_or_default()], "{initial:#}");
        let name = initial["metadata"]["name"].as_str().context("no name")?.to_owned();
        let object = format!("controllerrevision/{name}");
        let patched = scene.merge(&object, &json!({"metadata": {"labels": {"patched": "yes"}}}))?;
        ensure!(patched["metadata"]["labels"]["patched"] == "yes", "{patched:#}");
        let mut second = initial.clone();
        let metadata = &mut second["metadata"];
        metadata["name"] = json!("web-second");
        metadata["labels"]["controller-revision-hash"] = json!("second");
        metadata["resourceVersion"] = Value::Null;
        second["revision"] = json!(2);
        scene.create(&second)?;
        scene.revisions(2)?;
        let refused = scene.merge("controllerrevision/web-second", &json!({"data": {"spec": {}}}));
        let refused = refused.err().context("the data of a revision was changed")?.to_string();
        ensure!(refused.contains("data: Invalid value") && refused.contains("immutable"), "{refused}");
        scene.k(&["delete", &object])?;
        scene.revisions(1)?;
        let mut updated = scene.get(&["controllerrevision/web-second"])?;
        updated["metadata"]["labels"]["updated"] = json!("yes");
        updated["metadata"]["resourceVersion"] = Value::Null;
        scene.send(&["replace"], &updated)?;
        scene.k(&["set", "env", "ds/web", "VERSION=2"])?;
        scene.revisions(2)?;
        scene.k(&["delete", "controllerrevisions", "-l", "updated=yes"])?;
        let last = scene.revisions(1)?;
        ensure!(last[0]["revision"] == 3, "{last:#?}");
        Ok(())
    })
}
