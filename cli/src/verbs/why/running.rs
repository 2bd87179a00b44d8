//! Why a pod that has a node does not run, restarts, or is not ready.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::{Finding, condition, list, name, said, since, text, warnings};

/// What is around a pod.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// Its node.
    pub(super) node: Option<Value>,
    /// Its events, the newest last.
    pub(super) events: Vec<Value>,
    /// The end of what a container wrote before it ended.
    pub(super) last_words: BTreeMap<String, String>,
}

fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["status"]["initContainerStatuses"]).chain(list(&pod["status"]["containerStatuses"]))
}

/// The container of a name in the spec.
fn container<'a>(pod: &'a Value, called: &str) -> &'a Value {
    let all = list(&pod["spec"]["initContainers"]).chain(list(&pod["spec"]["containers"]));
    all.into_iter().find(|one| text(one, "name") == called).unwrap_or(&Value::Null)
}

/// The containers whose last words are worth reading.
pub(super) fn restarting(pod: &Value) -> Vec<String> {
    let ended = statuses(pod).filter(|status| {
        status["lastState"]["terminated"].is_object()
            && (status["ready"] != true || !status["state"]["running"].is_object())
    });
    ended.map(|status| text(status, "name").to_owned()).collect()
}

/// What is in the way of a pod, the gravest first.
pub(super) fn findings(pod: &Value, around: &Around, now: Timestamp) -> Vec<Finding> {
    if text(&pod["spec"], "nodeName").is_empty() {
        return vec![pending(pod, &around.events)];
    }
    match text(&pod["status"], "phase") {
        "Failed" => return vec![failed(pod)],
        "Succeeded" => return Vec::new(),
        _ => {}
    }
    let mut findings = Vec::new();
    findings.extend(lost_node(pod, around, now));
    for status in statuses(pod) {
        findings.extend(of_container(pod, status, around, now));
    }
    if statuses(pod).next().is_none() {
        findings.push(not_begun(pod, around));
    }
    for gate in list(&pod["spec"]["readinessGates"]) {
        let type_ = text(gate, "conditionType");
        let met = condition(pod, type_).is_some_and(|condition| condition["status"] == "True");
        if !met {
            findings.push(
                Finding::new(format!("its readiness gate {type_} is not met"))
                    .detail(condition(pod, type_).map(said).unwrap_or_default())
                    .way_out("whoever set the gate must set the condition of that type to True"),
            );
        }
    }
    findings
}

fn pending(pod: &Value, events: &[Value]) -> Finding {
    if let Some(first) = list(&pod["spec"]["schedulingGates"]).next() {
        return Finding::new(format!("it waits for its scheduling gate {}", name_of(first)))
            .way_out("whoever set the gate must take it away");
    }
    match condition(pod, "PodScheduled").filter(|condition| condition["status"] != "True") {
        Some(condition) => {
            let mut finding = Finding::new("no node takes it").detail(said(condition));
            for warning in warnings(events).iter().filter(|warning| !warning.starts_with("FailedScheduling"))
            {
                finding = finding.detail(warning);
            }
            finding
        }
        None => Finding::new("no scheduler has looked at it yet")
            .detail(format!("its scheduler is called {}", text(&pod["spec"], "schedulerName")))
            .way_out("is there a scheduler of that name, and does it run?"),
    }
}

fn name_of(value: &Value) -> &str {
    text(value, "name")
}

fn failed(pod: &Value) -> Finding {
    let mut finding = Finding::new("it has failed, and is not started again").detail(said(&pod["status"]));
    for status in statuses(pod) {
        if let Some(ended) =
            ended(&status["state"]["terminated"]).filter(|_| status["state"]["terminated"]["exitCode"] != 0)
        {
            finding = finding.detail(format!("container {}: {ended}", name_of(status)));
        }
    }
    if text(&pod["status"], "reason") == "Evicted" {
        return finding.way_out(
            "the node was short of something: requests that are true keep pods from sharing too little",
        );
    }
    finding
}

