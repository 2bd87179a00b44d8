//! The ways to the pods of other nodes: a route by the other node's address where both share a link, a
//! VXLAN tunnel to it where they do not.
//!
//! What always holds: all that a way is made of (route, neighbour, forwarding entry) follows from the
//! Nodes alone, nothing is asked or learnt on the wire. What the kernel has is compared with what should
//! be there, so that a crash, or a link that went down and took its routes along, is mended by the same
//! call; and only routes with our mark within the cluster's pod addresses are ever touched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use decapod_client::clock::Clock;
use decapod_client::informer::{Informer, Informers};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;

use super::ipam::gateway;
use super::{Error, Inner, Options, PodNetwork, mac};
use crate::netlink::route::{Connection, Hop, Link, LinkChange, Mac, Maker, Route};
use crate::netlink::tunnel::{Neighbour, Vxlan};
use crate::netlink::{self};

/// What VXLAN takes of a packet: outer Ethernet, IPv4, UDP and its own header.
const TUNNEL_OVERHEAD: u32 = 50;
/// The port that IANA gave to VXLAN.
const PORT: u16 = 4789;
/// The kernel's state is compared again after this long: a link that went down and up lost its routes,
/// and nobody else puts them back.
const LOOK: Duration = Duration::from_secs(30);
/// After a refusal it is tried again after this long.
const REST: Duration = Duration::from_secs(2);

/// Another node, as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its address: `InternalIP`.
    pub address: Ipv4Addr,
    /// The addresses of its pods: `spec.podCIDR`.
    pub pod_cidr: Ipv4Net,
}

impl Peer {
    /// A node that has an address and pod addresses; one that is new has not yet.
    pub fn of(node: &Node) -> Option<Self> {
        let pod_cidr = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
        let addresses = node.status.as_ref()?.addresses.as_ref()?;
        let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
        let address = internal.filter_map(|address| address.address.parse().ok()).next()?;
        Some(Self { name: node.metadata.name.clone()?, address, pod_cidr })
    }
}

/// Why there is no way to a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Two nodes have the same pod addresses.
    #[error("the pod addresses {cidr} of node {node} overlap with {other_cidr} of node {other}")]
    Overlap {
        /// The node that is left out.
        node: String,
        /// Its pod addresses.
        cidr: Ipv4Net,
        /// The other node.
        other: String,
        /// The other's pod addresses.
        other_cidr: Ipv4Net,
    },
    /// A node has pod addresses that are not the cluster's.
    #[error(
        "the pod addresses {cidr} of node {node} are not within those of the cluster, {cluster} (--pod-cidr)"
    )]
    Outside {
        /// The node.
        node: String,
        /// Its pod addresses.
        cidr: Ipv4Net,
        /// Those of the cluster.
        cluster: Ipv4Net,
    },
    /// The machine knows no way to the node's address.
    #[error("this machine has no route to {address}, the address of node {node}")]
    Unreachable {
        /// The node.
        node: String,
        /// Its address.
        address: Ipv4Addr,
    },
}

/// All that is to be in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    routes: BTreeSet<Route>,
    neighbours: BTreeSet<Neighbour>,
    obstacles: Vec<Obstacle>,
}

/// The peers that get a way: in the order of their names, so that of two that overlap the same one is
/// left out on every node.
fn admit(options: &Options, own: &str, peers: &[Peer]) -> (Vec<Peer>, Vec<Obstacle>) {
    let mut sorted: Vec<&Peer> = peers.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let (mut admitted, mut obstacles) = (Vec::<Peer>::new(), Vec::new());
    // The nodes' shares are disjoint, so that the nearest neighbours are all that can overlap.
    let mut shares = BTreeMap::from([(options.pod_cidr.network(), (own.to_owned(), options.pod_cidr))]);
    for peer in sorted {
        let cidr = peer.pod_cidr;
        let before = shares.range(..=cidr.broadcast()).next_back();
        if !options.cluster_cidr.contains(&cidr) {
            let (node, cluster) = (peer.name.clone(), options.cluster_cidr);
            obstacles.push(Obstacle::Outside { node, cidr, cluster });
        } else if let Some((_, (other, share))) = before.filter(|(_, (_, s))| s.broadcast() >= cidr.network())
        {
            let (node, other, other_cidr) = (peer.name.clone(), other.clone(), *share);
            obstacles.push(Obstacle::Overlap { node, cidr, other, other_cidr });
        } else {
            shares.insert(cidr.network(), (peer.name.clone(), cidr));
            admitted.push(peer.clone());
        }
    }
    (admitted, obstacles)
}

