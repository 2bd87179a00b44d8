//! What a Deployment needs next: pure decisions from the Deployment, its ReplicaSets and whether pods of
//! old templates still run. One step at a time: what a step changes is seen before the next is planned.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::ResourceExt;

use super::revision::{self, DESIRED, MAX};
use super::rolling::{self, Bounds, Member};
use super::status;

/// ReplicaSets of earlier templates that are kept for a rollback, where the Deployment does not say.
const HISTORY_LIMIT: i32 = 10;

/// What is known.
pub(super) struct World<'a> {
    pub(super) deployment: &'a Deployment,
    /// The ReplicaSets that belong to the Deployment.
    pub(super) sets: Vec<Arc<ReplicaSet>>,
    /// The uids of those ReplicaSets of which pods still run.
    pub(super) running: Vec<String>,
    pub(super) now: Timestamp,
}

/// A change of a ReplicaSet.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub(super) set: Arc<ReplicaSet>,
    /// Replicas before and after; equal where only the rest changes.
    pub(super) replicas: (i32, i32),
    /// Annotations that it gains.
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) min_ready_seconds: Option<i32>,
}

/// What has to be written, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Option<ReplicaSet>,
    pub(super) update: Vec<Update>,
    pub(super) delete: Vec<Arc<ReplicaSet>>,
    /// The revision that the Deployment has to be annotated with, if it is not yet.
    pub(super) revision: Option<i64>,
    pub(super) status: DeploymentStatus,
    /// When to look again though nothing happens.
    pub(super) again: Option<Duration>,
}

/// Plans the next step.
pub(super) fn plan(world: World<'_>) -> Plan {
    let deployment = world.deployment;
    let (new, old) = revision::partition(deployment, world.sets);
    let mut step = Step {
        deployment,
        bounds: Bounds::of(deployment),
        revision: old.iter().map(|set| revision::of(set)).max().unwrap_or(0) + 1,
        new: new.map(Member::new),
        old: old.into_iter().map(Member::new).collect(),
        running: world.running,
        now: world.now,
        plan: Plan::default(),
        conditions: deployment.status.clone().and_then(|status| status.conditions).unwrap_or_default(),
    };
    step.run();
    step.finish()
}

struct Step<'a> {
    deployment: &'a Deployment,
    bounds: Bounds,
    revision: i64,
    new: Option<Member>,
    old: Vec<Member>,
    running: Vec<String>,
    now: Timestamp,
    plan: Plan,
    conditions: status::Conditions,
}

