//! A watch over a WebSocket, for clients that cannot read an answer as it comes: browsers, above all.
//!
//! **Invariant**: a message is one event, as the plain watch would frame it; what ends the watch closes the socket.

use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use bytes::{Buf, Bytes};
use decapod_api::status::Error;
use futures::{SinkExt, StreamExt};
use http::header::{CONTENT_TYPE, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;

use crate::auth::WEBSOCKET_BEARER;
use crate::http::Body;
use crate::http::body::{self, BoxError};

/// The largest message of a client: nobody has anything to say to a watch, but that it ends.
const MESSAGE_MAX: usize = 4 * 1024;
/// The subprotocols that Kubernetes has names for where only the server speaks; a watch is the same by each.
const PROTOCOLS: [&str; 2] = ["binary.k8s.io", "base64.binary.k8s.io"];

/// The socket that a request wants to become.
pub(super) async fn asked(parts: &mut Parts) -> Result<Option<WebSocketUpgrade>, Error> {
    let wanted = parts.headers.get(UPGRADE);
    if !wanted.is_some_and(|wanted| wanted.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return Ok(None);
    }
    let upgrade = WebSocketUpgrade::from_request_parts(parts, &()).await;
    let upgrade = upgrade.map_err(|error| Error::BadRequest(format!("unable to upgrade: {error}")))?;
    let upgrade = upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX);
    Ok(Some(upgrade.protocols(protocol(&parts.headers)?)))
}

/// The subprotocol to speak: one of ours, or whichever is the only one offered; none where none is.
fn protocol(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let offered = offered.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let offered: Vec<&str> = offered.map(str::trim).filter(|p| !p.starts_with(WEBSOCKET_BEARER)).collect();
    let known = offered.iter().find(|protocol| PROTOCOLS.contains(protocol));
    match (known, &offered[..]) {
        (Some(one), _) | (None, [one]) => Ok(Some((*one).to_owned())),
        (None, []) => Ok(None),
        (None, offered) => {
            let message =
                format!("requested protocol(s) are not supported: {offered:?}; supports {PROTOCOLS:?}");
            Err(Error::BadRequest(message))
        }
    }
}

/// Sends a watch's answer by the socket; refusals are answered as ever.
pub(super) fn carry(upgrade: WebSocketUpgrade, response: Response<Body>) -> Response<Body> {
    if response.status() != StatusCode::OK {
        return response;
    }
    let kind = response.headers().get(CONTENT_TYPE);
    let binary = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/vnd.kubernetes.protobuf"));
    let frames = response.into_body();
    let switched = upgrade.on_upgrade(move |socket| async move {
        if let Err(error) = send(socket, frames, binary).await {
            tracing::debug!(error, "a watch over a WebSocket ended");
        }
    });
    switched.map(body::erase)
}

async fn send(socket: WebSocket, frames: Body, binary: bool) -> Result<(), BoxError> {
    let (mut to, mut from) = socket.split();
    let mut frames = frames.into_data_stream();
    loop {
        tokio::select! {
            said = from.next() => match said {
                None | Some(Ok(Message::Close(_))) => break,
                said => drop(said.transpose()?),
            },
            chunk = frames.next() => {
                let Some(chunk) = chunk else { break };
                for message in messages(chunk?, binary)? {
                    to.feed(message).await?;
                }
                to.flush().await?;
            }
        }
    }
    Ok(to.close().await?)
}

/// The events in a chunk of a watch, which is whole frames: lines, or protobuf behind its length in four bytes.
fn messages(mut chunk: Bytes, binary: bool) -> Result<Vec<Message>, BoxError> {
    let mut messages = Vec::new();
    while !chunk.is_empty() {
        if binary {
            let length = chunk.try_get_u32()? as usize;
            if length > chunk.len() {
                return Err("a frame of a watch is cut off".into());
            }
            messages.push(Message::Binary(chunk.split_to(length)));
        } else {
            let end = chunk.iter().position(|byte| *byte == b'\n').map_or(chunk.len(), |end| end + 1);
            messages.push(Message::Text(Utf8Bytes::try_from(chunk.split_to(end))?));
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_message_is_an_event() {
        let texts = messages(Bytes::from_static(b"{\"a\":1}\n{\"b\":2}\n"), false).unwrap();
        assert_eq!(texts, [Message::Text("{\"a\":1}\n".into()), Message::Text("{\"b\":2}\n".into())]);
        let binary = messages(Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c"), true).unwrap();
        assert_eq!(binary, [Message::Binary("ab".into()), Message::Binary("c".into())]);
        assert!(messages(Bytes::from_static(b"\0\0\0\x02a"), true).is_err());
    }

    #[test]
    fn the_token_is_no_protocol() {
        let of = |text: &'static str| {
            let headers = [(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(text))].into_iter().collect();
            protocol(&headers).ok()
        };
        assert_eq!(of("base64url.bearer.authorization.k8s.io.YQ"), Some(None));
        assert_eq!(of("x, base64url.bearer.authorization.k8s.io.YQ"), Some(Some("x".to_owned())));
        assert_eq!(of("x, base64.binary.k8s.io, y"), Some(Some("base64.binary.k8s.io".to_owned())));
        assert_eq!(of("x, y"), None);
        assert_eq!(protocol(&HeaderMap::new()).ok(), Some(None));
    }
}
