//! The plan by example, and the invariant of the rule set as a property: against a model of the kernel
//! that refuses what the kernel refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use decapod_client::ObjectKey;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{self, Node};
use super::ruleset::{Delta, Endpoint, Frontend, Rule, Ruleset, ServiceRules, Slot, Target};
use crate::netlink::conntrack::{Flow, Tuple};
use crate::protocol::Protocol;
use crate::proxy::flow::is_stale;
use crate::world::World;

fn node() -> Node {
    Node { name: "here".into(), zone: Some("north".into()), cluster_cidr: "10.244.0.0/16".parse().unwrap() }
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "web")
}

fn service(spec: Value) -> Arc<Service> {
    let mut spec = spec;
    let defaults = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]});
    for (name, value) in defaults.as_object().unwrap() {
        spec.as_object_mut().unwrap().entry(name.clone()).or_insert_with(|| value.clone());
    }
    Arc::new(
        serde_json::from_value(json!({"metadata": {"namespace": "default", "name": "web"}, "spec": spec}))
            .unwrap(),
    )
}

fn slice(name: &str, protocol: &str, endpoints: &Value) -> Arc<EndpointSlice> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name,
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "", "port": 8080, "protocol": protocol}],
        }))
        .unwrap(),
    )
}

fn endpoint(address: &str, node: &str, ready: bool, serving: bool) -> Value {
    json!({"addresses": [address], "nodeName": node,
        "conditions": {"ready": ready, "serving": serving, "terminating": serving && !ready}})
}

fn rules(spec: Value, endpoints: &Value) -> ServiceRules {
    let mut world = World::default();
    world.service_set(key(), Some(service(spec)));
    drop(world.slice_set(None, Some(slice("web-1", "TCP", endpoints))));
    plan::service(&world, &key(), &node())
}

fn target(address: [u8; 4]) -> Target {
    Target { address: address.into(), port: 8080 }
}

fn targets(rules: &ServiceRules, chain: &str) -> Vec<Ipv4Addr> {
    let slots = rules.endpoints.iter().filter(|((of, _), _)| of == chain);
    let target = |endpoint: &Endpoint| match endpoint {
        Endpoint::Target(target) => target.address,
        Endpoint::Chain(chain) => panic!("{chain} in place of an address"),
    };
    slots.map(|(_, endpoint)| target(endpoint)).collect()
}

const SVC: &str = "svc/default/web/tcp/80";
const EXT: &str = "ext/default/web/tcp/80";

#[test]
fn ready_endpoints_are_preferred_to_terminating_ones() {
    let both =
        json!([endpoint("10.244.0.2", "here", true, true), endpoint("10.244.0.3", "here", false, true)]);
    assert_eq!(targets(&rules(json!({}), &both), SVC), [Ipv4Addr::new(10, 244, 0, 2)]);
    let terminating =
        json!([endpoint("10.244.0.3", "here", false, true), endpoint("10.244.0.4", "here", false, false)]);
    assert_eq!(targets(&rules(json!({}), &terminating), SVC), [Ipv4Addr::new(10, 244, 0, 3)]);
}

#[test]
fn traffic_stays_close_where_every_endpoint_says_for_whom_it_is() {
    let hinted = |address: &str, nodes: &[&str], zones: &[&str], ready: bool| {
        let names = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let mut one = endpoint(address, "there", ready, ready);
        one["hints"] = json!({"forNodes": names(nodes), "forZones": names(zones)});
        one
    };
    let chosen = |endpoints: Value| targets(&rules(json!({}), &endpoints), SVC);
    let (a, b) = (Ipv4Addr::new(10, 244, 0, 2), Ipv4Addr::new(10, 244, 0, 3));
    let near = || hinted("10.244.0.2", &["here"], &["north"], true);
    assert_eq!(
        chosen(json!([near(), hinted("10.244.0.3", &["there"], &["north"], true)])),
        [a],
        "of this node"
    );
    assert_eq!(chosen(json!([near(), hinted("10.244.0.3", &[], &["north"], true)])), [a, b], "of this zone");
    assert_eq!(chosen(json!([near(), hinted("10.244.0.3", &[], &["south"], true)])), [a]);
    assert_eq!(
        chosen(json!([near(), endpoint("10.244.0.3", "here", true, true)])),
        [a, b],
        "one does not say"
    );
    assert_eq!(chosen(json!([near(), hinted("10.244.0.3", &[], &[], false)])), [a], "it is not ready");
    assert_eq!(chosen(json!([hinted("10.244.0.3", &[], &["south"], true)])), [b], "none is near");
}

