//! `[sig-apps] Deployment`.

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{Scene, deployment, owners, scene, template};

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-apps] Deployment Deployment should have a working scale subresource", scale),
    ("[sig-apps] Deployment RecreateDeployment should delete old pods and create new ones", recreate),
    ("[sig-apps] Deployment RollingUpdateDeployment should delete old pods and create new ones", rolling),
    ("[sig-apps] Deployment deployment should delete old replica sets", history),
    ("[sig-apps] Deployment deployment should support proportional scaling", proportional),
    ("[sig-apps] Deployment deployment should support rollover", rollover),
    ("[sig-apps] Deployment should run the lifecycle of a Deployment", lifecycle),
    ("[sig-apps] Deployment should validate Deployment Status endpoints", status),
];

fn scale(cluster: &Cluster) -> Result<()> {
    scene(cluster, "deploy-scale", |scene| {
        scene.create(&deployment("web", 1, json!({})))?;
        scene.rolled_out("deployment/web")?;
        super::sets::scale_subresource(scene, "deployment/web", "apps/v1", "deployments")
    })
}

/// The ReplicaSets from old to new.
fn sets(scene: &Scene<'_>) -> Result<Vec<Value>> {
    let mut sets = scene.list(&["replicasets"])?;
    sets.sort_by_key(|set| {
        let revision = set["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str();
        revision.and_then(|revision| revision.parse::<i64>().ok())
    });
    Ok(sets)
}

fn recreate(cluster: &Cluster) -> Result<()> {
    scene(cluster, "recreate", |scene| {
        scene.create(&deployment("web", 2, json!({"strategy": {"type": "Recreate"}})))?;
        scene.rolled_out("deployment/web")?;
        scene.k(&["set", "env", "deployment/web", "VERSION=2"])?;
        scene.until_list("pods", "only new pods", |pods| {
            let is_new = |pod: &&Value| pod["spec"]["containers"][0]["env"][0]["value"] == "2";
            let new = pods.iter().filter(is_new).count();
            // Seen in one list: a new pod beside an old one is wrong at any time.
            assert!(new == 0 || new == pods.len(), "old and new pods run side by side");
            new == 2
        })?;
        scene.rolled_out("deployment/web")
    })
}

fn rolling(cluster: &Cluster) -> Result<()> {
    scene(cluster, "rolling", |scene| {
        let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "earlier", "labels": {"app": "web"}, "annotations": {"deployment.kubernetes.io/revision": "41"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template("web")}});
        let set = scene.create(&set)?;
        scene.until("rs/earlier", "the pod of the ReplicaSet", |set| set["status"]["readyReplicas"] == 1)?;
        let mut wanted = deployment("web", 1, json!({}));
        wanted["spec"]["template"]["spec"]["containers"][0]["env"] =
            json!([{"name": "VERSION", "value": "2"}]);
        let made = scene.create(&wanted)?;
        scene.rolled_out("deployment/web")?;
        let sets = sets(scene)?;
        ensure!(sets.len() == 2 && sets[0]["metadata"]["uid"] == set["metadata"]["uid"], "{sets:#?}");
        for set in &sets {
            ensure!(owners(set) == [made["metadata"]["uid"].as_str().unwrap_or_default()], "{set:#}");
        }
        ensure!(sets[0]["spec"]["replicas"] == 0 && sets[1]["spec"]["replicas"] == 1, "{sets:#?}");
        let revision = &sets[1]["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
        ensure!(revision == "42", "the new revision is {revision}");
        Ok(())
    })
}

fn history(cluster: &Cluster) -> Result<()> {
    scene(cluster, "history", |scene| {
        scene.create(&deployment("web", 1, json!({"revisionHistoryLimit": 0})))?;
        scene.rolled_out("deployment/web")?;
        scene.k(&["set", "env", "deployment/web", "VERSION=2"])?;
        scene.rolled_out("deployment/web")?;
        scene.until_list("replicasets", "one ReplicaSet", |sets| sets.len() == 1).map(drop)
    })
}

