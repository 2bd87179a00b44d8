//! The generic verbs, over every row of the table: what Kubernetes calls the registry.
//!
//! A kind's own behaviour is a [`strategy`]; there is no handler per kind. **Invariants**: every
//! write is a compare-and-swap; nothing is written that was not decoded, defaulted, admitted and
//! validated; the store is touched nowhere else.

pub(crate) mod allocate;
pub(crate) mod body;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod expire;
pub(crate) mod fields;
pub(crate) mod generation;
pub(crate) mod list;
pub(crate) mod managed;
pub(crate) mod object;
pub(crate) mod options;
pub(crate) mod patch;
pub(crate) mod reads;
pub(crate) mod repair;
mod settings;
pub(crate) mod strategy;
pub(crate) mod update;
pub(crate) mod watch;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use decapod_api::resource::{self, Resource};
use decapod_api::status::Error;
use decapod_storage::{Entry, Store};
use serde_json::Value;

use crate::admission;
use crate::auth::UserInfo;
use crate::auth::rbac::Rbac;
use crate::clock::Clock;
use options::WriteOptions;
use reads::Reads;

/// Retries of a write that lost a race, when the client did not say which state it wants to
/// replace. Each loss means that another write won, so this many losses are a hot spot.
pub(crate) const MAX_RETRIES: usize = 100;

/// One request on one kind: who asks, for what, and what there is to warn of.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) user: UserInfo,
    pub(crate) resource: &'static Resource,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    pub(crate) options: WriteOptions,
    /// In whose name the fields that are written are owned.
    pub(crate) manager: String,
    /// The body as it was sent, if it is JSON: errors are told in its order.
    pub(crate) body: Bytes,
    warnings: Mutex<Vec<String>>,
}

impl Call {
    pub(crate) fn new(user: UserInfo, resource: &'static Resource, namespace: &str, name: &str) -> Self {
        Self {
            user,
            resource,
            namespace: if resource.namespaced() { namespace.to_owned() } else { String::new() },
            name: name.to_owned(),
            subresource: String::new(),
            options: WriteOptions::default(),
            manager: String::new(),
            body: Bytes::new(),
            warnings: Mutex::default(),
        }
    }

    /// A call by the API server itself: bootstrap objects, allocations.
    pub(crate) fn own(resource: &'static Resource, namespace: &str, name: &str) -> Self {
        let user = UserInfo::new("system:apiserver", &[crate::pki::MASTERS]);
        Self { manager: "kube-apiserver".to_owned(), ..Self::new(user, resource, namespace, name) }
    }

    pub(crate) fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(|e| e.into_inner());
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub(crate) fn not_found(&self) -> Error {
        Error::NotFound { resource: self.resource.qualified(), name: self.name.clone() }
    }

    pub(crate) fn conflict(&self, why: impl Into<String>) -> Error {
        Error::Conflict { resource: self.resource.qualified(), name: self.name.clone(), why: why.into() }
    }

    pub(crate) fn forbidden(&self, why: impl Into<String>) -> Error {
        Error::Forbidden { resource: self.resource.qualified(), name: self.name.clone(), why: why.into() }
    }

    pub(crate) fn invalid(&self, name: &str, errors: Vec<decapod_api::field::Error>) -> Error {
        Error::Invalid {
            group: self.resource.group.to_owned(),
            kind: self.resource.kind.to_owned(),
            name: name.to_owned(),
            errors,
        }
    }

    fn key(&self) -> Result<String, Error> {
        object::key(self.resource, &self.namespace, &self.name).ok_or(Error::UnknownPath)
    }
}

/// The words with which Kubernetes refuses an outdated write.
pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// All objects of the cluster.
pub(crate) struct Registry {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) reads: Reads,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) network: allocate::Network,
    pub(crate) policy: Rbac,
    /// What the plugins of admission were told.
    pub(crate) admission: admission::Config,
    decoded: settings::Settings,
}

impl Registry {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        network: allocate::Network,
        policy: Rbac,
        admission: admission::Config,
    ) -> Self {
        let (reads, decoded) = (Reads::new(store.clone()), settings::Settings::default());
        Self { reads, store, clock, network, policy, admission, decoded }
    }

    /// The object in its kind's version, with the revision filled in.
    pub(crate) fn decode(&self, resource: &Resource, entry: &Entry) -> Result<Value, Error> {
        if let Some(why) = decapod_storage::encryption::undeciphered(&entry.value) {
            return Err(Error::Internal(format!("unable to transform key {:?}: {why}", entry.key)));
        }
        let object = object::decode(&entry.value, entry.modified)
            .map_err(|e| Error::Internal(format!("{} cannot be decoded: {e}", entry.key)))?;
        Ok(convert::served(resource, object))
    }

    /// The newest state of the object a call names.
    pub(crate) async fn current(&self, call: &Call) -> Result<Option<(Value, Arc<Entry>)>, Error> {
        let entry = self.store.get(&call.key()?).await.map_err(reads::failed)?;
        entry.map(|entry| Ok((self.decode(call.resource, &entry)?, entry))).transpose()
    }

    /// One object by its core-group resource name, or a kind's `group/plural`; the newest.
    pub(crate) async fn find(
        &self,
        row: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Error> {
        Ok(self.current(&Call::own(row, namespace, name)).await?.map(|(object, _)| object))
    }

    /// All objects of a kind in a namespace (empty: in all), the newest, decoded.
    pub(crate) async fn all(&self, row: &'static Resource, namespace: &str) -> Result<Vec<Value>, Error> {
        let prefix = object::prefix(row, namespace).ok_or(Error::UnknownPath)?;
        let page = self.store.list(&prefix, decapod_storage::List::default()).await.map_err(reads::failed)?;
        page.entries.iter().map(|entry| self.decode(row, entry)).collect()
    }
}

/// A row that is known to be there.
pub(crate) fn row(group: &str, version: &str, plural: &str) -> &'static Resource {
    resource::find(group, version, plural).expect("the table has every built-in kind")
}

/// A row of the core group that is known to be there.
pub(crate) fn core(plural: &str) -> &'static Resource {
    row("", "v1", plural)
}
