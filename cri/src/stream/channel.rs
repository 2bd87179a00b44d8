//! Kubernetes' channels over one connection: the first byte of each message says which stream it belongs to.
//!
//! What carries them is a WebSocket, in binary or, for clients that can only read text, in base64, or the streams of
//! a SPDY connection ([`super::spdy::channels`]).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use decapod_client::clock::{self, Clock};
use decapod_runtime::TerminalSize;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Sink, SinkExt, StreamExt, future};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::upgrade;

/// The newest protocol: as v4, and a stream can be closed alone.
pub(crate) const V5: &str = "v5.channel.k8s.io";
/// Exit status as `metav1.Status` on the error channel.
pub(crate) const V4: &str = "v4.channel.k8s.io";
/// As v4, in text.
pub(crate) const V4_BASE64: &str = "v4.base64.channel.k8s.io";
/// The first protocol: errors as plain text.
pub(crate) const V1: &str = "channel.k8s.io";
/// As v1, in text.
pub(crate) const V1_BASE64: &str = "base64.channel.k8s.io";

pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const RESIZE: u8 = 4;
/// v5: the byte that follows names the channel that ends.
pub(crate) const CLOSE: u8 = 255;

/// How much of a stream goes into one message.
const CHUNK: usize = 32 * 1024;

/// A client that has said nothing for so long after the end of its stream has nothing on its way: it can be closed
/// without taking from the client what it has not read yet.
pub(crate) const QUIET: Duration = Duration::from_millis(300);
/// How long a client may go on talking after the end of its stream.
const LINGER: Duration = Duration::from_secs(5);

/// Messages that wait for a slow client.
pub(crate) const AHEAD: usize = 8;

/// A connection on which nothing moves is looked at this often, and ended when nothing moved since: after Kubernetes'
/// four hours at most.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// What a client sends, as channel and data, until it is gone.
pub(crate) type Source = BoxStream<'static, (u8, Bytes)>;

/// Both directions of a client's connection.
pub(crate) struct Channels {
    /// What the client sends, once it has opened what it needs; `None` if it never does.
    pub(crate) source: BoxFuture<'static, Option<Source>>,
    /// Takes messages for the client; the last one gone is the end of the connection.
    pub(crate) out: mpsc::Sender<Bytes>,
    /// Carries these messages; must run beside everything else, and ends after the last.
    pub(crate) sending: BoxFuture<'static, ()>,
    /// Whether anything moves.
    pub(crate) idle: Idle,
}

impl Channels {
    /// Over a WebSocket, by the protocol that was settled on.
    pub(crate) fn over(socket: WebSocket) -> Self {
        let text = matches!(upgrade::protocol(&socket), V4_BASE64 | V1_BASE64);
        let idle = Idle::default();
        let (sink, stream) = socket.split();
        let (out, mut messages) = mpsc::channel::<Bytes>(AHEAD);
        let moved = idle.clone();
        let source = stream.take_while(|m| future::ready(!matches!(m, Ok(Message::Close(_)) | Err(_))));
        let source = source.filter_map(move |message| {
            moved.touch();
            future::ready(message.ok().and_then(|message| read(message, text)))
        });
        let moved = idle.clone();
        let sending = async move {
            let mut sink = Farewell::new(sink);
            while let Some(bytes) = messages.recv().await {
                moved.touch();
                let message = if text { encode(&bytes) } else { Message::Binary(bytes) };
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            // A client that went away needs no farewell.
            let _gone = sink.close().await;
        };
        Self { source: future::ready(Some(source.boxed())).boxed(), out, sending: sending.boxed(), idle }
    }
}

/// A message of a client: a byte and data, or by the protocols in `text` a digit and base64. What kind of message it is
/// says nothing: the Python client sends what it has as text, whatever the protocol.
fn read(message: Message, text: bool) -> Option<(u8, Bytes)> {
    let mut bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Text(text) => text.into(),
        _ => return None,
    };
    let data = bytes.split_off(bytes.len().min(1));
    let channel = *bytes.first()?;
    match text {
        false => Some((channel, data)),
        true => Some((channel.checked_sub(b'0')?, BASE64_STANDARD.decode(data).ok()?.into())),
    }
}

/// A message in text.
fn encode(bytes: &Bytes) -> Message {
    let (channel, data) = bytes.split_first().map_or((0, &[][..]), |(channel, data)| (*channel, data));
    let mut text = channel.to_string();
    BASE64_STANDARD.encode_string(data, &mut text);
    Message::Text(text.into())
}

/// Closes a WebSocket as clients expect it: with the code of a normal end.
pub struct Farewell<S> {
    sink: S,
    said: bool,
}

impl<S> Farewell<S> {
    /// Around the sink of a WebSocket.
    pub fn new(sink: S) -> Self {
        Self { sink, said: false }
    }
}

