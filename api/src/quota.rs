//! Resource quotas: what an object uses of them, which quotas it falls under, and whether it fits.
//!
//! Pure, and shared by the API server, which charges quotas for what it admits, and by the controller,
//! which recalculates them: they must never disagree. See the Kubernetes concept *Resource Quotas*.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodAffinityTerm, PodSpec, ResourceQuota, ResourceQuotaSpec,
    ScopedResourceSelectorRequirement, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::kinds::{Amounts, QosClass, effective_limits, effective_requests, qos_class};
use crate::quantity::Quantity;

const ONE: Quantity = Quantity::from_units(1);
const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Resources that are counted under their plain name, as before there was `count/`.
const COUNTED_PLAINLY: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];

/// Names under which pods are charged, besides huge pages and extended resources.
const POD_NAMES: [&str; 11] = [
    "count/pods",
    "pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

/// Where a quota names one of these, each container has to, too.
const DEMANDED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// An object as quotas see it.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// A pod: counted, and charged for its resources until it has ended.
    Pod(&'a Pod),
    /// A claim: counted, and charged for its storage, also by class.
    Claim(&'a PersistentVolumeClaim),
    /// A Service: counted, with its node ports and load balancers.
    Service(&'a Service),
    /// An object of any other kind, by its API group (empty for the core) and plural: only counted.
    Other(&'a str, &'a str),
}

/// `count/deployments.apps`: the name under which a quota counts objects of a kind.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

impl Item<'_> {
    /// What the object uses at a time, by the names of quotas.
    pub fn usage(&self, now: Timestamp) -> Amounts {
        match self {
            Self::Pod(pod) => pod_usage(pod, now),
            Self::Claim(claim) => claim_usage(claim),
            Self::Service(service) => service_usage(service),
            Self::Other(group, plural) => {
                let mut usage = Amounts::from([(count_name(group, plural), ONE)]);
                if group.is_empty() && COUNTED_PLAINLY.contains(plural) {
                    usage.insert((*plural).to_owned(), ONE);
                }
                usage
            }
        }
    }

    /// Whether objects of this kind are charged under a name, however much this one uses.
    pub fn tracks(&self, name: &str) -> bool {
        match self {
            Self::Pod(_) => {
                POD_NAMES.contains(&name)
                    || name.starts_with("hugepages-")
                    || name.starts_with("requests.hugepages-")
                    || name.strip_prefix("requests.").is_some_and(is_extended)
            }
            Self::Claim(_) => {
                let of_claims = |name: &str| matches!(name, "persistentvolumeclaims" | "requests.storage");
                name == "count/persistentvolumeclaims"
                    || of_claims(name)
                    || name.split_once(CLASS_SUFFIX).is_some_and(|(_, rest)| of_claims(rest))
            }
            Self::Service(_) => matches!(
                name,
                "count/services" | "services" | "services.nodeports" | "services.loadbalancers"
            ),
            Self::Other(group, plural) => {
                name == count_name(group, plural)
                    || (group.is_empty() && COUNTED_PLAINLY.contains(plural) && name == *plural)
            }
        }
    }

    /// Whether a quota covers the object, given the names that it limits.
    pub fn covered<'n>(
        &self,
        spec: &ResourceQuotaSpec,
        mut limited: impl Iterator<Item = &'n String>,
    ) -> bool {
        limited.any(|name| self.tracks(name)) && scopes(spec).iter().all(|scope| self.in_scope(scope))
    }

    fn in_scope(&self, scope: &ScopedResourceSelectorRequirement) -> bool {
        match (self, scope.scope_name.as_str()) {
            (Self::Pod(pod), name) => pod_in_scope(pod, name, scope),
            (Self::Claim(claim), "VolumeAttributesClass") => {
                let named = attributes_classes(claim);
                let values = scope.values.iter().flatten();
                let hit = values.map(String::as_str).any(|value| named.contains(value));
                match scope.operator.as_str() {
                    "Exists" => !named.is_empty(),
                    "DoesNotExist" => named.is_empty(),
                    "In" => hit,
                    _ => !hit,
                }
            }
            _ => false,
        }
    }

    /// What a quota on these names demands of the object and it does not say.
    fn missing<'n>(&self, limited: impl Iterator<Item = &'n str>) -> Option<String> {
        let Self::Pod(pod) = self else { return None };
        let spec = pod.spec.as_ref()?;
        let stated = spec.resources.as_ref();
        if stated.is_some_and(|stated| stated.requests.is_some() || stated.limits.is_some()) {
            return None;
        }
        let demanded: BTreeSet<&str> = limited.filter(|name| DEMANDED.contains(name)).collect();
        let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let lacking = demanded.into_iter().filter_map(|name| {
            let lacking: BTreeSet<&str> = containers()
                .filter(|container| !says(container, name))
                .map(|container| container.name.as_str())
                .collect();
            let lacking: Vec<&str> = lacking.into_iter().collect();
            (!lacking.is_empty()).then(|| format!("{name} for: {}", lacking.join(",")))
        });
        let lacking: Vec<String> = lacking.collect();
        (!lacking.is_empty()).then(|| format!("must specify {}", lacking.join("; ")))
    }
}

