//! What the policies of the cluster mean for the pods of this node: pure.
//!
//! What always holds: work is proportional to what changed and to the pods of this node. A pod elsewhere that
//! comes or goes is compared with the peers that this node's chains name, and with nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use decapod_client::ObjectKey;
use imbl::OrdSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::parse::{Allow, Namespaces, Peer, PodPeer, Policy, Port};
use super::ruleset::{Chain, Direction, Member, PeerMatch, PortMatch, Rule, Ruleset};
use crate::protocol::Protocol;

type Labels = BTreeMap<String, String>;
/// A port of peers that a policy names.
type NamedPort = (Protocol, String);
/// Sets that chains name.
type Needed = BTreeMap<Arc<str>, (PodPeer, Option<NamedPort>)>;

/// A pod that got its address on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: another pod of the same name is another pod.
    pub uid: String,
    /// Its labels when its sandbox was made.
    pub labels: BTreeMap<String, String>,
}

/// What policies see of a pod.
#[derive(Clone, Debug, Default)]
struct Facts {
    uid: String,
    labels: Labels,
    node: String,
    /// None before it has one, after it has ended, and where it is the node's.
    address: Option<Ipv4Addr>,
    ports: Vec<(String, Protocol, u16)>,
}

/// A pod of this node whose traffic may be limited.
struct Local<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    ports: &'a [(String, Protocol, u16)],
}

/// Pods that chains name, under the name of their set.
#[derive(Clone, Debug)]
struct PeerSet {
    peer: PodPeer,
    /// The port of the peers that is meant, where a policy names it.
    port: Option<NamedPort>,
    members: BTreeMap<ObjectKey, Vec<Member>>,
}

/// The cluster as policies see it, and the rules that follow from it.
#[derive(Debug, Default)]
pub(super) struct Engine {
    node: String,
    policies: BTreeMap<String, BTreeMap<String, Policy>>,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<ObjectKey, Facts>,
    attached: BTreeMap<Ipv4Addr, PodIdentity>,
    peers: BTreeMap<Arc<str>, PeerSet>,
    members: Members,
    dirty: BTreeSet<ObjectKey>,
}

