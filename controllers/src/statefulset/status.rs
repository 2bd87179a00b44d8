//! What a StatefulSet says of itself; `kubectl rollout status` waits for it.

use k8s_openapi::api::apps::v1::StatefulSetStatus;
use kube::ResourceExt;

use super::identity;
use super::plan::{Deed, Step, World, availability};
use crate::common::pods::{self, Availability};

/// The status that the pods amount to, were these steps done.
pub(super) fn plan(world: &World<'_>, steps: &[Step]) -> StatefulSetStatus {
    let (current, update) = (world.current.name, world.update.name);
    let name = world.set.name_any();
    let members: Vec<_> =
        world.pods.iter().filter(|pod| identity::ordinal(&name, &pod.name_any()).is_some()).collect();
    let deleted = |name: &str| {
        let mut deleted = steps.iter().filter(|step| matches!(step.deed, Deed::Delete(_)));
        deleted.any(|step| step.pod == name)
    };
    let of = |revision: &str| {
        let staying = members.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let staying = staying.filter(|pod| identity::revision(pod) == revision);
        count(staying.filter(|pod| !deleted(&pod.name_any())).count())
    };
    let ready = members.iter().filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod)).count();
    let available = members.iter().filter(|pod| availability(world, pod) == Availability::Available);
    let mut status = StatefulSetStatus {
        replicas: count(members.len()),
        ready_replicas: Some(count(ready)),
        available_replicas: Some(count(available.count())),
        current_replicas: Some(of(current)),
        updated_replicas: Some(of(update)),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        collision_count: Some(world.collisions),
        observed_generation: world.set.metadata.generation,
        conditions: world.set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    let strategy = world.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    let wanted = Some(world.spec.replicas.unwrap_or(1));
    let complete = status.updated_replicas == wanted
        && status.ready_replicas == wanted
        && Some(status.replicas) == wanted;
    if complete && strategy != Some("OnDelete") {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
    status
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Whether two statuses say the same: an absent number is a zero, as the API server may drop zeros.
pub(super) fn equals(one: &StatefulSetStatus, other: &StatefulSetStatus) -> bool {
    let normal = |status: &StatefulSetStatus| {
        let zero = |field: Option<i32>| Some(field.unwrap_or(0));
        StatefulSetStatus {
            ready_replicas: zero(status.ready_replicas),
            available_replicas: zero(status.available_replicas),
            current_replicas: zero(status.current_replicas),
            updated_replicas: zero(status.updated_replicas),
            collision_count: zero(status.collision_count),
            conditions: Some(status.conditions.clone().unwrap_or_default()),
            ..status.clone()
        }
    };
    normal(one) == normal(other)
}