/// Whether a container says the amount that a quota calls by this name.
fn says(container: &Container, name: &str) -> bool {
    let resources = container.resources.clone().unwrap_or_default();
    let (side, resource) = match name.split_once('.') {
        Some(("limits", resource)) => (resources.limits, resource),
        Some((_, resource)) => (resources.requests, resource),
        None => (resources.requests, name),
    };
    side.is_some_and(|side| side.contains_key(resource))
}

/// Whether a resource is somebody else's than Kubernetes', such as `example.com/gpu`.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

/// All scopes of a quota, in the form of requirements.
fn scopes(spec: &ResourceQuotaSpec) -> Vec<ScopedResourceSelectorRequirement> {
    let named = spec.scopes.iter().flatten().map(|scope| ScopedResourceSelectorRequirement {
        scope_name: scope.clone(),
        operator: "Exists".to_owned(),
        values: None,
    });
    let selected =
        spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    named.chain(selected.cloned()).collect()
}

fn pod_in_scope(pod: &Pod, name: &str, scope: &ScopedResourceSelectorRequirement) -> bool {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    match name {
        "Terminating" => is_terminating(spec),
        "NotTerminating" => !is_terminating(spec),
        "BestEffort" => qos_class(spec) == QosClass::BestEffort,
        "NotBestEffort" => qos_class(spec) != QosClass::BestEffort,
        "PriorityClass" => {
            let class = spec.priority_class_name.as_deref().unwrap_or_default();
            let named = scope.values.iter().flatten().any(|value| value == class);
            match scope.operator.as_str() {
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                "In" => !class.is_empty() && named,
                _ => class.is_empty() || !named,
            }
        }
        "CrossNamespacePodAffinity" => looks_across_namespaces(spec),
        _ => false,
    }
}

/// Whether the pod is to end by itself after a time.
fn is_terminating(spec: &PodSpec) -> bool {
    spec.active_deadline_seconds.is_some_and(|seconds| seconds >= 0)
}

fn looks_across_namespaces(spec: &PodSpec) -> bool {
    let across = |term: &PodAffinityTerm| {
        term.namespaces.as_ref().is_some_and(|names| !names.is_empty()) || term.namespace_selector.is_some()
    };
    let Some(affinity) = &spec.affinity else { return false };
    let towards = affinity.pod_affinity.iter().any(|one| {
        let required = one.required_during_scheduling_ignored_during_execution.iter().flatten();
        let preferred = one.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        required.chain(preferred.map(|weighted| &weighted.pod_affinity_term)).any(across)
    });
    let away = affinity.pod_anti_affinity.iter().any(|one| {
        let required = one.required_during_scheduling_ignored_during_execution.iter().flatten();
        let preferred = one.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        required.chain(preferred.map(|weighted| &weighted.pod_affinity_term)).any(across)
    });
    towards || away
}

fn pod_usage(pod: &Pod, now: Timestamp) -> Amounts {
    let mut usage = Amounts::from([("count/pods".to_owned(), ONE)]);
    if !is_charged(pod, now) {
        return usage;
    }
    usage.insert("pods".to_owned(), ONE);
    let Some(spec) = &pod.spec else { return usage };
    for (name, amount) in effective_requests(spec) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            usage.insert(format!("requests.{name}"), amount);
            usage.insert(name, amount);
        } else if is_extended(&name) {
            usage.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in effective_limits(spec) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
    usage
}

