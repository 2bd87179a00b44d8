//! Streams of processes: exec, attach, port forwarding.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::client::{Connection, unexpected};
use super::tasks::Tasks;
use crate::cri::{Session, TerminalSize};
use crate::error::{Error, Result};
use crate::protocol::{Reply, Request, Streams};
use crate::sys::fds;

/// Output of one exec that is kept; other runtimes have the same bound.
pub(super) const MAX_OUTPUT: u64 = 16 << 20;

/// A process may leave children that hold its output open; after its end they get this long.
const DRAIN_WITHIN: Duration = Duration::from_millis(500);

/// Sizes that wait to be applied: only the newest matters.
const RESIZES: usize = 4;

/// A port of a pod accepts at once or is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A process to execute.
pub(super) struct Exec {
    pub(super) container: String,
    pub(super) process: serde_json::Value,
    pub(super) tty: bool,
    pub(super) streams: Streams,
}

/// Both ends of the streams: ours, and those that go to the shim.
#[derive(Default)]
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    theirs: Vec<OwnedFd>,
}

impl Ends {
    fn open(streams: Streams) -> io::Result<Self> {
        let mut ends = Ends::default();
        if streams.stdin {
            let (theirs, ours) = fds::pipe()?;
            ends.stdin = Some(pipe::Sender::from_owned_fd(nonblocking(ours)?)?);
            ends.theirs.push(theirs);
        }
        for (wanted, end) in [(streams.stdout, &mut ends.stdout), (streams.stderr, &mut ends.stderr)] {
            if wanted {
                let (ours, theirs) = fds::pipe()?;
                *end = Some(pipe::Receiver::from_owned_fd(nonblocking(ours)?)?);
                ends.theirs.push(theirs);
            }
        }
        Ok(ends)
    }
}

fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    fds::set_nonblocking(fd.as_fd())?;
    Ok(fd)
}

fn machine(error: io::Error) -> Error {
    Error::internal("open streams", error)
}

/// Starts a process and gives its streams out.
pub(super) async fn exec(run: PathBuf, exec: Exec, tasks: &Tasks) -> Result<Session> {
    let Exec { container, process, tty, streams } = exec;
    // The shim makes the terminal, in the container, and hands it out.
    let piped = if tty { Streams::default() } else { streams };
    let ends = Ends::open(piped).map_err(machine)?;
    let mut connection = Connection::open(&run).await.map_err(super::client::unavailable)?;
    let request = Request::Exec { container: container.clone(), process, tty, streams: piped };
    match connection.call(&request, &ends.theirs).await? {
        Reply::Started { .. } => {}
        other => return Err(unexpected(&container, other)),
    }
    let (resize, sizes) = mpsc::channel(RESIZES);
    if !tty {
        let exit = Box::pin(exited(connection, container));
        return Ok(session(ends, resize, exit));
    }
    let master =
        connection.fds.pop().ok_or_else(|| Error::internal("open the terminal", "none came along"))?;
    let terminal = Terminal::new(master).map_err(machine)?;
    tasks.spawn("terminal size", resize_terminal(terminal.clone(), sizes));
    Ok(Session {
        stdin: streams.stdin.then(|| Box::pin(terminal.clone()) as _),
        stdout: Some(Box::pin(terminal)),
        stderr: None,
        resize,
        exit: Box::pin(exited(connection, container)),
    })
}

/// Joins the streams of a container's own process.
pub(super) async fn attach(
    run: PathBuf,
    container: String,
    streams: Streams,
    tasks: &Tasks,
) -> Result<Session> {
    let ends = Ends::open(streams).map_err(machine)?;
    let mut connection = Connection::open(&run).await.map_err(super::client::unavailable)?;
    let request = Request::Attach { container: container.clone(), streams };
    match connection.call(&request, &ends.theirs).await? {
        Reply::Done => {}
        other => return Err(unexpected(&container, other)),
    }
    let (resize, mut sizes) = mpsc::channel::<TerminalSize>(RESIZES);
    let id = container.clone();
    tasks.spawn("terminal size", async move {
        while let Some(TerminalSize { width, height }) = sizes.recv().await {
            let request = Request::Resize { container: id.clone(), width, height };
            if let Err(error) = super::client::done(&run, &id, &request).await {
                tracing::debug!(container = id, %error, "terminal not resized");
            }
        }
    });
    Ok(session(ends, resize, Box::pin(exited(connection, container))))
}

