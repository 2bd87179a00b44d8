//! The service proxy against the real kernel: two pods on a node made for the test.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::api::Api;
use crate::support::{Namespace, PATIENCE, Server, udp_exchange};
use decapod_client::ObjectKey;
use decapod_client::clock::SystemClock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_network::Netns;
use decapod_network::pod::{self, PodNetwork};
use decapod_network::proxy::{Options, ServiceProxy, Traffic};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const GATEWAY: [u8; 4] = [10, 244, 0, 1];
const LOCALHOST: [u8; 4] = [127, 0, 0, 1];

/// A node with two pods `a` and `b` that serve on port 8080, and a proxy.
struct Node {
    namespace: Namespace,
    a: Namespace,
    b: Namespace,
    proxy: ServiceProxy,
    options: Options,
    slices: BTreeMap<String, Arc<EndpointSlice>>,
    _servers: Vec<Server>,
    _network: PodNetwork,
    _data: tempfile::TempDir,
}

const A: &str = "10.244.0.2";
const B: &str = "10.244.0.3";

async fn node() -> Node {
    let (namespace, data) = (Namespace::new("node"), tempfile::tempdir().unwrap());
    let netns = Netns::Path(namespace.path().to_owned());
    let mut options = pod::Options::new("10.244.0.0/24".parse().unwrap(), data.path());
    options.netns = netns.clone();
    let network = PodNetwork::new(options).unwrap();
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    for (pod, address) in [(&a, A), (&b, B)] {
        let given = network.attach(address, pod.path(), &[]).await.unwrap();
        assert_eq!(given, [address.parse::<IpAddr>().unwrap()]);
    }
    let servers =
        vec![a.tcp_serve("a", 8080), b.tcp_serve("b", 8080), a.udp_serve("a", 8080), b.udp_serve("b", 8080)];
    let options = Options { netns, ..Options::new("here") };
    let proxy = ServiceProxy::new(options.clone());
    let slices = BTreeMap::new();
    Node { namespace, a, b, proxy, options, slices, _servers: servers, _network: network, _data: data }
}

impl Node {
    fn service(&mut self, name: &str, spec: Value) {
        let spec = merged(json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"]}), spec);
        let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        let service = Arc::new(serde_json::from_value(object).unwrap());
        self.proxy.service_set(ObjectKey::new("default", name), Some(service));
    }

    fn endpoints(&mut self, service: &str, endpoints: &[(&str, &str)]) {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(address, node)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}}))
            .collect();
        let ports = [("tcp", "TCP"), ("udp", "UDP")];
        let object = json!({
            "metadata": {"namespace": "default", "name": format!("{service}-1"),
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": ports.map(|(name, protocol)| json!({"name": name, "port": 8080, "protocol": protocol})),
        });
        let new: Arc<EndpointSlice> = Arc::new(serde_json::from_value(object).unwrap());
        let old = self.slices.insert(service.to_owned(), new.clone());
        self.proxy.slice_set(old.as_deref(), Some(new));
    }

    fn apply(&mut self) -> u32 {
        self.proxy.apply().unwrap()
    }

    /// Which servers answer 40 connections, and from whom they think these come.
    #[track_caller]
    fn answers(&self, client: &Namespace, address: [u8; 4], port: u16) -> BTreeSet<String> {
        let mut answers = BTreeSet::new();
        for _ in 0..40 {
            answers.insert(client.tcp_ask(address, port).unwrap());
        }
        answers
    }
}

fn merged(mut base: Value, over: Value) -> Value {
    let Value::Object(over) = over else { panic!("an object") };
    base.as_object_mut().unwrap().extend(over);
    base
}

