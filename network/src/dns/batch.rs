//! Datagrams by the dozen: one call of the kernel brings what has come, and one takes the answers away.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The largest question that is read; real ones are below 300 bytes.
pub(super) const QUESTION: usize = 4096;
/// So many datagrams to a call: more of them cost memory, and save next to nothing.
const BATCH: usize = 16;

/// What came, and what goes back.
#[derive(Debug)]
pub(super) struct Batch {
    questions: Vec<[u8; QUESTION]>,
    /// Lengths of the questions, and who sent them.
    received: Vec<(usize, SockaddrStorage)>,
    answers: Vec<Vec<u8>>,
    /// For whom the first of `answers` are.
    clients: Vec<Option<SockaddrStorage>>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            questions: vec![[0; QUESTION]; BATCH],
            received: Vec::with_capacity(BATCH),
            answers: (0..BATCH).map(|_| Vec::with_capacity(QUESTION)).collect(),
            clients: Vec::with_capacity(BATCH),
        }
    }

    /// Waits for questions; says how many there are.
    ///
    /// # Errors
    /// Those of the kernel: a client of an earlier answer that is gone is one of them.
    pub(super) async fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received.clear();
        self.clients.clear();
        let Self { questions, received, .. } = self;
        socket.async_io(Interest::READABLE, || receive_now(socket, questions, received)).await?;
        Ok(self.received.len())
    }

    /// One of the questions, and who sent it.
    pub(super) fn question(&self, number: usize) -> (&[u8], SockaddrStorage) {
        let (length, client) = self.received[number];
        (&self.questions[number][..length], client)
    }

    /// Puts the answer to one of the questions down: `write` is given the question and an empty buffer. What it leaves
    /// empty is not sent.
    pub(super) fn answer(&mut self, number: usize, write: impl FnOnce(&[u8], &mut Vec<u8>)) {
        let (length, client) = self.received[number];
        let answer = &mut self.answers[self.clients.len()];
        answer.clear();
        write(&self.questions[number][..length], answer);
        if !answer.is_empty() {
            self.clients.push(Some(client));
        }
    }

    /// Sends the answers.
    pub(super) async fn send(&mut self, socket: &UdpSocket) {
        let mut first = 0;
        while first < self.clients.len() {
            let (answers, clients) = (&self.answers[first..self.clients.len()], &self.clients[first..]);
            match socket.async_io(Interest::WRITABLE, || send_now(socket, answers, clients)).await {
                Ok(sent) => first += sent,
                Err(error) => {
                    // It is the first one's; the others may have more luck.
                    tracing::debug!(%error, "cannot answer");
                    first += 1;
                }
            }
        }
    }
}

fn receive_now(
    socket: &UdpSocket,
    questions: &mut [[u8; QUESTION]],
    received: &mut Vec<(usize, SockaddrStorage)>,
) -> io::Result<()> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(questions.len(), None);
    let mut slices: Vec<_> = questions.iter_mut().map(|question| [IoSliceMut::new(question)]).collect();
    let flags = MsgFlags::MSG_DONTWAIT;
    let messages = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None)?;
    received
        .extend(messages.map(|message| (message.bytes, message.address.expect("a datagram has a sender"))));
    Ok(())
}

/// Sends as many as the kernel takes; says how many.
fn send_now(
    socket: &UdpSocket,
    answers: &[Vec<u8>],
    clients: &[Option<SockaddrStorage>],
) -> io::Result<usize> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(answers.len(), None);
    let slices: Vec<_> = answers.iter().map(|answer| [IoSlice::new(answer)]).collect();
    let flags = MsgFlags::MSG_DONTWAIT;
    let sent = sendmmsg(socket.as_raw_fd(), &mut headers, slices.iter(), clients, [], flags)?;
    Ok(sent.count())
}

/// An address as the rest of the program writes it.
pub(super) fn address(client: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = client.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| client.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}
