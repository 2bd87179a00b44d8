//! What the network carries: bytes between pods of two nodes beside bytes between the nodes themselves, and questions to
//! cluster DNS from within a pod. `bench --network` measures this alone.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use decapod_tests::cluster::{Cluster, DNS};
use decapod_tests::images;
use decapod_tests::poll;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use super::figures::{Mark, cpu, percentiles, say};

/// Per hundred of the bare path, and questions a second.
const PODS: Mark = Mark::AtLeast(90.0);
const QUESTIONS: Mark = Mark::AtLeast(50_000.0);

/// How long a stream runs, and how often each way is measured, in turns.
const STREAM: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
/// As `iperf3` writes.
const CHUNK: usize = 128 << 10;
/// Services whose names are asked for; clients, and how many questions of each are under way.
const SERVICES: usize = 1_000;
const CLIENTS: usize = 8;
const WINDOW: usize = 16;
const ASKING: Duration = Duration::from_secs(5);
/// A question that has no answer by then was lost.
const LOST: Duration = Duration::from_millis(500);
/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(300);
/// By this variable the processes of the pods are known.
const MARK: &str = "DECAPOD_BENCH_POD";

/// A cluster of three nodes, with a pod on each of the further two.
pub(crate) fn measure() -> Result<()> {
    println!("\nThe network between two nodes of a machine:");
    images::archive(&images::BUSYBOX)?;
    let cluster = Cluster::of_nodes(3)?;
    let measured = of_cluster(&cluster);
    let down = cluster.down();
    measured?;
    down.map(drop)
}

fn of_cluster(cluster: &Cluster) -> Result<()> {
    cluster.up()?;
    cluster.import(&images::BUSYBOX)?;
    let nodes = cluster.nodes()?;
    let (near, far) = (nodes.get(1).context("a second node")?, nodes.get(2).context("a third node")?);
    let services = (0..SERVICES).map(|number| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("svc-{number}")},
            "spec": {"ports": [{"port": 80}]}})
    });
    let pods = [("near", near), ("far", far)].map(|(name, node)| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": node.name,
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "busybox:1",
                "command": ["sleep", "3600"], "env": [{"name": MARK, "value": name}]}]}})
    });
    let items: Vec<Value> = pods.into_iter().chain(services).collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    let mut places = Vec::new();
    for name in ["near", "far"] {
        let ready = cluster.ready("default", name)?;
        let address = ready["status"]["podIP"].as_str().context("no address")?.parse()?;
        places.push(Place { namespace: namespace_of(name)?, address });
    }
    let node = |node: &decapod_tests::nodes::Node| Place {
        namespace: Path::new("/run/netns").join(&node.name),
        address: node.address,
    };
    throughput([node(near), node(far)], [&places[0], &places[1]])?;
    names(&places[0].namespace)
}

/// A network namespace, and the address by which others reach it.
struct Place {
    namespace: PathBuf,
    address: Ipv4Addr,
}

/// The namespace of a pod, by the variable that its process has.
fn namespace_of(pod: &str) -> Result<PathBuf> {
    let wanted = format!("{MARK}={pod}");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // A process may end while it is looked at.
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes()) {
            return Ok(entry.path().join("ns/net"));
        }
    }
    Err(anyhow!("no process of the pod {pod} was found"))
}

/// Runs `work` in a thread of its own that is in a namespace.
fn within<T: Send + 'static>(
    namespace: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let namespace = File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
    Ok(std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    }))
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// Streams by the bare path and by the pods' in turns, so that what else the machine does meets both.
fn throughput(nodes: [Place; 2], pods: [&Place; 2]) -> Result<()> {
    let (mut bare, mut through) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(stream(&nodes[0], &nodes[1])?);
        through.push(stream(pods[0], pods[1])?);
    }
    let middle = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (bare, through) = (middle(&mut bare), middle(&mut through));
    say("TCP between the nodes' own addresses", bare, "Gb/s", None);
    say("TCP between pods of these nodes", through, "Gb/s", None);
    say("of the bare path", 100.0 * through / bare, "%", Some(PODS));
    Ok(())
}

