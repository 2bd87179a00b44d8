//! Which addresses stand behind a Service, and how they are spread over EndpointSlices with as few
//! changes as possible: a proxy has to follow each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
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
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(super) fn of(address: &str) -> Option<Self> {
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
    /// Pods were left out because their node is not known (yet).
    pub(super) incomplete: bool,
}

impl Plan {
    /// Makes the slices that would go into those that would come, where they may become each other: the
    /// endpoints of a Service are never gone in between.
    pub(super) fn recycle(&mut self, may: impl Fn(&EndpointSlice) -> bool) {
        for old in std::mem::take(&mut self.delete) {
            let fits = |new: &EndpointSlice| new.address_type == old.address_type && may(&old);
            let Some(position) = self.create.iter().rposition(fits) else {
                self.delete.push(old);
                continue;
            };
            let new = self.create.remove(position);
            let mut update = EndpointSlice::clone(&old);
            update.metadata.labels = new.metadata.labels;
            update.metadata.annotations = new.metadata.annotations;
            update.metadata.owner_references = new.metadata.owner_references;
            update.endpoints = new.endpoints;
            update.ports = new.ports;
            self.update.push(update);
        }
    }
}

/// The slices that a Service needs, compared with those that it has.
pub(super) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    present: &[Arc<EndpointSlice>],
) -> Plan {
    let mut plan = Plan::default();
    let mut wanted: BTreeMap<(Family, Ports), BTreeMap<String, Endpoint>> = BTreeMap::new();
    let families = families(service);
    for pod in pods.iter().filter(|pod| !pods::is_terminal(pod)) {
        let node = node(pods::node_name(pod));
        let addresses = addresses(pod).into_iter().filter(|(family, _)| families.contains(family));
        for (family, address) in addresses {
            if node.is_none() && !publishes_all(service) {
                plan.incomplete = true;
                continue;
            }
            let zone = node.as_ref().and_then(|node| node.labels().get(ZONE_LABEL).cloned());
            let endpoint = endpoint(service, pod, &address, zone);
            let group = wanted.entry((family, ports(service, pod))).or_default();
            group.insert(pod.uid().unwrap_or_default(), endpoint);
        }
    }
    let mut by_group: BTreeMap<(Family, Ports), Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in present {
        let group = slice_group(slice).filter(|group| wanted.contains_key(group));
        match group.filter(|_| is_owned(service, slice)) {
            Some(group) => by_group.entry(group).or_default().push(slice.clone()),
            None => plan.delete.push(slice.clone()),
        }
    }
    for ((family, ports), endpoints) in wanted {
        let slices = by_group.remove(&(family, ports.clone())).unwrap_or_default();
        spread(service, family, &ports, endpoints, slices, &mut plan);
    }
    for family in families {
        keep_placeholder(service, family, present, &mut plan);
    }
    plan.recycle(|slice| is_owned(service, slice));
    plan
}

/// Spreads the endpoints of one group: what is in a slice stays there; what is new fills slices that
/// change anyway, then goes into one other if all of it has room there, else into new ones.
fn spread(
    service: &Service,
    family: Family,
    ports: &Ports,
    mut endpoints: BTreeMap<String, Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
    plan: &mut Plan,
) {
    let (mut changing, mut resting) = (Vec::new(), Vec::new());
    for slice in slices {
        let known = slice.endpoints.as_deref().unwrap_or_default();
        let kept: Vec<Endpoint> = known.iter().filter_map(|one| endpoints.remove(target(one)?)).collect();
        if kept == known && is_labelled(service, &slice) {
            resting.push((slice, kept));
        } else if kept.is_empty() {
            plan.delete.push(slice);
        } else {
            changing.push((slice, kept));
        }
    }
    let mut fresh: Vec<Endpoint> = endpoints.into_values().collect();
    // The fullest first: the fewest slices have room left afterwards.
    changing.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.len()));
    for (_, kept) in &mut changing {
        let room = SLICE_LIMIT.saturating_sub(kept.len()).min(fresh.len());
        kept.extend(fresh.drain(..room));
    }
    while !fresh.is_empty() {
        let room = |(_, kept): &&(Arc<EndpointSlice>, Vec<Endpoint>)| kept.len() + fresh.len() <= SLICE_LIMIT;
        let fullest = resting.iter().filter(room).max_by_key(|(_, kept)| kept.len());
        let fullest = fullest.map(|(slice, _)| slice.metadata.name.clone());
        let position = fullest.and_then(|name| resting.iter().position(|(s, _)| s.metadata.name == name));
        match position {
            Some(position) => {
                let (slice, mut kept) = resting.remove(position);
                kept.append(&mut fresh);
                changing.push((slice, kept));
            }
            None => {
                let some = fresh.drain(..SLICE_LIMIT.min(fresh.len())).collect();
                plan.create.push(slice(service, family, ports, some));
            }
        }
    }
    for (slice, kept) in changing {
        let mut slice = EndpointSlice::clone(&slice);
        slice.metadata.labels = Some(labels(service));
        slice.endpoints = Some(kept);
        plan.update.push(slice);
    }
}