impl Engine {
    /// Knows nothing yet.
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), ..Self::default() }
    }

    /// Whether there is no policy at all.
    pub(super) fn is_idle(&self) -> bool {
        self.policies.is_empty()
    }

    /// Forgets pods and namespaces, which are not followed any more; not what is attached here.
    pub(super) fn forget(&mut self) {
        self.namespaces.clear();
        self.dirty.extend(std::mem::take(&mut self.pods).into_keys());
    }

    /// Takes note of a policy, or that it is gone.
    pub(super) fn policy_set(&mut self, key: &ObjectKey, policy: Option<&NetworkPolicy>) {
        let of_namespace = self.policies.entry(key.namespace.clone()).or_default();
        match policy {
            Some(policy) => {
                of_namespace.insert(key.name.clone(), Policy::of(policy, &key.namespace));
            }
            None => _ = of_namespace.remove(&key.name),
        }
        if of_namespace.is_empty() {
            self.policies.remove(&key.namespace);
        }
    }

    /// Takes note of a namespace, or that it is gone.
    pub(super) fn namespace_set(&mut self, name: &str, namespace: Option<&Namespace>) {
        match namespace {
            Some(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                self.namespaces.insert(name.to_owned(), labels);
            }
            None => _ = self.namespaces.remove(name),
        }
        let first = ObjectKey::new(name, "");
        let inside = self.pods.range(first..).take_while(|(key, _)| key.namespace == name);
        self.dirty.extend(inside.map(|(key, _)| key.clone()));
    }

    /// Takes note of a pod, or that it is gone.
    pub(super) fn pod_set(&mut self, key: ObjectKey, pod: Option<&Pod>) {
        match pod {
            Some(pod) => _ = self.pods.insert(key.clone(), facts(pod)),
            None => _ = self.pods.remove(&key),
        }
        self.dirty.insert(key);
    }

    /// Takes note that a pod has an address on this node, or that nobody has it any more.
    pub(super) fn attached_set(&mut self, address: Ipv4Addr, pod: Option<PodIdentity>) {
        match pod {
            Some(pod) => _ = self.attached.insert(address, pod),
            None => _ = self.attached.remove(&address),
        }
    }

    /// The rules that follow from all that was noted.
    pub(super) fn rules(&mut self) -> Ruleset {
        let mut rules = Ruleset::default();
        let mut needed = BTreeMap::new();
        for (address, local) in self.locals() {
            let Some(policies) = self.policies.get(local.namespace) else { continue };
            let about: Vec<_> =
                policies.values().filter(|policy| policy.pods.matches(local.labels)).collect();
            for direction in [Direction::Ingress, Direction::Egress] {
                if let Some(chain) = chain(&about, direction, &local, &mut needed) {
                    let name = chain.name();
                    rules.pods.insert((direction, address), name.clone());
                    rules.chains.entry(name).or_insert(chain);
                }
            }
        }
        self.peers_keep(needed);
        rules.members = self.members.all.clone();
        rules
    }

    /// The pods of this node by address: as the API says, and first as they were attached.
    fn locals(&self) -> BTreeMap<Ipv4Addr, Local<'_>> {
        let told = self.pods.iter().filter(|(_, pod)| pod.node == self.node).filter_map(|(key, pod)| {
            let local = Local { namespace: &key.namespace, labels: &pod.labels, ports: &pod.ports };
            Some((pod.address?, local))
        });
        let attached = self.attached.iter().map(|(address, identity)| {
            let key = ObjectKey::new(identity.namespace.clone(), &identity.name);
            let now = self.pods.get(&key).filter(|pod| pod.uid == identity.uid);
            let local = Local {
                namespace: &identity.namespace,
                labels: now.map_or(&identity.labels, |pod| &pod.labels),
                ports: now.map_or(&[], |pod| &pod.ports),
            };
            (*address, local)
        });
        told.chain(attached).collect()
    }

    /// Brings the sets in step: those that chains name now, with who belongs to them now.
    fn peers_keep(&mut self, needed: Needed) {
        let gone: Vec<_> = self.peers.keys().filter(|name| !needed.contains_key(*name)).cloned().collect();
        for name in gone {
            let set = self.peers.remove(&name).expect("it was listed");
            set.members.into_values().flatten().for_each(|member| self.members.release(&name, member));
        }
        let dirty = std::mem::take(&mut self.dirty);
        for (name, (peer, port)) in needed {
            let is_new = !self.peers.contains_key(&name);
            let set =
                self.peers.entry(name.clone()).or_insert(PeerSet { peer, port, members: BTreeMap::new() });
            let keys: Box<dyn Iterator<Item = &ObjectKey>> =
                if is_new { Box::new(self.pods.keys()) } else { Box::new(dirty.iter()) };
            for key in keys {
                let pod = self.pods.get(key);
                let members = pod.map(|pod| set.members_of(key, pod, &self.namespaces)).unwrap_or_default();
                let before = set.members.remove(key).unwrap_or_default();
                before.into_iter().for_each(|member| self.members.release(&name, member));
                members.iter().for_each(|member| self.members.claim(&name, *member));
                if !members.is_empty() {
                    set.members.insert(key.clone(), members);
                }
            }
        }
    }
}

/// The members of all sets. Two pods may have one address for a moment, so they are counted.
#[derive(Debug, Default)]
struct Members {
    counts: BTreeMap<(Arc<str>, Member), usize>,
    /// Those that are counted; clones share what they have in common.
    all: OrdSet<(Arc<str>, Member)>,
}

impl Members {
    fn claim(&mut self, set: &Arc<str>, member: Member) {
        let key = (set.clone(), member);
        self.all.insert(key.clone());
        *self.counts.entry(key).or_default() += 1;
    }

    fn release(&mut self, set: &Arc<str>, member: Member) {
        let key = (set.clone(), member);
        let Some(count) = self.counts.get_mut(&key) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&key);
            self.all.remove(&key);
        }
    }
}

impl PeerSet {
    /// What the pod contributes to the set.
    fn members_of(&self, key: &ObjectKey, pod: &Facts, namespaces: &BTreeMap<String, Labels>) -> Vec<Member> {
        let Some(address) = pod.address else { return Vec::new() };
        let inside = match &self.peer.namespaces {
            Namespaces::All => true,
            Namespaces::Only(name) => *name == key.namespace,
            Namespaces::With(labels) => namespaces.get(&key.namespace).is_some_and(|l| labels.matches(l)),
        };
        if !inside || !self.peer.pods.matches(&pod.labels) {
            return Vec::new();
        }
        match &self.port {
            None => vec![Member::Address(address)],
            Some((protocol, name)) => ports_named(&pod.ports, *protocol, name)
                .map(|port| Member::Port(address, *protocol, port))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        }
    }
}

