//! DefaultTolerationSeconds: pods stay for a while on a node that is not ready or not reachable.

use async_trait::async_trait;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::registry::object::map_mut;

/// How long pods that do not say otherwise stay on a node that is lost, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerations {
    /// On a node that says that it is not ready (`--default-not-ready-toleration-seconds`).
    pub not_ready: i64,
    /// On one that is not heard of (`--default-unreachable-toleration-seconds`).
    pub unreachable: i64,
}

impl Default for Tolerations {
    /// Kubernetes' five minutes.
    fn default() -> Self {
        Self { not_ready: 300, unreachable: 300 }
    }
}

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.operation != Operation::Delete && write.is("", "pods")
    }

    async fn mutate(&self, write: &Attributes<'_>, pod: &mut Value) -> Result<(), Error> {
        complete(pod, write.registry.admission.tolerations);
        Ok(())
    }
}

/// Tolerates an unready or unreachable node for a while, unless the pod says otherwise.
fn complete(pod: &mut Value, seconds: Tolerations) {
    for (key, seconds) in [
        ("node.kubernetes.io/not-ready", seconds.not_ready),
        ("node.kubernetes.io/unreachable", seconds.unreachable),
    ] {
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
            "tolerationSeconds": seconds});
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
        let seconds = Tolerations { not_ready: 7, unreachable: 15 };
        complete(&mut pod, seconds);
        complete(&mut pod, seconds);
        let list = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[1]["key"], "node.kubernetes.io/unreachable");
        assert_eq!(list[1]["tolerationSeconds"], 15);
        let mut all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        complete(&mut all, seconds);
        assert_eq!(all["spec"]["tolerations"].as_array().unwrap().len(), 1);
    }
}
