//! The records of one Service: pure. By Kubernetes' specification of DNS-based service discovery, 1.1.0.

use std::collections::BTreeSet;
use std::net::IpAddr;

use decapod_client::ObjectKey;
use hickory_proto::ProtoError;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::protocol::Protocol;
use crate::world::World;

/// How long a resolver may keep what we say, in seconds: as CoreDNS does by default.
pub(super) const TTL: u32 = 5;
/// Priority and weight of all SRV records: endpoints are equals.
const PRIORITY: u16 = 0;
const WEIGHT: u16 = 100;

/// The records of the Service `key`; none if it does not exist, or is headless without ready endpoints.
///
/// # Errors
/// A name that is longer than DNS allows.
pub(super) fn service(world: &World, key: &ObjectKey, domain: &Name) -> Result<Vec<Record>, ProtoError> {
    let Some(spec) = world.service(key).and_then(|service: &std::sync::Arc<Service>| service.spec.as_ref())
    else {
        return Ok(Vec::new());
    };
    let name = service_name(key, domain)?;
    let mut records = Records { name, list: Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        if let Some(target) = spec.external_name.as_deref().filter(|target| !target.is_empty()) {
            let mut target = Name::from_utf8(target)?;
            target.set_fqdn(true);
            records.add(records.name.clone(), RData::CNAME(CNAME(target)));
        }
    } else if spec.cluster_ip.as_deref() == Some("None") {
        for slice in world.slices(key) {
            for endpoint in slice.endpoints.iter().flatten() {
                records.endpoint(slice, endpoint)?;
            }
        }
    } else {
        records.cluster_ips(spec)?;
    }
    // Slices may name an endpoint twice, and ports of endpoints share addresses.
    let mut seen = BTreeSet::new();
    records.list.retain(|record| seen.insert(record.to_string()));
    Ok(records.list)
}

/// `service.namespace.svc.domain`
pub(super) fn service_name(key: &ObjectKey, domain: &Name) -> Result<Name, ProtoError> {
    Name::from_labels([key.name.as_bytes(), key.namespace.as_bytes(), b"svc"])?.append_domain(domain)
}

/// The name under which an address is looked up backwards.
pub(super) fn reverse_name(address: IpAddr) -> Name {
    let mut name = Name::from(address);
    name.set_fqdn(true);
    name
}

/// A or AAAA, as the address is.
pub(super) fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

struct Records {
    name: Name,
    list: Vec<Record>,
}

impl Records {
    fn add(&mut self, name: Name, data: RData) {
        self.list.push(Record::from_rdata(name, TTL, data));
    }

    fn address(&mut self, name: Name, address: IpAddr) {
        self.add(name, address_data(address));
    }

    fn pointer(&mut self, address: IpAddr, name: Name) {
        self.add(reverse_name(address), RData::PTR(PTR(name)));
    }

    /// A named port at `target`, found by its name, and with all others at the Service's own name.
    fn port(
        &mut self,
        port_name: Option<&str>,
        protocol: Option<&str>,
        port: i32,
        target: &Name,
    ) -> Result<(), ProtoError> {
        let (Some(protocol), Ok(port)) = (Protocol::parse(protocol), u16::try_from(port)) else {
            return Ok(());
        };
        let data = RData::SRV(SRV::new(PRIORITY, WEIGHT, port, target.clone()));
        self.add(self.name.clone(), data.clone());
        if let Some(port_name) = port_name.filter(|name| !name.is_empty()) {
            let protocol = self.name.prepend_label(format!("_{protocol}").as_bytes())?;
            self.add(protocol.prepend_label(format!("_{port_name}").as_bytes())?, data);
        }
        Ok(())
    }

    fn cluster_ips(&mut self, spec: &ServiceSpec) -> Result<(), ProtoError> {
        let texts = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        for address in texts.filter_map(|text| text.parse().ok()).collect::<BTreeSet<IpAddr>>() {
            self.address(self.name.clone(), address);
            self.pointer(address, self.name.clone());
        }
        for port in spec.ports.iter().flatten() {
            let target = self.name.clone();
            self.port(port.name.as_deref(), port.protocol.as_deref(), port.port, &target)?;
        }
        Ok(())
    }

    /// An endpoint of a headless Service, under a name of its own: its hostname, or its address.
    fn endpoint(&mut self, slice: &EndpointSlice, endpoint: &Endpoint) -> Result<(), ProtoError> {
        let conditions = endpoint.conditions.as_ref();
        if conditions.and_then(|conditions| conditions.ready) == Some(false) {
            return Ok(());
        }
        for address in endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
            let host = match endpoint.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
                Some(hostname) => hostname.to_owned(),
                None => address.to_string().replace(['.', ':'], "-"),
            };
            let host = self.name.prepend_label(host.as_bytes())?;
            self.address(self.name.clone(), address);
            self.address(host.clone(), address);
            self.pointer(address, host.clone());
            for port in slice.ports.iter().flatten() {
                if let Some(number) = port.port {
                    self.port(port.name.as_deref(), port.protocol.as_deref(), number, &host)?;
                }
            }
        }
        Ok(())
    }
}
