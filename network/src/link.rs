//! The wire between nodes that are namespaces of one machine: a bridge, a pair of links a node, and the
//! way out to what lies beyond the machine.
//!
//! What always holds: every call is idempotent, and [`tear_down`] finds by the bridge's name all that any
//! earlier process left.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::netlink::expression::End;
use crate::netlink::nft::{self, Hook, Point, Transaction};
use crate::netlink::route::{Connection, LinkChange, Mac, Route, Veth};
use crate::netlink::{self};
use crate::netns::{self, Netns};

/// The name of a node's link inside the node.
const NODE_LINK: &str = "eth0";
/// The name of the loopback link, whose index is 1 in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Ethernet's usual largest packet: nothing but this machine carries it.
const MTU: u32 = 1500;
const POSTROUTING: Hook = Hook { kind: "nat", point: Point::Postrouting, priority: 100 };

/// The wire of one cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machine's network namespace.
    pub netns: Netns,
    /// The name of the bridge; at most 15 bytes.
    pub bridge: String,
    /// The name of the nf_tables table.
    pub table: String,
    /// The addresses of the wire: the first is the machine's.
    pub range: Ipv4Net,
    /// The addresses of all pods: traffic to them keeps its source address.
    pub cluster_cidr: Ipv4Net,
}

impl Options {
    /// The machine's address on the wire.
    pub fn gateway(&self) -> Ipv4Addr {
        self.range.hosts().next().unwrap_or_else(|| self.range.network())
    }
}

/// Why the wire could not be laid or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a change.
    #[error("{what}")]
    Kernel {
        /// What was being done.
        what: &'static str,
        /// The reason.
        source: netlink::Error,
    },
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
}

fn kernel(what: &'static str) -> impl FnOnce(netlink::Error) -> Error {
    move |source| Error::Kernel { what, source }
}

/// The first of the `candidates` that nothing on this machine has a route to, and that overlaps none of `taken`.
///
/// # Errors
/// The routes cannot be read.
pub fn free_range(
    netns: &Netns,
    candidates: impl IntoIterator<Item = Ipv4Net>,
    taken: &[Ipv4Net],
) -> Result<Option<Ipv4Net>, Error> {
    let routed = netns.run(|| Connection::open().and_then(|mut connection| connection.networks()))?;
    let routed = routed.map_err(kernel("cannot read the machine's routes"))?;
    let overlap = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
    let free = |range: &Ipv4Net| !routed.iter().chain(taken).any(|net| overlap(net, range));
    Ok(candidates.into_iter().find(free))
}

/// Lays the machine's side: bridge, address, and masquerading of what leaves the machine.
///
/// # Errors
/// Missing privileges, or a kernel without bridges or nf_tables.
pub fn set_up(options: &Options) -> Result<(), Error> {
    let gateway = options.gateway();
    let links = || -> Result<(), netlink::Error> {
        let mut connection = Connection::open()?;
        // A bridge with another address is what was left of another range.
        if connection.link(&options.bridge)?.is_some_and(|bridge| bridge.mac != Some(mac(gateway))) {
            bridge_delete(&mut connection, &options.bridge)?;
        }
        if connection.link(&options.bridge)?.is_none() {
            connection.bridge_create(&options.bridge, mac(gateway), MTU)?;
        }
        let bridge = connection.link_expect(&options.bridge)?.index;
        connection.link_set(bridge, LinkChange { up: true, mtu: None })?;
        connection.address_add(bridge, Ipv4Net::new_assert(gateway, options.range.prefix_len()))
    };
    let rules = || -> Result<(), netlink::Error> {
        let mut transaction = Transaction::new(&options.table);
        transaction.table_replace();
        transaction.chain_base("postrouting", POSTROUTING);
        transaction.rule("postrouting", |r| {
            r.address(End::Source, options.range, true)
                .address(End::Destination, options.cluster_cidr, false)
                .interface_out(&options.bridge, false)
                .masquerade();
        });
        transaction.commit(&mut nft::open()?).map(drop)
    };
    let done = options.netns.run(|| links().and_then(|()| rules()))?;
    done.map_err(kernel("cannot lay the wire between nodes"))
}

