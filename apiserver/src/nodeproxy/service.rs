//! The `proxy` subresource of pods and Services: HTTP to a pod's address.

use std::net::IpAddr;

use decapod_api::meta;
use decapod_api::status::Error;
use rand::seq::IteratorRandom;
use serde_json::Value;

use super::dial::Kubelets;
use super::target::{Backend, Target};
use crate::registry::{Call, Registry, core, row};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A name in such a path: `[scheme:]name[:port]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) backend: Backend,
    pub(super) name: &'a str,
    pub(super) port: Option<&'a str>,
}

impl<'a> Named<'a> {
    /// Takes a name apart; `what` is the resource, for the error.
    pub(super) fn parse(what: &str, text: &'a str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match *parts.as_slice() {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => ("?", "", ""),
        };
        let backend = match scheme {
            "" | "http" => Some(Backend::Plain),
            "https" => Some(Backend::Tls),
            _ => None,
        };
        let backend = backend.filter(|_| !name.is_empty());
        let backend = backend.ok_or_else(|| Error::BadRequest(format!("invalid {what} request {text:?}")))?;
        Ok(Self { backend, name, port: Some(port).filter(|p| !p.is_empty()) })
    }

    /// The port of those who name none.
    fn default_port(&self) -> u16 {
        if self.backend == Backend::Tls { 443 } else { 80 }
    }
}

/// The pod of a call.
pub(super) async fn pod(
    registry: &Registry,
    kubelets: &Kubelets,
    call: &Call,
    path: String,
) -> Result<Target, Error> {
    let named = Named::parse("pod", &call.name)?;
    let name = named.name;
    let pod = registry.find(call.resource, &call.namespace, name).await?;
    let pod = pod.ok_or_else(|| Error::NotFound { resource: "pods".to_owned(), name: name.to_owned() })?;
    let address = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
    let address = address.filter(|a| kubelets.may_reach(*a));
    let address = address.ok_or_else(|| Error::BadRequest("address not allowed".to_owned()))?;
    let port = match named.port {
        Some(port) => port_of(&pod, port)
            .ok_or_else(|| Error::BadRequest(format!("pod {name} has no port {port:?}")))?,
        None => ports(&pod).find_map(|p| number(&p["containerPort"])).unwrap_or(named.default_port()),
    };
    Ok(Target { backend: named.backend, address, port, path })
}

fn ports(pod: &Value) -> impl Iterator<Item = &Value> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers.flat_map(|c| c["ports"].as_array().into_iter().flatten())
}

fn port_of(pod: &Value, wanted: &str) -> Option<u16> {
    wanted.parse().ok().or_else(|| number(&ports(pod).find(|p| p["name"] == wanted)?["containerPort"]))
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

/// Any ready endpoint of the Service of a call.
pub(super) async fn service(
    registry: &Registry,
    kubelets: &Kubelets,
    call: &Call,
    path: String,
) -> Result<Target, Error> {
    let Named { backend, name, port } = Named::parse("service", &call.name)?;
    let service = registry.find(core("services"), &call.namespace, name).await?;
    let service =
        service.ok_or_else(|| Error::NotFound { resource: "services".to_owned(), name: name.to_owned() })?;
    // A number is that of the Service, which gives the name by which its endpoints know the port.
    let port = match port.map(|wanted| (wanted, wanted.parse::<u16>())) {
        None => Value::Null,
        Some((wanted, Err(_))) => wanted.into(),
        Some((wanted, Ok(wanted_number))) => {
            let ports = service["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
            let found = ports.iter().find(|p| number(&p["port"]) == Some(wanted_number));
            let missing =
                || Error::Unavailable(format!("no service port {wanted} found for service {name:?}"));
            found.ok_or_else(missing)?["name"].clone()
        }
    };
    let slices = registry.all(row("discovery.k8s.io", "v1", "endpointslices"), &call.namespace).await?;
    let own = slices.iter().filter(|slice| meta::labels(slice).get(SERVICE_LABEL) == Some(&name));
    let endpoints = own.flat_map(|slice| endpoints(slice, &port));
    let endpoint = endpoints.filter(|(address, _)| kubelets.may_reach(*address)).choose(&mut rand::rng());
    let none = || Error::Unavailable(format!("no endpoints available for service {:?}", call.name));
    let (address, port) = endpoint.ok_or_else(none)?;
    Ok(Target { backend, address, port, path })
}

/// The ready endpoints of a slice for the port of this name (nothing and empty are the same).
fn endpoints(slice: &Value, port: &Value) -> Vec<(IpAddr, u16)> {
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut ports = slice["ports"].as_array().into_iter().flatten();
    let Some(port) = ports.find(|p| name(&p["name"]) == name(port)).and_then(|p| number(&p["port"])) else {
        return Vec::new();
    };
    let ready = |e: &&Value| e["conditions"]["ready"] != Value::Bool(false);
    let endpoints = slice["endpoints"].as_array().into_iter().flatten().filter(ready);
    endpoints.filter_map(|e| Some((e["addresses"][0].as_str()?.parse().ok()?, port))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_with_schemes_and_ports() {
        let named = |text| Named::parse("pod", text).map(|n| (n.backend, n.name, n.port));
        assert_eq!(named("web").unwrap(), (Backend::Plain, "web", None));
        assert_eq!(named("web:80").unwrap(), (Backend::Plain, "web", Some("80")));
        assert_eq!(named("http:web:").unwrap(), (Backend::Plain, "web", None));
        assert_eq!(named("https:web:https").unwrap(), (Backend::Tls, "web", Some("https")));
        for bad in ["ftp:web:443", "a:b:c:d", "", ":80"] {
            assert_eq!(named(bad).unwrap_err().to_string(), format!("invalid pod request {bad:?}"));
        }
    }

    #[test]
    fn ready_endpoints_of_a_port() {
        let slice = json!({"ports": [{"name": "a", "port": 80}, {"port": 81}], "endpoints": [
            {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]});
        assert_eq!(endpoints(&slice, &"a".into()), [("10.0.0.1".parse().unwrap(), 80)]);
        assert_eq!(endpoints(&slice, &Value::Null)[0].1, 81);
        assert!(endpoints(&slice, &"b".into()).is_empty());
    }
}
