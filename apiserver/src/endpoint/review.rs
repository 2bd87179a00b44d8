//! Kinds that are asked and not kept: token and access reviews, and bindings.

use decapod_api::status::Error;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Request, subresource};
use crate::auth::rbac::PolicyRule;
use crate::auth::{Attributes, UserInfo};
use crate::http::{Body, reply};
use crate::registry::body;

pub(super) async fn answer(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    if request.resource.kind == "Binding" {
        return subresource::bind(request, "", bytes).await;
    }
    let call = request.call()?;
    let parsed = body::parse(request.content_type(), bytes)?;
    let mut review = parsed.value;
    body::check_kind(request.resource, &mut review)?;
    let mut review = body::normalize(&call, review, &parsed.duplicates)?;
    review["status"] = match request.resource.kind {
        "TokenReview" => token(request, &review).await,
        "SelfSubjectReview" => json!({"userInfo": user_value(request.user)}),
        "SelfSubjectRulesReview" => rules(request, &review)?,
        "SelfSubjectAccessReview" => access(request, request.user, &review["spec"]).await?,
        _ => {
            let spec = &review["spec"];
            let namespace = &spec["resourceAttributes"]["namespace"];
            if request.resource.namespaced() && *namespace != call.namespace {
                return Err(Error::BadRequest(
                    "spec.resourceAttributes.namespace must match metadata.namespace".to_owned(),
                ));
            }
            access(request, &subject(spec)?, spec).await?
        }
    };
    let mut response = reply::json(StatusCode::CREATED, &review);
    reply::warn(&mut response, &call.warnings());
    Ok(response)
}

fn user_value(user: &UserInfo) -> Value {
    serde_json::to_value(user).expect("a user is a plain JSON tree")
}

async fn token(request: &Request<'_>, review: &Value) -> Value {
    let spec = &review["spec"];
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let token = spec["token"].as_str().unwrap_or_default();
    let now = request.core.clock.now();
    match request.core.authenticator.token(token, &audiences, now).await {
        Some((user, audiences)) => {
            json!({"authenticated": true, "user": user_value(&user), "audiences": audiences})
        }
        None => json!({"user": {}, "error": "the token is not valid"}),
    }
}

fn subject(spec: &Value) -> Result<UserInfo, Error> {
    let mut user: UserInfo = serde_json::from_value(json!({
        "username": spec["user"].as_str().unwrap_or_default(),
        "uid": spec["uid"].as_str().unwrap_or_default(),
    }))
    .map_err(|e| Error::BadRequest(e.to_string()))?;
    let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
    user.groups = groups.map(str::to_owned).collect();
    if user.username.is_empty() && user.groups.is_empty() {
        return Err(Error::BadRequest("spec: at least one of user or group must be specified".to_owned()));
    }
    Ok(user)
}

async fn access(request: &Request<'_>, user: &UserInfo, spec: &Value) -> Result<Value, Error> {
    let attributes = attributes(spec)?;
    let decision = request.core.authorizer.authorize(user, &attributes).await;
    let mut status = json!({"allowed": decision.allowed()});
    if !decision.reason().is_empty() {
        status["reason"] = decision.reason().into();
    }
    Ok(status)
}

fn attributes(spec: &Value) -> Result<Attributes, Error> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    match (resource.is_object(), path.is_object()) {
        (true, false) => Ok(Attributes {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
        }),
        (false, true) => {
            Ok(Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() })
        }
        _ => Err(Error::BadRequest(
            "spec: exactly one of nonResourceAttributes or resourceAttributes must be specified".to_owned(),
        )),
    }
}

fn rules(request: &Request<'_>, review: &Value) -> Result<Value, Error> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Error::BadRequest("no namespace on request".to_owned()));
    }
    let mut rules = request.core.rbac.rules_for(request.user, namespace);
    if request.user.in_group(crate::pki::MASTERS) {
        let all = || vec!["*".to_owned()];
        rules.push(PolicyRule { api_groups: all(), resources: all(), verbs: all(), ..PolicyRule::default() });
        rules.push(PolicyRule { non_resource_urls: all(), verbs: all(), ..PolicyRule::default() });
    }
    let (paths, resources): (Vec<_>, Vec<_>) =
        rules.into_iter().partition(|r| !r.non_resource_urls.is_empty());
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}
