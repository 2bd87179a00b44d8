//! rtnetlink: links, addresses and routes, as far as a pod network of IPv4 needs them.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::Ipv4Net;

use super::Error;
use super::socket::{CREATE, EXCLUSIVE, Family, REPLACE, Socket};
use super::wire::{self, Encoder};

const IPV4: u8 = libc::AF_INET as u8;
/// The length of `struct ifinfomsg`, which precedes a link's attributes.
const LINK_HEADER: usize = 16;
/// The length of `struct rtmsg`, which precedes a route's attributes.
const ROUTE_HEADER: usize = 12;
/// `VETH_INFO_PEER`.
const VETH_PEER: u16 = 1;
/// `IFLA_BRPORT_MODE`: hairpin.
const PORT_HAIRPIN: u16 = 4;
/// `RTNH_F_ONLINK`: the gateway needs no route of its own.
const ONLINK: u32 = 4;

/// A link's hardware address.
pub(crate) type Mac = [u8; 6];

/// A link as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its index in its namespace.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// The largest packet, in bytes.
    pub(crate) mtu: u32,
    /// Its hardware address, if it has one like Ethernet's.
    pub(crate) mac: Option<Mac>,
    /// The index of the bridge whose port it is.
    pub(crate) controller: Option<u32>,
}

/// What to change of a link; the rest stays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkChange {
    /// Sets it up.
    pub(crate) up: bool,
    /// Sets the largest packet, in bytes.
    pub(crate) mtu: Option<u32>,
}

/// A pair of virtual Ethernet links, one end here and one in a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Veth<'a> {
    /// The name of the end that stays.
    pub(crate) name: &'a str,
    /// The name of the end in the pod.
    pub(crate) peer: &'a str,
    /// The hardware address of the end in the pod.
    pub(crate) peer_mac: Mac,
    /// The largest packet, in bytes.
    pub(crate) mtu: u32,
    /// The bridge of which the end that stays is a port.
    pub(crate) controller: u32,
}

/// Where packets to a prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    /// The prefix.
    pub(crate) destination: Ipv4Net,
    /// The next hop, taken to be on the link; none where the prefix itself is.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// The index of the link.
    pub(crate) link: u32,
    /// The source address that the machine's own packets prefer.
    pub(crate) source: Option<Ipv4Addr>,
}

/// Who made a route: among many it is known by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    /// An administrator, or the set-up of a node.
    Static,
    /// The mesh of nodes, which removes what it made.
    Mesh,
}

impl Maker {
    /// The number in `rtm_protocol`; what lies above 192 is nobody's by convention.
    const fn number(self) -> u8 {
        match self {
            Self::Static => libc::RTPROT_STATIC,
            Self::Mesh => 0xdc,
        }
    }
}

/// The first step of the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// Who passes it on; none where the address itself is on the link.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// The index of the link.
    pub(crate) link: u32,
}

/// A connection to the kernel for one network namespace.
#[derive(Debug)]
pub(crate) struct Connection(pub(super) Socket);

