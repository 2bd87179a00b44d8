//! The row of a pod: its status in a word.

use decapod_api::meta;
use decapod_api::resource::Resource;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::since;
use super::printers::{NONE, age, name, or_text, plain};

/// The reason of a pod's status when its node is gone.
const NODE_LOST: &str = "NodeLost";

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let status = &pod["status"];
    let ip = status["podIPs"][0]["ip"].as_str().or(status["podIP"].as_str()).unwrap_or_default();
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.clone().into(),
        summary.restarts(now).into(),
        age(pod, now),
        if ip.is_empty() { NONE.into() } else { ip.into() },
        or_text(&pod["spec"]["nodeName"], NONE),
        or_text(&status["nominatedNodeName"], NONE),
        gates(pod).into(),
    ]
}

/// Completed pods are shown greyed by clients that know row conditions.
pub(super) fn row_conditions(resource: &Resource, object: &Value) -> Value {
    if resource.plural != "pods" || !resource.group.is_empty() {
        return Value::Null;
    }
    match object["status"]["phase"].as_str() {
        Some("Succeeded") => {
            json!([{"type": "Completed", "status": "True", "reason": "Succeeded", "message": "The pod has completed successfully."}])
        }
        Some("Failed") => {
            json!([{"type": "Completed", "status": "True", "reason": "Failed", "message": "The pod failed."}])
        }
        _ => Value::Null,
    }
}

fn gates(pod: &Value) -> String {
    let Some(gates) = pod["spec"]["readinessGates"].as_array().filter(|g| !g.is_empty()) else {
        return NONE.to_owned();
    };
    let conditions = pod["status"]["conditions"].as_array();
    let passed = gates.iter().filter(|gate| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
    });
    format!("{}/{}", passed.count(), gates.len())
}

struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let containers = spec["containers"].as_array().map_or(0, Vec::len);
        let sidecars = list(&spec["initContainers"]).filter(|c| c["restartPolicy"] == "Always").count();
        let reason = status["reason"].as_str().filter(|r| !r.is_empty());
        let mut summary = Self {
            reason: reason.or(status["phase"].as_str()).unwrap_or("Unknown").to_owned(),
            ready: 0,
            total: containers + sidecars,
            restarts: 0,
            last_restart: None,
        };
        let gated = list(&status["conditions"])
            .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
        if gated {
            summary.reason = "SchedulingGated".to_owned();
        }
        let initializing = summary.init_containers(pod);
        let initialized =
            list(&status["conditions"]).any(|c| c["type"] == "Initialized" && c["status"] == "True");
        if !initializing || initialized {
            summary.containers(pod);
        }
        summary.deletion(pod);
        summary
    }

    fn restart(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        let finished = status["lastState"]["terminated"]["finishedAt"].as_str();
        if let Some(finished) = finished
            && self.last_restart.as_deref().is_none_or(|last| last < finished)
        {
            self.last_restart = Some(finished.to_owned());
        }
    }

    /// Looks at the init containers; true if they are still at work.
    fn init_containers(&mut self, pod: &Value) -> bool {
        let specs: Vec<&Value> = list(&pod["spec"]["initContainers"]).collect();
        let (before, mut sidecar_restarts) = (self.restarts, 0);
        for (index, status) in list(&pod["status"]["initContainerStatuses"]).enumerate() {
            let spec = specs.iter().find(|s| s["name"] == status["name"]);
            let sidecar = spec.is_some_and(|s| s["restartPolicy"] == "Always");
            self.restart(status);
            if sidecar {
                sidecar_restarts += status["restartCount"].as_i64().unwrap_or(0);
            }
            let state = &status["state"];
            let exit = state["terminated"]["exitCode"].as_i64();
            if exit == Some(0) {
                continue;
            }
            if sidecar && status["started"] == Value::Bool(true) {
                self.ready += usize::from(status["ready"] == Value::Bool(true));
                continue;
            }
            let waiting =
                state["waiting"]["reason"].as_str().filter(|r| !matches!(*r, "" | "PodInitializing"));
            self.reason = match (exit, waiting) {
                (Some(code), _) => format!("Init:{}", terminated(&state["terminated"], code)),
                (None, Some(reason)) => format!("Init:{reason}"),
                (None, None) => format!("Init:{index}/{}", specs.len()),
            };
            return true;
        }
        // Once the pod is initialized, only its sidecars' restarts count.
        self.restarts = before + sidecar_restarts;
        false
    }

    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        let mut reason = None;
        for status in list(&pod["status"]["containerStatuses"]).collect::<Vec<_>>().into_iter().rev() {
            self.restart(status);
            let state = &status["state"];
            let waiting = state["waiting"]["reason"].as_str().filter(|r| !r.is_empty());
            if let Some(waiting) = waiting {
                reason = Some(waiting.to_owned());
            } else if state["terminated"].is_object() {
                let code = state["terminated"]["exitCode"].as_i64().unwrap_or(0);
                reason = Some(terminated(&state["terminated"], code));
            } else if status["ready"] == Value::Bool(true) && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if let Some(reason) = reason {
            self.reason = reason;
        }
        // Some are done and others run on.
        if self.reason == "Completed" && running {
            let ready =
                list(&pod["status"]["conditions"]).any(|c| c["type"] == "Ready" && c["status"] == "True");
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn deletion(&mut self, pod: &Value) {
        if !meta::deleting(pod) {
            return;
        }
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if pod["status"]["reason"] == NODE_LOST {
            self.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            self.reason = "Terminating".to_owned();
        }
    }

    fn restarts(&self, now: Timestamp) -> String {
        match &self.last_restart {
            Some(last) if self.restarts > 0 => {
                format!("{} ({} ago)", self.restarts, since(&Value::from(last.as_str()), now))
            }
            _ => self.restarts.to_string(),
        }
    }
}

fn terminated(state: &Value, code: i64) -> String {
    let reason = plain(&state["reason"]);
    let signal = state["signal"].as_i64().unwrap_or(0);
    match (reason.is_empty(), signal) {
        (false, _) => reason,
        (true, 0) => format!("ExitCode:{code}"),
        (true, signal) => format!("Signal:{signal}"),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(status: Value, spec: Value) -> (String, String) {
        let mut pod = json!({"metadata": {}, "spec": spec, "status": status});
        if pod["spec"]["containers"].is_null() {
            pod["spec"]["containers"] = json!([{"name": "c"}]);
        }
        let summary = Summary::of(&pod);
        (format!("{}/{}", summary.ready, summary.total), summary.reason)
    }

    fn is(status: Value, ready: &str, reason: &str) {
        assert_eq!(summary(status.clone(), json!({})), (ready.to_owned(), reason.to_owned()), "{status}");
    }

    #[test]
    fn the_word_for_a_pod() {
        is(json!({"phase": "Pending"}), "0/1", "Pending");
        is(
            json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]}),
            "1/1",
            "Running",
        );
        is(
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
            "0/1",
            "ImagePullBackOff",
        );
        is(
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            "0/1",
            "ExitCode:3",
        );
        is(
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
            "0/1",
            "Completed",
        );
        is(json!({"phase": "Failed", "reason": "Evicted"}), "0/1", "Evicted");
    }

    #[test]
    fn init_containers_and_sidecars() {
        let spec = json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]});
        let status =
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]});
        assert_eq!(summary(status, spec.clone()), ("0/2".into(), "Init:0/2".into()));
        let status = json!({"phase": "Running", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
            "containerStatuses": [{"ready": true, "state": {"running": {}}}]});
        assert_eq!(summary(status, spec), ("2/2".into(), "Running".into()));
    }

    #[test]
    fn restarts_say_when() {
        let pod = json!({"metadata": {"deletionTimestamp": "x"}, "spec": {"containers": [{}]}, "status": {"phase": "Running", "containerStatuses": [
            {"restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"finishedAt": "2027-01-15T07:59:00Z"}}}]}});
        let summary = Summary::of(&pod);
        assert_eq!(summary.restarts("2027-01-15T08:00:00Z".parse().unwrap()), "2 (60s ago)");
        assert_eq!(summary.reason, "Terminating");
    }
}
