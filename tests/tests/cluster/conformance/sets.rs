//! `[sig-apps] ReplicaSet` and `[sig-apps] ReplicationController`: the same demands on two kinds.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, owners, pod, scene, template};
use crate::application::http_try;

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-apps] ReplicaSet Replace and Patch tests", replace_and_patch),
    ("[sig-apps] ReplicaSet Replicaset should have a working scale subresource", |cluster| {
        scale(cluster, &SET)
    }),
    (
        "[sig-apps] ReplicaSet should adopt matching pods on creation and release no longer matching pods",
        |cluster| {
            adopt(cluster, &SET)?;
            release(cluster, &SET)
        },
    ),
    ("[sig-apps] ReplicaSet should list and delete a collection of ReplicaSets", collection),
    ("[sig-apps] ReplicaSet should serve a basic image on each replica with a public image", |cluster| {
        serve(cluster, &SET)
    }),
    ("[sig-apps] ReplicaSet should validate Replicaset Status endpoints", set_status),
    ("[sig-apps] ReplicationController should adopt matching pods on creation", |cluster| {
        adopt(cluster, &OLD)
    }),
    ("[sig-apps] ReplicationController should get and update a ReplicationController scale", |cluster| {
        scale(cluster, &OLD)
    }),
    ("[sig-apps] ReplicationController should release no longer matching pods", |cluster| {
        release(cluster, &OLD)
    }),
    (
        "[sig-apps] ReplicationController should serve a basic image on each replica with a public image",
        |cluster| serve(cluster, &OLD),
    ),
    (
        "[sig-apps] ReplicationController should surface a failure condition on a common issue like exceeded quota",
        quota,
    ),
    ("[sig-apps] ReplicationController should test the lifecycle of a ReplicationController", lifecycle),
];

/// A kind that keeps pods.
struct Kind {
    short: &'static str,
    kind: &'static str,
    api_version: &'static str,
    plural: &'static str,
}

const SET: Kind = Kind { short: "rs", kind: "ReplicaSet", api_version: "apps/v1", plural: "replicasets" };
const OLD: Kind =
    Kind { short: "rc", kind: "ReplicationController", api_version: "v1", plural: "replicationcontrollers" };

impl Kind {
    fn object(&self, name: &str, replicas: u32) -> Value {
        let labels = json!({"app": name});
        let selector = if self.short == "rs" { json!({"matchLabels": labels}) } else { labels.clone() };
        json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": name, "labels": labels},
            "spec": {"replicas": replicas, "selector": selector, "template": template(name)}})
    }

    fn named(&self, name: &str) -> String {
        format!("{}/{name}", self.short)
    }

    /// Creates one and waits until its pods are ready.
    fn run(&self, scene: &Scene<'_>, name: &str, replicas: u32) -> Result<Value> {
        scene.create(&self.object(name, replicas))?;
        scene.until(&self.named(name), "its pods", |one| one["status"]["readyReplicas"] == replicas)
    }
}

fn scale(cluster: &Cluster, kind: &Kind) -> Result<()> {
    scene(cluster, &format!("{}-scale", kind.short), |scene| {
        kind.run(scene, "web", 1)?;
        scale_subresource(scene, &kind.named("web"), kind.api_version, kind.plural)
    })
}

/// Reads, replaces and patches the scale of an object that has one replica.
pub(super) fn scale_subresource(
    scene: &Scene<'_>,
    object: &str,
    api_version: &str,
    plural: &str,
) -> Result<()> {
    let mut scale = scene.get(&[object, "--subresource=scale"])?;
    ensure!(scale["kind"] == "Scale" && scale["spec"]["replicas"] == 1, "{scale:#}");
    scale["spec"]["replicas"] = json!(2);
    let root = if api_version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{api_version}") };
    let path = format!("{root}/namespaces/{}/{plural}/web/scale", scene.namespace);
    let file = scene.cluster.scratch().join("scale.json");
    std::fs::write(&file, scale.to_string())?;
    let answer = scene.k(&["replace", "--raw", &path, "-f", &file.display().to_string()])?;
    ensure!(serde_json::from_str::<Value>(&answer)?["spec"]["replicas"] == 2, "{answer}");
    scene.until(object, "two replicas", |one| {
        one["spec"]["replicas"] == 2 && one["status"]["replicas"] == 2
    })?;
    let patch = r#"{"spec":{"replicas":4}}"#;
    scene.k(&["patch", object, "--subresource=scale", "--type=merge", "-p", patch])?;
    scene.until(object, "four replicas", |one| one["status"]["replicas"] == 4).map(drop)
}

