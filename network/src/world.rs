//! Services with the EndpointSlices that belong to them: what the service proxy and cluster DNS both see.
//!
//! What always holds: a change of an object is answered with the keys of the Services that it concerns,
//! so that work is proportional to what changed, never to the size of the cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use decapod_client::ObjectKey;
use decapod_client::informer::{Change, Changes, Informers};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The label that names a slice's Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Services and their slices, as far as we heard of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    services: BTreeMap<ObjectKey, Arc<Service>>,
    slices: HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>,
}

impl World {
    /// The Service `key`.
    pub(crate) fn service(&self, key: &ObjectKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The keys of all Services.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.keys()
    }

    /// The slices of the Service `key`, whether it exists or not.
    pub(crate) fn slices(&self, key: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(key).into_iter().flat_map(BTreeMap::values).map(|slice| &**slice)
    }

    /// Puts a Service, or takes it away.
    pub(crate) fn service_set(&mut self, key: ObjectKey, service: Option<Arc<Service>>) {
        match service {
            Some(service) => self.services.insert(key, service),
            None => self.services.remove(&key),
        };
    }

    /// Puts or takes away a slice, in place of `old`. Returns the Services that it belonged and belongs to.
    pub(crate) fn slice_set(
        &mut self,
        old: Option<&EndpointSlice>,
        new: Option<Arc<EndpointSlice>>,
    ) -> impl Iterator<Item = ObjectKey> + use<> {
        let before = old.and_then(owner);
        if let (Some(owner), Some(old)) = (&before, old)
            && let Some(slices) = self.slices.get_mut(owner)
        {
            slices.remove(&ObjectKey::of(old).name);
            if slices.is_empty() {
                self.slices.remove(owner);
            }
        }
        let after = new.as_deref().and_then(owner);
        if let (Some(owner), Some(new)) = (&after, new) {
            self.slices.entry(owner.clone()).or_default().insert(ObjectKey::of(&*new).name, new);
        }
        before.into_iter().chain(after)
    }
}

fn owner(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}

/// What changes a [`World`] as the cluster changes.
#[derive(Debug)]
pub(crate) struct Feed {
    services: Changes<Service>,
    slices: Changes<EndpointSlice>,
}

impl Feed {
    /// Waits until the cluster's present state is known; the first pending changes are that state.
    pub(crate) async fn synced(informers: &Informers) -> Self {
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        services.synced().await;
        slices.synced().await;
        Self { services: services.subscribe(), slices: slices.subscribe() }
    }

    /// Waits for a change, and makes it and all that are pending in `world`. Returns the Services
    /// concerned, or `None` once the informers have ended.
    pub(crate) async fn changed(&mut self, world: &mut World) -> Option<BTreeSet<ObjectKey>> {
        let mut dirty = BTreeSet::new();
        tokio::select! {
            change = self.services.next() => take_service(world, change?, &mut dirty),
            change = self.slices.next() => take_slice(world, change?, &mut dirty),
        }
        self.pending(world, &mut dirty);
        Some(dirty)
    }

    /// Makes all changes that are pending in `world`; adds the Services concerned to `dirty`.
    pub(crate) fn pending(&mut self, world: &mut World, dirty: &mut BTreeSet<ObjectKey>) {
        while let Some(change) = self.services.try_next() {
            take_service(world, change, dirty);
        }
        while let Some(change) = self.slices.try_next() {
            take_slice(world, change, dirty);
        }
    }
}

fn take_service(world: &mut World, change: Change<Service>, dirty: &mut BTreeSet<ObjectKey>) {
    world.service_set(change.key.clone(), change.new);
    dirty.insert(change.key);
}

fn take_slice(world: &mut World, change: Change<EndpointSlice>, dirty: &mut BTreeSet<ObjectKey>) {
    dirty.extend(world.slice_set(change.old.as_deref(), change.new));
}
