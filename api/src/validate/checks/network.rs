//! Endpoints, EndpointSlices, Ingresses, network policies, addresses.

use std::net::IpAddr;

use super::super::{At, Errors, form};
use crate::names;

/// An address that traffic can be sent to.
pub(super) fn endpoint_ip(at: &At<'_>, errors: &mut Errors) {
    let Some(ip) = form::address(at.text()) else { return };
    let (local, multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        errors.invalid(at, format!("may not be unspecified ({ip})"));
    }
    if ip.is_loopback() {
        errors.invalid(at, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if local {
        errors.invalid(at, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        errors.invalid(at, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Whether this is how the API server itself is reached: where it listens is its own affair, and on a
/// developer's machine that is the loopback.
fn server(at: &At<'_>) -> bool {
    let metadata = at.get("metadata");
    metadata.get("name").text() == "kubernetes" && metadata.get("namespace").text() == "default"
}

/// Endpoints: what was there stays as it is.
pub(super) fn endpoints(at: &At<'_>, errors: &mut Errors) {
    if at.get("subsets").unchanged() || server(at) {
        return;
    }
    for address in at.get("subsets").items().flat_map(|s| s.get("addresses").items()) {
        endpoint_ip(&address.get("ip"), errors);
    }
}

/// A subset of an Endpoints object.
pub(super) fn subset(at: &At<'_>, errors: &mut Errors) {
    let ports = at.get("ports");
    if at.get("addresses").is_empty() && at.get("notReadyAddresses").is_empty() {
        errors.required(at, "must specify `addresses` or `notReadyAddresses`");
    }
    for name in ports.items().map(|p| p.get("name")) {
        if ports.len() > 1 && name.is_empty() {
            errors.required(&name, "");
        }
    }
}

/// An EndpointSlice: addresses are of its type, names of ports differ.
pub(super) fn slice(at: &At<'_>, errors: &mut Errors) {
    let (ty, own) = (at.get("addressType").text(), server(at));
    for address in at.get("endpoints").items().flat_map(|e| e.get("addresses").items()) {
        match (ty, form::address(address.text())) {
            ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) if own => {}
            ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) => endpoint_ip(&address, errors),
            ("IPv4", Some(_)) => errors.invalid(&address, "must be an IPv4 address"),
            ("IPv6", Some(_)) => errors.invalid(&address, "must be an IPv6 address"),
            ("IPv4" | "IPv6", None) => errors.invalid_all(&address, form::ip(address.text())),
            ("FQDN", _) => {
                let text = address.text();
                let name = text.strip_suffix('.').unwrap_or(text);
                errors.invalid_all(&address, names::dns_subdomain(name));
                if !name.contains('.') {
                    errors
                        .invalid(&address, "should be a domain with at least two segments separated by dots");
                }
            }
            _ => {}
        }
    }
    let mut seen = Vec::new();
    for port in at.get("ports").items() {
        let name = port.get("name");
        if seen.contains(&name.text()) {
            errors.duplicate_of(&name, name.text());
        }
        seen.push(name.text());
    }
}

/// An Ingress leads somewhere.
pub(super) fn ingress(at: &At<'_>, errors: &mut Errors) {
    if at.get("rules").is_empty() && !at.get("defaultBackend").is_set() {
        errors.invalid_value(
            at,
            serde_json::Value::Array(Vec::new()),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    for host in at.get("rules").items().map(|r| r.get("host")).filter(|h| !h.is_empty()) {
        if form::address(host.text()).is_some() {
            errors.invalid(&host, "must be a DNS name, not an IP address");
        } else {
            wildcard(&host, errors);
        }
    }
    for host in at.get("tls").items().flat_map(|t| t.get("hosts").items()) {
        wildcard(&host, errors);
    }
}

fn wildcard(at: &At<'_>, errors: &mut Errors) {
    match at.text().strip_prefix("*.") {
        Some(rest) if !names::dns_subdomain(rest).is_empty() => errors.invalid(at, "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"),
        Some(_) => {}
        None => errors.invalid_all(at, names::dns_subdomain(at.text())),
    }
}

/// What an Ingress leads to: a service's port, or a resource.
pub(super) fn backend(at: &At<'_>, errors: &mut Errors) {
    let (service, resource) = (at.get("service"), at.get("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => errors.invalid_value(at, "", "cannot set both resource and service backends"),
        (false, false) => errors.invalid_value(at, "", "resource or service backend is required"),
        (true, false) => {
            let name = service.get("name");
            if !name.is_empty() {
                errors.invalid_all(&name, names::dns_label(name.text()));
            }
            let (port, number) = (service.at(&["port", "name"]), service.at(&["port", "number"]));
            match (port.is_empty(), number.int().unwrap_or(0)) {
                (false, n) if n != 0 => {
                    errors.invalid_value(at, "", "cannot set both port name & port number");
                }
                (true, 0) => errors.required(at, "port name or number is required"),
                (true, _) => errors.invalid_all(&number, form::port(number.value)),
                _ => {}
            }
        }
        (false, true) => {
            let group = resource.get("apiGroup");
            if group.is_set() {
                errors.invalid_all(&group, names::dns_subdomain(group.text()));
            }
            for field in [resource.get("kind"), resource.get("name")] {
                errors.invalid_all(&field, names::path_segment(field.text()));
            }
        }
    }
}

/// A path of an Ingress.
pub(super) fn ingress_path(at: &At<'_>, errors: &mut Errors) {
    let path = at.get("path");
    let text = path.text();
    match at.get("pathType").text() {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.invalid_value(&path, text, "must be an absolute path");
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(sequence) {
                    errors.invalid(&path, format!("must not contain '{sequence}'"));
                }
            }
            for end in ["/..", "/."] {
                if text.ends_with(end) {
                    errors.invalid(&path, format!("cannot end with '{end}'"));
                }
            }
        }
        "ImplementationSpecific" if !text.is_empty() && !text.starts_with('/') => {
            errors.invalid(&path, "must be an absolute path");
        }
        _ => {}
    }
}

/// An IngressClass: its controller is a domain-prefixed path.
pub(super) fn ingress_class(at: &At<'_>, errors: &mut Errors) {
    let controller = at.get("controller");
    if !controller.is_empty() {
        match controller.text().split_once('/') {
            Some((domain, path)) if !path.is_empty() => {
                errors.invalid_all(&controller, names::dns_subdomain(domain));
            }
            _ => errors.invalid(&controller, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
        }
    }
    let parameters = at.get("parameters");
    let namespace = parameters.get("namespace");
    match parameters.get("scope").text() {
        "Namespace" if namespace.is_empty() => {
            errors.required(&namespace, "`parameters.scope` is set to 'Namespace'");
        }
        "Cluster" => errors.forbid(&namespace, "`parameters.scope` is set to 'Cluster'"),
        _ => {}
    }
}

/// A port, or a range of them.
pub(super) fn policy_port(at: &At<'_>, errors: &mut Errors) {
    let (port, end) = (at.get("port"), at.get("endPort"));
    let Some(last) = end.int() else { return };
    match (port.value.as_i64(), port.is_set()) {
        (Some(first), _) => {
            if last < first {
                errors.invalid_value(&end, first, "must be greater than or equal to `port`");
            }
            errors.invalid_all(&end, form::port(end.value));
        }
        (None, true) => errors.invalid(&end, "may not be specified when `port` is non-numeric"),
        (None, false) => errors.invalid(&end, "may not be specified when `port` is not specified"),
    }
}

/// Who may talk.
pub(super) fn policy_peer(at: &At<'_>, errors: &mut Errors) {
    match at.present(&["ipBlock", "podSelector", "namespaceSelector"]).as_slice() {
        [] => errors.required(at, "must specify a peer"),
        [first, _, ..] if *first == "ipBlock" => {
            errors.forbidden(at, "may not specify both ipBlock and another peer");
        }
        _ => {}
    }
}

/// A block of addresses with parts left out.
pub(super) fn ip_block(at: &At<'_>, errors: &mut Errors) {
    let Some(block) = form::network(at.get("cidr").text()) else { return };
    for except in at.get("except").items() {
        if let Some((base, bits)) = form::network(except.text())
            && (bits <= block.1 || !form::contains(block, base))
        {
            errors.invalid(&except, "must be a strict subset of `cidr`");
        }
    }
}

/// Ranges of addresses for Services, one a family.
pub(super) fn service_cidr(at: &At<'_>, errors: &mut Errors) {
    let cidrs = at.get("cidrs");
    let families: Vec<bool> =
        cidrs.items().filter_map(|c| form::network(c.text())).map(|(ip, _)| ip.is_ipv4()).collect();
    if families.len() == 2 && families[0] == families[1] {
        errors.invalid(
            &cidrs,
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
}
