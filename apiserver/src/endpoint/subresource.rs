//! Subresources: the generic `status` and `scale`, and those of single kinds.

use decapod_api::apply::Apply;
use decapod_api::status::Error;
use decapod_api::{field, labels, meta};
use http::{Response, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Request, eviction, object, read, render, token};
use crate::clock::rfc3339;
use crate::http::{Body, reply};
use crate::registry::managed::{self, ScaleWrite, Tracking};
use crate::registry::object::{copy_field, items_mut};
use crate::registry::patch::Patch;
use crate::registry::update::Part;
use crate::registry::{Call, body, core};

/// Whether a subresource is a connection to a kubelet rather than an object.
pub(super) fn is_connection(subresource: &str) -> bool {
    matches!(subresource, "log" | "exec" | "attach" | "portforward" | "proxy")
}

pub(super) async fn answer(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let a = &request.info.attributes;
    match (a.subresource.as_str(), a.verb.as_str()) {
        ("scale", verb) => scale(request, verb, bytes).await,
        ("binding", _) => bind(request, &a.name, bytes).await,
        ("eviction", _) => eviction::evict(request, bytes).await,
        ("token", _) => token::request(request, bytes).await,
        (_, "get") => read::get(request).await,
        ("status" | "approval", "update") => object::update(request, Part::Status, bytes).await,
        ("status" | "approval", "patch") => object::patch(request, Part::Status, bytes).await,
        ("finalize", "update") => part_of(request, bytes, finalize).await,
        ("ephemeralcontainers", _) => part_of(request, bytes, ephemeral_containers).await,
        ("resize", _) => part_of(request, bytes, resize).await,
        _ => Err(request.unsupported()),
    }
}

/// Takes over one part of the body's object, by update or patch.
async fn part_of(
    request: &Request<'_>,
    bytes: &[u8],
    take: fn(&mut Value, &Value),
) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let registry = &request.core.registry;
    let object = if request.info.attributes.verb == "patch" {
        let (patch, duplicates) = request.patch(bytes)?;
        let tracking = if patch.is_apply() { Tracking::Given } else { Tracking::Update };
        let change = |old: &Value| {
            let patched = registry.patched(&call, &patch, &duplicates, old)?;
            Ok(merged(old, &patched, take))
        };
        registry.modify_as(&call, Part::Whole, tracking, change).await?
    } else {
        let parsed = body::parse(request.content_type(), bytes)?;
        let mut object = parsed.value;
        body::check_kind(call.resource, &mut object)?;
        let object = body::normalize(&call, object, &parsed.duplicates)?;
        registry.modify(&call, Part::Whole, |old| Ok(merged(old, &object, take))).await?
    };
    render::written(request, StatusCode::OK, &object, &call.warnings())
}

/// The old object with the part of the new one, and with the version that the client wants to
/// replace.
fn merged(old: &Value, new: &Value, take: fn(&mut Value, &Value)) -> Value {
    let mut result = old.clone();
    if let Some(version) = meta::text(new, "resourceVersion").filter(|v| !v.is_empty()) {
        result["metadata"]["resourceVersion"] = version.into();
    }
    managed::take(&mut result);
    managed::set(&mut result, new["metadata"].get("managedFields").cloned());
    take(&mut result, new);
    result
}

fn finalize(object: &mut Value, new: &Value) {
    copy_field(object, new, "spec");
}

fn ephemeral_containers(object: &mut Value, new: &Value) {
    object["spec"]["ephemeralContainers"] = new["spec"]["ephemeralContainers"].clone();
}

fn resize(object: &mut Value, new: &Value) {
    let wanted = new["spec"]["containers"].as_array().cloned().unwrap_or_default();
    for container in items_mut(object, &["spec", "containers"]) {
        if let Some(from) = wanted.iter().find(|w| w["name"] == container["name"]) {
            container["resources"] = from["resources"].clone();
            container["resizePolicy"] = from["resizePolicy"].clone();
        }
    }
}

/// `autoscaling/v1` `Scale` of an object with replicas.
fn scale_of(object: &Value) -> Value {
    let selector = match &object["spec"]["selector"] {
        Value::Object(map) if map.contains_key("matchLabels") || map.contains_key("matchExpressions") => {
            LabelSelector::deserialize(&object["spec"]["selector"])
                .ok()
                .and_then(|s| labels::Selector::try_from(&s).ok())
                .map(|s| s.to_string())
        }
        Value::Object(map) => Some(
            map.iter()
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(","),
        ),
        _ => None,
    };
    let m = &object["metadata"];
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": m["name"], "namespace": m["namespace"], "uid": m["uid"],
            "resourceVersion": m["resourceVersion"], "creationTimestamp": m["creationTimestamp"]},
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector.unwrap_or_default()}})
}

