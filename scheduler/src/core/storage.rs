//! Claims, volumes and classes as the decisions see them, kept up to date change by change.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    /// By namespace and name.
    claims: HashMap<(String, String), Arc<PersistentVolumeClaim>>,
    volumes: HashMap<String, Arc<PersistentVolume>>,
    classes: HashMap<String, Arc<StorageClass>>,
}

impl Storage {
    pub(crate) fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub(crate) fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(name)
    }

    pub(crate) fn class(&self, name: &str) -> Option<&Arc<StorageClass>> {
        self.classes.get(name)
    }

    pub(crate) fn volumes(&self) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        self.volumes.values()
    }

    /// The claim is in this state now, or gone.
    pub(crate) fn claim_set(
        &mut self,
        namespace: &str,
        name: &str,
        claim: Option<Arc<PersistentVolumeClaim>>,
    ) {
        set(&mut self.claims, (namespace.to_owned(), name.to_owned()), claim);
    }

    /// The volume is in this state now, or gone.
    pub(crate) fn volume_set(&mut self, name: &str, volume: Option<Arc<PersistentVolume>>) {
        set(&mut self.volumes, name.to_owned(), volume);
    }

    /// The class is in this state now, or gone.
    pub(crate) fn class_set(&mut self, name: &str, class: Option<Arc<StorageClass>>) {
        set(&mut self.classes, name.to_owned(), class);
    }
}

fn set<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
