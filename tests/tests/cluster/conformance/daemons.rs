//! `[sig-apps] Daemon set` and `[sig-apps] ControllerRevision`, as far as one node shows them.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, owners, scene, template};

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
        // Its node, which knows better, may be faster than the controller: until that sees it.
        poll::until("the failed pod to go", PATIENCE, || {
            let present = scene.k(&["get", "pod", name, "--ignore-not-found", "-o", "name"])?;
            if present.is_empty() {
                return Ok(Ok(()));
            }
            let arguments = ["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &patch];
            let patched = scene.k(&arguments);
            Ok(Err(patched.unwrap_or_else(|error| error.to_string())))
        })?;
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
        scene.k(&["rollout", "status", "ds/web", "--timeout=180s"])?;
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
        scene.k(&["rollout", "status", "ds/web", "--timeout=180s"])?;
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
        // One that is nobody's: no controller has a say in it.
        let second = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 7,
            "metadata": {"name": "second", "labels": {"app": "none"}}, "data": initial["data"]});
        scene.create(&second)?;
        scene.revisions(2)?;
        let second = "controllerrevision/second";
        let refused = scene.merge(second, &json!({"data": {"spec": {"more": 1}}}));
        let refused = refused.err().context("the data of a revision was changed")?.to_string();
        ensure!(refused.contains("data: Invalid value") && refused.contains("immutable"), "{refused}");
        let mut updated = scene.get(&[second])?;
        updated["metadata"]["labels"]["updated"] = json!("yes");
        updated["revision"] = json!(8);
        let updated = scene.send(&["replace"], &updated)?;
        ensure!(updated["revision"] == 8, "{updated:#}");
        let found = cluster.get(&["controllerrevisions", "--all-namespaces", "-l", "updated=yes"])?;
        ensure!(found["items"].as_array().map(Vec::len) == Some(1), "{found:#}");
        scene.k(&["delete", "controllerrevisions", "-l", "updated=yes"])?;
        scene.revisions(1)?;
        scene.k(&["set", "env", "ds/web", "VERSION=2"])?;
        let both = scene.revisions(2)?;
        ensure!(both[0]["metadata"]["name"] == name.as_str() && both[1]["revision"] == 2, "{both:#?}");
        // Without the one that its pods had, the next is made all the same.
        scene.k(&["rollout", "status", "ds/web", "--timeout=180s"])?;
        scene.k(&["delete", &object])?;
        scene.k(&["set", "env", "ds/web", "VERSION=3"])?;
        let both = scene.until_list("controllerrevisions", "the third", |all| {
            all.iter().any(|one| one["revision"] == 3)
        })?;
        ensure!(both.len() == 2, "{both:#?}");
        Ok(())
    })
}
