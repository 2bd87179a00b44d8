//! Built-in admission: what may be stored depends on what else is stored, and on who asks.
//!
//! One list of plugins, in Kubernetes' order. Their mutating halves run before a kind's own
//! preparation and validation, their validating halves after, on every write of every kind by the
//! one generic path. **Invariant**: a plugin that cannot decide refuses.

mod certificates;
mod chosen;
mod config;
mod escalation;
mod external_ips;
mod ingress;
mod lifecycle;
mod limits;
mod node_restriction;
mod node_token;
mod owner_references;
mod pod_security;
mod priority;
mod pull_images;
mod quota;
mod runtime_class;
mod service_account;
mod storage;
mod taints;
mod tolerations;

use std::time::Instant;

use async_trait::async_trait;
use decapod_api::status::Error;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::metrics::admission::{self as metrics, Step};
use crate::registry::{Call, Registry};
pub(crate) use certificates::malformed;
pub use chosen::AdmissionPlugins;
pub(crate) use chosen::Chosen;
pub use config::AdmissionError;
pub(crate) use config::Config;
pub use tolerations::Tolerations;

/// Which write is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

/// A write on its way to the store, as plugins see it. The object itself is handed to each half:
/// it is the old one where the operation is a deletion.
pub(crate) struct Attributes<'a> {
    /// For looking at what else is stored.
    pub(crate) registry: &'a Registry,
    /// Who asks, for which object and subresource, whether for a dry run; takes warnings.
    pub(crate) call: &'a Call,
    /// What is done.
    pub(crate) operation: Operation,
    /// The object that is replaced or deleted.
    pub(crate) old: Option<&'a Value>,
}

impl Attributes<'_> {
    /// Whether the write is of an object of this kind itself, not of a subresource.
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.is_sub(group, plural, "")
    }

    /// Whether the write is of this subresource of this kind.
    pub(crate) fn is_sub(&self, group: &str, plural: &str, subresource: &str) -> bool {
        let resource = self.call.resource;
        resource.plural == plural && resource.group == group && self.call.subresource == subresource
    }

    /// Whether an object is made.
    pub(crate) fn creates(&self) -> bool {
        self.operation == Operation::Create
    }
}

/// One rule of admission. A plugin says cheaply which writes concern it; only these reach its halves.
#[async_trait]
pub(crate) trait Plugin: Send + Sync {
    /// The name by which Kubernetes' administrators know it.
    fn name(&self) -> &'static str;

    /// Whether it runs unless the operator says otherwise.
    fn on_by_default(&self) -> bool {
        true
    }

