//! Whether the certificate that a node asks for its server names that node and nothing else: pure.
//!
//! Kubernetes leaves this to people or to approvers that one installs. A node says itself which addresses it
//! has, so an address counts only where no other node has it and the API server does not answer at it:
//! nobody gets a certificate by which it could pass for another.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::Subject;

/// Names that the API server answers to: no node may be called so.
const RESERVED: [&str; 2] = ["kubernetes", "localhost"];

/// The addresses of the API servers, by the EndpointSlices of the Service `kubernetes`.
pub(super) fn servers<S: Borrow<EndpointSlice>>(slices: &[S]) -> BTreeSet<IpAddr> {
    let own = slices.iter().map(Borrow::borrow).filter(|slice| {
        let service = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        slice.metadata.namespace.as_deref() == Some("default")
            && service.is_some_and(|name| name == "kubernetes")
    });
    let addresses =
        own.flat_map(|slice| slice.endpoints.iter().flatten()).flat_map(|endpoint| &endpoint.addresses);
    addresses.filter_map(|address| address.parse().ok()).collect()
}

/// Whether all that the certificate names is the node's own; if not, what is not.
pub(super) fn is_own<N: Borrow<Node>>(
    subject: &Subject,
    nodes: &[N],
    servers: &BTreeSet<IpAddr>,
) -> Result<(), String> {
    let name = subject.common_name.strip_prefix("system:node:").unwrap_or_default();
    let named = |node: &Node| node.metadata.name.as_deref() == Some(name);
    let Some(node) = nodes.iter().map(Borrow::borrow).find(|node| named(node)) else {
        return Err(format!("there is no node {name:?}"));
    };
    let first = name.split('.').next().unwrap_or_default();
    if RESERVED.contains(&first) {
        return Err(format!("a node must not be called {name:?}"));
    }
    if let Some(other) = subject.dns_names.iter().find(|dns| *dns != name) {
        return Err(format!("{other:?} is not the node's name"));
    }
    let own = addresses(node);
    for ip in &subject.ip_addresses {
        if !own.contains(ip) {
            return Err(format!("{ip} is no address of the node"));
        }
        if ip.is_loopback() || servers.contains(ip) {
            return Err(format!("{ip} is an address of the API server"));
        }
        let others = nodes.iter().map(Borrow::borrow).filter(|node| !named(node));
        if let Some(other) = others.into_iter().find(|node| addresses(node).contains(ip)) {
            return Err(format!("{ip} is an address of {:?}, too", other.metadata.name));
        }
    }
    Ok(())
}

/// The addresses that a node says it has.
pub(super) fn addresses(node: &Node) -> BTreeSet<IpAddr> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    all.filter_map(|address| address.address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, address: &str) -> Node {
        let node = json!({"metadata": {"name": name}, "status": {"addresses": [
            {"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]}});
        serde_json::from_value(node).unwrap()
    }

    fn asked(name: &str, dns: &[&str], ips: &[&str]) -> Subject {
        Subject {
            common_name: format!("system:node:{name}"),
            dns_names: dns.iter().map(|&name| name.to_owned()).collect(),
            ip_addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Subject::default()
        }
    }

    #[test]
    fn a_node_gets_a_certificate_for_itself_alone() {
        let slice = json!({"metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}]});
        let servers = servers(&[serde_json::from_value::<EndpointSlice>(slice).unwrap()]);
        let nodes = [
            node("n1", "10.0.0.11"),
            node("n2", "10.0.0.12"),
            node("twin", "10.0.0.12"),
            node("thief", "10.0.0.1"),
            node("kubernetes.default", "10.0.0.13"),
        ];
        let of = |name: &str, dns: &[&str], ips: &[&str]| is_own(&asked(name, dns, ips), &nodes, &servers);
        assert_eq!(of("n1", &["n1"], &["10.0.0.11"]), Ok(()));
        for (name, dns, ips, why) in [
            ("n1", vec!["n2"], vec![], "not the node's name"),
            ("n1", vec!["n1"], vec!["10.0.0.12"], "no address of the node"),
            ("n2", vec![], vec!["10.0.0.12"], "too"),
            ("thief", vec![], vec!["10.0.0.1"], "address of the API server"),
            ("kubernetes.default", vec!["kubernetes.default"], vec![], "must not be called"),
            ("n9", vec!["n9"], vec![], "there is no node"),
        ] {
            let error = of(name, &dns, &ips).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
