//! The client's side of SPDY/3.1: processes and ports of another runtime, by the URL that it has given.
//!
//! SPDY and not WebSockets: every runtime speaks it, and only it can end a process' input in the protocols that all of
//! them know.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use decapod_client::error::chain;
use decapod_runtime::{Connection, Session, TerminalSize};
use futures::{FutureExt, SinkExt};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::channel::{self, AHEAD, V4};
use super::forward::PROTOCOL as PORT_FORWARD;
use super::spdy::{self, Event, Frame, Reader, StreamId};
use super::upgrade::Bytestream;
use super::{Host, Request};

/// How much of a stream waits for who reads it.
const PIPE: usize = 64 * 1024;
/// How much of a stream is sent at once.
const CHUNK: usize = 32 * 1024;
/// Sizes that wait to be sent: only the newest matters.
const RESIZES: usize = 4;
/// The longest text of an error that is kept.
const ERROR_MAX: usize = 64 * 1024;

/// The stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the runtime's URL {0:?} is not one of plain HTTP")]
    Url(String),
    #[error("the runtime's streaming server is not reached")]
    Connect(#[from] io::Error),
    #[error("the runtime's streaming server does not answer")]
    Http(#[from] hyper::Error),
    #[error("the runtime's streaming server answers {status}: {text}")]
    Refused { status: StatusCode, text: String },
}

/// Upgrades a new connection to SPDY.
async fn upgrade(url: &str, protocol: &'static str) -> Result<Bytestream, Error> {
    let bad = || Error::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
    let host = match authority.host().trim_matches(['[', ']']) {
        // A server that listens everywhere says so; here is one of these places.
        "" | "0.0.0.0" | "::" => "localhost",
        host => host,
    };
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, authority.as_str())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, spdy::NAME)
        .header(spdy::PROTOCOL, protocol)
        .body(Empty::<Bytes>::new())
        .map_err(|_| bad())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Bytestream::plain(hyper::upgrade::on(response)).await?);
        }
        let body = Limited::new(response.into_body(), ERROR_MAX).collect().await;
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
        Err(Error::Refused { status, text: text.unwrap_or_else(|error| error.to_string()) })
    };
    // What goes wrong with the connection goes wrong with the exchange on it.
    let (upgraded, _connection) = tokio::join!(exchange, connection.with_upgrades());
    upgraded
}

/// The numbers of a client's streams, and what opens them.
struct Opener {
    deflater: spdy::Deflater,
    next: StreamId,
    frames: mpsc::Sender<Frame>,
}

impl Opener {
    fn new(frames: mpsc::Sender<Frame>) -> Self {
        Self { deflater: spdy::Deflater::default(), next: 1, frames }
    }

    /// Names of headers are in lower case, as SPDY demands: servers give a stream up otherwise.
    async fn open(&mut self, headers: &[(&str, &str)]) -> StreamId {
        let stream = self.next;
        self.next += 2;
        // The channel has room for all streams of a connection, and its end is in our hands.
        let _there = self.frames.send(spdy::open(stream, headers, &mut self.deflater)).await;
        stream
    }
}

/// Sends frames to their end.
async fn write(mut writer: super::upgrade::Writer, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if writer.send(frame).await.is_err() {
            return;
        }
    }
    // A server that went away needs no farewell.
    let _gone = writer.close().await;
}

/// Sends what comes out of a pipe, and its end.
async fn feed(mut pipe: impl AsyncRead + Unpin, stream: StreamId, frames: mpsc::Sender<Frame>) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        buffer.clear();
        // A pipe in memory has no errors but its end.
        let length = pipe.read_buf(&mut buffer).await.unwrap_or(0);
        let last = length == 0;
        if frames.send(spdy::data(stream, last, &buffer)).await.is_err() || last {
            return;
        }
    }
}

async fn resize(mut sizes: mpsc::Receiver<TerminalSize>, stream: StreamId, frames: mpsc::Sender<Frame>) {
    while let Some(size) = sizes.recv().await {
        let message = channel::size_message(size);
        if frames.send(spdy::data(stream, false, message.as_bytes())).await.is_err() {
            return;
        }
    }
}

