//! How far one gets on the way to a host and port: the name, the connection, TLS, the first byte. Each step is bounded, and
//! what comes after one that fails is not tried.
//!
//! It blocks, and uses the network namespace of the thread that it runs in: the agent runs it inside a pod's.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long a server may take to answer one query: answers come from the cluster.
const QUERY: Duration = Duration::from_secs(2);
/// How often a query is sent: one datagram may be lost.
const QUERIES: usize = 2;
/// How long a connection may take to be made: a SYN that is dropped is sent again after one second, and after two more.
const CONNECT: Duration = Duration::from_secs(4);
/// How long the first byte may take.
const ANSWER: Duration = Duration::from_secs(10);
/// No more connections than this are made: it is a look, no load.
pub const MOST_TRIES: usize = 20;

/// What is to be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `http` or `https`, or nothing: then a connection is all.
    pub scheme: String,
    /// What is asked for by `http` and `https`.
    pub path: String,
    /// How many connections are made, to see loss: 1 to [`MOST_TRIES`].
    pub tries: usize,
}

/// By whom names are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Asked in turn; without any the machine's own way is gone.
    pub servers: Vec<IpAddr>,
    /// Domains that a name is looked for in.
    pub search: Vec<String>,
}

/// One step of the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `DNS`, `TCP`, `TLS` or `first byte`.
    pub name: String,
    /// Whether it was taken.
    pub ok: bool,
    /// How long it took, in thousandths of a second.
    pub millis: u64,
    /// What came of it.
    pub said: String,
}

fn step<T>(name: &str, work: impl FnOnce() -> Result<(T, String), String>) -> (Step, Option<T>) {
    let begin = Instant::now();
    let (ok, said, value) = match work() {
        Ok((value, said)) => (true, said, Some(value)),
        Err(said) => (false, said, None),
    };
    let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    (Step { name: name.to_owned(), ok, millis, said }, value)
}

/// Goes as far as it comes.
pub fn reach(ask: &Ask, resolver: &Resolver) -> Vec<Step> {
    let mut steps = Vec::new();
    let address = match ask.host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => {
            let (dns, found) = step("DNS", || resolver.resolve(&ask.host));
            steps.push(dns);
            match found {
                Some(address) => address,
                None => return steps,
            }
        }
    };
    let (tcp, stream) = step("TCP", || connect(SocketAddr::new(address, ask.port), ask.tries));
    steps.push(tcp);
    let Some(mut stream) = stream else { return steps };
    match ask.scheme.as_str() {
        "https" => steps.push(step("TLS", || shake_hands(ask, stream)).0),
        "http" => steps.push(step("first byte", || first_byte(ask, &mut stream)).0),
        _ => {}
    }
    steps
}

/// Connects several times; the last connection stays.
fn connect(address: SocketAddr, tries: usize) -> Result<(TcpStream, String), String> {
    let tries = tries.clamp(1, MOST_TRIES);
    let (mut last, mut lost, mut slowest) = (None, Vec::new(), Duration::ZERO);
    for _ in 0..tries {
        let begin = Instant::now();
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => {
                slowest = slowest.max(begin.elapsed());
                last = Some(stream);
            }
            Err(error) => lost.push(words(&error)),
        }
        // Who answers nothing once answers nothing often: each try takes its time.
        if last.is_none() && lost.len() >= 2 {
            break;
        }
    }
    let made = tries - lost.len().min(tries);
    match last {
        Some(stream) if lost.is_empty() => {
            let said = format!("{address}: {tries} of {tries} connections, the slowest in {slowest:.1?}");
            Ok((stream, said))
        }
        Some(stream) => {
            let said = format!("{address}: only {made} of {tries} connections; {}", lost[0]);
            Ok((stream, said))
        }
        None => Err(format!("{address}: {}", lost.first().map_or("", String::as_str))),
    }
}

