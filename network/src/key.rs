//! Keys and values of nf_tables sets, as bytes: network order, each part padded to four bytes.

use std::net::Ipv4Addr;

use crate::protocol::Protocol;

/// (address . protocol . port)
pub(crate) fn service_ip(address: Ipv4Addr, protocol: Protocol, port: u16) -> Vec<u8> {
    [address.octets().as_slice(), &service_port(protocol, port)].concat()
}

/// (protocol . port)
pub(crate) fn service_port(protocol: Protocol, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol.number(), 0, 0, 0, high, low, 0, 0]
}

/// (address . port)
pub(crate) fn target(address: Ipv4Addr, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [address.octets().as_slice(), &[high, low, 0, 0]].concat()
}

/// (address . address): a packet from an address to itself.
pub(crate) fn itself(address: Ipv4Addr) -> Vec<u8> {
    [address.octets(), address.octets()].concat()
}