impl<S: Sink<Message> + Unpin> Sink<Message> for Farewell<S> {
    type Error = S::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.sink.poll_ready_unpin(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), S::Error> {
        self.sink.start_send_unpin(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.sink.poll_flush_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if !self.said {
            std::task::ready!(self.sink.poll_ready_unpin(cx))?;
            let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
            self.sink.start_send_unpin(Message::Close(Some(frame)))?;
            self.said = true;
        }
        self.sink.poll_flush_unpin(cx)
    }
}

/// Says whether a connection is still used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Idle(Arc<AtomicBool>);

impl Idle {
    /// Something moved.
    pub(crate) fn touch(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether something moved since this was asked last.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    /// Ends once nothing has moved for a long time.
    pub(crate) async fn expired(&self, clock: &dyn Clock) {
        loop {
            clock.sleep(IDLE).await;
            if !self.take() {
                return;
            }
        }
    }
}

/// Hears a client out whose stream has come to its end: closing a connection on which it still sends would take the
/// last messages from it.
pub(crate) async fn linger(source: &mut Source, clock: &dyn Clock) {
    let talking = async { while let Some(Some(_)) = clock::timeout(clock, QUIET, source.next()).await {} };
    // Whoever talks longer is cut off.
    let _late = clock::timeout(clock, LINGER, talking).await;
}

/// One message on a channel.
pub(crate) fn message(channel: u8, data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(data);
    bytes.freeze()
}

/// Sends everything that `source` gives on a channel, until its end or until nobody listens.
pub(crate) async fn pump(
    mut source: impl AsyncRead + Unpin,
    channel: u8,
    out: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK + 1);
        buffer.put_u8(channel);
        if source.read_buf(&mut buffer).await? == 0 || out.send(buffer.split().freeze()).await.is_err() {
            return Ok(());
        }
    }
}

/// The size that a resize message asks for.
pub(crate) fn size(data: &[u8]) -> Option<TerminalSize> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let size: Size = serde_json::from_slice(data).ok()?;
    Some(TerminalSize { width: size.width, height: size.height })
}

/// How a process ended, as a `metav1.Status`.
pub(crate) fn exit_status(exit: Result<i32, String>) -> Value {
    match exit {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(message) => json!({
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "InternalError",
            "details": { "causes": [{ "message": message }] },
            "code": 500,
        }),
    }
}

/// How a process ended, as the error channel says it: the inverse of [`exit_status`].
pub(crate) fn exit_code(status: &[u8]) -> Result<i32, String> {
    let text = String::from_utf8_lossy(status);
    let status: Value = serde_json::from_str(&text).map_err(|_| text.trim().to_owned())?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let code = causes.iter().find(|cause| cause["reason"] == "ExitCode");
    let code = code.and_then(|cause| cause["message"].as_str()?.parse().ok());
    code.ok_or_else(|| status["message"].as_str().unwrap_or("the stream ended for no reason").to_owned())
}

/// What asks for a terminal's size: the inverse of [`size`].
pub(crate) fn size_message(size: TerminalSize) -> String {
    json!({ "Width": size.width, "Height": size.height }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_causes() {
        let status = exit_status(Ok(7));
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "7" }));
        assert_eq!(exit_status(Ok(0))["status"], "Success");
        for exit in [Ok(0), Ok(7), Err("no such container".to_owned())] {
            assert_eq!(exit_code(exit_status(exit.clone()).to_string().as_bytes()), exit);
        }
        assert_eq!(exit_code(b"plain text\n"), Err("plain text".to_owned()));
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size(br#"{"Width":80,"Height":24}"#), Some(TerminalSize { width: 80, height: 24 }));
        assert_eq!(size(b"{}"), None);
        let this = TerminalSize { width: 111, height: 33 };
        assert_eq!(size(size_message(this).as_bytes()), Some(this));
        assert_eq!(&message(STDERR, b"x")[..], b"\x02x");
    }

    #[test]
    fn messages_are_binary_or_base64() {
        let hi = Some((0, Bytes::from_static(b"hi")));
        assert_eq!(read(Message::Binary(b"\x00hi"[..].into()), false), hi);
        assert_eq!(read(Message::Text("\0hi".into()), false), hi);
        assert_eq!(read(Message::Text("0aGk=".into()), true), hi);
        assert_eq!(read(Message::Text("".into()), false), None);
        assert_eq!(read(Message::Text("0!".into()), true), None);
        assert_eq!(read(Message::Ping(Bytes::new()), false), None);
        assert_eq!(encode(&message(STDOUT, b"hi")), Message::Text("1aGk=".into()));
    }

    #[tokio::test]
    async fn only_what_stands_still_is_idle() {
        let clock = std::sync::Arc::new(decapod_client::clock::ManualClock::default());
        let idle = Idle::default();
        let mut expired = Box::pin(idle.expired(&*clock));
        for moved in [true, false] {
            if moved {
                idle.touch();
            }
            assert!(futures::poll!(&mut expired).is_pending());
            clock.advance(IDLE);
        }
        expired.await;
    }

    #[tokio::test]
    async fn a_silent_client_is_not_waited_for() {
        let clock = decapod_client::clock::ManualClock::default();
        let words = futures::stream::iter(vec![(STDIN, Bytes::new()); 3]);
        let mut source = words.chain(futures::stream::pending()).boxed();
        let heard = linger(&mut source, &clock);
        let time = async {
            // Its patience, and the one before each word.
            clock.sleepers(5).await;
            clock.advance(QUIET);
        };
        tokio::join!(heard, time);
    }

    #[tokio::test]
    async fn a_stream_becomes_messages() {
        let (out, mut messages) = mpsc::channel(AHEAD);
        pump(&b"hello"[..], STDOUT, out).await.unwrap();
        assert_eq!(messages.recv().await.as_deref(), Some(&b"\x01hello"[..]));
        assert!(messages.recv().await.is_none());
    }
}
