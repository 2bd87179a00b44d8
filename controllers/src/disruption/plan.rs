//! What a disruption budget allows, from the pods that it covers: pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::common::amount::{self, Round};
use crate::common::pods;

/// How long a pod whose eviction was granted counts as gone while it is still there, as in Kubernetes.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

const ALLOWED: &str = "DisruptionAllowed";

/// How many pods the budget's owners ask for, and how many of them must stay healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) expected: i32,
    pub(super) desired: i32,
}

/// What there is to do about a budget.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The status to be written, if it differs from the present one.
    pub(super) status: Option<PodDisruptionBudgetStatus>,
    /// When an unconfirmed eviction will have to be looked at again.
    pub(super) again: Option<Duration>,
    /// Pods whose eviction was granted and that were not deleted in time.
    pub(super) not_deleted: Vec<Arc<Pod>>,
}

/// Whether the budget's arithmetic rests on how many pods their owners want, rather than on how many
/// there are.
pub(super) fn counts_scales(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
    })
}

/// The budget's demand, given how many pods it covers and how many their owners want.
pub(super) fn demand(budget: &PodDisruptionBudget, covered: i32, scale: i32) -> Demand {
    let spec = budget.spec.clone().unwrap_or_default();
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => Demand {
            expected: scale,
            desired: (scale - amount::resolve(unavailable, scale, Round::Up)).max(0),
        },
        (None, Some(IntOrString::Int(number))) => Demand { expected: covered, desired: *number },
        (None, Some(percent)) => {
            Demand { expected: scale, desired: amount::resolve(percent, scale, Round::Up) }
        }
        (None, None) => Demand { expected: 0, desired: 0 },
    }
}

/// What the budget's status is to say.
pub(super) fn plan(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    demand: Demand,
    now: Timestamp,
) -> Outcome {
    let old = budget.status.clone().unwrap_or_default();
    let mut disrupted = BTreeMap::new();
    let mut not_deleted = Vec::new();
    let mut again: Option<Duration> = None;
    let mut healthy = 0;
    for pod in covered.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let name = pod.name_any();
        if let Some(at) = old.disrupted_pods.as_ref().and_then(|pods| pods.get(&name)) {
            let left = DELETION_TIMEOUT.saturating_sub(now.duration_since(at.0));
            if left >= SignedDuration::ZERO {
                let left = left.unsigned_abs();
                again = Some(again.map_or(left, |soonest| soonest.min(left)));
                disrupted.insert(name, at.clone());
                continue;
            }
            not_deleted.push(pod.clone());
        }
        healthy += i32::from(pods::is_ready(pod));
    }
    let spare = (healthy - demand.desired).max(0);
    let allowed = if demand.expected <= 0 { 0 } else { spare };
    let mut status = PodDisruptionBudgetStatus {
        conditions: old.conditions.clone(),
        current_healthy: Some(healthy),
        desired_healthy: Some(demand.desired),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(demand.expected),
        observed_generation: budget.metadata.generation,
    };
    let (value, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set_condition(&mut status, value, reason, "", now);
    Outcome { status: Some(status).filter(|status| *status != old), again, not_deleted }
}

