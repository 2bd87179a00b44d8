//! The `proxy` subresource of pods and Services: plain HTTP to a pod's address.

use std::net::IpAddr;

use decapod_api::meta;
use decapod_api::status::Error;
use rand::seq::IteratorRandom;
use serde_json::Value;

use super::target::{Backend, Target};
use crate::registry::{Call, Registry, core, row};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A name in such a path: `[scheme:]name[:port]`.
fn split(name: &str) -> Result<(&str, Option<&str>), Error> {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [name] => Ok((name, None)),
        ["" | "http", name, port] | [name, port] => Ok((name, Some(port).filter(|p| !p.is_empty()).copied())),
        ["https", ..] => Err(Error::BadRequest(
            "a proxy to https is not served by this version: use port-forward".to_owned(),
        )),
        _ => Err(Error::BadRequest(format!("invalid request {name:?}: want [scheme:]name[:port]"))),
    }
}

/// The pod of a call.
pub(super) async fn pod(registry: &Registry, call: &Call, path: String) -> Result<Target, Error> {
    let (name, port) = split(&call.name)?;
    let pod = registry.find(call.resource, &call.namespace, name).await?;
    let pod = pod.ok_or_else(|| Error::NotFound { resource: "pods".to_owned(), name: name.to_owned() })?;
    let address = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
    let address = address.ok_or_else(|| Error::Unavailable(format!("pod {name} has no address yet")))?;
    let port = match port {
        Some(port) => port_of(&pod, port)
            .ok_or_else(|| Error::BadRequest(format!("pod {name} has no port {port:?}")))?,
        None => ports(&pod).find_map(|p| number(&p["containerPort"])).unwrap_or(80),
    };
    Ok(Target { backend: Backend::Pod, address, port, path })
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
pub(super) async fn service(registry: &Registry, call: &Call, path: String) -> Result<Target, Error> {
    let (name, port) = split(&call.name)?;
    let service = registry.find(core("services"), &call.namespace, name).await?;
    let service =
        service.ok_or_else(|| Error::NotFound { resource: "services".to_owned(), name: name.to_owned() })?;
    let ports = service["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let matches = |p: &&Value| {
        port.is_none_or(|wanted| p["name"] == wanted || number(&p["port"]) == wanted.parse().ok())
    };
    let port = ports.iter().find(matches).ok_or_else(|| {
        Error::Unavailable(format!(
            "no service port {:?} found for service {name:?}",
            port.unwrap_or_default()
        ))
    })?;
    let slices = registry.all(row("discovery.k8s.io", "v1", "endpointslices"), &call.namespace).await?;
    let own = slices.iter().filter(|slice| meta::labels(slice).get(SERVICE_LABEL) == Some(&name));
    let endpoint = own.flat_map(|slice| endpoints(slice, &port["name"])).choose(&mut rand::rng());
    let (address, port) =
        endpoint.ok_or_else(|| Error::Unavailable(format!("no endpoints available for service {name:?}")))?;
    Ok(Target { backend: Backend::Pod, address, port, path })
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
        assert_eq!(split("web").unwrap(), ("web", None));
        assert_eq!(split("web:80").unwrap(), ("web", Some("80")));
        assert_eq!(split("http:web:").unwrap(), ("web", None));
        assert!(split("https:web:443").is_err() && split("a:b:c:d").is_err());
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