/// Reads, patches and replaces the status of an object: what was written is there to be read.
pub(super) fn status_subresource(scene: &Scene<'_>, object: &str) -> Result<()> {
    let mut present = scene.get(&[object, "--subresource=status"])?;
    let condition = |type_: &str| {
        json!({"type": type_, "status": "True", "reason": "E2E", "message": "set by a test",
            "lastTransitionTime": null})
    };
    let conditions = present["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let has = |object: &Value, type_: &str| {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|one| one["type"] == type_)
    };
    // A write of the controller in between is a conflict, as for anybody.
    poll::until("the status to be replaced", PATIENCE, || {
        let mut all = conditions.clone();
        all.push(condition("StatusUpdate"));
        present["status"]["conditions"] = json!(all);
        match scene.send(&["replace", "--subresource=status"], &present) {
            Ok(written) => {
                ensure!(has(&written, "StatusUpdate"), "{written:#}");
                Ok(Ok(()))
            }
            Err(error) => {
                present = scene.get(&[object])?;
                Ok(Err(error.to_string()))
            }
        }
    })?;
    let mut all = conditions;
    all.push(condition("StatusPatched"));
    let patch = json!({"status": {"conditions": all}}).to_string();
    let arguments = ["patch", object, "--subresource=status", "--type=merge", "-o", "json", "-p", &patch];
    let patched: Value = serde_json::from_str(&scene.k(&arguments)?)?;
    ensure!(has(&patched, "StatusPatched"), "{patched:#}");
    Ok(())
}

fn replace_and_patch(cluster: &Cluster) -> Result<()> {
    scene(cluster, "rs-patch", |scene| {
        SET.run(scene, "web", 1)?;
        scene.k(&["scale", "rs/web", "--replicas=2"])?;
        scene.until("rs/web", "two pods", |one| one["status"]["readyReplicas"] == 2)?;
        let patch = json!({"metadata": {"labels": {"patched": "yes"}}, "spec": {"replicas": 3,
            "template": {"spec": {"terminationGracePeriodSeconds": 1}}}});
        let patched = scene.merge("rs/web", &patch)?;
        ensure!(patched["metadata"]["labels"]["patched"] == "yes", "{patched:#}");
        scene.until("rs/web", "three pods", |one| one["status"]["readyReplicas"] == 3).map(drop)
    })
}

fn adopt(cluster: &Cluster, kind: &Kind) -> Result<()> {
    scene(cluster, &format!("{}-adopt", kind.short), |scene| {
        scene.create(&pod("orphan", "web"))?;
        let set = scene.create(&kind.object("web", 1))?;
        let uid = set["metadata"]["uid"].as_str().context("no uid")?.to_owned();
        poll::until("the pod to be adopted or replaced", PATIENCE, || {
            let pods = scene.list(&["pods"])?;
            let orphan = pods.iter().find(|pod| pod["metadata"]["name"] == "orphan");
            let done = orphan.is_none_or(|orphan| owners(orphan) == [uid.as_str()]);
            Ok(if done { Ok(()) } else { Err(format!("{orphan:?}")) })
        })
    })
}

fn release(cluster: &Cluster, kind: &Kind) -> Result<()> {
    scene(cluster, &format!("{}-release", kind.short), |scene| {
        let set = kind.run(scene, "web", 1)?;
        let uid = set["metadata"]["uid"].as_str().context("no uid")?.to_owned();
        let name = scene.list(&["pods"])?[0]["metadata"]["name"].as_str().context("no name")?.to_owned();
        scene.k(&["label", "--overwrite", "pod", &name, "app=other"])?;
        scene.until(&format!("pod/{name}"), "the release", |pod| owners(pod).is_empty())?;
        scene.until_list("pods", "another pod", |pods| {
            pods.iter().any(|pod| owners(pod) == [uid.as_str()] && pod["metadata"]["name"] != name.as_str())
        })?;
        Ok(())
    })
}

