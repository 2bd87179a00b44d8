//! What a Deployment says of itself: counts, and the conditions Available, Progressing and ReplicaFailure
//! in Kubernetes' words, which `kubectl rollout status` waits for.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use kube::ResourceExt;

use super::rolling::{Bounds, Member};
use crate::common::condition::{self, Condition};

const AVAILABLE: &str = "Available";
pub(super) const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";
const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const UPDATED: &str = "ReplicaSetUpdated";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub(super) const CREATE_ERROR: &str = "ReplicaSetCreateError";

/// Conditions under construction.
pub(super) type Conditions = Vec<DeploymentCondition>;

/// The time within which a rollout must make progress; `None` where it may take for ever.
fn progress_deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds =
        deployment.spec.as_ref()?.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    Some(SignedDuration::from_secs(seconds.into()))
}

/// Notes that the Deployment was paused or resumed: meanwhile its deadline does not run.
pub(super) fn note_pause(deployment: &Deployment, conditions: &mut Conditions, now: Timestamp) {
    if progress_deadline(deployment).is_none() {
        return;
    }
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let reason = condition::find(conditions, PROGRESSING).map(|condition| condition.reason().to_owned());
    match reason.as_deref() {
        Some(TIMED_OUT) => {}
        Some(PAUSED) if !paused => {
            let text = "Deployment is resumed";
            condition::set(conditions, Condition::new(PROGRESSING, "Unknown", RESUMED, text, now));
        }
        reason if paused && reason != Some(PAUSED) => {
            let text = "Deployment is paused";
            condition::set(conditions, Condition::new(PROGRESSING, "Unknown", PAUSED, text, now));
        }
        _ => {}
    }
}

/// Notes which ReplicaSet the present template has: `created` now, or found from before.
pub(super) fn note_new_set(
    deployment: &Deployment,
    conditions: &mut Conditions,
    name: &str,
    created: bool,
    now: Timestamp,
) {
    if progress_deadline(deployment).is_none() {
        return;
    }
    if created {
        let text = format!("Created new replica set {name:?}");
        condition::set(conditions, Condition::new(PROGRESSING, "True", "NewReplicaSetCreated", &text, now));
    } else if condition::find(conditions, PROGRESSING).is_none() {
        let text = format!("Found new replica set {name:?}");
        condition::set(conditions, Condition::new(PROGRESSING, "True", "FoundNewReplicaSet", &text, now));
    }
}

/// Notes that the ReplicaSet of the present template could not be created; returns the words for it.
pub(super) fn note_failed_creation(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    name: &str,
    error: &str,
    now: Timestamp,
) -> String {
    let text = format!("Failed to create new replica set {name:?}: {error}");
    if progress_deadline(deployment).is_some() {
        let condition = Condition::new(PROGRESSING, "False", CREATE_ERROR, &text, now);
        condition::set(status.conditions.get_or_insert_default(), condition);
    }
    text
}

/// The counts, and whether the Deployment is available.
pub(super) fn counts(
    deployment: &Deployment,
    new: Option<&Member>,
    old: &[Member],
    mut conditions: Conditions,
    now: Timestamp,
) -> DeploymentStatus {
    let all = || old.iter().chain(new).map(|member| &member.set);
    let number = |set: &ReplicaSet, field: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| {
        set.status.as_ref().map_or(0, field)
    };
    let sum = |field: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        all().map(|set| number(set, field)).sum()
    };
    let replicas = sum(|status| status.replicas);
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    let asked: i32 = old.iter().chain(new).map(Member::before).sum();
    let bounds = Bounds::of(deployment);
    let condition = if available >= bounds.replicas - bounds.max_unavailable {
        let text = "Deployment has minimum availability.";
        Condition::new(AVAILABLE, "True", "MinimumReplicasAvailable", text, now)
    } else {
        let text = "Deployment does not have minimum availability.";
        Condition::new(AVAILABLE, "False", "MinimumReplicasUnavailable", text, now)
    };
    condition::set(&mut conditions, condition);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(replicas),
        updated_replicas: Some(new.map_or(0, |new| number(&new.set, |status| status.replicas))),
        ready_replicas: Some(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: Some(available),
        // What was asked of the ReplicaSets, not what there is: pods that are yet to come are missing too.
        unavailable_replicas: Some((asked - available).max(0)),
        terminating_replicas: terminating(all()),
        collision_count: deployment.status.as_ref().and_then(|status| status.collision_count),
        conditions: Some(conditions),
    }
}

/// Pods on their way out; `None` where a ReplicaSet does not tell of its own.
fn terminating<'a>(sets: impl Iterator<Item = &'a Arc<ReplicaSet>>) -> Option<i32> {
    let each = sets.map(|set| {
        let status = set.status.as_ref();
        let told = status.and_then(|status| status.terminating_replicas);
        // One that its controller never saw has no pods.
        let is_new = status.and_then(|status| status.observed_generation).unwrap_or(0) == 0;
        told.or(is_new.then_some(0))
    });
    each.sum()
}

