//! Sockets: UDP with one socket and task per core, and TCP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decapod_client::clock::Clock;
use decapod_client::clock::timeout;
use decapod_client::task::Supervisor;
use nix::sys::socket::{self as sys, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::batch::{self, Batch, QUESTION};
use super::forward::Forwarder;
use super::index::Index;
use super::message::{Outcome, Pending, Transport, respond};
use super::prepared::Prepared;
use crate::health::accept_failed;

/// What waits in the kernel while a worker is busy: some 5,000 questions.
const RECEIVE_BUFFER: usize = 1 << 20;
/// The most questions that wait for upstream servers at a time.
const FORWARDED: usize = 1000;
/// The most TCP connections at a time.
const CONNECTIONS: usize = 256;
/// How long a TCP connection may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// The newest index, for readers that look often.
#[derive(Debug)]
pub(super) struct Shared {
    version: AtomicU64,
    index: Mutex<Arc<Index>>,
}

impl Shared {
    pub(super) fn new(index: Index) -> Self {
        Self { version: AtomicU64::new(1), index: Mutex::new(Arc::new(index)) }
    }

    /// Puts a new version in place.
    pub(super) fn publish(&self, index: Index) {
        *self.index.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The newest version.
    pub(super) fn newest(&self) -> Arc<Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A reader of the newest index, which takes a lock only when there is a newer one.
struct Reader {
    shared: Arc<Shared>,
    seen: u64,
    index: Arc<Index>,
}

impl Reader {
    fn new(shared: Arc<Shared>) -> Self {
        let index = shared.newest();
        Self { shared, seen: 0, index }
    }

    /// The newest index, and a number that no other one has.
    fn index(&mut self) -> (u64, &Index) {
        let version = self.shared.version.load(Ordering::Acquire);
        if version != self.seen {
            self.index = self.shared.newest();
            self.seen = version;
        }
        (self.seen, &self.index)
    }
}

/// What all workers share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) supervisor: Supervisor,
    pub(super) clock: Arc<dyn Clock>,
    places: Arc<Semaphore>,
}

impl Context {
    pub(super) fn new(
        shared: Arc<Shared>,
        forwarder: Forwarder,
        supervisor: Supervisor,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(FORWARDED));
        Self { shared, forwarder: Arc::new(forwarder), supervisor, clock, places }
    }

    /// Asks upstream; with too many questions under way already, fails at once.
    async fn resolve(&self, pending: Box<Pending>, place: Option<OwnedSemaphorePermit>) -> Vec<u8> {
        let found = match &place {
            Some(_) => self.forwarder.resolve(&pending.query, pending.dnssec).await,
            None => None,
        };
        drop(place);
        encode(&pending.complete(found))
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }
}

fn encode(reply: &super::message::Reply) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = reply.encode(&mut bytes) {
        tracing::debug!(%error, "an answer cannot be written");
        bytes.clear();
    }
    bytes
}

/// A UDP socket that shares its address with others: the kernel spreads clients over them.
pub(super) fn udp_bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd = sys::socket(family, SockType::Datagram, flags, None)?;
    sys::setsockopt(&socket, sockopt::ReusePort, &true)?;
    sys::setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    sys::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    UdpSocket::from_std(socket.into())
}

/// Answers what comes in by one UDP socket.
pub(super) async fn udp_serve(socket: Arc<UdpSocket>, context: Context) {
    let mut reader = Reader::new(context.shared.clone());
    let (mut batch, mut prepared) = (Batch::new(), Prepared::default());
    let mut rotation: u32 = rand::random();
    loop {
        let count = match batch.receive(&socket).await {
            Ok(count) => count,
            Err(error) => {
                // A client that is gone is reported here; there is nobody to tell.
                tracing::debug!(%error, "cannot receive");
                continue;
            }
        };
        for number in 0..count {
            rotation = rotation.wrapping_add(1);
            let (version, index) = reader.index();
            let mut elsewhere = None;
            batch.answer(number, |question, answer| {
                elsewhere = prepared.answer(version, index, question, rotation, answer);
            });
            let client = batch.question(number).1;
            if let (Some(pending), Some(client)) = (elsewhere, batch::address(&client)) {
                let (socket, inner, place) = (socket.clone(), context.clone(), context.place());
                context.supervisor.spawn_until_shutdown("dns-forward", async move {
                    udp_send(&socket, &inner.resolve(pending, place).await, client).await;
                });
            }
        }
        batch.send(&socket).await;
    }
}

async fn udp_send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if answer.is_empty() {
        return;
    }
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "cannot answer");
    }
}

/// Answers what comes in by TCP.
pub(super) async fn tcp_serve(listener: TcpListener, context: Context) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("nobody closes it");
        match listener.accept().await {
            Ok((stream, client)) => {
                let inner = context.clone();
                context.supervisor.spawn_until_shutdown("dns-tcp-connection", async move {
                    let _place = place;
                    if let Err(error) = connection_serve(stream, &inner).await {
                        tracing::debug!(%client, %error, "a TCP client is gone");
                    }
                });
            }
            Err(error) => accept_failed(&error).await,
        }
    }
}

async fn connection_serve(mut stream: TcpStream, context: &Context) -> io::Result<()> {
    let mut reader = Reader::new(context.shared.clone());
    loop {
        let Some(question) = timeout(&*context.clock, IDLE, question_read(&mut stream)).await else {
            return Ok(());
        };
        let Some(question) = question? else { return Ok(()) };
        let answer = match respond(reader.index().1, &question, Transport::Tcp, rand::random()) {
            Outcome::Reply(reply) => encode(&reply),
            Outcome::Resolve(pending) => context.resolve(pending, context.place()).await,
            Outcome::Ignore => return Ok(()),
        };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        match timeout(&*context.clock, IDLE, stream.write_all(&framed)).await {
            Some(sent) => sent?,
            None => return Ok(()),
        }
    }
}

/// The next question, or nothing at the end of the stream or if it is too long to be one.
async fn question_read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > QUESTION {
        return Ok(None);
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(Some(question))
}
