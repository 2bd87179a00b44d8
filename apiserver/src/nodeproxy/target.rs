//! Which kubelet a request is for, and what it is asked there.

use std::net::IpAddr;

use decapod_api::meta;
use decapod_api::status::Error;
use http::Uri;
use serde_json::Value;

use super::service;
use crate::endpoint::Request;
use crate::registry::{Call, core};

/// Where a kubelet listens that does not say.
const KUBELET_PORT: u16 = 10250;
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Where a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// At a kubelet, by TLS with the API server's certificate.
    Kubelet,
    /// At a pod, as it is.
    Pod,
}

/// A path at a kubelet or pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) backend: Backend,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) path: String,
}

impl Target {
    pub(super) fn authority(&self) -> String {
        std::net::SocketAddr::new(self.address, self.port).to_string()
    }
}

pub(super) async fn find(request: &Request<'_>, uri: &Uri) -> Result<Target, Error> {
    let call = request.call()?;
    let a = &request.info.attributes;
    let registry = &request.core.registry;
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    if a.subresource == "proxy" {
        let before = if request.resource.namespaced() { 7 } else { 5 };
        let path = format!("/{}{query}", after(uri.path(), before));
        return match request.resource.plural {
            "pods" => service::pod(registry, &call, path).await,
            "services" => service::service(registry, &call, path).await,
            _ => {
                let (node, _) = registry.current(&call).await?.ok_or_else(|| call.not_found())?;
                at_node(&node, path)
            }
        };
    }
    let (object, _) = registry.current(&call).await?.ok_or_else(|| call.not_found())?;
    let node_name = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if node_name.is_empty() {
        return Err(Error::BadRequest(format!("pod {} does not have a host assigned", call.name)));
    }
    let at = format!("{}/{}", call.namespace, call.name);
    let path = match a.subresource.as_str() {
        "portforward" => format!("/portForward/{at}{query}"),
        subresource => {
            let container = container(&call, &object, request.info.query.get("container"))?;
            let root = if subresource == "log" { "containerLogs" } else { subresource };
            format!("/{root}/{at}/{container}{query}")
        }
    };
    let node = registry.find(core("nodes"), "", node_name).await?;
    let node =
        node.ok_or_else(|| Error::NotFound { resource: "nodes".to_owned(), name: node_name.to_owned() })?;
    at_node(&node, path)
}

/// What follows the first few segments of a path, as it was sent.
fn after(path: &str, segments: usize) -> &str {
    path.splitn(segments + 2, '/').nth(segments + 1).unwrap_or_default()
}

fn at_node(node: &Value, path: String) -> Result<Target, Error> {
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

/// The container that is meant: the one named, the one annotated, or the only one.
fn container(call: &Call, pod: &Value, named: Option<&str>) -> Result<String, Error> {
    let names = |field: &str| -> Vec<&str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let ephemeral = names("ephemeralContainers");
    if let Some(named) = named {
        let known = [&containers, &init, &ephemeral].iter().any(|list| list.contains(&named));
        return if known {
            Ok(named.to_owned())
        } else {
            Err(Error::BadRequest(format!("container {named} is not valid for pod {}", call.name)))
        };
    }
    let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    match (annotated.filter(|a| containers.contains(a)), containers.as_slice()) {
        (Some(annotated), _) => Ok(annotated.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (None, []) => {
            Err(Error::BadRequest(format!("a container name must be specified for pod {}", call.name)))
        }
        (None, several) => {
            let mut message = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                call.name,
                several.join(" ")
            );
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Error::BadRequest(message))
        }
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
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&call, &two, Some("i")).unwrap(), "i");
        assert!(container(&call, &two, Some("x/../y")).is_err());
        let annotated = json!({"metadata": {"annotations": {DEFAULT_CONTAINER: "b"}}, "spec": two["spec"]});
        assert_eq!(container(&call, &annotated, None).unwrap(), "b");
    }

    #[test]
    fn where_a_kubelet_is() {
        let node = json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.7"}]}});
        let target = at_node(&node, "/healthz".to_owned()).unwrap();
        assert_eq!(target.authority(), "10.0.0.7:10250");
        assert!(at_node(&json!({}), String::new()).is_err());
        assert_eq!(after("/api/v1/nodes/n/proxy/a%2Fb/c/", 5), "a%2Fb/c/");
        assert_eq!(after("/api/v1/nodes/n/proxy", 5), "");
    }
}
