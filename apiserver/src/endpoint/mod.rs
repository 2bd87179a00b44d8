//! The routes: from a request that passed authentication and authorization to the registry, and
//! back to a response.
//!
//! There is one route per verb and subresource, not per kind. **Invariant**: a verb that a row does
//! not name is refused here, so discovery and routing cannot differ.

mod eviction;
pub(crate) mod finish;
mod object;
mod read;
pub(crate) mod render;
mod review;
mod subresource;
mod token;
mod watch;
mod websocket;

use bytes::Bytes;
use decapod_api::resource::{self, Resource, Storage};
use decapod_api::status::Error;
use decapod_api::warnings;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};

use crate::auth::UserInfo;
use crate::http::accept::{self, Accepted, Offer};
use crate::http::protobuf::encode;
use crate::http::{Body, RequestInfo, body, reply};
use crate::registry::options::WriteOptions;
use crate::registry::patch::Patch;
use crate::registry::{Call, managed};
use crate::server::Core;
use crate::usage;

/// A request on its way to the registry.
pub(crate) struct Request<'a> {
    pub(crate) core: &'a Core,
    pub(crate) info: &'a RequestInfo,
    pub(crate) user: &'a UserInfo,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) resource: &'static Resource,
    /// What the client gets its answer as.
    pub(crate) accepted: Accepted,
}

impl Request<'_> {
    /// The call that the path describes.
    pub(crate) fn call(&self) -> Result<Call, Error> {
        let a = &self.info.attributes;
        // The name that a field selector gives is for authorization only.
        let name = if matches!(a.verb.as_str(), "list" | "watch" | "deletecollection") && !self.named() {
            ""
        } else {
            &a.name
        };
        let mut call = Call::new(self.user.clone(), self.resource, &a.namespace, name);
        call.subresource.clone_from(&a.subresource);
        let verb = if Patch::is_apply_type(self.content_type()) { "apply" } else { a.verb.as_str() };
        call.options = WriteOptions::parse(&self.info.query, if a.verb == "patch" { verb } else { &a.verb })?;
        call.manager = match self.info.query.get("fieldManager") {
            Some(manager) => manager.to_owned(),
            None => {
                let agent = self.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok());
                managed::manager_of(agent.unwrap_or_default(), &self.user.username)
            }
        };
        Ok(call)
    }

    /// The call with its body, in whose order errors are told.
    pub(crate) fn call_with(&self, bytes: &[u8]) -> Result<Call, Error> {
        let mut call = self.call()?;
        let media = self.content_type().split(';').next().unwrap_or_default().trim();
        if matches!(media, "" | "application/json") {
            call.body = Bytes::copy_from_slice(bytes);
        }
        Ok(call)
    }

    /// The patch in the body, with the fields that are there twice.
    pub(crate) fn patch(&self, bytes: &[u8]) -> Result<(Patch, Vec<String>), Error> {
        Patch::parse(self.content_type(), bytes, self.info.query.flag("force"))
    }

    /// Whether the path itself names an object.
    fn named(&self) -> bool {
        let last = self.info.attributes.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        crate::http::query::percent_decode(last) != self.resource.plural
    }

    pub(crate) fn content_type(&self) -> &str {
        self.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    fn unsupported(&self) -> Error {
        let a = &self.info.attributes;
        Error::MethodNotSupported { resource: self.resource.qualified(), verb: a.verb.clone() }
    }
}

/// Answers a request for a resource.
pub(crate) async fn resource(
    core: &Core,
    info: &RequestInfo,
    user: &UserInfo,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let a = &info.attributes;
    if a.group == usage::GROUP {
        return usage::answer(core, info, user, request.headers()).await;
    }
    let row = resource::find(&a.group, &a.version, &a.resource).ok_or(Error::UnknownPath)?;
    let (mut parts, incoming) = request.into_parts();
    let socket = if a.verb == "watch" { websocket::asked(&mut parts).await? } else { None };
    let headers = std::mem::take(&mut parts.headers);
    let connection = subresource::is_connection(&a.subresource);
    // What a connection is answered as is between its ends.
    let accepted = if connection { Accepted::default() } else { negotiated(info, &headers, row)? };
    let request = Request { core, info, user, headers: &headers, resource: row, accepted };
    check_route(&request)?;
    if connection {
        return crate::nodeproxy::connect(&request, http::Request::from_parts(parts, incoming), &headers)
            .await;
    }
    let body = match a.verb.as_str() {
        "get" | "list" | "watch" => Bytes::new(),
        _ => body::read(incoming, core.limits.body).await.map_err(unreadable)?,
    };
    crate::audit::request(&headers, &body);
    let response = match (row.storage, a.subresource.as_str()) {
        (Storage::Virtual, "") => review::answer(&request, &body).await,
        (_, "") => object::answer(&request, &body).await,
        _ => subresource::answer(&request, &body).await,
    }?;
    let mut response = finish::answer(&headers, accepted, response).await?;
    if let Some(warning) = warnings::of_kind(row) {
        reply::warn(&mut response, &[warning.to_owned()]);
    }
    Ok(match socket {
        Some(socket) => websocket::carry(socket, response),
        None => response,
    })
}

/// What the client is answered as; refused before anything is done if it takes nothing that there is.
fn negotiated(info: &RequestInfo, headers: &HeaderMap, row: &Resource) -> Result<Accepted, Error> {
    let a = &info.attributes;
    let sub = row.subresource(&a.subresource).and_then(|sub| sub.kind);
    let kind = sub.unwrap_or(row.gvk());
    let version = resource::api_version(kind.group, kind.version);
    let offer = Offer {
        protobuf: encode::encodes(&version, kind.kind),
        transforms: row.storage != Storage::Virtual && sub.is_none(),
        stream: a.verb == "watch",
    };
    accept::negotiate(headers, &info.query, offer)
}

fn unreadable(error: body::ReadError) -> Error {
    match error {
        body::ReadError::TooLarge(limit) => Error::TooLarge { limit },
        body::ReadError::Broken(why) => Error::BadRequest(format!("cannot read the body: {why}")),
    }
}

/// Whether the row serves the verb here.
fn check_route(request: &Request<'_>) -> Result<(), Error> {
    let (a, row) = (&request.info.attributes, request.resource);
    let verb = a.verb.as_str();
    if !a.subresource.is_empty() {
        let sub = row.subresource(&a.subresource).ok_or(Error::UnknownPath)?;
        // A proxy carries methods that have no verb (OPTIONS).
        return if a.subresource == "proxy" || sub.verbs.contains(&verb) {
            Ok(())
        } else {
            Err(request.unsupported())
        };
    }
    if !row.verbs.contains(&verb) {
        return Err(request.unsupported());
    }
    if !row.namespaced() && !a.namespace.is_empty() && row.plural != "namespaces" {
        return Err(Error::UnknownPath);
    }
    let across = matches!(verb, "list" | "watch");
    if row.namespaced() && a.namespace.is_empty() && !across {
        return Err(request.unsupported());
    }
    let named = !a.name.is_empty();
    if verb == "create" && named {
        return Err(request.unsupported());
    }
    Ok(())
}
