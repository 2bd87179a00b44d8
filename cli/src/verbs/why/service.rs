//! Why a Service leads nowhere.

use serde_json::Value;

use super::{Finding, condition, list, name, text, warnings};

/// What is around a Service.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// The pods that its selector finds.
    pub(super) selected: Vec<Value>,
    /// All pods of its namespace.
    pub(super) all: Vec<Value>,
    pub(super) slices: Vec<Value>,
    pub(super) events: Vec<Value>,
}

fn ready_endpoints(slices: &[Value]) -> usize {
    let endpoints = slices.iter().flat_map(|slice| list(&slice["endpoints"]));
    endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false).count()
}

/// What is in the way of a Service.
pub(super) fn findings(service: &Value, around: &Around) -> Vec<Finding> {
    let spec = &service["spec"];
    let mut findings = Vec::new();
    if text(spec, "type") == "ExternalName" {
        return findings;
    }
    let selector = spec["selector"].as_object().filter(|selector| !selector.is_empty());
    match selector {
        None if ready_endpoints(&around.slices) == 0 => findings.push(
            Finding::new("it has no selector, and nobody has made an EndpointSlice for it").way_out(format!(
                "make EndpointSlices with the label kubernetes.io/service-name={}",
                name(service)
            )),
        ),
        None => {}
        Some(_) if around.selected.is_empty() => findings.push(nobody(spec, around)),
        Some(_) => findings.extend(of_pods(spec, around)),
    }
    if text(spec, "type") == "LoadBalancer"
        && list(&service["status"]["loadBalancer"]["ingress"]).next().is_none()
    {
        let waits = Finding::new("it has no address of a load balancer yet");
        findings.push(warnings(&around.events).into_iter().fold(waits, Finding::detail));
    }
    findings
}

/// No pod has the labels: those that have some of them are likely meant.
fn nobody(spec: &Value, around: &Around) -> Finding {
    let wanted: Vec<(&str, &str)> = spec["selector"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
        .collect();
    let words: Vec<String> = wanted.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut finding = Finding::new(format!("no pod of its namespace has the labels {}", words.join(",")));
    for pod in &around.all {
        let has = |(key, value): &&(&str, &str)| pod["metadata"]["labels"][*key] == *value;
        let (have, lack): (Vec<_>, Vec<_>) = wanted.iter().partition(|pair| has(pair));
        if !have.is_empty() || lack.iter().any(|(key, _)| pod["metadata"]["labels"][*key].is_string()) {
            let lack: Vec<String> = lack
                .iter()
                .map(|(key, value)| match pod["metadata"]["labels"][*key].as_str() {
                    Some(other) => format!("has {key}={other} in place of {value}"),
                    None => format!("lacks {key}"),
                })
                .collect();
            finding = finding.detail(format!("pod {} {}", name(pod), lack.join(", ")));
        }
    }
    finding.way_out("spec.selector must be labels that the pods' template has")
}

fn of_pods(spec: &Value, around: &Around) -> Vec<Finding> {
    let mut findings = Vec::new();
    if ready_endpoints(&around.slices) == 0 {
        let mut finding = Finding::new(format!("none of its {} pods is ready", around.selected.len()));
        for pod in &around.selected {
            let ready = condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True");
            let state = if ready { "is ready" } else { "is not ready" };
            finding =
                finding.detail(format!("pod {} {state} ({})", name(pod), text(&pod["status"], "phase")));
        }
        let first = around.selected.iter().map(name).next().unwrap_or_default();
        findings.push(finding.way_out(format!("`decapod why pod/{first}`")));
    }
    for port in list(&spec["ports"]) {
        findings.extend(wrong_port(port, around));
    }
    findings
}

/// The port of the pods that a port of the Service means is nowhere declared.
fn wrong_port(port: &Value, around: &Around) -> Option<Finding> {
    let target = if port["targetPort"].is_null() { &port["port"] } else { &port["targetPort"] };
    let declared: Vec<&Value> = around
        .selected
        .iter()
        .flat_map(|pod| list(&pod["spec"]["containers"]).flat_map(|container| list(&container["ports"])))
        .collect();
    let fits = |declared: &&Value| match target.as_str() {
        Some(name) => declared["name"] == name,
        None => declared["containerPort"] == *target,
    };
    // Who declares no ports says nothing about them.
    if declared.is_empty() && target.is_number() || declared.iter().any(fits) {
        return None;
    }
    let shown = target.as_str().map_or_else(|| target.to_string(), str::to_owned);
    let mut known: Vec<String> = declared
        .iter()
        .map(|port| format!("{} {}", port["containerPort"], text(port, "name")).trim().to_owned())
        .collect();
    known.dedup();
    Some(
        Finding::new(format!("its port {} leads to {shown}, which its pods do not declare", port["port"]))
            .detail(if known.is_empty() {
                String::new()
            } else {
                format!("they declare {}", known.join(", "))
            })
            .way_out("targetPort must be the number or the name of the port on which the containers listen"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Value {
        json!({"metadata": {"name": "web"}, "spec": {"type": "ClusterIP", "selector": {"app": "web", "tier": "front"},
            "ports": [{"port": 80, "targetPort": "http"}]}})
    }

    fn pod(labels: Value, port: &str) -> Value {
        json!({"metadata": {"name": "web-1", "labels": labels}, "status": {"phase": "Running"},
            "spec": {"containers": [{"ports": [{"name": port, "containerPort": 8080}]}]}})
    }

    #[test]
    fn labels_that_differ_are_shown() {
        let around =
            Around { all: vec![pod(json!({"app": "web", "tier": "back"}), "http")], ..Around::default() };
        let found = findings(&service(), &around);
        assert!(found[0].what.contains("app=web,tier=front"), "{found:?}");
        assert_eq!(found[0].details, ["pod web-1 has tier=back in place of front"]);
    }

    #[test]
    fn pods_that_are_not_ready_and_ports_that_are_not_there_are_named() {
        let selected = vec![pod(json!({}), "web")];
        let around = Around { selected, ..Around::default() };
        let found = findings(&service(), &around);
        assert_eq!(found.len(), 2);
        assert!(found[0].what.contains("none of its 1 pods"));
        assert!(found[1].what.contains("leads to http"), "{found:?}");
        assert_eq!(found[1].details, ["they declare 8080 web"]);
    }

    #[test]
    fn one_that_leads_somewhere_is_fine() {
        let slices = vec![json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]})];
        let around = Around { selected: vec![pod(json!({}), "http")], slices, ..Around::default() };
        assert!(findings(&service(), &around).is_empty());
    }
}
