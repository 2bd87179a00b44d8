//! The protection of storage in use: a claim that a pod mounts, a volume that is bound, and a class of
//! volume attributes that either names stay until nothing uses them any more (KEP-498, KEP-3751).
//!
//! A finalizer goes only after the API server itself, and not a cache, said that nothing uses the object.

mod plan;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{ListParams, PostParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::common::{Context, Result, Says};
use plan::Step;

pub(crate) use plan::claims;

const CLAIM_NAME: &str = "persistentvolumeclaim-protection-controller";
const VOLUME_NAME: &str = "persistentvolume-protection-controller";
const CLASS_NAME: &str = "volumeattributesclass-protection-controller";
const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<VolumeAttributesClass>,
}

/// Starts the three controllers.
pub(crate) fn start(context: &Context) {
    let informers = &context.informers;
    let controller = Arc::new(Controller {
        context: context.clone(),
        pods: informers.of(),
        claims: informers.of(),
        volumes: informers.of(),
        classes: informers.of(),
    });
    start_claims(&controller);
    start_volumes(&controller);
    start_classes(&controller);
}

fn start_claims(controller: &Arc<Controller>) {
    let supervisor = &controller.context.supervisor;
    let queue = Queue::new(controller.context.clock.clone());
    reconcile::feed(supervisor, CLAIM_NAME, controller.claims.subscribe(), &queue, |change| {
        [change.key.clone()]
    });
    reconcile::feed(supervisor, CLAIM_NAME, controller.pods.subscribe(), &queue, |change| {
        // A pod lets its claims go when it is gone.
        let gone = change.old.as_ref().filter(|_| change.new.is_none());
        let claims = gone.map(|pod| plan::claims(pod)).unwrap_or_default();
        let namespace = change.key.namespace.clone();
        claims.into_iter().map(move |claim| ObjectKey::new(namespace.clone(), claim)).collect::<Vec<_>>()
    });
    let (supervisor, controller) = (supervisor_of(controller).clone(), controller.clone());
    reconcile::run(&supervisor, CLAIM_NAME, &queue, 1, move |key| {
        let controller = controller.clone();
        async move { controller.claim(&key).await }
    });
}

fn start_volumes(controller: &Arc<Controller>) {
    let queue = Queue::new(controller.context.clock.clone());
    reconcile::feed(
        supervisor_of(controller),
        VOLUME_NAME,
        controller.volumes.subscribe(),
        &queue,
        |change| [change.key.clone()],
    );
    let (supervisor, controller) = (supervisor_of(controller).clone(), controller.clone());
    reconcile::run(&supervisor, VOLUME_NAME, &queue, 1, move |key| {
        let controller = controller.clone();
        async move { controller.volume(&key).await }
    });
}

fn start_classes(controller: &Arc<Controller>) {
    let supervisor = supervisor_of(controller);
    let queue = Queue::new(controller.context.clock.clone());
    reconcile::feed(supervisor, CLASS_NAME, controller.classes.subscribe(), &queue, |change| {
        [change.key.clone()]
    });
    reconcile::feed(supervisor, CLASS_NAME, controller.claims.subscribe(), &queue, |change| {
        let before = change.old.iter().flat_map(|claim| plan::classes_of_claim(claim));
        before.map(ObjectKey::cluster).collect::<Vec<_>>()
    });
    reconcile::feed(supervisor, CLASS_NAME, controller.volumes.subscribe(), &queue, |change| {
        let before = change.old.iter().filter_map(|volume| plan::class_of_volume(volume));
        before.map(ObjectKey::cluster).collect::<Vec<_>>()
    });
    let (supervisor, controller) = (supervisor_of(controller).clone(), controller.clone());
    reconcile::run(&supervisor, CLASS_NAME, &queue, 1, move |key| {
        let controller = controller.clone();
        async move { controller.class(&key).await }
    });
}

fn supervisor_of(controller: &Controller) -> &decapod_client::task::Supervisor {
    &controller.context.supervisor
}

impl Controller {
    async fn claim(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.claims.synced().await;
        self.pods.synced().await;
        let Some(claim) = self.claims.get(key) else { return Ok(None) };
        let held = || self.pods.list_in(&key.namespace).iter().any(|pod| plan::pod_holds(pod, &claim));
        let step = plan::step(&claim.metadata, CLAIM_FINALIZER, held);
        let client = self.context.client.clone();
        if step == Step::Remove {
            let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
            let pods = pods.list(&ListParams::default()).await.says("list the pods that may hold a claim")?;
            if pods.items.iter().any(|pod| plan::pod_holds(pod, &claim)) {
                return Ok(None); // The pod's end will say when to look again.
            }
        }
        apply(&Api::namespaced(client, &key.namespace), &*claim, step, CLAIM_FINALIZER).await
    }

    async fn volume(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(volume) = self.volumes.get(key) else { return Ok(None) };
        let step = plan::step(&volume.metadata, VOLUME_FINALIZER, || plan::is_bound(&volume));
        apply(&Api::all(self.context.client.clone()), &*volume, step, VOLUME_FINALIZER).await
    }

    async fn class(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.classes.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        let Some(class) = self.classes.get(key) else { return Ok(None) };
        let named = || {
            let name = key.name.as_str();
            self.claims.list().iter().any(|claim| plan::classes_of_claim(claim).contains(&name))
                || self.volumes.list().iter().any(|volume| plan::class_of_volume(volume) == Some(name))
        };
        let step = plan::step(&class.metadata, CLASS_FINALIZER, named);
        apply(&Api::all(self.context.client.clone()), &*class, step, CLASS_FINALIZER).await
    }
}

/// Writes the object with or without its finalizer, if it is still as it was looked at.
async fn apply<K>(api: &Api<K>, object: &K, step: Step, finalizer: &str) -> Result<Option<Duration>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let mut wanted = object.clone();
    let finalizers = wanted.meta_mut().finalizers.get_or_insert_default();
    match step {
        Step::Keep => return Ok(None),
        Step::Add => finalizers.push(finalizer.to_owned()),
        Step::Remove => finalizers.retain(|one| one != finalizer),
    }
    let name = object.meta().name.clone().unwrap_or_default();
    match api.replace(&name, &PostParams::default(), &wanted).await {
        Ok(_) => Ok(None),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error).says("write the finalizer of a storage object"),
    }
}
