//! From a Service and its EndpointSlices to the rules that it needs on this node: pure.
//!
//! A port of a Service has up to four chains. `svc/…` is for its ClusterIP; `ext/…` for what comes from
//! outside (NodePort, external and load balancer IPs); `all/…` reaches every endpoint where a traffic
//! policy narrows the other two; `lb/…` admits the sources that a load balancer's Service names. Where
//! clients are remembered, each endpoint has a chain `ep/…` too.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use decapod_client::ObjectKey;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::endpoint::Endpoints;
use super::ruleset::{Endpoint, Frontend, Rule, ServiceRules, Target};
use crate::protocol::Protocol;
use crate::world::World;

/// The label of a Service that another proxy serves.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// How long a client is remembered unless the Service says: three hours.
const AFFINITY_SECONDS: u32 = 10_800;

/// What the rules depend on besides Services and their endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The node's name, by which endpoints are local.
    pub(crate) name: String,
    /// Its zone, if it is in one.
    pub(crate) zone: Option<String>,
    /// The addresses of all pods.
    pub(crate) cluster_cidr: Ipv4Net,
}

/// The rules of the Service `key`: none if it does not exist or has no address.
pub(crate) fn service(world: &World, key: &ObjectKey, node: &Node) -> ServiceRules {
    let mut rules = ServiceRules::default();
    let Some(service) = world.service(key) else { return rules };
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service)) else { return rules };
    let slices: Vec<_> = world.slices(key).collect();
    for port in spec.ports.iter().flatten() {
        if let Some(plan) = Plan::of(key, service, spec, port, &slices, node) {
            plan.write(&mut rules);
        }
    }
    rules.health = health(spec, &slices, node);
    rules
}

/// The port at which a load balancer asks whether this node has endpoints of the Service, and how many it has.
fn health(spec: &ServiceSpec, slices: &[&EndpointSlice], node: &Node) -> Option<(u16, usize)> {
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let port = u16::try_from(spec.health_check_node_port.filter(|_| balanced && local)?).ok()?;
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| {
        let here = endpoint.node_name.as_deref() == Some(&*node.name);
        here && endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    let addresses: BTreeSet<_> = ready.flat_map(|endpoint| &endpoint.addresses).collect();
    Some((port, addresses.len())).filter(|(port, _)| *port != 0)
}

fn is_ours(service: &Service) -> bool {
    let labelled = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME));
    let spec = service.spec.as_ref();
    let external_name = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    let address = spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    !labelled && !external_name && !matches!(address, "" | "None")
}

/// Which endpoints a chain balances among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// All.
    Cluster,
    /// Those of this node.
    Local,
}

/// One port of a Service.
struct Plan<'a> {
    spec: &'a ServiceSpec,
    node: &'a Node,
    port: u16,
    node_port: Option<u16>,
    protocol: Protocol,
    /// What the names of its chains end in.
    suffix: String,
    /// Endpoints for traffic from anywhere, and those of them on this node.
    cluster: Vec<Target>,
    local: Vec<Target>,
    load_balancer: Vec<Ipv4Addr>,
}

impl<'a> Plan<'a> {
    fn of(
        key: &ObjectKey,
        service: &Service,
        spec: &'a ServiceSpec,
        port: &ServicePort,
        slices: &[&EndpointSlice],
        node: &'a Node,
    ) -> Option<Self> {
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        let number = u16::try_from(port.port).ok()?;
        let name = port.name.as_deref().unwrap_or_default();
        let endpoints = Endpoints::of(slices.iter().copied(), name, protocol, node);
        Some(Self {
            spec,
            node,
            port: number,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            protocol,
            suffix: format!("{}/{}/{protocol}/{number}", key.namespace, key.name),
            cluster: endpoints.cluster(),
            local: endpoints.local(),
            load_balancer: load_balancer_ips(service),
        })
    }

    fn write(&self, rules: &mut ServiceRules) {
        let is_inside_local = self.spec.internal_traffic_policy.as_deref() == Some("Local");
        let inside = if is_inside_local { Scope::Local } else { Scope::Cluster };
        let masquerade = Rule::MasqueradeUnlessFrom(self.node.cluster_cidr);
        let svc = self.chain("svc");
        self.balance(rules, &svc, vec![masquerade.clone()], inside);
        for address in ipv4(self.spec.cluster_ips.iter().flatten().chain(&self.spec.cluster_ip)) {
            self.lead(rules, Frontend::Ip(address, self.protocol, self.port), &svc);
        }
        if self.has_outside() {
            let all = if is_inside_local { self.chain("all") } else { svc };
            self.write_outside(rules, &all);
            if is_inside_local && self.is_outside_local() {
                self.balance(rules, &all, vec![masquerade], Scope::Cluster);
            }
        }
        rules.hairpins.extend(self.local.iter().map(|target| target.address));
    }

