//! Policies against a reference that reads them as the documentation does, rule by rule.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use decapod_client::ObjectKey;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::engine::{Engine, PodIdentity};
use super::ruleset::{Chain, Delta, Direction, Member, PeerMatch, PortMatch, Ruleset};
use crate::protocol::Protocol;

/// What the kernel holds, with its refusals, and what it does with a packet.
#[derive(Debug, Default, PartialEq)]
struct Model {
    chains: BTreeMap<String, Chain>,
    pods: BTreeMap<(Direction, Ipv4Addr), String>,
    members: BTreeSet<(String, Member)>,
    isolated: BTreeSet<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: Protocol,
    port: u16,
}

impl Model {
    fn apply(&mut self, delta: &Delta) {
        for (set, member) in &delta.members_gone {
            assert!(self.members.remove(&(set.to_string(), *member)), "no {member:?} in {set}");
        }
        for (set, member) in &delta.members_new {
            assert!(self.members.insert((set.to_string(), *member)), "{member:?} is in {set}");
        }
        for (name, chain) in &delta.chains_new {
            assert_eq!(self.chains.insert(name.clone(), chain.clone()), None, "chain {name} exists");
        }
        for (pod, (from, to)) in &delta.pods {
            assert_eq!(self.pods.remove(pod), *from, "{pod:?}");
            self.pods.extend(to.clone().map(|chain| (*pod, chain)));
        }
        for address in &delta.isolated_gone {
            assert!(self.isolated.remove(address), "{address} was not isolated");
        }
        for address in &delta.isolated_new {
            assert!(self.isolated.insert(*address), "{address} was isolated");
        }
        for name in &delta.chains_gone {
            assert!(self.chains.remove(name).is_some(), "no chain {name}");
        }
        assert!(self.pods.values().all(|chain| self.chains.contains_key(chain)));
    }

    fn passes(&self, packet: Packet) -> bool {
        if packet.from == packet.to && self.isolated.contains(&packet.from) {
            return true;
        }
        let ways =
            [(Direction::Egress, packet.from, packet.to), (Direction::Ingress, packet.to, packet.from)];
        ways.into_iter().all(|(direction, pod, other)| {
            let Some(chain) = self.pods.get(&(direction, pod)) else { return true };
            self.chains[chain].rules.iter().any(|rule| {
                let port = match rule.port {
                    PortMatch::Any => true,
                    PortMatch::Protocol(protocol) => packet.protocol == protocol,
                    PortMatch::Range(protocol, first, last) => {
                        packet.protocol == protocol && (first..=last).contains(&packet.port)
                    }
                };
                port && match &rule.peer {
                    PeerMatch::Any => true,
                    PeerMatch::Block(net, except) => {
                        net.contains(&other) && !except.iter().any(|hole| hole.contains(&other))
                    }
                    PeerMatch::Members(set) => {
                        self.members.contains(&(set.to_string(), Member::Address(other)))
                    }
                    PeerMatch::MemberPorts(set) => {
                        let member = Member::Port(other, packet.protocol, packet.port);
                        self.members.contains(&(set.to_string(), member))
                    }
                }
            })
        })
    }
}

/// The reference: objects as JSON, looked at one after the other.
#[derive(Clone, Debug, Default)]
struct Cluster {
    policies: BTreeMap<(String, String), Value>,
    namespaces: BTreeMap<String, Value>,
    pods: BTreeMap<(String, String), Value>,
}

fn label_match(selector: &Value, labels: &Value) -> bool {
    let wanted = selector["matchLabels"].as_object();
    let equal = wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value));
    let expressions = selector["matchExpressions"].as_array();
    equal
        && expressions.is_none_or(|all| {
            all.iter().all(|one| {
                let value = &labels[one["key"].as_str().unwrap()];
                match one["operator"].as_str().unwrap() {
                    "Exists" => !value.is_null(),
                    "NotIn" => !one["values"].as_array().unwrap().contains(value),
                    other => panic!("{other}"),
                }
            })
        })
}

fn inside(address: Ipv4Addr, range: &Value) -> bool {
    range.as_str().unwrap().parse::<ipnet::Ipv4Net>().unwrap().contains(&address)
}