/// The way to one peer.
enum Way {
    /// Both are on this link.
    Link(u32),
    /// Through the tunnel.
    Tunnel,
}

fn way(hop: Hop) -> Way {
    if hop.gateway.is_none() { Way::Link(hop.link) } else { Way::Tunnel }
}

/// What is to be there for peers with a way each; `tunnel` is the index of the VXLAN link.
fn plan(options: &Options, ways: &[(Peer, Way)], tunnel: Option<u32>) -> Plan {
    let mut plan = Plan::default();
    for (peer, way) in ways {
        let destination = peer.pod_cidr.trunc();
        match (way, tunnel) {
            (Way::Link(link), _) => {
                let gateway = Some(peer.address);
                plan.routes.insert(Route { destination, gateway, link: *link, source: None });
            }
            (Way::Tunnel, Some(link)) => {
                let (inside, mac) = (gateway(destination), tunnel_mac(destination));
                let source = Some(gateway(options.pod_cidr));
                plan.routes.insert(Route { destination, gateway: Some(inside), link, source });
                plan.neighbours.insert(Neighbour::Address(inside, mac));
                plan.neighbours.insert(Neighbour::Place(mac, peer.address));
            }
            (Way::Tunnel, None) => {}
        }
    }
    plan
}

/// The hardware address of a node's end of the tunnel: that of an address which no pod and no gateway has.
fn tunnel_mac(pod_cidr: Ipv4Net) -> Mac {
    mac(pod_cidr.network())
}

/// The name of the VXLAN link, one a bridge.
fn tunnel_name(options: &Options) -> String {
    // A bridge is called dcp and more, 15 bytes at most; the tunnel dcv and the same.
    match options.bridge.strip_prefix("dcp") {
        Some(rest) => format!("dcv{rest}"),
        None => format!("{:.12}-vx", options.bridge),
    }
}

/// The number of the VXLAN: all nodes of the cluster know it, and two clusters on one machine differ.
fn tunnel_id(options: &Options) -> u32 {
    (u32::from(options.cluster_cidr.network()) >> 8).max(1)
}

impl PodNetwork {
    /// Makes the ways to these peers and removes all others. Returns why some have none.
    ///
    /// # Errors
    /// The kernel's refusal. The call may be repeated.
    pub async fn peers_apply(&self, own: &str, peers: Vec<Peer>) -> Result<Vec<Obstacle>, Error> {
        let own = own.to_owned();
        self.blocking(move |inner| inner.peers_apply(&own, &peers)).await
    }

    /// Follows the Nodes for as long as the process lives; `own` is this node's name.
    pub async fn peers_follow(self, own: String, informers: Informers, clock: Arc<dyn Clock>) {
        let nodes = informers.of::<Node>();
        nodes.synced().await;
        let mut changes = nodes.subscribe();
        let (mut applied, mut told) = (None, Vec::new());
        let mut look = clock.sleep(LOOK);
        loop {
            let peers = peers(&nodes, &own);
            if applied.as_ref() != Some(&peers) {
                match self.peers_apply(&own, peers.clone()).await {
                    Ok(obstacles) => {
                        // What stays in the way is told once.
                        for obstacle in obstacles.iter().filter(|obstacle| !told.contains(*obstacle)) {
                            tracing::error!(%obstacle, "pods of a node cannot be reached");
                        }
                        (applied, told) = (Some(peers), obstacles);
                    }
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(error, "the ways to other nodes cannot be set yet");
                        look = clock.sleep(REST);
                    }
                }
            }
            tokio::select! {
                change = changes.next() => if change.is_none() { return },
                () = &mut look => (applied, look) = (None, clock.sleep(LOOK)),
            }
            while changes.try_next().is_some() {}
        }
    }
}

