//! The pod network against the real kernel, in a node namespace made for the test.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::support::Namespace;
use decapod_network::pod::{HostPort, Options, PodNetwork};
use decapod_network::{Netns, Protocol};

/// A node with a pod network.
struct Node {
    namespace: Namespace,
    options: Options,
    network: PodNetwork,
    _data: tempfile::TempDir,
}

fn node() -> Node {
    let (namespace, data) = (Namespace::new("node"), tempfile::tempdir().unwrap());
    let mut options = Options::new("10.244.0.0/24".parse().unwrap(), data.path());
    options.netns = Netns::Path(namespace.path().to_owned());
    let network = PodNetwork::new(options.clone()).unwrap();
    Node { namespace, options, network, _data: data }
}

impl Node {
    async fn pod(&self, name: &str, ports: &[HostPort]) -> (Namespace, Ipv4Addr) {
        let namespace = Namespace::new(name);
        let addresses = self.network.attach(name, namespace.path(), ports).await.unwrap();
        let [IpAddr::V4(address)] = addresses[..] else { panic!("one IPv4 address: {addresses:?}") };
        (namespace, address)
    }

    fn links(&self) -> BTreeSet<String> {
        self.namespace.run(|| {
            let entries = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let names = entries.lines().skip(2).filter_map(|line| line.split(':').next());
            names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("dcp")).collect()
        })
    }
}

fn host_port(port: u16, host_ip: Option<Ipv4Addr>, protocol: Protocol) -> HostPort {
    HostPort { host_ip, host_port: port, container_port: 8080, protocol }
}

#[tokio::test]
async fn pods_reach_each_other_and_the_node() {
    let node = node();
    let (a, a_ip) = node.pod("a", &[]).await;
    let (b, b_ip) = node.pod("b", &[]).await;
    let _server = b.tcp_serve("b", 8080);
    assert_eq!(a.tcp_ask(b_ip, 8080).unwrap(), format!("b {a_ip}"));
    assert_eq!(node.namespace.tcp_ask(b_ip, 8080).unwrap(), "b 10.244.0.1");
    let _node_server = node.namespace.tcp_serve("node", 9000);
    assert_eq!(a.tcp_ask([10, 244, 0, 1], 9000).unwrap(), format!("node {a_ip}"));
    node.network.ready().await.unwrap();
}

#[tokio::test]
async fn attaching_again_repairs_and_detaching_again_is_fine() {
    let node = node();
    let (a, a_ip) = node.pod("a", &[]).await;
    let (b, b_ip) = node.pod("b", &[]).await;
    let again = node.network.attach("a", a.path(), &[]).await.unwrap();
    assert_eq!(again, [IpAddr::V4(a_ip)]);
    let _server = a.udp_serve("a", 53);
    assert_eq!(b.udp_ask(a_ip, 53).unwrap(), format!("a {b_ip}"));
    node.network.detach("a").await.unwrap();
    node.network.detach("a").await.unwrap();
    assert_eq!(node.network.address("a"), None);
    assert_eq!(node.links().len(), 2);
}

#[tokio::test]
async fn host_ports_lead_to_the_pod_until_it_is_gone() {
    let node = node();
    let ports = [host_port(7000, None, Protocol::Tcp), host_port(7001, None, Protocol::Udp)];
    let (a, a_ip) = node.pod("a", &ports).await;
    let (b, _) = node.pod("b", &[host_port(7002, Some([10, 244, 0, 1].into()), Protocol::Tcp)]).await;
    let _tcp = a.tcp_serve("a", 8080);
    let _udp = a.udp_serve("a", 8080);
    let _b = b.tcp_serve("b", 8080);
    assert_eq!(b.tcp_ask([10, 244, 0, 1], 7000).unwrap(), "a 10.244.0.3");
    assert_eq!(b.udp_ask([10, 244, 0, 1], 7001).unwrap(), "a 10.244.0.3");
    assert_eq!(node.namespace.tcp_ask([127, 0, 0, 1], 7000).unwrap(), "a 10.244.0.1");
    assert_eq!(a.tcp_ask([10, 244, 0, 1], 7000).unwrap(), "a 10.244.0.1", "hairpin of {a_ip}");
    assert_eq!(a.tcp_ask([10, 244, 0, 1], 7002).unwrap(), format!("b {a_ip}"));
    assert!(node.namespace.tcp_ask([127, 0, 0, 1], 7002).is_err(), "another address of the node");
    node.network.detach("a").await.unwrap();
    assert!(b.tcp_ask([10, 244, 0, 1], 7000).is_err());
}

#[tokio::test]
async fn a_new_process_takes_over_and_frees_what_is_gone() {
    let node = node();
    let (a, a_ip) = node.pod("a", &[host_port(7000, None, Protocol::Tcp)]).await;
    let (_b, _) = node.pod("b", &[]).await;
    let network = PodNetwork::new(node.options.clone()).unwrap();
    let _server = a.tcp_serve("a", 8080);
    assert_eq!(node.namespace.tcp_ask([10, 244, 0, 1], 7000).unwrap(), "a 10.244.0.1");
    network.reconcile(BTreeSet::from(["a".to_owned()])).await.unwrap();
    assert_eq!((network.address("a"), network.address("b")), (Some(IpAddr::V4(a_ip)), None));
    assert_eq!(node.links().len(), 2, "the bridge and one pod: {:?}", node.links());
}

#[tokio::test]
async fn removing_leaves_nothing() {
    let node = node();
    let forward = || node.namespace.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
    assert_eq!(forward(), "1\n");
    let (_a, _) = node.pod("a", &[]).await;
    PodNetwork::remove(&node.options).unwrap();
    assert_eq!(forward(), "0\n");
    assert_eq!(node.links(), BTreeSet::new());
    assert_eq!(std::fs::read_dir(&node.options.data_dir).unwrap().count(), 0);
    assert!(node.network.ready().await.is_err());
    PodNetwork::remove(&node.options).unwrap();
}

#[tokio::test]
async fn a_node_with_other_addresses_does_not_inherit_the_bridge() {
    let node = node();
    let options = Options { pod_cidr: "10.244.7.0/24".parse().unwrap(), ..node.options.clone() };
    let network = PodNetwork::new(options).unwrap();
    let pod = Namespace::new("pod");
    let given = network.attach("pod", pod.path(), &[]).await.unwrap();
    assert_eq!(given, [IpAddr::from([10, 244, 7, 2])]);
    let _server = node.namespace.tcp_serve("node", 9000);
    assert_eq!(pod.tcp_ask([10, 244, 7, 1], 9000).unwrap(), "node 10.244.7.2");
    assert!(pod.tcp_ask([10, 244, 0, 1], 9000).is_err(), "the former gateway is gone");
}
