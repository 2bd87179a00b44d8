//! NodeResourcesFit and NodeResourcesBalancedAllocation: room for the pod, and where it is best used.

use std::borrow::Cow;

use super::{MAX_SCORE, Rejection};
use crate::core::node::NodeInfo;
use crate::core::place::Place;
use crate::core::plugin::Plugin;
use crate::core::pod::PodInfo;
use crate::core::profile::{Fit, Profile, Strategy};
use crate::core::resources::Resources;

/// Whether what the pod requests is free on the node, and one more pod is allowed there.
pub(super) fn fit(pod: &PodInfo, place: &Place<'_>, profile: &Profile) -> Result<(), Rejection> {
    let (wanted, free, taken) = (&pod.requests, &place.node.allocatable, place.requested());
    let count = i64::try_from(place.count()).unwrap_or(i64::MAX);
    let lacks = |wanted: i64, free: i64, taken: i64| wanted > 0 && wanted > free - taken;
    // Nearly all nodes have room or lack one of these: the rest is for those that do.
    if count < place.node.capacity
        && !lacks(wanted.cpu, free.cpu, taken.cpu)
        && !lacks(wanted.memory, free.memory, taken.memory)
        && !lacks(wanted.ephemeral, free.ephemeral, taken.ephemeral)
        && wanted.scalar.is_empty()
    {
        return Ok(());
    }
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    let mut resolvable = true;
    if count >= place.node.capacity {
        reasons.push("Too many pods".into());
    }
    let mut check = |name: Cow<'static, str>, wanted: i64, allocatable: i64, taken: i64| {
        if lacks(wanted, allocatable, taken) {
            reasons.push(name);
            // More than the node has at all: no other pod is in the way.
            resolvable &= wanted <= allocatable;
        }
    };
    check("Insufficient cpu".into(), wanted.cpu, free.cpu, taken.cpu);
    check("Insufficient memory".into(), wanted.memory, free.memory, taken.memory);
    check("Insufficient ephemeral-storage".into(), wanted.ephemeral, free.ephemeral, taken.ephemeral);
    for (name, wanted) in wanted.scalar.iter().filter(|(name, _)| !is_ignored(name, &profile.fit)) {
        check(format!("Insufficient {name}").into(), *wanted, free.scalar(name), taken.scalar(name));
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Rejection { plugin: Plugin::NodeResourcesFit, reasons, resolvable })
    }
}

fn is_ignored(name: &str, fit: &Fit) -> bool {
    let group = || name.split_once('/').is_some_and(|(group, _)| fit.ignored_groups.contains(group));
    fit.ignored.contains(name) || group()
}

/// A resource as nodes are compared by it: what is there, what would be taken, and what is.
struct Amount {
    allocatable: i64,
    with_pod: i64,
    without: i64,
}

/// None for what the node does not have, and for extended resources that the pod does not ask for.
fn amount(name: &str, pod: &PodInfo, node: &NodeInfo, assumed: bool) -> Option<Amount> {
    let of = |all: &Resources, weight: (i64, i64)| match name {
        "cpu" => {
            if assumed {
                weight.0
            } else {
                all.cpu
            }
        }
        "memory" => {
            if assumed {
                weight.1
            } else {
                all.memory
            }
        }
        "ephemeral-storage" => all.ephemeral,
        other => all.scalar(other),
    };
    let (allocatable, wanted) = (
        of(&node.allocatable, (node.allocatable.cpu, node.allocatable.memory)),
        of(&pod.requests, pod.weight),
    );
    let without = of(&node.requested, node.weight);
    if allocatable <= 0 || (wanted == 0 && !matches!(name, "cpu" | "memory" | "ephemeral-storage")) {
        return None;
    }
    Some(Amount { allocatable, with_pod: without.saturating_add(wanted), without })
}

/// `part` of `whole` on the scale of scores, wide enough for bytes.
fn scaled(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * i128::from(MAX_SCORE) / i128::from(whole.max(1))).unwrap_or(0)
}

