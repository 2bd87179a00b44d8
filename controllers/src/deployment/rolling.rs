//! The arithmetic of rollouts: how many pods each ReplicaSet may have now, so that never more than
//! `maxSurge` exist beyond and never more than `maxUnavailable` are missing from what was asked for.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revision::{DESIRED, MAX};
use crate::common::amount::{self, Round};

/// A ReplicaSet within a plan: as it is, and how many replicas the plan gives it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) set: Arc<ReplicaSet>,
    pub(super) replicas: i32,
}

impl Member {
    pub(super) fn new(set: Arc<ReplicaSet>) -> Self {
        let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        Self { set, replicas }
    }

    /// What the ReplicaSet asks for at present.
    pub(super) fn before(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    /// The available pods that will stay: a set that was just made smaller still tells of more.
    pub(super) fn available(&self) -> i32 {
        let told = self.set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
        told.min(self.before())
    }

    /// The most pods that the set has, or may yet have: those that it is to lose are still there.
    pub(super) fn footprint(&self) -> i32 {
        let told = self.set.status.as_ref().map_or(0, |status| status.replicas);
        told.max(self.replicas)
    }

    /// Whether the set's controller has not seen its last change, so that its status says nothing of what
    /// it does at this moment.
    pub(super) fn is_behind(&self) -> bool {
        let seen = self.set.status.as_ref().and_then(|status| status.observed_generation);
        seen.unwrap_or(0) < self.set.metadata.generation.unwrap_or(0)
    }

    fn annotation(&self, name: &str) -> Option<i32> {
        self.set.annotations().get(name)?.parse().ok()
    }

    /// What the Deployment asked for when this ReplicaSet was scaled last.
    pub(super) fn desired(&self) -> Option<i32> {
        self.annotation(DESIRED)
    }
}

/// The bounds of a rolling update, resolved for the Deployment's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// What was asked for.
    pub(super) replicas: i32,
    pub(super) max_surge: i32,
    pub(super) max_unavailable: i32,
}

impl Bounds {
    /// The bounds of a Deployment; without rolling update both are zero.
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        if is_recreate(deployment) || replicas == 0 {
            return Self { replicas, max_surge: 0, max_unavailable: 0 }.with_surge(deployment);
        }
        let rolling = spec.and_then(|spec| spec.strategy.as_ref()?.rolling_update.as_ref());
        let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), replicas, Round::Up);
        let unavailable =
            resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), replicas, Round::Down);
        // Both zero is refused by validation but may come out of rounding; nothing could move then.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { replicas, max_surge: surge, max_unavailable: unavailable.min(replicas) }
    }

    /// A Deployment of size zero still surges by its bound, should it be absolute.
    fn with_surge(mut self, deployment: &Deployment) -> Self {
        if !is_recreate(deployment) {
            let spec = deployment.spec.as_ref();
            let rolling = spec.and_then(|spec| spec.strategy.as_ref()?.rolling_update.as_ref());
            let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
            self.max_surge = resolve(surge, self.replicas, Round::Up);
        }
        self
    }

    /// The most pods that may exist.
    pub(super) fn max_total(&self) -> i32 {
        self.replicas.saturating_add(self.max_surge)
    }

    /// The fewest pods that must be available.
    fn min_available(&self) -> i32 {
        self.replicas - self.max_unavailable
    }
}

/// Whether old pods must be gone before new ones come.
pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// A number, or a percentage of `total`; the default is a quarter.
fn resolve(value: Option<&IntOrString>, total: i32, round: Round) -> i32 {
    value.map_or_else(
        || amount::percent(25, total, round),
        |value| amount::resolve(value, total, round).max(0),
    )
}

pub(super) fn total(members: &[Member]) -> i32 {
    members.iter().map(|member| member.replicas).sum()
}

/// How many replicas the new ReplicaSet may have, beside `others` pods of old ones.
pub(super) fn new_replicas(bounds: Bounds, new: i32, others: i32) -> i32 {
    let room = bounds.max_total() - (new + others);
    if new > bounds.replicas {
        bounds.replicas
    } else if room <= 0 {
        new
    } else {
        new + room.min(bounds.replicas - new)
    }
}

/// Scales old ReplicaSets down as far as availability allows: unhealthy pods first, then the oldest.
pub(super) fn shrink_old(bounds: Bounds, new: &Member, old: &mut [Member]) {
    if total(old) == 0 {
        return;
    }
    let new_unavailable = new.replicas - new.available();
    let spare = total(old) + new.replicas - bounds.min_available() - new_unavailable;
    if spare <= 0 {
        return;
    }
    let mut cleaned = 0;
    for member in old.iter_mut() {
        let unhealthy = (member.replicas - member.available()).max(0);
        let fewer = unhealthy.min(spare - cleaned);
        member.replicas -= fewer;
        cleaned += fewer;
    }
    let available: i32 = old.iter().map(|member| member.available()).sum::<i32>() + new.available();
    let mut excess = (available - bounds.min_available()).max(0);
    for member in old.iter_mut() {
        let fewer = member.replicas.min(excess);
        member.replicas -= fewer;
        excess -= fewer;
    }
}

