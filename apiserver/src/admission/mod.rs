//! Built-in admission: what may be stored depends on what else is stored, and on who asks.
//!
//! Mutating plugins run before validation, validating ones after it, on every write of every kind
//! by the one generic path. **Invariant**: a plugin that cannot decide refuses.

mod escalation;
mod node_restriction;
mod node_token;
mod pod;
mod service_account;

use decapod_api::meta;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use serde_json::Value;

use crate::registry::{Call, Registry, core};

/// Which write is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
}

/// Namespaces that the cluster needs.
pub(crate) const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

fn is(resource: &Resource, group: &str, plural: &str) -> bool {
    resource.group == group && resource.plural == plural
}

/// Lets the mutating plugins complete an object.
pub(crate) async fn mutate(
    registry: &Registry,
    call: &Call,
    operation: Operation,
    object: &mut Value,
    _old: Option<&Value>,
) -> Result<(), Error> {
    if operation == Operation::Create {
        namespace_accepts(registry, call).await?;
        if is(call.resource, "", "pods") {
            service_account::admit(registry, call, object).await?;
            pod::default_tolerations(object);
            pod::priority(registry, call, object).await?;
        }
    }
    Ok(())
}

/// Lets the validating plugins refuse an object.
pub(crate) async fn validate(
    registry: &Registry,
    call: &Call,
    operation: Operation,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Error> {
    escalation::check(registry, call, object, old)?;
    node_restriction::check_write(registry, call, operation, object, old).await
}

/// Lets a kubelet have tokens for the pods on its node only.
pub(crate) async fn node_token(registry: &Registry, call: &Call, spec: &Value) -> Result<(), Error> {
    node_token::check(registry, call, spec).await
}

/// Lets the plugins refuse a deletion.
pub(crate) async fn delete(registry: &Registry, call: &Call, old: &Value) -> Result<(), Error> {
    if is(call.resource, "", "namespaces") && IMMORTAL.contains(&call.name.as_str()) {
        return Err(call.forbidden("this namespace may not be deleted"));
    }
    node_restriction::check_delete(registry, call, old).await
}

/// Nothing is made in a namespace that is not there, or that is going.
async fn namespace_accepts(registry: &Registry, call: &Call) -> Result<(), Error> {
    if !call.resource.namespaced() {
        return Ok(());
    }
    let namespaces = core("namespaces");
    match registry.find(namespaces, "", &call.namespace).await? {
        None => Err(Error::NotFound { resource: "namespaces".to_owned(), name: call.namespace.clone() }),
        Some(namespace) if meta::deleting(&namespace) => Err(call.forbidden(format!(
            "unable to create new content in namespace {} because it is being terminated",
            call.namespace
        ))),
        Some(_) => Ok(()),
    }
}
