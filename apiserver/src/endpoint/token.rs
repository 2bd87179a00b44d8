//! `serviceaccounts/token`: a token of a service account, bound to an object if asked for.

use std::time::Duration;

use decapod_api::resource::Resource;
use decapod_api::status::Error;
use decapod_api::{field, meta};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::Request;
use crate::auth::service_account::{Grant, MIN_LIFETIME, Reference};
use crate::clock::rfc3339;
use crate::http::{Body, reply};
use crate::registry::{Call, body, core};
use crate::{admission, audit};

/// What a request that names no time gets.
const DEFAULT_SECONDS: i64 = 3600;
/// More than this is refused rather than shortened.
const MAX_SECONDS: i64 = 1 << 32;
/// The audit log names the token that was issued, never the token itself.
const ISSUED: &str = "authentication.kubernetes.io/issued-credential-id";

pub(super) async fn request(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let tokens = &request.core.tokens;
    let mut asked = body::parse(request.content_type(), bytes)?.value;
    body::check_gvk("authentication.k8s.io/v1", "TokenRequest", &mut asked)?;
    identity(&call, "name", &call.name, &asked)?;
    identity(&call, "namespace", &call.namespace, &asked)?;
    let account = request.core.registry.current(&call).await?;
    let (account, _) = account.ok_or_else(|| call.not_found())?;
    check_account_uid(&call, &asked, &account)?;
    let seconds = seconds(&asked["spec"]["expirationSeconds"])?;
    let mut grant = Grant {
        namespace: call.namespace.clone(),
        account: Reference { name: call.name.clone(), uid: meta::uid(&account).to_owned() },
        pod: None,
        node: None,
        secret: None,
        audiences: audiences(&asked["spec"]["audiences"], &tokens.options().audiences),
        lifetime: Duration::from_secs(seconds.unsigned_abs()),
    };
    let node_checks = admission::node_token(&request.core.registry, &call, &asked["spec"]);
    node_checks.await?;
    bind(request, &call, &asked["spec"]["boundObjectRef"], &mut grant).await?;
    let longest = tokens.options().max_lifetime.as_secs() as i64;
    if seconds > longest {
        call.warn(format!("requested expiration of {seconds} seconds shortened to {longest} seconds"));
    }
    let now = request.core.clock.now();
    let signed =
        tokens.sign(&grant, now).map_err(|e| Error::Internal(format!("failed to generate token: {e}")))?;
    audit::annotate(ISSUED, signed.credential_id);
    asked["spec"]["audiences"] = json!(grant.audiences);
    asked["spec"]["expirationSeconds"] = seconds.min(longest).into();
    asked["metadata"]["name"] = call.name.as_str().into();
    asked["metadata"]["namespace"] = call.namespace.as_str().into();
    asked["metadata"]["uid"] = grant.account.uid.into();
    asked["metadata"]["creationTimestamp"] = rfc3339(now).into();
    asked["status"] = json!({"token": signed.token, "expirationTimestamp": rfc3339(signed.expires)});
    if !call.options.dry_run {
        tracing::debug!(namespace = call.namespace, account = call.name, "service account token issued");
    }
    let mut response = reply::json(StatusCode::CREATED, &asked);
    reply::warn(&mut response, &call.warnings());
    Ok(response)
}

/// The body may leave out whose token it is, and must not name another's.
fn identity(call: &Call, field: &str, wanted: &str, asked: &Value) -> Result<(), Error> {
    match meta::text(asked, field).filter(|given| !given.is_empty()) {
        Some(given) if given != wanted => {
            let path = field::Path::new("metadata").child(field);
            let why = format!("must match the service account {field} if specified");
            Err(invalid(&call.name, field::Error::invalid(&path, given, why)))
        }
        _ => Ok(()),
    }
}