fn lost_node(pod: &Value, around: &Around, now: Timestamp) -> Option<Finding> {
    let node = text(&pod["spec"], "nodeName");
    let Some(object) = &around.node else {
        return Some(Finding::new(format!("its node {node} does not exist (any more)")));
    };
    let ready = condition(object, "Ready").filter(|ready| ready["status"] != "True")?;
    Some(
        Finding::new(format!(
            "its node {node} is not ready for {}",
            since(&ready["lastTransitionTime"], now)
        ))
        .detail(said(ready))
        .way_out(format!("`decapod why node/{node}`")),
    )
}

/// The way out where a volume cannot be mounted.
const MOUNTS: &str = "what its volumes name (a Secret, a ConfigMap, a claim) must exist in the pod's namespace: it is tried again by itself";

fn unmounted(around: &Around) -> bool {
    around.events.iter().any(|event| event["reason"] == "FailedMount")
}

/// Nothing of it was started yet.
fn not_begun(pod: &Value, around: &Around) -> Finding {
    let mut finding = Finding::new("its node has not started it yet");
    for warning in warnings(&around.events) {
        finding = finding.detail(warning);
    }
    match unmounted(around) {
        true => finding.way_out(MOUNTS),
        false => finding.detail(condition(pod, "PodReadyToStartContainers").map(said).unwrap_or_default()),
    }
}

fn of_container(pod: &Value, status: &Value, around: &Around, now: Timestamp) -> Option<Finding> {
    let called = name_of(status);
    let is_init = list(&pod["spec"]["initContainers"]).any(|one| name_of(one) == called);
    let what = if is_init { "init container" } else { "container" };
    let state = &status["state"];
    if let Some(finding) = waiting(pod, status, around) {
        return Some(finding);
    }
    if state["terminated"].is_object() {
        let fine = state["terminated"]["exitCode"] == 0;
        if is_init && fine {
            return None;
        }
        let ended = ended(&state["terminated"]).unwrap_or_default();
        return Some(restarts(
            Finding::new(format!("{what} {called} has ended: {ended}")),
            pod,
            status,
            around,
        ));
    }
    if !state["running"].is_object() || status["ready"] == true || is_init && status["started"] == true {
        return None;
    }
    if is_init && text(container(pod, called), "restartPolicy") != "Always" {
        let for_ = since(&state["running"]["startedAt"], now);
        return Some(Finding::new(format!(
            "init container {called} runs for {for_}: the others wait until it has ended"
        )));
    }
    Some(not_ready(pod, status, around, now))
}

fn waiting(pod: &Value, status: &Value, around: &Around) -> Option<Finding> {
    let called = name_of(status);
    let waiting = status["state"]["waiting"].as_object()?;
    let message = waiting.get("message").and_then(Value::as_str).unwrap_or_default();
    let image = text(container(pod, called), "image");
    Some(match waiting.get("reason").and_then(Value::as_str).unwrap_or_default() {
        "CrashLoopBackOff" => {
            restarts(Finding::new(format!("container {called} ends again and again")), pod, status, around)
        }
        reason @ ("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "RegistryUnavailable") => {
            let mut finding = Finding::new(format!("the image {image} of container {called} cannot be had ({reason})")).detail(message);
            for warning in warnings(&around.events) {
                finding = finding.detail(warning);
            }
            finding.way_out("check the name and the tag; a private registry wants an imagePullSecret; `decapod image import` or `decapod image build` brings an image to this node without a registry")
        }
        "CreateContainerConfigError" => Finding::new(format!("container {called} asks for something that is not there"))
            .detail(message)
            .way_out("create the ConfigMap, Secret or key that is named, in the pod's namespace: it is tried again by itself"),
        "PodInitializing" | "ContainerCreating" => {
            let troubles = warnings(&around.events);
            // It waits for containers that say more themselves.
            let others = list(&pod["status"]["initContainerStatuses"]).any(|one| one["state"]["terminated"]["exitCode"] != 0);
            if troubles.is_empty() || others {
                return None;
            }
            let begun = Finding::new(format!("container {called} has not started yet"));
            let finding = troubles.into_iter().fold(begun, Finding::detail);
            if unmounted(around) { finding.way_out(MOUNTS) } else { finding }
        }
        reason => Finding::new(format!("container {called} cannot be started ({reason})")).detail(message),
    })
}

