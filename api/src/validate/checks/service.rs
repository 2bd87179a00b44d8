//! Services.

use super::super::{At, Errors, form};
use super::network::endpoint_ip;
use crate::names;

/// The longest time a client may stick to an endpoint, in seconds.
const MAX_AFFINITY: i64 = 86_400;

fn headless(spec: &At<'_>) -> bool {
    spec.get("clusterIP").text() == "None"
}

/// A whole service: what its update must not change.
pub(super) fn service(at: &At<'_>, errors: &mut Errors) {
    let spec = at.get("spec");
    let (old, ty) = (spec.before(), spec.get("type").text());
    let old_type = old.get("type").text();
    if spec.old.is_none() || ty == "ExternalName" || old_type == "ExternalName" {
        return;
    }
    let class = spec.get("loadBalancerClass");
    if ty == "LoadBalancer" && old_type == ty && class.changed() {
        errors.invalid(&class, "may not change once set");
    }
    let checked = |s: &At<'_>| {
        s.get("type").text() == "LoadBalancer" && s.get("externalTrafficPolicy").text() == "Local"
    };
    let check = spec.get("healthCheckNodePort");
    if checked(&spec) && checked(&old) && check.changed() {
        errors.invalid(&check, "field is immutable");
    }
    if headless(&spec) && headless(&old) {
        return;
    }
    fixed(&spec, "clusterIPs", "primary clusterIP can not be unset", errors);
    if headless(&spec) == headless(&old) {
        fixed(&spec, "ipFamilies", "primary ipFamily can not be unset", errors);
    }
}

/// The first item stays; a second one may come, or go with the policy.
fn fixed(spec: &At<'_>, field: &str, unset: &str, errors: &mut Errors) {
    let list = spec.get(field);
    let old = list.before();
    let first = At { path: list.path.index(0), ..list.clone() };
    if old.is_empty() {
        return;
    }
    if list.is_empty() {
        return errors.invalid(&first, unset);
    }
    for (i, (new, old)) in list.items().zip(old.items()).enumerate() {
        if new.value != old.value {
            errors.invalid(&At { path: list.path.index(i), ..list.clone() }, "may not change once set");
        }
    }
    let policy = spec.get("ipFamilyPolicy");
    if old.len() > 1 && list.len() == 1 && policy.text() != "SingleStack" {
        let what = if field == "clusterIPs" { "clusterIP" } else { "ipFamily" };
        let why = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        errors.invalid(&policy, why);
    }
}

/// A service's spec.
pub(super) fn spec(at: &At<'_>, errors: &mut Errors) {
    let ty = at.get("type").text();
    let addresses = at.get("clusterIPs");
    if at.get("ports").is_empty() && !headless(at) && ty != "ExternalName" {
        errors.required(&at.get("ports"), "");
    }
    match ty {
        "LoadBalancer" | "NodePort" if headless(at) => {
            let first = At { path: addresses.path.index(0), ..addresses.clone() };
            let why = format!("may not be set to 'None' for {ty} services");
            errors.invalid_value(&first, "None", why);
        }
        "ExternalName" => external_name(at, errors),
        _ => {}
    }
    ports(at, errors);
    affinity(at, errors);
    cluster_ips(at, errors);
    load_balancer(at, errors);
    traffic(at, errors);
    at.get("externalIPs").items().for_each(|ip| endpoint_ip(&ip, errors));
}

fn external_name(at: &At<'_>, errors: &mut Errors) {
    const WHY: &str = "may not be set for ExternalName services";
    for field in ["clusterIPs", "ipFamilies"] {
        if !at.get(field).is_empty() {
            errors.forbidden(&at.get(field), WHY);
        }
    }
    errors.forbid(&at.get("ipFamilyPolicy"), WHY);
    let name = at.get("externalName");
    match name.text().strip_suffix('.').unwrap_or(name.text()) {
        "" => errors.required(&name, ""),
        text => errors.invalid_all_of(&name, text, names::dns_subdomain(text)),
    }
}