/// More for nodes of which less (or more, or as much as is wanted) would be taken.
pub(super) fn fit_score(pod: &PodInfo, node: &NodeInfo, fit: &Fit) -> i64 {
    let (mut sum, mut weights) = (0_i64, 0_i64);
    for (name, weight) in &fit.resources {
        let Some(amount) = amount(name, pod, node, true) else { continue };
        let score = match &fit.strategy {
            Strategy::LeastAllocated => {
                scaled((amount.allocatable - amount.with_pod).max(0), amount.allocatable)
            }
            Strategy::MostAllocated => scaled(amount.with_pod.min(amount.allocatable), amount.allocatable),
            Strategy::RequestedToCapacityRatio(shape) => {
                let score = along(shape, scaled(amount.with_pod.min(amount.allocatable), amount.allocatable));
                if score <= 0 {
                    // Such a resource has no say, as in Kubernetes.
                    continue;
                }
                score
            }
        };
        sum += score * weight;
        weights += weight;
    }
    match (&fit.strategy, weights) {
        (_, 0) => 0,
        (Strategy::RequestedToCapacityRatio(_), weights) => (sum as f64 / weights as f64).round() as i64,
        (_, weights) => sum / weights,
    }
}

/// The score at a use in percent: on the lines between the points, level before the first and after the last.
fn along(shape: &[(i64, i64)], used: i64) -> i64 {
    let Some(next) = shape.iter().position(|(point, _)| used <= *point) else {
        return shape.last().map_or(0, |(_, score)| *score);
    };
    let (right, score) = shape[next];
    match next.checked_sub(1).map(|before| shape[before]) {
        None => score,
        Some((left, from)) => from + (score - from) * (used - left) / (right - left).max(1),
    }
}

/// More for nodes of which the pod makes the use of resources more even. Pods that ask for nothing make no difference.
pub(super) fn balanced_allocation(pod: &PodInfo, node: &NodeInfo, resources: &[(String, i64)]) -> i64 {
    let asks = |name: &str| match name {
        "cpu" => pod.requests.cpu > 0,
        "memory" => pod.requests.memory > 0,
        "ephemeral-storage" => pod.requests.ephemeral > 0,
        other => pod.requests.scalar(other) > 0,
    };
    if !resources.iter().any(|(name, _)| asks(name)) {
        return 0;
    }
    let amounts = || resources.iter().filter_map(|(name, _)| amount(name, pod, node, false));
    let fraction = |taken: i64, of: i64| (taken as f64 / of as f64).min(1.0);
    let with_pod = evenness(amounts().map(|one| fraction(one.with_pod, one.allocatable)));
    let without = evenness(amounts().map(|one| fraction(one.without, one.allocatable)));
    let half = MAX_SCORE / 2;
    half + (half + with_pod - without) / 2
}

/// How even fractions are: the best score less their standard deviation.
fn evenness(fractions: impl Iterator<Item = f64> + Clone) -> i64 {
    let count = fractions.clone().count() as f64;
    if count < 2.0 {
        return MAX_SCORE;
    }
    let mean = fractions.clone().sum::<f64>() / count;
    let deviation = (fractions.map(|one| (one - mean) * (one - mean)).sum::<f64>() / count).sqrt();
    // Between half of the best and the best.
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_followed_between_its_points() {
        let shape = [(0, 0), (50, 100), (100, 20)];
        assert_eq!([0, 25, 50, 75, 100].map(|used| along(&shape, used)), [0, 50, 100, 60, 20]);
        assert_eq!((along(&[(10, 30), (20, 50)], 5), along(&[(10, 30), (20, 50)], 90)), (30, 50));
    }

    #[test]
    fn even_use_is_best() {
        let even = |fractions: &[f64]| evenness(fractions.iter().copied());
        assert_eq!((even(&[0.5, 0.5]), even(&[1.0, 0.0]), even(&[0.7])), (100, 50, 100));
        assert_eq!(even(&[0.0, 0.5, 1.0]), 59);
    }
}
