//! The verbs on objects themselves.

use decapod_api::meta;
use decapod_api::status::Error;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::render::{self, Wanted};
use super::{Request, read, watch};
use crate::auth::{Attributes, Decision, forbidden_message};
use crate::http::{Body, reply};
use crate::registry::delete::Deleted;
use crate::registry::list::filter;
use crate::registry::options::{DeleteOptions, ListOptions};
use crate::registry::update::Part;
use crate::registry::{Call, body, strategy};

pub(super) async fn answer(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    match request.info.attributes.verb.as_str() {
        "get" => read::get(request).await,
        "list" => read::list(request).await,
        "watch" => watch::answer(request).await,
        "create" => create(request, bytes).await,
        "update" => update(request, Part::Main, bytes).await,
        "patch" => patch(request, Part::Main, bytes).await,
        "delete" => delete(request, bytes).await,
        "deletecollection" => delete_collection(request, bytes).await,
        _ => Err(request.unsupported()),
    }
}

fn decode(request: &Request<'_>, bytes: &[u8]) -> Result<body::Parsed, Error> {
    body::parse(request.content_type(), bytes)
}

async fn create(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call_with(bytes)?;
    let parsed = decode(request, bytes)?;
    let object = request.core.registry.create(&call, parsed.value, &parsed.duplicates).await?;
    render::written(request, StatusCode::CREATED, &object, &call.warnings())
}

pub(super) async fn update(request: &Request<'_>, part: Part, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call_with(bytes)?;
    let parsed = decode(request, bytes)?;
    let updated = request.core.registry.replace(&call, part, parsed.value, &parsed.duplicates).await?;
    let status = if updated.created { StatusCode::CREATED } else { StatusCode::OK };
    render::written(request, status, &updated.object, &call.warnings())
}

pub(super) async fn patch(request: &Request<'_>, part: Part, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let (patch, duplicates) = request.patch(bytes)?;
    let registry = &request.core.registry;
    let mut result = registry.patch(&call, part, &patch, &duplicates).await;
    let mut status = StatusCode::OK;
    let absent = |result: &Result<Value, Error>| matches!(result, Err(Error::NotFound { .. }));
    if patch.is_apply() && part == Part::Main && absent(&result) {
        may_create(request).await?;
        status = StatusCode::CREATED;
        result = registry.apply_new(&call, &patch, &duplicates).await;
        if matches!(result, Err(Error::AlreadyExists { .. })) {
            // Another client was faster: what it made is applied to.
            status = StatusCode::OK;
            result = registry.patch(&call, part, &patch, &duplicates).await;
        }
    }
    render::written(request, status, &result?, &call.warnings())
}

/// Applying to what is not there creates it, which takes the right to do that.
async fn may_create(request: &Request<'_>) -> Result<(), Error> {
    let attributes = Attributes { verb: "create".to_owned(), ..request.info.attributes.clone() };
    match request.core.authorizer.authorize(request.user, &attributes).await {
        Decision::NoOpinion(reason) => Err(Error::Forbidden {
            resource: request.resource.qualified(),
            name: attributes.name.clone(),
            why: forbidden_message(request.user, &attributes, &reason),
        }),
        _ => Ok(()),
    }
}

async fn delete(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let options = DeleteOptions::parse(request.content_type(), bytes, &request.info.query)?;
    let deleted = request.core.registry.delete(&call, &options).await?;
    respond(request, &call, deleted)
}

/// The answer to a deletion: the object while it is there (and for some kinds also after), else a
/// `Status`.
pub(super) fn respond(request: &Request<'_>, call: &Call, deleted: Deleted) -> Result<Response<Body>, Error> {
    match deleted {
        Deleted::Begun(object) => render::written(request, StatusCode::OK, &object, &call.warnings()),
        Deleted::Gone(object) if strategy::of(call.resource).returns_deleted() => {
            render::written(request, StatusCode::OK, &object, &call.warnings())
        }
        Deleted::Gone(object) => Ok(reply::json(StatusCode::OK, &success(call, &object))),
    }
}

fn success(call: &Call, object: &Value) -> Value {
    let mut details =
        json!({"name": meta::name(object), "kind": call.resource.plural, "uid": meta::uid(object)});
    if !call.resource.group.is_empty() {
        details["group"] = call.resource.group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

async fn delete_collection(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let options = DeleteOptions::parse(request.content_type(), bytes, &request.info.query)?;
    let wanted = Wanted::of(request)?;
    let selected = filter(&call, &ListOptions::parse(&request.info.query)?)?;
    let deleted = request.core.registry.delete_collection(&call, &selected, &options).await?;
    let items: Vec<_> = deleted.iter().map(|object| wanted.object(request.resource, object)).collect();
    let list = json!({"kind": request.resource.list_kind(), "apiVersion": request.resource.api_version(),
        "metadata": {}, "items": items});
    Ok(reply::json(StatusCode::OK, &list))
}
