//! Nodes in namespaces of their own, on one link and behind a router, against the real kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use crate::support::Namespace;
use decapod_network::pod::mesh::{Obstacle, Peer};
use decapod_network::pod::{Options, PodNetwork};
use decapod_network::{Netns, link};

/// A machine with wires to nodes; it forwards between them.
struct Machine(Namespace);

impl Machine {
    fn new() -> Self {
        let namespace = Namespace::new("machine");
        namespace.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
        Self(namespace)
    }

    fn wire(&self, number: u8) -> link::Options {
        let options = link::Options {
            netns: netns(&self.0),
            bridge: format!("wire{number}"),
            table: format!("wire{number}"),
            range: format!("10.0.{number}.0/24").parse().unwrap(),
            // Nothing here lies beyond the machine.
            cluster_cidr: "10.0.0.0/8".parse().unwrap(),
        };
        link::set_up(&options).unwrap();
        options
    }
}

/// A node on a wire, with a pod network.
struct Node {
    namespace: Namespace,
    options: Options,
    network: PodNetwork,
    peer: Peer,
    _data: tempfile::TempDir,
}

fn netns(namespace: &Namespace) -> Netns {
    Netns::Path(namespace.path().to_owned())
}

impl Node {
    /// The node `number` of the cluster, at this host's number on the wire.
    fn new(wire: &link::Options, number: u8) -> Self {
        let (namespace, data) = (Namespace::new("node"), tempfile::tempdir().unwrap());
        let address = Ipv4Addr::from(u32::from(wire.range.network()) + 10 + u32::from(number));
        link::join(wire, &netns(&namespace), address, &[]).unwrap();
        let pod_cidr = format!("10.244.{number}.0/24").parse().unwrap();
        let mut options = Options::new(pod_cidr, data.path());
        options.netns = netns(&namespace);
        options.node_ip = Some(address);
        let network = PodNetwork::new(options.clone()).unwrap();
        let peer = Peer { name: format!("node-{number}"), address, pod_cidr };
        Self { namespace, options, network, peer, _data: data }
    }

    async fn knows(&self, peers: &[&Node]) -> Vec<Obstacle> {
        let peers = peers.iter().map(|node| node.peer.clone()).collect();
        self.network.peers_apply(&self.peer.name, peers).await.unwrap()
    }

    async fn pod(&self, name: &str) -> (Namespace, Ipv4Addr) {
        let namespace = Namespace::new(name);
        let addresses = self.network.attach(name, namespace.path(), &[]).await.unwrap();
        let [IpAddr::V4(address)] = addresses[..] else { panic!("one IPv4 address: {addresses:?}") };
        (namespace, address)
    }

    fn ip(&self, arguments: &str) -> BTreeSet<String> {
        let output = self.namespace.run(|| Command::new("ip").args(arguments.split(' ')).output()).unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }

    /// The routes that the mesh made, by its mark.
    fn ways(&self) -> BTreeSet<String> {
        self.ip("-4 route show proto 220")
    }

    /// The tunnel, if there is one.
    fn tunnel(&self) -> BTreeSet<String> {
        self.ip("-o link show type vxlan")
    }
}

#[tokio::test]
async fn on_one_link_pods_are_reached_by_routes() {
    let machine = Machine::new();
    let wire = machine.wire(1);
    let (a, b, c) = (Node::new(&wire, 1), Node::new(&wire, 2), Node::new(&wire, 3));
    for (node, others) in [(&a, [&b, &c]), (&b, [&a, &c]), (&c, [&a, &b])] {
        assert_eq!(node.knows(&others).await, []);
        assert!(node.tunnel().is_empty());
    }
    let (pod_a, ip_a) = a.pod("a").await;
    let (pod_b, ip_b) = b.pod("b").await;
    let _servers = (pod_b.tcp_serve("b", 8080), pod_b.udp_serve("b", 8080));
    let _node = c.namespace.tcp_serve("c", 9000);
    assert_eq!(pod_a.tcp_ask(ip_b, 8080).unwrap(), format!("b {ip_a}"), "a pod keeps its address");
    assert_eq!(c.namespace.tcp_ask(ip_b, 8080).unwrap(), "b 10.0.1.13", "and so does a node");
    assert_eq!(pod_a.tcp_ask(c.peer.address, 9000).unwrap(), "c 10.0.1.11", "a node sees the pod's node");
    assert_eq!(pod_a.udp_whole(ip_b, 8080, 1500).unwrap(), format!("b {ip_a}"));
    assert!(pod_a.udp_whole(ip_b, 8080, 1501).is_err());

    // A node goes: so does its way, and no other.
    a.knows(&[&c]).await;
    assert_eq!(a.ways(), BTreeSet::from(["10.244.3.0/24 via 10.0.1.13 dev eth0 onlink".to_owned()]));
    // A link that was down took the ways along; they come back.
    for state in ["down", "up"] {
        a.ip(&format!("link set eth0 {state}"));
    }
    assert!(a.ways().is_empty());
    a.knows(&[&b, &c]).await;
    assert_eq!(a.ways().len(), 2);
    // Another process, after a crash, goes on from there, and the end takes all away.
    let again = PodNetwork::new(a.options.clone()).unwrap();
    again.peers_apply("node-1", vec![b.peer.clone()]).await.unwrap();
    assert_eq!(a.ways(), BTreeSet::from(["10.244.2.0/24 via 10.0.1.12 dev eth0 onlink".to_owned()]));
    assert_eq!(pod_a.tcp_ask(ip_b, 8080).unwrap(), format!("b {ip_a}"));
    PodNetwork::remove(&a.options).unwrap();
    assert!(a.ways().is_empty());
}

