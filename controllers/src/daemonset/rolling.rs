//! The roll-out of a DaemonSet's template: on each node the old pod goes before the new one comes, or, with surge,
//! after the new one is available.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::plan::{Places, Plan, World};

/// Adds to a plan what the roll-out needs. `desired` is the number of nodes that are to have a pod; of them
/// `max_surge` may have two, or `max_unavailable` none that is available.
pub(super) fn plan(
    world: &World<'_>,
    places: &Places,
    desired: usize,
    (max_surge, max_unavailable): (usize, usize),
    plan: &mut Plan,
) {
    if max_surge > 0 {
        surge(world, places, desired, max_surge, plan);
    } else {
        replace(world, places, max_unavailable, plan);
    }
}

/// Deletes old pods: all that serve nobody, and of the others as many as may be missing.
fn replace(world: &World<'_>, places: &Places, max_unavailable: usize, plan: &mut Plan) {
    let (mut unavailable, mut candidates) = (0, Vec::new());
    for place in places.values().filter(|place| place.fit.runs || !place.pods.is_empty()) {
        match place.new_and_old(world) {
            Some((Some(new), None)) if world.is_available(new) => {}
            Some((None, Some(old))) if world.is_available(old) => candidates.push(old.clone()),
            Some((None, Some(old))) => {
                unavailable += 1;
                plan.delete.push(old.clone());
            }
            _ => unavailable += 1,
        }
    }
    plan.delete.extend(candidates.into_iter().take(max_unavailable.saturating_sub(unavailable)));
}

/// Creates new pods beside old ones, and deletes old ones whose successors are available.
fn surge(world: &World<'_>, places: &Places, desired: usize, max_surge: usize, plan: &mut Plan) {
    let (mut surging, mut available) = (0, 0);
    let (mut candidates, mut strayed): (Vec<&String>, Vec<Arc<Pod>>) = (Vec::new(), Vec::new());
    for (node, place) in places {
        let Some((new, old)) = place.new_and_old(world) else {
            surging += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|pod| world.is_available(pod)));
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) => match (world.is_available(old), place.fit.runs) {
                (false, false) => plan.delete.push(old.clone()),
                // It serves nobody: its successor need not wait for its turn.
                (false, true) => plan.create.push(node.clone()),
                (true, false) => strayed.push(old.clone()),
                (true, true) => candidates.push(node),
            },
            (Some(new), Some(old)) if world.is_available(new) => plan.delete.push(old.clone()),
            (Some(_), Some(_)) => surging += 1,
        }
    }
    plan.delete.extend(strayed.into_iter().take(available.saturating_sub(desired)));
    plan.create.extend(candidates.into_iter().take(max_surge.saturating_sub(surging)).cloned());
}
