//! Network policies against the real kernel: pods on a node made for the test.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::api::Api;
use crate::support::{Namespace, PATIENCE, Server};
use decapod_client::ObjectKey;
use decapod_client::clock::SystemClock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_network::Netns;
use decapod_network::pod::{self, PodNetwork};
use decapod_network::policy::{self, Options, PodIdentity, Policies};
use decapod_network::proxy::{self, ServiceProxy};
use serde_json::{Value, json};

const A: [u8; 4] = [10, 244, 0, 2];
const B: [u8; 4] = [10, 244, 0, 3];
/// After so long without an answer a server counts as closed off: a busy machine may need a second to answer,
/// and what is done next takes for granted that the rules are in place.
const CLOSED: Duration = Duration::from_secs(5);
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];

/// A node with pods `a` and `b` that serve on port 8080, and whose policies are kept.
struct Node {
    namespace: Namespace,
    a: Namespace,
    b: Namespace,
    api: Api,
    network: PodNetwork,
    options: Options,
    policies: Policies,
    supervisor: Supervisor,
    _servers: Vec<Server>,
    _data: tempfile::TempDir,
}

async fn node() -> Node {
    let (namespace, data) = (Namespace::new("node"), tempfile::tempdir().unwrap());
    let netns = Netns::Path(namespace.path().to_owned());
    let mut pods = pod::Options::new("10.244.0.0/24".parse().unwrap(), data.path());
    pods.netns = netns.clone();
    let network = PodNetwork::new(pods).unwrap();
    let api = Api::new();
    api.put("namespaces", "", "default", &json!({"metadata": {"labels": {"team": "blue"}}}));
    let options = Options { netns, ..Options::new("here") };
    let (policies, supervisor) = keep(&options, &api);
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    let servers =
        vec![a.tcp_serve("a", 8080), b.tcp_serve("b", 8080), b.udp_serve("b", 8080), b.tcp_serve("b2", 8081)];
    let node =
        Node { namespace, a, b, api, network, options, policies, supervisor, _servers: servers, _data: data };
    node.start("a", &node.a).await;
    node.start("b", &node.b).await;
    node
}

/// Starts whoever keeps policies.
fn keep(options: &Options, api: &Api) -> (Policies, Supervisor) {
    let (supervisor, clock) = (Supervisor::new(), Arc::new(SystemClock::new()));
    let informers = Informers::new(api.client(), supervisor.clone(), clock.clone());
    let (policies, orders) = Policies::new(clock.clone());
    let run = policy::run(options.clone(), orders, informers, supervisor.clone(), clock);
    supervisor.spawn("policies", run);
    (policies, supervisor)
}

