//! Responses: objects, `Status` errors, and compression of large bodies.

use bytes::Bytes;
use decapod_api::status;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::Value;

use super::Body;
use super::body;

/// Smaller bodies are sent as they are: Kubernetes' threshold.
const COMPRESS_FROM: usize = 128 * 1024;

/// A JSON response.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    bytes(status, value.to_string())
}

/// A response of JSON that is written already.
pub(crate) fn bytes(status: StatusCode, json: impl Into<Bytes>) -> Response<Body> {
    with_type(status, "application/json", json)
}

/// Plain text.
pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", text)
}

/// A response of some type.
pub(crate) fn with_type(status: StatusCode, content_type: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = status;
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

/// The `Status` of an error.
pub(crate) fn error(error: &status::Error) -> Response<Body> {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &error.to_status());
    let headers = response.headers_mut();
    match error {
        status::Error::TooManyRequests { retry_after_seconds, .. }
        | status::Error::DisruptionBudget { retry_after_seconds, .. }
            if *retry_after_seconds > 0 =>
        {
            headers.insert(RETRY_AFTER, HeaderValue::from(*retry_after_seconds));
        }
        status::Error::ResourceVersionTooLarge { .. } | status::Error::Unavailable(_) => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        status::Error::Unauthorized => {
            headers.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        _ => {}
    }
    response
}

/// Adds a `Warning` header for each warning, as kubectl prints them.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
}

/// Whether the client takes gzip and the body is worth it.
pub(crate) fn compress(request: &HeaderMap, mut bytes: Bytes, response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    let accepts = request.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    let gzip = accepts.flat_map(|v| v.split(',')).any(|v| v.trim().starts_with("gzip"));
    if gzip
        && bytes.len() >= COMPRESS_FROM
        && let Some(packed) = packed(&bytes)
    {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        bytes = packed;
    }
    *response.body_mut() = body::full(bytes);
}

fn packed(bytes: &[u8]) -> Option<Bytes> {
    use std::io::Write;
    // Level 1, as Kubernetes: the fastest.
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().map(Bytes::from)
}