/// Where a server's stream goes; nothing more comes once it is gone.
#[derive(Default)]
struct Outlet {
    stream: StreamId,
    pipe: Option<DuplexStream>,
    ended: bool,
}

impl Outlet {
    fn new(stream: StreamId, pipe: Option<DuplexStream>) -> Self {
        Self { stream, ended: pipe.is_none(), pipe }
    }

    async fn take(&mut self, bytes: &[u8], fin: bool) {
        if let Some(pipe) = &mut self.pipe
            && pipe.write_all(bytes).await.is_err()
        {
            // Nobody reads it any more; the others go on.
            self.pipe = None;
        }
        if fin {
            (self.pipe, self.ended) = (None, true);
        }
    }
}

/// Hands out what the server sends, until all its streams or the connection have ended. The text of the error stream,
/// and whether it came to its end.
async fn read<R: AsyncRead + Unpin>(
    mut reader: Reader<R>,
    error: StreamId,
    outlets: &mut [Outlet],
) -> (Vec<u8>, bool) {
    let (mut text, mut ended) = (Vec::new(), false);
    while !ended || outlets.iter().any(|outlet| !outlet.ended) {
        let (stream, bytes, fin) = match reader.next().await {
            Ok(Some(Event::Data { stream, bytes, fin })) => (stream, bytes, fin),
            Ok(Some(Event::Reset { stream })) => (stream, Bytes::new(), true),
            Ok(Some(Event::Open { .. })) => continue,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(error = chain(&error), "a stream of a runtime ended early");
                break;
            }
        };
        if stream == error {
            let room = ERROR_MAX.saturating_sub(text.len());
            text.extend_from_slice(&bytes[..bytes.len().min(room)]);
            ended |= fin;
        } else if let Some(outlet) = outlets.iter_mut().find(|outlet| outlet.stream == stream) {
            outlet.take(&bytes, fin).await;
        }
    }
    (text, ended)
}

fn pipe(wanted: bool) -> (Option<DuplexStream>, Option<DuplexStream>) {
    let (ours, theirs) = duplex(PIPE);
    if wanted { (Some(ours), Some(theirs)) } else { (None, None) }
}

/// The streams of a process.
pub(crate) async fn process(url: &str, wanted: &Request, host: &Host) -> Result<Session, Error> {
    let bytes = upgrade(url, V4).await?;
    let (frames, outgoing) = mpsc::channel(AHEAD);
    let mut opener = Opener::new(frames.clone());
    let error = opener.open(&[("streamtype", "error")]).await;
    let (stdin, input) = pipe(wanted.stdin);
    let (stdout, output) = pipe(wanted.stdout);
    let (stderr, errors) = pipe(wanted.stderr && !wanted.tty);
    let (resizes, sizes) = mpsc::channel(RESIZES);
    let mut sending = vec![write(bytes.writer, outgoing).boxed()];
    if let Some(input) = input {
        let stream = opener.open(&[("streamtype", "stdin")]).await;
        sending.push(feed(input, stream, frames.clone()).boxed());
    }
    let mut outlets = Vec::new();
    for (kind, pipe) in [("stdout", output), ("stderr", errors)] {
        if pipe.is_some() {
            outlets.push(Outlet::new(opener.open(&[("streamtype", kind)]).await, pipe));
        }
    }
    if wanted.tty {
        let stream = opener.open(&[("streamtype", "resize")]).await;
        sending.push(resize(sizes, stream, frames.clone()).boxed());
    }
    let reader = Reader::new(bytes.reader, frames);
    drop(opener);
    let (mut ended, exit) = oneshot::channel();
    host.supervisor.spawn_until_shutdown("cri-process", async move {
        let carried = async {
            tokio::select! {
                (text, _) = read(reader, error, &mut outlets) => Some(text),
                _ = futures::future::join_all(sending) => None,
                // The session was dropped, and the connection goes with it.
                () = ended.closed() => None,
            }
        };
        let text = carried.await;
        drop(outlets);
        // Whoever has dropped the session does not ask how it ended.
        let _dropped = ended.send(text);
    });
    let exit = async move {
        let cut =
            || decapod_runtime::Error::internal("carry the streams of a process", "the connection broke");
        let text = exit.await.ok().flatten().filter(|text| !text.is_empty()).ok_or_else(cut)?;
        channel::exit_code(&text)
            .map_err(|message| decapod_runtime::Error::internal("run the process", message))
    };
    Ok(Session {
        stdin: stdin.map(|pipe| Box::pin(pipe) as _),
        stdout: stdout.map(|pipe| Box::pin(pipe) as _),
        stderr: stderr.map(|pipe| Box::pin(pipe) as _),
        resize: resizes,
        exit: exit.boxed(),
    })
}

