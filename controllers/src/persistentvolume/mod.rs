//! The persistent volume binder: binds claims to volumes, says what phase each is in, and hands claims without a
//! volume to the provisioner of their class.
//!
//! **Invariant**: a volume is written as its claim's with a compare-and-swap before the claim is written as its: no
//! two claims ever get one volume. A volume is released only after the API server itself, and not a cache, said that
//! its claim is gone.

mod plan;
#[cfg(test)]
mod plan_tests;

use std::sync::Arc;
use std::time::Duration;

use decapod_api::storage;
use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::event::Recorder;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::{Api, Resource, ResourceExt};

use crate::common::{Context, Result, Says};
use crate::storageprotection;
use plan::{Note, Plan, World, Write};

const NAME: &str = "persistentvolume-controller";
/// Writes until an object is as it should be: four bind it, and it may have to be unbound before.
const STEPS: usize = 8;

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(ObjectKey),
    Volume(String),
}

struct Binder {
    context: Context,
    recorder: Recorder,
    queue: Queue<Key>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
}

/// Starts the binder. One worker: volumes are few, and claims that want the same one would only be in each other's
/// way.
pub(crate) fn start(context: &Context) {
    let informers = &context.informers;
    let binder = Arc::new(Binder {
        context: context.clone(),
        recorder: context.recorder(NAME),
        queue: Queue::new(context.clock.clone()),
        claims: informers.of(),
        volumes: informers.of(),
        classes: informers.of(),
        pods: informers.of(),
    });
    let (supervisor, queue) = (&context.supervisor, binder.queue.clone());
    let volumes = binder.volumes.clone();
    reconcile::feed(supervisor, NAME, binder.claims.subscribe(), &queue, move |change| {
        of_claim(change, &volumes.list())
    });
    let claims = binder.claims.clone();
    reconcile::feed(supervisor, NAME, binder.volumes.subscribe(), &queue, move |change| {
        of_volume(change, &claims.list())
    });
    let claims = binder.claims.clone();
    reconcile::feed(supervisor, NAME, binder.classes.subscribe(), &queue, move |_| {
        let unbound = claims.list().into_iter().filter(|claim| !storage::is_fully_bound(claim));
        unbound.map(|claim| Key::Claim(ObjectKey::of(&*claim))).collect::<Vec<_>>()
    });
    reconcile::run(supervisor, NAME, &queue, 1, move |key| {
        let binder = binder.clone();
        async move { binder.reconcile(&key).await }
    });
}

/// A claim that is gone frees its volumes.
fn of_claim(change: &Change<PersistentVolumeClaim>, volumes: &[Arc<PersistentVolume>]) -> Vec<Key> {
    let Some(old) = change.old.as_ref().filter(|_| change.new.is_none()) else {
        return vec![Key::Claim(change.key.clone())];
    };
    let freed = volumes.iter().filter(|volume| storage::refers_to(volume, old));
    freed.map(|volume| Key::Volume(volume.name_any())).collect()
}

/// A volume concerns its claim and, as long as it has none, all that wait for one.
fn of_volume(change: &Change<PersistentVolume>, claims: &[Arc<PersistentVolumeClaim>]) -> Vec<Key> {
    let name = &change.key.name;
    let names = |claim: &PersistentVolumeClaim| {
        claim.spec.as_ref().and_then(|spec| spec.volume_name.as_ref()) == Some(name)
    };
    let is_free = change.new.as_ref().is_some_and(|volume| plan::claim_ref(volume).is_none());
    let concerned = claims.iter().filter(|claim| {
        names(claim)
            || change.sides().any(|volume| storage::refers_to(volume, claim))
            || (is_free && !storage::is_fully_bound(claim))
    });
    let mut keys: Vec<_> = concerned.map(|claim| Key::Claim(ObjectKey::of(&**claim))).collect();
    keys.push(Key::Volume(name.clone()));
    keys
}

