//! The repair of Service addresses and node ports: after a crash between an allocation and its
//! Service, after a restore, and after somebody deleted an address that a Service has.
//!
//! **Invariant**: what a Service has is taken for it before anything is given back. Of two Services
//! with one address or port neither loses it: their users are told.

use std::time::Duration;

use decapod_api::meta;
use decapod_api::status::Error;
use decapod_storage as storage;
use serde_json::{Value, json};

use super::allocate::{Allocation, Cidr, MANAGED_BY, NODE_PORTS, allocations, owner};
use super::{Call, Registry, core, reads, row};
use crate::clock::rfc3339;

/// An allocation without its Service is given back after this long: a create takes milliseconds.
pub(crate) const REPAIR_AFTER: Duration = Duration::from_secs(60);

const ADDRESSES: &str = "ipallocator-repair-controller";
const PORTS: &str = "portallocator-repair-controller";

/// Who holds a node port. Of one whose entry cannot be read nobody knows, so it is left as it is.
fn holder_of(entry: &storage::Entry) -> Option<Value> {
    serde_json::from_slice(&entry.value)
        .inspect_err(|error| tracing::error!(key = &*entry.key, %error, "cannot read who holds a node port"))
        .ok()
}

impl Registry {
    /// Makes allocations and Services agree: what a Service has and does not hold is taken for it,
    /// what no Service has is given back.
    pub(crate) async fn repair_allocations(&self) -> Result<(), Error> {
        let ranges = self.ranges().await?;
        for service in self.all(core("services"), "").await? {
            for allocation in allocations(&service) {
                match &allocation {
                    Allocation::Address(address) => self.repair_address(&service, address, &ranges).await?,
                    Allocation::NodePort(port) => self.repair_port(&service, *port).await?,
                }
            }
        }
        let now = self.clock.now().as_second();
        let old_enough = |since: i64| now - since > REPAIR_AFTER.as_secs() as i64;
        for address in self.all(row("networking.k8s.io", "v1", "ipaddresses"), "").await? {
            let managed = meta::labels(&address).get(MANAGED_BY.0) == Some(&MANAGED_BY.1);
            let since =
                meta::text(&address, "creationTimestamp").and_then(|t| t.parse::<jiff::Timestamp>().ok());
            let parent = &address["spec"]["parentRef"];
            if managed && since.is_some_and(|t| old_enough(t.as_second())) {
                let name = meta::name(&address).to_owned();
                if !self.held(parent, &Allocation::Address(name.clone())).await? {
                    tracing::info!(address = name, "giving back a Service address that no Service holds");
                    self.release(&[Allocation::Address(name)]).await;
                }
            }
        }
        let ports = self.store.list(NODE_PORTS, storage::List::default()).await.map_err(reads::failed)?;
        for entry in ports.entries {
            let Some(port) = entry.key.strip_prefix(NODE_PORTS).and_then(|p| p.parse().ok()) else {
                continue;
            };
            let Some(owner) = holder_of(&entry) else { continue };
            let allocation = Allocation::NodePort(port);
            if old_enough(owner["since"].as_i64().unwrap_or(0)) && !self.held(&owner, &allocation).await? {
                tracing::info!(port, "giving back a node port that no Service holds");
                self.release(&[allocation]).await;
            }
        }
        Ok(())
    }

