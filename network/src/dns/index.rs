//! All names of the cluster, as one immutable value: readers hold a version of it and take no lock, the
//! writer makes the next version from it at the cost of what changed.
//!
//! What always holds: a name exists exactly if it has records or if a name below it exists, so that
//! "no such name" and "no such record" are told apart as DNS wants it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use decapod_client::ObjectKey;
use hickory_proto::ProtoError;
use hickory_proto::rr::rdata::{CNAME, NS, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::records::{self, TTL, address_data};
use crate::world::World;

/// The version of the specification that the names follow.
const DNS_VERSION: &str = "1.1.0";
/// The Service behind which cluster DNS itself is found.
const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");
/// The zone's SOA: refresh, retry and expiry mean nothing without secondaries.
const SOA_TIMES: (i32, i32, i32) = (7200, 1800, 86_400);

/// A name in lower case, as length-prefixed labels.
type Key = Box<[u8]>;

/// What is known under a name.
#[derive(Clone, Debug, Default)]
struct Entry {
    records: Vec<Record>,
    /// The names right below this one, and the other reasons for which it exists.
    children: usize,
}

/// The names of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    domain: Name,
    domain_key: Key,
    soa: Record,
    names: imbl::HashMap<Key, Arc<Entry>>,
    services: imbl::HashMap<ObjectKey, Arc<[Record]>>,
    /// Whether the cluster's state was read: before that, absence means nothing.
    pub(crate) synced: bool,
}

/// What the index says about a question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// These records, and what else the client will ask for.
    Found(Vec<Record>, Vec<Record>),
    /// Another name has the answer.
    Alias(Box<Record>, Name),
    /// The name exists, and has no such record.
    NoData,
    /// There is no such name in the cluster.
    NoName,
    /// The name does not belong to the cluster.
    Foreign,
    /// The cluster's state is not known yet.
    Unknown,
}

impl Index {
    /// The names of an empty cluster whose domain is `domain`.
    ///
    /// # Errors
    /// `domain` leaves no room for names below it.
    pub(crate) fn new(domain: &Name) -> Result<Self, ProtoError> {
        let server = Name::from_ascii("ns.dns")?.append_domain(domain)?;
        let mailbox = Name::from_ascii("hostmaster")?.append_domain(domain)?;
        let (refresh, retry, expire) = SOA_TIMES;
        let soa = SOA::new(server.clone(), mailbox, 1, refresh, retry, expire, TTL);
        let soa = Record::from_rdata(domain.clone(), TTL, RData::SOA(soa));
        let mut index = Self {
            domain: domain.clone(),
            domain_key: key(domain),
            soa: soa.clone(),
            names: imbl::HashMap::new(),
            services: imbl::HashMap::new(),
            synced: false,
        };
        index.record_add(soa);
        index.record_add(Record::from_rdata(domain.clone(), TTL, RData::NS(NS(server))));
        let version = Name::from_ascii("dns-version")?.append_domain(domain)?;
        let text = RData::TXT(TXT::new(vec![DNS_VERSION.into()]));
        index.record_add(Record::from_rdata(version, TTL, text));
        for branch in ["svc", "pod"] {
            index.hold(&key(&Name::from_ascii(branch)?.append_domain(domain)?));
        }
        Ok(index)
    }

    /// The record that a negative answer carries.
    pub(crate) fn soa(&self) -> &Record {
        &self.soa
    }