/// Whether a pod uses more than its place in the store: not once it has ended, nor when it should long have.
fn is_charged(pod: &Pod, now: Timestamp) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return false;
    }
    match (&pod.metadata.deletion_timestamp, pod.metadata.deletion_grace_period_seconds) {
        (Some(at), Some(grace)) => {
            now <= at.0.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(at.0)
        }
        _ => true,
    }
}

fn claim_usage(claim: &PersistentVolumeClaim) -> Amounts {
    let spec = claim.spec.clone().unwrap_or_default();
    let annotated = claim.metadata.annotations.as_ref().and_then(|all| all.get(CLASS_ANNOTATION));
    let class = annotated.or(spec.storage_class_name.as_ref()).filter(|class| !class.is_empty());
    let mut usage = Amounts::from([
        ("count/persistentvolumeclaims".to_owned(), ONE),
        ("persistentvolumeclaims".to_owned(), ONE),
    ]);
    let amount = |map: Option<&std::collections::BTreeMap<String, Text>>| {
        map.and_then(|map| map.get("storage")).and_then(|text| Quantity::try_from(text).ok())
    };
    let wanted = amount(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let allocated = amount(claim.status.as_ref().and_then(|status| status.allocated_resources.as_ref()));
    if let Some(wanted) = wanted {
        let storage = allocated.map_or(wanted, |allocated| wanted.max(allocated)).rounded_to_units();
        usage.insert("requests.storage".to_owned(), storage);
        if let Some(class) = class {
            usage.insert(format!("{class}{CLASS_SUFFIX}requests.storage"), storage);
        }
    }
    if let Some(class) = class {
        usage.insert(format!("{class}{CLASS_SUFFIX}persistentvolumeclaims"), ONE);
    }
    usage
}

/// The classes of volume attributes that a claim names, has, or is being moved to.
fn attributes_classes(claim: &PersistentVolumeClaim) -> BTreeSet<&str> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.as_deref());
    let target = status
        .and_then(|status| status.modify_volume_status.as_ref())
        .and_then(|status| status.target_volume_attributes_class_name.as_deref());
    [wanted, current, target].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

fn service_usage(service: &Service) -> Amounts {
    let spec = service.spec.clone().unwrap_or_default();
    let ports = spec.ports.unwrap_or_default();
    let count = |number: usize| Quantity::from_units(i64::try_from(number).unwrap_or(i64::MAX));
    let (node_ports, balancers) = match spec.type_.as_deref() {
        Some("NodePort") => (count(ports.len()), Quantity::ZERO),
        Some("LoadBalancer") if spec.allocate_load_balancer_node_ports == Some(false) => {
            (count(ports.iter().filter(|port| port.node_port.is_some_and(|port| port != 0)).count()), ONE)
        }
        Some("LoadBalancer") => (count(ports.len()), ONE),
        _ => (Quantity::ZERO, Quantity::ZERO),
    };
    Amounts::from([
        ("count/services".to_owned(), ONE),
        ("services".to_owned(), ONE),
        ("services.nodeports".to_owned(), node_ports),
        ("services.loadbalancers".to_owned(), balancers),
    ])
}

/// A map of quantities as numbers; what is no quantity was refused when it was written.
pub fn amounts<'a>(map: impl IntoIterator<Item = (&'a String, &'a Text)>) -> Amounts {
    map.into_iter().filter_map(|(name, text)| Some((name.clone(), Quantity::try_from(text).ok()?))).collect()
}

