//! As much of SPDY/3.1 as Kubernetes' streams need: what `kubectl port-forward` speaks inside a WebSocket (KEP-4006),
//! and what older clients upgrade to for exec, attach and port forwarding.
//!
//! **Invariant**: what a connection holds is bounded: control frames and header blocks by size, data by the chunk in
//! which it is handed on. There is no flow control per stream, as Kubernetes' own peers have none: TCP's is for all
//! streams of a connection together.

pub(crate) mod channels;
mod frame;
mod headers;
mod reader;

use axum::http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use axum::http::{Response, StatusCode};
use bytes::Bytes;

pub(crate) use frame::{data, go_away, open, refuse};
pub(crate) use headers::{Deflater, Headers};
pub(crate) use reader::{Event, Reader};

use super::Refusal;

/// The upgrade's name.
pub(crate) const NAME: &str = "SPDY/3.1";
/// In which client and server agree on what the streams are.
pub(crate) const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What a server would have taken.
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// The first of the client's protocols that is `supported`.
pub(crate) fn negotiate(headers: &HeaderMap, supported: &[&'static str]) -> Result<&'static str, Refusal> {
    let values = headers.get_all(PROTOCOL).into_iter().filter_map(|v| v.to_str().ok());
    let offered: Vec<&str> =
        values.flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty()).collect();
    if offered.is_empty() {
        let message = "unable to upgrade: header X-Stream-Protocol-Version does not exist in request";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let found = offered.iter().find_map(|o| supported.iter().find(|s| *s == o));
    found.copied().ok_or_else(|| {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            offered.join(" "),
            supported.join(" ")
        );
        let accepted = HeaderValue::from_str(&supported.join(",")).ok();
        let refusal = Refusal::new(StatusCode::FORBIDDEN, message);
        accepted.into_iter().fold(refusal, |refusal, value| refusal.with_header(ACCEPTED, value))
    })
}

/// The answer after which a connection speaks SPDY.
pub(crate) fn switching<B: Default>(protocol: &'static str) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(NAME));
    headers.insert(PROTOCOL, HeaderValue::from_static(protocol));
    response
}

/// The number of a stream.
pub(crate) type StreamId = u32;

/// What one direction of a connection consists of.
pub(crate) type Frame = Bytes;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_protocol_that_both_know_is_taken() {
        let mut headers = HeaderMap::new();
        assert!(negotiate(&headers, &["v4.channel.k8s.io"]).is_err());
        headers.append(PROTOCOL, HeaderValue::from_static("v5.channel.k8s.io, v4.channel.k8s.io"));
        headers.append(PROTOCOL, HeaderValue::from_static("v3.channel.k8s.io"));
        let supported = ["v3.channel.k8s.io", "v4.channel.k8s.io"];
        assert_eq!(negotiate(&headers, &supported).unwrap(), "v4.channel.k8s.io");
        let refused = negotiate(&headers, &["portforward.k8s.io"]).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
    }
}