fn peers(nodes: &Informer<Node>, own: &str) -> Vec<Peer> {
    let all = nodes.list();
    let others = all.iter().filter(|node| node.metadata.name.as_deref() != Some(own));
    let mut peers: Vec<Peer> = others.filter_map(|node| Peer::of(node)).collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers
}

impl Inner {
    fn peers_apply(&self, own: &str, peers: &[Peer]) -> Result<Vec<Obstacle>, Error> {
        let (admitted, mut obstacles) = admit(&self.options, own, peers);
        let tunnelled = self.in_node(|connection| {
            let mut ways = Vec::new();
            for peer in admitted {
                match connection.hop(peer.address)? {
                    Some(hop) => ways.push((peer, way(hop))),
                    None => obstacles
                        .push(Obstacle::Unreachable { node: peer.name.clone(), address: peer.address }),
                }
            }
            let tunnelled = ways.iter().any(|(_, way)| matches!(way, Way::Tunnel));
            let tunnel = self.tunnel(connection, tunnelled)?;
            let plan = plan(&self.options, &ways, tunnel);
            converge(connection, &self.options, &plan, tunnel)?;
            Ok(tunnelled)
        })?;
        let overhead = if tunnelled { TUNNEL_OVERHEAD } else { 0 };
        self.pod_mtu.store(self.mtu.saturating_sub(overhead), Ordering::Relaxed);
        Ok(obstacles)
    }

    /// The index of the VXLAN link if one is needed; one that is not needed goes.
    fn tunnel(&self, connection: &mut Connection, needed: bool) -> Result<Option<u32>, netlink::Error> {
        let name = tunnel_name(&self.options);
        if !needed {
            return connection.link_delete(&name).map(|()| None);
        }
        let own = tunnel_mac(self.options.pod_cidr);
        let mtu = self.mtu.saturating_sub(TUNNEL_OVERHEAD);
        // One of another time, with other pod addresses, is made anew.
        let stale = |link: &Link| link.mac != Some(own);
        if connection.link(&name)?.as_ref().is_some_and(stale) {
            connection.link_delete(&name)?;
        }
        if connection.link(&name)?.is_none() {
            let (id, local) = (tunnel_id(&self.options), self.options.node_ip);
            connection.vxlan_create(Vxlan { name: &name, id, port: PORT, mac: own, mtu, local })?;
        }
        let link = connection.link_expect(&name)?.index;
        connection.link_set(link, LinkChange { up: true, mtu: Some(mtu) })?;
        Ok(Some(link))
    }
}

/// Changes what differs. What is new comes first: a node that moved is never without a way.
fn converge(
    connection: &mut Connection,
    options: &Options,
    plan: &Plan,
    tunnel: Option<u32>,
) -> Result<(), netlink::Error> {
    if let Some(link) = tunnel {
        let told: BTreeSet<Neighbour> = connection.neighbours(link)?.into_iter().collect();
        for neighbour in plan.neighbours.difference(&told) {
            connection.neighbour_set(link, *neighbour)?;
        }
        let (mut addresses, mut macs) = (BTreeSet::new(), BTreeSet::new());
        for neighbour in &plan.neighbours {
            match neighbour {
                Neighbour::Address(address, _) => addresses.insert(*address),
                Neighbour::Place(mac, _) => macs.insert(*mac),
            };
        }
        // What was replaced is gone by that.
        let replaced = |neighbour: &Neighbour| match neighbour {
            Neighbour::Address(address, _) => addresses.contains(address),
            Neighbour::Place(mac, _) => macs.contains(mac),
        };
        for neighbour in told.difference(&plan.neighbours).filter(|neighbour| !replaced(neighbour)) {
            connection.neighbour_delete(link, *neighbour)?;
        }
    }
    let present: BTreeSet<Route> = own_routes(connection, options)?.into_iter().collect();
    for route in plan.routes.difference(&present) {
        connection.route_set_by(Maker::Mesh, *route)?;
    }
    let wanted: BTreeSet<Ipv4Net> = plan.routes.iter().map(|route| route.destination).collect();
    for route in present.iter().filter(|route| !wanted.contains(&route.destination)) {
        connection.route_delete(Maker::Mesh, *route)?;
    }
    Ok(())
}