#[test]
fn nobody_to_serve_is_a_refusal_everywhere() {
    let none = json!([endpoint("10.244.0.2", "here", false, false)]);
    for spec in [json!({}), json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"})] {
        let rules = rules(spec, &none);
        assert_eq!((&rules.chains[SVC], &rules.chains[EXT]), (&vec![Rule::Reject], &vec![Rule::Reject]));
    }
}

#[test]
fn a_local_policy_uses_endpoints_of_this_node_and_drops_without_any() {
    let both =
        json!([endpoint("10.244.0.2", "here", true, true), endpoint("10.244.1.2", "there", true, true)]);
    let outside = rules(json!({"externalTrafficPolicy": "Local"}), &both);
    assert_eq!(targets(&outside, SVC).len(), 2);
    assert_eq!(targets(&outside, EXT), [Ipv4Addr::new(10, 244, 0, 2)]);
    assert_eq!(outside.chains[EXT][1], Rule::GotoFromLocal(SVC.into()));
    let elsewhere = json!([endpoint("10.244.1.2", "there", true, true)]);
    let inside = rules(json!({"internalTrafficPolicy": "Local"}), &elsewhere);
    assert_eq!(inside.chains[SVC], [Rule::Drop]);
    assert_eq!(targets(&inside, EXT), [Ipv4Addr::new(10, 244, 1, 2)]);
}

#[test]
fn a_service_without_address_or_for_another_proxy_has_no_rules() {
    let ready = json!([endpoint("10.244.0.2", "here", true, true)]);
    assert_eq!(rules(json!({"clusterIP": "None", "clusterIPs": ["None"]}), &ready), ServiceRules::default());
    let external = json!({"type": "ExternalName", "externalName": "example.com"});
    assert_eq!(rules(external, &ready), ServiceRules::default());
}

#[test]
fn a_load_balancer_admits_only_the_sources_that_it_names() {
    let mut world = World::default();
    let mut lb = (*service(json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}))).clone();
    lb.status =
        serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}})).unwrap();
    world.service_set(key(), Some(Arc::new(lb)));
    let rules = plan::service(&world, &key(), &node());
    let chain = &rules.frontends[&Frontend::Ip([203, 0, 113, 7].into(), Protocol::Tcp, 80)];
    let admitted = Rule::GotoFrom("192.0.2.0/24".parse().unwrap(), EXT.into());
    assert_eq!(rules.chains[chain], [admitted, Rule::Drop]);
}

#[test]
fn a_udp_flow_is_stale_when_its_target_is_gone() {
    let mut world = World::default();
    let spec = json!({"ports": [{"port": 53, "protocol": "UDP"}]});
    world.service_set(key(), Some(service(spec)));
    let ready = json!([endpoint("10.244.0.2", "here", true, true)]);
    drop(world.slice_set(None, Some(slice("web-1", "UDP", &ready))));
    let mut ruleset = Ruleset::default();
    let mut delta = Delta::default();
    ruleset.service_set(&key(), plan::service(&world, &key(), &node()), &mut delta);
    let flow = |to: Target, protocol: u8| {
        let client = Ipv4Addr::new(10, 244, 0, 9);
        let tuple = |source, source_port, destination, destination_port| Tuple {
            source,
            destination,
            protocol,
            source_port,
            destination_port,
        };
        Flow {
            original: tuple(client, 999, [10, 96, 0, 5].into(), 53),
            reply: tuple(to.address, to.port, client, 999),
        }
    };
    let stale = |ruleset: &Ruleset, address, protocol| {
        is_stale(&flow(target(address), protocol), &delta.flows, ruleset)
    };
    assert!(!stale(&ruleset, [10, 244, 0, 2], 17));
    assert!(stale(&ruleset, [10, 244, 0, 3], 17));
    assert!(!stale(&ruleset, [10, 244, 0, 3], 6));
    ruleset.service_set(&key(), ServiceRules::default(), &mut Delta::default());
    assert!(stale(&ruleset, [10, 244, 0, 2], 17));
}

