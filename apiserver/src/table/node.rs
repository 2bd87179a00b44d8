//! The row of a node.

use jiff::Timestamp;
use serde_json::Value;

use super::printers::{NONE, age, name, or_text, plain};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

pub(super) fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = &node["status"]["nodeInfo"];
    vec![
        name(node),
        status(node).into(),
        roles(node).into(),
        age(node, now),
        or_text(&info["kubeletVersion"], "<unknown>"),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        or_text(&info["osImage"], "<unknown>"),
        or_text(&info["kernelVersion"], "<unknown>"),
        or_text(&info["containerRuntimeVersion"], "<unknown>"),
    ]
}

fn status(node: &Value) -> String {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
    let mut words = vec![match ready.map(|c| plain(&c["status"])).as_deref() {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if node["spec"]["unschedulable"] == Value::Bool(true) {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object();
    let mut roles: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) if !role.is_empty() => Some(role.to_owned()),
            None if key == ROLE_LABEL => Some(plain(value)),
            _ => None,
        })
        .collect();
    roles.sort();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

fn address(node: &Value, kind: &str) -> String {
    let mut addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    addresses.find(|a| a["type"] == kind).map_or_else(|| NONE.to_owned(), |a| plain(&a["address"]))
}

#[cfg(test)]
mod tests {
    use crate::registry::core;
    use crate::table::printers::shown;
    use serde_json::json;

    #[test]
    fn a_cordoned_control_plane() {
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2027-01-15T07:59:00Z",
                "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "o", "kernelVersion": "k", "containerRuntimeVersion": "c"}}});
        assert_eq!(
            shown(core("nodes"), &node),
            [
                "n",
                "Ready,SchedulingDisabled",
                "control-plane",
                "60s",
                "v1.36.0",
                "10.0.0.1",
                "<none>",
                "o",
                "k",
                "c"
            ]
        );
    }
}
