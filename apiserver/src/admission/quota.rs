//! ResourceQuota: what is made in a namespace is charged to its quotas, or refused.
//!
//! **Invariant**: a quota is charged by compare-and-swap on its status before the object is written,
//! so writes at once, on however many servers, never exceed it. Nothing is given back here: what was
//! charged for a write that failed, and what a deletion frees, the quota controller finds out.

use async_trait::async_trait;
use decapod_api::quota::{self, Item};
use decapod_api::status::Error;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota as Quota, Service};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::{Attributes, Operation, Plugin, typed};
use crate::registry::object::map_mut;
use crate::registry::update::Part;
use crate::registry::{Call, core};

/// Writes of one namespace take turns, so that they do not make each other try again. Namespaces
/// share turns by their hash; this many let those that are busy at once go on side by side.
const TURNS: usize = 64;

static TURN: [Mutex<()>; TURNS] = [const { Mutex::const_new(()) }; TURNS];

pub(super) struct ResourceQuota;

/// An object by its type, where quotas look into it.
enum Typed {
    Pod(Box<Pod>),
    Claim(Box<PersistentVolumeClaim>),
    Service(Box<Service>),
    Other,
}

impl Typed {
    fn of(call: &Call, object: &Value) -> Result<Self, Error> {
        if !call.resource.group.is_empty() {
            return Ok(Self::Other);
        }
        Ok(match call.resource.plural {
            "pods" => Self::Pod(typed(object)?),
            "persistentvolumeclaims" => Self::Claim(typed(object)?),
            "services" => Self::Service(typed(object)?),
            _ => Self::Other,
        })
    }

    fn item(&self, call: &Call) -> Item<'_> {
        match self {
            Self::Pod(pod) => Item::Pod(pod),
            Self::Claim(claim) => Item::Claim(claim),
            Self::Service(service) => Item::Service(service),
            Self::Other => Item::Other(call.resource.group, call.resource.plural),
        }
    }
}

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        let resource = write.call.resource;
        // Events come in numbers that nobody plans.
        if !resource.namespaced() || resource.plural == "events" {
            return false;
        }
        match write.operation {
            Operation::Create => write.call.subresource.is_empty(),
            Operation::Update => {
                ["pods", "services", "persistentvolumeclaims"].iter().any(|plural| write.is("", plural))
                    || write.is_sub("", "pods", "resize")
                    || write.is_sub("", "persistentvolumeclaims", "status")
            }
            Operation::Delete => false,
        }
    }

    async fn validate(&self, write: &Attributes<'_>, object: &Value) -> Result<(), Error> {
        let (registry, call) = (write.registry, write.call);
        if write.is("", "pods") && write.old.is_some_and(|old| same_lifetime(old, object)) {
            return Ok(());
        }
        if registry.settings(core("resourcequotas"), &call.namespace).await?.is_empty() {
            return Ok(());
        }
        let new = Typed::of(call, object)?;
        let old = write.old.map(|old| Typed::of(call, old)).transpose()?;
        let turn = TURN[turn_of(&call.namespace)].lock().await;
        // Looked at again: others had their turn meanwhile.
        let quotas = registry.all(core("resourcequotas"), &call.namespace).await?;
        let now = registry.clock.now();
        let look = Look { call, new: &new, old: old.as_ref(), now };
        let mut touched = Vec::new();
        // All are asked before one is charged.
        for quota in &quotas {
            if look.at(quota)?.is_some() {
                touched.push(decapod_api::meta::name(quota).to_owned());
            }
        }
        if !call.options.dry_run {
            for name in touched {
                look.charge(write, &name).await?;
            }
        }
        drop(turn);
        Ok(())
    }
}

/// Whether an update of a pod leaves it under the same quotas: only a deadline moves it.
fn same_lifetime(old: &Value, new: &Value) -> bool {
    let has_deadline = |pod: &Value| pod["spec"]["activeDeadlineSeconds"].is_i64();
    has_deadline(old) == has_deadline(new)
}

fn turn_of(namespace: &str) -> usize {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    namespace.hash(&mut hasher);
    usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0)
}

/// One write, as it is held against quotas.
struct Look<'a> {
    call: &'a Call,
    new: &'a Typed,
    old: Option<&'a Typed>,
    now: Timestamp,
}

impl Look<'_> {
    /// The quota with its new use, or `None` if it is not touched.
    fn at(&self, quota: &Value) -> Result<Option<Value>, Error> {
        let old = self.old.map(|old| old.item(self.call));
        let charged = quota::charge(&typed::<Quota>(quota)?, self.new.item(self.call), old, self.now);
        let Some(used) = charged.map_err(|why| self.call.forbidden(why))? else { return Ok(None) };
        let used: Map<String, Value> =
            used.into_iter().map(|(name, amount)| (name, amount.to_string().into())).collect();
        let mut new = quota.clone();
        map_mut(&mut new, "status").insert("used".to_owned(), used.into());
        Ok(Some(new))
    }

    async fn charge(&self, write: &Attributes<'_>, name: &str) -> Result<(), Error> {
        let mut call = Call::own(core("resourcequotas"), &self.call.namespace, name);
        "status".clone_into(&mut call.subresource);
        let change = |old: &Value| Ok(self.at(old)?.unwrap_or_else(|| old.clone()));
        match write.registry.modify(&call, Part::Status, change).await {
            // A quota that was deleted meanwhile limits nothing.
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
