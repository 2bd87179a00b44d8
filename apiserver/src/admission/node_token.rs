//! A kubelet gets tokens for pods on its node, for the audiences that those pods' volumes ask for.

use decapod_api::meta;
use decapod_api::status::Error;
use serde_json::Value;

use crate::auth::{Attributes, node};
use crate::registry::{Call, Registry, core, row};

/// The verb by which a cluster's owner lets nodes have tokens for further audiences.
const ANY_AUDIENCE: &str = "request-serviceaccounts-token-audience";

pub(super) async fn check(registry: &Registry, call: &Call, spec: &Value) -> Result<(), Error> {
    let Some(node) = node::name_of(&call.user) else { return Ok(()) };
    let bound = &spec["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    if text("kind") != "Pod" || text("apiVersion") != "v1" || text("name").is_empty() {
        return Err(call.forbidden("node requested token not bound to a pod"));
    }
    let uid = text("uid");
    if uid.is_empty() {
        return Err(call.forbidden("node requested token with a pod binding without a uid"));
    }
    let name = text("name");
    let pod = registry.find(core("pods"), &call.namespace, name).await?;
    let not_found = || Error::NotFound { resource: "pods".to_owned(), name: name.to_owned() };
    let pod = pod.ok_or_else(not_found)?;
    if meta::uid(&pod) != uid {
        return Err(call.forbidden(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        )));
    }
    if pod["spec"]["nodeName"] != *node {
        return Err(call.forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    audience(registry, call, spec, &pod).await
}

async fn audience(registry: &Registry, call: &Call, spec: &Value, pod: &Value) -> Result<(), Error> {
    let audiences = spec["audiences"].as_array().map_or(&[][..], Vec::as_slice);
    let wanted = match audiences {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err(call.forbidden("node may only request 0 or 1 audiences")),
    };
    if mounted(pod, wanted) || by_driver(registry, pod, wanted).await? {
        return Ok(());
    }
    let asked = Attributes {
        verb: ANY_AUDIENCE.to_owned(),
        version: "v1".to_owned(),
        resource: wanted.to_owned(),
        namespace: call.namespace.clone(),
        name: call.name.clone(),
        ..Attributes::default()
    };
    if asked.is_resource() && registry.policy.decide(&call.user, &asked).allowed() {
        return Ok(());
    }
    Err(call.forbidden(format!(
        "audience \"{wanted}\" not found in pod spec volume, {} is not authorized to request tokens for this audience",
        call.user.username
    )))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Whether a projected volume of the pod has a token for the audience.
fn mounted(pod: &Value, audience: &str) -> bool {
    let sources = items(&pod["spec"]["volumes"]).flat_map(|volume| items(&volume["projected"]["sources"]));
    let mut tokens = sources.map(|source| &source["serviceAccountToken"]).filter(|token| token.is_object());
    tokens.any(|token| token["audience"].as_str().unwrap_or_default() == audience)
}

/// Whether the driver of one of the pod's volumes wants tokens for the audience.
async fn by_driver(registry: &Registry, pod: &Value, audience: &str) -> Result<bool, Error> {
    for volume in items(&pod["spec"]["volumes"]) {
        let Some(driver) = driver_of(registry, pod, volume).await? else { continue };
        let driver = registry.find(row("storage.k8s.io", "v1", "csidrivers"), "", &driver).await?;
        let wants = |driver: &Value| {
            items(&driver["spec"]["tokenRequests"])
                .any(|request| request["audience"].as_str().unwrap_or_default() == audience)
        };
        if driver.as_ref().is_some_and(wants) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn driver_of(registry: &Registry, pod: &Value, volume: &Value) -> Result<Option<String>, Error> {
    if let Some(driver) = volume["csi"]["driver"].as_str() {
        return Ok(Some(driver.to_owned()));
    }
    let claim = match volume["persistentVolumeClaim"]["claimName"].as_str() {
        Some(claim) => claim.to_owned(),
        None if volume["ephemeral"].is_object() => {
            format!("{}-{}", meta::name(pod), volume["name"].as_str().unwrap_or_default())
        }
        None => return Ok(None),
    };
    let claim = registry.find(core("persistentvolumeclaims"), meta::namespace(pod), &claim).await?;
    let volume = claim.as_ref().and_then(|claim| claim["spec"]["volumeName"].as_str()).unwrap_or_default();
    if volume.is_empty() {
        return Ok(None);
    }
    let volume = registry.find(core("persistentvolumes"), "", volume).await?;
    Ok(volume.and_then(|volume| volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn audiences_of_projected_tokens() {
        let pod = json!({"spec": {"volumes": [{"projected": {"sources": [{"configMap": {}},
            {"serviceAccountToken": {"path": "t"}}, {"serviceAccountToken": {"audience": "vault"}}]}}]}});
        assert!(mounted(&pod, "") && mounted(&pod, "vault") && !mounted(&pod, "other"));
        assert!(!mounted(&json!({"spec": {}}), ""));
    }
}
