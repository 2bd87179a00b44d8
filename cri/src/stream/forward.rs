//! Port forwarding: connections to a pod's ports.
//!
//! Over a WebSocket's channels the ports are known from the start, with two channels each: data and errors, both
//! opened by the port's number. Over SPDY, plain or inside a WebSocket, a client opens a pair of streams for each
//! connection, as many as it likes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use decapod_client::clock::Clock;
use decapod_client::error::chain;
use decapod_runtime::{Connection, Runtime};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::channel::{self, AHEAD, Channels, Idle, V4, V4_BASE64};
use super::session::form;
use super::spdy::{self, Event, Headers, Reader, StreamId};
use super::upgrade::{self, Bytestream, Upgrade};
use super::{Host, Refusal};

/// Ports per connection of channels: their numbers are bytes, two to a port.
const MAX_PORTS: usize = 64;
/// Connections at once through one client: each has a socket here and one in the pod.
const MAX_PAIRS: usize = 1024;
/// Pieces that wait for a pod that reads slowly.
const WAITING: usize = 4;
/// How much of a connection is sent at once.
const CHUNK: usize = 32 * 1024;
/// After the client has said its last, a pod that says nothing for so long will not say more.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// The protocol of SPDY's streams.
pub(crate) const PROTOCOL: &str = "portforward.k8s.io";
/// The same inside a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// The sandbox whose ports are meant.
pub struct Target {
    /// Who has it.
    pub runtime: Arc<dyn Runtime>,
    /// The time, and who watches over the connections.
    pub host: Host,
    /// Its id.
    pub sandbox: String,
    /// What a client knows it by, in what it is told.
    pub name: String,
    /// The pod's UID, if it is known.
    pub uid: String,
}

/// Forwards connections to the ports that the client names: in the `query` over channels, by stream over SPDY.
///
/// # Errors
/// When the query names no port where it must, or there is no protocol in common.
pub fn serve(
    target: Target,
    query: Option<&str>,
    headers: &HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let pod = Arc::new(target);
    match upgrade {
        Upgrade::WebSocket(upgrade) => {
            let upgrade = upgrade::agree(*upgrade, headers, &[TUNNEL, V4, V4_BASE64])?;
            if upgrade.selected_protocol().is_some_and(|p| p == TUNNEL) {
                return Ok(upgrade.on_upgrade(|socket| pairs(pod, Bytestream::tunnel(socket))));
            }
            let ports = ports(query.unwrap_or_default())?;
            Ok(upgrade.on_upgrade(|socket| channels(pod, Channels::over(socket), ports)))
        }
        Upgrade::Spdy(upgrade, headers) => {
            let protocol = spdy::negotiate(&headers, &[PROTOCOL])?;
            let supervisor = pod.host.supervisor.clone();
            supervisor.spawn_until_shutdown("port-forward", async move {
                match Bytestream::plain(upgrade).await {
                    Ok(bytes) => pairs(pod, bytes).await,
                    Err(error) => tracing::debug!(%error, "an upgrade to SPDY failed"),
                }
            });
            Ok(spdy::switching(protocol))
        }
    }
}

/// The ports that a query names.
fn ports(query: &str) -> Result<Vec<u16>, Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let mut ports = Vec::new();
    for (key, value) in form(query) {
        if matches!(key.as_str(), "port" | "ports") {
            for text in value.split(',') {
                let port = text.parse::<u16>();
                let port =
                    port.map_err(|error| bad(format!("unable to parse {text:?} as a port: {error}")))?;
                if port == 0 {
                    return Err(bad(format!("port {text:?} must be > 0")));
                }
                ports.push(port);
            }
        }
    }
    match ports.len() {
        0 => Err(bad("query parameter \"port\" is required".to_owned())),
        1..=MAX_PORTS => Ok(ports),
        many => Err(bad(format!("{many} ports are more than the {MAX_PORTS} that one connection has"))),
    }
}

/// One direction of a stream to the client.
#[derive(Clone)]
struct Outlet {
    out: mpsc::Sender<Bytes>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Channel(u8),
    Stream(StreamId),
}

impl Outlet {
    /// Sends bytes; false once the client is gone.
    async fn send(&self, bytes: &[u8]) -> bool {
        let message = match self.kind {
            Kind::Channel(channel) => channel::message(channel, bytes),
            Kind::Stream(stream) => spdy::data(stream, false, bytes),
        };
        self.out.send(message).await.is_ok()
    }

    /// Says that nothing follows, where the protocol can.
    async fn end(&self) {
        if let Kind::Stream(stream) = self.kind {
            // A client that is gone does not care.
            let _gone = self.out.send(spdy::data(stream, true, &[])).await;
        }
    }
}

/// One forwarded connection.
struct Pair {
    pod: Arc<Target>,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    data: Outlet,
    error: Outlet,
    /// Cancelled when the client gives the connection up.
    given_up: CancellationToken,
}

