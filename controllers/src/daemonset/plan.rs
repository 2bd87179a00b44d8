//! What a DaemonSet needs: pure decisions about one pod on each node that will do, about roll-outs and status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use kube::ResourceExt;

use super::pod;
use super::rolling;
use crate::common::amount::{self, Round};
use crate::common::placement::{Placement, tolerated};
use crate::common::pods::{self, Availability};

/// All that a plan is made from.
pub(super) struct World<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) spec: &'a DaemonSetSpec,
    /// The spec of new pods, but for their node.
    pub(super) pod_spec: &'a PodSpec,
    pub(super) nodes: &'a [Arc<Node>],
    pub(super) pods: &'a [Arc<Pod>],
    /// The hashes of the present template: usually one.
    pub(super) hashes: &'a BTreeSet<String>,
    /// For how long failed pods on these nodes stay.
    pub(super) held: &'a BTreeMap<String, Duration>,
    pub(super) now: Timestamp,
}

/// What there is to do about a set.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods of `delete` that have ended, with their nodes.
    pub(super) ended: Vec<(String, Arc<Pod>)>,
    pub(super) status: DaemonSetStatus,
    /// When to look again though nothing changes.
    pub(super) again: Option<Duration>,
}

/// Whether the set has its pod on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) runs: bool,
    /// A pod that is there may stay.
    pub(super) stays: bool,
}

impl Fit {
    const NO: Self = Self { runs: false, stays: false };

    fn of(node: &Node, placement: &Placement<'_>, spec: &PodSpec) -> Self {
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        if !placement.wants(node) {
            return Self::NO;
        }
        let runs = tolerated(node, tolerations, &["NoSchedule", "NoExecute"]);
        Self { runs, stays: runs || tolerated(node, tolerations, &["NoExecute"]) }
    }
}

/// The pods of the set on one node, those first that are bound, and of these the oldest.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) fit: Fit,
    /// The node exists.
    exists: bool,
    pub(super) pods: Vec<Arc<Pod>>,
}