impl Connection {
    /// Connects in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, Error> {
        Socket::open(Family::Route).map(Self)
    }

    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Error> {
        let mut links = Vec::new();
        self.0.dump(
            "list links",
            libc::RTM_GETLINK,
            |m| m.raw(&[0; LINK_HEADER]),
            |payload| links.extend(link_read(payload)),
        )?;
        Ok(links)
    }

    /// The link of that name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let found = self.0.query(
            "find link",
            libc::RTM_GETLINK,
            |m| {
                m.raw(&[0; LINK_HEADER]);
                m.attr_str(libc::IFLA_IFNAME, name);
            },
            link_read,
        );
        found.or_else(|error| if error.is_absent() { Ok(None) } else { Err(error) })
    }

    /// The link of that name, which must exist.
    pub(crate) fn link_expect(&mut self, name: &str) -> Result<Link, Error> {
        self.link(name)?.ok_or_else(|| Error::NoLink(name.to_owned()))
    }

    /// Makes a bridge.
    pub(crate) fn bridge_create(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<(), Error> {
        self.0.request("create bridge", libc::RTM_NEWLINK, CREATE | EXCLUSIVE, |m| {
            link_header(m, 0, true);
            m.attr_str(libc::IFLA_IFNAME, name);
            m.attr(libc::IFLA_ADDRESS, &mac);
            m.attr_u32(libc::IFLA_MTU, mtu);
            m.nest(libc::IFLA_LINKINFO, |info| info.attr_str(libc::IFLA_INFO_KIND, "bridge"));
        })
    }

    /// Makes a pair of links: a port of a bridge, and its peer in the namespace `pod`. Only the port is up: the kernel
    /// refuses a peer that is up before it has a peer.
    ///
    /// The port may send a frame back to where it came from: with `bridge-nf-call-iptables` the kernel bridges packets
    /// that were translated, also those to a Service whose endpoint is the one that asks, or behind the same port.
    pub(crate) fn port_create(&mut self, veth: Veth<'_>, pod: impl AsFd) -> Result<(), Error> {
        let name = veth.name;
        self.veth_create(veth, pod)?;
        let port = self.link_expect(name)?;
        self.port_hairpin(port.index)
    }

    fn veth_create(&mut self, veth: Veth<'_>, pod: impl AsFd) -> Result<(), Error> {
        let pod = pod.as_fd().as_raw_fd().cast_unsigned();
        self.0.request("create veth", libc::RTM_NEWLINK, CREATE | EXCLUSIVE, |m| {
            link_header(m, 0, true);
            m.attr_str(libc::IFLA_IFNAME, veth.name);
            m.attr_u32(libc::IFLA_MTU, veth.mtu);
            m.attr_u32(libc::IFLA_MASTER, veth.controller);
            m.nest(libc::IFLA_LINKINFO, |info| {
                info.attr_str(libc::IFLA_INFO_KIND, "veth");
                info.nest(libc::IFLA_INFO_DATA, |data| {
                    data.nest(VETH_PEER, |peer| {
                        link_header(peer, 0, false);
                        peer.attr_str(libc::IFLA_IFNAME, veth.peer);
                        peer.attr(libc::IFLA_ADDRESS, &veth.peer_mac);
                        peer.attr_u32(libc::IFLA_MTU, veth.mtu);
                        peer.attr_u32(libc::IFLA_NET_NS_FD, pod);
                    });
                });
            });
        })
    }

    fn port_hairpin(&mut self, index: u32) -> Result<(), Error> {
        self.0.request("set hairpin", libc::RTM_SETLINK, 0, |m| {
            let mut header = [0u8; LINK_HEADER];
            header[0] = libc::AF_BRIDGE as u8;
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            m.raw(&header);
            m.nest(libc::IFLA_PROTINFO, |port| port.attr_u8(PORT_HAIRPIN, 1));
        })
    }

    /// Changes a link.
    pub(crate) fn link_set(&mut self, index: u32, change: LinkChange) -> Result<(), Error> {
        self.0.request("change link", libc::RTM_NEWLINK, 0, |m| {
            link_header(m, index, change.up);
            if let Some(mtu) = change.mtu {
                m.attr_u32(libc::IFLA_MTU, mtu);
            }
        })
    }

    /// Deletes a link; that it is gone already is fine.
    pub(crate) fn link_delete(&mut self, name: &str) -> Result<(), Error> {
        let deleted = self.0.request("delete link", libc::RTM_DELLINK, 0, |m| {
            link_header(m, 0, false);
            m.attr_str(libc::IFLA_IFNAME, name);
        });
        deleted.or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })
    }

    /// Gives a link an address; that it has it already is fine.
    pub(crate) fn address_add(&mut self, index: u32, address: Ipv4Net) -> Result<(), Error> {
        let added = self.0.request("add address", libc::RTM_NEWADDR, CREATE | EXCLUSIVE, |m| {
            let mut header = [IPV4, address.prefix_len(), 0, 0, 0, 0, 0, 0];
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            m.raw(&header);
            m.attr_ip(libc::IFA_LOCAL, address.addr());
            m.attr_ip(libc::IFA_ADDRESS, address.addr());
        });
        added.or_else(|error| if error.is_present() { Ok(()) } else { Err(error) })
    }

    /// Adds a route or replaces the one to the same prefix.
    pub(crate) fn route_set(&mut self, route: Route) -> Result<(), Error> {
        self.route_set_by(Maker::Static, route)
    }

    /// The same, with the mark of its maker.
    pub(crate) fn route_set_by(&mut self, maker: Maker, route: Route) -> Result<(), Error> {
        self.0.request("set route", libc::RTM_NEWROUTE, CREATE | REPLACE, |m| route_fill(m, maker, route))
    }

    /// Removes a route; that it is gone already is fine.
    pub(crate) fn route_delete(&mut self, maker: Maker, route: Route) -> Result<(), Error> {
        let deleted = self.0.request("delete route", libc::RTM_DELROUTE, 0, |m| route_fill(m, maker, route));
        deleted.or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })
    }

    /// The routes of the main table that bear the mark of `maker`.
    pub(crate) fn routes_by(&mut self, maker: Maker) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        self.routes_dump(|payload| {
            let &[IPV4, _, _, _, libc::RT_TABLE_MAIN, protocol, ..] = payload else { return };
            if protocol == maker.number() {
                routes.extend(route_read(payload));
            }
        })?;
        Ok(routes)
    }

    /// The networks that the machine has routes to, the default one left out.
    pub(crate) fn networks(&mut self) -> Result<Vec<Ipv4Net>, Error> {
        let mut networks = Vec::new();
        self.routes_dump(|payload| {
            let destination = route_read(payload).map(|route| route.destination);
            networks.extend(destination.filter(|net| payload[0] == IPV4 && net.prefix_len() > 0));
        })?;
        Ok(networks)
    }

    fn routes_dump(&mut self, each: impl FnMut(&[u8])) -> Result<(), Error> {
        let all = |m: &mut Encoder| route_header(m, 0, libc::RT_SCOPE_UNIVERSE, 0, Maker::Static);
        self.0.dump("list routes", libc::RTM_GETROUTE, all, each)
    }

    /// The first step of the way to an address, as the kernel would send now; `None` where there is no way.
    pub(crate) fn hop(&mut self, address: Ipv4Addr) -> Result<Option<Hop>, Error> {
        let found = self.0.query(
            "find route",
            libc::RTM_GETROUTE,
            |m| {
                route_header(m, 32, libc::RT_SCOPE_UNIVERSE, 0, Maker::Static);
                m.attr_ip(libc::RTA_DST, address);
            },
            |payload| {
                let route = route_read(payload)?;
                Some(Hop { gateway: route.gateway.filter(|by| *by != address), link: route.link })
            },
        );
        found.or_else(|error| if error.is_unreachable() { Ok(None) } else { Err(error) })
    }

    /// The index of the link over which the default route leads.
    pub(crate) fn default_link(&mut self) -> Result<Option<u32>, Error> {
        let mut found = None;
        self.routes_dump(|payload| {
            let [IPV4, 0, _, _, libc::RT_TABLE_MAIN, ..] = *payload else { return };
            found = found.or(route_read(payload).map(|route| route.link));
        })?;
        Ok(found)
    }
}