    /// The chains and frontends for what comes from outside of the cluster.
    fn write_outside(&self, rules: &mut ServiceRules, all: &str) {
        let ext = self.chain("ext");
        if self.is_outside_local() {
            // The policy is for clients outside: the cluster itself reaches every endpoint.
            let exceptions = vec![
                Rule::GotoFrom(self.node.cluster_cidr, all.to_owned()),
                Rule::GotoFromLocal(all.to_owned()),
            ];
            self.balance(rules, &ext, exceptions, Scope::Local);
        } else {
            self.balance(rules, &ext, vec![Rule::Masquerade], Scope::Cluster);
        }
        if let Some(port) = self.node_port {
            self.lead(rules, Frontend::Port(self.protocol, port), &ext);
        }
        for address in ipv4(self.spec.external_ips.iter().flatten()) {
            self.lead(rules, Frontend::Ip(address, self.protocol, self.port), &ext);
        }
        let admitted = self.admitted(&ext);
        let lb = if admitted.is_empty() { ext } else { self.chain("lb") };
        for address in &self.load_balancer {
            self.lead(rules, Frontend::Ip(*address, self.protocol, self.port), &lb);
        }
        if !admitted.is_empty() && !self.load_balancer.is_empty() {
            rules.chains.insert(lb, admitted);
        }
    }

    /// The rules that admit the named sources of a load balancer; empty if all are welcome.
    fn admitted(&self, ext: &str) -> Vec<Rule> {
        let ranges = self.spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
        let nets: BTreeSet<Ipv4Net> = ranges.iter().filter_map(|range| range.trim().parse().ok()).collect();
        let admit = nets.into_iter().map(|net| Rule::GotoFrom(net, ext.to_owned()));
        let others = (!ranges.is_empty()).then_some(Rule::Drop);
        admit.chain(others).collect()
    }

    /// Makes a chain that balances among the endpoints in `scope` after the rules `first`.
    fn balance(&self, rules: &mut ServiceRules, chain: &str, first: Vec<Rule>, scope: Scope) {
        let targets = if scope == Scope::Local { &self.local } else { &self.cluster };
        let mut list = first;
        if self.cluster.is_empty() {
            list = vec![Rule::Reject];
        } else if targets.is_empty() {
            list.retain(|rule| !matches!(rule, Rule::Masquerade | Rule::MasqueradeUnlessFrom(_)));
            list.push(Rule::Drop);
        } else {
            let count = u32::try_from(targets.len()).expect("far fewer endpoints than 2^32");
            let endpoints = match self.affinity() {
                None => {
                    list.push(Rule::Balance(count));
                    targets.iter().map(|target| Endpoint::Target(*target)).collect()
                }
                Some(seconds) => {
                    let (remembered, chains) = self.remember(rules, targets, seconds);
                    list.extend(remembered);
                    list.push(Rule::BalanceChains(count));
                    chains
                }
            };
            let slots = (0..).map(|number| (chain.to_owned(), number));
            rules.endpoints.extend(slots.zip(endpoints));
        }
        rules.chains.insert(chain.to_owned(), list);
    }

    /// Makes the endpoints' own chains and sets of clients. Returns the rules that send clients where
    /// they were sent before, and the chains: those that balance among one endpoint share them.
    fn remember(
        &self,
        rules: &mut ServiceRules,
        targets: &[Target],
        seconds: u32,
    ) -> (Vec<Rule>, Vec<Endpoint>) {
        let made = targets.iter().map(|target| {
            let name = format!("{}/{}:{}", self.suffix, target.address, target.port);
            // A set's timeout cannot be changed, so it is part of its name.
            let (set, chain) = (format!("affinity/{name}/{seconds}"), format!("ep/{name}"));
            rules.affinities.insert(set.clone(), seconds);
            let list = vec![Rule::Remember(set.clone()), Rule::Translate(*target)];
            rules.chains.insert(chain.clone(), list);
            (Rule::GotoRemembered { set, chain: chain.clone() }, Endpoint::Chain(chain))
        });
        made.unzip()
    }

    fn lead(&self, rules: &mut ServiceRules, frontend: Frontend, chain: &str) {
        rules.frontends.insert(frontend, chain.to_owned());
        if self.protocol == Protocol::Udp {
            let targets = self.cluster.iter().chain(&self.local).copied().collect();
            rules.flows.insert(frontend, targets);
        }
    }

    fn has_outside(&self) -> bool {
        let external = self.spec.external_ips.iter().flatten().next().is_some();
        external || self.node_port.is_some() || !self.load_balancer.is_empty()
    }

    fn is_outside_local(&self) -> bool {
        self.spec.external_traffic_policy.as_deref() == Some("Local")
    }

    /// How many seconds clients are remembered, if the Service wants that.
    fn affinity(&self) -> Option<u32> {
        if self.spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let config = self.spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| u32::try_from(config.timeout_seconds?).ok());
        Some(seconds.unwrap_or(AFFINITY_SECONDS))
    }

    fn chain(&self, kind: &str) -> String {
        format!("{kind}/{}", self.suffix)
    }
}

/// The addresses that a load balancer hands on without changing them.
fn load_balancer_ips(service: &Service) -> Vec<Ipv4Addr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let direct = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    ipv4(direct.filter_map(|ingress| ingress.ip.as_ref())).collect()
}

fn ipv4<'s>(texts: impl Iterator<Item = &'s String>) -> impl Iterator<Item = Ipv4Addr> {
    texts.filter_map(|text| text.parse().ok())
}

/// The rules of all Services.
#[cfg(test)]
pub(crate) fn all(world: &World, node: &Node) -> Vec<(ObjectKey, ServiceRules)> {
    world.keys().map(|key| (key.clone(), service(world, key, node))).collect()
}
