//! The EndpointSlice mirroring controller: Services without selector whose Endpoints somebody writes by hand
//! get slices of the same content, since proxies look at slices alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::event::Recorder;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::plan::{self, Family, MANAGED_LABEL, Plan, Ports, SERVICE_LABEL};
use super::slices::Slices;
use super::{subsets, trigger};
use crate::common::{Context, Result, claim};

const NAME: &str = "endpointslice-mirroring-controller";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";

/// Endpoints that are mirrored of a subset, as Kubernetes has it by default: one slice is one subset.
const LIMIT: usize = 1000;

/// The label by which Endpoints ask not to be mirrored.
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
/// The annotation of Endpoints that were locks of leader elections.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that slices do not take over.
const OWN: [&str; 2] = [trigger::ANNOTATION, "kubectl.kubernetes.io/last-applied-configuration"];

struct Controller {
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Slices,
    recorder: Recorder,
}

/// Starts the controller with so many workers.
pub(super) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let controller = Arc::new(Controller {
        services: context.informers.of(),
        endpoints: context.informers.of(),
        slices: Slices::new(context, NAME, MANAGER, &queue),
        recorder: context.recorder(NAME),
    });
    let supervisor = &context.supervisor;
    let (services, endpoints) = (controller.services.subscribe(), controller.endpoints.subscribe());
    reconcile::feed(supervisor, NAME, services, &queue, |change| [change.key.clone()]);
    reconcile::feed(supervisor, NAME, endpoints, &queue, |change| [change.key.clone()]);
    reconcile::run(supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.services.synced().await;
        self.endpoints.synced().await;
        self.slices.synced().await;
        let present = self.slices.of(key).await?;
        let service = self.services.get(key);
        let selects = service.as_ref().is_none_or(|service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            selector.is_some_and(|selector| !selector.is_empty())
        });
        let endpoints = self.endpoints.get(key).filter(|endpoints| !selects && is_mirrored(endpoints));
        let Some(endpoints) = endpoints else {
            let plan = Plan { delete: present, ..Plan::default() };
            self.slices.apply(key, &plan).await?;
            if service.is_none() {
                self.slices.forget(key);
            }
            return Ok(None);
        };
        let (plan, skipped) = mirror(&endpoints, &present);
        if skipped > 0 {
            let message = format!(
                "A max of {LIMIT} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
            );
            self.recorder.warning(&*endpoints, "TooManyAddressesToMirror", message);
        }
        self.slices.apply(key, &plan).await.map(|()| None)
    }
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(SKIP_LABEL).is_none_or(|skip| skip != "true")
        && !endpoints.annotations().contains_key(LEADER)
}

/// The slices that mirror `endpoints`, compared with those that there are; and how many addresses were too
/// many.
fn mirror(endpoints: &Endpoints, present: &[Arc<EndpointSlice>]) -> (Plan, usize) {
    let mut skipped = 0;
    let mut wanted: BTreeMap<(Family, Ports), Vec<Endpoint>> = BTreeMap::new();
    for subset in subsets::repack(endpoints.subsets.as_deref().unwrap_or_default()) {
        let ports = subset.ports.iter().flatten().map(|port| {
            let name = Some(port.name.clone().unwrap_or_default());
            (name, Some(port.port), port.protocol.clone(), port.app_protocol.clone())
        });
        let mut ports: Ports = ports.collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let all: Vec<_> = ready.chain(unready).collect();
        skipped += all.len().saturating_sub(LIMIT);
        for (address, ready) in all.into_iter().take(LIMIT) {
            let Some(family) = Family::of(&address.ip) else { continue };
            wanted.entry((family, ports.clone())).or_default().push(endpoint(address, ready));
        }
    }
    let mut plan = Plan::default();
    for slice in present {
        // One slice a group: the first that is there.
        let Some((group, endpoints_of)) =
            plan::slice_group(slice).and_then(|group| wanted.remove_entry(&group))
        else {
            plan.delete.push(slice.clone());
            continue;
        };
        let new = mirrored(endpoints, &group, endpoints_of);
        if !says_the_same(slice, &new) {
            let mut update = new;
            update.metadata.generate_name = None;
            update.metadata.name.clone_from(&slice.metadata.name);
            update.metadata.resource_version.clone_from(&slice.metadata.resource_version);
            plan.update.push(update);
        }
    }
    if endpoints.metadata.deletion_timestamp.is_none() {
        let missing = wanted.into_iter().map(|(group, some)| mirrored(endpoints, &group, some));
        plan.create.extend(missing);
    }
    plan.recycle(|_| true);
    (plan, skipped)
}

