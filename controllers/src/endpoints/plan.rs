//! Which addresses stand behind a Service, and how they are spread over EndpointSlices with as few
//! changes as possible: a proxy has to follow each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::common::{claim, pods};

/// Endpoints per slice, as Kubernetes has it by default: bounds what a change of one endpoint sends.
const SLICE_LIMIT: usize = 100;

pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(super) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The ports of a set of endpoints, comparable. Pods of one Service differ in them where a named port has
/// different numbers.
pub(super) type Ports = Vec<(Option<String>, Option<i32>, Option<String>, Option<String>)>;

/// IPv4 and IPv6 endpoints live in slices of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn of(address: &str) -> Option<Self> {
        Some(match address.parse().ok()? {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        })
    }
}

/// What has to be written for a Service.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// The slices that a Service needs, compared with those that it has.
pub(super) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    present: &[Arc<EndpointSlice>],
) -> Plan {
    let mut wanted: BTreeMap<(Family, Ports), BTreeMap<String, Endpoint>> = BTreeMap::new();
    let families = families(service);
    for pod in pods.iter().filter(|pod| !pods::is_terminal(pod)) {
        let zone = node(pods::node_name(pod)).and_then(|node| node.labels().get(ZONE_LABEL).cloned());
        for (family, address) in addresses(pod).into_iter().filter(|(family, _)| families.contains(family)) {
            let endpoint = endpoint(service, pod, &address, zone.clone());
            let group = wanted.entry((family, ports(service, pod))).or_default();
            group.insert(pod.uid().unwrap_or_default(), endpoint);
        }
    }
    let mut plan = Plan::default();
    let mut by_group: BTreeMap<(Family, Ports), Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in present {
        match slice_group(slice).filter(|group| wanted.contains_key(group)) {
            Some(group) => by_group.entry(group).or_default().push(slice.clone()),
            None => plan.delete.push(slice.clone()),
        }
    }
    for ((family, ports), endpoints) in wanted {
        let slices = by_group.remove(&(family, ports.clone())).unwrap_or_default();
        spread(service, family, &ports, endpoints, slices, &mut plan);
    }
    keep_placeholders(service, &families, present, &mut plan);
    plan
}

/// Spreads the endpoints of one group: what is in a slice stays there, what is new fills slices that
/// change anyway, then others with room, then new ones.
fn spread(
    service: &Service,
    family: Family,
    ports: &Ports,
    mut endpoints: BTreeMap<String, Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
    plan: &mut Plan,
) {
    let mut drafts = Vec::new();
    for slice in slices {
        let known = slice.endpoints.as_deref().unwrap_or_default();
        let kept: Vec<Endpoint> = known.iter().filter_map(|one| endpoints.remove(target(one)?)).collect();
        let changed = kept != known || !is_labelled(service, &slice);
        drafts.push((changed, slice, kept));
    }
    let mut fresh: Vec<Endpoint> = endpoints.into_values().collect();
    // Slices that change anyway come first.
    drafts.sort_by_key(|(changed, ..)| !changed);
    for (changed, _, kept) in &mut drafts {
        let room = SLICE_LIMIT.saturating_sub(kept.len()).min(fresh.len());
        *changed |= room > 0;
        kept.extend(fresh.drain(..room));
    }
    for (changed, slice, kept) in drafts {
        if kept.is_empty() {
            plan.delete.push(slice);
        } else if changed {
            let mut slice = EndpointSlice::clone(&slice);
            slice.metadata.labels = Some(labels(service));
            slice.endpoints = Some(kept);
            plan.update.push(slice);
        }
    }
    for chunk in fresh.chunks(SLICE_LIMIT) {
        plan.create.push(slice(service, family, ports, chunk.to_vec()));
    }
}

