//! Service addresses and node ports: each is one key in the store, taken by a create and given
//! back by a delete, so two Services never get the same one, whichever server answers.
//!
//! What a crash between taking an address and writing its Service leaves behind is found and given
//! back by [`Registry::repair_allocations`], in `repair`.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use decapod_api::status::Error;
use decapod_api::{field, meta};
use decapod_storage::{self as storage, Precondition};
use rand::Rng;
use serde_json::{Value, json};

use super::options::DeleteOptions;
use super::{Call, Registry, reads, row};

pub(super) const NODE_PORTS: &str = "/registry/decapod/nodeports/";
pub(super) const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
/// The ServiceCIDR of the cluster's own range.
pub(crate) const OWN_RANGE: &str = "kubernetes";

fn is_ready(range: &Value) -> bool {
    let conditions = range["status"]["conditions"].as_array().into_iter().flatten();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    !meta::deleting(range) && conditions.into_iter().any(ready)
}

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no IPv4 range such as 10.96.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(8..=30).contains(&prefix) {
            return Err(format!("{text:?}: the prefix must be between 8 and 30"));
        }
        let mask = u32::MAX << (32 - prefix);
        Ok(Self { base: u32::from(address) & mask, prefix })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl Cidr {
    /// The address at an offset from the start of the range; `None` outside of it.
    pub fn nth(&self, offset: u32) -> Option<Ipv4Addr> {
        (offset < self.size()).then(|| Ipv4Addr::from(self.base + offset))
    }

    fn size(&self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// Whether an address is in the range and neither its first nor its last.
    pub(super) fn usable(&self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(self.base);
        offset > 0 && offset < self.size() - 1
    }
}

/// What Services are given from.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// The cluster's own range; ServiceCIDRs may add others.
    pub(crate) services: Cidr,
    pub(crate) node_ports: RangeInclusive<u16>,
}

/// What a write of a Service took, and what it no longer needs.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    taken: Vec<Allocation>,
    freed: Vec<Allocation>,
}

/// One address or port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Allocation {
    Address(String),
    NodePort(u16),
}

impl Claim {
    /// The write took place: what is not needed any more is given back.
    pub(crate) async fn keep(self, registry: &Registry) {
        registry.release(&self.freed).await;
    }

    /// The write did not take place: what was taken for it is given back.
    pub(crate) async fn cancel(self, registry: &Registry) {
        registry.release(&self.taken).await;
    }

    /// Notes what the write no longer needs.
    pub(crate) fn free(&mut self, allocation: Allocation) {
        self.freed.push(allocation);
    }
}

pub(super) fn owner(service: &Value) -> Value {
    json!({"namespace": meta::namespace(service), "name": meta::name(service)})
}

