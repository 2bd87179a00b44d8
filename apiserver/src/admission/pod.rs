//! Pods: the tolerations that every pod has for a while, and its priority.

use decapod_api::meta;
use decapod_api::status::Error;
use serde_json::{Value, json};

use crate::registry::object::map_mut;
use crate::registry::{Call, Registry, row};

/// How long a pod stays on a node that is not ready or not reachable.
const TOLERATED_SECONDS: i64 = 300;

/// Tolerates an unready or unreachable node for five minutes, unless the pod says otherwise.
pub(super) fn default_tolerations(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerations = pod["spec"]["tolerations"].as_array();
        let said = tolerations.into_iter().flatten().any(|t| {
            let its_key = t["key"].as_str().unwrap_or_default();
            let effect = t["effect"].as_str().unwrap_or_default();
            (its_key == key || its_key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if said {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": TOLERATED_SECONDS});
        let list = map_mut(pod, "spec").entry("tolerations").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(toleration);
        }
    }
}

/// Resolves the priority class to a number; without one the global default, else zero.
pub(super) async fn priority(registry: &Registry, call: &Call, pod: &mut Value) -> Result<(), Error> {
    let classes = row("scheduling.k8s.io", "v1", "priorityclasses");
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if name.is_empty() {
        let all = registry.all(classes, "").await?;
        let defaults = all.into_iter().filter(|class| class["globalDefault"] == Value::Bool(true));
        // Of several defaults the lowest counts.
        defaults.min_by_key(|class| class["value"].as_i64())
    } else {
        let found = registry.find(classes, "", &name).await?;
        Some(found.ok_or_else(|| call.forbidden(format!("no PriorityClass with name {name} was found")))?)
    };
    let value = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
    let policy =
        class.as_ref().and_then(|class| class["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority");
    let spec = map_mut(pod, "spec");
    let asked = spec.get("priority").and_then(Value::as_i64);
    if asked.is_some_and(|asked| asked != value) {
        return Err(call.forbidden(format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            asked.unwrap_or_default()
        )));
    }
    if let Some(class) = &class {
        spec.insert("priorityClassName".to_owned(), meta::name(class).into());
    }
    spec.insert("priority".to_owned(), value.into());
    spec.insert("preemptionPolicy".to_owned(), policy.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once() {
        let mut pod =
            json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        default_tolerations(&mut pod);
        default_tolerations(&mut pod);
        let list = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[1]["key"], "node.kubernetes.io/unreachable");
        let mut all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        default_tolerations(&mut all);
        assert_eq!(all["spec"]["tolerations"].as_array().unwrap().len(), 1);
    }
}
