//! How many questions cluster DNS answers per second, how fast, and in how much memory.
//!
//! `cargo run --release -p decapod-network --example bench_dns`. The server is a process of its own, with
//! 1,000 Services from a small API server inside it; the load comes from this process, over loopback, on
//! the same cores.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use decapod_client::clock::SystemClock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_network::dns::{self, Options, Upstreams};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::json;

#[path = "../tests/network/api.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "shared with the tests, which use more of it")]
mod api;

const SERVICES: u16 = 1_000;
const PORT: u16 = 15_353;
const CLIENTS: u16 = 8;
/// Questions of one client that wait for an answer.
const WINDOW: usize = 4;
const DURATION: Duration = Duration::from_secs(5);

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(serve());
    }
    let mut server = Command::new(std::env::current_exe()?).arg("serve").spawn()?;
    let measured = measure(&server);
    server.kill()?;
    server.wait()?;
    measured
}

async fn serve() -> Result<(), Failure> {
    let api = api::Api::new();
    api.put("namespaces", "", "default", &json!({}));
    for number in 0..SERVICES {
        let address = format!("10.96.{}.{}", number >> 8, number & 255);
        let spec =
            json!({"clusterIP": address, "clusterIPs": [address], "ports": [{"name": "http", "port": 80}]});
        api.put("services", "default", &format!("svc-{number}"), &json!({"spec": spec}));
    }
    let options = Options {
        listen: (Ipv4Addr::LOCALHOST, PORT).into(),
        upstreams: Upstreams::Servers(Vec::new()),
        health: None,
        ready: None,
        ..Options::default()
    };
    let (supervisor, clock) = (Supervisor::new(), Arc::new(SystemClock::new()));
    let informers = Informers::new(api.client(), supervisor.clone(), clock.clone());
    Ok(dns::run(options, informers, supervisor, clock).await?)
}

fn measure(server: &Child) -> Result<(), Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    wait(address)?;
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| std::thread::spawn(move || client(address, number))).collect();
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.join().map_err(|_| "a client panicked")??);
    }
    latencies.sort();
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 1000].as_secs_f64() * 1e3;
    println!(
        "{:.0} questions/s, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, {}",
        latencies.len() as f64 / DURATION.as_secs_f64(),
        at(500),
        at(990),
        at(999),
        memory(server.id())?,
    );
    Ok(())
}

/// Waits until the server knows the cluster.
fn wait(address: SocketAddr) -> Result<(), Failure> {
    for _ in 0..100 {
        let socket = socket(address)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.send(&question(1, SERVICES - 1)?).ok();
        let mut buffer = [0; 512];
        if let Ok(length) = socket.recv(&mut buffer)
            && !Message::from_vec(&buffer[..length])?.answers.is_empty()
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the server does not answer".into())
}

fn client(address: SocketAddr, number: u16) -> Result<Vec<Duration>, Failure> {
    let socket = socket(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let questions: Vec<_> =
        (0..SERVICES).map(|n| question(0, (n + number) % SERVICES)).collect::<Result<_, _>>()?;
    let mut sent = [Instant::now(); WINDOW];
    let send = |slot: usize, turn: usize| -> Result<Instant, Failure> {
        let mut bytes = questions[turn % questions.len()].clone();
        bytes[..2].copy_from_slice(&u16::try_from(slot)?.to_be_bytes());
        let now = Instant::now();
        socket.send(&bytes)?;
        Ok(now)
    };
    for (slot, sent) in sent.iter_mut().enumerate() {
        *sent = send(slot, slot)?;
    }
    let (begin, mut latencies, mut buffer) = (Instant::now(), Vec::new(), [0; 512]);
    while begin.elapsed() < DURATION {
        socket.recv(&mut buffer)?;
        let slot = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
        latencies.push(sent[slot].elapsed());
        sent[slot] = send(slot, latencies.len())?;
    }
    Ok(latencies)
}

fn socket(address: SocketAddr) -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(address)?;
    Ok(socket)
}

fn question(id: u16, service: u16) -> Result<Vec<u8>, Failure> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(format!("svc-{service}.default.svc.cluster.local."))?;
    message.add_query(Query::query(name, RecordType::A));
    Ok(message.to_vec()?)
}

/// What the server takes of its own, and with its share of what it maps.
fn memory(process: u32) -> Result<String, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let lines = status.lines().filter(|line| line.starts_with("Pss:") || line.starts_with("Pss_Anon:"));
    Ok(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", "))
}