/// Scales a Deployment whose size changed. While a rollout is under way each ReplicaSet grows or shrinks
/// by its share, so that the mix of old and new stays; `rolling` is then the number of pods that the
/// Deployment had last.
pub(super) fn resize(bounds: Bounds, rolling: Option<i32>, mut new: Option<&mut Member>, old: &mut [Member]) {
    let active = old.iter().filter(|member| member.replicas > 0).count()
        + usize::from(new.as_ref().is_some_and(|new| new.replicas > 0));
    if active <= 1 {
        let only = match (active, new.as_deref_mut()) {
            (0, None) => old.last_mut(),
            (0, Some(new)) => Some(new),
            (_, Some(new)) if new.replicas > 0 => Some(new),
            _ => old.iter_mut().find(|member| member.replicas > 0),
        };
        if let Some(only) = only {
            only.replicas = bounds.replicas;
        }
        return;
    }
    let saturated = new.as_ref().is_some_and(|new| {
        new.desired() == Some(new.before())
            && new.before() == bounds.replicas
            && new.available() == bounds.replicas
    });
    if saturated {
        old.iter_mut().for_each(|member| member.replicas = 0);
    } else if let Some(known) = rolling {
        let mut all: Vec<&mut Member> = old.iter_mut().chain(new).collect();
        all.retain(|member| member.replicas > 0);
        proportion(bounds, known, &mut all);
    }
}

fn proportion(bounds: Bounds, known: i32, members: &mut [&mut Member]) {
    let allowed = if bounds.replicas > 0 { bounds.max_total() } else { 0 };
    let current: i32 = members.iter().map(|member| member.replicas).sum();
    let change = allowed - current;
    // The largest first; of equals the newest when growing, the oldest when shrinking.
    members.sort_by(|one, other| {
        let ages = one.set.metadata.creation_timestamp.cmp(&other.set.metadata.creation_timestamp);
        let ages = if change > 0 { ages.reverse() } else { ages };
        other.replicas.cmp(&one.replicas).then(ages)
    });
    let mut given = 0;
    for member in members.iter_mut() {
        let left = change - given;
        let share = share(bounds, known, member);
        let share = if change > 0 { share.min(left).max(0) } else { share.max(left).min(0) };
        member.replicas += share;
        given += share;
    }
    if let Some(first) = members.first_mut() {
        first.replicas = (first.replicas + change - given).max(0);
    }
}

