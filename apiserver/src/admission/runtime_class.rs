//! RuntimeClass (KEP-688): a pod that names one takes over its overhead, node selector and
//! tolerations; an overhead without class is refused.

use async_trait::async_trait;
use decapod_api::quantity::Quantity;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::{Attributes, Plugin};
use crate::registry::object::map_mut;
use crate::registry::{Call, row};

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const UNEXPLAINED: &str =
    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

pub(super) struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.creates() && write.is("", "pods")
    }

    async fn mutate(&self, write: &Attributes<'_>, pod: &mut Value) -> Result<(), Error> {
        match class_of(write, pod).await? {
            Some(class) => take_over(write.call, pod, &class),
            None => Ok(()),
        }
    }

    async fn validate(&self, write: &Attributes<'_>, pod: &Value) -> Result<(), Error> {
        let overhead = &pod["spec"]["overhead"];
        if overhead.is_null() && pod["spec"]["runtimeClassName"].is_null() {
            return Ok(());
        }
        let class = class_of(write, pod).await?;
        match class.as_ref().map(|class| &class["overhead"]).filter(|overhead| !overhead.is_null()) {
            Some(wanted) if same_amounts(&wanted["podFixed"], overhead) => Ok(()),
            Some(_) => Err(write.call.forbidden(MISMATCH)),
            None if overhead.is_null() => Ok(()),
            None => Err(write.call.forbidden(UNEXPLAINED)),
        }
    }
}

async fn class_of(write: &Attributes<'_>, pod: &Value) -> Result<Option<Value>, Error> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else { return Ok(None) };
    let found = write.registry.find(row("node.k8s.io", "v1", "runtimeclasses"), "", name).await?;
    let refusal = || write.call.forbidden(format!("pod rejected: RuntimeClass \"{name}\" not found"));
    found.map(Some).ok_or_else(refusal)
}

fn take_over(call: &Call, pod: &mut Value, class: &Value) -> Result<(), Error> {
    let fixed = &class["overhead"]["podFixed"];
    if !class["overhead"].is_null() {
        let own = &pod["spec"]["overhead"];
        if own.as_object().is_some_and(|own| !own.is_empty()) && !same_amounts(fixed, own) {
            return Err(call.forbidden(MISMATCH));
        }
        if !fixed.is_null() {
            map_mut(pod, "spec").insert("overhead".to_owned(), fixed.clone());
        }
    }
    let wanted = class["scheduling"]["nodeSelector"].as_object().into_iter().flatten();
    for (key, value) in wanted {
        let own = &pod["spec"]["nodeSelector"][key];
        if own.is_string() && own != value {
            return Err(call.forbidden(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or_default(),
                own.as_str().unwrap_or_default()
            )));
        }
        map_mut(&mut pod["spec"], "nodeSelector").insert(key.clone(), value.clone());
    }
    for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
        let own = map_mut(pod, "spec").entry("tolerations").or_insert_with(|| json!([]));
        if let Some(own) = own.as_array_mut()
            && !own.contains(toleration)
        {
            own.push(toleration.clone());
        }
    }
    Ok(())
}

/// Whether two maps of quantities name the same resources with the same amounts.
fn same_amounts(a: &Value, b: &Value) -> bool {
    let amounts = |map: &Value| -> Vec<(String, Option<Quantity>)> {
        let entries = map.as_object().into_iter().flatten();
        entries.map(|(name, text)| (name.clone(), text.as_str().and_then(|t| t.parse().ok()))).collect()
    };
    amounts(a) == amounts(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::core;

    #[test]
    fn a_pod_takes_over_what_its_class_says() {
        let call = Call::own(core("pods"), "default", "p");
        let class = json!({"overhead": {"podFixed": {"cpu": "250m"}}, "scheduling": {
            "nodeSelector": {"runtime": "vm"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}});
        let mut pod = json!({"spec": {"nodeSelector": {"zone": "a"}, "tolerations": [{"key": "x"}]}});
        take_over(&call, &mut pod, &class).unwrap();
        let once = pod.clone();
        take_over(&call, &mut pod, &class).unwrap();
        assert_eq!(pod, once, "a second time changes nothing");
        assert_eq!(pod["spec"]["overhead"], json!({"cpu": "250m"}));
        assert_eq!(pod["spec"]["nodeSelector"], json!({"zone": "a", "runtime": "vm"}));
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
        let mut other = json!({"spec": {"overhead": {"cpu": "1"}}});
        let refused = take_over(&call, &mut other, &class).unwrap_err();
        assert!(refused.to_string().ends_with(MISMATCH), "{refused}");
        let mut elsewhere = json!({"spec": {"nodeSelector": {"runtime": "host"}}});
        let refused = take_over(&call, &mut elsewhere, &class).unwrap_err().to_string();
        assert!(refused.contains("pod.spec.nodeSelector[runtime] = host"), "{refused}");
    }

    #[test]
    fn amounts_compare_by_value() {
        assert!(same_amounts(&json!({"cpu": "1"}), &json!({"cpu": "1000m"})));
        assert!(!same_amounts(&json!({"cpu": "1"}), &json!({"cpu": "1", "memory": "1"})));
        assert!(same_amounts(&Value::Null, &json!({})));
    }
}
