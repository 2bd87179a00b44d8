//! Exec and attach over SPDY: the client opens a stream for each of a process' streams and says which it is.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use decapod_client::clock::{self, Clock};
use decapod_client::error::chain;
use futures::{FutureExt, SinkExt, StreamExt, stream};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::{Event, Frame, Reader, StreamId, data, go_away};
use crate::stream::channel::{AHEAD, CLOSE, Channels, ERROR, Idle, RESIZE, STDERR, STDIN, STDOUT, Source};
use crate::stream::upgrade::Bytestream;

/// How long a client has to open its streams, as Kubernetes has it.
pub(crate) const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// What a client may send before all its streams are open.
const EARLY: usize = 64;

/// The streams by their channels.
type Streams = BTreeMap<u8, StreamId>;

/// The channels `wanted` over a SPDY connection.
pub(crate) fn over(bytes: Bytestream, wanted: Vec<u8>, clock: Arc<dyn Clock>) -> Channels {
    let (out, messages) = mpsc::channel(AHEAD);
    let (frames, mut outgoing) = mpsc::channel::<Frame>(AHEAD);
    let streams = Arc::new(OnceLock::new());
    let idle = Idle::default();
    let source = {
        let reader = Reader::new(bytes.reader, frames.clone());
        let (streams, idle) = (streams.clone(), idle.clone());
        async move { clock::timeout(&*clock, OPEN_WITHIN, open(reader, wanted, streams, idle)).await.flatten() }
    };
    let mut writer = bytes.writer;
    let moved = idle.clone();
    let sending = async move {
        let write = async {
            while let Some(frame) = outgoing.recv().await {
                moved.touch();
                if writer.send(frame).await.is_err() {
                    return;
                }
            }
            // A client that went away needs no farewell.
            let _gone = writer.close().await;
        };
        tokio::join!(translate(messages, streams, frames), write);
    };
    Channels { source: source.boxed(), out, sending: sending.boxed(), idle }
}

/// Waits until all streams are open; what arrives before that comes first.
async fn open<R: AsyncRead + Unpin + Send + 'static>(
    mut reader: Reader<R>,
    wanted: Vec<u8>,
    streams: Arc<OnceLock<Streams>>,
    idle: Idle,
) -> Option<Source> {
    let mut opened = Streams::new();
    let mut early = Vec::new();
    while !wanted.iter().all(|channel| opened.contains_key(channel)) {
        match event(&mut reader).await? {
            Event::Open { stream, headers, fin } => {
                if let Some(channel) = channel(headers.get("streamtype")) {
                    opened.insert(channel, stream);
                    if fin {
                        early.push((CLOSE, Bytes::copy_from_slice(&[channel])));
                    }
                }
            }
            other => early.extend(messages(&opened, other)),
        }
        if early.len() > EARLY {
            return None;
        }
    }
    let by_stream = opened.clone();
    // Nobody else sets it.
    let _first = streams.set(opened);
    let later = stream::unfold((reader, by_stream, idle), |(mut reader, opened, idle)| async move {
        let event = event(&mut reader).await?;
        idle.touch();
        Some((stream::iter(messages(&opened, event)), (reader, opened, idle)))
    });
    Some(stream::iter(early).chain(later.flatten()).boxed())
}

async fn event<R: AsyncRead + Unpin>(reader: &mut Reader<R>) -> Option<Event> {
    match reader.next().await {
        Ok(event) => event,
        Err(error) => {
            tracing::debug!(error = chain(&error), "a SPDY connection ended");
            None
        }
    }
}

fn channel(kind: &str) -> Option<u8> {
    Some(match kind {
        "stdin" => STDIN,
        "stdout" => STDOUT,
        "stderr" => STDERR,
        "error" => ERROR,
        "resize" => RESIZE,
        _ => return None,
    })
}

