//! The agent's side of a shim's socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::error::{Error, Kind, Result};
use crate::protocol::{self, Reply, Request, SOCKET};
use crate::sys::{fds, rooted};

/// A shim answers at once; what takes longest is creating a container, or ending a whole pod.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A connection to a shim.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    /// Descriptors that came along with what was received.
    pub(super) fds: Vec<OwnedFd>,
}

impl Connection {
    /// Connects to the shim of the sandbox with that run directory.
    pub(super) async fn open(run: &Path) -> io::Result<Self> {
        let directory = rooted::open_dir(run)?;
        let stream = UnixStream::connect(fds::short_path(&directory, SOCKET)).await?;
        Ok(Connection { stream, received: Vec::new(), fds: Vec::new() })
    }

    /// Sends a request with descriptors.
    pub(super) async fn send(&mut self, request: &Request, fds: &[OwnedFd]) -> io::Result<()> {
        let frame = protocol::encode(request);
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut sent = 0;
        while sent < frame.len() {
            let rights = if sent == 0 { raw.as_slice() } else { &[] };
            let send = || fds::send(self.stream.as_fd(), &frame[sent..], rights);
            sent += self.stream.async_io(Interest::WRITABLE, send).await?;
        }
        Ok(())
    }

    /// The next frame; `None` at the end, when the shim is gone.
    pub(super) async fn receive(&mut self) -> io::Result<Option<Reply>> {
        loop {
            if let Some(reply) = protocol::decode(&mut self.received)? {
                return Ok(Some(reply));
            }
            let (stream, received, fds) = (&self.stream, &mut self.received, &mut self.fds);
            let receive = || fds::receive(stream.as_fd(), received, fds);
            if self.stream.async_io(Interest::READABLE, receive).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Sends a request and awaits its answer.
    pub(super) async fn call(&mut self, request: &Request, fds: &[OwnedFd]) -> Result<Reply> {
        let answer = async {
            self.send(request, fds).await?;
            self.receive().await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(unavailable(error)),
            Err(_) => Err(Error::DeadlineExceeded {
                what: "a request to the shim",
                seconds: ANSWER_WITHIN.as_secs(),
            }),
        }
    }
}

/// One request on a connection of its own.
pub(super) async fn call(run: &Path, request: &Request) -> Result<Reply> {
    Connection::open(run).await.map_err(unavailable)?.call(request, &[]).await
}

/// One request that is just done.
pub(super) async fn done(run: &Path, id: &str, request: &Request) -> Result<()> {
    match call(run, request).await? {
        Reply::Done => Ok(()),
        other => Err(unexpected(id, other)),
    }
}

pub(super) fn unavailable(error: io::Error) -> Error {
    Error::Unavailable { what: "the pod's shim", source: error.into() }
}

/// What an answer that is not the expected one means for a container.
pub(super) fn unexpected(id: &str, reply: Reply) -> Error {
    match reply {
        Reply::NotRunning => {
            Error::WrongState { kind: Kind::Container, id: id.to_owned(), state: "not running" }
        }
        Reply::StartFailed { code, message } => Error::StartFailed { exit_code: code, message },
        Reply::Failed { message } => Error::internal("work in the shim", message),
        other => Error::internal("understand the shim", format!("unexpected answer {other:?}")),
    }
}