impl Place {
    fn staying(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    /// The pod of the present template and the one of an older one that are to stay; `None` if there are several.
    pub(super) fn new_and_old(&self, world: &World<'_>) -> Option<NewAndOld<'_>> {
        let (new, old): (Vec<_>, Vec<_>) = self.staying().partition(|pod| world.is_updated(pod));
        (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
    }
}

/// A pod of the present template, and one of an older one.
type NewAndOld<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

/// The places of a set by the names of their nodes.
pub(super) type Places = BTreeMap<String, Place>;

impl World<'_> {
    pub(super) fn is_updated(&self, pod: &Pod) -> bool {
        self.hashes.contains(pod::hash(pod))
    }

    pub(super) fn availability(&self, pod: &Pod) -> Availability {
        pods::availability(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        self.availability(pod) == Availability::Available
    }

    /// How many pods more than one a roll-out may have, and how many may be missing, of so many nodes.
    pub(super) fn bounds(&self, desired: i32) -> (usize, usize) {
        let strategy = self.spec.update_strategy.as_ref().filter(|_| !self.is_on_delete());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let number = |value: Option<i32>| usize::try_from(value.unwrap_or(0)).unwrap_or(0);
        let up = |value| amount::resolve(value, desired, Round::Up);
        let surge = number(rolling.and_then(|rolling| rolling.max_surge.as_ref()).map(up));
        let missing = number(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).map(up));
        // Nothing could move otherwise.
        (surge, if surge == 0 && missing == 0 { 1 } else { missing })
    }

    fn is_on_delete(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete")
    }

    fn places(&self) -> Places {
        let placement = Placement::new(self.pod_spec);
        let mut places: Places = self
            .nodes
            .iter()
            .map(|node| {
                let fit = Fit::of(node, &placement, self.pod_spec);
                (node.name_any(), Place { fit, exists: true, pods: Vec::new() })
            })
            .collect();
        let gone = |pod: &Pod| pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_some();
        for pod in self.pods.iter().filter(|pod| !gone(pod)) {
            let Some(node) = pod::target(pod) else { continue };
            let absent = || Place { fit: Fit::NO, exists: false, pods: Vec::new() };
            places.entry(node.to_owned()).or_insert_with(absent).pods.push(pod.clone());
        }
        for place in places.values_mut() {
            place.pods.sort_by_cached_key(|pod| {
                (pods::node_name(pod).is_empty(), pod.creation_timestamp(), pod.name_any())
            });
        }
        places
    }
}

/// Makes the plan.
pub(super) fn plan(world: &World<'_>) -> Plan {
    let places = world.places();
    let mut plan = Plan::default();
    let desired = places.values().filter(|place| place.fit.runs).count();
    let bounds = world.bounds(count(desired));
    for (node, place) in &places {
        manage(world, node, place, bounds.0 > 0, &mut plan);
    }
    // A roll-out goes on from what was asked for first.
    if plan.create.is_empty() && plan.delete.is_empty() && !world.is_on_delete() {
        rolling::plan(world, &places, desired, bounds, &mut plan);
    }
    plan.status = status(world, &places);
    let waits = world.pods.iter().filter_map(|pod| match world.availability(pod) {
        Availability::In(left) => Some(left),
        _ => None,
    });
    plan.again = waits.chain(plan.again).min();
    plan
}

/// One pod on a node that will do, and none elsewhere.
fn manage(world: &World<'_>, node: &str, place: &Place, surges: bool, plan: &mut Plan) {
    if !place.exists {
        // The pod collector takes those that are bound to a node which is gone; nobody else takes these.
        let unbound = place.staying().filter(|pod| pods::node_name(pod).is_empty());
        plan.delete.extend(unbound.cloned());
    } else if place.fit.runs && place.pods.is_empty() {
        plan.create.push(node.to_owned());
    } else if !place.fit.stays {
        plan.delete.extend(place.staying().cloned());
    } else {
        let (ended, running): (Vec<_>, Vec<_>) =
            place.staying().cloned().partition(|pod| pods::is_terminal(pod));
        for pod in ended {
            let held = world.held.get(node).filter(|_| pods::phase(&pod) == "Failed");
            if let Some(left) = held {
                plan.again = plan.again.into_iter().chain([*left]).min();
            } else {
                plan.ended.push((node.to_owned(), pod.clone()));
                plan.delete.push(pod);
            }
        }
        if surges {
            surge(world, node, place, &running, plan);
        } else {
            plan.delete.extend(running.into_iter().skip(1));
        }
    }
}

/// With surge a pod of the present template may stand beside an older one until it is available.
fn surge(world: &World<'_>, node: &str, place: &Place, running: &[Arc<Pod>], plan: &mut Plan) {
    if running.is_empty() && place.fit.runs {
        plan.create.push(node.to_owned());
    }
    if running.len() <= 1 {
        return;
    }
    let (new, old): (Vec<_>, Vec<_>) = running.iter().cloned().partition(|pod| world.is_updated(pod));
    plan.delete.extend(
        new.iter()
            .chain(&old)
            .filter(|pod| {
                !new.first().is_some_and(|first| Arc::ptr_eq(first, pod))
                    && !old.first().is_some_and(|first| Arc::ptr_eq(first, pod))
            })
            .cloned(),
    );
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pods::is_ready(old) || world.is_available(new))
    {
        plan.delete.push(old.clone());
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn status(world: &World<'_>, places: &Places) -> DaemonSetStatus {
    let nodes = || places.values().filter(|place| place.exists);
    let wanted = || nodes().filter(|place| place.fit.runs);
    // Of several the first tells.
    let there: Vec<_> = wanted().filter_map(|place| place.pods.first()).collect();
    let number = |is: &dyn Fn(&Pod) -> bool| count(there.iter().filter(|pod| is(pod)).count());
    let desired = count(wanted().count());
    let available = number(&|pod| world.is_available(pod));
    let known = world.set.status.clone().unwrap_or_default();
    DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: count(there.len()),
        number_misscheduled: count(nodes().filter(|one| !one.fit.runs && !one.pods.is_empty()).count()),
        number_ready: number(&pods::is_ready),
        number_available: Some(available),
        number_unavailable: Some(desired - available),
        updated_number_scheduled: Some(number(&|pod| world.is_updated(pod))),
        observed_generation: world.set.metadata.generation,
        collision_count: known.collision_count,
        conditions: known.conditions,
    }
}

/// Whether two statuses say the same: an absent number is a zero, as the API server may drop zeros.
pub(super) fn status_equals(one: &DaemonSetStatus, other: &DaemonSetStatus) -> bool {
    let normal = |status: &DaemonSetStatus| {
        let zero = |field: Option<i32>| Some(field.unwrap_or(0));
        DaemonSetStatus {
            number_available: zero(status.number_available),
            number_unavailable: zero(status.number_unavailable),
            updated_number_scheduled: zero(status.updated_number_scheduled),
            collision_count: zero(status.collision_count),
            conditions: Some(status.conditions.clone().unwrap_or_default()),
            ..status.clone()
        }
    };
    normal(one) == normal(other)
}
