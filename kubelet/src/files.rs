//! What a pod finds in `/etc`: resolv.conf by its DNS policy, hosts, and its host name.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{HostAlias, Pod, PodSpec};

use crate::pod::spec;

/// The longest label of DNS: a pod's name may be longer.
const HOST_NAME_MAX: usize = 63;
/// The longest host name that the kernel takes.
const KERNEL_NAME_MAX: usize = 64;
/// Kubernetes' limits for resolv.conf.
const MAX_NAMESERVERS: usize = 3;
/// Kubernetes' limit for search domains.
const MAX_SEARCHES: usize = 32;

/// The contents of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl Dns {
    /// Reads a resolv.conf; lines that it does not know are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => dns.servers.extend(words.next()),
                Some("search" | "domain") => dns.searches = words.filter(|w| w != ".").collect(),
                Some("options") => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }
}

/// The cluster's DNS, as all pods are told.
#[derive(Clone, Debug)]
pub(crate) struct Cluster<'a> {
    pub(crate) servers: &'a [String],
    pub(crate) domain: &'a str,
}

/// What the pod's resolv.conf says; `node` is the node's own.
pub(crate) fn dns(pod: &Pod, cluster: &Cluster<'_>, node: &Dns) -> Dns {
    let default = PodSpec::default();
    let pod_spec = pod.spec.as_ref().unwrap_or(&default);
    let policy = pod_spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let clustered = match policy {
        "ClusterFirst" => pod_spec.host_network != Some(true),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    } && !cluster.servers.is_empty();
    let mut dns = if policy == "None" {
        Dns::default()
    } else if clustered {
        let namespace = spec::namespace(pod);
        let domain = cluster.domain;
        let mut searches =
            vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        searches.extend(node.searches.iter().cloned());
        Dns { servers: cluster.servers.to_vec(), searches, options: vec!["ndots:5".to_owned()] }
    } else {
        node.clone()
    };
    if let Some(config) = &pod_spec.dns_config {
        dns.servers.extend(config.nameservers.iter().flatten().cloned());
        dns.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            let prefix = format!("{name}:");
            dns.options.retain(|o| o != name && !o.starts_with(&prefix));
            dns.options.push(option.value.as_ref().map_or_else(|| name.clone(), |v| format!("{name}:{v}")));
        }
    }
    unique(&mut dns.servers, MAX_NAMESERVERS);
    unique(&mut dns.searches, MAX_SEARCHES);
    dns
}

fn unique(list: &mut Vec<String>, max: usize) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
    list.truncate(max);
}

/// The pod's host name and the domain behind it (empty without a subdomain).
pub(crate) fn host_name(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let pod_spec = pod.spec.as_ref();
    let given = pod_spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty());
    let mut name = given.unwrap_or_else(|| spec::name(pod)).to_owned();
    if name.len() > HOST_NAME_MAX {
        name.truncate(HOST_NAME_MAX);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let domain = pod_spec
        .and_then(|s| s.subdomain.as_deref())
        .filter(|s| !s.is_empty())
        .map_or_else(String::new, |s| format!("{s}.{}.svc.{cluster_domain}", spec::namespace(pod)));
    (name, domain)
}

/// The host name that the kernel of the pod has.
pub(crate) fn kernel_host_name(pod: &Pod, cluster_domain: &str) -> String {
    if let Some(name) = pod.spec.as_ref().and_then(|s| s.hostname_override.as_deref()) {
        return name.to_owned();
    }
    let (name, domain) = host_name(pod, cluster_domain);
    let full = pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    if full && !domain.is_empty() { format!("{name}.{domain}") } else { name }
}

/// A full name that the kernel cannot hold is no name to cut: whoever asks for it would get another host's.
pub(crate) fn check_host_name(name: &str) -> Result<(), String> {
    if name.len() <= KERNEL_NAME_MAX {
        return Ok(());
    }
    Err(format!(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long \
         ({KERNEL_NAME_MAX} characters is the max, {} characters requested)",
        name.len()
    ))
}

/// `/etc/hosts` of a pod with a network of its own.
pub(crate) fn hosts(ips: &[String], name: &str, domain: &str, aliases: Option<&Vec<HostAlias>>) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        // Writing to a string cannot fail.
        let _infallible = if domain.is_empty() {
            writeln!(text, "{ip}\t{name}")
        } else {
            writeln!(text, "{ip}\t{name}.{domain}\t{name}")
        };
    }
    add_aliases(&mut text, aliases);
    text
}

