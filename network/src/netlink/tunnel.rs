//! rtnetlink: VXLAN links, and who is reached through them. The kernel asks nobody (no learning, no
//! multicast): every neighbour is told to it.

use std::net::Ipv4Addr;

use super::Error;
use super::route::{Connection, Mac, link_header};
use super::socket::{CREATE, EXCLUSIVE, REPLACE};
use super::wire::{self, Encoder};

/// The length of `struct ndmsg`, which precedes a neighbour's attributes.
const NEIGHBOUR_HEADER: usize = 12;
/// `IFLA_VXLAN_ID`, `IFLA_VXLAN_LOCAL`, `IFLA_VXLAN_LEARNING`, `IFLA_VXLAN_PORT`.
const ID: u16 = 1;
const LOCAL: u16 = 4;
const LEARNING: u16 = 7;
const PORT: u16 = 15;
/// `NUD_PERMANENT`: told by us, never asked for.
const PERMANENT: u16 = 0x80;
/// `NTF_SELF`: the entry is the link's own, not that of a bridge that it may be a port of.
const OWN: u8 = 0x02;

/// A VXLAN link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vxlan<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// The network's number, 24 bits.
    pub(crate) id: u32,
    /// The UDP port, the same on all nodes.
    pub(crate) port: u16,
    /// Its hardware address.
    pub(crate) mac: Mac,
    /// The largest packet within, in bytes.
    pub(crate) mtu: u32,
    /// The address that packets bear as their source outside.
    pub(crate) local: Option<Ipv4Addr>,
}

/// What is told about a neighbour behind a VXLAN link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Neighbour {
    /// This address within has that hardware address.
    Address(Ipv4Addr, Mac),
    /// That hardware address is at the machine with this address outside.
    Place(Mac, Ipv4Addr),
}

impl Connection {
    /// Makes a VXLAN link.
    pub(crate) fn vxlan_create(&mut self, vxlan: Vxlan<'_>) -> Result<(), Error> {
        self.0.request("create vxlan", libc::RTM_NEWLINK, CREATE | EXCLUSIVE, |m| {
            link_header(m, 0, true);
            m.attr_str(libc::IFLA_IFNAME, vxlan.name);
            m.attr(libc::IFLA_ADDRESS, &vxlan.mac);
            m.attr_u32(libc::IFLA_MTU, vxlan.mtu);
            m.nest(libc::IFLA_LINKINFO, |info| {
                info.attr_str(libc::IFLA_INFO_KIND, "vxlan");
                info.nest(libc::IFLA_INFO_DATA, |data| {
                    data.attr_u32(ID, vxlan.id);
                    if let Some(local) = vxlan.local {
                        data.attr_ip(LOCAL, local);
                    }
                    data.attr_u8(LEARNING, 0);
                    data.attr(PORT, &vxlan.port.to_be_bytes());
                });
            });
        })
    }

    /// Tells about a neighbour, or changes what was told.
    pub(crate) fn neighbour_set(&mut self, link: u32, neighbour: Neighbour) -> Result<(), Error> {
        self.0.request("set neighbour", libc::RTM_NEWNEIGH, CREATE | REPLACE, |m| fill(m, link, neighbour))
    }

    /// Takes back what was told; that it is gone already is fine.
    pub(crate) fn neighbour_delete(&mut self, link: u32, neighbour: Neighbour) -> Result<(), Error> {
        let deleted = self.0.request("delete neighbour", libc::RTM_DELNEIGH, 0, |m| fill(m, link, neighbour));
        deleted.or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })
    }

    /// What was told of neighbours behind a link.
    pub(crate) fn neighbours(&mut self, link: u32) -> Result<Vec<Neighbour>, Error> {
        let mut told = Vec::new();
        for family in [libc::AF_INET, libc::AF_BRIDGE] {
            self.0.dump(
                "list neighbours",
                libc::RTM_GETNEIGH,
                |m| header(m, family, 0, 0),
                |payload| told.extend(read(payload, link)),
            )?;
        }
        Ok(told)
    }
}

fn header(m: &mut Encoder, family: libc::c_int, link: u32, flags: u8) {
    let mut header = [0u8; NEIGHBOUR_HEADER];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    header[10] = flags;
    m.raw(&header);
}

fn fill(m: &mut Encoder, link: u32, neighbour: Neighbour) {
    let (family, flags, address, mac) = match neighbour {
        Neighbour::Address(address, mac) => (libc::AF_INET, 0, address, mac),
        Neighbour::Place(mac, address) => (libc::AF_BRIDGE, OWN, address, mac),
    };
    header(m, family, link, flags);
    m.attr_ip(libc::NDA_DST, address);
    m.attr(libc::NDA_LLADDR, &mac);
}

/// A neighbour behind `link` that was told, not learnt.
fn read(payload: &[u8], link: u32) -> Option<Neighbour> {
    let attributes = payload.get(NEIGHBOUR_HEADER..)?;
    let state = u16::from_ne_bytes(payload.get(8..10)?.try_into().ok()?);
    if wire::u32_at(payload, 4)? != link || state & PERMANENT == 0 {
        return None;
    }
    let address: [u8; 4] = wire::attribute(attributes, libc::NDA_DST)?.try_into().ok()?;
    let mac: Mac = wire::attribute(attributes, libc::NDA_LLADDR)?.try_into().ok()?;
    match libc::c_int::from(payload[0]) {
        libc::AF_INET => Some(Neighbour::Address(address.into(), mac)),
        libc::AF_BRIDGE => Some(Neighbour::Place(mac, address.into())),
        _ => None,
    }
}
