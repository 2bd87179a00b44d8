//! Which addresses a Service of type LoadBalancer has: pure.
//!
//! Without a pool it has those of the nodes, where the service proxy takes its ports; so two Services cannot have
//! one port. With a pool each has an address of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use decapod_client::ObjectKey;
use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::pool::Pool;

/// The label of nodes that take no traffic from outside.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What becomes of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is somebody else's.
    Leave,
    /// It has these addresses; none where it is no load balancer any more.
    Addresses(Vec<Ipv4Addr>),
    /// It cannot have any, and why.
    Refused(String),
}

/// The cluster, as far as it matters.
pub(super) struct World<'a> {
    pub(super) services: &'a [Arc<Service>],
    pub(super) nodes: &'a [Arc<Node>],
    /// The slices of the Service that is looked at.
    pub(super) slices: &'a [Arc<EndpointSlice>],
    pub(super) pool: &'a Pool,
    /// Ports of nodes that no Service can have, and whose they are.
    pub(super) reserved: &'a BTreeMap<u16, String>,
}

/// What a Service is to have.
pub(super) fn outcome(service: &Service, world: &World<'_>) -> Outcome {
    if !is_load_balancer(service) {
        return if addresses(service).next().is_some() {
            Outcome::Addresses(Vec::new())
        } else {
            Outcome::Leave
        };
    }
    if !is_ours(service) {
        return Outcome::Leave;
    }
    if service.metadata.deletion_timestamp.is_some() {
        return Outcome::Leave;
    }
    match world.pool.is_empty() {
        true => of_nodes(service, world),
        false => of_pool(service, world),
    }
}

/// Whether it is of the type.
pub(super) fn is_load_balancer(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
}

/// Whether it is of the type, and of no class: classes are for other implementations.
pub(super) fn is_ours(service: &Service) -> bool {
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_ref());
    is_load_balancer(service) && class.is_none()
}

/// The addresses that the Service has.
pub(super) fn addresses(service: &Service) -> impl Iterator<Item = Ipv4Addr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
}

/// Those that have an address come first, then the oldest: nobody loses what he has to a newcomer.
fn rank(service: &Service) -> (bool, Option<jiff::Timestamp>, ObjectKey) {
    let made = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (addresses(service).next().is_none(), made, ObjectKey::of(service))
}

/// The other Services that come before it.
fn before<'a>(service: &Service, world: &'a World<'_>) -> impl Iterator<Item = &'a Arc<Service>> {
    let own = rank(service);
    world.services.iter().filter(move |other| is_ours(other) && rank(other) < own)
}

fn ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten())
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn of_nodes(service: &Service, world: &World<'_>) -> Outcome {
    let taken = ports(service).find_map(|port| {
        let number = u16::try_from(port.port).ok()?;
        let whose = world.reserved.get(&number).filter(|_| protocol(port) == "TCP").cloned();
        let whose = whose.or_else(|| {
            let same = |other: &&ServicePort| other.port == port.port && protocol(other) == protocol(port);
            let holder = before(service, world).find(|other| ports(other).any(|other| same(&other)))?;
            let key = ObjectKey::of(&**holder);
            Some(format!("the Service {}/{}", key.namespace, key.name))
        })?;
        Some(format!("port {number}/{} of the nodes belongs to {whose}", protocol(port)))
    });
    if let Some(taken) = taken {
        return Outcome::Refused(format!(
            "{taken}: choose another port, or give Services addresses of their own (--load-balancer-pool)"
        ));
    }
    let local =
        service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local");
    let serving: BTreeSet<&str> = if local { nodes_serving(world.slices) } else { BTreeSet::new() };
    let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    let fit = world.nodes.iter().filter(|node| is_fit(node) && (!local || serving.contains(&*name(node))));
    let found: BTreeSet<Ipv4Addr> = fit.filter_map(|node| node_address(node)).collect();
    Outcome::Addresses(found.into_iter().collect())
}

/// The nodes with an endpoint that takes traffic.
fn nodes_serving(slices: &[Arc<EndpointSlice>]) -> BTreeSet<&str> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
        .filter_map(|endpoint| endpoint.node_name.as_deref())
        .collect()
}

/// Whether a node takes traffic from outside.
pub(super) fn is_fit(node: &Node) -> bool {
    let excluded = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED));
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True");
    ready && !excluded && node.metadata.deletion_timestamp.is_none()
}

/// The address under which a node is reached: from outside if it has such a one.
pub(super) fn node_address(node: &Node) -> Option<Ipv4Addr> {
    let all = || node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let of = |kind: &str| all().filter(|one| one.type_ == kind).find_map(|one| one.address.parse().ok());
    of("ExternalIP").or_else(|| of("InternalIP"))
}

