//! From the desired rule set to nf_tables messages.
//!
//! A packet's first lookup finds its Service, whatever the number of Services: by (address . protocol .
//! port), or by (protocol . port) if the address is the node's own. A second finds its endpoint: by (chain
//! . number). Nothing is searched rule by rule, but for the endpoints of a Service that remembers its
//! clients; and there is no set per Service: the kernel searches
//! the sets of a table one by one when rules refer to them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Options;
use super::ruleset::{Delta, Endpoint, Frontend, Rule, Slot};
use crate::key;
use crate::netlink::expression::{End, Refusal};
use crate::netlink::nft::{Element, Hook, Point, Set, Transaction, Type, Value, Values, Verdict};
use crate::protocol::Protocol;

const IPS: &str = "service-ips";
const PORTS: &str = "service-ports";
const ENDPOINTS: &str = "endpoints";
const ENDPOINT_CHAINS: &str = "endpoint-chains";
const HAIRPIN: &str = "hairpin";
const REJECT: &str = "reject";

/// The mark of a packet whose source is to be translated; taken off where that happens.
const MARK_MASQUERADE: u32 = 0x4000;
/// The mark of a packet that is to be refused, which chains that translate cannot do themselves.
const MARK_REJECT: u32 = 0x8000;

const PREROUTING: Hook = Hook { kind: "nat", point: Point::Prerouting, priority: -100 };
const OUTPUT: Hook = Hook { kind: "nat", point: Point::Output, priority: -100 };
const POSTROUTING: Hook = Hook { kind: "nat", point: Point::Postrouting, priority: 100 };
/// After destinations were translated: what still goes to a Service has nobody to serve it.
const PREROUTING_AFTER: Hook = Hook { kind: "filter", point: Point::Prerouting, priority: -90 };
const OUTPUT_AFTER: Hook = Hook { kind: "filter", point: Point::Output, priority: -90 };

/// Makes the table anew with all that does not depend on Services.
pub(super) fn base(transaction: &mut Transaction<'_>, options: &Options) {
    transaction.table_replace();
    let set = |name, keys, values| Set { name, keys, values, timeout_seconds: None };
    transaction.set_create(set(IPS, Type::ServiceIp, Values::Verdicts));
    transaction.set_create(set(PORTS, Type::ServicePort, Values::Verdicts));
    transaction.set_create(set(ENDPOINTS, Type::Slot, Values::Of(Type::Target)));
    transaction.set_create(set(ENDPOINT_CHAINS, Type::Slot, Values::Verdicts));
    transaction.set_create(set(HAIRPIN, Type::AddressPair, Values::None));
    for (chain, hook) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        transaction.chain_base(chain, hook);
        transaction.rule(chain, |r| _ = r.load_service_ip().lookup_verdict(IPS));
        node_ports(transaction, chain, &options.node_port_addresses);
    }
    transaction.chain_base("postrouting", POSTROUTING);
    transaction.rule("postrouting", |r| {
        r.marked(MARK_MASQUERADE).unmark(MARK_MASQUERADE).masquerade();
    });
    transaction.rule("postrouting", |r| {
        r.translated().load_addresses().lookup_member(HAIRPIN).masquerade();
    });
    transaction.chain_create(REJECT);
    transaction.rule(REJECT, |r| _ = r.protocol(Protocol::Tcp.number()).reject(Refusal::TcpReset));
    transaction.rule(REJECT, |r| _ = r.reject(Refusal::PortUnreachable));
    for (chain, hook) in [("prerouting-after", PREROUTING_AFTER), ("output-after", OUTPUT_AFTER)] {
        transaction.chain_base(chain, hook);
        transaction.rule(chain, |r| _ = r.marked(MARK_REJECT).verdict(Verdict::Goto(REJECT)));
        for cidr in &options.service_cidrs {
            transaction.rule(chain, |r| {
                r.address(End::Destination, *cidr, true).verdict(Verdict::Goto(REJECT));
            });
        }
    }
}

/// Has the node's own addresses looked up by port: all of them, or those in the ranges.
fn node_ports(transaction: &mut Transaction<'_>, chain: &str, within: &[Ipv4Net]) {
    let everywhere = [Ipv4Net::default()];
    for range in if within.is_empty() { &everywhere } else { within } {
        transaction.rule(chain, |r| {
            if range.prefix_len() > 0 {
                r.address(End::Destination, *range, true);
            }
            r.address_local(End::Destination).load_service_port().lookup_verdict(PORTS);
        });
    }
}

