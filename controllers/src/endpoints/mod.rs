//! The EndpointSlice controller: keeps in slices (and in the Endpoints object of old) which pods stand
//! behind each Service that has a selector.

mod legacy;
mod mirror;
mod plan;
mod slices;
mod subsets;
mod trigger;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::event::Recorder;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::common::expect::Expectations;
use crate::common::{Context, Result, Says, namespaces};
use plan::MANAGER;
use slices::Slices;
use trigger::TriggerTimes;

const NAME: &str = "endpointslice-controller";

/// How soon a Service is looked at again of whose pods some are on nodes that are not known yet.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Slices,
    endpoints: Informer<Endpoints>,
    /// Writes of Endpoints.
    legacy: Expectations,
    triggers: TriggerTimes,
    /// Services that were seen to go and whose Endpoints have to follow. Endpoints that never had a
    /// Service are somebody else's.
    departed: Arc<Mutex<HashSet<ObjectKey>>>,
    recorder: Recorder,
}

/// Starts the controller, and the one that mirrors Endpoints, with so many workers each.
pub(crate) fn start(context: &Context, workers: usize) {
    mirror::start(context, workers);
    let queue = Queue::new(context.clock.clone());
    let controller = Arc::new(Controller {
        context: context.clone(),
        services: context.informers.of(),
        pods: context.informers.of(),
        nodes: context.informers.of(),
        slices: Slices::new(context, NAME, MANAGER, &queue),
        endpoints: context.informers.of(),
        legacy: Expectations::default(),
        triggers: TriggerTimes::default(),
        departed: Arc::default(),
        recorder: context.recorder("endpoint-controller"),
    });
    let supervisor = &context.supervisor;
    let departed = controller.departed.clone();
    let own_key = move |change: &Change<Service>| {
        if change.new.is_none() {
            lock(&departed).insert(change.key.clone());
        }
        [change.key.clone()]
    };
    reconcile::feed(supervisor, NAME, controller.services.subscribe(), &queue, own_key);
    let services = controller.services.clone();
    reconcile::feed(supervisor, NAME, controller.pods.subscribe(), &queue, move |change| {
        selecting(&services, change)
    });
    reconcile::feed(supervisor, NAME, controller.endpoints.subscribe(), &queue, |change| {
        [change.key.clone()]
    });
    reconcile::run(supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

fn lock(departed: &Mutex<HashSet<ObjectKey>>) -> std::sync::MutexGuard<'_, HashSet<ObjectKey>> {
    // Nothing panics while the lock is held, so the set is whole even if the lock is poisoned.
    departed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The Services that select a pod as it was or as it is, where it matters to them.
fn selecting(services: &Informer<Service>, change: &Change<Pod>) -> Vec<ObjectKey> {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && visible(old) == visible(new)
    {
        return Vec::new();
    }
    let selects = |service: &&Arc<Service>| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector.filter(|selector| !selector.is_empty()).is_some_and(|selector| {
            let selector = Selector::from_map(selector);
            change.sides().any(|pod| selector.matches_optional(pod.metadata.labels.as_ref()))
        })
    };
    let services = services.list_in(&change.key.namespace);
    services.iter().filter(selects).map(|service| ObjectKey::of(&**service)).collect()
}

/// What a Service sees of a pod.
fn visible(pod: &Pod) -> impl PartialEq + use<'_> {
    let status = pod.status.as_ref();
    (
        pod.metadata.labels.as_ref(),
        pod.metadata.uid.as_ref(),
        pod.metadata.deletion_timestamp.is_some(),
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()),
        status.and_then(|status| status.pod_ips.as_ref()),
        status.and_then(|status| status.pod_ip.as_ref()),
        crate::common::pods::is_ready(pod),
        crate::common::pods::is_terminal(pod),
    )
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.services.synced().await;
        self.pods.synced().await;
        self.nodes.synced().await;
        self.slices.synced().await;
        self.endpoints.synced().await;
        let Some(service) = self.services.get(key) else {
            self.slices.forget(key);
            self.legacy.forget(key);
            self.triggers.forget(key);
            return self.forget_endpoints(key).await;
        };
        let spec = service.spec.as_ref();
        let selector = spec.and_then(|spec| spec.selector.as_ref()).filter(|selector| !selector.is_empty());
        let is_external = spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
        // Without a selector somebody else keeps the endpoints. What is being deleted needs none.
        let Some(selector) =
            selector.filter(|_| !is_external && service.metadata.deletion_timestamp.is_none())
        else {
            return Ok(None);
        };
        let slices = self.slices.of(key).await?;
        self.legacy.settled(key, &self.endpoints, &*self.context.clock).await?;
        let selector = Selector::from_map(selector);
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| selector.matches_optional(pod.metadata.labels.as_ref()));
        let trigger = self.triggers.look(key, &service, &pods);
        let node = |name: &str| self.nodes.get(&ObjectKey::cluster(name));
        let mut plan = plan::plan(&service, &pods, node, &slices);
        for slice in plan.create.iter_mut().chain(&mut plan.update) {
            let annotations = slice.metadata.annotations.get_or_insert_default();
            annotations.remove(trigger::ANNOTATION);
            annotations.extend(trigger.map(|time| (trigger::ANNOTATION.to_owned(), time.to_string())));
        }
        self.slices.apply(key, &plan).await?;
        self.write_endpoints(key, &legacy::endpoints(&service, &pods, trigger)).await?;
        Ok(plan.incomplete.then_some(NODE_PATIENCE))
    }

    async fn write_endpoints(&self, key: &ObjectKey, wanted: &Endpoints) -> Result<()> {
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let parameters = PostParams::default();
        let present = self.endpoints.get(key);
        let written = match &present {
            Some(present) => match legacy::update(present, wanted) {
                Some(update) => api.replace(&key.name, &parameters, &update).await,
                None => return Ok(()),
            },
            None => api.create(&parameters, wanted).await,
        };
        match written {
            Ok(written) => self.legacy.wrote(key, &written),
            Err(error) if namespaces::is_over(&error) => {}
            Err(error) => {
                let (reason, what) = match present {
                    Some(_) => ("FailedToUpdateEndpoint", "update endpoint"),
                    None => ("FailedToCreateEndpoint", "create endpoint for service"),
                };
                let name = format!("{}/{}", key.namespace, key.name);
                let message = format!("Failed to {what} {name}: {}", error::chain(&error));
                self.recorder.warning(wanted, reason, message);
                return Err(error).says("write the Endpoints of a Service");
            }
        }
        Ok(())
    }

    /// Deletes the Endpoints of a Service that is gone; the slices go with it by their owner reference.
    async fn forget_endpoints(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(left) = self.endpoints.get(key) else {
            lock(&self.departed).remove(key);
            return Ok(None);
        };
        if !lock(&self.departed).contains(key) && !legacy::is_ours(&left) {
            return Ok(None);
        }
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let preconditions = Preconditions { uid: left.uid(), resource_version: None };
        let deleted = api.delete(&key.name, &DeleteParams::default().preconditions(preconditions)).await;
        match deleted {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                Err(error).says("delete the Endpoints of a Service that is gone")
            }
            _ => {
                lock(&self.departed).remove(key);
                Ok(None)
            }
        }
    }
}