/// `/etc/hosts` of a pod on the host's network: the node's own, and the pod's aliases.
pub(crate) fn node_hosts(node: &str, aliases: Option<&Vec<HostAlias>>) -> String {
    let mut text = format!("# Kubernetes-managed hosts file (host network).\n{node}");
    add_aliases(&mut text, aliases);
    text
}

fn add_aliases(text: &mut String, aliases: Option<&Vec<HostAlias>>) {
    if aliases.is_none_or(Vec::is_empty) {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases.into_iter().flatten() {
        text.push_str(&alias.ip);
        for name in alias.hostnames.iter().flatten() {
            text.push('\t');
            text.push_str(name);
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(spec: PodSpec) -> Pod {
        let metadata = ObjectMeta {
            name: Some("web-0".into()),
            namespace: Some("shop".into()),
            ..ObjectMeta::default()
        };
        Pod { metadata, spec: Some(spec), status: None }
    }

    fn resolve(spec: PodSpec) -> Dns {
        let servers = ["10.96.0.10".to_owned()];
        let node = Dns::parse("# x\nnameserver 192.0.2.1\nsearch example.org .\noptions timeout:1\n");
        dns(&pod(spec), &Cluster { servers: &servers, domain: "cluster.local" }, &node)
    }

    #[test]
    fn cluster_first_asks_the_cluster_and_keeps_the_nodes_searches() {
        let dns = resolve(PodSpec::default());
        assert_eq!(dns.servers, ["10.96.0.10"]);
        assert_eq!(
            dns.searches,
            ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org"]
        );
        assert_eq!(dns.options, ["ndots:5"]);
    }

    #[test]
    fn the_host_network_uses_the_nodes_resolver_unless_told_otherwise() {
        let host = PodSpec { host_network: Some(true), ..PodSpec::default() };
        assert_eq!(resolve(host.clone()).servers, ["192.0.2.1"]);
        let policy = Some("ClusterFirstWithHostNet".to_owned());
        assert_eq!(resolve(PodSpec { dns_policy: policy, ..host }).servers, ["10.96.0.10"]);
    }

    #[test]
    fn dns_config_adds_and_overrides() {
        let option = |n: &str, v: Option<&str>| PodDNSConfigOption {
            name: Some(n.into()),
            value: v.map(str::to_owned),
        };
        let config = PodDNSConfig {
            nameservers: Some(vec!["192.0.2.9".into()]),
            searches: Some(vec!["a.b".into()]),
            options: Some(vec![option("ndots", Some("2")), option("edns0", None)]),
        };
        let first = resolve(PodSpec { dns_config: Some(config.clone()), ..PodSpec::default() });
        assert_eq!(first.options, ["ndots:2", "edns0"]);
        assert_eq!(first.servers, ["10.96.0.10", "192.0.2.9"]);
        let none = resolve(PodSpec {
            dns_policy: Some("None".into()),
            dns_config: Some(config),
            ..PodSpec::default()
        });
        assert_eq!((none.servers.len(), none.searches.len()), (1, 1));
    }

    #[test]
    fn host_names_are_cut_and_domains_follow_the_subdomain() {
        let long = PodSpec { hostname: Some("a".repeat(62) + "-b"), ..PodSpec::default() };
        assert_eq!(host_name(&pod(long), "cluster.local").0, "a".repeat(62));
        let sub = PodSpec { subdomain: Some("db".into()), ..PodSpec::default() };
        assert_eq!(
            host_name(&pod(sub.clone()), "cluster.local"),
            ("web-0".into(), "db.shop.svc.cluster.local".into())
        );
        let text = hosts(&["10.0.0.1".into()], "web-0", "db.shop.svc.cluster.local", None);
        assert!(text.ends_with("10.0.0.1\tweb-0.db.shop.svc.cluster.local\tweb-0\n"));
        let full = PodSpec { set_hostname_as_fqdn: Some(true), ..sub };
        assert_eq!(kernel_host_name(&pod(full), "cluster.local"), "web-0.db.shop.svc.cluster.local");
        assert!(check_host_name(&"a".repeat(64)).is_ok());
        assert!(check_host_name(&"a".repeat(65)).unwrap_err().contains("is too long"));
    }
}
