//! The desired rule set as plain data, and how it changes.
//!
//! A Service contributes chains with their endpoints, frontends (what leads to a chain), affinity sets
//! and hairpins. Chains and affinity sets belong to one Service; a frontend may be claimed by several (two Services with one
//! external IP), and the first by name has it; a hairpin is shared.
//!
//! **Invariant**: [`Ruleset::service_set`] returns exactly the difference between the rule set before and
//! after, so that applying the changes one by one equals building the last state from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use decapod_client::ObjectKey;
use ipnet::Ipv4Net;

use crate::protocol::Protocol;

/// Where a connection goes in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Target {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// What a client addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Frontend {
    /// An address of the Service.
    Ip(Ipv4Addr, Protocol, u16),
    /// A port on every address of the node.
    Port(Protocol, u16),
}

/// A chain, and a number among its endpoints.
pub(crate) type Slot = (String, u32);

/// One rule of a chain. A rule that does not end the packet's way is followed by the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Answers must come back through this node.
    Masquerade,
    /// The same, for all but these sources.
    MasqueradeUnlessFrom(Ipv4Net),
    /// The chain decides for packets from these sources.
    GotoFrom(Ipv4Net, String),
    /// The chain decides for packets from this node itself.
    GotoFromLocal(String),
    /// The chain decides for clients that the set remembers.
    GotoRemembered { set: String, chain: String },
    /// The set remembers the client.
    Remember(String),
    /// The endpoint takes the connection.
    Translate(Target),
    /// One of the chain's so many endpoints, at random.
    Balance(u32),
    /// The same, where endpoints are chains.
    BalanceChains(u32),
    /// Refuses at once: nobody serves.
    Reject,
    /// Drops silently: others serve, not this node.
    Drop,
}

/// What stands at a number of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The endpoint itself.
    Target(Target),
    /// A chain that leads to it and remembers the client.
    Chain(String),
}

/// What one Service needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceRules {
    /// Chains by name.
    pub(crate) chains: BTreeMap<String, Vec<Rule>>,
    /// The endpoints among which chains balance, numbered from zero.
    pub(crate) endpoints: BTreeMap<Slot, Endpoint>,
    /// What leads to which chain.
    pub(crate) frontends: BTreeMap<Frontend, String>,
    /// Sets of clients that endpoints serve, by name, with the seconds that an idle client is remembered.
    pub(crate) affinities: BTreeMap<String, u32>,
    /// Endpoints of this node: a connection from one to itself needs another source address.
    pub(crate) hairpins: BTreeSet<Ipv4Addr>,
    /// Where UDP flows to a frontend may go: any other flow is stale.
    pub(crate) flows: BTreeMap<Frontend, BTreeSet<Target>>,
    /// The port at which load balancers ask for endpoints on this node, and how many there are.
    pub(crate) health: Option<(u16, usize)>,
}

/// The rule set of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ruleset {
    services: BTreeMap<ObjectKey, ServiceRules>,
    claims: BTreeMap<Frontend, BTreeMap<ObjectKey, String>>,
    hairpins: BTreeMap<Ipv4Addr, usize>,
}

/// The difference between two rule sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Chains that are new, with their rules.
    pub(crate) chains_new: BTreeMap<String, Vec<Rule>>,
    /// Chains whose rules changed, with the new ones.
    pub(crate) chains_changed: BTreeMap<String, Vec<Rule>>,
    /// Chains that are gone.
    pub(crate) chains_gone: BTreeSet<String>,
    /// Slots whose endpoint is another than before: from, to.
    pub(crate) endpoints: BTreeMap<Slot, (Option<Endpoint>, Option<Endpoint>)>,
    /// Affinity sets that are new, with their timeout in seconds.
    pub(crate) affinities_new: BTreeMap<String, u32>,
    /// Affinity sets that are gone.
    pub(crate) affinities_gone: BTreeSet<String>,
    /// Frontends that lead to another chain than before: from, to.
    pub(crate) frontends: BTreeMap<Frontend, (Option<String>, Option<String>)>,
    /// Hairpins that are new.
    pub(crate) hairpins_new: BTreeSet<Ipv4Addr>,
    /// Hairpins that are gone.
    pub(crate) hairpins_gone: BTreeSet<Ipv4Addr>,
    /// UDP frontends of which flows may have become stale.
    pub(crate) flows: BTreeSet<Frontend>,
}

impl Ruleset {
    /// Which Services are asked after at which port, and how many endpoints of theirs are on this node.
    pub(crate) fn health(&self) -> BTreeMap<u16, (ObjectKey, usize)> {
        let services = self.services.iter();
        services.filter_map(|(key, rules)| rules.health.map(|(port, n)| (port, (key.clone(), n)))).collect()
    }