/// Waits until the ReplicaSets ask for so many replicas, from old to new.
fn sized(scene: &Scene<'_>, sizes: &[i64]) -> Result<Vec<Value>> {
    decapod_tests::poll::until(&format!("ReplicaSets of {sizes:?}"), super::PATIENCE, || {
        let sets = sets(scene)?;
        let present: Vec<_> = sets.iter().filter_map(|set| set["spec"]["replicas"].as_i64()).collect();
        Ok(if present == sizes { Ok(sets) } else { Err(format!("{present:?}")) })
    })
}

fn proportional(cluster: &Cluster) -> Result<()> {
    scene(cluster, "proportional", |scene| {
        let strategy = json!({"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}});
        scene.create(&deployment("web", 10, json!({"strategy": strategy})))?;
        scene.rolled_out("deployment/web")?;
        // An image that does not exist: the rollout gets stuck half-way.
        scene.k(&["set", "image", "deployment/web", "c=webserver:404"])?;
        let sets = sized(scene, &[8, 5])?;
        scene
            .until("deployment/web", "eight available pods", |one| one["status"]["availableReplicas"] == 8)?;
        ensure!(sets[1]["status"]["availableReplicas"].as_i64().unwrap_or(0) == 0, "{:#}", sets[1]);
        scene.k(&["scale", "deployment/web", "--replicas=30"])?;
        sized(scene, &[20, 13])?;
        scene.k(&["rollout", "undo", "deployment/web"])?;
        scene.rolled_out("deployment/web")?;
        sized(scene, &[0, 30]).map(drop)
    })
}

fn rollover(cluster: &Cluster) -> Result<()> {
    scene(cluster, "rollover", |scene| {
        let strategy = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        scene.create(&deployment("web", 2, json!({"strategy": strategy, "minReadySeconds": 1})))?;
        scene.rolled_out("deployment/web")?;
        scene.k(&["set", "image", "deployment/web", "c=missing:404"])?;
        sized(scene, &[2, 1])?;
        scene.k(&["set", "image", "deployment/web", "c=busybox:1"])?;
        scene.k(&["set", "env", "deployment/web", "VERSION=3"])?;
        scene.rolled_out("deployment/web")?;
        let sets = sets(scene)?;
        let (new, old) = sets.split_last().ok_or_else(|| anyhow::anyhow!("no ReplicaSet"))?;
        ensure!(
            new["spec"]["replicas"] == 2 && old.iter().all(|set| set["spec"]["replicas"] == 0),
            "{sets:#?}"
        );
        Ok(())
    })
}

fn lifecycle(cluster: &Cluster) -> Result<()> {
    scene(cluster, "deploy-life", |scene| {
        let mut wanted = deployment("web", 1, json!({}));
        wanted["metadata"]["labels"] = json!({"test": "life"});
        scene.create(&wanted)?;
        scene.rolled_out("deployment/web")?;
        let patch = json!({"metadata": {"labels": {"patched": "yes"}}, "spec": {"replicas": 2}});
        scene.merge("deployment/web", &patch)?;
        scene.until("deployment/web", "two replicas", |one| one["status"]["readyReplicas"] == 2)?;
        let found = scene.list(&["deployments", "-l", "patched=yes"])?;
        ensure!(found.len() == 1, "{found:#?}");
        scene.k(&["scale", "deployment/web", "--replicas=1"])?;
        scene.until("deployment/web", "one replica", |one| one["status"]["replicas"] == 1)?;
        let status = scene.get(&["deployment/web", "--subresource=status"])?;
        ensure!(status["status"]["observedGeneration"] == status["metadata"]["generation"], "{status:#}");
        scene.k(&["delete", "deployments", "-l", "test=life", "--wait=false"])?;
        scene.until_gone("deployment/web")?;
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

fn status(cluster: &Cluster) -> Result<()> {
    scene(cluster, "deploy-status", |scene| {
        scene.create(&deployment("web", 1, json!({})))?;
        scene.rolled_out("deployment/web")?;
        super::sets::status_subresource(scene, "deployment/web")
    })
}
