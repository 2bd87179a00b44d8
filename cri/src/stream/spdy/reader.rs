//! Frames as they arrive, as events.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc::{self, OwnedPermit};

use super::frame::{self, CONTROL, FIN, HEAD};
use super::headers::{self, Deflater, Headers, Inflater};
use super::{Frame, StreamId};

/// How much of a stream is handed on at once.
const CHUNK: usize = 32 * 1024;
/// The longest control frame: headers of a stream take some hundred bytes.
const CONTROL_MAX: usize = 64 * 1024;

/// The client does not speak SPDY/3.1, or the connection broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("the client sent headers that cannot be read")]
    Headers(#[from] headers::Error),
    #[error("the client sent a control frame of {0} bytes")]
    TooLong(usize),
    #[error("the client sent a frame of type {0} that is too short")]
    Short(u16),
    #[error("the client speaks version {0} of SPDY")]
    Version(u16),
}

/// What a client does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Opens a stream, which was accepted.
    Open { stream: StreamId, headers: Headers, fin: bool },
    /// Sends bytes, with `fin` the last of its side.
    Data { stream: StreamId, bytes: Bytes, fin: bool },
    /// Gives a stream up.
    Reset { stream: StreamId },
}

/// Nobody sends any more.
fn gone() -> Error {
    std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()
}

/// The rest of a data frame.
#[derive(Clone, Copy)]
struct Rest {
    stream: StreamId,
    left: usize,
    fin: bool,
}

/// Reads a connection; what asks for nothing but an answer (pings, new streams) is answered here, through `out`.
pub(crate) struct Reader<R> {
    source: R,
    out: mpsc::Sender<Frame>,
    buffer: BytesMut,
    rest: Option<Rest>,
    inflater: Inflater,
    deflater: Deflater,
    last: StreamId,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(source: R, out: mpsc::Sender<Frame>) -> Self {
        Self {
            source,
            out,
            buffer: BytesMut::new(),
            rest: None,
            inflater: Inflater::new(),
            deflater: Deflater::default(),
            last: 0,
        }
    }

    /// The newest stream of the client.
    pub(crate) fn last(&self) -> StreamId {
        self.last
    }