fn collection(cluster: &Cluster) -> Result<()> {
    scene(cluster, "rs-list", |scene| {
        let mut set = SET.object("web", 3);
        set["metadata"]["labels"]["e2e"] = json!("list");
        scene.create(&set)?;
        let found = cluster.get(&["replicasets", "--all-namespaces", "-l", "e2e=list"])?;
        ensure!(found["items"].as_array().map(Vec::len) == Some(1), "{found:#}");
        scene.k(&["delete", "replicasets", "-l", "e2e=list"])?;
        ensure!(scene.list(&["replicasets", "-l", "e2e=list"])?.is_empty());
        Ok(())
    })
}

fn serve(cluster: &Cluster, kind: &Kind) -> Result<()> {
    scene(cluster, &format!("{}-serve", kind.short), |scene| {
        let mut set = kind.object("web", 2);
        set["spec"]["template"]["spec"]["containers"] = json!([{"name": "c", "image": "nginx:1"}]);
        scene.create(&set)?;
        scene.until(&kind.named("web"), "its pods", |one| one["status"]["readyReplicas"] == 2)?;
        for pod in scene.list(&["pods"])? {
            let address = format!("{}:80", pod["status"]["podIP"].as_str().context("no address")?);
            // Running is not yet listening: there is no probe.
            poll::text(
                &format!("{address} to answer"),
                PATIENCE,
                || http_try(&address, "/version"),
                |text| text == "1\n",
            )?;
        }
        Ok(())
    })
}

fn set_status(cluster: &Cluster) -> Result<()> {
    scene(cluster, "rs-status", |scene| {
        SET.run(scene, "web", 1)?;
        status_subresource(scene, "rs/web")
    })
}

fn quota(cluster: &Cluster) -> Result<()> {
    scene(cluster, "rc-quota", |scene| {
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "two"},
            "spec": {"hard": {"pods": "2"}}});
        scene.create(&quota)?;
        scene.until("resourcequota/two", "the quota's status", |one| one["status"]["hard"]["pods"] == "2")?;
        scene.create(&OLD.object("web", 3))?;
        let failure = |one: &Value| {
            let conditions = one["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.into_iter().find(|one| one["type"] == "ReplicaFailure")
        };
        let failed = scene.until("rc/web", "the failure", |one| failure(one).is_some())?;
        let condition = failure(&failed).context("it was there")?;
        let text = condition["message"].as_str().unwrap_or_default();
        ensure!(
            condition["reason"] == "FailedCreate" && text.contains("exceeded quota: two"),
            "{condition:#}"
        );
        scene.k(&["scale", "rc/web", "--replicas=2"])?;
        scene.until("rc/web", "the end of the failure", |one| failure(one).is_none()).map(drop)
    })
}

fn lifecycle(cluster: &Cluster) -> Result<()> {
    scene(cluster, "rc-life", |scene| {
        OLD.run(scene, "web", 1)?;
        let patched = scene.merge("rc/web", &json!({"metadata": {"labels": {"patched": "yes"}}}))?;
        ensure!(patched["metadata"]["labels"]["patched"] == "yes", "{patched:#}");
        let status = scene.get(&["rc/web", "--subresource=status"])?;
        ensure!(status["status"]["readyReplicas"] == 1, "{status:#}");
        scene.k(&["scale", "rc/web", "--replicas=2"])?;
        scene.until("rc/web", "two pods", |one| one["status"]["availableReplicas"] == 2)?;
        let found = cluster.get(&["rc", "--all-namespaces", "-l", "patched=yes"])?;
        ensure!(found["items"].as_array().map(Vec::len) == Some(1), "{found:#}");
        let mut replaced = scene.get(&["rc/web"])?;
        replaced["spec"]["replicas"] = json!(1);
        // The status changes meanwhile: without its version the object is replaced in any case.
        if let Some(meta) = replaced["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
        }
        scene.send(&["replace"], &replaced)?;
        scene.until("rc/web", "one pod", |one| one["status"]["replicas"] == 1)?;
        scene.k(&["delete", "rc", "-l", "patched=yes"])?;
        scene.until_gone("rc/web")
    })
}
