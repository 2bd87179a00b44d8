//! Which NetworkPolicies stand between two ends: a pure decision from the objects.
//!
//! A pod that no policy selects for a direction lets everything through in that direction. One that is selected lets
//! through what a rule of at least one of the policies names.

use decapod_api::labels::Selector;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

/// One end of a connection.
pub(super) struct End<'a> {
    pub(super) pod: &'a Pod,
    pub(super) namespace: &'a Namespace,
}

/// Which way a policy is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }
}

fn selects(selector: Option<&LabelSelector>, of: &impl ResourceExt) -> bool {
    // What cannot be read selects nothing: the API server does not let it in.
    let Some(Ok(selector)) = selector.map(Selector::try_from) else { return false };
    selector.matches(of.labels())
}

/// The policies that speak about this direction at this pod.
fn about<'a>(policies: &'a [NetworkPolicy], pod: &Pod, direction: Direction) -> Vec<&'a NetworkPolicy> {
    let mut about: Vec<_> = policies.iter().collect();
    about.retain(|policy| {
        let Some(spec) = &policy.spec else { return false };
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let speaks = match direction {
            // Without types it is about what comes in, and about what goes out if it says so.
            _ if !types.is_empty() => types.iter().any(|type_| type_ == direction.name()),
            Direction::Ingress => true,
            Direction::Egress => spec.egress.is_some(),
        };
        let empty = LabelSelector::default();
        let selector = spec.pod_selector.as_ref().unwrap_or(&empty);
        speaks && policy.namespace() == pod.namespace() && selects(Some(selector), pod)
    });
    about
}

fn is_peer(peer: &NetworkPolicyPeer, policy: &NetworkPolicy, other: &End<'_>) -> bool {
    if let Some(block) = &peer.ip_block {
        let ip: Option<std::net::IpAddr> =
            other.pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        let holds =
            |range: &str| range.parse::<IpNet>().is_ok_and(|range| ip.is_some_and(|ip| range.contains(&ip)));
        return holds(&block.cidr) && !block.except.iter().flatten().any(|range| holds(range));
    }
    let in_namespace = match &peer.namespace_selector {
        Some(selector) => selects(Some(selector), other.namespace),
        None => policy.namespace() == other.pod.namespace(),
    };
    in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| selects(Some(selector), other.pod))
}

fn is_port(ports: &[NetworkPolicyPort], target: &Pod, port: u16) -> bool {
    let named = |name: &str| {
        let containers = target.spec.iter().flat_map(|spec| &spec.containers);
        let mut all = containers.flat_map(|container| container.ports.iter().flatten());
        all.any(|one| one.name.as_deref() == Some(name) && one.container_port == i32::from(port))
    };
    ports.is_empty()
        || ports.iter().any(|one| {
            let tcp = one.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            tcp && match (&one.port, one.end_port) {
                (None, _) => true,
                (Some(IntOrString::Int(from)), Some(to)) => (*from..=to).contains(&i32::from(port)),
                (Some(IntOrString::Int(only)), None) => *only == i32::from(port),
                (Some(IntOrString::String(name)), _) => named(name),
            }
        })
}

fn lets(policy: &NetworkPolicy, direction: Direction, other: &End<'_>, target: &Pod, port: u16) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let peers = |peers: Option<&Vec<NetworkPolicyPeer>>| {
        peers.is_none_or(|peers| peers.is_empty() || peers.iter().any(|peer| is_peer(peer, policy, other)))
    };
    let ports = |ports: Option<&Vec<NetworkPolicyPort>>| {
        is_port(ports.map(Vec::as_slice).unwrap_or_default(), target, port)
    };
    match direction {
        Direction::Ingress => {
            spec.ingress.iter().flatten().any(|rule| peers(rule.from.as_ref()) && ports(rule.ports.as_ref()))
        }
        Direction::Egress => {
            spec.egress.iter().flatten().any(|rule| peers(rule.to.as_ref()) && ports(rule.ports.as_ref()))
        }
    }
}

/// The policies because of which TCP from one pod does not reach a port of the other; none if it does.
pub(super) fn denies(
    policies: &[NetworkPolicy],
    from: Option<&End<'_>>,
    to: &End<'_>,
    port: u16,
) -> Vec<(Direction, String)> {
    let Some(from) = from else { return Vec::new() };
    let mut denies = Vec::new();
    for (direction, here, other) in [(Direction::Egress, from, to), (Direction::Ingress, to, from)] {
        let about = about(policies, here.pod, direction);
        if about.iter().any(|policy| lets(policy, direction, other, to.pod, port)) {
            continue;
        }
        let name = |policy: &&NetworkPolicy| {
            (direction, format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any()))
        };
        denies.extend(about.iter().map(name));
    }
    denies
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, app: &str, ip: &str) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"podIP": ip}}),
        )
        .unwrap()
    }

    fn decided(policies: Value, port: u16) -> Vec<(Direction, String)> {
        let policies: Vec<NetworkPolicy> = serde_json::from_value(policies).unwrap();
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "shop", "labels": {"team": "a"}}})).unwrap();
        let (web, db) = (pod("web", "web", "10.0.0.1"), pod("db", "db", "10.0.0.2"));
        let (from, to) = (End { pod: &web, namespace: &namespace }, End { pod: &db, namespace: &namespace });
        denies(&policies, Some(&from), &to, port)
    }

    fn policy(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    }

    #[test]
    fn without_policies_all_is_let_through() {
        assert!(decided(json!([]), 8080).is_empty());
        let other = policy("other", json!({"podSelector": {"matchLabels": {"app": "cache"}}}));
        assert!(decided(json!([other]), 8080).is_empty());
    }

    #[test]
    fn the_policy_that_lets_nothing_in_is_named_unless_another_lets_it_in() {
        let none = policy("default-deny", json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
        assert_eq!(decided(json!([none]), 8080), [(Direction::Ingress, "shop/default-deny".to_owned())]);
        let web = policy(
            "web",
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]}]}),
        );
        assert!(decided(json!([none, web]), 8080).is_empty());
        assert_eq!(decided(json!([none, web]), 9090).len(), 2, "another port");
        let block = policy(
            "block",
            json!({"podSelector": {}, "ingress": [
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24"]}}]}]}),
        );
        assert_eq!(decided(json!([block]), 8080).len(), 1);
        let team = policy(
            "team",
            json!({"podSelector": {}, "ingress": [
            {"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}], "ports": [{"port": 8000, "endPort": 8100}]}]}),
        );
        assert!(decided(json!([team]), 8080).is_empty());
    }

    #[test]
    fn what_may_not_go_out_is_told_apart() {
        let none = policy(
            "closed",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]}),
        );
        assert_eq!(decided(json!([none]), 8080), [(Direction::Egress, "shop/closed".to_owned())]);
    }
}
