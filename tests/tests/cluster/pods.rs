//! Pods of the node itself: from files, and those that it refuses.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);

fn until(cluster: &Cluster, pod: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    poll::until(&format!("{pod}: {what}"), PATIENCE, || {
        let found = cluster.k(&["get", "pod", pod, "--ignore-not-found", "-o", "json"])?;
        let found: Value = serde_json::from_str(&found).unwrap_or(Value::Null);
        Ok(if holds(&found) { Ok(found) } else { Err(found["status"].to_string()) })
    })
}

fn ready(pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A file in the node's folder of manifests is a pod, which the API server only shows.
pub(crate) fn a_file_is_a_pod(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.get(&["nodes"])?;
    let node = nodes["items"][0]["metadata"]["name"].as_str().context("no node")?;
    let name = format!("from-file-{node}");
    let file = cluster.data().join("manifests/from-file.yaml");
    let container = json!({"name": "c", "image": "busybox:1",
        "command": ["sh", "-c", "echo from a file; trap 'exit 0' TERM; while true; do sleep 0.2; done"]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "from-file"},
        "spec": {"containers": [container]}});
    std::fs::write(&file, pod.to_string()).with_context(|| file.display().to_string())?;
    let result = (|| {
        let first = until(cluster, &name, "ready", ready)?;
        ensure!(first["metadata"]["annotations"]["kubernetes.io/config.source"] == "file", "{first:#}");
        ensure!(first["metadata"]["ownerReferences"][0]["kind"] == "Node", "{first:#}");
        let logs = || Ok(cluster.k(&["logs", &name]).unwrap_or_else(|error| format!("{error:#}")));
        poll::text("its words", PATIENCE, logs, |said| said == "from a file\n")?;
        // Whoever deletes what he sees deletes no pod.
        let of = |pod: &Value, path: &str| pod.pointer(path).cloned();
        let (uid, id) = ("/metadata/uid", "/status/containerStatuses/0/containerID");
        cluster.k(&["delete", "pod", &name, "--wait=false"])?;
        let again =
            until(cluster, &name, "shown again", |pod| ready(pod) && of(pod, uid) != of(&first, uid))?;
        ensure!(of(&again, id) == of(&first, id), "it was restarted: {:#}", again["status"]);
        Ok(())
    })();
    let removed = std::fs::remove_file(&file);
    result.and(removed.map_err(anyhow::Error::from))?;
    until(cluster, &name, "gone", Value::is_null).map(drop)
}

/// Who names a node asks no scheduler: the node itself refuses what does not fit.
pub(crate) fn the_node_refuses_what_does_not_fit(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.get(&["nodes"])?;
    let node = nodes["items"][0]["metadata"]["name"].as_str().context("no node")?.to_owned();
    cluster.in_namespace("refused", |ns| {
        let pod = |name: &str, more: &str| {
            format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {ns}}}, spec: {{nodeName: {node}, {more}}}}}")
        };
        let command = "image: 'busybox:1', command: [sleep, '3600']";
        let large = format!("containers: [{{name: c, {command}, resources: {{requests: {{cpu: '1000'}}}}}}]");
        let plain = format!("containers: [{{name: c, {command}}}]");
        let label = format!("nodeSelector: {{no: such}}, {plain}");
        let sysctl =
            format!("securityContext: {{sysctls: [{{name: kernel.sem, value: '1 1 1 1'}}]}}, {plain}");
        let armor = format!("securityContext: {{appArmorProfile: {{type: RuntimeDefault}}}}, {plain}");
        let mut wanted =
            vec![("large", large, "OutOfcpu"), ("label", label, "NodeAffinity"), ("sysctl", sysctl, "SysctlForbidden")];
        if !std::path::Path::new("/sys/module/apparmor/parameters/enabled").exists() {
            wanted.push(("armor", armor, "AppArmor"));
        }
        let manifests: Vec<String> = wanted.iter().map(|(name, more, _)| pod(name, more)).collect();
        cluster.apply(&manifests.join("\n---\n"))?;
        for (name, _, reason) in &wanted {
            poll::until(&format!("the refusal of {name}"), PATIENCE, || {
                let status = cluster.get(&["pod", name, "-n", ns])?["status"].clone();
                let refused = status["phase"] == "Failed" && status["reason"] == *reason;
                Ok(if refused { Ok(()) } else { Err(status.to_string()) })
            })?;
        }
        let wanted = "Node didn't have enough resource: cpu, requested: 1000000";
        let events = || cluster.k(&["get", "events", "-n", ns]);
        poll::text("what was short", PATIENCE, events, |told| told.contains(wanted)).map(drop)
    })
}

/// A critical pod whose node was chosen by hand does not fail for want of room: the node makes some.
pub(crate) fn a_critical_pod_displaces_others(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.get(&["nodes"])?;
    let node = nodes["items"][0]["metadata"]["name"].as_str().context("no node")?.to_owned();
    let resource = "test.example/seat";
    let patch = |value: Value| {
        let patch =
            json!({"status": {"capacity": {resource: value}, "allocatable": {resource: value}}}).to_string();
        cluster.k(&["patch", "node", &node, "--subresource=status", "--type=merge", "-p", &patch])
    };
    patch(json!("1"))?;
    let result = cluster.in_namespace("displaced", |ns| {
        let pod = |name: &str, class: &str| {
            let container = json!({"name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
                "resources": {"requests": {resource: "1"}, "limits": {resource: "1"}}});
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ns},
                "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "priorityClassName": class,
                    "containers": [container]}})
            .to_string()
        };
        let of =
            |name: &str| Ok::<Value, anyhow::Error>(cluster.get(&["pod", name, "-n", ns])?["status"].clone());
        let until = |name: &str, what: &str, holds: &dyn Fn(&Value) -> bool| {
            poll::until(&format!("{name}: {what}"), PATIENCE, || {
                let status = of(name)?;
                Ok(if holds(&status) { Ok(status) } else { Err(status.to_string()) })
            })
        };
        cluster.apply(&pod("plain", ""))?;
        until("plain", "runs", &|status| status["phase"] == "Running")?;
        cluster.apply(&pod("critical", "system-node-critical"))?;
        let gone = until("plain", "displaced", &|status| status["phase"] == "Failed")?;
        ensure!(gone["reason"] == "Preempting", "{gone}");
        ensure!(gone["message"] == "Preempted in order to admit critical pod", "{gone}");
        let mut conditions = gone["conditions"].as_array().into_iter().flatten();
        ensure!(conditions.any(|c| c["type"] == "DisruptionTarget" && c["status"] == "True"), "{gone}");
        until("critical", "runs", &|status| status["phase"] == "Running")?;
        // One that is no less critical stays, and who finds no room is told of it.
        cluster.apply(&pod("another", "system-node-critical"))?;
        let refused = until("another", "refused", &|status| status["phase"] == "Failed")?;
        ensure!(refused["reason"] == "UnexpectedAdmissionError", "{refused}");
        let short = "no set of running pods found to reclaim resources: [(res: test.example/seat, q: 1), ]";
        ensure!(refused["message"].as_str().is_some_and(|said| said.contains(short)), "{refused}");
        ensure!(of("critical")?["phase"] == "Running", "it went");
        let events = || cluster.k(&["get", "events", "-n", ns]);
        poll::text("what happened", PATIENCE, events, |told| told.contains("Preempting")).map(drop)
    });
    let removed = patch(Value::Null);
    result.and(removed.map(drop))
}
