//! Why a node is not ready, or takes no pods.

use jiff::Timestamp;
use serde_json::Value;

use super::{Finding, condition, list, said, since, text, warnings};

/// Conditions that are bad when they are true.
const PRESSURES: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"];

/// What is wrong with a node that has so many pods.
pub(super) fn findings(
    node: &Value,
    lease: &Value,
    pods: usize,
    events: &[Value],
    now: Timestamp,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    match condition(node, "Ready") {
        Some(ready) if ready["status"] == "True" => {}
        Some(ready) if ready["status"] == "Unknown" => {
            let heard = match lease["spec"]["renewTime"].is_string() {
                true => {
                    format!("its agent was last heard of {} ago", since(&lease["spec"]["renewTime"], now))
                }
                false => "its agent was never heard of".to_owned(),
            };
            findings.push(
                Finding::new("nothing is heard of it")
                    .detail(heard)
                    .detail(said(ready))
                    .detail(format!("{pods} pods are bound to it: those that do not tolerate it run elsewhere soon"))
                    .way_out("on the machine: does the agent run (`systemctl status decapod-agent`), does it reach the server (its log says), is the clock right"),
            );
        }
        Some(ready) => findings.push(
            Finding::new(format!(
                "its agent says that it is not ready, for {}",
                since(&ready["lastTransitionTime"], now)
            ))
            .detail(said(ready))
            .way_out("the message names the part; the log of the agent says more"),
        ),
        None => findings.push(Finding::new("its agent has not said anything yet")),
    }
    for pressure in PRESSURES {
        if let Some(bad) = condition(node, pressure).filter(|bad| bad["status"] == "True") {
            findings.push(
                Finding::new(format!("{pressure}: it takes no new pods, and may evict some"))
                    .detail(said(bad)),
            );
        }
    }
    if node["spec"]["unschedulable"] == true {
        findings.push(
            Finding::new("it is cordoned: no new pods are put on it")
                .way_out(format!("`kubectl uncordon {}`", super::name(node))),
        );
    }
    let own = |taint: &&Value| !text(taint, "key").starts_with("node.kubernetes.io/");
    for taint in list(&node["spec"]["taints"]).filter(own) {
        findings.push(Finding::new(format!(
            "the taint {}={}:{} keeps pods away that do not tolerate it",
            text(taint, "key"),
            text(taint, "value"),
            text(taint, "effect")
        )));
    }
    if let Some(last) = findings.first_mut() {
        for warning in warnings(events) {
            *last = std::mem::take(last).detail(warning);
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn about(node: Value) -> Vec<Finding> {
        let lease = json!({"spec": {"renewTime": "2026-11-22T17:59:30.000000Z"}});
        findings(&node, &lease, 4, &[], "2026-11-22T18:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_silent_node_is_told_from_one_that_complains() {
        let with = |status: &str, message: &str| {
            json!({"metadata": {"name": "n"}, "status": {"conditions": [
            {"type": "Ready", "status": status, "reason": "R", "message": message}]}})
        };
        let silent = about(with("Unknown", "Kubelet stopped posting node status."));
        assert_eq!(silent[0].what, "nothing is heard of it");
        assert!(silent[0].details[0].contains("30 s ago"), "{silent:?}");
        let ill = about(with("False", "container runtime is down"));
        assert_eq!(ill[0].details, ["R: container runtime is down"]);
        assert!(about(with("True", "")).is_empty());
    }

    #[test]
    fn what_keeps_pods_away_is_named() {
        let node = json!({"metadata": {"name": "n"},
            "spec": {"unschedulable": true, "taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]}});
        let found: Vec<String> = about(node).into_iter().map(|finding| finding.what).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[2].contains("gpu=yes:NoSchedule"));
    }
}
