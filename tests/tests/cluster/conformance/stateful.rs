//! `[sig-apps] StatefulSet`.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, scene, template};

pub(super) const TESTS: &[Test<Cluster>] = &[
    (
        "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Burst scaling should run to completion even with unhealthy pods",
        burst,
    ),
    (
        "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Scaling should happen in predictable order and halt if any stateful pod is unhealthy",
        order,
    ),
    (
        "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Should recreate evicted statefulset",
        evicted,
    ),
    (
        "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should have a working scale subresource",
        scale,
    ),
    (
        "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should list, patch and delete a collection of StatefulSets",
        collection,
    ),
    (
        "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should perform canary updates and phased rolling updates of template modifications",
        canary,
    ),
    (
        "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should perform rolling updates and roll backs of template modifications",
        rolling,
    ),
    (
        "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should validate Statefulset Status endpoints",
        status,
    ),
];

/// Named `web`, of pods that are ready as long as they have a file.
fn set(replicas: u32, more: Value) -> Value {
    let mut template = template("web");
    let container = &mut template["spec"]["containers"][0];
    container["command"] = json!(["sh", "-c", "touch /ready; exec sleep 3600"]);
    container["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/ready"]}, "periodSeconds": 1,
        "timeoutSeconds": 30, "failureThreshold": 1});
    let mut object = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

impl Scene<'_> {
    /// Waits until so many pods are ready, and no others there, by a status of the present generation.
    fn has_ready(&self, replicas: u32) -> Result<Value> {
        self.until("sts/web", &format!("{replicas} ready replicas"), |one| {
            let status = &one["status"];
            status["observedGeneration"] == one["metadata"]["generation"]
                && status["replicas"] == replicas
                && status["readyReplicas"].as_u64().unwrap_or(0) == u64::from(replicas)
        })
    }

    /// Makes a pod unready; afterwards the controller knows, and has so many others.
    fn break_pod(&self, pod: &str, others: u32) -> Result<()> {
        self.k(&["exec", pod, "--", "rm", "/ready"])?;
        self.until("sts/web", "the controller to have seen it", |one| {
            one["status"]["readyReplicas"].as_u64().unwrap_or(0) == u64::from(others)
        })
        .map(drop)
    }

    /// Lets a pod be ready again.
    fn mend_pod(&self, pod: &str) -> Result<()> {
        self.k(&["exec", pod, "--", "touch", "/ready"]).map(drop)
    }

    /// The pods' names with the first variable of each: `web-0 one, web-1 two`.
    fn versions(&self) -> Result<String> {
        let mut pods = self.list(&["pods"])?;
        pods.sort_by_key(|pod| pod["metadata"]["name"].as_str().map(str::to_owned));
        let versions = pods.iter().map(|pod| {
            let version = &pod["spec"]["containers"][0]["env"][0]["value"];
            format!(
                "{}={}",
                pod["metadata"]["name"].as_str().unwrap_or_default(),
                version.as_str().unwrap_or("1")
            )
        });
        Ok(versions.collect::<Vec<_>>().join(" "))
    }

    /// Waits until the pods have these versions, all ready.
    fn has_versions(&self, versions: &str) -> Result<()> {
        poll::until(versions, PATIENCE, || {
            let (present, one) = (self.versions()?, self.get(&["sts/web"])?);
            let ready = one["status"]["readyReplicas"] == one["spec"]["replicas"];
            Ok(if ready && present == versions {
                Ok(())
            } else {
                Err(format!("{present} {}", one["status"]))
            })
        })
    }
}

fn burst(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sts-burst", |scene| {
        scene.create(&set(1, json!({"podManagementPolicy": "Parallel"})))?;
        scene.has_ready(1)?;
        scene.break_pod("web-0", 0)?;
        scene.k(&["scale", "sts/web", "--replicas=3"])?;
        scene.until("sts/web", "two more though the first is unhealthy", |one| {
            one["status"]["readyReplicas"] == 2
        })?;
        scene.break_pod("web-2", 1)?;
        scene.k(&["scale", "sts/web", "--replicas=0"])?;
        scene.has_ready(0)?;
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

fn order(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sts-order", |scene| {
        scene.create(&set(1, json!({})))?;
        scene.has_ready(1)?;
        scene.break_pod("web-0", 0)?;
        let halted = |replicas: u32, generation: &Value| {
            scene.until("sts/web", "the controller to have seen the change", |one| {
                &one["status"]["observedGeneration"] == generation
            })?;
            ensure!(scene.list(&["pods"])?.len() == replicas as usize, "it did not halt");
            Ok(())
        };
        // At any time those that are there are the first ones.
        let in_order = |pods: &[Value]| {
            let names: Vec<_> = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
            let first: Vec<_> = (0..names.len()).map(|ordinal| format!("web-{ordinal}")).collect();
            assert_eq!(names, first, "out of order");
        };
        scene.k(&["scale", "sts/web", "--replicas=3"])?;
        halted(1, &scene.get(&["sts/web"])?["metadata"]["generation"])?;
        scene.mend_pod("web-0")?;
        scene.until_list("pods", "three pods", |pods| {
            in_order(pods);
            pods.len() == 3
        })?;
        scene.has_ready(3)?;
        // An unhealthy one halts those before it; of several the first may go all the same, in its turn.
        for (pod, others) in [("web-0", 2), ("web-1", 1), ("web-2", 0)] {
            scene.break_pod(pod, others)?;
        }
        scene.k(&["scale", "sts/web", "--replicas=0"])?;
        halted(3, &scene.get(&["sts/web"])?["metadata"]["generation"])?;
        scene.mend_pod("web-2")?;
        scene.until_list("pods", "the last to go", |pods| {
            in_order(pods);
            pods.len() == 2
        })?;
        scene.mend_pod("web-1")?;
        scene.until_list("pods", "no pod", |pods| {
            in_order(pods);
            pods.is_empty()
        })?;
        Ok(())
    })
}