/// Adds a difference of rule sets to a transaction: first what others refer to, last what nobody does
/// any more.
pub(super) fn delta(transaction: &mut Transaction<'_>, delta: &Delta) {
    for (name, seconds) in &delta.affinities_new {
        let timeout_seconds = Some(*seconds);
        transaction.set_create(Set { name, keys: Type::Address, values: Values::None, timeout_seconds });
    }
    delta.chains_new.keys().for_each(|name| transaction.chain_create(name));
    delta.chains_changed.keys().for_each(|name| transaction.chain_flush(name));
    for (name, rules) in delta.chains_new.iter().chain(&delta.chains_changed) {
        rules.iter().for_each(|rule| rule_write(transaction, name, rule));
    }
    endpoints(transaction, delta);
    frontends(transaction, &delta.frontends);
    let hairpins = |addresses: &mut dyn Iterator<Item = &Ipv4Addr>| -> Vec<_> {
        addresses.map(|address| Element { key: key::itself(*address), value: Value::None }).collect()
    };
    transaction.elements_delete(HAIRPIN, &hairpins(&mut delta.hairpins_gone.iter()));
    transaction.elements_add(HAIRPIN, &hairpins(&mut delta.hairpins_new.iter()));
    delta.chains_gone.iter().for_each(|name| transaction.chain_flush(name));
    delta.chains_gone.iter().for_each(|name| transaction.chain_delete(name));
    delta.affinities_gone.iter().for_each(|name| transaction.set_delete(name));
}

fn endpoints(transaction: &mut Transaction<'_>, delta: &Delta) {
    for set in [ENDPOINTS, ENDPOINT_CHAINS] {
        let changed = || delta.endpoints.iter();
        let gone: Vec<_> =
            changed().filter_map(|(slot, (from, _))| slot_element(set, slot, from.as_ref()?)).collect();
        transaction.elements_delete(set, &gone);
        let new: Vec<_> =
            changed().filter_map(|(slot, (_, to))| slot_element(set, slot, to.as_ref()?)).collect();
        transaction.elements_add(set, &new);
    }
}

/// What stands at a slot as an element of `set`, if it belongs there.
fn slot_element<'e>(set: &str, (chain, number): &Slot, endpoint: &'e Endpoint) -> Option<Element<'e>> {
    let (home, value) = match endpoint {
        Endpoint::Target(target) => (ENDPOINTS, Value::Bytes(key::target(target.address, target.port))),
        Endpoint::Chain(chain) => (ENDPOINT_CHAINS, Value::Verdict(Verdict::Goto(chain))),
    };
    (home == set).then(|| Element { key: key::slot(chain, *number), value })
}

fn frontends(
    transaction: &mut Transaction<'_>,
    changed: &BTreeMap<Frontend, (Option<String>, Option<String>)>,
) {
    for set in [IPS, PORTS] {
        let of_set = || {
            changed.iter().filter_map(move |(frontend, (from, to))| {
                let (home, key) = frontend_key(frontend);
                (home == set).then_some((key, from, to))
            })
        };
        let gone: Vec<_> =
            of_set().filter_map(|(key, from, _)| from.as_ref().map(|chain| goto(key, chain))).collect();
        transaction.elements_delete(set, &gone);
        let new: Vec<_> =
            of_set().filter_map(|(key, _, to)| to.as_ref().map(|chain| goto(key, chain))).collect();
        transaction.elements_add(set, &new);
    }
}

fn goto(key: Vec<u8>, chain: &str) -> Element<'_> {
    Element { key, value: Value::Verdict(Verdict::Goto(chain)) }
}

fn frontend_key(frontend: &Frontend) -> (&'static str, Vec<u8>) {
    match *frontend {
        Frontend::Ip(address, protocol, port) => (IPS, key::service_ip(address, protocol, port)),
        Frontend::Port(protocol, port) => (PORTS, key::service_port(protocol, port)),
    }
}

fn rule_write(transaction: &mut Transaction<'_>, chain: &str, rule: &Rule) {
    match rule {
        Rule::Masquerade => transaction.rule(chain, |r| _ = r.mark(MARK_MASQUERADE)),
        Rule::MasqueradeUnlessFrom(net) => transaction.rule(chain, |r| {
            r.address(End::Source, *net, false).mark(MARK_MASQUERADE);
        }),
        Rule::GotoFrom(net, other) => transaction.rule(chain, |r| {
            r.address(End::Source, *net, true).verdict(Verdict::Goto(other));
        }),
        Rule::GotoFromLocal(other) => transaction.rule(chain, |r| {
            r.address_local(End::Source).verdict(Verdict::Goto(other));
        }),
        Rule::GotoRemembered { set, chain: other } => transaction.rule(chain, |r| {
            r.load_source().lookup_member(set).verdict(Verdict::Goto(other));
        }),
        Rule::Remember(set) => transaction.rule(chain, |r| _ = r.load_source().remember(set)),
        Rule::Translate(target) => transaction.rule(chain, |r| {
            r.load_target(target.address, target.port).translate();
        }),
        Rule::Balance(count) => transaction.rule(chain, |r| {
            r.choose_slot(key::chain_id(chain), *count).lookup_target(ENDPOINTS).translate();
        }),
        Rule::BalanceChains(count) => transaction.rule(chain, |r| {
            r.choose_slot(key::chain_id(chain), *count).lookup_verdict(ENDPOINT_CHAINS);
        }),
        Rule::Reject => transaction.rule(chain, |r| _ = r.mark(MARK_REJECT)),
        Rule::Drop => transaction.rule(chain, |r| _ = r.verdict(Verdict::Drop)),
    }
}