/// A Service without any endpoint keeps (or gets) one empty slice per family: it tells that nothing stands
/// behind the Service, which is not the same as not knowing.
fn keep_placeholders(
    service: &Service,
    families: &[Family],
    present: &[Arc<EndpointSlice>],
    plan: &mut Plan,
) {
    for family in families {
        let is_of = |slice: &EndpointSlice| slice.address_type == family.as_str();
        let deleted: BTreeSet<_> = plan.delete.iter().map(|slice| slice.name_any()).collect();
        let mut left = present.iter().filter(|slice| is_of(slice) && !deleted.contains(&slice.name_any()));
        if left.next().is_some() || plan.create.iter().any(is_of) {
            continue;
        }
        let placeholder = slice(service, *family, &Ports::new(), Vec::new());
        match plan.delete.iter().position(|slice| is_of(slice)) {
            None => plan.create.push(placeholder),
            Some(position) => {
                let mut kept = EndpointSlice::clone(&plan.delete.remove(position));
                let is_empty = kept.endpoints.as_ref().is_none_or(Vec::is_empty);
                let has_ports = kept.ports.as_ref().is_some_and(|ports| !ports.is_empty());
                if !is_empty || has_ports || !is_labelled(service, &kept) {
                    kept.metadata.labels = placeholder.metadata.labels;
                    kept.endpoints = placeholder.endpoints;
                    kept.ports = placeholder.ports;
                    plan.update.push(kept);
                }
            }
        }
    }
}

/// The families of a Service's addresses; IPv4 where it does not say.
fn families(service: &Service) -> Vec<Family> {
    let named = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let families: Vec<_> = named
        .into_iter()
        .flatten()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if families.is_empty() { vec![Family::V4] } else { families }
}

fn addresses(pod: &Pod) -> Vec<(Family, String)> {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.clone());
    let first = status.and_then(|status| status.pod_ip.clone());
    let distinct: BTreeSet<String> = all.chain(first).collect();
    distinct.into_iter().filter_map(|address| Some((Family::of(&address)?, address))).collect()
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone: Option<String>) -> Endpoint {
    let publishes_all = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let spec = pod.spec.as_ref();
    let is_member = spec.is_some_and(|spec| spec.subdomain.as_deref() == service.metadata.name.as_deref());
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_all || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec.and_then(|spec| spec.hostname.clone()).filter(|_| is_member),
        node_name: spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.namespace(),
            name: Some(pod.name_any()),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
        zone,
        ..Endpoint::default()
    }
}

/// The uid of the pod behind an endpoint.
fn target(endpoint: &Endpoint) -> Option<&str> {
    endpoint.target_ref.as_ref()?.uid.as_deref()
}

/// The Service's ports as this pod has them; a named port that it lacks is left out.
pub(super) fn ports(service: &Service, pod: &Pod) -> Ports {
    let wanted = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let mut ports: Ports = wanted
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let number = target_port(port, &protocol, pod)?;
            let name = Some(port.name.clone().unwrap_or_default());
            Some((name, Some(number), Some(protocol), port.app_protocol.clone()))
        })
        .collect();
    ports.sort();
    ports
}

fn target_port(port: &ServicePort, protocol: &str, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let is_sidecar = |one: &&Container| one.restart_policy.as_deref() == Some("Always");
            let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
            let ports = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
            let same = |of: &Option<String>| of.as_deref().unwrap_or("TCP") == protocol;
            let mut named = ports.filter(|one| one.name.as_ref() == Some(name) && same(&one.protocol));
            named.next().map(|one| one.container_port)
        }
    }
}

fn slice_group(slice: &EndpointSlice) -> Option<(Family, Ports)> {
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    let mut ports: Ports = slice
        .ports
        .iter()
        .flatten()
        .map(|port| {
            let name = Some(port.name.clone().unwrap_or_default());
            (name, port.port, port.protocol.clone(), port.app_protocol.clone())
        })
        .collect();
    ports.sort();
    Some((family, ports))
}

/// The labels of a Service's slices: its own, and what tells whose they are.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(SERVICE_LABEL.to_owned(), service.name_any());
    labels.insert(MANAGED_LABEL.to_owned(), MANAGER.to_owned());
    labels
}

fn is_labelled(service: &Service, slice: &EndpointSlice) -> bool {
    *slice.labels() == labels(service)
}

/// Whether the Service has no address of its own.
pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn slice(service: &Service, family: Family, ports: &Ports, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ports = ports.iter().map(|(name, port, protocol, app_protocol)| EndpointPort {
        name: name.clone(),
        port: *port,
        protocol: protocol.clone(),
        app_protocol: app_protocol.clone(),
    });
    let owner: OwnerReference = claim::controller_reference(service);
    EndpointSlice {
        address_type: family.as_str().to_owned(),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.namespace(),
            labels: Some(labels(service)),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        endpoints: Some(endpoints),
        ports: Some(ports.collect()),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