/// A list of each of its items alone; what is missing stays so, and means everything.
fn each(list: &Value) -> Vec<Value> {
    match list.as_array() {
        Some(items) if !items.is_empty() => items.iter().map(|item| json!([item])).collect(),
        _ => vec![Value::Null],
    }
}

impl Cluster {
    fn pod_at(&self, address: Ipv4Addr) -> impl Iterator<Item = &Value> {
        let text = address.to_string();
        self.pods.values().filter(move |pod| {
            pod["status"]["podIP"] == text
                && pod["status"]["phase"] == "Running"
                && pod["spec"]["hostNetwork"] != true
        })
    }

    fn passes(&self, packet: Packet) -> bool {
        packet.from == packet.to
            || self.allows(Direction::Egress, packet.from, packet.to, packet)
                && self.allows(Direction::Ingress, packet.to, packet.from, packet)
    }

    fn allows(&self, direction: Direction, subject: Ipv4Addr, other: Ipv4Addr, packet: Packet) -> bool {
        let (kind, rules, peers) = match direction {
            Direction::Ingress => ("Ingress", "ingress", "from"),
            Direction::Egress => ("Egress", "egress", "to"),
        };
        let Some(pod) = self.pod_at(subject).find(|pod| pod["spec"]["nodeName"] == "here") else {
            return true;
        };
        let namespace = pod["metadata"]["namespace"].as_str().unwrap();
        let about: Vec<_> = self
            .policies
            .iter()
            .filter(|((of, _), policy)| {
                of == namespace
                    && policy["policyTypes"].as_array().unwrap().contains(&json!(kind))
                    && label_match(&policy["podSelector"], &pod["metadata"]["labels"])
            })
            .collect();
        about.is_empty()
            || about.iter().any(|(_, policy)| {
                let rules = policy[rules].as_array();
                rules.into_iter().flatten().any(|rule| {
                    let (ports, peers) = (each(&rule["ports"]), each(&rule[peers]));
                    ports.iter().flat_map(|port| peers.iter().map(move |peer| (port, peer))).any(
                        |(port, peer)| {
                            // An address has no names for its ports.
                            let nameless = direction == Direction::Egress
                                && port[0]["port"].is_string()
                                && !peer[0]["ipBlock"].is_null();
                            !nameless
                                && self.port_of(port, direction, subject, other, packet)
                                && self.peer_of(peer, namespace, other)
                        },
                    )
                })
            })
    }

    fn peer_of(&self, peers: &Value, namespace: &str, other: Ipv4Addr) -> bool {
        let Some(peers) = peers.as_array().filter(|peers| !peers.is_empty()) else { return true };
        peers.iter().any(|peer| {
            if let Some(block) = peer.get("ipBlock") {
                let holes = block["except"].as_array();
                return inside(other, &block["cidr"])
                    && !holes.into_iter().flatten().any(|hole| inside(other, hole));
            }
            self.pod_at(other).any(|pod| {
                let of = pod["metadata"]["namespace"].as_str().unwrap();
                let there = match peer.get("namespaceSelector") {
                    None => of == namespace,
                    Some(selector) => {
                        self.namespaces.get(of).is_some_and(|labels| label_match(selector, labels))
                    }
                };
                there && label_match(&peer["podSelector"], &pod["metadata"]["labels"])
            })
        })
    }

    fn port_of(
        &self,
        ports: &Value,
        direction: Direction,
        subject: Ipv4Addr,
        other: Ipv4Addr,
        packet: Packet,
    ) -> bool {
        let Some(ports) = ports.as_array().filter(|ports| !ports.is_empty()) else { return true };
        let server = if direction == Direction::Ingress { subject } else { other };
        ports.iter().any(|port| {
            let protocol = Protocol::parse(port["protocol"].as_str()).unwrap();
            protocol == packet.protocol
                && match &port["port"] {
                    Value::Null => true,
                    Value::String(name) => self.pod_at(server).any(|pod| {
                        let ports = pod["spec"]["containers"][0]["ports"].as_array().unwrap();
                        ports.iter().any(|one| {
                            one["name"] == **name
                                && one["containerPort"] == packet.port
                                && Protocol::parse(one["protocol"].as_str()) == Some(protocol)
                        })
                    }),
                    first => {
                        let first = first.as_u64().unwrap();
                        let last = port["endPort"].as_u64().unwrap_or(first);
                        (first..=last).contains(&u64::from(packet.port))
                    }
                }
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Policy(String, String, Option<Value>),
    Namespace(String, Option<Value>),
    Pod(String, String, Option<Value>),
    Apply,
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![Just("x".to_owned()), Just("y".to_owned())]
}

fn any_labels() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"a": "1"})),
        Just(json!({"a": "2"})),
        Just(json!({"a": "1", "b": "1"}))
    ]
}

