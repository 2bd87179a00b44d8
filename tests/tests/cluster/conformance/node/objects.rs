//! The objects that a node works from, as clients change them: pods, their templates, classes, leases.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::{condition, phase, pod, sh, stage};
use crate::conformance::Scene;
use crate::kube_client::with_client;

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-node] ConfigMap should fail to create ConfigMap with empty key", |c| {
        refused(c, "v1", "ConfigMap", json!({"data": {"": "value"}}), "data[]: Invalid value: \"\"")
    }),
    ("[sig-node] ConfigMap should update ConfigMap successfully", |c| {
        changed(c, "v1", "ConfigMap", json!({"data": {"a": "1"}}), json!({"data": {"a": "2"}}))
    }),
    ("[sig-node] ConfigMap should run through a ConfigMap lifecycle", config_map),
    ("[sig-node] Secrets should fail to create secret due to empty secret key", |c| {
        refused(c, "v1", "Secret", json!({"data": {"": "dmFsdWU="}}), "data[]: Invalid value: \"\"")
    }),
    ("[sig-node] Secrets should patch a secret", |c| {
        changed(c, "v1", "Secret", json!({"data": {"a": "MQ=="}}), json!({"data": {"a": "Mg=="}}))
    }),
    ("[sig-node] Lease lease API should be available", |c| {
        let spec = |holder: &str| json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 30}});
        changed(c, "coordination.k8s.io/v1", "Lease", spec("one"), spec("other"))
    }),
    ("[sig-node] PodTemplates should run the lifecycle of PodTemplates", |c| {
        changed(
            c,
            "v1",
            "PodTemplate",
            template("busybox:1"),
            json!({"metadata": {"labels": {"more": "yes"}}}),
        )
    }),
    ("[sig-node] PodTemplates should replace a pod template", replaced_template),
    ("[sig-node] PodTemplates should delete a collection of pod templates", templates),
    ("[sig-node] Node Lifecycle should run through the lifecycle of a node", node),
    ("[sig-node] Pods should be submitted and removed", submitted),
    ("[sig-node] Pods should be updated", |c| {
        let scene = stage(c)?;
        let pod = scene.merge("pod/kept", &json!({"metadata": {"labels": {"time": "later"}}}))?;
        ensure!(pod["metadata"]["labels"]["time"] == "later");
        let found = scene.list(&["pods", "-l", "time=later"])?;
        ensure!(found.len() == 1, "{found:?}");
        Ok(())
    }),
    ("[sig-node] Pods should patch a pod status", |c| {
        let scene = stage(c)?;
        ready(scene.cluster, "kept")?;
        let patch = json!({"status": {"message": "patched by a test", "reason": "Test"}});
        // As it was written: the node writes what it sees, a moment later.
        let pod = patch_status(&scene, "kept", &patch)?;
        ensure!(pod["status"]["reason"] == "Test" && phase(&pod) == "Running", "{:#}", pod["status"]);
        Ok(())
    }),
    ("[sig-node] Pods should run through the lifecycle of Pods and PodStatus", lifecycle),
    ("[sig-node] Pods should support remote command execution over websockets", |c| {
        ready(c, "kept")?;
        ensure!(
            c.exec(super::NAMESPACE, "kept", &["echo", "remote execution test"])?
                == "remote execution test\n"
        );
        Ok(())
    }),
    (
        "[sig-node] Pods Extended Pods Set QOS Class should be set on Pods with matching resource requests and limits for memory and cpu",
        |c| {
            let pod = stage(c)?.get(&["pod/guaranteed"])?;
            ensure!(pod["status"]["qosClass"] == "Guaranteed", "{:#}", pod["status"]);
            Ok(())
        },
    ),
    (
        "[sig-node] Pods Extended (pod generation) Pod Generation pod generation should start at 1 and increment per update",
        generation,
    ),
    (
        "[sig-node] Pods Extended (pod generation) Pod Generation custom-set generation on new pods and graceful delete",
        custom_generation,
    ),
    (
        "[sig-node] Pods Extended (pod generation) Pod Generation issue 500 podspec updates and verify generation and observedGeneration eventually converge",
        generations,
    ),
    ("[sig-node] RuntimeClass should reject a Pod requesting a non-existent RuntimeClass", |c| {
        no_class(&stage(c)?, "there-is-none")
    }),
    ("[sig-node] RuntimeClass should reject a Pod requesting a deleted RuntimeClass", |c| {
        with_class(c, json!({"handler": "decapod"}), |scene, class| {
            scene.k(&["delete", "runtimeclass", class])?;
            no_class(scene, class)
        })
    }),
    ("[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass without PodOverhead", |c| {
        with_class(c, json!({"handler": "decapod"}), |scene, class| {
            let pod = run_in(scene, class)?;
            ensure!(pod["spec"]["overhead"].is_null(), "{:#}", pod["spec"]);
            Ok(())
        })
    }),
    (
        "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its Overhead",
        |c| {
            let overhead = json!({"podFixed": {"cpu": "10m", "memory": "1Mi"}});
            with_class(c, json!({"handler": "decapod", "overhead": overhead}), |scene, class| {
                let pod = run_in(scene, class)?;
                ensure!(
                    pod["spec"]["overhead"] == json!({"cpu": "10m", "memory": "1Mi"}),
                    "{:#}",
                    pod["spec"]
                );
                Ok(())
            })
        },
    ),
    ("[sig-node] RuntimeClass should support RuntimeClasses API operations", |c| {
        with_class(c, json!({"handler": "decapod"}), |scene, class| {
            let object = format!("runtimeclass/{class}");
            scene.merge(&object, &json!({"metadata": {"annotations": {"patched": "true"}}}))?;
            let listed = scene.list(&["runtimeclasses", "-l", "conf=class"])?;
            ensure!(
                listed.len() == 1 && listed[0]["metadata"]["annotations"]["patched"] == "true",
                "{listed:?}"
            );
            let error = scene.merge(&object, &json!({"handler": "other"})).err().context("it was changed")?;
            ensure!(error.to_string().contains("field is immutable"), "{error}");
            scene.k(&["delete", "runtimeclasses", "-l", "conf=class"])?;
            ensure!(scene.list(&["runtimeclasses", "-l", "conf=class"])?.is_empty());
            Ok(())
        })
    }),
];