pub(super) fn link_header(encoder: &mut Encoder, index: u32, up: bool) {
    let mut header = [0u8; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        let flag = libc::IFF_UP.cast_unsigned().to_ne_bytes();
        header[8..12].copy_from_slice(&flag);
        header[12..16].copy_from_slice(&flag);
    }
    encoder.raw(&header);
}

fn route_fill(m: &mut Encoder, maker: Maker, route: Route) {
    let scope = if route.gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let flags = if route.gateway.is_some() { ONLINK } else { 0 };
    route_header(m, route.destination.prefix_len(), scope, flags, maker);
    m.attr_ip(libc::RTA_DST, route.destination.network());
    if let Some(gateway) = route.gateway {
        m.attr_ip(libc::RTA_GATEWAY, gateway);
    }
    if let Some(source) = route.source {
        m.attr_ip(libc::RTA_PREFSRC, source);
    }
    m.attr_u32(libc::RTA_OIF, route.link);
}

fn route_read(payload: &[u8]) -> Option<Route> {
    let attributes = payload.get(ROUTE_HEADER..)?;
    let address = |kind| {
        let octets: [u8; 4] = wire::attribute(attributes, kind)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let link = wire::attribute(attributes, libc::RTA_OIF).and_then(|value| wire::u32_at(value, 0))?;
    // The default route names no destination.
    let network = address(libc::RTA_DST).unwrap_or(Ipv4Addr::UNSPECIFIED);
    Some(Route {
        destination: Ipv4Net::new(network, payload[1]).ok()?,
        gateway: address(libc::RTA_GATEWAY),
        link,
        source: address(libc::RTA_PREFSRC),
    })
}

fn route_header(encoder: &mut Encoder, prefix: u8, scope: u8, flags: u32, maker: Maker) {
    let protocol = maker.number();
    let mut header =
        [IPV4, prefix, 0, 0, libc::RT_TABLE_MAIN, protocol, scope, libc::RTN_UNICAST, 0, 0, 0, 0];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    encoder.raw(&header);
}

fn link_read(payload: &[u8]) -> Option<Link> {
    let attributes = payload.get(LINK_HEADER..)?;
    let number = |kind| wire::attribute(attributes, kind).and_then(|value| wire::u32_at(value, 0));
    Some(Link {
        index: wire::u32_at(payload, 4)?,
        name: wire::attribute(attributes, libc::IFLA_IFNAME).and_then(wire::text)?.to_owned(),
        mtu: number(libc::IFLA_MTU)?,
        mac: wire::attribute(attributes, libc::IFLA_ADDRESS).and_then(|value| value.try_into().ok()),
        controller: number(libc::IFLA_MASTER),
    })
}
