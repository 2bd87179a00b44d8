//! `[sig-node]`: what containers see, how they begin and end, what is asked of them.
//!
//! The pods of all entries are created at once, when the first test asks for them, and run beside each other; each
//! test then waits for its own. The last test deletes them.

mod ends;
mod objects;
mod probes;
mod sees;
mod sockets;

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::Scene;

const NAMESPACE: &str = "conf-node";

/// All tests, in the order in which they run.
pub(super) fn tests() -> Vec<Test<Cluster>> {
    [sees::TESTS, ends::TESTS, probes::TESTS, objects::TESTS, sockets::TESTS, LAST].concat()
}

/// Takes the pods of the others away.
const LAST: &[Test<Cluster>] = &[("[sig-node] Pods should delete a collection of pods", collection)];

/// The scene with all pods on it.
fn stage(cluster: &Cluster) -> Result<Scene<'_>> {
    static SET_UP: OnceLock<Result<(), String>> = OnceLock::new();
    let scene = Scene { cluster, namespace: NAMESPACE };
    let result = SET_UP.get_or_init(|| set_up(&scene).map_err(|error| format!("{error:?}")));
    result.clone().map_err(|error| anyhow!("the pods could not be created: {error}"))?;
    Ok(scene)
}

fn set_up(scene: &Scene<'_>) -> Result<()> {
    scene.cluster.k(&["create", "namespace", NAMESPACE])?;
    let answering = json!({"name": "c", "image": "nginx:1"});
    let handler = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "handler", "labels": {"app": "handler"}},
        "spec": {"containers": [answering], "terminationGracePeriodSeconds": 0}});
    scene.create_all([sees::objects(), vec![handler]].concat())?;
    // The others are told where it is.
    let handler = scene.until("pod/handler", "an address", |pod| pod["status"]["podIP"].is_string())?;
    scene.cluster.ready(NAMESPACE, "handler")?;
    let address = handler["status"]["podIP"].as_str().context("no address")?;
    let others = [probes::pods()?, objects::pods(), sockets::pods()].concat();
    scene.create_all([sees::pods(), ends::pods(address), others].concat())
}

/// A pod with these containers; all that is not said is as short-lived as possible.
fn pod(name: &str, containers: Value, more: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"conf": name}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": containers}});
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// A container that runs a script, with more of its spec.
fn sh(name: &str, script: &str, more: Value) -> Value {
    let mut container = json!({"name": name, "image": "busybox:1", "command": ["/bin/sh", "-c", script]});
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let mut all = pod["status"]["conditions"].as_array().into_iter().flatten();
    all.find(|c| c["type"] == kind).and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// The status of one container, of whichever sort.
fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().flat_map(|list| pod["status"][*list].as_array().into_iter().flatten());
    all.find(|status| status["name"] == name).unwrap_or(&Value::Null)
}

impl Scene<'_> {
    /// Waits until a pod has ended, however it did.
    fn ended(&self, name: &str) -> Result<Value> {
        let over = |pod: &Value| matches!(phase(pod), "Succeeded" | "Failed");
        self.until(&format!("pod/{name}"), &format!("the end of {name}"), over)
    }

    /// What a container wrote before its pod ended.
    fn said(&self, pod: &str, container: &str) -> Result<String> {
        self.ended(pod)?;
        self.k(&["logs", pod, "-c", container])
    }

    /// Whether a container wrote all of these lines.
    fn says(&self, pod: &str, container: &str, lines: &[&str]) -> Result<()> {
        let said = self.said(pod, container)?;
        for line in lines {
            ensure!(
                said.lines().any(|one| one == *line),
                "{container} of {pod} did not say {line:?}:\n{said}"
            );
        }
        Ok(())
    }

    /// Waits for an event about a pod whose message begins like this.
    fn event(&self, pod: &str, reason: &str, message: &str) -> Result<()> {
        let selector = format!("involvedObject.name={pod},reason={reason}");
        decapod_tests::poll::until(&format!("{reason} of {pod}"), super::PATIENCE, || {
            let events = self.list(&["events", "--field-selector", &selector])?;
            let told: Vec<_> = events.iter().filter_map(|event| event["message"].as_str()).collect();
            let is_told = told.iter().any(|one| one.starts_with(message));
            Ok(if is_told { Ok(()) } else { Err(format!("{told:?}")) })
        })
    }
}

fn collection(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    scene.k(&["delete", "pods", "--all", "--timeout=180s"])?;
    ensure!(scene.list(&["pods"])?.is_empty());
    cluster.k(&["delete", "namespace", NAMESPACE, "--timeout=180s"]).map(drop)
}