/// What an error of the network means on the way.
fn words(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            "nothing answers: packets are dropped on the way (a NetworkPolicy, a firewall, a node that is down)".to_owned()
        }
        ErrorKind::ConnectionRefused => {
            "refused: the address is reached, and nobody listens on that port (or a Service has no endpoint that is ready)".to_owned()
        }
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => format!("no route: {error}"),
        _ => error.to_string(),
    }
}

fn first_byte(ask: &Ask, stream: &mut TcpStream) -> Result<((), String), String> {
    let failed = |error: std::io::Error| words(&error);
    stream
        .set_read_timeout(Some(ANSWER))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER)))
        .map_err(failed)?;
    let path = if ask.path.starts_with('/') { ask.path.clone() } else { format!("/{}", ask.path) };
    if path.contains(|c: char| c.is_control() || c == ' ') {
        return Err(format!("{path:?} is no path"));
    }
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: decapod-doctor\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        ask.host, ask.port
    );
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut start = [0; 256];
    let read = stream.read(&mut start).map_err(|error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => format!("connected, and no byte came in {ANSWER:?}"),
        _ => words(&error),
    })?;
    if read == 0 {
        return Err("the connection was closed before a byte came".to_owned());
    }
    let text = String::from_utf8_lossy(&start[..read]);
    Ok(((), text.lines().next().unwrap_or_default().to_owned()))
}

/// The handshake goes up to the certificate, which nobody here can vouch for: that it came says that the way is free.
fn shake_hands(ask: &Ask, mut stream: TcpStream) -> Result<((), String), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ask.host.clone().try_into().map_err(|_| format!("{} is no name for TLS", ask.host))?;
    let mut session =
        rustls::ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    stream
        .set_read_timeout(Some(ANSWER))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER)))
        .map_err(|error| words(&error))?;
    while session.is_handshaking() {
        if let Err(error) = session.complete_io(&mut stream) {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
            return match cause {
                Some(rustls::Error::InvalidCertificate(why)) => {
                    Ok(((), format!("the server shows a certificate (not checked here: {why:?})")))
                }
                Some(other) => Err(format!("no TLS: {other}; does the port speak TLS?")),
                None => Err(words(&error)),
            };
        }
    }
    Ok(((), "the handshake is done".to_owned()))
}

impl Resolver {
    /// The first IPv4 address of a name: as it is if it has dots enough, then in the domains, as in `/etc/resolv.conf` with
    /// `ndots:5`.
    fn resolve(&self, name: &str) -> Result<(IpAddr, String), String> {
        let plain = name.trim_end_matches('.').to_owned();
        let in_domains = self.search.iter().map(|domain| format!("{plain}.{domain}"));
        let mut names: Vec<String> = in_domains.collect();
        match name.ends_with('.') || plain.matches('.').count() >= 5 {
            true => names.insert(0, plain),
            false => names.push(plain),
        }
        let mut why = String::from("no server to ask");
        for server in &self.servers {
            for name in &names {
                match query(SocketAddr::new(*server, 53), name) {
                    Ok(address) => {
                        return Ok((IpAddr::V4(address), format!("{name} is {address}, says {server}")));
                    }
                    Err(Refusal::No(said)) => why = said,
                    // A server that does not answer is not asked for more names.
                    Err(Refusal::Silent(said)) => {
                        why = said;
                        break;
                    }
                }
            }
        }
        Err(why)
    }
}

enum Refusal {
    /// It answered that there is none.
    No(String),
    /// It did not answer.
    Silent(String),
}

fn query(server: SocketAddr, name: &str) -> Result<Ipv4Addr, Refusal> {
    let question = question(name).ok_or_else(|| Refusal::No(format!("{name:?} is no name")))?;
    let mut why = String::new();
    for _ in 0..QUERIES {
        let asked = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
            socket.set_read_timeout(Some(QUERY))?;
            socket.connect(server)?;
            socket.send(&question)?;
            let mut answer = [0; 1_232];
            let read = socket.recv(&mut answer)?;
            Ok(answer[..read].to_vec())
        });
        match asked {
            Ok(answer) => {
                return read(&answer).map_err(|said| Refusal::No(format!("{server} says of {name}: {said}")));
            }
            Err(error) => why = format!("{server} does not answer: {}", words(&error)),
        }
    }
    Err(Refusal::Silent(why))
}

