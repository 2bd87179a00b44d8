//! A kubelet changes its own node, and the pods on it, and nothing else.

use async_trait::async_trait;
use decapod_api::meta;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::auth::node::name_of;
use crate::registry::Call;

/// Labels under these domains say who may run on a node: only a few of them are a kubelet's to set.
const RESTRICTED_PREFIX: &str = "node-restriction.kubernetes.io/";
const NODE_LEASES: &str = "kube-node-lease";

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        name_of(&write.call.user).is_some()
    }

    async fn validate(&self, write: &Attributes<'_>, object: &Value) -> Result<(), Error> {
        match write.operation {
            Operation::Delete => check_delete(write.call, object),
            operation => check_write(write.call, operation, object, write.old),
        }
    }
}

fn is(resource: &Resource, group: &str, plural: &str) -> bool {
    resource.group == group && resource.plural == plural
}

fn check_write(call: &Call, operation: Operation, object: &Value, old: Option<&Value>) -> Result<(), Error> {
    let Some(node) = name_of(&call.user) else { return Ok(()) };
    let refuse = |why: String| Err(call.forbidden(format!("node \"{node}\" {why}")));
    if is(call.resource, "", "nodes") {
        return match own_node(&node, call, object, old) {
            Some(why) => refuse(why),
            None => Ok(()),
        };
    }
    if is(call.resource, "", "pods") {
        if operation == Operation::Create {
            let mirror = object["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
            if !mirror || object["spec"]["nodeName"] != *node {
                return refuse("can only create mirror pods bound to itself".to_owned());
            }
        } else if old.is_some_and(|old| old["spec"]["nodeName"] != *node) {
            return refuse(format!(
                "can only update pod status for pods with spec.nodeName set to \"{node}\""
            ));
        }
    }
    if is(call.resource, "coordination.k8s.io", "leases")
        && (call.namespace != NODE_LEASES || call.name != node)
    {
        return refuse("can only access node lease with the same name as the requesting node".to_owned());
    }
    if is(call.resource, "storage.k8s.io", "csinodes") && call.name != node {
        return refuse("can only access CSINode with the same name as the requesting node".to_owned());
    }
    Ok(())
}

fn own_node(node: &str, call: &Call, object: &Value, old: Option<&Value>) -> Option<String> {
    if call.name != node {
        return Some(format!("is not allowed to modify node \"{}\"", call.name));
    }
    let empty = Value::Null;
    let before = old.unwrap_or(&empty);
    if old.is_some() && object["spec"]["taints"] != before["spec"]["taints"] {
        return Some("is not allowed to modify taints".to_owned());
    }
    let (labels, previous) = (meta::labels(object), meta::labels(before));
    let restricted = labels
        .iter()
        .filter(|(key, value)| key.contains(RESTRICTED_PREFIX) && previous.get(*key) != Some(*value));
    let restricted: Vec<&str> = restricted.map(|(key, _)| *key).collect();
    if !restricted.is_empty() {
        return Some(format!("is not allowed to modify labels: {}", restricted.join(", ")));
    }
    None
}

fn check_delete(call: &Call, old: &Value) -> Result<(), Error> {
    let Some(node) = name_of(&call.user) else { return Ok(()) };
    if is(call.resource, "", "pods") && old["spec"]["nodeName"] != *node {
        return Err(
            call.forbidden(format!("node \"{node}\" can only delete pods with spec.nodeName set to itself"))
        );
    }
    let own_lease = call.namespace == NODE_LEASES && call.name == node;
    if is(call.resource, "coordination.k8s.io", "leases") && !own_lease {
        return Err(call.forbidden(format!(
            "node \"{node}\" can only access node lease with the same name as the requesting node"
        )));
    }
    Ok(())
}