/// A Service without any endpoint keeps (or gets) one empty slice per family: it tells that nothing stands
/// behind the Service, which is not the same as not knowing.
fn keep_placeholder(service: &Service, family: Family, present: &[Arc<EndpointSlice>], plan: &mut Plan) {
    let is_of = |slice: &EndpointSlice| slice.address_type == family.as_str();
    let going: BTreeSet<_> = plan.delete.iter().filter(|slice| is_of(slice)).map(|s| s.name_any()).collect();
    let stays = present.iter().any(|slice| is_of(slice) && !going.contains(&slice.name_any()));
    if stays || plan.create.iter().any(is_of) {
        return;
    }
    let is_placeholder = |slice: &EndpointSlice| {
        slice.endpoints.as_ref().is_none_or(Vec::is_empty)
            && slice.ports.as_ref().is_none_or(Vec::is_empty)
            && is_labelled(service, slice)
            && is_owned(service, slice)
    };
    let position = plan.delete.iter().position(|slice| is_of(slice) && is_placeholder(slice));
    match position {
        Some(position) => drop(plan.delete.remove(position)),
        None => plan.create.push(slice(service, family, &Ports::new(), Vec::new())),
    }
}

/// Whether a slice is this Service's, not that of an earlier one of the same name.
fn is_owned(service: &Service, slice: &EndpointSlice) -> bool {
    let mut owners = slice.metadata.owner_references.iter().flatten();
    owners.any(|owner| Some(&owner.uid) == service.metadata.uid.as_ref() && owner.kind == "Service")
}

fn publishes_all(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

/// The families of a Service's addresses; IPv4 where it does not say.
pub(super) fn families(service: &Service) -> Vec<Family> {
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

pub(super) fn addresses(pod: &Pod) -> Vec<(Family, String)> {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.clone());
    let first = status.and_then(|status| status.pod_ip.clone());
    let distinct: BTreeSet<String> = all.chain(first).collect();
    distinct.into_iter().filter_map(|address| Some((Family::of(&address)?, address))).collect()
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone: Option<String>) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = publishes_all(service) || (serving && !terminating);
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    Endpoint {
        hints: if ready { hints(service, zone.as_deref(), node.as_deref()) } else { None },
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: node,
        target_ref: Some(reference(pod)),
        zone,
        ..Endpoint::default()
    }
}

/// Where traffic to an endpoint should come from, where the Service asks to keep it close.
fn hints(service: &Service, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let wanted = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref())?;
    let same_node = wanted == "PreferSameNode";
    if !same_node && !matches!(wanted, "PreferClose" | "PreferSameZone") {
        return None;
    }
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = node.filter(|_| same_node).map(|node| vec![ForNode { name: node.to_owned() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_zones, for_nodes })
}

/// The name by which DNS knows a pod within the Service, if the pod says that it is of it.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref().filter(|spec| spec.subdomain.as_deref() == service.metadata.name.as_deref());
    spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty())
}

/// The reference by which endpoints name their pod.
pub(super) fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.namespace(),
        name: Some(pod.name_any()),
        uid: pod.uid(),
        ..ObjectReference::default()
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

pub(super) fn slice_group(slice: &EndpointSlice) -> Option<(Family, Ports)> {
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
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    matches!(address, None | Some("" | "None"))
}

fn slice(service: &Service, family: Family, ports: &Ports, endpoints: Vec<Endpoint>) -> EndpointSlice {
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
        ports: Some(slice_ports(ports)),
    }
}

pub(super) fn slice_ports(ports: &Ports) -> Vec<EndpointPort> {
    let ports = ports.iter().map(|(name, port, protocol, app_protocol)| EndpointPort {
        name: name.clone(),
        port: *port,
        protocol: protocol.clone(),
        app_protocol: app_protocol.clone(),
    });
    ports.collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