fn evicted(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sts-evicted", |scene| {
        let node = scene.list(&["nodes"])?;
        let node = node[0]["metadata"]["name"].as_str().context("no node")?.to_owned();
        let port = json!([{"containerPort": 80, "hostPort": 21_017}]);
        let mut first = super::pod("first", "first");
        first["spec"]["nodeName"] = json!(node);
        first["spec"]["containers"][0]["ports"] = port.clone();
        scene.create(&first)?;
        scene.until("pod/first", "the one that has the port", |pod| pod["status"]["phase"] == "Running")?;
        let mut wanted = set(1, json!({}));
        let spec = &mut wanted["spec"]["template"]["spec"];
        spec["nodeName"] = json!(node);
        spec["containers"][0]["ports"] = port;
        scene.create(&wanted)?;
        // The node refuses each that is made: there are several in turn.
        let mut refused = std::collections::BTreeSet::new();
        poll::until("a second attempt", PATIENCE, || {
            let pods = scene.list(&["pods", "-l", "app=web"])?;
            refused.extend(pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned)));
            Ok(if refused.len() > 1 { Ok(()) } else { Err(format!("{pods:?}")) })
        })?;
        scene.k(&["delete", "pod/first", "--wait=false"])?;
        scene.has_ready(1).map(drop)
    })
}

fn scale(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sts-scale", |scene| {
        scene.create(&set(1, json!({})))?;
        scene.has_ready(1)?;
        super::sets::scale_subresource(scene, "sts/web", "apps/v1", "statefulsets")
    })
}

fn collection(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sts-list", |scene| {
        let mut wanted = set(1, json!({}));
        wanted["metadata"]["labels"] = json!({"e2e": "sts"});
        scene.create(&wanted)?;
        scene.has_ready(1)?;
        let found = cluster.get(&["statefulsets", "--all-namespaces", "-l", "e2e=sts"])?;
        ensure!(found["items"].as_array().map(Vec::len) == Some(1), "{found:#}");
        let patch = json!({"metadata": {"labels": {"patched": "yes"}}, "spec": {"replicas": 2}});
        scene.merge("sts/web", &patch)?;
        scene.has_ready(2)?;
        scene.k(&["delete", "statefulsets", "-l", "patched=yes"])?;
        ensure!(scene.list(&["statefulsets"])?.is_empty());
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

fn canary(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sts-canary", |scene| {
        let partition = |number: u32| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": number}}});
        scene.create(&set(3, partition(3)))?;
        scene.has_ready(3)?;
        scene.k(&["set", "env", "sts/web", "VERSION=2"])?;
        let present = scene.until("sts/web", "another revision", |one| {
            one["status"]["updateRevision"] != one["status"]["currentRevision"]
        })?;
        ensure!(scene.versions()? == "web-0=1 web-1=1 web-2=1", "{present:#}");
        scene.merge("sts/web", &json!({"spec": partition(2)}))?;
        scene.has_versions("web-0=1 web-1=1 web-2=2")?;
        // Whoever goes meanwhile comes back as he was.
        scene.k(&["delete", "pod", "web-0", "web-2"])?;
        scene.has_versions("web-0=1 web-1=1 web-2=2")?;
        scene.merge("sts/web", &json!({"spec": partition(0)}))?;
        scene.has_versions("web-0=2 web-1=2 web-2=2")?;
        scene
            .until("sts/web", "one revision", |one| {
                one["status"]["updateRevision"] == one["status"]["currentRevision"]
                    && one["status"]["currentReplicas"] == 3
            })
            .map(drop)
    })
}

fn rolling(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sts-rolling", |scene| {
        scene.create(&set(3, json!({})))?;
        let first = scene.has_ready(3)?["status"]["updateRevision"].clone();
        // One that is not ready is waited for, and replaced in its turn.
        scene.break_pod("web-1", 2)?;
        scene.k(&["set", "env", "sts/web", "VERSION=2"])?;
        scene.until("sts/web", "another revision", |one| one["status"]["updateRevision"] != first)?;
        scene.mend_pod("web-1")?;
        poll::until("the update", PATIENCE, || {
            let versions = scene.versions()?;
            // From the last to the first.
            ensure!(!versions.contains("web-0=2") || !versions.contains("web-2=1"), "{versions}");
            Ok(if versions == "web-0=2 web-1=2 web-2=2" { Ok(()) } else { Err(versions) })
        })?;
        scene.has_ready(3)?;
        scene.k(&["rollout", "undo", "sts/web"])?;
        scene.k(&["rollout", "status", "sts/web", "--timeout=180s"])?;
        scene.has_versions("web-0=1 web-1=1 web-2=1")?;
        let back = scene.until("sts/web", "the end of the roll-back", |one| {
            one["status"]["updateRevision"] == one["status"]["currentRevision"]
        })?;
        ensure!(back["status"]["updateRevision"] == first, "not the revision from before: {back:#}");
        ensure!(scene.list(&["controllerrevisions"])?.len() == 2);
        Ok(())
    })
}

fn status(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sts-status", |scene| {
        scene.create(&set(1, json!({})))?;
        scene.has_ready(1)?;
        super::sets::status_subresource(scene, "sts/web")
    })
}
