//! Which pods nobody else can finish: pure decisions.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use crate::common::pods;

/// Pods that ended and are kept for whoever wants to look at them; Kubernetes' default.
pub(super) const ENDED_LIMIT: usize = 12_500;

/// The taint by which an operator declares that a node is down for good.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What becomes of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Others see to it.
    Stays,
    /// Its node does not exist; if that lasts, it goes.
    Orphaned,
    /// It goes now.
    Goes,
}

/// Decides by the node that the pod is bound to, as far as it is known.
pub(super) fn fate(pod: &Pod, node: Option<&Node>) -> Fate {
    let is_going = pod.metadata.deletion_timestamp.is_some();
    match node {
        _ if pods::node_name(pod).is_empty() => if_going(is_going),
        None => Fate::Orphaned,
        Some(node) => if_going(is_going && is_out_of_service(node)),
    }
}

fn if_going(goes: bool) -> Fate {
    if goes { Fate::Goes } else { Fate::Stays }
}

/// Whether nobody expects the node to finish anything: it is not ready, and declared out of service.
pub(super) fn is_out_of_service(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.filter(|one| one.type_ == "Ready").any(|one| one.status == "True");
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    !ready && taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// The pods that ended and are too many: evicted ones first, then the oldest.
pub(super) fn surplus(all: &[Arc<Pod>], limit: usize) -> Vec<Arc<Pod>> {
    let mut ended: Vec<_> = all.iter().filter(|pod| pods::is_terminal(pod)).cloned().collect();
    let excess = ended.len().saturating_sub(limit);
    if excess == 0 {
        return Vec::new();
    }
    ended.sort_by_cached_key(|pod| {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        let evicted = pods::phase(pod) == "Failed" && reason == Some("Evicted");
        (Reverse(evicted), pod.metadata.creation_timestamp.clone(), pod.name_any())
    });
    ended.truncate(excess);
    ended
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;

    fn node(ready: &str, taint: &str) -> Node {
        serde_json::from_value(json!({
            "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn only_what_nobody_else_can_finish_goes() {
        let running = pods::testing::pod("a", None);
        let mut leaving = running.clone();
        leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let mut unbound = leaving.clone();
        unbound.spec.as_mut().unwrap().node_name = None;
        assert_eq!(fate(&running, None), Fate::Orphaned);
        assert_eq!(fate(&unbound, None), Fate::Goes);
        assert_eq!(fate(&leaving, Some(&node("True", OUT_OF_SERVICE))), Fate::Stays, "the node works");
        assert_eq!(fate(&leaving, Some(&node("Unknown", "other"))), Fate::Stays, "it may come back");
        assert_eq!(fate(&leaving, Some(&node("Unknown", OUT_OF_SERVICE))), Fate::Goes);
        assert_eq!(fate(&running, Some(&node("Unknown", OUT_OF_SERVICE))), Fate::Stays, "nobody asked");
    }

    #[test]
    fn of_too_many_that_ended_evicted_and_old_ones_go() {
        let ended = |name: &str, second: i64, reason: &str| {
            let mut pod = pods::testing::pod(name, None);
            pod.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
            let status = pod.status.as_mut().unwrap();
            (status.phase, status.reason) = (Some("Failed".into()), Some(reason.to_owned()));
            Arc::new(pod)
        };
        let all = [ended("young", 30, ""), ended("old", 10, ""), ended("evicted", 20, "Evicted")];
        let names = |limit| surplus(&all, limit).iter().map(|pod| pod.name_any()).collect::<Vec<_>>();
        assert_eq!(names(1), ["evicted", "old"]);
        assert!(names(3).is_empty());
    }
}
