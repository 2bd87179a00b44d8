//! Get and list.

use bytes::Bytes;
use decapod_api::status::Error;
use http::{Response, StatusCode};

use super::Request;
use super::render::Wanted;
use crate::http::accept::Encoding;
use crate::http::{Body, reply};
use crate::registry::object;
use crate::registry::options::ListOptions;

pub(super) async fn get(request: &Request<'_>) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let wanted = Wanted::of(request)?;
    let key = object::key(call.resource, &call.namespace, &call.name).ok_or(Error::UnknownPath)?;
    let object =
        request.core.registry.reads.get(call.resource, &key).await?.ok_or_else(|| call.not_found())?;
    Ok(reply::bytes(StatusCode::OK, wanted.event(request.resource, &object, true)?))
}

pub(super) async fn list(request: &Request<'_>) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let wanted = Wanted::of(request)?;
    let options = ListOptions::parse(&request.info.query)?;
    let list = request.core.registry.list(&call, &options).await?;
    if wanted.packs() {
        let mut response = reply::with_type(StatusCode::OK, Encoding::Protobuf.media(), Bytes::new());
        reply::compress(request.headers, wanted.packed(request.resource, &list)?, &mut response);
        return Ok(response);
    }
    Ok(reply::bytes(StatusCode::OK, wanted.list(request.resource, &list)?))
}