/// The routes of this cluster's mesh: another cluster on the machine has other pod addresses.
fn own_routes(connection: &mut Connection, options: &Options) -> Result<Vec<Route>, netlink::Error> {
    let mut routes = connection.routes_by(Maker::Mesh)?;
    routes.retain(|route| options.cluster_cidr.contains(&route.destination));
    Ok(routes)
}

/// In the node's namespace: removes all ways.
pub(super) fn tear_down(connection: &mut Connection, options: &Options) -> Result<(), netlink::Error> {
    for route in own_routes(connection, options)? {
        connection.route_delete(Maker::Mesh, route)?;
    }
    connection.link_delete(&tunnel_name(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options::new("10.244.1.0/24".parse().unwrap(), "/nowhere")
    }

    fn peer(name: &str, address: [u8; 4], pod_cidr: &str) -> Peer {
        Peer { name: name.into(), address: address.into(), pod_cidr: pod_cidr.parse().unwrap() }
    }

    #[test]
    fn clashing_shares_are_told_by_both_names_and_left_out() {
        let peers = [
            peer("d", [10, 0, 0, 4], "10.244.2.0/24"),
            peer("b", [10, 0, 0, 2], "10.244.1.128/25"),
            peer("c", [10, 0, 0, 3], "10.244.2.0/23"),
            peer("e", [10, 0, 0, 5], "10.9.0.0/24"),
            peer("f", [10, 0, 0, 6], "10.244.4.0/24"),
        ];
        let (admitted, obstacles) = admit(&options(), "a", &peers);
        let names: Vec<_> = admitted.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["c", "f"]);
        let told: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "the pod addresses 10.244.1.128/25 of node b overlap with 10.244.1.0/24 of node a",
                "the pod addresses 10.244.2.0/24 of node d overlap with 10.244.2.0/23 of node c",
                "the pod addresses 10.9.0.0/24 of node e are not within those of the cluster, 10.244.0.0/16 (--pod-cidr)",
            ]
        );
    }

    #[test]
    fn a_way_is_a_route_on_the_link_or_through_the_tunnel() {
        let ways = [
            (peer("b", [10, 0, 0, 2], "10.244.2.0/24"), Way::Link(7)),
            (peer("c", [192, 0, 2, 3], "10.244.3.0/24"), Way::Tunnel),
        ];
        let plan = plan(&options(), &ways, Some(9));
        let route = |net: &str, gateway: [u8; 4], link, source: Option<[u8; 4]>| Route {
            destination: net.parse().unwrap(),
            gateway: Some(gateway.into()),
            link,
            source: source.map(Into::into),
        };
        let routes = [
            route("10.244.2.0/24", [10, 0, 0, 2], 7, None),
            route("10.244.3.0/24", [10, 244, 3, 1], 9, Some([10, 244, 1, 1])),
        ];
        assert_eq!(plan.routes, routes.into());
        let mac = [0x0a, 0x58, 10, 244, 3, 0];
        let neighbours =
            [Neighbour::Address([10, 244, 3, 1].into(), mac), Neighbour::Place(mac, [192, 0, 2, 3].into())];
        assert_eq!(plan.neighbours, neighbours.into());
    }
}