    /// Takes in what `world` says about the Service `key` now.
    ///
    /// # Errors
    /// A name that is longer than DNS allows; the Service then has no names.
    pub(crate) fn service_set(&mut self, world: &World, key: &ObjectKey) -> Result<(), ProtoError> {
        let made = records::service(world, key, &self.domain).and_then(|mut records| {
            if (key.namespace.as_str(), key.name.as_str()) == DNS_SERVICE {
                records.extend(self.server_addresses(&records)?);
            }
            Ok(records)
        });
        let (new, failed) = match made {
            Ok(records) => (records, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let old = self.services.remove(key);
        // New names first, so that what stays never goes.
        new.iter().for_each(|record| self.record_add(record.clone()));
        old.iter().flat_map(|records| records.iter()).for_each(|record| self.record_remove(record));
        if !new.is_empty() {
            self.services.insert(key.clone(), new.into());
        }
        failed.map_or(Ok(()), Err)
    }

    /// Notes that a namespace exists, or no longer does.
    ///
    /// # Errors
    /// The namespace's name does not fit.
    pub(crate) fn namespace_set(&mut self, namespace: &str, exists: bool) -> Result<(), ProtoError> {
        for branch in ["svc", "pod"] {
            let name = Name::from_labels([namespace.as_bytes(), branch.as_bytes()])?;
            let key = key(&name.append_domain(&self.domain)?);
            if exists { self.hold(&key) } else { self.release(&key) }
        }
        Ok(())
    }

    /// Answers a question. Equal records are given in an order that `rotation` turns, so that clients
    /// that take the first spread.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType, rotation: u32) -> Answer {
        let key = key(name);
        let ours = self.is_ours(&key);
        let Some(entry) = self.names.get(&key) else {
            return match ours {
                false => Answer::Foreign,
                true if !self.synced => Answer::Unknown,
                true => self.answer_pod(name, kind),
            };
        };
        if let Some((alias, target)) = alias(&entry.records).filter(|_| kind != RecordType::CNAME) {
            return Answer::Alias(Box::new(alias.clone()), target.clone());
        }
        let wanted = |record: &&Record| kind == RecordType::ANY || record.record_type() == kind;
        let mut found: Vec<_> = entry.records.iter().filter(wanted).cloned().collect();
        if found.is_empty() {
            return if self.synced || !ours { Answer::NoData } else { Answer::Unknown };
        }
        let turn = rotation as usize % found.len();
        found.rotate_left(turn);
        let additional = self.additional(&found);
        Answer::Found(found, additional)
    }

    /// `a-b-c-d.namespace.pod.domain`: the address is in the name, whether there is such a pod or not.
    fn answer_pod(&self, name: &Name, kind: RecordType) -> Answer {
        let mut labels = name.iter();
        let (host, namespace, branch) = (labels.next(), labels.next(), labels.next());
        let is_pod = branch.is_some_and(|branch| branch.eq_ignore_ascii_case(b"pod"))
            && labels.len() == self.domain.iter().len();
        let namespace_exists = || {
            let mut parent = name.base_name();
            parent.set_fqdn(true);
            namespace.is_some() && self.names.contains_key(&key(&parent))
        };
        let address = host.and_then(|host| std::str::from_utf8(host).ok()).and_then(dashed_address);
        let Some(address) = address.filter(|_| is_pod && namespace_exists()) else { return Answer::NoName };
        let data = address_data(address);
        if data.record_type() == kind {
            Answer::Found(vec![Record::from_rdata(name.clone(), TTL, data)], Vec::new())
        } else {
            Answer::NoData
        }
    }

    /// The addresses of the targets of SRV records.
    fn additional(&self, found: &[Record]) -> Vec<Record> {
        let mut targets: Vec<&Name> = found
            .iter()
            .filter_map(|record| if let RData::SRV(srv) = &record.data { Some(&srv.target) } else { None })
            .collect();
        targets.sort();
        targets.dedup();
        let entries = targets.into_iter().filter_map(|target| self.names.get(&key(target)));
        let records = entries.flat_map(|entry| &entry.records);
        records.filter(|record| record.data.ip_addr().is_some()).cloned().collect()
    }

    /// The addresses of the zone's server, which are those of the DNS Service.
    fn server_addresses(&self, service: &[Record]) -> Result<Vec<Record>, ProtoError> {
        let server = Name::from_ascii("ns.dns")?.append_domain(&self.domain)?;
        let addresses = service.iter().filter(|record| record.data.ip_addr().is_some());
        Ok(addresses.map(|record| Record::from_rdata(server.clone(), TTL, record.data.clone())).collect())
    }

    fn record_add(&mut self, record: Record) {
        let key = key(&record.name);
        self.hold(&key);
        self.entry_mut(&key).records.push(record);
    }

    fn record_remove(&mut self, record: &Record) {
        let key = key(&record.name);
        let records = &mut self.entry_mut(&key).records;
        if let Some(position) = records.iter().position(|known| known == record) {
            records.swap_remove(position);
            self.release(&key);
        }
    }

    /// Gives a name one more reason to exist; with the first, the name above gets one.
    fn hold(&mut self, key: &[u8]) {
        let entry = self.entry_mut(key);
        entry.children += 1;
        if entry.children == 1
            && let Some(parent) = self.parent(key)
        {
            self.hold(&parent);
        }
    }

    fn release(&mut self, key: &[u8]) {
        let Some(entry) = self.names.get(key) else { return };
        if entry.children > 1 {
            self.entry_mut(key).children -= 1;
            return;
        }
        self.names.remove(key);
        if let Some(parent) = self.parent(key) {
            self.release(&parent);
        }
    }

    /// The name above one of ours.
    fn parent(&self, key: &[u8]) -> Option<Key> {
        let above = key.get(1 + usize::from(*key.first()?)..)?;
        (self.is_ours(key) && self.is_ours(above)).then(|| above.into())
    }

    /// Whether a name is in the cluster's domain.
    fn is_ours(&self, mut key: &[u8]) -> bool {
        while key.len() > self.domain_key.len() {
            key = &key[1 + usize::from(key[0])..];
        }
        *key == *self.domain_key
    }

    fn entry_mut(&mut self, key: &[u8]) -> &mut Entry {
        Arc::make_mut(self.names.entry(key.into()).or_default())
    }
}

fn alias(records: &[Record]) -> Option<(&Record, &Name)> {
    records.iter().find_map(|record| match &record.data {
        RData::CNAME(CNAME(target)) => Some((record, target)),
        _ => None,
    })
}

fn key(name: &Name) -> Key {
    let mut key = Vec::with_capacity(Name::MAX_LENGTH);
    for label in name.iter() {
        key.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        key.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    key.into()
}

/// `10-0-0-1` or `2001-db8--1`.
fn dashed_address(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    let v6 = || text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6);
    v4.or_else(|_| v6()).ok()
}