/// A connection to a port, which is there only if nothing is said about it on the error stream.
struct Forwarded {
    pipe: DuplexStream,
    failure: Arc<Mutex<Option<String>>>,
    _dropped: DropGuard,
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        if buffer.filled().len() == before
            && let Some(text) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return Poll::Ready(Err(io::Error::other(text)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// A connection to a port. That nobody listens there is the error of the first read.
pub(crate) async fn port(url: &str, port: u16, host: &Host) -> Result<Connection, Error> {
    let bytes = upgrade(url, PORT_FORWARD).await?;
    let (frames, outgoing) = mpsc::channel(AHEAD);
    let mut opener = Opener::new(frames.clone());
    let number = port.to_string();
    let headers = |kind| [("streamtype", kind), ("port", number.as_str()), ("requestid", "0")];
    let error = opener.open(&headers("error")).await;
    let data = opener.open(&headers("data")).await;
    // Nothing is to be said on the error stream from here.
    let _there = frames.send(spdy::data(error, true, &[])).await;
    drop(opener);
    let (ours, theirs) = duplex(PIPE);
    let (source, sink) = tokio::io::split(theirs);
    let reader = Reader::new(bytes.reader, frames.clone());
    let failure = Arc::new(Mutex::default());
    let (told, dropped) = (Arc::clone(&failure), CancellationToken::new());
    let gone = dropped.clone();
    host.supervisor.spawn_until_shutdown("cri-port", async move {
        // They hold the pipe, whose end must not be seen before it is known why.
        let mut sending = std::pin::pin!(async {
            tokio::join!(write(bytes.writer, outgoing), feed(source, data, frames));
        });
        let mut receiving = std::pin::pin!(receive(reader, error, data, sink));
        let text = tokio::select! {
            text = &mut receiving => text,
            () = &mut sending => Vec::new(),
            () = gone.cancelled() => return,
        };
        if !text.is_empty() {
            let text = String::from_utf8_lossy(&text).into_owned();
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
    });
    Ok(Box::pin(Forwarded { pipe: ours, failure, _dropped: dropped.drop_guard() }))
}

/// Hands out what a port says, to its end; what is said about the port.
async fn receive<R: AsyncRead + Unpin>(
    mut reader: Reader<R>,
    error: StreamId,
    data: StreamId,
    mut sink: impl AsyncWrite + Unpin,
) -> Vec<u8> {
    let mut text = Vec::new();
    let (mut error_ended, mut data_ended) = (false, false);
    while !(error_ended && data_ended) {
        let Ok(Some(event)) = reader.next().await else { break };
        let (stream, bytes, fin) = match event {
            Event::Data { stream, bytes, fin } => (stream, bytes, fin),
            Event::Reset { stream } => (stream, Bytes::new(), true),
            Event::Open { .. } => continue,
        };
        if stream == error {
            let room = ERROR_MAX.saturating_sub(text.len());
            text.extend_from_slice(&bytes[..bytes.len().min(room)]);
            error_ended |= fin;
        } else if stream == data {
            if sink.write_all(&bytes).await.is_err() {
                break;
            }
            data_ended |= fin;
        }
    }
    text
}
