//! DefaultPreemption: which pods of lower priority would have to go so that a pod finds a place, and where that costs
//! least.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::place::Place;
use super::plugins::{self, Prepared};
use super::pod::PodInfo;
use super::profile::Candidates;
use super::snapshot::Snapshot;

/// Why removing pods of lower priority from a node brings nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Useless(pub(crate) Vec<Cow<'static, str>>);

impl Useless {
    pub(crate) fn because(reason: &'static str) -> Self {
        Self(vec![reason.into()])
    }
}

/// No pod that goes would help.
pub(crate) const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// A node and the pods that would have to go from it, the most important first.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) node: String,
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// How many of them a disruption budget protects.
    pub(crate) violations: usize,
    /// Worked out once: a candidate that is kept is compared with others at many decisions.
    cost: Cost,
}

/// What is compared between candidates: the least is taken.
type Cost = (usize, i32, i64, usize, Reverse<Option<Timestamp>>);

impl Candidate {
    /// Budgets first, then the priorities, then how many, then how long the most important of them run.
    fn new(node: &str, victims: Vec<Arc<PodInfo>>, violations: usize) -> Self {
        let top = victims.first().map_or(i32::MIN, |victim| victim.priority);
        // Shifted so that none is negative: else more victims could cost less.
        let each = victims.iter().map(|victim| i64::from(victim.priority) + (1 << 31));
        let important = victims.iter().filter(|victim| victim.priority == top);
        let earliest = important.filter_map(|victim| started(victim)).min();
        let cost = (violations, top, each.sum(), victims.len(), Reverse(earliest));
        Self { node: node.to_owned(), victims, violations, cost }
    }
}

fn started(pod: &PodInfo) -> Option<Timestamp> {
    let started = pod.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    started.map(|time| time.0)
}

/// The order of importance: priority, and of equals what runs longer.
fn importance(pod: &PodInfo) -> (Reverse<i32>, Timestamp) {
    (Reverse(pod.priority), started(pod).unwrap_or(Timestamp::MAX))
}

/// A node with the pods that are nominated for it, and without them: the pod has to fit into both.
struct Thought<'a> {
    plain: Place<'a>,
    nominated: Option<Place<'a>>,
}

impl<'a> Thought<'a> {
    fn new(pod: &PodInfo, snapshot: &'a Snapshot, position: usize) -> Option<Self> {
        let plain = Place::new(snapshot.nodes().get(position)?, position);
        Some(Self { plain, nominated: snapshot.with_nominated(position, pod) })
    }

    fn take(&mut self, pod: &'a Arc<PodInfo>) {
        self.plain.take(pod);
        self.nominated.iter_mut().for_each(|place| place.take(pod));
    }

    fn put_back(&mut self, pod: &'a Arc<PodInfo>) {
        self.plain.put_back(pod);
        self.nominated.iter_mut().for_each(|place| place.put_back(pod));
    }

    fn fits(&self, pod: &PodInfo, prepared: &Prepared<'_>) -> Result<(), Useless> {
        let fits = |place| plugins::filter(pod, place, prepared).map_err(|why| Useless(why.reasons));
        self.nominated.as_ref().map_or(Ok(()), fits)?;
        fits(&self.plain)
    }
}

/// The fewest and least important pods that would have to go from the node at `position`.
///
/// # Errors
/// Why it would bring nothing.
pub(crate) fn on_node(
    pod: &PodInfo,
    snapshot: &Snapshot,
    prepared: &Prepared<'_>,
    position: usize,
) -> Result<Candidate, Useless> {
    let Some(mut thought) = Thought::new(pod, snapshot, position) else {
        return Err(Useless::because(NOT_HELPFUL));
    };
    let node = thought.plain.node;
    let mut lesser: Vec<_> = node.pods.values().filter(|other| other.priority < pod.priority).collect();
    if lesser.is_empty() {
        return Err(Useless::because(NO_VICTIMS));
    }
    lesser.iter().for_each(|other| thought.take(other));
    thought.fits(pod, prepared)?;
    lesser.sort_by(|one, other| (importance(one), &one.uid).cmp(&(importance(other), &other.uid)));
    let exceeded = snapshot.budgets().exceeded(&lesser);
    let protected = lesser.iter().zip(&exceeded).filter(|(_, exceeds)| **exceeds);
    let others = lesser.iter().zip(&exceeded).filter(|(_, exceeds)| !**exceeds);
    let (mut victims, mut violations) = (Vec::new(), 0);
    for (other, exceeds) in protected.chain(others) {
        thought.put_back(other);
        if thought.fits(pod, prepared).is_err() {
            thought.take(other);
            victims.push(Arc::clone(other));
            violations += usize::from(*exceeds);
        }
    }
    if victims.is_empty() {
        // It fits as it is; the filters said otherwise a moment ago.
        return Err(Useless::because(NOT_HELPFUL));
    }
    victims.sort_by(|one, other| (importance(one), &one.uid).cmp(&(importance(other), &other.uid)));
    Ok(Candidate::new(&node.name, victims, violations))
}