impl Step<'_> {
    fn run(&mut self) {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return;
        }
        status::note_pause(self.deployment, &mut self.conditions, self.now);
        if let Some(new) = &self.new {
            let name = new.set.name_any();
            status::note_new_set(self.deployment, &mut self.conditions, &name, false, self.now);
        }
        let recreate = rolling::is_recreate(self.deployment);
        if self.is_paused() || self.is_scaling() {
            let known = self.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
            rolling::resize(self.bounds, (!recreate).then_some(known), self.new.as_mut(), &mut self.old);
        } else if recreate {
            self.recreate();
        } else {
            self.roll();
        }
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true)
    }

    /// Whether a ReplicaSet was last scaled for another size of the Deployment.
    fn is_scaling(&self) -> bool {
        let mut active = self.old.iter().chain(&self.new).filter(|member| member.replicas > 0);
        active.any(|member| member.desired().is_some_and(|desired| desired != self.bounds.replicas))
    }

    fn recreate(&mut self) {
        let old_active = rolling::total(&self.old) > 0;
        self.old.iter_mut().for_each(|member| member.replicas = 0);
        let new_uid = self.new.as_ref().and_then(|new| new.set.uid());
        // The ReplicaSets' word counts as well as the pods' own: one of the caches may lag behind.
        let told = |set: &ReplicaSet| set.status.as_ref().is_some_and(|status| status.replicas > 0);
        let old_running = self.running.iter().any(|uid| Some(uid) != new_uid.as_ref())
            || self.old.iter().any(|member| told(&member.set));
        if old_active || old_running {
            return;
        }
        match &mut self.new {
            Some(new) => new.replicas = self.bounds.replicas,
            None => self.create(self.bounds.replicas),
        }
    }

    /// One step of a rolling update. Kubernetes counts what it asked for; here also what is still there
    /// counts, so that there are never more pods than may be, not even for a moment.
    fn roll(&mut self) {
        let unseen = self.old.iter().chain(&self.new).any(Member::is_behind);
        let others: i32 = self.old.iter().map(Member::footprint).sum();
        let Some(new) = &mut self.new else {
            let replicas = rolling::new_replicas(self.bounds, 0, others);
            return self.create(if unseen { 0 } else { replicas });
        };
        let others = others + new.footprint() - new.replicas;
        let replicas = rolling::new_replicas(self.bounds, new.replicas, others);
        if replicas == new.replicas {
            rolling::shrink_old(self.bounds, new, &mut self.old);
        } else if replicas < new.replicas || !unseen {
            new.replicas = replicas;
        }
    }

    fn create(&mut self, replicas: i32) {
        let set = revision::replica_set(self.deployment, replicas, self.revision, self.bounds.max_total());
        let name = set.name_any();
        status::note_new_set(self.deployment, &mut self.conditions, &name, true, self.now);
        self.plan.create = Some(set);
    }

    fn finish(mut self) -> Plan {
        let deleting = self.deployment.metadata.deletion_timestamp.is_some();
        if !deleting {
            self.plan.update = self.updates();
            self.plan.revision = self.revision_to_note();
        }
        let conditions = std::mem::take(&mut self.conditions);
        let mut written = status::counts(self.deployment, self.new.as_ref(), &self.old, conditions, self.now);
        if !deleting && !self.is_paused() {
            self.plan.again =
                status::progress(self.deployment, self.new.as_ref(), &self.old, &mut written, self.now);
        }
        let settled = self.plan.update.is_empty() && self.plan.create.is_none();
        if !deleting && settled && (self.is_paused() || status::is_complete(self.deployment, &written)) {
            self.plan.delete = self.forgotten();
        }
        self.plan.status = written;
        self.plan
    }

    fn updates(&self) -> Vec<Update> {
        let new = self.new.iter().map(|member| self.update(member, true));
        let old = self.old.iter().map(|member| self.update(member, false));
        new.chain(old).flatten().collect()
    }

    /// The change that a member needs, if any.
    fn update(&self, member: &Member, is_new: bool) -> Option<Update> {
        let known = member.set.annotations();
        let mut annotations = BTreeMap::new();
        let mut min_ready_seconds = None;
        if is_new {
            // A ReplicaSet of an earlier template that is wanted again becomes the newest revision.
            annotations = revision::annotations(self.deployment, known, self.revision);
            let wanted = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
            let present = member.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
            min_ready_seconds = (wanted != present).then_some(wanted);
        }
        if is_new || member.replicas > 0 || member.replicas != member.before() {
            let sizes =
                [(DESIRED, self.bounds.replicas.to_string()), (MAX, self.bounds.max_total().to_string())];
            let sizes = sizes.into_iter().filter(|(name, size)| known.get(*name) != Some(size));
            annotations.extend(sizes.map(|(name, size)| (name.to_owned(), size)));
        }
        let replicas = (member.before(), member.replicas);
        let changes = replicas.0 != replicas.1 || !annotations.is_empty() || min_ready_seconds.is_some();
        changes.then(|| Update { set: member.set.clone(), replicas, annotations, min_ready_seconds })
    }

    /// The revision of the present template, where the Deployment does not carry it.
    fn revision_to_note(&self) -> Option<i64> {
        let current = match &self.new {
            Some(new) => revision::of(&new.set).max(self.revision),
            None => self.plan.create.as_ref().map(|_| self.revision)?,
        };
        let known = self.deployment.annotations().get(revision::REVISION);
        (known != Some(&current.to_string())).then_some(current)
    }

    /// Old ReplicaSets beyond the history that the Deployment keeps: the oldest revisions, if nothing of
    /// them is left.
    fn forgotten(&self) -> Vec<Arc<ReplicaSet>> {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let limit = usize::try_from(limit.unwrap_or(HISTORY_LIMIT)).unwrap_or(0);
        let alive = self.old.iter().filter(|member| member.set.metadata.deletion_timestamp.is_none());
        let mut sets: Vec<_> = alive.map(|member| member.set.clone()).collect();
        sets.sort_by_key(|set| revision::of(set));
        let excess = sets.len().saturating_sub(limit);
        let is_empty = |set: &Arc<ReplicaSet>| {
            let status = set.status.clone().unwrap_or_default();
            let asked = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            status.replicas == 0 && asked == 0 && set.metadata.generation <= status.observed_generation
        };
        sets.into_iter().take(excess).filter(is_empty).collect()
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