fn any_selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"matchLabels": {"a": "1"}})),
        Just(json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]})),
        Just(json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]})),
    ]
}

fn any_protocol() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("TCP"), Just("UDP")]
}

fn any_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        any_selector().prop_map(|pods| json!({"podSelector": pods})),
        any_selector().prop_map(|labels| json!({"namespaceSelector": labels})),
        (any_selector(), any_selector())
            .prop_map(|(labels, pods)| json!({"namespaceSelector": labels, "podSelector": pods})),
        Just(json!({"ipBlock": {"cidr": "10.0.0.0/29"}})),
        Just(json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.2/31", "192.0.2.0/24"]}})),
    ]
}

fn any_port() -> impl Strategy<Value = Value> {
    prop_oneof![
        any_protocol().prop_map(|protocol| json!({"protocol": protocol})),
        (any_protocol(), 80_u16..83).prop_map(|(protocol, port)| json!({"protocol": protocol, "port": port})),
        (80_u16..82).prop_map(|port| json!({"protocol": "TCP", "port": port, "endPort": port + 1})),
        any_protocol().prop_map(|protocol| json!({"protocol": protocol, "port": "web"})),
    ]
}

fn any_rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (prop::collection::vec(any_peer(), 0..3), prop::collection::vec(any_port(), 0..3));
    prop::collection::vec(rule.prop_map(move |(p, ports)| json!({peers: p, "ports": ports})), 0..3)
        .prop_map(Value::Array)
}

