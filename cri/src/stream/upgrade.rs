//! What a connection becomes: a WebSocket, SPDY, or SPDY inside a WebSocket.

use std::io;
use std::pin::Pin;

use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::header::{HeaderMap, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{StatusCode, request::Parts};
use bytes::Bytes;
use futures::{Sink, SinkExt, StreamExt, future};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncRead;
use tokio_util::codec::{BytesCodec, FramedWrite};
use tokio_util::io::StreamReader;

use super::{Refusal, channel, spdy};

/// The largest message of a client: clients write what they are given at once, and Kubernetes takes this much.
const MESSAGE_MAX: usize = 32 << 20;

/// The upgrade that a client asks for.
pub enum Upgrade {
    /// To messages.
    WebSocket(Box<WebSocketUpgrade>),
    /// To SPDY/3.1; the headers say which protocols of Kubernetes the client knows.
    Spdy(OnUpgrade, HeaderMap),
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
        let wanted = parts.headers.get(UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if wanted.eq_ignore_ascii_case("websocket") {
            let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await;
            let upgrade = upgrade.map_err(|error| bad(format!("unable to upgrade: {error}")))?;
            let upgrade = upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX);
            return Ok(Self::WebSocket(Box::new(upgrade)));
        }
        if !wanted.eq_ignore_ascii_case(spdy::NAME) {
            let message = "unable to upgrade: missing upgrade headers in request: want WebSocket or SPDY/3.1";
            return Err(bad(message.to_owned()));
        }
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let upgrade =
            upgrade.ok_or_else(|| bad("unable to upgrade: the connection is not its own".into()))?;
        Ok(Self::Spdy(upgrade, parts.headers.clone()))
    }
}

/// Settles on a subprotocol; a client that names none gets none.
///
/// # Errors
/// When the client knows none of those that are `supported`.
pub fn agree(
    upgrade: WebSocketUpgrade,
    offered: &HeaderMap,
    supported: &[&'static str],
) -> Result<WebSocketUpgrade, Refusal> {
    let upgrade = upgrade.protocols(supported.iter().copied());
    if upgrade.selected_protocol().is_none()
        && let Some(offered) = offered.get(SEC_WEBSOCKET_PROTOCOL)
    {
        let message = format!("requested protocol(s) are not supported: {offered:?}; supports {supported:?}");
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    }
    Ok(upgrade)
}

/// The subprotocol that was settled on.
pub fn protocol(socket: &WebSocket) -> &str {
    socket.protocol().and_then(|p| p.to_str().ok()).unwrap_or_default()
}

/// Takes what is sent.
pub(crate) type Writer = Pin<Box<dyn Sink<Bytes, Error = io::Error> + Send>>;

/// A connection that carries bytes.
pub(crate) struct Bytestream {
    pub(crate) reader: Pin<Box<dyn AsyncRead + Send>>,
    pub(crate) writer: Writer,
}

impl Bytestream {
    /// The connection itself.
    pub(crate) async fn plain(upgrade: OnUpgrade) -> Result<Self, hyper::Error> {
        let (reader, writer) = tokio::io::split(TokioIo::new(upgrade.await?));
        let writer = FramedWrite::new(writer, BytesCodec::new());
        Ok(Self { reader: Box::pin(reader), writer: Box::pin(writer) })
    }

    /// The contents of a WebSocket's messages, one after the other.
    pub(crate) fn tunnel(socket: WebSocket) -> Self {
        let (sink, messages) = socket.split();
        let messages = messages.take_while(|m| future::ready(!matches!(m, Ok(Message::Close(_)))));
        let bytes = messages.filter_map(|message| {
            future::ready(match message {
                Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
                Ok(_) => None,
                Err(error) => Some(Err(io::Error::other(error))),
            })
        });
        let sink = sink.sink_map_err(io::Error::other);
        let sink = channel::Farewell::new(sink).with(|bytes| future::ready(Ok(Message::Binary(bytes))));
        Self { reader: Box::pin(StreamReader::new(bytes)), writer: Box::pin(sink) }
    }
}