impl Pair {
    /// Connects, carries, and says what went wrong.
    async fn run(self) {
        let Self { pod, port, input, data, error, given_up } = self;
        match pod.runtime.port_forward(&pod.sandbox, port).await {
            Ok(connection) => {
                let carried = carry(connection, input, &data, &*pod.host.clock);
                // Both streams are ended all the same: the client waits for what the error stream says.
                if let Some(Err(cause)) = given_up.run_until_cancelled(carried).await {
                    refuse(&pod, port, &error, chain(&cause)).await;
                }
            }
            Err(cause) => refuse(&pod, port, &error, chain(&cause)).await,
        }
        data.end().await;
        error.end().await;
    }
}

/// Says why a port is not reached.
async fn refuse(pod: &Target, port: u16, error: &Outlet, cause: String) {
    let (name, uid) = (&pod.name, &pod.uid);
    let text = format!("error forwarding port {port} to pod {name}, uid {uid}: {cause}");
    tracing::debug!(text, "a port is not there");
    error.send(text.as_bytes()).await;
}

/// Carries both directions until the pod has said its last. An error says that the port was never reached: runtimes
/// behind a socket know it no sooner.
async fn carry(
    connection: Connection,
    input: mpsc::Receiver<Bytes>,
    data: &Outlet,
    clock: &dyn Clock,
) -> std::io::Result<()> {
    let (source, sink) = split(connection);
    let idle = Idle::default();
    let down = pump(source, data, &idle);
    let up = async {
        feed(sink, input).await;
        loop {
            clock.sleep(LAST_WORDS).await;
            if !idle.take() {
                return;
            }
        }
    };
    tokio::select! {
        reached = down => reached,
        () = up => Ok(()),
    }
}

/// Sends what the pod says.
async fn pump(mut source: ReadHalf<Connection>, data: &Outlet, idle: &Idle) -> std::io::Result<()> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    let mut spoken = false;
    loop {
        buffer.clear();
        match source.read_buf(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(_) => idle.touch(),
            Err(error) if spoken => {
                tracing::debug!(%error, "a forwarded connection ended early");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        spoken = true;
        if !data.send(&buffer).await {
            return Ok(());
        }
    }
}

/// Tells the pod what the client says, to its end.
async fn feed(mut sink: WriteHalf<Connection>, mut input: mpsc::Receiver<Bytes>) {
    let written = async {
        while let Some(bytes) = input.recv().await {
            sink.write_all(&bytes).await?;
            sink.flush().await?;
        }
        sink.shutdown().await
    };
    if let Err(error) = written.await {
        tracing::debug!(%error, "a forwarded connection does not read");
    }
}

/// Forwards the ports of a WebSocket's channels.
async fn channels(pod: Arc<Target>, channels: Channels, ports: Vec<u16>) {
    let Channels { source, out, sending, idle } = channels;
    let clock = pod.host.clock.clone();
    let work = async move {
        let Some(mut source) = source.await else { return };
        let mut inputs = Vec::new();
        let mut tasks = JoinSet::new();
        for (index, port) in ports.into_iter().enumerate() {
            let number = u8::try_from(index * 2).expect("MAX_PORTS pairs fit a byte");
            let outlet = |channel| Outlet { out: out.clone(), kind: Kind::Channel(channel) };
            let (data, error) = (outlet(number), outlet(number + 1));
            if !data.send(&port.to_le_bytes()).await || !error.send(&port.to_le_bytes()).await {
                return;
            }
            let (input, receiver) = mpsc::channel(WAITING);
            let given_up = CancellationToken::new();
            tasks.spawn(Pair { pod: pod.clone(), port, input: receiver, data, error, given_up }.run());
            inputs.push(input);
        }
        drop(out);
        let client = async {
            while let Some((channel, bytes)) = source.next().await {
                // Odd channels carry errors, which clients do not send.
                if channel.is_multiple_of(2)
                    && let Some(input) = inputs.get(usize::from(channel / 2))
                {
                    // What comes for a connection that has ended goes nowhere.
                    let _ended = input.send(bytes).await;
                }
            }
        };
        // The connection ends when the client goes, or when all ports have been closed from inside.
        tokio::select! {
            () = client => return,
            () = async { while tasks.join_next().await.is_some() {} } => {}
            () = idle.expired(&*clock) => return,
        }
        channel::linger(&mut source, &*clock).await;
    };
    tokio::join!(work, sending);
}

/// Forwards each pair of streams that a client opens.
async fn pairs(pod: Arc<Target>, bytes: Bytestream) {
    let Bytestream { reader, mut writer } = bytes;
    let (out, mut frames) = mpsc::channel::<Bytes>(AHEAD);
    let idle = Idle::default();
    let moved = idle.clone();
    let sending = async move {
        while let Some(frame) = frames.recv().await {
            moved.touch();
            if writer.send(frame).await.is_err() {
                return;
            }
        }
        // A client that went away needs no farewell.
        let _gone = writer.close().await;
    };
    let clock = pod.host.clock.clone();
    let work = async move {
        let mut reader = Reader::new(reader, out.clone());
        let mut pairs = Pairs { pod, out: out.clone(), open: HashMap::new(), inputs: HashMap::new() };
        let mut tasks: JoinSet<StreamId> = JoinSet::new();
        let mut expired = std::pin::pin!(idle.expired(&*clock));
        loop {
            let event = tokio::select! {
                event = reader.next() => event,
                Some(Ok(ended)) = tasks.join_next() => {
                    pairs.inputs.remove(&ended);
                    continue;
                }
                () = &mut expired => break,
            };
            idle.touch();
            match event {
                Ok(Some(event)) => pairs.take(event, &mut tasks).await,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(error = chain(&error), "a client of port forwarding is gone");
                    break;
                }
            }
        }
        // A client that is gone does not care.
        let _gone = out.send(spdy::go_away(reader.last())).await;
    };
    tokio::join!(work, sending);
}