fn check_account_uid(call: &Call, asked: &Value, account: &Value) -> Result<(), Error> {
    let (given, found) = (meta::uid(asked), meta::uid(account));
    if given.is_empty() || given == found {
        return Ok(());
    }
    Err(Error::Conflict {
        resource: "TokenRequest.authentication.k8s.io".to_owned(),
        name: call.name.clone(),
        why: format!(
            "the UID in the token request ({given}) does not match the UID of the service account ({found})"
        ),
    })
}

fn audiences(asked: &Value, own: &[String]) -> Vec<String> {
    let asked = asked.as_array().into_iter().flatten();
    let asked: Vec<String> = asked.filter_map(|a| a.as_str().map(str::to_owned)).collect();
    if asked.is_empty() { own.to_vec() } else { asked }
}

fn seconds(asked: &Value) -> Result<i64, Error> {
    let seconds = asked.as_i64().unwrap_or(DEFAULT_SECONDS);
    let path = field::Path::new("spec").child("expirationSeconds");
    let refuse = |why: &str| Err(invalid("", field::Error::invalid(&path, seconds, why)));
    if seconds < MIN_LIFETIME.as_secs() as i64 {
        return refuse("may not specify a duration less than 10 minutes");
    }
    if seconds > MAX_SECONDS {
        return refuse("may not specify a duration larger than 2^32 seconds");
    }
    Ok(seconds)
}

fn invalid(name: &str, error: field::Error) -> Error {
    Error::Invalid {
        group: "authentication.k8s.io".to_owned(),
        kind: "TokenRequest".to_owned(),
        name: name.to_owned(),
        errors: vec![error],
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// Binds the grant to the pod, node or secret that the request names.
async fn bind(request: &Request<'_>, call: &Call, bound: &Value, grant: &mut Grant) -> Result<(), Error> {
    if bound.is_null() {
        return Ok(());
    }
    let registry = &request.core.registry;
    let (kind, name, version) = (text(bound, "kind"), text(bound, "name"), text(bound, "apiVersion"));
    let (resource, namespace): (&'static Resource, &str) = match (version, kind) {
        ("v1", "Pod") => (core("pods"), call.namespace.as_str()),
        ("v1", "Secret") => (core("secrets"), call.namespace.as_str()),
        ("v1", "Node") => (core("nodes"), ""),
        _ => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(Error::BadRequest(why));
        }
    };
    let not_found = || Error::NotFound { resource: resource.qualified(), name: name.to_owned() };
    let object = registry.find(resource, namespace, name).await?.ok_or_else(not_found)?;
    if kind == "Pod" && object["spec"]["serviceAccountName"] != call.name {
        return Err(Error::BadRequest(format!(
            "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
            call.name
        )));
    }
    check_uid(kind, bound, &object)?;
    let reference = Reference { name: name.to_owned(), uid: meta::uid(&object).to_owned() };
    match kind {
        "Pod" => {
            grant.node = node_of(request, &object).await?;
            grant.pod = Some(reference);
        }
        "Secret" => grant.secret = Some(reference),
        _ => grant.node = Some(reference),
    }
    Ok(())
}

fn check_uid(kind: &str, bound: &Value, object: &Value) -> Result<(), Error> {
    let wanted = text(bound, "uid");
    if wanted.is_empty() || wanted == meta::uid(object) {
        return Ok(());
    }
    Err(Error::Conflict {
        resource: kind.to_owned(),
        name: meta::name(object).to_owned(),
        why: format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        ),
    })
}

/// The node that a pod runs on, by name alone where the node itself is not there (any more).
async fn node_of(request: &Request<'_>, pod: &Value) -> Result<Option<Reference>, Error> {
    let name = text(&pod["spec"], "nodeName");
    if name.is_empty() {
        return Ok(None);
    }
    let node = request.core.registry.find(core("nodes"), "", name).await?;
    let uid = node.as_ref().map(meta::uid).unwrap_or_default();
    Ok(Some(Reference { name: name.to_owned(), uid: uid.to_owned() }))
}