/// A query for the A record of a name (RFC 1035, section 4.1).
fn question(name: &str) -> Option<Vec<u8>> {
    let mut message = vec![0xdc, 0x0c, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    (message.len() <= 255 + 17).then_some(message)
}

/// The first address in an answer, or what it says instead.
fn read(answer: &[u8]) -> Result<Ipv4Addr, String> {
    let short = || "an answer that is cut off".to_owned();
    let head = answer.get(..12).ok_or_else(short)?;
    match head[3] & 0x0f {
        0 => {}
        2 => return Err("it failed (SERVFAIL)".to_owned()),
        3 => return Err("there is no such name (NXDOMAIN)".to_owned()),
        5 => return Err("it refuses to answer".to_owned()),
        code => return Err(format!("error {code}")),
    }
    let count = u16::from_be_bytes([head[6], head[7]]);
    let mut at = skip_name(answer, 12).ok_or_else(short)? + 4;
    for _ in 0..count {
        at = skip_name(answer, at).ok_or_else(short)?;
        let record = answer.get(at..at + 10).ok_or_else(short)?;
        let length = usize::from(u16::from_be_bytes([record[8], record[9]]));
        let data = answer.get(at + 10..at + 10 + length).ok_or_else(short)?;
        if record[..2] == [0, 1]
            && let Ok(address) = <[u8; 4]>::try_from(data)
        {
            return Ok(address.into());
        }
        at += 10 + length;
    }
    Err("the name has no IPv4 address (is it a headless Service without ready pods?)".to_owned())
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn ask(port: u16, scheme: &str) -> Ask {
        let (host, path) = ("127.0.0.1".to_owned(), "/healthz".to_owned());
        Ask { host, port, scheme: scheme.to_owned(), path, tries: 2 }
    }

    /// Serves as many connections with these bytes.
    fn serve(connections: usize, answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(connections) {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut asked = [0; 1_024];
                    // The other end may be gone: it only connected.
                    if stream.read(&mut asked).is_ok_and(|read| read > 0) {
                        stream.write_all(answer).ok();
                    }
                });
            }
        });
        port
    }

    #[test]
    fn each_step_is_told() {
        let port = serve(2, b"HTTP/1.1 200 OK\r\n\r\n");
        let steps = reach(&ask(port, "http"), &Resolver::default());
        let told: Vec<_> = steps.iter().map(|step| (step.name.as_str(), step.ok)).collect();
        assert_eq!(told, [("TCP", true), ("first byte", true)], "{steps:?}");
        assert!(steps[0].said.contains("2 of 2"), "{steps:?}");
        assert_eq!(steps[1].said, "HTTP/1.1 200 OK");
    }

    #[test]
    fn a_port_without_tls_and_one_that_nobody_listens_on_are_told() {
        let port = serve(2, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let steps = reach(&ask(port, "https"), &Resolver::default());
        assert!(!steps[1].ok && steps[1].said.contains("does the port speak TLS"), "{steps:?}");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let steps = reach(&ask(free, "http"), &Resolver::default());
        assert_eq!(steps.len(), 1);
        assert!(steps[0].said.contains("nobody listens"), "{steps:?}");
    }

    #[test]
    fn answers_of_dns_are_read() {
        let mut answer = question("web.default.svc.cluster.local").unwrap();
        answer[2] = 0x81;
        assert!(read(&answer).unwrap_err().contains("no IPv4"));
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 96, 0, 7]);
        assert_eq!(read(&answer), Ok(Ipv4Addr::new(10, 96, 0, 7)));
        assert!(read(&answer[..answer.len() - 1]).unwrap_err().contains("cut off"));
        answer[3] = 3;
        assert!(read(&answer).unwrap_err().contains("NXDOMAIN"));
        assert!(question("a..b").is_none());
    }
}
