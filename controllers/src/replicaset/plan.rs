//! What a ReplicaSet needs: pure decisions about pods to create and to delete, and about its status.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::kinds::Wanted;
use crate::common::batch::BURST;
use crate::common::condition;
use crate::common::pods::{self, Availability};
use crate::common::template;

/// What its owner gives a pod that he would rather lose than others.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What has to be done about the number of pods.
#[derive(Debug)]
pub(super) enum Scale {
    /// Nothing.
    Enough,
    /// Create so many.
    Create(usize),
    /// Delete these.
    Delete(Vec<Arc<Pod>>),
}

/// Compares the wanted with the active pods. `neighbours` are the active pods of all ReplicaSets of the
/// same owner: pods on crowded nodes go first.
pub(super) fn scale(
    wanted: Wanted<'_>,
    active: &[Arc<Pod>],
    neighbours: &[Arc<Pod>],
    now: Timestamp,
) -> Scale {
    let wanted = usize::try_from(wanted.replicas).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Equal => Scale::Enough,
        Ordering::Less => Scale::Create((wanted - active.len()).min(BURST)),
        Ordering::Greater => {
            let excess = (active.len() - wanted).min(BURST);
            Scale::Delete(rank(active, neighbours, now).into_iter().take(excess).collect())
        }
    }
}

/// The pods in the order in which they should go, as Kubernetes ranks them: unbound before bound, pending
/// before running, unready before ready, cheap before dear, crowded before lonely, and of ages only the
/// magnitude, so that the choice among pods of about the same age is even.
fn rank(active: &[Arc<Pod>], neighbours: &[Arc<Pod>], now: Timestamp) -> Vec<Arc<Pod>> {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in neighbours {
        *crowd.entry(pods::node_name(pod)).or_default() += 1;
    }
    let mut ranked = active.to_vec();
    ranked.sort_by_cached_key(|pod| {
        (
            pods::progress(pod),
            deletion_cost(&pod.metadata),
            Reverse(crowd.get(pods::node_name(pod)).copied().unwrap_or(0)),
            magnitude(pods::ready_since(pod), now),
            Reverse(pods::restarts(pod)),
            magnitude(pod.metadata.creation_timestamp.as_ref().map(|time| time.0), now),
            pod.metadata.uid.clone(),
        )
    });
    ranked
}

fn deletion_cost(meta: &ObjectMeta) -> i32 {
    let cost = meta.annotations.as_ref().and_then(|annotations| annotations.get(DELETION_COST));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// The age as a power of two of nanoseconds; an unknown time counts as newest.
fn magnitude(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let age = since.map_or(0, |since| now.duration_since(since).as_nanos().max(0));
    age.checked_ilog2().map_or(0, |power| power + 1)
}

/// A step that failed, as the condition `ReplicaFailure` tells it.
#[derive(Debug)]
pub(super) struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The status that these pods amount to, and when a pod becomes available by the mere passing of time.
pub(super) fn status(
    (wanted, generation): (Wanted<'_>, Option<i64>),
    old: ReplicaSetStatus,
    claimed: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let meta = wanted.template.and_then(|template| template.metadata.as_ref());
    let labels = meta.and_then(|meta| meta.labels.as_ref());
    let fully_labeled = |pod: &&Arc<Pod>| {
        let own = pod.metadata.labels.as_ref();
        let has = |(key, value): (&String, &String)| own.and_then(|own| own.get(key)) == Some(value);
        labels.is_none_or(|labels| labels.iter().all(has))
    };
    let active: Vec<_> = claimed.iter().filter(|pod| pods::is_active(pod)).collect();
    let terminating =
        claimed.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !pods::is_terminal(pod));
    let availabilities: Vec<_> =
        active.iter().map(|pod| pods::availability(pod, wanted.min_ready_seconds, now)).collect();
    let soonest = availabilities.iter().filter_map(|availability| match availability {
        Availability::In(left) => Some(*left),
        _ => None,
    });
    let mut conditions = old.conditions.unwrap_or_default();
    match failure {
        Some(failure) => {
            let Failure { reason, message } = failure;
            let condition: ReplicaSetCondition =
                condition::Condition::new("ReplicaFailure", "True", reason, message, now);
            condition::set(&mut conditions, condition);
        }
        None => condition::remove(&mut conditions, "ReplicaFailure"),
    }
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: Some(count(active.iter().copied().filter(fully_labeled).count())),
        ready_replicas: Some(count(active.iter().filter(|pod| pods::is_ready(pod)).count())),
        available_replicas: Some(count(
            availabilities.iter().filter(|one| **one == Availability::Available).count(),
        )),
        terminating_replicas: wanted.tells_terminating.then(|| count(terminating.count())),
        observed_generation: generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    };
    (status, soonest.min())
}

