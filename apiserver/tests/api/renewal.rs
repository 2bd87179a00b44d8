//! Certificates over the years: walked over by a clock that the test turns.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use decapod_apiserver::pki::{CertificateRequest, MASTERS, Pki};
use decapod_apiserver::{Clock, Handle, Options, Server};
use decapod_storage::{Embedded, embedded};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;

/// A clock for the server and its clients.
#[derive(Debug)]
struct Manual(Mutex<Timestamp>);

impl Manual {
    fn advance(&self, days: i64) {
        *self.0.lock().unwrap() += SignedDuration::from_hours(24 * days);
    }
}

impl Clock for Manual {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

impl TimeProvider for Manual {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().as_second()).unwrap();
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

struct World {
    clock: Arc<Manual>,
    pki: Arc<Pki>,
    handle: Handle,
    _dir: tempfile::TempDir,
}

type Connection = SendRequest<Empty<bytes::Bytes>>;

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Manual(Mutex::new("2026-03-01T12:00:00Z".parse().unwrap())));
        let pki = Arc::new(Pki::open(&dir.path().join("pki"), clock.now()).unwrap());
        let store =
            Arc::new(Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap());
        let options = Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() };
        let handle = Server::start(options, store, pki.clone(), clock.clone()).await.unwrap();
        Self { clock, pki, handle, _dir: dir }
    }

    /// The administrator's connection, with a certificate that was issued now.
    async fn connect(&self) -> Connection {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.ca_pem().as_bytes()).unwrap()).unwrap();
        let admin = CertificateRequest::client("system:admin", &[MASTERS]);
        let pair = self.pki.issue(&admin, self.clock.now()).unwrap();
        let certificate = CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_details(provider, self.clock.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        let socket = TcpStream::connect(self.handle.address()).await.unwrap();
        let name = ServerName::IpAddress(self.handle.address().ip().into());
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

async fn code(connection: &mut Connection) -> u16 {
    let request = http::Request::get("/version").header("host", "x").body(Empty::new()).unwrap();
    let response = connection.send_request(request).await.unwrap();
    let code = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    code
}

/// The server's certificate (of one year) is renewed under a connection that stands, and each new client,
/// which judges by the same clock, meets one that is good.
#[tokio::test]
async fn the_server_is_good_for_years() {
    let world = World::start().await;
    for _ in 0..20 {
        let mut old = world.connect().await;
        assert_eq!(code(&mut old).await, 200);
        world.clock.advance(80);
        let mut new = world.connect().await;
        assert_eq!(code(&mut new).await, 200);
        assert_eq!(code(&mut old).await, 200, "a renewal drops no connection");
    }
}

/// A connection does not outlive the certificate by which it was authenticated.
#[tokio::test]
async fn a_clients_certificate_ends_on_its_connection_too() {
    let world = World::start().await;
    let mut connection = world.connect().await;
    world.clock.advance(364);
    assert_eq!(code(&mut connection).await, 200);
    world.clock.advance(2);
    assert_eq!(code(&mut connection).await, 401);
    assert_eq!(code(&mut world.connect().await).await, 200);
}
