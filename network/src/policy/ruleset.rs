//! The desired rules as plain data, and how they change.
//!
//! A pod that policies isolate has a chain for each direction; pods to which the same is allowed share one,
//! since a chain's name is made of its rules. Pods as peers are members of sets, so that a chain is as long as
//! its policies and no longer with more pods.
//!
//! **Invariant**: applying the differences one by one equals building the last state from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::OrdSet;
use imbl::ordset::DiffItem;
use ipnet::Ipv4Net;

use crate::key;
use crate::protocol::Protocol;

/// What is allowed: the packet returns from the chain. What no rule allows is dropped at the chain's end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) peer: PeerMatch,
    pub(super) port: PortMatch,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PeerMatch {
    /// Anybody.
    Any,
    /// An address in the range and in none of the others.
    Block(Ipv4Net, Vec<Ipv4Net>),
    /// A member of the set of that name.
    Members(Arc<str>),
    /// A member of the set of that name, at one of its ports.
    MemberPorts(Arc<str>),
}

/// Which port it is that is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PortMatch {
    /// Any.
    Any,
    /// Any of the protocol.
    Protocol(Protocol),
    /// From the first to the last.
    Range(Protocol, u16, u16),
}

/// Which way traffic goes, seen from the pod that is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// A member of a set of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Member {
    /// A pod's address.
    Address(Ipv4Addr),
    /// A port that it calls by the set's name.
    Port(Ipv4Addr, Protocol, u16),
}

/// The rules of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    /// Chains by name.
    pub(super) chains: BTreeMap<String, Chain>,
    /// Which chain decides for a pod.
    pub(super) pods: BTreeMap<(Direction, Ipv4Addr), String>,
    /// The members of sets by name.
    pub(super) members: OrdSet<(Arc<str>, Member)>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Chain {
    pub(super) direction: Direction,
    pub(super) rules: BTreeSet<Rule>,
}

impl Chain {
    /// Its name, which says what its rules are: a chain never changes.
    pub(super) fn name(&self) -> String {
        let way = if self.direction == Direction::Ingress { "in" } else { "out" };
        format!("{way}/{:016x}", u64::from_be_bytes(key::chain_id(&format!("{:?}", self.rules))))
    }
}

/// The difference between two rule sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) chains_new: BTreeMap<String, Chain>,
    pub(super) chains_gone: BTreeSet<String>,
    /// Pods whose chain is another than before: from, to.
    pub(super) pods: BTreeMap<(Direction, Ipv4Addr), (Option<String>, Option<String>)>,
    pub(super) members_new: BTreeSet<(Arc<str>, Member)>,
    pub(super) members_gone: BTreeSet<(Arc<str>, Member)>,
    /// Pods that are isolated now and were not, and the other way round: a pod may always talk to itself.
    pub(super) isolated_new: BTreeSet<Ipv4Addr>,
    pub(super) isolated_gone: BTreeSet<Ipv4Addr>,
}

impl Ruleset {
    /// Whether nobody is isolated.
    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// How to get from `before` to this.
    pub(super) fn since(&self, before: &Self) -> Delta {
        let (isolated, were) = (self.isolated(), before.isolated());
        let pods: BTreeSet<_> = self.pods.keys().chain(before.pods.keys()).copied().collect();
        let changed = pods.into_iter().filter_map(|pod| {
            let (from, to) = (before.pods.get(&pod), self.pods.get(&pod));
            (from != to).then(|| (pod, (from.cloned(), to.cloned())))
        });
        let (mut members_new, mut members_gone) = (BTreeSet::new(), BTreeSet::new());
        for item in before.members.diff(&self.members) {
            match item {
                DiffItem::Add(member) => _ = members_new.insert(member.clone()),
                DiffItem::Remove(member) => _ = members_gone.insert(member.clone()),
            }
        }
        let new = self.chains.iter().filter(|(name, _)| !before.chains.contains_key(*name));
        Delta {
            chains_new: new.map(|(name, chain)| (name.clone(), chain.clone())).collect(),
            chains_gone: before.chains.keys().filter(|n| !self.chains.contains_key(*n)).cloned().collect(),
            pods: changed.collect(),
            members_new,
            members_gone,
            isolated_new: isolated.difference(&were).copied().collect(),
            isolated_gone: were.difference(&isolated).copied().collect(),
        }
    }

    fn isolated(&self) -> BTreeSet<Ipv4Addr> {
        self.pods.keys().map(|(_, address)| *address).collect()
    }
}
