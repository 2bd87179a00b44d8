//! Services, Endpoints, EndpointSlices, Ingresses and network policies.

use k8s_openapi::api::core::v1::{ClientIPConfig, Endpoints, Service, SessionAffinityConfig};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Kind, or, or_text};

super::plain!(Ingress, IPAddress, ServiceCIDR);

impl Kind for Endpoints {
    fn default_fields(&mut self) {
        let ports = self.subsets.iter_mut().flatten().flat_map(|s| s.ports.iter_mut().flatten());
        ports.for_each(|port| or_text(&mut port.protocol, "TCP"));
    }
}

impl Kind for IngressClass {
    fn default_fields(&mut self) {
        if let Some(parameters) = self.spec.as_mut().and_then(|s| s.parameters.as_mut()) {
            or_text(&mut parameters.scope, "Cluster");
        }
    }
}

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
            || (ty == "ClusterIP" && spec.external_ips.as_ref().is_some_and(|i| !i.is_empty()));
        if external {
            or_text(&mut spec.external_traffic_policy, "Cluster");
        }
        if ty != "ExternalName" {
            or_text(&mut spec.internal_traffic_policy, "Cluster");
        }
        if ty == "LoadBalancer" {
            or(&mut spec.allocate_load_balancer_node_ports, true);
            let balancer = self.status.as_mut().and_then(|status| status.load_balancer.as_mut());
            let ingress = balancer.into_iter().flat_map(|b| b.ingress.iter_mut().flatten());
            for address in ingress.filter(|i| i.ip.as_deref().is_some_and(|ip| !ip.is_empty())) {
                or(&mut address.ip_mode, "VIP".to_owned());
            }
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
