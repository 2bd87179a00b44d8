//! Shared informers: per process one mirror of each selection of objects, read by all components that
//! need it, and followed without ever missing a change.
//!
//! An informer runs as long as someone holds it (an [`Informer`] or a subscription); the objects it holds
//! are shared, immutable and without their managed fields.

mod changes;
mod pump;
mod source;
mod store;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kube::api::Request;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use changes::{Change, Changes};
pub use pump::Selection;

use crate::ObjectKey;
use crate::clock::Clock;
use crate::task::Supervisor;
use pump::Pump;
use source::Source;
use store::Store;

/// The metadata of an object of any kind: identity, owners, finalizers and deletion, without labels and
/// annotations.
pub type ObjectMetadata = PartialObjectMeta<DynamicObject>;

/// The informers of one process (or of one identity in it). Cheap to clone; clones share the mirrors.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    supervisor: Supervisor,
    clock: Arc<dyn Clock>,
    running: Arc<Mutex<HashMap<Identity, Weak<dyn Any + Send + Sync>>>>,
}

/// What tells informers apart: the type, the collection and the selection in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    object: TypeId,
    path: String,
    selection: Selection,
}

impl Informers {
    /// No informer yet; those that are asked for read through `client`.
    pub fn new(client: Client, supervisor: Supervisor, clock: Arc<dyn Clock>) -> Self {
        Self { client, supervisor, clock, running: Arc::default() }
    }

    /// The client through which the informers read.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// All objects of a kind.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.selected(Selection::default())
    }

    /// The objects of a kind that a field selector matches, such as `spec.nodeName=n1`.
    pub fn filtered<K>(&self, field_selector: &str) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.selected(Selection { fields: field_selector.to_owned(), ..Selection::default() })
    }

    /// The one object `key` of a kind, whether it exists or not.
    pub fn single<K>(&self, key: &ObjectKey) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let fields = format!("metadata.name={}", key.name);
        self.selected(Selection { namespace: key.namespace.clone(), fields, labels: String::new() })
    }

    /// The objects of a kind within a selection.
    pub fn selected<K>(&self, selection: Selection) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let path =
            K::url_path(&(), Some(selection.namespace.as_str()).filter(|namespace| !namespace.is_empty()));
        let identity =
            Identity { object: TypeId::of::<K>(), path: path.clone(), selection: selection.clone() };
        let source = Source {
            client: self.client.clone(),
            request: Request::new(path),
            metadata_only: false,
            slim: |object: &mut K| object.meta_mut().managed_fields = None,
        };
        self.shared(identity, source)
    }

    /// The metadata of all objects of a resource that discovery named.
    pub fn metadata(&self, resource: &ApiResource) -> Informer<ObjectMetadata> {
        let path = DynamicObject::url_path(resource, None);
        let identity = Identity {
            object: TypeId::of::<ObjectMetadata>(),
            path: path.clone(),
            selection: Selection::default(),
        };
        let source = Source {
            client: self.client.clone(),
            request: Request::new(path),
            metadata_only: true,
            slim: metadata_slim,
        };
        self.shared(identity, source)
    }

    /// The running informer of that identity, or a new one.
    fn shared<K>(&self, identity: Identity, source: Source<K>) -> Informer<K>
    where
        K: Resource + Clone + DeserializeOwned + Send + Sync + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let known = running.get(&identity).and_then(Weak::upgrade);
        if let Some(handle) = known.and_then(|known| known.downcast::<Handle<K>>().ok()) {
            return Informer { handle };
        }
        running.retain(|_, informer| informer.strong_count() > 0);
        let handle = self.start(&identity, source);
        let erased: Arc<dyn Any + Send + Sync> = handle.clone();
        running.insert(identity, Arc::downgrade(&erased));
        Informer { handle }
    }

    fn start<K>(&self, identity: &Identity, source: Source<K>) -> Arc<Handle<K>>
    where
        K: Resource + Clone + DeserializeOwned + Send + Sync + 'static,
    {
        let store = Arc::new(Store::new());
        let unused = CancellationToken::new();
        let pump = Pump {
            path: identity.path.clone(),
            source,
            selection: identity.selection.clone(),
            store: store.clone(),
            clock: self.clock.clone(),
        };
        let (mirror, shutdown) = (store.clone(), self.supervisor.shutdown_token());
        let stop = unused.clone();
        self.supervisor.spawn("informer", async move {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = stop.cancelled() => {}
                () = pump.run() => {}
            }
            mirror.close();
        });
        Arc::new(Handle { store, _stop_when_unused: unused.drop_guard() })
    }
}

/// For readers of every kind, such as the garbage collector, labels and annotations are a burden.
fn metadata_slim(object: &mut ObjectMetadata) {
    let meta = &mut object.metadata;
    meta.managed_fields = None;
    meta.labels = None;
    meta.annotations = None;
    object.types = None;
}

#[derive(Debug)]
struct Handle<K> {
    store: Arc<Store<K>>,
    _stop_when_unused: DropGuard,
}

/// A mirror of objects. Cheap to clone; clones share the mirror.
#[derive(Debug)]
pub struct Informer<K> {
    handle: Arc<Handle<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone() }
    }
}

impl<K: Resource + Send + Sync + 'static> Informer<K> {
    /// Resolves once the mirror holds what the first list found. Before that, absence means nothing.
    pub async fn synced(&self) {
        let mut synced = self.handle.store.synced();
        synced.wait_for(|synced| *synced).await.expect("the handle holds the store");
    }

    /// Whether the mirror holds at least what the first list found.
    pub fn is_synced(&self) -> bool {
        *self.handle.store.synced().borrow()
    }

    /// The object `key`, if the mirror knows it.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.handle.store.get(key)
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.handle.store.list()
    }

    /// The objects of a namespace, ordered by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.handle.store.list_in(namespace)
    }

    /// The objects that name the object with this uid among their owners.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.handle.store.owned_by(uid)
    }

    /// The objects that the object with this uid may claim: those that name it among their owners, and those of its
    /// namespace that name no controller. All at one moment: one that is being adopted or released is never missed.
    pub fn claimable(&self, uid: &str, namespace: &str) -> Vec<Arc<K>> {
        self.handle.store.claimable(uid, namespace)
    }

    /// Resolves once the mirror has applied everything up to `revision`, for instance the revision that
    /// the answer to a write carried: whoever reads the mirror then reads his own writes. A `revision` that
    /// is no number cannot be waited for and counts as reached.
    pub async fn reached(&self, revision: &str) {
        let Ok(wanted) = revision.parse::<u64>() else { return };
        let mut reached = self.handle.store.revision();
        reached.wait_for(|reached| *reached >= wanted).await.expect("the handle holds the store");
    }

    /// How many objects the mirror holds.
    pub fn len(&self) -> usize {
        self.handle.store.len()
    }

    /// Whether the mirror holds no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A subscription: first every object that the mirror holds now, then each change.
    pub fn subscribe(&self) -> Changes<K> {
        Changes { mailbox: self.handle.store.subscribe(), _informer: self.handle.clone() }
    }
}

#[cfg(test)]
mod tests;
