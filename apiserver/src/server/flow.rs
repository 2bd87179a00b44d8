//! Kubernetes' priority levels and flow schemas, as every cluster has them: the objects that say which
//! requests go before which. They are kept as they should be unless somebody took one over by its
//! annotation; the two mandatory ones of each kind always.

use decapod_api::resource::Resource;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::bootstrap::ensure;
use crate::registry::update::Part;
use crate::registry::{Call, Registry, row};

/// The API group of these kinds.
pub(super) const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Says whether we may still change an object.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// Writes what is missing, and puts right what nobody took over.
pub(super) async fn objects(registry: &Registry) -> Result<(), Error> {
    let levels = levels().into_iter().map(|level| (row(GROUP, "v1", "prioritylevelconfigurations"), level));
    let schemas = schemas().into_iter().map(|schema| (row(GROUP, "v1", "flowschemas"), schema));
    for (kind, (name, spec)) in levels.chain(schemas) {
        keep(registry, kind, name, spec).await?;
    }
    Ok(())
}

async fn keep(
    registry: &Registry,
    kind: &'static Resource,
    name: &'static str,
    spec: Value,
) -> Result<(), Error> {
    let object = json!({"metadata": {"annotations": {AUTO_UPDATE: "true"}}, "spec": spec});
    ensure(registry, kind, "", name, object).await?;
    let call = Call::own(kind, "", name);
    let Some((existing, _)) = registry.current(&call).await? else { return Ok(()) };
    let ours = MANDATORY.contains(&name) || existing["metadata"]["annotations"][AUTO_UPDATE] == "true";
    if !ours || says(&existing["spec"], &spec) {
        return Ok(());
    }
    let change = |old: &Value| {
        let mut new = old.clone();
        new["spec"] = spec.clone();
        Ok(new)
    };
    registry.modify(&call, Part::Main, change).await.map(drop)
}

/// Whether all that is wanted is there; defaults may be there besides.
fn says(actual: &Value, wanted: &Value) -> bool {
    match (actual, wanted) {
        (Value::Object(actual), Value::Object(wanted)) => {
            wanted.iter().all(|(field, wanted)| says(actual.get(field).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(actual), Value::Array(wanted)) => {
            actual.len() == wanted.len() && actual.iter().zip(wanted).all(|(a, w)| says(a, w))
        }
        (actual, wanted) => actual == wanted,
    }
}

/// The priority levels: their shares, how much of these they lend, and their queues.
fn levels() -> Vec<(&'static str, Value)> {
    let mut levels = vec![
        (
            "exempt",
            json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}),
        ),
        (
            "catch-all",
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
                "limitResponse": {"type": "Reject"}}}),
        ),
    ];
    for (name, shares, lendable, queues, hand) in [
        ("system", 30, 33, 64, 6),
        ("node-high", 40, 25, 64, 6),
        ("leader-election", 10, 0, 16, 4),
        ("workload-high", 40, 50, 128, 6),
        ("workload-low", 100, 90, 128, 6),
        ("global-default", 20, 50, 128, 6),
    ] {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
        let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable,
            "limitResponse": {"type": "Queue", "queuing": queuing}});
        levels.push((name, json!({"type": "Limited", "limited": limited})));
    }
    levels
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

fn everything() -> (Value, Value) {
    (
        json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]),
        json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]),
    )
}

fn leases(verbs: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": ["*"]})
}

/// The flow schemas: which requests go to which level.
fn schemas() -> Vec<(&'static str, Value)> {
    let all = || vec![group("system:unauthenticated"), group("system:authenticated")];
    let nodes = || vec![group("system:nodes")];
    let system = || {
        vec![json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}})]
    };
    let (manager, scheduler) = (user("system:kube-controller-manager"), user("system:kube-scheduler"));
    let leaders: Vec<Value> = [manager.clone(), scheduler.clone()].into_iter().chain(system()).collect();
    let of_node = json!([
        {"verbs": ["*"], "apiGroups": [""], "resources": ["nodes", "nodes/status"], "namespaces": ["*"],
            "clusterScope": true},
        leases(&["*"])]);
    let probes = json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]);
    let electing = json!([leases(&["get", "create", "update"])]);
    let none = || Value::Null;
    let whole = || everything();
    let (by_user, by_namespace) = (Some("ByUser"), Some("ByNamespace"));
    [
        ("exempt", "exempt", 1, None, vec![group("system:masters")], whole()),
        ("probes", "exempt", 2, None, all(), (none(), probes)),
        ("system-leader-election", "leader-election", 100, by_user, leaders, (electing, none())),
        ("system-node-high", "node-high", 400, by_user, nodes(), (of_node, none())),
        ("system-nodes", "system", 500, by_user, nodes(), whole()),
        ("kube-controller-manager", "workload-high", 800, by_namespace, vec![manager], whole()),
        ("kube-scheduler", "workload-high", 800, by_namespace, vec![scheduler], whole()),
        ("kube-system-service-accounts", "workload-high", 900, by_namespace, system(), whole()),
        ("service-accounts", "workload-low", 9_000, by_user, vec![group("system:serviceaccounts")], whole()),
        ("global-default", "global-default", 9_900, by_user, all(), whole()),
        ("catch-all", "catch-all", 10_000, by_user, all(), whole()),
    ]
    .into_iter()
    .map(|(name, level, precedence, by, subjects, (resources, paths))| {
        let mut rule = json!({"subjects": subjects});
        if resources.is_array() {
            rule["resourceRules"] = resources;
        }
        if paths.is_array() {
            rule["nonResourceRules"] = paths;
        }
        let mut spec = json!({"priorityLevelConfiguration": {"name": level},
            "matchingPrecedence": precedence, "rules": [rule]});
        if let Some(by) = by {
            spec["distinguisherMethod"] = json!({"type": by});
        }
        (name, spec)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_schema_names_a_level() {
        let levels: Vec<&str> = levels().into_iter().map(|(name, _)| name).collect();
        let schemas = schemas();
        assert_eq!((levels.len(), schemas.len()), (8, 11));
        for (name, spec) in schemas {
            let level = spec["priorityLevelConfiguration"]["name"].as_str().unwrap();
            assert!(levels.contains(&level), "{name}: {level}");
        }
    }

    #[test]
    fn defaults_are_no_difference() {
        let wanted = json!({"a": [{"b": 1}]});
        assert!(says(&json!({"a": [{"b": 1, "default": true}], "c": 2}), &wanted));
        assert!(!says(&json!({"a": [{"b": 2}]}), &wanted));
        assert!(!says(&json!({"a": []}), &wanted));
    }
}