/// The status of a budget whose demand cannot be found out: it allows nothing, and says why.
pub(super) fn failed(
    budget: &PodDisruptionBudget,
    why: &str,
    now: Timestamp,
) -> Option<PodDisruptionBudgetStatus> {
    let old = budget.status.clone().unwrap_or_default();
    let mut status = old.clone();
    status.disruptions_allowed = Some(0);
    set_condition(&mut status, "False", "SyncFailed", why, now);
    (status != old).then_some(status)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let mut condition = Condition {
        type_: ALLOWED.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: status.observed_generation,
        last_transition_time: Time(now),
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|known| known.type_ == ALLOWED) {
        Some(known) => {
            if known.status == condition.status {
                condition.last_transition_time = known.last_transition_time.clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

/// How long a mark of disruption stands on a pod that is not going after all, as in Kubernetes.
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(2);

/// When the mark of disruption of a pod has to be taken away, if it has one that somebody else than a
/// kubelet set.
pub(super) fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pod.metadata.deletion_timestamp.is_some() || pods::is_terminal(pod) {
        return None;
    }
    let mark = pods::condition(pod, "DisruptionTarget").filter(|mark| mark.status == "True")?;
    if mark.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = mark.last_transition_time.as_ref().map_or(now, |time| time.0);
    let left = STALE_AFTER.saturating_sub(now.duration_since(since));
    Some(Duration::try_from(left).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::common::pods::testing::pod;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn budget(spec: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b", "generation": 3}, "spec": spec})).unwrap()
    }

    fn covered(ready: usize, unready: usize) -> Vec<Arc<Pod>> {
        let some = (0..ready).map(|i| pod(&format!("ready-{i}"), Some(now())));
        some.chain((0..unready).map(|i| pod(&format!("unready-{i}"), None))).map(Arc::new).collect()
    }

    #[test]
    fn demands() {
        for (spec, covered, scale, expected, desired) in [
            (json!({"minAvailable": 2}), 3, 0, 3, 2),
            (json!({"minAvailable": "28%"}), 3, 10, 10, 3),
            (json!({"maxUnavailable": 1}), 3, 5, 5, 4),
            (json!({"maxUnavailable": "25%"}), 3, 5, 5, 3),
            (json!({"maxUnavailable": 9}), 3, 5, 5, 0),
            (json!({}), 3, 5, 0, 0),
        ] {
            let budget = budget(spec.clone());
            assert_eq!(demand(&budget, covered, scale), Demand { expected, desired }, "{spec}");
            assert_eq!(counts_scales(&budget), expected == scale && scale > 0, "{spec}");
        }
    }

    #[test]
    fn what_is_healthy_beyond_the_demand_may_be_disrupted() {
        let budget = budget(json!({"minAvailable": 2}));
        let demand = Demand { expected: 4, desired: 2 };
        let first = plan(&budget, &covered(3, 1), demand, now()).status.unwrap();
        assert_eq!((first.current_healthy, first.disruptions_allowed), (Some(3), Some(1)));
        assert_eq!(first.observed_generation, Some(3));
        assert_eq!(first.conditions.as_ref().unwrap()[0].reason, "SufficientPods");
        let mut seen = budget.clone();
        seen.status = Some(first);
        assert!(plan(&seen, &covered(3, 1), demand, Timestamp::MAX).status.is_none(), "nothing changed");
        let worse = plan(&seen, &covered(2, 2), demand, now()).status.unwrap();
        assert_eq!(
            (worse.disruptions_allowed, worse.conditions.unwrap()[0].status.as_str()),
            (Some(0), "False")
        );
        let none = plan(&seen, &[], Demand { expected: 0, desired: 0 }, now()).status.unwrap();
        assert_eq!(none.disruptions_allowed, Some(0));
    }

    #[test]
    fn an_eviction_counts_until_it_is_confirmed_or_forgotten() {
        let mut budget = budget(json!({"minAvailable": 1}));
        let before = |seconds| Time(now() - SignedDuration::from_secs(seconds));
        let disrupted = [("ready-0", 30), ("ready-1", 500), ("gone", 10)];
        let disrupted = disrupted.map(|(name, ago)| (name.to_owned(), before(ago)));
        budget.status = Some(PodDisruptionBudgetStatus {
            disrupted_pods: Some(disrupted.into()),
            ..PodDisruptionBudgetStatus::default()
        });
        let outcome = plan(&budget, &covered(3, 0), Demand { expected: 3, desired: 1 }, now());
        let status = outcome.status.unwrap();
        assert_eq!(status.current_healthy, Some(2), "ready-0 is about to go");
        assert_eq!(status.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["ready-0"]);
        assert_eq!(outcome.again, Some(Duration::from_secs(90)));
        assert_eq!(outcome.not_deleted.len(), 1);
    }

    #[test]
    fn what_cannot_be_counted_allows_nothing() {
        let mut budget = budget(json!({"maxUnavailable": 1}));
        let status = failed(&budget, "no scale", now()).unwrap();
        assert_eq!(
            (status.disruptions_allowed, status.conditions.as_ref().unwrap()[0].message.as_str()),
            (Some(0), "no scale")
        );
        budget.status = Some(status);
        assert!(failed(&budget, "no scale", Timestamp::MAX).is_none());
    }

    #[test]
    fn a_stale_mark_goes() {
        let mut pod = pod("p", Some(now()));
        assert_eq!(stale_in(&pod, now()), None);
        let mark = json!({"type": "DisruptionTarget", "status": "True", "lastTransitionTime": "2027-01-15T07:59:00Z"});
        let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions.push(serde_json::from_value(mark).unwrap());
        assert_eq!(stale_in(&pod, now()), Some(Duration::from_secs(60)));
        assert_eq!(stale_in(&pod, now() + SignedDuration::from_hours(1)), Some(Duration::ZERO));
    }
}