impl Registry {
    /// Takes an address for a Service: `wanted`, or any that is free.
    pub(crate) async fn take_address(
        &self,
        claim: &mut Claim,
        service: &Value,
        wanted: Option<&str>,
    ) -> Result<String, field::Error> {
        let path = field::Path::new("spec").child("clusterIPs").index(0);
        if let Some(text) = wanted {
            let invalid = |why: String| field::Error::invalid(&path, text, why);
            let address: Ipv4Addr = text.parse().map_err(|_| {
                invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned())
            })?;
            let ranges = self.ranges().await.map_err(|e| internal(&path, &e))?;
            if !ranges.iter().any(|range| range.usable(address)) {
                return Err(invalid(format!(
                    "failed to allocate IP {address}: the provided network does not match the current range"
                )));
            }
            return match self.create_address(service, address).await {
                Ok(true) => {
                    claim.taken.push(Allocation::Address(text.to_owned()));
                    Ok(text.to_owned())
                }
                Ok(false) => {
                    Err(invalid(format!("failed to allocate IP {address}: provided IP is already allocated")))
                }
                Err(error) => Err(internal(&path, &error)),
            };
        }
        for range in self.ranges().await.map_err(|e| internal(&path, &e))? {
            for address in Self::candidates(range) {
                if self.create_address(service, address).await.map_err(|e| internal(&path, &e))? {
                    claim.taken.push(Allocation::Address(address.to_string()));
                    return Ok(address.to_string());
                }
            }
        }
        Err(internal(&path, &"failed to allocate a serviceIP: range is full"))
    }

    /// The ranges that addresses are given from now, the cluster's own first: those of ServiceCIDRs
    /// that are ready and not about to go (KEP-1880). Of other families than IPv4 none is given.
    pub(crate) async fn ranges(&self) -> Result<Vec<Cidr>, Error> {
        let objects = self.all(row("networking.k8s.io", "v1", "servicecidrs"), "").await?;
        let own_is_known = objects.iter().any(|object| meta::name(object) == OWN_RANGE);
        let mut ranges = if own_is_known { Vec::new() } else { vec![self.network.services] };
        let (own, others): (Vec<&Value>, Vec<&Value>) =
            objects.iter().partition(|object| meta::name(object) == OWN_RANGE);
        for object in own.into_iter().chain(others).filter(|object| is_ready(object)) {
            let texts = object["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
            ranges.extend(texts.filter_map(|text| text.parse::<Cidr>().ok()));
        }
        Ok(ranges)
    }

    /// All usable addresses of a range: from a random place in the upper band first. The lower band
    /// is left to addresses that users choose.
    fn candidates(range: Cidr) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let last = range.size() - 1;
        let low = (range.size() / 16).clamp(16, 256).min(last);
        let start = if low < last { rand::rng().random_range(low..last) } else { low };
        let upper = (start..last).chain(low..start);
        upper.chain(1..low).filter_map(move |offset| range.nth(offset))
    }

    pub(super) async fn create_address(&self, service: &Value, address: Ipv4Addr) -> Result<bool, Error> {
        let resource = row("networking.k8s.io", "v1", "ipaddresses");
        let name = address.to_string();
        let call = Call::own(resource, "", &name);
        if self.current(&call).await?.is_some() {
            return Ok(false);
        }
        let object = json!({
            "metadata": {"name": name, "labels": {
                MANAGED_BY.0: MANAGED_BY.1, "ipaddress.kubernetes.io/ip-family": "IPv4"}},
            "spec": {"parentRef": {"group": "", "resource": "services",
                "namespace": meta::namespace(service), "name": meta::name(service)}},
        });
        match Box::pin(self.create(&call, object, &[])).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes a node port for a Service: `wanted`, or any that is free.
    pub(crate) async fn take_node_port(
        &self,
        claim: &mut Claim,
        service: &Value,
        path: &field::Path,
        wanted: Option<u16>,
    ) -> Result<u16, field::Error> {
        let range = self.network.node_ports.clone();
        if let Some(port) = wanted {
            if !range.contains(&port) {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    range.start(),
                    range.end()
                );
                return Err(field::Error::invalid(path, port, why));
            }
            return match self.create_node_port(service, port).await {
                Ok(true) => {
                    claim.taken.push(Allocation::NodePort(port));
                    Ok(port)
                }
                Ok(false) => Err(field::Error::invalid(path, port, "provided port is already allocated")),
                Err(error) => Err(internal(path, &error)),
            };
        }
        let (first, last) = (*range.start(), *range.end());
        // As with addresses, a lower band is left to ports that users choose.
        let low = first + ((last - first) / 32).clamp(16, 128).min(last - first);
        let start = rand::rng().random_range(low..=last);
        for port in (start..=last).chain(low..start).chain(first..low) {
            if self.create_node_port(service, port).await.map_err(|e| internal(path, &e))? {
                claim.taken.push(Allocation::NodePort(port));
                return Ok(port);
            }
        }
        Err(internal(path, &"failed to allocate a nodePort: range is full"))
    }

    pub(super) async fn create_node_port(&self, service: &Value, port: u16) -> Result<bool, Error> {
        let key = format!("{NODE_PORTS}{port}");
        if self.store.get(&key).await.map_err(reads::failed)?.is_some() {
            return Ok(false);
        }
        let mut value = owner(service);
        value["since"] = self.clock.now().as_second().into();
        match self.store.create(&key, value.to_string().into()).await {
            Ok(_) => Ok(true),
            Err(storage::Error::Exists(_)) => Ok(false),
            Err(error) => Err(reads::failed(error)),
        }
    }

    /// Gives allocations back. What fails is left to the repair.
    pub(crate) async fn release(&self, allocations: &[Allocation]) {
        for allocation in allocations {
            let released = match allocation {
                Allocation::Address(address) => {
                    let call = Call::own(row("networking.k8s.io", "v1", "ipaddresses"), "", address);
                    match Box::pin(self.delete(&call, &DeleteOptions::default())).await {
                        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                        Err(error) => Err(error),
                    }
                }
                Allocation::NodePort(port) => self.remove(&format!("{NODE_PORTS}{port}")).await,
            };
            if let Err(error) = released {
                tracing::warn!(?allocation, %error, "cannot give back an allocation; the repair will");
            }
        }
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let Some(entry) = self.store.get(key).await.map_err(reads::failed)? else { return Ok(()) };
        match self.store.delete(key, Precondition::ModifiedAt(entry.modified)).await {
            Ok(_) | Err(storage::Error::Conflict(_)) => Ok(()),
            Err(error) => Err(reads::failed(error)),
        }
    }
}

fn internal(path: &field::Path, error: &dyn std::fmt::Display) -> field::Error {
    field::Error {
        path: path.clone(),
        kind: field::ErrorKind::Internal,
        value: None,
        detail: error.to_string(),
    }
}

/// What a Service holds.
pub(crate) fn allocations(service: &Value) -> Vec<Allocation> {
    let mut held = Vec::new();
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    if !matches!(address, "" | "None") {
        held.push(Allocation::Address(address.to_owned()));
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    for port in ports.chain([&service["spec"]["healthCheckNodePort"]]) {
        let number = port.as_u64().and_then(|p| u16::try_from(p).ok()).filter(|&p| p > 0);
        if let Some(allocation) = number.map(Allocation::NodePort)
            && !held.contains(&allocation)
        {
            held.push(allocation);
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range: Cidr = "10.96.0.0/16".parse().unwrap();
        assert_eq!(range.nth(10).unwrap().to_string(), "10.96.0.10");
        assert!(range.nth(65536).is_none());
        assert!(
            !range.usable("10.96.0.0".parse().unwrap()) && !range.usable("10.96.255.255".parse().unwrap())
        );
        assert!(
            range.usable("10.96.255.254".parse().unwrap()) && !range.usable("10.97.0.1".parse().unwrap())
        );
        for bad in ["10.96.0.0", "x/16", "10.0.0.0/31", "::/64"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_holds_its_address_and_ports() {
        let service = json!({"spec": {"clusterIP": "10.96.3.4", "ports": [
            {"nodePort": 30001, "protocol": "TCP"}, {"nodePort": 30001, "protocol": "UDP"}, {"port": 1}]}});
        assert_eq!(
            allocations(&service),
            [Allocation::Address("10.96.3.4".into()), Allocation::NodePort(30001)]
        );
        assert!(allocations(&json!({"spec": {"clusterIP": "None"}})).is_empty());
    }
}
