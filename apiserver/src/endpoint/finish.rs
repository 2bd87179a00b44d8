//! The last step of every answer about a resource: the JSON that was made of it, in the encoding that the
//! client wants, packed if it is large.

use bytes::Bytes;
use decapod_api::status::Error;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Response};
use http_body_util::BodyExt;
use serde_json::Value;

use crate::http::accept::{Accepted, Encoding};
use crate::http::protobuf::encode;
use crate::http::{Body, body, reply};

/// Finishes an answer that is JSON as a whole; others are as they are.
pub(crate) async fn answer(
    request: &HeaderMap,
    accepted: Accepted,
    response: Response<Body>,
) -> Result<Response<Body>, Error> {
    let (mut parts, answered) = response.into_parts();
    let whole = http_body::Body::size_hint(&answered).exact().is_some();
    let json = parts.headers.get(CONTENT_TYPE).is_some_and(|v| v == Encoding::Json.media());
    if !whole || !json || parts.headers.contains_key(CONTENT_ENCODING) {
        return Ok(Response::from_parts(parts, answered));
    }
    let broken = |_| Error::Internal("the answer could not be put together".to_owned());
    let bytes = answered.collect().await.map_err(broken)?.to_bytes();
    let (bytes, encoding) = encoded(accepted, bytes)?;
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(encoding.media()));
    let mut response = Response::from_parts(parts, body::empty());
    reply::compress(request, bytes, &mut response);
    Ok(response)
}

fn encoded(accepted: Accepted, json: Bytes) -> Result<(Bytes, Encoding), Error> {
    if accepted.encoding == Encoding::Json && !accepted.pretty {
        return Ok((json, Encoding::Json));
    }
    let internal = |e: &dyn std::fmt::Display| Error::Internal(format!("the answer cannot be encoded: {e}"));
    let object: Value = serde_json::from_slice(&json).map_err(|e| internal(&e))?;
    Ok(match accepted.encoding {
        Encoding::Json => {
            let mut text = serde_json::to_string_pretty(&object).map_err(|e| internal(&e))?;
            text.push('\n');
            (text.into(), Encoding::Json)
        }
        Encoding::Yaml => {
            (serde_saphyr::to_string(&object).map_err(|e| internal(&e))?.into(), Encoding::Yaml)
        }
        Encoding::Protobuf => match encode::encode(&object) {
            Ok(bytes) => (bytes.into(), Encoding::Protobuf),
            // Some answers have no other form: clients go by what they are told that it is.
            Err(encode::Error::Unknown(_)) => (json, Encoding::Json),
            Err(error) => return Err(internal(&error)),
        },
    })
}
