//! `[sig-api-machinery] Namespaces`.

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, pod};

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-api-machinery] Namespaces should apply a finalizer to a Namespace", finalizer),
    ("[sig-api-machinery] Namespaces should apply an update to a Namespace", update),
    ("[sig-api-machinery] Namespaces should apply changes to a namespace status", status),
    (
        "[sig-api-machinery] Namespaces should ensure that all pods are removed when a namespace is deleted",
        pods,
    ),
    (
        "[sig-api-machinery] Namespaces should ensure that all services are removed when a namespace is deleted",
        services,
    ),
    ("[sig-api-machinery] Namespaces should patch a Namespace", patch),
    ("[sig-api-machinery] OrderedNamespaceDeletion namespace deletion should delete pod first", ordered),
];

/// A namespace that the test may delete itself.
fn with(cluster: &Cluster, name: &str, test: impl FnOnce(&Scene<'_>, &str) -> Result<()>) -> Result<()> {
    cluster.k(&["create", "namespace", name])?;
    let object = format!("namespace/{name}");
    let result = test(&Scene { cluster, namespace: name }, &object);
    let removed = cluster.k(&["delete", &object, "--ignore-not-found", "--timeout=90s"]);
    result.and(removed.map(drop))
}

fn finalizer(cluster: &Cluster) -> Result<()> {
    with(cluster, "conf-finalizer", |scene, namespace| {
        let held = scene.merge(namespace, &json!({"metadata": {"finalizers": ["example.com/test"]}}))?;
        ensure!(held["metadata"]["finalizers"] == json!(["example.com/test"]), "{held:#}");
        let free = scene.merge(namespace, &json!({"metadata": {"finalizers": null}}))?;
        ensure!(free["metadata"]["finalizers"].is_null(), "{free:#}");
        ensure!(free["spec"]["finalizers"] == json!(["kubernetes"]), "{free:#}");
        Ok(())
    })
}

fn update(cluster: &Cluster) -> Result<()> {
    with(cluster, "conf-update", |scene, namespace| {
        let mut object = scene.get(&[namespace])?;
        object["metadata"]["labels"]["updated"] = json!("yes");
        let written = scene.send(&["replace"], &object)?;
        ensure!(written["metadata"]["labels"]["updated"] == "yes", "{written:#}");
        Ok(())
    })
}

fn patch(cluster: &Cluster) -> Result<()> {
    with(cluster, "conf-patch", |scene, namespace| {
        scene.merge(namespace, &json!({"metadata": {"labels": {"testLabel": "testValue"}}}))?;
        let object = scene.get(&[namespace])?;
        ensure!(object["metadata"]["labels"]["testLabel"] == "testValue", "{object:#}");
        Ok(())
    })
}

fn status(cluster: &Cluster) -> Result<()> {
    with(cluster, "conf-ns-status", |scene, namespace| {
        let present = scene.get(&[namespace, "--subresource=status"])?;
        ensure!(present["status"]["phase"] == "Active", "{present:#}");
        super::sets::status_subresource(scene, namespace)
    })
}

fn pods(cluster: &Cluster) -> Result<()> {
    with(cluster, "conf-ns-pods", |scene, namespace| {
        scene.create(&pod("one", "x"))?;
        cluster.ready(scene.namespace, "one")?;
        scene.k(&["delete", namespace, "--timeout=90s"])?;
        scene.k(&["create", "namespace", scene.namespace])?;
        ensure!(scene.list(&["pods"])?.is_empty());
        Ok(())
    })
}

fn services(cluster: &Cluster) -> Result<()> {
    with(cluster, "conf-ns-services", |scene, namespace| {
        scene.k(&["create", "service", "clusterip", "web", "--tcp=80:80"])?;
        scene.k(&["delete", namespace, "--timeout=90s"])?;
        scene.k(&["create", "namespace", scene.namespace])?;
        ensure!(scene.list(&["services"])?.is_empty());
        Ok(())
    })
}

fn ordered(cluster: &Cluster) -> Result<()> {
    with(cluster, "conf-ns-ordered", |scene, namespace| {
        let mut held = pod("held", "x");
        held["metadata"]["finalizers"] = json!(["example.com/hold"]);
        scene.create(&held)?;
        cluster.ready(scene.namespace, "held")?;
        scene.k(&["create", "configmap", "kept", "--from-literal=key=value"])?;
        scene.k(&["delete", namespace, "--wait=false"])?;
        let condition = |object: &Value, type_: &str| {
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.into_iter().find(|one| one["type"] == type_)
        };
        let waiting = scene.until(namespace, "the conditions", |object| {
            condition(object, "NamespaceFinalizersRemaining").is_some_and(|one| one["status"] == "True")
        })?;
        ensure!(waiting["status"]["phase"] == "Terminating", "{waiting:#}");
        ensure!(condition(&waiting, "NamespaceDeletionContentFailure").is_some(), "{waiting:#}");
        poll::until("the pod to be told to go", PATIENCE, || {
            let pod = scene.get(&["pod/held"])?;
            let told = !pod["metadata"]["deletionTimestamp"].is_null();
            Ok(if told { Ok(()) } else { Err(pod["status"].to_string()) })
        })?;
        scene.get(&["configmap/kept"])?;
        scene.merge("pod/held", &json!({"metadata": {"finalizers": null}}))?;
        scene.until_gone(namespace)
    })
}