    async fn repair_address(&self, service: &Value, address: &str, ranges: &[Cidr]) -> Result<(), Error> {
        let Ok(parsed) = address.parse() else {
            let why = format!("Cluster IP {address} is not a valid IP; please recreate Service");
            return self.tell(service, ADDRESSES, "ClusterIPNotValid", why).await;
        };
        if !ranges.iter().any(|range| range.usable(parsed)) {
            let why = format!(
                "Cluster IP [IPv4]: {address} is not within any configured Service CIDR; please recreate service"
            );
            return self.tell(service, ADDRESSES, "ClusterIPOutOfRange", why).await;
        }
        if self.create_address(service, parsed).await? {
            let why = format!("Cluster IP [IPv4]: {address} is not allocated; repairing");
            return self.tell(service, ADDRESSES, "ClusterIPNotAllocated", why).await;
        }
        let held = self.find(row("networking.k8s.io", "v1", "ipaddresses"), "", address).await?;
        let parent = held.as_ref().map(|held| &held["spec"]["parentRef"]).unwrap_or(&Value::Null);
        if parent.is_null() || is_of(parent, service) {
            return Ok(());
        }
        if self.held(parent, &Allocation::Address(address.to_owned())).await? {
            let why = format!(
                "Cluster IP [IPv4]:{address} was assigned to multiple services; please recreate service"
            );
            return self.tell(service, ADDRESSES, "ClusterIPAlreadyAllocated", why).await;
        }
        let (namespace, name) = (meta::namespace(service), meta::name(service));
        let why = format!(
            "the ClusterIP [IPv4]: {address} for Service {namespace}/{name} has a wrong reference; repairing"
        );
        self.release(&[Allocation::Address(address.to_owned())]).await;
        self.create_address(service, parsed).await?;
        self.tell(service, ADDRESSES, "ClusterIPNotAllocated", why).await
    }

    async fn repair_port(&self, service: &Value, port: u16) -> Result<(), Error> {
        let range = &self.network.node_ports;
        if !range.contains(&port) {
            let why = format!(
                "Port {port} is not within the port range {}-{}; please recreate service",
                range.start(),
                range.end()
            );
            return self.tell(service, PORTS, "PortOutOfRange", why).await;
        }
        if self.create_node_port(service, port).await? {
            let why = format!("Port {port} is not allocated; repairing");
            return self.tell(service, PORTS, "PortNotAllocated", why).await;
        }
        let key = format!("{NODE_PORTS}{port}");
        let Some(entry) = self.store.get(&key).await.map_err(reads::failed)? else { return Ok(()) };
        let Some(holder) = holder_of(&entry) else { return Ok(()) };
        if is_of(&holder, service) || !self.held(&holder, &Allocation::NodePort(port)).await? {
            return Ok(());
        }
        let why = format!("Port {port} was assigned to multiple services; please recreate service");
        self.tell(service, PORTS, "PortAlreadyAllocated", why).await
    }

    /// Gives back an address that the Service of this name was to get when an earlier start was cut
    /// off before it was written.
    pub(crate) async fn drop_leftover(
        &self,
        address: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Error> {
        let addresses = row("networking.k8s.io", "v1", "ipaddresses");
        let Some(found) = self.find(addresses, "", address).await? else { return Ok(()) };
        let parent = &found["spec"]["parentRef"];
        let ours = parent["namespace"] == namespace && parent["name"] == name;
        let allocation = Allocation::Address(address.to_owned());
        if ours && !self.held(parent, &allocation).await? {
            self.release(&[allocation]).await;
        }
        Ok(())
    }

    /// Whether the Service that an allocation names has it.
    async fn held(&self, owner: &Value, allocation: &Allocation) -> Result<bool, Error> {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        let service = self.find(core("services"), text("namespace"), text("name")).await?;
        Ok(service.is_some_and(|service| allocations(&service).contains(allocation)))
    }

    /// Tells a Service's users, by an Event, what was found and done.
    async fn tell(&self, service: &Value, by: &str, reason: &str, message: String) -> Result<(), Error> {
        tracing::warn!(service = %owner(service), reason, message, "repairing Service allocations");
        let now = self.clock.now();
        let namespace = meta::namespace(service);
        let name = format!("{}.{:x}", meta::name(service), now.as_nanosecond());
        let event = json!({
            "metadata": {"name": name, "namespace": namespace}, "type": "Warning", "reason": reason,
            "message": message, "count": 1, "firstTimestamp": rfc3339(now), "lastTimestamp": rfc3339(now),
            "source": {"component": by}, "reportingComponent": by,
            "involvedObject": {"apiVersion": "v1", "kind": "Service", "namespace": namespace,
                "name": meta::name(service), "uid": meta::uid(service)}});
        let call = Call::own(core("events"), namespace, &name);
        match self.create(&call, event, &[]).await {
            Ok(_) | Err(Error::AlreadyExists { .. } | Error::NamespaceTerminating { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether an allocation names this Service.
fn is_of(owner: &Value, service: &Value) -> bool {
    owner["namespace"] == *meta::namespace(service) && owner["name"] == *meta::name(service)
}