/// An event as messages of channels.
fn messages(opened: &Streams, event: Event) -> Vec<(u8, Bytes)> {
    let (stream, bytes, ended) = match event {
        Event::Data { stream, bytes, fin } => (stream, bytes, fin),
        Event::Reset { stream } => (stream, Bytes::new(), true),
        Event::Open { .. } => return Vec::new(),
    };
    let Some((&channel, _)) = opened.iter().find(|(_, id)| **id == stream) else { return Vec::new() };
    let mut messages = Vec::new();
    if !bytes.is_empty() {
        messages.push((channel, bytes));
    }
    if ended {
        messages.push((CLOSE, Bytes::copy_from_slice(&[channel])));
    }
    messages
}

/// Turns messages into frames, and the end of them into that of all streams.
async fn translate(
    mut messages: mpsc::Receiver<Bytes>,
    streams: Arc<OnceLock<Streams>>,
    frames: mpsc::Sender<Frame>,
) {
    let stream_of = |channel| streams.get().and_then(|opened: &Streams| opened.get(&channel).copied());
    while let Some(message) = messages.recv().await {
        let Some((&channel, bytes)) = message.split_first() else { continue };
        if let Some(stream) = stream_of(channel).filter(|_| !bytes.is_empty())
            && frames.send(data(stream, false, bytes)).await.is_err()
        {
            return;
        }
    }
    let ends = [STDOUT, STDERR, ERROR].into_iter().filter_map(stream_of).map(|id| data(id, true, &[]));
    let last = streams.get().and_then(|opened| opened.values().max().copied()).unwrap_or_default();
    for frame in ends.chain([go_away(last)]) {
        // A client that is gone does not care.
        let _gone = frames.send(frame).await;
    }
}

#[cfg(test)]
mod tests {
    use decapod_client::clock::ManualClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, split};
    use tokio_util::codec::{BytesCodec, FramedWrite};

    use super::*;
    use crate::stream::channel::message;
    use crate::stream::spdy::reader::tests as client;

    fn connection() -> (DuplexStream, Bytestream) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (reader, writer) = split(server);
        let writer = Box::pin(FramedWrite::new(writer, BytesCodec::new()));
        (client, Bytestream { reader: Box::pin(reader), writer })
    }

    #[tokio::test]
    async fn streams_are_channels() {
        let (mut client, bytes) = connection();
        let wanted = vec![ERROR, STDIN, STDOUT];
        let channels = over(bytes, wanted, Arc::new(ManualClock::default()));
        let Channels { source, out, sending, .. } = channels;
        let process = async move {
            let mut source = source.await.unwrap();
            assert_eq!(source.next().await, Some((STDIN, b"in"[..].into())));
            assert_eq!(source.next().await, Some((CLOSE, vec![STDIN].into())));
            out.send(message(STDOUT, b"out")).await.unwrap();
            out.send(message(ERROR, b"{}")).await.unwrap();
            drop(out);
            assert_eq!(source.next().await, None);
        };
        let user = async move {
            for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
                client.write_all(&client::open(stream, &[("streamType", kind)])).await.unwrap();
                if kind == "stdin" {
                    client.write_all(&data(3, true, b"in")).await.unwrap();
                }
            }
            let ends =
                [data(5, false, b"out"), data(1, false, b"{}"), data(5, true, b""), data(1, true, b"")]
                    .concat();
            let mut read = Vec::new();
            while !read.ends_with(&go_away(5)) {
                client.read_buf(&mut read).await.unwrap();
            }
            let read = &read[..read.len() - go_away(5).len()];
            assert!(read.ends_with(&ends), "{read:?}");
        };
        tokio::join!(process, sending, user);
    }

    #[tokio::test]
    async fn a_client_that_does_not_open_its_streams_is_given_up() {
        let (client, bytes) = connection();
        let clock = Arc::new(ManualClock::default());
        let Channels { source, out: _out, sending: _sending, .. } =
            over(bytes, vec![ERROR, STDOUT], clock.clone());
        let turn = async {
            clock.sleepers(1).await;
            clock.advance(OPEN_WITHIN);
        };
        let (source, ()) = tokio::join!(source, turn);
        assert!(source.is_none());
        drop(client);
    }
}
