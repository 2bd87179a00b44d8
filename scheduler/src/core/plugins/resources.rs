//! NodeResourcesFit and NodeResourcesBalancedAllocation: room for the pod, and where it is best used.

use std::borrow::Cow;

use super::{MAX_SCORE, Rejection};
use crate::core::node::NodeInfo;
use crate::core::pod::PodInfo;

/// Whether what the pod requests is free on the node, and one more pod is allowed there.
pub(super) fn fit(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    let mut resolvable = true;
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.capacity {
        reasons.push("Too many pods".into());
    }
    let (wanted, free, taken) = (&pod.requests, &node.allocatable, &node.requested);
    let mut check = |name: Cow<'static, str>, wanted: i64, allocatable: i64, taken: i64| {
        if wanted > 0 && wanted > allocatable - taken {
            reasons.push(name);
            // More than the node has at all: no other pod is in the way.
            resolvable &= wanted <= allocatable;
        }
    };
    check("Insufficient cpu".into(), wanted.cpu, free.cpu, taken.cpu);
    check("Insufficient memory".into(), wanted.memory, free.memory, taken.memory);
    check("Insufficient ephemeral-storage".into(), wanted.ephemeral, free.ephemeral, taken.ephemeral);
    for (name, wanted) in &wanted.scalar {
        let amount = |of: &std::collections::BTreeMap<String, i64>| of.get(name).copied().unwrap_or(0);
        check(format!("Insufficient {name}").into(), *wanted, amount(&free.scalar), amount(&taken.scalar));
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Rejection { plugin: "NodeResourcesFit", reasons, resolvable })
    }
}

/// More for nodes of which less would be taken: the mean over CPU and memory.
pub(super) fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free = |allocatable: i64, taken: i64| {
        let left = allocatable - taken;
        if allocatable <= 0 || left < 0 {
            0
        } else {
            i64::try_from(i128::from(left) * i128::from(MAX_SCORE) / i128::from(allocatable)).unwrap_or(0)
        }
    };
    let cpu = free(node.allocatable.cpu, node.weight.0.saturating_add(pod.weight.0));
    let memory = free(node.allocatable.memory, node.weight.1.saturating_add(pod.weight.1));
    i64::midpoint(cpu, memory)
}

/// More for nodes of which CPU and memory would be taken evenly.
pub(super) fn balanced_allocation(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let fraction = |allocatable: i64, taken: i64| {
        if allocatable <= 0 { 1.0 } else { (taken as f64 / allocatable as f64).min(1.0) }
    };
    let cpu = fraction(node.allocatable.cpu, node.requested.cpu.saturating_add(pod.requests.cpu));
    let memory = fraction(node.allocatable.memory, node.requested.memory.saturating_add(pod.requests.memory));
    // The standard deviation of two numbers is half their distance; a score lies between 0 and 100.
    ((1.0 - (cpu - memory).abs() / 2.0) * MAX_SCORE as f64) as i64
}
