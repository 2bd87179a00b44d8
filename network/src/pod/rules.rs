//! The pod network's own nf_tables table: masquerading of what leaves the cluster, host ports, and
//! guards. It is small and replaced as a whole, atomically, whenever a pod with host ports comes or goes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::Options;
use super::ipam::Allocation;
use crate::key;
use crate::netlink::expression::{End, Rule};
use crate::netlink::nft::{Element, Hook, Point, Set, Transaction, Type, Value, Values, Verdict};

const PORTS: &str = "host-ports";
const IP_PORTS: &str = "host-ip-ports";
const HAIRPIN: &str = "hairpin";
/// The ICMP type by which a router tells of a shorter way.
const ICMP_REDIRECT: u8 = 5;

const BEFORE_TRACKING: Hook = Hook { kind: "filter", point: Point::Prerouting, priority: -300 };
const PREROUTING: Hook = Hook { kind: "nat", point: Point::Prerouting, priority: -100 };
const OUTPUT: Hook = Hook { kind: "nat", point: Point::Output, priority: -100 };
const OUTPUT_FILTER: Hook = Hook { kind: "filter", point: Point::Output, priority: 0 };
const POSTROUTING: Hook = Hook { kind: "nat", point: Point::Postrouting, priority: 100 };

/// The whole table for these pods.
pub(super) fn table<'o>(
    options: &'o Options,
    allocations: &BTreeMap<Ipv4Addr, Allocation>,
) -> Transaction<'o> {
    let mut transaction = Transaction::new(&options.table);
    transaction.table_replace();
    host_ports(&mut transaction, allocations);
    guards(&mut transaction, options);
    masquerade(&mut transaction, options);
    transaction
}

/// The maps of host ports, and the chains that look them up.
fn host_ports(transaction: &mut Transaction<'_>, allocations: &BTreeMap<Ipv4Addr, Allocation>) {
    let target = Values::Of(Type::Target);
    let set = |name, keys, values| Set { name, keys, values, timeout_seconds: None };
    transaction.set_create(set(PORTS, Type::ServicePort, target));
    transaction.set_create(set(IP_PORTS, Type::ServiceIp, target));
    transaction.set_create(set(HAIRPIN, Type::AddressPair, Values::None));
    let mut ports = BTreeMap::new();
    let mut ip_ports = BTreeMap::new();
    let mut hairpins = Vec::new();
    for (address, allocation) in allocations {
        for port in &allocation.host_ports {
            let target = key::target(*address, port.container_port);
            match port.host_ip.filter(|ip| !ip.is_unspecified()) {
                Some(ip) => ip_ports.insert(key::service_ip(ip, port.protocol, port.host_port), target),
                None => ports.insert(key::service_port(port.protocol, port.host_port), target),
            };
        }
        if !allocation.host_ports.is_empty() {
            hairpins.push(Element { key: key::itself(*address), value: Value::None });
        }
    }
    transaction.elements_add(PORTS, &elements(ports));
    transaction.elements_add(IP_PORTS, &elements(ip_ports));
    transaction.elements_add(HAIRPIN, &hairpins);
    for (chain, hook) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        transaction.chain_base(chain, hook);
        transaction.rule(chain, |r| _ = r.load_service_ip().lookup_target(IP_PORTS).translate());
        transaction.rule(chain, |r| {
            r.address_local(End::Destination).load_service_port().lookup_target(PORTS).translate();
        });
    }
}

/// What must not pass.
fn guards(transaction: &mut Transaction<'_>, options: &Options) {
    // Pods may be answered from 127.0.0.1 (route_localnet), but not talk to it.
    transaction.chain_base("guard", BEFORE_TRACKING);
    transaction.rule("guard", |r| {
        r.interface_in(&options.bridge).address(End::Destination, loopback(), true).verdict(Verdict::Drop);
    });
    // Two pods share the bridge, and the kernel would tell them to skip the gateway: then connection
    // tracking would miss the answers of services.
    transaction.chain_base("redirects", OUTPUT_FILTER);
    transaction.rule("redirects", |r| {
        r.interface_out(&options.bridge, true).icmp(ICMP_REDIRECT).verdict(Verdict::Drop);
    });
}

fn masquerade(transaction: &mut Transaction<'_>, options: &Options) {
    transaction.chain_base("postrouting", POSTROUTING);
    let mut rule = |fill: &dyn Fn(&mut Rule<'_>)| transaction.rule("postrouting", |r| fill(r));
    rule(&|r| _ = r.translated().load_addresses().lookup_member(HAIRPIN).masquerade());
    rule(&|r| {
        r.interface_out(&options.bridge, true).address(End::Source, loopback(), true).masquerade();
    });
    rule(&|r| {
        r.address(End::Source, options.pod_cidr, true)
            .address(End::Destination, options.cluster_cidr, false)
            .interface_out(&options.bridge, false)
            .masquerade();
    });
}

fn elements(map: BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<Element<'static>> {
    map.into_iter().map(|(key, target)| Element { key, value: Value::Bytes(target) }).collect()
}

fn loopback() -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)
}
