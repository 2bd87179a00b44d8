//! Services, Endpoints, EndpointSlices, Ingresses and network policies.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ClientIPConfig, Endpoints, Service, SessionAffinityConfig};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Kind, or, or_text};
use crate::field::{Error, Path};
use crate::{meta, names};

super::plain!(Endpoints, Ingress, IngressClass, IPAddress, ServiceCIDR);

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

impl Kind for Service {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or_text(&mut spec.type_, "ClusterIP");
        or_text(&mut spec.session_affinity, "None");
        if spec.session_affinity.as_deref() == Some("ClientIP") {
            const THREE_HOURS: i32 = 10_800;
            let config = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
            let client_ip = config.client_ip.get_or_insert_with(ClientIPConfig::default);
            or(&mut client_ip.timeout_seconds, THREE_HOURS);
        } else {
            spec.session_affinity_config = None;
        }
        for port in spec.ports.iter_mut().flatten() {
            or_text(&mut port.protocol, "TCP");
            if matches!(&port.target_port, None | Some(IntOrString::Int(0))) {
                port.target_port = Some(IntOrString::Int(port.port));
            }
        }
        let ty = spec.type_.as_deref().unwrap_or_default();
        let external = matches!(ty, "NodePort" | "LoadBalancer")
            || spec.external_ips.as_ref().is_some_and(|i| !i.is_empty());
        if external {
            or_text(&mut spec.external_traffic_policy, "Cluster");
        }
        if ty != "ExternalName" {
            or_text(&mut spec.internal_traffic_policy, "Cluster");
        }
        if ty == "LoadBalancer" {
            or(&mut spec.allocate_load_balancer_node_ports, true);
        }
    }

    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return errors.push(Error::required(&path, "")) };
        let ty = spec.type_.as_deref().unwrap_or_default();
        if !TYPES.contains(&ty) {
            errors.push(Error::not_supported(&path.child("type"), ty, TYPES));
        }
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let none = spec.ports.as_ref().is_none_or(Vec::is_empty);
        if none && !headless && ty != "ExternalName" {
            errors.push(Error::required(&path.child("ports"), ""));
        }
        if headless && matches!(ty, "NodePort" | "LoadBalancer") {
            errors.push(Error::invalid(
                &path.child("clusterIPs").index(0),
                "None",
                format!("may not be set to 'None' for {ty} services"),
            ));
        }
        if ty == "ExternalName" && spec.external_name.as_deref().unwrap_or_default().is_empty() {
            errors.push(Error::required(&path.child("externalName"), ""));
        }
        service_ports(self, &path.child("ports"), errors);
        let selector = serde_json::to_value(&spec.selector).unwrap_or_default();
        meta::validate_labels(Some(&selector), &path.child("selector"), errors);
        let affinity = spec.session_affinity.as_deref().unwrap_or_default();
        if !["None", "ClientIP"].contains(&affinity) {
            errors.push(Error::not_supported(
                &path.child("sessionAffinity"),
                affinity,
                &["ClientIP", "None"],
            ));
        }
        let old_ip = old
            .and_then(|o| o.spec.as_ref())
            .and_then(|s| s.cluster_ip.as_deref())
            .filter(|ip| !ip.is_empty());
        let old_type = old.and_then(|o| o.spec.as_ref()).and_then(|s| s.type_.as_deref());
        if let Some(old_ip) = old_ip
            && ty != "ExternalName"
            && old_type != Some("ExternalName")
            && spec.cluster_ip.as_deref() != Some(old_ip)
        {
            let new = spec.cluster_ip.clone().unwrap_or_default();
            errors.push(Error::invalid(&path.child("clusterIPs").index(0), new, "may not change once set"));
        }
    }
}

fn service_ports(service: &Service, path: &Path, errors: &mut Vec<Error>) {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let (mut names_seen, mut numbers_seen) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(Error::required(&at.child("name"), ""));
            }
        } else {
            errors.extend(
                names::dns_label(name).into_iter().map(|why| Error::invalid(&at.child("name"), name, why)),
            );
            if !names_seen.insert(name) {
                errors.push(Error::duplicate(&at.child("name"), name));
            }
        }
        errors.extend(
            names::port_number(port.port)
                .into_iter()
                .map(|why| Error::invalid(&at.child("port"), port.port, why)),
        );
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if !["TCP", "UDP", "SCTP"].contains(&protocol) {
            errors.push(Error::not_supported(&at.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
        if !numbers_seen.insert((protocol, port.port)) {
            errors.push(Error::duplicate(&at, serde_json::json!({"port": port.port, "protocol": protocol})));
        }
        let target = at.child("targetPort");
        match &port.target_port {
            Some(IntOrString::Int(n)) => {
                errors.extend(names::port_number(*n).into_iter().map(|why| Error::invalid(&target, *n, why)))
            }
            Some(IntOrString::String(s)) => errors
                .extend(names::port_name(s).into_iter().map(|why| Error::invalid(&target, s.as_str(), why))),
            None => {}
        }
    }
}

impl Kind for EndpointSlice {
    fn default_fields(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            or(&mut port.name, String::new());
            or_text(&mut port.protocol, "TCP");
        }
    }

    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        const MAX_ENDPOINTS: usize = 1000;
        let path = Path::new("addressType");
        if !["IPv4", "IPv6", "FQDN"].contains(&self.address_type.as_str()) {
            errors.push(Error::not_supported(&path, self.address_type.as_str(), &["FQDN", "IPv4", "IPv6"]));
        }
        let endpoints = self.endpoints.as_deref().unwrap_or_default();
        if endpoints.len() > MAX_ENDPOINTS {
            errors.push(Error::too_many(&Path::new("endpoints"), endpoints.len(), MAX_ENDPOINTS));
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            if endpoint.addresses.is_empty() {
                errors.push(Error::required(
                    &Path::new("endpoints").index(i).child("addresses"),
                    "must contain at least 1 address",
                ));
            }
        }
        if old.is_some_and(|o| o.address_type != self.address_type) {
            errors.push(Error::invalid(&path, self.address_type.as_str(), "field is immutable"));
        }
    }
}

impl Kind for NetworkPolicy {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        let rules = spec.ingress.iter_mut().flatten().flat_map(|r| r.ports.iter_mut().flatten());
        let rules = rules.chain(spec.egress.iter_mut().flatten().flat_map(|r| r.ports.iter_mut().flatten()));
        rules.for_each(|port| or_text(&mut port.protocol, "TCP"));
        if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
            let mut types = vec!["Ingress".to_owned()];
            types.extend(spec.egress.as_ref().filter(|e| !e.is_empty()).map(|_| "Egress".to_owned()));
            spec.policy_types = Some(types);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{errors, normalized};
    use serde_json::{Value, json};

    fn service(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec})
    }

    #[test]
    fn defaults() {
        let got =
            normalized("", "v1", "services", service(json!({"type": "NodePort", "ports": [{"port": 80}]})));
        assert_eq!(
            got["spec"],
            json!({"type": "NodePort", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster",
                "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}]})
        );
    }

    #[test]
    fn validation() {
        assert_eq!(errors("", "v1", "services", service(json!({}))), ["spec.ports: Required value"]);
        let got = errors(
            "",
            "v1",
            "services",
            service(json!({"type": "X", "ports": [{"port": 0}, {"port": 80, "name": "a"}]})),
        );
        for want in [
            "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            "spec.ports[0].name: Required value",
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ] {
            assert!(got.iter().any(|g| g == want), "{want}\n{got:#?}");
        }
    }
}
