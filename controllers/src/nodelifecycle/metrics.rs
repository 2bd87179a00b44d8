//! What is counted of nodes, under Kubernetes' names.

use std::sync::LazyLock;

use decapod_client::metrics::register;
use k8s_openapi::api::core::v1::{Node, Taint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::zones::zone;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Zone {
    zone: String,
}

static EVICTIONS: LazyLock<Family<Zone, Counter>> = LazyLock::new(|| {
    let help = "Number of Node evictions that happened since current instance of NodeController started.";
    register("node_collector_evictions", help, Family::default())
});

/// The node was given these taints: if one of them drives pods away that the node did not have, it counts.
pub(super) fn tainted(node: &Node, taints: &[Taint]) {
    let drives = |taint: &&Taint| taint.effect == "NoExecute";
    let before = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let had = |taint: &Taint| before.iter().filter(drives).any(|one| one.key == taint.key);
    if taints.iter().filter(drives).any(|taint| !had(taint)) {
        EVICTIONS.get_or_create(&Zone { zone: zone(node) }).inc();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_new_evictions_count() {
        let taint = |effect: &str| json!({"key": "node.kubernetes.io/unreachable", "effect": effect});
        let node = |taints: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "tested"}},
                "spec": {"taints": taints}}))
            .unwrap()
        };
        let taints = |taints: serde_json::Value| -> Vec<Taint> { serde_json::from_value(taints).unwrap() };
        tainted(&node(json!([])), &taints(json!([taint("NoSchedule")])));
        tainted(&node(json!([])), &taints(json!([taint("NoSchedule"), taint("NoExecute")])));
        tainted(&node(json!([taint("NoExecute")])), &taints(json!([taint("NoExecute")])));
        let zone = Zone { zone: ":\0:tested".to_owned() };
        assert_eq!(EVICTIONS.get_or_create(&zone).get(), 1);
    }
}
