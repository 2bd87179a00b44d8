//! Quality of service: the class of a pod, and what the kernel is told because of it.

use std::collections::BTreeMap;

use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::spec::{self, Sort};

/// The kernel's smallest `cpu.shares`.
const MIN_SHARES: u64 = 2;
/// The kernel's largest `cpu.shares`.
const MAX_SHARES: u64 = 262_144;
/// The CFS period in microseconds that Kubernetes uses.
pub(crate) const CPU_PERIOD_US: i64 = 100_000;
/// The smallest quota that the kernel takes, in microseconds.
const MIN_QUOTA_US: i64 = 1_000;

/// Kubernetes' QoS classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    /// As written into `status.qosClass`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Class::Guaranteed => "Guaranteed",
            Class::Burstable => "Burstable",
            Class::BestEffort => "BestEffort",
        }
    }

    /// The cgroup below the kubelet's root that holds pods of this class; Guaranteed pods lie at the top.
    pub(crate) fn folder(self) -> Option<&'static str> {
        match self {
            Class::Guaranteed => None,
            Class::Burstable => Some("burstable"),
            Class::BestEffort => Some("besteffort"),
        }
    }
}

type Map = BTreeMap<String, ApiQuantity>;

/// The amount of one resource; what does not parse counts as nothing, since the API server validates it.
fn amount(map: Option<&Map>, name: &str) -> Quantity {
    map.and_then(|m| m.get(name)).and_then(|q| Quantity::try_from(q).ok()).unwrap_or(Quantity::ZERO)
}

/// The class of a pod, by the rules of Kubernetes: cpu and memory only, all containers count.
pub(crate) fn class(spec: &PodSpec) -> Class {
    let mut any = false;
    let mut guaranteed = true;
    let pod_level = spec.resources.as_ref();
    let containers: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(resources) => vec![Some(resources)],
        None => all(spec).map(|c| c.resources.as_ref()).collect(),
    };
    for resources in containers {
        let requests = resources.and_then(|r| r.requests.as_ref());
        let limits = resources.and_then(|r| r.limits.as_ref());
        for name in ["cpu", "memory"] {
            let limit = amount(limits, name);
            let request = requests.filter(|r| r.contains_key(name)).map_or(limit, |r| amount(Some(r), name));
            any |= !limit.is_zero() || !request.is_zero();
            guaranteed &= !limit.is_zero() && limit == request;
        }
    }
    match (any, guaranteed) {
        (true, true) => Class::Guaranteed,
        (true, false) => Class::Burstable,
        (false, _) => Class::BestEffort,
    }
}

fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// `cpu.shares` for a request; 1024 for a whole CPU, the least for none.
pub(crate) fn shares(request: Quantity) -> u64 {
    let millis = u64::try_from(request.millis()).unwrap_or(0);
    (millis * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// `cpu.cfs_quota_us` for a limit; `None` without one.
pub(crate) fn quota(limit: Quantity) -> Option<i64> {
    (!limit.is_zero()).then(|| (limit.millis() * CPU_PERIOD_US / 1000).max(MIN_QUOTA_US))
}

/// What one container may use, in the kernel's units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) shares: u64,
    /// Microseconds per [`CPU_PERIOD_US`]; `None` is unlimited.
    pub(crate) quota: Option<i64>,
    /// Bytes; `None` is unlimited.
    pub(crate) memory: Option<i64>,
}

fn limits_of(resources: Option<&ResourceRequirements>) -> Limits {
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    let cpu_limit = amount(limits, "cpu");
    let cpu = requests.filter(|r| r.contains_key("cpu")).map_or(cpu_limit, |r| amount(Some(r), "cpu"));
    let memory = amount(limits, "memory");
    Limits {
        shares: shares(cpu),
        quota: quota(cpu_limit),
        memory: (!memory.is_zero()).then(|| memory.units()),
    }
}

/// The limits of one container.
pub(crate) fn container(container: &Container) -> Limits {
    limits_of(container.resources.as_ref())
}

/// The limits of the pod's cgroup: what all containers together may use, unlimited if one of them is.
///
/// Init containers run one after another before the others, so that the largest of them counts; sidecars run
/// beside everything.
pub(crate) fn pod(pod_spec: &PodSpec) -> Limits {
    if let Some(resources) = &pod_spec.resources {
        return limits_of(Some(resources));
    }
    let request = |c: &Container| {
        let r = c.resources.as_ref();
        let limit = amount(r.and_then(|r| r.limits.as_ref()), "cpu");
        r.and_then(|r| r.requests.as_ref())
            .filter(|r| r.contains_key("cpu"))
            .map_or(limit, |r| amount(Some(r), "cpu"))
    };
    let limit = |name: &'static str| {
        move |c: &Container| amount(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name)
    };
    let limited = |name| all(pod_spec).all(|c| !limit(name)(c).is_zero());
    // What the sandbox itself takes comes on top of what the containers may.
    let overhead = |name| amount(pod_spec.overhead.as_ref(), name);
    let cpu = together(pod_spec, limit("cpu")) + overhead("cpu");
    let memory = together(pod_spec, limit("memory")) + overhead("memory");
    Limits {
        shares: shares(together(pod_spec, request) + overhead("cpu")),
        quota: limited("cpu").then(|| quota(cpu)).flatten(),
        memory: limited("memory").then(|| memory.units()),
    }
}