    /// Whether a write concerns it.
    fn handles(&self, write: &Attributes<'_>) -> bool;

    /// Completes the object, or refuses it. Not called for deletions.
    async fn mutate(&self, _write: &Attributes<'_>, _object: &mut Value) -> Result<(), Error> {
        Ok(())
    }

    /// Refuses what may not be.
    async fn validate(&self, _write: &Attributes<'_>, _object: &Value) -> Result<(), Error> {
        Ok(())
    }
}

/// All plugins, in the order in which Kubernetes runs them: the quota comes last, because it alone
/// charges for what it admits.
static PLUGINS: &[&dyn Plugin] = &[
    &lifecycle::NamespaceLifecycle,
    &limits::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taints::TaintNodesByCondition,
    &pull_images::AlwaysPullImages,
    &pod_security::PodSecurity,
    &priority::Priority,
    &tolerations::DefaultTolerationSeconds,
    &storage::DefaultStorageClass,
    &storage::StorageObjectInUseProtection,
    &owner_references::OwnerReferencesPermissionEnforcement,
    &storage::PersistentVolumeClaimResize,
    &runtime_class::RuntimeClass,
    &certificates::Certificates,
    &escalation::Escalation,
    &ingress::DefaultIngressClass,
    &external_ips::DenyServiceExternalIps,
    &quota::ResourceQuota,
];

/// Lets the mutating plugins complete an object.
pub(crate) async fn mutate(
    registry: &Registry,
    call: &Call,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), Error> {
    let write = Attributes { registry, call, operation, old };
    let mut timer = Timer::start(operation, "admit");
    for plugin in registry.admission.plugins.iter().filter(|plugin| plugin.handles(&write)) {
        let result = plugin.mutate(&write, object).await;
        timer.plugin(plugin.name(), &result);
        result.inspect_err(|error| refused(plugin, &write, error))?;
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
    let write = Attributes { registry, call, operation, old };
    let mut timer = Timer::start(operation, "validate");
    for plugin in registry.admission.plugins.iter().filter(|plugin| plugin.handles(&write)) {
        let result = plugin.validate(&write, object).await;
        timer.plugin(plugin.name(), &result);
        result.inspect_err(|error| refused(plugin, &write, error))?;
    }
    Ok(())
}

/// Lets a kubelet have tokens for the pods on its node only.
pub(crate) async fn node_token(registry: &Registry, call: &Call, spec: &Value) -> Result<(), Error> {
    node_token::check(registry, call, spec).await
}

/// Lets the plugins refuse a deletion.
pub(crate) async fn delete(registry: &Registry, call: &Call, old: &Value) -> Result<(), Error> {
    validate(registry, call, Operation::Delete, old, Some(old)).await
}

/// Measures the plugins one by one, and when it is dropped all of them together.
struct Timer {
    step: Step,
    begin: Instant,
    last: Instant,
    rejected: bool,
}

impl Timer {
    fn start(operation: Operation, r#type: &'static str) -> Self {
        let operation = match operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
        };
        let begin = Instant::now();
        Self { step: Step { operation, r#type }, begin, last: begin, rejected: false }
    }

    fn plugin(&mut self, name: &'static str, result: &Result<(), Error>) {
        let now = Instant::now();
        self.rejected = result.is_err();
        metrics::plugin(name, self.step, self.rejected, now - self.last);
        self.last = now;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        metrics::step(self.step, self.rejected, self.begin.elapsed());
    }
}

fn refused(plugin: &dyn Plugin, write: &Attributes<'_>, error: &Error) {
    let (plugin, resource) = (plugin.name(), write.call.resource.plural);
    tracing::debug!(plugin, resource, operation = ?write.operation, name = write.call.name, %error, "refused");
}

/// An object as its kind's type; it was decoded by it before, so a failure is a fault of ours.
fn typed<T: DeserializeOwned>(object: &Value) -> Result<T, Error> {
    T::deserialize(object).map_err(|e| Error::Internal(format!("an object cannot be read back: {e}")))
}

/// Whether an object carries an annotation with this value.
fn annotated(object: &Value, key: &str, value: &str) -> bool {
    object["metadata"]["annotations"][key] == value
}

/// Of the classes that are marked as default the newest; of those of one age the first by name.
fn default_class(classes: Vec<Value>, is_default: impl Fn(&Value) -> bool) -> Option<Value> {
    let made = |class: &Value| class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    let name = |class: &Value| decapod_api::meta::name(class).to_owned();
    let defaults = classes.into_iter().filter(|class| is_default(class));
    // Times are all written in one form, so they sort as text.
    defaults.min_by_key(|class| (std::cmp::Reverse(made(class)), name(class)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_class_counts() {
        let class = |name: &str, at: &str, default: &str| json!({"metadata": {"name": name, "creationTimestamp": at, "annotations": {"d": default}}});
        let classes = vec![
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("a", "2026-01-02T00:00:00Z", "true"),
            class("other", "2026-01-03T00:00:00Z", "false"),
        ];
        let default = default_class(classes, |class| annotated(class, "d", "true")).unwrap();
        assert_eq!(default["metadata"]["name"], "a");
        assert!(default_class(Vec::new(), |_| true).is_none());
    }
}