fn says_the_same(slice: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let sorted = |slice: &EndpointSlice| {
        let mut endpoints = slice.endpoints.clone().unwrap_or_default();
        endpoints.sort_by(|one, other| one.addresses.cmp(&other.addresses));
        endpoints
    };
    let owner = |slice: &EndpointSlice| claim::controller_of(&slice.metadata).map(|owner| owner.uid.clone());
    slice.labels() == wanted.labels()
        && slice.annotations() == wanted.annotations()
        && owner(slice) == owner(wanted)
        && sorted(slice) == sorted(wanted)
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn mirrored(endpoints: &Endpoints, (family, ports): &(Family, Ports), some: Vec<Endpoint>) -> EndpointSlice {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_LABEL.to_owned(), endpoints.name_any());
    labels.insert(MANAGED_LABEL.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()));
    EndpointSlice {
        address_type: family.as_str().to_owned(),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", endpoints.name_any())),
            namespace: endpoints.namespace(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![claim::controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        endpoints: Some(some),
        ports: Some(plan::slice_ports(ports)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoints(subsets: serde_json::Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "e", "labels": {"a": "b"},
                "annotations": {OWN[0]: "x", "team": "t"}},
            "subsets": subsets,
        }))
        .unwrap()
    }

    fn stored(plan: Plan) -> Vec<Arc<EndpointSlice>> {
        let named = plan.create.into_iter().enumerate().map(|(index, mut slice)| {
            slice.metadata.name = Some(format!("db-{index}"));
            slice
        });
        named.chain(plan.update).map(Arc::new).collect()
    }

    #[test]
    fn a_subset_becomes_a_slice_per_family() {
        let both = json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 5432, "protocol": "TCP"}]}]);
        let (plan, skipped) = mirror(&endpoints(both.clone()), &[]);
        assert_eq!((plan.create.len(), skipped), (2, 0));
        let slice = &plan.create[0];
        assert_eq!((slice.address_type.as_str(), slice.labels()[MANAGED_LABEL].as_str()), ("IPv4", MANAGER));
        assert_eq!(slice.annotations().keys().collect::<Vec<_>>(), ["team"]);
        let ready = slice.endpoints.iter().flatten().map(|one| one.conditions.as_ref().unwrap().ready);
        assert_eq!(ready.collect::<Vec<_>>(), [Some(true), Some(false)]);
        let present = stored(plan);
        let (again, _) = mirror(&endpoints(both), &present);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        let (less, _) = mirror(&endpoints(json!([{"addresses": [{"ip": "10.0.0.9"}]}])), &present);
        assert_eq!((less.create.len(), less.update.len(), less.delete.len()), (0, 1, 1), "one is made over");
        let (none, _) = mirror(&endpoints(json!([])), &present);
        assert_eq!(none.delete.len(), 2);
    }

    #[test]
    fn too_many_addresses_are_skipped_and_counted() {
        let many: Vec<_> =
            (0..1003).map(|n| json!({"ip": format!("10.0.{}.{}", n / 250, n % 250)})).collect();
        let (plan, skipped) = mirror(&endpoints(json!([{"addresses": many, "ports": [{"port": 1}]}])), &[]);
        assert_eq!((plan.create[0].endpoints.as_ref().unwrap().len(), skipped), (LIMIT, 3));
    }
}
