//! The EndpointSlice controller: keeps in slices (and in the Endpoints object of old) which pods stand
//! behind each Service that has a selector.

mod legacy;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::common::expect::Expectations;
use crate::common::{Context, Result, Says, namespaces};
use plan::{MANAGED_LABEL, MANAGER, Plan, SERVICE_LABEL};

const NAME: &str = "endpointslice-controller";

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    endpoints: Informer<Endpoints>,
    /// Writes of slices.
    expectations: Expectations,
    /// Writes of Endpoints.
    legacy: Expectations,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let controller = Arc::new(Controller {
        context: context.clone(),
        services: context.informers.of(),
        pods: context.informers.of(),
        nodes: context.informers.of(),
        slices: context.informers.of(),
        endpoints: context.informers.of(),
        expectations: Expectations::default(),
        legacy: Expectations::default(),
    });
    let supervisor = &context.supervisor;
    let own_key = |change: &Change<Service>| [change.key.clone()];
    reconcile::feed(supervisor, NAME, controller.services.subscribe(), &queue, own_key);
    let services = controller.services.clone();
    reconcile::feed(supervisor, NAME, controller.pods.subscribe(), &queue, move |change| {
        selecting(&services, change)
    });
    reconcile::feed(supervisor, NAME, controller.slices.subscribe(), &queue, |change| {
        let slice = change.latest();
        let service = slice.labels().get(SERVICE_LABEL).filter(|_| is_ours(slice));
        service.map(|service| ObjectKey::new(change.key.namespace.clone(), service.clone()))
    });
    reconcile::feed(supervisor, NAME, controller.endpoints.subscribe(), &queue, |change| {
        [change.key.clone()]
    });
    reconcile::run(supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_LABEL).is_some_and(|manager| manager == MANAGER)
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
            self.expectations.forget(key);
            self.legacy.forget(key);
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
        self.expectations.settled(key, &self.slices, &*self.context.clock).await?;
        self.legacy.settled(key, &self.endpoints, &*self.context.clock).await?;
        let selector = Selector::from_map(selector);
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| selector.matches_optional(pod.metadata.labels.as_ref()));
        let mut slices = self.slices.list_in(&key.namespace);
        slices.retain(|slice| is_ours(slice) && slice.labels().get(SERVICE_LABEL) == Some(&key.name));
        let slices = self.expectations.without_deleted(key, slices);
        let node = |name: &str| self.nodes.get(&ObjectKey::cluster(name));
        self.apply(key, plan::plan(&service, &pods, node, &slices)).await?;
        self.write_endpoints(key, &legacy::endpoints(&service, &pods)).await?;
        Ok(None)
    }

    async fn apply(&self, key: &ObjectKey, plan: Plan) -> Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let parameters = PostParams::default();
        for slice in &plan.create {
            match api.create(&parameters, slice).await {
                Ok(created) => self.expectations.wrote(key, &created),
                Err(error) if namespaces::is_over(&error) => return Ok(()),
                Err(error) => return Err(error).says("create an EndpointSlice"),
            }
        }
        for slice in &plan.update {
            let updated = api.replace(&slice.name_any(), &parameters, slice).await;
            self.expectations.wrote(key, &updated.says("update an EndpointSlice")?);
        }
        for slice in &plan.delete {
            let preconditions = Preconditions { uid: slice.uid(), resource_version: None };
            let parameters = DeleteParams::default().preconditions(preconditions);
            match api.delete(&slice.name_any(), &parameters).await {
                Ok(_) => self.expectations.deleted(key, &slice.uid().unwrap_or_default()),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error).says("delete an EndpointSlice"),
            }
        }
        Ok(())
    }

    async fn write_endpoints(&self, key: &ObjectKey, wanted: &Endpoints) -> Result<()> {
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let parameters = PostParams::default();
        let written = match self.endpoints.get(key) {
            Some(present) if legacy::equals(&present, wanted) => return Ok(()),
            Some(present) => {
                let mut update = Endpoints::clone(&present);
                update.metadata.labels = wanted.metadata.labels.clone();
                update.metadata.annotations = wanted.metadata.annotations.clone();
                update.subsets = wanted.subsets.clone();
                api.replace(&key.name, &parameters, &update).await
            }
            None => api.create(&parameters, wanted).await,
        };
        match written {
            Ok(written) => self.legacy.wrote(key, &written),
            Err(error) if namespaces::is_over(&error) => {}
            Err(error) => return Err(error).says("write the Endpoints of a Service"),
        }
        Ok(())
    }

    /// Deletes the Endpoints of a Service that is gone; the slices go with it by their owner reference.
    async fn forget_endpoints(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(orphan) = self.endpoints.get(key) else { return Ok(None) };
        // Endpoints without Service that somebody else made are his.
        if orphan
            .labels()
            .get("endpoints.kubernetes.io/managed-by")
            .is_none_or(|by| by != "endpoint-controller")
        {
            return Ok(None);
        }
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let preconditions = Preconditions { uid: orphan.uid(), resource_version: None };
        match api.delete(&key.name, &DeleteParams::default().preconditions(preconditions)).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(None),
            Err(error) => Err(error).says("delete the Endpoints of a Service that is gone"),
        }
    }
}