/// How a container ended, in words.
fn ended(terminated: &Value) -> Option<String> {
    let code = terminated["exitCode"].as_i64()?;
    let meaning = match (text(terminated, "reason"), code) {
        ("OOMKilled", _) => " (it took more memory than its limit and was killed)",
        (_, 126) => " (the command cannot be executed)",
        (_, 127) => " (the command is not there)",
        (_, 137) => " (it was killed)",
        (_, 139) => " (it crashed: a segmentation fault)",
        (_, 143) => " (it was asked to end)",
        _ => "",
    };
    let message = match text(terminated, "message").trim() {
        "" => String::new(),
        message => format!(": {message}"),
    };
    Some(format!("exit code {code}{meaning}{message}"))
}

/// Adds what is known of the last end of a container, and the way out.
fn restarts(finding: Finding, pod: &Value, status: &Value, around: &Around) -> Finding {
    let called = name_of(status);
    let last = &status["lastState"]["terminated"];
    let mut finding = finding;
    if let Some(ended) = ended(last) {
        finding = finding.detail(format!("the last time: {ended}"));
    }
    if let Some(count) = status["restartCount"].as_i64().filter(|count| *count > 0) {
        finding = finding.detail(format!("it was started again {count} times"));
    }
    for warning in warnings(&around.events).iter().filter(|warning| warning.starts_with("Unhealthy")) {
        finding = finding.detail(warning);
    }
    if let Some(words) = around.last_words.get(called).filter(|words| !words.is_empty()) {
        finding = finding.detail(format!("its last words:\n{words}"));
    }
    if text(last, "reason") == "OOMKilled" || text(&status["state"]["terminated"], "reason") == "OOMKilled" {
        let limit = text(&container(pod, called)["resources"]["limits"], "memory");
        return finding.way_out(format!(
            "raise resources.limits.memory of container {called} (it is {limit}), or have it use less"
        ));
    }
    let probed = around.events.iter().any(|event| {
        event["reason"] == "Killing" && text(event, "message").contains("failed liveness probe")
    });
    if probed {
        return finding.way_out(format!("the liveness probe of container {called} ends it: does it answer there, in time? A slow start wants a startupProbe"));
    }
    finding.way_out(format!("`decapod logs {} -c {called} --previous` shows all that it wrote", name(pod)))
}

/// A container that runs and is not ready.
fn not_ready(pod: &Value, status: &Value, around: &Around, now: Timestamp) -> Finding {
    let called = name_of(status);
    let spec = container(pod, called);
    let runs = since(&status["state"]["running"]["startedAt"], now);
    let (probe, what) = match status["started"] == false && spec["startupProbe"].is_object() {
        true => ("startupProbe", "has not passed its startup probe"),
        false => ("readinessProbe", "is not ready"),
    };
    let mut finding = Finding::new(format!("container {called} {what}; it runs for {runs}"));
    finding = finding.detail(asked(&spec[probe]));
    let failures = warnings(&around.events);
    for warning in failures.iter().filter(|warning| warning.starts_with("Unhealthy")) {
        finding = finding.detail(warning);
    }
    if status["restartCount"].as_i64().is_some_and(|count| count > 0) {
        return restarts(finding, pod, status, around);
    }
    finding.way_out(format!(
        "what the {probe} asks must answer inside the container: `decapod exec {} -c {called} -- …` tries it",
        name(pod)
    ))
}

