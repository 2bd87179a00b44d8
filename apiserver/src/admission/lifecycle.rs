//! NamespaceLifecycle: nothing is made in a namespace that is not there, or that is going, and the
//! namespaces that the cluster needs stay.

use async_trait::async_trait;
use decapod_api::meta;
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::registry::core;

/// Namespaces that the cluster needs.
pub(crate) const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        match write.operation {
            Operation::Create => write.call.resource.namespaced(),
            Operation::Delete => write.is("", "namespaces"),
            Operation::Update => false,
        }
    }

    async fn mutate(&self, write: &Attributes<'_>, _object: &mut Value) -> Result<(), Error> {
        let call = write.call;
        match write.registry.setting(core("namespaces"), "", &call.namespace).await? {
            None => Err(Error::NotFound { resource: "namespaces".to_owned(), name: call.namespace.clone() }),
            Some(namespace) if meta::deleting(&namespace) => Err(Error::NamespaceTerminating {
                resource: call.resource.qualified(),
                name: call.name.clone(),
                namespace: call.namespace.clone(),
            }),
            Some(_) => Ok(()),
        }
    }

    async fn validate(&self, write: &Attributes<'_>, _object: &Value) -> Result<(), Error> {
        if write.operation == Operation::Delete && IMMORTAL.contains(&write.call.name.as_str()) {
            return Err(write.call.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }
}
