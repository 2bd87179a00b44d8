//! Throw-away network namespaces with small servers and clients in them. Nothing here touches the
//! machine's own namespace, and everything is gone when its value is dropped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, setns, unshare};

/// How long a client waits for an answer that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client waits for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);
/// How often servers look whether they are to stop.
const TURN: Duration = Duration::from_millis(20);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace of its own.
#[derive(Debug)]
pub(crate) struct Namespace {
    path: PathBuf,
}

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/run/dcp-test-{}-{number}-{name}", std::process::id()));
        File::create(&path).expect("tests run as root");
        let target = path.clone();
        let made = std::thread::spawn(move || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        made.join().unwrap().expect("tests run as root");
        let namespace = Self { path };
        // A namespace begins with what the machine has, and a cluster on it may forward.
        namespace.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")).expect("tests run as root");
        namespace
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Serves on `port` over TCP: answers with `name` and the client's address as the server saw it.
    pub(crate) fn tcp_serve(&self, name: &'static str, port: u16) -> Server {
        let listener = self.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        Server::new(move || {
            let turn = u16::try_from(TURN.as_millis()).unwrap();
            let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], turn);
            if ready == Ok(1) {
                let (mut stream, peer) = listener.accept().unwrap();
                // The client may have gone.
                stream.write_all(format!("{name} {}", peer.ip()).as_bytes()).ok();
            }
        })
    }

    /// The same over UDP.
    pub(crate) fn udp_serve(&self, name: &'static str, port: u16) -> Server {
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        socket.set_read_timeout(Some(TURN)).unwrap();
        Server::new(move || {
            let mut buffer = [0; 64];
            if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer).ok();
            }
        })
    }

    /// What the server at `address` answers over TCP.
    pub(crate) fn tcp_ask(&self, address: impl Into<Ipv4Addr>, port: u16) -> io::Result<String> {
        let address = SocketAddr::V4(SocketAddrV4::new(address.into(), port));
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    /// Whether a connection attempt gets no answer at all.
    pub(crate) fn tcp_is_silent(&self, address: impl Into<Ipv4Addr>, port: u16) -> bool {
        self.tcp_is_silent_for(address, port, SILENCE)
    }

    /// Whether a connection attempt gets no answer at all for so long.
    pub(crate) fn tcp_is_silent_for(&self, address: impl Into<Ipv4Addr>, port: u16, limit: Duration) -> bool {
        let address = SocketAddr::V4(SocketAddrV4::new(address.into(), port));
        let tried = self.run(move || TcpStream::connect_timeout(&address, limit));
        tried.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
    }

    /// A UDP client that stays the same flow over several questions.
    pub(crate) fn udp_client(&self, address: impl Into<Ipv4Addr>, port: u16) -> UdpSocket {
        let address = SocketAddrV4::new(address.into(), port);
        self.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(address).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }

    /// What the server at `address` answers to a packet of `length` bytes, IP and UDP headers among them, that
    /// must not be cut to pieces on its way.
    pub(crate) fn udp_whole(
        &self,
        address: impl Into<Ipv4Addr>,
        port: u16,
        length: usize,
    ) -> io::Result<String> {
        let socket = self.udp_client(address, port);
        let whole: libc::c_int = libc::IP_PMTUDISC_DO;
        let size = libc::socklen_t::try_from(size_of_val(&whole)).unwrap();
        // SAFETY: the pointer and length are those of a live integer, which is the option's type.
        let set = unsafe {
            let value = std::ptr::from_ref(&whole).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value, size)
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        socket.send(&vec![b'?'; length - 28])?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// What the server at `address` answers over UDP.
    pub(crate) fn udp_ask(&self, address: impl Into<Ipv4Addr>, port: u16) -> io::Result<String> {
        udp_exchange(&self.udp_client(address, port))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).ok();
        std::fs::remove_file(&self.path).ok();
    }
}

/// Sends a question and waits for the answer.
pub(crate) fn udp_exchange(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(mut turn: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                turn();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
