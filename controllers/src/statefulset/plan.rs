//! What a StatefulSet needs: pure decisions about its pods, one after the other by their ordinals unless the set
//! says that they may go in parallel.
//!
//! No pod is made while one of its name exists, and a pod that is on its way out exists until its node, or
//! somebody who knows, says that it has ended: so none ever runs twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use kube::ResourceExt;

use super::identity;
use super::retention::{self, Owners, Policy, References};
use super::status;
use crate::common::amount::{self, Round};
use crate::common::claim::controller_reference;
use crate::common::pods::{self, Availability};

/// A revision by its name, and the template that it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revision<'a> {
    pub(super) name: &'a str,
    pub(super) template: &'a PodTemplateSpec,
}

/// All that a plan is made from.
pub(super) struct World<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) spec: &'a StatefulSetSpec,
    pub(super) pods: &'a [Arc<Pod>],
    /// A claim of the set's namespace, by its name.
    pub(super) claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    /// What the last complete roll-out brought.
    pub(super) current: Revision<'a>,
    /// What is asked for.
    pub(super) update: Revision<'a>,
    pub(super) collisions: i32,
    pub(super) now: Timestamp,
}

/// What is done with a pod.
#[derive(Debug)]
pub(super) enum Deed {
    Nothing,
    Create(Box<Pod>),
    Delete(Arc<Pod>),
    /// Gives it the labels of its name back.
    Label(Arc<Pod>, BTreeMap<String, String>),
}

/// What has to be done for one pod: first its claims, in the end the pod itself.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) pod: String,
    /// Claims to create.
    pub(super) claims: Vec<PersistentVolumeClaim>,
    /// Claims that are about to go: the pod has to wait for that.
    pub(super) going: Vec<String>,
    /// Claims whose owners have to change.
    pub(super) owners: Vec<(Arc<PersistentVolumeClaim>, References)>,
    pub(super) deed: Deed,
}

impl Step {
    fn is_empty(&self) -> bool {
        let is_idle = matches!(self.deed, Deed::Nothing);
        self.claims.is_empty() && self.going.is_empty() && self.owners.is_empty() && is_idle
    }
}

/// What there is to do about a set.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) status: StatefulSetStatus,
    /// When a pod becomes available by the mere passing of time.
    pub(super) again: Option<Duration>,
}

/// Whether what comes behind a pod may be looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Proceed,
    Wait,
}

/// The place of an ordinal, and the pod in it.
struct Place {
    ordinal: i32,
    name: String,
    pod: Option<Arc<Pod>>,
}

struct Planner<'a> {
    world: &'a World<'a>,
    policy: Policy,
    ordered: bool,
    steps: Vec<Step>,
}

/// Makes the plan.
pub(super) fn plan(world: &World<'_>) -> Plan {
    let ordered = world.spec.pod_management_policy.as_deref() != Some("Parallel");
    let mut planner = Planner { world, policy: Policy::of(world.spec), ordered, steps: Vec::new() };
    planner.run();
    planner.steps.retain(|step| !step.is_empty());
    let status = status::plan(world, &planner.steps);
    let waits = world.pods.iter().filter_map(|pod| match availability(world, pod) {
        Availability::In(left) => Some(left),
        _ => None,
    });
    Plan { steps: planner.steps, status, again: waits.min() }
}

