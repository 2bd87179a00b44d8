//! Which endpoints of a Service take its traffic.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointHints, EndpointSlice};

use super::plan::Node;
use super::ruleset::Target;
use crate::protocol::Protocol;

/// What is known of an endpoint at one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    ready: bool,
    /// Serves although it is being deleted: better than nothing.
    last_resort: bool,
    local: bool,
    /// Whether it is for clients of this node, and of this zone; unknown where it does not say.
    for_node: Option<bool>,
    for_zone: Option<bool>,
}

/// The endpoints of one port of a Service, each once whichever slices name it.
#[derive(Debug, Default)]
pub(super) struct Endpoints(BTreeMap<Target, State>);

impl Endpoints {
    /// The IPv4 endpoints of the port `name` in the slices.
    pub(super) fn of<'s>(
        slices: impl Iterator<Item = &'s EndpointSlice>,
        name: &str,
        protocol: Protocol,
        node: &Node,
    ) -> Self {
        let mut endpoints = Self::default();
        for slice in slices.filter(|slice| slice.address_type == "IPv4") {
            let ports = slice.ports.iter().flatten().filter(|port| {
                port.name.as_deref().unwrap_or_default() == name
                    && Protocol::parse(port.protocol.as_deref()) == Some(protocol)
            });
            for port in ports.filter_map(|port| u16::try_from(port.port?).ok()) {
                endpoints.add(slice, port, node);
            }
        }
        endpoints
    }

    fn add(&mut self, slice: &EndpointSlice, port: u16, node: &Node) {
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(Ok(address)) = endpoint.addresses.first().map(|address| address.parse::<Ipv4Addr>())
            else {
                continue;
            };
            let local = endpoint.node_name.as_deref() == Some(&*node.name);
            let (for_node, for_zone) = hinted(endpoint.hints.as_ref(), node);
            let state = State { local, for_node, for_zone, ..state(endpoint.conditions.as_ref()) };
            let known = self.0.entry(Target { address, port }).or_default();
            known.ready |= state.ready;
            known.last_resort |= state.last_resort;
            known.local |= state.local;
            known.for_node = known.for_node.max(state.for_node);
            known.for_zone = known.for_zone.max(state.for_zone);
        }
    }

    /// Those that take traffic from anywhere: the ready ones, or if there are none, those that still
    /// serve while they terminate. Where all ready ones say for whom they are, and one of them is for this node,
    /// those for this node; else likewise those for its zone (trafficDistribution, KEP-4444 and KEP-3015).
    pub(super) fn cluster(&self) -> Vec<Target> {
        for hint in [|state: &State| state.for_node, |state: &State| state.for_zone] {
            let mut ready = self.0.values().filter(|state| state.ready);
            if ready.clone().all(|state| hint(state).is_some())
                && ready.any(|state| hint(state) == Some(true))
            {
                return self.usable(|state| hint(state) == Some(true));
            }
        }
        self.usable(|_| true)
    }

    /// Those of them on this node, by the same rule among themselves.
    pub(super) fn local(&self) -> Vec<Target> {
        self.usable(|state| state.local)
    }

    fn usable(&self, eligible: impl Fn(&State) -> bool) -> Vec<Target> {
        let choose = |wanted: fn(&State) -> bool| -> Vec<Target> {
            let chosen = self.0.iter().filter(|(_, state)| eligible(state) && wanted(state));
            chosen.map(|(target, _)| *target).collect()
        };
        let ready = choose(|state| state.ready);
        if ready.is_empty() { choose(|state| state.last_resort) } else { ready }
    }
}

/// Whether hints name the node, and its zone; `None` where they name no node, or no zone.
fn hinted(hints: Option<&EndpointHints>, node: &Node) -> (Option<bool>, Option<bool>) {
    let named = |names: Vec<&String>, own: Option<&str>| {
        (!names.is_empty()).then(|| names.into_iter().any(|name| Some(&**name) == own))
    };
    let nodes = hints.iter().flat_map(|hints| hints.for_nodes.iter().flatten()).map(|hint| &hint.name);
    let zones = hints.iter().flat_map(|hints| hints.for_zones.iter().flatten()).map(|hint| &hint.name);
    (named(nodes.collect(), Some(&node.name)), named(zones.collect(), node.zone.as_deref()))
}

/// Reads an endpoint's conditions; what is not said means the best.
fn state(conditions: Option<&EndpointConditions>) -> State {
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    State { ready, last_resort: serving && terminating, ..State::default() }
}
