//! The Ingress controller with real clients: an API server in the essentials, sockets on loopback.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::api::Api;
use crate::support::PATIENCE;
use bytes::Bytes;
use decapod_client::clock::SystemClock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_network::ingress::{CONTROLLER, Options, Server};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

struct Controller {
    http: SocketAddr,
    https: SocketAddr,
    api: Api,
    supervisor: Supervisor,
}

async fn controller() -> Controller {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let api = Api::new();
    api.put("ingressclasses", "", "decapod", &json!({"spec": {"controller": CONTROLLER}}));
    api.put("ingressclasses", "", "other", &json!({"spec": {"controller": "x.io/other"}}));
    let options = Options { http: any, https: any, ready: None, ..Options::default() };
    let server = Server::bind(options).await.unwrap();
    let (http, https) = server.addresses().unwrap();
    let (supervisor, clock) = (Supervisor::new(), Arc::new(SystemClock::new()));
    let informers = Informers::new(api.client(), supervisor.clone(), clock.clone());
    let run = server.run(informers, supervisor.clone(), clock);
    supervisor.spawn("ingress", async move { run.await.unwrap() });
    Controller { http, https, api, supervisor }
}

impl Controller {
    /// A Service of that name, served at these ports of this machine's loopback addresses.
    fn service(&self, name: &str, endpoints: &[SocketAddr]) {
        let spec =
            json!({"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
        self.api.put("services", "default", name, &json!({"spec": spec}));
        for (number, endpoint) in endpoints.iter().enumerate() {
            self.api.put(
                "endpointslices",
                "default",
                &format!("{name}-{number}"),
                &json!({"metadata": {"labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
                    "endpoints": [{"addresses": [endpoint.ip().to_string()]}],
                    "ports": [{"name": "http", "port": endpoint.port(), "protocol": "TCP"}]}),
            );
        }
    }

    fn ingress(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec.as_object_mut().unwrap().entry("ingressClassName").or_insert_with(|| json!("decapod"));
        self.api.put("ingresses", "default", name, &json!({"spec": spec}));
    }

    /// What a plain client reads.
    fn get(&self, host: &str, path: &str) -> String {
        ask(
            self.http,
            &format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: close\r\n\r\n"
            ),
        )
    }

    /// Waits until the answer begins and ends so.
    #[track_caller]
    fn until(&self, host: &str, path: &str, status: &str, end: &str) {
        let mut last = String::new();
        for _ in 0..3000 {
            last = self.get(host, path);
            if last.starts_with(&format!("HTTP/1.1 {status}")) && last.ends_with(end) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{host}{path} is not {status} …{end}: {last}");
    }
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Reads the head of a message, and nothing that follows.
fn head_read(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

/// A server that answers with its name and what it saw of the request.
async fn backend(name: &'static str, supervisor: &Supervisor) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tasks, shutdown) = (supervisor.clone(), supervisor.clone());
    shutdown.spawn_until_shutdown("backend", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: Request<Incoming>| async move {
                let header =
                    |name: &str| request.headers().get(name).map_or("-", |v| v.to_str().unwrap()).to_owned();
                let seen = ["host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-port"]
                    .map(header)
                    .join(" ");
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let text = format!("{name} {path} {seen} {}", String::from_utf8_lossy(&body));
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            tasks.spawn_until_shutdown("backend-connection", async move {
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                // The proxy may close what it does not need any more.
                served.await.ok();
            });
        }
    });
    address
}

fn to(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"name": "http"}}})
}