/// Whether, or when, a pod is available; one that does not run is not.
pub(super) fn availability(world: &World<'_>, pod: &Pod) -> Availability {
    match pods::phase(pod) {
        "Running" => pods::availability(pod, world.spec.min_ready_seconds.unwrap_or(0), world.now),
        _ => Availability::NotReady,
    }
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether a pod will not get ready by itself, as far as can be told: no node takes it, or a container of it does
/// not start, or does not stay.
fn is_broken(pod: &Pod) -> bool {
    const REASONS: [&str; 8] = [
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "ErrImagePull",
        "ErrImageNeverPull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    ];
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let main = status.and_then(|status| status.container_statuses.as_ref());
    let waits = init.into_iter().chain(main).flatten().any(|container| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        reason.is_some_and(|reason| REASONS.contains(&reason))
    });
    let scheduled = pods::condition(pod, "PodScheduled");
    waits
        || scheduled
            .is_some_and(|one| one.status == "False" && one.reason.as_deref() == Some("Unschedulable"))
}

impl Planner<'_> {
    fn run(&mut self) {
        let (places, mut condemned) = self.places();
        let mut verdict = Verdict::Proceed;
        for (index, place) in places.iter().enumerate() {
            verdict = self.replica(index, place);
            if self.ordered && verdict == Verdict::Wait {
                return;
            }
        }
        let first_unavailable = places.iter().chain(&condemned).find(|place| self.is_unavailable(place));
        let first_unavailable = first_unavailable.map(|place| place.name.clone());
        condemned.reverse();
        for place in &condemned {
            verdict = self.condemned(place, first_unavailable.as_deref());
            if self.ordered && verdict == Verdict::Wait {
                break;
            }
        }
        // The claims of those that have to wait belong to them all the same.
        let waiting = condemned.iter().filter(|place| !self.steps.iter().any(|step| step.pod == place.name));
        let steps: Vec<_> = waiting.map(|place| self.step(place, Deed::Nothing)).collect();
        self.steps.extend(steps.into_iter().map(|step| Step {
            claims: Vec::new(),
            going: Vec::new(),
            ..step
        }));
        if !(self.ordered && verdict == Verdict::Wait) {
            self.update(&places);
        }
    }

    /// The places of the set by their ordinals, and the pods that it has become too small for.
    fn places(&self) -> (Vec<Place>, Vec<Place>) {
        let World { set, spec, pods, .. } = self.world;
        let name = set.name_any();
        let mut known: BTreeMap<i32, Arc<Pod>> = pods
            .iter()
            .filter_map(|pod| Some((identity::ordinal(&name, &pod.name_any())?, pod.clone())))
            .collect();
        let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
        let place = |ordinal, pod| Place { ordinal, name: format!("{name}-{ordinal}"), pod };
        let end = start.saturating_add(spec.replicas.unwrap_or(1).max(0));
        let places = (start..end).map(|ordinal| place(ordinal, known.remove(&ordinal))).collect();
        let condemned = known.into_iter().map(|(ordinal, pod)| place(ordinal, Some(pod))).collect();
        (places, condemned)
    }

    fn is_unavailable(&self, place: &Place) -> bool {
        place
            .pod
            .as_ref()
            .is_none_or(|pod| is_terminating(pod) || availability(self.world, pod) != Availability::Available)
    }

    fn owners(&self, place: &Place) -> Owners {
        let World { set, spec, .. } = self.world;
        let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
        let end = start.saturating_add(spec.replicas.unwrap_or(1));
        Owners {
            set: controller_reference(*set),
            pod: retention::pod_reference(&place.name, place.pod.as_deref()),
            condemned: place.ordinal < start || place.ordinal >= end,
        }
    }

    /// What the claims of a place need, and then its pod.
    fn step(&self, place: &Place, deed: Deed) -> Step {
        let World { set, spec, claim, .. } = self.world;
        let owners = self.owners(place);
        let mut step =
            Step { pod: place.name.clone(), claims: Vec::new(), going: Vec::new(), owners: Vec::new(), deed };
        for template in identity::templates(spec) {
            let name = identity::claim_name(&set.name_any(), template, place.ordinal);
            match claim(&name) {
                None => {
                    let mut claim = identity::claim(set, spec, template, place.ordinal);
                    claim.metadata.owner_references =
                        retention::wanted(self.policy, &owners).map(|owner| vec![owner]);
                    step.claims.push(claim);
                }
                Some(known) if is_going(&known) => step.going.push(name),
                Some(known) => {
                    let change = retention::plan(&known, self.policy, &owners);
                    step.owners.extend(change.map(|change| (known, change)));
                }
            }
        }
        step
    }

    fn add(&mut self, place: &Place, deed: Deed) -> Verdict {
        let step = self.step(place, deed);
        self.steps.push(step);
        Verdict::Wait
    }

    /// Deletes a pod; its claims are not touched.
    fn delete(&mut self, place: &Place, pod: &Arc<Pod>) -> Verdict {
        let (claims, going, owners) = (Vec::new(), Vec::new(), Vec::new());
        let deed = Deed::Delete(pod.clone());
        self.steps.push(Step { pod: place.name.clone(), claims, going, owners, deed });
        Verdict::Wait
    }

    fn replica(&mut self, index: usize, place: &Place) -> Verdict {
        let Some(pod) = &place.pod else {
            let claims = identity::templates(self.world.spec).iter();
            let claims =
                claims.map(|one| identity::claim_name(&self.world.set.name_any(), one, place.ordinal));
            let reference = retention::pod_reference(&place.name, None);
            let mut known = claims.filter_map(|name| (self.world.claim)(&name));
            // A claim that the pod before left behind goes with that pod.
            if self.policy.when_scaled && known.any(|claim| retention::is_stale(&claim, &reference)) {
                return Verdict::Wait;
            }
            let Revision { name, template } = self.revision_for(index);
            let pod = identity::pod(self.world.set, self.world.spec, (name, template), place.ordinal);
            return self.add(place, Deed::Create(Box::new(pod)));
        };
        if is_terminating(pod) {
            return Verdict::Wait;
        }
        // One that was evicted may have ended well: it is to run all the same.
        if pods::is_terminal(pod) || self.is_abandoned(index, pod) {
            return self.delete(place, pod);
        }
        let available = availability(self.world, pod) == Availability::Available;
        let is_pending = pods::phase(pod) == "Pending";
        if self.ordered && !available && !is_pending {
            return Verdict::Wait;
        }
        let deed = if identity::is_labelled(pod) || (self.ordered && !available) {
            Deed::Nothing
        } else {
            Deed::Label(pod.clone(), identity::labels(&place.name, place.ordinal))
        };
        self.add(place, deed);
        if available { Verdict::Proceed } else { Verdict::Wait }
    }

    /// The revision that a new pod of this place gets.
    fn revision_for(&self, index: usize) -> Revision<'_> {
        let World { spec, set, current, update, .. } = self.world;
        let strategy = spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let is_rolling =
            strategy.is_none_or(|one| one.type_.as_deref().unwrap_or("RollingUpdate") == "RollingUpdate");
        let kept = match rolling {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None if is_rolling => set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0),
            None => 0,
        };
        if index < usize::try_from(kept).unwrap_or(0) { *current } else { *update }
    }

    /// The first place that a roll-out changes; `None` where pods change only when somebody deletes them.
    fn first_updated(&self) -> Option<usize> {
        let strategy = self.world.spec.update_strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return None;
        }
        let partition = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.partition);
        usize::try_from(partition.unwrap_or(0)).ok()
    }

    /// Whether a pod has a template that nobody asks for any more, and does not get ready by itself: in order, a
    /// roll-out that went wrong would wait for it for ever, also one that would mend it.
    fn is_abandoned(&self, index: usize, pod: &Pod) -> bool {
        let World { current, update, .. } = self.world;
        let revision = identity::revision(pod);
        self.ordered
            && self.first_updated().is_some_and(|first| index >= first)
            && revision != update.name
            && !pods::is_ready(pod)
            && (revision != current.name || is_broken(pod))
    }

    fn condemned(&mut self, place: &Place, first_unavailable: Option<&str>) -> Verdict {
        let Some(pod) = place.pod.as_ref().filter(|pod| !is_terminating(pod)) else { return Verdict::Wait };
        let available = availability(self.world, pod) == Availability::Available;
        if self.ordered && !available && first_unavailable != Some(&place.name) {
            return Verdict::Wait;
        }
        let step = self.step(place, Deed::Delete(pod.clone()));
        self.steps.push(Step { claims: Vec::new(), going: Vec::new(), ..step });
        Verdict::Wait
    }

    /// Deletes pods that have an old template, from the highest ordinal on.
    fn update(&mut self, places: &[Place]) {
        let Some(first) = self.first_updated() else { return };
        let is_old =
            |pod: &&Arc<Pod>| identity::revision(pod) != self.world.update.name && !is_terminating(pod);
        let strategy = self.world.spec.update_strategy.as_ref();
        let limit = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_unavailable.as_ref());
        let mut chosen = Vec::new();
        match limit {
            None => {
                for place in places.iter().skip(first).rev() {
                    if let Some(pod) = place.pod.as_ref().filter(is_old) {
                        chosen.push((place, pod.clone()));
                        break;
                    }
                    if self.is_unavailable(place) {
                        break;
                    }
                }
            }
            Some(limit) => {
                let total = i32::try_from(places.len()).unwrap_or(i32::MAX);
                let limit = usize::try_from(amount::resolve(limit, total, Round::Down)).unwrap_or(0).max(1);
                let missing = places.iter().filter(|place| self.is_unavailable(place)).count();
                let mut left = limit.saturating_sub(missing);
                for place in places.iter().skip(first).rev() {
                    let Some(pod) = place.pod.as_ref().filter(is_old) else { continue };
                    if self.is_unavailable(place) {
                        // It is missing already.
                        chosen.push((place, pod.clone()));
                    } else if left > 0 {
                        left -= 1;
                        chosen.push((place, pod.clone()));
                    }
                }
            }
        }
        for (place, pod) in chosen {
            if !self.steps.iter().any(|step| step.pod == place.name && matches!(step.deed, Deed::Delete(_))) {
                self.delete(place, &pod);
            }
        }
    }
}

fn is_going(claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.deletion_timestamp.is_some()
}