/// What a quota's use will be when an object is written, or `None` if the write does not change it.
/// `old` is the object that is replaced.
///
/// # Errors
/// Why the quota does not admit the object, in Kubernetes' words.
pub fn charge(
    quota: &ResourceQuota,
    item: Item<'_>,
    old: Option<Item<'_>>,
    now: Timestamp,
) -> Result<Option<Amounts>, String> {
    let name = quota.metadata.name.as_deref().unwrap_or_default();
    let spec = quota.spec.clone().unwrap_or_default();
    let status = quota.status.clone().unwrap_or_default();
    let hard = amounts(status.hard.iter().flatten());
    let used = amounts(status.used.iter().flatten());
    if !item.covered(&spec, hard.keys()) {
        return Ok(None);
    }
    let limited: Vec<&str> = hard.keys().map(String::as_str).filter(|name| item.tracks(name)).collect();
    if let Some(missing) = item.missing(limited.iter().copied()) {
        return Err(format!("failed quota: {name}: {missing}"));
    }
    if limited.iter().any(|name| !used.contains_key(*name)) {
        return Err(format!("status unknown for quota: {name}, resources: {}", limited.join(",")));
    }
    let mut requested = item.usage(now);
    if let Some(old) = old.filter(|old| old.covered(&spec, hard.keys())) {
        for (name, before) in old.usage(now) {
            if let Some(amount) = requested.get_mut(&name) {
                *amount = (*amount - before).max(Quantity::ZERO);
            }
        }
    }
    requested.retain(|name, amount| !amount.is_zero() && hard.contains_key(name));
    if requested.is_empty() {
        return Ok(None);
    }
    let mut new = used.clone();
    for (name, amount) in &requested {
        *new.entry(name.clone()).or_default() += *amount;
    }
    let exceeded: Vec<&String> = requested.keys().filter(|name| new[*name] > hard[*name]).collect();
    if exceeded.is_empty() {
        return Ok(Some(new));
    }
    let told = |of: &Amounts| {
        let parts: Vec<String> = exceeded
            .iter()
            .filter_map(|name| of.get(*name).map(|amount| format!("{name}={amount}")))
            .collect();
        parts.join(",")
    };
    Err(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        told(&requested),
        told(&used),
        told(&hard)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn container(resources: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": resources}]})
    }

    fn quota(spec: Value, used: Value) -> ResourceQuota {
        let status = json!({"hard": spec["hard"], "used": used});
        serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": spec, "status": status})).unwrap()
    }

    fn told(quota: &ResourceQuota, item: Item<'_>) -> String {
        match charge(quota, item, None, now()) {
            Ok(Some(used)) => {
                used.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
            }
            Ok(None) => "free".to_owned(),
            Err(why) => why,
        }
    }

    #[test]
    fn a_pod_is_charged_and_refused_in_kubernetes_words() {
        let quota = quota(
            json!({"hard": {"pods": "3", "requests.cpu": "1", "limits.memory": "1Gi"}}),
            json!({"pods": "2", "requests.cpu": "500m", "limits.memory": "0"}),
        );
        let fits = pod(container(json!({"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}})));
        assert_eq!(told(&quota, Item::Pod(&fits)), "limits.memory=1Gi,pods=3,requests.cpu=1");
        let large = pod(container(json!({"requests": {"cpu": "600m"}, "limits": {"memory": "1Mi"}})));
        assert_eq!(
            told(&quota, Item::Pod(&large)),
            "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1"
        );
        let silent = pod(container(json!({"requests": {"cpu": "1m"}})));
        assert_eq!(told(&quota, Item::Pod(&silent)), "failed quota: q: must specify limits.memory for: c");
        assert_eq!(told(&quota, Item::Other("", "secrets")), "free");
    }

    #[test]
    fn a_quota_that_was_not_looked_at_yet_admits_nothing_it_limits() {
        let unknown = quota(json!({"hard": {"pods": "3"}}), json!({}));
        let pod = pod(container(json!({})));
        assert_eq!(told(&unknown, Item::Pod(&pod)), "status unknown for quota: q, resources: pods");
    }

    #[test]
    fn counts_and_extended_resources() {
        let quota = quota(
            json!({"hard": {"count/deployments.apps": "1", "secrets": "2", "requests.example.com/gpu": "2"}}),
            json!({"count/deployments.apps": "1", "secrets": "0", "requests.example.com/gpu": "0"}),
        );
        assert!(
            told(&quota, Item::Other("apps", "deployments"))
                .starts_with("exceeded quota: q, requested: count/deployments.apps=1")
        );
        assert!(told(&quota, Item::Other("", "secrets")).contains("secrets=1"));
        let gpu = pod(container(json!({"requests": {"example.com/gpu": "2"}})));
        assert!(told(&quota, Item::Pod(&gpu)).contains("requests.example.com/gpu=2"));
    }

    #[test]
    fn scopes_select_pods() {
        let short = pod(json!({"activeDeadlineSeconds": 5, "containers": [{"name": "c"}]}));
        let sized = pod(container(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}})));
        let mut ranked = sized.clone();
        ranked.spec.as_mut().unwrap().priority_class_name = Some("high".to_owned());
        let across = pod(json!({"containers": [], "affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "k", "namespaces": ["x"]}]}}}));
        let class = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
        };
        for (scope, yes, no) in [
            (json!({"scopes": ["Terminating"]}), &short, &sized),
            (json!({"scopes": ["NotTerminating"]}), &sized, &short),
            (json!({"scopes": ["BestEffort"]}), &short, &sized),
            (json!({"scopes": ["NotBestEffort"]}), &sized, &short),
            (json!({"scopes": ["PriorityClass"]}), &ranked, &sized),
            (class("In", json!(["high"])), &ranked, &sized),
            (class("NotIn", json!(["high"])), &sized, &ranked),
            (json!({"scopes": ["CrossNamespacePodAffinity"]}), &across, &sized),
        ] {
            let spec: ResourceQuotaSpec = serde_json::from_value(scope.clone()).unwrap();
            let limited = ["pods".to_owned()];
            assert!(Item::Pod(yes).covered(&spec, limited.iter()), "{scope}");
            assert!(!Item::Pod(no).covered(&spec, limited.iter()), "{scope}");
        }
    }

    #[test]
    fn pods_that_have_ended_are_only_counted() {
        let mut pod = pod(container(json!({"requests": {"cpu": "1"}})));
        assert!(Item::Pod(&pod).usage(now()).contains_key("pods"));
        pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        assert_eq!(Item::Pod(&pod).usage(now()).into_keys().collect::<Vec<_>>(), ["count/pods"]);
        pod.status = None;
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
        pod.metadata.deletion_grace_period_seconds = Some(30);
        assert!(Item::Pod(&pod).usage(now()).contains_key("pods"));
        let later = now() + SignedDuration::from_secs(31);
        assert!(!Item::Pod(&pod).usage(later).contains_key("pods"), "it should long have ended");
    }

    #[test]
    fn claims_and_services() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"spec": {"storageClassName": "gold",
            "resources": {"requests": {"storage": "1Gi"}}}}))
            .unwrap();
        let usage = Item::Claim(&claim).usage(now());
        assert_eq!(usage["gold.storageclass.storage.k8s.io/requests.storage"].to_string(), "1Gi");
        assert_eq!(usage["gold.storageclass.storage.k8s.io/persistentvolumeclaims"], ONE);
        assert!(usage.keys().all(|name| Item::Claim(&claim).tracks(name)), "{usage:?}");
        let service = |spec: Value| -> Service { serde_json::from_value(json!({ "spec": spec })).unwrap() };
        let node = service(json!({"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}));
        assert_eq!(Item::Service(&node).usage(now())["services.nodeports"], Quantity::from_units(2));
        let balanced = service(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
            "ports": [{"port": 1}, {"port": 2, "nodePort": 30001}]}));
        let usage = Item::Service(&balanced).usage(now());
        assert_eq!((usage["services.nodeports"], usage["services.loadbalancers"]), (ONE, ONE));
    }

    #[test]
    fn an_update_is_charged_for_the_difference() {
        let quota = quota(
            json!({"hard": {"services.nodeports": "2", "services": "1"}}),
            json!({"services.nodeports": "1", "services": "1"}),
        );
        let service = |kind: &str| -> Service {
            serde_json::from_value(json!({"spec": {"type": kind, "ports": [{"port": 1}]}})).unwrap()
        };
        let (old, new) = (service("ClusterIP"), service("NodePort"));
        let used = charge(&quota, Item::Service(&new), Some(Item::Service(&old)), now()).unwrap().unwrap();
        assert_eq!((used["services.nodeports"], used["services"]), (Quantity::from_units(2), ONE));
        assert_eq!(charge(&quota, Item::Service(&old), Some(Item::Service(&new)), now()), Ok(None));
    }
}