fn any_policy() -> impl Strategy<Value = Value> {
    let types =
        prop_oneof![Just(json!(["Ingress"])), Just(json!(["Egress"])), Just(json!(["Ingress", "Egress"]))];
    (any_selector(), types, any_rules("from"), any_rules("to")).prop_map(|(pods, types, ingress, egress)| {
        json!({"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress})
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let phase = prop_oneof![4 => Just("Running"), 1 => Just("Succeeded")];
    let host = prop::bool::weighted(0.1);
    (any_labels(), 80_u16..82, any_protocol(), any::<bool>(), phase, host).prop_map(
        |(labels, port, protocol, here, phase, host)| {
            json!({"metadata": {"labels": labels, "uid": "u"}, "spec": {"hostNetwork": host,
                "nodeName": if here { "here" } else { "there" }, "containers": [{"name": "c",
                    "ports": [{"name": "web", "containerPort": port, "protocol": protocol}]}]},
                "status": {"phase": phase}})
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let pod = prop::option::weighted(0.8, any_pod());
    prop_oneof![
        3 => (any_name(), any_name(), prop::option::weighted(0.8, any_policy()))
            .prop_map(|(namespace, name, policy)| Step::Policy(namespace, name, policy)),
        1 => (any_name(), prop::option::weighted(0.8, any_labels()))
            .prop_map(|(name, labels)| Step::Namespace(name, labels)),
        4 => (any_name(), prop_oneof![Just("p"), Just("q"), Just("r")], pod)
            .prop_map(|(namespace, name, pod)| Step::Pod(namespace, name.to_owned(), pod)),
        3 => Just(Step::Apply),
    ]
}

/// A pod's address follows from its name, so that no two have the same.
fn address(namespace: &str, name: &str) -> Ipv4Addr {
    let number = |text: &str| text.bytes().next().unwrap();
    Ipv4Addr::new(10, 0, 0, (number(namespace) - b'x') * 3 + number(name) - b'p' + 1)
}

fn take(engine: &mut Engine, cluster: &mut Cluster, step: &Step) {
    match step.clone() {
        Step::Policy(namespace, name, policy) => {
            let key = ObjectKey::new(namespace.clone(), &name);
            let object = policy.as_ref().map(|spec| {
                serde_json::from_value::<NetworkPolicy>(json!({"metadata": {"name": name}, "spec": spec}))
                    .unwrap()
            });
            engine.policy_set(&key, object.as_ref());
            put(&mut cluster.policies, (namespace, name), policy);
        }
        Step::Namespace(name, labels) => {
            let object = labels.as_ref().map(|labels| {
                serde_json::from_value::<Namespace>(json!({"metadata": {"name": name, "labels": labels}}))
                    .unwrap()
            });
            engine.namespace_set(&name, object.as_ref());
            put(&mut cluster.namespaces, name, labels);
        }
        Step::Pod(namespace, name, pod) => {
            let pod = pod.map(|mut pod| {
                pod["metadata"]["namespace"] = json!(namespace);
                pod["status"]["podIP"] = json!(address(&namespace, &name).to_string());
                pod
            });
            let object = pod.clone().map(|pod| serde_json::from_value::<Pod>(pod).unwrap());
            engine.pod_set(ObjectKey::new(namespace.clone(), &name), object.as_ref());
            put(&mut cluster.pods, (namespace, name), pod);
        }
        Step::Apply => {}
    }
}

fn put<K: Ord>(map: &mut BTreeMap<K, Value>, key: K, value: Option<Value>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn packets() -> impl Iterator<Item = Packet> {
    let ends: Vec<_> = (1..7).map(|n| Ipv4Addr::new(10, 0, 0, n)).chain([[192, 0, 2, 9].into()]).collect();
    let pairs: Vec<_> = ends.iter().flat_map(|from| ends.iter().map(|to| (*from, *to))).collect();
    pairs.into_iter().flat_map(|(from, to)| {
        [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(move |protocol| (80..84).map(move |port| Packet { from, to, protocol, port }))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn packets_pass_as_policies_say(steps in prop::collection::vec(any_step(), 1..30)) {
        let (mut engine, mut cluster) = (Engine::new("here"), Cluster::default());
        let (mut model, mut before) = (Model::default(), Ruleset::default());
        for step in steps.iter().chain([&Step::Apply]) {
            take(&mut engine, &mut cluster, step);
            if !matches!(step, Step::Apply) {
                continue;
            }
            let rules = engine.rules();
            model.apply(&rules.since(&before));
            before = rules;
            for packet in packets() {
                prop_assert_eq!(model.passes(packet), cluster.passes(packet), "{:?} in {:#?}", packet, &cluster);
            }
        }
        let mut fresh = Model::default();
        fresh.apply(&before.since(&Ruleset::default()));
        prop_assert_eq!(fresh, model);
    }
}

#[test]
fn a_pod_is_isolated_before_the_api_knows_its_address() {
    let mut engine = Engine::new("here");
    let policy = json!({"metadata": {"name": "deny"}, "spec": {"podSelector": {"matchLabels": {"a": "1"}}}});
    let policy: NetworkPolicy = serde_json::from_value(policy).unwrap();
    engine.policy_set(&ObjectKey::new("x", "deny"), Some(&policy));
    let pod = |labels: &[(&str, &str)]| PodIdentity {
        namespace: "x".into(),
        name: "p".into(),
        uid: "new".into(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    // The API still tells of an older pod of that name, whose labels are others.
    let old = json!({"metadata": {"uid": "old"}, "spec": {"nodeName": "here", "containers": []}});
    engine.pod_set(ObjectKey::new("x", "p"), Some(&serde_json::from_value(old).unwrap()));
    let (first, second) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    engine.attached_set(first, Some(pod(&[("a", "1")])));
    engine.attached_set(second, Some(pod(&[])));
    let rules = engine.rules();
    assert_eq!(rules.pods.keys().copied().collect::<Vec<_>>(), [(Direction::Ingress, first)]);
    engine.attached_set(first, None);
    assert!(engine.rules().is_empty());
}
