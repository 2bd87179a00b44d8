//! The load balancer controller: gives Services of type LoadBalancer the addresses under which the service proxy
//! of every node serves them, from a pool or the nodes' own. A Service that names a class is left to others.
//!
//! What always holds: an address of a pool, and a port of the nodes, belongs to one Service. One worker decides
//! from a view that contains its own writes, and a second controller is stopped by the revision in each write.

mod plan;
mod pool;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::event::Recorder;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::expect::Expectations;
use crate::common::{Context, Result, Says};
use plan::{Outcome, World};
pub use pool::{InvalidPool, Pool};

const NAME: &str = "service-lb-controller";
/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Which addresses load balancers have.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Addresses for Services alone; the nodes' own if there are none.
    pub pool: Pool,
    /// TCP ports of nodes that a Service cannot have, and to whom they belong.
    pub reserved: BTreeMap<u16, String>,
}

struct Controller {
    context: Context,
    options: Options,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    recorder: Recorder,
    expectations: Expectations,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, options: Options) {
    let queue = Queue::new(context.clock.clone());
    let controller = Arc::new(Controller {
        context: context.clone(),
        options,
        services: context.informers.of(),
        nodes: context.informers.of(),
        slices: context.informers.of(),
        recorder: context.recorder("service-controller"),
        expectations: Expectations::default(),
    });
    let supervisor = &context.supervisor;
    let known = controller.services.clone();
    reconcile::feed(supervisor, NAME, controller.services.subscribe(), &queue, move |change| {
        concerned(&known, change)
    });
    let known = controller.services.clone();
    reconcile::feed(supervisor, NAME, controller.nodes.subscribe(), &queue, move |change| {
        let seen = |node: &Option<Arc<Node>>| {
            let fit = node.as_ref().filter(|node| plan::is_fit(node));
            fit.and_then(|node| plan::node_address(node))
        };
        if seen(&change.old) == seen(&change.new) { Vec::new() } else { load_balancers(&known) }
    });
    let known = controller.services.clone();
    reconcile::feed(supervisor, NAME, controller.slices.subscribe(), &queue, move |change| {
        owner(change.latest()).filter(|key| known.get(key).is_some_and(|service| plan::is_ours(&service)))
    });
    // One worker: two would give out the same address.
    reconcile::run(supervisor, NAME, &queue, 1, move |key: ObjectKey| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// The Services to look at when one changes: itself, and those that may get now what it held.
fn concerned(services: &Informer<Service>, change: &Change<Service>) -> Vec<ObjectKey> {
    let is =
        |service: &Arc<Service>| plan::is_load_balancer(service) || plan::addresses(service).next().is_some();
    if !change.sides().any(is) {
        return Vec::new();
    }
    let held = change.old.as_ref().is_some_and(|old| plan::is_ours(old));
    let mut keys = vec![change.key.clone()];
    if held {
        let without =
            |service: &&Arc<Service>| plan::is_ours(service) && plan::addresses(service).next().is_none();
        let services = services.list();
        keys.extend(services.iter().filter(without).map(|service| ObjectKey::of(&**service)));
    }
    keys
}

fn load_balancers(services: &Informer<Service>) -> Vec<ObjectKey> {
    let services = services.list();
    services
        .iter()
        .filter(|service| plan::is_ours(service))
        .map(|service| ObjectKey::of(&**service))
        .collect()
}

fn owner(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.services.synced().await;
        self.nodes.synced().await;
        self.slices.synced().await;
        // All writes are noted under one key: every decision depends on all of them.
        let all = ObjectKey::default();
        let api: Api<Service> = Api::all(self.context.client.clone());
        // An address whose giving was not answered may be taken: no other Service must get it.
        self.expectations.resolve(&all, &api, &ListParams::default(), || self.services.list()).await?;
        self.expectations.settled(&all, &self.services, &*self.context.clock).await?;
        let Some(service) = self.services.get(key) else { return Ok(None) };
        let mut slices = self.slices.list_in(&key.namespace);
        slices.retain(|slice| owner(slice).as_ref() == Some(key));
        let world = World {
            services: &self.services.list(),
            nodes: &self.nodes.list(),
            slices: &slices,
            pool: &self.options.pool,
            reserved: &self.options.reserved,
        };
        let wanted = match plan::outcome(&service, &world) {
            Outcome::Leave => return Ok(None),
            Outcome::Addresses(wanted) => wanted,
            Outcome::Refused(why) => {
                let message = format!("Error syncing load balancer: {why}");
                self.recorder.warning(&*service, "SyncLoadBalancerFailed", message);
                Vec::new()
            }
        };
        if plan::addresses(&service).collect::<Vec<_>>() == wanted {
            return Ok(None);
        }
        let ingress: Vec<_> = wanted.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let patch = json!({
            "metadata": {"resourceVersion": service.resource_version(), "uid": service.uid()},
            "status": {"loadBalancer": {"ingress": if ingress.is_empty() { None } else { Some(ingress) }}},
        });
        let api: Api<Service> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let patched = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        match patched.inspect_err(|error| self.expectations.failed(&all, error)) {
            Ok(patched) => self.expectations.wrote(&all, &patched),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error).says("give a Service its addresses"),
        }
        if !wanted.is_empty() {
            self.recorder.normal(&*service, "EnsuredLoadBalancer", "Ensured load balancer");
        } else if !plan::is_load_balancer(&service) {
            self.recorder.normal(&*service, "DeletedLoadBalancer", "Deleted load balancer");
        }
        Ok(None)
    }
}
