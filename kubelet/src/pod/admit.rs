//! Whether this node takes a pod that was bound to it: the last word, after the scheduler's. Pure.
//!
//! The scheduler saw the node as it was a moment ago, and whoever sets `spec.nodeName` asks no scheduler at all. A
//! pod that is refused has failed for good, with Kubernetes' reasons, so that its controller makes another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use decapod_api::node_selector::Term;
use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Node, Pod, PodSpec, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::qos;

/// Parameters of namespaces that no pod can harm another with: Kubernetes' list, without which a node has to allow
/// each parameter by name.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Why a pod was refused: `status.reason`, and what `status.message` says after "Pod was rejected: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// The node as it was known may be to blame: worth another look at the node as it is.
    pub(crate) by_node: bool,
}

impl Rejection {
    fn of_pod(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), by_node: false }
    }

    fn predicate(name: &str) -> Self {
        Self { reason: name.to_owned(), message: format!("Predicate {name} failed"), by_node: true }
    }
}

/// What the answer depends on beside the pod.
pub(crate) struct Facts<'a> {
    pub(crate) node: &'a Node,
    /// The pods that have been let in and have not ended.
    pub(crate) others: &'a [Arc<Pod>],
    /// Parameters that the node allows beside the safe ones; a `*` at the end stands for anything.
    pub(crate) unsafe_sysctls: &'a [String],
    /// Whether the machine has AppArmor.
    pub(crate) apparmor: bool,
}

/// Lets the pod in or says why not; where several things are wrong, the first that Kubernetes would name.
pub(crate) fn check(pod: &Pod, facts: &Facts<'_>) -> Result<(), Rejection> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(()) };
    // What is wrong with the pod itself is named first, then what the node is short of.
    sysctls(spec, facts.unsafe_sysctls)?;
    system(pod, spec)?;
    resources(spec, facts.node, facts.others)?;
    check_but_resources(pod, facts)
}

/// The same as if the node had as much of everything as the pod asks for.
pub(crate) fn check_but_resources(pod: &Pod, facts: &Facts<'_>) -> Result<(), Rejection> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(()) };
    sysctls(spec, facts.unsafe_sysctls)?;
    system(pod, spec)?;
    placement(pod, spec, facts.node)?;
    ports(spec, facts.others)?;
    if !is_static(pod) {
        taints(spec, facts.node)?;
    }
    apparmor(spec, facts.apparmor)
}

/// Whether the pod comes from a file of the node.
pub(crate) fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|a| a.get(super::mark::SOURCE));
    source.is_some_and(|s| s != "api")
}

/// A kernel parameter's name with dots: `net/ipv4/tcp_rmem` means the same. Where slashes separate, dots belong to
/// the parts, as in `net/ipv4/conf/eth0.1/forwarding`.
pub(crate) fn sysctl_name(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name[at..].chars().next());
    if first != Some('/') {
        return name.to_owned();
    }
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    name.chars().map(swap).collect()
}

fn sysctls(spec: &PodSpec, allowed: &[String]) -> Result<(), Rejection> {
    let wanted = spec.security_context.as_ref().and_then(|c| c.sysctls.as_ref());
    for sysctl in wanted.into_iter().flatten() {
        let name = sysctl_name(&sysctl.name);
        let listed = allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        });
        let fault = if !listed && !SAFE_SYSCTLS.contains(&name.as_str()) {
            Some(format!("{name:?} not allowlisted"))
        } else if name.starts_with("net.") && spec.host_network == Some(true) {
            Some(format!("{name:?} not allowed with host net enabled"))
        } else if !name.starts_with("net.") && spec.host_ipc == Some(true) {
            Some(format!("{name:?} not allowed with host ipc enabled"))
        } else {
            None
        };
        if let Some(fault) = fault {
            return Err(Rejection::of_pod("SysctlForbidden", format!("forbidden sysctl: {fault}")));
        }
    }
    Ok(())
}

fn system(pod: &Pod, spec: &PodSpec) -> Result<(), Rejection> {
    let label = pod.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Rejection::of_pod("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Rejection::of_pod("PodOSNotSupported", message));
    }
    Ok(())
}

fn placement(pod: &Pod, spec: &PodSpec, node: &Node) -> Result<(), Rejection> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    // A pod from a file belongs to this node, whatever it says.
    if !is_static(pod) && spec.node_name.as_deref().is_some_and(|wanted| wanted != name) {
        return Err(Rejection::predicate("NodeName"));
    }
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let fits = |term| Term::new(term).matches(name, labels);
    if !selected || required.is_some_and(|r| !r.node_selector_terms.iter().any(fits)) {
        return Err(Rejection::predicate("NodeAffinity"));
    }
    Ok(())
}

/// The whole number in which a resource is counted: CPU in thousandths, all others in units.
pub(super) fn count(name: &str, amount: Quantity) -> i64 {
    if name == "cpu" { amount.millis() } else { amount.units() }
}

/// A resource of which the node has not enough left for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) name: String,
    pub(crate) requested: i64,
    pub(crate) used: i64,
    pub(crate) capacity: i64,
}