impl Node {
    /// Gives a pod its address, its policies, and then its status, as a node does.
    async fn start(&self, name: &str, namespace: &Namespace) -> Ipv4Addr {
        let given = self.network.attach(name, namespace.path(), &[]).await.unwrap();
        let [IpAddr::V4(address)] = given[..] else { panic!("one IPv4 address: {given:?}") };
        let pod = PodIdentity {
            namespace: "default".into(),
            name: name.into(),
            uid: name.into(),
            labels: BTreeMap::from([("app".into(), name.into())]),
        };
        self.policies.attach(address, pod).await.unwrap();
        self.api.put(
            "pods",
            "default",
            name,
            &json!({"metadata": {"uid": name, "labels": {"app": name}},
            "spec": {"nodeName": "here", "containers": [{"name": "c", "ports": [
                {"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": address.to_string()}}),
        );
        address
    }

    fn policy(&self, name: &str, spec: &Value) {
        self.api.put("networkpolicies", "default", name, &json!({"spec": spec}));
    }

    /// Waits until a client reaches a server, or does not.
    #[track_caller]
    fn until(&self, client: &Namespace, to: [u8; 4], port: u16, open: bool) {
        for _ in 0..300 {
            if client.tcp_is_silent_for(to, port, CLOSED) != open {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{to:?}:{port} is not {} yet", if open { "open" } else { "closed" });
    }

    async fn end(self) {
        assert!(self.supervisor.shutdown(PATIENCE).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingress_is_closed_but_for_what_is_allowed() {
    let node = node().await;
    assert_eq!(node.a.tcp_ask(B, 8080).unwrap(), "b 10.244.0.2", "without policies all is open");
    node.policy("deny", &json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"]}));
    node.until(&node.a, B, 8080, false);
    assert_eq!(node.namespace.tcp_ask(B, 8080).unwrap(), "b 10.244.0.1", "the node reaches its pods");
    assert_eq!(node.b.tcp_ask(A, 8080).unwrap(), "a 10.244.0.3", "answers come in");
    assert_eq!(node.b.tcp_ask(B, 8080).unwrap(), "b 10.244.0.3");
    node.policy(
        "allow",
        &json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"], "ingress": [
            {"from": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": {"matchLabels": {"app": "a"}}}],
             "ports": [{"protocol": "TCP", "port": "web"}]}]}),
    );
    node.until(&node.a, B, 8080, true);
    assert!(node.a.tcp_is_silent(B, 8081), "another port");
    let flow = node.a.udp_client(B, 8080);
    flow.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let lost = crate::support::udp_exchange(&flow).unwrap_err();
    assert!(matches!(lost.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "another protocol: {lost}");
    node.api.put("namespaces", "", "default", &json!({"metadata": {"labels": {"team": "red"}}}));
    node.until(&node.a, B, 8080, false);
    node.policy(
        "allow",
        &json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
            {"from": [{"ipBlock": {"cidr": "10.244.0.0/24", "except": ["10.244.0.3/32"]}}],
             "ports": [{"port": 8080, "endPort": 8090}]}]}),
    );
    node.until(&node.a, B, 8081, true);
    node.until(&node.b, A, 8080, false);
    node.api.delete("networkpolicies", "default", "deny");
    node.api.delete("networkpolicies", "default", "allow");
    node.until(&node.b, A, 8080, true);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn egress_is_judged_by_the_pod_behind_a_service() {
    let node = node().await;
    let netns = Netns::Path(node.namespace.path().to_owned());
    let mut proxy = ServiceProxy::new(proxy::Options { netns, ..proxy::Options::new("here") });
    let service = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {
        "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]}});
    let slice = json!({"metadata": {"namespace": "default", "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.0.3"]}], "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]});
    proxy.service_set(
        ObjectKey::new("default", "web"),
        Some(Arc::new(serde_json::from_value(service).unwrap())),
    );
    proxy.slice_set(None, Some(Arc::new(serde_json::from_value(slice).unwrap())));
    proxy.apply().unwrap();
    assert_eq!(node.a.tcp_ask(CLUSTER_IP, 80).unwrap(), "b 10.244.0.2");
    node.policy("deny", &json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"]}));
    node.until(&node.a, CLUSTER_IP, 80, false);
    assert_eq!(node.b.tcp_ask(A, 8080).unwrap(), "a 10.244.0.3", "what comes in is not concerned");
    node.policy(
        "allow",
        &json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": "web"}]}]}),
    );
    node.until(&node.a, CLUSTER_IP, 80, true);
    assert!(node.a.tcp_is_silent(B, 8081));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_never_open_before_its_rules_and_they_outlive_the_process() {
    let node = node().await;
    node.policy("deny", &json!({"podSelector": {"matchLabels": {"app": "c"}}, "policyTypes": ["Ingress"]}));
    node.policy("b", &json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"]}));
    node.until(&node.a, B, 8080, false);
    let c = Namespace::new("c");
    let _server = c.tcp_serve("c", 8080);
    let address = node.start("c", &c).await;
    assert!(node.a.tcp_is_silent(address, 8080), "closed from its first moment on");
    node.supervisor.shutdown(PATIENCE).await;
    assert!(node.a.tcp_is_silent(address, 8080), "closed without the process");
    let (_policies, next) = keep(&node.options, &node.api);
    node.api.delete("networkpolicies", "default", "b");
    node.until(&node.a, B, 8080, true);
    assert!(node.a.tcp_is_silent(address, 8080), "closed by the next process");
    assert!(next.shutdown(PATIENCE).await.is_empty());
    policy::remove(&node.options).unwrap();
    node.until(&node.a, address.octets(), 8080, true);
    policy::remove(&node.options).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_rules_a_pod_does_not_start() {
    let (supervisor, clock) = (Supervisor::new(), Arc::new(SystemClock::new()));
    let (policies, orders) = Policies::new(clock);
    drop(orders);
    let pod =
        PodIdentity { namespace: "x".into(), name: "p".into(), uid: "u".into(), labels: BTreeMap::new() };
    assert!(policies.attach(A.into(), pod).await.is_err());
    supervisor.shutdown(PATIENCE).await;
}
