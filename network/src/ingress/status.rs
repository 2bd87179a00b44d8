//! Which Ingresses are ours, and the addresses that they tell.

use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::clock::Clock;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Informer, Informers};
use decapod_client::reconcile::{self, Queue};
use decapod_client::task::Supervisor;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const NAME: &str = "ingress-status";

/// The Ingresses whose class names this controller.
#[derive(Clone, Debug)]
pub(super) struct Selected {
    pub(super) ingresses: Informer<Ingress>,
    pub(super) classes: Informer<IngressClass>,
}

impl Selected {
    pub(super) fn new(informers: &Informers) -> Self {
        Self { ingresses: informers.of(), classes: informers.of() }
    }

    /// All of them.
    pub(super) fn list(&self) -> Vec<Arc<Ingress>> {
        let mut list = self.ingresses.list();
        list.retain(|ingress| self.is_ours(ingress));
        list
    }

    fn is_ours(&self, ingress: &Ingress) -> bool {
        let annotations = ingress.metadata.annotations.as_ref();
        let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
        let Some(name) = named.or_else(|| annotations?.get(super::CLASS_ANNOTATION)) else { return false };
        let class = self.classes.get(&ObjectKey::cluster(name));
        let controller = class.as_ref().and_then(|class| class.spec.as_ref()?.controller.clone());
        controller.as_deref() == Some(super::CONTROLLER)
    }
}

/// Keeps the status of our Ingresses in step with the addresses of the Service `service`.
pub(super) fn start(
    selected: &Selected,
    service: &(String, String),
    informers: &Informers,
    supervisor: &Supervisor,
    clock: Arc<dyn Clock>,
) {
    let queue = Queue::new(clock);
    let own = ObjectKey::new(service.0.clone(), &service.1);
    let services = informers.single::<Service>(&own);
    let all = |selected: &Selected| {
        selected.list().iter().map(|ingress| ObjectKey::of(&**ingress)).collect::<Vec<_>>()
    };
    reconcile::feed(supervisor, NAME, selected.ingresses.subscribe(), &queue, |change| [change.key.clone()]);
    let known = selected.clone();
    reconcile::feed(supervisor, NAME, selected.classes.subscribe(), &queue, move |_| all(&known));
    let known = selected.clone();
    reconcile::feed(supervisor, NAME, services.subscribe(), &queue, move |_| all(&known));
    let (selected, client) = (selected.clone(), informers.client().clone());
    reconcile::run(supervisor, NAME, &queue, 1, move |key: ObjectKey| {
        let (selected, services, client, own) =
            (selected.clone(), services.clone(), client.clone(), own.clone());
        async move {
            selected.classes.synced().await;
            services.synced().await;
            let Some(ingress) = selected.ingresses.get(&key).filter(|i| selected.is_ours(i)) else {
                return Ok::<_, kube::Error>(None::<Duration>);
            };
            let wanted = services.get(&own).map_or_else(Vec::new, |service| addresses(&service));
            if told(&ingress) == wanted {
                return Ok(None);
            }
            let api: Api<Ingress> = Api::namespaced(client, &key.namespace);
            let patch = json!({"status": {"loadBalancer": {"ingress": wanted}}});
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(None),
            }
        }
    });
}

/// The addresses of a Service, as an Ingress tells them.
fn addresses(service: &Service) -> Vec<Value> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let all = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    all.filter_map(|one| entry(one.ip.as_ref(), one.hostname.as_ref())).collect()
}

fn told(ingress: &Ingress) -> Vec<Value> {
    let balancer = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let all = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    all.filter_map(|one| entry(one.ip.as_ref(), one.hostname.as_ref())).collect()
}

fn entry(ip: Option<&String>, hostname: Option<&String>) -> Option<Value> {
    match (ip, hostname) {
        (Some(ip), _) => Some(json!({"ip": ip})),
        (None, Some(hostname)) => Some(json!({"hostname": hostname})),
        (None, None) => None,
    }
}