fn of_pool(service: &Service, world: &World<'_>) -> Outcome {
    let own = ObjectKey::of(service);
    let others = || world.services.iter().filter(|other| is_ours(other) && ObjectKey::of(&***other) != own);
    let holder = |address: Ipv4Addr| {
        others()
            .find(|other| addresses(other).any(|taken| taken == address))
            .map(|other| ObjectKey::of(&**other))
    };
    let wanted = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref());
    if let Some(wanted) = wanted.filter(|text| !text.is_empty()) {
        let Some(address) = wanted.parse().ok().filter(|address| world.pool.contains(*address)) else {
            return Outcome::Refused(format!(
                "spec.loadBalancerIP {wanted} is not in the pool {} (--load-balancer-pool)",
                world.pool
            ));
        };
        return match holder(address) {
            Some(other) => Outcome::Refused(format!(
                "spec.loadBalancerIP {wanted} belongs to the Service {}/{}",
                other.namespace, other.name
            )),
            None => Outcome::Addresses(vec![address]),
        };
    }
    let kept = addresses(service).find(|address| world.pool.contains(*address) && holder(*address).is_none());
    let taken: BTreeSet<Ipv4Addr> = others().flat_map(|other| addresses(other)).collect();
    match kept.or_else(|| world.pool.addresses().find(|address| !taken.contains(address))) {
        Some(address) => Outcome::Addresses(vec![address]),
        None => Outcome::Refused(format!(
            "no address of the pool {} is free: delete a Service of type LoadBalancer, or enlarge the pool",
            world.pool
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, made: u32, spec: Value, ip: Option<&str>) -> Arc<Service> {
        let mut spec = spec;
        spec["type"] = json!("LoadBalancer");
        let ingress: Vec<Value> = ip.iter().map(|ip| json!({"ip": ip})).collect();
        let object = json!({"metadata": {"namespace": "ns", "name": name,
            "creationTimestamp": format!("2026-01-01T00:00:{made:02}Z")}, "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn node(name: &str, ip: &str, ready: &str) -> Arc<Node> {
        let object = json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn decide(
        service: &Service,
        services: &[Arc<Service>],
        pool: &str,
        slices: &[Arc<EndpointSlice>],
    ) -> Outcome {
        let nodes = [
            node("n1", "192.0.2.1", "True"),
            node("n2", "192.0.2.2", "True"),
            node("n3", "192.0.2.3", "False"),
        ];
        let reserved = BTreeMap::from([(6443, "the API server".to_owned())]);
        let pool = pool.parse().unwrap();
        outcome(service, &World { services, nodes: &nodes, slices, pool: &pool, reserved: &reserved })
    }

    fn port(port: u16) -> Value {
        json!({"ports": [{"port": port}]})
    }

    fn addresses_of(texts: &[&str]) -> Outcome {
        Outcome::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn without_a_pool_it_has_the_addresses_of_ready_nodes() {
        let web = service("web", 1, port(80), None);
        assert_eq!(
            decide(&web, std::slice::from_ref(&web), "", &[]),
            addresses_of(&["192.0.2.1", "192.0.2.2"])
        );
        let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n2"},
                {"addresses": ["10.0.0.2"], "nodeName": "n1", "conditions": {"ready": false}}]});
        let slice: Arc<EndpointSlice> = Arc::new(serde_json::from_value(slice).unwrap());
        let near = json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"});
        let near = service("web", 1, near, None);
        assert_eq!(decide(&near, &[], "", &[slice]), addresses_of(&["192.0.2.2"]));
    }

    #[test]
    fn a_port_of_the_nodes_has_one_holder() {
        let (old, new) = (service("old", 1, port(80), None), service("new", 2, port(80), None));
        let both = [old.clone(), new.clone()];
        assert_eq!(decide(&old, &both, "", &[]), addresses_of(&["192.0.2.1", "192.0.2.2"]));
        let Outcome::Refused(why) = decide(&new, &both, "", &[]) else { panic!("a clash") };
        assert!(why.starts_with("port 80/TCP of the nodes belongs to the Service ns/old: "), "{why}");
        let holder = service("new", 2, port(80), Some("192.0.2.1"));
        assert!(
            matches!(decide(&old, &[old.clone(), holder], "", &[]), Outcome::Refused(_)),
            "he keeps what he has"
        );
        let udp = service("new", 2, json!({"ports": [{"port": 80, "protocol": "UDP"}]}), None);
        assert!(matches!(decide(&udp, &[old], "", &[]), Outcome::Addresses(_)));
        let api = service("api", 1, port(6443), None);
        let Outcome::Refused(why) = decide(&api, &[], "", &[]) else { panic!("a clash") };
        assert!(why.contains("belongs to the API server"), "{why}");
    }

    #[test]
    fn a_pool_gives_each_service_an_address_of_its_own() {
        let pool = "203.0.113.1-203.0.113.2";
        let (a, b) = (service("a", 1, port(80), Some("203.0.113.1")), service("b", 2, port(80), None));
        assert_eq!(decide(&a, &[a.clone(), b.clone()], pool, &[]), addresses_of(&["203.0.113.1"]));
        assert_eq!(decide(&b, &[a.clone(), b.clone()], pool, &[]), addresses_of(&["203.0.113.2"]));
        let full = [a.clone(), service("c", 1, port(80), Some("203.0.113.2"))];
        let Outcome::Refused(why) = decide(&b, &full, pool, &[]) else { panic!("full") };
        assert!(why.starts_with("no address of the pool 203.0.113.1-203.0.113.2 is free"), "{why}");
        for (wanted, word) in
            [("203.0.113.1", "belongs to the Service ns/a"), ("203.0.113.9", "is not in the pool")]
        {
            let asks = service("b", 2, json!({"ports": [{"port": 80}], "loadBalancerIP": wanted}), None);
            let Outcome::Refused(why) = decide(&asks, std::slice::from_ref(&a), pool, &[]) else {
                panic!("{wanted}")
            };
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn other_classes_are_left_alone_and_other_types_lose_their_addresses() {
        let other = service("web", 1, json!({"ports": [{"port": 80}], "loadBalancerClass": "x.io/y"}), None);
        assert_eq!(decide(&other, &[], "", &[]), Outcome::Leave);
        let mut inner = Service::clone(&service("web", 1, port(80), Some("192.0.2.1")));
        inner.spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
        assert_eq!(decide(&inner, &[], "", &[]), Outcome::Addresses(Vec::new()));
    }
}
