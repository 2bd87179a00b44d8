//! `serviceaccounts/token`: a token of a service account, bound to an object if asked for.

use std::time::Duration;

use decapod_api::status::Error;
use decapod_api::{field, meta};
use http::{Response, StatusCode};
use serde_json::Value;

use super::Request;
use crate::auth::node;
use crate::auth::service_account::{Grant, MIN_LIFETIME, Reference};
use crate::clock::rfc3339;
use crate::http::{Body, reply};
use crate::registry::{Call, body, core};

/// What a request that names no time gets.
const DEFAULT_SECONDS: i64 = 3600;

pub(super) async fn request(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let registry = &request.core.registry;
    let (account, _) = registry.current(&call).await?.ok_or_else(|| call.not_found())?;
    let mut token_request = body::parse(request.content_type(), bytes)?.value;
    body::check_gvk("authentication.k8s.io/v1", "TokenRequest", &mut token_request)?;
    let spec = &token_request["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    if seconds < MIN_LIFETIME.as_secs() as i64 {
        let path = field::Path::new("spec").child("expirationSeconds");
        let error = field::Error::invalid(&path, seconds, "may not specify a duration less than 10 minutes");
        return Err(invalid(&call, error));
    }
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let mut grant = Grant {
        namespace: call.namespace.clone(),
        account: Reference { name: call.name.clone(), uid: meta::uid(&account).to_owned() },
        pod: None,
        node: None,
        secret: None,
        audiences,
        lifetime: Duration::from_secs(seconds.unsigned_abs()),
    };
    bind(request, &call, &spec["boundObjectRef"], &mut grant).await?;
    for_own_pod(&call, &grant)?;
    let now = request.core.clock.now();
    let (token, expires) = request
        .core
        .tokens
        .sign(&grant, now)
        .map_err(|e| Error::Internal(format!("cannot sign the token: {e}")))?;
    if grant.audiences.is_empty() {
        token_request["spec"]["audiences"] = serde_json::json!([crate::auth::service_account::ISSUER]);
    }
    token_request["spec"]["expirationSeconds"] = seconds.into();
    token_request["metadata"]["name"] = call.name.as_str().into();
    token_request["metadata"]["namespace"] = call.namespace.as_str().into();
    token_request["metadata"]["creationTimestamp"] = rfc3339(now).into();
    token_request["status"] = serde_json::json!({"token": token, "expirationTimestamp": rfc3339(expires)});
    Ok(reply::json(StatusCode::CREATED, &token_request))
}

/// A kubelet gets tokens for the pods on its node only.
fn for_own_pod(call: &Call, grant: &Grant) -> Result<(), Error> {
    let Some(node) = node::name_of(&call.user) else { return Ok(()) };
    if grant.pod.is_none() {
        return Err(call.forbidden("node requested token not bound to a pod"));
    }
    if grant.node.as_ref().is_none_or(|bound| bound.name != node) {
        return Err(call.forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    Ok(())
}

fn invalid(call: &Call, error: field::Error) -> Error {
    Error::Invalid {
        group: "authentication.k8s.io".to_owned(),
        kind: "TokenRequest".to_owned(),
        name: call.name.clone(),
        errors: vec![error],
    }
}

/// Binds the grant to the pod, node or secret that the request names.
async fn bind(request: &Request<'_>, call: &Call, bound: &Value, grant: &mut Grant) -> Result<(), Error> {
    if bound.is_null() {
        return Ok(());
    }
    let registry = &request.core.registry;
    let (kind, name) =
        (bound["kind"].as_str().unwrap_or_default(), bound["name"].as_str().unwrap_or_default());
    let (resource, namespace) = match kind {
        "Pod" => (core("pods"), call.namespace.as_str()),
        "Secret" => (core("secrets"), call.namespace.as_str()),
        "Node" => (core("nodes"), ""),
        other => {
            let path = field::Path::new("spec").child("boundObjectRef").child("kind");
            return Err(invalid(call, field::Error::not_supported(&path, other, &["Pod", "Secret", "Node"])));
        }
    };
    let not_found = || Error::NotFound { resource: resource.qualified(), name: name.to_owned() };
    let object = registry.find(resource, namespace, name).await?.ok_or_else(not_found)?;
    let wanted = bound["uid"].as_str().unwrap_or_default();
    if !wanted.is_empty() && wanted != meta::uid(&object) {
        return Err(call.conflict(format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        )));
    }
    let reference = Reference { name: name.to_owned(), uid: meta::uid(&object).to_owned() };
    match kind {
        "Pod" => {
            if object["spec"]["serviceAccountName"] != call.name {
                let why = format!(
                    "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                    call.name
                );
                return Err(Error::BadRequest(why));
            }
            let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
            if !node.is_empty()
                && let Some(node) = registry.find(core("nodes"), "", node).await?
            {
                grant.node =
                    Some(Reference { name: meta::name(&node).to_owned(), uid: meta::uid(&node).to_owned() });
            }
            grant.pod = Some(reference);
        }
        "Secret" => grant.secret = Some(reference),
        _ => grant.node = Some(reference),
    }
    Ok(())
}
