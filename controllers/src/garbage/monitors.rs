//! The mirrors of all kinds, and the questions about owners and dependents that span them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError, RwLock};

use decapod_client::ObjectKey;
use decapod_client::informer::{Informer, Informers, ObjectMetadata};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use tokio_util::sync::CancellationToken;

use crate::common::catalog::Kind;

/// Kinds without owners worth following, of which there are very many.
const IGNORED: [&str; 2] = ["events", "events.events.k8s.io"];

/// The mirror of one kind.
#[derive(Clone)]
pub(super) struct Monitor {
    pub(super) name: Arc<str>,
    pub(super) kind: Kind,
    pub(super) informer: Informer<ObjectMetadata>,
    /// Cancelled when the kind is no longer served.
    pub(super) gone: CancellationToken,
}

/// The mirrors of all kinds, by name.
#[derive(Default)]
pub(super) struct Monitors(RwLock<BTreeMap<Arc<str>, Monitor>>);

impl Monitors {
    /// Follows what is served now; returns the mirrors that are new.
    pub(super) fn update(&self, kinds: &[Kind], informers: &Informers) -> Vec<Monitor> {
        let mut monitors = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let verbs = ["list", "watch", "delete"];
        let wanted = kinds.iter().filter(|kind| verbs.iter().all(|verb| kind.can(verb)));
        let wanted: BTreeMap<Arc<str>, &Kind> = wanted
            .map(|kind| (Arc::from(kind.name()), kind))
            .filter(|(name, _)| !IGNORED.contains(&&**name))
            .collect();
        monitors.retain(|name, monitor| {
            let stays = wanted.get(name).is_some_and(|kind| kind.resource == monitor.kind.resource);
            if !stays {
                monitor.gone.cancel();
            }
            stays
        });
        let mut added = Vec::new();
        for (name, kind) in wanted {
            if let Entry::Vacant(entry) = monitors.entry(name.clone()) {
                let informer = informers.metadata(&kind.resource);
                let monitor = Monitor { name, kind: kind.clone(), informer, gone: CancellationToken::new() };
                entry.insert(monitor.clone());
                added.push(monitor);
            }
        }
        added
    }

    pub(super) fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// All mirrors.
    pub(super) fn all(&self) -> Vec<Monitor> {
        self.read().values().cloned().collect()
    }

    pub(super) fn find(&self, name: &str) -> Option<Monitor> {
        self.read().get(name).cloned()
    }

    pub(super) fn get(&self, name: &str, key: &ObjectKey) -> Option<Arc<ObjectMetadata>> {
        self.read().get(name)?.informer.get(key)
    }

    /// All objects that name the object of this uid as an owner, with the names of their kinds.
    pub(super) fn dependents(&self, uid: &str) -> Vec<(Arc<str>, Arc<ObjectMetadata>)> {
        let monitors = self.read();
        let owned = monitors.values().flat_map(|monitor| {
            let objects = monitor.informer.owned_by(uid);
            objects.into_iter().map(|object| (monitor.name.clone(), object))
        });
        owned.collect()
    }

    /// Where the owner of an object should be: the name of its kind, and its key.
    pub(super) fn locate(&self, meta: &ObjectMeta, owner: &OwnerReference) -> Option<(Arc<str>, ObjectKey)> {
        let monitors = self.read();
        let monitor = monitors.values().find(|monitor| is_of_kind(&monitor.kind, owner))?;
        let namespace = meta.namespace.clone().filter(|_| monitor.kind.namespaced).unwrap_or_default();
        Some((monitor.name.clone(), ObjectKey::new(namespace, owner.name.clone())))
    }

    /// The owner of an object, if a mirror shows it: of the same uid.
    pub(super) fn owner(&self, meta: &ObjectMeta, owner: &OwnerReference) -> Option<Arc<ObjectMetadata>> {
        let (kind, key) = self.locate(meta, owner)?;
        self.get(&kind, &key).filter(|shown| shown.metadata.uid.as_ref() == Some(&owner.uid))
    }

    /// Whether an object of this kind has the owner's uid, wherever: it is not where the reference says.
    pub(super) fn is_elsewhere(&self, kind: &Kind, owner: &OwnerReference) -> bool {
        let monitor = self.find(&kind.name());
        let mut objects = monitor.iter().flat_map(|monitor| monitor.informer.list());
        objects.any(|object| object.metadata.uid.as_ref() == Some(&owner.uid))
    }

    /// The kind of an owner, mirrored or not.
    pub(super) fn kind_of(&self, owner: &OwnerReference, kinds: &[Kind]) -> Option<Kind> {
        kinds.iter().find(|kind| is_of_kind(kind, owner)).cloned()
    }

    /// Resolves once all mirrors are complete.
    pub(super) async fn synced(&self) {
        for monitor in self.all() {
            tokio::select! {
                () = monitor.informer.synced() => {}
                () = monitor.gone.cancelled() => {}
            }
        }
    }

    /// The kinds whose mirrors are not complete.
    pub(super) fn unsynced(&self) -> Vec<Arc<str>> {
        let monitors = self.read();
        let open = monitors.values().filter(|monitor| !monitor.informer.is_synced());
        open.map(|monitor| monitor.name.clone()).collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Arc<str>, Monitor>> {
        // Nothing panics while the lock is held, so the map is whole even if the lock is poisoned.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a reference means this kind, at whatever version.
fn is_of_kind(kind: &Kind, owner: &OwnerReference) -> bool {
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    kind.resource.kind == owner.kind && kind.resource.group == group
}
