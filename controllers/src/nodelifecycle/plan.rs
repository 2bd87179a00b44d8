//! What becomes of a node that is heard of, or not, and of the pods on it: pure decisions.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The conditions that this controller keeps pods away for, and the taints that do it.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// The conditions that a kubelet reports, and nobody else knows when it is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The node's condition of a type.
fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// What the node says of itself: `True`, `False` or `Unknown`.
pub(super) fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |condition| condition.status.as_str())
}

/// The conditions of a node that has fallen silent, where they do not say so yet.
pub(super) fn silent_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let known = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut conditions = known.clone();
    for type_ in REPORTED {
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                "Unknown".clone_into(&mut condition.status);
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            None => conditions.push(NodeCondition {
                type_: type_.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    (conditions != known).then_some(conditions)
}

/// The taints that the node's conditions call for, where they differ from those that it has. Evictions
/// stop where `evicts` is false: if no node is heard of, it is rather us who are cut off.
pub(super) fn taints(node: &Node, evicts: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.clone().unwrap_or_default();
    let known = spec.taints.unwrap_or_default();
    let readiness = readiness(node);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let by_readiness = match readiness {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    if let Some(key) = by_readiness {
        wanted.push((key, "NoSchedule"));
        if evicts {
            wanted.push((key, "NoExecute"));
        }
    }
    let is_pressed = |type_: &str| condition(node, type_).is_some_and(|one| one.status == "True");
    wanted
        .extend(PRESSURES.iter().filter(|(type_, _)| is_pressed(type_)).map(|(_, key)| (*key, "NoSchedule")));
    if spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is_managed = |taint: &Taint| {
        let keys = PRESSURES.iter().map(|(_, key)| *key).chain([UNSCHEDULABLE]);
        let hard = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
            && ["NoSchedule", "NoExecute"].contains(&taint.effect.as_str());
        hard || (taint.effect == "NoSchedule" && keys.into_iter().any(|key| taint.key == key))
    };
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> =
        known.iter().filter(|taint| !is_managed(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in &wanted {
        if !taints.iter().any(|taint| taint.key == *key && taint.effect == *effect) {
            let time_added = (*effect == "NoExecute").then_some(Time(now));
            let (key, effect) = ((*key).to_owned(), (*effect).to_owned());
            taints.push(Taint { key, effect, time_added, value: None });
        }
    }
    (taints != known).then_some(taints)
}

/// Whether pods are driven away from the node already because it is not ready.
pub(super) fn is_being_emptied(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints
        .into_iter()
        .any(|taint| taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()))
}

/// When a pod has to leave its node because of `NoExecute` taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    /// It may stay.
    Never,
    Now,
    /// It is tolerated for this time still.
    In(Duration),
}

/// Whether and when the taints of its node drive a pod away.
pub(super) fn eviction(pod: &Pod, taints: &[Taint], now: Timestamp) -> Eviction {
    if pod.metadata.deletion_timestamp.is_some() {
        return Eviction::Never;
    }
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
    let mut soonest = Eviction::Never;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let tolerating: Vec<_> = tolerations.iter().filter(|one| tolerates(one, taint)).collect();
        if tolerating.is_empty() {
            return Eviction::Now;
        }
        // The shortest of the times that are limited; without any, for ever.
        let Some(seconds) = tolerating.iter().filter_map(|one| one.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let tolerated = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        match tolerated.checked_sub(passed).filter(|left| !left.is_zero()) {
            None => return Eviction::Now,
            Some(left) => {
                soonest = match soonest {
                    Eviction::In(known) => Eviction::In(known.min(left)),
                    _ => Eviction::In(left),
                };
            }
        }
    }
    soonest
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus, PodSpec};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn node(ready: &str) -> Node {
        let condition =
            NodeCondition { type_: "Ready".into(), status: ready.into(), ..NodeCondition::default() };
        let status = NodeStatus { conditions: Some(vec![condition]), ..NodeStatus::default() };
        Node { spec: Some(NodeSpec::default()), status: Some(status), ..Node::default() }
    }

    fn names(taints: Option<Vec<Taint>>) -> Vec<String> {
        taints.unwrap().iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
    }

    #[test]
    fn silence_is_told_once() {
        let mut node = node("True");
        let conditions = silent_conditions(&node, at(9)).unwrap();
        assert!(conditions.iter().all(|condition| condition.status == "Unknown"));
        assert_eq!(conditions[0].message.as_deref(), Some("Kubelet stopped posting node status."));
        assert_eq!(conditions[1].message.as_deref(), Some("Kubelet never posted node status."));
        node.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(silent_conditions(&node, at(10)), None);
    }

    #[test]
    fn taints_follow_the_conditions() {
        assert_eq!(taints(&node("True"), true, at(0)), None);
        let unreachable =
            ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
        assert_eq!(names(taints(&node("Unknown"), true, at(0))), unreachable);
        assert_eq!(names(taints(&node("Unknown"), false, at(0))), unreachable[..1]);
        let mut recovered = node("True");
        let mine = Taint { key: "mine".into(), effect: "NoExecute".into(), ..Taint::default() };
        let mut old = taints(&node("False"), true, at(0)).unwrap();
        old.push(mine.clone());
        recovered.spec.as_mut().unwrap().taints = Some(old);
        assert_eq!(taints(&recovered, true, at(0)), Some(vec![mine]));
        let mut cordoned = node("True");
        cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
        assert_eq!(names(taints(&cordoned, true, at(0))), ["node.kubernetes.io/unschedulable:NoSchedule"]);
    }

    #[test]
    fn pods_stay_as_long_as_they_tolerate() {
        let taint = taints(&node("Unknown"), true, at(100)).unwrap();
        let pod = |tolerations: Vec<Toleration>| {
            let spec = PodSpec { tolerations: Some(tolerations), ..PodSpec::default() };
            Pod { spec: Some(spec), ..Pod::default() }
        };
        let toleration = |seconds| Toleration {
            key: Some(UNREACHABLE.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            value: None,
        };
        assert_eq!(eviction(&pod(vec![]), &taint, at(100)), Eviction::Now);
        assert_eq!(eviction(&pod(vec![toleration(None)]), &taint, at(100)), Eviction::Never);
        let limited = pod(vec![toleration(Some(300)), toleration(None)]);
        assert_eq!(eviction(&limited, &taint, at(150)), Eviction::In(Duration::from_secs(250)));
        assert_eq!(eviction(&limited, &taint, at(400)), Eviction::Now);
        assert_eq!(eviction(&limited, &[], at(400)), Eviction::Never);
    }
}
