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

/// A chain's name in eight bytes (FNV-1a). That two of a node's chains share them is as likely as a
/// disk error that nobody notices: one in 10^11 for 10,000 chains.
pub(crate) fn chain_id(chain: &str) -> [u8; 8] {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    chain.bytes().fold(0xcbf2_9ce4_8422_2325, mix).to_be_bytes()
}

/// (chain . number), the number in the machine's order
pub(crate) fn slot(chain: &str, number: u32) -> Vec<u8> {
    [chain_id(chain).as_slice(), &number.to_ne_bytes()].concat()
}

/// (set's id . address)
pub(crate) fn member(id: [u8; 8], address: Ipv4Addr) -> Vec<u8> {
    [id.as_slice(), &address.octets()].concat()
}

/// (set's id . address . protocol . port)
pub(crate) fn member_port(id: [u8; 8], address: Ipv4Addr, protocol: Protocol, port: u16) -> Vec<u8> {
    [id.as_slice(), &service_ip(address, protocol, port)].concat()
}