fn rule(host: &str, path: &str, kind: &str, service: &str) -> Value {
    json!({"host": host, "http": {"paths": [{"path": path, "pathType": kind, "backend": to(service)}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_go_where_the_rules_say() {
    let controller = controller().await;
    let (a, b) = (backend("a", &controller.supervisor).await, backend("b", &controller.supervisor).await);
    controller.service("a", &[a]);
    controller.service("b", &[b]);
    controller.service("none", &[]);
    controller.ingress(
        "web",
        json!({"rules": [rule("a.test", "/", "Prefix", "a"), rule("*.wild.test", "/b", "Exact", "b"),
            rule("none.test", "/", "Prefix", "none"), rule("missing.test", "/", "Prefix", "missing")]}),
    );
    controller.ingress(
        "other",
        json!({"ingressClassName": "other", "rules": [rule("x.test", "/", "Prefix", "a")]}),
    );
    let port = "80";
    controller.until("a.test:8000", "/x/y?q=1", "200", &format!("a /x/y a.test:8000 127.0.0.1 http {port} "));
    controller.until("one.wild.test", "/b", "200", &format!("b /b one.wild.test 127.0.0.1 http {port} "));
    controller.until(
        "one.wild.test",
        "/b/c",
        "404",
        "no Ingress has a rule for host \"one.wild.test\" and path /b/c\n",
    );
    controller.until("x.test", "/", "404", "\n");
    controller.until("none.test", "/", "503", "the Service default/none has no endpoint that is ready\n");
    controller.until("missing.test", "/", "503", "there is no Service default/missing\n");
    let posted = ask(
        controller.http,
        "POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    );
    assert!(posted.ends_with("80 hello"), "{posted}");
    // A change of the rules, and one of the endpoints.
    controller
        .ingress("web", json!({"rules": [rule("a.test", "/", "Prefix", "b")], "defaultBackend": to("a")}));
    controller.until("a.test", "/", "200", "b / a.test 127.0.0.1 http 80 ");
    controller.service("b", &[a]);
    controller.until("a.test", "/", "200", "a / a.test 127.0.0.1 http 80 ");
    controller.supervisor.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_endpoint_that_refuses_is_passed_over() {
    let controller = controller().await;
    // Bound and not listened at: nobody else gets the port, and who connects is refused.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let closed = silent.local_addr().unwrap();
    let a = backend("a", &controller.supervisor).await;
    controller.service("both", &[closed, a]);
    controller.service("dead", &[closed]);
    controller.ingress(
        "web",
        json!({"rules": [rule("a.test", "/", "Prefix", "both"), rule("dead.test", "/", "Prefix", "dead")]}),
    );
    controller.until("a.test", "/", "200", "a / a.test 127.0.0.1 http 80 ");
    for _ in 0..8 {
        let answer = controller.get("a.test", "/");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let answer = controller.get("dead.test", "/");
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains(&format!("cannot connect to {closed}")),
        "{answer}"
    );
    controller.supervisor.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_upgraded_connection_goes_both_ways() {
    let controller = controller().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let head = head_read(&mut stream).to_lowercase();
            if !head.contains("upgrade: websocket\r\n") {
                // Who asks whether the rule holds.
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                stream.write_all(answer.as_bytes()).unwrap();
                continue;
            }
            assert!(head.contains("connection: upgrade\r\n"), "{head}");
            let answer =
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
            let mut word = [0; 4];
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
            return;
        }
    });
    controller.service("ws", &[address]);
    controller.ingress("web", json!({"rules": [rule("ws.test", "/", "Prefix", "ws")]}));
    controller.until("ws.test", "/", "200", "");
    let mut stream = TcpStream::connect(controller.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = "GET /chat HTTP/1.1\r\nHost: ws.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let head = head_read(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"ping").unwrap();
    let mut word = [0; 4];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
    server.join().unwrap();
    controller.supervisor.shutdown(PATIENCE).await;
}

/// A certificate for a name, as the data of a Secret, and itself.
fn certificate(name: &str) -> (Value, rustls_pki_types::CertificateDer<'static>) {
    use base64::Engine;
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let data =
        json!({"tls.crt": base64(made.cert.pem()), "tls.key": base64(made.signing_key.serialize_pem())});
    (json!({"type": "kubernetes.io/tls", "data": data}), made.cert.der().clone())
}

/// Asks over TLS, by HTTP/2 or HTTP/1.1, trusting one certificate alone. `None` if it is another.
async fn tls_get(
    address: SocketAddr,
    host: &str,
    trusted: &rustls_pki_types::CertificateDer<'static>,
    h2: bool,
) -> Option<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let request = |uri: String| Request::get(uri).header("host", host).body(Empty::<Bytes>::new()).unwrap();
    let response = if h2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut asked = request(format!("https://{host}/"));
        asked.headers_mut().remove("host");
        let response = sender.send_request(asked).await.unwrap();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        text
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request("/".to_owned())).await.unwrap();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        text
    };
    Some(String::from_utf8_lossy(&response).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn certificates_come_from_secrets_and_change_with_them() {
    let controller = controller().await;
    let a = backend("a", &controller.supervisor).await;
    controller.service("a", &[a]);
    let tls = json!([{"hosts": ["a.test"], "secretName": "cert"}]);
    controller.ingress("web", json!({"rules": [rule("a.test", "/", "Prefix", "a")], "tls": tls}));
    for round in 0..2 {
        let (secret, trusted) = certificate("a.test");
        controller.api.put("secrets", "default", "cert", &secret);
        let mut last = None;
        for _ in 0..3000 {
            last = tls_get(controller.https, "a.test", &trusted, round == 0).await;
            if last.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(last.as_deref(), Some("a / a.test 127.0.0.1 https 443 "), "round {round}");
        let again = tls_get(controller.https, "a.test", &trusted, round == 1).await;
        assert_eq!(again.as_deref(), Some("a / a.test 127.0.0.1 https 443 "), "the other protocol");
    }
    controller.supervisor.shutdown(PATIENCE).await;
}