    /// Puts what a Service needs in place of what it needed; adds the difference to `delta`.
    ///
    /// A delta may gather the changes of several Services, each of which is set at most once.
    pub(crate) fn service_set(&mut self, key: &ObjectKey, new: ServiceRules, delta: &mut Delta) {
        let old = self.services.remove(key).unwrap_or_default();
        if old == new {
            if old != ServiceRules::default() {
                self.services.insert(key.clone(), old);
            }
            return;
        }
        delta.chains(&old.chains, &new.chains);
        delta.affinities(&old.affinities, &new.affinities);
        delta.endpoints(&old.endpoints, &new.endpoints);
        let changed: BTreeSet<Frontend> = old.frontends.keys().chain(new.frontends.keys()).copied().collect();
        for frontend in changed {
            self.claim(key, frontend, new.frontends.get(&frontend), delta);
        }
        for address in new.hairpins.difference(&old.hairpins) {
            self.hairpin_take(*address, delta);
        }
        for address in old.hairpins.difference(&new.hairpins) {
            self.hairpin_release(*address, delta);
        }
        let flows = old.flows.keys().chain(new.flows.keys());
        delta.flows.extend(flows.filter(|f| old.flows.get(f) != new.flows.get(f)));
        if new != ServiceRules::default() {
            self.services.insert(key.clone(), new);
        }
    }

    /// The difference from nothing to this rule set.
    pub(crate) fn whole(&self) -> Delta {
        let mut delta = Delta::default();
        for rules in self.services.values() {
            delta.chains(&BTreeMap::new(), &rules.chains);
            delta.affinities(&BTreeMap::new(), &rules.affinities);
            delta.endpoints(&BTreeMap::new(), &rules.endpoints);
            delta.flows.extend(rules.flows.keys());
        }
        for (frontend, claims) in &self.claims {
            delta.frontends.insert(*frontend, (None, winner(claims)));
        }
        delta.hairpins_new.extend(self.hairpins.keys());
        delta
    }

    /// Where UDP flows to a frontend may go; nowhere if no Service has it.
    pub(crate) fn flow_targets(&self, frontend: &Frontend) -> Option<&BTreeSet<Target>> {
        let (key, _) = self.claims.get(frontend)?.first_key_value()?;
        self.services.get(key)?.flows.get(frontend)
    }

    fn claim(&mut self, key: &ObjectKey, frontend: Frontend, chain: Option<&String>, delta: &mut Delta) {
        let claims = self.claims.entry(frontend).or_default();
        let before = winner(claims);
        match chain {
            Some(chain) => claims.insert(key.clone(), chain.clone()),
            None => claims.remove(key),
        };
        let after = winner(claims);
        if claims.is_empty() {
            self.claims.remove(&frontend);
        }
        delta.frontend(frontend, before, after);
    }

    fn hairpin_take(&mut self, address: Ipv4Addr, delta: &mut Delta) {
        let count = self.hairpins.entry(address).or_default();
        *count += 1;
        if *count == 1 && !delta.hairpins_gone.remove(&address) {
            delta.hairpins_new.insert(address);
        }
    }

    fn hairpin_release(&mut self, address: Ipv4Addr, delta: &mut Delta) {
        let Some(count) = self.hairpins.get_mut(&address) else { return };
        *count -= 1;
        if *count == 0 {
            self.hairpins.remove(&address);
            if !delta.hairpins_new.remove(&address) {
                delta.hairpins_gone.insert(address);
            }
        }
    }
}

impl Delta {
    /// Whether nothing differs in the kernel.
    pub(crate) fn is_empty(&self) -> bool {
        let chains =
            [self.chains_new.is_empty(), self.chains_changed.is_empty(), self.chains_gone.is_empty()];
        let maps =
            [self.endpoints.is_empty(), self.affinities_new.is_empty(), self.affinities_gone.is_empty()];
        let elements =
            [self.frontends.is_empty(), self.hairpins_new.is_empty(), self.hairpins_gone.is_empty()];
        [&chains[..], &maps, &elements].concat().into_iter().all(|empty| empty)
    }

    fn chains(&mut self, old: &BTreeMap<String, Vec<Rule>>, new: &BTreeMap<String, Vec<Rule>>) {
        for (name, rules) in new {
            match old.get(name) {
                None => _ = self.chains_new.insert(name.clone(), rules.clone()),
                Some(before) if before != rules => {
                    _ = self.chains_changed.insert(name.clone(), rules.clone())
                }
                Some(_) => {}
            }
        }
        self.chains_gone.extend(old.keys().filter(|name| !new.contains_key(*name)).cloned());
    }

    fn affinities(&mut self, old: &BTreeMap<String, u32>, new: &BTreeMap<String, u32>) {
        let added = new.iter().filter(|(name, _)| !old.contains_key(*name));
        self.affinities_new.extend(added.map(|(name, seconds)| (name.clone(), *seconds)));
        self.affinities_gone.extend(old.keys().filter(|name| !new.contains_key(*name)).cloned());
    }

    fn endpoints(&mut self, old: &BTreeMap<Slot, Endpoint>, new: &BTreeMap<Slot, Endpoint>) {
        let slots: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        for slot in slots {
            let (from, to) = (old.get(slot), new.get(slot));
            if from != to {
                self.endpoints.insert(slot.clone(), (from.cloned(), to.cloned()));
            }
        }
    }

    fn frontend(&mut self, frontend: Frontend, before: Option<String>, after: Option<String>) {
        let (from, _) = self.frontends.remove(&frontend).unwrap_or((before, None));
        if from != after {
            self.frontends.insert(frontend, (from, after));
        }
    }
}

fn winner(claims: &BTreeMap<ObjectKey, String>) -> Option<String> {
    claims.first_key_value().map(|(_, chain)| chain.clone())
}
