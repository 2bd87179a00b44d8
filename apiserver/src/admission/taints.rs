//! TaintNodesByCondition: a new node takes no pods until the node controller has seen it ready.

use async_trait::async_trait;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::{Attributes, Plugin};
use crate::registry::object::map_mut;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.creates() && write.is("", "nodes")
    }

    async fn mutate(&self, _write: &Attributes<'_>, node: &mut Value) -> Result<(), Error> {
        let taints = map_mut(node, "spec").entry("taints").or_insert_with(|| json!([]));
        if let Some(taints) = taints.as_array_mut()
            && !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == EFFECT)
        {
            taints.push(json!({"key": NOT_READY, "effect": EFFECT}));
        }
        Ok(())
    }
}
