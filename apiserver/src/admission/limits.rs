//! LimitRanger: a namespace's limit ranges complete the resources of its pods, and bound what each
//! container, pod and claim may ask for.

use std::collections::BTreeMap;

use async_trait::async_trait;
use decapod_api::kinds::{Amounts, pod_amounts};
use decapod_api::meta;
use decapod_api::quantity::Quantity;
use decapod_api::status::Error;
use k8s_openapi::api::core::v1::{
    Container, LimitRange, LimitRangeItem, PersistentVolumeClaim, Pod, PodSpec, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::{Map, Value};

use super::{Attributes, Operation, Plugin, typed};
use crate::registry::core;
use crate::registry::object::{items_mut, map_mut, meta_mut};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger;

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        if write.old.is_some_and(meta::deleting) {
            return false;
        }
        match write.operation {
            Operation::Create => write.is("", "pods") || write.is("", "persistentvolumeclaims"),
            Operation::Update => write.is_sub("", "pods", "resize") || write.is("", "persistentvolumeclaims"),
            Operation::Delete => false,
        }
    }

    async fn mutate(&self, write: &Attributes<'_>, object: &mut Value) -> Result<(), Error> {
        if write.call.resource.plural == "pods" {
            for range in write.registry.settings(core("limitranges"), &write.call.namespace).await? {
                complete(object, &typed(&range)?);
            }
        }
        Ok(())
    }

    async fn validate(&self, write: &Attributes<'_>, object: &Value) -> Result<(), Error> {
        for range in write.registry.settings(core("limitranges"), &write.call.namespace).await? {
            let range: LimitRange = typed(&range)?;
            let refusals = if write.call.resource.plural == "pods" {
                let pod: Pod = typed(object)?;
                pod_refusals(&range, &pod.spec.unwrap_or_default())
            } else {
                claim_refusals(&range, &typed(object)?)
            };
            if !refusals.is_empty() {
                return Err(write.call.forbidden(aggregate(refusals)));
            }
        }
        Ok(())
    }
}

/// Several reasons as one text; the same one is said once.
pub(super) fn aggregate(mut reasons: Vec<String>) -> String {
    let mut seen = Vec::new();
    reasons.retain(|reason| {
        let new = !seen.contains(reason);
        seen.push(reason.clone());
        new
    });
    if reasons.len() == 1 { reasons.remove(0) } else { format!("[{}]", reasons.join(", ")) }
}

fn items<'a>(range: &'a LimitRange, kind: &str) -> impl Iterator<Item = &'a LimitRangeItem> {
    let items = range.spec.iter().flat_map(|spec| &spec.limits);
    let kind = kind.to_owned();
    items.filter(move |item| item.type_ == kind)
}