    /// The next event; `None` once the client has ended the connection. May be dropped while it waits, for the client
    /// or for room to answer: nothing is taken out of the buffer before both are there.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(rest) = self.rest {
                return self.data(rest).await;
            }
            if !self.fill(HEAD).await? {
                return Ok(None);
            }
            let first = u32::from_be_bytes([self.buffer[0], self.buffer[1], self.buffer[2], self.buffer[3]]);
            let flags = self.buffer[4];
            let length = [0, self.buffer[5], self.buffer[6], self.buffer[7]];
            let length = usize::try_from(u32::from_be_bytes(length)).expect("24 bits fit a usize");
            if first & CONTROL == 0 {
                self.buffer.advance(HEAD);
                let fin = flags & FIN != 0;
                self.rest = (length > 0 || fin).then_some(Rest { stream: first, left: length, fin });
                continue;
            }
            if length > CONTROL_MAX {
                return Err(Error::TooLong(length));
            }
            if !self.fill(HEAD + length).await? {
                return Ok(None);
            }
            // A new stream that was taken out and then dropped would never be served.
            let room = self.out.clone().reserve_owned().await.map_err(|_| gone())?;
            self.buffer.advance(HEAD);
            let payload = self.buffer.split_to(length).freeze();
            let version = u16::try_from(first >> 16 & 0x7fff).expect("15 bits");
            if version != frame::VERSION {
                return Err(Error::Version(version));
            }
            let kind = u16::try_from(first & 0xffff).expect("16 bits");
            if let Some(event) = self.control(kind, flags, payload, room)? {
                return Ok(event);
            }
        }
    }

    /// A part of a data frame.
    async fn data(&mut self, rest: Rest) -> Result<Option<Event>, Error> {
        if rest.left > 0 && !self.fill(1).await? {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        let length = rest.left.min(self.buffer.len()).min(CHUNK);
        let bytes = self.buffer.split_to(length).freeze();
        let left = rest.left - length;
        self.rest = (left > 0).then_some(Rest { left, ..rest });
        Ok(Some(Event::Data { stream: rest.stream, bytes, fin: rest.fin && left == 0 }))
    }

    /// What a control frame means, with room for an answer: `Some(None)` is the end of the connection.
    fn control(
        &mut self,
        kind: u16,
        flags: u8,
        mut payload: Bytes,
        room: OwnedPermit<Frame>,
    ) -> Result<Option<Option<Event>>, Error> {
        let short = Error::Short(kind);
        match kind {
            frame::SYN_STREAM => {
                // The number, that of an associated stream, priority and slot.
                let stream = payload.try_get_u32().map_err(|_| Error::Short(kind))? & !CONTROL;
                payload = payload.split_off(payload.len().min(6));
                let headers = self.inflater.read(&payload)?;
                self.last = self.last.max(stream);
                room.send(frame::reply(stream, &mut self.deflater));
                Ok(Some(Some(Event::Open { stream, headers, fin: flags & FIN != 0 })))
            }
            frame::RST_STREAM => {
                let stream = payload.try_get_u32().map_err(|_| short)? & !CONTROL;
                Ok(Some(Some(Event::Reset { stream })))
            }
            frame::HEADERS | frame::SYN_REPLY => {
                // Nobody needs them, but the blocks that follow build on them.
                payload.try_get_u32().map_err(|_| short)?;
                self.inflater.read(&payload)?;
                Ok(None)
            }
            frame::PING => {
                let id = payload.get(..4).ok_or(short)?;
                room.send(frame::pong(id));
                Ok(None)
            }
            frame::GOAWAY => Ok(Some(None)),
            // Settings and windows, which peers of this kind do not keep to.
            _ => Ok(None),
        }
    }

    /// Reads until so many bytes are there; false at the end of the connection.
    async fn fill(&mut self, wanted: usize) -> Result<bool, Error> {
        while self.buffer.len() < wanted {
            self.buffer.reserve(CHUNK);
            if self.source.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(false),
                    false => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                };
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A stream as a client opens it.
    pub(crate) fn open(stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        frame::open(stream, headers, &mut Deflater::after(stream > 1)).to_vec()
    }

    async fn events(bytes: &[u8]) -> (Vec<Event>, Result<(), Error>, Vec<Bytes>) {
        let (out, mut answers) = mpsc::channel(64);
        let mut reader = Reader::new(bytes, out);
        let mut events = Vec::new();
        let end = loop {
            match reader.next().await {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(reader);
        let mut sent = Vec::new();
        while let Some(answer) = answers.recv().await {
            sent.push(answer);
        }
        (events, end, sent)
    }

    #[tokio::test]
    async fn a_connection_is_events() {
        let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0];
        let bytes = [
            open(1, &[("streamType", "data")]),
            settings.to_vec(),
            ping.to_vec(),
            frame::data(1, false, &[7; CHUNK + 1]).to_vec(),
            frame::data(1, true, b"").to_vec(),
            open(3, &[("port", "80")]),
            frame::refuse(3).to_vec(),
            frame::go_away(0).to_vec(),
        ];
        let (events, end, answers) = events(&bytes.concat()).await;
        end.unwrap();
        assert!(
            matches!(&events[0], Event::Open { stream: 1, headers, .. } if headers.get("streamtype") == "data")
        );
        let length: usize =
            events.iter().map(|e| if let Event::Data { bytes, .. } = e { bytes.len() } else { 0 }).sum();
        assert_eq!(length, CHUNK + 1);
        let fins = events.iter().filter(|e| matches!(e, Event::Data { fin: true, .. })).count();
        assert_eq!(fins, 1);
        assert!(matches!(events.last(), Some(Event::Reset { stream: 3 })));
        // Both streams are accepted, and the ping comes back as it was.
        assert_eq!(answers.len(), 3);
        assert_eq!(&answers[1][..], ping);
    }

    #[tokio::test]
    async fn no_stream_is_lost_when_there_is_no_room_to_answer() {
        let (out, mut answers) = mpsc::channel(1);
        out.send(Bytes::new()).await.unwrap();
        let bytes = open(1, &[("port", "80")]);
        let mut reader = Reader::new(&bytes[..], out);
        assert!(futures::poll!(std::pin::pin!(reader.next())).is_pending());
        answers.recv().await.unwrap();
        assert!(matches!(reader.next().await, Ok(Some(Event::Open { stream: 1, .. }))));
        assert!(!answers.recv().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn nonsense_ends_a_connection() {
        assert!(matches!(events(b"\x80\x02\0\x01\0\0\0\0").await.1, Err(Error::Version(2))));
        assert!(matches!(events(b"\x80\x03\0\x01\0\xff\xff\xff").await.1, Err(Error::TooLong(_))));
        assert!(matches!(events(b"\x80\x03\0\x01\0\0\0\x02xx").await.1, Err(Error::Short(1))));
        assert!(matches!(events(b"\x80\x03").await.1, Err(Error::Io(_))));
        assert!(matches!(events(b"\0\0\0\x01\0\0\0\x09half").await.1, Err(Error::Io(_))));
    }
}
