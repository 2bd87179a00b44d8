//! DefaultTolerationSeconds: pods stay for a while on a node that is not ready or not reachable.

use async_trait::async_trait;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::registry::object::map_mut;

/// How long a pod stays on a node that is not ready or not reachable.
const TOLERATED_SECONDS: i64 = 300;

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.operation != Operation::Delete && write.is("", "pods")
    }

    async fn mutate(&self, _write: &Attributes<'_>, pod: &mut Value) -> Result<(), Error> {
        complete(pod);
        Ok(())
    }
}

/// Tolerates an unready or unreachable node for five minutes, unless the pod says otherwise.
fn complete(pod: &mut Value) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once() {
        let mut pod =
            json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        complete(&mut pod);
        complete(&mut pod);
        let list = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[1]["key"], "node.kubernetes.io/unreachable");
        let mut all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        complete(&mut all);
        assert_eq!(all["spec"]["tolerations"].as_array().unwrap().len(), 1);
    }
}
