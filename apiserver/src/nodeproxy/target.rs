//! Which kubelet a request is for, and what it is asked there.

use std::net::IpAddr;

use decapod_api::meta;
use decapod_api::status::Error;
use http::Uri;
use serde_json::Value;

use super::log;
use super::service::{self, Named};
use crate::endpoint::Request;
use crate::registry::{Call, core};

/// Where a kubelet listens that does not say.
const KUBELET_PORT: u16 = 10250;

/// Where a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// At a kubelet, by TLS with the API server's certificate.
    Kubelet,
    /// At a pod or another port of a node, as it is.
    Plain,
    /// There, by TLS with whomever it is.
    Tls,
}

/// A path at a kubelet or pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) backend: Backend,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// Path and query; empty but for the query where a proxy's path ends with `proxy` itself.
    pub(super) path: String,
}

impl Target {
    pub(super) fn authority(&self) -> String {
        std::net::SocketAddr::new(self.address, self.port).to_string()
    }
}

/// What a request leads to.
pub(super) enum Found {
    At(Target),
    /// The log of a pod that no node has yet.
    Nothing,
}

pub(super) async fn find(request: &Request<'_>, uri: &Uri) -> Result<Found, Error> {
    let call = request.call()?;
    let a = &request.info.attributes;
    let registry = &request.core.registry;
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    if a.subresource == "proxy" {
        return proxied(request, &call, uri, &query).await.map(Found::At);
    }
    let (object, _) = registry.current(&call).await?.ok_or_else(|| call.not_found())?;
    let at = format!("{}/{}", call.namespace, call.name);
    let path = match a.subresource.as_str() {
        "portforward" => format!("/portForward/{at}{query}"),
        subresource => {
            if subresource == "log" {
                log::check(&call.name, &request.info.query)?;
            }
            let container = container(&call, &object, request.info.query.get("container"))?;
            let root = if subresource == "log" { "containerLogs" } else { subresource };
            format!("/{root}/{at}/{container}{query}")
        }
    };
    let node_name = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if node_name.is_empty() {
        return match a.subresource.as_str() {
            "log" => Ok(Found::Nothing),
            _ => Err(Error::BadRequest(format!("pod {} does not have a host assigned", call.name))),
        };
    }
    let node = registry.find(core("nodes"), "", node_name).await?;
    let node =
        node.ok_or_else(|| Error::NotFound { resource: "nodes".to_owned(), name: node_name.to_owned() })?;
    at_node(&node, path).map(Found::At)
}

/// The target of a proxy: a pod, one of a Service's, or a node.
async fn proxied(request: &Request<'_>, call: &Call, uri: &Uri, query: &str) -> Result<Target, Error> {
    let (registry, kubelets) = (&request.core.registry, &request.core.kubelets);
    let before = if request.resource.namespaced() { 7 } else { 5 };
    let path = format!("{}{query}", after(uri.path(), before));
    match request.resource.plural {
        "pods" => service::pod(registry, kubelets, call, path).await,
        "services" => service::service(registry, kubelets, call, path).await,
        _ => {
            let named = Named::parse("node", &call.name)?;
            let missing = || Error::NotFound { resource: "nodes".to_owned(), name: named.name.to_owned() };
            let node = registry.find(core("nodes"), "", named.name).await?.ok_or_else(missing)?;
            let kubelet = at_node(&node, path)?;
            if !kubelets.may_reach(kubelet.address) {
                return Err(Error::BadRequest("address not allowed".to_owned()));
            }
            let Some(port) = named.port.filter(|port| *port != kubelet.port.to_string()) else {
                return Ok(kubelet);
            };
            let port = port.parse();
            let port =
                port.map_err(|_| Error::BadRequest(format!("invalid node request {:?}", call.name)))?;
            Ok(Target { backend: named.backend, port, ..kubelet })
        }
    }
}

/// What follows the first few segments of a path, with its slash, as it was sent.
fn after(path: &str, segments: usize) -> &str {
    let slash = path.match_indices('/').nth(segments);
    slash.map(|(at, _)| &path[at..]).unwrap_or_default()
}

pub(super) fn at_node(node: &Value, path: String) -> Result<Target, Error> {
    let addresses: Vec<&Value> = node["status"]["addresses"].as_array().into_iter().flatten().collect();
    let by = |kind: &str| -> Option<IpAddr> {
        addresses.iter().find(|a| a["type"] == kind)?["address"].as_str()?.parse().ok()
    };
    let address = by("InternalIP").or_else(|| by("ExternalIP"));
    let address =
        address.ok_or_else(|| Error::Internal(format!("node {} has no address", meta::name(node))))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|&p| p > 0).unwrap_or(KUBELET_PORT);
    Ok(Target { backend: Backend::Kubelet, address, port, path })
}

/// The container that is meant: the one named, or the only one.
fn container(call: &Call, pod: &Value, named: Option<&str>) -> Result<String, Error> {
    let names = |field: &str| -> Vec<&str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let containers = names("containers");
    let all = || [names("initContainers"), containers.clone(), names("ephemeralContainers")].concat();
    let pod = &call.name;
    match (named, containers.as_slice()) {
        (Some(named), _) if all().contains(&named) => Ok(named.to_owned()),
        (Some(named), _) => Err(Error::BadRequest(format!("container {named} is not valid for pod {pod}"))),
        (None, [only]) => Ok((*only).to_owned()),
        (None, []) => Err(Error::BadRequest(format!("a container name must be specified for pod {pod}"))),
        (None, _) => Err(Error::BadRequest(format!(
            "a container name must be specified for pod {pod}, choose one of: [{}]",
            all().join(" ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_container() {
        let call = Call::own(core("pods"), "web", "p");
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&call, &one, None).unwrap(), "a");
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(
            container(&call, &two, None).unwrap_err().to_string(),
            "a container name must be specified for pod p, choose one of: [i a b]"
        );
        assert_eq!(container(&call, &two, Some("i")).unwrap(), "i");
        assert!(container(&call, &two, Some("x/../y")).is_err());
    }

    #[test]
    fn where_a_kubelet_is() {
        let node = json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.7"}]}});
        let target = at_node(&node, "/healthz".to_owned()).unwrap();
        assert_eq!(target.authority(), "10.0.0.7:10250");
        assert!(at_node(&json!({}), String::new()).is_err());
        assert_eq!(after("/api/v1/nodes/n/proxy/a%2Fb/c/", 5), "/a%2Fb/c/");
        assert_eq!(after("/api/v1/nodes/n/proxy/", 5), "/");
        assert_eq!(after("/api/v1/nodes/n/proxy", 5), "");
    }
}
