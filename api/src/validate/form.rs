//! Forms of single values that are no names: numbers, paths, addresses, quantities.

use std::net::IpAddr;

use serde_json::Value;

use crate::names;
use crate::quantity::Quantity;

/// What Kubernetes says of a number below nothing.
pub(super) const NEGATIVE: &str = "must be greater than or equal to 0";
/// What Kubernetes says of a number that must be more than nothing.
pub(super) const NOT_POSITIVE: &str = "must be greater than zero";
/// What Kubernetes says of a file mode.
pub(super) const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// What Kubernetes says of a number outside a range.
pub(super) fn range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// The quantity of a normalized field.
pub(super) fn quantity(value: &Value) -> Quantity {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(Quantity::ZERO)
}

/// The number of `n` or `n%`.
pub(super) fn number_or_percent(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| percent(value))
}

/// The number of `n%`.
pub(super) fn percent(value: &Value) -> Option<i64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// A number that is not negative, or a percentage.
pub(super) fn count(value: &Value) -> Vec<String> {
    match value.as_i64() {
        Some(n) if n < 0 => vec![NEGATIVE.to_owned()],
        None if percent(value).is_none() => vec![PERCENT.to_owned()],
        _ => Vec::new(),
    }
}

/// The number or the name of a port.
pub(super) fn port(value: &Value) -> Vec<String> {
    match value {
        Value::String(name) => names::port_name(name),
        _ => names::port_number(value.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0)),
    }
}

/// The address of a text, in the strict form: no leading zeros, no IPv4 in IPv6.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|ip| match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none(),
    })
}

/// An IP address.
pub(super) fn ip(text: &str) -> Vec<String> {
    if address(text).is_some() { Vec::new() } else { vec![IP.to_owned()] }
}

/// The network of a text: address and prefix length.
pub(super) fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let ip = address(ip)?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let canonical = bits == "0" || !bits.starts_with('0');
    let bits: u8 = bits.parse().ok().filter(|b| *b <= most && canonical)?;
    Some((ip, bits))
}

/// Whether an address lies in a network.
pub(super) fn contains((base, bits): (IpAddr, u8), ip: IpAddr) -> bool {
    let plain = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, true),
        IpAddr::V6(ip) => (ip.to_bits(), false),
    };
    let ((base, four), (ip, other)) = (plain(base), plain(ip));
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) };
    four == other && base & mask == ip & mask
}

/// A network in CIDR notation.
pub(super) fn cidr(text: &str) -> Vec<String> {
    if network(text).is_some() { Vec::new() } else { vec![CIDR.to_owned()] }
}

/// A path below something: relative, and it does not climb.
pub(super) fn descending(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.starts_with('/') {
        wrong.push("must be a relative path".to_owned());
    }
    wrong.extend(no_backsteps(text));
    wrong
}

/// A path below something whose name does not begin like the kubelet's own files.
pub(super) fn local(text: &str) -> Vec<String> {
    let mut wrong = descending(text);
    if text.starts_with("..") && !text.starts_with("../") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

/// A path that does not climb.
pub(super) fn no_backsteps(text: &str) -> Vec<String> {
    if text.split('/').any(|part| part == "..") {
        vec!["must not contain '..'".to_owned()]
    } else {
        Vec::new()
    }
}

/// The name of a resource, `cpu` or `example.com/gpu`.
pub(super) fn resource(name: &str, standard: &[&str], what: &str) -> Vec<String> {
    let wrong = names::qualified(name);
    if !wrong.is_empty() {
        return wrong;
    }
    let known = standard.contains(&name) || name.starts_with("hugepages-");
    if !name.contains('/') && !known { vec![what.to_owned()] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forms() {
        assert_eq!(percent(&json!("25%")), Some(25));
        assert_eq!(percent(&json!("-5%")), None);
        assert!(
            count(&json!("5")).len() == 1
                && count(&json!(-1)) == [NEGATIVE]
                && count(&json!("0%")).is_empty()
        );
        assert!(
            port(&json!(0)).len() == 1 && port(&json!("http")).is_empty() && !port(&json!("1")).is_empty()
        );
        assert!(
            ip("10.0.0.1").is_empty()
                && ip("::1").is_empty()
                && ip("010.0.0.1").len() == 1
                && ip("::ffff:1.2.3.4").len() == 1
        );
        assert!(
            cidr("10.0.0.0/8").is_empty() && cidr("10.0.0.0/33").len() == 1 && cidr("10.0.0.0/08").len() == 1
        );
        assert_eq!(descending("/a/../b"), ["must be a relative path", "must not contain '..'"]);
        assert_eq!(local("..a"), ["must not start with '..'"]);
        let net = network("10.96.0.0/12").unwrap();
        assert!(
            contains(net, "10.100.0.1".parse().unwrap()) && !contains(net, "10.128.0.1".parse().unwrap())
        );
        assert!(!contains(net, "::1".parse().unwrap()));
    }
}