fn session(
    ends: Ends,
    resize: mpsc::Sender<TerminalSize>,
    exit: futures::future::BoxFuture<'static, Result<i32>>,
) -> Session {
    Session {
        stdin: ends.stdin.map(|end| Box::pin(end) as _),
        stdout: ends.stdout.map(|end| Box::pin(end) as _),
        stderr: ends.stderr.map(|end| Box::pin(end) as _),
        resize,
        exit,
    }
}

/// The end of the process that a connection stands for.
async fn exited(mut connection: Connection, container: String) -> Result<i32> {
    match connection.receive().await.map_err(super::client::unavailable)? {
        Some(Reply::Exited { code }) => Ok(code),
        Some(other) => Err(unexpected(&container, other)),
        None => Err(super::client::unavailable(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Runs a session to its end with nothing on its standard input.
pub(super) async fn collect(session: Session, timeout: Duration) -> Result<(i32, Vec<u8>, Vec<u8>)> {
    let Session { stdin, stdout, stderr, exit, resize: _resize } = session;
    drop(stdin);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let run = async {
        let mut reading =
            std::pin::pin!(async { tokio::join!(read(stdout, &mut out), read(stderr, &mut err)) });
        let mut exit = exit;
        let mut read = None;
        let code = loop {
            tokio::select! {
                code = &mut exit => break code?,
                result = &mut reading, if read.is_none() => read = Some(result),
            }
        };
        let (first, second) = match read {
            Some(result) => result,
            // What was written before the end is in the pipes; what children write is not waited for.
            None => tokio::time::timeout(DRAIN_WITHIN, reading).await.unwrap_or((Ok(()), Ok(()))),
        };
        first.and(second).map_err(|error| Error::internal("read output", error))?;
        Ok(code)
    };
    let code = match timeout.is_zero() {
        true => run.await?,
        false => tokio::time::timeout(timeout, run)
            .await
            .map_err(|_| Error::DeadlineExceeded { what: "the command", seconds: timeout.as_secs() })??,
    };
    Ok((code, out, err))
}

/// Reads all, keeps what is within the bound: a process must not be blocked by us.
async fn read(stream: Option<crate::cri::Output>, kept: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    (&mut stream).take(MAX_OUTPUT).read_to_end(kept).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(())
}

async fn resize_terminal(terminal: Terminal, mut sizes: mpsc::Receiver<TerminalSize>) {
    while let Some(TerminalSize { width, height }) = sizes.recv().await {
        if let Err(error) = crate::shim::set_window_size(terminal.0.get_ref().as_fd(), width, height) {
            tracing::debug!(%error, "terminal not resized");
        }
    }
}

/// The master side of a terminal.
#[derive(Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        let master = nonblocking(master)?;
        // SAFETY: the descriptor is owned by the result, which is never taken apart: it is open,
        // and the same, for as long as it is registered.
        let registered = unsafe { AsyncFd::register(master) }?;
        Ok(Terminal(Arc::new(registered)))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let spare = buffer.initialize_unfilled();
            match guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), spare)?)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // No process has the other side open any more: the end.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Connects to a port on the loopback of a network namespace.
pub(super) async fn connect(netns: Option<PathBuf>, port: u16) -> Result<tokio::net::TcpStream> {
    let dial = move || -> io::Result<TcpStream> {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        TcpStream::connect_timeout(&v4, CONNECT_WITHIN)
            .or_else(|first| TcpStream::connect_timeout(&v6, CONNECT_WITHIN).map_err(|_| first))
    };
    let task = tokio::task::spawn_blocking(move || match netns {
        None => dial(),
        // A thread of its own, which ends in the other namespace: one of the pool must not.
        Some(path) => std::thread::scope(|scope| {
            let enter = || {
                let file = std::fs::File::open(&path)?;
                nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
                dial()
            };
            scope.spawn(enter).join().unwrap_or_else(|_| Err(io::Error::other("the dialling thread died")))
        }),
    });
    let stream = task.await.map_err(|error| Error::internal("connect", error))?;
    let stream = stream.map_err(|error| Error::Unavailable { what: "the port", source: error.into() })?;
    stream.set_nonblocking(true).map_err(machine)?;
    tokio::net::TcpStream::from_std(stream).map_err(machine)
}
