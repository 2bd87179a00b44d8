//! The pod network of one node: a bridge, and for each pod sandbox an address and a pair of links.
//!
//! A pod has its address as a /32 and reaches everything through the gateway, its neighbours on the
//! bridge too. So connection tracking sees both directions of every packet, which the service proxy and
//! network policies need, and a pod of another node is no special case.
//!
//! What always holds: every call is idempotent, and what a crash left half-done is completed or undone by
//! the same call again, or by [`PodNetwork::reconcile`]. Nothing is changed outside of the bridge, its
//! ports, one nf_tables table, the ways to other nodes ([`mesh`]) and the setting `net.ipv4.ip_forward`;
//! [`PodNetwork::remove`] undoes all.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use self::ipam::{Allocation, Ipam, gateway};
use crate::link::bridge_delete;
use crate::netlink::route::{Connection, LinkChange, Mac, Route, Veth};
use crate::netlink::{self, conntrack, nft};
use crate::netns::{self, Netns};
use crate::protocol::Protocol;
use crate::sysctl;

pub(crate) mod ipam;
pub mod mesh;
mod rules;

pub use ipam::Error as IpamError;

/// The name of a pod's link inside the pod.
const POD_LINK: &str = "eth0";
/// The name of the loopback link, whose index is 1 in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Ethernet's usual largest packet, where no default route says better.
const MTU: u32 = 1500;
/// Forwarding, without which no packet leaves a pod.
const IP_FORWARD: &str = "net/ipv4/ip_forward";

/// How the pod network of a node is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's network namespace.
    pub netns: Netns,
    /// The name of the bridge; at most 15 bytes.
    pub bridge: String,
    /// The name of the nf_tables table.
    pub table: String,
    /// The node's share of the pod addresses: Node.spec.podCIDR.
    pub pod_cidr: Ipv4Net,
    /// The addresses of all pods: traffic to them keeps its source address.
    pub cluster_cidr: Ipv4Net,
    /// The addresses of Services. The node gets a route for them, so that it reaches Services without a
    /// default route too.
    pub service_cidr: Option<Ipv4Net>,
    /// The largest packet, in bytes; by default that of the link of the default route.
    pub mtu: Option<u32>,
    /// The address under which other nodes know this one: the source of tunnelled packets.
    pub node_ip: Option<Ipv4Addr>,
    /// Where allocations are kept.
    pub data_dir: PathBuf,
}

impl Options {
    /// The defaults of a cluster, for a node with these pod addresses.
    pub fn new(pod_cidr: Ipv4Net, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            netns: Netns::Own,
            bridge: "dcp0".into(),
            table: "decapod-pods".into(),
            pod_cidr,
            cluster_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            service_cidr: Some(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)),
            mtu: None,
            node_ip: None,
            data_dir: data_dir.into(),
        }
    }

    fn allocations(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    fn settings(&self) -> PathBuf {
        self.data_dir.join("sysctl.json")
    }
}

/// A port of the node that leads to a pod: `hostPort` of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// The node's address; all of them if none.
    pub host_ip: Option<Ipv4Addr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// Why the pod network could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address for the pod, or no record of it.
    #[error(transparent)]
    Ipam(#[from] IpamError),
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
    /// A kernel setting could not be changed.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// A file of ours could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The work was dropped because the process ends.
    #[error("the process is shutting down")]
    Shutdown,
}

/// The pod network of a node. Clones are the same network.
#[derive(Clone, Debug)]
pub struct PodNetwork(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    /// The largest packet of the node's links.
    mtu: u32,
    /// The largest packet of pods that are attached from now on: less where they send through a tunnel.
    pod_mtu: AtomicU32,
    ipam: Mutex<Ipam>,
}

impl PodNetwork {
    /// Sets the node's side up: bridge, gateway address, routes, forwarding, masquerading. Takes over
    /// what an earlier process left. Blocks for a few milliseconds.
    ///
    /// # Errors
    /// Missing privileges, or a kernel without bridges or nf_tables.
    pub fn new(options: Options) -> Result<Self, Error> {
        let ipam = Ipam::open(&options.allocations(), options.pod_cidr)?;
        let mtu = options.netns.run(|| node_set_up(&options))??;
        let network =
            Self(Arc::new(Inner { options, mtu, pod_mtu: AtomicU32::new(mtu), ipam: Mutex::new(ipam) }));
        network.0.rules_apply()?;
        Ok(network)
    }

    /// Gives a sandbox its addresses, the first one being the pod's IP, and opens its host ports.
    ///
    /// # Errors
    /// No free address, no such namespace, or the kernel's refusal. The call may be repeated.
    pub async fn attach(
        &self,
        sandbox_id: &str,
        netns: &Path,
        host_ports: &[HostPort],
    ) -> Result<Vec<IpAddr>, Error> {
        let (sandbox_id, host_ports) = (sandbox_id.to_owned(), host_ports.to_vec());
        let netns = Netns::Path(netns.to_owned());
        self.blocking(move |inner| inner.attach(&sandbox_id, &netns, &host_ports)).await
    }