/// Puts a node on the wire: its namespace gets a link with this address and its default route by the machine.
/// Addresses of the machine in `near` are reached without a detour, so that they are neighbours to the node.
///
/// # Errors
/// No such namespace, or the kernel's refusal. The call may be repeated.
pub fn join(options: &Options, node: &Netns, address: Ipv4Addr, near: &[Ipv4Addr]) -> Result<(), Error> {
    let file = node.open()?;
    let port = port_name(address);
    let inside = node.run(|| Connection::open().and_then(|mut node| node.link(NODE_LINK)))?;
    let inside = inside.map_err(kernel("cannot read the node's links"))?;
    let outside = || -> Result<(), netlink::Error> {
        let mut connection = Connection::open()?;
        if connection.link(&port)?.is_some() && inside.is_some() {
            return Ok(());
        }
        connection.link_delete(&port)?;
        let controller = connection.link_expect(&options.bridge)?.index;
        let peer_mac = mac(address);
        connection.port_create(Veth { name: &port, peer: NODE_LINK, peer_mac, mtu: MTU, controller }, &file)
    };
    options.netns.run(outside)?.map_err(kernel("cannot lay the node's wire"))?;
    let set_up = || -> Result<(), netlink::Error> {
        let mut connection = Connection::open()?;
        connection.link_set(LOOPBACK_INDEX, LinkChange { up: true, mtu: None })?;
        let link = connection.link_expect(NODE_LINK)?.index;
        connection.link_set(link, LinkChange { up: true, mtu: None })?;
        connection.address_add(link, Ipv4Net::new_assert(address, options.range.prefix_len()))?;
        for machine in near.iter().filter(|near| !options.range.contains(*near)) {
            let destination = Ipv4Net::from(*machine);
            connection.route_set(Route { destination, gateway: None, link, source: None })?;
        }
        let gateway = Some(options.gateway());
        connection.route_set(Route { destination: Ipv4Net::default(), gateway, link, source: None })
    };
    node.run(set_up)?.map_err(kernel("cannot set up the node's link"))
}

/// Takes a node off the wire.
///
/// # Errors
/// The kernel's refusal. The call may be repeated.
pub fn leave(options: &Options, address: Ipv4Addr) -> Result<(), Error> {
    let port = port_name(address);
    let done =
        options.netns.run(|| Connection::open().and_then(|mut connection| connection.link_delete(&port)))?;
    done.map_err(kernel("cannot remove the node's wire"))
}

/// Removes the machine's side with all that hangs on it.
///
/// # Errors
/// The kernel's refusal. The call may be repeated.
pub fn tear_down(netns: &Netns, bridge: &str, table: &str) -> Result<(), Error> {
    let links = || Connection::open().and_then(|mut connection| bridge_delete(&mut connection, bridge));
    let rules = || -> Result<(), netlink::Error> {
        let mut transaction = Transaction::new(table);
        transaction.table_delete();
        transaction.commit(&mut nft::open()?).map(drop)
    };
    let done = netns.run(|| {
        let (links, rules) = (links(), rules());
        links.and(rules)
    })?;
    done.map_err(kernel("cannot remove the wire between nodes"))
}

/// Deletes a bridge with its ports.
pub(crate) fn bridge_delete(connection: &mut Connection, name: &str) -> Result<(), netlink::Error> {
    let Some(bridge) = connection.link(name)? else { return Ok(()) };
    for port in connection.links()?.iter().filter(|link| link.controller == Some(bridge.index)) {
        connection.link_delete(&port.name)?;
    }
    connection.link_delete(name)
}

/// The name of the machine's end of a node's link: ranges of clusters do not overlap, so it is unique.
pub fn port_name(address: Ipv4Addr) -> String {
    format!("dcl{:08x}", u32::from(address))
}

/// A locally administered hardware address that an address has for ever.
fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x59, a, b, c, d]
}
