//! Debian's docker-registry on a port of loopback, and a wire to it that can be cut.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::archive::Archive;
use super::support::PATIENCE;

/// The user that a closed registry knows, and the password.
pub(crate) const USER: (&str, &str) = ("crab", "geheim");
/// The password as htpasswd has it; of few rounds, since nobody guards anything with it.
const HTPASSWD: &str = "crab:$2b$04$fbgEVoyy.qp83Q3oR5lFbO8ThjtBIKrWMUdAUEk8Gz63Sqn4s855q\n";

/// A registry; gone when it is dropped.
pub(crate) struct Registry {
    directory: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    /// Its authority, where it speaks TLS.
    pub(crate) ca: Option<PathBuf>,
    process: Child,
}

impl Registry {
    /// Open to all, by plain HTTP.
    pub(crate) fn open() -> Self {
        Self::new(false)
    }

    /// By TLS, for one user.
    pub(crate) fn closed() -> Self {
        Self::new(true)
    }

    fn new(closed: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = closed.then(|| {
            std::fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
            certificates(directory.path())
        });
        // A port that was free a moment ago may be taken a moment later.
        for _ in 0..10 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            if let Some(process) = start(directory.path(), address, closed) {
                return Self { directory, address, ca, process };
            }
        }
        panic!("docker-registry does not start: is Debian's package installed?");
    }

    /// The name of an image in it.
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// Ends it, as an outage does.
    pub(crate) fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// The same registry again, at the same port.
    pub(crate) fn restart(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(process) = start(self.directory.path(), self.address, self.ca.is_some()) {
                self.process = process;
                return;
            }
            assert!(Instant::now() < deadline, "the registry does not come back");
        }
    }

    /// Where the content of a blob lies.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Puts the blobs of an archive into a repository, and documents as manifests under their tags. Returns their
    /// digests.
    pub(crate) fn fill(&self, repository: &str, archive: &Archive, manifests: &[(&str, &str, &[u8])]) {
        for (file, content) in &archive.files {
            if let Some(hex) = file.strip_prefix("blobs/sha256/") {
                let start = ask(self.address, "POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
                let place = start.header("location");
                let path = place.splitn(4, '/').nth(3).unwrap();
                let path = format!("/{path}&digest=sha256:{hex}");
                let put = ask(self.address, "PUT", &path, "application/octet-stream", content);
                assert_eq!(put.status, 201, "{put:?}");
            }
        }
        for (tag, media_type, document) in manifests {
            let path = format!("/v2/{repository}/manifests/{tag}");
            let put = ask(self.address, "PUT", &path, media_type, document);
            assert_eq!(put.status, 201, "{put:?}");
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have been stopped before.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// `None` if the port was taken meanwhile.
fn start(directory: &Path, address: SocketAddr, closed: bool) -> Option<Child> {
    let at = directory.display();
    let mut config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {at}/data}}\n  delete: {{enabled: true}}\n"
    );
    if closed {
        config += &format!("auth: {{htpasswd: {{realm: crabs, path: {at}/htpasswd}}}}\n");
    }
    config += &format!("http:\n  addr: {address}\n");
    if closed {
        config += &format!("  tls: {{certificate: {at}/server.pem, key: {at}/server.key}}\n");
    }
    let file = directory.join("config.yml");
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::create(directory.join("log")).unwrap();
    let mut process = Command::new("docker-registry")
        .arg("serve")
        .arg(&file)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("Debian's docker-registry is installed");
    let deadline = Instant::now() + PATIENCE;
    loop {
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        // Whoever listens there is asked whether it is this process: only a living one counts.
        if TcpStream::connect(address).is_ok() && process.try_wait().unwrap().is_none() {
            return Some(process);
        }
        assert!(Instant::now() < deadline, "docker-registry does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A certificate of an authority of its own, for loopback; returns where the authority's is.
fn certificates(directory: &Path) -> PathBuf {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let certificate = server.signed_by(&key, &issuer).unwrap();
    std::fs::write(directory.join("server.pem"), certificate.pem()).unwrap();
    std::fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();
    let path = directory.join("ca.pem");
    std::fs::write(&path, ca_certificate.pem()).unwrap();
    path
}

/// An answer to a request of the test's own.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
}

impl Answer {
    fn header(&self, name: &str) -> String {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
            .next()
            .unwrap()
    }
}

/// One request on a connection of its own.
fn ask(address: SocketAddr, method: &str, path: &str, media_type: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (head, _) = answer.split_once("\r\n\r\n").unwrap();
    Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head: head.to_owned() }
}

/// A wire to a server. It notes what is asked, and can be cut or held after a number of bytes.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    target: SocketAddr,
    /// Bytes that each connection may bring yet before it is cut; none if negative.
    budget: AtomicI64,
    /// Cut connections yet to come; after them all goes through.
    cuts: AtomicUsize,
    /// Hold instead of cutting.
    holds: bool,
    held: Mutex<Vec<TcpStream>>,
    asked: Mutex<Vec<String>>,
}