    /// Takes a sandbox's addresses, links and host ports back. Its namespace may be gone already.
    ///
    /// # Errors
    /// The kernel's refusal. The call may be repeated.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), Error> {
        let sandbox_id = sandbox_id.to_owned();
        self.blocking(move |inner| inner.detach(&sandbox_id)).await
    }

    /// Frees what belongs to sandboxes that are not among the `live`.
    ///
    /// # Errors
    /// The kernel's refusal. The call may be repeated.
    pub async fn reconcile(&self, live: BTreeSet<String>) -> Result<(), Error> {
        self.blocking(move |inner| inner.reconcile(&live)).await
    }

    /// Whether pods can be attached now: `Err` says why not.
    ///
    /// # Errors
    /// The bridge is gone.
    pub async fn ready(&self) -> Result<(), Error> {
        let found = self.blocking(|inner| {
            inner.in_node(|connection| connection.link_expect(&inner.options.bridge)).map(drop)
        });
        found.await
    }

    /// The address of a sandbox, if it has one.
    pub fn address(&self, sandbox_id: &str) -> Option<IpAddr> {
        self.0.ipam().find(sandbox_id).map(IpAddr::V4)
    }

    /// Removes the pod network of a node, whether or not a process serves it: links, bridge, table,
    /// allocations; and restores the settings that it changed.
    ///
    /// # Errors
    /// The first refusal; all else is removed all the same.
    pub fn remove(options: &Options) -> Result<(), Error> {
        let removed = options.netns.run(|| node_tear_down(options))?;
        let restored = options.netns.run(|| sysctl::restore(&options.settings()))?;
        let path = options.allocations();
        let freed = match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::Remove { path, source: error })
            }
            _ => Ok(()),
        };
        removed?;
        restored?;
        freed
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::Shutdown),
        }
    }
}

impl Inner {
    fn attach(&self, sandbox_id: &str, netns: &Netns, host_ports: &[HostPort]) -> Result<Vec<IpAddr>, Error> {
        let pod = netns.open()?;
        let address = self.ipam().allocate(sandbox_id, host_ports)?;
        let name = link_name(address);
        let veth = |controller| Veth {
            name: &name,
            peer: POD_LINK,
            peer_mac: mac(address),
            mtu: self.pod_mtu.load(Ordering::Relaxed),
            controller,
        };
        self.in_node(|connection| {
            connection.link_delete(&name)?;
            let bridge = connection.link_expect(&self.options.bridge)?;
            connection.port_create(veth(bridge.index), &pod)
        })?;
        let gateway = gateway(self.options.pod_cidr);
        netns.run(|| pod_set_up(address, gateway))??;
        if !host_ports.is_empty() {
            self.rules_apply()?;
            self.flows_forget(address, host_ports)?;
        }
        Ok(vec![IpAddr::V4(address)])
    }

    fn detach(&self, sandbox_id: &str) -> Result<(), Error> {
        let Some(address) = self.ipam().find(sandbox_id) else { return Ok(()) };
        // Links first: an address must not be given again while they exist.
        self.in_node(|connection| connection.link_delete(&link_name(address)))?;
        let freed = self.ipam().free(sandbox_id)?;
        if let Some((_, Allocation { host_ports, .. })) = freed
            && !host_ports.is_empty()
        {
            self.rules_apply()?;
            self.flows_forget(address, &host_ports)?;
        }
        Ok(())
    }

    fn reconcile(&self, live: &BTreeSet<String>) -> Result<(), Error> {
        let ids: Vec<_> =
            self.ipam().allocations().values().map(|allocation| allocation.sandbox_id.clone()).collect();
        for sandbox_id in ids.iter().filter(|id| !live.contains(*id)) {
            tracing::info!(sandbox_id, "freeing the network of a sandbox that is gone");
            self.detach(sandbox_id)?;
        }
        Ok(())
    }

    /// UDP flows that were translated otherwise would go on as they were.
    fn flows_forget(&self, address: Ipv4Addr, host_ports: &[HostPort]) -> Result<(), Error> {
        let udp = Protocol::Udp;
        let ports: BTreeSet<_> =
            host_ports.iter().filter(|port| port.protocol == udp).map(|port| port.host_port).collect();
        if ports.is_empty() {
            return Ok(());
        }
        let stale = |flow: &conntrack::Flow| {
            flow.original.protocol == udp.number()
                && (ports.contains(&flow.original.destination_port) || flow.reply.source == address)
        };
        let forgotten = self.options.netns.run(|| conntrack::forget(stale))?;
        forgotten.map(drop).map_err(|source| Error::Kernel { what: "cannot forget flows", source })
    }

    fn rules_apply(&self) -> Result<(), Error> {
        // Held until it is applied, so that an older state never replaces a newer one.
        let ipam = self.ipam();
        let transaction = rules::table(&self.options, ipam.allocations());
        let applied = self.options.netns.run(|| transaction.commit(&mut nft::open()?))?;
        applied
            .map(drop)
            .map_err(|source| Error::Kernel { what: "cannot change the pod network's rules", source })
    }

