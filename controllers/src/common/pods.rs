//! Facts about pods on which counting, scaling and endpoints rest.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// The pod's phase; `Pending` where none was reported.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether all containers have ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as a replica: not ended, and nobody has asked for its end.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// The pod's condition of a type.
pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// Whether the pod is ready to serve.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when the pod has been ready; `None` if it is not.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    condition.last_transition_time.as_ref().map(|time| time.0)
}

/// When the pod is available: ready for `min_ready_seconds` without interruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    /// It is.
    Available,
    /// It will be after this time if it stays ready.
    In(Duration),
    /// It is not ready.
    NotReady,
}

/// Whether, or when, the pod is available.
pub(crate) fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    if !is_ready(pod) {
        return Availability::NotReady;
    }
    let needed = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    if needed.is_zero() {
        return Availability::Available;
    }
    let Some(since) = ready_since(pod) else { return Availability::NotReady };
    // A clock that was turned back makes the time negative: the pod is ready since just now.
    let ready_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    match needed.checked_sub(ready_for).filter(|left| !left.is_zero()) {
        Some(left) => Availability::In(left),
        None => Availability::Available,
    }
}

/// How far the pod has come: whether it is bound, its phase, and whether it is ready. Of those of which some have to go
/// the least goes first, as in Kubernetes.
pub(crate) fn progress(pod: &Pod) -> (bool, u8, bool) {
    let phase = match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    (!node_name(pod).is_empty(), phase, is_ready(pod))
}

/// The restarts of the pod's containers; of the one that restarted most.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

/// The node that the pod is bound to; empty if none.
pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod testing {
    //! Pods for the tests of the controllers.

    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    /// A running pod on the node `n1`, ready since `since` if given.
    pub(crate) fn pod(name: &str, since: Option<Timestamp>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.namespace = Some("ns".to_owned());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod.spec = Some(PodSpec { node_name: Some("n1".to_owned()), ..PodSpec::default() });
        let ready = PodCondition {
            type_: "Ready".to_owned(),
            status: if since.is_some() { "True" } else { "False" }.to_owned(),
            last_transition_time: since.map(Time),
            ..PodCondition::default()
        };
        let status = PodStatus {
            phase: Some("Running".to_owned()),
            conditions: Some(vec![ready]),
            ..PodStatus::default()
        };
        pod.status = Some(status);
        pod
    }
}

#[cfg(test)]
mod tests {
    use super::testing::pod;
    use super::*;

    #[test]
    fn a_pod_is_available_after_its_time() {
        let now = Timestamp::from_second(1_000).unwrap();
        let ready = pod("a", Some(Timestamp::from_second(990).unwrap()));
        assert_eq!(availability(&ready, 0, now), Availability::Available);
        assert_eq!(availability(&ready, 10, now), Availability::Available);
        assert_eq!(availability(&ready, 15, now), Availability::In(Duration::from_secs(5)));
        assert_eq!(availability(&pod("b", None), 0, now), Availability::NotReady);
        let future = pod("c", Some(Timestamp::from_second(2_000).unwrap()));
        assert_eq!(availability(&future, 15, now), Availability::In(Duration::from_secs(15)));
    }
}
