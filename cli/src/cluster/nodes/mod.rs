//! Further nodes of a cluster on this machine: each a network namespace on one bridge, with an agent of
//! its own that joined by a bootstrap token, its own data folder, host name and cgroups.
//!
//! **Invariant**: the roster is written before anything of a node is made, and the node's line goes last:
//! whatever crashed, the next `up`, `decapod node` or `down` finds all that there is.

mod agent;
mod leave;
mod verb;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use decapod_network::{Netns, link};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub(super) use agent::{Started, start};
pub(super) use leave::{end, remove};
pub(crate) use verb::NodeVerb;

use super::settings::{Place, Settings, write_whole};
use crate::failure::{Failure, chain};

/// Where `ip netns` looks for namespaces, too.
const NAMESPACES: &str = "/run/netns";
/// The first node is the machine, and has the first address.
const FIRST: u32 = 2;
/// How many nodes a machine is asked for at most; each is a process of some 30 MiB.
const MOST: u32 = 200;

/// Which further nodes a cluster has on this machine, and on which addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Roster {
    /// The addresses of the wire between them.
    pub(super) range: Ipv4Net,
    /// Names, and the host's number in the range.
    pub(super) nodes: BTreeMap<String, u32>,
}

/// A further node.
#[derive(Clone, Debug)]
pub(super) struct LocalNode {
    pub(super) name: String,
    /// Where its data and its runtime state are.
    pub(super) place: Place,
    pub(super) address: Ipv4Addr,
}

impl LocalNode {
    /// Where its network namespace is mounted.
    pub(super) fn namespace(&self) -> PathBuf {
        PathBuf::from(NAMESPACES).join(&self.name)
    }

    /// Its network namespace.
    pub(super) fn netns(&self) -> Netns {
        Netns::Path(self.namespace())
    }

    /// What its agent prints.
    pub(super) fn log(&self) -> PathBuf {
        self.place.data().join("agent.log")
    }
}

fn file(place: &Place) -> PathBuf {
    place.data().join("nodes.json")
}

