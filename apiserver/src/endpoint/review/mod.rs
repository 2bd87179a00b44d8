//! Kinds that are asked and not kept: token and access reviews, and bindings.

mod access;

use decapod_api::status::Error;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Request, subresource};
use crate::auth::{UserInfo, node};
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
    if let Some(map) = review.as_object_mut() {
        // What a client says about the outcome does not matter.
        map.remove("status");
    }
    review["status"] = match request.resource.kind {
        "TokenReview" => token(request, &review["spec"]).await?,
        "SelfSubjectReview" => json!({"userInfo": user_value(request.user)}),
        "SelfSubjectRulesReview" => rules(request, &review)?,
        _ => access::review(request, &call, &mut review).await?,
    };
    let mut response = reply::json(StatusCode::CREATED, &review);
    reply::warn(&mut response, &call.warnings());
    Ok(response)
}

fn user_value(user: &UserInfo) -> Value {
    serde_json::to_value(user).expect("a user is a plain JSON tree")
}

async fn token(request: &Request<'_>, spec: &Value) -> Result<Value, Error> {
    let audiences = spec["audiences"].as_array().into_iter().flatten();
    let audiences: Vec<String> = audiences.filter_map(|a| a.as_str().map(str::to_owned)).collect();
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Error::BadRequest("token is required for TokenReview in authentication".to_owned()));
    }
    let now = request.core.clock.now();
    Ok(match request.core.authenticator.token(token, &audiences, now).await {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": user_value(&user), "audiences": audiences})
        }
        Err(refusal) => json!({"user": {}, "error": refusal.to_string()}),
    })
}

/// The rules that roles give. A kubelet's rights depend on its pods, and cannot be listed.
fn rules(request: &Request<'_>, review: &Value) -> Result<Value, Error> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Error::BadRequest("no namespace on request".to_owned()));
    }
    let (mut paths, mut resources) = (Vec::new(), Vec::new());
    for rule in request.core.rbac.rules_for(request.user, namespace) {
        // A rule may speak of both.
        if !rule.non_resource_urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
        if !rule.resources.is_empty() {
            resources.push(json!({"verbs": rule.verbs, "apiGroups": rule.api_groups,
                "resources": rule.resources, "resourceNames": rule.resource_names}));
            if rule.resource_names.is_empty()
                && let Some(last) = resources.last_mut().and_then(Value::as_object_mut)
            {
                last.remove("resourceNames");
            }
        }
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    if node::name_of(request.user).is_some() {
        status["incomplete"] = true.into();
        status["evaluationError"] = "node authorizer does not support user rule resolution".into();
    }
    Ok(status)
}
