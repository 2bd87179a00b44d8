//! The Endpoints object of a Service, which older clients and `kubectl describe` still read.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::plan::{self, HEADLESS_LABEL, Ports};
use crate::common::pods;

const MANAGED_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// More addresses than this are left out, and an annotation says so: as Kubernetes does.
const LIMIT: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The Endpoints that the Service should have.
pub(super) fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let spec = service.spec.as_ref();
    let publishes_all = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let serving = pods.iter().filter(|pod| !pods::is_terminal(pod));
    let mut serving: Vec<_> =
        serving.filter(|pod| publishes_all || pod.metadata.deletion_timestamp.is_none()).collect();
    // The ready ones first, should not all have a place.
    serving.sort_by_key(|pod| (!pods::is_ready(pod), pod.name_any()));
    let total = serving.len();
    for pod in serving.into_iter().take(LIMIT) {
        let Some(address) = address(service, pod) else { continue };
        let (ready, unready) = groups.entry(plan::ports(service, pod)).or_default();
        if publishes_all || pods::is_ready(pod) { ready.push(address) } else { unready.push(address) }
    }
    let subsets: Vec<_> = groups.into_iter().map(|(ports, addresses)| subset(ports, addresses)).collect();
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS_LABEL);
    if plan::is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(MANAGED_LABEL.to_owned(), MANAGER.to_owned());
    let over = (total > LIMIT).then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]));
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.namespace(),
            labels: Some(labels),
            annotations: over,
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// Whether the present Endpoints are as they should be.
pub(super) fn equals(present: &Endpoints, wanted: &Endpoints) -> bool {
    let over = |endpoints: &Endpoints| endpoints.annotations().get(OVER_CAPACITY).cloned();
    let subsets = |endpoints: &Endpoints| endpoints.subsets.clone().unwrap_or_default();
    present.labels() == wanted.labels()
        && subsets(present) == subsets(wanted)
        && over(present) == over(wanted)
}

fn address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    let spec = pod.spec.as_ref();
    let is_member = spec.is_some_and(|spec| spec.subdomain.as_deref() == service.metadata.name.as_deref());
    Some(EndpointAddress {
        ip: pod.status.as_ref()?.pod_ip.clone().filter(|address| !address.is_empty())?,
        hostname: spec.and_then(|spec| spec.hostname.clone()).filter(|_| is_member),
        node_name: spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.namespace(),
            name: Some(pod.name_any()),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
    })
}

fn subset(
    ports: Ports,
    (mut ready, mut unready): (Vec<EndpointAddress>, Vec<EndpointAddress>),
) -> EndpointSubset {
    ready.sort_by(|one, other| one.ip.cmp(&other.ip));
    unready.sort_by(|one, other| one.ip.cmp(&other.ip));
    let ports: Vec<_> = ports
        .into_iter()
        .filter_map(|(name, port, protocol, app_protocol)| {
            let name = name.filter(|name| !name.is_empty());
            Some(EndpointPort { name, port: port?, protocol, app_protocol })
        })
        .collect();
    EndpointSubset {
        addresses: (!ready.is_empty()).then_some(ready),
        not_ready_addresses: (!unready.is_empty()).then_some(unready),
        ports: (!ports.is_empty()).then_some(ports),
    }
}
