//! Netlink sockets: requests with their acknowledgement, dumps and nf_tables batches.
//!
//! A socket belongs to the network namespace in which it was opened, whoever uses it later. Calls block,
//! for microseconds on requests and milliseconds on batches, and are made off the async runtime.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::Error;
use super::wire::{self, Encoder, Message, messages};

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_EXCL`.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_REPLACE`, where a new object is made.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;

/// Room for one transaction that replaces a whole rule set: 5,000 services of five endpoints are 12 MiB.
const SOCKET_BUFFER: libc::c_int = 64 << 20;
/// The kernel answers a dump in pieces of at most 32 KiB.
const RECEIVE_BUFFER: usize = 64 << 10;
/// The kernel answers at once; one that does not in this time is stuck, and so would we be.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which of the kernel's parts a socket talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Links, addresses, routes.
    Route = libc::NETLINK_ROUTE as isize,
    /// nf_tables and conntrack.
    Netfilter = libc::NETLINK_NETFILTER as isize,
}

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open(family: Family) -> Result<Self, Error> {
        // SAFETY: no pointers are passed; the result is checked before it is owned.
        let raw = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family as libc::c_int)
        };
        if raw < 0 {
            return Err(Error::Open(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            set_option(&fd, option, &SOCKET_BUFFER)?;
        }
        let patience = libc::timeval {
            tv_sec: libc::time_t::try_from(PATIENCE.as_secs()).expect("ten seconds"),
            tv_usec: 0,
        };
        set_option(&fd, libc::SO_RCVTIMEO, &patience)?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one message and waits for its acknowledgement.
    pub(crate) fn request(
        &mut self,
        operation: &'static str,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Encoder),
    ) -> Result<(), Error> {
        self.sequence += 1;
        let sequence = self.sequence;
        let mut encoder = Encoder::default();
        encoder.message(kind, REQUEST | ACK | flags, sequence, fill);
        self.send(encoder.bytes())?;
        self.receive(|message| {
            if message.sequence != sequence || message.kind != KIND_ERROR {
                return Ok(false);
            }
            refusal(message)
                .map_or(Ok(true), |source| Err(Error::Refused { operation, detail: String::new(), source }))
        })
    }

    /// Asks for one object and gives the payload of the answer to `read`.
    pub(crate) fn query<T>(
        &mut self,
        operation: &'static str,
        kind: u16,
        fill: impl FnOnce(&mut Encoder),
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.sequence += 1;
        let sequence = self.sequence;
        let mut encoder = Encoder::default();
        encoder.message(kind, REQUEST, sequence, fill);
        self.send(encoder.bytes())?;
        let mut found = None;
        self.receive(|message| {
            if message.sequence != sequence {
                return Ok(false);
            }
            if message.kind == KIND_ERROR {
                return refusal(message).map_or(Ok(true), |source| {
                    Err(Error::Refused { operation, detail: String::new(), source })
                });
            }
            found = read(message.payload);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Asks for all objects of a kind and gives each message's kind-specific payload to `each`.
    pub(crate) fn dump(
        &mut self,
        operation: &'static str,
        kind: u16,
        fill: impl FnOnce(&mut Encoder),
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        self.sequence += 1;
        let sequence = self.sequence;
        let mut encoder = Encoder::default();
        encoder.message(kind, REQUEST | DUMP, sequence, fill);
        self.send(encoder.bytes())?;
        self.receive(|message| match message.kind {
            _ if message.sequence != sequence => Ok(false),
            KIND_DONE => Ok(true),
            KIND_ERROR => match refusal(message) {
                None => Ok(true),
                Some(source) => Err(Error::Refused { operation, detail: String::new(), source }),
            },
            _ => {
                each(message.payload);
                Ok(false)
            }
        })
    }

    /// Sends the messages of a batch, of which the last but one (before the batch's end) asks for an
    /// acknowledgement. The kernel applies all of them or none.
    pub(crate) fn batch(&mut self, batch: &Encoder, last: u32) -> Result<(), Error> {
        self.send(batch.bytes())?;
        self.receive(|message| {
            if message.kind != KIND_ERROR {
                return Ok(false);
            }
            match refusal(message) {
                None => Ok(message.sequence == last),
                Some(source) => Err(Error::Refused {
                    operation: "nf_tables transaction",
                    detail: describe(batch, message.sequence),
                    source,
                }),
            }
        })
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: the pointer and length are those of a live slice.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(sent) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(Error::Send(io::ErrorKind::WriteZero.into())),
            Err(_) => Err(Error::Send(io::Error::last_os_error())),
        }
    }

    /// Reads messages until `done` says that the answer is complete.
    fn receive(&self, mut done: impl FnMut(Message<'_>) -> Result<bool, Error>) -> Result<(), Error> {
        let mut buffer = vec![0u8; RECEIVE_BUFFER];
        loop {
            let fd = self.fd.as_raw_fd();
            // SAFETY: the pointer and length are those of a live, exclusively borrowed buffer.
            let received = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let Ok(length) = usize::try_from(received) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(Error::Receive(error));
            };
            for message in messages(&buffer[..length]) {
                if done(message)? {
                    return Ok(());
                }
            }
        }
    }
}

fn set_option<T>(fd: &OwnedFd, option: libc::c_int, value: &T) -> Result<(), Error> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("options are a few bytes long");
    // SAFETY: the pointer and length describe `value`, whose type is the option's.
    let set = unsafe {
        let value = std::ptr::from_ref(value).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, value, length)
    };
    if set < 0 { Err(Error::Open(io::Error::last_os_error())) } else { Ok(()) }
}

/// The error that an `nlmsgerr` carries, unless it is an acknowledgement.
fn refusal(message: Message<'_>) -> Option<io::Error> {
    // Too short to hold a code: not what a kernel sends; taken as the refusal that it may have been.
    let code = wire::u32_at(message.payload, 0).map_or(-libc::EBADMSG, u32::cast_signed);
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

/// Names what the message `sequence` of a batch was about: its kind and its leading strings.
fn describe(batch: &Encoder, sequence: u32) -> String {
    let Some(message) = messages(batch.bytes()).find(|message| message.sequence == sequence) else {
        return format!("message {sequence}");
    };
    let attributes = wire::attributes(message.payload.get(4..).unwrap_or_default());
    let names: Vec<_> = attributes
        .filter_map(|(_, value)| wire::text(value))
        .filter(|name| name.len() > 1 && name.bytes().all(|byte| byte.is_ascii_graphic()))
        .take(3)
        .collect();
    format!("message {:#x} {}", message.kind, names.join(" "))
}
