//! What becomes of a node that is heard of, or not, and of the pods on it: pure decisions.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::common::pods;

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

/// A taint that drives pods away, and since when: as it says itself, or as this process saw it first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Since {
    taint: Taint,
    at: Timestamp,
}

/// Brings what is known of a node's `NoExecute` taints up to date. Who taints a node by hand does not say when.
pub(super) fn note(known: &[Since], taints: &[Taint], now: Timestamp) -> Vec<Since> {
    let since = |taint: &Taint| {
        let told = taint.time_added.as_ref().map(|time| time.0);
        told.or_else(|| known.iter().find(|one| one.taint == *taint).map(|one| one.at)).unwrap_or(now)
    };
    let driving = taints.iter().filter(|taint| taint.effect == "NoExecute");
    driving.map(|taint| Since { at: since(taint), taint: taint.clone() }).collect()
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

/// A pod that tolerates all taints for some time has it from when it came to the tainted node, or the taint to it; of
/// several tolerations of one taint the first counts, as in Kubernetes.
pub(super) fn eviction(pod: &Pod, taints: &[Since], now: Timestamp) -> Eviction {
    if pod.metadata.deletion_timestamp.is_some() {
        return Eviction::Never;
    }
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let come = pods::condition(pod, "PodScheduled").and_then(|one| one.last_transition_time.as_ref());
    let come = come.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0);
    let mut soonest = Eviction::Never;
    for Since { taint, at } in taints {
        let Some(toleration) = tolerations.iter().find(|one| tolerates(one, taint)) else {
            return Eviction::Now;
        };
        let Some(seconds) = toleration.toleration_seconds else {
            continue;
        };
        let since = come.map_or(*at, |come| come.max(*at));
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
        let taint = note(&[], &taints(&node("Unknown"), true, at(100)).unwrap(), at(120));
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
        let mut limited = pod(vec![toleration(Some(300)), toleration(None)]);
        let left = |seconds| Eviction::In(Duration::from_secs(seconds));
        assert_eq!(eviction(&limited, &taint, at(150)), left(250));
        assert_eq!(eviction(&limited, &taint, at(400)), Eviction::Now);
        assert_eq!(eviction(&limited, &[], at(400)), Eviction::Never);
        // One that comes later has all of its time, too.
        limited.metadata.creation_timestamp = Some(Time(at(300)));
        assert_eq!(eviction(&limited, &taint, at(400)), left(200));
        let ever = pod(vec![toleration(None), toleration(Some(300))]);
        assert_eq!(eviction(&ever, &taint, at(400)), Eviction::Never);
    }

    #[test]
    fn a_taint_that_does_not_say_when_it_came_counts_from_when_it_was_seen() {
        let mine = Taint { key: "mine".into(), effect: "NoExecute".into(), ..Taint::default() };
        let other = Taint { key: "other".into(), effect: "NoSchedule".into(), ..Taint::default() };
        let known = note(&[], &[other.clone(), mine.clone()], at(100));
        assert_eq!(known, [Since { taint: mine.clone(), at: at(100) }]);
        assert_eq!(note(&known, std::slice::from_ref(&mine), at(150)), known);
        let tolerations = vec![Toleration {
            operator: Some("Exists".into()),
            toleration_seconds: Some(60),
            ..Toleration::default()
        }];
        let spec = PodSpec { tolerations: Some(tolerations), ..PodSpec::default() };
        let pod = Pod { spec: Some(spec), ..Pod::default() };
        assert_eq!(eviction(&pod, &known, at(150)), Eviction::In(Duration::from_secs(10)));
        assert_eq!(eviction(&pod, &known, at(160)), Eviction::Now);
        // Taken away and put on again, it counts anew.
        assert_eq!(note(&note(&known, &[other], at(151)), &[mine], at(152))[0].at, at(152));
    }
}