impl Wire {
    /// Passes everything.
    pub(crate) fn new(target: SocketAddr) -> Self {
        Self::with(target, i64::MAX, 0, false)
    }

    /// Cuts the first `cuts` connections once they brought `bytes`.
    pub(crate) fn cutting(target: SocketAddr, bytes: i64, cuts: usize) -> Self {
        Self::with(target, bytes, cuts, false)
    }

    /// Holds all connections for ever once they brought `bytes`.
    pub(crate) fn holding(target: SocketAddr, bytes: i64) -> Self {
        Self::with(target, bytes, usize::MAX, true)
    }

    fn with(target: SocketAddr, bytes: i64, cuts: usize, holds: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            target,
            budget: AtomicI64::new(bytes),
            cuts: AtomicUsize::new(cuts),
            holds,
            held: Mutex::default(),
            asked: Mutex::default(),
        });
        let own = Arc::clone(&inner);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let own = Arc::clone(&own);
                std::thread::spawn(move || own.serve(&client));
            }
        });
        Self { address, inner }
    }

    /// The name of an image behind it.
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// What was asked with a method and a part of the path, and how often.
    pub(crate) fn asked(&self, method: &str, part: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in self.inner.asked.lock().unwrap().iter() {
            if line.starts_with(method) && line.contains(part) {
                *counts.entry(line.split(' ').nth(1).unwrap().to_owned()).or_default() += 1;
            }
        }
        counts
    }

    /// Connections that are held now.
    pub(crate) fn held(&self) -> usize {
        self.inner.held.lock().unwrap().len()
    }

    /// Cuts the connections that are held.
    pub(crate) fn cut(&self) {
        for held in self.inner.held.lock().unwrap().drain(..) {
            held.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Inner {
    fn serve(&self, client: &TcpStream) {
        let Ok(server) = TcpStream::connect(self.target) else { return };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.requests(client, &server);
                server.shutdown(Shutdown::Write).ok();
            });
            self.answers(&server, client);
            client.shutdown(Shutdown::Both).ok();
            server.shutdown(Shutdown::Both).ok();
        });
    }

    fn requests(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            // A request's head comes in one piece: nobody writes it in several.
            let text = String::from_utf8_lossy(&buffer[..length]);
            let heads = text.lines().filter(|line| line.ends_with(" HTTP/1.1"));
            self.asked.lock().unwrap().extend(heads.map(str::to_owned));
            if to.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    }

    fn answers(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = vec![0; 1 << 14];
        let mut left = self.budget.load(Ordering::SeqCst);
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let length_signed = i64::try_from(length).unwrap();
            if length_signed > left && self.cut() {
                if self.holds {
                    self.held.lock().unwrap().push(to.try_clone().unwrap());
                    // Until the other side goes, or this one is cut.
                    while matches!(to.peek(&mut [0]), Ok(1..)) {}
                }
                return;
            }
            left = left.saturating_sub(length_signed);
            if to.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    }

    fn cut(&self) -> bool {
        let less = |cuts: usize| cuts.checked_sub(1);
        self.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}
