//! Whom a critical pod displaces that does not fit on its node: as few as will do, and those that were promised least.
//! Pure.
//!
//! The scheduler makes room for what it places. A pod from a file asks no scheduler, and one whose node was chosen by
//! hand neither; without room for such a pod the node or the cluster might not work.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::admit::{self, Shortage};
use super::qos;
use crate::eviction::{is_critical, priority};

/// What a displaced pod is told, and its `status.reason`.
pub(crate) const REASON: &str = "Preempting";
/// The event, and `status.message`.
pub(crate) const MESSAGE: &str = "Preempted in order to admit critical pod";

/// Whether `pod` may displace `other`.
fn displaces(pod: &Pod, other: &Pod) -> bool {
    is_critical(pod) && (!is_critical(other) || priority(pod) > priority(other))
}

/// The pods that have to go so that nothing is short any more; `None` where that would not be enough.
pub(crate) fn victims(pod: &Pod, others: &[Arc<Pod>], short: &[Shortage]) -> Option<Vec<Arc<Pod>>> {
    let missing: Vec<(&str, i64)> = short.iter().map(|s| (s.name.as_str(), s.missing())).collect();
    let of = |class: qos::Class| -> Vec<Arc<Pod>> {
        let others = others.iter().filter(|other| displaces(pod, other));
        others.filter(|other| other.spec.as_ref().is_some_and(|s| qos::class(s) == class)).cloned().collect()
    };
    let (best_effort, burstable, guaranteed) =
        (of(qos::Class::BestEffort), of(qos::Class::Burstable), of(qos::Class::Guaranteed));
    // Of each class only what the classes below it cannot give.
    let guaranteed = choose(guaranteed, without(&missing, best_effort.iter().chain(&burstable)))?;
    let burstable = choose(burstable, without(&missing, best_effort.iter().chain(&guaranteed)))?;
    let best_effort = choose(best_effort, without(&missing, burstable.iter().chain(&guaranteed)))?;
    Some([best_effort, burstable, guaranteed].concat())
}

type Missing<'a> = Vec<(&'a str, i64)>;

/// What is missing yet once these pods are gone.
fn without<'a, 'p>(missing: &Missing<'a>, gone: impl Iterator<Item = &'p Arc<Pod>> + Clone) -> Missing<'a> {
    let rest = missing.iter().map(|(name, amount)| {
        let freed: i64 = gone.clone().map(|pod| held(pod, name)).sum();
        (*name, amount.saturating_sub(freed))
    });
    rest.filter(|(_, amount)| *amount > 0).collect()
}

/// Takes the pod that comes nearest to what is missing, and again, until nothing is.
fn choose(mut pods: Vec<Arc<Pod>>, mut missing: Missing<'_>) -> Option<Vec<Arc<Pod>>> {
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let nearest = (0..pods.len()).min_by(|a, b| {
            let rank = |index: usize| (distance(&pods[index], &missing), size(&pods[index], &missing));
            let (a, b) = (rank(*a), rank(*b));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
        })?;
        let pod = pods.swap_remove(nearest);
        missing = without(&missing, std::iter::once(&pod));
        chosen.push(pod);
    }
    Some(chosen)
}

/// How much would still be missing: the sum of the squares of each resource's share.
#[expect(clippy::cast_precision_loss, reason = "only ever compared, with amounts far below 2^53")]
fn distance(pod: &Pod, missing: &Missing<'_>) -> f64 {
    let shares = missing.iter().map(|(name, amount)| {
        let left = amount.saturating_sub(held(pod, name)).max(0);
        (left as f64 / *amount as f64).powi(2)
    });
    shares.sum()
}

/// Between pods that come as near, the one that had less.
fn size(pod: &Pod, missing: &Missing<'_>) -> i64 {
    missing.iter().map(|(name, _)| held(pod, name)).fold(0, i64::saturating_add)
}

fn held(pod: &Pod, name: &str) -> i64 {
    match (name, pod.spec.as_ref()) {
        ("pods", _) => 1,
        (_, None) => 0,
        (name, Some(spec)) => admit::count(name, qos::request(spec, name)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, priority: i32, requests: Value, limits: Value) -> Arc<Pod> {
        let resources = json!({ "requests": requests, "limits": limits });
        let spec = json!({ "priority": priority, "containers": [{ "name": "c", "resources": resources }] });
        Arc::new(serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap())
    }

    fn critical() -> Arc<Pod> {
        pod("critical", 2_000_000_000, json!({ "cpu": "1" }), json!({}))
    }

    fn short(name: &str, missing: i64) -> Shortage {
        Shortage { name: name.to_owned(), requested: missing, used: 10, capacity: 10 }
    }

    fn chosen(pod: &Pod, others: &[Arc<Pod>], short: &[Shortage]) -> Option<Vec<String>> {
        let names = victims(pod, others, short)?.into_iter().map(|pod| pod.metadata.name.clone().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        Some(names)
    }

    fn node() -> Vec<Arc<Pod>> {
        vec![
            pod("best-effort", 0, json!({}), json!({})),
            pod("small", 0, json!({ "cpu": "100m", "memory": "64Mi" }), json!({})),
            pod("large", 0, json!({ "cpu": "1", "memory": "512Mi" }), json!({})),
            pod("sure", 0, json!({ "cpu": "1", "memory": "1Gi" }), json!({ "cpu": "1", "memory": "1Gi" })),
            pod("system", 2_000_000_000, json!({ "cpu": "4" }), json!({})),
        ]
    }

    #[test]
    fn who_was_promised_least_goes_first() {
        let (pod, others) = (critical(), node());
        let chosen = |short: &[Shortage]| chosen(&pod, &others, short).map(|names| names.join(" "));
        assert_eq!(chosen(&[short("pods", 1)]).as_deref(), Some("best-effort"));
        assert_eq!(chosen(&[short("pods", 2)]).as_deref(), Some("best-effort small"));
        assert_eq!(chosen(&[short("cpu", 100)]).as_deref(), Some("small"));
        assert_eq!(chosen(&[short("cpu", 101)]).as_deref(), Some("large"));
        assert_eq!(chosen(&[short("cpu", 1100)]).as_deref(), Some("large small"));
        // Guaranteed pods go only for what all others together do not have.
        assert_eq!(chosen(&[short("cpu", 1200)]).as_deref(), Some("large sure"));
        assert_eq!(chosen(&[short("cpu", 100), short("pods", 2)]).as_deref(), Some("best-effort small"));
        // Critical ones never do.
        assert_eq!(chosen(&[short("cpu", 3000)]), None);
        assert_eq!(chosen(&[short("example.com/none", 1)]), None);
        assert_eq!(chosen(&[]).as_deref(), Some(""));
    }

    #[test]
    fn only_critical_pods_displace() {
        let plain = pod("plain", 1000, json!({ "cpu": "1" }), json!({}));
        assert_eq!(chosen(&plain, &node(), &[short("cpu", 100)]), None);
        let higher = pod("node-critical", 2_000_001_000, json!({ "cpu": "4" }), json!({}));
        let system = [node().pop().unwrap()];
        assert_eq!(chosen(&higher, &system, &[short("cpu", 1)]), Some(vec!["system".to_owned()]));
    }
}