/// What the kernel holds, with its refusals.
#[derive(Debug, Default, PartialEq)]
struct Model {
    chains: BTreeMap<String, Vec<Rule>>,
    endpoints: BTreeMap<Slot, Endpoint>,
    affinities: BTreeMap<String, u32>,
    frontends: BTreeMap<Frontend, String>,
    hairpins: BTreeSet<Ipv4Addr>,
}

impl Model {
    fn apply(&mut self, delta: &Delta) {
        for (name, seconds) in &delta.affinities_new {
            assert_eq!(self.affinities.insert(name.clone(), *seconds), None, "set {name} exists");
        }
        for (name, rules) in &delta.chains_new {
            assert_eq!(self.chains.insert(name.clone(), rules.clone()), None, "chain {name} exists");
        }
        for (name, rules) in &delta.chains_changed {
            assert!(self.chains.insert(name.clone(), rules.clone()).is_some(), "no chain {name}");
        }
        for (slot, (from, to)) in &delta.endpoints {
            assert_eq!(self.endpoints.remove(slot), *from, "{slot:?}");
            self.endpoints.extend(to.clone().map(|endpoint| (slot.clone(), endpoint)));
        }
        for (frontend, (from, to)) in &delta.frontends {
            assert_eq!(self.frontends.remove(frontend), *from, "{frontend:?}");
            self.frontends.extend(to.clone().map(|chain| (*frontend, chain)));
        }
        for address in &delta.hairpins_gone {
            assert!(self.hairpins.remove(address), "no hairpin {address}");
        }
        for address in &delta.hairpins_new {
            assert!(self.hairpins.insert(*address), "hairpin {address} exists");
        }
        for name in &delta.chains_gone {
            assert!(self.chains.remove(name).is_some(), "no chain {name}");
        }
        for name in &delta.affinities_gone {
            assert!(self.affinities.remove(name).is_some(), "no set {name}");
        }
        self.check();
    }

    /// Nothing refers to what is not there.
    fn check(&self) {
        for chain in self.frontends.values() {
            assert!(self.chains.contains_key(chain), "no chain {chain}");
        }
        let mut slots = 0;
        for (name, rule) in
            self.chains.iter().flat_map(|(name, rules)| rules.iter().map(move |rule| (name, rule)))
        {
            match rule {
                Rule::GotoFrom(_, chain) | Rule::GotoFromLocal(chain) => {
                    assert!(self.chains.contains_key(chain), "no chain {chain}");
                }
                Rule::GotoRemembered { set, chain } => {
                    assert!(self.affinities.contains_key(set), "no set {set}");
                    assert!(self.chains.contains_key(chain), "no chain {chain}");
                }
                Rule::Remember(set) => assert!(self.affinities.contains_key(set), "no set {set}"),
                Rule::Balance(count) | Rule::BalanceChains(count) => {
                    slots += *count as usize;
                    for number in 0..*count {
                        match &self.endpoints[&(name.clone(), number)] {
                            Endpoint::Target(_) => assert_eq!(*rule, Rule::Balance(*count)),
                            Endpoint::Chain(chain) => {
                                assert!(self.chains.contains_key(chain), "no chain {chain}")
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        assert_eq!(slots, self.endpoints.len(), "every endpoint belongs to a chain");
    }
}

/// A change of the cluster: a Service, or the endpoints of one.
#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<Value>),
    Slice(u8, Option<Value>),
    Apply,
}

fn any_policy() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("Cluster"), Just("Local")]
}

fn any_spec() -> impl Strategy<Value = Value> {
    let ports = prop::collection::btree_set(1_u16..4, 1..3);
    let flags = (any::<bool>(), any::<bool>(), any_policy(), any_policy(), 0_u8..3);
    (ports, flags, prop::option::of(1_u32..3)).prop_map(
        |(ports, (udp, outside, internal, external, ip), timeout)| {
            let protocol = if udp { "UDP" } else { "TCP" };
            let node_port = |port: u16| if outside { 30_000 + port } else { 0 };
            let ports: Vec<_> = ports
            .iter()
            .map(|port| json!({"port": port, "name": "", "nodePort": node_port(*port), "protocol": protocol}))
            .collect();
            let externals: Vec<_> = (0..ip).map(|n| format!("203.0.113.{n}")).collect();
            json!({"ports": ports, "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "externalIPs": externals, "sessionAffinity": if timeout.is_some() { "ClientIP" } else { "None" },
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout.unwrap_or(1)}}})
        },
    )
}

fn any_endpoints() -> impl Strategy<Value = Value> {
    let one = (2_u8..6, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(n, here, ready, serving)| {
        endpoint(&format!("10.244.0.{n}"), if here { "here" } else { "there" }, ready, serving || ready)
    });
    prop::collection::vec(one, 0..4).prop_map(Value::Array)
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_u8..3, prop::option::weighted(0.8, any_spec())).prop_map(|(n, spec)| Step::Service(n, spec)),
        3 => (0_u8..3, prop::option::weighted(0.8, any_endpoints())).prop_map(|(n, e)| Step::Slice(n, e)),
        3 => Just(Step::Apply),
    ]
}

