//! Which endpoints of a Service take its traffic.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointSlice};

use super::ruleset::Target;
use crate::protocol::Protocol;

/// What is known of an endpoint at one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    ready: bool,
    /// Serves although it is being deleted: better than nothing.
    last_resort: bool,
    local: bool,
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
        node: &str,
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

    fn add(&mut self, slice: &EndpointSlice, port: u16, node: &str) {
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(Ok(address)) = endpoint.addresses.first().map(|address| address.parse::<Ipv4Addr>())
            else {
                continue;
            };
            let local = endpoint.node_name.as_deref() == Some(node);
            let state = State { local, ..state(endpoint.conditions.as_ref()) };
            let known = self.0.entry(Target { address, port }).or_default();
            known.ready |= state.ready;
            known.last_resort |= state.last_resort;
            known.local |= state.local;
        }
    }

    /// Those that take traffic from anywhere: the ready ones, or if there are none, those that still
    /// serve while they terminate.
    pub(super) fn cluster(&self) -> Vec<Target> {
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

/// Reads an endpoint's conditions; what is not said means the best.
fn state(conditions: Option<&EndpointConditions>) -> State {
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    State { ready, last_resort: serving && terminating, local: false }
}