#[tokio::test]
async fn behind_a_router_pods_are_reached_through_a_tunnel() {
    let machine = Machine::new();
    let (near, far) = (machine.wire(1), machine.wire(2));
    let (a, b, c) = (Node::new(&near, 1), Node::new(&far, 2), Node::new(&far, 3));
    for (node, others) in [(&a, [&b, &c]), (&b, [&a, &c]), (&c, [&a, &b])] {
        assert_eq!(node.knows(&others).await, []);
        assert_eq!(node.tunnel().len(), 1, "{:?}", node.tunnel());
    }
    let (pod_a, ip_a) = a.pod("a").await;
    let (pod_b, ip_b) = b.pod("b").await;
    let (pod_c, _) = c.pod("c").await;
    let _servers = (pod_b.tcp_serve("b", 8080), pod_b.udp_serve("b", 8080), pod_a.tcp_serve("a", 8080));
    assert_eq!(pod_a.tcp_ask(ip_b, 8080).unwrap(), format!("b {ip_a}"), "a pod keeps its address");
    assert_eq!(pod_b.tcp_ask(ip_a, 8080).unwrap(), format!("a {ip_b}"));
    assert!(pod_c.tcp_ask(ip_b, 8080).unwrap().starts_with("b "), "by a route: they share a link");
    assert_eq!(a.namespace.tcp_ask(ip_b, 8080).unwrap(), "b 10.244.1.1", "a node goes as its gateway");
    assert_eq!(pod_a.udp_whole(ip_b, 8080, 1450).unwrap(), format!("b {ip_a}"));
    assert!(pod_a.udp_whole(ip_b, 8080, 1451).is_err());

    // One goes: its entries go, the tunnel stays for the other, and goes with it.
    a.knows(&[&c]).await;
    assert_eq!(a.ways().len(), 1);
    let entries = a.namespace.run(|| Command::new("bridge").args(["fdb", "show"]).output()).unwrap();
    let entries = String::from_utf8(entries.stdout).unwrap();
    assert!(entries.contains("dst 10.0.2.13") && !entries.contains("dst 10.0.2.12"), "{entries}");
    a.knows(&[]).await;
    assert!(a.ways().is_empty() && a.tunnel().is_empty());
    a.knows(&[&b]).await;
    assert_eq!(pod_a.tcp_ask(ip_b, 8080).unwrap(), format!("b {ip_a}"));
    PodNetwork::remove(&a.options).unwrap();
    assert!(a.ways().is_empty() && a.tunnel().is_empty());
}

#[tokio::test]
async fn a_node_that_moved_is_found_and_a_clash_is_told() {
    let machine = Machine::new();
    let (near, far) = (machine.wire(1), machine.wire(2));
    let (a, b) = (Node::new(&near, 1), Node::new(&far, 2));
    for (node, other) in [(&a, &b), (&b, &a)] {
        node.knows(&[other]).await;
    }
    let ((pod_a, ip_a), (pod_b, ip_b)) = (a.pod("a").await, b.pod("b").await);
    let _server = pod_b.tcp_serve("b", 8080);
    assert_eq!(pod_a.tcp_ask(ip_b, 8080).unwrap(), format!("b {ip_a}"));
    // It comes to the same wire, with another address and the same pods.
    link::leave(&far, b.peer.address).unwrap();
    let moved = Peer { address: [10, 0, 1, 99].into(), ..b.peer.clone() };
    link::join(&near, &netns(&b.namespace), moved.address, &[]).unwrap();
    a.network.peers_apply("node-1", vec![moved.clone()]).await.unwrap();
    b.network.peers_apply("node-2", vec![a.peer.clone()]).await.unwrap();
    assert!(a.tunnel().is_empty() && b.tunnel().is_empty());
    assert_eq!(pod_a.tcp_ask(ip_b, 8080).unwrap(), format!("b {ip_a}"));

    let thief = Peer { name: "thief".into(), ..moved.clone() };
    let told = a.network.peers_apply("node-1", vec![moved, thief]).await.unwrap();
    let told: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["the pod addresses 10.244.2.0/24 of node thief overlap with 10.244.2.0/24 of node node-2"]
    );
    assert_eq!(pod_a.tcp_ask(ip_b, 8080).unwrap(), format!("b {ip_a}"));
}
