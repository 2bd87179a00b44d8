//! From the desired rules to nf_tables messages.
//!
//! Packets that go through the machine are looked at, and no others: what the node itself sends to its pods
//! (probes) and what pods send to their node passes, as Kubernetes has it. Destinations have been translated by
//! then and sources have not: policies see the pods behind Services, and clients as they are.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::ruleset::{Chain, Delta, Direction, Member, PeerMatch, PortMatch, Rule};
use crate::key;
use crate::netlink::expression::{self, End};
use crate::netlink::nft::{Element, Hook, Point, Set, Transaction, Type, Value, Values, Verdict};

const INGRESS: &str = "ingress-pods";
const EGRESS: &str = "egress-pods";
const SELVES: &str = "selves";
const MEMBERS: &str = "members";
const MEMBER_PORTS: &str = "member-ports";
const FORWARD: Hook = Hook { kind: "filter", point: Point::Forward, priority: 0 };

/// Makes the table anew with all that does not depend on policies.
pub(super) fn base(transaction: &mut Transaction<'_>) {
    transaction.table_replace();
    let set = |name, keys, values| Set { name, keys, values, timeout_seconds: None };
    transaction.set_create(set(INGRESS, Type::Address, Values::Verdicts));
    transaction.set_create(set(EGRESS, Type::Address, Values::Verdicts));
    transaction.set_create(set(SELVES, Type::AddressPair, Values::None));
    transaction.set_create(set(MEMBERS, Type::Member, Values::None));
    transaction.set_create(set(MEMBER_PORTS, Type::MemberPort, Values::None));
    transaction.chain_base("forward", FORWARD);
    transaction.rule("forward", |r| _ = r.established().verdict(Verdict::Accept));
    transaction.rule("forward", |r| _ = r.load_addresses().lookup_member(SELVES).verdict(Verdict::Accept));
    transaction.rule("forward", |r| _ = r.load_source().lookup_verdict(EGRESS));
    transaction.rule("forward", |r| _ = r.load_destination().lookup_verdict(INGRESS));
}

/// Adds a difference to a transaction: first what others refer to, last what nobody does any more.
pub(super) fn delta(transaction: &mut Transaction<'_>, delta: &Delta) {
    for (set, member) in [(MEMBERS, false), (MEMBER_PORTS, true)] {
        let of = |members: &mut dyn Iterator<Item = &(Arc<str>, Member)>| -> Vec<_> {
            members.filter(|(_, m)| matches!(m, Member::Port(..)) == member).map(element).collect()
        };
        transaction.elements_delete(set, &of(&mut delta.members_gone.iter()));
        transaction.elements_add(set, &of(&mut delta.members_new.iter()));
    }
    delta.chains_new.keys().for_each(|name| transaction.chain_create(name));
    for (name, chain) in &delta.chains_new {
        chain_write(transaction, name, chain);
    }
    for (set, direction) in [(INGRESS, Direction::Ingress), (EGRESS, Direction::Egress)] {
        let changed = || delta.pods.iter().filter(move |((way, _), _)| *way == direction);
        let gone: Vec<_> =
            changed().filter_map(|((_, a), (from, _))| Some(jump(*a, from.as_ref()?))).collect();
        transaction.elements_delete(set, &gone);
        let new: Vec<_> = changed().filter_map(|((_, a), (_, to))| Some(jump(*a, to.as_ref()?))).collect();
        transaction.elements_add(set, &new);
    }
    let selves = |addresses: &BTreeSet<Ipv4Addr>| -> Vec<_> {
        addresses.iter().map(|a| Element { key: key::itself(*a), value: Value::None }).collect()
    };
    transaction.elements_delete(SELVES, &selves(&delta.isolated_gone));
    transaction.elements_add(SELVES, &selves(&delta.isolated_new));
    delta.chains_gone.iter().for_each(|name| transaction.chain_flush(name));
    delta.chains_gone.iter().for_each(|name| transaction.chain_delete(name));
}

fn element((set, member): &(Arc<str>, Member)) -> Element<'static> {
    let id = key::chain_id(set);
    let key = match *member {
        Member::Address(address) => key::member(id, address),
        Member::Port(address, protocol, port) => key::member_port(id, address, protocol, port),
    };
    Element { key, value: Value::None }
}

fn jump(address: Ipv4Addr, chain: &str) -> Element<'_> {
    Element { key: address.octets().to_vec(), value: Value::Verdict(Verdict::Jump(chain)) }
}

fn chain_write(transaction: &mut Transaction<'_>, name: &str, chain: &Chain) {
    let other = if chain.direction == Direction::Ingress { End::Source } else { End::Destination };
    for rule in &chain.rules {
        transaction.rule(name, |r| {
            rule_write(r, rule, other);
            r.verdict(Verdict::Return);
        });
    }
    transaction.rule(name, |r| _ = r.verdict(Verdict::Drop));
}

fn rule_write(r: &mut expression::Rule<'_>, rule: &Rule, other: End) {
    match rule.port {
        PortMatch::Any => {}
        PortMatch::Protocol(protocol) => _ = r.protocol(protocol.number()),
        PortMatch::Range(protocol, first, last) => _ = r.protocol(protocol.number()).port_within(first, last),
    }
    match &rule.peer {
        PeerMatch::Any => {}
        PeerMatch::Block(net, except) => {
            r.address(other, *net, true);
            except.iter().for_each(|hole| _ = r.address(other, *hole, false));
        }
        PeerMatch::Members(set) => _ = r.load_member(key::chain_id(set), other).lookup_member(MEMBERS),
        PeerMatch::MemberPorts(set) => _ = r.load_member_port(key::chain_id(set)).lookup_member(MEMBER_PORTS),
    }
}