fn ports_named(
    ports: &[(String, Protocol, u16)],
    protocol: Protocol,
    name: &str,
) -> impl Iterator<Item = u16> {
    ports.iter().filter(move |(n, p, _)| n == name && *p == protocol).map(|(_, _, port)| *port)
}

/// The chain of a pod in a direction; none if no policy speaks of that direction.
fn chain(
    policies: &[&Policy],
    direction: Direction,
    local: &Local<'_>,
    needed: &mut Needed,
) -> Option<Chain> {
    let lists = policies.iter().filter_map(|policy| match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    });
    let lists: Vec<_> = lists.collect();
    if lists.is_empty() {
        return None;
    }
    let mut rules = BTreeSet::new();
    for allow in lists.into_iter().flatten() {
        let ports = allow.ports.as_ref().map_or_else(|| vec![None], |p| p.iter().map(Some).collect());
        for port in ports {
            rules.extend(allowed(allow, port, direction, local, needed));
        }
    }
    Some(Chain { direction, rules })
}

/// The rules of one port of an allowance.
fn allowed(
    allow: &Allow,
    port: Option<&Port>,
    direction: Direction,
    local: &Local<'_>,
    needed: &mut Needed,
) -> Vec<Rule> {
    let ports = match port {
        None => vec![PortMatch::Any],
        Some(Port::All(protocol)) => vec![PortMatch::Protocol(*protocol)],
        Some(Port::Range(protocol, first, last)) => vec![PortMatch::Range(*protocol, *first, *last)],
        // The name is the serving pod's: this one's own, or that of whoever it speaks to.
        Some(Port::Named(protocol, name)) if direction == Direction::Ingress => {
            let ports = ports_named(local.ports, *protocol, name);
            ports.map(|port| PortMatch::Range(*protocol, port, port)).collect()
        }
        Some(Port::Named(protocol, name)) => {
            let named = Some((*protocol, name.clone()));
            let everybody = || vec![Peer::Pods(PodPeer::everybody())];
            let peers = allow.peers.clone().unwrap_or_else(everybody);
            let pods = peers.iter().filter_map(|peer| match peer {
                Peer::Pods(peer) => Some(peer),
                // An address has no names for its ports.
                Peer::Block(..) => None,
            });
            return pods
                .map(|peer| Rule {
                    peer: PeerMatch::MemberPorts(set_need(peer, named.clone(), needed)),
                    port: PortMatch::Any,
                })
                .collect();
        }
    };
    let Some(peers) = &allow.peers else {
        return ports.into_iter().map(|port| Rule { peer: PeerMatch::Any, port }).collect();
    };
    let mut rules = Vec::new();
    for peer in peers {
        let peer = match peer {
            Peer::Block(net, except) => PeerMatch::Block(*net, except.clone()),
            Peer::Pods(peer) => PeerMatch::Members(set_need(peer, None, needed)),
        };
        rules.extend(ports.iter().map(|port| Rule { peer: peer.clone(), port: port.clone() }));
    }
    rules
}

/// Notes that a set is needed. Returns its name, which says what it is of.
fn set_need(peer: &PodPeer, port: Option<NamedPort>, needed: &mut Needed) -> Arc<str> {
    let name: Arc<str> = format!("{:?}/{:?}/{port:?}", peer.namespaces, peer.pods).into();
    needed.entry(name.clone()).or_insert_with(|| (peer.clone(), port));
    name
}

fn facts(pod: &Pod) -> Facts {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let over = status.and_then(|s| s.phase.as_deref()).is_some_and(|p| matches!(p, "Succeeded" | "Failed"));
    let of_node = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let first = status.and_then(|status| status.pod_ip.as_ref());
    let all = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten().map(|ip| &ip.ip));
    let address = first.into_iter().chain(all).find_map(|ip| ip.parse().ok());
    let containers = spec.into_iter().flat_map(|spec| {
        // Sidecars serve too.
        spec.containers.iter().chain(spec.init_containers.iter().flatten())
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        Some((port.name.clone()?, protocol, u16::try_from(port.container_port).ok()?))
    });
    Facts {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        address: address.filter(|_| !over && !of_node),
        ports: ports.collect(),
    }
}