impl Roster {
    /// The roster of a cluster; `None` if it never had further nodes.
    pub(super) fn load(place: &Place) -> Result<Option<Self>, Failure> {
        match std::fs::read(file(place)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| Failure::new(format!("{} is damaged: {e}", file(place).display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::new(format!("{} cannot be read: {e}", file(place).display()))),
        }
    }

    /// The roster, or an empty one on addresses that nothing uses.
    pub(super) fn load_or_make(place: &Place, settings: &Settings) -> Result<Self, Failure> {
        if let Some(roster) = Self::load(place)? {
            return Ok(roster);
        }
        let taken = [settings.pod_cidr, settings.service_cidr];
        let free = link::free_range(&Netns::Own, candidates(place.name()), &taken);
        let free = free.map_err(|e| Failure::new(chain(&e)))?;
        let range = free.ok_or_else(|| {
            Failure::new("no range is free for the wire between nodes: this machine has routes to all of 172.30.0.0/16")
        })?;
        Ok(Self { range, nodes: BTreeMap::new() })
    }

    pub(super) fn save(&self, place: &Place) -> Result<(), Failure> {
        write_whole(&file(place), serde_json::to_string_pretty(self)?.as_bytes(), 0o644)
    }

    /// All further nodes.
    pub(super) fn nodes(&self, place: &Place) -> Vec<LocalNode> {
        let node = |(name, number): (&String, &u32)| LocalNode {
            name: name.clone(),
            place: place.of_node(name),
            address: Ipv4Addr::from(u32::from(self.range.network()) + number),
        };
        self.nodes.iter().map(node).collect()
    }

    /// Enters a node by that name, or the next one of the cluster's.
    pub(super) fn add(&mut self, place: &Place, name: Option<&str>) -> Result<String, Failure> {
        let used: Vec<u32> = self.nodes.values().copied().collect();
        let number = (FIRST..=MOST).find(|number| !used.contains(number));
        let number =
            number.ok_or_else(|| Failure::new(format!("a machine has {MOST} nodes of a cluster at most")))?;
        let name = name.map_or_else(|| format!("{}-{number}", place.name()), str::to_owned);
        if let Some(why) = decapod_api::names::dns_label(&name).first() {
            return Err(Failure::new(format!("the node cannot be called \"{name}\": {why}")));
        }
        if self.nodes.insert(name.clone(), number).is_some() {
            return Err(Failure::new(format!("there is a node \"{name}\" already")));
        }
        Ok(name)
    }

    /// Enters nodes until the cluster has so many, the machine's own among them. Returns those that are too
    /// many, the youngest first; they stay on the roster until they are gone.
    pub(super) fn resize(&mut self, place: &Place, wanted: u32) -> Result<Vec<String>, Failure> {
        if wanted == 0 || wanted > MOST {
            return Err(Failure::new(format!("--nodes {wanted}: expected 1 to {MOST}")));
        }
        let wanted = wanted as usize - 1;
        while self.nodes.len() < wanted {
            self.add(place, None)?;
        }
        let mut by_number: Vec<(&u32, &String)> =
            self.nodes.iter().map(|(name, number)| (number, name)).collect();
        by_number.sort();
        Ok(by_number.split_off(wanted).into_iter().rev().map(|(_, name)| name.clone()).collect())
    }
}

/// Where a wire may be; each cluster begins elsewhere, so that two that start at once seldom meet.
fn candidates(name: &str) -> impl Iterator<Item = Ipv4Net> {
    let first = name.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    (0..=u8::MAX)
        .map(move |step| Ipv4Net::new_assert(Ipv4Addr::new(172, 30, first.wrapping_add(step), 0), 24))
}

/// The wire of a cluster.
pub(super) fn wire(place: &Place, settings: &Settings, roster: &Roster) -> link::Options {
    link::Options {
        netns: Netns::Own,
        bridge: place.wire(),
        table: place.wire_table(),
        range: roster.range,
        cluster_cidr: settings.pod_cidr,
    }
}

/// Where nodes reach the API server: addresses of this machine.
fn near(settings: &Settings) -> Vec<Ipv4Addr> {
    let mut addresses = vec![settings.address(), settings.listen.ip()];
    addresses.retain(|address| !address.is_unspecified());
    addresses.sort();
    addresses.dedup();
    addresses
        .into_iter()
        .filter_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::settings::Which;

    #[test]
    fn a_roster_grows_and_shrinks_at_its_end() {
        let place = Which { name: "c".into(), data_dir: "/x".into() }.place().unwrap();
        let mut roster = Roster { range: "172.30.7.0/24".parse().unwrap(), nodes: BTreeMap::new() };
        assert_eq!(roster.resize(&place, 3).unwrap(), Vec::<String>::new());
        let nodes = roster.nodes(&place);
        let seen: Vec<_> = nodes.iter().map(|n| (n.name.as_str(), n.address.to_string())).collect();
        assert_eq!(seen, [("c-2", "172.30.7.2".to_owned()), ("c-3", "172.30.7.3".to_owned())]);
        assert_eq!(nodes[0].place.data(), std::path::Path::new("/x/nodes/c-2"));
        assert_eq!(roster.add(&place, Some("extra")).unwrap(), "extra");
        assert!(roster.add(&place, Some("extra")).unwrap_err().to_string().contains("already"));
        assert_eq!(roster.resize(&place, 2).unwrap(), ["extra", "c-3"]);
        roster.nodes.remove("c-2");
        assert_eq!(roster.add(&place, None).unwrap(), "c-2");
        assert!(roster.resize(&place, 0).is_err());
    }

    #[test]
    fn wires_of_clusters_begin_at_different_ranges() {
        let first = |name: &str| candidates(name).next().unwrap();
        assert_ne!(first("decapod"), first("other"));
        assert_eq!(candidates("x").count(), 256);
    }
}