/// The streams of one client.
struct Pairs {
    pod: Arc<Target>,
    out: mpsc::Sender<Bytes>,
    /// Streams for errors that wait for the stream of their data, by request.
    open: HashMap<String, StreamId>,
    inputs: HashMap<StreamId, Inlet>,
}

/// Where the data of a stream goes.
struct Inlet {
    /// Until the client has said its last.
    input: Option<mpsc::Sender<Bytes>>,
    given_up: CancellationToken,
}

impl Pairs {
    async fn take(&mut self, event: Event, tasks: &mut JoinSet<StreamId>) {
        match event {
            Event::Open { stream, headers, fin } => {
                if let Some((pair, input)) = self.pair(stream, &headers).await {
                    let given_up = pair.given_up.clone();
                    self.inputs.insert(stream, Inlet { input: Some(input).filter(|_| !fin), given_up });
                    tasks.spawn(async move {
                        pair.run().await;
                        stream
                    });
                }
            }
            Event::Data { stream, bytes, fin } => {
                let Some(inlet) = self.inputs.get_mut(&stream) else { return };
                if let Some(input) = inlet.input.as_ref().filter(|_| !bytes.is_empty()) {
                    // What comes for a connection that has ended goes nowhere.
                    let _ended = input.send(bytes).await;
                }
                if fin {
                    inlet.input = None;
                }
            }
            Event::Reset { stream } => {
                if let Some(inlet) = self.inputs.remove(&stream) {
                    inlet.given_up.cancel();
                }
                self.open.retain(|_, error| *error != stream);
            }
        }
    }

    /// The pair that is complete with this stream.
    async fn pair(&mut self, stream: StreamId, headers: &Headers) -> Option<(Pair, mpsc::Sender<Bytes>)> {
        let request = match headers.get("requestid") {
            // Older clients number their pairs by their streams: first that for errors, then that for data.
            "" if headers.get("streamtype") == "data" => stream.saturating_sub(2).to_string(),
            "" => stream.to_string(),
            id => id.to_owned(),
        };
        let port = headers.get("port").parse::<u16>().ok().filter(|port| *port > 0);
        let full = self.open.len() + self.inputs.len() >= MAX_PAIRS;
        let error = match (headers.get("streamtype"), port) {
            ("error", Some(_)) if !full => {
                self.open.insert(request, stream);
                return None;
            }
            ("data", Some(_)) if !full => self.open.remove(&request),
            _ => None,
        };
        let (Some(error), Some(port)) = (error, port) else {
            // A client that is gone does not care.
            let _gone = self.out.send(spdy::refuse(stream)).await;
            return None;
        };
        let outlet = |stream| Outlet { out: self.out.clone(), kind: Kind::Stream(stream) };
        let (input, receiver) = mpsc::channel(WAITING);
        let (pod, given_up) = (self.pod.clone(), CancellationToken::new());
        let (data, error) = (outlet(stream), outlet(error));
        Some((Pair { pod, port, input: receiver, data, error, given_up }, input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_the_query() {
        assert_eq!(ports("ports=80&ports=81,82").unwrap(), [80, 81, 82]);
        for bad in ["", "ports=", "ports=0", "ports=65536", "ports=http"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_connection_ends_when_the_pod_has_said_its_last() {
        let (mut peer, connection) = tokio::io::duplex(1024);
        let (out, mut sent) = mpsc::channel(AHEAD);
        let (input, receiver) = mpsc::channel(WAITING);
        let data = Outlet { out, kind: Kind::Stream(5) };
        let clock = decapod_client::clock::ManualClock::default();
        let carried = carry(Box::pin(connection), receiver, &data, &clock);
        let pod = async {
            input.send(b"ask"[..].into()).await.unwrap();
            drop(input);
            let mut question = Vec::new();
            // The client's last word is the end of the pod's input.
            peer.read_to_end(&mut question).await.unwrap();
            assert_eq!(question, b"ask");
            peer.write_all(b"answer").await.unwrap();
            assert_eq!(sent.recv().await.unwrap(), spdy::data(5, false, b"answer"));
            clock.sleepers(1).await;
            clock.advance(LAST_WORDS);
            // It spoke within that time, and may go on; but not for ever.
            clock.sleepers(1).await;
            clock.advance(LAST_WORDS);
        };
        tokio::join!(carried, pod).0.unwrap();
    }
}
