//! What a pod needs as a whole, by resource: its containers together, or an init container at its turn.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Resources whose amount a pod may state for all its containers together (KEP-2837).
const POD_LEVEL: [&str; 2] = ["cpu", "memory"];

pub(super) fn is_pod_level(name: &str) -> bool {
    POD_LEVEL.contains(&name) || name.starts_with("hugepages-")
}

/// What a pod requests of a node, by resource: the larger of what its containers (with restartable init
/// containers) need together and what each init container needs at its turn, plus the overhead (KEP-753).
pub fn effective_requests(spec: &PodSpec) -> Amounts {
    let mut total = pod_amounts(spec, |resources| resources.requests.as_ref());
    for (name, amount) in overhead(spec) {
        *total.entry(name).or_default() += amount;
    }
    total
}

/// What a pod is limited to, by resource, counted as [`effective_requests`]; a resource without limit stays
/// without.
pub fn effective_limits(spec: &PodSpec) -> Amounts {
    let mut total = pod_amounts(spec, |resources| resources.limits.as_ref());
    for (name, amount) in overhead(spec) {
        if let Some(limit) = total.get_mut(&name) {
            *limit += amount;
        }
    }
    total
}

fn overhead(spec: &PodSpec) -> impl Iterator<Item = (String, Quantity)> {
    spec.overhead.iter().flatten().filter_map(parsed)
}

fn parsed((name, text): (&String, &Text)) -> Option<(String, Quantity)> {
    Some((name.clone(), Quantity::try_from(text).ok()?))
}

/// One side (requests or limits) of a pod's resources as a whole, without its overhead.
pub fn pod_amounts(
    spec: &PodSpec,
    side: impl Fn(&ResourceRequirements) -> Option<&BTreeMap<String, Text>>,
) -> Amounts {
    let of = |container: &Container| -> Vec<(String, Quantity)> {
        let amounts = container.resources.as_ref().and_then(&side);
        amounts.into_iter().flatten().filter_map(parsed).collect()
    };
    let mut total = Amounts::new();
    for (name, amount) in spec.containers.iter().flat_map(of) {
        *total.entry(name).or_default() += amount;
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        for (name, amount) in of(container) {
            if sidecar {
                *total.entry(name.clone()).or_default() += amount;
                *sidecars.entry(name).or_default() += amount;
            } else {
                let at_its_turn = amount + sidecars.get(&name).copied().unwrap_or_default();
                let slot = peak.entry(name).or_default();
                *slot = (*slot).max(at_its_turn);
            }
        }
    }
    for (name, amount) in peak.into_iter().chain(sidecars) {
        let slot = total.entry(name).or_default();
        *slot = (*slot).max(amount);
    }
    // What the pod states as a whole goes before what its containers add up to.
    let stated = spec.resources.as_ref().and_then(&side).into_iter().flatten().filter_map(parsed);
    total.extend(stated.filter(|(name, _)| is_pod_level(name)));
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_count_init_containers_at_their_turn() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}],
            "initContainers": [
                {"name": "i", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}}},
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
                {"name": "j", "resources": {"requests": {"cpu": "1800m"}}}],
            "overhead": {"cpu": "100m"}}))
        .unwrap();
        let got = effective_requests(&spec);
        assert_eq!(got["cpu"], Quantity::from_millis(2400));
        assert_eq!(got["memory"].to_string(), "1Gi");
        assert!(effective_limits(&spec).is_empty());
    }

    #[test]
    fn a_pod_may_state_its_resources_as_a_whole() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "example.com/x": "2"}}}],
            "resources": {"limits": {"cpu": "3"}}, "overhead": {"cpu": "500m", "memory": "1Mi"}}))
        .unwrap();
        let got = effective_limits(&spec);
        assert_eq!(
            (got["cpu"], got["example.com/x"]),
            (Quantity::from_millis(3500), Quantity::from_units(2))
        );
        assert!(!got.contains_key("memory"), "no limit: {got:?}");
    }
}