/// Whether two statuses say the same: an absent number is a zero, as the API server may drop zeros.
pub(super) fn status_equals(one: &ReplicaSetStatus, other: &ReplicaSetStatus) -> bool {
    let numbers = |status: &ReplicaSetStatus| {
        let number = |field: Option<i32>| field.unwrap_or(0);
        (
            status.replicas,
            number(status.fully_labeled_replicas),
            number(status.ready_replicas),
            number(status.available_replicas),
            number(status.terminating_replicas),
            status.observed_generation,
        )
    };
    let conditions = |status: &ReplicaSetStatus| status.conditions.clone().unwrap_or_default();
    numbers(one) == numbers(other) && conditions(one) == conditions(other)
}

/// A pod as the template wants it, of the set whose metadata this is.
pub(super) fn pod(set: &ObjectMeta, wanted: Wanted<'_>, owner: OwnerReference) -> Pod {
    template::pod(set, wanted.template.cloned().unwrap_or_default(), owner)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::ResourceExt;

    use super::*;
    use crate::common::pods::testing::pod as running;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn set(replicas: i32, min_ready_seconds: i32) -> Wanted<'static> {
        Wanted { replicas, min_ready_seconds, template: None, tells_terminating: true }
    }

    fn deleted(scale: Scale) -> Vec<String> {
        match scale {
            Scale::Delete(pods) => pods.iter().map(|pod| pod.name_any()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn too_few_are_filled_up_in_bounded_steps() {
        assert!(matches!(scale(set(3, 0), &[], &[], at(0)), Scale::Create(3)));
        assert!(matches!(scale(set(3000, 0), &[], &[], at(0)), Scale::Create(BURST)));
        let pods = [Arc::new(running("a", None))];
        assert!(matches!(scale(set(1, 0), &pods, &pods, at(0)), Scale::Enough));
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let mut unbound = running("unbound", None);
        unbound.spec.as_mut().unwrap().node_name = None;
        let mut pending = running("pending", None);
        pending.status.as_mut().unwrap().phase = Some("Pending".into());
        let mut cheap = running("cheap", Some(at(10)));
        cheap.metadata.annotations = Some([(DELETION_COST.to_owned(), "-5".to_owned())].into());
        let mut crowded = running("crowded", Some(at(10)));
        crowded.spec.as_mut().unwrap().node_name = Some("n2".into());
        let pods: Vec<_> = [
            running("old", Some(at(10))),
            running("young", Some(at(9_999))),
            crowded.clone(),
            cheap,
            running("unready", None),
            pending,
            unbound,
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let mut neighbours = pods.clone();
        neighbours.extend((0..9).map(|_| Arc::new(crowded.clone())));
        let order = deleted(scale(set(0, 0), &pods, &neighbours, at(10_000)));
        assert_eq!(order, ["unbound", "pending", "unready", "cheap", "crowded", "young", "old"]);
    }

    #[test]
    fn of_the_same_rank_the_one_that_restarted_and_then_the_newer_goes() {
        let created = |name: &str, second: i64, restarts: i32| {
            let mut pod = running(name, Some(at(0)));
            pod.metadata.creation_timestamp = Some(Time(at(second)));
            let status =
                k8s_openapi::api::core::v1::ContainerStatus { restart_count: restarts, ..Default::default() };
            pod.status.as_mut().unwrap().container_statuses = Some(vec![status]);
            Arc::new(pod)
        };
        let pods = [created("old", 0, 0), created("new", 90_000, 0), created("restarted", 0, 3)];
        assert_eq!(deleted(scale(set(0, 0), &pods, &pods, at(100_000))), ["restarted", "new", "old"]);
    }

    #[test]
    fn status_counts_what_there_is_and_tells_when_more_is_available() {
        let mut deleting = running("deleting", Some(at(0)));
        deleting.metadata.deletion_timestamp = Some(Time(at(0)));
        let pods: Vec<_> =
            [running("a", Some(at(80))), running("b", Some(at(95))), running("c", None), deleting]
                .into_iter()
                .map(Arc::new)
                .collect();
        let (status, again) = status((set(3, 10), None), ReplicaSetStatus::default(), &pods, None, at(100));
        assert_eq!(
            (status.replicas, status.ready_replicas, status.available_replicas),
            (3, Some(2), Some(1))
        );
        assert_eq!(status.terminating_replicas, Some(1));
        assert_eq!(again, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let failure = Failure { reason: "FailedCreate", message: "quota".into() };
        let set = (set(1, 0), None);
        let (failed, _) = status(set, ReplicaSetStatus::default(), &[], Some(&failure), at(1));
        let conditions = failed.conditions.clone().unwrap();
        assert_eq!(
            (conditions[0].type_.as_str(), conditions[0].message.as_deref()),
            ("ReplicaFailure", Some("quota"))
        );
        let again = status(set, failed.clone(), &[], Some(&failure), at(2)).0;
        assert!(status_equals(&again, &failed), "no write without a change");
        assert_eq!(status(set, failed, &[], None, at(3)).0.conditions, None);
    }
}