/// Gives containers the requests and limits that they do not name, and notes so in an annotation.
fn complete(pod: &mut Value, range: &LimitRange) {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    for item in items(range, "Container") {
        requests.extend(item.default_request.clone().unwrap_or_default());
        limits.extend(item.default.clone().unwrap_or_default());
    }
    let mut notes = Vec::new();
    for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in items_mut(pod, &["spec", field]) {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let resources = map_mut(container, "resources");
            let limited = fill(resources, "limits", &limits);
            let requested = fill(resources, "requests", &requests);
            for (set, side) in [(requested, "request"), (limited, "limit")] {
                if !set.is_empty() {
                    notes.push(format!("{} {side} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        let annotations = meta_mut(pod).entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        annotations[ANNOTATION] = note.into();
    }
}

/// Adds the amounts that are not there; returns their names.
fn fill(resources: &mut Map<String, Value>, side: &str, defaults: &BTreeMap<String, Text>) -> Vec<String> {
    let mut set = Vec::new();
    if defaults.is_empty() {
        return set;
    }
    let slot = resources.entry(side).or_insert_with(|| Value::Object(Map::new()));
    let Some(amounts) = slot.as_object_mut() else { return set };
    for (name, amount) in defaults {
        if !amounts.contains_key(name) {
            amounts.insert(name.clone(), amount.0.clone().into());
            set.push(name.clone());
        }
    }
    set
}

fn amounts(map: Option<&BTreeMap<String, Text>>) -> Amounts {
    let parsed = |(name, text): (&String, &Text)| Some((name.clone(), Quantity::try_from(text).ok()?));
    map.into_iter().flatten().filter_map(parsed).collect()
}

fn pod_refusals(range: &LimitRange, spec: &PodSpec) -> Vec<String> {
    let mut refusals = Vec::new();
    for item in items(range, "Container") {
        let check = |container: &Container| {
            let resources = container.resources.clone().unwrap_or_default();
            bounds(item, &amounts(resources.requests.as_ref()), &amounts(resources.limits.as_ref()))
        };
        refusals.extend(spec.containers.iter().flat_map(check));
        refusals.extend(spec.init_containers.iter().flatten().flat_map(check));
    }
    for item in items(range, "Pod") {
        let side = |of: fn(&ResourceRequirements) -> Option<&BTreeMap<String, Text>>| pod_amounts(spec, of);
        refusals.extend(bounds(item, &side(|r| r.requests.as_ref()), &side(|r| r.limits.as_ref())));
    }
    refusals
}

fn claim_refusals(range: &LimitRange, claim: &PersistentVolumeClaim) -> Vec<String> {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = amounts(resources.and_then(|resources| resources.requests.as_ref()));
    let mut refusals = Vec::new();
    for item in items(range, "PersistentVolumeClaim") {
        for (name, min) in amounts(item.min.as_ref()) {
            refusals.extend(below(item, &name, min, &requests, &Amounts::new()));
        }
        for (name, max) in amounts(item.max.as_ref()) {
            let head = format!("maximum {name} usage per {} is {max}", item.type_);
            match requests.get(&name) {
                None => refusals.push(format!("{head}.  No request is specified")),
                Some(request) if *request > max => refusals.push(format!("{head}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    refusals
}

/// All that is wrong with requests and limits by one item.
fn bounds(item: &LimitRangeItem, requests: &Amounts, limits: &Amounts) -> Vec<String> {
    let mut refusals = Vec::new();
    for (name, min) in amounts(item.min.as_ref()) {
        refusals.extend(below(item, &name, min, requests, limits));
    }
    for (name, max) in amounts(item.max.as_ref()) {
        refusals.extend(above(item, &name, max, requests, limits));
    }
    for (name, ratio) in amounts(item.max_limit_request_ratio.as_ref()) {
        refusals.extend(disproportionate(item, &name, ratio, requests, limits));
    }
    refusals
}

fn below(
    item: &LimitRangeItem,
    name: &str,
    min: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let head = format!("minimum {name} usage per {} is {min}", item.type_);
    match (requests.get(name), limits.get(name)) {
        (None, _) => Some(format!("{head}.  No request is specified")),
        (Some(request), _) if *request < min => Some(format!("{head}, but request is {request}")),
        (_, Some(limit)) if *limit < min => Some(format!("{head}, but limit is {limit}")),
        _ => None,
    }
}

fn above(
    item: &LimitRangeItem,
    name: &str,
    max: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let head = format!("maximum {name} usage per {} is {max}", item.type_);
    match (limits.get(name), requests.get(name)) {
        (None, _) => Some(format!("{head}.  No limit is specified")),
        (Some(limit), _) if *limit > max => Some(format!("{head}, but limit is {limit}")),
        (_, Some(request)) if *request > max => Some(format!("{head}, but request is {request}")),
        _ => None,
    }
}

fn disproportionate(
    item: &LimitRangeItem,
    name: &str,
    max: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {} is {max}, but", item.type_);
    let of = |amounts: &Amounts| amounts.get(name).filter(|amount| !amount.is_zero()).map(Quantity::as_f64);
    let Some(request) = of(requests) else {
        return Some(format!("{head} no request is specified or request is 0"));
    };
    let Some(limit) = of(limits) else {
        return Some(format!("{head} no limit is specified or limit is 0"));
    };
    let ratio = limit / request;
    (ratio > max.as_f64()).then(|| format!("{head} provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn range(limits: Value) -> LimitRange {
        serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"limits": limits}})).unwrap()
    }

    fn spec(resources: Value) -> PodSpec {
        serde_json::from_value(json!({"containers": [{"name": "c", "resources": resources}]})).unwrap()
    }

    #[test]
    fn containers_get_what_they_do_not_name() {
        let range = range(json!([{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "500m"}}]));
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}}]}});
        complete(&mut pod, &range);
        let containers = &pod["spec"]["containers"];
        assert_eq!(
            containers[0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})
        );
        assert_eq!(containers[1]["resources"]["limits"], json!({"cpu": "2", "memory": "1Gi"}));
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; memory limit for container b"
        );
        let once = pod.clone();
        complete(&mut pod, &range);
        assert_eq!(pod["spec"], once["spec"]);
    }

    #[test]
    fn bounds_are_told_in_kubernetes_words() {
        let range = range(json!([{"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1"},
            "maxLimitRequestRatio": {"cpu": "2"}}]));
        let told = |resources: Value| aggregate(pod_refusals(&range, &spec(resources)));
        assert_eq!(told(json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}})), "[]");
        assert_eq!(
            told(json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}})),
            "minimum cpu usage per Container is 100m, but request is 50m"
        );
        assert_eq!(
            told(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})),
            "maximum cpu usage per Container is 1, but limit is 2"
        );
        assert_eq!(
            told(json!({"requests": {"cpu": "400m"}, "limits": {"cpu": "1"}})),
            "cpu max limit to request ratio per Container is 2, but provided ratio is 2.500000"
        );
        assert_eq!(
            told(json!({})),
            "[minimum cpu usage per Container is 100m.  No request is specified, \
             maximum cpu usage per Container is 1.  No limit is specified, \
             cpu max limit to request ratio per Container is 2, but no request is specified or request is 0]"
        );
    }

    #[test]
    fn pods_and_claims_have_bounds_too() {
        let pods = range(json!([{"type": "Pod", "max": {"memory": "1Gi"}}]));
        let refusals = pod_refusals(&pods, &spec(json!({"limits": {"memory": "2Gi"}})));
        assert_eq!(refusals, ["maximum memory usage per Pod is 1Gi, but limit is 2Gi"]);
        let claims = range(
            json!([{"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}, "min": {"storage": "1Mi"}}]),
        );
        let claim = |size: &str| {
            serde_json::from_value(json!({"spec": {"resources": {"requests": {"storage": size}}}})).unwrap()
        };
        assert_eq!(
            claim_refusals(&claims, &claim("2Gi")),
            ["maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"]
        );
        assert!(claim_refusals(&claims, &claim("1Gi")).is_empty());
    }
}