fn ports(at: &At<'_>, errors: &mut Errors) {
    let ports = at.get("ports");
    let (mut seen, mut numbers, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    for port in ports.items() {
        let (name, node) = (port.get("name"), port.get("nodePort"));
        if name.is_empty() && ports.len() > 1 {
            errors.required(&name, "");
        } else if !name.is_empty() && seen.contains(&name.text()) {
            errors.duplicate(&name);
        }
        seen.push(name.text());
        let key = (port.get("protocol").text(), port.get("port").int());
        if numbers.contains(&key) {
            let value = serde_json::json!({"port": port.value["port"], "protocol": port.value["protocol"]});
            errors.duplicate_of(&port, value);
        }
        numbers.push(key);
        let Some(number) = node.int().filter(|n| *n != 0) else { continue };
        if at.get("type").text() == "ClusterIP" {
            errors.forbidden(&node, "may not be used when `type` is 'ClusterIP'");
        }
        if nodes.contains(&(key.0, number)) {
            errors.duplicate(&node);
        }
        nodes.push((key.0, number));
    }
}

fn affinity(at: &At<'_>, errors: &mut Errors) {
    let config = at.get("sessionAffinityConfig");
    match at.get("sessionAffinity").text() {
        "None" => errors.forbid(&config, "must not be set when session affinity is None"),
        "ClientIP" => {
            let seconds = config.at(&["clientIP", "timeoutSeconds"]);
            match seconds.int() {
                None => errors.required(&seconds, "when session affinity type is ClientIP"),
                Some(n) if !(1..=MAX_AFFINITY).contains(&n) => {
                    errors.invalid(&seconds, format!("must be greater than 0 and less than {MAX_AFFINITY}"));
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

fn cluster_ips(at: &At<'_>, errors: &mut Errors) {
    let (ip, ips, families) = (at.get("clusterIP"), at.get("clusterIPs"), at.get("ipFamilies"));
    if at.get("type").text() == "ExternalName" {
        return;
    }
    let first = ips.items().next();
    if !ip.is_empty() && !ips.is_empty() && first.as_ref().is_some_and(|f| f.value != ip.value) {
        errors.invalid(&ips, "first value must match `clusterIP`");
    }
    if ip.is_empty() && !ips.is_empty() {
        errors.invalid(&ips, "must be empty when `clusterIP` is not specified");
    }
    if ips.len() > 2 {
        errors.invalid(&ips, "may only hold up to 2 values");
    }
    let mut kinds = Vec::new();
    for (i, address) in ips.items().enumerate() {
        if address.text() == "None" {
            if ips.len() > 1 {
                errors.invalid(&ips, "'None' must be the first and only value");
            }
            continue;
        }
        let Some(parsed) = form::address(address.text()) else {
            errors.invalid_all(&address, form::ip(address.text()));
            continue;
        };
        kinds.push(parsed.is_ipv4());
        match families.value[i].as_str() {
            Some("IPv4") if !parsed.is_ipv4() => {
                let why = format!("expected an IPv4 value as indicated by `ipFamilies[{i}]`");
                errors.invalid(&address, why);
            }
            Some("IPv6") if parsed.is_ipv4() => {
                let why = format!("expected an IPv6 value as indicated by `ipFamilies[{i}]`");
                errors.invalid(&address, why);
            }
            _ => {}
        }
    }
    if kinds.len() == 2 && kinds[0] == kinds[1] {
        errors.invalid(&ips, "may specify no more than one IP for each IP family");
    }
    // The template of a request without the list of addresses names one only.
    if ips.is_empty() && !matches!(ip.text(), "" | "None") {
        errors.invalid_all(&ip, form::ip(ip.text()));
    }
}

fn load_balancer(at: &At<'_>, errors: &mut Errors) {
    const WHY: &str = "may only be used when `type` is 'LoadBalancer'";
    let balanced = at.get("type").text() == "LoadBalancer";
    let ranges = at.get("loadBalancerSourceRanges");
    // Kubernetes spells this path with a capital.
    let spelled = At { path: at.path.child("LoadBalancerSourceRanges"), ..ranges.clone() };
    for range in spelled.items() {
        errors.invalid_all(&range, form::cidr(range.text().trim()));
    }
    let class = at.get("loadBalancerClass");
    if balanced {
        if class.is_set() {
            errors.invalid_all(&class, names::qualified(class.text()));
        }
        return;
    }
    if !ranges.is_empty() {
        errors.forbidden(&spelled, WHY);
    }
    errors.forbid(&at.get("allocateLoadBalancerNodePorts"), WHY);
    errors.forbid(&class, WHY);
}

fn traffic(at: &At<'_>, errors: &mut Errors) {
    let ty = at.get("type").text();
    let (policy, check) = (at.get("externalTrafficPolicy"), at.get("healthCheckNodePort"));
    let outside =
        matches!(ty, "LoadBalancer" | "NodePort") || (ty == "ClusterIP" && !at.get("externalIPs").is_empty());
    if outside {
        errors.require(&policy);
        if !policy.is_empty() {
            errors.one_of(&policy, &["Cluster", "Local"]);
        }
    } else if !policy.is_empty() {
        errors.invalid(&policy, "may only be set for externally-accessible services");
    }
    let local = ty == "LoadBalancer" && policy.text() == "Local";
    let number = check.int().unwrap_or(0);
    if !local && number != 0 {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&check, why);
    } else if local && number != 0 {
        errors.invalid_all(&check, form::port(check.value));
    }
}
