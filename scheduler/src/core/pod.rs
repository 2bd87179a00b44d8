//! What the scheduler needs to know of a pod, worked out once when the pod is seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus, Toleration};
use kube::ResourceExt;

use super::affinity::{self, NodeTerms, Preference};
use super::relation::{self, Relations, Spread};
use super::resources::Resources;

/// What a container without requests counts as when nodes are compared (never when they are filtered), so
/// that pods without requests spread as well: a tenth of a CPU and 200 MB, as Kubernetes assumes.
const ASSUMED_CPU: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 * 1024 * 1024;

/// A port of the node that a pod wants for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostPort {
    pub(crate) protocol: String,
    /// `0.0.0.0` for all addresses of the node.
    pub(crate) address: String,
    pub(crate) port: i32,
}

impl HostPort {
    /// Whether both cannot be held on one node.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let any = |port: &Self| port.address == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || any(self) || any(other))
    }
}

/// A pod, as decisions see it.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) pod: Arc<Pod>,
    pub(crate) uid: String,
    pub(crate) priority: i32,
    /// What the pod is granted on a node.
    pub(crate) requests: Resources,
    /// CPU and memory with assumptions for containers that request none.
    pub(crate) weight: (i64, i64),
    pub(crate) ports: Vec<HostPort>,
    pub(crate) tolerations: Vec<Toleration>,
    /// Where it must run, by `nodeSelector` and required node affinity.
    pub(crate) required: NodeTerms,
    /// Where it would rather run.
    pub(crate) preferred: Vec<Preference>,
    /// How it relates to other pods.
    pub(crate) relations: Relations,
    pub(crate) spreads: Arc<[Spread]>,
    /// The same for pods whose relations are the same; none for those without.
    pub(crate) signature: Option<Arc<str>>,
    /// The same for waiting pods that differ in nothing that a decision depends on but their priority; none where each
    /// is a case of its own.
    pub(crate) template: Option<Arc<str>>,
    /// The uid of its controller: pods of one controller are spread even if nobody asks for it.
    pub(crate) family: Option<String>,
    /// The images of its containers, under their full names.
    pub(crate) images: Vec<String>,
    pub(crate) never_preempts: bool,
    /// The claims that it mounts.
    pub(crate) claims: Vec<WantedClaim>,
}

/// A claim that a pod mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedClaim {
    pub(crate) name: String,
    /// The claim of a generic ephemeral volume, which is made for the pod.
    pub(crate) made_for_pod: bool,
}

impl PodInfo {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
        let (namespace, labels) =
            (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.labels.as_ref());
        let family =
            pod.owner_references().iter().find(|one| one.controller == Some(true)).map(|one| one.uid.clone());
        let claims = claims(spec, pod.metadata.name.as_deref().unwrap_or_default());
        let template = template(spec, namespace, labels, family.as_deref()).filter(|_| claims.is_empty());
        Self {
            uid: pod.uid().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            requests: requests(spec, pod.status.as_ref()),
            weight: weight(spec),
            ports: host_ports(spec),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            required: affinity::required(spec),
            preferred: affinity::preferred(spec),
            relations: Relations::new(spec, namespace, labels),
            spreads: relation::spreads(spec, labels).into(),
            signature: relation::signature(spec, namespace, labels).map(Into::into),
            template: template.map(Into::into),
            family,
            images: containers().filter_map(|one| one.image.as_deref()).map(full_image_name).collect(),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            claims,
            pod: pod.clone(),
        }
    }

    /// The node that was promised to the pod once others have left it; empty if none.
    pub(crate) fn nominated_node(&self) -> &str {
        let status = self.pod.status.as_ref();
        status.and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default()
    }

    /// Whether the pod's scheduling gates hold it back.
    pub(crate) fn is_gated(&self) -> bool {
        let spec = self.pod.spec.as_ref();
        spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty())
    }

    /// The scheduler that has to find a node for the pod.
    pub(crate) fn scheduler_name(&self) -> &str {
        let spec = self.pod.spec.as_ref();
        spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler")
    }

    /// The node that the pod is bound to; empty if none.
    pub(crate) fn node_name(&self) -> &str {
        self.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
    }
}

/// A text of all that a decision for a waiting pod depends on.
fn template(
    spec: &PodSpec,
    namespace: &str,
    labels: Option<&BTreeMap<String, String>>,
    family: Option<&str>,
) -> Option<String> {
    if spec.node_name.as_deref().is_some_and(|name| !name.is_empty()) {
        return None;
    }
    let containers = |list: Option<&Vec<Container>>| -> Vec<_> {
        let each = list.into_iter().flatten();
        each.map(|one| {
            (
                one.image.clone(),
                one.resources.as_ref().and_then(|all| all.requests.clone()),
                one.ports.clone(),
                one.restart_policy.clone(),
            )
        })
        .collect()
    };
    let all = (
        (
            namespace,
            labels,
            family,
            &spec.scheduler_name,
            &spec.affinity,
            &spec.node_selector,
            &spec.tolerations,
        ),
        (
            &spec.topology_spread_constraints,
            &spec.overhead,
            &spec.resources,
            &spec.volumes.as_ref().map(Vec::len),
            &spec.resource_claims.as_ref().map(Vec::len),
        ),
        containers(Some(&spec.containers)),
        containers(spec.init_containers.as_ref()),
    );
    serde_json::to_string(&all).ok()
}