fn numbered(n: u8, spec: &Value) -> Arc<Service> {
    let mut service = (*service(spec.clone())).clone();
    service.metadata.name = Some(format!("web{n}"));
    let spec = service.spec.as_mut().unwrap();
    let address = format!("10.96.0.{n}");
    spec.cluster_ip = Some(address.clone());
    spec.cluster_ips = Some(vec![address]);
    Arc::new(service)
}

fn numbered_slice(n: u8, endpoints: &Value) -> Arc<EndpointSlice> {
    let mut slice = (*slice("s", if n == 0 { "UDP" } else { "TCP" }, endpoints)).clone();
    slice.metadata.labels.as_mut().unwrap().insert("kubernetes.io/service-name".into(), format!("web{n}"));
    slice.metadata.name = Some(format!("slice{n}"));
    Arc::new(slice)
}

proptest! {
    #[test]
    fn applying_differences_equals_building_from_nothing(steps in prop::collection::vec(any_step(), 1..40)) {
        let (mut world, mut ruleset, mut model) = (World::default(), Ruleset::default(), Model::default());
        let mut slices: BTreeMap<u8, Arc<EndpointSlice>> = BTreeMap::new();
        let mut dirty = BTreeSet::new();
        for step in steps.iter().chain([&Step::Apply]) {
            match step {
                Step::Service(n, spec) => {
                    let key = ObjectKey::new("default", format!("web{n}"));
                    world.service_set(key.clone(), spec.as_ref().map(|spec| numbered(*n, spec)));
                    dirty.insert(key);
                }
                Step::Slice(n, endpoints) => {
                    let new = endpoints.as_ref().map(|endpoints| numbered_slice(*n, endpoints));
                    let old = slices.remove(n);
                    dirty.extend(world.slice_set(old.as_deref(), new.clone()));
                    slices.extend(new.map(|new| (*n, new)));
                }
                Step::Apply => {
                    let mut delta = Delta::default();
                    for key in std::mem::take(&mut dirty) {
                        ruleset.service_set(&key, plan::service(&world, &key, &node()), &mut delta);
                    }
                    model.apply(&delta);
                    prop_assert_eq!(delta.is_empty(), Delta { flows: BTreeSet::new(), ..delta } == Delta::default());
                }
            }
        }
        let mut fresh = Ruleset::default();
        for (key, rules) in plan::all(&world, &node()) {
            fresh.service_set(&key, rules, &mut Delta::default());
        }
        let mut from_nothing = Model::default();
        from_nothing.apply(&fresh.whole());
        prop_assert_eq!(&model, &from_nothing);
        let mut taken_whole = Model::default();
        taken_whole.apply(&ruleset.whole());
        prop_assert_eq!(&model, &taken_whole);
    }
}
