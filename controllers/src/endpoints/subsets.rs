//! The subsets of an Endpoints object in their canonical form: per set of addresses the ports that all of
//! them offer. Two lists of subsets that mean the same are equal in this form.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};

/// More addresses than this are left out, and an annotation says so: as Kubernetes does.
pub(super) const LIMIT: usize = 1000;

/// What tells addresses apart: pods may share the address of their host.
type AddressKey = (String, String);

fn key(address: &EndpointAddress) -> AddressKey {
    let uid = address.target_ref.as_ref().and_then(|target| target.uid.clone());
    (address.ip.clone(), uid.unwrap_or_default())
}

/// A port, comparable.
type PortKey = (Option<String>, i32, Option<String>, Option<String>);

/// Brings subsets into the canonical form.
pub(super) fn repack(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let mut addresses: BTreeMap<AddressKey, EndpointAddress> = BTreeMap::new();
    // Addresses without any port stand under `None`.
    let mut by_port: BTreeMap<Option<PortKey>, BTreeMap<AddressKey, bool>> = BTreeMap::new();
    for subset in subsets {
        let ports: Vec<_> = subset.ports.iter().flatten().map(|port| Some(port_key(port))).collect();
        let ports = if ports.is_empty() { vec![None] } else { ports };
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready) {
            addresses.entry(key(address)).or_insert_with(|| address.clone());
            for port in &ports {
                let known = by_port.entry(port.clone()).or_default().entry(key(address)).or_insert(ready);
                // An address that is said to be both is not ready.
                *known &= ready;
            }
        }
    }
    let mut by_addresses: BTreeMap<BTreeMap<AddressKey, bool>, Vec<EndpointPort>> = BTreeMap::new();
    for (port, set) in by_port {
        by_addresses.entry(set).or_default().extend(port.map(port_of));
    }
    let subset = |(set, ports): (BTreeMap<AddressKey, bool>, Vec<EndpointPort>)| {
        let of = |wanted: bool| {
            let keys = set.iter().filter(|(_, ready)| **ready == wanted).map(|(key, _)| key);
            some(keys.filter_map(|key| addresses.get(key).cloned()).collect())
        };
        EndpointSubset { addresses: of(true), not_ready_addresses: of(false), ports: some(ports) }
    };
    by_addresses.into_iter().map(subset).collect()
}

fn port_key(port: &EndpointPort) -> PortKey {
    let name = port.name.clone().filter(|name| !name.is_empty());
    (name, port.port, port.protocol.clone(), port.app_protocol.clone())
}

fn port_of((name, port, protocol, app_protocol): PortKey) -> EndpointPort {
    EndpointPort { name, port, protocol, app_protocol }
}

/// A list that is dropped from an object altogether when it is empty.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// Cuts the subsets down to [`LIMIT`] addresses, each by its share, unready ones first; whether it had to.
pub(super) fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let length = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let ready: usize = subsets.iter().map(|subset| length(&subset.addresses)).sum();
    let unready: usize = subsets.iter().map(|subset| length(&subset.not_ready_addresses)).sum();
    if ready + unready <= LIMIT {
        return false;
    }
    let only_ready = ready > LIMIT;
    let (total, room) = if only_ready { (ready, LIMIT) } else { (unready, LIMIT - ready) };
    let mut left = room;
    for subset in subsets {
        let list = if only_ready {
            subset.not_ready_addresses = None;
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        let share = (length(list) * room).div_ceil(total).min(left);
        if let Some(addresses) = list {
            addresses.truncate(share);
            left -= addresses.len();
        }
        if length(list) == 0 {
            *list = None;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: String) -> EndpointAddress {
        EndpointAddress { ip, ..EndpointAddress::default() }
    }

    fn subset(ips: &[&str], ports: &[i32]) -> EndpointSubset {
        let ports = ports.iter().map(|port| EndpointPort { port: *port, ..EndpointPort::default() });
        EndpointSubset {
            addresses: Some(ips.iter().map(|ip| address((*ip).to_owned())).collect()),
            ports: Some(ports.collect()),
            ..EndpointSubset::default()
        }
    }

    #[test]
    fn what_shares_its_addresses_shares_a_subset() {
        let spread = [subset(&["b", "a"], &[80]), subset(&["a"], &[443]), subset(&["b"], &[443])];
        assert_eq!(repack(&spread), [subset(&["a", "b"], &[80, 443])]);
        let mixed = [subset(&["a", "b"], &[80]), subset(&["a"], &[8080]), subset(&["b"], &[9090])];
        let packed = repack(&mixed);
        assert_eq!(packed.len(), 3);
        assert_eq!(repack(&packed), packed);
    }

    #[test]
    fn an_address_that_is_both_is_not_ready() {
        let mut unready = subset(&["a"], &[80]);
        unready.not_ready_addresses = unready.addresses.take();
        assert_eq!(repack(&[subset(&["a"], &[80]), unready.clone()]), [unready]);
    }

    #[test]
    fn too_many_addresses_are_cut_by_their_shares() {
        let many = |count: usize| Some((0..count).map(|index| address(index.to_string())).collect());
        let of = |ready, unready| EndpointSubset {
            addresses: many(ready),
            not_ready_addresses: many(unready),
            ports: None,
        };
        let sizes = |subsets: &[EndpointSubset]| -> Vec<(usize, usize)> {
            let length = |list: &Option<Vec<_>>| list.as_ref().map_or(0, Vec::len);
            subsets.iter().map(|one| (length(&one.addresses), length(&one.not_ready_addresses))).collect()
        };
        let mut few = [of(600, 400)];
        assert!(!truncate(&mut few));
        let mut unready = [of(600, 300), of(200, 300)];
        assert!(truncate(&mut unready));
        assert_eq!(sizes(&unready), [(600, 100), (200, 100)]);
        let mut ready = [of(1000, 7), of(1000, 0), of(1, 1)];
        assert!(truncate(&mut ready));
        assert_eq!(sizes(&ready), [(500, 0), (500, 0), (0, 0)]);
    }
}