fn claims(spec: &PodSpec, pod: &str) -> Vec<WantedClaim> {
    let volumes = spec.volumes.iter().flatten();
    let claims = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(WantedClaim { name: source.claim_name.clone(), made_for_pod: false }),
        (None, Some(_)) => Some(WantedClaim { name: format!("{pod}-{}", volume.name), made_for_pod: true }),
        (None, None) => None,
    });
    claims.collect()
}

/// What a pod requests: what its containers request together, or what the largest init container requests
/// beside the sidecars started before it, whichever is more; and its overhead.
///
/// While a container is resized in place it counts with the most of what is wanted, granted and in force (KEP-1287).
fn requests(spec: &PodSpec, status: Option<&PodStatus>) -> Resources {
    let known = |name: &str| -> Option<&ContainerStatus> {
        let (running, starting) = (&status?.container_statuses, &status?.init_container_statuses);
        running.iter().flatten().chain(starting.iter().flatten()).find(|status| status.name == name)
    };
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let wanted = requests.map(Resources::parse).unwrap_or_default();
        let Some(status) = known(&container.name) else { return wanted };
        let in_force = status.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let lists = [status.allocated_resources.as_ref(), in_force];
        lists.into_iter().flatten().fold(wanted, |most, list| most.max(&Resources::parse(list)))
    };
    let mut running = Resources::default();
    for container in &spec.containers {
        running += &of(container);
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut now = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += &now;
            now = sidecars.clone();
        } else {
            now += &sidecars;
        }
        starting = starting.max(&now);
    }
    running += &sidecars;
    let mut total = running.max(&starting);
    let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if let Some(whole) = whole {
        let whole_pod = Resources::parse(whole);
        if whole.contains_key("cpu") {
            total.cpu = whole_pod.cpu;
        }
        if whole.contains_key("memory") {
            total.memory = whole_pod.memory;
        }
        total.scalar.extend(whole_pod.scalar);
    }
    if let Some(overhead) = &spec.overhead {
        total += &Resources::parse(overhead);
    }
    total
}

/// CPU and memory as they count when nodes are compared.
fn weight(spec: &PodSpec) -> (i64, i64) {
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let amounts = requests.map(Resources::parse).unwrap_or_default();
        let named = |name: &str| requests.is_some_and(|requests| requests.contains_key(name));
        let cpu = if named("cpu") { amounts.cpu } else { ASSUMED_CPU };
        let memory = if named("memory") { amounts.memory } else { ASSUMED_MEMORY };
        (cpu, memory)
    };
    let sum =
        |one: (i64, i64), other: (i64, i64)| (one.0.saturating_add(other.0), one.1.saturating_add(other.1));
    let running = spec.containers.iter().map(of).fold((0, 0), sum);
    let starting = spec.init_containers.iter().flatten().map(of);
    starting.fold(running, |most, one| (most.0.max(one.0), most.1.max(one.1)))
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let wanted = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let address = port.host_ip.clone().filter(|address| !address.is_empty());
        Some(HostPort {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            address: address.unwrap_or_else(|| "0.0.0.0".to_owned()),
            port: number,
        })
    });
    wanted.collect()
}

/// An image's name with its tag, as nodes report it.
pub(crate) fn full_image_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || name.contains('@') { name.to_owned() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn container(cpu: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}})
    }

    #[test]
    fn init_containers_count_with_the_sidecars_before_them() {
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = json!("Always");
        let both = spec(json!({
            "containers": [container("100m"), container("100m")],
            "initContainers": [container("250m"), sidecar, container("300m")],
        }));
        assert_eq!(requests(&both, None).cpu, 500, "the sidecar beside the last init container");
        let large = spec(json!({"containers": [container("2")], "initContainers": [container("300m")],
            "overhead": {"cpu": "50m"}}));
        assert_eq!(requests(&large, None).cpu, 2050);
    }

    #[test]
    fn requests_of_the_whole_pod_prevail() {
        let whole = spec(json!({"containers": [container("100m")], "resources": {"requests": {"cpu": "1"}}}));
        let requests = requests(&whole, None);
        assert_eq!((requests.cpu, requests.memory), (1000, 1024 * 1024));
    }

    #[test]
    fn pods_without_requests_weigh_something() {
        let none = spec(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(requests(&none, None), Resources::default());
        assert_eq!(weight(&none), (200, 400 * 1024 * 1024));
    }

    #[test]
    fn ports_conflict_on_the_same_address_or_on_all() {
        let port = |address: &str| HostPort { protocol: "TCP".into(), address: address.into(), port: 80 };
        assert!(port("0.0.0.0").conflicts(&port("10.0.0.1")));
        assert!(port("10.0.0.1").conflicts(&port("10.0.0.1")));
        assert!(!port("10.0.0.1").conflicts(&port("10.0.0.2")));
    }

    #[test]
    fn images_have_a_tag() {
        assert_eq!(full_image_name("nginx"), "nginx:latest");
        assert_eq!(full_image_name("host:5000/nginx"), "host:5000/nginx:latest");
        assert_eq!(full_image_name("nginx:1.29"), "nginx:1.29");
    }
}