/// The rate of one TCP stream, in 10^9 bits a second.
fn stream(from: &Place, to: &Place) -> Result<f64> {
    let (ready, listening) = std::sync::mpsc::channel();
    let receiver = within(&to.namespace, move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        ready.send(listener.local_addr()?.port())?;
        let (mut stream, _) = listener.accept()?;
        let (mut buffer, mut total, begin) = (vec![0; CHUNK], 0_usize, Instant::now());
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(total as f64 * 8e-9 / begin.elapsed().as_secs_f64()),
                length => total += length,
            }
        }
    })?;
    let target = SocketAddr::from((to.address, listening.recv().context("nobody listens")?));
    let sender = within(&from.namespace, move || {
        let mut stream = TcpStream::connect(target)?;
        let (buffer, begin) = (vec![0; CHUNK], Instant::now());
        while begin.elapsed() < STREAM {
            stream.write_all(&buffer)?;
        }
        Ok(())
    })?;
    joined(sender)?;
    joined(receiver)
}

/// Clients in a pod that keep many questions for the names of Services under way.
fn names(namespace: &Path) -> Result<()> {
    let known = namespace.to_owned();
    // Names follow Services: the last one is there when the others are.
    poll::until("cluster DNS to know the Services", PATIENCE, move || {
        let asked = joined(within(&known, || {
            let socket = socket()?;
            socket.send(&question(SERVICES - 1, 1)?)?;
            let mut answer = [0; 512];
            let received = socket.recv(&mut answer);
            // One answer, no error.
            Ok(received.is_ok_and(|_| answer[3] & 0x0f == 0 && answer[7] == 1))
        })?)?;
        Ok(if asked { Ok(()) } else { Err("it does not".to_owned()) })
    })?;
    let servers = servers()?;
    let used = || servers.iter().map(|pid| cpu(*pid)).sum::<Result<Duration>>();
    let before = used()?;
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| within(namespace, move || client(number))).collect::<Result<_>>()?;
    let (mut latencies, mut lost) = (Vec::new(), 0);
    for client in clients {
        let (answered, without) = joined(client)?;
        latencies.extend(answered);
        lost += without;
    }
    let spent = used()? - before;
    let count = latencies.len() as f64;
    say("questions to cluster DNS", count / ASKING.as_secs_f64(), "/s", Some(QUESTIONS));
    say("CPU of the server per question", spent.as_secs_f64() * 1e6 / count, "us", None);
    say("questions without an answer", f64::from(lost), "", None);
    percentiles("answer", latencies, None, None);
    Ok(())
}

/// The processes of cluster DNS, on all nodes.
fn servers() -> Result<Vec<i64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // A process may end while it is looked at.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        if words.get(1) == Some(&&b"dns"[..]) && words.iter().any(|word| word.starts_with(b"--domain=")) {
            found.push(pid);
        }
    }
    ensure!(!found.is_empty(), "no process of cluster DNS was found");
    Ok(found)
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((DNS, 53))?;
    socket.set_read_timeout(Some(LOST))?;
    Ok(socket)
}

/// The question for a Service's address, with an id.
fn question(service: usize, id: u16) -> Result<Vec<u8>> {
    // recursion desired, one question
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in [&*format!("svc-{}", service % SERVICES), "default", "svc", "cluster", "local"] {
        message.push(u8::try_from(label.len())?);
        message.extend(label.as_bytes());
    }
    // the root, A, IN
    message.extend([0, 0, 1, 0, 1]);
    Ok(message)
}

/// What the answers took, and how many never came.
fn client(number: usize) -> Result<(Vec<Duration>, u32)> {
    let socket = socket()?;
    let questions: Vec<_> =
        (0..SERVICES).map(|service| question(service + number, 0)).collect::<Result<_>>()?;
    let mut turn = 0;
    let mut ask = |slot: usize| -> Result<Instant> {
        let mut bytes = questions[turn % SERVICES].clone();
        turn += 1;
        bytes[..2].copy_from_slice(&u16::try_from(slot)?.to_be_bytes());
        let now = Instant::now();
        socket.send(&bytes)?;
        Ok(now)
    };
    let mut sent = (0..WINDOW).map(&mut ask).collect::<Result<Vec<_>>>()?;
    let (begin, mut latencies, mut lost, mut answer) = (Instant::now(), Vec::new(), 0, [0; 512]);
    while begin.elapsed() < ASKING {
        match socket.recv(&mut answer) {
            Ok(_) => {
                let slot = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
                latencies.push(sent.get(slot).context("an id that was not asked by")?.elapsed());
                sent[slot] = ask(slot)?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // All that were under way are gone.
                lost += u32::try_from(WINDOW)?;
                sent = (0..WINDOW).map(&mut ask).collect::<Result<_>>()?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((latencies, lost))
}