impl Shortage {
    /// How much more is needed.
    pub(crate) fn missing(&self) -> i64 {
        self.requested.saturating_sub(self.capacity.saturating_sub(self.used))
    }
}

impl From<Shortage> for Rejection {
    fn from(short: Shortage) -> Self {
        let Shortage { name, requested, used, capacity } = short;
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Self { reason: format!("OutOf{name}"), message, by_node: true }
    }
}

fn resources(spec: &PodSpec, node: &Node, others: &[Arc<Pod>]) -> Result<(), Rejection> {
    match shortages(spec, node, others).into_iter().next() {
        Some(first) => Err(first.into()),
        None => Ok(()),
    }
}

/// All that the node is short of for the pod, in the order in which Kubernetes looks.
pub(crate) fn shortages(spec: &PodSpec, node: &Node, others: &[Arc<Pod>]) -> Vec<Shortage> {
    let Some(allocatable) = node.status.as_ref().and_then(|s| s.allocatable.as_ref()) else {
        return Vec::new();
    };
    let capacity =
        |name: &str| allocatable.get(name).and_then(|q| Quantity::try_from(q).ok()).map(|q| count(name, q));
    let pods = i64::try_from(others.len()).unwrap_or(i64::MAX);
    let of_pods = capacity("pods").map(|capacity| Shortage {
        name: "pods".to_owned(),
        requested: 1,
        used: pods,
        capacity,
    });
    let of_requests = names(spec).into_iter().filter_map(|name| {
        let requested = count(&name, qos::request(spec, &name));
        // What the node does not have may be given by the cluster.
        let capacity = capacity(&name).filter(|_| requested > 0)?;
        let specs = others.iter().filter_map(|p| p.spec.as_ref());
        let used = specs.map(|s| count(&name, qos::request(s, &name))).sum();
        Some(Shortage { name, requested, used, capacity })
    });
    of_pods.into_iter().chain(of_requests).filter(|short| short.missing() > 0).collect()
}

/// All resources that the pod requests, in the order in which Kubernetes looks at them.
fn names(spec: &PodSpec) -> Vec<String> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let own = containers.filter_map(|c| c.resources.as_ref());
    let maps = own.chain(spec.resources.as_ref()).filter_map(|r| r.requests.as_ref());
    let keys = |map: &BTreeMap<String, ApiQuantity>| map.keys().cloned().collect::<Vec<_>>();
    let mut names: Vec<String> = maps.chain(spec.overhead.as_ref()).flat_map(keys).collect();
    let rank = |name: &str| match name {
        "cpu" => 0,
        "memory" => 1,
        "ephemeral-storage" => 2,
        _ => 3,
    };
    names.sort_by_key(|name| (rank(name), name.clone()));
    names.dedup();
    names
}

/// One port of the node that a pod takes: protocol, address and number.
fn host_ports(spec: &PodSpec) -> impl Iterator<Item = (&str, &str, i32)> {
    let sidecars = |c: &&Container| super::spec::init_sort(c) == super::spec::Sort::Sidecar;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecars));
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    let host_network = spec.host_network == Some(true);
    ports.filter_map(move |port: &ContainerPort| {
        let number = port.host_port.or(host_network.then_some(port.container_port))?;
        let address = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
        (number > 0).then(|| (port.protocol.as_deref().unwrap_or("TCP"), address, number))
    })
}

fn ports(spec: &PodSpec, others: &[Arc<Pod>]) -> Result<(), Rejection> {
    let all = |address: &str| matches!(address, "0.0.0.0" | "::");
    for (protocol, address, number) in host_ports(spec) {
        let taken = others.iter().filter_map(|p| p.spec.as_ref()).flat_map(host_ports).any(|other| {
            other.0 == protocol && other.2 == number && (other.1 == address || all(other.1) || all(address))
        });
        if taken {
            return Err(Rejection { by_node: false, ..Rejection::predicate("NodePorts") });
        }
    }
    Ok(())
}

/// Only `NoExecute` counts here: the rest is the scheduler's.
fn taints(spec: &PodSpec, node: &Node) -> Result<(), Rejection> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref()).into_iter().flatten();
    let tolerated = |taint: &Taint| spec.tolerations.iter().flatten().any(|t| tolerates(t, taint));
    match taints.filter(|t| t.effect == "NoExecute").all(tolerated) {
        true => Ok(()),
        false => Err(Rejection::predicate("TaintToleration")),
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    let exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && (exists || (!key.is_empty() && text(&toleration.value) == text(&taint.value)))
}

fn apparmor(spec: &PodSpec, supported: bool) -> Result<(), Rejection> {
    let of_pod = spec.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of_containers = containers.filter_map(|c| c.security_context.as_ref()?.app_armor_profile.as_ref());
    let wanted = of_pod.into_iter().chain(of_containers).any(|profile| profile.type_ != "Unconfined");
    if wanted && !supported {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Err(Rejection::of_pod("AppArmor", message));
    }
    Ok(())
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