/// What a probe asks.
fn asked(probe: &Value) -> String {
    let port =
        |action: &Value| action["port"].as_str().map_or_else(|| action["port"].to_string(), str::to_owned);
    if let Some(get) = probe.get("httpGet") {
        let path = if text(get, "path").is_empty() { "/" } else { text(get, "path") };
        return format!("its probe gets {path} on port {}", port(get));
    }
    if let Some(connect) = probe.get("tcpSocket") {
        return format!("its probe connects to port {}", port(connect));
    }
    if let Some(grpc) = probe.get("grpc") {
        return format!("its probe asks the gRPC health service on port {}", port(grpc));
    }
    let command: Vec<&str> = list(&probe["exec"]["command"]).filter_map(Value::as_str).collect();
    if command.is_empty() { String::new() } else { format!("its probe runs {}", command.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-11-22T18:00:00Z".parse().unwrap()
    }

    fn around() -> Around {
        let node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        Around { node: Some(node), ..Around::default() }
    }

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "web"}, "status": {"phase": "Running", "containerStatuses": [status]},
            "spec": {"nodeName": "n", "containers": [{"name": "app", "image": "web:1",
                "resources": {"limits": {"memory": "64Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}}}]}})
    }

    #[test]
    fn a_container_that_ends_again_and_again_is_explained_by_its_end() {
        let status = |reason: &str, code: i32| {
            json!({"name": "app", "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": code, "reason": reason}}})
        };
        let mut around = around();
        around.last_words.insert("app".to_owned(), "no database\ngiving up".to_owned());
        let crashing = pod(status("Error", 1));
        assert_eq!(restarting(&crashing), ["app"]);
        let found = findings(&crashing, &around, now());
        assert_eq!(found[0].what, "container app ends again and again");
        assert_eq!(
            found[0].details,
            [
                "the last time: exit code 1",
                "it was started again 4 times",
                "its last words:\nno database\ngiving up"
            ]
        );
        assert!(found[0].way_out.as_ref().unwrap().contains("--previous"));
        let killed = findings(&pod(status("OOMKilled", 137)), &around, now());
        assert!(killed[0].way_out.as_ref().unwrap().contains("64Mi"), "{killed:?}");
        around.events = vec![json!({"type": "Normal", "reason": "Killing",
            "message": "Container app failed liveness probe, will be restarted"})];
        let probed = findings(&pod(status("Error", 143)), &around, now());
        assert!(probed[0].way_out.as_ref().unwrap().contains("liveness probe"), "{probed:?}");
    }

    #[test]
    fn a_container_that_is_not_ready_is_explained_by_its_probe() {
        let status = json!({"name": "app", "ready": false, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-11-22T17:59:00Z"}}});
        let mut around = around();
        around.events =
            vec![json!({"type": "Warning", "reason": "Unhealthy", "message": "Readiness probe failed: 503"})];
        let found = findings(&pod(status), &around, now());
        assert_eq!(found[0].what, "container app is not ready; it runs for 60 s");
        assert_eq!(
            found[0].details,
            ["its probe gets /ready on port 8080", "Unhealthy: Readiness probe failed: 503"]
        );
    }

    #[test]
    fn images_and_what_is_missing_are_named() {
        let waiting = |reason: &str| {
            pod(json!({"name": "app", "state": {"waiting": {"reason": reason, "message": "m"}}}))
        };
        let found = findings(&waiting("ImagePullBackOff"), &around(), now());
        assert!(found[0].what.contains("image web:1 of container app"), "{found:?}");
        let found = findings(&waiting("CreateContainerConfigError"), &around(), now());
        assert!(found[0].way_out.as_ref().unwrap().contains("ConfigMap"));
    }

    #[test]
    fn a_pod_that_is_fine_has_nothing_in_its_way() {
        let fine = pod(json!({"name": "app", "ready": true, "state": {"running": {}}}));
        assert!(findings(&fine, &around(), now()).is_empty());
        let lost = findings(&fine, &Around::default(), now());
        assert!(lost[0].what.contains("does not exist"), "{lost:?}");
    }

    #[test]
    fn a_pod_without_a_node_repeats_the_scheduler() {
        let pod = json!({"spec": {}, "status": {"conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient cpu."}]}});
        let found = findings(&pod, &Around::default(), now());
        assert_eq!(found[0].details, ["Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."]);
    }
}