pub(super) fn pods() -> Vec<Value> {
    let amounts = json!({"cpu": "10m", "memory": "16Mi"});
    let resources = json!({"resources": {"requests": amounts, "limits": amounts}});
    let script = "exec sleep 3600";
    vec![
        pod("kept", json!([sh("c", script, json!({}))]), json!({})),
        pod("guaranteed", json!([sh("c", script, resources)]), json!({})),
        pod("counted", json!([sh("c", script, json!({}))]), json!({})),
    ]
}

fn ready(cluster: &Cluster, name: &str) -> Result<Value> {
    stage(cluster)?.cluster.ready(super::NAMESPACE, name)
}

fn patch_status(scene: &Scene<'_>, pod: &str, patch: &Value) -> Result<Value> {
    let patch = patch.to_string();
    let arguments = ["patch", "pod", pod, "--subresource=status", "--type=merge", "-o", "json", "-p", &patch];
    Ok(serde_json::from_str(&scene.k(&arguments)?)?)
}

fn object(version: &str, kind: &str, name: &str, more: &Value) -> Value {
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

/// An object that is not valid is not created, and why is said.
fn refused(cluster: &Cluster, version: &str, kind: &str, more: Value, why: &str) -> Result<()> {
    let error = stage(cluster)?.create(&object(version, kind, "refused", &more)).err();
    let error = error.context("it was created")?.to_string();
    ensure!(error.contains(why), "{error}");
    Ok(())
}

/// An object that is created, read, patched, listed and deleted.
fn changed(cluster: &Cluster, version: &str, kind: &str, first: Value, then: Value) -> Result<()> {
    let scene = stage(cluster)?;
    let mut made = object(version, kind, "changed", &first);
    made["metadata"]["labels"] = json!({"conf": "changed"});
    let made = scene.create(&made)?;
    let path = format!("{}/changed", kind.to_lowercase());
    ensure!(scene.get(&[&path])?["metadata"]["uid"] == made["metadata"]["uid"]);
    let patched = scene.merge(&path, &then)?;
    for (field, wanted) in then.as_object().into_iter().flatten().filter(|(field, _)| *field != "metadata") {
        for (key, value) in wanted.as_object().into_iter().flatten() {
            ensure!(patched[field][key] == *value, "{patched:#}");
        }
    }
    ensure!(patched["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]);
    scene.k(&["delete", &kind.to_lowercase(), "-l", "conf=changed"])?;
    scene.until_gone(&path)
}

fn config_map(cluster: &Cluster) -> Result<()> {
    let change = json!({"data": {"a": "patched"}, "metadata": {"labels": {"more": "yes"}}});
    changed(cluster, "v1", "ConfigMap", json!({"data": {"a": "1"}}), change)
}

fn template(image: &str) -> Value {
    json!({"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}}})
}

fn replaced_template(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let mut made = scene.create(&object("v1", "PodTemplate", "replaced", &template("busybox:1")))?;
    made["metadata"]["annotations"] = json!({"updated": "true"});
    let replaced = scene.send(&["replace"], &made)?;
    ensure!(replaced["metadata"]["annotations"]["updated"] == "true", "{replaced:#}");
    scene.k(&["delete", "podtemplate/replaced"]).map(drop)
}

fn templates(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    for name in ["t1", "t2", "t3"] {
        let mut one = object("v1", "PodTemplate", name, &template("busybox:1"));
        one["metadata"]["labels"] = json!({"set": "true"});
        scene.create(&one)?;
    }
    ensure!(scene.list(&["podtemplates", "-l", "set=true"])?.len() == 3);
    scene.k(&["delete", "podtemplates", "-l", "set=true"])?;
    ensure!(scene.list(&["podtemplates", "-l", "set=true"])?.is_empty());
    Ok(())
}

/// A node that no machine stands behind.
fn node(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let taints = json!({"spec": {"unschedulable": true}});
    let mut made = object("v1", "Node", "conf-fake", &taints);
    made["metadata"]["labels"] = json!({"conf": "fake"});
    scene.create(&made)?;
    let patched = scene.merge("node/conf-fake", &json!({"metadata": {"labels": {"patched": "true"}}}))?;
    ensure!(patched["metadata"]["labels"]["patched"] == "true");
    let status = json!({"status": {"phase": "Running"}}).to_string();
    scene.k(&["patch", "node", "conf-fake", "--subresource=status", "--type=merge", "-p", &status])?;
    scene.k(&["delete", "nodes", "-l", "conf=fake"])?;
    scene.until_gone("node/conf-fake")
}

fn submitted(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let sleeper = pod("submitted", json!([sh("c", "exec sleep 3600", json!({}))]), json!({}));
    scene.create(&sleeper)?;
    ensure!(scene.list(&["pods", "-l", "conf=submitted"])?.len() == 1);
    ready(cluster, "submitted")?;
    scene.k(&["delete", "pod", "submitted", "--grace-period=1", "--timeout=180s"])?;
    scene.until_gone("pod/submitted")
}

fn lifecycle(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let sleeper = pod("lifecycle", json!([sh("c", "exec sleep 3600", json!({}))]), json!({}));
    scene.create(&sleeper)?;
    ready(cluster, "lifecycle")?;
    let change =
        json!({"metadata": {"labels": {"test": "patched"}}, "spec": {"terminationGracePeriodSeconds": 1}});
    // The grace of a pod is as it was created; its labels are anybody's.
    ensure!(scene.merge("pod/lifecycle", &change).is_err());
    scene.merge("pod/lifecycle", &json!({"metadata": {"labels": {"test": "patched"}}}))?;
    let pod = patch_status(&scene, "lifecycle", &json!({"status": {"message": "seen"}}))?;
    ensure!(pod["status"]["message"] == "seen" && condition(&pod, "Ready") == "True", "{:#}", pod["status"]);
    scene.k(&["delete", "pods", "-l", "test=patched", "--timeout=180s"])?;
    scene.until_gone("pod/lifecycle")
}

/// Waits until the kubelet has seen all changes of a pod's spec.
fn observed(scene: &Scene<'_>, name: &str, generation: i64) -> Result<()> {
    let seen = |pod: &Value| {
        pod["metadata"]["generation"] == generation && pod["status"]["observedGeneration"] == generation
    };
    scene.until(&format!("pod/{name}"), &format!("generation {generation}"), seen).map(drop)
}

fn generation(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    observed(&scene, "counted", 1)?;
    scene.merge("pod/counted", &json!({"metadata": {"labels": {"not": "counted"}}}))?;
    observed(&scene, "counted", 1)?;
    scene.merge("pod/counted", &json!({"spec": {"activeDeadlineSeconds": 3600}}))?;
    observed(&scene, "counted", 2)
}

fn custom_generation(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let more = json!({"terminationGracePeriodSeconds": 600});
    let mut custom = pod("custom", json!([sh("c", "exec sleep 3600", json!({}))]), more);
    custom["metadata"]["generation"] = json!(100);
    let made = scene.create(&custom)?;
    ensure!(made["metadata"]["generation"] == 1, "{:#}", made["metadata"]);
    ready(cluster, "custom")?;
    scene.k(&["delete", "pod", "custom", "--wait=false"])?;
    // Its deletion is a change of what is wanted of it.
    observed(&scene, "custom", 2)?;
    scene.k(&["delete", "pod", "custom", "--grace-period=1", "--timeout=180s"]).map(drop)
}

fn generations(cluster: &Cluster) -> Result<()> {
    const UPDATES: i64 = 500;
    let scene = stage(cluster)?;
    let deadline = json!({"activeDeadlineSeconds": 5000});
    scene.create(&pod("hasty", json!([sh("c", "exec sleep 3600", json!({}))]), deadline))?;
    ready(cluster, "hasty")?;
    // Each takes a second off, one after another.
    with_client(cluster, async |client| {
        let pods: Api<Pod> = Api::namespaced(client, super::NAMESPACE);
        for update in 1..=UPDATES {
            let patch = json!({"spec": {"activeDeadlineSeconds": 5000 - update}});
            pods.patch("hasty", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        Ok(())
    })?;
    observed(&scene, "hasty", 1 + UPDATES)
}

fn no_class(scene: &Scene<'_>, class: &str) -> Result<()> {
    let pod = pod("classless", json!([sh("c", "true", json!({}))]), json!({"runtimeClassName": class}));
    let error = scene.create(&pod).err().context("it was created")?.to_string();
    ensure!(
        error.contains("forbidden") && error.contains(&format!("RuntimeClass \"{class}\" not found")),
        "{error}"
    );
    Ok(())
}

/// Runs a test with a RuntimeClass of its own.
fn with_class(
    cluster: &Cluster,
    more: Value,
    test: impl FnOnce(&Scene<'_>, &str) -> Result<()>,
) -> Result<()> {
    let scene = stage(cluster)?;
    let mut class = object("node.k8s.io/v1", "RuntimeClass", "conf-class", &more);
    class["metadata"]["labels"] = json!({"conf": "class"});
    scene.create(&class)?;
    let result = test(&scene, "conf-class");
    let removed = scene.k(&["delete", "runtimeclass", "conf-class", "--ignore-not-found"]);
    result.and(removed.map(drop))
}

/// A pod of that class, which has to run to its end.
fn run_in(scene: &Scene<'_>, class: &str) -> Result<Value> {
    let pod = pod("classy", json!([sh("c", "true", json!({}))]), json!({"runtimeClassName": class}));
    scene.create(&pod)?;
    let pod = scene.ended("classy")?;
    ensure!(phase(&pod) == "Succeeded", "{:#}", pod["status"]);
    scene.k(&["delete", "pod", "classy", "--timeout=180s"])?;
    Ok(pod)
}