    fn in_node<T: Send>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, netlink::Error> + Send,
    ) -> Result<T, Error> {
        let done =
            self.options.netns.run(|| Connection::open().and_then(|mut connection| work(&mut connection)))?;
        done.map_err(|source| Error::Kernel { what: "cannot change the node's links", source })
    }

    fn ipam(&self) -> MutexGuard<'_, Ipam> {
        // The allocations change only after their files did: they are whole even if the lock is poisoned.
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In the node's namespace: bridge, addresses, routes, settings. Returns the largest packet of pods.
fn node_set_up(options: &Options) -> Result<u32, Error> {
    let mtu = node_links_set_up(options)
        .map_err(|source| Error::Kernel { what: "cannot set up the pod network's bridge", source })?;
    sysctl::change(&options.settings(), IP_FORWARD, "1")?;
    // So that 127.0.0.1:nodePort may leave for a pod, as users of local clusters expect. The setting
    // goes with the bridge.
    sysctl::set(&format!("net/ipv4/conf/{}/route_localnet", options.bridge), "1")?;
    Ok(mtu)
}

fn node_links_set_up(options: &Options) -> Result<u32, netlink::Error> {
    let mut connection = Connection::open()?;
    let mtu = match options.mtu {
        Some(mtu) => mtu,
        None => mtu_detect(&mut connection)?,
    };
    let address = gateway(options.pod_cidr);
    // A bridge with another gateway is what a node with other pod addresses left behind.
    let known = connection.link(&options.bridge)?;
    if known.as_ref().is_some_and(|bridge| bridge.mac != Some(mac(address))) {
        connection.link_delete(&options.bridge)?;
    }
    if known.is_none_or(|bridge| bridge.mac != Some(mac(address))) {
        connection.bridge_create(&options.bridge, mac(address), mtu)?;
    }
    connection.link_set(LOOPBACK_INDEX, LinkChange { up: true, mtu: None })?;
    let bridge = connection.link_expect(&options.bridge)?.index;
    connection.link_set(bridge, LinkChange { up: true, mtu: Some(mtu) })?;
    let own = Ipv4Net::new_assert(address, options.pod_cidr.prefix_len());
    connection.address_add(bridge, own)?;
    if let Some(destination) = options.service_cidr {
        connection.route_set(Route { destination, gateway: None, link: bridge, source: Some(address) })?;
    }
    Ok(mtu)
}

fn mtu_detect(connection: &mut Connection) -> Result<u32, netlink::Error> {
    let Some(index) = connection.default_link()? else { return Ok(MTU) };
    let link = connection.links()?.into_iter().find(|link| link.index == index);
    Ok(link.map_or(MTU, |link| link.mtu))
}

/// In the pod's namespace: addresses and routes.
fn pod_set_up(address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), Error> {
    let links = || -> Result<(), netlink::Error> {
        let mut connection = Connection::open()?;
        connection.link_set(LOOPBACK_INDEX, LinkChange { up: true, mtu: None })?;
        let link = connection.link_expect(POD_LINK)?.index;
        connection.link_set(link, LinkChange { up: true, mtu: None })?;
        connection.address_add(link, Ipv4Net::from(address))?;
        let route = |destination, gateway| Route { destination, gateway, link, source: None };
        connection.route_set(route(Ipv4Net::from(gateway), None))?;
        connection.route_set(route(Ipv4Net::default(), Some(gateway)))
    };
    links().map_err(|source| Error::Kernel { what: "cannot set up the pod's link", source })?;
    // A neighbour could divert a pod's traffic by telling of a shorter way.
    for scope in ["all", POD_LINK] {
        sysctl::set(&format!("net/ipv4/conf/{scope}/accept_redirects"), "0")?;
    }
    Ok(())
}

/// In the node's namespace: removes all links and the table.
fn node_tear_down(options: &Options) -> Result<(), Error> {
    let links = || -> Result<(), netlink::Error> {
        let mut connection = Connection::open()?;
        mesh::tear_down(&mut connection, options)?;
        bridge_delete(&mut connection, &options.bridge)
    };
    let rules = || -> Result<(), netlink::Error> {
        let mut transaction = nft::Transaction::new(&options.table);
        transaction.table_delete();
        transaction.commit(&mut nft::open()?).map(drop)
    };
    let (links, rules) = (links(), rules());
    links.and(rules).map_err(|source| Error::Kernel { what: "cannot remove the pod network", source })
}

/// The name of the node's end of a pod's links: an address is given to one pod at a time, so the name is
/// unique.
fn link_name(address: Ipv4Addr) -> String {
    format!("dcp{:08x}", u32::from(address))
}

/// A locally administered hardware address that an address has for ever: nobody's cache goes stale when
/// the address is given to another pod.
fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}
