//! Names outside of the cluster: asked of the node's own name servers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use decapod_client::clock::{Clock, timeout};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::cache::Cache;
use super::message::UDP_LIMIT;

/// The port of name servers.
const PORT: u16 = 53;
/// How long one server may take before the next is asked: clients wait five seconds in all.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most servers that are asked for one answer; resolvers know three.
const SERVERS: usize = 3;
/// After so many failures in a row a server is taken to be down: a lost packet is none.
const FAILURES: u32 = 3;
/// How long a server that is down is left alone. Questions fail at once meanwhile, in place of keeping
/// every client waiting.
const REST: Duration = Duration::from_secs(2);

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the server cannot be reached")]
    Io(#[from] io::Error),
    #[error("the question or the answer is malformed")]
    Malformed(#[from] hickory_proto::ProtoError),
    #[error("the answer cannot be read")]
    Unreadable(#[from] hickory_proto::serialize::binary::DecodeError),
    #[error("no answer in time")]
    Timeout,
}

/// A server, and whether it answers.
#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    failures: AtomicU32,
    /// In milliseconds of the monotonic clock.
    rests_until: AtomicU64,
}

impl Upstream {
    fn new(address: SocketAddr) -> Self {
        Self { address, failures: AtomicU32::new(0), rests_until: AtomicU64::new(0) }
    }

    fn is_down(&self, now: Duration) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES
            && now.as_millis() < u128::from(self.rests_until.load(Ordering::Relaxed))
    }

    fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    fn failed(&self, now: Duration) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let until = u64::try_from((now + REST).as_millis()).unwrap_or(u64::MAX);
        self.rests_until.store(until, Ordering::Relaxed);
    }
}

/// Asks upstream servers, and remembers what they said.
#[derive(Debug)]
pub(super) struct Forwarder {
    servers: Vec<Upstream>,
    cache: Cache,
    clock: Arc<dyn Clock>,
}

impl Forwarder {
    /// A forwarder to these servers, of which the first that answers is believed.
    pub(super) fn new(servers: &[SocketAddr], clock: Arc<dyn Clock>) -> Self {
        let servers = servers.iter().take(SERVERS).map(|server| Upstream::new(*server)).collect();
        Self { servers, cache: Cache::default(), clock }
    }

    /// What the cache or the servers say, or nothing if no server answers.
    pub(super) async fn resolve(&self, query: &Query, dnssec: bool) -> Option<Message> {
        if let Some(known) = self.cache.get(query, dnssec, self.clock.monotonic()) {
            return Some(known);
        }
        for upstream in &self.servers {
            if upstream.is_down(self.clock.monotonic()) {
                continue;
            }
            let server = upstream.address;
            let asked = timeout(&*self.clock, PATIENCE, exchange(server, query, dnssec)).await;
            match asked.unwrap_or(Err(Error::Timeout)) {
                Ok(answer) => {
                    upstream.answered();
                    self.cache.put(query, dnssec, &answer, self.clock.monotonic());
                    return Some(answer);
                }
                Err(error) => {
                    upstream.failed(self.clock.monotonic());
                    let error = decapod_client::error::chain(&error);
                    tracing::debug!(%server, name = %query.name, error, "no answer from upstream");
                }
            }
        }
        None
    }
}

/// Asks one server: by UDP, and again by TCP if the answer does not fit.
async fn exchange(server: SocketAddr, query: &Query, dnssec: bool) -> Result<Message, Error> {
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_LIMIT).set_dnssec_ok(dnssec);
    question.set_edns(edns);
    let bytes = question.to_vec()?;
    let answer = exchange_udp(server, &question, &bytes).await?;
    if answer.metadata.truncation { exchange_tcp(server, &question, &bytes).await } else { Ok(answer) }
}

async fn exchange_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> Result<Message, Error> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    // A socket for each question: its random port is half of what makes forging an answer hard.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; UDP_LIMIT as usize];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if is_answer(question, &answer) => return Ok(answer),
            // A late answer to somebody else's question, or a forged one.
            _ => {}
        }
    }
}

async fn exchange_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> Result<Message, Error> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).expect("a question is a few hundred bytes long");
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer)?;
    if is_answer(question, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::from(io::ErrorKind::InvalidData).into())
    }
}

fn is_answer(question: &Message, answer: &Message) -> bool {
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == question.metadata.id
        && answer.queries == question.queries
}

/// The name servers that a `resolv.conf` names and that can be reached from elsewhere than its machine.
///
/// # Errors
/// The file cannot be read.
pub(super) fn servers_read(path: &Path) -> io::Result<Vec<SocketAddr>> {
    let text = std::fs::read_to_string(path)?;
    let servers: Vec<_> = servers_parse(&text).collect();
    Ok(servers)
}

fn servers_parse(text: &str) -> impl Iterator<Item = SocketAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = lines.filter(|rest| rest.starts_with([' ', '\t'])).filter_map(|rest| {
        let address: IpAddr = rest.split_whitespace().next()?.parse().ok()?;
        Some(SocketAddr::new(address, PORT))
    });
    addresses.filter(|server| {
        let reachable = !server.ip().is_loopback();
        if !reachable {
            tracing::warn!(%server, "ignoring a name server on the loopback address: here it would be ourselves");
        }
        reachable
    })
}

#[cfg(test)]
mod tests {
    use decapod_client::clock::ManualClock;
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_down_keeps_nobody_waiting() {
        let silent = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let clock = Arc::new(ManualClock::default());
        let forwarder = Forwarder::new(&[silent.local_addr().unwrap()], clock.clone());
        let query = Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::A);
        let patience_passes = async || {
            let asked = forwarder.resolve(&query, false);
            let passes = async {
                clock.sleepers(1).await;
                clock.advance(PATIENCE);
            };
            assert_eq!(tokio::join!(asked, passes).0, None);
        };
        for _ in 0..FAILURES {
            patience_passes().await;
        }
        assert_eq!(forwarder.resolve(&query, false).await, None, "and no time has passed");
        clock.advance(REST);
        patience_passes().await;
    }

    #[test]
    fn servers_are_read_as_resolvers_do() {
        let text = "# comment\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # note\nnameserver 127.0.0.53\n\
                    nameservers 192.0.2.9\nsearch example.com\nnameserver nonsense\n";
        let servers: Vec<_> = servers_parse(text).map(|server| server.to_string()).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }
}