/// Adds to `status` how the rollout goes; returns after which time its deadline has to be looked at.
pub(super) fn progress(
    deployment: &Deployment,
    new: Option<&Member>,
    old: &[Member],
    status: &mut DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let deadline = progress_deadline(deployment);
    let current = condition::find(&conditions, PROGRESSING).cloned();
    match deadline {
        None => condition::remove(&mut conditions, PROGRESSING),
        Some(deadline) => {
            let settled = status.replicas == status.updated_replicas
                && current.as_ref().is_some_and(|current| current.reason() == NEW_AVAILABLE);
            if !settled {
                note_progress(deployment, new, status, &mut conditions, deadline, now);
            }
        }
    }
    // What hinders the new ReplicaSet matters more than what hinders old ones.
    let failure = new.into_iter().chain(old).find_map(|member| failure(&member.set));
    match failure {
        Some(failure) => condition::set(&mut conditions, failure),
        None => condition::remove(&mut conditions, REPLICA_FAILURE),
    }
    let again = deadline.and_then(|deadline| {
        let progressing = condition::find(&conditions, PROGRESSING)?;
        let waits = !is_complete(deployment, status) && progressing.reason() != TIMED_OUT;
        let since = progressing.last_update_time.as_ref().filter(|_| waits)?.0;
        let left = deadline - now.duration_since(since);
        // A second later: the times of conditions are whole seconds.
        Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
    });
    status.conditions = Some(conditions);
    again
}

fn note_progress(
    deployment: &Deployment,
    new: Option<&Member>,
    status: &DeploymentStatus,
    conditions: &mut Conditions,
    deadline: SignedDuration,
    now: Timestamp,
) {
    let subject = match new {
        Some(new) => format!("ReplicaSet {:?}", new.set.name_any()),
        None => format!("Deployment {:?}", deployment.name_any()),
    };
    if is_complete(deployment, status) {
        let text = format!("{subject} has successfully progressed.");
        condition::set(conditions, Condition::new(PROGRESSING, "True", NEW_AVAILABLE, &text, now));
    } else if has_progressed(deployment, status) {
        let text = format!("{subject} is progressing.");
        condition::replace(conditions, Condition::new(PROGRESSING, "True", UPDATED, &text, now));
    } else if has_timed_out(conditions, deadline, now) {
        let text = format!("{subject} has timed out progressing.");
        condition::set(conditions, Condition::new(PROGRESSING, "False", TIMED_OUT, &text, now));
    }
}

/// All that was asked for runs the present template and is available, and nothing else runs.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let is_wanted = |number: Option<i32>| number.unwrap_or(0) == wanted;
    is_wanted(status.updated_replicas)
        && is_wanted(status.replicas)
        && is_wanted(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let before = deployment.status.clone().unwrap_or_default();
    let number = |field: Option<i32>| field.unwrap_or(0);
    let old = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(status.updated_replicas) > number(before.updated_replicas)
        || old(status) < old(&before)
        || number(status.ready_replicas) > number(before.ready_replicas)
        || number(status.available_replicas) > number(before.available_replicas)
}

fn has_timed_out(conditions: &[DeploymentCondition], deadline: SignedDuration, now: Timestamp) -> bool {
    let Some(condition) = condition::find(conditions, PROGRESSING) else { return false };
    match condition.reason() {
        // Nothing is to be rolled out, or the Deployment was paused: no deadline runs.
        NEW_AVAILABLE | PAUSED => false,
        TIMED_OUT => true,
        _ => condition.last_update_time.as_ref().is_some_and(|since| now.duration_since(since.0) >= deadline),
    }
}

fn failure(set: &ReplicaSet) -> Option<DeploymentCondition> {
    let conditions = set.status.as_ref()?.conditions.as_ref()?;
    let failure = condition::find(conditions, REPLICA_FAILURE)?;
    Some(DeploymentCondition {
        type_: failure.type_.clone(),
        status: failure.status.clone(),
        reason: failure.reason.clone(),
        message: failure.message.clone(),
        last_transition_time: failure.last_transition_time.clone(),
        last_update_time: failure.last_transition_time.clone(),
    })
}

/// Whether two statuses say the same: an absent number is a zero, as the API server may drop zeros.
pub(super) fn equals(one: &DeploymentStatus, other: &DeploymentStatus) -> bool {
    let normal = |status: &DeploymentStatus| {
        let zero = |field: Option<i32>| Some(field.unwrap_or(0));
        DeploymentStatus {
            replicas: zero(status.replicas),
            updated_replicas: zero(status.updated_replicas),
            ready_replicas: zero(status.ready_replicas),
            available_replicas: zero(status.available_replicas),
            unavailable_replicas: zero(status.unavailable_replicas),
            terminating_replicas: zero(status.terminating_replicas),
            conditions: Some(status.conditions.clone().unwrap_or_default()),
            ..status.clone()
        }
    };
    normal(one) == normal(other)
}
