//! Where a backend is served: endpoints straight from EndpointSlices, without the service proxy between.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use decapod_client::ObjectKey;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::routes::{Backend, Port};
use crate::world::World;

/// Where a backend is served.
#[derive(Debug)]
pub(super) enum Upstream {
    /// At these addresses and ports; never empty.
    At(Targets),
    /// Nowhere, and why.
    Nowhere(String),
}

/// Addresses that take turns.
#[derive(Debug)]
pub(super) struct Targets {
    all: Vec<String>,
    next: AtomicUsize,
}

impl Targets {
    /// All of them, beginning with the one whose turn it is.
    pub(super) fn turn(&self) -> impl Iterator<Item = &str> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        (0..self.all.len()).map(move |n| &*self.all[first.wrapping_add(n) % self.all.len()])
    }
}

impl Upstream {
    /// The addresses and ports at which it is served.
    pub(super) fn targets(&self) -> impl Iterator<Item = String> {
        let all = match self {
            Self::At(targets) => targets.all.as_slice(),
            Self::Nowhere(_) => &[],
        };
        all.iter().cloned()
    }

    /// Looks up where a backend is served now.
    pub(super) fn of(backend: &Backend, world: &World) -> Self {
        let (key, port) = match backend {
            Backend::Service(key, port) => (key, port),
            Backend::Resource(what) => {
                return Self::Nowhere(format!(
                    "{what} is no Service: this Ingress controller serves Services only"
                ));
            }
        };
        match targets(key, port, world) {
            Ok(all) if all.is_empty() => Self::Nowhere(format!(
                "the Service {}/{} has no endpoint that is ready",
                key.namespace, key.name
            )),
            Ok(all) => Self::At(Targets { all, next: AtomicUsize::new(rand::random_range(0..1 << 16)) }),
            Err(why) => Self::Nowhere(why),
        }
    }
}

fn targets(key: &ObjectKey, wanted: &Port, world: &World) -> Result<Vec<String>, String> {
    let name = format!("{}/{}", key.namespace, key.name);
    let service = world.service(key).ok_or_else(|| format!("there is no Service {name}"))?;
    let port = port(service, wanted).ok_or_else(|| match wanted {
        Port::Number(number) => format!("the Service {name} has no port {number}"),
        Port::Name(port) => format!("the Service {name} has no port \"{port}\""),
    })?;
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
        let external = spec.and_then(|spec| spec.external_name.as_ref());
        return Ok(external.map(|host| format!("{host}:{}", port.port)).into_iter().collect());
    }
    let port_name = port.name.as_deref().unwrap_or_default();
    let slices: Vec<_> = world.slices(key).collect();
    let ready = endpoints(&slices, port_name, |ready, _| ready);
    let found = if ready.is_empty() { endpoints(&slices, port_name, |_, serving| serving) } else { ready };
    Ok(found.into_iter().collect())
}

fn port<'s>(service: &'s Service, wanted: &Port) -> Option<&'s ServicePort> {
    let mut ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.find(|port| {
        port.protocol.as_deref().unwrap_or("TCP") == "TCP"
            && match wanted {
                Port::Number(number) => port.port == *number,
                Port::Name(name) => port.name.as_ref() == Some(name),
            }
    })
}

/// The endpoints of a port whose conditions (ready, serving) are good enough.
fn endpoints(slices: &[&EndpointSlice], port: &str, enough: impl Fn(bool, bool) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let mut ports = slice.ports.iter().flatten();
        let number =
            ports.find(|one| one.name.as_deref().unwrap_or_default() == port).and_then(|one| one.port);
        let Some(number) = number else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
            if enough(ready, serving) {
                found.extend(endpoint.addresses.first().map(|address| format!("{address}:{number}")));
            }
        }
    }
    found
}