/// What the pod asks of the node in all, in any resource; with what its RuntimeClass adds.
pub(crate) fn request(pod_spec: &PodSpec, name: &str) -> Quantity {
    let of = |resources: Option<&ResourceRequirements>| {
        let resources = resources?;
        let asked = resources.requests.as_ref().filter(|r| r.contains_key(name));
        asked
            .or(resources.limits.as_ref().filter(|l| l.contains_key(name)))
            .map(|map| amount(Some(map), name))
    };
    let containers = || together(pod_spec, |c| of(c.resources.as_ref()).unwrap_or(Quantity::ZERO));
    let own = of(pod_spec.resources.as_ref()).unwrap_or_else(containers);
    [own, amount(pod_spec.overhead.as_ref(), name)].into_iter().sum()
}

/// The most that the pod's containers need at once.
pub(crate) fn together(pod_spec: &PodSpec, need: impl Fn(&Container) -> Quantity) -> Quantity {
    let mut sidecars = Quantity::ZERO;
    let mut most_init = Quantity::ZERO;
    for container in pod_spec.init_containers.iter().flatten() {
        if spec::init_sort(container) == Sort::Sidecar {
            sidecars += need(container);
            most_init = most_init.max(sidecars);
        } else {
            most_init = most_init.max(sidecars + need(container));
        }
    }
    let apps: Quantity = pod_spec.containers.iter().map(&need).sum();
    (apps + sidecars).max(most_init)
}

/// `oom_score_adj` of a container: what the kernel kills first when the node runs out of memory.
pub(crate) fn oom_score(pod_spec: &PodSpec, container: &Container, node_memory: i64) -> i64 {
    if matches!(pod_spec.priority_class_name.as_deref(), Some("system-node-critical")) {
        return -997;
    }
    match class(pod_spec) {
        Class::Guaranteed => -997,
        Class::BestEffort => 1000,
        Class::Burstable => {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let request = amount(requests, "memory").units();
            let score = 1000 - request.saturating_mul(1000) / node_memory.max(1);
            // Never as safe as Guaranteed, never as exposed as BestEffort.
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Option<ResourceRequirements> {
        let map = |list: &[(&str, &str)]| {
            (!list.is_empty())
                .then(|| list.iter().map(|(k, v)| ((*k).to_owned(), ApiQuantity((*v).to_owned()))).collect())
        };
        Some(ResourceRequirements { requests: map(requests), limits: map(limits), claims: None })
    }

    fn with(name: &str, requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        Container { name: name.into(), resources: resources(requests, limits), ..Container::default() }
    }

    fn spec_of(containers: Vec<Container>) -> PodSpec {
        PodSpec { containers, ..PodSpec::default() }
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let full = [("cpu", "1"), ("memory", "1Gi")];
        assert_eq!(class(&spec_of(vec![with("a", &[], &full)])), Class::Guaranteed);
        assert_eq!(class(&spec_of(vec![with("a", &full, &full), with("b", &[], &[])])), Class::Burstable);
        assert_eq!(class(&spec_of(vec![with("a", &[("cpu", "100m")], &[])])), Class::Burstable);
        assert_eq!(class(&spec_of(vec![with("a", &[], &[])])), Class::BestEffort);
        assert_eq!(class(&spec_of(vec![with("a", &[("cpu", "500m")], &full)])), Class::Burstable);
    }

    #[test]
    fn the_kernel_gets_shares_quota_and_bytes() {
        let limits = container(&with("a", &[("cpu", "250m")], &[("cpu", "500m"), ("memory", "64Mi")]));
        assert_eq!(limits, Limits { shares: 256, quota: Some(50_000), memory: Some(64 << 20) });
        assert_eq!(container(&with("a", &[], &[])), Limits { shares: 2, quota: None, memory: None });
        assert_eq!(quota(Quantity::from_millis(1)), Some(1_000));
    }

    #[test]
    fn a_pod_is_limited_only_if_all_its_containers_are() {
        let limited = with("a", &[], &[("cpu", "1"), ("memory", "1Mi")]);
        let both = spec_of(vec![limited.clone(), limited.clone()]);
        assert_eq!(pod(&both), Limits { shares: 2048, quota: Some(200_000), memory: Some(2 << 20) });
        let one = spec_of(vec![limited.clone(), with("b", &[("cpu", "1")], &[])]);
        assert_eq!(pod(&one), Limits { shares: 2048, quota: None, memory: None });
        let mut wrapped = both.clone();
        let overhead =
            [("cpu", "500m"), ("memory", "1Mi")].map(|(k, v)| (k.to_owned(), ApiQuantity(v.to_owned())));
        wrapped.overhead = Some(overhead.into());
        assert_eq!(pod(&wrapped), Limits { shares: 2560, quota: Some(250_000), memory: Some(3 << 20) });
        let mut init = spec_of(vec![limited.clone()]);
        init.init_containers = Some(vec![with("i", &[], &[("cpu", "3"), ("memory", "9Mi")])]);
        assert_eq!(pod(&init), Limits { shares: 3072, quota: Some(300_000), memory: Some(9 << 20) });
    }

    #[test]
    fn oom_scores_are_those_of_kubernetes() {
        let node = 4 << 30;
        let burstable = with("a", &[("memory", "1Gi")], &[]);
        assert_eq!(oom_score(&spec_of(vec![burstable.clone()]), &burstable, node), 750);
        let none = with("a", &[], &[]);
        assert_eq!(oom_score(&spec_of(vec![none.clone()]), &none, node), 1000);
        let full = with("a", &[], &[("cpu", "1"), ("memory", "1Gi")]);
        assert_eq!(oom_score(&spec_of(vec![full.clone()]), &full, node), -997);
        let tiny = with("a", &[("memory", "1Ki")], &[]);
        assert_eq!(oom_score(&spec_of(vec![tiny.clone()]), &tiny, node), 999);
    }
}
