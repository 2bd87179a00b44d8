//! Connection tracking: finding and forgetting the translated flows of endpoints that are gone.
//!
//! Only flows without connections of their own (UDP) need it: their entry keeps sending packets to the
//! old endpoint for as long as the client keeps sending.

use std::net::Ipv4Addr;

use super::Error;
use super::socket::{Family, Socket};
use super::wire::{self, Encoder};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `struct nfgenmsg` of IPv4.
const HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PORT_SOURCE: u16 = 2;
const PORT_DESTINATION: u16 = 3;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

/// A tracked flow: as its first packet asked, and as answers look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) original: Tuple,
    pub(crate) reply: Tuple,
}

/// Forgets the flows that `stale` chooses, in the namespace of the calling thread. Returns how many.
pub(crate) fn forget(mut stale: impl FnMut(&Flow) -> bool) -> Result<usize, Error> {
    let mut socket = Socket::open(Family::Netfilter)?;
    let mut doomed = Vec::new();
    socket.dump(
        "list flows",
        GET,
        |m| m.raw(&HEADER),
        |payload| doomed.extend(flow_read(payload).filter(|flow| stale(flow))),
    )?;
    for flow in &doomed {
        let deleted = socket.request("delete flow", DELETE, 0, |m| {
            m.raw(&HEADER);
            m.nest(TUPLE_ORIGINAL, |tuple| tuple_write(tuple, &flow.original));
        });
        // It may have expired since it was listed.
        deleted.or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })?;
    }
    Ok(doomed.len())
}

fn tuple_write(encoder: &mut Encoder, tuple: &Tuple) {
    encoder.nest(TUPLE_IP, |ip| {
        ip.attr_ip(IP_SOURCE, tuple.source);
        ip.attr_ip(IP_DESTINATION, tuple.destination);
    });
    encoder.nest(TUPLE_PROTOCOL, |protocol| {
        protocol.attr_u8(PROTOCOL_NUMBER, tuple.protocol);
        protocol.attr(PORT_SOURCE, &tuple.source_port.to_be_bytes());
        protocol.attr(PORT_DESTINATION, &tuple.destination_port.to_be_bytes());
    });
}

fn flow_read(payload: &[u8]) -> Option<Flow> {
    let attributes = payload.get(HEADER.len()..)?;
    Some(Flow {
        original: tuple_read(wire::attribute(attributes, TUPLE_ORIGINAL)?)?,
        reply: tuple_read(wire::attribute(attributes, TUPLE_REPLY)?)?,
    })
}

fn tuple_read(bytes: &[u8]) -> Option<Tuple> {
    let ip = wire::attribute(bytes, TUPLE_IP)?;
    let protocol = wire::attribute(bytes, TUPLE_PROTOCOL)?;
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(wire::attribute(ip, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(wire::attribute(protocol, kind)?.try_into().ok()?));
    Some(Tuple {
        source: address(IP_SOURCE)?,
        destination: address(IP_DESTINATION)?,
        protocol: *wire::attribute(protocol, PROTOCOL_NUMBER)?.first()?,
        source_port: port(PORT_SOURCE)?,
        destination_port: port(PORT_DESTINATION)?,
    })
}
