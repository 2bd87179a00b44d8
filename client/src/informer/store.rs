//! The mirror of a selection of objects, and how it tells its subscribers.
//!
//! Invariant: a change is applied to the mirror and noted for every subscriber under one lock, so whoever
//! hears of a change and then reads the mirror sees that change or a later state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use kube::Resource;
use tokio::sync::watch;

use super::changes::Mailbox;
use crate::ObjectKey;

#[derive(Debug)]
pub(super) struct Store<K> {
    state: RwLock<State<K>>,
    synced: watch::Sender<bool>,
    /// The newest revision whose events have all been applied.
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    /// The keys of the objects that name an owner, by the owner's uid; those that no controller manages
    /// also by [`unmanaged`] of their namespace.
    owned: HashMap<String, BTreeSet<ObjectKey>>,
    subscribers: Vec<Weak<Mailbox<K>>>,
    closed: bool,
}

impl<K: Resource> Store<K> {
    pub(super) fn new() -> Self {
        let state =
            State { objects: BTreeMap::new(), owned: HashMap::new(), subscribers: Vec::new(), closed: false };
        Self { state: RwLock::new(state), synced: watch::Sender::new(false), revision: watch::Sender::new(0) }
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    pub(super) fn list(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    pub(super) fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.read();
        let objects = state.objects.range(ObjectKey::new(namespace, "")..);
        objects.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.read().owned_by(uid).collect()
    }

    pub(super) fn claimable(&self, uid: &str, namespace: &str) -> Vec<Arc<K>> {
        let state = self.read();
        let unmanaged = unmanaged(namespace);
        let both = state.owned_by(uid).chain(state.owned_by(&unmanaged));
        // One object may be both: owned, but by a reference that is not the controller's.
        let all: BTreeMap<_, _> = both.map(|object| (ObjectKey::of(&*object), object)).collect();
        all.into_values().collect()
    }

    /// All that happened up to `revision` has been applied. A revision that is no number is not noted.
    pub(super) fn reached(&self, revision: &str) {
        if let Ok(revision) = revision.parse::<u64>() {
            self.revision.send_if_modified(|reached| {
                let newer = revision > *reached;
                *reached = revision.max(*reached);
                newer
            });
        }
    }

    pub(super) fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub(super) fn len(&self) -> usize {
        self.read().objects.len()
    }

    pub(super) fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    pub(super) fn subscribe(&self) -> Arc<Mailbox<K>> {
        let mailbox = Arc::new(Mailbox::new());
        let mut state = self.write();
        for (key, object) in &state.objects {
            mailbox.put(key, None, Some(object));
        }
        if state.closed {
            mailbox.close();
        }
        state.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        state.subscribers.push(Arc::downgrade(&mailbox));
        mailbox
    }

    /// The object exists in this state now.
    pub(super) fn put(&self, object: K) {
        self.write().put(ObjectKey::of(&object), Arc::new(object));
    }

    /// The object is gone.
    pub(super) fn remove(&self, key: &ObjectKey) {
        self.write().remove(key);
    }

    /// These objects exist now, and no others: the outcome of a list.
    pub(super) fn replace(&self, objects: Vec<K>) {
        let listed: BTreeMap<_, _> =
            objects.into_iter().map(|object| (ObjectKey::of(&object), Arc::new(object))).collect();
        let mut state = self.write();
        let gone: Vec<_> = state.objects.keys().filter(|key| !listed.contains_key(key)).cloned().collect();
        for key in gone {
            state.remove(&key);
        }
        for (key, object) in listed {
            let same = state.objects.get(&key).is_some_and(|known| is_same(&**known, &*object));
            if !same {
                state.put(key, object);
            }
        }
        drop(state);
        self.synced.send_replace(true);
    }

    pub(super) fn close(&self) {
        let mut state = self.write();
        state.closed = true;
        state.subscribers.iter().filter_map(Weak::upgrade).for_each(|mailbox| mailbox.close());
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        // Nothing panics while the lock is held, so the state is whole even if the lock is poisoned.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Under what the owner index knows an object: its owners' uids, and whether it has no controller.
fn index_keys<K: Resource>(object: &K) -> Vec<String> {
    let meta = object.meta();
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let managed = owners.iter().any(|owner| owner.controller == Some(true));
    let orphan = (!managed).then(|| unmanaged(meta.namespace.as_deref().unwrap_or_default()));
    owners.iter().map(|owner| owner.uid.clone()).chain(orphan).collect()
}

/// The index of the objects without controller in a namespace: no uid contains a slash.
fn unmanaged(namespace: &str) -> String {
    format!("unmanaged/{namespace}")
}

/// The same revision of the same object.
fn is_same<K: Resource>(one: &K, other: &K) -> bool {
    let (one, other) = (one.meta(), other.meta());
    one.uid == other.uid && one.resource_version.is_some() && one.resource_version == other.resource_version
}

impl<K: Resource> State<K> {
    fn owned_by(&self, owner: &str) -> impl Iterator<Item = Arc<K>> {
        let keys = self.owned.get(owner).into_iter().flatten();
        keys.filter_map(|key| self.objects.get(key).cloned())
    }

    fn put(&mut self, key: ObjectKey, object: Arc<K>) {
        let old = self.objects.insert(key.clone(), object.clone());
        if let Some(old) = &old {
            self.disown(&key, old);
        }
        for index in index_keys(&*object) {
            self.owned.entry(index).or_default().insert(key.clone());
        }
        self.tell(&key, old.as_ref(), Some(&object));
    }

    fn remove(&mut self, key: &ObjectKey) {
        let Some(old) = self.objects.remove(key) else { return };
        self.disown(key, &old);
        self.tell(key, Some(&old), None);
    }

    fn disown(&mut self, key: &ObjectKey, object: &K) {
        for index in index_keys(object) {
            if let Some(keys) = self.owned.get_mut(&index) {
                keys.remove(key);
                if keys.is_empty() {
                    self.owned.remove(&index);
                }
            }
        }
    }

    fn tell(&mut self, key: &ObjectKey, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        self.subscribers.retain(|subscriber| {
            let mailbox = subscriber.upgrade();
            if let Some(mailbox) = &mailbox {
                mailbox.put(key, old, new);
            }
            mailbox.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::informer::{Change, Changes};

    fn map(name: &str, revision: u64) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(revision.to_string());
        map
    }

    fn changes(store: &Store<ConfigMap>) -> Changes<ConfigMap> {
        Changes { mailbox: store.subscribe(), _informer: Arc::new(()) }
    }

    fn revisions(change: Change<ConfigMap>) -> (String, Option<String>, Option<String>) {
        let revision =
            |side: Option<Arc<ConfigMap>>| side.and_then(|map| map.metadata.resource_version.clone());
        (change.key.name.clone(), revision(change.old), revision(change.new))
    }

    fn heard(changes: &mut Changes<ConfigMap>) -> Vec<(String, Option<String>, Option<String>)> {
        std::iter::from_fn(|| changes.try_next()).map(revisions).collect()
    }

    fn text(number: u64) -> Option<String> {
        Some(number.to_string())
    }

    #[test]
    fn a_slow_subscriber_hears_one_change_per_object() {
        let store = Store::new();
        store.put(map("a", 1));
        let mut changes = changes(&store);
        store.put(map("a", 2));
        store.put(map("b", 3));
        store.put(map("a", 4));
        assert_eq!(heard(&mut changes), [("a".into(), None, text(4)), ("b".into(), None, text(3))]);
        store.put(map("a", 5));
        store.remove(&ObjectKey::new("ns", "a"));
        store.put(map("c", 6));
        store.remove(&ObjectKey::new("ns", "c"));
        let unheard = ("c".into(), text(6), None);
        assert_eq!(heard(&mut changes), [("a".into(), text(4), None), unheard]);
        store.put(map("d", 7));
        store.remove(&ObjectKey::new("ns", "d"));
        store.put(map("d", 8));
        assert_eq!(heard(&mut changes), [("d".into(), text(7), text(8))]);
    }

    #[test]
    fn a_new_list_tells_what_is_gone_and_what_changed_only() {
        let store = Store::new();
        store.replace(vec![map("a", 1), map("b", 2), map("c", 3)]);
        let mut changes = changes(&store);
        assert_eq!(heard(&mut changes).len(), 3);
        store.replace(vec![map("b", 2), map("c", 9)]);
        assert_eq!(heard(&mut changes), [("a".into(), text(1), None), ("c".into(), text(3), text(9))]);
        assert_eq!(store.list_in("ns").len(), 2);
        assert!(store.list_in("n").is_empty());
    }

    #[test]
    fn owners_are_indexed_as_they_change() {
        let store = Store::new();
        let mut owned = map("a", 1);
        let owner = k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
            uid: "u1".into(),
            ..Default::default()
        };
        owned.metadata.owner_references = Some(vec![owner]);
        store.put(owned);
        assert_eq!(store.owned_by("u1").len(), 1);
        assert_eq!(store.claimable("none", "ns").len(), 1, "it has an owner, but no controller");
        store.put(map("a", 2));
        assert!(store.owned_by("u1").is_empty());
    }
}
