//! Priority (KEP-268): the name of a priority class becomes a number, and there is one default.

use async_trait::async_trait;
use decapod_api::meta;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::registry::object::map_mut;
use crate::registry::{Call, Registry, row};

const GROUP: &str = "scheduling.k8s.io";

pub(super) struct Priority;

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.operation != Operation::Delete && (write.is("", "pods") || write.is(GROUP, "priorityclasses"))
    }

    async fn mutate(&self, write: &Attributes<'_>, object: &mut Value) -> Result<(), Error> {
        match write.old {
            _ if !write.is("", "pods") => Ok(()),
            // What was resolved when the pod was made stays.
            Some(old) => {
                let spec = map_mut(object, "spec");
                for field in ["priority", "preemptionPolicy"] {
                    if !old["spec"][field].is_null() && spec.get(field).is_none_or(Value::is_null) {
                        spec.insert(field.to_owned(), old["spec"][field].clone());
                    }
                }
                Ok(())
            }
            None => resolve(write.registry, write.call, object).await,
        }
    }

    async fn validate(&self, write: &Attributes<'_>, object: &Value) -> Result<(), Error> {
        if write.is("", "pods") || object["globalDefault"] != true {
            return Ok(());
        }
        let others = write.registry.settings(classes(), "").await?;
        let other = others
            .iter()
            .find(|class| class["globalDefault"] == true && meta::name(class) != meta::name(object));
        match other {
            Some(other) => Err(write.call.forbidden(format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                meta::name(other)
            ))),
            None => Ok(()),
        }
    }
}

fn classes() -> &'static Resource {
    row(GROUP, "v1", "priorityclasses")
}

/// Resolves the priority class to a number; without one the global default, else zero.
async fn resolve(registry: &Registry, call: &Call, pod: &mut Value) -> Result<(), Error> {
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if name.is_empty() {
        let all = registry.settings(classes(), "").await?;
        let defaults = all.into_iter().filter(|class| class["globalDefault"] == Value::Bool(true));
        // Of several defaults the lowest counts.
        defaults.min_by_key(|class| class["value"].as_i64())
    } else {
        let found = registry.setting(classes(), "", &name).await?;
        Some(found.ok_or_else(|| call.forbidden(format!("no PriorityClass with name {name} was found")))?)
    };
    let value = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
    let policy =
        class.as_ref().and_then(|class| class["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority");
    let spec = map_mut(pod, "spec");
    if let Some(asked) = spec.get("priority").and_then(Value::as_i64).filter(|&asked| asked != value) {
        return Err(call.forbidden(format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        )));
    }
    if let Some(asked) = spec.get("preemptionPolicy").and_then(Value::as_str).filter(|&asked| asked != policy)
    {
        return Err(call.forbidden(format!(
            "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        )));
    }
    if let Some(class) = &class {
        spec.insert("priorityClassName".to_owned(), meta::name(class).into());
    }
    spec.insert("priority".to_owned(), value.into());
    spec.insert("preemptionPolicy".to_owned(), policy.into());
    Ok(())
}