async fn scale(request: &Request<'_>, verb: &str, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let registry = &request.core.registry;
    if verb == "get" {
        let (object, _) = registry.current(&call).await?.ok_or_else(|| call.not_found())?;
        return Ok(reply::json(StatusCode::OK, &scale_of(&object)));
    }
    let wanted = if verb == "patch" {
        Err(request.patch(bytes)?.0)
    } else {
        let mut scale = body::parse(request.content_type(), bytes)?.value;
        body::check_gvk("autoscaling/v1", "Scale", &mut scale)?;
        Ok(scale)
    };
    let clock_now = rfc3339(request.core.clock.now());
    let change = |old: &Value| {
        let current = scale_of(old);
        let proposed;
        let write = match &wanted {
            Ok(scale) => ScaleWrite::Update(scale),
            Err(Patch::Apply { config, force }) => ScaleWrite::Apply(Apply { config, force: *force }),
            Err(patch) => {
                proposed = patch.apply(&current, "io.k8s.api.autoscaling.v1.Scale")?;
                ScaleWrite::Update(&proposed)
            }
        };
        let (scale, managed) = managed::scaled(&call, old, &current, &write, &clock_now)?;
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if !(0..=i64::from(i32::MAX)).contains(&replicas) {
            let path = field::Path::new("spec").child("replicas");
            let error = field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
            let name = call.name.clone();
            return Err(Error::Invalid {
                group: "autoscaling".into(),
                kind: "Scale".into(),
                name,
                errors: vec![error],
            });
        }
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas.into();
        managed::take(&mut new);
        managed::set(&mut new, managed);
        if let Some(version) = meta::text(&scale, "resourceVersion").filter(|v| !v.is_empty()) {
            new["metadata"]["resourceVersion"] = version.into();
        }
        Ok(new)
    };
    let object = registry.modify_as(&call, Part::Whole, Tracking::Given, change).await?;
    Ok(reply::json(StatusCode::OK, &scale_of(&object)))
}

/// Binds a pod to a node: from `pods/binding`, or a `Binding` created in the namespace.
pub(super) async fn bind(request: &Request<'_>, pod: &str, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let a = &request.info.attributes;
    let mut call = Call::new(request.user.clone(), core("pods"), &a.namespace, pod);
    call.options = request.call()?.options;
    let body::Parsed { value: mut binding, .. } = body::parse(request.content_type(), bytes)?;
    body::check_gvk("v1", "Binding", &mut binding)?;
    if call.name.is_empty() {
        call.name = meta::name(&binding).to_owned();
    }
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default().to_owned();
    let kind = target["kind"].as_str().unwrap_or("Node");
    if node.is_empty() || !matches!(kind, "" | "Node") {
        let path = field::Path::new("target").child(if node.is_empty() { "name" } else { "kind" });
        let error = if node.is_empty() {
            field::Error::required(&path, "")
        } else {
            field::Error::not_supported(&path, kind, &["Node"])
        };
        return Err(Error::Invalid {
            group: String::new(),
            kind: "Binding".into(),
            name: call.name,
            errors: vec![error],
        });
    }
    let now = rfc3339(request.core.clock.now());
    let change = |old: &Value| bound(&call, old, &binding, &node, &now);
    request.core.registry.modify_as(&call, Part::Whole, Tracking::Keep, change).await?;
    let success =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(reply::json(StatusCode::CREATED, &success))
}

fn bound(call: &Call, pod: &Value, binding: &Value, node: &str, now: &str) -> Result<Value, Error> {
    let wanted = meta::uid(binding);
    if !wanted.is_empty() && wanted != meta::uid(pod) {
        return Err(call.conflict(format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {}",
            meta::uid(pod)
        )));
    }
    if meta::deleting(pod) {
        return Err(
            call.conflict(format!("pod {} is being deleted, cannot be assigned to a host", call.name))
        );
    }
    let current = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !current.is_empty() {
        return Err(call.conflict(format!("pod {} is already assigned to node \"{current}\"", call.name)));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(call.conflict(format!("pod {} has non-empty .spec.schedulingGates", call.name)));
    }
    let mut new = pod.clone();
    new["spec"]["nodeName"] = node.into();
    for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
        new["metadata"]["annotations"][key] = value.clone();
    }
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let mut conditions: Vec<Value> = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|c| c["type"] != "PodScheduled");
    conditions.push(condition);
    new["status"]["conditions"] = conditions.into();
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales() {
        let scale = scale_of(&json!({"metadata": {"name": "d"}, "spec": {"replicas": 3,
            "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 2}}));
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
        let rc = scale_of(&json!({"spec": {"replicas": 1, "selector": {"a": "b"}}}));
        assert_eq!(rc["status"]["selector"], "a=b");
    }

    #[test]
    fn a_pod_is_bound_once() {
        let call = Call::own(core("pods"), "web", "p");
        let binding = json!({"metadata": {"name": "p"}, "target": {"name": "n"}});
        let pod = bound(&call, &json!({"metadata": {"name": "p"}, "spec": {}}), &binding, "n", "t").unwrap();
        assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
        let again = bound(&call, &pod, &binding, "n", "t").unwrap_err();
        assert!(again.to_string().contains("is already assigned to node \"n\""), "{again}");
    }
}
