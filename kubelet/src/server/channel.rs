//! Kubernetes' channels over one WebSocket: the first byte of each binary message says which stream it belongs to.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::{BufMut, Bytes, BytesMut};
use decapod_runtime::TerminalSize;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

/// The newest protocol: as v4, and a stream can be closed alone.
pub(super) const V5: &str = "v5.channel.k8s.io";
/// Exit status as `metav1.Status` on the error channel.
pub(super) const V4: &str = "v4.channel.k8s.io";

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// v5: the byte that follows names the channel that ends.
pub(super) const CLOSE: u8 = 255;

/// How much of a stream goes into one message.
const CHUNK: usize = 32 * 1024;

/// How long a client has to close a connection that has come to its end.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Messages that wait for a slow client.
pub(super) const AHEAD: usize = 8;

/// One message on a channel.
pub(super) fn message(channel: u8, data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(data);
    bytes.freeze()
}

/// Sends everything that `source` gives on a channel, until its end or until nobody listens.
pub(super) async fn pump(
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

/// Writes what comes through `messages` to the client, then closes; ends early if the client is gone.
pub(super) async fn drain(mut messages: mpsc::Receiver<Bytes>, mut sink: SplitSink<WebSocket, Message>) {
    while let Some(bytes) = messages.recv().await {
        if sink.send(Message::Binary(bytes)).await.is_err() {
            return;
        }
    }
    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    // A client that went away needs no farewell.
    let _gone = sink.send(Message::Close(Some(frame))).await;
}

/// The next message of the client as channel and data; `None` once it is gone.
pub(super) async fn next(stream: &mut futures::stream::SplitStream<WebSocket>) -> Option<(u8, Bytes)> {
    loop {
        match stream.next().await? {
            Ok(Message::Binary(mut bytes)) if !bytes.is_empty() => {
                let data = bytes.split_off(1);
                return Some((bytes[0], data));
            }
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// The size that a resize message asks for.
pub(super) fn size(data: &[u8]) -> Option<TerminalSize> {
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
pub(super) fn exit_status(exit: Result<i32, String>) -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_causes() {
        let status = exit_status(Ok(7));
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "7" }));
        assert_eq!(exit_status(Ok(0))["status"], "Success");
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size(br#"{"Width":80,"Height":24}"#), Some(TerminalSize { width: 80, height: 24 }));
        assert_eq!(size(b"{}"), None);
        assert_eq!(&message(STDERR, b"x")[..], b"\x02x");
    }

    #[tokio::test]
    async fn a_stream_becomes_messages() {
        let (out, mut messages) = mpsc::channel(AHEAD);
        pump(&b"hello"[..], STDOUT, out).await.unwrap();
        assert_eq!(messages.recv().await.as_deref(), Some(&b"\x01hello"[..]));
        assert!(messages.recv().await.is_none());
    }
}