/// By how much a ReplicaSet changes to keep its share of the Deployment.
fn share(bounds: Bounds, known: i32, member: &Member) -> i32 {
    if bounds.replicas == 0 {
        return -member.replicas;
    }
    // Without the annotation the size that the Deployment had last is as near as one can get.
    let before = member.annotation(MAX).filter(|max| *max > 0).unwrap_or(known);
    if before <= 0 {
        return 0;
    }
    let exact = f64::from(member.replicas) * f64::from(bounds.max_total()) / f64::from(before);
    // The product of two counts of pods divided by a third stays far within the range of i32.
    exact.round() as i32 - member.replicas
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{
        DeploymentSpec, DeploymentStrategy, ReplicaSetSpec, ReplicaSetStatus, RollingUpdateDeployment,
    };

    use super::*;

    fn deployment(replicas: i32, surge: IntOrString, unavailable: IntOrString) -> Deployment {
        let rolling = RollingUpdateDeployment { max_surge: Some(surge), max_unavailable: Some(unavailable) };
        let strategy = DeploymentStrategy { rolling_update: Some(rolling), type_: None };
        let spec = DeploymentSpec {
            replicas: Some(replicas),
            strategy: Some(strategy),
            ..DeploymentSpec::default()
        };
        Deployment { spec: Some(spec), ..Deployment::default() }
    }

    fn member(replicas: i32, available: i32, max: i32) -> Member {
        let mut set = ReplicaSet {
            spec: Some(ReplicaSetSpec { replicas: Some(replicas), ..ReplicaSetSpec::default() }),
            status: Some(ReplicaSetStatus { available_replicas: Some(available), ..Default::default() }),
            ..ReplicaSet::default()
        };
        set.metadata.annotations = Some([(MAX.to_owned(), max.to_string())].into());
        Member::new(Arc::new(set))
    }

    fn percent(number: i32) -> IntOrString {
        IntOrString::String(format!("{number}%"))
    }

    fn bounds(replicas: i32, max_surge: i32, max_unavailable: i32) -> Bounds {
        Bounds { replicas, max_surge, max_unavailable }
    }

    #[test]
    fn surge_rounds_up_and_unavailable_rounds_down() {
        assert_eq!(Bounds::of(&deployment(3, percent(25), percent(25))), bounds(3, 1, 0));
        assert_eq!(Bounds::of(&deployment(10, percent(25), percent(25))), bounds(10, 3, 2));
        assert_eq!(Bounds::of(&deployment(3, IntOrString::Int(0), percent(10))), bounds(3, 0, 1));
        assert_eq!(Bounds::of(&deployment(3, IntOrString::Int(0), IntOrString::Int(7))), bounds(3, 0, 3));
        assert_eq!(Bounds::of(&deployment(0, percent(25), percent(25))), bounds(0, 0, 0));
    }

    #[test]
    fn the_new_set_grows_into_the_surge_only() {
        assert_eq!(new_replicas(bounds(10, 3, 2), 0, 10), 3);
        assert_eq!(new_replicas(bounds(10, 3, 2), 3, 10), 3);
        assert_eq!(new_replicas(bounds(10, 3, 2), 3, 0), 10);
        assert_eq!(new_replicas(bounds(10, 3, 2), 12, 0), 10);
    }

    #[test]
    fn old_sets_give_way_to_available_pods_only() {
        let mut old = [member(10, 10, 13)];
        shrink_old(bounds(10, 3, 2), &member(3, 0, 13), &mut old);
        assert_eq!(old[0].replicas, 8, "two may be missing");
        let mut old = [member(8, 8, 13)];
        shrink_old(bounds(10, 3, 2), &member(5, 0, 13), &mut old);
        assert_eq!(old[0].replicas, 8, "the new ones are not available yet");
        let mut old = [member(4, 0, 13), member(8, 8, 13)];
        shrink_old(bounds(10, 3, 2), &member(1, 1, 13), &mut old);
        assert_eq!([old[0].replicas, old[1].replicas], [0, 7], "the broken ones go first");
    }

    #[test]
    fn what_is_about_to_go_is_neither_room_nor_available() {
        let shrunk = member(5, 6, 13);
        assert_eq!(shrunk.available(), 5);
        let mut told = ReplicaSet::clone(&shrunk.set);
        told.status.as_mut().unwrap().replicas = 6;
        let told = Member::new(Arc::new(told));
        assert_eq!((told.footprint(), told.is_behind()), (6, false));
    }

    #[test]
    fn a_resize_during_a_rollout_keeps_the_shares() {
        let (mut new, mut old) = (member(5, 5, 13), [member(8, 8, 13)]);
        resize(bounds(20, 5, 2), Some(13), Some(&mut new), &mut old);
        assert_eq!((new.replicas, old[0].replicas), (10, 15));
        let (mut new, mut old) = (member(5, 5, 13), [member(8, 8, 13)]);
        resize(bounds(0, 3, 0), Some(13), Some(&mut new), &mut old);
        assert_eq!((new.replicas, old[0].replicas), (0, 0));
    }

    #[test]
    fn a_resize_of_a_settled_deployment_is_that_of_its_only_set() {
        let (mut new, mut old) = (member(3, 3, 4), [member(0, 0, 4)]);
        resize(bounds(7, 2, 1), Some(13), Some(&mut new), &mut old);
        assert_eq!((new.replicas, old[0].replicas), (7, 0));
        let mut old = [member(0, 0, 4), member(0, 0, 4)];
        resize(bounds(7, 2, 1), Some(0), None, &mut old);
        assert_eq!([old[0].replicas, old[1].replicas], [0, 7], "the youngest of several");
    }

    proptest::proptest! {
        /// Whatever the state: within the bounds, a rollout step never removes available pods below the
        /// minimum and never exceeds the maximum by growing.
        #[test]
        fn no_step_leaves_the_bounds(
            replicas in 0..50_i32, surge in 0..10_i32, unavailable in 0..10_i32,
            new in 0..60_i32, new_available in 0..60_i32,
            olds in proptest::collection::vec((0..30_i32, 0..30_i32), 0..4),
        ) {
            let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable }.min(replicas.max(1));
            let bounds = bounds(replicas, surge, unavailable.min(replicas));
            let new = member(new, new_available.min(new), 0);
            let mut old: Vec<_> = olds.iter().map(|(all, up)| member(*all, (*up).min(*all), 0)).collect();
            let before = total(&old);
            let grown = new_replicas(bounds, new.replicas, before);
            if grown > new.replicas {
                proptest::prop_assert!(grown + before <= bounds.max_total());
            }
            let available: i32 = old.iter().map(Member::available).sum::<i32>() + new.available();
            shrink_old(bounds, &new, &mut old);
            let left: i32 = old.iter().map(|one| one.available().min(one.replicas)).sum::<i32>() + new.available();
            proptest::prop_assert!(left >= available.min(bounds.min_available()));
            proptest::prop_assert!(old.iter().all(|one| one.replicas >= 0));
        }
    }
}