fn ports(node_port: u16) -> Value {
    json!([{"name": "tcp", "port": 80, "protocol": "TCP", "nodePort": node_port},
        {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": node_port}])
}

fn set<const N: usize>(items: [&str; N]) -> BTreeSet<String> {
    items.map(str::to_owned).into()
}

#[tokio::test]
async fn a_cluster_ip_spreads_over_its_endpoints_with_hairpin() {
    let mut node = node().await;
    node.service("web", json!({"ports": ports(0)}));
    node.endpoints("web", &[(A, "here"), (B, "here")]);
    node.apply();
    let from_a = node.answers(&node.a, CLUSTER_IP, 80);
    assert_eq!(from_a, set(["a 10.244.0.1", "b 10.244.0.2"]), "itself is reached by the gateway's address");
    let from_node = node.answers(&node.namespace, CLUSTER_IP, 80);
    assert_eq!(from_node, set(["a 10.244.0.1", "b 10.244.0.1"]));
    node.a.udp_ask(CLUSTER_IP, 53).unwrap();
}

#[tokio::test]
async fn hairpin_works_without_bridge_netfilter_too() {
    let mut node = node().await;
    node.namespace.run(|| std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")).unwrap();
    node.service("web", json!({"ports": ports(0)}));
    node.endpoints("web", &[(A, "here"), (B, "here")]);
    node.apply();
    let from_a = node.answers(&node.a, CLUSTER_IP, 80);
    assert_eq!(from_a, set(["a 10.244.0.1", "b 10.244.0.2"]));
}

#[tokio::test]
async fn without_endpoints_a_connection_is_refused_at_once() {
    let mut node = node().await;
    node.service("web", json!({"ports": ports(30080), "externalIPs": ["203.0.113.7"]}));
    node.apply();
    for client in [&node.a, &node.namespace] {
        for (address, port) in [(CLUSTER_IP, 80), (GATEWAY, 30080), ([10, 96, 7, 7], 80)] {
            let refused = client.tcp_ask(address, port).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address:?}");
        }
    }
    assert_eq!(node.a.udp_ask(CLUSTER_IP, 53).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // What the machine itself may not send, it is told by the call that sends.
    assert_eq!(node.namespace.udp_ask(CLUSTER_IP, 53).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(node.a.tcp_ask([203, 0, 113, 7], 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    node.endpoints("web", &[(B, "here")]);
    node.apply();
    assert_eq!(node.a.tcp_ask([203, 0, 113, 7], 80).unwrap(), "b 10.244.0.1");
    node.a.tcp_ask(CLUSTER_IP, 80).unwrap();
    node.endpoints("web", &[]);
    node.apply();
    assert_eq!(node.a.tcp_ask(CLUSTER_IP, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn node_ports_answer_on_every_address_of_the_node() {
    let mut node = node().await;
    node.service("web", json!({"ports": ports(30080)}));
    node.endpoints("web", &[(A, "here"), (B, "here")]);
    node.apply();
    let masqueraded = set(["a 10.244.0.1", "b 10.244.0.1"]);
    assert_eq!(node.answers(&node.namespace, LOCALHOST, 30080), masqueraded);
    assert_eq!(node.answers(&node.namespace, GATEWAY, 30080), masqueraded);
    assert_eq!(node.answers(&node.b, GATEWAY, 30080), masqueraded);
    assert_eq!(node.namespace.udp_ask(LOCALHOST, 30080).unwrap().split(' ').nth(1), Some("10.244.0.1"));
    let not_here = node.a.tcp_ask([10, 244, 0, 3], 30080).unwrap_err();
    assert_eq!(not_here.kind(), ErrorKind::ConnectionRefused, "a pod's address is no address of the node");
}

#[tokio::test]
async fn local_policies_keep_the_source_and_stay_on_the_node() {
    let mut node = node().await;
    let policies =
        json!({"ports": ports(30080), "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"});
    node.service("web", policies.clone());
    node.endpoints("web", &[(A, "there"), (B, "here")]);
    node.apply();
    assert_eq!(node.answers(&node.a, CLUSTER_IP, 80), set(["b 10.244.0.2"]));
    assert_eq!(
        node.answers(&node.b, GATEWAY, 30080),
        set(["a 10.244.0.3", "b 10.244.0.1"]),
        "from the cluster"
    );
    assert_eq!(node.answers(&node.namespace, LOCALHOST, 30080).len(), 2, "from the node");
    let outside = outside(&node);
    assert_eq!(node.answers(&outside, [192, 0, 2, 1], 30080), set(["b 192.0.2.2"]), "from outside");
    node.endpoints("web", &[(A, "there")]);
    node.apply();
    assert!(node.a.tcp_is_silent(CLUSTER_IP, 80));
    assert!(outside.tcp_is_silent([192, 0, 2, 1], 30080));
}

/// A machine outside of the cluster, 192.0.2.2, on one link with the node, 192.0.2.1. It is made with
/// the `ip` program, which every machine has that our users work on.
fn outside(node: &Node) -> Namespace {
    let outside = Namespace::new("outside");
    let peer = outside.path().to_owned();
    let ip = |namespace: &Namespace, command: &str| {
        let command: Vec<_> = command.split(' ').map(str::to_owned).collect();
        let status = namespace.run(|| std::process::Command::new("ip").args(&command).status().unwrap());
        assert!(status.success(), "ip {command:?}");
    };
    ip(&node.namespace, "link add dcpout0 type veth peer name dcpout1");
    // The `ip` program takes a namespace by process or by name: a link moves by the id of a process in it.
    let sleeper = outside.run(|| std::process::Command::new("sleep").arg("60").spawn().unwrap());
    assert!(peer.exists());
    ip(&node.namespace, &format!("link set dcpout1 netns {}", sleeper.id()));
    let mut sleeper = sleeper;
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    ip(&node.namespace, "addr add 192.0.2.1/24 dev dcpout0");
    ip(&node.namespace, "link set dcpout0 up");
    ip(&outside, "addr add 192.0.2.2/24 dev dcpout1");
    ip(&outside, "link set dcpout1 up");
    outside
}

#[tokio::test]
async fn affinity_keeps_a_client_until_its_endpoint_is_gone() {
    let mut node = node().await;
    node.service("web", json!({"ports": ports(30080), "sessionAffinity": "ClientIP"}));
    node.endpoints("web", &[(A, "here"), (B, "here")]);
    node.apply();
    for round in 0..4 {
        let first = node.answers(&node.namespace, CLUSTER_IP, 80);
        assert_eq!(first.len(), 1, "round {round}: {first:?}");
        let chosen = first.first().unwrap();
        let (gone, stays) = if chosen.starts_with('a') { (A, B) } else { (B, A) };
        assert!(
            node.answers(&node.namespace, GATEWAY, 30080).contains(chosen),
            "the port of the node agrees"
        );
        node.endpoints("web", &[(stays, "here")]);
        node.apply();
        let second = node.answers(&node.namespace, CLUSTER_IP, 80);
        assert!(second.is_disjoint(&first), "{second:?} although {gone} is gone");
        node.endpoints("web", &[(A, "here"), (B, "here")]);
        node.apply();
        assert_eq!(node.answers(&node.namespace, CLUSTER_IP, 80), second, "remembered anew");
    }
}

#[tokio::test]
async fn a_udp_flow_leaves_an_endpoint_that_is_gone() {
    let mut node = node().await;
    node.service("dns", json!({"ports": ports(0)}));
    node.endpoints("dns", &[(A, "here")]);
    node.apply();
    let flow = node.namespace.udp_client(CLUSTER_IP, 53);
    assert_eq!(udp_exchange(&flow).unwrap(), "a 10.244.0.1");
    node.endpoints("dns", &[(B, "here")]);
    node.apply();
    assert_eq!(udp_exchange(&flow).unwrap(), "b 10.244.0.1");
}

#[tokio::test]
async fn a_change_touches_one_service_and_a_lost_table_is_made_anew() {
    let mut node = node().await;
    for n in 0..200_u8 {
        let (name, address) = (format!("web{n}"), format!("10.96.1.{n}"));
        node.service(
            &name,
            json!({"ports": ports(31000 + u16::from(n)), "clusterIP": address, "clusterIPs": [address]}),
        );
        node.endpoints(&name, &[(A, "here"), (B, "here")]);
    }
    assert!(node.apply() > 800);
    node.endpoints("web7", &[(B, "here")]);
    let touched = node.apply();
    // Two ports of two chains each, emptied and filled with two rules; endpoints and hairpins.
    assert!(touched <= 16, "{touched} messages for one Service");
    assert_eq!(node.answers(&node.namespace, [10, 96, 1, 7], 80), set(["b 10.244.0.1"]));
    assert_eq!(node.apply(), 0, "nothing changed");
    ServiceProxy::remove(&node.options).unwrap();
    assert!(node.a.tcp_ask([10, 96, 1, 7], 80).is_err());
    node.endpoints("web7", &[(A, "here")]);
    assert!(node.apply() > 800, "everything is made anew");
    assert_eq!(node.answers(&node.b, [10, 96, 1, 7], 80), set(["a 10.244.0.3"]));
    assert_eq!(node.answers(&node.b, [10, 96, 1, 8], 80).len(), 2);
}

#[tokio::test]
async fn the_next_process_replaces_the_rules_of_the_last() {
    let mut node = node().await;
    node.service("web", json!({"ports": ports(0)}));
    node.endpoints("web", &[(A, "here")]);
    node.apply();
    let mut next = ServiceProxy::new(node.options.clone());
    assert_eq!(node.b.tcp_ask(CLUSTER_IP, 80).unwrap(), "a 10.244.0.3", "the rules stay until then");
    next.apply().unwrap();
    assert_eq!(node.b.tcp_ask(CLUSTER_IP, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let here: Ipv4Addr = A.parse().unwrap();
    assert!(node.b.tcp_ask(here, 8080).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_follow_the_cluster() {
    let node = node().await;
    let api = Api::new();
    let (supervisor, clock) = (Supervisor::new(), Arc::new(SystemClock::new()));
    let informers = Informers::new(api.client(), supervisor.clone(), clock.clone());
    let run =
        ServiceProxy::run(node.options.clone(), Traffic::default(), informers, supervisor.clone(), clock);
    supervisor.spawn("proxy", run);
    let spec = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": ports(0)});
    api.put("services", "default", "web", &json!({"spec": spec}));
    let endpoints = |address: &str| {
        json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": [address]}], "ports": [{"name": "tcp", "port": 8080, "protocol": "TCP"}]})
    };
    for (address, answer) in [(A, "a 10.244.0.1"), (B, "b 10.244.0.1")] {
        api.put("endpointslices", "default", "web-1", &endpoints(address));
        until(|| node.namespace.tcp_ask(CLUSTER_IP, 80).is_ok_and(|found| found == answer)).await;
    }
    api.delete("services", "default", "web");
    until(|| node.namespace.tcp_ask(CLUSTER_IP, 80).is_err()).await;
    assert!(supervisor.shutdown(PATIENCE).await.is_empty());
}

/// Waits until something is so, for a bounded time.
async fn until(mut so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if so() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it is not so yet");
}
