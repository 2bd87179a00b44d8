//! A NetworkPolicy in the terms in which it is evaluated: pure.
//!
//! What always holds: what cannot be understood (a selector that the API server would have refused, an IPv6
//! range) allows nothing.

use decapod_api::labels::Selector;
use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::protocol::Protocol;

/// A policy.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// The pods of its namespace that it is about.
    pub(super) pods: Selector,
    /// What may come in; `None` if it says nothing of that.
    pub(super) ingress: Option<Vec<Allow>>,
    /// What may go out; `None` if it says nothing of that.
    pub(super) egress: Option<Vec<Allow>>,
}

/// Traffic that is allowed: with any of the peers, to any of the ports.
#[derive(Clone, Debug)]
pub(super) struct Allow {
    /// `None` is everybody.
    pub(super) peers: Option<Vec<Peer>>,
    /// `None` is every port of every protocol.
    pub(super) ports: Option<Vec<Port>>,
}

/// Who may be at the other end.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// Pods.
    Pods(PodPeer),
    /// Addresses.
    Block(Ipv4Net, Vec<Ipv4Net>),
}

/// Pods of namespaces.
#[derive(Clone, Debug)]
pub(super) struct PodPeer {
    pub(super) namespaces: Namespaces,
    pub(super) pods: Selector,
}

/// The namespaces of a peer.
#[derive(Clone, Debug)]
pub(super) enum Namespaces {
    /// All, also one of which nothing is known yet.
    All,
    /// This one: the policy's own.
    Only(String),
    /// Those with such labels.
    With(Selector),
}

impl PodPeer {
    /// Every pod.
    pub(super) fn everybody() -> Self {
        Self { namespaces: Namespaces::All, pods: Selector::everything() }
    }
}

/// Which ports are allowed.
#[derive(Clone, Debug)]
pub(super) enum Port {
    /// All of a protocol.
    All(Protocol),
    /// From the first to the last.
    Range(Protocol, u16, u16),
    /// What the pod that serves calls so.
    Named(Protocol, String),
}

impl Policy {
    /// Reads the policy of a namespace.
    pub(super) fn of(policy: &NetworkPolicy, namespace: &str) -> Self {
        let Some(spec) = &policy.spec else {
            return Self { pods: Selector::nothing(), ingress: None, egress: None };
        };
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let named = |name: &str| types.iter().any(|one| one == name);
        let (ingress, egress) = if types.is_empty() {
            (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()))
        } else {
            (named("Ingress"), named("Egress"))
        };
        let allow = |peers: &Option<Vec<NetworkPolicyPeer>>, ports: &Option<Vec<NetworkPolicyPort>>| Allow {
            peers: given(peers).map(|peers| peers.iter().filter_map(|p| peer(p, namespace)).collect()),
            ports: given(ports).map(|ports| ports.iter().filter_map(port).collect()),
        };
        Self {
            pods: spec.pod_selector.as_ref().map_or_else(Selector::everything, selector),
            ingress: ingress
                .then(|| spec.ingress.iter().flatten().map(|rule| allow(&rule.from, &rule.ports)).collect()),
            egress: egress
                .then(|| spec.egress.iter().flatten().map(|rule| allow(&rule.to, &rule.ports)).collect()),
        }
    }
}

/// An empty list says as much as none.
fn given<T>(list: &Option<Vec<T>>) -> Option<&[T]> {
    list.as_deref().filter(|list| !list.is_empty())
}

fn selector(selector: &LabelSelector) -> Selector {
    Selector::try_from(selector).unwrap_or_else(|_| Selector::nothing())
}

fn peer(peer: &NetworkPolicyPeer, namespace: &str) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        return block_of(block);
    }
    let namespaces = match &peer.namespace_selector {
        Some(labels) => Namespaces::With(selector(labels)),
        None => Namespaces::Only(namespace.to_owned()),
    };
    let pods = peer.pod_selector.as_ref().map_or_else(Selector::everything, selector);
    Some(Peer::Pods(PodPeer { namespaces, pods }))
}

fn block_of(block: &IPBlock) -> Option<Peer> {
    let except = block.except.iter().flatten().filter_map(|range| range.parse().ok()).collect();
    Some(Peer::Block(block.cidr.parse().ok()?, except))
}

fn port(port: &NetworkPolicyPort) -> Option<Port> {
    let protocol = Protocol::parse(port.protocol.as_deref())?;
    Some(match &port.port {
        None => Port::All(protocol),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = port.end_port.and_then(|last| u16::try_from(last).ok()).unwrap_or(first);
            Port::Range(protocol, first, last)
        }
        Some(IntOrString::String(name)) => Port::Named(protocol, name.clone()),
    })
}