/// The candidate that costs least; the first of equals.
pub(crate) fn cheapest(candidates: Vec<Arc<Candidate>>) -> Option<Arc<Candidate>> {
    candidates.into_iter().min_by_key(|candidate| candidate.cost)
}

/// How many candidates suffice among so many nodes.
pub(crate) fn enough(nodes: usize, candidates: Candidates) -> usize {
    (nodes * candidates.percentage / 100).max(candidates.at_least).min(nodes)
}

/// Why the pod may not remove others now.
pub(crate) fn ineligible(
    pod: &PodInfo,
    snapshot: &Snapshot,
    lasting: impl Fn(usize) -> bool,
) -> Option<&'static str> {
    if pod.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never");
    }
    let position = snapshot.nomination(&pod.uid).and_then(|node| snapshot.position_of(node))?;
    if lasting(position) {
        // What it waits for there will not help: it may look elsewhere.
        return None;
    }
    let going = |other: &Arc<PodInfo>| other.priority < pod.priority && is_being_preempted(other);
    let waits = snapshot.nodes()[position].pods.values().any(going);
    waits.then_some("not eligible due to a terminating pod on the nominated node")
}

/// Whether a pod is on its way out for one of higher priority.
fn is_being_preempted(pod: &PodInfo) -> bool {
    let status = pod.pod.status.as_ref();
    let mut conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    pod.pod.metadata.deletion_timestamp.is_some()
        && conditions.any(|one| {
            one.type_ == "DisruptionTarget"
                && one.status == "True"
                && one.reason.as_deref() == Some("PreemptionByScheduler")
        })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod};
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::{Value, json};

    use super::*;
    use crate::core::decide::{Failure, Scheduler};
    use crate::core::profile::Profile;

    fn pod(name: &str, priority: i32, cpu: i64, more: Value) -> Arc<PodInfo> {
        let mut pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": name}},
            "spec": {"priority": priority,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": format!("{cpu}m")}}}]}});
        json_merge(&mut pod, more);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn json_merge(into: &mut Value, more: Value) {
        match (into, more) {
            (Value::Object(into), Value::Object(more)) => {
                for (key, value) in more {
                    json_merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, more) => *into = more,
        }
    }

    fn on(node: &str) -> Value {
        json!({"spec": {"nodeName": node}})
    }

    /// Nodes with one CPU each.
    fn cluster(nodes: &[&str], pods: &[Arc<PodInfo>]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in nodes {
            let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}});
            let node: Node = serde_json::from_value(node).unwrap();
            snapshot.node_put(Arc::new(node));
        }
        pods.iter().for_each(|pod| snapshot.pod_put(pod));
        snapshot
    }

    fn fail(pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Failure {
        let mut scheduler = Scheduler::new(StdRng::seed_from_u64(7));
        scheduler.decide(pod, snapshot, &Profile::new("default-scheduler")).unwrap_err()
    }

    fn victims(pod: &Arc<PodInfo>, snapshot: &Snapshot) -> (String, Vec<String>) {
        let candidate = fail(pod, snapshot).preemption.expect("there is a way");
        (candidate.node.clone(), candidate.victims.iter().map(|victim| victim.uid.clone()).collect())
    }

    #[test]
    fn no_more_have_to_go_than_are_in_the_way_and_the_least_important_first() {
        let pods = [
            pod("small", 1, 200, on("a")),
            pod("large", 1, 500, on("a")),
            pod("dear", 5, 300, on("a")),
            pod("equal", 9, 1000, on("b")),
        ];
        let snapshot = cluster(&["a", "b"], &pods);
        assert_eq!(victims(&pod("p", 9, 500, json!({})), &snapshot), ("a".into(), vec!["large".into()]));
        assert_eq!(
            victims(&pod("p", 9, 100, json!({})), &snapshot).1,
            ["small"],
            "of equals the one that is tried last"
        );
        assert_eq!(victims(&pod("p", 9, 1000, json!({})), &snapshot).1, ["dear", "large", "small"]);
        let failure = fail(&pod("p", 1, 500, json!({})), &snapshot);
        assert!(failure.preemption.is_none());
        assert_eq!(
            failure.error.to_string(),
            "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: \
             0/2 nodes are available: 2 No preemption victims found for incoming pod."
        );
        let message = fail(&pod("p", 9, 500, json!({})), &snapshot).error.to_string();
        assert_eq!(message, "0/2 nodes are available: 2 Insufficient cpu.", "it is helped");
    }

    #[test]
    fn the_cheapest_node_is_taken() {
        let full = |name: &str, priority, node| pod(name, priority, 900, on(node));
        let wanting = pod("p", 9, 500, json!({}));
        let snapshot = cluster(&["a", "b"], &[full("x", 5, "a"), full("y", 4, "b")]);
        assert_eq!(victims(&wanting, &snapshot).0, "b", "lower priority");
        let halves = [pod("y1", 4, 450, on("b")), pod("y2", 4, 450, on("b")), full("x", 4, "a")];
        assert_eq!(victims(&pod("p", 9, 800, json!({})), &cluster(&["a", "b"], &halves)).0, "a", "fewer");
        let since = |name: &str, node: &str, hour: u8| {
            let started = json!({"spec": {"nodeName": node}, "status": {"startTime": format!("2026-01-01T{hour:02}:00:00Z")}});
            pod(name, 4, 900, started)
        };
        let snapshot = cluster(&["a", "b"], &[since("x", "a", 3), since("y", "b", 8)]);
        assert_eq!(victims(&wanting, &snapshot).0, "b", "it runs for a shorter time");
    }

    #[test]
    fn budgets_are_kept_where_another_way_is() {
        let full = |name: &str, priority, node| pod(name, priority, 900, on(node));
        let mut snapshot = cluster(&["a", "b"], &[full("x", 5, "a"), full("y", 1, "b")]);
        let budget = |app: &str| {
            let budget = json!({"metadata": {"name": app, "namespace": "n"},
                "spec": {"selector": {"matchLabels": {"app": app}}}, "status": {"disruptionsAllowed": 0,
                "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
            let budget: PodDisruptionBudget = serde_json::from_value(budget).unwrap();
            Some(Arc::new(budget))
        };
        let wanting = pod("p", 9, 500, json!({}));
        assert_eq!(victims(&wanting, &snapshot).0, "b");
        snapshot.budgets_mut().set("n", "y", budget("y"));
        assert_eq!(victims(&wanting, &snapshot).0, "a", "more important, but not protected");
        snapshot.budgets_mut().set("n", "x", budget("x"));
        assert_eq!(victims(&wanting, &snapshot).0, "b", "no way but against a budget");
    }

    #[test]
    fn who_may_not_preempt_is_told_why() {
        let low = pod("low", 1, 900, on("a"));
        let never = pod("p", 9, 500, json!({"spec": {"preemptionPolicy": "Never"}}));
        let failure = fail(&never, &cluster(&["a"], &[low]));
        assert!(failure.preemption.is_none());
        assert!(
            failure.error.to_string().ends_with("preemption: not eligible due to preemptionPolicy=Never.")
        );
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "a"},
            "status": {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}});
        let mut snapshot = cluster(&["a"], &[pod("low", 1, 900, going)]);
        let waiting = pod("p", 9, 500, json!({}));
        snapshot.nominate(&waiting, "a");
        let failure = fail(&waiting, &snapshot);
        assert!(failure.preemption.is_none() && !failure.renounces);
        let message = "preemption: not eligible due to a terminating pod on the nominated node.";
        assert!(failure.error.to_string().ends_with(message), "{}", failure.error);
    }

    #[test]
    fn room_that_was_promised_is_kept_from_the_less_important() {
        let mut snapshot = cluster(&["a"], &[]);
        let promised = pod("first", 9, 800, json!({}));
        snapshot.nominate(&promised, "a");
        assert!(fail(&pod("p", 1, 500, json!({})), &snapshot).preemption.is_none());
        let mut scheduler = Scheduler::new(StdRng::seed_from_u64(7));
        let profile = Profile::new("default-scheduler");
        let more_important = pod("q", 10, 500, json!({}));
        assert_eq!(scheduler.decide(&more_important, &snapshot, &profile).unwrap(), "a");
        assert_eq!(scheduler.decide(&promised, &snapshot, &profile).unwrap(), "a");
        assert_eq!(snapshot.outranked("a", &more_important).len(), 1);
        snapshot.unnominate("first");
        assert_eq!(scheduler.decide(&pod("p", 1, 500, json!({})), &snapshot, &profile).unwrap(), "a");
    }

    #[test]
    fn company_that_is_not_wanted_can_be_removed() {
        let hermit = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"labelSelector": {"matchLabels": {"app": "low"}}, "topologyKey": "kubernetes.io/hostname"}]}}}});
        let snapshot = cluster(&["a"], &[pod("low", 1, 100, on("a")), pod("other", 1, 100, on("a"))]);
        assert_eq!(victims(&pod("p", 9, 100, hermit), &snapshot).1, ["low"]);
    }
}
