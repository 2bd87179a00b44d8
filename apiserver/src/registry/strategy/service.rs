//! Services: their cluster addresses and node ports.
//!
//! **Invariant**: what a stored Service names is allocated to it, and what a deleted one named is
//! given back (see [`super::super::allocate`]).

use async_trait::async_trait;
use decapod_api::field;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::super::allocate::{Allocation, Claim, allocations};
use super::super::object::items_mut;
use super::super::{Call, Registry};
use super::Strategy;

pub(super) struct Service;

fn kind(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn needs_address(service: &Value) -> bool {
    kind(service) != "ExternalName"
}

fn needs_node_ports(service: &Value) -> bool {
    match kind(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != Value::Bool(false),
        _ => false,
    }
}

/// Whether load balancers ask nodes whether they have endpoints of this Service.
fn needs_health_port(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

fn health_port(service: &Value) -> Option<u16> {
    service["spec"]["healthCheckNodePort"].as_u64().and_then(|p| u16::try_from(p).ok()).filter(|&p| p > 0)
}

fn address(service: &Value) -> &str {
    service["spec"]["clusterIP"].as_str().unwrap_or_default()
}

fn node_port(port: &Value) -> Option<u16> {
    port["nodePort"].as_u64().and_then(|p| u16::try_from(p).ok()).filter(|&p| p > 0)
}

fn ports(service: &Value) -> &[Value] {
    service["spec"]["ports"].as_array().map_or(&[], Vec::as_slice)
}

#[async_trait]
impl Strategy for Service {
    fn create_on_update(&self) -> bool {
        true
    }

    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        complete_addresses(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        drop_unneeded(new, old);
        carry_over(new, old);
        complete_addresses(new);
    }

    async fn claim(
        &self,
        registry: &Registry,
        call: &Call,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Claim, Error> {
        let refused = foreign_families(new);
        if !refused.is_empty() {
            return Err(call.invalid(&call.name, refused));
        }
        let mut claim = Claim::default();
        let held = old.map(allocations).unwrap_or_default();
        let taken = take_all(registry, &mut claim, new, &held).await;
        if let Err(error) = taken {
            claim.cancel(registry).await;
            return Err(call.invalid(&call.name, vec![error]));
        }
        let kept = allocations(new);
        held.into_iter().filter(|h| !kept.contains(h)).for_each(|h| claim.free(h));
        Ok(claim)
    }

    async fn released(&self, registry: &Registry, old: &Value) {
        registry.release(&allocations(old)).await;
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}

async fn take_all(
    registry: &Registry,
    claim: &mut Claim,
    service: &mut Value,
    held: &[Allocation],
) -> Result<(), field::Error> {
    let wanted = address(service).to_owned();
    if needs_address(service) && wanted != "None" && !held.contains(&Allocation::Address(wanted.clone())) {
        let wanted = Some(wanted.as_str()).filter(|w| !w.is_empty());
        let taken = registry.take_address(claim, service, wanted).await?;
        service["spec"]["clusterIP"] = taken.clone().into();
        service["spec"]["clusterIPs"] = json!([taken]);
    }
    let automatic = needs_node_ports(service);
    let mut mine: Vec<u16> = Vec::new();
    for index in 0..ports(service).len() {
        let wanted = node_port(&ports(service)[index]);
        let Some(port) = wanted else {
            if automatic {
                let path = field::Path::new("spec").child("ports").index(index).child("nodePort");
                let port = registry.take_node_port(claim, service, &path, None).await?;
                service["spec"]["ports"][index]["nodePort"] = port.into();
                mine.push(port);
            }
            continue;
        };
        // TCP and UDP of one Service may share a number.
        if !held.contains(&Allocation::NodePort(port)) && !mine.contains(&port) {
            let path = field::Path::new("spec").child("ports").index(index).child("nodePort");
            registry.take_node_port(claim, service, &path, Some(port)).await?;
        }
        mine.push(port);
    }
    if needs_health_port(service) {
        let wanted = health_port(service);
        let has = wanted.is_some_and(|port| held.contains(&Allocation::NodePort(port)));
        if !has {
            let path = field::Path::new("spec").child("healthCheckNodePort");
            let port = registry.take_node_port(claim, service, &path, wanted).await?;
            service["spec"]["healthCheckNodePort"] = port.into();
        }
    }
    Ok(())
}

/// Services have IPv4 addresses only: what asks for more is told so, rather than left waiting.
fn foreign_families(service: &Value) -> Vec<field::Error> {
    let path = field::Path::new("spec");
    let mut errors = Vec::new();
    if !needs_address(service) {
        return errors;
    }
    for (i, family) in service["spec"]["ipFamilies"].as_array().into_iter().flatten().enumerate() {
        if family != "IPv4" {
            let path = path.child("ipFamilies").index(i);
            errors.push(field::Error::invalid(&path, family.clone(), "not configured on this cluster"));
        }
    }
    if service["spec"]["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(field::Error::invalid(&path.child("ipFamilyPolicy"), "RequireDualStack", why));
    }
    let addresses = &service["spec"]["clusterIPs"];
    if addresses.as_array().is_some_and(|addresses| addresses.len() > 1) {
        let why = "may only hold up to 1 value: this cluster has IPv4 Services only";
        errors.push(field::Error::invalid(&path.child("clusterIPs"), addresses.clone(), why));
    }
    errors
}

/// `clusterIP` and `clusterIPs` say the same, and the families follow.
fn complete_addresses(service: &mut Value) {
    let external = !needs_address(service);
    let first = service["spec"]["clusterIPs"][0].as_str().map(str::to_owned);
    let single = address(service).to_owned();
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if external {
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
        return;
    }
    match (single.as_str(), first) {
        ("", Some(first)) => drop(spec.insert("clusterIP".to_owned(), first.into())),
        (single, None) if !single.is_empty() => drop(spec.insert("clusterIPs".to_owned(), json!([single]))),
        _ => {}
    }
    spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
    spec.entry("ipFamilyPolicy").or_insert_with(|| "SingleStack".into());
}

/// Whether traffic from outside the cluster is led to it.
fn reached_from_outside(service: &Value) -> bool {
    let more = service["spec"]["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty());
    matches!(kind(service), "NodePort" | "LoadBalancer") || (kind(service) == "ClusterIP" && more)
}

/// Fields that only services of the old form have go, where the user left them as they were.
fn drop_fields(new: &mut Value, old: &Value) {
    let balanced = |service: &Value| kind(service) == "LoadBalancer";
    let rules: [(&str, bool, bool); 4] = [
        ("externalTrafficPolicy", reached_from_outside(old), reached_from_outside(new)),
        ("healthCheckNodePort", needs_health_port(old), needs_health_port(new)),
        ("allocateLoadBalancerNodePorts", balanced(old), balanced(new)),
        ("loadBalancerClass", balanced(old), balanced(new)),
    ];
    for (field, before, after) in rules {
        if before
            && !after
            && new["spec"][field] == old["spec"][field]
            && let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.remove(field);
        }
    }
}

/// A change of type drops what the new type has no use for, where the user left it as it was.
fn drop_unneeded(new: &mut Value, old: &Value) {
    if needs_address(old)
        && !needs_address(new)
        && address(new) == address(old)
        && let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    drop_fields(new, old);
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        new["status"]["loadBalancer"] = json!({});
    }
    if needs_node_ports(old) && !needs_node_ports(new) {
        let before: Vec<u16> = ports(old).iter().filter_map(node_port).collect();
        for port in items_mut(new, &["spec", "ports"]) {
            if node_port(port).is_some_and(|p| before.contains(&p))
                && let Some(port) = port.as_object_mut()
            {
                port.remove("nodePort");
            }
        }
    }
}

/// What the user left out and the server once chose stays.
fn carry_over(new: &mut Value, old: &Value) {
    if needs_address(new) && needs_address(old) && address(new).is_empty() && !address(old).is_empty() {
        for field in ["clusterIP", "clusterIPs"] {
            new["spec"][field] = old["spec"][field].clone();
        }
    }
    // Who changes the one address by its old name means the list too.
    let renamed = !address(new).is_empty() && address(new) != address(old);
    if renamed && new["spec"]["clusterIPs"] == old["spec"]["clusterIPs"] {
        new["spec"]["clusterIPs"] = json!([address(new)]);
    }
    if needs_health_port(new)
        && needs_health_port(old)
        && health_port(new).is_none()
        && let Some(port) = health_port(old)
    {
        new["spec"]["healthCheckNodePort"] = port.into();
    }
    if !(needs_node_ports(new) && needs_node_ports(old)) {
        return;
    }
    let mut used: Vec<u16> = ports(new).iter().filter_map(node_port).collect();
    for port in items_mut(new, &["spec", "ports"]) {
        if node_port(port).is_some() {
            continue;
        }
        let same = |p: &&Value| p["port"] == port["port"] && p["protocol"] == port["protocol"];
        if let Some(number) = ports(old).iter().find(same).and_then(node_port)
            && !used.contains(&number)
        {
            port["nodePort"] = number.into();
            used.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_type_drops_and_keeps() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
        Service.prepare_update(&mut new, &old);
        assert_eq!(
            (address(&new), node_port(&ports(&new)[0]), node_port(&ports(&new)[1])),
            ("10.96.1.1", Some(30080), None)
        );
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        Service.prepare_update(&mut new, &old);
        assert_eq!(node_port(&ports(&new)[0]), None);
        let mut new = old.clone();
        new["spec"]["type"] = "ExternalName".into();
        Service.prepare_update(&mut new, &old);
        assert_eq!(address(&new), "");
    }
}