impl Binder {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        for _ in 0..STEPS {
            let moved = match key {
                Key::Claim(key) => self.claim(key).await?,
                Key::Volume(name) => self.volume(name).await?,
            };
            if !moved {
                break;
            }
        }
        Ok(None)
    }

    /// Whether a write was made, so that the claim has to be looked at again.
    async fn claim(&self, key: &ObjectKey) -> Result<bool> {
        let Some(claim) = self.claims.get(key) else { return Ok(false) };
        let waiting_pods = self.waiting_pods(key);
        let (volumes, classes) = (self.volumes.list(), self.classes.list());
        let world = World { volumes: &volumes, classes: &classes, waiting_pods: &waiting_pods };
        self.apply(plan::claim(world, &claim)?, &*claim).await
    }

    async fn volume(&self, name: &str) -> Result<bool> {
        let Some(volume) = self.volumes.get(&ObjectKey::cluster(name)) else { return Ok(false) };
        let claim = self.claim_of(&volume).await?;
        let plan = plan::volume(&volume, claim.as_deref());
        if let Some(reference) = plan::claim_ref(&volume).filter(|_| plan.claim) {
            let namespace = reference.namespace.clone().unwrap_or_default();
            self.queue.add(Key::Claim(ObjectKey::new(namespace, reference.name.clone().unwrap_or_default())));
        }
        self.apply(plan, &*volume).await
    }

    /// The very claim that a volume refers to. The cache may not have it yet: then the API server says.
    async fn claim_of(&self, volume: &PersistentVolume) -> Result<Option<Arc<PersistentVolumeClaim>>> {
        let Some(reference) = plan::claim_ref(volume) else { return Ok(None) };
        let namespace = reference.namespace.as_deref().unwrap_or_default();
        let name = reference.name.as_deref().unwrap_or_default();
        let is_it = |claim: &PersistentVolumeClaim| claim.metadata.uid == reference.uid;
        let known = self.claims.get(&ObjectKey::new(namespace, name)).filter(|claim| is_it(claim));
        if known.is_some() || reference.uid.is_none() || plan::is_given_up(volume) {
            return Ok(known);
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), namespace);
        let found = api.get_opt(name).await.says("look for the claim of a volume")?;
        Ok(found.filter(is_it).map(Arc::new))
    }

    fn waiting_pods(&self, claim: &ObjectKey) -> Vec<String> {
        let pods = self.pods.list_in(&claim.namespace);
        let waits = |pod: &&Arc<Pod>| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
            node.is_empty() && storageprotection::claims(pod).contains(&claim.name)
        };
        let mut names: Vec<_> = pods.iter().filter(waits).map(|pod| pod.name_any()).collect();
        names.sort();
        names
    }

    /// Whether a write was made and the cache shows it.
    async fn apply<K>(&self, plan: Plan, object: &K) -> Result<bool>
    where
        K: Resource<DynamicType = ()>,
    {
        let moved = match plan.write {
            None => false,
            Some(write) => self.write(write).await?,
        };
        if let Some(Note { warns, reason, message }) = plan.note {
            if warns {
                self.recorder.warning(object, reason, message);
            } else {
                self.recorder.normal(object, reason, message);
            }
        }
        Ok(moved)
    }

    async fn write(&self, write: Write) -> Result<bool> {
        let (client, parameters) = (self.context.client.clone(), PostParams::default());
        let claims = |claim: &PersistentVolumeClaim| -> Api<PersistentVolumeClaim> {
            Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default())
        };
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let written = match &write {
            Write::Claim(claim) => {
                let written = claims(claim).replace(&claim.name_any(), &parameters, claim).await;
                written.map(|claim| claim.metadata)
            }
            Write::ClaimStatus(claim) => {
                let written = claims(claim).replace_status(&claim.name_any(), &parameters, claim).await;
                written.map(|claim| claim.metadata)
            }
            Write::Volume(volume) => {
                volumes.replace(&volume.name_any(), &parameters, volume).await.map(|volume| volume.metadata)
            }
            Write::VolumeStatus(volume) => {
                let written = volumes.replace_status(&volume.name_any(), &parameters, volume).await;
                written.map(|volume| volume.metadata)
            }
        };
        let meta = match written {
            Ok(meta) => meta,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error).says("write a claim or a volume"),
        };
        let revision = meta.resource_version.unwrap_or_default();
        match write {
            Write::Claim(_) | Write::ClaimStatus(_) => self.claims.reached(&revision).await,
            Write::Volume(_) | Write::VolumeStatus(_) => self.volumes.reached(&revision).await,
        }
        Ok(true)
    }
}
